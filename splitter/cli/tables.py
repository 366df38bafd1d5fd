"""Reports as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import splitter

from ..formatting import cosine, deviation, duration, limit, operations, share, size, snr, time

if TYPE_CHECKING:  # each table takes the imports of its own verb alone
    from ..bundle.directory import Bundle
    from ..bundle.manifest import AudioRecord
    from ..compiler import SkippedPlace
    from ..diagnosis import Diagnosis, DoctorReport, Finding
    from ..mil.differences import Pair
    from ..plan.layouts import Layout
    from ..plan.outline import NewPlan
    from ..profiling import Profile
    from ..separation.selection import EngineChoice
    from ..tuning import compression, precision
    from ..verification.checks import Report, Verification
    from ..verification.comparison import Comparison
    from ..verification.port import PortReport

_COLOURS = {
    splitter.Status.PASS: "green",
    splitter.Status.FAIL: "bold red",
    splitter.Status.NOT_RUN: "yellow",
    splitter.Status.NOT_APPLICABLE: "yellow",
}

_SEVERITIES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_PLACES = 3  # of operators of a module
# So that the doctor fits a screen: 5 actions of two lines, and these rows.
_CAUSES = 10
_PACKAGES = 6
_WRITTEN = 12
_PUBLISHED = "Limits of the engine are published by people who measured it, not by Apple; compile times are rough."


def _audio(sound: AudioRecord | None) -> str:
    if sound is None:
        return ""
    seconds = sound.samples / sound.samplerate
    return f"stems {', '.join(sound.stems)}; {sound.samples} samples at {sound.samplerate} Hz ({seconds:.2f} s) a run\n"


def _variants(bundle: Bundle) -> str:
    """The shapes that the inputs may have, where there are several."""
    if len(bundle.variants) == 1:
        return ""
    listed = (
        f"{name} ({', '.join('×'.join(map(str, variant.tensors[given].shape)) for given in variant.inputs)})"
        for name, variant in bundle.variants.items()
    )
    return f"\nvariants: {', '.join(listed)}"


def bundle_tables(bundle: Bundle) -> RenderableType:
    """Segments and boundary tensors of a bundle."""
    manifest = bundle.manifest
    model, plan = manifest.model, manifest.plan
    own = "trained weights" if model.checkpoint_sha256 else "weights as the module had them"
    weights = f"random weights, seed {model.random_init}" if model.random_init is not None else own
    head = Text(
        f"{model.name}: {model.model_class}, {weights}\n"
        f"{_audio(model.audio)}"
        f"{plan.deployment_target}, {plan.precision} packages, {plan.boundary_dtype} boundaries"
        f"{_variants(bundle)}"
    )
    segments = Table(title="segments", title_justify="left")
    for column in ("segment", "target", "artifact"):
        segments.add_column(column)
    for column in ("size", "operators", "parameters"):
        segments.add_column(column, justify="right")
    for segment in bundle.segments:
        stored = sum(r.bytes for f, r in manifest.files.items() if f.split("/")[0] == segment.artifact.path)
        segments.add_row(
            segment.name,
            segment.artifact.target,
            segment.artifact.path or segment.program,
            size(stored),
            f"{segment.operators}",
            f"{segment.parameters:,}",
        )
    tensors = Table(title="boundary tensors", title_justify="left")
    for column in ("tensor", "from", "to", "shape", "layout", "dtype"):
        tensors.add_column(column)
    tensors.add_column("size", justify="right")
    for spec in manifest.tensors:
        shape = "×".join(map(str, spec.shape))
        tensors.add_row(
            spec.name,
            spec.producer,
            ", ".join(spec.consumers),
            shape,
            spec.layout,
            spec.dtype + (f" ({spec.packaged_dtype} in packages)" if spec.packaged_dtype else ""),
            size(spec.bytes),
        )
    return Group(head, segments, tensors)


def verification_tables(verification: Verification) -> RenderableType:
    """The checks of each member."""
    return Group(*(_report_tables(report) for report in verification))


def _report_tables(report: Report) -> RenderableType:
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
            deviation(partition.parity),
            snr(local.parity),
            snr(accumulated.parity),
            deviation(accumulated.parity),
            cosine(accumulated.parity),
            limit(accumulated.parity, accumulated.limit_db),
            _status(*(check.status for check in (partition, local, accumulated))),
        )
    others = Table(title=f"{report.bundle}: artifacts, kernels, engines", title_justify="left")
    for column in ("check", "subject", "engine", "scope"):
        others.add_column(column)
    for column in ("SNR", "max |Δ|", "cosine", "limit"):
        others.add_column(column, justify="right")
    others.add_column("")
    for check in report.checks:
        if (check.kind, check.scope, check.subject) not in graph:
            others.add_row(
                check.kind, check.subject, check.engine, check.scope, snr(check.parity), deviation(check.parity),
                cosine(check.parity), limit(check.parity, check.limit_db),
                _status(check.status),
            )  # fmt: skip
    counts = ", ".join(
        f"{count} {status}" for status in splitter.Status if (count := sum(c.status is status for c in report.checks))
    )
    machine = "this" if report.same_machine else "another"
    ran = ""
    if report.partition_max_abs is not None:
        ran = f"partition max |Δ| {report.partition_max_abs:g}; goldens recorded on {machine} machine; "
    verdict = Text(
        f"{ran}{counts}: {'passed' if report.passed else 'FAILED'}",
        style=_COLOURS[splitter.Status.PASS if report.passed else splitter.Status.FAIL],
    )
    noted = [check for check in report.checks if check.note and check.status is not splitter.Status.PASS]
    notes = [Text(f"{check.kind} {check.subject}: {check.status}: {check.note}") for check in noted]
    return Group(*(table for table in (boundaries, others) if table.row_count), *notes, verdict)


def skipped_table(skipped: Sequence[SkippedPlace]) -> RenderableType:
    """A row per place that a graph pass left alone."""
    table = Table(title="places that graph passes left alone", title_justify="left")
    for column in ("segment", "pass", "operator", "module", "reason"):
        table.add_column(column, overflow="fold")
    for place in skipped:
        table.add_row(place.segment, place.graph_pass, place.node, place.module, place.reason)
    return table if skipped else Text("no graph pass left a place alone")


def layout_tables(layouts: Sequence[Layout]) -> RenderableType:
    """A row per layout, and below it a row per package of the last."""
    table = Table(title="layouts; operations and compile times are estimates", title_justify="left")
    table.add_column("")
    for column in ("packages", "operations", "largest", "weights", "largest", "boundaries", "within stages",
                   "working set", "compile", "longest"):  # fmt: skip
        table.add_column(column, justify="right")
    for layout in layouts:
        operations = [package.operations for package in layout.packages]
        weights = [package.weight_bytes for package in layout.packages]
        seconds = [package.compile_seconds for package in layout.packages]
        table.add_row(
            layout.name, f"{len(layout.packages)}", f"{sum(operations)}", f"{max(operations, default=0)}",
            size(sum(weights)), size(max(weights, default=0)), size(layout.boundary_bytes), size(layout.internal_bytes),
            size(max((package.working_set for package in layout.packages), default=0)),
            f"{sum(seconds):.0f} s", f"{max(seconds, default=0):.0f} s",
        )  # fmt: skip
    packages = Table(title=f"packages, {layouts[-1].name}", title_justify="left")
    packages.add_column("package")
    for column in ("operations", "weights", "working set", "compile"):
        packages.add_column(column, justify="right")
    for package in layouts[-1].packages:
        packages.add_row(
            package.name, f"{package.operations}", size(package.weight_bytes), size(package.working_set),
            f"{package.compile_seconds:.0f} s",
        )  # fmt: skip
    return Group(table, packages)


def new_plan_tables(new: NewPlan) -> RenderableType:
    """A row per module, and below it a row per stage and target that was tried."""
    modules = Table(title="modules", title_justify="left")
    for column in ("module", "stage", "operators"):
        modules.add_column(column, overflow="fold")
    for column in ("FLOPs", "parameters"):
        modules.add_column(column, justify="right")
    for module in new.modules:
        most = [f"{name} {count}" for name, count in [*module.operators.items()][:_PLACES]]
        more = ["…"] if len(module.operators) > _PLACES else []
        modules.add_row(
            module.path or "(forward)", module.stage or "several", ", ".join(most + more),
            operations(module.flops), f"{module.parameters:,}",
        )  # fmt: skip
    stages = Table(title="stages", title_justify="left")
    for column in ("stage", "modules", "target", ""):
        stages.add_column(column, overflow="fold")
    for stage in new.plan.stages:
        for trial in (attempt for attempt in new.trials if attempt.stage == stage.name):
            verdict = f"no: {trial.refusal}" if trial.refusal else "lowers it"
            stages.add_row(stage.name, ", ".join(stage.modules) or "(what no other stage has)", trial.target, verdict)
    return Group(modules, stages)


def port_table(report: PortReport, *, failures: bool) -> RenderableType:
    """Where the port first leaves the model, a row per tap of a dump, and what is missing or misnamed.

    Args:
        failures: Only rows of taps that fail.
    """
    verdict = Text(report.verdict, style=_COLOURS[splitter.Status.PASS if report.passed else splitter.Status.FAIL])
    table = Table(title="port against the captured model", title_justify="left")
    for column in ("tap", "dtype", "scope"):
        table.add_column(column)
    for column in ("SNR", "max |Δ|", "relative", "accumulated", "limit"):
        table.add_column(column, justify="right")
    table.add_column("")
    table.add_column("likely cause", overflow="fold")
    shown = [tap for tap in report.taps if not failures or tap.check.status is splitter.Status.FAIL]
    for tap in shown:
        check, parity = tap.check, tap.check.parity
        table.add_row(
            check.subject,
            tap.dtype,
            check.scope,
            snr(check.parity),
            deviation(check.parity),
            "" if parity is None or parity.relative is None else f"{parity.relative:.1e}",
            "" if tap.accumulated is None or tap.accumulated.snr_db is None else f"{tap.accumulated.snr_db:.1f} dB",
            limit(check.parity, check.limit_db),
            _status(check.status),
            check.note,
        )
    notes = [
        Text(f"{name!r} is no tap" + (f"; is it {near}?" if near else ""), style=_COLOURS[splitter.Status.FAIL])
        for name, near in report.misnamed.items()
    ]
    if report.missing and not failures:
        some = ", ".join(report.missing[:6]) + (", …" if len(report.missing) > 6 else "")
        notes.append(Text(f"{len(report.missing)} taps are not in the dump: {some}"))
    return Group(verdict, *notes, *([table] if shown else []))


def _status(*statuses: splitter.Status) -> Text:
    """The worst of them."""
    order = (splitter.Status.FAIL, splitter.Status.NOT_RUN, splitter.Status.NOT_APPLICABLE, splitter.Status.PASS)
    worst = min(statuses, key=order.index)
    return Text(str(worst), style=_COLOURS[worst])


def doctor_tables(report: DoctorReport, *, everything: bool) -> RenderableType:
    """What to do, the causes of what the doctor found, and placement on the engine; or every finding besides."""
    counts = ", ".join(f"{count} {severity}" for severity, count in report.counts.items())
    worst = next((severity for severity, count in report.counts.items() if count), None)
    shares = " and ".join(
        f"{share(report.flop_share(in_half=half))} {how}"
        for half, how in ((False, "as it is"), (True, "in half precision"))
    )
    verdict = Text(
        f"{report.path}: {counts}; FLOPs on the engine {shares}", style=_SEVERITIES[worst] if worst else "green"
    )
    parts = [*_actions(report), _causes_table(report, everything), _placements_table(report, everything)]
    if everything:
        parts += [_findings_table(diagnosis) for diagnosis in report.diagnoses]
        parts.append(Text(_PUBLISHED))
    elif report.causes:
        parts.append(Text("--all shows every finding, --json all there is."))
    return Group(*parts, verdict)


def _actions(report: DoctorReport) -> list[RenderableType]:
    """What to do, a line or two each."""
    lines: list[RenderableType] = [Text("Do this", style="bold")] if report.actions else []
    for number, action in enumerate(report.actions, 1):
        moved = f": moves {share(action.flop_share)} of the FLOPs onto the engine" if action.flop_share else ""
        cause, others = action.causes[0], len(action.causes) - 1
        rules = f"{cause.rule.id}{f' and {others} more' if others else ''}"
        places = (
            f"{action.places} places, first {_place(cause.example)}" if action.places > 1 else _place(cause.example)
        )
        lines.append(Text(f"{number}. {action.do}{moved} ({rules}: {places})."))
    return lines


def _place(finding: Finding) -> str:
    return f"{finding.operation} {finding.output}".strip() or "the package"


def _causes_table(report: DoctorReport, everything: bool) -> RenderableType:
    table = Table(title="causes, the costliest first", title_justify="left")
    for column in ("severity", "rule"):
        table.add_column(column, no_wrap=True)
    for column in ("places", "FLOPs off"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("first", overflow="fold")
    shown = report.causes if everything else report.causes[:_CAUSES]
    for cause in shown:
        severity, first = cause.rule.severity, f"{_place(cause.example)}: {cause.example.what}"
        table.add_row(
            Text(str(severity), style=_SEVERITIES[severity]),
            cause.rule.id,
            f"{cause.places}",
            share(cause.flop_share) if cause.flop_share else "",
            Text(first) if everything else Text(first, no_wrap=True, overflow="ellipsis"),
        )
    if len(shown) < len(report.causes):
        table.add_row("", f"… {len(report.causes) - len(shown)} more", "", "", "")
    return table


def _placements_table(report: DoctorReport, everything: bool) -> RenderableType:
    """A row for each function: what can run on the engine as it is; with everything, in half precision too."""
    table = Table(title=f"Neural Engine, {report.chip.upper()}", title_justify="left")
    table.add_column("package", overflow="fold")
    for column in ("operations there", "FLOPs there", "changes", "values that cross", "compile, estimated"):
        table.add_column(column, justify="right")
    shown = report.diagnoses if everything else report.diagnoses[:_PACKAGES]
    for diagnosis in shown:
        name = Path(diagnosis.package).name + ("" if diagnosis.function == "main" else f" ({diagnosis.function})")
        states = [(diagnosis.placement, diagnosis.compile_time, "")]
        if everything:
            states.append((diagnosis.placement_in_half, diagnosis.compile_time_in_half, ", in half precision"))
        for placement, estimate, how in states:
            crossing = f"{len(placement.crossing)} ({size(placement.crossing_bytes)})" if placement.crossing else "0"
            table.add_row(
                name + how, share(placement.operation_share), share(placement.flop_share), f"{placement.changes}",
                crossing, duration(estimate.bounds),
            )  # fmt: skip
    if len(shown) < len(report.diagnoses):
        table.add_row(f"… {len(report.diagnoses) - len(shown)} more")
    return table


def _findings_table(diagnosis: Diagnosis) -> RenderableType:
    """A row for each finding; what a rule means, with its first."""
    ran = "run on its inputs" if diagnosis.measured else "not run"
    table = Table(title=f"{diagnosis.package} ({diagnosis.function}), {ran}", title_justify="left")
    for column in ("severity", "rule", "where", "what", "likely fix"):
        table.add_column(column, overflow="fold")
    before = ""
    for finding in diagnosis.findings:
        severity, fix = Text(str(finding.severity), style=_SEVERITIES[finding.severity]), finding.fix
        table.add_row(severity, finding.rule, _place(finding), finding.what, "" if finding.rule == before else fix)
        before = finding.rule
    return table


def comparison_tables(comparison: Comparison) -> RenderableType:
    """What is written otherwise, and where values part; a row per array of files."""
    parts: list[RenderableType] = [Text(note) for note in comparison.notes]
    for package in comparison.packages:
        found = package.found
        if found.written:
            parts.append(_written_table(package.subject, found.written))
        for which, names in (("first", found.only_first), ("second", found.only_second)):
            if names:
                shown = ", ".join(names[:_PLACES]) + (", …" if len(names) > _PLACES else "")
                parts.append(Text(f"{package.subject}: {len(names)} operations of the {which} alone: {shown}"))
        if package.run_on:
            first, below = found.first_difference, found.first_below(comparison.min_snr_db)
            parts.append(Text(f"{package.subject}, on {package.run_on}: {_divergence('first difference', first)}"))
            if first is not None:
                label = f"first below {comparison.min_snr_db:g} dB"
                parts.append(Text(f"{package.subject}: {_divergence(label, below)}"))
    if comparison.values:
        table = Table(title="values", title_justify="left")
        table.add_column("name", overflow="fold")
        for column in ("SNR", "max |Δ|", "range, first", "range, second"):
            table.add_column(column, justify="right")
        for value in comparison.values:
            ranges = (f"{low:.4g} … {high:.4g}" for low, high in value.ranges)
            table.add_row(value.name, snr(value.parity) or "other shapes", deviation(value.parity), *ranges)
        parts.append(table)
    verdict = "the same" if comparison.identical else "they differ"
    parts.append(Text(f"{comparison.first} and {comparison.second}: {verdict}"))
    return Group(*parts)


def _written_table(subject: str, pairs: Sequence[Pair]) -> RenderableType:
    """A row for each way in which operations are written otherwise, with how many are."""
    table = Table(title=f"{subject}: written otherwise", title_justify="left")
    table.add_column("operations", justify="right")
    for column in ("first of them", "what"):
        table.add_column(column, overflow="fold")
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        for what in pair.written:
            groups.setdefault(what, []).append(pair)
    for what, members in [*groups.items()][:_WRITTEN]:
        pair = members[0]
        name = pair.first if pair.first == pair.second else f"{pair.first} / {pair.second}"
        table.add_row(f"{len(members)}", f"{pair.type} {name}", what)
    if len(groups) > _WRITTEN:
        table.add_row(f"{sum(map(len, [*groups.values()][_WRITTEN:]))}", "…", "more; --json has all")
    return table


def _divergence(label: str, pair: Pair | None) -> str:
    if pair is None or pair.parity is None or pair.ranges is None:
        return f"{label}: none"
    (low, high), (least, most) = pair.ranges
    return (
        f"{label}: {pair.type} {pair.first}, {snr(pair.parity)}; {low:.4g} … {high:.4g} in the first, "
        f"{least:.4g} … {most:.4g} in the second"
    )


def frontier_table(choice: precision.PrecisionChoice) -> RenderableType:
    """What was measured in choosing a precision, from all in half to all in float32."""
    table = Table(title=f"Precision for {choice.min_snr_db:g} dB", title_justify="left")
    table.add_column("")
    for name in ("operations in fp32", "FLOPs in fp16", "changes of type", *choice.excerpts):
        table.add_column(name, justify="right")
    for points in (choice.frontier, (choice.chosen,), choice.rules):
        for point in points:
            table.add_row(
                point.name,
                f"{point.fp32_operations} of {point.operations}",
                share(point.fp16_flops),
                f"{point.device_changes}",
                *(f"{snr:.1f} dB" for snr in point.snr_db),
                style="bold" if point is choice.chosen else "",
            )
        table.add_section()
    return table


def sizes_table(choice: compression.WeightChoice) -> RenderableType:
    """What was measured in choosing forms of weights: size against every stem's SNR, SDR and what it loses."""
    table = Table(title=f"Weights for a drop of {choice.max_sdr_drop_db:g} dB", title_justify="left")
    table.add_column("")
    for name in ("size", "of fp16", "drop"):
        table.add_column(name, justify="right")
    named = list(dict.fromkeys((score.excerpt, score.name) for score in choice.chosen.stems))
    for excerpt, stem in named:
        table.add_column(f"{excerpt}: {stem}", justify="right")
    for points in ((choice.chosen,), choice.uniform, choice.frontier):
        for point in points:
            found = {(score.excerpt, score.name): score for score in point.stems}
            cells = []
            for key in named:
                score = found[key]
                sdr = "" if score.sdr_db is None else f"\nSDR {score.sdr_db:.3f} dB"
                cells.append(f"{score.snr_db:.1f} dB{sdr}")
            table.add_row(
                point.name, size(point.bytes), share(point.share), f"{point.drop_db:.3f} dB", *cells,
                style="bold" if point is choice.chosen else "",
            )  # fmt: skip
        table.add_section()
    return table


