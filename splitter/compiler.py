"""Model in, bundle out: the pipeline capture → partition → goldens → lowering, in a staging directory."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from . import lowering, models, names
from . import passes as graph_passes
from .boundary import Array, TensorSpec
from .bundle import goldens
from .bundle.directory import Bag, Bundle, file_records, load, staged, write_manifest
from .bundle.manifest import BagManifest, GoldenRecord, Manifest, ModelRecord, SegmentRecord
from .errors import CheckpointError, PartitionError, PassError, PlanError
from .graph import program as programs
from .graph.capture import capture
from .lowering.weights import check_names, compressed_forms
from .models import Family, Model
from .partition import Partition, Segment, partition, run
from .plan import schema as plans
from .plan.schema import Plan, WeightForm

Progress: TypeAlias = Callable[[str], None]

_WEIGHTS, _WHOLE, _GOLDENS = "graph/weights.safetensors", "graph/model.json", "goldens.safetensors"
_VERSIONED = ("splitter", "torch", "coremltools", "numpy", "safetensors")


@dataclass(frozen=True)
class SkippedPlace:
    """A place that a graph pass is made for and has left as it was.

    Attributes:
        segment: Where.
        graph_pass: As the plan names it.
        node: Name of the operator in the captured segment.
        module: Path of the module that it stands for.
        reason: Why, as a clause.
    """

    segment: str
    graph_pass: str
    node: str
    module: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def build(
    model: str | Path | nn.Module,
    out: str | Path,
    *,
    plan: Plan | Path | str | None = None,
    deployment_target: str | None = None,
    precision: str | None = None,
    boundary_dtype: str | None = None,
    weights: Mapping[str, str] | None = None,
    compress: WeightForm | None = None,
    passes: Sequence[str] | None = None,
    optimise_for: str | None = None,
    segment: float | None = None,
    random_init: int | None = None,
    golden_audio: str | Path | None = None,
    reference: bool = True,
    single_package: bool = False,
    force: bool = False,
    skipped: Callable[[SkippedPlace], None] = lambda place: None,
    progress: Progress = lambda step: None,
) -> Bag:
    """Build the bundle of a model, or a bag of bundles for a model that is a bag.

    Args:
        model: A name or a checkpoint file that a model family knows, see `splitter.models`; or a module of one.
        out: Directory to create.
        plan: The plan to obey, or a file of it; the preset for the model's class by default.
        deployment_target: ``iOS15`` to ``iOS18``; overrides the plan, as the next four do.
        precision: Arithmetic inside the packages, ``fp32`` or ``fp16``.
        boundary_dtype: Element type of the packages' inputs and outputs, ``fp32`` or ``fp16``.
        weights: How the transformer's weights are stored: fields of `splitter.plan.schema.WeightsForm`, e.g.
            ``{"layout": "mlx", "compress": "int8"}``.
        compress: One form for all weights of the bundle: those of the packages and the transformer's, see
            `splitter.plan.schema.compressed`; overrides the plan, exceptions included.
        passes: Names of graph passes, see `splitter.passes`; overrides the plan.
        optimise_for: ``ane``, Apple's Neural Engine: the passes with which packages fit it, where ``passes`` does not
            name others, and half precision, where neither ``precision`` nor the plan says which.
        segment: Seconds in one run of the model, no more than it was trained for.
        random_init: Seed of random weights for a named configuration.
        golden_audio: File whose beginning becomes the golden input; a synthesised song by default.
        reference: Also write the fp32 uncompressed artifact of segments whose target has one, under ``reference/``, by
            which `verify` tells conversion from precision and compression.
        single_package: Keep all between the first and the last stage in one package, see `plan.schema.single_package`.
        force: Replace a bundle that is already there.
        skipped: Called with each place that a graph pass is made for and has left as it was.
        progress: Called with a phrase as each step begins.

    Returns:
        The bundle, opened, as a bag of one or more.

    Raises:
        SplitterError: Of the kind that names what went wrong. Nothing is left behind.
    """
    out = Path(out)
    plan = plans.load(Path(plan)) if isinstance(plan, Path | str) else plan
    if optimise_for is not None:
        passes = graph_passes.preset(optimise_for) if passes is None else passes
        if precision is None and (plan is None or "precision" not in plan.model_fields_set):
            precision = "fp16"
    settings = {
        "deployment_target": deployment_target,
        "precision": precision,
        "boundary_dtype": boundary_dtype,
        "weights": dict(weights) if weights else None,
        "passes": passes,
    }
    graph_passes.check_order(passes or (plan.passes if plan and plan.passes else ()))
    if plan is not None:
        plan = plans.changed(plan, **settings)
    if plan is not None:
        _arranged(plan, single_package, compress)
    else:  # what contradicts itself under every preset should not wait for the download of a model
        _check_settings(settings, single_package, compress)
    with staged(out, force=force) as directory:
        if isinstance(model, nn.Module):
            family, ensemble = models.of_module(model)
        else:
            progress(f"loading {model}")
            family, ensemble = models.load(model, random_init=random_init)
        for member in ensemble.members:
            _check_name(member)
            single = len(ensemble.members) == 1
            target = directory if single else directory / member.name
            target.mkdir(exist_ok=True)
            label = "" if single else f"{member.name}: "
            obeyed = plan or plans.changed(models.preset_for(member), **settings)
            obeyed = family.prepared(member.module, _arranged(obeyed, single_package, compress), segment)
            _check_stems(family, member, obeyed)
            recording = None if golden_audio is None else Path(golden_audio)
            told = partial(_labelled, progress, label)
            _build_one(family, member, target, obeyed, recording, reference, skipped, told)
        if len(ensemble.members) > 1:
            members = tuple(member.name for member in ensemble.members)
            digests = tuple(Bundle.load(directory / name).manifest.digest for name in members)
            manifest = BagManifest(name=ensemble.name, members=members, digests=digests, weights=ensemble.weights)
            write_manifest(directory, manifest)
    return load(out)


def _check_name(member: models.Model) -> None:
    """It becomes the name of a folder."""
    if reason := names.fault(member.name, names.MOST_BYTES):
        raise CheckpointError(f"{member.name!r} cannot be the name of a model: {reason}", fix="Rename it.")


def _check_stems(family: models.Family, member: models.Model, plan: Plan) -> None:
    """Each becomes the name of a file; before minutes of work."""
    try:
        family.audio(member.module, plan)
    except ValidationError as error:
        raise CheckpointError(
            f"the stems of model {member.name!r} cannot be written to files",
            received=plans.readable(error),
            fix="Rename them in the model's `sources`.",
        ) from error


def _arranged(plan: Plan, single_package: bool, compress: WeightForm | None) -> Plan:
    """The plan with the options that depend on what its stages are, as far as their targets offer them."""
    plan = plans.single_package(plan) if single_package else plan
    plan = plan if compress is None else plans.compressed(plan, compress)
    lowering.check(plan)
    return plan


def _check_settings(settings: Mapping[str, object], single_package: bool, compress: WeightForm | None) -> None:
    """Refuse settings that agree with no preset, by the last one's reason. Raises `PlanError`."""
    refusals = []
    for preset in models.presets().values():
        try:
            _arranged(plans.changed(preset, **settings), single_package, compress)
        except PlanError as error:
            refusals.append(error)
        else:
            return
    raise refusals[0]


