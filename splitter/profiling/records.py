"""What a profile says, as a JSON document; `docs/profile.schema.json` is this file as a JSON Schema."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from .. import reading
from ..bundle.manifest import Document, Machine, Record
from ..errors import UsageError
from ..plan.schema import readable

FORMAT: Literal["splitter.profile/1"] = "splitter.profile/1"
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Latency(Record):
    """Seconds of wall clock of one thing done again and again.

    Attributes:
        median: Of the counted runs.
        spread: Their interquartile range, half of them lie within it; None for a single run.
        runs: The counted runs, in order.
        warmup: The runs before them, which count for nothing.
    """

    median: Number
    spread: Number | None
    runs: tuple[Number, ...] = Field(min_length=1)
    warmup: tuple[Number, ...] = ()

    @classmethod
    def of(cls, seconds: Sequence[float], *, warmup: int) -> Latency:
        """The first so many are warm-up."""
        runs = seconds[warmup:]
        spread = None
        if len(runs) > 1:
            low, _, high = statistics.quantiles(runs, n=4, method="inclusive")
            spread = high - low
        return cls(median=statistics.median(runs), spread=spread, runs=tuple(runs), warmup=tuple(seconds[:warmup]))


class Memory(Record):
    """Resident memory of a fresh process that loads one segment with one engine and runs it once, in bytes.

    Attributes:
        loaded: What loading added and kept: weights, compiled code. (The engine ``torch`` reads the weights of all
            segments, which share them in one process.)
        running: The most that the first run added at any time: values between operations, outputs, and whatever
            the engine compiles then. Inputs are there before it.
        process: All that the process held at the end, its libraries included.
        how: ``kernel``: the system's own high-water mark; ``sampled``: looked at every millisecond, so that shorter
            peaks are missed. Memory of other devices, and of services of the system, is not in it.
    """

    loaded: Count
    running: Count
    process: Count
    how: Literal["kernel", "sampled"]


class Device(Record):
    """What Core ML plans to run on one device.

    Attributes:
        operations: How many.
        cost: Their part of the whole cost, 0 … 1, as Core ML estimates it.
    """

    operations: Count
    cost: Number


class CoreMLFigures(Record):
    """What Core ML says of a package, on a Mac.

    Attributes:
        compute_units: That it was allowed to use.
        compile_seconds: ``.mlpackage`` to ``.mlmodelc``.
        load_seconds: Of the compiled model.
        devices: By name (``CPU``, ``GPU``, ``Neural Engine``), from ``MLComputePlan``; operations for which it names
            none, constants above all, are left out.
    """

    compute_units: str
    compile_seconds: Number
    load_seconds: Number
    devices: dict[str, Device]


class EngineProfile(Record):
    """One way to run a segment.

    Attributes:
        engine: Its name.
        latency: The first engine of a segment is timed within runs of the orchestrator, the others between these
            runs and on the very arrays that the first one got.
        load_seconds: In a fresh process where memory is measured, imports left out.
        memory: See `Memory`; None where all segments ran in one process.
        compute_share: ``flops / median``, of the machine's limit.
        bandwidth_share: ``moved_bytes / median``, of the machine's limit. What fits into caches, and what an engine
            fuses, need not move: more than 1 is possible, and says so.
        families: Seconds by family of operations, in one run operation by operation (slower than the others); None
            from an engine that cannot look inside.
        coreml: Only from the engine ``coreml``, on a Mac; None is "not run".
    """

    engine: str
    latency: Latency
    load_seconds: Number
    memory: Memory | None
    compute_share: Number
    bandwidth_share: Number
    families: dict[str, Number] | None
    coreml: CoreMLFigures | None


class SegmentProfile(Record):
    """One segment.

    Attributes:
        target: What it was lowered to.
        parameters: Numbers in its weights.
        flops: Of its captured graph: 2 × multiplications of convolutions, matrix products and attention, and
            ``2.5 n log2 n`` for each real Fourier transform of n values. Everything else counts as none.
        moved_bytes: What the operators of its captured graph read and write, each operand once; views move nothing.
        boundary_bytes: Its inputs and outputs alone: less no engine can move.
        engines: Side by side; the first is the one that the orchestrator ran.
    """

    name: str
    target: str
    parameters: Count
    flops: Count
    moved_bytes: Count
    boundary_bytes: Count
    engines: tuple[EngineProfile, ...] = Field(min_length=1)


class BoundaryProfile(Record):
    """One tensor that is handed over.

    Attributes:
        producer: Segment that gives it, or ``"input"``.
        consumers: Segments that take it, or ``"output"``.
        bytes: Its size.
        moved_bytes: Written once, read by the check and by every segment that takes it.
        check: Of holding it against its spec.
        bandwidth_share: ``bytes / median`` of the check, of the machine's limit.
    """

    name: str
    producer: str
    consumers: tuple[str, ...]
    bytes: Count
    moved_bytes: Count
    check: Latency
    bandwidth_share: Number


class RunProfile(Record):
    """The orchestrator's runs as a whole.

    Attributes:
        wall: Seconds from the call to its return, measured around it.
        accounted: The part of it that segments and checks make up, median of the runs.
        checks: The part that the checks make up.
    """

    wall: Latency
    accounted: Number
    checks: Number


class Limits(Record):
    """What this machine can do, measured before the runs and after them; the best of all attempts.

    Attributes:
        flops_per_second: A float32 matrix product.
        bytes_per_second: A copy in memory, read and written bytes together.
    """

    flops_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    bytes_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Profile(Document):
    """A bundle on a machine.

    Attributes:
        bundle: Its directory.
        model: Its name.
        checkpoint_sha256: Of the checkpoint it was built from; None for random weights.
        samples: Length of a run of a separator; None of other models.
        precision: Of its packages.
        system: Operating system.
        machine: Processor, threads and PyTorch.
        compute_units: What Core ML was allowed to use.
        others: Profiles of the same model from other machines, shown beside.
    """

    format: Literal["splitter.profile/1"] = FORMAT
    bundle: str
    model: str
    checkpoint_sha256: str | None
    samples: int | None
    precision: str
    system: str
    machine: Machine
    compute_units: str
    limits: Limits
    run: RunProfile
    segments: tuple[SegmentProfile, ...] = Field(min_length=1)
    boundaries: tuple[BoundaryProfile, ...]
    others: tuple[Profile, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, as docs/profile.schema.json describes them."""
        return self.model_dump(mode="json")


