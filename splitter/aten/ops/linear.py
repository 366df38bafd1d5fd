"""Matrix products, in full precision on every device, half-precision factors added up in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ...graph.shapes import TensorType
from . import dtype_of, operator, wide

_HIGHEST = lax.Precision.HIGHEST  # elsewhere float32 factors are rounded to fewer digits by default


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in the element type that sums have."""
    return jnp.matmul(a, b, precision=_HIGHEST, preferred_element_type=wide(a.dtype))


@operator("matmul.default")
def matmul(x: jax.Array, other: jax.Array) -> jax.Array:
    return product(x, other).astype(x.dtype)


@operator("mm.default", "bmm.default")
def mm(x: jax.Array, mat2: jax.Array) -> jax.Array:
    return matmul(x, mat2)


@operator("mv.default")
def mv(x: jax.Array, vec: jax.Array) -> jax.Array:
    return matmul(x, vec)


@operator("dot.default")
def dot(x: jax.Array, tensor: jax.Array) -> jax.Array:
    return matmul(x, tensor)


@operator("outer.default")
def outer(x: jax.Array, vec2: jax.Array) -> jax.Array:
    a, b = jnp.broadcast_arrays(x[:, None], vec2[None])
    return a * b


@operator("linear.default")
def linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
    """x · weightᵀ + bias"""
    y = product(x, weight.T)
    return (y if bias is None else y + bias).astype(x.dtype)


@operator("addmm.default")
def addmm(x: jax.Array, mat1: jax.Array, mat2: jax.Array, beta: float, alpha: float) -> jax.Array:
    """beta · x + alpha · mat1 @ mat2; x is not looked at where beta is 0."""
    y = alpha * product(mat1, mat2)
    return (y + beta * x.astype(y.dtype) if beta else y).astype(x.dtype)


@operator("baddbmm.default")
def baddbmm(x: jax.Array, batch1: jax.Array, batch2: jax.Array, beta: float, alpha: float) -> jax.Array:
    return addmm(x, batch1, batch2, beta, alpha)


@operator("einsum.default")
def einsum(equation: str, tensors: list[jax.Array], result: TensorType) -> jax.Array:
    dtype = dtype_of(result)
    total = jnp.einsum(equation, *tensors, precision=_HIGHEST, preferred_element_type=wide(dtype))
    return total.astype(dtype)
