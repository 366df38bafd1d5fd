"""Between which numbers the values of a program lie, whatever it is given: intervals, handed on from node to node.

An operation's record names the function that does this for it; where there is none its results are unbounded.
Rounding is left out of account.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from .graph import Graph, Node, Value

Interval: TypeAlias = tuple[float, float]
Bounds: TypeAlias = "Callable[[Value | None], Interval]"

OPEN: Interval = (-math.inf, math.inf)


def bounds_of(graph: Graph) -> Bounds:
    """What tells the interval of each value."""
    known: dict[Value, Interval] = {}

    def bounds(value: Value | None) -> Interval:
        if value is None:
            return OPEN
        return _of_constant(value.constant) if isinstance(value.constant, Tensor) else known.get(value, OPEN)

    for node in graph.nodes:
        interval = _interval(node, bounds)
        known |= {value: interval for value in node.outputs if interval != OPEN}
    return bounds


def _of_constant(constant: Tensor) -> Interval:
    if not constant.numel() or not constant.is_floating_point():
        return OPEN
    return float(constant.min()), float(constant.max())


def _interval(node: Node, bounds: Bounds) -> Interval:
    if node.traits.bounds is not None:
        return node.traits.bounds(node, bounds)
    return moved(node, bounds) if node.traits.moves else OPEN


def between(low: float, high: float) -> Callable[[Node, Bounds], Interval]:
    """The same interval whatever the operation is given."""
    return lambda node, bounds: (low, high)


def moved(node: Node, bounds: Bounds) -> Interval:
    """What only moves values has those of all that it moves, and of nothing else."""
    intervals = [bounds(value) for value in node.arguments if value.type is not None and value.type.dtype.is_float]
    return min((low for low, _ in intervals), default=-math.inf), max((high for _, high in intervals), default=math.inf)


def padded(node: Node, bounds: Bounds) -> Interval:
    low, high = moved(node, bounds)
    return min(low, 0.0), max(high, 0.0)


def total(node: Node, bounds: Bounds) -> Interval:
    (a, b), (c, d) = bounds(node.value("x")), bounds(node.value("y"))
    return a + c, b + d


def difference(node: Node, bounds: Bounds) -> Interval:
    x, y = node.value("x"), node.value("y")
    if y is not None and y.producer is not None and y.producer.type == "reduce_max" and y.producer.value("x") is x:
        return -math.inf, 0.0
    (a, b), (c, d) = bounds(x), bounds(y)
    return a - d, b - c


def product(node: Node, bounds: Bounds) -> Interval:
    x, y = node.value("x"), node.value("y")
    corners = [_times(a, b) for a in bounds(x) for b in bounds(y)]
    least = 0.0 if x is y else -math.inf
    return max(least, min(corners)), max(corners)


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def clipped(node: Node, bounds: Bounds) -> Interval:
    (low, high), (least, most) = bounds(node.value("x")), (node.numbers("alpha"), node.numbers("beta"))
    return max([low, *least]), min([high, *most])


def larger(node: Node, bounds: Bounds) -> Interval:
    (a, b), (c, d) = bounds(node.value("x")), bounds(node.value("y"))
    return max(a, c), max(b, d)


def smaller(node: Node, bounds: Bounds) -> Interval:
    (a, b), (c, d) = bounds(node.value("x")), bounds(node.value("y"))
    return min(a, c), min(b, d)


def same(node: Node, bounds: Bounds) -> Interval:
    return bounds(node.value("x"))


def weighted(node: Node, bounds: Bounds) -> Interval:
    """Weights of a linear layer or a convolution, outputs along their first axis, padding with zeros counted in."""
    weight, bias = node.value("weight"), node.value("bias")
    if weight is None or not isinstance(weight.constant, Tensor) or not weight.constant.is_floating_point():
        return OPEN
    low, high = bounds(node.value("x"))
    low, high = min(low, 0.0), max(high, 0.0)
    flat = weight.constant.float().flatten(1)
    most = max(_times(up, high) + _times(down, low) for up, down in _signed(flat))
    least = min(_times(up, low) + _times(down, high) for up, down in _signed(flat))
    added = bounds(bias) if bias is not None else (0.0, 0.0)
    return least + added[0], most + added[1]


def _signed(flat: Tensor) -> list[tuple[float, float]]:
    """Sums of each row's positive and of its negative weights."""
    pairs: list[tuple[float, float]] = list(
        zip(flat.clamp(min=0).sum(1).tolist(), flat.clamp(max=0).sum(1).tolist(), strict=True)
    )
    return pairs
