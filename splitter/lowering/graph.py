"""The target that writes nothing: the captured segment itself is the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ..boundary import Array, TensorSpec
from ..bundle.files import Files
from ..bundle.manifest import Artifact, SegmentRecord
from ..partition import Segment
from ..plan.schema import Plan
from . import Capabilities, Target


class GraphTarget(Target):
    """For stages that stay in torch: ``graph/<segment>.json`` is in every bundle anyway."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        engines=("torch",), divisible=True, proposed_for=frozenset({"rest"})
    )

    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        return Artifact(target=segment.stage.target)

    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        return []
