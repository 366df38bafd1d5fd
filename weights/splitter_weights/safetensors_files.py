"""Files of safetensors in memory: the header first, within bounds, then the tensors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError

from splitter.errors import CheckpointError
from splitter.plan.schema import readable

_MOST_HEADER = 2**20  # the released model has 60 KB


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    dtype: Literal["F64", "F32", "F16", "BF16"]
    shape: list[Annotated[int, Field(ge=0, le=2**40)]] = Field(max_length=8)
    data_offsets: list[Annotated[int, Field(ge=0)]] = Field(min_length=2, max_length=2)


class _Tensors(RootModel[dict[str, _Tensor]]):
    pass


class _Metadata(RootModel[dict[str, str]]):
    model_config = ConfigDict(strict=True)


def header(data: bytes, name: str) -> Header:
    """The header of a whole file's bytes.

    Raises:
        CheckpointError: It is truncated, longer than any model needs, or says something else than names, types, shapes
            and places of floating-point tensors.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise CheckpointError(f"{name} is truncated, or no safetensors file", received=f"{len(data):,} bytes")
    if size > _MOST_HEADER:
        raise CheckpointError(
            f"{name} has too long a header", expected=f"at most {_MOST_HEADER:,} bytes", received=f"{size:,}"
        )
    content = json_value(data[8 : 8 + size], f"the header of {name}")
    try:
        metadata = _Metadata.model_validate(content.pop("__metadata__", {}) if isinstance(content, dict) else {}).root
        tensors = _Tensors.model_validate(content).root
    except ValidationError as error:
        raise CheckpointError(
            f"the header of {name} does not describe tensors of a model", received=readable(error)[:400]
        ) from error
    return Header(metadata, {key: tuple(tensor.shape) for key, tensor in tensors.items()})


def tensors(data: bytes, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a whole file's bytes, whose header was inspected.

    Raises:
        CheckpointError: Their places overlap, leave gaps or lie outside the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return safetensors.torch.load(data)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{name} is damaged", received=str(error)[:200] or repr(error)) from error


def json_value(text: str | bytes, what: str) -> Any:
    """A JSON value of a file from a stranger; the parser bounds its nesting and the digits of its integers."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise CheckpointError(f"{what} cannot be read as JSON", received=str(error)[:200]) from error
