"""The engine for each segment: the default, or a quicker one, by measurement on the bundle's golden input."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from .. import cache, output, reading
from ..boundary import Array
from ..bundle.directory import Bundle, Source, load
from ..bundle.goldens import machine
from ..bundle.manifest import SegmentRecord
from ..errors import BundleError, CacheError, EngineError, UsageError
from ..lowering import capabilities
from ..parity import compare
from ..runtime import engines
from ..runtime.engines import default_engine
from ..runtime.orchestrator import Orchestrator

MIN_SNR_DB = 100.0  # of the stems to the untouched model's: far below what a 16-bit file keeps
FAST = "bf16"  # precision
_SHARE = 0.05  # of a job's time, for measuring
_MEASURED_FROM = 20  # runs of the model in a job: two minutes of a song; a shorter job takes what is known
_RUNS = 3  # timed, after one that warms up
_PACKAGES = ("splitter", "torch")  # their versions may change the answer, beside those of the engines


class EngineTrial(BaseModel):
    """One engine on one segment.

    Attributes:
        segment: Its name.
        engine: Its name.
        seconds: The fastest of a few runs, see `_cost`; None if it failed or its outputs are too far from the golden
            ones.
        snr_db: The least over its outputs; None where all are equal or negligibly near.
        load_seconds: Until it could run.
        failure: What it said instead of running; empty if it ran.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    segment: str
    engine: str
    seconds: float | None
    snr_db: float | None = None
    load_seconds: float = 0.0
    failure: str = ""


