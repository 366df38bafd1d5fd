"""What an operation is stands in its record and nowhere else; a new one needs no other place."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import splitter
from splitter.diagnosis import examine
from splitter.mil import load, ops, tiling
from splitter.mil.graph import Node, graph_of
from splitter.mil.ops.traits import Engine, Fp32Rule, Rows, Traits
from splitter.mil.program import load_spec, model_file
from splitter.tuning.precision import PrecisionSearch
from splitter.tuning.sensitivity import measure
from splitter.tuning.trial import Trial, TrialExcerpt

from .harness import f16, mb, package

SOURCES = Path(splitter.__file__).parent
# Operators of captured graphs share names with those of ML Programs; these rooms know only the former.
CAPTURED = {SOURCES / "graph", SOURCES / "passes", SOURCES / "aten"}


def tables(tree):
    """Literals of two or more operations' names: collections, dictionaries, alternatives, strings to split."""
    for node in ast.walk(tree):
        match node:
            case ast.Set(elts=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Dict(keys=parts):
                words = [part.value for part in parts if isinstance(part, ast.Constant)]
            case ast.MatchOr(patterns=parts):
                words = [part.value.value for part in parts if isinstance(part, ast.MatchValue)]
            case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="split")):
                words = text.split()
            case _:
                continue
        if len(names := {word for word in words if isinstance(word, str)} & ops.registered().keys()) > 1:
            yield node.lineno, sorted(names)


