"""M4A and stem files, read back."""

import json

import numpy as np
import pytest
import soundfile
from mutagen.mp4 import MP4
from splitter_weights.demo import songs

import splitter
from splitter.bundle.manifest import AudioRecord
from splitter.errors import UsageError
from splitter.separation import encoding
from splitter.separation.audio import Track, survey
from splitter.separation.encoding import Encoding, StemWriter, finish

from ..conftest import snr_db

av = pytest.importorskip("av")

RATE = 44_100


@pytest.mark.parametrize(("rate", "channels", "samples"), [(44_100, 2, 70_001), (48_000, 1, 1), (96_000, 2, 4096)])
def test_m4a_is_read_back_with_its_length(tmp_path, rate, channels, samples):
    sound = songs.mixture(songs.synthesise(samples / rate + 0.1, 42, rate))[:channels, :samples] / 2
    with StemWriter(tmp_path / "x.m4a", Encoding("m4a", "AAC"), rate, channels, samples) as writer:
        for block in np.array_split(sound, 3, axis=1):
            writer.write(block)
        finish([writer])
    result = np.concatenate([*Track(tmp_path / "x.m4a", rate, channels).blocks()], axis=1)
    assert survey(Track(tmp_path / "x.m4a", rate, channels)).frames == samples
    assert result.shape == sound.shape
    assert samples < 5000 or snr_db(sound, result) > 18
    with av.open(str(tmp_path / "x.m4a")) as file:
        assert (file.streams.audio[0].codec_context.name, file.streams.audio[0].rate) == ("aac", rate)


def atoms(content):
    """Names and contents, one after another."""
    while content:
        size = int.from_bytes(content[:4], "big")
        yield content[4:8], content[8:size]
        content = content[size:]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A toy of four stems, as its audio record says."""
    import torch

    from ..toys import GRAPHS_PLAN, Hybrid, separating

    class Four(Hybrid):
        def forward(self, mix):
            restored = super().forward(mix)
            return torch.stack([restored / 2, mix - restored, mix / 3, restored / 4], 1)

    model = separating(Four())
    model.sources, model.samplerate = ["drums", "bass", "other", "vocals"], RATE
    return splitter.build(model, tmp_path_factory.mktemp("four") / "b", plan=GRAPHS_PLAN, segment=64 / RATE)


def test_a_stem_file_holds_the_song_and_its_stems(tmp_path, four):
    song = tmp_path / "song.flac"
    soundfile.write(song, songs.mixture(songs.synthesise(0.5, 7)).T * 1.5, RATE)
    import mutagen

    tagged = mutagen.File(song)
    tagged.update({"title": ["A song"], "artist": ["Nobody"], "tracknumber": ["3/9"], "bpm": ["120.4"]})
    tagged.save()
    options = splitter.Options(encoding=Encoding("stem.mp4", "AAC"))
    separator = splitter.Separator(four, "default", options=options)
    (outcome,) = separator.separate([song], tmp_path / "out")
    assert outcome.error is None
    path = tmp_path / "out" / four.name / "song.stem.mp4"
    assert outcome.stems == {"stems": path}
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == ["song.stem.mp4"]

    mix = np.concatenate([*separator.track(song).blocks()], axis=1)
    stems = separator(mix, RATE)
    read = []
    for index in range(5):
        with av.open(str(path)) as file:
            assert [stream.codec_context.name for stream in file.streams] == ["aac"] * 5
            read.append(np.concatenate([frame.to_ndarray() for frame in file.decode(file.streams[index])], axis=1))
    gain = 10 ** (outcome.written.gain_db["mix"] / 20)
    assert gain < 1, "the song goes above full scale, and all tracks are lowered alike"
    sounds = [sound * gain for sound in (mix, *stems.values())]
    for place, track in enumerate(read):
        decibels = [snr_db(sound, track[:, : mix.shape[1]]) for sound in sounds]
        assert np.argmax(decibels) == place
        assert decibels[place] > 6, "AAC of what is mostly noise"

    moov = dict(atoms(dict(atoms(path.read_bytes()))[b"moov"]))
    content = json.loads(dict(atoms(moov[b"udta"]))[b"stem"])
    assert content["version"] == 1
    assert [stem["name"] for stem in content["stems"]] == ["Drums", "Bass", "Other", "Vocals"]
    assert all(stem["color"].startswith("#") for stem in content["stems"])
    assert {"compressor", "limiter"} == content["mastering_dsp"].keys()
    tracks = [dict(atoms(body)) for name, body in atoms(dict(atoms(path.read_bytes()))[b"moov"]) if name == b"trak"]
    assert [track[b"tkhd"][3] & 1 for track in tracks] == [1, 0, 0, 0, 0], "players play the song"

    tags = MP4(path)
    assert (tags["©nam"], tags["©ART"], tags["trkn"], tags["tmpo"]) == (["A song"], ["Nobody"], [(3, 9)], [120])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stems": ("drums", "bass")}, "a stem file holds 4 stems; got drums, bass"),
        ({"two_stems": "bass"}, "a stem file holds 4 stems"),
        ({"samplerate": 44_099}, "AAC has no sample rate of 44,099 Hz"),
    ],
)
def test_what_a_stem_file_cannot_hold_is_said(four, options, message):
    with pytest.raises(UsageError, match=message):
        splitter.Separator(four, "default", options=splitter.Options(encoding=Encoding("stem.mp4", "AAC"), **options))


def test_what_aac_cannot_hold_is_said(toy_path, monkeypatch):
    assert [Encoding("m4a", "AAC").rate(rate) for rate in (192_000, 176_400, 44_000)] == [96_000, 88_200, 44_100]
    with pytest.raises(UsageError, match="between 32 and 320 kbit/s, found 400"):
        Encoding("m4a", "AAC", aac_bitrate=400)
    bundle = splitter.load(toy_path).members[0]
    record = AudioRecord(stems=("kept", "rest"), samplerate=8000, channels=4, samples=64)
    model = bundle.manifest.model.model_copy(update={"audio": record})
    surround = bundle.with_programs({}, bundle.manifest.model_copy(update={"model": model}))
    with pytest.raises(UsageError, match="M4A is written with one or two channels; got 4"):
        splitter.Separator(surround, "default", options=splitter.Options(encoding=Encoding("m4a", "AAC")))
    monkeypatch.setattr(encoding, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'splitter\[av\]'"):
        Encoding("m4a", "AAC")
