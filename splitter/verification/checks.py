"""What verification says: checks, and the report they make up."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from ..boundary import Array
from ..parity import Parity, compare


class Status(StrEnum):
    """The answer to a check."""

    PASS = "pass"
    FAIL = "fail"
    NOT_RUN = "not run"
    NOT_APPLICABLE = "n/a"


@dataclass(frozen=True)
class Check:
    """One question asked of a bundle.

    Attributes:
        kind: What is held against what:

            - ``files``: every file against its hash in the manifest;
            - ``partition``: the segments in order against the whole capture;
            - ``golden``: captured programs against the untouched model;
            - ``boundary``: the run with tensors rounded where they cross, against the untouched model;
            - the name of a target: what it ships against the captured segment;
            - ``artifact``: what was saved against what was asked for;
            - ``conversion``: the fp32 uncompressed package against the captured segment;
            - ``precision``: the package before compression against that one;
            - ``compression``: the shipped package against the one before compression;
            - ``finite``: values that overflow inside a package;
            - ``package``: the run with the shipped packages against the untouched model;
            - the name of a device's engine: its own prediction against the untouched model;
            - the name of values that model a device (``ane``): the shipped package with them, against the untouched
              model;
            - ``port``: a tap that a port dumped against the captured graph.
        subject: Tensor or segment.
        status: The answer. ``not run`` and ``n/a`` (a silent reference, or nothing to compare) are no passes.
        engine: What computed the candidate, if anything did.
        scope: ``local`` if the step got the reference's own input, ``accumulated`` if it got what the
            steps before it had made of the input.
        parity: The distance, where tensors were compared.
        limit_db: SNR demanded; None where equality is.
        note: What else there is to say.
    """

    kind: str
    subject: str
    status: Status
    engine: str = ""
    scope: str = ""
    parity: Parity | None = None
    limit_db: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Overflow:
    """An operation of a package that made values infinite or NaN out of finite ones.

    Attributes:
        segment: Whose package.
        operation: Its type, e.g. ``"square"``.
        name: Of its result in the package.
        values: How many values, and of how many.
        boundary: The first boundary tensor that depends on it and fails; empty if none does.
    """

    segment: str
    operation: str
    name: str
    values: tuple[int, int]
    boundary: str

    def __str__(self) -> str:
        shows = f"shows at {self.boundary!r}" if self.boundary else "does not show at the outputs"
        broken, total = self.values
        return f"{self.operation} {self.name!r} in {self.segment}: {broken:,} of {total:,} values; {shows}"


@dataclass(frozen=True)
class Report:
    """All checks of one bundle.

    Attributes:
        bundle: Its directory.
        same_machine: The goldens were recorded on a machine that promises the same bits.
        partition_max_abs: Largest difference between the segments in order and the whole capture; None if
            they were not run.
        overflows: In the order in which they happen; the first is the one to mend.
    """

    bundle: str
    same_machine: bool
    partition_max_abs: float | None
    checks: tuple[Check, ...]
    overflows: tuple[Overflow, ...] = ()

    @property
    def passed(self) -> bool:
        """Nothing failed, and something ran."""
        statuses = {check.status for check in self.checks}
        return Status.PASS in statuses and Status.FAIL not in statuses

    def to_dict(self) -> dict[str, Any]:
        """As JSON values. An infinite SNR (equal tensors) is null beside ``"exact": true``."""
        return {
            "bundle": self.bundle,
            "passed": self.passed,
            "same_machine": self.same_machine,
            "partition": {"max_abs": self.partition_max_abs},
            "overflows": [asdict(overflow) for overflow in self.overflows],
            "checks": [json_check(check) for check in self.checks],
        }


class Verification(tuple[Report, ...]):
    """A report for each member."""

    __slots__ = ()

    @property
    def passed(self) -> bool:
        """All of them did."""
        return all(report.passed for report in self)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the report of a single bundle, or those of a bag's ``members``."""
        return self[0].to_dict() if len(self) == 1 else {"members": [report.to_dict() for report in self]}


def compared(
    kind: str,
    subject: str,
    reference: Array,
    candidate: Array,
    *,
    limit_db: float | None,
    negligible: float,
    engine: str,
    scope: str,
) -> Check:
    """Hold a tensor against its reference.

    Args:
        limit_db: SNR demanded; None demands equality.
        negligible: A difference that passes whatever the SNR, where decibels are demanded.
    """
    parity = compare(reference, candidate)
    return Check(kind, subject, judged(parity, limit_db, negligible), engine, scope, parity, limit_db)


def judged(parity: Parity, limit_db: float | None, negligible: float) -> Status:
    """The answer that a distance gives; the arguments are those of `compared`."""
    if parity.finite and parity.snr_db is None:  # a silent reference proves nothing, but noise disproves
        return Status.NOT_APPLICABLE if parity.max_abs <= negligible else Status.FAIL
    if limit_db is None:
        return Status.PASS if parity.finite and parity.max_abs == 0.0 else Status.FAIL
    return Status.PASS if parity.reaches(limit_db, negligible) else Status.FAIL


def json_check(check: Check) -> dict[str, Any]:
    """A check as JSON values; numbers that JSON does not know are null."""
    content = {key: value for key, value in asdict(check).items() if key != "parity"}
    if check.parity is not None:
        numbers = asdict(check.parity)
        content |= {key: value if _is_json(value) else None for key, value in numbers.items()}
        content["exact"] = check.parity.finite and check.parity.max_abs == 0.0
    return content


def _is_json(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def least_to_spare(check: Check) -> tuple[bool, float]:
    """Orders checks against limits: those that fail first, then by the decibels from the limit to what is reached."""
    snr = check.parity.snr_db if check.parity else None
    return check.status is not Status.FAIL, math.inf if snr is None else snr - (check.limit_db or 0.0)
