"""Analysis and synthesis → a host specification, a JSON file of steps that any language can follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from torch import fx

from ..boundary import Array, TensorSpec
from ..bundle.files import Files
from ..bundle.manifest import Artifact, SegmentRecord
from ..errors import LoweringError
from ..parity import compare
from ..partition import Segment
from ..plan.schema import Plan, Tolerances
from ..runtime import host
from ..runtime.host import ARTIFACT, HostSpec, Step
from . import Capabilities, Target

_aten = torch.ops.aten
_Lowered: TypeAlias = tuple[str, tuple[Any, ...], dict[str, Any]]  # operation, arguments, parameters
_RESHAPES = frozenset({_aten.view.default, _aten.reshape.default, _aten.unsqueeze.default, _aten.squeeze.dim})
_ARITHMETIC = {
    _aten.add.Tensor: "add",
    _aten.sub.Tensor: "subtract",
    _aten.mul.Tensor: "multiply",
    _aten.div.Tensor: "divide",
}


class HostTarget(Target):
    capabilities: ClassVar[Capabilities] = Capabilities(
        artifact=ARTIFACT, engines=("numpy",), on_host=True, proposed_for=frozenset({"host"})
    )
    question: ClassVar[str] = "the host's specification does what the graph does"

    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        """Write ``<segment>.json`` and run it on the example in NumPy."""
        spec = _specification(segment)
        path = directory / f"{segment.name}.json"
        path.write_text(spec.model_dump_json(indent=1) + "\n", encoding="utf-8")
        saved = HostSpec.model_validate_json(path.read_text(encoding="utf-8"))
        for name, result in host.run(saved, {spec.name: example[spec.name] for spec in segment.inputs}).items():
            parity = compare(example[name], result)
            if not parity.reaches(plan.tolerances.host_snr_db, plan.tolerances.negligible_max_abs):
                raise LoweringError(
                    f"the host specification of {segment.name!r} gives another {name!r} than the graph",
                    expected=f"at least {plan.tolerances.host_snr_db:g} dB",
                    received=parity,
                    fix="An operation in splitter/runtime/host.py does not mean what the graph's does.",
                )
        return Artifact(target=segment.stage.target, path=path.name)

    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        spec = HostSpec.model_validate_json(files.read(files.home / segment.artifact.path))
        findings = []
        if tuple(tensor.name for tensor in spec.inputs) != segment.inputs or tuple(spec.outputs) != segment.outputs:
            findings.append(f"inputs and outputs are {[i.name for i in spec.inputs]} and {list(spec.outputs)}")
        shapes = {step.result: step.shape for step in spec.steps}
        for name, step in spec.outputs.items():
            if name in tensors and shapes[step] != tensors[name].shape:
                findings.append(f"{name} has shape {shapes[step]}, the manifest says {tensors[name].shape}")
        return findings

    def limit_db(self, tolerances: Tolerances) -> float:
        return tolerances.host_snr_db


def _specification(segment: Segment) -> HostSpec:
    names: dict[fx.Node, str] = {node: str(node.target) for node in segment.program.input_nodes}
    steps: list[Step] = []
    for node in segment.program.operators:
        if node.target is _aten.clone.default and node.all_input_nodes[0] in names:  # a copy in memory, the same value
            names[node] = names[node.all_input_nodes[0]]
            continue
        if weights := [parent for parent in node.all_input_nodes if parent.op == "get_attr"]:
            raise LoweringError(
                f"the host stage {segment.name!r} reads the weight {weights[0].target}; host specifications have none",
                fix='Give the stage the target "graph" in the plan.',
            )
        op, arguments, parameters = _lower(node, segment.name)
        names[node] = node.name
        kind = node.meta["type"]
        steps.append(
            Step(
                result=node.name,
                op=op,
                arguments=tuple(names[a] if isinstance(a, fx.Node) else float(a) for a in arguments),
                parameters=parameters,
                shape=kind.shape,
                dtype=kind.dtype,
            )
        )
    outputs = zip(segment.program.outputs, segment.program.output_nodes, strict=True)
    return HostSpec(
        stage=segment.stage.name,
        inputs=segment.inputs,
        steps=tuple(steps),
        outputs={name: names[node] for name, node in outputs},
        definitions=host.definitions(tuple(steps)),
    )


def _lower(node: fx.Node, segment: str) -> _Lowered:
    arguments = _bound(node)
    if node.target in _RESHAPES:
        return "reshape", (arguments["self"],), {"shape": list(node.meta["type"].shape)}
    if node.target in _ARITHMETIC and arguments.get("alpha", 1) == 1:
        return _ARITHMETIC[node.target], (arguments["self"], arguments["other"]), {}
    if node.target in _LOWERINGS:
        lowered = _LOWERINGS[node.target](arguments, node)
        if lowered is not None:
            return lowered
    raise LoweringError(
        f"the host stage {segment!r} has an operation that no host specification can say",
        received=node.format_node(),
        fix='Give the stage the target "graph" in the plan, or add the operation to splitter/runtime/host.py.',
    )


def _bound(node: fx.Node) -> dict[str, Any]:
    """Arguments by the names in the operator's schema, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    bound = {a.name: a.default_value for a in schema if a.has_default_value()}
    return bound | dict(zip((a.name for a in schema), node.args, strict=False)) | node.kwargs


