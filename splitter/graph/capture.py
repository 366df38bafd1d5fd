"""Model → graph: `torch.export` of the module as it is, functionalised.

The model's forward is never rewritten. What cannot be traced as it stands is patched by name for the
duration of the capture, see `patches` and each model family.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
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

from ..errors import CaptureError
from .patches import without_fused_attention, without_unfold_backward_decomposition
from .program import Program
from .shapes import TensorType

Patch: TypeAlias = Callable[[], AbstractContextManager[None]]
_ASSERTIONS = frozenset({torch.ops.aten._assert_tensor_metadata.default})
# What autograd needs to tell apart is one operator here.
_CHECKED: dict[Any, Any] = {torch.ops.aten._unsafe_view.default: torch.ops.aten.view.default}


@torch.no_grad()
def capture(
    model: nn.Module, inputs: Mapping[str, Tensor], outputs: tuple[str, ...], patches: Sequence[Patch] = ()
) -> Program:
    """Capture the whole model as one program.

    Args:
        model: The unmodified module, in eval mode.
        inputs: Example inputs by the name of the forward's argument; their shapes become the graph's.
        outputs: Names for what the forward returns.
        patches: Context managers of the model's family, which hold while it is captured.

    Returns:
        A program whose run equals ``model(*inputs)`` bit for bit on the same machine; under
        ``torch.no_grad()``, inside `without_fused_attention`.

    Raises:
        CaptureError: The model is in training mode, or `torch.export` refuses it.
    """
    if model.training:
        raise CaptureError("the model is in training mode", expected="eval mode", fix="Call model.eval() first.")
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # torch.export's own: tree specs, RNN weight lists
        for patch in (without_unfold_backward_decomposition, without_fused_attention, *patches):
            stack.enter_context(patch())
        try:
            exported = torch.export.export(model, tuple(inputs.values()), strict=False)
            # Functional: in-place writes become values, so that data flow alone orders the nodes.
            exported = exported.run_decompositions({})
        except Exception as error:
            raise CaptureError(
                "torch.export cannot capture the model",
                received=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                fix="A data-dependent branch or assertion needs a named patch in the model's family.",
            ) from error
    return _unlift(exported, tuple(inputs), outputs)


def _unlift(exported: ExportedProgram, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Program:
    """Turn the export's lifted weights back into named attributes of one plain graph."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    weights: dict[str, Tensor] = {}
    kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    names = iter(inputs)
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = kinds[node.name]
            if spec.kind is InputKind.USER_INPUT:
                copy = graph.placeholder(next(names))
            else:
                key = str(spec.target)
                weights[key] = _weight(exported, key)
                copy = graph.get_attr(key)
            copy.meta = {"type": _type(node), "module": ""}
        elif node.op == "call_function":
            if node.target in _ASSERTIONS:
                continue
            copy = graph.node_copy(node, mapping.__getitem__)
            copy.target = _CHECKED.get(copy.target, copy.target)
            copy.meta = {"type": _type(node), "module": _module_path(node)}
        elif node.op == "output":
            returned = node.args[0]
            if len(returned) != len(outputs):
                raise CaptureError(
                    "the plan does not name every output of the model",
                    expected=f"{len(returned)} names",
                    received=len(outputs),
                    fix="Correct `outputs` in the plan.",
                )
            graph.output(tuple(mapping[item] for item in returned))
            continue
        else:
            raise CaptureError("the captured graph holds something other than an operator", received=node.format_node())
        mapping[node] = copy
    for node in reversed(list(graph.nodes)):
        if node.op in ("get_attr", "call_function") and not node.users:
            graph.erase_node(node)
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return Program("model", graph, {key: value for key, value in weights.items() if key in used}, outputs)


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
        raise CaptureError(f"the shape of {node.name} is not static", received=tuple(value.shape))
    return TensorType.of(value)


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
