"""The plan: which node belongs to which stage, what tensors are called, budgets, precision. Data only.

A plan is a TOML file. Model families bring presets, see `splitter.models`; another model needs another file, not
other code. What each key means is said on the classes below.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .. import lowering, names, output, plugins, reading
from ..errors import PlanError

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
_NAME_TEMPLATE = r"^[a-z{][a-z0-9_{}]*$"
_MAX_BYTES = 1 << 18  # of a plan file
MatrixForm: TypeAlias = Literal["int8", "pal8", "pal6", "pal4"]
CompressionForm: TypeAlias = Literal[
    MatrixForm, "int8-blocks", "int4-blocks", "pal6-groups", "pal4-groups", "pal4-sparse"
]
WeightForm: TypeAlias = Literal["none", CompressionForm]
COMPRESSIONS: tuple[CompressionForm, ...] = get_args(CompressionForm)
_Form = TypeVar("_Form", bound=WeightForm)
# Forms that only the newest packages can decode.
_SINCE_IOS18: frozenset[str] = frozenset(form for form in COMPRESSIONS if "-" in form)
Packaging: TypeAlias = Literal["split", "core", "whole"]
PACKAGINGS: tuple[Packaging, ...] = get_args(Packaging)
MAIN = "main"  # the shapes of the example
# Passes for what host stages compute: before a plan's own, and behind them.
_FOURIER, _STDS, _FOLD = "fourier-as-products", "stds-as-means", "fold-long-axes"
_FOR_LONG_MEANS = ("means-in-stages",)
_LONGEST = 16_384  # what `fold-long-axes` leaves by default


class DeploymentTarget(StrEnum):
    """Oldest system a package must run on, as Core ML Tools names it."""

    IOS15 = "iOS15"
    IOS16 = "iOS16"
    IOS17 = "iOS17"
    IOS18 = "iOS18"


class Precision(StrEnum):
    """Arithmetic, or type of elements."""

    FP32 = "fp32"
    FP16 = "fp16"

    @property
    def dtype(self) -> str:
        """NumPy's name of the element type."""
        return {"fp32": "float32", "fp16": "float16"}[self]

    @property
    def passes(self) -> tuple[str, ...]:
        """Graph passes without which packages of this precision are too large or wrong."""
        half = ("norms-safe-in-half", "means-in-stages") if self is Precision.FP16 else ()
        return ("keep-broadcasts-small", *half)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(_Strict):
    """One part of the pipeline.

    Attributes:
        name: e.g. ``"encoder"``; also the name of its segment and artifact.
        target: What it is lowered to: a name in `splitter.lowering`.
        modules: Module paths whose nodes are placed here, each with all it contains; parts of a path may be patterns:
            ``blocks.*.attention``, ``layers.[0-3]``. Only the first and the last stage may leave it empty: they take
            what comes before and after all placed nodes.
        exact: It holds its modules' nodes and nothing else.
        segments: In how many it is cut, each a package of its own; the planner chooses where.
    """

    name: Name
    target: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    modules: tuple[str, ...] = ()
    exact: bool = False
    segments: int = Field(default=1, ge=1, le=64)


class Variant(_Strict):
    """Further shapes of the model's inputs: the bundle gets a graph for them, and each of its packages a function.

    Attributes:
        name: What the function is called, e.g. ``"short"``.
        shapes: By the name of the input in the example; inputs that are not named keep their shape.
    """

    name: Name
    shapes: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] = Field(min_length=1)


class TensorRule(_Strict):
    """A name for the boundary tensors that fit every given condition; the first rule that fits wins.

    Attributes:
        name: May hold ``{index}`` (counts the tensors the rule has named, in graph order) and
            ``{feeds}`` (the boundary tensor it feeds).
        producer: Stage that computes the tensor.
        into: Some node of this module reads it.
        op: The operator that computes it, e.g. ``"aten.mean.dim"``.
        feeds: It is used in computing one of these boundary tensors within its own stage.
        layout: einops axes; as a condition, the number of axes must be the tensor's.
        about: One phrase for people: descriptions in packages and reports.
    """

    name: str = Field(pattern=_NAME_TEMPLATE)
    producer: Name
    into: str = ""
    op: str = ""
    feeds: tuple[Name, ...] = ()
    layout: str = ""
    about: str = ""


