"""Two worker processes on two files against one process with two threads: whole commands, interleaved."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .processes import SPLITTER, bundle, measured
from .processes import song as synthesised

_MINUTES = 1.0


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print medians, and the ratio pair by pair."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        track = Path(song) if song else synthesised(directory, _MINUTES)
        files = [directory / f"{index}{track.suffix}" for index in range(2)]
        for file in files:
            shutil.copyfile(track, file)
        command = [SPLITTER, "separate", *files, "-b", bundle(checkpoint, directory), "--shifts", "0", "--force"]
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for counted in range(runs + 1):  # the first pair warms the file cache
            for jobs in sorted(seconds, reverse=bool(counted % 2)):
                run = measured([*command, "-o", directory / f"out{jobs}", "-j", str(jobs)])
                if counted:
                    seconds[jobs].append(run.seconds)
    name = checkpoint or "demo"
    table = Table(title=f"two files of {track.name}, {name}, {runs} interleaved runs", title_justify="left")
    for column in ("", "-j 2", "-j 1", "throughput ratio (median of pairs)"):
        table.add_column(column, justify="right")
    ratio = statistics.median(one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    medians = [f"{statistics.median(seconds[jobs]):.1f}" for jobs in (2, 1)]
    table.add_row("seconds", *medians, f"{ratio:.3f}")
    Console(width=120).print(table)