def test_no_table_of_operations_stands_outside_their_records():
    found = [
        f"{path.relative_to(SOURCES)}:{line}: {', '.join(names)}"
        for path in sorted(SOURCES.rglob("*.py"))
        if not {SOURCES / "mil" / "ops", *CAPTURED} & set(path.parents)
        for line, names in tables(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    ['{"conv", "add"}', '("conv", "add", "x")', '["add", "conv"]', '{"conv": 1, "add": 2}', '"add conv".split()',
     'match x:\n    case "conv" | "add":\n        pass'],
)  # fmt: skip
def test_a_table_is_seen(source):
    assert list(tables(ast.parse(source)))
    assert not list(tables(ast.parse(source.replace("conv", "none"))))


# ------------------------------------------------------------------------------- a new operation


def count(node: Node) -> int:
    return 7 * node.outputs[0].elements


MADE_UP = Traits(
    accumulate_fp32=True,
    half_sums=lambda total, x: total(torch.stack([x, x, x, -x, -x], -1)),
    rows=Rows.ELEMENTWISE,
    moves=True,
    multiplications=count,
    steep_at_zero=True,
    fp32_rules=(Fp32Rule.DIVISIONS,),
    engine=Engine(2, max_rank=3),
)


@pytest.fixture
def register(monkeypatch):
    """Registers one operation, for one test."""

    def made_up(traits=MADE_UP):
        monkeypatch.setitem(ops.REGISTRY, "made_up", [])

        @ops.operation("made_up", traits)
        def triple_less_double(x: Tensor) -> Tensor:
            return 3 * x - 2 * x

    return made_up


def edited(path, kind="tanh"):
    """The package with all operations of a type made up ones."""
    spec = load_spec(path)
    for operation in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations:
        operation.type = "made_up" if operation.type == kind else operation.type
    model_file(path).write_bytes(spec.SerializeToString())
    return path


def chain(x):
    return mb.relu(x=mb.tanh(x=mb.relu(x=x)))


class Nothing:
    """A listener: with one, every operation is computed whole."""

    def before(self, operation, inputs): ...

    def after(self, operation, outputs): ...


def test_it_is_executed_and_rounded_once(register, tmp_path):
    register()
    x = np.array([[1.0, 1000.0, 30000.0]], np.float16)  # three times the last is infinite in half
    (result,) = load(edited(package(chain, {"x": x}, tmp_path))).predict({"x": x}).values()
    np.testing.assert_array_equal(result, x)


def test_its_sums_are_held_in_half_where_asked(register, tmp_path):
    register()
    x = np.array([[30000.0]], np.float16)
    numerics = splitter.mil.Numerics(accumulators=splitter.mil.AccumulatorType.HALF)
    (result,) = load(edited(package(chain, {"x": x}, tmp_path)), numerics=numerics).predict({"x": x}).values()
    assert np.isinf(result).all()


@pytest.mark.parametrize("rows", [Rows.ELEMENTWISE, None])
def test_it_is_tiled_if_it_says_how(rows, register, tmp_path, monkeypatch):
    register(replace(MADE_UP, rows=rows))
    monkeypatch.setattr(tiling, "_MIN_BYTES", 1 << 12)
    monkeypatch.setattr(tiling, "_TILE_BYTES", 1 << 11)
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model = load(edited(package(chain, {"x": x}, tmp_path)))
    assert [(region.first, region.stop) for region in model.regions] == ([(0, 3)] if rows else [])
    (tiled,), (whole,) = model.predict({"x": x}).values(), model.predict({"x": x}, listener=Nothing()).values()
    np.testing.assert_array_equal(tiled, whole)


def test_it_is_counted_and_placed(register, tmp_path):
    register()
    path = edited(package(chain, {"x": f16(1, 2, 4)}, tmp_path))
    on_m1, on_m2 = (examine(path, chip=chip, run=False).diagnoses[0] for chip in ("m1", "m2"))
    assert on_m1.placement.flops == 2 * 7 * 8
    assert (on_m1.placement.flops_on_engine, on_m2.placement.flops_on_engine) == (0, 2 * 7 * 8)
    assert (on_m1.placement.operations_on_engine, on_m2.placement.operations_on_engine) == (2, 3)
    (refusal,) = (finding for finding in on_m1.findings if finding.rule == "engine-operation")
    assert (refusal.operation, refusal.what) == ("made_up", "made_up needs the M2 or later")


def test_the_doctor_reads_its_limits(register, tmp_path):
    register()
    path = edited(package(lambda x: mb.tanh(x=mb.add(x=x, y=np.float16(1e-5))), {"x": f16(1, 2, 4, 4)}, tmp_path))
    findings = {
        (finding.rule, finding.operation) for finding in examine(path, chip="m2", run=False).diagnoses[0].findings
    }
    assert {("engine-rank", "made_up"), ("half-small-epsilon", "add")} <= findings


@pytest.fixture
def trial(packages_bundle):
    """Of a toy whose transformer's activation is the made-up operation."""
    mixture = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    trial = Trial(packages_bundle, [TrialExcerpt("noise", Path(), 0, mixture)])
    package = trial.packages["transformer"]
    block = package.function.block
    operations = (replace(one, type="made_up") if one.type == "relu" else one for one in block.operations)
    function = replace(package.function, block=replace(block, operations=tuple(operations)))
    trial.packages["transformer"] = package.variant(function)
    return trial


@pytest.mark.parametrize("moves", [True, False])
def test_what_it_moves_is_rounded_in_one_group(moves, register, request):
    register(replace(MADE_UP, moves=moves))
    trial = request.getfixturevalue("trial")
    (made_up,) = (one for one in trial.packages["transformer"].operations if one.type == "made_up")
    moved = {made_up.inputs["x"][0].name, made_up.name}
    assert any(moved <= group.values for group in measure(trial, lambda step: None)) == moves


def test_tuning_of_precision_considers_it(register, request):
    register()
    trial = request.getfixturevalue("trial")
    *_, divisions, rest = PrecisionSearch(trial).rules()
    assert divisions.fp32_operations == 1
    nodes = [node for package in trial.packages.values() for node in graph_of(package.function).nodes]
    assert rest.operations - rest.fp32_operations == sum(node.flops > 0 for node in nodes)
    assert [node.flops for node in nodes if node.type == "made_up"] == [2 * 7 * 16 * 16]


def test_no_second_declaration_of_its_traits(register):
    register()
    with pytest.raises(ValueError, match="'made_up' are declared already, for CoreML5"):
        ops.operation("made_up", Traits(moves=True), opset="CoreML7")(lambda x: x)


def test_a_later_meaning_has_the_same_traits(register):
    register()

    @ops.operation("made_up", opset="CoreML7")
    def later(x: Tensor) -> Tensor:
        return x

    old, new = (ops.record("made_up", opset) for opset in ("CoreML6", "CoreML8"))
    assert (old.function is later, new.function is later) == (False, True)
    assert old.traits is new.traits is MADE_UP


def test_every_parameter_is_annotated(register):
    with pytest.raises(TypeError, match="parameter 'y' of unclear has no annotation"):

        @ops.operation("unclear")
        def unclear(x: Tensor, y) -> Tensor:
            return x

    assert "unclear" not in ops.registered(), "and nothing of it is left"
