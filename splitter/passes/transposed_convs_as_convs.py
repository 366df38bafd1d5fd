"""Compute a transposed convolution as a plain one with an output channel for each place between two inputs.

A processor's kernels for transposed convolutions are those of a training step's gradient, and take twice as long.

Before, with a stride of s and a kernel of t s::

    y: (b, o, s (n + t − 1)) = conv_transpose1d(x: (b, i, n), w: (i, o, t s), bias, [s])
                                                                         # y[s m + r] = bias + Σ_j w[r + s j] x[m − j]

After::

    v: (o s, i, t) = flip(permute(view(w, (i, o, t, s)), [1, 3, 0, 2]), [3])
    z: (b, o, s, n + t − 1) = view(conv1d(x, v, repeat(bias), [1], [t − 1]))
    y = reshape(transpose(z, 2, 3))

Images with a stride along one axis likewise, where the kernel is 1 along the other. The same products are added up, in
an order that is the kernel's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .rewriting import Call, Operator, OperatorPass

_aten = torch.ops.aten
_PLAIN: dict[Any, Any] = {
    _aten.conv_transpose1d.default: _aten.conv1d.default,
    _aten.conv_transpose2d.input: _aten.conv2d.default,
}


@dataclass(frozen=True)
class TransposedConvsAsConvs(OperatorPass):
    name = "transposed-convs-as-convs"
    max_abs = 1e-3

    def rewrite(self, call: Call, node: Operator) -> fx.Node | str | None:
        if node.target not in _PLAIN:
            return None
        return "its arguments are given by name" if node.kwargs else _plain(call, node, *node.args)


def _plain(
    call: Call,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> fx.Node | str:
    """The same of a plain convolution; why not, where there is no such form."""
    inputs, outputs, *kernel = weight.meta["type"].shape
    axes = len(kernel)
    strides = [*stride] * (axes // len(stride))
    (axis, *others) = sorted(range(axes), key=lambda place: -strides[place])
    s, (taps, odd) = strides[axis], divmod(kernel[axis], strides[axis])
    paddings = [*padding] * (axes // len(padding))
    elsewhere = [(strides[other], kernel[other], paddings[other]) for other in others]
    if len(x.meta["type"].shape) != 2 + axes:
        return "it has no batch"
    if s == 1 or odd:
        return f"its kernel of {kernel[axis]} is no multiple of a stride above 1"
    if groups != 1 or any(output_padding) or set(dilation) != {1} or set(elsewhere) - {(1, 1, 0)}:
        return "it has groups, dilation, a padded output, or a kernel along a second axis"
    phases = call(_aten.permute.default, call(_aten.view.default, weight, [inputs, outputs, taps, s]), [1, 3, 0, 2])
    plain = call(_aten.reshape.default, call(_aten.flip.default, phases, [3]),
                 [outputs * s, inputs, *(taps if place == axis else 1 for place in range(axes))])  # fmt: skip
    if bias is not None:
        bias = call(_aten.reshape.default, call(_aten.expand.default,
                    call(_aten.view.default, bias, [outputs, 1]), [outputs, s]), [outputs * s])  # fmt: skip
    margins = [taps - 1 if place == axis else 0 for place in range(axes)]
    result = call(_PLAIN[node.target], x, plain, bias, [1] * axes, margins)
    batch, _, *extents = result.meta["type"].shape
    result = call(_aten.view.default, result, [batch, outputs, s, *extents])
    behind = range(4 + axis, 3 + axes)
    result = call(_aten.permute.default, result, [0, 1, *range(3, 4 + axis), 2, *behind])
    extents[axis] *= s
    result = call(_aten.reshape.default, result, [batch, outputs, *extents])
    cut = paddings[axis]
    return call(_aten.slice.Tensor, result, 2 + axis, cut, extents[axis] - cut) if cut else result
