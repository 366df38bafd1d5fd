"""A segment → ``.aimodel``, the files of Core AI, Apple's successor to Core ML (macOS and iOS 27 and later).

The converter (`coreai-torch`) and Apple's runtime (`coreai-core`, on Linux too) come with the extra ``coreai``.
"""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ...boundary import Array, TensorSpec
from ...bundle.files import Files
from ...bundle.manifest import Artifact, SegmentRecord
from ...errors import BundleError, LoweringError
from ...graph.capture import exported
from ...graph.program import Program
from ...graph.shapes import DTYPES, TensorType
from ...partition import Segment
from ...passes.rewriting import Call, Operator, rewrite_nodes
from ...patching import replaced
from ...plan.schema import Plan, Precision
from ...plugins import require_extra
from ...terminal import without_messages
from .. import Capabilities, Target, segment_files
from ..weights import Compressed, from_details, to_details
from . import EXTRA, FUNCTION, KIND, MODULES, compression
from .runtime import Runtime

_DTYPES = {"float32": "Float32", "int32": "Int32"}  # at the boundary, by the names of Apple's library
# What a file has inside, too. Integers of 8 and 16 bits stay int32, whose lower bits are the same: the runtime's own
# end at their limits (255 + 1 is 255), where PyTorch's begin again.
_CAST = frozenset({"bool", "int64"})
_aten = torch.ops.aten
_PRODUCTS = frozenset({_aten.matmul.default, _aten.mm.default, _aten.bmm.default})
_RESHAPES = frozenset({_aten.view.default, _aten.reshape.default})
_WIDE = 16  # numbers of a file in half precision that may be float32: epsilons and the like


class CoreAITarget(Target):
    """One ``.aimodel`` a segment: names, shapes and element types of the boundary, read back by Apple's own library."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        artifact=KIND,
        engines=("coreai",),
        passes=True,
        needed_passes=("norms-safe-in-half", "means-in-stages"),  # its sums over several axes lose digits
        divisible=True,
        reference=True,
        precisions=frozenset(Precision),
        boundary_dtypes=frozenset({Precision.FP32}),
        integers="int32",  # the converter makes them of int64
        weights="compression",
        compressions=frozenset({"int8"}),
    )

    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        """Convert, describe, save, and read back.

        Raises:
            LoweringError: The extra is missing, the converter refuses the segment, or the file is not what was asked.
        """
        modules = MODULES if plan.compression.is_lossless else (*MODULES, *compression.MODULES)
        require_extra(EXTRA, modules, f"target {segment.stage.target!r}", LoweringError)
        segment_files.check_precision(segment, plan)
        segment_files.check_elements(segment, _DTYPES)
        path = directory / f"{segment.name}.{KIND}"
        program = _packaged(segment, half=plan.precision is Precision.FP16)
        wanted, stored = _save(program, segment, plan, path)
        details = {"compressed": to_details(wanted), "compressed_constants": stored}
        if findings := _differences(path, segment.name, segment.inputs, segment.outputs, plan, details):
            raise LoweringError(f"{path.name} is not what the plan asks for", received="; ".join(findings))
        return Artifact(target=segment.stage.target, path=path.name, details=details)

    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        try:
            require_extra(EXTRA, MODULES, "the reader of Core AI files", BundleError)
            path = files.checked(segment.artifact.path)
        except BundleError as error:
            return [str(error)]
        return _differences(
            path, segment.name, *segment_files.boundary(segment, tensors), plan, segment.artifact.details
        )


def _save(program: Program, segment: Segment, plan: Plan, path: Path) -> tuple[dict[str, Compressed], int]:
    """Write a program as a file of Core AI, and give its compressed weights, and how many there are in the file.

    Raises:
        LoweringError: It has complex numbers, or the converter refuses an operator.
    """
    types = [node.meta["type"] for node in (*program.input_nodes, *program.operators) if node.meta["type"] is not None]
    if any(kind.dtype.startswith("complex") for kind in types):
        raise LoweringError(
            f"segment {program.name!r} cannot be a Core AI file: it computes with complex numbers",
            fix="Leave the stage to the host, or build with --layout whole: it writes Fourier transforms as products.",
        )
    with _quiet():  # it warns of PyTorch 2.13.0+cpu, which it takes for newer than 2.13.0
        from coreai.runtime import AIModelAssetMetadata
        from coreai_torch import TorchConverter, get_decomp_table

    metadata = AIModelAssetMetadata()
    metadata.model_description = segment_files.description(segment, plan)
    for key, value in segment_files.metadata(segment.name, plan).items():
        metadata.set_custom(key, value)
    try:
        with _quiet(), _same_names(), torch.no_grad():
            converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)  # without the sources of this machine
            converter.add_exported_program(
                exported(program).run_decompositions(get_decomp_table()),
                input_names=list(program.inputs),
                output_names=list(program.outputs),
                entrypoint_name=FUNCTION,
            )
            model, wanted, stored = compression.compressed(
                converter.to_coreai(), program, plan.compression, program.name
            )
            model.save_asset(path, metadata)
    except LoweringError:
        raise
    except Exception as error:  # the converter raises every kind
        reason = str(error).strip().splitlines() or [""]
        raise LoweringError(
            f"Core AI's converter refuses segment {program.name!r}",
            received=f"{type(error).__name__}: {reason[0]}",
            fix='Give the stage the target "graph" in the plan, or report the operator.',
        ) from error
    return wanted, stored


def _unmistakable(call: Call, node: Operator) -> fx.Node | None:
    """A product whose right side is reshaped, transposed.

    The converter (0.4.3) takes ``a @ reshape(b @ c)`` for ``reshape(a @ b @ c)`` where the extent that is summed over
    stands at the same place before the reshape: (16, 32, 94) as (32, 1504) gives something else.
    """
    if node.target not in _PRODUCTS:
        return None
    left, right = node.args
    source = right
    while source.target in _RESHAPES:
        source = source.args[0]
    before, after = source.meta["type"].shape[-2:], right.meta["type"].shape[-2:]
    if source is right or len(before) < 2 or before[0] != after[0] or before[1] == after[1]:
        return None
    turned = [call(_aten.transpose.int, side, -1, -2) for side in (right, left)]
    return call(_aten.transpose.int, call(_aten.matmul.default, *turned), -1, -2)


def _packaged(segment: Segment, *, half: bool) -> Program:
    """The segment's program with the inputs and outputs that its file has.

    Args:
        segment: Its specs say which.
        half: Compute in half precision between inputs and outputs whose types stay.

    Raises:
        LoweringError: A weight is beyond half precision.
    """
    program = rewrite_nodes(segment.program, _unmistakable).program
    specs = {spec.name: spec for spec in (*segment.inputs, *segment.outputs)}
    inner = torch.float16 if half else torch.float32
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}

    def call(target: Any, node: fx.Node, *arguments: Any, **options: Any) -> fx.Node:
        made = graph.call_function(target, (node, *arguments), options)
        made.meta = {"type": None, "module": ""}
        return made

    def cast(node: fx.Node, dtype: torch.dtype) -> fx.Node:
        return call(_aten._to_copy.default, node, dtype=dtype)

    def inside(argument: Any) -> Any:
        return inner if argument is torch.float32 else argument

    for node in program.graph.nodes:
        if node.op == "output":
            continue
        copy = mapping[node] = graph.node_copy(node, mapping.__getitem__)
        copy.meta = dict(node.meta)
        kind: TensorType | None = node.meta["type"]
        copy.args, copy.kwargs = tuple(map(inside, copy.args)), {key: inside(v) for key, v in copy.kwargs.items()}
        if node.op == "placeholder":
            spec = specs[str(node.target)]
            copy.meta["type"] = TensorType(spec.packaged_shape, spec.element)
            if spec.dtype in _CAST:
                mapping[node] = cast(mapping[node], DTYPES[spec.dtype])
            if not spec.shape:
                mapping[node] = call(_aten.select.int, mapping[node], 0, 0)
        if half and kind is not None and kind.dtype == "float32":
            if node.op == "get_attr":
                copy.meta["type"] = TensorType(kind.shape, "float16")
            elif not any(map(_is_float, node.all_input_nodes)):  # an input; made of nothing, or of integers
                mapping[node] = cast(mapping[node], inner)
    results = []
    for name, node in zip(program.outputs, program.output_nodes, strict=True):
        spec, result = specs[name], mapping[node]
        if spec.element != spec.dtype or (half and spec.dtype == "float32"):
            result = cast(result, DTYPES[spec.element])
        results.append(result if spec.shape else call(_aten.unsqueeze.default, result, 0))
    graph.output(tuple(results))
    weights = _halved(program) if half else program.weights
    return Program(program.name, graph, weights, program.outputs, program.folds)


def _halved(program: Program) -> dict[str, Tensor]:
    """The program's weights in half precision."""
    weights = {
        key: weight.detach().half() if weight.dtype is torch.float32 else weight
        for key, weight in program.weights.items()
    }
    if large := [key for key, weight in weights.items() if weight.is_floating_point() and not weight.isfinite().all()]:
        raise LoweringError(
            f"segment {program.name!r} has weights beyond half precision",
            expected="at most 65504",
            received=", ".join(large[:5]),
            fix="Build with --precision fp32.",
        )
    return weights


