"""Where to cut a stage into segments: the cuts with the least traffic between them, within budgets.

What lies before a cut is an ideal of the graph: a set of nodes that holds, with every node, all that the node depends
on. N segments are N + 1 ideals A₀ = ∅ ⊂ A₁ ⊂ … ⊂ A_N = all, and the best chain is found exactly::

    best(k, B) = min over A ⊂ B with cost(B ∖ A) within budget of best(k − 1, A) + traffic(A, B)
    traffic(A, B) = Σ bytes of the nodes of B ∖ A that something outside B reads

Any cut through the graph is considered, not only those at one point of a linear order: two branches that never meet
are two segments with no traffic at all. Among cuts of equal traffic the one with the smallest largest segment wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from .errors import PlanError
from .program import TensorType

_aten = torch.ops.aten
# Operations that Core ML Tools 9.0 makes of one operator, where it is not one; counted in converted packages.
_OPERATIONS: Mapping[object, int] = {
    _aten.group_norm.default: 11,
    _aten.glu.default: 3,
    _aten.unsqueeze.default: 0,  # of a layer scale: folded
    _aten.scaled_dot_product_attention.default: 4,
    _aten.std.dim: 5,
}
_MOST_IDEALS = 60_000  # HT Demucs's encoder and decoder have about 9,000


@dataclass(frozen=True)
class Budget:
    """What no segment may exceed.

    Attributes:
        share: Of the stage's operations, ``(1 + ε) / N``.
        operations: Of its ML Program, as `operations` estimates them.
        weight_bytes: Of its weights.
    """

    share: float = 1.0
    operations: float = math.inf
    weight_bytes: float = math.inf


@dataclass(frozen=True)
class Cut:
    """A stage cut into segments.

    Attributes:
        segments: Segment of every node, counted from 0.
        bytes: Of all tensors that a later segment of the stage reads, each counted once.
        operations: Of each segment, as `operations` estimates them.
    """

    segments: Mapping[fx.Node, int]
    bytes: int
    operations: tuple[int, ...]


def operations(node: fx.Node) -> int:
    """Estimated operations that a node becomes in an ML Program."""
    return _OPERATIONS.get(node.target, 1)


def tensor_bytes(node: fx.Node, element: int = 4) -> int:
    """Size of a node's value where it crosses a boundary; 0 for a tuple, which cannot."""
    kind: TensorType | None = node.meta["type"]
    return 0 if kind is None else math.prod(kind.shape) * element


def weight_bytes(node: fx.Node, element: int = 4) -> int:
    """Size of the weights that a node reads, directly or through operators that read nothing else."""
    found, frontier, total = {node}, [node], 0
    while frontier:
        for parent in frontier.pop().all_input_nodes:
            if parent not in found and parent.op == "get_attr":
                total += tensor_bytes(parent, element)
            elif parent not in found and _is_constant(parent):
                frontier.append(parent)
            found.add(parent)
    return total


def _is_constant(node: fx.Node) -> bool:
    return node.op == "call_function" and all(one.op == "get_attr" or _is_constant(one) for one in node.all_input_nodes)


def cut(nodes: Sequence[fx.Node], count: int, budget: Budget, element: int = 4) -> Cut:
    """Cut a stage's nodes, in graph order, into ``count`` segments with the least traffic between them.

    Args:
        element: Bytes of one value at a boundary and in the weights.

    Raises:
        PlanError: No cut keeps the budget; the message says what the best there is has. Or the graph is too wide.
    """
    ideals = _Ideals(nodes, element)
    limits = (min(budget.share * ideals.operations[-1], budget.operations), budget.weight_bytes)
    chain = ideals.best_chain(count, limits)
    if chain is None:
        best = ideals.best_chain(count, (math.inf, math.inf), by_size=True)
        sizes = "no cut into so many" if best is None else f"{max(ideals.sizes(best)):.0f} operations at best"
        heaviest = max(weight_bytes(node, element) for node in nodes)
        raise PlanError(
            f"the largest of {count} segments must have no more than {limits[0]:.0f} operations"
            + (f" and {limits[1] / 1e6:g} MB of weights" if limits[1] < math.inf else ""),
            received=f"{sizes}; no operator has more than {heaviest / 1e6:.1f} MB of weights",
            fix="Allow more segments, or a larger budget.",
        )
    return ideals.read(chain)


