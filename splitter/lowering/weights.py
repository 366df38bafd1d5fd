"""Weights that a target may store smaller: which they are, and what each form takes and loses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from splitter_weights.quantisation import integers, nearest, palette
from torch import fx

from ..boundary import Array
from ..errors import PlanError
from ..graph.program import Program
from ..plan.schema import Compression, CompressionForm, Precision, WeightForm

if TYPE_CHECKING:
    from ..bundle.directory import Bundle
    from ..bundle.manifest import Artifact, SegmentRecord

BITS: Mapping[WeightForm, int] = {"int8": 8, "pal8": 8, "pal6": 6, "pal4": 4}


class DecodedWeight(NamedTuple):
    """A compressed weight of an artifact, beside the same one before compression."""

    source: str
    form: CompressionForm
    original: Array
    stored: Array


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight of two axes or more.

    Attributes:
        segment: Whose it is.
        source: Its name in the model.
        name: By which the plan knows it: in the model, or in `kernels.spec.parameters` for a transformer.
        values: What it is, float32.
        channels: Axis of the outputs.
        width: Bytes of an element that is not compressed, of a scale, and of an entry of a table.
        section: Of the plan, that says how it is stored.
    """

    segment: str
    source: str
    name: str
    values: Array
    channels: int
    width: tuple[int, int]
    section: Literal["compression", "weights"]

    def bytes(self, form: WeightForm) -> int:
        """What it takes in a form: integers and their scales, or indices and their table."""
        plain, beside = self.width
        if form == "none":
            return self.values.size * plain
        if form == "int8":
            return self.values.size + self.values.shape[self.channels] * beside
        bits = BITS[form]
        return math.ceil(self.values.size * bits / 8) + 2**bits * beside

    def decoded(self, form: CompressionForm) -> Array:
        """The weight as it comes back from a form."""
        if form == "int8":
            channels = np.moveaxis(self.values, self.channels, 0)
            quotients, scales = integers(channels.reshape(len(channels), -1))
            rows = quotients.astype(np.float32) * scales[:, None]
            return np.ascontiguousarray(np.moveaxis(rows.reshape(channels.shape), 0, self.channels))
        table = palette(self.values, 2 ** BITS[form])
        return table[nearest(table, self.values)]


def compressible(program: Program, asked: Compression) -> dict[str, str]:
    """The weights of a program that compression is about: name in the model by name of the node.

    They have two axes or more and enough elements, and some operator reads them beside something that depends on an
    input: the frequency embedding's table is read beside constants only, so a converter folds it.
    """
    varying: set[fx.Node] = set()
    read: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" or varying & set(node.all_input_nodes):
            varying.add(node)
            read |= set(node.all_input_nodes) - varying
    return {
        node.name: str(node.target)
        for node in program.graph.nodes
        if node.op == "get_attr" and node in read and _is_large(program.weights[str(node.target)], asked)
    }


def _is_large(weight: torch.Tensor, asked: Compression) -> bool:
    return weight.is_floating_point() and weight.ndim > 1 and weight.numel() >= asked.min_elements


def compressible_weights(bundle: Bundle, segment: SegmentRecord) -> Iterator[Weight]:
    """Those of a built segment, whatever the plan makes exceptions of."""
    program, plan = bundle.program(segment.program), bundle.manifest.plan
    asked = plan.compression.model_copy(update={"exceptions": {}})
    width = 2 if plan.precision is Precision.FP16 else 4
    turned = {
        str(argument.target)
        for node in program.operators
        if "conv_transpose" in str(node.target)
        for argument in node.all_input_nodes
        if argument.op == "get_attr"
    }
    for source in compressible(program, asked).values():
        values = program.weights[source].detach().numpy()
        yield Weight(segment.name, source, source, values, int(source in turned), (width, width), "compression")


def check_names(programs: Iterable[Program], asked: Compression) -> None:
    """Every exception must be about some weight of some program.

    Raises:
        PlanError: One is not.
    """
    known = {path for program in programs for name in compressible(program, asked).values() for path in paths(name)}
    if unknown := sorted(asked.exceptions.keys() - known):
        raise PlanError(
            "an exception of the packages' compression names no weight of two axes or more, nor a module with some",
            received=", ".join(unknown),
            fix=f"Names are those of the model; weights of fewer than {asked.min_elements} elements are left alone.",
        )


def paths(name: str) -> set[str]:
    """A dotted name, and the paths of all modules it is in."""
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts) + 1)}


def compressed_forms(artifact: Artifact) -> dict[str, CompressionForm]:
    """Form of each compressed weight of an artifact, by what its target calls it."""
    return {name: weight["form"] for name, weight in artifact.details.get("compressed", {}).items()}


def summary(forms: Iterable[str]) -> str:
    """Forms of the compressed weights with their counts, e.g. ``"3 int8, 12 pal6"``; without any ``"none"``."""
    counts = Counter(form for form in forms if form != "none")
    return ", ".join(f"{count} {form}" for form, count in sorted(counts.items())) or "none"