def _is_float(node: fx.Node) -> bool:
    kind: TensorType | None = node.meta["type"]
    return kind is None or kind.dtype == "float32"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converter prints and warns of, from C++ too."""
    with segment_files.quiet(), contextlib.redirect_stderr(io.StringIO()), without_messages():
        yield


@contextlib.contextmanager
def _same_names() -> Iterator[None]:
    """Functions inside a program are called the same in every build: the library ends their names at random."""
    from coreai.authoring import func, graph_builder

    choice = random.Random(0).choice
    with replaced(func, "choice", choice), replaced(graph_builder, "choice", choice):
        yield


def _differences(
    path: Path,
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    plan: Plan,
    details: Mapping[str, Any],
) -> list[str]:
    """Everything in which a saved file is not what was asked for."""
    try:
        found = Runtime().summary(path)
    except BundleError as error:
        return [str(error)]
    if found.functions != [FUNCTION]:
        return [f"{path.name} has the functions {found.functions}, asked [{FUNCTION!r}]"]
    findings = []
    if found.states:
        findings.append(f"states {found.states}, asked none")
    for kind, tensors, specs in (("input", found.inputs, inputs), ("output", found.outputs, outputs)):
        findings += segment_files.differences(kind, tensors, [(spec.name, _described(spec)) for spec in specs])
    other = "Float32" if plan.precision is Precision.FP16 else "Float16"
    stored = found.stored.get(other, 0)
    if stored > (_WIDE if plan.precision is Precision.FP16 else 0):
        findings.append(f"{stored} stored numbers in {other}, asked {plan.precision.value}")
    wanted = from_details(details["compressed"])
    findings += compression.differences(found, wanted, details["compressed_constants"], plan.compression)
    return findings + segment_files.metadata_differences(found.metadata, name, plan)


def _described(spec: TensorSpec) -> str:
    """A tensor as Apple's library describes it."""
    return f"NDArray ({_DTYPES[spec.element]}, {' × '.join(map(str, spec.packaged_shape))})"
