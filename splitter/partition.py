"""Graph + plan → segments + boundaries.

The cut is made on the captured graph and nothing is recomputed or reordered, so running the segments
in order gives what the graph gives, bit for bit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor, fx

from .boundary import INPUT, OUTPUT, TensorSpec
from .errors import PartitionError
from .graph.program import Program, copy_nodes, free_of_strides, needs_strides
from .graph.shapes import TensorType
from .graph.signature import NUMPY_LACKS, identifier, nearest
from .plan.cuts import divide, live, operations
from .plan.schema import Plan, Stage, TensorRule, rank

_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Segment:
    """One deployable unit: a program whose inputs and outputs are boundary tensors."""

    name: str
    stage: Stage
    program: Program
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Partition:
    """A model cut into segments.

    Attributes:
        segments: In order of execution.
        tensors: Every tensor that crosses a boundary, the model's inputs and outputs among them, in
            graph order.
        nodes: For each of these, the node of the whole capture that computes it.
    """

    segments: tuple[Segment, ...]
    tensors: tuple[TensorSpec, ...]
    nodes: Mapping[str, str]


def partition(program: Program, plan: Plan) -> Partition:
    """Cut a captured model into the plan's stages.

    Every node of a stage's modules belongs to that stage. A node of no stage's modules belongs with its
    nearest placed consumer (unless that stage is ``exact``: then with its placed producer); before all
    placed nodes it belongs to the first stage, after them to the last. What depends on no input
    (position tables, windows) is copied into each segment that reads it.

    Raises:
        PartitionError: A stage would be empty, or data would flow back to an earlier stage.
    """
    placement = _place(program, plan)
    _check_forward(program, placement, plan)
    units = [_Unit(stage.name, stage) for stage in plan.stages]
    parts = _cut(program, plan, units, placement)
    if all(stage.segments == 1 for stage in plan.stages):
        return parts
    return _cut(program, plan, *_divided(program, plan, parts, placement))


class _Unit(NamedTuple):
    """A segment to be: its name, and the stage it is or is part of."""

    name: str
    stage: Stage


def _cut(program: Program, plan: Plan, units: Sequence[_Unit], placement: Mapping[fx.Node, int]) -> Partition:
    """Cut where the unit of nodes changes."""
    crossing = _crossing(program, placement)
    names = _name(program, plan, units, placement, crossing)
    specs = {node: _spec(program, units, placement, node, names[node]) for node in crossing}
    segments = tuple(_segment(program, units, index, placement, specs) for index in range(len(units)))
    return Partition(
        segments=segments,
        tensors=tuple(specs.values()),
        nodes={spec.name: node.name for node, spec in specs.items()},
    )


def _divided(
    program: Program, plan: Plan, parts: Partition, placement: Mapping[fx.Node, int]
) -> tuple[list[_Unit], dict[fx.Node, int]]:
    """Units and placement with every stage of several segments divided by the planner."""
    units: list[_Unit] = []
    divided: dict[fx.Node, int] = {}
    for index, (stage, whole) in enumerate(zip(plan.stages, parts.segments, strict=True)):
        nodes = [node for node in program.operators if placement.get(node) == index]
        if stage.segments > 1:  # constants that forward returns belong to the last piece
            computed = set(live(program))
            divided |= {node: len(units) + stage.segments - 1 for node in nodes if node not in computed}
            nodes = [node for node in nodes if node in computed]
        if stage.segments == 1:
            divided |= dict.fromkeys(nodes, len(units))
            units.append(_Unit(stage.name, stage))
            continue
        division = divide(whole.program, stage.segments, balance=1 + plan.imbalance, cost=operations)
        of = {node: piece for piece, nodes in enumerate(division.pieces) for node in nodes}
        for node, copy in zip(nodes, live(whole.program), strict=True):  # both in the order of the capture
            divided[node] = len(units) + of[copy]
        units += [_Unit(f"{stage.name}_{piece + 1}", stage) for piece in range(stage.segments)]
    return units, divided


def run(parts: Partition, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run the segments in order in torch; return every boundary tensor by name."""
    values = dict(inputs)
    for segment in parts.segments:
        values |= segment.program.run({spec.name: values[spec.name] for spec in segment.inputs})
    return values


