"""What is built from: a model that is opened, its example inputs, and the plan to obey."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from . import arrays, models
from .errors import UsageError
from .graph import diagnosis
from .graph import program as programs
from .graph.capture import capture
from .graph.signature import bind
from .models import Ensemble, Example, Family, Model
from .models.module import from_factory, is_reference
from .plan import proposal
from .plan import schema as plans
from .plan.schema import Plan

Progress: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What a build was asked for, as far as it decides the plan and the golden input.

    Attributes:
        plan: To obey, settings included; None for a preset or a proposal.
        settings: What overrides those.
        inputs: Example inputs and what they are; None for the family's own.
        seconds: Length of one run of a separator.
        recording: What the family's example is made from.
    """

    plan: Plan | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    inputs: Example | None = None
    seconds: float | None = None
    recording: Path | None = None

    def example(self, family: Family, module: nn.Module, plan: Plan) -> Example:
        """The example inputs. Raises `CaptureError` if the module fails on those that the user gave."""
        if self.inputs is None:
            return family.example(module, plan, self.recording)
        # What a user gives may not fit, and a trace may not notice: it computes nothing.
        diagnosis.check(module, bind(module, self.inputs.inputs))
        return self.inputs


def given(inputs: Mapping[str, Any] | Path | str) -> Example:
    """Example inputs from their mapping or file. Raises `UsageError` if the file cannot be read."""
    if isinstance(inputs, Mapping):
        return Example(inputs, "example inputs, as they were given")
    return Example(arrays.read(Path(inputs)), Path(inputs).name)


def opened(model: str | Path | nn.Module, random_init: int | None, progress: Progress) -> tuple[Family, Ensemble]:
    """The members of a model, which is asked for as for `compiler.build`, and the family that knows them.

    Raises:
        UsageError: A seed is given for a model of the user's own code.
        CheckpointError: There is no such model, or it cannot be loaded.
    """
    if isinstance(model, nn.Module):
        return models.of_module(model)
    progress(f"loading {model}")
    if not is_reference(model):
        return models.load(model, random_init=random_init)
    if random_init is not None:
        raise UsageError("the weights of a model of your own are those that your code gives it", received="a seed")
    return models.of_model(from_factory(str(model)))


def planned(
    family: Family, member: Model, request: Request, arranged: Callable[[Plan], Plan], progress: Progress
) -> Plan:
    """The plan to obey, prepared with the module: the one asked for, the preset of its class, or a proposed one."""
    start = request.plan
    if start is None and (preset := models.preset_for(member)) is not None:
        start = plans.changed(preset, **request.settings)
    if start is not None:
        return family.prepared(member.module, arranged(start), request.seconds)
    draft = plans.changed(proposal.blank(type(member.module).__name__, member.class_path), **request.settings)
    draft = family.prepared(member.module, draft, request.seconds)
    progress("capturing the graph")
    return arranged(_proposed(family, member, request, draft, progress)[1].plan)


def _proposed(
    family: Family, member: Model, request: Request, draft: Plan, progress: Progress
) -> tuple[programs.Program, proposal.Proposal]:
    example = request.example(family, member.module, draft)
    whole = capture(member.module, example.inputs, (), family.patches())
    progress("proposing stages, and trying to lower them")
    return whole, proposal.propose(whole, draft, bind(member.module, example.inputs).tensors)


def captured(
    model: str | Path | nn.Module,
    *,
    inputs: Mapping[str, Any] | Path | str | None = None,
    plan: Plan | None = None,
    random_init: int | None = None,
    progress: Progress = lambda step: None,
) -> tuple[programs.Program, Plan]:
    """The graph that a build would cut, and the plan it would obey; of a bag its first member.

    Args:
        model: As for `build`.
        inputs: As for `build`.
        plan: The preset for the model's class, or a proposed one, by default.
        random_init: Seed of random weights for a named configuration.
        progress: Called with a phrase as each step begins.
    """
    family, ensemble = opened(model, random_init, progress)
    member = ensemble.members[0]
    request = Request(plan=plan, inputs=None if inputs is None else given(inputs))
    obeyed = planned(family, member, request, lambda found: found, progress)
    example = request.example(family, member.module, obeyed)
    return capture(member.module, example.inputs, obeyed.outputs, family.patches()), obeyed


def propose(
    model: str | Path | nn.Module,
    *,
    inputs: Mapping[str, Any] | Path | str | None = None,
    random_init: int | None = None,
    progress: Progress = lambda step: None,
) -> tuple[programs.Program, proposal.Proposal]:
    """The graph of a model, and a new plan for it, whether or not there is a preset; of a bag its first member.

    Args:
        model: As for `build`, as the others.
    """
    family, ensemble = opened(model, random_init, progress)
    member = ensemble.members[0]
    request = Request(inputs=None if inputs is None else given(inputs))
    draft = proposal.blank(type(member.module).__name__, member.class_path)
    draft = family.prepared(member.module, draft, None)
    progress("capturing the graph")
    return _proposed(family, member, request, draft, progress)


def renamed(ensemble: Ensemble, name: str) -> Ensemble:
    """Called otherwise; the members of several keep their names, by which they are told apart."""
    single = len(ensemble.members) == 1
    members = tuple(replace(member, name=name) if single else member for member in ensemble.members)
    return replace(ensemble, name=name, members=members)
