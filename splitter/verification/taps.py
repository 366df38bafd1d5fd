"""Taps: the named points of a bundle's captured model at which a port of it can be compared.

Every model has them: what its modules give, boundary tensors, and the steps that no module names. A transformer for
the kernels has the finer ones of `TappedTransformer` in the place of its modules.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from .. import output
from ..arrays import SUFFIXES, write
from ..boundary import Array
from ..bundle.directory import Bundle, Source, single
from ..bundle.manifest import ModelRecord
from ..errors import UsageError
from ..graph.program import Program
from ..graph.shapes import DTYPES, TensorType
from ..lowering import capabilities
from . import mistakes
from .transformer import TappedTransformer, has_transformer, logits, skeleton

_aten = torch.ops.aten
FORMAT = "splitter.taps/1"
_RESHAPES = frozenset({  # the same elements in the same order: no step that a port could get wrong by itself
    _aten.view.default, _aten.reshape.default, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.squeeze.dims,
    _aten.squeeze.default, _aten.clone.default,
})  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """What a tap is recomputed from.

    Attributes:
        taps: Of the dump.
        goldens: Boundary tensors that the dump has nothing before.
        scope: ``local`` where no other tap lies between, ``nearest`` where some do that the dump lacks, and
            ``accumulated`` where these reach back to what the model or the stage is given.
    """

    taps: tuple[str, ...]
    goldens: tuple[str, ...]
    scope: str


class TappedModel:
    """The captured model of a bundle, observable and recomputable at every tap.

    Where the bundle ships halved or compressed matrices of a transformer the graph has these in the place of its own,
    so that a port is not blamed for them: what they cost is `verify`'s to say.

    Attributes:
        transformer: What the kernels implement of it; None where that is nothing.
        taps: Shape and dtype by name, in order of computation.
        nodes: The node that each tap is. ``logits`` have none: attention is one operator of the graph, so they are
            computed from the nodes of q and k.
        boundaries: Names of the taps that are boundary tensors.
        stages: The segment that computes each tap; none for what the model is given.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.transformer = TappedTransformer(bundle) if has_transformer(bundle) else None
        self._program = bundle.program(bundle.manifest.whole)
        self._home = {
            node.name: segment.name for segment in bundle.segments for node in bundle.program(segment.program).operators
        }
        by_name = {node.name: node for node in self._program.graph.nodes}
        boundary = {name: by_name[node] for name, node in bundle.manifest.nodes.items()}
        found = self._steps() | self._modules() | boundary
        if self.transformer is not None:
            self._program, finer = self.transformer.within(self._program, boundary)
            inside = self.transformer.segment.name
            found = {n: node for n, node in found.items() if n in boundary or self._home.get(node.name) != inside}
            found |= finer
        order = {node: place for place, node in enumerate(by_name.values())}
        tensors = {name: node for name, node in found.items() if node.meta["type"] is not None}
        self.nodes = dict(sorted(tensors.items(), key=lambda tap: order[tap[1]]))
        self.boundaries = frozenset(boundary)
        self._boundary = {node: name for name, node in boundary.items()}
        self._constants = _constants(self._program)
        self._names: dict[fx.Node, list[str]] = {}
        for name, node in self.nodes.items():
            self._names.setdefault(node, []).append(name)
        self.taps = self._typed()
        self.stages = {name: self._stage(name) for name in self.taps}

    @cached_property
    def goldens(self) -> Mapping[str, Array]:
        """The recorded run of the untouched model, by boundary tensor."""
        return self._bundle.goldens()

    def layout(self, name: str) -> str:
        """Axes of a tap as einops writes them; empty where nothing says them."""
        if self.transformer is not None and name in self.transformer.taps:
            return self.transformer.taps[name].axes
        spec = self._bundle.tensors.get(name)
        return spec.layout if spec is not None else ""

    def same(self, name: str) -> tuple[str, ...]:
        """Every name of the value that a tap is, its own first."""
        return (name, *(other for other in self._names.get(self.nodes.get(name), ()) if other != name))  # type: ignore[arg-type]

    def run(self, observe: Callable[[str, Array], object]) -> None:
        """Run on the golden input, and show every tap's value as soon as it is known.

        A value may be shown before another tap's that the list has first.
        """
        queries: dict[str, Tensor] = {}

        def seen(node: fx.Node, value: Tensor) -> None:
            for name in self._names.get(node, ()):
                observe(name, _array(value))
                layer, _, last = name.rpartition(".")
                if last == "q" and f"{layer}.logits" in self.taps:
                    queries[layer] = value
                elif last == "k" and layer in queries:
                    observe(f"{layer}.logits", _array(logits(queries.pop(layer), value)))

        inputs = {name: torch.from_numpy(self.goldens[name]).clone() for name in self._program.inputs}
        for node in self._program.input_nodes:
            seen(node, inputs[str(node.target)])
        self._program.run(inputs, observe=seen)

    def values(self, wanted: Collection[str]) -> dict[str, Array]:
        """Values of some taps; taps that are one value share it."""
        values: dict[str, Array] = {}

        def keep(name: str, value: Array) -> None:
            if name in wanted:
                known = next((values[other] for other in self.same(name) if other in values), None)
                values[name] = value.copy() if known is None else known

        self.run(keep)
        return values

    def reading(self, name: str, held: Collection[str]) -> Reading:
        """What to recompute a tap from where a dump holds some taps: the nearest of them before it.

        A stage of which the dump holds nothing was not ported: what it hands over is the golden.
        """
        if name not in self.nodes:
            assert self.transformer is not None
            reads = self.transformer.taps[name].reads
            return Reading(reads, (), "local") if set(reads) <= {*held} else Reading((), (), "accumulated")
        ported = {self.stages[tap] for tap in held if self.nodes.get(tap) not in self._boundary} | {self.stages[name]}
        holders = {self.nodes[tap]: tap for tap in held if tap in self.nodes}
        taps, goldens, skipped = set[str](), set[str](), False
        frontier, seen = list(self.nodes[name].all_input_nodes), set[fx.Node]()
        while frontier:
            node = frontier.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in holders:
                taps.add(holders[node])
            elif node in self._boundary and (node.op == "placeholder" or self._home.get(node.name, "") not in ported):
                goldens.add(self._boundary[node])
            else:
                skipped |= node in self._names and node not in self._constants
                frontier.extend(node.all_input_nodes)
        scope = "local" if not skipped else "nearest" if taps else "accumulated"
        if self.nodes[name].op == "placeholder":
            scope = "accumulated"
        ordered = [tap for tap in self.taps if tap in taps | goldens]
        return Reading(tuple(t for t in ordered if t in taps), tuple(t for t in ordered if t not in taps), scope)

    def part(self, name: str, reading: Reading) -> Program:
        """The part of the captured graph that computes a tap from others; its inputs are ``x0``, ``x1``, …"""
        sources = {f"x{place}": self.nodes[tap] for place, tap in enumerate((*reading.taps, *reading.goldens))}
        return self._program.part(sources, {"value": self.nodes[name]})

    def arguments(self, reading: Reading, value: Callable[[str], Array]) -> dict[str, Tensor]:
        """The inputs of `part`, in the graph's dtypes."""
        arrays = [*map(value, reading.taps), *(self.goldens[name] for name in reading.goldens)]
        names = (*reading.taps, *reading.goldens)
        return {
            f"x{place}": torch.tensor(array, dtype=DTYPES[self.taps[name].dtype])
            for place, (name, array) in enumerate(zip(names, arrays, strict=True))
        }

    def step(self, name: str, reading: Reading, value: Callable[[str], Array]) -> Array:
        """One tap, recomputed from others by the captured graph.

        Args:
            value: Gives the value of each tap that is read, of any dtype.
        """
        if name in self.nodes:
            return _array(self.part(name, reading).run(self.arguments(reading, value))["value"])
        q, k = (torch.tensor(value(read), dtype=torch.float32) for read in reading.taps)
        return _array(logits(q, k))

    def exact(self, name: str, reading: Reading, value: Callable[[str], Array]) -> Array | None:
        """The same in double precision; None where PyTorch cannot compute the step so."""
        if name not in self.nodes:
            return None
        part = self.part(name, reading)
        doubled = replace(part, weights={key: _double(tensor) for key, tensor in part.weights.items()}, _module=None)
        inputs = {key: _double(tensor) for key, tensor in self.arguments(reading, value).items()}
        try:
            return _array(mistakes.computed(doubled, inputs, {}))
        except Exception:  # operators that ask for operands of one dtype, some of which the graph makes in float32
            return None

    # ----------------------------------------------------------------------------------- finding them

    def _modules(self) -> dict[str, fx.Node]:
        """What each module computes last is what it gives."""
        found: dict[str, fx.Node] = {}
        for node in self._program.operators:
            path = node.meta["module"]
            while path:
                found[path] = node
                path = path.rpartition(".")[0]
        return found

    def _steps(self) -> dict[str, fx.Node]:
        """Operators that no module names: the model's own forward's, and every one of the host's stages."""
        on_host = {s.name for s in self._bundle.segments if capabilities(s.artifact.target).on_host}
        return {
            f"{stage}.{node.name}": node
            for node in self._program.operators
            if (stage := self._home.get(node.name, "")) and node.target not in _RESHAPES
            if stage in on_host or not node.meta["module"]
        }

    def _typed(self) -> dict[str, TensorType]:
        types = {name: node.meta["type"] for name, node in self.nodes.items()}
        if self.transformer is None:
            return types
        typed: dict[str, TensorType] = {}
        for name, kind in types.items():
            typed[name] = kind
            layer, _, last = name.rpartition(".")
            if last == "k" and (tap := self.transformer.taps.get(f"{layer}.logits")):
                typed[tap.name] = TensorType(self.transformer.shape(tap.name), kind.dtype)
        return typed

    def _stage(self, name: str) -> str:
        node = self.nodes.get(name)
        return self._home.get(node.name, "") if node is not None else self.transformer.segment.name  # type: ignore[union-attr]


