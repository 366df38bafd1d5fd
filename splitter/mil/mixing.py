"""Mixed precision within a program: what Core ML Tools' converter makes of a choice of operations.

Both functions give a new program, which the interpreter runs as it runs any other.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace

import torch
from torch import Tensor

from .program import Argument, Function, NamedType, Operation, Ref, read_by
from .types import BY_NAME, TensorType, ValueType

_FEW = 400  # the converter saves small constants, and only these, from becoming zero
_LEAST = 2.0**-24  # the smallest positive number in half precision
_MOST = 65504.0


def can_be_half(function: Function) -> tuple[Operation, ...]:
    """The operations that the converter can compute in half precision.

    Each gives float32, is no cast and no constant, and reads no constant beyond what half precision holds
    (infinities, as of masks, aside).
    """
    huge = {
        operation.name
        for operation in function.block.operations
        if operation.type == "const" and _is_huge(operation.attributes["val"])
    }
    return tuple(
        operation
        for operation in function.block.operations
        if not operation.blocks
        and operation.type not in ("const", "cast")
        and not operation.type.startswith("constexpr")
        and any(is_single(output.type) for output in operation.outputs)
        and not any(
            argument.name in huge if isinstance(argument, Ref) else _is_huge(argument)
            for argument in read_by(operation)
        )
    )


def in_half(function: Function, names: AbstractSet[str]) -> Function:
    """A float32 program with some operations in half precision.

    Their arguments and constants are rounded to half and their results are half; what else reads these casts them
    back. Inputs and outputs of the program keep their types.

    Args:
        function: Computes in float32.
        names: Operations by the name of their first result, of those that `can_be_half`.
    """
    operations: list[Operation] = []
    types: dict[str, ValueType] = {named.name: named.type for named in function.inputs}
    constants: dict[str, Operation] = {}
    wide, narrow = set(types), set[str]()  # values that exist as declared, and in half precision beside

    def halved(argument: Argument) -> Argument:
        if isinstance(argument, Tensor) and argument.dtype == torch.float32:
            return _rounded(argument)
        if not isinstance(argument, Ref) or not is_single(types[argument.name]):
            return argument
        name = argument.name
        if name not in narrow:
            kind = half_type(types[name])
            if name in constants:
                value = {"val": _rounded(constants[name].attributes["val"])}
                operations.append(replace(constants[name], outputs=(NamedType(_half(name), kind),), attributes=value))
            else:
                operations.append(_cast(name, NamedType(_half(name), kind)))
            narrow.add(name)
        return Ref(_half(name))

    def widen(name: str) -> None:
        if name not in wide:
            operations.append(_cast(_half(name), NamedType(name, types[name])))
            wide.add(name)

    for operation in function.block.operations:
        types |= {output.name: output.type for output in operation.outputs}
        if operation.type == "const":
            constants[operation.name] = operation
        if operation.name not in names:
            for argument in read_by(operation):
                if isinstance(argument, Ref):
                    widen(argument.name)
            operations.append(operation)
            wide |= {output.name for output in operation.outputs}
            continue
        inputs = {key: tuple(map(halved, many)) for key, many in operation.inputs.items()}
        singles = {output.name for output in operation.outputs if is_single(output.type)}
        outputs = tuple(
            NamedType(_half(output.name), half_type(output.type)) if output.name in singles else output
            for output in operation.outputs
        )
        operations.append(replace(operation, inputs=inputs, outputs=outputs))
        narrow |= singles
        wide |= {output.name for output in operation.outputs} - singles
    for name in function.block.outputs:
        widen(name)
    return replace(function, block=replace(function.block, operations=tuple(operations)))


def roundtrip_fp16(function: Function, names: AbstractSet[str]) -> Function:
    """A float32 program in which some values pass through half precision on their way to all that read them.

    Args:
        function: Computes in float32.
        names: Inputs of the program, results of its operations, or constants.
    """
    operations: list[Operation] = []

    def pass_through(name: str, kind: ValueType, result: str) -> None:
        operations.append(_cast(name, NamedType(_half(name), half_type(kind))))
        operations.append(_cast(_half(name), NamedType(result, kind)))

    renamed = {named.name: f"{named.name}_rounded" for named in function.inputs if named.name in names}
    for named in function.inputs:
        if named.name in renamed:
            pass_through(named.name, named.type, renamed[named.name])
    for operation in function.block.operations:
        inputs = {
            key: tuple(
                Ref(renamed.get(argument.name, argument.name)) if isinstance(argument, Ref) else argument
                for argument in many
            )
            for key, many in operation.inputs.items()
        }
        rounded = [output for output in operation.outputs if output.name in names and is_single(output.type)]
        if operation.type == "const" and rounded:
            exact = operation.attributes["val"]
            operations.append(replace(operation, attributes={"val": _rounded(exact).to(torch.float32)}))
            continue
        outputs = tuple(
            NamedType(f"{output.name}_exact", output.type) if output in rounded else output
            for output in operation.outputs
        )
        operations.append(replace(operation, inputs=inputs, outputs=outputs))
        for output in rounded:
            pass_through(f"{output.name}_exact", output.type, output.name)
    return replace(function, block=replace(function.block, operations=tuple(operations)))


def is_single(kind: ValueType) -> bool:
    return isinstance(kind, TensorType) and kind.dtype.name == "fp32"


def half_type(kind: ValueType) -> ValueType:
    return TensorType(BY_NAME["fp16"], kind.shape) if isinstance(kind, TensorType) else kind


def _half(name: str) -> str:
    return f"{name}_to_fp16"


def _cast(name: str, result: NamedType) -> Operation:
    assert isinstance(result.type, TensorType)
    return Operation("cast", {"x": (Ref(name),), "dtype": (result.type.dtype.name,)}, (result,))


def _rounded(constant: Tensor) -> Tensor:
    """As the converter rounds a constant: a small one (an epsilon) does not vanish."""
    half = constant.to(torch.float16)
    if constant.numel() < _FEW:
        vanished = (half == 0) & (constant != 0)
        half = torch.where(vanished, torch.copysign(torch.tensor(_LEAST), constant).to(torch.float16), half)
    return half


def _is_huge(constant: object) -> bool:
    if not isinstance(constant, Tensor) or constant.dtype != torch.float32:
        return False
    sizes = constant.abs()
    return bool(((sizes > _MOST) & (sizes < 1e38)).any())
