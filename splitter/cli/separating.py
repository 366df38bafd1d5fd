"""The verb separate."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import splitter

from .. import errors
from .console import stderr
from .progress import bars
from .shell import (
    FINITE,
    command,
    engine_pairs,
    json_option,
    memory_option,
    print_json,
    print_lines,
    steps,
    trusted_key_option,
)

_STDOUT = Path("-")


def _rate_option(context: click.Context, parameter: click.Parameter, value: str) -> str | int:
    if value not in ("keep", "model") and not value.isdecimal():
        raise click.BadParameter(f"{value!r} is not keep, model, or a number of Hz, e.g. 48000")
    return value if value in ("keep", "model") else int(value)


def _stems_option(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(name for part in value.split(",") if (name := part.strip()))


class _Separate(click.Command):
    """A command that tells a file whose name begins with a dash from an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        before = args[: args.index("--")] if "--" in args else args
        for argument in before:
            if argument.startswith("-") and argument != "-" and Path(argument).suffix and Path(argument).is_file():
                raise click.UsageError(f"{argument} looks like an option. For a file of this name: -- {argument}", ctx)
        return super().parse_args(ctx, args)


_FORMATS = """Reads WAV, FLAC, MP3, Ogg (Vorbis, Opus), AIFF, CAF, AU, W64 and RF64; with the extra `av` also M4A and
MP4 (AAC, ALAC), WebM and Matroska (Opus and others), Windows Media, AAC, AC-3, WavPack, Monkey's Audio, and the sound
of videos. Writes WAV, FLAC and MP3; with the extra `av` also M4A (AAC) and .stem.mp4."""


@command.command(cls=_Separate, epilog=_FORMATS)
@click.argument("files", nargs=-1, required=True)
@click.option("-b", "--bundle", type=click.Path(path_type=Path), help="Bundle to run; overrides -n.")
@trusted_key_option
@click.option("-n", "--name", help="Model to run; its bundle is built once in the user's cache.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("separated"), show_default=True,
              help="Directory for the stems; -: the one stem to standard output.")  # fmt: skip
@click.option("-r", "--recursive", is_flag=True, help="Take the sound files of the folders in a folder, too.")
@click.option("--stems", metavar="STEM,STEM", callback=_stems_option, help="Only these stems.")
@click.option("--two-stems", metavar="STEM", help="Only this stem and the rest.")
@click.option("--other-method", type=click.Choice(["add", "minus", "none"]), default="add", show_default=True,
              help="The rest: add: all other stems; minus: the mixture minus the stem; none: left out.")  # fmt: skip
@click.option("--shifts", type=int, help="Randomly shifted passes to average; 0: one plain pass.  [default: the "
              "model's]")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the random shifts.")
@click.option("--overlap", type=float, help="Overlap between chunks, as a fraction.  [default: the model's]")
@click.option("--segment", type=FINITE, metavar="SECONDS", help="Length of a chunk.  [default: the bundle's]")
@click.option("--mp3", is_flag=True, help="Write MP3.")
@click.option("--mp3-bitrate", default=320, show_default=True, help="In kbit/s.")
@click.option("--m4a", is_flag=True, help="Write M4A (AAC).")
@click.option("--stem-mp4", is_flag=True, help="Write one .stem.mp4 of the song and four stems, for DJ software.")
@click.option("--aac-bitrate", default=256, show_default=True, help="Of M4A and .stem.mp4, in kbit/s.")
@click.option("--flac", is_flag=True, help="Write FLAC.")
@click.option("--float32", is_flag=True, help="Write WAV as 32-bit float.")
@click.option("--int24", is_flag=True, help="Write 24-bit integers.")
@click.option("--clip-mode", type=click.Choice(["rescale", "rescale-each", "clamp", "tanh", "none"]), default="rescale",
              show_default=True, help="Samples above full scale: rescale: all stems by one gain; rescale-each: each by "
              "its own; clamp; tanh; none.")  # fmt: skip
@click.option("--samplerate", metavar="keep|model|HZ", default="keep", show_default=True, callback=_rate_option,
              help="Sample rate of the stems; keep: the file's, and its exact length.")  # fmt: skip
@click.option("--channels", type=click.Choice(["downmix", "first2"]), default="downmix", show_default=True,
              help="Three and more channels: mixed down by ITU-R BS.775, or the first two.")  # fmt: skip
