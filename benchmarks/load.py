"""200 short files, 10 of them broken, while workers are killed at random: what becomes of them."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table
from splitter_weights.demo import songs

from splitter.bundle.directory import load
from splitter.runtime.workers import cores
from splitter.separation.batch import Outcome
from splitter.separation.separator import Options, Separator

from .processes import bundle, workers

_FILES, _BROKEN, _DISTINCT = 200, 10, 4
_BETWEEN = (5, 15)  # files from one kill to the next
_OPTIONS = Options(shifts=0)


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print what was asked, what came of it, and how often a worker was killed; a broken promise ends it."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        bag = load(bundle(checkpoint, directory))
        tracks, broken = _tracks(directory)
        separator = Separator(bag, "default", options=_OPTIONS)
        undisturbed = separator.separate(tracks[:_DISTINCT], directory / "undisturbed", jobs=cores())
        expected = [outcome.stems for outcome in undisturbed]
        out, over = directory / "out", threading.Event()
        killed: list[int] = []
        told: list[Outcome] = []
        first: dict[Path, int] = {}
        threads = [
            threading.Thread(target=_kill, args=(over, told, killed)),
            threading.Thread(target=_note, args=(over, out, first)),
        ]
        for thread in threads:
            thread.start()
        started = time.monotonic()
        try:
            outcomes = separator.separate(tracks, out, jobs=cores(), done=told.append)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        seconds = time.monotonic() - started
        failed = {outcome.path for outcome in outcomes if outcome.error}
        same = sum(_same(outcome, expected[index % _DISTINCT]) for index, outcome in enumerate(outcomes))
        once = sum(first.get(path) == path.stat().st_ino for outcome in outcomes for path in outcome.stems.values())
        stems = sum(len(outcome.stems) for outcome in outcomes)
        left = len(list(out.rglob(".separating-*")))
        started = time.monotonic()
        again = separator.separate(tracks, out, jobs=cores())
        resumed = time.monotonic() - started
    rows = {
        "files / broken among them": f"{_FILES} / {_BROKEN}",
        "jobs": f"{cores()}",
        "workers killed": f"{len(killed)}",
        "files begun more than once": f"{sum(outcome.attempts > 1 for outcome in outcomes)}",
        "files done, stems as of an undisturbed batch, byte for byte": f"{same}",
        "stems / never replaced once they appeared": f"{stems} / {once}",
        "files named as failed / those are the broken ones": f"{len(failed)} / {failed == broken}",
        "staging directories left": f"{left}",
        "seconds": f"{seconds:.0f}",
        "run again: left alone / tried again / seconds": (
            f"{sum(one.attempts == 0 for one in again)} / {sum(one.attempts > 0 for one in again)} / {resumed:.1f}"
        ),
    }
    table = Table(title=f"load, {checkpoint or 'demo'}", title_justify="left", show_header=False)
    for label, value in rows.items():
        table.add_row(label, value)
    Console(width=120).print(table)
    if not (same == _FILES - _BROKEN and once == stems and failed == broken and not left):
        raise SystemExit("a promise was broken")


def _tracks(directory: Path) -> tuple[list[Path], set[Path]]:
    """Copies of a few distinct songs of two seconds; and which of them were broken, one way or another."""
    sounds = [songs.mixture(songs.synthesise(2.0, 2_000_000 + seed)).T * np.float32(0.9) for seed in range(_DISTINCT)]
    folder = directory / "tracks"
    folder.mkdir()
    tracks = [folder / f"{index:03}.wav" for index in range(_FILES)]
    for index, track in enumerate(tracks):
        soundfile.write(track, sounds[index % _DISTINCT], 44_100)
    broken = tracks[7 :: _FILES // _BROKEN][:_BROKEN]
    for index, track in enumerate(broken):
        if index % 3 == 0:
            track.write_text("no sound")
        elif index % 3 == 1:
            track.write_bytes(track.read_bytes()[:-1000])
        else:
            soundfile.write(track, np.full((1000, 2), np.nan), 44_100, subtype="FLOAT")
    return tracks, set(broken)


def _kill(over: threading.Event, told: list[Outcome], killed: list[int]) -> None:
    """Any worker, whatever it is at, some files after the last one that was killed."""
    dice = random.Random(0)
    due = dice.randint(*_BETWEEN)
    while not over.wait(dice.uniform(0.0, 1.0)):
        if len(told) >= due and (at_work := workers()):
            chosen = dice.choice(at_work)
            chosen.kill()
            killed.append(chosen.pid)
            due = len(told) + dice.randint(*_BETWEEN)


def _note(over: threading.Event, out: Path, first: dict[Path, int]) -> None:
    """Which file each stem was when it first appeared: one that is made again is another."""
    while not over.wait(0.02):
        for path in out.glob("*/[!.]*/*.wav"):
            first.setdefault(path, path.stat().st_ino)


def _same(outcome: Outcome, expected: dict[str, Path]) -> bool:
    stems = outcome.stems.items()
    return bool(stems) and all(path.read_bytes() == expected[name].read_bytes() for name, path in stems)
