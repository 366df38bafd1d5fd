"""Runs of operations that treat the rows of their first axis alike, executed a few rows at a time.

HT Demucs folds 512 frequency bands into the batch of its residual branches: a dozen operations read and write
33 MB each, and memory is what they wait for. Taken 16 rows at a time the same operations stay in the cache. Each
operation still rounds its own result; only the number of rows it sees at once is another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .types import TensorType

_MIN_ROWS = 32
_MIN_BYTES = 4 << 20  # below it a region is in the cache anyway
_TILE_BYTES = 1 << 20  # of the widest value in a region: a share of a core's cache
_MIN_STEPS = 3

# fmt: off
_ELEMENTWISE = frozenset({
    "abs", "acos", "add", "asin", "atan", "atanh", "cast", "ceil", "clamped_relu", "clip", "cos", "cosh", "elu", "erf",
    "exp", "exp2", "floor", "floor_div", "gelu", "identity", "inverse", "leaky_relu", "linear_activation", "log",
    "maximum", "minimum", "mod", "mul", "pow", "real_div", "relu", "relu6", "round", "rsqrt", "scaled_tanh", "sigmoid",
    "sigmoid_hard", "sign", "silu", "sin", "sinh", "softplus", "softsign", "sqrt", "square", "sub", "tan", "tanh",
    "threshold", "thresholded_relu",
})
_REDUCTIONS = frozenset({
    "reduce_max", "reduce_mean", "reduce_min", "reduce_prod", "reduce_sum", "reduce_sum_square", "reduce_l1_norm",
    "reduce_l2_norm",
})
# fmt: on
_ROWWISE_WITH_WEIGHTS = frozenset({"conv", "conv_transpose"})  # data in parameter `x`, rows are the batch
_AXES = frozenset({"softmax", "split", "concat", "layer_norm", "expand_dims", "squeeze"})


class Bound(Protocol):
    """What tiling needs to know of a bound operation."""

    @property
    def constants(self) -> Mapping[str, Any]: ...

    @property
    def dynamic(self) -> tuple[tuple[str, tuple[int, ...], bool, Callable[[Any], Any]], ...]: ...

    @property
    def outputs(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Region:
    """Consecutive steps to run tile by tile.

    Attributes:
        first: Index of its first step.
        stop: Index after its last.
        rows: Extent of the first axis.
        tile: Rows at a time.
        sliced: Slots that are taken a tile at a time.
        results: Slots that are needed after it, to be put together.
    """

    first: int
    stop: int
    rows: int
    tile: int
    sliced: frozenset[int]
    results: tuple[int, ...]


def regions(
    steps: Sequence[Bound],
    names: Sequence[str],
    types: Mapping[int, TensorType],
    needed: Callable[[int, int], bool],
) -> list[Region]:
    """Find the runs worth tiling.

    Args:
        steps: A block's operations, bound.
        names: Their types.
        types: Declared type of each slot that holds a tensor.
        needed: Whether a slot is still needed after the step of an index.
    """
    found: list[Region] = []
    index = 0
    while index < len(steps):
        region, index = _grown(steps, names, types, needed, index)
        if region is not None:
            found.append(region)
    return found


def _grown(
    steps: Sequence[Bound],
    names: Sequence[str],
    types: Mapping[int, TensorType],
    needed: Callable[[int, int], bool],
    first: int,
) -> tuple[Region | None, int]:
    """The longest run that starts here, if it is worth it, and where to look on: a part of it is worth no more."""
    rows = _rows(steps[first], types)
    if rows is None or rows < _MIN_ROWS:
        return None, first + 1
    sliced: set[int] = set()
    stop = first
    while stop < len(steps):
        entering = _sliced_inputs(steps[stop], names[stop], types, rows)
        if entering is None or (stop > first and not entering & sliced):
            break
        sliced |= entering | set(steps[stop].outputs)
        stop += 1
    widest = max((_bytes(types[slot]) for slot in sliced), default=0)
    if stop - first < _MIN_STEPS or widest < _MIN_BYTES:
        return None, max(stop, first + 1)
    made = [slot for step in steps[first:stop] for slot in step.outputs]
    results = tuple(slot for slot in made if needed(slot, stop - 1))
    tile = max(1, min(rows, rows * _TILE_BYTES // widest))
    return Region(first, stop, rows, tile, frozenset(sliced), results), stop


def _rows(step: Bound, types: Mapping[int, TensorType]) -> int | None:
    """Extent of the first axis of a step's first tensor argument."""
    for _, slots, _, _ in step.dynamic:
        if slots[0] in types and types[slots[0]].shape:
            return types[slots[0]].shape[0]
    return None


def _sliced_inputs(step: Bound, name: str, types: Mapping[int, TensorType], rows: int) -> set[int] | None:
    """The arguments of a step that are taken by rows; None if the step mixes rows, or might."""
    outputs = [types.get(slot) for slot in step.outputs]
    if any(kind is None or None in kind.shape or not kind.shape or kind.shape[0] != rows for kind in outputs):
        return None
    arguments = {parameter: slots for parameter, slots, _, _ in step.dynamic}
    flat = [slot for slots in arguments.values() for slot in slots]
    if any(slot not in types or None in types[slot].shape for slot in flat):
        return None
    kinds = [kind for kind in outputs if kind is not None]
    if name in _ELEMENTWISE:
        return _by_rows_or_broadcast(step, flat, types, rows, len(kinds[0].shape))
    data = arguments.get("x", arguments.get("values", ()))
    if not data or set(flat) - set(data) or any(types[slot].shape[:1] != (rows,) for slot in data):
        return None
    rank = len(types[data[0]].shape)
    if name in _ROWWISE_WITH_WEIGHTS:
        return set(data) if rank >= 3 else None
    if name == "reshape":
        return set(data)
    if name == "transpose":
        return set(data) if step.constants.get("perm", [None])[:1] in ([0], [-rank]) else None
    if name in _REDUCTIONS or name in _AXES:
        return set(data) if _leaves_first_axis(step, rank) else None
    return None


def _by_rows_or_broadcast(
    step: Bound, flat: list[int], types: Mapping[int, TensorType], rows: int, rank: int
) -> set[int] | None:
    """Arguments with rows are sliced; the others must broadcast over them."""
    sliced = set()
    for slot in flat:
        shape = types[slot].shape
        if len(shape) == rank and shape[0] == rows:
            sliced.add(slot)
        elif len(shape) == rank and shape[0] != 1:
            return None
    for value in step.constants.values():
        shape = getattr(value, "shape", ())
        if len(shape) == rank and shape[0] != 1:
            return None
    return sliced or None


def _leaves_first_axis(step: Bound, rank: int) -> bool:
    axes = step.constants.get("axes", step.constants.get("axis"))
    if axes is None:
        return False
    return all(axis % rank != 0 for axis in (axes if isinstance(axes, list) else [axes]))


def _bytes(kind: TensorType) -> int:
    return math.prod(extent or 1 for extent in kind.shape) * kind.dtype.held.itemsize
