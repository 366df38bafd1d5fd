"""Element by element: arithmetic, comparison, logic, and functions of one number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import OperationError
from .. import bounds, neural_engine
from ..types import BY_NAME
from . import Context, check_result_size, operation
from .traits import M1, M3, Fp32Rule, Mask, Rows, Traits, always

if TYPE_CHECKING:
    from ..graph import Node

_CAST_TYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "fp16", "fp32")

# ------------------------------------------------------------------------------------- two numbers


def _broadcast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check the shapes, and that their broadcast is affordable, before torch does it."""
    if x.shape != y.shape:
        try:
            shape = torch.broadcast_shapes(x.shape, y.shape)
        except RuntimeError as error:
            raise OperationError(
                "the operands do not broadcast", received=f"{tuple(x.shape)} and {tuple(y.shape)}"
            ) from error
        check_result_size(shape, x.dtype)
    return x, y


@operation(
    "add",
    Traits(rows=Rows.ELEMENTWISE, broadcasts=True, mask=Mask.APPLIES | Mask.PASSES, engine=M1, bounds=bounds.total),
)
def add(x: Tensor, y: Tensor) -> Tensor:
    return torch.add(*_broadcast(x, y))


@operation(
    "sub", Traits(rows=Rows.ELEMENTWISE, broadcasts=True, mask=Mask.APPLIES, engine=M1, bounds=bounds.difference)
)
def sub(x: Tensor, y: Tensor) -> Tensor:
    return torch.sub(*_broadcast(x, y))


def _of_itself(node: Node) -> bool:
    return node.value("x") is node.value("y")


@operation(
    "mul",
    Traits(
        rows=Rows.ELEMENTWISE,
        broadcasts=True,
        is_square=_of_itself,
        mask=Mask.APPLIES,
        engine=M1,
        bounds=bounds.product,
    ),
)
def mul(x: Tensor, y: Tensor) -> Tensor:
    return torch.mul(*_broadcast(x, y))


@operation(
    "real_div",
    Traits(
        rows=Rows.ELEMENTWISE,
        broadcasts=True,
        steep_at_zero=True,
        fp32_rules=(Fp32Rule.NORMS, Fp32Rule.DIVISIONS),
        engine=M1,
        limits=(neural_engine.DIVISOR,),
    ),
)
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """Integers are divided towards zero, as Core ML does with two integer operands."""
    x, y = _broadcast(x, y)
    return torch.div(x, y) if x.is_floating_point() else _divided(x, y, "trunc")


@operation("floor_div", Traits(rows=Rows.ELEMENTWISE, broadcasts=True, engine=M1))
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """The quotient towards minus infinity."""
    x, y = _broadcast(x, y)
    return torch.div(x, y, rounding_mode="floor") if x.is_floating_point() else _divided(x, y, "floor")


@operation("mod", Traits(rows=Rows.ELEMENTWISE))
def mod(x: Tensor, y: Tensor) -> Tensor:
    """What `floor_div` leaves, so it has the divisor's sign."""
    x, y = _broadcast(x, y)
    return torch.remainder(x, y if y.is_floating_point() else _nonzero(y).masked_fill(y == -1, 1))


def _divided(x: Tensor, y: Tensor, rounding: str) -> Tensor:
    """Divide integers. The processor traps when it divides the smallest one by -1; here that wraps around."""
    negated = _nonzero(y) == -1
    return torch.where(negated, -x, torch.div(x, y.masked_fill(negated, 1), rounding_mode=rounding))


def _nonzero(y: Tensor) -> Tensor:
    if bool((y == 0).any()):
        raise OperationError("an integer divisor is zero")
    return y


def _to_the_second(node: Node) -> bool:
    return node.numbers("y") == [2.0]


@operation(
    "pow",
    Traits(
        rows=Rows.ELEMENTWISE,
        broadcasts=True,
        is_square=_to_the_second,
        steep_at_zero=True,
        fp32_rules=(Fp32Rule.SQUARE, Fp32Rule.NORMS),
        engine=M1,
    ),
)
def pow_(x: Tensor, y: Tensor) -> Tensor:
    """Of integers, a power below one goes towards zero: 2^-1 is 0, and (-1)^-3 is -1."""
    x, y = _broadcast(x, y)
    if not x.is_floating_point() and not y.is_floating_point() and bool(((x == 0) & (y < 0)).any()):
        raise OperationError("zero is raised to a negative power as an integer")
    return torch.pow(x, y)


@operation("maximum", Traits(rows=Rows.ELEMENTWISE, broadcasts=True, engine=M1, bounds=bounds.larger))
def maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(*_broadcast(x, y))


