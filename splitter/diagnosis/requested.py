"""Rules: what a package is, against what the plan or its own metadata says it is."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..bundle.manifest import SegmentRecord
from ..mil.coreml_tools import ct
from ..mil.model import PackageInfo
from ..plan.schema import Plan
from .rules import Note, Severity, rule
from .subject import Asked, Subject

HALF_BOUNDARIES = "--boundary-dtype fp16"
_CONVERTER = "com.github.apple.coremltools."
_PRECISION = "https://apple.github.io/coremltools/docs-guides/source/typed-execution.html"
_WIDE = re.compile(r"\b(fp|float|f)[ -]?32\b|\bsingle[ -]precision\b")
_HALF = re.compile(r"\b(fp|float|f)[ -]?16\b|\bhalf[ -]precision\b")
_MIXED = re.compile(r"\bmixed\b|\bislands?\b")
_COMPRESSED = re.compile(r"compress|quanti[sz]|palett")
_NOT = ("", "0", "false", "no", "none", "off")


def by_plan(plan: Plan, segment: SegmentRecord) -> Asked:
    """What a bundle's plan asks of a segment's package."""
    values = (plan.requested_precision(segment.name), plan.deployment_target.value, plan.boundary_dtype.value)
    return Asked("the plan", *values, compressed=bool(segment.artifact.details.get("compressed")))


def by_metadata(facts: PackageInfo) -> tuple[Asked, ...]:
    """What a package's metadata says: keys that name a precision, a target or a compression, and its description."""
    requests = []
    for key, value in sorted(facts.user_defined.items()):
        if key.startswith(_CONVERTER):
            continue
        name, source = key.lower().rpartition(".")[2], f"metadata {key} = {value!r}"
        if "precision" in name and (precision := _precision(value)):
            requests.append(Asked(source, precision=precision))
        elif "target" in name and hasattr(ct.target, value):
            requests.append(Asked(source, target=value))
        elif "boundary" in name and (precision := _precision(value)):
            requests.append(Asked(source, boundary=precision))
        elif _COMPRESSED.search(name) and value.lower() not in _NOT:
            requests.append(Asked(source, compressed=True))
    if precision := _precision(facts.short_description):
        requests.append(Asked(f"the description {facts.short_description!r}", precision=precision))
    return tuple(requests)


def _precision(text: str) -> str:
    """The precision a text speaks of; empty if none."""
    text = text.lower().replace("_", " ")
    wide, half = bool(_WIDE.search(text)), bool(_HALF.search(text))
    if _MIXED.search(text) or (wide and half):
        return "mixed" if wide or half or "precision" in text or text.strip() == "mixed" else ""
    return "fp32" if wide else "fp16" if half else ""


@rule(
    "requested-precision",
    Severity.ERROR,
    title="arithmetic in another precision than said",
    why="Whoever trusts the label gets other errors and another device than expected. A pass pipeline that is used "
    "twice, or a selector that never reaches the converter, does this without a word.",
    fix="Build it again with a fresh pass pipeline, and read the types back.",
    source=_PRECISION,
)
def precision(subject: Subject) -> Iterator[Note]:
    counts: dict[str, int] = {}
    for (_, dtype), names in subject.facts.float_values.items():
        counts[dtype] = counts.get(dtype, 0) + len(names)
    obtained = next(iter(counts)) if len(counts) == 1 else "mixed"
    total = sum(counts.values())
    for asked in subject.asked:
        if counts and asked.precision and asked.precision != obtained:
            split = ", ".join(f"{count} of {total} values in {dtype}" for dtype, count in sorted(counts.items()))
            yield Note(f"{asked.source} says {asked.precision}; it computes {split}")


@rule(
    "requested-target",
    Severity.ERROR,
    title="another deployment target than said",
    why="The specification version decides on which systems the package loads.",
    fix="Convert with that minimum_deployment_target.",
    source="https://apple.github.io/coremltools/docs-guides/source/target-conversion-formats.html",
)
def target(subject: Subject) -> Iterator[Note]:
    version = subject.facts.specification_version
    for asked in subject.asked:
        if asked.target and (expected := int(getattr(ct.target, asked.target).value)) != version:
            yield Note(f"{asked.source} says {asked.target}, specification version {expected}; it is {version}")


@rule(
    "requested-boundary",
    Severity.ERROR,
    title="inputs or outputs of another type than said",
    why="A caller that prepares buffers for one type gets the other.",
    fix="Give TensorType(dtype=…) for every input and output when converting.",
    source=_PRECISION,
)
def boundary(subject: Subject) -> Iterator[Note]:
    for asked in subject.asked:
        for feature in (*subject.facts.inputs, *subject.facts.outputs):
            if asked.boundary and feature.dtype in ("fp32", "fp16", "fp64") and feature.dtype != asked.boundary:
                yield Note(
                    f"{asked.source} says {asked.boundary}; {feature.name!r} is {feature.dtype}", output=feature.name
                )


@rule(
    "requested-compression",
    Severity.ERROR,
    title="weights that are not compressed, though said to be",
    why="The package is as large as before, and what was measured on it says nothing about compression.",
    fix="Compress it again and look for constexpr operations in the result.",
    source="https://apple.github.io/coremltools/docs-guides/source/opt-overview.html",
)
def compression(subject: Subject) -> Iterator[Note]:
    for asked in subject.asked:
        if asked.compressed and not subject.graph.weights:
            yield Note(f"{asked.source}; no operation decompresses a weight")


@rule(
    "requested-casts",
    Severity.INFO,
    title="half-precision package with fp32 inputs or outputs",
    why="Each run converts these tensors at the boundary, outside the engine.",
    fix="Build with --boundary-dtype fp16 (iOS16 and later).",
    source=_PRECISION,
    option=HALF_BOUNDARIES,
)
def boundary_casts(subject: Subject) -> Iterator[Note]:
    graph = subject.graph
    for node in graph.nodes:
        if node.type == "cast" and node.data:
            before, after = node.data[0], node.outputs[0]
            enters = before in graph.inputs and (before.dtype, after.dtype) == ("fp32", "fp16")
            leaves = after in graph.outputs and (before.dtype, after.dtype) == ("fp16", "fp32")
            if enters or leaves:
                name = before.name if enters else after.name
                yield Note(f"{'input' if enters else 'output'} {name!r} is fp32, {after.elements:,} values", node)
