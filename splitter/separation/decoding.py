"""Sound files while they are decoded, block by block, by soundfile, or else by FFmpeg's libraries.

A file may come from anybody: what its header asks for is held against its bytes before anything is made of it.
"""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

from .. import reading
from ..errors import AudioError
from ..terminal import without_messages
from . import channels
from .channels import Positions

Frames: TypeAlias = NDArray[np.float32]  # (frames, channels), full scale ±1

_BLOCK = 1 << 16  # frames decoded at a time
_RATES = range(1_000, 768_000 + 1)  # Hz: from telephones' to converters'; far apart ones make a resampler of gigabytes
_MOST_CHANNELS = 64
_MOST_PER_BYTE = 1 << 16  # samples: FLAC stores a whole frame of silence in a dozen bytes
_UNKNOWN = 1 << 62  # frames, or more, of a file that does not say
_XIPH = ("VORBIS", "OPUS")  # subtypes of Ogg whose channels have an order of their own


class Source(ABC):
    """A file that is decoded.

    Attributes:
        samplerate: The file's, in Hz.
        channels: The file's.
        positions: Where its channels stand, if there are three or more and it is known.
    """

    samplerate: int
    channels: int
    positions: Positions | None = None

    @abstractmethod
    def blocks(self) -> Iterator[Frames]:
        """All frames, in order.

        Raises:
            AudioError: There are fewer than the file says, or a sample is not finite.
        """


class _SoundFile(Source):
    """What libsndfile reads."""

    def __init__(self, path: Path, file: soundfile.SoundFile) -> None:
        self._path, self._file = path, file
        self.samplerate, self.channels = file.samplerate, file.channels
        if self.channels > 2:
            noted = re.search(r"^ *Channel Mask *: 0x([0-9A-F]+) ", file.extra_info, re.MULTILINE)
            mask = int(noted[1], 16) if noted else None
            self.positions = channels.positions(self.channels, mask=mask, xiph=file.subtype in _XIPH)

    def blocks(self) -> Iterator[Frames]:
        decoded = 0
        while len(frames := self._read()):
            check_finite(frames, str(self._path), start=decoded, samplerate=self.samplerate)
            decoded += len(frames)
            yield frames
        if missing := _missing_frames(self._file, decoded):
            raise truncated(self._path, decoded + missing, decoded)

    def _read(self) -> Frames:
        with without_messages() if self._file.format == "MP3" else nullcontext():
            return self._file.read(_BLOCK, dtype="float32", always_2d=True)


def truncated(path: Path, promised: int, decoded: int) -> AudioError:
    """Of a file that holds fewer samples than it says."""
    return AudioError(
        f"{path} is truncated", expected=f"{promised:,} samples", received=f"{decoded:,}", fix="Export it again."
    )


def check_finite(frames: NDArray[np.floating], whose: str, *, start: int, samplerate: int) -> None:
    """Refuse ``(frames, channels)`` with a sample that is no number, and say where the first of them is.

    Args:
        frames: What to look at.
        whose: What messages call it.
        start: The frame of the whole that they begin with.
        samplerate: In Hz.
    """
    if np.isfinite(frames).all():
        return
    frame, channel = np.argwhere(~np.isfinite(frames))[0]
    value = "NaN" if np.isnan(frames[frame, channel]) else "infinity"
    raise AudioError(
        f"{whose} holds {value} at {(start + frame) / samplerate:.3f} s in channel {channel + 1}",
        expected="finite samples",
    )


def check_rate(samplerate: int, whose: str) -> None:
    if samplerate not in _RATES:
        raise AudioError(
            f"{whose} has an impossible sample rate",
            expected=f"{_RATES.start:,} to {_RATES.stop - 1:,} Hz",
            received=f"{samplerate:,} Hz",
        )


def check_format(path: Path, samplerate: int, count: int) -> None:
    """Refuse a sample rate and a number of channels that no audio file has."""
    check_rate(samplerate, str(path))
    if not 0 < count <= _MOST_CHANNELS:
        raise AudioError(f"{path} has too many channels", expected=f"at most {_MOST_CHANNELS}", received=count)


def _check_header(path: Path, file: soundfile.SoundFile, size: int) -> None:
    """Refuse what its header asks for and no file of so many bytes has."""
    check_format(path, file.samplerate, file.channels)
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
            promised, held = int(noted[1]), int(noted[2])
            frame_bytes = held // max(1, file.frames)  # 0 where samples are compressed: then by the ratio
            if frame_bytes and file.frames:
                return max(0, -(-(promised - held) // frame_bytes))
            return max(0, promised - held) * file.frames // max(1, held)
        return 0
    return max(0, file.frames - decoded) if file.seekable() else 0


def seconds(path: Path) -> float | None:
    """How long a file says it is; None if it does not, or libsndfile cannot tell."""
    try:
        with (
            reading.opened(path) as raw,
            without_messages(),
            soundfile.SoundFile(raw.fileno(), closefd=False) as file,
        ):
            return file.frames / file.samplerate if file.frames < _UNKNOWN else None
    except (soundfile.LibsndfileError, OSError):
        return None


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """A file to decode. Errors of the libraries in the block are raised as `AudioError`.

    Raises:
        AudioError: It is missing, not audio, or has a sample rate, channels or a length that no audio file has.
    """
    from . import media  # which is about sources, too

    try:
        with ExitStack() as stack:
            try:
                source: Source = _SoundFile(path, stack.enter_context(_opened(path)))
            except soundfile.LibsndfileError:
                if (kind := media.kind(path)) is None:
                    raise
                source = stack.enter_context(media.opened(path, kind))
            yield source
    except (soundfile.LibsndfileError, OSError) as error:
        reason = "no such file" if not path.exists() else str(getattr(error, "error_string", error))
        raise AudioError(f"{path} cannot be read as audio", received=reason.rstrip(".")) from error


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """A file to decode.

    An MP3 that does not say how long it is comes through a pipe: of a file libsndfile estimates the length by the first
    frames, and reads no further than that.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(reading.opened(path))
        with without_messages():
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
        with without_messages():
            file = stack.enter_context(soundfile.SoundFile(source, closefd=False))
        yield file
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
