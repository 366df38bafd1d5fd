"""Reductions over axes.

No axes given means all of them; an empty list means none. Sums and products of integers wrap at 32 bits. Means,
L2 norms and logarithms of integers are computed in float64 and become integers as `cast` makes them: towards zero,
at most to the nearest end of their range, and NaN to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import OperationError
from ..types import BY_NAME
from . import axes_of, operation

_Reduce: TypeAlias = Callable[[Tensor, list[int], bool], Tensor]


def _over(x: Tensor, axes: list[int] | None, keep_dims: bool, reduce: _Reduce) -> Tensor:
    dims = axes_of(axes, x.dim())
    if len(set(dims)) != len(dims):
        raise OperationError("each axis is reduced once", received=axes)
    if not dims:  # torch takes an empty list for all axes
        return reduce(x.unsqueeze(-1), [-1], False)
    return reduce(x, dims, keep_dims)


def _real(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.float64)


def _like(x: Tensor, result: Tensor) -> Tensor:
    """The result as an integer where x has integers."""
    if x.is_floating_point():
        return result
    return result.nan_to_num().clamp(*BY_NAME["int32"].bounds).to(torch.int32)


def _broad(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.int64)


@operation("reduce_sum", accumulate_fp32=True)
def reduce_sum(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return _over(x, axes, keep_dims, torch.sum)


@operation("reduce_mean", accumulate_fp32=True)
def reduce_mean(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return _like(x, _over(_real(x), axes, keep_dims, torch.mean))


@operation("reduce_max")
def reduce_max(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return _over(x, axes, keep_dims, torch.amax)


@operation("reduce_min")
def reduce_min(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return _over(x, axes, keep_dims, torch.amin)


@operation("reduce_prod", accumulate_fp32=True)
def reduce_prod(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    def product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        for dim in sorted(dims, reverse=True):
            x = torch.prod(x, dim, keep)
        return x

    return _over(x, axes, keep_dims, product)


@operation("reduce_l1_norm", accumulate_fp32=True)
def reduce_l1_norm(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """Σ|x|."""
    return _over(_broad(x).abs(), axes, keep_dims, torch.sum)


@operation("reduce_l2_norm", accumulate_fp32=True)
def reduce_l2_norm(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """√Σx²."""
    return _like(x, _over(_real(x).square(), axes, keep_dims, torch.sum).sqrt())


@operation("reduce_sum_square", accumulate_fp32=True)
def reduce_sum_square(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """Σx²."""
    return _over(_broad(x).square(), axes, keep_dims, torch.sum)


@operation("reduce_log_sum", accumulate_fp32=True)
def reduce_log_sum(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """ln Σx."""
    return _like(x, _over(_real(x), axes, keep_dims, torch.sum).log())


@operation("reduce_log_sum_exp", accumulate_fp32=True)
def reduce_log_sum_exp(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """ln Σeˣ, without overflow."""
    return _like(x, _over(_real(x), axes, keep_dims, torch.logsumexp))


@operation("reduce_argmax")
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """The first of equal ones."""
    _index_type(output_dtype)
    return torch.argmax(x, axis, keep_dims)


@operation("reduce_argmin")
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """The first of equal ones."""
    _index_type(output_dtype)
    return torch.argmin(x, axis, keep_dims)


def _index_type(name: str) -> None:
    """Refuse a type of index that is not documented; the declared type is what converts."""
    if name.lower() not in ("int32", "uint16"):
        raise OperationError("indices are int32 or uint16", received=name)