class WeightsForm(_Strict):
    """How the weights of a hand-written transformer are stored. Norms, biases, layer scales and position tables
    are float32 in every form; what follows is about the weights of linear maps, ``[out, in]`` throughout.

    Attributes:
        layout: Whose names: PyTorch's, or those of MLX's modules (``query_proj``, ``key_proj``, ``value_proj``).
        qkv: The input projections of an attention stacked in one matrix, or one each. By default as the layout
            has them: stacked for ``torch``, and for ``mlx``, which knows nothing else, split.
        matrices: Element type.
        compress: ``int8`` with a scale per row, or a palette of 256, 64 or 16 values per matrix; see
            `kernels.compression`.
        exceptions: Another form for some matrices, by their name in `kernels.spec.parameters`
            (``layers.0.linear1.weight``) or the path of all below it (``layers.0``); the longest that fits counts.
    """

    layout: Literal["torch", "mlx"] = "torch"
    qkv: Literal["fused", "split"] | None = None
    matrices: Precision = Precision.FP32
    compress: Literal["none", MatrixForm] = "none"
    exceptions: dict[str, Literal["none", MatrixForm]] = {}

    @property
    def is_split(self) -> bool:
        return self.qkv == "split" or self.layout == "mlx"

    def form_of(self, matrix: str) -> Literal["none", MatrixForm]:
        """How a matrix is stored, by its name in `kernels.spec.parameters`."""
        return _form_of(matrix, self.compress, self.exceptions)

    def loss_of(self, matrix: str) -> Literal["fp16", MatrixForm] | None:
        """What may change a matrix; None if it is kept bit for bit."""
        form = self.form_of(matrix)
        if form != "none":
            return form
        return "fp16" if self.matrices is Precision.FP16 else None

    @property
    def is_lossless(self) -> bool:
        """Every matrix is kept bit for bit."""
        return {self.compress, *self.exceptions.values()} == {"none"} and self.matrices is Precision.FP32

    @model_validator(mode="after")
    def _consistent(self) -> WeightsForm:
        if self.layout == "mlx" and self.qkv == "fused":
            raise ValueError("MLX's attention has its projections split: leave qkv out, or choose the torch layout")
        if self.compress != "none" and "none" not in self.exceptions.values() and self.matrices is Precision.FP16:
            raise ValueError("compressed matrices have no element type of their own: leave one of the two out")
        return self


class Compression(_Strict):
    """How the weights of the Core ML packages are stored: what an operation multiplies its input with, not biases,
    norms and scales, which have one axis, and not what a converter folds.

    Attributes:
        form: ``int8`` with a scale per output channel, a palette of 256, 64 or 16 values per weight, or ``none``: in
            the element type of the arithmetic. From iOS18 on also ``int8-blocks`` and ``int4-blocks``, a scale for
            each output and at most 32 inputs; ``pal6-groups`` and ``pal4-groups``, a palette for at most 16 outputs;
            and ``pal4-sparse``, the smaller half of a weight zero and a palette for the rest.
        exceptions: Another form for some weights, by their name in the model (``decoder.0.rewrite.weight``) or the path
            of a module for all in it (``decoder``); the longest that fits counts.
        min_elements: Weights of fewer stay as they are. 2048 is Core ML Tools' own limit.
    """

    form: WeightForm = "none"
    exceptions: dict[str, WeightForm] = {}
    min_elements: int = Field(default=2048, ge=1)

    @property
    def forms(self) -> frozenset[str]:
        return frozenset({self.form, *self.exceptions.values()})

    @property
    def is_lossless(self) -> bool:
        """No weight is compressed."""
        return self.forms == {"none"}

    def form_of(self, weight: str) -> WeightForm:
        """How a weight is stored, by its name in the model."""
        return _form_of(weight, self.form, self.exceptions)


def _form_of(name: str, default: _Form, exceptions: Mapping[str, _Form]) -> _Form:
    while name:
        if name in exceptions:
            return exceptions[name]
        name = name.rpartition(".")[0]
    return default


