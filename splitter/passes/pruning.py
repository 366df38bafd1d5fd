"""Prune a program to some places of its outputs: what only the other places need is not computed.

Places of an axis, say of the stems, are followed from the outputs up through the graph. An operator that computes each
place from the same place of its operands is narrowed and its operands are followed; a convolution keeps the rows of its
weights that give those places. Any other operator is computed whole and its places are taken.

::

    y = istft(reshape(conv_transpose2d(x, w, c), [1, 4, 2, f, t]))      # stems are axis 1; only the last is wanted
    y = istft(reshape(conv_transpose2d(x, w[:, 6:8], c[6:8]), [1, 1, 2, f, t]))

In exact arithmetic nothing changes. In floating point a kernel may add up in another order for another number of
channels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, fx, nn

from ..graph.program import Program, free_of_strides
from ..graph.shapes import TensorType
from .rewriting import Call, inserter

_aten = torch.ops.aten


@dataclass(frozen=True)
class Part:
    """Places of one axis of a tensor.

    Attributes:
        axis: Counted from the front.
        places: In rising order.
    """

    axis: int
    places: tuple[int, ...]

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """Of the part, from the shape of the whole."""
        return (*whole[: self.axis], len(self.places), *whole[self.axis + 1 :])


Needs: TypeAlias = Mapping[str, Part | None]  # by name; None for all of a tensor; absent what is not needed


def needs(program: Program, wanted: Needs) -> Needs:
    """What of a program's inputs its wanted outputs need."""
    found = _demands(program, wanted)[0]
    return {str(node.target): found[node] for node in program.input_nodes if node in found}


def pruned(program: Program, wanted: Needs, given: Needs) -> Program:
    """A program that computes the wanted outputs alone.

    Args:
        program: The whole; it stays as it is.
        wanted: What of each output.
        given: What the program will be given of each input that `needs` names: all of it, or the part that it needs.
    """
    demands, narrowings = _demands(program, wanted)
    return _Pruning(program, demands, narrowings, given).result(wanted)


