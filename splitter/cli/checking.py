"""Verbs that judge: verify, doctor, goldens, verify-port; sign; and predict, which runs one package."""

from __future__ import annotations

from pathlib import Path

import click

import splitter

from .. import errors
from .shell import (
    CHIPS,
    COMPUTE_UNITS,
    FINITE,
    command,
    json_option,
    memory_option,
    print_json,
    print_lines,
    print_result,
    steps,
    trusted_key_option,
)


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--compute-units", type=COMPUTE_UNITS, default="ALL", show_default=True, help="For Core ML, on a Mac.")
@click.option("--values", type=click.Choice(["stored", "ane"]), default="stored", show_default=True,
              help="ane: run the packages besides as published measurements say of the Neural Engine.")  # fmt: skip
@trusted_key_option
@memory_option
@json_option
def verify(bundle: Path, compute_units: str, values: str, trusted_key: Path | None, as_json: bool) -> None:
    """Check BUNDLE from its saved files; exit with 0 if all checks that ran passed."""
    from . import tables

    with steps() as progress:
        bag = splitter.load(bundle, trusted_key=trusted_key)
        verification = splitter.verify(bag, compute_units=compute_units, values=values, progress=progress)
    print_result(as_json, verification.to_dict, lambda: tables.verification_tables(verification))
    if not verification.passed:
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    required=True,
    help="Inputs by name: .npz or .safetensors; or an image.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Outputs by name: .npz or .safetensors; or an image.",
)
@click.option("--taps", multiple=True, help="Write these intermediate values too, by name or pattern; repeat.")
@click.option("--function", help="Function to run.  [default: the package's]")
@click.option("--values", type=click.Choice(["stored", "fp32", "fp16", "ane"]), default="stored", show_default=True,
              help="Types of values: as the program declares; all fp32; all fp16; ane: as declared, and what is fp16 "
              "as published measurements say of the Neural Engine.")  # fmt: skip
@click.option("--accumulators", type=click.Choice(["fp32", "staged", "half"]), default="fp32", show_default=True,
              help="Type in which sums of fp16 terms are accumulated.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of random operations.")
@memory_option
@json_option
def predict(
    package: Path,
    inputs: Path,
    out: Path,
    taps: tuple[str, ...],
    function: str | None,
    values: str,
    accumulators: str,
    seed: int,
    as_json: bool,
) -> None:
    """Run PACKAGE, any .mlpackage, on this machine. This models rounding, not Apple's kernels."""
    departures: list[str] = []
    results = splitter.predict(
        package, inputs, out=out, function=function, values=values, accumulators=accumulators, seed=seed,
        taps=taps, notice=departures.append,
    )  # fmt: skip
    shapes = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in results.items()}
    if as_json:
        print_json({"out": str(out), "outputs": shapes} | ({"departures": departures} if values == "ane" else {}))
    else:
        print_lines(*departures)
        for name, kind in shapes.items():
            print_lines(f"{name} {kind['shape']} {kind['dtype']}")


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="File to write: .safetensors or .npz."
)
@click.option("--taps", "patterns", multiple=True, help="Only these, by name or pattern, e.g. 'layers_t.2.*'; repeat.")
@click.option("--stage", "stages", multiple=True, help="Only what this segment is given and computes; repeat.")
@click.option("--tiny/--full", default=False, help="Boundary tensors and each layer's result; or every tap.  "
              "[default: full]")  # fmt: skip
@memory_option
@json_option
def goldens(
    bundle: Path, out: Path, patterns: tuple[str, ...], stages: tuple[str, ...], tiny: bool, as_json: bool
) -> None:
    """Record the taps of BUNDLE's captured, untouched model, to check a port of any part of it with."""
    taps = splitter.record_taps(bundle, patterns, stages=stages, tiny=tiny, out=out)
    if as_json:
        print_json({"out": str(out), **taps.to_dict()})
    else:
        for name, value in taps.values.items():
            print_lines(f"{name} {list(value.shape)} {value.dtype}")


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), required=True, help="Secret key, as `minisign -G` makes it.")
@json_option
def sign(bundle: Path, key: Path, as_json: bool) -> None:
    """Sign BUNDLE after all its files were checked, for `--trusted-key` and for minisign itself."""
    splitter.load(bundle, check_hashes=True)
    written = splitter.sign(bundle, key, lambda: str(click.prompt("Password of the key", hide_input=True, err=True)))
    if as_json:
        print_json({"signature": str(written)})
    else:
        print_lines(str(written))


