"""Carry what half precision rounds off a residual stream along with it, as Kahan's summation does.

A transformer adds to one stream again and again: ``x + f(x)``. Each sum is rounded to the stream's few digits, and all
of these errors reach the output. They are known exactly where they arise, and the next sum can take them in.

Before::

    y = x + f(x)
    z = y + g(y)

After, along the whole chain::

    y = x + f(x) ;  r = f(x) − (y − x)     # what y lost: exact for |x| ≥ |f(x)|
    t = g(y) + r
    z = y + t    ;  q = t − (z − y)

In exact arithmetic every remainder is zero. A sum belongs to a chain if one operand comes from a linear map and is
computed from the other, which is the stream; between two sums the stream may be viewed and permuted. Chains of fewer
than `sums` stay as they are. It comes before `tokens-as-images`, which makes convolutions of linear maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..graph.program import Program
from .rewriting import Operator, Pass, Rewriting, inserter

_aten = torch.ops.aten
_MOVES = frozenset(
    {_aten.view.default, _aten.reshape.default, _aten.permute.default, _aten.transpose.int, _aten.unsqueeze.default,
     _aten.squeeze.dim, _aten.squeeze.dims, _aten.clone.default, _aten.contiguous.default, _aten.unflatten.int,
     _aten.flatten.using_ints}
)  # fmt: skip


@dataclass(frozen=True)
class SumsWithRemainders(Pass):
    """The pass; `sums` is the least number of sums in a chain."""

    name = "sums-with-remainders"
    max_abs = 1e-3
    sums: int = 2

    def apply(self, program: Program) -> Rewriting:
        rewritten = program.copy()
        chains = [chain for chain in _chains(rewritten) if len(chain) >= max(self.sums, 2)]
        for chain in chains:
            _carry(rewritten.graph, chain)
        rewritten.graph.eliminate_dead_code()
        return Rewriting(rewritten, sum(map(len, chains)))


@dataclass(frozen=True)
class _Sum:
    """One sum of a chain.

    Attributes:
        stream: The operand that is added to.
        moves: What lies between the sum before and the stream, from there to here.
    """

    node: fx.Node
    stream: fx.Node
    moves: tuple[fx.Node, ...]


def _chains(program: Program) -> list[list[_Sum]]:
    place = {node: index for index, node in enumerate(program.graph.nodes)}
    above: dict[fx.Node, int] = {}  # what a node is computed from, as a set of bits
    chains: dict[fx.Node, list[_Sum]] = {}  # by their last sum
    for node, index in place.items():
        above[node] = 1 << index
        for source in node.all_input_nodes:
            above[node] |= above[source]
        stream = _stream(node, place, above)
        if stream is None:
            continue
        moves: list[fx.Node] = []
        origin = stream
        while origin not in chains and _moves(origin):
            moves = moves if _is_whole(origin) else [origin, *moves]
            origin = origin.all_input_nodes[0]
        before = chains.get(origin, [])
        chains[node] = [*before, _Sum(node, stream, tuple(moves) if before else ())]
    longest = {
        id(one.node): chain for chain in chains.values() for one in chain
    }  # a chain comes before its longer ones
    return list({id(chain[0].node): chain for chain in longest.values()}.values())


def _moves(node: fx.Node) -> bool:
    return node.target in _MOVES or _is_whole(node)


def _is_whole(node: fx.Node) -> bool:
    """Whether a slice takes all, or one tensor alone is joined."""
    return (
        node.target in (_aten.slice.Tensor, _aten.cat.default)
        and len(node.all_input_nodes) == 1
        and node.meta["type"] == node.all_input_nodes[0].meta["type"]
    )


def _stream(node: Operator, place: dict[fx.Node, int], above: dict[fx.Node, int]) -> fx.Node | None:
    """The operand of a residual sum from which the other one is computed."""
    if node.target is not _aten.add.Tensor or node.kwargs or node.meta["type"].dtype != "float32":
        return None
    operands = node.args
    if any(not isinstance(part, fx.Node) or part.meta["type"] != node.meta["type"] for part in operands):
        return None
    for stream, other in (operands, operands[::-1]):
        if _origin(other).target is _aten.linear.default and above[other] >> place[_origin(stream)] & 1:
            return stream
    return None


def _origin(node: fx.Node) -> fx.Node:
    while _moves(node):
        node = node.all_input_nodes[0]
    return node


def _carry(graph: fx.Graph, chain: list[_Sum]) -> None:
    remainder: fx.Node | None = None
    for one in chain:
        node, stream = one.node, one.stream
        with graph.inserting_before(node):
            call = inserter(graph, node.meta["module"])
            added: fx.Node = next(part for part in node.args if part is not stream)  # type: ignore[assignment]
            if remainder is not None:
                for move in one.moves:
                    remainder = call(move.target, remainder, *move.args[1:], **move.kwargs)
                added = call(_aten.add.Tensor, added, remainder)
            node.args = (stream, added)
        with graph.inserting_after(node):
            gained = inserter(graph, node.meta["module"])(_aten.sub.Tensor, node, stream)
        with graph.inserting_after(gained):
            remainder = inserter(graph, node.meta["module"])(_aten.sub.Tensor, added, gained)
