"""Compares ways to cut a model into packages, and chooses how many a stage needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import fx, nn

from .. import lowering, opening, output
from ..boundary import INPUT, OUTPUT
from ..diagnosis.compiling import compile_time
from ..errors import PlanError, UsageError
from ..graph.program import Program
from ..partition import Partition, Segment, partition
from . import cuts as planner
from . import schema as plans
from .schema import Plan, Precision

_MOST_SEGMENTS = 16


@dataclass(frozen=True)
class Package:
    """What one package would be.

    Attributes:
        operations: Estimated, of its ML Program.
        weight_bytes: In the plan's precision.
        working_set: Bytes that the operation with the largest operands reads and writes.
        compile_seconds: Estimated for the Neural Engine, see `doctor.compiling`; a tenth or ten times is as likely.
    """

    name: str
    operations: int
    weight_bytes: int
    working_set: int
    compile_seconds: float


@dataclass(frozen=True)
class Layout:
    """One way to cut a model.

    Attributes:
        boundary_bytes: Of every tensor that crosses from one segment to another, each counted once.
        internal_bytes: Of those among them that stay within a stage.
    """

    name: str
    packages: tuple[Package, ...]
    boundary_bytes: int
    internal_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Layouts:
    """Ways to cut a model.

    Attributes:
        plan: As asked, for ``splitter build --plan``.
        layouts: The last is that of the plan.
    """

    plan: Plan
    layouts: tuple[Layout, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the figures of each layout."""
        return {"layouts": [layout.to_dict() for layout in self.layouts]}


