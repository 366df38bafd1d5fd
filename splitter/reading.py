"""Files from anybody: regular ones only, no larger than their kind is, no deeper than their kind is."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

from pydantic_core import from_json

from .formatting import size

MAX_DOCUMENT_BYTES = 64 << 20  # of text that people or splitter write: manifests, plans, profiles, receipts
_MAX_DEPTH = 64

Read: TypeAlias = Callable[[Path], bytes]  # gives the content of a file, held against what is known of it


def opened(path: Path | str) -> BufferedReader:
    """Open a regular file for reading. A pipe or a device, on which reading may never end, is refused unread.

    Raises:
        OSError: There is none, or it is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # the opening of a pipe waits otherwise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(f"it is {_kind(mode)}, not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def content(path: Path | str, most: int = MAX_DOCUMENT_BYTES) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: It cannot be read, or has more than ``most`` bytes.
    """
    with opened(path) as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise OSError(f"it is larger than {size(most)}, which files of its kind never are")
    return raw


def document(path: Path | str, most: int = MAX_DOCUMENT_BYTES) -> Any:
    """The values of a JSON file.

    Raises:
        OSError: As `content`.
        ValueError: It is no JSON, nested too deep, or holds an integer of thousands of digits.
    """
    values = from_json(content(path, most))
    check_depth(values)
    return values


def check_depth(values: Any) -> None:
    """Refuse values so deep in lists and dictionaries that whatever goes through them runs out of stack.

    Raises:
        ValueError: They are deeper than 64.
    """
    level = [values]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(f"values are nested more than {_MAX_DEPTH} deep")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a directory",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
