"""Judges a bundle from its saved files alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, TypeAlias

import torch

from . import goldens, lowering
from .boundary import Array
from .bundle import Bag, Bundle
from .engines import engine
from .errors import BundleError, SplitterError
from .manifest import SegmentRecord
from .orchestrator import Orchestrator
from .parity import Parity, compare
from .partition import INPUT

Progress: TypeAlias = Callable[[str], None]


class Status(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    NOT_RUN = "not run"
    NOT_APPLICABLE = "n/a"


@dataclass(frozen=True)
class Check:
    """One question asked of a bundle.

    Attributes:
        kind: What is held against what: ``files``, ``partition``, ``golden``, ``boundary``, ``host``,
            ``kernels``, ``artifact`` or ``coreml``.
        subject: Tensor or segment.
        status: The answer. ``not run`` and ``n/a`` (a silent reference) are no passes.
        engine: What computed the candidate, if anything did.
        scope: ``local`` if the step got the reference's own input, ``accumulated`` if it got what the
            steps before it had made of the input.
        parity: The distance, where tensors were compared.
        limit_db: SNR demanded; None where equality is.
        note: What else there is to say.
    """

    kind: str
    subject: str
    status: Status
    engine: str = ""
    scope: str = ""
    parity: Parity | None = None
    limit_db: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """All checks of one bundle.

    Attributes:
        bundle: Its directory.
        same_machine: The goldens were recorded on a machine that promises the same bits.
        partition_max_abs: Largest difference between the segments in order and the whole capture; None if
            they were not run.
    """

    bundle: str
    same_machine: bool
    partition_max_abs: float | None
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Nothing failed, and something ran."""
        return any(c.status is Status.PASS for c in self.checks) and all(
            c.status is not Status.FAIL for c in self.checks
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values. An infinite SNR (equal tensors) is null beside ``"exact": true``."""
        return {
            "bundle": self.bundle,
            "passed": self.passed,
            "same_machine": self.same_machine,
            "partition": {"max_abs": self.partition_max_abs},
            "checks": [_json_check(check) for check in self.checks],
        }


def verify(bag: Bag, *, compute_units: str = "ALL", progress: Progress = lambda step: None) -> list[Report]:
    """Verify every member of a bag: see `verify_bundle`."""
    return [verify_bundle(member, compute_units=compute_units, progress=progress) for member in bag.members]


def verify_bundle(bundle: Bundle, *, compute_units: str = "ALL", progress: Progress = lambda step: None) -> Report:
    """Run what can be run on this machine, and compare.

    The saved segments against the saved whole capture; both against the goldens of the untouched model;
    host specification and kernels against the captured segment they came from; every artifact against what
    the manifest says of it; Core ML's predictions where there is Core ML.
    """
    progress("checking files")
    checks = [_files(bundle)]
    if checks[0].status is Status.FAIL:  # what follows would read files that are not what was built
        return Report(str(bundle.path), same_machine=False, partition_max_abs=None, checks=tuple(checks))
    golden = bundle.goldens()
    same = goldens.machine() == bundle.manifest.golden.machine

    progress("running the whole capture and its segments")
    whole = _run_whole(bundle, golden)
    chain = _run_chain(bundle, golden)
    partition = {name: compare(whole[name], chain[name]) for name in chain}
    limit = bundle.manifest.plan.tolerances.partition_max_abs
    for name, parity in partition.items():
        checks.append(Check("partition", name, _within(parity, limit), "torch", "accumulated", parity))
    checks += _golden_checks(bundle, golden, chain, same=same)
    if bundle.manifest.plan.boundary_dtype.dtype != "float32":
        checks += _boundary_dtype_checks(bundle, golden)
    for segment in bundle.segments:
        progress(f"checking {segment.name}")
        checks += _port_checks(bundle, segment, golden)
        checks.append(_audit(bundle, segment))
        if segment.artifact.target == "coreml":
            checks += _coreml_checks(bundle, segment, golden, compute_units)
    worst = max(parity.max_abs for parity in partition.values())
    return Report(str(bundle.path), same, worst, tuple(checks))


def _files(bundle: Bundle) -> Check:
    try:
        Bundle.load(bundle.path, check_hashes=True)
    except BundleError as error:
        return Check("files", "all", Status.FAIL, note=str(error))
    return Check("files", "all", Status.PASS, note=f"{len(bundle.manifest.files)} files have their hashes")


def _run_whole(bundle: Bundle, golden: Mapping[str, Array]) -> dict[str, Array]:
    """Every boundary tensor as the whole capture computes it."""
    names = {node: name for name, node in bundle.manifest.nodes.items()}
    seen: dict[str, Array] = {}

    def observe(node: torch.fx.Node, value: torch.Tensor) -> None:
        if node.name in names:
            seen[names[node.name]] = value.numpy()

    program = bundle.program(bundle.manifest.whole)
    inputs = {name: _aligned(golden[name]) for name in program.inputs}
    program.run(inputs, observe)
    return seen


def _run_chain(bundle: Bundle, golden: Mapping[str, Array]) -> dict[str, Array]:
    """The segments in order, in the graph's own precision, from the golden input."""
    values = {name: _aligned(golden[name]) for name, spec in bundle.tensors.items() if spec.producer == INPUT}
    computed: dict[str, Array] = {}
    for segment in bundle.segments:
        results = bundle.program(segment.program).run({name: values[name] for name in segment.inputs})
        values |= results
        computed |= {name: result.numpy() for name, result in results.items()}
    return computed


def _aligned(array: Array) -> torch.Tensor:
    """A tensor in PyTorch's own memory: its kernels may round by alignment."""
    return torch.from_numpy(array).clone()


def _golden_checks(
    bundle: Bundle, golden: Mapping[str, Array], chain: Mapping[str, Array], *, same: bool
) -> list[Check]:
    """Saved programs against the untouched model, locally and accumulated."""
    limit = None if same else bundle.manifest.plan.tolerances.golden_snr_db
    checks = []
    for segment in bundle.segments:
        local = bundle.program(segment.program).run({name: _aligned(golden[name]) for name in segment.inputs})
        for name in segment.outputs:
            for scope, candidate in (("local", local[name].numpy()), ("accumulated", chain[name])):
                checks.append(_compared("golden", name, "torch", scope, golden[name], candidate, limit, bundle))
    return checks


def _boundary_dtype_checks(bundle: Bundle, golden: Mapping[str, Array]) -> list[Check]:
    """The run as it is orchestrated, with tensors rounded where they cross."""
    seen: dict[str, Array] = {}

    class Keep:
        def before_segment(self, segment: SegmentRecord, inputs: Mapping[str, Array]) -> None: ...

        def after_segment(self, segment: SegmentRecord, outputs: Mapping[str, Array]) -> None:
            seen.update(outputs)

    engines = {segment.name: "torch" for segment in bundle.segments}
    inputs = {name: golden[name] for name, spec in bundle.tensors.items() if spec.producer == INPUT}
    Orchestrator(bundle, engines, hooks=[Keep()]).run(inputs)
    limit = bundle.manifest.plan.tolerances.boundary_fp16_snr_db
    return [_compared("boundary", n, "torch", "accumulated", golden[n], seen[n], limit, bundle) for n in seen]


def _port_checks(bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array]) -> list[Check]:
    """What is written by hand against the graph it stands for, from the golden input of the segment."""
    tolerances = bundle.manifest.plan.tolerances
    target = segment.artifact.target
    if target not in ("host", "kernels"):
        return []
    limit = tolerances.host_snr_db if target == "host" else tolerances.kernels_snr_db
    unrounded = _unrounded(bundle)
    checks = []
    for name in ("numpy",) if target == "host" else ("numpy", "jax"):
        try:
            given = {one: golden[one] for one in segment.inputs}
            reference = engine("torch")(unrounded, segment, compute_units="ALL").run(given)
            results = engine(name)(unrounded, segment, compute_units="ALL").run(given)
        except SplitterError as error:
            checks.append(Check(target, segment.name, Status.FAIL, name, "local", note=str(error)))
            continue
        for one in segment.outputs:
            checks.append(_compared(target, one, name, "local", reference[one], results[one], limit, bundle))
    return checks


