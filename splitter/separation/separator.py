"""One song through a bundle: a file or an array in, stems out. Of a file in bounded memory; many are `batch`'s."""

from __future__ import annotations

import math
import os
import random
import string
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ..bundle.directory import Bag, Bundle, load
from ..errors import UsageError
from ..names import path_fault, readable
from ..runtime import heap
from ..runtime.heap import Trimming
from ..runtime.orchestrator import Orchestrator
from ..runtime.workers import share
from . import aac, audio, resampling, selection, tags
from .audio import Block, Sound, Statistics, Track, Window, statistics, survey
from .channels import Channels
from .decoding import check_rate
from .encoding import STEM_FILE, Encoding, StemWriter, finish
from .named import named
from .overlap_add import Geometry, Model, SongPass, Stems
from .selection import Engines
from .wanted import OtherMethod, Wanted

if TYPE_CHECKING:
    from .batch import Outcome

DEFAULT_FILENAME = "{track}/{stem}.{ext}"
_STEM_FILENAME = "{track}.{ext}"  # of a file of all stems
_FIELDS = frozenset({"folder", "track", "trackext", "stem", "ext"})


@dataclass(frozen=True)
class Options:
    """How to separate; the defaults are the model's own, but for the rate, the balance and the channels of the stems.

    Attributes:
        shifts: Passes with a random shift to average; 0 for one plain pass; the model's own where None, of demucs 1.
        overlap: Fraction of a segment shared with the next; the model's own where None, of demucs 0.25.
        segment: Seconds of the song in one run of the model; all it takes where None.
        stems: Only these stems; all where None. Models of a bag that have no share in them are not run.
        two_stems: Only this stem and the rest.
        other_method: What "the rest" is: the sum of the other stems, the mixture minus the stem, or nothing.
        encoding: File format and clip handling.
        filename: Below ``OUT/<model>/`` in any case, by default ``{track}/{stem}.{ext}``, and ``{track}.{ext}`` of a
            file of all stems; may hold ``{track}``, ``{trackext}``, ``{stem}`` and ``{ext}``,
            and ``{folder}``, the name of the folder that the track is in.
        seed: Of the random shifts, the same for every file.
        samplerate: Of the stems: ``keep`` for the file's, and its very length; ``model`` for the model's; or in Hz.
        channels: What becomes of three and more channels: ``downmix`` by ITU-R BS.775, or the ``first2`` (as demucs
            does).
        tags: Copy title, artist, cover and the like to the stems; the title is followed by the stem's name.
    """

    shifts: int | None = None
    overlap: float | None = None
    segment: float | None = None
    stems: tuple[str, ...] | None = None
    two_stems: str | None = None
    other_method: OtherMethod = "add"
    encoding: Encoding = field(default_factory=Encoding)
    filename: str = DEFAULT_FILENAME
    seed: int = 0
    samplerate: Literal["keep", "model"] | int = "keep"
    channels: Channels = "downmix"
    tags: bool = True


@dataclass(frozen=True)
class Written:
    """What was made of a track, beside its stems.

    Attributes:
        source_samplerate: The track's, in Hz.
        samplerate: Of the stems, in Hz.
        samples: Their length at that rate.
        downmix: What became of the track's channels, as a phrase; None where each is as it was.
        gain_db: Of each stem, where the clip mode has one: 0 where nothing was beyond full scale.
    """

    source_samplerate: int
    samplerate: int
    samples: int
    downmix: str | None
    gain_db: Mapping[str, float]


@dataclass(frozen=True)
class Advance:
    """How far the separation of a track has come.

    Attributes:
        path: The track.
        done: Seconds of sound, of all passes over it.
        total: Seconds in all passes.
    """

    path: Path
    done: float
    total: float

    def __str__(self) -> str:
        return f"{self.path}: {self.done:.0f} of {self.total:.0f} s"


Progress: TypeAlias = Callable[[str | Advance], None]


def silent(step: str | Advance) -> None:
    """Progress that nobody follows."""


