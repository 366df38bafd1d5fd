"""A saved package with the interface of Core ML Tools' ``MLModel``, executed in torch."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import PackageError, UsageError
from ..reading import Read
from . import features
from .features import Feature
from .interpreter import Interpreter, Listener
from .memory import Ledger, counted
from .numerics import Numerics
from .ops import check_result_size
from .program import Block, Function, Operation, functions_of, load_spec
from .tiling import Region
from .types import Shape, StateType, TensorType

Array: TypeAlias = NDArray[Any]


class State(dict[str, Array]):
    """States of one conversation by name, with the methods of Core ML Tools' ``MLState``."""

    def read_state(self, name: str) -> Array:
        """A copy of a state.

        Raises:
            UsageError: There is no state of that name.
        """
        return self[self._known(name)].copy()

    def write_state(self, name: str, value: Array) -> None:
        """Set a state, in its own type.

        Raises:
            UsageError: There is no state of that name, or it has another shape.
        """
        held = self[self._known(name)]
        if np.shape(value) != held.shape:
            raise UsageError(
                f"the value for state {name!r} has another shape", expected=held.shape, received=np.shape(value)
            )
        self[name] = np.array(value, held.dtype)

    def _known(self, name: str) -> str:
        if name not in self:
            raise UsageError(f"unknown state {name!r}", expected=", ".join(self) or "none")
        return name


@dataclass(frozen=True)
class PackageInfo:
    """What a package says about itself.

    Attributes:
        specification_version: Core ML's number for the oldest system that loads it.
        function_name: The function that is executed; ``functions`` lists all.
        opset: e.g. ``"CoreML7"``.
        inputs: By description, images and optional inputs included.
        outputs: The same.
        states: Name and type of each state.
        operations: Count by operation type, constants left out, bodies of control flow included.
        float_values: Names of the operations that compute values of each floating type, one for each value, by
            ``(operation type, type)``; casts, constants and decompressions left out.
    """

    specification_version: int
    function_name: str
    functions: tuple[str, ...]
    opset: str
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: Mapping[str, TensorType]
    operations: Mapping[str, int]
    float_values: Mapping[tuple[str, str], tuple[str, ...]]
    author: str
    license: str
    version: str
    short_description: str
    user_defined: Mapping[str, str]


