"""Stems on their way into files, block by block: soxr resamples, soundfile encodes, FFmpeg's libraries encode AAC."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

import numpy as np
import soundfile

from ..errors import UsageError
from . import aac
from .aac import AacFile
from .audio import Block
from .decoding import Frames
from .resampling import Resampler

ClipMode: TypeAlias = Literal["rescale", "rescale-each", "clamp", "tanh", "none"]
STEM_FILE = "stem.mp4"
MP3_BITRATES = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # kbit/s, of MPEG-1 layer III

MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # Hz, of MPEG-1, 2 and 2.5

_AAC_BITRATES = (32, 320)  # kbit/s, least and most
_BLOCK = 1 << 16  # frames written at a time
_MP3_SPANS = ((16_000, 8, 64), (32_000, 8, 160), (math.inf, 32, 320))  # kbit/s, least and most, of rates below so many
_WAV_LIMIT = (1 << 32) - (1 << 16)  # bytes a RIFF header can count; longer files are RF64


@dataclass(frozen=True)
class Encoding:
    """How stems are written.

    Attributes:
        container: ``wav``, ``flac``, ``mp3``, ``m4a``, or ``stem.mp4`` for one file of the song and four stems, as DJ
            software reads it: also the file extension. The last two take the extra `av`.
        subtype: libsndfile's name of the sample format.
        clip: What happens to samples beyond full scale. ``rescale`` divides all stems of a song by the highest peak
            among them, times 1.01, if that exceeds 1; ``rescale-each`` divides each stem by its own (as demucs does);
            ``clamp`` limits to ±0.99; ``tanh`` bends; ``none`` leaves them to the format.
        mp3_bitrate: In kbit/s, constant.
        aac_bitrate: In kbit/s, of each track.
    """

    container: Literal["wav", "flac", "mp3", "m4a", "stem.mp4"] = "wav"
    subtype: Literal["PCM_16", "PCM_24", "FLOAT", "MPEG_LAYER_III", "AAC"] = "PCM_16"
    clip: ClipMode = "rescale"
    mp3_bitrate: int = 320
    aac_bitrate: int = 256

    def __post_init__(self) -> None:
        """Raises `UsageError` for a bit rate that the format does not have, or if its encoder is not installed."""
        if self.is_aac and find_spec("av") is None:
            raise UsageError(
                "AAC is written by FFmpeg's libraries, which are not installed",
                fix="Install them: pip install 'splitter[av]'. Or choose another format.",
            )
        least, most = _AAC_BITRATES
        if not least <= self.aac_bitrate <= most:
            raise UsageError(
                "the bit rate of AAC is out of range",
                expected=f"between {least} and {most} kbit/s",
                received=self.aac_bitrate,
            )
        if self.mp3_bitrate not in MP3_BITRATES:
            rates = ", ".join(map(str, MP3_BITRATES))
            raise UsageError(f"MP3 has no bit rate of {self.mp3_bitrate} kbit/s", fix=f"It has {rates}.")

    @property
    def name(self) -> str:
        """Of the format, for people."""
        return "AAC" if self.is_aac else self.container.upper()

    @property
    def is_aac(self) -> bool:
        return self.container in ("m4a", STEM_FILE)

    @property
    def of_parts(self) -> Encoding:
        """How what a stem file is made of waits to be put into it."""
        return replace(self, container="wav", subtype="FLOAT")

    @property
    def rates(self) -> tuple[int, ...]:
        """Sample rates that the format has, in Hz; none where it has any."""
        return MP3_RATES if self.container == "mp3" else aac.RATES if self.is_aac else ()

    @property
    def has_gain(self) -> bool:
        """Whether samples beyond full scale are brought below it by a gain, which is known when all have come."""
        return self.clip in ("rescale", "rescale-each")

    def rate(self, wanted: int) -> int:
        """The sample rate that the format has for one: MP3 has nine, of which the next above it holds all it can."""
        rates = self.rates
        if not rates or wanted in rates:
            return wanted
        if wanted > rates[-1] and wanted % 44_100 == 0:
            return max(rate for rate in rates if rate % 44_100 == 0)
        return min((rate for rate in rates if rate > wanted), default=rates[-1])


class StemWriter:
    """Writes one stem as it grows.

    A gain is known only at the end, so where there is one the samples wait in a float32 file beside the target, and a
    second pass writes them out.

    Attributes:
        path: The file.
        encoding: How it is written.
        peak: Highest magnitude so far, at the file's rate, where a gain goes by it.
    """

    def __init__(
        self,
        path: Path,
        encoding: Encoding,
        samplerate: int,
        channels: int,
        samples: int,
        model_rate: int | None = None,
    ) -> None:
        """Open the file, whose directory exists.

        Args:
            path: The file.
            encoding: How it is written.
            samplerate: The file's, in Hz.
            channels: The file's.
            samples: Frames of the file: no more are written, and no less.
            model_rate: Of what `write` is given; the file's where None.
        """
        self.path, self.encoding = path, encoding
        self._samplerate, self._channels, self._samples = samplerate, channels, samples
        other_rate = model_rate not in (None, samplerate)
        self._resampler = Resampler(model_rate, samplerate, channels) if other_rate and model_rate else None
        self._waiting = path.with_name(path.name + ".waiting") if encoding.has_gain else None
        self.peak = 0.0
        self._file = self._open(path) if self._waiting is None else self._open_float(self._waiting, "w")

    def write(self, block: Block) -> None:
        """Append ``(channels, n)`` samples."""
        frames = block.T
        self._write(frames if self._resampler is None else self._resampler.put(frames))

    def end(self) -> None:
        """Write what the resampler has held back. Nothing more is written."""
        if self._resampler is not None:
            self._write(self._resampler.end(self._samples))
        self._file.close()

    def _write(self, frames: Frames) -> None:
        if self._waiting is not None:
            self.peak = max(self.peak, float(np.abs(frames).max(initial=0.0)))
        else:
            frames = _CLIPS[self.encoding.clip](frames)
        self._file.write(frames)

    def finishing(self, gain: float) -> Generator[int]:
        """Write what waits for a gain, and yield the frames of each step. `finish` takes them all.

        Raises:
            OSError, RuntimeError: The file cannot be written; the latter from soundfile.
        """
        if self._waiting is None:
            return
        with self._open_float(self._waiting, "r") as source, self._open(self.path) as sink:
            for frames in source.blocks(_BLOCK, dtype="float32", always_2d=True):
                sink.write(frames * np.float32(gain))
                yield len(frames)
        self._waiting.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _open(self, path: Path) -> soundfile.SoundFile | AacFile:
        encoding = self.encoding
        if encoding.container == "m4a":
            return AacFile(path, self._samplerate, self._channels, encoding.aac_bitrate)
        options: dict[str, object] = {"format": encoding.container.upper(), "subtype": encoding.subtype}
        if encoding.container == "mp3":
            # libsndfile's compression level spans the bit rates of MPEG's layer III; at 1.0 its own check fails.
            least, most = next((least, most) for below, least, most in _MP3_SPANS if self._samplerate < below)
            level = min((most - min(encoding.mp3_bitrate, most)) / (most - least), 0.999)
            options |= {"bitrate_mode": "CONSTANT", "compression_level": level}
        if encoding.container == "wav":
            width = {"PCM_16": 2, "PCM_24": 3}.get(encoding.subtype, 4)
            if width * self._channels * self._samples > _WAV_LIMIT:
                options["format"] = "RF64"
        return soundfile.SoundFile(os.fsencode(path), "w", self._samplerate, self._channels, **options)

    def _open_float(self, path: Path, mode: str) -> soundfile.SoundFile:
        name = os.fsencode(path)
        return soundfile.SoundFile(name, mode, self._samplerate, self._channels, format="RAW", subtype="FLOAT")


def finish(writers: Iterable[StemWriter], threads: int = 1) -> list[float]:
    """Finish the files of one song, so many at a time: an encoder uses one thread.

    Returns:
        The gain of each, 1 where a stem was written as it was.

    Raises:
        OSError, RuntimeError: A file cannot be written; the latter from soundfile. None of the others goes on.
    """
    writers = [*writers]
    for writer in writers:
        writer.end()
    gains = _gains(writers)
    with ExitStack() as stack, ThreadPoolExecutor(threads, "encode") as pool:
        left = [writer.finishing(gain) for writer, gain in zip(writers, gains, strict=True)]
        for steps in left:
            stack.callback(_close, steps)
        while left:  # a step of each, which is all that an interrupt waits for
            written = list(pool.map(lambda steps: next(steps, 0), left))
            left = [steps for steps, frames in zip(left, written, strict=True) if frames]
    return gains


def _gains(writers: Sequence[StemWriter]) -> list[float]:
    """What brings the peaks of a song's stems below full scale: one gain for all, so that their balance stays."""
    peaks = [writer.peak for writer in writers]
    if any(writer.encoding.clip == "rescale" for writer in writers):
        peaks = [max(peaks)] * len(peaks)
    return [1 / max(1.01 * peak, 1.0) for peak in peaks]


def _close(steps: Generator[int]) -> None:
    with suppress(ValueError):  # a second interrupt does not wait for the thread that is at it
        steps.close()


_CLIPS: dict[ClipMode, Callable[[Frames], Frames]] = {
    "clamp": lambda frames: np.clip(frames, np.float32(-0.99), np.float32(0.99)),
    "tanh": np.tanh,
    "none": lambda frames: frames,
}
