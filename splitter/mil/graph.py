"""A function of a package as a graph: who computes a value, who reads it, which are constants.

Bodies of control flow are flattened into it; each of their operations counts once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import ops
from .ops.traits import Traits
from .program import Argument, Block, Function, NamedType, Operation, Ref
from .types import DTYPES, Shape, StateType, TensorType, ValueType

_BY_HELD = {dtype.held: dtype for dtype in reversed(DTYPES.values()) if dtype.name != "string"}


@dataclass(eq=False)
class Value:
    """Something an operation reads or gives.

    Attributes:
        name: Empty for constants written in the place where they are used.
        type: None where it is not a tensor.
        constant: What it holds, if the package says; otherwise None.
        producer: The operation that computes it; None for inputs and constants.
        fixed: It depends on no input: a constant, or a weight that is decompressed.
    """

    name: str
    type: TensorType | None
    constant: Any = None
    producer: Node | None = None
    fixed: bool = False

    @property
    def shape(self) -> Shape:
        return self.type.shape if self.type else ()

    @property
    def extents(self) -> tuple[int, ...]:
        """The shape, with 1 for what is known only when it runs."""
        return tuple(1 if extent is None else extent for extent in self.shape)

    @property
    def dtype(self) -> str:
        return self.type.dtype.name if self.type else ""

    @property
    def elements(self) -> int:
        count = 1
        for extent in self.extents:
            count *= extent
        return count

    @property
    def bytes(self) -> int:
        return self.elements * self.type.dtype.bits // 8 if self.type else 0


@dataclass(eq=False)
class Node:
    """An operation that computes something when the package runs.

    Attributes:
        operation: As the package has it.
        inputs: Arguments by parameter.
        outputs: Its results.
        record: What is known of operations of its type.
        inner: What its bodies give back, and what they read from outside.
    """

    operation: Operation
    record: ops.OperationRecord
    inputs: Mapping[str, tuple[Value, ...]]
    outputs: tuple[Value, ...] = ()
    inner: tuple[Value, ...] = ()

    @property
    def type(self) -> str:
        return self.operation.type

    @property
    def name(self) -> str:
        return self.operation.name

    @property
    def traits(self) -> Traits:
        return self.record.traits

    @property
    def flops(self) -> int:
        """Of what engines are built for, convolutions and matrix products; the rest is bound by memory and counts 0.

        A multiplication and an addition count as two, axes known only when it runs as 1.
        """
        return 2 * self.traits.multiplications(self) if self.traits.multiplications else 0

    @property
    def arguments(self) -> Iterator[Value]:
        """Everything it reads."""
        for many in self.inputs.values():
            yield from many
        yield from self.inner

    @property
    def data(self) -> tuple[Value, ...]:
        """The tensors it reads that depend on an input."""
        return tuple(value for value in self.arguments if value.type is not None and not value.fixed)

    def value(self, parameter: str) -> Value | None:
        """An argument; None if it is left out."""
        given = self.inputs.get(parameter, ())
        return given[0] if given else None

    def extents(self, parameter: str) -> tuple[int, ...]:
        """Of an argument; empty if it is left out."""
        value = self.value(parameter)
        return value.extents if value is not None else ()

    def numbers(self, parameter: str) -> list[float]:
        """A constant argument as a flat list; empty if it is left out or computed."""
        value = self.value(parameter)
        if value is None or not isinstance(value.constant, Tensor):
            return []
        return [float(number) for number in value.constant.reshape(-1)]

    def integers(self, parameter: str) -> list[int]:
        """The same, of whole numbers."""
        return [int(number) for number in self.numbers(parameter)]

    def text(self, parameter: str) -> str:
        """A constant string argument; empty if it is left out."""
        value = self.value(parameter)
        return value.constant if value is not None and isinstance(value.constant, str) else ""


@dataclass(eq=False)
class Graph:
    """A function.

    Attributes:
        inputs: Inputs and states.
        outputs: What the function gives back.
        nodes: Operations in order, those in bodies before the one they belong to; no constants, no weights.
        constants: Constants with a name.
        weights: Operations that decompress weights.
        readers: Operations that read a value.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    constants: list[Value] = field(default_factory=list)
    weights: list[Node] = field(default_factory=list)
    readers: dict[Value, list[Node]] = field(default_factory=dict)

    def reaching(self) -> set[Value]:
        """Values that some output or some state depends on."""
        needed: set[Value] = set()
        waiting = [*self.outputs, *(value for node in self.nodes if not node.outputs for value in node.arguments)]
        while waiting:
            value = waiting.pop()
            if value not in needed:
                needed.add(value)
                if value.producer is not None:
                    waiting.extend(value.producer.arguments)
        return needed


def graph_of(function: Function) -> Graph:
    """Resolve every name of a function."""
    scope = {named.name: _declared(named) for named in function.inputs}
    graph = Graph(tuple(scope.values()))
    graph.outputs = _walk(function.block, function.opset, graph, scope)
    for node in (*graph.weights, *graph.nodes):
        for value in node.arguments:
            graph.readers.setdefault(value, []).append(node)
    return graph


def _walk(block: Block, opset: str, graph: Graph, scope: dict[str, Value]) -> tuple[Value, ...]:
    scope = dict(scope)
    for named in block.inputs:
        scope[named.name] = _declared(named)
    for operation in block.operations:
        if operation.type == "const":
            value = _declared(operation.outputs[0])
            value.constant, value.fixed = operation.attributes["val"], True
            graph.constants.append(value)
            scope[value.name] = value
            continue
        given = dict(operation.inputs) | {key: (value,) for key, value in operation.attributes.items()}
        inputs = {key: tuple(_argument(argument, scope) for argument in many) for key, many in given.items()}
        inner = tuple(value for body in operation.blocks for value in _walk(body, opset, graph, scope))
        node = Node(operation, ops.record(operation.type, opset), inputs, inner=inner)
        weight = operation.type.startswith("constexpr")
        node.outputs = tuple(_declared(output) for output in operation.outputs)
        for value in node.outputs:
            value.producer, value.fixed = node, weight
            scope[value.name] = value
        (graph.weights if weight else graph.nodes).append(node)
    return tuple(scope[name] for name in block.outputs)


def _declared(named: NamedType) -> Value:
    return Value(named.name, _tensor(named.type))


def _tensor(kind: ValueType) -> TensorType | None:
    if isinstance(kind, StateType):
        return kind.wrapped
    return kind if isinstance(kind, TensorType) else None


def _argument(argument: Argument, scope: Mapping[str, Value]) -> Value:
    if isinstance(argument, Ref):
        return scope[argument.name]
    kind = None
    if isinstance(argument, torch.Tensor):
        kind = TensorType(_BY_HELD[argument.dtype], tuple(argument.shape))
    return Value("", kind, constant=argument, fixed=True)
