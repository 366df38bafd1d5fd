"""What ports of RoFormers get wrong beside what all ports do: the rotation of queries and keys by their positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx

from ...verification.mistakes import Call, Mistake

_aten = torch.ops.aten
Rotation = Callable[[Tensor, Tensor], Tensor]  # of the values, or of the pairs turned by a right angle, and the table


def of(node: fx.Node) -> Iterator[Mistake]:
    """Of ``x · cos`` and ``turned(x) · sin``, where a pair ``(a, b)`` of neighbours is turned to ``(−b, a)``."""
    table = node.args[1] if node.target is _aten.mul.Tensor else None
    if not isinstance(table, fx.Node) or table.target not in (_aten.cos.default, _aten.sin.default):
        return
    is_sine = table.target is _aten.sin.default
    yield Mistake(
        "halves of a head rotated where the model rotates pairs of neighbours",
        _with(_turned_halves if is_sine else _in_halves),
    )
    yield Mistake("queries and keys not rotated", _with(_nothing if is_sine else _unchanged))
    yield Mistake("rotated the other way", _with(_negative if is_sine else _product))


def _with(rotation: Rotation) -> Callable[[Call], Tensor]:
    return lambda call: rotation(call["self"], call["other"])


def _in_halves(x: Tensor, cos: Tensor) -> Tensor:
    return x * _halves(cos)


def _turned_halves(turned: Tensor, sin: Tensor) -> Tensor:
    first, second = turned[..., 1::2], -turned[..., ::2]  # the neighbours, as they were
    x = torch.stack([first, second], dim=-1).flatten(-2)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([-high, low], dim=-1) * _halves(sin)


def _halves(table: Tensor) -> Tensor:
    """A table of pairs as one of halves."""
    return torch.cat([table[..., ::2], table[..., ::2]], dim=-1)


def _unchanged(x: Tensor, table: Tensor) -> Tensor:
    return x.clone()


def _nothing(x: Tensor, table: Tensor) -> Tensor:
    return torch.zeros_like(x)


def _negative(x: Tensor, table: Tensor) -> Tensor:
    return -x * table


def _product(x: Tensor, table: Tensor) -> Tensor:
    return x * table
