"""Whole songs: files in, stems out.

`separator` streams one track through a bundle, `batch` many files, one after another or in `workers`; `receipts` tell
what has been done. `selection` chooses the engines by their speed.
"""

from .batch import Outcome, separate
from .separator import Options, Progress, Separator

__all__ = ["Options", "Outcome", "Progress", "Separator", "separate"]
