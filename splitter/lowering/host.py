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
_MOST_NUMBERS = 2**16  # of a constant, written out in a JSON file
_Indices: TypeAlias = Callable[[fx.Node], torch.Tensor | None]
_Lowered: TypeAlias = tuple[str, tuple[Any, ...], dict[str, Any]]  # operation, arguments, parameters
_RESHAPES = frozenset({_aten.view.default, _aten.reshape.default, _aten.unsqueeze.default, _aten.squeeze.dim})
_COPIES = frozenset({_aten.clone.default})  # in memory: the same value
_SEQUENCES = frozenset({_aten.arange.default, _aten.arange.start_step})
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
    steps = _Steps(segment)
    for node in segment.program.operators:
        steps.add(node)
    outputs = zip(segment.program.outputs, segment.program.output_nodes, strict=True)
    return HostSpec(
        stage=segment.stage.name,
        inputs=segment.inputs,
        steps=tuple(steps.steps),
        outputs={name: steps.argument(node) for name, node in outputs},
        definitions=host.definitions(tuple(steps.steps)),
    )


class _Steps:
    """The steps of a segment, node by node; what depends on no input is computed here and becomes a constant."""

    def __init__(self, segment: Segment) -> None:
        self.steps: list[Step] = []
        self._segment, self._program = segment.name, segment.program
        self._names: dict[fx.Node, str] = {node: str(node.target) for node in segment.program.input_nodes}
        self._constants: dict[fx.Node, torch.Tensor] = {}

    def add(self, node: fx.Node) -> None:
        """The step of a node, unless it is a constant, or the same value as its argument."""
        parents = node.all_input_nodes
        if node.target in _SEQUENCES or (parents and all(self._is_constant(parent) for parent in parents)):
            self._constants[node] = self._program.constant(node)
            return
        if node.target in _COPIES or (node.target is _aten.cat.default and len(node.all_input_nodes) == 1):
            self._names[node] = self._names[node.all_input_nodes[0]]
            return
        op, arguments, parameters = self._lowered(node)
        self._append(
            node, op, tuple(self.argument(a) if isinstance(a, fx.Node) else float(a) for a in arguments), parameters
        )

    def argument(self, node: fx.Node) -> str:
        """The name of a value, which is a step of its own where it is a constant."""
        if node not in self._names:
            values = self._constant(node)
            shape = {"shape": list(values.shape), "dtype": str(values.dtype).removeprefix("torch.")}
            flat = values.flatten().tolist()
            if len(set(flat)) == 1 and not isinstance(flat[0], complex):
                self._append(node, "fill", (), {"value": flat[0]} | shape)
            elif len(set(flat)) == 1 and not flat[0].imag:
                self._append(node, "fill", (), {"value": flat[0].real} | shape)
            elif values.numel() <= _MOST_NUMBERS and not values.is_complex():
                self._append(node, "constant", (), {"values": flat} | shape)
            else:
                raise LoweringError(
                    f"the host stage {self._segment!r} reads a weight that no host specification holds",
                    expected=f"at most {_MOST_NUMBERS:,} real numbers, or one number everywhere",
                    received=f"{node.name}, {node.meta['type']}",
                    fix='Give the stage the target "graph" in the plan.',
                )
        return self._names[node]

    def _append(self, node: fx.Node, op: str, arguments: tuple[str | float, ...], parameters: dict[str, Any]) -> None:
        kind = node.meta["type"]
        self._names[node] = node.name
        step = Step(
            result=node.name, op=op, arguments=arguments, parameters=parameters, shape=kind.shape, dtype=kind.dtype
        )
        self.steps.append(step)

    def _is_constant(self, node: fx.Node) -> bool:
        return node.op == "get_attr" or node in self._constants

    def _constant(self, node: fx.Node) -> torch.Tensor:
        if node.op == "get_attr":
            return self._program.weights[str(node.target)].detach()
        return self._constants[node]

    def _lowered(self, node: fx.Node) -> _Lowered:
        arguments = _bound(node)
        if node.target in _RESHAPES:
            return "reshape", (arguments["self"],), {"shape": list(node.meta["type"].shape)}
        if node.target in _ARITHMETIC and arguments.get("alpha", 1) == 1:
            return _ARITHMETIC[node.target], (arguments["self"], arguments["other"]), {}
        if node.target in _INDEXED:
            lowered = _INDEXED[node.target](arguments, node, self._indices)
        else:
            lowered = _LOWERINGS[node.target](arguments, node) if node.target in _LOWERINGS else None
        if lowered is not None:
            return lowered
        raise LoweringError(
            f"the host stage {self._segment!r} has an operation that no host specification can say",
            received=node.format_node(),
            fix='Give the stage the target "graph" in the plan, or add the operation to splitter/runtime/host.py.',
        )

    def _indices(self, node: fx.Node) -> torch.Tensor | None:
        """Places in a tensor that are the same in every run; None for those that inputs decide."""
        if not self._is_constant(node):
            return None
        values = self._constant(node)
        return values if values.dtype == torch.int64 else None


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


