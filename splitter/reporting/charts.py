"""The charts of a report. Rows go down the page, so that a phone shows them like a desktop, only narrower."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..formatting import snr, time
from ..parity import Parity
from ..profiling import EngineProfile, Profile
from ..verification.checks import Check, Status
from . import drawing
from .chain import ChainPoint
from .drawing import ACCENT, BAD, FOURTH, INK, MUTED, RULE, SECOND, SMALL, THIRD
from .listening import PlayedSound

CAUSES = ("conversion", "precision", "compression", "port")  # kinds of checks; the last is what is written by hand
COLOURS = dict(zip(CAUSES, (ACCENT, SECOND, FOURTH, THIRD), strict=True))
_MARKERS = dict(zip(CAUSES, ("o", "s", "^", "D"), strict=True))
_ROW = 19.0  # px
_BEST = -160.0  # dB; what is better is at the left edge
_LONGEST_NAME = 20  # characters
_KINDS = {"boundary": ACCENT, "tap": MUTED, "stem": SECOND}


def waterfall(points: Sequence[ChainPoint], negligible: float) -> tuple[Markup, Markup]:
    """The error after each step, in dB of the signal there: bars accumulated, rings each segment by itself.

    Args:
        negligible: A largest difference that counts as none; bars of such points are pale, and may end at the edge.
    """
    label = "Error at every boundary tensor, tap and stem, relative to the signal; the table below has the figures"
    return _both("waterfall", label, lambda width: _waterfall(points, negligible, width))


def causes(checks: Sequence[Check]) -> tuple[Markup, Markup] | None:
    """The error that each cause adds to each boundary tensor; None if there was nothing to compare."""
    compared = [check for check in checks if check.kind in CAUSES and check.parity is not None]
    if not compared:
        return None
    label = "Error by cause for each tensor, relative to the signal; the table below has the figures"
    return _both("causes", label, lambda width: _causes(compared, width))


def times(profiles: Sequence[tuple[str, Profile]]) -> tuple[Markup, Markup]:
    """Median time of each segment, by engine and machine; lines show the spread."""
    label = "Median time of each segment by engine; the table below has the figures"
    return _both("times", label, lambda width: _times(profiles, width))


def waveform(sound: PlayedSound, name: str) -> Markup:
    """An envelope, to be stretched to any width and height; full scale from edge to edge."""
    low, high = sound.envelope
    with drawing.styled():
        figure = drawing.canvas(low.size, 64)
        plane = drawing.axes(figure)
        plane.axis("off")
        plane.set(xlim=(0, low.size - 1), ylim=(-1, 1))
        thin = np.maximum(high - low, 0.02) / 2  # silence is a line
        middle = (high + low) / 2
        plane.fill_between(np.arange(low.size), middle - thin, middle + thin, color=INK, linewidth=0)
        return drawing.svg(figure, name, stretched=True)


def _both(name: str, label: str, draw: Callable[[float], Figure]) -> tuple[Markup, Markup]:
    with drawing.styled():
        return (
            drawing.svg(draw(drawing.WIDE), f"{name}-wide", label),
            drawing.svg(draw(drawing.NARROW), f"{name}-narrow", label),
        )


# ------------------------------------------------------------------------------------------ rows of errors


@dataclass(frozen=True)
class _Scale:
    """Decibels across a chart; what is exact stands at the left edge, what is beyond at the right."""

    low: float
    high: float

    @classmethod
    def of(cls, parities: Sequence[Parity | None]) -> _Scale:
        found = [
            -parity.snr_db
            for parity in parities
            if parity and parity.snr_db is not None and math.isfinite(parity.snr_db)
        ]
        high = 10.0 * math.ceil((max(found, default=-100.0) + 2) / 10)
        low = max(_BEST, 10.0 * math.floor(min(found, default=_BEST) / 10))
        return cls(min(low, high - 40), high)

    def place(self, parity: Parity) -> float | None:
        """Within the chart; None where decibels say nothing."""
        if not parity.finite:
            return self.high
        return None if parity.snr_db is None else min(max(-parity.snr_db, self.low), self.high)

    def apply(self, plane: Axes) -> None:
        plane.set(xlim=(self.low, self.high))
        plane.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} dB".replace("-", "−"))
        _on_top(plane)


def _waterfall(points: Sequence[ChainPoint], negligible: float, width: float) -> Figure:
    rows: list[ChainPoint | str] = []
    for segment in dict.fromkeys(point.segment for point in points):
        rows += [segment, *(point for point in points if point.segment == segment)]
    parities = (parity for point in points for parity in (point.accumulated, point.local))
    scale = _Scale.of([parity for parity in parities if parity and parity.max_abs > negligible])
    figure, plane = _rows(width, len(rows), figures=66)
    scale.apply(plane)
    for row, point in enumerate(rows):
        if isinstance(point, str):
            _heading(plane, row, point)
            continue
        _name(plane, row, point.name)
        _figure(plane, row, snr(point.accumulated) or "not run")
        if point.accumulated and (place := scale.place(point.accumulated)) is not None:
            counts = not point.accumulated.max_abs <= negligible
            colour = BAD if not point.accumulated.finite else _KINDS[point.kind] if counts else RULE
            plane.barh(row, place - scale.low, left=scale.low, height=0.5, color=colour)
        if point.local and (place := scale.place(point.local)) is not None:
            plane.plot(place, row, "o", markerfacecolor="none", markeredgecolor=INK, markersize=6, clip_on=False)
    return figure


def _causes(checks: Sequence[Check], width: float) -> Figure:
    subjects = list(dict.fromkeys(check.subject for check in checks))
    scale = _Scale.of([check.parity for check in checks])
    figure, plane = _rows(width, len(subjects), figures=14)
    scale.apply(plane)
    for row, subject in enumerate(subjects):
        plane.axhline(row, color=RULE, linewidth=0.6)
        _name(plane, row, subject)
        for check in checks:
            place = scale.place(check.parity) if check.subject == subject and check.parity else None
            if place is not None:
                colour = BAD if check.status is Status.FAIL else COLOURS[check.kind]
                plane.plot(place, row, _MARKERS[check.kind], color=colour, markersize=6, clip_on=False)
    return figure


def _times(profiles: Sequence[tuple[str, Profile]], width: float) -> Figure:
    rows: list[tuple[str, EngineProfile, bool] | str] = []
    for name in dict.fromkeys(segment.name for _, profile in profiles for segment in profile.segments):
        rows.append(name)
        for place, (label, profile) in enumerate(profiles):
            for segment in (segment for segment in profile.segments if segment.name == name):
                rows += [(f"{label} {engine.engine}".strip(), engine, place == 0) for engine in segment.engines]
    figure, plane = _rows(width, len(rows), figures=66)
    for row, row_content in enumerate(rows):
        if isinstance(row_content, str):
            _heading(plane, row, row_content)
            continue
        name, engine, here = row_content
        latency = engine.latency
        _name(plane, row, name)
        _figure(plane, row, time(latency.median))
        plane.barh(row, latency.median, height=0.5, color=ACCENT if here else SECOND)
        plane.plot([min(latency.runs), max(latency.runs)], [row, row], color=INK, linewidth=1)
    plane.set_xlim(left=0)
    plane.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    _on_top(plane)
    return figure


# --------------------------------------------------------------------------------------------------- rows


def _rows(width: float, count: int, *, figures: float) -> tuple[Figure, Axes]:
    """Axes with a row for each thing, room for its name to the left and for a figure to the right."""
    names = 150.0 if width >= drawing.WIDE else 128.0
    figure = drawing.canvas(width, count * _ROW + 28)
    plane = drawing.axes(figure, left=names, right=figures, top=24, bottom=4)
    plane.set(ylim=(count - 0.5, -0.5))
    plane.set_yticks([])
    return figure, plane


def _on_top(plane: Axes) -> None:
    plane.xaxis.set_ticks_position("top")
    plane.spines["bottom"].set_visible(False)
    plane.locator_params(axis="x", nbins=4)
    plane.grid(axis="x")


def _name(plane: Axes, row: int, name: str) -> None:
    short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    plane.annotate(
        short, (0, row), (-8, 0), ("axes fraction", "data"), "offset points",
        ha="right", va="center", family="monospace", size=SMALL,
    )  # fmt: skip


def _figure(plane: Axes, row: int, figure: str) -> None:
    plane.annotate(figure, (1, row), (8, 0), ("axes fraction", "data"), "offset points", va="center", size=SMALL)


def _heading(plane: Axes, row: int, text: str) -> None:
    plane.annotate(
        text, (0, row), (-8, 0), ("axes fraction", "data"), "offset points", ha="right", va="center", weight="bold"
    )
    plane.axhline(row, color=RULE, linewidth=0.6)
