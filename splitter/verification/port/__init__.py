"""Holds a port of any part of a model against the captured, untouched model, and says what is wrong with it."""

from .dump import read_dump
from .report import PortReport
from .verification import verify_port

__all__ = ["PortReport", "read_dump", "verify_port"]
