"""A stream block by block: the stems of its file, as soon as they can be there."""

import numpy as np
import pytest

import splitter
from splitter.bundle.directory import Bag
from splitter.bundle.manifest import Chunking
from splitter.errors import AudioError
from splitter.separation import audio
from splitter.separation.separator import Options, Separator

from ..conftest import snr_db

RATE = 8000


def pieces(sound, longest=90, taken=None):
    """Blocks of random lengths, none at all among them."""
    rng = np.random.default_rng(3)
    start = 0
    while start < sound.shape[1]:
        size = int(rng.integers(0, longest))
        if taken is not None:
            taken[0] = min(start + size, sound.shape[1])
        yield sound[:, start : start + size]
        start += size


def song(samples, channels=2):
    return np.random.default_rng(7).standard_normal((channels, samples)).astype(np.float32) / 3


def loudness(sound):
    return audio.statistics(audio.sound(sound, RATE, model_rate=RATE, channels=2))


def together(blocks):
    blocks = list(blocks)
    return {name: np.concatenate([block[name] for block in blocks], axis=1) for name in blocks[0]}


@pytest.fixture(scope="module")
def mirrored(toy_path):
    """A toy whose model hears a song's mirror image at its ends, and the song as it is."""
    bundle = splitter.load(toy_path).members[0]
    sound = bundle.audio.model_copy(
        update={"chunking": Chunking(normalised=False, edges="reflection", fade=8, stride=24, shifts=0)}
    )
    model = bundle.manifest.model.model_copy(update={"audio": sound})
    return Bag.of(bundle.with_programs({}, bundle.manifest.model_copy(update={"model": model})))


@pytest.mark.parametrize("samples", [1, 50, 64, 65, 700])
@pytest.mark.parametrize(
    "options",
    [{"shifts": 0}, {"shifts": 0, "overlap": 0.6}, {"shifts": 2}, {"shifts": 0, "stems": ("rest",)}, None],
    ids=["plain", "overlap", "shifts", "one stem", "mirrored"],
)
def test_a_stream_gives_what_its_file_gives(toy_path, mirrored, options, samples):
    separator = Separator(mirrored if options is None else toy_path, "default", options=Options(**(options or {})))
    sound = song(samples)
    whole = separator(sound, RATE)
    stems = together(separator.live(pieces(sound), RATE, None if options is None else loudness(sound)))
    assert stems.keys() == whole.keys()
    assert all(np.array_equal(stems[name], whole[name]) for name in whole)


@pytest.mark.parametrize("options", [{"shifts": 0}, {"shifts": 0, "overlap": 0.5}, {"shifts": 1}])
def test_stems_come_within_the_latency(toy_path, options):
    separator = Separator(toy_path, "default", options=Options(**options))
    most = round(separator.latency * RATE)
    assert most == 65 + (0 if options["shifts"] == 0 else 48), "a segment, and with a shift a chunk's stride"
    taken, come, blocks = [0], 0, 0
    for stems in separator.live(pieces(song(900), longest=2, taken=taken), RATE):
        if taken[0] < 900:
            assert taken[0] <= come + most, "when the next sample's stems come"
        come, blocks = come + stems["rest"].shape[1], blocks + 1
    assert come == 900
    assert blocks >= 900 // 48


def test_the_first_segment_stands_for_a_loudness_that_is_not_known(toy_path):
    separator = Separator(toy_path, "default", options=Options(shifts=0))
    sound = song(500)
    stems = together(separator.live(pieces(sound), RATE))
    expected = together(separator.live(pieces(sound), RATE, loudness(sound[:, :64])))
    assert all(np.array_equal(stems[name], expected[name]) for name in expected)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_stream_at_another_rate_comes_back_at_its_own(toy_path, channels):
    separator = Separator(toy_path, "default", options=Options(shifts=0))
    time = np.arange(4001) / 11_025
    sound = np.stack([np.sin(2 * np.pi * 300 * (1 + place) * time) for place in range(channels)]).astype(np.float32)
    stems = together(separator.live(pieces(sound), 11_025))
    heard = audio.statistics(audio.sound(sound, 11_025, model_rate=RATE, channels=2))
    expected = together(separator.live(pieces(sound, longest=4000), 11_025, heard))
    for name, stem in separator(sound, 11_025).items():
        assert stems[name].shape == stem.shape == sound.shape
        assert snr_db(stem[:, 50:-50], expected[name][:, 50:-50]) > 30


def test_what_is_no_stream_is_refused(toy_path):
    separator = Separator(toy_path, "default")
    assert list(separator.live([], RATE)) == []
    for blocks, message in [
        ([np.zeros((3, 5), np.float32)], "the stream cannot be separated"),
        ([song(5), song(5, channels=1)], "the stream changes its number of channels"),
        ([song(5), np.full((2, 5), np.nan, np.float32)], "not a number|NaN"),
    ]:
        with pytest.raises(AudioError, match=message):
            list(separator.live(blocks, RATE))
