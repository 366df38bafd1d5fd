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


def built(model, directory, inputs):
    return splitter.build(model, directory / "b", inputs=inputs).members[0]


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


def test_every_stage_has_a_second_implementation(stranger):
    golden = stranger.goldens()
    engines = splitter.Orchestrator(stranger, {segment.name: "jax" for segment in stranger.segments}).engines
    for segment in stranger.segments:
        results = engines[segment.name].run({name: golden[name] for name in segment.inputs})
        assert min(snr_db(golden[name], results[name]) for name in segment.outputs) >= 115


def test_it_is_examined_and_profiled(stranger, quick_profile):
    report = splitter.doctor(stranger)
    assert len(report.diagnoses) >= len(stranger.segments)
    profile = splitter.profile(stranger, runs=1)
    assert profile.samples is None
    assert [one.name for one in profile.segments] == [one.name for one in stranger.segments]
    assert all(one.flops > 0 for one in profile.segments)


def test_the_report_has_no_sound(whisper, tmp_path, quick_profile):
    page = splitter.report(whisper, tmp_path / "r.html", runs=1)
    assert page.verified
    text = page.path.read_text()
    assert "transformer_1" in text
    assert "the model does not separate sound" in text


def test_taps_are_what_modules_give(stranger, tmp_path):
    taps = splitter.record_taps(stranger, out=tmp_path / "taps.safetensors")
    model = strangers.mobilevit() if "image" in stranger.inputs else strangers.whisper()
    seen = {}
    for path, module in model.named_modules():
        module.register_forward_hook(lambda m, args, result, path=path: seen.update({path: result.numpy()}))
    with torch.no_grad():
        model(torch.from_numpy(stranger.goldens()[stranger.inputs[0]]))
    shared = (seen.keys() & taps.values.keys()) - set(stranger.tensors)
    assert len(shared) > 20
    assert all(np.array_equal(taps.values[name], seen[name]) for name in shared)
    assert set(splitter.record_taps(stranger, tiny=True).values) == set(stranger.tensors)
    assert taps.about["weights"] == "as the module had them"
    report = splitter.verify_port([taps.values], stranger)
    assert report.passed
    assert report.missing == ()
    assert {tap.check.scope for tap in report.taps if tap.check.subject not in stranger.inputs} == {"local"}


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
