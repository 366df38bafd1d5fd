"""Drop ``expand`` where the next operator broadcasts by itself.

Core ML Tools folds an expanded constant into the package at its full size: a frequency
embedding becomes 33 MB instead of 98 kB, and the encoder 45 MB instead of 12.

Before::

    e: (1, 48, 512, 336) = expand(c: (1, 48, 512, 1)) ; m = mul(e, 0.2) ; y = add(x: (1, 48, 512, 336), m)

After::

    m: (1, 48, 512, 1) = mul(c, 0.2) ; y = add(x, m)

The same numbers meet in the same operations, so nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..graph.program import Program
from ..graph.shapes import TensorType
from .rewriting import Operator, Pass, Rewriting, Skip

_aten = torch.ops.aten
_ELEMENTWISE = frozenset({_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor})


@dataclass(frozen=True)
class KeepBroadcastsSmall(Pass):
    name = "keep-broadcasts-small"
    max_abs = 0.0

    def apply(self, program: Program) -> Rewriting:
        rewritten = program.copy()
        changes = 0
        skipped = []
        for node in list(rewritten.graph.find_nodes(op="call_function", target=_aten.expand.default)):
            shrinking = _absorbed(node)
            if shrinking is None:
                skipped.append(Skip.of(node, "not every operator that reads it broadcasts by itself"))
                continue
            small: Operator = node.args[0]
            node.replace_all_uses_with(small)
            rewritten.graph.erase_node(node)
            for user in shrinking:
                user.meta["type"] = TensorType(small.meta["type"].shape, user.meta["type"].dtype)
            changes += 1
        return Rewriting(rewritten, changes, tuple(skipped))


def _absorbed(expand: fx.Node) -> list[fx.Node] | None:
    """The scalar operations that would shrink with the expand; None unless every use ends in a broadcast."""
    shrinking: list[fx.Node] = []
    frontier = [expand]
    while frontier:
        node = frontier.pop()
        for user in node.users:
            if user.target not in _ELEMENTWISE or user.kwargs:
                return None
            others = [arg for arg in user.args if isinstance(arg, fx.Node) and arg is not node]
            if len(user.all_input_nodes) == 1 and not others and not _twice(user, node):
                shrinking.append(user)  # the other operand is a number
                frontier.append(user)
            elif len(others) != 1 or others[0].meta["type"].shape != user.meta["type"].shape or others[0] in shrinking:
                return None
    return shrinking


def _twice(user: fx.Node, node: fx.Node) -> bool:
    return sum(arg is node for arg in user.args) > 1
