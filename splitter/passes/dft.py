"""Tables of the discrete Fourier transform of N real samples in factors: N = r₁ r₂ … r_m, one product for each.

With the digits of n, the highest first, and those of k, the lowest first (Cooley and Tukey 1965)::

    n = a₁ N₂ + a₂ N₃ + … + a_m          N_j = r_j r_(j+1) … r_m
    k = b₁ + b₂ r₁ + b₃ r₁ r₂ + …

product j sums over a_j and gives b_j; its twiddle depends on the digits of n that are still to come, so that there is
a table for each of their values::

    x_j[b_j] = Σ_a_j e^(−2πi b_j (a_j / r_j + (a_(j+1) N_(j+2) + … + a_m) / N_j)) x_(j−1)[a_j]

The first table takes real samples, and the window with them; the last one gives the lower half of the spectrum. The
inverse is the products transposed, in reverse order. Everything is computed in float64, from angles below one turn, and
rounded to float32 once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf, prod

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 500_000  # of one table: the Neural Engine's compiler refuses what a dense matrix of 4096 samples takes
_PASS = 8  # what it takes to read and write all values once, in factors: 8 more make a product as much slower, on a CPU

Exact = NDArray[np.float64]


@dataclass(frozen=True)
class Factors:
    """The factors of a transform of real samples.

    Attributes:
        digits: r₁ to r_m.
    """

    digits: tuple[int, ...]

    @classmethod
    def of(cls, samples: int, shifts: int) -> Factors | None:
        """The quickest ones with small tables; None if there are none.

        Args:
            samples: N.
            shifts: Windows that overlap at a sample. Where r₁ is a multiple of them, framing leaves samples in their
                order.
        """
        _, digits = _quickest(samples, samples, shifts)
        return cls(digits) if digits else None

    @property
    def samples(self) -> int:
        """N."""
        return prod(self.digits)

    @property
    def bins(self) -> int:
        """Of the half spectrum: N // 2 + 1."""
        return self.samples // 2 + 1

    @property
    def computed(self) -> int:
        """Bins that the last product gives: those of the half spectrum, and what fills the highest digit."""
        return self.samples // self.digits[-1] * (self.digits[-1] // 2 + 1)

    def tables(self, window: Exact) -> list[Exact]:
        """For each product (values of the digits a_m … a_(j+1), 2 r_j, 2 r_j).

        It takes real and imaginary parts beside each other, and gives all real parts before all imaginary ones. The
        first has r₁ columns, the last 2 (r_m // 2 + 1) rows.

        Args:
            window: (N,)
        """
        made, rest = [], self.samples
        for number, digit in enumerate(self.digits):
            left, rest = rest, rest // digit
            later = self.digits[number + 1 :]
            behind = np.arange(rest).reshape(later).T.reshape(-1)  # the lowest digit is the outermost
            samples = behind[:, None] + rest * np.arange(digit)
            bins = np.arange(digit if later else digit // 2 + 1)
            angles = samples[:, None, :] * bins[:, None] % left * (2 * np.pi / left)
            cosine, sine = np.cos(angles), np.sin(angles)
            if number == 0:
                table = np.stack([cosine, -sine], axis=1) * window[samples][:, None, None, :]
            else:
                table = np.stack([np.stack([cosine, sine], axis=-1), np.stack([-sine, cosine], axis=-1)], axis=1)
            made.append(table.reshape(rest, 2 * len(bins), -1))
        return made

    def inverse_tables(self, window: Exact) -> list[Exact]:
        """Those of the inverse in its order: the transposes over r_j. The window comes behind the transform."""
        return [
            table.transpose(0, 2, 1) / digit
            for table, digit in zip(reversed(self.tables(window)), reversed(self.digits), strict=True)
        ]


@cache
def _quickest(samples: int, left: int, shifts: int) -> tuple[float, tuple[int, ...]]:
    """The digits of what is left of N, and their costs; none where each choice has a table that is too large."""
    best: tuple[float, int, tuple[int, ...]] = inf, 0, ()
    is_first = left == samples
    for digit in range(1 if samples == 1 else 2, left + 1):
        columns = digit if is_first else 2 * digit
        rows = 2 * (digit if digit < left else digit // 2 + 1)
        if left % digit or 4 * left // digit * rows * columns > MOST_BYTES:
            continue
        cost = rows * columns / digit / 4 + _PASS + (2 * _PASS if is_first and digit % shifts else 0)
        more, digits = (0.0, ()) if digit == left else _quickest(samples, left // digit, shifts)
        best = min(best, (cost + more, max(digit, *digits, 0), (digit, *digits)))  # of equal ones those alike
    return best[0], best[2] if best[0] < inf else ()
