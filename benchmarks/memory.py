"""Peak memory of `splitter separate` over the length of the song, with `--low-memory`, and demucs's."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .processes import bundle, demucs_command, measured, splitter_command
from .processes import song as synthesised

_SHORT_MINUTES = 2.0


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print one row per length; the ratio is against the short song."""
    table = Table(title=f"peak memory, {checkpoint or 'demo'}", title_justify="left")
    for column in ("", "minutes", "peak MB", "against 2 min", "seconds"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        made = bundle(checkpoint, directory)
        measured(splitter_command(made, synthesised(directory, 0.1), directory / "out"))  # chooses the engines, once
        short = measured(splitter_command(made, synthesised(directory, _SHORT_MINUTES), directory / "out"))
        table.add_row("splitter", f"{_SHORT_MINUTES:g}", f"{short.peak_mb:.0f}", "1.000", f"{short.seconds:.0f}")
        track = synthesised(directory, long_minutes)
        long = measured(splitter_command(made, track, directory / "out"))
        ratio = long.peak_mb / short.peak_mb
        table.add_row("splitter", f"{long_minutes:g}", f"{long.peak_mb:.0f}", f"{ratio:.3f}", f"{long.seconds:.0f}")
        saving = [*splitter_command(made, synthesised(directory, _SHORT_MINUTES), directory / "less"), "--low-memory"]
        less = measured(saving)
        ratio = less.peak_mb / short.peak_mb
        table.add_row("low memory", f"{_SHORT_MINUTES:g}", f"{less.peak_mb:.0f}", f"{ratio:.3f}", f"{less.seconds:.0f}")
        other = measured(demucs_command(checkpoint, synthesised(directory, _SHORT_MINUTES), directory / "theirs"))
        ratio = other.peak_mb / short.peak_mb
        table.add_row("demucs", f"{_SHORT_MINUTES:g}", f"{other.peak_mb:.0f}", f"{ratio:.3f}", f"{other.seconds:.0f}")
    Console(width=120).print(table)
