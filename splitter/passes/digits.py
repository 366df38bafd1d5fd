"""How the axes of a view lie in the axes of the tensor it is a view of, as digits of positions.

A position along an axis of 80 channels is 10 · head + element: two digits, of strides 10 and 1. Views regroup digits,
permutations move them, and neither does anything else. What a chain of them amounts to, and whether two tensors hold
their elements in the same order, is then a comparison of digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import fx

from .rewriting import Call, Operator

_aten = torch.ops.aten
# Give the elements of their operand in the order they have, under another shape.
_REGROUPING = frozenset(
    {_aten.view.default, _aten.reshape.default, _aten.flatten.using_ints, _aten.unflatten.int, _aten.squeeze.default,
     _aten.squeeze.dim, _aten.squeeze.dims, _aten.unsqueeze.default, _aten.clone.default, _aten.contiguous.default,
     _aten.detach.default, _aten.alias.default, _aten.dropout.default}
)  # fmt: skip


class Digit(NamedTuple):
    """One of `extent` values, `stride` positions apart along an axis of the tensor that is viewed."""

    axis: int
    stride: int
    extent: int


Axis: TypeAlias = tuple[Digit, ...]  # of a view: from the digit that counts most to the one that counts least
Layout: TypeAlias = tuple[Axis, ...]


def merged(digits: Iterable[Digit]) -> Axis:
    """The same axis in as few digits as it takes, which is the form that compares."""
    found: list[Digit] = []
    for digit in digits:
        if digit.extent == 1:
            continue
        if found and found[-1].axis == digit.axis and found[-1].stride == digit.stride * digit.extent:
            found[-1] = Digit(digit.axis, digit.stride, found[-1].extent * digit.extent)
        else:
            found.append(digit)
    return tuple(found)


def whole(shape: Sequence[int]) -> Layout:
    """A tensor as a view of itself."""
    return tuple(merged([Digit(axis, 1, extent)]) for axis, extent in enumerate(shape))


def flat(layout: Layout) -> Axis:
    return tuple(digit for axis in layout for digit in axis)


def size(axis: Axis) -> int:
    return math.prod(digit.extent for digit in axis)


def moved(node: Operator, layout: Layout) -> Layout | None:
    """What an operator that moves nothing but axes makes of its operand's layout; None if it does more."""
    shape = node.meta["type"] and node.meta["type"].shape
    if node.target in _REGROUPING:
        return regrouped(layout, shape)
    if node.target is _aten.permute.default:
        return tuple(layout[axis] for axis in node.args[1])
    if node.target in (_aten.transpose.int, _aten.t.default):
        first, second = (*node.args[1:], 0, 1)[:2] if len(layout) > 1 else (0, 0)
        axes = list(range(len(layout)))
        axes[first], axes[second] = axes[second], axes[first]
        return tuple(layout[axis] for axis in axes)
    return None


def regrouped(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The same elements in the same order under another shape; None where a digit would have to be cut unevenly."""
    left = list(reversed(merged(flat(layout))))
    result = []
    for extent in shape:
        taken: list[Digit] = []
        while (missing := extent // size(tuple(taken))) > 1:
            digit = left.pop() if left else Digit(0, 1, 0)
            if digit.extent and missing % digit.extent == 0:
                taken.append(digit)
            elif digit.extent and digit.extent % missing == 0:
                below = digit.extent // missing
                taken.append(Digit(digit.axis, digit.stride * below, missing))
                left.append(Digit(digit.axis, digit.stride, below))
            else:
                return None
        result.append(merged(taken))
    return None if left else tuple(result)


def split(digits: Iterable[Digit], cuts: Iterable[Digit]) -> Axis:
    """Digits cut wherever one of `cuts`, of the same axis, begins or ends."""
    cuts = tuple(cuts)
    result = []
    for axis, stride, extent in digits:
        ends = {end for cut in cuts if cut.axis == axis for end in (cut.stride, cut.stride * cut.extent)}
        within = sorted({end for end in ends if stride < end < stride * extent}, reverse=True)
        above = stride * extent
        for end in (*within, stride):
            result.append(Digit(axis, end, above // end))
            above = end
    return tuple(result)


def arranged(call: Call, node: fx.Node, before: Layout, after: Layout) -> fx.Node:
    """A tensor's elements in another order and shape, by no more operators than it takes.

    Args:
        call: Inserts an operator, see `splitter.passes.rewriting.inserter`.
        node: The tensor.
        before: How its axes lie in some tensor.
        after: How those of the result lie in it; the same digits, cut otherwise maybe.
    """
    cuts = (*flat(before), *flat(after))
    held, wanted = split(flat(before), cuts), split(flat(after), cuts)
    order = [held.index(digit) for digit in wanted]
    runs = [first for first, index in enumerate(order) if not first or index != order[first - 1] + 1]
    blocks = [order[first:last] for first, last in zip(runs, [*runs[1:], len(order)], strict=True)]
    if len(blocks) > 1:  # what stays together moves as one axis
        in_order = sorted(blocks)
        node = _viewed(call, node, [math.prod(held[index].extent for index in block) for block in in_order])
        node = call(_aten.permute.default, node, [in_order.index(block) for block in blocks])
    return _viewed(call, node, [size(axis) for axis in after])


def _viewed(call: Call, node: fx.Node, shape: list[int]) -> fx.Node:
    return node if _shape(node) == shape else call(_aten.reshape.default, node, shape)


def _shape(node: Any) -> list[int]:
    return list(node.meta["type"].shape)
