"""Rules: what the Neural Engine computes otherwise than the program says, as its operations' records have it.

What the given inputs reach is measured in float32, what nothing bounds is told where there are none.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..mil.bounds import bounds_of
from ..mil.neural_engine import CLIFFS, NUMERICS, SOFTPLUS
from .half import is_half
from .rules import Note, Severity, rule
from .subject import Subject


@rule(
    "limit-sum",
    Severity.ERROR,
    title="sum of products beyond 32,752",
    why="The Neural Engine's products and convolutions end at 2¹⁵, half of where half precision does: what is larger "
    "is infinite, silently.",
    fix="Scale one operand by a power of two before, and back after it.",
    source=CLIFFS,
)
def sums(subject: Subject) -> Iterator[Note]:
    yield from _reached(subject, sums=True, in_parts=False)


@rule(
    "limit-partial-sum",
    Severity.WARNING,
    title="sum of products whose parts go beyond 32,752",
    why="33 × 1000 − 33 × 1000 is 0 and still becomes infinite. The order in which the Neural Engine adds is unknown: "
    "the worst one is assumed.",
    fix="Scale one operand by a power of two before, and back after it.",
    source=NUMERICS,
)
def partial_sums(subject: Subject) -> Iterator[Note]:
    yield from _reached(subject, sums=True, in_parts=True)


@rule(
    "limit-input",
    Severity.ERROR,
    title="values that the Neural Engine takes to something else",
    why="Beyond its limit the operation gives zero, infinity or an odd constant, silently.",
    fix="Write the operation by others that stay within their limits, e.g. softplus as max(x, 0) + log(1 + exp(−|x|)).",
    source=SOFTPLUS,
)
def inputs(subject: Subject) -> Iterator[Note]:
    yield from _reached(subject, sums=False, in_parts=False)


@rule(
    "limit-nan",
    Severity.ERROR,
    title="value that is NaN, which the Neural Engine turns into a number",
    why="NaN becomes +∞ where it enters, and what gives NaN gives 0: nothing shows that something went wrong.",
    fix="Look for what made it: 0/0, ∞ − ∞, the root of a negative number, or a NaN among the weights.",
    source=NUMERICS,
)
def nan(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        if not is_half(node):
            continue
        if any(_holds_nan(value.constant) for value in node.arguments):
            yield Note("reads NaN among its constants", node)
        elif count := subject.nans.get(node):
            yield Note(f"gives {count:,} NaN of finite numbers", node)


@rule(
    "limit-unbounded",
    Severity.WARNING,
    title="operation with a limit on the Neural Engine, of values that nothing bounds",
    why="Beyond its limit it gives zero, infinity or an odd constant, silently.",
    fix="Give doctor inputs, to see what occurs; or bound the values.",
    source=NUMERICS,
)
def unbounded(subject: Subject) -> Iterator[Note]:
    yield from _unbounded(subject, sums=False)


@rule(
    "limit-unbounded-sum",
    Severity.INFO,
    title="sum of products on the Neural Engine that nothing bounds",
    why="Beyond 32,752 it is infinite, silently.",
    fix="Give doctor inputs, to see what occurs.",
    source=CLIFFS,
)
def unbounded_sums(subject: Subject) -> Iterator[Note]:
    yield from _unbounded(subject, sums=True)


def _reached(subject: Subject, *, sums: bool, in_parts: bool) -> Iterator[Note]:
    for node, departures in subject.departures.items():
        for departure in departures:
            if (departure.limit.partial is not None) == sums and departure.in_parts == in_parts:
                yield Note(departure.what, node)


def _unbounded(subject: Subject, *, sums: bool) -> Iterator[Note]:
    if subject.measured:
        return
    bounds = bounds_of(subject.graph)
    for node in subject.graph.nodes:
        for limit in node.traits.limits if is_half(node) else ():
            if (limit.partial is not None) == sums and not limit.kept(node, bounds):
                yield Note(f"{limit.of} {'least' if limit.least else 'most'} {limit.bound:.6g}", node)


def _holds_nan(constant: object) -> bool:
    return isinstance(constant, Tensor) and constant.is_floating_point() and bool(torch.isnan(constant).any())