def _constants(program: Program) -> set[fx.Node]:
    """Nodes that depend on no input."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op != "placeholder" and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _double(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _array(value: Tensor) -> Array:
    value = value.detach().resolve_conj().resolve_neg()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


# --------------------------------------------------------------------------------------- recording them


@dataclass(frozen=True)
class Taps:
    """Recorded taps.

    Attributes:
        values: By name, in the order of the model's computing.
        about: What a file of them says of itself.
    """

    values: dict[str, Array]
    about: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: what they are of, and their shapes."""
        return {**self.about, "taps": {name: list(value.shape) for name, value in self.values.items()}}


def record(
    source: Source,
    patterns: Sequence[str] = (),
    *,
    stages: Sequence[str] = (),
    tiny: bool = False,
    out: Path | str | None = None,
) -> Taps:
    """Record taps of the captured, untouched model on the bundle's golden input, for a port to be held against.

    Args:
        source: The bundle.
        patterns: Names or shell patterns (``layers.0.*``); every tap where there are none.
        stages: Only what these segments compute and are given; all where there are none.
        tiny: Only what tells which part is wrong: boundary tensors, and of a transformer for the kernels the embedded
            tokens and each layer's result.
        out: ``.safetensors`` or ``.npz`` file to write them to.

    Raises:
        UsageError: A pattern fits no tap, there is no such segment, or the file cannot be written.
    """
    if out is not None:
        output.check(Path(out), *SUFFIXES)
    bundle = single(source)
    model = TappedModel(bundle)
    for pattern in patterns:
        if not fnmatch.filter(model.taps, pattern):
            raise UsageError(f"no tap fits the name or pattern {pattern!r}", fix="Try one like 'layers_t.2.*'.")
    segments = [bundle.segment(stage) for stage in stages]
    given = {name for segment in segments for name in segment.inputs}
    wanted = {
        name
        for name in model.taps
        if not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        if not stages or name in given or model.stages[name] in stages
    }
    if tiny:
        wanted &= model.boundaries | skeleton(model.transformer.taps if model.transformer is not None else ())
    values = model.values(wanted)
    manifest = bundle.manifest
    about = {
        "format": FORMAT,
        "model": manifest.model.name,
        "audio": manifest.golden.audio,
        "weights": _weights(manifest.model),
    }
    taps = Taps({name: values[name] for name in model.taps if name in values}, about)
    if out is not None:
        write(Path(out), taps.values, taps.about)
    return taps


def _weights(model: ModelRecord) -> str:
    if model.checkpoint_sha256:
        return model.checkpoint_sha256
    return "as the module had them" if model.random_init is None else f"random, seed {model.random_init}"