def profile_tables(profile: Profile) -> RenderableType:
    """Where time and memory go: a row per segment and engine, per family of operations, per boundary tensor."""
    shown = (profile, *profile.others)
    heads = [_machine_text(profile, number if len(shown) > 1 else 0) for number, profile in enumerate(shown, 1)]
    return Group(
        *heads,
        _times_table(shown),
        _work_table(profile),
        _families_table(profile),
        _core_ml_table(shown),
        _checks_table(profile),
    )


def engine_choice_table(choice: EngineChoice) -> RenderableType:
    """What each engine takes for each segment, and which one is chosen."""
    table = Table()
    for column in ("segment", "engine"):
        table.add_column(column)
    for column in ("a run", "load", "SNR"):
        table.add_column(column, justify="right")
    table.add_column("chosen")
    measured = {trial.segment for trial in choice.trials}
    for trial in choice.trials:
        if trial.seconds is None:
            table.add_row(trial.segment, trial.engine, "", "", "", trial.failure)
            continue
        chosen = "yes" if choice.engines[trial.segment] == trial.engine else ""
        snr = "equal" if trial.snr_db is None else f"{trial.snr_db:.1f} dB"
        table.add_row(trial.segment, trial.engine, time(trial.seconds), time(trial.load_seconds), snr, chosen)
    for segment, engine in choice.engines.items():
        if segment not in measured:
            table.add_row(segment, engine, "", "", "", "yes, the only one")
    return table


