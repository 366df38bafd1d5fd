"""What to do first: findings grouped by their cause, the costliest first.

A cause is a rule, in all packages together. It costs the floating-point operations that it alone keeps off the Neural
Engine: those that run there once it is mended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .rules import Rule, Severity, rules

if TYPE_CHECKING:
    from .examination import Diagnosis, Finding

MOST_ACTIONS = 5
_NOTICED = 0.005  # share of FLOPs below which a cause that only informs is no reason to do anything


@dataclass(frozen=True)
class Cause:
    """One rule and all that it found.

    Attributes:
        places: How many findings.
        example: The first.
        flop_share: Share of all packages' FLOPs that mending it alone moves onto the engine; None if there are none.
    """

    rule: Rule
    places: int
    example: Finding
    flop_share: float | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "rule": self.rule.id,
            "severity": str(self.rule.severity),
            "title": self.rule.title,
            "places": self.places,
            "flop_share": self.flop_share,
            "example": {"operation": self.example.operation, "output": self.example.output, "what": self.example.what},
        }


@dataclass(frozen=True)
class Action:
    """One thing to do, and what it mends.

    Attributes:
        do: As a sentence without its full stop.
        causes: That it mends, the costliest first.
        places: In how many places.
        flop_share: Share of the FLOPs that it moves onto the engine; None if there are none.
    """

    do: str
    causes: tuple[Cause, ...]
    places: int
    flop_share: float | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "do": self.do,
            "rules": [cause.rule.id for cause in self.causes],
            "places": self.places,
            "flop_share": self.flop_share,
        }


def causes(diagnoses: Sequence[Diagnosis]) -> tuple[Cause, ...]:
    """Every rule that found something, the costliest first: errors, FLOPs off the engine, then the severity."""
    found: dict[str, list[Finding]] = {}
    for diagnosis in diagnoses:
        for finding in diagnosis.findings:
            found.setdefault(finding.rule, []).append(finding)
    every = [
        Cause(rules()[name], len(findings), findings[0], _moved(diagnoses, {name})) for name, findings in found.items()
    ]
    return tuple(sorted(every, key=_cost))


def actions(diagnoses: Sequence[Diagnosis]) -> tuple[Action, ...]:
    """What to do, the most worthwhile first; at most `MOST_ACTIONS`.

    Causes that one option of a build mends are one action, if the packages are a bundle's that was built without it.
    """
    open_options = {option for diagnosis in diagnoses for option in diagnosis.options}
    groups: dict[str, list[Cause]] = {}
    for cause in causes(diagnoses):
        option = cause.rule.option if cause.rule.option in open_options else ""
        groups.setdefault(option or cause.rule.id, []).append(cause)
    every = []
    for key, mended in groups.items():
        option = key if key in open_options else ""
        share = _moved(diagnoses, {cause.rule.id for cause in mended})
        if not option and mended[0].rule.severity is Severity.INFO and (share or 0) < _NOTICED:
            continue
        do = f"Build with {option}" if option else mended[0].rule.fix.rstrip(".")
        every.append(Action(do, tuple(mended), sum(cause.places for cause in mended), share))
    return tuple(sorted(every, key=lambda action: _cost(action.causes[0], action.flop_share))[:MOST_ACTIONS])


def _moved(diagnoses: Sequence[Diagnosis], mended: set[str]) -> float | None:
    """Share of FLOPs that nothing but these rules keeps off the engine."""
    refusals: Counter[frozenset[str]] = Counter()
    total = 0
    for diagnosis in diagnoses:
        refusals.update(diagnosis.refused_flops)
        total += diagnosis.placement.flops
    return sum(flops for by, flops in refusals.items() if by <= mended) / total if total else None


def _cost(cause: Cause, share: float | None = None) -> tuple[bool, float, int, int]:
    moved = cause.flop_share if share is None else share
    severity = cause.rule.severity
    return severity is not Severity.ERROR, -(moved or 0), [*Severity].index(severity), -cause.places


def refused_flops(refused: Mapping[Any, set[str]]) -> dict[frozenset[str], int]:
    """FLOPs by the set of rules that keep their operations off the engine.

    Args:
        refused: Those rules, by operation.
    """
    found: Counter[frozenset[str]] = Counter()
    for node, by in refused.items():
        if node.flops:
            found[frozenset(by)] += node.flops
    return dict(found)
