"""How a package stores its weights: as they are, as scaled integers, or as indices into palettes. Read off the file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import PackageError
from .interpreter import Interpreter
from .numerics import Numerics
from .program import Block, Function, Operation, Ref
from .types import TensorType

Array: TypeAlias = NDArray[np.generic]
Kind: TypeAlias = Literal["plain", "linear", "palette", "other"]


@dataclass(frozen=True)
class StoredWeight:
    """One floating-point constant.

    Attributes:
        name: The value that operations read.
        shape: Decoded.
        dtype: Decoded, e.g. ``"fp16"``.
        kind: ``plain`` values; integers with scales (``linear``); indices of ``palette`` entries; any ``other`` form.
        bits: Of one stored weight, scales and tables not counted.
        groups: How many scales or palettes there are along each axis; one each means one for the tensor.
        symmetric: Zero is stored as zero.
        sparse: Zeros are not stored, but where they are.
        bytes: Of everything that is stored for it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    bits: int
    groups: tuple[int, ...] = ()
    symmetric: bool = True
    sparse: bool = False
    bytes: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def form(self) -> str:
        """As a plan says it, with what a plan has no word for: ``int8``, ``pal6-groups``, ``int8 in groups (1, 1)``."""
        if self.kind == "plain":
            return "none"
        if self.kind == "palette":
            several = sum(count > 1 for count in self.groups)
            suffix = ("", "-groups")[several] if several < 2 else f" in groups {self.groups}"
            return f"pal{self.bits}{'-sparse' if self.sparse else suffix}"
        if self.kind == "linear":
            channels = [axis for axis, count in enumerate(self.groups) if count > 1]
            whole = [axis for axis in channels if self.groups[axis] == self.shape[axis]]
            granular = "" if len(whole) == len(channels) == 1 or max(self.shape) == 1 else f" in groups {self.groups}"
            if len(whole) == 1 and len(channels) == 2:
                granular = "-blocks"
            return f"int{self.bits}{granular}{'' if self.symmetric else ', asymmetric'}"
        return "other"


def stored_weights(function: Function) -> dict[str, StoredWeight]:
    """The floating-point constants of a function's body by name, those that decompressions read left out."""
    constants: dict[str, Any] = {}
    producers: dict[str, Operation] = {}
    found: dict[str, StoredWeight] = {}
    for operation in function.block.operations:
        if operation.type == "const":
            constants[operation.name] = operation.attributes["val"]
        elif operation.type.startswith("constexpr"):
            read = {argument.name for argument in _arguments(operation) if isinstance(argument, Ref)}
            for name in read & found.keys():
                del found[name]
            producers |= {output.name: operation for output in operation.outputs}
        kind = operation.outputs[0].type if operation.outputs else None
        if isinstance(kind, TensorType) and kind.dtype.is_float:
            if operation.type == "const":
                shape = _shape(kind)
                size = math.prod(shape) * kind.dtype.bits // 8
                found[operation.name] = StoredWeight(
                    operation.name, shape, kind.dtype.name, "plain", kind.dtype.bits, bytes=size
                )
            elif operation.type.startswith("constexpr"):
                found[operation.name] = _decompressed(operation, kind, constants, producers)
    return found


def decoded(function: Function, names: Collection[str]) -> dict[str, Array]:
    """Values of some of a function's constants, decompressed where they are compressed.

    Raises:
        OperationError: One cannot be decompressed.
        PackageError: One is not there.
    """
    fixed = tuple(
        operation
        for operation in function.block.operations
        if operation.type == "const" or operation.type.startswith("constexpr")
    )
    if missing := sorted(set(names) - {output.name for operation in fixed for output in operation.outputs}):
        raise PackageError(f"function {function.name!r} has no constant {missing[0]!r}")
    alone = Function(function.name, function.opset, (), Block((), fixed, tuple(names)))
    values = Interpreter(alone, function.name, Numerics(), max_iterations=1).run({}, {}, generator=torch.Generator())
    return {name: value.numpy() for name, value in values.items()}


def _arguments(operation: Operation) -> Iterator[Any]:
    yield from operation.attributes.values()
    for many in operation.inputs.values():
        yield from many


def _given(operation: Operation, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a decompression, None for what another one computes."""
    return dict(operation.attributes) | {
        key: constants.get(many[0].name) if isinstance(many[0], Ref) else many[0]
        for key, many in operation.inputs.items()
    }


def _decompressed(
    operation: Operation, kind: TensorType, constants: Mapping[str, Any], producers: Mapping[str, Operation]
) -> StoredWeight:
    given = _given(operation, constants)
    shape = _shape(kind)
    elements, mask, sparse = math.prod(shape), 0, False
    if operation.type == "constexpr_sparse_to_dense" and given["nonzero_data"] is None:
        source = producers.get(operation.inputs["nonzero_data"][0].name)
        if source is not None and source.type == "constexpr_lut_to_sparse":
            given = _given(source, constants)
            indices = given["indices_nonzero_data"]
            if isinstance(indices, Tensor) and isinstance(given["lut"], Tensor):
                elements, mask, sparse = indices.numel(), -(-math.prod(shape) // 8), True
    described: tuple[Kind, int, tuple[int, ...], bool] = ("other", 0, (), True)
    if operation.type == "constexpr_affine_dequantize":
        data, scale = given["quantized_data"], given["scale"]
        axis = int(given["axis"]) % len(shape)
        groups = tuple(scale.numel() if place == axis else 1 for place in range(len(shape)))
        described = ("linear", _bits(data), groups, not bool(given["zero_point"].any()))
    elif operation.type == "constexpr_blockwise_shift_scale" and isinstance(given["data"], Tensor):
        offset = given.get("offset")
        symmetric = offset is None or not bool(offset.any())
        described = ("linear", _bits(given["data"]), tuple(given["scale"].shape), symmetric)
    elif sparse or (operation.type == "constexpr_lut_to_dense" and isinstance(given["lut"], Tensor)):
        table = given["lut"]
        entries = table.shape[-2] if table.ndim > 1 else len(table)
        groups = tuple(table.shape[:-2]) if table.ndim > 1 else (1,) * len(shape)
        described = ("palette", (entries - 1).bit_length(), groups, True)
    _, bits, *_ = described
    stored = -(-elements * bits // 8) + mask
    beside = sum(
        value.numel() * value.element_size()
        for key, value in given.items()
        if key in ("scale", "zero_point", "offset", "lut") and isinstance(value, Tensor)
    )
    return StoredWeight(operation.name, shape, kind.dtype.name, *described, sparse, bytes=stored + beside)


def _bits(data: Tensor) -> int:
    """Width of the narrowest integers that hold all of these: of eight bits, symmetric scales use all."""
    return 8 if bool((data.int().abs() > 8).any()) else 4


def _shape(kind: TensorType) -> tuple[int, ...]:
    return tuple(int(extent or 0) for extent in kind.shape)
