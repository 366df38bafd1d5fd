"""Tensors of more than five axes without those of extent 1: Core ML takes five at most.

Before::

    y: (1, 4, 2, f, t, 2) = permute(view(x, (1, 4, 2, 2, f, t)), [0, 1, 2, 4, 5, 3]); z = view(pad(y), (8, …))

After::

    y: (4, 2, f, t, 2) = permute(view(x, (4, 2, 2, f, t)), [0, 1, 3, 4, 2]); z = view(pad(y), (8, …))

What has more than five axes longer than 1, or is read by an operator that no rule is for, stays as it is: Core ML Tools
names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...graph.program import Program
from ...graph.shapes import TensorType
from ...passes.rewriting import Call, inserter

MOST = 5
_aten = torch.ops.aten
_RESHAPES = frozenset({_aten.view.default, _aten.reshape.default})


def narrow(program: Program) -> None:
    """Rewrite a program in place."""
    graph = program.graph
    values: dict[fx.Node, fx.Node] = {}
    for node in program.operators:
        source = next(iter(node.all_input_nodes), None)
        with graph.inserting_before(node):
            if source is None:
                continue
            if _is_wide(node):
                rule = _RULES.get(node.target) if source in values or not _is_wide(source) else None
                result = rule and rule(inserter(graph, node.meta["module"]), node, values.get(source))
                if result is not None:
                    values[node] = result
            elif source in values and node.target in _RESHAPES:
                node.replace_input_with(source, values[source])
    graph.eliminate_dead_code()


def _is_wide(node: fx.Node) -> bool:
    kind: TensorType | None = node.meta["type"]
    return kind is not None and len(kind.shape) > MOST and sum(extent != 1 for extent in kind.shape) <= MOST


def _long(node: fx.Node) -> list[int]:
    """The axes that are not of extent 1."""
    return [axis for axis, extent in enumerate(node.meta["type"].shape) if extent != 1]


def _viewed(call: Call, node: fx.Node, source: fx.Node | None) -> fx.Node:
    shape = node.meta["type"].shape
    return call(_aten.reshape.default, source or node.args[0], [shape[axis] for axis in _long(node)])


def _cloned(call: Call, node: fx.Node, source: fx.Node | None) -> fx.Node | None:
    return source and call(_aten.clone.default, source, **node.kwargs)


def _permuted(call: Call, node: fx.Node, source: fx.Node | None) -> fx.Node | None:
    if source is None:
        return None
    before: fx.Node = node.args[0]  # type: ignore[assignment]
    dims: list[int] = node.args[1]  # type: ignore[assignment]
    place = {axis: kept for kept, axis in enumerate(_long(before))}
    turned = (axis % len(dims) for axis in dims)
    return call(_aten.permute.default, source, [place[axis] for axis in turned if axis in place])


def _padded(call: Call, node: fx.Node, source: fx.Node | None) -> fx.Node | None:
    given: tuple[Any, ...] = node.args
    before, sides, *rest = given
    if node.target is _aten.pad.default:  # whose mode is constant: PyTorch has no other for six axes
        rest = rest[1:]
    if source is None or node.kwargs or _long(before) != _long(node):
        return None
    pairs = {
        len(before.meta["type"].shape) - 1 - place: sides[2 * place : 2 * place + 2] for place in range(len(sides) // 2)
    }
    inside = [side for axis in reversed(_long(before)) for side in pairs.get(axis, (0, 0))]
    return call(_aten.constant_pad_nd.default, source, inside, *(value for value in rest if value is not None))


_RULES: dict[Any, Callable[[Call, fx.Node, fx.Node | None], fx.Node | None]] = {
    _aten.view.default: _viewed,
    _aten.reshape.default: _viewed,
    _aten.clone.default: _cloned,
    _aten.permute.default: _permuted,
    _aten.constant_pad_nd.default: _padded,
    _aten.pad.default: _padded,
}