def captured(
    model: str | Path, *, plan: Plan | None = None, random_init: int | None = None
) -> tuple[programs.Program, Plan]:
    """The graph that a build would cut, and the plan it would obey; of a bag its first member.

    Args:
        model: A name or a checkpoint file, as for `build`.
        plan: The preset for the model's class by default.
        random_init: Seed of random weights for a named configuration.
    """
    family, ensemble = models.load(model, random_init=random_init)
    member = ensemble.members[0]
    obeyed = family.prepared(member.module, plan or models.preset_for(member), None)
    example = family.example(member.module, obeyed, None)
    return capture(member.module, example.inputs, obeyed.outputs, family.patches()), obeyed


def _labelled(progress: Progress, label: str, step: str) -> None:
    progress(label + step)


def _build_one(
    family: Family,
    model: Model,
    directory: Path,
    plan: Plan,
    recording: Path | None,
    reference: bool,
    skipped: Callable[[SkippedPlace], None],
    progress: Progress,
) -> None:
    """Build the bundle of one model, which the family has prepared with the plan."""
    progress("capturing the graph")
    example = family.example(model.module, plan, recording)
    inputs = example.inputs
    whole = capture(model.module, inputs, plan.outputs, family.patches())
    progress("cutting it into segments")
    parts = partition(whole, plan)
    progress("recording goldens of the untouched model")
    golden = goldens.record(model.module, whole, parts, inputs)
    _check_exact(golden, parts, inputs)

    (directory / "graph").mkdir()
    _save_tensors(whole.weights, directory / _WEIGHTS)
    programs.save(whole, directory / _WHOLE)
    _save_tensors(golden, directory / _GOLDENS)
    progress("applying graph passes")
    passed = {segment.name: _passed(segment, plan, golden, skipped) for segment in parts.segments}
    parts = _folded(parts, {name: program for name, (program, _) in passed.items()})
    compressed = (passed[segment.name][0] for segment in parts.segments if _can(segment).weights == "compression")
    check_names(compressed, plan.compression)
    specs = {spec.name: spec for spec in _at_boundary_dtype(parts, plan)}
    segments = []
    for segment in parts.segments:
        programs.save(segment.program, directory / "graph" / f"{segment.name}.json")
        progress(f"lowering {segment.name} to {segment.stage.target}")
        segments.append(_lowered(segment, *passed[segment.name], specs, plan, golden, directory, reference=reference))

    versioned = [*_VERSIONED, *([family.distribution] if family.distribution else [])]
    write_manifest(
        directory,
        Manifest(
            versions={"python": platform.python_version()} | {name: version(name) for name in versioned},
            model=ModelRecord(
                name=model.name,
                family=family.name,
                model_class=model.class_path,
                arguments=dict(model.arguments),
                checkpoint_sha256=model.sha256,
                random_init=model.random_init,
                audio=family.audio(model.module, plan),
            ),
            plan=plan,
            tensors=tuple(specs.values()),
            nodes=dict(parts.nodes),
            segments=tuple(segments),
            weights=_WEIGHTS,
            whole=_WHOLE,
            golden=GoldenRecord(path=_GOLDENS, audio=names.visible(example.description), machine=goldens.machine()),
            files=file_records(directory),
        ),
    )


