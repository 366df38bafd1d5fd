"""What FFmpeg's libraries read for us: each format in its length, its sound and its channels; never more than a file."""

import sys

import numpy as np
import pytest
import soundfile

from splitter.errors import AudioError
from splitter.separation import media
from splitter.separation.audio import Track, statistics, survey

from ..conftest import snr_db

av = pytest.importorskip("av")

RATE = 44_100


def tone(seconds, count=2, rate=RATE):
    """A tone of its own in each channel."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([np.sin(2 * np.pi * 220 * (1 + index) * time) / 3 for index in range(count)]).astype(np.float32)


def encoded(path, sound, codec, *, rate=RATE, layout="stereo", video=False, options=None):
    with av.open(path, "w", options=options or {}) as container:
        if video:
            picture = container.add_stream("mpeg4", rate=25)
            picture.width = picture.height = 64
        stream = container.add_stream(codec, rate=rate)
        stream.codec_context.layout = layout
        if codec == "wmav2":
            stream.codec_context.bit_rate = 192_000
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate, stream.codec_context.frame_size)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), "fltp", layout)
        frame.sample_rate, frame.pts = rate, 0
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
        if video:
            for _ in range(25):
                image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
                container.mux(picture.encode(image))
            container.mux(picture.encode(None))
    return path


def decoded(path, **options):
    return np.concatenate(list(Track(path, RATE, 2, **options).blocks()), axis=1)


FORMATS = {  # name: codec, decibels at least, samples that the codec may add at the end
    "x.m4a": ("aac", 20, 1024),
    "alac.m4a": ("alac", 80, 0),
    "x.mp4": ("aac", 20, 1024),
    "x.mov": ("pcm_s16le", 80, 0),
    "x.mkv": ("pcm_s16le", 80, 0),
    "x.mka": ("pcm_s24le", 80, 0),
    "x.aac": ("aac", None, 2048),
    "x.ac3": ("ac3", None, 2048),
    "x.wma": ("wmav2", None, 4096),
    "x.avi": ("pcm_s16le", 80, 0),
    "x.wv": ("wavpack", 35, 0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_read(tmp_path, name):
    codec, at_least, more = FORMATS[name]
    sound = tone(1.5)
    path = encoded(tmp_path / name, sound, codec, video=name in ("x.mp4", "x.mkv", "x.avi"))
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.SoundFile(path)
    result = decoded(path)
    less = 2048 if codec == "wmav2" else 0  # which keeps its last block to itself
    assert sound.shape[1] - less <= result.shape[1] <= sound.shape[1] + more
    if at_least is not None:
        assert snr_db(sound, result[:, : sound.shape[1]]) >= at_least
    assert np.std(result) == pytest.approx(np.std(sound), rel=0.1)


def test_only_the_last_frame_is_cut_to_what_the_file_says(tmp_path):
    """Of a file whose clock runs too fast, which says 941 of each frame's 1024 samples."""
    path = encoded(tmp_path / "x.m4a", tone(1.5), "aac")
    whole, content = decoded(path), path.read_bytes()
    place = content.index(b"mdhd") + 16
    assert content[place : place + 4] == RATE.to_bytes(4, "big")
    path.write_bytes(content[:place] + (48_000).to_bytes(4, "big") + content[place + 4 :])
    result = decoded(path)
    assert whole.shape[1] == round(1.5 * RATE)
    assert whole.shape[1] - 1024 <= result.shape[1] < whole.shape[1]
    assert np.array_equal(result, whole[:, : result.shape[1]])


def test_opus_in_webm_is_read_at_its_48_khz(tmp_path):
    path = encoded(tmp_path / "x.webm", tone(1.5, rate=48_000), "libopus", rate=48_000)
    assert survey(Track(path, RATE, 2)).samplerate == 48_000
    assert decoded(path).shape[1] == pytest.approx(1.5 * RATE, abs=RATE / 50)


