"""The target that writes nothing: the captured segment itself is the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..boundary import Array, TensorSpec
from ..bundle.files import Files
from ..bundle.manifest import Artifact, SegmentRecord
from ..partition import Segment
from ..plan.schema import Plan


class GraphTarget:
    """For stages that stay in torch: ``graph/<segment>.json`` is in every bundle anyway."""

    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        return Artifact(target="graph")

    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        return []
