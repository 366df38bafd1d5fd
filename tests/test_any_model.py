"""Any unmodified module, which splitter knows nothing of: built by its example inputs, from Python and the command line."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import splitter
from splitter.cli.shell import command
from splitter.errors import CheckpointError, UsageError

from . import strangers
from .conftest import snr_db

GRAPH = {"family": "own", "outputs": ["y"], "stages": [{"name": "all", "target": "graph"}]}


def built(model, directory, inputs, **plan):
    plan = splitter.Plan.model_validate(GRAPH | plan) if plan else None
    return splitter.build(model, directory / "b", inputs=inputs, plan=plan).members[0]


def checks(report, kind):
    return {check.subject: check for check in report.checks if check.kind == kind and check.parity is not None}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return built(strangers.mobilevit(), tmp_path_factory.mktemp("vit"), {"image": strangers.image().numpy()})


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return built(strangers.whisper(), tmp_path_factory.mktemp("whisper"), {"mel": strangers.mel()})


@pytest.fixture(params=["vit", "whisper"])
def stranger(request):
    return request.getfixturevalue(request.param)


def test_stages_alternate_as_the_model_does(vit, whisper):
    assert [(stage.name, stage.target) for stage in vit.manifest.plan.stages] == [
        (name, "coreml") for name in ("cnn_1", "transformer_1", "cnn_2", "transformer_2", "cnn_3")
    ]
    assert [(stage.name, stage.modules) for stage in whisper.manifest.plan.stages] == [
        ("cnn_1", ("conv1", "conv2")),
        ("transformer_1", ("blocks", "ln_post")),
    ]


def test_it_has_no_family_and_no_sound(stranger):
    model = stranger.manifest.model
    assert (model.family, model.audio, model.checkpoint_sha256) == ("module", None, None)
    assert model.model_class.startswith("tests.strangers.")
    assert stranger.manifest.golden.audio == "example inputs, as they were given"


def test_its_packages_are_right(stranger):
    (report,) = splitter.verify(stranger)
    assert report.passed
    assert report.partition_max_abs == 0
    local = checks(report, "conversion")
    assert local.keys() == {name for segment in stranger.segments for name in segment.outputs}
    assert all(check.parity.snr_db >= 115 for check in local.values())


def test_the_goldens_are_the_models(vit):
    with torch.no_grad():
        assert np.array_equal(vit.goldens()["output"], strangers.mobilevit()(strangers.image()).numpy())
    (returned,) = vit.manifest.model.returns
    assert (returned.path, returned.tensor) == ("", "output")


def test_a_bundle_runs_in_packages(vit):
    engines = {segment.name: "mil" for segment in vit.segments}
    results = splitter.Orchestrator(vit, engines).run({"image": vit.goldens()["image"]})
    assert snr_db(vit.goldens()["output"], results["output"]) > 100


# ------------------------------------------------------------------------------------- command line

FACTORY = "from tests.strangers import whisper\n"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    (tmp_path / "factory_of_a_test.py").write_text(FACTORY)
    np.savez(tmp_path / "in.npz", mel=strangers.mel().numpy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(*arguments):
    result = CliRunner().invoke(command, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_three_commands(desk):
    typed("build", "factory_of_a_test:whisper", "--inputs", "in.npz", "-o", "w.bundle", "--no-reference")
    shown = typed("verify", "w.bundle")
    assert "transformer_1" in typed("inspect", "w.bundle")
    assert "stems" not in shown
    (bundle,) = splitter.load("w.bundle").members
    assert (bundle.manifest.model.name, bundle.manifest.golden.audio) == ("whisper", "in.npz")


def test_inputs_that_do_not_fit_are_said(desk):
    np.savez("wrong.npz", mell=np.zeros(3, np.float32))
    with pytest.raises(UsageError, match="forward needs the argument 'mel'; got mell"):
        typed("build", "factory_of_a_test:whisper", "--inputs", "wrong.npz", "-o", "w")
    with pytest.raises(CheckpointError, match="example inputs must be given"):
        typed("build", "factory_of_a_test:whisper", "-o", "w")
    assert not (desk / "w").exists()


def test_two_golden_inputs_are_one_too_many(tmp_path):
    with pytest.raises(UsageError, match="either given as inputs or made from audio"):
        splitter.build("demo", tmp_path / "b", inputs={"mix": np.zeros((1, 2, 8))}, golden_audio="song.wav")
    with pytest.raises(UsageError, match="the weights of a model of your own"):
        splitter.build("tests.strangers:whisper", tmp_path / "b", random_init=0)
