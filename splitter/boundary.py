"""The contract at a boundary: what each handed-over tensor is called, looks like and must satisfy."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .errors import BoundaryError
from .names import Name

Array: TypeAlias = NDArray[Any]
INPUT, OUTPUT = "input", "output"  # producer of what the model is given, consumer of what it gives


class Fold(BaseModel):
    """How a long last axis crosses a package's boundary: row after row, zeros behind the end.

    Attributes:
        length: Samples in all.
        rows: How many rows they make.
        columns: Samples in a row; ``rows × columns`` is no less than the length.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int = Field(gt=0)
    rows: int = Field(gt=0)
    columns: int = Field(gt=0)

    @model_validator(mode="after")
    def _holds(self) -> Fold:
        if self.rows * self.columns < self.length:
            raise ValueError(f"{self.rows} rows of {self.columns} do not hold {self.length} samples")
        return self

    def fold(self, array: Array) -> Array:
        """(…, length) → (…, rows, columns)."""
        missing = self.rows * self.columns - self.length
        filled = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])
        return filled.reshape(*array.shape[:-1], self.rows, self.columns)

    def unfold(self, array: Array) -> Array:
        """(…, rows, columns) → (…, length)."""
        return array.reshape(*array.shape[:-2], self.rows * self.columns)[..., : self.length]


_NUMBERS = r"^(bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128))$"  # types that NumPy and torch both have


class Return(BaseModel):
    """What a model's forward returns at one place of the structure that it returns.

    Attributes:
        path: Where, e.g. ``"hidden.0"``; empty where forward returns a single value.
        tensor: The boundary tensor that lies there; the same one may lie at several places, and be one of the inputs.
            Empty for a constant.
        constant: What lies there where it is no tensor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    tensor: Name | Literal[""] = ""
    constant: bool | int | float | str | None = None


class TensorSpec(BaseModel):
    """One tensor handed from a segment to later ones.

    Attributes:
        name: Semantic and stable, the same in packages, manifest, goldens and reports.
        shape: Static extents.
        dtype: NumPy's name of the element type.
        layout: einops axes, e.g. ``"b c f t"``; empty where the plan gives none.
        producer: Segment that computes it; ``"input"`` for the model's own inputs.
        consumers: Segments that read it, in order; ``"output"`` for the model's own outputs.
        about: One phrase for people, from the plan.
        fold: How packages take and give it where its last axis is long; None where they do as it is. Between
            segments, and in goldens, it has its `shape` in any case: whoever runs a package folds and unfolds.
        packaged_dtype: Element type in which packages take and give it, where that is not `dtype`: arrays of Core ML
            hold neither int64 nor truths, and packages have int32 for both. Whoever runs a package converts.
        bytes: Size, from shape and dtype.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: Annotated[str, Field(pattern=_NUMBERS)]
    layout: str = ""
    producer: Name
    consumers: tuple[Name, ...]
    about: str = ""
    fold: Fold | None = None
    packaged_dtype: Annotated[str, Field(pattern=_NUMBERS)] | None = None
    bytes: int = -1

    @model_validator(mode="after")
    def _sized(self) -> TensorSpec:
        size = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if self.bytes not in (-1, size):
            raise ValueError(f"{self.name} holds {size} bytes, not {self.bytes}")
        if self.fold is not None and self.shape[-1:] != (self.fold.length,):
            raise ValueError(f"{self.name} has the shape {self.shape}, and folded as if {self.fold.length}")
        object.__setattr__(self, "bytes", size)
        return self

    @property
    def packaged_shape(self) -> tuple[int, ...]:
        """Extents inside a package, where every tensor has an axis."""
        if not self.shape:
            return (1,)
        return self.shape if self.fold is None else (*self.shape[:-1], self.fold.rows, self.fold.columns)

    def packaged(self, array: Array) -> Array:
        """The tensor as packages take and give it.

        Raises:
            BoundaryError: An integer is beyond the packages' type.
        """
        if self.packaged_dtype is not None and array.dtype != np.dtype(self.packaged_dtype):
            bounds = np.iinfo(self.packaged_dtype)
            if array.dtype.kind in "iu" and array.size and not bounds.min <= array.min() <= array.max() <= bounds.max:
                raise BoundaryError(
                    f"tensor {self.name!r} holds integers that packages cannot take",
                    expected=f"{bounds.min} to {bounds.max} ({self.packaged_dtype})",
                    received=f"{array.min()} to {array.max()}",
                )
            array = array.astype(self.packaged_dtype)
        if not self.shape:
            return array.reshape(self.packaged_shape)
        return array if self.fold is None else self.fold.fold(array)

    def unpackaged(self, array: Array) -> Array:
        """The inverse."""
        if self.packaged_dtype is not None:
            array = array.astype(self.dtype)
        if not self.shape:
            return array.reshape(())
        return array if self.fold is None else self.fold.unfold(array)

    @property
    def element(self) -> str:
        """NumPy's name of the element type inside a package."""
        return self.packaged_dtype or self.dtype

    def with_dtype(self, dtype: str) -> TensorSpec:
        return TensorSpec(**{**self.model_dump(exclude={"bytes"}), "dtype": dtype})

    def with_packaged_dtype(self, dtype: str) -> TensorSpec:
        return TensorSpec(**{**self.model_dump(), "packaged_dtype": dtype})

    def with_fold(self, fold: Fold) -> TensorSpec:
        return TensorSpec(**{**self.model_dump(), "fold": fold})


def check(spec: TensorSpec, array: Array, *, at: str) -> None:
    """Hold an array against its spec: shape, dtype, and no NaN or infinity.

    Args:
        at: Where it was seen, for the message, e.g. ``"leaving encoder"``.

    Raises:
        BoundaryError: On the first property that differs.
    """
    if array.shape != spec.shape:
        raise BoundaryError(
            f"tensor {spec.name!r} {at} has another shape",
            expected=spec.shape,
            received=array.shape,
            fix="The engine and the bundle come from different builds, or the input is not one segment long.",
        )
    if array.dtype != np.dtype(spec.dtype):
        raise BoundaryError(
            f"tensor {spec.name!r} {at} has another dtype",
            expected=spec.dtype,
            received=array.dtype,
            fix="Cast it before handing it over.",
        )
    if not is_finite(array):
        broken = np.flatnonzero(~np.isfinite(array))
        first = tuple(int(i) for i in np.unravel_index(broken[0], array.shape))
        raise BoundaryError(
            f"tensor {spec.name!r} {at} is not finite",
            received=f"NaN or infinity in {broken.size} of {array.size} values, the first at {first}",
            fix="Look for overflow in half precision, or for NaN in the input.",
        )


def is_finite(array: Array) -> bool:
    """True if no element is NaN or infinite.

    A sum is not finite if any term is not, and reads the array once without a mask as large as it;
    only a sum that overflowed by itself needs the element-wise look.
    """
    if array.dtype.kind not in "fc":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())
