"""Audio files in and out, block by block: soundfile decodes and encodes, soxr resamples."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from .. import reading
from ..errors import AudioError, UsageError

Block: TypeAlias = NDArray[np.float32]  # (channels, samples), full scale ±1
ClipMode: TypeAlias = Literal["rescale", "clamp", "tanh", "none"]
MP3_BITRATES = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # kbit/s, of MPEG-1 layer III

_BLOCK = 1 << 16  # frames decoded at a time
_RATES = range(1_000, 768_000 + 1)  # Hz: from telephones' to converters'; far apart ones make a resampler of gigabytes
_MOST_CHANNELS = 64
_MOST_PER_BYTE = 1 << 16  # samples: FLAC stores a whole frame of silence in a dozen bytes
_UNKNOWN = 1 << 62  # frames, or more, of a file that does not say
_WAV_LIMIT = (1 << 32) - (1 << 16)  # bytes a RIFF header can count; longer files are RF64


@dataclass(frozen=True)
class Track:
    """An audio file as a model hears it: at one sample rate, with a fixed number of channels.

    Mono is copied to every channel; of more channels than wanted the first are taken (as demucs does).
    """

    path: Path
    samplerate: int
    channels: int

    def blocks(self) -> Iterator[Block]:
        """Decode from the start, ``(channels, n)`` at a time with varying n.

        Raises:
            AudioError: The file is missing, not audio, truncated where its codec can tell, holds NaN or infinite
                samples, or has a sample rate, channels or a length that no audio file has.
        """
        _check_rate(self.samplerate, "the model")
        try:
            with _opened(self.path) as file:
                decoded = 0
                resampler = None
                if file.samplerate != self.samplerate:
                    resampler = soxr.ResampleStream(file.samplerate, self.samplerate, self.channels, dtype="float32")
                while True:
                    frames = file.read(_BLOCK, dtype="float32", always_2d=True)
                    last = len(frames) == 0
                    decoded += len(frames)
                    if last and (missing := _missing_frames(file, decoded)):
                        raise AudioError(f"{self.path} is complete", received=f"{missing} samples fewer than it says")
                    if not np.isfinite(frames).all():
                        raise AudioError(f"{self.path} holds finite samples", received="NaN or infinity")
                    frames = self._fit(frames)
                    if resampler is not None:
                        frames = resampler.resample_chunk(frames, last=last)
                    if len(frames):
                        yield np.ascontiguousarray(frames.T)
                    if last:
                        return
        except (soundfile.LibsndfileError, OSError) as error:
            reason = "no such file" if not self.path.exists() else str(getattr(error, "error_string", error))
            raise AudioError(f"{self.path} must be a readable audio file", received=reason.rstrip(".")) from error

    def _fit(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        if frames.shape[1] == 1:
            return np.repeat(frames, self.channels, axis=1)
        if self.channels == 1:
            return frames.mean(axis=1, keepdims=True, dtype=np.float32)
        if frames.shape[1] < self.channels:
            raise AudioError(f"{self.path} is mono or has {self.channels} channels", received=frames.shape[1])
        return np.ascontiguousarray(frames[:, : self.channels])


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
    waveform = np.asarray(waveform)
    _check_rate(samplerate, "the waveform")
    if waveform.ndim != 2 or len(waveform) not in (1, channels) or waveform.dtype.kind != "f":
        raise AudioError(
            "the waveform cannot be separated",
            expected=f"floating-point samples of shape ({' or '.join(map(str, sorted({1, channels})))}, samples)",
            received=f"{waveform.dtype} of shape {waveform.shape}",
        )
    if not np.isfinite(waveform).all():
        raise AudioError("the waveform holds NaN or infinity", expected="finite samples")
    samples = np.broadcast_to(waveform, (channels, waveform.shape[1])).astype(np.float32)
    if samplerate != model_rate and samples.shape[1]:
        length = max(1, round(samples.shape[1] * model_rate / samplerate))
        samples = resampled(samples, samplerate, model_rate, length)
    return Sound(samples)


def resampled(samples: Block, from_rate: int, to_rate: int, length: int) -> Block:
    """Samples at another rate, by soxr, and so many of them: it may give a few more or less."""
    result = soxr.resample(samples.T, from_rate, to_rate).T[:, :length]
    return np.pad(result, [(0, 0), (0, length - result.shape[1])]).astype(np.float32)


def _check_rate(samplerate: int, whose: str) -> None:
    if samplerate not in _RATES:
        raise AudioError(
            f"{whose} has an impossible sample rate",
            expected=f"{_RATES.start:,} to {_RATES.stop - 1:,} Hz",
            received=f"{samplerate:,} Hz",
        )


def _check_header(path: Path, file: soundfile.SoundFile, size: int) -> None:
    """Refuse what its header asks for and no file of so many bytes has."""
    _check_rate(file.samplerate, str(path))
    if file.channels > _MOST_CHANNELS:
        raise AudioError(f"{path} has too many channels", expected=f"at most {_MOST_CHANNELS}", received=file.channels)
    if size * _MOST_PER_BYTE < file.frames * file.channels and file.frames < _UNKNOWN:
        raise AudioError(
            f"{path} cannot be as long as its header says",
            expected=f"at most {size * _MOST_PER_BYTE:,} samples in {size:,} bytes",
            received=f"{file.frames:,} samples in {file.channels} channels",
        )


def _missing_frames(file: soundfile.SoundFile, decoded: int) -> int:
    """How many frames short of its own header a decoded file is; 0 where the format does not say."""
    if file.format in ("WAV", "AIFF", "WAVEX"):
        # libsndfile adapts the length to the file and notes it in its log. Sizes of 2 GiB and more are
        # placeholders of writers that could not seek back.
        noted = re.search(r"^(?:data| SSND) : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
        if noted and int(noted[1]) < 0x7FFF_0000:
            return max(0, int(noted[1]) - int(noted[2])) * file.frames // max(1, int(noted[2]))
        return 0
    return max(0, file.frames - decoded) if file.seekable() else 0


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """A file to decode.

    An MP3 that does not say how long it is comes through a pipe: of a file libsndfile estimates the length by the first
    frames, and reads no further than that.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(reading.opened(path))
        file = stack.enter_context(soundfile.SoundFile(raw.fileno(), closefd=False))
        _check_header(path, file, os.fstat(raw.fileno()).st_size)
        start = _untagged(path) if file.format == "MP3" else None
        if start is None:
            yield file
            return
        pool = stack.enter_context(ThreadPoolExecutor(1, "feed"))
        source, writing = os.pipe()
        feeding = pool.submit(_feed, path, start, writing)
        stack.callback(os.close, source)
        yield stack.enter_context(soundfile.SoundFile(source, closefd=False))
        feeding.result()


