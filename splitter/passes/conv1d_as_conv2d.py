"""Write a convolution of one axis as one of two with a height of 1, the only form the Neural Engine knows.

Before::

    y: (b, o, n) = conv1d(x: (b, i, m), w: (o, i, k), bias, [s], [p], [d])

After::

    y = view(conv2d(view(x): (b, i, 1, m), view(w): (o, i, 1, k), bias, [1, s], [0, p], [1, d]), (b, o, n))

Transposed convolutions likewise. The same products are added up, in an order that is the kernel's choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..graph.program import Program
from .insertion import Call, Operator, as_images, replaced

_aten = torch.ops.aten
# The same for images, and what an axis of height 1 takes in the place of each argument behind the bias.
_IMAGES: dict[Any, tuple[Any, tuple[int | None, ...]]] = {
    _aten.conv1d.default: (_aten.conv2d.default, (1, 0, 1, None)),
    _aten.conv_transpose1d.default: (_aten.conv_transpose2d.input, (1, 0, 0, None, 1)),
}


@dataclass(frozen=True)
class Conv1dAsConv2d:
    name: ClassVar[str] = "conv1d-as-conv2d"
    max_abs: ClassVar[float] = 1e-3

    def apply(self, program: Program) -> tuple[Program, int]:
        return replaced(program, _instead)


def _instead(call: Call, node: Operator) -> fx.Node | None:
    return _as_image(call, node, *node.args) if node.target in _IMAGES and not node.kwargs else None


def _as_image(
    call: Call, node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None, *how: Any
) -> fx.Node:
    target, heights = _IMAGES[node.target]
    wide = [one if height is None else [height, *one] for one, height in zip(how, heights, strict=False)]
    image = call(target, as_images(call, x), as_images(call, weight), bias, *wide)
    return call(_aten.view.default, image, list(node.meta["type"].shape))
