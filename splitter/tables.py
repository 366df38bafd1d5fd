"""Reports as tables for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .bundle import Bundle
from .checks import Check, Report, Status
from .port import PortReport

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
            one.name,
            one.artifact.target,
            one.artifact.path or one.program,
            size(stored),
            f"{one.operators}",
            f"{one.parameters:,}",
        )
    tensors = Table(title="boundary tensors", title_justify="left")
    for column in ("tensor", "from", "to", "shape", "layout", "dtype"):
        tensors.add_column(column)
    tensors.add_column("size", justify="right")
    for spec in manifest.tensors:
        shape = "×".join(map(str, spec.shape))
        tensors.add_row(
            spec.name, spec.producer, ", ".join(spec.consumers), shape, spec.layout, spec.dtype, size(spec.bytes)
        )
    return Group(head, segments, tensors)


def report_tables(report: Report) -> RenderableType:
    """Checks of a bundle: a row per boundary tensor, a row per other check, and the verdict."""
    boundaries = Table(title=f"{report.bundle}: captured graph", title_justify="left")
    boundaries.add_column("tensor")
    for column in ("partition |Δ|", "golden, local", "golden, accumulated", "max |Δ|", "cosine", "limit"):
        boundaries.add_column(column, justify="right")
    boundaries.add_column("")
    graph = {(c.kind, c.scope, c.subject): c for c in report.checks if c.kind in ("partition", "golden")}
    for subject in dict.fromkeys(check.subject for check in report.checks if check.kind == "golden"):
        partition = graph["partition", "accumulated", subject]
        local, accumulated = (graph["golden", scope, subject] for scope in ("local", "accumulated"))
        boundaries.add_row(
            subject,
            _deviation(partition),
            _snr(local),
            _snr(accumulated),
            _deviation(accumulated),
            _cosine(accumulated),
            _limit(accumulated),
            _status(*(check.status for check in (partition, local, accumulated))),
        )
    others = Table(title=f"{report.bundle}: artifacts, kernels, engines", title_justify="left")
    for column in ("check", "subject", "engine", "scope"):
        others.add_column(column)
    for column in ("SNR", "max |Δ|", "cosine", "limit"):
        others.add_column(column, justify="right")
    others.add_column("")
    for one in report.checks:
        if (one.kind, one.scope, one.subject) not in graph:
            others.add_row(
                one.kind, one.subject, one.engine, one.scope, _snr(one), _deviation(one), _cosine(one), _limit(one),
                _status(one.status),
            )  # fmt: skip
    said = ", ".join(
        f"{count} {status}" for status in Status if (count := sum(c.status is status for c in report.checks))
    )
    machine = "this" if report.same_machine else "another"
    ran = ""
    if report.partition_max_abs is not None:
        ran = f"partition max |Δ| {report.partition_max_abs:g}; goldens recorded on {machine} machine; "
    verdict = Text(
        f"{ran}{said}: {'passed' if report.passed else 'FAILED'}",
        style=_COLOURS[Status.PASS if report.passed else Status.FAIL],
    )
    noted = [check for check in report.checks if check.note and check.status is not Status.PASS]
    notes = [Text(f"{check.kind} {check.subject}: {check.status}: {check.note}") for check in noted]
    return Group(*(table for table in (boundaries, others) if table.row_count), *notes, verdict)


def port_table(report: PortReport) -> RenderableType:
    """A row per tap of a dump, what is missing or misnamed, and where the port first leaves the model."""
    table = Table(title="port against the captured model", title_justify="left")
    for column in ("tap", "dtype", "scope"):
        table.add_column(column)
    for column in ("SNR", "max |Δ|", "relative", "accumulated", "limit"):
        table.add_column(column, justify="right")
    table.add_column("")
    table.add_column("likely cause", overflow="fold")
    for one in report.taps:
        check, parity = one.check, one.check.parity
        table.add_row(
            check.subject,
            one.dtype,
            check.scope,
            _snr(check),
            _deviation(check),
            "" if parity is None or parity.relative is None else f"{parity.relative:.1e}",
            "" if one.accumulated is None or one.accumulated.snr_db is None else f"{one.accumulated.snr_db:.1f} dB",
            _limit(check),
            _status(check.status),
            check.note,
        )
    notes = [
        Text(f"{name!r} is no tap" + (f"; is it {near}?" if near else ""), style=_COLOURS[Status.FAIL])
        for name, near in report.misnamed.items()
    ]
    if report.missing:
        shown = ", ".join(report.missing[:6]) + (", …" if len(report.missing) > 6 else "")
        notes.append(Text(f"{len(report.missing)} taps are not in the dump: {shown}"))
    verdict = Text(report.verdict, style=_COLOURS[Status.PASS if report.passed else Status.FAIL])
    return Group(table, *notes, verdict)


def _snr(check: Check) -> str:
    if check.parity is None:
        return ""
    if check.parity.snr_db is None:
        return "n/a"
    return "exact" if check.parity.max_abs == 0.0 else f"{check.parity.snr_db:.1f} dB"


def _deviation(check: Check) -> str:
    return "" if check.parity is None else f"{check.parity.max_abs:.1e}"


def _cosine(check: Check) -> str:
    if check.parity is None:
        return ""
    return "n/a" if check.parity.cosine is None else f"{check.parity.cosine:.8f}"


def _limit(check: Check) -> str:
    if check.parity is None:
        return ""
    return "exact" if check.limit_db is None else f"{check.limit_db:g} dB"


def _status(*statuses: Status) -> Text:
    """The worst of them."""
    order = (Status.FAIL, Status.NOT_RUN, Status.NOT_APPLICABLE, Status.PASS)
    worst = min(statuses, key=order.index)
    return Text(str(worst), style=_COLOURS[worst])
