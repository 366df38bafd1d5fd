"""The C library's heap, told what a process is about to do."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_WHOLE_TENSORS = 1 << 30  # bytes; beyond any activation


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
