"""What is asked for, held against a model's stems: by names and arrays alone."""

import numpy as np
import pytest

from splitter.errors import UsageError
from splitter.separation.wanted import Wanted

STEMS = ("drums", "bass", "other", "vocals")
BLOCKS = {name: np.full((2, 3), 10.0**index, np.float32) for index, name in enumerate(STEMS)}


def given(wanted):
    """The stems that the models are asked for, as they give them."""
    return np.stack([BLOCKS[name] for name in wanted.separated])


def mixture():
    return np.full((2, 3), 5000, np.float32)


@pytest.mark.parametrize(
    ("stems", "two", "method", "separated", "written"),
    [
        (None, None, "add", STEMS, dict(zip(STEMS, (1, 10, 100, 1000), strict=True))),
        (("vocals", "drums"), None, "add", ("drums", "vocals"), {"drums": 1, "vocals": 1000}),
        (None, "bass", "add", STEMS, {"bass": 10, "no_bass": 1101}),
        (None, "bass", "minus", ("bass",), {"bass": 10, "minus_bass": 4990}),
        (None, "bass", "none", ("bass",), {"bass": 10}),
    ],
)
def test_what_is_separated_and_what_is_written_of_it(stems, two, method, separated, written):
    wanted = Wanted.of(STEMS, stems, two, method)
    assert wanted.separated == separated
    assert wanted.indices == tuple(STEMS.index(name) for name in separated)
    assert wanted.written == tuple(written)
    blocks = wanted.blocks(given(wanted), mixture)
    assert {name: block.shape for name, block in blocks.items()} == dict.fromkeys(written, (2, 3))
    assert {name: block[1, 2] for name, block in blocks.items()} == written


def test_the_mixture_is_asked_for_only_where_it_is_needed():
    for method in ("add", "none"):
        wanted = Wanted.of(STEMS, None, "bass", method)
        wanted.blocks(given(wanted), lambda: pytest.fail("asked for"))


def test_fewer_stems_than_were_asked_for_are_no_stems():
    with pytest.raises(ValueError, match="shorter"):
        Wanted.of(STEMS, None, None, "add").blocks(np.zeros((3, 2, 3), np.float32), mixture)


def test_members_of_a_bag_without_a_share_are_left_out():
    weights = [[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0.5]]
    assert Wanted.of(STEMS, ("vocals", "drums"), None, "add").shares(weights) == {
        0: ("drums", "vocals"),
        2: ("vocals",),
    }
    assert Wanted.of(STEMS, None, "bass", "minus").shares(weights) == {1: ("bass",)}
    assert {*Wanted.of(STEMS, None, "bass", "add").shares(weights)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("stems", "two", "message"),
    [
        (("bass",), "bass", "--stems and --two-stems exclude each other"),
        ((), "bass", "--stems and --two-stems exclude each other"),
        ((), None, "no stem is asked for: expected one or more of drums, bass, other, vocals"),
        (("bass", "piano"), None, "no stem 'piano'.*drums, bass, other, vocals"),
        (None, "piano", "no stem 'piano'"),
        (("bass", "bass"), None, "the stem 'bass' is asked for twice"),
    ],
)
def test_what_cannot_be_is_refused(stems, two, message):
    with pytest.raises(UsageError, match=message):
        Wanted.of(STEMS, stems, two, "add")
