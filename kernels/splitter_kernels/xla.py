"""The cross-domain transformer in JAX, compiled by XLA.

The same sub-steps as `reference`, which holds the formulae. Values between them are kept in the dtype of the
inputs (float32, bfloat16 or float16); sums, statistics, softmax, biases and scales are float32 in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from itertools import accumulate
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array, lax
from jaxtyping import Float
from numpy.typing import NDArray

from . import taps as points
from .inputs import check_inputs
from .spec import BRANCHES, POSITIONS, Branch, Config, Kind, SpecError
from .taps import LOGIT_ROWS, Observer

DTYPES = ("float32", "bfloat16", "float16")
Prepared: TypeAlias = Mapping[str, Any]  # a tensor by name, or a tuple of its parts
_Tap: TypeAlias = Callable[[str, Float[Array, "..."]], Float[Array, "..."]]
_ATTENTION_ROWS = 336  # query rows of one head at a time: their logits stay in the cache
_HIDDEN = 256  # channels of the hidden layer at a time: sums of more terms lose digits and speed on a CPU
_TERMS = 128  # input channels of an attention's last projection at a time, for the same reason


def prepared(weights: Mapping[str, Any]) -> Prepared:
    """The weights on the device, as `compiled` functions take them.

    The matrices that are used in parts (query, key and value; so many channels at a time) are taken apart here. In
    the compiled function every part would be copied in every run, and all copies held at once.
    """
    found: dict[str, Any] = {}
    for name, value in weights.items():
        placed: Any = np.asarray(value)
        if ".in_proj_" in name:
            placed = tuple(np.split(placed, 3))
        elif name.endswith(".out_proj.weight"):
            placed = _parts(placed, _TERMS)
        elif name.endswith(".linear2.weight"):
            placed = _parts(placed, _HIDDEN)
        elif ".linear1." in name:
            placed = tuple(np.split(placed, range(_HIDDEN, len(placed), _HIDDEN)))
        found[name] = jax.device_put(placed)  # at once: what was taken apart here is not held twice for long
    return found


def _parts(matrix: NDArray[Any], width: int) -> tuple[NDArray[Any], ...]:
    """A matrix by so many of its input channels."""
    return tuple(map(np.ascontiguousarray, np.split(matrix, range(width, matrix.shape[1], width), axis=1)))


def compiled(config: Config, taps: Collection[str] = ()) -> Callable[..., Any]:
    """The transformer as one compiled function of `prepared` weights, frequency and time branch.

    Args:
        config: The configuration the weights fit.
        taps: Names of `taps.taps` to observe.

    Returns:
        A function that gives both branches or, if anything is observed, both branches and the observed values by
        name. It raises `SpecError` for inputs that do not fit the configuration or are not of `DTYPES`.

    Raises:
        SpecError: A tap of that name does not exist.
    """
    if unknown := sorted(set(taps) - points.taps(config).keys()):
        raise SpecError(f"taps must be among those of kernels.taps for this configuration; got {unknown}")
    traced = partial(_tapped, config, frozenset(taps)) if taps else partial(transformer, config)
    jitted = jax.jit(traced, compiler_options=compiler_options())

    def checked(weights: Mapping[str, Any], freq: Any, time: Any) -> Any:
        check_inputs(config, freq, time, DTYPES)
        return jitted(weights, freq, time)

    return checked


@cache
def compiler_options() -> dict[str, str]:
    """Matrix products by Eigen where this XLA has the choice, rather than by YNNPACK.

    YNNPACK adds all terms of a product in one row of float32 sums: 122 dB over 2048 terms, where Eigen has 132, and
    it is slower.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(jnp.negative, compiler_options=options).lower(jnp.float32(0)).compile()
    except jax.errors.JaxRuntimeError:  # an XLA that does not know it
        return {}
    return options


def _tapped(
    config: Config,
    taps: frozenset[str],
    weights: Prepared,
    freq: Float[Array, "batch channels bins frames"],
    time: Float[Array, "batch channels samples"],
) -> tuple[Float[Array, "..."], Float[Array, "..."], dict[str, Float[Array, "..."]]]:
    found: dict[str, Float[Array, "..."]] = {}

    def observe(name: str, value: Float[Array, "..."]) -> None:
        if name in taps:
            found[name] = value

    return *transformer(config, weights, freq, time, observe=observe), found


