"""The frontier, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from ..errors import UsageError
from .precision import Choice, Point


def draw(choice: Choice, path: Path) -> None:
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
    try:
        with rc_context({"svg.hashsalt": "splitter"}):  # the same picture from the same figures
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} can be drawn to", received=str(error), fix="Take a name that ends in .svg or .png."
        ) from error


def _places(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [100 * one.fp32_operations / one.operations for one in points], [one.worst_db for one in points]
