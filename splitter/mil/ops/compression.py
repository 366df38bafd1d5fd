"""Weights stored small: palettes, linear quantisation, sparsity, and their joint forms; quantised activations.

Decoding is bit for bit what Core ML Tools' own decompression gives: where it rounds, these round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import OperationError
from ..blob import decoded
from ..types import BY_NAME
from . import axes_of, check_result_size, operation
from .traits import M1, Traits

_INDEX_BITS = (1, 2, 3, 4, 6, 8)


# ------------------------------------------------------------------------------------- quantised


@operation("constexpr_affine_dequantize", opset="CoreML6")
def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """scale · (data − zero point), in float32; a vector of either lies along the axis."""
    return _dequantized(quantized_data, scale, zero_point, axis)


@operation("dequantize", Traits(engine=M1), opset="CoreML7")
def dequantize(
    input: Tensor,  # noqa: A002 - Core ML's name
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """scale · (input − zero point), in float32; a vector of either lies along the axis."""
    return _dequantized(input, scale, zero_point, axis)


def _dequantized(data: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None) -> Tensor:
    single = data.to(torch.float32)
    if zero_point is not None:
        single = single - _along(zero_point, data, axis).to(torch.float32)
    return single * _along(scale, data, axis).to(torch.float32)


@operation("quantize", Traits(accumulate_fp32=True, engine=M1), opset="CoreML7")
def quantize(
    input: Tensor,  # noqa: A002 - Core ML's name
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """round(input ÷ scale) + zero point, clamped to the type; halves go to the even neighbour, 0 ÷ 0 is 0."""
    if output_dtype not in ("int8", "uint8"):
        raise OperationError("quantize cannot give this type", expected="int8 or uint8", received=output_dtype)
    if not bool(scale.any()):
        raise OperationError("a scale of quantize is zero")
    steps = torch.nan_to_num(torch.round(input / _along(scale, input, axis)))
    if zero_point is not None:
        steps = steps + _along(zero_point, input, axis)
    return steps.clamp(*BY_NAME[output_dtype].bounds)


def _along(parameter: Tensor, data: Tensor, axis: int | None) -> Tensor:
    """A scalar as it is; a vector shaped to broadcast along its axis."""
    if parameter.ndim == 0:
        return parameter
    if parameter.ndim > 1 or axis is None:
        raise OperationError(
            "a scale or zero point has the wrong shape",
            expected="a scalar, or a vector with its axis",
            received=tuple(parameter.shape),
        )
    (axis,) = axes_of([axis], data.ndim)
    if len(parameter) != data.shape[axis]:
        raise OperationError(
            "a scale or zero point has the wrong length",
            expected=f"{data.shape[axis]} entries",
            received=len(parameter),
        )
    return parameter.reshape([-1 if place == axis else 1 for place in range(data.ndim)])


@operation("constexpr_blockwise_shift_scale", opset="CoreML8")
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale · (data − offset), each scale and offset for a block of data: as many blocks on an axis as scales.

    Each step is rounded to the scale's type.
    """
    blocks = tuple(scale.shape)
    if offset is not None and offset.shape != scale.shape:
        raise OperationError(
            "an offset has another shape than its scale", expected=blocks, received=tuple(offset.shape)
        )
    sizes = _block_sizes(data.shape, blocks, "scales")
    inner = data.reshape([extent for pair in zip(blocks, sizes, strict=True) for extent in pair]).to(scale.dtype)
    outer = [extent for count in blocks for extent in (count, 1)]
    if offset is not None:
        inner = inner - offset.reshape(outer)
    return (inner * scale.reshape(outer)).reshape(data.shape)


