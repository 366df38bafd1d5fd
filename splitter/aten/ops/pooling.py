"""Pooling over windows, and averages of parts of an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product as combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...boundary import Array
from . import each, operator, widened


@operator("max_pool1d.default", "max_pool2d.default", "max_pool3d.default")
def max_pool(
    x: jax.Array,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> jax.Array:
    """The greatest of each window; padding is never it."""
    rank = x.ndim - 1 if x.ndim == len(kernel_size) + 1 else x.ndim - 2
    sizes, strides, pads, dilations = _windows(x, rank, kernel_size, stride, padding, dilation, ceil_mode)
    least = _least(x)
    leading = (1,) * (x.ndim - rank)
    return lax.reduce_window(
        x,
        least,
        lax.max,
        (*leading, *sizes),
        (*leading, *strides),
        ((0, 0),) * (x.ndim - rank) + tuple(pads),
        window_dilation=(*leading, *dilations),
    )


@operator("max_pool2d_with_indices.default")
def max_pool_with_indices(
    x: jax.Array,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> tuple[jax.Array, jax.Array]:
    """Also where it lies in the plane, row by row; the first of several."""
    sizes, strides, pads, dilations = _windows(x, 2, kernel_size, stride, padding, dilation, ceil_mode)
    height, width = x.shape[-2:]
    places = jnp.arange(height * width, dtype=jnp.int64).reshape(height, width)
    outer = [(0, 0)] * (x.ndim - 2)
    values = jnp.pad(x, [*outer, *pads], constant_values=_least(x))
    numbers = jnp.pad(places, pads)
    shifted, where = [], []
    results = [
        (values.shape[axis - 2] - dilations[axis] * (sizes[axis] - 1) - 1) // strides[axis] + 1 for axis in range(2)
    ]
    for offsets in combinations(*(range(size) for size in sizes)):
        part = tuple(
            slice(offset * step, offset * step + (count - 1) * stride_ + 1, stride_)
            for offset, step, count, stride_ in zip(offsets, dilations, results, strides, strict=True)
        )
        shifted.append(values[(..., *part)])
        where.append(jnp.broadcast_to(numbers[part], shifted[-1].shape))
    first = jnp.argmax(jnp.stack(shifted), 0)[None]
    return tuple(jnp.take_along_axis(jnp.stack(stack), first, 0)[0] for stack in (shifted, where))  # type: ignore[return-value]


@operator("avg_pool1d.default")
def avg_pool1d(
    x: jax.Array,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
) -> jax.Array:
    return _averaged(x, 1, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


@operator("avg_pool2d.default", "avg_pool3d.default")
def avg_pool(
    x: jax.Array,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> jax.Array:
    return _averaged(x, len(kernel_size), kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _averaged(
    x: jax.Array,
    rank: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> jax.Array:
    """The mean of each window. Padding counts as zeros if it is counted at all; what a last window has beyond the
    padding never counts.
    """
    sizes, strides, pads, _ = _windows(x, rank, kernel_size, stride, padding, [1], ceil_mode)
    leading = (1,) * (x.ndim - rank)
    values = widened(x)
    totals = lax.reduce_window(
        values,
        np.zeros((), values.dtype)[()],
        lax.add,
        (*leading, *sizes),
        (*leading, *strides),
        ((0, 0),) * (x.ndim - rank) + tuple(pads),
    )
    counts: Any = divisor
    if divisor is None:
        counts = np.ones(())
        for axis, pad in enumerate(each(padding, rank)):
            extent = x.shape[axis - rank]
            starts = np.arange(totals.shape[axis - rank]) * strides[axis] - pad
            low, high = (-pad, extent + pad) if count_include_pad else (0, extent)
            inside = np.minimum(starts + sizes[axis], high) - np.maximum(starts, low)
            counts = counts[..., None] * inside
        counts = counts.astype(values.dtype)
    return (totals / counts).astype(x.dtype)


@operator("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default")
def adaptive_avg_pool(x: jax.Array, output_size: list[int]) -> jax.Array:
    """Means of so many parts of each axis. They overlap where they do not divide it."""
    y = widened(x)
    for axis, count in zip(range(-len(output_size), 0), output_size, strict=True):
        means = jnp.asarray(_means(x.shape[axis], count), y.dtype)
        y = jnp.moveaxis(jnp.matmul(jnp.moveaxis(y, axis, -1), means, precision=lax.Precision.HIGHEST), -1, axis)
    return y.astype(x.dtype)


def _means(extent: int, count: int) -> Array:
    """A matrix (extent, count): part i goes from ⌊i · extent / count⌋ to ⌈(i + 1) · extent / count⌉."""
    means = np.zeros((extent, count))
    for part in range(count):
        start, end = part * extent // count, -(-(part + 1) * extent // count)
        means[start:end, part] = 1 / (end - start)
    return means


def _least(x: jax.Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return np.asarray(-np.inf, x.dtype)[()]
    return np.iinfo(x.dtype).min


def _windows(
    x: jax.Array,
    rank: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]], tuple[int, ...]]:
    """Sizes, strides, elements before and after each axis, dilations.

    With ``ceil_mode`` a last window may reach beyond the padding, if it does not begin there.
    """
    sizes = each(list(kernel_size), rank)
    strides = each(list(stride), rank) if stride else sizes
    dilations, pads = each(list(dilation), rank), []
    for axis, pad in enumerate(each(list(padding), rank)):
        extent, reach = x.shape[axis - rank], dilations[axis] * (sizes[axis] - 1) + 1
        free = extent + 2 * pad - reach
        count = (math.ceil if ceil_mode else math.floor)(free / strides[axis]) + 1
        if ceil_mode and (count - 1) * strides[axis] >= extent + pad:
            count -= 1
        pads.append((pad, max(pad, (count - 1) * strides[axis] + reach - extent - pad)))
    return sizes, strides, pads, dilations
