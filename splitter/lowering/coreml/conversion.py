"""Converts by Core ML Tools, saves, and reads back what was saved.

Core ML Tools takes an exported graph as it is, with its operators decomposed, or traced; what one way refuses, another
may take. The artifact's details say which it was, where it was not the first.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from ...boundary import TensorSpec
from ...bundle.files import Files
from ...bundle.manifest import Artifact, SegmentRecord
from ...errors import LoweringError, OperationError, PackageError
from ...graph.capture import exported
from ...graph.categories import of_node
from ...graph.program import Program
from ...graph.shapes import DTYPES
from ...mil import load
from ...mil.coreml_tools import ct, keywords_unread, quiet_and_quick
from ...mil.model import Model
from ...mil.program import Ref
from ...mil.stored import stored_weights
from ...partition import Segment
from ...plan.schema import Plan, Precision
from .. import segment_files
from ..weights import Compressed, from_details, summary, to_details
from . import compression, preparation

KEYS = "io.github.splitter"  # reverse-DNS prefix of the metadata keys
# Turns mul + add into a batch_norm with variance 1 and eps 1e-5, a gain of 0.999995: 20 dB in fp32.
_HARMFUL_PASS = "common::fuse_elementwise_to_batchnorm"


def lower(segment: Segment, plan: Plan, directory: Path) -> Artifact:
    """Convert, describe, save, and read back.

    Raises:
        LoweringError: Core ML Tools refuses the segment, or the saved package is not what the plan asks for.
    """
    segment_files.check_elements(segment, _ELEMENTS)
    path = directory / f"{segment.name}.mlpackage"
    model, route = _convert(segment, plan)
    wanted: dict[str, Compressed] = {}
    if not plan.compression.is_lossless:
        model, wanted = _compressed(model, segment, plan)
    _describe(model, segment, plan, summary(weight.form for weight in wanted.values()))
    shutil.rmtree(path, ignore_errors=True)
    model.save(str(path))
    saved = load(path)
    stored = stored_weights(saved.function)
    forms = summary(compression.obtained(stored, wanted))
    findings = _differences(saved, segment.name, segment.inputs, segment.outputs, plan, forms)
    findings += compression.differences(stored, wanted, plan.compression)
    if findings:
        raise LoweringError(f"{path.name} is not what the plan asks for", received="; ".join(findings))
    details: dict[str, Any] = {"compressed": to_details(wanted)} if wanted else {}
    if route != EXPORT:
        details["route"] = route
    return Artifact(target=segment.stage.target, path=path.name, details=details)


def audit(segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
    """Every difference of the saved package from what was asked for."""
    try:
        artifact = segment.artifact
        saved = load(files.home / artifact.path, function_name=artifact.function or None, read=files.read)
        stored = stored_weights(saved.function)
    except (PackageError, OperationError) as error:
        return [str(error)]
    inputs, outputs = segment_files.boundary(segment, tensors)
    wanted = from_details(segment.artifact.details.get("compressed", {}))
    forms = summary(compression.obtained(stored, wanted))
    findings = _differences(saved, segment.name, inputs, outputs, plan, forms)
    return findings + compression.differences(stored, wanted, plan.compression)


def _compressed(
    model: "ct.models.MLModel", segment: Segment, plan: Plan
) -> tuple["ct.models.MLModel", dict[str, Compressed]]:
    try:
        with warnings.catch_warnings(), quiet_and_quick():
            warnings.simplefilter("ignore")  # Core ML Tools' own
            return compression.compressed(model, segment.program, plan.compression, segment.name)
    except LoweringError:
        raise
    except Exception as error:  # Core ML Tools raises every kind
        raise _refused("compress", segment, error) from error


def _convert(segment: Segment, plan: Plan) -> tuple["ct.models.MLModel", str]:
    """The converted segment, and the route that Core ML Tools took.

    Raises:
        LoweringError: It refuses every route; the message is the first one's, for the others see less of the graph.
    """
    inputs = [ct.TensorType(spec.name, spec.packaged_shape, _element(spec)) for spec in segment.inputs]
    outputs = [ct.TensorType(spec.name, dtype=_element(spec)) for spec in segment.outputs]
    program = preparation.prepared(segment.program)
    refusals: list[Exception] = []
    for route in _routes(program):
        try:
            with warnings.catch_warnings(), quiet_and_quick(), keywords_unread() as unread, torch.no_grad():
                warnings.simplefilter("ignore")  # torch.export's and Core ML Tools' own
                # A fresh pipeline each time: convert() changes the one it is given, and a reused one can
                # turn the next fp16 package into fp32.
                pipeline = ct.PassPipeline.DEFAULT
                pipeline.remove_passes({_HARMFUL_PASS})
                model = ct.convert(
                    _ROUTES[route](program),
                    convert_to="mlprogram",
                    inputs=inputs,
                    outputs=outputs,
                    minimum_deployment_target=getattr(ct.target, plan.deployment_target),
                    compute_precision=_precision(plan, segment.name),
                    pass_pipeline=pipeline,
                    skip_model_load=True,
                )
            model._mil_program.validate()
            if dropped := [f"{node.target}({key}={node.kwargs[key]})" for node, key in unread() if _means(node, key)]:
                raise NotImplementedError(f"the converter drops {', '.join(dropped[:3])}")
            return model, route
        except Exception as error:  # Core ML Tools raises every kind
            refusals.append(error)
    raise _refused("convert", segment, refusals[0]) from refusals[0]


# Where and how values lie in memory.
_NO_MATTER = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking", "copy"})


def _means(node: fx.Node, keyword: str) -> bool:
    """Whether an operator computes something else without a keyword."""
    value = node.kwargs[keyword]
    if keyword in _NO_MATTER or value is None:
        return False
    if keyword == "dtype":
        operand = next(iter(node.all_input_nodes), None)
        return value != (torch.float32 if operand is None else operand.meta["val"].dtype)
    (argument,) = (candidate for candidate in node.target._schema.arguments if candidate.name == keyword)  # type: ignore[union-attr]
    return not argument.has_default_value() or argument.default_value != value


def _traced(program: Program) -> torch.jit.ScriptModule:
    examples = tuple(
        torch.zeros(node.meta["type"].shape, dtype=DTYPES[node.meta["type"].dtype]) for node in program.input_nodes
    )
    module = program.module().eval()
    return torch.jit.trace(module, examples, check_trace=False)


EXPORT, DECOMPOSED, TRACE = "export", "decomposed", "trace"
_ROUTES: Mapping[str, Callable[[Program], Any]] = {
    EXPORT: exported,  # keeps names and attention whole: taken wherever it can be
    DECOMPOSED: lambda program: exported(program).run_decompositions(),
    TRACE: _traced,
}


def _routes(program: Program) -> tuple[str, ...]:
    """The ways to try, in order.

    A recurrent layer, which the export route refuses, stays one operation by the trace (an LSTM its own, a GRU a loop);
    decomposed it becomes a dozen for every step.
    """
    recurrent = any(of_node(node) == "recurrent" for node in program.operators)
    return (EXPORT, TRACE, DECOMPOSED) if recurrent else (EXPORT, DECOMPOSED, TRACE)


def _refused(what: str, segment: Segment, error: Exception) -> LoweringError:
    if isinstance(error, LoweringError):
        return error
    return LoweringError(
        f"Core ML Tools cannot {what} segment {segment.name!r}",
        received=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        fix='Give the stage the target "graph" in the plan, or report the operator.',
    )


def _precision(plan: Plan, segment: str) -> Any:
    kept = frozenset(plan.fp32_operations.get(segment, ()))
    if plan.requested_precision(segment) != "mixed":
        return ct.precision.FLOAT16 if plan.precision is Precision.FP16 else ct.precision.FLOAT32
    return ct.transform.FP16ComputePrecision(op_selector=lambda operation: kept.isdisjoint(_names(operation)))


def _names(operation: Any) -> set[str]:
    """Of the first result of the converter's operation, also where only a cast makes an output of it.

    A plan names operations of the fp32 package, where nothing is cast.
    """
    result = operation.outputs[0]
    return {result.name} | {user.outputs[0].name for user in result.child_ops if user.op_type == "cast"}


# What arrays of Core ML hold, by NumPy's name of the element type.
_ELEMENTS = {"float32": "fp32", "float16": "fp16", "int32": "int32"}


def _element(spec: TensorSpec) -> type[np.generic]:
    return np.dtype(spec.element).type


def _describe(model: "ct.models.MLModel", segment: Segment, plan: Plan, forms: str) -> None:
    model.author = "splitter"
    model.license = "Converter output; the weights keep the terms of their checkpoint."
    model.version = version("splitter")
    model.short_description = segment_files.description(segment, plan)
    for spec in segment.inputs:
        model.input_description[spec.name] = _description(spec)
    for spec in segment.outputs:
        model.output_description[spec.name] = _description(spec)
    model.user_defined_metadata.update(_metadata(segment.name, plan, forms))


def _metadata(segment: str, plan: Plan, forms: str) -> dict[str, str]:
    return {
        f"{KEYS}.segment": segment,
        f"{KEYS}.family": plan.family,
        f"{KEYS}.precision": plan.requested_precision(segment),
        f"{KEYS}.boundary_dtype": plan.boundary_dtype.value,
        f"{KEYS}.deployment_target": plan.deployment_target.value,
        f"{KEYS}.compression": forms,
    }


def _description(spec: TensorSpec) -> str:
    layout = f" [{spec.layout}]" if spec.layout else ""
    if spec.fold:
        layout += f", {spec.fold.length} samples in {spec.fold.rows} rows, zeros behind the end"
    return f"{spec.about or spec.name}{layout}, from {spec.producer} to {' and '.join(spec.consumers)}"


def _differences(
    saved: Model,
    segment: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    plan: Plan,
    forms: str,
) -> list[str]:
    """Everything in which a saved package is not what was asked for."""
    facts, findings = saved.spec, []
    expected_version = int(getattr(ct.target, plan.deployment_target).value)
    if facts.specification_version != expected_version:
        findings.append(
            f"specification version {facts.specification_version}, {plan.deployment_target} is {expected_version}"
        )
    for kind, features, specs in (("input", facts.inputs, inputs), ("output", facts.outputs, outputs)):
        got = {feature.name: feature for feature in features}
        if list(got) != [spec.name for spec in specs]:
            findings.append(f"{kind}s {list(got)}, asked {[spec.name for spec in specs]}")
            continue
        for spec in specs:
            feature = got[spec.name]
            asked = _ELEMENTS[spec.element]
            if (feature.shape, feature.dtype) != (spec.packaged_shape, asked):
                findings.append(
                    f"{kind} {spec.name} is {feature.shape} {feature.dtype}, asked {spec.packaged_shape} {asked}"
                )
            if not feature.description:
                findings.append(f"{kind} {spec.name} has no description")
    kept = set(plan.fp32_operations.get(segment, ())) if plan.requested_precision(segment) == "mixed" else set()
    casts = (
        operation
        for operation in saved.operations
        if operation.type == "cast" and isinstance(operation.inputs["x"][0], Ref)
    )
    outputs_of = {
        operation.inputs["x"][0].name: operation.name
        for operation in casts
        if operation.name in saved.function.block.outputs
    }
    for (operation, dtype), results in sorted(facts.float_values.items()):
        names = [outputs_of.get(name, name) for name in results]
        if dtype != plan.precision and (others := [name for name in names if name not in kept]):
            findings.append(
                f"{len(others)} {operation} compute in {dtype}, asked {plan.precision}: {', '.join(others[:5])}"
            )
        if dtype == Precision.FP32:
            kept -= set(names)
    if kept:
        findings.append(f"{', '.join(sorted(kept)[:5])} do not compute in fp32, asked fp32")
    for field in ("author", "license", "version", "short_description"):
        if not getattr(facts, field):
            findings.append(f"no {field} in the metadata")
    for key, value in _metadata(segment, plan, forms).items():
        if facts.user_defined.get(key) != value:
            findings.append(f"metadata {key} is {facts.user_defined.get(key)!r}, asked {value!r}")
    return findings
