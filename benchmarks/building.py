"""`splitter build` and `splitter verify` against one conversion of the whole model: whole processes, in turns.

The peer captures the model as `build` does and has Core ML Tools make one fp32 package of all between the Fourier
transforms. It records no goldens, checks no boundary, and writes nothing else. As a script
(``python -m benchmarks.building CHECKPOINT OUT``) this is the peer.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .processes import SPLITTER, Run, measured


def main(*, checkpoint: str | None, song: str | None, runs: int, long_minutes: float) -> None:
    """Print medians, and the ratio to the peer pair by pair."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        made, model = directory / "bundle", checkpoint or "demo"
        golden = ["--golden-audio", song] if song else []
        commands: dict[str, list[str | Path]] = {
            "build": [SPLITTER, "build", model, "-o", made, "--force", *golden],
            "verify": [SPLITTER, "verify", made],
            "one conversion": [sys.executable, "-m", "benchmarks.building", model, directory / "whole.mlpackage"],
        }
        found: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, command in commands.items():
                found[name].append(measured(command))
    table = Table(title=f"building {model}, {runs} interleaved runs", title_justify="left")
    for column in ("", "seconds", "ratio (median of pairs)", "peak MB"):
        table.add_column(column, justify="right")
    peer = found["one conversion"]
    for name, mine in found.items():
        ratio = statistics.median(one.seconds / other.seconds for one, other in zip(mine, peer, strict=True))
        seconds, peak = (statistics.median(getattr(one, field) for one in mine) for field in ("seconds", "peak_mb"))
        table.add_row(name, f"{seconds:.1f}", f"{ratio:.3f}", f"{peak:.0f}")
    Console(width=120).print(table)


def _convert(checkpoint: str, out: Path) -> None:
    from splitter.graph.capture import exported
    from splitter.mil.coreml_tools import ct, quiet_and_quick
    from splitter.opening import captured
    from splitter.partition import partition
    from splitter.plan import schema as plans

    whole, plan = captured(checkpoint)
    (core,) = (one for one in partition(whole, plans.laid_out(plan, "core")).segments if one.stage.target == "coreml")
    with quiet_and_quick():
        model = ct.convert(
            exported(core.program),
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    shutil.rmtree(out, ignore_errors=True)
    model.save(str(out))


if __name__ == "__main__":
    _convert(sys.argv[1], Path(sys.argv[2]))
