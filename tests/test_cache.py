import os

import pytest

from splitter import cache
from splitter.errors import CacheError

from .sealing import flip


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "splitter"


def fill(directory):
    (directory / "model").write_text("made")


def test_directories_are_private(home):
    old = os.umask(0)
    try:
        path = cache.directory("kind")
    finally:
        os.umask(old)
    assert path == home / "kind"
    assert {one.stat().st_mode & 0o777 for one in (home, path)} == {0o700}


@pytest.mark.parametrize("where", ["", "kind"])
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_what_others_can_write_to_is_refused(home, where, mode):
    cache.directory("kind")
    (home / where).chmod(mode)
    with pytest.raises(CacheError, match=rf"can be written by others: expected mode 700, found {mode:03o}. Run chmod"):
        cache.directory("kind")
    with pytest.raises(CacheError, match="Nothing in it was used"):
        cache.entry("kind", "key", fill)


@pytest.mark.parametrize("where", ["", "kind"])
def test_what_is_of_another_user_is_refused(home, where, monkeypatch):
    if os.getuid() == 0:
        cache.directory("kind")
        os.chown(home / where, 12345, -1)
    else:
        cache.directory("kind")
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(CacheError, match="belongs to another user"):
        cache.directory("kind")


def test_a_directory_above_that_anybody_can_exchange_is_refused(home):
    cache.directory("kind")
    home.parent.chmod(0o777)
    with pytest.raises(CacheError, match="where anybody can replace it; got mode 777"):
        cache.directory("kind")
    home.parent.chmod(0o1777)  # as /tmp is
    cache.directory("kind")


def test_a_link_is_judged_by_where_it_leads(home, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    home.parent.mkdir()
    home.symlink_to(tmp_path / "elsewhere")
    cache.directory("kind")
    (tmp_path / "elsewhere").chmod(0o777)
    with pytest.raises(CacheError, match="can be written by others"):
        cache.directory("kind")


def test_an_entry_is_made_once(home):
    made = cache.entry("kind", "key", fill)
    assert (made / "model").read_text() == "made"
    assert cache.entry("kind", "key", lambda directory: pytest.fail("made again")) == made
    assert [path.name for path in (home / "kind").iterdir()] == ["key"], "nothing of the staging is left"


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: flip(entry / "model"),
        lambda entry: flip(entry / "sha256"),
        lambda entry: (entry / "sha256").unlink(),
        lambda entry: (entry / "model").unlink(),
        lambda entry: (entry / "more").write_text("planted"),
    ],
)
def test_an_entry_that_is_not_what_was_written_is_made_again(home, damage):
    damage(cache.entry("kind", "key", fill))
    again = []
    made = cache.entry("kind", "key", lambda directory: again.append(fill(directory)))
    assert again
    assert {path.name: path.read_text() for path in made.iterdir() if path.name != "sha256"} == {"model": "made"}


def test_what_could_not_be_made_is_not_there(home):
    def fail(directory):
        fill(directory)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cache.entry("kind", "key", fail)
    assert not list((home / "kind").iterdir())
