import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from splitter_weights.demo import songs

from splitter.bundle.manifest import AudioRecord, Chunking
from splitter.errors import AudioError
from splitter.separation.audio import Statistics, Track, Window, heard, heard_by, statistics, survey
from splitter.separation.encoding import Encoding, StemWriter, finish

from ..conftest import snr_db

RATE = 44_100


@pytest.fixture(scope="module")
def sound():
    return songs.mixture(songs.synthesise(1.5, 42))


def written(path, sound, rate=RATE, **options):
    soundfile.write(path, sound.T, rate, **options)
    return Track(path, RATE, 2)


def decoded(track):
    return np.concatenate(list(track.blocks()), axis=1)


@pytest.mark.parametrize(
    ("name", "options", "at_least"),
    [
        ("x.wav", {"subtype": "FLOAT"}, 300),
        ("x.wav", {"subtype": "PCM_24"}, 120),
        ("x.flac", {}, 70),
        ("x.aiff", {}, 70),
        ("x.ogg", {}, 10),
        ("x.mp3", {}, 10),
    ],
)
def test_formats_are_read(tmp_path, sound, name, options, at_least):
    result = decoded(written(tmp_path / name, sound, **options))
    assert result.shape == sound.shape
    assert snr_db(sound, result) >= at_least


def test_blocks_are_small_whatever_the_length(tmp_path, sound):
    track = written(tmp_path / "x.wav", np.tile(sound, 4))
    assert max(block.shape[1] for block in track.blocks()) <= 1 << 16


@pytest.mark.parametrize("rate", [8000, 22_050, 48_000, 96_000])
def test_other_rates_are_resampled_as_soxr_does_in_one_go(tmp_path, sound, rate):
    result = decoded(written(tmp_path / "x.wav", sound, rate, subtype="FLOAT"))
    whole = soxr.resample(sound.T, rate, RATE, quality="HQ").T
    assert result.shape[1] == round(sound.shape[1] * RATE / rate)
    length = min(result.shape[1], whole.shape[1])
    assert snr_db(whole[:, :length], result[:, :length]) >= 100


def test_channels_are_fitted_as_demucs_does(tmp_path, sound):
    mono = written(tmp_path / "mono.wav", sound[:1], subtype="FLOAT")
    assert np.array_equal(decoded(mono), np.repeat(sound[:1], 2, axis=0))
    many = written(tmp_path / "six.wav", np.concatenate([sound, sound * 0.1, sound * 0.2]), subtype="FLOAT")
    assert np.array_equal(decoded(Track(many.path, RATE, 2, "first2")), sound)
    down = Track(tmp_path / "six.wav", RATE, 1, "first2")
    np.testing.assert_allclose(decoded(down), sound.mean(axis=0, keepdims=True) * (1.3 / 3), atol=1e-6)
    with pytest.raises(AudioError, match="wrong number of channels: expected 1 or 4, found 2"):
        decoded(Track(written(tmp_path / "x.wav", sound).path, RATE, 4))


def test_statistics_are_those_of_the_mono_mixdown(tmp_path, sound):
    loud = (sound + 0.3).astype(np.float32)
    heard = statistics(written(tmp_path / "x.wav", loud, subtype="FLOAT"))
    mono = loud.astype(np.float64).mean(axis=0)
    assert heard.samples == mono.size
    assert heard.mean == pytest.approx(mono.mean(), rel=1e-9)
    assert heard.std == pytest.approx(mono.std(ddof=1), rel=1e-9)


def test_single_sample_has_no_deviation(tmp_path):
    assert statistics(written(tmp_path / "x.wav", np.full((2, 1), 0.5, np.float32))).std == 0
    assert Statistics.of(np.full((2, 1), 0.5, np.float32)) == Statistics(1, 0.5, 0.0)


