"""The transformer → its weights for a port: ``transformer.safetensors`` and a record of every byte."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from splitter_kernels import reference
from splitter_kernels.spec import BRANCHES, POSITIONS, Config, SpecError
from splitter_weights import transformer as weights
from splitter_weights.transformer.encoding import decode, encode
from splitter_weights.transformer.form import parameters_of
from torch import fx

from ...boundary import Array, TensorSpec
from ...bundle.directory import Bundle
from ...bundle.files import Files
from ...bundle.manifest import Artifact, SegmentRecord
from ...errors import LoweringError, PlanError, SplitterError
from ...graph.program import Program
from ...parity import compare
from ...partition import Segment, within
from ...plan.schema import CompressionForm, Plan, Tolerances, WeightsForm, rank
from .. import Capabilities, Target
from ..weights import Weight, paths

if TYPE_CHECKING:
    from ...verification.checks import Check

_aten = torch.ops.aten


class KernelsTarget(Target):
    """Reads configuration and tables off the graph, and proves the file with the NumPy kernels."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        artifact=weights.ARTIFACT,
        engines=("jax", "numpy"),
        weights="weights",
        compressions=frozenset({"int8", "pal8", "pal6", "pal4"}),
    )
    question: ClassVar[str] = "the transformer written by hand does what the graph does"

    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        inputs, outputs = _branches(segment.inputs, segment.name), _branches(segment.outputs, segment.name)
        path = directory / f"{segment.name}.safetensors"
        try:
            config, tensors, sources = _read(segment)
            check_matrices((name for name in tensors if name.endswith("weight")), plan.weights)
            _prove(config, tensors, [example[name] for name in inputs], {name: example[name] for name in outputs}, plan)
            record = weights.export(config, tensors, sources, path, form=plan.weights, inputs=inputs, outputs=outputs)
        except SpecError as error:
            raise LoweringError(
                f"segment {segment.name!r} is no cross-domain transformer that the kernels implement",
                received=str(error),
                fix='Give the stage the target "graph" or "coreml" in the plan.',
            ) from error
        return Artifact(target=segment.stage.target, path=path.name, details=record.model_dump(mode="json"))

    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        record = weights.record_of(segment.artifact.details)
        findings = []
        if record.form != plan.weights:
            findings.append(f"is in the form {record.form}, the plan asks for {plan.weights}")
        for names, expected in ((record.inputs, segment.inputs), (record.outputs, segment.outputs)):
            if set(names) != set(expected):
                findings.append(f"reads or gives {names}, the segment {expected}")
        try:
            weights.load(files.home / segment.artifact.path, record, files.read)
        except SplitterError as error:
            findings.append(str(error))
        return findings

    def limit_db(self, tolerances: Tolerances) -> float:
        return tolerances.kernels_snr_db

    def checks(
        self, bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array], captured: Mapping[str, Array]
    ) -> list[Check]:
        from .checks import kernel_checks

        return kernel_checks(bundle, segment, golden, captured)

    def weights(self, bundle: Bundle, segment: SegmentRecord) -> Iterator[Weight]:
        record = weights.record_of(segment.artifact.details)
        program = bundle.program(segment.program)
        width = np.dtype(record.form.matrices.dtype).itemsize
        for name in record.matrices:
            source = record.sources[name]
            values = program.weights[source].detach().numpy()
            yield Matrix(segment.name, source, name, values, 0, (width, 4), "weights", record)

    def stored_bytes(self, bundle: Bundle, segment: SegmentRecord) -> int:
        """Position tables left out."""
        tensors = weights.record_of(segment.artifact.details).tensors.values()
        return sum(tensor.bytes for tensor in tensors if tensor.source != "graph")


@dataclass(frozen=True, eq=False)
class Matrix(Weight):
    """A weight of the transformer's own file.

    Attributes:
        record: Of that file.
    """

    record: weights.TransformerRecord

    def decoded(self, form: CompressionForm) -> Array:
        """Split projections have a table each."""
        asked = WeightsForm(layout=self.record.form.layout, qkv=self.record.form.qkv, compress=form)
        result = np.empty_like(self.values)
        for name, parameter in parameters_of(self.record.config, asked).items():
            if parameter.kernel == self.name:
                stored = encode(name, parameter, self.values[parameter.slice], asked)
                result[parameter.slice] = decode(parameter, stored, asked)
        return result


