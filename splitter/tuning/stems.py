"""What noise at the stems costs: decibels of SDR against the true stems, or what they would be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..boundary import Array
from ..bundle.manifest import AudioRecord
from ..errors import AudioError, UsageError
from ..separation import audio
from .trial import TrialExcerpt

ASSUMED_SDR_DB = 10.0
"""Of the model, on songs whose true stems are not given: as good as separators are. The better a stem is separated, the
more of its decibels a given noise takes."""


@dataclass(frozen=True)
class StemScore:
    """One stem of one excerpt, with noise.

    Attributes:
        name: e.g. ``"vocals"``.
        excerpt: Of which excerpt.
        snr_db: Against the uncompressed model's stem; infinite without noise.
        sdr_db: ``10 log10(Σ s² / Σ (s − ŝ)²)`` against the true stem; None where that is not known.
        drop_db: How much less that is than the uncompressed model's, or would be for noise of the same energy that has
            nothing to do with the model's own error, whichever is more; luck on one excerpt is no merit.
    """

    name: str
    excerpt: str
    snr_db: float
    sdr_db: float | None
    drop_db: float


class StemScorer:
    """Excerpts with the uncompressed model's stems and, for the first song, perhaps the true ones."""

    def __init__(
        self,
        excerpts: Sequence[TrialExcerpt],
        reference: Sequence[Array],
        sound: AudioRecord,
        truth: Mapping[str, Path] | None = None,
    ) -> None:
        """Read the true stems.

        Args:
            excerpts: What is measured on.
            reference: The uncompressed model's stems of each excerpt, ``(stems, channels, samples)``, at the
                loudness of the model's input.
            sound: Says the stems' names, the sampling rate and the length of one run.
            truth: File of each true stem of the first excerpt's song.

        Raises:
            AudioError: A file cannot be read, or every stem is silent.
        """
        self.excerpts, self.reference, self.names = tuple(excerpts), tuple(reference), sound.stems
        self._lengths = [_length(excerpt, sound) for excerpt in excerpts]
        self._truth: list[Array | None] = [
            _truth(excerpt, sound, truth) if truth and excerpt.path == excerpts[0].path else None
            for excerpt in excerpts
        ]
        for excerpt, stems, length in zip(excerpts, reference, self._lengths, strict=True):
            if not np.any(stems[..., :length]):
                raise AudioError(f"every stem of {excerpt.name} is silent", fix="Choose another song.")

    def damage(self, index: int, stems: Array) -> float:
        """Noise in one excerpt over the model's own error, the worst stem's: it takes ``10 log10(1 + damage)`` dB."""
        return max((noise / error for noise, error in self._noises(index, stems) if error > 0), default=0.0)

    def scores(self, results: Sequence[Array]) -> tuple[StemScore, ...]:
        """Every stem of every excerpt; those that are silent left out.

        Args:
            results: Noisy stems of each excerpt, shaped as the reference; of the first ones, if there are fewer.
        """
        found = []
        for index, (excerpt, noisy) in enumerate(zip(self.excerpts, results, strict=False)):
            length, truth = self._lengths[index], self._truth[index]
            for place, (noise, error) in enumerate(self._noises(index, noisy)):
                clean = self.reference[index][place, :, :length]
                signal = _energy(clean)
                if signal == 0 or error == 0:
                    continue
                drop, sdr = _db(1 + noise / error), None
                if truth is not None:
                    left = _energy(noisy[place, :, :length] - truth[place])
                    sdr = _db(_energy(truth[place]) / left) if left else math.inf
                    drop = max(drop, _db(left / error))
                snr = _db(signal / noise) if noise else math.inf
                found.append(StemScore(self.names[place], excerpt.name, snr, sdr, drop))
        return tuple(found)

    def _noises(self, index: int, stems: Array) -> list[tuple[float, float]]:
        """Energy of noise and of the model's own error, for each stem of one excerpt."""
        length, truth, reference = self._lengths[index], self._truth[index], self.reference[index]
        found = []
        for place in range(len(reference)):
            clean = reference[place, :, :length]
            error = _energy(clean) * 10 ** (-ASSUMED_SDR_DB / 10) if truth is None else _energy(clean - truth[place])
            noise = _energy(stems[place, :, :length] - clean)
            found.append((noise if math.isfinite(noise) else math.inf, error))
        return found


def true_stems(directory: Path, names: Sequence[str]) -> dict[str, Path]:
    """Files of the true stems: the one in a directory named ``vocals.*`` or ``*_vocals.*`` for each stem.

    Raises:
        UsageError: There is none or more than one for a stem.
    """
    found = {}
    for name in names:
        files = sorted(file for file in directory.glob("*") if file.stem == name or file.stem.endswith(f"_{name}"))
        if len(files) != 1:
            raise UsageError(
                f"{directory} does not hold exactly one file of the stem {name!r}",
                expected=f"{name}.* or *_{name}.*",
                received=", ".join(file.name for file in files) or "none",
            )
        found[name] = files[0]
    return found


def _length(excerpt: TrialExcerpt, sound: AudioRecord) -> int:
    statistics = audio.statistics(audio.Track(excerpt.path, sound.samplerate, sound.channels))
    return min(sound.samples, statistics.samples - excerpt.start)


def _truth(excerpt: TrialExcerpt, sound: AudioRecord, files: Mapping[str, Path]) -> Array:
    """True stems, scaled as the model's input was."""

    def read(path: Path) -> Array:
        track = audio.Track(path, sound.samplerate, sound.channels)
        return audio.Window(track, 0).read(excerpt.start, excerpt.start + sound.samples)

    mixture = audio.heard_by(sound, audio.Statistics.of(read(excerpt.path)))
    stems: Array = np.stack([mixture.normalised(read(files[name])) for name in sound.stems])
    return stems[..., : _length(excerpt, sound)]


def _energy(array: Array) -> float:
    return float(np.sum(np.square(array, dtype=np.float64)))


def _db(ratio: float) -> float:
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def to_dicts(stems: Sequence[StemScore]) -> list[dict[str, Any]]:
    """As JSON values; what JSON does not know is null."""
    return [
        {
            key: value if not isinstance(value, float) or math.isfinite(value) else None
            for key, value in vars(stem).items()
        }
        for stem in stems
    ]
