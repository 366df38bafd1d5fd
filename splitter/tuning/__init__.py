"""Settings chosen by measurement on real audio."""

from . import compression
from .plot import draw, draw_sizes
from .precision import Choice, Point, build

__all__ = ["Choice", "Point", "build", "compression", "draw", "draw_sizes"]
