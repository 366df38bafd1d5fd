"""Core ML Tools, imported once and quietly.

Off the Mac its import logs a dozen warnings about libraries that exist only there, and each conversion
draws progress bars of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod

from tqdm import tqdm

from ..patching import replaced

logging.getLogger("coremltools").setLevel(logging.ERROR)

import coremltools as ct  # noqa: E402
from coremltools.converters.mil.mil import Program  # noqa: E402

__all__ = ["ct", "quiet_and_quick"]


@contextmanager
def quiet_and_quick() -> Iterator[None]:
    """Convert without progress bars and without a validation of the whole program after each of 80 passes.

    Core ML Tools has no switch for its bars, and tqdm's environment variable is read only at import. The
    validations took half of a conversion; one at the end, on the converted model, finds what they find.
    """
    silent = partialmethod(tqdm.__init__, disable=True)
    with replaced(tqdm, "__init__", silent), replaced(Program, "validate", lambda *arguments, **options: None):
        yield
