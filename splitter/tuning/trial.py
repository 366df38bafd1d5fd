"""Runs of a bundle on excerpts of songs, with other programs in place of its packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import mil
from ..boundary import Array
from ..bundle.directory import Bundle
from ..bundle.manifest import SegmentRecord
from ..errors import AudioError
from ..lowering import ML_PACKAGE, capabilities
from ..mil.program import Function
from ..parity import compare
from ..runtime.engines import REFERENCE, Engine, loaded, shipped_engine
from ..separation import audio


@dataclass(frozen=True)
class TrialExcerpt:
    """One run's worth of sound.

    Attributes:
        name: Of the file, and where in it.
        path: The file.
        start: The first sample.
        mixture: As `separate` feeds it, ``(channels, samples)``, float32.
    """

    name: str
    path: Path
    start: int
    mixture: Array


def excerpts(paths: Sequence[Path], bundle: Bundle, *, each: int = 2) -> tuple[TrialExcerpt, ...]:
    """The beginning of each file and, as far as it is long enough, what follows at even distances.

    Args:
        paths: Audio files.
        bundle: Says the sampling rate, the channels and the length of one run.
        each: How many of a file at most.

    Raises:
        AudioError: A file cannot be read, or is silent there.
    """
    sound = bundle.audio
    found = []
    for path in paths:
        track = audio.Track(path, sound.samplerate, sound.channels)
        statistics = audio.statistics(track)
        runs = min(each, max(1, statistics.samples // sound.samples))
        step = 0 if runs == 1 else (statistics.samples - sound.samples) // (runs - 1)
        window = audio.Window(track, sound.samples)
        for start in (run * step for run in range(runs)):
            mixture = window.read(start, start + sound.samples)
            if not np.any(mixture):
                raise AudioError(
                    f"the excerpt of {path.name} from {start / sound.samplerate:.1f} s is silent",
                    expected="sound to measure on",
                    fix="Choose another file.",
                )
            name = f"{path.name} at {start / sound.samplerate:.1f} s"
            found.append(TrialExcerpt(name, path, start, audio.heard(mixture, sound)))
    return tuple(found)


def captured_engines(bundle: Bundle) -> dict[str, Engine]:
    """Every segment as it was captured."""
    return {segment.name: loaded(REFERENCE, bundle, segment, compute_units="ALL") for segment in bundle.segments}


class Trial:
    """A bundle of fp32 packages whose programs can be exchanged.

    Attributes:
        packages: The ML package of each segment that has one, by segment.
        reference: Every boundary tensor of each excerpt, as the captured graph computes it.
    """

    def __init__(self, bundle: Bundle, excerpts: Sequence[TrialExcerpt]) -> None:
        self.bundle = bundle
        self.excerpts = tuple(excerpts)
        (self._input,) = bundle.inputs
        self.outputs = bundle.outputs
        self._captured = captured_engines(bundle)
        self.packages = {
            segment.name: mil.load(bundle.path / segment.artifact.path, read=bundle.files.read)
            for segment in bundle.segments
            if capabilities(segment.artifact.target).artifact == ML_PACKAGE
        }
        self.reference = tuple(
            self.run({self._input: excerpt.mixture[None]}, self._captured, bundle.segments) for excerpt in self.excerpts
        )

    def predict(self, segment: SegmentRecord, function: Function, values: Mapping[str, Array]) -> dict[str, Array]:
        """One segment's outputs, by another program in its package's place."""
        specs = self.bundle.tensors
        model = self.packages[segment.name].variant(function)
        results = model.predict({name: specs[name].packaged(values[name]) for name in segment.inputs})
        return {name: specs[name].unpackaged(array) for name, array in results.items()}

    def snr_db(self, functions: Mapping[str, Function]) -> tuple[float, ...]:
        """SNR of the model's outputs against the captured graph's, for each excerpt.

        Args:
            functions: Programs by segment; other segments run as they were captured.
        """
        return tuple(
            self._snr(functions, excerpt, reference)
            for excerpt, reference in zip(self.excerpts, self.reference, strict=True)
        )

    def snr_db_of(self, bundle: Bundle) -> tuple[float, ...]:
        """The same with another bundle's saved packages, of the same model and passes."""
        engines = captured_engines(bundle) | {
            segment.name: loaded(shipped_engine(segment), bundle, segment, compute_units="ALL")
            for segment in bundle.segments
            if segment.name in self.packages
        }
        return tuple(
            self._compared(self.run({self._input: excerpt.mixture[None]}, engines, bundle.segments), reference)
            for excerpt, reference in zip(self.excerpts, self.reference, strict=True)
        )

    def after(self, segment: SegmentRecord, values: Mapping[str, Array]) -> dict[str, Array]:
        """All later segments as they were captured, from every value known after this one."""
        index = self.bundle.segments.index(segment)
        return self.run(values, self._captured, self.bundle.segments[index + 1 :])

    def run(
        self, values: Mapping[str, Array], engines: Mapping[str, Engine], segments: Sequence[SegmentRecord]
    ) -> dict[str, Array]:
        known = dict(values)
        for segment in segments:
            known |= engines[segment.name].run({name: known[name] for name in segment.inputs})
        return known

    def _snr(self, functions: Mapping[str, Function], excerpt: TrialExcerpt, reference: Mapping[str, Array]) -> float:
        values = {self._input: excerpt.mixture[None]}
        for segment in self.bundle.segments:
            if segment.name in functions:
                values |= self.predict(segment, functions[segment.name], values)
            else:
                values |= self._captured[segment.name].run({name: values[name] for name in segment.inputs})
        return self._compared(values, reference)

    def _compared(self, values: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
        found = [compare(reference[name], values[name]) for name in self.outputs]
        return min(-np.inf if parity.snr_db is None or not parity.finite else parity.snr_db for parity in found)