def _untagged(path: Path) -> int | None:
    """Where the frames of an MP3 begin, after its ID3v2 tags; None if the first of them tells how many there are."""
    start = 0
    with reading.opened(path) as file:
        while len(head := file.read(10)) == 10 and head.startswith(b"ID3"):
            footer = 10 if head[5] & 0x10 else 0
            start += 10 + sum((byte & 0x7F) << 7 * place for place, byte in enumerate(head[:5:-1])) + footer
            file.seek(start)
        file.seek(start)
        first = re.search(rb"\xff[\xe0-\xff].{46}", file.read(1 << 16), re.DOTALL)
    return None if first and re.search(rb"Xing|Info", first[0]) else start


def _feed(path: Path, start: int, pipe: int) -> None:
    with suppress(BrokenPipeError), os.fdopen(pipe, "wb") as sink, reading.opened(path) as file:  # who reads may stop
        file.seek(start)
        shutil.copyfileobj(file, sink)


@dataclass(frozen=True)
class Statistics:
    """Of the mono mixdown of a whole track.

    Attributes:
        samples: Length at the track's rate.
        mean: Of the mixdown.
        std: With Bessel's correction, as `torch.Tensor.std`.
    """

    samples: int
    mean: float
    std: float

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
        return ((sound.astype(np.float64) - self.mean) / self.scale).astype(np.float32)

    def restored(self, sound: Block) -> Block:
        """``x · scale + mean``, in place of what `normalised` took."""
        return sound * np.float32(self.scale) + np.float32(self.mean)


def normalised(mixture: Block) -> Block:
    """What `separate` feeds the model for a track that is this mixture."""
    return Statistics.of(mixture).normalised(mixture)


def statistics(track: Track | Sound) -> Statistics:
    """Decode a track once, in double precision.

    Raises:
        AudioError: As `Track.blocks`, or there is not a single sample.
    """
    count, total, squares = 0, 0.0, 0.0
    shift: float | None = None  # a sample near the mean keeps the squares from cancelling
    for block in track.blocks():
        mono = block.mean(axis=0, dtype=np.float64)
        if shift is None:
            shift = float(mono[0])
        mono -= shift
        count += mono.size
        total += float(mono.sum())
        squares += float(np.dot(mono, mono))
    if shift is None:
        raise AudioError(f"{track.path} must hold sound", received="no samples at all")
    variance = (squares - total * total / count) / (count - 1) if count > 1 else math.nan
    return Statistics(count, shift + total / count, math.sqrt(max(variance, 0.0)) if count > 1 else 0.0)


class Window:
    """Random access to a track for readers that move forward: zeros outside, and a bounded memory."""

    def __init__(self, track: Track | Sound, history: int) -> None:
        """Open a track.

        Args:
            track: What to read.
            history: How many samples before the end of the last read may still be asked for.
        """
        self._blocks = track.blocks()
        self._history = history
        self._buffer: Block = np.zeros((track.channels, 0), np.float32)
        self._start = 0
        self._ended = False

    def read(self, start: int, stop: int) -> Block:
        """Samples ``start ≤ i < stop`` as ``(channels, stop - start)``."""
        parts = [self._buffer]
        end = self._start + self._buffer.shape[1]
        while end < stop and not self._ended:
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
            else:
                parts.append(block)
                end += block.shape[1]
        buffer = np.concatenate(parts, axis=1) if len(parts) > 1 else self._buffer
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


