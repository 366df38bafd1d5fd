"""Text on its way to a terminal: hidden characters of files and names are shown there, and never obeyed."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

from .names import visible


class VisibleStream(io.TextIOBase):
    r"""A stream of text that escapes every hidden character but the ends of lines and tabs, e.g. as ``\x1b``.

    It has no binary buffer, so that nobody goes around it. Rich, whose own escape sequences are wanted, looks for
    ``rich_proxied_file`` and escapes what it renders itself, see `splitter.cli.console.VisibleConsole`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str, /) -> int:
        self.rich_proxied_file.write(visible(text, keep="\n\t"))
        return len(text)

    def flush(self) -> None:
        self.rich_proxied_file.flush()

    def isatty(self) -> bool:
        return self.rich_proxied_file.isatty()

    def fileno(self) -> int:
        return self.rich_proxied_file.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.rich_proxied_file.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.rich_proxied_file.errors


def guard() -> None:
    """Have all of this process's text pass: its own, warnings, and what libraries print.

    What an encoding does not have (that of the C locale has ASCII alone) is escaped, too. Standard error gets a
    descriptor of its own, so that descriptor 2 may be closed to C code without losing any of it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, VisibleStream):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
                stream = _beside_2(stream) if stream is sys.__stderr__ else stream
            setattr(sys, name, VisibleStream(stream))


def _beside_2(stream: TextIO) -> TextIO:
    try:
        descriptor = os.dup(stream.fileno())
    except OSError:
        return stream
    return open(descriptor, "w", 1, stream.encoding, stream.errors)  # noqa: PTH123 - a descriptor, kept open


_descriptor_2 = threading.Lock()


@contextmanager
def without_messages() -> Iterator[None]:
    """Drop what compiled libraries write to descriptor 2, for those that cannot be silenced.

    The command's own text goes another way, see `guard`.
    """
    with _descriptor_2, ExitStack() as stack:
        try:
            before = os.dup(2)
        except OSError:  # it is closed
            yield
            return
        stack.callback(os.close, before)
        stack.callback(os.dup2, before, 2)
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device of the system, by its name
            os.dup2(nowhere.fileno(), 2)
        yield
