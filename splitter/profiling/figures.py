"""What follows from seconds: records of runs, segments and boundaries, whoever took the time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ..boundary import TensorSpec
from ..bundle.directory import Bundle
from ..bundle.manifest import SegmentRecord
from . import work
from .records import BoundaryProfile, EngineProfile, Latency, Limits, Profile, RunProfile, SegmentProfile
from .work import Work


def profile(bundle: Bundle, **measured: Any) -> Profile:
    """A bundle with what was measured of it, without others beside."""
    model = bundle.manifest.model
    return Profile(
        bundle=str(bundle.path),
        model=model.name,
        checkpoint_sha256=model.checkpoint_sha256,
        samples=model.samples,
        precision=bundle.manifest.plan.precision,
        **measured,
    )


def run(
    walls: Sequence[float], segments: Sequence[Sequence[float]], checks: Sequence[Sequence[float]], warmup: int
) -> RunProfile:
    """Of the seconds in each turn: of whole runs, and a list for each segment and for each tensor."""
    counted = walls[warmup:]
    checked, computed = ([sum(turn) for turn in zip(*lists, strict=True)][warmup:] for lists in (checks, segments))
    return RunProfile(
        wall=Latency.of(walls, warmup=warmup),
        accounted=statistics.median((a + b) / wall for a, b, wall in zip(computed, checked, counted, strict=True)),
        checks=statistics.median(check / wall for check, wall in zip(checked, counted, strict=True)),
    )


def boundary(bundle: Bundle, spec: TensorSpec, check: Latency, most: Limits) -> BoundaryProfile:
    """Of the seconds that a tensor's check took."""
    reading = sum(consumer in {segment.name for segment in bundle.segments} for consumer in spec.consumers)
    return BoundaryProfile(
        name=spec.name,
        producer=spec.producer,
        consumers=spec.consumers,
        bytes=spec.bytes,
        moved_bytes=(2 + reading) * spec.bytes,
        check=check,
        bandwidth_share=spec.bytes / check.median / most.bytes_per_second,
    )


def work_of(bundle: Bundle, segment: SegmentRecord) -> Work:
    """Of a segment's captured graph."""
    return work.of(bundle.program(segment.program))


def shares(done: Work, latency: Latency, most: Limits) -> dict[str, float]:
    """Of the machine's limits, as `records.EngineProfile` has them."""
    return {
        "compute_share": done.flops / latency.median / most.flops_per_second,
        "bandwidth_share": done.moved_bytes / latency.median / most.bytes_per_second,
    }


def segment(bundle: Bundle, record: SegmentRecord, done: Work, engines: tuple[EngineProfile, ...]) -> SegmentProfile:
    """A segment and what ran it."""
    return SegmentProfile(
        name=record.name,
        target=record.artifact.target,
        parameters=record.parameters,
        flops=done.flops,
        moved_bytes=done.moved_bytes,
        boundary_bytes=sum(bundle.tensors[name].bytes for name in (*record.inputs, *record.outputs)),
        engines=engines,
    )
