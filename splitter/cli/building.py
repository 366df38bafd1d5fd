"""Verbs that make bundles and look at them: build, plan, inspect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import splitter

from .shell import FINITE, FiniteRange, command, json_option, memory_option, print_result, steps

_TARGETS = click.Choice([target.value for target in splitter.DeploymentTarget])
_PRECISIONS = click.Choice([precision.value for precision in splitter.Precision])
_WEIGHT_LAYOUTS = click.Choice(["torch", "mlx"])
_QKV = click.Choice(["fused", "split"])
_COMPRESSIONS = click.Choice(["none", *splitter.COMPRESSIONS])


def _names_option(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(name.strip() for name in value.split(",") if name.strip())


_inputs_option = click.option(
    "--inputs", type=click.Path(path_type=Path), metavar="FILE.npz",
    help="Example inputs of a module of your own, by argument; also .safetensors.",
)  # fmt: skip


@command.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory to create.")
@_inputs_option
@click.option("--plan", type=click.Path(path_type=Path),
              help="Plan file.  [default: the model's preset, or a proposed plan]")  # fmt: skip
@click.option("--target", type=_TARGETS, help="Oldest system the packages must run on.  [default: iOS17]")
@click.option("--precision", type=_PRECISIONS, help="Arithmetic inside the packages.  [default: fp32]")
@click.option("--boundary-dtype", type=_PRECISIONS, help="Element type of package inputs and outputs.  [default: fp32]")
@click.option("--weights-layout", type=_WEIGHT_LAYOUTS, help="Names of the transformer's weights.  [default: torch]")
@click.option("--qkv", type=_QKV, help="Its input projections, in one matrix or three.  [default: as in that layout]")
@click.option("--weights-dtype", type=_PRECISIONS, help="Element type of its matrices.  [default: fp32]")
@click.option("--compress", type=_COMPRESSIONS, help="How all weights are stored.  [default: none]")
@click.option("--passes", metavar="NAME,NAME", callback=_names_option,
              help="Graph passes to apply, in order; '' for none.  [default: by precision]")  # fmt: skip
@click.option("--for", "optimise_for", type=click.Choice(["ane"]),
              help="Graph passes for this hardware, and fp16; ane: Apple's Neural Engine.")  # fmt: skip
@click.option("--format", metavar="TARGET", help="Target of every stage but the host's.  "
              "[default: as in the plan]")  # fmt: skip
@click.option("--segment", type=FINITE, metavar="SECONDS", help="Length of one run.  [default: as trained]")
@click.option("--name", help="What the model is called, and the folder of its stems.  [default: by the file's name]")
@click.option("--random-init", type=int, metavar="SEED", help="A named configuration with random weights.")
@click.option("--golden-audio", type=click.Path(path_type=Path),
              help="File whose beginning is the golden input.  [default: a synthesised song]")  # fmt: skip
@click.option(
    "--no-reference", is_flag=True, help="Leave out the uncompressed fp32 packages that verify compares with."
)
@click.option("--layout", type=click.Choice(splitter.PACKAGINGS), default="split", show_default=True,
              help="The plan's stages; one package between the host's; or one from input to output.")  # fmt: skip
@click.option("--explain", is_flag=True, help="Print each place that a graph pass left alone, and why.")
@click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
@memory_option
@json_option
def build(
    model: str,
    out: Path,
    target: str | None,
    weights_layout: str | None,
    qkv: str | None,
    weights_dtype: str | None,
    no_reference: bool,
    explain: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Build the bundle of MODEL: the name of a model, a checkpoint file, or PACKAGE.MODULE:FACTORY.

    A factory is a function or class of your own that returns a module. Its code is imported and run.
    """
    from rich.console import Group

    from . import tables

    weights = {"layout": weights_layout, "qkv": qkv, "matrices": weights_dtype}
    skipped: list[splitter.SkippedPlace] = []
    with steps() as progress:
        bag = splitter.build(
            model,
            out,
            deployment_target=target,
            weights={name: value for name, value in weights.items() if value is not None},
            reference=not no_reference,
            skipped=skipped.append,
            progress=progress,
            **options,
        )
    print_result(
        as_json,
        lambda: (
            {"bundle": str(out), "members": [str(member.path) for member in bag.members]}
            | ({"skipped": [place.to_dict() for place in skipped]} if explain else {})
        ),
        lambda: Group(
            *(tables.bundle_tables(member) for member in bag.members),
            *([tables.skipped_table(skipped)] if explain else []),
        ),
    )


def _counts_option(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> Mapping[str, int]:
    counts = {}
    for value in values:
        stage, equals, count = value.partition("=")
        if not equals or not stage or not count.isdigit() or not int(count):
            raise click.BadParameter(f"{value!r} is not STAGE=N, e.g. encoder=2")
        counts[stage] = int(count)
    return counts


@command.command(name="plan")
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Plan file to write, for build --plan.")
@_inputs_option
@click.option("--plan", type=click.Path(path_type=Path),
              help="Plan file to start from.  [default: the model's preset, or a proposed plan]")  # fmt: skip
@click.option(
    "--segments", multiple=True, metavar="STAGE=N", callback=_counts_option, help="Cut a stage into N packages; repeat."
)
@click.option("--max-ops", type=click.IntRange(min=1), help="Most operations a package may have, estimated.")
@click.option("--max-weight-mb", type=FiniteRange(min=0, min_open=True), help="Most weights a package may have, in MB.")
@click.option("--new", is_flag=True, help="Propose a plan from the model's modules; each stage is lowered on trial.")
@click.option("--random-init", type=int, metavar="SEED", help="A named configuration with random weights.")
@json_option
def plan_(
    model: str,
    out: Path | None,
    max_ops: int | None,
    max_weight_mb: float | None,
    new: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare ways to cut MODEL into packages, with least traffic between them; write the plan of the last.

    MODEL is as for build: code of your own, PACKAGE.MODULE:FACTORY, is imported and run.
    """
    from . import tables

    if new:
        if options["plan"] or options["segments"] or max_ops or max_weight_mb:
            raise click.UsageError(
                "--new proposes a plan, the options --plan, --segments, --max-ops and --max-weight-mb change one. "
                "Write it with -o first, then use --plan."
            )
        with steps() as progress:
            proposed = splitter.new_plan(
                model, inputs=options["inputs"], random_init=options["random_init"], out=out, progress=progress
            )
        print_result(
            as_json,
            lambda: {"plan": str(out) if out else None, **proposed.to_dict()},
            lambda: tables.new_plan_tables(proposed),
        )
        return
    with steps() as progress:
        compared = splitter.layouts(
            model,
            max_operations=max_ops,
            max_weight_bytes=None if max_weight_mb is None else round(max_weight_mb * 1e6),
            out=out,
            progress=progress,
            **options,
        )
    print_result(
        as_json,
        lambda: {"plan": str(out) if out else None, **compared.to_dict()},
        lambda: tables.layout_tables(compared.layouts),
    )


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show a bundle: segments, boundary tensors, sizes, parameters."""
    from rich.console import Group

    from . import tables

    bag = splitter.load(bundle)
    print_result(as_json, bag.to_dict, lambda: Group(*(tables.bundle_tables(member) for member in bag.members)))
