"""Write ``group_norm`` out so that nothing in it overflows, or vanishes, in half precision.

The variance squares activations. Half precision ends at 65,504 and activations reach 2,589 on real music: infinity
makes 1/√var zero, and stems come out at −9.7 dB. A fixed scale would mend that, and lose the rows that are nearly
silent (eps times its square is below half's smallest number). So every normalised row gets a power of two of its own,
1 where nothing exceeds 8.

Before::

    y = group_norm(x: (b, c, *d), groups, weight, bias, eps)

After, per batch and group, over channels and everything behind them::

    s = 2^-⌈log2(max(|x|, 8) / 8)⌉     # |s x| ≤ 8
    u = s x − mean(s x)                # |u| ≤ 16: 255 squares of it can be added up in half
    σ = max(√(mean(u²) + (s √eps)²), s √eps)
    y = u / σ · weight + bias

Scaling by a power of two is exact, and so is the norm's invariance to it once eps is scaled with it; the outer
maximum changes nothing but where (s √eps)² is below half's smallest number. What moves is the order of summation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from .rewriting import Call, Operator, OperatorPass

_aten = torch.ops.aten


@dataclass(frozen=True)
class NormsSafeInHalf(OperatorPass):
    """The pass; `largest` is the magnitude, a power of two, that rows are scaled to."""

    name = "norms-safe-in-half"
    max_abs = 1e-3
    largest: float = 8.0

    def rewrite(self, call: Call, node: Operator) -> fx.Node | str | None:
        if node.target is not _aten.group_norm.default:
            return None
        if node.args[0].meta["type"].dtype != "float32":
            return f"it is {node.args[0].meta['type'].dtype}, not float32"
        return _written_out(call, self.largest, *node.args, **node.kwargs)


def _written_out(
    call: Call,
    largest: float,
    x: fx.Node,
    groups: int,
    weight: fx.Node | None = None,
    bias: fx.Node | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> fx.Node:
    batch, channels, *rest = x.meta["type"].shape
    grouped = call(_aten.view.default, x, [batch, groups, channels // groups, *rest])
    axes = list(range(2, 3 + len(rest)))
    scale = _scale(call, grouped, axes, largest)
    scaled = call(_aten.mul.Tensor, grouped, scale)
    centred = call(_aten.sub.Tensor, scaled, call(_aten.mean.dim, scaled, axes, True))
    variance = call(_aten.mean.dim, call(_aten.mul.Tensor, centred, centred), axes, True)
    least = call(_aten.mul.Tensor, scale, math.sqrt(eps))
    deviation = call(_aten.sqrt.default, call(_aten.add.Tensor, variance, call(_aten.mul.Tensor, least, least)))
    result = call(_aten.div.Tensor, centred, call(_aten.maximum.default, deviation, least))
    result = call(_aten.view.default, result, [batch, channels, *rest])
    per_channel = [1, channels, *(1 for _ in rest)]
    if weight is not None:
        result = call(_aten.mul.Tensor, result, call(_aten.view.default, weight, per_channel))
    if bias is not None:
        result = call(_aten.add.Tensor, result, call(_aten.view.default, bias, per_channel))
    return result


def _scale(call: Call, x: fx.Node, axes: list[int], largest: float) -> fx.Node:
    """The power of two that brings the greatest magnitude over some axes to `largest` or less; 1 if it is there."""
    greatest = call(_aten.amax.default, call(_aten.abs.default, x), axes, True)
    excess = call(_aten.clamp.default, call(_aten.mul.Tensor, greatest, 1 / largest), 1.0)
    exponent = call(_aten.ceil.default, call(_aten.log2.default, excess))
    return call(_aten.exp2.default, call(_aten.mul.Tensor, exponent, -1.0))
