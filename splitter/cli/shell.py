"""What the verbs share: the command they belong to, and how results and progress are printed."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ParamSpec, TextIO

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from .. import limits
from ..errors import UsageError
from ..names import visible
from ..plan import schema as plans

P = ParamSpec("P")
COMPUTE_UNITS = click.Choice(["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"])
PRECISIONS = click.Choice([precision.value for precision in plans.Precision])


class VisibleConsole(Console):
    """A console whose content cannot contain escape sequences: only Rich's own styles and controls are obeyed."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text, keep="\n"))

    @property
    def file(self) -> IO[str]:
        """The stream itself, past the proxy of a live display and `VisibleStream`."""
        stream = super().file
        return getattr(stream, "rich_proxied_file", stream)

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file


stderr = VisibleConsole(stderr=True, highlight=False, markup=False)  # names may hold brackets


class _Finite(click.types.FloatParamType):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class FiniteRange(_Finite, click.FloatRange):
    """A range without NaN, which compares as neither too small nor too large."""


FINITE = _Finite()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="splitter")
def command() -> None:
    """Cut HT Demucs, unmodified, into pieces for Core ML; prove the pieces right; run songs through them."""
    for noisy in ("huggingface_hub", "torch", "jax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def json_option(function: Callable[P, None]) -> Callable[P, None]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")(function)


def _set_max_memory(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    try:
        if value is not None:
            limits.set_max_memory(limits.parsed(value))
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


def memory_option(function: Callable[P, None]) -> Callable[P, None]:
    """Of verbs that compute with files, which may come from anybody."""
    return click.option(
        "--max-memory",
        metavar="SIZE",
        expose_value=False,
        callback=_set_max_memory,
        help="Most memory that files may ask for, e.g. 8GB: weights, inputs, results; for each job.  "
        f"[default: ${limits.VARIABLE}, or half of this machine's, at most 16GiB]",
    )(function)


def trusted_key_option(function: Callable[P, None]) -> Callable[P, None]:
    return click.option(
        "--trusted-key",
        type=click.Path(path_type=Path),
        help="Public key of minisign: refuse a bundle that `splitter sign` did not sign with its secret key.",
    )(function)


def engine_pairs(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """Segment and engine of every ``--engine SEGMENT=ENGINE``, in their order."""
    pairs = []
    for value in values:
        segment, equals, name = value.partition("=")
        if not equals or not segment or not name:
            raise click.BadParameter(f"{value!r} is not SEGMENT=ENGINE, e.g. transformer=jax")
        pairs.append((segment, name))
    return tuple(pairs)


def print_result(as_json: bool, document: Callable[[], object], table: Callable[[], RenderableType]) -> None:
    if as_json:
        print_json(document())
    else:
        VisibleConsole(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140).print(table())


def print_json(document: object) -> None:
    text = json.dumps(document, indent=1, allow_nan=False)
    click.echo(text.replace("\x7f", "\\u007f"))  # the one control character that JSON does not escape


def print_lines(*lines: object, stream: TextIO | None = None) -> None:
    """Print on standard output, or another stream, one line each whatever they hold.

    While bars are shown they stay below the lines; `click.echo` would find its way around that.
    """
    (stream or sys.stdout).writelines(f"{visible(str(line))}\n" for line in lines)


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """A spinner with the current step, or a line per step where there is no terminal."""
    if not stderr.is_terminal:
        yield lambda step: print_lines(step, stream=sys.stderr)
        return
    with stderr.status("") as status:
        yield lambda step: status.update(Text(visible(step)))
