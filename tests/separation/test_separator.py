"""Songs through a bundle, against demucs's own `apply_model` on the same samples."""

import math
import random
import threading

import numpy as np
import pytest
import soundfile
import torch
from demucs.apply import BagOfModels, apply_model
from splitter_weights.demo import songs

from splitter.bundle.directory import Bag, Bundle, load_any
from splitter.errors import UsageError
from splitter.runtime.orchestrator import Orchestrator
from splitter.separation import Options, Progress, Separator
from splitter.separation.audio import statistics
from splitter.separation.overlap_add import Geometry

from ..conftest import snr_db


@pytest.fixture
def bag(demo_bundle):
    return Bag.of(demo_bundle)


def ours(bag, path, **options):
    separator = Separator(bag, Options(**options))
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

    import splitter

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


def test_progress_ends_at_its_total(tmp_path, bag):
    class Count(Progress):
        total = done = 0.0

        def start(self, path, seconds):
            self.total = seconds

        def advance(self, seconds):
            self.done += seconds

    count = Count()
    separator = Separator(bag, Options(shifts=3))
    track = separator.track(clip(tmp_path, 2.0))
    list(separator.stream(track, statistics(track), count))
    assert count.done == pytest.approx(count.total)
    assert count.total > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 1.0}, "overlap is at least 0 and less than 1; got 1"),
        ({"overlap": -0.1}, "overlap"),
        ({"segment": 1.6}, r"no longer than the bundle's 1\.5 s; got 1\.6 s"),
        ({"segment": 0.0}, "segment"),
        ({"shifts": -1}, "shifts"),
        ({"two_stems": "piano"}, "drums, bass, other, vocals"),
        ({"filename": "{track}.wav"}, "tells the stems apart"),
        ({"filename": "{stem}/{title}"}, "title"),
        ({"filename": "{stem"}, "well formed"),
        ({"overlap": 0.99999999}, "at least one sample"),
        ({"segment": math.nan}, "got nan s"),
        ({"segment": math.inf}, "got inf s"),
        ({"filename": "{stem:d}"}, "holds text"),
        ({"filename": "{stem!z}"}, "holds text"),
        ({"filename": "{stem:{x}}"}, "holds text"),
    ],
)
def test_options_that_cannot_be_obeyed_are_named(bag, options, message):
    with pytest.raises(UsageError, match=message):
        Separator(bag, Options(**options))


def test_geometry_counts_the_runs_it_takes():
    geometry = Geometry.of(model=100, samplerate=200, overlap=0.25, segment=None)
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
        separator = Separator(bag, Options(shifts=0))
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
    class Count(Progress):
        runs = 0

        def advance(self, seconds):
            self.runs += 1

    trims, count = [], Count()
    monkeypatch.setattr("psutil.heap_trim", lambda: trims.append(None))
    separator = Separator(load_any(toy_path), Options(shifts=shifts))
    for name in "abcd":
        soundfile.write(tmp_path / f"{name}.wav", np.full((500, 2), 0.1), separator.samplerate)
        track = separator.track(tmp_path / f"{name}.wav")
        list(separator.stream(track, statistics(track), count))
    assert count.runs >= 40
    assert len(trims) == count.runs // 16, "of all passes and songs together"


def test_the_model_runs_in_the_callers_thread(tmp_path, toy_path, monkeypatch):
    """In another it would have a second team of OpenMP's threads, and both would be slower."""
    threads = []
    run = Orchestrator.run
    monkeypatch.setattr(Orchestrator, "run", lambda *given: threads.append(threading.get_ident()) or run(*given))
    separator = Separator(load_any(toy_path))
    soundfile.write(tmp_path / "song.wav", np.full((200, 2), 0.1), separator.samplerate)
    track = separator.track(tmp_path / "song.wav")
    list(separator.stream(track, statistics(track)))
    assert {*threads} == {threading.get_ident()}


def test_bundle_with_random_weights_says_so(demo_bundle):
    assert isinstance(demo_bundle, Bundle)
    assert demo_bundle.manifest.model.random_init is None
