"""BS-RoFormer and Mel-Band RoFormer: a trainers' configuration, with its checkpoint or with seeded weights.

The unmodified model is the class of the package ``msst``, the trainers' own (Music-Source-Separation-Training), since
released checkpoints are of it: the class of the package ``BS-RoFormer`` goes back to the same source, and has other
parameters since its version 0.5 (value residuals, hyper-connections).
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from splitter_weights import state_dicts
from torch import fx, nn

from ... import names
from ...bundle.manifest import AudioRecord
from ...errors import CheckpointError, UsageError
from ...plan import schema as plans
from ...plan.schema import Plan
from ...verification.mistakes import Mistake
from .. import Ensemble, Model
from ..separator import SeparatorFamily
from . import configuration, mistakes
from .configuration import Configuration

_CHECKPOINTS = (".ckpt", ".safetensors", ".th", ".pth", ".pt", ".chpt")
_configurations: WeakKeyDictionary[nn.Module, Configuration] = WeakKeyDictionary()


class RoformerFamily(SeparatorFamily):
    name: ClassVar[str] = "roformer"
    suffixes: ClassVar[tuple[str, ...]] = (".ckpt",)
    distribution: ClassVar[str] = "msst"

    def fits(self, module: nn.Module) -> bool:
        return module in _configurations

    def knows(self, path: Path) -> bool:
        return configuration.holds(path)

    def load(self, model: str | Path, *, random_init: int | None = None) -> Ensemble:
        """A configuration's ``.yaml`` with the checkpoint of the same name beside it, or a ``.ckpt`` likewise."""
        path = Path(model)
        said = path if path.suffix in configuration.SUFFIXES else _beside(path, configuration.SUFFIXES)
        found = configuration.load(said)
        if random_init is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(random_init)
                module, sha256 = _built(found, said.name), None
        else:
            weights = _beside(path, _CHECKPOINTS) if said is path else path
            module = _built(found, said.name)
            sha256 = state_dicts.fill(module, weights)
        name = names.readable(path.stem)
        arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in found.model.items()}
        _configurations[module] = found
        member = Model(name, module.eval(), arguments, sha256, random_init)
        return Ensemble(name, (member,), ((1.0,) * len(found.stems),))

    def plans(self) -> Sequence[Plan]:
        text = resources.files(__package__).joinpath("roformer.toml").read_text(encoding="utf-8")
        return (Plan.model_validate(tomllib.loads(text)),)

    def prepared(self, module: nn.Module, plan: Plan, seconds: float | None) -> Plan:
        """Any length will do that is whole frames: a RoFormer's positions are relative."""
        found = _configurations[module]
        hop = found.hop
        asked = round(seconds * found.audio.sample_rate) if seconds is not None else plan.segment_samples
        samples = found.samples if asked is None else asked - asked % hop
        if samples < found.window or samples % hop:
            raise UsageError(
                "the model does not run at this length",
                expected=f"a multiple of {hop} samples, and at least a window",
                received=f"{samples} samples",
            )
        return plans.changed(plan, segment_samples=samples)

    def mistakes(self, node: fx.Node) -> Iterable[Mistake]:
        return mistakes.of(node)

    def audio(self, module: nn.Module, plan: Plan) -> AudioRecord:
        assert plan.segment_samples is not None
        return _configurations[module].record(plan.segment_samples)


def _beside(path: Path, suffixes: Sequence[str]) -> Path:
    """The file of the same name that ends otherwise."""
    found = [path.with_suffix(suffix) for suffix in suffixes if path.with_suffix(suffix).is_file()]
    if len(found) != 1:
        fix = "Name both alike" + ("." if suffixes is configuration.SUFFIXES else ", or ask for seeded weights.")
        raise CheckpointError(
            f"a RoFormer is a checkpoint and its configuration side by side; {path.name} needs the other one",
            expected=f"one file {path.stem} with {' or '.join(suffixes)}",
            received=", ".join(file.name for file in found) or "none",
            fix=fix,
        )
    return found[0]


def _built(found: Configuration, name: str) -> nn.Module:
    kind = _classes()[found.class_name]
    unknown = found.model.keys() - inspect.signature(kind.__init__).parameters.keys()
    if unknown:
        raise CheckpointError(
            f"{name} asks for arguments that {found.class_name} does not have", received=", ".join(sorted(unknown))
        )
    # The option recomputes in training what it saves there in memory; in inference it changes nothing.
    arguments: dict[str, Any] = {**found.model, "use_torch_checkpoint": False}
    try:
        module: nn.Module = kind(**arguments)
    except Exception as error:  # constructor assertions, types
        raise CheckpointError(
            f"{name} describes a model that cannot be built",
            received=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
        ) from error
    return module


def _classes() -> dict[str, type[nn.Module]]:
    try:
        from msst.models import bs_roformer
    except ImportError as error:
        raise UsageError(
            "RoFormers need the trainers' package msst and what its modules import",
            received=str(error),
            fix="pip install 'splitter[roformer]', then pip install --no-deps msst: it asks for an older PyTorch than "
            "splitter's, which these modules do not need.",
        ) from error
    return {name: getattr(bs_roformer, name) for name in ("BSRoformer", "MelBandRoformer")}
