"""ATen's operators in JAX, one small function each, grouped by family.

A function is registered for one or several overloads, and takes their arguments by the names of ATen's schema, with the
schema's defaults. Three names differ: ``x`` is the schema's ``self`` or ``input``; a name that Python has a meaning for
ends in an underscore (``max_``); ``result`` is no argument but the declared `TensorType` of the result, which PyTorch
inferred.
Tensors arrive as JAX arrays, element types as NumPy's, all else as in the graph.

What a function returns must have the declared shape and element type: the executor holds it to that. So a function says
what is computed, and where types mix it takes the answer from ``result``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import torch

from ...errors import OperatorError
from ...graph import operators
from ...graph.shapes import DTYPES, TensorType

Function: TypeAlias = Callable[..., Any]
DType: TypeAlias = np.dtype[Any]
_F = TypeVar("_F", bound=Function)
FAMILIES = (
    "activation",
    "arithmetic",
    "attention",
    "comparison",
    "constants",
    "convolution",
    "fourier",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "recurrent",
    "reduction",
    "resampling",
    "shape",
    "windows",
)
# Of no consequence for values. Training and dropping out are refused before (`splitter.graph.admission`).
_WITHOUT_EFFECT = frozenset({
    "copy", "cudnn_enable", "cudnn_enabled", "device", "dropout", "dropout_p", "implicit", "layout", "memory_format",
    "momentum", "non_blocking", "p", "padding_idx", "path", "pin_memory", "scale_grad_by_freq", "sparse", "sparse_grad",
    "train",
})  # fmt: skip
_RESULT = "result"
_SOURCE = ("self", "input")  # what schemas call the tensor that functions call x


@dataclass(frozen=True)
class OperatorRecord:
    """A registered operator.

    Attributes:
        name: The overload, e.g. ``"aten.conv1d.default"``.
        function: Computes it.
        parameters: The schema's names by the function's.
        takes_result: Whether the function asks for the declared type of its result.
    """

    name: str
    function: Function
    parameters: Mapping[str, str]
    takes_result: bool

    @property
    def family(self) -> str:
        """The file it is registered in."""
        return self.function.__module__.rpartition(".")[2]


REGISTRY: dict[str, OperatorRecord] = {}


def operator(*overloads: str, implied: Collection[str] = ()) -> Callable[[_F], _F]:
    """Register a function as the meaning of some overloads, e.g. ``"add.Tensor"``.

    Args:
        overloads: Without the ``aten.`` before them.
        implied: Arguments that the function does not take, since the declared type of the result says all they do.

    Raises:
        ValueError: An overload is registered already, or the function takes other arguments than its schema has.
        KeyError: No saved program may use it (`splitter.graph.operators`).
    """

    def register(function: _F) -> _F:
        names = list(inspect.signature(function).parameters)
        for overload in overloads:
            name = f"aten.{overload}"
            if name in REGISTRY:
                raise ValueError(f"operator {name!r} is registered already")
            schema = {argument.name for argument in operators.resolve(name)._schema.arguments}
            parameters = {own: _in_schema(own, schema) for own in names if own != _RESULT}
            if differing := schema ^ {*parameters.values(), *(schema & {*implied, *_WITHOUT_EFFECT})}:
                raise ValueError(f"{function.__name__} and the schema of {name!r} differ in {sorted(differing)}")
            REGISTRY[name] = OperatorRecord(name, function, parameters, _RESULT in names)
        return function

    return register


def _in_schema(name: str, schema: Collection[str]) -> str:
    if name == "x":
        return next((source for source in _SOURCE if source in schema), name)
    return name.removesuffix("_")


@cache
def registered() -> Mapping[str, OperatorRecord]:
    """Every operator there is, by name."""
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")
    return dict(sorted(REGISTRY.items()))


# -------------------------------------------------------------------------------- element types

_BFLOAT16 = {"bfloat16": np.dtype(jnp.bfloat16)}  # NumPy has none
_WRAPPED = np.dtype(np.int32)
_NARROW = frozenset({"float16", "bfloat16"})


def numpy_dtype(name: str) -> DType:
    """The element type that torch calls by this name."""
    return _BFLOAT16.get(name) or np.dtype(name)


def dtype_of(kind: TensorType) -> DType:
    return numpy_dtype(kind.dtype)


def wide(dtype: DType) -> DType:
    """What PyTorch computes in where values of an element type are added up: float32 for the half ones."""
    return np.dtype(np.float32) if dtype.name in _NARROW else dtype


def widened(x: jax.Array) -> jax.Array:
    return x.astype(wide(x.dtype))


def cast(value: Any, dtype: DType) -> jax.Array:
    """A tensor or a plain number in another element type.

    Of a complex one that becomes real, the real part. Of a number that is none of a narrow integer type, the last bits.
    """
    if not isinstance(value, jax.Array):
        with np.errstate(over="ignore"):
            return jnp.asarray(np.asarray(value).astype(dtype))
    array = value.real if jnp.iscomplexobj(value) and dtype.kind != "c" else value
    if is_floating(array) and dtype.kind in "iu" and dtype.itemsize < _WRAPPED.itemsize:
        array = array.astype(_WRAPPED)  # XLA alone would give the nearest number of the type
    return array.astype(dtype)


def together(*operands: Any) -> list[jax.Array]:
    """Tensors and plain numbers in the element type that PyTorch compares them in."""
    stand_ins = [
        torch.empty(operand.shape, dtype=DTYPES[operand.dtype.name], device="meta")
        if isinstance(operand, jax.Array)
        else operand
        for operand in operands
    ]
    name = str(torch.result_type(*stand_ins)).removeprefix("torch.")
    dtype = jax.dtypes.canonicalize_dtype(numpy_dtype(name))  # truths and a number are int64 there
    return [cast(operand, dtype) for operand in operands]


def is_floating(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def each(value: int | list[int] | tuple[int, ...], count: int) -> tuple[int, ...]:
    """A number for every axis, where one may stand for all."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def axes_of(dim: int | list[int] | tuple[int, ...] | None, rank: int) -> tuple[int, ...]:
    """Axes counted from the front; all of them where none is given."""
    if dim is None or dim in ([], ()):
        return tuple(range(rank))
    axes = (dim,) if isinstance(dim, int) else tuple(dim)
    return tuple(axis % rank for axis in axes) if rank else ()


def unknown(problem: str, received: object) -> OperatorError:
    """For arguments that a function does not implement."""
    return OperatorError(
        problem, received=received, fix="Choose another engine for the segment, or extend the function that says this."
    )
