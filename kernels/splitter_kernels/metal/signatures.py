"""What the text of a `.metal` file says about its kernels, and whether it keeps to the subset.

Only what a host has to know is read: the arguments of each kernel and the file's integer constants. Everything else
is the compiler's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .errors import SubsetError

Role: TypeAlias = Literal["buffer", "constant", "threadgroup", "position"]

POSITIONS = {  # attribute → field of `Position` in host/runtime.h
    "thread_position_in_grid": "in_grid",
    "thread_position_in_threadgroup": "in_group",
    "threadgroup_position_in_grid": "group",
    "threads_per_threadgroup": "threads",
    "threadgroups_per_grid": "groups",
}
_VECTORS = ("uint", "uint2", "uint3")
_VALUES = ("storage", "float", "half", "uint", "int", "uchar", "char")
_VALUE = "|".join(_VALUES)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_KERNEL = re.compile(r"\bkernel\s+void\s+(\w+)\s*\(([^{]*)\)\s*\{")
_POINTER = re.compile(
    rf"(?P<space>device|constant|threadgroup)\s+(?P<const>const\s+)?(?P<type>{_VALUE})\s*(?P<form>[*&])\s*(?P<name>\w+)\s*"
    r"\[\[\s*(?P<attribute>buffer|threadgroup)\s*\(\s*(?P<index>\d+)\s*\)\s*\]\]"
)
_POSITION = re.compile(rf"(?P<type>{'|'.join(_VECTORS)})\s+(?P<name>\w+)\s*\[\[\s*(?P<attribute>\w+)\s*\]\]")
_CONSTANT = re.compile(r"\bconstant\s+constexpr\s+uint\s+(\w+)\s*=\s*([\w\s*]+);")
_LOCAL_MEMORY = re.compile(r"\bthreadgroup\s+\w+\s+\w+\s*[\[;=]")
_UNPLACED = re.compile(rf"(?:^|[(,;{{}}])\s*(?:const\s+)?(?:{_VALUE})\s*[*&]\s*\w+")


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel.

    Attributes:
        role: ``buffer`` is an array in device memory, ``constant`` one value, ``threadgroup`` memory that the threads
            of a group share, ``position`` is filled in by the dispatch.
        type: As it is written, e.g. ``storage`` or ``uint2``.
        index: Of the binding; -1 for positions.
        writable: The kernel may write it.
        attribute: Of a position.
    """

    name: str
    role: Role
    type: str
    index: int = -1
    writable: bool = False
    attribute: str = ""


@dataclass(frozen=True)
class Signature:
    """A kernel's name and arguments in their order."""

    name: str
    arguments: tuple[Argument, ...]

    def bound(self, *roles: Role) -> tuple[Argument, ...]:
        """The arguments of these roles by their index."""
        return tuple(sorted((a for a in self.arguments if a.role in roles), key=lambda argument: argument.index))


def parse(text: str, source: str) -> tuple[Signature, ...]:
    """The kernels of one file.

    Args:
        source: The file's name, for messages.

    Raises:
        SubsetError: An argument, pointer or declaration that the subset does not know.
    """
    bare = _COMMENT.sub(" ", text)
    if found := _LOCAL_MEMORY.search(bare):
        raise SubsetError(
            f"{source}: threadgroup memory must be an argument of the kernel; got the declaration {found[0]!r}"
        )
    if found := _UNPLACED.search(bare):
        raise SubsetError(
            f"{source}: every pointer and reference must name its address space; got {found[0].strip(' (,;{}')!r}"
        )
    return tuple(_signature(match[1], match[2], source) for match in _KERNEL.finditer(bare))


def constants(text: str) -> dict[str, int]:
    """The file's ``constant constexpr uint``: integers, and products of integers and earlier ones."""
    found: dict[str, int] = {}
    for name, value in _CONSTANT.findall(_COMMENT.sub(" ", text)):
        terms = (term.strip() for term in value.split("*"))
        found[name] = math.prod(found[term] if term in found else int(term) for term in terms)
    return found


def _signature(name: str, arguments: str, source: str) -> Signature:
    signature = Signature(name, tuple(_argument(text, f"{source}: {name}") for text in _split(arguments)))
    for roles in (("buffer", "constant"), ("threadgroup",)):
        indices = [argument.index for argument in signature.bound(*roles)]
        if indices != list(range(len(indices))):
            raise SubsetError(f"{source}: {name}: {' and '.join(roles)} indices must count from 0; got {indices}")
    types = {argument.type for argument in signature.arguments if argument.role == "position"}
    if len(types) > 1:
        raise SubsetError(f"{source}: {name}: positions must all be of one type; got {sorted(types)}")
    return signature


def _split(arguments: str) -> list[str]:
    """At commas; attributes of the subset contain none."""
    return [text.strip() for text in arguments.split(",")]


def _argument(text: str, place: str) -> Argument:
    if (found := _POSITION.fullmatch(text)) and found["attribute"] in POSITIONS:
        return Argument(found["name"], "position", found["type"], attribute=found["attribute"])
    if found := _POINTER.fullmatch(text):
        space, form, attribute = found["space"], found["form"], found["attribute"]
        role: Role | None = None
        if space == "device" and form == "*" and attribute == "buffer":
            role = "buffer"
        elif space == "constant" and form == "&" and attribute == "buffer":
            role = "constant"
        elif space == "threadgroup" and form == "*" and attribute == "threadgroup":
            role = "threadgroup"
        if role:
            writable = space != "constant" and not found["const"]
            return Argument(found["name"], role, found["type"], int(found["index"]), writable)
    raise SubsetError(
        f"{place}: an argument must be `device T* x [[buffer(n)]]`, `constant T& x [[buffer(n)]]`, "
        f"`threadgroup T* x [[threadgroup(n)]]` or a position ({', '.join(POSITIONS)}); got {text!r}"
    )
