"""Where to cut a stage into pieces so that they hand little to each other.

A cut is a set of operators closed under "is read by": what one piece computes only later pieces read. With
``N`` pieces ``P₁ … P_N`` the traffic is the size of every value that another piece reads than the one that computes
it, each value once, and the balance is ``N · max cost(Pᵢ) / Σ cost``. Of all divisions within a balance, `divide`
finds one of least traffic, by dynamic programming over those closed sets: the traffic that a piece adds depends on
where it begins and ends alone.

Of a graph with more closed sets than can be walked through only some are taken: those that part no operators which
hand each other the largest values, and those that cut the operators in their order. The optimum is then among these,
and no worse than any division in the operators' order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from ..errors import UsageError
from ..graph.program import Program
from ..graph.shapes import TensorType

Cost: TypeAlias = Callable[[fx.Node], int]
_MAX_CUTS = 12_000
# A row for each closed set of blocks, smaller ones first: which blocks it holds.
_Cuts: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Division:
    """A stage in pieces.

    Attributes:
        pieces: Operators of each, in order of execution; what depends on no input is left out.
        costs: Of each piece.
        crossing: Operators whose value another piece reads.
        traffic: Bytes of these values, each once.
    """

    pieces: tuple[tuple[fx.Node, ...], ...]
    costs: tuple[int, ...]
    crossing: tuple[fx.Node, ...]
    traffic: int

    @property
    def balance(self) -> float:
        """The costliest piece against an equal share; 1 is perfect."""
        return len(self.costs) * max(self.costs) / sum(self.costs)


# Operations that Core ML Tools 9.0 makes of one operator, where it is not one; counted in converted packages.
_OPERATIONS: Mapping[object, int] = {
    torch.ops.aten.group_norm.default: 11,
    torch.ops.aten.glu.default: 3,
    torch.ops.aten.unsqueeze.default: 0,  # of a layer scale, and folded
    torch.ops.aten.scaled_dot_product_attention.default: 4,
}


def operations(node: fx.Node) -> int:
    """Cost: operations of an ML Program that an operator becomes, estimated."""
    return 0 if _accesses_tuple(node) else _OPERATIONS.get(node.target, 1)


def operators(node: fx.Node) -> int:
    """Cost: each operator 1. Accesses to the results of one that gives several are none."""
    return 0 if _accesses_tuple(node) else 1


def weight_bytes(node: fx.Node) -> int:
    """Cost: bytes of the weights an operator reads itself."""
    return sum(tensor_bytes(parent) for parent in node.all_input_nodes if parent.op == "get_attr")


def divide(program: Program, pieces: int, *, balance: float = 1.2, cost: Cost = operators) -> Division:
    """Divide a program into pieces of similar cost that hand each other as little as possible.

    Args:
        program: A captured segment.
        pieces: How many, at least 1.
        balance: Most that the costliest piece may have, against an equal share.
        cost: Of an operator.

    Raises:
        UsageError: No division is within the balance; the message says which balance can be had.
    """
    if pieces < 1:
        raise UsageError("too few pieces for a stage", expected="1 or more", received=pieces)
    blocks = _blocks(program, cost)
    total = sum(block.cost for block in blocks)
    cuts = _cuts(blocks)
    if cuts is None:
        cuts = _worthwhile_cuts(blocks, max(total // (4 * pieces), 1))
    costs = np.array([block.cost for block in blocks])
    chosen = _least_traffic(blocks, cuts, costs, pieces, math.floor(balance * total / pieces + 1e-9))
    if chosen is None:
        best = _best_balance(blocks, cuts, costs, pieces)
        raise UsageError(
            f"{program.name!r} has no division into {pieces} pieces within a balance of {balance:g}",
            fix=f"The best balance is {best:.3g}." if best else f"It has {len(blocks)} blocks; ask for fewer pieces.",
        )
    members = [
        tuple(node for block, inside in zip(blocks, after & ~before, strict=True) if inside for node in block.nodes)
        for before, after in itertools.pairwise(chosen)
    ]
    return division(program, members, cost=cost)


def division(program: Program, pieces: Iterable[Iterable[fx.Node]], *, cost: Cost = operators) -> Division:
    """The figures of a division that somebody else made.

    Raises:
        UsageError: An operator is missing or in two pieces, or data would flow back.
    """
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    sets = [tuple(sorted(piece, key=order.__getitem__)) for piece in pieces]
    of = {node: index for index, piece in enumerate(sets) for node in piece}
    alive = live(program)
    if len(of) != sum(map(len, sets)) or of.keys() != set(alive):
        raise UsageError(
            "the pieces do not hold every operator once",
            expected=f"{len(alive)} operators",
            received=f"{len(of)} different of {sum(map(len, sets))}",
        )
    for node in alive:
        if back := [user for user in node.users if user in of and of[user] < of[node]]:
            raise UsageError(f"{back[0].name} lies in an earlier piece than {node.name}, which it reads")
    crossing = tuple(node for node in alive if any(of.get(user, of[node]) != of[node] for user in node.users))
    return Division(
        pieces=tuple(sets),
        costs=tuple(sum(map(cost, piece)) for piece in sets),
        crossing=crossing,
        traffic=sum(map(tensor_bytes, crossing)),
    )


# ------------------------------------------------------------------------------------------ blocks


@dataclass(frozen=True)
class _Block:
    """Operators that stay together.

    Attributes:
        reads: Blocks it depends on.
        values: Of each value another block reads: its size, and who reads it.
    """

    nodes: tuple[fx.Node, ...]
    cost: int
    reads: frozenset[int]
    values: tuple[tuple[int, frozenset[int]], ...]


def live(program: Program) -> list[fx.Node]:
    """Operators of a program that depend on an input, in order."""
    found: dict[fx.Node, None] = dict.fromkeys(program.input_nodes)
    for node in program.operators:
        if any(parent in found for parent in node.all_input_nodes):
            found[node] = None
    return [node for node in found if node.op == "call_function"]


def _accesses_tuple(node: fx.Node) -> bool:
    return any(parent.meta["type"] is None for parent in node.all_input_nodes)


def tensor_bytes(node: fx.Node) -> int:
    """Size of a node's value; 0 for a tuple."""
    kind: TensorType | None = node.meta["type"]
    return 0 if kind is None else math.prod(kind.shape) * getattr(torch, kind.dtype).itemsize


