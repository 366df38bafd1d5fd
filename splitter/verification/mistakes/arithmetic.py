"""Mistakes in arithmetic, statistics and cuts: an operand left out, another divisor, an offset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from .mistake import Call, Mistake, again

_aten = torch.ops.aten
_OFFSETS = (1, -1, 2, -2)


def _wide(run: Call, value: Any) -> Tensor:
    """An operand in the result's shape."""
    kind = run.node.meta["type"]
    return torch.as_tensor(value, dtype=getattr(torch, kind.dtype)).expand(kind.shape).clone()


def _left_out(call: Call, word: str) -> Iterator[Mistake]:
    yield Mistake(f"the {word} of {_named(call['other'])} left out", lambda run: _wide(run, run["self"]))


def _named(operand: Any) -> str:
    """What the graph adds, multiplies by or divides by."""
    return f"'{operand.name}'" if isinstance(operand, fx.Node) else f"{operand:g}"


def _add(call: Call) -> Iterator[Mistake]:
    yield from _left_out(call, "addition")
    if isinstance(call["other"], fx.Node):
        yield Mistake(f"the addition of {_named(call['self'])} left out", lambda run: _wide(run, run["other"]))
        yield Mistake("subtracted where the model adds", again(alpha=-1))


def _sub(call: Call) -> Iterator[Mistake]:
    yield from _left_out(call, "subtraction")
    yield Mistake("added where the model subtracts", again(alpha=-1))
    yield Mistake("the operands of the difference swapped", lambda run: -run.again())


def _mul(call: Call) -> Iterator[Mistake]:
    yield from _left_out(call, "multiplication")
    yield Mistake("divided where the model multiplies", lambda run: run["self"] / run["other"])


def _div(call: Call) -> Iterator[Mistake]:
    yield from _left_out(call, "division")
    yield Mistake("multiplied where the model divides", lambda run: run["self"] * run["other"])


def _spread(call: Call) -> Iterator[Mistake]:
    divisors = {True: "n − 1", False: "n"}
    unbiased = bool(call["unbiased"] if call["correction"] is None else call["correction"])
    key = "unbiased" if "unbiased" in call.arguments else "correction"
    cause = f"the variance divided by {divisors[not unbiased]} where the model divides by {divisors[unbiased]}"
    yield Mistake(cause, lambda run: run.again(**{key: not unbiased}))
    if "std" in str(call.node.target):
        yield Mistake("the variance where the model has its root", lambda run: run.again().square())


def _slice(call: Call) -> Iterator[Mistake]:
    axis, extent = int(call["dim"]), call["self"].meta["type"].shape[call["dim"]]
    start, stop, step = slice(call["start"], call["end"], call["step"]).indices(extent)
    for by in _OFFSETS:
        if start + by >= 0 and stop + by <= extent:
            cause = (
                f"offset: elements {start + by} to {stop + by - 1} of axis {axis} where the model takes {start} to "
                f"{stop - 1} (another frame, bin or sample)"
            )
            yield Mistake(cause, again(start=start + by, end=stop + by))
    if step == 1 and start > 0 and extent - stop != start:
        yield Mistake(
            f"offset: cut at the other end of axis {axis}",
            again(start=extent - stop, end=extent - start),
        )


MISTAKES: dict[Any, Callable[[Call], Iterator[Mistake]]] = {
    _aten.add.Tensor: _add,
    _aten.sub.Tensor: _sub,
    _aten.mul.Tensor: _mul,
    _aten.div.Tensor: _div,
    **dict.fromkeys(
        (_aten.std.dim, _aten.std.correction, _aten.std.default, _aten.var.dim, _aten.var.correction), _spread
    ),
    _aten.slice.Tensor: _slice,
}
