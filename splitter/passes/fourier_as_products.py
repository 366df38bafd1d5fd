"""Compute short-time Fourier transforms and their inverses as products, without complex numbers or long convolutions.

Converters write a transform of N samples as a convolution with N kernels of length N, if they know it at all: 405 MB of
weights for 4096 samples both ways, which the Neural Engine's compiler refuses. In factors it takes 0.7 MB.

Before::

    z: (b, k, t) complex = stft(x: (b, n), N, hop, window)
    y: (b, k, t, 2) = view_as_real(slice(z, …))

After, for N = r₁ r₂ r₃, with `splitter.passes.dft` for the tables T₁ T₂ T₃ and R = t + N/hop − 1 rows of hop samples::

    rows: (hop, b, R) = permute(view(slice(x, …)))                 # the digits n₃ before n₂
    frames: (r₁, r₃, r₂, b t) = cat(rows[:, :, i : i + t] for i < N/hop)
    u: (r₃ r₂, 2 r₁, b t) = T₁ @ permute(frames)                   # the window is in it
    v: (r₃, 2 r₂, r₁ b t) = T₂ @ view(u)
    w: (2 r₃', r₂ r₁ b t) = T₃ @ view(v)                           # the lower half of the spectrum
    y = permute(slice(view(w, (2, k, b, t)), …), [2, 1, 3, 0])

The results of each product lie in the order in which the next one reads them: between them nothing moves. The inverse
runs the products backwards; overlap-add is a sum of N/hop shifted tensors. The last table has the window in it and the
inverse envelope of the middle; the rows at either end, N/hop − 1 at most, are multiplied with what is left of theirs.

What one transform hands to another as complex numbers is rewritten as a whole, or left as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx

from ..graph.program import Program
from ..graph.shapes import TensorType
from .dft import MOST_BYTES, Exact, Factors
from .rewriting import Call, Pass, Rewriting, Skip, inserter

_aten = torch.ops.aten
_MOST_SHIFTS = 32  # tensors that framing joins and overlap-add sums up
_MOST_AXES = 5  # that Core ML and the Neural Engine take
_LEAST_ENVELOPE = 1e-11  # below it PyTorch refuses to invert


@dataclass(frozen=True)
class FourierAsProducts(Pass):
    """The pass; a product with more columns than `extent` becomes a convolution with kernels of one value, whose height
    and width share them. 0: none does, which is quicker on a CPU.
    """

    name = "fourier-as-products"
    max_abs = 1e-3
    essential = True
    extent: int = 0

    def apply(self, program: Program) -> Rewriting:
        rewritten = program.copy()
        rewritten.weights = dict(program.weights)
        tables: dict[str, fx.Node] = {}
        changes, skipped = 0, []
        for chain in _chains(rewritten):
            try:
                values = _Chain(rewritten, chain, tables, self.extent).rewritten()
            except _UnknownError as error:
                skipped += [Skip.of(node, f"{error}") for node in chain if node.target in _TRANSFORMS] or [
                    Skip.of(chain[0], f"{error}")
                ]
                continue
            for node, value in values.items():
                if not _is_complex(node):
                    node.replace_all_uses_with(value)
            changes += len(chain)
        rewritten.graph.eliminate_dead_code()
        read = {str(node.target) for node in rewritten.graph.nodes if node.op == "get_attr"}
        rewritten.weights = {
            name: weight for name, weight in rewritten.weights.items() if name in read or name in program.weights
        }
        return Rewriting(rewritten, changes, tuple(skipped))


class _UnknownError(Exception):
    """An operator that has no real form here, and why."""


def _is_complex(node: fx.Node) -> bool:
    kind = node.meta.get("type")
    return kind is not None and str(kind.dtype).startswith("complex")


def _chains(program: Program) -> list[list[fx.Node]]:
    """Operators that hand complex numbers to each other, or are transforms; each group in the order of the graph."""
    chain_of: dict[fx.Node, list[fx.Node]] = {}
    for node in program.graph.nodes:
        sources = [source for source in node.all_input_nodes if _is_complex(source)]
        if not sources and not _is_complex(node) and node.target not in _TRANSFORMS:
            continue
        joined = [node]
        for chain in {id(chain_of[source]): chain_of[source] for source in sources}.values():
            joined = chain + joined
        chain_of |= dict.fromkeys(joined, joined)
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    chains = {id(chain): chain for chain in chain_of.values()}.values()
    return sorted((sorted(chain, key=order.__getitem__) for chain in chains), key=lambda chain: order[chain[0]])


@dataclass
class _Chain:
    """Real operators beside a chain of complex ones.

    Attributes:
        tables: Of all chains, by their names among the program's weights.
        extent: Most columns of a product; 0 for any number.
        values: By an operator of the chain: what computes the same; complex numbers along a last axis of 2.
    """

    program: Program
    nodes: Sequence[fx.Node]
    tables: dict[str, fx.Node]
    extent: int
    values: dict[fx.Node, fx.Node] = field(default_factory=dict)
    call: Call = field(init=False)

    def rewritten(self) -> dict[fx.Node, fx.Node]:
        """Raises `_UnknownError`; what was inserted until then, nothing reads."""
        for node in self.nodes:
            if node.op != "call_function":
                raise _UnknownError("a complex value crosses the segment's boundary or is a weight")
            if (rule := _RULES.get(node.target)) is None:
                raise _UnknownError(f"{node.target} has no form without complex numbers here")
            schema = node.target._schema.arguments  # type: ignore[union-attr]
            given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
            given |= {argument.name: value for argument, value in zip(schema, node.args, strict=False)} | node.kwargs
            with self.program.graph.inserting_before(node):
                self.call = inserter(self.program.graph, node.meta.get("module", ""))
                self.values[node] = rule(self, given)
        return self.values

    def table(self, label: str, values: Any, shape: Sequence[int]) -> fx.Node:
        """A constant. It is stored with one axis: compression is about weights with two or more."""
        flat = torch.from_numpy(np.ascontiguousarray(values, np.float32).reshape(-1))
        weights = self.program.weights
        name = next(
            name
            for name in (f"{label}_{number}" for number in count())
            if name not in weights or (name in self.tables and torch.equal(weights[name], flat))
        )
        if name not in weights:
            weights[name] = flat
            with self.program.graph.inserting_before():
                self.tables[name] = self.program.graph.get_attr(name)
            self.tables[name].meta = {"type": TensorType.of(flat), "module": ""}
        return self.call(_aten.view.default, self.tables[name], list(shape))

    def products(self, label: str, tables: Sequence[Exact], x: fx.Node, width: int) -> fx.Node:
        """One product with each table behind the other.

        Args:
            label: Of the tables.
            tables: Each (count, rows, columns).
            x: (count of the first, columns of the first, the rest), in whatever shape.
            width: A divisor of what is behind the digits.
        """
        for table in tables:
            count, rows, columns = table.shape
            last = prod(x.meta["type"].shape) // (count * columns)
            if 0 < self.extent < last:
                constant = self.table(label, table, [count * rows, columns, 1, 1])
                x = self.call(_aten.reshape.default, x, [1, count * columns, last // width, width])
                x = self.call(_aten.conv2d.default, x, constant, None, [1, 1], [0, 0], [1, 1], count)
                continue
            constant = self.table(label, table, table.shape if count > 1 else table.shape[1:])
            shape = [columns, last] if count == 1 else [count, columns, last]
            x = self.call(_aten.matmul.default, constant, self.call(_aten.reshape.default, x, shape))
        return x

    def window(self, given: dict[str, Any]) -> Exact:
        """Of n_fft samples, one of fewer in their middle. Raises `_UnknownError` if it depends on an input."""
        samples, length = given["n_fft"], given["win_length"] or given["n_fft"]
        if given["window"] is None:
            values = np.ones(length)
        else:
            try:
                values = self.program.constant(given["window"]).detach().double().numpy()
            except ValueError:
                raise _UnknownError("its window depends on an input") from None
        before = (samples - length) // 2
        return np.pad(values, (before, samples - length - before))

    def transform(self, given: dict[str, Any], kind: str) -> tuple[Factors, int]:
        """Factors of a transform, and its hop. Raises `_UnknownError` for one that has no such form."""
        samples = given["n_fft"]
        hop = given["hop_length"] or samples // 4
        if samples % hop:
            raise _UnknownError(f"its hop of {hop} does not divide its {samples} samples")
        if samples // hop > _MOST_SHIFTS:
            raise _UnknownError(f"its hop of {hop} is less than 1/{_MOST_SHIFTS} of its {samples} samples")
        if given["onesided"] is False:
            raise _UnknownError("it is not one-sided")
        if given["self"].meta["type"].dtype != kind:
            raise _UnknownError(f"it is no {kind}")
        if samples < 2 or (factors := Factors.of(samples, samples // hop)) is None:
            raise _UnknownError(f"{samples:,} has no factors with tables of at most {MOST_BYTES:,} bytes")
        return factors, hop


# ----------------------------------------------------------------------------------- transforms


def _stft(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    """(b, n) → (b, k, t, 2), and without the batch."""
    call, x = chain.call, given["self"]
    factors, hop = chain.transform(given, "float32")
    if given["align_to_window"]:
        raise _UnknownError("its frames are aligned to the window")
    samples, shifts, first = factors.samples, factors.samples // hop, factors.digits[0]
    is_single = len(x.meta["type"].shape) == 1
    if is_single:
        x = call(_aten.unsqueeze.default, x, 0)
    batch, length = x.meta["type"].shape
    margin = samples // 2 if given.get("center") else 0
    frames = 1 + (length + 2 * margin - samples) // hop
    rows = frames + shifts - 1
    behind = rows * hop - margin - length  # what no frame takes is not padded
    if margin:
        x = call(_aten.pad.default, x, [margin, max(behind, 0)], given["pad_mode"])
    if behind < 0:
        x = call(_aten.slice.Tensor, x, 1, 0, rows * hop)
    x = _turned(call, call(_aten.reshape.default, x, [batch * rows, hop]))
    is_early = first % shifts == 0
    if is_early:  # what the shifts share is put into order before they are joined
        x = _reversed(call, x, first // shifts, factors.digits[1:])
    x = call(_aten.reshape.default, x, [hop, batch, rows])
    if shifts > 1:
        x = call(
            _aten.cat.default, [call(_aten.slice.Tensor, x, 2, shift, shift + frames) for shift in range(shifts)], 0
        )
    if not is_early:
        x = _reversed(call, x, first, factors.digits[1:])
    x = call(_aten.reshape.default, x, [first, samples // first, batch * frames])
    x = call(_aten.permute.default, x, [1, 0, 2])
    window = chain.window(given) * (samples**-0.5 if given["normalized"] else 1)
    x = chain.products("dft", factors.tables(window), x, batch * frames)
    x = call(_aten.reshape.default, x, [2, factors.computed, batch, frames])
    x = call(_aten.slice.Tensor, x, 1, 0, factors.bins)
    x = call(_aten.permute.default, x, [2, 1, 3, 0])
    return call(_aten.squeeze.dim, x, 0) if is_single else x


def _istft(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    """(b, k, t, 2) → (b, n), and without the batch."""
    call, x = chain.call, chain.values[given["self"]]
    factors, hop = chain.transform(given, "complex64")
    if x.meta["type"].shape[-3] != factors.bins:  # PyTorch takes that for two sides, where nothing is said
        raise _UnknownError("it is not one-sided")
    if given["return_complex"]:
        raise _UnknownError("it gives complex samples")
    samples, shifts, is_single = factors.samples, factors.samples // hop, len(x.meta["type"].shape) == 3
    window = chain.window(given)
    frames = x.meta["type"].shape[-2]
    ends = _Ends.of(window, hop, frames, samples // 2 if given["center"] else 0, given["length"])
    if is_single:
        x = call(_aten.unsqueeze.default, x, 0)
    batch = x.meta["type"].shape[0]
    x = _completed(call, call(_aten.permute.default, x, [3, 1, 0, 2]), factors)
    scaled = window * np.tile(ends.middle, shifts) * (2 * samples**0.5 if given["normalized"] else 2)
    x = chain.products("inverse_dft", factors.inverse_tables(scaled), x, batch * frames)
    digits = factors.digits[::-1]
    if factors.digits[0] % shifts:
        x = _reversed(call, x, 1, digits)
        digits = (hop * shifts,)
    outer = samples // digits[-1]
    x = call(_aten.reshape.default, x, [outer, shifts, hop // outer * batch, frames])
    x = _reversed(call, _overlapped(call, x, ends), 1, (*digits[:-1], digits[-1] // shifts))
    x = _turned(call, call(_aten.reshape.default, x, [hop, batch * len(ends.rows)]))
    x = _evened(chain, call(_aten.reshape.default, x, [batch, len(ends.rows), hop]), ends)
    x = call(_aten.reshape.default, x, [batch, len(ends.rows) * hop])
    behind = ends.rows.start * hop
    x = call(_aten.slice.Tensor, x, 1, ends.start - behind, min(ends.stop, ends.rows.stop * hop) - behind)
    if missing := max(ends.stop - ends.rows.stop * hop, 0):
        x = call(_aten.constant_pad_nd.default, x, [0, missing], 0.0)
    return call(_aten.squeeze.dim, x, 0) if is_single else x


def _turned(call: Call, x: fx.Node) -> fx.Node:
    """(a, b) as (b, a), each row in one piece."""
    return call(_aten.clone.default, call(_aten.permute.default, x, [1, 0]), memory_format=torch.contiguous_format)


def _reversed(call: Call, x: fx.Node, before: int, digits: Sequence[int]) -> fx.Node:
    """(before, digits…, the rest), in whatever shape, with the digits in reverse order; of five axes at most."""
    if len(digits) < 2:
        return x
    outer = [before] if before > 1 else []
    whole = len(digits) + len(outer) < _MOST_AXES
    axes = list(digits) if whole else [digits[0], prod(digits[1:])]
    after = prod(x.meta["type"].shape) // (before * prod(digits))
    order = [*range(len(outer)), *range(len(outer) + len(axes) - 1, len(outer) - 1, -1), len(outer) + len(axes)]
    x = call(_aten.permute.default, call(_aten.reshape.default, x, [*outer, *axes, after]), order)
    x = call(_aten.reshape.default, x, [before * prod(digits), after])
    return x if whole else _reversed(call, x, before, digits[1:])


def _completed(call: Call, x: fx.Node, factors: Factors) -> fx.Node:
    """(2, k, b, t) with zeros for the other bins of the highest digit; those without a mirror image count half."""
    bins = factors.bins
    first, middle, last = (
        call(_aten.slice.Tensor, x, 1, start, stop) for start, stop in ((0, 1), (1, bins - 1), (bins - 1, bins))
    )
    first = call(_aten.mul.Tensor, first, 0.5)
    if factors.samples % 2 == 0:
        last = call(_aten.mul.Tensor, last, 0.5)
    if factors.computed > bins:
        last = call(_aten.constant_pad_nd.default, last, [0, 0, 0, 0, 0, factors.computed - bins], 0.0)
    return call(_aten.cat.default, [first, middle, last] if bins > 2 else [first, last], 1)


def _overlapped(call: Call, x: fx.Node, ends: _Ends) -> fx.Node:
    """(a, shifts, b, t) → (a, b, rows): the sum of the shifts, each a row behind the one before."""
    outer, shifts, inner, frames = x.meta["type"].shape
    total = None
    for shift in range(shifts):
        start, stop = ends.rows.start - shift, ends.rows.stop - shift
        kept = (max(start, 0), min(stop, frames))
        if kept[0] >= kept[1]:
            continue
        part = call(_aten.slice.Tensor, x, 1, shift, shift + 1)
        if kept != (0, frames):
            part = call(_aten.slice.Tensor, part, 3, *kept)
        if kept != (start, stop):
            part = call(_aten.constant_pad_nd.default, part, [kept[0] - start, stop - kept[1]], 0.0)
        total = part if total is None else call(_aten.add.Tensor, total, part)
    assert total is not None
    return call(_aten.reshape.default, total, [outer, inner, len(ends.rows)])


@dataclass(frozen=True)
class _Ends:
    """What overlap-add is multiplied by, and what is kept of it; nowhere more than within what is kept, so that half
    precision holds it.

    Attributes:
        middle: (hop,): one over the sum of the squared windows where all of them overlap; 1 if they do so nowhere.
        before: (rows, hop): what the rows before are multiplied by still.
        after: The same of those behind.
        rows: Which rows of hop samples are kept.
        start: Of the samples that are kept.
        stop: Their end, which may lie behind the last frame.
    """

    middle: Exact
    before: Exact
    after: Exact
    rows: range
    start: int
    stop: int

    @classmethod
    def of(cls, window: Exact, hop: int, frames: int, start: int, length: int | None) -> _Ends:
        """Raises `_UnknownError` where PyTorch refuses to invert."""
        shifts = len(window) // hop
        squares = np.square(window).reshape(shifts, hop)
        envelope = np.zeros((frames + shifts - 1, hop))
        for shift in range(shifts):
            envelope[shift : shift + frames] += squares[shift]
        stop = envelope.size - start if length is None else start + length
        kept = envelope.reshape(-1)[start:stop]
        if not kept.size or kept.min() < _LEAST_ENVELOPE:
            raise _UnknownError("its windows leave samples uncovered")
        inverse = 1 / np.maximum(envelope, kept.min())
        rows = range(start // hop, min(len(envelope), -(-stop // hop)))
        inner = range(max(rows.start, shifts - 1), min(rows.stop, frames)) or range(rows.stop, rows.stop)
        middle = inverse[inner.start] if inner else np.ones(hop)
        before, after = inverse[rows.start : inner.start], inverse[inner.stop : rows.stop]
        return cls(middle, before / middle, after / middle, rows, start, stop)


def _evened(chain: _Chain, x: fx.Node, ends: _Ends) -> fx.Node:
    """(b, rows, hop) with the rows at either end as the middle is already."""
    rows = len(ends.rows)
    parts = []
    for start, stop, factors in (
        (0, len(ends.before), ends.before),
        (len(ends.before), rows - len(ends.after), None),
        (rows - len(ends.after), rows, ends.after),
    ):
        if start < stop:
            part = x if stop - start == rows else chain.call(_aten.slice.Tensor, x, 1, start, stop)
            if factors is not None:
                part = chain.call(_aten.mul.Tensor, part, chain.table("dft_ends", factors, factors.shape))
            parts.append(part)
    return parts[0] if len(parts) == 1 else chain.call(_aten.cat.default, parts, 1)


# ------------------------------------------------------------------- what moves complex numbers


def _as_real(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    return chain.values[given["self"]]


def _as_complex(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    x: fx.Node = given["self"]
    return x


def _viewed(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    shape = given["size"] if "size" in given else given["shape"]
    return chain.call(_aten.reshape.default, chain.values[given["self"]], [*shape, 2])


def _sliced(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    part = (given["start"], given["end"], given["step"])
    return chain.call(_aten.slice.Tensor, chain.values[given["self"]], _axis(given, "dim"), *part)


def _padded(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    if given.get("mode", "constant") != "constant" or given["value"]:
        raise _UnknownError("complex numbers are padded with others than zeros")
    return chain.call(_aten.constant_pad_nd.default, chain.values[given["self"]], [0, 0, *given["pad"]], 0.0)


def _cloned(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    return chain.call(_aten.clone.default, chain.values[given["self"]], memory_format=given["memory_format"])


def _permuted(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    rank = len(given["self"].meta["type"].shape)
    axes = [axis % rank for axis in given["dims"]]
    return chain.call(_aten.permute.default, chain.values[given["self"]], [*axes, rank])


def _transposed(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    axes = _axis(given, "dim0"), _axis(given, "dim1")
    return chain.call(_aten.transpose.int, chain.values[given["self"]], *axes)


def _unsqueezed(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    return chain.call(_aten.unsqueeze.default, chain.values[given["self"]], _axis(given, "dim", more=1))


def _squeezed(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    return chain.call(_aten.squeeze.dim, chain.values[given["self"]], _axis(given, "dim"))


def _axis(given: dict[str, Any], name: str, more: int = 0) -> int:
    """An axis counted from the front: behind the last one lies that of the two parts."""
    axis: int = given[name] % (len(given["self"].meta["type"].shape) + more)
    return axis


_TRANSFORMS = frozenset({_aten.stft.default, _aten.stft.center, _aten.istft.default})
_RULES: dict[Any, Callable[[_Chain, dict[str, Any]], fx.Node]] = {
    _aten.stft.default: _stft,
    _aten.stft.center: _stft,
    _aten.istft.default: _istft,
    _aten.view_as_real.default: _as_real,
    _aten.view_as_complex.default: _as_complex,
    _aten.view.default: _viewed,
    _aten.reshape.default: _viewed,
    _aten.slice.Tensor: _sliced,
    _aten.pad.default: _padded,
    _aten.constant_pad_nd.default: _padded,
    _aten.clone.default: _cloned,
    _aten.permute.default: _permuted,
    _aten.transpose.int: _transposed,
    _aten.unsqueeze.default: _unsqueezed,
    _aten.squeeze.dim: _squeezed,
}
