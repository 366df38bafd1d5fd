"""Comparison, logic by elements, and selection by a mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...graph.shapes import TensorType
from . import Function, cast, dtype_of, operator, together

_COMPARISONS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "eq": jnp.equal,
    "ge": jnp.greater_equal,
    "gt": jnp.greater,
    "le": jnp.less_equal,
    "lt": jnp.less,
    "ne": jnp.not_equal,
}
_LOGIC: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "logical_xor": jnp.logical_xor,
}
_BITWISE: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
}
_PREDICATES: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "isfinite": jnp.isfinite,
    "isinf": jnp.isinf,
    "isnan": jnp.isnan,
    "logical_not": jnp.logical_not,
}


def _comparison(compare: Callable[[jax.Array, jax.Array], jax.Array]) -> Function:
    def comparison(x: Any, other: Any) -> jax.Array:
        return compare(*together(x, other))

    return comparison


def _logic(combine: Callable[[jax.Array, jax.Array], jax.Array]) -> Function:
    def logic(x: Any, other: Any) -> jax.Array:
        return combine(jnp.asarray(x), jnp.asarray(other))

    return logic


def _bitwise(combine: Callable[[jax.Array, jax.Array], jax.Array]) -> Function:
    def bitwise(x: Any, other: Any, result: TensorType) -> jax.Array:
        return combine(cast(x, dtype_of(result)), cast(other, dtype_of(result)))

    return bitwise


def _predicate(holds: Callable[[jax.Array], jax.Array]) -> Function:
    def predicate(x: jax.Array) -> jax.Array:
        return holds(x)

    return predicate


for _name, _compare in _COMPARISONS.items():
    operator(f"{_name}.Tensor", f"{_name}.Scalar")(_comparison(_compare))
for _name, _combine in _LOGIC.items():
    operator(f"{_name}.default")(_logic(_combine))
for _name, _combine in _BITWISE.items():
    operator(f"{_name}.Tensor")(_bitwise(_combine))
for _name, _holds in _PREDICATES.items():
    operator(f"{_name}.default")(_predicate(_holds))


@operator("bitwise_not.default")
def bitwise_not(x: jax.Array) -> jax.Array:
    return ~x


@operator("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(condition: jax.Array, x: Any, other: Any, result: TensorType) -> jax.Array:
    dtype = dtype_of(result)
    return jnp.where(condition.astype(bool), cast(x, dtype), cast(other, dtype))


@operator("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(x: jax.Array, mask: jax.Array, value: Any) -> jax.Array:
    return jnp.where(mask.astype(bool), cast(value, x.dtype), x)
