"""Procedural songs: four stems synthesised from a seed, so that nothing recorded has to be shipped.

They are the training data of the demo model, the default golden input of a bundle, and the audio of the
tests. Each stem has the traits that make separation a real task: drums are broadband transients, bass is a
low line, ``other`` is stereo chords, vocals are one voiced line with vibrato and formants.

    python -m splitter_weights.demo.songs --out song.wav
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import click
import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt

Audio: TypeAlias = NDArray[np.float32]  # (channels=2, samples), full scale ±1
Mono: TypeAlias = NDArray[np.float64]

STEMS = ("drums", "bass", "other", "vocals")

_STEPS_PER_BEAT = 4
_PROGRESSIONS = ((0, 7, 9, 5), (0, 9, 5, 7), (9, 5, 0, 7), (0, 5, 9, 7))  # semitones above the key
_MINOR_ROOTS = frozenset({2, 4, 9})
_SCALE = (0, 2, 4, 7, 9, 12)  # major pentatonic: any note fits any chord of the key
_VOWELS = ((730.0, 1090.0, 2440.0), (530.0, 1840.0, 2480.0), (270.0, 2290.0, 3010.0), (570.0, 840.0, 2410.0))
_LEVELS = {"drums": 0.20, "bass": 0.16, "other": 0.12, "vocals": 0.14}  # RMS of each stem


def synthesise(seconds: float, seed: int, samplerate: int = 44_100) -> dict[str, Audio]:
    """Return the stems of one song, keyed by `STEMS`, each ``(2, round(seconds · samplerate))``.

    The same arguments give the same samples with the same NumPy and SciPy versions. Their sum, the
    mixture, stays within ±1 (the stems share one gain where it would not).
    """
    length = round(seconds * samplerate)
    if length <= 0:
        raise ValueError(f"a song needs a positive length; got {seconds} s at {samplerate} Hz")
    rng = np.random.default_rng(seed)
    song = _Score(rng, length, samplerate)
    parts = {"drums": _drums(song), "bass": _bass(song), "other": _other(song), "vocals": _vocals(song)}
    stems = {name: part * (_LEVELS[name] / max(_rms(part), 1e-9)) for name, part in parts.items()}
    peak = max(float(np.abs(sum(stems.values())).max()), *(float(np.abs(s).max()) for s in stems.values()))
    gain = min(1.0, 0.98 / peak)
    return {name: (stem * gain).astype(np.float32) for name, stem in stems.items()}


def mixture(stems: dict[str, Audio]) -> Audio:
    """Sum the stems in the order of `STEMS`."""
    return np.sum([stems[name] for name in STEMS], axis=0, dtype=np.float32)


class _Score:
    """What the four players share: time grid, key, chords and randomness."""

    def __init__(self, rng: np.random.Generator, length: int, samplerate: int) -> None:
        self.rng = rng
        self.length = length
        self.samplerate = samplerate
        self.step = samplerate * 60.0 / rng.uniform(84, 138) / _STEPS_PER_BEAT  # samples in a 16th note
        self.key = int(rng.integers(0, 12))
        self.progression = _PROGRESSIONS[rng.integers(len(_PROGRESSIONS))]
        self.steps = int(np.ceil(length / self.step)) + 1

    def chord(self, step: int) -> int:
        """Root of the chord at a step, in semitones above C; a chord lasts one bar."""
        bar = step // (4 * _STEPS_PER_BEAT)
        return self.key + self.progression[bar % len(self.progression)]

    def is_minor(self, step: int) -> bool:
        return (self.chord(step) - self.key) in _MINOR_ROOTS

    def add(self, part: Mono, step: float, note: Mono) -> None:
        """Add a mono or stereo note to a part, cut at the part's end."""
        start = round(step * self.step)
        stop = min(start + note.shape[-1], self.length)
        if start < stop:
            part[..., start:stop] += note[..., : stop - start]

    def time(self, steps: float) -> Mono:
        return np.arange(max(1, round(steps * self.step))) / self.samplerate

    def filter(self, x: Mono, kind: str, hertz: float | tuple[float, float]) -> Mono:
        nyquist = self.samplerate / 2
        edges = np.minimum(np.asarray(hertz), 0.98 * nyquist)
        return np.asarray(sosfilt(butter(2, edges, kind, fs=self.samplerate, output="sos"), x))


def _hertz(semitones: float, octave: int) -> float:
    """Frequency of a note given in semitones above C of an octave (A4 = 440 Hz)."""
    return float(440.0 * 2.0 ** ((semitones - 9 + 12 * (octave - 4)) / 12))


def _rms(x: Mono) -> float:
    return float(np.sqrt(np.mean(x * x)))


def _pan(x: Mono, position: float) -> Mono:
    """Place a mono note in stereo with constant power; position −1 is left, 1 is right."""
    angle = (position + 1) * np.pi / 4
    return np.stack([np.cos(angle) * x, np.sin(angle) * x])


def _harmonics(score: _Score, phase: Mono, fundamental: float, tilt: float, ceiling: float) -> Mono:
    """Sum sin(k·phase)/k^tilt over the harmonics below a ceiling in hertz."""
    count = max(1, int(min(ceiling, 0.45 * score.samplerate) / fundamental))
    k = np.arange(1, count + 1)[:, None]
    return np.asarray((np.sin(k * phase) / k**tilt).sum(axis=0))


