"""Which operations a half-precision package keeps in float32, by measurement.

A value escapes rounding only if the operation that computes it and all that read it stay in float32. With the noise
nₖ of each group of values k (`sensitivity`), taken as additive, and a cost cᵢ for each operation i, the choice that
is best at a price λ minimises

    Σ cᵢ [i in float32] + λ Σ nₖ [some operation that touches k is in half].

That is a minimum cut, solved exactly. Raising λ from zero traces the best choices from all in half to all in float32;
each is contained in the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import nn

from .. import compiler, output
from .. import passes as graph_passes
from ..bundle.directory import Bag, Bundle
from ..diagnosis.placement import placed
from ..errors import PlanError, UsageError
from ..mil import ops
from ..mil.graph import graph_of
from ..mil.mixing import can_be_half, in_half
from ..mil.ops.traits import Fp32Rule
from ..plan import schema as plans
from ..plan.schema import Plan, Precision
from .plot import check_results, draw
from .sensitivity import measure
from .trial import Trial, excerpts

Operation: TypeAlias = tuple[str, str]  # segment, and name of the first result
Kept: TypeAlias = frozenset[Operation]

_PRICES = 200  # λ tried, evenly on a logarithmic scale
_POINTS = 10  # of the frontier that are measured beside its ends
_WHOLE = 1 << 28  # the cost of everything, as the integer that the cut counts in
_HEADROOM_DB = 0.5  # above the target, for songs that were not measured
_ATTEMPTS = 5  # to make up for what half-precision boundaries add to the simulation


@dataclass(frozen=True)
class PrecisionPoint:
    """One choice, measured.

    Attributes:
        name: How it was chosen.
        fp32_operations: How many stay in float32, of ``operations``.
        fp16_flops: Share of the convolutions' and products' FLOPs in half precision.
        device_changes: Of the packages together, if type alone decided what runs on the Neural Engine.
        snr_db: At the model's outputs, against the captured model, for each excerpt.
    """

    name: str
    fp32_operations: int
    operations: int
    fp16_flops: float
    device_changes: int
    snr_db: tuple[float, ...]

    @property
    def worst_db(self) -> float:
        return min(self.snr_db)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PrecisionChoice:
    """What the search found.

    Attributes:
        min_snr_db: What was asked.
        excerpts: What was listened to.
        chosen: The choice, measured on the packages that were built.
        frontier: From everything in half precision to everything in float32.
        rules: What is commonly kept by hand, for comparison.
        plan: What ``splitter build --plan`` obeys.
    """

    min_snr_db: float
    excerpts: tuple[str, ...]
    chosen: PrecisionPoint
    frontier: tuple[PrecisionPoint, ...]
    rules: tuple[PrecisionPoint, ...]
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; the plan is a file of its own."""
        return {name: value for name, value in asdict(self).items() if name != "plan"}


def tune(
    model: str | Path | nn.Module,
    *,
    min_snr_db: float,
    on: Sequence[Path],
    plan: Plan | Path | None = None,
    out: Path | None = None,
    plot: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
    **options: Any,
) -> PrecisionChoice:
    """Plan packages in half precision but for as few operations as reach an SNR, measured on packages that are built.

    Args:
        model: As for `compiler.build`, but no bag of several.
        min_snr_db: To reach at the model's outputs, against the captured model, on every excerpt, with the packages
            as they are saved.
        on: Songs to measure on.
        plan: The plan to start from, whose precision is ignored; the model's preset by default.
        out: File to write the plan to.
        plot: Picture of the frontier to draw, see `plot.draw`.
        progress: Called with a phrase as each step begins.
        options: Others of `compiler.build`.

    Returns:
        The plan, and what was measured.

    Raises:
        UsageError: The model is a bag, or has no Core ML package, or a file cannot be written.
        PlanError: The SNR is out of reach; the message says what was reached.
    """
    check_results(out, plot)
    plan = plans.load(plan) if isinstance(plan, Path) else plan
    if options.get("passes") is None:
        preset = options.pop("optimise_for", None)
        given = graph_passes.preset(preset) if preset else plan.passes if plan else None
        options["passes"] = Precision.FP16.passes if given is None else given
    asked = options.pop("boundary_dtype", None) or (plan.boundary_dtype if plan else None)
    options |= {"reference": False, "progress": progress}
    with output.scratch("tuning") as work:
        fp32 = compiler.build(model, work / "fp32", plan=plan, precision="fp32", boundary_dtype="fp32", **options)
        wide = _single(fp32)
        search = PrecisionSearch(Trial(wide, excerpts(on, wide)), progress)
        frontier, rules = search.frontier(), search.rules()
        if frontier[-1].worst_db < min_snr_db:
            raise _unreachable(min_snr_db, frontier[-1])
        wanted = min(min_snr_db + _HEADROOM_DB, frontier[-1].worst_db)
        for _ in range(_ATTEMPTS):
            kept = search.cheapest(wanted)
            progress(f"building with {len(kept)} operations in fp32")
            chosen = plans.changed(
                wide.manifest.plan, precision="fp16", fp32_operations=_by_segment(kept), boundary_dtype=asked
            )
            mixed = _single(compiler.build(model, work / "mixed", plan=chosen, force=True, **options))
            simulated = search.point("chosen", kept)
            reached = replace(simulated, snr_db=search.trial.snr_db_of(mixed))
            if reached.worst_db >= min_snr_db:
                break
            # Half-precision boundaries add noise of their own, whatever is kept.
            left = _noise(min_snr_db) - (_noise(reached.worst_db) - _noise(simulated.worst_db))
            if left <= _noise(frontier[-1].worst_db):
                raise _unreachable(min_snr_db, reached)
            wanted = -10 * math.log10(left)
        else:
            raise _unreachable(min_snr_db, reached)
    names = tuple(excerpt.name for excerpt in search.trial.excerpts)
    choice = PrecisionChoice(min_snr_db, names, reached, frontier, rules, mixed.manifest.plan)
    if out is not None:
        plans.save(choice.plan, out)
    if plot is not None:
        draw(choice, plot)
    return choice