@click.option(
    "--filename", default="{track}/{stem}.{ext}", show_default=True, help="File of a stem, below OUT/<model>/."
)
@click.option("--engine", "engines", multiple=True, metavar="SEGMENT=ENGINE", callback=engine_pairs,
              help="Engine of a segment; repeat.  [default: the fastest, measured once]")  # fmt: skip
@click.option("-d", "--device", "devices", multiple=True, metavar="[SEGMENT=]cpu|cuda|mps",
              help="Run all segments, or one, by PyTorch on a device; repeat.")  # fmt: skip
@click.option("--fast", is_flag=True, help="Compute in bfloat16, where the processor does; the loss is measured.")
@click.option("--low-memory", is_flag=True, help="Take less memory, and more time.")
@click.option("--no-tags", is_flag=True, help="Leave out the song's title, artist, cover and the like.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), default=1, show_default=True,
              help="Files at a time, each in a process with its share of the cores.")  # fmt: skip
@click.option("--force", is_flag=True, help="Make stems again that are there already, of this song or another.")
@memory_option
@json_option
def separate(
    files: tuple[str, ...],
    bundle: Path | None,
    trusted_key: Path | None,
    name: str | None,
    out: Path,
    recursive: bool,
    stems: tuple[str, ...] | None,
    two_stems: str | None,
    other_method: Any,
    shifts: int | None,
    seed: int,
    overlap: float | None,
    segment: float | None,
    mp3: bool,
    mp3_bitrate: int,
    m4a: bool,
    stem_mp4: bool,
    aac_bitrate: int,
    flac: bool,
    float32: bool,
    int24: bool,
    clip_mode: Any,
    samplerate: Any,
    channels: Any,
    filename: str,
    engines: tuple[tuple[str, str], ...],
    devices: tuple[str, ...],
    fast: bool,
    low_memory: bool,
    no_tags: bool,
    jobs: int,
    force: bool,
    as_json: bool,
) -> None:
    """Separate FILES, or the sound files of folders, into OUT/<model>/<track>/<stem>.wav; - reads standard input.

    Files whose stems are there already, made of the same sound with the same bundle and options, are left alone.
    """
    options = splitter.Options(
        shifts=shifts,
        overlap=overlap,
        segment=segment,
        stems=stems,
        two_stems=two_stems,
        other_method="none" if out == _STDOUT else other_method,
        encoding=_encoding(
            {"--mp3": mp3, "--m4a": m4a, "--stem-mp4": stem_mp4, "--flac": flac},
            {"--float32": float32, "--int24": int24},
            clip=clip_mode,
            mp3_bitrate=mp3_bitrate,
            aac_bitrate=aac_bitrate,
        ),
        filename=filename,
        seed=seed,
        samplerate=samplerate,
        channels=channels,
        tags=not no_tags,
    )
    model = _find_bundle(bundle, name, trusted_key)
    with bars(stderr, len(files)) as shown:
        separator = splitter.Separator(
            model,
            dict(engines),
            fast=fast,
            device=_devices(devices),
            low_memory=low_memory,
            options=options,
            progress=shown,
        )

        def report(outcome: splitter.Outcome) -> None:
            shown.finish_file(outcome.path)
            _say(outcome, options)
            if not as_json:
                print_lines(*outcome.stems.values())

        if out == _STDOUT:
            _say(_stream(separator, files, as_json=as_json), options)
            return
        outcomes = separator.separate(files, out, jobs=jobs, force=force, recursive=recursive, done=report)
    if as_json:
        print_json({"files": [outcome.to_dict() for outcome in outcomes]})
    if len(outcomes) > 1:
        _sum_up(outcomes)
    if any(outcome.error for outcome in outcomes):
        raise click.exceptions.Exit(1)


def _devices(devices: Sequence[str]) -> str | dict[str, str] | None:
    """One for all segments, or by segment."""
    pairs = [(segment, name) for segment, equals, name in (device.partition("=") for device in devices) if equals]
    if (pairs and len(pairs) < len(devices)) or (not pairs and len(devices) > 1):
        raise errors.UsageError(
            "-d names one device for all segments, or one for each segment it names", received=" ".join(devices)
        )
    return dict(pairs) if pairs else devices[0] if devices else None


def _stream(separator: splitter.Separator, files: Sequence[str], *, as_json: bool) -> splitter.Outcome:
    """The one stem of the one file, on standard output."""
    if len(files) != 1 or as_json:
        received = "--json" if as_json else f"{len(files)} files"
        raise errors.UsageError("standard output holds one stem of one file", received=received)
    if sys.stdout.isatty():
        raise errors.UsageError("a stem is not for a terminal", fix="Redirect standard output, or choose another -o.")
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "wb") as sink:  # past the stream of text, which has no bytes
        written = separator.separate_into(files[0], sink)
    return splitter.Outcome(Path(files[0]), {}, written=written)


