"""Lists and states: what outlives one operation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...errors import OperationError
from ..types import BY_NAME
from . import Context, check_result_size, operation
from .traits import M1, Traits

_MAX_LENGTH = 1 << 24  # beyond it an index is a mistake or an attack


class Elements(list["Tensor | None"]):
    """A list's tensors, all of one shape; None while nothing says that shape.

    Attributes:
        fixed: Its length may not change.
    """

    def __init__(self, elements: Iterable[Tensor | None], *, fixed: bool) -> None:
        super().__init__(elements)
        self.fixed = fixed

    def element(self, index: int) -> Tensor:
        if not 0 <= index < len(self):  # Python would count from the end
            raise OperationError(f"an index lies outside a list of {len(self)}", received=index)
        element = self[index]
        if element is None:
            raise OperationError("a list is read before anything is written, and its elements have no shape")
        return element

    def written(self, indices: list[int], values: Iterable[Tensor]) -> Elements:
        """A copy with some elements replaced; a list without a fixed length grows, by zeros."""
        length = max([len(self), *(index + 1 for index in indices)])
        if length > (len(self) if self.fixed else _MAX_LENGTH) or min(indices, default=0) < 0:
            limit = len(self) if self.fixed else _MAX_LENGTH
            raise OperationError(f"an index lies outside a list of {limit}", received=indices[:8])
        copy = Elements([*self, *[None] * (length - len(self))], fixed=self.fixed)
        for index, value in zip(indices, values, strict=True):
            copy[index] = value
        written = next((element for element in copy if element is not None), None)
        if written is None:
            return copy
        if odd := [tuple(element.shape) for element in copy if element is not None and element.shape != written.shape]:
            raise OperationError("a list's elements differ in shape", received=f"{tuple(written.shape)} and {odd[0]}")
        zero = torch.zeros_like(written)
        return Elements([zero if element is None else element for element in copy], fixed=self.fixed)


@operation("make_list")
def make_list(
    elem_shape: list[Tensor] | None = None, init_length: int = 1, dynamic_length: bool = True, dtype: str = "fp32"
) -> Elements:
    """A list of zeros.

    Args:
        elem_shape: Extents of an element; a name in place of one that is known only when something is written.
        init_length: How many elements there are at first.
        dynamic_length: Writing beyond the end extends the list.
        dtype: Of an element.
    """
    given: list[Any] = elem_shape or []
    extents = [None if isinstance(extent, str) else int(extent) for extent in given]
    shape = [extent for extent in extents if extent is not None]
    if not 0 <= init_length <= _MAX_LENGTH:
        raise OperationError("a list's length is out of range", expected=f"0…{_MAX_LENGTH}", received=init_length)
    if dtype not in BY_NAME:
        raise OperationError("make_list names an unknown type", received=dtype)
    held = BY_NAME[dtype].held
    check_result_size([init_length, *shape], held)
    zero = torch.zeros(shape, dtype=held) if len(shape) == len(extents) else None
    return Elements([zero] * init_length, fixed=not dynamic_length)


@operation("list_length")
def list_length(ls: Elements) -> Tensor:
    return torch.tensor(len(ls))


@operation("list_read")
def list_read(ls: Elements, index: int) -> Tensor:
    return ls.element(index)


@operation("list_write")
def list_write(ls: Elements, index: int, value: Tensor) -> Elements:
    """The list with one element replaced; it grows where the index lies beyond its end."""
    return ls.written([index], [value])


@operation("list_gather")
def list_gather(ls: Elements, indices: list[int]) -> Tensor:
    """Elements, stacked on a new first axis."""
    if not indices:
        first = ls.element(0)
        return first.new_zeros((0, *first.shape))
    elements = [ls.element(index) for index in indices]
    check_result_size([len(elements), *elements[0].shape], elements[0].dtype)
    return torch.stack(elements)


@operation("list_scatter")
def list_scatter(ls: Elements, indices: list[int], value: Tensor) -> Elements:
    """The list with the slices of a tensor at some indices; the last one wins where an index repeats."""
    return ls.written(indices, value.unbind(0))


# --------------------------------------------------------------------------------------- states


@operation("read_state", Traits(engine=M1), opset="CoreML8")
def read_state(input: str, context: Context) -> Tensor:  # noqa: A002 - Core ML's name
    return context.states[input]


@operation("write_state", Traits(engine=M1), opset="CoreML8")
def write_state(input: str, data: Tensor, context: Context) -> tuple[()]:  # noqa: A002 - Core ML's name
    """Replace a state.

    ``coreml_update_state`` of Core ML Tools is saved as this and, where its result is used, a ``read_state``.
    """
    state = context.states[input]
    if data.shape != state.shape or data.dtype != state.dtype:
        raise OperationError(
            f"state {input!r} would change its type",
            expected=f"{state.dtype} of {tuple(state.shape)}",
            received=f"{data.dtype} of {tuple(data.shape)}",
        )
    part = data.untyped_storage().nbytes() > data.nbytes  # which would keep the whole alive
    context.states[input] = data.clone() if part else data
    return ()
