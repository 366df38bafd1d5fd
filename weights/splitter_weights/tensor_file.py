"""Tensors as one safetensors file for a port, every one at a multiple of 64 bytes, and a record of every byte.

The record goes into a manifest: a reader that trusts it needs no parser of the file's header. Here file and record are
held against each other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, deserialize

from splitter.errors import CheckpointError
from splitter.plan.schema import readable
from splitter.reading import Read

Array: TypeAlias = NDArray[Any]
FORMAT: Literal["splitter.tensors/1"] = "splitter.tensors/1"
ARTIFACT = "safetensors file"  # what targets that write one say
ALIGNMENT = 64  # bytes
DTYPES: Mapping[str, str] = {
    "F64": "float64", "F32": "float32", "F16": "float16", "C64": "complex64", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
DType: TypeAlias = Literal[
    "float64", "float32", "float16", "complex64", "int64", "int32", "int16", "int8", "uint8", "bool"
]
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_BUILD_AGAIN = "Build the bundle again."


class StoredTensor(BaseModel):
    """Where one tensor lies.

    Attributes:
        shape: Its extents.
        dtype: NumPy's name.
        offset: Absolute byte offset in the file, a multiple of 64.
        bytes: Length in the file.
        sha256: Of these bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: DType
    offset: Annotated[int, Field(ge=0, multiple_of=ALIGNMENT)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TensorFileRecord(BaseModel):
    """What a manifest says of a file of tensors.

    Attributes:
        tensors: By name, in the order of the file.
        padding: Names of the tensors of zeros that fill the file up to the next multiple of 64 bytes, where a tensor
            does not end at one: they are read by nobody.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["splitter.tensors/1"] = FORMAT
    tensors: dict[str, StoredTensor]
    padding: tuple[str, ...] = ()


def record_of(details: Mapping[str, Any]) -> TensorFileRecord:
    """Read what a manifest says of a file of tensors.

    Raises:
        CheckpointError: It is of another version, or damaged.
    """
    try:
        return TensorFileRecord.model_validate(details)
    except ValidationError as error:
        raise CheckpointError(
            "the manifest does not describe a file of tensors", received=readable(error), fix=_BUILD_AGAIN
        ) from error


def export(tensors: Mapping[str, Array], path: Path) -> TensorFileRecord:
    """Write tensors, of element types in `DTYPES`, and describe every byte of the file."""
    offsets, padding = write(path, tensors, FORMAT)
    record = TensorFileRecord(
        tensors={
            name: StoredTensor(
                shape=array.shape,
                dtype=DTYPES[_CODES[str(array.dtype)]],
                offset=offsets[name],
                bytes=array.nbytes,
                sha256=hashlib.sha256(array.tobytes()).hexdigest(),
            )
            for name, array in tensors.items()
        },
        padding=padding,
    )
    load(path, record)  # requested = obtained
    return record


def load(path: Path, record: TensorFileRecord, read: Read = Path.read_bytes) -> dict[str, Array]:
    """Read the tensors back, every byte held against its record.

    Args:
        path: The file.
        record: What the manifest says of it.
        read: Gives the file's content.

    Raises:
        CheckpointError: A tensor is missing, unread, misplaced, misshapen or altered; or the file is not readable or
            of another version.
    """
    content = contents(path, read)
    check_header(path, record.tensors, record.padding, header_of(path, content, FORMAT), content)
    return {name: tensor_at(path, content, name, tensor) for name, tensor in record.tensors.items()}


def write(path: Path, tensors: Mapping[str, Array], file_format: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Write a safetensors file in the given order; return absolute offsets, and names of tensors of padding.

    The library's own writer aligns to 8 bytes. The format admits spaces after the header but no gap between
    tensors, so one that does not end at a multiple of the alignment is followed by a tensor of zeros.
    """
    entries: list[tuple[str, Array]] = []
    for name, array in tensors.items():
        entries.append((name, array))
        if short := -array.nbytes % ALIGNMENT:
            entries.append((f"{name}.padding", np.zeros(short, np.uint8)))
    header: dict[str, Any] = {"__metadata__": {"format": file_format}}
    starts, end = {}, 0
    for name, array in entries:
        span = [end, end + array.nbytes]
        header[name] = {"dtype": _CODES[str(array.dtype)], "shape": array.shape, "data_offsets": span}
        starts[name], end = span
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(array.tobytes() for _, array in entries)
    offsets = {name: 8 + len(text) + starts[name] for name in tensors}
    return offsets, tuple(name for name, _ in entries if name not in tensors)


# --------------------------------------------------------------------------------------- reading


def contents(path: Path, read: Read) -> bytes:
    try:
        return read(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def header_of(path: Path, content: bytes, file_format: str) -> dict[str, Any]:
    """The file's header, its offsets absolute. The library judges it first: lengths, overlaps, gaps, dtypes.

    Raises:
        CheckpointError: It is none, or of another version.
    """
    try:
        deserialize(content)  # type: ignore[no-untyped-call]
        length = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8 : 8 + length])
    except (SafetensorError, ValueError) as error:
        raise _unreadable(path, error) from error
    found = header.pop("__metadata__", {}).get("format")
    if found != file_format:
        raise CheckpointError(
            f"{path.name} has another format",
            expected=repr(file_format),
            received=repr(found),
            fix="Build the bundle again with this version, or read it with the version in its manifest.",
        )
    for entry in header.values():
        entry["data_offsets"] = [8 + length + offset for offset in entry["data_offsets"]]
    return header


