"""Fourier transforms as products against PyTorch's own: processor time in turns, decibels to float64, bytes of tables.

Both run in one thread of one process. PyTorch's results lie frame by frame; models read them bin by bin, as the
products give them, so its time is told with and without the copy. To keep the pages of freed memory, which the system
otherwise takes and gives back for each tensor::

    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 python -m benchmarks fourier --runs 40
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from splitter import passes
from splitter.graph.capture import capture
from splitter.graph.program import Program
from splitter.parity import compare

_SAMPLES = 343_980  # of the released models' segment
_TRANSFORMS = ((2048, 2, 8), (4096, 2, 8))  # samples, channels in, channels out


class _Forward(nn.Module):
    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.register_buffer("window", torch.hann_window(samples))

    def forward(self, x: Tensor) -> Tensor:
        spectra = torch.stft(
            x, self.samples, self.samples // 4, window=self.window, normalized=True, center=True, return_complex=True
        )
        return torch.view_as_real(spectra)


class _Inverse(_Forward):
    def forward(self, x: Tensor) -> Tensor:
        return torch.istft(
            torch.view_as_complex(x),
            self.samples,
            self.samples // 4,
            window=self.window,
            normalized=True,
            length=_SAMPLES,
        )


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print a row for each transform; the peer is `torch.stft` and `torch.istft`."""
    table = Table(title=f"Fourier transforms, one thread, {runs} turns", title_justify="left")
    for column in ("", "torch, ms", "products, ms", "ratio", "with copy", "torch, dB", "products, dB", "tables, kB"):
        table.add_column(column, justify="right")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for samples, inputs, outputs in _TRANSFORMS:
        sound = torch.randn(inputs, _SAMPLES, generator=torch.Generator().manual_seed(0))
        table.add_row(f"stft {samples}", *_measured(_Forward(samples).eval(), sound, runs))
        sound = torch.randn(outputs, _SAMPLES, generator=torch.Generator().manual_seed(1))
        spectra = _Forward(samples)(sound).contiguous()
        table.add_row(f"istft {samples}", *_measured(_Inverse(samples).eval(), spectra, runs))
    torch.set_num_threads(threads)
    Console(width=120).print(table)


def _measured(module: nn.Module, x: Tensor, runs: int) -> list[str]:
    program = capture(module, {"x": x}, ("y",))
    products = passes.apply("fourier-as-products", program, {"x": x}).program
    exact = module.double()(x.double()).numpy()
    sides = {"torch": program, "products": products}
    runners: dict[str, Callable[[], object]] = {
        "torch": lambda: program.run({"x": x}),
        "products": lambda: products.run({"x": x}),
        "copied": lambda: _contiguous(program, x),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(runs + 1):  # the first one warms up
        for name, run in runners.items():
            taken = _seconds(run)
            if turn:
                seconds[name].append(taken)
    ratios = [
        statistics.median(mine / peer for mine, peer in zip(seconds["products"], seconds[name], strict=True))
        for name in ("torch", "copied")
    ]
    tables = sum(4 * weight.numel() for name, weight in products.weights.items() if name not in program.weights)
    return [
        *(f"{1e3 * statistics.median(seconds[name]):.1f}" for name in sides),
        *(f"{ratio:.2f}" for ratio in ratios),
        *(f"{compare(exact, side.run({'x': x})['y'].double().numpy()).snr_db:.1f}" for side in sides.values()),
        f"{tables / 1e3:.0f}",
    ]


def _contiguous(program: Program, x: Tensor) -> Tensor:
    return program.run({"x": x})["y"].contiguous()


def _seconds(run: Callable[[], object]) -> float:
    """Of this process, on all processors: others that run beside it count for nothing."""
    started = time.process_time()
    run()
    return time.process_time() - started
