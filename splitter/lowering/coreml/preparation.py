"""The captured segment as Core ML Tools 9.0 reads it right: what its converters drop or lack is spelled out.

Each rewriting says what the converter does otherwise. None changes what the graph computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import fx

from ...graph.program import Program
from ...graph.shapes import DTYPES, TensorType
from . import axes

_aten = torch.ops.aten


def prepared(program: Program) -> Program:
    """A copy with everything spelled out. Arrays of Core ML hold no truths, and have an axis: inputs and outputs that
    are bool are int32, and those without an axis have one.
    """
    ready = program.copy()
    for node in list(ready.graph.nodes):
        if node.op == "call_function" and (rewrite := _REWRITINGS.get(node.target)):
            rewrite(ready.graph, node)
    axes.narrow(ready)
    _boundaries(ready)
    return ready


def _scale_of_a_sum(graph: fx.Graph, node: fx.Node) -> None:
    """``a + αb``: α is a keyword, and the export route adds ``a + b``."""
    alpha = node.kwargs.get("alpha", 1)
    if alpha == 1 or not isinstance(node.args[1], fx.Node):
        return
    with graph.inserting_before(node):
        scaled = _called(graph, node, _aten.mul.Tensor, node.args[1], alpha, kind=node.args[1].meta["type"])
    node.args, node.kwargs = (node.args[0], scaled), {}


def _gelu(graph: fx.Graph, node: fx.Node) -> None:
    """``approximate="tanh"`` is a keyword, and the export route writes the exact form: 82 dB. Core ML Tools makes its
    own operation of this formula again, in the mode ``TANH_APPROXIMATION``.
    """
    if node.kwargs.get("approximate", "none") != "tanh":
        return
    x = node.args[0]
    with graph.inserting_before(node):
        cube = _called(graph, node, _aten.pow.Tensor_Scalar, x, 3)
        inner = _called(graph, node, _aten.add.Tensor, x, _called(graph, node, _aten.mul.Tensor, cube, 0.044715))
        bend = _called(graph, node, _aten.tanh.default,
                       _called(graph, node, _aten.mul.Tensor, inner, math.sqrt(2 / math.pi)))  # fmt: skip
        raised = _called(graph, node, _aten.add.Tensor, bend, 1.0)
        half = _called(graph, node, _aten.mul.Tensor, x, 0.5)
    node.target, node.args, node.kwargs = _aten.mul.Tensor, (raised, half), {}


def _filled(value: float | str) -> Callable[[fx.Graph, fx.Node], None]:
    """``zeros_like`` and its kin keep the operand's dtype whatever theirs is, and some have no converter; `full` has.

    Args:
        value: What fills the tensor, or the name of the argument that does.
    """

    def rewrite(graph: fx.Graph, node: fx.Node) -> None:
        kind: TensorType = node.meta["type"]
        named = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False))  # type: ignore[union-attr]
        fill = named.get(value, node.kwargs.get(value)) if isinstance(value, str) else value
        if kind.shape and isinstance(fill, bool | int | float):
            node.target, node.args = _aten.full.default, (list(kind.shape), fill)
            node.kwargs = {"dtype": DTYPES[kind.dtype]}

    return rewrite


_REWRITINGS: dict[object, Callable[[fx.Graph, fx.Node], None]] = {
    _aten.add.Tensor: _scale_of_a_sum,
    _aten.sub.Tensor: _scale_of_a_sum,
    _aten.gelu.default: _gelu,
    _aten.zeros_like.default: _filled(0),
    _aten.ones_like.default: _filled(1),
    _aten.full_like.default: _filled("fill_value"),
    _aten.new_zeros.default: _filled(0),
    _aten.new_ones.default: _filled(1),
    _aten.new_full.default: _filled("fill_value"),
}


def _boundaries(program: Program) -> None:
    graph = program.graph
    for node in program.input_nodes:
        kind: TensorType = node.meta["type"]
        value, readers = node, list(node.users)
        node.meta["type"] = TensorType(kind.shape or (1,), "int32" if kind.dtype == "bool" else kind.dtype)
        with graph.inserting_before(_first_after_inputs(graph)):
            if not kind.shape:
                value = _called(graph, node, _aten.squeeze.dim, value, 0, kind=replace(node.meta["type"], shape=()))
            if kind.dtype == "bool":
                value = _called(graph, node, _aten.ne.Scalar, value, 0, kind=kind)
        if value is not node:
            for reader in readers:
                reader.replace_input_with(node, value)
    results = []
    for node in program.output_nodes:
        kind = node.meta["type"]
        result = node
        with graph.inserting_before(graph.output_node()):
            if kind.dtype == "bool":
                kind = replace(kind, dtype="int32")
                result = graph.call_function(_aten._to_copy.default, (node,), {"dtype": torch.int32})
                result.meta = {**node.meta, "type": kind}
            if not kind.shape:
                result = _called(graph, node, _aten.unsqueeze.default, result, 0, kind=replace(kind, shape=(1,)))
        results.append(result)
    graph.output_node().args = (tuple(results),)


def _first_after_inputs(graph: fx.Graph) -> fx.Node:
    return next(node for node in graph.nodes if node.op in ("call_function", "output"))


def _called(graph: fx.Graph, like: fx.Node, target: object, *args: object, kind: TensorType | None = None) -> fx.Node:
    """A new operator for the module of another, of its type where none is given."""
    node = graph.call_function(target, args)  # type: ignore[arg-type]
    node.meta = {**like.meta, "type": kind or like.meta["type"]}
    return node
