"""The doctor: reads saved packages, runs them if it has inputs, and says what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import arrays, mil
from ..boundary import Array
from ..bundle.directory import Bag, Bundle, Source, load
from ..bundle.manifest import SegmentRecord
from ..errors import UsageError
from ..mil.graph import Node, graph_of
from ..passes import preset
from ..plan.schema import Plan
from ..reading import Read
from . import advice
from .advice import Action, Cause
from .chips import CHIPS, Chip
from .compiling import CompileTime, compile_time
from .engine import DTYPE_RULE, ON_ENGINE
from .placement import Placement, placed
from .ranges import measured
from .requested import HALF_BOUNDARIES, by_metadata, by_plan
from .rules import Severity, rules
from .subject import Asked, Subject


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        rule: Its id.
        severity: How bad.
        operation: Type of the operation; empty where there is none.
        output: Name of its first result, or of the value or input it is about; empty if it is the package.
        what: With the figures.
        why: What comes of it.
        fix: What mends it, likely.
        source: Where this is published or measured.
    """

    rule: str
    severity: Severity
    operation: str
    output: str
    what: str
    why: str
    fix: str
    source: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found in one function of one package.

    Attributes:
        package: Its path.
        function: Its name.
        measured: It was run, and its values looked at.
        findings: By rule, in the order of the program.
        placement: On the engine, the type rule counted: what runs there as the package is.
        placement_in_half: The same, that rule not counted: what would run there, were it in half precision.
        compile_time: For ``placement``.
        compile_time_in_half: For ``placement_in_half``.
        refused_flops: FLOPs by the set of rules that keep their operations off the engine.
        options: Of ``splitter build``, that the package was built without and could be built with.
    """

    package: str
    function: str
    measured: bool
    findings: tuple[Finding, ...]
    placement: Placement
    placement_in_half: Placement
    compile_time: CompileTime
    compile_time_in_half: CompileTime
    refused_flops: Mapping[frozenset[str], int]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class DoctorReport:
    """Everything found at one path, for one family of chips."""

    path: str
    chip: str
    diagnoses: tuple[Diagnosis, ...]

    @property
    def counts(self) -> dict[Severity, int]:
        found = Counter(finding.severity for diagnosis in self.diagnoses for finding in diagnosis.findings)
        return {severity: found[severity] for severity in Severity}

    @property
    def actions(self) -> tuple[Action, ...]:
        """What to do first, a few at most."""
        return advice.actions(self.diagnoses)

    @property
    def causes(self) -> tuple[Cause, ...]:
        """Findings by rule, the costliest first."""
        return advice.causes(self.diagnoses)

    def flop_share(self, *, in_half: bool) -> float | None:
        """Share of all packages' convolution and product FLOPs that can run on the engine; None if there are none."""
        placements = [diagnosis.placement_in_half if in_half else diagnosis.placement for diagnosis in self.diagnoses]
        total = sum(placement.flops for placement in placements)
        return sum(placement.flops_on_engine for placement in placements) / total if total else None

    def fails(self, level: Severity | str | None) -> bool:
        """Whether something at least as bad as a level was found."""
        return level is not None and any(
            count and severity.reaches(Severity(level)) for severity, count in self.counts.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "path": self.path,
            "chip": self.chip,
            "summary": {str(severity): count for severity, count in self.counts.items()},
            "flop_share": {
                "dtype_rule_counted": self.flop_share(in_half=False),
                "dtype_rule_not_counted": self.flop_share(in_half=True),
            },
            "actions": [action.to_dict() for action in self.actions],
            "causes": [cause.to_dict() for cause in self.causes],
            "packages": [_json(diagnosis) for diagnosis in self.diagnoses],
        }


