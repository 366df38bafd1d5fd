"""A model family without sound: a small classifier of images, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from splitter.models import Ensemble, Example, Family, Model
from splitter.plan.schema import Plan

PLAN = Plan(
    family="toy_classifier",
    models=("splitter_toy.family.Classifier",),
    outputs=("scores",),
    stages=(
        {"name": "features", "target": "toy", "modules": ("features",)},
        {"name": "head", "target": "graph", "modules": ("head",)},
    ),
    tensors=({"name": "pooled", "producer": "features"},),
)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))


class ToyFamily(Family):
    name: ClassVar[str] = "toy"
    names: ClassVar[tuple[str, ...]] = ("toy-classifier",)
    distribution: ClassVar[str] = "splitter-toy-plugin"

    def fits(self, module: nn.Module) -> bool:
        return isinstance(module, Classifier)

    def load(self, model: str | Path, *, random_init: int | None = None) -> Ensemble:
        torch.manual_seed(random_init or 0)
        member = Model(str(model), Classifier().eval(), random_init=random_init or 0)
        return Ensemble(member.name, (member,), ((),))

    def plans(self) -> Sequence[Plan]:
        return (PLAN,)

    def example(self, module: nn.Module, plan: Plan, recording: Path | None) -> Example:
        return Example(
            {"image": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))}, "noise, seed 0"
        )
