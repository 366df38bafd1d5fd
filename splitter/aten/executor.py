"""A captured program as one function compiled by XLA.

Nodes are traced one after the other, each by its operator's function (`splitter.aten.ops`), and held to the shape and
element type that PyTorch inferred for it. Weights are arguments of the compiled function: none is folded into it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, fx

from ..boundary import Array
from ..errors import OperatorError, SplitterError
from ..graph.program import Program
from ..graph.shapes import TensorType
from . import ops
from .ops import OperatorRecord, numpy_dtype

Values: TypeAlias = Mapping[str, Any]  # arrays by name
_WIDE = frozenset({"int64", "float64", "complex128"})  # JAX narrows them unless it is told not to


class CompiledProgram:
    """One program, compiled for this machine, with its weights where they are needed."""

    def __init__(
        self,
        program: Program,
        *,
        weights: Mapping[str, Array] | None = None,
        compiler_options: Mapping[str, str] | None = None,
    ) -> None:
        """Trace and compile.

        Args:
            program: As captured; every node of it has a declared type.
            weights: In the place of its own, by the same names.
            compiler_options: For XLA.

        Raises:
            OperatorError: The program uses an operator that has no function, or one as its function does not know it.
        """
        check(program)
        self._program, self._wide = program, _is_wide(program)
        self._types: dict[str, TensorType] = {str(node.target): node.meta["type"] for node in program.input_nodes}
        with self._configured():
            arrays = {name: _array(weight) for name, weight in program.weights.items()} if weights is None else weights
            self._weights = {name: jax.device_put(arrays[name]) for name in program.weights}
            inputs = {name: _abstract(kind) for name, kind in self._types.items()}
            traced = jax.jit(
                _named(program.name, lambda weights, given: computed(program, weights, given)),
                compiler_options=dict(compiler_options or {}),
            )
            self._compiled = traced.lower(self._weights, inputs).compile()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, in the element types of the graph; bfloat16 ones as float32, since NumPy has none.

        Args:
            inputs: One array per input; it is cast to the graph's element type.
        """
        with self._configured():
            given = {name: jnp.asarray(inputs[name], numpy_dtype(kind.dtype)) for name, kind in self._types.items()}
            results = self._compiled(self._weights, given)
            return {
                name: np.array(result, np.float32 if result.dtype == jnp.bfloat16 else None)
                for name, result in zip(self._program.outputs, results, strict=True)
            }

    @contextmanager
    def _configured(self) -> Any:
        """Wide element types only where the graph has some: accelerators compute in them slowly or not at all."""
        with ExitStack() as stack:
            stack.enter_context(jax.enable_x64(self._wide))
            yield


def check(program: Program) -> None:
    """Hold the operators of a program against those that are registered.

    Raises:
        OperatorError: One is not; all are named, with the first node of each.
    """
    unknown: dict[str, fx.Node] = {}
    for node in program.operators:
        if node.target is not operator.getitem and str(node.target) not in ops.registered():
            unknown.setdefault(str(node.target), node)
    if unknown:
        named = ", ".join(f"{name} (node {node.name!r}{_module(node)})" for name, node in unknown.items())
        raise OperatorError(
            f"program {program.name!r} uses operators that are not implemented in JAX",
            received=named,
            fix="Register a function for each in splitter/aten/ops (docs/extending.md), or choose another engine.",
        )


def computed(program: Program, weights: Values, inputs: Values) -> tuple[jax.Array, ...]:
    """The outputs of a program, in its order: a function that JAX can trace.

    Raises:
        OperatorError: An operator cannot be computed, or gives another type than was declared.
    """
    values: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = inputs[str(node.target)]
        elif node.op == "get_attr":
            values[node] = weights[str(node.target)]
        elif node.op == "call_function":
            values[node] = _computed(node, values, program.name)
    return tuple(values[node] for node in program.output_nodes)


def _computed(node: fx.Node, values: Mapping[fx.Node, Any], program: str) -> Any:
    try:
        if node.target is operator.getitem:
            source, place = node.args
            value = values[cast("fx.Node", source)][place]
        else:
            record = ops.registered()[str(node.target)]
            value = record.function(**_arguments(record, node, values))
        declared: TensorType | None = node.meta["type"]
        if declared is not None and (found := _type(value)) != declared:
            raise OperatorError("it gives another type than the graph declares", expected=declared, received=found)
    except Exception as error:  # JAX and NumPy raise every kind
        said = error.problem if isinstance(error, SplitterError) else str(error).strip().splitlines()[0]
        raise OperatorError(
            f"program {program!r}: node {node.name!r} ({node.target}{_module(node)}) cannot be computed in JAX",
            received=str(error) if isinstance(error, SplitterError) else said or type(error).__name__,
            fix="Report it, and choose another engine for the segment.",
        ) from error
    return value


def _arguments(record: OperatorRecord, node: fx.Node, values: Mapping[fx.Node, Any]) -> dict[str, Any]:
    """What a function takes, by its own names; the schema's defaults where the node gives nothing."""
    schema = cast("torch._ops.OpOverload", node.target)._schema.arguments
    given = dict(zip((argument.name for argument in schema if not argument.kwarg_only), node.args, strict=False))
    given |= node.kwargs
    by_name = {argument.name: given.get(argument.name, argument.default_value) for argument in schema}
    arguments = {own: _value(by_name[name], values) for own, name in record.parameters.items()}
    if record.takes_result:
        arguments["result"] = node.meta["type"]
    return arguments


def _value(argument: Any, values: Mapping[fx.Node, Any]) -> Any:
    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, list | tuple):
        return [_value(item, values) for item in argument]
    if isinstance(argument, torch.dtype):
        return numpy_dtype(str(argument).removeprefix("torch."))
    return argument


def _type(value: Any) -> TensorType:
    return TensorType(tuple(value.shape), str(value.dtype))


def _module(node: fx.Node) -> str:
    module = node.meta.get("module", "")
    return f", in module {module}" if module else ""


def _is_wide(program: Program) -> bool:
    types: Sequence[TensorType | None] = [node.meta["type"] for node in program.graph.nodes if node.op != "output"]
    return any(kind is not None and kind.dtype in _WIDE for kind in types)


def _array(weight: Tensor) -> Array:
    """A weight as NumPy's array, over the same memory."""
    tensor = weight.detach()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    return tensor.numpy()


def _abstract(kind: TensorType) -> Any:
    """A tensor that is not there yet, for tracing."""
    stand_in: Any = jax.ShapeDtypeStruct  # has no types
    return stand_in(kind.shape, numpy_dtype(kind.dtype))


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function by the name that JAX keeps what it has compiled under."""
    function.__name__ = name
    return function
