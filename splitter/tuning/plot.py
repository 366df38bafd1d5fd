"""The frontier, drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure

from .. import output

if TYPE_CHECKING:  # what is drawn
    from . import compression
    from .precision import PrecisionChoice, PrecisionPoint

PICTURES = (".svg", ".png", ".pdf")


def check_results(plan: Path | None, plot: Path | None) -> None:
    """Before all that takes minutes. Raises `UsageError` for a file that cannot be written."""
    if plan is not None:
        output.check(plan)
    if plot is not None:
        output.check(plot, *PICTURES)


def draw(choice: PrecisionChoice, path: Path) -> None:
    """Draw the worst excerpt's SNR over the share of operations in float32.

    Args:
        choice: What was measured.
        path: Picture to write: ``.svg``, ``.png`` or ``.pdf``.

    Raises:
        UsageError: It cannot be written.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*_places(choice.frontier), marker="o", label="chosen by measured noise")
    axes.plot(*_places(choice.rules), linestyle="", marker="x", label="operation types kept by hand")
    axes.plot(*_places([choice.chosen]), linestyle="", marker="*", markersize=16, label="what was built")
    for name, *place in zip((point.name for point in choice.rules), *_places(choice.rules), strict=True):
        axes.annotate(name, (place[0], place[1]), xytext=(6, -10), textcoords="offset points")
    axes.axhline(choice.min_snr_db, linestyle=":", color="grey")
    axes.set_xlabel("operations in fp32, %")
    axes.set_ylabel("SNR of the worst excerpt, dB")
    axes.legend()
    _save(figure, path)


def draw_sizes(choice: compression.WeightChoice, path: Path) -> None:
    """Draw what each stem keeps over the size of the weights: SNR against the uncompressed model's, and SDR where the
    true stems are known; of several excerpts the worst.

    Args:
        choice: What was measured.
        path: Picture to write: ``.svg``, ``.png`` or ``.pdf``.

    Raises:
        UsageError: It cannot be written.
    """
    known = any(stem.sdr_db is not None for stem in choice.chosen.stems)
    figure = Figure(figsize=(8, 8 if known else 5), layout="constrained")
    kinds = [("snr_db", "SNR of the stem, dB")] + ([("sdr_db", "SDR of the stem, dB")] if known else [])
    for axes, (kind, label) in zip(figure.subplots(len(kinds), squeeze=False)[:, 0], kinds, strict=True):
        for index, stem in enumerate(dict.fromkeys(score.name for score in choice.chosen.stems)):
            colour = f"C{index}"
            axes.plot(*_sizes(choice.frontier, stem, kind), marker="o", color=colour, label=stem)
            axes.plot(*_sizes(choice.uniform, stem, kind), linestyle="", marker="x", color=colour)
            axes.plot(*_sizes([choice.chosen], stem, kind), linestyle="", marker="*", markersize=16, color=colour)
        axes.set_xlabel("size of the weights, % of fp16")
        axes.set_ylabel(label)
        axes.legend(title="lines: chosen by damage; ×: one form; ★: built")
    _save(figure, path)


def _sizes(points: Sequence[compression.WeightPoint], stem: str, kind: str) -> tuple[list[float], list[float]]:
    """Sizes in per cent of fp16, and the least decibels of a stem that are known and finite."""
    found = []
    for point in points:
        values = [getattr(score, kind) for score in point.stems if score.name == stem]
        finite = [value for value in values if value is not None and math.isfinite(value)]
        if finite:
            found.append((100 * point.share, min(finite)))
    return [size for size, _ in found], [value for _, value in found]


def _save(figure: Figure, path: Path) -> None:
    output.check(path, *PICTURES)
    with (
        output.whole(path) as waiting,
        rc_context({"svg.hashsalt": "splitter"}),
    ):  # the same picture from the same figures
        figure.savefig(waiting, metadata={"Date": None} if path.suffix == ".svg" else None)


def _places(points: Sequence[PrecisionPoint]) -> tuple[list[float], list[float]]:
    return [100 * point.fp32_operations / point.operations for point in points], [point.worst_db for point in points]
