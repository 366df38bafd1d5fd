"""Fold a long last axis into rows and columns, so that no extent goes beyond what the Neural Engine takes.

A waveform of 343,980 samples becomes 42 rows of 8,192, row after row, zeros behind the end. Strides that are powers of
two shorten the rows and leave their number: 85,995 samples are 42 × 2,048, 21,499 are 42 × 512. Short tensors stay as
they are.

Before::

    y: (1, 48, 85995) = conv1d(x: (1, 2, 343980), w: (48, 2, 8), bias, [4], [2])

After, x and y folded::

    l, r = last 2 columns of each row above, first 2 of each row below   # zeros above the first, below the last
    y: (1, 48, 42, 2048) = conv2d(cat([l, x: (1, 2, 42, 8192), r], 3), w: (48, 2, 1, 8), bias, [1, 4]) · inside

``inside`` is 1 within the 85,995 samples and 0 behind them: what looks sideways finds there the zeros of the padding,
and a mean over all samples is one over the true ones, times 42 · 2048 / 85995. A transposed convolution reaches its
neighbours in the same way and takes with it the slice that trims it. Element-wise operations do not notice.

`group_norm` must have been written out before, see `norms_safe_in_half`. The sums are the same but for the order of
their terms. Inputs and outputs of the program that are long cross folded too: `Program.folds` says how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx

from ..graph.program import Program
from ..graph.shapes import TensorType
from .folding import Folding, length_of
from .folding_rules import RULES
from .rewriting import Pass, Rewriting

_HALO_ROOM = 2  # rows are at most half as long as allowed: halos come on top


@dataclass(frozen=True)
class FoldLongAxes(Pass):
    """The pass; `extent` is the largest that no tensor exceeds: 16,384 on the M1, 65,536 on later chips."""

    name = "fold-long-axes"
    max_abs = 1e-3
    requires = ("norms-safe-in-half",)
    extent: int = 16_384

    def apply(self, program: Program) -> Rewriting:
        longest = max((length_of(node) for node in program.graph.nodes if self._long(node)), default=0)
        if not longest:
            return Rewriting(program, 0)
        columns = 1 << int(math.log2(self.extent // _HALO_ROOM))
        return Folding(program, -(-longest // columns), self._long, RULES).run()

    def _long(self, node: fx.Node) -> bool:
        kind: TensorType | None = node.meta.get("type")
        return kind is not None and kind.dtype == "float32" and len(kind.shape) > 2 and kind.shape[-1] > self.extent
