"""The user's cache: directories that nobody else can write to, and files that are what was put there."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

from . import output, reading
from .errors import CacheError

_RECORD = "sha256"  # hashes of the files beside it, as `sha256sum` writes them


def directory(kind: str) -> Path:
    """Directory of one kind of entries, created for its owner alone.

    What is in it is run as code (compiled programs) or trusted (models), so it must be this user's.

    Raises:
        OSError: It cannot be created.
        CacheError: It, or a directory above it, belongs to somebody else or can be written by others.
    """
    home = user_cache_path("splitter")
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (home, home / kind):
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        _check_private(path)
    return home / kind


def entry(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """Directory of files that are made once and hashed whenever they are used.

    Args:
        kind: As for `directory`.
        key: A hash of all that the files depend on.
        fill: Writes the files into an empty directory. Called if they are not there, or not what was written.

    Raises:
        OSError: It cannot be written.
        CacheError: As `directory`.
    """
    home = directory(kind) / key
    if not _is_whole(home):
        with output.staging(home.parent, "filling") as folder:
            made = folder / key
            made.mkdir()
            fill(made)
            (made / _RECORD).write_text(_hashes(made), encoding="utf-8")
            with output.alone(home.parent):
                if not _is_whole(home):  # another process may have been faster
                    shutil.rmtree(home, ignore_errors=True)
                    made.rename(home)
    return home


def _is_whole(home: Path) -> bool:
    try:
        return reading.content(home / _RECORD).decode() == _hashes(home)
    except (OSError, ValueError):
        return False


def _hashes(home: Path) -> str:
    lines = []
    for path in sorted(home.iterdir()):
        if path.name != _RECORD:
            with reading.opened(path) as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return "".join(lines)


def _check_private(path: Path) -> None:
    """Refuse a directory that others can change, by itself or through one above it."""
    real = path.resolve()
    status = real.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise CacheError(f"the cache {path} is not a directory", fix="Remove it.")
    if status.st_uid != os.getuid():
        raise _unsafe(path, "belongs to another user", f"user {os.getuid()}", f"user {status.st_uid}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"{stat.S_IMODE(status.st_mode):03o}"
        raise _unsafe(path, "can be written by others", "mode 700", mode, f"Run chmod 700 {path}, or s")
    for above in real.parents:
        status = above.stat()
        if status.st_uid not in (0, os.getuid()):
            raise _unsafe(path, f"lies in {above}, which belongs to another user", None, f"user {status.st_uid}")
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            mode = f"{stat.S_IMODE(status.st_mode):03o}"
            raise _unsafe(path, f"lies in {above}, where anybody can replace it", None, f"mode {mode}")


def _unsafe(path: Path, what: str, expected: str | None, received: str, fix: str = "S") -> CacheError:
    return CacheError(
        f"the cache {path} {what}",
        expected=expected,
        received=received,
        fix=f"{fix}et XDG_CACHE_HOME to a directory of your own. Nothing in it was used.",
    )
