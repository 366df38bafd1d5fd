"""Judges a bundle from its saved files alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch

from .. import lowering
from ..boundary import Array
from ..bundle import goldens
from ..bundle.directory import Bag, Bundle
from ..bundle.manifest import SegmentRecord
from ..errors import BundleError, SplitterError
from ..partition import INPUT
from ..plan.schema import Precision
from ..runtime.engines import engine
from ..runtime.orchestrator import Hook, Orchestrator
from .checks import Check, Overflow, Report, Status, compared
from .kernels import kernel_checks
from .packages import compression_limit, package_checks

Progress: TypeAlias = Callable[[str], None]


def verify(bag: Bag, *, compute_units: str = "ALL", progress: Progress = lambda step: None) -> list[Report]:
    """Verify every member of a bag: see `verify_bundle`."""
    return [verify_bundle(member, compute_units=compute_units, progress=progress) for member in bag.members]


def verify_bundle(bundle: Bundle, *, compute_units: str = "ALL", progress: Progress = lambda step: None) -> Report:
    """Run what can be run on this machine, and compare.

    The saved segments against the saved whole capture; both against the goldens of the untouched model;
    host specification and kernels against the captured segment they came from; every artifact against what
    the manifest says of it; the packages, executed by `splitter.mil`, against each other and the goldens;
    Core ML's predictions where there is Core ML.
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
    local = _run_local(bundle, golden, chain)
    partition = [_compared("partition", n, "torch", "accumulated", whole[n], chain[n], None, bundle) for n in chain]
    worst = max(check.parity.max_abs for check in partition if check.parity is not None)
    checks += partition
    checks += _golden_checks(bundle, golden, local, chain, same=same)
    tolerances, plan = bundle.manifest.plan.tolerances, bundle.manifest.plan
    if plan.boundary_dtype is Precision.FP16:
        checks += _run_checks(bundle, golden, "boundary", "torch", tolerances.boundary_fp16_snr_db)
    overflows: list[Overflow] = []
    for segment in bundle.segments:
        progress(f"checking {segment.name}")
        checks += _port_checks(bundle, segment, golden, local)
        checks.append(_audit(bundle, segment))
        if segment.artifact.target == "coreml":
            found, broken = package_checks(bundle, segment, golden)
            checks += found
            overflows += broken
            checks += _coreml_checks(bundle, segment, golden, compute_units)
    if any(segment.artifact.target == "coreml" for segment in bundle.segments):
        progress("running the shipped packages in a row")
        half = Precision.FP16 in (plan.precision, plan.boundary_dtype)
        limit = tolerances.package_fp16_snr_db if half else tolerances.package_fp32_snr_db
        limit = min(limit, *(compression_limit(segment, tolerances) for segment in bundle.segments))
        checks += _run_checks(bundle, golden, "package", "mil", limit)
    return Report(str(bundle.path), same, worst, tuple(checks), tuple(overflows))


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
        _compared("golden", name, "torch", scope, golden[name], candidates[name], limit, bundle)
        for name in local
        for scope, candidates in (("local", local), ("accumulated", chain))
    ]


def _run_checks(bundle: Bundle, golden: Mapping[str, Array], kind: str, packages: str, limit: float) -> list[Check]:
    """The run as it is orchestrated, with this engine for the packages, against the untouched model."""
    seen: dict[str, Array] = {}

    class Keep(Hook):
        def after_segment(self, segment: SegmentRecord, outputs: Mapping[str, Array]) -> None:
            seen.update(outputs)

    engines = {s.name: packages if s.artifact.target == "coreml" else "torch" for s in bundle.segments}
    inputs = {name: golden[name] for name, spec in bundle.tensors.items() if spec.producer == INPUT}
    try:
        Orchestrator(bundle, engines, hooks=[Keep()]).run(inputs)
    except SplitterError as error:
        broken = [Check(kind, "all", Status.FAIL, packages, "accumulated", note=str(error))]
    else:
        broken = []
    return [_compared(kind, n, packages, "accumulated", golden[n], seen[n], limit, bundle) for n in seen] + broken


def _port_checks(
    bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array], local: Mapping[str, Array]
) -> list[Check]:
    """What is written by hand against the graph it stands for, from the golden input of the segment."""
    target = segment.artifact.target
    unrounded = _unrounded(bundle)
    if target == "kernels":
        return kernel_checks(unrounded, segment, golden, local)
    if target != "host":
        return []
    try:
        given = {one: golden[one] for one in segment.inputs}
        results = engine("numpy")(unrounded, segment, compute_units="ALL").run(given)
    except SplitterError as error:
        return [Check("host", segment.name, Status.FAIL, "numpy", "local", note=str(error))]
    limit = bundle.manifest.plan.tolerances.host_snr_db
    return [
        _compared("host", one, "numpy", "local", local[one], results[one], limit, bundle) for one in segment.outputs
    ]


def _unrounded(bundle: Bundle) -> Bundle:
    """The bundle with the graph's own precision at its boundaries, to compare what stands between them."""
    wide = tuple(spec.with_dtype("float32") if spec.dtype == "float16" else spec for spec in bundle.manifest.tensors)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"tensors": wide}))


def _audit(bundle: Bundle, segment: SegmentRecord) -> Check:
    """The saved artifact against what was asked for."""
    try:
        chosen = lowering.target(segment.artifact.target)
        findings = chosen.audit(segment, bundle.tensors, bundle.manifest.plan, bundle.files)
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
    tolerances = bundle.manifest.plan.tolerances
    limit = tolerances.coreml_snr_db[compute_units]  # type: ignore[index]
    limit = min(limit, compression_limit(segment, tolerances))
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
    negligible = bundle.manifest.plan.tolerances.negligible_max_abs
    return compared(
        kind, subject, reference, candidate, limit_db=limit, negligible=negligible, engine=engine, scope=scope
    )
