"""What a rule may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..mil.departures import Departure
from ..mil.graph import Graph, Node
from ..mil.model import PackageInfo
from .chips import Chip


@dataclass(frozen=True)
class Range:
    """What an operation's results were in one run, computed in float32.

    Attributes:
        largest: Greatest magnitude among the finite values.
        beyond: How many finite values exceed what half precision holds.
        total: Of how many.
    """

    largest: float
    beyond: int
    total: int


@dataclass(frozen=True)
class Asked:
    """What somebody says a package is.

    Attributes:
        source: Who says so, e.g. ``"the plan"``.
        precision: ``"fp32"``, ``"fp16"`` or ``"mixed"``; empty if nothing is said.
        target: e.g. ``"iOS17"``.
        boundary: Element type of inputs and outputs.
        compressed: Weights are.
    """

    source: str
    precision: str = ""
    target: str = ""
    boundary: str = ""
    compressed: bool = False


@dataclass(frozen=True)
class Subject:
    """One function of one package.

    Attributes:
        links: Files of the package that are links, by their path in it.
        ranges: By operation; empty if the package was not run.
        departures: Where it went beyond limits of the Neural Engine, by operation.
        nans: How many NaN an operation in half precision made of numbers.
        measured: Whether it was.
    """

    facts: PackageInfo
    graph: Graph
    chip: Chip
    asked: tuple[Asked, ...] = ()
    links: tuple[str, ...] = ()
    ranges: Mapping[Node, Range] = field(default_factory=dict)
    departures: Mapping[Node, tuple[Departure, ...]] = field(default_factory=dict)
    nans: Mapping[Node, int] = field(default_factory=dict)
    measured: bool = False
