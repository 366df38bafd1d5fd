"""Verbs that judge: verify, doctor, goldens, verify-port; and predict, which runs one package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Group

from ..errors import UsageError
from .shell import (
    COMPUTE_UNITS,
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
@trusted_key_option
@memory_option
@json_option
def verify(bundle: Path, compute_units: str, trusted_key: Path | None, as_json: bool) -> None:
    """Judge a bundle from its saved files; exit 0 if all that ran passed."""
    from ..bundle.directory import load_any
    from ..runtime import heap
    from ..verification.verify import verify as run
    from . import tables

    heap.keep_freed()  # before threads start
    with steps() as progress:
        reports = run(load_any(bundle, trusted_key=trusted_key), compute_units=compute_units, progress=progress)
    print_result(
        as_json,
        lambda: reports[0].to_json() if len(reports) == 1 else {"members": [report.to_json() for report in reports]},
        lambda: Group(*(tables.report_tables(report) for report in reports)),
    )
    if not all(report.passed for report in reports):
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--inputs", type=click.Path(path_type=Path), required=True, help="Inputs by name: .npz or .safetensors.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Outputs by name: .npz or .safetensors."
)
@click.option("--function", help="Which function, for packages with several.")
@click.option("--values", type=click.Choice(["stored", "fp32", "fp16"]), default="stored", show_default=True,
              help="Types that values are rounded to: as the program declares, none, or half throughout.")  # fmt: skip
@click.option("--accumulators", type=click.Choice(["fp32", "staged", "half"]), default="fp32", show_default=True,
              help="What sums of half-precision terms are held in.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of random operations.")
@memory_option
@json_option
def predict(
    package: Path,
    inputs: Path,
    out: Path,
    function: str | None,
    values: Any,
    accumulators: Any,
    seed: int,
    as_json: bool,
) -> None:
    """Run any .mlpackage on this machine. This models rounding, not Apple's kernels."""
    from .. import mil, output
    from ..arrays import SUFFIXES, read, write

    output.check(out, *SUFFIXES)
    numerics = mil.Numerics(mil.RoundingMode(values), mil.AccumulatorType(accumulators))
    model = mil.load(package, function_name=function, numerics=numerics, seed=seed)
    results = model.predict(
        read(inputs, expected=model.input_shapes), model.make_state() if model.spec.states else None
    )
    write(out, results)
    shapes = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in results.items()}
    if as_json:
        print_json({"out": str(out), "outputs": shapes})
    else:
        for name, one in shapes.items():
            print_lines(f"{name} {one['shape']} {one['dtype']}")


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="File to write: .safetensors or .npz."
)
@click.option("--taps", "patterns", multiple=True, help="Only these, by name or pattern, e.g. 'layers_t.2.*'.")
@click.option(
    "--tiny/--full", default=False, help="Only inputs, each layer's result and outputs; or every tap.  [default: full]"
)
@memory_option
@json_option
def goldens(bundle: Path, out: Path, patterns: tuple[str, ...], tiny: bool, as_json: bool) -> None:
    """Record the taps of BUNDLE's captured, untouched transformer, for a port to be held against."""
    from .. import output
    from ..arrays import SUFFIXES, write
    from ..bundle.directory import Bundle
    from ..verification import taps

    output.check(out, *SUFFIXES)
    values, about = taps.goldens(Bundle.load(bundle), patterns, tiny=tiny)
    write(out, values, about)
    if as_json:
        print_json({"out": str(out), **about, "taps": {name: list(value.shape) for name, value in values.items()}})
    else:
        for name, value in values.items():
            print_lines(f"{name} {list(value.shape)} {value.dtype}")


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), required=True, help="Secret key, as `minisign -G` makes it.")
@json_option
def sign(bundle: Path, key: Path, as_json: bool) -> None:
    """Sign BUNDLE after all its files were checked, for `--trusted-key` and for minisign itself."""
    from ..bundle import signing
    from ..bundle.directory import load_any

    load_any(bundle, check_hashes=True)
    written = signing.sign(bundle, key, lambda: str(click.prompt("Password of the key", hide_input=True, err=True)))
    if as_json:
        print_json({"signature": str(written)})
    else:
        print_lines(str(written))


@command.command(name="verify-port")
@click.argument("dumps", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-b", "--bundle", type=click.Path(path_type=Path), required=True, help="Bundle to hold it against.")
@memory_option
@json_option
def verify_port(dumps: tuple[Path, ...], bundle: Path, as_json: bool) -> None:
    """Judge what a port of the transformer dumped, tap by tap; exit 0 if every tap present passes.

    A dump is a .safetensors or .npz file, a folder of .npy files, or a .json index of raw values, named as
    `splitter goldens` names them and made from BUNDLE's golden transformer input. Further DUMPS are repeated runs.
    """
    from ..bundle.directory import Bundle
    from ..verification.port import verify_port as run
    from . import tables

    report = run(dumps, Bundle.load(bundle))
    print_result(as_json, report.to_json, lambda: tables.port_table(report))
    if not report.passed:
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--chip", type=click.Choice(["m1", "m2", "m3", "m4", "m5"]), default="m1", show_default=True,
              help="Family whose Neural Engine's limits count.")  # fmt: skip
@click.option("--inputs", type=click.Path(path_type=Path), help="Run the packages on these (.npz or .safetensors, by "
              "name).  [default: the bundle's golden inputs]")  # fmt: skip
@click.option("--static", is_flag=True, help="Look at the programs alone; run nothing.")
@click.option("--fail-on", type=click.Choice(["error", "warning", "info", "never"]), default="error",
              show_default=True, help="Exit with 1 if something at least as bad is found.")  # fmt: skip
@memory_option
@json_option
def doctor(path: Path, chip: str, inputs: Path | None, static: bool, fail_on: str, as_json: bool) -> None:
    """Examine PATH, a bundle or any .mlpackage: Neural Engine, half precision, what was asked for, compile time."""
    from ..arrays import read
    from ..diagnosis import Severity, examine, input_shapes
    from . import tables

    if static and inputs is not None:
        raise UsageError("a package is run on inputs, or not at all", received="--inputs and --static")
    given = read(inputs, expected=input_shapes(path)) if inputs is not None else None
    with steps() as progress:
        report = examine(path, chip=chip, inputs=given, run=not static, progress=progress)
    print_result(as_json, report.to_json, lambda: tables.doctor_tables(report))
    if report.fails(None if fail_on == "never" else Severity(fail_on)):
        raise click.exceptions.Exit(1)
