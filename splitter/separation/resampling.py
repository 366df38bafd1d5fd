"""Sound at another rate, by soxr, and exactly as long as it must be: soxr may give a few samples more or less."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import soxr

if TYPE_CHECKING:
    from .audio import Block
    from .decoding import Frames


def length(samples: int, from_rate: int, to_rate: int) -> int:
    """How many samples so many are at another rate: the nearest, and at least one of any at all."""
    return max(1, round(samples * to_rate / from_rate)) if samples else 0


class Resampler:
    """One stream of sound on its way to another rate."""

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        self._stream = soxr.ResampleStream(from_rate, to_rate, channels, dtype="float32")
        self._channels = channels
        self._given = 0

    def put(self, frames: Frames) -> Frames:
        """What is known of the result after the next ``(frames, channels)``."""
        result = self._stream.resample_chunk(frames)
        self._given += len(result)
        return result

    def end(self, frames: int) -> Frames:
        """The rest of a result of so many frames in all: cut, or filled up with silence."""
        rest = self._stream.resample_chunk(np.zeros((0, self._channels), np.float32), last=True)
        missing = max(0, frames - self._given)
        return np.pad(rest[:missing], [(0, max(0, missing - len(rest))), (0, 0)])


def resampled(samples: Block, from_rate: int, to_rate: int, length: int) -> Block:
    """Samples at another rate, and so many of them."""
    result = soxr.resample(samples.T, from_rate, to_rate).T[:, :length]
    return np.pad(result, [(0, 0), (0, length - result.shape[1])]).astype(np.float32)
