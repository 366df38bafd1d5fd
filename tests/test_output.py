"""Files by name: whole or not at all, and refused early."""

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
    with pytest.raises(UsageError, match=r"must be (writable; got [A-Z][a-z ]+$|a file)"):
        output.check(nowhere[where])
    with pytest.raises(UsageError, match="must be writable"), output.whole(nowhere[where]) as waiting:
        waiting.write_text("new")


@pytest.mark.parametrize("where", ["no folder", "below a file", "too long"])
@pytest.mark.parametrize("suffix", arrays.SUFFIXES)
def test_arrays_are_refused_where_no_file_can_be(nowhere, where, suffix):
    with pytest.raises(UsageError, match="must be writable"):
        arrays.write(nowhere[where].with_suffix(suffix), {})


def test_a_check_leaves_things_as_they_were(tmp_path):
    (tmp_path / "old.svg").write_text("old")
    for name in ("old.svg", "new.svg"):
        output.check(tmp_path / name, ".svg")
    assert [path.name for path in tmp_path.iterdir()] == ["old.svg"]
    assert (tmp_path / "old.svg").read_text() == "old"


@pytest.mark.parametrize("name", ["a", "a.svg.txt", ".svg"])
def test_a_suffix_is_one_of_those_asked_for(tmp_path, name):
    with pytest.raises(UsageError, match=r"must end in \.svg or \.png; got (no suffix|\.txt)"):
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
