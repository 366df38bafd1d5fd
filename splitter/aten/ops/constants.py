"""Tensors that depend on no input. Computed by NumPy in float64 and rounded once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ...boundary import Array
from ...graph.shapes import TensorType
from . import dtype_of, operator

_TYPED = ("dtype", "size", "self")


@operator("zeros.default", "zeros_like.default", "new_zeros.default", implied=_TYPED)
def zeros(result: TensorType) -> jax.Array:
    return jnp.zeros(result.shape, dtype_of(result))


@operator("ones.default", "ones_like.default", "new_ones.default", implied=_TYPED)
def ones(result: TensorType) -> jax.Array:
    return jnp.ones(result.shape, dtype_of(result))


@operator("full.default", "full_like.default", "new_full.default", implied=_TYPED)
def full(fill_value: float, result: TensorType) -> jax.Array:
    return jnp.full(result.shape, fill_value, dtype_of(result))


@operator("scalar_tensor.default", implied=_TYPED)
def scalar_tensor(s: float, result: TensorType) -> jax.Array:
    return jnp.asarray(s, dtype_of(result))


@operator("arange.default", implied=("end", "dtype"))
def arange(result: TensorType) -> jax.Array:
    return _counted(0, 1, result)


@operator("arange.start", implied=("end", "dtype"))
def arange_from(start: float, result: TensorType) -> jax.Array:
    return _counted(start, 1, result)


@operator("arange.start_step", implied=("end", "dtype"))
def arange_in_steps(start: float, step: float, result: TensorType) -> jax.Array:
    return _counted(start, step, result)


def _counted(start: float, step: float, result: TensorType) -> jax.Array:
    return _rounded(start + step * np.arange(*result.shape), result)


@operator("linspace.default", implied=("dtype",))
def linspace(start: float, end: float, steps: int, result: TensorType) -> jax.Array:
    return _rounded(np.linspace(start, end, steps), result)


@operator("eye.default", "eye.m", implied=("n", "m", "dtype"))
def eye(result: TensorType) -> jax.Array:
    return jnp.eye(result.shape[0], result.shape[1], dtype=dtype_of(result))


@operator("hann_window.default", implied=("dtype",))
def hann_window(window_length: int, result: TensorType) -> jax.Array:
    return _rounded(_raised_cosine(window_length, 0.5, periodic=True), result)


@operator("hann_window.periodic", implied=("dtype",))
def hann_window_of(window_length: int, periodic: bool, result: TensorType) -> jax.Array:
    return _rounded(_raised_cosine(window_length, 0.5, periodic), result)


@operator("hamming_window.default", implied=("dtype",))
def hamming_window(window_length: int, result: TensorType) -> jax.Array:
    return _rounded(_raised_cosine(window_length, 0.54, periodic=True), result)


@operator("hamming_window.periodic", implied=("dtype",))
def hamming_window_of(window_length: int, periodic: bool, result: TensorType) -> jax.Array:
    return _rounded(_raised_cosine(window_length, 0.54, periodic), result)


def _raised_cosine(length: int, mean: float, periodic: bool) -> Array:
    """mean − (1 − mean) · cos(2π n / N), N the length, or one less where both ends are to be alike."""
    if length == 1:
        return np.ones(1)
    period = length if periodic else length - 1
    return mean - (1 - mean) * np.cos(2 * np.pi * np.arange(length) / period)


def _rounded(values: Array, result: TensorType) -> jax.Array:
    return jnp.asarray(values.astype(dtype_of(result)))
