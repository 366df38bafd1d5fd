"""The transformer by PyTorch, JAX and NumPy on one golden: time and distance in turns, memory each in its own process.

As a script (``python -m benchmarks.transformer RUNNER DIRECTORY``) it is such a process: what the runner needs, one
run, and nothing else.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

Run = Callable[[], list[Any]]


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print a row for each runner; the peer is the model's own module in eval mode, as PyTorch runs it."""
    import tempfile

    import torch
    from rich.console import Console
    from rich.table import Table

    from splitter.weights import checkpoints

    from .processes import measured

    table = Table(title=f"transformer of {checkpoint or 'demo'}, {runs} interleaved runs", title_justify="left")
    for column in ("", "s", "ratio (median of pairs)", "dB, frequency", "dB, time", "peak MB of a process", "ratio"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        expected = _prepared(checkpoint, directory)
        module = checkpoints.load(checkpoint or "demo").members[0].model.eval().crosstransformer
        torch.save(module, directory / "module")
        runners = {name: make(directory) for name, make in _RUNNERS.items()}
        found = {name: [_snr(*pair) for pair in zip(expected, run(), strict=True)] for name, run in runners.items()}
        seconds = _in_turns(runners, runs)
        command = [sys.executable, "-m", "benchmarks.transformer"]
        peaks = {name: measured([*command, name, directory]).peak_mb for name in runners}
        for name, mine in seconds.items():
            ratio = statistics.median(one / peer for one, peer in zip(mine, seconds["torch"], strict=True))
            table.add_row(
                name, f"{statistics.median(mine):.3f}", f"{ratio:.3f}", *found[name],
                f"{peaks[name]:.0f}", f"{peaks[name] / peaks['torch']:.3f}",
            )  # fmt: skip
    Console(width=120).print(table)


def _prepared(checkpoint: str | None, directory: Path) -> list[Any]:
    """Write weights, configuration and inputs; return the golden outputs, those of the untouched model."""
    from dataclasses import asdict

    from splitter.bundle import Bundle
    from splitter.weights import transformer as weights

    from .processes import bundle

    made = Bundle.load(bundle(checkpoint, directory))
    segment, golden = made.segment("transformer"), made.goldens()
    config, tensors = weights.load(made.path / segment.artifact.path, weights.record_of(segment.artifact.details))
    save_file(tensors, directory / "weights")
    (directory / "config").write_text(json.dumps(asdict(config)))
    save_file({name: golden[name] for name in segment.inputs}, directory / "inputs")
    return [golden[name] for name in segment.outputs]


def _in_turns(runners: dict[str, Run], runs: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(runs):
        for name, run in runners.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _snr(reference: Any, candidate: Any) -> str:
    from splitter.parity import compare

    found = compare(reference, candidate).snr_db
    return "n/a" if found is None else f"{found:.1f}"


def _torch(directory: Path) -> Run:
    import torch

    module = torch.load(directory / "module", weights_only=False)
    inputs = [torch.from_numpy(array) for array in load_file(directory / "inputs").values()]

    def run() -> list[Any]:
        with torch.no_grad():
            return [tensor.numpy() for tensor in module(*inputs)]

    return run


# The kernels as they lie in the tree: they need neither PyTorch nor splitter, nor do these processes.
def _jax(directory: Path) -> Run:
    import numpy as np

    from kernels import xla

    prepared = xla.prepared(load_file(directory / "weights"))
    transformer, inputs = xla.compiled(_config(directory)), list(load_file(directory / "inputs").values())
    return lambda: [np.asarray(result) for result in transformer(prepared, *inputs)]


def _numpy(directory: Path) -> Run:
    from kernels import reference

    config, tensors = _config(directory), load_file(directory / "weights")
    inputs = list(load_file(directory / "inputs").values())
    return lambda: list(reference.transformer(config, tensors, *inputs))


def _config(directory: Path) -> Any:
    from kernels.spec import Config

    return Config(**json.loads((directory / "config").read_text()))


_RUNNERS: dict[str, Callable[[Path], Run]] = {"torch": _torch, "jax": _jax, "numpy": _numpy}

if __name__ == "__main__":
    _RUNNERS[sys.argv[1]](Path(sys.argv[2]))()
