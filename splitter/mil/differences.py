"""Two packages, operation by operation: what was written otherwise, and where their values part.

Operations are matched by the name of their first result, then by structure: the longest runs of the same type and shape
among those that are left, and what lies alone between two matches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..parity import Parity, compare
from .graph import Graph, Node, Value, graph_of
from .model import Model
from .program import Operation

_SAMPLES = 1 << 14  # values of a result that are compared; its range is of all of them


@dataclass(frozen=True)
class Sample:
    """What an operation's first result was.

    Attributes:
        shape: Of the result.
        low: Least value, NaN left out.
        high: Greatest value.
        values: Some of them, at places that depend on the shape alone, in float32; all if there are few.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    values: NDArray[np.float32]

    @classmethod
    def of(cls, tensor: Tensor) -> Sample:
        flat = tensor.detach().reshape(-1)
        count = flat.numel()
        if count > _SAMPLES:
            places = np.random.default_rng(count).integers(0, count, _SAMPLES)
            flat_part = flat[torch.from_numpy(places)]
        else:
            flat_part = flat
        finite = torch.nan_to_num(flat.to(torch.float32), nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        low, high = (float(finite.min()), float(finite.max())) if count else (0.0, 0.0)
        return cls(tuple(tensor.shape), low, high, flat_part.to(torch.float32).numpy().copy())


@dataclass
class Samples:
    """A listener that samples every operation's first result."""

    seen: dict[int, Sample] = field(default_factory=dict)

    def before(self, operation: Operation, inputs: Mapping[str, Any]) -> None: ...

    def after(self, operation: Operation, outputs: Mapping[str, Any]) -> None:
        result = next(iter(outputs.values()), None)
        if isinstance(result, Tensor):
            self.seen[id(operation)] = Sample.of(result)


@dataclass(frozen=True)
class Pair:
    """An operation of each package that stand for one another.

    Attributes:
        first: Its name in the first package.
        second: In the second.
        type: In the first.
        matched: ``"name"`` or ``"structure"``.
        written: What the programs have otherwise: types, precisions, parameters, weights.
        parity: Of the second's result to the first's, of a sample; None if they were not run, or have other shapes.
        ranges: Least and greatest value in the first, and in the second; None if they were not run.
    """

    first: str
    second: str
    type: str
    matched: str
    written: tuple[str, ...]
    parity: Parity | None = None
    ranges: tuple[tuple[float, float], tuple[float, float]] | None = None

    @property
    def equal(self) -> bool:
        """Whether the values are, in the sample."""
        return self.parity is None or self.parity.max_abs == 0


@dataclass(frozen=True)
class Differences:
    """Two packages compared.

    Attributes:
        pairs: In the order of the first package.
        only_first: Operations that have no match, as ``type name``.
        only_second: The same of the second.
    """

    pairs: tuple[Pair, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @property
    def written(self) -> tuple[Pair, ...]:
        """What is written otherwise."""
        return tuple(pair for pair in self.pairs if pair.written)

    @property
    def first_difference(self) -> Pair | None:
        """Where values first differ at all."""
        return next((pair for pair in self.pairs if not pair.equal), None)

    def first_below(self, snr_db: float) -> Pair | None:
        """Where they first differ by more than so many decibels."""
        for pair in self.pairs:
            if pair.parity is not None and not pair.equal and not pair.parity.reaches(snr_db):
                return pair
        return None

    @property
    def identical(self) -> bool:
        lonely = self.only_first or self.only_second
        return not lonely and not self.written and self.first_difference is None


def differences(first: Model, second: Model, inputs: Mapping[str, Any] | None) -> Differences:
    """Compare the functions of two opened packages; run both where inputs are given."""
    graphs = graph_of(first.function), graph_of(second.function)
    runs = [_sampled(model, inputs) if inputs is not None else {} for model in (first, second)]
    nodes = [_ordered(graph) for graph in graphs]
    matches = _matched(*nodes)
    pairs = [_pair(a, b, how, *runs) for a, b, how in matches]
    taken = {id(a) for a, _, _ in matches} | {id(b) for _, b, _ in matches}
    lonely = [tuple(f"{node.type} {node.name}" for node in side if id(node) not in taken) for side in nodes]
    return Differences(tuple(pairs), lonely[0], lonely[1])


def _sampled(model: Model, inputs: Mapping[str, Any]) -> dict[int, Sample]:
    samples = Samples()
    with np.errstate(all="ignore"):
        model.predict(inputs, model.make_state() if model.spec.states else None, listener=samples)
    return samples.seen


def _ordered(graph: Graph) -> list[Node]:
    return [*graph.weights, *graph.nodes]


def _base(name: str) -> str:
    """A value's name without what Core ML Tools adds to it in half precision."""
    return name.removesuffix("_to_fp16").removesuffix("_cast_fp16")


def _kind(node: Node) -> tuple[str, tuple[int | None, ...]]:
    return node.type, node.outputs[0].shape if node.outputs else ()


def _matched(first: list[Node], second: list[Node]) -> list[tuple[Node, Node, str]]:
    """Pairs in the order of the first, and how each was found."""
    alike = {(_base(node.name), node.type): node for node in second}
    swapped = {_base(node.name): node for node in second if node.type != "cast"}
    found: dict[int, tuple[Node, str]] = {}
    for node in first:
        other = alike.get((_base(node.name), node.type))
        if other is None and node.type != "cast":
            other = swapped.get(_base(node.name))
            if other is not None and _kind(other)[1] != _kind(node)[1]:
                other = None
        if other is not None:
            found[id(node)] = (other, "name")
    taken = {id(other) for other, _ in found.values()}
    left = [node for node in first if id(node) not in found]
    right = [node for node in second if id(node) not in taken]
    matcher = SequenceMatcher(None, [*map(_kind, left)], [*map(_kind, right)], autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag == "equal" or (tag == "replace" and j - i == m - k):
            for a, b in zip(left[i:j], right[k:m], strict=True):
                if tag == "equal" or _kind(a)[1] == _kind(b)[1]:
                    found[id(a)] = (b, "structure")
    return [(node, *found[id(node)]) for node in first if id(node) in found]


def _pair(a: Node, b: Node, how: str, run_a: Mapping[int, Sample], run_b: Mapping[int, Sample]) -> Pair:
    one, other = run_a.get(id(a.operation)), run_b.get(id(b.operation))
    parity = ranges = None
    if one is not None and other is not None:
        ranges = (one.low, one.high), (other.low, other.high)
        if one.shape == other.shape and one.values.size:
            with np.errstate(all="ignore"):
                parity = compare(one.values, other.values)
    return Pair(a.name, b.name, a.type, how, tuple(_written(a, b)), parity, ranges)


# ------------------------------------------------------------------------------------ as written


def _written(a: Node, b: Node) -> Iterator[str]:
    if a.type != b.type:
        yield f"{a.type} in the first, {b.type} in the second"
        return
    precisions = [", ".join(value.dtype for value in node.outputs) for node in (a, b)]
    if precisions[0] != precisions[1]:
        yield f"computes {precisions[0]} in the first, {precisions[1]} in the second"
    shapes = [[value.shape for value in node.outputs] for node in (a, b)]
    if shapes[0] != shapes[1]:
        yield f"gives {shapes[0]} in the first, {shapes[1]} in the second"
    for name in sorted({*a.inputs, *b.inputs}):
        ours, theirs = a.inputs.get(name, ()), b.inputs.get(name, ())
        if len(ours) != len(theirs):
            yield f"{name}: {len(ours)} arguments in the first, {len(theirs)} in the second"
            continue
        for one, other in zip(ours, theirs, strict=True):
            if text := _argument(one, other):
                yield f"{name}: {text}"


def _argument(a: Value, b: Value) -> str:
    forms = _form(a), _form(b)
    if forms[0] != forms[1]:
        return f"{forms[0]} in the first, {forms[1]} in the second"
    if isinstance(a.constant, Tensor) and isinstance(b.constant, Tensor):
        return _tensors(a.constant, b.constant)
    if forms[0] == "constant" and a.constant != b.constant:
        return f"{a.constant!r} in the first, {b.constant!r} in the second"
    return ""


def _form(value: Value) -> str:
    """How a constant is stored; ``computed`` for all else."""
    if value.producer is not None:
        return value.producer.type if value.fixed else "computed"
    return "constant" if value.fixed else "computed"


def _tensors(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape:
        return f"{_extents(a)} in the first, {_extents(b)} in the second"
    if not a.is_floating_point() or not b.is_floating_point():
        return "" if torch.equal(a, b) else f"{int((a != b).sum())} of {a.numel():,} values differ"
    if a.dtype != b.dtype:  # rounding to the narrower type is no difference
        narrow = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
        a, b = a.to(narrow), b.to(narrow)
    a, b = a.to(torch.float32), b.to(torch.float32)
    unequal = (a != b) & ~(torch.isnan(a) & torch.isnan(b))
    if not bool(unequal.any()):
        return ""
    text = f"{int(unequal.sum()):,} of {a.numel():,} values differ, by up to {float((a - b).abs().max()):.3g}"
    return f"{text}; each row is divided by its peak" if _divided(a, b) or _divided(b, a) else text


def _divided(whole: Tensor, parts: Tensor) -> bool:
    """Whether the rows of one are those of the other, divided by their peaks."""
    if whole.ndim < 2:
        return False
    peaks = whole.abs().flatten(1).amax(1).clamp(min=1e-30).reshape(-1, *[1] * (whole.ndim - 1))
    return bool(torch.allclose(parts * peaks, whole, rtol=2e-3, atol=1e-6))


def _extents(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