def _machine_text(profile: Profile, number: int) -> Text:
    run, machine = profile.run, profile.machine
    runs = f"{profile.samples} samples a run, " if profile.samples is not None else ""
    return Text(
        f"{f'[{number}] ' if number else ''}{profile.model}: {runs}{profile.precision} "
        f"packages; {profile.system}\n"
        f"{machine.processor}, PyTorch {machine.torch}, threads: {machine.threads}; at most "
        f"{operations(profile.limits.flops_per_second)}FLOP/s in a matrix product and "
        f"{size(round(profile.limits.bytes_per_second))}/s in a copy\n"
        f"a run takes {time(run.wall.median)} (spread {time(run.wall.spread)}, warm-up {time(*run.wall.warmup)}); "
        f"segments and checks account for {share(run.accounted)}, the checks alone for {share(run.checks)}"
    )


def _times_table(profiles: Sequence[Profile]) -> Table:
    """Side by side: a segment's engines, on each machine."""
    table = Table(title="segments: time, and share of the machine's limits", title_justify="left")
    for column in ("segment", "engine"):
        table.add_column(column)
    for column in ("median", "spread", "warm-up", "of the run", "ratio", "load", "compute", "bandwidth"):
        table.add_column(column, justify="right")
    for name in dict.fromkeys(segment.name for profile in profiles for segment in profile.segments):
        for number, profile in enumerate(profiles, 1):
            for segment in (segment for segment in profile.segments if segment.name == name):
                first = segment.engines[0].latency.median
                for place, engine in enumerate(segment.engines):
                    latency = engine.latency
                    table.add_row(
                        "" if place else name, f"[{number}] {engine.engine}" if len(profiles) > 1 else engine.engine,
                        time(latency.median), time(latency.spread), time(*latency.warmup),
                        "" if place else share(first / profile.run.wall.median),
                        f"{latency.median / first:.2f}" if place else "", time(engine.load_seconds),
                        share(engine.compute_share), share(engine.bandwidth_share),
                    )  # fmt: skip
    return table


