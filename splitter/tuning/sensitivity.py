"""How much noise each value of a package adds to the model's outputs when it alone passes through half precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..boundary import Array
from ..bundle.manifest import SegmentRecord
from ..mil import ops
from ..mil.interpreter import Interpreter
from ..mil.mixing import can_be_half, in_half, is_single, roundtrip_fp16
from ..mil.model import Model
from ..mil.numerics import Numerics
from ..mil.program import Function, Operation, Ref, read_by
from ..mil.slicing import part
from ..mil.types import TensorType, ValueType
from .trial import Trial

_SMALL = 1 / 64  # of the largest value: statistics of norms, taken together with those they are computed from
_PART = 48  # operations between the positions from which runs go on
_PROBE = 1e-4  # of the values: noise that stands in for one that is not finite


@dataclass(frozen=True)
class Group:
    """Values that are rounded together or not at all: one moved about, or the few numbers of a norm's statistics.

    Attributes:
        segment: Whose package they are in.
        values: Their names.
        touched_by: Operations that compute or read them. They stay in float32 if all of these do.
        noise: Energy at the model's outputs over that of the outputs, when only these are rounded; infinite where
            half precision cannot hold them.
    """

    segment: str
    values: frozenset[str]
    touched_by: frozenset[str]
    noise: float


def measure(trial: Trial, progress: Callable[[str], None]) -> tuple[Group, ...]:
    """Round one group at a time in the first excerpt, and see what comes of it.

    The noise is measured at the outputs of the group's package, and weighed by what noise of that kind does from
    there on to the model's outputs. All noises of a package are then scaled by one factor, so that they add up to
    what its whole program in half precision makes: one at a time they fall short of it by some decibels.
    """
    found: list[Group] = []
    for segment in trial.bundle.segments:
        if segment.name not in trial.packages:
            continue
        candidates = tuple(_candidates(trial.packages[segment.name].function))
        progress(f"rounding {len(candidates)} groups of values of {segment.name}, one at a time")
        noises = _noises(trial, segment, candidates)
        total = math.fsum(noises)
        factor = _together(trial, segment) / total if total and math.isfinite(total) else 1.0
        found += [
            Group(segment.name, values, touched, noise * factor)
            for (values, touched), noise in zip(candidates, noises, strict=True)
        ]
    return tuple(found)


def _candidates(function: Function) -> Iterator[tuple[frozenset[str], frozenset[str]]]:
    """Values to round together, and the operations that touch them."""
    kinds = _kinds(function)
    constants = {operation.name: operation for operation in function.block.operations if operation.type == "const"}
    operations = can_be_half(function)
    largest = max((_elements(kind) for kind in kinds.values()), default=1)
    touched: dict[str, set[str]] = {}
    together: list[tuple[str, str]] = []
    for operation in operations:
        values = [name for name in _touched(operation) if name in kinds and name not in constants]
        for name in values:
            touched.setdefault(name, set()).add(operation.name)
        small = [name for name in values if _elements(kinds[name]) <= _SMALL * largest]
        joined = values if ops.record(operation.type, function.opset).traits.moves else small
        together += pairwise(joined)
        inexact = {
            name for name in _touched(operation) if name in constants and name in kinds and _is_inexact(constants[name])
        }
        if inexact:
            yield frozenset(inexact), frozenset({operation.name})
    for names in _components(list(touched), together):
        yield names, frozenset().union(*(touched[name] for name in names))


def _components(names: list[str], pairs: Sequence[tuple[str, str]]) -> Iterator[frozenset[str]]:
    """Names that are connected by pairs."""
    index = {name: position for position, name in enumerate(names)}
    ends = [[index[pair[side]] for pair in pairs] for side in (0, 1)]
    shape = (len(names), len(names))
    _, labels = connected_components(coo_array((np.ones(len(pairs)), ends), shape=shape), directed=False)
    members: dict[int, list[str]] = {}
    for name, label in zip(names, labels, strict=True):
        members.setdefault(int(label), []).append(name)
    yield from map(frozenset, members.values())


def _touched(operation: Operation) -> Iterator[str]:
    yield from (argument.name for argument in read_by(operation) if isinstance(argument, Ref))
    yield from (output.name for output in operation.outputs)


def _kinds(function: Function) -> dict[str, ValueType]:
    """Types of the float32 values: inputs, constants, results."""
    named = [*function.inputs, *(result for operation in function.block.operations for result in operation.outputs)]
    return {value.name: value.type for value in named if is_single(value.type)}


def _elements(kind: ValueType) -> int:
    return math.prod(extent or 1 for extent in kind.shape) if isinstance(kind, TensorType) else 0


def _is_inexact(constant: Operation) -> bool:
    value = constant.attributes["val"]
    return bool((value.to(torch.float16).to(value.dtype) != value).any())


def _weights(trial: Trial, segment: SegmentRecord, exact: Mapping[str, Array]) -> dict[str, float]:
    """By output of a segment: relative noise energy at the model's outputs, per energy of noise there.

    The noise is what the whole program makes in half precision: white noise of its energy does 2 to 12 dB less harm
    than it, which follows the signal. Only where it is not finite, noise proportional to the values stands in.
    """
    generator = np.random.default_rng(0)
    half = trial.predict(segment, _all_half(trial, segment), trial.reference[0])
    weights = {}
    for name in segment.outputs:
        noise = half[name] - exact[name]
        if not np.isfinite(noise).all():
            noise = _PROBE * exact[name] * generator.standard_normal(noise.shape).astype(np.float32)
        reference = trial.reference[0]
        disturbed = trial.after(segment, {**reference, name: reference[name] + noise})
        weights[name] = _relative(trial, reference, disturbed) / _energy(noise) if noise.any() else 0.0
    return weights


def _all_half(trial: Trial, segment: SegmentRecord) -> Function:
    function = trial.packages[segment.name].function
    return in_half(function, {operation.name for operation in can_be_half(function)})


def _together(trial: Trial, segment: SegmentRecord) -> float:
    """Noise at the model's outputs when a whole package is in half precision, and nothing else."""
    reference = trial.reference[0]
    results = trial.predict(segment, _all_half(trial, segment), reference)
    noise = _relative(trial, reference, trial.after(segment, {**reference, **results}))
    return noise if math.isfinite(noise) else math.inf


