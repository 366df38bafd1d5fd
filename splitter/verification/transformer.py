"""The taps of `kernels.taps` in a captured transformer: which node each one is, and what it computes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import cached_property

import torch
from splitter_kernels.taps import LOGIT_ROWS, Tap, taps
from splitter_weights import transformer as weights
from torch import Tensor, fx

from ..boundary import Array
from ..bundle.directory import Bundle
from ..bundle.manifest import SegmentRecord
from ..errors import BundleError
from ..graph.program import Program
from ..graph.shapes import TensorType
from ..lowering import with_artifact
from ..lowering.kernels.checks import with_stored_weights

_aten = torch.ops.aten
_SKELETON = re.compile(r"(input|embedded|layers(_t)?\.\d+\.norm_out|output)(_t)?")


class TappedTransformer:
    """The captured transformer of a bundle, observable at every tap.

    Where the bundle ships halved or compressed matrices the graph has these in the place of its own, so that a port
    is not blamed for them: what they cost is `verify`'s to say. With ``shipped=False`` it keeps its own.

    Attributes:
        record: The exported weights' part of the manifest.
        config: The transformer's configuration.
        taps: By name, in order of computation.
        nodes: The node of the captured segment that each tap is. ``logits`` have none: attention is one operator of
            the graph, so they are computed from the nodes of q and k.
    """

    def __init__(self, bundle: Bundle, *, shipped: bool = True) -> None:
        """Find the taps.

        Raises:
            BundleError: The bundle has no transformer that the kernels implement.
        """
        self.segment = _transformer(bundle)
        self.record = weights.record_of(self.segment.artifact.details)
        self.config = self.record.config
        self.taps = taps(self.config)
        self._bundle = bundle
        replaced = shipped and not self.record.form.is_lossless
        holder = with_stored_weights(bundle, self.segment) if replaced else bundle
        self._program = holder.program(self.segment.program)
        inputs = {str(node.target): node for node in self._program.input_nodes}
        outputs = dict(zip(self._program.outputs, self._program.output_nodes, strict=True))
        self.nodes = self._found(self._program, inputs | outputs)

    @property
    def boundaries(self) -> dict[str, str]:
        """The taps that are boundary tensors, and what they are called there."""
        names = [*self.record.inputs, *self.record.outputs]
        return dict(zip(("input", "input_t", "output", "output_t"), names, strict=True))

    def within(self, whole: Program, boundary: Mapping[str, fx.Node]) -> tuple[Program, dict[str, fx.Node]]:
        """The whole model with the weights that the transformer has here, and the node of it that each tap is.

        Args:
            boundary: The whole model's nodes by the name of the boundary tensor that they are.
        """
        weights = whole.weights | {key: self._program.weights[key] for key in self._program.weights}
        return replace(whole, weights=weights, _module=None), self._found(whole, boundary)

    def _found(self, program: Program, boundary: Mapping[str, fx.Node]) -> dict[str, fx.Node]:
        (stage,) = (stage for stage in self._bundle.manifest.plan.stages if stage.name == self.segment.stage)
        known = {tap: boundary[name] for tap, name in self.boundaries.items()}
        try:
            nodes = _nodes(program, stage.modules[0], known, self.taps)
        except (LookupError, ValueError) as error:
            raise BundleError(
                "a tap is no node of the captured transformer",
                received=str(error),
                fix="Build the bundle again.",
            ) from error
        _check_shapes(self.taps, nodes)
        return nodes

    @cached_property
    def tensors(self) -> Mapping[str, Array]:
        """The transformer's weights as they were exported, by kernel name."""
        return weights.load(self._bundle.path / self.segment.artifact.path, self.record, self._bundle.files.read)[1]

    @cached_property
    def inputs(self) -> Mapping[str, Array]:
        """The golden input, by tap name."""
        goldens = self._bundle.goldens()
        return {f"input{branch}": goldens[name] for branch, name in zip(("", "_t"), self.record.inputs, strict=True)}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tap's value in this bundle."""
        fixed = self.taps[name].shape
        known = self.inputs["input"].shape  # bins and frames, which the configuration leaves open
        return tuple(known[axis] if extent is None else extent for axis, extent in enumerate(fixed))

    def run(self, observe: Callable[[str, Array], object], inputs: Mapping[str, Array] | None = None) -> None:
        """Run and show every tap's value as soon as it is known, in float32.

        A value may be shown before another tap's that the list has first.

        Args:
            observe: Receives a tap's name and its value.
            inputs: By tap name; the golden ones where None.
        """
        names: dict[fx.Node, list[str]] = {}
        for name, node in self.nodes.items():
            names.setdefault(node, []).append(name)
        queries: dict[str, Tensor] = {}

        def seen(node: fx.Node, value: Tensor) -> None:
            for name in names.get(node, ()):
                observe(name, value.numpy())
                layer, _, last = name.rpartition(".")
                if last == "q":
                    queries[layer] = value
                elif last == "k":
                    observe(f"{layer}.logits", logits(queries.pop(layer), value).numpy())

        given = {}
        for name, array in (self.inputs if inputs is None else inputs).items():
            tensor = torch.from_numpy(array).float()
            observe(name, tensor.numpy())
            given[str(self.nodes[name].target)] = tensor
        self._program.run(given, observe=seen)

    def values(self, wanted: Collection[str], inputs: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Values of some taps.

        Args:
            wanted: Their names.
            inputs: By name of the boundary tensor; the golden ones where None.
        """
        branches = inputs and {
            f"input{branch}": inputs[name] for branch, name in zip(("", "_t"), self.record.inputs, strict=True)
        }
        values: dict[str, Array] = {}
        self.run(lambda name, value: values.update({name: value.copy()} if name in wanted else {}), branches)
        return values

    def step(self, name: str, reads: Mapping[str, Array]) -> Array:
        """One tap from the taps it reads, by the captured graph, in float32.

        Args:
            name: Which tap; not an input.
            reads: Value of each of ``taps[name].reads``, of any floating-point dtype.
        """
        given = {read: torch.tensor(reads[read], dtype=torch.float32) for read in self.taps[name].reads}
        if name not in self.nodes:
            return logits(*given.values()).numpy()
        inputs = {read.replace(".", "_"): self.nodes[read] for read in given}
        part = self._program.part(inputs, {"value": self.nodes[name]})
        return part.run(dict(zip(inputs, given.values(), strict=True)))["value"].numpy()


def skeleton(names: Iterable[str]) -> set[str]:
    """Of some taps, those that tell which layer is wrong."""
    return {name for name in names if _SKELETON.fullmatch(name)}


def has_transformer(bundle: Bundle) -> bool:
    """Whether a segment of the bundle is a transformer that the kernels implement."""
    targets = with_artifact(weights.ARTIFACT)
    return any(segment.artifact.target in targets for segment in bundle.segments)


def _transformer(bundle: Bundle) -> SegmentRecord:
    targets = with_artifact(weights.ARTIFACT)
    for segment in bundle.segments:
        if segment.artifact.target in targets:
            return segment
    raise BundleError(
        "the bundle has no transformer for the kernels",
        received=", ".join(f"{segment.name} → {segment.artifact.target}" for segment in bundle.segments),
        fix=f"In the plan, give its stage the target {' or '.join(map(repr, targets))}.",
    )


def logits(q: Tensor, k: Tensor) -> Tensor:
    rows = q[:, :, :LOGIT_ROWS]
    return rows @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


# --------------------------------------------------------------------------------------- finding the nodes


def _nodes(
    program: Program, root: str, boundary: Mapping[str, fx.Node], wanted: Mapping[str, Tap]
) -> dict[str, fx.Node]:
    within: dict[str, list[fx.Node]] = {}
    for node in program.operators:
        path = node.meta["module"]
        if path == root or path.startswith(f"{root}."):
            within.setdefault(path.removeprefix(root).removeprefix("."), []).append(node)
    found: dict[str, fx.Node] = {}
    for name in wanted:
        if not name.endswith(".logits"):
            found[name] = boundary[name] if name in boundary else _node(name, within, found, wanted)
    return found


def _node(
    name: str, within: Mapping[str, list[fx.Node]], found: Mapping[str, fx.Node], wanted: Mapping[str, Tap]
) -> fx.Node:
    layer, _, last = name.rpartition(".")
    if last.startswith("embedded"):
        return _only(name, [node for node in found[wanted[name].reads[0]].users if node.target is _aten.add.Tensor])
    if not layer and last.startswith("norm_out"):
        return found[wanted[name].reads[0]]
    if last in ("q", "k", "v", "heads"):
        nodes = [node for kind in ("self", "cross") for node in within.get(f"{layer}.{kind}_attn", ())]
        attention = _only(name, [node for node in nodes if node.target is _aten.scaled_dot_product_attention.default])
        return attention if last == "heads" else attention.args["qkv".index(last)]  # type: ignore[return-value]
    if last == "gelu":
        return _only(name, [node for node in within[layer] if node.target is _aten.gelu.default])
    if last in ("residual_1", "residual_2"):
        sums = [node for node in within[layer] if node.target is _aten.add.Tensor]
        return sums[("residual_1", "residual_2").index(last)]
    return within[name][-1]  # a module's result is the last thing it computes


def _only(name: str, nodes: list[fx.Node]) -> fx.Node:
    if len(nodes) != 1:
        raise ValueError(f"{name}: {len(nodes)} nodes fit")
    return nodes[0]


def _check_shapes(wanted: Mapping[str, Tap], nodes: Mapping[str, fx.Node]) -> None:
    for name, node in nodes.items():
        kind: TensorType = node.meta["type"]
        shape = wanted[name].shape
        if len(kind.shape) != len(shape) or any(
            b is not None and a != b for a, b in zip(kind.shape[1:], shape[1:], strict=True)
        ):
            raise BundleError(
                f"tap {name!r} is something else in the captured graph",
                expected=f"{wanted[name].axes!r} of shape {shape}",
                received=f"{node.name} of shape {kind.shape}",
                fix="Build the bundle again.",
            )
