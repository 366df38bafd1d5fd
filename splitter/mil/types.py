"""Types of the Model Intermediate Language, and how their values are held in torch.

Element types that torch lacks, or computes little in, are held in a wider one: ``uint16`` in int32, the
sub-byte integers in a byte. The declared type decides what a value may be; the held type only carries it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

Shape: TypeAlias = tuple[int | None, ...]  # None: known only when it runs


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes:
        name: As Core ML Tools spells it in text, e.g. ``"fp16"``.
        held: The torch type that carries it.
        numpy: What a caller is given.
        bits: Size in a weight file.
    """

    name: str
    held: torch.dtype
    numpy: type[np.generic]
    bits: int

    @property
    def is_float(self) -> bool:
        return self.held.is_floating_point

    @property
    def is_integer(self) -> bool:
        return not self.is_float and self.name not in ("bool", "string")

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        signed = not self.name.startswith("u")
        return (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if signed else (0, (1 << self.bits) - 1)

    def __str__(self) -> str:
        return self.name


# By the number in MIL.proto's DataType.
DTYPES: dict[int, DType] = {
    1: DType("bool", torch.bool, np.bool_, 8),
    2: DType("string", torch.uint8, np.str_, 0),
    10: DType("fp16", torch.float16, np.float16, 16),
    11: DType("fp32", torch.float32, np.float32, 32),
    12: DType("fp64", torch.float64, np.float64, 64),
    13: DType("bf16", torch.bfloat16, np.float32, 16),
    21: DType("int8", torch.int8, np.int8, 8),
    22: DType("int16", torch.int16, np.int16, 16),
    23: DType("int32", torch.int32, np.int32, 32),
    24: DType("int64", torch.int64, np.int64, 64),
    25: DType("int4", torch.int8, np.int8, 4),
    31: DType("uint8", torch.uint8, np.uint8, 8),
    32: DType("uint16", torch.int32, np.uint16, 16),
    33: DType("uint32", torch.int64, np.uint32, 32),
    34: DType("uint64", torch.int64, np.uint64, 64),
    35: DType("uint4", torch.uint8, np.uint8, 4),
    36: DType("uint2", torch.uint8, np.uint8, 2),
    37: DType("uint1", torch.uint8, np.uint8, 1),
    38: DType("uint6", torch.uint8, np.uint8, 6),
    39: DType("uint3", torch.uint8, np.uint8, 3),
    40: DType("fp8e4m3fn", torch.float8_e4m3fn, np.float32, 8),
    41: DType("fp8e5m2", torch.float8_e5m2, np.float32, 8),
}
BY_NAME: dict[str, DType] = {dtype.name: dtype for dtype in DTYPES.values()}


@dataclass(frozen=True)
class TensorType:
    """A tensor, or a scalar where the shape is empty."""

    dtype: DType
    shape: Shape

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if extent is None else str(extent) for extent in self.shape)}]"


@dataclass(frozen=True)
class ListType:
    element: TensorType
    length: int | None


@dataclass(frozen=True)
class StateType:
    wrapped: TensorType


@dataclass(frozen=True)
class DictionaryType:
    key: TensorType
    value: TensorType


ValueType: TypeAlias = TensorType | ListType | StateType | DictionaryType
