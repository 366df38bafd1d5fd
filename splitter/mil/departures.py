"""Which operations of a run go beyond what the Neural Engine computes as the program says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import ops
from .neural_engine import Arguments, Function, Limit, cannot_reach, widened
from .program import Operation
from .types import TensorType


@dataclass(frozen=True)
class Departure:
    """An operation that went beyond one of its limits in a run.

    Attributes:
        reaches: The quantity that goes farthest.
        count: How many do, of ``total``.
        in_parts: Its results are within the limit, its partial sums are not, in the worst order.
    """

    operation: Operation
    limit: Limit
    reaches: float
    count: int
    total: int
    in_parts: bool = False

    @property
    def what(self) -> str:
        """How far it goes, and what comes of it."""
        quantity = f"partial {self.limit.of}" if self.in_parts else self.limit.of
        side = "below" if self.limit.least else "beyond"
        worst = " in the worst order" if self.in_parts else ""
        return (
            f"{self.count:,} of {self.total:,} {quantity}s are {side} {self.limit.bound:.6g}, "
            f"as far as {self.reaches:.6g}{worst}: {self.limit.gives}"
        )

    def __str__(self) -> str:
        return f"{self.operation.type} {self.operation.name!r}: {self.what}"


@dataclass
class LimitWatch:
    """A listener that notes every operation that goes beyond its limits.

    Attributes:
        half: Watch those that compute in half precision alone.
    """

    opset: str
    half: bool = True
    found: list[Departure] = field(default_factory=list)
    _given: Arguments = field(default_factory=dict)

    def before(self, operation: Operation, inputs: Arguments) -> None:
        self._given = inputs

    def after(self, operation: Operation, outputs: Arguments) -> None:
        record = ops.find(operation.type, self.opset)
        given, self._given = self._given, {}
        result = next(iter(outputs.values()), None)
        if record is None or not isinstance(result, Tensor) or (self.half and not _in_half(operation)):
            return
        wide = {key: widened(value) for key, value in given.items() if key != "context"}
        for limit in record.traits.limits:
            self.found.extend(_departures(operation, limit, record.function, wide, result))


def _departures(
    operation: Operation, limit: Limit, function: Function, given: Arguments, result: Tensor
) -> Iterator[Departure]:
    if not limit.applies(given):
        return
    if limit.partial is not None:
        if cannot_reach(given, limit.bound):
            return
        if not bool(torch.isfinite(result).all()):  # as the engine bends it, it says no more how far it went
            result = function(**given)
    quantity = limit.measured(given, result)
    if not quantity.numel():
        return
    if bool((beyond := limit.beyond(quantity)).any()):
        yield Departure(operation, limit, limit.extreme(quantity), int(beyond.sum()), quantity.numel())
    elif limit.partial is not None:
        parts = limit.partial(function, given, result)
        if bool((beyond := limit.beyond(parts)).any()):
            yield Departure(operation, limit, limit.extreme(parts), int(beyond.sum()), parts.numel(), in_parts=True)


def _in_half(operation: Operation) -> bool:
    kinds = (output.type for output in operation.outputs)
    return any(isinstance(kind, TensorType) and kind.dtype.name == "fp16" for kind in kinds)
