"""Saved ML Programs, read and executed on any machine."""

from .model import Model, load
from .numerics import AccumulatorType, Numerics, RoundingMode

__all__ = ["AccumulatorType", "Model", "Numerics", "RoundingMode", "load"]
