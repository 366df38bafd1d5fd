"""Builds the bundles that the Swift tests read: `python -m tests.swift.bundles FOLDER`."""

import sys
from pathlib import Path

import torch
from demucs.htdemucs import HTDemucs

import splitter

STEMS = ["drums", "bass", "other", "vocals", "guitar", "piano"]


def six_stems() -> HTDemucs:
    """As the released model of six stems, a sixth as wide, seeded, of one second at 8 kHz."""
    torch.manual_seed(6)
    widths = {"channels": 8, "depth": 4, "t_layers": 3, "t_heads": 2}
    return HTDemucs(sources=STEMS, nfft=2048, segment=1, samplerate=8000, **widths).eval()


def build(folder: Path) -> None:
    splitter.build("demo", folder / "demo.bundle", force=True)
    splitter.build(six_stems(), folder / "six.bundle", reference=False, force=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
