"""The split, drawn: segments in order, and ribbons as wide as the bytes that cross between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from ..boundary import INPUT, OUTPUT, TensorSpec
from ..bundle.directory import Bundle
from ..bundle.manifest import SegmentRecord
from ..formatting import operations, size
from . import drawing
from .drawing import ACCENT, FAINT, MUTED, RULE, SMALL

_MOST_ACROSS = 6  # segments; more go down the page at any width
_WIDEST = 26.0  # px, of a ribbon
_TURN = 26.0  # px, radius of a ribbon's corners
_Point: TypeAlias = tuple[float, float]
_ROUND = [Path.CURVE3, Path.CURVE3]
_BRIDGE = [Path.MOVETO, Path.LINETO, *_ROUND, Path.LINETO, *_ROUND, Path.LINETO]


@dataclass(frozen=True)
class Flow:
    """All that one segment hands to another: places in the row of input, segments and output."""

    producer: int
    consumer: int
    tensors: tuple[TensorSpec, ...]

    @property
    def bytes(self) -> int:
        return sum(spec.bytes for spec in self.tensors)

    @property
    def skips(self) -> bool:
        """It passes over a segment."""
        return self.consumer > self.producer + 1

    @property
    def count(self) -> str:
        return f"{len(self.tensors)} tensor{'s' if len(self.tensors) > 1 else ''}"


def flows(bundle: Bundle) -> list[Flow]:
    """Every pair of producer and consumer, in order."""
    places = {INPUT: 0, OUTPUT: len(bundle.segments) + 1}
    places |= {segment.name: place for place, segment in enumerate(bundle.segments, 1)}
    found: dict[tuple[int, int], list[TensorSpec]] = {}
    for spec in bundle.manifest.tensors:
        for consumer in spec.consumers:
            found.setdefault((places[spec.producer], places[consumer]), []).append(spec)
    return [Flow(*ends, tuple(specs)) for ends, specs in sorted(found.items())]


def draw(bundle: Bundle, engines: Mapping[str, str]) -> tuple[Markup, Markup]:
    """For a desktop and for a phone."""
    every = flows(bundle)
    names = (INPUT, *(segment.name for segment in bundle.segments), OUTPUT)
    told = (f"{names[flow.producer]} to {names[flow.consumer]}, {flow.count}, {size(flow.bytes)}" for flow in every)
    label = f"The split: {'; '.join(told)}"
    across = len(bundle.segments) <= _MOST_ACROSS
    with drawing.styled():
        return (
            drawing.svg(_Drawing(bundle, engines, every, across=across).figure, "split-wide", label),
            drawing.svg(_Drawing(bundle, engines, every, across=False).figure, "split-narrow", label),
        )


class _Drawing:
    """Segments along one axis, and across it the ribbons that pass over some of them, the longest outermost.

    Places are ``(along, across)`` in px, measured from the input and from the segments' far side.
    """

    figure: Figure

    def __init__(self, bundle: Bundle, engines: Mapping[str, str], every: Sequence[Flow], *, across: bool) -> None:
        self._across = across
        self._most = max(flow.bytes for flow in every)
        count = len(bundle.segments)
        over = sorted((flow for flow in every if flow.skips), key=lambda flow: flow.consumer - flow.producer)
        gap = 64.0 if across else 40.0
        length = (drawing.WIDE - gap * (count + 1)) / count if across else 58.0
        self._extent = 66.0 if across else 190.0
        starts = [gap + place * (gap + length) for place in range(count)]
        end = count * (gap + length) + gap
        self._spans = [(0.0, 0.0), *((start, start + length) for start in starts), (end, end)]
        levels = [self._extent + 34 + 36 * rank for rank in range(len(over))]
        reach = (levels[-1] if levels else self._extent) + 24
        self._size = (end, reach) if across else (max(reach, drawing.NARROW), end)
        self.figure = drawing.canvas(*self._size)
        self._plane: Axes = drawing.axes(self.figure)
        self._plane.set(xlim=(-1, self._size[0] + 1), ylim=(-1, self._size[1] + 1))  # lines at the edges have a width
        self._plane.axis("off")
        for flow in every:
            if not flow.skips:
                self._hand_over(flow)
        for flow, level in zip(over, levels, strict=True):
            self._pass_over(flow, level, over)
        for segment, start in zip(bundle.segments, starts, strict=True):
            self._segment(segment, engines[segment.name], start, length)

    def _at(self, along: float, across: float) -> _Point:
        return (along, across) if self._across else (across, self._size[1] - along)

    def _segment(self, segment: SegmentRecord, engine: str, start: float, length: float) -> None:
        corner = self._at(start, 0) if self._across else self._at(start + length, 0)
        sides = (length, self._extent) if self._across else (self._extent, length)
        self._plane.add_patch(Rectangle(corner, *sides, facecolor=FAINT, edgecolor=RULE, linewidth=1))
        left, top = corner[0] + 10, corner[1] + sides[1]
        weights = f"{operations(segment.parameters)} weights" if segment.parameters else "no weights"
        first = 19 if self._across else 17
        self._plane.text(left, top - first, segment.name, weight="bold")
        told = (f"{segment.artifact.target}, by {engine}", weights)
        for line, text in enumerate(told, 1):
            self._plane.text(left, top - first - 17 * line, text, color=MUTED, size=SMALL)

    def _hand_over(self, flow: Flow) -> None:
        """A straight ribbon, labelled in the gap."""
        start, stop = self._spans[flow.producer][1], self._spans[flow.consumer][0]
        middle = self._extent / 2 if self._across else 32.0
        self._ribbon([(start, middle), (stop, middle)], flow)
        aside = self._width(flow) / 2 + 5
        if self._across:
            x = (start + stop) / 2
            self._plane.text(x, middle + aside, size(flow.bytes), ha="center", va="bottom", size=SMALL)
            self._plane.text(x, middle - aside, flow.count, ha="center", va="top", size=SMALL, color=MUTED)
        else:
            x, y = self._at((start + stop) / 2, middle + aside + 3)
            self._plane.text(x, y, f"{size(flow.bytes)}, {flow.count}", va="center", size=SMALL)

    def _pass_over(self, flow: Flow, level: float, over: Sequence[Flow]) -> None:
        """A bridge from the end of one box to the beginning of another; longer ones enclose shorter ones."""
        start = self._end(
            flow, [other for other in over if other.producer == flow.producer], self._spans[flow.producer][1]
        )
        stop = 2 * self._spans[flow.consumer][0] - self._end(
            flow, [other for other in over if other.consumer == flow.consumer], self._spans[flow.consumer][0]
        )
        turn = min(_TURN, (stop - start) / 2)
        base = self._extent
        corners = [
            (start, base), (start, level - turn), (start, level), (start + turn, level),
            (stop - turn, level), (stop, level), (stop, level - turn), (stop, base),
        ]  # fmt: skip
        self._ribbon(corners, flow)
        x, y = self._at((start + stop) / 2, level + self._width(flow) / 2 + 5)
        label = f"{size(flow.bytes)}, {flow.count}"
        if self._across:
            self._plane.text(x, y, label, ha="center", va="bottom", size=SMALL)
        else:
            self._plane.text(x, y, label, ha="left", va="center", size=SMALL, rotation=-90)

    def _end(self, flow: Flow, beside: Sequence[Flow], edge: float) -> float:
        """Where along a box a ribbon leaves it: before those that are shorter."""
        shorter = [other for other in beside if other.consumer - other.producer < flow.consumer - flow.producer]
        return edge - 6 - self._width(flow) / 2 - sum(self._width(other) + 5 for other in shorter)

    def _ribbon(self, points: Sequence[_Point], flow: Flow) -> None:
        """A line of two points, or a bridge of eight whose second pairs are corners to round."""
        path = Path([self._at(*point) for point in points], None if len(points) == 2 else _BRIDGE)
        self._plane.add_patch(
            PathPatch(
                path, facecolor="none", edgecolor=ACCENT, alpha=0.45, linewidth=self._width(flow), capstyle="butt"
            )
        )

    def _width(self, flow: Flow) -> float:
        return max(1.0, _WIDEST * flow.bytes / self._most)
