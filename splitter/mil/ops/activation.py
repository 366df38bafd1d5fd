"""Activations: functions of one number with a shape of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import OperationError
from .. import bounds, neural_engine
from . import operation
from .traits import M1, Engine, Fp32Rule, Mask, Rows, Traits


@operation("relu", Traits(rows=Rows.ELEMENTWISE, engine=M1, bounds=bounds.between(0, math.inf)))
def relu(x: Tensor) -> Tensor:
    return torch.relu(x)


@operation("relu6", Traits(rows=Rows.ELEMENTWISE, engine=M1, bounds=bounds.between(0, 6)))
def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return torch.clamp(x, 0, 6)


@operation("leaky_relu", Traits(rows=Rows.ELEMENTWISE, engine=M1))
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """x, and alpha · x below 0."""
    return functional.leaky_relu(x, alpha)


@operation("clamped_relu", Traits(accumulate_fp32=True, rows=Rows.ELEMENTWISE, clamps=True, engine=M1))
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(x, beta), and min(alpha · x, beta) below 0."""
    return functional.leaky_relu(x, alpha).clamp_(max=beta)


@operation("thresholded_relu", Traits(rows=Rows.ELEMENTWISE, engine=M1))
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """x, and 0 below alpha. At alpha it is x."""
    return torch.masked_fill(x, x < alpha, 0)


@operation("prelu", Traits(accumulate_fp32=True, engine=M1))
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """x, and alpha · x below 0, with an alpha for each channel (axis 1)."""
    _per_channel(x, alpha)
    return functional.prelu(x, alpha.to(x.dtype))


@operation("elu", Traits(rows=Rows.ELEMENTWISE, engine=M1))
def elu(x: Tensor, alpha: float) -> Tensor:
    """x, and alpha · (e^x − 1) below 0."""
    return functional.elu(x, alpha)


@operation(
    "gelu",
    Traits(
        accumulate_fp32=True,
        rows=Rows.ELEMENTWISE,
        engine=M1,
        on_engine=neural_engine.gelu,
        bounds=bounds.between(-0.18, math.inf),
    ),
)
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """x · Φ(x), or one of its approximations.

    ``EXACT``: x/2 · (1 + erf(x/√2)); ``TANH_APPROXIMATION``: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)));
    ``SIGMOID_APPROXIMATION``: x · sigmoid(1.702 x). The first two are torch's own, rounding as the models that
    are converted do; far below 0 little is left of either but the rounding of the 1.
    """
    match mode:
        case "EXACT":
            return functional.gelu(x)
        case "TANH_APPROXIMATION":
            return functional.gelu(x, approximate="tanh")
        case "SIGMOID_APPROXIMATION":
            return torch.sigmoid(1.702 * x).mul_(x)
    raise OperationError(
        "unknown mode of gelu", expected="EXACT, TANH_APPROXIMATION or SIGMOID_APPROXIMATION", received=mode
    )


@operation(
    "silu",
    Traits(rows=Rows.ELEMENTWISE, engine=M1, on_engine=neural_engine.silu, bounds=bounds.between(-0.28, math.inf)),
)
def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x)."""
    return functional.silu(x)


@operation("sigmoid", Traits(rows=Rows.ELEMENTWISE, engine=M1, bounds=bounds.between(0, 1)))
def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@operation("sigmoid_hard", Traits(accumulate_fp32=True, rows=Rows.ELEMENTWISE, engine=M1, bounds=bounds.between(0, 1)))
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(max(alpha · x + beta, 0), 1)."""
    return torch.mul(x, alpha).add_(beta).clamp_(0, 1)


@operation(
    "linear_activation",
    Traits(
        accumulate_fp32=True,
        rows=Rows.ELEMENTWISE,
        engine=Engine(1, max_rank=4),
    ),
)
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha · x + beta."""
    return torch.mul(x, alpha).add_(beta)


@operation("scaled_tanh", Traits(accumulate_fp32=True, rows=Rows.ELEMENTWISE, engine=M1))
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha · tanh(beta · x)."""
    return torch.mul(x, beta).tanh_().mul_(alpha)


@operation(
    "softsign",
    Traits(
        accumulate_fp32=True,
        rows=Rows.ELEMENTWISE,
        engine=M1,
        on_engine=neural_engine.softsign,
        bounds=bounds.between(-1, 1),
    ),
)
def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return functional.softsign(x)


@operation(
    "softplus",
    Traits(
        rows=Rows.ELEMENTWISE,
        engine=M1,
        limits=(neural_engine.SOFTPLUS_INPUT,),
        on_engine=neural_engine.softplus,
        bounds=bounds.between(0, math.inf),
    ),
)
def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x)."""
    return functional.softplus(x)


@operation(
    "softplus_parametric",
    Traits(accumulate_fp32=True, engine=M1, limits=(neural_engine.SOFTPLUS_INPUT,), on_engine=neural_engine.softplus),
)
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha · log(1 + e^(beta · x)), with an alpha and a beta for each channel (axis 1)."""
    return functional.softplus(_per_channel(x, beta) * x).mul_(_per_channel(x, alpha))


@operation(
    "softmax",
    Traits(
        accumulate_fp32=True,
        rows=Rows.OTHER_AXES,
        mask=Mask.ENDS,
        fp32_rules=(Fp32Rule.SOFTMAX,),
        engine=M1,
        bounds=bounds.between(0, 1),
    ),
)
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


def _per_channel(x: Tensor, values: Tensor) -> Tensor:
    """One value for each channel of x, shaped to broadcast."""
    if x.ndim < 2 or values.shape != x.shape[1:2]:
        raise OperationError(
            "a parameter does not fit the channels of x",
            expected="one value for each channel (axis 1)",
            received=f"shapes {tuple(values.shape)} and {tuple(x.shape)}",
        )
    return values.to(x.dtype).reshape(-1, *[1] * (x.ndim - 2))
