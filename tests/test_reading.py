import os
import socket

import pytest

from splitter import reading


def test_a_regular_file_is_read_whole(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, 2.5, "ü"]}')
    assert reading.content(tmp_path / "a.json") == '{"a": [1, 2.5, "ü"]}'.encode()
    assert reading.document(tmp_path / "a.json") == {"a": [1, 2.5, "ü"]}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a directory"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, kind):
    path = {"a device": "/dev/zero", "a directory": tmp_path}.get(kind, tmp_path / "pipe")
    if kind == "a pipe":
        os.mkfifo(path)
    with pytest.raises(OSError, match=f"it is {kind}, not a regular file"):
        reading.content(path)


def test_a_socket_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="socket|No such device"):
            reading.content(tmp_path / "socket")


def test_a_larger_file_than_its_kind_has_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(bytes(11))
    assert len(reading.content(tmp_path / "a", 11)) == 11
    with pytest.raises(OSError, match="it is larger than 10 B, which files of its kind never are"):
        reading.content(tmp_path / "a", 10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 5000 + "]" * 5000, "recursion limit exceeded"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 deep"),
        ("1" * 5000, "number out of range"),
        ('{"a": ' + "1" * 5000 + "}", "number out of range"),
        ("", "EOF"),
        ("{'a': 1}", "line 1"),
        ("\udcff", "line 1"),
    ],
)
def test_what_is_no_document_is_a_value_error(tmp_path, text, said):
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=said):
        reading.document(tmp_path / "a.json")


def test_values_may_be_64_deep(tmp_path):
    (tmp_path / "a.json").write_text("[" * 64 + "]" * 64)
    assert reading.document(tmp_path / "a.json")