def check_header(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    padding: tuple[str, ...],
    header: Mapping[str, Any],
    content: bytes,
) -> None:
    """The file holds what the manifest describes, where it says, and a few zeros that nobody reads.

    Raises:
        CheckpointError: It does not.
    """
    known = tensors.keys() | set(padding)
    if missing := sorted(known - header.keys()):
        raise unfit(path, f"a file that lacks {len(missing)} tensors, the first {missing[0]!r}")
    if unread := sorted(header.keys() - known):
        raise unfit(path, f"a file with {len(unread)} tensors that nothing reads, the first {unread[0]!r}")
    for name, tensor in tensors.items():
        if tensor.bytes != math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize:
            raise unfit(path, f"{name!r} in {tensor.bytes} bytes, which is not its size")
        entry = header[name]
        described = (DTYPES.get(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"])
        expected = (tensor.dtype, tensor.shape, [tensor.offset, tensor.offset + tensor.bytes])
        if described != expected:
            raise CheckpointError(
                f"tensor {name!r} of {path.name} has another type, shape or place than in the manifest",
                expected=expected,
                received=described,
                fix="Put the file of the same build beside the manifest: this one may be of another model.",
            )
    for name in padding:
        data = content[slice(*header[name]["data_offsets"])]
        if len(data) >= ALIGNMENT or any(data):
            raise unfit(path, f"{len(data)} bytes of padding in {name!r} that are not a few zeros")


def tensor_at(path: Path, content: bytes, name: str, tensor: StoredTensor) -> Array:
    """One tensor, read as a port reads it: by the manifest's offset.

    Raises:
        CheckpointError: It has another hash.
    """
    data = np.frombuffer(content, np.uint8)[tensor.offset : tensor.offset + tensor.bytes]
    if hashlib.sha256(data.tobytes()).hexdigest() != tensor.sha256:
        raise CheckpointError(f"tensor {name!r} of {path.name} has another hash than in the manifest", fix=_BUILD_AGAIN)
    return data.view(tensor.dtype).reshape(tensor.shape)


def unfit(path: Path, what: str) -> CheckpointError:
    """For a file that is not what its manifest says."""
    return CheckpointError(
        f"{path.name} does not hold the tensors its manifest describes", received=what, fix=_BUILD_AGAIN
    )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path.name} cannot be read as a safetensors file", received=str(error), fix=_BUILD_AGAIN)
