"""Fourier transforms as products against PyTorch's own: seconds in turns, decibels to float64, bytes of tables."""

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
    """Print a row for each transform; the peer is `torch.stft` and `torch.istft` in the same threads."""
    table = Table(title=f"Fourier transforms, {torch.get_num_threads()} threads, {runs} turns", title_justify="left")
    for column in ("", "torch, s", "products, s", "ratio (median of pairs)", "torch, dB", "products, dB", "tables, kB"):
        table.add_column(column, justify="right")
    for samples, inputs, outputs in _TRANSFORMS:
        sound = torch.randn(inputs, _SAMPLES, generator=torch.Generator().manual_seed(0))
        table.add_row(f"stft {samples}", *_measured(_Forward(samples).eval(), sound, runs))
        spectra = _Forward(samples)(torch.randn(outputs, _SAMPLES, generator=torch.Generator().manual_seed(1)))
        table.add_row(f"istft {samples}", *_measured(_Inverse(samples).eval(), spectra, runs))
    Console(width=120).print(table)


def _measured(module: nn.Module, x: Tensor, runs: int) -> list[str]:
    program = capture(module, {"x": x}, ("y",))
    products = passes.apply("fourier-as-products", program, {"x": x}).program
    exact = module.double()(x.double()).numpy()
    sides = {"torch": program, "products": products}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(runs + 1):  # the first one warms up
        for name, side in sides.items():
            taken = _seconds(lambda side=side: side.run({"x": x}))  # type: ignore[misc]
            if turn:
                seconds[name].append(taken)
    ratio = statistics.median(mine / peer for mine, peer in zip(seconds["products"], seconds["torch"], strict=True))
    tables = sum(4 * weight.numel() for name, weight in products.weights.items() if name not in program.weights)
    return [
        *(f"{statistics.median(taken):.3f}" for taken in seconds.values()),
        f"{ratio:.2f}",
        *(f"{compare(exact, side.run({'x': x})['y'].double().numpy()).snr_db:.1f}" for side in sides.values()),
        f"{tables / 1e3:.0f}",
    ]


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
