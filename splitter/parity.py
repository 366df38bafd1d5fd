"""How far one tensor is from another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .boundary import Array, is_finite


@dataclass(frozen=True)
class Parity:
    """Distance of a candidate x from a reference r.

    Attributes:
        snr_db: ``10 log10(Σ r² / Σ (r − x)²)``; infinite for equal tensors, None ("n/a") where the
            reference is silent, which no number of decibels can describe.
        max_abs: ``max |r − x|``; NaN or infinite if x is.
        cosine: ``Σ r x / √(Σ r² Σ x²)``; None where either is silent.
        finite: Neither tensor holds a NaN or an infinity.
    """

    snr_db: float | None
    max_abs: float
    cosine: float | None
    finite: bool

    @property
    def relative(self) -> float | None:
        """``√(Σ (r − x)² / Σ r²)``; None where the SNR is."""
        return None if self.snr_db is None else 10 ** (-self.snr_db / 20)

    def reaches(self, snr_db: float, negligible: float = 0.0) -> bool:
        """True if both are finite, the reference is not silent, and the SNR is no less than this.

        Args:
            snr_db: The limit.
            negligible: A ``max_abs`` up to which the SNR does not matter.
        """
        if not self.finite or self.snr_db is None:
            return False
        return self.snr_db >= snr_db or self.max_abs <= negligible

    def __str__(self) -> str:
        snr = "n/a" if self.snr_db is None else f"{self.snr_db:.1f} dB"
        return f"{snr}, max |Δ| {self.max_abs:.2e}{'' if self.finite else ', not finite'}"


_BLOCK = 1 << 15  # values: in double precision they stay in a core's cache


def compare(reference: Array, candidate: Array) -> Parity:
    """Measure in double precision.

    Raises:
        ValueError: The shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"only tensors of one shape can be compared; got {reference.shape} and {candidate.shape}")
    if not (is_finite(reference) and is_finite(candidate)):
        with np.errstate(invalid="ignore", over="ignore"):
            largest = float(np.abs(reference - candidate).max())
        return Parity(None, largest, None, finite=False)
    if np.array_equal(reference, candidate):
        silent = not np.any(reference)
        return Parity(None, 0.0, None, True) if silent else Parity(math.inf, 0.0, 1.0, True)
    signal = noise = other = cross = largest = 0.0
    for r, x in _blocks(reference, candidate):
        error = r - x
        signal += _product(r, r)
        noise += _product(error, error)
        other += _product(x, x)
        cross += _product(r, x)
        largest = max(largest, float(np.abs(error).max()))
    if signal == 0.0:
        return Parity(None, largest, None, True)
    # Differences so small that their squares vanish are as good as none.
    snr = 10 * math.log10(signal / noise) if noise else math.inf
    cosine = cross / math.sqrt(signal * other) if other else None
    return Parity(snr, largest, cosine, True)


def _blocks(reference: Array, candidate: Array) -> Iterator[tuple[Array, Array]]:
    """Both, some values at a time, in double precision."""
    wide = np.complex128 if reference.dtype.kind == "c" else np.float64
    r, x = reference.ravel(), candidate.ravel()
    for start in range(0, r.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        yield r[block].astype(wide), x[block].astype(wide)


def _product(a: Array, b: Array) -> float:
    return float(np.vdot(a, b).real)
