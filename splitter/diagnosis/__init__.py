"""Says what is wrong, risky or slow in saved packages, ours and other people's."""

from .examination import Diagnosis, Finding, Report, examine
from .rules import Severity, rules

__all__ = ["Diagnosis", "Finding", "Report", "Severity", "examine", "rules"]
