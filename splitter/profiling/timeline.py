"""Where the time of a run goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter

from ..boundary import Array, TensorSpec
from ..bundle.manifest import SegmentRecord
from ..runtime.orchestrator import Hook


@dataclass
class Timeline(Hook):
    """Seconds of the latest run.

    Attributes:
        segments: In each segment's engine, by segment.
        checks: In the check of each tensor, by tensor.
    """

    segments: dict[str, float] = field(default_factory=dict)
    checks: dict[str, float] = field(default_factory=dict)
    _since: float = 0.0

    def before_segment(self, segment: SegmentRecord, inputs: Mapping[str, Array]) -> None:
        self._since = perf_counter()

    def computed(self, segment: SegmentRecord) -> None:
        self.segments[segment.name] = perf_counter() - self._since

    def before_check(self, spec: TensorSpec) -> None:
        self._since = perf_counter()

    def after_check(self, spec: TensorSpec) -> None:
        self.checks[spec.name] = perf_counter() - self._since