def _blocks(program: Program, cost: Cost) -> list[_Block]:
    """One for each operator, with the accesses to its results."""
    owner: dict[fx.Node, int] = {}
    groups: list[list[fx.Node]] = []
    for node in live(program):
        if _accesses_tuple(node):
            owner[node] = owner[node.all_input_nodes[0]]
            groups[owner[node]].append(node)
        else:
            owner[node] = len(groups)
            groups.append([node])
    return _linked(groups, owner, cost)


def _linked(groups: Sequence[Sequence[fx.Node]], owner: dict[fx.Node, int], cost: Cost) -> list[_Block]:
    blocks = []
    for index, group in enumerate(groups):
        reads = {owner[parent] for node in group for parent in node.all_input_nodes if parent in owner}
        readers = [
            (tensor_bytes(node), frozenset(owner[u] for u in node.users if u in owner) - {index}) for node in group
        ]
        blocks.append(
            _Block(
                nodes=tuple(group),
                cost=sum(map(cost, group)),
                reads=frozenset(reads - {index}),
                values=tuple((size, who) for size, who in readers if who),
            )
        )
    return blocks


def _worthwhile_cuts(blocks: Sequence[_Block], most: int) -> _Cuts:
    """The cuts between blocks merged along the heaviest values, none beyond a cost; and those of the program's order.

    With the latter no division is worse than one that cuts the operators in their order.
    """
    merged, cuts = list(blocks), None
    while cuts is None:
        for _ in range(-(-len(merged) // 10)):  # a tenth at a time: to count the cuts takes longer than to merge
            if smaller := _merged(merged, most):
                merged = smaller
            else:
                most *= 2
        cuts = _cuts(merged)
    home = {node: index for index, block in enumerate(merged) for node in block.nodes}
    spread = cuts[:, [home[block.nodes[0]] for block in blocks]]
    every = np.unique(np.concatenate([spread, np.tri(len(blocks) + 1, len(blocks), -1, dtype=bool)]), axis=0)
    return every[np.argsort(every.sum(axis=1), kind="stable")]


def _merged(blocks: Sequence[_Block], most: int) -> list[_Block]:
    """The blocks with the two that share the heaviest value as one; empty if none may be.

    Two may be one if nothing else lies between them, and if they cost no more than they should.
    """
    below = _descendants(blocks)
    edges = [
        (size, -block.cost - blocks[second].cost, first, second)
        for first, block in enumerate(blocks)
        for size, who in block.values
        for second in who
    ]
    for _, _, first, second in sorted(edges, reverse=True):
        others = {reader for _, who in blocks[first].values for reader in who} - {second}
        if blocks[first].cost + blocks[second].cost > most or any(below[other] >> second & 1 for other in others):
            continue
        rename = [
            index - (index > second) if index != second else first - (first > second) for index in range(len(blocks))
        ]
        return [_renamed(block, rename) for block in _joined(blocks, first, second)]
    return []


def _joined(blocks: Sequence[_Block], first: int, second: int) -> list[_Block]:
    earlier, later = blocks[first], blocks[second]
    both = {first, second}
    values = tuple((size, who - both) for size, who in (*earlier.values, *later.values) if who - both)
    block = _Block(earlier.nodes + later.nodes, earlier.cost + later.cost, (earlier.reads | later.reads) - both, values)
    return [block if index == first else known for index, known in enumerate(blocks) if index != second]


def _renamed(block: _Block, rename: Sequence[int]) -> _Block:
    values = tuple((size, frozenset(rename[index] for index in who)) for size, who in block.values)
    return _Block(block.nodes, block.cost, frozenset(rename[index] for index in block.reads), values)


def _descendants(blocks: Sequence[_Block]) -> list[int]:
    """For each block the bits of those that depend on it."""
    readers: list[set[int]] = [{reader for _, who in block.values for reader in who} for block in blocks]
    for index, block in enumerate(blocks):
        for parent in block.reads:
            readers[parent].add(index)
    found = [-1] * len(blocks)

    def below(start: int) -> None:
        waiting = [start]
        while waiting:
            index = waiting[-1]
            if unknown := [reader for reader in readers[index] if found[reader] < 0]:
                waiting.extend(unknown)
                continue
            bits = 0
            for reader in readers[index]:
                bits |= found[reader] | 1 << reader
            found[index] = bits
            waiting.pop()

    for index in range(len(blocks)):
        if found[index] < 0:
            below(index)
    return found


# -------------------------------------------------------------------------------------------- cuts


def _cuts(blocks: Sequence[_Block]) -> _Cuts | None:
    """Every closed set of blocks, the empty and the full one among them; None if there are too many."""
    needs = [sum(1 << parent for parent in block.reads) for block in blocks]
    readers: list[list[int]] = [[] for _ in blocks]
    for index, block in enumerate(blocks):
        for parent in block.reads:
            readers[parent].append(index)
    seen = {0}
    waiting = [(0, frozenset(index for index, need in enumerate(needs) if not need))]
    while waiting:
        cut, ready = waiting.pop()
        for index in ready:
            larger = cut | 1 << index
            if larger in seen:
                continue
            if len(seen) == _MAX_CUTS:
                return None
            seen.add(larger)
            waiting.append(
                (larger, ready - {index} | {reader for reader in readers[index] if not needs[reader] & ~larger})
            )
    ordered = sorted(seen, key=lambda cut: (cut.bit_count(), cut))
    return np.array([[bool(cut >> index & 1) for index in range(len(blocks))] for cut in ordered])


def _least_traffic(
    blocks: Sequence[_Block], cuts: _Cuts, costs: NDArray[np.int64], pieces: int, most: int
) -> list[NDArray[np.bool_]] | None:
    """The cuts between pieces, the empty and the full one included, that carry least; None if no piece would fit."""
    values = [(size, owner, who) for owner, block in enumerate(blocks) for size, who in block.values]
    sizes = np.array([size for size, _, _ in values], np.float64)
    owners = np.array([owner for _, owner, _ in values], np.int64)
    read = np.zeros((len(values), len(blocks)), bool)
    for row, (_, _, who) in enumerate(values):
        read[row, list(who)] = True
    held = cuts[:, owners]
    leaving = held & ((~cuts).astype(np.float32) @ read.T.astype(np.float32) > 0)

    def price(end: int, starts: NDArray[np.int64]) -> NDArray[np.float64]:
        return (leaving[end] & ~held[starts]) @ sizes

    return _cheapest(cuts, cuts @ costs, pieces, most, price, np.add)[1]


def _best_balance(blocks: Sequence[_Block], cuts: _Cuts, costs: NDArray[np.int64], pieces: int) -> float | None:
    """The least that the costliest piece can have, against an equal share; None if there are too few blocks."""
    reached = cuts @ costs

    def price(end: int, starts: NDArray[np.int64]) -> NDArray[np.float64]:
        return (reached[end] - reached[starts]).astype(np.float64)

    worst, chosen = _cheapest(cuts, reached, pieces, int(reached[-1]), price, np.maximum)
    return None if chosen is None else worst * pieces / int(costs.sum())


def _cheapest(
    cuts: _Cuts,
    reached: NDArray[np.int64],
    pieces: int,
    most: int,
    price: Callable[[int, NDArray[np.int64]], NDArray[np.float64]],
    combine: np.ufunc,
) -> tuple[float, list[NDArray[np.bool_]] | None]:
    """The chain of cuts with the lowest price, its pieces' prices combined; by dynamic programming.

    Args:
        reached: Cost of what each cut holds.
        most: That a piece may cost.
        price: Of the pieces that begin at some cuts and end at one.
    """
    packed = np.packbits(cuts, axis=1)
    count, total = len(cuts), reached[-1]
    best = np.full((pieces + 1, count), np.inf)
    best[0, 0] = 0.0
    origin = np.zeros((pieces + 1, count), np.int64)
    for end in range(1, count):
        # After how many pieces it can be reached, and the rest still be done.
        after = [k for k in range(1, pieces + 1) if total - (pieces - k) * most <= reached[end] <= k * most]
        if end < count - 1:
            after = [k for k in after if k < pieces]
        if not after:
            continue
        starts = np.zeros(1, np.int64)
        if after != [1]:
            starts = np.flatnonzero(reached[:end] >= reached[end] - most)
            starts = starts[~(packed[starts] & ~packed[end]).any(axis=1)]
        if not len(starts) or reached[starts[0]] < reached[end] - most:
            continue
        options = combine(best[[k - 1 for k in after]][:, starts], price(end, starts))
        choice = options.argmin(axis=1)
        best[after, end] = options[np.arange(len(after)), choice]
        origin[after, end] = starts[choice]
    if not np.isfinite(best[pieces, -1]):
        return math.inf, None
    chain, at = [cuts[-1]], count - 1
    for piece in range(pieces, 0, -1):
        at = int(origin[piece, at])
        chain.append(cuts[at])
    return float(best[pieces, -1]), chain[::-1]
