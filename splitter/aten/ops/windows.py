"""Windows laid out as columns, and columns added up to what they were taken from."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from . import each, operator


@operator("unfold.default")
def unfold(x: jax.Array, dimension: int, size: int, step: int) -> jax.Array:
    """Windows of an axis, ``step`` apart; their elements are the last axis."""
    if not x.ndim:
        return x.reshape(1)[:size]
    starts = np.arange(0, x.shape[dimension] - size + 1, step)
    windows = jnp.moveaxis(x, dimension, -1)[..., starts[:, None] + np.arange(size)]
    return jnp.moveaxis(windows, -2, dimension % x.ndim)


@operator("im2col.default")
def im2col(
    x: jax.Array, kernel_size: list[int], dilation: list[int], padding: list[int], stride: list[int]
) -> jax.Array:
    """(…, c, h, w) → (…, c · kernel, windows)"""
    pads = [(pad, pad) for pad in each(padding, 2)]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + pads)
    parts = _parts(padded.shape[-2:], kernel_size, dilation, stride)
    columns = jnp.stack([padded[(..., *part)] for part in parts], -3)
    return columns.reshape(*x.shape[:-3], x.shape[-3] * len(parts), -1)


@operator("col2im.default")
def col2im(
    x: jax.Array,
    output_size: list[int],
    kernel_size: list[int],
    dilation: list[int],
    padding: list[int],
    stride: list[int],
) -> jax.Array:
    """(…, c · kernel, windows) → (…, c, h, w): where windows overlap, the sum."""
    height, width = output_size
    top, left = each(padding, 2)
    parts = _parts((height + 2 * top, width + 2 * left), kernel_size, dilation, stride)
    channels = x.shape[-2] // len(parts)
    total = jnp.zeros((*x.shape[:-2], channels, height + 2 * top, width + 2 * left), x.dtype)
    columns = x.reshape(*x.shape[:-2], channels, len(parts), x.shape[-1])
    for place, part in enumerate(parts):
        target = total[(..., *part)].shape
        total = total.at[(..., *part)].add(columns[..., place, :].reshape(target))
    return total[..., top : top + height, left : left + width]


def _parts(
    extents: tuple[int, ...], kernel_size: list[int], dilation: list[int], stride: list[int]
) -> list[tuple[slice, ...]]:
    """For each element of the kernel, row by row, the elements of an image that it meets."""
    sizes, dilations, strides = each(kernel_size, 2), each(dilation, 2), each(stride, 2)
    ends = [extent - step * (size - 1) for extent, size, step in zip(extents, sizes, dilations, strict=True)]
    return [
        tuple(
            slice(place * step, place * step + end, stride_)
            for place, step, end, stride_ in zip(places, dilations, ends, strides, strict=True)
        )
        for places in product(*(range(size) for size in sizes))
    ]
