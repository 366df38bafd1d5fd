"""Forms of weights chosen by measurement, on a toy of three packages; what forms lose, on the demo's transformer too."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from splitter_weights import transformer

import splitter
from splitter import cli, mil
from splitter.bundle.directory import load
from splitter.bundle.manifest import AudioRecord
from splitter.errors import AudioError, PlanError, UsageError
from splitter.mil.stored import decoded
from splitter.plan import schema as plans
from splitter.plan.schema import WeightsForm
from splitter.tuning import compression, stems
from splitter.tuning.compression import WeightSearch, stored_bytes, tune
from splitter.tuning.plot import draw_sizes
from splitter.tuning.stems import StemScorer, true_stems
from splitter.tuning.trial import Trial, TrialExcerpt, excerpts
from splitter.tuning.weights import Decoder, weights_of

from ..conftest import snr_db
from ..toys import PACKAGES_PLAN, Hybrid

SMALL = plans.changed(PACKAGES_PLAN, compression={"min_elements": 300})
LIMIT = 0.5
FORMS = ("none", "int8", "pal8", "pal6", "pal4")


def toy():
    """Like the toy of three packages, with more values in its weights than a palette holds."""
    torch.manual_seed(0)
    model = Hybrid()
    model.down, model.up = torch.nn.Conv1d(2, 48, 4, 4), torch.nn.ConvTranspose1d(48, 2, 4, 4)
    model.mix = torch.nn.TransformerEncoderLayer(48, 2, 64, batch_first=True)
    model.sources, model.samplerate, model.audio_channels, model.segment = ["restored"], 8000, 2, Fraction(64, 8000)
    return model


@pytest.fixture(scope="module")
def noise_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("songs") / "noise.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (200, 2)), 8000, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def search(tmp_path_factory, noise_path):
    (bundle,) = splitter.build(toy(), tmp_path_factory.mktemp("toy") / "b", plan=SMALL, reference=False).members
    trial = Trial(bundle, excerpts([noise_path], bundle))
    return WeightSearch(trial, compression._scorer(trial, None), lambda step: None)


@pytest.fixture(scope="module")
def built(tmp_path_factory, noise_path):
    choice = tune(toy(), max_sdr_drop_db=LIMIT, on=[noise_path], plan=SMALL)
    (bundle,) = splitter.build(toy(), tmp_path_factory.mktemp("chosen") / "b", plan=choice.plan).members
    return bundle, choice


# --------------------------------------------------------------------------------------- weights


def test_weights_are_those_of_two_axes_that_see_the_input(search):
    names = {one.source: one.channels for one in weights_of(search.trial.bundle)}
    linear = {f"mix.{one}.weight": 0 for one in ("self_attn.out_proj", "linear1", "linear2")}
    assert names == {"down.weight": 0, "up.weight": 1, "mix.self_attn.in_proj_weight": 0} | linear


@pytest.mark.parametrize("form", FORMS[1:])
def test_what_weights_become_is_what_packages_hold(search, tmp_path, form):
    plan = plans.compressed(search.trial.bundle.manifest.plan, form)
    (bundle,) = splitter.build(toy(), tmp_path / "b", plan=plan, reference=False).members
    decoder = Decoder()
    by_source = {one.source: one for one in weights_of(search.trial.bundle)}
    seen = 0
    for segment in bundle.segments:
        if segment.artifact.target != "coreml":
            continue
        function = mil.load(bundle.path / segment.artifact.path).function
        for name, one in segment.artifact.details["compressed"].items():
            expected = decoder.decode(by_source[one["source"]], form)
            (held,) = decoded(function, [name]).values()
            np.testing.assert_allclose(held, expected, rtol=1e-6, atol=1e-9)
            seen += 1
    assert seen == len(by_source)
    size = sum(one.bytes(form) for one in by_source.values())
    rest = sum(segment.parameters for segment in bundle.segments) - sum(one.values.size for one in by_source.values())
    zeros = sum(one.values.shape[one.channels] for one in by_source.values()) if form == "int8" else 0
    folded = 64  # the ramp, one for each frame
    assert size + zeros + 4 * rest <= stored_bytes(bundle) <= size + zeros + 4 * rest + folded + 64


@pytest.mark.parametrize("settings", [{}, {"qkv": "split"}, {"layout": "mlx"}])
def test_what_matrices_become_is_what_the_transformers_file_holds(demo_bundle, tmp_path, settings):
    segment = demo_bundle.segment("transformer")
    old = transformer.record_of(segment.artifact.details)
    config, tensors = transformer.load(demo_bundle.path / segment.artifact.path, old)
    path = tmp_path / "t.safetensors"
    form = WeightsForm(**settings, compress="pal4", exceptions={"layers.0": "int8"})
    record = transformer.export(config, tensors, old.sources, path, form=form, inputs=old.inputs, outputs=old.outputs)
    _, held = transformer.load(path, record)
    artifact = segment.artifact.model_copy(update={"details": record.model_dump(mode="json")})
    segments = tuple(
        one.model_copy(update={"artifact": artifact}) if one.name == segment.name else one
        for one in demo_bundle.segments
    )
    bundle = replace(demo_bundle, manifest=demo_bundle.manifest.model_copy(update={"segments": segments}))
    own = [one for one in weights_of(bundle) if one.section == "weights"]
    assert {one.name for one in own} == set(record.matrices)
    decoder = Decoder()
    for one in own:
        np.testing.assert_array_equal(decoder.decode(one, form.form_of(one.name)), held[one.name])
    stored = sum(one.bytes for one in record.tensors.values() if one.role != "values")
    if not settings:  # split, there are three tables instead of one
        assert sum(one.bytes(form.form_of(one.name)) for one in own) == stored


# ----------------------------------------------------------------------------------------- stems


def scorer(reference, truth=None, assumed=None):
    sound = AudioRecord.model_construct(stems=("a", "b"), samples=reference.shape[-1])
    made = StemScorer.__new__(StemScorer)
    made.excerpts = (TrialExcerpt("x", None, 0, reference),)
    made.reference, made.names = (reference,), sound.stems
    made._lengths, made._truth = [reference.shape[-1]], [truth]
    return made


def test_drop_is_of_sdr_against_the_true_stems():
    rng = np.random.default_rng(0)
    truth, error, noise = (scale * rng.standard_normal((2, 2, 4000)) for scale in (1.0, 0.3, 0.1))
    own = truth + error
    for found, index in zip(scorer(own, truth).scores([own + noise]), range(2), strict=True):
        before, after = snr_db(truth[index], own[index]), snr_db(truth[index], (own + noise)[index])
        assert found.sdr_db == pytest.approx(after)
        assert found.snr_db == pytest.approx(snr_db(own[index], (own + noise)[index]))
        uncorrelated = 10 * np.log10(1 + np.sum(noise[index] ** 2) / np.sum(error[index] ** 2))
        assert found.drop_db == pytest.approx(max(before - after, uncorrelated))
        assert found.drop_db == pytest.approx(10 * np.log10(1 + 0.1**2 / 0.3**2), abs=0.03)


def test_luck_is_no_merit_and_bad_luck_counts():
    rng = np.random.default_rng(0)
    truth, error = rng.standard_normal((2, 2, 4000)), 0.3 * rng.standard_normal((2, 2, 4000))
    own = truth + error
    for part, expected in ((-0.1, 10 * math.log10(1.01)), (0.1, 20 * math.log10(1.1))):
        for found in scorer(own, truth).scores([own + part * error]):
            assert found.drop_db == pytest.approx(expected)


def test_without_true_stems_the_model_is_taken_for_a_good_one():
    own = np.random.default_rng(0).standard_normal((2, 2, 4000))
    for found in scorer(own).scores([own * 1.01]):
        assert found.sdr_db is None
        assert found.snr_db == pytest.approx(40)
        assert found.drop_db == pytest.approx(10 * math.log10(1 + 10 ** (-(40 - stems.ASSUMED_SDR_DB) / 10)))
    exact = scorer(own).scores([own])
    assert {(one.snr_db, one.drop_db) for one in exact} == {(math.inf, 0.0)}
    assert [one["snr_db"] for one in stems.to_dicts(exact)] == [None, None]


def test_silent_stems_prove_nothing_and_noise_beyond_numbers_is_infinite():
    own = np.random.default_rng(0).standard_normal((2, 2, 400))
    own[1] = 0
    assert [one.name for one in scorer(own).scores([own + 1])] == ["a"]
    own[1] = 1
    assert scorer(own).damage(0, own * np.nan) == math.inf


def test_true_stems_are_found_by_name(tmp_path):
    for name in ("song_drums.flac", "bass.wav", "song_bass.txt.d"):
        (tmp_path / name).touch()
    assert true_stems(tmp_path, ["drums", "bass"]) == {
        "drums": tmp_path / "song_drums.flac",
        "bass": tmp_path / "bass.wav",
    }
    (tmp_path / "other_bass.wav").touch()
    for names in (["vocals"], ["bass"]):
        with pytest.raises(UsageError, match="does not hold exactly one file of the stem"):
            true_stems(tmp_path, names)


def test_true_stems_are_scaled_as_the_input_is(tmp_path, search):
    """Truth that is the model's own output, at the song's loudness, leaves no error at all."""
    trial = search.trial
    heard = trial.excerpts[0]
    sound = trial.bundle.audio
    track = splitter.separation.audio.Track(heard.path, sound.samplerate, sound.channels)
    mono = (song := splitter.separation.audio.Window(track, 0).read(0, sound.samples)).mean(axis=0, dtype=np.float64)
    own = trial.reference[0]["restored"][0]
    loud = own * (mono.std(ddof=1) + 1e-8) + mono.mean()
    soundfile.write(tmp_path / "restored.wav", loud.T, sound.samplerate, subtype="FLOAT")
    assert song.shape == loud.shape
    made = StemScorer([heard], [own[None]], sound, {"restored": tmp_path / "restored.wav"})
    ((noise, error),) = made._noises(0, own[None])
    assert noise == 0
    assert error < 1e-9 * float(np.sum(own**2))


def test_silence_out_of_the_model_is_refused(search):
    trial = search.trial
    with pytest.raises(AudioError, match="every stem of .* is silent"):
        StemScorer(trial.excerpts[:1], [0 * trial.reference[0]["restored"]], trial.bundle.audio)


# ---------------------------------------------------------------------------------------- search


def test_damage_is_of_one_weight_alone(search):
    """Measured again with the model itself, its weight exchanged by hand."""
    model = toy().eval()
    given = torch.from_numpy(search.trial.excerpts[0].mixture[None])
    for weight in search.weights:
        parameter = model.get_parameter(weight.source)
        with torch.no_grad():
            own = parameter.clone()
            exact = model(given).numpy()
            parameter.copy_(torch.from_numpy(search._decoder.decode(weight, "pal6")))
            noisy = model(given).numpy()
            parameter.copy_(own)
        # Relative to an error that is 10 dB below the stem
        expected = np.sum((noisy - exact) ** 2) / np.sum(exact**2) * 10
        assert search.damage(weight, "pal6") == pytest.approx(expected, rel=1e-3)
        assert search.damage(weight, "none") == 0


def test_other_forms_are_scaled_by_their_error_until_they_are_measured(search):
    weight = search.weights[0]
    assert (weight, "pal4") not in search._found
    scaled = search.damage(weight, "pal4")
    error = {form: np.sum((weight.values - search._decoder.decode(weight, form)) ** 2) for form in ("pal4", "pal6")}
    assert scaled == pytest.approx(search.damage(weight, "pal6") * error["pal4"] / error["pal6"], rel=1e-3)
    search._measure(weight, "pal4")
    measured = search.damage(weight, "pal4")
    del search._found[weight, "pal4"]
    assert measured != scaled
    assert 0.2 < measured / scaled < 5


def test_choices_are_the_best_of_all(search):
    """No other choice is both smaller and less damaging: every one of them, tried."""
    some = search.weights[:4]
    others = list(itertools.product(FORMS, repeat=len(some)))
    size = {forms: sum(w.bytes(f) for w, f in zip(some, forms, strict=True)) for forms in others}
    hurt = {forms: sum(search.damage(w, f) for w, f in zip(some, forms, strict=True)) for forms in others}
    choices = search.choices()
    assert len(choices) > 8
    for choice in choices:
        mine = tuple(choice[one] for one in some)
        assert not [o for o in others if size[o] < size[mine] and hurt[o] < hurt[mine] * (1 - 1e-9)]
    assert set(choices[-1].values()) == {"none"}
    assert all(one.bytes(choices[0][one]) == min(map(one.bytes, FORMS)) for one in search.weights)
    sizes = [search.bytes(one) for one in choices]
    assert sizes == sorted(sizes)


def test_the_smallest_that_holds_is_found_by_running_it(search):
    for limit in (0.02, 0.3):
        forms = search.smallest(limit)
        assert search.point("", forms).drop_db <= limit
        choices = search.choices()
        place = choices.index(forms)
        assert place == 0 or search.point("", choices[place - 1]).drop_db > limit
    assert search.share(search.smallest(0.3)) < search.share(search.smallest(0.02))
    measured = sum(search.damage(*one) for one in forms.items() if one in search._found)
    assert measured >= 0.5 * search.predicted(forms)


def test_weights_are_put_back(search):
    values = {one: search._swapper._held[one].clone() for one in search._all}

    def fail():
        with search._swapper.forms(dict.fromkeys(search._all, "pal4")):
            assert not any(torch.equal(search._swapper._held[one], own) for one, own in values.items())
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert all(torch.equal(search._swapper._held[one], own) for one, own in values.items())


def test_the_smallest_weights_are_not_worth_a_measurement():
    made = [type("W", (), {"values": np.zeros(size)})() for size in (5, 5000, 44, 4000, 42)]
    assert [one.values.size for one in compression._large(made)] == [5000, 44, 4000]


# ----------------------------------------------------------------------------------------- build


@pytest.mark.slow
def test_what_was_built_holds_and_its_plan_repeats_it(built, tmp_path):
    bundle, choice = built
    assert 0 < choice.chosen.drop_db <= LIMIT
    assert choice.chosen.bytes == stored_bytes(bundle)
    assert choice.chosen.share < 1.0
    asked = bundle.manifest.plan.compression.exceptions
    assert asked == choice.forms
    found = {
        one["source"]: one["form"]
        for segment in bundle.segments
        for one in segment.artifact.details.get("compressed", {}).values()
    }
    assert found == asked
    plans.save(bundle.manifest.plan, tmp_path / "plan.toml")
    again = splitter.build(toy(), tmp_path / "again", plan=plans.load(tmp_path / "plan.toml")).members[0]
    weights = {name: one.sha256 for name, one in bundle.manifest.files.items() if name.endswith("weight.bin")}
    assert weights == {name: one.sha256 for name, one in again.manifest.files.items() if name.endswith("weight.bin")}
    assert weights.keys() >= {f"{name}.mlpackage/Data/com.apple.CoreML/weights/weight.bin" for name in ("encoder",)}
    assert splitter.verify(load(tmp_path / "again"))[0].passed


def test_the_table_holds_uniform_forms_and_a_frontier(built):
    _, choice = built
    assert [one.name for one in choice.uniform] == list(FORMS[1:]), "what iOS17 and the transformer's file know"
    snr = [min(stem.snr_db for stem in one.stems) for one in choice.uniform]
    assert min(snr[:2]) > snr[2] > snr[3]
    assert len(choice.frontier) >= 4
    shares = [one.share for one in choice.frontier]
    assert shares == sorted(shares)
    document = json.loads(json.dumps(choice.to_dict()))
    assert document["chosen"]["stems"][0]["excerpt"].startswith("noise.wav")


@pytest.mark.slow
def test_packages_that_do_worse_than_the_graph_make_it_step_back(noise_path, monkeypatch):
    """What was built is measured; what was foreseen is not believed."""
    real, seen = WeightSearch.built, []

    def worse(self, bundle):
        point = real(self, bundle)
        seen.append(point)
        raised = tuple(replace(one, drop_db=one.drop_db * 1.1 * LIMIT / seen[0].drop_db) for one in point.stems)
        return replace(point, stems=raised)

    monkeypatch.setattr(WeightSearch, "built", worse)
    choice = tune(toy(), max_sdr_drop_db=LIMIT, on=[noise_path], plan=SMALL)
    assert len(seen) > 1
    assert seen[-1].bytes > seen[0].bytes
    assert choice.chosen.drop_db <= LIMIT


def test_a_drop_out_of_reach_says_the_best_and_overwrites_nothing(noise_path, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text("an older one")
    with pytest.raises(
        PlanError, match=r"smallest SDR drop found is 0\.\d+ dB at \d+\.\d% .*: expected 1e-09 dB at most"
    ):
        tune(toy(), max_sdr_drop_db=1e-9, on=[noise_path], plan=SMALL, out=plan)
    with pytest.raises(UsageError, match="expected more than 0 dB, found"):
        tune(toy(), max_sdr_drop_db=0.0, on=[noise_path], plan=SMALL, out=plan)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("plan.toml", "an older one")]


def test_choice_is_drawn(built, tmp_path):
    draw_sizes(built[1], tmp_path / "sizes.svg")
    picture = (tmp_path / "sizes.svg").read_text()
    assert "<svg" in picture
    draw_sizes(built[1], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == picture
    with pytest.raises(UsageError, match="wrong suffix"):
        draw_sizes(built[1], tmp_path / "sizes.nonsense")


def test_command_line(monkeypatch, capsys, built):
    _, choice = built
    asked = {}
    monkeypatch.setattr("splitter.tuning.compression.tune", lambda model, **options: asked.update(options) or choice)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["splitter", "tune", "weights", "demo", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, capsys.readouterr()

    arguments = ["--max-sdr-drop", "0.5", "--on", "song.wav", "-o", "plan.toml", "--stems", "stems"]
    code, printed = run(*arguments, "--json")
    assert not code
    assert json.loads(printed.out)["compression"]["chosen"]["bytes"] == choice.chosen.bytes
    assert (asked["max_sdr_drop_db"], asked["on"]) == (0.5, (Path("song.wav"),))
    assert (asked["stems"], asked["out"], asked["plot"]) == (Path("stems"), Path("plan.toml"), None)
    code, printed = run(*arguments)
    assert "Weights for a drop of 0.5 dB" in printed.out
    for wrong in (["--on", "song.wav", "-o", "p"], ["--max-sdr-drop", "0", *arguments[2:]], arguments[:4]):
        assert run(*wrong)[0] == 2


@pytest.mark.slow
def test_plan_is_written(noise_path, tmp_path, built):
    choice = tune(toy(), max_sdr_drop_db=LIMIT, on=[noise_path], plan=SMALL, out=tmp_path / "plan.toml")
    assert plans.load(tmp_path / "plan.toml") == choice.plan == built[0].manifest.plan