class Tolerances(_Strict):
    """What `verify` demands. Decibels are SNR, ``10 log10(Σ r² / Σ (r − x)²)``.

    Attributes:
        golden_snr_db: Saved programs against the tensors of the untouched model, perhaps recorded on
            another machine; on the same machine the limit is equality.
        boundary_fp16_snr_db: The same where tensors cross the boundaries in half precision.
        kernels_snr_db: NumPy and JAX transformer against the captured graph, local.
        host_snr_db: The NumPy reading of a host specification against the captured graph, local.
        conversion_snr_db: fp32 uncompressed packages against the captured segment, local.
        precision_snr_db: Packages with half precision against the fp32 ones, local.
        package_fp32_snr_db: A run with the shipped packages against the untouched model, at every boundary.
        package_fp16_snr_db: The same where packages or boundaries are in half precision.
        compression_snr_db: By what was lost: each matrix as it is stored against the graph's, and the captured
            transformer with the stored matrices against itself with its own, local. Each limit is 5 to 10 dB below
            the least that the outputs of an honest build of the released model were measured to have, so that a
            palette does not fail for being a small one. Matrices decoded wrongly have less than 0 dB.
        package_compression_snr_db: The same for packages: the compressed against the uncompressed, local; and for a
            run with the shipped packages. Where weights have several forms, the lowest limit counts.
        coreml_snr_db: Core ML's own prediction, per compute unit.
        port_snr_db: A tap that a port dumped against the captured graph, per dtype of the dump; local.
        port_accumulated_snr_db: The same where the dump lacks what the step read.
        negligible_max_abs: A difference no larger than this passes whatever the SNR. The mean of a
            spectrogram is a sum that cancels: what is left of it has few exact digits, and none matters
            beside values of unit variance.
    """

    golden_snr_db: float = 120.0
    boundary_fp16_snr_db: float = 55.0
    kernels_snr_db: float = 110.0
    host_snr_db: float = 110.0
    conversion_snr_db: float = 110.0
    precision_snr_db: float = 40.0
    package_fp32_snr_db: float = 100.0
    package_fp16_snr_db: float = 40.0
    compression_snr_db: dict[Literal["fp16", CompressionForm], float] = {
        "fp16": 50.0,
        "int8": 28.0,
        "pal8": 27.0,
        "pal6": 17.0,
        "pal4": 0.0,
        "int8-blocks": 28.0,
        "int4-blocks": 0.0,
        "pal6-groups": 17.0,
        "pal4-groups": 0.0,
        "pal4-sparse": 0.0,
    }
    package_compression_snr_db: dict[CompressionForm, float] = {
        "int8": 20.0,
        "pal8": 22.0,
        "pal6": 10.0,
        "pal4": 0.0,
        "int8-blocks": 20.0,
        "int4-blocks": 0.0,
        "pal6-groups": 12.0,
        "pal4-groups": 0.0,
        "pal4-sparse": -3.0,
    }
    coreml_snr_db: dict[Literal["CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL"], float] = {
        "CPU_ONLY": 90.0,
        "CPU_AND_GPU": 70.0,
        "CPU_AND_NE": 60.0,
        "ALL": 60.0,
    }
    port_snr_db: dict[Literal["float32", "float16"], float] = {"float32": 110.0, "float16": 62.0}
    port_accumulated_snr_db: dict[Literal["float32", "float16"], float] = {"float32": 90.0, "float16": 40.0}
    negligible_max_abs: float = 1e-8


