"""What the verbs share: the command they belong to, and how results and progress are printed."""

from __future__ import annotations

import importlib
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TextIO

import click

import splitter

from .. import errors, limits
from ..names import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

P = ParamSpec("P")
COMPUTE_UNITS = click.Choice(["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"])
CHIPS = click.Choice(["m1", "m2", "m3", "m4", "m5"])

# Verbs by what they are for: the module of each, imported when it is used, and its line in the command's help.
_VERBS = {
    "Songs": {"separate": ("separating", "Separate songs into stems.")},
    "Packages": {
        "build": ("building", "Build the packages of a model, in a bundle."),
        "tune": ("tuning", "Choose the precision or the forms of the weights by measurement; write a plan."),
        "plan": ("building", "Compare ways to cut a model into packages; write a plan."),
        "inspect": ("building", "Show what a bundle holds."),
        "sign": ("checking", "Sign a bundle."),
    },
    "Checks": {
        "verify": ("checking", "Check a bundle from its saved files."),
        "doctor": ("checking", "Examine packages for the Neural Engine and half precision."),
        "compare": ("checking", "Compare two packages, bundles or files of outputs, operation by operation."),
        "goldens": ("checking", "Record reference tensors for a port."),
        "verify-port": ("checking", "Check the tensors that a port computed."),
        "predict": ("checking", "Run one package on this machine."),
    },
    "Measurements": {
        "profile": ("measuring", "Measure time and memory of a bundle."),
        "optimize": ("measuring", "Compile a bundle for this machine and choose its engines."),
        "report": ("reporting", "Write one HTML page about a bundle."),
    },
}
_MODULES = {verb: module for verbs in _VERBS.values() for verb, (module, _) in verbs.items()}


class _Verbs(click.Group):
    """A group whose verbs are imported when they are used, so that help is there at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _MODULES:
            importlib.import_module(f".{_MODULES[cmd_name]}", __package__)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in _VERBS.items():
            with formatter.section(title):
                formatter.write_dl([(verb, line) for verb, (_, line) in verbs.items()])


class _Finite(click.types.FloatParamType):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class FiniteRange(_Finite, click.FloatRange):
    """A range without NaN, which compares as neither too small nor too large."""


FINITE = _Finite()
DECIBELS = FiniteRange(min=0, min_open=True)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="splitter")
def command() -> None:
    """Cut a model, unmodified, into packages for Core ML; check the packages; run songs through them."""
    splitter.keep_freed()  # before threads start
    for noisy in ("huggingface_hub", "torch", "jax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def json_option(function: Callable[P, None]) -> Callable[P, None]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def _set_max_memory(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    try:
        if value is not None:
            limits.set_max_memory(limits.parsed(value))
    except errors.UsageError as error:
        raise click.BadParameter(str(error)) from error


def memory_option(function: Callable[P, None]) -> Callable[P, None]:
    """Of verbs that compute with files, which may come from anybody."""
    return click.option(
        "--max-memory",
        metavar="SIZE",
        expose_value=False,
        callback=_set_max_memory,
        help="Most memory for weights, inputs and results, e.g. 8GB; for each job.  "
        f"[default: ${limits.VARIABLE}, or half of this machine's, at most 16GiB]",
    )(function)


def trusted_key_option(function: Callable[P, None]) -> Callable[P, None]:
    return click.option(
        "--trusted-key",
        type=click.Path(path_type=Path),
        help="minisign public key: refuse a bundle that was not signed with its secret key.",
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
        return
    from .console import VisibleConsole

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
def steps() -> Iterator[Callable[[object], None]]:
    """A spinner with the current step, or a line per step where there is no terminal."""
    from rich.text import Text

    from .console import stderr

    if not stderr.is_terminal:
        yield lambda step: print_lines(step, stream=sys.stderr)
        return
    with stderr.status("") as status:
        yield lambda step: status.update(Text(visible(str(step))))
