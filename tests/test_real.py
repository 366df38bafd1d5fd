"""The released model on recorded music, where both are at hand."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from demucs.apply import apply_model
from splitter_weights import checkpoints

import splitter
from splitter import mil, models, passes, reporting, verify
from splitter.bundle.directory import load
from splitter.diagnosis import examine
from splitter.mil import ops
from splitter.plan import schema as plans
from splitter.runtime.engines import engine
from splitter.separation.audio import statistics
from splitter.separation.encoding import Encoding
from splitter.separation.separator import Options, Separator
from splitter.tuning import compression
from splitter.verification.checks import Status
from splitter.verification.port import verify_port
from splitter.verification.transformer import TappedTransformer
from splitter.verification.verify import verify_bundle

from .conftest import DATA, snr_db
from .verification.test_port import by_jax, by_numpy

pytestmark = pytest.mark.real
CHECKPOINT = DATA / "models" / "htdemucs" / "955717e8.safetensors"
# Mixture stream as input, overlap 0.25, no shifts; dB (the data's own README).
REFERENCE_SDR = {"drums": 10.36, "bass": 3.40, "other": 0.82, "vocals": 5.08}


@pytest.fixture(scope="module")
def real_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("real") / "real.bundle"
    music = DATA / "audio" / "falcon69_mix.flac"
    command = [Path(sys.executable).with_name("splitter"), "build", CHECKPOINT, "-o", path, "--golden-audio", music]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def model():
    return checkpoints.load(CHECKPOINT).members[0].model


@pytest.fixture(scope="module")
def expected(model):
    """demucs's stems of a file, on the samples as splitter decodes them."""
    made = {}

    def of(name, track):
        if name not in made:
            wav = torch.from_numpy(np.concatenate(list(track.blocks()), axis=1))
            mono = wav.mean(0)
            mean, std = mono.mean(), mono.std() + 1e-8
            made[name] = (
                apply_model(model, ((wav - mean) / std)[None], shifts=0, overlap=0.25)[0] * std + mean
            ).numpy()
        return made[name]

    return of


def test_build_and_verify_pass(real_path):
    (report,) = verify(load(real_path))
    assert report.passed
    assert report.same_machine
    assert report.partition_max_abs == 0
    assert {check.kind for check in report.checks} == {
        "files",
        "partition",
        "golden",
        "host",
        "kernels",
        "artifact",
        "conversion",
        "precision",
        "compression",
        "finite",
        "package",
        "coreml",
    }
    kernels = [check.parity.snr_db for check in report.checks if check.kind == "kernels"]
    assert len(kernels) == 4
    assert min(kernels) >= 110


def test_segments_in_order_equal_the_model_bit_for_bit(real_path, model):
    bundle = splitter.Bundle.load(real_path)
    mix = torch.randn(1, 2, bundle.audio.samples, generator=torch.Generator().manual_seed(1))
    stems = splitter.Orchestrator(bundle).run({"mix": mix.numpy()})["stems"]
    assert np.array_equal(stems, model(mix).detach().numpy())


def test_inspect_shows_the_four_stem_boundaries(real_path):
    command = [Path(sys.executable).with_name("splitter"), "inspect", real_path, "--json"]
    manifest = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["members"][0]["manifest"]
    shapes = {tensor["name"]: tensor["shape"] for tensor in manifest["tensors"]}
    assert shapes["freq_encoded"] == [1, 512, 8, 336]
    assert shapes["skip_freq_3"] == [1, 384, 8, 336]
    assert shapes["stem_spectrograms"] == [1, 16, 2048, 336]
    assert manifest["model"]["audio"]["stems"] == ["drums", "bass", "other", "vocals"]
    stored = {name: record["bytes"] for name, record in manifest["files"].items() if name.endswith("weight.bin")}
    encoder = next(size for name, size in stored.items() if name.startswith("encoder"))
    assert encoder < 14e6, "the frequency embedding was folded at its broadcast size"


def test_report_is_small_and_tells_of_the_stems(real_path, tmp_path):
    findings = reporting.gather(splitter.Bundle.load(real_path), runs=0)
    assert reporting.write(findings, tmp_path / "report.html") <= 15_000_000
    assert findings.verification.passed
    assert findings.chain.worst_stem.accumulated.snr_db > 100
    assert not findings.chain.taps
    assert findings.listening.title == "falcon69_mix.flac"
    assert {one.name for one in findings.listening.stems if one.gain_db > 80} == set(REFERENCE_SDR)


@pytest.fixture(scope="module")
def six_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("six") / "six.bundle"
    splitter.build("htdemucs_6s", path, random_init=0, reference=False)
    return path