def _drums(score: _Score) -> Mono:
    rng, part = score.rng, np.zeros((2, score.length))
    t = score.time(4)
    sweep = 2 * np.pi * (48 * t + 110 / 28 * (1 - np.exp(-28 * t)))
    kick = np.sin(sweep) * np.exp(-9 * t) + 0.3 * rng.standard_normal(t.size) * np.exp(-400 * t)
    noise = score.filter(rng.standard_normal(t.size), "bandpass", (900, 7000))
    snare = noise * np.exp(-17 * t) * 1.6 + 0.5 * np.sin(2 * np.pi * 185 * t) * np.exp(-24 * t)
    hiss = score.filter(rng.standard_normal(t.size), "highpass", 7000)
    kicks = {0, 8} | {int(s) for s in rng.choice((3, 6, 7, 10, 11, 14), size=2, replace=False)}
    every_hat = int(rng.choice((1, 2)))
    for step in range(score.steps):
        beat = step % 16
        if beat in kicks:
            score.add(part, step, _pan(kick, 0.0))
        if beat in (4, 12):
            score.add(part, step, _pan(snare * rng.uniform(0.8, 1.1), 0.1))
        if beat % every_hat == 0:
            decay = 18.0 if beat == 14 else 70.0
            score.add(part, step, _pan(hiss * np.exp(-decay * t) * rng.uniform(0.25, 0.6), -0.3))
    return part


def _bass(score: _Score) -> Mono:
    rng, part = score.rng, np.zeros((2, score.length))
    tilt, ceiling = rng.uniform(1.0, 1.6), rng.uniform(500, 1100)
    pattern = rng.choice((0, 0, 0, 7, 12), size=8)
    t = score.time(2)
    envelope = np.minimum(1, t * 200) * np.exp(-2.5 * t) * np.clip((t[-1] - t) * 80, 0, 1)
    for step in range(0, score.steps, 2):
        if rng.random() < 0.12:
            continue
        hertz = _hertz((score.chord(step) % 12) + int(pattern[(step // 2) % 8]), 1)
        note = _harmonics(score, 2 * np.pi * hertz * t, hertz, tilt, ceiling) * envelope
        score.add(part, step, _pan(note, 0.0))
    return part


def _other(score: _Score) -> Mono:
    rng, part = score.rng, np.zeros((2, score.length))
    plucked = bool(rng.random() < 0.5)
    hold = 2 if plucked else 16
    tilt = rng.uniform(1.2, 2.0)
    t = score.time(hold)
    if plucked:
        envelope = np.minimum(1, t * 400) * np.exp(-6 * t) * np.clip((t[-1] - t) * 80, 0, 1)
    else:
        envelope = np.minimum(1, t * 6) * np.clip((t[-1] - t) * 12, 0, 1)
    for step in range(0, score.steps, hold):
        third = 3 if score.is_minor(step) else 4
        triad = (0, third, 7, 12)
        voices = (triad[(step // hold) % 4],) if plucked else triad[:3]
        for voice in voices:
            hertz = _hertz((score.chord(step) % 12) + voice, 4 if plucked else 3)
            detuned = hertz * (1 + rng.uniform(-0.002, 0.002))
            phase = rng.uniform(0, 2 * np.pi)
            left = _harmonics(score, 2 * np.pi * hertz * t + phase, hertz, tilt, 5000)
            right = _harmonics(score, 2 * np.pi * detuned * t, detuned, tilt, 5000)
            score.add(part, step, np.stack([left, right]) * envelope)
    return part


def _vocals(score: _Score) -> Mono:
    rng, part = score.rng, np.zeros((2, score.length))
    octave = int(rng.choice((3, 4)))
    step, degree = float(rng.integers(0, 3)), int(rng.integers(len(_SCALE)))
    while step < score.steps:
        hold = int(rng.choice((2, 3, 4, 6)))
        degree = int(np.clip(degree + rng.integers(-2, 3), 0, len(_SCALE) - 1))
        if rng.random() < 0.85:
            score.add(
                part, step, _pan(_syllable(score, hold * 0.95, _hertz(score.key % 12 + _SCALE[degree], octave)), 0)
            )
        step += hold
    return part


def _syllable(score: _Score, steps: float, hertz: float) -> Mono:
    """One sung note: a glide into the pitch, vibrato, formants of a vowel, and a breathy onset."""
    rng, t = score.rng, score.time(steps)
    vibrato = 0.012 * np.sin(2 * np.pi * 5.6 * t + rng.uniform(0, 6)) * np.minimum(1, 4 * t)
    pitch = hertz * (1 + vibrato - 0.06 * np.exp(-30 * t))
    phase = 2 * np.pi * np.cumsum(pitch) / score.samplerate
    formants = np.asarray(_VOWELS[rng.integers(len(_VOWELS))]) * rng.uniform(0.95, 1.1)
    count = int(min(5500, 0.45 * score.samplerate) / (1.02 * hertz))
    k = np.arange(1, count + 1)[:, None]
    resonance = (1 / (1 + ((k * hertz - formants) / (0.09 * formants + 40)) ** 2)).sum(axis=1, keepdims=True)
    voice = (np.sin(k * phase) * (resonance + 0.02) / np.sqrt(k)).sum(axis=0)
    breath = score.filter(rng.standard_normal(t.size), "highpass", 4000) * (0.05 + 0.5 * np.exp(-60 * t))
    envelope = np.minimum(1, t * 25) * np.clip((t[-1] - t) * 20, 0, 1)
    return np.asarray((voice + breath) * envelope)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Audio file to write.")
@click.option("--seconds", default=12.0, show_default=True)
@click.option("--seed", default=1_000_000, show_default=True, help="1000000 and up were not trained on.")
def main(out: Path, seconds: float, seed: int) -> None:
    """Write the mixture of a synthesised song."""
    soundfile.write(out, mixture(synthesise(seconds, seed)).T, 44_100, subtype="PCM_16")


if __name__ == "__main__":
    main()
