import pytest

from .. import bounded
from .__main__ import counts_of, started
from .formats import FORMATS
from .seeds import CORPUS

INPUTS = 200


@pytest.mark.skipif(not bounded.IS_LINUX, reason="address spaces are limited on Linux")
def test_changed_files_of_every_format_are_read_or_refused_by_name_within_bounds():
    """A small part of `make fuzz`. Each format's own files are read first, and must be sound."""
    counts = counts_of(INPUTS)
    found = started(counts, seed=1)
    assert not [ends["failure"] for ends in found.values() if "failure" in ends]
    assert found.keys() == FORMATS.keys()
    for name, ends in found.items():
        assert sum(ends.values()) >= counts[name] // 2, name
        assert any(end.endswith("Error") for end in ends), name


def test_every_format_has_a_corpus_of_small_files():
    assert {path.name for path in CORPUS.iterdir()} == FORMATS.keys()
    assert all(file.stat().st_size < 1 << 17 for file in CORPUS.rglob("*") if file.is_file())
