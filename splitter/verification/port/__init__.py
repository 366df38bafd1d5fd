"""Holds a port of the transformer against the captured, untouched model, and says what is wrong with it."""

from .dump import read_dump
from .report import PortReport
from .verification import verify_port

__all__ = ["PortReport", "read_dump", "verify_port"]
