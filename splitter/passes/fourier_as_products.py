"""Compute short-time Fourier transforms and their inverses as products, without complex numbers or convolutions.

Converters write a transform of N samples as a convolution with N kernels of length N, if they know it at all: 405 MB of
weights for 4096 samples both ways, which the Neural Engine's compiler refuses. In factors it takes 0.24 MB.

Before::

    z: (b, k, t) complex = stft(x: (b, n), N, hop, window)
    y: (b, k, t, 2) = view_as_real(slice(z, …))

After, with `splitter.passes.dft` for the tables F, c, s, G, and complex values as real ones with an axis of 2 more::

    rows: (b, t + N/hop − 1, hop) = view(slice(x, …))
    frames: (b, t, N₁, N₂) = view(cat(rows[:, i : i + t] for i < N/hop) · window)
    a: (b, t, 2 N₁, N₂) = F @ frames; p, q = its halves
    v: (b, t, N₁, 2 K₂) = cat(p c + q s, q c − p s) @ G
    y = slice(slice(view(permute(view(v, (b, t, N₁, 2, K₂)), [0, 4, 2, 1, 3]), (b, K₂ N₁, t, 2)), k), …)

The inverse runs the factors backwards; overlap-add is a sum of N/hop shifted tensors, multiplied with the inverse
envelope: one row of it for the middle, and N/hop − 1 for either end.

What one transform hands to another as complex numbers is rewritten as a whole, or left as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import fx

from ..graph.program import Program
from ..graph.shapes import TensorType
from .dft import MOST_BYTES, Factors
from .rewriting import Call, Pass, Rewriting, Skip, inserter

_aten = torch.ops.aten
_MOST_SHIFTS = 32  # tensors that framing joins and overlap-add sums up
_LEAST_ENVELOPE = 1e-11  # below it PyTorch refuses to invert


@dataclass(frozen=True)
class FourierAsProducts(Pass):
    name = "fourier-as-products"
    max_abs = 1e-3
    essential = True

    def apply(self, program: Program) -> Rewriting:
        rewritten = program.copy()
        rewritten.weights = dict(program.weights)
        tables: dict[str, fx.Node] = {}
        changes, skipped = 0, []
        for chain in _chains(rewritten):
            try:
                values = _Chain(rewritten, chain, tables).rewritten()
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
        values: By an operator of the chain: what computes the same; complex numbers along a last axis of 2.
    """

    program: Program
    nodes: Sequence[fx.Node]
    tables: dict[str, fx.Node]
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

    def window(self, given: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
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
        factors = Factors.of(samples)
        if factors.largest > MOST_BYTES:
            raise _UnknownError(f"its factors {factors.rows} and {factors.columns} take {factors.largest:,} bytes")
        return factors, hop


# ----------------------------------------------------------------------------------- transforms


def _stft(chain: _Chain, given: dict[str, Any]) -> fx.Node:
    """(b, n) → (b, k, t, 2), and without the batch."""
    call, x = chain.call, given["self"]
    factors, hop = chain.transform(given, "float32")
    if given["align_to_window"]:
        raise _UnknownError("its frames are aligned to the window")
    samples, shifts = factors.samples, factors.samples // hop
    is_single = len(x.meta["type"].shape) == 1
    if is_single:
        x = call(_aten.unsqueeze.default, x, 0)
    batch, length = x.meta["type"].shape
    if given.get("center"):
        x = call(_aten.pad.default, x, [samples // 2] * 2, given["pad_mode"])
        length += samples // 2 * 2
    frames = 1 + (length - samples) // hop
    rows = frames + shifts - 1
    if rows * hop != length:
        x = call(_aten.slice.Tensor, x, 1, 0, rows * hop)
    x = call(_aten.reshape.default, x, [batch, rows, hop])
    if shifts > 1:
        x = call(
            _aten.cat.default, [call(_aten.slice.Tensor, x, 1, shift, shift + frames) for shift in range(shifts)], 2
        )
    window = chain.window(given) * (samples**-0.5 if given["normalized"] else 1)
    x = call(_aten.mul.Tensor, x, chain.table("dft_window", window, [samples]))
    x = call(_aten.reshape.default, x, [batch, frames, factors.rows, factors.columns])
    x = call(_aten.matmul.default, chain.table("dft_first", factors.first(), [2 * factors.rows, factors.rows]), x)
    real, imaginary = _halves(call, x, 2)
    cosine, sine = _twiddles(chain, factors)
    x = call(_aten.cat.default, [
        call(_aten.add.Tensor, call(_aten.mul.Tensor, real, cosine), call(_aten.mul.Tensor, imaginary, sine)),
        call(_aten.sub.Tensor, call(_aten.mul.Tensor, imaginary, cosine), call(_aten.mul.Tensor, real, sine)),
    ], 3)  # fmt: skip
    second = chain.table("dft_second", factors.second(), [2 * factors.columns, 2 * factors.blocks])
    x = call(_aten.matmul.default, x, second)
    x = call(_aten.reshape.default, x, [batch, frames, factors.rows, 2, factors.blocks])
    x = call(_aten.permute.default, x, [0, 4, 2, 1, 3])
    x = call(_aten.reshape.default, x, [batch, factors.blocks * factors.rows, frames, 2])
    x = call(_aten.slice.Tensor, x, 1, 0, factors.bins)
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
    ends = _Ends.of(window, hop, x.meta["type"].shape[-2], samples // 2 if given["center"] else 0, given["length"])
    if is_single:
        x = call(_aten.unsqueeze.default, x, 0)
    batch, _, frames, _ = x.meta["type"].shape
    blocks, rows, columns = factors.blocks, factors.rows, factors.columns
    if blocks * rows != factors.bins:
        x = call(_aten.constant_pad_nd.default, x, [0, 0, 0, 0, 0, blocks * rows - factors.bins], 0.0)
    x = call(_aten.mul.Tensor, x, chain.table("dft_shares", factors.shares(), [blocks * rows, 1, 1]))
    x = call(_aten.reshape.default, x, [batch, blocks, rows, frames, 2])
    x = call(_aten.permute.default, x, [0, 3, 2, 4, 1])
    x = call(_aten.reshape.default, x, [batch, frames, rows, 2 * blocks])
    first = chain.table("dft_inverse_first", factors.inverse_first(), [2 * blocks, 2 * columns])
    real, imaginary = _halves(call, call(_aten.matmul.default, x, first), 3)
    cosine, sine = _twiddles(chain, factors)
    x = call(_aten.cat.default, [
        call(_aten.sub.Tensor, call(_aten.mul.Tensor, real, cosine), call(_aten.mul.Tensor, imaginary, sine)),
        call(_aten.add.Tensor, call(_aten.mul.Tensor, real, sine), call(_aten.mul.Tensor, imaginary, cosine)),
    ], 2)  # fmt: skip
    x = call(_aten.matmul.default, chain.table("dft_inverse_second", factors.inverse_second(), [rows, 2 * rows]), x)
    x = call(_aten.reshape.default, x, [batch, frames, samples])
    scaled = window * (samples**0.5 if given["normalized"] else 1)
    x = call(_aten.mul.Tensor, x, chain.table("dft_window", scaled, [samples]))
    total = None
    for shift in range(shifts):
        part = x if shifts == 1 else call(_aten.slice.Tensor, x, 2, shift * hop, (shift + 1) * hop)
        if shifts > 1:
            part = call(_aten.constant_pad_nd.default, part, [0, 0, shift, shifts - 1 - shift], 0.0)
        total = part if total is None else call(_aten.add.Tensor, total, part)
    assert total is not None
    x = _unweighted(chain, total, ends)
    x = call(_aten.reshape.default, x, [batch, (frames + shifts - 1) * hop])
    x = call(_aten.slice.Tensor, x, 1, ends.start, min(ends.stop, (frames + shifts - 1) * hop))
    if ends.missing:
        x = call(_aten.constant_pad_nd.default, x, [0, ends.missing], 0.0)
    return call(_aten.squeeze.dim, x, 0) if is_single else x


def _halves(call: Call, x: fx.Node, axis: int) -> tuple[fx.Node, fx.Node]:
    extent = x.meta["type"].shape[axis]
    return (
        call(_aten.slice.Tensor, x, axis, 0, extent // 2),
        call(_aten.slice.Tensor, x, axis, extent // 2, extent),
    )


def _twiddles(chain: _Chain, factors: Factors) -> Iterator[fx.Node]:
    for label, values in zip(("dft_cosine", "dft_sine"), factors.twiddles(), strict=True):
        yield chain.table(label, values, [factors.rows, factors.columns])


@dataclass(frozen=True)
class _Ends:
    """What overlap-add is divided by, and what is kept of it.

    Attributes:
        inverse: (rows, hop): one over the sum of the shifted squared windows; nowhere more than within what is kept, so
            that half precision holds it.
        same: How many rows in the middle have one value.
        start: Of the samples that are kept.
        stop: Their end, which may lie behind the last frame.
    """

    inverse: np.ndarray[Any, np.dtype[np.float64]]
    same: int
    start: int
    stop: int

    @classmethod
    def of(
        cls, window: np.ndarray[Any, np.dtype[np.float64]], hop: int, frames: int, start: int, length: int | None
    ) -> _Ends:
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
        return cls(1 / np.maximum(envelope, kept.min()), max(frames - shifts + 1, 0), start, stop)

    @property
    def missing(self) -> int:
        """Zeros behind the last frame."""
        return max(self.stop - self.inverse.size, 0)


def _unweighted(chain: _Chain, total: fx.Node, ends: _Ends) -> fx.Node:
    """(b, rows, hop), each row times its inverse envelope; the rows in the middle share one."""
    rows, hop = ends.inverse.shape
    side = (rows - ends.same) // 2
    if side == 0 or ends.same < 2:
        shared = ends.inverse[:1] if side == 0 else ends.inverse
        return chain.call(_aten.mul.Tensor, total, chain.table("dft_envelope", shared, shared.shape))
    parts = []
    for start, stop, tabled in ((0, side, side), (side, rows - side, 1), (rows - side, rows, side)):
        part = chain.call(_aten.slice.Tensor, total, 1, start, stop)
        inverse = ends.inverse[start : start + tabled]
        parts.append(chain.call(_aten.mul.Tensor, part, chain.table("dft_envelope", inverse, [tabled, hop])))
    return chain.call(_aten.cat.default, parts, 1)


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