def read(path: Path) -> Profile:
    """Read what ``splitter profile --json`` printed.

    Raises:
        UsageError: It is not that.
    """
    try:
        return Profile.model_validate_json(reading.content(path))
    except ValidationError as error:
        received = readable(error)
    except OSError as error:
        received = str(error)
    raise UsageError(
        f"{path} is no profile", received=received, fix="Make one with `splitter profile DIR --json > FILE`."
    )


def merged(profile: Profile, others: Sequence[Profile]) -> Profile:
    """A profile with others beside it, and what was beside those.

    Raises:
        UsageError: They are not of the same checkpoint and length.
    """
    beside = [record for other in others for record in apart(other)]
    for other in beside:
        check_same_model(other, profile.model, profile.checkpoint_sha256, profile.samples)
    return profile.model_copy(update={"others": (*profile.others, *beside)})


def apart(profile: Profile) -> tuple[Profile, ...]:
    """A profile, and those beside it, each by itself."""
    return profile.model_copy(update={"others": ()}), *profile.others


def check_same_model(profile: Profile, name: str, checkpoint_sha256: str | None, samples: int | None) -> None:
    """Hold a profile against the model that it is to be shown with.

    Raises:
        UsageError: It is of another checkpoint or length.
    """
    there, here = profile.checkpoint_sha256 or profile.model, checkpoint_sha256 or name  # random weights have no file
    if (there, profile.samples) != (here, samples):
        raise UsageError(
            "the profiles are not of one checkpoint and one length",
            expected=f"{name}, {_length(samples)}",
            received=f"{profile.model}, {_length(profile.samples)}",
            fix="Copy the bundle to the other machine and profile it there.",
        )


def _length(samples: int | None) -> str:
    return "not of sound" if samples is None else f"{samples} samples a run"


def json_schema() -> dict[str, Any]:
    """JSON Schema of a profile."""
    return Profile.model_json_schema(mode="serialization")
