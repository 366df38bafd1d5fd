"""What to do first: grouped by cause, ranked by what it costs, and short enough to be read."""

import io

import pytest
from rich.console import Console

from splitter.cli.tables import doctor_tables
from splitter.diagnosis import Severity, examine
from splitter.diagnosis.advice import MOST_ACTIONS

from .harness import f16, mb, package

LINES = 40


def convs(x):
    """A large convolution behind an axis too long, a small one behind a kernel too large, one in fp32 behind both."""
    long = mb.conv(x=x, weight=f16(8, 4, 1, 1))
    wide = mb.conv(x=mb.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[1, 4, 1, 64]), weight=f16(8, 4, 1, 14))
    both = mb.conv(x=x, weight=f16(8, 4, 1, 14))
    return long, wide, both


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return examine(package(convs, {"x": f16(1, 4, 1, 20000)}, tmp_path_factory.mktemp("advice")))


def test_a_cause_costs_what_it_alone_keeps_off_the_engine(report):
    (diagnosis,) = report.diagnoses
    long, wide, both = 2 * 8 * 20000 * 4, 2 * 8 * 51 * 4 * 14, 2 * 8 * 19987 * 4 * 14
    total = diagnosis.placement.flops
    assert total == long + wide + both
    costs = {cause.rule.id: cause.flop_share for cause in report.causes}
    assert costs["engine-extent"] == pytest.approx(long / total)
    assert costs["engine-kernel"] == pytest.approx(wide / total)
    assert diagnosis.refused_flops[frozenset({"engine-extent", "engine-kernel"})] == both


def test_the_costliest_is_first_and_errors_are_before_it(report, tmp_path):
    assert [cause.rule.id for cause in report.causes][:2] == ["engine-extent", "engine-kernel"]
    assert [action.causes[0].rule.id for action in report.actions][:2] == ["engine-extent", "engine-kernel"]
    path = package(
        lambda x: (*convs(x), mb.pad(x=x, pad=[1, 1, 0, 0, 0, 0], mode="reflect")), {"x": f16(1, 4, 1, 20000)}, tmp_path
    )
    assert examine(path).causes[0].rule.id == "load-padding"
    assert examine(path).actions[0].do.startswith("Transpose the axis to the end")


def test_a_foreign_package_is_told_no_options_of_a_build(report):
    assert not any("--for" in action.do for action in report.actions)
    assert report.actions[0].do == "Fold the long axis into two"


def test_causes_that_only_inform_are_no_reason_to_act(tmp_path):
    report = examine(package(lambda x: mb.relu(x=x), {"x": f16(1025, 1024)}, tmp_path))
    assert [cause.rule.id for cause in report.causes] == ["engine-working-set"]
    assert report.actions == ()


def test_one_option_mends_several_causes_of_a_bundle(demo_path):
    report = examine(demo_path, run=False)
    first = report.actions[0]
    assert first.do == "Build with --for ane"
    assert {cause.rule.id for cause in first.causes} == {"engine-dtype", "engine-extent", "engine-line"}
    alone = sum(cause.flop_share for cause in first.causes)
    assert first.flop_share > alone  # operations that two causes keep off count for both together alone
    assert "Build with --boundary-dtype fp16" not in [action.do for action in report.actions]  # it has no casts


def shown(report, *, everything, width=100):
    out = io.StringIO()
    Console(file=out, width=width).print(doctor_tables(report, everything=everything))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_it_fits_a_screen(demo_path, report, width):
    for found in (examine(demo_path, run=False), report):
        lines = shown(found, everything=False, width=width)
        assert len(lines) <= LINES
        assert lines[0].strip() == "Do this"
        assert lines[1].startswith("1. ")
        assert len(found.actions) <= MOST_ACTIONS


def test_all_shows_every_finding(demo_path):
    found = examine(demo_path, run=False)
    lines = "\n".join(shown(found, everything=True, width=400))
    outputs = {finding.output for diagnosis in found.diagnoses for finding in diagnosis.findings}
    assert len(outputs) > LINES
    assert all(output in lines for output in outputs)


def test_no_more_than_five_things_to_do(tmp_path):
    def much(x):
        reflected = mb.pad(x=x, pad=[1, 1], mode="reflect")
        kernel = mb.conv(x=mb.sin(x=x), weight=f16(8, 4, 1, 14))
        sliced = mb.slice_by_index(x=x, begin=[0, 0, 0, 1], end=[1, 4, 8, 64])
        strided = mb.conv(x=x, weight=f16(8, 4, 1, 1), strides=[1, 5])
        return reflected, kernel, sliced, strided, mb.softplus(x=x), mb.square(x=x)

    report = examine(package(much, {"x": f16(1, 4, 8, 64)}, tmp_path), run=False)
    assert sum(cause.rule.severity is not Severity.INFO for cause in report.causes) > MOST_ACTIONS
    assert len(report.actions) == MOST_ACTIONS


def test_json_has_both(report):
    document = report.to_dict()
    assert document["actions"][0] == {
        "do": "Fold the long axis into two",
        "rules": ["engine-extent"],
        "places": document["causes"][0]["places"],
        "flop_share": document["causes"][0]["flop_share"],
    }
    found = [finding["rule"] for package in document["packages"] for finding in package["findings"]]
    assert {cause["rule"]: cause["places"] for cause in document["causes"]} == {
        name: found.count(name) for name in found
    }


def test_what_is_sound_needs_nothing(tmp_path):
    report = examine(package(lambda x: mb.relu(x=x), {"x": f16(1, 8, 1, 32)}, tmp_path), inputs={"x": f16(1, 8, 1, 32)})
    assert (report.actions, report.causes) == ((), ())
    assert "Do this" not in "\n".join(shown(report, everything=False))
