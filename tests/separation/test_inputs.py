"""What is meant by the paths that were given."""

import io
import os
import sys

import pytest

from splitter.bundle.directory import load
from splitter.errors import AudioError, UsageError
from splitter.separation import inputs
from splitter.separation.separator import Options, Separator


@pytest.fixture
def library(tmp_path):
    for name in ("b.wav", "a.MP3", "notes.txt", ".hidden.wav", "live/c.flac", ".trash/d.wav", "out/duo/b/kept.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(library, *paths, **options):
    return [path.relative_to(library).as_posix() for path in inputs.tracks(paths, library / "out", **options)]


def test_a_folder_stands_for_its_sound_files(library):
    assert names(library, library) == ["a.MP3", "b.wav"]
    assert names(library, library / "b.wav", library) == ["b.wav", "a.MP3"], "each once"


def test_folders_in_a_folder_are_taken_when_asked(library):
    assert names(library, library, recursive=True) == ["a.MP3", "b.wav", "live/c.flac"], "but no stems, nothing hidden"
    (library / "live" / "loop").symlink_to(library)
    assert len(names(library, library, recursive=True)) == 3


def test_a_folder_without_sound_is_refused(library):
    (library / "empty").mkdir()
    with pytest.raises(UsageError, match="empty is a folder without sound files. --recursive takes"):
        names(library, library / "empty")


@pytest.mark.parametrize("url", ["https://host/a/b.mp3?x=1", "http://host", "file:///home/a.wav", "s3://bucket/a.wav"])
def test_a_url_is_called_one_and_shown_as_it_was(library, url):
    with pytest.raises(UsageError, match="is a URL, and only files are read. Download it first") as refused:
        names(library, url)
    assert url.replace(":///", "://") in str(refused.value)


def test_a_name_with_a_colon_is_a_file(library, monkeypatch):
    monkeypatch.chdir(library)
    assert inputs.tracks(["c:a.wav"], library) == [inputs.Path("c:a.wav")]
    (library / "ab:").mkdir()
    (library / "ab:" / "x.wav").touch()
    assert inputs.tracks(["ab:/x.wav"], library) == [inputs.Path("ab:/x.wav")]


def test_standard_input_is_a_song_called_stdin(tmp_path, toy_path, song_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").mkdir()  # whatever is there
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(song_path.read_bytes())))
    separator = Separator(load(toy_path), "default", options=Options(shifts=0))
    (outcome,) = separator.separate(["-"], tmp_path / "out")
    assert (str(outcome.path), outcome.error) == ("-", None)
    assert {stem.parent for stem in outcome.stems.values()} == {tmp_path / "out" / "duo" / "stdin"}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no sound")))
    (outcome,) = separator.separate(["-"], tmp_path / "other")
    assert isinstance(outcome.error, AudioError)
    assert str(outcome.error).startswith("standard input cannot be read as audio")


def test_a_pipe_by_name_is_refused_and_not_waited_for(tmp_path, toy_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (outcome,) = Separator(load(toy_path), "default").separate([tmp_path / "pipe.wav"], tmp_path / "out")
    assert "it is a pipe, not a regular file. - reads standard input: splitter separate - < " in str(outcome.error)


def test_one_stem_is_written_to_a_stream(tmp_path, toy_path, song_path):
    options = Options(shifts=0, two_stems="kept", other_method="none")
    separator, sink = Separator(load(toy_path), "default", options=options), io.BytesIO()
    written = separator.separate_into(song_path, sink)
    (outcome,) = separator.separate([song_path], tmp_path)
    assert sink.getvalue() == outcome.stems["kept"].read_bytes()
    assert written == outcome.written
    with pytest.raises(UsageError, match="a stream holds one stem; got kept, rest"):
        Separator(load(toy_path), "default").separate_into(song_path, sink)
    (tmp_path / "two").mkdir()
    for name in "ab":
        (tmp_path / "two" / f"{name}.wav").touch()
    with pytest.raises(UsageError, match="one file; got 2 in"):
        separator.separate_into(tmp_path / "two", sink)
