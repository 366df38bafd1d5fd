"""One song through a bundle: a file in, stems out, in bounded memory. Many of them are `batch`'s."""

from __future__ import annotations

import random
import string
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, cycle
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import psutil
import torch

from ..bundle.directory import Bag
from ..errors import UsageError
from ..names import path_fault, readable
from ..runtime.orchestrator import Orchestrator
from .audio import Block, Encoding, Statistics, StemWriter, Track, Window, finish, statistics
from .overlap_add import Geometry, Model, Pass, Stems

OtherMethod: TypeAlias = Literal["add", "minus", "none"]
DEFAULT_FILENAME = "{track}/{stem}.{ext}"
_FIELDS = frozenset({"track", "trackext", "stem", "ext"})
_RUNS_BETWEEN_TRIMS = 16  # a heap that keeps what is freed breaks into pieces, and grows; clearing it slows a run


@dataclass(frozen=True)
class Options:
    """How to separate; the defaults are demucs's.

    Attributes:
        shifts: Passes with a random shift to average; 0 for one plain pass.
        overlap: Fraction of a segment shared with the next.
        segment: Seconds of the song in one run of the model; all it takes where None.
        two_stems: Only this stem and the rest.
        other_method: What "the rest" is: the sum of the other stems, the mixture minus the stem, or nothing.
        encoding: File format and clip handling.
        filename: Below ``OUT/<model>/`` in any case; may hold ``{track}``, ``{trackext}``, ``{stem}`` and ``{ext}``.
        seed: Of the random shifts, the same for every file.
    """

    shifts: int = 1
    overlap: float = 0.25
    segment: float | None = None
    two_stems: str | None = None
    other_method: OtherMethod = "add"
    encoding: Encoding = field(default_factory=Encoding)
    filename: str = DEFAULT_FILENAME
    seed: int = 0


class Progress:
    """What a caller may want to see of one file. Does nothing by itself."""

    def start(self, path: Path, seconds: float) -> None:
        """A file of this length begins; ``seconds`` counts every pass."""

    def advance(self, seconds: float) -> None:
        """So much of it is done."""


