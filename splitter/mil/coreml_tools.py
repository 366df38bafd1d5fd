"""Core ML Tools, imported once and quietly.

Off the Mac its import logs a dozen warnings about libraries that exist only there, and each conversion
draws progress bars of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from unittest import mock

from tqdm import tqdm

logging.getLogger("coremltools").setLevel(logging.ERROR)

import coremltools as ct  # noqa: E402

__all__ = ["ct", "without_progress_bars"]


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Core ML Tools has no switch for its bars, and tqdm's environment variable is read only at import."""
    with mock.patch.object(tqdm, "__init__", partialmethod(tqdm.__init__, disable=True)):
        yield
