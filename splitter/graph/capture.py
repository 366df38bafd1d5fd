"""Model → graph: `torch.export` of the module as it is, functionalised.

The model's forward is never rewritten. What cannot be traced as it stands is patched by name for the
duration of the capture, see `patches` and each model family.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._pytree import tree_structure

from ..boundary import Return
from ..errors import CaptureError
from . import definitions, derived, diagnosis
from .operators import ALLOWED
from .patches import without_fused_attention, without_unfold_backward_decomposition
from .program import Program
from .shapes import TensorType
from .signature import Call, bind, identifier, paths, remembered

Patch: TypeAlias = Callable[[], AbstractContextManager[None]]
# Of what a graph computes, none needs them.
_ASSERTIONS = frozenset(
    {
        torch.ops.aten._assert_tensor_metadata.default,
        torch.ops.aten._assert_async.msg,
        torch.ops.aten._assert_async.default,
        torch.ops.higher_order.with_effects,
    }
)
# Without in-place writes another name for a value is nothing; converters lack `alias`.
_SAME_VALUE = frozenset({torch.ops.aten.alias.default, torch.ops.aten.detach.default})
# What autograd or Python's syntax tells apart is one operator here.
_CHECKED: dict[Any, Any] = {
    torch.ops.aten._unsafe_view.default: torch.ops.aten.view.default,
    torch.ops.aten._adaptive_avg_pool2d.default: torch.ops.aten.adaptive_avg_pool2d.default,
    torch.ops.aten._adaptive_avg_pool3d.default: torch.ops.aten.adaptive_avg_pool3d.default,
    torch.ops.aten.__and__.Tensor: torch.ops.aten.bitwise_and.Tensor,
    torch.ops.aten.__or__.Tensor: torch.ops.aten.bitwise_or.Tensor,
    torch.ops.aten.__xor__.Tensor: torch.ops.aten.bitwise_xor.Tensor,
}
# Memory that forward writes to before it reads it: zeros do as well, and are the same every time.
_UNWRITTEN = frozenset(
    {
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.empty_permuted.default,
        torch.ops.aten.empty_strided.default,
        torch.ops.aten.new_empty.default,
        torch.ops.aten.new_empty_strided.default,
    }
)
# In inference it is `batch_norm`, which checks its parameters and gives one result.
_BATCH_NORM = torch.ops.aten._native_batch_norm_legit_no_training.default
_ONE_RESULT = torch.ops.aten.batch_norm.default


@torch.no_grad()
def capture(
    model: nn.Module, inputs: Mapping[str, Any], outputs: tuple[str, ...] = (), patches: Sequence[Patch] = ()
) -> Program:
    """Capture the whole model as one program.

    Args:
        model: The unmodified module, in eval mode.
        inputs: Example inputs by the name of the forward's argument, see `splitter.graph.signature`; their shapes
            become the graph's.
        outputs: Names for the tensors that forward computes and returns, each once; names from the structure that it
            returns where there are none.
        patches: Context managers of the model's family, which hold while it is captured.

    Returns:
        A program whose run equals the model bit for bit on the same machine; under ``torch.no_grad()``, inside
        `without_fused_attention`. What forward writes into buffers and into its inputs is no output.

    Raises:
        UsageError: The inputs do not fit the forward's arguments.
        CaptureError: The model is in training mode, its forward fails, or `torch.export` refuses it.
    """
    if model.training:
        raise CaptureError("the model is in training mode", expected="eval mode", fix="Call model.eval() first.")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("a TorchScript module has no forward in Python to capture", fix="Give the nn.Module itself.")
    call = bind(model, inputs)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # torch.export's own: tree specs, RNN weight lists
        for patch in (without_unfold_backward_decomposition, without_fused_attention, *patches):
            stack.enter_context(patch())
        exported, defined = _settled(model, call)
    program = _unlift(exported, call, outputs)
    program.defined = defined
    return program


Reviewed: TypeAlias = tuple[ExportedProgram, tuple[str, ...]]


def _settled(model: nn.Module, call: Call) -> Reviewed:
    """The export of a run that finds what the run before it kept.

    Some modules fill a table when they first run, of positions for example, and read it from then on. Where layers
    share such a table, `torch.export` gets the first run wrong or refuses it: it takes the table for one of each layer.
    What is still written in a second run is state; the module gets back what it had.
    """
    first: Reviewed | None = None
    try:
        first = _exported(model, call)
        if not _writes(first[0]):
            return first
    except Exception as error:
        reason = diagnosis.of(error, model, call)
        reason.__cause__ = error
    restore = remembered(model)
    try:
        call.run(model, kept=False)
        second = _exported(model, call)
        if not _writes(second[0]):
            return second
    except Exception:  # noqa: S110 - the reason is the first one's
        pass
    restore()
    if first is None:
        raise reason
    return first


def _exported(model: nn.Module, call: Call) -> Reviewed:
    exported = torch.export.export(model, call.args, call.kwargs, strict=False)
    # Functional: in-place writes become values, so that data flow alone orders the nodes.
    return _reviewed(exported.run_decompositions({}))


def _writes(exported: ExportedProgram) -> bool:
    return any(spec.kind is OutputKind.BUFFER_MUTATION for spec in exported.graph_signature.output_specs)


def _check_drawn(node: fx.Node) -> None:
    """Refuse an operator that draws random numbers; those that a program may use are told not to, see `admission`."""
    if str(node.target) not in ALLOWED and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise CaptureError(
            f"forward draws random numbers{_at(node)}",
            received=node.target,
            fix="Give the noise as an input, or take the part of the model that draws none.",
        )


def _reviewed(exported: ExportedProgram) -> Reviewed:
    """With operators that a saved program may not use as those that they are defined by; their names."""
    defined: set[str] = set()
    for _ in range(4):  # a definition may use another such operator
        known = definitions.known(_foreign(exported))
        if not known:
            break
        defined |= {str(target) for target in known if definitions.rounds_otherwise(target)}
        exported = exported.run_decompositions(dict(known))
    return exported, tuple(sorted(defined))


def _foreign(exported: ExportedProgram) -> set[torch._ops.OpOverload]:
    """Operators that a saved program may not use, and that compute something from the inputs."""
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    varying: set[fx.Node] = set()
    foreign = set()
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            varying |= {node} if specs[node.name].kind is InputKind.USER_INPUT else set()
        elif varying.intersection(node.all_input_nodes):
            varying.add(node)
            foreign |= {node.target} if _is_foreign(node) else set()
    return foreign


def _is_foreign(node: fx.Node) -> bool:
    target = node.target
    known = str(target) in ALLOWED or target in _CHECKED or target is _BATCH_NORM or target in _UNWRITTEN
    return isinstance(target, torch._ops.OpOverload) and not known


def _unlift(exported: ExportedProgram, call: Call, outputs: tuple[str, ...]) -> Program:
    """Turn the export's lifted weights back into named attributes of one plain graph."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    weights: dict[str, Tensor] = {}
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    names = iter(call.tensors)
    tuples: dict[fx.Node, Any] = {}  # of weights that are made of weights
    returns: tuple[Return, ...] = ()
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind is InputKind.TOKEN:  # orders assertions
                continue
            if spec.kind is InputKind.USER_INPUT:
                if not isinstance(spec.arg, TensorArgument):  # a constant, which the graph holds already
                    continue
                copy = graph.placeholder(next(names))
            else:
                key = str(spec.target)
                weights[key] = _weight(exported, key)
                copy = graph.get_attr(key)
            copy.meta = {"type": _type(node), "module": ""}
        elif node.op == "call_function":
            if node.target in _ASSERTIONS or any(source.target in _ASSERTIONS for source in node.all_input_nodes):
                continue
            if node.target in _SAME_VALUE:
                mapping[node] = mapping[node.all_input_nodes[0]]
                continue
            if node.target is operator.getitem and mapping[node.args[0]].target is _ONE_RESULT:
                mapping[node] = mapping[node.args[0]]  # the other results are of training
                continue
            _check_drawn(node)
            if _derived(graph, node, mapping, weights, tuples):
                continue
            copy = _operator(graph, node, mapping)
        elif node.op == "output":
            signature = exported.graph_signature.output_specs
            returned = [
                (mapping[item], None) if isinstance(item, fx.Node) else (None, item)
                for item, spec in zip(node.args[0], signature, strict=True)
                if spec.kind is OutputKind.USER_OUTPUT
            ]
            outputs, returns = _returned(graph, returned, paths(exported.call_spec.out_spec), call, outputs)
            continue
        else:
            raise CaptureError("the captured graph holds something other than an operator", received=node.format_node())
        mapping[node] = copy
    for node in reversed(list(graph.nodes)):
        if node.op in ("get_attr", "call_function") and not node.users:
            graph.erase_node(node)
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    kept = {key: value for key, value in weights.items() if key in used}
    return Program("model", graph, kept, outputs, returns=returns)


