"""Weights of a converted package made small by Core ML Tools, and read back from the saved file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from splitter_weights.quantisation import nearest, palette

from ...boundary import Array
from ...errors import LoweringError
from ...graph.program import Program
from ...mil.coreml_tools import ct
from ...mil.stored import StoredWeight
from ...plan.schema import Compression, CompressionForm
from ..weights import BITS, compressible

Forms: TypeAlias = Mapping[str, "Compressed"]
_HALF = "_to_fp16"  # what Core ML Tools appends to the name of a constant that it rounds


@dataclass(frozen=True)
class Compressed:
    """One weight of a package that is asked to be compressed.

    Attributes:
        source: Its name in the model.
        form: What the plan asks for.
        constant: Its name in the package before compression.
    """

    source: str
    form: CompressionForm
    constant: str


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
        name = next((constant for constant in (node, node + _HALF) if constant in names), None)
        if name is None:
            raise LoweringError(
                f"a weight of segment {segment!r} cannot be compressed: its package has no constant of it",
                expected=f"{node!r} for {source!r}",
                fix='Give it the form "none" in the plan, and report this.',
            )
        if form == "int8":
            linear[name] = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
            wanted[f"{name}_quantized"] = Compressed(source, form, name)
        else:
            palettes[name] = optimize.OpPalettizerConfig(
                mode="custom", lut_function=_palettized(BITS[form]), weight_threshold=0
            )
            wanted[f"{name}_palettized"] = Compressed(source, form, name)
    if linear:
        model = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(op_name_configs=linear))
    if palettes:
        model = optimize.palettize_weights(model, optimize.OptimizationConfig(op_name_configs=palettes))
    return model, wanted


def _constants(model: "ct.models.MLModel") -> set[str]:
    functions = model._mil_program.functions.values()
    return {op.name for function in functions for op in function.operations if op.op_type == "const"}


def _palettized(bits: int) -> Callable[[Array], tuple[Array, Array]]:
    def table_and_indices(values: Array) -> tuple[Array, Array]:
        table = palette(values, 2**bits).astype(values.dtype)  # a mean of halves, rounded: still ascending
        return table, nearest(table, values).ravel()

    return table_and_indices


def differences(stored: Mapping[str, StoredWeight], wanted: Forms, asked: Compression) -> list[str]:
    """Everything in which the weights of a saved package are not stored as asked.

    Args:
        stored: What the file holds.
        wanted: What was asked of it when it was made.
        asked: What the plan says.
    """
    findings = []
    for name, weight in wanted.items():
        if (form := asked.form_of(weight.source)) != weight.form:
            findings.append(f"weight {weight.source} was stored as {weight.form}, the plan asks for {form}")
        got = stored[name].form if name in stored else "absent"
        if got != weight.form:
            findings.append(f"weight {name} is {got}, asked {weight.form}")
    held = [weight for weight in stored.values() if weight.kind != "plain"]
    if len(held) != len(wanted):
        findings.append(f"{len(held)} compressed weights, asked {len(wanted)}")
    return findings


def to_details(wanted: Forms) -> dict[str, dict[str, str]]:
    """For the manifest."""
    return {name: asdict(weight) for name, weight in wanted.items()}


def from_details(details: Mapping[str, Mapping[str, Any]]) -> dict[str, Compressed]:
    """Read back from the manifest."""
    return {name: Compressed(**weight) for name, weight in details.items()}
