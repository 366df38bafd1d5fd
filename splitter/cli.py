"""The command line: arguments → one call → one printed result."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import click
from rich.console import Console, Group, RenderableType

from . import plan as plans
from .errors import BundleError, SplitterError, UsageError

P = ParamSpec("P")
_TARGETS = click.Choice([target.value for target in plans.DeploymentTarget])
_PRECISIONS = click.Choice([precision.value for precision in plans.Precision])
_LAYOUTS = click.Choice(["torch", "mlx"])
_QKV = click.Choice(["fused", "split"])
_COMPRESSIONS = click.Choice(["none", "int8", "pal8", "pal6", "pal4"])
_UNITS = click.Choice(["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"])
_INTERRUPTED = 130  # what shells report for SIGINT

_stderr = Console(stderr=True, highlight=False)


def main() -> NoReturn:
    """Entry point. Every expected failure is one message and a non-zero exit; ``--json`` makes it a document."""
    wants_json = "--json" in sys.argv[1:]
    try:
        sys.exit(_cli(standalone_mode=False))
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        if wants_json:
            _print_json({"error": {"kind": "UsageError", "message": error.format_message()}})
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("Interrupted", "interrupted; nothing half-written was left behind", wants_json, _INTERRUPTED)
    except SplitterError as error:
        _fail(type(error).__name__, str(error), wants_json, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("SPLITTER_DEBUG"):
            raise
        message = f"internal error, please report it: {type(error).__name__}: {error} (SPLITTER_DEBUG=1 shows where)"
        _fail("InternalError", message, wants_json, 70)


def _fail(kind: str, message: str, wants_json: bool, code: int) -> NoReturn:
    if wants_json:
        _print_json({"error": {"kind": kind, "message": message}})
    click.echo(f"splitter: error: {message}", err=True)
    sys.exit(code)


def _json_option(function: Callable[P, None]) -> Callable[P, None]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")(function)


def _print(as_json: bool, document: Callable[[], object], table: Callable[[], RenderableType]) -> None:
    if as_json:
        _print_json(document())
    else:
        Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(table())


def _print_json(document: object) -> None:
    click.echo(json.dumps(document, indent=1, allow_nan=False))


@contextmanager
def _steps() -> Iterator[Callable[[str], None]]:
    """A spinner with the current step, or a line per step where there is no terminal."""
    if not _stderr.is_terminal:
        yield _stderr.print
        return
    with _stderr.status("") as status:
        yield status.update


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="splitter")
def _cli() -> None:
    """Cut HT Demucs, unmodified, into pieces for Core ML; prove the pieces right; run songs through them."""
    for noisy in ("huggingface_hub", "torch", "jax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _names_option(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(name.strip() for name in value.split(",") if name.strip())


@_cli.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory to create.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Plan file; the model's preset by default.")
@click.option("--target", type=_TARGETS, help="Oldest system the packages must run on.  [default: iOS17]")
@click.option("--precision", type=_PRECISIONS, help="Arithmetic inside the packages.  [default: fp32]")
@click.option("--boundary-dtype", type=_PRECISIONS, help="Element type of package inputs and outputs.  [default: fp32]")
@click.option("--layout", type=_LAYOUTS, help="Whose names the transformer's weights have.  [default: torch]")
@click.option(
    "--qkv", type=_QKV, help="Its input projections in one matrix or three.  [default: as the layout has them]"
)
@click.option("--weights-dtype", type=_PRECISIONS, help="Element type of its matrices.  [default: fp32]")
@click.option("--compress", type=_COMPRESSIONS, help="Compression of its matrices.  [default: none]")
@click.option(
    "--passes",
    metavar="NAME,NAME",
    callback=_names_option,
    help="Graph passes to apply, in order; '' for none.  [default: by precision]",
)
@click.option(
    "--for", "optimise_for", type=click.Choice(["ane"]), help="A preset of passes; precision fp16 by default."
)
@click.option("--segment", type=float, metavar="SECONDS", help="Length of one run.  [default: as trained]")
@click.option("--random-init", type=int, metavar="SEED", help="A named configuration with random weights.")
@click.option(
    "--golden-audio", type=click.Path(path_type=Path), help="File to record goldens of; a synthesised song by default."
)
@click.option(
    "--no-reference", is_flag=True, help="Leave out the fp32 uncompressed packages that verify compares with."
)
@click.option("--monolith", is_flag=True, help="All between the host's stages in one package, for comparison.")
@click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
@_json_option
def build(
    model: str,
    out: Path,
    plan_file: Path | None,
    target: str | None,
    precision: str | None,
    boundary_dtype: str | None,
    layout: str | None,
    qkv: str | None,
    weights_dtype: str | None,
    compress: str | None,
    passes: tuple[str, ...] | None,
    optimise_for: str | None,
    segment: float | None,
    random_init: int | None,
    golden_audio: Path | None,
    no_reference: bool,
    monolith: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Build the bundle of MODEL: demo, htdemucs, htdemucs_ft, htdemucs_6s, or a checkpoint file."""
    from . import tables
    from .compiler import build as run

    weights = {"layout": layout, "qkv": qkv, "matrices": weights_dtype, "compress": compress}
    with _steps() as progress:
        bag = run(
            model,
            out,
            plan=plans.load(plan_file) if plan_file else None,
            deployment_target=target,
            precision=precision,
            boundary_dtype=boundary_dtype,
            weights={key: value for key, value in weights.items() if value is not None},
            passes=passes,
            optimise_for=optimise_for,
            segment=segment,
            random_init=random_init,
            golden_audio=golden_audio,
            reference=not no_reference,
            monolith=monolith,
            force=force,
            progress=progress,
        )
    _print(
        as_json,
        lambda: {"bundle": str(out), "members": [str(member.path) for member in bag.members]},
        lambda: Group(*(tables.bundle_tables(member) for member in bag.members)),
    )