def examine(
    path: Source,
    *,
    chip: str = "m1",
    inputs: Mapping[str, Array] | Path | None = None,
    run: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> DoctorReport:
    """Examine a bundle, a bag of bundles, or any ``.mlpackage``.

    Args:
        path: Of it; or a bundle that was opened already.
        chip: Family whose limits count, a name in `CHIPS`; the M1 has the narrowest.
        inputs: Arrays by name that the packages are run on, or a ``.npz`` or ``.safetensors`` file of them; the golden
            ones of a bundle where None.
        run: False looks at the programs alone.
        progress: Told what is being done.

    Raises:
        UsageError: The chip is unknown, or the inputs do not fit.
        PackageError: A package cannot be read.
        OperationError: It holds an operation that cannot be executed, or fails on the inputs.
        BundleError: It is neither a package nor a bundle.
    """
    if chip not in CHIPS:
        raise UsageError(f"unknown family of chips {chip!r}", fix=f"Names are {', '.join(CHIPS)}.")
    path = path.path if isinstance(path, Bundle | Bag) else Path(path)
    if isinstance(inputs, Path):
        inputs = arrays.read(inputs, expected=input_shapes(path))
    found: list[Diagnosis] = []
    for package, read, given, asked, options in _packages(path, inputs, run=run):
        progress(f"examining {package.name}")
        found.extend(
            replace(diagnosis, options=options) for diagnosis in _diagnoses(package, read, CHIPS[chip], given, asked)
        )
    if not found:
        raise UsageError(f"{path} is a bundle without Core ML packages")
    return DoctorReport(str(path), chip, tuple(found))


def input_shapes(path: Path) -> dict[str, tuple[int | None, ...]]:
    """Shape of each input that `examine` takes for a bundle, a bag of bundles or a package; None for an open extent.

    Raises:
        BundleError, PackageError, OperationError: As `examine`.
    """
    if _is_package(path):
        return mil.load(path).input_shapes
    return {name: spec.shape for bundle in load(path).members for name, spec in bundle.tensors.items()}


def _is_package(path: Path) -> bool:
    # On file systems that ignore case a package's Manifest.json looks like a bundle's: the suffix is asked first.
    return path.suffix == ".mlpackage" or not (path / "manifest.json").exists()


def _packages(
    path: Path, inputs: Mapping[str, Array] | None, *, run: bool
) -> Iterator[tuple[Path, Read, Mapping[str, Array] | None, tuple[Asked, ...], tuple[str, ...]]]:
    """Packages, each with what reads its files, the inputs it is to run on, if it is, what is asked of it, and with
    which options it could be built again."""
    if _is_package(path):
        yield path, Path.read_bytes, inputs if run else None, (), ()
        return
    for bundle in load(path).members:
        segments = [segment for segment in bundle.segments if segment.artifact.path.endswith(".mlpackage")]
        given = (inputs if inputs is not None else bundle.goldens()) if run and segments else None
        for segment in segments:
            package = bundle.path / segment.artifact.path
            asked = (by_plan(bundle.manifest.plan, segment),)
            yield package, bundle.files.read, _inputs_of(bundle, segment, given), asked, _options(bundle.manifest.plan)


def _options(plan: Plan) -> tuple[str, ...]:
    """Options that mend what a rule finds, and that a plan does without."""
    open_options = []
    if not {*preset("ane")} <= {name.partition("(")[0] for name in plan.graph_passes}:
        open_options.append(ON_ENGINE)
    if plan.boundary_dtype.value != "fp16":
        open_options.append(HALF_BOUNDARIES)
    return tuple(open_options)


def _inputs_of(bundle: Bundle, segment: SegmentRecord, given: Mapping[str, Array] | None) -> Mapping[str, Array] | None:
    if given is None:
        return None
    if missing := [name for name in segment.inputs if name not in given]:
        raise UsageError(f"the inputs lack boundary tensors that {segment.name} reads", expected=", ".join(missing))
    specs = {name: bundle.tensors[name] for name in segment.inputs}
    return {name: spec.packaged(given[name].astype(spec.dtype)) for name, spec in specs.items()}


def _diagnoses(
    package: Path, read: Read, chip: Chip, inputs: Mapping[str, Array] | None, asked: tuple[Asked, ...]
) -> Iterator[Diagnosis]:
    """One for each function. Packages with several are run by their default function alone."""
    numerics = mil.Numerics(mil.RoundingMode.FP32)
    load = partial(mil.load, package, numerics=numerics, read=read)
    default = load()
    for name in default.spec.functions:
        model = default if name == default.function_name else load(function_name=name)
        yield _diagnosis(model, chip, inputs if model is default else None, asked)


def _diagnosis(model: mil.Model, chip: Chip, inputs: Mapping[str, Array] | None, asked: tuple[Asked, ...]) -> Diagnosis:
    graph = graph_of(model.function)
    run = None if inputs is None else measured(model, graph, inputs)
    claims = (*asked, *by_metadata(model.spec))
    subject = Subject(model.spec, graph, chip, claims, _links(model.path))
    if run is not None:
        subject = replace(subject, **vars(run), measured=True)
    findings: list[Finding] = []
    refused: dict[Node, set[str]] = {}
    for rule in rules().values():
        for note in rule.check(subject):
            if rule.off_engine and note.node is not None:
                refused.setdefault(note.node, set()).add(rule.id)
            operation = note.node.type if note.node is not None else ""
            output = note.node.name if note.node is not None else note.output
            findings.append(
                Finding(rule.id, rule.severity, operation, output, note.what, rule.why, rule.fix, rule.source)
            )
    order = list(Severity)
    as_it_is = placed(graph, refused.keys())
    in_half = placed(graph, {node for node, by in refused.items() if by != {DTYPE_RULE}})
    return Diagnosis(
        package=str(model.path),
        function=model.function_name,
        measured=subject.measured,
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.severity))),
        placement=as_it_is,
        placement_in_half=in_half,
        compile_time=compile_time(as_it_is.operations_on_engine),
        compile_time_in_half=compile_time(in_half.operations_on_engine),
        refused_flops=advice.refused_flops(refused),
    )


def _links(package: Path) -> tuple[str, ...]:
    return tuple(str(path.relative_to(package)) for path in sorted(package.rglob("*")) if path.is_symlink())


def _json(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "package": diagnosis.package,
        "function": diagnosis.function,
        "measured": diagnosis.measured,
        "engine": {
            "dtype_rule_counted": _engine(diagnosis.placement, diagnosis.compile_time),
            "dtype_rule_not_counted": _engine(diagnosis.placement_in_half, diagnosis.compile_time_in_half),
        },
        "findings": [asdict(finding) for finding in diagnosis.findings],
    }


def _engine(placement: Placement, time: CompileTime) -> dict[str, Any]:
    shares = {"operation_share": placement.operation_share, "flop_share": placement.flop_share}
    estimate = {"operations": time.operations, "seconds": time.seconds, "bounds": time.bounds, "is": "an estimate"}
    return asdict(placement) | shares | {"compile_time": estimate}
