"""The command line: arguments → one call → one printed result."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

from ..errors import SplitterError
from . import building, checking, measuring, reporting, separating  # noqa: F401 - each adds its verbs to the command
from .shell import command, print_json

_INTERRUPTED = 130  # what shells report for SIGINT


def main() -> NoReturn:
    """Entry point. Every expected failure is one message and a non-zero exit; ``--json`` makes it a document."""
    wants_json = "--json" in sys.argv[1:]
    try:
        sys.exit(_run())
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        if wants_json:
            print_json({"error": {"kind": "UsageError", "message": error.format_message()}})
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("Interrupted", "interrupted; nothing half-written was left behind", wants_json, _INTERRUPTED)
    except SplitterError as error:
        _fail(type(error).__name__, str(error), wants_json, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
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


def _fail(kind: str, message: str, wants_json: bool, code: int) -> NoReturn:
    if wants_json:
        print_json({"error": {"kind": kind, "message": message}})
    click.echo(f"splitter: error: {message}", err=True)
    sys.exit(code)
