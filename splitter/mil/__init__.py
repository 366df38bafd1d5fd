"""Saved ML Programs, read and executed on any machine."""

from .model import Model, load
from .numerics import Accumulators, Numerics, Values

__all__ = ["Accumulators", "Model", "Numerics", "Values", "load"]
