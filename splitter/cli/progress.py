"""Progress bars for separation, with the time left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rich.progress
from rich.console import Console
from rich.markup import escape

from ..names import visible
from ..separation import Progress


class _Bar(Progress):
    """The bar of one job: of the file it is at."""

    def __init__(self, bars: rich.progress.Progress) -> None:
        self._bars = bars
        self._task: rich.progress.TaskID | None = None

    def start(self, path: Path, seconds: float) -> None:
        name = escape(visible(path.name))
        if self._task is None:
            self._task = self._bars.add_task(name, total=seconds, unit="s")
        else:
            self._bars.reset(self._task, description=name, total=seconds)

    def advance(self, seconds: float) -> None:
        if self._task is not None:
            self._bars.advance(self._task, seconds)


class Bars:
    """One bar for each job and, of several files, one for all of them."""

    def __init__(self, bars: rich.progress.Progress, files: int) -> None:
        self._bars = bars
        self._files = bars.add_task("all files", total=files, unit="files") if files > 1 else None

    def job(self) -> Progress:
        """The bar of a job, in seconds of sound."""
        return _Bar(self._bars)

    def finish_file(self) -> None:
        """One more of the files is done."""
        if self._files is not None:
            self._bars.advance(self._files)


@contextmanager
def bars(console: Console, files: int) -> Iterator[Bars]:
    """Show bars while the block runs; nothing where there is no terminal."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        rich.progress.TimeRemainingColumn(),
    )
    shown = rich.progress.Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # what is piped elsewhere stays out of the terminal
    )
    with shown:
        yield Bars(shown, files)
