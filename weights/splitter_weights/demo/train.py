"""Train the embedded demo model, from nothing but a seed.

    python -m splitter_weights.demo.train --out weights/splitter_weights/demo/demo.safetensors

The model is demucs's own `HTDemucs`, small; the songs come from `songs.synthesise`; the loss is the
mean absolute error of the stems, as HT Demucs was trained (Rouard et al. 2023, section 3.2). Held-out
songs have seeds of their own: see `HELD_OUT_SEED`.
"""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch
from demucs.htdemucs import HTDemucs
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from .songs import STEMS, synthesise

CONFIGURATION: dict[str, Any] = {
    "sources": list(STEMS),
    "samplerate": 44_100,
    "segment": Fraction(3, 2),
    "channels": 8,
    "nfft": 2048,
    "dconv_mode": 3,
    "dconv_comp": 4,
    "bottom_channels": 80,
    "t_layers": 5,
    "t_heads": 8,
    "t_hidden_scale": 2.0,
}
HELD_OUT_SEED = 1_000_000
_SONG_SECONDS = 8.0


class _Songbook:
    """Training songs in memory, handed out as random remixed crops."""

    def __init__(self, songs: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.songs = torch.stack([_stack(synthesise(_SONG_SECONDS, seed + i)) for i in range(songs)])

    def batch(self, size: int, length: int) -> Tensor:
        """Return stems ``(size, stems, 2, length)``, each stem with a gain and, at times, from another song."""
        out = []
        for _ in range(size):
            song = int(self.rng.integers(len(self.songs)))
            remix = self.rng.random() < 0.4
            stems = []
            for stem in range(len(STEMS)):
                source = int(self.rng.integers(len(self.songs))) if remix else song
                start = int(self.rng.integers(self.songs.shape[-1] - length + 1))
                crop = self.songs[source, stem, :, start : start + length]
                stems.append(crop * float(self.rng.uniform(0.4, 1.3)))
            out.append(torch.stack(stems))
        return torch.stack(out)


def _stack(stems: dict[str, np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack([stems[name] for name in STEMS]))


@torch.no_grad()
def held_out_margin(model: HTDemucs, songs: int = 3) -> float:
    """Mean SDR in dB of the model on held-out songs, above taking the mixture as every stem."""
    margins = []
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + songs):
        length = int(model.segment * model.samplerate)
        stems = _stack(synthesise(6.0, seed))
        crops = stems[..., : stems.shape[-1] // length * length].unfold(-1, length, length)
        estimate = torch.stack([model(crop.sum(0)[None])[0] for crop in crops.permute(2, 0, 1, 3)], dim=2)
        mixture = crops.sum(0, keepdim=True).expand_as(crops)
        margins.append((_sdr(crops, estimate) - _sdr(crops, mixture)).mean())
    return float(torch.stack(margins).mean())


def _sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    """SDR per stem: ``10 log10(Σ s² / Σ (s − ŝ)²)`` over all but the first axis."""
    power = reference.flatten(1).square().sum(1)
    return 10 * torch.log10(power / (reference - estimate).flatten(1).square().sum(1))


def save(model: HTDemucs, path: Path) -> None:
    """Write a checkpoint in demucs's own safetensors format, matrices and vectors in half precision."""
    args = {
        key: {"_type": "fraction", "numerator": value.numerator, "denominator": value.denominator}
        if isinstance(value, Fraction)
        else value
        for key, value in CONFIGURATION.items()
    }
    metadata = {"klass": "demucs.htdemucs.HTDemucs", "args": "[]", "kwargs": json.dumps(args)}
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(state, path, metadata)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Checkpoint to write.")
@click.option("--steps", default=1600, show_default=True, help="Optimiser steps.")
@click.option("--songs", default=120, show_default=True, help="Training songs.")
@click.option("--seed", default=7, show_default=True)
def main(out: Path, steps: int, songs: int, seed: int) -> None:
    """Train the demo model and write its checkpoint."""
    torch.manual_seed(seed)
    model = HTDemucs(**CONFIGURATION)
    book = _Songbook(songs, seed)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimiser = torch.optim.Adam(model.parameters(), lr=1.5e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.5e-3, total_steps=steps, pct_start=0.05)
    length = int(model.segment * model.samplerate)
    started = time.monotonic()
    for step in range(1, steps + 1):
        stems = book.batch(4, length)
        loss = functional.l1_loss(model(stems.sum(1)), stems)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(model)
        if step % 250 == 0 or step == steps:
            averaged = cast("HTDemucs", average.module.eval())
            averaged.segment = CONFIGURATION["segment"]
            margin = held_out_margin(averaged)
            minutes = (time.monotonic() - started) / 60
            click.echo(f"step {step}: loss {loss.item():.5f}, held-out +{margin:.2f} dB, {minutes:.1f} min")
            save(averaged, out)


if __name__ == "__main__":
    main()
