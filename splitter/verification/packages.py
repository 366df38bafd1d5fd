"""Executes the packages of a bundle and says what each difference comes from.

The chain is: captured segment → fp32 uncompressed package (conversion) → package in the asked precision
(precision) → shipped package (compression). Each link is judged by itself, from the golden input of the segment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import mil
from ..boundary import Array
from ..bundle.directory import Bundle
from ..bundle.manifest import SegmentRecord
from ..errors import SplitterError
from ..lowering.compression import from_details
from ..mil.program import Block, Operation, Ref
from ..mil.stored import decoded
from ..plan.schema import Precision, Tolerances
from .checks import Check, Overflow, Status, compared, least_to_spare


@dataclass
class OverflowWatch:
    """A listener that notes every operation whose result is not finite though all it was given is.

    Infinities that a program means (masks) are among its constants or inputs, and are not noted.
    """

    found: list[tuple[Operation, int, int]] = field(default_factory=list)
    _given: Mapping[str, Any] = field(default_factory=dict)

    def before(self, operation: Operation, inputs: Mapping[str, Any]) -> None:
        self._given = inputs

    def after(self, operation: Operation, outputs: Mapping[str, Any]) -> None:
        broken = [value for value in outputs.values() if not _finite(value)]
        if broken and _finite(list(self._given.values())):
            count = sum(int((~torch.isfinite(value)).sum()) for value in broken)
            self.found.append((operation, count, sum(value.numel() for value in broken)))
        self._given = {}


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(_finite(one) for one in value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    # A sum is finite if its terms are, and quicker to see; a sum of finite terms may still overflow.
    return bool(torch.isfinite(value.sum(dtype=torch.float32))) or bool(torch.isfinite(value).all())


def package_checks(
    bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array]
) -> tuple[list[Check], list[Overflow]]:
    """Run one segment's packages from its golden input, and compare them along the chain."""
    try:
        shipped = mil.load(bundle.path / segment.artifact.path, read=bundle.files.read)
        watch = OverflowWatch()
        results = _predicted(
            shipped, bundle, {name: golden[name].astype(bundle.tensors[name].dtype) for name in segment.inputs}, watch
        )
    except SplitterError as error:
        return [Check("finite", segment.name, Status.FAIL, "mil", "local", note=str(error))], []
    checks = [*_chain_checks(bundle, segment, golden, results)]
    failing = [check.subject for check in checks if check.status is Status.FAIL]
    overflows = [_overflow(shipped.function.block, segment, *one, failing) for one in watch.found]
    note = str(overflows[0]) if overflows else ""
    checks.append(Check("finite", segment.name, Status.FAIL if overflows else Status.PASS, "mil", "local", note=note))
    return checks, overflows


def _predicted(
    model: mil.Model, bundle: Bundle, given: Mapping[str, Array], listener: OverflowWatch | None = None
) -> dict[str, Array]:
    """A package's outputs, both sides as they are outside of packages."""
    specs = bundle.tensors
    folded = {name: specs[name].packaged(array) for name, array in given.items()}
    return {name: specs[name].unpackaged(one) for name, one in model.predict(folded, listener=listener).items()}


