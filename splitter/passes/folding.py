"""Copies a program with its long last axes folded into rows and columns, by rules for single operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import fx

from ..boundary import Fold
from ..graph.program import Program
from ..graph.shapes import TensorType
from .rewriting import Rewriting, Skip, inserter

_aten = torch.ops.aten
Rule: TypeAlias = "Callable[[Folding, fx.Node], Folded]"


@dataclass(frozen=True)
class Folded:
    """A value of shape (…, length) as (…, rows, columns); length 1 is a mean or maximum over all of them.

    Attributes:
        clean: It is 0 behind its length.
    """

    node: fx.Node
    length: int
    rows: int
    columns: int
    clean: bool


class UnfoldableError(Exception):
    """A node whose folded form is not known, or not exact."""


@dataclass
class Folding:
    """Copies a program node by node, folded where it can be."""

    program: Program
    rows: int
    is_long: Callable[[fx.Node], bool]
    rules: Mapping[Any, Rule]
    graph: fx.Graph = field(default_factory=fx.Graph)
    plain: dict[fx.Node, fx.Node] = field(default_factory=dict)
    folded: dict[fx.Node, Folded] = field(default_factory=dict)
    masks: dict[str, fx.Node] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    folds: dict[str, Fold] = field(default_factory=dict)
    module: str = ""
    changes: int = 0
    skipped: list[Skip] = field(default_factory=list)

    def run(self) -> Rewriting:
        for node in self.program.graph.nodes:
            self.module = node.meta.get("module", "")
            if node.op == "placeholder" and self.is_long(node):
                self._input(node)
            elif node.op == "output":
                self.graph.output(
                    tuple(self._output(*output) for output in zip(self.program.outputs, node.args[0], strict=True))
                )
            elif not is_trimmed(node):  # else it waits for its trim, to be folded as one with it
                self._operator(node)
        weights = {**self.program.weights, **self.weights}
        folds = {**self.program.folds, **self.folds}
        program = Program(self.program.name, self.graph, weights, self.program.outputs, folds)
        return Rewriting(program, self.changes, tuple(self.skipped))

    # ------------------------------------------------------------------------------- the edges

    def _input(self, node: fx.Node) -> None:
        length, columns = length_of(node), self._columns(length_of(node))
        copy = self.graph.placeholder(str(node.target))
        shape = (*node.meta["type"].shape[:-1], self.rows, columns)
        copy.meta = {**node.meta, "type": TensorType(shape, "float32")}
        self.folded[node] = Folded(copy, length, self.rows, columns, clean=True)
        self.folds[str(node.target)] = Fold(length=length, rows=self.rows, columns=columns)
        self.changes += 1

    def _output(self, name: str, node: fx.Node) -> fx.Node:
        value = self.folded.get(node)
        if value is None or not self.is_long(node) or value.columns != self._columns(value.length):
            return self.plain_value(node)
        self.folds[name] = Fold(length=value.length, rows=value.rows, columns=value.columns)
        return self.clean(node).node

    def _operator(self, node: fx.Node) -> None:
        concerned = any(self.is_long(value) or value in self.folded for value in (node, *node.all_input_nodes))
        if concerned and node.op == "call_function":
            try:
                if (rule := self.rules.get(node.target)) is None:
                    raise UnfoldableError(f"{node.target} has no folded form")
                self._place(node, rule(self, node))
                return
            except UnfoldableError as error:
                self.skipped.append(Skip.of(node, str(error)))
        self.plain[node] = self._copied(node)

    def _copied(self, node: fx.Node) -> fx.Node:
        for operand in node.all_input_nodes:
            self.plain_value(operand)
        copy = self.graph.node_copy(node, self.plain.__getitem__)
        copy.meta = dict(node.meta)
        return copy

    def _place(self, node: fx.Node, result: Folded) -> None:
        self.changes += 1
        self.folded[node] = result
        if result.length > 1 and not self.is_long(node):
            self.plain_value(node)
            del self.folded[node]

    # --------------------------------------------------------------------------- between the two

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return inserter(self.graph, self.module)(target, *args, **kwargs)

    def _columns(self, length: int) -> int:
        """The shortest rows, a power of two, that hold a length."""
        return 1 << (-(-length // self.rows) - 1).bit_length()

    def value(self, node: fx.Node) -> Folded:
        """A value folded; one that is not yet is filled with zeros and cut into rows."""
        if node not in self.folded:
            length, columns = length_of(node), self._columns(length_of(node))
            plain, missing = self.plain_value(node), self.rows * columns - length
            if missing:
                plain = self.call(_aten.constant_pad_nd.default, plain, [0, missing], 0.0)
            rows = self.call(_aten.view.default, plain, [*node.meta["type"].shape[:-1], self.rows, columns])
            self.folded[node] = Folded(rows, length, self.rows, columns, clean=True)
        return self.folded[node]

    def is_wide(self, value: object) -> bool:
        """Folded, and not collapsed to one number a row of the batch."""
        return isinstance(value, fx.Node) and value in self.folded and self.folded[value].length > 1

    def clean(self, node: fx.Node) -> Folded:
        """A value folded, 0 behind its length."""
        self.folded[node] = cleaned = self.masked(self.value(node))
        return cleaned

    def masked(self, value: Folded) -> Folded:
        if value.clean or value.rows * value.columns == value.length:
            return Folded(value.node, value.length, value.rows, value.columns, clean=True)
        node = self.call(_aten.mul.Tensor, value.node, self._inside(value))
        return Folded(node, value.length, value.rows, value.columns, clean=True)

    def _inside(self, value: Folded) -> fx.Node:
        """1 within a length, 0 behind it, (rows, columns)."""
        name = f"inside_{value.length}_of_{value.rows}_by_{value.columns}"
        if name not in self.masks:
            inside = torch.arange(value.rows * value.columns) < value.length
            self.weights[name] = inside.to(torch.float32).reshape(value.rows, value.columns)
            self.masks[name] = self.graph.get_attr(name)
            self.masks[name].meta = {"type": TensorType.of(self.weights[name]), "module": ""}
        return self.masks[name]

    def plain_value(self, node: fx.Node) -> fx.Node:
        """A value unfolded, as it was."""
        if node not in self.plain and node not in self.folded:  # it has waited for its trim
            self.plain[node] = self._copied(node)
        if node not in self.plain:
            value = self.folded[node]
            shape = node.meta["type"].shape
            flat = self.call(_aten.view.default, value.node, [*shape[:-1], value.rows * value.columns])
            if value.rows * value.columns != value.length:
                flat = self.call(_aten.slice.Tensor, flat, len(shape) - 1, 0, value.length)
                flat = self.call(_aten.clone.default, flat, memory_format=torch.contiguous_format)
            self.plain[node] = flat
        return self.plain[node]

    def beside(self, value: Folded, left: int, right: int) -> fx.Node:
        """Every row with so many columns of the row above before it, and of the row below behind it."""
        if max(left, right) > value.columns:
            raise UnfoldableError("it reaches beyond the neighbouring rows")
        parts = [value.node]
        last = len(value.node.meta["type"].shape) - 1
        if left:
            ends = self.call(_aten.slice.Tensor, value.node, last, value.columns - left, value.columns)
            above = self.call(_aten.slice.Tensor, ends, last - 1, 0, value.rows - 1)
            parts.insert(0, self.call(_aten.constant_pad_nd.default, above, [0, 0, 1, 0], 0.0))
        if right:
            starts = self.call(_aten.slice.Tensor, value.node, last, 0, right)
            below = self.call(_aten.slice.Tensor, starts, last - 1, 1, value.rows)
            parts.append(self.call(_aten.constant_pad_nd.default, below, [0, 0, 0, 1], 0.0))
        return value.node if len(parts) == 1 else self.call(_aten.cat.default, parts, last)


# -------------------------------------------------------------------------------- reading of nodes


def length_of(node: fx.Node) -> int:
    """Extent of the last axis."""
    return int(node.meta["type"].shape[-1])


def trimmed_to(node: fx.Node) -> tuple[int, int]:
    """Start and length of a slice of the last axis, without steps. Raises `UnfoldableError` for any other."""
    rank = len(node.meta["type"].shape)
    given: tuple[Any, ...] = node.args
    defaults: tuple[Any, ...] = (None, 0, None, None, 1)
    _, axis, start, _, step = given + defaults[len(given) :]
    if node.kwargs or axis % rank != rank - 1 or step != 1 or (start or 0) < 0:
        raise UnfoldableError("it slices another axis, in steps, or from the end")
    return start or 0, length_of(node)


def only_trim(node: fx.Node) -> fx.Node | None:
    """The slice of the last axis that alone reads a node, if it is so."""
    users = list(node.users)
    if len(users) != 1 or users[0].target is not _aten.slice.Tensor:
        return None
    with suppress(UnfoldableError):
        trimmed_to(users[0])
        return users[0]
    return None


def is_trimmed(node: fx.Node) -> bool:
    """A transposed convolution that only a slice reads."""
    return node.target is _aten.conv_transpose1d.default and only_trim(node) is not None
