"""Names that may become parts of paths, and those that may not."""

import pytest

from splitter import names

from .hostile import NAMES, PATHS

GOOD = ["drums", "no_drums", "skip_freq_2", "encoder.mlpackage", "com.apple.CoreML", "955717e8", "Ünïcödé", "歌",
        "my model", "-1", "console", "com10", "COM", "auxiliary", "a.b.c", "نمی\u200cخواهم", "x" * 200]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_plain_names_are_kept(name):
    assert names.fault(name, names.MOST_BYTES) is None
    assert names.readable(name) == name
    assert names.visible(name) == name
    assert names.path_fault(f"{name}/{name}") is None


@pytest.mark.parametrize("kind", NAMES)
def test_a_hostile_name_is_refused_or_mapped(kind):
    name = NAMES[kind]
    assert names.fault(name) is not None
    mapped = names.readable(name)
    assert names.fault(mapped) is None or "bytes" in names.fault(mapped)
    assert mapped != name or len(name.encode()) > 255


@pytest.mark.parametrize("kind", PATHS)
def test_a_hostile_path_is_refused(kind):
    assert names.path_fault(PATHS[kind]) is not None


def test_a_path_is_bounded_as_a_whole():
    assert names.path_fault("/".join(["x" * 255] * 4)) is None
    assert "1025 bytes" in names.path_fault("/".join(["x" * 255] * 4) + "/x")


@pytest.mark.parametrize(
    ("name", "mapped"),
    [("..", "__"), ("a?b*c", "a_b_c"), ("a\x1b[2Jb", "a_[2Jb"), ("con", "_con"), ("NUL.tar", "_NUL.tar"),
     (" .a. ", "__a__"), ("", "_"), ("caf\udce9", "caf_"), ("a\u202eb", "a_b"), ("a/b\\c", "a_b_c")],
)  # fmt: skip
def test_what_a_file_is_called_is_mapped_readably(name, mapped):
    assert names.readable(name) == mapped


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\x1b[2Jb", r"a\x1b[2Jb"), ("a\u202eb", r"a\u202eb"), ("\x9b", r"\x9b"), ("\x7f", r"\x7f"), ("\r", r"\r"),
     ("\udce9", r"\udce9"), ("a\nb", r"a\nb"), ("\u2028", r"\u2028"), ("×−→ a\xa0b", "×−→ a\xa0b"),
     (r"\x1b", r"\x1b")],
)  # fmt: skip
def test_hidden_characters_are_shown(text, shown):
    assert names.visible(text) == shown
    assert names.visible(shown) == shown


def test_some_may_be_kept():
    assert names.visible("a\n\x1b", keep="\n") == "a\n\\x1b"


@pytest.mark.parametrize("content", [{"a\x1b": 1}, {"a": ["b", {"c": "\u202e"}]}, ["\n"], "\x00"])
def test_hidden_characters_are_found_wherever_they_are(content):
    with pytest.raises(ValueError, match=r"holds control characters or others that hide text"):
        names.check_visible(content)
    assert names.check_visible({"a": [1, None, "b c"]}) == {"a": [1, None, "b c"]}


@pytest.mark.parametrize("pair", [("drums", "drums"), ("drums", "Drums"), ("é", "e\u0301")])
def test_names_that_are_one_file_somewhere(pair):
    with pytest.raises(ValueError, match="are one file on some systems"):
        names.check_distinct(pair)
    names.check_distinct(("drums", "bass"))
