"""Says what is wrong, risky or slow in saved packages, ours and other people's."""

from .examination import Diagnosis, DoctorReport, Finding, examine, input_shapes
from .rules import Severity, rules

__all__ = ["Diagnosis", "DoctorReport", "Finding", "Severity", "examine", "input_shapes", "rules"]