def compare(
    model: str | Path | nn.Module,
    *,
    inputs: Mapping[str, Any] | Path | str | None = None,
    plan: Plan | Path | None = None,
    segments: Mapping[str, int] | None = None,
    max_operations: int | None = None,
    max_weight_bytes: int | None = None,
    random_init: int | None = None,
    out: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Layouts:
    """Lay a model out as one package, as one a stage, and as asked.

    Args:
        model: As for `compiler.build`; the first member of a bag.
        inputs: Example inputs, as for `compiler.build`.
        plan: The plan to start from; the model's preset, or a proposed plan, by default.
        segments: How many a stage becomes; refused if they do not keep the budgets.
        max_operations: A stage not in ``segments`` becomes as few segments as have no more than this each.
        max_weight_bytes: The same for weights.
        random_init: Seed of random weights for a named configuration.
        out: File to write the plan to.
        progress: Called with a phrase as each step begins.

    Raises:
        PlanError: Budgets that no number of segments keeps; the message says what the best has.
    """
    if out is not None:
        output.check(out)
    start = plans.load(plan) if isinstance(plan, Path) else plan
    captured, start = opening.captured(model, inputs=inputs, plan=start, random_init=random_init, progress=progress)
    asked = plans.with_segments(start, segments or {})
    lowering.check(asked)
    progress("cutting")
    if max_operations is not None or max_weight_bytes is not None:
        counts = dict(segments or {})
        uncut = plans.with_segments(start, {stage.name: 1 for stage in start.stages})
        for segment in partition(captured, uncut).segments:
            if not _is_package(segment):
                continue
            budget = _Budget(segment, start, max_operations, max_weight_bytes)
            if segment.name in counts:
                budget.check(counts[segment.name])
            else:
                counts[segment.name] = budget.fewest()
        asked = plans.with_segments(start, counts)
    layouts = {"a package a stage": start, "as planned": asked}
    with suppress(PlanError):  # a plan of which nothing between first and last stage makes packages
        layouts = {"one package": plans.laid_out(start, "core"), **layouts}
    if out is not None:
        plans.save(asked, out)
    return Layouts(asked, tuple(_layout(name, partition(captured, way), way) for name, way in layouts.items()))


@dataclass(frozen=True)
class _Budget:
    """What no segment of a stage may have more of.

    Attributes:
        segment: The whole stage.
    """

    segment: Segment
    plan: Plan
    max_operations: int | None
    max_weight_bytes: int | None

    def fewest(self) -> int:
        """How many segments the stage must become at least.

        Raises:
            PlanError: No number keeps it.
        """
        best = (math.inf, math.inf)  # of the largest segment, where it was least
        for count in range(min(self._floor, _MOST_SEGMENTS), _MOST_SEGMENTS + 1):
            largest = self._largest(count)
            if largest is not None and self._holds(largest):
                return count
            best = min(best, largest or best)
        raise PlanError(
            f"no division of {self.segment.name!r} keeps the budget of a segment",
            expected=self,
            received=f"at best {best[0]:,} operations and {best[1]:,} bytes of weights, "
            f"in up to {_MOST_SEGMENTS} segments",
            fix="Raise the budget.",
        )

    def check(self, count: int) -> None:
        """Raises `PlanError` with the smallest number that keeps the budget, if so many segments do not."""
        largest = self._largest(count)
        if largest is not None and self._holds(largest):
            return
        name = self.segment.name
        has = "no such division" if largest is None else (
            f"{largest[0]:,} operations and {largest[1]:,} bytes of weights in the largest"
        )  # fmt: skip
        fewest = self.fewest()
        raise PlanError(
            f"{name!r} in {count} segments does not keep the budget of {self}",
            received=has,
            fix=f"It takes at least {fewest} segments: --segments {name}={fewest}, or leave it out.",
        )

    def __str__(self) -> str:
        budgets = {"operations": self.max_operations, "bytes of weights": self.max_weight_bytes}
        return " and ".join(f"{limit:,} {name}" for name, limit in budgets.items() if limit is not None)

    @property
    def _floor(self) -> int:
        total = sum(map(planner.operations, planner.live(self.segment.program)))
        return 1 if self.max_operations is None else max(math.ceil(total / self.max_operations), 1)

    def _largest(self, count: int) -> tuple[int, int] | None:
        """Operations and bytes of weights of the largest segment; None if there is no division within the balance."""
        balance = 1 + self.plan.imbalance
        try:
            division = planner.divide(self.segment.program, count, balance=balance, cost=planner.operations)
        except UsageError:
            return None
        weights = (sum(_weight_bytes(node, self.plan) for node in piece) for piece in division.pieces)
        return max(division.costs), max(weights)

    def _holds(self, largest: tuple[int, int]) -> bool:
        limits = (self.max_operations, self.max_weight_bytes)
        return all(limit is None or value <= limit for value, limit in zip(largest, limits, strict=True))


def _layout(name: str, parts: Partition, plan: Plan) -> Layout:
    stage_of = {segment.name: segment.stage.name for segment in parts.segments}
    between = [
        spec
        for spec in parts.tensors
        if spec.producer != INPUT and any(consumer != OUTPUT for consumer in spec.consumers)
    ]
    internal = [
        spec for spec in between if {stage_of.get(consumer) for consumer in spec.consumers} == {stage_of[spec.producer]}
    ]
    return Layout(
        name=name,
        packages=tuple(_package(segment, plan) for segment in parts.segments if _is_package(segment)),
        boundary_bytes=sum(spec.bytes for spec in between),
        internal_bytes=sum(spec.bytes for spec in internal),
    )


def _is_package(segment: Segment) -> bool:
    return lowering.capabilities(segment.stage.target).passes


def _package(segment: Segment, plan: Plan) -> Package:
    program: Program = segment.program
    nodes = planner.live(program)
    operations = sum(map(planner.operations, nodes))
    return Package(
        name=segment.name,
        operations=operations,
        weight_bytes=sum(_weight_bytes(node, plan) for node in nodes),
        working_set=max(
            planner.tensor_bytes(node) + sum(map(planner.tensor_bytes, node.all_input_nodes)) for node in nodes
        ),
        compile_seconds=compile_time(operations).seconds or 0.0,
    )


def _weight_bytes(node: fx.Node, plan: Plan) -> int:
    return planner.weight_bytes(node) // (2 if plan.precision is Precision.FP16 else 1)
