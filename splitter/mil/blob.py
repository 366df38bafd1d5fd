"""Weight files of a package: ``weight.bin``, version 2 of Core ML's blob storage.

A header of 64 bytes (count, version), then for each blob a record of 64 bytes at a 64-byte boundary
(sentinel, element type, size, offset of the data, bits of padding) and the data, 64-byte aligned.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import OperationError, PackageError
from ..reading import Read
from .memory import Ledger
from .types import DType

_SENTINEL = 0xDEADBEEF
_VERSION = 2
_RECORD = struct.Struct("<IIQQQ32x")
_FIX = "The package is damaged: copy or save it again."
# Numbers of the storage format, not those of MIL.proto.
_NAMES = "fp16 fp32 uint8 int8 bf16 int16 uint16 int4 uint1 uint2 uint4 uint3 uint6 int32 uint32 fp8e4m3fn fp8e5m2"
_STORED = dict(enumerate(_NAMES.split(), start=1))


class BlobFile:
    """A weight file; reads are checked against its length and its own records.

    The file is read once, so that what is hashed is what is used, and not mapped: a mapped file that shrinks kills the
    process. A value is copied once however often the program names it, and no more bytes are copied than the file
    has, so that a small file cannot fill the memory.
    """

    def __init__(self, path: Path, read: Read = Path.read_bytes, ledger: Ledger | None = None) -> None:
        """Read a file.

        Args:
            path: Of it.
            read: Gives its content.
            ledger: Counts its values, with those of other files.

        Raises:
            PackageError: It is not readable, or of another version.
        """
        self._path = path
        self._ledger = ledger if ledger is not None else Ledger()
        self._values: dict[tuple[int, str, int], Tensor] = {}
        try:
            self._content = memoryview(read(path))
        except (OSError, MemoryError) as error:
            raise self._unreadable(str(error) or repr(error)) from error
        self._unread = len(self._content)
        if len(self._content) < 8:
            raise self._unreadable(f"{len(self._content)} bytes")
        if struct.unpack_from("<II", self._content)[1] != _VERSION:
            raise PackageError(f"{path.name} has another header than a weight file of version {_VERSION}")

    def read(self, offset: int, dtype: DType, shape: tuple[int, ...], where: str) -> Tensor:
        """Read one tensor, in the type that holds it.

        Args:
            offset: Of its record.
            dtype: As the program declares it.
            shape: As the program declares it.
            where: Name of the value, for messages.

        Raises:
            PackageError: The record lies outside the file, holds another type or size, or needs too much memory.
        """
        count = math.prod(shape)
        key = (offset, dtype.name, count)
        if key not in self._values:
            self._values[key] = self._read(offset, dtype, count, where)
            self._ledger.hold(self._values[key])
        return self._values[key].reshape(shape)

    def _read(self, offset: int, dtype: DType, count: int, where: str) -> Tensor:
        if not 0 <= offset <= len(self._content) - _RECORD.size:
            raise self._broken(where, f"a record at byte {offset} of {len(self._content)}")
        sentinel, stored, size, start, padding = _RECORD.unpack_from(self._content, offset)
        if sentinel != _SENTINEL:
            raise self._broken(where, f"no record at byte {offset}")
        if _STORED.get(stored) != dtype.name:
            raise self._broken(where, f"{_STORED.get(stored, stored)} stored for {dtype}")
        if size != -(-count * dtype.bits // 8) or start + size > len(self._content) or padding >= 8:
            raise self._broken(where, f"{size} bytes from byte {start} for {count} values of {dtype}")
        self._unread -= size
        if self._unread < 0:
            raise self._broken(where, "records that overlap")
        try:
            self._ledger.check(count * dtype.held.itemsize)
        except OperationError as error:
            problem = f"{self._path.name} holds more than there is memory for, with {where!r}"
            raise PackageError(problem, expected=error.expected, received=error.received, fix=error.fix) from error
        return decoded(bytearray(self._content[start : start + size]), dtype, (count,))

    def _unreadable(self, what: str) -> PackageError:
        return PackageError(f"{self._path.name} cannot be read as a weight file", received=what, fix=_FIX)

    def _broken(self, where: str, what: str) -> PackageError:
        return PackageError(
            f"{self._path.name} does not hold the value {where!r} where the program says", received=what, fix=_FIX
        )


def decoded(raw: bytearray | bytes, dtype: DType, shape: tuple[int, ...]) -> Tensor:
    """Little-endian bytes as a tensor in the type that holds it; sub-byte values are packed low bits first.

    A bytearray becomes the tensor's memory where its type allows.
    """
    if not raw:
        return torch.zeros(shape, dtype=dtype.held)
    if dtype.bits < 8:
        return _unpacked(np.frombuffer(raw, np.uint8), dtype, shape)
    if dtype.name == "bool":  # torch takes a bool that is neither 0 nor 1 for granted, and computes nonsense
        return torch.from_numpy(np.frombuffer(raw, np.uint8) != 0).reshape(shape)
    if dtype.name in ("uint16", "uint32", "uint64"):
        wide = np.frombuffer(raw, f"<u{dtype.bits // 8}").astype(np.int64)
        return torch.from_numpy(wide).to(dtype.held).reshape(shape)
    owned = raw if isinstance(raw, bytearray) else bytearray(raw)
    return torch.frombuffer(owned, dtype=dtype.held).reshape(shape)


def _unpacked(raw: np.ndarray, dtype: DType, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    bits = np.unpackbits(raw, bitorder="little")[: count * dtype.bits].reshape(count, dtype.bits)
    values = np.packbits(bits, axis=1, bitorder="little")[:, 0]  # packbits fills a byte with zeros
    if dtype.name == "int4":
        return torch.from_numpy((values ^ 8).view(np.int8) - np.int8(8)).reshape(shape)
    return torch.from_numpy(values).reshape(shape)