def _block_sizes(shape: Sequence[int], blocks: Sequence[int], what: str) -> list[int]:
    if (
        not shape
        or len(shape) != len(blocks)
        or any(n < 1 or extent % n for extent, n in zip(shape, blocks, strict=True))
    ):
        raise OperationError(f"{what} do not divide the extents {tuple(shape)} into blocks", received=tuple(blocks))
    return [extent // n for extent, n in zip(shape, blocks, strict=True)]


# ------------------------------------------------------------------------------------- palettes


@operation("constexpr_lut_to_dense", opset="CoreML6")
def packed_lut_to_dense(indices: Tensor, lut: Tensor, shape: list[int]) -> Tensor:
    """One palette; its indices are packed into bytes, low bits first."""
    bits = len(lut).bit_length() - 1
    if lut.ndim != 1 or bits not in _INDEX_BITS or len(lut) != 1 << bits:
        raise OperationError(
            "a palette has the wrong length", expected="2, 4, 8, 16, 64 or 256 entries", received=tuple(lut.shape)
        )
    return lut[_unpacked(indices, bits, shape).int()]


def _unpacked(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    count = math.prod(shape)
    if min(shape, default=0) < 0 or packed.numel() != -(-count * bits // 8):
        raise OperationError(
            f"{bits}-bit values of shape {tuple(shape)} do not fill their bytes", received=f"{packed.numel()} bytes"
        )
    return decoded(packed.numpy().tobytes(), BY_NAME[f"uint{bits}"], tuple(shape))


@operation("constexpr_lut_to_dense", opset="CoreML8")
def constexpr_lut_to_dense(indices: Tensor, lut: Tensor, vector_axis: int | None = None) -> Tensor:
    """A palette for each block of indices; its entries may be vectors, which lie along an axis of the result.

    Args:
        indices: Rank K.
        lut: Rank K + 2: how many blocks each axis has, entries, length of an entry.
        vector_axis: Extended by the length of an entry; needed where that is not one.
    """
    *blocks, entries, length = lut.shape
    sizes = _block_sizes(indices.shape, blocks, "palettes")
    if indices.numel() and int(indices.max()) >= entries:
        raise OperationError("an index is out of range", expected=f"0…{entries - 1}", received=int(indices.max()))
    check_result_size((*indices.shape, length), lut.dtype)
    rows = indices.int()
    stride = entries
    for axis in reversed(range(indices.ndim)):
        if blocks[axis] > 1:
            block = torch.arange(blocks[axis], dtype=torch.int32).repeat_interleave(sizes[axis]) * stride
            rows = rows + block.reshape([-1 if place == axis else 1 for place in range(indices.ndim)])
            stride *= blocks[axis]
    dense = lut.reshape(-1, length)[rows]
    if length == 1:
        return dense.squeeze(-1)
    axis = _vector_axis(vector_axis, indices.ndim)
    return dense.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _vector_axis(axis: int | None, rank: int) -> int:
    if axis is None:
        raise OperationError("a palette of vectors does not name the vectors' axis")
    return axes_of([axis], rank)[0]


# --------------------------------------------------------------------------------------- sparse


@operation("constexpr_sparse_to_dense", opset="CoreML6")
def packed_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: list[int]) -> Tensor:
    """The mask is packed into bytes, low bits first."""
    return constexpr_sparse_to_dense(nonzero_data, _unpacked(mask, 1, shape))


@operation("constexpr_sparse_to_dense", opset="CoreML8")
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor) -> Tensor:
    """Zero where the mask is 0; elsewhere the data, in row-major order."""
    there = mask != 0
    if nonzero_data.ndim != 1 or len(nonzero_data) != int(there.sum()):
        raise OperationError(
            "the data do not fill the places of their mask",
            expected=f"{int(there.sum())} values",
            received=tuple(nonzero_data.shape),
        )
    check_result_size(mask.shape, nonzero_data.dtype)
    return torch.zeros(mask.shape, dtype=nonzero_data.dtype).masked_scatter_(there, nonzero_data)


@operation("constexpr_lut_to_sparse", opset="CoreML8")
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """The mask, extended along the vectors' axis, and the palette's entries in it."""
    dense = constexpr_lut_to_dense(constexpr_sparse_to_dense(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask, length = indices_mask, lut.shape[-1]
    if length > 1:
        mask = mask.repeat_interleave(length, _vector_axis(vector_axis, mask.ndim))
    return mask, dense[mask != 0]


@operation("constexpr_sparse_blockwise_shift_scale", opset="CoreML8")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask, and the dequantised data in it; a place's block is that of the dense layout."""
    dense = constexpr_blockwise_shift_scale(constexpr_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


@operation("constexpr_cast", opset="CoreML6")
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    if output_dtype not in ("fp16", "fp32"):
        raise OperationError(
            "constexpr_cast cannot give this type", expected="a floating-point type", received=output_dtype
        )
    return source_val.to(BY_NAME[output_dtype].held)
