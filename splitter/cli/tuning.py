"""The verbs of tune: each measures on songs and writes a plan, which build obeys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import click

import splitter

from .shell import DECIBELS, FINITE, command, json_option, memory_option, print_result, steps

P = ParamSpec("P")


@command.group()
def tune() -> None:
    """Choose settings of MODEL by measurement on songs; `splitter build --plan` obeys the plan that this writes."""


def _shared_options(function: Callable[P, None]) -> Callable[P, None]:
    for option in reversed((
        click.argument("model"),
        click.option("--on", multiple=True, required=True, type=click.Path(path_type=Path), metavar="SONG",
                     help="Song to measure on; repeat."),
        click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Plan file to write."),
        click.option("--plot", type=click.Path(path_type=Path), help="Picture to draw: .svg, .png or .pdf."),
        click.option("--plan", type=click.Path(path_type=Path),
                     help="Plan file to start from.  [default: the model's preset]"),
        click.option("--segment", type=FINITE, metavar="SECONDS", help="Length of one run.  [default: as trained]"),
        click.option("--random-init", type=int, metavar="SEED", help="A named configuration with random weights."),
        memory_option,
        json_option,
    )):  # fmt: skip
        function = option(function)
    return function


@tune.command()
@click.option("--min-snr", type=DECIBELS, metavar="DB", required=True, help="SNR to reach on every song.")
@click.option("--for", "optimise_for", type=click.Choice(["ane"]),
              help="Graph passes for this hardware; ane: Apple's Neural Engine.")  # fmt: skip
@click.option("--boundary-dtype", type=click.Choice(["fp32", "fp16"]),
              help="Element type of package inputs and outputs.  [default: as the plan has it]")  # fmt: skip
@_shared_options
def precision(model: str, min_snr: float, as_json: bool, **options: Any) -> None:
    """Plan packages in fp16, with the fewest operations in fp32 that reach an SNR."""
    from . import tables

    with steps() as progress:
        choice = splitter.tune_precision(model, min_snr_db=min_snr, progress=progress, **options)
    print_result(
        as_json,
        lambda: {"plan": str(options["out"]), "precision": choice.to_dict()},
        lambda: tables.frontier_table(choice),
    )


@tune.command()
@click.option("--max-sdr-drop", type=DECIBELS, metavar="DB", required=True,
              help="Largest loss of SDR of any stem on any song.")  # fmt: skip
@click.option("--stems", type=click.Path(path_type=Path),
              help="True stems of the first song, [NAME_]STEM.*.  [default: 10 dB SDR is assumed]")  # fmt: skip
@_shared_options
def weights(model: str, max_sdr_drop: float, as_json: bool, **options: Any) -> None:
    """Plan the smallest weights that lose no more than some SDR."""
    from . import tables

    with steps() as progress:
        choice = splitter.tune_weights(model, max_sdr_drop_db=max_sdr_drop, progress=progress, **options)
    print_result(
        as_json,
        lambda: {"plan": str(options["out"]), "compression": choice.to_dict()},
        lambda: tables.sizes_table(choice),
    )
