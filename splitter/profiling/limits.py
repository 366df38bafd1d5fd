"""What a machine can do at most, measured on the spot: the two lines of a roofline."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

from .records import Limits

_ROWS = 2048  # of square matrices: 17 GFLOP, 16 MB each
_COPIED = 1 << 28  # bytes; beyond the caches of most processors
_SECONDS = 1.0  # for each of the two
_ATTEMPTS = 5  # at least


def measured(rows: int = _ROWS, copied: int = _COPIED) -> Limits:
    """Multiply and copy on all of PyTorch's threads; the best attempt counts, what slows others is not the machine.

    Args:
        rows: Of the square float32 matrices, 2 × rows³ operations.
        copied: Bytes to copy; they are read and written, and count twice.
    """
    a, b = torch.rand(2, rows, rows).unbind()
    product = torch.empty_like(a)
    source = torch.ones(copied, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return Limits(
        flops_per_second=2 * rows**3 / _fewest(lambda: torch.mm(a, b, out=product)),
        bytes_per_second=2 * copied / _fewest(lambda: target.copy_(source)),
    )


def best(first: Limits, second: Limits) -> Limits:
    """The higher of each: a machine shared with others is slower at one time than at another."""
    return Limits(
        flops_per_second=max(first.flops_per_second, second.flops_per_second),
        bytes_per_second=max(first.bytes_per_second, second.bytes_per_second),
    )


def _fewest(call: Callable[[], object]) -> float:
    """Fewest seconds of as many calls as the time allows."""
    seconds: list[float] = []
    while len(seconds) < _ATTEMPTS or sum(seconds) < _SECONDS:
        started = perf_counter()
        call()
        seconds.append(perf_counter() - started)
    return min(seconds)
