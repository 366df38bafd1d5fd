import io
import re

import numpy as np
import pytest
import soundfile
from matplotlib import image

from splitter.bundle.directory import Bag, Bundle
from splitter.errors import AudioError
from splitter.reporting import charts, listening
from splitter.runtime.orchestrator import Orchestrator
from splitter.separation.separator import Options, Separator

from ..conftest import snr_db

RATE = 44_100
CODED = pytest.approx(0.97, abs=0.02)  # LAME takes a little off everything, so that its filters do not clip


def decoded(sound):
    samples, rate = soundfile.read(io.BytesIO(sound.mp3), dtype="float32", always_2d=True)
    assert rate == RATE
    return samples.T


@pytest.fixture(scope="module")
def excerpt():
    """A second of tones; the split's last stem is exact, the others are off by a thousandth of a tone."""
    t = np.arange(RATE) / RATE
    tones = np.stack([np.sin(2 * np.pi * f * t) for f in (220, 440, 880, 1760)]).astype(np.float32)
    stems = np.repeat(tones[:, None], 2, axis=1)
    split = stems.copy()
    split[:3] += np.float32(1e-3) * stems[1]
    return listening.ComparedExcerpt("tones", 2 * stems.sum(axis=0), stems, split)


@pytest.fixture(scope="module")
def panel(demo_path, excerpt):
    return listening.panel(Bundle.load(demo_path), excerpt)


def test_everything_but_differences_is_played_at_one_gain(panel, excerpt):
    peak = float(np.abs(excerpt.mixture).max())
    gain = 10 ** (panel.playback_db / 20)
    assert 0.8 < peak * gain <= 0.9
    for sound, samples in [
        (panel.mixture, excerpt.mixture),
        *((stem.reference, one) for stem, one in zip(panel.stems, excerpt.reference, strict=True)),
        *((stem.split, one) for stem, one in zip(panel.stems, excerpt.split, strict=True)),
    ]:
        heard = decoded(sound)[:, 4000:40_000]
        assert np.sqrt(np.mean(heard**2)) / (gain * np.sqrt(np.mean(samples**2))) == CODED


def test_differences_are_amplified_by_the_gain_that_is_stated(panel, excerpt):
    for index, stem in enumerate(panel.stems[:3]):
        error = excerpt.split[index] - excerpt.reference[index]
        gain = 10 ** ((panel.playback_db + stem.gain_db) / 20)
        assert 0.4 < float(np.abs(error).max()) * gain <= 0.5
        heard = decoded(stem.difference)[:, 4000:40_000]
        assert np.sqrt(np.mean(heard**2)) / (gain * np.sqrt(np.mean(error**2))) == CODED
        assert stem.parity.snr_db == pytest.approx(snr_db(excerpt.reference[index], excerpt.split[index]))


def test_equal_stems_have_no_difference_to_play(panel):
    assert panel.stems[3].difference is None
    assert panel.stems[3].gain_db is None


def test_all_streams_are_in_step(panel, excerpt):
    """They come from one coder with one delay: what holds of two of them holds of all."""
    streams = [panel.mixture, *(one for stem in panel.stems for one in (stem.reference, stem.split))]
    assert len({decoded(one).shape for one in streams}) == 1
    assert decoded(panel.mixture).shape[1] >= panel.seconds * RATE
    a, b = (decoded(one)[0] for one in (panel.stems[3].reference, panel.stems[3].split))
    assert np.array_equal(a, b)


def test_waveforms_are_the_lowest_and_highest_samples(panel, excerpt):
    low, high = panel.stems[0].reference.envelope
    peak = 10 ** (panel.playback_db / 20)
    assert low.min() == pytest.approx(-peak, rel=1e-3)
    assert high.max() == pytest.approx(peak, rel=1e-3)
    drawn = charts.waveform(panel.stems[0].reference, "w")
    assert len(re.findall(r"L [\d.]+ [\d.]+", drawn)) > 1000


def test_spectrograms_show_tones_at_their_height(panel):
    for stem, hertz in zip(panel.stems, (220, 440, 880, 1760), strict=True):
        opacity = image.imread(io.BytesIO(stem.reference.spectrogram))[:, 100:-100, 3]  # tones begin with a click
        rows, columns = opacity.shape
        loudest = rows - 1 - int(opacity[:, columns // 2].argmax())
        expected = (rows - 1) * np.log(hertz / panel.lowest) / np.log(panel.highest / panel.lowest)
        assert abs(loudest - expected) < 2
        assert opacity[: rows // 4].max() == 0, "silence is the paper"


# ---------------------------------------------------------------------------------------------- excerpts


def part(path, start, seconds):
    return listening.part(listening.Track(path, RATE, 2), start, seconds)


@pytest.fixture
def split(demo_bundle):
    return Orchestrator(demo_bundle, {"transformer": "torch"})


def test_golden_input_is_heard_as_the_model_gave_it(demo_bundle):
    golden = demo_bundle.goldens()
    split = golden["stems"][0] + np.float32(1e-3)
    excerpt = listening.golden_excerpt(demo_bundle, golden, split)
    assert np.array_equal(excerpt.reference, golden["stems"][0])
    assert np.array_equal(excerpt.mixture, golden["mix"][0])
    assert excerpt.split is split
    assert excerpt.title == demo_bundle.manifest.golden.audio


def test_part_of_a_file_is_separated_as_a_track_of_its_own(demo_bundle, split, song_path, tmp_path, monkeypatch):
    found = listening.audio_excerpt(split, "song", part(song_path, 1.0, 2.5), lambda step: None)
    song, _ = soundfile.read(song_path, dtype="float32", always_2d=True)
    mixture = song[RATE : RATE + round(2.5 * RATE)]
    assert np.array_equal(found.mixture, mixture.T)
    soundfile.write(tmp_path / "part.wav", mixture, RATE, subtype="FLOAT")
    separator = Separator(Bag.of(demo_bundle), "default", options=Options(shifts=0))
    track = separator.track(tmp_path / "part.wav")
    expected = np.concatenate(list(separator.stream(track, listening.statistics(track))), axis=-1)
    assert found.reference.shape == found.split.shape == expected.shape
    assert snr_db(expected, found.reference) > 120
    assert snr_db(expected, found.split) > 120


def test_reference_is_the_whole_capture_and_not_the_split(demo_bundle, split, song_path, monkeypatch):
    monkeypatch.setattr(split, "run", lambda given: {"stems": np.zeros((1, 4, 2, given["mix"].shape[-1]), np.float32)})
    found = listening.audio_excerpt(split, "song", part(song_path, 0.0, 1.0), lambda step: None)
    assert np.abs(found.reference).max() > 0.01
    assert np.ptp(found.split) == 0


def test_an_excerpt_ends_where_the_file_does(song_path):
    assert part(song_path, 4.0, 20.0).shape == (2, RATE)


def test_an_excerpt_beyond_the_file_is_refused(split, song_path):
    with pytest.raises(
        AudioError, match=r"ends too soon after .*: expected at least 0\.1 s from there, found 0\.0\d\d s"
    ):
        part(song_path, 4.95, 1.0)
    with pytest.raises(
        AudioError, match=r"ends before the excerpt begins: expected more than 5 s, found 5\.0 s\. .*--start"
    ):
        part(song_path, 5.0, 1.0)


def test_silence_is_refused(split, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros((RATE, 2)), RATE)
    with pytest.raises(AudioError, match="the excerpt of .* is silent"):
        part(tmp_path / "silence.wav", 0.0, 1.0)
