"""Inputs and outputs as callers know them: arrays, numbers, images; and as the interpreter takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import OperationError, UsageError
from .memory import Ledger, counted
from .ops import check_result_size
from .program import Function
from .types import BY_NAME, StateType, TensorType

Array: TypeAlias = NDArray[Any]
# ArrayFeatureType's numbers for what MIL.proto numbers in its own way.
_ARRAY_DTYPES = {65568: "fp32", 65552: "fp16", 65600: "fp64", 131104: "int32", 131080: "int8"}
_COLOURS = {10: "grayscale", 20: "RGB", 30: "BGR", 40: "grayscale16"}


@dataclass(frozen=True)
class Feature:
    """One input or output, as the package's description has it.

    Attributes:
        dtype: e.g. ``"fp32"``; what a caller hands over or is handed.
        shape: Default extents; for images height and width.
        image: ``"RGB"``, ``"BGR"``, ``"grayscale"``, ``"grayscale16"``; empty for arrays.
        optional: It may be left out (zero then, or its default).
        shapes: All shapes it may have, where the package lists them; of an image, height and width.
        bounds: Least and greatest extents, where the package gives ranges.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    description: str = ""
    image: str = ""
    optional: bool = False
    default: float = 0.0
    shapes: tuple[tuple[int, ...], ...] = ()
    bounds: tuple[tuple[int, int], ...] = ()

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether the description allows these extents. An upper bound below zero is none."""
        if self.shapes:
            return shape in self.shapes
        if not self.bounds:
            return True
        return len(shape) == len(self.bounds) and all(
            low <= extent and (high < 0 or extent <= high)
            for extent, (low, high) in zip(shape, self.bounds, strict=True)
        )


def described(proto: Any, function: Function) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
    """Inputs and outputs of a function, by its description in the package."""
    description = proto.description
    for entry in description.functions:
        if entry.name == function.name:
            description = entry
    inputs = tuple(_feature(feature) for feature in description.input)
    return inputs, tuple(_feature(feature) for feature in description.output)


def _feature(feature: Any) -> Feature:
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        image = feature.type.imageType
        colour = _COLOURS.get(image.colorSpace, "RGB")
        usual = (image.height, image.width)
        sizes = tuple((size.height, size.width) for size in image.enumeratedSizes.sizes)
        limits = image.imageSizeRange.heightRange, image.imageSizeRange.widthRange
        ranged = image.WhichOneof("SizeFlexibility") == "imageSizeRange"
        return Feature(
            feature.name,
            usual,
            "uint8",
            feature.shortDescription,
            colour,
            feature.type.isOptional,
            shapes=sizes or (() if ranged else (usual,)),
            bounds=tuple((limit.lowerBound, limit.upperBound) for limit in limits) if ranged else (),
        )
    if kind == "multiArrayType":
        array = feature.type.multiArrayType
        shape = tuple(array.shape)
        if not shape and array.WhichOneof("ShapeFlexibility") == "enumeratedShapes" and array.enumeratedShapes.shapes:
            shape = tuple(array.enumeratedShapes.shapes[0].shape)
        default = array.WhichOneof("defaultOptionalValue")
        value = float(getattr(array, default)) if default else 0.0
        name = _ARRAY_DTYPES.get(array.dataType, "fp32")
        return Feature(
            feature.name,
            shape,
            name,
            feature.shortDescription,
            "",
            feature.type.isOptional,
            value,
            shapes=tuple(tuple(known.shape) for known in array.enumeratedShapes.shapes),
            bounds=tuple((limit.lowerBound, limit.upperBound) for limit in array.shapeRange.sizeRanges),
        )
    return Feature(feature.name, (), str(kind), feature.shortDescription, "", feature.type.isOptional)


def taken(features: tuple[Feature, ...], function: Function, data: Mapping[str, Any], package: str) -> dict[str, Any]:
    """A caller's data as tensors in the function's declared types.

    Raises:
        UsageError: Something is missing, unknown, or of another shape.
    """
    declared = {named.name: named.type for named in function.inputs if not isinstance(named.type, StateType)}
    known = {feature.name: feature for feature in features}
    if unknown := sorted(data.keys() - declared.keys()):
        raise UsageError(f"{package} has no input {', '.join(unknown)}", expected=", ".join(declared))
    values: dict[str, Any] = {}
    ledger = Ledger()
    for name, kind in declared.items():
        feature = known.get(name)
        if not isinstance(kind, TensorType):
            raise UsageError(f"input {name!r} of {package} is no tensor", received=kind)
        if name not in data:
            if feature is None or not feature.optional:
                raise UsageError(f"input {name!r} of {package} is missing")
            with counted(ledger):
                values[name] = _default(feature, kind)
        elif feature is not None and feature.image:
            values[name] = _from_image(data[name], feature, kind)
        else:
            values[name] = as_tensor(data[name], kind, name)
            if feature is not None and not feature.accepts(tuple(values[name].shape)):
                allowed = feature.shapes or " × ".join(
                    f"{low}…{high if high >= 0 else ''}" for low, high in feature.bounds
                )
                raise UsageError(
                    f"input {name!r} of {package} has a shape that it does not take",
                    expected=allowed,
                    received=tuple(values[name].shape),
                )
        ledger.hold(values[name])
    return values


def _default(feature: Feature, kind: TensorType) -> Tensor:
    """The value of an optional input that is not given."""
    shape = feature.shape if len(feature.shape) == len(kind.shape) else (-1,) * len(kind.shape)
    shape = tuple(given if fixed is None else fixed for fixed, given in zip(kind.shape, shape, strict=True))
    check_result_size(shape, kind.dtype.held)
    return torch.full(shape, feature.default).to(kind.dtype.held)


def as_tensor(value: Any, kind: TensorType, name: str) -> Tensor:
    """An array or a number in a declared type.

    Raises:
        UsageError: It has another shape, or is no array of numbers.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"elements of type {array.dtype}")
        if array.dtype.kind == "u" and array.itemsize > 1:  # torch computes little in these
            array = array.astype(np.int64)
        plain = array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
        tensor = torch.from_numpy(array if plain else array.copy())
    except (TypeError, ValueError) as error:
        raise UsageError(f"input {name!r} is no array of numbers", received=str(error)) from error
    _check_shape(tensor, kind, name)
    return tensor.to(kind.dtype.held)


