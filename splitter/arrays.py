"""Named arrays on disk: ``.npz``, ``.safetensors``, a folder of ``.npy``, or raw values with an index."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from . import output
from .boundary import Array
from .errors import UsageError

SUFFIXES = (".npz", ".safetensors")  # of files that hold arrays by name


class RawArray(BaseModel):
    """One entry of an index: where an array lies in a file of raw little-endian values, row by row.

    Attributes:
        file: Beside the index or below it.
        dtype: NumPy's name, e.g. ``"float32"``.
        offset: Of the first value, in bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: str = "float32"
    offset: Annotated[int, Field(ge=0)] = 0


_INDEX = TypeAdapter(dict[str, RawArray])


def read(path: Path) -> dict[str, Array]:
    """Read every array by name.

    Args:
        path: A ``.npz`` or ``.safetensors`` file, a folder whose ``.npy`` files carry the names, or a ``.json`` index:
            an object of `RawArray` by name.

    Raises:
        UsageError: It is none of these, or not readable; pickled objects are refused.
    """
    try:
        if path.is_dir():
            files = sorted(path.glob("*.npy"))
            return {file.name.removesuffix(".npy"): np.load(file, allow_pickle=False) for file in files}
        if path.suffix == ".json":
            index = _INDEX.validate_json(path.read_bytes())
            return {name: _raw(path.parent, name, entry) for name, entry in index.items()}
        _check_suffix(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except ValidationError as error:
        raise UsageError(
            f"{path} must be an index of raw arrays", received=str(error), fix=json.dumps(_EXAMPLE)
        ) from error
    except (OSError, ValueError, TypeError, KeyError, SafetensorError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"{path} must hold arrays by name", received=str(error) or repr(error)) from error


_EXAMPLE = {"layers.0.norm1": {"file": "taps.bin", "offset": 0, "shape": [1, 2688, 512], "dtype": "float32"}}


def _raw(directory: Path, name: str, entry: RawArray) -> Array:
    file = directory / entry.file
    if not file.resolve().is_relative_to(directory.resolve()):
        raise ValueError(f"{name}: {entry.file} lies outside the folder of the index")
    dtype = np.dtype(entry.dtype).newbyteorder("<")
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"{name}: {entry.dtype} values cannot be read raw")
    count = math.prod(entry.shape)
    if entry.offset + count * dtype.itemsize > file.stat().st_size:
        raise ValueError(f"{name}: {entry.file} ends before the array does")
    array = np.fromfile(file, dtype, count, offset=entry.offset)
    return array.reshape(entry.shape).astype(dtype.newbyteorder("="), copy=False)


def metadata(path: Path) -> dict[str, str]:
    """What a ``.safetensors`` file says of itself; nothing for the other formats."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(str(path), framework="numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} must hold arrays by name", received=str(error)) from error


def write(path: Path, arrays: Mapping[str, object], about: Mapping[str, str] | None = None) -> None:
    """Write arrays by name; all of them, or the file is left as it was.

    Args:
        path: A ``.npz`` or ``.safetensors`` file.
        about: Metadata, for safetensors.

    Raises:
        UsageError: Something is not an array, the suffix is neither, or the file cannot be written.
    """
    _check_suffix(path)
    named: dict[str, Array] = {}
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise UsageError("outputs in a file are arrays", received=f"{name}: {type(value).__name__}")
        named[name] = np.ascontiguousarray(value)
    with output.whole(path) as waiting:
        if path.suffix == ".npz":
            np.savez(waiting, **named)  # type: ignore[arg-type]
        else:
            try:
                save_file(named, waiting, dict(about or {}) or None)
            except SafetensorError as error:  # its own name for what the system says
                raise OSError(str(error)) from error


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise UsageError(f"arrays come in {' or '.join(SUFFIXES)}", received=path.name)