class EngineChoice(BaseModel):
    """What runs what.

    Attributes:
        engines: By segment.
        snr_db: Of the model's outputs, with these engines, to the recorded ones; None where they are equal.
        trials: What was measured.
        complete: Whether all was that there is to measure. What is left is for later jobs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["splitter.choice/4"] = "splitter.choice/4"
    engines: dict[str, str]
    snr_db: float | None
    trials: tuple[EngineTrial, ...]
    complete: bool = True

    def for_runs(self, runs: int | None) -> EngineChoice:
        """The same for a job of so many runs, None for any number: an engine must make up for the time it loads."""
        if runs is None:
            return self
        seconds = {
            (trial.segment, trial.engine): trial.load_seconds + runs * trial.seconds
            for trial in self.trials
            if trial.seconds is not None
        }
        defaults = {trial.segment: trial.engine for trial in reversed(self.trials)}  # the first of each
        chosen = dict(self.engines)
        for segment, default in defaults.items():
            if seconds.get((segment, default), math.inf) < seconds.get((segment, chosen[segment]), math.inf):
                chosen[segment] = default
        return self.model_copy(update={"engines": chosen})


@dataclass(frozen=True)
class Engines:
    """The engine of each segment.

    Attributes:
        requested: By segment, where one was asked for.
        automatic: For other segments; the default engine for those in neither.
    """

    requested: Mapping[str, str]
    automatic: Mapping[str, str] = field(default_factory=dict)

    @property
    def by_segment(self) -> dict[str, str]:
        return {**self.automatic, **self.requested}


def fastest(
    members: Sequence[Bundle],
    requested: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda phrase: None,
    runs: int | None = None,
) -> EngineChoice:
    """Which engine should run each segment of bundles on this machine, with the threads that PyTorch has now.

    Measured once; the answer is kept in the user's cache, for these bundles, processor, number of threads and versions.
    A job of few runs is not worth measuring for, and takes what is known. Another begins no segment when measuring has
    taken a twentieth of the job's time, and leaves it to the next job.

    Args:
        members: What to run: one bundle, or those of a bag, which have the same segments. Time is measured on the
            first, and the decibels of all together on each.
        requested: Engines by segment that are not in question.
        progress: Told what is measured, which takes some runs of every segment.
        runs: Of the model, in the job at hand; None for a job of any length, for which all is measured.

    Raises:
        UsageError: ``requested`` names a segment that the bundle does not have.
        EngineError: An engine that was asked for cannot run its segment here.
    """
    bundle, given = members[0], dict(requested or {})
    for name, engine in given.items():
        engines.require_engine(engine, bundle.segment(name))
    rivals = {s.name: [given[s.name]] if s.name in given else _rivals(members, s) for s in bundle.segments}
    key = f"{_fingerprint(members, rivals)}.json"
    if (choice := _kept(key)) is not None and choice.complete:
        return choice.for_runs(runs)
    defaults = EngineChoice(engines={name: names[0] for name, names in rivals.items()}, snr_db=None, trials=())
    if all(len(names) == 1 for names in rivals.values()):
        return defaults
    if runs is not None and runs < _MEASURED_FROM:
        return (choice or defaults).for_runs(runs)
    with _measuring_alone():
        known = _kept(key) or defaults
        if known.complete and known.trials:
            return known.for_runs(runs)
        progress("measuring the engines once for this bundle on this machine")
        choice = _measured(members, rivals, known.trials, progress, runs)
        for trial in choice.trials[len(known.trials) :]:
            if trial.failure:
                progress(f"{trial.engine} is out of the question for {trial.segment}: {trial.failure}")
        # A cache that cannot be written is measured again.
        with suppress(OSError, UsageError), output.whole(cache.directory("engines") / key) as waiting:
            waiting.write_text(choice.model_dump_json(indent=1), encoding="utf-8")
        return choice.for_runs(runs)


def _kept(key: str) -> EngineChoice | None:
    """An answer in the cache."""
    with suppress(OSError, ValidationError):
        return EngineChoice.model_validate_json(reading.content(cache.directory("engines") / key))
    return None


@contextmanager
def _measuring_alone() -> Iterator[None]:
    """One process of a user at a time: workers that start together would slow each other down."""
    with ExitStack() as stack:
        with suppress(OSError):  # without a cache nobody can be waited for
            stack.enter_context(FileLock(cache.directory("engines") / "lock"))
        yield


def low_precision(members: Sequence[Bundle], requested: Mapping[str, str] | None = None) -> dict[str, str]:
    """The engine of every segment where all between the host's stages is in bfloat16.

    Args:
        members: What to run, as for `fastest`.
        requested: Engines by segment that are not in question.

    Raises:
        UsageError: ``requested`` names a segment that the bundle does not have.
        EngineError: This machine cannot, or would be no faster for it. Nothing else is tried in its place.
    """
    bundle = members[0]
    given = {bundle.segment(name).name: engine for name, engine in (requested or {}).items()}
    chosen = {}
    for segment in bundle.segments:
        on_host = capabilities(segment.artifact.target).on_host
        usual = default_engine(segment) if on_host else _fast_engine(segment)
        chosen[segment.name] = given.get(segment.name, usual)
        engines.require_engine(chosen[segment.name], segment)
    return chosen


def on_device(
    members: Sequence[Bundle], device: str | Mapping[str, str], requested: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The engines where PyTorch runs segments on a device.

    Args:
        members: What to run, as for `fastest`.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``: of all segments, or of some by name.
        requested: Engines by segment that are not in question.

    Raises:
        UsageError: The bundle has no such segment.
        EngineError: There is no such device here.
    """
    bundle, given = members[0], dict(requested or {})
    devices = {segment.name: device for segment in bundle.segments} if isinstance(device, str) else device
    for name, place in devices.items():
        segment = bundle.segment(name)
        given.setdefault(segment.name, f"{engines.REFERENCE}{engines.ON}{place}")
        engines.require_engine(given[segment.name], segment)
    return given


def _fast_engine(segment: SegmentRecord) -> str:
    """The first engine of low precision that can run a segment; the first of all where none can.

    Raises:
        EngineError: No such engine is installed.
    """
    names = [name for name in engines.names() if engines.engine(name).precision == FAST]
    if not names:
        raise EngineError(f"no engine that computes in {FAST} is installed", fix="Separate without --fast.")
    return next((name for name in names if engines.engine(name).unsupported_reason(segment) is None), names[0])


