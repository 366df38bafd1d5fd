"""A segment → ``.onnx`` by PyTorch's own exporter, for ONNX Runtime and whatever else reads ONNX.

The exporter (`onnxscript`), the checker (`onnx`) and the engine (`onnxruntime`) come with the extra ``onnx``. A file
holds its weights: one file, under the 2 GB that a protobuf message can have.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from .. import limits
from ..boundary import Array, TensorSpec
from ..bundle.files import Files
from ..bundle.manifest import Artifact, SegmentRecord
from ..errors import BundleError, LoweringError
from ..graph.capture import exported
from ..graph.program import Program
from ..partition import Segment
from ..plan.schema import Plan, Precision
from ..plugins import require_extra
from . import Capabilities, Target, segment_files

if TYPE_CHECKING:
    import onnx

KIND = "onnx"  # the kind of artifact
_OPSET = 20  # the first with GELU; ONNX Runtime 1.17 and later read it
_MOST_BYTES = 2**31 - 1
_MODULES = ("onnx", "onnxruntime", "onnxscript")


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
    )

    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        """Export, describe, save, and read back.

        Raises:
            LoweringError: The extra is missing, the exporter refuses the segment, or the file is not what was asked.
        """
        require_extra(KIND, _MODULES, f"target {segment.stage.target!r}", LoweringError)
        segment_files.check_precision(segment, plan)
        path = directory / f"{segment.name}.onnx"
        model = export(segment.program)
        if plan.precision is Precision.FP16:
            model = _halved(model)
        _describe(model, segment, plan)
        if model.ByteSize() > _MOST_BYTES:
            raise LoweringError(
                f"segment {segment.name!r} is too large for one ONNX file",
                expected=f"at most {_MOST_BYTES} bytes",
                received=f"{model.ByteSize()}",
                fix=f"Cut its stage: --segments {segment.stage.name}=2.",
            )
        content = model.SerializeToString(deterministic=True)
        path.write_bytes(content)
        if findings := _differences(content, segment.name, segment.inputs, segment.outputs, plan):
            raise LoweringError(f"{path.name} is not what the plan asks for", received="; ".join(findings))
        return Artifact(target=segment.stage.target, path=path.name)

    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        try:
            content = files.read(files.home / segment.artifact.path)
        except BundleError as error:
            return [str(error)]
        return _differences(content, segment.name, *segment_files.boundary(segment, tensors), plan)


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
        with _quiet(), torch.no_grad():
            made = torch.onnx.export(
                exported(program),
                dynamo=True,
                verbose=False,
                opset_version=_OPSET,
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

    with _quiet():
        halved: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
        OnnxModel.graph_topological_sort(halved.graph, is_deterministic=True)  # the casts were added at its end
    return halved


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints, warns and logs of itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


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


def admitted(content: bytes, name: str) -> onnx.ModelProto:
    """The model of a file from anybody, before a runtime is given it.

    It has what `export` writes and no more: operators of ONNX itself, no bodies of loops, weights in the file, and a
    shape for each value, which together stay within the memory limit.

    Args:
        content: The file.
        name: What it is called in a message.

    Raises:
        BundleError: It is no valid ONNX file, or has more than that.
    """
    require_extra(KIND, _MODULES, "the reader of ONNX files", BundleError)
    import onnx

    def invalid(error: Exception) -> BundleError:  # protobuf and the checker raise kinds of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return BundleError(f"{name} is no valid ONNX file", received=reason, fix="Build the bundle again.")

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:
        raise invalid(error) from error
    graph = model.graph
    domains = {node.domain for node in graph.node} | {opset.domain for opset in model.opset_import}
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    tensors = [*graph.initializer, *(attribute.t for attribute in attributes)]
    faults = {
        "operators of other domains": sorted(domains - {"", "ai.onnx"}),
        "functions": [function.name for function in model.functions],
        "bodies of control flow": [part.name for part in attributes if part.HasField("g") or part.graphs],
        "weights in other files": [tensor.name for tensor in tensors if tensor.external_data or tensor.data_location],
        "sparse weights": [weight.values.name for weight in graph.sparse_initializer],
    }
    for fault, which in faults.items():
        if which:
            raise BundleError(f"{name} has {fault}", received=", ".join(which[:5]), fix="Build the bundle again.")
    try:  # both follow what was refused above
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise invalid(error) from error
    _check_memory(inferred, name)
    return model


def _check_memory(model: onnx.ModelProto, name: str) -> None:
    """Hold what a run has in memory at its fullest, each value until its last reader, against the limit."""
    graph = model.graph
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape, dtype = _type(value)
        if 0 in shape or len(shape) != len(value.type.tensor_type.shape.dim):
            raise BundleError(f"{name} has a value without a shape", received=value.name, fix="Build the bundle again.")
        sizes[value.name] = math.prod(shape) * dtype.itemsize
    if missing := [output for node in graph.node for output in node.output if output and output not in sizes]:
        raise BundleError(f"{name} has a value without a shape", received=missing[0], fix="Build the bundle again.")
    last = {read: place for place, node in enumerate(graph.node) for read in node.input}
    kept = {output.name for output in graph.output}
    held = sum(sizes[value.name] for value in graph.input) + model.ByteSize()
    for place, node in enumerate(graph.node):
        held += sum(sizes[output] for output in node.output if output)
        limits.check(held, name, BundleError)
        held -= sum(sizes.get(read, 0) for read in set(node.input) if last[read] == place and read not in kept)


def _differences(
    content: bytes, name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], plan: Plan
) -> list[str]:
    """Everything in which a saved file is not what was asked for."""
    import onnx

    try:
        model = admitted(content, f"{name}.onnx")
    except BundleError as error:
        return [str(error)]
    findings = []
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    if opsets != {"": _OPSET}:
        findings.append(f"opsets {opsets}, asked {_OPSET}")
    for kind, features, specs in (("input", model.graph.input, inputs), ("output", model.graph.output, outputs)):
        found = [(feature.name, *_type(feature)) for feature in features]
        asked = [(spec.name, spec.packaged_shape if spec.fold else spec.shape, np.dtype(spec.dtype)) for spec in specs]
        findings += segment_files.differences(kind, found, asked)
    other = onnx.TensorProto.FLOAT if plan.precision is Precision.FP16 else onnx.TensorProto.FLOAT16
    if wrong := [weight.name for weight in model.graph.initializer if weight.data_type == other]:
        findings.append(f"{len(wrong)} weights not in {plan.precision.value}: {', '.join(wrong[:5])}")
    held = {entry.key: entry.value for entry in model.metadata_props}
    return findings + segment_files.metadata_differences(held, name, plan)


def _type(feature: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    import onnx

    tensor = feature.type.tensor_type
    return (
        tuple(axis.dim_value for axis in tensor.shape.dim),
        np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)),
    )
