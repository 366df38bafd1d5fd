"""Weights as small integers with scales, and as palettes: tables of a few values, near the least squared error."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
_MOST_ITERATIONS = 1000  # a hundred is usual
_LARGEST_INT8 = 127


def integers(rows: Array) -> tuple[Array, Array]:
    """``q = rint(w / s)`` int8 ``(rows, columns)`` with ``s = max |row| / 127``, 1 for a row of zeros, float32
    ``(rows,)``: no weight is further off than s / 2."""
    scales = np.abs(rows).max(axis=1).astype(np.float32) / np.float32(_LARGEST_INT8)
    scales = np.where(scales > 0, scales, np.float32(1))
    quotients = np.rint(rows.astype(np.float64) / scales[:, None])
    return np.clip(quotients, -_LARGEST_INT8, _LARGEST_INT8).astype(np.int8), scales


def palette(values: Array, count: int) -> Array:
    """k-means in one dimension, float32 ``(count,)``, ascending: Lloyd's iterations until nothing moves, from two
    starts. Nothing is drawn at random: the same values give the same table.

    A matrix with no more different values than entries keeps them all. Otherwise the density of entries is
    proportional to the cube root of the values' density, which is the best for many entries (Panter and Dite, 1951):
    measured once in cells of one width, which do justice to the middle, and once in cells of one mass, which do to
    the tails. The better result is within a decibel of the best palette.
    """
    different, counts = np.unique(values.astype(np.float64), return_counts=True)
    if len(different) <= count:
        table = np.concatenate([different, np.full(count - len(different), different[-1])])
        return table.astype(np.float32)
    even = np.linspace(different[0], different[-1], 2 * count + 1)
    massive = np.unique(np.quantile(values.astype(np.float64), np.linspace(0, 1, 2 * count + 1)))
    found = [_lloyd(different, counts, _start(different, counts, edges, count)) for edges in (even, massive)]
    return min(found, key=lambda centroids: _error(different, counts, centroids)).astype(np.float32)


def nearest(table: Array, values: Array) -> Array:
    """Index of each value's nearest entry of an ascending table of no more than 256; the lower one of two as near."""
    middles = _middles(table.astype(np.float64))
    return np.searchsorted(middles, values.ravel().astype(np.float64)).astype(np.uint8).reshape(values.shape)


def _start(different: Array, counts: Array, edges: Array, count: int) -> Array:
    """Entries spread over the cells between the edges by ``∛density · width = ∛(mass · width²)``."""
    mass, _ = np.histogram(different, edges, weights=counts)
    level = np.concatenate([[0], np.cumsum(np.cbrt(mass * np.diff(edges) ** 2))])
    return np.interp((np.arange(count) + 0.5) / count * level[-1], level, edges)


def _lloyd(different: Array, counts: Array, start: Array) -> Array:
    """Move each entry to the mean of the values nearest to it, until none moves. On sorted values these are a range,
    and their mean is a difference of running sums."""
    counted = np.concatenate([[0], np.cumsum(counts)])
    summed = np.concatenate([[0], np.cumsum(counts * different)])
    moved = start
    for _ in range(_MOST_ITERATIONS):
        centroids = moved
        ends = np.concatenate([[0], np.searchsorted(different, _middles(centroids)), [len(different)]])
        held = np.diff(counted[ends])
        moved = np.where(held > 0, np.diff(summed[ends]) / np.maximum(held, 1), centroids)  # an empty cell stays
        if np.array_equal(moved, centroids):
            break
    return moved


def _error(different: Array, counts: Array, centroids: Array) -> float:
    closest = centroids[np.searchsorted(_middles(centroids), different)]
    return float(np.sum(counts * (different - closest) ** 2))


def _middles(ascending: Array) -> Array:
    middles: Array = (ascending[1:] + ascending[:-1]) / 2
    return middles
