"""Everything a report tells, gathered: what was run, what it gave, and what was not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from .. import diagnosis as doctor
from .. import profiling
from ..boundary import Array
from ..bundle import goldens
from ..bundle.directory import Bundle
from ..bundle.manifest import Machine
from ..errors import BundleError, SplitterError
from ..lowering import ML_PACKAGE, capabilities
from ..profiling import Profile
from ..runtime.engines import REFERENCE
from ..runtime.orchestrator import Orchestrator
from ..separation.audio import Block, Track
from ..verification.checks import Report as Verification
from ..verification.checks import Status
from ..verification.verify import verify_bundle
from . import chain, listening
from .chain import Chain
from .listening import ListeningPanel

Progress: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class NotRun:
    """Something that was left out, or could not be done."""

    why: str


@dataclass(frozen=True)
class Recorded:
    """A profile from a file, and what the file is called."""

    file: str
    profile: Profile


@dataclass(frozen=True)
class Findings:
    """What is known of a bundle.

    Attributes:
        engines: That ran the split, by segment.
        profile: Measured here.
        recorded: Measured elsewhere, or at another time.
        made: When, in UTC.
        machine: Where.
    """

    bundle: Bundle
    engines: Mapping[str, str]
    verification: Verification
    chain: Chain
    listening: ListeningPanel | NotRun
    doctor: doctor.DoctorReport | NotRun
    profile: Profile | NotRun
    recorded: tuple[Recorded, ...]
    made: datetime
    machine: Machine


def gather(
    bundle: Bundle,
    engines: Sequence[tuple[str, str]] = (),
    *,
    audio: Path | None = None,
    start: float = 0.0,
    seconds: float = 20.0,
    runs: int = 3,
    warmup: int = 1,
    profiles: Sequence[Path] = (),
    chip: str = "m1",
    compute_units: str = "ALL",
    progress: Progress = lambda step: None,
) -> Findings:
    """Verify, examine, run, separate and profile a bundle.

    Args:
        bundle: What to report on.
        engines: Pairs of segment and engine; the first for a segment runs the split, all are profiled. Segments left
            out are run by what runs the file that ships, see `chain.chosen_engines`. ``torch`` is profiled beside.
        audio: File to hear the split on; the bundle's golden input where None.
        start: Of the excerpt of that file, in seconds.
        seconds: Length of the excerpt, at most.
        runs: Counted runs of the profile; 0 leaves it out.
        warmup: Runs before them.
        profiles: Files that ``splitter profile --json`` printed, to show beside.
        chip: Family whose limits the doctor counts.
        compute_units: For Core ML.
        progress: Told of each step.

    Raises:
        UsageError: There is no such segment, or a file is no profile of this model.
        EngineError: An engine cannot run its segment here.
        AudioError: The file cannot be read, or does not sound there.
        BundleError: A file of the bundle is not what was built.
    """
    chosen = chain.chosen_engines(bundle, engines)
    recorded = tuple(profile for path in profiles for profile in _recorded(bundle, path))
    part = None
    if audio is not None:  # first of all: it may lack what is asked for
        sound = bundle.audio
        part = audio.name, listening.part(Track(audio, sound.samplerate, sound.channels), start, seconds)
    progress("loading")
    seen = chain.Seen()
    split = Orchestrator(bundle, chosen, compute_units=compute_units, hooks=[seen])
    progress("verifying")
    verification = verify_bundle(bundle, compute_units=compute_units, progress=progress)
    files = verification.checks[0]
    if files.status is Status.FAIL:
        raise BundleError(files.note)
    progress("running the split")
    golden = bundle.goldens()
    found = chain.run(split, seen, golden)
    panel = _listening(split, golden, found, part, progress)
    return Findings(
        bundle=bundle,
        engines=chosen,
        verification=verification,
        chain=found,
        listening=panel,
        doctor=_examined(bundle, chip, progress),
        profile=_profiled(bundle, chosen, engines, runs, warmup, compute_units, progress),
        recorded=recorded,
        made=datetime.now(UTC),
        machine=goldens.machine(),
    )


def _recorded(bundle: Bundle, path: Path) -> list[Recorded]:
    model = bundle.manifest.model
    found = profiling.apart(profiling.read(path))
    for profile in found:
        profiling.check_same_model(profile, model.name, model.checkpoint_sha256, model.samples)
    return [Recorded(path.name, profile) for profile in found]


def _listening(
    split: Orchestrator,
    golden: Mapping[str, Array],
    found: Chain,
    part: tuple[str, Block] | None,
    progress: Progress,
) -> ListeningPanel | NotRun:
    bundle = split.bundle
    if bundle.manifest.model.audio is None:
        return NotRun("the model does not separate sound")
    if part is None and found.stems is None:
        return NotRun(found.error)
    try:
        if part is not None:
            excerpt = listening.audio_excerpt(split, *part, progress)
        else:
            assert found.stems is not None
            excerpt = listening.golden_excerpt(bundle, golden, found.stems)
        progress("making the sounds")
        return listening.panel(bundle, excerpt)
    except SplitterError as error:  # the split does not get through this sound
        return NotRun(str(error))


def _examined(bundle: Bundle, chip: str, progress: Progress) -> doctor.DoctorReport | NotRun:
    if not any(capabilities(segment.artifact.target).artifact == ML_PACKAGE for segment in bundle.segments):
        return NotRun("the bundle has no Core ML package")
    try:
        return doctor.examine(bundle.path, chip=chip, progress=progress)
    except SplitterError as error:
        return NotRun(str(error))


def _profiled(
    bundle: Bundle,
    chosen: Mapping[str, str],
    asked: Sequence[tuple[str, str]],
    runs: int,
    warmup: int,
    compute_units: str,
    progress: Progress,
) -> Profile | NotRun:
    if runs == 0:
        return NotRun("left out with --runs 0")
    pairs = list(dict.fromkeys([*asked, *chosen.items(), *((name, REFERENCE) for name in chosen)]))
    try:
        return profiling.profile(
            bundle, pairs, runs=runs, warmup=warmup, compute_units=compute_units, progress=progress
        )
    except SplitterError as error:  # the split does not get through a run, which the chain tells as well
        return NotRun(str(error))
