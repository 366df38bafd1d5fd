"""What a rule is, and the register of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import import_module
from typing import TypeAlias

from ..mil.graph import Node
from .subject import Subject

GROUPS = ("load", "limits", "engine", "half", "ranges", "requested", "artefacts", "compiling")


class Severity(StrEnum):
    """How bad: the package is wrong, may be wrong or slow, or could be better."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    def reaches(self, level: Severity) -> bool:
        """Whether it is at least as bad."""
        order = list(Severity)
        return order.index(self) <= order.index(level)


@dataclass(frozen=True)
class Note:
    """One place where a rule found what it looks for.

    Attributes:
        what: With the figures.
        node: The operation; None where it is the package or a value of its own.
        output: The value, where there is no operation.
    """

    what: str
    node: Node | None = None
    output: str = ""


Check: TypeAlias = Callable[[Subject], Iterator[Note]]


@dataclass(frozen=True)
class Rule:
    """One thing to look for.

    Attributes:
        id: Group and name, e.g. ``"engine-rank"``.
        severity: Of all it finds.
        title: What it finds.
        why: What comes of it.
        fix: What mends it, likely.
        source: Where this is published or measured.
        off_engine: The Neural Engine does not run an operation it finds.
        option: Of ``splitter build``, that mends it; empty if there is none.
        check: Finds.
    """

    id: str
    severity: Severity
    title: str
    why: str
    fix: str
    source: str
    off_engine: bool
    option: str
    check: Check


_REGISTRY: dict[str, Rule] = {}


def rule(
    id: str,  # noqa: A002 (what everyone calls it)
    severity: Severity,
    *,
    title: str,
    why: str,
    fix: str,
    source: str,
    off_engine: bool = False,
    option: str = "",
) -> Callable[[Check], Check]:
    """Register a function as a rule.

    Raises:
        ValueError: The id is taken.
    """

    def register(check: Check) -> Check:
        if id in _REGISTRY:
            raise ValueError(f"rule {id!r} is registered already")
        _REGISTRY[id] = Rule(id, severity, title, why, fix, source, off_engine, option, check)
        return check

    return register


@cache
def rules() -> Mapping[str, Rule]:
    """Every rule there is, by id."""
    for group in GROUPS:
        import_module(f"{__package__}.{group}")
    return _REGISTRY
