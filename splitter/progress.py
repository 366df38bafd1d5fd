"""Progress bars for separation, with the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rich.progress
from rich.console import Console

from .separation import Progress


class _Bar(Progress):
    def __init__(self, bars: rich.progress.Progress) -> None:
        self._bars = bars
        self._task: rich.progress.TaskID | None = None

    def start(self, path: Path, seconds: float) -> None:
        self._task = self._bars.add_task(path.name, total=seconds)

    def advance(self, seconds: float) -> None:
        if self._task is not None:
            self._bars.advance(self._task, seconds)


@contextmanager
def bars(console: Console) -> Iterator[Progress]:
    """A bar per file, in seconds of sound, while the block runs; nothing where there is no terminal."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.completed:.0f}/{task.total:.0f} s"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        yield _Bar(shown)