def _check_shape(tensor: Tensor, kind: TensorType, name: str) -> None:
    if tensor.ndim != len(kind.shape) or any(
        fixed is not None and fixed != got for fixed, got in zip(kind.shape, tensor.shape, strict=True)
    ):
        raise UsageError(f"input {name!r} has another shape", expected=kind, received=f"shape {tuple(tensor.shape)}")


def as_array(tensor: Tensor, kind: TensorType) -> Array:
    """A tensor in the type its declaration promises."""
    if kind.dtype.numpy is np.float32 and tensor.dtype != torch.float32:
        tensor = tensor.to(torch.float32)
    return np.ascontiguousarray(tensor.numpy()).astype(kind.dtype.numpy, copy=False)


def given(features: tuple[Feature, ...], function: Function, results: Mapping[str, Any]) -> dict[str, Any]:
    """Results as a caller takes them, in the order of the description."""
    types = _result_types(function)
    order = [feature.name for feature in features if feature.name in results] or list(results)
    order += [name for name in results if name not in order]
    known = {feature.name: feature for feature in features}
    outputs = {}
    for name in order:
        value, feature = results[name], known.get(name)
        if not isinstance(value, Tensor):
            outputs[name] = value
        elif feature is not None and feature.image:
            outputs[name] = _to_image(value, feature)
        else:
            array = as_array(value, types[name])
            described = None if feature is None else BY_NAME.get(feature.dtype)
            outputs[name] = array if described is None else array.astype(described.numpy, copy=False)
    return outputs


def _result_types(function: Function) -> dict[str, TensorType]:
    kinds = {named.name: named.type for named in function.inputs}
    kinds |= {output.name: output.type for operation in function.block.operations for output in operation.outputs}
    return {name: kind for name in function.block.outputs if isinstance(kind := kinds[name], TensorType)}


# ----------------------------------------------------------------------------------------- images


def _from_image(value: Any, feature: Feature, kind: TensorType) -> Tensor:
    """A PIL image, or an array of its pixels, as channels first, pixels 0…255; its size must be the package's."""
    height, width = feature.shape
    if isinstance(value, np.ndarray):
        value = _pictured(value, feature)
    try:
        size, mode = tuple(value.size), value.mode
    except (AttributeError, TypeError) as error:
        raise UsageError(f"input {feature.name!r} is no PIL image", received=type(value).__name__) from error
    if not feature.accepts(size[::-1]):
        raise UsageError(
            f"input {feature.name!r} is an image of another size",
            expected=f"{width}×{height}",
            received=f"{size[0]}×{size[1]}",
        )
    wanted = {"grayscale": "L", "grayscale16": "F"}.get(feature.image, "RGB")
    pixels = np.asarray(value if mode == wanted else value.convert(wanted))
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if feature.image == "BGR":
        planes = planes[::-1]
    tensor = torch.from_numpy(np.array(planes[None], order="C")).to(kind.dtype.held)
    _check_shape(tensor, kind, feature.name)
    return tensor


def pixel_shape(feature: Feature) -> tuple[int | None, ...]:
    """What an array of an image's pixels is, row by row; sizes are another question."""
    return (None, None) if feature.image.startswith("grayscale") else (None, None, 3)


def _pictured(pixels: NDArray[Any], feature: Feature) -> Any:
    """Pixels as a PIL image."""
    dtype = np.float32 if feature.image == "grayscale16" else np.uint8
    shape = pixel_shape(feature)
    if pixels.dtype != dtype or pixels.ndim != len(shape) or pixels.shape[2:] != shape[2:]:
        raise UsageError(
            f"input {feature.name!r} is no {feature.image} image",
            expected=f"height × width{' × 3' if len(shape) == 3 else ''} {np.dtype(dtype)}",
            received=f"{' × '.join(map(str, pixels.shape))} {pixels.dtype}",
        )
    return pillow(f"image input {feature.name!r}").fromarray(np.ascontiguousarray(pixels))


def pillow(what: str) -> Any:
    """The library of images. Raises `UsageError` where it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(f"{what} needs Pillow, which is not installed", fix="pip install pillow") from error
    return Image


def _to_image(value: Tensor, feature: Feature) -> Any:
    """Channels first in 0…255 as a PIL image: rounded, clamped."""
    image_of = pillow(f"image output {feature.name!r}").fromarray
    planes = 1 if feature.image.startswith("grayscale") else 3
    if value.ndim != 4 or value.shape[:2] != (1, planes) or 0 in value.shape:
        raise OperationError(f"image output {feature.name!r} is not one image", received=tuple(value.shape))
    image = value[0].to(torch.float32)
    if feature.image == "grayscale16":
        return image_of(image[0].numpy(), "F")
    pixels = image.round().clamp(0, 255).to(torch.uint8).numpy()
    if feature.image == "grayscale":
        return image_of(pixels[0], "L")
    return image_of(
        np.ascontiguousarray((pixels[::-1] if feature.image == "BGR" else pixels).transpose(1, 2, 0)), "RGB"
    )
