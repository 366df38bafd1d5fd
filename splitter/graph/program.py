"""A captured graph with its weights: in memory, on disk, and run in torch.

A program is functional ATen: every node is one `torch.ops.aten` operator (or a tuple access) without
side effects. On disk it is plain JSON, with the weights in a safetensors file shared by all programs
of a bundle, so that loading one runs no code of the file's choosing. (`torch.export.load` unpickles.)
"""

from __future__ import annotations

import json
import keyword
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..boundary import Fold, Return
from ..errors import BundleError, CaptureError
from ..reading import MAX_DOCUMENT_BYTES, Read
from . import admission, operators
from .admission import RefusedError
from .shapes import DTYPES, TensorType
from .signature import TAKEN
from .weights import Weights

FORMAT = "splitter.program/1"
Observer: TypeAlias = Callable[[fx.Node, Tensor], None]

_MEMORY_FORMATS = {"contiguous_format": torch.contiguous_format, "preserve_format": torch.preserve_format}
_LAYOUTS = {"strided": torch.strided}


@dataclass
class Program:
    """One graph and the weights it reads.

    Nodes carry two facts in ``meta``: ``"type"``, a `TensorType` (or None for a tuple), and
    ``"module"``, the path of the module that computed the value (``""`` for the model's own forward).

    Attributes:
        name: What the program is called in the bundle, e.g. ``"encoder"``.
        graph: Placeholders (inputs), ``get_attr`` (weights), ``call_function`` (operators), one output
            that is a tuple of nodes.
        weights: Tensors by their path in the model, e.g. ``"encoder.0.conv.weight"``. Those
            that require a gradient in the model do so here: PyTorch's choice of kernel depends on it.
        outputs: Names of the outputs, in the order of the graph's output.
        folds: Inputs and outputs that a pass has folded; captured programs, and so all on disk, have none.
        returns: What a whole model's forward returns, place by place; empty for other programs, and for all on disk.
        defined: Operators of the model that a capture has by definitions, which may round otherwise; see
            `splitter.graph.definitions`.
    """

    name: str
    graph: fx.Graph
    weights: dict[str, Tensor]
    outputs: tuple[str, ...]
    folds: dict[str, Fold] = field(default_factory=dict)
    returns: tuple[Return, ...] = ()
    defined: tuple[str, ...] = ()
    _module: fx.GraphModule | None = field(default=None, repr=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(str(node.target) for node in self.graph.nodes if node.op == "placeholder")

    @property
    def input_nodes(self) -> tuple[fx.Node, ...]:
        return tuple(node for node in self.graph.nodes if node.op == "placeholder")

    @property
    def output_nodes(self) -> tuple[fx.Node, ...]:
        return tuple(self.graph.output_node().args[0])  # type: ignore[arg-type]

    @property
    def operators(self) -> tuple[fx.Node, ...]:
        return tuple(node for node in self.graph.nodes if node.op == "call_function")

    @property
    def parameters(self) -> int:
        """How many numbers the weights hold."""
        return sum(weight.numel() for weight in self.weights.values())

    def copy(self) -> Program:
        """A program with a graph of its own, to rewrite, over the same weights."""
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        copy_nodes((node for node in self.graph.nodes if node.op != "output"), graph, mapping)
        graph.output(tuple(mapping[node] for node in self.output_nodes))
        return Program(self.name, graph, self.weights, self.outputs, self.folds, self.returns, self.defined)

    def constant(self, node: fx.Node) -> Tensor:
        """Value of a node that depends on no input.

        Raises:
            ValueError: It does depend on one.
        """
        return self.part({}, {"value": node}).run({})["value"]

    def part(self, sources: Mapping[str, fx.Node], targets: Mapping[str, fx.Node]) -> Program:
        """The part of this program that computes some nodes from others.

        Args:
            sources: Nodes whose values will be given, by the names of the inputs that they become.
            targets: Nodes to compute, by the names of the outputs that they become.

        Raises:
            ValueError: A target depends on an input that is not among the sources.
        """
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        for name, node in sources.items():
            mapping[node] = graph.placeholder(name)
            mapping[node].meta = dict(node.meta)
        needed, frontier = set(mapping), [node for node in targets.values() if node not in mapping]
        while frontier:
            node = frontier.pop()
            if node.op == "placeholder":
                raise ValueError(f"{', '.join(targets)} depends on the input {node.target}")
            needed.add(node)
            frontier.extend(parent for parent in node.all_input_nodes if parent not in needed)
        copy_nodes((node for node in self.graph.nodes if node in needed), graph, mapping)
        free_of_strides(graph)
        graph.output(tuple(mapping[node] for node in targets.values()))
        return Program("part", graph, self.weights, tuple(targets))

    def module(self) -> fx.GraphModule:
        """The program as a `torch.nn.Module` taking the inputs in order and returning a tuple."""
        if self._module is None:
            self._module = fx.GraphModule(dict(self.weights), self.graph, class_name=f"Program_{self.name}")
        return self._module

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor], observe: Observer | None = None) -> dict[str, Tensor]:
        """Execute in torch and return the outputs by name.

        Args:
            inputs: One tensor per input name.
            observe: Called with every operator node and its value, right after it is computed. Without
                it values are freed by generated code; with it, by an interpreter, one node at a time.

        Raises:
            BundleError: An input is of another shape or dtype than the graph was admitted with, or an operator
                refuses its operands, e.g. an index that its table lacks.
        """
        for node in self.input_nodes:
            if (kind := TensorType.of(inputs[str(node.target)])) != node.meta["type"]:
                raise BundleError(
                    f"program {self.name!r}: input {node.target!r} is of another type than the graph's",
                    expected=node.meta["type"],
                    received=kind,
                )
        args = [inputs[name] for name in self.inputs]
        if observe is None:
            with suppress(*_KERNEL_ERRORS):
                return dict(zip(self.outputs, self.module()(*args), strict=True))
        values = _Stepwise(self, observe).run(*args)  # also to find the node that failed
        return dict(zip(self.outputs, values, strict=True))


