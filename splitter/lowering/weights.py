"""Weights that a target may store smaller: which they are, and what each form takes and loses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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

BITS: Mapping[WeightForm, int] = {
    "int8": 8, "pal8": 8, "pal6": 6, "pal4": 4, "int8-blocks": 8, "int4-blocks": 4, "pal6-groups": 6, "pal4-groups": 4,
    "pal4-sparse": 4,
}  # fmt: skip
# Most inputs that share a scale, and most outputs that share a palette, where it is not all.
_INPUTS: Mapping[WeightForm, int] = {"int8-blocks": 32, "int4-blocks": 32}
_OUTPUTS: Mapping[WeightForm, int] = {"pal6-groups": 16, "pal4-groups": 16}
ZEROS: Mapping[WeightForm, float] = {"pal4-sparse": 0.5}  # share of the elements


def is_linear(form: WeightForm) -> bool:
    """Integers with scales, not a palette."""
    return form.startswith("int")


def blocks(form: WeightForm, shape: Sequence[int], outputs: int) -> tuple[int, ...]:
    """Extents, along each axis of a weight, of what shares a scale or a palette; the parts are of one size.

    Args:
        form: In which it is stored.
        shape: Its extents: outputs and inputs on the first two axes, in either order.
        outputs: The axis of the outputs.
    """
    extents = list(shape)
    if is_linear(form):
        extents[outputs] = 1
        extents[1 - outputs] = _divisor(shape[1 - outputs], _INPUTS.get(form))
    else:
        extents[outputs] = _divisor(shape[outputs], _OUTPUTS.get(form))
    return tuple(extents)


def _divisor(extent: int, most: int | None) -> int:
    """The greatest that is not above the most."""
    return next(part for part in range(min(extent, most or extent), 0, -1) if extent % part == 0)


class DecodedWeight(NamedTuple):
    """A compressed weight of an artifact, beside the same one before compression."""

    source: str
    form: CompressionForm
    original: Array
    stored: Array


@dataclass(frozen=True)
class Compressed:
    """One weight of an artifact that is asked to be compressed.

    Attributes:
        source: Its name in the model.
        form: What the plan asks for.
        constant: Its name in the artifact before compression.
    """

    source: str
    form: CompressionForm
    constant: str


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
        bits, size = BITS[form], self.values.size
        parts = size // math.prod(blocks(form, self.values.shape, self.channels))
        if form in ZEROS:
            kept = round(size * (1 - ZEROS[form]))
            return math.ceil(size / 8) + math.ceil(kept * bits / 8) + 2**bits * beside
        return math.ceil(size * bits / 8) + parts * (1 if is_linear(form) else 2**bits) * beside

    def decoded(self, form: CompressionForm) -> Array:
        """The weight as it comes back from a form."""
        shape = self.values.shape
        extents = blocks(form, shape, self.channels)
        split = [part for extent, block in zip(shape, extents, strict=True) for part in (extent // block, block)]
        order = [*range(0, 2 * len(shape), 2), *range(1, 2 * len(shape), 2)]
        parts = self.values.reshape(split).transpose(order)
        rows = parts.reshape(-1, math.prod(extents))
        if is_linear(form):
            quotients, scales = integers(rows, BITS[form])
            rows = quotients.astype(np.float32) * scales[:, None]
        else:
            rows = np.stack([_from_palette(row, form) for row in rows])
        return np.ascontiguousarray(rows.reshape(parts.shape).transpose(np.argsort(order)).reshape(shape))


def table_of(values: Array, form: WeightForm) -> Array:
    """The palette of a weight, or of a part of it; zeros that are left out are none of its concern."""
    kept = values[values != 0] if form in ZEROS and bool(values.any()) else values
    return palette(kept, 2 ** BITS[form])


def _from_palette(values: Array, form: WeightForm) -> Array:
    if form in ZEROS:  # as Core ML Tools chooses them
        values = np.where(np.abs(values) <= np.percentile(np.abs(values), 100 * ZEROS[form]), 0, values)
    table = table_of(values, form)
    found: Array = table[nearest(table, values)]
    return np.where(values == 0, 0, found) if form in ZEROS else found


def is_same(array: Array, values: Array) -> bool:
    """Whether an array of a file is a weight; its kernel may have got a height of 1."""
    alike = array.shape[:2] == values.shape[:2] and array.size == values.size
    return alike and np.array_equal(array.reshape(values.shape), values)


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
        node.name: str(weight.target)
        for node in program.graph.nodes
        if node in read and (weight := _viewed(node)) and _is_large(program.weights[str(weight.target)], asked)
    }


def _viewed(node: fx.Node) -> fx.Node | None:
    """The weight that a node is, or has under another shape: a kernel with a height of 1."""
    while node.target in (torch.ops.aten.view.default, torch.ops.aten.reshape.default):
        node = node.all_input_nodes[0]
    return node if node.op == "get_attr" else None


def _is_large(weight: torch.Tensor, asked: Compression) -> bool:
    return weight.is_floating_point() and weight.ndim > 1 and weight.numel() >= asked.min_elements


def compressible_weights(bundle: Bundle, segment: SegmentRecord) -> Iterator[Weight]:
    """Those of a built segment, whatever the plan makes exceptions of."""
    program, plan = bundle.program(segment.program), bundle.manifest.plan
    asked = plan.compression.model_copy(update={"exceptions": {}})
    width = 2 if plan.precision is Precision.FP16 else 4
    for source in compressible(program, asked).values():
        values, axis = program.weights[source].detach().numpy(), channels(program, source)
        yield Weight(segment.name, source, source, values, axis, (width, width), "compression")


def channels(program: Program, source: str) -> int:
    """Axis of the outputs of a weight: the second for transposed convolutions."""
    return int(
        any(
            "conv_transpose" in str(node.target)
            and any(argument.op == "get_attr" and argument.target == source for argument in node.all_input_nodes)
            for node in program.operators
        )
    )


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


def to_details(wanted: Mapping[str, Compressed]) -> dict[str, dict[str, str]]:
    """For the manifest."""
    return {name: asdict(weight) for name, weight in wanted.items()}


def from_details(details: Mapping[str, Mapping[str, Any]]) -> dict[str, Compressed]:
    """Read back from the manifest."""
    return {name: Compressed(**weight) for name, weight in details.items()}
