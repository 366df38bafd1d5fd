"""How much of a function can run on the Neural Engine, and how often it would change devices."""

from __future__ import annotations

from collections import deque
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ..mil.graph import Graph, Node


@dataclass(frozen=True)
class Placement:
    """Shares, by operations and by the floating-point operations of convolutions and matrix products.

    Attributes:
        operations: Constants and the decompression of weights left out.
        operations_on_engine: Those that no rule keeps off it.
        flops: 2 × multiplications.
        flops_on_engine: The same.
        changes: Times the device changes if everything that can run on one device runs before the other's turn;
            no order has fewer.
        crossing: Values that one device computes and the other reads, in order.
        crossing_bytes: Their size.
    """

    operations: int
    operations_on_engine: int
    flops: int
    flops_on_engine: int
    changes: int
    crossing: tuple[str, ...]
    crossing_bytes: int

    @property
    def operation_share(self) -> float | None:
        return self.operations_on_engine / self.operations if self.operations else None

    @property
    def flop_share(self) -> float | None:
        """None where there is no convolution and no product."""
        return self.flops_on_engine / self.flops if self.flops else None


def placed(graph: Graph, off_engine: AbstractSet[Node]) -> Placement:
    """Count.

    Args:
        off_engine: What the engine does not run.
    """
    on = [node for node in graph.nodes if node not in off_engine]
    crossing = [
        value
        for node in graph.nodes
        for value in node.outputs
        if any((reader in off_engine) != (node in off_engine) for reader in graph.readers.get(value, ()))
    ]
    return Placement(
        operations=len(graph.nodes),
        operations_on_engine=len(on),
        flops=sum(node.flops for node in graph.nodes),
        flops_on_engine=sum(node.flops for node in on),
        changes=min(_changes(graph, off_engine, first) for first in (False, True)),
        crossing=tuple(value.name for value in crossing),
        crossing_bytes=sum(value.bytes for value in crossing),
    )


def _changes(graph: Graph, off_engine: AbstractSet[Node], device: bool) -> int:
    """Device changes of the greedy order that starts on one device (True: off the engine)."""
    known = set(graph.nodes)
    missing = {
        node: len({value.producer for value in node.arguments if value.producer in known}) for node in graph.nodes
    }
    ready: dict[bool, deque[Node]] = {False: deque(), True: deque()}
    for node in graph.nodes:
        if not missing[node]:
            ready[node in off_engine].append(node)
    changes = 0
    used = False
    while any(ready.values()):
        while ready[device]:
            used = True
            node = ready[device].popleft()
            for reader in {reader for value in node.outputs for reader in graph.readers.get(value, ())} & known:
                missing[reader] -= 1
                if not missing[reader]:
                    ready[reader in off_engine].append(reader)
        device = not device
        changes += used and any(ready.values())
    return changes
