"""Parts of a program: the operations from one position to another, as a program of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .program import Function, NamedType, Operation, Ref, read_by
from .types import ValueType


def part(function: Function, start: int, stop: int) -> Function:
    """The operations ``start ≤ i < stop``, and the constants they read.

    It takes what it or a later operation reads of the function's inputs and of earlier results, and gives what
    later operations read of these and of its own results, the function's outputs included: parts fit one behind
    the other.
    """
    operations = function.block.operations
    constants = {one.name for one in operations if one.type == "const"}
    own = [one for one in operations[start:stop] if one.type != "const"]
    kinds: dict[str, ValueType] = {one.name: one.type for one in function.inputs}
    kinds |= {one.name: one.type for operation in operations[:start] for one in operation.outputs}
    made = [one.name for operation in own for one in operation.outputs]
    reads, later = _names(own), _names(operations[stop:]) | set(function.block.outputs)
    values = [name for name in kinds if name not in constants]
    fixed = [one for one in operations if one.name in constants & reads]
    return replace(
        function,
        inputs=tuple(NamedType(name, kinds[name]) for name in values if name in reads | later),
        block=replace(
            function.block,
            operations=(*fixed, *own),
            outputs=tuple(name for name in (*values, *made) if name in later),
        ),
    )


def _names(operations: Iterable[Operation]) -> set[str]:
    return {one.name for operation in operations for one in read_by(operation) if isinstance(one, Ref)}
