"""Hold the tokens of a transformer as an image of height 1, (b, c, 1, s): the layout that the Neural Engine is built
for, as Apple published it ("Deploying Transformers on the Apple Neural Engine", machinelearning.apple.com, 2022).

Before::

    x: (b, s, c)
    y = linear(x, w: (o, c), bias) ; n = layer_norm(x, [c], γ, β, eps)
    q, k, v: (b, h, s, d) = transpose(view(y, (b, s, h, d)), 1, 2), …
    z: (b, s, o) = view(transpose(scaled_dot_product_attention(q, k, v), 1, 2))

After, with x: (b, c, 1, s)::

    y: (b, o, 1, s) = conv2d(x, view(w, (o, c, 1, 1)), bias)
    u = x − mean(x, [1]) ; n = (u / √(mean(u u, [1]) + eps) + β/γ) γ     # Core ML Tools makes one operation of it again
    kᵀ: (b, s, 1, c) = permute(k, [0, 3, 2, 1])                          # the only transposition
    for each head i, and each chunk j of the queries:
        p: (b, s, 1, t) = softmax(einsum("bkhc,bchq->bkhq", kᵀ[…, i], q[:, i, j] / √d), 1)
        z[:, i, j] = einsum("bchk,bkhq->bchq", v[:, i], p)               # side by side as channels; no reshape between

Views, permutations and splits between heads and channels cost nothing: only how a value's axes lie in its image is
written down. The order of the tokens is the image's: a spectrogram (b, c, f, t) becomes (b, c, 1, f t), whatever order
the model puts its frequencies and times in. What has no such form reads the value as it was.

Attention that a model writes as two products and a softmax is taken for what it is. The sums are the same, in an order
that is the kernel's choice.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import sqrt
from typing import Any

import torch
from torch import fx

from ..graph.program import Program
from .attention import gathered
from .digits import Axis, Digit, Layout, arranged, flat, merged, moved, size, split, whole
from .folding_rules import ELEMENTWISE
from .rewriting import Call, Operator, Pass, Rewriting, Skip, inserter, pieces

_aten = torch.ops.aten
_BATCH, _CHANNELS, _HEIGHT, _TOKENS = range(4)
_POINTWISE = ELEMENTWISE - {_aten.glu.default} | {
    _aten.relu.default, _aten.silu.default, _aten.sigmoid.default, _aten.tanh.default, _aten.exp.default,
    _aten.neg.default, _aten.hardswish.default, _aten.square.default,
}  # fmt: skip


class _NoImageError(Exception):
    """An operator has no form on images; the message says why, as a clause."""


@dataclass(frozen=True)
class TokensAsImages(Pass):
    """The pass; queries are taken in chunks of at most `chunk`, where chunks of one length can be."""

    name = "tokens-as-images"
    max_abs = 1e-3
    chunk: int = 512

    def apply(self, program: Program) -> Rewriting:
        rewritten = gathered(program)
        images = _Images(rewritten, self.chunk)
        images.place()
        # Of itself it keeps attention that nobody reads, for the sake of a dropout that is 0 here.
        rewritten.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        kept = rewritten if images.changes else program
        return Rewriting(kept, images.changes, tuple(images.skipped))


@dataclass(frozen=True)
class _Value:
    """A value, or its mean or maximum over some axes, as an image.

    Attributes:
        image: Of shape (b, c, 1, s).
        layout: How the value's axes lie in the image; each of the image's axes is there whole, or has an extent of 1.
    """

    image: fx.Node
    layout: Layout

    @property
    def extents(self) -> tuple[int, ...]:
        return _shape(self.image)

    def whole(self, axis: int) -> Axis:
        return merged([Digit(axis, 1, self.extents[axis])])


@dataclass
class _Images:
    """In place, node by node.

    Attributes:
        values: By the value that they hold.
        parts: By the operator that splits a value.
        plain: By value, what holds it in its own layout again.
        entered: Images of what is computed otherwise, by the value and the order of its digits.
    """

    program: Program
    chunk: int
    values: dict[fx.Node, _Value] = field(default_factory=dict)
    parts: dict[fx.Node, list[_Value]] = field(default_factory=dict)
    plain: dict[fx.Node, fx.Node] = field(default_factory=dict)
    entered: dict[tuple[fx.Node, Layout], fx.Node] = field(default_factory=dict)
    varying: set[fx.Node] = field(default_factory=set)
    changes: int = 0  # attentions
    skipped: list[Skip] = field(default_factory=list)

    def place(self) -> None:
        graph = self.program.graph
        for node in list(graph.nodes):
            if node.op == "placeholder" or self.varying & set(node.all_input_nodes):
                self.varying.add(node)
            with graph.inserting_before(node):
                if node in self.varying and node.op == "call_function":
                    self._operator(inserter(graph, node.meta["module"]), node)
                elif node.op == "output":
                    self._read_as_it_was(inserter(graph, ""), node)

    def _operator(self, call: Call, node: Operator) -> None:
        attends = node.target is _aten.scaled_dot_product_attention.default
        try:
            value = self._value(call, node)
        except _NoImageError as reason:
            if attends:
                self.skipped.append(Skip.of(node, str(reason)))
            value = None
        if value is not None and tuple(map(size, value.layout)) == _shape(node):
            self.values[node] = value
            self.changes += attends
        elif node not in self.parts:
            self._read_as_it_was(call, node)

    def _read_as_it_was(self, call: Call, node: fx.Node) -> None:
        for operand in node.all_input_nodes:
            if (value := self.values.get(operand)) is not None:
                if operand not in self.plain:
                    self.plain[operand] = arranged(call, value.image, whole(value.extents), value.layout)
                node.replace_input_with(operand, self.plain[operand])

    def _value(self, call: Call, node: Operator) -> _Value | None:
        """What an operator computes; None for one that has nothing to do with images.

        Raises:
            _NoImageError: It has no form on them.
        """
        if (rule := _RULES.get(node.target)) is not None:
            return rule(self, call, node, *node.args, **node.kwargs)
        if node.target is operator.getitem:
            return self.parts[node.args[0]][node.args[1]] if node.args[0] in self.parts else None
        if not any(operand in self.values for operand in node.all_input_nodes):
            return None
        if (value := self.values.get(node.args[0])) is not None and (layout := moved(node, value.layout)) is not None:
            return _Value(value.image, layout)
        if node.target in _POINTWISE:
            return self._pointwise(call, node)
        raise _NoImageError(f"{node.target} has no form on images")

    def _entered(self, call: Call, node: fx.Node) -> _Value:
        """A value as an image, its last axis the channels; a view by the order of what it is a view of."""
        if node in self.values:
            return self.values[node]
        root, layout = self._seen_through(node)
        channels = layout[-1]
        batch = whole(_shape(root))[0] if len(_shape(root)) > 2 else ()
        batch = () if set(split(batch, channels)) & set(split(channels, batch)) else batch
        taken = (*channels, *batch)
        tokens = merged(digit for digit in split(flat(whole(_shape(root))), taken) if digit not in split(taken, taken))
        placed: Layout = (batch, channels, (), tokens)
        if (root, placed) not in self.entered:
            self.entered[root, placed] = arranged(call, root, whole(_shape(root)), placed)
        cuts = (*flat(layout), *flat(placed))
        names = {}
        for axis, digits in enumerate(placed):
            stride = size(digits)
            for digit in split(digits, cuts):
                stride //= digit.extent
                names[digit] = Digit(axis, stride, digit.extent)
        renamed = tuple(merged(names[digit] for digit in split(axis, cuts)) for axis in layout)
        self.values[node] = _Value(self.entered[root, placed], renamed)
        return self.values[node]

    def _seen_through(self, node: Operator) -> tuple[fx.Node, Layout]:
        """What a value is a view of, and how."""
        source = next(iter(node.args), None)
        if isinstance(source, fx.Node) and source.meta["type"] and moved(node, whole(_shape(source))) is not None:
            root, layout = self._seen_through(source)
            if (seen := moved(node, layout)) is not None:
                return root, seen
        return node, whole(_shape(node))

    def _beside(self, call: Call, operand: fx.Node, layout: Layout, extents: Sequence[int]) -> fx.Node:
        """A tensor that broadcasts against images of a layout, as an image."""
        shape = _shape(operand)
        if not shape:
            return operand
        against = layout[len(layout) - len(shape) :]
        if any(extent not in (1, size(axis)) for extent, axis in zip(shape, against, strict=True)):
            raise _NoImageError("an operand has more than the images")
        held = tuple(axis if extent > 1 else () for extent, axis in zip(shape, against, strict=True))
        axes = [
            merged([Digit(axis, 1, extents[axis])]) if any(digit.axis == axis for digit in flat(held)) else ()
            for axis in range(4)
        ]
        if size(flat(held)) != size(flat(tuple(axes))):
            raise _NoImageError("an operand varies along a part of the channels or tokens")
        return arranged(call, operand, held, tuple(axes))

    def _pointwise(self, call: Call, node: Operator) -> _Value:
        rank = len(_shape(node))
        held = {operand: self.values[operand] for operand in node.all_input_nodes if operand in self.values}
        layout: list[Axis] = [()] * rank
        extents = [1] * 4
        for value in held.values():
            for axis, digits in enumerate(((),) * (rank - len(value.layout)) + value.layout):
                if digits and layout[axis] not in ((), digits):
                    raise _NoImageError("its operands hold their elements in other orders")
                layout[axis] = digits or layout[axis]
            extents = [max(pair) for pair in zip(extents, value.extents, strict=True)]
        images = {
            operand: held[operand].image if operand in held else self._beside(call, operand, tuple(layout), extents)
            for operand in node.all_input_nodes
        }
        given = fx.node.map_arg((node.args, node.kwargs), images.__getitem__)
        return _Value(call(node.target, *given[0], **given[1]), tuple(layout))

    def _linear(
        self,
        call: Call,
        node: Operator,
        x: fx.Node,
        weight: fx.Node,
        bias: fx.Node | None = None,
    ) -> _Value:
        if weight in self.varying:
            raise _NoImageError("its weight is computed")
        value = self._entered(call, x)
        if value.layout[-1] != value.whole(_CHANNELS):
            raise _NoImageError("it reads other than all channels in order")
        outputs = _shape(weight)[0]
        kernel = call(_aten.view.default, weight, [*_shape(weight), 1, 1])
        image = call(_aten.conv2d.default, value.image, kernel, bias)
        return _Value(image, (*value.layout[:-1], merged([Digit(_CHANNELS, 1, outputs)])))

    def _layer_norm(
        self,
        call: Call,
        node: Operator,
        x: fx.Node,
        normalized_shape: Sequence[int],
        weight: fx.Node | None = None,
        bias: fx.Node | None = None,
        eps: float = 1e-5,
        cudnn_enable: bool = True,
    ) -> _Value:
        value = self._entered(call, x)
        if len(normalized_shape) != 1 or value.layout[-1] != value.whole(_CHANNELS):
            raise _NoImageError("it is over other than all channels in order")
        mean = call(_aten.mean.dim, value.image, [_CHANNELS], True)
        centred = call(_aten.sub.Tensor, value.image, mean)
        variance = call(_aten.mean.dim, call(_aten.mul.Tensor, centred, centred), [_CHANNELS], True)
        inverse = call(_aten.rsqrt.default, call(_aten.add.Tensor, variance, eps))
        image = call(_aten.mul.Tensor, centred, inverse)
        per_channel = [1, *normalized_shape, 1, 1]
        if weight is not None and bias is not None and bool(self.program.constant(weight).all()):
            # In the order in which Core ML Tools makes one operation of all this, see its fuse_layernorm pass.
            shift = call(_aten.view.default, call(_aten.div.Tensor, bias, weight), per_channel)
            image = call(_aten.add.Tensor, image, shift)
            bias = None
        if weight is not None:
            image = call(_aten.mul.Tensor, image, call(_aten.view.default, weight, per_channel))
        if bias is not None:
            image = call(_aten.add.Tensor, image, call(_aten.view.default, bias, per_channel))
        return _Value(image, value.layout)

    def _attention(
        self,
        call: Call,
        node: Operator,
        query: fx.Node,
        key: fx.Node,
        value: fx.Node,
        attn_mask: fx.Node | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> _Value:
        if is_causal or enable_gqa or dropout_p:
            raise _NoImageError("it hides later tokens by a flag, or shares keys among heads")
        if not all(operand in self.values for operand in (query, key, value)):
            raise _NoImageError("its operands are not what linear layers give, in heads")
        q, k, v = (self.values[operand] for operand in (query, key, value))
        width = _shape(query)[-1]
        heads = q.extents[_CHANNELS] // width
        for operand in (q, k, v):
            expected = (*operand.whole(_BATCH), *merged([Digit(_CHANNELS, width, heads)]))
            if (
                merged(flat(operand.layout[:-2])) != expected
                or size(operand.layout[-2]) != operand.extents[_TOKENS]
                or operand.layout[-1] != merged([Digit(_CHANNELS, 1, width)])
            ):
                raise _NoImageError("its operands are not batch, heads, tokens and channels of a head")
        if k.layout != v.layout or q.extents[_BATCH] != k.extents[_BATCH]:
            raise _NoImageError("its keys and values hold their tokens in other orders")
        scaled = call(_aten.mul.Tensor, q.image, 1 / sqrt(width) if scale is None else scale)
        turned = call(_aten.permute.default, k.image, [_BATCH, _TOKENS, _HEIGHT, _CHANNELS])
        keys = pieces(call, turned, [width] * heads, 3)
        values = pieces(call, v.image, [width] * heads, _CHANNELS)
        tokens = q.extents[_TOKENS]
        chunks = _chunks(tokens, self.chunk)
        if chunks > 1:  # as rows: parts of the last axis pass through fixed point on some engines
            rows = list(q.extents)
            rows[_HEIGHT:] = [chunks, tokens // chunks]
            scaled = call(_aten.reshape.default, scaled, rows)
        masks = [None] * chunks if attn_mask is None else self._masks(call, attn_mask, q, k, chunks)
        results = []
        for chunk, mask in zip(pieces(call, scaled, [1] * chunks, _HEIGHT), masks, strict=True):
            attended = []
            for head, queries in enumerate(pieces(call, chunk, [width] * heads, _CHANNELS)):
                scores = call(_aten.einsum.default, "bkhc,bchq->bkhq", [keys[head], queries])
                if mask is not None:
                    scores = call(_aten.add.Tensor, scores, mask)
                shares = call(_aten.softmax.int, scores, 1)
                attended.append(call(_aten.einsum.default, "bchk,bkhq->bchq", [values[head], shares]))
            results.append(attended[0] if heads == 1 else call(_aten.cat.default, attended, _CHANNELS))
        image = results[0] if chunks == 1 else call(_aten.cat.default, results, _HEIGHT)
        if chunks > 1:
            image = call(_aten.reshape.default, image, list(q.extents))
        return _Value(image, q.layout)

    def _masks(self, call: Call, mask: fx.Node, q: _Value, k: _Value, chunks: int) -> list[fx.Node]:
        """What is added to the scores (1, keys, 1, queries) of each chunk."""
        *others, rows, columns = (1, 1, *_shape(mask))
        expected = (q.extents[_TOKENS], k.extents[_TOKENS])
        if mask.meta["type"].dtype != "float32" or set(others) != {1} or (rows, columns) != expected:
            raise _NoImageError("its mask is other than numbers by query and key, the same for all heads")
        keys = tuple(Digit(_CHANNELS, stride, extent) for _, stride, extent in k.layout[-2])
        before = (*[()] * (len(_shape(mask)) - 2), q.layout[-2], keys)
        row = rows // chunks
        after = (
            (),
            merged([Digit(_CHANNELS, 1, columns)]),
            merged([Digit(_TOKENS, row, chunks)]),
            merged([Digit(_TOKENS, 1, row)]),
        )
        return pieces(call, arranged(call, mask, before, after), [1] * chunks, _HEIGHT)

    def _part(self, call: Call, x: fx.Node, dim: int, start: int, length: int) -> _Value:
        value = self.values[x]
        digits = value.layout[dim]
        layout = list(value.layout)
        if length == size(digits):
            return value
        if len(digits) != 1 or digits[0].axis != _CHANNELS or (
            digits[0].stride * digits[0].extent != value.extents[_CHANNELS]
        ):  # fmt: skip
            raise _NoImageError("it takes other than channels that lie together")
        stride = digits[0].stride
        layout[dim] = merged([Digit(_CHANNELS, stride, length)])
        image = call(_aten.slice.Tensor, value.image, _CHANNELS, start * stride, (start + length) * stride)
        return _Value(image, tuple(layout))

    def _select(self, call: Call, node: Operator, x: fx.Node, dim: int, index: int) -> _Value | None:
        if x not in self.values:
            return None
        part = self._part(call, x, dim, index % _shape(x)[dim], 1)
        layout = list(part.layout)
        del layout[dim]
        return _Value(part.image, tuple(layout))

    def _slice(
        self, call: Call, node: Operator, x: fx.Node, dim: int = 0, start: int | None = None, end: int | None = None,
        step: int = 1,
    ) -> _Value | None:  # fmt: skip
        if x not in self.values:
            return None
        first, last, step = slice(start, end, step).indices(_shape(x)[dim])
        if step != 1:
            raise _NoImageError("it takes every so many")
        return self._part(call, x, dim, first, last - first)

    def _split(self, call: Call, node: Operator, x: fx.Node, sizes: int | Sequence[int], dim: int = 0) -> None:
        if x not in self.values:
            return
        extent = _shape(x)[dim]
        if node.target is _aten.chunk.default:
            sizes = -(-extent // sizes)  # type: ignore[operator]
        ends = [*accumulate(sizes)] if not isinstance(sizes, int) else [*range(sizes, extent, sizes), extent]
        self.parts[node] = [
            self._part(call, x, dim, start, end - start) for start, end in zip([0, *ends], ends, strict=False)
        ]

    def _reduction(
        self, call: Call, node: Operator, x: fx.Node, axes: Sequence[int] | int, keepdim: bool = False
    ) -> _Value | None:
        if x not in self.values:
            return None
        value = self.values[x]
        chosen = {axis % len(value.layout) for axis in ([axes] if isinstance(axes, int) else axes)}
        digits = [digit for axis in chosen for digit in value.layout[axis]]
        over = sorted({digit.axis for digit in digits})
        if not chosen or size(tuple(digits)) != size(tuple(Digit(axis, 1, value.extents[axis]) for axis in over)):
            raise _NoImageError("it is over a part of the channels or tokens")
        layout = [() if axis in chosen else kept for axis, kept in enumerate(value.layout)]
        if not keepdim:
            layout = [kept for axis, kept in enumerate(layout) if axis not in chosen]
        return _Value(call(node.target, value.image, over, True) if over else value.image, tuple(layout))


def _chunks(tokens: int, most: int) -> int:
    """Into how many of one length, none above the most; 1 where they would be far shorter."""
    least = -(-tokens // most)
    return next((chunks for chunks in range(least, 4 * least) if tokens % chunks == 0), 1)


def _shape(node: Operator) -> tuple[int, ...]:
    kind = node.meta["type"]
    return () if kind is None else tuple(kind.shape)


_RULES: dict[Any, Any] = {
    _aten.linear.default: _Images._linear,
    _aten.layer_norm.default: _Images._layer_norm,
    _aten.scaled_dot_product_attention.default: _Images._attention,
    _aten.select.int: _Images._select,
    _aten.slice.Tensor: _Images._slice,
    _aten.split_with_sizes.default: _Images._split,
    _aten.split.Tensor: _Images._split,
    _aten.chunk.default: _Images._split,
    _aten.mean.dim: _Images._reduction,
    _aten.amax.default: _Images._reduction,
    _aten.sum.dim_IntList: _Images._reduction,
}
