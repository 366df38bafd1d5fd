"""Songs that would share the files of their stems: all are named, with a template that tells them apart."""

import pytest

from splitter.bundle.directory import load
from splitter.errors import UsageError
from splitter.separation import collisions
from splitter.separation.separator import Options, Separator


@pytest.fixture
def check(toy_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def checked(*names, **options):
        separator = Separator(load(toy_path), "default", options=Options(**options))
        collisions.check(separator, [tmp_path / name for name in names], tmp_path / "out")

    return checked


@pytest.mark.parametrize(
    ("names", "template"),
    [
        (["a.wav", "a.mp3"], "{track}.{trackext}/{stem}.{ext}"),
        (["x/a.wav", "y/a.wav"], "{folder}/{track}/{stem}.{ext}"),
        (["x/a.wav", "x/a.mp3", "y/a.wav"], "{folder}/{track}.{trackext}/{stem}.{ext}"),
    ],
)
def test_a_template_is_proposed_that_tells_them_apart(check, names, template):
    with pytest.raises(UsageError, match="stems of several tracks would be the same files") as refused:
        check(*names)
    assert refused.value.fix == f"Use --filename '{template}'."
    check(*names, filename=template)


def test_all_are_named_at_once(check, tmp_path):
    with pytest.raises(UsageError) as refused:
        check("a.wav", "b.mp3", "a.mp3", "c.wav", "b.wav", "a.ogg")
    out = tmp_path / "out" / "duo"
    assert str(refused.value.received) == (
        f"{out}/a for {tmp_path}/a.wav and {tmp_path}/a.mp3 and {tmp_path}/a.ogg; "
        f"{out}/b for {tmp_path}/b.mp3 and {tmp_path}/b.wav"
    )


def test_where_no_template_helps_it_is_said(check):
    with pytest.raises(UsageError, match="one by one, each with an -o of its own"):
        check("1/x/a.wav", "2/x/a.wav")


def test_names_that_are_none_are_left_to_their_turn(check):
    check("x" * 300 + ".wav", "x" * 300 + ".mp3")
