"""Progress bars for separation, with the time left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rich.progress
from rich.console import Console
from rich.markup import escape

import splitter

from ..names import visible
from .shell import print_lines


class Bars:
    """A bar for each file that is separated, in seconds of sound, and one for all of several; phrases above them."""

    def __init__(self, bars: rich.progress.Progress, files: int) -> None:
        self._bars = bars
        self._files = bars.add_task("all files", total=files, unit="files") if files > 1 else None
        self._tasks: dict[Path, rich.progress.TaskID] = {}

    def __call__(self, step: str | splitter.Advance) -> None:
        """Show a step."""
        if isinstance(step, str):
            print_lines(step, stream=sys.stderr)
            return
        if step.path not in self._tasks:
            self._tasks[step.path] = self._bars.add_task(escape(visible(step.path.name)), total=step.total, unit="s")
        self._bars.update(self._tasks[step.path], completed=step.done)

    def finish_file(self, path: Path) -> None:
        """One more of the files is done."""
        if self._files is not None:
            self._bars.advance(self._files)
            if path in self._tasks:
                self._bars.remove_task(self._tasks.pop(path))


@contextmanager
def bars(console: Console, files: int) -> Iterator[Bars]:
    """Show bars while the block runs; phrases alone where there is no terminal."""
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
