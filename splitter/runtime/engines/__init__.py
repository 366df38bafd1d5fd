"""Ways to run one segment of a bundle, one module each.

An engine is found by name among the entry points of the group ``splitter.engines``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import ClassVar

from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...errors import EngineError

GROUP = "splitter.engines"
# What such an engine must be worth. It holds the weights once more: OpenVINO throughout takes 0.8 GB more on the
# released model, and with that more than demucs.
OF_ITS_OWN_WEIGHTS = 0.75


class Engine(ABC):
    """One segment, ready to run.

    Attributes:
        name: As it is asked for, e.g. ``"torch"``.
        worth: The share of a slower engine's time below which `splitter.separation.selection` takes this one instead;
            None if it never does so by itself.
    """

    name: ClassVar[str]
    worth: ClassVar[float | None] = None

    @classmethod
    @abstractmethod
    def obstacle(cls, segment: SegmentRecord) -> str | None:
        """Why this engine cannot run a segment on this machine; None if it can."""

    @abstractmethod
    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        """Load what the segment needs.

        Args:
            bundle: Where it lies.
            segment: Which one.
            compute_units: Core ML's choice of hardware; other engines ignore it.
        """

    @abstractmethod
    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every output from every input, by tensor name, in the dtypes of the bundle's specs."""

    def run_in_steps(self, inputs: Mapping[str, Array], done: Callable[[str], None]) -> bool:
        """Compute as `run` does but one operation at a time, and throw the outputs away.

        What `run` takes together (tiles, fused operations) is taken apart here, and slower for it.

        Args:
            inputs: As for `run`.
            done: Called after each operation with its family, see `splitter.graph.categories`.

        Returns:
            False, and nothing computed, from an engine that cannot look inside.
        """
        return False


@cache
def engine(name: str) -> type[Engine]:
    """The engine of a name. Raises `EngineError` if there is none, or more than one."""
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if len(found) != 1:
        raise EngineError(
            "an engine is named as exactly one that is installed",
            received=f"{len(found)} for {name!r}",
            fix=f"There are: {', '.join(names())}.",
        )
    kind: type[Engine] = found[0].load()
    return kind


def able(name: str, segment: SegmentRecord) -> type[Engine]:
    """The engine of a name, which can run a segment here.

    Raises:
        EngineError: There is none, or it cannot. Nothing else is tried in its place.
    """
    kind = engine(name)
    if obstacle := kind.obstacle(segment):
        raise EngineError(
            f"engine {kind.name!r} must be able to run segment {segment.name!r}",
            received=obstacle,
            fix="Choose another engine for it: --engine SEGMENT=NAME.",
        )
    return kind


def loaded(name: str, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> Engine:
    """The engine of a name, ready to run a segment. Raises `EngineError` as `able`, or if it cannot load."""
    return able(name, segment)(bundle, segment, compute_units=compute_units)


def names() -> list[str]:
    return sorted({entry.name for entry in entry_points(group=GROUP)})
