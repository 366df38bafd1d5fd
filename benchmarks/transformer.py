"""The transformer by PyTorch, JAX and NumPy on one golden: time and distance in turns, memory each in its own process.

As a script (``python -m benchmarks.transformer RUNNER DIRECTORY``) it is such a process: one run and nothing else.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from splitter import parity
from splitter.boundary import Array
from splitter.bundle import Bundle
from splitter.weights import transformer as weights

from .processes import bundle, measured

Run = Callable[[], list[Array]]


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print a row for each runner; the peer is the model's own module in eval mode, as PyTorch runs it."""
    import torch

    from splitter.weights import checkpoints

    table = Table(title=f"transformer of {checkpoint or 'demo'}, {runs} interleaved runs", title_justify="left")
    for column in ("", "s", "ratio (median of pairs)", "dB, frequency", "dB, time", "peak MB of a process", "ratio"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        bundle(checkpoint, directory)
        torch.save(
            checkpoints.load(checkpoint or "demo").members[0].model.eval().crosstransformer, directory / "module"
        )
        runners = {name: make(directory) for name, make in _RUNNERS.items()}
        expected = runners["torch"]()
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


def _in_turns(runners: dict[str, Run], runs: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(runs):
        for name, run in runners.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _snr(reference: Array, candidate: Array) -> str:
    found = parity.compare(reference, candidate).snr_db
    return "n/a" if found is None else f"{found:.1f}"


def _torch(directory: Path) -> Run:
    import torch

    module = torch.load(directory / "module", weights_only=False)
    inputs = [torch.from_numpy(array).clone() for array in _inputs(directory)]

    def run() -> list[Array]:
        with torch.no_grad():
            return [tensor.numpy() for tensor in module(*inputs)]

    return run


def _jax(directory: Path) -> Run:
    import jax

    from splitter.kernels import xla

    config, tensors = _weights(directory)
    prepared, transformer, inputs = jax.device_put(tensors), xla.compiled(config), _inputs(directory)
    return lambda: [np.asarray(result) for result in transformer(prepared, *inputs)]


def _numpy(directory: Path) -> Run:
    from splitter.kernels import reference

    (config, tensors), inputs = _weights(directory), _inputs(directory)
    return lambda: list(reference.transformer(config, tensors, *inputs))


_RUNNERS: dict[str, Callable[[Path], Run]] = {"torch": _torch, "jax": _jax, "numpy": _numpy}


def _weights(directory: Path) -> tuple[weights.Config, dict[str, Array]]:
    made = Bundle.load(directory / "bundle")
    artifact = made.segment("transformer").artifact
    return weights.load(made.path / artifact.path, weights.TransformerRecord.model_validate(artifact.details))


def _inputs(directory: Path) -> list[Array]:
    made = Bundle.load(directory / "bundle")
    golden = made.goldens()
    return [golden[name].copy() for name in made.segment("transformer").inputs]


if __name__ == "__main__":
    _RUNNERS[sys.argv[1]](Path(sys.argv[2]))()