class Separator:
    """A model, loaded once, for any number of songs.

    Attributes:
        bag: What is run.
        options: How.
        stems: Names of the model's stems.
        samplerate: The model's, in Hz.
        channels: The model's.
        requested_engines: By segment, where one was asked for.
        low_memory: Whether memory is saved at the cost of time.
    """

    def __init__(
        self,
        model: str | Path | Bag | Bundle,
        engines: Mapping[str, str] | Engines | Literal["auto", "default"] | None = "auto",
        *,
        fast: bool = False,
        device: str | Mapping[str, str] | None = None,
        low_memory: bool = False,
        options: Options = Options(),
        progress: Progress = silent,
    ) -> None:
        """Check what is asked for. The model is loaded, and its engines are measured, when they are first needed.

        Args:
            model: Directory of a bundle; what `splitter.load` or `splitter.build` gave; or the name of a model, whose
                bundle is built once and kept in the user's cache.
            engines: Engines by segment. ``"auto"``, and the segments left out, are run by the fastest engine that is
                near enough, see `selection.fastest`: measured once for a bundle on a machine. ``"default"`` or None
                measures nothing.
            device: PyTorch runs on it every segment that ``engines`` does not name: ``cpu``, ``cuda``, ``cuda:1``,
                ``mps``; or devices by segment. Tensors stay there between such segments. Not with `Engines`.
            low_memory: The process gives freed memory back at once, and inverse transforms run stem by stem. Slower.
            fast: In bfloat16, on a processor that computes in it, what ``engines`` does not name.
            options: How to separate.
            progress: Told what is being done, and what runs what.

        Raises:
            BundleError: There is no such bundle.
            UsageError: An option is out of range, or names a stem or a segment that the model does not have.
            EngineError: An engine that was asked for cannot run its segment here.
        """
        self.bag, self.options, self._progress = _opened(model, progress), options, progress
        sound = self.bag.members[0].audio
        self.stems, self.samplerate, self.channels = sound.stems, sound.samplerate, sound.channels
        self._wanted = Wanted.of(self.stems, options.stems, options.two_stems, options.other_method)
        self._shares = self._wanted.shares(self.bag.weights)
        self._shifts = sound.chunking.shifts if options.shifts is None else options.shifts
        if self._shifts < 0:
            raise UsageError("--shifts is negative", expected="0 or more", received=options.shifts)
        self._in_one_file = options.encoding.container == STEM_FILE
        _check_filename(options.filename, in_one_file=self._in_one_file)
        _check_samplerate(options)
        if options.encoding.is_aac:
            aac.check_channels(self.channels)
        if self._in_one_file and (options.two_stems or len(self._wanted.written) != aac.STEMS):
            raise UsageError(
                f"a stem file holds {aac.STEMS} stems",
                received=", ".join(self._wanted.written),
                fix=f"Choose {aac.STEMS} by --stems, or another format.",
            )
        self._geometries = [
            Geometry.of(member.audio, overlap=options.overlap, segment=options.segment) for member in self.bag.members
        ]
        requested = engines if isinstance(engines, Mapping) else {}
        if device is not None:
            requested = selection.on_device(self.bag.members, device, requested)
        self._engines: dict[int, Engines] = {}  # by number of jobs
        self._fixed: Engines | None = None
        if isinstance(engines, Engines):
            self._fixed = engines
        elif fast:
            self._fixed = Engines(selection.low_precision(self.bag.members, requested))
        elif engines in ("default", None):
            self._fixed = Engines(requested)
        elif isinstance(engines, str) and engines != "auto":
            raise UsageError(
                f"unknown choice of engines {engines!r}", expected='"auto", "default", or engines by segment'
            )
        self._fast = fast
        self.low_memory = low_memory
        if low_memory:
            heap.give_back()
        self._trimming = Trimming()
        self.requested_engines = dict(self._fixed.requested if self._fixed else requested)

    def __call__(self, waveform: NDArray[np.floating], samplerate: int) -> dict[str, Block]:
        """Separate sound in memory.

        Args:
            waveform: ``(channels, samples)`` in floating point, full scale ±1; one channel, or as many as the model
                has.
            samplerate: Of it, in Hz; resampled for the model and back where it is another.

        Returns:
            A float32 array of the same shape for each stem.

        Raises:
            AudioError: It is no such sound.
        """
        track = audio.sound(waveform, samplerate, model_rate=self.samplerate, channels=self.channels)
        blocks = list(self.selected(track, statistics(track), self._progress))
        stems = {name: np.concatenate([block[name] for block in blocks], axis=1) for name in blocks[0]}
        return {name: _as_given(stem, np.shape(waveform), self.samplerate, samplerate) for name, stem in stems.items()}

    @property
    def latency(self) -> float:
        """Seconds of a stream that must have come before the stems of its first sample do, see `live`.

        One segment in a plain pass (``shifts=0``), which is then what every sample waits at most. A shifted pass, and a
        member of a bag with another segment than the first, may wait for one more chunk. The caller's blocks, and a
        stream at another rate than the model's, add to it.
        """
        step = self._geometries[0].stride
        waits = [
            geometry.chunk + (geometry.stride if self._shifts or geometry.stride != step else 0)
            for geometry in (self._geometries[member] for member in self._shares)
        ]
        return (max(waits) + 1) / self.samplerate  # the next sample tells that the stream goes on

    def live(
        self, blocks: Iterable[NDArray[np.floating]], samplerate: int, loudness: Statistics | None = None
    ) -> Generator[dict[str, Block]]:
        """Separate a stream while it comes, in the memory of a few chunks.

        Args:
            blocks: ``(channels, n)`` with varying n, in floating point, full scale ±1: one channel, or as many as the
                model has.
            samplerate: Of them, in Hz.
            loudness: Of the whole, by which a model may hear it normalised; that of the first segment where None.

        Yields:
            The stems by name, each ``(channels, n)`` at the stream's rate, as many samples in all as came. With the
            loudness of the whole they are what its file gives; `latency` says when.

        Raises:
            AudioError: A block is no such sound.
        """
        track = audio.Live(blocks, samplerate, self.samplerate, self.channels)
        window = self._window(track)
        chunk = self._geometries[0].chunk
        if window.samples(0) == 0:
            return
        found = loudness or Statistics.of(window.read(0, min(chunk, window.samples(chunk))))
        resamplers: dict[str, resampling.Resampler] = {}
        for stems, _ in self._selected(track.path, window, found, silent):
            if samplerate != self.samplerate:
                for name, stem in stems.items():
                    rates = (self.samplerate, samplerate, self.channels)
                    stems[name] = resamplers.setdefault(name, resampling.Resampler(*rates)).put(stem.T).T
            yield {name: _mono(stem) if track.mono else stem for name, stem in stems.items()}
        if resamplers:
            rest = {name: resampler.end(track.given).T for name, resampler in resamplers.items()}
            yield {name: _mono(stem) if track.mono else stem for name, stem in rest.items()}

    def separate(
        self,
        files: Sequence[str | Path],
        out: str | Path,
        *,
        jobs: int = 1,
        force: bool = False,
        recursive: bool = False,
        progress: Progress | None = None,
        done: Callable[[Outcome], None] = lambda outcome: None,
    ) -> list[Outcome]:
        """Separate files; one that fails does not stop the others. See `batch.separate`."""
        from .batch import separate

        told = progress or self._progress
        return separate(self, files, out, jobs=jobs, force=force, recursive=recursive, progress=told, done=done)

    def separate_into(self, file: str | Path, sink: BinaryIO, *, progress: Progress | None = None) -> Written:
        """Write the one stem that is asked for of a file to a stream. See `batch.separate_into`."""
        from .batch import separate_into

        return separate_into(self, file, sink, progress or self._progress)

    def runs(self, seconds: float) -> int:
        """How often a model runs on so much sound, in all passes of all members."""
        passes = max(1, self._shifts)
        samples = round(seconds * self.samplerate)
        return sum(passes * self._geometries[member].runs(samples, None) for member in self._shares)

    def engines(self, jobs: int = 1, runs: int | None = None) -> Engines:
        """What runs what, measured if it must be. What is found first is kept.

        Args:
            jobs: So many files at a time share the cores.
            runs: Of the model, in the work at hand; None for any number. See `selection.fastest`.

        Raises:
            UsageError: There is no core for each job, or an engine is asked for of a segment that there is not.
            EngineError: An engine cannot run its segment here.
        """
        if jobs not in self._engines:
            with _share_of_threads(jobs):
                self._engines[jobs] = self._fixed or self._measured(runs)
            if self._fast:
                snr = selection.end_to_end(self.bag.members, self.requested_engines)
                if snr is not None:
                    self._progress(f"fast: {snr:.1f} dB from float32 on the bundle's golden input")
        return self._engines[jobs]

    def _measured(self, runs: int | None) -> Engines:
        choice = selection.fastest(self.bag.members, self.requested_engines, self._progress, runs)
        pairs = ", ".join(f"{segment}={engine}" for segment, engine in choice.engines.items())
        self._progress(f"engines: {pairs}")
        return Engines(self.requested_engines, choice.engines)

    def load(self) -> None:
        """Load every member now, not with the first song.

        Raises:
            UsageError, EngineError: As `engines`.
        """
        _ = self._orchestrators

    @cached_property
    def _orchestrators(self) -> list[Orchestrator]:
        engines, members = self.engines().by_segment, self.bag.members
        if len(self._shares) < len(members):
            self._progress(f"{len(self._shares)} of {len(members)} models give what is asked for")
        running = [
            Orchestrator(members[member], engines, stems=stems, low_memory=self.low_memory)
            for member, stems in self._shares.items()
        ]
        for segment in dict.fromkeys(segment for orchestrator in running for segment in orchestrator.whole):
            engine = running[0].engines[segment].name
            self._progress(f"{segment} computes all stems: its artifact, which {engine} runs, gives no fewer")
        return running

    def track(self, path: Path) -> Track:
        return Track(path, self.samplerate, self.channels, self.options.channels)

    def stream(
        self, track: Track | Sound, track_statistics: Statistics, progress: Progress = silent
    ) -> Generator[Stems]:
        """Separate a track from start to end.

        Args:
            track: What to separate; decoded once.
            track_statistics: `audio.statistics` of it.
            progress: Told of every run of a model.

        Yields:
            The stems that the options need, in the model's order, ``(stems, channels, n)`` at a time, at the track's
            loudness.
        """
        return self._separated(track.path, self._window(track, track_statistics), track_statistics, progress)

    def selected(
        self, track: Track | Sound, track_statistics: Statistics, progress: Progress = silent
    ) -> Iterator[dict[str, Block]]:
        """The same, as the stems that the options ask for, by name."""
        window = self._window(track, track_statistics)
        for stems, _ in self._selected(track.path, window, track_statistics, progress):
            yield stems

    def _selected(
        self, path: Path, window: Window, track_statistics: Statistics, progress: Progress
    ) -> Iterator[tuple[dict[str, Block], Callable[[], Block]]]:
        """The stems by name, and what gives the mixture of them."""
        position = 0
        for block in self._separated(path, window, track_statistics, progress):
            stop = position + block.shape[-1]
            mixture = partial(window.read, position, stop)
            yield self._wanted.blocks(block, mixture), mixture
            position = stop

    def _window(self, track: Track | Sound | audio.Live, known: Statistics | None = None) -> Window:
        """What all passes read from. One may be a stride and a chunk ahead of another, and that read back half a chunk
        where the song ends."""
        longest = max(geometry.chunk for geometry in self._geometries)
        return Window(track, history=3 * longest, samples=None if known is None else known.samples)

    def _separated(
        self, path: Path, window: Window, track_statistics: Statistics, progress: Progress
    ) -> Generator[Stems]:
        track_statistics = audio.heard_by(self.bag.members[0].audio, track_statistics)
        all_weights = np.asarray(self.bag.weights, np.float32)[:, self._wanted.indices]
        totals = all_weights.sum(axis=0)[:, None, None]
        step, shifts = self._geometries[0].stride, max(1, self._shifts)
        passes = cycle(self._passes(path, window, track_statistics, progress))
        start = 0
        while (samples := min(step, window.samples(start + step) - start)) > 0:
            start += samples
            mixed = np.zeros((len(totals), self.channels, samples), np.float32)
            for member, stems in self._shares.items():
                shifted = next(passes).read(samples)
                for _ in range(1, shifts):
                    shifted = shifted + next(passes).read(samples)
                places = [self._wanted.separated.index(stem) for stem in stems]
                mixed[places] += shifted / np.float32(shifts) * all_weights[member][places, None, None]
            yield track_statistics.restored(mixed / totals)

    def _passes(self, path: Path, window: Window, track_statistics: Statistics, progress: Progress) -> list[SongPass]:
        """The passes over the track of the first member, of the second, and so on."""
        shifts = random.Random(self.options.seed)
        # Of every member, so that a stem is the same whatever else is asked for.
        drawn: list[list[int] | list[None]] = [
            [shifts.randint(0, geometry.max_shift) for _ in range(self._shifts)] or [None]
            for geometry in self._geometries
        ]
        plan = [(self._geometries[member], drawn[member], stems) for member, stems in self._shares.items()]
        total = sum(
            geometry.runs(window.samples(0), offset) * geometry.stride / self.samplerate
            for geometry, offsets, _ in plan
            for offset in offsets
        )
        done = 0.0

        def advance(seconds: float) -> None:
            nonlocal done
            done += seconds
            progress(Advance(path, done, total))

        advance(0.0)
        return [
            SongPass(
                self._model(orchestrator, stems),
                window,
                track_statistics,
                geometry,
                stems=len(stems),
                channels=self.channels,
                offset=offset,
                advanced=partial(advance, geometry.stride / self.samplerate),
            )
            for orchestrator, (geometry, offsets, stems) in zip(self._orchestrators, plan, strict=True)
            for offset in offsets
        ]

    def _model(self, orchestrator: Orchestrator, stems: Sequence[str]) -> Model:
        """The model on one segment of sound, for some of its stems.

        It runs in the caller's thread. In one beside it, with files read and written meanwhile, songs took a tenth
        longer: OpenMP keeps a team of threads for every thread that has computed, and where teams outnumber the
        processors, their threads sleep between operators.
        """
        (given,), (returned,) = orchestrator.bundle.inputs, orchestrator.bundle.outputs
        sound = orchestrator.bundle.audio
        places = [sound.stems.index(stem) for stem in stems]

        def run(mix: Block) -> Stems:
            separated = sound.separated(orchestrator.run({given: mix[None]})[returned])
            self._trimming.after_run()
            return separated[places] if len(places) < len(sound.stems) else separated

        return run

    def home(self, out: Path) -> Path:
        """The directory of the model."""
        return out / self.bag.name

    @property
    def written(self) -> tuple[str, ...]:
        """The files that each track gets, by the names of their stems."""
        return ("stems",) if self._in_one_file else self._wanted.written

    def outputs(self, path: Path, out: Path, template: str | None = None) -> dict[str, Path]:
        """Where each stem of a file will be written.

        Args:
            path: The file.
            out: The output folder.
            template: In place of ``options.filename``.

        Raises:
            UsageError: The template and the track's name make no path below the directory of the model.
        """
        template = template or self.options.filename
        if self._in_one_file and template == DEFAULT_FILENAME:
            template = _STEM_FILENAME
        return {name: self.home(out) / self._place(path, name, template) for name in self.written}

    def _place(self, path: Path, stem: str, template: str) -> str:
        """Where a stem goes below the directory of the model."""
        place = template.format(
            folder=readable(Path(os.path.abspath(path)).parent.name),  # noqa: PTH100 - resolve() follows links
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

    def write(self, track: Track, files: Mapping[str, Path], progress: Progress = silent) -> Written:
        """Separate a track into a file for each stem of `outputs`, by its name.

        Raises:
            AudioError: It cannot be read.
            OSError, RuntimeError: A file cannot be written; the latter from soundfile.
        """
        found = survey(track)
        encoding = self.options.encoding
        wanted = self.options.samplerate
        rate = encoding.rate(found.samplerate if wanted == "keep" else self.samplerate if wanted == "model" else wanted)
        samples = resampling.length(found.frames, found.samplerate, rate)
        places, written_as = files, encoding
        if self._in_one_file:
            (file,) = files.values()
            names = (aac.MIX, *self._wanted.written)
            places, written_as = {name: file.with_name(f"{file.name}.{name}") for name in names}, encoding.of_parts
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(StemWriter(place, written_as, rate, self.channels, samples, self.samplerate))
                for name, place in places.items()
            }
            window = self._window(track, found.statistics)
            for stems, mixture in self._selected(track.path, window, found.statistics, progress):
                for name, writer in writers.items():
                    writer.write(stems[name] if name in stems else mixture())
            gains = finish(writers.values(), torch.get_num_threads())
        if self._in_one_file:
            aac.write_stem_file(file, [*places.values()], self._wanted.written, encoding.aac_bitrate)
            for place in places.values():
                place.unlink()
        if self.options.tags and (song := tags.read(track.path)) is not None:
            (title,) = song.fields.get("title", [track.path.stem])[:1]
            for name, file in files.items():
                tags.write(file, song, title if self._in_one_file else f"{title} ({name})")
        decibels = {name: 20 * math.log10(gain) for name, gain in zip(writers, gains, strict=True)}
        return Written(found.samplerate, rate, samples, found.downmix, decibels if encoding.has_gain else {})


