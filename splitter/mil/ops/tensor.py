"""Tensors made, joined, sorted and searched."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...errors import OperationError
from .. import bounds
from . import axes_of, check_result_size, operation
from .traits import M1, M2, Mask, Rows, Traits

# -------------------------------------------------------------------------------------------- made


@operation("fill", Traits(engine=M1))
def fill(shape: list[int], value: Tensor | None = None) -> Tensor:
    value = torch.tensor(0.0) if value is None else value
    check_result_size(shape, value.dtype)
    return torch.full(shape, value.item(), dtype=value.dtype)


@operation("fill_like", Traits(engine=M1), opset="CoreML6")
def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    return fill(list(ref_tensor.shape), value)


@operation("range_1d")
def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """start, start + step, … below ``end`` (above it, if the step is negative).

    As many as ⌈(end − start) / step⌉, which is computed in the operands' type, like the declared shape.
    """
    if float(step) == 0.0:
        raise OperationError("a step is zero")
    if start.is_floating_point():
        length = float((end - start) / step)
        if not math.isfinite(length):
            raise OperationError("a range is not finite", received=(float(start), float(end), float(step)))
        count = max(0, math.ceil(length))
    else:
        count = len(range(int(start), int(end), int(step)))
    check_result_size((count,), torch.float64)
    steps = torch.arange(count, dtype=torch.float64 if start.is_floating_point() else torch.int64)
    return (start.to(steps.dtype) + steps * step.to(steps.dtype)).to(start.dtype)


@operation("one_hot")
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """A new axis with ``on_value`` at the index and ``off_value`` elsewhere: everywhere, if it is out of bounds."""
    (axis,) = axes_of([axis], indices.dim() + 1)
    on = torch.tensor(1) if on_value is None else on_value
    off = torch.tensor(0) if off_value is None else off_value
    shape = list(indices.shape)
    shape.insert(axis, one_hot_vector_size)
    check_result_size(shape, torch.promote_types(on.dtype, off.dtype))
    places = torch.arange(one_hot_vector_size).reshape([-1] + [1] * (indices.dim() - axis))
    return torch.where(indices.unsqueeze(axis) == places, on, off)


@operation("shape")
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@operation("identity", Traits(rows=Rows.ELEMENTWISE, moves=True, engine=M1))
def identity(x: Any) -> Any:
    return x


# ------------------------------------------------------------------------------------------- parts


@operation("band_part")
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zero outside the diagonal, ``lower`` diagonals below and ``upper`` above it; a negative number keeps all."""
    if lower >= 0:
        x = torch.triu(x, -lower)
    return torch.tril(x, upper) if upper >= 0 else x


@operation("flatten2d", Traits(engine=M1))
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """The axes before ``axis`` become one, the others the second."""
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operation("select", Traits(broadcasts=True, mask=Mask.APPLIES | Mask.PASSES, engine=M1))
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a`` where ``cond`` holds, else ``b``."""
    result = torch.broadcast_shapes(cond.shape, a.shape, b.shape)
    check_result_size(result, a.dtype)
    return torch.where(cond, a, b)


@operation("pad", Traits(moves=True, engine=M1, bounds=bounds.padded))
def pad(x: Tensor, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pairs of before and after, the last pair for the last axis.

    ``reflect`` mirrors without repeating the edge, by less than the extent; ``replicate`` repeats the edge.
    """
    if len(pad) % 2 or len(pad) > 2 * x.dim() or min(pad, default=0) < 0:
        raise OperationError(
            "the padding is malformed", expected=f"at most {x.dim()} pairs, none negative", received=pad
        )
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    first = x.dim() - len(pairs)
    shape = [extent + sum(pairs[axis - first]) if axis >= first else extent for axis, extent in enumerate(x.shape)]
    check_result_size(shape, x.dtype)
    if mode == "constant":
        return torch.nn.functional.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=constant_val)
    if mode not in ("reflect", "replicate"):
        raise OperationError("unknown mode", expected="constant, reflect or replicate", received=mode)
    for axis, (before, after) in enumerate(pairs, first):
        last = x.shape[axis] - 1
        if max(before, after) == 0:
            continue
        if last < 0 or (mode == "reflect" and max(before, after) > last):
            raise OperationError(f"an extent of {last + 1} cannot be continued so far", received=(before, after))
        places = torch.arange(-before, last + 1 + after)
        x = x.index_select(axis, last - (last - places.abs()).abs() if mode == "reflect" else places.clamp(0, last))
    return x


@operation("tile", Traits(moves=True, engine=M1))
def tile(x: Tensor, reps: list[int]) -> Tensor:
    if len(reps) != x.dim() or min(reps, default=1) < 1:
        raise OperationError("the repeats are malformed", expected=f"{x.dim()} of at least 1", received=reps)
    check_result_size([extent * count for extent, count in zip(x.shape, reps, strict=True)], x.dtype)
    return x.repeat(reps)


# ------------------------------------------------------------------------------------------ joined


@operation("concat", Traits(rows=Rows.OTHER_AXES, moves=True, engine=M1))
def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """Scalars make a vector. Interleaved, the first slices of all values come first, then the second ones, …"""
    if all(value.dim() == 0 for value in values):
        return torch.stack(values)
    if not interleave:
        return torch.cat(values, axis)
    (axis,) = axes_of([axis], values[0].dim())
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@operation("stack", Traits(moves=True, engine=M1))
def stack(values: list[Tensor], axis: int) -> Tensor:
    return torch.stack(values, axis)


