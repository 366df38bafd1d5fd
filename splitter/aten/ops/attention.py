"""Scaled dot-product attention."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from . import operator, widened
from .linear import product


@operator("scaled_dot_product_attention.default")
def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    attn_mask: jax.Array | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> jax.Array:
    """softmax(query · keyᵀ · scale + mask) · value; 0 for a query that may attend to nothing.

    A mask of truths says what may be attended to, one of numbers is added. With ``enable_gqa`` several heads of the
    query share one of key and value.
    """
    if enable_gqa:
        key, value = (jnp.repeat(heads, query.shape[-3] // heads.shape[-3], axis=-3) for heads in (key, value))
    logits = widened(product(query, key.swapaxes(-1, -2)))
    logits = logits * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        logits = jnp.where(jnp.tri(logits.shape[-2], logits.shape[-1], dtype=bool), logits, -jnp.inf)
    if attn_mask is not None:
        logits = jnp.where(attn_mask, logits, -jnp.inf) if attn_mask.dtype == bool else logits + attn_mask
    weights = jnp.exp(logits - jnp.maximum(logits.max(-1, keepdims=True), np.finfo(logits.dtype).min))
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    return product(weights, widened(value)).astype(query.dtype)