# ------------------------------------------------------------------------------------ placement


def _place(program: Program, plan: Plan) -> dict[fx.Node, int]:
    """Stage index of every operator that depends on an input."""
    first, last = 0, len(plan.stages) - 1
    live = _descendants(program, program.input_nodes)
    placed = {
        node: index
        for node in program.operators
        if node in live and (index := _stage_of_module(plan, node.meta["module"])) is not None
    }
    _check_paths(program, plan)
    for position, stage in enumerate(plan.stages):
        if stage.modules and position not in placed.values():
            raise PartitionError(
                f"stage {stage.name!r} is empty: its modules {', '.join(stage.modules)} lie in other stages",
                fix="Check the module paths in the plan.",
            )
    before_placed = _ancestors(program, placed)
    latest: dict[fx.Node, int] = {}  # stage of the latest placed node that a node depends on
    for node in program.graph.nodes:
        reached = [latest.get(parent, -1) for parent in node.all_input_nodes]
        reached += [placed[parent] for parent in node.all_input_nodes if parent in placed]
        if max(reached, default=-1) >= 0:
            latest[node] = max(reached)
    placement: dict[fx.Node, int] = {}
    for node in reversed(program.operators):
        if node not in live:
            continue
        nearest = min((last if user.op == "output" else placement[user] for user in node.users), default=last)
        if node in placed:
            placement[node] = placed[node]
        elif node in latest:
            between = latest[node] if plan.stages[nearest].exact else nearest
            placement[node] = between if node in before_placed else last
        else:
            placement[node] = first if node in before_placed else nearest
    # What forward returns without computing it from an input.
    placement |= {node: last for node in program.output_nodes if node not in placement and node.op == "call_function"}
    return placement


def _check_paths(program: Program, plan: Plan) -> None:
    """Every path of a plan stands for something in the graph."""
    computing = {node.meta["module"] for node in program.operators} - {""}
    for stage in plan.stages:
        for path in stage.modules:
            if not any(within(module, path) for module in computing):
                known = sorted(
                    {above for module in computing for above in accumulate(module.split("."), "{}.{}".format)}
                )
                tops = [name for name in known if "." not in name]
                raise PartitionError(
                    f"stage {stage.name!r} names the module {path!r}, and no node of the graph lies under it",
                    fix=nearest(path, known) or f"There are {', '.join(tops) or 'no modules with operators'}.",
                )


def _stage_of_module(plan: Plan, module: str) -> int | None:
    """Index of the stage whose deepest module path holds a module; None if no stage's does.

    Of paths equally deep a name counts before a pattern.
    """
    held = [
        (path.count("."), not _PATTERN.search(path), -index)
        for index, stage in enumerate(plan.stages)
        for path in stage.modules
        if within(module, path)
    ]
    return -max(held)[2] if held else None


def within(module: str, path: str) -> bool:
    """True if a module path is another one or lies below it; parts of that one may be patterns: ``blocks.*.attn``."""
    names, patterns = module.split("."), path.split(".")
    return len(names) >= len(patterns) and all(map(fnmatchcase, names, patterns))


def _descendants(program: Program, roots: object) -> set[fx.Node]:
    """Nodes that depend on one of the roots (the roots excluded unless one depends on another)."""
    sources, found = set(roots), set()  # type: ignore[call-overload]
    for node in program.graph.nodes:
        if any(parent in sources or parent in found for parent in node.all_input_nodes):
            found.add(node)
    return found


