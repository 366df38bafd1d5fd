"""Runs of operations that treat the rows of one axis alike, executed some rows at a time.

A hybrid separator folds 512 frequency bands into the batch of its residual branches: a dozen operations read and write
33 MB each, and memory is what they wait for. Attention writes 231 MB of scores only to reduce them again. Some rows
at a time, the same operations stay in the cache and in memory that is at hand. Each operation still rounds its own
result; only the number of rows it sees at once is another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from .ops import OperationRecord
from .ops.activation import softmax
from .ops.linear import matmul
from .ops.parameters import Parameter
from .ops.traits import Rows
from .types import TensorType

_MIN_ROWS = 32
_MIN_BYTES = 24 << 20  # below it there is little to gain
# Of the widest value in a region. The C library asks the system for each block beyond 32 MB, and the system clears
# it: half of the time of a large operation. Small tiles would lose more in calls than the cache gains.
_TILE_BYTES = 16 << 20
_MIN_STEPS = 3

_CONVOLUTIONS = (Rows.CONVOLUTION, Rows.TRANSPOSED_CONVOLUTION)


class Argument(NamedTuple):
    """An argument that is computed while the program runs, and the slots where its values lie."""

    parameter: Parameter
    slots: tuple[int, ...]


class Bound(Protocol):
    """What tiling needs to know of a bound operation."""

    @property
    def record(self) -> OperationRecord: ...

    @property
    def constants(self) -> Mapping[str, Any]: ...

    @property
    def dynamic(self) -> tuple[Argument, ...]: ...

    @property
    def outputs(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Region:
    """Consecutive steps to run tile by tile.

    Attributes:
        first: Index of its first step.
        stop: Index after its last.
        axis: The axis that is cut.
        rows: Its extent.
        tile: Rows at a time.
        sliced: Slots that are taken a tile at a time.
        results: Slots that are needed after it, to be put together.
        pads: Padding of the first operation where it is a convolution that mixes neighbouring rows: its input is
            taken with as many rows more before and after as it pads along the axis. Empty otherwise.
        attention: Slots of queries, keys and values, if the region is their attention and nothing else.
    """

    first: int
    stop: int
    axis: int
    rows: int
    tile: int
    sliced: frozenset[int]
    results: tuple[int, ...]
    pads: tuple[int, ...]
    attention: tuple[int, ...]


def regions(
    steps: Sequence[Bound],
    types: Mapping[int, TensorType],
    needed: Callable[[int, int], bool],
) -> list[Region]:
    """Find the runs worth tiling.

    Args:
        steps: A block's operations, bound.
        types: Declared type of each slot that holds a tensor.
        needed: Whether a slot is still needed after the step of an index.
    """
    found: list[Region] = []
    index = 0
    while index < len(steps):
        region, index = _grown(steps, types, needed, index)
        if region is not None:
            found.append(region)
    return found


def _grown(
    steps: Sequence[Bound],
    types: Mapping[int, TensorType],
    needed: Callable[[int, int], bool],
    first: int,
) -> tuple[Region | None, int]:
    """The longest run that starts here, if it is worth it, and where to look on: a part of it is worth no more."""
    axis, rows = _cut(steps[first], types)
    if rows < _MIN_ROWS:
        return None, first + 1
    sliced: set[int] = set()
    whole: set[int] = set()
    stop = first
    while stop < len(steps):
        taken = _taken(steps[stop], types, axis, rows)
        if taken is None or (stop > first and not taken[0] & sliced):
            break
        if (whole | taken[1]) & (sliced | taken[0]):  # one tensor, by rows here and whole there
            break
        sliced |= taken[0] | set(steps[stop].outputs)
        whole |= taken[1]
        stop += 1
    widest = max((_bytes(types[slot]) for slot in sliced), default=0)
    # A convolution is worth it alone, in smaller tiles: torch takes copies of its input and output in other layouts.
    alone = axis > 0 and steps[first].record.traits.rows in _CONVOLUTIONS
    if (stop - first < _MIN_STEPS and not alone) or widest < _MIN_BYTES:
        return None, max(stop, first + 1)
    made = [slot for step in steps[first:stop] for slot in step.outputs]
    results = tuple(slot for slot in made if needed(slot, stop - 1))
    tile = max(1, min(rows, rows * (_TILE_BYTES // (2 if alone else 1)) // widest))
    attention = _attention(steps[first:stop]) if results == steps[stop - 1].outputs else ()
    pads = tuple(steps[first].constants["pad"]) if _reaches_neighbours(steps[first], axis) else ()
    return Region(first, stop, axis, rows, tile, frozenset(sliced), results, pads, attention), stop


def _attention(steps: Sequence[Bound]) -> tuple[int, ...]:
    """Slots of queries, keys and values of ``softmax(q · kᵀ) · v``; empty if the steps are something else."""
    if [step.record.function for step in steps] != [matmul, softmax, matmul]:
        return ()
    scores, weights, mixed = steps
    fits = (
        bool(scores.constants.get("transpose_y"))
        and not mixed.constants.get("transpose_y")
        and weights.constants.get("axis") == -1
        and _argument(weights, "x") == scores.outputs[0]
        and _argument(mixed, "x") == weights.outputs[0]
    )
    slots = (_argument(scores, "x"), _argument(scores, "y"), _argument(mixed, "y"))
    return tuple(slot for slot in slots if slot is not None) if fits and None not in slots else ()


def _argument(step: Bound, name: str) -> int | None:
    return next((argument.slots[0] for argument in step.dynamic if argument.parameter.name == name), None)


def _cut(step: Bound, types: Mapping[int, TensorType]) -> tuple[int, int]:
    """The axis a run that starts here would be cut along, and its extent.

    It is the rows of a product, and the first axis of anything else, but for a convolution of a single image: there it
    is one along which the kernel is a single point, or along which padding keeps the extent.
    """
    how = step.record.traits.rows
    kinds = [types[argument.slots[0]] for argument in step.dynamic if argument.slots[0] in types]
    if how is Rows.PRODUCT and step.outputs[0] in types:
        kinds = [types[step.outputs[0]]]
    if not kinds or not kinds[0].shape:
        return 0, 0
    shape = kinds[0].shape
    axis = len(shape) - 2 if how is Rows.PRODUCT and len(shape) > 2 else 0
    if how in _CONVOLUTIONS and (shape[0] or 0) < _MIN_ROWS:
        spatial = range(2, len(shape))
        axis = next((spatial_axis for spatial_axis in spatial if _is_pointwise(step, spatial_axis)), 0)
        axis = axis or next((spatial_axis for spatial_axis in spatial if _reaches_neighbours(step, spatial_axis)), 0)
    return axis, shape[axis] or 0


def _taken(step: Bound, types: Mapping[int, TensorType], axis: int, rows: int) -> tuple[set[int], set[int]] | None:
    """The arguments of a step that are taken by rows, and those taken whole; None if it mixes rows, or might."""
    outputs = [types[slot] for slot in step.outputs if _is_fixed(types.get(slot))]
    if (
        not outputs
        or len(outputs) < len(step.outputs)
        or any(kind.shape[axis : axis + 1] != (rows,) for kind in outputs)
    ):
        return None
    arguments = {argument.parameter.name: argument.slots for argument in step.dynamic}
    flat = {slot for slots in arguments.values() for slot in slots}
    if not all(_is_fixed(types.get(slot)) for slot in flat):
        return None
    rank = max(len(kind.shape) for kind in outputs)
    how = step.record.traits.rows
    if how is Rows.ELEMENTWISE:
        return _by_rows_or_broadcast(step, flat, types, axis, rows, rank)
    data = set(arguments.get("x", arguments.get("values", ())))
    if not data or any(types[slot].shape[axis : axis + 1] != (rows,) for slot in data):
        return None
    whole = flat - data
    rank = max(len(types[slot].shape) for slot in data)
    if how is Rows.PRODUCT:
        rowwise = axis == rank - 2 and not step.constants.get("transpose_x") and "transpose_x" not in arguments
        return (data, whole) if rowwise else None
    if whole:
        return None
    match how:
        case Rows.OTHER_AXES:
            rowwise = _leaves(step, axis, rank)
        case Rows.BATCH_OF_OTHER_AXES:
            rowwise = not axis and _leaves(step, axis, rank)
        case Rows.BATCH:
            rowwise = not axis
        case Rows.PERMUTATION:
            rowwise = not axis and step.constants.get("perm", [None])[:1] in ([0], [-rank])
        case Rows.CONVOLUTION | Rows.TRANSPOSED_CONVOLUTION:
            if axis and not _is_pointwise(step, axis) and _reaches_neighbours(step, axis):
                return set(), data
            rowwise = rank >= 3 and (not axis or _is_pointwise(step, axis))
        case _:
            rowwise = False
    return (data, whole) if rowwise else None


def _is_fixed(kind: TensorType | None) -> bool:
    """Whether a value is a tensor of numbers whose extents are known."""
    return kind is not None and None not in kind.shape and kind.dtype.name != "string"


def _by_rows_or_broadcast(
    step: Bound, flat: set[int], types: Mapping[int, TensorType], axis: int, rows: int, rank: int
) -> tuple[set[int], set[int]] | None:
    """Arguments with rows are sliced; the others must broadcast over them."""
    sliced = set()
    for slot in flat:
        shape = types[slot].shape
        if len(shape) == rank and shape[axis] == rows:
            sliced.add(slot)
        elif not _broadcasts(shape, axis, rank):
            return None
    if not sliced or any(
        not _broadcasts(getattr(constant, "shape", ()), axis, rank) for constant in step.constants.values()
    ):
        return None
    return sliced, flat - sliced


def _broadcasts(shape: Sequence[int | None], axis: int, rank: int) -> bool:
    """Whether a tensor is the same for every row of a result; shapes are aligned at their ends."""
    position = axis - (rank - len(shape))
    return position < 0 or shape[position] == 1


def _is_pointwise(step: Bound, axis: int) -> bool:
    """Whether a convolution treats the elements along a spatial axis alike and apart."""
    return _window(step, axis) == (1, 0, 0)


def _reaches_neighbours(step: Bound, axis: int) -> bool:
    """Whether a convolution's kernel reaches along a spatial axis, and padding keeps the axis's extent."""
    window = _window(step, axis) if step.record.traits.rows is Rows.CONVOLUTION else None
    if window is None:
        return False
    reach, before, after = window
    return reach > 1 and min(before, after) >= 0 and before + after == reach - 1


def _window(step: Bound, axis: int) -> tuple[int, int, int] | None:
    """How many elements a kernel spans along a spatial axis, and how many are added before and after.

    None where it is not known, or moves by more than one element.
    """
    weight = step.constants.get("weight")
    if weight is None or not 2 <= axis < weight.ndim or [argument.parameter.name for argument in step.dynamic] != ["x"]:
        return None
    count, spatial = weight.ndim - 2, axis - 2
    strides, dilations = (step.constants.get(parameter) or [1] * count for parameter in ("strides", "dilations"))
    pad_type = step.constants.get("pad_type", "valid").lower()
    pads = (step.constants.get("pad") if pad_type == "custom" else None) or [0, 0] * count
    if (len(strides), len(dilations), len(pads)) != (count, count, 2 * count) or strides[spatial] != 1:
        return None
    reach = (weight.shape[axis] - 1) * dilations[spatial] + 1
    if reach > 1 and pad_type != "custom":
        return None
    return reach, pads[2 * spatial], pads[2 * spatial + 1]


def _leaves(step: Bound, axis: int, rank: int) -> bool:
    """Whether the axes an operation works along are known, and others."""
    axes = step.constants.get("axes", step.constants.get("axis"))
    if axes is None:
        return False
    return all(own % rank != axis for own in (axes if isinstance(axes, list) else [axes]))


def _bytes(kind: TensorType) -> int:
    """Size of a value; halves count as the float32 they are summed in."""
    itemsize = max(kind.dtype.held.itemsize, 4) if kind.dtype.is_float else kind.dtype.held.itemsize
    return math.prod(extent or 1 for extent in kind.shape) * itemsize
