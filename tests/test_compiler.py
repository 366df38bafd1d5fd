"""The pipeline as a whole: what a build takes, leaves and refuses."""

import json
from importlib import resources

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import splitter
from splitter import compiler, mil, models, opening, passes
from splitter.bundle.directory import load
from splitter.diagnosis import examine
from splitter.errors import AudioError, CheckpointError, PartitionError, PlanError, UsageError
from splitter.plan import schema as plans
from splitter.runtime.engines import engine
from splitter.separation.separator import Options, Separator

from .conftest import snr_db
from .hostile import NAMES
from .toys import GRAPHS_PLAN, HYBRID_PLAN, Hybrid, duo, separating

DEMO = resources.files("splitter_weights.demo") / "demo.safetensors"


@pytest.mark.slow
def test_bag_becomes_one_bundle_a_member(tmp_path, song_path):
    """As ``htdemucs_ft``: every member in full, averaged stem by stem."""
    with safe_open(str(DEMO), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(str(DEMO))
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    tensors["tdecoder.3.conv_tr.bias"] += 0.01
    save_file(tensors, tmp_path / "b.safetensors", metadata)
    (tmp_path / "pair.yaml").write_text("models: [a, b]\nweights: [[1., 0., 1., 1.], [0., 1., 1., 1.]]")
    said = []
    preset = models.presets()["htdemucs"]  # without packages, which take long to convert and say nothing of bags
    stages = [one.model_copy(update={"target": "graph"}) if one.target == "coreml" else one for one in preset.stages]
    plan = plans.changed(preset, stages=stages)
    bag = splitter.build(tmp_path / "pair.yaml", tmp_path / "out", plan=plan, progress=said.append)
    assert [member.path.name for member in bag.members] == ["a", "b"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["members"] == ["a", "b"]
    assert "b: capturing the graph" in said
    assert load(tmp_path / "out", check_hashes=True).name == "pair"
    (outcome,) = Separator(bag, "default", options=Options(shifts=0)).separate([song_path], tmp_path / "stems")
    assert outcome.error is None
    assert outcome.stems["bass"] == tmp_path / "stems" / "pair" / "song" / "bass.wav"


def test_module_of_the_users_own(tmp_path):
    """Any module with demucs's four attributes, and a plan for it."""
    model = separating()
    (bundle,) = splitter.build(model, tmp_path / "b", plan=HYBRID_PLAN).members
    assert bundle.manifest.model.name == "hybrid"
    mix = torch.randn(1, 2, 64)
    restored = splitter.Orchestrator(bundle).run({"mix": mix.numpy()})["restored"]
    assert np.array_equal(restored, model(mix).detach().numpy())
    with pytest.raises(CheckpointError, match="of no installed model family.*inputs.*needs the attributes sources"):
        splitter.build(Hybrid(), tmp_path / "c", plan=HYBRID_PLAN)


def test_a_model_is_called_as_asked(tmp_path):
    bag = splitter.build(duo(), tmp_path / "b", plan=GRAPHS_PLAN, name="mine")
    assert (bag.name, bag.members[0].manifest.model.name) == ("mine", "mine")
    assert Separator(bag, "default").home(tmp_path) == tmp_path / "mine"
    with pytest.raises(UsageError, match="'a/b' cannot be the name of a model: it holds '/'"):
        splitter.build(duo(), tmp_path / "c", plan=GRAPHS_PLAN, name="a/b")
    several = opening.renamed(models.Ensemble("pair", (models.Model("a", None), models.Model("b", None)), ()), "mine")
    assert (several.name, [member.name for member in several.members]) == ("mine", ["a", "b"])


def test_recorded_plan_repeats_the_build(demo_bundle):
    plan = demo_bundle.manifest.plan
    assert plan.segment_samples == 66_150
    assert plans.Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize("kind", NAMES)
def test_stems_that_cannot_be_files_are_refused_before_anything_is_captured(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(compiler, "capture", lambda *given: pytest.fail("it has begun"))
    model = duo()
    model.sources = ["kept", NAMES[kind]]
    with pytest.raises(CheckpointError, match="the stems of model 'duo' cannot be written to files"):
        splitter.build(model, tmp_path / "b", plan=GRAPHS_PLAN)
    assert not [*tmp_path.iterdir()]


def test_stems_that_would_be_one_file_are_refused(tmp_path):
    model = duo()
    model.sources = ["kept", "Kept"]
    with pytest.raises(CheckpointError, match="'kept' and 'Kept' are one file on some systems"):
        splitter.build(model, tmp_path / "b", plan=GRAPHS_PLAN)


def test_what_goldens_were_recorded_of_hides_nothing(tmp_path):
    track = tmp_path / "a\x1b[2J.wav"
    soundfile.write(track, np.random.default_rng(0).uniform(-0.5, 0.5, (200, 2)), 8000)
    bag = splitter.build(duo(), tmp_path / "b", plan=GRAPHS_PLAN, golden_audio=track)
    assert bag.members[0].manifest.golden.audio == r"a\x1b[2J.wav"


def test_silent_golden_audio_is_refused(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "silence.wav", np.zeros((100_000, 2)), 44_100)
    with pytest.raises(AudioError, match="golden input is silent: silence.wav"):
        splitter.build(duo(), tmp_path / "b", plan=GRAPHS_PLAN, golden_audio=tmp_path / "silence.wav")
    assert {file.name for file in tmp_path.iterdir()} == {"silence.wav"}


def test_cut_that_changes_a_bit_is_caught(monkeypatch, tmp_path):
    """Invariant: partitioning is exact, or there is no bundle."""
    from splitter import compiler

    original = compiler.partition

    def careless(program, plan):
        parts = original(program, plan)
        transformer = parts.segments[2].program
        node = next(n for n in transformer.operators if n.target is torch.ops.aten.relu.default)
        node.target = torch.ops.aten.abs.default
        return parts

    monkeypatch.setattr(compiler, "partition", careless)
    with pytest.raises(
        PartitionError, match=r"another 'mix_\w+' than the whole graph: expected max \|Δ\| = 0, found max \|Δ\|"
    ):
        splitter.build(separating(), tmp_path / "b", plan=HYBRID_PLAN)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def for_ane(tmp_path_factory):
    """The demo model folded; in float32, so that folding alone makes the difference."""
    path = tmp_path_factory.mktemp("ane") / "ane.bundle"
    chosen = [name for name in passes.preset("ane") if name != "means-in-stages"]
    return splitter.build("demo", path, passes=chosen, reference=False).members[0]


@pytest.mark.slow
def test_packages_for_the_engine_have_no_long_axis(for_ane, demo_bundle):
    for name in ("encoder", "decoder"):
        model = mil.load(for_ane.path / f"{name}.mlpackage")
        shapes = [feature.shape for feature in model.spec.inputs + model.spec.outputs]
        shapes += [output.type.shape for one in model.function.block.operations for output in one.outputs]
        assert max(extent for shape in shapes for extent in shape) <= 16_384
    assert max(demo_bundle.tensors["waveform"].shape) > 16_384, "else this shows nothing"
    assert for_ane.tensors["waveform"].fold is not None
    assert for_ane.tensors["waveform"].shape == demo_bundle.tensors["waveform"].shape
    assert for_ane.tensors["spectrogram"].fold is None
    report = examine(for_ane.path)
    assert all(one.measured for one in report.diagnoses)
    assert report.flop_share(in_half=True) == 1
    assert examine(demo_bundle.path, run=False).flop_share(in_half=True) < 1


@pytest.mark.slow
def test_folded_packages_equal_unfolded_ones(for_ane, demo_bundle):
    golden = demo_bundle.goldens()
    for name in ("encoder", "decoder"):
        segment = demo_bundle.segment(name)
        given = {one: golden[one] for one in segment.inputs}
        plain, folded = (
            engine("mil")(one, one.segment(name), compute_units="ALL").run(given) for one in (demo_bundle, for_ane)
        )
        for one in segment.outputs:
            assert snr_db(plain[one], folded[one]) >= 115, one


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optimise_for": "ane"}, ("fp16", 8)),
        ({"optimise_for": "ane", "precision": "fp32"}, ("fp32", 8)),
        ({"optimise_for": "ane", "passes": ["means-in-stages"]}, ("fp16", 1)),
        ({"precision": "fp16"}, ("fp16", 3)),
        ({}, ("fp32", 1)),
        ({"passes": []}, ("fp32", 0)),
    ],
    ids=str,
)
def test_passes_follow_from_purpose_and_precision(tmp_path, settings, expected):
    (bundle,) = splitter.build(separating(), tmp_path / "b", plan=HYBRID_PLAN, reference=False, **settings).members
    plan = bundle.manifest.plan
    assert (plan.precision, len(plan.graph_passes)) == expected


@pytest.mark.parametrize("settings", [{"passes": ["no-such-pass"]}, {"optimise_for": "gpu"}], ids=str)
def test_unknown_passes_are_refused_before_anything_is_loaded(tmp_path, settings):
    with pytest.raises(PlanError, match="There are: "):
        splitter.build("no-such-model", tmp_path / "out", **settings)
