"""The register, and that nothing in it goes untested."""

from pathlib import Path

import pytest

from splitter.diagnosis import Severity, rules
from splitter.diagnosis.__main__ import page
from splitter.diagnosis.rules import rule

from . import test_artefacts, test_compiling, test_engine, test_half, test_limits, test_load, test_ranges

PAGE = Path(__file__).parents[2] / "docs" / "doctor-rules.md"
# With tests of their own kind: they need a label, or a package that the builder cannot write.
BY_THEMSELVES = {
    "engine-flexible",
    "load-rank",
    "load-no-input",
    "load-empty",
    "load-state",
    "load-links",
    *(name for name in rules() if name.startswith("requested-")),
}
CASES = [
    case
    for module in (test_artefacts, test_compiling, test_engine, test_half, test_limits, test_load, test_ranges)
    for case in module.CASES
]


@pytest.mark.parametrize("name", rules())
def test_every_rule_is_seen_to_find_and_to_leave_alone(name):
    finds = {bool(case.finds) for case in CASES if case.rule == name}
    assert finds == {True, False} or (name in BY_THEMSELVES and not finds)


def test_every_case_is_of_a_rule():
    assert {case.rule for case in CASES} <= rules().keys()


@pytest.mark.parametrize("one", rules().values(), ids=rules().keys())
def test_every_rule_says_what_it_must(one):
    assert one.source.startswith("https://")
    assert one.fix.endswith(".")
    assert one.why.endswith(".")
    assert one.title[0].islower()
    assert not one.title.endswith(".")


def test_an_id_is_given_once():
    taken = rules()["engine-rank"]
    with pytest.raises(ValueError, match="'engine-rank' is registered already"):
        rule(taken.id, Severity.INFO, title="t", why="w", fix="f", source="s")(taken.check)
    assert rules()["engine-rank"] is taken


def test_severities_are_ordered():
    assert [one for one in Severity if one.reaches(Severity.WARNING)] == [Severity.ERROR, Severity.WARNING]


def test_the_published_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run `make doctor-rules`"
