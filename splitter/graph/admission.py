"""Whether a program may run: decided from its text alone, before anything of it is computed.

A program may come from a stranger. It is admitted if every operator is on the list (`splitter.graph.operators`),
every argument fits the operator's schema, every declared shape and dtype is the one that follows from those of the
inputs and weights, and what it holds at once stays below the process's limit (`splitter.limits`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import fx

from .. import limits
from ..errors import SplitterError
from ..formatting import size
from .inference import inferred
from .operators import ALLOWED
from .shapes import DTYPES, Argument, Constant, Inferred, TensorType

MAX_NODES = 50_000
_MAX_RANK = 12
# No extent, stride or padding of a real model comes near it, and products of two fit in 64 bits.
_MAX_INTEGER = 2**31
_INEXACT = frozenset(kind for kind in DTYPES.values() if kind.is_floating_point or kind.is_complex)
_INT64 = range(-(2**63), 2**63)
_INT64_ARGUMENTS = frozenset({"start", "end"})  # of slices, where the largest integer means "to the end"
_MAX_TEXT = 1000

Bound: TypeAlias = Mapping[str, Argument]


class RefusedError(Exception):
    """A node that keeps a program from being admitted.

    Args:
        node: Its name.
        problem: What is wrong with it, as the rest of a sentence that begins with the node.
        expected: What should have been there.
        received: What was found.
    """

    def __init__(self, node: str, problem: str, *, expected: object = None, received: object = None) -> None:
        super().__init__(node, problem, expected, received)
        self.node, self.problem, self.expected, self.received = node, problem, expected, received

    def as_error(self, kind: type[SplitterError], where: str, fix: str) -> SplitterError:
        """The same for the user; ``where`` is the file or program that has the node."""
        problem = f"{where}: node {self.node!r} {self.problem}"
        return kind(problem, expected=_short(self.expected), received=_short(self.received), fix=fix)


def check(graph: fx.Graph) -> None:
    """Admit a program's graph, whose nodes carry their declared ``meta["type"]``.

    Raises:
        RefusedError: It must not run.
    """
    known: dict[fx.Node, Inferred] = {}
    for node in graph.nodes:
        declared: TensorType | None = node.meta.get("type")
        if node.op == "output":
            break
        if declared is not None:
            _check_declared(node.name, declared)
        if node.op == "call_function":
            inferred = _item(node, known) if node.target is operator.getitem else _call(node, known)
        elif declared is None:
            raise RefusedError(node.name, "has no shape", expected="the shape and dtype of an input or weight")
        else:
            inferred = declared
        if (inferred if isinstance(inferred, TensorType) else None) != declared:
            raise RefusedError(
                node.name,
                f"does not have the type it declares, as {node.target} gives another",
                expected=_told(inferred),
                received=_told(declared),
            )
        known[node] = inferred
    _check_memory(graph, known)


def _check_declared(name: str, kind: TensorType) -> None:
    if kind.dtype not in DTYPES:
        raise RefusedError(name, "has an unknown dtype", expected=", ".join(DTYPES), received=repr(kind.dtype))
    if len(kind.shape) > _MAX_RANK:
        raise RefusedError(name, "has too many axes", expected=f"at most {_MAX_RANK}", received=len(kind.shape))
    if any(type(extent) is not int or not 0 <= extent <= 2**47 for extent in kind.shape):
        raise RefusedError(name, "has an impossible shape", received=kind.shape)
    if kind.bytes > limits.max_memory():
        raise _too_large(name, kind.bytes)


def _too_large(name: str, count: int) -> RefusedError:
    return RefusedError(
        name,
        "needs too much memory (--max-memory sets the limit)",
        expected=f"at most {size(limits.max_memory())}",
        received=size(count),
    )


def _check_memory(graph: fx.Graph, known: Mapping[fx.Node, Inferred]) -> None:
    """Bound what is held at once: the weights, and each value until its last use. A view counts like a copy."""
    last_use = {operand: node for node in graph.nodes for operand in node.all_input_nodes}
    ends: dict[fx.Node, list[fx.Node]] = {}
    for value, user in last_use.items():
        if value.op == "call_function":
            ends.setdefault(user, []).append(value)
    weights = {node.target: known[node] for node in graph.nodes if node.op == "get_attr"}
    held = sum(_bytes(kind) for kind in weights.values())
    for node in graph.nodes:
        if node.op in ("placeholder", "call_function"):
            held += _bytes(known[node])
            held_with_workspace = held + (_workspace(node, known) if node.op == "call_function" else 0)
            if held_with_workspace > limits.max_memory():
                raise _too_large(node.name, held_with_workspace)
            if node not in last_use and node.op == "call_function":
                held -= _bytes(known[node])
        for value in ends.get(node, ()):
            held -= _bytes(known[value])


def _bytes(kind: Inferred) -> int:
    return kind.bytes if isinstance(kind, TensorType) else sum(item.bytes for item in kind)


def _workspace(node: fx.Node, known: Mapping[fx.Node, Inferred]) -> int:
    """Bytes that an operator may hold besides its operands and result, where they can be many more."""
    if node.target is torch.ops.aten.scaled_dot_product_attention.default:  # the table of weights
        query, key = _operand(node, 0, "query", known), _operand(node, 1, "key", known)
        return 2 * math.prod(query.shape[:-1]) * key.shape[-2] * query.itemsize
    if str(node.target).startswith("aten.conv"):  # windows laid out as columns
        source, weight = _operand(node, 0, "input", known), _operand(node, 1, "weight", known)
        result = known[node]
        assert isinstance(result, TensorType)
        positions = max(math.prod(result.shape[2:]), math.prod(source.shape[2:]))
        return math.prod(weight.shape[1:]) * positions * result.itemsize
    return 0


def _operand(node: fx.Node, position: int, name: str, known: Mapping[fx.Node, Inferred]) -> TensorType:
    operand = node.args[position] if position < len(node.args) else node.kwargs[name]
    assert isinstance(operand, fx.Node)
    kind = known[operand]
    assert isinstance(kind, TensorType)
    return kind


def _told(kind: Inferred | None) -> str:
    if kind is None:
        return "several tensors"
    if isinstance(kind, TensorType):
        return str(kind)
    return f"a tuple of {len(kind)} tensors"


def _short(value: object) -> object:
    """What the message shows of a value: a file may hold one of any length."""
    text = str(value)
    return value if value is None or len(text) <= 200 else f"{text[:200]}…"


# -------------------------------------------------------------------------------------- arguments


def _item(node: fx.Node, known: Mapping[fx.Node, Inferred]) -> Inferred:
    """Type of ``values[index]``."""
    match node.args:
        case (fx.Node() as source, int() as index) if not isinstance(index, bool) and not node.kwargs:
            values = known[source]
            if isinstance(values, tuple) and 0 <= index < len(values):
                return values[index]
            raise RefusedError(
                node.name, "takes an item that is not there", expected=f"an item of {_told(values)}", received=index
            )
    raise RefusedError(node.name, "takes no item of a tuple", received=node.args)


def _call(node: fx.Node, known: Mapping[fx.Node, Inferred]) -> Inferred:
    """Type of what an operator returns."""
    if str(node.target) not in ALLOWED:
        raise RefusedError(node.name, f"uses the operator {node.target}, which a saved program may not use")
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = _bound(node, known)
    for rule in (_no_training, _no_pinning, *_RULES.get(str(node.target), ())):
        if problem := rule(arguments):
            raise RefusedError(node.name, f"({node.target}) {problem}")
    try:
        return inferred(node.target, tuple(arguments.items()))
    except Exception as error:  # torch's kernels raise every kind
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RefusedError(node.name, f"has arguments that {node.target} does not take", received=reason[0]) from error


def _bound(node: fx.Node, known: Mapping[fx.Node, Inferred]) -> dict[str, Argument]:
    """An operator's arguments by name, as its schema has them."""
    schema = node.target._schema  # type: ignore[union-attr]
    positional = [argument for argument in schema.arguments if not argument.kwarg_only]
    if len(node.args) > len(positional):
        raise RefusedError(
            node.name, f"has too many arguments for {node.target}", expected=len(positional), received=len(node.args)
        )
    given = dict(zip((argument.name for argument in positional), node.args, strict=False))
    for name, value in node.kwargs.items():
        if name in given or all(argument.name != name for argument in schema.arguments):
            raise RefusedError(node.name, f"has an argument {name!r} that {node.target} does not take")
        given[name] = value
    arguments: dict[str, Argument] = {}
    for argument in schema.arguments:
        if argument.name not in given:
            if not argument.has_default_value():
                raise RefusedError(node.name, f"lacks the argument {argument.name!r} of {node.target}")
            continue
        value, kind = given[argument.name], str(argument.real_type)
        frozen = _frozen(value, kind, known, wide=argument.name in _INT64_ARGUMENTS, pointwise=_pointwise(node))
        if frozen is _UNFIT or (argument.N and not _sized(value, argument)):
            wanted = f"{kind} of {argument.N}" if argument.N else kind
            raise RefusedError(
                node.name,
                f"has a wrong argument {argument.name!r} for {node.target}",
                expected=wanted,
                received=_told_value(value, known),
            )
        arguments[argument.name] = frozen
    return arguments