_KERNEL_ERRORS = (RuntimeError, IndexError, ValueError, TypeError, ArithmeticError)


class _Stepwise(fx.Interpreter):
    """Interpreter that shows each operator's value to an observer and says which node failed."""

    def __init__(self, program: Program, observe: Observer | None) -> None:
        super().__init__(program.module())
        self.extra_traceback = False
        self._program, self._observe = program, observe

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except _KERNEL_ERRORS as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise BundleError(
                f"program {self._program.name!r}: node {n.name!r} ({n.target}) cannot be computed",
                received=reason[0][:200],
                fix="Build the bundle again; use none from a source that you do not trust.",
            ) from error
        if n.op == "call_function" and isinstance(value, Tensor) and self._observe is not None:
            self._observe(n, value)
        return value


# ---------------------------------------------------------------------------------------- on disk


def to_json(program: Program) -> dict[str, Any]:
    """Describe a program as JSON values, without its weights."""
    nodes = []
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        entry: dict[str, Any] = {"name": node.name, "op": _operator_name(node)}
        if node.op in ("placeholder", "get_attr"):
            entry["target"] = str(node.target)
            if node.op == "get_attr" and program.weights[str(node.target)].requires_grad:
                entry["requires_grad"] = True
        else:
            entry["args"] = [_encode(arg, node) for arg in node.args]
            if node.kwargs:
                entry["kwargs"] = {key: _encode(value, node) for key, value in sorted(node.kwargs.items())}
        kind: TensorType | None = node.meta["type"]
        if kind is not None:
            entry["shape"], entry["dtype"] = list(kind.shape), kind.dtype
        if node.meta["module"]:
            entry["module"] = node.meta["module"]
        nodes.append(entry)
    outputs = {name: node.name for name, node in zip(program.outputs, program.output_nodes, strict=True)}
    return {"format": FORMAT, "name": program.name, "nodes": nodes, "outputs": outputs}


def save(program: Program, path: Path) -> None:
    """Write a program's graph, one node a line; its weights go to the bundle's shared file.

    Raises:
        CaptureError: It would not be read back: it uses an operator that no saved program may, or too much memory.
    """
    try:
        admission.check(program.graph)
    except RefusedError as error:
        module = next((node.meta["module"] for node in program.graph.nodes if node.name == error.node), "")
        where = f"the graph of {program.name}" + (f", in the module {module}" if module else "")
        fix = (
            "A saved program uses reviewed operators alone (splitter/graph/operators.py). Use another function in the "
            "model, or report the operator."
        )
        raise error.as_error(CaptureError, where, fix) from error
    content = to_json(program)
    nodes = ",\n".join(json.dumps(node) for node in content.pop("nodes"))
    head = json.dumps(content)[1:-1]
    path.write_text(f'{{{head}, "nodes": [\n{nodes}\n]}}\n', encoding="utf-8")


