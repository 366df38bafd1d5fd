"""How many bytes this process may hold of what files ask for: tensors, weights, decoded arrays, results.

A file of a few kilobytes can describe a result of any size, so whoever computes with files holds what they ask for
against one limit, before it is allocated. The limit is an environment variable: worker processes inherit it.
"""

from __future__ import annotations

import os
import re

from .errors import SplitterError, UsageError
from .formatting import size

VARIABLE = "SPLITTER_MAX_MEMORY"
_MOST_BY_DEFAULT = 16 << 30
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]i?)?b?", re.IGNORECASE | re.ASCII)


def parsed(text: str) -> int:
    """Bytes of a size as people write it: ``8GB``, ``512 MiB``, ``1.5g``, ``4096``.

    Raises:
        UsageError: It is no such size, or less than a byte.
    """
    found = _SIZE.fullmatch(text.strip())
    count = int(float(found[1]) * _UNITS[(found[2] or "").lower()]) if found else 0
    if count < 1:
        raise UsageError(
            "the memory limit cannot be read", expected="a size such as 8GB or 512MiB", received=repr(text[:80])
        )
    return count


def max_memory() -> int:
    """The limit in bytes: ``SPLITTER_MAX_MEMORY``, or half of this machine's memory and at most 16 GiB.

    Raises:
        UsageError: The variable holds no size.
    """
    if text := os.environ.get(VARIABLE):
        return parsed(text)
    return min(_MOST_BY_DEFAULT, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def set_max_memory(count: int) -> None:
    """Set the limit of this process and of those it starts, in bytes."""
    os.environ[VARIABLE] = str(count)


def check(count: int, what: str, error: type[SplitterError] = UsageError, *, most: int | None = None) -> None:
    """Refuse to allocate more than the limit.

    Args:
        count: Bytes that are about to be held, with those that are held already.
        what: Who asks for them, as the subject of a sentence.
        error: What to raise.
        most: The limit, where it is another than `max_memory`.

    Raises:
        SplitterError: They are more, of the type asked for.
    """
    limit = max_memory() if most is None else most
    if count > limit:
        fix = "If the file is what you expect, allow more with --max-memory." if most is None else ""
        raise error(f"{what} needs too much memory", expected=f"at most {size(limit)}", received=size(count), fix=fix)
