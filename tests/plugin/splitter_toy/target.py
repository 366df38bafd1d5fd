"""Three targets: one that does all that a target can, one that declares the least, and Core ML's under another name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from splitter.boundary import Array, TensorSpec
from splitter.bundle.directory import Bundle
from splitter.bundle.files import Files
from splitter.bundle.manifest import Artifact, SegmentRecord
from splitter.lowering import Capabilities, Target
from splitter.lowering.coreml import CoreMLTarget
from splitter.lowering.weights import DecodedWeight, compressible
from splitter.partition import Segment
from splitter.plan.schema import Plan, Precision

from . import artifact


class PlainTarget(Target):
    """Writes the captured segment in fp32."""

    capabilities: ClassVar[Capabilities] = Capabilities(artifact=artifact.KIND, engines=("toy",))
    question: ClassVar[str] = "the toy does what the graph does"

    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        path = directory / f"{segment.name}.toy"
        able = self.capabilities
        asked = compressible(segment.program, plan.compression).values() if able.weights else ()
        forms = {name: plan.compression.form_of(name) if name in asked else "none" for name in segment.program.weights}
        artifact.write(path, segment.program, forms, plan.precision if able.precisions else "fp32")
        compressed = {name: {"source": name, "form": form} for name, form in forms.items() if form != "none"}
        return Artifact(
            target=segment.stage.target, path=path.name, details={"compressed": compressed} if compressed else {}
        )

    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        saved = files.read(files.home / segment.artifact.path / "precision").decode()
        asked = plan.precision if self.capabilities.precisions else "fp32"
        return [] if saved == asked else [f"computes in {saved}, asked {asked}"]


class ToyTarget(PlainTarget):
    """Offers precision, compression, passes, several segments a stage, and a reference."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        artifact=artifact.KIND,
        engines=("toy",),
        passes=True,
        divisible=True,
        reference=True,
        precisions=frozenset(Precision),
        boundary_dtypes=frozenset({Precision.FP32}),
        weights="compression",
        compressions=frozenset({"int8", "pal8", "pal6"}),
    )

    def decoded_weights(self, bundle: Bundle, segment: SegmentRecord) -> Iterator[DecodedWeight]:
        stored, originals = (
            artifact.weights_of(bundle.path / path, bundle.files.read)
            for path in (segment.artifact.path, segment.uncompressed)
        )
        for name, weight in segment.artifact.details["compressed"].items():
            yield DecodedWeight(name, weight["form"], originals[name], stored[name])


class RenamedTarget(CoreMLTarget):
    """Core ML packages: what splitter does for them depends on what they are, not on this name."""
