"""Hybrids of convolution and attention for images, from timm: MobileViT and CoAtNet, unmodified."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
from torch import nn

from ...errors import CheckpointError, UsageError
from ...plan.schema import Plan
from .. import Ensemble, Example, Family, Model, needed

_SEED = 20_260_101
_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class TimmFamily(Family):
    name: ClassVar[str] = "timm"
    names: ClassVar[tuple[str, ...]] = (
        "mobilevit_xxs", "mobilevit_xs", "mobilevit_s", "mobilevitv2_050", "mobilevitv2_100", "coatnet_nano_rw_224",
        "coatnet_0_rw_224", "coatnet_1_rw_224",
    )  # fmt: skip
    distribution: ClassVar[str] = "timm"

    def fits(self, module: nn.Module) -> bool:
        return type(module).__module__.partition(".")[0] == "timm" and hasattr(module, "default_cfg")

    def load(self, model: str | Path, *, random_init: int | None = None) -> Ensemble:
        """A model by timm's name. Its weights are the safetensors of timm's repository on the hub."""
        timm = _timm()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(random_init or 0)
                module = timm.create_model(str(model), pretrained=random_init is None).eval()
        except Exception as error:  # the hub's client raises its own and every network library's
            first = str(error).splitlines()[0] if str(error) else ""
            raise CheckpointError(
                f"the weights of {model} are not in the hub's cache and cannot be fetched",
                received=f"{type(error).__name__}: {first}",
                fix="Connect to the network, or take --random-init 0.",
            ) from error
        return Ensemble(str(model), (Model(str(model), module, random_init=random_init),), ((),))

    def example(self, module: nn.Module, plan: Plan, recording: Path | None) -> Example:
        """An image of smooth noise, scaled as images are: mean 0, deviation 1."""
        if recording is not None:
            raise UsageError("a model of images has no sound to record goldens of", received=recording)
        channels, height, width = module.default_cfg["input_size"]  # type: ignore[index]
        noise = torch.randn(1, channels, height // 8, width // 8, generator=torch.Generator().manual_seed(_SEED))
        image = nn.functional.interpolate(noise, (height, width), mode="bicubic", align_corners=False)
        return Example({"x": (image - image.mean()) / image.std()}, f"smooth noise, seed {_SEED}")


def _timm() -> ModuleType:
    if "timm" not in sys.modules and find_spec("torchvision") is not None:
        _import_torchvision()
    return needed("timm", "timm")


def _import_torchvision() -> None:
    """Import what timm imports of torchvision, none of which are torchvision's compiled operators.

    PyPI's torchvision is built for CUDA. Beside a PyTorch for CPUs its library does not load, which its Python code
    survives up to the two operators that it describes without asking whether they are there.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", _NMS)
        importlib.import_module("torchvision")
