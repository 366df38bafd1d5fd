"""Times of a bundle from a host that is not Python, e.g. on a phone, as a profile to show beside others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, ValidationError

from .. import reading
from ..bundle.directory import Bundle
from ..bundle.manifest import Document, Machine, Record
from ..errors import UsageError
from ..plan.schema import readable
from . import figures, records
from .records import EngineProfile, Latency, Limits, Number, Profile

_Seconds: TypeAlias = tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]  # a figure for each turn
_AGAIN = "Run `splitter-host bench` again."


class SegmentTimes(Record):
    """Of one segment.

    Attributes:
        engine: What ran it.
        load_seconds: Until it was ready.
        seconds: Of its runs, within runs of the whole.
    """

    name: str
    engine: str
    load_seconds: Number
    seconds: _Seconds


class Bench(Document):
    """What ``splitter-host bench`` prints (``swift/Sources/SplitterHost/Bench.swift``).

    Attributes:
        digest: Of the bundle's manifest.
        system: Operating system.
        machine: The kind of the device.
        threads: Its processors.
        compute_units: What Core ML was allowed to use.
        warmup: Turns that count for nothing; they come first in every list of seconds.
        wall: Of whole runs.
        checks: Of each boundary tensor's check, by name.
    """

    format: Literal["splitter.bench/1"]
    digest: str
    system: str
    machine: str
    threads: int
    compute_units: str
    limits: Limits
    warmup: Annotated[int, Field(ge=1)]
    wall: _Seconds
    segments: tuple[SegmentTimes, ...]
    checks: dict[str, _Seconds]


def read(path: Path, bundle: Bundle) -> Profile:
    """Read what ``splitter profile --json`` or ``splitter-host bench`` printed.

    The work of each segment, which a bench does not know, is that of the bundle at hand; so it must be the same.

    Raises:
        UsageError: It is neither, or not a whole bench of this bundle.
    """
    try:
        bench = Bench.model_validate_json(reading.content(path))
    except (ValidationError, OSError) as error:
        if isinstance(error, ValidationError) and all(fault["loc"] != ("format",) for fault in error.errors()):
            raise UsageError(f"{path} is no bench", received=readable(error), fix=_AGAIN) from error
        return records.read(path)
    return _profile(bench, bundle, path)


def _profile(bench: Bench, bundle: Bundle, path: Path) -> Profile:
    manifest = bundle.manifest
    if bench.digest != manifest.digest:
        raise UsageError(
            f"{path} is of another bundle",
            expected=f"the digest {manifest.digest}",
            received=bench.digest,
            fix="Copy this very bundle to the other device and run `splitter-host bench` there.",
        )
    turns = {len(bench.wall), *map(len, bench.checks.values()), *(len(times.seconds) for times in bench.segments)}
    names = [times.name for times in bench.segments]
    if (
        names != [segment.name for segment in bundle.segments]
        or bench.checks.keys() != bundle.tensors.keys()
        or len(turns) > 1
        or not all(turn > bench.warmup for turn in turns)
    ):
        raise UsageError(
            f"{path} is no whole bench",
            expected="figures for every segment and boundary tensor, in every turn",
            received=f"{', '.join(names)}; turns: {', '.join(map(str, sorted(turns)))}",
            fix=_AGAIN,
        )
    machine = Machine(
        architecture=bench.machine, processor=bench.machine, capability="", threads=bench.threads, torch="not used"
    )
    segments = []
    for segment, times in zip(bundle.segments, bench.segments, strict=True):
        latency = Latency.of(times.seconds, warmup=bench.warmup)
        work = figures.work_of(bundle, segment)
        engine = EngineProfile(
            engine=times.engine,
            latency=latency,
            load_seconds=times.load_seconds,
            memory=None,
            **figures.shares(work, latency, bench.limits),
            families=None,
            coreml=None,
        )
        segments.append(figures.segment(bundle, segment, work, (engine,)))
    checks = tuple(bench.checks.values())
    return figures.profile(
        bundle,
        system=bench.system,
        machine=machine,
        compute_units=bench.compute_units,
        limits=bench.limits,
        run=figures.run(bench.wall, [times.seconds for times in bench.segments], checks, bench.warmup),
        segments=tuple(segments),
        boundaries=tuple(
            figures.boundary(bundle, spec, Latency.of(bench.checks[spec.name], warmup=bench.warmup), bench.limits)
            for spec in manifest.tensors
        ),
    )
