"""A plan for a model that nobody has planned: its stages from what its modules compute, in an order without cycles.

One rule. A module whose operators are of one kind (convolutions, attention, recurrent layers, Fourier transforms) stays
whole; a mixed one is looked at part by part. Linear maps and norms join what they follow. A stage is what can run
together: a part begins a new stage where it reads from one of another kind. So convolution, transformer, convolution
become ``cnn_1``, ``transformer_1``, ``cnn_2``. Where that gives more than `MOST_STAGES`, the innermost mixed modules
stay whole as well.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from .. import lowering
from ..errors import LoweringError
from ..graph.categories import of_node
from ..graph.program import Program
from ..partition import Segment, partition, run, within
from . import schema as plans
from .cuts import live
from .schema import Plan

MOST_STAGES = 12
CNN, TRANSFORMER, RECURRENT, HOST = "cnn", "transformer", "recurrent", "host"
_REST = "layers"  # linear maps and norms that no stage of another kind precedes or follows
_ORDER = (HOST, CNN, RECURRENT, _REST, TRANSFORMER)  # of stages that read nothing from each other
_KINDS = {"convolution": CNN, "attention": TRANSFORMER, "recurrent": RECURRENT, "fourier": HOST}


@dataclass(frozen=True)
class Trial:
    """A target that was tried for a stage.

    Attributes:
        refusal: Why it does not lower the stage; empty where it does.
    """

    stage: str
    target: str
    refusal: str


@dataclass(frozen=True)
class Proposal:
    """A plan that builds as it stands.

    Attributes:
        plan: Its stages have the first target that lowers them.
        trials: In the order of the stages.
    """

    plan: Plan
    trials: tuple[Trial, ...]


def blank(name: str, model_class: str) -> Plan:
    """A plan without outputs and with one stage, to be told the settings before there are stages.

    Args:
        name: Of the model.
        model_class: Import path of its class.
    """
    family = re.sub(r"\W+", "_", name, flags=re.ASCII).lower().strip("_")
    family = family if family and family[0].isalpha() else f"model_{family}".strip("_")
    rest = lowering.proposed_for("rest")[0]
    return Plan(family=family, models=(model_class,), outputs=(), stages=({"name": "model", "target": rest},))


def propose(program: Program, start: Plan, inputs: Mapping[str, Tensor]) -> Proposal:
    """Stages, and a target for each that lowers it, tried in a folder that is thrown away.

    Args:
        program: The captured model.
        start: Its settings are kept, its stages replaced.
        inputs: The example that it was captured with, by name.
    """
    stages = _stages(program)
    rest = lowering.proposed_for("rest")[0]
    drafts = [{"name": stage.name, "target": rest, "modules": stage.modules} for stage in stages]
    plan = plans.changed(start, outputs=program.outputs, stages=drafts)
    parts = partition(program, plan)
    values = run(parts, inputs)
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        for draft, stage, segment in zip(drafts, stages, parts.segments, strict=True):
            draft["target"], tried = _target(stage, segment, plan, values, Path(folder))
            trials += tried
    return Proposal(plans.changed(plan, stages=drafts), tuple(trials))


# -------------------------------------------------------------------------------------------- stages


@dataclass(frozen=True)
class _Stage:
    kind: str
    name: str
    modules: tuple[str, ...]


@dataclass
class _Part:
    """Modules that stay together.

    Attributes:
        kind: Empty where they hold none of the kinds.
        reads: Other parts that it depends on.
    """

    paths: list[str]
    kind: str
    reads: set[int] = field(default_factory=set)


def _stages(program: Program) -> list[_Stage]:
    nodes = live(program)
    whole: set[str] = set()
    while True:
        tree = _Tree(nodes)
        parts = tree.parts(whole)
        placed = _levels(program, nodes, parts)
        stages = _named(placed)
        deepest = max((path.count(".") for path in tree.opened - whole), default=-1)
        if len(stages) <= MOST_STAGES or deepest < 0:
            break
        whole |= {path for path in tree.opened if path.count(".") == deepest}
    return _with_host(program, nodes, stages)


class _Tree:
    """Modules of a graph, and which kinds of work each holds."""

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        self.opened: set[str] = set()
        self._children: dict[str, dict[str, None]] = {"": {}}
        self._counts: dict[str, Counter[str]] = {}
        self._own: dict[str, Counter[str]] = {}
        self._weighted: set[str] = set()
        computed = set(nodes)
        for node in nodes:
            marks = _marks(node, computed)
            path = node.meta["module"]
            self._own.setdefault(path, Counter()).update(marks)
            has_weights = any(parent.op == "get_attr" for parent in node.all_input_nodes)
            while True:
                self._counts.setdefault(path, Counter()).update(marks)
                if has_weights:
                    self._weighted.add(path)
                if not path:
                    break
                above = path.rpartition(".")[0]
                self._children.setdefault(above, {}).setdefault(path)
                path = above

    def parts(self, whole: set[str]) -> list[_Part]:
        """The parts below the root; modules in ``whole`` are not looked into."""
        self.opened = set()
        return [part for path in self._children[""] for part in self._below(path, whole)]

    def _below(self, path: str, whole: set[str]) -> list[_Part]:
        kinds = _kinds(self._counts[path])
        children = self._children.get(path, {})
        if len(kinds) < 2 or path in whole or not children or _kinds(self._own.get(path, Counter())):
            kind = next(iter(kinds.most_common(1)), ("", 0))[0]
            if TRANSFORMER in kinds and HOST not in kinds:
                kind = TRANSFORMER
            return [_Part([path], kind)] if kind or path in self._weighted else []
        self.opened.add(path)
        return [part for child in children for part in self._below(child, whole)]


def _marks(node: fx.Node, computed: set[fx.Node]) -> list[str]:
    """What counts for the kind of a module; softmax and products of activations together are attention."""
    category, kind = of_node(node), node.meta["type"]
    if kind is not None and kind.dtype.startswith("complex"):
        return [HOST]
    if category in _KINDS:
        return [_KINDS[category]]
    if "softmax" in str(node.target):
        return ["softmax"]
    operands = [parent for parent in node.all_input_nodes if parent in computed or parent.op == "placeholder"]
    return ["product"] if category == "linear" and len(operands) > 1 else []


def _kinds(marks: Counter[str]) -> Counter[str]:
    kinds = Counter({kind: count for kind, count in marks.items() if kind in _KINDS.values()})
    if marks["softmax"] and marks["product"]:
        kinds[TRANSFORMER] += marks["softmax"]
    return kinds


def _levels(program: Program, nodes: Sequence[fx.Node], parts: list[_Part]) -> dict[tuple[int, int], list[str]]:
    """Module paths by the place of their stage: how many changes of kind lie before it, and its kind."""
    _link(nodes, parts)
    parts = _without_cycles(parts)
    order = _topological(parts)
    level: dict[int, tuple[int, str]] = {}
    for index in order:
        part = parts[index]
        before = [level[source] for source in part.reads if source in level]
        if part.kind:
            deepest = max((depth + (kind != part.kind) for depth, kind in before), default=0)
            level[index] = (deepest, part.kind)
        elif before:  # joins what it follows, but for the host's, which has no weights
            depth, kind = max(before, key=lambda place: (place[0], _ORDER.index(place[1])))
            level[index] = (depth, kind) if kind != HOST else (depth + 1, _REST)
    for index in reversed(order):  # what nothing precedes joins what it leads to
        if index not in level:
            after = [level[reader] for reader, part in enumerate(parts) if index in part.reads and reader in level]
            depth, kind = min(after, key=lambda place: (place[0], _ORDER.index(place[1])), default=(0, _REST))
            level[index] = (depth, kind) if kind != HOST else (depth - 1, _REST)
    places: dict[tuple[int, int], list[str]] = {}
    for index in order:
        if index in level:
            depth, kind = level[index]
            places.setdefault((depth, _ORDER.index(kind)), []).extend(parts[index].paths)
    return dict(sorted(places.items()))


def _link(nodes: Sequence[fx.Node], parts: Sequence[_Part]) -> None:
    """Which part reads from which, directly or through operators of none."""
    home = {path: index for index, part in enumerate(parts) for path in part.paths}
    reached: dict[fx.Node, frozenset[int]] = {}
    for node in nodes:
        index = _home(node.meta["module"], home)
        sources = frozenset().union(*(reached.get(parent, frozenset()) for parent in node.all_input_nodes))
        if index is None:
            reached[node] = sources
        else:
            parts[index].reads |= sources - {index}
            reached[node] = frozenset({index})


def _home(module: str, home: Mapping[str, int]) -> int | None:
    while module:
        if module in home:
            return home[module]
        module = module.rpartition(".")[0]
    return None


def _without_cycles(parts: list[_Part]) -> list[_Part]:
    """Parts that read from each other in a circle as one: modules that are called again later."""
    below = [set(part.reads) for part in parts]
    grown = True
    while grown:
        before = sum(map(len, below))
        below = [reads.union(*(below[source] for source in reads)) for reads in below]
        grown = sum(map(len, below)) > before
    group = [min({index, *(other for other in below[index] if index in below[other])}) for index in range(len(parts))]
    leaders = sorted(set(group))
    place = {leader: index for index, leader in enumerate(leaders)}
    merged = []
    for leader in leaders:
        members = [index for index, its_leader in enumerate(group) if its_leader == leader]
        kinds = Counter(parts[index].kind for index in members if parts[index].kind)
        reads = {place[group[source]] for index in members for source in parts[index].reads} - {place[leader]}
        paths = [path for index in members for path in parts[index].paths]
        merged.append(_Part(paths, next(iter(kinds.most_common(1)), ("", 0))[0], reads))
    return merged


def _topological(parts: Sequence[_Part]) -> list[int]:
    order: list[int] = []
    left = dict(enumerate(parts))
    while left:
        ready = [index for index, part in left.items() if not part.reads & left.keys()]
        order += ready
        for index in ready:
            del left[index]
    return order


def _named(places: Mapping[tuple[int, int], Sequence[str]]) -> list[_Stage]:
    counts: Counter[str] = Counter()
    stages: list[_Stage] = []
    for (_, order), paths in places.items():
        kind = _ORDER[order]
        counts[kind] += 1
        stages.append(_Stage(kind, f"{kind}_{counts[kind]}", tuple(paths)))
    return stages


def _with_host(program: Program, nodes: Sequence[fx.Node], stages: list[_Stage]) -> list[_Stage]:
    """With stages of the host for what the model's own forward transforms before and after all placed modules."""
    if not stages:
        kinds = _kinds(Counter(mark for node in nodes for mark in _marks(node, set(nodes))))
        kind = next(iter(kinds.most_common(1)), (_REST, 0))[0]
        return [_Stage(kind, f"{kind}_1", ())]
    paths = [path for stage in stages for path in stage.modules]
    placed = {node for node in nodes if any(within(node.meta["module"], path) for path in paths)}
    after = set()
    for node in nodes:
        if any(parent in placed or parent in after for parent in node.all_input_nodes):
            after.add(node)
    before = set()
    for node in reversed(nodes):
        if any(user in placed or user in before for user in node.users):
            before.add(node)
    own = [node for node in nodes if node not in placed and HOST in _marks(node, placed)]
    first = any(node not in after for node in own)
    last = any(node in after and node not in before for node in own)
    inner = [(stage.kind, stage.modules) for stage in stages]
    complete = ([(HOST, ())] if first else []) + inner + ([(HOST, ())] if last else [])
    counts: Counter[str] = Counter()
    named = []
    for kind, modules in complete:
        counts[kind] += 1
        named.append(_Stage(kind, f"{kind}_{counts[kind]}", modules))
    return named


