"""Songs through a bundle, against demucs's own `apply_model` on the same samples."""

import math
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from demucs.apply import BagOfModels, apply_model
from splitter_weights.demo import songs

import splitter
from splitter.bundle.directory import Bag, Bundle
from splitter.bundle.manifest import AudioRecord
from splitter.errors import AudioError, UsageError
from splitter.runtime.orchestrator import Orchestrator
from splitter.separation import decoding, selection
from splitter.separation.audio import statistics
from splitter.separation.overlap_add import Geometry
from splitter.separation.separator import Options, Separator

from ..conftest import snr_db


@pytest.fixture
def bag(demo_bundle):
    return Bag.of(demo_bundle)


def ours(bag, path, **options):
    separator = Separator(bag, "default", options=Options(**options))
    track = separator.track(path)
    heard = statistics(track)
    mix = np.concatenate(list(track.blocks()), axis=1)
    return np.concatenate(list(separator.stream(track, heard)), axis=-1), mix


def theirs(model, mix, **options):
    """demucs's Separator.separate_tensor, without its file handling."""
    wav = torch.from_numpy(mix)
    reference = wav.mean(0)
    mean, std = reference.mean(), reference.std() + 1e-8
    return (apply_model(model, ((wav - mean) / std)[None], **options)[0] * std + mean).numpy()


def clip(tmp_path, seconds, seed=1_000_002, rate=44_100):
    path = tmp_path / "clip.wav"
    soundfile.write(path, songs.mixture(songs.synthesise(seconds, seed, rate)).T, rate, subtype="FLOAT")
    return path


@pytest.mark.parametrize("seconds", [0.4, 1.5, 1.6, 4.0])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_stems_equal_demucs(tmp_path, bag, demo_model, seconds, overlap):
    result, mix = ours(bag, clip(tmp_path, seconds), shifts=0, overlap=overlap)
    expected = theirs(demo_model, mix, shifts=0, overlap=overlap)
    assert result.shape == expected.shape
    assert min(snr_db(e, r) for e, r in zip(expected, result, strict=True)) >= 110


def test_shifts_equal_demucs_with_the_same_dice(tmp_path, bag, demo_model, monkeypatch):
    result, mix = ours(bag, clip(tmp_path, 3.0), shifts=2, seed=11)
    monkeypatch.setattr("demucs.apply.random", random.Random(11))
    expected = theirs(demo_model, mix, shifts=2, overlap=0.25)
    assert snr_db(expected, result) >= 110
    other, _ = ours(bag, clip(tmp_path, 3.0), shifts=2, seed=12)
    assert snr_db(result, other) < 60


def test_shorter_segments_equal_demucs(tmp_path, bag, demo_model):
    result, mix = ours(bag, clip(tmp_path, 3.0), shifts=0, segment=0.8)
    expected = theirs(demo_model, mix, shifts=0, overlap=0.25, segment=0.8)
    assert snr_db(expected, result) >= 110


def test_bag_equals_demucs_bag(tmp_path, demo_bundle, demo_model):
    weights = [[1.0, 0.0, 2.0, 0.5], [3.0, 1.0, 0.0, 0.5]]
    bag = Bag(demo_bundle.path, "pair", (demo_bundle, demo_bundle), tuple(map(tuple, weights)))
    result, mix = ours(bag, clip(tmp_path, 2.0), shifts=0)
    expected = theirs(BagOfModels([demo_model, demo_model], weights), mix, shifts=0, overlap=0.25)
    assert snr_db(expected, result) >= 110


@pytest.mark.slow
def test_smaller_bundle_equals_demucs_with_that_segment(tmp_path, demo_model):
    import copy
    from fractions import Fraction

    (bundle,) = splitter.build("demo", tmp_path / "small", segment=0.75).members
    assert bundle.tensors["mix"].shape == (1, 2, 33_075), "really smaller, not padded"
    assert bundle.tensors["spectrogram"].shape == (1, 4, 1024, 65)
    small = copy.deepcopy(demo_model)
    small.segment = Fraction(3, 4)
    result, mix = ours(Bag.of(bundle), clip(tmp_path, 2.0), shifts=0)
    assert snr_db(theirs(small, mix, shifts=0, overlap=0.25), result) >= 110


