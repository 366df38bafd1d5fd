"""What is to be separated: files, the sound files of folders, standard input."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .. import output
from ..errors import AudioError, UsageError

STDIN = Path("-")
_SUFFIXES = (
    *(".aac", ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4"),
    *(".oga", ".ogg", ".opus", ".rf64", ".snd", ".w64", ".wav", ".webm", ".wma"),
)  # of what is taken from a folder

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.IGNORECASE | re.DOTALL)  # a path has one slash of its two


def tracks(paths: Iterable[str | Path], out: Path, *, recursive: bool = False) -> list[Path]:
    """Every file that is meant, once, in order; those of a folder by name.

    Args:
        paths: Files, folders, and `STDIN`.
        out: Where stems go: nothing below it is taken from a folder.
        recursive: Take the sound files of the folders in a folder as well.

    Raises:
        UsageError: A path is a URL, or a folder without a sound file.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if (url := _URL.fullmatch(str(path))) and not path.exists():
            raise UsageError(
                f"{url[1]}://{url[2]} is a URL, and only files are read",
                fix="Download it first, and give the file.",
            )
        if path == STDIN or not path.is_dir():
            found[path] = None
            continue
        inside = sorted(_sounds(path, Path(os.path.realpath(out)), recursive=recursive))
        if not inside:
            raise UsageError(
                f"{path} is a folder without sound files",
                fix="" if recursive else "--recursive takes those of the folders in it.",
            )
        found |= dict.fromkeys(inside)
    return [*found]


def _sounds(folder: Path, out: Path, *, recursive: bool) -> Iterator[Path]:
    """Sound files by their suffix; hidden ones are left out, and links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        here = Path(place)
        if Path(os.path.realpath(here)).is_relative_to(out):
            folders.clear()
            continue
        yield from (here / name for name in names if name[0] != "." and Path(name).suffix.lower() in _SUFFIXES)
        folders[:] = [name for name in folders if name[0] != "."] if recursive else []


@contextmanager
def files(paths: Sequence[Path]) -> Iterator[dict[Path, Path]]:
    """Each path, by the file that is read for it: what comes from standard input is kept in one until the block ends.

    Raises:
        AudioError: It cannot be kept.
    """
    if STDIN not in paths:
        yield {path: path for path in paths}
        return
    with output.scratch("input") as folder:
        copy = folder / "stdin"
        try:
            with copy.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:
            raise AudioError(
                "standard input cannot be kept among the temporary files",
                received=error.strerror,
                fix="$TMPDIR says where they are.",
            ) from error
        yield {copy if path == STDIN else path: path for path in paths}