# ------------------------------------------------------------------------------------------- targets


def _target(
    stage: _Stage, segment: Segment, plan: Plan, values: Mapping[str, Tensor], folder: Path
) -> tuple[str, list[Trial]]:
    """The first target that lowers a stage, and what was tried."""
    tried: list[Trial] = []
    wanted = "host" if stage.kind == HOST else "network"
    example: dict[str, Any] = {spec.name: values[spec.name].numpy() for spec in segment.inputs + segment.outputs}
    for name in (*lowering.proposed_for(wanted), *lowering.proposed_for("rest")):
        home = folder / name / stage.name
        home.mkdir(parents=True)
        ready = replace(
            segment,
            stage=segment.stage.model_copy(update={"target": name}),
            inputs=tuple(lowering.at_boundary(spec, [name], plan) for spec in segment.inputs),
            outputs=tuple(lowering.at_boundary(spec, [name], plan) for spec in segment.outputs),
        )
        try:
            lowering.target(name).lower(ready, plan, example, home)
        except LoweringError as error:
            tried.append(Trial(stage.name, name, str(error)))
        else:
            tried.append(Trial(stage.name, name, ""))
            return name, tried
    raise LoweringError(
        f"no target lowers the stage {stage.name!r}",
        received="; ".join(f"{attempt.target}: {attempt.refusal}" for attempt in tried),
    )