class Separator:
    """A bag of bundles, loaded once, for any number of files.

    Attributes:
        engines: As they were asked for, by segment.
        otherwise: Those of the other segments.
    """

    def __init__(
        self,
        bag: Bag,
        options: Options = Options(),
        engines: Mapping[str, str] | None = None,
        otherwise: Mapping[str, str] | None = None,
    ) -> None:
        """Check what is asked for.

        Args:
            bag: The bundles.
            options: How to separate.
            engines: Engine by segment, where one is asked for.
            otherwise: For the other segments, e.g. as `selection.fastest` finds; the default engine where none.

        Raises:
            UsageError: An option is out of range or names a stem the model does not have.
        """
        self.bag, self.options = bag, options
        self.engines, self.otherwise = dict(engines or {}), dict(otherwise or {})
        self._runs = count(1)
        sound = bag.members[0].audio
        self.stems, self.samplerate, self.channels = sound.stems, sound.samplerate, sound.channels
        if options.two_stems is not None and options.two_stems not in self.stems:
            raise UsageError(
                f"the stem is one of {bag.name}'s", received=options.two_stems, fix=f"It has {', '.join(self.stems)}."
            )
        if options.shifts < 0:
            raise UsageError("shifts count from 0", received=options.shifts)
        _check_filename(options.filename)
        self._geometries = [
            Geometry.of(
                model=member.audio.samples,
                samplerate=self.samplerate,
                overlap=options.overlap,
                segment=options.segment,
            )
            for member in bag.members
        ]

    def load(self) -> None:
        """Load every member now, not with the first track.

        Raises:
            UsageError: An engine is named for a segment that there is not.
            EngineError: An engine cannot run its segment here.
        """
        _ = self._orchestrators

    @cached_property
    def _orchestrators(self) -> list[Orchestrator]:
        return [Orchestrator(member, {**self.otherwise, **self.engines}) for member in self.bag.members]

    def track(self, path: Path) -> Track:
        return Track(path, self.samplerate, self.channels)

    def stream(self, track: Track, heard: Statistics, progress: Progress = Progress()) -> Generator[Stems]:
        """Separate a track from start to end.

        Args:
            track: What to separate.
            heard: `audio.statistics` of it.
            progress: Advanced with every run of a model.

        Yields:
            All stems in the model's order, ``(stems, channels, n)`` at a time, at the track's loudness.
        """
        totals = np.asarray(self.bag.weights, np.float32).sum(axis=0)[:, None, None]
        step, shifts = self._geometries[0].stride, max(1, self.options.shifts)
        passes = cycle(self._passes(track, heard, progress))
        for start in range(0, heard.samples, step):
            samples = min(step, heard.samples - start)
            mixed = np.zeros((len(self.stems), self.channels, samples), np.float32)
            for weights in self.bag.weights:
                shifted = next(passes).read(samples)
                for _ in range(1, shifts):
                    shifted = shifted + next(passes).read(samples)
                mixed += shifted / np.float32(shifts) * np.asarray(weights, np.float32)[:, None, None]
            yield heard.restored(mixed / totals)

    def _passes(self, track: Track, heard: Statistics, progress: Progress) -> list[Pass]:
        """The passes over the track of the first member, of the second, and so on."""
        shifts = random.Random(self.options.seed)
        plan: list[list[int] | list[None]] = [
            [shifts.randint(0, geometry.max_shift) for _ in range(self.options.shifts)] or [None]
            for geometry in self._geometries
        ]
        seconds = sum(
            geometry.runs(heard.samples, offset) * geometry.stride / self.samplerate
            for geometry, offsets in zip(self._geometries, plan, strict=True)
            for offset in offsets
        )
        progress.start(track.path, seconds)
        return [
            Pass(
                _model(orchestrator, self._runs),
                Window(track, history=geometry.chunk + geometry.max_shift),
                heard,
                geometry,
                stems=len(self.stems),
                channels=self.channels,
                offset=offset,
                advanced=lambda step=geometry.stride: progress.advance(step / self.samplerate),  # type: ignore[misc]
            )
            for orchestrator, geometry, offsets in zip(self._orchestrators, self._geometries, plan, strict=True)
            for offset in offsets
        ]

    def home(self, out: Path) -> Path:
        """The directory of the model."""
        return out / self.bag.name

    @property
    def written(self) -> tuple[str, ...]:
        """The stems that each track gets, by name."""
        two = self.options.two_stems
        if two is None:
            return self.stems
        rest = {"add": [f"no_{two}"], "minus": [f"minus_{two}"], "none": []}[self.options.other_method]
        return (two, *rest)

    def outputs(self, path: Path, out: Path) -> dict[str, Path]:
        """Where each stem of a file will be written.

        Raises:
            UsageError: The template and the track's name make no path below the directory of the model.
        """
        return {name: self.home(out) / self._place(path, name) for name in self.written}

    def _place(self, path: Path, stem: str) -> str:
        """Where a stem goes below the directory of the model."""
        place = self.options.filename.format(
            track=readable(path.stem),
            trackext=readable(suffix) if (suffix := path.suffix.removeprefix(".")) else "",
            stem=stem,
            ext=self.options.encoding.container,
        )
        if reason := path_fault(place):
            raise UsageError(
                f"{str(path)!r} gives its stem {stem!r} no possible file name: {reason}",
                fix="Rename the track, or choose another --filename.",
            )
        return place

    def write(self, track: Track, files: Mapping[str, Path], progress: Progress = Progress()) -> None:
        """Separate a track into a file for each stem of `outputs`, by its name.

        Raises:
            AudioError: It cannot be read.
            OSError, RuntimeError: A file cannot be written; the latter from soundfile.
        """
        heard = statistics(track)
        two, method = self.options.two_stems, self.options.other_method
        mixture = Window(track, history=0)
        position = 0
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(
                    StemWriter(file, self.options.encoding, self.samplerate, self.channels, heard.samples)
                )
                for name, file in files.items()
            }
            for block in self.stream(track, heard, progress):
                stems = dict(zip(self.stems, block, strict=True))
                if two is not None:
                    if method == "add":
                        rest = [stem for name, stem in stems.items() if name != two]
                        stems[f"no_{two}"] = np.sum(rest, axis=0, dtype=np.float32)
                    elif method == "minus":
                        stems[f"minus_{two}"] = mixture.read(position, position + block.shape[-1]) - stems[two]
                position += block.shape[-1]
                for name, writer in writers.items():
                    writer.write(stems[name])
            finish(writers.values(), torch.get_num_threads())


def _model(orchestrator: Orchestrator, runs: Iterator[int]) -> Model:
    """The model on one segment of sound; ``runs`` counts those of all that share the heap.

    It runs in the caller's thread. In one beside it, with files read and written meanwhile, songs took a tenth longer:
    OpenMP keeps a team of threads for every thread that has computed, and where teams outnumber the processors, their
    threads sleep between operators.
    """
    (given,), (returned,) = orchestrator.bundle.inputs, orchestrator.bundle.outputs

    def run(mix: Block) -> Stems:
        stems = orchestrator.run({given: mix[None]})[returned][0]
        if next(runs) % _RUNS_BETWEEN_TRIMS == 0:
            psutil.heap_trim()
        return stems

    return run


def _check_filename(template: str) -> None:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UsageError("a filename template is well formed", received=f"{template!r}: {error}") from error
    if unknown := fields - _FIELDS:
        raise UsageError(
            "a filename template uses {track}, {trackext}, {stem} and {ext}", received=", ".join(sorted(unknown))
        )
    if "stem" not in fields:
        raise UsageError("a filename template tells the stems apart", received=repr(template), fix="Use {stem} in it.")
    try:
        example = template.format(**dict.fromkeys(_FIELDS, "name"))
    except (ValueError, LookupError) as error:
        raise UsageError("a filename template holds text", received=f"{template!r}: {error}") from error
    if reason := path_fault(example):
        raise UsageError(
            f"the filename template {template!r} makes no path below the output folder: {reason}",
            fix="Leave out what leads elsewhere; -o says where the output folder is.",
        )
