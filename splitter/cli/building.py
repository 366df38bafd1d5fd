"""Verbs that make bundles and look at them: build, plan, inspect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Group

from ..errors import UsageError
from ..plan import schema as plans
from .shell import FINITE, PRECISIONS, FiniteRange, command, json_option, memory_option, print_result, steps

_TARGETS = click.Choice([target.value for target in plans.DeploymentTarget])
_LAYOUTS = click.Choice(["torch", "mlx"])
_QKV = click.Choice(["fused", "split"])
_COMPRESSIONS = click.Choice(["none", *plans.COMPRESSIONS, "auto"])


def _names_option(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(name.strip() for name in value.split(",") if name.strip())


@command.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory to create.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Plan file; the model's preset by default.")
@click.option("--target", type=_TARGETS, help="Oldest system the packages must run on.  [default: iOS17]")
@click.option(
    "--precision",
    type=click.Choice([*PRECISIONS.choices, "auto"]),
    help="Arithmetic inside the packages; auto: fp16, but for what --min-snr needs.  [default: fp32]",
)
@click.option("--min-snr", type=FINITE, metavar="DB", help="With --precision auto: SNR to reach on every song.")
@click.option(
    "--tune-on",
    type=click.Path(path_type=Path),
    multiple=True,
    help="With auto: a song to measure on; repeat.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="With auto: picture to draw, .svg or .png.")
@click.option("--save-plan", type=click.Path(path_type=Path), help="File for the plan as obeyed, for --plan.")
@click.option("--boundary-dtype", type=PRECISIONS, help="Element type of package inputs and outputs.  [default: fp32]")
@click.option("--layout", type=_LAYOUTS, help="Whose names the transformer's weights have.  [default: torch]")
@click.option(
    "--qkv", type=_QKV, help="Its input projections in one matrix or three.  [default: as the layout has them]"
)
@click.option("--weights-dtype", type=PRECISIONS, help="Element type of its matrices.  [default: fp32]")
@click.option(
    "--compress",
    type=_COMPRESSIONS,
    help="How all weights are stored, packages and transformer; auto: each as small as --max-sdr-drop allows.  "
    "[default: none]",
)
@click.option(
    "--max-sdr-drop", type=FINITE, metavar="DB", help="With --compress auto: most that any stem may lose on any song."
)
@click.option(
    "--tune-stems",
    type=click.Path(path_type=Path),
    help="With --compress auto: directory of the first song's true stems, [NAME_]STEM.*; a model of 10 dB otherwise.",
)
@click.option(
    "--passes",
    metavar="NAME,NAME",
    callback=_names_option,
    help="Graph passes to apply, in order; '' for none.  [default: by precision]",
)
@click.option(
    "--for", "optimise_for", type=click.Choice(["ane"]), help="A preset of passes; precision fp16 by default."
)
@click.option(
    "--segment",
    type=FINITE,
    metavar="SECONDS",
    help="Length of one run.  [default: as trained]",
)
@click.option("--random-init", type=int, metavar="SEED", help="A named configuration with random weights.")
@click.option(
    "--golden-audio", type=click.Path(path_type=Path), help="File to record goldens of; a synthesised song by default."
)
@click.option(
    "--no-reference", is_flag=True, help="Leave out the fp32 uncompressed packages that verify compares with."
)
@click.option("--single-package", is_flag=True, help="All between the host's stages in one package, for comparison.")
@click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
@memory_option
@json_option
def build(
    model: str,
    out: Path,
    plan_file: Path | None,
    target: str | None,
    precision: str | None,
    min_snr: float | None,
    tune_on: tuple[Path, ...],
    plot: Path | None,
    save_plan: Path | None,
    boundary_dtype: str | None,
    layout: str | None,
    qkv: str | None,
    weights_dtype: str | None,
    compress: str | None,
    max_sdr_drop: float | None,
    tune_stems: Path | None,
    passes: tuple[str, ...] | None,
    optimise_for: str | None,
    segment: float | None,
    random_init: int | None,
    golden_audio: Path | None,
    no_reference: bool,
    single_package: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Build the bundle of MODEL: demo, htdemucs, htdemucs_ft, htdemucs_6s, or a checkpoint file."""
    from .. import compiler, output, tuning
    from . import tables

    weights = {"layout": layout, "qkv": qkv, "matrices": weights_dtype}
    options: dict[str, Any] = {
        "plan": plans.load(plan_file) if plan_file else None,
        "deployment_target": target,
        "boundary_dtype": boundary_dtype,
        "weights": {key: value for key, value in weights.items() if value is not None},
        "passes": passes,
        "optimise_for": optimise_for,
        "segment": segment,
        "random_init": random_init,
        "golden_audio": golden_audio,
        "reference": not no_reference,
        "single_package": single_package,
        "force": force,
    }
    _check_search(
        precision,
        compress,
        {"--tune-on": tune_on, "--plot": plot},
        {"--min-snr": min_snr},
        {"--max-sdr-drop": max_sdr_drop, "--tune-stems": tune_stems},
    )
    if save_plan is not None:
        output.check(save_plan)
    if plot is not None:
        output.check(plot, *tuning.PICTURES)
    choice: tuning.Choice | None = None
    sizes: tuning.compression.Choice | None = None
    with steps() as progress:
        if precision == "auto":
            assert min_snr is not None
            bag, choice = tuning.build(model, out, min_snr_db=min_snr, audio=tune_on, progress=progress, **options)
        elif compress == "auto":
            assert max_sdr_drop is not None
            options |= {"precision": precision, "audio": tune_on, "stems": tune_stems}
            bag, sizes = tuning.compression.build(
                model, out, max_sdr_drop_db=max_sdr_drop, progress=progress, **options
            )
        else:
            bag = compiler.build(model, out, precision=precision, compress=compress, progress=progress, **options)  # type: ignore[arg-type]
    if save_plan is not None:
        plans.save(bag.members[0].manifest.plan, save_plan)
    if plot is not None and choice is not None:
        tuning.draw(choice, plot)
    if plot is not None and sizes is not None:
        tuning.draw_sizes(sizes, plot)
    print_result(
        as_json,
        lambda: (
            {"bundle": str(out), "members": [str(member.path) for member in bag.members]}
            | ({"precision": choice.to_json()} if choice else {})
            | ({"compression": sizes.to_json()} if sizes else {})
        ),
        lambda: Group(
            *(tables.bundle_tables(member) for member in bag.members),
            *([tables.frontier_table(choice)] if choice else []),
            *([tables.sizes_table(sizes)] if sizes else []),
        ),
    )


