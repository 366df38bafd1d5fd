"""Writes the transformer's file, every tensor at a multiple of 64 bytes, and reads it back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from splitter_kernels.spec import Config, check_parameters

from splitter.errors import LoweringError
from splitter.plan.schema import WeightsForm

from ..tensor_file import write
from .encoding import decode, encode
from .form import Role, StoredParameter, parameters_of, tensor_name, transform
from .importing import load
from .record import FORMAT, TensorRecord, TransformerRecord

Array: TypeAlias = NDArray[Any]


def export(
    config: Config,
    tensors: Mapping[str, Array],
    sources: Mapping[str, str],
    path: Path,
    *,
    form: WeightsForm,
    inputs: tuple[str, str],
    outputs: tuple[str, str],
) -> TransformerRecord:
    """Write the weights and describe every byte of the file.

    Args:
        config: The configuration the tensors fit.
        tensors: By the names of `kernels.spec.parameters`, float32.
        sources: Checkpoint key of each tensor.
        path: File to write.
        form: Names, element types and compression.
        inputs: Names of the boundary tensors, frequency branch first.
        outputs: The same for the results.

    Raises:
        SpecError: The tensors are not those of the configuration.
        LoweringError: They cannot be stored in this form, or the saved file does not hold them.
    """
    check_parameters(config, {name: array.shape for name, array in tensors.items()})
    stored: dict[str, tuple[Array, str, StoredParameter, Role]] = {}
    expected = {name: np.empty(array.shape, np.float32) for name, array in tensors.items()}
    for name, parameter in parameters_of(config, form).items():
        rows = parameter.slice
        encoded = encode(name, parameter, tensors[parameter.kernel][rows], form)
        expected[parameter.kernel][rows] = decode(parameter, encoded, form)
        stored |= {tensor_name(name, role): (array, name, parameter, role) for role, array in encoded.items()}
    offsets, padding = write(path, {name: array for name, (array, *_) in stored.items()}, FORMAT)
    records = {}
    for name, (array, parameter_name, parameter, role) in stored.items():
        records[name] = TensorRecord(
            parameter=parameter_name,
            parameter_shape=parameter.shape,
            role=role,
            source=sources[parameter.kernel],
            rows=parameter.rows,
            transform=transform(role, str(array.dtype), form),
            shape=array.shape,
            dtype=str(array.dtype),
            offset=offsets[name],
            bytes=array.nbytes,
            sha256=hashlib.sha256(array.tobytes()).hexdigest(),
        )
    record = TransformerRecord(
        form=form, config=config, inputs=inputs, outputs=outputs, tensors=records, padding=padding
    )
    _check_saved(path, record, expected)
    return record


def _check_saved(path: Path, record: TransformerRecord, expected: Mapping[str, Array]) -> None:
    """Requested = obtained: the saved file decodes to the asked form of the weights, bit for bit."""
    _, saved = load(path, record)
    different = [name for name, array in expected.items() if saved[name].tobytes() != array.tobytes()]
    if different:
        raise LoweringError(
            f"{path.name} does not hold the weights it was asked to hold",
            received=f"{len(different)} that differ, the first {different[0]!r}",
        )
