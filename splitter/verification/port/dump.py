"""Reads what a port dumped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from ... import arrays
from ...boundary import Array
from ...errors import UsageError
from ..taps import FORMAT

_WIDEST = 8  # bytes of a value
_HEADER = 1 << 14  # bytes of a file beside its values, at most


def read_dump(path: Path, taps: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Read a dump; see `arrays.read` for the formats.

    Args:
        path: Of it.
        taps: Shape of every tap. A dump may hold twice their values in float64: misnamed and wrongly shaped tensors
            are for the report to name.

    Raises:
        UsageError: It is not readable, empty, or of a format version this splitter does not know.
    """
    version = arrays.metadata(path).get("format", FORMAT)
    if version != FORMAT:
        raise UsageError(
            "the dump has another format",
            expected=FORMAT,
            received=version,
            fix="Use the splitter that wrote it, or leave the format out of the metadata.",
        )
    most = sum(_WIDEST * math.prod(shape) + _HEADER for shape in taps.values())
    dump = arrays.read(path, most=2 * most)
    if not dump:
        raise UsageError(f"the dump {path} holds no tensors")
    return dump
