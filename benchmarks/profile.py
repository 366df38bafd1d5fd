"""What profiling costs: the orchestrator with and without its hooks, in turns; and what the hooks account for.

The hooks cost less than two equal runs differ, so they are called by themselves as well.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from splitter.bundle.directory import Bundle
from splitter.profiling import Timeline
from splitter.runtime.orchestrator import Orchestrator

from .processes import bundle


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print ratios pair by pair; that of two runs without hooks is the noise."""
    timeline = Timeline()
    with tempfile.TemporaryDirectory() as scratch:
        made = Bundle.load(bundle(checkpoint, Path(scratch)))
        golden = made.goldens()
        inputs = {spec.name: golden[spec.name] for spec in made.manifest.tensors if spec.producer == "input"}
        hooked = Orchestrator(made, hooks=[timeline])
        plain, again = Orchestrator(made), Orchestrator(made)
        seconds: dict[Orchestrator, list[float]] = {one: [] for one in (plain, hooked, again)}
        accounted, checks = [], []
        for turn in range(3 * runs + 1):  # three times as many: each of the three is first in a third of the turns
            order = [*seconds][turn % 3 :] + [*seconds][: turn % 3]
            for one in order:
                started = time.perf_counter()
                one.run(inputs)
                seconds[one].append(time.perf_counter() - started)
            checking = sum(timeline.checks.values()) / seconds[hooked][-1]
            checks.append(checking)
            accounted.append(checking + sum(timeline.segments.values()) / seconds[hooked][-1])
    walls = {one: many[1:] for one, many in seconds.items()}  # the first turn warms up

    def ratio(one: Orchestrator) -> str:
        return f"{statistics.median(a / b for a, b in zip(walls[one], walls[plain], strict=True)):.4f}"

    alone = _alone(made, timeline) / statistics.median(walls[plain])
    table = Table(title=f"profile of {checkpoint or 'demo'}, {3 * runs} interleaved turns", title_justify="left")
    for column in ("s", "with hooks, ratio", "without again, ratio", "hooks alone", "accounted for", "by checks alone"):
        table.add_column(column, justify="right")
    table.add_row(
        f"{statistics.median(walls[plain]):.3f}", ratio(hooked), ratio(again), f"{alone:.4%}",
        f"{statistics.median(accounted[1:]):.2%}", f"{statistics.median(checks[1:]):.2%}",
    )  # fmt: skip
    Console(width=120).print(table)


def _alone(made: Bundle, timeline: Timeline, repeats: int = 1000) -> float:
    """Seconds that the hooks of one run take."""
    started = time.perf_counter()
    for _ in range(repeats):
        for segment in made.segments:
            timeline.before_segment(segment, {})
            timeline.computed(segment)
            timeline.after_segment(segment, {})
        for spec in made.manifest.tensors:
            timeline.before_check(spec)
            timeline.after_check(spec)
    return (time.perf_counter() - started) / repeats
