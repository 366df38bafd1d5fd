"""Named arrays on disk: ``.npz``, ``.safetensors``, a folder of ``.npy``, or raw values with an index.

Files may come from anybody. Names, then sizes, then shapes are held against what is expected and against the limit of
memory, and only then values are read.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from . import limits, output, reading
from .boundary import Array
from .errors import SplitterError, UsageError

SUFFIXES = (".npz", ".safetensors")  # of files that hold arrays by name
Shape: TypeAlias = tuple[int | None, ...]  # None: any extent

_WIDEST = 16  # bytes of a number, complex ones included
_NPY_HEADER = 1 << 14  # bytes before the values; NumPy reads no longer ones
_DEFLATED = 1032  # how often deflate can shrink
_FOREIGN = (
    OSError, ValueError, TypeError, LookupError, RuntimeError, RecursionError, MemoryError, EOFError, SafetensorError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


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
_EXAMPLE = {"layers.0.norm1": {"file": "taps.bin", "offset": 0, "shape": [1, 2688, 512], "dtype": "float32"}}


@dataclass(frozen=True)
class _Stored:
    """An array that is not read yet.

    Attributes:
        size: Bytes that it claims to have, those of its own header included; no fewer are held once it is read.
        shape: Reads its shape, and refuses what does not fit into its size.
        values: Reads it.
    """

    size: int
    shape: Callable[[], tuple[int, ...]]
    values: Callable[[], Array]


def read(path: Path, *, expected: Mapping[str, Shape] | None = None, most: int | None = None) -> dict[str, Array]:
    """Read every array by name.

    Args:
        path: A ``.npz`` or ``.safetensors`` file, a folder whose ``.npy`` files carry the names, or a ``.json`` index:
            an object of `RawArray` by name.
        expected: The only names there may be, each with its shape; any where None.
        most: Bytes that all arrays may have together, besides `limits.max_memory`.

    Raises:
        UsageError: It is none of these, not readable, larger than it may be, or holds what is not expected. Pickled
            objects are refused.
    """
    try:
        with ExitStack() as stack:
            stored = _stored(path, stack)
            if expected is not None:
                _check_names(path, stored, expected)
            size = sum(array.size for array in stored.values())
            limits.check(size, str(path))
            if most is not None:
                limits.check(size, str(path), most=most)
            for name, array in stored.items():
                shape = array.shape()
                if expected is not None and not _fits(shape, expected[name]):
                    wanted = tuple("any" if extent is None else extent for extent in expected[name])
                    raise UsageError(f"{name!r} in {path} has another shape", expected=wanted, received=shape)
            return {name: array.values() for name, array in stored.items()}
    except ValidationError as error:
        raise UsageError(f"{path} is no index of raw arrays", received=str(error), fix=json.dumps(_EXAMPLE)) from error
    except SplitterError:
        raise
    except _FOREIGN as error:
        raise UsageError(f"{path} cannot be read as arrays by name", received=str(error) or repr(error)) from error


def _check_names(path: Path, stored: Mapping[str, _Stored], expected: Mapping[str, Shape]) -> None:
    for name, array in stored.items():
        if name not in expected:
            raise UsageError(
                f"{path} holds an array that is not expected", expected=", ".join(expected), received=repr(name[:80])
            )
        if None not in expected[name]:
            most = math.prod(extent or 0 for extent in expected[name]) * _WIDEST + _NPY_HEADER
            limits.check(array.size, f"{name!r} in {path}", most=most)


def _fits(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(want in (None, got) for got, want in zip(shape, wanted, strict=True))


# ------------------------------------------------------------------------------------------- formats


def _stored(path: Path, stack: ExitStack) -> dict[str, _Stored]:
    if path.is_dir():
        return {file.name.removesuffix(".npy"): _npy(file) for file in sorted(path.glob("*.npy"))}
    if path.suffix == ".json":
        return _raw_arrays(path)
    _check_suffix(path)
    file = stack.enter_context(reading.opened(path))
    if path.suffix == ".npz":
        return _zipped(stack.enter_context(zipfile.ZipFile(file)))
    opened = stack.enter_context(safe_open(str(path), framework="numpy"))
    slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    return {
        name: _Stored(_size(piece), partial(_shape, piece), partial(opened.get_tensor, name))
        for name, piece in slices.items()
    }


def _npy(path: Path) -> _Stored:
    def opened() -> BufferedReader:
        return reading.opened(path)

    return _npy_from(opened, path.stat().st_size)


def _npy_from(opened: Callable[[], Any], size: int) -> _Stored:
    """An array in NumPy's format, of so many bytes with its header."""

    def shape() -> tuple[int, ...]:
        with opened() as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version} of NumPy's format is not one for numbers")
            first = version == (1, 0)
            header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            try:
                extents, _, dtype = header(file)
            except Exception as error:  # NumPy reads it as Python, whose parsers raise every kind
                raise ValueError(f"its header cannot be read: {str(error)[:100]}") from error
            if math.prod(extents) * dtype.itemsize > size or min(extents, default=0) < 0:
                raise ValueError(f"an array of shape {extents} and type {dtype} in {size} bytes")
            return tuple(extents)

    def values() -> Array:
        with opened() as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    return _Stored(size, shape, values)


