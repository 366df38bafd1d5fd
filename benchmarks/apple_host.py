"""Peak memory of `splitter-host separate` on stand-ins, over the length of the song. After `make swift-test`."""

from __future__ import annotations

import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from splitter import load

from .processes import song as synthesised

_HOME = Path(__file__).parent.parent / "swift"
_BUNDLE = _HOME / ".build" / "six.bundle"  # small: the demo's takes the stand-ins an hour
_HOST = _HOME / ".build" / "release" / "splitter-host"
_SHORT_MINUTES = 2.0
_EVERY = 0.2  # seconds; the system keeps the mark


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print one row per length; the ratio is against the short song."""
    rate = load(_BUNDLE).members[0].audio.samplerate
    table = Table(title="peak memory, the host for Apple devices on stand-ins, six stems", title_justify="left")
    for column in ("minutes", "peak MB", "against 2 min"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        peaks = [
            _peak(synthesised(directory, minutes, rate), directory / "stems")
            for minutes in (_SHORT_MINUTES, long_minutes)
        ]
    for minutes, peak in zip((_SHORT_MINUTES, long_minutes), peaks, strict=True):
        table.add_row(f"{minutes:g}", f"{peak / 1e6:.1f}", f"{peak / peaks[0]:.3f}")
    Console(width=120).print(table)


def _peak(song: Path, out: Path) -> int:
    """Bytes that the host's process held at most; the stand-ins' server is another process."""
    options = ["--shifts", "0", "--overlap", "0"]
    command = [_HOME / "toolchain.sh", _HOST, "separate", song, "-b", _BUNDLE, "-o", out, *options]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess, OSError, IndexError):  # it has just ended
            for part in (seen := psutil.Process(process.pid), *seen.children(recursive=True)):
                if part.name() == _HOST.name:
                    status = Path(f"/proc/{part.pid}/status").read_text(encoding="ascii")
                    peak = max(peak, 1024 * int(status.partition("VmHWM:")[2].split()[0]))
        time.sleep(_EVERY)
    if process.returncode or not peak:
        raise SystemExit(f"{_HOST.name} ended with {process.returncode}, and {peak} bytes were seen")
    return peak
