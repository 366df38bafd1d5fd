"""Normalisations: statistics over some axes, then scale and shift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import OperationError
from . import axes_of, operation
from .traits import M1, Fp32Rule, Rows, Traits, stated_axes

if TYPE_CHECKING:
    from ..graph import Node

_MAX_STEPS = 1 << 40  # beyond it a window is a mistake or an attack


def _spatial_axes(node: Node) -> Sequence[int]:
    return range(2, len(node.extents("x")))


@operation("batch_norm", Traits(accumulate_fp32=True, fp32_rules=(Fp32Rule.NORMS,), engine=M1, gpu_max_rank=4))
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """gamma · (x − mean) / √(variance + epsilon) + beta, each parameter one number for each channel (axis 1)."""
    mean, variance = mean.to(x.dtype), variance.to(x.dtype)
    return functional.batch_norm(x, mean, variance, _like(gamma, x), _like(beta, x), training=False, eps=epsilon)


@operation("instance_norm", Traits(accumulate_fp32=True, reduced_axes=_spatial_axes, engine=M1, gpu_max_rank=4))
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """gamma · (x − mean) / √(variance + epsilon) + beta, statistics over the spatial axes of each channel.

    The variance is the biased one. A group norm of one channel each, it also takes a single spatial element, which
    torch's ``instance_norm`` refuses.
    """
    if x.ndim < 3:
        raise OperationError("x has no spatial axes after batch and channel", received=f"shape {tuple(x.shape)}")
    return torch.group_norm(x, x.shape[1], _like(gamma, x), _like(beta, x), epsilon)


@operation(
    "layer_norm",
    Traits(
        accumulate_fp32=True,
        rows=Rows.BATCH_OF_OTHER_AXES,
        reduced_axes=stated_axes,
        fp32_rules=(Fp32Rule.NORMS,),
        engine=M1,
    ),
)
def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """gamma · (x − mean) / √(variance + epsilon) + beta, statistics over the axes; all of them by default.

    The variance is the biased one. Gamma and beta have the extents of the axes, in x's order.
    """
    chosen = sorted(axes_of(axes, x.ndim))
    if len(set(chosen)) != len(chosen):
        raise OperationError("layer_norm names an axis twice", received=axes)
    gamma, beta = _like(gamma, x), _like(beta, x)
    order = [axis for axis in range(x.ndim) if axis not in chosen] + chosen
    shape = [x.shape[axis] for axis in chosen]
    if order == list(range(x.ndim)):
        return functional.layer_norm(x, shape, gamma, beta, epsilon)
    back = sorted(range(x.ndim), key=order.__getitem__)
    return functional.layer_norm(x.permute(order), shape, gamma, beta, epsilon).permute(back)


@operation("l2_norm", Traits(accumulate_fp32=True, engine=M1))
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x / √(sum of squares + epsilon), the sum over the last three axes."""
    if x.ndim < 3:
        raise OperationError("l2_norm's x has too few axes", expected="at least 3", received=f"shape {tuple(x.shape)}")
    return x * torch.rsqrt((x * x).sum(dim=(-3, -2, -1), keepdim=True) + epsilon)


@operation("local_response_norm", Traits(accumulate_fp32=True, engine=M1))
def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """x / (k + alpha / size · sum of squares)^beta, the sum over a window of channels (axis 1) around each.

    The window starts ⌊size / 2⌋ channels before; there are zeros beyond the ends.
    """
    if size < 1 or x.ndim < 3:
        raise OperationError(
            "local_response_norm cannot take this size or shape",
            expected="a positive size and 3 axes or more",
            received=f"{size}, shape {tuple(x.shape)}",
        )
    before, after = (min(reach, x.shape[1]) for reach in (size // 2, (size - 1) // 2))
    if x.numel() * (before + after + 1) > _MAX_STEPS:
        raise OperationError(
            "a local_response_norm takes too many steps",
            expected="at most 2^40",
            received=f"windows of {size} channels",
        )
    squares = functional.pad((x * x).movedim(1, -1), (before, after))
    sums = squares.unfold(-1, before + after + 1, 1).sum(-1).movedim(-1, 1)
    return x / (k + alpha / size * sums) ** beta


def _like(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)