def transformer(
    config: Config,
    weights: Prepared,
    freq: Float[Array, "batch channels bins frames"],
    time: Float[Array, "batch channels samples"],
    *,
    observe: Observer | None = None,
) -> tuple[Float[Array, "batch channels bins frames"], Float[Array, "batch channels samples"]]:
    """Run all layers of both branches; see `reference.transformer`."""
    tap = _recorder(observe)
    frames = freq.shape[3]
    x = {"": rearrange(freq, "b c f t -> b (t f) c"), "_t": rearrange(time, "b c t -> b t c")}
    tokens: dict[Branch, Float[Array, "batch tokens channels"]] = {}
    for branch in BRANCHES:
        tap(f"input{branch}", time if branch else freq)
        normed = tap(f"norm_in{branch}", _layer_norm(weights, f"norm_in{branch}", x[branch], config.eps))
        embedded = _wide(normed) + _wide(weights[POSITIONS[branch]])
        tokens[branch] = tap(f"embedded{branch}", embedded.astype(freq.dtype))
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
    weights: Prepared,
    prefix: str,
    x: Float[Array, "batch tokens channels"],
    source: Float[Array, "batch sources channels"] | None,
    observe: Observer | None,
) -> Float[Array, "batch tokens channels"]:
    tap = _recorder(observe, f"{prefix}.")
    kind: Kind = "self" if source is None else "cross"

    def norm(name: str, value: Float[Array, "batch n channels"]) -> Float[Array, "batch n channels"]:
        return tap(name, _layer_norm(weights, f"{prefix}.{name}", value, config.eps))

    def add(
        number: int, value: Float[Array, "batch n channels"], branch: Float[Array, "batch n channels"]
    ) -> Float[Array, "batch n channels"]:
        scaled = _wide(weights[f"{prefix}.gamma_{number}.scale"]) * _wide(branch)
        scaled = tap(f"gamma_{number}", scaled.astype(x.dtype))
        return tap(f"residual_{number}", (_wide(value) + _wide(scaled)).astype(x.dtype))

    queries = norm("norm1", x)
    sources = queries if source is None else norm("norm2", source)
    y = add(1, x, tap(f"{kind}_attn", _attention(config, weights, prefix, kind, queries, sources, tap)))
    hidden = norm("norm2" if source is None else "norm3", y)
    z = add(2, y, tap("linear2", _feed_forward(weights, prefix, hidden, tap)))
    return tap("norm_out", _group_norm(weights, f"{prefix}.norm_out", z, config.eps))