@pytest.mark.parametrize("bundle", ["real_path", "six_path"])
def test_the_kernels_agree_with_the_captured_model_at_every_tap(request, bundle):
    loaded = splitter.Bundle.load(request.getfixturevalue(bundle))
    model = TappedTransformer(loaded)
    for run in (by_numpy, by_jax):
        kept = {}
        run(model, lambda name, value, kept=kept: kept.update({name: np.array(value)}))
        report = verify_port([kept], loaded)
        assert report.passed
        assert len(report.taps) == len(model.taps)
        # Music drives some logits to 770, where two float32 attentions differ at 110 dB: report.passed is about those.
        others = [one.check for one in report.taps if not one.check.subject.endswith(".heads")]
        assert min(check.parity.snr_db for check in others) >= 120
        assert min(one.accumulated.snr_db for one in report.taps if one.check.subject.startswith("output")) >= 110


def in_half(path, **settings):
    """Encoder, transformer and decoder as packages in half precision, with a golden of recorded music."""
    preset = models.presets()["htdemucs"]
    stages = [s.model_copy(update={"target": "coreml"}) if s.name == "transformer" else s for s in preset.stages]
    plan = plans.changed(preset, stages=stages, precision="fp16", **settings)
    return splitter.build(CHECKPOINT, path, plan=plan, golden_audio=DATA / "audio" / "falcon69_mix.flac").members[0]


@pytest.fixture(scope="module")
def all_half(tmp_path_factory):
    """As it was before there was a pass for norms."""
    return in_half(tmp_path_factory.mktemp("half") / "half.bundle", passes=["keep-broadcasts-small"])


@pytest.fixture(scope="module")
def safe_half(tmp_path_factory):
    return in_half(tmp_path_factory.mktemp("safe") / "safe.bundle")


def test_the_collapse_of_half_precision_is_found_and_explained(all_half):
    report = verify_bundle(all_half)
    assert not report.passed
    found = {(check.kind, check.subject): check for check in report.checks}
    assert found["package", "stems"].parity.snr_db < 0
    assert all(check.parity.snr_db >= 115 for check in report.checks if check.kind == "conversion"), (
        "it is no converter's"
    )
    first = report.overflows[0]
    assert (first.segment, first.operation, first.boundary) == ("encoder", "square", "skip_freq_0")
    inside = [one for one in report.overflows if one.segment == "transformer"]
    assert {(one.operation, one.boundary) for one in inside} >= {
        ("square", "freq_transformed"),
        ("square", "time_transformed"),
    }
    for segment in ("encoder", "transformer"):
        assert found["finite", segment].status is Status.FAIL
        outputs = next(one.outputs for one in all_half.segments if one.name == segment)
        assert all(found["precision", name].parity.finite for name in outputs), "infinities that no output shows"


def test_the_doctor_names_what_overflows_and_counts_what_fits(all_half):
    """The squares that verification finds one after the other, and shares of FLOPs before any axis is folded."""
    report = examine(all_half.path)
    found = {
        (Path(one.package).stem, finding.output): finding.what
        for one in report.diagnoses
        for finding in one.findings
        if finding.rule == "range-overflow"
    }
    assert found.keys() == {
        ("encoder", "square_4_cast_fp16"),
        ("transformer", "square_8_cast_fp16"),
        ("transformer", "square_9_cast_fp16"),
    }
    assert "reaches 8.852e+04" in found["encoder", "square_4_cast_fp16"]
    shares = {Path(one.package).stem: one.placement_in_half.flop_share for one in report.diagnoses}
    assert 0.80 < shares["encoder"] < 0.83
    assert 0.88 < shares["decoder"] < 0.91
    assert shares["transformer"] == 1.0


def test_half_precision_holds_with_norms_written_out(safe_half):
    report = verify_bundle(safe_half)
    assert report.passed
    assert not report.overflows
    found = {(check.kind, check.subject): check for check in report.checks}
    assert found["package", "stems"].parity.snr_db >= 55


def test_half_accumulators_in_reductions_hold_too(safe_half, monkeypatch):
    for product in (ops.record(name, "CoreML7") for name in ("linear", "matmul")):
        whole = replace(product, traits=replace(product.traits, half_sums=None))
        monkeypatch.setitem(ops.REGISTRY, product.name, [whole])
    numerics = mil.Numerics(accumulators=mil.AccumulatorType.HALF)
    golden = safe_half.goldens()
    values = {name: golden[name] for name in ("spectrogram", "waveform")}
    for segment in safe_half.segments[1:-1]:
        model = mil.load(safe_half.path / segment.artifact.path, numerics=numerics)
        values |= model.predict({name: values[name] for name in segment.inputs})
    synthesis = safe_half.segments[-1]
    given = {name: values.get(name, golden[name]) for name in synthesis.inputs}
    stems = engine("torch")(safe_half, synthesis, compute_units="ALL").run(given)["stems"]
    assert snr_db(golden["stems"], stems) >= 50


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """The released model in float32, each time the compiler is asked for something else."""
    made = {}

    def of(**settings):
        if (key := repr(settings)) not in made:
            out, music = tmp_path_factory.mktemp("rebuilt") / "b", DATA / "audio" / "falcon69_mix.flac"
            bag = splitter.build(CHECKPOINT, out, precision="fp32", golden_audio=music, reference=False, **settings)
            made[key] = bag.members[0]
        return made[key]

    return of