class Model:
    """A package, ready to predict. Open it with `splitter.mil.load`."""

    def __init__(
        self,
        path: Path,
        *,
        function_name: str | None = None,
        numerics: Numerics = Numerics(),
        seed: int = 0,
        max_iterations: int = 1_000_000,
        read: Read = Path.read_bytes,
    ) -> None:
        """Read and compile a package; see `splitter.mil.load`."""
        self.path = path
        self.numerics = numerics
        self._proto = load_spec(path, read)
        functions = functions_of(path, self._proto, read)
        self.function_name = function_name or _default_function(self._proto, functions)
        if self.function_name not in functions:
            raise UsageError(
                f"{path.name} has no function {self.function_name!r}",
                fix=f"It has {', '.join(functions)}.",
            )
        self.function: Function = functions[self.function_name]
        self._functions = tuple(functions)
        self._max_iterations = max_iterations
        self._interpreter = Interpreter(self.function, path.name, numerics, max_iterations=max_iterations)
        self._generator = torch.Generator().manual_seed(seed)
        self._inputs, self._outputs = features.described(self._proto, self.function)

    @cached_property
    def spec(self) -> PackageInfo:
        """What the package says about itself."""
        metadata = self._proto.description.metadata
        operations, floats = _counted(self.function.block)
        return PackageInfo(
            specification_version=self._proto.specificationVersion,
            function_name=self.function_name,
            functions=self._functions,
            opset=self.function.opset,
            inputs=self._inputs,
            outputs=self._outputs,
            states={
                named.name: named.type.wrapped for named in self.function.inputs if isinstance(named.type, StateType)
            },
            operations=operations,
            float_values={kind: tuple(names) for kind, names in floats.items()},
            author=metadata.author,
            license=metadata.license,
            version=metadata.versionString,
            short_description=metadata.shortDescription,
            user_defined=dict(metadata.userDefined),
        )

    @property
    def input_shapes(self) -> dict[str, Shape]:
        """Shape of each input but states by name; None where an extent is left open."""
        return {value.name: value.type.shape for value in self.function.inputs if isinstance(value.type, TensorType)}

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Operations of the function's body, in order."""
        return self.function.block.operations

    @property
    def regions(self) -> tuple[Region, ...]:
        """The runs of operations that are taken a few rows at a time when nothing listens."""
        return self._interpreter.regions

    def make_state(self) -> State:
        """States of a conversation, all zero; hand them to `predict`, which changes them."""
        state = State()
        with counted(Ledger()) as ledger:
            for name, kind in self.spec.states.items():
                shape = tuple(1 if extent is None else extent for extent in kind.shape)
                check_result_size(shape, kind.dtype.held)
                ledger.charge(math.prod(shape) * kind.dtype.held.itemsize)
                state[name] = np.zeros(shape, kind.dtype.numpy)
        return state

    def variant(self, function: Function) -> Model:
        """The package with another body, e.g. one of `splitter.mil.mixing`; its inputs and outputs stay as they are."""
        other = copy(self)
        vars(other).pop("spec", None)
        other.function = function
        other._interpreter = Interpreter(function, self.path.name, self.numerics, max_iterations=self._max_iterations)
        return other

    def with_numerics(self, numerics: Numerics) -> Model:
        """The package with other numerics."""
        other = copy(self)
        other.numerics = numerics
        other._interpreter = Interpreter(self.function, self.path.name, numerics, max_iterations=self._max_iterations)
        return other

    def predict(
        self,
        data: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        state: dict[str, Array] | None = None,
        *,
        listener: Listener | None = None,
    ) -> Any:
        """Compute the outputs.

        Args:
            data: Arrays, numbers or PIL images by input name; or a list of these, for a list of results.
            state: From `make_state`, for packages with states; changed in place.
            listener: Sees every operation before and after it is computed.

        Returns:
            Arrays (PIL images for image outputs, dictionaries for classifiers) by output name.

        Raises:
            UsageError: An input is missing, unknown, or not what the package takes.
            OperationError: An operation cannot be computed; the message names it.
        """
        if not isinstance(data, Mapping):
            return [self.predict(inputs, state, listener=listener) for inputs in data]
        inputs = {
            name: self.numerics.value(value)
            for name, value in features.taken(self._inputs, self.function, data, self.path.name).items()
        }
        states = self._taken_states(state)
        results = self._interpreter.run(inputs, states, generator=self._generator, listener=listener)
        if state is not None:
            for name, tensor in states.items():
                state[name] = features.as_array(tensor, self.spec.states[name]).copy()
        return features.given(self._outputs, self.function, results)

    def _taken_states(self, state: dict[str, Array] | None) -> dict[str, Tensor]:
        if self.spec.states and state is None:
            raise UsageError(
                f"{self.path.name} has states and was given none", fix="Pass state=model.make_state() and keep it."
            )
        if state is not None and state.keys() != self.spec.states.keys():
            raise UsageError(
                f"{self.path.name} was given other states than it has",
                expected=", ".join(self.spec.states) or "none",
                received=", ".join(state) or "none",
            )
        return {
            name: self.numerics.value(features.as_tensor(state[name], kind, name))  # type: ignore[index]
            for name, kind in self.spec.states.items()
        }


def _default_function(proto: Any, functions: Mapping[str, Function]) -> str:
    named: str = proto.description.defaultFunctionName
    return named or ("main" if "main" in functions else next(iter(functions)))


def _counted(block: Block) -> tuple[Counter[str], dict[tuple[str, str], list[str]]]:
    operations: Counter[str] = Counter()
    floats: dict[tuple[str, str], list[str]] = defaultdict(list)
    for operation in block.operations:
        if operation.type == "const":
            continue
        operations[operation.type] += 1
        if operation.type != "cast" and not operation.type.startswith("constexpr"):
            for output in operation.outputs:
                if isinstance(output.type, TensorType) and output.type.dtype.is_float:
                    floats[operation.type, output.type.dtype.name].append(operation.name)
        for nested in operation.blocks:
            inner, inner_floats = _counted(nested)
            operations += inner
            for kind, names in inner_floats.items():
                floats[kind] += names
    return operations, floats


def load(
    path: Path | str,
    *,
    function_name: str | None = None,
    numerics: Numerics = Numerics(),
    seed: int = 0,
    max_iterations: int = 1_000_000,
    read: Read = Path.read_bytes,
) -> Model:
    """Open a saved ``.mlpackage`` for execution on this machine.

    Args:
        path: The package, from splitter or anything else that writes ML Programs.
        function_name: Which function, for packages with several; the default one otherwise.
        numerics: How results are rounded; by default each one to the type the program declares for it.
        seed: Of random operations.
        max_iterations: How often the loops of one prediction may run, together, before they are taken for endless.
        read: Gives the content of a file of the package.

    Raises:
        PackageError: It cannot be read, or is not what its own types say.
        OperationError: It holds an operation splitter cannot execute.
        UsageError: It has no function of that name.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise PackageError(f"{directory} is no Core ML package: there is no directory of this name")
    return Model(
        directory,
        function_name=function_name,
        numerics=numerics,
        seed=seed,
        max_iterations=max_iterations,
        read=read,
    )