@operation("minimum", Traits(rows=Rows.ELEMENTWISE, broadcasts=True, engine=M1, bounds=bounds.smaller))
def minimum(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(*_broadcast(x, y))


@operation("equal", Traits(engine=M1))
def equal(x: Tensor, y: Tensor) -> Tensor:
    return torch.eq(*_broadcast(x, y))


@operation("not_equal", Traits(engine=M1))
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    return torch.ne(*_broadcast(x, y))


@operation("greater", Traits(broadcasts=True, engine=M1))
def greater(x: Tensor, y: Tensor) -> Tensor:
    return torch.gt(*_broadcast(x, y))


@operation("greater_equal", Traits(engine=M1))
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    return torch.ge(*_broadcast(x, y))


@operation("less", Traits(broadcasts=True, engine=M1))
def less(x: Tensor, y: Tensor) -> Tensor:
    return torch.lt(*_broadcast(x, y))


@operation("less_equal", Traits(engine=M1))
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    return torch.le(*_broadcast(x, y))


@operation("logical_and")
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_and(*_broadcast(x, y))


@operation("logical_or")
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_or(*_broadcast(x, y))


@operation("logical_xor")
def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_xor(*_broadcast(x, y))


# -------------------------------------------------------------------------------------- one number


@operation("logical_not", Traits(engine=M1))
def logical_not(x: Tensor) -> Tensor:
    return torch.logical_not(x)


@operation("abs", Traits(rows=Rows.ELEMENTWISE, engine=M1, bounds=bounds.between(0, math.inf)))
def abs_(x: Tensor) -> Tensor:
    return torch.abs(x)


@operation("sign", Traits(rows=Rows.ELEMENTWISE, engine=M1, bounds=bounds.between(-1, 1)))
def sign(x: Tensor) -> Tensor:
    """NaN stays NaN."""
    return torch.where(torch.ne(x, x), x, torch.sign(x))


@operation(
    "square",
    Traits(
        rows=Rows.ELEMENTWISE,
        is_square=always,
        fp32_rules=(Fp32Rule.SQUARE, Fp32Rule.NORMS),
        engine=M1,
        bounds=bounds.between(0, math.inf),
    ),
)
def square(x: Tensor) -> Tensor:
    return torch.mul(x, x)


@operation(
    "sqrt",
    Traits(
        rows=Rows.ELEMENTWISE,
        steep_at_zero=True,
        fp32_rules=(Fp32Rule.NORMS,),
        engine=M1,
        bounds=bounds.between(0, math.inf),
    ),
)
def sqrt(x: Tensor) -> Tensor:
    return torch.sqrt(x)


@operation(
    "exp",
    Traits(rows=Rows.ELEMENTWISE, engine=M1, limits=(neural_engine.EXPONENT,), bounds=bounds.between(0, math.inf)),
)
def exp(x: Tensor) -> Tensor:
    return torch.exp(x)


@operation("exp2", Traits(rows=Rows.ELEMENTWISE, engine=M1, bounds=bounds.between(0, math.inf)))
def exp2(x: Tensor) -> Tensor:
    """2^x. Of integers, a negative power is 0 and one beyond 31 wraps around."""
    return torch.exp2(x) if x.is_floating_point() else torch.pow(2, x)


@operation("erf", Traits(rows=Rows.ELEMENTWISE, engine=M1, bounds=bounds.between(-1, 1)))
def erf(x: Tensor) -> Tensor:
    return torch.erf(x)


@operation("sin", Traits(rows=Rows.ELEMENTWISE, engine=M3, bounds=bounds.between(-1, 1)))
def sin(x: Tensor) -> Tensor:
    return torch.sin(x)


@operation("cos", Traits(rows=Rows.ELEMENTWISE, engine=M3, bounds=bounds.between(-1, 1)))
def cos(x: Tensor) -> Tensor:
    return torch.cos(x)


@operation("tan", Traits(rows=Rows.ELEMENTWISE))
def tan(x: Tensor) -> Tensor:
    return torch.tan(x)


@operation("asin", Traits(rows=Rows.ELEMENTWISE))
def asin(x: Tensor) -> Tensor:
    return torch.asin(x)


@operation("acos", Traits(rows=Rows.ELEMENTWISE))
def acos(x: Tensor) -> Tensor:
    return torch.acos(x)


@operation("atan", Traits(rows=Rows.ELEMENTWISE, engine=M1))
def atan(x: Tensor) -> Tensor:
    return torch.atan(x)


@operation("sinh", Traits(rows=Rows.ELEMENTWISE))
def sinh(x: Tensor) -> Tensor:
    return torch.sinh(x)


@operation("cosh", Traits(rows=Rows.ELEMENTWISE))
def cosh(x: Tensor) -> Tensor:
    return torch.cosh(x)


@operation("tanh", Traits(rows=Rows.ELEMENTWISE, engine=M1, bounds=bounds.between(-1, 1)))
def tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


@operation("atanh", Traits(rows=Rows.ELEMENTWISE))
def atanh(x: Tensor) -> Tensor:
    return torch.atanh(x)


@operation("floor", Traits(rows=Rows.ELEMENTWISE, engine=M1))
def floor(x: Tensor) -> Tensor:
    return torch.floor(x)


@operation("ceil", Traits(rows=Rows.ELEMENTWISE, engine=M1))
def ceil(x: Tensor) -> Tensor:
    return torch.ceil(x)


@operation(
    "round", Traits(rows=Rows.ELEMENTWISE, engine=M1, limits=(neural_engine.ROUNDED,), on_engine=neural_engine.rounding)
)
def round_(x: Tensor) -> Tensor:
    """Halves go to the even neighbour."""
    return torch.round(x)


# ----------------------------------------------------------------------------- with a parameter


@operation(
    "inverse",
    Traits(
        accumulate_fp32=True, rows=Rows.ELEMENTWISE, steep_at_zero=True, fp32_rules=(Fp32Rule.DIVISIONS,), engine=M1
    ),
)
def inverse(x: Tensor, context: Context, epsilon: float | None = None) -> Tensor:
    """1 / (x + epsilon), epsilon 1e-4 by default."""
    return torch.reciprocal(x + _epsilon(epsilon, 1e-4, context))


@operation(
    "log",
    Traits(
        accumulate_fp32=True,
        rows=Rows.ELEMENTWISE,
        steep_at_zero=True,
        engine=M1,
        limits=(neural_engine.LOG_INPUT,),
        on_engine=neural_engine.log,
    ),
)
def log(x: Tensor, context: Context, epsilon: float | None = None) -> Tensor:
    """log of x + epsilon, epsilon 1e-45 by default, which is 0 in half precision."""
    return torch.log(x + _epsilon(epsilon, 1e-45, context))


@operation(
    "rsqrt",
    Traits(
        accumulate_fp32=True,
        rows=Rows.ELEMENTWISE,
        steep_at_zero=True,
        fp32_rules=(Fp32Rule.NORMS, Fp32Rule.DIVISIONS),
        engine=M1,
        bounds=bounds.between(0, math.inf),
    ),
)
def rsqrt(x: Tensor, context: Context, epsilon: float | None = None) -> Tensor:
    """1 / √(x + epsilon), epsilon 1e-12 by default, which is 0 in half precision."""
    return torch.rsqrt(x + _epsilon(epsilon, 1e-12, context))


def _epsilon(given: float | None, default: float, context: Context) -> float:
    """What is added; the default is a number of the result's declared type."""
    return torch.tensor(default, dtype=context.result.dtype.held).item() if given is None else given


@operation("threshold", Traits(rows=Rows.ELEMENTWISE, engine=M1))
def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    """max(x, alpha)."""
    return torch.clamp(x, min=alpha.item())


@operation("clip", Traits(rows=Rows.ELEMENTWISE, clamps=True, engine=M1, bounds=bounds.clipped))
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(max(x, alpha), beta)."""
    return torch.clamp(x, alpha, beta)


@operation("clip", opset="CoreML7")
def clip_ordered(x: Tensor, alpha: float, beta: float) -> Tensor:
    """The same; since iOS17 alpha must be below beta."""
    if alpha >= beta:
        raise OperationError("clip's alpha is not below its beta", received=f"{alpha} and {beta}")
    return torch.clamp(x, alpha, beta)


@operation("cast", Traits(rows=Rows.ELEMENTWISE, mask=Mask.APPLIES | Mask.PASSES, engine=M1, bounds=bounds.moved))
def cast(x: Tensor, dtype: str) -> Tensor:
    """Floats go towards zero to integers, at most to the nearest end of their range, and NaN to 0; integers wrap
    around; anything but zero is true.
    """
    if dtype not in _CAST_TYPES:
        raise OperationError("unknown dtype of cast", expected=", ".join(_CAST_TYPES), received=dtype)
    target = BY_NAME[dtype]
    if not target.is_integer:
        return x.to(target.held)
    if x.is_floating_point():
        return x.double().nan_to_num().clamp(*target.bounds).to(target.held)  # float32 cannot hold int32's bounds
    if dtype == "uint16":
        return x.to(target.held).bitwise_and(0xFFFF)
    return x.to(target.held)