def test_channels_stand_where_the_file_says(tmp_path):
    sound = tone(0.5, 6)
    path = encoded(tmp_path / "x.m4a", sound, "alac", layout="5.1")
    found = survey(Track(path, RATE, 2))
    assert found.downmix == "6 channels (FL FR FC LFE BL BR) mixed down to 2 by ITU-R BS.775, without LFE"
    half = 0.5**0.5
    expected = np.stack([sound[0] + half * (sound[2] + sound[4]), sound[1] + half * (sound[2] + sound[5])])
    assert snr_db(expected, decoded(path)) > 80


def test_a_layout_of_its_own_is_obeyed(tmp_path):
    sound = tone(0.5, 4)
    path = encoded(tmp_path / "x.m4a", sound, "alac", layout="4.0")
    assert survey(Track(path, RATE, 2)).downmix.startswith("4 channels (FL FR FC BC)")
    expected = sound[:2] + 0.5**0.5 * sound[2] + 0.5 * sound[3]
    assert snr_db(expected, decoded(path)) > 80


def test_without_the_libraries_the_codec_and_the_remedy_are_named(tmp_path, monkeypatch):
    paths = {
        "AAC in MP4": encoded(tmp_path / "x.m4a", tone(0.2), "aac"),
        "ALAC in MP4": encoded(tmp_path / "y.m4a", tone(0.2), "alac"),
        "Opus in Matroska": encoded(tmp_path / "x.webm", tone(0.2, rate=48_000), "libopus", rate=48_000),
        "Windows Media": encoded(tmp_path / "x.wma", tone(0.2), "wmav2"),
    }
    monkeypatch.setattr(media, "find_spec", lambda name: None)
    for content, path in paths.items():
        with pytest.raises(AudioError, match=rf"{path.name} holds {content}, which .* pip install 'splitter\[av\]'"):
            statistics(Track(path, RATE, 2))


def test_what_libsndfile_reads_needs_no_libraries(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    soundfile.write(tmp_path / "x.flac", tone(0.2).T, RATE)
    assert decoded(tmp_path / "x.flac").shape == (2, 8820)


@pytest.mark.parametrize("name", ["x.m4a", "alac.m4a", "x.mov"])
@pytest.mark.parametrize("part", [0.5, 0.8])
def test_a_truncated_file_is_told(tmp_path, name, part):
    path = encoded(tmp_path / name, tone(3), FORMATS[name][0], options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    cut = "cannot be read as MP4"  # in the middle of a packet, which no decoder takes
    message = rf"{name} is truncated: expected 132,\d\d\d samples, found" if name == "x.mov" else rf"{name} {cut}"
    with pytest.raises(AudioError, match=message):
        statistics(Track(path, RATE, 2))


def test_a_video_without_sound_is_told(tmp_path):
    with av.open(tmp_path / "x.mkv", "w") as container:
        picture = container.add_stream("mpeg4", rate=25)
        picture.width = picture.height = 64
        image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
        container.mux([*picture.encode(image), *picture.encode(None)])
    with pytest.raises(AudioError, match="x.mkv holds no sound"):
        statistics(Track(tmp_path / "x.mkv", RATE, 2))


@pytest.mark.parametrize("name", ["x.m3u8", "x.txt", "x.wav", "x.mp4"])
def test_lists_of_other_files_are_no_sound(tmp_path, name):
    """Whatever they are called: FFmpeg would open what they name."""
    encoded(tmp_path / "secret.aac", tone(0.2), "aac")
    for text in ("#EXTM3U\n#EXTINF:1,\nsecret.aac\n", "ffconcat version 1.0\nfile secret.aac\n"):
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match=f"{name} cannot be read as audio"):
            statistics(Track(tmp_path / name, RATE, 2))


@pytest.mark.parametrize("head", [b"\0\0\0\x20ftypM4A ", b"\x1a\x45\xdf\xa3", b"\xff\xf1", b"wvpk"])
def test_what_only_begins_like_one_is_told(tmp_path, head):
    (tmp_path / "x.m4a").write_bytes(head + bytes(range(256)) * 9)
    with pytest.raises(AudioError, match="x.m4a"):
        statistics(Track(tmp_path / "x.m4a", RATE, 2))