def _opened(model: str | Path | Bag | Bundle, progress: Progress) -> Bag:
    """A directory before a name: what is there is meant."""
    is_name = isinstance(model, str) and Path(model).name == model and not Path(model).exists()
    return named(str(model), progress) if is_name else load(model)


@contextmanager
def _share_of_threads(jobs: int) -> Iterator[None]:
    """What a job has, to measure on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if jobs == 1 else share(jobs))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _as_given(stem: Block, shape: tuple[int, ...], model_rate: int, samplerate: int) -> Block:
    """A stem at the rate, with the channels and of the length of what was given."""
    if shape[0] < len(stem):
        stem = _mono(stem)
    if samplerate != model_rate:
        stem = resampling.resampled(stem, model_rate, samplerate, shape[1])
    return stem


def _mono(stem: Block) -> Block:
    return stem.mean(axis=0, keepdims=True)


def _check_samplerate(options: Options) -> None:
    rate = options.samplerate
    if isinstance(rate, str):
        if rate not in ("keep", "model"):
            raise UsageError(f"unknown sample rate {rate!r}", expected="keep, model, or a number of Hz")
        return
    check_rate(rate, "a stem")
    if options.encoding.rate(rate) != rate:
        rates = ", ".join(f"{known:,}" for known in options.encoding.rates)
        raise UsageError(f"{options.encoding.name} has no sample rate of {rate:,} Hz", fix=f"It has {rates}.")


def _check_filename(template: str, *, in_one_file: bool) -> None:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UsageError(f"the filename template {template!r} is malformed", received=error) from error
    if unknown := fields - _FIELDS:
        raise UsageError(
            f"the filename template {template!r} has unknown fields",
            expected="{folder}, {track}, {trackext}, {stem} and {ext}",
            received=", ".join(sorted(unknown)),
        )
    if "stem" not in fields and not in_one_file:
        raise UsageError(f"the filename template {template!r} does not tell the stems apart", fix="Use {stem} in it.")
    try:
        example = template.format(**dict.fromkeys(_FIELDS, "name"))
    except (ValueError, LookupError) as error:
        raise UsageError(f"the filename template {template!r} cannot be filled in", received=error) from error
    if reason := path_fault(example):
        raise UsageError(
            f"the filename template {template!r} makes no path below the output folder: {reason}",
            fix="Leave out what leads elsewhere; -o says where the output folder is.",
        )
