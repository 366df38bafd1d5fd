"""What reaches a terminal: hidden characters are shown, whoever prints them."""

import io
import json
import logging
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from splitter import cli, terminal
from splitter.cli import shell
from splitter.cli.console import VisibleConsole, stderr
from splitter.cli.progress import bars
from splitter.errors import BundleError
from splitter.separation.separator import Advance

HOSTILE = "a\x1b[2J\x1b]0;owned\x07\x9b2J\r\u202eb\x7f"
SHOWN = r"a\x1b[2J\x1b]0;owned\x07\x9b2J\r\u202eb\x7f"


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


@pytest.fixture
def printed(monkeypatch):
    """What an action prints on a terminal. (The streams of a fixture would be pytest's again in the test.)"""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")

    def printed(action):
        raw = Screen()
        with redirect_stdout(raw), redirect_stderr(raw):
            terminal.guard()
            action()
        return raw.getvalue()

    return printed


def test_without_colours_there_is_no_bold_either(printed, monkeypatch):
    table = Table("head", title="title")
    table.add_row(Text("cell", style="bold red"))
    show = lambda: VisibleConsole(force_terminal=True).print(table)  # noqa: E731
    assert "\x1b[" in printed(show)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in printed(show)


def test_what_an_encoding_has_not_is_escaped(monkeypatch):
    raw = io.TextIOWrapper(io.BytesIO(), "ascii", line_buffering=True)
    monkeypatch.setattr(sys, "stdout", raw)
    terminal.guard()
    sys.stdout.write("café ×\n")
    assert raw.buffer.getvalue() == rb"caf\xe9 \xd7" + b"\n"


def hidden(text):
    """Control characters and reordering, but for Rich's own sequences and the ends of lines."""
    for own in ("\x1b[1;31m", "\x1b[1m", "\x1b[3m", "\x1b[32m", "\x1b[0m", "\n"):
        text = text.replace(own, "")
    return [character for character in text if not character.isprintable()]


@pytest.mark.parametrize(
    "show",
    [
        lambda: sys.stdout.write(HOSTILE),
        lambda: sys.stderr.write(HOSTILE),
        lambda: sys.stdout.writelines([HOSTILE]),
        lambda: shell.print_lines(HOSTILE),
        lambda: shell.print_lines(BundleError(HOSTILE), stream=sys.stderr),
        lambda: logging.StreamHandler().emit(logging.makeLogRecord({"msg": HOSTILE})),
        lambda: sys.stderr.write(warnings.formatwarning(HOSTILE, UserWarning, "file", 1)),
        lambda: sys.excepthook(ValueError, ValueError(HOSTILE), None),
    ],
)
def test_hidden_characters_are_shown_whoever_prints_them(printed, show):
    text = printed(show)
    assert SHOWN in text
    assert not hidden(text)


def test_tables_show_them_too_and_keep_their_own_styles(printed):
    table = Table(title=HOSTILE, title_justify="left")
    table.add_column(HOSTILE)
    table.add_row(Text(HOSTILE, style="bold red"))
    text = printed(lambda: shell.print_result(False, dict, lambda: table))
    assert text.count(r"a\x1b[2J\x1b]0;") == 3
    assert "\x1b[1;31m" in text
    assert not hidden(text)


def test_bars_show_them_and_move_by_themselves(printed):
    def show():
        with bars(stderr, 1) as shown:
            shown(Advance(Path(HOSTILE + "\nx"), 0.0, 1.0))
            shell.print_lines(HOSTILE + "\ny")

    text = printed(show)
    assert SHOWN + r"\nx" in text
    assert SHOWN + r"\ny" in text
    assert "\x1b[?25l" in text, "the cursor is hidden meanwhile"
    assert "\x1b[2J" not in text
    assert "\u202e" not in text


def test_a_line_stays_one(printed):
    assert printed(lambda: shell.print_lines("a\nsplitter: all well", "b")) == "a\\nsplitter: all well\nb\n"


def test_json_stays_json(printed):
    document = {HOSTILE: ["\udce9", HOSTILE]}
    text = printed(lambda: shell.print_json(document))
    assert json.loads(text) == document
    assert not hidden(text)


@pytest.mark.parametrize("arguments", [["inspect", HOSTILE + "\nb"], [HOSTILE], ["inspect", "--" + HOSTILE]])
def test_errors_show_them(printed, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["splitter", *arguments])

    def show():
        with pytest.raises(SystemExit):
            cli.main()

    text = printed(show)
    assert r"\x1b]0;owned\x07" in text
    assert not hidden(text)


def test_the_guard_is_put_up_once(printed):
    def show():
        before = sys.stdout
        terminal.guard()
        assert sys.stdout is before

    printed(show)
