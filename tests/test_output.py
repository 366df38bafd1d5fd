"""Files by name: whole or not at all, and refused early."""

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from splitter import arrays, output
from splitter.errors import UsageError


@pytest.fixture
def nowhere(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    return {
        "no folder": tmp_path / "none" / "a.npz",
        "below a file": tmp_path / "file" / "a.npz",
        "too long": tmp_path / ("a" * 300 + ".npz"),
        "a folder": tmp_path / "folder",
    }


@pytest.mark.parametrize("where", ["no folder", "below a file", "too long", "a folder"])
def test_a_place_where_no_file_can_be_is_refused(nowhere, where):
    with pytest.raises(UsageError, match=r"(cannot be written; got [A-Z][a-z ]+$|is no regular file)"):
        output.check(nowhere[where])
    with pytest.raises(UsageError, match="cannot be written"), output.whole(nowhere[where]) as waiting:
        waiting.write_text("new")


@pytest.mark.parametrize("where", ["no folder", "below a file", "too long"])
@pytest.mark.parametrize("suffix", arrays.SUFFIXES)
def test_arrays_are_refused_where_no_file_can_be(nowhere, where, suffix):
    with pytest.raises(UsageError, match="cannot be written"):
        arrays.write(nowhere[where].with_suffix(suffix), {})


def test_a_check_leaves_things_as_they_were(tmp_path):
    (tmp_path / "old.svg").write_text("old")
    for name in ("old.svg", "new.svg"):
        output.check(tmp_path / name, ".svg")
    assert [path.name for path in tmp_path.iterdir()] == ["old.svg"]
    assert (tmp_path / "old.svg").read_text() == "old"


@pytest.mark.parametrize("name", ["a", "a.svg.txt", ".svg"])
def test_a_suffix_is_one_of_those_asked_for(tmp_path, name):
    with pytest.raises(UsageError, match=r"has the wrong suffix: expected \.svg or \.png, found (no suffix|\.txt)"):
        output.check(tmp_path / name, ".svg", ".png")


def test_a_file_is_replaced_by_a_whole_one_only(tmp_path):
    out = tmp_path / "a.txt"
    with output.whole(out) as waiting:
        waiting.write_text("one")
        assert not out.exists()

    def fail():
        with output.whole(out) as waiting:
            waiting.write_text("two")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert out.read_text() == "one"
    assert [*tmp_path.iterdir()] == [out]


def test_a_planted_link_is_neither_followed_nor_touched(tmp_path):
    """Not in the place of the file, and not where a temporary file was once to be foreseen."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "mine").chmod(0o600)
    out = tmp_path / "r.html"
    for link in (out, tmp_path / ".r.writing.html"):
        link.symlink_to(tmp_path / "mine")
    output.check(out)
    with output.whole(out) as waiting:
        waiting.write_text("page")
    assert (tmp_path / "mine").read_text() == "mine"
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600
    assert (out.read_text(), out.is_symlink()) == ("page", False)
    assert (tmp_path / ".r.writing.html").is_symlink()


def test_a_check_leaves_what_another_is_writing(tmp_path):
    out = tmp_path / "a.txt"
    with output.whole(out) as waiting:
        waiting.write_text("one")
        output.check(out)
        with output.whole(out) as other:
            other.write_text("two")
        assert (waiting.read_text(), out.read_text()) == ("one", "two")
    assert out.read_text() == "one"
    assert [*tmp_path.iterdir()] == [out]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_what_is_written_has_the_permissions_of_new_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        with output.whole(tmp_path / "a.txt") as waiting:
            assert stat.S_IMODE(waiting.parent.stat().st_mode) == 0o700 & ~mask
            waiting.touch(0o600)
        with output.staging(tmp_path, "making") as folder:
            (folder / "a" / "b").mkdir(0o700, parents=True)
            (folder / "a" / "b" / "c").touch(0o600)
            output.as_created(folder / "a")
            (folder / "a").rename(tmp_path / "a")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.txt", "a", "a/b", "a/b/c")]
    assert modes == [mode & ~mask for mode in (0o666, 0o777, 0o777, 0o666)]


def test_permissions_are_those_of_what_was_made_and_of_no_link(tmp_path):
    (tmp_path / "mine").touch(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "mine")
    for path in ("link", "folder"):
        with pytest.raises(OSError, match="symbolic links"):
            output.as_created(tmp_path / path)
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600


def left_by(parent, purpose):
    return [*parent.glob(f".{purpose}-*")]


WAIT_IN_STAGING = """
import signal, sys
from pathlib import Path
from splitter import output
with output.staging(Path(sys.argv[1]), "making") as folder:
    (folder / "half").touch()
    print("ready", flush=True)
    signal.pause()
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_uses_stays(tmp_path):
    command = [sys.executable, "-c", WAIT_IN_STAGING, tmp_path]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    try:
        with output.staging(tmp_path, "other"):
            assert len(left_by(tmp_path, "making")) == 2
        processes[0].kill()
        processes[0].communicate()
        with output.staging(tmp_path, "other"):
            assert len(left_by(tmp_path, "making")) == 2, "of another purpose"
        with output.staging(tmp_path, "making") as folder:
            assert len(left_by(tmp_path, "making")) == 2
            assert not (folder / "half").exists()
        (living,) = left_by(tmp_path, "making")
        assert (living / "half").exists()
    finally:
        processes[1].kill()
        processes[1].communicate()
    with output.staging(tmp_path, "making"):
        pass
    assert not left_by(tmp_path, "making")


def test_only_what_is_surely_left_goes(tmp_path):
    """Not what merely looks like it: folders of users, files, links."""
    token = "0" * 16
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (tmp_path / ".making-of").mkdir()
    (tmp_path / f".making-{token}x").mkdir()
    (tmp_path / f".making-{token}").symlink_to(tmp_path / "mine")
    (tmp_path / f".making-{token[1:]}1").touch()
    before = {*tmp_path.iterdir()}
    with output.staging(tmp_path, "making"):
        pass
    assert {*tmp_path.iterdir()} == before
    assert (tmp_path / "mine" / "file").exists()


def test_a_folder_that_is_swept_as_it_is_made_is_made_again(tmp_path, monkeypatch):
    """Between the making of a folder and its lock it looks abandoned."""
    swept = []

    def lock(descriptor, how, lock=fcntl.flock):
        if not swept:
            swept.extend(left_by(tmp_path, "making"))
            monkeypatch.undo()
            output._sweep(tmp_path, "making")
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    with output.staging(tmp_path, "making") as folder:
        assert folder.is_dir()
        assert folder not in swept
        assert len(swept) == 1


def test_without_locks_nothing_is_swept(tmp_path, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(95, "Operation not supported")

    left = tmp_path / f".making-{'0' * 16}"
    left.mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with output.staging(tmp_path, "making") as folder:
        assert folder.is_dir()
    assert [*tmp_path.iterdir()] == [left]


@pytest.mark.parametrize("relative", ["..", "a/../..", "/tmp"])
def test_no_folder_below_lies_elsewhere(tmp_path, relative):
    with pytest.raises(OSError, match="leads out of"), output.folder_below(tmp_path, Path(relative)):
        pytest.fail("entered")


def test_no_link_leads_to_a_folder_below(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "home" / "a").mkdir(parents=True)
    (tmp_path / "home" / "a" / "b").symlink_to(tmp_path / "mine")
    for relative in ("a/b", "a/b/c"):
        with pytest.raises(NotADirectoryError), output.folder_below(tmp_path / "home", Path(relative)):
            pytest.fail("entered")
    assert not [*(tmp_path / "mine").iterdir()]
    with output.folder_below(tmp_path / "home", Path("a/c/d")) as folder:
        os.mkdir("e", dir_fd=folder)
    assert (tmp_path / "home" / "a" / "c" / "d" / "e").is_dir()
    with pytest.raises(FileNotFoundError), output.folder_below(tmp_path / "home", Path("x"), make=False):
        pytest.fail("entered")
    assert not (tmp_path / "home" / "x").exists()


def test_scratch_is_private_and_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with output.scratch("trial") as folder:
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "a").touch()
    assert not [*tmp_path.iterdir()]