def through_reshape(part: Part, before: Sequence[int], after: Sequence[int]) -> Part | None:
    """Where a part of a tensor lies in the same numbers under another shape; None where it is no part of one axis.

    Args:
        part: Of ``before``.
        before: Its shape.
        after: The other shape, of as many numbers.
    """
    outer, extent = math.prod(before[: part.axis]), before[part.axis]
    start = 1
    for axis, size in enumerate(after):
        if size > 1 and outer % start == 0 and start * size >= outer * extent and start * size % (outer * extent) == 0:
            rows, inner = outer // start, start * size // (outer * extent)
            places = [
                (row * extent + place) * inner + offset
                for row in range(rows)
                for place in part.places
                for offset in range(inner)
            ]
            return Part(axis, tuple(places))
        if size > 1 and start == outer and extent % size == 0:
            blocks = sorted({place * size // extent for place in part.places})
            complete = len(part.places) * size == len(blocks) * extent
            return Part(axis, tuple(blocks)) if complete else None
        start *= size
    return None


# ------------------------------------------------------------------------------------- what is needed


@dataclass(frozen=True)
class _Of:
    """A part of what a node gives, in the place of the node among the arguments of an operator."""

    node: fx.Node
    part: Part


_Arguments: TypeAlias = dict[str, Any]  # by name; a part of an operand as `_Of`
_Narrowing: TypeAlias = _Arguments | _Of  # _Of: nothing is computed any more, it is this part
_Rule: TypeAlias = Callable[[_Arguments, Part, fx.Node], _Narrowing | None]
_R = TypeVar("_R", bound=_Rule)
_RULES: dict[object, _Rule] = {}


def _demands(program: Program, wanted: Needs) -> tuple[dict[fx.Node, Part | None], dict[fx.Node, _Narrowing]]:
    """What is needed of each node, and how those are narrowed that compute a part alone."""
    found: dict[fx.Node, Part | None] = {}
    narrowings: dict[fx.Node, _Narrowing] = {}

    def need(node: fx.Node, part: Part | None) -> None:
        found[node] = part if found.get(node, part) == part else None

    for name, node in zip(program.outputs, program.output_nodes, strict=True):
        if name in wanted:
            need(node, wanted[name])
    for node in reversed(program.operators):
        if node not in found:
            continue
        narrowing = None if (part := found[node]) is None else _narrowing(node, part)
        if narrowing is not None:
            narrowings[node] = narrowing
        for operand in _leaves(_bound(node) if narrowing is None else narrowing):
            need(*(operand.node, operand.part) if isinstance(operand, _Of) else (operand, None))
    return found, narrowings


def _narrowing(node: fx.Node, part: Part) -> _Narrowing | None:
    """How an operator computes a part of its result; None where it is not known to."""
    if node.meta["type"] is None or not isinstance(node.target, torch._ops.OpOverload):
        return None
    rule = _RULES.get(node.target)
    if rule is None and torch.Tag.pointwise in node.target.tags:
        rule = _pointwise
    return None if rule is None else rule(_bound(node), part, node)


def _bound(node: fx.Node) -> _Arguments:
    """Arguments by the names of the operator's schema, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):  # of a tuple
        return {"self": node.args[0]}
    schema = node.target._schema.arguments
    bound = {a.name: a.default_value for a in schema if a.has_default_value()}
    return bound | dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)


def _leaves(value: Any) -> Iterable[fx.Node | _Of]:
    """The operands among arguments."""
    if isinstance(value, fx.Node | _Of):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)


# --------------------------------------------------------------------------------- the new program


class _Pruning:
    def __init__(
        self, program: Program, demands: dict[fx.Node, Part | None], narrowings: dict[fx.Node, _Narrowing], given: Needs
    ) -> None:
        self._program, self._demands, self._narrowings, self._given = program, demands, narrowings, given
        self._graph = fx.Graph()
        self._weights: dict[str, Tensor] = {}
        self._values: dict[fx.Node, fx.Node] = {}  # as they are demanded

    def result(self, wanted: Needs) -> Program:
        for node in self._program.graph.nodes:
            if node in self._demands:
                self._values[node] = self._value(node)
        outputs = [
            (name, self._values[node] if self._demands[node] == wanted[name] else self._taken(node, wanted[name]))
            for name, node in zip(self._program.outputs, self._program.output_nodes, strict=True)
            if name in wanted
        ]
        self._graph.output(tuple(node for _, node in outputs))
        free_of_strides(self._graph)
        return Program(self._program.name, self._graph, self._weights, tuple(name for name, _ in outputs))

    def _value(self, node: fx.Node) -> fx.Node:
        part = self._demands[node]
        if node.op == "placeholder":
            return self._input(node, part)
        if node.op == "get_attr":
            return self._weight(node, part)
        narrowing = self._narrowings.get(node)
        if isinstance(narrowing, _Of):
            return self._taken(narrowing.node, narrowing.part)
        if narrowing is None:
            copy = self._graph.node_copy(node, lambda operand: self._taken(operand, None))
            copy.meta = dict(node.meta)
            return copy if part is None else _slice(self._call(node), copy, part)
        assert part is not None
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        values = {name: self._filled(narrowing[name]) for name in narrowing}
        args = tuple(values[name] for name in names[: len(node.args)])
        copy = self._graph.create_node("call_function", node.target, args, {key: values[key] for key in node.kwargs})
        kind: TensorType = node.meta["type"]
        copy.meta = {"type": TensorType(part.shape(kind.shape), kind.dtype), "module": node.meta["module"]}
        return copy

    def _input(self, node: fx.Node, part: Part | None) -> fx.Node:
        given, kind = self._given[str(node.target)], node.meta["type"]
        copy = self._graph.node_copy(node)
        copy.meta = dict(node.meta)
        if given is not None:
            copy.meta["type"] = TensorType(given.shape(kind.shape), kind.dtype)
        return copy if given == part else _slice(self._call(node), copy, part)  # type: ignore[arg-type] # given: None

    def _weight(self, node: fx.Node, part: Part | None) -> fx.Node:
        weight, name = self._program.weights[str(node.target)], str(node.target)
        if part is not None:
            places = torch.tensor(part.places)
            rows = weight.detach().index_select(part.axis, places).contiguous()
            weight = nn.Parameter(rows) if weight.requires_grad else rows
            name += f"_{hashlib.sha256(repr(part).encode()).hexdigest()[:8]}"
        self._weights[name] = weight
        copy = self._graph.create_node("get_attr", name)
        copy.meta = {"type": TensorType.of(weight), "module": node.meta["module"]}
        return copy

    def _filled(self, value: Any) -> Any:
        """An argument with values in the place of nodes and parts."""
        if isinstance(value, _Of):
            return self._taken(value.node, value.part)
        if isinstance(value, fx.Node):
            return self._taken(value, None)
        return [self._filled(item) for item in value] if isinstance(value, list | tuple) else value

    def _taken(self, node: fx.Node, part: Part | None) -> fx.Node:
        """A part of a node, which is there as that part or whole."""
        value = self._values[node]
        return value if self._demands[node] == part or part is None else _slice(self._call(node), value, part)

    def _call(self, node: fx.Node) -> Call:
        return inserter(self._graph, node.meta["module"])


def _slice(call: Call, value: fx.Node, part: Part) -> fx.Node:
    first, last = part.places[0], part.places[-1]
    if part.places == tuple(range(first, last + 1)):
        return call(_aten.slice.Tensor, value, part.axis, first, last + 1)
    runs = [place for place in part.places if place - 1 not in part.places]
    ends = [place + 1 for place in part.places if place + 1 not in part.places]
    parts = [call(_aten.slice.Tensor, value, part.axis, *run) for run in zip(runs, ends, strict=True)]
    return call(_aten.cat.default, parts, part.axis)


# ---------------------------------------------------------------------------------------- operators
# Each is asked for a part of its result, and says which parts of its operands that takes.


def _rule(*operators: torch._ops.OpOverload) -> Callable[[_R], _R]:
    def register(rule: _R) -> _R:
        for operator in operators:
            if operator in _RULES:
                raise ValueError(f"{operator} has a rule already")
            _RULES[operator] = rule
        return rule

    return register


def _shape(node: fx.Node) -> tuple[int, ...]:
    shape: tuple[int, ...] = node.meta["type"].shape
    return shape


def _axis(axis: int, node: fx.Node) -> int:
    return axis % len(_shape(node))


def _same(a: _Arguments, part: Part, *names: str) -> _Arguments:
    """The same places of the same axis of some operands."""
    return a | {name: _Of(a[name], part) for name in names if a[name] is not None}


def _broadcast(value: Any, part: Part, rank: int) -> Any:
    """Of an operand whose last axis is the result's last."""
    if not isinstance(value, fx.Node):
        return value
    axis = part.axis - (rank - len(_shape(value)))
    return value if axis < 0 or _shape(value)[axis] == 1 else _Of(value, Part(axis, part.places))


def _pointwise(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    rank = len(_shape(node))
    return {name: _broadcast(value, part, rank) for name, value in a.items()}


_rule(
    *(_aten._to_copy.default, _aten.to.dtype, _aten.contiguous.default, _aten.detach.default, _aten.alias.default),
    *(_aten.real.default, _aten.imag.default, _aten.complex.default, _aten.copy.default),
)(_pointwise)


@_rule(_aten.view.default, _aten.reshape.default)
def _reshape(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    operand = through_reshape(part, _shape(node), _shape(a["self"]))
    size = "size" if "size" in a else "shape"
    return None if operand is None else a | {"self": _Of(a["self"], operand), size: [*part.shape(_shape(node))]}


@_rule(_aten.expand.default)
def _expand(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    operand = _broadcast(a["self"], part, len(_shape(node)))
    return a | {"self": operand, "size": [*part.shape(_shape(node))]}


@_rule(_aten.permute.default)
def _permute(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    return _same(a, Part(_axis(a["dims"][part.axis], node), part.places), "self")


@_rule(_aten.transpose.int)
def _transpose(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    first, second = _axis(a["dim0"], node), _axis(a["dim1"], node)
    axis = {first: second, second: first}.get(part.axis, part.axis)
    return _same(a, Part(axis, part.places), "self")


@_rule(_aten.unsqueeze.default)
def _unsqueeze(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    axis = _axis(a["dim"], node)
    return None if part.axis == axis else _same(a, Part(part.axis - (part.axis > axis), part.places), "self")


@_rule(_aten.squeeze.dim, _aten.select.int)
def _without_axis(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    axis = _axis(a["dim"], a["self"])
    if len(_shape(node)) == len(_shape(a["self"])):  # squeezed where there is more than one
        return _same(a, part, "self")
    return _same(a, Part(part.axis + (part.axis >= axis), part.places), "self")


@_rule(_aten.slice.Tensor)
def _sliced(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    axis = _axis(a["dim"], node)
    if part.axis != axis:
        return _same(a, part, "self")
    start, _, step = slice(a["start"], a["end"], a["step"]).indices(_shape(a["self"])[axis])
    return _Of(a["self"], Part(axis, tuple(start + step * place for place in part.places)))


@_rule(_aten.cat.default)
def _cat(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    axis, start, kept = _axis(a["dim"], node), 0, []
    if any(len(_shape(tensor)) != len(_shape(node)) for tensor in a["tensors"]):
        return None  # an empty one, of old
    for tensor in a["tensors"]:
        if part.axis != axis:
            kept.append(_Of(tensor, part))
            continue
        stop = start + _shape(tensor)[axis]
        if inside := tuple(place - start for place in part.places if start <= place < stop):
            kept.append(_Of(tensor, Part(axis, inside)))
        start = stop
    return kept[0] if len(kept) == 1 else a | {"tensors": kept}


@_rule(_aten.stack.default)
def _stack(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    axis = _axis(a["dim"], node)
    if part.axis == axis:
        return a | {"tensors": [a["tensors"][place] for place in part.places]}
    inside = Part(part.axis - (part.axis > axis), part.places)
    return a | {"tensors": [_Of(tensor, inside) for tensor in a["tensors"]]}


@_rule(_aten.pad.default, _aten.constant_pad_nd.default)
def _pad(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    padded = len(_shape(node)) - len(a["pad"]) // 2
    return None if part.axis >= padded else _same(a, part, "self")


@_rule(_aten.view_as_complex.default, _aten.view_as_real.default)
def _pairs(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    return None if part.axis == len(_shape(a["self"])) else _same(a, part, "self")


@_rule(_aten.glu.default)
def _glu(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    axis = _axis(a["dim"], node)
    if part.axis != axis:
        return _same(a, part, "self")
    half = _shape(node)[axis]
    return _same(a, Part(axis, (*part.places, *(half + place for place in part.places))), "self")


@_rule(_aten.softmax.int, _aten._softmax.default, _aten.log_softmax.int, _aten._log_softmax.default)
def _along_another(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    return None if part.axis == _axis(a["dim"], node) else _same(a, part, "self")


@_rule(_aten.scatter_add.default)
def _scatter_add(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    alike = {_shape(a[name])[part.axis] for name in ("self", "index", "src")}
    return None if part.axis == _axis(a["dim"], node) or len(alike) > 1 else _same(a, part, "self", "index", "src")


@_rule(_aten.select_scatter.default)
def _select_scatter(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    axis = _axis(a["dim"], node)
    if part.axis != axis:
        inside = Part(part.axis - (part.axis > axis), part.places)
        return _same(a, part, "self") | {"src": _Of(a["src"], inside)}
    written = a["index"] % _shape(node)[axis]
    if written not in part.places:
        return _Of(a["self"], part)
    return _same(a, part, "self") | {"index": part.places.index(written)}


@_rule(_aten.index.Tensor, _aten.index_put.default)
def _indexed(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    """Along an axis behind those that are indexed."""
    rank, behind = len(_shape(node)), len(_shape(a["self"])) - len(a["indices"])
    if None in a["indices"] or part.axis < rank - behind:
        return None
    return a | {name: _broadcast(a[name], part, rank) for name in ("self", "values") if name in a}


@_rule(_aten.linear.default)
def _linear(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    if part.axis < len(_shape(node)) - 1:
        return _same(a, part, "input")
    return _same(a, Part(0, part.places), "weight", "bias")


@_rule(_aten.bmm.default)
def _bmm(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    return _same(a, part, *(("self", "mat2"), ("self",), ("mat2",))[part.axis])


@_rule(_aten.conv1d.default, _aten.conv2d.default)
def _convolution(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    return _output_channels(a, part, node, weight_axis=0)


@_rule(_aten.conv_transpose1d.default, _aten.conv_transpose2d.input)
def _transposed_convolution(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    return _output_channels(a, part, node, weight_axis=1)


def _output_channels(a: _Arguments, part: Part, node: fx.Node, *, weight_axis: int) -> _Narrowing | None:
    if len(_shape(node)) != len(_shape(a["weight"])) or part.axis > 1:  # without batch, or along what is convolved
        return None
    if part.axis == 0:
        return _same(a, part, "input")
    if a["groups"] != 1:
        return None
    bias = None if a["bias"] is None else _Of(a["bias"], Part(0, part.places))
    return a | {"weight": _Of(a["weight"], Part(weight_axis, part.places)), "bias": bias}


@_rule(_aten.istft.default)
def _istft(a: _Arguments, part: Part, node: fx.Node) -> _Narrowing | None:
    return _same(a, part, "self") if part.axis == 0 and len(_shape(a["self"])) == 3 else None
