"""What the Neural Engine makes of half-precision values, as people who measured it published.

A model built from those measurements, not the device. Most are of the M1 (S. Bryngelson, ane-guide, part 1 chapter 3);
the later chips that were measured depart from the program in fewer places. Each departure is a function that an
operation's record names, beside the `Limit` at which it begins.

Modelled: sums of products that end at 2¹⁵, in their results and in their partial sums; sums that flush subnormal
results to zero; the logarithm's −45,440 at zero; softplus and log-sum-exp that fall to zero; rounding that is off by
one from 1024 on; offset slices that end at 4094; the constants of GELU and SiLU at zero; NaN that becomes +∞ where it
enters, indeterminate forms that become +0, zeros without a sign. Sums are held in float32 and rounded once, as the wide
accumulator was measured to be.

Not modelled, for want of a rule that reproduces every published figure: the tiles of four lanes in which sums begin,
sine, cosine and arc tangent near the seams of their tables, and sums of integers beyond 2048 on the M5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .bounds import Bounds
    from .graph import Node

NUMERICS = "https://ane-guide.readthedocs.io/en/latest/part-1-machine/03-numerics.html"
SOFTPLUS = "https://github.com/apple/coremltools/issues/2687"
LOG_SUM_EXP = "https://github.com/apple/coremltools/issues/2690"
CLIFFS = "https://github.com/sbryngelson/ANEForge/issues/115"
ROUNDING = "https://github.com/sbryngelson/ANEForge/pull/116"
_IEEE = "https://en.wikipedia.org/wiki/Half-precision_floating-point_format"

SUM_LIMIT = 32752.0  # the largest half below 2¹⁵
_HALF_LIMIT = 65504.0
_SMALLEST_NORMAL = 2.0**-14
_LOG_OF_ZERO = -45440.0
_SOFTPLUS_LIMIT = math.log(2.0**15)  # 10.397: softplus goes through an exponential that ends where sums do
_EXP_LIMIT = 11.0859375  # the next half, 11.094, gives infinity
_SLICE_GAIN = 16.0
_GELU_OF_ZERO, _SILU_OF_ZERO = -0.000543, -0.001259
_ROUND_LIMIT = 1024.0

Function: TypeAlias = Callable[..., Any]
Arguments: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Limit:
    """Where the engine departs from what the program says.

    Attributes:
        of: What is limited, e.g. ``"sum"``.
        bound: The last sound number.
        gives: What comes beyond it.
        source: Who measured it.
        measured: The limited quantity, from an operation's arguments and its result.
        kept: Whether an operation keeps it whatever the program is given, by the intervals of its values.
        least: The bound is a lower one.
        partial: The quantity of sums while they grow, in the worst order of their terms.
        applies: Whether there is a limit, by an operation's arguments.
    """

    of: str
    bound: float
    gives: str
    source: str
    measured: Callable[[Arguments, Tensor], Tensor]
    kept: Callable[[Node, Bounds], bool]
    least: bool = False
    partial: Callable[[Function, Arguments, Tensor], Tensor] | None = None
    applies: Callable[[Arguments], bool] = lambda _: True

    def beyond(self, quantity: Tensor) -> Tensor:
        """Which of the quantities the engine gets wrong."""
        return quantity < self.bound if self.least else quantity > self.bound

    def extreme(self, quantity: Tensor) -> float:
        """The quantity that goes farthest."""
        return float(quantity.min() if self.least else quantity.max())


# --------------------------------------------------------------------------------------- sums


def partial_sums(function: Function, arguments: Arguments, result: Tensor) -> Tensor:
    """How far a sum of products goes while it grows, at most: all positive terms first, or all negative ones.

    The engine adds in an order of its own, which nobody has published.
    """
    terms = _without_bias(arguments)
    total = function(**terms) if terms.keys() != arguments.keys() else result
    magnitudes = function(**{key: _magnitude(value) for key, value in terms.items()})
    return (magnitudes + total.abs()) / 2


def cannot_reach(arguments: Arguments, bound: float) -> bool:
    """Whether the largest value, times the largest sum of weights that any layout of theirs has, stays within a bound.

    Quick to see; False says nothing.
    """
    operands = [value for value in _flat(_without_bias(arguments).values()) if value.is_floating_point()]
    if len(operands) != 2 or not all(value.numel() for value in operands):
        return False
    x, y = operands
    magnitudes = y.abs()
    if "weight" in arguments:  # outputs are along the first axis, of transposed convolutions along the second
        sums = [magnitudes.flatten(1).sum(1), magnitudes.transpose(0, 1).flatten(1).sum(1)]
    else:
        sums = [magnitudes.sum(axis) for axis in range(-min(3, y.ndim), 0)]
    return float(x.abs().max()) * max(float(total.max()) for total in sums) <= bound


def saturated(function: Function, arguments: Arguments) -> Any:
    """Sums of products that end at 2¹⁵, and are zero below the normal numbers."""
    result = function(**arguments)
    result = torch.where(result.abs() < _SMALLEST_NORMAL, 0.0, result)
    if cannot_reach(arguments, SUM_LIMIT):
        return result
    terms = _without_bias(arguments)
    total = function(**terms) if terms.keys() != arguments.keys() else result
    reach = partial_sums(function, arguments, result)
    sign = torch.where(total < 0, -math.inf, math.inf)
    return torch.where(rounded(reach) > SUM_LIMIT, sign, result)


def convolved(function: Function, arguments: Arguments) -> Any:
    """The same; a kernel of one element on one input channel accumulates nothing, and keeps the range of half."""
    return saturated(function, arguments) if several_taps(arguments) else function(**arguments)


def transposed(function: Function, arguments: Arguments) -> Any:
    return saturated(function, arguments) if several_inputs(arguments) else function(**arguments)


def several_taps(arguments: Arguments) -> bool:
    """Whether a convolution, of weights ``[out, in / groups, *kernel]``, adds anything up."""
    return bool(arguments["weight"][0].numel() > 1)


def several_inputs(arguments: Arguments) -> bool:
    """The same of a transposed one, of weights ``[in, out / groups, *kernel]``."""
    return bool(arguments["weight"][:, 0].numel() > 1)


def _without_bias(arguments: Arguments) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in ("bias", "quant_bias")}


def _magnitude(value: Any) -> Any:
    if isinstance(value, list):
        return [_magnitude(element) for element in value]
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


def _flat(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        elif isinstance(value, Tensor):
            yield value


# ------------------------------------------------------------------------------ single operations


def log(function: Function, arguments: Arguments) -> Any:
    """−45,440 at zero; of negative numbers NaN, which becomes 0."""
    result = function(**arguments)
    return torch.where(result == -math.inf, _LOG_OF_ZERO, result)


def softplus(function: Function, arguments: Arguments) -> Any:
    """0 beyond 10.4, where eˣ passes 2¹⁵."""
    result, x = function(**arguments), arguments["x"]
    if isinstance(beta := arguments.get("beta"), Tensor):
        x = x * beta.reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x > _SOFTPLUS_LIMIT, 0.0, result)


def log_sum_exp(function: Function, arguments: Arguments) -> Any:
    """0 where the sum of exponentials passes 65,504: no maximum is subtracted."""
    result = function(**arguments)
    return torch.where(torch.exp(result) > _HALF_LIMIT, 0.0, result)


def softsign(function: Function, arguments: Arguments) -> Any:
    """0 at infinity."""
    result = function(**arguments)
    return torch.where(torch.isinf(arguments["x"]), 0.0, result)


def gelu(function: Function, arguments: Arguments) -> Any:
    return torch.where(arguments["x"] == 0, _GELU_OF_ZERO, function(**arguments))


def silu(function: Function, arguments: Arguments) -> Any:
    return torch.where(arguments["x"] == 0, _SILU_OF_ZERO, function(**arguments))


def rounding(function: Function, arguments: Arguments) -> Any:
    """Halves go away from zero, by adding 0.5, which half cannot hold from 1024 on: there it adds 1, up to 2048."""
    x = arguments["x"]
    away = torch.sign(x) * torch.floor(x.abs() + 0.5)
    wrong = (x.abs() >= _ROUND_LIMIT) & (x.abs() < 2 * _ROUND_LIMIT)
    return torch.where(wrong, x + torch.sign(x), away)


def offset_slice(function: Function, arguments: Arguments) -> Any:
    """On the M1 and M2: a slice that begins elsewhere than at the last axis' start is stored times 16."""
    result, begin = function(**arguments), arguments["begin"]
    masked = any((arguments.get("begin_mask") or [False])[-1:])
    if not begin or not begin[-1] or masked or not result.is_floating_point():
        return result
    return torch.where(rounded(result * _SLICE_GAIN).isinf(), torch.sign(result) * math.inf, result)


