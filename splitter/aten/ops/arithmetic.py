"""Arithmetic by elements: operands broadcast, and are computed in the element type of the result.

Half-precision values are computed in float32 and rounded once, as PyTorch does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ...graph.shapes import TensorType
from . import Function, cast, dtype_of, is_floating, operator, wide

_MULTIPLIED_OUT = 4  # powers up to this one


def _rsqrt(x: jax.Array) -> jax.Array:
    return 1 / jnp.sqrt(x)  # XLA has one of its own that is an estimate on some devices


# Integers are computed as floating-point numbers.
_FUNCTIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "acos": jnp.arccos,
    "asin": jnp.arcsin,
    "atan": jnp.arctan,
    "cos": jnp.cos,
    "cosh": jnp.cosh,
    "erf": lax.erf,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log10": jnp.log10,
    "log1p": jnp.log1p,
    "log2": jnp.log2,
    "reciprocal": jnp.reciprocal,
    "rsqrt": _rsqrt,
    "sin": jnp.sin,
    "sinh": jnp.sinh,
    "sqrt": jnp.sqrt,
    "square": jnp.square,
    "tan": jnp.tan,
    "tanh": jnp.tanh,
}
# Integers stay as they are.
_ROUNDINGS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "ceil": jnp.ceil,
    "floor": jnp.floor,
    "round": jnp.round,
    "trunc": jnp.trunc,
}
_COMBINATIONS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "atan2.default": jnp.arctan2,
    "div.Scalar": jnp.divide,
    "div.Tensor": jnp.divide,
    "hypot.default": jnp.hypot,
    "maximum.default": jnp.maximum,
    "minimum.default": jnp.minimum,
    "mul.Scalar": jnp.multiply,
    "mul.Tensor": jnp.multiply,
}


def _function(compute: Callable[[jax.Array], jax.Array]) -> Function:
    def function(x: Any, result: TensorType) -> jax.Array:
        return compute(cast(x, wide(dtype_of(result)))).astype(dtype_of(result))

    return function


def _rounding(compute: Callable[[jax.Array], jax.Array]) -> Function:
    def rounding(x: jax.Array) -> jax.Array:
        return compute(x) if is_floating(x) else x

    return rounding


def _combination(compute: Callable[[jax.Array, jax.Array], jax.Array]) -> Function:
    def combination(x: Any, other: Any, result: TensorType) -> jax.Array:
        first, second = (cast(operand, wide(dtype_of(result))) for operand in (x, other))
        return compute(first, second).astype(dtype_of(result))

    return combination


for _name, _compute in _FUNCTIONS.items():
    operator(f"{_name}.default")(_function(_compute))
for _name, _compute in _ROUNDINGS.items():
    operator(f"{_name}.default")(_rounding(_compute))
for _name, _combine in _COMBINATIONS.items():
    operator(_name)(_combination(_combine))


@operator("add.Tensor", "add.Scalar")
def add(x: Any, other: Any, alpha: float, result: TensorType) -> jax.Array:
    """x + alpha · other"""
    return _sum(x, other, alpha, result)


@operator("sub.Tensor", "sub.Scalar")
def sub(x: Any, other: Any, alpha: float, result: TensorType) -> jax.Array:
    """x − alpha · other"""
    return _sum(x, other, -alpha, result)


@operator("rsub.Tensor", "rsub.Scalar")
def rsub(x: Any, other: Any, alpha: float, result: TensorType) -> jax.Array:
    """other − alpha · x"""
    return _sum(other, x, -alpha, result)


def _sum(first: Any, second: Any, factor: float, result: TensorType) -> jax.Array:
    dtype = dtype_of(result)
    if dtype.kind == "b":
        return cast(first, dtype) | (cast(second, dtype) & bool(factor))
    a, b = cast(first, wide(dtype)), cast(second, wide(dtype))
    if factor == 1:
        total = a + b
    elif factor == -1:
        total = a - b
    else:
        total = a + cast(factor, wide(dtype)) * b
    return total.astype(dtype)


@operator("div.Tensor_mode")
def divided_and_rounded(x: Any, other: Any, rounding_mode: str | None, result: TensorType) -> jax.Array:
    """x / other, rounded down, towards zero, or not."""
    dtype = dtype_of(result)
    a, b = cast(x, wide(dtype)), cast(other, wide(dtype))
    if rounding_mode == "floor":
        return jnp.floor_divide(a, b).astype(dtype)
    if rounding_mode == "trunc" and dtype.kind in "iu":
        return lax.div(*jnp.broadcast_arrays(a, b))
    quotient = jnp.divide(a, b)
    return (quotient if rounding_mode is None else jnp.trunc(quotient)).astype(dtype)


@operator("remainder.Scalar", "remainder.Tensor")
def remainder(x: Any, other: Any, result: TensorType) -> jax.Array:
    """x − other · ⌊x / other⌋, exact; of the sign of the divisor."""
    dtype = dtype_of(result)
    return jnp.remainder(cast(x, wide(dtype)), cast(other, wide(dtype))).astype(dtype)


@operator("neg.default")
def neg(x: jax.Array) -> jax.Array:
    return -x


@operator("abs.default")
def abs_(x: jax.Array) -> jax.Array:
    return x if x.dtype == bool else jnp.abs(x)


@operator("sign.default")
def sign(x: jax.Array) -> jax.Array:
    """−1, 0 or 1; 0 of NaN."""
    return x if x.dtype == bool else (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)


@operator("frac.default")
def frac(x: jax.Array) -> jax.Array:
    return x - jnp.trunc(x)


@operator("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def pow_(x: Any, exponent: Any, result: TensorType) -> jax.Array:
    """x to the power of exponent; small whole powers are multiplied out, as PyTorch does."""
    dtype = dtype_of(result)
    base = cast(x, wide(dtype))
    if isinstance(exponent, jax.Array):
        return jnp.power(base, cast(exponent, wide(dtype))).astype(dtype)
    if exponent == 0.5:
        return jnp.sqrt(base).astype(dtype)
    if exponent == int(exponent) and abs(exponent) <= _MULTIPLIED_OUT:
        return lax.integer_pow(base, int(exponent)).astype(dtype)
    return jnp.power(base, cast(exponent, wide(dtype))).astype(dtype)


@operator("clamp.default", "clamp.Tensor")
def clamp(x: jax.Array, min_: Any, max_: Any, result: TensorType) -> jax.Array:
    """Where the bounds cross, the upper one."""
    dtype = dtype_of(result)
    clamped = cast(x, dtype)
    if min_ is not None:
        clamped = jnp.maximum(clamped, cast(min_, dtype))
    return clamped if max_ is None else jnp.minimum(clamped, cast(max_, dtype))


@operator("clamp_min.default")
def clamp_min(x: jax.Array, min_: float, result: TensorType) -> jax.Array:
    return clamp(x, min_, None, result)


@operator("clamp_max.default")
def clamp_max(x: jax.Array, max_: float, result: TensorType) -> jax.Array:
    return clamp(x, None, max_, result)


@operator("addcmul.default")
def addcmul(x: Any, tensor1: Any, tensor2: Any, value: float, result: TensorType) -> jax.Array:
    """x + value · tensor1 · tensor2"""
    base, first, second, factor = _in_wide_result(result, x, tensor1, tensor2, value)
    return (base + factor * first * second).astype(dtype_of(result))


@operator("addcdiv.default")
def addcdiv(x: Any, tensor1: Any, tensor2: Any, value: float, result: TensorType) -> jax.Array:
    """x + value · tensor1 / tensor2"""
    base, first, second, factor = _in_wide_result(result, x, tensor1, tensor2, value)
    return (base + factor * first / second).astype(dtype_of(result))


@operator("lerp.Scalar", "lerp.Tensor")
def lerp(x: jax.Array, end: jax.Array, weight: Any, result: TensorType) -> jax.Array:
    """x + weight · (end − x), from the nearer end."""
    first, last, part = _in_wide_result(result, x, end, weight)
    mixed = jnp.where(jnp.abs(part) < 0.5, first + part * (last - first), last - (last - first) * (1 - part))
    return mixed.astype(dtype_of(result))


def _in_wide_result(result: TensorType, *operands: Any) -> list[jax.Array]:
    return [cast(operand, wide(dtype_of(result))) for operand in operands]


@operator("nan_to_num.default")
def nan_to_num(x: jax.Array, nan: float | None, posinf: float | None, neginf: float | None) -> jax.Array:
    if not is_floating(x):
        return x
    return jnp.nan_to_num(x, nan=nan or 0.0, posinf=posinf, neginf=neginf)
