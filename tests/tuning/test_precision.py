"""Precision chosen by measurement, on a toy of three packages."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import splitter
from splitter import cli
from splitter.errors import PlanError
from splitter.mil.mixing import can_be_half, in_half, roundtrip_fp16
from splitter.mil.program import Ref, read_by
from splitter.plan import schema as plans
from splitter.tuning.plot import draw
from splitter.tuning.precision import PrecisionSearch, cut, tune
from splitter.tuning.sensitivity import measure
from splitter.tuning.trial import Trial, excerpts

from ..conftest import snr_db
from ..toys import PACKAGES_PLAN, Hybrid, separating


@pytest.fixture(scope="module")
def noise_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("songs") / "noise.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (200, 2)), 8000, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def trial(tmp_path_factory, noise_path):
    (bundle,) = splitter.build(
        separating(), tmp_path_factory.mktemp("toy") / "b", plan=PACKAGES_PLAN, reference=False
    ).members
    return Trial(bundle, excerpts([noise_path], bundle))


@pytest.fixture(scope="module")
def search(trial):
    return PrecisionSearch(trial)


@pytest.fixture(scope="module")
def built(tmp_path_factory, noise_path):
    choice = tune(separating(), min_snr_db=75, on=[noise_path], plan=PACKAGES_PLAN)
    (bundle,) = splitter.build(separating(), tmp_path_factory.mktemp("chosen") / "b", plan=choice.plan).members
    return bundle, choice


def test_excerpts_are_spread_over_a_song_and_normalised_as_separate_does(trial, noise_path):
    assert [one.name for one in trial.excerpts] == ["noise.wav at 0.0 s", "noise.wav at 0.0 s"]
    first, last = (one.mixture for one in trial.excerpts)
    sound = soundfile.read(noise_path, dtype="float32")[0].T
    for got, expected in ((first, sound[:, :64]), (last, sound[:, -64:])):
        mono = expected.mean(0)
        np.testing.assert_allclose(got, (expected - mono.mean()) / mono.std(ddof=1), rtol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_cut_is_the_best_of_all_subsets(seed):
    random = np.random.default_rng(seed)
    operations = [("s", str(one)) for one in range(8)]
    costs = dict(zip(operations, random.uniform(0.1, 1, 8), strict=True))
    groups = [
        (frozenset(operations[one] for one in random.choice(8, random.integers(1, 4), replace=False)), noise)
        for noise in random.uniform(0, 1, 10)
    ]
    price = float(random.uniform(0.2, 3))

    def total(kept):
        rounded = sum(noise for touched, noise in groups if not touched <= kept)
        return sum(costs[one] for one in kept) + price * rounded

    subsets = (frozenset(some) for count in range(9) for some in itertools.combinations(operations, count))
    assert total(cut(costs, groups, price)) == pytest.approx(min(map(total, subsets)), rel=1e-6)


def test_noise_of_a_group_is_what_rounding_it_does_at_the_outputs(trial):
    """By hand for the last package, whose outputs are a step from the model's."""
    groups = [one for one in measure(trial, lambda step: None) if one.segment == "decoder"]
    function = trial.packages["decoder"].function
    alone = {one.values: trial.snr_db({"decoder": roundtrip_fp16(function, one.values)})[0] for one in groups}
    factors = [one.noise * 10 ** (alone[one.values] / 10) for one in groups if one.noise > 0]
    assert len(factors) >= 3
    assert max(factors) / min(factors) == pytest.approx(1, abs=0.3)  # one factor scales them all


def test_noises_of_a_package_add_up_to_what_all_of_it_in_half_makes(trial):
    groups = measure(trial, lambda step: None)
    for name, package in trial.packages.items():
        half = in_half(package.function, {one.name for one in can_be_half(package.function)})
        together = 10 ** (-trial.snr_db({name: half})[0] / 10)
        assert sum(one.noise for one in groups if one.segment == name) == pytest.approx(together, rel=1e-3)


class TwoWays(Hybrid):
    """The encoder's second output hardly counts for the result."""

    def __init__(self):
        super().__init__()
        self.side = nn.Conv1d(2, 2, 1)

    def forward(self, mix):
        y = self.down(mix)
        return self.up(self.mix(y.transpose(1, 2)).transpose(1, 2)) + 1e-4 * self.side(mix)


