"""Executes one function of an ML Program, operation by operation, in torch.

Before it runs, a block is compiled into steps: constants are bound, arguments become slots of a flat list, and
each value is freed after its last use.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import OperationError, SplitterError
from . import memory, ops
from .memory import Ledger, Value
from .numerics import Numerics
from .ops import Context, OperationRecord
from .program import Block, Function, Operation, Ref
from .tiling import Argument, Region, regions
from .types import ListType, StateType, TensorType, ValueType


class Listener(Protocol):
    """Sees every operation but constants, before and after it is computed."""

    def before(self, operation: Operation, inputs: Mapping[str, Value]) -> None: ...

    def after(self, operation: Operation, outputs: Mapping[str, Value]) -> None: ...


@dataclass(frozen=True)
class _Step:
    """One operation, bound.

    Attributes:
        constants: Arguments known when the program was read, converted.
        dynamic: The others.
        outputs: Slots of the results.
        blocks: Compiled bodies.
        size: Bytes of its results; None where their declared types do not say.
        frees: Slots that nothing reads any more.
    """

    operation: Operation
    record: OperationRecord
    constants: Mapping[str, Value]
    dynamic: tuple[Argument, ...]
    outputs: tuple[int, ...]
    blocks: tuple[_Compiled, ...]
    size: int | None
    frees: tuple[int, ...] = ()

    @property
    def reads(self) -> set[int]:
        """Slots it reads, those its bodies read included."""
        own = {slot for argument in self.dynamic for slot in argument.slots}
        return own.union(*(block.reads for block in self.blocks))


@dataclass(frozen=True)
class _Compiled:
    """A block, ready to run: slots of its inputs and outputs, its steps, and the runs of them worth tiling."""

    inputs: tuple[int, ...]
    steps: tuple[_Step, ...]
    outputs: tuple[int, ...]
    regions: Mapping[int, Region]

    @property
    def reads(self) -> set[int]:
        return set(self.outputs).union(*(step.reads for step in self.steps))


@dataclass(frozen=True)
class _Run:
    """What all operations of one execution share."""

    states: dict[str, Tensor]
    generator: torch.Generator
    listener: Listener | None
    iterations: Iterator[int]
    ledger: Ledger


class Interpreter:
    """A function of a package, compiled for one choice of numerics."""

    def __init__(self, function: Function, package: str, numerics: Numerics, *, max_iterations: int) -> None:
        """Compile.

        Args:
            function: What to execute.
            package: Its package's name, for messages.
            numerics: How results are rounded.
            max_iterations: How often the loops of one execution may run, together.

        Raises:
            OperationError: An operation is unknown, lacks an argument it needs, or the constants need too much memory.
        """
        self.function = function
        self._package = package
        self._numerics = numerics
        self._max_iterations = max_iterations
        self._slots = 0
        self._constants: dict[int, Value] = {}
        self._ledger = Ledger()  # of the constants
        self._types: dict[int, TensorType] = {}
        scope = {named.name: self._new_slot(named.type) for named in function.inputs}
        self._inputs = dict(scope)
        self._states = {named.name for named in function.inputs if isinstance(named.type, StateType)}
        self._body = self._compile(function.block, scope)
        self._output_names = function.block.outputs

    @property
    def regions(self) -> tuple[Region, ...]:
        """Runs of operations of the function's body that are executed tile by tile."""
        return tuple(self._body.regions.values())

    def run(
        self,
        inputs: Mapping[str, Value],
        states: dict[str, Tensor],
        *,
        generator: torch.Generator,
        listener: Listener | None = None,
    ) -> dict[str, Value]:
        """Execute once.

        Args:
            inputs: Values by name; states are not among them.
            states: State tensors by name, updated in place of the dictionary.
            generator: For random operations.
            listener: Sees every operation.
        """
        slots: list[Value] = [None] * self._slots
        for slot, constant in self._constants.items():
            slots[slot] = constant
        for name, slot in self._inputs.items():
            slots[slot] = name if name in self._states else inputs[name]
        ledger = Ledger(self._ledger, lambda: (*slots, *states.values()))
        ledger.charge(sum(map(memory.allocated, (*inputs.values(), *states.values()))))
        with torch.no_grad(), memory.counted(ledger):
            results = self._run(self._body, slots, _Run(states, generator, listener, count(), ledger))
            taken = {_storage(value) for value in (*self._constants.values(), *inputs.values(), *states.values())}
            return dict(zip(self._output_names, _own(results, taken, ledger), strict=True))

    # -------------------------------------------------------------------------------- compiling

    def _new_slot(self, kind: ValueType | None = None) -> int:
        self._slots += 1
        if isinstance(kind, TensorType):
            self._types[self._slots - 1] = kind
        return self._slots - 1

    def _compile(self, block: Block, scope: MutableMapping[str, int]) -> _Compiled:
        """Bind a block's operations; its names end with it."""
        scope = ChainMap({}, scope)  # no copy, which for thousands of blocks would take minutes
        inputs = tuple(scope.setdefault(named.name, self._new_slot(named.type)) for named in block.inputs)
        bound = [step for operation in block.operations if (step := self._bind(operation, scope)) is not None]
        outputs = tuple(scope[name] for name in block.outputs)
        last = _last_uses(inputs, bound, outputs)
        found = regions(bound, self._types, lambda slot, index: last[slot] > index)
        dying: dict[int, list[int]] = {}
        for slot, index in last.items():
            dying.setdefault(index, []).append(slot)
        steps = tuple(replace(step, frees=tuple(dying.get(index, ()))) for index, step in enumerate(bound))
        return _Compiled(inputs, steps, outputs, {region.first: region for region in found})

    def _bind(self, operation: Operation, scope: MutableMapping[str, int]) -> _Step | None:
        if operation.type == "const":
            scope[operation.name] = self._new_constant(operation.attributes["val"], operation)
            return None
        record = ops.find(operation.type, self.function.opset)
        if record is None:
            raise self._error(operation, "operations are ones splitter can execute", f"type {operation.type!r}")
        constants: dict[str, Value] = {}
        dynamic = []
        known = dict(operation.inputs) | {key: (value,) for key, value in operation.attributes.items()}
        for name, parameter in record.parameters.items():
            if name in known:
                slots = tuple(self._slot_of(operation, argument, scope) for argument in known.pop(name))
                if len(slots) != 1 and not parameter.variadic:
                    raise self._error(operation, f"parameter {name!r} has one argument", len(slots))
                if all(slot in self._constants for slot in slots):
                    constants[name] = self._converted(operation, Argument(parameter, slots), self._constants)
                    if isinstance(constants[name], list):  # of Python's numbers: larger than the tensor it was
                        self._hold_constant(constants[name], operation)
                else:
                    dynamic.append(Argument(parameter, slots))
        if unknown := sorted(known):
            raise self._error(operation, "operations take the parameters Core ML documents", f"{', '.join(unknown)}")
        blocks = tuple(self._compile(body, scope) for body in operation.blocks)
        outputs = []
        for output in operation.outputs:
            scope[output.name] = self._new_slot(output.type)
            outputs.append(scope[output.name])
        sizes = [self._size(slot) for slot in outputs]
        size = None if None in sizes else sum(size or 0 for size in sizes)
        return _Step(operation, record, constants, tuple(dynamic), tuple(outputs), blocks, size)

    def _slot_of(self, operation: Operation, argument: Any, scope: Mapping[str, int]) -> int:
        return scope[argument.name] if isinstance(argument, Ref) else self._new_constant(argument, operation)

    def _new_constant(self, value: Any, operation: Operation) -> int:
        slot = self._new_slot()
        self._constants[slot] = self._numerics.constant(value)
        self._hold_constant(self._constants[slot], operation)
        return slot

    def _hold_constant(self, value: Value, operation: Operation) -> None:
        self._ledger.hold(value)
        self._check_memory(self._ledger, operation)

    def _size(self, slot: int) -> int | None:
        """Bytes of a value by its declared type; None where it is no tensor or an extent is left open."""
        kind = self._types.get(slot)
        if kind is None or None in kind.shape:
            return None
        return math.prod(extent or 0 for extent in kind.shape) * self._numerics.held(kind.dtype).itemsize

    # ---------------------------------------------------------------------------------- running

    def _run(self, block: _Compiled, slots: list[Value], run: _Run) -> list[Value]:
        listener = run.listener
        index = 0
        while index < len(block.steps):
            region = block.regions.get(index)
            if region is not None and listener is None:
                self._run_region(block.steps, region, slots, run)
                index = region.stop
                continue
            step = block.steps[index]
            index += 1
            arguments = self._arguments(step, slots)
            if listener is not None:
                listener.before(step.operation, dict(arguments))
            if run.ledger.total + (step.size or 0) > run.ledger.limit:
                self._check_memory(run.ledger, step.operation, step.size or 0)
            if step.record.takes_context:
                arguments["context"] = self._context(step, slots, run)
            else:  # only now do the arguments alone hold what dies here, and it may die while it is computed with
                for slot in step.frees:
                    slots[slot] = None
            results = self._computed(step, arguments)
            _place(slots, step.outputs, results)
            run.ledger.charge(sum(map(memory.allocated, results)) if step.size is None else step.size)
            if step.size is None:
                self._check_memory(run.ledger, step.operation)
            if listener is not None:
                names = (output.name for output in step.operation.outputs)
                listener.after(step.operation, dict(zip(names, results, strict=True)))
            del arguments, results
            for slot in step.frees:
                slots[slot] = None
        return [slots[slot] for slot in block.outputs]

    def _context(self, step: _Step, slots: list[Value], run: _Run) -> Context:
        def run_block(index: int, *given: Value) -> list[Value]:
            block = step.blocks[index]
            for slot, value in zip(block.inputs, given, strict=True):
                kind = self._types.get(slot)
                slots[slot] = value if kind is None else self._declared(value, kind, None)
            return self._run(block, slots, run)

        return Context(step.operation, run.generator, run_block, run.states, run.iterations, self._max_iterations)

    def _run_region(self, steps: Sequence[_Step], region: Region, slots: list[Value], run: _Run) -> None:
        """Run a region tile by tile, and put its results together."""
        inner = steps[region.first : region.stop]
        if region.attention and all(slots[slot].dtype == torch.float32 for slot in region.attention):
            with suppress(
                RuntimeError, SplitterError
            ):  # what it does not take is the operations' own to refuse, by name
                self._run_attention(inner, region, slots)
                return
        size = sum(self._size(slot) or 0 for slot in region.results)
        self._check_memory(run.ledger, inner[-1].operation, size)
        run.ledger.charge(size)
        made = {slot for step in inner for slot in step.outputs}
        whole = {slot: slots[slot] for slot in region.sliced - made}
        results: dict[int, Tensor] = {}
        for start in range(0, region.rows, region.tile):
            rows = min(region.tile, region.rows - start)
            for slot, value in whole.items():
                slots[slot] = value.narrow(region.axis, start, rows)
            for step in inner:
                arguments = self._arguments(step, slots)
                if region.pads and step is inner[0]:
                    arguments |= _with_neighbours(arguments["x"], region, start, rows)
                if (shape := step.record.traits.result_shape) in arguments:  # of a tile, now
                    arguments[shape] = list(_extended(self._types[step.outputs[0]].shape, region.axis, rows))
                if step.record.takes_context:
                    arguments["context"] = self._context(step, slots, run)
                _place(slots, step.outputs, self._computed(step, arguments, (region.axis, rows)))
                for slot in step.frees:
                    if slot in made and slot not in region.results:
                        slots[slot] = None
            for slot in region.results:
                if slot not in results:
                    results[slot] = slots[slot].new_empty(_extended(slots[slot].shape, region.axis, region.rows))
                results[slot].narrow(region.axis, start, rows).copy_(slots[slot])
        for slot in made:
            slots[slot] = results.get(slot)
        dead = {slot for step in inner for slot in step.frees}
        for slot, value in whole.items():
            slots[slot] = None if slot in dead else value
        for slot in dead - made:
            slots[slot] = None

    def _run_attention(self, steps: Sequence[_Step], region: Region, slots: list[Value]) -> None:
        """Attend in one call: in float32 nothing is rounded between its operations."""
        queries, keys, values = (slots[slot] for slot in region.attention)
        result = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, scale=1.0)
        slots[steps[-1].outputs[0]] = self._declared(result, steps[-1].operation.outputs[0].type, None)
        for slot in (slot for step in steps for slot in step.frees):
            slots[slot] = None

    def _arguments(self, step: _Step, slots: list[Value]) -> dict[str, Value]:
        arguments = dict(step.constants)
        for argument in step.dynamic:
            arguments[argument.parameter.name] = self._converted(step.operation, argument, slots)
        return arguments

    def _computed(
        self, step: _Step, arguments: dict[str, Value], tile: tuple[int, int] | None = None
    ) -> Sequence[Value]:
        """Results of an operation, in their declared types; in a tile, along an axis, of so many rows."""
        operation = step.operation
        try:
            computed = self._numerics.compute(step.record, arguments)
            results = computed if isinstance(computed, tuple) else (computed,)
            if len(results) != len(operation.outputs):
                raise OperationError(
                    "the number of results is not the declared one",
                    expected=len(operation.outputs),
                    received=len(results),
                )
            return [
                self._declared(value, output.type, tile)
                for value, output in zip(results, operation.outputs, strict=True)
            ]
        except SplitterError as error:
            raise self._named(operation, error) from error
        except Exception as error:  # torch and Python raise every kind for hostile arguments
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise self._error(operation, "it cannot compute what it is given", text) from error

    def _declared(self, value: Value, kind: ValueType, tile: tuple[int, int] | None) -> Value:
        """The result in its declared type: rounded, and of the declared shape."""
        if not isinstance(value, Tensor) or not isinstance(kind, TensorType) or kind.dtype.name == "string":
            if not _is_of(value, kind):
                raise OperationError(
                    "the result has another type than declared", expected=kind, received=type(value).__name__
                )
            return value
        shape = kind.shape if tile is None else _extended(kind.shape, *tile)
        if len(value.shape) != len(shape) or any(
            extent is not None and extent != got for extent, got in zip(shape, value.shape, strict=True)
        ):
            raise OperationError(
                "the result has another shape than declared", expected=kind, received=f"shape {tuple(value.shape)}"
            )
        return self._numerics.rounded(value, kind.dtype)

    def _converted(
        self, operation: Operation, argument: Argument, slots: Mapping[int, Value] | Sequence[Value]
    ) -> Value:
        parameter = argument.parameter
        values = [slots[slot] for slot in argument.slots]
        try:
            return parameter.convert(values if parameter.variadic else values[0])
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            problem = f"parameter {parameter.name!r} has another type than documented"
            raise self._error(operation, problem, str(error)) from error

    def _check_memory(self, ledger: Ledger, operation: Operation, more: int = 0) -> None:
        try:
            ledger.check(more)
        except OperationError as error:
            raise self._named(operation, error) from error

    def _named(self, operation: Operation, error: SplitterError) -> OperationError:
        problem = f"{operation.type} {operation.name!r} of {self._package}: {error.problem}"
        return OperationError(problem, expected=error.expected, received=error.received, fix=error.fix)

    def _error(self, operation: Operation, problem: str, received: object) -> OperationError:
        return OperationError(f"{operation.type} {operation.name!r} of {self._package}: {problem}", received=received)