def optimize(source: Source, *, progress: Callable[[str], None] = lambda phrase: None) -> EngineChoice:
    """Prepare all engines that need it for a bundle on this machine, and measure which runs each segment best.

    `Separator` takes that choice from then on, for these files, this machine and these versions.

    Args:
        source: A bundle or a bag.
        progress: Told what is prepared and measured.

    Returns:
        What was measured, and what is chosen for work of any length.

    Raises:
        BundleError: It cannot be read.
        EngineError: An engine cannot be prepared. What was prepared before is kept.
    """
    members = load(source).members
    kinds = {name: engines.engine(name) for name in engines.names()}
    for member in members:
        for segment in member.segments:
            for name, kind in kinds.items():
                if kind.unsupported_reason(segment) is not None:
                    continue
                if not kind.is_prepared(member, segment):
                    progress(f"preparing {name} for {segment.name}, once")
                kind.prepare(member, segment)  # also where what is there is damaged
    return fastest(members, progress=progress)


def _rivals(members: Sequence[Bundle], segment: SegmentRecord) -> list[str]:
    """Engines that may run a segment here, the default first. A default that is another device's has no rivals."""
    default = default_engine(segment)
    if engines.engine(default).max_time_ratio is None:
        return [default]
    kinds = {name: engines.engine(name) for name in engines.names()}
    automatic = [
        name
        for name, kind in kinds.items()
        if kind.is_measured(segment)
        and kind.unsupported_reason(segment) is None
        and all(kind.is_prepared(member, member.segment(segment.name)) for member in members)
    ]
    return [default, *(name for name in automatic if name != default)]


def _measured(
    members: Sequence[Bundle],
    rivals: Mapping[str, list[str]],
    known: Sequence[EngineTrial],
    progress: Callable[[str], None],
    runs: int | None,
) -> EngineChoice:
    """A choice by the trials that are known, and as many more as the job at hand pays for, but one segment's."""
    bundle = members[0]
    golden = bundle.goldens()
    begun, trials = time.perf_counter(), [*known]
    measured = {trial.segment for trial in known}
    left = [segment for segment in bundle.segments if len(rivals[segment.name]) > 1 and segment.name not in measured]
    while left:
        record = left.pop(0)
        progress(f"measuring {record.name} by {', '.join(rivals[record.name])}")
        trials += _trials(bundle, record, rivals[record.name], golden)
        if runs is not None and time.perf_counter() - begun > _SHARE * runs * _run_seconds(trials):
            break
    chosen = {segment: names[0] for segment, names in rivals.items()}
    for segment, default in [*chosen.items()]:
        ran = {
            trial.engine: trial.seconds for trial in trials if trial.segment == segment and trial.seconds is not None
        }
        chosen[segment] = _best(ran, default)
    snr = end_to_end(members, chosen)
    if snr is not None and snr < MIN_SNR_DB:  # each near enough, not all together
        chosen = {segment: names[0] for segment, names in rivals.items()}
        snr = end_to_end(members, chosen)
    return EngineChoice(engines=chosen, snr_db=snr, trials=tuple(trials), complete=not left)


def _run_seconds(trials: Sequence[EngineTrial]) -> float:
    """Of a run of the segments that were measured, each by the fastest engine: no more than a run of the model."""
    fastest: dict[str, float] = {}
    for trial in trials:
        if trial.seconds is not None:
            fastest[trial.segment] = min(trial.seconds, fastest.get(trial.segment, trial.seconds))
    return sum(fastest.values())


