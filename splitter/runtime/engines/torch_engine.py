"""The captured segment, in torch: the reference, and the default off the Mac. Also rewritten for speed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ... import passes
from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...graph import categories
from ...lowering import capabilities
from . import Engine

_ALIGNMENT = 64  # bytes; PyTorch's own, on which its choice of kernel may depend
CPU_PASSES = ("norms-into-convs", "narrow-convs-as-products", "transposed-convs-as-convs")  # on a processor


class TorchEngine(Engine):
    name: ClassVar[str] = "torch"
    max_time_ratio: ClassVar[float | None] = 1.0

    @classmethod
    def runs_programs(cls, segment: SegmentRecord) -> bool:
        return True

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        self._bundle, self._program = bundle, bundle.program(segment.program)
        self._dtypes = {name: bundle.tensors[name].dtype for name in segment.outputs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        results = self._program.run(self._taken(inputs))
        return {name: result.to(getattr(torch, self._dtypes[name])).numpy() for name, result in results.items()}

    def run_in_steps(self, inputs: Mapping[str, Array], done: Callable[[str], None]) -> bool:
        self._program.run(self._taken(inputs), observe=lambda node, value: done(categories.of_node(node)))
        return True

    def run_with_taps(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        from ...verification.transformer import TappedTransformer

        return TappedTransformer(self._bundle, shipped=False).values(wanted, inputs)

    def _taken(self, inputs: Mapping[str, Array]) -> dict[str, Tensor]:
        """The inputs as the program takes them."""
        tensors = {}
        for node in self._program.input_nodes:
            tensor = aligned(inputs[str(node.target)])
            tensors[str(node.target)] = tensor.to(getattr(torch, node.meta["type"].dtype))
        return tensors


def aligned(array: Array) -> Tensor:
    """An array as a tensor that lies where PyTorch would put it; without a copy where it does already."""
    tensor = torch.from_numpy(array)
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor


class OptimizedTorchEngine(TorchEngine):
    """The captured segment after passes for processors: quicker, and no longer bit for bit the same.

    The passes are not held against the graph here, which would take longer than they save. `selection.fastest`
    holds what they give to the golden output before it takes this engine; nothing does where it is asked for by name.
    """

    name: ClassVar[str] = "torch-optimized"
    max_time_ratio: ClassVar[float | None] = 0.95  # a busy machine makes that much noise

    @classmethod
    def unsupported_reason(cls, segment: SegmentRecord) -> str | None:
        target = segment.artifact.target
        return None if capabilities(target).passes else f"target {target!r} takes no graph passes"

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        super().__init__(bundle, segment, compute_units=compute_units)
        for name in CPU_PASSES:
            self._program = passes.parsed(name).apply(self._program).program
