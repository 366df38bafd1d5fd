"""Profiles a bundle on this machine."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

from ..boundary import Array
from ..bundle.directory import Bundle, Source, single
from ..bundle.goldens import machine
from ..bundle.manifest import SegmentRecord
from ..errors import UsageError
from ..runtime.engines import Engine, default_engine, loaded
from ..runtime.orchestrator import Hook, Orchestrator
from . import figures, limits, memory
from .bench import read
from .records import EngineProfile, Latency, Limits, Profile, SegmentProfile, check_same_model, merged
from .timeline import Timeline

Progress: TypeAlias = Callable[[str], None]


def profile(
    bundle: Source,
    engines: Sequence[tuple[str, str]] = (),
    *,
    runs: int = 5,
    warmup: int = 1,
    compute_units: str = "ALL",
    merge: Sequence[Path | str] = (),
    progress: Progress = lambda step: None,
) -> Profile:
    """Run a bundle on its golden input, and say where time and memory go.

    A turn is one run of the orchestrator, then one of every other engine on its segment's inputs, so that a machine
    that slows down slows down all of them. Memory (processes of their own) and families of operations (runs of their
    own) are measured afterwards and cost the timed runs nothing.

    Args:
        bundle: What to profile.
        engines: Pairs of segment and engine. Several for one segment are shown side by side, and the orchestrator
            runs the first; `default_engine` for segments left out.
        runs: Counted turns.
        warmup: Turns before them, which are recorded apart.
        compute_units: For Core ML, see `Orchestrator`.
        merge: Files that ``splitter profile --json`` or ``splitter-host bench`` printed elsewhere, to show beside.
        progress: Told of each step.

    Raises:
        UsageError: There is no such segment, or nothing to count.
        EngineError: An engine cannot run its segment here.
    """
    if runs < 1 or warmup < 1:
        raise UsageError(
            "too few runs", expected="at least 1 to count and 1 to warm up", received=f"{runs} and {warmup}"
        )
    bundle = single(bundle)
    model = bundle.manifest.model
    others = [read(Path(path), bundle) for path in merge]
    for other in others:  # before minutes are spent on what they cannot lie beside
        check_same_model(other, model.name, model.checkpoint_sha256, model.samples)
    chosen = _chosen(bundle, engines)
    progress("loading")
    bench = _Bench(bundle, chosen, compute_units)
    progress("measuring this machine")
    before = limits.measured()
    for turn in range(warmup + runs):
        progress(f"run {turn + 1 - warmup} of {runs}" if turn >= warmup else "warming up")
        bench.turn()
    progress("measuring this machine again")
    most = limits.best(before, limits.measured())
    segments = []
    for segment in bundle.segments:
        progress(f"looking into {segment.name}")
        segments.append(_segment(bench, segment, chosen[segment.name], warmup, most))
    measured = figures.profile(
        bundle,
        system=platform.platform(),
        machine=machine(),
        compute_units=compute_units,
        limits=most,
        run=figures.run(bench.walls, [runs[0] for runs in bench.runs.values()], list(bench.checks.values()), warmup),
        segments=tuple(segments),
        boundaries=tuple(
            figures.boundary(bundle, spec, Latency.of(bench.checks[spec.name], warmup=warmup), most)
            for spec in bundle.manifest.tensors
        ),
    )
    return merged(measured, others)


def _chosen(bundle: Bundle, engines: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Names of engines by segment, in the order given."""
    given = defaultdict(list)
    for segment, name in engines:
        given[bundle.segment(segment).name].append(name)
    return {segment.name: given[segment.name] or [default_engine(segment)] for segment in bundle.segments}


@dataclass
class _Inputs(Hook):
    """Keeps what each segment was given first."""

    arrays: dict[str, dict[str, Array]] = field(default_factory=dict)

    def before_segment(self, segment: SegmentRecord, inputs: Mapping[str, Array]) -> None:
        self.arrays.setdefault(segment.name, dict(inputs))


class _Bench:
    """Everything loaded, and the seconds it took so far.

    Attributes:
        engines: By segment, the orchestrator's own first.
        inputs: What the segments were given first, by segment and tensor.
        walls: Of the orchestrator, a figure for each turn, like all that follow.
        runs: By segment, a list for each of its engines.
        checks: By tensor.
    """

    def __init__(self, bundle: Bundle, chosen: Mapping[str, Sequence[str]], compute_units: str) -> None:
        self.bundle = bundle
        self.compute_units = compute_units
        self._timeline, keeper = Timeline(), _Inputs()
        self.inputs = keeper.arrays
        first = {segment: names[0] for segment, names in chosen.items()}
        hooks = (keeper, self._timeline)
        self._orchestrator = Orchestrator(bundle, first, compute_units=compute_units, hooks=hooks)
        self.engines: dict[str, list[Engine]] = {}
        for segment in bundle.segments:
            others = (
                loaded(engine, bundle, segment, compute_units=compute_units) for engine in chosen[segment.name][1:]
            )
            self.engines[segment.name] = [self._orchestrator.engines[segment.name], *others]
        golden = bundle.goldens()
        self._given = {name: golden[name] for name in bundle.inputs}
        self.walls: list[float] = []
        self.runs: dict[str, list[list[float]]] = {name: [[] for _ in many] for name, many in self.engines.items()}
        self.checks: dict[str, list[float]] = {name: [] for name in bundle.tensors}

    def turn(self) -> None:
        """Run everything once."""
        started = perf_counter()
        self._orchestrator.run(self._given)
        self.walls.append(perf_counter() - started)
        for name, seconds in self._timeline.checks.items():
            self.checks[name].append(seconds)
        for name, engines in self.engines.items():
            self.runs[name][0].append(self._timeline.segments[name])
            for place, engine in enumerate(engines[1:], 1):
                started = perf_counter()
                engine.run(self.inputs[name])
                self.runs[name][place].append(perf_counter() - started)


def _segment(bench: _Bench, segment: SegmentRecord, names: Sequence[str], warmup: int, most: Limits) -> SegmentProfile:
    bundle = bench.bundle
    done = figures.work_of(bundle, segment)
    found = []
    for name, seconds, engine in zip(names, bench.runs[segment.name], bench.engines[segment.name], strict=True):
        latency = Latency.of(seconds, warmup=warmup)
        fresh = memory.measured(bundle, segment.name, name, bench.compute_units)
        found.append(
            EngineProfile(
                engine=name,
                latency=latency,
                load_seconds=fresh.load_seconds,
                memory=fresh.memory,
                **figures.shares(done, latency, most),
                families=_families(engine, bench.inputs[segment.name]),
                coreml=engine.device_figures(),
            )
        )
    return figures.segment(bundle, segment, done, tuple(found))


def _families(engine: Engine, inputs: Mapping[str, Array]) -> dict[str, float] | None:
    """Seconds by family: from the end of one operation to the end of the next."""
    found: Counter[str] = Counter()
    latest = perf_counter()

    def done(family: str) -> None:
        nonlocal latest
        now = perf_counter()
        found[family] += now - latest  # type: ignore[assignment] # a Counter counts anything that adds
        latest = now

    return dict(found.most_common()) if engine.run_in_steps(inputs, done) else None
