"""Writes the transformer's file, every tensor at a multiple of 64 bytes, and reads it back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from splitter_kernels.spec import Config, check_parameters

from splitter.errors import LoweringError
from splitter.plan.schema import WeightsForm

from .encoding import decode, encode
from .form import Role, StoredParameter, parameters_of, tensor_name, transform
from .importing import DTYPES, load
from .record import ALIGNMENT, FORMAT, TensorRecord, TransformerRecord

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
    offsets, padding = _write(path, {name: array for name, (array, *_) in stored.items()})
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


def _write(path: Path, tensors: Mapping[str, Array]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Write a safetensors file in the given order; return absolute offsets, and names of tensors of padding.

    The library's own writer aligns to 8 bytes. The format admits spaces after the header but no gap between
    tensors, so one that does not end at a multiple of the alignment is followed by a tensor of zeros.
    """
    entries: list[tuple[str, Array]] = []
    for name, array in tensors.items():
        entries.append((name, array))
        if short := -array.nbytes % ALIGNMENT:
            entries.append((f"{name}.padding", np.zeros(short, np.uint8)))
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT}}
    starts, end = {}, 0
    for name, array in entries:
        span = [end, end + array.nbytes]
        header[name] = {"dtype": codes[str(array.dtype)], "shape": array.shape, "data_offsets": span}
        starts[name], end = span
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(array.tobytes() for _, array in entries)
    offsets = {name: 8 + len(text) + starts[name] for name in tensors}
    return offsets, tuple(name for name, _ in entries if name not in tensors)


def _check_saved(path: Path, record: TransformerRecord, expected: Mapping[str, Array]) -> None:
    """Requested = obtained: the saved file decodes to the asked form of the weights, bit for bit."""
    _, saved = load(path, record)
    different = [name for name, array in expected.items() if saved[name].tobytes() != array.tobytes()]
    if different:
        raise LoweringError(
            f"{path.name} does not hold the weights it was asked to hold",
            received=f"{len(different)} that differ, the first {different[0]!r}",
        )
