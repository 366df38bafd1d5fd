"""Weights of a converted program as int8, by Apple's own `coreai-opt`; it chooses by operator, a plan by weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...boundary import Array
from ...errors import LoweringError
from ...graph.program import Program
from ...patching import replaced
from ...plan.schema import Compression
from ..weights import Compressed, compressible, is_same
from .runtime import Summary

MODULES = ("coreai_opt",)


def compressed(
    model: Any, program: Program, asked: Compression, segment: str
) -> tuple[Any, dict[str, Compressed], int]:
    """The model with its weights in the asked forms, what each is, by its name, and how many constants that makes.

    Integers are ``q = round(w / s)`` with a scale per channel, ``s = max |w| / 127``: per output channel, and for
    transposed convolutions per input channel.

    Args:
        model: What Apple's converter has made of a program; it is changed.
        program: This program, with its weights in the element type of the file.
        asked: What the plan says.
        segment: Whose it is, for messages.

    Raises:
        LoweringError: A weight is not among the model's constants.
    """
    wanted = {
        source: Compressed(source, form, source)
        for source in compressible(program, asked).values()
        if (form := asked.form_of(source)) != "none"
    }
    if not wanted:
        return model, {}, 0
    from coreai_opt.coreai_utils import DType, quantize_weights
    from coreai_opt.coreai_utils._coreai_imports import _get_constant_value_as_np_array
    from coreai_opt.coreai_utils.passes import weight_quantization as tool

    weights = {source: program.weights[source].detach().numpy() for source in wanted}
    sides = [(source, side) for source, weight in weights.items() for side in (weight, weight.swapaxes(-1, -2))]
    found: set[str] = set()
    constants = 0

    def is_asked(operation: Any, *rest: object) -> bool:
        if operation.name != "coreai.constant":
            return False
        values = _get_constant_value_as_np_array(operation)
        same = {source for source, side in sides if _is(values, side)}
        nonlocal constants
        found.update(same)
        constants += bool(same)
        return bool(same)

    with replaced(tool, "_should_compress_op", is_asked):
        model = quantize_weights(model, DType.INT8, in_place=True)
    if missing := sorted(wanted.keys() - found):
        raise LoweringError(
            f"weights of segment {segment!r} cannot be compressed: its Core AI program has no constants of them",
            received=", ".join(missing[:5]),
            fix='Give them the form "none" in the plan, and report this.',
        )
    return model, wanted, constants


def _is(values: Array, weight: Array) -> bool:
    """The converter may have repeated a weight for each row of a batch."""
    repeated = values.ndim > weight.ndim and values.shape[-weight.ndim :] == weight.shape
    same = np.array_equal(values, np.broadcast_to(weight, values.shape)) if repeated else is_same(values, weight)
    return values.dtype == weight.dtype and same


def differences(found: Summary, wanted: Mapping[str, Compressed], constants: int, asked: Compression) -> list[str]:
    """Everything in which the weights of a saved file are not stored as asked.

    Args:
        found: What it says of itself.
        wanted: What was asked of it when it was made.
        constants: How many these are in the file: one that two operators read may be two.
        asked: What the plan says.
    """
    findings = [
        f"weight {weight.source} was stored as {weight.form}, the plan asks for {form}"
        for weight in wanted.values()
        if (form := asked.form_of(weight.source)) != weight.form
    ]
    if (held := found.operations.get("blockwise_shift_scale", 0)) != constants:
        findings.append(f"{held} compressed weights, asked {constants}")
    if bool(found.stored.get("Int8", 0)) != bool(constants):
        findings.append(f"{found.stored.get('Int8', 0)} numbers in Int8")
    return findings
