"""The verb report."""

from __future__ import annotations

from pathlib import Path

import click

import splitter

from .. import formatting
from .shell import (
    CHIPS,
    COMPUTE_UNITS,
    FiniteRange,
    command,
    engine_pairs,
    json_option,
    memory_option,
    print_result,
    steps,
)


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True,
              help="File to write.")  # fmt: skip
@click.option("--engine", "engines", multiple=True, metavar="SEGMENT=ENGINE", callback=engine_pairs,
              help="Engine of a segment; further ones are profiled beside the first.  "
              "[default: what runs the file that ships]")  # fmt: skip
@click.option("--audio", type=click.Path(path_type=Path), help="File to listen to.  [default: the golden input]")
@click.option("--start", type=FiniteRange(min=0), default=0.0, show_default=True, help="Of the excerpt, in seconds.")
@click.option("--seconds", type=FiniteRange(min=0.1, max=60), default=20.0, show_default=True,
              help="Length of the excerpt, at most.")  # fmt: skip
@click.option("--runs", type=click.IntRange(min=0), default=3, show_default=True,
              help="Counted runs of the profile; 0 for none.")  # fmt: skip
@click.option("--warmup", type=click.IntRange(min=1), default=1, show_default=True, help="Runs before them.")
@click.option("--profile", "profiles", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="What `splitter profile --json` printed, to show beside.")  # fmt: skip
@click.option("--chip", type=CHIPS, default="m1", show_default=True,
              help="Chips whose Neural Engine's limits the doctor uses.")  # fmt: skip
@click.option("--compute-units", type=COMPUTE_UNITS, default="ALL", show_default=True, help="For Core ML, on a Mac.")
@click.option("--force", is_flag=True, help="Replace a file that is already there.")
@memory_option
@json_option
def report(
    bundle: Path,
    out: Path,
    engines: tuple[tuple[str, str], ...],
    audio: Path | None,
    start: float,
    seconds: float,
    runs: int,
    warmup: int,
    profiles: tuple[Path, ...],
    chip: str,
    compute_units: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write one HTML page about BUNDLE that loads nothing: its split, sound, errors by cause, doctor, profile.

    Exits with 0 once the page is written, whatever it says; use `splitter verify` to judge a bundle.
    """
    from rich.text import Text

    with steps() as progress:
        page = splitter.report(
            bundle,
            out,
            engines,
            audio=audio,
            start=start,
            seconds=seconds,
            runs=runs,
            warmup=warmup,
            profiles=profiles,
            chip=chip,
            compute_units=compute_units,
            force=force,
            progress=progress,
        )
    print_result(as_json, page.to_dict, lambda: Text(f"{page.path}, {formatting.size(page.bytes)}"))