def test_stems_are_separated_for_real(bag, song_path):
    """The demo model beats taking the mixture as every stem by 5 dB and more, on a song it never heard."""
    stems = songs.synthesise(5.0, 1_000_001)
    result, mix = ours(bag, song_path, shifts=0)
    margins = [
        snr_db(stems[name], one) - snr_db(stems[name], mix) for name, one in zip(songs.STEMS, result, strict=True)
    ]
    assert np.mean(margins) >= 5


def test_silence_and_one_sample_are_songs_too(tmp_path, bag):
    for name, sound in (("silence", np.zeros((50_000, 2))), ("sample", np.full((1, 2), 0.5))):
        soundfile.write(tmp_path / f"{name}.wav", sound, 44_100)
        result, _ = ours(bag, tmp_path / f"{name}.wav", shifts=0)
        assert result.shape == (4, 2, len(sound))
        assert np.isfinite(result).all()


def test_only_models_with_a_share_in_what_is_asked_for_are_run(tmp_path, demo_bundle):
    """As in a bag of fine-tuned models, each of one stem; with shifts, of which each model has its own."""
    one_each = Bag(demo_bundle.path, "ft", (demo_bundle,) * 4, tuple(map(tuple, np.eye(4).tolist())))
    path = clip(tmp_path, 2.0)
    every, mix = ours(one_each, path, shifts=2)
    runs, full = Separator(one_each, "default", options=Options(shifts=2)).runs(2.0), math.nan
    for options, separated, share in [
        ({"two_stems": "other", "other_method": "add"}, list(songs.STEMS), 1),
        ({"stems": ("vocals",)}, ["vocals"], 1 / 4),
        ({"stems": ("vocals", "bass")}, ["bass", "vocals"], 2 / 4),
        ({"two_stems": "other", "other_method": "minus"}, ["other"], 1 / 4),
    ]:
        told = []
        separator = Separator(one_each, "default", options=Options(shifts=2, **options), progress=told.append)
        stems = separator(mix, 44_100)
        for name in set(stems) & set(separated):
            assert np.array_equal(stems[name], every[songs.STEMS.index(name)]), name
        assert separator.runs(2.0) == runs * share
        (total,) = {step.total for step in told if not isinstance(step, str)}
        full = full if share < 1 else total
        assert total / full == pytest.approx(share, abs=0.1), "a shift may take another run"
        assert any("models give what is asked for" in str(step) for step in told) == (share < 1)


def test_what_has_to_be_run_whole_for_some_stems_is_said(bag):
    for engines, whole in (({}, 0), ({"decoder": "mil"}, 1)):
        told = []
        Separator(bag, splitter.separation.selection.Engines(engines), options=Options(stems=("bass",)),
                  progress=told.append).load()  # fmt: skip
        assert sum("decoder computes all stems" in str(step) for step in told) == whole


def test_progress_ends_at_its_total(tmp_path, bag):
    told = []
    separator = Separator(bag, "default", options=Options(shifts=3))
    track = separator.track(clip(tmp_path, 2.0))
    list(separator.stream(track, statistics(track), told.append))
    assert {(step.path, step.total) for step in told} == {(track.path, told[0].total)}
    assert [step.done for step in told] == sorted(step.done for step in told)
    assert told[0].done == 0
    assert told[-1].done == pytest.approx(told[-1].total)
    assert str(told[0]) == f"{track.path}: 0 of {told[0].total:.0f} s"


@pytest.mark.parametrize("options", [{"shifts": 2}, {"shifts": 0, "two_stems": "bass", "other_method": "minus"}])
def test_a_song_is_decoded_once_whatever_passes_over_it(tmp_path, demo_bundle, monkeypatch, options):
    decoded = []
    opened = decoding.opened
    monkeypatch.setattr(decoding, "opened", lambda path: decoded.append(path) or opened(path))
    bag = Bag(demo_bundle.path, "pair", (demo_bundle, demo_bundle), ((1.0,) * 4, (2.0,) * 4))
    separator = Separator(bag, "default", options=Options(**options))
    track = separator.track(clip(tmp_path, 2.0))
    track_statistics = statistics(track)
    assert len(decoded) == 1
    list(separator.selected(track, track_statistics))
    assert len(decoded) == 2


