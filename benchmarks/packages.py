"""Saved packages executed by `splitter.mil` against PyTorch running the same captured segment, in one process."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from splitter_weights import checkpoints

import splitter
from splitter import mil, models
from splitter.bundle.directory import Bundle
from splitter.mil.program import Operation, Ref
from splitter.mil.types import StateType, TensorType
from splitter.plan import schema as plans

_VIEWS = frozenset({"reshape", "expand_dims", "squeeze", "transpose", "slice_by_index", "split", "identity"})


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print a row for each segment in each precision: the transformer is converted too, for this alone."""
    table = Table(title=f"packages of {checkpoint or 'demo'}, {runs} interleaved runs", title_justify="left")
    for column in ("package", "ms", "peer", "ms", "ratio (median of pairs)", "load s", "peak MB", "against liveness"):
        table.add_column(column, justify="right")
    module = checkpoints.load(checkpoint or "demo").members[0].model.eval().crosstransformer
    with tempfile.TemporaryDirectory() as scratch:
        for precision in ("fp32", "fp16"):
            bundle = _bundle(checkpoint, Path(scratch) / precision, precision)
            golden = bundle.goldens()
            for segment in bundle.segments:
                if segment.artifact.target != "coreml":
                    continue
                given = {name: golden[name] for name in segment.inputs}
                tensors = {name: torch.from_numpy(array).clone() for name, array in given.items()}
                peers = {"captured graph": partial(bundle.program(segment.program).run, tensors)}
                if segment.name == "transformer":  # PyTorch swaps in a fused attention of its own there
                    peers["model's module"] = partial(_ungraded, module, *tensors.values())
                for row in _rows(bundle.path / segment.artifact.path, given, peers, runs):
                    table.add_row(f"{segment.name} {precision}", *row)
    Console(width=140).print(table)


def _bundle(checkpoint: str | None, out: Path, precision: str) -> Bundle:
    preset = models.presets()["htdemucs"]
    stages = [s.model_copy(update={"target": "coreml"}) if s.name == "transformer" else s for s in preset.stages]
    plan = plans.changed(preset, stages=stages, precision=precision)
    return splitter.build(checkpoint or "demo", out, plan=plan, reference=False).members[0]


def _ungraded(module: torch.nn.Module, *inputs: torch.Tensor) -> Any:
    with torch.no_grad():
        return module(*inputs)


def _rows(
    package: Path, given: Mapping[str, Any], peers: Mapping[str, Callable[[], Any]], runs: int
) -> Iterator[list[str]]:
    mil.load(package)  # the operations are imported once
    loading = _seconds(lambda: mil.load(package))
    model = mil.load(package)
    turns = [
        [_seconds(lambda: model.predict(given)), *(_seconds(peer) for peer in peers.values())] for _ in range(runs + 1)
    ]
    mine, *theirs = zip(*turns[1:], strict=True)  # the first turn warms up
    peak, bound = _peak_bytes(lambda: model.predict(given)), _liveness_bytes(model)
    for label, seconds in zip(peers, theirs, strict=True):
        yield [
            f"{1e3 * statistics.median(mine):.0f}",
            label,
            f"{1e3 * statistics.median(seconds):.0f}",
            f"{statistics.median(a / b for a, b in zip(mine, seconds, strict=True)):.2f}",
            f"{loading:.2f}",
            f"{peak / 1e6:.0f}",
            f"{peak / bound:.2f}",
        ]


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _peak_bytes(call: Callable[[], Any]) -> int:
    """The most that torch's allocator holds at once beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.max(initial=0))


def _liveness_bytes(model: mil.Model) -> int:
    """The most that is alive at once, each value from its operation to its last use; views are their source.

    Inputs belong to the caller and constants to the package: neither counts.
    """
    source: dict[str, str] = {}
    size: dict[str, int] = {one.name: 0 for one in model.function.inputs}
    last: dict[str, int] = {}
    for index, operation in enumerate(model.operations):
        if operation.type == "const":
            size[operation.name] = 0
            continue
        read = [source.get(name, name) for name in _names(operation)]
        last |= dict.fromkeys(read, index)
        for output in operation.outputs:
            kind = output.type
            if operation.type in _VIEWS and read and not isinstance(kind, StateType):
                source[output.name] = read[0]
            else:
                size[output.name] = _bytes(kind)
                last[output.name] = index
    last |= {source.get(name, name): len(model.operations) for name in model.function.block.outputs}
    dying: dict[int, list[str]] = {}
    for name, index in last.items():
        dying.setdefault(index, []).append(name)
    alive = most = 0
    for index, operation in enumerate(model.operations):
        alive += sum(size.get(output.name, 0) for output in operation.outputs if output.name not in source)
        most = max(most, alive)
        alive -= sum(size[name] for name in dying.get(index, ()))
    return most


def _names(operation: Operation) -> list[str]:
    """Arguments by name, the data of a view first."""
    data = operation.inputs.get("x", ())
    rest = [one for key, many in operation.inputs.items() if key != "x" for one in many]
    return [one.name for one in (*data, *rest) if isinstance(one, Ref)]


def _bytes(kind: object) -> int:
    return math.prod(one or 1 for one in kind.shape) * kind.dtype.held.itemsize if isinstance(kind, TensorType) else 0
