"""Files and folders that are made: whole or not at all, where they belong and nowhere else, refused before work.

All are made in a staging folder beside their place: new, of a random name, closed to other users, and locked by the
process that makes them. A lock ends with its process, so what killed ones left is known, and goes with the next.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UsageError

_WRITING = "writing"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def check(path: Path, *suffixes: str) -> None:
    """Refuse a file that could not be written, under its own name or the temporary one.

    Args:
        path: File to write; one that is there may be replaced.
        suffixes: What its name may end in, dots included; none for any.

    Raises:
        UsageError: It ends in none of these, is no file, or none can be made there.
    """
    if not path.name:
        raise UsageError(f"{path} is a directory", expected="a file", fix="Choose another name.")
    if suffixes and path.suffix not in suffixes:
        raise UsageError(
            f"{path} has the wrong suffix", expected=" or ".join(suffixes), received=path.suffix or "no suffix"
        )
    try:  # permissions do not say all: a name may be too long, a file system read-only
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} exists and is no regular file", fix="Choose another name.")
        with staging(path.parent, _WRITING) as folder:
            (folder / path.name).touch()
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write first. It takes its place if the block ends without an error, and goes otherwise.

    A link in its place is replaced; what it leads to stays as it is.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        with staging(path.parent, _WRITING) as folder:
            waiting = folder / path.name  # libraries go by the suffix
            yield waiting
            as_created(waiting)
            waiting.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def staging(parent: Path, purpose: str) -> Iterator[Path]:
    """A new folder, private to the user, that goes when the block ends.

    Those of the same purpose that killed processes left in ``parent`` are removed first; one that a living process
    uses never is. On a file system without locks none is.

    Raises:
        OSError: There cannot be one.
    """
    _sweep(parent, purpose)
    folder, lock = _locked(parent, purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A staging folder among the system's temporary files. Raises `OSError` where there cannot be one."""
    with staging(Path(tempfile.gettempdir()), purpose) as folder:
        yield folder


def _locked(parent: Path, purpose: str) -> tuple[Path, int]:
    while True:
        folder = parent / f".{purpose}-{secrets.token_hex(8)}"
        folder.mkdir(0o700)
        try:
            lock = os.open(folder, _FOLDER)
        except FileNotFoundError:  # another process took it for abandoned, and between these two lines it was
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the same
            os.close(lock)
            continue
        except OSError:  # this file system has no locks, so nobody removes it
            return folder, lock
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.lstat(folder)):
                return folder, lock
        os.close(lock)


def _sweep(parent: Path, purpose: str) -> None:
    name = re.compile(rf"\.{re.escape(purpose)}-[0-9a-f]{{16}}")
    with suppress(OSError):
        for left in [entry.path for entry in os.scandir(parent) if name.fullmatch(entry.name)]:
            with suppress(OSError):  # its process lives, or it is no folder of ours
                lock = os.open(left, _FOLDER)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
                finally:
                    os.close(lock)


@contextmanager
def folder_below(home: Path, relative: Path, *, make: bool = True) -> Iterator[int]:
    """Descriptor of a folder below another. No link is followed on the way.

    Args:
        home: Where it must be.
        relative: Its path from there.
        make: Make it, and those between, where missing.

    Raises:
        OSError: A link or a file is in the way, the path leads elsewhere, or it cannot be made.
    """
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in relative.parts:
            if name in ("..", relative.root):
                raise OSError(f"{relative} leads out of {home}")
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=descriptor)
            below = os.open(name, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in a block of this folder. Without locks in the file system, go on at once."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def as_created(path: Path) -> None:
    """Give what was made in a staging folder the permissions that new files have: libraries make some private."""
    probe = path.with_name(f".{secrets.token_hex(8)}")  # asking for the umask would change it for all threads
    probe.mkdir()
    everything = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    if not path.is_dir():
        _set_mode(path, everything & 0o666)
        return
    for _, _, files, folder in os.fwalk(path):
        os.fchmod(folder, everything)
        for name in files:
            _set_mode(name, everything & 0o666, folder)


def _set_mode(path: Path | str, mode: int, folder: int | None = None) -> None:
    """Of the file itself, whatever link takes its place meanwhile."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fchmod(file, mode)
    finally:
        os.close(file)


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be written", received=error.strerror or str(error))