def _derived(
    graph: fx.Graph,
    node: fx.Node,
    mapping: dict[fx.Node, fx.Node],
    weights: dict[str, Tensor],
    tuples: dict[fx.Node, Any],
) -> bool:
    """Put a new weight in the place of an operator that no saved program may use, if it is made of weights alone."""
    if not _is_foreign(node) and not any(source in tuples for source in node.all_input_nodes):
        return False
    made = derived.of_weights(node, mapping, weights, tuples)
    if isinstance(made, Tensor):
        mapping[node] = graph.get_attr(derived.name(node, mapping, weights))
        mapping[node].meta = {"type": _type(node), "module": ""}
        weights[str(mapping[node].target)] = made
    elif made is not None:
        tuples[node] = made
    return made is not None


def _operator(graph: fx.Graph, node: fx.Node, mapping: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """An operator as a saved program has it, at the end of a graph."""
    kind, module = (node.meta["val"][0] if node.target is _BATCH_NORM else node.meta["val"]), _module_path(node)
    if node.target in _UNWRITTEN:
        zeros = (list(kind.shape),), {"dtype": kind.dtype}
        copy = graph.create_node("call_function", torch.ops.aten.zeros.default, *zeros, name="zeros")
    elif node.target is _BATCH_NORM:
        *tensors, momentum, eps = fx.node.map_arg(node.args, mapping.__getitem__)
        arguments = (*tensors, False, momentum, eps, False)
        copy = graph.create_node("call_function", _ONE_RESULT, arguments, name="batch_norm")
        copy.meta = {"type": TensorType.of(kind), "module": module}
        return copy
    else:
        copy = graph.node_copy(node, mapping.__getitem__)
        copy.target = _CHECKED.get(copy.target, copy.target)
    copy.meta = {"type": _type(node), "module": module}
    return copy


def _returned(
    graph: fx.Graph,
    returned: Sequence[tuple[fx.Node | None, Any]],
    places: Sequence[str],
    call: Call,
    outputs: tuple[str, ...],
) -> tuple[tuple[str, ...], tuple[Return, ...]]:
    """End the graph with every tensor that it computes and returns, once; their names, and what lies where."""
    nodes: dict[fx.Node, str] = {}  # by the place that each lies at first
    for place, (node, constant) in zip(places, returned, strict=True):
        if node is not None and node.op != "placeholder":
            nodes.setdefault(node, place)
        elif node is None and not (constant is None or isinstance(constant, bool | int | float | str)):
            raise CaptureError(
                "forward returns something that no graph gives",
                expected="tensors, None, numbers and texts",
                received=f"{type(constant).__name__} at {place or 'the top'}",
            )
    if not nodes:
        raise CaptureError("forward returns no tensor that it computes", fix="There is nothing to build of it.")
    if outputs and len(outputs) != len(nodes):
        at = ", ".join(f"{place or 'the result'} {node.meta['type']}" for node, place in nodes.items())
        raise CaptureError(
            "the plan does not name every tensor that forward computes and returns, each once",
            expected=f"{len(nodes)} names (for {at})",
            received=f"{len(outputs)}: {', '.join(outputs)}",
            fix="Correct `outputs` in the plan.",
        )
    names = dict(zip(nodes, outputs or _output_names(nodes.values(), call), strict=True))
    results = tuple(_computed(graph, node) for node in nodes)
    graph.output(results)
    names |= {node: str(node.target) for node, _ in returned if node is not None and node.op == "placeholder"}
    returns = tuple(
        Return(path=place, constant=constant) if node is None else Return(path=place, tensor=names[node])
        for place, (node, constant) in zip(places, returned, strict=True)
    )
    return tuple(names[node] for node in nodes), returns


def _output_names(places: Iterable[str], call: Call) -> tuple[str, ...]:
    names: list[str] = []
    for place in places:
        name = identifier(place.lower(), (), "output") if place else "output"
        if name in call.tensors:
            name = f"{name}_output"
        names.append(identifier(name, {*names, *call.tensors}, "output"))
    return tuple(names)


def _computed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A tensor that depends on no input as a value of its own, which no other operator reads."""
    if node.op != "get_attr":
        return node
    copy = graph.call_function(torch.ops.aten.clone.default, (node,))
    copy.meta = dict(node.meta)
    return copy


def _weight(exported: ExportedProgram, key: str) -> Tensor:
    tensor = exported.state_dict[key] if key in exported.state_dict else exported.constants[key]
    if not isinstance(tensor, Tensor):
        raise CaptureError(f"the weight {key!r} of the graph is no tensor", received=type(tensor).__name__)
    return tensor


def _type(node: fx.Node) -> TensorType | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    if any(not isinstance(extent, int) for extent in value.shape):
        raise CaptureError(
            f"the extents of a tensor depend on the values of another one{_at(node)}; shapes in a graph are static",
            received=f"{node.target} gives {tuple(value.shape)}",
            fix="Return what it is computed from, and do the rest after the model.",
        )
    return TensorType.of(value)


def _at(node: fx.Node) -> str:
    module = _module_path(node)
    return f", in the module {module}" if module else ""


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = [entry[0] for entry in stack.values()][-1] if stack else ""
    return str(path)


def exported(program: Program) -> ExportedProgram:
    """The inverse: a program as `torch.export`'s own, for converters that take one.

    Nothing is traced again: the nodes are the program's, weights lifted to inputs, with fake values for
    their shapes.
    """
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    inputs: list[InputSpec] = []
    lifted = [node for node in program.graph.nodes if node.op == "get_attr"]
    for node in lifted:
        mapping[node] = placeholder = graph.placeholder(node.name)
        argument, key = TensorArgument(placeholder.name), str(node.target)
        if isinstance(program.weights[key], nn.Parameter):
            inputs.append(InputSpec(InputKind.PARAMETER, argument, key))
        else:
            inputs.append(InputSpec(InputKind.BUFFER, argument, key, persistent=True))
    for node in program.input_nodes:
        mapping[node] = placeholder = graph.placeholder(str(node.target))
        inputs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(placeholder.name), None))
    for node in program.operators:
        mapping[node] = graph.node_copy(node, mapping.__getitem__)
        mapping[node].meta = {}
    results = tuple(mapping[node] for node in program.output_nodes)
    graph.output(results)

    with FakeTensorMode() as mode:
        values = [_fake(node.meta["type"]) for node in (*lifted, *program.input_nodes)]
    FakeTensorProp(fx.GraphModule({}, graph), mode).propagate_dont_convert_inputs(*values)
    arguments = tuple(values[len(lifted) :])
    signature = ModuleCallSignature([], [], tree_structure((arguments, {})), tree_structure(results))
    return ExportedProgram(
        root={},
        graph=graph,
        graph_signature=ExportGraphSignature(
            inputs, [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in results]
        ),
        state_dict=dict(program.weights),
        range_constraints={},
        module_call_graph=[ModuleCallEntry("", signature)],
    )


def _fake(kind: TensorType) -> Tensor:
    return torch.empty(kind.shape, dtype=getattr(torch, kind.dtype))
