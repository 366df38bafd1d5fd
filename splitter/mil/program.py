"""A saved ML Program in memory, read from a package with every claim checked.

The protobuf is Core ML Tools'; nothing of it leaves this module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from pydantic_core import from_json
from torch import Tensor

from .. import limits
from ..errors import PackageError, SplitterError
from ..reading import Read
from . import ops
from .blob import BlobFile, decoded
from .coreml_tools import ct
from .memory import Ledger
from .types import DTYPES, DictionaryType, DType, ListType, Shape, StateType, TensorType, ValueType

MODEL_PATH = "@model_path/"
# Beyond these a number is a mistake or an attack.
_MAX_DEPTH = 32  # of nested blocks
_MAX_RANK = 16
_MAX_VALUE_BYTES = 1 << 36
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_MODEL_BYTES = (1 << 31) - 1  # protobuf's own limit
_PARSED = 32  # bytes in memory for each of a program of small operations; weights lie in other files
_OPSET = re.compile(r"CoreML([5-9]|[1-9]\d)")
_FIX = "The package is damaged: copy or save it again."


@dataclass(frozen=True)
class Ref:
    """A value that an earlier operation or an input gives, by name."""

    name: str


# A constant: a tensor, a string, or a list or dictionary of these.
Constant: TypeAlias = Any
Argument: TypeAlias = Ref | Constant


@dataclass(frozen=True)
class NamedType:
    name: str
    type: ValueType


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        type: e.g. ``"conv"``.
        inputs: Arguments by parameter; a variadic parameter has several.
        outputs: Names and declared types of its results.
        blocks: Bodies of control flow.
        attributes: Constants attached to it (``val`` of a const, payloads of constexpr operations).
    """

    type: str
    inputs: Mapping[str, tuple[Argument, ...]]
    outputs: tuple[NamedType, ...]
    blocks: tuple[Block, ...] = ()
    attributes: Mapping[str, Constant] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its first result, which is how people find it."""
        return self.outputs[0].name if self.outputs else self.type


@dataclass(frozen=True)
class Block:
    inputs: tuple[NamedType, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """One entry point of a package.

    Attributes:
        name: e.g. ``"main"``.
        opset: e.g. ``"CoreML7"``.
        inputs: Inputs and states, with their declared types.
    """

    name: str
    opset: str
    inputs: tuple[NamedType, ...]
    block: Block


def read_by(operation: Operation) -> Iterator[Argument]:
    """All that an operation reads, in its bodies too."""
    yield from (argument for many in operation.inputs.values() for argument in many)
    for block in operation.blocks:
        for inner in block.operations:
            yield from read_by(inner)
        yield from map(Ref, block.outputs)


def functions_of(path: Path, spec: Any, read: Read = Path.read_bytes) -> dict[str, Function]:
    """Read all functions of a package.

    Args:
        path: The ``.mlpackage`` directory.
        spec: Its parsed protobuf.
        read: Gives the content of its weight files.

    Raises:
        PackageError: It is not an ML Program, or some part of it is not what another part says.
    """
    if spec.WhichOneof("Type") != "mlProgram":
        raise PackageError(
            f"{path.name} holds no ML Program",
            received=spec.WhichOneof("Type"),
            fix="Convert with convert_to='mlprogram'.",
        )
    reader = _Reader(path, read)
    functions = {name: reader.function(name, function) for name, function in spec.mlProgram.functions.items()}
    if not functions:
        raise PackageError(f"{path.name} holds no function")
    return functions


class _Reader:
    def __init__(self, package: Path, read: Read) -> None:
        self._package, self._read = package, read
        model_file(package, read)
        self._root = (package / "Data" / _model_name(package, read)).parent  # where it lies, wherever its link leads
        self._blobs: dict[Path, BlobFile] = {}
        self._ledger = Ledger()

    def function(self, name: str, function: Any) -> Function:
        if not _OPSET.fullmatch(function.opset):
            raise self._broken(f"opset of function {name!r}", f"{function.opset!r}")
        if function.opset not in function.block_specializations:
            raise self._broken(f"function {name!r}", f"no body for its opset {function.opset}")
        body = function.block_specializations[function.opset]
        if body.inputs:
            raise self._broken(f"body of function {name!r}", "inputs beside the function's own")
        if len(set(body.outputs)) != len(body.outputs):
            raise self._broken(f"outputs of function {name!r}", f"one of them twice: {', '.join(body.outputs)}")
        known: set[str] = set()
        inputs = tuple(self._introduced(named, known) for named in function.inputs)
        return Function(name, function.opset, inputs, self._block(body, known, 0))

    def _block(self, block: Any, known: set[str], depth: int) -> Block:
        """Read a block; the names it introduces are known while it is read."""
        if depth > _MAX_DEPTH:
            raise self._broken("nesting of blocks", f"more than {_MAX_DEPTH} levels")
        inputs = tuple(self._introduced(named, known) for named in block.inputs)
        operations = tuple(self._operation(operation, known, depth) for operation in block.operations)
        for name in block.outputs:
            if name not in known:
                raise self._broken(f"output {name!r}", "nothing computes it")
        known.difference_update(named.name for named in inputs)
        known.difference_update(output.name for operation in operations for output in operation.outputs)
        return Block(inputs, operations, tuple(block.outputs))

    def _introduced(self, named: Any, known: set[str]) -> NamedType:
        """A value that has its name from here on."""
        read = self._named_type(named)
        if read.name in known:
            raise self._broken(f"value {read.name!r}", "computed twice")
        known.add(read.name)
        return read

    def _operation(self, operation: Any, known: set[str], depth: int) -> Operation:
        where = operation.outputs[0].name if operation.outputs else operation.type
        inputs = {
            key: tuple(self._binding(binding, known, where) for binding in argument.arguments)
            for key, argument in operation.inputs.items()
        }
        attributes = {key: self._value(value, where) for key, value in operation.attributes.items() if key != "name"}
        if both := sorted(inputs.keys() & attributes.keys()):
            raise self._broken(f"{operation.type} {where!r}", f"parameter {both[0]!r} twice")
        blocks = tuple(self._block(body, known, depth + 1) for body in operation.blocks)
        record = ops.find(operation.type, ops.OPSETS[-1])
        if record is not None and record.traits.blocks not in (None, len(blocks)):
            raise self._broken(f"{operation.type} {where!r}", f"{len(blocks)} blocks")
        outputs = tuple(self._introduced(output, known) for output in operation.outputs)
        if operation.type == "const":
            self._check_constant(operation, outputs, where)
        return Operation(operation.type, inputs, outputs, blocks, attributes)

    def _check_constant(self, operation: Any, outputs: tuple[NamedType, ...], where: str) -> None:
        if len(outputs) != 1 or "val" not in operation.attributes:
            raise self._broken(f"constant {where!r}", "not one name and one value")
        kind = self._type(operation.attributes["val"].type, where)
        if kind != outputs[0].type:
            raise self._broken(f"constant {where!r}", f"a value of type {kind} declared {outputs[0].type}")

    def _binding(self, binding: Any, known: set[str], where: str) -> Argument:
        if binding.WhichOneof("binding") == "name":
            if binding.name not in known:
                raise self._broken(f"argument {binding.name!r} of {where!r}", "no earlier operation computes it")
            return Ref(binding.name)
        return self._value(binding.value, where)

    # ------------------------------------------------------------------------------------- types

    def _named_type(self, named: Any) -> NamedType:
        if not named.name:
            raise self._broken("a value", "it has no name")
        return NamedType(named.name, self._type(named.type, named.name))

    def _type(self, value_type: Any, where: str) -> ValueType:
        match value_type.WhichOneof("type"):
            case "tensorType":
                return self._tensor_type(value_type.tensorType, where)
            case "listType":
                element = self._type(value_type.listType.type, where)
                length = value_type.listType.length
                fixed = length.constant.size if length.WhichOneof("dimension") == "constant" else None
                if isinstance(element, TensorType):
                    return ListType(element, fixed)
            case "stateType":
                wrapped = self._type(value_type.stateType.wrappedType, where)
                if isinstance(wrapped, TensorType):
                    return StateType(wrapped)
            case "dictionaryType":
                key = self._type(value_type.dictionaryType.keyType, where)
                value = self._type(value_type.dictionaryType.valueType, where)
                if isinstance(key, TensorType) and isinstance(value, TensorType):
                    return DictionaryType(key, value)
        raise self._broken(f"type of {where!r}", f"a {value_type.WhichOneof('type')} splitter does not know")

    def _tensor_type(self, tensor: Any, where: str) -> TensorType:
        if tensor.dataType not in DTYPES:
            raise self._broken(f"type of {where!r}", f"element type {tensor.dataType}")
        if tensor.rank != len(tensor.dimensions):
            raise self._broken(f"type of {where!r}", f"rank {tensor.rank} with {len(tensor.dimensions)} extents")
        shape: Shape = tuple(
            extent.constant.size if extent.WhichOneof("dimension") == "constant" else None
            for extent in tensor.dimensions
        )
        dtype = DTYPES[tensor.dataType]
        # An extent of 0 makes the others no smaller; -1 arrives as the largest unsigned number.
        size = math.prod(extent or 1 for extent in shape) * max(dtype.bits, 8)
        if len(shape) > _MAX_RANK or size > 8 * _MAX_VALUE_BYTES:
            raise self._broken(f"type of {where!r}", f"extents {shape}")
        return TensorType(dtype, shape)

    # ------------------------------------------------------------------------------------ values

    def _value(self, value: Any, where: str) -> Constant:
        kind = self._type(value.type, where)
        if value.WhichOneof("value") == "blobFileValue":
            if not isinstance(kind, TensorType):
                raise self._broken(f"value {where!r}", "a list in a weight file")
            stored = value.blobFileValue
            return self._blob(stored.fileName, where).read(stored.offset, kind.dtype, self._fixed(kind, where), where)
        immediate = value.immediateValue
        match immediate.WhichOneof("value"):
            case "tensor" if isinstance(kind, TensorType):
                return self._tensor(immediate.tensor, kind, where)
            case "list" if isinstance(kind, ListType):
                return self._list(immediate.list.values, kind, where)
            case "dictionary" if isinstance(kind, DictionaryType):
                pairs = [(self._value(p.key, where), self._value(p.value, where)) for p in immediate.dictionary.values]
                if odd := [key for key, _ in pairs if not isinstance(key, str) and getattr(key, "shape", None) != ()]:
                    raise self._broken(f"value {where!r}", f"a {type(odd[0]).__name__} for a dictionary's key")
                return {key.item() if isinstance(key, Tensor) else key: item for key, item in pairs}
        raise self._broken(f"value {where!r}", f"a {immediate.WhichOneof('value')} for {kind}")

    def _list(self, values: Any, kind: ListType, where: str) -> list[Constant]:
        if kind.length not in (None, len(values)):
            raise self._broken(f"value {where!r}", f"a list of {len(values)} for one of {kind.length}")
        for item in values:  # a list of int64 holds int32: Core ML Tools writes Python's integers so
            got, element = self._type(item.type, where), kind.element
            if (
                not isinstance(got, TensorType)
                or got.shape != element.shape
                or (got.dtype.name == "string") != (element.dtype.name == "string")
            ):
                raise self._broken(f"value {where!r}", f"a list of {element} with a {got}")
        return [self._value(item, where) for item in values]

    def _tensor(self, tensor: Any, kind: TensorType, where: str) -> Tensor | str | list[str]:
        shape, dtype = self._fixed(kind, where), kind.dtype
        count = math.prod(shape)
        field_name = tensor.WhichOneof("value")
        values: Any = getattr(tensor, field_name).values if field_name else ()
        if field_name not in (None, *_fields(dtype)):
            raise self._broken(f"value {where!r}", f"{field_name} for {kind}")
        if field_name == "bytes":
            if len(values) != -(-count * dtype.bits // 8):
                raise self._broken(f"value {where!r}", f"{len(values)} bytes for {kind}")
            return decoded(values, dtype, shape)
        if len(values) != count:
            raise self._broken(f"value {where!r}", f"{len(values)} values for {kind}")
        if dtype.name == "string":
            return list(values) if shape else str(values[0])
        numbers = np.fromiter(values, np.float64 if dtype.is_float else np.int64, count)
        if dtype.is_integer and count:
            least, most = dtype.bounds
            if int(numbers.min()) < least or int(numbers.max()) > most:
                raise self._broken(f"value {where!r}", f"numbers from {numbers.min()} to {numbers.max()} for {kind}")
        return torch.from_numpy(numbers).to(dtype.held).reshape(shape)

    def _fixed(self, kind: TensorType, where: str) -> tuple[int, ...]:
        if any(extent is None for extent in kind.shape):
            raise self._broken(f"value {where!r}", f"a constant of type {kind}")
        return tuple(int(extent) for extent in kind.shape if extent is not None)

    def _blob(self, name: str, where: str) -> BlobFile:
        if not name.startswith(MODEL_PATH):
            raise self._broken(f"weight file of {where!r}", f"the name {name!r}")
        path = _contained(self._root, name.removeprefix(MODEL_PATH), self._package, "weight file")
        if path not in self._blobs:
            self._blobs[path] = BlobFile(path, self._read, self._ledger)
        return self._blobs[path]

    def _broken(self, what: str, received: str) -> PackageError:
        return PackageError(f"{what} in {self._package.name} is malformed", received=received, fix=_FIX)


def _fields(dtype: DType) -> tuple[str, ...]:
    """Fields of a tensor's value that may hold elements of a type."""
    if dtype.name == "string":
        return ("strings",)
    if dtype.name == "bool":
        return ("bools", "bytes")
    return ("floats", "doubles", "bytes") if dtype.is_float else ("ints", "longInts", "bytes")