class PrecisionSearch:
    """Best choices of operations to keep in float32, and measurements of them."""

    def __init__(self, trial: Trial, progress: Callable[[str], None] = lambda step: None) -> None:
        """Measure every group of values once."""
        self.trial = trial
        self._progress = progress
        self._functions = {name: package.function for name, package in trial.packages.items()}
        self._graphs = {name: graph_of(function) for name, function in self._functions.items()}
        self._rules = {
            (name, operation.name): ops.record(operation.type, function.opset).traits.fp32_rules
            for name, function in self._functions.items()
            for operation in can_be_half(function)
        }
        if not self._rules:
            raise UsageError(
                "the plan makes no Core ML packages, whose precision could be chosen",
                fix="Give a stage the target coreml.",
            )
        self._flops = {(name, node.name): node.flops for name, graph in self._graphs.items() for node in graph.nodes}
        self._groups = [
            (frozenset((group.segment, operation) for operation in group.touched_by), group.noise)
            for group in measure(trial, progress)
            if group.noise > 0
        ]
        self._measured: dict[Kept, PrecisionPoint] = {}

    @cached_property
    def candidates(self) -> tuple[Kept, ...]:
        """The best choices for rising prices of noise, from nothing in float32 to everything, one within the next."""
        found: list[Kept] = [frozenset()]
        finite = [noise for _, noise in self._groups if math.isfinite(noise)]
        costs = self._costs
        least = min(costs.values()) / max(finite)
        most = 2.0 * sum(costs.values()) / min(finite)
        for price in np.geomspace(least, most, _PRICES):
            kept = cut(costs, self._groups, float(price)) | found[-1]
            if kept != found[-1]:
                found.append(kept)
        everything = frozenset(self._rules)
        return tuple(found) if found[-1] == everything else (*found, everything)

    def predicted(self, kept: Kept) -> float:
        """Noise of the groups that are rounded."""
        return sum(noise for touched, noise in self._groups if not touched <= kept)

    def point(self, name: str, kept: Kept) -> PrecisionPoint:
        """Measure a choice, unless it was already."""
        if kept not in self._measured:
            self._progress(f"measuring {len(kept)} of {len(self._rules)} operations in fp32")
            half: dict[str, set[str]] = {segment: set() for segment in self._functions}
            for segment, operation in self._rules.keys() - kept:
                half[segment].add(operation)
            snr = self.trial.snr_db(
                {segment: in_half(function, half[segment]) for segment, function in self._functions.items()}
            )
            total = sum(self._flops.values())
            wide = sum(self._flops[operation] for operation in kept)
            self._measured[kept] = PrecisionPoint(
                name=name,
                fp32_operations=len(kept),
                operations=len(self._rules),
                fp16_flops=1.0 - wide / total if total else 1.0,
                device_changes=sum(self._changes(segment, kept) for segment in self._functions),
                snr_db=snr,
            )
        return replace(self._measured[kept], name=name)

    def frontier(self) -> tuple[PrecisionPoint, ...]:
        """The two ends and what lies between them, evenly by predicted SNR."""
        inner = self.candidates[1:-1]
        levels = [-10 * math.log10(self.predicted(kept)) if self.predicted(kept) else math.inf for kept in inner]
        finite = [level for level in levels if math.isfinite(level)]
        wanted = np.linspace(min(finite), max(finite), _POINTS).tolist() if finite else []
        chosen = {int(np.argmin(np.abs(np.array(levels) - level))) for level in wanted}
        points = [self.point("frontier", inner[index]) for index in sorted(chosen)]
        return (self.point("all fp16", self.candidates[0]), *points, self.point("all fp32", self.candidates[-1]))

    def rules(self) -> tuple[PrecisionPoint, ...]:
        """What is commonly kept by hand."""
        found = []
        for rule in Fp32Rule:
            kept = frozenset(operation for operation, rules in self._rules.items() if rule in rules)
            found.append(self.point(rule.value, kept))
        rest = frozenset(operation for operation in self._rules if not self._flops[operation])
        return (*found, self.point("all but convolutions and products", rest))

    def cheapest(self, snr_db: float) -> Kept:
        """The least that was found to reach an SNR on every excerpt, simulated.

        Raises:
            PlanError: Not even everything in float32 reaches it.
        """
        low, high = -1, len(self.candidates) - 1  # below: fails or unknown; above: reaches
        if self.point("", self.candidates[high]).worst_db < snr_db:
            raise _unreachable(snr_db, self.point("", self.candidates[high]))
        while high - low > 1:
            middle = (low + high) // 2
            if self.point("", self.candidates[middle]).worst_db >= snr_db:
                high = middle
            else:
                low = middle
        if low < 0:
            return self.candidates[high]
        return self._between(self.candidates[low], self.candidates[high], snr_db)

    def _between(self, low: Kept, high: Kept, snr_db: float) -> Kept:
        """From one choice to a larger one, the groups with most noise per operation first."""
        steps = [low]
        waiting = [(touched, noise) for touched, noise in self._groups if touched <= high and not touched <= low]
        while waiting:
            best = max(waiting, key=lambda group: group[1] / max(1, len(group[0] - steps[-1])))
            waiting.remove(best)
            steps.append(steps[-1] | best[0])
        first, last = 0, len(steps) - 1
        while last - first > 1:
            middle = (first + last) // 2
            if self.point("", steps[middle]).worst_db >= snr_db:
                last = middle
            else:
                first = middle
        return steps[last] if self.point("", steps[last]).worst_db >= snr_db else high

    @cached_property
    def _costs(self) -> dict[Operation, float]:
        """Of an operation in float32: its share of the operations and its share of the FLOPs."""
        total = sum(self._flops.values()) or 1
        return {operation: 1 / len(self._rules) + self._flops[operation] / total for operation in self._rules}

    def _changes(self, segment: str, kept: Kept) -> int:
        graph = self._graphs[segment]
        return placed(graph, {node for node in graph.nodes if (segment, node.name) in kept}).changes