def _storage(value: Value) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else None


def _own(results: list[Value], taken: set[int | None], ledger: Ledger) -> Iterator[Value]:
    """Results in memory of their own: a caller may write into what he is given."""
    for result in results:
        place = _storage(result)
        if place is not None and place in taken:
            ledger.check(result.nbytes)
            result = result.clone()  # noqa: PLW2901 - it is the same value
            ledger.hold(result)
        taken.add(place)
        yield result


def _extended(shape: Sequence[int | None], axis: int, extent: int) -> tuple[int | None, ...]:
    """A shape with another extent along one axis."""
    return (*shape[:axis], extent, *shape[axis + 1 :])


def _place(slots: list[Value], places: Sequence[int], values: Sequence[Value]) -> None:
    """Put values into their slots; a function of its own, so that no loop variable keeps the last one alive."""
    for place, value in zip(places, values, strict=True):
        slots[place] = value


def _with_neighbours(x: Tensor, region: Region, start: int, rows: int) -> dict[str, Value]:
    """Arguments of a convolution for some rows: the rows it reaches, and padding only where there are none."""
    place = 2 * (region.axis - 2)
    before, after = region.pads[place : place + 2]
    low, high = max(0, start - before), min(region.rows, start + rows + after)
    pad = list(region.pads)
    pad[place : place + 2] = [before - (start - low), after - (high - start - rows)]
    return {"x": x.narrow(region.axis, low, high - low), "pad": pad}


def _is_of(value: Value, kind: ValueType) -> bool:
    """Whether what is not a tensor of numbers (a string, a label, a list, …) is of a type."""
    match kind:
        case TensorType():
            return isinstance(value, str if kind.dtype.name == "string" else int)
        case ListType():
            return isinstance(value, list)
        case StateType():
            return isinstance(value, str)
    return isinstance(value, dict)


def _last_uses(inputs: Sequence[int], steps: Sequence[_Step], outputs: Sequence[int]) -> dict[int, int]:
    """Index of the step after which nothing reads a slot of the block any more; past the end for its outputs."""
    last = dict.fromkeys(inputs, 0)
    for index, step in enumerate(steps):
        last |= dict.fromkeys(step.outputs, index)
        last |= {slot: index for slot in step.reads if slot in last}
    return last | {slot: len(steps) for slot in outputs if slot in last}
