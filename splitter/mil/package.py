"""Facts of a saved ``.mlpackage``, read from its own protobuf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LoweringError
from .coreml_tools import ct

_MULTIARRAY_DTYPES = {65568: "float32", 65552: "float16", 131104: "int32", 65600: "float64", 131080: "int8"}
_MIL_FLOATS = {10: "float16", 11: "float32", 12: "float64"}


@dataclass(frozen=True)
class Feature:
    """One input or output of a package."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    description: str


@dataclass(frozen=True)
class PackageFacts:
    """What a package says about itself.

    Attributes:
        specification_version: Core ML's number for the oldest system that loads it.
        opset: e.g. ``"CoreML7"``.
        operations: Count by operation type, constants left out.
        float_values: How many values the operations compute in each floating dtype, by
            ``(operation type, dtype)``; casts and constants left out.
    """

    specification_version: int
    opset: str
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    operations: Mapping[str, int]
    float_values: Mapping[tuple[str, str], int]
    author: str
    license: str
    version: str
    short_description: str
    user_defined: Mapping[str, str]


def read(path: Path) -> PackageFacts:
    """Read a package's facts.

    Raises:
        LoweringError: It is not a readable package with one ML Program.
    """
    try:
        spec = ct.models.utils.load_spec(str(path))
    except Exception as error:  # Core ML Tools and protobuf raise whatever they raise
        raise LoweringError(
            f"{path.name} must be a readable Core ML package",
            received=str(error) or repr(error),
            fix="Build the bundle again.",
        ) from error
    if spec.WhichOneof("Type") != "mlProgram" or "main" not in spec.mlProgram.functions:
        raise LoweringError(f"{path.name} must hold an ML Program", received=spec.WhichOneof("Type"))
    function = spec.mlProgram.functions["main"]
    operations: Counter[str] = Counter()
    floats: Counter[tuple[str, str]] = Counter()
    for operation in _operations(function.block_specializations[function.opset]):
        if operation.type == "const":
            continue
        operations[operation.type] += 1
        if operation.type == "cast" or operation.type.startswith("constexpr"):
            continue
        for output in operation.outputs:
            dtype = _MIL_FLOATS.get(output.type.tensorType.dataType)
            if dtype:
                floats[operation.type, dtype] += 1
    metadata = spec.description.metadata
    return PackageFacts(
        specification_version=spec.specificationVersion,
        opset=function.opset,
        inputs=tuple(_features(spec.description.input)),
        outputs=tuple(_features(spec.description.output)),
        operations=operations,
        float_values=floats,
        author=metadata.author,
        license=metadata.license,
        version=metadata.versionString,
        short_description=metadata.shortDescription,
        user_defined=dict(metadata.userDefined),
    )


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for nested in operation.blocks:
            yield from _operations(nested)


def _features(descriptions: Any) -> Iterator[Feature]:
    for one in descriptions:
        array = one.type.multiArrayType
        dtype = _MULTIARRAY_DTYPES.get(array.dataType, str(array.dataType))
        yield Feature(one.name, tuple(array.shape), dtype, one.shortDescription)
