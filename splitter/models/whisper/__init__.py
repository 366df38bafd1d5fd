"""Whisper's encoder (openai-whisper's `AudioEncoder`, unmodified): released checkpoints, or random weights by name.

It takes the log-mel spectrogram of 30 seconds of speech at 16 kHz, ``(1, mels, 3000)``, and gives ``(1, 1500, width)``.
The spectrogram is made outside of it, by whisper's own `log_mel_spectrogram`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from ...boundary import Array
from ...errors import AudioError, CheckpointError, UsageError
from ...plan.schema import Plan
from ...separation import audio
from ...verification.mistakes import Call, Mistake
from .. import Ensemble, Example, Family, Model, needed
from . import checkpoint
from .checkpoint import CONFIGURATIONS, Dimensions

_PREFIX = "whisper-"
_SAMPLERATE, _HOP = 16_000, 160
_MELS = (80, 128)  # that whisper has filters for
_SEED = 20_260_101
_POSITIONS = "positional_embedding"


class WhisperFamily(Family):
    name: ClassVar[str] = "whisper"
    names: ClassVar[tuple[str, ...]] = tuple(_PREFIX + name for name in CONFIGURATIONS)
    suffixes: ClassVar[tuple[str, ...]] = (".pt",)
    distribution: ClassVar[str] = "openai-whisper"

    def fits(self, module: nn.Module) -> bool:
        return (type(module).__module__, type(module).__name__) == ("whisper.model", "AudioEncoder")

    def load(self, model: str | Path, *, random_init: int | None = None) -> Ensemble:
        encoder = needed("whisper.model", "whisper").AudioEncoder
        name = str(model).removeprefix(_PREFIX)
        if name not in CONFIGURATIONS or name == str(model):
            if random_init is not None:
                raise UsageError(
                    f"there is no configuration {str(model)!r} for random weights",
                    fix=f"There are {', '.join(self.names)}.",
                )
            member = checkpoint.load(Path(model), encoder)
        elif random_init is None:
            raise CheckpointError(
                f"{model} is not fetched by splitter",
                fix=f"Give the file that whisper keeps, e.g. ~/.cache/whisper/{name}.pt after "
                f"whisper.load_model({name!r}); or --random-init 0.",
            )
        else:
            member = _random(str(model), encoder, CONFIGURATIONS[name], random_init)
        return Ensemble(member.name, (member,), ((),))

    def example(self, module: nn.Module, plan: Plan, recording: Path | None) -> Example:
        """The spectrogram of a recording's beginning, or of a synthesised song."""
        frames, mels = 2 * module.positional_embedding.shape[0], module.conv1.in_channels  # type: ignore[index, union-attr]
        if mels not in _MELS:
            raise CheckpointError(
                "whisper has no filters for so many mel bands",
                expected=" or ".join(map(str, _MELS)),
                received=mels,
                fix="Give the spectrogram: --inputs FILE.npz with the array x.",
            )
        sound, description = _sound(int(frames) * _HOP, recording)
        spectrogram = needed("whisper.audio", "whisper").log_mel_spectrogram(sound, n_mels=mels)
        return Example({"x": spectrogram[None, :, :frames]}, description)

    def mistakes(self, node: fx.Node) -> Iterable[Mistake]:
        return _of_positions(node) if _adds_positions(node) else ()


def _random(name: str, encoder: Any, dimensions: Dimensions, seed: int) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = encoder(*dimensions.arguments().values()).eval()
    return Model(name, module, dimensions.arguments(), random_init=seed)


def _sound(samples: int, recording: Path | None) -> tuple[Array, str]:
    if recording is None:
        from splitter_weights.demo import songs  # with scipy.signal: seconds that other models need not wait

        stems = songs.synthesise((samples + 1) / _SAMPLERATE, _SEED, _SAMPLERATE)
        return songs.mixture(stems).mean(axis=0)[:samples], f"synthesised song, seed {_SEED}"
    track = audio.Track(recording, _SAMPLERATE, 1)
    sound = audio.Window(track, 0).read(0, samples)[0]
    if not np.any(sound):
        raise AudioError(f"the golden input is silent: {recording.name}", fix="Choose a file that begins with sound.")
    return sound, recording.name


# ------------------------------------------------------------------------------------- what ports get wrong


def _adds_positions(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.add.Tensor and any(
        parent.op == "get_attr" and str(parent.target).endswith(_POSITIONS) for parent in node.all_input_nodes
    )


def _of_positions(node: fx.Node) -> Iterator[Mistake]:
    """The table has all sines first, then all cosines, unlike the paper's, where they alternate."""

    def with_table(change: Any) -> Any:
        def compute(call: Call) -> Tensor:
            table: Tensor = call["other"]
            return call["self"] + change(table)

        return compute

    def alternating(table: Tensor) -> Tensor:
        return torch.stack(table.chunk(2, dim=1), dim=-1).reshape(table.shape)

    yield Mistake(
        "cosines before sines in the table of positions",
        with_table(lambda table: torch.cat(list(reversed(table.chunk(2, dim=1))), dim=1)),
    )
    yield Mistake(
        "sines and cosines alternating in the table of positions, where the model has all sines first",
        with_table(alternating),
    )
    yield Mistake("the table of positions begun at 1", with_table(lambda table: torch.roll(table, -1, dims=0)))
    yield Mistake("the table of positions left out", with_table(torch.zeros_like))
