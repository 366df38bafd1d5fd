"""What an execution holds: one running total of the memory of its values, each counted once however many share it.

Counting at each operation what is allocated and what is freed took a tenth of the time of a small model. So what is
allocated is added, which costs nothing, and only where the sum reaches the limit what is really held is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
    """The memory of values.

    Attributes:
        limit: Bytes that they may have together.
        total: Bytes that they have, or more.
    """

    def __init__(self, constants: Ledger | None = None, live: Callable[[], Iterable[Value]] = tuple) -> None:
        """Count from here on.

        Args:
            constants: What is held all the time.
            live: Gives the values that are held now besides, and that was not counted with `hold`.
        """
        self.limit = limits.max_memory()
        self._live = live
        self._seen: set[int] = set() if constants is None else set(constants._seen)
        self._fixed: int = 0 if constants is None else constants._fixed
        self.total: int = self._fixed

    def hold(self, value: Value) -> None:
        """Count a value that is held from here on, for good."""
        added = _memory(value, self._seen)
        self._fixed += added
        self.total += added

    def charge(self, count: int) -> None:
        """Count bytes that have been allocated, by whatever `live` gives."""
        self.total += count

    def check(self, more: int = 0) -> None:
        """Refuse to hold more than the limit.

        Args:
            more: Bytes about to be allocated.

        Raises:
            OperationError: They are too many, with those that are held.
        """
        if self.total + more <= self.limit:
            return
        self.total = self._fixed + _memory([*self._live()], set(self._seen), per_element=0)
        if self.total + more > self.limit:
            raise OperationError(
                "the result needs too much memory" if more else "the values need too much memory together",
                expected=f"at most {size(self.limit)}",
                received=f"{size(more)} beside {size(self.total)} of other values" if more else size(self.total),
                fix="If the package is what you expect, allow more with --max-memory.",
            )


def allocated(value: Value) -> int:
    """Bytes that a result may have allocated: a list shares its elements with the one it is made of, but for one."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, list):
        return PER_ELEMENT * len(value) + max((allocated(element) for element in value[:1]), default=0)
    return 0


def _memory(value: Value, seen: set[int], per_element: int = PER_ELEMENT) -> int:
    """Bytes of a value, without those at addresses that were seen before; the others then are."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        address = storage.data_ptr()
        if address in seen:
            return 0
        seen.add(address)
        return storage.nbytes()
    if isinstance(value, list):
        return per_element * len(value) + sum(_memory(element, seen) for element in value)
    return 0


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
