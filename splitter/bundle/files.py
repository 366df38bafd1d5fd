"""The files of a bundle: each one is read whole and held against its record before anything uses it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .. import reading
from ..errors import BundleError
from .manifest import FileRecord

BUILD_AGAIN = "Build the bundle again."


@dataclass(frozen=True)
class Files:
    """The only way to the bytes of a bundle. What it returns is what was hashed, so nothing can change in between.

    Attributes:
        home: Directory of the bundle.
        records: Size and hash of each file, by its path in the bundle.
    """

    home: Path
    records: Mapping[str, FileRecord]
    _seen: set[str] = field(default_factory=set, repr=False, compare=False)

    def read(self, path: Path) -> bytes:
        """A file's content.

        Args:
            path: The file, below `home`.

        Raises:
            BundleError: The manifest does not list it, or it is not what was built.
        """
        home = self.home if path.is_relative_to(self.home) else self.home.resolve()
        name = path.relative_to(home).as_posix()
        record = self._record(name)
        try:
            with reading.opened(path) as file:
                content = file.read(record.bytes + 1)
        except OSError as error:
            raise _unreadable(path, error) from error
        self._hold(name, len(content), hashlib.sha256(content).hexdigest())
        return content

    def digest(self, name: str) -> str:
        """SHA-256 of a file, of bytes that this process has read and not of what the manifest says."""
        if name not in self._seen:
            path = self.home / name
            try:
                with reading.opened(path) as file:
                    self._hold(name, os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())
            except OSError as error:
                raise _unreadable(path, error) from error
        return self._record(name).sha256

    def checked(self, name: str) -> Path:
        """Path of a file or of a directory, after all of it was read and held against the manifest.

        For libraries that open the path by themselves (Core ML). Who can write to the bundle can exchange a file
        between this check and that use; everything else takes the bytes that `read` returns.

        Raises:
            BundleError: One of its files is not what was built.
        """
        names = [name] if name in self.records else self.below(name)
        if not names:
            raise _unlisted(self.home, [name])
        for each in names:
            self._seen.discard(each)
            self.digest(each)
        return self.home / name

    def below(self, directory: str) -> list[str]:
        """Names of the listed files of a directory."""
        return [name for name in self.records if name.startswith(f"{directory}/")]

    def check_listing(self, referenced: Iterable[str]) -> None:
        """Judge what is there without reading it.

        Args:
            referenced: Files and directories that the manifest names elsewhere.

        Raises:
            BundleError: A file is missing, of another size, or a link; a referenced file is not listed; or a
                referenced directory holds a file that is not.
        """
        directories = {str(parent) for name in self.records for parent in PurePosixPath(name).parents} - {"."}
        for name in sorted(directories | self.records.keys()):
            self._check_entry(name, is_file=name in self.records)
        if unlisted := sorted({name for name in referenced if name not in self.records and name not in directories}):
            raise _unlisted(self.home, unlisted)
        for name in sorted(set(referenced) & directories):
            found = {
                entry.relative_to(self.home).as_posix()
                for entry in (self.home / name).rglob("*")
                if entry.is_symlink() or not entry.is_dir()  # Core ML Tools leaves empty folders
            }
            if unlisted := sorted(found - self.records.keys() - directories):
                raise BundleError(
                    f"{self.home / name} holds files that the manifest does not list",
                    received=", ".join(unlisted),
                    fix=f"Remove them, or b{BUILD_AGAIN[1:]}",
                )

    def _check_entry(self, name: str, *, is_file: bool) -> None:
        path = self.home / name
        try:
            status = path.lstat()
        except FileNotFoundError as error:
            raise BundleError(f"{path} is missing", fix=BUILD_AGAIN) from error
        except OSError as error:
            raise _unreadable(path, error) from error
        if not (stat.S_ISREG if is_file else stat.S_ISDIR)(status.st_mode):
            raise BundleError(
                f"{path} is not a {'regular file' if is_file else 'directory'}",
                received="a link" if stat.S_ISLNK(status.st_mode) else "something else",
                fix="Copy the bundle with its files in place of links, or build it again.",
            )
        if is_file and status.st_size != self.records[name].bytes:
            raise _changed(path, f"{self.records[name].bytes} bytes", f"{status.st_size}")

    def _record(self, name: str) -> FileRecord:
        if name not in self.records:
            raise _unlisted(self.home, [name])
        return self.records[name]

    def _hold(self, name: str, size: int, sha256: str) -> None:
        record = self._record(name)
        if size != record.bytes:
            raise _changed(self.home / name, f"{record.bytes} bytes", "another number")
        if sha256 != record.sha256:
            raise _changed(self.home / name, f"SHA-256 {record.sha256}", sha256)
        self._seen.add(name)


def _changed(path: Path, expected: str, received: str) -> BundleError:
    return BundleError(f"{path} was changed after the build", expected=expected, received=received, fix=BUILD_AGAIN)


def _unlisted(home: Path, names: Iterable[str]) -> BundleError:
    return BundleError(
        f"the manifest in {home} names files that it does not list", received=", ".join(names), fix=BUILD_AGAIN
    )


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path} cannot be read", received=error.strerror or str(error), fix=BUILD_AGAIN)
