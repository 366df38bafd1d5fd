"""Settings chosen by measurement on real audio."""

from .plot import draw
from .precision import Choice, Point, build

__all__ = ["Choice", "Point", "build", "draw"]
