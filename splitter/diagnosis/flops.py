"""Floating-point operations of what engines are built for: convolutions and matrix products.

A multiplication and an addition count as two. Everything else counts as none: it is bound by memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .graph import Node, Value


def flops(node: Node) -> int:
    """Of one operation; axes known only when it runs count as 1."""
    count = _COUNTS.get(node.type)
    return 0 if count is None else 2 * count(node)


def _extents(value: Value | None) -> tuple[int, ...]:
    return () if value is None else value.extents


def _convolution(node: Node) -> int:
    """Outputs × kernel × input channels of a group; the weight is ``[out, in / groups, *kernel]``."""
    return node.outputs[0].elements * math.prod(_extents(node.value("weight"))[1:])


def _transposed(node: Node) -> int:
    """Inputs × kernel × output channels of a group; the weight is ``[in, out / groups, *kernel]``."""
    return math.prod(_extents(node.value("x"))) * math.prod(_extents(node.value("weight"))[1:])


def _linear(node: Node) -> int:
    return node.outputs[0].elements * math.prod(_extents(node.value("x"))[-1:])


def _product(node: Node) -> int:
    x = _extents(node.value("x"))
    across = -2 if any(node.numbers("transpose_x")) else -1
    return node.outputs[0].elements * (x[across] if len(x) >= -across else x[0] if x else 1)


def _attention(node: Node) -> int:
    """Queries × keys × (width of the queries + width of the values), for each head."""
    query, key, value = (_extents(node.value(name)) for name in ("query", "key", "value"))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _einsum(node: Node) -> int:
    """Product of all letters' extents."""
    terms = node.text("equation").replace(" ", "").split("->")[0].split(",")
    letters: dict[str, int] = {}
    for term, value in zip(terms, node.inputs["values"], strict=True):
        letters.update(zip(term, value.extents, strict=False))
    return math.prod(letters.values())


_COUNTS: dict[str, Callable[[Node], int]] = {
    "conv": _convolution,
    "conv_quantized": _convolution,
    "conv_transpose": _transposed,
    "linear": _linear,
    "linear_activation": _linear,
    "matmul": _product,
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
}