def _ancestors(program: Program, roots: object) -> set[fx.Node]:
    """Nodes that one of the roots depends on."""
    sources, found = set(roots), set()  # type: ignore[call-overload]
    for node in reversed(program.graph.nodes):
        if any(user in sources or user in found for user in node.users):
            found.add(node)
    return found


def _check_forward(program: Program, placement: Mapping[fx.Node, int], plan: Plan) -> None:
    for node, stage in placement.items():
        for user in node.users:
            if user in placement and placement[user] < stage:
                here, there = plan.stages[stage].name, plan.stages[placement[user]].name
                raise PartitionError(
                    f"{node.name} ({node.meta['module'] or 'forward'}) of stage {here!r} is read by "
                    f"{user.name} ({user.meta['module'] or 'forward'}) of the earlier stage {there!r}",
                    fix="Move the modules of one of them to the other's stage.",
                )


# ----------------------------------------------------------------------------------- boundaries


def _crossing(program: Program, placement: Mapping[fx.Node, int]) -> list[fx.Node]:
    """Inputs, outputs, and nodes read by a later stage than their own, in graph order."""
    outputs = set(program.output_nodes)
    crossing = []
    for node in program.graph.nodes:
        stage = placement.get(node)
        if node.op == "placeholder" or node in outputs or (stage is not None and _consumers(placement, node) - {stage}):
            if node.meta["type"] is None:
                raise PartitionError(
                    f"the tuple {node.name} crosses a boundary",
                    expected="single tensors",
                    fix="Keep the operator and the accesses to its results in one stage.",
                )
            if node.meta["type"].dtype == NUMPY_LACKS:
                raise PartitionError(
                    f"{node.name} crosses a boundary in a type that arrays do not have",
                    received=NUMPY_LACKS,
                    fix="Build the model in another type: module.float().",
                )
            crossing.append(node)
    return crossing


def _consumers(placement: Mapping[fx.Node, int], node: fx.Node) -> set[int]:
    return {placement[user] for user in node.users if user in placement}


def _spec(
    program: Program, units: Sequence[_Unit], placement: Mapping[fx.Node, int], node: fx.Node, name: _Named
) -> TensorSpec:
    kind: TensorType = node.meta["type"]
    unit = placement.get(node)
    consumers = tuple(units[index].name for index in sorted(_consumers(placement, node) - {unit}))
    is_returned = node in program.output_nodes or any(returned.tensor == name.name for returned in program.returns)
    return TensorSpec(
        name=name.name,
        shape=kind.shape,
        dtype=kind.dtype,
        layout=name.layout,
        about=name.about,
        producer=INPUT if unit is None else units[unit].name,
        consumers=consumers + ((OUTPUT,) if is_returned else ()),
    )


class _Named(NamedTuple):
    name: str
    layout: str = ""
    about: str = ""


def _name(
    program: Program,
    plan: Plan,
    units: Sequence[_Unit],
    placement: Mapping[fx.Node, int],
    crossing: list[fx.Node],
) -> dict[fx.Node, _Named]:
    """Semantic name of every crossing tensor, with what the plan says about it."""
    named: dict[fx.Node, _Named] = {}
    for node in program.input_nodes:
        named[node] = _Named(str(node.target))
    for name, node in zip(program.outputs, program.output_nodes, strict=True):
        named[node] = _Named(name)
    counts: Counter[TensorRule] = Counter()
    # A rule with `feeds` names a tensor after another one: first the others.
    for second_round in (False, True):
        for node in crossing:
            if node in named:
                continue
            for rule in plan.tensors:
                if (
                    bool(rule.feeds) == second_round
                    and (feeds := _fits(rule, node, units, placement, named)) is not None
                ):
                    named[node] = _Named(rule.name.format(index=counts[rule], feeds=feeds), rule.layout, rule.about)
                    counts[rule] += 1
                    break
    taken = {tensor.name for tensor in named.values()}
    for node in crossing:
        if node not in named:
            name = _fallback_name(units[placement[node]].stage.name, node, taken)
            named[node] = _Named(name)
            taken.add(name)
    duplicates = [name for name, count in Counter(tensor.name for tensor in named.values()).items() if count > 1]
    if duplicates:
        raise PartitionError(
            f"several boundary tensors have the name {', '.join(map(repr, duplicates))}",
            fix="Make the plan's tensor rules narrower, or number them with {index}.",
        )
    return named


