"""`splitter separate` against demucs's command line: whole processes, file in, stems out, interleaved."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .processes import Run, bundle, demucs_command, measured, song, splitter_command


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print medians, and the ratio pair by pair."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        track = Path(song) if song else _short_song(directory)
        made = bundle(checkpoint, directory)
        ours: list[Run] = []
        theirs: list[Run] = []
        for counted in range(runs + 1):  # the first pair warms the file cache
            pair = (
                measured(splitter_command(made, track, directory / "ours")),
                measured(demucs_command(checkpoint, track, directory / "theirs")),
            )
            if counted:
                ours.append(pair[0])
                theirs.append(pair[1])
    table = Table(title=f"separate {track.name}, {checkpoint or 'demo'}, {runs} interleaved runs", title_justify="left")
    for column in ("", "splitter", "demucs", "ratio (median of pairs)"):
        table.add_column(column, justify="right")
    for label, read in (("seconds", lambda run: run.seconds), ("peak MB", lambda run: run.peak_mb)):
        mine, other = [read(run) for run in ours], [read(run) for run in theirs]
        ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
        table.add_row(label, f"{statistics.median(mine):.1f}", f"{statistics.median(other):.1f}", f"{ratio:.3f}")
    Console(width=120).print(table)


def _short_song(directory: Path) -> Path:
    return song(directory, 2.0)
