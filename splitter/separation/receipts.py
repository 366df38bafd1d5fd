"""What stems were made from, kept beside them, so that a batch can be resumed.

A receipt is written once the stems are complete and before they are moved to where they belong. It holds hashes of
all of them, so it counts only when every one has arrived, and no longer when any of them is not what was made.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from .. import output, reading
from ..bundle.directory import file_record
from ..bundle.manifest import FileRecord, Record
from .separator import Separator, Written

DIRECTORY = ".separated"


class Receipt(Record):
    """One file's stems.

    Attributes:
        source: The track.
        bundle: `splitter.Bag.fingerprint` of what it was run through.
        options: Of the separation, by name.
        engines: As they were asked for, by segment.
        stems: By path below the directory of the model.
        written: What else there is to say of them.
    """

    format: Literal["splitter.receipt/2"] = "splitter.receipt/2"
    source: FileRecord
    bundle: str
    options: dict[str, Any]
    engines: dict[str, str]
    stems: dict[str, FileRecord]
    written: Written


def made(separator: Separator, source: FileRecord, home: Path, stems: Mapping[Path, Path], written: Written) -> Receipt:
    """The receipt of stems that wait to be moved.

    Args:
        separator: What made them.
        source: The track they were made from.
        home: The directory of the model.
        stems: Where each one waits, by where it will be.
        written: As `Separator.write` gave it.
    """
    return Receipt(
        source=source,
        bundle=separator.bag.fingerprint,
        options=_options(separator),
        engines=separator.requested_engines,
        stems={_below(home, target): file_record(waiting) for target, waiting in stems.items()},
        written=written,
    )


def place(receipt: Receipt, staging: Path, home: Path) -> None:
    """Put a receipt where `complete` looks for it, in one step."""
    waiting = staging / "receipt"
    waiting.write_text(receipt.model_dump_json(indent=1) + "\n", encoding="utf-8")
    with _folder(home) as folder:
        os.replace(waiting, _place(home, receipt.stems).name, dst_dir_fd=folder)


def discard(home: Path, outputs: Mapping[str, Path]) -> None:
    """Forget what these stems were made from."""
    with suppress(FileNotFoundError), _folder(home, make=False) as folder:
        os.unlink(_place(home, _names(home, outputs)).name, dir_fd=folder)


def at(home: Path, outputs: Mapping[str, Path]) -> Receipt | None:
    """What is said there of these stems; None if nothing is. They may be gone, or be others."""
    try:
        return Receipt.model_validate_json(reading.content(_place(home, _names(home, outputs))))
    except (OSError, ValidationError):  # no receipt, or not one of ours
        return None


def complete(separator: Separator, path: Path, home: Path, outputs: Mapping[str, Path]) -> bool:
    """Whether all stems of a track are there, as this bundle with these options makes them of this very sound."""
    receipt, names = at(home, outputs), _names(home, outputs)
    try:
        return (
            receipt is not None
            and receipt.bundle == separator.bag.fingerprint
            and receipt.options == _options(separator)
            and receipt.engines == separator.requested_engines
            and receipt.stems.keys() == names.keys()
            and _is(path, receipt.source)
            and all(_is(names[name], record) for name, record in receipt.stems.items())
        )
    except OSError:  # no track, or not all of the stems
        return False


def of_another_song(path: Path, home: Path, outputs: Mapping[str, Path]) -> Path | None:
    """A file in the place of one of these stems that was made of another sound, by its receipt; None if none was.

    Stems share places with those of other options (``vocals`` with and without ``--two-stems``), so every receipt
    counts where these very stems have none.
    """
    there = {name: target for name, target in _names(home, outputs).items() if os.path.lexists(target)}
    if not there:
        return None
    nearest = at(home, outputs)
    receipts = iter([nearest]) if nearest is not None else _all(home)
    with suppress(OSError):  # no track: that is said when its turn comes
        for receipt in receipts:
            for name, target in there.items():
                if name in receipt.stems and not _is(path, receipt.source) and _still(target, receipt.stems[name]):
                    return target
    return None


def _options(separator: Separator) -> dict[str, Any]:
    """As a receipt gives them back: JSON has lists only."""
    options: dict[str, Any] = to_jsonable_python(asdict(separator.options))
    return options


def _all(home: Path) -> Iterator[Receipt]:
    for path in sorted((home / DIRECTORY).glob("*.json")):
        with suppress(OSError, ValidationError):
            yield Receipt.model_validate_json(reading.content(path))


def _still(path: Path, record: FileRecord) -> bool:
    try:
        return _is(path, record)
    except OSError:
        return False


def _is(path: Path, record: FileRecord) -> bool:
    return path.stat().st_size == record.bytes and file_record(path) == record


def _place(home: Path, names: Iterable[str]) -> Path:
    """One receipt for each set of files."""
    key = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:32]
    return home / DIRECTORY / f"{key}.json"


def _folder(home: Path, *, make: bool = True) -> AbstractContextManager[int]:
    """Descriptor of the folder of receipts. No link in the output folder is followed."""
    return output.folder_below(home.parent, Path(home.name, DIRECTORY), make=make)


def _names(home: Path, outputs: Mapping[str, Path]) -> dict[str, Path]:
    return {_below(home, target): target for target in outputs.values()}


def _below(home: Path, target: Path) -> str:
    """Also of a template that leads elsewhere, and in Unicode though the system's name may not be."""
    return os.fsencode(os.path.relpath(target, home)).decode("utf-8", "backslashreplace")
