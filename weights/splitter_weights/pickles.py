"""A pickle read as data: nothing that it names is imported, nothing that it would call is called.

Python's unpickler is a machine that builds objects by calling functions. This one knows only the operations
that `torch.save` writes for plain values and tensors (pickle's protocol 2), and leaves names and calls as
records. Its memory is bounded by the length of the pickle: no operation copies what another has built.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from splitter.errors import CheckpointError

MOST_BYTES = 2 * 2**20  # that of the released model has 90 KB


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names, e.g. ``"torch.FloatStorage"``."""

    path: str


@dataclass(frozen=True)
class Call:
    """What the pickle would call, and with what."""

    function: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Outside:
    """Something that lies beside the pickle, by its persistent id: a tensor's storage."""

    identity: object


def parsed(pickle: bytes, name: str) -> Any:
    """The object that a pickle describes, of dict, list, tuple, str, int, float, bool, None and the records above.

    Args:
        pickle: Its bytes.
        name: Of the file, for messages.

    Raises:
        CheckpointError: It is longer than `MOST_BYTES`, damaged, or uses an operation that `torch.save` does not
            write for a model's state.
    """
    if len(pickle) > MOST_BYTES:
        raise CheckpointError(
            f"{name} describes its content in too many bytes",
            expected=f"at most {MOST_BYTES:,}",
            received=f"{len(pickle):,}",
        )
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "STOP":
                (result,) = machine.stack
                return result
            if opcode.name not in _OPERATIONS:
                raise CheckpointError(
                    f"{name} uses an operation of pickle that no model's state needs",
                    received=opcode.name,
                    fix="Nothing of the file was run. Save it anew with torch.save's defaults.",
                )
            _OPERATIONS[opcode.name](machine, argument)
    except (ValueError, TypeError, LookupError) as error:
        raise CheckpointError(
            f"{name} is damaged: its pickle cannot be followed", received=f"{type(error).__name__}: {error}"[:200]
        ) from error
    raise CheckpointError(f"{name} is damaged: its pickle has no end")


class _Machine:
    """A stack of values; those below the last mark wait in `below`."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("an empty stack")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError(f"items for a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise TypeError(f"keys for a {type(self.stack[-1]).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int)):  # hashing a nested tuple can take for ever
                raise TypeError(f"a key that is a {type(key).__name__}")
            self.stack[-1][key] = value

    def call(self) -> None:
        function, arguments = self.last(2)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise TypeError(f"a call of a {type(function).__name__}")
        ordered = function.path == "collections.OrderedDict" and not arguments
        self.stack.append({} if ordered else Call(function.path, arguments))

    def set_attributes(self) -> None:
        """Attributes of a state's OrderedDict, such as PyTorch's ``_metadata``: not needed."""
        thing, _ = self.last(2)
        if not isinstance(thing, dict):
            raise TypeError(f"attributes for a {type(thing).__name__}")
        self.stack.append(thing)


_Operation: TypeAlias = Callable[[_Machine, Any], None]


def _pushed(machine: _Machine, value: object) -> None:
    machine.stack.append(value)


_OPERATIONS: dict[str, _Operation] = {
    "PROTO": lambda machine, _: None,
    "NONE": lambda machine, _: _pushed(machine, None),
    "NEWTRUE": lambda machine, _: _pushed(machine, True),
    "NEWFALSE": lambda machine, _: _pushed(machine, False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), _pushed),
    "EMPTY_DICT": lambda machine, _: _pushed(machine, {}),
    "EMPTY_LIST": lambda machine, _: _pushed(machine, []),
    "EMPTY_TUPLE": lambda machine, _: _pushed(machine, ()),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: _pushed(machine, tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: _pushed(machine, tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: _pushed(machine, tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: _pushed(machine, tuple(machine.last(3))),
    "APPEND": lambda machine, _: machine.append(machine.last(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "BINPUT": lambda machine, index: machine.remember(index),
    "LONG_BINPUT": lambda machine, index: machine.remember(index),
    "BINGET": lambda machine, index: _pushed(machine, machine.memo[index]),
    "LONG_BINGET": lambda machine, index: _pushed(machine, machine.memo[index]),
    "GLOBAL": lambda machine, path: _pushed(machine, Global(path.replace(" ", "."))),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.set_attributes(),
    "BINPERSID": lambda machine, _: _pushed(machine, Outside(machine.last(1)[0])),
}