@dataclass(frozen=True)
class Encoding:
    """How stems are written.

    Attributes:
        container: ``wav``, ``flac`` or ``mp3``: also the file extension.
        subtype: libsndfile's name of the sample format.
        clip: What happens to samples beyond full scale. ``rescale`` divides the whole stem by its peak
            (times 1.01, as demucs) if that exceeds 1; ``clamp`` limits to ±0.99; ``tanh`` bends; ``none``
            leaves them to the format.
        mp3_bitrate: In kbit/s, constant.
    """

    container: Literal["wav", "flac", "mp3"] = "wav"
    subtype: Literal["PCM_16", "PCM_24", "FLOAT", "MPEG_LAYER_III"] = "PCM_16"
    clip: ClipMode = "rescale"
    mp3_bitrate: int = 320

    def __post_init__(self) -> None:
        """Raises `UsageError` for a bit rate that MP3 does not have."""
        if self.mp3_bitrate not in MP3_BITRATES:
            rates = ", ".join(map(str, MP3_BITRATES))
            raise UsageError("MP3 has the bit rate", received=self.mp3_bitrate, fix=f"It has {rates}.")


class StemWriter:
    """Writes one stem as it grows.

    With ``rescale`` the gain is known only at the end, so the samples wait in a float32 file beside the
    target and a second pass writes them out.
    """

    def __init__(self, path: Path, encoding: Encoding, samplerate: int, channels: int, samples: int) -> None:
        """Open the file for ``samples`` frames; its directory exists."""
        self._path, self._encoding = path, encoding
        self._samplerate, self._channels, self._samples = samplerate, channels, samples
        self._waiting = path.with_name(path.name + ".waiting") if encoding.clip == "rescale" else None
        self._peak = 0.0
        self._file = self._open(path) if self._waiting is None else self._open_float(self._waiting, "w")

    def write(self, block: Block) -> None:
        """Append ``(channels, n)`` samples."""
        if self._waiting is not None:
            self._peak = max(self._peak, float(np.abs(block).max(initial=0.0)))
        else:
            block = _CLIPS[self._encoding.clip](block)
        self._file.write(block.T)

    def finishing(self) -> Generator[int]:
        """Close the file; with ``rescale``, write it now and yield the frames of each step. `finish` takes them all.

        Raises:
            OSError, RuntimeError: The file cannot be written; the latter from soundfile.
        """
        self._file.close()
        if self._waiting is None:
            return
        gain = np.float32(1 / max(1.01 * self._peak, 1.0))
        with self._open_float(self._waiting, "r") as source, self._open(self._path) as sink:
            for frames in source.blocks(_BLOCK, dtype="float32", always_2d=True):
                sink.write(frames * gain)
                yield len(frames)
        self._waiting.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _open(self, path: Path) -> soundfile.SoundFile:
        encoding = self._encoding
        options: dict[str, object] = {"format": encoding.container.upper(), "subtype": encoding.subtype}
        if encoding.container == "mp3":
            # libsndfile's compression level spans the bit rates of MPEG-1 layer III; at 1.0 its own check fails.
            level = min((320 - encoding.mp3_bitrate) / (320 - 32), 0.999)
            options |= {"bitrate_mode": "CONSTANT", "compression_level": level}
        if encoding.container == "wav":
            width = {"PCM_16": 2, "PCM_24": 3}.get(encoding.subtype, 4)
            if width * self._channels * self._samples > _WAV_LIMIT:
                options["format"] = "RF64"
        return soundfile.SoundFile(os.fsencode(path), "w", self._samplerate, self._channels, **options)

    def _open_float(self, path: Path, mode: str) -> soundfile.SoundFile:
        name = os.fsencode(path)
        return soundfile.SoundFile(name, mode, self._samplerate, self._channels, format="RAW", subtype="FLOAT")


def finish(writers: Iterable[StemWriter], threads: int = 1) -> None:
    """Finish files, so many at a time: an encoder uses one thread.

    Raises:
        OSError, RuntimeError: A file cannot be written; the latter from soundfile. None of the others goes on.
    """
    with ExitStack() as stack, ThreadPoolExecutor(threads, "encode") as pool:
        left = [writer.finishing() for writer in writers]
        for steps in left:
            stack.callback(_close, steps)
        while left:  # a step of each, which is all that an interrupt waits for
            written = list(pool.map(lambda steps: next(steps, 0), left))
            left = [steps for steps, frames in zip(left, written, strict=True) if frames]


def _close(steps: Generator[int]) -> None:
    with suppress(ValueError):  # a second interrupt does not wait for the thread that is at it
        steps.close()


_CLIPS: dict[ClipMode, Callable[[Block], Block]] = {
    "clamp": lambda block: np.clip(block, np.float32(-0.99), np.float32(0.99)),
    "tanh": np.tanh,
    "none": lambda block: block,
}
