"""Elements by their index.

A compiled program cannot raise. Where an index lies beyond its table, what is read is NaN, and what is written makes
the whole result NaN: the boundary check stops there. Integers have no NaN: they come as the least of their type.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import cast, is_floating, operator


@operator("embedding.default")
def embedding(weight: jax.Array, indices: jax.Array) -> jax.Array:
    return weight.at[_from_front(indices, len(weight))].get(mode="fill")


@operator("index_select.default")
def index_select(x: jax.Array, dim: int, index: jax.Array) -> jax.Array:
    if not x.ndim:
        return x
    return x.at[_placed(x, dim, index.reshape(-1))].get(mode="fill")


@operator("gather.default")
def gather(x: jax.Array, dim: int, index: jax.Array) -> jax.Array:
    if not index.size:
        return jnp.zeros(index.shape, x.dtype)
    if not x.ndim:
        return jnp.broadcast_to(x, index.shape)
    return x.at[_everywhere(x, dim, index)].get(mode="fill")


@operator("index.Tensor")
def index(x: jax.Array, indices: list[jax.Array | None]) -> jax.Array:
    """As NumPy's: axes without an index are taken whole, negative indices count from the end."""
    return x.at[_several(indices)].get(mode="fill")


@operator("index_put.default")
def index_put(x: jax.Array, indices: list[jax.Array | None], values: jax.Array, accumulate: bool) -> jax.Array:
    places, written = x.at[_several(indices)], cast(values, x.dtype)
    outside = [_outside(part, x.shape[axis]) for axis, part in enumerate(indices) if part is not None]
    result = places.add(written, mode="drop") if accumulate else places.set(written, mode="drop")
    return _refused(result, outside)


@operator("index_add.default")
def index_add(x: jax.Array, dim: int, index_: jax.Array, source: jax.Array, alpha: float) -> jax.Array:
    """x with alpha · source added to rows along an axis."""
    table, rows = jnp.atleast_1d(x), index_.reshape(-1)
    added = cast(alpha, x.dtype) * source.reshape(_rows_shape(table, dim, rows))
    result = table.at[_placed(table, dim, rows)].add(added, mode="drop").reshape(x.shape)
    return _refused(result, [_outside(rows, table.shape[dim], negative=True)])


@operator("index_copy.default")
def index_copy(x: jax.Array, dim: int, index_: jax.Array, source: jax.Array) -> jax.Array:
    table, rows = jnp.atleast_1d(x), index_.reshape(-1)
    written = source.reshape(_rows_shape(table, dim, rows))
    result = table.at[_placed(table, dim, rows)].set(written, mode="drop").reshape(x.shape)
    return _refused(result, [_outside(rows, table.shape[dim], negative=True)])


@operator("scatter.src")
def scatter(x: jax.Array, dim: int, index_: jax.Array, src: jax.Array) -> jax.Array:
    """Where several elements are written to one place, one of them stays; which is not said."""
    return _scattered(x, dim, index_, src, add=False)


@operator("scatter.value")
def scatter_value(x: jax.Array, dim: int, index_: jax.Array, value: float) -> jax.Array:
    return _scattered(x, dim, index_, jnp.full(index_.shape, value, x.dtype), add=False)


@operator("scatter_add.default")
def scatter_add(x: jax.Array, dim: int, index_: jax.Array, src: jax.Array) -> jax.Array:
    return _scattered(x, dim, index_, src, add=True)


def _scattered(x: jax.Array, dim: int, index_: jax.Array, src: jax.Array, *, add: bool) -> jax.Array:
    if not index_.size:
        return x
    table, places = jnp.atleast_1d(x), jnp.atleast_1d(index_)
    written = jnp.atleast_1d(src)[tuple(slice(extent) for extent in places.shape)]
    at = table.at[_everywhere(table, dim, places)]
    result = at.add(written, mode="drop") if add else at.set(written, mode="drop")
    return _refused(result.reshape(x.shape), [_outside(places, table.shape[dim], negative=True)])


def _from_front(index_: jax.Array, extent: int) -> jax.Array:
    """Indices of an operator that counts none from the end: a negative one lies beyond the table."""
    return jnp.where(index_ < 0, extent, index_)


def _placed(x: jax.Array, dim: int, rows: jax.Array) -> Any:
    """Rows along one axis."""
    axis = dim % x.ndim
    return (*(slice(None),) * axis, _from_front(rows, x.shape[axis]))


def _rows_shape(x: jax.Array, dim: int, rows: jax.Array) -> tuple[int, ...]:
    axis = dim % x.ndim
    return (*x.shape[:axis], len(rows), *x.shape[axis + 1 :])


def _everywhere(x: jax.Array, dim: int, index_: jax.Array) -> Any:
    """The place of every element of an index, which says where it lies along one axis."""
    places: list[Any] = list(np.ix_(*(np.arange(extent) for extent in index_.shape)))
    places[dim] = _from_front(index_, x.shape[dim])
    return tuple(places)


def _several(indices: list[jax.Array | None]) -> Any:
    return tuple(slice(None) if part is None else part for part in indices)


def _outside(index_: jax.Array, extent: int, *, negative: bool = False) -> jax.Array:
    """Whether an index lies beyond its table."""
    if index_.dtype == bool:
        return jnp.zeros((), bool)
    return ((index_ >= extent) | (index_ < (0 if negative else -extent))).any()


def _refused(result: jax.Array, outside: list[jax.Array]) -> jax.Array:
    if not is_floating(result) or not outside:
        return result
    return jnp.where(jnp.stack(outside).any(), jnp.asarray(np.nan, result.dtype), result)