def _counts_option(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> Mapping[str, int]:
    counts = {}
    for value in values:
        stage, equals, count = value.partition("=")
        if not equals or not stage or not count.isdigit() or not int(count):
            raise click.BadParameter(f"{value!r} is not STAGE=N, e.g. encoder=2")
        counts[stage] = int(count)
    return counts


@_cli.command(name="plan")
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Plan file to write, for build --plan.")
@click.option(
    "--plan", "plan_file", type=click.Path(path_type=Path), help="Plan to start from; the model's preset by default."
)
@click.option(
    "--segments", multiple=True, metavar="STAGE=N", callback=_counts_option, help="Cut a stage into N packages."
)
@click.option("--max-ops", type=click.IntRange(min=1), help="Most operations a package may have, estimated.")
@click.option("--max-weight-mb", type=click.FloatRange(min=0, min_open=True), help="Most weights a package may have.")
@click.option("--random-init", type=int, metavar="SEED", help="A named configuration with random weights.")
@_json_option
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
    from . import tables
    from .planning import compare

    with _steps() as progress:
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
    _print(
        as_json,
        lambda: {"plan": str(out) if out else None, "layouts": [layout.to_json() for layout in layouts]},
        lambda: tables.layout_tables(layouts),
    )


@_cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show a bundle: segments, boundary tensors, sizes, parameters."""
    from . import tables
    from .bundle import load_any

    members = load_any(bundle).members
    _print(
        as_json,
        lambda: {"members": [{"path": str(m.path), "manifest": m.manifest.model_dump(mode="json")} for m in members]},
        lambda: Group(*(tables.bundle_tables(member) for member in members)),
    )


@_cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--compute-units", type=_UNITS, default="ALL", show_default=True, help="For Core ML, on a Mac.")
@_json_option
def verify(bundle: Path, compute_units: str, as_json: bool) -> None:
    """Judge a bundle from its saved files; exit 0 if all that ran passed."""
    from . import tables
    from .bundle import load_any
    from .verification import verify as run

    with _steps() as progress:
        reports = run(load_any(bundle), compute_units=compute_units, progress=progress)
    _print(
        as_json,
        lambda: reports[0].to_json() if len(reports) == 1 else {"members": [report.to_json() for report in reports]},
        lambda: Group(*(tables.report_tables(report) for report in reports)),
    )
    if not all(report.passed for report in reports):
        raise click.exceptions.Exit(1)


@_cli.command()
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
@_json_option
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
    from . import mil
    from .arrays import check_suffix, read, write

    check_suffix(out)
    numerics = mil.Numerics(mil.Values(values), mil.Accumulators(accumulators))
    model = mil.load(package, function_name=function, numerics=numerics, seed=seed)
    results = model.predict(read(inputs), model.make_state() if model.spec.states else None)
    write(out, results)
    shapes = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in results.items()}
    if as_json:
        _print_json({"out": str(out), "outputs": shapes})
    else:
        for name, one in shapes.items():
            click.echo(f"{name} {one['shape']} {one['dtype']}")


@_cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="File to write: .safetensors or .npz."
)
@click.option("--taps", "patterns", multiple=True, help="Only these, by name or pattern, e.g. 'layers_t.2.*'.")
@click.option(
    "--tiny/--full", default=False, help="Only inputs, each layer's result and outputs; or every tap.  [default: full]"
)
@_json_option
def goldens(bundle: Path, out: Path, patterns: tuple[str, ...], tiny: bool, as_json: bool) -> None:
    """Record the taps of BUNDLE's captured, untouched transformer, for a port to be held against."""
    from . import taps
    from .arrays import check_suffix, write
    from .bundle import Bundle

    check_suffix(out)
    values, about = taps.goldens(Bundle.load(bundle), patterns, tiny=tiny)
    write(out, values, about)
    if as_json:
        _print_json({"out": str(out), **about, "taps": {name: list(value.shape) for name, value in values.items()}})
    else:
        for name, value in values.items():
            click.echo(f"{name} {list(value.shape)} {value.dtype}")


@_cli.command(name="verify-port")
@click.argument("dumps", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-b", "--bundle", type=click.Path(path_type=Path), required=True, help="Bundle to hold it against.")
@_json_option
def verify_port(dumps: tuple[Path, ...], bundle: Path, as_json: bool) -> None:
    """Judge what a port of the transformer dumped, tap by tap; exit 0 if every tap present passes.

    A dump is a .safetensors or .npz file, a folder of .npy files, or a .json index of raw values, named as
    `splitter goldens` names them and made from BUNDLE's golden transformer input. Further DUMPS are repeated runs.
    """
    from . import tables
    from .bundle import Bundle
    from .port import read_dump
    from .port import verify_port as run

    report = run([read_dump(path) for path in dumps], Bundle.load(bundle))
    _print(as_json, report.to_json, lambda: tables.port_table(report))
    if not report.passed:
        raise click.exceptions.Exit(1)


@_cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--chip", type=click.Choice(["m1", "m2", "m3", "m4", "m5"]), default="m1", show_default=True,
              help="Family whose Neural Engine's limits count.")  # fmt: skip
@click.option("--inputs", type=click.Path(path_type=Path), help="Run the packages on these (.npz or .safetensors, by "
              "name).  [default: the bundle's golden inputs]")  # fmt: skip
@click.option("--static", is_flag=True, help="Look at the programs alone; run nothing.")
@click.option("--fail-on", type=click.Choice(["error", "warning", "info", "never"]), default="error",
              show_default=True, help="Exit with 1 if something at least as bad is found.")  # fmt: skip
@_json_option
def doctor(path: Path, chip: str, inputs: Path | None, static: bool, fail_on: str, as_json: bool) -> None:
    """Examine PATH, a bundle or any .mlpackage: Neural Engine, half precision, what was asked for, compile time."""
    from . import tables
    from .arrays import read
    from .doctor import Severity, examine

    if static and inputs is not None:
        raise UsageError("a package is run on inputs, or not at all", received="--inputs and --static")
    given = read(inputs) if inputs is not None else None
    with _steps() as progress:
        report = examine(path, chip=chip, inputs=given, run=not static, progress=progress)
    _print(as_json, report.to_json, lambda: tables.doctor_tables(report))
    if report.fails(None if fail_on == "never" else Severity(fail_on)):
        raise click.exceptions.Exit(1)


def _engine_option(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> Mapping[str, str]:
    chosen = {}
    for value in values:
        segment, equals, name = value.partition("=")
        if not equals or not segment or not name:
            raise click.BadParameter(f"{value!r} is not SEGMENT=ENGINE, e.g. transformer=jax")
        chosen[segment] = name
    return chosen


@_cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-b", "--bundle", type=click.Path(path_type=Path), help="Bundle to run; overrides -n.")
@click.option("-n", "--name", help="Model to run; its bundle is built once in the user's cache.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("separated"), show_default=True)
@click.option("--two-stems", metavar="STEM", help="Only this stem and the rest.")
@click.option("--other-method", type=click.Choice(["add", "minus", "none"]), default="add", show_default=True,
              help="What the rest is: the other stems, the mixture minus the stem, or nothing.")  # fmt: skip
@click.option("--shifts", default=1, show_default=True, help="Randomly shifted passes to average; 0 for a plain one.")
@click.option("--seed", default=0, show_default=True, help="Of the random shifts.")
@click.option("--overlap", default=0.25, show_default=True, help="Overlap between segments.")
@click.option("--segment", type=float, metavar="SECONDS", help="Length of each chunk.  [default: the bundle's]")
@click.option("--mp3", is_flag=True, help="Write MP3.")
@click.option("--mp3-bitrate", default=320, show_default=True, type=click.IntRange(32, 320), help="In kbit/s.")
@click.option("--flac", is_flag=True, help="Write FLAC.")
@click.option("--float32", is_flag=True, help="Write WAV as 32-bit float.")
@click.option("--int24", is_flag=True, help="Write 24-bit integers.")
@click.option(
    "--clip-mode", type=click.Choice(["rescale", "clamp", "tanh", "none"]), default="rescale", show_default=True
)
@click.option("--filename", default="{track}/{stem}.{ext}", show_default=True, help="Below OUT/<model>/.")
@click.option("--engine", "engines", multiple=True, metavar="SEGMENT=ENGINE", callback=_engine_option,
              help="Run a segment with this engine, e.g. transformer=jax.")  # fmt: skip
@_json_option
def separate(
    files: tuple[Path, ...],
    bundle: Path | None,
    name: str | None,
    out: Path,
    two_stems: str | None,
    other_method: Any,
    shifts: int,
    seed: int,
    overlap: float,
    segment: float | None,
    mp3: bool,
    mp3_bitrate: int,
    flac: bool,
    float32: bool,
    int24: bool,
    clip_mode: Any,
    filename: str,
    engines: Mapping[str, str],
    as_json: bool,
) -> None:
    """Separate FILES into OUT/<model>/<track>/<stem>.wav."""
    from .progress import bars
    from .separation import Options
    from .separation import separate as run

    encoding = _encoding(mp3, mp3_bitrate, flac, float32, int24, clip_mode)
    bag = _find_bundle(bundle, name)
    options = Options(
        shifts=shifts,
        overlap=overlap,
        segment=segment,
        two_stems=two_stems,
        other_method=other_method,
        encoding=encoding,
        filename=filename,
        seed=seed,
    )

    def report(outcome: Any) -> None:
        if outcome.error is not None:
            click.echo(f"splitter: error: {outcome.error}", err=True)
        elif not as_json:
            for stem in outcome.stems.values():
                click.echo(stem)

    with bars(_stderr) as progress:
        outcomes = run(files, bag, out, options=options, engines=engines, progress=progress, done=report)
    if as_json:
        _print_json({"files": [
            {
                "path": str(outcome.path),
                "stems": {stem: str(path) for stem, path in outcome.stems.items()},
                "error": str(outcome.error) if outcome.error else None,
            }
            for outcome in outcomes
        ]})  # fmt: skip
    if any(outcome.error for outcome in outcomes):
        raise click.exceptions.Exit(1)


def _encoding(mp3: bool, mp3_bitrate: int, flac: bool, float32: bool, int24: bool, clip_mode: Any) -> Any:
    from .audio import Encoding

    if mp3 and flac:
        raise UsageError("a stem has one format", received="--mp3 and --flac")
    if float32 and int24:
        raise UsageError("samples have one format", received="--float32 and --int24")
    if mp3 and (float32 or int24):
        raise UsageError("MP3 has no sample format to choose", received="--float32" if float32 else "--int24")
    if flac and float32:
        raise UsageError("FLAC holds integers", received="--float32", fix="Use --int24, or leave --flac out.")
    if mp3:
        return Encoding("mp3", "MPEG_LAYER_III", clip_mode, mp3_bitrate)
    subtype = "FLOAT" if float32 else "PCM_24" if int24 else "PCM_16"
    return Encoding("flac" if flac else "wav", subtype, clip_mode)  # type: ignore[arg-type]


def _find_bundle(bundle: Path | None, name: str | None) -> Any:
    """The given bundle, or the one of a name in the user's cache, built there if it is not."""
    from importlib.metadata import version

    from platformdirs import user_cache_path

    from .bundle import load_any

    if bundle is not None:
        return load_any(bundle)
    if name is None:
        raise UsageError("separate needs a bundle", received="neither -b nor -n", fix="Give -b DIR, or -n htdemucs.")
    cached = user_cache_path("splitter") / "bundles" / f"{name.replace('/', '_')}-{version('splitter')}"
    if (cached / "manifest.json").exists():
        try:
            return load_any(cached)
        except BundleError as error:
            _stderr.print(f"rebuilding the cached bundle: {error}")
    from .compiler import build as run
    from .weights.checkpoints import NAMES

    if name not in NAMES:
        raise UsageError("-n takes the name of a model", received=name, fix=f"Names are {', '.join(NAMES)}.")
    with _steps() as progress:
        return run(name, cached, force=True, progress=progress)
