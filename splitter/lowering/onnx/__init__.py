"""A segment → ``.onnx`` by PyTorch's own exporter, for ONNX Runtime and whatever else reads ONNX.

The exporter (`onnxscript`), the checker (`onnx`) and the engine (`onnxruntime`) come with the extra ``onnx``. A file
holds its weights; beyond the 2 GB that a protobuf message can have they lie in a second file beside it, in a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ...boundary import Array, TensorSpec
from ...bundle.directory import Bundle
from ...bundle.files import Files
from ...bundle.manifest import Artifact, SegmentRecord
from ...errors import BundleError, LoweringError
from ...graph.capture import exported
from ...graph.program import Program
from ...partition import Segment
from ...plan.schema import Plan, Precision
from ...plugins import require_extra
from .. import Capabilities, Target, segment_files
from ..weights import Compressed, DecodedWeight, from_details, to_details
from . import weights
from .reading import EXTRA, MODULES, OPSET, admitted, arrays, described, opened

if TYPE_CHECKING:
    import onnx

KIND = "onnx"  # the kind of artifact
_FULL = 0.98  # of a message, by weights: the rest is for the graph
_SMALL = 1024  # bytes: shapes and the like stay in the file, where checkers read them


class OnnxTarget(Target):
    """One ``.onnx`` a segment: names, shapes and element types of the boundary, checked by `onnx.checker`."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        artifact=KIND,
        engines=("onnxruntime",),
        passes=True,
        needed_passes=("norms-safe-in-half", "means-in-stages"),  # ONNX Runtime's norms lose digits on long axes
        divisible=True,
        reference=True,
        precisions=frozenset(Precision),
        boundary_dtypes=frozenset({Precision.FP32}),
        weights="compression",
        compressions=frozenset({"int8"}),
    )
    most_bytes: ClassVar[int] = 2**31 - 1  # of a file with its weights in it

    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        """Export, describe, save, and read back.

        Raises:
            LoweringError: The extra is missing, the exporter refuses the segment, or the file is not what was asked.
        """
        require_extra(EXTRA, MODULES, f"target {segment.stage.target!r}", LoweringError)
        segment_files.check_precision(segment, plan)
        model = export(segment.program)
        found = weights.located(model, segment.program, plan.compression, segment.name)
        if plan.precision is Precision.FP16:
            model = _halved(model)
        wanted = weights.compress(model, found)
        _describe(model, segment, plan)
        artifact = Artifact(
            target=segment.stage.target,
            path=_saved(model, segment.name, directory, self.most_bytes),
            details={"compressed": to_details(wanted), "coreml_provider": predicted(model)},
        )
        written = directory / artifact.path
        files = sorted(written.iterdir()) if written.is_dir() else [written]
        beside = {path.name: path.stat().st_size for path in files[1:]}
        try:
            saved = admitted(files[0].read_bytes(), files[0].name, beside)
        except BundleError as error:
            findings = [str(error)]
        else:
            findings = _differences(saved, segment.name, segment.inputs, segment.outputs, plan, wanted)
        if findings:
            raise LoweringError(f"{artifact.path} is not what the plan asks for", received="; ".join(findings))
        return artifact

    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        try:
            model = opened(segment.artifact.path, files)
        except BundleError as error:
            return [str(error)]
        wanted = from_details(segment.artifact.details["compressed"])
        return _differences(model, segment.name, *segment_files.boundary(segment, tensors), plan, wanted)

    def decoded_weights(self, bundle: Bundle, segment: SegmentRecord) -> Iterator[DecodedWeight]:
        wanted = from_details(segment.artifact.details["compressed"])
        stored = weights.decoded(segment.artifact.path, bundle.files, wanted)
        originals = arrays(segment.uncompressed, bundle.files, {weight.constant for weight in wanted.values()})
        for name, weight in wanted.items():
            yield DecodedWeight(weight.source, weight.form, originals[weight.constant], stored[name])


