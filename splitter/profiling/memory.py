"""What a segment takes of a process, seen from a process of its own."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Literal, Self

import click
import psutil

from ..bundle.directory import Bundle
from ..bundle.manifest import Record
from ..errors import EngineError
from ..runtime.engines import engine
from .records import Memory

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"  # proc(5)
_INTERVAL = 0.001  # seconds


class Fresh(Record):
    """What a process of its own has measured of a segment.

    Attributes:
        load_seconds: Until the engine was ready.
    """

    load_seconds: float
    memory: Memory


def measured(bundle: Bundle, segment: str, engine_name: str, compute_units: str) -> Fresh:
    """Load and run one segment on its golden input in a fresh process.

    Raises:
        EngineError: It did not come to its end.
    """
    script = f"from {__name__} import report; report()"
    command = [sys.executable, "-c", script, str(bundle.path), segment, engine_name, compute_units]
    process = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (this very file)
    if process.returncode:
        message_lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise EngineError(
            f"engine {engine_name!r} cannot run segment {segment!r} in a process of its own",
            received=message_lines[-1],
            fix="Is there enough memory for a second one?",
        )
    return Fresh.model_validate_json(process.stdout.splitlines()[-1])


def report() -> None:
    """Be that process: print what it measures of the arguments it was started with."""
    click.echo(_measure(*sys.argv[1:]).model_dump_json())


def _measure(path: str, segment_name: str, engine_name: str, compute_units: str) -> Fresh:
    bundle = Bundle.load(path)
    segment = bundle.segment(segment_name)
    golden = bundle.goldens()
    given = {name: golden[name].astype(bundle.tensors[name].dtype) for name in segment.inputs}
    del golden
    kind = engine(engine_name)  # imports it
    before = _resident()
    started = perf_counter()
    loaded = kind(bundle, segment, compute_units=compute_units)
    seconds = perf_counter() - started
    after = _resident()
    with PeakWatch() as watch:
        outputs = loaded.run(given)
    process = psutil.Process().memory_info().rss
    del outputs
    memory = Memory(loaded=max(0, after - before), running=max(0, watch.bytes - after), process=process, how=watch.how)
    return Fresh(load_seconds=seconds, memory=memory)


def _resident() -> int:
    """Bytes of this process in memory, without what it only keeps for later."""
    gc.collect()
    psutil.heap_trim()
    return psutil.Process().memory_info().rss


class PeakWatch:
    """The most memory that this process held at any time in a block.

    Attributes:
        bytes: Known when the block has ended.
        how: See `records.Memory`.
    """

    bytes: int
    how: Literal["kernel", "sampled"]

    def __init__(self, *, sample: bool = False) -> None:
        """Watch.

        Args:
            sample: Do not ask the system for its own mark, even where it has one.
        """
        self.how = "sampled" if sample or not _RESET.exists() else "kernel"
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self.bytes = 0
        if self.how == "kernel":
            try:
                _RESET.write_text(_RESET_HIGH_WATER, encoding="ascii")
            except OSError:  # a container may forbid it
                self.how = "sampled"
        if self.how == "sampled":
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.how == "kernel":
            (line,) = (
                line
                for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
                if line.startswith("VmHWM:")
            )
            self.bytes = int(line.split()[1]) * 1024
        else:
            self._over.set()
            self._sampler.join()

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._over.wait(_INTERVAL):
                return
