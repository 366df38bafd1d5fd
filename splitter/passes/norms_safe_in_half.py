"""Write ``group_norm`` and ``F.normalize`` out so that nothing in them overflows, or vanishes, in half precision.

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

RMS norms are written as ``F.normalize(x) · √n · γ``. A norm above 65,504 is infinity, and in half accumulators so is
the square of one element above 255: the row comes out as zeros.

Before::

    y = x / max(‖x‖, eps) · c          # with or without the constant

After, over the axes of the norm, of n elements::

    s = 2^-⌈log2(clamp(max|x|, 2^-11) / 8)⌉    # |s x| ≤ 8, scaled up as well as down
    u = s x
    y = u / max(√(mean(u²)) · √n/c, 2^-14)      # for RMS norms √n/c is 1

It differs from the other for rows below 1e-9, which half precision has not: its smallest number is 6e-8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from .rewriting import Call, Operator, OperatorPass

_aten = torch.ops.aten
_LEAST_ROW = 2.0**-11  # scaled up by 2^14 to 8, which half precision still holds
_LEAST_SIZE = 2.0**-14  # half precision's smallest number with all its digits
_LEAST_EPS = 2.0**-24  # below half precision's smallest number


@dataclass(frozen=True)
class NormsSafeInHalf(OperatorPass):
    """The pass; `largest` is the magnitude, a power of two, that rows are scaled to."""

    name = "norms-safe-in-half"
    max_abs = 1e-3
    largest: float = 8.0

    def rewrite(self, call: Call, node: Operator) -> fx.Node | str | None:
        if node.target in (_aten.div.Tensor, _aten.mul.Tensor):
            return self._normalised(call, node)
        if node.target is not _aten.group_norm.default:
            return None
        if node.args[0].meta["type"].dtype != "float32":
            return f"it is {node.args[0].meta['type'].dtype}, not float32"
        return _written_out(call, self.largest, *node.args, **node.kwargs)

    def _normalised(self, call: Call, node: Operator) -> fx.Node | str | None:
        quotient, factor = node, 1.0
        if node.target is _aten.mul.Tensor:
            quotient, factor = node.args
            if isinstance(factor, fx.Node) or not isinstance(quotient, fx.Node) or factor <= 0:
                return None
        elif all(self._normalised_by(user) for user in node.users):
            return None  # at those
        norm = _norm_in(quotient)
        if norm is None:
            return None
        x, _, axes, *_ = norm.args
        if x.meta["type"].dtype != "float32":
            return f"it is {x.meta['type'].dtype}, not float32"
        elements = math.prod(x.meta["type"].shape[axis] for axis in axes)
        scaled = call(_aten.mul.Tensor, x, _scale(call, x, axes, self.largest, least=_LEAST_ROW))
        size = call(_aten.sqrt.default, call(_aten.mean.dim, call(_aten.mul.Tensor, scaled, scaled), axes, True))
        if not math.isclose(ratio := math.sqrt(elements) / factor, 1.0, rel_tol=1e-7):
            size = call(_aten.mul.Tensor, size, ratio)
        return call(_aten.div.Tensor, scaled, call(_aten.clamp.default, size, _LEAST_SIZE))

    @staticmethod
    def _normalised_by(user: Operator) -> bool:
        return user.target is _aten.mul.Tensor and not isinstance(user.args[1], fx.Node) and user.args[1] > 0


def _norm_in(quotient: Operator) -> Operator | None:
    """The norm in ``x / max(‖x‖, eps)``, if that is what an operator computes, over axes that are kept."""
    if quotient.target is not _aten.div.Tensor:
        return None
    x, divisor = quotient.args
    if not isinstance(divisor, fx.Node):
        return None
    norm: Operator = divisor
    while norm.target in (_aten.expand.default, _aten.clamp_min.default):
        if norm.target is _aten.clamp_min.default and norm.args[1] > _LEAST_EPS:
            return None
        norm = norm.args[0]
    if norm.target is not _aten.linalg_vector_norm.default:
        return None
    source, order, axes, kept, *_ = (*norm.args, 2.0, None, False, None)[:4]
    return norm if source is x and order == 2 and axes and kept else None


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
    scale = _scale(call, grouped, axes, largest, least=largest)
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


def _scale(call: Call, x: fx.Node, axes: list[int], largest: float, *, least: float) -> fx.Node:
    """The power of two that brings the greatest magnitude over some axes below `largest`, and as near as a factor of 2.

    Rows that lie below `least` get what brings that there: with `largest` for it, none is scaled up.
    """
    greatest = call(_aten.amax.default, call(_aten.abs.default, x), axes, True)
    excess = call(_aten.clamp.default, call(_aten.mul.Tensor, greatest, 1 / largest), least / largest)
    exponent = call(_aten.ceil.default, call(_aten.log2.default, excess))
    return call(_aten.exp2.default, call(_aten.mul.Tensor, exponent, -1.0))