def _pointwise(node: fx.Node) -> bool:
    return torch.Tag.pointwise in node.target.tags  # type: ignore[union-attr]


def _sized(value: object, argument: Any) -> bool:
    """Whether a list has as many items as its kernel reads: the schema's count, or none where that is the default."""
    if value is None or argument.N == 1:  # the schemas' word for any list
        return True
    return isinstance(value, list | tuple) and (
        len(value) == argument.N or (not value and argument.has_default_value() and argument.default_value == [])
    )


def _told_value(value: object, known: Mapping[fx.Node, Inferred]) -> str:
    if isinstance(value, fx.Node):
        return f"node {value.name!r}, {_told(known[value])}"
    return repr(value) if isinstance(value, list | tuple) else f"{type(value).__name__} {value!r}"


_UNFIT: Any = object()


def _frozen(value: object, kind: str, known: Mapping[fx.Node, Inferred], *, wide: bool, pointwise: bool) -> Argument:
    """A value of a schema's type, hashable, nodes replaced by their types; `_UNFIT` if it is not of the type."""
    if kind.startswith("Optional["):
        if value is None:
            return None
        kind = kind.removeprefix("Optional[").removesuffix("]")
    if kind.startswith("List["):
        if not isinstance(value, list | tuple):
            return _UNFIT
        kind = kind.removeprefix("List[").removesuffix("]")
        items = tuple(_frozen(item, kind, known, wide=wide, pointwise=False) for item in value)
        return _UNFIT if any(item is _UNFIT for item in items) else items
    if isinstance(value, fx.Node):
        inferred = known[value]
        return inferred if kind == "Tensor" and isinstance(inferred, TensorType) else _UNFIT
    if kind == "Tensor":  # a plain number broadcasts like a tensor
        kind = "number" if pointwise else ""
    accepts = _KINDS.get(kind)
    if accepts is None or not accepts(value, wide or kind == "number"):
        return _UNFIT
    return Constant(type(value), value)


