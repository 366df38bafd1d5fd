"""Reports as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .bundle import Bundle
from .verification import Check, Report, Status

_COLOURS = {Status.PASS: "green", Status.FAIL: "bold red", Status.NOT_RUN: "yellow", Status.NOT_APPLICABLE: "yellow"}


def size(count: int) -> str:
    """Bytes in decimal units: ``33.0 MB``."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def bundle_tables(bundle: Bundle) -> RenderableType:
    """Segments and boundary tensors of a bundle."""
    manifest = bundle.manifest
    model, plan = manifest.model, manifest.plan
    weights = f"random weights, seed {model.random_init}" if model.random_init is not None else "trained weights"
    head = Text(
        f"{model.name}: {model.model_class}, {weights}\n"
        f"stems {', '.join(model.stems)}; {model.samples} samples at {model.samplerate} Hz "
        f"({model.samples / model.samplerate:.2f} s) a run\n"
        f"{plan.deployment_target}, {plan.precision} packages, {plan.boundary_dtype} boundaries"
    )
    segments = Table(title="segments", title_justify="left")
    for column in ("segment", "target", "artifact"):
        segments.add_column(column)
    for column in ("size", "operators", "parameters"):
        segments.add_column(column, justify="right")
    for one in bundle.segments:
        stored = sum(r.bytes for f, r in manifest.files.items() if f.split("/")[0] == one.artifact.path)
        segments.add_row(
            one.name, one.artifact.target, one.artifact.path or one.program, size(stored), f"{one.operators}", f"{one.parameters:,}"
        )
    tensors = Table(title="boundary tensors", title_justify="left")
    for column in ("tensor", "from", "to", "shape", "layout", "dtype"):
        tensors.add_column(column)
    tensors.add_column("size", justify="right")
    for spec in manifest.tensors:
        shape = "×".join(map(str, spec.shape))
        tensors.add_row(spec.name, spec.producer, ", ".join(spec.consumers), shape, spec.layout, spec.dtype, size(spec.bytes))
    return Group(head, segments, tensors)


def report_table(report: Report) -> RenderableType:
    """Checks of a bundle, and the verdict."""
    table = Table(title=report.bundle, title_justify="left")
    for column in ("check", "subject", "engine", "scope"):
        table.add_column(column)
    for column in ("SNR", "max |Δ|", "cosine", "limit"):
        table.add_column(column, justify="right")
    table.add_column("")
    for check in report.checks:
        table.add_row(*_row(check))
    counts = {status: sum(check.status is status for check in report.checks) for status in Status}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    machine = "recorded on this machine" if report.same_machine else "recorded on another machine"
    verdict = Text(
        f"partition max |Δ| {report.partition_max_abs:g}; goldens {machine}; {said}: {'passed' if report.passed else 'FAILED'}",
        style=_COLOURS[Status.PASS if report.passed else Status.FAIL],
    )
    notes = [Text(f"{c.kind} {c.subject}: {c.status}: {c.note}") for c in report.checks if c.note and c.status is not Status.PASS]
    return Group(table, *notes, verdict)


def _row(check: Check) -> Sequence[RenderableType]:
    snr = deviation = cosine = ""
    if (parity := check.parity) is not None:
        exact = parity.finite and parity.max_abs == 0.0
        snr = "exact" if exact and parity.snr_db is not None else "n/a" if parity.snr_db is None else f"{parity.snr_db:.1f} dB"
        deviation = f"{parity.max_abs:.1e}"
        cosine = "n/a" if parity.cosine is None else f"{parity.cosine:.8f}"
    limit = "" if parity is None else "exact" if check.limit_db is None else f"{check.limit_db:g} dB"
    status = Text(str(check.status), style=_COLOURS[check.status])
    return check.kind, check.subject, check.engine, check.scope, snr, deviation, cosine, limit, status
