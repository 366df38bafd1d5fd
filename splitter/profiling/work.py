"""What a captured graph has to do, whoever does it: floating-point operations, and bytes read and written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..graph.program import Program, free_of_strides
from ..graph.shapes import TensorType

_FOURIER = (torch.ops.aten.stft.default, torch.ops.aten.istft.default)


@dataclass(frozen=True)
class Work:
    """Of one run; `records.SegmentProfile` says what counts."""

    flops: int
    moved_bytes: int


@torch.no_grad()
def of(program: Program) -> Work:
    """Count by shapes alone: nothing is computed."""
    # The operator that attention is on a CPU is one that torch's counter leaves out.
    more = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False, custom_mapping=more) as total:
        counter = _Counter(_movable(program).module())
        counter.run(*(_empty(node) for node in program.input_nodes))
    return Work(total.get_total_flops() + counter.fourier_flops, counter.moved_bytes)


@torch.no_grad()
def by_operator(program: Program) -> dict[str, int]:
    """Floating-point operations of each operator, by the name of its node."""
    flops: dict[str, int] = {}
    more = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False, custom_mapping=more) as total:
        counter = _Counter(_movable(program).module())

        def told(node: fx.Node) -> None:
            flops[node.name] = total.get_total_flops() + counter.fourier_flops - sum(flops.values())

        counter.done = told
        counter.run(*(_empty(node) for node in program.input_nodes))
    return flops


def _movable(program: Program) -> Program:
    """A copy whose views take values however they lie: `_empty` has those of a Fourier transform in another way."""
    copy = program.copy()
    free_of_strides(copy.graph)
    return copy


class _Counter(fx.Interpreter):
    """Runs a graph on tensors without contents."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.fourier_flops = 0
        self.moved_bytes = 0
        self.done: Callable[[fx.Node], None] = lambda node: None

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if target in _FOURIER:
            # Its own implementation looks at the window's values, which are not there.
            result: Any = _empty(self._node)
            spectrum, length = (result if target is _FOURIER[0] else given[0]), args[1]
            transforms = spectrum.numel() // (length // 2 + 1)
            self.fourier_flops += round(transforms * 2.5 * length * math.log2(length))
        else:
            result = super().call_function(target, args, kwargs)
        read = {id(tensor): tensor.nbytes for tensor in given}
        places = {tensor.untyped_storage()._cdata for tensor in given}
        results = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        written = [tensor.nbytes for tensor in results if tensor.untyped_storage()._cdata not in places]
        if written:
            self.moved_bytes += sum(read.values()) + sum(written)
        return result

    def run_node(self, n: fx.Node) -> Any:
        self._node = n
        result = super().run_node(n)
        self.done(n)
        return result


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **options: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _empty(node: fx.Node) -> Tensor:
    kind: TensorType = node.meta["type"]
    return torch.empty(kind.shape, dtype=getattr(torch, kind.dtype))
