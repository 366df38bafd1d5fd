"""The transformer's weights as one safetensors file for a port, and the manifest that explains it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from splitter.errors import CheckpointError
from splitter.kernels.spec import Config, SpecError, check_parameters

Array: TypeAlias = NDArray[Any]
FORMAT = "splitter.transformer/1"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorRecord(_Record):
    """Where one tensor lies and where it comes from.

    Attributes:
        source: Its key in the checkpoint, or ``"graph"`` for a table the model computes.
        shape: PyTorch's: linear weights ``[out, in]``.
        dtype: NumPy's name.
        offset: Absolute byte offset in the file.
        bytes: Length in the file.
        sha256: Of these bytes.
    """

    source: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    bytes: int
    sha256: str


class TransformerRecord(_Record):
    """What a port needs to know to build the transformer from the file alone.

    Attributes:
        layout: Whose conventions names and shapes follow.
        config: Fields of `kernels.spec.Config`.
        inputs: Boundary tensors of the frequency and of the time branch going in.
        outputs: The same, coming out.
        tensors: Every tensor of the file by name.
    """

    format: str = FORMAT
    layout: str = "torch"
    config: dict[str, int | float | bool]
    inputs: tuple[str, str]
    outputs: tuple[str, str]
    tensors: dict[str, TensorRecord]


def export(
    config: Config,
    tensors: Mapping[str, Array],
    sources: Mapping[str, str],
    path: Path,
    *,
    inputs: tuple[str, str],
    outputs: tuple[str, str],
) -> TransformerRecord:
    """Write the weights and describe every byte of the file.

    Args:
        config: The configuration the tensors fit.
        tensors: By the names of `kernels.spec.parameters`.
        sources: Checkpoint key of each tensor.
        path: File to write.
        inputs: Names of the boundary tensors, frequency branch first.
        outputs: The same for the results.
    """
    check_parameters(config, {name: array.shape for name, array in tensors.items()})
    save_file({name: np.ascontiguousarray(array) for name, array in sorted(tensors.items())}, path, {"format": FORMAT})
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    records = {}
    for name, array in sorted(tensors.items()):
        start, stop = (8 + length + offset for offset in header[name]["data_offsets"])
        records[name] = TensorRecord(
            source=sources[name],
            shape=array.shape,
            dtype=str(array.dtype),
            offset=start,
            bytes=stop - start,
            sha256=hashlib.sha256(raw[start:stop]).hexdigest(),
        )
    return TransformerRecord(config=asdict(config), inputs=inputs, outputs=outputs, tensors=records)


def load(path: Path, record: TransformerRecord) -> tuple[Config, dict[str, Array]]:
    """Read the weights back, every tensor held against its record.

    Raises:
        CheckpointError: A tensor is missing, unread, misshapen or altered, or the file is not readable.
    """
    try:
        config = Config(**record.config)  # type: ignore[arg-type]
        tensors = load_file(path)
        check_parameters(config, {name: array.shape for name, array in tensors.items()})
    except (OSError, SafetensorError, TypeError, SpecError) as error:
        raise CheckpointError(
            f"{path.name} must hold the transformer its manifest describes",
            received=str(error),
            fix="Build the bundle again.",
        ) from error
    for name, array in tensors.items():
        expected = record.tensors.get(name)
        if expected is None or hashlib.sha256(array.tobytes()).hexdigest() != expected.sha256:
            raise CheckpointError(
                f"tensor {name!r} of {path.name} must have the hash in the manifest",
                received="another" if expected else "no record of it",
                fix="Build the bundle again.",
            )
    return config, tensors
