"""The cross-domain transformer in NumPy, one function per sub-step.

Every function computes in the dtype of its arguments, so the same text is the float32 reference and, fed
float64, the oracle. Source of the architecture: Rouard, Massa, Défossez, "Hybrid Transformers for Music
Source Separation", ICASSP 2023, section 2.2, and the trained model's graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray
from scipy.special import erf

from .spec import BRANCHES, POSITIONS, Branch, Config, Kind, SpecError
from .taps import LOGIT_ROWS, Observer

Weights: TypeAlias = Mapping[str, Float[ndarray, "..."]]
_Tap: TypeAlias = Callable[[str, Float[ndarray, "..."]], Float[ndarray, "..."]]
_ATTENTION_ROWS = 512  # query rows per block: bounds the logits held in memory


def transformer(
    config: Config,
    weights: Weights,
    freq: Float[ndarray, "batch channels bins frames"],
    time: Float[ndarray, "batch channels samples"],
    *,
    observe: Observer | None = None,
) -> tuple[Float[ndarray, "batch channels bins frames"], Float[ndarray, "batch channels samples"]]:
    """Run all layers of both branches.

    In a cross layer each branch queries the other's tokens as they were *before* the layer.

    Args:
        config: The configuration the weights fit.
        weights: By the names of `spec.parameters`.
        freq: Frequency branch.
        time: Time branch.
        observe: Receives name and value of each of `taps.taps`, in its order; the values are its own to keep.

    Raises:
        SpecError: The inputs do not have the width and token counts of the configuration.
    """
    tap = _recorder(observe)
    frames = freq.shape[3]
    x = {"": rearrange(freq, "b c f t -> b (t f) c"), "_t": rearrange(time, "b c t -> b t c")}
    tokens: dict[Branch, Any] = {}
    for branch in BRANCHES:
        tap(f"input{branch}", time if branch else freq)
        if x[branch].shape[1:] != (config.tokens(branch), config.width):
            raise SpecError(
                f"the {'time' if branch else 'frequency'} branch must hold {config.tokens(branch)} tokens of width "
                f"{config.width}; got {x[branch].shape[1:]}"
            )
        normed = tap(f"norm_in{branch}", layer_norm(x[branch], *_affine(weights, f"norm_in{branch}"), config.eps))
        tokens[branch] = tap(f"embedded{branch}", normed + weights[POSITIONS[branch]])
    for layer in range(config.layers):
        old = dict(tokens)
        for branch, other in zip(BRANCHES, reversed(BRANCHES), strict=True):
            source = old[other] if config.kind(layer) == "cross" else None
            tokens[branch] = transformer_layer(config, weights, f"layers{branch}.{layer}", old[branch], source, observe)
    tap("norm_out", tokens[""])
    freq = tap("output", rearrange(tokens[""], "b (t f) c -> b c f t", t=frames))
    tap("norm_out_t", tokens["_t"])
    return freq, tap("output_t", rearrange(tokens["_t"], "b t c -> b c t"))


def transformer_layer(
    config: Config,
    weights: Weights,
    prefix: str,
    x: Float[ndarray, "batch tokens channels"],
    source: Float[ndarray, "batch sources channels"] | None,
    observe: Observer | None = None,
) -> Float[ndarray, "batch tokens channels"]:
    """One pre-norm layer.

    y = x + γ₁ · attention(norm1(x), s)     s = norm1(x), or norm2(source) in a cross layer
    z = y + γ₂ · feed_forward(norm(y))      norm = norm2, or norm3 in a cross layer
    layer(x) = group_norm(z)
    """
    tap = _recorder(observe, f"{prefix}.")
    kind: Kind = "self" if source is None else "cross"

    def norm(name: str, value: Float[ndarray, "batch n channels"]) -> Float[ndarray, "batch n channels"]:
        return tap(name, layer_norm(value, *_affine(weights, f"{prefix}.{name}"), config.eps))

    queries = norm("norm1", x)
    sources = queries if source is None else norm("norm2", source)
    attended = tap(f"{kind}_attn", attention(config, weights, prefix, kind, queries, sources, observe))
    y = tap("residual_1", x + tap("gamma_1", weights[f"{prefix}.gamma_1.scale"] * attended))
    hidden = norm("norm2" if source is None else "norm3", y)
    fed = tap("linear2", feed_forward(weights, prefix, hidden, observe))
    z = tap("residual_2", y + tap("gamma_2", weights[f"{prefix}.gamma_2.scale"] * fed))
    return tap("norm_out", group_norm(z, *_affine(weights, f"{prefix}.norm_out"), config.eps))


def attention(
    config: Config,
    weights: Weights,
    prefix: str,
    kind: Kind,
    queries: Float[ndarray, "batch tokens channels"],
    sources: Float[ndarray, "batch sources channels"],
    observe: Observer | None = None,
) -> Float[ndarray, "batch tokens channels"]:
    """Multi-head attention with biases and output projection.

        q = W_q x + b_q,  k = W_k s + b_k,  v = W_v s + b_v,   split into heads of width d
        head = softmax(q kᵀ / √d) v
        attention = W_o concat(heads) + b_o

    Query rows are taken in blocks, so memory grows with the sources, not with tokens × sources.
    """
    tap, name = _recorder(observe, f"{prefix}."), f"{prefix}.{kind}_attn"
    w_q, w_k, w_v = np.split(weights[f"{name}.in_proj_weight"], 3)
    b_q, b_k, b_v = np.split(weights[f"{name}.in_proj_bias"], 3)
    split = "b n (h d) -> b h n d"
    q = tap("q", rearrange(linear(queries, w_q, b_q), split, h=config.heads))
    k = tap("k", rearrange(linear(sources, w_k, b_k), split, h=config.heads))
    v = tap("v", rearrange(linear(sources, w_v, b_v), split, h=config.heads))
    q = q / np.sqrt(np.asarray(q.shape[-1], q.dtype))
    if observe is not None:
        tap("logits", q[:, :, :LOGIT_ROWS] @ np.swapaxes(k, -1, -2))
    mixed = np.empty_like(q)
    for start in range(0, q.shape[2], _ATTENTION_ROWS):
        rows = slice(start, start + _ATTENTION_ROWS)
        mixed[:, :, rows] = softmax(q[:, :, rows] @ np.swapaxes(k, -1, -2)) @ v
    concatenated = rearrange(tap("heads", mixed), "b h n d -> b n (h d)")
    return linear(concatenated, *_affine(weights, f"{name}.out_proj"))


def feed_forward(
    weights: Weights, prefix: str, x: Float[ndarray, "batch tokens channels"], observe: Observer | None = None
) -> Float[ndarray, "batch tokens channels"]:
    """``W₂ gelu(W₁ x + b₁) + b₂``"""
    tap = _recorder(observe, f"{prefix}.")
    hidden = tap("linear1", linear(x, *_affine(weights, f"{prefix}.linear1")))
    return linear(tap("gelu", gelu(hidden)), *_affine(weights, f"{prefix}.linear2"))


def linear(
    x: Float[ndarray, "batch tokens in"], weight: Float[ndarray, "out in"], bias: Float[ndarray, " out"]
) -> Float[ndarray, "batch tokens out"]:
    """``x Wᵀ + b``"""
    y: Float[ndarray, "batch tokens out"] = x @ weight.T
    y += bias
    return y


def gelu(x: Float[ndarray, "*shape"]) -> Float[ndarray, "*shape"]:
    """Exact form: ``x · (1 + erf(x / √2)) / 2``"""
    half = np.asarray(0.5, x.dtype)
    return x * (half + half * erf(x * np.sqrt(half)))


def softmax(x: Float[ndarray, "*shape"]) -> Float[ndarray, "*shape"]:
    """``exp(x − max x) / Σ exp(x − max x)`` over the last axis."""
    y = x - x.max(axis=-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


def layer_norm(
    x: Float[ndarray, "batch tokens channels"],
    weight: Float[ndarray, " channels"],
    bias: Float[ndarray, " channels"],
    eps: float,
) -> Float[ndarray, "batch tokens channels"]:
    """``(x − mean) / √(var + eps) · weight + bias``, statistics of each token over its channels."""
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + np.asarray(eps, x.dtype)) * weight + bias


def group_norm(
    x: Float[ndarray, "batch tokens channels"],
    weight: Float[ndarray, " channels"],
    bias: Float[ndarray, " channels"],
    eps: float,
) -> Float[ndarray, "batch tokens channels"]:
    """`torch.nn.GroupNorm(1, C)` with channels last: statistics over **all** tokens and channels.

    Means are taken in two levels, over channels and then over tokens: up to 1.4 M terms in one
    float32 accumulator would cost 60 dB.
    """
    mean = x.mean(axis=-1, keepdims=True).mean(axis=-2, keepdims=True)
    centred = x - mean
    variance = np.square(centred).mean(axis=-1, keepdims=True).mean(axis=-2, keepdims=True)
    return centred / np.sqrt(variance + np.asarray(eps, x.dtype)) * weight + bias


def _affine(weights: Weights, name: str) -> tuple[Float[ndarray, "..."], Float[ndarray, " out"]]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _recorder(observe: Observer | None, prefix: str = "") -> _Tap:
    """Shows a value to the observer and passes it on; a copy, since later steps may write over it."""

    def tap(name: str, value: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        if observe is not None:
            observe(f"{prefix}{name}", value.copy())
        return value

    return tap