def rounded(value: Tensor) -> Tensor:
    """To half and back."""
    return value.to(torch.float16).to(value.dtype)


def entering(value: Any) -> Any:
    """What an operation of the engine is given, in float32: NaN is +∞, and zero has no sign."""
    if isinstance(value, list):
        return [entering(element) for element in value]
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.nan_to_num(widened(value), nan=math.inf, posinf=math.inf, neginf=-math.inf) + 0.0
    return value


def leaving(value: Any) -> Any:
    """What it gives: indeterminate forms are +0, and zero has no sign."""
    if isinstance(value, tuple):
        return tuple(map(leaving, value))
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.nan_to_num(value, nan=0.0, posinf=math.inf, neginf=-math.inf) + 0.0
    return value


def widened(value: Any) -> Any:
    """Half as float32."""
    if isinstance(value, list):
        return [widened(element) for element in value]
    return value.to(torch.float32) if isinstance(value, Tensor) and value.dtype == torch.float16 else value


# ------------------------------------------------------------------------------------- limits


def _x(arguments: Arguments, result: Tensor) -> Tensor:
    x: Tensor = arguments["x"]
    return x


def _result(arguments: Arguments, result: Tensor) -> Tensor:
    return result.abs()


def _with_epsilon(arguments: Arguments, result: Tensor) -> Tensor:
    x: Tensor = arguments["x"]
    return rounded(x + (arguments.get("epsilon") or 0.0))


