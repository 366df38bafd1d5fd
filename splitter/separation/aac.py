"""AAC in MP4: M4A, and Native Instruments' stem files. FFmpeg's libraries write it, which PyAV brings (the extra `av`).

A stem file is an MP4 of five tracks: the mixture, which players play, and four stems, which DJ software mixes. What
they are called, and their colours, is JSON in an atom of its own, ``moov/udta/stem``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import soundfile

from ..errors import UsageError
from .decoding import Frames

if TYPE_CHECKING:
    from av.audio.stream import AudioStream

RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000)  # Hz
STEMS = 4  # of a stem file
MIX = "mix"  # what stands before them

_LAYOUTS = {1: "mono", 2: "stereo"}
_BLOCK = 1 << 16  # frames of a track at a time
_COLORS = ("#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_DSP = {  # of the sum of the stems; off
    "compressor": {
        "enabled": False, "ratio": 3, "threshold": 0, "attack": 0.003, "release": 0.3, "input_gain": 0.5,
        "output_gain": 0.5, "hp_cutoff": 300, "dry_wet": 50,
    },
    "limiter": {"enabled": False, "threshold": 0, "ceiling": -0.35, "release": 0.05},
}  # fmt: skip


def check_channels(channels: int) -> None:
    """Raises `UsageError` if there are more than AAC is written with here."""
    if channels not in _LAYOUTS:
        raise UsageError("M4A is written with one or two channels", received=channels, fix="Choose another format.")


class AacFile:
    """An MP4 file of one AAC track or several, which grow block by block."""

    def __init__(self, path: Path, samplerate: int, channels: int, bitrate: int, tracks: int = 1) -> None:
        """Open the file.

        Args:
            path: The file.
            samplerate: In Hz, of `RATES`.
            channels: Of each track, one or two.
            bitrate: Of each track, in kbit/s.
            tracks: How many. Players play the first.

        Raises:
            OSError: It cannot be written.
        """
        import av

        exact = {"movie_timescale": str(samplerate)}  # in which the length is told; milliseconds otherwise
        self._container = av.open(str(path), "w", format="ipod" if tracks == 1 else "mp4", options=exact)
        self._samplerate, self._layout = samplerate, _LAYOUTS[channels]
        self._streams = [self._stream(bitrate) for _ in range(tracks)]
        self._written = [0] * tracks

    def _stream(self, bitrate: int) -> AudioStream:
        stream = self._container.add_stream("aac", rate=self._samplerate)
        stream.codec_context.layout, stream.codec_context.bit_rate = self._layout, 1000 * bitrate
        stream.codec_context.time_base = Fraction(1, self._samplerate)
        return stream

    def write(self, frames: Frames, track: int = 0) -> None:
        """Append ``(n, channels)`` samples to a track."""
        from av import AudioFrame

        for start in range(0, len(frames), _BLOCK):
            block = np.ascontiguousarray(frames[start : start + _BLOCK].T, np.float32)
            frame = AudioFrame.from_ndarray(block, "fltp", self._layout)
            frame.sample_rate, frame.pts = self._samplerate, self._written[track]
            frame.time_base = Fraction(1, self._samplerate)
            self._written[track] += block.shape[1]
            self._container.mux(self._streams[track].encode(frame))

    def close(self) -> None:
        """Write what the encoders have held back, and the file's tables. Again: nothing."""
        streams, self._streams = self._streams, []
        for stream in streams:
            self._container.mux(stream.encode(None))
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_stem_file(path: Path, tracks: Sequence[Path], names: Sequence[str], bitrate: int) -> None:
    """Write a stem file of sound files that are of one rate, length and number of channels.

    Args:
        path: The file.
        tracks: The mixture, and `STEMS` stems.
        names: Of the stems.
        bitrate: Of each track, in kbit/s.

    Raises:
        OSError, RuntimeError: A file cannot be read or written; the latter from soundfile.
    """
    sounds = [soundfile.SoundFile(track) for track in tracks]
    samplerate, channels = sounds[0].samplerate, sounds[0].channels
    with AacFile(path, samplerate, channels, bitrate, len(tracks)) as file:
        for blocks in zip(*(sound.blocks(_BLOCK, dtype="float32", always_2d=True) for sound in sounds), strict=True):
            for track, frames in enumerate(blocks):
                file.write(frames, track)
    for sound in sounds:
        sound.close()
    stems = [{"name": name.title(), "color": color} for name, color in zip(names, _COLORS, strict=True)]
    content = json.dumps({"mastering_dsp": _DSP, "version": 1, "stems": stems})
    _add_user_data(path, b"stem", content.encode())


def _add_user_data(path: Path, name: bytes, content: bytes) -> None:
    """Append an atom to ``moov/udta`` of a file that ends with ``moov``, so that nothing else moves."""
    with path.open("r+b") as file:
        start = 0
        while (kind := _head(header := file.read(16))[0]) != b"moov":
            start += _head(header)[1]
            file.seek(start)
        file.seek(start)
        moov = file.read()
        if _head(moov) != (b"moov", len(moov)):
            raise OSError(f"{kind!r} is not the last atom")
        place = 8
        while place < len(moov) and _head(moov[place : place + 16])[0] != b"udta":
            place += _head(moov[place : place + 16])[1]
        there = moov[place + 8 : place + _head(moov[place : place + 16])[1]] if place < len(moov) else b""
        behind = moov[place + 8 + len(there) :]
        user_data = _atom(b"udta", there + _atom(name, content))
        file.seek(start)
        file.write(_atom(b"moov", moov[8:place] + user_data + behind))


def _head(header: bytes) -> tuple[bytes, int]:
    """Name and size of an atom. Raises `OSError` where there is none."""
    if len(header) < 8:
        raise OSError("the file ends before its tables")
    size, name = struct.unpack(">I4s", header[:8])
    return name, struct.unpack(">Q", header[8:16])[0] if size == 1 else size


def _atom(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content
