"""One parameter → the tensors that are stored for it."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitter.errors import LoweringError
from splitter.kernels import compression
from splitter.kernels.compression import Kind
from splitter.plan import WeightsForm

from .form import Parameter, Role

Array: TypeAlias = NDArray[Any]
_LARGEST_INT8 = 127
_MOST_ITERATIONS = 1000  # a hundred is usual


def encode(name: str, parameter: Parameter, values: Array, form: WeightsForm) -> dict[Role, Array]:
    """The tensors that stand for a parameter, by role; `decode` undoes it.

    Raises:
        LoweringError: The values do not fit the element type, or cannot be compressed.
    """
    if not parameter.is_matrix:
        return {"values": np.ascontiguousarray(values, np.float32)}
    if form.compress == "none":
        return {"values": _rounded(name, values, form)}
    if not np.isfinite(values).all():
        raise LoweringError(
            f"{name!r} must be finite to be compressed", received="NaN or infinity", fix="Leave --compress out."
        )
    if form.compress == "int8":
        return dict(zip(("int8", "scales"), _int8(values), strict=True))
    return dict(zip(("indices", "table"), _palette(values, form.compress), strict=True))


def decode(parameter: Parameter, tensors: dict[Role, Array], form: WeightsForm) -> Array:
    """A parameter in float32, as the kernels take it."""
    if "values" in tensors:
        return tensors["values"].astype(np.float32)
    rows, columns = parameter.shape
    decoded: Array = compression.decode(form.compress, (rows, columns), tensors)  # type: ignore[arg-type]
    return decoded


def _rounded(name: str, values: Array, form: WeightsForm) -> Array:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(values, form.matrices.dtype)
    if np.isfinite(values).all() and not np.isfinite(rounded).all():
        raise LoweringError(
            f"{name!r} must fit half precision, which ends at 65,504",
            received=f"a weight of {np.abs(values).max():g}",
            fix="Build with --weights-dtype fp32.",
        )
    return rounded


def _int8(values: Array) -> tuple[Array, Array]:
    """``q = rint(w / s)`` with ``s = max |row| / 127``, 1 for a row of zeros: no weight is further off than s / 2."""
    scales = np.abs(values).max(axis=1).astype(np.float32) / np.float32(_LARGEST_INT8)
    scales = np.where(scales > 0, scales, np.float32(1))
    quotients = np.rint(values.astype(np.float64) / scales[:, None])
    return np.clip(quotients, -_LARGEST_INT8, _LARGEST_INT8).astype(np.int8), scales


def _palette(values: Array, kind: Kind) -> tuple[Array, Array]:
    """A table that is near the least squared error, and the packed index of each weight's nearest entry."""
    n = compression.bits(kind)
    table = _centroids(values, 2**n)
    middles = _middles(table.astype(np.float64))
    indices = np.searchsorted(middles, values.ravel().astype(np.float64)).astype(np.uint8)
    stream = np.unpackbits(indices[:, None], axis=1, count=n, bitorder="little")
    return np.packbits(stream.ravel(), bitorder="little"), table


def _centroids(values: Array, count: int) -> Array:
    """k-means in one dimension, ascending: Lloyd's iterations until nothing moves, from two starts.

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
    nearest = centroids[np.searchsorted(_middles(centroids), different)]
    return float(np.sum(counts * (different - nearest) ** 2))


def _middles(ascending: Array) -> Array:
    middles: Array = (ascending[1:] + ascending[:-1]) / 2
    return middles
