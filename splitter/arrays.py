"""Named arrays in a file: ``.npz`` or ``.safetensors``."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .boundary import Array
from .errors import UsageError


def read(path: Path) -> dict[str, Array]:
    """Read every array of a file by name.

    Raises:
        UsageError: It is neither format, or not readable; pickled objects are refused.
    """
    check_suffix(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"{path} must hold arrays by name", received=str(error) or repr(error)) from error


def check_suffix(path: Path) -> None:
    """Refuse a name whose suffix is no format, before anything is computed for it.

    Raises:
        UsageError: It is neither.
    """
    if path.suffix not in (".npz", ".safetensors"):
        raise UsageError("arrays come in .npz or .safetensors", received=path.name)


def write(path: Path, arrays: Mapping[str, object]) -> None:
    """Write arrays by name; all of them, or the file is left as it was.

    Raises:
        UsageError: Something is not an array, the suffix is neither, or the file cannot be written.
    """
    check_suffix(path)
    named: dict[str, Array] = {}
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise UsageError("outputs in a file are arrays", received=f"{name}: {type(value).__name__}")
        named[name] = np.ascontiguousarray(value)
    waiting = path.with_name(f".{path.name}.writing{path.suffix}")
    try:
        if path.suffix == ".npz":
            np.savez(waiting, **named)  # type: ignore[arg-type]
        else:
            save_file(named, waiting)
        waiting.replace(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} must be writable", received=str(error)) from error
    finally:
        waiting.unlink(missing_ok=True)
