"""A segment → ``.mlpackage`` by Core ML Tools, which is imported only to lower a segment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...boundary import Array, TensorSpec
from ...bundle.directory import Bundle
from ...bundle.files import Files
from ...bundle.manifest import Artifact, SegmentRecord
from ...partition import Segment
from ...plan.schema import COMPRESSIONS, DeploymentTarget, Plan, Precision, Tolerances
from .. import ML_PACKAGE, Capabilities, Target
from ..weights import DecodedWeight

if TYPE_CHECKING:
    from ...mil.program import Function


class CoreMLTarget(Target):
    capabilities: ClassVar[Capabilities] = Capabilities(
        artifact=ML_PACKAGE,
        engines=("mil",),
        device_engine="coreml",
        passes=True,
        divisible=True,
        reference=True,
        precisions=frozenset(Precision),
        boundary_dtypes=frozenset(Precision),
        integers="int32",
        proposed_for=frozenset({"network"}),
        deployment_targets=frozenset(DeploymentTarget),
        functions_since=DeploymentTarget.IOS18,
        weights="compression",
        compressions=frozenset(COMPRESSIONS),
    )

    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        """Convert, describe, save, and read back."""
        from . import conversion

        return conversion.lower(segment, plan, directory)

    def merge(self, artifacts: Mapping[str, Path]) -> None:
        from . import functions

        functions.merge(artifacts)

    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        from . import conversion

        return conversion.audit(segment, tensors, plan, files)

    def device_limit_db(self, tolerances: Tolerances, compute_units: str) -> float:
        return tolerances.coreml_snr_db[compute_units]  # type: ignore[index]

    def decoded_weights(self, bundle: Bundle, segment: SegmentRecord) -> Iterator[DecodedWeight]:
        from ... import mil
        from ...mil.stored import decoded

        compressed = segment.artifact.details["compressed"]
        constants = {weight["constant"] for weight in compressed.values()}
        stored = decoded(_shipped(bundle, segment), compressed)
        originals = decoded(mil.load(bundle.path / segment.uncompressed, read=bundle.files.read).function, constants)
        for name, weight in compressed.items():
            yield DecodedWeight(weight["source"], weight["form"], originals[weight["constant"]], stored[name])

    def stored_bytes(self, bundle: Bundle, segment: SegmentRecord) -> int:
        from ...mil.stored import stored_weights

        return sum(weight.bytes for weight in stored_weights(_shipped(bundle, segment)).values())


def _shipped(bundle: Bundle, segment: SegmentRecord) -> Function:
    from ... import mil

    artifact = segment.artifact
    return mil.load(
        bundle.path / artifact.path, function_name=artifact.function or None, read=bundle.files.read
    ).function
