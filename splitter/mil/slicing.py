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
    constants = {operation.name for operation in operations if operation.type == "const"}
    own = [operation for operation in operations[start:stop] if operation.type != "const"]
    kinds: dict[str, ValueType] = {named.name: named.type for named in function.inputs}
    kinds |= {output.name: output.type for operation in operations[:start] for output in operation.outputs}
    made = [output.name for operation in own for output in operation.outputs]
    reads, later = _names(own), _names(operations[stop:]) | set(function.block.outputs)
    values = [name for name in kinds if name not in constants]
    fixed = [operation for operation in operations if operation.name in constants & reads]
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
    return {argument.name for operation in operations for argument in read_by(operation) if isinstance(argument, Ref)}
