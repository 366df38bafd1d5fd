"""HT Demucs and Hybrid Demucs: the released models by name, checkpoints and bags in demucs's format, the demo."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import ClassVar

from splitter_weights import checkpoints
from torch import nn

from ...graph.capture import Patch
from ...graph.patches import WithoutAssertions
from ...plan import schema as plans
from ...plan.schema import Plan
from .. import Ensemble, Model
from ..separator import SeparatorFamily

_PLANS = ("htdemucs.toml", "hdemucs.toml")


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
        return super().prepared(module, plans.changed(plan, stages=stages), seconds)

    def patches(self) -> Sequence[Patch]:
        # `assert (out[...] == x0).all()` in reflect padding: a branch on data, which no capture can take.
        return (WithoutAssertions("demucs.hdemucs", "pad1d"),)