def _stack(a: dict[str, Any], node: fx.Node) -> _Lowered:
    return "stack", tuple(a["tensors"]), {"axis": _axis(a["dim"], node)}


def _concatenate(a: dict[str, Any], node: fx.Node) -> _Lowered:
    return "concatenate", tuple(a["tensors"]), {"axis": _axis(a["dim"], node)}


def _expand(a: dict[str, Any], node: fx.Node) -> _Lowered:
    return "expand", (a["self"],), {"shape": list(node.meta["type"].shape)}


def _copy(a: dict[str, Any], node: fx.Node) -> _Lowered | None:
    """Another tensor's values in the shape of this one."""
    kind = node.meta["type"]
    same = isinstance(a["src"], fx.Node) and a["src"].meta["type"].dtype == kind.dtype
    return ("expand", (a["src"],), {"shape": list(kind.shape)}) if same else None


def _zeros(a: dict[str, Any], node: fx.Node) -> _Lowered:
    kind = node.meta["type"]
    return "fill", (), {"value": 0.0, "shape": list(kind.shape), "dtype": kind.dtype}


def _select(a: dict[str, Any], node: fx.Node) -> _Lowered:
    shape = a["self"].meta["type"].shape
    axis = a["dim"] % len(shape)
    return "select", (a["self"],), {"axis": axis, "index": a["index"] % shape[axis]}


def _put(a: dict[str, Any], node: fx.Node) -> _Lowered:
    axis = _axis(a["dim"], node)
    return "put", (a["self"], a["src"]), {"axis": axis, "index": a["index"] % node.meta["type"].shape[axis]}


def _take(a: dict[str, Any], node: fx.Node, constant: _Indices) -> _Lowered | None:
    """Indices of the first axes, broadcast against each other."""
    given = [None if index is None else constant(index) for index in a["indices"]]
    if any(index is None for index in given):
        return None
    extents = a["self"].meta["type"].shape[: len(given)]
    places = torch.zeros((), dtype=torch.int64)
    for index, extent in zip(given, extents, strict=True):
        assert index is not None
        places = places * extent + index.remainder(extent)
    parameters = {"axes": len(given), "indices": places.flatten().tolist(), "shape": list(node.meta["type"].shape)}
    return "take", (a["self"],), parameters


def _add_at(a: dict[str, Any], node: fx.Node, constant: _Indices) -> _Lowered | None:
    """Indices that differ along the axis alone, for the whole source."""
    indices, axis = constant(a["index"]), _axis(a["dim"], node)
    source = a["src"].meta["type"].shape
    if indices is None or tuple(indices.shape) != source or 0 in source:
        return None
    along = indices[tuple(slice(None) if place == axis else 0 for place in range(len(source)))]
    around = [extent for place, extent in enumerate(node.meta["type"].shape) if place != axis]
    same = torch.equal(
        indices, along.reshape([-1 if place == axis else 1 for place in range(len(source))]).expand(source)
    )
    whole = around == [extent for place, extent in enumerate(source) if place != axis]
    return ("add_at", (a["self"], a["src"]), {"axis": axis, "indices": along.tolist()}) if same and whole else None


_INDEXED: dict[object, Callable[[dict[str, Any], fx.Node, _Indices], _Lowered | None]] = {
    _aten.index.Tensor: _take,
    _aten.scatter_add.default: _add_at,
}
_LOWERINGS: dict[object, Callable[[dict[str, Any], fx.Node], _Lowered | None]] = {
    _aten.permute.default: _permute,
    _aten.slice.Tensor: _slice,
    _aten.pad.default: _pad,
    _aten.hann_window.default: _hann_window,
    _aten.stft.default: _stft,
    _aten.istft.default: _istft,
    _aten.view_as_real.default: lambda a, node: ("split_complex", (a["self"],), {}),
    _aten.abs.default: lambda a, node: ("magnitude", (a["self"],), {}),
    _aten.view_as_complex.default: lambda a, node: ("join_complex", (a["self"],), {}),
    _aten.mean.dim: _mean,
    _aten.std.dim: _std,
    _aten.stack.default: _stack,
    _aten.cat.default: _concatenate,
    _aten.expand.default: _expand,
    _aten.copy.default: _copy,
    _aten.zeros_like.default: _zeros,
    _aten.select.int: _select,
    _aten.select_scatter.default: _put,
}
