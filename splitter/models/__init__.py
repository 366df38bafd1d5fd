"""Model families, one module or folder each: how a model is loaded, run once for its golden, captured and cut.

A family is found among the entry points of the group ``splitter.models``, so that another package can add one
without a change here. What a family leaves out, a model of it does not have: one without an audio record is built,
verified, profiled and reported like any other, and does not separate songs.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from torch import fx, nn

from .. import plugins
from ..bundle.manifest import AudioRecord
from ..errors import PlanError, UsageError
from ..graph.capture import Patch
from ..plan.schema import Plan
from ..verification.mistakes import Mistake

GROUP = "splitter.models"


@dataclass(frozen=True)
class Model:
    """A module and where it comes from.

    Attributes:
        name: As it is asked for, or the file's stem.
        module: The unmodified module, in eval mode.
        arguments: The constructor's keyword arguments as JSON values.
        sha256: Of the checkpoint file; None without one.
        random_init: Seed of random weights, or None.
    """

    name: str
    module: nn.Module
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    random_init: int | None = None

    @property
    def class_path(self) -> str:
        """Import path of the module's class."""
        return f"{type(self.module).__module__}.{type(self.module).__qualname__}"


@dataclass(frozen=True)
class Ensemble:
    """One or more models whose outputs are averaged: ``weights[member][stem]``, empty rows where there are no stems."""

    name: str
    members: tuple[Model, ...]
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Example:
    """One run of a model: what capture traces and goldens record.

    Attributes:
        inputs: By the name of the forward's argument, see `splitter.graph.signature`.
        description: What it was made from, for people.
    """

    inputs: Mapping[str, Any]
    description: str


class Family(ABC):
    """Models that are loaded, run and cut alike.

    Attributes:
        name: As the manifest records it.
        names: Of models that `load` knows without a file.
        suffixes: Of the checkpoint files that `load` reads, dots included.
        distribution: The package that the models come from; the manifest records its version. Empty for none.
    """

    name: ClassVar[str]
    names: ClassVar[tuple[str, ...]] = ()
    suffixes: ClassVar[tuple[str, ...]] = ()
    distribution: ClassVar[str] = ""

    @abstractmethod
    def fits(self, module: nn.Module) -> bool:
        """Whether a module is one of this family."""

    def knows(self, path: Path) -> bool:
        """Whether a file is of this family by what it holds. Asked before `suffixes`, which families share."""
        return False

    @abstractmethod
    def example(self, module: nn.Module, plan: Plan, recording: Path | None) -> Example:
        """The golden input.

        Args:
            module: As `prepared` left it.
            plan: As `prepared` returned it.
            recording: What the user asked to record goldens of; the family's own example where None.

        Raises:
            SplitterError: The recording cannot be read, or is silent.
        """

    def load(self, model: str | Path, *, random_init: int | None = None) -> Ensemble:
        """Load a model by one of `names`, or a file with one of `suffixes`.

        Args:
            random_init: Seed to initialise a named model with instead of its weights.

        Raises:
            CheckpointError: The file is missing, damaged, or asks for more than a model file may.
            UsageError: There are no random weights for it.
        """
        raise UsageError(f"models of the family {self.name!r} are given as modules", received=model)

    def plans(self) -> Sequence[Plan]:
        """The presets that come with the family."""
        return ()

    def prepared(self, module: nn.Module, plan: Plan, seconds: float | None) -> Plan:
        """Set a module to the length of one run, and say so in the plan.

        Args:
            seconds: The length asked for; what the plan says, or the module was made for, where None.

        Raises:
            UsageError: The module does not run at that length.
        """
        if seconds is not None:
            raise UsageError(f"models of the family {self.name!r} have no length to choose", received=f"{seconds:g} s")
        return plan

    def audio(self, module: nn.Module, plan: Plan) -> AudioRecord | None:
        """What a separator says of itself; None for other models."""
        return None

    def patches(self) -> Sequence[Patch]:
        """Context managers that hold during capture, each of one named function, with its reason beside it."""
        return ()

    def mistakes(self, node: fx.Node) -> Iterable[Mistake]:
        """What ports of such models get wrong in computing a node of the captured graph, beside what all ports do.

        `splitter.verification.mistakes` has the general ones. `verify-port` names the mistake that gives the values
        which a port dumped.
        """
        return ()


def needed(module: str, extra: str) -> ModuleType:
    """A module of the package that a family's models come from.

    Args:
        extra: Of splitter, which brings the package.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"this model needs the Python module {error.name!r}, which is not installed",
            fix=f"Install the extra: pip install 'splitter[{extra}]'.",
        ) from error


@cache
def families() -> tuple[Family, ...]:
    """Every installed family, by name."""
    return tuple(plugins.load(GROUP, "model family", name, PlanError)() for name in plugins.names(GROUP))


def names() -> tuple[str, ...]:
    """Of all models that can be loaded without a file."""
    return tuple(name for family in families() for name in family.names)


def load(model: str | Path, *, random_init: int | None = None) -> tuple[Family, Ensemble]:
    """Load a model by name or file; see `Family.load`.

    Raises:
        UsageError: No family knows it.
    """
    from .module import is_reference

    path = Path(model)
    named = [family for family in families() if str(model) in family.names or family.knows(path)]
    for family in named or [family for family in families() if path.suffix in family.suffixes]:
        return family, family.load(model, random_init=random_init)
    suffixes = sorted({suffix for family in families() for suffix in family.suffixes})
    if is_reference(model):
        raise UsageError(f"{model} is code of your own, which only build and plan run")
    raise UsageError(
        f"unknown model {str(model)!r}",
        fix=f"Names are {', '.join(names())}; files end in {', '.join(suffixes)}; a module of your own is "
        "PACKAGE.MODULE:FACTORY.",
    )


def of_module(module: nn.Module) -> tuple[Family, Ensemble]:
    """A module of the user's own, in eval mode: of the family that it fits, or else of none, `ModuleFamily`."""
    return of_model(Model(type(module).__name__.lower(), module.eval()))


def of_model(model: Model) -> tuple[Family, Ensemble]:
    """The same for a module that has a name already."""
    from .module import ModuleFamily

    family = next((family for family in families() if family.fits(model.module)), None) or ModuleFamily()
    return family, Ensemble(model.name, (model,), (family_weights(family, model.module),))


def presets() -> dict[str, Plan]:
    """The plans that come with the families, by name."""
    return {plan.family: plan for family in families() for plan in family.plans()}


def preset_for(model: Model) -> Plan | None:
    """The preset for a model's class; None if there is none, and a plan is to be proposed."""
    return next((plan for plan in presets().values() if model.class_path in plan.models), None)


def family_weights(family: Family, module: nn.Module) -> tuple[float, ...]:
    """The weights of a model that is alone: 1 for every stem."""
    stems = getattr(module, "sources", ())
    return (1.0,) * len(stems)
