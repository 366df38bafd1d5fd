"""What libsndfile does not read, AAC to videos, by FFmpeg's libraries, which PyAV brings (the extra `av`).

FFmpeg reads playlists that name other files, and much else that is no sound. So a file's first bytes say which of a
few formats it has, and it is read as that or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import reading
from ..errors import AudioError
from . import channels, decoding
from .decoding import Frames, Source

if TYPE_CHECKING:
    from av.container import InputContainer

_SLACK = 0.1  # seconds that a file may say too many: a last frame that players leave out
_COARSEST = 2  # samples in a unit of time
_SEARCHED = 1 << 20  # bytes at either end, where the name of a codec is looked for


@dataclass(frozen=True)
class Kind:
    """A format.

    Attributes:
        name: For people.
        demuxer: FFmpeg's name of it.
        magic: What files of it begin with.
    """

    name: str
    demuxer: str
    magic: bytes


_KINDS = (
    Kind("MP4", "mov", rb".{4}(ftyp|moov|mdat|wide|free|skip)"),
    Kind("Matroska", "matroska", rb"\x1a\x45\xdf\xa3"),
    Kind("Windows Media", "asf", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    Kind("AVI", "avi", rb"RIFF.{4}AVI "),
    Kind("Flash Video", "flv", rb"FLV\x01"),
    Kind("MPEG", "mpeg", rb"\0\0\x01\xba"),
    Kind("MPEG-TS", "mpegts", rb"\x47.{187}\x47"),
    Kind("AAC", "aac", rb"\xff[\xf0\xf1\xf8\xf9]"),
    Kind("AC-3", "ac3", rb"\x0b\x77"),
    Kind("WavPack", "wv", rb"wvpk"),
    Kind("Monkey's Audio", "ape", rb"MAC "),
)
_CODECS = {  # as MP4 and Matroska name them
    rb"mp4a|A_AAC": "AAC",
    rb"alac|A_ALAC": "ALAC",
    rb"Opus|A_OPUS": "Opus",
    rb"A_VORBIS": "Vorbis",
    rb"ac-3|A_AC3": "AC-3",
    rb"ec-3|A_EAC3": "E-AC-3",
    rb"fLaC|A_FLAC": "FLAC",
    rb"A_DTS": "DTS",
}


def kind(path: Path) -> Kind | None:
    """The format of a file by its first bytes; None if it is none of those that FFmpeg is asked for."""
    with reading.opened(path) as file:
        head = file.read(256)
    return next((one for one in _KINDS if re.match(one.magic, head, re.DOTALL)), None)


@contextmanager
def opened(path: Path, kind: Kind) -> Iterator[Source]:
    """The first sound of a file.

    Raises:
        AudioError: FFmpeg's libraries are not installed, or find no sound that they can decode.
    """
    if find_spec("av") is None:
        codec = _codec(path)
        content = kind.name if codec is None else f"{codec} in {kind.name}"
        raise AudioError(
            f"{path} holds {content}, which FFmpeg's libraries read",
            fix="Install them: pip install 'splitter[av]'. Or convert the file to WAV or FLAC.",
        )
    import av

    try:
        with reading.opened(path) as raw, av.open(raw, format=kind.demuxer) as container:
            yield _Media(path, kind, container)  # type: ignore[arg-type] # opened for reading
    except (av.FFmpegError, EOFError, ValueError) as error:  # PyAV's own are of several kinds
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(f"{path} cannot be read as {kind.name}", received=reason) from error


class _Media(Source):
    def __init__(self, path: Path, kind: Kind, container: InputContainer) -> None:
        if not container.streams.audio:
            raise AudioError(f"{path} holds no sound")
        self._path, self._kind, self._container = path, kind, container
        self._stream = container.streams.audio[0]
        context = self._stream.codec_context
        self.samplerate, self.channels = context.sample_rate or 0, context.channels or 0
        decoding.check_format(path, self.samplerate, self.channels)
        if self.channels > 2:
            named = tuple(channel.name for channel in context.layout.channels)
            self.positions = named if channels.are_known(named) else channels.positions(self.channels)

    def blocks(self) -> Iterator[Frames]:
        import av

        resampler = av.AudioResampler("fltp", self._stream.codec_context.layout, self.samplerate)
        decoded = 0
        for frame, lasting in self._frames():
            for part in resampler.resample(frame):
                frames = np.ascontiguousarray(part.to_ndarray().T[:lasting], np.float32)
                decoding.check_finite(frames, str(self._path), start=decoded, samplerate=self.samplerate)
                decoded += len(frames)
                yield frames
        promised = self._promised()
        if decoded < promised - _SLACK * self.samplerate:
            raise decoding.truncated(self._path, promised, decoded)

    def _frames(self) -> Iterator[tuple[Any, int | None]]:
        """Each frame, and how many of its samples are sound: of the last, which is filled up; None for all."""
        last = None
        for frame in self._container.decode(self._stream):
            if last is not None:
                yield last, None
            last = frame
        if last is not None:
            yield last, self._lasting(last)

    def _lasting(self, frame: Any) -> int | None:
        """What a file says of a frame that tells time by samples; of half the rate where a codec doubles it."""
        if self._kind.demuxer != "mov" or not frame.duration or frame.time_base * self.samplerate > _COARSEST:
            return None
        return max(0, round(frame.duration * frame.time_base * self.samplerate))

    def _promised(self) -> int:
        """How many frames the file says its sound has; 0 where it does not, or guesses."""
        stream: Any = self._stream
        if self._kind.demuxer != "mov" or stream.duration is None:
            return 0
        return int(stream.duration * stream.time_base * self.samplerate)


def _codec(path: Path) -> str | None:
    """The codec that the head or the tail of a file names."""
    with reading.opened(path) as file:
        head = file.read(_SEARCHED)
        file.seek(max(0, path.stat().st_size - _SEARCHED))
        ends = head + file.read(_SEARCHED)
    return next((name for pattern, name in _CODECS.items() if re.search(pattern, ends)), None)
