"""Stricter models of half-precision sums, to expose the operations that need more.

Each sum is held in half while it grows, and each product is rounded to half before it is added. Reductions and
matrix products have such a form, each a function of the sum to use and of the operation's own parameters; convolutions
and normalisations are always summed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from .ops import axes_of, check_result_size

Total: TypeAlias = Callable[[Tensor], Tensor]  # sums a half-precision tensor over its last axis
_BLOCK = 32  # products that are added up before they are rounded into the next stage


def staged(x: Tensor) -> Tensor:
    """Sum in a tree: pairs, pairs of pairs, …; the error grows with the logarithm of the count."""
    while x.shape[-1] > 1:
        if x.shape[-1] % 2:
            x = torch.nn.functional.pad(x, (0, 1))
        x = x[..., 0::2] + x[..., 1::2]  # torch adds two halves exactly and rounds the sum
    return x[..., 0] if x.shape[-1] else x.new_zeros(x.shape[:-1])


def sequential(x: Tensor) -> Tensor:
    """Sum one term after the other; from 2048 ones on, nothing is added any more."""
    if not x.shape[-1]:
        return x.new_zeros(x.shape[:-1])
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(np.add.accumulate(x.contiguous().numpy(), axis=-1)[..., -1:])[..., 0]


def _over(total: Total, x: Tensor, axes: list[int] | None, keep_dims: bool) -> tuple[Tensor, int]:
    """The sum over some axes, and how many terms each had."""
    gone = sorted(axes_of(axes, x.ndim))
    kept = [axis for axis in range(x.ndim) if axis not in gone]
    count = int(np.prod([x.shape[axis] for axis in gone]))
    summed = total(x.permute(*kept, *gone).reshape(*[x.shape[axis] for axis in kept], count))
    return summed.reshape([1 if axis in gone else n for axis, n in enumerate(x.shape)]) if keep_dims else summed, count


def reduce_sum(total: Total, x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return _over(total, x, axes, keep_dims)[0]


def reduce_mean(total: Total, x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    summed, count = _over(total, x, axes, keep_dims)
    return summed / count


def reduce_l1_norm(total: Total, x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return _over(total, x.abs(), axes, keep_dims)[0]


def reduce_l2_norm(total: Total, x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return _over(total, x * x, axes, keep_dims)[0].sqrt()


def reduce_sum_square(total: Total, x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return _over(total, x * x, axes, keep_dims)[0]


def matmul(total: Total, x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    left = x.mT if transpose_x and x.ndim > 1 else x
    right = y.mT if transpose_y and y.ndim > 1 else y
    row, column = left.ndim == 1, right.ndim == 1
    product = _product(total, left[None] if row else left, right[:, None] if column else right)
    product = product[..., 0, :] if row else product
    return product[..., 0] if column else product


def linear(total: Total, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = _product(total, x if x.ndim > 1 else x[None], weight.mT)
    product = product if x.ndim > 1 else product[0]
    return product if bias is None else product + bias


def _product(total: Total, x: Tensor, y: Tensor) -> Tensor:
    """(…, m, k) by (…, k, n), a block of k at a time: the sums of the blocks are summed again where stages are."""
    k = x.shape[-1]
    if k != y.shape[-2]:
        raise ValueError(f"{tuple(x.shape)} by {tuple(y.shape)}")
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    check_result_size([*batch, x.shape[-2], y.shape[-1], _BLOCK + -(-k // _BLOCK)], x.dtype)
    sums = x.new_zeros((*batch, x.shape[-2], y.shape[-1], 1))
    for start in range(0, k, _BLOCK):
        products = x[..., :, None, start : start + _BLOCK] * y.mT[..., None, :, start : start + _BLOCK]
        if total is sequential:
            sums = sequential(torch.cat([sums, products], -1))[..., None]
        else:
            sums = torch.cat([sums, total(products)[..., None]], -1)
    return total(sums)