def cut(costs: Mapping[Operation, float], groups: Sequence[tuple[Kept, float]], price: float) -> Kept:
    """The operations to keep in float32 at a price λ of noise.

    Args:
        costs: Of each operation in float32.
        groups: Operations that must all be in float32 for a noise to vanish, and that noise.
        price: λ.

    Returns:
        The minimum of the sum above; costs and noises count to 2⁻²⁸ of all costs together.
    """
    scale = _WHOLE / sum(costs.values())
    index = {operation: 1 + position for position, operation in enumerate(costs)}
    source, sink = 0, 1 + len(index) + len(groups)
    edges = [(index[operation], sink, max(1, round(cost * scale))) for operation, cost in costs.items()]
    for position, (touched, noise) in enumerate(groups):
        group = 1 + len(index) + position
        edges.append((source, group, round(min(price * noise * scale, 2 * _WHOLE))))
        edges += [(group, index[operation], 2 * _WHOLE) for operation in touched]
    starts, ends, capacities = zip(*edges, strict=True)
    network = csr_array((np.array(capacities, np.int32), (starts, ends)), shape=(sink + 1, sink + 1))
    residual = network - maximum_flow(network, source, sink).flow
    residual.data[residual.data < 0] = 0
    residual.eliminate_zeros()
    reached = set(breadth_first_order(residual, source, return_predecessors=False).tolist())
    return frozenset(operation for operation, node in index.items() if node in reached)


def _noise(snr_db: float) -> float:
    """Energy over that of the signal."""
    return 10 ** (-snr_db / 10)


def _by_segment(kept: Kept) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for segment, operation in sorted(kept):
        found.setdefault(segment, []).append(operation)
    return {segment: tuple(names) for segment, names in found.items()}


def _single(bag: Bag) -> Bundle:
    if len(bag.members) != 1:
        raise UsageError(
            f"{bag.name} is a bag of several models",
            expected="a single model",
            received=len(bag.members),
            fix="Give the members' checkpoints one by one.",
        )
    return bag.members[0]


def _unreachable(snr_db: float, best: PrecisionPoint) -> PlanError:
    return PlanError(
        f"the best SNR found is {best.worst_db:.1f} dB, with {best.fp32_operations} of {best.operations} operations in "
        "fp32",
        expected=f"{snr_db:g} dB",
        fix="Ask for less, or for fp32.",
    )