def _zipped(archive: zipfile.ZipFile) -> dict[str, _Stored]:
    """Arrays of an archive, whose members are no larger than they can be."""
    stored: dict[str, _Stored] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        swollen = member.file_size > (
            _DEFLATED * member.compress_size if member.compress_type else member.compress_size
        )
        if name in stored or swollen:
            raise ValueError(f"a member {name[:80]!r} that is there twice, or is larger than it can be")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"a member {name[:80]!r} that is neither stored nor deflated")
        stored[name] = _npy_from(partial(archive.open, member), member.file_size)
    return stored


def _shape(piece: Any) -> tuple[int, ...]:
    """Of a tensor in a safetensors file, whose library has held it against the file's length."""
    return tuple(piece.get_shape())


def _size(piece: Any) -> int:
    bits = re.search(r"\d+", piece.get_dtype())  # of BOOL there are 8
    return -(-math.prod(piece.get_shape()) * (int(bits[0]) if bits else 8) // 8)


def _raw_arrays(path: Path) -> dict[str, _Stored]:
    """Arrays of an index. Names may share an array; otherwise no byte of a file is read twice."""
    stored: dict[str, _Stored] = {}
    unread: dict[Path, int] = {}
    load: Callable[[Path, str, tuple[int, ...], int], Array] = cache(_raw)
    seen: set[tuple[Path, str, tuple[int, ...], int]] = set()
    for name, entry in _INDEX.validate_json(reading.content(path)).items():
        file = path.parent / entry.file
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise ValueError(f"{name}: {entry.file} lies outside the folder of the index")
        dtype = np.dtype(entry.dtype[:20])
        if dtype.kind not in "fiubc":
            raise ValueError(f"{name}: {entry.dtype} values cannot be read raw")
        size = math.prod(entry.shape) * dtype.itemsize
        if entry.offset + size > file.stat().st_size:
            raise ValueError(f"{name}: {entry.file} ends before the array does")
        key = file.resolve(), dtype.name, entry.shape, entry.offset
        if key in seen:
            size = 0
        seen.add(key)
        unread[key[0]] = unread.get(key[0], file.stat().st_size) - size
        if unread[key[0]] < 0:
            raise ValueError(f"{name}: it overlaps with other arrays in {entry.file}")
        stored[name] = _Stored(size, partial(tuple, entry.shape), partial(load, *key))
    return stored


def _raw(file: Path, name: str, shape: tuple[int, ...], offset: int) -> Array:
    dtype = np.dtype(name).newbyteorder("<")
    with reading.opened(file) as opened:
        opened.seek(offset)
        values = np.frombuffer(bytearray(opened.read(math.prod(shape) * dtype.itemsize)), dtype)
    return values.reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def metadata(path: Path) -> dict[str, str]:
    """What a ``.safetensors`` file says of itself; nothing for the other formats."""
    if path.suffix != ".safetensors" or path.is_dir():
        return {}
    try:
        with reading.opened(path), safe_open(str(path), framework="numpy") as file:
            return dict(file.metadata() or {})
    except _FOREIGN as error:
        raise UsageError(f"{path} cannot be read as arrays by name", received=str(error)) from error


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
            raise UsageError(f"the output {name!r} is no array and cannot be written", received=type(value).__name__)
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
        raise UsageError(
            f"{path.name} is no file of arrays by name", expected=f"a name that ends in {' or '.join(SUFFIXES)}"
        )