def _work_table(profile: Profile) -> Table:
    table = Table(title="segments: work and memory", title_justify="left")
    table.add_column("segment")
    for column in ("parameters", "FLOPs", "moved", "in and out"):
        table.add_column(column, justify="right")
    table.add_column("engine")
    for column in ("loaded", "running"):
        table.add_column(column, justify="right")
    for segment in profile.segments:
        work = (f"{segment.parameters:,}", operations(segment.flops), size(segment.moved_bytes))
        for place, engine in enumerate(segment.engines):
            table.add_row(
                *(("",) * 5 if place else (segment.name, *work, size(segment.boundary_bytes))), engine.engine,
                *((size(engine.memory.loaded), size(engine.memory.running)) if engine.memory else ("n/a", "n/a")),
            )  # fmt: skip
    return table


def _families_table(profile: Profile) -> RenderableType:
    """Of those engines that can look inside."""
    table = Table(title="families of operations, run one by one", title_justify="left")
    table.add_column("family")
    columns = []
    for segment in profile.segments:
        for engine in segment.engines:
            if engine.families is not None:
                table.add_column(f"{segment.name}\n{engine.engine}", justify="right")
                columns.append(engine.families)
    total = {family: sum(column.get(family, 0.0) for column in columns) for column in columns for family in column}
    for family in sorted(total, key=total.__getitem__, reverse=True):
        table.add_row(family, *(time(column.get(family)) for column in columns))
    return table if columns else Text("no engine looks inside its segment")


