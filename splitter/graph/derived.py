"""Weights that operators make of weights alone, where no saved program may use the operator: the norms of
parametrizations. They are computed once, by PyTorch's own kernel.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx


def of_weights(
    node: fx.Node, copies: Mapping[fx.Node, fx.Node], weights: Mapping[str, Tensor], tuples: Mapping[fx.Node, Any]
) -> Any:
    """What an operator gives, a tensor or a tuple of them; None where it depends on an input.

    Args:
        node: Of an exported graph.
        copies: What is in its place in the program, of every node before.
        weights: By name, as the program's nodes have them.
        tuples: What this has given of nodes before, where that was no tensor.
    """
    if node.target is operator.getitem:
        source, place = node.args
        return tuples[source][place]  # type: ignore[index]
    if any(source not in copies for source in node.all_input_nodes):
        return None
    values: dict[fx.Node, Any] = {}
    pending = [copies[source] for source in node.all_input_nodes]
    while pending:
        copy = pending[-1]
        if copy.op == "placeholder":
            return None
        if missing := [source for source in copy.all_input_nodes if source not in values]:
            pending += missing
            continue
        pending.pop()
        values[copy] = weights[str(copy.target)] if copy.op == "get_attr" else _called(copy, values)
    return _called(node, {source: values[copies[source]] for source in node.all_input_nodes})


def _called(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def name(node: fx.Node, copies: Mapping[fx.Node, fx.Node], weights: Mapping[str, Tensor]) -> str:
    """``conv.weight`` for what is made of ``conv.weight_g`` and ``conv.weight_v``, or of a parametrization of it."""
    sources = [str(copies[source].target) for source in node.all_input_nodes if source in copies]
    path = re.sub(r"(^|\.)parametrizations\.|\.original\d*$|_[gv]$", r"\1", sources[0] if sources else node.name)
    candidates = (path if count == 1 else f"{path}_{count}" for count in range(1, len(weights) + 2))
    return next(candidate for candidate in candidates if candidate not in weights)