def _chain_checks(
    bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array], shipped: Mapping[str, Array]
) -> Iterator[Check]:
    tolerances = bundle.manifest.plan.tolerances

    def absent(kind: str, why: str) -> Check:
        return Check(kind, segment.name, Status.NOT_APPLICABLE, "mil", "local", note=why)

    def comparisons(
        kind: str, before: Mapping[str, Array], after: Mapping[str, Array], limit: float
    ) -> Iterator[Check]:
        limits = {"limit_db": limit, "negligible": tolerances.negligible_max_abs}
        for name in segment.outputs:
            yield compared(kind, name, before[name], after[name], **limits, engine="mil", scope="local")

    limit = compression_limit(segment, tolerances)
    compressed = limit < math.inf
    nothing = "no weights were compressed"
    if not segment.reference or (compressed and not segment.uncompressed):
        why = "the bundle holds no reference package"
        for kind in ("conversion", "precision"):
            yield absent(kind, why)
        yield absent("compression", why if compressed else nothing)
        return
    given = {name: golden[name] for name in segment.inputs}
    is_fp32 = _hashes(bundle, segment.reference) == _hashes(bundle, segment.artifact.path)
    try:
        reference = (
            shipped
            if is_fp32
            else _predicted(mil.load(bundle.path / segment.reference, read=bundle.files.read), bundle, given)
        )
    except SplitterError as error:
        yield Check("conversion", segment.name, Status.FAIL, "mil", "local", note=str(error))
        return
    yield from comparisons("conversion", golden, reference, tolerances.conversion_snr_db)
    try:
        plain = _uncompressed(bundle, segment, given, reference) if compressed else shipped
    except SplitterError as error:
        yield Check("precision", segment.name, Status.FAIL, "mil", "local", note=str(error))
        return
    if plain is reference:
        yield absent("precision", f"the {'uncompressed' if compressed else 'shipped'} package is the fp32 one")
    else:
        rounded = Precision.FP16 in (bundle.manifest.plan.precision, bundle.manifest.plan.boundary_dtype)
        least = tolerances.precision_snr_db if rounded else tolerances.conversion_snr_db
        yield from comparisons("precision", reference, plain, least)
    if compressed:
        yield _weight_check(bundle, segment)
        yield from comparisons("compression", plain, shipped, limit)
    else:
        yield absent("compression", nothing)


def compression_limit(segment: SegmentRecord, tolerances: Tolerances) -> float:
    """The lowest limit of the forms that the weights of a segment's package have; infinity if none is compressed."""
    forms = {one.form for one in from_details(segment.artifact.details.get("compressed", {})).values()}
    return min((tolerances.package_compression_snr_db[form] for form in forms), default=math.inf)


def _weight_check(bundle: Bundle, segment: SegmentRecord) -> Check:
    """The weight with the least to spare, as the shipped package decodes it, against the uncompressed one's.

    Where others make more noise, the outputs hardly show what a weight of few bits has become.
    """
    compressed = from_details(segment.artifact.details["compressed"])
    originals = {name: name.rpartition("_")[0] for name in compressed}
    tolerances = bundle.manifest.plan.tolerances
    try:
        stored = decoded(mil.load(bundle.path / segment.artifact.path, read=bundle.files.read).function, compressed)
        own = decoded(mil.load(bundle.path / segment.uncompressed, read=bundle.files.read).function, originals.values())
    except SplitterError as error:
        return Check("compression", segment.name, Status.FAIL, "mil", "local", note=str(error))
    checks = [
        compared(
            "compression", one.source, own[originals[name]], stored[name],
            limit_db=tolerances.compression_snr_db[one.form], negligible=0.0, engine="mil", scope="local",
        )
        for name, one in compressed.items()
    ]  # fmt: skip
    return min(checks, key=least_to_spare)


def _uncompressed(
    bundle: Bundle, segment: SegmentRecord, given: Mapping[str, Array], reference: Mapping[str, Array]
) -> Mapping[str, Array]:
    """What the uncompressed package gives; the reference itself where that is the fp32 one."""
    if segment.uncompressed == segment.reference:
        return reference
    rounded = {name: array.astype(bundle.tensors[name].dtype) for name, array in given.items()}
    return _predicted(mil.load(bundle.path / segment.uncompressed, read=bundle.files.read), bundle, rounded)


def _hashes(bundle: Bundle, package: str) -> dict[str, str]:
    """Hashes of a package's files by their path in it."""
    files = bundle.manifest.files
    return {name.removeprefix(package): one.sha256 for name, one in files.items() if name.startswith(package + "/")}


def _overflow(
    block: Block, segment: SegmentRecord, operation: Operation, broken: int, total: int, failing: list[str]
) -> Overflow:
    reached = _depending(block, {output.name for output in operation.outputs})
    shows = next((name for name in segment.outputs if name in failing and name in reached), "")
    return Overflow(segment.name, operation.type, operation.name, (broken, total), shows)


def _depending(block: Block, names: set[str]) -> set[str]:
    """Names of all values of a block that depend on one of these."""
    reached = set(names)
    for operation in block.operations:
        arguments = (argument for many in operation.inputs.values() for argument in many)
        if any(isinstance(argument, Ref) and argument.name in reached for argument in arguments):
            reached |= {output.name for output in operation.outputs}
    return reached
