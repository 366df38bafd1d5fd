"""One mistake, and the call of an operator that it may be made in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...graph.program import Program


@dataclass(frozen=True)
class Call:
    """A node with its arguments by the names of the operator's schema, defaults filled in.

    Attributes:
        node: Of the captured graph.
        arguments: Tensors are nodes until the graph runs, and values then.
    """

    node: fx.Node
    arguments: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @classmethod
    def of(cls, node: fx.Node) -> Call:
        return cls.bound(node, node.args, node.kwargs)

    @classmethod
    def bound(cls, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        values = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        return cls(node, values | dict(zip((a.name for a in schema), args, strict=False)) | dict(kwargs))

    def again(call, /, **changed: Any) -> Tensor:  # noqa: N805  operators have an argument of the name `self`
        """Run the operator, with other values of some arguments."""
        schema = call.node.target._schema.arguments  # type: ignore[union-attr]
        values = dict(call.arguments) | changed
        args = [values[argument.name] for argument in schema if not argument.kwarg_only]
        return call.node.target(*args, **{a.name: values[a.name] for a in schema if a.kwarg_only})  # type: ignore[operator]


@dataclass(frozen=True)
class Mistake:
    """A wrong way to compute a node.

    Attributes:
        cause: What was done, and what the model has.
        compute: The value from the node's call; whatever it raises makes the mistake impossible here.
    """

    cause: str
    compute: Callable[[Call], Tensor]


def again(**changed: Any) -> Callable[[Call], Tensor]:
    """The operator with other values of some arguments, as a mistake computes it."""
    return lambda call: call.again(**changed)


@torch.no_grad()
def computed(program: Program, inputs: Mapping[str, Tensor], wrong: Mapping[fx.Node, Mistake]) -> Tensor:
    """What a program of one output gives where some of its nodes are computed with a mistake."""
    (value,) = _Mistaken(program, wrong).run(*(inputs[name] for name in program.inputs))
    return value.resolve_conj().resolve_neg()


class _Mistaken(fx.Interpreter):
    def __init__(self, program: Program, wrong: Mapping[fx.Node, Mistake]) -> None:
        super().__init__(program.module())
        self.extra_traceback = False
        self._wrong = wrong

    def run_node(self, n: fx.Node) -> Any:
        if n not in self._wrong:
            return super().run_node(n)
        return self._wrong[n].compute(Call.bound(n, *self.fetch_args_kwargs_from_env(n)))