def _attention(
    config: Config,
    weights: Prepared,
    prefix: str,
    kind: Kind,
    queries: Float[Array, "batch tokens channels"],
    sources: Float[Array, "batch sources channels"],
    tap: _Tap,
) -> Float[Array, "batch tokens channels"]:
    name, dtype = f"{prefix}.{kind}_attn", queries.dtype
    matrices, biases = weights[f"{name}.in_proj_weight"], weights[f"{name}.in_proj_bias"]
    q, k, v = (
        tap(letter, rearrange(_linear(x, [w], b).astype(dtype), "b n (h d) -> b h n d", h=config.heads))
        for letter, x, w, b in zip("qkv", (queries, sources, sources), matrices, biases, strict=True)
    )
    q = q * (config.width // config.heads) ** -0.5
    tap("logits", _products(q[:, :, :LOGIT_ROWS], k).astype(dtype))
    mixed = tap("heads", lax.platform_dependent(q, k, v, cpu=_heads_in_turn, default=_heads_at_once))
    concatenated = rearrange(mixed, "b h n d -> b n (h d)")
    return _linear(concatenated, weights[f"{name}.out_proj.weight"], weights[f"{name}.out_proj.bias"]).astype(dtype)


def _heads_in_turn(
    q: Float[Array, "batch heads tokens depth"],
    k: Float[Array, "batch heads sources depth"],
    v: Float[Array, "batch heads sources depth"],
) -> Float[Array, "batch heads tokens depth"]:
    """``softmax(q kᵀ) v``, so many rows of one head at a time that the logits stay in a processor's cache."""

    def head(qkv: tuple[Array, Array, Array]) -> Float[Array, "tokens depth"]:
        rows, keys, values = qkv
        return lax.map(lambda row: _attend(row[None], keys, values)[0], rows, batch_size=_ATTENTION_ROWS)

    mixed = lax.map(head, tuple(rearrange(x, "b h n d -> (b h) n d") for x in (q, k, v)))
    return rearrange(mixed, "(b h) n d -> b h n d", h=q.shape[1])


def _heads_at_once(
    q: Float[Array, "batch heads tokens depth"],
    k: Float[Array, "batch heads sources depth"],
    v: Float[Array, "batch heads sources depth"],
) -> Float[Array, "batch heads tokens depth"]:
    """``softmax(q kᵀ) v`` with some rows of all heads at a time, for devices that want wide work."""
    rows = lax.map(
        lambda row: _attend(row[:, :, None], k, v)[:, :, 0], rearrange(q, "b h n d -> n b h d"),
        batch_size=_ATTENTION_ROWS,
    )  # fmt: skip
    return rearrange(rows, "n b h d -> b h n d")


def _attend(
    q: Float[Array, "*batch tokens depth"],
    k: Float[Array, "*batch sources depth"],
    v: Float[Array, "*batch sources depth"],
) -> Float[Array, "*batch tokens depth"]:
    """``softmax(q kᵀ) v``, divided by the softmax's sum at the end: depth divisions a row instead of sources."""
    logits = _products(q, k)
    powers = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    mixed = jnp.matmul(powers.astype(v.dtype), v, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    return (mixed / powers.sum(axis=-1, keepdims=True)).astype(q.dtype)


def _feed_forward(
    weights: Prepared, prefix: str, x: Float[Array, "batch tokens channels"], tap: _Tap
) -> Float[Array, "batch tokens channels"]:
    first, second = f"{prefix}.linear1", f"{prefix}.linear2"
    parts = zip(weights[f"{first}.weight"], weights[f"{first}.bias"], weights[f"{second}.weight"], strict=True)
    total = _wide(weights[f"{second}.bias"])
    hidden, active = [], []
    for w_1, b_1, w_2 in parts:
        hidden.append(_linear(x, [w_1], b_1).astype(x.dtype))
        active.append(jax.nn.gelu(_wide(hidden[-1]), approximate=False).astype(x.dtype))
        total = total + _products(active[-1], w_2)
    tap("linear1", jnp.concatenate(hidden, axis=-1))
    tap("gelu", jnp.concatenate(active, axis=-1))
    return total.astype(x.dtype)


def _linear(
    x: Float[Array, "batch tokens in"], weight: Sequence[Float[Array, "out part"]], bias: Float[Array, " out"]
) -> Float[Array, "batch tokens out"]:
    """``x Wᵀ + b`` in float32, W given by input channels."""
    starts = accumulate((part.shape[1] for part in weight), initial=0)
    sums = [_products(x[..., start : start + part.shape[1]], part) for start, part in zip(starts, weight, strict=False)]
    return sum(sums[1:], sums[0]) + _wide(bias)


def _products(a: Float[Array, "*batch n in"], b: Float[Array, "*shared m in"]) -> Float[Array, "*batch n m"]:
    """``a bᵀ``: the operands in the dtype of ``a``, sums in float32."""
    return jnp.einsum(
        "...nk,...mk->...nm", a, b.astype(a.dtype),
        precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
    )  # fmt: skip


def _layer_norm(
    weights: Prepared, name: str, x: Float[Array, "batch tokens channels"], eps: float
) -> Float[Array, "batch tokens channels"]:
    return _normalise(weights, name, x, eps, lambda value: value.mean(axis=-1, keepdims=True))


def _group_norm(
    weights: Prepared, name: str, x: Float[Array, "batch tokens channels"], eps: float
) -> Float[Array, "batch tokens channels"]:
    """Over all tokens and channels, in two levels: see `reference.group_norm`."""
    return _normalise(
        weights, name, x, eps, lambda value: value.mean(axis=-1, keepdims=True).mean(axis=-2, keepdims=True)
    )


def _normalise(
    weights: Prepared, name: str, x: Float[Array, "batch tokens channels"], eps: float, mean: Callable[[Array], Array]
) -> Float[Array, "batch tokens channels"]:
    centred = _wide(x) - mean(_wide(x))
    normed = centred * lax.rsqrt(mean(jnp.square(centred)) + eps)
    return (normed * _wide(weights[f"{name}.weight"]) + _wide(weights[f"{name}.bias"])).astype(x.dtype)


def _wide(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return x.astype(jnp.float32)


def _recorder(observe: Observer | None, prefix: str = "") -> _Tap:
    """Shows a value to the observer and passes it on."""

    def tap(name: str, value: Float[Array, "..."]) -> Float[Array, "..."]:
        if observe is not None:
            observe(f"{prefix}{name}", value)
        return value

    return tap
