"""Segment → artifact, one module per target.

A target is found by name among the entry points of the group ``splitter.targets``, so that another
package can add one without a change here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from ..boundary import Array, TensorSpec
from ..bundle.files import Files
from ..bundle.manifest import Artifact, SegmentRecord
from ..errors import PlanError
from ..partition import Segment
from ..plan.schema import Plan

GROUP = "splitter.targets"


class Target(Protocol):
    """One way to lower a segment."""

    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        """Write the artifact into a directory.

        Args:
            segment: What to lower; its specs carry the dtypes at the boundaries.
            plan: Precision, deployment target, tolerances.
            example: The segment's golden inputs and outputs, in the graph's own dtypes.
            directory: Where to write.

        Raises:
            LoweringError: The target cannot express the segment, or the saved artifact is not what was asked.
        """
        ...

    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        """Read the saved artifact back and return every difference from what was asked: none is a pass."""
        ...


@cache
def target(name: str) -> Target:
    """The target of a name. Raises `PlanError` if there is none, or more than one."""
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if len(found) != 1:
        known = sorted({entry.name for entry in entry_points(group=GROUP)})
        raise PlanError(
            "a stage's target is the name of exactly one installed target",
            received=f"{len(found)} for {name!r}",
            fix=f"There are: {', '.join(known)}.",
        )
    made: Target = found[0].load()()
    return made
