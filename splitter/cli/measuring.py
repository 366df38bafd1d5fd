"""Verbs that measure this machine: profile, optimize."""

from __future__ import annotations

from pathlib import Path

import click

import splitter

from .shell import COMPUTE_UNITS, command, engine_pairs, json_option, memory_option, print_result, steps


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--engine", "engines", multiple=True, metavar="SEGMENT=ENGINE", callback=engine_pairs,
              help="Engine of a segment; repeat it to compare several for one segment.")  # fmt: skip
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True, help="Counted runs.")
@click.option("--warmup", type=click.IntRange(min=1), default=1, show_default=True, help="Runs before them.")
@click.option("--compute-units", type=COMPUTE_UNITS, default="ALL", show_default=True, help="For Core ML, on a Mac.")
@click.option("--merge", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="What --json printed on another machine, to show beside.")  # fmt: skip
@memory_option
@json_option
def profile(
    bundle: Path,
    engines: tuple[tuple[str, str], ...],
    runs: int,
    warmup: int,
    compute_units: str,
    merge: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Measure where the time and the memory of BUNDLE go on this machine, by segment and by boundary."""
    from . import tables

    with steps() as progress:
        profile = splitter.profile(
            bundle, engines, runs=runs, warmup=warmup, compute_units=compute_units, merge=merge, progress=progress
        )
    print_result(as_json, profile.to_dict, lambda: tables.profile_tables(profile))


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@memory_option
@json_option
def optimize(bundle: Path, as_json: bool) -> None:
    """Compile BUNDLE's segments for this machine, and measure which engine runs each one best.

    `splitter separate` uses the result from then on. This takes a C++ compiler and a minute or two, once. The compiled
    segments lie in your cache directory; BUNDLE is not changed.
    """
    from . import tables

    with steps() as progress:
        choice = splitter.optimize(bundle, progress=progress)
    print_result(as_json, lambda: choice.model_dump(mode="json"), lambda: tables.engine_choice_table(choice))
