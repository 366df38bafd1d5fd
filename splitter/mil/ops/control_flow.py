"""Branches and loops."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import OperationError
from . import Context, operation
from .traits import Traits


@operation("cond", Traits(blocks=2))
def cond(pred: bool, context: Context) -> tuple[Any, ...]:
    """The first block's results where the predicate is true, the second's otherwise."""
    return tuple(context.run_block(0 if pred else 1))


@operation("while_loop", Traits(blocks=2))
def while_loop(loop_vars: list[Tensor], context: Context) -> tuple[Any, ...]:
    """While the first block gives true, the loop's variables become the second block's results.

    Raises:
        OperationError: The loops of this execution run longer, together, than the context allows.
    """
    values: list[Any] = loop_vars
    while bool(context.run_block(0, *values)[0]):
        if next(context.iterations) >= context.max_iterations:
            raise OperationError("a loop does not end", received=f"more than {context.max_iterations} iterations")
        values = context.run_block(1, *values)
    return tuple(values)
