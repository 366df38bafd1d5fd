"""The type of one value: its shape and dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and dtype of one value, e.g. ``TensorType((1, 2, 343980), "float32")``."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> TensorType:
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def __str__(self) -> str:
        return f"{'×'.join(map(str, self.shape)) or 'a scalar'} {self.dtype}"

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True, slots=True)
class Constant:
    """An argument that is no tensor, with its type: 1, 1.0 and True are three arguments."""

    kind: type
    value: Any


Tensors: TypeAlias = tuple[TensorType, ...]
Inferred: TypeAlias = TensorType | Tensors
Argument: TypeAlias = TensorType | Constant | tuple["Argument", ...] | None
