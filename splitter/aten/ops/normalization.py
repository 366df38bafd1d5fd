"""Normalisation. Statistics and all that follows from them are in float32 at least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...graph.shapes import TensorType
from . import axes_of, cast, dtype_of, operator, widened


@operator("batch_norm.default")
def batch_norm(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    running_mean: jax.Array | None,
    running_var: jax.Array | None,
    training: bool,
    eps: float,
) -> jax.Array:
    """Per channel (axis 1), by the statistics that it was given or, without any, by those of x."""
    if running_mean is None or running_var is None or training:
        y = _normalized(widened(x), (0, *range(2, x.ndim)), eps)
    else:
        y = (widened(x) - _by_channel(running_mean, x)) / jnp.sqrt(_by_channel(running_var, x) + eps)
    return _scaled_by_channel(y, weight, bias).astype(x.dtype)


@operator("instance_norm.default")
def instance_norm(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    running_mean: jax.Array | None,
    running_var: jax.Array | None,
    use_input_stats: bool,
    eps: float,
) -> jax.Array:
    """Per channel of each item, or by the statistics that it was given."""
    if not use_input_stats:
        return batch_norm(x, weight, bias, running_mean, running_var, training=False, eps=eps)
    y = _normalized(widened(x), tuple(range(2, x.ndim)), eps)
    return _scaled_by_channel(y, weight, bias).astype(x.dtype)


@operator("group_norm.default")
def group_norm(
    x: jax.Array, num_groups: int, weight: jax.Array | None, bias: jax.Array | None, eps: float
) -> jax.Array:
    groups = widened(x).reshape(x.shape[0], num_groups, -1)
    y = _normalized(groups, (2,), eps).reshape(x.shape)
    return _scaled_by_channel(y, weight, bias).astype(x.dtype)


@operator("layer_norm.default")
def layer_norm(
    x: jax.Array, normalized_shape: list[int], weight: jax.Array | None, bias: jax.Array | None, eps: float
) -> jax.Array:
    y = _normalized(widened(x), tuple(range(x.ndim - len(normalized_shape), x.ndim)), eps)
    if weight is not None:
        y = y * weight
    return (y if bias is None else y + bias).astype(x.dtype)


@operator("rms_norm.default")
def rms_norm(x: jax.Array, normalized_shape: list[int], weight: jax.Array | None, eps: float | None) -> jax.Array:
    """x / √(mean of squares + eps); eps is the last digit of x where none is given."""
    axes = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    y, least = widened(x), _last_digit(x) if eps is None else eps
    y = y / jnp.sqrt(jnp.mean(jnp.square(y), axes, keepdims=True) + least)
    return (y if weight is None else y * weight).astype(x.dtype)


@operator("linalg_vector_norm.default", implied=("dtype",))
def vector_norm(x: jax.Array, ord_: float, dim: list[int] | None, keepdim: bool, result: TensorType) -> jax.Array:
    """(Σ |x|^ord)^(1 / ord); its limits for ±∞, and how many are not zero for 0."""
    axes, dtype = axes_of(dim, x.ndim), dtype_of(result)
    magnitudes = widened(jnp.abs(x) if np.issubdtype(x.dtype, np.complexfloating) else jnp.abs(cast(x, dtype)))
    if ord_ == np.inf:
        norm = magnitudes.max(axes, keepdims=keepdim)
    elif ord_ == -np.inf:
        norm = magnitudes.min(axes, keepdims=keepdim)
    elif ord_ == 0:
        norm = (magnitudes != 0).astype(magnitudes.dtype).sum(axes, keepdims=keepdim)
    elif ord_ == 1:
        norm = magnitudes.sum(axes, keepdims=keepdim)
    elif ord_ == 2:
        norm = jnp.sqrt(jnp.square(magnitudes).sum(axes, keepdims=keepdim))
    else:
        norm = (magnitudes**ord_).sum(axes, keepdims=keepdim) ** (1 / ord_)
    return norm.astype(dtype)


def _normalized(x: jax.Array, axes: Sequence[int], eps: float) -> jax.Array:
    """(x − mean) / √(variance + eps)"""
    centred = x - jnp.mean(x, tuple(axes), keepdims=True)
    return centred / jnp.sqrt(jnp.mean(jnp.square(centred), tuple(axes), keepdims=True) + eps)


def _by_channel(values: jax.Array, x: jax.Array) -> jax.Array:
    return widened(values).reshape(-1, *(1,) * (x.ndim - 2))


def _scaled_by_channel(y: jax.Array, weight: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    scaled = y if weight is None else y * _by_channel(weight, y)
    return scaled if bias is None else scaled + _by_channel(bias, y)


def _last_digit(x: jax.Array) -> float:
    """The distance from 1 to the next number of an element type."""
    limits: Any = jnp.finfo  # has no types
    return float(limits(x.dtype).eps)
