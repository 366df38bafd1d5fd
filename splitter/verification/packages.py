"""Executes the artifacts of a bundle and says what each difference comes from.

The chain is: captured segment → fp32 uncompressed artifact (conversion) → artifact in the asked precision
(precision) → shipped artifact (compression). Each link is judged by itself, from the golden input of the segment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..boundary import Array
from ..bundle.directory import Bundle
from ..bundle.manifest import SegmentRecord
from ..errors import SplitterError
from ..lowering import target
from ..lowering.weights import compressed_forms
from ..plan.schema import Precision, Tolerances
from ..runtime.engines import loaded, shipped_engine
from .checks import Check, Overflow, Status, compared, least_to_spare


def package_checks(
    bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array]
) -> tuple[list[Check], list[Overflow]]:
    """Run one segment's artifacts from its golden input, and compare them along the chain."""
    engine = shipped_engine(segment)
    try:
        shipped = loaded(engine, bundle, segment, compute_units="ALL")
        results, broken = shipped.run_watched(
            {name: golden[name].astype(bundle.tensors[name].dtype) for name in segment.inputs}
        )
    except SplitterError as error:
        return [Check("finite", segment.name, Status.FAIL, engine, "local", note=str(error))], []
    checks = [*_chain_checks(bundle, segment, golden, results, engine)]
    failing = [check.subject for check in checks if check.status is Status.FAIL]
    overflows = []
    for operation in broken:
        shows = next((name for name in segment.outputs if name in failing and name in operation.reaches), "")
        overflows.append(Overflow(segment.name, operation.operation, operation.name, operation.values, shows))
    note = str(overflows[0]) if overflows else ""
    checks.append(Check("finite", segment.name, Status.FAIL if overflows else Status.PASS, engine, "local", note=note))
    return checks, overflows


def unrounded(bundle: Bundle) -> Bundle:
    """The bundle with the graph's own precision at its boundaries, to compare what stands between them."""
    wide = tuple(spec.with_dtype("float32") if spec.dtype == "float16" else spec for spec in bundle.manifest.tensors)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"tensors": wide}))


def _run(bundle: Bundle, segment: SegmentRecord, path: str, golden: Mapping[str, Array]) -> dict[str, Array]:
    """What another artifact of a segment gives."""
    artifact = segment.artifact.model_copy(update={"path": path, "function": ""})
    other = segment.model_copy(update={"artifact": artifact})
    inputs = {name: golden[name].astype(bundle.tensors[name].dtype) for name in segment.inputs}
    return loaded(shipped_engine(segment), bundle, other, compute_units="ALL").run(inputs)


def _chain_checks(
    bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array], shipped: Mapping[str, Array], engine: str
) -> Iterator[Check]:
    tolerances = bundle.manifest.plan.tolerances

    def absent(kind: str, why: str) -> Check:
        return Check(kind, segment.name, Status.NOT_APPLICABLE, engine, "local", note=why)

    def comparisons(
        kind: str, before: Mapping[str, Array], after: Mapping[str, Array], limit: float
    ) -> Iterator[Check]:
        limits = {"limit_db": limit, "negligible": tolerances.negligible_max_abs}
        for name in segment.outputs:
            yield compared(kind, name, before[name], after[name], **limits, engine=engine, scope="local")

    limit = compression_limit(segment, tolerances)
    compressed = limit < math.inf
    nothing = "no weights were compressed"
    if not segment.reference or (compressed and not segment.uncompressed):
        why = "the bundle holds no reference package"
        for kind in ("conversion", "precision"):
            yield absent(kind, why)
        yield absent("compression", why if compressed else nothing)
        return
    is_fp32 = _hashes(bundle, segment.reference) == _hashes(bundle, segment.artifact.path)
    try:
        reference = shipped if is_fp32 else _run(unrounded(bundle), segment, segment.reference, golden)
    except SplitterError as error:
        yield Check("conversion", segment.name, Status.FAIL, engine, "local", note=str(error))
        return
    yield from comparisons("conversion", golden, reference, tolerances.conversion_snr_db)
    try:
        plain = shipped
        if compressed and segment.uncompressed == segment.reference:
            plain = reference
        elif compressed:
            plain = _run(bundle, segment, segment.uncompressed, golden)
    except SplitterError as error:
        yield Check("precision", segment.name, Status.FAIL, engine, "local", note=str(error))
        return
    if plain is reference:
        yield absent("precision", f"the {'uncompressed' if compressed else 'shipped'} package is the fp32 one")
    else:
        rounded = Precision.FP16 in (bundle.manifest.plan.precision, bundle.manifest.plan.boundary_dtype)
        least = tolerances.precision_snr_db if rounded else tolerances.conversion_snr_db
        yield from comparisons("precision", reference, plain, least)
    if compressed:
        yield from _weight_check(bundle, segment, engine)
        yield from comparisons("compression", plain, shipped, limit)
    else:
        yield absent("compression", nothing)


def compression_limit(segment: SegmentRecord, tolerances: Tolerances) -> float:
    """The lowest limit of the forms that the weights of a segment's artifact have; infinity if none is compressed."""
    forms = set(compressed_forms(segment.artifact).values())
    return min((tolerances.package_compression_snr_db[form] for form in forms), default=math.inf)


def _weight_check(bundle: Bundle, segment: SegmentRecord, engine: str) -> Iterator[Check]:
    """The weight with the least to spare, as the shipped artifact decodes it, against the uncompressed one's.

    Where others make more noise, the outputs hardly show what a weight of few bits has become.
    """
    limits = bundle.manifest.plan.tolerances.compression_snr_db
    try:
        checks = [
            compared(
                "compression", weight.source, weight.original, weight.stored,
                limit_db=limits[weight.form], negligible=0.0, engine=engine, scope="local",
            )
            for weight in target(segment.artifact.target).decoded_weights(bundle, segment)
        ]  # fmt: skip
    except SplitterError as error:
        checks = [Check("compression", segment.name, Status.FAIL, engine, "local", note=str(error))]
    if checks:
        yield min(checks, key=least_to_spare)


def _hashes(bundle: Bundle, artifact: str) -> dict[str, str]:
    """Hashes of an artifact's files by their path in it."""
    files = bundle.manifest.files
    return {
        name.removeprefix(artifact): record.sha256
        for name, record in files.items()
        if name == artifact or name.startswith(artifact + "/")
    }
