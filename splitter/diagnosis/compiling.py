"""What Core ML's compiler will take for the Neural Engine, estimated; and rules on what holds it up.

The estimate rests on one published series: the encoder of Whisper large, as blocks of `BLOCK_OPERATIONS` operations,
whole packages, on one Mac. Between the measured points log time is interpolated over log size; below them, and
beyond, it goes on with the slope at the end. Machines differ: the same package took under two minutes on one Mac and
over half an hour on another (whisper.cpp#773), so a tenth and ten times the figure are as likely.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .chips import PITFALLS
from .half import is_half
from .rules import Note, Severity, rule
from .subject import Subject

# Blocks → seconds. The same blocks as packages of one each took 20, 44 and 460 s in the place of the last three.
MEASURED = ((1, 4.9), (4, 39.0), (8, 130.0), (32, 2400.0))
# Counted from the reference implementation that was measured (github.com/apple/ml-ane-transformers), 20 heads:
# 80 in the heads, 9 around them, 9 in each of two norms, 3 in the feed-forward part, 2 residual sums.
BLOCK_OPERATIONS = 112
UNCERTAINTY = 10.0
_BRANCHES = 12
_SLOW_STRIDES = (5, 7)
_LONG, _LONG_STRIDE = 16384, 4


@dataclass(frozen=True)
class CompileTime:
    """An estimate of one package's first load.

    Attributes:
        operations: Those the engine's compiler gets.
        seconds: None if it gets none.
    """

    operations: int
    seconds: float | None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """A tenth and ten times."""
        return None if self.seconds is None else (self.seconds / UNCERTAINTY, self.seconds * UNCERTAINTY)


def compile_time(operations: int) -> CompileTime:
    """Estimate."""
    if operations == 0:
        return CompileTime(0, None)
    x = math.log(operations / BLOCK_OPERATIONS)
    points = [(math.log(blocks), math.log(seconds)) for blocks, seconds in MEASURED]
    after = next((index for index in range(1, len(points) - 1) if x <= points[index][0]), len(points) - 1)
    (x0, y0), (x1, y1) = points[after - 1], points[after]
    return CompileTime(operations, math.exp(y0 + (x - x0) * (y1 - y0) / (x1 - x0)))


@rule(
    "compile-branches",
    Severity.WARNING,
    title="many branches that meet in one operation",
    why="The engine's compiler searches cuts in a time that doubles with every branch: about 9 s for one such place "
    "on an M1, where its budget ends.",
    fix="Join the branches a few at a time.",
    source=PITFALLS,
)
def branches(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        computed = {value.producer for value in node.data if value.producer is not None}
        if len(computed) >= _BRANCHES:
            yield Note(f"reads {len(computed)} other operations' results", node)


@rule(
    "compile-stride",
    Severity.WARNING,
    title="convolution with a stride that was seen to hang the compiler",
    why="With strides of 5 and 7 loading a one-convolution package did not end within five minutes.",
    fix="Use strides of 2, 3 and 4, one after the other.",
    source="https://github.com/apple/coremltools/issues/2473",
)
def slow_stride(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        if node.type == "conv" and (slow := [stride for stride in node.integers("strides") if stride in _SLOW_STRIDES]):
            yield Note(f"stride {slow[0]}", node)


@rule(
    "compile-long-stride",
    Severity.WARNING,
    title="convolution in half precision with a large stride over a very long axis",
    why="Loading a package of 22 channels × 18,001, kernel 12, stride 6, never ended with the Neural Engine. The same "
    "stride over a short axis is sound, and so is fp32.",
    fix="Fold the long axis into two, or use strides of 4 and less, one after the other.",
    source="https://github.com/apple/coremltools/issues/2660",
)
def long_stride(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        if node.type == "conv" and is_half(node):
            for extent, stride in zip(node.extents("x")[2:], node.integers("strides"), strict=False):
                if extent > _LONG and stride > _LONG_STRIDE:
                    yield Note(f"stride {stride} over {extent:,}", node)
