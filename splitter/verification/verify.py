"""Judges a bundle from its saved files alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch

from .. import lowering
from ..boundary import Array
from ..bundle import goldens
from ..bundle.directory import Bundle, Source, load
from ..bundle.manifest import SegmentRecord
from ..errors import BundleError, SplitterError
from ..plan.schema import Precision
from ..runtime.engines import REFERENCE, engine, loaded, shipped_engine
from ..runtime.orchestrator import Hook, Orchestrator
from .checks import Check, Overflow, Report, Status, Verification, compared
from .packages import compression_limit, package_checks, unrounded

Progress: TypeAlias = Callable[[str], None]

STORED = "stored"  # the types that each package declares


def verify(
    source: Source,
    *,
    compute_units: str = "ALL",
    values: str = STORED,
    progress: Progress = lambda step: None,
) -> Verification:
    """Judge a bundle in each of its variants, or every member of a bag, from the saved files; see `verify_bundle`.

    Args:
        source: Its directory, or what was opened already.
        compute_units: For Core ML, see `Orchestrator`.
        values: Model of a device's arithmetic that the shipped packages are run with besides, e.g. ``"ane"``.
        progress: Told of each step.

    Raises:
        BundleError: There is no bundle.
    """
    return Verification(
        verify_bundle(variant, compute_units=compute_units, values=values, progress=progress)
        for member in load(source).members
        for variant in member.variants.values()
    )


def verify_bundle(
    bundle: Bundle,
    *,
    compute_units: str = "ALL",
    values: str = STORED,
    progress: Progress = lambda step: None,
) -> Report:
    """Run what can be run on this machine, and compare.

    The saved segments against the saved whole capture; both against the goldens of the untouched model;
    host specification and kernels against the captured segment they came from; every artifact against what
    the manifest says of it; the packages, executed by `splitter.mil`, against each other and the goldens;
    Core ML's predictions where there is Core ML.
    """
    progress("checking files")
    checks = [_files(bundle)]
    if checks[0].status is Status.FAIL:  # what follows would read files that are not what was built
        return Report(bundle.label, same_machine=False, partition_max_abs=None, checks=tuple(checks))
    golden = bundle.goldens()
    same = goldens.machine() == bundle.manifest.golden.machine

    progress("running the whole capture and its segments")
    whole = _run_whole(bundle, golden)
    chain = _run_chain(bundle, golden)
    local = _run_local(bundle, golden, chain)
    partition = [_compared("partition", n, REFERENCE, "accumulated", whole[n], chain[n], None, bundle) for n in chain]
    worst = max(check.parity.max_abs for check in partition if check.parity is not None)
    checks += partition
    checks += _golden_checks(bundle, golden, local, chain, same=same)
    tolerances, plan = bundle.manifest.plan.tolerances, bundle.manifest.plan
    if plan.boundary_dtype is Precision.FP16:
        checks += _run_checks(bundle, golden, "boundary", {}, tolerances.boundary_fp16_snr_db)
    overflows: list[Overflow] = []
    packages: dict[str, str] = {}
    for segment in bundle.segments:
        progress(f"checking {segment.name}")
        target_capabilities = lowering.capabilities(segment.artifact.target)
        if target_capabilities.artifact and not target_capabilities.reference:
            checks += _port_checks(bundle, segment, golden, local)
        checks.append(_audit(bundle, segment))
        if target_capabilities.reference:
            packages[segment.name] = shipped_engine(segment)
            links, broken = package_checks(bundle, segment, golden)
            checks += links
            overflows += broken
            if values != STORED:
                progress(f"running {segment.name} with the values {values!r}")
                checks += _modelled_checks(bundle, segment, golden, values)
        checks += _device_checks(bundle, segment, golden, compute_units)
    if packages:
        progress("running the shipped packages in a row")
        half = Precision.FP16 in (plan.precision, plan.boundary_dtype)
        limit = tolerances.package_fp16_snr_db if half else tolerances.package_fp32_snr_db
        limit = min(limit, *(compression_limit(segment, tolerances) for segment in bundle.segments))
        checks += _run_checks(bundle, golden, "package", packages, limit)
    return Report(bundle.label, same, worst, tuple(checks), tuple(overflows))


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
    values = {name: _aligned(golden[name]) for name in bundle.inputs}
    computed: dict[str, Array] = {}
    for segment in bundle.segments:
        results = bundle.program(segment.program).run({name: values[name] for name in segment.inputs})
        values |= results
        computed |= {name: result.numpy() for name, result in results.items()}
    return computed


def _run_local(bundle: Bundle, golden: Mapping[str, Array], chain: Mapping[str, Array]) -> dict[str, Array]:
    """Each segment from its own golden input, in the graph's own precision.

    The chain gave it already where what it had computed before is the golden input bit for bit.
    """
    computed: dict[str, Array] = {}
    for segment in bundle.segments:
        if all(name not in chain or np.array_equal(chain[name], golden[name]) for name in segment.inputs):
            computed |= {name: chain[name] for name in segment.outputs}
            continue
        results = bundle.program(segment.program).run({name: _aligned(golden[name]) for name in segment.inputs})
        computed |= {name: result.numpy() for name, result in results.items()}
    return computed


def _aligned(array: Array) -> torch.Tensor:
    """A tensor in PyTorch's own memory: its kernels may round by alignment."""
    return torch.from_numpy(array).clone()


