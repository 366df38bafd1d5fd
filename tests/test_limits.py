import subprocess
import sys

import pytest

from splitter import limits
from splitter.errors import AudioError, UsageError


@pytest.mark.parametrize(
    ("text", "count"),
    [("4096", 4096), ("1B", 1), ("8GB", 8 * 10**9), ("1.5g", 15 * 10**8), ("512 MiB", 512 << 20), (" 2ti ", 2 << 40)],
)
def test_sizes_are_read_as_people_write_them(text, count):
    assert limits.parsed(text) == count


@pytest.mark.parametrize("text", ["", "0", "-1", "8 X", "GB", "1e9", "nan", "0.1", "٣GB", "9" * 5000])
def test_what_is_no_size_is_refused_by_its_text(text):
    with pytest.raises(UsageError, match="memory limit cannot be read: expected a size such as 8GB"):
        limits.parsed(text)


def test_the_limit_is_a_share_of_the_machines_memory_and_of_the_variable_if_it_is_set(monkeypatch):
    monkeypatch.delenv(limits.VARIABLE, raising=False)
    assert 0 < limits.max_memory() <= 16 << 30
    limits.set_max_memory(3 << 20)
    assert limits.max_memory() == 3 << 20
    monkeypatch.setenv(limits.VARIABLE, "2GB")
    assert limits.max_memory() == 2 * 10**9


def test_processes_that_are_started_have_the_same_limit(monkeypatch):
    monkeypatch.delenv(limits.VARIABLE, raising=False)
    limits.set_max_memory(12345)
    said = subprocess.check_output([sys.executable, "-c", "from splitter import limits; print(limits.max_memory())"])
    assert said.split() == [b"12345"]


def test_more_than_the_limit_is_refused_with_both_figures_and_what_to_do(monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "1GB")
    limits.check(10**9, "this")
    said = "^song.wav needs too much memory: expected at most 1.0 GB, found 1.0 GB.*--max-memory"
    with pytest.raises(AudioError, match=said):
        limits.check(10**9 + 1, "song.wav", AudioError)
    with pytest.raises(UsageError, match="expected at most 10 B, found 11 B$"):
        limits.check(11, "this", most=10)
