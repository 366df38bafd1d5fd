"""Stems in files: formats, rates, lengths, and what becomes of samples beyond full scale."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import soundfile
from splitter_weights.demo import songs

from splitter.errors import UsageError
from splitter.separation.encoding import MP3_BITRATES, MP3_RATES, Encoding, StemWriter, finish

from ..conftest import snr_db

RATE = 44_100


@pytest.fixture(scope="module")
def sound():
    return songs.mixture(songs.synthesise(1.5, 42))


def write(path, blocks, encoding, samples):
    with StemWriter(path, encoding, RATE, 2, samples) as writer:
        for block in blocks:
            writer.write(block)
        finish([writer])
    return soundfile.read(path, dtype="float32", always_2d=True)[0].T


@pytest.mark.parametrize("clip", ["rescale", "rescale-each"])
@pytest.mark.parametrize("peak", [0.5, 3.0])
def test_rescale_divides_the_whole_stem_by_its_peak_if_that_exceeds_one(tmp_path, sound, peak, clip):
    loud = sound * np.float32(peak / np.abs(sound).max())
    encoding = Encoding(subtype="FLOAT", clip=clip)
    result = write(tmp_path / "x.wav", np.array_split(loud, 7, axis=1), encoding, loud.shape[1])
    expected = loud / np.float32(max(1.01 * np.abs(loud).max(), 1))
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == ["x.wav"]


class Steps:
    """What `finish` sees of a writer."""

    encoding, peak = Encoding(), 0.0

    def __init__(self, steps):
        self.steps, self.closed = steps, False

    def end(self):
        """Nothing is held back."""

    def finishing(self, gain):
        try:
            yield from self.steps
        finally:
            self.closed = True


def test_files_are_finished_at_the_same_time():
    both = threading.Barrier(2)

    def steps(count):
        for _ in range(count):
            both.wait(10)
            yield 1
        both.wait(10)

    finish([Steps(steps(3)), Steps(steps(3))], threads=2)
    assert both.n_waiting == 0
    assert not both.broken


def test_a_file_that_cannot_be_written_stops_the_others():
    def full():
        yield 1
        raise OSError("the disk is full")

    other = Steps(itertools.repeat(1))
    with pytest.raises(OSError, match="full") as error:
        finish([Steps(full()), other])
    assert other.closed, f"whoever holds {error.value}"


def test_a_second_interrupt_does_not_wait_for_the_files(monkeypatch):
    begun, gate = threading.Event(), threading.Event()

    class Interrupted(ThreadPoolExecutor):
        def map(self, function, steps):
            self.submit(function, *steps)
            begun.wait(10)
            raise KeyboardInterrupt

        def __exit__(self, *error):
            raise KeyboardInterrupt

    def slow():
        begun.set()
        gate.wait(10)
        yield 1

    monkeypatch.setattr("splitter.separation.encoding.ThreadPoolExecutor", Interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            finish([Steps(slow())])
    finally:
        gate.set()


@pytest.mark.parametrize(
    ("clip", "expected"),
    [("clamp", lambda x: np.clip(x, -0.99, 0.99)), ("tanh", np.tanh), ("none", lambda x: x)],
)
def test_clip_modes(tmp_path, sound, clip, expected):
    loud = sound * np.float32(3)
    result = write(tmp_path / "x.wav", [loud], Encoding(subtype="FLOAT", clip=clip), loud.shape[1])
    np.testing.assert_allclose(result, expected(loud), rtol=1e-6)


@pytest.mark.parametrize(
    ("encoding", "at_least"),
    [
        (Encoding("wav", "PCM_16"), 70),
        (Encoding("wav", "PCM_24"), 120),
        (Encoding("flac", "PCM_16"), 70),
        (Encoding("flac", "PCM_24"), 120),
        (Encoding("mp3", "MPEG_LAYER_III"), 10),
    ],
)
def test_formats_are_written(tmp_path, sound, encoding, at_least):
    path = tmp_path / f"x.{encoding.container}"
    result = write(path, np.array_split(sound, 3, axis=1), encoding, sound.shape[1])
    assert snr_db(sound, result[:, : sound.shape[1]]) >= at_least
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (RATE, 2, encoding.subtype)


@pytest.mark.parametrize("rate", MP3_BITRATES)
def test_mp3_has_the_bit_rate_asked(tmp_path, sound, rate):
    long = np.tile(sound, 8)
    write(tmp_path / "x.mp3", [long], Encoding("mp3", "MPEG_LAYER_III", "none", rate), long.shape[1])
    size = (tmp_path / "x.mp3").stat().st_size * 8 / (long.shape[1] / RATE) / 1000
    assert size == pytest.approx(rate, rel=0.04)


def test_bit_rates_that_mp3_does_not_have_are_refused():
    with pytest.raises(UsageError, match="no bit rate of 100 kbit"):
        Encoding("mp3", "MPEG_LAYER_III", "none", 100)


@pytest.mark.parametrize(
    ("clip", "gains"), [("rescale", (1 / 2.02, 1 / 2.02)), ("rescale-each", (1.0, 1 / 2.02)), ("clamp", (1.0, 1.0))]
)
def test_one_gain_keeps_the_balance_of_all_stems(tmp_path, sound, clip, gains):
    quiet, loud = (sound * np.float32(peak / np.abs(sound).max()) for peak in (0.5, 2.0))
    with ExitStack() as stack:
        files = (tmp_path / "quiet.wav", tmp_path / "loud.wav")
        encoding = Encoding(subtype="FLOAT", clip=clip)
        writers = [stack.enter_context(StemWriter(file, encoding, RATE, 2, sound.shape[1])) for file in files]
        for writer, stem in zip(writers, (quiet, loud), strict=True):
            writer.write(stem)
        assert finish(writers) == pytest.approx(gains)
    result = [soundfile.read(file, dtype="float32")[0].T for file in files]
    if clip == "rescale":
        np.testing.assert_allclose(sum(result), (quiet + loud) * gains[0], atol=1e-6)
    np.testing.assert_allclose(result[0], quiet * np.float32(gains[0]), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11_025, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("samples", [1, 2, 4410, 66_150])
@pytest.mark.parametrize("more", [-3, 1])  # as a file may have whose length is not one of the model's
def test_a_stem_has_the_rate_and_the_very_length_asked(tmp_path, sound, rate, samples, more):
    length = max(1, round(samples * rate / RATE) + more)
    with StemWriter(tmp_path / "x.wav", Encoding(subtype="FLOAT"), rate, 2, length, RATE) as writer:
        for block in np.array_split(sound[:, :samples], 3, axis=1):
            writer.write(block)
        finish([writer])
    assert (soundfile.info(tmp_path / "x.wav").samplerate, soundfile.info(tmp_path / "x.wav").frames) == (rate, length)


@pytest.mark.parametrize(
    ("wanted", "rate"), [(44_100, 44_100), (88_200, 44_100), (96_000, 48_000), (192_000, 48_000), (13_000, 16_000)]
)
def test_mp3_has_nine_sample_rates(tmp_path, sound, wanted, rate):
    assert Encoding("mp3", "MPEG_LAYER_III").rate(wanted) == rate
    assert Encoding().rate(wanted) == wanted


@pytest.mark.parametrize("rate", MP3_RATES)
@pytest.mark.parametrize("bitrate", [64, 128, 320])
def test_mp3_of_low_sample_rates_has_the_bit_rate_asked_or_its_highest(tmp_path, sound, rate, bitrate):
    long = np.tile(sound, 8)
    with StemWriter(tmp_path / "x.mp3", Encoding("mp3", "MPEG_LAYER_III", "none", bitrate), rate, 2, 1) as writer:
        writer.write(long)
        finish([writer])
    size = (tmp_path / "x.mp3").stat().st_size * 8 / (long.shape[1] / rate) / 1000
    highest = 64 if rate < 16_000 else 160 if rate < 32_000 else 320
    assert size == pytest.approx(min(bitrate, highest), rel=0.05)


def test_files_beyond_four_gigabytes_get_a_header_that_can_count_them(tmp_path, sound):
    with StemWriter(tmp_path / "x.wav", Encoding(subtype="FLOAT", clip="none"), RATE, 2, 700_000_000) as writer:
        writer.write(sound)
        finish([writer])
    assert (tmp_path / "x.wav").read_bytes()[:4] == b"RF64"
