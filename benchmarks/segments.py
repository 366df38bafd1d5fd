"""What cutting costs: one run of the split by PyTorch, each Core ML stage in one to eight segments, in turns."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import splitter
from splitter.bundle.directory import Bundle
from splitter.opening import captured
from splitter.plan import schema as plans
from splitter.plan.schema import Plan
from splitter.runtime.orchestrator import Orchestrator

_COUNTS = (1, 2, 4, 8)


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print seconds and handed-over bytes for each number of segments; the peer is a segment a stage."""
    model = checkpoint or "demo"
    with tempfile.TemporaryDirectory() as scratch:
        _, start = captured(model)
        bundles = {count: _built(model, start, count, Path(scratch) / str(count)) for count in _COUNTS}
        golden = bundles[1].goldens()
        given = {name: golden[name] for name, spec in bundles[1].tensors.items() if spec.producer == "input"}
        splits = {count: Orchestrator(bundle) for count, bundle in bundles.items()}
        seconds: dict[int, list[float]] = {count: [] for count in _COUNTS}
        for turn in range(runs + 1):  # the first one warms up
            for count, split in splits.items():
                started = time.perf_counter()
                split.run(given)
                if turn:
                    seconds[count].append(time.perf_counter() - started)
    table = Table(title=f"segments of {model}, {runs} interleaved runs", title_justify="left")
    for column in ("segments a stage", "segments", "boundary MB", "seconds", "ratio (median of pairs)"):
        table.add_column(column, justify="right")
    for count, mine in seconds.items():
        ratio = statistics.median(one / peer for one, peer in zip(mine, seconds[1], strict=True))
        handed = sum(spec.bytes for spec in bundles[count].manifest.tensors) / 1e6
        pieces, median = len(bundles[count].segments), statistics.median(mine)
        table.add_row(f"{count}", f"{pieces}", f"{handed:.1f}", f"{median:.3f}", f"{ratio:.3f}")
    Console(width=120).print(table)


def _built(model: str, start: Plan, count: int, out: Path) -> Bundle:
    stages = [stage.name for stage in start.stages if stage.target == "coreml"]
    plan = plans.with_segments(start, dict.fromkeys(stages, count))
    (bundle,) = splitter.build(model, out, plan=plan, reference=False).members
    return bundle