def _golden_checks(
    bundle: Bundle, golden: Mapping[str, Array], local: Mapping[str, Array], chain: Mapping[str, Array], *, same: bool
) -> list[Check]:
    """Saved programs against the untouched model, locally and accumulated."""
    limit = None if same else bundle.manifest.plan.tolerances.golden_snr_db
    return [
        _compared("golden", name, REFERENCE, scope, golden[name], candidates[name], limit, bundle)
        for name in local
        for scope, candidates in (("local", local), ("accumulated", chain))
    ]


def _run_checks(
    bundle: Bundle, golden: Mapping[str, Array], kind: str, packages: Mapping[str, str], limit: float
) -> list[Check]:
    """The run as it is orchestrated, with these engines for some segments, against the untouched model."""
    seen: dict[str, Array] = {}

    class Keep(Hook):
        def after_segment(self, segment: SegmentRecord, outputs: Mapping[str, Array]) -> None:
            seen.update(outputs)

    engines = {segment.name: packages.get(segment.name, REFERENCE) for segment in bundle.segments}
    label = " and ".join(dict.fromkeys(packages.values())) or REFERENCE
    inputs = {name: golden[name].astype(bundle.tensors[name].dtype, copy=False) for name in bundle.inputs}
    try:
        Orchestrator(bundle, engines, hooks=[Keep()]).run(inputs)
    except SplitterError as error:
        broken = [Check(kind, "all", Status.FAIL, label, "accumulated", note=str(error))]
    else:
        broken = []
    return [_compared(kind, n, label, "accumulated", golden[n], seen[n], limit, bundle) for n in seen] + broken


def _port_checks(
    bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array], captured: Mapping[str, Array]
) -> Iterable[Check]:
    """What ships against the captured segment it stands for, from the golden input of the segment."""
    name, wide = segment.artifact.target, unrounded(bundle)
    target = lowering.target(name)
    if (checks := target.checks(wide, segment, golden, captured)) is not None:
        return checks
    checks = []
    limit = target.limit_db(bundle.manifest.plan.tolerances)
    for runner in target.capabilities.engines:
        try:
            results = loaded(runner, wide, segment, compute_units="ALL").run(
                {tensor: golden[tensor] for tensor in segment.inputs}
            )
        except SplitterError as error:
            checks.append(Check(name, segment.name, Status.FAIL, runner, "local", note=str(error)))
        else:
            checks += [
                _compared(name, tensor, runner, "local", captured[tensor], results[tensor], limit, bundle)
                for tensor in segment.outputs
            ]
    return checks


def _audit(bundle: Bundle, segment: SegmentRecord) -> Check:
    """The saved artifact against what was asked for."""
    try:
        chosen = lowering.target(segment.artifact.target)
        findings = chosen.audit(segment, bundle.tensors, bundle.manifest.plan, bundle.files)
    except (SplitterError, ValueError, OSError) as error:
        findings = [str(error)]
    status = Status.FAIL if findings else Status.PASS
    return Check("artifact", segment.name, status, note="; ".join(findings) or segment.artifact.target)


def _modelled_checks(bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array], values: str) -> list[Check]:
    """The shipped artifact with the arithmetic a device was measured to have, from the segment's golden input."""
    runner, tolerances = shipped_engine(segment), bundle.manifest.plan.tolerances
    inputs = {tensor: golden[tensor].astype(bundle.tensors[tensor].dtype) for tensor in segment.inputs}
    try:
        computed = loaded(runner, bundle, segment, compute_units="ALL").run_modelled(inputs, values)
    except SplitterError as error:
        return [Check(values, segment.name, Status.NOT_RUN, runner, "local", note=str(error))]
    if computed is None:
        note = f"{runner} has no model of these values"
        return [Check(values, segment.name, Status.NOT_RUN, runner, "local", note=note)]
    results, departures = computed
    limit = min(tolerances.package_fp16_snr_db, compression_limit(segment, tolerances))
    more = f" (and {len(departures) - 1} more operations)" if len(departures) > 1 else ""
    return [
        replace(
            _compared(values, tensor, runner, "local", golden[tensor], results[tensor], limit, bundle),
            note=f"{departures[0]}{more}" if departures else "",
        )
        for tensor in segment.outputs
    ]


def _device_checks(
    bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array], compute_units: str
) -> list[Check]:
    """The prediction of the device that the artifact is made for, from the golden input of the segment."""
    target = lowering.target(segment.artifact.target)
    name = target.capabilities.device_engine
    if not name:
        return []
    kind = engine(name)
    if reason := kind.unsupported_reason(segment):
        return [Check(name, segment.name, Status.NOT_RUN, name, "local", note=reason)]
    tolerances = bundle.manifest.plan.tolerances
    limit = min(target.device_limit_db(tolerances, compute_units), compression_limit(segment, tolerances))
    inputs = {tensor: golden[tensor].astype(bundle.tensors[tensor].dtype) for tensor in segment.inputs}
    try:
        results = kind(bundle, segment, compute_units=compute_units).run(inputs)
    except SplitterError as error:
        return [Check(name, segment.name, Status.FAIL, name, "local", note=str(error))]
    return [
        _compared(name, tensor, f"{name} {compute_units}", "local", golden[tensor], results[tensor], limit, bundle)
        for tensor in segment.outputs
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
    negligible = bundle.manifest.plan.tolerances.negligible_max_abs
    return compared(
        kind, subject, reference, candidate, limit_db=limit, negligible=negligible, engine=engine, scope=scope
    )
