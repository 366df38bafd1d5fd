"""Views and copies: where elements lie, what they are cast to, padding. Nothing is computed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ...graph.shapes import TensorType
from . import axes_of, cast, dtype_of, operator, unknown

_PADDING = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@operator(
    "view.default", "reshape.default", "flatten.using_ints", "unflatten.int", "unsqueeze.default",
    "squeeze.default", "squeeze.dim", "squeeze.dims",
    implied=("size", "shape", "sizes", "start_dim", "end_dim", "dim"),
)  # fmt: skip
def reshape(x: jax.Array, result: TensorType) -> jax.Array:
    return x.reshape(result.shape)


@operator("expand.default", "broadcast_to.default", implied=("size",))
def expand(x: jax.Array, result: TensorType) -> jax.Array:
    return jnp.broadcast_to(x, result.shape)


@operator("expand_as.default", implied=("other",))
def expand_as(x: jax.Array, result: TensorType) -> jax.Array:
    return jnp.broadcast_to(x, result.shape)


@operator(
    "clone.default", "contiguous.default", "detach.default", "alias.default", "lift_fresh_copy.default",
    "resolve_conj.default",
)  # fmt: skip
def identity(x: jax.Array) -> jax.Array:
    return x


@operator("to.dtype", "to.dtype_layout", "_to_copy.default", implied=("dtype",))
def to(x: jax.Array, result: TensorType) -> jax.Array:
    return cast(x, dtype_of(result))


@operator("type_as.default", implied=("other",))
def type_as(x: jax.Array, result: TensorType) -> jax.Array:
    return cast(x, dtype_of(result))


@operator("copy.default")
def copy(x: jax.Array, src: jax.Array) -> jax.Array:
    """src, in the shape and element type of x."""
    return jnp.broadcast_to(cast(src, x.dtype), x.shape)


# ------------------------------------------------------------------------------------------ axes


@operator("permute.default")
def permute(x: jax.Array, dims: list[int]) -> jax.Array:
    return x.transpose(dims)


@operator("transpose.int")
def transpose(x: jax.Array, dim0: int, dim1: int) -> jax.Array:
    return x.swapaxes(dim0, dim1) if x.ndim else x


@operator("t.default")
def t(x: jax.Array) -> jax.Array:
    return x.T


@operator("movedim.int", "movedim.intlist")
def movedim(x: jax.Array, source: Any, destination: Any) -> jax.Array:
    return jnp.moveaxis(x, source, destination) if x.ndim else x


@operator("diagonal.default")
def diagonal(x: jax.Array, offset: int, dim1: int, dim2: int) -> jax.Array:
    return jnp.diagonal(x, offset, dim1, dim2)


@operator("flip.default")
def flip(x: jax.Array, dims: list[int]) -> jax.Array:
    return jnp.flip(x, axes_of(dims, x.ndim)) if dims else x


@operator("roll.default")
def roll(x: jax.Array, shifts: list[int], dims: list[int]) -> jax.Array:
    """Along all axes in a row where none is given."""
    if dims:
        return jnp.roll(x, tuple(shifts), tuple(dims))
    return jnp.roll(x, shifts[0])


@operator("tril.default")
def tril(x: jax.Array, diagonal_: int) -> jax.Array:
    return jnp.tril(x, diagonal_)


@operator("triu.default")
def triu(x: jax.Array, diagonal_: int) -> jax.Array:
    return jnp.triu(x, diagonal_)


# ----------------------------------------------------------------------------------------- parts


@operator("select.int")
def select(x: jax.Array, dim: int, index: int) -> jax.Array:
    return x[_along(x, dim, index)]


@operator("slice.Tensor")
def slice_(x: jax.Array, dim: int, start: int | None, end: int | None, step: int) -> jax.Array:
    return x[_along(x, dim, slice(start, end, step))]


@operator("narrow.default")
def narrow(x: jax.Array, dim: int, start: int, length: int) -> jax.Array:
    first = start % x.shape[dim] if start < 0 else start
    return x[_along(x, dim, slice(first, first + length))]


@operator("split.Tensor")
def split(x: jax.Array, split_size: int, dim: int) -> list[jax.Array]:
    """Parts of this extent; the last may have less."""
    extent = x.shape[dim]
    starts = range(0, extent, split_size) if extent else (0,)
    return [x[_along(x, dim, slice(start, start + split_size))] for start in starts]


@operator("split_with_sizes.default")
def split_with_sizes(x: jax.Array, split_sizes: list[int], dim: int) -> list[jax.Array]:
    parts, start = [], 0
    for size in split_sizes:
        parts.append(x[_along(x, dim, slice(start, start + size))])
        start += size
    return parts


@operator("chunk.default")
def chunk(x: jax.Array, chunks: int, dim: int) -> list[jax.Array]:
    """So many parts at most, all alike but the last."""
    return split(x, max(-(-x.shape[dim] // chunks), 1), dim)


@operator("unbind.int")
def unbind(x: jax.Array, dim: int) -> list[jax.Array]:
    return [x[_along(x, dim, place)] for place in range(x.shape[dim])]


@operator("slice_scatter.default")
def slice_scatter(x: jax.Array, src: jax.Array, dim: int, start: int | None, end: int | None, step: int) -> jax.Array:
    return x.at[_along(x, dim, slice(start, end, step))].set(cast(src, x.dtype))


@operator("select_scatter.default")
def select_scatter(x: jax.Array, src: jax.Array, dim: int, index: int) -> jax.Array:
    return x.at[_along(x, dim, index)].set(cast(src, x.dtype))


def _along(x: jax.Array, dim: int, part: int | slice) -> Any:
    """An index that takes a part of one axis."""
    return tuple(part if axis == dim % x.ndim else slice(None) for axis in range(x.ndim))


# -------------------------------------------------------------------------------------- together


@operator("cat.default")
def cat(tensors: list[jax.Array], dim: int, result: TensorType) -> jax.Array:
    """Vectors without elements fit anywhere."""
    parts = [cast(tensor, dtype_of(result)) for tensor in tensors if tensor.shape != (0,)]
    return jnp.concatenate(parts, dim) if parts else jnp.zeros(result.shape, dtype_of(result))


@operator("stack.default")
def stack(tensors: list[jax.Array], dim: int, result: TensorType) -> jax.Array:
    return jnp.stack([cast(tensor, dtype_of(result)) for tensor in tensors], dim)


@operator("meshgrid.indexing")
def meshgrid(tensors: list[jax.Array], indexing: str) -> list[jax.Array]:
    return jnp.meshgrid(*(tensor.reshape(-1) for tensor in tensors), indexing=indexing)


@operator("repeat.default")
def repeat(x: jax.Array, repeats: list[int]) -> jax.Array:
    return jnp.tile(x, tuple(repeats))


@operator("tile.default")
def tile(x: jax.Array, dims: list[int]) -> jax.Array:
    return jnp.tile(x, tuple(dims))


@operator("repeat_interleave.self_int", implied=("output_size",))
def repeat_interleave(x: jax.Array, repeats: int, dim: int | None) -> jax.Array:
    return jnp.repeat(x, repeats, dim)


# --------------------------------------------------------------------------------------- padding


@operator("constant_pad_nd.default")
def constant_pad(x: jax.Array, pad: list[int], value: float) -> jax.Array:
    """Sides from the last axis to the first; a negative one takes elements away."""
    sides = [(before, after, 0) for before, after in pad_sides(pad, x.ndim)]
    return lax.pad(x, cast(value, x.dtype), sides)


@operator("pad.default")
def pad_(x: jax.Array, pad: list[int], mode: str, value: float | None) -> jax.Array:
    """What is beyond the edge: a value, or x mirrored, its last element, or x again."""
    if mode == "constant":
        return constant_pad(x, pad, value or 0.0)
    if min(pad, default=0) < 0:
        raise unknown(f"padding by {mode} takes no elements away", pad)
    return jnp.pad(x, pad_sides(pad, x.ndim), _PADDING[mode])


def pad_sides(pad: list[int], rank: int) -> list[tuple[int, int]]:
    """Elements before and after each axis; the list begins with the last axis."""
    sides = [(pad[2 * at], pad[2 * at + 1]) for at in range(len(pad) // 2)]
    return [(0, 0)] * (rank - len(sides)) + sides[::-1]


# ---------------------------------------------------------------------------------------- pixels


@operator("pixel_shuffle.default")
def pixel_shuffle(x: jax.Array, upscale_factor: int) -> jax.Array:
    """(…, c · r², h, w) → (…, c, h · r, w · r)"""
    *before, channels, height, width = x.shape
    r = upscale_factor
    y = x.reshape(-1, channels // r**2, r, r, height, width).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(*before, channels // r**2, height * r, width * r)


@operator("pixel_unshuffle.default")
def pixel_unshuffle(x: jax.Array, downscale_factor: int) -> jax.Array:
    """(…, c, h · r, w · r) → (…, c · r², h, w)"""
    *before, channels, height, width = x.shape
    r = downscale_factor
    y = x.reshape(-1, channels, height // r, r, width // r, r).transpose(0, 1, 3, 5, 2, 4)
    return y.reshape(*before, channels * r**2, height // r, width // r)
