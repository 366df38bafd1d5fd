"""Reductions over axes.

No axes given means all of them; an empty list means none. Sums and products of integers wrap at 32 bits. Means,
L2 norms and logarithms of integers are computed in float64 and become integers as `cast` makes them: towards zero,
at most to the nearest end of their range, and NaN to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import OperationError
from .. import accumulation, bounds, neural_engine
from ..types import BY_NAME
from . import axes_of, operation
from .traits import M1, Engine, Fp32Rule, Rows, Traits, always, stated_axes

_REDUCTION = Traits(rows=Rows.BATCH_OF_OTHER_AXES, engine=M1)
_LOG_SUM = Traits(accumulate_fp32=True, reduced_axes=stated_axes, engine=M1)
_SUM = replace(_LOG_SUM, rows=Rows.BATCH_OF_OTHER_AXES)
_KEPT = (Fp32Rule.REDUCTIONS,)
_SQUARES = replace(_SUM, is_square=always, fp32_rules=_KEPT)
_Reduce: TypeAlias = Callable[[Tensor, list[int], bool], Tensor]


def _over(x: Tensor, axes: list[int] | None, keep_dims: bool, reduce: _Reduce) -> Tensor:
    dims = axes_of(axes, x.dim())
    if len(set(dims)) != len(dims):
        raise OperationError("an axis is reduced twice", received=axes)
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


@operation("reduce_sum", replace(_SUM, half_sums=accumulation.reduce_sum, fp32_rules=_KEPT))
def reduce_sum(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return _over(x, axes, keep_dims, torch.sum)


@operation(
    "reduce_mean",
    replace(_SUM, half_sums=accumulation.reduce_mean, fp32_rules=(Fp32Rule.NORMS, *_KEPT), bounds=bounds.moved),
)
def reduce_mean(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return _like(x, _over(_real(x), axes, keep_dims, torch.mean))


@operation("reduce_max", replace(_REDUCTION, fp32_rules=_KEPT, bounds=bounds.moved))
def reduce_max(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return _over(x, axes, keep_dims, torch.amax)


@operation("reduce_min", replace(_REDUCTION, bounds=bounds.moved))
def reduce_min(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return _over(x, axes, keep_dims, torch.amin)


@operation("reduce_prod", replace(_REDUCTION, accumulate_fp32=True, engine=None))
def reduce_prod(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    def product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        for dim in sorted(dims, reverse=True):
            x = torch.prod(x, dim, keep)
        return x

    return _over(x, axes, keep_dims, product)


@operation("reduce_l1_norm", replace(_SUM, half_sums=accumulation.reduce_l1_norm))
def reduce_l1_norm(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """Σ|x|."""
    return _over(_broad(x).abs(), axes, keep_dims, torch.sum)


@operation("reduce_l2_norm", replace(_SQUARES, half_sums=accumulation.reduce_l2_norm))
def reduce_l2_norm(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """√Σx²."""
    return _like(x, _over(_real(x).square(), axes, keep_dims, torch.sum).sqrt())


@operation("reduce_sum_square", replace(_SQUARES, half_sums=accumulation.reduce_sum_square))
def reduce_sum_square(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """Σx²."""
    return _over(_broad(x).square(), axes, keep_dims, torch.sum)


@operation("reduce_log_sum", _LOG_SUM)
def reduce_log_sum(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """ln Σx."""
    return _like(x, _over(_real(x), axes, keep_dims, torch.sum).log())


@operation(
    "reduce_log_sum_exp",
    replace(_LOG_SUM, limits=(neural_engine.EXPONENTIALS,), on_engine=neural_engine.log_sum_exp),
)
def reduce_log_sum_exp(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """ln Σeˣ, without overflow."""
    return _like(x, _over(_real(x), axes, keep_dims, torch.logsumexp))


@operation("reduce_argmax", Traits(engine=Engine(1, max_axis=2048)))
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """The first of equal ones."""
    _index_type(output_dtype)
    return torch.argmax(x, axis, keep_dims)


@operation("reduce_argmin", Traits(engine=Engine(1, max_axis=2048)))
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """The first of equal ones."""
    _index_type(output_dtype)
    return torch.argmin(x, axis, keep_dims)


def _index_type(name: str) -> None:
    """Refuse a type of index that is not documented; the declared type is what converts."""
    if name.lower() not in ("int32", "uint16"):
        raise OperationError("indices cannot have this type", expected="int32 or uint16", received=name)
