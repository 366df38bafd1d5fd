"""The cross-domain transformer in JAX, compiled by XLA.

The same sub-steps as `reference`, which holds the formulae.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jaxtyping import Float

from . import taps as points
from .spec import BRANCHES, POSITIONS, Branch, Config, Kind, SpecError
from .taps import LOGIT_ROWS, Observer

Weights: TypeAlias = Mapping[str, Float[Array, "..."]]
_Branches: TypeAlias = tuple[Float[Array, "batch channels bins frames"], Float[Array, "batch channels samples"]]
_Tap: TypeAlias = Callable[[str, Float[Array, "..."]], Float[Array, "..."]]


def compiled(config: Config, taps: Collection[str] = ()) -> Callable[..., Any]:
    """The transformer as one jitted function of weights, frequency and time branch.

    Args:
        config: The configuration the weights fit.
        taps: Names of `taps.taps` to observe.

    Returns:
        A function that gives both branches or, if anything is observed, both branches and the observed values by
        name, in the order of `taps.taps`.

    Raises:
        SpecError: A tap of that name does not exist.
    """
    if unknown := sorted(set(taps) - points.taps(config).keys()):
        raise SpecError(f"taps must be among those of kernels.taps for this configuration; got {unknown}")
    return jax.jit(partial(_tapped, config, frozenset(taps)) if taps else partial(transformer, config))


def _tapped(
    config: Config, taps: frozenset[str], weights: Weights, freq: Float[Array, "..."], time: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."], dict[str, Float[Array, "..."]]]:
    found: dict[str, Float[Array, "..."]] = {}

    def observe(name: str, value: Float[Array, "..."]) -> None:
        if name in taps:
            found[name] = value

    return *transformer(config, weights, freq, time, observe), found


def transformer(
    config: Config,
    weights: Weights,
    freq: Float[Array, "batch channels bins frames"],
    time: Float[Array, "batch channels samples"],
    observe: Observer | None = None,
) -> _Branches:
    """Run all layers of both branches; see `reference.transformer`."""
    tap = _recorder(observe)
    frames = freq.shape[3]
    x = {"": rearrange(freq, "b c f t -> b (t f) c"), "_t": rearrange(time, "b c t -> b t c")}
    tokens: dict[Branch, Float[Array, "batch tokens channels"]] = {}
    for branch in BRANCHES:
        tap(f"input{branch}", time if branch else freq)
        normed = tap(f"norm_in{branch}", _norm(weights, f"norm_in{branch}", x[branch], config.eps))
        tokens[branch] = tap(f"embedded{branch}", normed + weights[POSITIONS[branch]])
    for layer in range(config.layers):
        old = dict(tokens)
        for branch, other in zip(BRANCHES, reversed(BRANCHES), strict=True):
            source = old[other] if config.kind(layer) == "cross" else None
            tokens[branch] = _layer(config, weights, f"layers{branch}.{layer}", old[branch], source, observe)
    tap("norm_out", tokens[""])
    freq = tap("output", rearrange(tokens[""], "b (t f) c -> b c f t", t=frames))
    tap("norm_out_t", tokens["_t"])
    return freq, tap("output_t", rearrange(tokens["_t"], "b t c -> b c t"))


def _layer(
    config: Config,
    weights: Weights,
    prefix: str,
    x: Float[Array, "batch tokens channels"],
    source: Float[Array, "batch sources channels"] | None,
    observe: Observer | None,
) -> Float[Array, "batch tokens channels"]:
    tap = _recorder(observe, f"{prefix}.")
    kind: Kind = "self" if source is None else "cross"

    def norm(name: str, value: Float[Array, "batch n channels"]) -> Float[Array, "batch n channels"]:
        return tap(name, _norm(weights, f"{prefix}.{name}", value, config.eps))

    queries = norm("norm1", x)
    sources = queries if source is None else norm("norm2", source)
    attended = tap(f"{kind}_attn", _attention(config, weights, prefix, kind, queries, sources, tap))
    y = tap("residual_1", x + tap("gamma_1", weights[f"{prefix}.gamma_1.scale"] * attended))
    hidden = norm("norm2" if source is None else "norm3", y)
    hidden = tap("linear1", _linear(weights, f"{prefix}.linear1", hidden))
    hidden = tap("gelu", jax.nn.gelu(hidden, approximate=False))
    fed = tap("linear2", _linear(weights, f"{prefix}.linear2", hidden))
    z = tap("residual_2", y + tap("gamma_2", weights[f"{prefix}.gamma_2.scale"] * fed))
    # Over all tokens and channels, in two levels: see reference.group_norm.
    return tap("norm_out", _norm(weights, f"{prefix}.norm_out", z, config.eps, axes=(-1, -2)))


def _attention(
    config: Config,
    weights: Weights,
    prefix: str,
    kind: Kind,
    queries: Float[Array, "batch tokens channels"],
    sources: Float[Array, "batch sources channels"],
    tap: _Tap,
) -> Float[Array, "batch tokens channels"]:
    name = f"{prefix}.{kind}_attn"
    w_q, w_k, w_v = jnp.split(weights[f"{name}.in_proj_weight"], 3)
    b_q, b_k, b_v = jnp.split(weights[f"{name}.in_proj_bias"], 3)
    split = "b n (h d) -> b h n d"
    q = tap("q", rearrange(queries @ w_q.T + b_q, split, h=config.heads))
    k = tap("k", rearrange(sources @ w_k.T + b_k, split, h=config.heads))
    v = tap("v", rearrange(sources @ w_v.T + b_v, split, h=config.heads))
    q = q * (config.width // config.heads) ** -0.5
    logits = q @ jnp.swapaxes(k, -1, -2)
    tap("logits", logits[:, :, :LOGIT_ROWS])
    mixed = tap("heads", jax.nn.softmax(logits, axis=-1) @ v)
    return _linear(weights, f"{name}.out_proj", rearrange(mixed, "b h n d -> b n (h d)"))


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


def _recorder(observe: Observer | None, prefix: str = "") -> _Tap:
    """Shows a value to the observer and passes it on."""

    def tap(name: str, value: Float[Array, "..."]) -> Float[Array, "..."]:
        if observe is not None:
            observe(f"{prefix}{name}", value)
        return value

    return tap
