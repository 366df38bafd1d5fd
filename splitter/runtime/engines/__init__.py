"""Ways to run one segment of a bundle, one module each.

An engine is found by name among the entry points of the group ``splitter.engines``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ... import plugins
from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...errors import EngineError
from ...lowering import capabilities

if TYPE_CHECKING:
    from ...profiling.records import CoreMLFigures

GROUP = "splitter.engines"
ON = "@"  # between an engine and its device
REFERENCE = "torch"  # runs every captured segment as it is
# For engines that hold the weights a second time: on a model of 42 million parameters that is 0.8 GB in all.
OWN_WEIGHTS_TIME_RATIO = 0.75


class NonFinite(NamedTuple):
    """An operation that made values infinite or NaN out of finite ones.

    Attributes:
        operation: Its type, e.g. ``"square"``.
        name: Of its result.
        values: How many values, and of how many.
        reaches: The segment's outputs that depend on it.
    """

    operation: str
    name: str
    values: tuple[int, int]
    reaches: frozenset[str]


class Held(ABC):
    """A tensor that an engine leaves where it computed it.

    Attributes:
        place: Where.
        shape: Its extents.
        dtype: NumPy's name of its element type.
    """

    place: str
    shape: tuple[int, ...]
    dtype: str

    @abstractmethod
    def is_finite(self) -> bool:
        """True if no element is NaN or infinite."""

    @abstractmethod
    def array(self) -> Array:
        """It, in main memory."""


class Engine(ABC):
    """One segment, ready to run.

    Attributes:
        name: As it is asked for.
        artifacts: Kinds of artifacts that it runs, see `lowering.Capabilities`; None if it runs captured graphs.
        max_time_ratio: `splitter.separation.selection` takes it where its time is below this share of a slower
            engine's; None if it must be asked for by name.
        precision: What it computes in: ``fp32``, ``bf16``; None if the artifact says.
        distributions: Python packages whose versions may change how fast it is.
        place: Where it can leave tensors for the next segment, see `run_in_place`; empty for main memory.
    """

    name: ClassVar[str]
    artifacts: ClassVar[frozenset[str] | None] = None
    max_time_ratio: ClassVar[float | None] = None
    precision: ClassVar[str | None] = "fp32"
    distributions: ClassVar[tuple[str, ...]] = ()
    place: str = ""

    @classmethod
    def unsupported_reason(cls, segment: SegmentRecord) -> str | None:
        """Why this engine cannot run a segment on this machine; None if it can."""
        artifact = capabilities(segment.artifact.target).artifact
        if cls.artifacts is None or artifact in cls.artifacts:
            return None
        return f"it runs {' or '.join(sorted(cls.artifacts))}, the segment is {artifact or 'a captured graph'}"

    @classmethod
    def device_reason(cls, device: str) -> str | None:
        """Why this engine cannot run on a device that was asked for, such as ``cuda``; None if it can."""
        return "it has no choice of devices"

    @classmethod
    def on_device(cls, bundle: Bundle, segment: SegmentRecord, device: str) -> Engine:
        """As the constructor, on a device for which there is no `device_reason`."""
        raise NotImplementedError

    @classmethod
    def is_measured(cls, segment: SegmentRecord) -> bool:
        """Whether it may be taken for a segment that it can run without being asked for, if it is quick enough."""
        return cls.max_time_ratio is not None

    @classmethod
    def runs_programs(cls, segment: SegmentRecord) -> bool:
        """Whether what it runs is `Bundle.program` of a segment, so that it also runs one that was pruned in memory."""
        return False

    @classmethod
    def is_prepared(cls, bundle: Bundle, segment: SegmentRecord) -> bool:
        """Whether what `prepare` makes of a segment is there. Without it the engine cannot load."""
        return True

    @classmethod  # noqa: B027 - most engines need nothing
    def prepare(cls, bundle: Bundle, segment: SegmentRecord) -> None:
        """Make once for this machine what takes too long to be made in passing. ``splitter optimize`` calls it."""

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

    def run_in_place(self, inputs: Mapping[str, Array | Held]) -> Mapping[str, Array | Held]:
        """Compute as `run` does, and leave the outputs where they are. For an engine that has a `place`.

        Args:
            inputs: As for `run`, or held in that place.
        """
        raise NotImplementedError

    def run_watched(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], list[NonFinite]]:
        """Compute as `run` does, and tell what is not finite though all that its operation was given is.

        An engine that cannot look inside tells of nothing.
        """
        return self.run(inputs), []

    def run_modelled(self, inputs: Mapping[str, Array], values: str) -> tuple[dict[str, Array], list[str]] | None:
        """Compute as `run` does, but with the arithmetic that a device was measured to have.

        Args:
            inputs: As for `run`.
            values: Name of the model, e.g. ``"ane"``.

        Returns:
            The outputs, and each operation that departs from what the program says, in order; None from an engine
            that has no such model.
        """
        return None

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

    def run_with_taps(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array] | None:
        """Values of some taps of the segment; None from an engine that cannot look inside.

        Args:
            inputs: As for `run`, in float32.
            wanted: Names of taps.
        """
        return None

    def device_figures(self) -> CoreMLFigures | None:
        """What the device says of the loaded artifact; None from an engine of no device."""
        return None


def engine(name: str) -> type[Engine]:
    """The engine of a name, with or without a device. Raises `EngineError` if there is none, or more than one."""
    return _engine(name.partition(ON)[0])


@cache
def _engine(name: str) -> type[Engine]:
    kind: type[Engine] = plugins.load(GROUP, "engine", name, EngineError)
    return kind


def require_engine(name: str, segment: SegmentRecord) -> type[Engine]:
    """The engine of a name, which can run a segment here.

    Raises:
        EngineError: There is none, or it cannot. Nothing else is tried in its place.
    """
    kind, (_, _, device) = engine(name), name.partition(ON)
    if reason := kind.unsupported_reason(segment) or (kind.device_reason(device) if device else None):
        raise EngineError(
            f"engine {name!r} cannot run segment {segment.name!r}: {reason}",
            fix="Choose another engine for it: --engine SEGMENT=NAME.",
        )
    return kind


def loaded(name: str, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> Engine:
    """The engine of a name, ready to run a segment. Raises as `require_engine`, or if it cannot load."""
    kind, (_, _, device) = require_engine(name, segment), name.partition(ON)
    if device:
        return kind.on_device(bundle, segment, device)
    return kind(bundle, segment, compute_units=compute_units)


def names() -> list[str]:
    return plugins.names(GROUP)


def default_engine(segment: SegmentRecord) -> str:
    """The device's own engine where the segment's artifact is made for this device, PyTorch elsewhere."""
    device = capabilities(segment.artifact.target).device_engine
    return device if device and engine(device).unsupported_reason(segment) is None else REFERENCE


def shipped_engine(segment: SegmentRecord) -> str:
    """What runs the artifact that ships, on any machine; the captured segment where nothing ships."""
    return next(iter(capabilities(segment.artifact.target).engines), REFERENCE)