def _say(outcome: splitter.Outcome, options: splitter.Options) -> None:
    """On standard error: what is not as usual about it."""
    if (written := outcome.written) is not None:
        if written.downmix is not None:
            _print_note(outcome, f"{written.downmix}; --channels first2 takes the first two")
        if options.samplerate == "keep" and written.samplerate != written.source_samplerate:
            name = options.encoding.name
            _print_note(
                outcome, f"{name} has no {written.source_samplerate:,} Hz; written at {written.samplerate:,} Hz"
            )
        _say_gain(outcome, written.gain_db)
    if outcome.error is not None:
        print_lines(f"splitter: error: {outcome.error}", stream=sys.stderr)
    elif outcome.attempts == 0:
        print_lines(f"{outcome.path}: its stems are there already (--force makes them again)", stream=sys.stderr)
    elif outcome.attempts > 1:
        print_lines(
            f"{outcome.path}: done by attempt {outcome.attempts}; its worker was killed before", stream=sys.stderr
        )


def _say_gain(outcome: splitter.Outcome, gain_db: Mapping[str, float]) -> None:
    """What was done so that no stem is beyond full scale."""
    lowered = {name: gain for name, gain in gain_db.items() if gain < 0}
    if len(lowered) == len(gain_db) and len({*lowered.values()}) == 1:
        _print_note(
            outcome, f"all stems by {next(iter(lowered.values())):.2f} dB, their balance kept, so that none clips"
        )
    elif lowered:
        _print_note(outcome, f"stems by {', '.join(f'{name} {gain:.2f} dB' for name, gain in lowered.items())}")


def _print_note(outcome: splitter.Outcome, note: str) -> None:
    print_lines(f"{outcome.path}: {note}", stream=sys.stderr)


def _sum_up(outcomes: Sequence[splitter.Outcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.error]
    already = sum(outcome.attempts == 0 for outcome in outcomes)
    made = len(outcomes) - already - len(failed)
    print_lines(f"{made} separated, {already} there already, {len(failed)} failed", stream=sys.stderr)
    print_lines(*(f"  {outcome.path}" for outcome in failed), stream=sys.stderr)


def _encoding(formats: Mapping[str, bool], numbers: Mapping[str, bool], **more: Any) -> splitter.Encoding:
    """The one format and the one sample format that are asked for."""
    for options in (formats, numbers):
        if len(several := [option for option, asked in options.items() if asked]) > 1:
            raise errors.UsageError(f"{' and '.join(several)} exclude each other", fix="Leave all but one out.")
    chosen = next((option for option, asked in formats.items() if asked), "--wav")
    number = next((option for option, asked in numbers.items() if asked), None)
    lossy: dict[str, tuple[Any, Any]] = {
        "--mp3": ("mp3", "MPEG_LAYER_III"), "--m4a": ("m4a", "AAC"), "--stem-mp4": ("stem.mp4", "AAC"),
    }  # fmt: skip
    if chosen in lossy:
        container, subtype = lossy[chosen]
        if number is not None:
            name = "MP3" if chosen == "--mp3" else "AAC"
            raise errors.UsageError(f"{name} has no sample format to choose, as {number} does", fix="Leave it out.")
        return splitter.Encoding(container, subtype, **more)
    if chosen == "--flac" and number == "--float32":
        raise errors.UsageError(
            "FLAC cannot hold --float32", expected="integers", fix="Use --int24, or leave --flac out."
        )
    samples: Any = {"--float32": "FLOAT", "--int24": "PCM_24", None: "PCM_16"}[number]
    return splitter.Encoding("flac" if chosen == "--flac" else "wav", samples, **more)


def _find_bundle(bundle: Path | None, name: str | None, trusted_key: Path | None) -> splitter.Bag:
    """The given bundle, or that of a name."""
    if bundle is not None:
        return splitter.load(bundle, trusted_key=trusted_key)
    if trusted_key is not None:
        raise errors.UsageError("--trusted-key without -b DIR has nothing to check", fix="Give the bundle with -b DIR.")
    if name is None:
        raise errors.UsageError(
            "there is no bundle to separate with: neither -b nor -n is given", fix="Give -b DIR, or -n MODEL."
        )
    with steps() as progress:
        return splitter.named(name, progress)
