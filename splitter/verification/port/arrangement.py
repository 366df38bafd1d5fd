"""Values that are right and lie in another place: axes permuted, or the entries along one axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...boundary import Array, is_finite
from ...parity import compare

_MOST_ENTRIES = 64  # along an axis whose order is looked for: channels, stems, heads; not samples


def arrangement(expected: Array, dumped: Array, axes: Sequence[str], extents: Sequence[int], limit: float) -> str:
    """What order of axes, or of the entries along one, makes the expected values those of a dump.

    Args:
        axes: Names of the expected values' axes; a dump's may lie in another order.
        extents: Of these axes; their product is the size of the values.
        limit: SNR in dB from which values are the same.
    """
    if dumped.size != expected.size or not is_finite(dumped) or not _same_energy(expected, dumped, limit):
        return ""
    wide = [axis for axis, extent in enumerate(extents) if extent != 1]  # the others may lie anywhere
    axes, extents = [axes[axis] for axis in wide], [extents[axis] for axis in wide]
    return _permuted(expected, dumped, axes, extents, limit) or next(
        _ordered(expected, dumped, axes, extents, limit), ""
    )


def _same_energy(expected: Array, dumped: Array, limit: float) -> bool:
    energies = (np.linalg.norm(_wide(values).ravel()) for values in (expected, dumped))
    return math.isclose(*energies, rel_tol=10 ** (-limit / 20))  # which no order changes


def _permuted(expected: Array, dumped: Array, axes: Sequence[str], extents: Sequence[int], limit: float) -> str:
    same = tuple(range(len(axes)))
    for order in itertools.permutations(same):
        if order == same and dumped.shape == expected.shape:
            continue
        candidate = expected.reshape(extents).transpose(order).reshape(dumped.shape)
        if _reaches(candidate, dumped, limit):
            got = " ".join(axes[axis] for axis in order)
            if order == same:
                return f"wrong shape: the values lie right, but as {dumped.shape} instead of {expected.shape}"
            return f"permuted: the values lie as {got!r}, the tap is {' '.join(axes)!r}"
    return ""


def _ordered(
    expected: Array, dumped: Array, axes: Sequence[str], extents: Sequence[int], limit: float
) -> Iterator[str]:
    if dumped.shape != expected.shape:
        return
    model, port = expected.reshape(extents), dumped.reshape(extents)
    for axis, count in enumerate(extents):
        if not 1 < count <= _MOST_ENTRIES:
            continue
        rows = [_wide(np.moveaxis(values, axis, 0).reshape(count, -1)) for values in (model, port)]
        distances = np.stack([np.abs(rows[0] - row).sum(axis=1) for row in rows[1]])
        order = distances.argmin(axis=1)
        if (order == np.arange(count)).all() or len(set(order)) != count:
            continue
        if _reaches(np.take(model, order, axis), port, limit):
            yield f"channel order: along axis {axes[axis]} lie the model's entries {' '.join(map(str, order))}"


def _wide(values: Array) -> Array:
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _reaches(reference: Array, candidate: Array, limit: float) -> bool:
    snr = compare(np.ascontiguousarray(reference), candidate).snr_db
    return snr is not None and snr >= limit
