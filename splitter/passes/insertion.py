"""New nodes in a program's graph, their types worked out on tensors without storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx

from ..program import TensorType

Call: TypeAlias = Callable[..., fx.Node]


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
