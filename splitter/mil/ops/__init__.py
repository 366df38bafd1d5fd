"""The operations of ML Programs, one small function each, grouped by family.

A function takes the operation's parameters by their names in Core ML's documentation and returns its result,
or a tuple of results. How a parameter is annotated says how it arrives:

- ``Tensor``: a tensor, in the type that holds its declared one (`splitter.mil.types`);
- ``int``, ``float``, ``bool``, ``str``: a Python value;
- ``list[int]``, ``list[bool]``, …: a flat Python list;
- ``list[Tensor]``: every tensor of a variadic parameter;
- `Context`: what the interpreter knows beside the arguments.

Functions compute in the types they are given. Rounding to the declared type, half-precision accumulation and
listening are the interpreter's.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from itertools import count
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...errors import OperationError
from ..program import Operation
from ..types import TensorType

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
_MAX_RESULT_BYTES = 1 << 34  # 16 GiB: beyond it a size is a mistake or an attack, not a tensor


@dataclass(frozen=True)
class Implementation:
    """A registered operation.

    Attributes:
        name: The operation's type, e.g. ``"conv"``.
        opset: The oldest opset it is right for.
        function: Computes it.
        converters: How each parameter arrives, by name.
        accumulate_fp32: Sums or multiplies many terms: its half-precision arguments are widened to float32, and the
            result is rounded once.
    """

    name: str
    opset: str
    function: Function
    converters: Mapping[str, Callable[[Any], Any]]
    accumulate_fp32: bool


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
            raise OperationError(f"{self.operation.type} {self.operation.name!r} gives a tensor", received=kind)
        return kind


_REGISTRY: dict[str, list[Implementation]] = {}


def operation(*names: str, opset: str = OPSETS[0], accumulate_fp32: bool = False) -> Callable[[Function], Function]:
    """Register a function as the meaning of an operation, from an opset on.

    Raises:
        ValueError: The operation is registered already for that opset.
    """

    def register(function: Function) -> Function:
        converters = _converters(function)
        for name in names:
            known = _REGISTRY.setdefault(name, [])
            if any(one.opset == opset for one in known):
                raise ValueError(f"operation {name!r} is registered already for {opset}")
            known.append(Implementation(name, opset, function, converters, accumulate_fp32))
            known.sort(key=lambda one: OPSETS.index(one.opset))
        return function

    return register


@cache
def _loaded() -> Mapping[str, list[Implementation]]:
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")
    return _REGISTRY


def registered() -> dict[str, tuple[str, ...]]:
    """Every operation there is, with the opsets its meaning changed in."""
    return {name: tuple(one.opset for one in known) for name, known in sorted(_loaded().items())}


def find(name: str, opset: str) -> Implementation | None:
    """The implementation an opset means; None if there is none."""
    level = OPSETS.index(opset) if opset in OPSETS else len(OPSETS) - 1
    fitting = [one for one in _loaded().get(name, []) if OPSETS.index(one.opset) <= level]
    return fitting[-1] if fitting else None


def family(name: str, opset: str) -> str:
    """What kind of work an operation is: the file among `FAMILIES` it lies in; attention is a family of its own."""
    implementation = find(name, opset)
    if implementation is None:
        raise OperationError("operations are ones splitter can execute", received=f"type {name!r}")
    return "attention" if name == _ATTENTION else implementation.function.__module__.rpartition(".")[2]


# ------------------------------------------------------------------------------------ arguments


def _converters(function: Function) -> dict[str, Callable[[Any], Any]]:
    hints = typing.get_type_hints(function)
    return {name: _converter(hints[name]) for name in inspect.signature(function).parameters}


def _converter(hint: Any) -> Callable[[Any], Any]:
    options = [one for one in typing.get_args(hint) if one is not types.NoneType] if _is_union(hint) else [hint]
    hint = options[0]
    if typing.get_origin(hint) is list:
        (element,) = typing.get_args(hint)
        return partial(_as_list, _SCALARS[element]) if element in _SCALARS else _same
    return _as_tensor if hint is Tensor else _SCALARS.get(hint, _same)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _same(value: Any) -> Any:
    return value


def _as_tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"a tensor is needed; got {type(value).__name__}")
    return value


def _as_int(value: Any) -> int:
    number = _number(value)
    if isinstance(number, float):
        raise TypeError(f"an integer is needed; got {number}")
    return int(number)


def _as_float(value: Any) -> float:
    return float(_number(value))


def _as_bool(value: Any) -> bool:
    number = _number(value)
    if not isinstance(number, bool):
        raise TypeError(f"true or false is needed; got {number}")
    return number


def _number(value: Any) -> bool | int | float:
    number = value.item() if isinstance(value, Tensor) else value
    if not isinstance(number, bool | int | float):
        raise TypeError(f"a number is needed; got {type(number).__name__}")
    return number


def _as_str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a string is needed; got {type(value).__name__}")
    return value


_SCALARS: Mapping[type, Callable[[Any], Any]] = {int: _as_int, float: _as_float, bool: _as_bool, str: _as_str}


def _as_list(element: Callable[[Any], Any], value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        value = value.reshape(-1).tolist()
    if not isinstance(value, list):
        raise TypeError(f"a list is needed; got {type(value).__name__}")
    return [element(one) for one in value]


# --------------------------------------------------------------------------------------- guards


def check_result_size(shape: Sequence[int], dtype: torch.dtype) -> None:
    """Refuse a result too large to be meant, before it is allocated.

    Raises:
        OperationError: It would take more than 16 GiB.
    """
    size = math.prod(shape) * dtype.itemsize
    if size > _MAX_RESULT_BYTES or any(extent < 0 for extent in shape):
        raise OperationError("a result fits into memory", received=f"extents {tuple(shape)}")


def axes_of(axes: Sequence[int] | None, rank: int) -> list[int]:
    """Axes counted from the front; all of them where None is given."""
    if axes is None:
        return list(range(rank))
    for axis in axes:
        if not -rank <= axis < rank:
            raise OperationError(f"an axis lies within rank {rank}", received=axis)
    return [axis % rank for axis in axes]
