"""Shapes: reshaping, transposing, slicing, folding. Values are moved, never computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import OperationError
from .. import neural_engine
from . import axes_of, check_result_size, operation
from .traits import M1, Mask, Rows, Traits


@operation("expand_dims", Traits(rows=Rows.BATCH_OF_OTHER_AXES, moves=True, mask=Mask.PASSES, engine=M1))
def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    """Axes count in the result's rank."""
    for axis in sorted(axes_of(axes, x.dim() + len(axes))):
        x = x.unsqueeze(axis)
    return x


@operation("squeeze", Traits(rows=Rows.BATCH_OF_OTHER_AXES, moves=True, engine=M1))
def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Axes longer than one stay, as in torch."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes_of(axes, x.dim())))


@operation("reshape", Traits(rows=Rows.BATCH, result_shape="shape", moves=True, mask=Mask.PASSES, engine=M1))
def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """A 0 takes the extent at its place in ``x``; before iOS17 only where the rank stays."""
    if 0 in shape and len(shape) != x.dim():
        raise OperationError("a shape with zeros has another rank than x", expected=f"rank {x.dim()}", received=shape)
    return _reshaped(x, [given or own for given, own in zip(shape, x.shape, strict=True)] if 0 in shape else shape)


@operation("reshape", opset="CoreML7")
def reshape_right_aligned(x: Tensor, shape: list[int]) -> Tensor:
    """A 0 takes the extent at its place in ``x`` counted from the right, or 1 beyond its rank."""
    own = [1] * (len(shape) - x.dim()) + list(x.shape)[max(0, x.dim() - len(shape)) :]
    return _reshaped(x, [given or inherited for given, inherited in zip(shape, own, strict=True)])


def _reshaped(x: Tensor, shape: Sequence[int]) -> Tensor:
    if shape.count(-1) > 1:
        raise OperationError("more than one extent is -1", received=list(shape))
    return x.reshape(tuple(shape))


@operation("reshape_like", Traits(engine=M1), opset="CoreML6")
def reshape_like(
    x: Tensor, ref_tensors: list[Tensor], begins: list[Tensor], ends: list[Tensor], end_masks: list[Tensor]
) -> Tensor:
    """The shape is joined from pieces ``ref.shape[begin:end]``; a mask leaves the end open."""
    shape: list[int] = []
    for reference, begin, end, open_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += reference.shape[int(begin) : None if bool(open_end) else int(end)]
    return x.reshape(shape)


@operation("transpose", Traits(rows=Rows.PERMUTATION, moves=True, mask=Mask.PASSES, engine=M1))
def transpose(x: Tensor, perm: list[int]) -> Tensor:
    return x.permute(perm)


@operation("reverse", Traits(moves=True, engine=M1))
def reverse(x: Tensor, axes: list[int] | None = None) -> Tensor:
    return x.flip(axes_of(axes, x.dim()))


@operation("reverse_sequence")
def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """The first ``lengths[i]`` elements of sequence ``i`` are reversed, the rest stay."""
    sequence, batch = axes_of([seq_axis, batch_axis], x.dim())
    if sequence == batch:
        raise OperationError("seq_axis and batch_axis are the same", received=seq_axis)
    extent = x.shape[sequence]
    if lengths.shape != (x.shape[batch],) or bool(((lengths < 0) | (lengths > extent)).any()):
        raise OperationError(
            "the lengths are malformed", expected=f"{x.shape[batch]} within 0…{extent}", received=lengths.tolist()
        )
    place = torch.arange(extent)
    source = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)
    if batch > sequence:
        source = source.T
    shape = [extent if axis in (sequence, batch) else 1 for axis, extent in enumerate(x.shape)]
    return x.gather(sequence, source.reshape(shape).expand(x.shape).long())


# ------------------------------------------------------------------------------------------ slices


def _slices(
    shape: Sequence[int],
    begin: list[int],
    end: list[int],
    stride: list[int] | None,
    begin_mask: list[bool] | None,
    end_mask: list[bool] | None,
    squeeze_mask: list[bool] | None,
) -> tuple[tuple[slice, ...], list[int], list[int]]:
    """NumPy's slices as forward ones; axes to flip after slicing, and axes to drop then."""
    rank = len(shape)
    stride = [1] * rank if stride is None else stride
    masks = [[False] * rank if mask is None else mask for mask in (begin_mask, end_mask, squeeze_mask)]
    if {len(begin), len(end), len(stride), *map(len, masks)} != {rank}:
        raise OperationError(
            "a slice has too many or too few begins, ends, strides or masks", expected=f"{rank} of each", received=begin
        )
    slices, flipped, dropped = [], [], []
    for axis, (extent, first, last, step, open_begin, open_end, drop) in enumerate(
        zip(shape, begin, end, stride, *masks, strict=True)
    ):
        if drop:
            place = 0 if open_begin else first
            if not -extent <= place < extent:
                raise OperationError(f"an index lies outside the extent {extent} of axis {axis}", received=place)
            slices.append(slice(place % extent, place % extent + 1))
            dropped.append(axis)
            continue
        if step == 0:
            raise OperationError("a stride is zero")
        taken = range(extent)[slice(None if open_begin else first, None if open_end else last, step)]
        if step < 0:
            flipped.append(axis)
            taken = taken[::-1]
        slices.append(
            slice(taken.start, taken.start + (len(taken) - 1) * taken.step + 1, taken.step) if taken else slice(0, 0)
        )
    return tuple(slices), flipped, dropped


