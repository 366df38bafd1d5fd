"""Reads any form of the transformer's file back into what the kernels take, distrusting file and manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from splitter_kernels.spec import Config, parameters

from splitter.reading import Read

from ..tensor_file import check_header, contents, header_of, tensor_at, unfit
from .encoding import decode
from .form import Role, StoredParameter, parameters_of, stored, tensor_name
from .record import FORMAT, TransformerRecord

Array: TypeAlias = NDArray[Any]


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
    content = contents(path, read)
    check_header(path, record.tensors, record.padding, header_of(path, content, FORMAT), content)
    tree = {name: np.empty(shape, np.float32) for name, shape in parameters(record.config).items()}
    for name, parameter in wanted.items():
        tensors: dict[Role, Array] = {
            role: tensor_at(path, content, tensor_name(name, role), record.tensors[tensor_name(name, role)])
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
        raise unfit(path, f"no record of {len(missing)} tensors, the first {missing[0]!r}")
    if unread := sorted(record.tensors.keys() - expected.keys()):
        raise unfit(path, f"records of {len(unread)} tensors that nothing reads, the first {unread[0]!r}")
    for name, tensor in record.tensors.items():
        described = (tensor.parameter, tensor.parameter_shape, tensor.role, tensor.rows, tensor.shape, tensor.dtype)
        if described != expected[name]:
            raise unfit(path, f"{name!r} as {described} instead of {expected[name]}")
    return wanted
