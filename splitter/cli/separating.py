"""The verb separate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import BundleError, UsageError
from .shell import (
    FINITE,
    command,
    engine_pairs,
    json_option,
    memory_option,
    print_json,
    print_lines,
    stderr,
    steps,
    trusted_key_option,
)


@command.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-b", "--bundle", type=click.Path(path_type=Path), help="Bundle to run; overrides -n.")
@trusted_key_option
@click.option("-n", "--name", help="Model to run; its bundle is built once in the user's cache.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("separated"), show_default=True)
@click.option("--two-stems", metavar="STEM", help="Only this stem and the rest.")
@click.option("--other-method", type=click.Choice(["add", "minus", "none"]), default="add", show_default=True,
              help="What the rest is: the other stems, the mixture minus the stem, or nothing.")  # fmt: skip
@click.option("--shifts", default=1, show_default=True, help="Randomly shifted passes to average; 0 for a plain one.")
@click.option("--seed", default=0, show_default=True, help="Of the random shifts.")
@click.option("--overlap", default=0.25, show_default=True, help="Overlap between segments.")
@click.option(
    "--segment",
    type=FINITE,
    metavar="SECONDS",
    help="Length of each chunk.  [default: the bundle's]",
)
@click.option("--mp3", is_flag=True, help="Write MP3.")
@click.option("--mp3-bitrate", default=320, show_default=True, help="In kbit/s.")
@click.option("--flac", is_flag=True, help="Write FLAC.")
@click.option("--float32", is_flag=True, help="Write WAV as 32-bit float.")
@click.option("--int24", is_flag=True, help="Write 24-bit integers.")
@click.option(
    "--clip-mode", type=click.Choice(["rescale", "clamp", "tanh", "none"]), default="rescale", show_default=True
)
@click.option("--filename", default="{track}/{stem}.{ext}", show_default=True, help="Below OUT/<model>/.")
@click.option("--engine", "engines", multiple=True, metavar="SEGMENT=ENGINE", callback=engine_pairs,
              help="Run a segment with this engine, e.g. transformer=jax.  "
                   "[default: as chosen by measurement, once]")  # fmt: skip
@click.option("--fast", is_flag=True, help="In bfloat16, on a processor that computes in it; says what that costs.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), default=1, show_default=True,
              help="Files at a time, each by a process with its share of the cores.")  # fmt: skip
@click.option("--force", is_flag=True, help="Make stems again that are there already.")
@memory_option
@json_option
def separate(
    files: tuple[Path, ...],
    bundle: Path | None,
    trusted_key: Path | None,
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
    engines: tuple[tuple[str, str], ...],
    fast: bool,
    jobs: int,
    force: bool,
    as_json: bool,
) -> None:
    """Separate FILES into OUT/<model>/<track>/<stem>.wav.

    Files whose stems are there already, made of the same sound with the same bundle and options, are left alone.
    """
    from ..runtime import heap
    from ..separation import Options, Separator
    from ..separation import separate as run
    from .progress import bars

    heap.keep_freed()  # before threads start
    encoding = _encoding(mp3, mp3_bitrate, flac, float32, int24, clip_mode)
    bag = _find_bundle(bundle, name, trusted_key)
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

    Separator(bag, options)  # refuses what cannot be obeyed, before engines are measured
    asked, otherwise = _chosen(bag.members, dict(engines), fast, jobs)
    with bars(stderr, len(files)) as shown:

        def report(outcome: Any) -> None:
            shown.finish_file()
            _say(outcome)
            if not as_json:
                print_lines(*outcome.stems.values())

        outcomes = run(
            files,
            bag,
            out,
            options=options,
            engines=asked,
            otherwise=otherwise,
            jobs=jobs,
            force=force,
            progress=shown.job,
            done=report,
        )
    if as_json:
        print_json({"files": [
            {
                "path": str(outcome.path),
                "stems": {stem: str(path) for stem, path in outcome.stems.items()},
                "error": str(outcome.error) if outcome.error else None,
                "attempts": outcome.attempts,
            }
            for outcome in outcomes
        ]})  # fmt: skip
    if len(outcomes) > 1:
        _sum_up(outcomes)
    if any(outcome.error for outcome in outcomes):
        raise click.exceptions.Exit(1)


def _chosen(
    members: Sequence[Any], asked: dict[str, str], fast: bool, jobs: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Engines by segment: those asked for, and for the rest those that measurement chooses. Says which they are."""
    import torch

    from ..separation import selection
    from ..separation.workers import share

    threads = torch.get_num_threads()
    torch.set_num_threads(threads if jobs == 1 else share(jobs))
    try:
        choice = selection.fast(members, asked) if fast else selection.fastest(members, asked, _note)
    finally:
        torch.set_num_threads(threads)
    pairs = ", ".join(f"{segment}={engine}" for segment, engine in choice.engines.items())
    _note(f"engines: {pairs}")
    if fast and choice.snr_db is not None:
        _note(f"fast: {choice.snr_db:.1f} dB from float32 on the bundle's golden input")
    return (choice.engines, {}) if fast else (asked, choice.engines)


def _note(message: str) -> None:
    print_lines(message, stream=sys.stderr)


def _say(outcome: Any) -> None:
    """On standard error: what is not as usual about it."""
    if outcome.error is not None:
        print_lines(f"splitter: error: {outcome.error}", stream=sys.stderr)
    elif outcome.attempts == 0:
        print_lines(f"{outcome.path}: its stems are there already (--force makes them again)", stream=sys.stderr)
    elif outcome.attempts > 1:
        print_lines(
            f"{outcome.path}: done by attempt {outcome.attempts}; its worker was killed before", stream=sys.stderr
        )


def _sum_up(outcomes: Sequence[Any]) -> None:
    failed = [outcome for outcome in outcomes if outcome.error]
    already = sum(outcome.attempts == 0 for outcome in outcomes)
    made = len(outcomes) - already - len(failed)
    print_lines(f"{made} separated, {already} there already, {len(failed)} failed", stream=sys.stderr)
    print_lines(*(f"  {outcome.path}" for outcome in failed), stream=sys.stderr)


def _encoding(mp3: bool, mp3_bitrate: int, flac: bool, float32: bool, int24: bool, clip_mode: Any) -> Any:
    from ..separation.audio import Encoding

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


def _find_bundle(bundle: Path | None, name: str | None, trusted_key: Path | None) -> Any:
    """The given bundle, or the one of a name in the user's cache, built there if it is not."""
    from importlib.metadata import version

    from .. import cache
    from ..bundle.directory import load_any

    if bundle is not None:
        return load_any(bundle, trusted_key=trusted_key)
    if trusted_key is not None:
        raise UsageError("--trusted-key is for a bundle of somebody else", expected="-b DIR", received="no -b")
    if name is None:
        raise UsageError("separate needs a bundle", received="neither -b nor -n", fix="Give -b DIR, or -n htdemucs.")
    cached = cache.directory("bundles") / f"{name.replace('/', '_')}-{version('splitter')}"
    if (cached / "manifest.json").exists():
        try:
            return load_any(cached, check_hashes=True)
        except BundleError as error:
            _note(f"rebuilding the cached bundle: {error}")
    from splitter_weights.checkpoints import NAMES

    from ..compiler import build as run

    if name not in NAMES:
        raise UsageError("-n takes the name of a model", received=name, fix=f"Names are {', '.join(NAMES)}.")
    with steps() as progress:
        return run(name, cached, force=True, progress=progress)
