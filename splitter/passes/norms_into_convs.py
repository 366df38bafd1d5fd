"""Normalise a pointwise convolution's weights instead of its outputs.

What such a convolution's outputs have for mean and variance follows from the mean and covariance of its inputs. Where
those are few channels, that takes almost nothing, and the many outputs are written once and never read for it.
Residual branches of hybrid separators go from 6 channels to 96.

Before, over all channels of one batch row::

    y: (b, o, n) = group_norm(conv1d(x: (b, i, n), w: (o, i, 1), c), 1, g, β, eps)        # i < o

After::

    m: (b, i, 1) = mean(x, [2]) ; C: (b, i, i) = (x − m)(x − m)ᵀ / n
    e: (b, o, 1) = w m + c                                                                # the means of channels
    σ²: (b, 1, 1) = mean(diag(w C wᵀ)) + mean((e − mean(e))²)
    y = (w g / √(σ² + eps)) x + g (c − mean(e)) / √(σ² + eps) + β

In exact arithmetic it is the same. In w C wᵀ large squares cancel where outputs are differences of like inputs, so C
and what is read of it are float64, which costs next to nothing. Core ML has no float64: the pass is for processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .rewriting import Call, Operator, OperatorPass

_aten = torch.ops.aten


@dataclass(frozen=True)
class NormsIntoConvs(OperatorPass):
    name = "norms-into-convs"
    max_abs = 1e-3

    def rewrite(self, call: Call, node: Operator) -> fx.Node | str | None:
        given: tuple[Any, ...] = node.args
        if node.target is not _aten.group_norm.default:
            return None
        if node.kwargs or not _follows_pointwise(*given):
            return "what it normalises is no pointwise convolution to more channels that only it reads"
        return _normalised(call, *given[0].args[:3], *given[2:5])


def _follows_pointwise(
    x: fx.Node, groups: int, weight: fx.Node | None = None, bias: fx.Node | None = None, *rest: object
) -> bool:
    """Whether a norm over all channels is all that reads a pointwise convolution, and that widens."""
    if groups != 1 or weight is None or bias is None:
        return False
    convolution: tuple[Any, ...] = x.args
    return x.target is _aten.conv1d.default and len(x.users) == 1 and not x.kwargs and _widens(*convolution)


def _widens(
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> bool:
    outputs, inputs, taps = weight.meta["type"].shape
    plain = [*stride] == [1] and [*padding] == [0] and groups == 1
    batched = len(x.meta["type"].shape) == 3
    return bias is not None and taps == 1 and inputs < outputs and plain and batched


def _normalised(
    call: Call, x: fx.Node, weight: fx.Node, bias: fx.Node, gain: fx.Node, offset: fx.Node, eps: float = 1e-5
) -> fx.Node:
    batch, inputs, length = x.meta["type"].shape
    outputs = weight.meta["type"].shape[0]
    rows = call(_aten.expand.default, call(_aten.view.default, weight, [1, outputs, inputs]), [batch, outputs, inputs])
    bias, gain, offset = (call(_aten.view.default, vector, [outputs, 1]) for vector in (bias, gain, offset))
    mean = call(_aten.mean.dim, x, [2], True)
    centred = call(_aten.sub.Tensor, x, mean)
    precise, gains = (call(_aten._to_copy.default, matrix, dtype=torch.float64) for matrix in (centred, rows))
    products = call(_aten.bmm.default, precise, call(_aten.transpose.int, precise, 1, 2))
    covariance = call(_aten.mul.Tensor, products, 1 / length)
    within = call(_aten.mul.Tensor, call(_aten.bmm.default, gains, covariance), gains)
    within = call(_aten.mean.dim, call(_aten.sum.dim_IntList, within, [2], True), [1], True)
    within = call(_aten._to_copy.default, within, dtype=torch.float32)
    means = call(_aten.add.Tensor, call(_aten.bmm.default, rows, mean), bias)
    middle = call(_aten.mean.dim, means, [1], True)
    apart = call(_aten.sub.Tensor, means, middle)
    between = call(_aten.mean.dim, call(_aten.mul.Tensor, apart, apart), [1], True)
    variance = call(_aten.add.Tensor, within, between)
    scale = call(_aten.mul.Tensor, gain, call(_aten.rsqrt.default, call(_aten.add.Tensor, variance, eps)))
    shift = call(_aten.add.Tensor, call(_aten.mul.Tensor, scale, call(_aten.sub.Tensor, bias, middle)), offset)
    return call(_aten.baddbmm.default, shift, call(_aten.mul.Tensor, scale, rows), x)
