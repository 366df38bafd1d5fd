"""The verb profile."""

from __future__ import annotations

from pathlib import Path

import click

from .shell import COMPUTE_UNITS, command, engine_pairs, json_option, memory_option, print_result, steps


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--engine", "engines", multiple=True, metavar="SEGMENT=ENGINE", callback=engine_pairs,
              help="Run a segment with this engine; several for one segment are shown side by side.")  # fmt: skip
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
    """Say where the time and the memory of BUNDLE go on this machine, segment by segment and boundary by boundary."""
    from .. import profiling
    from ..bundle.directory import Bundle
    from . import tables

    others = [profiling.read(path) for path in merge]
    opened = Bundle.load(bundle)
    model = opened.manifest.model
    for other in others:  # before minutes are spent on what they cannot lie beside
        profiling.check_same_model(other, model.name, model.checkpoint_sha256, model.samples)
    with steps() as progress:
        measured = profiling.profile(
            opened, engines, runs=runs, warmup=warmup, compute_units=compute_units, progress=progress
        )
    found = profiling.merged(measured, others)
    print_result(as_json, lambda: found.model_dump(mode="json"), lambda: tables.profile_tables(found))