# ----------------------------------------------------------------------------------------- arrays


def test_an_array_gives_what_its_file_gives(tmp_path, bag):
    path = clip(tmp_path, 2.0)
    expected, mix = ours(bag, path, shifts=0)
    separator = splitter.Separator(bag, "default", options=Options(shifts=0))
    stems = separator(mix, 44_100)
    assert list(stems) == list(songs.STEMS)
    assert all(stem.dtype == np.float32 for stem in stems.values())
    assert np.array_equal(np.stack([*stems.values()]), expected)
    two = splitter.Separator(bag, "default", options=Options(shifts=0, two_stems="bass", other_method="minus"))
    rest = two(mix, 44_100)
    assert list(rest) == ["bass", "minus_bass"]
    np.testing.assert_allclose(rest["minus_bass"], mix - stems["bass"], atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 48_000])
@pytest.mark.parametrize("samples", [1, 12_345])
def test_an_array_at_another_rate_comes_back_at_its_own(toy_path, rate, samples):
    """The toy works at 8 kHz, and its stems add up to the mixture, but for its mean."""
    separator = splitter.Separator(str(toy_path), "default", options=Options(shifts=0))
    time = np.arange(samples) / rate
    waveform = np.stack([np.sin(2 * np.pi * 440 * time), np.cos(2 * np.pi * 440 * time)]).astype(np.float32)
    stems = separator(waveform, rate)
    assert {stem.shape for stem in stems.values()} == {(2, samples)}
    if samples > 1:
        inner = slice(1000, -1000)  # resampling has no sound to go by beyond the ends
        total = np.sum([*stems.values()], axis=0) - waveform.mean()  # which each of the two has
        assert snr_db(waveform[:, inner], total[:, inner]) > (100 if rate == 8000 else 60)


def test_a_single_channel_is_one_in_each_stem(toy_path):
    separator = splitter.Separator(toy_path, "default", options=Options(shifts=0))
    mono = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 3000))
    stems = separator(mono, 8000)
    both = separator(np.repeat(mono, 2, axis=0), 8000)
    for name, stem in stems.items():
        assert (stem.shape, stem.dtype) == ((1, 3000), np.float32)
        np.testing.assert_allclose(stem[0], both[name].mean(axis=0), atol=1e-7)


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (np.zeros((3000, 2), np.float32), 8000, r"expected .*\(1 or 2, samples\).* of shape \(3000, 2\)"),
        (np.zeros(3000, np.float32), 8000, r"of shape \(3000,\)"),
        (np.zeros((2, 30), np.int16), 8000, "found int16 of shape"),
        (np.full((2, 30), np.nan, np.float32), 8000, "the waveform holds NaN at 0.000 s in channel 1"),
        (np.array([[0.0] * 9, [0.0] * 8 + [np.inf]]), 8000, "holds infinity at 0.001 s in channel 2"),
        (np.zeros((2, 0), np.float32), 8000, "is empty: expected at least 1 sample"),
        (np.zeros((2, 30), np.float32), 10, "impossible sample rate"),
    ],
)
def test_an_array_that_is_no_sound_is_refused(toy_path, waveform, rate, message):
    with pytest.raises(AudioError, match=message):
        splitter.Separator(toy_path, "default")(waveform, rate)


# ----------------------------------------------------------------------------------------- what runs it


@pytest.fixture
def measured(monkeypatch):
    """Stands in for the measurement; notes what it was asked, and with how many threads."""
    asked = []

    def fastest(members, requested, progress, runs):
        asked.append((dict(requested), torch.get_num_threads()))
        names = dict.fromkeys((segment.name for segment in members[0].segments), "torch")
        return selection.EngineChoice(engines=names | {"encoder": "mil"} | requested, snr_db=None, trials=())

    monkeypatch.setattr(selection, "fastest", fastest)
    return asked


