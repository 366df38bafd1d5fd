"""The transformer by PyTorch, JAX and NumPy on one golden, each in a process of its own; time in turns.

As a script (``python -m benchmarks.transformer RUNNER DIRECTORY``) it is such a process: what the runner needs, one
run, and then one for each line it reads, whose seconds it prints.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
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
    from splitter_weights import checkpoints

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
        commands = {name: [sys.executable, "-m", "benchmarks.transformer", name, str(directory)] for name in runners}
        seconds = _in_turns(commands, runs)
        peaks = {name: measured([*command]).peak_mb for name, command in commands.items()}
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

    from splitter_weights import transformer as weights

    from splitter.bundle.directory import Bundle

    from .processes import bundle

    made = Bundle.load(bundle(checkpoint, directory))
    segment, golden = made.segment("transformer"), made.goldens()
    config, tensors = weights.load(made.path / segment.artifact.path, weights.record_of(segment.artifact.details))
    save_file(tensors, directory / "weights")
    (directory / "config").write_text(json.dumps(asdict(config)))
    save_file({name: golden[name] for name in segment.inputs}, directory / "inputs")
    return [golden[name] for name in segment.outputs]


def _in_turns(commands: dict[str, list[str]], runs: int) -> dict[str, list[float]]:
    """In one process the threads and the heap that one library leaves behind would be in the next one's way."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
            for name, command in commands.items()
        }
        for _ in range(runs + 1):  # the first turn waits until all have had their first run
            for name, process in processes.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("\n")
                seconds[name].append(float(process.stdout.readline()))
    return {name: taken[1:] for name, taken in seconds.items()}


def _serve(run: Run) -> None:
    run()
    for _ in sys.stdin:
        started = time.perf_counter()
        run()
        print(time.perf_counter() - started, flush=True)


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
    from splitter_kernels import xla

    prepared = xla.prepared(load_file(directory / "weights"))
    transformer, inputs = xla.compiled(_config(directory)), list(load_file(directory / "inputs").values())
    return lambda: [np.asarray(result) for result in transformer(prepared, *inputs)]


def _numpy(directory: Path) -> Run:
    from splitter_kernels import reference

    config, tensors = _config(directory), load_file(directory / "weights")
    inputs = list(load_file(directory / "inputs").values())
    return lambda: list(reference.transformer(config, tensors, *inputs))


def _config(directory: Path) -> Any:
    from splitter_kernels.spec import Config

    return Config(**json.loads((directory / "config").read_text()))


_RUNNERS: dict[str, Callable[[Path], Run]] = {"torch": _torch, "jax": _jax, "numpy": _numpy}

if __name__ == "__main__":
    _serve(_RUNNERS[sys.argv[1]](Path(sys.argv[2])))