def check_matrices(matrices: Iterable[str], asked: WeightsForm) -> None:
    """Every exception of a form of weights must be about some matrix.

    Raises:
        PlanError: One is not.
    """
    if unknown := sorted(asked.exceptions.keys() - {path for name in matrices for path in paths(name)}):
        raise PlanError(
            "an exception of the transformer's compression names no matrix of it, nor a module with some",
            received=", ".join(unknown),
            fix="Names are those of kernels.spec.parameters, e.g. layers.0.linear1.weight.",
        )


def _prove(
    config: Config, tensors: Mapping[str, Array], inputs: list[Array], expected: Mapping[str, Array], plan: Plan
) -> None:
    """The NumPy kernels, on the graph's own weights, give what the graph gives. What a form of the weights costs
    is another question: the export reads the file back, and `verify` weighs the loss."""
    results = reference.transformer(config, tensors, *inputs)
    for (name, golden), result in zip(expected.items(), results, strict=True):
        parity = compare(golden, result)
        if not parity.reaches(plan.tolerances.kernels_snr_db):
            raise LoweringError(
                f"the NumPy kernels give another {name!r} than the graph",
                expected=f"at least {plan.tolerances.kernels_snr_db:g} dB",
                received=parity,
                fix="This transformer differs from the kernels' in a way that the shapes of its graph do not show.",
            )


def _branches(specs: tuple[TensorSpec, ...], segment: str) -> tuple[str, str]:
    """Names of the frequency branch's (``b c f t``) and the time branch's (``b c t``) tensor."""
    by_rank = {rank(spec.layout): spec.name for spec in specs if spec.layout}
    if len(specs) != 2 or set(by_rank) != {4, 3}:
        raise LoweringError(
            f"segment {segment!r} takes or gives other tensors than a cross-domain transformer",
            expected="one 'b c f t' and one 'b c t'",
            received=", ".join(f"{spec.name} {spec.layout!r}" for spec in specs),
            fix="Cut exactly at the cross-transformer module, and give the tensors a layout in the plan.",
        )
    return by_rank[4], by_rank[3]


def _read(segment: Segment) -> tuple[Config, dict[str, Array], dict[str, str]]:
    """Configuration, tensors by kernel name, and their keys in the checkpoint."""
    program = segment.program
    (root,) = segment.stage.modules or ("",)
    sources = {key.removeprefix(root + "."): key for key in program.weights if within(key, root)}
    tensors = {name: program.weights[key].detach().numpy() for name, key in sources.items()}
    for branch in BRANCHES:
        tensors[POSITIONS[branch]] = _position_table(program, f"{root}.norm_in{branch}")
        sources[POSITIONS[branch]] = "graph"
    return _config(program, tensors), tensors, sources


def _config(program: Program, tensors: Mapping[str, Array]) -> Config:
    layers = {int(match[1]) for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))}
    heads = _single(program, _aten.scaled_dot_product_attention.default, lambda n: n.args[0].meta["type"].shape[1])
    for gelu in (node for node in program.operators if node.target is _aten.gelu.default):
        if gelu.kwargs.get("approximate", "none") != "none":
            raise SpecError("the graph approximates the feed-forward's GELU; the kernels compute the exact one")
    try:
        return Config(
            width=tensors["norm_in.weight"].shape[0],
            heads=int(heads),
            layers=len(layers),
            hidden=tensors["layers.0.linear1.weight"].shape[0],
            freq_tokens=tensors[POSITIONS[""]].shape[0],
            time_tokens=tensors[POSITIONS["_t"]].shape[0],
            cross_first="layers.0.cross_attn.in_proj_weight" in tensors,
            eps=float(_single(program, _aten.layer_norm.default, lambda n: n.args[4] if len(n.args) > 4 else 1e-5)),
        )
    except KeyError as error:
        raise SpecError(f"the graph has no {error}") from None


def _single(program: Program, op: object, read: Any) -> Any:
    """What all nodes of one operator agree on."""
    found = {read(node) for node in program.operators if node.target is op}
    if len(found) != 1:
        raise SpecError(f"the {op} of the graph differ: {sorted(found)}")
    return found.pop()


def _position_table(program: Program, norm: str) -> Array:
    """The constant added to a branch right after its input norm, ``(tokens, channels)``.

    Taken from the graph, weight included: recomputed phases differ by up to 1e-4.
    """
    for node in program.operators:
        if node.target is _aten.add.Tensor:
            first, second = node.args
            if isinstance(first, fx.Node) and isinstance(second, fx.Node) and first.meta["module"] == norm:
                table = program.constant(second).numpy()
                return np.ascontiguousarray(table.reshape(table.shape[-2:]))
    raise SpecError(f"the graph adds no position table after {norm}")