def _is_integer(value: object, wide: bool) -> bool:
    return type(value) is int and (value in _INT64 if wide else abs(value) <= _MAX_INTEGER)


_KINDS: Mapping[str, Callable[[object, bool], bool]] = {
    "bool": lambda value, wide: type(value) is bool,
    "int": _is_integer,
    "float": lambda value, wide: type(value) is float or _is_integer(value, wide=False),
    "number": lambda value, wide: type(value) in (float, bool) or _is_integer(value, wide),
    "str": lambda value, wide: type(value) is str and len(value) <= _MAX_TEXT and value.isprintable(),
    "ScalarType": lambda value, wide: value in DTYPES.values(),
    "Layout": lambda value, wide: value is torch.strided,
    "MemoryFormat": lambda value, wide: value in (torch.contiguous_format, torch.preserve_format),
    "Device": lambda value, wide: isinstance(value, torch.device) and value.type == "cpu",
}


# ------------------------------------------------------------------------------------------ rules
# What a schema cannot say. Each returns what is wrong, or nothing.


def _value(arguments: Bound, name: str, default: Any = None) -> Any:
    argument = arguments.get(name, default)
    return argument.value if isinstance(argument, Constant) else argument


def _no_training(arguments: Bound) -> str:
    """Nothing is drawn at random."""
    if _value(arguments, "train") or _value(arguments, "dropout_p"):
        return "drops values at random, as in training"
    return ""


def _no_pinning(arguments: Bound) -> str:
    if _value(arguments, "pin_memory") or _value(arguments, "non_blocking"):
        return "asks for memory that is pinned for an accelerator"
    return ""


def _statistics(arguments: Bound) -> str:
    """Statistics are read, or computed and not kept: with both the kernel would write to its arguments."""
    kept = [arguments.get("running_mean"), arguments.get("running_var")]
    computed = _value(arguments, "training") or _value(arguments, "use_input_stats")
    if any(kept) if computed else not all(kept):
        return "must read its running statistics, or have none and compute them"
    source = arguments["input"]
    assert isinstance(source, TensorType)
    if len(source.shape) < 2:
        return "needs an axis of channels"
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = arguments.get(name)
        if isinstance(tensor, TensorType) and tensor.shape != source.shape[1:2]:
            return f"has a {name} of another size than its channels"
    return ""


def _same_dtype(arguments: Bound) -> str:
    """PyTorch looks at the weight's dtype only where there is something to compute."""
    dtypes = {kind.dtype for kind in arguments.values() if isinstance(kind, TensorType)}
    return "has an input and weights of different dtypes" if len(dtypes) > 1 else ""


def _no_truths(arguments: Bound) -> str:
    """PyTorch's kernels and its inference disagree about the result's dtype."""
    truths = any(isinstance(kind, TensorType) and kind.dtype == "bool" for kind in arguments.values())
    return "raises truths to a power" if truths else ""


