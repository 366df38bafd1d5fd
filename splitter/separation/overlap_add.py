"""Overlap-add over a song of any length, in bounded memory.

Chunks of one segment every ``(1 − overlap)`` of it are weighted, summed and divided by the summed weights. What weighs
them and what lies around the song is the model's own, see `splitter.bundle.manifest.Chunking`: with its defaults the
arithmetic is that of demucs's ``apply_model``, weights in a triangle, the last, shorter chunk centred in a segment of
real sound, a shifted pass from inside half a second of silence before the song; with ``reflection`` it is that of the
trainers of RoFormers, whose ``demix`` fades chunks in and out and mirrors the song at its ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import AudioRecord
from ..errors import UsageError
from .audio import Block, Statistics, Window

_OVERLAP = 0.25
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
        fade: Samples over which a chunk's weight rises and falls; None for a triangle.
        reflects: Whether the song's mirror image lies around it.
    """

    model: int
    chunk: int
    stride: int
    max_shift: int
    fade: int | None = None
    reflects: bool = False

    @classmethod
    def of(cls, sound: AudioRecord, *, overlap: float | None, segment: float | None) -> Geometry:
        """Derive it from the model and what the user asks for.

        Args:
            sound: The model's.
            overlap: Fraction of a chunk shared with the next one, in [0, 1); the model's own where None.
            segment: Seconds of the song in one run; all the model takes where None.

        Raises:
            UsageError: The overlap or the segment is out of range.
        """
        model, samplerate, chunking = sound.samples, sound.samplerate, sound.chunking
        if overlap is not None and not 0 <= overlap < 1:
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
        if overlap is None and chunking.stride is not None:
            stride = chunking.stride * chunk // model
        else:
            stride = int((1 - (_OVERLAP if overlap is None else overlap)) * chunk)
        if stride * _MOST_STRIDES < chunk:
            raise UsageError(
                "chunks would hardly move forward",
                expected=f"an overlap of at most {_MOST_OVERLAP:g}",
                received=overlap,
            )
        fade = None if chunking.fade is None else max(1, chunking.fade * chunk // model)
        return cls(model, chunk, stride, samplerate // 2, fade, chunking.edges == "reflection")

    def runs(self, samples: int, offset: int | None) -> int:
        """How often the model runs in one pass: for all but the mirror image behind the song, which nobody hears."""
        return math.ceil((self.virtual(samples, offset) - self.mirrored(samples)) / self.stride)

    def virtual(self, samples: int, offset: int | None) -> int:
        """Length of what a pass sees: the song, with its mirror images, or the silence a shift leaves before it."""
        return samples + 2 * self.mirrored(samples) + (0 if offset is None else self.max_shift - offset)

    def mirrored(self, samples: int) -> int:
        """Length of the mirror image before a song, and of that behind it."""
        overlap = self.chunk - self.stride
        return overlap if self.reflects and samples > 2 * overlap else 0

    def weights(self) -> NDArray[np.float32]:
        """Of the samples of a chunk."""
        if self.fade is None:
            rising = np.arange(1, self.chunk // 2 + 1)
            falling = np.arange(self.chunk - self.chunk // 2, 0, -1)
            triangle = np.concatenate([rising, falling]).astype(np.float32)
            return triangle / triangle.max()
        weights = np.ones(self.chunk, np.float32)
        weights[: self.fade] = np.linspace(0, 1, self.fade)
        weights[-self.fade :] = np.linspace(1, 0, self.fade)
        return weights


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
            statistics: Its normalisation.
            geometry: How it is cut.
            stems: How many the model gives.
            channels: Audio channels.
            offset: Where in the leading silence a shifted pass starts; None for a plain pass.
            advanced: Called after every run of the model.
        """
        self._model, self._window, self._statistics, self._geometry = model, window, statistics, geometry
        self._advanced = advanced
        self._offset = offset
        self._samples = window.samples(2 * (geometry.chunk - geometry.stride) if geometry.reflects else 0)
        self._before = (
            self._length - self._samples - geometry.mirrored(self._samples)
        )  # virtual samples before the song
        self._position = 0  # virtual start of the next chunk
        self._weight = geometry.weights()
        self._sum = np.zeros((stems, channels, geometry.chunk), np.float32)
        self._weights = np.zeros(geometry.chunk, np.float32)
        self._ready: list[Stems] = []
        self._skip = self._before

    @property
    def _length(self) -> int:
        """Virtual, of what is known of the song."""
        return self._geometry.virtual(self._samples, self._offset)

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
        self._samples = self._window.samples(self._position - self._before + chunk)
        if self._position >= self._length:
            raise ValueError("the pass has reached the end of the song")
        before, length = self._inside(self._position)
        separated = self._model(self._mix(self._position))[..., before : before + length]
        last = self._position + stride >= self._length
        weight = self._faded(first=self._position == 0, last=last)[:length]
        self._sum[..., :length] += weight * separated
        self._weights[:length] += weight
        self._advanced()
        finished = length if last else stride
        weights = self._weights[:finished]
        weights[weights == 0] = 1  # so is the sum there
        block = self._sum[..., :finished] / weights
        self._position += stride
        for array in (self._sum, self._weights):
            array[..., : chunk - stride] = array[..., stride:].copy()
            array[..., chunk - stride :] = 0
        skipped = min(self._skip, finished)
        self._skip -= skipped
        return block[..., skipped:]

    def _faded(self, *, first: bool, last: bool) -> NDArray[np.float32]:
        """The weights of a chunk; nothing comes before the first one, or after the last."""
        fade = self._geometry.fade
        if fade is None or not (first or last):
            return self._weight
        weights = self._weight.copy()
        weights[slice(fade) if first else slice(-fade, None)] = 1
        return weights

    def _inside(self, position: int) -> tuple[int, int]:
        """Where the chunk at a position begins in the model's segment, and its length."""
        length = min(self._length - position, self._geometry.chunk)
        if self._geometry.reflects:
            return 0, length
        return (self._geometry.chunk - length) // 2, length  # a short chunk sits in the middle of real sound

    def _mix(self, position: int) -> Block:
        """What the model hears for the chunk at a position."""
        before, length = self._inside(position)
        start, chunk = position - before - self._before, self._geometry.chunk
        mix = np.zeros((self._sum.shape[1], self._geometry.model), np.float32)
        if self._geometry.reflects:
            mix[:, :length] = self._mirrored(start, start + length)
            if length > chunk // 2:
                mix[:, length:chunk] = mix[:, 2 * length - chunk - 1 : length - 1][:, ::-1]
        else:
            mix[:, :chunk] = self._normalised(start, start + chunk)
        return mix

    def _mirrored(self, start: int, stop: int) -> Block:
        """The song with its mirror images; the sample at each end is not repeated."""
        samples = self._samples
        parts = [self._normalised(max(start, 0), min(stop, samples))]
        if start < 0:
            parts.insert(0, self._normalised(1, 1 - start)[:, ::-1])
        if stop > samples:
            parts.append(self._normalised(2 * samples - 1 - stop, samples - 1)[:, ::-1])
        return np.concatenate(parts, axis=1)

    def _normalised(self, start: int, stop: int) -> Block:
        """The song as the model hears it; silence outside stays exactly zero."""
        block = self._window.read(start, stop)
        inside = slice(max(0, -start), max(0, min(stop, self._samples) - start))
        block[:, inside] = self._statistics.normalised(block[:, inside])
        return block
