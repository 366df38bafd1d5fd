"""Tables of a discrete Fourier transform in factors: N = N₁ N₂, two products with a table of twiddles between them.

With n = N₂ n₁ + n₂ and k = k₁ + N₁ k₂ (Cooley and Tukey 1965)::

    X[k] = Σ_n₂ e^(−2πi n₂ k₂ / N₂) · e^(−2πi n₂ k₁ / N) · Σ_n₁ e^(−2πi n₁ k₁ / N₁) x[n]

A complex matrix is a real one with its real and imaginary parts beside each other. Everything is computed in float64,
from angles below one turn, and rounded to float32 once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 500_000  # of one table: the Neural Engine's compiler refuses what a dense matrix of 4096 samples takes

Table = NDArray[np.float32]
_Exact = NDArray[np.float64]


@dataclass(frozen=True)
class Factors:
    """The factors of a transform of real samples.

    Attributes:
        samples: N.
        rows: N₁, the divisor of N nearest to its root.
    """

    samples: int
    rows: int

    @classmethod
    def of(cls, samples: int) -> Factors:
        divisors = (number for number in range(1, samples + 1) if samples % number == 0)
        return cls(samples, min(divisors, key=lambda number: (abs(number - samples // number), number)))

    @property
    def columns(self) -> int:
        """N₂."""
        return self.samples // self.rows

    @property
    def bins(self) -> int:
        """Of the half spectrum: N // 2 + 1."""
        return self.samples // 2 + 1

    @property
    def blocks(self) -> int:
        """Blocks of N₁ bins that hold the half spectrum: k₂ is less than this."""
        return self.samples // 2 // self.rows + 1

    @property
    def largest(self) -> int:
        """Bytes of the largest table."""
        pairs = max(self.rows * self.rows, 2 * self.columns * self.blocks, self.samples)
        return 4 * 2 * pairs

    def first(self) -> Table:
        """(2 N₁, N₁): from samples n₁ to the real parts of all k₁, and their imaginary parts below."""
        cosine, sine = _turns(self.rows, self.rows, self.rows)
        return np.concatenate([cosine, -sine]).astype(np.float32)

    def twiddles(self) -> tuple[Table, Table]:
        """Cosine and sine of 2π n₂ k₁ / N, each (N₁, N₂)."""
        cosine, sine = _turns(self.rows, self.columns, self.samples)
        return cosine.astype(np.float32), sine.astype(np.float32)

    def second(self) -> Table:
        """(2 N₂, 2 K₂): from the real parts of all n₂ and their imaginary parts to those of all k₂."""
        cosine, sine = _turns(self.columns, self.blocks, self.columns)
        return np.block([[cosine, -sine], [sine, cosine]]).astype(np.float32)

    def inverse_first(self) -> Table:
        """(2 K₂, 2 N₂): from the real parts of all k₂ and their imaginary parts to those of all n₂."""
        cosine, sine = _turns(self.blocks, self.columns, self.columns)
        return np.block([[cosine, sine], [-sine, cosine]]).astype(np.float32)

    def inverse_second(self) -> Table:
        """(N₁, 2 N₁): from the real parts of all k₁, and their imaginary parts below, to real samples n₁."""
        cosine, sine = _turns(self.rows, self.rows, self.rows)
        return np.concatenate([cosine, -sine], axis=1).astype(np.float32)

    def shares(self) -> Table:
        """(K₂ N₁,): what a bin of the half spectrum counts in the inverse: 1/N for those without a mirror image, 2/N
        for the others, and 0 for those that fill the last block."""
        shares = np.zeros(self.blocks * self.rows)
        shares[: self.bins] = 2 / self.samples
        shares[0] = 1 / self.samples
        if self.samples % 2 == 0:
            shares[self.bins - 1] = 1 / self.samples
        return shares.astype(np.float32)


def _turns(rows: int, columns: int, whole: int) -> tuple[_Exact, _Exact]:
    """Cosine and sine of 2π a b / whole for all a < rows and b < columns."""
    angles = np.outer(np.arange(rows), np.arange(columns)) % whole * (2 * np.pi / whole)
    return np.cos(angles), np.sin(angles)