class Plan(_Strict):
    """Everything that decides what a build makes of a model.

    Attributes:
        family: Name of the preset or of your own plan.
        models: Import paths of the model classes it fits.
        outputs: Names for the tensors that the model's forward computes and returns, each once, in the order in which
            it returns them.
        stages: In order of execution.
        tensors: Names for boundary tensors.
        variants: Further shapes that the bundle takes besides those of the example.
        passes: Graph passes for the segments whose targets take them, in order: names in `splitter.passes`. Left out,
            those that the precision needs, see `graph_passes`.
        deployment_target: Oldest system the packages must run on.
        precision: Arithmetic inside the packages.
        fp32_operations: What packages in half precision compute in float32 nonetheless, by segment: operations by the
            name that their first result has in the segment's fp32 package. `tuning.precision` chooses them.
        boundary_dtype: Element type of the packages' inputs and outputs.
        weights: How the weights of a hand-written transformer are stored.
        compression: How those of the packages are.
        imbalance: ε: where a stage is cut into N segments, none has more than (1 + ε) / N of its operations.
        segment_samples: Samples in one run of the model; the training segment where None.
        tolerances: What `verify` demands.
    """

    family: Name
    models: tuple[str, ...] = ()
    outputs: tuple[Name, ...]
    stages: tuple[Stage, ...] = Field(min_length=1)
    tensors: tuple[TensorRule, ...] = ()
    variants: tuple[Variant, ...] = ()
    passes: tuple[str, ...] | None = None
    deployment_target: DeploymentTarget = DeploymentTarget.IOS17
    precision: Precision = Precision.FP32
    fp32_operations: dict[Name, tuple[str, ...]] = {}
    boundary_dtype: Precision = Precision.FP32
    weights: WeightsForm = WeightsForm()
    compression: Compression = Compression()
    imbalance: float = Field(default=0.2, ge=0)
    segment_samples: int | None = Field(default=None, gt=0)
    tolerances: Tolerances = Tolerances()

    @property
    def forms(self) -> tuple[CompressionForm, ...]:
        """In which weights can be stored for the deployment target."""
        newest = self.deployment_target is DeploymentTarget.IOS18
        return tuple(form for form in COMPRESSIONS if newest or form not in _SINCE_IOS18)

    @property
    def graph_passes(self) -> tuple[str, ...]:
        """The passes as given, or those without which packages of the precision are too large or wrong."""
        return self.passes if self.passes is not None else self.precision.passes

    def requested_precision(self, segment: str) -> str:
        """What the arithmetic of a segment's package is to be called: ``fp32``, ``fp16``, or ``mixed``."""
        mixed = self.precision is Precision.FP16 and self.fp32_operations.get(segment)
        return "mixed" if mixed else self.precision.value

    @model_validator(mode="before")
    @classmethod
    def _visible(cls, content: Any) -> Any:
        return names.check_visible(content)

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        stages = [stage.name for stage in self.stages]
        if len(set(stages)) != len(stages):
            raise ValueError(f"two stages share a name: {stages}")
        paths = Counter(path for stage in self.stages for path in {*stage.modules})
        if shared := [path for path, count in paths.items() if count > 1]:
            raise ValueError(f"two stages have the same modules: {shared}; a module's nodes belong to one stage")
        for stage in self.stages[1:-1]:
            if not stage.modules:
                raise ValueError(f"stage {stage.name!r} has no modules; only the first and last may have none")
        for rule in self.tensors:
            if rule.producer not in stages:
                raise ValueError(f"tensor {rule.name!r} names the producer {rule.producer!r}, which is no stage")
        variants = [MAIN, *(variant.name for variant in self.variants)]
        if len(set(variants)) != len(variants):
            raise ValueError(f"two variants share a name: {', '.join(variants)}; {MAIN!r} is the example's")
        if self.boundary_dtype is Precision.FP16 and self.deployment_target is DeploymentTarget.IOS15:
            raise ValueError("fp16 boundaries need iOS16 or later: iOS15 packages take and give float32 only")
        if not self.compression.is_lossless and self.deployment_target is DeploymentTarget.IOS15:
            raise ValueError("compressed packages need iOS16 or later: iOS15 has no operation that decodes weights")
        if newer := sorted(self.compression.forms - {"none", *self.forms}):
            raise ValueError(f"weights as {', '.join(newer)} need iOS18 packages: choose the target iOS18")
        return self


def load(path: Path) -> Plan:
    """Read a plan file. Raises `PlanError` with the offending keys."""
    try:
        values = tomllib.loads(reading.content(path, _MAX_BYTES).decode())
        reading.check_depth(values)
        return Plan.model_validate(values)
    except ValidationError as error:
        raise PlanError(f"{path} is no valid plan", received=readable(error)) from error
    except (OSError, ValueError, RecursionError) as error:  # Python's own limit of digits is a ValueError
        raise PlanError(f"{path} is no readable TOML file", received=error) from error


def changed(plan: Plan, **settings: object) -> Plan:
    """The plan with some settings replaced, validated again; settings that are None stay as they are.

    A mapping replaces the settings it names within its part of the plan, ``weights`` or ``tolerances``.
    """
    current = plan.model_dump()
    given = {key: value for key, value in settings.items() if value is not None}
    parts = {
        key: {**current[key], **value}
        for key, value in given.items()
        if isinstance(value, dict) and isinstance(getattr(plan, key), BaseModel)
    }
    try:
        return Plan.model_validate({**current, **given, **parts})
    except ValidationError as error:
        raise PlanError("the settings do not agree with each other", received=readable(error)) from error


def compressed(plan: Plan, form: WeightForm) -> Plan:
    """The plan with all its weights in one form: those of packages, and those of a transformer of its own."""
    whole: dict[str, object] = {"compress": form, "exceptions": {}}
    weights = whole if any(lowering.capabilities(stage.target).weights == "weights" for stage in plan.stages) else None
    return changed(plan, compression={"form": form, "exceptions": {}}, weights=weights)