def _saved(model: onnx.ModelProto, name: str, directory: Path, most_bytes: int) -> str:
    """Write a model, its weights beside it if they are too many for one message, and give the path that was made."""
    import onnx

    if sum(len(weight.raw_data) for weight in model.graph.initializer) <= most_bytes * _FULL:
        (directory / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
        return f"{name}.onnx"
    (directory / name).mkdir()
    onnx.external_data_helper.convert_model_to_external_data(model, location=f"{name}.weights", size_threshold=_SMALL)
    onnx.save_model(model, directory / name / f"{name}.onnx")
    return name


def predicted(model: onnx.ModelProto) -> dict[str, Any]:
    """What ONNX Runtime's own checker says that its Core ML provider would take, by operators and ranks alone.

    Nothing of it ran: only a Mac has that provider.
    """
    from onnxruntime.tools.mobile_helpers.usability_checker import check_coreml_partitions

    found = check_coreml_partitions(model, False, "coreml_supported_mlprogram_ops.md")
    return {
        "predicted": True,
        "nodes": found.num_nodes,
        "taken": found.num_supported_nodes,
        "partitions": found.num_partitions,
        "not_taken": sorted(operator.partition(":")[2] for operator in found.unsupported_ops),
    }


def export(program: Program) -> onnx.ModelProto:
    """A program as ONNX, by PyTorch's own exporter, with the program's names for inputs and outputs.

    Raises:
        LoweringError: It has complex numbers at its boundary, or the exporter refuses an operator.
    """
    types = {str(node.target): node.meta["type"] for node in program.input_nodes}
    types |= dict(zip(program.outputs, (node.meta["type"] for node in program.output_nodes), strict=True))
    if unknown := [name for name, kind in types.items() if kind.dtype.startswith("complex")]:
        raise LoweringError(
            f"segment {program.name!r} cannot be an ONNX file: ONNX has no complex numbers",
            received=", ".join(unknown),
            fix="Cut the model before or behind its Fourier transforms.",
        )
    try:
        with segment_files.quiet(), torch.no_grad():
            made = torch.onnx.export(
                exported(program),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(program.inputs),
                output_names=list(program.outputs),
            )
        assert made is not None
        return made.model_proto
    except Exception as error:  # the exporter raises every kind
        raise LoweringError(
            f"PyTorch's ONNX exporter refuses segment {program.name!r}",
            received=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix='Give the stage the target "graph" in the plan, or report the operator.',
        ) from error


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in half precision between float32 inputs and outputs, by ONNX Runtime's own tool."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with segment_files.quiet():
        halved: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
        OnnxModel.graph_topological_sort(halved.graph, is_deterministic=True)  # the casts were added at its end
    return halved


def _describe(model: onnx.ModelProto, segment: Segment, plan: Plan) -> None:
    """Say what the file is, and drop what the exporter says of the machine and its sources."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    graph.name = segment.name
    model.producer_name, model.producer_version = "splitter", version("splitter")
    model.doc_string = segment_files.description(segment, plan)
    for feature, spec in zip((*graph.input, *graph.output), (*segment.inputs, *segment.outputs), strict=True):
        feature.doc_string = spec.about or spec.name
    for key, value in segment_files.metadata(segment.name, plan).items():
        model.metadata_props.add(key=key, value=value)


def _differences(
    model: onnx.ModelProto,
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    plan: Plan,
    wanted: Mapping[str, Compressed],
) -> list[str]:
    """Everything in which a saved file is not what was asked for."""
    import onnx

    findings = []
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    if opsets != {"": OPSET}:
        findings.append(f"opsets {opsets}, asked {OPSET}")
    for kind, features, specs in (("input", model.graph.input, inputs), ("output", model.graph.output, outputs)):
        found = [(feature.name, *described(feature)) for feature in features]
        asked = [(spec.name, spec.packaged_shape if spec.fold else spec.shape, np.dtype(spec.dtype)) for spec in specs]
        findings += segment_files.differences(kind, found, asked)
    other = onnx.TensorProto.FLOAT if plan.precision is Precision.FP16 else onnx.TensorProto.FLOAT16
    if wrong := [weight.name for weight in model.graph.initializer if weight.data_type == other]:
        findings.append(f"{len(wrong)} weights not in {plan.precision.value}: {', '.join(wrong[:5])}")
    findings += weights.differences(model, wanted, plan.compression)
    held = {entry.key: entry.value for entry in model.metadata_props}
    return findings + segment_files.metadata_differences(held, name, plan)
