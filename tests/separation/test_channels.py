"""Files of more than two channels: each that BS.775 names is heard, at its place and at its level."""

import struct

import numpy as np
import pytest
import soundfile

from splitter.errors import AudioError
from splitter.separation import channels
from splitter.separation.audio import Track, survey

RATE = 44_100
LEFT, RIGHT, BOTH, SIDE = (1, 0), (0, 1), (0.5**0.5, 0.5**0.5), 0.5**0.5


def extensible(path, samples, mask):
    """A WAV of 16 bits whose header says where its channels stand."""
    data = (samples.T * 32_768).astype("<i2").tobytes()
    count = len(samples)
    guid = bytes.fromhex("0100000000001000800000aa00389b71")
    head = struct.pack("<HHIIHHHHI", 0xFFFE, count, RATE, RATE * count * 2, count * 2, 16, 22, 16, mask) + guid
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def alone(count, index):
    """Noise in one channel of several."""
    samples = np.zeros((count, 3000))
    samples[index] = np.random.default_rng(index).integers(-16_000, 16_000, 3000) / 32_768
    return samples


PLACES = {  # standard order: what a channel gives to the left and the right
    3: [LEFT, RIGHT, BOTH],
    4: [LEFT, RIGHT, (SIDE, 0), (0, SIDE)],
    5: [LEFT, RIGHT, BOTH, (SIDE, 0), (0, SIDE)],
    6: [LEFT, RIGHT, BOTH, None, (SIDE, 0), (0, SIDE)],
    7: [LEFT, RIGHT, BOTH, None, (0.5, 0.5), (SIDE, 0), (0, SIDE)],
    8: [LEFT, RIGHT, BOTH, None, (SIDE, 0), (0, SIDE), (SIDE, 0), (0, SIDE)],
}


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.aiff"])
@pytest.mark.parametrize(("count", "index"), [(count, index) for count in PLACES for index in range(count)])
def test_each_channel_is_heard_at_its_place(tmp_path, count, index, name):
    samples, gains = alone(count, index), PLACES[count][index]
    soundfile.write(tmp_path / name, samples.T, RATE)
    track = Track(tmp_path / name, RATE, 2)
    if gains is None:
        with pytest.raises(
            AudioError, match=r"silent when its \d channels .* mixed down .* without LFE.* for you to mix"
        ):
            survey(track)
        return
    heard = np.concatenate(list(track.blocks()), axis=1)
    np.testing.assert_allclose(heard, np.outer(gains, samples[index]), atol=1e-6)
    assert survey(track).downmix.startswith(f"{count} channels (FL FR ")


MASKS = {  # by which the third and fourth channel are not what the standard order would have
    0x107: [LEFT, RIGHT, BOTH, (0.5, 0.5)],  # a back centre
    0xC3: [LEFT, RIGHT, LEFT, RIGHT],  # left and right of centre
}


@pytest.mark.parametrize(("mask", "index"), [(mask, index) for mask in MASKS for index in range(4)])
def test_the_files_own_mask_says_where_its_channels_stand(tmp_path, mask, index):
    samples = alone(4, index)
    track = Track(extensible(tmp_path / "x.wav", samples, mask), RATE, 2)
    heard = np.concatenate(list(track.blocks()), axis=1)
    np.testing.assert_allclose(heard, np.outer(MASKS[mask][index], samples[index]), atol=1e-6)


@pytest.mark.parametrize("mask", [0, 0x3, 0x1F, 0x8000_0007])
def test_a_mask_that_does_not_name_every_channel_is_none(tmp_path, mask):
    track = Track(extensible(tmp_path / "x.wav", alone(4, 3), mask), RATE, 2)
    assert survey(track).downmix == "4 channels (FL FR BL BR) mixed down to 2 by ITU-R BS.775"


def test_more_channels_than_the_usual_orders_have_need_a_mask(tmp_path):
    samples = alone(10, 9)
    soundfile.write(tmp_path / "x.wav", samples.T, RATE)
    with pytest.raises(AudioError, match="has 10 channels and does not say where they stand.*--channels first2"):
        survey(Track(tmp_path / "x.wav", RATE, 2))
    assert survey(Track(tmp_path / "x.wav", RATE, 2, "first2")).downmix is None
    track = Track(extensible(tmp_path / "y.wav", samples, 0x503F | 0x600), RATE, 2)  # 5.1.4 without its back
    np.testing.assert_allclose(next(track.blocks()), np.outer((0, SIDE), samples[9]), atol=1e-6)


def test_vorbis_has_an_order_of_its_own(tmp_path):
    samples = alone(6, 1) * 0.5
    soundfile.write(tmp_path / "x.ogg", samples.T, RATE)
    heard = np.concatenate(list(Track(tmp_path / "x.ogg", RATE, 2).blocks()), axis=1)
    assert np.abs(heard[0] - heard[1]).max() < 1e-3, "its second channel is the centre"
    assert np.abs(heard).max() > 0.05
    assert channels.positions(6, xiph=True) == ("FL", "FC", "FR", "BL", "BR", "LFE")


def test_a_model_of_one_channel_hears_the_mean_of_the_downmix(tmp_path):
    samples = alone(3, 2)
    soundfile.write(tmp_path / "x.wav", samples.T, RATE)
    heard = np.concatenate(list(Track(tmp_path / "x.wav", RATE, 1).blocks()), axis=1)
    np.testing.assert_allclose(heard, samples[2:] * SIDE, atol=1e-6)


def test_a_model_of_four_takes_four_and_no_more(tmp_path):
    for count in (4, 6):
        soundfile.write(tmp_path / f"{count}.wav", alone(count, 0).T, RATE)
    assert survey(Track(tmp_path / "4.wav", RATE, 4)).downmix is None
    with pytest.raises(AudioError, match="wrong number of channels: expected 1 or 4, found 6"):
        survey(Track(tmp_path / "6.wav", RATE, 4))