@command.command(name="verify-port")
@click.argument("dumps", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-b", "--bundle", type=click.Path(path_type=Path), required=True, help="Bundle to compare with.")
@click.option("--failures", is_flag=True, help="Show only what fails.")
@memory_option
@json_option
def verify_port(dumps: tuple[Path, ...], bundle: Path, failures: bool, as_json: bool) -> None:
    """Check what a port computed, of any part of the model, tap by tap; exit with 0 if every tap present passes.

    A dump is a .safetensors or .npz file, a folder of .npy files, or a .json index of raw values, named as
    `splitter goldens` names them and made from BUNDLE's golden tensors. Further DUMPS are repeated runs.
    """
    from . import tables

    report = splitter.verify_port(dumps, bundle)
    print_result(as_json, report.to_dict, lambda: tables.port_table(report, failures=failures))
    if not report.passed:
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--chip", type=CHIPS, default="m1", show_default=True,
              help="Chips whose Neural Engine's limits are used.")  # fmt: skip
@click.option("--inputs", type=click.Path(path_type=Path), help="Inputs to run the packages on: .npz or .safetensors, "
              "by name.  [default: the bundle's golden inputs]")  # fmt: skip
@click.option("--static", is_flag=True, help="Look at the programs alone; run nothing.")
@click.option("--fail-on", type=click.Choice(["error", "warning", "info", "never"]), default="error",
              show_default=True, help="Exit with 1 if something at least as bad is found.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Show every finding, and why it matters.")
@memory_option
@json_option
def doctor(
    path: Path, chip: str, inputs: Path | None, static: bool, fail_on: str, everything: bool, as_json: bool
) -> None:
    """Examine PATH, a bundle or any .mlpackage: loading, Neural Engine, half precision, what was asked for.

    It begins with what to do, at most five lines, then shows the causes of all findings, the costliest first.
    """
    from . import tables

    if static and inputs is not None:
        raise errors.UsageError("--inputs and --static exclude each other", fix="Leave one of them out.")
    with steps() as progress:
        report = splitter.doctor(path, chip=chip, inputs=inputs, run=not static, progress=progress)
    print_result(as_json, report.to_dict, lambda: tables.doctor_tables(report, everything=everything))
    if report.fails(None if fail_on == "never" else fail_on):
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("first")
@click.argument("second")
@click.option("--inputs", type=click.Path(path_type=Path), help="What packages are run on: .npz or .safetensors, by "
              "name.  [default: the first bundle's golden inputs, or seeded noise]")  # fmt: skip
@click.option("--static", is_flag=True, help="Compare what is written alone; run nothing.")
@click.option("--min-snr", type=FINITE, default=60.0, show_default=True, help="Below so many dB values diverge.")
@memory_option
@json_option
def compare(first: str, second: str, inputs: Path | None, static: bool, min_snr: float, as_json: bool) -> None:
    """Compare FIRST and SECOND, operation by operation where both are packages; exit with 1 if they differ.

    Each is a .mlpackage, a bundle, BUNDLE:SEGMENT, a PyTorch module as PACKAGE.MODULE:FACTORY, whose code is imported
    and run, or a .npz or .safetensors file of values by name. Operations are matched by name, then by structure.
    """
    from . import tables

    with steps() as progress:
        comparison = splitter.compare(
            first, second, inputs=inputs, run=not static, min_snr_db=min_snr, progress=progress
        )
    print_result(as_json, comparison.to_dict, lambda: tables.comparison_tables(comparison))
    if not comparison.identical:
        raise click.exceptions.Exit(1)
