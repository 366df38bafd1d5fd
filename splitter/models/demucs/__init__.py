"""HT Demucs, Hybrid Demucs and Demucs: released models by name, checkpoints and bags in demucs's format, the demo."""

from __future__ import annotations

import bisect
import tomllib
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import ClassVar

from splitter_weights import checkpoints
from torch import nn

from ...errors import UsageError
from ...graph.capture import Patch
from ...graph.patches import WithoutAssertions
from ...plan import schema as plans
from ...plan.schema import Plan
from .. import Ensemble, Model
from ..separator import SeparatorFamily

_PLANS = ("htdemucs.toml", "hdemucs.toml", "demucs.toml")


class DemucsFamily(SeparatorFamily):
    name: ClassVar[str] = "demucs"
    names: ClassVar[tuple[str, ...]] = checkpoints.NAMES
    suffixes: ClassVar[tuple[str, ...]] = checkpoints.SUFFIXES
    distribution: ClassVar[str] = "demucs"

    def fits(self, module: nn.Module) -> bool:
        return type(module).__module__.partition(".")[0] == "demucs"

    def load(self, model: str | Path, *, random_init: int | None = None) -> Ensemble:
        bag = checkpoints.load(model, random_init=random_init)
        members = tuple(
            Model(member.name, member.model, member.arguments, member.sha256, member.random_init)
            for member in bag.members
        )
        return Ensemble(bag.name, members, bag.weights)

    def plans(self) -> Sequence[Plan]:
        home = resources.files(__package__)
        return [Plan.model_validate(tomllib.loads(home.joinpath(name).read_text(encoding="utf-8"))) for name in _PLANS]

    def prepared(self, module: nn.Module, plan: Plan, seconds: float | None) -> Plan:
        """A preset names the modules of every configuration; the plan those that this one has."""
        optional = {path for preset in self.plans() for stage in preset.stages for path in stage.modules}
        absent = {path for path in optional if getattr(module, path, None) is None}
        stages = [
            stage.model_dump() | {"modules": tuple(path for path in stage.modules if path not in absent)}
            for stage in plan.stages
        ]
        plan = super().prepared(module, plans.changed(plan, stages=stages), seconds)
        if type(module).__name__ != "Demucs":
            return plan
        assert plan.segment_samples is not None
        valid = _unpadded(module, plan.segment_samples)
        return super().prepared(module, plan, valid / int(module.samplerate))  # type: ignore[arg-type]

    def patches(self) -> Sequence[Patch]:
        # `assert (out[...] == x0).all()` in reflect padding: a branch on data, which no capture can take.
        return (WithoutAssertions("demucs.hdemucs", "pad1d"),)


def _unpadded(module: nn.Module, most: int) -> int:
    """The longest run of at most so many samples that the model takes as it is.

    It pads others with zeros, where demucs's own inference gives it the sound around a chunk.

    Raises:
        UsageError: Each run is longer.
    """
    valid: Callable[[int], int] = module.valid_length  # type: ignore[assignment]
    place = bisect.bisect_right(range(1, most + 1), most, key=valid)
    if place == 0:
        raise UsageError(
            "the model does not run at this length",
            expected=f"at least {valid(1)} samples",
            received=f"{most} samples",
        )
    return valid(place)
