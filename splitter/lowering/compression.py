"""Weights of a converted package made small by Core ML Tools, and read back from the saved file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from splitter_weights.quantisation import nearest, palette
from torch import fx

from ..boundary import Array
from ..errors import LoweringError, PlanError
from ..graph.program import Program
from ..mil.coreml_tools import ct
from ..mil.stored import StoredWeight
from ..plan.schema import Compression, CompressionForm, WeightsForm

Forms: TypeAlias = Mapping[str, "Compressed"]
_BITS: Mapping[CompressionForm, int] = {"pal8": 8, "pal6": 6, "pal4": 4}
_HALF = "_to_fp16"  # what Core ML Tools appends to the name of a constant that it rounds


@dataclass(frozen=True)
class Compressed:
    """One weight of a package that is asked to be compressed.

    Attributes:
        source: Its name in the model.
        form: What the plan asks for.
    """

    source: str
    form: CompressionForm


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


def check_names(programs: Iterable[Program], asked: Compression) -> None:
    """Every exception must be about some weight of some package.

    Raises:
        PlanError: One is not.
    """
    known = {path for program in programs for name in compressible(program, asked).values() for path in _paths(name)}
    if unknown := sorted(asked.exceptions.keys() - known):
        raise PlanError(
            "an exception of the packages' compression names a weight of two axes or more, or a module with some",
            received=", ".join(unknown),
            fix=f"Names are those of the model; weights of fewer than {asked.min_elements} elements are left alone.",
        )


def check_matrices(matrices: Iterable[str], asked: WeightsForm) -> None:
    """The same for the transformer's own file.

    Raises:
        PlanError: An exception fits no matrix.
    """
    if unknown := sorted(asked.exceptions.keys() - {path for name in matrices for path in _paths(name)}):
        raise PlanError(
            "an exception of the transformer's compression names a matrix of it, or what several are below",
            received=", ".join(unknown),
            fix="Names are those of kernels.spec.parameters, e.g. layers.0.linear1.weight.",
        )


def _paths(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts) + 1)}


def compressed(
    model: "ct.models.MLModel", program: Program, asked: Compression, segment: str
) -> tuple["ct.models.MLModel", dict[str, Compressed]]:
    """The model with its weights in the asked forms, and what each of them is, by its name in the package.

    Integers are ``q = round(w / s)`` with a scale per output channel, ``s = max |w| / 127``. A palette is one table per
    weight, by the same k-means as the transformer's: Core ML Tools' own takes another library and other tables for
    each element type, so that precision and compression could not be told apart.

    Raises:
        LoweringError: A weight is not among the constants of the package.
    """
    optimize = ct.optimize.coreml
    names = _constants(model)
    wanted: dict[str, Compressed] = {}
    linear: dict[str, object] = {}
    palettes: dict[str, object] = {}
    for node, source in compressible(program, asked).items():
        form = asked.form_of(source)
        if form == "none":
            continue
        name = next((one for one in (node, node + _HALF) if one in names), None)
        if name is None:
            raise LoweringError(
                f"every weight of segment {segment!r} that is to be compressed is a constant of its package",
                received=f"no {node!r} for {source!r}",
                fix='Give it the form "none" in the plan, and report this.',
            )
        if form == "int8":
            linear[name] = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
            wanted[f"{name}_quantized"] = Compressed(source, form)
        else:
            palettes[name] = optimize.OpPalettizerConfig(
                mode="custom", lut_function=_palettized(_BITS[form]), weight_threshold=0
            )
            wanted[f"{name}_palettized"] = Compressed(source, form)
    if linear:
        model = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(op_name_configs=linear))
    if palettes:
        model = optimize.palettize_weights(model, optimize.OptimizationConfig(op_name_configs=palettes))
    return model, wanted


def _constants(model: "ct.models.MLModel") -> set[str]:
    functions = model._mil_program.functions.values()
    return {one.name for function in functions for one in function.operations if one.op_type == "const"}


def _palettized(bits: int) -> Callable[[Array], tuple[Array, Array]]:
    def table_and_indices(values: Array) -> tuple[Array, Array]:
        table = palette(values, 2**bits).astype(values.dtype)  # a mean of halves, rounded: still ascending
        return table, nearest(table, values).ravel()

    return table_and_indices


def summary(weights: Mapping[str, Compressed] | Mapping[str, StoredWeight]) -> str:
    """Forms of the compressed weights with their counts, e.g. ``"3 int8, 12 pal6"``; without any ``"none"``."""
    counts = Counter(one.form for one in weights.values() if one.form != "none")
    return ", ".join(f"{count} {form}" for form, count in sorted(counts.items())) or "none"


def differences(stored: Mapping[str, StoredWeight], wanted: Forms, asked: Compression) -> list[str]:
    """Everything in which the weights of a saved package are not stored as asked.

    Args:
        stored: What the file holds.
        wanted: What was asked of it when it was made.
        asked: What the plan says.
    """
    findings = []
    for name, one in wanted.items():
        if (form := asked.form_of(one.source)) != one.form:
            findings.append(f"weight {one.source} was stored as {one.form}, the plan asks for {form}")
        got = stored[name].form if name in stored else "absent"
        if got != one.form:
            findings.append(f"weight {name} is {got}, asked {one.form}")
    held = [one for one in stored.values() if one.kind != "plain"]
    if len(held) != len(wanted):
        findings.append(f"{len(held)} compressed weights, asked {len(wanted)}")
    return findings


def to_details(wanted: Forms) -> dict[str, dict[str, str]]:
    """For the manifest."""
    return {name: {"source": one.source, "form": one.form} for name, one in wanted.items()}


def from_details(details: Mapping[str, Mapping[str, CompressionForm]]) -> dict[str, Compressed]:
    """Read back from the manifest."""
    return {name: Compressed(str(one["source"]), one["form"]) for name, one in details.items()}
