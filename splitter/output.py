"""Files that a user asks for by name: whole or not at all, and refused before anything is computed for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UsageError


def check(path: Path, *suffixes: str) -> None:
    """Refuse a file that could not be written.

    Args:
        path: File to write; one that is there may be replaced.
        suffixes: What its name may end in, dots included; none for any.

    Raises:
        UsageError: It ends in none of these, is no file, or none can be made there.
    """
    if not path.name:
        raise UsageError(f"{path} must be a file", received="a directory", fix="Choose another name.")
    if suffixes and path.suffix not in suffixes:
        raise UsageError(f"{path} must end in {' or '.join(suffixes)}", received=path.suffix or "no suffix")
    try:  # permissions do not say all: a name may be too long, a file system read-only
        _waiting(path).touch()
        _waiting(path).unlink()
    except OSError as error:
        raise _unwritable(path, error) from error
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} must be a file", received="something else there", fix="Choose another name.")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write first. It takes its place if the block ends without an error, and goes otherwise.

    Raises:
        UsageError: It cannot be written.
    """
    waiting = _waiting(path)
    try:
        yield waiting
        as_created(waiting)
        waiting.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):  # it is gone, or never was
            waiting.unlink()


def as_created(path: Path) -> None:
    """Give a file, or a directory and all in it, the permissions that new ones have: libraries make some private."""
    mask = os.umask(0)
    os.umask(mask)
    for one in (path, *path.rglob("*")):
        one.chmod((0o777 if one.is_dir() else 0o666) & ~mask)


def _waiting(path: Path) -> Path:
    return path.with_name(f".{path.stem}.writing{path.suffix}")  # libraries go by the suffix


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} must be writable", received=error.strerror or str(error))