@operation("slice_by_index", Traits(moves=True, slices=True, engine=M1, on_engine=neural_engine.offset_slice))
def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """``x[begin:end:stride]`` on each axis, as NumPy reads it: negative places count from the end.

    A begin or end mask leaves that side open; a squeeze mask takes the element at ``begin`` and drops the axis.
    """
    slices, flipped, dropped = _slices(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    taken = x[slices]
    taken = taken.flip(flipped) if flipped else taken
    return taken.squeeze(tuple(dropped))


@operation("slice_update", Traits(engine=M1), opset="CoreML8")
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """A copy of ``x`` whose slice, as `slice_by_index` reads it, is ``update``."""
    slices, flipped, dropped = _slices(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    result = x.clone()
    target = result[slices]
    shape = [extent for axis, extent in enumerate(target.shape) if axis not in dropped]
    if list(update.shape) != shape:
        raise OperationError("the update has another shape than the slice", expected=shape, received=list(update.shape))
    target.copy_(update.reshape(target.shape).flip(flipped))
    return result


@operation("slice_by_size", Traits(moves=True, slices=True, engine=M1, on_engine=neural_engine.offset_slice))
def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    """A size of -1 takes all that follow ``begin``; a negative ``begin`` counts from the end."""
    if not len(begin) == len(size) == x.dim():
        raise OperationError(
            "a slice has too many or too few begins or sizes", expected=f"{x.dim()} of each", received=(begin, size)
        )
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        extent = x.shape[axis]
        start = first + extent if first < 0 else first
        stop = extent if count == -1 else start + count
        if not 0 <= start <= stop <= extent:
            raise OperationError(f"a slice lies outside the extent {extent} of axis {axis}", received=(first, count))
        x = x.narrow(axis, start, stop - start)
    return x


@operation("sliding_windows")
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """Windows replace ``axis``; their elements lie on a new axis behind it."""
    (axis,) = axes_of([axis], x.dim())
    if not 1 <= size <= x.shape[axis] or stride < 1:
        raise OperationError(
            "the windows are malformed",
            expected=f"a size in 1…{x.shape[axis]} and a stride of at least 1",
            received=(size, stride),
        )
    windows = x.unfold(axis, size, stride).movedim(-1, axis + 1)
    check_result_size(windows.shape, x.dtype)
    return windows


# ----------------------------------------------------------------------------------------- folding


def _block(size: int, *extents: int) -> None:
    if size < 1 or any(extent % size for extent in extents):
        raise OperationError(f"a block does not divide the extents {extents}", received=size)


@operation("depth_to_space", Traits(moves=True, engine=M1))
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Channel ``(i·block + j)·C + c`` goes to row ``i`` and column ``j`` of the block, channel ``c``."""
    n, c, h, w = x.shape
    b = block_size
    if b < 1 or c % (b * b):
        raise OperationError(f"a block's square does not divide {c} channels", received=b)
    return x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


@operation("space_to_depth", Traits(engine=M1))
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """The inverse of `depth_to_space`."""
    n, c, h, w = x.shape
    _block(block_size, h, w)
    b = block_size
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


@operation("pixel_shuffle", Traits(moves=True, engine=M1))
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """Channel ``c·factor² + i·factor + j`` goes to row ``i`` and column ``j`` of the block, channel ``c``."""
    return torch.pixel_shuffle(x, upscale_factor)


@operation("pixel_unshuffle", Traits(engine=M1), opset="CoreML6")
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """The inverse of `pixel_shuffle`."""
    _block(downscale_factor, *x.shape[-2:])
    return torch.pixel_unshuffle(x, downscale_factor)


def _pairs(blocks: list[int], amounts: list[int]) -> tuple[int, ...]:
    if len(blocks) != 2 or min(blocks) < 1 or len(amounts) != 4 or min(amounts) < 0:
        raise OperationError(
            "the blocks or amounts are malformed",
            expected="two blocks of at least 1, and four amounts of at least 0",
            received=(blocks, amounts),
        )
    return (*blocks, *amounts)


@operation("space_to_batch", Traits(engine=M1))
def space_to_batch(x: Tensor, block_shape: list[int], paddings: list[int]) -> Tensor:
    """Pads with zeros; element ``(i, j)`` of every block then goes to batch ``(i·block_w + j)·n + batch``.

    ``paddings`` are top, bottom, left, right.
    """
    bh, bw, top, bottom, left, right = _pairs(block_shape, paddings)
    n, c, h, w = x.shape
    check_result_size((n, c, h + top + bottom, w + left + right), x.dtype)
    x = torch.nn.functional.pad(x, [left, right, top, bottom])
    h, w = x.shape[2:]
    _block(bh, h)
    _block(bw, w)
    return x.reshape(n, c, h // bh, bh, w // bw, bw).permute(3, 5, 0, 1, 2, 4).reshape(n * bh * bw, c, h // bh, w // bw)


@operation("batch_to_space", Traits(engine=M1))
def batch_to_space(x: Tensor, block_shape: list[int], crops: list[int]) -> Tensor:
    """The inverse of `space_to_batch`; crops are cut off where it would have padded."""
    bh, bw, top, bottom, left, right = _pairs(block_shape, crops)
    n, c, h, w = x.shape
    _block(math.prod(block_shape), n)
    n //= bh * bw
    x = x.reshape(bh, bw, n, c, h, w).permute(2, 3, 4, 0, 5, 1).reshape(n, c, h * bh, w * bw)
    if top + bottom > h * bh or left + right > w * bw:
        raise OperationError(f"the crops do not fit into the extents {(h * bh, w * bw)}", received=crops)
    return x[:, :, top : h * bh - bottom, left : w * bw - right]