# --------------------------------------------------------------------------------------------- files


def _contained(root: Path, name: str, package: Path, what: str) -> Path:
    """A file of a package, links followed, within it or into the cache of Hugging Face that it lies in.

    Raises:
        PackageError: It is missing, is no regular file (one that would block or never end), or lies elsewhere.
    """
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(package.resolve()) and not _is_cached(path, package.resolve()):
            raise PackageError(f"the {what} of {package.name} lies outside the package", received=repr(name))
        if not path.is_file():
            raise PackageError(f"the {what} of {package.name} is missing: there is no file {name!r}", fix=_FIX)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a name with a zero byte
        raise PackageError(
            f"the {what} of {package.name} has an impossible name", received=f"{name[:80]!r}: {error}"
        ) from error
    return path


def _is_cached(path: Path, package: Path) -> bool:
    """Whether a file lies where the cache of Hugging Face keeps those of this package: links lead to ``blobs``."""
    caches = (ancestor.parent for ancestor in package.parents if ancestor.name == "snapshots")
    return any(path.parent == cache / "blobs" for cache in caches)


def model_file(package: Path, read: Read = Path.read_bytes) -> Path:
    """The protobuf of a package, as its manifest names it.

    Raises:
        PackageError: The manifest or the file is missing or damaged, or lies outside the package.
    """
    return _contained(package / "Data", _model_name(package, read), package, "model file")