def _target(segment: Segment) -> lowering.Target:
    return lowering.target(segment.stage.target)


def _can(segment: Segment) -> lowering.Capabilities:
    return _target(segment).capabilities


def _passed(
    segment: Segment, plan: Plan, golden: Mapping[str, Tensor], skipped: Callable[[SkippedPlace], None]
) -> tuple[programs.Program, dict[str, int]]:
    """A segment's program after the plan's passes, where its target takes them, and what each of them changed."""
    program: programs.Program = segment.program
    applied: dict[str, int] = {}
    if _can(segment).passes:
        example = {spec.name: golden[spec.name] for spec in segment.inputs}
        for name in plan.graph_passes:
            rewriting = graph_passes.apply(name, program, example)
            program, applied[name] = rewriting.program, rewriting.changes
            for place in rewriting.skipped:
                skipped(SkippedPlace(segment.name, name, place.node, place.module, place.reason))
    return program, applied


def _folded(parts: Partition, passed: Mapping[str, programs.Program]) -> Partition:
    """The partition with specs that say how tensors cross the packages' boundaries."""
    folds = {name: fold for program in passed.values() for name, fold in program.folds.items()}
    for segment in parts.segments:
        for spec in segment.inputs + segment.outputs:
            fold = passed[segment.name].folds.get(spec.name)
            if _can(segment).passes and fold != folds.get(spec.name):
                raise PassError(
                    f"{spec.name!r} crosses the boundaries of packages in different folds",
                    expected=folds[spec.name],
                    received=f"{fold} at {segment.name!r}",
                    fix="Leave 'fold-long-axes' out of the plan, and report this.",
                )
    specs = {spec.name: spec.with_fold(folds[spec.name]) if spec.name in folds else spec for spec in parts.tensors}
    segments = tuple(
        replace(
            segment,
            inputs=tuple(specs[spec.name] for spec in segment.inputs),
            outputs=tuple(specs[spec.name] for spec in segment.outputs),
        )
        for segment in parts.segments
    )
    return replace(parts, segments=segments, tensors=tuple(specs.values()))