class _Ideals:
    """Every ideal of a graph, smallest first, and what each one holds.

    Attributes:
        operations: Of each ideal.
        weights: Bytes, of each ideal.
    """

    def __init__(self, nodes: Sequence[fx.Node], element: int) -> None:
        self._nodes = nodes
        place = {node: index for index, node in enumerate(nodes)}
        self._readers = [sum(1 << place[v] for v in node.users if v in place) for node in nodes]
        self._bytes = np.array([tensor_bytes(node, element) for node in nodes], float)
        reads = [sum(1 << place[u] for u in node.all_input_nodes if u in place) for node in nodes]
        tuples = sum(1 << index for index, node in enumerate(nodes) if node.meta["type"] is None)
        # A tuple cannot cross: it stays with what takes it apart.
        self._sets = [one for one in _ideals(reads) if not self._open(one) & tuples]
        self._sets.sort(key=lambda one: (one.bit_count(), one))
        self._member = np.array([[one >> v & 1 for v in range(len(nodes))] for one in self._sets], bool)
        self.operations = self._member @ np.array([operations(node) for node in nodes], float)
        self.weights = self._member @ np.array([weight_bytes(node, element) for node in nodes], float)

    def best_chain(self, count: int, limits: tuple[float, float], *, by_size: bool = False) -> list[int] | None:
        """Indices of the ideals A₀ … A_N of the best chain; None if there is none.

        Args:
            limits: Operations and bytes of weights of a segment.
            by_size: Only the largest segment counts, not traffic.
        """
        last = len(self._sets) - 1
        # By number of segments and ideal: least traffic, then smallest largest segment; and the ideal before.
        traffic = np.full((count + 1, last + 1), np.inf)
        largest = np.full((count + 1, last + 1), np.inf)
        before = np.zeros((count + 1, last + 1), int)
        traffic[0, 0] = largest[0, 0] = 0.0
        for b in range(1, last + 1):
            inside = self._inside(b, limits)
            added = np.zeros(len(inside)) if by_size else self._traffic(b, inside)
            sizes = self.operations[b] - self.operations[inside]
            for k in range(1, count + 1) if b < last else (count,):
                total = traffic[k - 1, inside] + added
                if not len(total) or (least := total.min()) == np.inf:
                    continue
                width = np.where(total == least, np.maximum(largest[k - 1, inside], sizes), np.inf)
                chosen = int(width.argmin())
                traffic[k, b], largest[k, b], before[k, b] = least, width[chosen], inside[chosen]
        if traffic[count, last] == np.inf:
            return None
        chain = [last]
        for k in range(count, 0, -1):
            chain.append(int(before[k, chain[-1]]))
        return chain[::-1]

    def sizes(self, chain: Sequence[int]) -> list[float]:
        return [float(self.operations[b] - self.operations[a]) for a, b in pairwise(chain)]

    def read(self, chain: Sequence[int]) -> Cut:
        segments = {
            node: next(k for k, ideal in enumerate(chain[1:]) if self._sets[ideal] >> index & 1)
            for index, node in enumerate(self._nodes)
        }
        traffic = sum(self._traffic(b, np.array([a]))[0] for a, b in pairwise(chain))
        return Cut(segments, int(traffic), tuple(int(size) for size in self.sizes(chain)))

    def _open(self, ideal: int) -> int:
        """Nodes of an ideal that something outside of it reads."""
        return sum(1 << v for v, readers in enumerate(self._readers) if ideal >> v & 1 and readers & ~ideal)

    def _inside(self, b: int, limits: tuple[float, float]) -> NDArray[np.int64]:
        """Smaller ideals from which one segment leads to this one."""
        near = (self.operations[b] - self.operations[:b] <= limits[0]) & (
            self.weights[b] - self.weights[:b] <= limits[1]
        )
        found = np.flatnonzero(near)
        return found[~self._member[found][:, ~self._member[b]].any(axis=1)]

    def _traffic(self, b: int, inside: NDArray[np.int64]) -> NDArray[np.float64]:
        read_outside = self._open(self._sets[b])
        crossing = [v for v in range(len(self._nodes)) if read_outside >> v & 1]
        return ~self._member[inside][:, crossing] @ self._bytes[crossing]


def _ideals(reads: Sequence[int]) -> list[int]:
    """All ideals of a graph given as a bit mask of predecessors for each node, in topological order."""
    found, frontier = {0}, [0]
    while frontier:
        larger = []
        for ideal in frontier:
            for node, needed in enumerate(reads):
                if not ideal >> node & 1 and needed & ideal == needed and (one := ideal | 1 << node) not in found:
                    found.add(one)
                    larger.append(one)
        if len(found) > _MOST_IDEALS:
            raise PlanError(
                f"a stage that is cut must have no more than {_MOST_IDEALS:,} places to cut it at",
                received=f"more, in {len(reads)} operators with many parallel branches",
                fix="Cut at modules instead: give the plan more stages.",
            )
        frontier = larger
    return list(found)