def _model_name(package: Path, read: Read) -> str:
    """Where the manifest says that the protobuf lies, below ``Data``."""
    manifest = _contained(package, "Manifest.json", package, "manifest")
    try:
        if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ValueError("more than a megabyte")
        content = from_json(read(manifest))
        name = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
        if not isinstance(name, str):
            raise TypeError(f"a path of type {type(name).__name__}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PackageError(
            f"the manifest of {package.name} does not name its model",
            received=f"{type(error).__name__}: {error}",
            fix=_FIX,
        ) from error
    return name


def load_spec(path: Path, read: Read = Path.read_bytes) -> Any:
    """Parse a package's protobuf.

    The manifest is read here and not by Core ML Tools, whose reader follows it out of the package.

    Raises:
        PackageError: There is none, or it does not parse.
    """
    file = model_file(path, read)
    try:
        if file.stat().st_size > _MAX_MODEL_BYTES:
            raise ValueError("more than 2 GiB")
        raw = read(file)
        limits.check(_PARSED * len(raw), f"the program of {path.name}", PackageError)
        spec = ct.proto.Model_pb2.Model()
        spec.ParseFromString(raw)
    except SplitterError:
        raise
    except Exception as error:  # protobuf raises whatever it raises
        raise PackageError(
            f"{path.name} cannot be read as a Core ML package", received=str(error) or repr(error), fix=_FIX
        ) from error
    return spec
