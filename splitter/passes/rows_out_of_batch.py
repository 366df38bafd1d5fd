"""Convolve the rows of a spectrogram where they lie, instead of moving them into the batch and back.

Hybrid separators run residual branches along time, each frequency for itself, and for that make 512 frequencies a
batch of 512. What moves there and back is the whole spectrogram, twice a layer; the Neural Engine works on one batch.

Before::

    r: (512, 48, 336) = reshape(permute(x: (1, 48, 512, 336), [0, 2, 1, 3]))
    y = permute(reshape(f(r)), [0, 2, 1, 3])                  # f: conv1d, norms, element-wise operations

After::

    y = f'(x)                                                 # each conv1d a conv2d with a kernel of height 1

A mean over channels and time of each batch row becomes one over the axes 1 and 3. `group_norm` has no such form and
must have been written out before, see `norms_safe_in_half`; from what has none on the rows stay in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..graph.program import Program
from .folding_rules import ELEMENTWISE
from .rewriting import Call, Pass, Rewriting, Skip, as_images, inserter

_aten = torch.ops.aten
_RESHAPES = frozenset({_aten.view.default, _aten.reshape.default})
_REDUCTIONS = frozenset({_aten.mean.dim, _aten.amax.default})
_ELEMENTWISE = ELEMENTWISE - {_aten.glu.default}
_ROWS_FIRST = [0, 2, 1, 3]


@dataclass(frozen=True)
class RowsOutOfBatch(Pass):
    name = "rows-out-of-batch"
    max_abs = 1e-3
    requires = ("norms-safe-in-half",)

    def apply(self, program: Program) -> Rewriting:
        rewritten = program.copy()
        rows = _Rows(rewritten.graph)
        rows.turn()
        rewritten.graph.eliminate_dead_code()
        return Rewriting(rewritten, rows.changes, tuple(rows.skipped))


@dataclass
class _Rows:
    """In place, node by node.

    Attributes:
        images: By a value of shape (batch · rows, c, t), or (batch · rows, 1, c, t): the same as (batch, c, rows, t).
        turned: By a value of shape (batch, rows, c, t): the same as (batch, c, rows, t).
    """

    graph: fx.Graph
    images: dict[fx.Node, fx.Node] = field(default_factory=dict)
    turned: dict[fx.Node, fx.Node] = field(default_factory=dict)
    changes: int = 0  # convolutions
    skipped: list[Skip] = field(default_factory=list)

    def turn(self) -> None:
        for node in list(self.graph.nodes):
            if (source := _moved_into_batch(node)) is not None:
                self.images[node] = source
            elif _turns(node) and (turned := node.all_input_nodes[0]) in self.turned:
                node.replace_all_uses_with(self.turned[turned])
            elif any(operand in self.images for operand in node.all_input_nodes):
                self._reader(node)

    def _reader(self, node: fx.Node) -> None:
        with self.graph.inserting_before(node):
            call = inserter(self.graph, node.meta.get("module", ""))
            if (known := self._image(call, node)) is not None:
                self.images[node] = known
                self.changes += node.target is _aten.conv1d.default
                return
            for operand in node.all_input_nodes:
                if operand in self.images:
                    turned = call(_aten.permute.default, self.images[operand], _ROWS_FIRST)
                    if node.target in _RESHAPES and _shape(node) == _shape(turned):
                        self.turned[turned] = self.images[operand]
                        node.replace_all_uses_with(turned)
                    else:
                        node.replace_input_with(operand, call(_aten.reshape.default, turned, list(_shape(operand))))
                        if node.op == "call_function":
                            self.skipped.append(Skip.of(node, "it has no form with the rows beside the channels"))

    def _image(self, call: Call, node: fx.Node) -> fx.Node | None:
        """What a node computes, on images; None where that is not known."""
        given: tuple[Any, ...] = node.args
        if given[0] in self.images and not node.kwargs:
            if node.target is _aten.conv1d.default:
                return self._convolution(call, *given)
            if node.target in _REDUCTIONS:
                return self._reduction(call, node, *given)
            if node.target in _RESHAPES:
                return self.images[given[0]] if _is_grouping(_shape(given[0]), _shape(node)) else None
            if node.target is _aten.glu.default:
                axis = (*given, -1)[1] % len(_shape(node))
                return call(node.target, self.images[given[0]], 3 if axis == len(_shape(node)) - 1 else 1)
        return self._elementwise(call, node) if node.target in _ELEMENTWISE else None

    def _convolution(
        self,
        call: Call,
        x: fx.Node,
        weight: fx.Node,
        bias: fx.Node | None = None,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        groups: int = 1,
    ) -> fx.Node:
        wide = [[1, *stride], [0, *padding], [1, *dilation]]
        return call(_aten.conv2d.default, self.images[x], as_images(call, weight), bias, *wide, groups)

    def _reduction(
        self, call: Call, node: fx.Node, x: fx.Node, axes: Sequence[int] = (), keepdim: bool = False
    ) -> fx.Node | None:
        rank = len(_shape(x))
        chosen = {axis % rank for axis in axes} - ({1} if rank == 4 else set())
        if not keepdim or not chosen or not chosen <= {rank - 2, rank - 1}:
            return None
        return call(node.target, self.images[x], [1 if axis == rank - 2 else 3 for axis in sorted(chosen)], True)

    def _elementwise(self, call: Call, node: fx.Node) -> fx.Node | None:
        held = [self.images[operand] for operand in node.all_input_nodes if operand in self.images]
        others = [operand for operand in node.all_input_nodes if operand not in self.images]
        rank = len(_shape(node))
        if len({_shape(image)[::2] for image in held}) > 1 or any(_is_per_row(operand, rank) for operand in others):
            return None
        images = {**{operand: _beside_rows(call, operand) for operand in others}, **self.images}
        return call(
            node.target, *(images[arg] if isinstance(arg, fx.Node) else arg for arg in node.args), **node.kwargs
        )


def _shape(node: Any) -> tuple[int, ...]:
    kind = node.meta["type"]
    return () if kind is None else tuple(kind.shape)


def _turns(node: fx.Node) -> bool:
    return node.target is _aten.permute.default and list(node.args[1]) == _ROWS_FIRST  # type: ignore[arg-type]


def _moved_into_batch(node: fx.Node) -> fx.Node | None:
    """The value (batch, c, rows, t) of which a node is (batch · rows, c, t)."""
    if node.target not in _RESHAPES:
        return None
    turned = node.all_input_nodes[0]
    if turned.target is _aten.clone.default:  # as capture writes a reshape that must copy
        turned = turned.all_input_nodes[0]
    if not _turns(turned):
        return None
    batch, rows, *rest = _shape(turned)
    return turned.all_input_nodes[0] if _shape(node) == (batch * rows, *rest) else None


def _is_grouping(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """From (n, c, t) to (n, 1, c, t), or back."""
    short, long = sorted((before, after), key=len)
    return len(short) == 3 and long == (short[0], 1, *short[1:])


def _is_per_row(node: fx.Node, rank: int) -> bool:
    """Has more than channels and time."""
    shape = _shape(node)
    return len(shape) > rank or any(extent != 1 for extent in shape[:-2])


def _beside_rows(call: Call, node: fx.Node) -> fx.Node:
    """A number, or values by channel and time, to broadcast against images."""
    shape = _shape(node)
    return call(_aten.view.default, node, [1, *(1,) * (2 - len(shape)), *shape[-2:-1], 1, shape[-1]]) if shape else node