@operation("split", Traits(rows=Rows.OTHER_AXES, moves=True, engine=M1))
def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> tuple[Tensor, ...]:
    """Into ``split_sizes``, or into ``num_splits`` equal parts."""
    (axis,) = axes_of([axis], x.dim())
    extent = x.shape[axis]
    if split_sizes is None:
        if num_splits is None or not 1 <= num_splits <= max(extent, 1) or extent % num_splits:
            raise OperationError(f"an extent of {extent} cannot be split into equal parts", received=num_splits)
        split_sizes = [extent // num_splits] * num_splits
    if num_splits not in (None, len(split_sizes)):
        raise OperationError(f"num_splits does not count split_sizes {split_sizes}", received=num_splits)
    return tuple(torch.split(x, split_sizes, axis))


# ------------------------------------------------------------------------------- sorted and searched


@operation("cumsum", Traits(accumulate_fp32=True, engine=M1))
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Exclusive sums leave out the element itself; reverse ones run from the end."""
    (axis,) = axes_of([axis], x.dim())
    x = x.flip(axis) if reverse else x
    sums = torch.cumsum(x, axis)
    if exclusive:
        sums = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return sums.flip(axis) if reverse else sums


@operation("non_zero")
def non_zero(x: Tensor) -> Tensor:
    """One row of indices for each element that is not zero."""
    return torch.nonzero(x)


@operation("argsort", Traits(engine=M2))
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Equal elements keep their order."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


@operation("topk", Traits(engine=M2))
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """The ``k`` largest elements, or smallest; -1 means all. They are always sorted, equal ones in their order."""
    (axis,) = axes_of([axis], x.dim())
    extent = x.shape[axis]
    k = extent if k == -1 else k
    if not 0 <= k <= extent:
        raise OperationError("k is out of range", expected=f"0…{extent}", received=k)
    if output_indices_dtype not in ("int32", "uint16"):
        raise OperationError("indices cannot have this type", expected="int32 or uint16", received=output_indices_dtype)
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    values, indices = values.narrow(axis, 0, k), indices.narrow(axis, 0, k)
    return (values, indices) if return_indices else values


@operation("classify")
def classify(probabilities: Tensor, classes: list[Any]) -> tuple[Any, dict[Any, float]]:
    """The class of the largest probability, and each class's own."""
    labels = [label.item() if isinstance(label, Tensor) else label for label in classes]
    values = probabilities.reshape(-1).tolist()
    if len(labels) != len(values) or not labels:
        raise OperationError(
            "there is not one class for each probability",
            expected=f"{len(values)} classes",
            received=f"{len(labels)} classes",
        )
    return labels[int(probabilities.argmax())], dict(zip(labels, values, strict=True))


# ---------------------------------------------------------------------------- non-maximum suppression


def _suppressed(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, count: int, per_class: bool
) -> Tensor:
    """Indices of the boxes that stay, best first.

    Boxes are ``(n, 4)``: centre x, centre y, width, height. A box's score and class are its best class's. The best
    box stays and puts out those that overlap it by more than the threshold, of its class only if so asked; and so on.
    """
    best, classes = scores.max(-1)
    size = boxes[:, 2:]
    low, high = boxes[:, :2] - size / 2, boxes[:, :2] + size / 2
    area = size.prod(-1)
    order = torch.argsort(best, descending=True, stable=True)
    alive = order[best[order] >= score_threshold]
    kept: list[Tensor] = []
    while len(alive) and len(kept) < count:
        chosen, alive = alive[0], alive[1:]
        kept.append(chosen)
        sides = (torch.minimum(high[alive], high[chosen]) - torch.maximum(low[alive], low[chosen])).clamp(min=0)
        shared = sides.prod(-1)
        overlaps = shared / (area[alive] + area[chosen] - shared) > iou_threshold
        if per_class:
            overlaps &= classes[alive] == classes[chosen]
        alive = alive[~overlaps]
    return torch.stack(kept) if kept else order[:0]


def _suppression(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_boxes: int, per_class: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """On ``(batch, n, 4)`` and ``(batch, n, classes)``; missing boxes are zeros with index -1.

    Where every score is below its threshold the best box stays all the same.
    """
    batch, _, kinds = scores.shape
    if max_boxes < 1 or boxes.shape != (batch, scores.shape[1], 4):
        received = f"{max_boxes} of boxes {tuple(boxes.shape)} with scores {tuple(scores.shape)}"
        raise OperationError("the boxes and scores do not fit together, or none is to be selected", received=received)
    check_result_size((batch, max_boxes, max(kinds, 4)), boxes.dtype)
    chosen_boxes, chosen_scores = boxes.new_zeros(batch, max_boxes, 4), scores.new_zeros(batch, max_boxes, kinds)
    indices = torch.full((batch, max_boxes), -1)
    counts = torch.zeros(batch, dtype=torch.int64)
    for image in range(batch):
        kept = _suppressed(boxes[image], scores[image], iou_threshold, score_threshold, max_boxes, per_class)
        if not len(kept):
            kept = scores[image].max(-1).values.argmax()[None]
        counts[image] = len(kept)
        chosen_boxes[image, : len(kept)] = boxes[image, kept]
        chosen_scores[image, : len(kept)] = scores[image, kept]
        indices[image, : len(kept)] = kept
    return chosen_boxes, chosen_scores, indices, counts


@operation("non_maximum_suppression", Traits(accumulate_fp32=True))
def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, their scores and indices, and how many they are; the rules are `_suppressed`'s and `_suppression`'s."""
    return _suppression(boxes, scores, iou_threshold, score_threshold, max_boxes, per_class_suppression)


@operation("non_maximum_suppression", opset="CoreML7")
def non_maximum_suppression_last(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_boxes: int, per_class_suppression: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The number of boxes is the last axis; there is no threshold for scores, and no count."""
    kept, kept_scores, indices, _ = _suppression(
        boxes.mT, scores.mT, iou_threshold, -math.inf, max_boxes, per_class_suppression
    )
    return kept.mT, kept_scores.mT, indices