def save(plan: Plan, path: Path) -> None:
    """Write a plan file; whole, or not at all. Raises `UsageError` where that cannot be."""
    with output.whole(path) as waiting:
        waiting.write_text(
            tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True, exclude_defaults=True)), encoding="utf-8"
        )


def with_segments(plan: Plan, counts: Mapping[str, int]) -> Plan:
    """The plan with some stages cut into so many segments. Raises `PlanError` for a name that is no stage's."""
    if unknown := sorted(counts.keys() - {stage.name for stage in plan.stages}):
        raise PlanError(
            f"unknown stage {', '.join(map(repr, unknown))}",
            fix=f"The plan's stages are {', '.join(stage.name for stage in plan.stages)}.",
        )
    stages = [stage.model_dump() | {"segments": counts.get(stage.name, stage.segments)} for stage in plan.stages]
    return changed(plan, stages=stages)


def with_format(plan: Plan, target: str) -> Plan:
    """The plan with all that it ships, but the host's part, lowered to one target.

    Raises:
        PlanError: There is no such target, or it writes nothing.
    """
    if not lowering.capabilities(target).artifact:
        written = [name for name in plugins.names(lowering.GROUP) if lowering.capabilities(name).artifact]
        raise PlanError(f"target {target!r} writes no files", fix=f"Those that do: {', '.join(written)}.")
    stages = []
    for stage in plan.stages:
        able = lowering.capabilities(stage.target)
        stages.append(stage.model_dump() | ({"target": target} if able.artifact and not able.on_host else {}))
    return changed(plan, stages=stages)


def laid_out(plan: Plan, layout: Packaging) -> Plan:
    """The plan with its stages as they are, or in one package.

    Args:
        plan: With the targets that are wanted.
        layout: ``split``: as the plan has it. ``core``: everything between the first and the last stage in one package.
            ``whole``: from the model's inputs to its outputs, Fourier transforms as products, with no stage beside it.

    Raises:
        PlanError: The target of none of the stages in question makes packages.
    """
    return {"split": lambda: plan, "core": lambda: _core(plan), "whole": lambda: _whole(plan)}[layout]()


def _package_target(stages: Sequence[Stage], which: str) -> str:
    for stage in stages:
        if lowering.capabilities(stage.target).passes:
            return stage.target
    raise PlanError(
        f"no stage {which} makes a package",
        received=", ".join(f"{stage.name} → {stage.target}" for stage in stages),
        fix="Give one of them a target that takes graph passes.",
    )


def _whole(plan: Plan) -> Plan:
    stage = Stage(name="whole", target=_package_target(plan.stages, "of the plan"))
    needed = lowering.capabilities(stage.target).needed_passes if plan.passes is None else ()
    asked = plan.graph_passes
    fold = next((text for text in asked if text.startswith(_FOLD)), "")  # its bound is that of the products too
    arguments = fold.removeprefix(_FOLD) or f"(extent={_LONGEST})"
    fourier = _FOURIER + arguments if fold else _FOURIER
    passes = tuple(dict.fromkeys((fourier, _STDS, *asked, *needed, *_FOR_LONG_MEANS)))
    return changed(plan, stages=[stage.model_dump()], tensors=(), passes=passes)


def _core(plan: Plan) -> Plan:
    inner = plan.stages[1:-1]
    target = _package_target(inner, "between the first and the last")
    core = Stage(name="core", target=target, modules=tuple(path for stage in inner for path in stage.modules))
    merged = {stage.name for stage in inner}
    tensors = [
        rule.model_dump() | {"producer": "core" if rule.producer in merged else rule.producer}
        for rule in plan.tensors
        if rule.producer not in merged - {inner[-1].name}
    ]
    stages = [stage.model_dump() for stage in (plan.stages[0], core, plan.stages[-1])]
    return changed(plan, stages=stages, tensors=tensors)


def readable(error: ValidationError) -> str:
    """Validation errors in one line: where, what."""
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        parts.append(f"{where}: {item['msg']}" if where else str(item["msg"]))
    return "; ".join(parts)


def rank(layout: str) -> int:
    """Number of axes of an einops layout: ``b (t f) c`` has three."""
    return len(re.sub(r"\([^)]*\)", "x", layout).split())
