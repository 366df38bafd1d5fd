"""Whole processes, measured from outside by the operating system's own accounting."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import soundfile
from splitter_weights.demo import songs

import splitter

SPLITTER = Path(sys.executable).with_name("splitter")


@dataclass(frozen=True)
class Run:
    """One finished process: wall seconds and peak resident memory in MB."""

    seconds: float
    peak_mb: float


# A process counts what was resident before it became its program, which is its parent's: so the parent is a small one.
_LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def measured(command: list[str | Path]) -> Run:
    """Run a command to its end. Its output is thrown away; a failure ends the benchmark."""
    started = time.monotonic()
    launched = [sys.executable, "-c", _LAUNCHER, *map(str, command)]
    said = subprocess.run(launched, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True).stdout
    seconds = time.monotonic() - started
    code, peak = map(int, said.split())
    if code:
        raise SystemExit(f"{' '.join(map(str, command))} exited with {code}")
    scale = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kB here
    return Run(seconds, peak / scale)


def bundle(checkpoint: str | None, directory: Path) -> Path:
    """A bundle of the checkpoint, or of the demo."""
    out = directory / "bundle"
    splitter.build(checkpoint or "demo", out)
    return out


def song(directory: Path, minutes: float, rate: int = 44_100) -> Path:
    """A synthesised song of any length, written block by block."""
    path = directory / f"{minutes:g}min.wav"
    block = (songs.mixture(songs.synthesise(30.0, 1_000_100, rate)) * 0.9).T
    left = round(minutes * 60 * rate)
    with soundfile.SoundFile(path, "w", rate, 2, subtype="PCM_16") as file:
        while left > 0:
            file.write(np.ascontiguousarray(block[:left]))
            left -= min(left, len(block))
    return path


def demucs_command(checkpoint: str | None, track: Path, out: Path) -> list[str | Path]:
    """demucs's own command-line path on a local checkpoint: read, apply, clip, write 16-bit WAV."""
    return [sys.executable, "-m", "benchmarks.demucs_cli", checkpoint or "demo", track, out]


def splitter_command(made: Path, track: Path, out: Path) -> list[str | Path]:
    return [SPLITTER, "separate", track, "-b", made, "-o", out, "--shifts", "0", "--force"]


def workers() -> list[psutil.Process]:
    """The worker processes of a batch in this process, and not what loky has beside them."""
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.Error):  # it has just died
            if any("popen_loky" in word for word in one.cmdline()):
                found.append(one)
    return found
