"""A process that works for this one and may be killed at any time.

`loky` starts it, knows when it has died, and kills it. Every worker is an executor of its own: in one executor of
several, a death breaks the queue that all of them share, and each loses the file it works on.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

import loky

from .. import terminal
from ..errors import UsageError, WorkerError
from . import heap

P = ParamSpec("P")
R = TypeVar("R")

_GLANCE = 0.25  # seconds between two looks at a worker's progress


def cores() -> int:
    """Those this process may use, by affinity and container limits."""
    return loky.cpu_count()


def share(jobs: int) -> int:
    """The cores of each of so many jobs.

    Raises:
        UsageError: There is none for each.
    """
    if not 1 <= jobs <= cores():
        raise UsageError("--jobs is out of range", expected=f"between 1 and {cores()} (available cores)", received=jobs)
    return cores() // jobs


def limits(threads: int) -> dict[str, str]:
    """Environment of a process in which each library that computes with threads takes so many.

    Read when they are loaded: torch's OpenMP, what NumPy multiplies with, and XLA (NPROC in older versions).
    """
    return dict.fromkeys(
        (
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "MKL_NUM_THREADS",
            "VECLIB_MAXIMUM_THREADS",
            "PJRT_NPROC",
            "NPROC",
        ),
        str(threads),
    )


class Worker:
    """One process, started when it is first called and anew after it has died."""

    def __init__(self, threads: int) -> None:
        """Nothing runs yet.

        Args:
            threads: For each library in the worker that computes with several.
        """
        self._threads = threads
        self._lock = threading.Lock()
        self._executor: loky.ProcessPoolExecutor | None = None
        self._stopped = False

    def call(self, function: Callable[..., R], *arguments: object, meanwhile: Callable[[], None]) -> R:
        """Have the worker compute ``function(*arguments)``, and return or raise what that does.

        Args:
            function: Importable by name.
            arguments: Picklable, as is the result.
            meanwhile: Called every now and then while this waits.

        Raises:
            WorkerError: The worker died before it had an answer.
            CancelledError: It was stopped, before or meanwhile.
        """
        executor = self._running()
        try:
            future = executor.submit(function, *arguments)
            while wait([future], timeout=_GLANCE).not_done:
                meanwhile()
            return future.result()
        except BrokenProcessPool as error:
            self._end(executor)
            raise WorkerError("a worker was killed before its work was done") from error
        except loky.process_executor.ShutdownExecutorError as error:
            self._end(executor)
            raise CancelledError from error

    def stop(self) -> None:
        """Kill the process, if there is one; it is not started again."""
        with self._lock:
            self._stopped = True
            executor = self._executor
        if executor is not None:
            self._end(executor)

    def _running(self) -> loky.ProcessPoolExecutor:
        with self._lock:
            if self._stopped:
                raise CancelledError
            if self._executor is None:
                self._executor = loky.ProcessPoolExecutor(
                    1, initializer=_begin, initargs=(os.getpid(),), env=limits(self._threads)
                )
            return self._executor

    def _end(self, executor: loky.ProcessPoolExecutor) -> None:
        """The process is gone when this returns."""
        with self._lock:
            executor.shutdown(wait=True, kill_workers=True)
            self._executor = None


def _begin(parent: int) -> None:
    """First thing in a worker."""
    terminal.guard()
    heap.keep_freed()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it stops it
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Nothing else tells a worker that whoever waits for it has been killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