def _lowered(
    segment: Segment,
    program: programs.Program,
    applied: dict[str, int],
    specs: Mapping[str, TensorSpec],
    plan: Plan,
    golden: Mapping[str, Tensor],
    directory: Path,
    *,
    reference: bool,
) -> SegmentRecord:
    """Lower a segment, its program after the passes, and describe both."""
    ready = replace(
        segment,
        program=program,
        inputs=tuple(specs[spec.name] for spec in segment.inputs),
        outputs=tuple(specs[spec.name] for spec in segment.outputs),
    )
    arrays: dict[str, Array] = {spec.name: golden[spec.name].numpy() for spec in segment.inputs + segment.outputs}
    artifact = _target(segment).lower(ready, plan, arrays, directory)
    kept = uncompressed = ""
    if reference and _can(segment).reference:
        kept = _reference(replace(segment, program=program), artifact.path, plan, directory)
        if compressed_forms(artifact):
            uncompressed = _uncompressed(ready, kept, plan, directory)
    return SegmentRecord(
        name=segment.name,
        stage=segment.stage.name,
        program=f"graph/{segment.name}.json",
        inputs=tuple(spec.name for spec in segment.inputs),
        outputs=tuple(spec.name for spec in segment.outputs),
        operators=len(segment.program.operators),
        parameters=segment.program.parameters,
        passes=applied,
        artifact=artifact,
        reference=kept,
        uncompressed=uncompressed,
    )


def _reference(segment: Segment, shipped: str, plan: Plan, directory: Path) -> str:
    """Write a segment's fp32 uncompressed artifact, or copy the shipped one where it is just that."""
    home = directory / "reference"
    home.mkdir(exist_ok=True)
    plain = plans.changed(_losslessly(plan), precision="fp32", boundary_dtype="fp32")
    if plan == plain:
        copy = shutil.copytree if (directory / shipped).is_dir() else shutil.copyfile
        copy(directory / shipped, home / shipped)
        return f"reference/{shipped}"
    return f"reference/{_target(segment).lower(segment, plain, {}, home).path}"


def _uncompressed(segment: Segment, reference: str, plan: Plan, directory: Path) -> str:
    """Write a segment's artifact as it is shipped but for the compression, by which `verify` tells that from precision;
    the reference serves where all is fp32."""
    plain = _losslessly(plan)
    if plain == plans.changed(plain, precision="fp32", boundary_dtype="fp32"):
        return reference
    home = directory / "reference" / "uncompressed"
    home.mkdir(exist_ok=True)
    return f"reference/uncompressed/{_target(segment).lower(segment, plain, {}, home).path}"


def _losslessly(plan: Plan) -> Plan:
    return plans.changed(plan, compression={"form": "none", "exceptions": {}})


def _at_boundary_dtype(parts: Partition, plan: Plan) -> tuple[TensorSpec, ...]:
    """Specs with the plan's element type for what a segment takes or gives whose target offers that."""
    packages = {segment.name for segment in parts.segments if _can(segment).boundary_dtypes}
    return tuple(
        spec.with_dtype(plan.boundary_dtype.dtype)
        if spec.dtype == "float32" and packages & {spec.producer, *spec.consumers}
        else spec
        for spec in parts.tensors
    )


def _check_exact(golden: Mapping[str, Tensor], parts: Partition, inputs: Mapping[str, Tensor]) -> None:
    """Invariant: cutting changes nothing, not one bit."""
    got = run(parts, inputs)
    for name, reference in golden.items():
        if not torch.equal(reference, got[name]):
            difference = (reference - got[name]).abs().max().item()
            raise PartitionError(
                f"the segments in order give another {name!r} than the whole graph",
                expected="max |Δ| = 0",
                received=f"max |Δ| = {difference:g}",
            )


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)