def _divides(arguments: Bound) -> str:
    """Integers by a constant that is neither 0 nor -1, in their own type: the processor traps at others."""
    operands = [arguments["self"], arguments["other"]]
    dtypes = [kind.dtype for kind in operands if isinstance(kind, TensorType)]
    constants = [kind.value for kind in operands if isinstance(kind, Constant)]
    whole = all(DTYPES[name] not in _INEXACT for name in dtypes) and not any(
        type(value) is float for value in constants
    )
    if not whole or _value(arguments, "rounding_mode", "floor") is None:
        return ""
    divisor = _value(arguments, "other")
    if isinstance(divisor, TensorType):
        return "divides integers by a tensor, which may hold 0; divide them as floating-point numbers and round"
    least = torch.iinfo(DTYPES[dtypes[0]]) if dtypes[0] != "bool" else torch.iinfo(torch.int64)
    fits = 1 <= divisor <= least.max or least.min < divisor < -1
    return "" if fits else f"divides integers by {divisor}"


def _countable(arguments: Bound) -> str:
    """Numbers that PyTorch's kernel and its inference count alike: both in float64."""
    ends = [_value(arguments, name, 0) for name in ("start", "end", "step")]
    return "" if all(abs(number) < 2**53 for number in ends) else "counts beyond what float64 tells apart"


def _not_empty(arguments: Bound) -> str:
    """PyTorch's kernel gives an empty tensor back as it is, its inference does not."""
    empty = any(isinstance(kind, TensorType) and 0 in kind.shape for kind in arguments.values())
    return "rearranges an empty tensor" if empty else ""


def _recurrent(gates: int, states: int) -> Callable[[Bound], str]:
    """A recurrent network whose every weight and state has the shape that its sizes give."""

    def rule(arguments: Bound) -> str:
        source, weights = arguments["input"], arguments["params"]
        layers, biases = _value(arguments, "num_layers"), _value(arguments, "has_biases")
        directions = 2 if _value(arguments, "bidirectional") else 1
        hidden = arguments["hx"] if isinstance(arguments["hx"], tuple) and states == 2 else (arguments["hx"],)
        assert isinstance(source, TensorType)
        assert isinstance(weights, tuple)
        assert isinstance(hidden, tuple)
        if len(source.shape) != 3 or not 1 <= layers <= 1000 or 0 in source.shape:
            return "needs an input of three axes and at least one layer"
        batch = source.shape[0 if _value(arguments, "batch_first") else 1]
        per_direction = 4 if biases else 2
        if len(hidden) != states or len(weights) != per_direction * directions * layers:
            return "has another number of weights or states than its layers need"
        kinds = [kind for kind in (*weights, *hidden) if isinstance(kind, TensorType)]
        state = hidden[0]
        assert isinstance(state, TensorType)
        if len(state.shape) != 3 or any(kind.dtype != source.dtype for kind in kinds):
            return "has a state of other axes or a weight of another dtype than its input"
        width = state.shape[2]
        if any(kind != TensorType((layers * directions, batch, width), source.dtype) for kind in hidden):
            return "has a state of another shape than its layers need"
        if width < 1:
            return "needs a state that is not empty"
        for place, kind in enumerate(weights):
            layer, part = place // (per_direction * directions), place % per_direction
            columns = width if part == 1 else source.shape[2] if layer == 0 else width * directions
            if not isinstance(kind, TensorType) or kind.shape != (gates * width, columns)[: 1 if part > 1 else 2]:
                return f"has a weight {place} of another shape than its layers need"
        return ""

    return rule


_RULES: Mapping[str, Iterable[Callable[[Bound], str]]] = {
    **{name: (_same_dtype,) for name in ALLOWED if name.startswith("aten.conv")},
    **{f"aten.pow.{overload}": (_no_truths,) for overload in ("Tensor_Scalar", "Tensor_Tensor", "Scalar")},
    **{f"aten.{name}": (_divides,) for name in ("div.Tensor_mode", "remainder.Scalar", "remainder.Tensor")},
    **{f"aten.arange.{overload}": (_countable,) for overload in ("default", "start", "start_step")},
    "aten.pixel_shuffle.default": (_not_empty,),
    "aten.pixel_unshuffle.default": (_not_empty,),
    "aten.batch_norm.default": (_statistics,),
    "aten.instance_norm.default": (_statistics,),
    "aten.lstm.input": (_recurrent(gates=4, states=2),),
    "aten.gru.input": (_recurrent(gates=3, states=1),),
    "aten.rnn_tanh.input": (_recurrent(gates=1, states=1),),
    "aten.rnn_relu.input": (_recurrent(gates=1, states=1),),
}
