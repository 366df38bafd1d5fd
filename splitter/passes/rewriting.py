"""What a graph pass is, and how most of them rewrite: operator by operator, types worked out without storage."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import fx

from ..graph.program import Program
from ..graph.shapes import TensorType

Call: TypeAlias = Callable[..., fx.Node]
Operator: TypeAlias = Any  # an fx.Node whose arguments have the types that its target takes


@dataclass(frozen=True)
class Skip:
    """A place that a pass is made for and has left as it was.

    Attributes:
        node: Name of the operator in the captured segment.
        module: Path of the module that it stands for.
        reason: Why, as a clause.
    """

    node: str
    module: str
    reason: str

    @classmethod
    def of(cls, node: fx.Node, reason: str) -> Skip:
        return cls(node.name, node.meta.get("module", ""), reason)


@dataclass(frozen=True)
class Rewriting:
    """What a pass made of a program.

    Attributes:
        program: The rewritten one.
        changes: Places that are other than before.
        skipped: Places that the pass is made for and has left.
    """

    program: Program
    changes: int
    skipped: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """One rewriting of a program. Fields of subclasses are parameters, which a plan may set.

    Attributes:
        name: As a plan lists it.
        max_abs: Largest absolute change of any output value the pass may cause; 0.0 means bit for bit.
        requires: Names of passes that must have run before this one.
        essential: What it skips, no package can compute: where it is asked for, a place that it leaves fails the build.
    """

    name: ClassVar[str]
    max_abs: ClassVar[float]
    requires: ClassVar[tuple[str, ...]] = ()
    essential: ClassVar[bool] = False

    @abstractmethod
    def apply(self, program: Program) -> Rewriting:
        """Rewrite what can be proven and skip the rest. The argument stays as it is."""


@dataclass(frozen=True)
class OperatorPass(Pass):
    """A pass that looks at one operator at a time."""

    def apply(self, program: Program) -> Rewriting:
        return rewrite_nodes(program, self.rewrite)

    @abstractmethod
    def rewrite(self, call: Call, node: Operator) -> fx.Node | str | None:
        """What to read in the place of an operator.

        Args:
            call: Inserts nodes before it, see `inserter`.
            node: The operator.

        Returns:
            The node to read instead; or, with nothing inserted, why it stays, as a clause; None for an operator that
            the pass is not about.
        """


def rewrite_nodes(program: Program, rewrite: Callable[[Call, Operator], fx.Node | str | None]) -> Rewriting:
    """A copy of a program with other nodes in the place of some operators, see `OperatorPass.rewrite`.

    What nothing reads any more goes.
    """
    rewritten = program.copy()
    changes = 0
    skipped = []
    for node in rewritten.operators:
        with rewritten.graph.inserting_before(node):
            result = rewrite(inserter(rewritten.graph, node.meta["module"]), node)
        if isinstance(result, str):
            skipped.append(Skip.of(node, result))
        elif result is not None:
            node.replace_all_uses_with(result)
            changes += 1
    rewritten.graph.eliminate_dead_code()
    return Rewriting(rewritten, changes, tuple(skipped))


def inserter(graph: fx.Graph, module: str) -> Call:
    """A function that appends ``target(*args)`` at the graph's insertion point.

    Args:
        graph: The graph to grow; choose the place with its own ``inserting_before``.
        module: Path of the module that the new nodes stand for.

    Returns:
        ``call(target, *args, **kwargs) -> node``, with the node's type and module in its ``meta``.
    """

    def call(target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        node = graph.call_function(target, args, kwargs)
        shown = fx.node.map_arg((args, kwargs), _without_storage)
        result = target(*shown[0], **shown[1])
        node.meta = {"type": TensorType.of(result) if isinstance(result, torch.Tensor) else None, "module": module}
        return node

    return call


def as_images(call: Call, x: fx.Node) -> fx.Node:
    """(a, b, n) as (a, b, 1, n)."""
    before, channels, length = x.meta["type"].shape
    return call(torch.ops.aten.view.default, x, [before, channels, 1, length])


def pieces(call: Call, x: fx.Node, sizes: Sequence[int], axis: int) -> list[fx.Node]:
    """A tensor in pieces along an axis; as it is where that is one."""
    if len(sizes) == 1:
        return [x]
    split = call(torch.ops.aten.split_with_sizes.default, x, list(sizes), axis)
    return [call(operator.getitem, split, index) for index in range(len(sizes))]


def _without_storage(node: Operator) -> Any:
    kind: TensorType | None = node.meta["type"]
    if kind is None:  # several, of which one is taken
        return node.target(*fx.node.map_arg(node.args, _without_storage))
    return torch.empty(kind.shape, dtype=getattr(torch, kind.dtype), device="meta")
