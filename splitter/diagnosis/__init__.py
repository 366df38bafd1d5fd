"""Says what is wrong, risky or slow in saved packages, ours and other people's."""

from .examination import Diagnosis, DoctorReport, Finding, examine
from .rules import Severity, rules

__all__ = ["Diagnosis", "DoctorReport", "Finding", "Severity", "examine", "rules"]
