"""Files from anybody, before a runtime is given them; and their weights, which lie in a file of their own where one
message is too small for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import limits
from ...boundary import Array
from ...bundle.files import Files
from ...errors import BundleError
from ...plugins import require_extra

if TYPE_CHECKING:
    import onnx

EXTRA, MODULES = "onnx", ("onnx", "onnxruntime", "onnxscript")
AGAIN = "Build the bundle again."
OPSET = 20  # the first with GELU; ONNX Runtime 1.17 and later read it


def located(artifact: str, files: Files) -> tuple[str, str]:
    """Names in the bundle of an artifact's model and, where it has one, of the file of its weights.

    An artifact is a file, or a folder ``NAME`` with ``NAME.onnx`` and ``NAME.weights``.
    """
    if artifact in files.records:
        return artifact, ""
    name = artifact.rpartition("/")[2]
    return f"{artifact}/{name}.onnx", f"{artifact}/{name}.weights"


def opened(artifact: str, files: Files) -> onnx.ModelProto:
    """The model of an artifact, without the weights that lie in a file of their own.

    Raises:
        BundleError: One of its files is not what was built, or it has more than `admitted` allows.
    """
    model, weights = located(artifact, files)
    content = files.read(files.home / model)
    beside = {Path(weights).name: files.records[weights].bytes} if weights in files.records else {}
    return admitted(content, model, beside)


def arrays(artifact: str, files: Files, wanted: set[str]) -> dict[str, Array]:
    """Some of its weights by name, without those that it does not hold.

    Raises:
        BundleError: As `opened`.
    """
    import onnx

    model = opened(artifact, files)
    _, weights = located(artifact, files)
    content = memoryview(files.read(files.home / weights) if weights else b"")
    found = {}
    for weight in model.graph.initializer:
        if weight.name in wanted:
            if weight.external_data:
                start, length = _place(weight)
                weight.raw_data = bytes(content[start : start + length])
                weight.ClearField("data_location")
                del weight.external_data[:]
            found[weight.name] = onnx.numpy_helper.to_array(weight)
    return found


def admitted(content: bytes, name: str, beside: Mapping[str, int] | None = None) -> onnx.ModelProto:
    """The model of a file from anybody, before a runtime is given it.

    It has what `export` writes and no more: operators of ONNX itself, no bodies of loops, weights in the file or in
    those beside it, and a shape for each value, which together stay within the memory limit.

    Args:
        content: The file.
        name: What it is called in a message.
        beside: Files in its folder that hold weights, with their bytes.

    Raises:
        BundleError: It is no valid ONNX file, or has more than that.
    """
    require_extra(EXTRA, MODULES, "the reader of ONNX files", BundleError)
    import onnx

    def invalid(error: Exception) -> BundleError:  # protobuf and the checker raise kinds of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return BundleError(f"{name} is no valid ONNX file", received=reason, fix=AGAIN)

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:
        raise invalid(error) from error
    graph = model.graph
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    if (opset := opsets.get("", opsets.get("ai.onnx", 0))) < OPSET:
        raise BundleError(
            f"{name} has an opset that is too old",
            expected=f"{OPSET} or later",
            received=f"{opset}",
            fix="Build the bundle again, or convert the file with onnx.version_converter.",
        )
    domains = {node.domain for node in graph.node} | {opset.domain for opset in model.opset_import}
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    external = [weight for weight in graph.initializer if weight.external_data or weight.data_location]
    tensors = [
        *(weight for weight in external if not _is_within(weight, beside or {})),
        *(attribute.t for attribute in attributes),
    ]
    faults = {
        "operators of other domains": sorted(domains - {"", "ai.onnx"}),
        "functions": [function.name for function in model.functions],
        "bodies of control flow": [part.name for part in attributes if part.HasField("g") or part.graphs],
        "weights in other files": [tensor.name for tensor in tensors if tensor.external_data or tensor.data_location],
        "sparse weights": [weight.values.name for weight in graph.sparse_initializer],
    }
    for fault, which in faults.items():
        if which:
            raise BundleError(f"{name} has {fault}", received=", ".join(which[:5]), fix=AGAIN)
    try:  # both follow what was refused above
        checked = _with_inputs(model, external)
        onnx.checker.check_model(checked, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(checked, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise invalid(error) from error
    _check_memory(inferred, name)
    return model


def _with_inputs(model: onnx.ModelProto, weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    """The model with some weights as inputs, for checkers that would look for their files."""
    import onnx

    if not weights:
        return model
    names = {weight.name for weight in weights}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [weight for weight in copy.graph.initializer if weight.name not in names]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    copy.graph.input.extend(
        onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims) for weight in weights
    )
    return copy


def _place(weight: onnx.TensorProto) -> tuple[int, int]:
    """First byte of an external weight, and how many it has."""
    entries = {entry.key: entry.value for entry in weight.external_data}
    return int(entries.get("offset", 0)), int(entries["length"])


def _is_within(weight: onnx.TensorProto, beside: Mapping[str, int]) -> bool:
    """It lies whole in a file beside the model."""
    import onnx

    places = [entry.value for entry in weight.external_data if entry.key == "location"]
    try:
        start, length = _place(weight)
    except (KeyError, ValueError):
        return False
    bytes_ = math.prod(weight.dims) * onnx.helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize
    ends = len(places) == 1 and places[0] in beside and 0 <= start <= beside[places[0]] - length
    return ends and length == bytes_


def _check_memory(model: onnx.ModelProto, name: str) -> None:
    """Hold what a run has in memory at its fullest, each value until its last reader, against the limit."""
    graph = model.graph
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape, dtype = described(value)
        if 0 in shape or len(shape) != len(value.type.tensor_type.shape.dim):
            raise BundleError(f"{name} has a value without a shape", received=value.name, fix=AGAIN)
        sizes[value.name] = math.prod(shape) * dtype.itemsize
    if missing := [output for node in graph.node for output in node.output if output and output not in sizes]:
        raise BundleError(f"{name} has a value without a shape", received=missing[0], fix=AGAIN)
    last = {read: place for place, node in enumerate(graph.node) for read in node.input}
    kept = {output.name for output in graph.output}
    held = sum(sizes[value.name] for value in graph.input) + model.ByteSize()
    for place, node in enumerate(graph.node):
        held += sum(sizes[output] for output in node.output if output)
        limits.check(held, name, BundleError)
        held -= sum(sizes.get(read, 0) for read in set(node.input) if last[read] == place and read not in kept)


def described(feature: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and element type of an input, an output or a value."""
    import onnx

    tensor = feature.type.tensor_type
    return (
        tuple(axis.dim_value for axis in tensor.shape.dim),
        np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)),
    )