def _exponent(arguments: Arguments, result: Tensor) -> Tensor:
    x, beta = arguments["x"], arguments.get("beta")
    return x * beta.reshape(-1, *[1] * (x.ndim - 2)) if isinstance(beta, Tensor) else x


def _sum_of_exponentials(arguments: Arguments, result: Tensor) -> Tensor:
    return torch.exp(result.to(torch.float32))


def _divisor(arguments: Arguments, result: Tensor) -> Tensor:
    """Magnitudes of what is divided by; a division by zero is the program's own."""
    y: Tensor = arguments["y"]
    return y.abs()[y != 0] if y.is_floating_point() else torch.ones(0)


def _magnitude_of_x(arguments: Arguments, result: Tensor) -> Tensor:
    x: Tensor = arguments["x"]
    return x.abs()


def _sums_kept(node: Node, bounds: Bounds) -> bool:
    low, high = bounds(node.outputs[0])
    return low >= -SUM_LIMIT and high <= SUM_LIMIT


def _exponent_kept(node: Node, bounds: Bounds) -> bool:
    return bounds(node.value("x"))[1] <= _EXP_LIMIT


def _softplus_kept(node: Node, bounds: Bounds) -> bool:
    return node.value("beta") is None and bounds(node.value("x"))[1] <= _SOFTPLUS_LIMIT


def _log_sum_kept(node: Node, bounds: Bounds) -> bool:
    x = node.value("x")
    return x is not None and bounds(x)[1] + math.log(max(1, x.elements)) <= math.log(_HALF_LIMIT)


def _log_kept(node: Node, bounds: Bounds) -> bool:
    return bounds(node.value("x"))[0] + sum(node.numbers("epsilon")[:1]) >= 2.0**-24


def _divisor_kept(node: Node, bounds: Bounds) -> bool:
    low, high = bounds(node.value("y"))
    return low >= _SMALLEST_NORMAL or high <= -_SMALLEST_NORMAL


def _rounded_kept(node: Node, bounds: Bounds) -> bool:
    low, high = bounds(node.value("x"))
    return low > -_ROUND_LIMIT and high < _ROUND_LIMIT


SUMS = Limit("sum", SUM_LIMIT, "infinity", NUMERICS, _result, _sums_kept, partial=partial_sums)
CONVOLVED = replace(SUMS, applies=several_taps)
TRANSPOSED = replace(SUMS, applies=several_inputs)
SOFTPLUS_INPUT = Limit("input", _SOFTPLUS_LIMIT, "0", SOFTPLUS, _exponent, _softplus_kept)
EXPONENTIALS = Limit("sum of exponentials", _HALF_LIMIT, "0", LOG_SUM_EXP, _sum_of_exponentials, _log_sum_kept)
EXPONENT = Limit("input", _EXP_LIMIT, "infinity", NUMERICS, _x, _exponent_kept)
LOG_INPUT = Limit("input", 2.0**-24, "−45,440 at zero, 0 below it", NUMERICS, _with_epsilon, _log_kept, least=True)
DIVISOR = Limit("divisor", _SMALLEST_NORMAL, "few bits, or infinity", _IEEE, _divisor, _divisor_kept, least=True)
ROUNDED = Limit("input", 1023.5, "a number that is off by one", ROUNDING, _magnitude_of_x, _rounded_kept)