def _relative(trial: Trial, reference: Mapping[str, Array], values: Mapping[str, Array]) -> float:
    """Noise over signal at the model's outputs; the worst of them."""
    return max(_energy(values[name] - reference[name]) / _energy(reference[name]) for name in trial.outputs)


def _energy(array: Array) -> float:
    return float(np.sum(np.square(array, dtype=np.float64)))


def _noises(
    trial: Trial,
    segment: SegmentRecord,
    candidates: Sequence[tuple[frozenset[str], frozenset[str]]],
) -> list[float]:
    package = trial.packages[segment.name]
    specs = trial.bundle.tensors
    given = {name: specs[name].packaged(trial.reference[0][name]) for name in segment.inputs}
    exact = trial.predict(segment, package.function, trial.reference[0])
    weights = _weights(trial, segment, exact)

    def weighed(results: Mapping[str, Array]) -> float:
        noise = sum(
            weight * _energy(specs[name].unpackaged(results[name]) - exact[name]) for name, weight in weights.items()
        )
        return noise if math.isfinite(noise) else math.inf

    return _one_at_a_time(package, given, [values for values, _ in candidates], weighed)


def _one_at_a_time(
    package: Model, given: Mapping[str, Array], groups: Sequence[frozenset[str]], weighed: Callable[..., float]
) -> list[float]:
    """A run for each group, from the last position before any of it exists."""
    function = package.function
    operations = function.block.operations
    position = {output.name: index for index, operation in enumerate(operations) for output in operation.outputs}
    constants = {operation.name for operation in operations if operation.type == "const"}
    computed = [index for index, operation in enumerate(operations) if operation.type != "const"]
    starts = [*computed[::_PART], len(operations)]
    reader: dict[str, int] = {}
    for index, operation in enumerate(operations):
        for argument in read_by(operation):
            if isinstance(argument, Ref):
                reader.setdefault(argument.name, index)

    def first(name: str) -> int:
        return reader.get(name, 0) if name in constants else position.get(name, 0)

    values = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in given.items()}
    noises: dict[int, float] = {}
    for start, stop in pairwise(starts):
        rest = part(function, start, len(operations))
        for index, group in enumerate(groups):
            where = min(map(first, group))
            if where < stop and index not in noises:
                results = _run(package, roundtrip_fp16(rest, group), values)
                noises[index] = weighed({name: value.numpy() for name, value in results.items()})
        values = _run(package, part(function, start, stop), values)
    return [noises[index] for index in range(len(groups))]


def _run(package: Model, function: Function, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    given = {value.name: values[value.name] for value in function.inputs}
    interpreter = Interpreter(function, package.path.name, Numerics(), max_iterations=1)
    return interpreter.run(given, {}, generator=torch.Generator())
