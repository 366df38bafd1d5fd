"""Reductions, sums along an axis, and order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...graph.shapes import TensorType
from . import axes_of, cast, dtype_of, operator, wide, widened


@operator("sum.default", implied=("dtype",))
def sum_(x: jax.Array, result: TensorType) -> jax.Array:
    return sum_along(x, None, keepdim=False, result=result)


@operator("sum.dim_IntList", implied=("dtype",))
def sum_along(x: jax.Array, dim: list[int] | None, keepdim: bool, result: TensorType) -> jax.Array:
    dtype = dtype_of(result)
    return cast(x, wide(dtype)).sum(axes_of(dim, x.ndim), keepdims=keepdim).astype(dtype)


@operator("mean.default", implied=("dtype",))
def mean(x: jax.Array, result: TensorType) -> jax.Array:
    return mean_along(x, None, keepdim=False, result=result)


@operator("mean.dim", implied=("dtype",))
def mean_along(x: jax.Array, dim: list[int] | None, keepdim: bool, result: TensorType) -> jax.Array:
    dtype = dtype_of(result)
    return cast(x, wide(dtype)).mean(axes_of(dim, x.ndim), keepdims=keepdim).astype(dtype)


@operator("prod.default", implied=("dtype",))
def prod(x: jax.Array, result: TensorType) -> jax.Array:
    return cast(x, wide(dtype_of(result))).prod().astype(dtype_of(result))


@operator("prod.dim_int", implied=("dtype",))
def prod_along(x: jax.Array, dim: int, keepdim: bool, result: TensorType) -> jax.Array:
    dtype = dtype_of(result)
    return cast(x, wide(dtype)).prod(axes_of(dim, x.ndim), keepdims=keepdim).astype(dtype)


# ---------------------------------------------------------------------------------------- spread


@operator("var.default")
def var(x: jax.Array, unbiased: bool) -> jax.Array:
    return var_corrected(x, None, int(unbiased), keepdim=False)


@operator("var.dim")
def var_along(x: jax.Array, dim: list[int] | None, unbiased: bool, keepdim: bool) -> jax.Array:
    return var_corrected(x, dim, int(unbiased), keepdim)


@operator("var.correction")
def var_corrected(x: jax.Array, dim: list[int] | None, correction: float | None, keepdim: bool) -> jax.Array:
    return _spread(x, dim, correction, keepdim)[0].astype(x.real.dtype)


@operator("std.default")
def std(x: jax.Array, unbiased: bool) -> jax.Array:
    return std_corrected(x, None, int(unbiased), keepdim=False)


@operator("std.dim")
def std_along(x: jax.Array, dim: list[int] | None, unbiased: bool, keepdim: bool) -> jax.Array:
    return std_corrected(x, dim, int(unbiased), keepdim)


@operator("std.correction")
def std_corrected(x: jax.Array, dim: list[int] | None, correction: float | None, keepdim: bool) -> jax.Array:
    return jnp.sqrt(_spread(x, dim, correction, keepdim)[0]).astype(x.real.dtype)


@operator("var_mean.correction")
def var_mean(
    x: jax.Array, dim: list[int] | None, correction: float | None, keepdim: bool
) -> tuple[jax.Array, jax.Array]:
    variance, average = _spread(x, dim, correction, keepdim)
    return variance.astype(x.real.dtype), average.astype(x.dtype)


@operator("std_mean.correction")
def std_mean(
    x: jax.Array, dim: list[int] | None, correction: float | None, keepdim: bool
) -> tuple[jax.Array, jax.Array]:
    variance, average = _spread(x, dim, correction, keepdim)
    return jnp.sqrt(variance).astype(x.real.dtype), average.astype(x.dtype)


def _spread(
    x: jax.Array, dim: list[int] | None, correction: float | None, keepdim: bool
) -> tuple[jax.Array, jax.Array]:
    """Variance, Σ |x − mean|² / (n − correction), and mean. Without a correction it is 1."""
    axes, values = axes_of(dim, x.ndim), widened(x)
    average = values.mean(axes, keepdims=True)
    squares = jnp.square(jnp.abs(values - average)).sum(axes, keepdims=keepdim)
    count = max(x.size // max(average.size, 1) - (1 if correction is None else correction), 0)
    return squares / jnp.asarray(count, squares.dtype), average if keepdim else average.squeeze(axes)


# -------------------------------------------------------------------------------------- extremes


@operator("amax.default")
def amax(x: jax.Array, dim: list[int], keepdim: bool) -> jax.Array:
    return x.max(axes_of(dim, x.ndim), keepdims=keepdim)


@operator("amin.default")
def amin(x: jax.Array, dim: list[int], keepdim: bool) -> jax.Array:
    return x.min(axes_of(dim, x.ndim), keepdims=keepdim)


@operator("max.default")
def max_(x: jax.Array) -> jax.Array:
    return x.max()


@operator("min.default")
def min_(x: jax.Array) -> jax.Array:
    return x.min()


@operator("max.dim")
def max_along(x: jax.Array, dim: int, keepdim: bool) -> tuple[jax.Array, jax.Array]:
    return x.max(axes_of(dim, x.ndim), keepdims=keepdim), argmax(x, dim, keepdim)


@operator("min.dim")
def min_along(x: jax.Array, dim: int, keepdim: bool) -> tuple[jax.Array, jax.Array]:
    return x.min(axes_of(dim, x.ndim), keepdims=keepdim), argmin(x, dim, keepdim)


@operator("argmax.default")
def argmax(x: jax.Array, dim: int | None, keepdim: bool) -> jax.Array:
    """The first of the greatest."""
    return (
        jnp.argmax(jnp.atleast_1d(x), dim, keepdims=keepdim and x.ndim > 0)
        .astype(jnp.int64)
        .reshape(_kept(x, dim, keepdim))
    )


@operator("argmin.default")
def argmin(x: jax.Array, dim: int | None, keepdim: bool) -> jax.Array:
    """The first of the least."""
    return (
        jnp.argmin(jnp.atleast_1d(x), dim, keepdims=keepdim and x.ndim > 0)
        .astype(jnp.int64)
        .reshape(_kept(x, dim, keepdim))
    )


def _kept(x: jax.Array, dim: int | None, keepdim: bool) -> tuple[int, ...]:
    """Extents of a reduction along one axis, or along all."""
    axes = axes_of(dim, x.ndim)
    if keepdim:
        return tuple(1 if axis in axes else extent for axis, extent in enumerate(x.shape))
    return tuple(extent for axis, extent in enumerate(x.shape) if axis not in axes)


@operator("any.default")
def any_(x: jax.Array, result: TensorType) -> jax.Array:
    return jnp.any(x).astype(dtype_of(result))


@operator("any.dim")
def any_along(x: jax.Array, dim: int, keepdim: bool, result: TensorType) -> jax.Array:
    return jnp.any(x, axes_of(dim, x.ndim), keepdims=keepdim).astype(dtype_of(result))


@operator("all.default")
def all_(x: jax.Array, result: TensorType) -> jax.Array:
    return jnp.all(x).astype(dtype_of(result))


@operator("all.dim")
def all_along(x: jax.Array, dim: int, keepdim: bool, result: TensorType) -> jax.Array:
    return jnp.all(x, axes_of(dim, x.ndim), keepdims=keepdim).astype(dtype_of(result))


@operator("logsumexp.default")
def logsumexp(x: jax.Array, dim: list[int], keepdim: bool, result: TensorType) -> jax.Array:
    values = cast(x, wide(dtype_of(result)))
    return jax.nn.logsumexp(values, axes_of(dim, x.ndim), keepdims=keepdim).astype(dtype_of(result))


@operator("cumsum.default", implied=("dtype",))
def cumsum(x: jax.Array, dim: int, result: TensorType) -> jax.Array:
    values = cast(x, wide(dtype_of(result)))
    return (jnp.cumsum(values, dim) if x.ndim else values).astype(dtype_of(result))


# ----------------------------------------------------------------------------------------- order


@operator("argsort.default")
def argsort(x: jax.Array, dim: int, descending: bool) -> jax.Array:
    """Equal elements stay in their order; NaN is greater than all."""
    if not x.ndim:
        return jnp.zeros((), jnp.int64)
    if not descending:
        return jnp.argsort(x, dim, stable=True).astype(jnp.int64)
    backwards = jnp.argsort(jnp.flip(x, dim), dim, stable=True)
    return (x.shape[dim] - 1 - jnp.flip(backwards, dim)).astype(jnp.int64)


@operator("sort.default")
def sort(x: jax.Array, dim: int, descending: bool) -> tuple[jax.Array, jax.Array]:
    order = argsort(x, dim, descending)
    return (jnp.take_along_axis(x, order, dim) if x.ndim else x), order


@operator("topk.default", implied=("sorted",))
def topk(x: jax.Array, k: int, dim: int, largest: bool) -> tuple[jax.Array, jax.Array]:
    """Always sorted, which PyTorch leaves open where it is not asked for."""
    values, order = sort(x, dim, largest)
    if not x.ndim:
        return values, order
    taken: Any = tuple(slice(k) if axis == dim % x.ndim else slice(None) for axis in range(x.ndim))
    return values[taken], order[taken]
