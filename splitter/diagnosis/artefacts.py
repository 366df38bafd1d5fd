"""Rules: what converters leave behind."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..formatting import size
from ..mil.graph import Graph, Node, Value
from .rules import Note, Severity, rule
from .subject import Subject

_CONVERTER = "https://apple.github.io/coremltools/docs-guides/source/graph-passes-intro.html"
_PEAKS = 8  # fewer rows, or fewer distinct magnitudes, may peak so by chance or by design
_WORTH = 2**16  # bytes; below it a repeated constant is nobody's problem


@rule(
    "artefact-batch-norm",
    Severity.WARNING,
    title="batch_norm that only scales and shifts, and changes the gain",
    why="Mean 0 and variance 1 with an epsilon multiply by 1/√(1+ε): 0.999995 for the usual 1e-5, an error at −106 dB "
    "at every such place. The pass common::fuse_elementwise_to_batchnorm makes these of a product and a sum.",
    fix="Take that pass out of the pipeline.",
    source=_CONVERTER,
)
def gain_of_batch_norm(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        if node.type != "batch_norm":
            continue
        mean, variance = (node.value(name) for name in ("mean", "variance"))
        epsilon = (node.numbers("epsilon") or [1e-5])[0]
        if epsilon and _is(mean, 0.0) and _is(variance, 1.0):
            yield Note(f"epsilon {epsilon:g}, gain {1 / math.sqrt(1 + epsilon):.7f}", node)


@rule(
    "artefact-broadcast",
    Severity.WARNING,
    title="constant that repeats a smaller one",
    why="The converter folded a broadcast into the weights: the file and the memory hold the same numbers many times.",
    fix="Keep the constant small and let the operation broadcast it (the pass keep-broadcasts-small).",
    source=_CONVERTER,
)
def broadcast_constant(subject: Subject) -> Iterator[Note]:
    for value in subject.graph.constants:
        if not isinstance(value.constant, Tensor) or value.bytes < _WORTH or not _broadcastable(subject.graph, value):
            continue
        axes = [axis for axis, extent in enumerate(value.extents) if extent > 1 and _repeats(value.constant, axis)]
        kept = value.bytes // math.prod(value.extents[axis] for axis in axes)
        if value.bytes - kept >= _WORTH:
            shape = "×".join("1" if axis in axes else str(extent) for axis, extent in enumerate(value.extents))
            whole = "×".join(map(str, value.extents))
            yield Note(f"{whole} repeats {shape}: {size(value.bytes)} for {size(kept)}", output=value.name)


@rule(
    "artefact-dead",
    Severity.INFO,
    title="value that no output depends on",
    why="It is stored, and perhaps computed, for nothing.",
    fix="Convert again with the pass common::dead_code_elimination.",
    source=_CONVERTER,
)
def dead_value(subject: Subject) -> Iterator[Note]:
    needed = subject.graph.reaching()
    for node in (*subject.graph.weights, *subject.graph.nodes):
        if node.outputs and not any(value in needed for value in node.outputs):
            yield Note("nothing that is given back depends on it", node)
    for value in subject.graph.constants:
        if not subject.graph.readers.get(value) and value not in subject.graph.outputs:
            yield Note("nothing reads the constant", output=value.name)


@rule(
    "artefact-constant-output",
    Severity.WARNING,
    title="output that depends on no input",
    why="It is the same in every run. A model captured with its data inside looks like this.",
    fix="Look at how the model was captured; a true constant belongs with the caller.",
    source=_CONVERTER,
)
def constant_output(subject: Subject) -> Iterator[Note]:
    moving = set(subject.graph.inputs)
    for node in subject.graph.nodes:
        if node.record.family == "random" or any(value in moving or _unknown(value) for value in node.arguments):
            moving.update(node.outputs)
    for value in subject.graph.outputs:
        if value not in moving:
            yield Note(f"output {value.name!r} is the same in every run", output=value.name)


@rule(
    "artefact-divided-weight",
    Severity.WARNING,
    title="weight of which every row or column peaks at exactly 1",
    why="A palette with a scale for each channel divides the weights by their peaks. Where its groups do not divide "
    "the outputs, Core ML Tools up to 9.0 leaves them divided and uncompressed: the results are wrong by the scales.",
    fix="Convert again, and compress with groups that divide the outputs or without enable_per_channel_scale.",
    source="https://github.com/apple/coremltools/pull/2777",
)
def divided_weight(subject: Subject) -> Iterator[Note]:
    for value in subject.graph.constants:
        weight = value.constant
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.ndim < 2:
            continue
        if not any(reader.traits.multiplications for reader in subject.graph.readers.get(value, ())):
            continue
        magnitudes = weight.abs()
        for axis, what in ((0, "rows"), (1, "columns")):
            peaks = magnitudes.transpose(0, axis).flatten(1).amax(1)
            if len(peaks) >= _PEAKS and bool((peaks == 1).all()) and len(magnitudes.unique()) > _PEAKS:
                yield Note(f"all {len(peaks)} {what} of {value.name!r} peak at 1", output=value.name)
                break


def _unknown(value: Value) -> bool:
    """Whether it is an input of a body."""
    return value.producer is None and not value.fixed


def _is(value: Value | None, number: float) -> bool:
    return value is not None and isinstance(value.constant, Tensor) and bool((value.constant == number).all())


def _repeats(tensor: Tensor, axis: int) -> bool:
    return bool(torch.equal(tensor, tensor.narrow(axis, 0, 1).expand_as(tensor)))


def _broadcastable(graph: Graph, value: Value) -> bool:
    """Whether every operation that reads it would broadcast a smaller one."""
    readers: list[Node] = graph.readers.get(value, [])
    return bool(readers) and all(reader.traits.broadcasts for reader in readers)