def _check_search(
    precision: str | None,
    compress: str | None,
    both: Mapping[str, object],
    for_precision: Mapping[str, object],
    for_compression: Mapping[str, object],
) -> None:
    """Options of a search go with one, and a search with its options; one at a time."""
    if precision == "auto" and compress not in (None, "none"):
        raise UsageError(
            "precision is chosen before weights are compressed",
            received=f"--precision auto and --compress {compress} together",
            fix="Choose the precision with --save-plan FILE, and build again with --plan FILE and --compress.",
        )
    for name, is_search, needed, own in (
        ("--precision", precision == "auto", "--min-snr", for_precision),
        ("--compress", compress == "auto", "--max-sdr-drop", for_compression),
    ):
        if is_search and (own[needed] is None or not both["--tune-on"]):
            raise UsageError(f"{name} auto needs {needed} and --tune-on", received="not both")
        if not is_search and (given := [option for option, value in own.items() if value is not None]):
            raise UsageError(f"{', '.join(given)} goes with {name} auto", received=f"no {name} auto")
    if "auto" not in (precision, compress) and (given := [option for option, value in both.items() if value]):
        raise UsageError(f"{', '.join(given)} goes with --precision auto or --compress auto", received="neither")


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
@click.option(
    "--plan", "plan_file", type=click.Path(path_type=Path), help="Plan to start from; the model's preset by default."
)
@click.option(
    "--segments", multiple=True, metavar="STAGE=N", callback=_counts_option, help="Cut a stage into N packages."
)
@click.option("--max-ops", type=click.IntRange(min=1), help="Most operations a package may have, estimated.")
@click.option("--max-weight-mb", type=FiniteRange(min=0, min_open=True), help="Most weights a package may have.")
@click.option("--random-init", type=int, metavar="SEED", help="A named configuration with random weights.")
@json_option
def plan_(
    model: str,
    out: Path | None,
    plan_file: Path | None,
    segments: Mapping[str, int],
    max_ops: int | None,
    max_weight_mb: float | None,
    random_init: int | None,
    as_json: bool,
) -> None:
    """Compare ways to cut MODEL into packages, with least traffic between them; write the plan of the last."""
    from .. import output
    from ..plan.layouts import compare
    from . import tables

    if out is not None:
        output.check(out)
    with steps() as progress:
        asked, layouts = compare(
            model,
            plan=plans.load(plan_file) if plan_file else None,
            segments=segments,
            max_operations=max_ops,
            max_weight_bytes=None if max_weight_mb is None else round(max_weight_mb * 1e6),
            random_init=random_init,
            progress=progress,
        )
    if out is not None:
        plans.save(asked, out)
    print_result(
        as_json,
        lambda: {"plan": str(out) if out else None, "layouts": [layout.to_json() for layout in layouts]},
        lambda: tables.layout_tables(layouts),
    )


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show a bundle: segments, boundary tensors, sizes, parameters."""
    from ..bundle.directory import load_any
    from . import tables

    members = load_any(bundle).members
    print_result(
        as_json,
        lambda: {"members": [{"path": str(m.path), "manifest": m.manifest.model_dump(mode="json")} for m in members]},
        lambda: Group(*(tables.bundle_tables(member) for member in members)),
    )
