"""Run the measurements: ``python -m benchmarks [NAME …]``."""

from __future__ import annotations

import click

from . import (
    apple_host,
    batch,
    building,
    cuts,
    fourier,
    integrity,
    load,
    memory,
    packages,
    peers,
    profile,
    segments,
    separate,
    transformer,
)

_BENCHMARKS = {
    "building": building.main,
    "separate": separate.main,
    "peers": peers.main,
    "batch": batch.main,
    "load": load.main,
    "integrity": integrity.main,
    "memory": memory.main,
    "packages": packages.main,
    "transformer": transformer.main,
    "profile": profile.main,
    "cuts": cuts.main,
    "fourier": fourier.main,
    "segments": segments.main,
}
_ALONE = {"apple-host": apple_host.main}  # takes what `make swift-test` builds


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*_BENCHMARKS, *_ALONE]))
@click.option("--checkpoint", type=click.Path(exists=True), help="Released model (.safetensors); the demo by default.")
@click.option("--song", type=click.Path(exists=True), help="Audio file; a synthesised one by default.")
@click.option("--runs", default=3, show_default=True, help="Counted runs of each side.")
@click.option("--long-minutes", default=20.0, show_default=True, help="Length of the long song in `memory`.")
def main(names: tuple[str, ...], checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Measure splitter against demucs on this machine, with nothing else running."""
    for name in names or _BENCHMARKS:
        (_BENCHMARKS | _ALONE)[name](checkpoint=checkpoint, song=song, runs=runs, long_minutes=long_minutes)


if __name__ == "__main__":
    main()
