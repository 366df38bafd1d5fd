"""Sound as a model hears it: decoded or in memory, at its rate, with its channels, normalised, by the piece."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import AudioRecord
from ..errors import AudioError
from . import channels as layouts
from . import decoding, resampling
from .channels import Channels
from .decoding import Frames, Source, check_finite, check_rate
from .resampling import Resampler

Block: TypeAlias = NDArray[np.float32]  # (channels, samples), full scale ±1

ENDLESS = 1 << 60  # samples of what has not ended yet

_BLOCK = 1 << 16  # samples at a time of sound in memory


@dataclass(frozen=True)
class Track:
    """An audio file as a model hears it: at one sample rate, with a fixed number of channels.

    Mono is copied to every channel.

    Attributes:
        path: The file.
        samplerate: The model's, in Hz.
        channels: The model's.
        layout: What becomes of three and more channels where the model has one or two: they are mixed down by ITU-R
            BS.775, or the first two are taken (as demucs does).
    """

    path: Path
    samplerate: int
    channels: int
    layout: Channels = "downmix"

    def blocks(self) -> Generator[Block]:
        """Decode from the start, see `Decoding.blocks`."""
        return Decoding(self).blocks()


class Decoding:
    """A track while it is decoded, once.

    Attributes:
        samplerate: The file's, in Hz; 0 before the first block.
        frames: Of the file, as far as it is decoded.
        downmix: What became of its channels, as a phrase; None where each is as it was.
    """

    def __init__(self, track: Track) -> None:
        self._track = track
        self.samplerate = 0
        self.frames = 0
        self.downmix: str | None = None

    def blocks(self) -> Generator[Block]:
        """``(channels, n)`` at a time with varying n; of n frames ``round(n · model rate / file rate)`` in all.

        Raises:
            AudioError: The file is missing, not audio, truncated where its codec can tell, holds NaN or infinite
                samples, or has a sample rate, channels or a length that no audio file has; or its sound is in none of
                the channels that are heard.
        """
        track = self._track
        check_rate(track.samplerate, "the model")
        with decoding.opened(track.path) as source:
            self.samplerate = source.samplerate
            gains = self._gains(source)
            rates = (source.samplerate, track.samplerate)
            resampler = None if rates[0] == rates[1] else Resampler(*rates, track.channels)
            sounds = heard = False
            for frames in source.blocks():
                self.frames += len(frames)
                fitted = self._fitted(frames, gains)
                if gains is not None:
                    sounds, heard = sounds or bool(frames.any()), heard or bool(fitted.any())
                if resampler is not None:
                    fitted = resampler.put(fitted)
                if len(fitted):
                    yield np.ascontiguousarray(fitted.T)
            if sounds and not heard:
                raise AudioError(
                    f"{track.path} is silent when its {self.downmix}",
                    fix=f"What sounds in {layouts.LFE} alone, or cancels out, is for you to mix.",
                )
            if resampler is not None:
                rest = resampler.end(resampling.length(self.frames, *rates))
                if len(rest):
                    yield np.ascontiguousarray(rest.T)

    def _gains(self, source: Source) -> Frames | None:
        """What each channel of a file gives to the left and the right, where it is mixed down.

        Raises:
            AudioError: Where they stand is not known, or the model takes none of so many.
        """
        track = self._track
        if source.channels <= 2 or source.channels == track.channels or track.layout == "first2":
            return None
        if track.channels > 2:
            raise AudioError(
                f"{track.path} has the wrong number of channels",
                expected=f"1 or {track.channels}",
                received=source.channels,
            )
        if source.positions is None:
            raise AudioError(
                f"{track.path} has {source.channels} channels and does not say where they stand",
                fix="Mix them down first, or take the first two with --channels first2.",
            )
        self.downmix = layouts.description(source.positions)
        return layouts.stereo_gains(source.positions)

    def _fitted(self, frames: Frames, gains: Frames | None) -> Frames:
        """Frames with the channels of the model."""
        wanted = self._track.channels
        if gains is not None:
            frames = frames @ gains
        if frames.shape[1] == wanted:
            return frames
        if frames.shape[1] == 1:
            return np.repeat(frames, wanted, axis=1)
        if wanted == 1:
            return frames.mean(axis=1, keepdims=True, dtype=np.float32)
        if frames.shape[1] < wanted:
            raise AudioError(
                f"{self._track.path} has the wrong number of channels",
                expected=f"1 or {wanted}",
                received=frames.shape[1],
            )
        return np.ascontiguousarray(frames[:, :wanted])


@dataclass(frozen=True)
class Sound:
    """A track in memory.

    Attributes:
        samples: ``(channels, n)``, finite, at the model's rate and with its channels.
    """

    samples: Block
    path: Path = Path("waveform")  # what messages call it

    @property
    def channels(self) -> int:
        return len(self.samples)

    def blocks(self) -> Iterator[Block]:
        """As those of a track that is decoded."""
        for start in range(0, self.samples.shape[1], _BLOCK):
            yield self.samples[:, start : start + _BLOCK]


class Live:
    """Sound that comes block by block, and ends when the blocks do.

    Attributes:
        channels: The model's.
        given: Samples that have come, at their own rate.
        mono: Whether they have one channel, which is copied; None before the first block.
    """

    path = Path("stream")  # what messages call it

    def __init__(self, blocks: Iterable[NDArray[np.floating]], samplerate: int, model_rate: int, channels: int) -> None:
        """Nothing is taken yet.

        Args:
            blocks: ``(channels, n)`` with varying n, as `sound` takes them.
            samplerate: Of them, in Hz.
            model_rate: Of the model.
            channels: Of the model.
        """
        check_rate(samplerate, "the stream")
        self.channels, self.given = channels, 0
        self.mono: bool | None = None
        self._blocks, self._rates = blocks, (samplerate, model_rate)

    def blocks(self) -> Generator[Block]:
        """As those of a track that is decoded.

        Raises:
            AudioError: A block is no such sound.
        """
        resampler = None if self._rates[0] == self._rates[1] else Resampler(*self._rates, self.channels)
        for waveform in self._blocks:
            block = _fitted(waveform, self.channels, "the stream", self.given, self._rates[0])
            if self.mono not in (None, len(waveform) < self.channels):
                raise AudioError("the stream changes its number of channels", received=len(waveform))
            self.mono = len(waveform) < self.channels
            self.given += block.shape[1]
            if resampler is not None:
                block = np.ascontiguousarray(resampler.put(block.T).T)
            if block.shape[1]:
                yield block
        if resampler is not None:
            rest = resampler.end(resampling.length(self.given, *self._rates))
            if len(rest):
                yield np.ascontiguousarray(rest.T)


def sound(waveform: NDArray[np.floating], samplerate: int, *, model_rate: int, channels: int) -> Sound:
    """What a model hears of a waveform.

    Args:
        waveform: ``(channels, samples)``, full scale ±1; one channel, which is copied, or as many as the model has.
        samplerate: Of it, in Hz.
        model_rate: Of the model.
        channels: Of the model.

    Raises:
        AudioError: It has another shape or type, a sample that is not finite, none at all, or no such rate.
    """
    check_rate(samplerate, "the waveform")
    samples = _fitted(waveform, channels, "the waveform", 0, samplerate)
    if samplerate != model_rate and samples.shape[1]:
        length = resampling.length(samples.shape[1], samplerate, model_rate)
        samples = resampling.resampled(samples, samplerate, model_rate, length)
    return Sound(samples)


def _fitted(waveform: NDArray[np.floating], channels: int, what: str, start: int, samplerate: int) -> Block:
    """A piece of a waveform in float32 with a model's channels; it begins at a sample of the whole."""
    waveform = np.asarray(waveform)
    if waveform.ndim != 2 or len(waveform) not in (1, channels) or waveform.dtype.kind != "f":
        raise AudioError(
            f"{what} cannot be separated",
            expected=f"floating-point samples of shape ({' or '.join(map(str, sorted({1, channels})))}, samples)",
            received=f"{waveform.dtype} of shape {waveform.shape}",
        )
    check_finite(waveform.T, what, start=start, samplerate=samplerate)
    return np.broadcast_to(waveform, (channels, waveform.shape[1])).astype(np.float32)