def load(path: Path, weights: Weights, read: Read = Path.read_bytes) -> Program:
    """Read a program back, and of the weights those that it uses.

    Args:
        path: Its file.
        weights: Those of all programs of its bundle.
        read: Gives the file's content.

    Raises:
        BundleError: The file is not a program, asks for what a program may not (`splitter.graph.admission`),
            or does not fit the weights.
    """
    fix = "Build the bundle again; use none from a source that you do not trust."
    try:
        content = json.loads(_bounded(read(path)))
        names = [str(entry["target"]) for entry in content["nodes"] if entry["op"] == "weight"]
        return from_json(content, weights.of(names))
    except RefusedError as error:
        raise error.as_error(BundleError, path.name, fix) from error
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path.name} is no saved program ({FORMAT})", received=repr(error)[:200], fix=fix) from error


def _bounded(text: bytes) -> bytes:
    if len(text) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{len(text)} bytes, more than {MAX_DOCUMENT_BYTES}")
    return text


def from_json(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Program:
    """Rebuild a program from `to_json`'s description.

    Raises:
        RefusedError: A node of it may not run.
        ValueError: It is something else; also KeyError, TypeError, AttributeError.
    """
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}")
    if len(content["nodes"]) > admission.MAX_NODES:
        raise ValueError(f"{len(content['nodes'])} nodes, more than {admission.MAX_NODES}")
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    used: dict[str, Tensor] = {}
    for entry in content["nodes"]:
        name = _identifier(entry["name"])
        if name in nodes:
            raise RefusedError(name, "is there twice")
        try:
            nodes[name] = _node(entry, graph, nodes, used, weights)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RefusedError(name, "is malformed", received=repr(error)) from error
    admission.check(graph)
    for name in content["outputs"].values():
        if name not in nodes:
            raise RefusedError(str(name), "is an output and not there")
        if nodes[name].meta["type"] is None:
            raise RefusedError(name, "is an output and no tensor")
    graph.output(tuple(nodes[name] for name in content["outputs"].values()))
    return Program(_label(content["name"]), graph, used, tuple(map(_identifier, content["outputs"])))


def _node(
    entry: Mapping[str, Any],
    graph: fx.Graph,
    nodes: Mapping[str, fx.Node],
    used: dict[str, Tensor],
    weights: Mapping[str, Tensor],
) -> fx.Node:
    """Append what an entry describes. Raises RefusedError, ValueError and its kin."""
    name, kind = entry["name"], _declared(entry)
    if unknown := entry.keys() - _KEYS:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    if entry["op"] == "input":
        target = _identifier(entry["target"])
        if target in TAKEN or any(node.target == target for node in graph.find_nodes(op="placeholder")):
            raise ValueError(f"an input cannot be called {target!r}")
        node = graph.create_node("placeholder", target, name=name)
    elif entry["op"] == "weight":
        target = _path(entry["target"])
        if target not in weights:
            raise RefusedError(name, "is a weight that the bundle lacks", received=target)
        used[target] = _weight(weights[target], entry.get("requires_grad", False))
        if TensorType.of(used[target]) != kind:
            raise RefusedError(
                name,
                "is a weight of another type than it declares",
                expected=TensorType.of(used[target]),
                received=kind,
            )
        node = graph.create_node("get_attr", target, name=name)
    else:
        arguments = tuple(_decode(argument, nodes) for argument in entry["args"])
        named = {_identifier(key): _decode(value, nodes) for key, value in entry.get("kwargs", {}).items()}
        node = graph.create_node("call_function", _resolve(entry["op"], name), arguments, named, name=name)
    node.meta = {"type": kind, "module": _label(entry.get("module", ""))}
    return node


_KEYS = frozenset({"name", "op", "target", "args", "kwargs", "shape", "dtype", "module", "requires_grad"})


