"""Tags and cover of a song, in its stems: of every format that has them, into every format that is written."""

import base64

import mutagen
import numpy as np
import pytest
import soundfile
from mutagen import id3
from mutagen.asf import ASF
from mutagen.flac import Picture
from mutagen.mp4 import MP4Cover

from splitter.bundle.directory import load
from splitter.separation import tags
from splitter.separation.audio import Track, survey
from splitter.separation.encoding import Encoding
from splitter.separation.separator import Options, Separator

COVER = ("image/png", b"\x89PNG" + bytes(range(256)))
FIELDS = {"title": ["Song"], "artist": ["Ann", "Bé"], "album": ["歌"], "tracknumber": ["3/12"], "date": ["2001"]}


def song(path, fields=FIELDS, cover=COVER):
    """A second of sound with tags, in the way of its format."""
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, (8000, 2))
    if path.suffix == ".m4a":
        av = pytest.importorskip("av")
        with av.open(path, "w") as container:
            stream = container.add_stream("aac", rate=8000)
            stream.codec_context.layout = "stereo"
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            frame.sample_rate, frame.pts = 8000, 0
            container.mux([*stream.encode(frame), *stream.encode(None)])
        file = mutagen.File(path)
        file.tags.update({tags._FIELDS[name][1]: texts for name, texts in fields.items() if name != "tracknumber"})
        file.tags["trkn"] = [(3, 12)]
        file.tags["covr"] = [MP4Cover(cover[1], MP4Cover.FORMAT_PNG)]
        file.save()
        return path
    soundfile.write(path, sound, 8000)
    file = mutagen.File(path)
    picture = Picture()
    picture.type, picture.mime, picture.data = 3, *cover
    if path.suffix in (".wav", ".mp3", ".aiff"):
        if file.tags is None:
            file.add_tags()
        for name, texts in fields.items():
            file.tags.add(getattr(id3, tags._FIELDS[name][0])(encoding=3, text=texts))
        file.tags.add(id3.APIC(encoding=3, mime=cover[0], type=3, data=cover[1]))
    else:
        file.update(fields)
        if path.suffix == ".flac":
            file.add_picture(picture)
        else:
            file["metadata_block_picture"] = [base64.b64encode(picture.write()).decode()]
    file.save()
    return path


@pytest.mark.parametrize("suffix", ["wav", "mp3", "aiff", "flac", "ogg", "m4a"])
def test_tags_are_read_of_every_format(tmp_path, suffix):
    found = tags.read(song(tmp_path / f"a.{suffix}"))
    assert found.fields == FIELDS
    assert found.cover == COVER


@pytest.mark.parametrize(
    "encoding",
    [Encoding(), Encoding("flac"), Encoding("mp3", "MPEG_LAYER_III"), Encoding("m4a", "AAC")],
    ids=lambda one: one.container,
)
def test_stems_have_the_tags_of_their_song(tmp_path, toy_path, encoding):
    track = song(tmp_path / "a.flac")
    separator = Separator(load(toy_path), "default", options=Options(encoding=encoding))
    (outcome,) = separator.separate([track], tmp_path / "out")
    for name, stem in outcome.stems.items():
        assert tags.read(stem) == tags.Tags(FIELDS | {"title": [f"Song ({name})"]}, COVER)
        assert survey(Track(stem, 8000, 2)).frames == pytest.approx(
            8000, abs=3000 if encoding.container == "mp3" else 0
        )
    (again,) = separator.separate([track], tmp_path / "out")
    assert again.attempts == 0, "the receipt is of the stems with their tags"


def test_none_are_copied_when_not_asked_and_none_are_made_up(tmp_path, toy_path):
    options = Options(tags=False)
    track = song(tmp_path / "a.flac")
    (outcome,) = Separator(load(toy_path), "default", options=options).separate([track], tmp_path / "out")
    assert not [stem for stem in outcome.stems.values() if tags.read(stem)]
    soundfile.write(tmp_path / "bare.flac", np.zeros((800, 2)), 8000)
    (outcome,) = Separator(load(toy_path), "default").separate([tmp_path / "bare.flac"], tmp_path / "out")
    assert not [stem for stem in outcome.stems.values() if tags.read(stem)]


def test_a_song_without_a_title_has_its_files_name(tmp_path, toy_path):
    track = song(tmp_path / "a.flac", {"artist": ["Ann"]})
    (outcome,) = Separator(load(toy_path), "default").separate([track], tmp_path / "out")
    assert tags.read(outcome.stems["rest"]).fields["title"] == ["a (rest)"]


def test_a_full_disk_is_not_hidden_by_the_library(tmp_path, monkeypatch):
    def fail(self, *given, **options):
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise mutagen.MutagenError(error) from error

    stem = song(tmp_path / "a.flac")
    monkeypatch.setattr(mutagen.flac.FLAC, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        tags.write(stem, tags.Tags(FIELDS, None), "Song (bass)")


def test_what_cannot_be_read_is_no_error(tmp_path, monkeypatch):
    assert tags.read(tmp_path / "missing.flac") is None
    for head in (b"fLaC", b"OggS", b"ID3\x04\0\0\x7f\x7f\x7f\x7f", b"\0\0\0\x20ftypM4A ", b"RIFF"):
        (tmp_path / "x").write_bytes(head + bytes(range(256)))
        assert tags.read(tmp_path / "x") is None
    monkeypatch.setattr(tags, "_MOST_COVER_BYTES", 10)
    assert tags.read(song(tmp_path / "a.flac")).cover is None


def test_a_track_of_an_unknown_number_is_a_number():
    assert [tags._text(value) for value in ((3, 12), (3, 0), "3")] == ["3/12", "3", "3"]


def test_windows_media_calls_them_otherwise():
    class File(ASF):
        def __init__(self):
            self.tags = {"Author": ["Ann"], "WM/AlbumTitle": ["Best"]}

    assert tags._texts(File(), "artist", *tags._FIELDS["artist"]) == ["Ann"]
    assert tags._cover(File()) is None