@pytest.mark.parametrize("rate", [8000, 96_000, 192_000])
@pytest.mark.parametrize("samples", [1, 2, 3, 1000, 65_537])
def test_a_track_is_as_long_at_the_models_rate_as_it_is(tmp_path, rate, samples):
    """However short: one sample at 192 kHz is a quarter of one at 44.1 kHz."""
    track = written(tmp_path / "x.wav", np.full((2, samples), 0.5, np.float32), rate)
    found = survey(track)
    assert (found.samplerate, found.frames, found.downmix) == (rate, samples, None)
    assert found.statistics.samples == max(1, round(samples * RATE / rate)) == decoded(track).shape[1]


def test_sound_is_normalised_by_its_mono_mixdown_and_restored(sound):
    loud = (sound * 0.01 + 0.3).astype(np.float32)
    mono = loud.astype(np.float64).mean(axis=0)
    expected = (loud - mono.mean()) / (mono.std(ddof=1) + 1e-8)
    record = AudioRecord(stems=("a", "b"), samplerate=RATE, channels=2, samples=1000)
    result = heard(loud, record)
    assert result.dtype == np.float32
    assert np.array_equal(result, expected.astype(np.float32)), "to the last bit of double precision"
    np.testing.assert_allclose(Statistics.of(loud).restored(result), loud, atol=1e-7)
    assert np.array_equal(heard(np.full((2, 5), 0.25, np.float32), record), np.zeros((2, 5)))


def test_a_model_that_normalises_by_itself_hears_the_sound_as_it_is(sound):
    record = AudioRecord(
        stems=("a", "b"), samplerate=RATE, channels=2, samples=1000, chunking=Chunking(normalised=False)
    )
    assert np.array_equal(heard(sound, record), sound)
    assert np.array_equal(heard_by(record, Statistics.of(sound)).restored(sound), sound)


BAD = {
    "empty": lambda path, sound: path.write_bytes(b""),
    "not audio": lambda path, sound: path.write_bytes(b"hello, I am a text file\n" * 20),
    "zero length": lambda path, sound: soundfile.write(path, np.zeros((0, 2)), RATE, format="WAV"),
    "NaN": lambda path, sound: soundfile.write(path, np.full((10, 2), np.nan), RATE, format="WAV", subtype="FLOAT"),
    "infinite": lambda path, sound: soundfile.write(
        path, np.full((10, 2), np.inf), RATE, format="WAV", subtype="FLOAT"
    ),
    "missing": lambda path, sound: None,
    "a directory": lambda path, sound: path.mkdir(),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_bad_files_are_named(tmp_path, sound, make):
    make(tmp_path / "bad.wav", sound)
    with pytest.raises(AudioError, match=r"bad\.wav"):
        statistics(Track(tmp_path / "bad.wav", RATE, 2))


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (-np.inf, "infinity")])
@pytest.mark.parametrize("frame", [0, 70_000])
def test_what_is_no_number_is_told_with_its_place(tmp_path, value, name, frame):
    sound = np.zeros((2, 100_000), np.float32)
    sound[1, frame:] = value
    track = written(tmp_path / "x.wav", sound, subtype="FLOAT")
    with pytest.raises(AudioError, match=rf"x.wav holds {name} at {frame / RATE:.3f} s in channel 2"):
        statistics(track)


def test_warnings_of_the_decoder_of_mp3_are_kept_from_the_terminal(tmp_path, tagged, capfd):
    comment = b"COMM\0\0\0\x0f\0\0" + b"\x09eng" + b"of no known encoding"  # the first byte says which
    (tmp_path / "x.mp3").write_bytes(b"ID3\x03\0\0\0\0\0\x40" + comment.ljust(64, b"\0") + tagged)
    with soundfile.SoundFile(tmp_path / "x.mp3") as file:
        file.read()
    assert capfd.readouterr().err, "it has some"
    assert decoded(Track(tmp_path / "x.mp3", RATE, 2)).shape[1] >= 6 * RATE
    assert capfd.readouterr() == ("", "")
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.mp3", "x.aiff"])
def test_truncated_files_are_named(tmp_path, sound, name):
    track = written(tmp_path / name, sound)
    track.path.write_bytes(track.path.read_bytes()[: track.path.stat().st_size // 2])
    told = {
        ".wav": f"is truncated: expected {sound.shape[1]:,} samples, found 33,0[67]\\d. Export it again",
        ".aiff": f"is truncated: expected {sound.shape[1]:,} samples, found 33,0[67]\\d. Export it again",
        ".mp3": r"is truncated: expected [\d,]+ samples, found [\d,]+\. Export it again",
        ".flac": "cannot be read as audio",
    }
    with pytest.raises(AudioError, match=f"{name} {told[track.path.suffix]}"):
        statistics(track)


def test_length_placeholder_of_a_pipe_is_no_truncation(tmp_path, sound):
    track = written(tmp_path / "x.wav", sound)
    raw = bytearray(track.path.read_bytes())
    at = raw.index(b"data") + 4
    raw[at : at + 4] = b"\xff\xff\xff\xff"
    track.path.write_bytes(raw)
    assert statistics(track).samples == sound.shape[1]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 4000)), min_size=1, max_size=12))
