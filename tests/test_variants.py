"""Plans that list further shapes of the inputs: one bundle, one package, a function for each, all verified."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import splitter
from splitter import mil, models
from splitter.bundle.manifest import Manifest
from splitter.cli.shell import command
from splitter.errors import BoundaryError, BundleError, CaptureError, PlanError, UsageError
from splitter.plan import schema as plans
from splitter.plan.schema import Plan

from .conftest import snr_db


class Tokens(nn.Module):
    """A convolution, a table of positions of which the graph takes as many rows as there are, a layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv1d(8, 48, 3, 2, 1)
        self.positions = nn.Parameter(torch.randn(40, 48))
        self.layer = nn.Linear(48, 48)

    def forward(self, mel):
        y = self.stem(mel).transpose(1, 2)
        return torch.softmax(self.layer(y + self.positions[: y.shape[1]]), 1), y.shape[1]


def model():
    """The factory that a command line names."""
    return Tokens()


def mel(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


SHAPES = {"main": (1, 8, 60), "short": (1, 8, 32), "pair": (2, 8, 20)}
VARIANTS = tuple({"name": name, "shapes": {"mel": list(shape)}} for name, shape in SHAPES.items() if name != "main")


def planned(**changes):
    stages = ({"name": "cnn", "target": "coreml", "modules": ["stem"]},
              {"name": "rest", "target": "coreml", "modules": ["layer"]})  # fmt: skip
    settings = {"outputs": ("tokens",), "stages": stages, "variants": VARIANTS, "deployment_target": "iOS18"}
    return Plan(family="own", **(settings | changes))


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    return splitter.build(Tokens(), folder / "b", inputs={"mel": mel(*SHAPES["main"])}, plan=planned())


def test_each_variant_is_verified_from_the_one_package(bag):
    reports = splitter.verify(bag)
    assert [report.bundle.removeprefix(str(bag.path)) for report in reports] == ["", ", short", ", pair"]
    for report in reports:
        assert report.passed
        assert report.partition_max_abs == 0
        local = [check.parity.snr_db for check in report.checks if check.kind == "conversion" and check.parity]
        assert min(local) >= 115
    (bundle,) = bag.members
    shipped = sorted(path.name for path in bag.path.rglob("*.mlpackage") if "reference" not in path.parts)
    assert shipped == ["cnn.mlpackage", "rest.mlpackage"]
    for name, variant in bundle.variants.items():
        package = mil.load(bag.path / "rest.mlpackage", function_name=name)
        assert package.spec.outputs[0].shape == variant.tensors["tokens"].shape
        assert variant.manifest.model.returns[1].constant == variant.tensors["tokens"].shape[1]
    assert mil.load(bag.path / "rest.mlpackage").function.name == "main"


def test_weights_are_stored_once(bag):
    weights = bag.path / "cnn.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    alone = bag.path / "reference/cnn.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    assert weights.stat().st_size == alone.stat().st_size
    assert len(list(bag.path.rglob("weights.safetensors"))) == 1


def test_the_shapes_of_the_inputs_decide_which_variant_runs(bag):
    runner = splitter.Orchestrator(bag, {"cnn": "mil", "rest": "mil"})
    for shape in (*SHAPES.values(), SHAPES["short"]):
        given = mel(*shape)
        with torch.no_grad():
            expected = Tokens().eval()(torch.from_numpy(given))[0].numpy()
        assert snr_db(expected, runner.run({"mel": given})["tokens"]) > 115
    with pytest.raises(
        BoundaryError, match=r"no variant of the bundle: expected main \(1×8×60\), short .* found 1×8×33"
    ):
        runner.run({"mel": mel(1, 8, 33)})


def test_half_precision_and_compressed_weights(tmp_path):
    settings = {"precision": "fp16", "boundary_dtype": "fp16", "compress": "int8"}
    plan = planned(variants=VARIANTS[:1])
    bag = splitter.build(Tokens(), tmp_path / "b", inputs={"mel": mel(1, 8, 60)}, plan=plan, **settings)
    for report in splitter.verify(bag):
        assert report.passed, [check for check in report.checks if check.status == "fail"]
        assert "compression" in {check.kind for check in report.checks if check.parity}


def test_a_table_that_depends_on_a_shape_has_files_of_its_own(tmp_path):
    class Ramp(nn.Module):
        def forward(self, x):
            return x * torch.tensor([1.0 + i for i in range(x.shape[1])])

    plan = planned(stages=({"name": "all", "target": "graph"},), variants=({"name": "wide", "shapes": {"x": [1, 5]}},))
    bag = splitter.build(Ramp(), tmp_path / "b", inputs={"x": np.ones((1, 3), np.float32)}, plan=plan)
    assert all(report.passed for report in splitter.verify(bag))
    assert splitter.Orchestrator(bag).run({"x": np.ones((1, 5), np.float32)})["tokens"].tolist() == [[1, 2, 3, 4, 5]]


def test_a_function_that_is_not_there_is_found(bag):
    (bundle,) = bag.members
    content = bundle.manifest.model_dump(mode="json")
    content["variants"][0]["segments"][0]["artifact"]["function"] = "long"
    changed = splitter.Bundle(bundle.path, Manifest.model_validate(content))
    with pytest.raises(UsageError, match="function"):
        splitter.Orchestrator(changed.variants["short"], {"cnn": "mil"})
    content["variants"][0]["segments"][0]["artifact"]["path"] = "other.mlpackage"
    with pytest.raises(BundleError, match=r"other\.mlpackage"):
        splitter.Bundle._of(bundle.path, content, check_hashes=False)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"deployment_target": "iOS17"}, PlanError, "3 functions in a package, which needs iOS18; got iOS17"),
        ({"variants": ({"name": "a", "shapes": {"mel": [1, 8]}},)}, UsageError, "gives the input 'mel' 2 axes"),
        ({"variants": ({"name": "a", "shapes": {"mell": [1, 8, 9]}},)}, UsageError, "no array of this name"),
        ({"variants": ({"name": "a", "shapes": {"mel": [1, 7, 60]}},)}, CaptureError, "fails on the example inputs"),
    ],
)
def test_variants_that_cannot_be_are_said(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        splitter.build(Tokens(), tmp_path / "b", inputs={"mel": mel(1, 8, 60)}, plan=planned(**changes))
    assert not (tmp_path / "b").exists()


def test_names_of_variants_are_distinct():
    with pytest.raises(ValueError, match="two variants share a name: main, main; 'main' is the example's"):
        planned(variants=({"name": "main", "shapes": {"mel": [1, 8, 9]}},))


def test_a_separator_has_one_length(tmp_path):
    plan = plans.changed(models.presets()["htdemucs"], variants=VARIANTS, deployment_target="iOS18")
    with pytest.raises(PlanError, match="a separator has one length of run"):
        splitter.build("demo", tmp_path / "d", plan=plan)


def test_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("in.npz", mel=mel(1, 8, 60))
    plans.save(planned(variants=VARIANTS[:1]), tmp_path / "plan.toml")
    assert "[[variants]]" in (tmp_path / "plan.toml").read_text()
    for arguments in (
        [
            "build",
            "tests.test_variants:model",
            "--inputs",
            "in.npz",
            "--plan",
            "plan.toml",
            "-o",
            "b",
            "--no-reference",
        ],
        ["verify", "b"],
    ):
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert "b, short" in result.output
    shown = CliRunner().invoke(command, ["inspect", "b"], catch_exceptions=False).output
    assert "variants: main (1×8×60), short (1×8×32)" in shown
