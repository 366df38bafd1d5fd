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
from ...graph.program import Program, free_of_strides
from ...lowering import capabilities
from . import ON, REFERENCE, Engine, Held

_ALIGNMENT = 64  # bytes; PyTorch's own, on which its choice of kernel may depend
CPU_PASSES = ("norms-into-convs", "narrow-convs-as-products", "transposed-convs-as-convs")  # on a processor


class TorchEngine(Engine):
    name: ClassVar[str] = "torch"
    max_time_ratio: ClassVar[float | None] = 1.0

    @classmethod
    def runs_programs(cls, segment: SegmentRecord) -> bool:
        return True

    @classmethod
    def device_reason(cls, device: str) -> str | None:
        try:
            kind, index = torch.device(device).type, torch.device(device).index or 0
        except RuntimeError:
            return f"PyTorch knows no device {device!r}"
        there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        if index < there.get(kind, 0):
            return None
        return (
            f"PyTorch finds no device {device!r} here, but {', '.join(name for name, count in there.items() if count)}"
        )

    @classmethod
    def on_device(cls, bundle: Bundle, segment: SegmentRecord, device: str) -> TorchEngine:
        return cls(bundle, segment, compute_units="ALL", device=device)

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str, device: str = "cpu") -> None:
        self._bundle, self._program = bundle, self._rewritten(bundle.program(segment.program))
        self._dtypes = {name: bundle.tensors[name].dtype for name in segment.outputs}
        self._device = torch.device(device)
        if device != "cpu":
            self.place = f"{REFERENCE}{ON}{device}"
            self._program = _moved(self._program, self._device)

    def _rewritten(self, program: Program) -> Program:
        return program

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: result.cpu().numpy() for name, result in self._results(inputs).items()}

    def run_in_place(self, inputs: Mapping[str, Array | Held]) -> dict[str, Array | Held]:
        return {name: _Held(result, self.place) for name, result in self._results(inputs).items()}

    def _results(self, inputs: Mapping[str, Array | Held]) -> dict[str, Tensor]:
        results = self._program.run(self._taken(inputs))
        return {name: result.to(getattr(torch, self._dtypes[name])) for name, result in results.items()}

    def run_in_steps(self, inputs: Mapping[str, Array], done: Callable[[str], None]) -> bool:
        self._program.run(self._taken(inputs), observe=lambda node, value: done(categories.of_node(node)))
        return True

    def run_with_taps(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        from ...verification.transformer import TappedTransformer

        return TappedTransformer(self._bundle, shipped=False).values(wanted, inputs)

    def _taken(self, inputs: Mapping[str, Array | Held]) -> dict[str, Tensor]:
        """The inputs as the program takes them."""
        tensors = {}
        for node in self._program.input_nodes:
            value = inputs[str(node.target)]
            if isinstance(value, _Held):
                tensor = value.tensor
            else:
                tensor = aligned(value.array() if isinstance(value, Held) else value)
            tensors[str(node.target)] = tensor.to(self._device, getattr(torch, node.meta["type"].dtype))
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

    def _rewritten(self, program: Program) -> Program:
        for name in CPU_PASSES:
            program = passes.parsed(name).apply(program).program
        return program


class _Held(Held):
    """A tensor on a device of PyTorch's."""

    def __init__(self, tensor: Tensor, place: str) -> None:
        self.tensor, self.place = tensor, place
        self.shape, self.dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")

    def is_finite(self) -> bool:
        return not self.tensor.dtype.is_floating_point or bool(torch.isfinite(self.tensor).all())

    def array(self) -> Array:
        array: Array = self.tensor.cpu().numpy()
        return array


def _moved(program: Program, device: torch.device) -> Program:
    """A program whose weights lie, and whose constants are made, on a device."""
    moved = program.copy()
    moved.weights = {
        name: weight.detach().to(device).requires_grad_(weight.requires_grad)  # as in `Program.weights`
        for name, weight in program.weights.items()
    }
    for node in moved.operators:
        arguments = {argument.name for argument in getattr(node.target, "_schema").arguments}  # noqa: B009
        if "device" in arguments and (node.kwargs.get("device") is not None or not node.all_input_nodes):
            node.update_kwarg("device", device)
    free_of_strides(moved.graph)  # kernels of another device lay their results out in another way
    return moved
