"""Settings chosen by measurement on real audio."""

from . import compression
from .plot import PICTURES, draw, draw_sizes
from .precision import Choice, Point, build

__all__ = ["PICTURES", "Choice", "Point", "build", "compression", "draw", "draw_sizes"]
