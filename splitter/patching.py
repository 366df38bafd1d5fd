"""Attributes of other people's modules and classes, replaced for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replaced(holder: object, name: str, value: object) -> Iterator[None]:
    """``holder.name`` is a value within the block, and what it was after it."""
    original = vars(holder)[name]
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, original)
