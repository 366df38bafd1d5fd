"""Resampling of the last axes: an output element is a weighted sum of few input elements along each axis."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ...boundary import Array
from ...graph.shapes import TensorType
from . import operator, widened

_CUBIC = -0.75  # PyTorch's parameter of the cubic kernel


@operator("upsample_nearest1d.vec", "upsample_nearest2d.vec", implied=("output_size",))
def nearest(x: jax.Array, scale_factors: list[float] | None, result: TensorType) -> jax.Array:
    """The element at ⌊i · scale⌋."""
    y = x
    for axis, count, scale in _axes(x, scale_factors, result):
        ratio = _ratio(x.shape[axis], count, scale)
        places = np.minimum(np.floor(np.arange(count, dtype=np.float32) * ratio).astype(int), x.shape[axis] - 1)
        y = jnp.take(y, places, axis)
    return y


@operator("upsample_linear1d.vec", "upsample_bilinear2d.vec", implied=("output_size",))
def linear(x: jax.Array, align_corners: bool, scale_factors: list[float] | None, result: TensorType) -> jax.Array:
    """Between the two nearest elements; at the edge the last one."""
    y = widened(x)
    for axis, count, scale in _axes(x, scale_factors, result):
        extent = x.shape[axis]
        places = np.maximum(_sources(extent, count, scale, align_corners), 0)
        first = np.minimum(places.astype(int), extent - 1)
        part = (places - first).astype(np.float32)
        y = _mixed(y, axis, [(first, 1 - part), (np.minimum(first + 1, extent - 1), part)])
    return y.astype(x.dtype)


@operator("upsample_bicubic2d.vec", implied=("output_size",))
def cubic(x: jax.Array, align_corners: bool, scale_factors: list[float] | None, result: TensorType) -> jax.Array:
    """Of the four nearest elements, by the cubic convolution kernel; beyond the edge the last one."""
    y = widened(x)
    for axis, count, scale in _axes(x, scale_factors, result):
        places = _sources(x.shape[axis], count, scale, align_corners)
        first = np.floor(places)
        part = (places - first).astype(np.float32)
        taps = [
            (np.clip(first.astype(int) + offset, 0, x.shape[axis] - 1), _cubic_weight(np.abs(part - offset)))
            for offset in (-1, 0, 1, 2)
        ]
        y = _mixed(y, axis, taps)
    return y.astype(x.dtype)


def _axes(
    x: jax.Array, scale_factors: Sequence[float] | None, result: TensorType
) -> list[tuple[int, int, float | None]]:
    """The axes that are resampled, from the end: axis, elements of the result, factor if one was given."""
    rank = x.ndim - 2
    factors: Sequence[float | None] = scale_factors or [None] * rank
    return [(axis, result.shape[axis], factor) for axis, factor in zip(range(-rank, 0), factors, strict=True)]


def _ratio(extent: int, count: int, factor: float | None) -> np.float32:
    """How far apart elements of the result lie in x."""
    return np.float32(1 / factor) if factor else np.float32(extent) / np.float32(count)


def _sources(extent: int, count: int, factor: float | None, align_corners: bool) -> Array:
    """Where the elements of the result lie in x: corners on corners, or each element in the middle of its cell."""
    places = np.arange(count, dtype=np.float32)
    if align_corners:
        return places * (np.float32(extent - 1) / np.float32(count - 1) if count > 1 else np.float32(0))
    half = np.float32(0.5)
    return (places + half) * _ratio(extent, count, factor) - half


def _cubic_weight(distance: Array) -> Array:
    """The kernel at a distance of at most 2."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    return np.where(distance <= 1, near, far)


def _mixed(x: jax.Array, axis: int, taps: Sequence[tuple[Array, Array]]) -> jax.Array:
    """Σ weight · x at some places of an axis."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return sum(
        (jnp.take(x, places, axis) * jnp.asarray(weights.reshape(shape), x.dtype) for places, weights in taps),
        jnp.zeros((), x.dtype),
    )
