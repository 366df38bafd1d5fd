"""What there is to hear: mixture, stems of the untouched model and of the split, and their difference, amplified."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import image
from matplotlib.colors import ListedColormap
from scipy.signal import ShortTimeFFT, windows

from .. import output
from ..boundary import Array
from ..bundle.directory import Bundle
from ..errors import AudioError
from ..parity import Parity, compare
from ..runtime.orchestrator import Orchestrator
from ..separation.audio import Block, Track, Window, heard_by, statistics
from ..separation.encoding import Encoding, StemWriter, finish
from ..separation.overlap_add import Geometry, SongPass, Stems

_LEAST = 0.1  # seconds of an excerpt
_PEAK = 0.9  # of full scale, that the loudest of mixture and stems is played at
_DIFFERENCE_PEAK = 0.5
_BITRATE = 192  # kbit/s
_COLUMNS, _ROWS = 800, 96  # of a spectrogram
_LOWEST, _HIGHEST = 40.0, 20_000.0  # Hz
_RANGE = 80.0  # dB below the loudest of the mixture
_SHADES = 32
_INK = ListedColormap([(0.0, 0.0, 0.0, level) for level in np.linspace(0.0, 1.0, _SHADES)])


@dataclass(frozen=True)
class PlayedSound:
    """One thing to hear.

    Attributes:
        mp3: As it is played.
        envelope: Lowest and highest sample of the mono mixdown in each of `_COLUMNS` stretches, ``(2, columns)``.
        spectrogram: A PNG, black, its opacity the level over 80 dB; frequency is logarithmic.
    """

    mp3: bytes
    envelope: Array
    spectrogram: bytes


@dataclass(frozen=True)
class StemComparison:
    """One stem, twice.

    Attributes:
        parity: Of the split against the reference.
        gain_db: By which the difference is amplified beyond the stems; None where there is none.
    """

    name: str
    reference: PlayedSound
    split: PlayedSound
    difference: PlayedSound | None
    gain_db: int | None
    parity: Parity


@dataclass(frozen=True)
class ListeningPanel:
    """The panel.

    Attributes:
        title: What was separated.
        seconds: How much of it.
        samplerate: In Hz.
        playback_db: Gain of everything but the differences, which have theirs on top.
        bitrate: Of the MP3s, in kbit/s; differences are taken before.
        highest: Of the spectrograms, in Hz.
        lowest: The same.
    """

    title: str
    seconds: float
    samplerate: int
    playback_db: float
    mixture: PlayedSound
    stems: tuple[StemComparison, ...]
    highest: float
    lowest: float = _LOWEST
    bitrate: int = _BITRATE


@dataclass(frozen=True)
class ComparedExcerpt:
    """What is separated, and what came of it; arrays are ``(channels, samples)`` and ``(stems, channels, samples)``."""

    title: str
    mixture: Array
    reference: Array
    split: Array


def golden_excerpt(bundle: Bundle, golden: Mapping[str, Array], split: Array) -> ComparedExcerpt:
    """The bundle's golden input, whose stems by the untouched model were recorded.

    Args:
        split: The split's stems of it.
    """
    (given,), (returned,) = bundle.inputs, bundle.outputs
    reference = bundle.audio.separated(golden[returned])
    return ComparedExcerpt(bundle.manifest.golden.audio, golden[given][0], reference, split)


def audio_excerpt(
    orchestrator: Orchestrator, title: str, mixture: Block, progress: Callable[[str], None]
) -> ComparedExcerpt:
    """A `part` of a file, separated as a track of its own by the whole capture and by the split.

    Chunks are laid as the model's own inference lays them, without random shifts: `separate` with ``--shifts 0``.

    Raises:
        BoundaryError: The split breaks a boundary's contract on it.
    """
    bundle = orchestrator.bundle
    (given,), (returned,) = bundle.inputs, bundle.outputs
    whole = bundle.program(bundle.manifest.whole)

    def untouched(mix: Block) -> Stems:
        return bundle.audio.separated(whole.run({given: torch.from_numpy(mix)[None]})[returned].numpy())

    def split(mix: Block) -> Stems:
        result = orchestrator.run({given: mix[None]})[returned]
        return bundle.audio.separated(result).astype(np.float32, copy=False)

    progress(f"separating {title} by the untouched model")
    reference = _separated(bundle, mixture, untouched)
    progress(f"separating {title} by the split")
    return ComparedExcerpt(title, mixture, reference, _separated(bundle, mixture, split))


def part(track: Track, start: float, seconds: float) -> Block:
    """So many seconds of a track, fewer at its end, ``(channels, samples)``.

    Raises:
        AudioError: The file cannot be read, or holds no sound there.
    """
    first = round(start * track.samplerate)
    stop = first + max(1, round(seconds * track.samplerate))
    position, parts = 0, []
    for block in track.blocks():
        parts.append(block[:, max(0, first - position) : max(0, stop - position)])
        position += block.shape[1]
        if position >= stop:
            break
    if position <= first:
        raise AudioError(
            f"{track.path.name} ends before the excerpt begins",
            expected=f"more than {start:g} s",
            received=f"{position / track.samplerate:.1f} s",
            fix="Choose another place with --start SECONDS.",
        )
    found = np.concatenate(parts, axis=1)
    if found.shape[1] < _LEAST * track.samplerate:
        raise AudioError(
            f"{track.path.name} ends too soon after {start:g} s",
            expected=f"at least {_LEAST:g} s from there",
            received=f"{found.shape[1] / track.samplerate:.3f} s",
            fix="Choose another place with --start SECONDS.",
        )
    if not found.any():
        raise AudioError(
            f"the excerpt of {track.path.name} is silent",
            fix="Choose another place with --start SECONDS.",
        )
    return found


def _separated(bundle: Bundle, mixture: Block, run: Callable[[Block], Stems]) -> Stems:
    sound = bundle.audio
    with output.scratch("listening") as scratch:
        path = scratch / "excerpt.wav"
        _write(path, mixture, Encoding("wav", "FLOAT", "none"), sound.samplerate)
        track = Track(path, sound.samplerate, sound.channels)
        song_pass = SongPass(
            run,
            Window(track, history=2 * sound.samples),
            track_statistics := heard_by(sound, statistics(track)),
            Geometry.of(sound, overlap=None, segment=None),
            stems=len(sound.stems),
            channels=sound.channels,
            offset=None,
            advanced=lambda: None,
        )
        return track_statistics.restored(song_pass.read(mixture.shape[1]))


def _write(path: Path, sound: Block, encoding: Encoding, samplerate: int) -> None:
    with StemWriter(path, encoding, samplerate, *sound.shape) as writer:
        writer.write(sound)
        finish([writer])


# ------------------------------------------------------------------------------------------- the panel


def panel(bundle: Bundle, excerpt: ComparedExcerpt) -> ListeningPanel:
    """Encode and draw an excerpt. One gain for mixture and stems, so that their loudness compares."""
    samplerate = bundle.audio.samplerate
    played = (excerpt.mixture, excerpt.reference, excerpt.split)
    gain = math.floor(20 * math.log10(_PEAK / max(float(np.abs(sound).max()) for sound in played)))
    make = _Studio(samplerate, excerpt.mixture * _ratio(gain))
    stems = []
    for name, r, x in zip(bundle.audio.stems, excerpt.reference, excerpt.split, strict=True):
        error = x.astype(np.float64) - r
        peak = float(np.abs(error).max())
        more = math.floor(20 * math.log10(_DIFFERENCE_PEAK / peak)) - gain if peak else None
        stems.append(
            StemComparison(
                name,
                make.sound(r * _ratio(gain)),
                make.sound(x * _ratio(gain)),
                None if more is None else make.sound(error * _ratio(gain + more)),
                more,
                compare(r, x),
            )
        )
    return ListeningPanel(
        excerpt.title,
        excerpt.mixture.shape[1] / samplerate,
        samplerate,
        gain,
        make.sound(excerpt.mixture * _ratio(gain)),
        tuple(stems),
        highest=make.highest,
    )


def _ratio(decibels: float) -> float:
    return 10 ** (decibels / 20)


class _Studio:
    """Makes sounds, all drawn against the level of one mixture."""

    def __init__(self, samplerate: int, mixture: Array) -> None:
        self._samplerate = samplerate
        self.highest = min(_HIGHEST, samplerate / 2)
        samples = mixture.shape[1]
        length = min(4096, 1 << max(4, (samples // 4).bit_length() - 1))
        hop = max(1, min(length // 4, samples // _COLUMNS))
        self._transform = ShortTimeFFT(windows.hann(length), hop, samplerate)
        heights = np.geomspace(_LOWEST, self.highest, _ROWS) / self._transform.delta_f
        low = np.minimum(heights.astype(int), self._transform.f_pts - 2)
        self._bins = low, (heights - low)[:, None]  # each row lies between two of the transform's
        self._loudest = float(self._levels(mixture).max())

    def sound(self, samples: Array) -> PlayedSound:
        """Encode and draw ``(channels, samples)``."""
        mono = samples.mean(axis=0)
        edges = np.linspace(0, mono.size, min(_COLUMNS, mono.size) + 1).astype(int)[:-1]
        envelope = np.stack([np.minimum.reduceat(mono, edges), np.maximum.reduceat(mono, edges)])
        return PlayedSound(self._mp3(samples.astype(np.float32)), envelope, self._spectrogram(samples))

    def _mp3(self, samples: Block) -> bytes:
        with output.scratch("listening") as scratch:
            path = scratch / "sound.mp3"
            _write(path, samples, Encoding("mp3", "MPEG_LAYER_III", "none", _BITRATE), self._samplerate)
            return path.read_bytes()

    def _levels(self, samples: Array) -> Array:
        """Decibels of the channels' power, ``(bins, columns)``, low bins first."""
        power = np.square(np.abs(self._transform.stft(samples))).sum(axis=0)
        frames = power[:, -self._transform.p_min :]  # the first is centred at the first sample
        frames = frames[:, : max(1, math.ceil(samples.shape[1] / self._transform.hop))]
        low, part = self._bins
        rows = (1 - part) * frames[low] + part * frames[low + 1]
        return 10 * np.log10(rows + 1e-20)

    def _spectrogram(self, samples: Array) -> bytes:
        levels = (self._levels(samples) - self._loudest) / _RANGE + 1
        buffer = io.BytesIO()
        image.imsave(buffer, levels[::-1], cmap=_INK, vmin=0.0, vmax=1.0, format="png")
        return buffer.getvalue()
