"""Runs the split once on the golden input and holds everything it hands over against the untouched model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from splitter_weights import transformer

from ..boundary import Array
from ..bundle.directory import Bundle
from ..bundle.manifest import SegmentRecord
from ..errors import SplitterError
from ..lowering import capabilities
from ..parity import Parity, compare
from ..runtime.engines import REFERENCE, Engine, default_engine, shipped_engine
from ..runtime.orchestrator import Hook, Orchestrator
from ..verification.transformer import TappedTransformer, skeleton

Kind: TypeAlias = Literal["boundary", "tap", "stem"]


@dataclass(frozen=True)
class ChainPoint:
    """One value of the split against the untouched model's.

    Attributes:
        name: Of the boundary tensor, tap or stem.
        segment: That computes it.
        kind: What it is.
        accumulated: Its distance in a run of the whole split; None if the run did not get there.
        local: The same where the segment was given the model's own input; None for taps, and where that did not run.
    """

    name: str
    segment: str
    kind: Kind
    accumulated: Parity | None
    local: Parity | None = None


@dataclass(frozen=True)
class Chain:
    """One run of the split.

    Attributes:
        engines: By segment.
        points: In the order of computation.
        stems: What came out, ``(stems, channels, samples)``; None if the run did not get there.
        error: Why the run stopped; empty if it did not.
        taps: Why there is no look inside the transformer; empty if there is.
    """

    engines: Mapping[str, str]
    points: tuple[ChainPoint, ...]
    stems: Array | None
    error: str = ""
    taps: str = ""

    @property
    def worst_stem(self) -> ChainPoint | None:
        """The stem with the lowest SNR, of those that are not silent."""
        audible = [
            point for point in self.points if point.kind == "stem" and point.accumulated and point.accumulated.snr_db
        ]
        return min(audible, key=lambda point: point.accumulated.snr_db or 0.0) if audible else None  # type: ignore[union-attr]


def chosen_engines(bundle: Bundle, asked: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The first engine asked for each segment; for the others what runs the file that ships, on this machine.

    Raises:
        UsageError: There is no such segment.
    """
    chosen: dict[str, str] = {}
    for name, engine in asked:
        chosen.setdefault(bundle.segment(name).name, engine)
    return {segment.name: chosen.get(segment.name) or _usual_engine(segment) for segment in bundle.segments}


def _usual_engine(segment: SegmentRecord) -> str:
    usual = default_engine(segment)
    return shipped_engine(segment) if usual == REFERENCE else usual


@dataclass
class Seen(Hook):
    """Keeps what the segments of the latest run handed over."""

    arrays: dict[str, Array] = field(default_factory=dict)

    def before_segment(self, segment: SegmentRecord, inputs: Mapping[str, Array]) -> None:
        self.arrays.update(inputs)

    def after_segment(self, segment: SegmentRecord, outputs: Mapping[str, Array]) -> None:
        self.arrays.update(outputs)


def run(orchestrator: Orchestrator, seen: Seen, golden: Mapping[str, Array]) -> Chain:
    """Run from the golden input, look into the transformer, then run each segment from the model's own tensors.

    A run that breaks a boundary's contract is a result like any other: what came before it is told.

    Args:
        orchestrator: The split, with the engines to judge.
        seen: One of its hooks.
        golden: The bundle's goldens.
    """
    bundle = orchestrator.bundle
    given = {name: golden[name] for name in bundle.inputs}
    seen.arrays.clear()
    error = ""
    try:
        orchestrator.run(given)
    except SplitterError as stopped:
        error = str(stopped)
    points: list[ChainPoint] = []
    why = "the bundle has no transformer for the kernels"
    stems = None
    for segment in bundle.segments:
        if capabilities(segment.artifact.target).artifact == transformer.ARTIFACT:
            found, why = _taps(bundle, segment, orchestrator.engines[segment.name], seen.arrays)
            points += found
        local = _local(orchestrator, segment, golden)
        for name in segment.outputs:
            points.append(
                ChainPoint(
                    name,
                    segment.name,
                    "boundary",
                    compare(golden[name], seen.arrays[name]) if name in seen.arrays else None,
                    compare(golden[name], local[name]) if name in local else None,
                )
            )
            if name in bundle.outputs and name in seen.arrays and _holds_stems(bundle, golden[name]):
                stems = bundle.audio.separated(seen.arrays[name])
                points += _stems(bundle, segment, bundle.audio.separated(golden[name]), stems)
    return Chain({n: engine.name for n, engine in orchestrator.engines.items()}, tuple(points), stems, error, why)


def _local(orchestrator: Orchestrator, segment: SegmentRecord, golden: Mapping[str, Array]) -> Mapping[str, Array]:
    """What a segment makes of the model's own tensors; nothing where it fails on them."""
    specs = orchestrator.bundle.tensors
    try:
        return orchestrator.engines[segment.name].run(
            {name: golden[name].astype(specs[name].dtype) for name in segment.inputs}
        )
    except SplitterError:
        return {}


def _holds_stems(bundle: Bundle, output: Array) -> bool:
    """Whether an output of the model is (1, stems, channels, samples), as a separator's is, or without it."""
    audio = bundle.manifest.model.audio
    if audio is None:
        return False
    shape = (1, len(audio.stems), audio.channels)
    return output.shape[:-1] in (shape, (1, audio.channels) if len(audio.stems) == 1 else shape)


def _stems(bundle: Bundle, segment: SegmentRecord, reference: Array, candidate: Array) -> list[ChainPoint]:
    names = bundle.audio.stems
    return [
        ChainPoint(name, segment.name, "stem", compare(r, x))
        for name, r, x in zip(names, reference, candidate, strict=True)
    ]


# ------------------------------------------------------------------------------------- inside the transformer


def _taps(
    bundle: Bundle, segment: SegmentRecord, engine: Engine, values: Mapping[str, Array]
) -> tuple[list[ChainPoint], str]:
    """The transformer's skeleton in a run of its own from what reached it; and why not, if not."""
    if any(name not in values for name in segment.inputs):
        return [], "the run did not get there"
    model = TappedTransformer(bundle, shipped=False)
    wanted = [name for name in model.taps if name in skeleton(model.taps) and not name.startswith(("input", "output"))]
    inputs = {name: values[name].astype(np.float32) for name in segment.inputs}
    found = engine.run_with_taps(inputs, wanted)
    if found is None:
        return [], f"the engine {engine.name!r} cannot be looked into"
    expected = model.values(wanted)
    return [ChainPoint(name, segment.name, "tap", compare(expected[name], found[name])) for name in wanted], ""
