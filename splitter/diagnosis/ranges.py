"""Rules: what values really occur, in one run on given inputs. And the run.

The run computes in float32 whatever the package declares, so that one overflow does not hide those behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..boundary import Array
from ..mil.departures import Departure, LimitWatch
from ..mil.graph import Graph, Node
from ..mil.model import Model
from ..mil.program import Operation
from .chips import PITFALLS, SLICE_LIMIT
from .engine import offset_slices
from .half import IEEE, LARGEST, SMALLEST_NORMAL, is_half
from .rules import Note, Severity, rule
from .subject import Range, Subject

T = TypeVar("T")

_NEAR = LARGEST / 4  # two bits of headroom


@dataclass
class _Watch:
    """A listener that keeps what every operation's results were, and where they went beyond limits."""

    limits: LimitWatch
    seen: dict[int, Range] = field(default_factory=dict)
    nans: dict[int, int] = field(default_factory=dict)
    _sound: bool = True

    def before(self, operation: Operation, inputs: Mapping[str, Any]) -> None:
        self.limits.before(operation, inputs)
        self._sound = not any(map(_nans, inputs.values()))

    def after(self, operation: Operation, outputs: Mapping[str, Any]) -> None:
        self.limits.after(operation, outputs)
        if self._sound and (count := sum(map(_nans, outputs.values()))):
            self.nans[id(operation)] = count
        for value in outputs.values():
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                self.seen[id(operation)] = _joined(self.seen.get(id(operation)), _range(value))


@dataclass(frozen=True)
class Measured:
    """What a run showed, by operation: see `Subject`."""

    ranges: Mapping[Node, Range]
    departures: Mapping[Node, tuple[Departure, ...]]
    nans: Mapping[Node, int]


def measured(model: Model, graph: Graph, inputs: Mapping[str, Array]) -> Measured:
    """Run a model opened with `RoundingMode.FP32` once and note what every operation gives.

    Raises:
        UsageError: An input is missing, unknown, or not what the package takes.
    """
    watch = _Watch(LimitWatch(model.function.opset))
    with np.errstate(over="ignore"):  # in the outputs' declared types, at which nobody looks
        model.predict(inputs, model.make_state() if model.spec.states else None, listener=watch)
    departures: dict[int, tuple[Departure, ...]] = {}
    for departure in watch.limits.found:
        of = id(departure.operation)
        departures[of] = (*departures.get(of, ()), departure)
    return Measured(_by_node(graph, watch.seen), _by_node(graph, departures), _by_node(graph, watch.nans))


def _by_node(graph: Graph, found: Mapping[int, T]) -> dict[Node, T]:
    return {node: found[id(node.operation)] for node in graph.nodes if id(node.operation) in found}


def _nans(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_nans, value))
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return 0
    # Of a sum it is quick to see that it is a number; one that is not may be ∞ − ∞.
    return 0 if not bool(torch.isnan(value.sum())) else int(torch.isnan(value).sum())


def _range(value: Tensor) -> Range:
    magnitudes = value.abs()
    if not bool(torch.isfinite(magnitudes.max())):
        magnitudes = magnitudes[torch.isfinite(magnitudes)]
    largest = float(magnitudes.max()) if magnitudes.numel() else 0.0
    beyond = int((magnitudes > LARGEST).sum()) if largest > LARGEST else 0
    return Range(largest, beyond, value.numel())


def _joined(first: Range | None, second: Range) -> Range:
    if first is None:
        return second
    return Range(max(first.largest, second.largest), first.beyond + second.beyond, first.total + second.total)


def _ranged(subject: Subject, *, half: bool) -> Iterator[tuple[Node, Range]]:
    for node, seen in subject.ranges.items():
        if is_half(node) == half:
            yield node, seen


@rule(
    "range-overflow",
    Severity.ERROR,
    title="values beyond half precision, computed in half precision",
    why="On the given inputs the results exceed 65,504: in half precision they are infinite.",
    fix="Scale before the operation, or keep it in fp32.",
    source=IEEE,
)
def overflow(subject: Subject) -> Iterator[Note]:
    for node, seen in _ranged(subject, half=True):
        if seen.beyond:
            yield Note(f"reaches {seen.largest:.4g}: {seen.beyond:,} of {seen.total:,} values overflow", node)


@rule(
    "range-near-overflow",
    Severity.WARNING,
    title="values near the end of half precision",
    why="On the given inputs the results come within a factor of four of 65,504; others may be louder.",
    fix="Scale before the operation, keep it in fp32, or measure on the loudest material there is.",
    source=IEEE,
)
def near_overflow(subject: Subject) -> Iterator[Note]:
    for node, seen in _ranged(subject, half=True):
        if seen.largest > _NEAR and not seen.beyond:
            yield Note(f"reaches {seen.largest:.4g}", node)


@rule(
    "range-underflow",
    Severity.WARNING,
    title="values below half precision's normal numbers",
    why="On the given inputs no result reaches 6.1e-5: half keeps few of their bits, or none.",
    fix="Scale up before the operation, or keep it in fp32.",
    source=IEEE,
)
def underflow(subject: Subject) -> Iterator[Note]:
    for node, seen in _ranged(subject, half=True):
        if 0 < seen.largest < SMALLEST_NORMAL:
            yield Note(f"reaches only {seen.largest:.2g}", node)


@rule(
    "range-needs-fp32",
    Severity.INFO,
    title="values beyond half precision, computed in a wider type",
    why="On the given inputs the results exceed 65,504. The package holds them, but not built in half precision.",
    fix="Keep these in fp32, or scale before them, when going to half.",
    source=IEEE,
)
def needs_fp32(subject: Subject) -> Iterator[Note]:
    for node, seen in _ranged(subject, half=False):
        if seen.beyond:
            yield Note(f"reaches {seen.largest:.4g}", node)


@rule(
    "range-slice",
    Severity.ERROR,
    title="offset slice of values beyond 4094",
    why="On the M1 and M2 a slice at an offset of the last axis makes magnitudes above 4094 infinite, silently.",
    fix="Start the slice at 0, slice another axis, or scale before it.",
    source=PITFALLS,
)
def saturating_slice(subject: Subject) -> Iterator[Note]:
    if subject.chip.saturating_slices:
        for node, offset in offset_slices(subject):
            seen = subject.ranges.get(node)
            if seen is not None and seen.largest > SLICE_LIMIT:
                yield Note(f"starts at {offset} and reaches {seen.largest:.4g}", node)
