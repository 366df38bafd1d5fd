"""Weights of a converted package made small by Core ML Tools, and read back from the saved file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from splitter_weights.quantisation import nearest
from torch import fx

from ...boundary import Array
from ...errors import LoweringError
from ...graph.program import Program
from ...mil.coreml_tools import ct
from ...mil.stored import StoredWeight
from ...plan.schema import Compression, CompressionForm
from ..weights import BITS, ZEROS, Compressed, blocks, compressible, is_linear, table_of

Forms: TypeAlias = Mapping[str, Compressed]
_HALF = "_to_fp16"  # what Core ML Tools appends to the name of a constant that it rounds


def compressed(
    model: "ct.models.MLModel", program: Program, asked: Compression, segment: str
) -> tuple["ct.models.MLModel", dict[str, Compressed]]:
    """The model with its weights in the asked forms, and what each of them is, by its name in the package.

    Integers are ``q = round(w / s)`` with a scale per output channel, ``s = max |w| / 127``, or per block of inputs. A
    palette is one table per weight, or per group of outputs, by the same k-means as the transformer's: Core ML Tools'
    own takes another library and other tables for each element type, so that precision and compression could not be
    told apart. Blocks and groups are the largest that divide: what they don't divide, Core ML Tools leaves as it was.

    Raises:
        LoweringError: A weight is not among the constants of the package.
    """
    optimize = ct.optimize.coreml
    names = _constants(model)
    wanted: dict[str, Compressed] = {}
    linear: dict[str, object] = {}
    palettes: dict[str, object] = {}
    sparse: dict[str, object] = {}
    sparse_palettes: dict[str, object] = {}
    nodes = {node.name: node for node in program.graph.nodes}
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
        outputs = _axis_of_outputs(nodes[node])
        shape = nodes[node].meta["type"].shape
        extents = blocks(form, shape, outputs)
        scale: dict[str, object] = {"mode": "linear_symmetric", "weight_threshold": 0}
        table: dict[str, object] = {"mode": "custom", "lut_function": _palettized(form), "weight_threshold": 0}
        if form in ZEROS:
            sparse[name] = optimize.OpMagnitudePrunerConfig(target_sparsity=ZEROS[form], weight_threshold=0)
            sparse_palettes[f"{name}_sparsified_nonzero_data_0"] = optimize.OpPalettizerConfig(**table)
            suffix = "sparsified"
        elif is_linear(form):
            if form != "int8":
                sizes = tuple(0 if part == extent else part for part, extent in zip(extents, shape, strict=True))
                scale |= {"dtype": f"int{BITS[form]}", "granularity": "per_block", "block_size": sizes}
            linear[name] = optimize.OpLinearQuantizerConfig(**scale)
            suffix = "quantized"
        else:
            if extents[outputs] != shape[outputs]:
                table |= {"granularity": "per_grouped_channel", "group_size": extents[outputs], "channel_axis": outputs}
            palettes[name] = optimize.OpPalettizerConfig(**table)
            suffix = "palettized"
        wanted[f"{name}_{suffix}"] = Compressed(source, form, name)
    if linear:
        model = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(op_name_configs=linear))
    if palettes:
        model = optimize.palettize_weights(model, optimize.OptimizationConfig(op_name_configs=palettes))
    if sparse:
        model = optimize.prune_weights(model, optimize.OptimizationConfig(op_name_configs=sparse))
        config = optimize.OptimizationConfig(op_name_configs=sparse_palettes)
        model = optimize.palettize_weights(model, config, joint_compression=True)
    return model, wanted


def _axis_of_outputs(weight: fx.Node) -> int:
    return int(any("conv_transpose" in str(reader.target) for reader in weight.users))


def _constants(model: "ct.models.MLModel") -> set[str]:
    functions = model._mil_program.functions.values()
    return {op.name for function in functions for op in function.operations if op.op_type == "const"}


def _palettized(form: CompressionForm) -> Callable[[Array], tuple[Array, Array]]:
    def table_and_indices(values: Array) -> tuple[Array, Array]:
        table = table_of(values, form).astype(values.dtype)  # a mean of halves, rounded: still ascending
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
        got = stored.get(name)
        if got is None or not _is(got, weight.form):
            findings.append(f"weight {name} is {got.form if got else 'absent'}, asked {weight.form}")
    held = [weight for weight in stored.values() if weight.kind != "plain"]
    if len(held) != len(wanted):
        findings.append(f"{len(held)} compressed weights, asked {len(wanted)}")
    return findings


def obtained(stored: Mapping[str, StoredWeight], wanted: Forms) -> list[str]:
    """The form of each weight of a package, by the plan's word where it is what was asked."""
    return [
        wanted[name].form if name in wanted and _is(weight, wanted[name].form) else weight.form
        for name, weight in stored.items()
    ]


def _is(weight: StoredWeight, form: CompressionForm) -> bool:
    """Whether a weight is stored in a form; blocks or groups that take all of it are none to the file."""
    if "-" not in form or form in ZEROS or is_linear(form) != (weight.kind == "linear"):
        return weight.form == form
    extents = (blocks(form, weight.shape, outputs) for outputs in (0, 1))
    groups = [tuple(all_ // part for all_, part in zip(weight.shape, parts, strict=True)) for parts in extents]
    return weight.bits == BITS[form] and weight.symmetric and weight.kind != "plain" and weight.groups in groups
