"""Pooling over windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import OperationError
from . import check_result_size, operation
from .convolution import each_positive, for_torch, paddings, spatial_rank
from .traits import M1, Traits

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_MAX_STEPS = 1 << 40  # beyond it a window is a mistake or an attack


@operation("max_pool", Traits(engine=M1))
def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The greatest of each window; padding is never it."""
    windows = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode=ceil_mode)
    windows.counts(x, padding=False)
    return _MAX[len(kernel_sizes)](windows.padded(x, -math.inf), kernel_sizes, windows.strides)


@operation("avg_pool", Traits(accumulate_fp32=True, engine=M1))
def avg_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """The mean of each window. Padding counts as zeros unless it is excluded; what a last window of ``ceil_mode``
    has beyond the padding never counts, as in torch.
    """
    windows = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode=ceil_mode)
    mean = _AVERAGE[len(kernel_sizes)](windows.padded(x, 0), kernel_sizes, windows.strides)
    if any(windows.overhangs) or (exclude_padding_from_average and any(map(any, windows.pads))):
        mean *= math.prod(kernel_sizes) / windows.counts(x, padding=not exclude_padding_from_average)
    return mean


@operation("l2_pool", Traits(accumulate_fp32=True, engine=M1))
def l2_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """√(sum of squares) of each window."""
    windows = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode=ceil_mode)
    mean = _AVERAGE[len(kernel_sizes)](windows.padded(x * x, 0), kernel_sizes, windows.strides)
    return mean.mul_(math.prod(kernel_sizes)).sqrt_()


@dataclass(frozen=True)
class _Windows:
    """Where the windows lie, for each spatial axis.

    Attributes:
        sizes: Extents of a window.
        strides: Distances between them.
        pads: Elements before and after the input.
        overhangs: Elements the last window needs beyond the padding.
        results: How many windows there are.
    """

    sizes: list[int]
    strides: list[int]
    pads: list[tuple[int, int]]
    overhangs: list[int]
    results: list[int]

    def padded(self, x: Tensor, value: float) -> Tensor:
        pads = [(before, after + over) for (before, after), over in zip(self.pads, self.overhangs, strict=True)]
        return functional.pad(x, for_torch(pads), value=value) if any(map(any, pads)) else x

    def counts(self, x: Tensor, *, padding: bool) -> Tensor:
        """How many elements each window has, with or without padding.

        Raises:
            OperationError: A window has none.
        """
        total = torch.ones((), dtype=torch.float64)
        for axis, size in enumerate(self.sizes):
            before, after = self.pads[axis]
            first, end = (-before, x.shape[axis + 2] + after) if padding else (0, x.shape[axis + 2])
            starts = torch.arange(self.results[axis]) * self.strides[axis] - before
            counts = (starts + size).clamp(max=end) - starts.clamp(min=first)
            if bool((counts < 1).any()):
                raise OperationError("a window of a pooling may hold no element", received=f"padding {self.pads}")
            total = total[..., None] * counts
        return total.to(x.dtype)


def _windows(
    x: Tensor, sizes: list[int], strides: list[int] | None, pad_type: str, pad: list[int] | None, *, ceil_mode: bool
) -> _Windows:
    """Place the windows.

    An axis has ⌊(padded − size) / stride⌋ + 1 of them. With ``ceil_mode`` it is ⌈ ⌉, less one if that would start
    beyond input and padding before it, and there is padding.
    """
    rank = spatial_rank(x)
    sizes, strides = each_positive("kernel_sizes", sizes, rank), each_positive("strides", strides, rank)
    extents, pad_type = x.shape[2:], pad_type.lower()  # Core ML Tools saves it in any case
    pads = paddings(pad_type, pad, extents, sizes, strides)
    if ceil_mode and (pad_type.startswith("same") or any(before != after for before, after in pads)):
        raise OperationError(
            "ceil_mode cannot take this padding",
            expected="symmetric padding, valid or custom",
            received=f"{pad_type} {pads}",
        )
    results, overhangs = [], []
    for extent, size, stride, (before, after) in zip(extents, sizes, strides, pads, strict=True):
        padded = extent + before + after
        count = (padded - size + (stride - 1 if ceil_mode else 0)) // stride + 1
        if ceil_mode and before and (count - 1) * stride >= extent + before:
            count -= 1
        if padded < size or count < 1:
            raise OperationError("a window does not fit into the padded input", received=f"{size} into {padded}")
        results.append(count)
        overhangs.append(max((count - 1) * stride + size - padded, 0))
    _check_cost(x, sizes, pads, overhangs, results)
    return _Windows(sizes, strides, pads, overhangs, results)


def _check_cost(
    x: Tensor, sizes: Sequence[int], pads: Sequence[tuple[int, int]], overhangs: Sequence[int], results: Sequence[int]
) -> None:
    padded = [extent + sum(pair) + over for extent, pair, over in zip(x.shape[2:], pads, overhangs, strict=True)]
    check_result_size([*x.shape[:2], *padded], x.dtype)
    if math.prod([*x.shape[:2], *results, *sizes]) > _MAX_STEPS:
        raise OperationError(
            "a pooling takes too many steps", expected="fewer than 2^40", received=f"{results} windows of {sizes}"
        )
