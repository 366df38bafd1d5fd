"""Weights of an ONNX file as int8, by ONNX Runtime's own quantisation tools, and read back from the saved file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...boundary import Array
from ...bundle.files import Files
from ...errors import BundleError, LoweringError
from ...graph.program import Program
from ...plan.schema import Compression, CompressionForm
from ..weights import Compressed, channels, compressible, is_same
from .reading import AGAIN, arrays, opened

if TYPE_CHECKING:
    import onnx

_QUANTIZED, _SCALE = "_quantized", "_scale"
_RANGE = np.int8(-127), np.int8(127)


class Located(NamedTuple):
    """A weight of the model in a file before compression.

    Attributes:
        source: Its name in the model.
        form: What the plan asks for.
        axis: Of its output channels, in the file.
    """

    source: str
    form: CompressionForm
    axis: int


def located(model: onnx.ModelProto, program: Program, asked: Compression, segment: str) -> dict[str, Located]:
    """The weights that the plan compresses, by what the file calls them: the exporter transposes some.

    Args:
        model: In fp32.
        program: What it was made of.
        asked: What the plan says.
        segment: Whose it is, for messages.

    Raises:
        LoweringError: The file has a weight in another form, or not at all.
    """
    import onnx

    wanted = {
        source: form for source in compressible(program, asked).values() if (form := asked.form_of(source)) != "none"
    }
    if not wanted:
        return {}
    held = {
        weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer if len(weight.dims) > 1
    }
    found: dict[str, Located] = {}
    for source, form in wanted.items():
        values, axis = program.weights[source].detach().numpy(), channels(program, source)
        turned = values.swapaxes(-1, -2)
        other = {values.ndim - 1: values.ndim - 2, values.ndim - 2: values.ndim - 1}.get(axis, axis)
        places = {
            name: at
            for name, array in held.items()
            for at, same in ((axis, values), (other, turned))
            if name not in found and is_same(array, same)
        }
        if not places:
            raise LoweringError(
                f"a weight of segment {segment!r} cannot be compressed: its ONNX file has it in another form",
                received=source,
                fix='Give it the form "none" in the plan, and report this.',
            )
        found |= {name: Located(source, form, at) for name, at in places.items()}
    return found


def compress(model: onnx.ModelProto, found: Mapping[str, Located]) -> dict[str, Compressed]:
    """Store weights as integers with a scale per output channel, ``q = round(w / s)``, ``s = max |w| / 127``, behind a
    node that gives them back to what reads them; and what each is, by its name in the file. The model is changed.
    """
    import onnx
    from onnxruntime.quantization import quant_utils

    wanted = {}
    kept, nodes = [], []
    for weight in model.graph.initializer:
        if (place := found.get(weight.name)) is None:
            kept.append(weight)
            continue
        values = onnx.numpy_helper.to_array(weight)
        peaks = np.abs(values).max(tuple(axis for axis in range(values.ndim) if axis != place.axis))
        ranges = (quant_utils.compute_scale_zp(-peak, peak, *_RANGE, symmetric=True) for peak in peaks)
        zeros, scales = zip(*ranges, strict=True)
        scale = np.asarray(scales, values.dtype)
        name = weight.name + _QUANTIZED
        kept.append(
            quant_utils.quantize_onnx_initializer(
                weight, onnx.TensorProto.INT8, np.asarray(zeros, np.int8), scale, place.axis, name
            )
        )
        kept.append(onnx.numpy_helper.from_array(scale, weight.name + _SCALE))
        inputs = [name, weight.name + _SCALE]
        nodes.append(onnx.helper.make_node("DequantizeLinear", inputs, [weight.name], axis=place.axis))
        wanted[name] = Compressed(place.source, place.form, weight.name)
    if wanted:
        copies = [onnx.TensorProto.FromString(weight.SerializeToString()) for weight in kept]
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies)
        nodes += model.graph.node
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return wanted


def decoded(artifact: str, files: Files, wanted: Mapping[str, Compressed]) -> dict[str, Array]:
    """Compressed weights of a saved file as it gives them to what reads them. Raises `BundleError` as `opened`,
    or if it lacks one.
    """
    found = arrays(artifact, files, {held for name, of in wanted.items() for held in (name, of.constant + _SCALE)})
    axes = {
        node.input[0]: node.attribute[0].i
        for node in opened(artifact, files).graph.node
        if node.op_type == "DequantizeLinear"
    }
    if missing := sorted(name for name in wanted if name not in axes or name not in found):
        raise BundleError(f"{artifact} lacks compressed weights", received=", ".join(missing[:5]), fix=AGAIN)
    values = {}
    for name, weight in wanted.items():
        others = tuple(axis for axis in range(found[name].ndim) if axis != axes[name])
        values[name] = found[name] * np.expand_dims(found[weight.constant + _SCALE], others)
    return values


def differences(model: onnx.ModelProto, wanted: Mapping[str, Compressed], asked: Compression) -> list[str]:
    """Everything in which the weights of a saved file are not stored as asked."""
    import onnx

    held = {weight.name for weight in model.graph.initializer if weight.data_type == onnx.TensorProto.INT8}
    given = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    findings = []
    for name, weight in wanted.items():
        if (form := asked.form_of(weight.source)) != weight.form:
            findings.append(f"weight {weight.source} was stored as {weight.form}, the plan asks for {form}")
        if name not in held or given.get(weight.constant) != name:
            findings.append(f"weight {weight.source} is not stored as {weight.form}")
    if len(held) != len(wanted):
        findings.append(f"{len(held)} compressed weights, asked {len(wanted)}")
    return findings