def test_noise_at_each_output_is_weighed_by_what_it_does(tmp_path, noise_path):
    stages = [
        stage.model_copy(update={"modules": ("down", "side")}) if stage.name == "encoder" else stage
        for stage in PACKAGES_PLAN.stages
        if stage.name != "analysis"
    ]
    plan = plans.changed(PACKAGES_PLAN, stages=stages, tensors=[])
    (bundle,) = splitter.build(separating(TwoWays()), tmp_path / "b", plan=plan, reference=False).members
    trial = Trial(bundle, excerpts([noise_path], bundle))
    function = trial.packages["encoder"].function
    for one in measure(trial, lambda step: None):
        if one.segment == "encoder" and one.noise > 0:
            alone = -trial.snr_db({"encoder": roundtrip_fp16(function, one.values)})[0]
            assert 10 * np.log10(one.noise) == pytest.approx(alone, abs=6)


def test_groups_hold_what_is_moved_and_all_that_touches_it(trial):
    groups = [one for one in measure(trial, lambda step: None) if one.segment == "transformer"]
    operations = can_be_half(trial.packages["transformer"].function)
    touching = {
        one.name: {argument.name for argument in read_by(one) if isinstance(argument, Ref)}
        | {output.name for output in one.outputs}
        for one in operations
    }
    for group in groups:
        assert group.touched_by == {name for name, values in touching.items() if values & group.values}
    moved = [one for one in operations if one.type in ("transpose", "reshape")]
    assert moved
    for one in moved:
        (given,) = (argument.name for argument in one.inputs["x"])
        assert any({given, one.name} <= group.values for group in groups), one.name


