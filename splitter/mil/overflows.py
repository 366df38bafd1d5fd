"""Which operations of a program overflow in a run, and what depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .program import Block, Operation, Ref


@dataclass
class OverflowWatch:
    """A listener that notes every operation whose result is not finite though all it was given is.

    Infinities that a program means (masks) are among its constants or inputs, and are not noted.
    """

    found: list[tuple[Operation, int, int]] = field(default_factory=list)
    _given: Mapping[str, Any] = field(default_factory=dict)

    def before(self, operation: Operation, inputs: Mapping[str, Any]) -> None:
        self._given = inputs

    def after(self, operation: Operation, outputs: Mapping[str, Any]) -> None:
        broken = [value for value in outputs.values() if not _finite(value)]
        if broken and _finite(list(self._given.values())):
            count = sum(int((~torch.isfinite(value)).sum()) for value in broken)
            self.found.append((operation, count, sum(value.numel() for value in broken)))
        self._given = {}


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_finite, value))
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    # A sum is finite if its terms are, and quicker to see; a sum of finite terms may still overflow.
    return bool(torch.isfinite(value.sum(dtype=torch.float32))) or bool(torch.isfinite(value).all())


def depending(block: Block, names: set[str]) -> set[str]:
    """Names of all values of a block that depend on one of these."""
    reached = set(names)
    for operation in block.operations:
        arguments = (argument for many in operation.inputs.values() for argument in many)
        if any(isinstance(argument, Ref) and argument.name in reached for argument in arguments):
            reached |= {output.name for output in operation.outputs}
    return reached
