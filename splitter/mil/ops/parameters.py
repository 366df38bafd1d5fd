"""How arguments arrive at an implementation, read off its signature once, when it is registered."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor

from ..memory import PER_ELEMENT, check_free

Converter: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class Parameter:
    """One parameter of an operation.

    Attributes:
        name: As Core ML documents it.
        convert: Makes an argument what the implementation takes.
        variadic: It takes any number of tensors.
        optional: It may be left out, and nothing then stands for it.
    """

    name: str
    convert: Converter
    variadic: bool
    optional: bool


def parameters_of(function: Callable[..., Any]) -> dict[str, Parameter]:
    """All parameters by name.

    Raises:
        TypeError: One has no annotation.
    """
    hints = typing.get_type_hints(function)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in hints:
            raise TypeError(f"parameter {name!r} of {function.__name__} has no annotation")
        kind = _without_none(hints[name])
        found[name] = Parameter(name, _converter(kind), kind == list[Tensor], parameter.default is None)
    return found


def _without_none(hint: Any) -> Any:
    """``X`` for ``X | None``; the first of other unions."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    return next(option for option in typing.get_args(hint) if option is not types.NoneType)


def _converter(kind: Any) -> Converter:
    if typing.get_origin(kind) is list:
        (element,) = typing.get_args(kind)
        return partial(_as_list, _SCALARS[element]) if element in _SCALARS else _same
    return _as_tensor if kind is Tensor else _SCALARS.get(kind, _same)


def _same(value: Any) -> Any:
    return value


def _as_tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"a tensor is needed; got {type(value).__name__}")
    return value


def _as_int(value: Any) -> int:
    number = _number(value)
    if isinstance(number, float):
        raise TypeError(f"an integer is needed; got {number}")
    return int(number)


def _as_float(value: Any) -> float:
    return float(_number(value))


def _as_bool(value: Any) -> bool:
    number = _number(value)
    if not isinstance(number, bool):
        raise TypeError(f"true or false is needed; got {number}")
    return number


def _number(value: Any) -> bool | int | float:
    number = value.item() if isinstance(value, Tensor) else value
    if not isinstance(number, bool | int | float):
        raise TypeError(f"a number is needed; got {type(number).__name__}")
    return number


def _as_str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a string is needed; got {type(value).__name__}")
    return value


_SCALARS: Mapping[type, Callable[[Any], Any]] = {int: _as_int, float: _as_float, bool: _as_bool, str: _as_str}


def _as_list(element: Callable[[Any], Any], value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        check_free(PER_ELEMENT * value.numel())
        value = value.reshape(-1).tolist()
    if not isinstance(value, list):
        raise TypeError(f"a list is needed; got {type(value).__name__}")
    return [element(item) for item in value]
