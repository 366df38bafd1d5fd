"""Cuts of the planner against Core ML Tools' ``bisect_model`` and cuts at equal weights, at the balance of each."""

from __future__ import annotations

import math
import operator
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import fx

import splitter
from splitter import mil, models
from splitter.bundle.directory import Bundle
from splitter.errors import UsageError
from splitter.graph.program import Program
from splitter.mil.coreml_tools import ct, quiet_and_quick
from splitter.mil.types import TensorType
from splitter.plan import cuts as planner
from splitter.plan import schema as plans
from splitter.plan.schema import Plan

_MOST_PIECES = 8


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print a row for each stage, and the whole core, in two to eight pieces. Nothing is timed."""
    table = Table(title=f"bytes between the pieces, {checkpoint or 'demo'}", title_justify="left")
    for column in ("stage", "pieces", "peer", "its balance", "its MB", "the planner's balance", "the planner's MB"):
        table.add_column(column, justify="right")
    preset = models.presets()["htdemucs"]
    stages = [s.model_copy(update={"target": "coreml"}) if s.name == "transformer" else s for s in preset.stages]
    with tempfile.TemporaryDirectory() as scratch:
        for plan in (plans.changed(preset, stages=stages), plans.laid_out(preset, "core")):
            made = _bundle(checkpoint, Path(scratch) / str(len(plan.stages)), plan)
            for segment in made.segments:
                if segment.artifact.target == "coreml":
                    program = made.program(segment.program)
                    package = made.path / segment.artifact.path
                    table.add_row(segment.name, "2", "bisect_model", *_against_bisection(program, package))
                    for pieces in range(2, _MOST_PIECES + 1):
                        table.add_row(segment.name, f"{pieces}", "equal weights", *_against_equal(program, pieces))
    Console(width=140).print(table)


def _bundle(checkpoint: str | None, out: Path, plan: Plan) -> Bundle:
    return splitter.build(checkpoint or "demo", out, plan=plan, reference=False).members[0]


def _against_bisection(program: Program, package: Path) -> list[str]:
    """Its balance is counted in operations of its two packages, the planner's in the operations it estimates."""
    halves = package.parent / "halves"
    try:
        with quiet_and_quick():
            ct.models.utils.bisect_model(str(package), str(halves), check_output_correctness=False)
    except Exception as error:  # it raises every kind
        return ["", f"fails: {type(error).__name__}", "", ""]
    first, second = (mil.load(halves / f"{package.stem}_chunk{index}.mlpackage") for index in (1, 2))
    operations = [sum(one.type != "const" for one in half.operations) for half in (first, second)]
    handed = set(first.function.block.outputs)
    crossing = [one.type for one in second.function.inputs if one.name in handed]
    sizes = (_bytes(kind) for kind in crossing if isinstance(kind, TensorType))
    return _figures(program, 2, 2 * max(operations) / sum(operations), sum(sizes), planner.operations)


def _bytes(kind: TensorType) -> int:
    return math.prod(one or 1 for one in kind.shape) * kind.dtype.held.itemsize


def equal_cuts(program: Program, pieces: int, *, cost: planner.Cost = planner.weight_bytes) -> planner.Division:
    """The usual way: cut the operators, in their order, where equal shares of a cost end.

    With weights as the cost and two pieces it is the rule of Core ML Tools' ``bisect_model``, on this graph.
    """
    alive = planner.live(program)
    total, done, index = sum(map(cost, alive)), 0, 0
    sets: list[list[fx.Node]] = [[] for _ in range(pieces)]
    for node in alive:
        if node.target is not operator.getitem:
            index = min(done * pieces // max(total, 1), pieces - 1)
        sets[index].append(node)
        done += cost(node)
    return planner.division(program, sets)


def _against_equal(program: Program, pieces: int) -> list[str]:
    peer = equal_cuts(program, pieces)
    return _figures(program, pieces, peer.balance, peer.traffic, planner.operators)


def _figures(program: Program, pieces: int, balance: float, traffic: int, cost: planner.Cost) -> list[str]:
    try:
        mine = planner.divide(program, pieces, balance=balance, cost=cost)
    except UsageError as error:
        found = ["", str(error.received)]
    else:
        found = [f"{mine.balance:.2f}", f"{mine.traffic / 1e6:.1f}"]
    return [f"{balance:.2f}", f"{traffic / 1e6:.1f}", *found]