def _core_ml_table(profiles: Sequence[Profile]) -> RenderableType:
    """Of packages that Core ML ran, on whichever machine."""
    table = Table(title="Core ML", title_justify="left")
    for column in ("package", "units"):
        table.add_column(column)
    for column in ("compile", "load"):
        table.add_column(column, justify="right")
    table.add_column("where its operations run (share of the estimated cost)")
    for number, profile in enumerate(profiles, 1):
        for segment in profile.segments:
            for figures in (engine.coreml for engine in segment.engines if engine.coreml is not None):
                devices = (
                    f"{name}: {device.operations} ({share(device.cost)})" for name, device in figures.devices.items()
                )
                table.add_row(
                    f"[{number}] {segment.name}" if len(profiles) > 1 else segment.name, figures.compute_units,
                    time(figures.compile_seconds), time(figures.load_seconds), ", ".join(devices),
                )  # fmt: skip
    return table if table.row_count else Text("Core ML (compile time, load time, placement): not run here")


def _checks_table(profile: Profile) -> Table:
    table = Table(title="boundary tensors and their checks", title_justify="left")
    for column in ("tensor", "from", "to"):
        table.add_column(column)
    for column in ("size", "moved", "check", "spread", "warm-up", "of the run", "bandwidth"):
        table.add_column(column, justify="right")
    for tensor in profile.boundaries:
        check = tensor.check
        table.add_row(
            tensor.name, tensor.producer, ", ".join(tensor.consumers), size(tensor.bytes), size(tensor.moved_bytes),
            time(check.median), time(check.spread), time(*check.warmup),
            share(check.median / profile.run.wall.median), share(tensor.bandwidth_share),
        )  # fmt: skip
    return table
