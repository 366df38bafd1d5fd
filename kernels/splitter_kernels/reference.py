"""The cross-domain transformer in NumPy, one function per sub-step.

Every function computes in the dtype of its arguments, so the same text is the float32 reference and, fed
float64, the oracle; statistics of the normalisations are float64 in either. Source of the architecture:
Rouard, Massa, Défossez, "Hybrid Transformers for Music Source Separation", ICASSP 2023, section 2.2, and the
trained model's graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray
from scipy.special import erf

from .inputs import check_inputs
from .spec import BRANCHES, POSITIONS, Branch, Config, Kind, SpecError
from .taps import LOGIT_ROWS, Observer

Weights: TypeAlias = Mapping[str, Float[ndarray, "..."]]
_Tap: TypeAlias = Callable[[str, Float[ndarray, "..."]], Float[ndarray, "..."]]
DTYPES = ("float32", "float64")
_ATTENTION_ROWS = 256  # query rows of one head at a time: their logits stay in the cache


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
        SpecError: The inputs do not have the width and token counts of the configuration, or inputs and weights
            are not of one dtype of `DTYPES`.
    """
    check_inputs(config, freq, time, DTYPES)
    if unlike := sorted(name for name, value in weights.items() if value.dtype != freq.dtype):
        raise SpecError(
            f"weights must have the dtype of the inputs, {freq.dtype}; got {weights[unlike[0]].dtype} for "
            f"{len(unlike)} tensors, the first {unlike[0]!r}. Convert the inputs or the weights"
        )
    tap = _recorder(observe)
    frames = freq.shape[3]
    x = {"": rearrange(freq, "b c f t -> b (t f) c"), "_t": rearrange(time, "b c t -> b t c")}
    tokens: dict[Branch, Any] = {}
    for branch in BRANCHES:
        tap(f"input{branch}", time if branch else freq)
        normed = tap(f"norm_in{branch}", layer_norm(x[branch], *_affine(weights, f"norm_in{branch}"), config.eps))
        tokens[branch] = tap(f"embedded{branch}", np.add(normed, weights[POSITIONS[branch]], out=normed))
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

    Rows of one head are taken some at a time, so memory grows with the sources, not with tokens × sources. They are
    divided by the sum of their exponentials at last, as a head is narrower than the logits.
    """
    tap, name = _recorder(observe, f"{prefix}."), f"{prefix}.{kind}_attn"
    matrices = np.split(weights[f"{name}.in_proj_weight"], 3)
    biases = np.split(weights[f"{name}.in_proj_bias"], 3)
    q, k, v = (
        tap(letter, rearrange(linear(x, w, b), "b n (h d) -> b h n d", h=config.heads))
        for letter, x, w, b in zip("qkv", (queries, sources, sources), matrices, biases, strict=True)
    )
    q /= np.sqrt(np.asarray(q.shape[-1], q.dtype))
    if observe is not None:
        tap("logits", q[:, :, :LOGIT_ROWS] @ np.swapaxes(k, -1, -2))
    heads = np.empty_like(q)
    logits = np.empty((_ATTENTION_ROWS, k.shape[2]), q.dtype)
    for head in np.ndindex(q.shape[:2]):
        for start in range(0, q.shape[2], _ATTENTION_ROWS):
            rows = q[head][start : start + _ATTENTION_ROWS]
            exponentials = _exponentials(np.matmul(rows, k[head].T, out=logits[: len(rows)]))
            attended = np.matmul(exponentials, v[head], out=heads[head][start : start + len(rows)])
            attended /= exponentials.sum(axis=-1, keepdims=True)
    tap("heads", heads)
    return linear(rearrange(heads, "b h n d -> b n (h d)"), *_affine(weights, f"{name}.out_proj"))


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
    y: Float[ndarray, "*shape"] = x * np.sqrt(half)
    erf(y, out=y)
    y += 1
    y *= half
    y *= x
    return y


def softmax(x: Float[ndarray, "*shape"]) -> Float[ndarray, "*shape"]:
    """``exp(x − max x) / Σ exp(x − max x)`` over the last axis, in the place of its argument."""
    x = _exponentials(x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def _exponentials(x: Float[ndarray, "*shape"]) -> Float[ndarray, "*shape"]:
    """``exp(x − max x)``, in the place of its argument.

    None is less than e⁻⁷⁰: next to the largest, 1, that is nothing in double precision, and smaller ones make subnormal
    numbers, which some processors multiply many times more slowly.
    """
    x -= x.max(axis=-1, keepdims=True)
    np.maximum(x, -70, out=x)
    np.exp(x, out=x)
    return x


def layer_norm(
    x: Float[ndarray, "batch tokens channels"],
    weight: Float[ndarray, " channels"],
    bias: Float[ndarray, " channels"],
    eps: float,
) -> Float[ndarray, "batch tokens channels"]:
    """``(x − mean) / √(var + eps) · weight + bias``, statistics of each token over its channels."""
    centred = x - x.mean(axis=-1, keepdims=True, dtype=np.float64).astype(x.dtype)
    variance = np.square(centred).mean(axis=-1, keepdims=True, dtype=np.float64)
    centred *= (1 / np.sqrt(variance + eps)).astype(x.dtype)
    centred *= weight
    centred += bias
    return centred


def group_norm(
    x: Float[ndarray, "batch tokens channels"],
    weight: Float[ndarray, " channels"],
    bias: Float[ndarray, " channels"],
    eps: float,
) -> Float[ndarray, "batch tokens channels"]:
    """`torch.nn.GroupNorm(1, C)` with channels last: statistics over **all** tokens and channels.

    Computed in float64 in any dtype. A port in float32 must take means in two levels as here, over channels and
    then over tokens: up to 1.4 M terms in one float32 accumulator would cost 60 dB.
    """
    centred = x - x.mean(axis=-1, keepdims=True, dtype=np.float64).mean(axis=-2, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True).mean(axis=-2, keepdims=True)
    centred /= np.sqrt(variance + eps)
    centred *= weight
    centred += bias
    return centred.astype(x.dtype)


def _affine(weights: Weights, name: str) -> tuple[Float[ndarray, "..."], Float[ndarray, " out"]]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _recorder(observe: Observer | None, prefix: str = "") -> _Tap:
    """Shows a value to the observer and passes it on; a copy, since later steps may write over it."""

    def tap(name: str, value: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        if observe is not None:
            observe(f"{prefix}{name}", value.copy())
        return value

    return tap