def _best(seconds: Mapping[str, float], default: str) -> str:
    """In falling order of their ratio r, each replaces the best so far, at first the default, if t < r · t_best."""
    best = default if default in seconds else min(seconds, key=seconds.__getitem__, default=default)
    ratios = {name: engines.engine(name).max_time_ratio or 0.0 for name in seconds}
    for name in sorted(seconds, key=lambda name: (-ratios[name], seconds[name])):
        if seconds[name] < ratios[name] * seconds[best]:
            best = name
    return best


def _trials(bundle: Bundle, segment: SegmentRecord, names: list[str], golden: Mapping[str, Array]) -> list[EngineTrial]:
    """Engines in turns, as the speed of a machine drifts: the first turn warms up and is held against the golden."""
    given = {tensor: golden[tensor] for tensor in segment.inputs}
    found = {name: EngineTrial(segment=segment.name, engine=name, seconds=None) for name in names}
    running: dict[str, engines.Engine] = {}
    news: dict[str, Any]
    for turn in range(1 + _RUNS):
        for name in [name for name, trial in found.items() if not trial.failure]:
            try:
                if turn == 0:
                    begun = time.perf_counter()
                    running[name] = engines.loaded(name, bundle, segment, compute_units="ALL")
                    news = {"load_seconds": time.perf_counter() - begun}
                    news |= _nearness(bundle, segment, running[name].run(given), golden)
                else:
                    seconds = _cost(partial(running[name].run, given))
                    news = {"seconds": min(seconds, found[name].seconds or seconds)}
            except (BundleError, CacheError):  # no fault of the engine, and nothing to remember
                raise
            except Exception as error:  # an engine's library raises every kind; the reason is kept
                news = {"seconds": None, "failure": f"{type(error).__name__}: {error}"}
            found[name] = found[name].model_copy(update=news)
    return [*found.values()]


def _nearness(
    bundle: Bundle, segment: SegmentRecord, results: Mapping[str, Array], golden: Mapping[str, Array]
) -> dict[str, Any]:
    """What a trial says of results: their least SNR, and a failure if they are too far from the golden ones."""
    negligible = bundle.manifest.plan.tolerances.negligible_max_abs
    parities = [compare(golden[tensor], results[tensor]) for tensor in segment.outputs]
    near = all(parity.reaches(MIN_SNR_DB, negligible) or parity.max_abs == 0 for parity in parities)
    telling = [p.snr_db for p in parities if p.snr_db is not None and p.max_abs > negligible]
    failure = "" if near else f"an output is less than {MIN_SNR_DB:g} dB from the untouched model's"
    return {"snr_db": min(telling, default=None), "failure": failure}


def _cost(run: Callable[[], object]) -> float:
    """Seconds of a run, on the threads that PyTorch has now.

    An engine that takes more of them than these (XLA takes every core) takes them from the job beside it. So what
    counts is wall time, or processor time over the number of threads where that is longer.
    """
    wall, processor = time.perf_counter(), time.process_time()
    run()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return max(wall, processor / torch.get_num_threads())


def end_to_end(members: Sequence[Bundle], chosen: Mapping[str, str]) -> float | None:
    """SNR of the outputs to the recorded ones with these engines, the least of all members; None where equal."""
    found = []
    for bundle in members:
        golden = bundle.goldens()
        inputs = {name: golden[name] for name in bundle.inputs}
        results = Orchestrator(bundle, chosen).run(inputs)
        found += [compare(golden[name], result).snr_db for name, result in results.items()]
    return min((snr for snr in found if snr is not None and snr != float("inf")), default=None)


def _fingerprint(members: Sequence[Bundle], rivals: Mapping[str, Sequence[str]]) -> str:
    """Of all that the answer depends on.

    The manifests stand for the bytes: an answer is kept after runs that read every file they used, and
    a file that is not what its manifest says is refused when it is read.
    """
    manifests = [member.manifest.model_dump(mode="json") for member in members]
    packages = {*_PACKAGES, *(package for name in engines.names() for package in engines.engine(name).distributions)}
    facts = [manifests, rivals, machine().model_dump(), {name: _version(name) for name in sorted(packages)}]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
