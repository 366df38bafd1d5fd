"""Separators: modules that take a mixture ``(1, channels, samples)`` and give ``(1, stems, channels, samples)``.

Such a module says what it separates in four attributes, as demucs's do: ``sources``, ``samplerate``,
``audio_channels`` and ``segment``, the seconds in one run.
"""

from __future__ import annotations

import inspect
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from ..boundary import Array
from ..bundle.manifest import AudioRecord
from ..errors import AudioError, UsageError
from ..plan import schema as plans
from ..plan.schema import Plan
from ..separation import audio
from . import Example, Family

_SEED = 20_260_101
_START = 1.0  # seconds into the song, where every stem sounds
_ATTRIBUTES = ("sources", "samplerate", "audio_channels", "segment")


class SeparatorFamily(Family):
    """Any module with the four attributes; it has no preset, so it is built with a plan."""

    name: ClassVar[str] = "separator"

    def fits(self, module: nn.Module) -> bool:
        return all(hasattr(module, attribute) for attribute in _ATTRIBUTES)

    def prepared(self, module: nn.Module, plan: Plan, seconds: float | None) -> Plan:
        """The module is really set to the length, by its own attribute, rather than padded to what it was made for."""
        samplerate, longest = int(module.samplerate), int(module.segment * module.samplerate)  # type: ignore[arg-type, operator]
        samples = round(seconds * samplerate) if seconds is not None else plan.segment_samples or longest
        if not 0 < samples <= longest:
            raise UsageError(
                "the model does not run at this length",
                expected=f"more than 0 s and at most {longest / samplerate:g} s",
                received=f"{samples / samplerate:g} s",
            )
        module.segment = Fraction(samples, samplerate)  # type: ignore[assignment]
        return plans.changed(plan, segment_samples=samples)

    def audio(self, module: nn.Module, plan: Plan) -> AudioRecord:
        assert plan.segment_samples is not None
        return AudioRecord(
            stems=tuple(module.sources),  # type: ignore[arg-type]
            samplerate=int(module.samplerate),  # type: ignore[arg-type]
            channels=int(module.audio_channels),  # type: ignore[arg-type]
            samples=plan.segment_samples,
        )

    def example(self, module: nn.Module, plan: Plan, recording: Path | None) -> Example:
        """One run of sound as `separate` would feed it: the recording's beginning, or a synthesised song."""
        sound = self.audio(module, plan)
        mixture, description = _synthesised(sound) if recording is None else _recorded(recording, sound)
        if not np.any(mixture):
            raise AudioError(f"the golden input is silent: {description}", fix="Choose a file that begins with sound.")
        argument = next(iter(inspect.signature(module.forward).parameters))
        return Example({argument: torch.from_numpy(audio.heard(mixture, sound))[None]}, description)


def _synthesised(sound: AudioRecord) -> tuple[Array, str]:
    from splitter_weights.demo import songs  # with scipy.signal: seconds that other models need not wait

    stems = songs.synthesise(_START + (sound.samples + 1) / sound.samplerate, _SEED, sound.samplerate)
    start = round(_START * sound.samplerate)
    mixture = songs.mixture(stems)[:, start : start + sound.samples]
    if mixture.shape[0] != sound.channels:
        mixture = np.resize(mixture, (sound.channels, sound.samples))
    return mixture, f"synthesised song, seed {_SEED}"


def _recorded(path: Path, sound: AudioRecord) -> tuple[Array, str]:
    track = audio.Track(path, sound.samplerate, sound.channels)
    return audio.Window(track, 0).read(0, sound.samples), path.name