class Normed(nn.Module):
    """A convolution and a norm of two groups, written out: its statistics are a 64th of the values, and no less."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 8, 4, 4)

    def forward(self, x):
        y = self.conv(x).reshape(1, 2, -1)
        y = y - y.mean(2, keepdim=True)
        return (y * torch.rsqrt(y.square().mean(2, keepdim=True) + 1e-5)).reshape(1, 8, -1)


def test_statistics_of_a_norm_are_rounded_together_and_its_values_one_by_one(tmp_path, noise_path):
    model = Hybrid()
    model.down = Normed()
    (bundle,) = splitter.build(separating(model), tmp_path / "b", plan=PACKAGES_PLAN, reference=False).members
    trial = Trial(bundle, excerpts([noise_path], bundle))
    (root,) = (one for one in trial.packages["encoder"].operations if one.type == "rsqrt")
    group_of = {value: one.values for one in measure(trial, lambda step: None) for value in one.values}
    (variance,) = (argument.name for argument in root.inputs["x"])
    assert variance in group_of[root.outputs[0].name]
    (product,) = (
        one
        for one in trial.packages["encoder"].operations
        if any(isinstance(value, Ref) and value.name == root.outputs[0].name for value in read_by(one))
    )
    large = [argument.name for many in (product.inputs["x"], product.inputs["y"]) for argument in many]
    large = {*large, product.outputs[0].name} - {root.outputs[0].name}
    assert len(large) == 2
    assert len({group_of[name] for name in (*large, variance)}) == 3


def test_choices_grow_from_nothing_to_everything(search):
    assert search.candidates[0] == frozenset()
    assert all(low < high for low, high in itertools.pairwise(search.candidates))
    frontier = search.frontier()
    assert frontier[0].fp32_operations == 0
    assert frontier[-1].fp32_operations == frontier[-1].operations
    assert (frontier[0].fp16_flops, frontier[-1].fp16_flops) == (1, 0)
    assert frontier[0].worst_db < 70
    assert frontier[-1].worst_db > 110


def test_no_rule_of_thumb_is_above_the_frontier(search):
    frontier = search.frontier()
    for rule in search.rules():
        if rule.fp16_flops == 1:  # a rule that keeps no convolution beside choices that do is another question
            affordable = [one for one in frontier if one.fp32_operations <= rule.fp32_operations]
            assert max(one.worst_db for one in affordable) >= rule.worst_db - 0.5, rule


def test_target_is_reached_by_the_packages_that_were_built(built, noise_path):
    bundle, choice = built
    assert 0 < choice.chosen.fp32_operations < choice.chosen.operations
    assert choice.chosen.fp32_operations == sum(map(len, bundle.manifest.plan.fp32_operations.values()))
    heard = excerpts([noise_path], bundle)
    engines = {"encoder": "mil", "transformer": "mil", "decoder": "mil"}
    for one, said in zip(heard, choice.chosen.snr_db, strict=True):
        mix = {"mix": one.mixture[None]}
        got = splitter.Orchestrator(bundle, engines).run(mix)["restored"]
        snr = snr_db(splitter.Orchestrator(bundle).run(mix)["restored"], got)
        assert snr == pytest.approx(said, abs=0.01)
        assert snr >= 75


def test_fewer_operations_would_not_do(built, trial, search):
    """Dropping any of the chosen ones alone may; what the next cheaper choice on the way has, may not."""
    _, choice = built
    cheaper = [one for one in search.candidates if len(one) < choice.chosen.fp32_operations]
    assert all(search.point("", one).worst_db < 76 for one in cheaper)


def test_plan_repeats_the_build(built, tmp_path):
    bundle, _ = built
    plans.save(bundle.manifest.plan, tmp_path / "plan.toml")
    (again,) = splitter.build(separating(), tmp_path / "b", plan=plans.load(tmp_path / "plan.toml")).members
    weights = {name: file.sha256 for name, file in again.manifest.files.items() if name.endswith("weight.bin")}
    assert weights == {name: bundle.manifest.files[name].sha256 for name in weights}
    assert again.manifest.plan == bundle.manifest.plan


@pytest.mark.slow
def test_half_precision_boundaries_are_made_up_for(noise_path):
    choice = tune(separating(), min_snr_db=66, on=[noise_path], plan=PACKAGES_PLAN, boundary_dtype="fp16")
    assert choice.plan.boundary_dtype == "fp16"
    assert choice.chosen.worst_db >= 66  # what simulation alone takes for enough gives 65.3


def test_out_of_reach_is_said_with_the_best_and_leaves_nothing(tmp_path, noise_path):
    (tmp_path / "plan.toml").write_text("an older one")
    with pytest.raises(PlanError, match=r"best SNR found is 1\d\d\.\d dB, with (\d+) of \1 .*: expected 500 dB"):
        tune(separating(), min_snr_db=500, on=[noise_path], plan=PACKAGES_PLAN, out=tmp_path / "plan.toml")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("plan.toml", "an older one")]


def test_choice_is_drawn(built, tmp_path):
    draw(built[1], tmp_path / "frontier.svg")
    picture = (tmp_path / "frontier.svg").read_text()
    assert "<svg" in picture
    with pytest.raises(splitter.errors.UsageError, match="wrong suffix"):
        draw(built[1], tmp_path / "frontier.nonsense")


def test_command_line(monkeypatch, capsys, tmp_path, built):
    _, choice = built
    asked = {}
    monkeypatch.setattr("splitter.tuning.precision.tune", lambda model, **options: asked.update(options) or choice)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["splitter", "tune", "precision", "demo", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, capsys.readouterr()

    arguments = ["--min-snr", "75", "--on", "a.wav", "--on", "b.wav", "-o", "plan.toml", "--plot", "a.svg"]
    code, printed = run(*arguments, "--json")
    assert not code
    document = json.loads(printed.out)
    assert document["plan"] == "plan.toml"
    assert document["precision"]["chosen"]["fp32_operations"] == choice.chosen.fp32_operations
    assert (asked["min_snr_db"], asked["on"]) == (75, (Path("a.wav"), Path("b.wav")))
    assert (asked["out"], asked["plot"], asked["plan"]) == (Path("plan.toml"), Path("a.svg"), None)
    code, printed = run(*arguments)
    assert "Precision for 75 dB" in printed.out
    for left_out in ("--min-snr", "--on", "-o"):
        at = arguments.index(left_out)
        rest = [
            value
            for value in arguments[:at] + arguments[at + 2 :]
            if left_out != "--on" or value not in ("--on", "b.wav")
        ]
        code, printed = run(*rest)
        assert code == 2
        assert left_out in printed.err


def test_what_cannot_be_written_is_said_before_anything_is_searched(tmp_path, monkeypatch):
    monkeypatch.setattr("splitter.compiler.build", lambda *given, **options: pytest.fail("it has begun"))
    plan = tmp_path / "plan.toml"
    for out, plot in ((tmp_path, None), (plan, Path("a.txt")), (plan, tmp_path / "no" / "a.svg")):
        with pytest.raises(
            splitter.errors.UsageError,
            match=r"(has the wrong suffix: expected \.svg or|cannot be written|is no regular file)",
        ):
            tune("demo", min_snr_db=75, on=[], out=out, plot=plot)
    assert not plan.exists()


@pytest.mark.slow
def test_plan_and_picture_are_written(noise_path, tmp_path, built):
    choice = tune(separating(), min_snr_db=75, on=[noise_path], plan=PACKAGES_PLAN, out=tmp_path / "plan.toml",
                  plot=tmp_path / "a.svg")  # fmt: skip
    assert plans.load(tmp_path / "plan.toml") == choice.plan == built[0].manifest.plan
    assert "<svg" in (tmp_path / "a.svg").read_text()
