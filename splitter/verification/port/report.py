"""What a dump is worth, tap by tap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...parity import Parity
from ..checks import Check, Status, json_check


@dataclass(frozen=True)
class TapCheck:
    """One tap of a dump.

    Attributes:
        check: Its verdict; ``check.note`` is the likely cause of a failure.
        dtype: As dumped.
        accumulated: Distance from the untouched model's own value; None where there is no comparing.
    """

    check: Check
    dtype: str
    accumulated: Parity | None


@dataclass(frozen=True)
class PortReport:
    """What a dump is worth.

    Attributes:
        taps: Those the dump holds, in the order in which the model computes them.
        missing: Those it does not hold.
        misnamed: Names in the dump that are no taps, and the tap each one probably is (empty if none is near).
    """

    taps: tuple[TapCheck, ...]
    missing: tuple[str, ...]
    misnamed: Mapping[str, str]

    @property
    def first_divergence(self) -> Check | None:
        return next((tap.check for tap in self.taps if tap.check.status is Status.FAIL), None)

    @property
    def passed(self) -> bool:
        """Something passed, nothing failed, and every name is a tap's."""
        statuses = {tap.check.status for tap in self.taps}
        return Status.PASS in statuses and Status.FAIL not in statuses and not self.misnamed

    @property
    def verdict(self) -> str:
        """Where the port first leaves the model, and probably why."""
        first = self.first_divergence
        if first is not None:
            return f"first divergence: {first.subject} ({first.note})"
        if self.misnamed:
            return f"no divergence in {len(self.taps)} taps, but {len(self.misnamed)} names are no taps"
        return f"no divergence in {len(self.taps)} taps"

    def to_dict(self) -> dict[str, Any]:
        first = self.first_divergence
        return {
            "passed": self.passed,
            "first_divergence": None if first is None else {"tap": first.subject, "cause": first.note},
            "taps": [
                json_check(tap.check) | {"dtype": tap.dtype, "accumulated_snr_db": _finite_snr(tap.accumulated)}
                for tap in self.taps
            ],
            "missing": list(self.missing),
            "misnamed": dict(self.misnamed),
        }


def _finite_snr(parity: Parity | None) -> float | None:
    return None if parity is None or parity.snr_db is None or math.isinf(parity.snr_db) else parity.snr_db
