"""The command line: arguments → one call → one printed result."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from .. import errors, terminal
from .shell import command, print_json, print_lines

_INTERRUPTED = 130  # what shells report for SIGINT
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # files' own errors say which file


def main() -> NoReturn:
    """Entry point. Every expected failure is one message and a non-zero exit; ``--json`` makes it a document."""
    wants_json = "--json" in sys.argv[1:]
    nowhere = Path(os.devnull)
    sys.stdout, sys.stderr = sys.stdout or nowhere.open("w"), sys.stderr or nowhere.open("w")  # they may be closed
    terminal.guard()
    try:
        result = _run()
        sys.stdout.flush()
        sys.exit(result)
    except click.ClickException as error:
        if wants_json:
            _say({"kind": "UsageError", "message": error.format_message()})
        else:
            error.show(sys.stderr)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("Interrupted", "interrupted; nothing half-written was left behind", wants_json, _INTERRUPTED)
    except errors.SplitterError as error:
        _fail(type(error).__name__, str(error), wants_json, 1)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            _drop_output()
            _fail("OSError", f"standard output cannot be written; got {error.strerror}", False, 1)
        if os.environ.get("SPLITTER_DEBUG"):
            raise
        message = f"internal error, please report it: {type(error).__name__}: {error} (SPLITTER_DEBUG=1 shows where)"
        _fail("InternalError", message, wants_json, 70)


def _run() -> Any:
    """The command, in which an interrupt stays one: C code that it strikes may report an error of its own instead."""
    interrupted = False

    def note(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a shell has its background jobs ignore them
        signal.signal(signal.SIGINT, note)
    try:
        return command(standalone_mode=False)
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _drop_output() -> None:
    """What is left in the buffer would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(kind: str, message: str, wants_json: bool, code: int) -> NoReturn:
    if wants_json:
        _say({"kind": kind, "message": message})
    print_lines(f"splitter: error: {message}", stream=sys.stderr)
    sys.exit(code)


def _say(error: dict[str, str]) -> None:
    try:
        print_json({"error": error})
    except OSError:  # the message and the exit code are left
        _drop_output()
