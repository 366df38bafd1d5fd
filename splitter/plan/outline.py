"""A new plan with what it was made from: the modules of the model, what each costs, and which target takes what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import fx, nn
from torch._ops import OpOverload

from .. import opening, output
from ..graph.program import Program
from ..partition import partition, within
from ..profiling import work
from . import schema as plans
from .proposal import Trial
from .schema import Plan


@dataclass(frozen=True)
class Module:
    """A module of the model that lies in one stage, or that holds modules of several.

    Attributes:
        path: In the model; empty for what the model's own forward computes.
        operators: By name, how often it and what it contains call each.
        flops: Floating-point operations of one run.
        parameters: Numbers in its weights.
        stage: Where it is placed; empty for several stages.
    """

    path: str
    operators: Mapping[str, int]
    flops: int
    parameters: int
    stage: str


@dataclass(frozen=True)
class NewPlan:
    """A plan that builds as it stands, for ``splitter build --plan``.

    Attributes:
        modules: In the order of the graph; of a module within one stage not what it contains.
        trials: Which targets were tried for each stage, and why some do not lower it.
    """

    plan: Plan
    modules: tuple[Module, ...]
    trials: tuple[Trial, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "stages": [stage.model_dump(mode="json") for stage in self.plan.stages],
            "modules": [asdict(module) for module in self.modules],
            "trials": [asdict(trial) for trial in self.trials],
        }


def new_plan(
    model: str | Path | nn.Module,
    *,
    inputs: Mapping[str, Any] | Path | str | None = None,
    random_init: int | None = None,
    out: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> NewPlan:
    """Propose a plan for a model, see `splitter.plan.proposal`. Every stage is lowered once, on trial.

    Args:
        model: As for `splitter.build`; the first member of a bag.
        inputs: Example inputs, as for `splitter.build`.
        random_init: Seed of random weights for a named configuration.
        out: File to write the plan to.
        progress: Called with a phrase as each step begins.

    Raises:
        SplitterError: Of the kind that names what went wrong: the inputs do not fit, or the model cannot be captured.
    """
    if out is not None:
        output.check(out)
    program, proposal = opening.propose(model, inputs=inputs, random_init=random_init, progress=progress)
    if out is not None:
        plans.save(proposal.plan, out)
    return NewPlan(proposal.plan, tuple(_modules(program, proposal.plan)), proposal.trials)


def _modules(program: Program, plan: Plan) -> list[Module]:
    flops = work.by_operator(program)
    stages: dict[str, set[str]] = {}  # of every module and of all that contain it
    order: dict[str, None] = {}
    stage_of = {node: segment.stage.name for segment in partition(program, plan).segments
                for node in (operator.name for operator in segment.program.operators)}  # fmt: skip
    for node in program.operators:
        parts = node.meta["module"].split(".") if node.meta["module"] else []
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            order.setdefault(path)
            stages.setdefault(path, set()).add(stage_of.get(node.name, ""))
    shown = [path for path in order if all(len(stages[above]) > 1 for above in _above(path))]
    rows = [_row(program, path, flops, stages[path]) for path in shown]
    own = [node for node in program.operators if not node.meta["module"]]
    if own:
        placed = {stage_of.get(node.name, "") for node in own}
        rows.insert(0, Module("", _counted(own), sum(flops[node.name] for node in own), 0, _single(placed)))
    return rows


def _above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _row(program: Program, path: str, flops: Mapping[str, int], stages: set[str]) -> Module:
    nodes = [node for node in program.operators if within(node.meta["module"], path)]
    parameters = sum(weight.numel() for name, weight in program.weights.items() if name.startswith(path + "."))
    return Module(path, _counted(nodes), sum(flops[node.name] for node in nodes), parameters, _single(stages))


def _single(stages: set[str]) -> str:
    return next(iter(stages)) if len(stages) == 1 else ""


def _counted(nodes: Sequence[fx.Node]) -> dict[str, int]:
    called = [node.target for node in nodes if isinstance(node.target, OpOverload)]  # others take items of tuples
    return dict(Counter(target._schema.name.removeprefix("aten::") for target in called).most_common())