def _fits(
    rule: TensorRule,
    node: fx.Node,
    units: Sequence[_Unit],
    placement: Mapping[fx.Node, int],
    named: Mapping[fx.Node, _Named],
) -> str | None:
    """The tensor the node feeds (``""`` if the rule does not ask), or None if the rule does not fit."""
    stage = placement[node]
    if all(units[index].stage is units[stage].stage for index in _consumers(placement, node)):
        return None  # rules are about what one stage hands to another
    if rule.producer != units[stage].stage.name or (rule.op and rule.op != str(node.target)):
        return None
    if rule.layout and rank(rule.layout) != len(node.meta["type"].shape):
        return None
    if rule.into and not any(within(user.meta["module"], rule.into) for user in node.users if user.op != "output"):
        return None
    if not rule.feeds:
        return ""
    seen, frontier = set(), [node]
    while frontier:
        for user in frontier.pop().users:
            if user in seen or placement.get(user) != stage:
                continue
            if user in named and named[user].name in rule.feeds:
                return named[user].name
            seen.add(user)
            frontier.append(user)
    return None


def _fallback_name(stage: str, node: fx.Node, taken: set[str]) -> str:
    """A name from the module that computed the tensor, for plans without a rule for it."""
    stem = identifier(node.meta["module"] or stage, (), stage)
    candidates = (stem if k == 0 else f"{stem}_{k}" for k in range(len(taken) + 1))
    return next(name for name in candidates if name not in taken)


# ------------------------------------------------------------------------------------- segments


def _segment(
    program: Program,
    units: Sequence[_Unit],
    index: int,
    placement: Mapping[fx.Node, int],
    specs: Mapping[fx.Node, TensorSpec],
) -> Segment:
    name, stage = units[index]
    nodes = [node for node in program.operators if placement.get(node) == index]
    node_set = set(nodes)
    read = {parent for node in nodes for parent in node.all_input_nodes}
    inputs = [node for node in specs if node in read and node not in node_set]
    outputs = [node for node in specs if placement.get(node) == index]
    if not nodes:
        raise PartitionError(
            f"stage {stage.name!r} is empty: it holds no node of the graph",
            fix="Leave the stage out of the plan.",
        )
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        mapping[node] = graph.placeholder(specs[node].name)
        mapping[node].meta = {"type": node.meta["type"], "module": ""}
    constants = _constants(program, placement, nodes)
    copy_nodes((node for node in program.graph.nodes if node in constants or node in node_set), graph, mapping)
    graph.output(tuple(mapping[node] for node in outputs))
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    weights = {key: tensor for key, tensor in program.weights.items() if key in used}
    # Where a cut lies between a tensor and a view of it, the tensor arrives with its elements in a row.
    if stage.segments > 1 or needs_strides(graph, weights):
        free_of_strides(graph)
    return Segment(
        name=name,
        stage=stage,
        program=Program(name, graph, weights, tuple(specs[node].name for node in outputs)),
        inputs=tuple(specs[node] for node in inputs),
        outputs=tuple(specs[node] for node in outputs),
    )


def _constants(program: Program, placement: Mapping[fx.Node, int], nodes: list[fx.Node]) -> set[fx.Node]:
    """Weights, and operators that depend on no input, that these nodes need directly or through others."""
    found: set[fx.Node] = set()
    frontier = list(nodes)
    while frontier:
        for parent in frontier.pop().all_input_nodes:
            if parent not in found and parent not in placement and parent.op != "placeholder":
                found.add(parent)
                frontier.append(parent)
    return found
