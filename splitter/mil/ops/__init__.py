"""The operations of ML Programs, one small function each, grouped by family.

A function takes the operation's parameters by their names in Core ML's documentation and returns its result,
or a tuple of results. How a parameter is annotated says how it arrives:

- ``Tensor``: a tensor, in the type that holds its declared one (`splitter.mil.types`);
- ``int``, ``float``, ``bool``, ``str``: a Python value;
- ``list[int]``, ``list[bool]``, …: a flat Python list;
- ``list[Tensor]``: every tensor of a variadic parameter;
- `Context`: what the interpreter knows beside the arguments.

Whatever else the house knows of an operation (how it is tiled, rounded, counted, placed, searched for) it declares
there too, as `Traits`. Functions compute in the types they are given. Rounding to the declared type, half-precision
accumulation and listening are the interpreter's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ...errors import OperationError
from ..memory import check_free
from ..types import TensorType
from .parameters import Parameter, parameters_of
from .traits import Traits

if TYPE_CHECKING:
    from ..program import Operation

Function: TypeAlias = Callable[..., Any]
FAMILIES = (
    "activation",
    "compression",
    "control_flow",
    "convolution",
    "elementwise",
    "image",
    "linear",
    "lists",
    "normalization",
    "pooling",
    "random",
    "recurrent",
    "reduction",
    "scatter_gather",
    "shape",
    "tensor",
)
OPSETS = ("CoreML5", "CoreML6", "CoreML7", "CoreML8")  # iOS15 … iOS18
_ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True)
class OperationRecord:
    """A registered operation.

    Attributes:
        name: The operation's type, e.g. ``"conv"``.
        opset: The oldest opset the function is right for.
        function: Computes it.
        parameters: What it takes, by name.
        takes_context: Whether the function asks for its `Context`.
        traits: What it is; the same in all opsets.
    """

    name: str
    opset: str
    function: Function
    parameters: Mapping[str, Parameter]
    takes_context: bool
    traits: Traits

    @property
    def family(self) -> str:
        """What kind of work it is: the file it is registered in; attention is a family of its own."""
        return "attention" if self.name == _ATTENTION else self.function.__module__.rpartition(".")[2]


@dataclass
class Context:
    """What an operation may know beside its arguments.

    Attributes:
        operation: The operation being executed: its outputs' declared types, its blocks and attributes.
        generator: Source of all randomness, seeded by the caller.
        run_block: Executes one of the operation's blocks on some arguments.
        states: The state tensors by name.
        iterations: Counts the turns of all loops of one execution.
        max_iterations: How many turns they may take together.
    """

    operation: Operation
    generator: torch.Generator
    run_block: Callable[..., list[Any]]
    states: dict[str, Tensor] = field(default_factory=dict)
    iterations: Iterator[int] = field(default_factory=count)
    max_iterations: int = 1_000_000

    @property
    def result(self) -> TensorType:
        """Declared type of the first output."""
        kind = self.operation.outputs[0].type
        if not isinstance(kind, TensorType):
            raise OperationError(f"{self.operation.type} {self.operation.name!r} gives no tensor", received=kind)
        return kind


REGISTRY: dict[str, list[OperationRecord]] = {}


def operation(name: str, traits: Traits = Traits(), *, opset: str = OPSETS[0]) -> Callable[[Function], Function]:
    """Register a function as the meaning of an operation, from an opset on.

    Traits are declared with the first of an operation's functions, and hold for all.

    Raises:
        ValueError: The operation is registered already for that opset, or its traits are declared.
    """

    def register(function: Function) -> Function:
        known = REGISTRY.get(name, [])
        if any(record.opset == opset for record in known):
            raise ValueError(f"operation {name!r} is registered already for {opset}")
        if known and traits != Traits():
            raise ValueError(f"traits of operation {name!r} are declared already, for {known[0].opset}")
        parameters = parameters_of(function)
        takes_context = parameters.pop("context", None) is not None
        declared = known[0].traits if known else traits
        added = OperationRecord(name, opset, function, parameters, takes_context, declared)
        REGISTRY[name] = sorted([*known, added], key=lambda record: OPSETS.index(record.opset))
        return function

    return register


@cache
def _loaded() -> Mapping[str, list[OperationRecord]]:
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")
    return REGISTRY


def registered() -> dict[str, tuple[str, ...]]:
    """Every operation there is, with the opsets its meaning changed in."""
    return {name: tuple(record.opset for record in known) for name, known in sorted(_loaded().items())}


def find(name: str, opset: str) -> OperationRecord | None:
    """What an opset means by an operation; None if there is none."""
    level = OPSETS.index(opset) if opset in OPSETS else len(OPSETS) - 1
    fitting = [record for record in _loaded().get(name, []) if OPSETS.index(record.opset) <= level]
    return fitting[-1] if fitting else None


def record(name: str, opset: str) -> OperationRecord:
    """The same.

    Raises:
        OperationError: There is none.
    """
    if (found := find(name, opset)) is None:
        raise OperationError(f"splitter cannot execute operations of type {name!r}", fix="See docs/mil-ops.md.")
    return found


# --------------------------------------------------------------------------------------- guards


def check_result_size(shape: Sequence[int], dtype: torch.dtype) -> None:
    """Refuse a result for which the execution has no memory left, before it is allocated.

    Raises:
        OperationError: There is too little, or an extent is negative.
    """
    if any(extent < 0 for extent in shape):
        raise OperationError("a result has a negative extent", received=f"extents {tuple(shape)}")
    check_free(math.prod(shape) * dtype.itemsize)


def axes_of(axes: Sequence[int] | None, rank: int) -> list[int]:
    """Axes counted from the front; all of them where None is given."""
    if axes is None:
        return list(range(rank))
    for axis in axes:
        if not -rank <= axis < rank:
            raise OperationError(f"an axis lies outside rank {rank}", received=axis)
    return [axis % rank for axis in axes]
