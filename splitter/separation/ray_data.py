"""`splitter separate` as a stage of a Ray Data pipeline, for libraries of songs beyond one machine.

Ray starts the processes, restarts those that die, and moves the rows. A row's stems depend on the row alone, and what
is done already is left alone, so any row may be run again, anywhere that sees the same directories.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from .. import output
from ..runtime.workers import limits
from .batch import Outcome, separate_file
from .separator import Options, Separator


class SeparateTracks:
    """Separates the track of a row; for `ray.data.Dataset.map`, which keeps one in each of its workers.

    rows.map(SeparateTracks, fn_constructor_args=("htdemucs.bundle", "separated"), num_cpus=2,
             compute=ray.data.ActorPoolStrategy(size=8))

    In: ``path``; with ``bytes``, the file's content, ``path`` need not exist here and only names the stems.
    Out: ``path``; ``stems``, the file of each stem by name, None where it could not be made; ``error``, None or what is
    wrong with this track; ``attempts``, 0 if the stems were there already. Other columns are dropped.
    """

    def __init__(
        self,
        bundle: str,
        out: str,
        options: Options = Options(),
        engines: Mapping[str, str] | Literal["auto", "default"] | None = "auto",
        threads: int | None = None,
    ) -> None:
        """Load the bundle.

        Args:
            bundle: Directory of a bundle or a bag that every worker sees.
            out: As is this one: stems go to ``out/<model>/<track>/<stem>.wav``, or as ``options.filename`` says.
            options: Everything else about the stems.
            engines: As for `Separator`.
            threads: That torch and XLA compute with, as many as ``num_cpus``; what they take by themselves where None.

        Raises:
            BundleError, UsageError, EngineError: No track can be separated like this.
        """
        if threads is not None:
            torch.set_num_threads(threads)
            os.environ |= limits(threads)
        self._separator = Separator(Path(bundle), engines, options=options)
        self._separator.load()
        self._out = Path(out)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Separate one track; what is wrong with it is said in the row."""
        path = Path(row["path"])
        if "bytes" not in row:
            outcome = separate_file(self._separator, path, self._out)
        else:
            with output.scratch("row") as folder:
                copy = folder / path.name
                copy.write_bytes(row["bytes"])
                outcome = separate_file(self._separator, copy, self._out)
        return self._row(row["path"], outcome)

    def _row(self, path: str, outcome: Outcome) -> dict[str, Any]:
        written = self._separator.written
        stems = {name: str(outcome.stems[name]) if name in outcome.stems else None for name in written}
        error = None if outcome.error is None else str(outcome.error)
        return {"path": path, "stems": stems, "error": error, "attempts": outcome.attempts}
