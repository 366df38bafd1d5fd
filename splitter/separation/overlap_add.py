"""Overlap-add over a song of any length, in bounded memory.

The arithmetic is that of demucs's ``apply_model``: chunks of one segment every ``(1 − overlap)`` of it, each
weighted with a triangle, summed and divided by the summed weights; the last, shorter chunk is centred in a
segment of real sound; a shifted pass starts inside half a second of silence before the song.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .audio import Block, Statistics, Window

_MOST_CHUNKS = 10  # in what the model takes: each costs as much as all of it
_MOST_OVERLAP = 0.99
_MOST_STRIDES = 101  # in a chunk, rounded up

Stems: TypeAlias = NDArray[np.float32]  # (stems, channels, samples)
Model: TypeAlias = Callable[[Block], Stems]


@dataclass(frozen=True)
class Geometry:
    """How a song is cut.

    Attributes:
        model: Samples in one run of the model.
        chunk: Samples of the song in one run; the rest is silence.
        stride: Samples from one chunk to the next.
        max_shift: Longest shift of a shifted pass, half a second.
    """

    model: int
    chunk: int
    stride: int
    max_shift: int

    @classmethod
    def of(cls, *, model: int, samplerate: int, overlap: float, segment: float | None) -> Geometry:
        """Derive it from what the user asks for.

        Args:
            model: Samples in one run of the model.
            samplerate: In Hz.
            overlap: Fraction of a chunk shared with the next one, in [0, 1).
            segment: Seconds of the song in one run; all the model takes where None.

        Raises:
            UsageError: The overlap or the segment is out of range.
        """
        if not 0 <= overlap < 1:
            raise UsageError(
                "the overlap is out of range",
                expected="at least 0 and less than 1",
                received=overlap,
                fix="The usual one is 0.25.",
            )
        chunk = model if segment is None else 0 if math.isnan(segment) else int(min(segment * samplerate, model + 1))
        if not model <= chunk * _MOST_CHUNKS <= model * _MOST_CHUNKS:
            longest = model / samplerate
            raise UsageError(
                "the segment is too short or too long",
                expected=f"at least {longest / _MOST_CHUNKS:g} s and at most the bundle's {longest:g} s",
                received=f"{segment:g} s",
                fix="A run takes as long for a short segment as for a long one; a longer one takes another bundle.",
            )
        stride = int((1 - overlap) * chunk)
        if stride * _MOST_STRIDES < chunk:
            raise UsageError(
                "chunks would hardly move forward",
                expected=f"an overlap of at most {_MOST_OVERLAP:g}",
                received=overlap,
            )
        return cls(model, chunk, stride, samplerate // 2)

    def runs(self, samples: int, offset: int | None) -> int:
        """How often the model runs in one pass."""
        return math.ceil(self.virtual(samples, offset) / self.stride)

    def virtual(self, samples: int, offset: int | None) -> int:
        """Length of what a pass sees: the song, with the silence a shift leaves before it."""
        return samples if offset is None else samples + self.max_shift - offset


class SongPass:
    """One walk over a song with one model: give it a number of samples to read, and it runs what it needs."""

    def __init__(
        self,
        model: Model,
        window: Window,
        statistics: Statistics,
        geometry: Geometry,
        *,
        stems: int,
        channels: int,
        offset: int | None,
        advanced: Callable[[], None],
    ) -> None:
        """Start at the song's first sample.

        Args:
            model: One run of it, ``(channels, geometry.model)`` → ``(stems, channels, geometry.model)``.
            window: The song.
            statistics: Its normalisation and length.
            geometry: How it is cut.
            stems: How many the model gives.
            channels: Audio channels.
            offset: Where in the leading silence a shifted pass starts; None for a plain pass.
            advanced: Called after every run of the model.
        """
        self._model, self._window, self._statistics, self._geometry = model, window, statistics, geometry
        self._advanced = advanced
        self._length = geometry.virtual(statistics.samples, offset)
        self._silence = self._length - statistics.samples  # virtual samples before the song
        self._position = 0  # virtual start of the next chunk
        chunk = geometry.chunk
        rising = np.arange(1, chunk // 2 + 1)
        falling = np.arange(chunk - chunk // 2, 0, -1)
        triangle = np.concatenate([rising, falling]).astype(np.float32)
        self._weight = triangle / triangle.max()
        self._sum = np.zeros((stems, channels, chunk), np.float32)
        self._weights = np.zeros(chunk, np.float32)
        self._ready: list[Stems] = []
        self._skip = self._silence

    def read(self, samples: int) -> Stems:
        """The next samples of every stem, still normalised."""
        parts, have = [], 0
        while have < samples:
            if not self._ready:
                self._ready.append(self._next())
            block = self._ready.pop()
            taken = block[..., : samples - have]
            if taken.shape[-1] < block.shape[-1]:
                self._ready.append(block[..., taken.shape[-1] :])
            parts.append(taken)
            have += taken.shape[-1]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def _next(self) -> Stems:
        """Run one chunk; return the samples that no later chunk touches."""
        chunk, stride = self._geometry.chunk, self._geometry.stride
        if self._position >= self._length:
            raise ValueError("the pass has reached the end of the song")
        before, length = self._inside(self._position)
        separated = self._model(self._mix(self._position))[..., before : before + length]
        self._sum[..., :length] += self._weight[:length] * separated
        self._weights[:length] += self._weight[:length]
        self._advanced()
        last = self._position + stride >= self._length
        finished = length if last else stride
        block = self._sum[..., :finished] / self._weights[:finished]
        self._position += stride
        for array in (self._sum, self._weights):
            array[..., : chunk - stride] = array[..., stride:].copy()
            array[..., chunk - stride :] = 0
        skipped = min(self._skip, finished)
        self._skip -= skipped
        return block[..., skipped:]

    def _inside(self, position: int) -> tuple[int, int]:
        """Where the chunk at a position begins in the model's segment, and its length."""
        length = min(self._length - position, self._geometry.chunk)
        return (self._geometry.chunk - length) // 2, length  # a short chunk sits in the middle of real sound

    def _mix(self, position: int) -> Block:
        """What the model hears for the chunk at a position."""
        before, _ = self._inside(position)
        start = position - before - self._silence
        mix = np.zeros((self._sum.shape[1], self._geometry.model), np.float32)
        mix[:, : self._geometry.chunk] = self._normalised(start, start + self._geometry.chunk)
        return mix

    def _normalised(self, start: int, stop: int) -> Block:
        """The song as the model hears it; silence outside stays exactly zero."""
        block = self._window.read(start, stop)
        inside = slice(max(0, -start), max(0, min(stop, self._statistics.samples) - start))
        block[:, inside] = self._statistics.normalised(block[:, inside])
        return block
