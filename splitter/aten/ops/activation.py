"""Activations; half-precision values are computed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from . import DType, Function, operator, wide, widened

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _softplus(x: jax.Array) -> jax.Array:
    return jnp.logaddexp(x, 0)


_ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "hardsigmoid": lambda x: jnp.clip(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
    "log_sigmoid": lambda x: -_softplus(-x),
    "mish": lambda x: x * jnp.tanh(_softplus(x)),
    "selu": lambda x: _SELU_SCALE * jnp.where(x > 0, x, _SELU_ALPHA * jnp.expm1(jnp.minimum(x, 0))),
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
}


def _activation(compute: Callable[[jax.Array], jax.Array]) -> Function:
    def activation(x: jax.Array) -> jax.Array:
        floating = x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)
        return compute(widened(floating)).astype(floating.dtype)

    return activation


for _name, _compute in _ACTIVATIONS.items():
    operator(f"{_name}.default")(_activation(_compute))


@operator("relu.default")
def relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


@operator("relu6.default")
def relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 6)


@operator("hardtanh.default")
def hardtanh(x: jax.Array, min_val: float, max_val: float) -> jax.Array:
    return jnp.clip(x, min_val, max_val).astype(x.dtype)


@operator("dropout.default")
def dropout(x: jax.Array) -> jax.Array:
    """What evaluation leaves of it: the identity."""
    return x


@operator("gelu.default")
def gelu(x: jax.Array, approximate: str) -> jax.Array:
    """x · Φ(x); Φ by erfc, or by tanh where that is asked for.

    PyTorch takes 1 + erf, which cancels where x is negative: around −2 that is 117 dB from the truth, erfc 136 dB.
    """
    return jax.nn.gelu(widened(x), approximate=approximate == "tanh").astype(x.dtype)


@operator("elu.default")
def elu(x: jax.Array, alpha: float, scale: float, input_scale: float) -> jax.Array:
    y = widened(x)
    below = float(alpha) * jnp.expm1(jnp.minimum(y, 0) * float(input_scale))
    return (float(scale) * jnp.where(y > 0, y, below)).astype(x.dtype)


@operator("celu.default")
def celu(x: jax.Array, alpha: float) -> jax.Array:
    return elu(x, alpha, 1.0, 1 / alpha)


@operator("leaky_relu.default")
def leaky_relu(x: jax.Array, negative_slope: float) -> jax.Array:
    y = widened(x)
    return jnp.where(y > 0, y, y * float(negative_slope)).astype(x.dtype)


@operator("prelu.default")
def prelu(x: jax.Array, weight: jax.Array) -> jax.Array:
    """A slope for all, or one for each channel (axis 1)."""
    slope = weight.reshape(()) if weight.size == 1 else weight.reshape(1, -1, *(1,) * (x.ndim - 2))
    return jnp.where(x > 0, x, widened(x) * slope).astype(x.dtype)


@operator("softplus.default")
def softplus(x: jax.Array, beta: float, threshold: float) -> jax.Array:
    """log(1 + exp(beta · x)) / beta; x itself beyond the threshold."""
    y, slope, most = widened(x), float(beta), float(threshold)
    below = jnp.log1p(jnp.exp(jnp.minimum(y * slope, most))) / slope
    return jnp.where(y * slope > most, y, below).astype(x.dtype)


@operator("glu.default")
def glu(x: jax.Array, dim: int) -> jax.Array:
    """a · sigmoid(b) of the halves of an axis."""
    first, second = jnp.split(widened(x), 2, axis=dim)
    return (first * jax.nn.sigmoid(second)).astype(x.dtype)


@operator("softmax.int")
def softmax(x: jax.Array, dim: int, dtype: DType | None) -> jax.Array:
    y = x if dtype is None else x.astype(dtype)
    return jax.nn.softmax(widened(y), axis=dim).astype(y.dtype) if y.ndim else jnp.ones_like(y)


@operator("log_softmax.int")
def log_softmax(x: jax.Array, dim: int, dtype: DType | None) -> jax.Array:
    y = x if dtype is None else x.astype(dtype)
    return jax.nn.log_softmax(widened(y), axis=dim).astype(y.dtype) if y.ndim else jnp.zeros_like(y)


@operator("_softmax.default")
def _softmax(x: jax.Array, dim: int, half_to_float: bool) -> jax.Array:
    return softmax(x, dim, wide(x.dtype) if half_to_float else None)


@operator("_log_softmax.default")
def _log_softmax(x: jax.Array, dim: int, half_to_float: bool) -> jax.Array:
    return log_softmax(x, dim, wide(x.dtype) if half_to_float else None)
