"""What an execution holds: one running total of the memory of its values, each counted once however many share it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

from torch import Tensor

from .. import limits
from ..errors import OperationError
from ..formatting import size

Value: TypeAlias = Any  # a tensor, a string, a list, a dictionary, or a state's name
PER_ELEMENT = 32  # bytes of a number in a Python list, with its place there


class Ledger:
    """The memory of the values that somebody holds.

    Attributes:
        limit: Bytes that they may have together.
        total: Bytes that they have.
    """

    def __init__(self, constants: Ledger | None = None) -> None:
        """Nothing is held but constants, if there are any, which are never released."""
        self.limit = limits.max_memory()
        self.total: int = constants.total if constants is not None else 0
        self._constants = constants._holders.keys() if constants is not None else frozenset()
        self._holders: dict[int, int] = {}  # how many values share the memory at an address

    def hold(self, value: Value) -> None:
        """Count a value. The caller asks `check` afterwards, who can say which operation it is of."""
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            address = storage.data_ptr()
            if address not in self._constants:
                holders = self._holders.get(address, 0)
                self._holders[address] = holders + 1
                if not holders:
                    self.total += storage.nbytes()
        elif isinstance(value, list):
            self.total += PER_ELEMENT * len(value)
            for element in value:
                self.hold(element)

    def release(self, value: Value) -> None:
        """The reverse."""
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            address = storage.data_ptr()
            if address not in self._constants:
                holders = self._holders.pop(address) - 1
                if holders:
                    self._holders[address] = holders
                else:
                    self.total -= storage.nbytes()
        elif isinstance(value, list):
            self.total -= PER_ELEMENT * len(value)
            for element in value:
                self.release(element)

    def check(self, more: int = 0) -> None:
        """Refuse to hold more than the limit.

        Args:
            more: Bytes about to be allocated.

        Raises:
            OperationError: They are too many, with those that are held.
        """
        if self.total + more > self.limit:
            raise OperationError(
                "the result needs too much memory" if more else "the values need too much memory together",
                expected=f"at most {size(self.limit)}",
                received=f"{size(more)} beside {size(self.total)} of other values" if more else size(self.total),
                fix="If the package is what you expect, allow more with --max-memory.",
            )


class Slots(list[Value]):
    """Places of values; what is put into one is held until something else is."""

    def __init__(self, values: Iterable[Value], ledger: Ledger) -> None:
        """Places of constants and empty ones."""
        super().__init__(values)
        self._ledger = ledger

    def __setitem__(self, slot: Any, value: Value) -> None:
        before = self[slot]
        if value is not None:
            self._ledger.hold(value)
        if before is not None:
            self._ledger.release(before)
        super().__setitem__(slot, value)


_current: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


@contextmanager
def counted(ledger: Ledger) -> Iterator[Ledger]:
    """What `check_free` looks at within the block."""
    token = _current.set(ledger)
    try:
        yield ledger
    finally:
        _current.reset(token)


def check_free(count: int) -> None:
    """Refuse to allocate more than what is left to the execution that asks; raises as `Ledger.check`."""
    (_current.get() or Ledger()).check(count)