def _axis(argument: int, node: fx.Node) -> int:
    return argument % len(node.meta["type"].shape)


def _permute(a: dict[str, Any], node: fx.Node) -> _Lowered:
    return "transpose", (a["self"],), {"axes": [_axis(axis, node) for axis in a["dims"]]}


def _slice(a: dict[str, Any], node: fx.Node) -> _Lowered | None:
    axis = _axis(a["dim"], node)
    start, stop, step = slice(a["start"], a["end"], a["step"]).indices(a["self"].meta["type"].shape[axis])
    return ("slice", (a["self"],), {"axis": axis, "start": start, "stop": stop}) if step == 1 else None


def _pad(a: dict[str, Any], node: fx.Node) -> _Lowered | None:
    # PyTorch lists pairs from the last axis on.
    pairs = [(0, 0)] * (len(node.meta["type"].shape) - len(a["pad"]) // 2)
    pairs += [(a["pad"][i], a["pad"][i + 1]) for i in range(len(a["pad"]) - 2, -1, -2)]
    if any(count < 0 for pair in pairs for count in pair):
        return None
    amounts = {"before": [pair[0] for pair in pairs], "after": [pair[1] for pair in pairs]}
    if a["mode"] == "reflect":
        return "pad_reflect", (a["self"],), amounts
    if a["mode"] == "constant" and not a["value"]:
        return "pad_zero", (a["self"],), amounts
    return None


def _hann_window(a: dict[str, Any], node: fx.Node) -> _Lowered:
    return "hann_window", (), {"length": a["window_length"]}


def _is_plain(a: dict[str, Any]) -> bool:
    """Of real sound, with a window as long as the transform."""
    return a["win_length"] in (None, a["n_fft"]) and a["onesided"] is not False and a["window"] is not None


def _stft(a: dict[str, Any], node: fx.Node) -> _Lowered | None:
    if not _is_plain(a) or not a["return_complex"]:
        return None
    scale = 1 / math.sqrt(a["n_fft"]) if a["normalized"] else 1.0
    parameters = {"fft_length": a["n_fft"], "hop_length": a["hop_length"] or a["n_fft"] // 4, "scale": scale}
    return "stft", (a["self"], a["window"]), parameters


def _istft(a: dict[str, Any], node: fx.Node) -> _Lowered | None:
    if not _is_plain(a) or a["return_complex"]:
        return None
    scale = 1 / math.sqrt(a["n_fft"]) if a["normalized"] else 1.0
    parameters = {
        "fft_length": a["n_fft"],
        "hop_length": a["hop_length"] or a["n_fft"] // 4,
        "scale": scale,
        "trim": a["n_fft"] // 2 if a["center"] else 0,
        "length": node.meta["type"].shape[-1],
    }
    return "istft", (a["self"], a["window"]), parameters


def _mean(a: dict[str, Any], node: fx.Node) -> _Lowered | None:
    return ("mean", (a["self"],), {"axes": list(a["dim"])}) if a["keepdim"] else None


def _std(a: dict[str, Any], node: fx.Node) -> _Lowered | None:
    return ("std", (a["self"],), {"axes": list(a["dim"]), "correction": float(a["unbiased"])}) if a["keepdim"] else None


_LOWERINGS: dict[object, Callable[[dict[str, Any], fx.Node], _Lowered | None]] = {
    _aten.permute.default: _permute,
    _aten.slice.Tensor: _slice,
    _aten.pad.default: _pad,
    _aten.hann_window.default: _hann_window,
    _aten.stft.default: _stft,
    _aten.istft.default: _istft,
    _aten.view_as_real.default: lambda a, node: ("split_complex", (a["self"],), {}),
    _aten.view_as_complex.default: lambda a, node: ("join_complex", (a["self"],), {}),
    _aten.mean.dim: _mean,
    _aten.std.dim: _std,
}
