"""Reading and writing by index.

Before iOS17 a negative index counts from the end and one out of bounds is refused. From iOS17 on negative indices are
out of bounds. Where ``validate_indices`` asks for it those are refused; otherwise what Core ML does is documented as
undefined but safe, and here such a write is dropped, while such a read counts from the end if it can and else
takes the nearest element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import OperationError
from . import axes_of, check_result_size, operation
from .traits import M1, Traits

# ----------------------------------------------------------------------------------------- indices


def _from_front(indices: Tensor, extents: Tensor | int) -> Tensor:
    indices = indices.long()
    return torch.where(indices < 0, indices + extents, indices)


def _inside(indices: Tensor, extents: Tensor | int) -> Tensor:
    return (indices >= 0) & (indices < extents)


def _checked(indices: Tensor, extents: Tensor | int) -> Tensor:
    """The indices, if all of them lie inside."""
    outside = indices[~_inside(indices, extents)]
    if outside.numel():
        bounds = extents.tolist() if isinstance(extents, Tensor) else extents
        raise OperationError(f"an index lies outside the extents {bounds}", received=int(outside[0]))
    return indices.long()


def _old(indices: Tensor, extents: Tensor | int) -> Tensor:
    return _checked(_from_front(indices, extents), extents)


def _read(indices: Tensor, extents: Tensor | int, validate: bool) -> Tensor:
    """Indices to read from iOS17 on."""
    if validate:
        return _checked(indices, extents)
    last = extents - 1
    front = _from_front(indices, extents)
    return torch.minimum(front.clamp(min=0), torch.as_tensor(last))


def _extents(shape: Sequence[int], depth: int) -> Tensor:
    if depth > len(shape):
        raise OperationError("an index has too many parts", expected=f"at most {len(shape)}", received=depth)
    return torch.tensor(shape[:depth], dtype=torch.int64)


def _strides(extents: Tensor) -> Tensor:
    """Of a row-major tensor of these extents."""
    return torch.tensor([math.prod(extents[axis + 1 :].tolist()) for axis in range(len(extents))], dtype=torch.int64)


# ---------------------------------------------------------------------------------------- gathering


def _gathered(x: Tensor, indices: Tensor, axis: int, batch_dims: int) -> Tensor:
    shape = (*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :])
    check_result_size(shape, x.dtype)
    if batch_dims == 0:
        return x.index_select(axis, indices.reshape(-1)).reshape(shape)
    batch, rows = math.prod(x.shape[:batch_dims]), math.prod(x.shape[batch_dims:axis])
    inner = math.prod(x.shape[axis + 1 :])
    count = math.prod(indices.shape[batch_dims:])
    source = indices.reshape(batch, 1, count, 1).expand(batch, rows, count, inner)
    return x.reshape(batch, rows, x.shape[axis], inner).gather(2, source).reshape(shape)


def _gather_axis(x: Tensor, indices: Tensor, axis: int, batch_dims: int) -> int:
    (axis,) = axes_of([axis], x.dim())
    if not 0 <= batch_dims <= min(axis, indices.dim()) or x.shape[:batch_dims] != indices.shape[:batch_dims]:
        shapes = f"shapes {tuple(x.shape)} and {tuple(indices.shape)}, axis {axis}, batch_dims {batch_dims}"
        raise OperationError(
            "x and indices do not share their first batch_dims axes, which lie before axis", received=shapes
        )
    return axis


@operation("gather", Traits(moves=True, engine=M1))
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0) -> Tensor:
    """``indices`` take the place of ``axis``, without their own first ``batch_dims`` axes."""
    axis = _gather_axis(x, indices, axis, batch_dims)
    return _gathered(x, _old(indices, x.shape[axis]), axis, batch_dims)


@operation("gather", opset="CoreML7")
def gather_unchecked(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    axis = _gather_axis(x, indices, axis, batch_dims)
    return _gathered(x, _read(indices, x.shape[axis], validate_indices), axis, batch_dims)


def _same_beside(shape: Sequence[int], indices: Tensor, axis: int) -> int:
    (axis,) = axes_of([axis], len(shape))
    wanted = [
        count if place == axis else extent
        for place, (extent, count) in enumerate(zip(shape, indices.shape, strict=True))
    ]
    if wanted != list(indices.shape):
        raise OperationError(
            f"indices have other extents than x beside axis {axis}", expected=list(shape), received=list(indices.shape)
        )
    return axis


@operation("gather_along_axis", Traits(engine=M1))
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    axis = _same_beside(x.shape, indices, axis)
    return x.gather(axis, _old(indices, x.shape[axis]))


@operation("gather_along_axis", opset="CoreML7")
def gather_along_axis_unchecked(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    axis = _same_beside(x.shape, indices, axis)
    return x.gather(axis, _read(indices, x.shape[axis], validate_indices))


def _gathered_nd(x: Tensor, indices: Tensor, extents: Tensor, batch_dims: int) -> Tensor:
    """``x[batch, *index]`` for every index, whose parts lie on the last axis."""
    inner = x.shape[batch_dims + len(extents) :]
    shape = (*indices.shape[:-1], *inner)
    check_result_size(shape, x.dtype)
    batch = math.prod(x.shape[:batch_dims])
    places = (indices * _strides(extents)).sum(-1).reshape(batch, -1)
    places += torch.arange(batch)[:, None] * math.prod(extents.tolist())
    return x.reshape(-1, math.prod(inner)).index_select(0, places.reshape(-1)).reshape(shape)


def _gather_extents(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    if not 0 <= batch_dims < indices.dim() or x.shape[:batch_dims] != indices.shape[:batch_dims]:
        shapes = f"shapes {tuple(x.shape)} and {tuple(indices.shape)}, batch_dims {batch_dims}"
        raise OperationError("x and indices do not share their first batch_dims axes", received=shapes)
    return _extents(x.shape[batch_dims:], indices.shape[-1])


@operation("gather_nd", Traits(engine=M1))
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    extents = _gather_extents(x, indices, batch_dims)
    return _gathered_nd(x, _old(indices, extents), extents, batch_dims)


@operation("gather_nd", opset="CoreML7")
def gather_nd_unchecked(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    extents = _gather_extents(x, indices, batch_dims)
    return _gathered_nd(x, _read(indices, extents, validate_indices), extents, batch_dims)


# --------------------------------------------------------------------------------------- scattering


def _scattered(rows: Tensor, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    """Rows of a matrix changed at some places by an update each.

    An index that occurs twice is changed twice, in order: the last update stays, all of them are added.
    """
    wide = places[:, None].expand(updates.shape)
    match mode:
        case "update":
            order = torch.arange(len(places))
            last = torch.full((len(rows),), -1).scatter_reduce_(0, places, order, "amax")
            kept = last[places] == order
            return rows.index_copy(0, places[kept], updates[kept])
        case "add":
            return rows.index_add(0, places, updates)
        case "sub":
            return rows.index_add(0, places, updates, alpha=-1)
        case "mul":
            return rows.scatter_reduce(0, wide, updates, "prod")
        case "max":
            return rows.scatter_reduce(0, wide, updates, "amax")
        case "min":
            return rows.scatter_reduce(0, wide, updates, "amin")
        case "div":
            # In float64 the quotient of 32-bit integers is exact enough to be cut off towards zero.
            if not updates.is_floating_point() and bool((updates == 0).any()):
                raise OperationError("an integer divisor is zero")
            divisors = torch.ones(rows.shape, dtype=torch.float64).scatter_reduce_(0, wide, updates.double(), "prod")
            quotients = rows.double() / divisors
            return (quotients if rows.is_floating_point() else quotients.trunc().long()).to(rows.dtype)
    raise OperationError("unknown mode", expected="update, add, sub, mul, div, max or min", received=mode)


def _written(indices: Tensor, extents: Tensor | int, validate: bool | None) -> tuple[Tensor, Tensor | None]:
    """Indices to write at, and which of them to keep; None for all. Before iOS17 ``validate`` is None."""
    if validate is None:
        return _old(indices, extents), None
    if validate:
        return _checked(indices, extents), None
    inside = _inside(indices, extents)
    return indices.long(), None if bool(inside.all()) else inside


def _scatter(data: Tensor, indices: Tensor, updates: Tensor, axis: int, mode: str, validate: bool | None) -> Tensor:
    (axis,) = axes_of([axis], data.dim())
    wanted = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    if updates.shape != wanted:
        raise OperationError("updates have the wrong shape", expected=wanted, received=tuple(updates.shape))
    places, kept = _written(indices.reshape(-1), data.shape[axis], validate)
    front = data.movedim(axis, 0)
    changes = updates.reshape(*data.shape[:axis], -1, *data.shape[axis + 1 :]).movedim(axis, 0)
    changes = changes.reshape(len(places), math.prod(front.shape[1:]))
    if kept is not None:
        places, changes = places[kept], changes[kept]
    result = _scattered(front.reshape(data.shape[axis], changes.shape[1]), places, changes, mode)
    return result.reshape(front.shape).movedim(0, axis)


def _scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int, mode: str, validate: bool | None
) -> Tensor:
    axis = _same_beside(data.shape, indices, axis)
    if updates.shape != indices.shape:
        raise OperationError(
            "updates have another shape than indices", expected=tuple(indices.shape), received=tuple(updates.shape)
        )
    along, kept = _written(indices, data.shape[axis], validate)
    numbers = torch.arange(data.numel()).reshape(data.shape)
    inside = along if kept is None else along.where(kept, 0)
    places, changes = numbers.gather(axis, inside).reshape(-1), updates.reshape(-1, 1)
    if kept is not None:
        places, changes = places[kept.reshape(-1)], changes[kept.reshape(-1)]
    return _scattered(data.reshape(-1, 1), places, changes, mode).reshape(data.shape)


def _scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, mode: str, validate: bool | None) -> Tensor:
    extents = _extents(data.shape, indices.shape[-1])
    inner = data.shape[len(extents) :]
    wanted = (*indices.shape[:-1], *inner)
    if updates.shape != wanted:
        raise OperationError("updates have the wrong shape", expected=wanted, received=tuple(updates.shape))
    parts, kept = _written(indices.reshape(-1, len(extents)), extents, validate)
    places, changes = (parts * _strides(extents)).sum(-1), updates.reshape(len(parts), math.prod(inner))
    if kept is not None:
        places, changes = places[kept.all(-1)], changes[kept.all(-1)]
    rows = data.reshape(math.prod(extents.tolist()), math.prod(inner))
    return _scattered(rows, places, changes, mode).reshape(data.shape)


@operation("scatter", Traits(accumulate_fp32=True))
def scatter(data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add") -> Tensor:
    """The default of ``mode`` is what Core ML Tools writes; its prose says ``update``."""
    return _scatter(data, indices, updates, axis, mode, None)


@operation("scatter", opset="CoreML7")
def scatter_unchecked(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    return _scatter(data, indices, updates, axis, mode, validate_indices)


@operation("scatter_along_axis", Traits(accumulate_fp32=True))
def scatter_along_axis(data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add") -> Tensor:
    return _scatter_along_axis(data, indices, updates, axis, mode, None)


@operation("scatter_along_axis", opset="CoreML7")
def scatter_along_axis_unchecked(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    return _scatter_along_axis(data, indices, updates, axis, mode, validate_indices)


@operation("scatter_nd", Traits(accumulate_fp32=True))
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add") -> Tensor:
    return _scatter_nd(data, indices, updates, mode, None)


@operation("scatter_nd", opset="CoreML7")
def scatter_nd_unchecked(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    return _scatter_nd(data, indices, updates, mode, validate_indices)
