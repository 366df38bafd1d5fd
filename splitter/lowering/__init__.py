"""Segment → artifact, one module or folder per target.

A target is found by name among the entry points of the group ``splitter.targets``, so that another
package can add one without a change here. What the rest of splitter does for a target follows from its `Capabilities`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from .. import plugins
from ..boundary import Array, TensorSpec
from ..errors import PlanError

if TYPE_CHECKING:  # a plan asks what its targets can do
    from ..bundle.directory import Bundle
    from ..bundle.files import Files
    from ..bundle.manifest import Artifact, SegmentRecord
    from ..partition import Segment
    from ..plan.schema import CompressionForm, Plan, Tolerances
    from ..verification.checks import Check
    from .weights import DecodedWeight, Weight

GROUP = "splitter.targets"
ML_PACKAGE = "mlpackage"  # the kind of artifact that `splitter.mil` reads


@dataclass(frozen=True)
class Capabilities:
    """What a target can do, and what it asks of the rest.

    Attributes:
        artifact: What its artifacts are in one word, e.g. ``"mlpackage"``: engines name the words they run. Empty for
            a target that writes none.
        engines: Those that run its artifacts on any machine, the preferred one first.
        device_engine: The one on the device that the artifacts are made for: it also runs them in `separate`, where it
            can. Empty if there is none.
        passes: Its segments go through the plan's graph passes, and long tensors may be folded at its boundaries.
        needed_passes: Those that its files are inexact without in any precision; applied behind the plan's, where the
            plan does not name its passes.
        divisible: A stage of it can be cut into several segments.
        reference: It is lowered once more in fp32 without compression, and once more without compression alone, so that
            `verify` tells conversion, precision and compression apart.
        on_host: It is what a host program computes around the other segments; lower precision is never chosen for it.
        precisions: Arithmetic that it offers: the plan's ``precision``. Empty where it computes in fp32 only.
        boundary_dtypes: What it takes and gives: the plan's ``boundary_dtype``. Empty where that is what the graph has.
        integers: The element type in which it takes and gives every integer and truth, e.g. ``"int32"``. Empty where
            that is what the graph has.
        proposed_for: Stages that `plan --new` gives it where it can lower them: ``network`` for layers with weights,
            ``host`` for what has complex numbers, ``rest`` for what nothing else takes.
        deployment_targets: Systems it can be made for. Empty where it runs on every system.
        functions_since: Oldest of these systems on which one artifact holds a function for each variant of the inputs.
            Empty where every variant has an artifact of its own.
        weights: The section of the plan that says how it stores weights; None if it stores none.
        compressions: Forms of weights that it knows.
    """

    artifact: str = ""
    engines: tuple[str, ...] = ()
    device_engine: str = ""
    passes: bool = False
    needed_passes: tuple[str, ...] = ()
    divisible: bool = False
    reference: bool = False
    on_host: bool = False
    precisions: frozenset[str] = frozenset()
    boundary_dtypes: frozenset[str] = frozenset()
    integers: str = ""
    proposed_for: frozenset[Literal["network", "host", "rest"]] = frozenset()
    deployment_targets: frozenset[str] = frozenset()
    functions_since: str = ""
    weights: Literal["compression", "weights"] | None = None
    compressions: frozenset[str] = frozenset()


class Target(ABC):
    """One way to lower a segment.

    Attributes:
        capabilities: What it can do.
        question: What its check asks, as a sentence of the report.
    """

    capabilities: ClassVar[Capabilities] = Capabilities()
    question: ClassVar[str] = "what ships does what the captured segment does"

    @abstractmethod
    def lower(self, segment: Segment, plan: Plan, example: Mapping[str, Array], directory: Path) -> Artifact:
        """Write the artifact into a directory.

        Args:
            segment: What to lower; its specs carry the dtypes at the boundaries.
            plan: Precision, deployment target, tolerances.
            example: The segment's golden inputs and outputs, in the graph's own dtypes; empty for a reference.
            directory: Where to write.

        Raises:
            LoweringError: The target cannot express the segment, or the saved artifact is not what was asked.
        """

    def merge(self, artifacts: Mapping[str, Path]) -> None:
        """Put artifacts of one segment into the first one, each a function of its own; weights that they share once.

        Only for targets with `Capabilities.functions_since`. The others are left for the caller to remove.

        Args:
            artifacts: Of each variant, by the name of the function; the first one is the default.

        Raises:
            LoweringError: They cannot be merged.
        """
        raise NotImplementedError

    @abstractmethod
    def audit(self, segment: SegmentRecord, tensors: Mapping[str, TensorSpec], plan: Plan, files: Files) -> list[str]:
        """Read the saved artifact back and return every difference from what was asked: none is a pass."""

    def limit_db(self, tolerances: Tolerances) -> float:
        """SNR that the artifact must have against the captured segment."""
        return tolerances.conversion_snr_db

    def device_limit_db(self, tolerances: Tolerances, compute_units: str) -> float:
        """SNR that the artifact must have on its device against the untouched model."""
        return self.limit_db(tolerances)

    def checks(
        self, bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array], captured: Mapping[str, Array]
    ) -> Iterable[Check] | None:
        """Checks in the place of the general one, which holds each of its engines against the captured segment.

        Args:
            bundle: With the graph's own precision at its boundaries.
            segment: One of this target.
            golden: The recorded run.
            captured: What the captured segment gives, from its golden input.

        Returns:
            None where the general check is right.
        """
        return None

    def weights(self, bundle: Bundle, segment: SegmentRecord) -> Iterable[Weight]:
        """The weights of a built segment that some form may change."""
        from .weights import compressible_weights

        return compressible_weights(bundle, segment) if self.capabilities.weights == "compression" else ()

    def decoded_weights(self, bundle: Bundle, segment: SegmentRecord) -> Iterable[DecodedWeight]:
        """Each compressed weight as the artifact holds it, beside the same one before compression."""
        return ()

    def stored_bytes(self, bundle: Bundle, segment: SegmentRecord) -> int:
        """What the saved weights take; by default, what all files of the artifact do."""
        path = segment.artifact.path
        return sum(bundle.manifest.files[name].bytes for name in bundle.files.below(path) or [path])


@cache
def target(name: str) -> Target:
    """The target of a name. Raises `PlanError` if there is none, or more than one."""
    made: Target = plugins.load(GROUP, "target", name, PlanError)()
    return made


def capabilities(name: str) -> Capabilities:
    """What the target of a name can do. Raises `PlanError` as `target`."""
    return target(name).capabilities


def with_artifact(artifact: str) -> list[str]:
    """Names of the targets that write a kind of artifact."""
    return [name for name in plugins.names(GROUP) if capabilities(name).artifact == artifact]


def proposed_for(kind: str) -> list[str]:
    """Names of the targets that a new plan tries for a kind of stage."""
    return [name for name in plugins.names(GROUP) if kind in capabilities(name).proposed_for]


def at_boundary(spec: TensorSpec, targets: Iterable[str], plan: Plan) -> TensorSpec:
    """A tensor as segments of these targets, which compute or read it, take and give it under a plan."""
    able = [capabilities(name) for name in targets]
    if spec.dtype == "float32" and any(offer.boundary_dtypes for offer in able):
        return spec.with_dtype(plan.boundary_dtype.dtype)
    integers = {offer.integers for offer in able if offer.integers} - {spec.dtype}
    is_whole = np.dtype(spec.dtype).kind in "iub"
    return spec.with_packaged_dtype(min(integers)) if is_whole and integers else spec


def check(plan: Plan) -> None:
    """Hold a plan against what its targets can do.

    Raises:
        PlanError: A target is unknown, does not offer the precision, element type, system or compression asked for, or
            takes a stage only whole; or no target stores weights as the plan says.
    """
    forms: dict[str, set[CompressionForm | Literal["none"]]] = {
        "compression": {plan.compression.form, *plan.compression.exceptions.values()},
        "weights": {plan.weights.compress, *plan.weights.exceptions.values()},
    }
    for stage in plan.stages:
        target_capabilities = capabilities(stage.target)
        if stage.segments > 1 and not target_capabilities.divisible:
            raise PlanError(
                f"stage {stage.name!r} cannot be cut: the target {stage.target!r} takes it whole",
                received=f"{stage.segments} segments",
            )
        since = target_capabilities.functions_since
        if plan.variants and since and plan.deployment_target < since:
            raise PlanError(
                f"stage {stage.name!r} is to have {1 + len(plan.variants)} functions in a package, which needs {since}",
                received=plan.deployment_target,
                fix=f"Set deployment_target to {since}, or build a bundle for each shape.",
            )
        asked: list[tuple[str, frozenset[str], str]] = [
            ("precision", target_capabilities.precisions, plan.precision),
            ("boundary_dtype", target_capabilities.boundary_dtypes, plan.boundary_dtype),
            ("deployment_target", target_capabilities.deployment_targets, plan.deployment_target),
        ]
        if target_capabilities.weights or target_capabilities.passes:
            section = target_capabilities.weights or "compression"
            asked += [
                ("compression", target_capabilities.compressions, form) for form in sorted(forms[section] - {"none"})
            ]
        for setting, offered, value in asked:
            if value not in offered and (offered or setting == "compression"):
                raise PlanError(
                    f"target {stage.target!r} of stage {stage.name!r} does not offer the {setting} {value}",
                    fix=f"It offers: {', '.join(sorted(offered)) or 'none'}.",
                )
    for section, is_default in (
        ("weights", plan.weights == type(plan.weights)()),
        ("compression", plan.compression.is_lossless),
    ):
        if not is_default and all(capabilities(stage.target).weights != section for stage in plan.stages):
            raise PlanError(
                f"the plan has a form of weights in `{section}`, and no stage's target reads it",
                fix=f"Leave `{section}` out.",
            )