def _declared(entry: Mapping[str, Any]) -> TensorType | None:
    if "shape" not in entry:
        return None
    if not isinstance(entry["shape"], list) or not isinstance(entry["dtype"], str):
        raise TypeError("a shape is a list, a dtype a name")
    return TensorType(tuple(entry["shape"]), entry["dtype"])


def _weight(tensor: Tensor, requires_grad: object) -> Tensor:
    if not isinstance(requires_grad, bool) or (
        requires_grad and not (tensor.is_floating_point() or tensor.is_complex())
    ):
        raise ValueError(f"requires_grad is {requires_grad!r} for {tensor.dtype}")
    return nn.Parameter(tensor) if requires_grad else tensor


def _operator_name(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return "weight"
    if node.target is operator.getitem:
        return "getitem"
    return str(node.target)


def _resolve(name: object, node: str) -> Callable[..., Any]:
    if name == "getitem":
        return operator.getitem
    try:
        return operators.resolve(str(name))
    except KeyError:
        raise RefusedError(node, f"uses the operator {str(name)[:80]!r}, which a saved program may not use") from None


def _identifier(name: object) -> str:
    """Only identifiers reach the code that torch.fx generates."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or len(name) > _LONGEST:
        raise ValueError(f"{str(name)[:80]!r} is not a name")
    return name


_LONGEST = 1000  # of names and paths


def _label(text: object) -> str:
    """A text that is only shown."""
    if not isinstance(text, str) or not text.isprintable() or len(text) > _LONGEST:
        raise ValueError(f"{str(text)[:80]!r} is not a name")
    return text


def _path(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is not a path")
    for part in name.split("."):
        if not part.isdigit():
            _identifier(part)
    return name


def _encode(value: Any, node: fx.Node) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_encode(item, node) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for kind, torch_type in (("dtype", torch.dtype), ("layout", torch.layout), ("memory_format", torch.memory_format)):
        if isinstance(value, torch_type):
            return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": "cpu"}
    raise CaptureError(
        f"{node.format_node()} has an argument of a type that no program can hold",
        expected="a tensor, number, string, dtype or list of these",
        received=type(value).__name__,
        fix="Such a model cannot be saved as a program yet.",
    )


_DECODERS: dict[str, Callable[[str], Any]] = {
    "float": float,
    "dtype": DTYPES.__getitem__,
    "layout": _LAYOUTS.__getitem__,
    "memory_format": _MEMORY_FORMATS.__getitem__,
    "device": lambda _: torch.device("cpu"),
}


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node" and content not in nodes:
        raise ValueError(f"it takes the value of {content!r}, which is not computed before it")
    return nodes[content] if kind == "node" else _DECODERS[kind](content)


def largest_difference(reference: Tensor, candidate: Tensor) -> float:
    """``max |r − x|`` of two tensors of any one dtype, truths and integers included."""
    wide = torch.complex128 if reference.is_complex() else torch.float64
    differences = (reference.to(wide) - candidate.to(wide)).abs()
    return float(differences.max()) if differences.numel() else 0.0


@torch.no_grad()
def needs_strides(graph: fx.Graph, weights: Mapping[str, Tensor]) -> bool:
    """Whether a view in a graph fails on inputs whose elements lie in a row, as everybody else hands them over.

    Found by shapes alone: nothing is computed.
    """
    if not any(graph.find_nodes(op="call_function", target=torch.ops.aten.view.default)):
        return False
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [
            torch.empty(node.meta["type"].shape, dtype=DTYPES[node.meta["type"].dtype])
            for node in graph.find_nodes(op="placeholder")
        ]
        try:
            fx.Interpreter(fx.GraphModule(dict(weights), graph)).run(*inputs)
        except ValueError as error:
            return "view" in str(error)
        except Exception:  # an operator that looks at values, such as istft at its window
            return False
    return False


def free_of_strides(graph: fx.Graph) -> None:
    """Let a graph take inputs however they lie in memory: a view of one may need a copy, which `reshape` makes."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default


def copy_nodes(nodes: Iterable[fx.Node], graph: fx.Graph, mapping: dict[fx.Node, fx.Node]) -> None:
    """Append copies of nodes, in order, to another graph; ``mapping`` holds and receives the copies."""
    for node in nodes:
        if node not in mapping:
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
            mapping[node].meta = dict(node.meta)
