"""Compute a convolution to few channels as one matrix product and a sum of shifted rows.

A processor's convolution kernels work on blocks of 16 channels and rearrange what comes in; residual
branches go from 48 channels to 6, and the product reads those 48 once, as they lie.

Before, where o k < i and as much is padded as the kernel takes away::

    y: (b, o, n) = conv1d(x: (b, i, n), w: (o, i, k), bias, [1], [p], [d])             # 2 p = d (k − 1)

After::

    z: (b, k o, n) = bmm(expand(reshape(permute(w, [2, 0, 1]), (k o, i))), x)
    y = bias + Σ_j shift(z[:, o j : o (j + 1)], d j − p)                                # zeros come in

The same products are added up, in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import fx

from .rewriting import Call, Operator, OperatorPass

_aten = torch.ops.aten


@dataclass(frozen=True)
class NarrowConvsAsProducts(OperatorPass):
    name = "narrow-convs-as-products"
    max_abs = 1e-3

    def rewrite(self, call: Call, node: Operator) -> fx.Node | str | None:
        if node.target is not _aten.conv1d.default:
            return None
        return "its arguments are given by name" if node.kwargs else _products(call, *node.args)


def _products(
    call: Call,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> fx.Node | str:
    """The same in products; why not, where there is no such form or it would be no gain."""
    outputs, inputs, taps = weight.meta["type"].shape
    *batches, _, length = x.meta["type"].shape
    if taps == 1 or outputs * taps >= inputs:
        return f"it gains nothing: {taps} taps of {outputs} outputs for {inputs} inputs"
    if groups != 1 or [*stride] != [1] or not batches:
        return "it has groups or a stride, or no batch"
    if 2 * padding[0] != dilation[0] * (taps - 1) or padding[0] >= length:
        return "its output is not as long as its input"
    rows = call(_aten.reshape.default, call(_aten.permute.default, weight, [2, 0, 1]), [1, taps * outputs, inputs])
    products = call(_aten.bmm.default, call(_aten.expand.default, rows, [*batches, taps * outputs, inputs]), x)
    terms = [
        _shifted(
            call,
            call(_aten.slice.Tensor, products, 1, outputs * tap, outputs * (tap + 1)),
            dilation[0] * tap - padding[0],
            length,
        )
        for tap in range(taps)
    ]
    if bias is not None:
        terms.append(call(_aten.view.default, bias, [outputs, 1]))
    return reduce(partial(call, _aten.add.Tensor), terms)


def _shifted(call: Call, x: fx.Node, places: int, length: int) -> fx.Node:
    """``x[…, t + places]`` at t; 0 where there is none."""
    if places == 0:
        return x
    start, end = max(0, places), min(length, length + places)
    kept = call(_aten.slice.Tensor, x, 2, start, end)
    return call(_aten.constant_pad_nd.default, kept, [max(0, -places), max(0, places)], 0.0)
