"""Layouts side by side, budgets, and plans that a build obeys."""

import pytest
import torch

import splitter
from splitter.errors import PlanError, UsageError
from splitter.opening import captured
from splitter.partition import partition, run
from splitter.plan import schema as plans
from splitter.plan.cuts import live, operations
from splitter.plan.layouts import compare
from splitter.verification.verify import verify

from ..toys import PACKAGES_PLAN, separating


@pytest.fixture(scope="module")
def demo():
    return captured("demo")


@pytest.mark.slow
def test_layouts_of_the_demo():
    compared = compare("demo", segments={"encoder": 2, "decoder": 3})
    asked, layouts = compared.plan, compared.layouts
    one, stages, planned = layouts
    assert [package.name for package in one.packages] == ["core"]
    assert [package.name for package in stages.packages] == ["encoder", "decoder"]
    names = ["encoder_1", "encoder_2", "decoder_1", "decoder_2", "decoder_3"]
    assert [package.name for package in planned.packages] == names
    assert one.boundary_bytes < stages.boundary_bytes <= planned.boundary_bytes
    assert stages.internal_bytes == 0
    assert planned.boundary_bytes - planned.internal_bytes == stages.boundary_bytes
    assert sum(p.weight_bytes for p in planned.packages) == sum(p.weight_bytes for p in stages.packages)
    assert max(p.compile_seconds for p in planned.packages) < max(p.compile_seconds for p in stages.packages)
    assert {stage.name: stage.segments for stage in asked.stages}["decoder"] == 3


def test_estimated_operations_are_those_of_the_packages(demo_bundle):
    from splitter.mil import load

    for name in ("encoder", "decoder"):
        nodes = live(demo_bundle.program(demo_bundle.segment(name).program))
        found = load(demo_bundle.path / f"{name}.mlpackage").spec.operations
        count = sum(many for kind, many in dict(found).items() if kind != "const")
        assert abs(sum(map(operations, nodes)) - count) <= 0.05 * count


@pytest.mark.parametrize("counts", [{"encoder": 2}, {"encoder": 3, "decoder": 2}])
def test_segments_in_order_equal_the_model_bit_for_bit(demo, counts):
    program, plan = demo
    parts = partition(program, plans.with_segments(plan, counts))
    assert len(parts.segments) == 5 + sum(count - 1 for count in counts.values())
    mix = torch.randn(program.input_nodes[0].meta["type"].shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(parts, {"mix": mix})["stems"], program.run({"mix": mix})["stems"])
    total = {name: [] for name in counts}
    for segment in parts.segments:
        if segment.stage.name in counts:
            total[segment.stage.name].append(sum(map(operations, live(segment.program))))
    for name, costs in total.items():
        assert max(costs) <= 1.2 * sum(costs) / counts[name]
    names = {spec.name for spec in partition(program, plan).tensors}
    assert names <= {spec.name for spec in parts.tensors}, "what stages hand each other keeps its name"


def test_the_two_branches_of_the_encoder_hand_each_other_nothing(demo):
    program, plan = demo
    parts = partition(program, plans.with_segments(plan, {"encoder": 2}))
    first, second = parts.segments[1:3]
    assert not {spec.name for spec in first.outputs} & {spec.name for spec in second.inputs}


@pytest.mark.slow
def test_as_few_segments_as_the_budget_allows():
    compared = compare("demo", max_operations=250)
    asked, layouts = compared.plan, compared.layouts
    largest = [package.operations for package in layouts[-1].packages]
    assert max(largest) <= 250
    counts = {stage.name: stage.segments for stage in asked.stages}
    assert counts["encoder"] == counts["decoder"] == 3


def test_budgets_that_nothing_keeps_say_what_the_best_has():
    with pytest.raises(
        PlanError,
        match=r"'encoder' keeps the budget of a segment: expected 5 operations, found at best [\d,]+ operations and",
    ):
        compare("demo", max_operations=5)


def test_a_plan_file_says_what_the_plan_did(tmp_path, demo):
    plan = plans.with_segments(demo[1], {"encoder": 2})
    plans.save(plan, tmp_path / "plan.toml")
    assert plans.load(tmp_path / "plan.toml") == plan
    with pytest.raises(UsageError, match="cannot be written"):
        plans.save(plan, tmp_path / "no" / "plan.toml")


def test_only_packages_are_cut(demo):
    with pytest.raises(PlanError, match="'transformer' cannot be cut"):
        compare("demo", segments={"transformer": 2})
    with pytest.raises(PlanError, match="unknown stage 'middle'"):
        plans.with_segments(demo[1], {"middle": 2})


@pytest.mark.parametrize("layout", ["core", "whole", "segments"])
def test_every_layout_verifies(tmp_path, layout):
    plan = plans.with_segments(PACKAGES_PLAN, {"transformer": 3}) if layout == "segments" else PACKAGES_PLAN
    bag = splitter.build(separating(), tmp_path / "b", plan=plan, layout="split" if layout == "segments" else layout)
    (bundle,) = bag.members
    expected = {
        "core": ["core"],
        "whole": ["whole"],
        "segments": ["encoder", "transformer_1", "transformer_2", "transformer_3", "decoder"],
    }
    assert [one.name for one in bundle.segments if one.artifact.target == "coreml"] == expected[layout]
    (report,) = verify(bag)
    assert report.passed
    assert report.partition_max_abs == 0
    packages = [check for check in report.checks if check.kind == "package"]
    assert all(check.parity.snr_db >= 110 for check in packages if check.subject == "restored")
    assert {spec for one in bundle.segments for spec in one.outputs} == {check.subject for check in packages}


@pytest.mark.parametrize(
    ("model", "stage", "others", "budget"),
    [
        ("toy", "transformer", {}, 15),
        pytest.param("demo", "decoder", {"encoder": 5}, 150, marks=pytest.mark.slow),
    ],
)
def test_segments_beyond_the_budget_are_refused_with_the_smallest_number(model, stage, others, budget):
    def compared(count, **more):
        known = {"model": separating(), "plan": PACKAGES_PLAN} if model == "toy" else {"model": model}
        return compare(**known, segments={stage: count, **more}, max_operations=budget)

    with pytest.raises(
        PlanError,
        match=rf"'{stage}' in 2 segments does not keep the budget of {budget} operations; got \d+ operations and [\d,]+ "
        rf"bytes of weights in the largest\. It takes at least (\d+) segments: --segments {stage}=\1, or leave it out",
    ) as refused:
        compared(2)
    smallest = int(refused.value.fix.split(" segments")[0].rpartition(" ")[2])
    asked = compared(smallest, **others).layouts[-1]
    assert max(package.operations for package in asked.packages) <= budget
    with pytest.raises(PlanError, match=rf"'{stage}' in {smallest - 1} segments does not keep"):
        compared(smallest - 1)


def test_weights_have_a_budget_too():
    with pytest.raises(
        PlanError, match=r"'transformer' in 1 segments does not keep the budget of 1,500 bytes of weights"
    ):
        compare(separating(), plan=PACKAGES_PLAN, segments={"transformer": 1}, max_weight_bytes=1_500)
