"""Sub-steps of the transformer, each one dispatch (group norm: three) on arrays of the library's storage type.

What a port's host code has to do: how many threadgroups, how much threadgroup memory, which buffers. Shapes are
those of `kernels.reference` without the batch axis.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int8, UInt8
from numpy import ndarray
from numpy.typing import NDArray

from .errors import LaunchError
from .library import Library

LANES = 32  # threads that share a token
_MOMENT_LANES = 256  # threads of the one threadgroup that sums over tokens
_EACH = 256  # threads of a group where every element has one of its own


def to_tokens(library: Library, x: Float[ndarray, "channels bins frames"]) -> Float[ndarray, "tokens channels"]:
    """``c f t -> (t f) c``"""
    channels, bins, frames = x.shape
    return _transposed(library, "to_tokens", x, (bins * frames, channels), (frames, channels, bins))


def from_tokens(
    library: Library, x: Float[ndarray, "tokens channels"], bins: int
) -> Float[ndarray, "channels bins frames"]:
    """``(t f) c -> c f t``"""
    frames, channels = x.shape[0] // bins, x.shape[1]
    return _transposed(library, "from_tokens", x, (channels, bins, frames), (channels, frames, bins))


def add_positions(
    library: Library, x: Float[ndarray, "tokens channels"], positions: Float[ndarray, "tokens channels"]
) -> Float[ndarray, "tokens channels"]:
    """``x + positions``"""
    return _each(library, "add_positions", x, positions=positions)


def layer_norm(
    library: Library,
    x: Float[ndarray, "tokens channels"],
    weight: Float[ndarray, " channels"],
    bias: Float[ndarray, " channels"],
    eps: float,
) -> Float[ndarray, "tokens channels"]:
    """See `kernels.reference.layer_norm`."""
    y = _empty(library, x.shape)
    library.launch(
        "layer_norm", (x.shape[0], 1, 1), (LANES, 1, 1), {"scratch": LANES},
        x=x, weight=weight, bias=bias, y=y, channels=x.shape[1], eps=eps,
    )  # fmt: skip
    return y


def group_norm(
    library: Library,
    x: Float[ndarray, "tokens channels"],
    weight: Float[ndarray, " channels"],
    bias: Float[ndarray, " channels"],
    eps: float,
) -> Float[ndarray, "tokens channels"]:
    """See `kernels.reference.group_norm`."""
    tokens, channels = x.shape
    means, variances, moments = (np.full(length, np.nan, np.float32) for length in (tokens, tokens, 2))
    library.launch(
        "group_norm_tokens", (tokens, 1, 1), (LANES, 1, 1), {"scratch": LANES},
        x=x, means=means, variances=variances, channels=channels,
    )  # fmt: skip
    library.launch(
        "group_norm_moments", (1, 1, 1), (_MOMENT_LANES, 1, 1), {"scratch": _MOMENT_LANES},
        means=means, variances=variances, moments=moments, tokens=tokens,
    )  # fmt: skip
    return _each(library, "group_norm_apply", x, moments=moments, weight=weight, bias=bias, channels=channels, eps=eps)


def linear(
    library: Library,
    x: Float[ndarray, "tokens inputs"],
    weight: Float[ndarray, "outputs inputs"],
    bias: Float[ndarray, " outputs"],
    *,
    gelu: bool = False,
) -> Float[ndarray, "tokens outputs"]:
    """``x Wᵀ + b``, or GELU of it."""
    size = library.constants["linear"]
    rows, outputs = x.shape[0], weight.shape[0]
    y = _empty(library, (rows, outputs))
    library.launch(
        "linear_gelu" if gelu else "linear",
        (_ceil(outputs, size["COLUMNS"]), _ceil(rows, size["ROWS"]), 1),
        (size["SIDE"], size["SIDE"], 1),
        {"x_tile": size["DEPTH"] * size["ROWS"], "weight_tile": size["DEPTH"] * size["COLUMNS"]},
        x=x, weight=weight, bias=bias, y=y, rows=rows, inputs=x.shape[1], outputs=outputs,
    )  # fmt: skip
    return y


def attention(
    library: Library,
    q: Float[ndarray, "tokens channels"],
    k: Float[ndarray, "sources channels"],
    v: Float[ndarray, "sources channels"],
    heads: int,
) -> Float[ndarray, "tokens channels"]:
    """``softmax(q kᵀ / √d) v`` of every head."""
    count = library.constants["attention"]
    size = q.shape[1] // heads
    y = _empty(library, q.shape)
    square = count["QUERIES"] * count["SOURCES"]
    library.launch(
        "attention", (_ceil(q.shape[0], count["QUERIES"]), heads, 1), (count["THREADS"], 1, 1),
        {
            "q_tile": count["QUERIES"] * size, "k_tile": count["SOURCES"] * size, "v_tile": count["SOURCES"] * size,
            "mixed": count["QUERIES"] * size, "logits": square, "shares": square,
        },
        q=q, k=k, v=v, y=y, tokens=q.shape[0], sources=k.shape[0], channels=q.shape[1], size=size,
        factor=1 / math.sqrt(size),
    )  # fmt: skip
    return y


def attention_logits(
    library: Library,
    q: Float[ndarray, "tokens channels"],
    k: Float[ndarray, "sources channels"],
    heads: int,
    rows: int,
) -> Float[ndarray, "heads rows sources"]:
    """``q kᵀ / √d`` of the first query rows, in float32 whatever the storage."""
    count = library.constants["attention"]
    size = q.shape[1] // heads
    y = np.full((heads, rows, k.shape[0]), np.nan, np.float32)
    library.launch(
        "attention_logits",
        (_ceil(rows, count["QUERIES"]), heads, _ceil(k.shape[0], count["SOURCES"])),
        (count["THREADS"], 1, 1),
        {"q_tile": count["QUERIES"] * size, "k_tile": count["SOURCES"] * size},
        q=q, k=k, y=y, rows=rows, sources=k.shape[0], channels=q.shape[1], size=size, factor=1 / math.sqrt(size),
    )  # fmt: skip
    return y


def scale(
    library: Library, x: Float[ndarray, "tokens channels"], gamma: Float[ndarray, " channels"]
) -> Float[ndarray, "tokens channels"]:
    """``γ x``"""
    return _each(library, "scale", x, gamma=gamma, channels=x.shape[1])


def scale_residual(
    library: Library,
    x: Float[ndarray, "tokens channels"],
    branch: Float[ndarray, "tokens channels"],
    gamma: Float[ndarray, " channels"],
) -> Float[ndarray, "tokens channels"]:
    """``x + γ branch``"""
    return _each(library, "scale_residual", x, branch=branch, gamma=gamma, channels=x.shape[1])


def decode_int8(
    library: Library, q: Int8[ndarray, "outputs inputs"], scales: Float[ndarray, " outputs"]
) -> Float[ndarray, "outputs inputs"]:
    """``w[o, i] = q[o, i] · scales[o]``"""
    w = _empty(library, q.shape)
    library.launch(
        "decode_int8", (_ceil(q.size, _EACH), 1, 1), (_EACH, 1, 1),
        q=q, scales=scales, w=w, count=q.size, columns=q.shape[1],
    )  # fmt: skip
    return w


def decode_palette(
    library: Library, indices: UInt8[ndarray, " bytes"], table: Float[ndarray, " entries"], shape: tuple[int, ...]
) -> Float[ndarray, "..."]:
    """``w.ravel()[i] = table[index i]``: indices of n bits in a row, lowest bits first, for tables of 2ⁿ entries.

    Raises:
        LaunchError: A table of another length than 16, 64 or 256, or a stream that is not as long as the shape asks.
    """
    bits, count = table.size.bit_length() - 1, math.prod(shape)
    if table.size not in (16, 64, 256) or indices.size != _ceil(count * bits, 8):
        raise LaunchError(
            f"a palette has 16, 64 or 256 entries and {shape} needs ⌈{count} n / 8⌉ bytes of n-bit indices; "
            f"got {table.size} entries and {indices.size} bytes"
        )
    w = _empty(library, shape)
    library.launch(
        "decode_palette", (_ceil(count, _EACH), 1, 1), (_EACH, 1, 1),
        indices=indices, table=table, w=w, count=count, bits=bits,
    )  # fmt: skip
    return w


def _empty(library: Library, shape: tuple[int, ...]) -> Float[ndarray, "..."]:
    """NaNs, so that what no thread writes is seen."""
    return np.full(shape, np.nan, library.storage)


def _each(library: Library, kernel: str, x: NDArray[Any], **arguments: Any) -> NDArray[Any]:
    y = _empty(library, x.shape)
    library.launch(kernel, (_ceil(x.size, _EACH), 1, 1), (_EACH, 1, 1), x=x, y=y, count=x.size, **arguments)
    return y


def _transposed(
    library: Library, kernel: str, x: NDArray[Any], shape: tuple[int, ...], extents: tuple[int, int, int]
) -> NDArray[Any]:
    """``extents``: innermost axis of the source, innermost axis of the result, bins."""
    size = library.constants["tokens"]
    side, (inner, outer, bins) = size["SIDE"], extents
    channels, frames = (outer, inner) if kernel == "to_tokens" else (inner, outer)
    y = _empty(library, shape)
    library.launch(
        kernel, (_ceil(inner, side), _ceil(outer, side), bins), (side, side, 1), {"tile": side * size["STRIDE"]},
        x=np.ascontiguousarray(x), y=y, channels=channels, bins=bins, frames=frames,
    )  # fmt: skip
    return y


def _ceil(count: int, part: int) -> int:
    return -(-count // part)
