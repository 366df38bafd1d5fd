"""How results are rounded.

This models **rounding**, not Apple's kernels: what each unit of a chip does with a half-precision convolution is
not documented, and no two do the same. What is modelled is where a value passes through a type, and how sums
are accumulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from . import accumulation, neural_engine
from .ops import OperationRecord
from .types import DType


class RoundingMode(StrEnum):
    """Which type values pass through.

    Attributes:
        STORED: Each result is rounded to the type the program declares for it.
        FP32: Every floating-point value is float32; nothing is rounded to half.
        FP16: Inputs, weights and every floating-point result are rounded to half.
        ANE: As declared; what is in half precision is computed as people measured the Neural Engine to compute it,
            see `splitter.mil.neural_engine`. A model from published measurements, not the device.
    """

    STORED = "stored"
    FP32 = "fp32"
    FP16 = "fp16"
    ANE = "ane"


class AccumulatorType(StrEnum):
    """What sums of many half-precision terms are held in.

    Attributes:
        FP32: float32; the result is rounded once.
        STAGED: Half, in a tree: pairs, pairs of pairs, …; products are summed in blocks of 32. Reductions and
            matrix products only.
        HALF: Half, one term after the other; of the same operations. Slow, and merciless.
    """

    FP32 = "fp32"
    STAGED = "staged"
    HALF = "half"


_HALF, _SINGLE = torch.float16, torch.float32


@dataclass(frozen=True)
class Numerics:
    """One choice of both."""

    values: RoundingMode = RoundingMode.STORED
    accumulators: AccumulatorType = AccumulatorType.FP32

    def __post_init__(self) -> None:
        """Refuse a choice of sums where the values bring their own.

        Raises:
            UsageError: The Neural Engine's accumulator is asked to be another.
        """
        if self.values is RoundingMode.ANE and self.accumulators is not AccumulatorType.FP32:
            raise UsageError(
                "the Neural Engine's model has an accumulator of its own",
                received=f"accumulators {self.accumulators}",
                fix="Leave out --accumulators.",
            )

    def constant(self, value: Any) -> Any:
        """A constant of the program as it enters the arithmetic.

        Names of types in parameters (``cast``'s ``dtype``) follow the choice too.
        """
        if isinstance(value, str):
            swap = {RoundingMode.FP32: ("fp16", "fp32"), RoundingMode.FP16: ("fp32", "fp16")}.get(self.values)
            return swap[1] if swap and value == swap[0] else value
        return self.value(value)

    def value(self, value: Any) -> Any:
        """A tensor as it enters the arithmetic: an input, a weight, a state."""
        if isinstance(value, Tensor):
            if self.values is RoundingMode.FP32 and value.dtype == _HALF:
                return value.to(_SINGLE)
            if self.values is RoundingMode.FP16 and value.dtype == _SINGLE:
                return value.to(_HALF)
        return value

    def held(self, dtype: DType) -> torch.dtype:
        """The torch type a result of a declared type is held in."""
        if self.values is RoundingMode.FP32 and dtype.held == _HALF:
            return _SINGLE
        if self.values is RoundingMode.FP16 and dtype.held == _SINGLE:
            return _HALF
        return dtype.held

    def rounded(self, value: Tensor, dtype: DType) -> Tensor:
        held = self.held(dtype)
        return value if value.dtype == held else value.to(held)

    def compute(self, record: OperationRecord, arguments: dict[str, Any]) -> Any:
        """Call an implementation, its half-precision sums accumulated as chosen; takes the arguments it widens."""
        bent, moves = record.traits.on_engine, record.traits.moves
        on_engine = self.values is RoundingMode.ANE and record.traits.engine is not None and (bent or not moves)
        if on_engine and any(map(_holds_half, arguments.values())):
            given = {key: neural_engine.entering(arguments.pop(key)) for key in list(arguments)}
            return neural_engine.leaving(bent(record.function, given) if bent else record.function(**given))
        if not record.traits.accumulate_fp32 or not any(_holds_half(value) for value in arguments.values()):
            return record.function(**arguments)
        strict = record.traits.half_sums
        if (
            strict is not None
            and self.accumulators is not AccumulatorType.FP32
            and not any(map(_holds_wider, arguments.values()))
        ):
            total = accumulation.staged if self.accumulators is AccumulatorType.STAGED else accumulation.sequential
            return strict(total, **arguments)
        return record.function(**{key: neural_engine.widened(arguments.pop(key)) for key in list(arguments)})


def _holds_half(value: Any) -> bool:
    if isinstance(value, list):
        return any(_holds_half(element) for element in value)
    return isinstance(value, Tensor) and value.dtype == _HALF


def _holds_wider(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != _HALF
