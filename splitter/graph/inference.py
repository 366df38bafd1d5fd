"""The type of what an operator returns, from the types of its arguments. Nothing is computed.

PyTorch's own kernels for tensors without memory (the device ``meta``) decide. They are slow to start (1.5 s of
imports) and slow to run (up to 2 ms), so each distinct call is asked for once per process, and the common cases of
the operators that models consist of have a rule in `shape_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .shape_rules import RULES
from .shapes import DTYPES, Argument, Inferred, TensorType


@lru_cache(maxsize=16_384)
def inferred(target: torch._ops.OpOverload, arguments: tuple[tuple[str, Argument], ...]) -> Inferred:
    """What an operator returns for arguments by name: one type, or a tuple of them.

    Raises:
        Exception: Of whatever kind, where the operator does not take such arguments.
    """
    values = dict(arguments)
    rule = RULES.get(str(target))
    kind = rule(values) if rule else None
    return kind if kind is not None else by_torch(target, values)


@torch.no_grad()
def by_torch(target: torch._ops.OpOverload, arguments: Mapping[str, Argument]) -> Inferred:
    """The same from PyTorch's kernels for tensors without memory.

    Raises:
        Exception: Of whatever kind, where the operator does not take such arguments.
    """
    values = {name: _meta(argument) for name, argument in arguments.items()}
    if any(argument.name == "device" for argument in target._schema.arguments):
        values["device"] = torch.device("meta")
    result = target(**values)
    return tuple(map(_type_of, result)) if isinstance(result, list | tuple) else _type_of(result)


def _meta(argument: Argument) -> Any:
    if isinstance(argument, TensorType):
        return torch.empty(argument.shape, dtype=DTYPES[argument.dtype], device="meta")
    if isinstance(argument, tuple):
        return [_meta(item) for item in argument]
    return argument.value if argument is not None else None


def _type_of(result: object) -> TensorType:
    if not isinstance(result, Tensor) or result.device.type != "meta":
        raise TypeError("it gives something other than tensors")
    kind = TensorType.of(result)
    if kind.dtype not in DTYPES:
        raise TypeError(f"it gives {kind.dtype}")
    return kind