def test_engines_are_measured_once_and_not_before_they_are_needed(toy_path, measured, tmp_path):
    told = []
    separator = splitter.Separator(toy_path, progress=told.append)
    assert not measured
    assert separator.engines().by_segment["encoder"] == "mil"
    separator.engines()
    assert measured == [({}, torch.get_num_threads())]
    assert separator.requested_engines == {}, "what measurement chose is no reason to make stems again"
    assert told[-1].startswith("engines: ")
    assert "encoder=mil" in told[-1]


def test_what_is_at_hand_decides_what_measuring_may_take(toy_path, tmp_path, monkeypatch):
    asked = []

    def fastest(members, requested, progress, runs):
        asked.append(runs)
        return selection.EngineChoice(engines={}, snr_db=None, trials=())

    monkeypatch.setattr(selection, "fastest", fastest)
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", np.full((4800, 2), 0.1), 8000)
    (tmp_path / "c.wav").write_text("no sound")
    options = Options(shifts=2, overlap=0.5)
    separator = splitter.Separator(toy_path, options=options)  # 64 samples a run, 32 from one to the next
    separator.separate([tmp_path / "a.wav", tmp_path / "b.wav"], tmp_path / "out")
    assert asked == [2 * 2 * 150]
    splitter.Separator(toy_path, options=options).separate([tmp_path / "c.wav"], tmp_path / "out")
    assert asked[1] == 2 * 240 * 8000 / 32, "what cannot be told may be a song"


def test_an_engine_that_was_asked_for_is_not_in_question(toy_path, measured):
    separator = splitter.Separator(toy_path, {"encoder": "torch"})
    engines = separator.engines()
    assert measured[0][0] == {"encoder": "torch"}
    assert engines.requested == separator.requested_engines == {"encoder": "torch"}
    assert engines.by_segment["encoder"] == "torch"


@pytest.mark.parametrize("engines", ["default", None])
def test_the_defaults_are_not_measured(toy_path, measured, engines):
    assert splitter.Separator(toy_path, engines).engines().by_segment == {}
    assert not measured


def test_an_unknown_choice_of_engines_is_refused(toy_path):
    with pytest.raises(UsageError, match='unknown choice of engines \'fastest\': expected "auto", "default"'):
        splitter.Separator(toy_path, "fastest")


def test_jobs_are_measured_with_their_share_of_the_cores(toy_path, measured, monkeypatch):
    monkeypatch.setattr("splitter.separation.separator.share", lambda jobs: 3 - jobs)
    threads = torch.get_num_threads()
    splitter.Separator(toy_path).engines(jobs=2)
    assert measured == [({}, 1)]
    assert torch.get_num_threads() == threads


def test_a_name_is_a_bundle_in_the_cache(demo_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = []
    monkeypatch.setattr(
        "splitter.separation.separator.named", lambda name, progress: named.append(name) or Bag.of(demo_bundle)
    )
    assert splitter.Separator("demo").bag.name == "demo"
    assert named == ["demo"]
    (tmp_path / "demo").symlink_to(demo_bundle.path)
    assert splitter.Separator("demo").bag.path == Path("demo"), "what is there is meant"
    assert named == ["demo"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 1.0}, "the overlap is out of range: expected at least 0 and less than 1, found 1"),
        ({"overlap": -0.1}, "overlap"),
        ({"segment": 1.6}, r"at most the bundle's 1\.5 s, found 1\.6 s"),
        ({"segment": 0.0}, "segment"),
        ({"segment": 0.001}, r"at least 0\.15 s and at most the bundle's 1\.5 s, found 0\.001 s"),
        ({"segment": 0.149}, r"at least 0\.15 s"),
        ({"overlap": 0.995}, r"an overlap of at most 0\.99, found 0\.995"),
        ({"shifts": -1}, "--shifts is negative: expected 0 or more, found -1"),
        ({"two_stems": "piano"}, "the model has no stem 'piano'. It has drums, bass, other, vocals"),
        ({"stems": ("bass", "piano")}, "the model has no stem 'piano'. It has drums, bass, other, vocals"),
        ({"stems": ("bass", "bass")}, "the stem 'bass' is asked for twice"),
        ({"stems": ()}, "no stem is asked for: expected one or more of drums, bass, other, vocals"),
        ({"stems": ("bass",), "two_stems": "bass"}, "--stems and --two-stems exclude each other"),
        ({"filename": "{track}.wav"}, "does not tell the stems apart"),
        ({"filename": "{stem}/{title}"}, "title"),
        ({"filename": "{stem"}, "is malformed"),
        ({"overlap": 0.99999999}, "would hardly move forward"),
        ({"segment": math.nan}, "found nan s"),
        ({"segment": math.inf}, "found inf s"),
        ({"filename": "{stem:d}"}, "cannot be filled in"),
        ({"filename": "{stem!z}"}, "cannot be filled in"),
        ({"filename": "{stem:{x}}"}, "cannot be filled in"),
    ],
)
def test_options_that_cannot_be_obeyed_are_named(bag, options, message):
    with pytest.raises(UsageError, match=message):
        Separator(bag, "default", options=Options(**options))


