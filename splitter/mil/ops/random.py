"""Random numbers, from the caller's seed.

Everything is drawn in float32 and then rounded, so that every choice of numerics sees the same draws. An operation
without a seed of its own draws from the caller's generator. One with a seed (not -1) draws from a generator of its
own, started from that seed and the next number of the caller's: a sequence of predictions is reproduced by loading
the package again with the same seed, and a change of either seed changes it. Core ML's own numbers are not documented
and not reproduced.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...errors import OperationError
from . import Context, check_result_size, operation
from .traits import M3, Traits


def _source(context: Context, seed: int) -> torch.Generator:
    if seed == -1:
        return context.generator
    drawn = int(torch.randint(1 << 62, (), generator=context.generator))
    return torch.Generator().manual_seed((drawn ^ seed) % (1 << 63))


def _uniform(shape: list[int], source: torch.Generator) -> Tensor:
    check_result_size(shape, torch.float32)
    return torch.rand(shape, generator=source)


@operation("random_uniform", Traits(engine=M3))
def random_uniform(
    shape: list[int], context: Context, low: Tensor | None = None, high: Tensor | None = None, seed: int = -1
) -> Tensor:
    """At least ``low`` and less than ``high``, also after rounding; ``low`` where they are equal."""
    low = torch.tensor(0.0) if low is None else low
    high = torch.tensor(1.0) if high is None else high
    bottom, top = float(low), float(high)
    values = (bottom + _uniform(shape, _source(context, seed)).to(torch.float64) * (top - bottom)).to(high.dtype)
    if bottom < top:
        kind = np.float16 if high.dtype == torch.float16 else np.float32
        values = values.clamp(max=float(np.nextafter(kind(top), kind(bottom))))
    return values


@operation("random_normal")
def random_normal(shape: list[int], context: Context, mean: float = 0.0, stddev: float = 1.0, seed: int = -1) -> Tensor:
    check_result_size(shape, torch.float32)
    return mean + stddev * torch.randn(shape, generator=_source(context, seed))


@operation("random_bernoulli")
def random_bernoulli(shape: list[int], context: Context, prob: float = 0.5, seed: int = -1) -> Tensor:
    """1 with probability ``prob``, else 0."""
    if not 0.0 <= prob <= 1.0:
        raise OperationError("a probability is out of range", expected="0…1", received=prob)
    return (_uniform(shape, _source(context, seed)) < prob).to(torch.float32)


@operation("random_categorical")
def random_categorical(x: Tensor, context: Context, mode: str = "logits", size: int = 1, seed: int = -1) -> Tensor:
    """``size`` classes drawn with replacement for each row of the last axis, as numbers of x's type.

    Rows are logarithms of weights (mode ``logits``) or weights (mode ``probs``); neither need add up to one.
    """
    if mode not in ("logits", "probs"):
        raise OperationError("unknown mode", expected="logits or probs", received=mode)
    check_result_size((*x.shape[:-1], size), torch.int64)
    rows = x.to(torch.float32).reshape(-1, x.shape[-1])
    weights = torch.softmax(rows, -1) if mode == "logits" else rows
    drawn = torch.multinomial(weights, size, replacement=True, generator=_source(context, seed))
    return drawn.reshape(*x.shape[:-1], size).to(x.dtype)