@dataclass(frozen=True)
class Statistics:
    """Of the mono mixdown of a whole track.

    Attributes:
        samples: Length at the track's rate.
        mean: Of the mixdown.
        std: With Bessel's correction, as `torch.Tensor.std`.
        applied: Whether the model hears the track normalised by them; as it is otherwise.
    """

    samples: int
    mean: float
    std: float
    applied: bool = True

    @classmethod
    def of(cls, mixture: Block) -> Self:
        """Of sound in memory, ``(channels, samples)``, in double precision."""
        mono = mixture.mean(axis=0, dtype=np.float64)
        return cls(mono.size, float(mono.mean()), float(mono.std(ddof=1)) if mono.size > 1 else 0.0)

    @property
    def scale(self) -> float:
        """What sound is divided by: the deviation, kept from zero as demucs keeps it."""
        return self.std + 1e-8

    def normalised(self, sound: Block) -> Block:
        """``(x − mean) / scale``, in double precision and rounded once."""
        if not self.applied:
            return sound
        return ((sound.astype(np.float64) - self.mean) / self.scale).astype(np.float32)

    def restored(self, sound: Block) -> Block:
        """``x · scale + mean``, in place of what `normalised` took."""
        if not self.applied:
            return sound
        return sound * np.float32(self.scale) + np.float32(self.mean)


