"""Graph → graph: named passes, each checked before and after on real values.

A pass rewrites what it can prove, skips the rest, and says why. A plan names passes in order, with arguments where
others than the defaults are wanted: ``fold-long-axes``, ``fold-long-axes(extent=65536)``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from ..errors import PassError, PlanError
from ..graph.program import Program, largest_difference
from .conv1d_as_conv2d import Conv1dAsConv2d
from .fold_long_axes import FoldLongAxes
from .fourier_as_products import FourierAsProducts
from .keep_broadcasts_small import KeepBroadcastsSmall
from .means_in_stages import MeansInStages
from .narrow_convs_as_products import NarrowConvsAsProducts
from .norms_into_convs import NormsIntoConvs
from .norms_safe_in_half import NormsSafeInHalf
from .rewriting import Pass, Rewriting, Skip
from .rows_out_of_batch import RowsOutOfBatch
from .stds_as_means import StdsAsMeans
from .sums_with_remainders import SumsWithRemainders
from .tokens_as_images import TokensAsImages
from .transposed_convs_as_convs import TransposedConvsAsConvs

__all__ = ["PASSES", "PRESETS", "Pass", "Rewriting", "Skip", "apply", "check_order", "parsed", "preset"]

PASSES: Mapping[str, type[Pass]] = {
    kind.name: kind
    for kind in (
        FourierAsProducts,
        StdsAsMeans,
        KeepBroadcastsSmall,
        NormsSafeInHalf,
        RowsOutOfBatch,
        TokensAsImages,
        FoldLongAxes,
        Conv1dAsConv2d,
        MeansInStages,
        NormsIntoConvs,
        NarrowConvsAsProducts,
        TransposedConvsAsConvs,
        SumsWithRemainders,
    )
}

PRESETS: Mapping[str, tuple[str, ...]] = {
    "ane": (
        "keep-broadcasts-small",
        "norms-safe-in-half",
        "rows-out-of-batch",
        "sums-with-remainders",
        "tokens-as-images",
        "fold-long-axes",
        "conv1d-as-conv2d",
        "means-in-stages",
    ),
}
_CALL = re.compile(r"(?P<name>[a-z0-9-]+)\s*(\((?P<arguments>.*)\))?")


def preset(purpose: str) -> tuple[str, ...]:
    """The passes for a purpose, in order. Raises `PlanError` if there are none."""
    if purpose not in PRESETS:
        raise PlanError(f"unknown preset of passes {purpose!r}", fix=f"There are: {', '.join(PRESETS)}.")
    return PRESETS[purpose]


def parsed(text: str) -> Pass:
    """The pass that a plan asks for, with its arguments.

    Args:
        text: A name, or a name with arguments: ``"fold-long-axes(extent=65536)"``.

    Raises:
        PlanError: There is no such pass, or it takes no such arguments.
    """
    match = _CALL.fullmatch(text.strip())
    if match is None or match["name"] not in PASSES:
        raise PlanError(f"unknown pass {text!r}", fix=f"There are: {', '.join(PASSES)}.")
    kind = PASSES[match["name"]]
    types = {field.name: type(field.default) for field in fields(kind)}
    try:
        call = ast.parse(f"f({match['arguments'] or ''})", mode="eval").body
        assert isinstance(call, ast.Call)
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError) as error:
        raise PlanError(f"the arguments of {text!r} cannot be read", expected=_signature(kind, types)) from error
    if call.args or any(type(value) is not types.get(name) for name, value in arguments.items()):
        raise PlanError(
            f"pass {kind.name!r} does not take these arguments", expected=_signature(kind, types), received=text
        )
    return kind(**arguments)


def check_order(names: Sequence[str]) -> None:
    """Refuse a list of passes of which one lacks what it requires. Raises `PlanError`."""
    before: list[str] = []
    for text in names:
        chosen = parsed(text)
        if missing := [name for name in chosen.requires if name not in before]:
            raise PlanError(
                f"pass {chosen.name!r} stands without or before {', '.join(map(repr, missing))}, which it needs",
                received=", ".join(names),
                fix=f"Put {missing[0]!r} before it.",
            )
        before.append(chosen.name)


def apply(chosen: str | Pass, program: Program, example: Mapping[str, Tensor]) -> Rewriting:
    """Apply a pass and hold the program before and after against each other.

    Args:
        chosen: A pass, or text as for `parsed`.
        program: The program to rewrite.
        example: Inputs to run both on.

    Raises:
        PlanError: There is no such pass.
        PassError: An output moved further than the pass promises.
    """
    chosen = parsed(chosen) if isinstance(chosen, str) else chosen
    rewriting = chosen.apply(program)
    if not rewriting.changes:
        return Rewriting(program, 0, rewriting.skipped)
    before, after = _run(program, example), _run(rewriting.program, example)
    for output, expected in before.items():
        moved = largest_difference(expected, after[output])
        if not moved <= chosen.max_abs:
            raise PassError(
                f"pass {chosen.name!r} changes output {output!r} of {program.name!r} too much",
                expected=f"max |Δ| ≤ {chosen.max_abs:g}",
                received=f"max |Δ| = {moved:g}",
                fix="Leave the pass out of the plan, and report this.",
            )
    return rewriting


def _signature(kind: type[Pass], types: Mapping[str, type]) -> str:
    return f"{kind.name}({', '.join(f'{name}: {type_.__name__}' for name, type_ in types.items())})"


def _run(program: Program, example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs from inputs as they are outside, whatever a pass has folded."""
    given = {
        name: torch.from_numpy(program.folds[name].fold(tensor.numpy())) if name in program.folds else tensor
        for name, tensor in example.items()
    }
    return {
        name: torch.from_numpy(program.folds[name].unfold(tensor.numpy())) if name in program.folds else tensor
        for name, tensor in program.run(given).items()
    }
