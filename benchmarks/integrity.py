"""What it costs to hold every file against the manifest: loading with and without, in turns in one process."""

from __future__ import annotations

import gc
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from splitter.bundle.directory import Bundle, load
from splitter.bundle.files import Files
from splitter.runtime.orchestrator import Orchestrator
from splitter.separation.separator import Separator

from .processes import bundle
from .processes import song as synthesised

_MINUTES = 2.0


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print seconds of each way to read a bundle, the difference that hashing makes, and its share of `separate`."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        path = bundle(checkpoint, directory)
        track = Path(song) if song else synthesised(directory, _MINUTES)
        ways: dict[str, Callable[[], object]] = {
            "open": lambda: Bundle.load(path),
            "open and load every segment": lambda: Orchestrator(Bundle.load(path)),
            "open and hash all files": lambda: Bundle.load(path, check_hashes=True),
        }
        table = Table("", "hashed, s", "not, s", "difference, s", title=f"integrity, {checkpoint or 'demo'}")
        differences = {}
        for name, way in ways.items():
            pairs = [(_seconds(way), _unhashed(way)) for _ in range(runs + 1)][1:]  # the first pair warms up
            differences[name] = statistics.median(hashed - bare for hashed, bare in pairs)
            hashed, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
            table.add_row(name, f"{hashed:.3f}", f"{bare:.3f}", f"{differences[name]:+.3f}")
        bag = load(path)
        whole = _seconds(lambda: Separator(bag, "default").separate([track], directory / "out"))
        share = differences["open and load every segment"] / whole
        table.add_row(f"separate {track.name}: {whole:.1f} s", "", "", f"{share:.2%} of it")
    Console(width=120).print(table)


def _seconds(call: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _unhashed(call: Callable[[], object]) -> float:
    """The same with the same reads, but no hash is computed."""

    class Nothing:
        def hexdigest(self) -> str:
            return ""

    def hold(self: Files, name: str, size: int, sha256: str) -> None:
        self._seen.add(name)

    with (
        patch.object(hashlib, "sha256", lambda content=b"": Nothing()),
        patch.object(hashlib, "file_digest", lambda file, name: Nothing()),
        patch.object(Files, "_hold", hold),
        patch("splitter.bundle.directory._digest_line", lambda rest: _Anything()),
    ):
        return _seconds(call)


class _Anything:
    """Equal to whatever line it is compared with."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0