def test_the_shortest_segment_and_the_longest_overlap_are_taken(bag):
    for options in ({"segment": 0.15}, {"overlap": 0.99}):
        Separator(bag, "default", options=Options(**options))


def test_geometry_counts_the_runs_it_takes():
    sound = AudioRecord(stems=("a",), samplerate=200, channels=1, samples=100)
    geometry = Geometry.of(sound, overlap=None, segment=None)
    assert (geometry.chunk, geometry.stride, geometry.max_shift) == (100, 75, 100)
    assert geometry.runs(150, None) == 2
    assert geometry.runs(151, None) == 3
    assert geometry.runs(150, 40) == 3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_song(tmp_path, bag):
    """Measured on what streaming holds; whole-process figures are in benchmarks/."""
    import tracemalloc

    peaks = {}
    for seconds in (6, 24):
        path = tmp_path / f"{seconds}.wav"
        sound = songs.mixture(songs.synthesise(6.0, 3))
        soundfile.write(path, np.tile(sound, seconds // 6).T, 44_100)
        separator = Separator(bag, "default", options=Options(shifts=0))
        track = separator.track(path)
        heard = statistics(track)
        tracemalloc.start()
        for _ in separator.stream(track, heard):
            pass
        peaks[seconds] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[24] <= 1.1 * peaks[6]


@pytest.mark.parametrize("shifts", [0, 2])
def test_the_heap_is_trimmed_now_and_then(tmp_path, toy_path, monkeypatch, shifts):
    trims, told = [], []
    monkeypatch.setattr("psutil.heap_trim", lambda: trims.append(None))
    separator = Separator(toy_path, "default", options=Options(shifts=shifts))
    for name in "abcd":
        soundfile.write(tmp_path / f"{name}.wav", np.full((500, 2), 0.1), separator.samplerate)
        track = separator.track(tmp_path / f"{name}.wav")
        list(separator.stream(track, statistics(track), told.append))
    runs = sum(step.done > 0 for step in told)
    assert runs >= 40
    assert len(trims) == runs // 16, "of all passes and songs together"


def test_the_model_runs_in_the_callers_thread(tmp_path, toy_path, monkeypatch):
    """In another it would have a second team of OpenMP's threads, and both would be slower."""
    threads = []
    run = Orchestrator.run
    monkeypatch.setattr(Orchestrator, "run", lambda *given: threads.append(threading.get_ident()) or run(*given))
    separator = Separator(toy_path, "default")
    soundfile.write(tmp_path / "song.wav", np.full((200, 2), 0.1), separator.samplerate)
    track = separator.track(tmp_path / "song.wav")
    list(separator.stream(track, statistics(track)))
    assert {*threads} == {threading.get_ident()}


def test_bundle_with_random_weights_says_so(demo_bundle):
    assert isinstance(demo_bundle, Bundle)
    assert demo_bundle.manifest.model.random_init is None
