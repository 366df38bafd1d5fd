"""One page that shows a bundle: its split, its sound, its errors and where they come from, its speed."""

from .findings import Findings, gather
from .page import check_free, render, write

__all__ = ["Findings", "check_free", "gather", "render", "write"]
