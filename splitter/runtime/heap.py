"""The C library's heap, told what a process does: it runs a model again and again."""

from __future__ import annotations

import ctypes
import sys
from itertools import count

import psutil

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_PAGES = 1 << 20  # bytes; a tensor has more
_WHOLE_TENSORS = 1 << 30  # bytes; beyond any activation
_RUNS_BETWEEN_TRIMS = 16  # a heap that keeps what is freed breaks into pieces, and grows; clearing it slows a run


def keep_freed() -> None:
    """Have freed memory kept for the next allocation, in one heap for all threads.

    glibc gives blocks of 32 MiB and more back to the system at once, which clears every page of the next one of
    that size: about a tenth of the time of a run of the model. For programs that run a model again and again, and to be
    called before they start threads; a no-op on other systems.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries lack it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _WHOLE_TENSORS)
        mallopt(_M_TRIM_THRESHOLD, _WHOLE_TENSORS)
        mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Have freed memory of a tensor go back to the system at once: less of it is held, and a run takes longer.

    The opposite of `keep_freed`; a no-op on other systems.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _PAGES)
        mallopt(_M_TRIM_THRESHOLD, _PAGES)
        psutil.heap_trim()


class Trimming:
    """Clears the heap after every so many runs of the models that share it."""

    def __init__(self) -> None:
        self._runs = count(1)

    def after_run(self) -> None:
        """Call it after each run."""
        if next(self._runs) % _RUNS_BETWEEN_TRIMS == 0:
            psutil.heap_trim()
