"""`splitter separate` among its peers: whole processes on one song, in turns, same weights, threads and precision.

demucs runs as it is. Runtimes without a front and back of their own get demucs's: its command line, where the model's
part between the Fourier transforms is theirs, converted beforehand.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import soundfile
import torch
from rich.console import Console
from rich.table import Table

from splitter.bundle.directory import Bundle
from splitter.parity import compare

from . import runtimes
from .processes import Run, bundle, demucs_command, measured, splitter_command
from .processes import song as synthesised

_AS_GIVEN = ("--float32", "--clip-mode", "none")  # samples as the model gives them, to compare
# On Linux its audio library has no wheel, and building it takes FFmpeg's headers.
_ABSENT = {"demucs-mlx": "it has no runner here"}


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print a row for each: seconds and memory, ratios to demucs pair by pair, least SNR of a stem to demucs's."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        track = _decoded(Path(song), directory) if song else synthesised(directory, 2.0)
        made = bundle(checkpoint, directory)
        peers = {
            "demucs": demucs_command(checkpoint, track, directory / "demucs"),
            "splitter": splitter_command(made, track, directory / "splitter"),
        }
        absent = dict(_ABSENT)
        program = runtimes.core(Bundle.load(made))
        for name, runtime in runtimes.RUNTIMES.items():
            if runtime.obstacle:
                absent[name] = runtime.obstacle
                continue
            file = directory / f"{name}{runtime.suffix}"
            runtime.convert(program, file)
            peers[name] = [*demucs_command(checkpoint, track, directory / name), "--core", name, made, file]
        found = _in_turns({name: [*command, *_AS_GIVEN] for name, command in peers.items()}, runs)
        decibels = {name: _least_snr(directory / "demucs", directory / name) for name in peers}
    title = f"separate {track.name}, {checkpoint or 'demo'}, float32, {torch.get_num_threads()} threads, {runs} turns"
    Console(width=140).print(_table(title, found, decibels, absent))


def _decoded(track: Path, directory: Path) -> Path:
    """The same samples for all: decoders differ by some at the end of a file, and every stem there by 30 to 60 dB."""
    samples, rate = soundfile.read(track, dtype="float32")
    file = directory / f"{track.stem}.wav"
    soundfile.write(file, samples, rate, subtype="FLOAT")
    return file


def _in_turns(peers: dict[str, list[str | Path]], runs: int) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {name: [] for name in peers}
    for turn in range(runs + 1):  # the first turn warms the file cache, and splitter's choice of engines
        for name, command in peers.items():
            run = measured(command)
            if turn:
                found[name].append(run)
    return found


def _least_snr(theirs: Path, ours: Path) -> str:
    reference = {file.name: soundfile.read(file, dtype="float32")[0] for file in theirs.rglob("*.wav")}
    candidates = {file.name: soundfile.read(file, dtype="float32")[0] for file in ours.rglob("*.wav")}
    found = []
    for name, stem in reference.items():
        found.append(compare(stem, candidates[name]).snr_db)
    return f"{min((snr for snr in found if snr is not None), default=float('nan')):.1f}"


def _table(title: str, found: dict[str, list[Run]], decibels: dict[str, str], absent: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("", "seconds", "ratio", "peak MB", "ratio", "dB to demucs"):
        table.add_column(column, justify="right")
    peer = found["demucs"]
    for name, mine in found.items():
        pairs = [*zip(mine, peer, strict=True)]
        table.add_row(
            name,
            f"{statistics.median(run.seconds for run in mine):.1f}",
            f"{statistics.median(a.seconds / b.seconds for a, b in pairs):.3f}",
            f"{statistics.median(run.peak_mb for run in mine):.0f}",
            f"{statistics.median(a.peak_mb / b.peak_mb for a, b in pairs):.3f}",
            decibels[name],
        )
    for name, reason in absent.items():
        table.add_row(f"{name}: not run, {reason}")
    return table
