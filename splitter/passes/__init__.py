"""Graph → graph: named passes, each checked before and after on real values.

A pass is a frozen dataclass with a name, the error it may introduce, and `apply`. It rewrites what it can
prove and skips the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..errors import PassError, PlanError
from ..graph.program import Program
from .conv1d_as_conv2d import Conv1dAsConv2d
from .fold_long_axes import FoldLongAxes
from .keep_broadcasts_small import KeepBroadcastsSmall
from .means_in_stages import MeansInStages
from .narrow_convs_as_products import NarrowConvsAsProducts
from .norms_into_convs import NormsIntoConvs
from .norms_safe_in_half import NormsSafeInHalf
from .rows_out_of_batch import RowsOutOfBatch
from .transposed_convs_as_convs import TransposedConvsAsConvs


class Pass(Protocol):
    """One rewriting of a program.

    Attributes:
        name: As a plan lists it.
        max_abs: Largest absolute change of any output value the pass may cause; 0.0 means bit for bit.
    """

    name: ClassVar[str]
    max_abs: ClassVar[float]

    def apply(self, program: Program) -> tuple[Program, int]:
        """Return the rewritten program and how many places changed. The argument stays as it is."""
        ...


PASSES: Mapping[str, Pass] = {
    one.name: one
    for one in (
        KeepBroadcastsSmall(),
        NormsSafeInHalf(),
        RowsOutOfBatch(),
        FoldLongAxes(),
        Conv1dAsConv2d(),
        MeansInStages(),
        NormsIntoConvs(),
        NarrowConvsAsProducts(),
        TransposedConvsAsConvs(),
    )
}

PRESETS: Mapping[str, tuple[str, ...]] = {
    "ane": (
        "keep-broadcasts-small",
        "norms-safe-in-half",
        "rows-out-of-batch",
        "fold-long-axes",
        "conv1d-as-conv2d",
        "means-in-stages",
    ),
}


def preset(purpose: str) -> tuple[str, ...]:
    """The passes for a purpose, in order. Raises `PlanError` if there are none."""
    if purpose not in PRESETS:
        raise PlanError("there is a preset of passes", received=purpose, fix=f"There are: {', '.join(PRESETS)}.")
    return PRESETS[purpose]


def known(name: str) -> Pass:
    """The pass of a name. Raises `PlanError` if there is none."""
    if name not in PASSES:
        raise PlanError("a plan lists passes that exist", received=name, fix=f"There are: {', '.join(PASSES)}.")
    return PASSES[name]


def apply(name: str, program: Program, example: Mapping[str, Tensor]) -> tuple[Program, int]:
    """Apply a pass by name and hold the program before and after against each other.

    Args:
        name: A key of `PASSES`.
        program: The program to rewrite.
        example: Inputs to run both on.

    Raises:
        PlanError: There is no such pass.
        PassError: An output moved further than the pass promises.
    """
    chosen = known(name)
    rewritten, changes = chosen.apply(program)
    if not changes:
        return program, 0
    before, after = _run(program, example), _run(rewritten, example)
    for output, expected in before.items():
        moved = float((after[output].to(torch.float64) - expected.to(torch.float64)).abs().max())
        if not moved <= chosen.max_abs:
            raise PassError(
                f"pass {name!r} moves no value of {program.name!r} by more than {chosen.max_abs:g}",
                received=f"max |Δ| = {moved:g} at {output!r}",
                fix="Leave the pass out of the plan, and report this.",
            )
    return rewritten, changes


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
