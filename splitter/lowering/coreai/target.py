"""A segment → ``.aimodel``, the files of Core AI, Apple's successor to Core ML (macOS and iOS 27 and later).

The converter (`coreai-torch`) and Apple's runtime (`coreai-core`, on Linux too) come with the extra ``coreai``.
"""

from __future__ import annotations

import contextlib
import io
import random
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import fx

from ...boundary import Array, TensorSpec
from ...bundle.files import Files
from ...bundle.manifest import Artifact, SegmentRecord
from ...errors import BundleError, LoweringError
from ...graph.capture import exported
from ...graph.program import Program
from ...graph.shapes import TensorType
from ...partition import Segment
from ...patching import replaced
from ...plan.schema import Plan, Precision
from ...plugins import require_extra
from ...terminal import without_messages
from .. import Capabilities, Target
from . import EXTRA, FUNCTION, KIND, MODULES
from .runtime import Runtime

_TYPES = {"float32": "Float32", "float16": "Float16", "int32": "Int32", "int64": "Int64", "bool": "Bool"}
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
    )

    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        """Convert, describe, save, and read back.

        Raises:
            LoweringError: The extra is missing, the converter refuses the segment, or the file is not what was asked.
        """
        require_extra(EXTRA, MODULES, f"target {segment.stage.target!r}", LoweringError)
        if segment.name in plan.fp32_operations:
            raise LoweringError(
                f"segment {segment.name!r} cannot keep some operations in fp32 as a Core AI file",
                fix="Leave it out of the plan's `fp32_operations`.",
            )
        path = directory / f"{segment.name}.{KIND}"
        program = _halved(segment.program) if plan.precision is Precision.FP16 else segment.program
        _save(program, segment, plan, path)
        if findings := _differences(path, segment.name, segment.inputs, segment.outputs, plan):
            raise LoweringError(f"{path.name} is not what the plan asks for", received="; ".join(findings))
        return Artifact(target=segment.stage.target, path=path.name)

    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        inputs, outputs = (
            tuple(tensors[name] for name in names) for names in (segment.inputs, segment.outputs)
        )  # fmt: skip
        try:
            require_extra(EXTRA, MODULES, "the reader of Core AI files", BundleError)
            path = files.checked(segment.artifact.path)
        except BundleError as error:
            return [str(error)]
        return _differences(path, segment.name, inputs, outputs, plan)


def _save(program: Program, segment: Segment, plan: Plan, path: Path) -> None:
    """Write a program as a file of Core AI.

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
    metadata.model_description = f"Stage {segment.stage.name!r} of a {plan.family} model, cut from its captured graph."
    for key, value in _metadata(segment.name, plan).items():
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
            converter.to_coreai().save_asset(path, metadata)
    except Exception as error:  # the converter raises every kind
        reason = str(error).strip().splitlines() or [""]
        raise LoweringError(
            f"Core AI's converter refuses segment {program.name!r}",
            received=f"{type(error).__name__}: {reason[0]}",
            fix='Give the stage the target "graph" in the plan, or report the operator.',
        ) from error


def _halved(program: Program) -> Program:
    """The program in half precision between inputs and outputs whose types stay."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}

    def cast(node: fx.Node, dtype: torch.dtype) -> fx.Node:
        copy = graph.call_function(torch.ops.aten._to_copy.default, (node,), {"dtype": dtype})
        copy.meta = {"type": None, "module": ""}
        return copy

    def half(argument: Any) -> Any:
        return torch.float16 if argument is torch.float32 else argument

    for node in program.graph.nodes:
        if node.op == "output":
            continue
        copy = mapping[node] = graph.node_copy(node, mapping.__getitem__)
        copy.meta = dict(node.meta)
        kind: TensorType | None = node.meta["type"]
        copy.args, copy.kwargs = tuple(map(half, copy.args)), {key: half(v) for key, v in copy.kwargs.items()}
        if kind is not None and kind.dtype == "float32":
            if node.op == "get_attr":
                copy.meta["type"] = TensorType(kind.shape, "float16")
            elif not any(map(_is_float, node.all_input_nodes)):  # an input; made of nothing, or of integers
                mapping[node] = cast(copy, torch.float16)
    results = [
        cast(mapping[node], torch.float32) if node.meta["type"].dtype == "float32" else mapping[node]
        for node in program.output_nodes
    ]
    graph.output(tuple(results))
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
    return Program(program.name, graph, weights, program.outputs, program.folds)


def _is_float(node: fx.Node) -> bool:
    kind: TensorType | None = node.meta["type"]
    return kind is None or kind.dtype == "float32"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converter prints and warns of."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        with without_messages():
            yield


@contextlib.contextmanager
def _same_names() -> Iterator[None]:
    """Functions inside a program are called the same in every build: the library ends their names at random."""
    from coreai.authoring import func, graph_builder

    choice = random.Random(0).choice
    with replaced(func, "choice", choice), replaced(graph_builder, "choice", choice):
        yield


def _metadata(segment: str, plan: Plan) -> dict[str, str]:
    return {"splitter.segment": segment, "splitter.family": plan.family, "splitter.precision": plan.precision.value}


def _differences(
    path: Path, name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], plan: Plan
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
        asked = [(spec.name, _described(spec)) for spec in specs]
        findings += [f"{kind} {a}, asked {b}" for a, b in zip(tensors, asked, strict=False) if a != b]
        if len(tensors) != len(asked):
            findings.append(f"{len(tensors)} {kind}s, asked {len(asked)}")
    other = "Float32" if plan.precision is Precision.FP16 else "Float16"
    stored = found.stored.get(other, 0)
    if stored > (_WIDE if plan.precision is Precision.FP16 else 0):
        findings.append(f"{stored} stored numbers in {other}, asked {plan.precision.value}")
    if found.metadata != (asked_metadata := _metadata(name, plan)):
        findings.append(f"metadata {found.metadata}, asked {asked_metadata}")
    return findings


def _described(spec: TensorSpec) -> str:
    """A tensor as Apple's library describes it."""
    shape = spec.packaged_shape if spec.fold else spec.shape
    return f"NDArray ({_TYPES[spec.dtype]}, {' × '.join(map(str, shape))})"
