"""A segment → its weights for a port: one safetensors file, and a record of every byte of it.

What a port computes with them is the captured segment, node by node (`graph/<segment>.json`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from splitter_weights import tensor_file

from ..boundary import Array, TensorSpec
from ..bundle.files import Files
from ..bundle.manifest import Artifact, SegmentRecord
from ..errors import LoweringError, SplitterError
from ..graph.shapes import TensorType
from ..partition import Segment
from ..plan.schema import Plan
from . import Capabilities, Target


class TensorFileTarget(Target):
    """Every weight that the segment reads, by its name in the model, in the model's element types."""

    capabilities: ClassVar[Capabilities] = Capabilities(artifact=tensor_file.ARTIFACT, engines=("jax",), divisible=True)
    question: ClassVar[str] = "the captured segment with the weights that ship does what it does with the model's"

    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        """Write ``<segment>.safetensors`` and read it back.

        Raises:
            LoweringError: The segment has no weights, or one of a type that the file cannot hold.
        """
        weights = dict(sorted(segment.program.weights.items()))
        if not weights:
            raise LoweringError(
                f"segment {segment.name!r} has no weights to write",
                fix='Give the stage the target "graph" or "host" in the plan.',
            )
        for name, weight in weights.items():
            if (dtype := TensorType.of(weight).dtype) not in tensor_file.DTYPES.values():
                raise LoweringError(
                    f"segment {segment.name!r} has a weight {name!r} that cannot be stored for a port",
                    expected=", ".join(tensor_file.DTYPES.values()),
                    received=dtype,
                    fix="Cast the module: module.float().",
                )
        arrays = {name: weight.detach().numpy() for name, weight in weights.items()}
        path = directory / f"{segment.name}.safetensors"
        record = tensor_file.export(arrays, path)
        return Artifact(target=segment.stage.target, path=path.name, details=record.model_dump(mode="json"))

    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        try:
            record = tensor_file.record_of(segment.artifact.details)
            tensor_file.load(files.home / segment.artifact.path, record, files.read)
        except SplitterError as error:
            return [str(error)]
        return []
