"""Reads what a port dumped."""

from __future__ import annotations

from pathlib import Path

from ... import arrays
from ...boundary import Array
from ...errors import UsageError
from ..taps import FORMAT


def read_dump(path: Path) -> dict[str, Array]:
    """Read a dump; see `arrays.read` for the formats.

    Raises:
        UsageError: It is not readable, empty, or of a format version this splitter does not know.
    """
    version = arrays.metadata(path).get("format", FORMAT)
    if version != FORMAT:
        raise UsageError(
            f"a dump that names its format must be {FORMAT}",
            received=version,
            fix="Use the splitter that wrote it, or leave the format out of the metadata.",
        )
    dump = arrays.read(path)
    if not dump:
        raise UsageError("a dump must hold tensors by tap name", received=f"nothing in {path}")
    return dump
