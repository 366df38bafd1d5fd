"""Weights as small integers with scales, and as palettes: tables of a few values, of the least squared error."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
_CELLS = 4096


def integers(rows: Array, bits: int = 8) -> tuple[Array, Array]:
    """``q = rint(w / s)`` int8 ``(rows, columns)`` with ``s = max |row| / 127``, 1 for a row of zeros, float32
    ``(rows,)``: no weight is further off than s / 2. Of 4 bits the largest is 7."""
    largest = 2 ** (bits - 1) - 1
    scales = np.abs(rows).max(axis=1).astype(np.float32) / np.float32(largest)
    scales = np.where(scales > 0, scales, np.float32(1))
    quotients = np.rint(rows.astype(np.float64) / scales[:, None])
    return np.clip(quotients, -largest, largest).astype(np.int8), scales


def palette(values: Array, count: int) -> Array:
    """k-means in one dimension, float32 ``(count,)``, ascending. Nothing is drawn at random: the same values give the
    same table.

    A matrix with no more different values than entries keeps them all. Otherwise the table has the least squared
    error there is; beyond some thousand different values, the least of those that part no two values of a cell. Cells
    are of one width, for the values far out, and of one mass, for the many in the middle.
    """
    different, counts = np.unique(values.astype(np.float64), return_counts=True)
    if len(different) <= count:
        table = np.concatenate([different, np.full(count - len(different), different[-1])])
        return table.astype(np.float32)
    starts = np.arange(len(different))
    if len(different) > 2 * _CELLS:
        shares = np.linspace(0, 1, _CELLS + 1)
        edges = np.union1d(np.quantile(values, shares), different[0] + shares * (different[-1] - different[0]))
        starts = np.unique(np.searchsorted(different, edges[:-1]))
    from coremltools._deps import kmeans1d  # Core ML Tools take a second, and readers of a palette need none of it

    masses = np.add.reduceat(counts, starts)
    means = np.add.reduceat(counts * different, starts) / masses
    return np.array(kmeans1d.cluster(means, count, weights=masses).centroids, np.float32)


def nearest(table: Array, values: Array) -> Array:
    """Index of each value's nearest entry of an ascending table of no more than 256; the lower one of two as near."""
    middles = _middles(table.astype(np.float64))
    return np.searchsorted(middles, values.ravel().astype(np.float64)).astype(np.uint8).reshape(values.shape)


def _middles(ascending: Array) -> Array:
    middles: Array = (ascending[1:] + ascending[:-1]) / 2
    return middles
