"""What an operation is, for all who do not execute it: declared once, where the operation is registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, Flag, StrEnum, auto
from typing import TYPE_CHECKING, Any

from ..bounds import Bounds, Interval
from ..neural_engine import Limit

if TYPE_CHECKING:
    from ..graph import Node


class Rows(Enum):
    """Along which axes results can be computed some positions at a time, and what that takes of the arguments.

    Attributes:
        ELEMENTWISE: Any axis; each element of a result comes from one of each argument, broadcast.
        OTHER_AXES: Any axis but those it works along (``axes`` or ``axis``).
        BATCH_OF_OTHER_AXES: The first, if it works along others.
        BATCH: The first.
        PERMUTATION: The first, if ``perm`` leaves it there.
        PRODUCT: The last but one, with ``y`` whole.
        CONVOLUTION: The first, and spatial axes along which the kernel is a point or padding keeps the extent.
        TRANSPOSED_CONVOLUTION: The first, and spatial axes along which the kernel is a point.
    """

    ELEMENTWISE = auto()
    OTHER_AXES = auto()
    BATCH_OF_OTHER_AXES = auto()
    BATCH = auto()
    PERMUTATION = auto()
    PRODUCT = auto()
    CONVOLUTION = auto()
    TRANSPOSED_CONVOLUTION = auto()


class Mask(Flag):
    """What an operation does to an attention mask: add a constant to scores, hand it on, turn it into weights."""

    NONE = 0
    APPLIES = auto()
    PASSES = auto()
    ENDS = auto()


class Fp32Rule(StrEnum):
    """A rule of thumb by which people keep operations in float32."""

    SQUARE = "square"
    NORMS = "norms"
    SOFTMAX = "softmax"
    REDUCTIONS = "reductions"
    DIVISIONS = "divisions"


@dataclass(frozen=True)
class Engine:
    """What the Neural Engine's compiler takes of an operation, as published (`splitter.diagnosis.chips`).

    Attributes:
        generation: The first that runs it, counted from the M1.
        max_rank: Of its tensors.
        max_axis: Longest ``axis`` it works along; None if any is taken.
    """

    generation: int
    max_rank: int = 5
    max_axis: int | None = None


M1, M2, M3 = map(Engine, (1, 2, 3))


@dataclass(frozen=True)
class Traits:
    """Facts of one operation; what is not stated does not hold.

    Attributes:
        accumulate_fp32: It sums or multiplies many terms: its half-precision arguments are widened to float32, and the
            result is rounded once.
        half_sums: The same operation with its sums held in half; takes the sum to use, then the parameters.
        rows: How it can be tiled.
        result_shape: The parameter that states the shape of its result.
        moves: It moves values and computes nothing: what is rounded stays so.
        broadcasts: A constant operand may be smaller than the result.
        slices: It takes the part of a tensor that starts at ``begin``.
        multiplications: How many it takes, where engines are built for it: convolutions and matrix products.
        reduced_axes: Axes that are summed over; none means all.
        is_square: Whether it squares, so that half precision ends at a magnitude of 255.9.
        steep_at_zero: The result, or its slope, grows without bound as the argument nears zero.
        clamps: An infinite constant is the absence of a bound.
        mask: What it does to attention masks.
        fp32_rules: By which it is commonly kept in float32.
        blocks: How many bodies it has; None if nobody counts.
        engine: None if the Neural Engine has no path for it.
        gpu_max_rank: Axes that Metal's kernel for it has at most; with more the process aborts. None if any are taken.
        limits: Where the Neural Engine departs from the program, as measured by others.
        on_engine: What it computes instead; takes the operation's function and its arguments, in float32.
        bounds: Between which numbers its results lie, from where its arguments do; None if that says nothing.
    """

    accumulate_fp32: bool = False
    half_sums: Callable[..., Any] | None = None
    rows: Rows | None = None
    result_shape: str = ""
    moves: bool = False
    broadcasts: bool = False
    slices: bool = False
    multiplications: Callable[[Node], int] | None = None
    reduced_axes: Callable[[Node], Sequence[int]] | None = None
    is_square: Callable[[Node], bool] | None = None
    steep_at_zero: bool = False
    clamps: bool = False
    mask: Mask = Mask.NONE
    fp32_rules: tuple[Fp32Rule, ...] = ()
    blocks: int | None = None
    engine: Engine | None = None
    gpu_max_rank: int | None = None
    limits: tuple[Limit, ...] = ()
    on_engine: Callable[[Callable[..., Any], Mapping[str, Any]], Any] | None = None
    bounds: Callable[[Node, Bounds], Interval] | None = None


def stated_axes(node: Node) -> Sequence[int]:
    """The parameter ``axes``."""
    return node.integers("axes")


def always(node: Node) -> bool:
    return True
