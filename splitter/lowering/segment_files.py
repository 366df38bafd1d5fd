"""What targets have in common that write a file of their own for each segment and read it back."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ..boundary import TensorSpec
from ..bundle.manifest import SegmentRecord
from ..errors import LoweringError
from ..partition import Segment
from ..plan.schema import Plan

Specs = tuple[TensorSpec, ...]


def description(segment: Segment, plan: Plan) -> str:
    """What a file says that it is."""
    return f"Stage {segment.stage.name!r} of a {plan.family} model, cut from its captured graph."


def metadata(segment: str, plan: Plan) -> dict[str, str]:
    """Entries of a file by which it is told from others."""
    return {"splitter.segment": segment, "splitter.family": plan.family, "splitter.precision": plan.precision.value}


def boundary(segment: SegmentRecord, tensors: Mapping[str, TensorSpec]) -> tuple[Specs, Specs]:
    """Specs of a built segment's inputs and outputs."""
    return tuple(tensors[name] for name in segment.inputs), tuple(tensors[name] for name in segment.outputs)


def check_precision(segment: Segment, plan: Plan) -> None:
    """Refuse a plan that keeps single operations in fp32.

    Raises:
        LoweringError: It does, in this segment.
    """
    if segment.name in plan.fp32_operations:
        raise LoweringError(
            f"target {segment.stage.target!r} cannot keep some operations of segment {segment.name!r} in fp32",
            fix="Leave the segment out of the plan's `fp32_operations`.",
        )


def check_elements(segment: Segment, known: Collection[str]) -> None:
    """Refuse a segment with inputs or outputs of element types that no file takes or gives.

    Args:
        segment: Its specs say which it has inside a file.
        known: The types that there are, by NumPy's names.

    Raises:
        LoweringError: It has others.
    """
    for spec in (*segment.inputs, *segment.outputs):
        if spec.element not in known:
            raise LoweringError(
                f"{spec.name!r} has elements that no file of the target {segment.stage.target!r} takes or gives",
                expected=", ".join(known),
                received=spec.element,
                fix="Cut the model elsewhere, or give the stage another target in the plan.",
            )


def differences(kind: str, found: Sequence[Any], asked: Sequence[Any]) -> list[str]:
    """Where the inputs or outputs of a file are not those that were asked for, each with its name and type."""
    findings = [f"{kind} {f}, asked {a}" for f, a in zip(found, asked, strict=False) if f != a]
    if len(found) != len(asked):
        findings.append(f"{len(found)} {kind}s, asked {len(asked)}")
    return findings


def metadata_differences(found: Mapping[str, str], segment: str, plan: Plan) -> list[str]:
    """Where a file's entries are not those of `metadata`."""
    asked = metadata(segment, plan)
    return [] if found == asked else [f"metadata {dict(found)}, asked {asked}"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what a converter prints, warns and logs of itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
