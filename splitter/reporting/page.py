"""Findings as one HTML page that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import formatting, output
from ..bundle.directory import Source, single
from ..diagnosis import Diagnosis, Finding
from ..errors import UsageError
from ..lowering import Target, target
from ..names import visible
from ..profiling import Profile
from ..verification.checks import Check, Status, least_to_spare
from . import charts, diagram
from .findings import Findings, NotRun, Progress, gather
from .listening import ListeningPanel, PlayedSound

_MOST_PLACES = 12  # of a rule's findings; the doctor's JSON document has all
_FILES = resources.files(__package__).joinpath("templates")
_TEMPLATES = Environment(
    loader=PackageLoader(__package__),
    autoescape=True,  # names of models, tensors, stems and files are anybody's
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Page:
    """A page that was written.

    Attributes:
        path: The file.
        bytes: Its size.
        verified: All that the bundle was asked passed.
    """

    path: Path
    bytes: int
    verified: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"report": str(self.path), "bytes": self.bytes, "verified": self.verified}


def report(
    bundle: Source,
    out: Path | str = "report.html",
    engines: Sequence[tuple[str, str]] = (),
    *,
    force: bool = False,
    progress: Progress = lambda step: None,
    **options: Any,
) -> Page:
    """Show a bundle on one HTML page that loads nothing: its split, sound, errors by cause, doctor, profile.

    Args:
        bundle: Its directory, or what was opened already.
        out: File to write.
        engines: As for `gather`.
        force: Replace a file that is already there.
        progress: Told of each step.
        options: Others of `gather`.

    Raises:
        SplitterError: Of the kind that names what went wrong. Nothing is left behind.
    """
    out = Path(out)
    check_free(out, force=force)
    findings = gather(single(bundle), engines, progress=progress, **options)
    progress("drawing the page")
    return Page(out, write(findings, out, force=force), findings.verification.passed)


def write(findings: Findings, out: Path, *, force: bool = False) -> int:
    """Write the page; whole, or not at all.

    Returns:
        Its size in bytes.

    Raises:
        UsageError: Something is there and ``force`` is not given, or it cannot be written.
    """
    check_free(out, force=force)
    page = render(findings).encode()
    with output.whole(out) as waiting:
        waiting.write_bytes(page)
    return len(page)


def check_free(out: Path, *, force: bool) -> None:
    """Before all that takes minutes.

    Raises:
        UsageError: A file is there and ``force`` is not given, or none can be written there.
    """
    output.check(out)
    if out.exists() and not force:
        raise UsageError(f"{out} exists already", fix="Use --force to replace it.")


def render(findings: Findings) -> str:
    """The page, in which characters that hide or reorder text are shown."""
    player, style = (_FILES.joinpath(name).read_text(encoding="utf-8") for name in ("player.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(player.encode()).digest()).decode()
    manifest, checks = findings.bundle.manifest, findings.verification.checks
    targets = {segment.artifact.target: target(segment.artifact.target) for segment in findings.bundle.segments}
    ports = {name for name, kind in targets.items() if kind.capabilities.weights and not kind.capabilities.reference}
    linked = [replace(check, kind="port") if check.kind in ports else check for check in checks]
    panel = None if isinstance(findings.listening, NotRun) else findings.listening
    profiles = _profiles(findings)
    page = _TEMPLATES.get_template("page.html").render(
        findings=findings,
        bundle=findings.bundle,
        manifest=manifest,
        model=manifest.model,
        split=diagram.draw(findings.bundle, findings.engines),
        waterfall=charts.waterfall(findings.chain.points, manifest.plan.tolerances.negligible_max_abs),
        causes=charts.causes(linked),
        cause_rows=[_Answer.of(cause, _CAUSES[cause], linked) for cause in charts.CAUSES],
        markers=_MARKERS,
        answers=[
            _Answer.of(kind, question, checks)
            for kind, question in _questions(targets).items()
            if any(check.kind == kind for check in checks)
        ],
        statuses=", ".join(f"{count} {status}" for status, count in _counts(checks).items()),
        doctor=None if isinstance(findings.doctor, NotRun) else findings.doctor,
        most=_MOST_PLACES,
        profiles=profiles,
        unprofiled=findings.profile.why if isinstance(findings.profile, NotRun) else "",
        times=charts.times([(shown.number, shown.profile) for shown in profiles]) if profiles else None,
        core_ml=[
            (shown.number, segment.name, engine.coreml)
            for shown in profiles
            for segment in shown.profile.segments
            for engine in segment.engines
            if engine.coreml is not None
        ],
        panel=panel,
        rows=list(_rows(panel)) if panel else [],
        scale=_scale(panel) if panel else [],
        sound=_sound(panel) if panel else {},
        player=Markup(player),  # noqa: S704 (the package's own file)
        player_digest=digest,
        style=Markup(style),  # noqa: S704 (the same)
    )
    return visible(page, keep="\n\t")


# ---------------------------------------------------------------------------------------------- checks

_MARKERS = dict(zip(charts.CAUSES, "●■▲◆", strict=True))
_CAUSES: Mapping[str, str] = {
    "conversion": "the fp32 package does what the captured segment does",
    "precision": "the package in the asked precision does what the fp32 one does",
    "compression": "the package with compressed weights does what the uncompressed one does",
    "port": "the transformer written by hand does what the graph does",
}


def _questions(targets: Mapping[str, Target]) -> dict[str, str]:
    """What each kind of check asks."""
    shipped = {name: kind.question for name, kind in targets.items() if not kind.capabilities.reference}
    devices = {kind.capabilities.device_engine for kind in targets.values()}
    return {
        "files": "every file has the hash that the manifest says",
        "partition": "the segments in order give what the whole capture gives, bit for bit",
        "golden": "the captured programs give what the untouched model gave",
        "boundary": "so they do with tensors rounded where they cross",
        **shipped,
        "artifact": "what was saved is what was asked for",
        **{kind: question for kind, question in _CAUSES.items() if kind != "port"},
        "finite": "nothing overflows inside a package",
        "package": "a run with the shipped packages gives what the untouched model gives",
        **dict.fromkeys(sorted(devices), "on its device, a package gives what the untouched model gives"),
    }


@dataclass(frozen=True)
class _Answer:
    """All checks of one kind.

    Attributes:
        status: The worst of those that ran; what passed weighs more than what was not run, which `counts` tells.
        counts: How many have each.
        worst: The comparison with the least to spare.
        notes: Why, where something did not pass.
    """

    kind: str
    question: str
    status: Status
    counts: Mapping[Status, int]
    worst: Check | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, kind: str, question: str, checks: Sequence[Check]) -> _Answer:
        mine = [check for check in checks if check.kind == kind]
        counts = _counts(mine)
        order = (Status.FAIL, Status.PASS, Status.NOT_RUN, Status.NOT_APPLICABLE)
        notes = dict.fromkeys(
            f"{check.subject}: {check.note}" for check in mine if check.note and check.status is not Status.PASS
        )
        return cls(
            kind,
            question,
            next((status for status in order if counts.get(status)), Status.NOT_RUN),
            counts,
            min(
                (check for check in mine if check.parity is not None and _decides(check)),
                key=least_to_spare,
                default=None,
            ),
            tuple(notes),
        )


def _decides(check: Check) -> bool:
    """Its decibels do, and not that the difference is negligible whatever they are."""
    snr = check.parity.snr_db if check.parity else None
    return check.status is Status.FAIL or check.limit_db is None or snr is None or snr >= check.limit_db


def _counts(checks: Sequence[Check]) -> dict[Status, int]:
    found = Counter(check.status for check in checks)
    return {status: found[status] for status in Status if found[status]}


def _by_rule(diagnosis: Diagnosis) -> dict[str, list[Finding]]:
    """The findings of each rule, the worst rules first."""
    found: dict[str, list[Finding]] = {}
    for finding in diagnosis.findings:
        found.setdefault(finding.rule, []).append(finding)
    return found


# -------------------------------------------------------------------------------------------- profiles


@dataclass(frozen=True)
class _Shown:
    """A profile on the page.

    Attributes:
        number: That it goes by, if there are several.
        source: Where it comes from.
    """

    number: str
    source: str
    profile: Profile


def _profiles(findings: Findings) -> list[_Shown]:
    measured = [] if isinstance(findings.profile, NotRun) else [("measured for this report", findings.profile)]
    every = measured + [
        (f"read from {recorded.file}, not run here", recorded.profile) for recorded in findings.recorded
    ]
    several = len(every) > 1
    return [
        _Shown(f"[{place}]" if several else "", source, profile) for place, (source, profile) in enumerate(every, 1)
    ]


# ----------------------------------------------------------------------------------------------- sound


@dataclass(frozen=True)
class _Row:
    """One thing that can be heard: two pictures with the names that the player knows it by."""

    key: str
    stem: str
    source: str
    about: str
    waveform: Markup
    spectrogram: str


def _rows(panel: ListeningPanel) -> Iterator[_Row]:
    yield _row("mixture", "", "mixture", "mixture", panel.mixture)
    for place, stem in enumerate(panel.stems):
        for source, sound in (("reference", stem.reference), ("split", stem.split), ("difference", stem.difference)):
            if sound is not None:
                yield _row(f"{place}-{source}", str(place), source, f"{stem.name}, {source}", sound)


def _row(key: str, stem: str, source: str, about: str, sound: PlayedSound) -> _Row:
    picture = f"data:image/png;base64,{_text(sound.spectrogram)}"
    return _Row(key, stem, source, about, charts.waveform(sound, f"wave-{key}"), picture)


def _sound(panel: ListeningPanel) -> dict[str, Any]:
    """What the player reads."""
    streams = {"mixture": _text(panel.mixture.mp3)}
    for place, stem in enumerate(panel.stems):
        streams[f"{place}-reference"] = _text(stem.reference.mp3)
        streams[f"{place}-split"] = _text(stem.split.mp3)
        if stem.difference is not None:
            streams[f"{place}-difference"] = _text(stem.difference.mp3)
    return {"seconds": panel.seconds, "streams": streams}


def _scale(panel: ListeningPanel) -> list[tuple[float, str]]:
    """Frequencies along a spectrogram, in per cent of its height."""
    span = math.log(panel.highest / panel.lowest)
    marks = ((100.0, "100 Hz"), (1000.0, "1 kHz"), (10_000.0, "10 kHz"))
    return [(100 * math.log(hertz / panel.lowest) / span, told) for hertz, told in marks if hertz < panel.highest]


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


# --------------------------------------------------------------------------------------------- wording


def _signed(decibels: float) -> str:
    return f"{decibels:+.0f} dB".replace("-", "−")


_TEMPLATES.filters |= {
    "size": formatting.size,
    "operations": formatting.operations,
    "share": formatting.share,
    "time": formatting.time,
    "duration": formatting.duration,
    "snr": formatting.snr,
    "deviation": formatting.deviation,
    "cosine": formatting.cosine,
    "limit": lambda check: formatting.limit(check.parity, check.limit_db),
    "signed": _signed,
    "by_rule": _by_rule,
    "because": lambda note: note.partition(": ")[2],
    "filename": lambda path: Path(path).name,
    "link": lambda url: url if url.startswith("https://") else "#doctor",
    "css": lambda status: str(status).replace(" ", "-").replace("/", ""),
}
