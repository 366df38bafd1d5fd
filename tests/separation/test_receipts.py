"""When stems that are there count as done, and when they do not."""

import json

import pytest

from splitter.bundle.directory import file_record, load
from splitter.separation import receipts
from splitter.separation.encoding import Encoding
from splitter.separation.selection import Engines
from splitter.separation.separator import Options, Separator, Written

WRITTEN = Written(
    source_samplerate=8000, samplerate=8000, samples=5, downmix=None, gain_db={"kept": -1.5, "rest": -1.5}
)


@pytest.fixture
def done(tmp_path, toy_path):
    """A track, its stems and their receipt, as a separation leaves them."""
    separator, track, home = Separator(load(toy_path), "default"), tmp_path / "a.wav", tmp_path / "out" / "duo"
    track.write_bytes(b"sound")
    outputs = separator.outputs(track, tmp_path / "out")
    (home / "a").mkdir(parents=True)
    for name, path in outputs.items():
        path.write_text(f"the stem {name}")
    receipt = receipts.made(separator, file_record(track), home, {path: path for path in outputs.values()}, WRITTEN)
    receipts.place(receipt, home, home)
    return separator, track, home, outputs


def test_untouched_stems_count(done):
    assert receipts.complete(*done)
    assert {path.name for path in done[2].iterdir()} == {"a", ".separated"}


def test_what_else_was_said_of_stems_is_found_again(done):
    _, _, home, outputs = done
    assert receipts.at(home, outputs).written == WRITTEN
    receipts.discard(home, outputs)
    assert receipts.at(home, outputs) is None


def test_stems_that_were_moved_together_count(done, tmp_path):
    separator, track, home, _ = done
    (tmp_path / "out").rename(tmp_path / "library")
    moved = tmp_path / "library" / "duo"
    assert receipts.complete(separator, track, moved, separator.outputs(track, tmp_path / "library"))
    assert not receipts.complete(separator, track, home, separator.outputs(track, tmp_path / "out"))


CHANGES = {
    "stem of another song, as long": lambda s, track, home, outputs: outputs["rest"].write_text("the stem tser"),
    "stem cut short": lambda s, track, home, outputs: outputs["kept"].write_text("the s"),
    "stem missing": lambda s, track, home, outputs: outputs["kept"].unlink(),
    "track changed, as long": lambda s, track, home, outputs: track.write_bytes(b"noise"),
    "track missing": lambda s, track, home, outputs: track.unlink(),
    "receipt discarded": lambda s, track, home, outputs: receipts.discard(home, outputs),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_since_does_not(done, change):
    CHANGES[change](*done)
    assert not receipts.complete(*done)


@pytest.mark.parametrize(
    ("options", "engines"),
    [
        ({"shifts": 2}, {}),
        ({"overlap": 0.3}, {}),
        ({"seed": 1}, {}),
        ({"segment": 0.004}, {}),
        ({"encoding": Encoding(subtype="PCM_24")}, {}),
        ({"samplerate": "model"}, {}),
        ({"channels": "first2"}, {}),
        ({"tags": False}, {}),
        ({}, {"encoder": "torch"}),
    ],
)
def test_what_was_made_otherwise_does_not(done, options, engines):
    separator, track, home, outputs = done
    assert not receipts.complete(Separator(separator.bag, engines, options=Options(**options)), track, home, outputs)
    assert receipts.complete(Separator(separator.bag, {}), track, home, outputs)


def test_engines_that_nobody_asked_for_do_not_matter(done):
    separator, track, home, outputs = done
    assert receipts.complete(Separator(separator.bag, Engines({}, {"encoder": "torch"})), track, home, outputs)


def test_what_another_bundle_made_does_not(done):
    separator, track, home, outputs = done
    manifest = separator.bag.members[0].manifest
    other = manifest.model_copy(update={"model": manifest.model.model_copy(update={"checkpoint_sha256": "0" * 64})})
    member = type(separator.bag.members[0])(separator.bag.path, other)
    bag = type(separator.bag)(separator.bag.path, separator.bag.name, (member,), separator.bag.weights)
    assert not receipts.complete(Separator(bag), track, home, outputs)
    heavier = type(bag)(bag.path, bag.name, separator.bag.members, ((2.0, 1.0),))
    assert not receipts.complete(Separator(heavier), track, home, outputs)


@pytest.mark.parametrize("damage", ["", "{", "null", '{"format": "splitter.receipt/2"}', "a stem too few", "a format"])
def test_what_is_no_receipt_does_not(done, damage):
    (path,) = (done[2] / ".separated").iterdir()
    document = json.loads(path.read_text())
    if damage == "a stem too few":
        del document["stems"]["a/kept.wav"]
        damage = json.dumps(document)
    elif damage == "a format":
        damage = json.dumps(document | {"format": "splitter.receipt/9"})
    path.write_text(damage)
    assert not receipts.complete(*done)


def test_two_ways_to_name_the_stems_have_a_receipt_each(done, tmp_path):
    separator, track, home, outputs = done
    other = Separator(separator.bag, options=Options(filename="{track}-{stem}.{ext}"))
    assert not receipts.complete(other, track, home, other.outputs(track, tmp_path / "out"))
    receipts.discard(home, other.outputs(track, tmp_path / "out"))
    assert receipts.complete(separator, track, home, outputs)