def heard(mixture: Block, record: AudioRecord) -> Block:
    """What `separate` feeds the model for a track that is this mixture."""
    return heard_by(record, Statistics.of(mixture)).normalised(mixture)


def heard_by(record: AudioRecord, found: Statistics) -> Statistics:
    """A track's statistics, applied if the model hears it normalised."""
    return replace(found, applied=record.chunking.normalised)


@dataclass(frozen=True)
class Survey:
    """What is known of a track when it has been decoded once.

    Attributes:
        statistics: Of what the model hears.
        samplerate: The file's, in Hz.
        frames: Its length at that rate.
        downmix: As `Decoding.downmix`.
    """

    statistics: Statistics
    samplerate: int
    frames: int
    downmix: str | None


def survey(track: Track) -> Survey:
    """Decode a track once.

    Raises:
        AudioError: As `Decoding.blocks`, or there is not a single sample.
    """
    decoding = Decoding(track)
    result = _statistics(decoding.blocks(), track.path)
    return Survey(result, decoding.samplerate, decoding.frames, decoding.downmix)


def statistics(track: Track | Sound) -> Statistics:
    """Decode a track once, in double precision.

    Raises:
        AudioError: As `Decoding.blocks`, or there is not a single sample.
    """
    return _statistics(track.blocks(), track.path)


def _statistics(blocks: Iterator[Block], path: Path) -> Statistics:
    count, total, squares = 0, 0.0, 0.0
    shift: float | None = None  # a sample near the mean keeps the squares from cancelling
    for block in blocks:
        mono = block.mean(axis=0, dtype=np.float64)
        if shift is None:
            shift = float(mono[0])
        mono -= shift
        count += mono.size
        total += float(mono.sum())
        squares += float(np.dot(mono, mono))
    if shift is None:
        raise AudioError(f"{path} is empty", expected="at least 1 sample")
    variance = (squares - total * total / count) / (count - 1) if count > 1 else math.nan
    return Statistics(count, shift + total / count, math.sqrt(max(variance, 0.0)) if count > 1 else 0.0)


class Window:
    """Random access to a track for readers that move forward: zeros outside, and a bounded memory."""

    def __init__(self, track: Track | Sound | Live, history: int, samples: int | None = None) -> None:
        """Open a track.

        Args:
            track: What to read.
            history: How many samples before the end of the last read may still be asked for.
            samples: In all; None where that is known when it ends.
        """
        self._blocks = track.blocks()
        self._history = history
        self._samples = samples
        self._buffer: Block = np.zeros((track.channels, 0), np.float32)
        self._start = 0
        self._ended = False

    def read(self, start: int, stop: int) -> Block:
        """Samples ``start ≤ i < stop`` as ``(channels, stop - start)``."""
        buffer = self._read_to(stop)
        end = self._start + buffer.shape[1]
        if max(start, 0) < self._start:
            raise ValueError(f"sample {start} is no longer held; the window starts at {self._start}")
        result = np.zeros((buffer.shape[0], stop - start), np.float32)
        low, high = max(start, 0), min(stop, end)
        if low < high:
            result[:, low - start : high - start] = buffer[:, low - self._start : high - self._start]
        drop = max(0, min(stop, end) - self._history - self._start)
        self._buffer = buffer[:, drop:].copy() if drop else buffer
        self._start += drop
        return result

    def samples(self, reached: int) -> int:
        """How many there are in all; more than anybody asks for while it is not known that they end at ``reached``."""
        if self._samples is None:
            self._buffer = self._read_to(reached + 1)
            if not self._ended:
                return ENDLESS
            self._samples = self._start + self._buffer.shape[1]
        return self._samples

    def _read_to(self, stop: int) -> Block:
        """What is held, and what comes up to a sample."""
        parts = [self._buffer]
        end = self._start + self._buffer.shape[1]
        while end < stop and not self._ended:
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
            else:
                parts.append(block)
                end += block.shape[1]
        return np.concatenate(parts, axis=1) if len(parts) > 1 else self._buffer