def test_window_is_the_track_with_silence_around(moves):
    import tempfile
    from pathlib import Path

    rng = np.random.default_rng(0)
    sound = rng.uniform(-1, 1, (2, 9000)).astype(np.float32)
    with tempfile.TemporaryDirectory() as directory:
        window = Window(written(Path(directory) / "x.wav", sound, subtype="FLOAT"), history=4000)
        start = -500
        padded = np.pad(sound, ((0, 0), (1000, 60_000)))
        for step, length in moves:
            start += step
            assert np.array_equal(window.read(start, start + length), padded[:, 1000 + start : 1000 + start + length])


def test_window_forgets_what_lies_behind(tmp_path, sound):
    window = Window(written(tmp_path / "x.wav", sound), history=100)
    window.read(0, 20_000)
    window.read(19_900, 20_000)
    with pytest.raises(ValueError, match="no longer held"):
        window.read(0, 10)
    assert window._buffer.shape[1] <= (1 << 16) + 100


@pytest.fixture
def tagged(tmp_path):
    """An MP3 of variable bit rate whose first frames are small, so that its length cannot be told by them."""
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, (6 * RATE, 2)) * np.linspace(0, 1, 6 * RATE)[:, None] ** 4
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": 0.5}
    soundfile.write(tmp_path / "tagged.mp3", noise, RATE, **options)
    return (tmp_path / "tagged.mp3").read_bytes()


PICTURE = b"\xff\xfb\x90d" + b"Xing" + bytes(120)  # what looks like a frame is not always one
ID3 = b"ID3\x03\0\0\0\0\x01\0" + PICTURE


@pytest.mark.parametrize("before", [b"", ID3, ID3 + ID3], ids=["plain", "id3", "two"])
@pytest.mark.parametrize("tag", [True, False])
def test_mp3_is_read_to_its_end(tmp_path, tagged, before, tag):
    length = tagged.index(b"\xff\xfb", 200)  # of the frame that holds nothing but the tag
    assert b"Xing" in tagged[:length]
    path = tmp_path / "x.mp3"
    path.write_bytes(before + tagged[0 if tag else length :])
    samples = decoded(Track(path, RATE, 2)).shape[1]
    assert 6 * RATE <= samples <= 6 * RATE + 3 * 1152
    if not tag:
        assert abs(soundfile.info(path).frames - samples) > RATE, "libsndfile is as wrong as was thought"


def test_mp3_that_is_left_in_the_middle_leaves_no_thread(tmp_path, tagged):
    path = tmp_path / "x.mp3"
    path.write_bytes(tagged[tagged.index(b"\xff\xfb", 200) :] * 9)
    before = threading.active_count()
    blocks = Track(path, RATE, 2).blocks()
    next(blocks)
    assert threading.active_count() == before + 1
    blocks.close()
    assert threading.active_count() == before


def test_names_outside_the_systems_encoding(tmp_path, sound):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    with StemWriter(path, Encoding(subtype="FLOAT"), RATE, 2, sound.shape[1]) as writer:
        writer.write(sound)
        finish([writer])
    assert np.array_equal(decoded(Track(path, RATE, 2)), sound)
