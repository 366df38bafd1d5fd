"""Rules: what half precision does to a program, seen from the program alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..mil.graph import Node, Value
from ..mil.ops.traits import Mask
from .rules import Note, Severity, rule
from .subject import Subject

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14
SMALLEST = 2.0**-24
IEEE = "https://en.wikipedia.org/wiki/Half-precision_floating-point_format"
# From here on a running sum of equal terms stands still: 11 significant bits.
_LONG_SUM = 2**11


def is_half(node: Node) -> bool:
    """Whether an operation computes in half precision."""
    return any(value.dtype == "fp16" for value in node.outputs)


@rule(
    "half-long-sum",
    Severity.WARNING,
    title="sum of many values in half precision",
    why="Half has 11 significant bits: summed one by one in it, 2048 equal terms and every further one count the "
    "same. Whether a device sums in something wider is its own affair.",
    fix="Take means in stages, or keep the sum in fp32.",
    source=IEEE,
)
def long_sum(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        if node.traits.reduced_axes is not None and is_half(node) and (extents := node.extents("x")):
            axes = node.traits.reduced_axes(node) or range(len(extents))
            if (count := math.prod(extents[axis] for axis in {axis % len(extents) for axis in axes})) > _LONG_SUM:
                yield Note(f"{count:,} values into one", node)


@rule(
    "half-long-product",
    Severity.INFO,
    title="long sum of products in half precision",
    why="Each result of the convolution or product sums more than 2048 terms. The Neural Engine was measured to hold "
    "them in something wider; what holds them in half loses them.",
    fix="Split the product into shorter ones, or keep it in fp32, where the device is not known.",
    source=IEEE,
)
def long_product(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        count = node.traits.multiplications(node) if node.traits.multiplications is not None and is_half(node) else 0
        if (terms := count // max(1, node.outputs[0].elements if node.outputs else 1)) > _LONG_SUM:
            yield Note(f"{terms:,} products into one", node)


@rule(
    "half-square",
    Severity.WARNING,
    title="square in half precision",
    why="A magnitude above 255.9 squares beyond 65,504, where half ends. Inside a variance the infinity turns the "
    "normalised values to zero.",
    fix="Scale by a power of two before, and by its square after; or give doctor inputs, to see what occurs.",
    source=IEEE,
)
def square(subject: Subject) -> Iterator[Note]:
    if subject.measured:
        return
    for node in subject.graph.nodes:
        if is_half(node) and _is_square(node):
            yield Note("nothing bounds what is squared", node)


@rule(
    "half-cancellation",
    Severity.WARNING,
    title="variance by subtraction",
    why="mean(x²) − mean(x)² subtracts numbers that agree in most digits; in half precision few are left, and the "
    "result may be negative.",
    fix="Subtract the mean first, then square.",
    source="https://en.wikipedia.org/wiki/Algorithms_for_calculating_variance",
)
def cancellation(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        if node.type != "sub" or not is_half(node):
            continue
        of_squares, squared = (_origin(node.value(name)) for name in ("x", "y"))
        if of_squares is None or squared is None or not _is_square(squared) or of_squares.type != "reduce_mean":
            continue
        inner, mean = _origin(of_squares.value("x")), _origin(squared.value("x"))
        if inner is None or mean is None or not _is_square(inner) or mean.type != "reduce_mean":
            continue
        if inner.value("x") is mean.value("x"):
            yield Note("mean of squares minus square of mean", node)


@rule(
    "half-lost-epsilon",
    Severity.ERROR,
    title="epsilon that is zero in half precision",
    why="Below 3e-8 a number rounds to zero in half: nothing is left between a silent signal and a division by zero.",
    fix="Use an epsilon of at least 6.1e-5, or keep the operation in fp32.",
    source=IEEE,
)
def lost_epsilon(subject: Subject) -> Iterator[Note]:
    for node, epsilon in _epsilons(subject):
        if abs(epsilon) <= SMALLEST / 2:
            yield Note(f"epsilon {epsilon:g} is 0 in half precision", node)


@rule(
    "half-small-epsilon",
    Severity.INFO,
    title="epsilon below half precision's normal numbers",
    why="Below 6.1e-5 half keeps fewer bits the smaller a number is, and a device may take it for zero. Only rows "
    "that are nearly silent notice.",
    fix="Use an epsilon of at least 6.1e-5, or scale the signal so that it may be.",
    source=IEEE,
)
def small_epsilon(subject: Subject) -> Iterator[Note]:
    for node, epsilon in _epsilons(subject):
        if SMALLEST / 2 < abs(epsilon) < SMALLEST_NORMAL:
            yield Note(f"epsilon {epsilon:g}, the smallest normal number is {SMALLEST_NORMAL:.2g}", node)


@rule(
    "half-mask",
    Severity.WARNING,
    title="mask that is infinite in half precision",
    why="A row of softmax that is −∞ everywhere has no maximum to subtract: it becomes NaN, and so does what follows.",
    fix="Mask with a finite number, e.g. -1e4.",
    source="https://github.com/apple/coremltools/pull/2669",
)
def mask(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        if Mask.APPLIES in node.traits.mask and is_half(node) and _feeds_softmax(subject, node):
            for value in _fixed_numbers(node):
                if bool((value.constant < -LARGEST).any()):
                    yield Note(f"masks with {float(value.constant.min()):g}", node)


@rule(
    "half-constant",
    Severity.WARNING,
    title="constant beyond half precision",
    why="Half ends at 65,504. The constant is infinite in it, or would be.",
    fix="Clamp it, or keep its operation in fp32.",
    source="https://github.com/apple/coremltools/pull/2669",
)
def large_constant(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        if node.traits.clamps:  # an infinite bound is none
            continue
        for value in _fixed_numbers(node):
            magnitudes = value.constant.abs()
            beyond = magnitudes > LARGEST
            if value.dtype != "fp16":
                beyond &= torch.isfinite(magnitudes)
            if bool(beyond.any()):
                yield Note(f"constant of magnitude {float(magnitudes[beyond].max()):g}", node)
                break


@rule(
    "half-softmax",
    Severity.WARNING,
    title="softmax over a long axis in half precision",
    why="Over more than 16,384 values the mean probability is below half's normal numbers.",
    fix="Attend in blocks, or keep the softmax in fp32.",
    source=IEEE,
)
def long_softmax(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        x = node.value("x")
        if node.type == "softmax" and is_half(node) and x is not None and x.shape:
            extent = x.extents[(node.integers("axis") or [-1])[0]]
            if extent * SMALLEST_NORMAL > 1:
                yield Note(f"over {extent} values", node)


@rule(
    "half-log-softmax",
    Severity.WARNING,
    title="logarithm of a softmax in half precision",
    why="Probabilities below 6e-8 are zero in half, and their logarithm is −∞.",
    fix="Subtract the log of the sum of exponentials instead.",
    source="https://github.com/apple/coremltools/issues/2728",
)
def log_softmax(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        before = _origin(node.value("x"))
        if node.type == "log" and is_half(node) and before is not None and before.type == "softmax":
            epsilon = (node.numbers("epsilon") or [0.0])[0]
            if epsilon < SMALLEST:
                yield Note(f"of {before.name!r}", node)


def _origin(value: Value | None) -> Node | None:
    return value.producer if value is not None else None


def _is_square(node: Node) -> bool:
    return node.traits.is_square is not None and node.traits.is_square(node)


def _epsilons(subject: Subject) -> Iterator[tuple[Node, float]]:
    """Small numbers added before a root, quotient or logarithm, or named epsilon, in half precision."""
    for node in subject.graph.nodes:
        if not is_half(node):
            continue
        parameter = node.record.parameters.get("epsilon")
        if parameter is not None and not parameter.optional:  # which is zero where nobody asked
            yield from ((node, epsilon) for epsilon in node.numbers("epsilon")[:1])
        readers = subject.graph.readers.get(node.outputs[0], ()) if node.type == "add" else ()
        if any(reader.traits.steep_at_zero for reader in readers):
            for value in _fixed_numbers(node):
                if value.elements == 1 and abs(float(value.constant)) < 1e-2:
                    yield node, float(value.constant)


def _fixed_numbers(node: Node) -> Iterator[Value]:
    """Constant floating-point tensors among an operation's arguments."""
    for value in node.arguments:
        if isinstance(value.constant, Tensor) and value.constant.is_floating_point() and value.constant.numel():
            yield value


def _feeds_softmax(subject: Subject, node: Node) -> bool:
    """Whether a softmax reads it, at most through another sum, cast or reshape."""
    waiting = [(node, 0)]
    while waiting:
        source, steps = waiting.pop()
        for value in source.outputs:
            for reader in subject.graph.readers.get(value, ()):
                if Mask.ENDS in reader.traits.mask:
                    return True
                if steps < 4 and Mask.PASSES in reader.traits.mask:
                    waiting.append((reader, steps + 1))
    return False
