"""The cross-domain transformer in JAX, compiled by XLA.

The same sub-steps as `reference`, which holds the formulae.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jaxtyping import Float

from .spec import BRANCHES, POSITIONS, Branch, Config

Weights: TypeAlias = Mapping[str, Float[Array, "..."]]
Transformer: TypeAlias = Callable[
    [Weights, Float[Array, "batch channels bins frames"], Float[Array, "batch channels samples"]],
    tuple[Float[Array, "batch channels bins frames"], Float[Array, "batch channels samples"]],
]


def compiled(config: Config) -> Transformer:
    """The transformer as one jitted function of weights, frequency and time branch."""
    return jax.jit(partial(transformer, config))


def transformer(
    config: Config,
    weights: Weights,
    freq: Float[Array, "batch channels bins frames"],
    time: Float[Array, "batch channels samples"],
) -> tuple[Float[Array, "batch channels bins frames"], Float[Array, "batch channels samples"]]:
    """Run all layers of both branches; see `reference.transformer`."""
    frames = freq.shape[3]
    x = {"": rearrange(freq, "b c f t -> b (t f) c"), "_t": rearrange(time, "b c t -> b t c")}
    tokens: dict[Branch, Float[Array, "batch tokens channels"]] = {
        branch: _norm(weights, f"norm_in{branch}", x[branch], config.eps) + weights[POSITIONS[branch]]
        for branch in BRANCHES
    }
    for layer in range(config.layers):
        old = dict(tokens)
        for branch, other in zip(BRANCHES, reversed(BRANCHES), strict=True):
            source = old[other] if config.kind(layer) == "cross" else None
            tokens[branch] = _layer(config, weights, f"layers{branch}.{layer}", old[branch], source)
    return rearrange(tokens[""], "b (t f) c -> b c f t", t=frames), rearrange(tokens["_t"], "b t c -> b c t")


def _layer(
    config: Config,
    weights: Weights,
    prefix: str,
    x: Float[Array, "batch tokens channels"],
    source: Float[Array, "batch sources channels"] | None,
) -> Float[Array, "batch tokens channels"]:
    queries = _norm(weights, f"{prefix}.norm1", x, config.eps)
    if source is None:
        attended = _attention(config, weights, f"{prefix}.self_attn", queries, queries)
    else:
        sources = _norm(weights, f"{prefix}.norm2", source, config.eps)
        attended = _attention(config, weights, f"{prefix}.cross_attn", queries, sources)
    y = x + weights[f"{prefix}.gamma_1.scale"] * attended
    hidden = _norm(weights, f"{prefix}.{'norm2' if source is None else 'norm3'}", y, config.eps)
    hidden = jax.nn.gelu(_linear(weights, f"{prefix}.linear1", hidden), approximate=False)
    z = y + weights[f"{prefix}.gamma_2.scale"] * _linear(weights, f"{prefix}.linear2", hidden)
    # Over all tokens and channels, in two levels: see reference.group_norm.
    return _norm(weights, f"{prefix}.norm_out", z, config.eps, axes=(-1, -2))


def _attention(
    config: Config,
    weights: Weights,
    prefix: str,
    queries: Float[Array, "batch tokens channels"],
    sources: Float[Array, "batch sources channels"],
) -> Float[Array, "batch tokens channels"]:
    w_q, w_k, w_v = jnp.split(weights[f"{prefix}.in_proj_weight"], 3)
    b_q, b_k, b_v = jnp.split(weights[f"{prefix}.in_proj_bias"], 3)
    split = "b n (h d) -> b h n d"
    q = rearrange(queries @ w_q.T + b_q, split, h=config.heads) * (config.width // config.heads) ** -0.5
    k = rearrange(sources @ w_k.T + b_k, split, h=config.heads)
    v = rearrange(sources @ w_v.T + b_v, split, h=config.heads)
    mixed = jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2), axis=-1) @ v
    return _linear(weights, f"{prefix}.out_proj", rearrange(mixed, "b h n d -> b n (h d)"))


def _linear(weights: Weights, name: str, x: Float[Array, "batch tokens in"]) -> Float[Array, "batch tokens out"]:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(
    weights: Weights, name: str, x: Float[Array, "batch tokens channels"], eps: float, axes: tuple[int, ...] = (-1,)
) -> Float[Array, "batch tokens channels"]:
    """Normalise over the given axes, each mean taken axis by axis."""

    def mean(value: Float[Array, "batch tokens channels"]) -> Float[Array, "batch rows columns"]:
        for axis in axes:
            value = value.mean(axis=axis, keepdims=True)
        return value

    centred = x - mean(x)
    return (
        centred * jax.lax.rsqrt(mean(jnp.square(centred)) + eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    )