def _unrounded(bundle: Bundle) -> Bundle:
    """The bundle with the graph's own precision at its boundaries, to compare what stands between them."""
    wide = tuple(spec.with_dtype("float32") if spec.dtype == "float16" else spec for spec in bundle.manifest.tensors)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"tensors": wide}))


def _audit(bundle: Bundle, segment: SegmentRecord) -> Check:
    """The saved artifact against what was asked for."""
    try:
        chosen = lowering.target(segment.artifact.target)
        findings = chosen.audit(segment, bundle.tensors, bundle.manifest.plan, bundle.path)
    except (SplitterError, ValueError, OSError) as error:
        findings = [str(error)]
    status = Status.FAIL if findings else Status.PASS
    return Check("artifact", segment.name, status, note="; ".join(findings) or segment.artifact.target)


def _coreml_checks(
    bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array], compute_units: str
) -> list[Check]:
    """Core ML's own prediction, from the golden input of the segment; only a Mac can."""
    kind = engine("coreml")
    if obstacle := kind.obstacle(segment):
        return [Check("coreml", segment.name, Status.NOT_RUN, "coreml", "local", note=obstacle)]
    limit = bundle.manifest.plan.tolerances.coreml_snr_db[compute_units]  # type: ignore[index]
    given = {one: golden[one].astype(bundle.tensors[one].dtype) for one in segment.inputs}
    try:
        results = kind(bundle, segment, compute_units=compute_units).run(given)
    except SplitterError as error:
        return [Check("coreml", segment.name, Status.FAIL, "coreml", "local", note=str(error))]
    return [
        _compared("coreml", one, f"coreml {compute_units}", "local", golden[one], results[one], limit, bundle)
        for one in segment.outputs
    ]


def _compared(
    kind: str,
    subject: str,
    engine: str,
    scope: str,
    reference: Array,
    candidate: Array,
    limit: float | None,
    bundle: Bundle,
) -> Check:
    parity = compare(reference, candidate)
    return Check(kind, subject, _judge(parity, limit, bundle), engine, scope, parity, limit)


def _judge(parity: Parity, limit: float | None, bundle: Bundle) -> Status:
    negligible = bundle.manifest.plan.tolerances.negligible_max_abs
    if parity.finite and parity.snr_db is None:  # a silent reference proves nothing, but noise disproves
        return Status.NOT_APPLICABLE if parity.max_abs <= negligible else Status.FAIL
    if limit is None:
        return Status.PASS if parity.finite and parity.max_abs == 0.0 else Status.FAIL
    return Status.PASS if parity.reaches(limit, negligible) else Status.FAIL


def _within(parity: Parity, limit: float) -> Status:
    if parity.finite and parity.snr_db is None and parity.max_abs == 0.0:
        return Status.NOT_APPLICABLE
    return Status.PASS if parity.finite and parity.max_abs <= limit else Status.FAIL


def _json_check(check: Check) -> dict[str, Any]:
    content = {key: value for key, value in asdict(check).items() if key != "parity"}
    if check.parity is not None:
        numbers = asdict(check.parity)
        content |= {key: value if _is_json(value) else None for key, value in numbers.items()}
        content["exact"] = check.parity.finite and check.parity.max_abs == 0.0
    return content


def _is_json(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
