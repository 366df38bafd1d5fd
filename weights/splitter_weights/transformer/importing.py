"""Reads any form of the transformer's file back into what the kernels take, distrusting file and manifest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from splitter_kernels.spec import Config, parameters

from splitter.errors import CheckpointError
from splitter.reading import Read

from .encoding import decode
from .form import Role, StoredParameter, parameters_of, stored, tensor_name
from .record import ALIGNMENT, FORMAT, TensorRecord, TransformerRecord

Array: TypeAlias = NDArray[Any]
DTYPES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "I8": "int8", "U8": "uint8"}
_BUILD_AGAIN = "Build the bundle again."


def load(path: Path, record: TransformerRecord, read: Read = Path.read_bytes) -> tuple[Config, dict[str, Array]]:
    """Read the weights back, every byte held against its record, and decode them.

    Args:
        path: The file.
        record: What the manifest says of it.
        read: Gives the file's content.

    Returns:
        The configuration, and float32 arrays by the names of `kernels.spec.parameters`, whatever the form.

    Raises:
        CheckpointError: A tensor is missing, unread, misplaced, misshapen or altered; or the file is not
            readable, of another version, or of another model.
    """
    wanted = _wanted(path, record)
    try:
        content = read(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    header = _header(path, content)
    _check_header(path, record, header)
    raw = np.frombuffer(content, np.uint8)
    _check_padding(path, record, header, raw)
    tree = {name: np.empty(shape, np.float32) for name, shape in parameters(record.config).items()}
    for name, parameter in wanted.items():
        tensors: dict[Role, Array] = {
            role: _tensor(path, raw, tensor_name(name, role), record.tensors[tensor_name(name, role)])
            for role in stored(parameter, record.form)
        }
        tree[parameter.kernel][parameter.slice] = decode(parameter, tensors, record.form)
    return record.config, tree


def _wanted(path: Path, record: TransformerRecord) -> dict[str, StoredParameter]:
    """The parameters of the record's configuration and form; the record must describe these and nothing else."""
    wanted = parameters_of(record.config, record.form)
    expected: dict[str, tuple[object, ...]] = {}
    for name, parameter in wanted.items():
        for role, (shape, dtype) in stored(parameter, record.form).items():
            expected[tensor_name(name, role)] = (name, parameter.shape, role, parameter.rows, shape, dtype)
    if missing := sorted(expected.keys() - record.tensors.keys()):
        raise _unfit(path, f"no record of {len(missing)} tensors, the first {missing[0]!r}")
    if unread := sorted(record.tensors.keys() - expected.keys()):
        raise _unfit(path, f"records of {len(unread)} tensors that nothing reads, the first {unread[0]!r}")
    for name, tensor in record.tensors.items():
        described = (tensor.parameter, tensor.parameter_shape, tensor.role, tensor.rows, tensor.shape, tensor.dtype)
        if described != expected[name]:
            raise _unfit(path, f"{name!r} as {described} instead of {expected[name]}")
        if tensor.bytes != math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize:
            raise _unfit(path, f"{name!r} in {tensor.bytes} bytes, which is not its size")
    return wanted


def _header(path: Path, content: bytes) -> dict[str, Any]:
    """The file's header, its offsets absolute. The library judges it first: lengths, overlaps, gaps, dtypes."""
    try:
        deserialize(content)  # type: ignore[no-untyped-call]
        length = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8 : 8 + length])
    except (SafetensorError, ValueError) as error:
        raise _unreadable(path, error) from error
    found = header.pop("__metadata__", {}).get("format")
    if found != FORMAT:
        raise CheckpointError(
            f"{path.name} has another format",
            expected=repr(FORMAT),
            received=repr(found),
            fix="Build the bundle again with this version, or read it with the version in its manifest.",
        )
    for entry in header.values():
        entry["data_offsets"] = [8 + length + offset for offset in entry["data_offsets"]]
    return header


def _check_header(path: Path, record: TransformerRecord, header: Mapping[str, Any]) -> None:
    """The file holds what the manifest describes, where it says."""
    known = record.tensors.keys() | set(record.padding)
    if missing := sorted(known - header.keys()):
        raise _unfit(path, f"a file that lacks {len(missing)} tensors, the first {missing[0]!r}")
    if unread := sorted(header.keys() - known):
        raise _unfit(path, f"a file with {len(unread)} tensors that nothing reads, the first {unread[0]!r}")
    for name, tensor in record.tensors.items():
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


def _check_padding(path: Path, record: TransformerRecord, header: Mapping[str, Any], raw: Array) -> None:
    """What nobody reads is nothing: fewer zeros than the alignment."""
    for name in record.padding:
        data = raw[slice(*header[name]["data_offsets"])]
        if data.size >= ALIGNMENT or data.any():
            raise _unfit(path, f"{data.size} bytes of padding in {name!r} that are not a few zeros")


def _tensor(path: Path, raw: Array, name: str, tensor: TensorRecord) -> Array:
    """One tensor, read as a port reads it: by the manifest's offset."""
    data = raw[tensor.offset : tensor.offset + tensor.bytes]
    if hashlib.sha256(data.tobytes()).hexdigest() != tensor.sha256:
        raise CheckpointError(f"tensor {name!r} of {path.name} has another hash than in the manifest", fix=_BUILD_AGAIN)
    return data.view(tensor.dtype).reshape(tensor.shape)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path.name} cannot be read as a safetensors file", received=str(error), fix=_BUILD_AGAIN)


def _unfit(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} does not hold the transformer its manifest describes", received=what, fix=_BUILD_AGAIN
    )
