"""New nodes in a program's graph, their types worked out on tensors without storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx

from ..graph.program import Program, TensorType

Call: TypeAlias = Callable[..., fx.Node]
Operator: TypeAlias = Any  # an fx.Node whose arguments have the types that its target takes


def replaced(program: Program, instead: Callable[[Call, Operator], fx.Node | None]) -> tuple[Program, int]:
    """A copy of a program with other nodes in the place of some operators, and of how many.

    Args:
        program: It stays as it is.
        instead: Given an `inserter` before an operator, and the operator, returns the node to read in its place; None,
            with nothing inserted, to leave it. What nothing reads any more goes.
    """
    rewritten = program.copy()
    changes = 0
    for node in rewritten.operators:
        with rewritten.graph.inserting_before(node):
            result = instead(inserter(rewritten.graph, node.meta["module"]), node)
        if result is not None:
            node.replace_all_uses_with(result)
            changes += 1
    rewritten.graph.eliminate_dead_code()
    return rewritten, changes


def inserter(graph: fx.Graph, module: str) -> Call:
    """A function that appends ``target(*args)`` at the graph's insertion point.

    Args:
        graph: The graph to grow; choose the place with its own ``inserting_before``.
        module: Path of the module that the new nodes stand for.

    Returns:
        ``call(target, *args, **kwargs) -> node``, with the node's type and module in its ``meta``.
    """

    def call(target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        node = graph.call_function(target, args, kwargs)
        shown = fx.node.map_arg((args, kwargs), _without_storage)
        node.meta = {"type": TensorType.of(target(*shown[0], **shown[1])), "module": module}
        return node

    return call


def as_images(call: Call, x: fx.Node) -> fx.Node:
    """(a, b, n) as (a, b, 1, n)."""
    before, channels, length = x.meta["type"].shape
    return call(torch.ops.aten.view.default, x, [before, channels, 1, length])


def _without_storage(node: fx.Node) -> torch.Tensor:
    kind: TensorType = node.meta["type"]
    return torch.empty(kind.shape, dtype=getattr(torch, kind.dtype), device="meta")