def predicted(bundle, name):
    """A segment's package, and what it gives for its golden input."""
    record, golden, specs = bundle.segment(name), bundle.goldens(), bundle.tensors
    model = mil.load(bundle.path / record.artifact.path)
    results = model.predict({key: specs[key].packaged(golden[key]) for key in record.inputs})
    assert results.keys() == set(record.outputs)
    return model, {key: specs[key].unpackaged(array) for key, array in results.items()}


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_folded_packages_equal_unfolded_ones(rebuilt, name):
    """No axis beyond what the Neural Engine takes; both with the other passes of its preset, so that folding alone differs."""
    ane = passes.preset("ane")
    bundle = rebuilt(passes=ane)
    model, folded = predicted(bundle, name)
    shapes = [feature.shape for feature in model.spec.inputs + model.spec.outputs]
    shapes += [output.type.shape for one in model.function.block.operations for output in one.outputs]
    assert max(extent for shape in shapes for extent in shape) <= 16_384
    _, unfolded = predicted(rebuilt(passes=[one for one in ane if one != "fold-long-axes"]), name)
    for key, array in bundle.goldens().items():
        if key in folded:
            assert snr_db(unfolded[key], folded[key]) >= 120, key
            # In float32 the decoder is 115 dB from the model, folded or not.
            assert snr_db(array, folded[key]) >= 110, key


@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS17", "iOS18"])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_packages_for_every_system_equal_the_model(rebuilt, name, target):
    bundle = rebuilt(passes=["keep-broadcasts-small"], deployment_target=target)
    _, results = predicted(bundle, name)
    for key, array in results.items():
        assert snr_db(bundle.goldens()[key], array) >= 115, key


@pytest.mark.parametrize(
    "engines",
    [{}, {"transformer": "jax"}, {"transformer": "numpy"}, {"encoder": "mil", "decoder": "mil"}],
    ids=["torch", "jax", "numpy", "mil"],
)
@pytest.mark.parametrize("name", ["falcon69_mix.flac", "slow-motion-dream.mp3"])
def test_stems_equal_demucs(real_path, expected, tmp_path, engines, name):
    options = Options(shifts=0, overlap=0.25, encoding=Encoding(subtype="FLOAT", clip="none"))
    separator = Separator(real_path, engines or "default", options=options)
    (outcome,) = separator.separate([DATA / "audio" / name], tmp_path)
    assert outcome.error is None
    track = separator.track(DATA / "audio" / name)
    for stem, one in zip(outcome.stems, expected(name, track), strict=True):
        result = soundfile.read(outcome.stems[stem], dtype="float32")[0].T
        assert snr_db(one, result) >= (110 if "encoder" in engines else 100), stem
        if name.startswith("falcon69"):
            truth = soundfile.read(DATA / "audio" / f"falcon69_{stem}.flac", dtype="float32")[0].T
            # The published figures have two decimals and another decoder; ours against demucs is exact to 0.001.
            assert snr_db(truth, result) == pytest.approx(snr_db(truth, one), abs=0.001)
            assert snr_db(truth, result) == pytest.approx(REFERENCE_SDR[stem], abs=0.01)


def test_statistics_of_a_song_are_plausible(real_path):
    track = Separator(real_path).track(DATA / "audio" / "slow-motion-dream.mp3")
    heard = statistics(track)
    assert heard.samples == 479_832
    assert 0.01 < heard.std < 1


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Each weight as small as a tenth of a decibel allows, on a song whose true stems are known and on another."""
    songs = [DATA / "audio" / name for name in ("falcon69_mix.flac", "slow-motion-dream.mp3")]
    options = {"precision": "fp16", "golden_audio": songs[0]}
    choice = compression.tune(CHECKPOINT, max_sdr_drop_db=0.1, on=songs, stems=DATA / "audio", **options)
    out = tmp_path_factory.mktemp("small") / "small.bundle"
    return splitter.build(CHECKPOINT, out, plan=choice.plan, golden_audio=songs[0]), choice


def test_weights_are_two_fifths_for_a_tenth_of_a_decibel(small):
    bag, choice = small
    assert choice.chosen.share <= 0.4
    assert choice.chosen.drop_db <= 0.1
    heard = {one.excerpt.split(" ")[0] for one in choice.chosen.stems}
    assert heard == {"falcon69_mix.flac", "slow-motion-dream.mp3"}
    for one in choice.chosen.stems:
        if one.sdr_db is not None:
            assert one.sdr_db >= REFERENCE_SDR[one.name] - 0.15, "the excerpt lies elsewhere in the model's run"
    of_its_size = [one for one in choice.uniform if one.share <= choice.chosen.share]
    assert of_its_size
    assert all(one.drop_db > choice.chosen.drop_db for one in of_its_size), "one form for all does as well"
    assert verify_bundle(bag.members[0]).passed
