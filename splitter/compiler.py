"""Model in, bundle out: the pipeline capture → partition → goldens → lowering, in a staging directory."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from . import lowering, models, names, opening
from . import passes as graph_passes
from .boundary import INPUT, Array, TensorSpec
from .bundle import goldens
from .bundle.directory import Bag, Bundle, file_records, load, staged, write_manifest
from .bundle.manifest import (
    BagManifest,
    DefinitionsRecord,
    GoldenRecord,
    Manifest,
    ModelRecord,
    SegmentRecord,
    VariantRecord,
)
from .errors import CheckpointError, PartitionError, PassError, PlanError, UsageError
from .graph import diagnosis
from .graph import program as programs
from .graph.capture import capture
from .graph.signature import bind, of_shapes
from .lowering.weights import check_names, compressed_forms
from .models import Example, Family, Model
from .partition import Partition, Segment, partition, run
from .plan import schema as plans
from .plan.schema import MAIN, Packaging, Plan, WeightForm

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
    inputs: Mapping[str, Any] | Path | str | None = None,
    plan: Plan | Path | str | None = None,
    deployment_target: str | None = None,
    precision: str | None = None,
    boundary_dtype: str | None = None,
    weights: Mapping[str, str] | None = None,
    compress: WeightForm | None = None,
    passes: Sequence[str] | None = None,
    optimise_for: str | None = None,
    format: str | None = None,  # noqa: A002
    segment: float | None = None,
    name: str | None = None,
    random_init: int | None = None,
    golden_audio: str | Path | None = None,
    reference: bool = True,
    layout: Packaging = "split",
    force: bool = False,
    skipped: Callable[[SkippedPlace], None] = lambda place: None,
    progress: Progress = lambda step: None,
) -> Bag:
    """Build the bundle of a model, or a bag of bundles for a model that is a bag.

    Args:
        model: A name or a checkpoint file that a model family knows, see `splitter.models`; any `nn.Module`; or
            ``PACKAGE.MODULE:FACTORY``, a function or class of your own code that is imported and called without
            arguments, and returns one.
        out: Directory to create.
        inputs: Example inputs, which a module of no family needs: arrays, tensors or constants of any number, dtype and
            rank by the name of the forward's argument (``"features.0"`` within a list, ``"state.h"`` within a
            dictionary), or a ``.npz`` or ``.safetensors`` file of them. Their shapes become the bundle's; they are its
            golden input.
        plan: The plan to obey, or a file of it. By default the preset for the model's class, or else a proposed one,
            see `splitter.plan.proposal`.
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
        format: The target of every stage that ships files but the host's, see `splitter.lowering`; overrides the plan.
        segment: Seconds in one run of the model, no more than it was trained for.
        name: What the model is called in the bundle, and the folder of its stems; the family's name for it, or the
            file's, by default.
        random_init: Seed of random weights for a named configuration.
        golden_audio: File whose beginning becomes the golden input; a synthesised song by default.
        reference: Also write the fp32 uncompressed artifact of segments whose target has one, under ``reference/``, by
            which `verify` tells conversion from precision and compression.
        layout: ``split``: the plan's stages. ``core``: all between the first and the last in one package. ``whole``:
            all in one, from the model's inputs to its outputs. See `plan.schema.laid_out`.
        force: Replace a bundle that is already there.
        skipped: Called with each place that a graph pass is made for and has left as it was.
        progress: Called with a phrase as each step begins.

    Returns:
        The bundle, opened, as a bag of one or more.

    Raises:
        SplitterError: Of the kind that names what went wrong. Nothing is left behind.
    """
    out = Path(out)
    given = None if inputs is None else opening.given(inputs)
    if given is not None and golden_audio is not None:
        raise UsageError("the golden input is either given as inputs or made from audio, not both")
    plan = plans.load(Path(plan)) if isinstance(plan, Path | str) else plan
    if optimise_for is not None:
        passes = graph_passes.preset(optimise_for) if passes is None else passes
        if precision is None and (plan is None or "precision" not in plan.model_fields_set):
            precision = "fp16"
    if name is not None and (reason := names.fault(name, names.MOST_BYTES)):
        raise UsageError(f"{name!r} cannot be the name of a model: {reason}")
    settings = {
        "deployment_target": deployment_target,
        "precision": precision,
        "boundary_dtype": boundary_dtype,
        "weights": dict(weights) if weights else None,
        "passes": passes,
    }
    arrange = partial(_arranged, target=format, layout=layout, compress=compress)
    graph_passes.check_order(passes or (plan.passes if plan and plan.passes else ()))
    if plan is not None:
        plan = plans.changed(plan, **settings)
        arrange(plan)
    else:  # what contradicts itself under every preset should not wait for the download of a model
        _check_settings(settings, arrange)
    with staged(out, force=force) as directory:
        family, ensemble = opening.opened(model, random_init, progress)
        ensemble = ensemble if name is None else opening.renamed(ensemble, name)
        for member in ensemble.members:
            _check_name(member)
            single = len(ensemble.members) == 1
            target = directory if single else directory / member.name
            target.mkdir(exist_ok=True)
            label = "" if single else f"{member.name}: "
            told = partial(_labelled, progress, label)
            request = opening.Request(
                plan, settings, given, segment, None if golden_audio is None else Path(golden_audio)
            )
            obeyed = opening.planned(family, member, request, arrange, told)
            _check_stems(family, member, obeyed)
            example = request.example(family, member.module, obeyed)
            _build_one(family, member, target, obeyed, example, reference, skipped, told)
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


def _arranged(plan: Plan, *, target: str | None, layout: Packaging, compress: WeightForm | None) -> Plan:
    """The plan with the options that depend on what its stages are, as far as their targets offer them."""
    plan = plan if target is None else plans.with_format(plan, target)
    plan = plans.laid_out(plan, layout)
    plan = plan if compress is None else plans.compressed(plan, compress)
    lowering.check(plan)
    return plan


def _check_settings(settings: Mapping[str, object], arrange: Callable[[Plan], Plan]) -> None:
    """Refuse settings that agree with no preset, by the last one's reason. Raises `PlanError`."""
    refusals = []
    for preset in models.presets().values():
        try:
            arrange(plans.changed(preset, **settings))
        except PlanError as error:
            refusals.append(error)
        else:
            return
    raise refusals[0]


def _labelled(progress: Progress, label: str, step: str) -> None:
    progress(label + step)


def _build_one(
    family: Family,
    model: Model,
    directory: Path,
    plan: Plan,
    example: Example,
    reference: bool,
    skipped: Callable[[SkippedPlace], None],
    progress: Progress,
) -> None:
    """Build the bundle of one model, which the family has prepared with the plan."""
    audio = family.audio(model.module, plan)
    if plan.variants and audio is not None:
        raise PlanError(
            "a separator has one length of run", received="`variants`", fix="Choose the length with --segment."
        )
    shapes = {MAIN: {}, **{variant.name: variant.shapes for variant in plan.variants}}
    built: dict[str, _Built] = {}
    for name, changes in shapes.items():
        home = "" if name == MAIN else f"variants/{name}/"
        inputs = of_shapes(example.inputs, changes) if changes else example.inputs
        if home:
            diagnosis.check(model.module, bind(model.module, inputs))
        told = partial(_labelled, progress, f"{name}: " if plan.variants else "")
        built[name] = _variant(
            family, model, directory, home, plan, replace(example, inputs=inputs), reference, skipped, told
        )
    main, *further = _together(built, directory, progress)
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
                returns=main.returns,
                audio=audio,
            ),
            plan=plan,
            tensors=main.tensors,
            nodes=main.nodes,
            segments=main.segments,
            weights=main.weights,
            whole=main.whole,
            golden=main.golden,
            files=file_records(directory),
            variants=tuple(further),
        ),
    )


@dataclass(frozen=True)
class _Built:
    """What was built for one shape of the inputs, but for the weights, which are not on disk yet."""

    record: VariantRecord
    weights: Mapping[str, Tensor]


def _variant(
    family: Family,
    model: Model,
    bundle: Path,
    home: str,
    plan: Plan,
    example: Example,
    reference: bool,
    skipped: Callable[[SkippedPlace], None],
    progress: Progress,
) -> _Built:
    """Build all that depends on the shapes of the inputs.

    Args:
        home: Where in the bundle it lies: a path that ends in a slash, or nothing.
    """
    progress("capturing the graph")
    whole = capture(model.module, example.inputs, plan.outputs, family.patches())
    progress("cutting it into segments")
    parts = partition(whole, plan)
    progress("recording goldens of the untouched model")
    golden = goldens.record(model.module, whole, parts, example.inputs)
    _check_exact(golden, parts)
    definitions = _definitions(model.module, whole, golden, example.inputs, progress)

    directory = bundle / home
    (directory / "graph").mkdir(parents=True)
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
        lowered = _lowered(segment, *passed[segment.name], specs, plan, golden, directory, reference=reference)
        segments.append(_placed(lowered, home))
    record = VariantRecord(
        name=PurePath(home).name or MAIN,
        returns=whole.returns,
        tensors=tuple(specs.values()),
        nodes=dict(parts.nodes),
        segments=tuple(segments),
        weights=home + _WEIGHTS,
        whole=home + _WHOLE,
        golden=GoldenRecord(
            path=home + _GOLDENS,
            audio=names.visible(example.description),
            machine=goldens.machine(),
            definitions=definitions,
        ),
    )
    return _Built(record, whole.weights)


def _placed(segment: SegmentRecord, home: str) -> SegmentRecord:
    paths = {name: home + path for name in ("program", "reference", "uncompressed") if (path := getattr(segment, name))}
    artifact = segment.artifact
    artifact = artifact.model_copy(update={"path": home + artifact.path}) if artifact.path else artifact
    return segment.model_copy(update={**paths, "artifact": artifact})


def _together(built: Mapping[str, _Built], bundle: Path, progress: Progress) -> list[VariantRecord]:
    """The records of all variants, with what they share on disk once: weights, and packages as functions of one."""
    main = built[MAIN]
    weights, records = dict(main.weights), []
    for variant in built.values():
        record = variant.record
        if all(torch.equal(weights.get(name, tensor), tensor) for name, tensor in variant.weights.items()):
            weights |= variant.weights
            record = record.model_copy(update={"weights": main.record.weights})
        else:  # a table that depends on a shape
            _save_tensors(variant.weights, bundle / record.weights)
        records.append(record)
    _save_tensors(weights, bundle / main.record.weights)
    for place, segment in enumerate(main.record.segments if len(records) > 1 else ()):
        if lowering.capabilities(segment.artifact.target).functions_since:
            progress(f"putting the variants of {segment.name} into one package")
            records = _merged(records, place, bundle)
    return records


def _merged(records: Sequence[VariantRecord], place: int, bundle: Path) -> list[VariantRecord]:
    """With one artifact for the segment at a place in all variants."""
    main = records[0].segments[place]
    paths = {record.name: bundle / record.segments[place].artifact.path for record in records}
    lowering.target(main.artifact.target).merge(paths)
    merged = [records[0]]
    for record in records[1:]:
        shutil.rmtree(paths[record.name])
        segments = list(record.segments)
        moved = segments[place].artifact.model_copy(update={"path": main.artifact.path, "function": record.name})
        segments[place] = segments[place].model_copy(update={"artifact": moved})
        merged.append(record.model_copy(update={"segments": tuple(segments)}))
    return merged


def _definitions(
    module: nn.Module,
    whole: programs.Program,
    golden: Mapping[str, Tensor],
    inputs: Mapping[str, Any],
    progress: Progress,
) -> DefinitionsRecord | None:
    """What the graph has by definitions, and how far the model's own kernels lie from them."""
    if not whole.defined:
        return None
    parity = goldens.departure(module, whole, golden, inputs)
    if not parity.max_abs:
        return None
    progress(f"{', '.join(whole.defined)}: by their definitions, {parity} from the model's own")
    return DefinitionsRecord(operators=whole.defined, snr_db=parity.snr_db, max_abs=parity.max_abs)


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
        needed = _can(segment).needed_passes if plan.passes is None else ()
        for name in dict.fromkeys((*plan.graph_passes, *needed)):
            rewriting = graph_passes.apply(name, program, example)
            program, applied[name] = rewriting.program, rewriting.changes
            for place in rewriting.skipped:
                skipped(SkippedPlace(segment.name, name, place.node, place.module, place.reason))
            if rewriting.skipped and graph_passes.parsed(name).essential:
                raise PassError(
                    f"pass {name!r} leaves {rewriting.skipped[0].node!r} of segment {segment.name!r} as it is, and a "
                    "package cannot compute it",
                    received=rewriting.skipped[0].reason,
                    fix="Leave that operator to a stage whose target runs on the host.",
                )
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
        kept = _reference(_in_fp32(segment, ready), artifact.path, plan, directory)
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


def _in_fp32(segment: Segment, ready: Segment) -> Segment:
    """A segment that is ready to be lowered, with the float32 boundary that it has in the graph."""
    packaged = {spec.name: spec.packaged_dtype for spec in ready.inputs + ready.outputs}

    def given(spec: TensorSpec) -> TensorSpec:
        integer = packaged[spec.name]
        return spec if integer is None else spec.with_packaged_dtype(integer)

    return replace(ready, inputs=tuple(map(given, segment.inputs)), outputs=tuple(map(given, segment.outputs)))


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
    """Specs with the element types in which the segments' targets take and give tensors."""
    targets = {segment.name: segment.stage.target for segment in parts.segments}
    return tuple(
        lowering.at_boundary(
            spec, [targets[segment] for segment in (spec.producer, *spec.consumers) if segment in targets], plan
        )
        for spec in parts.tensors
    )


def _check_exact(golden: Mapping[str, Tensor], parts: Partition) -> None:
    """Invariant: cutting changes nothing, not one bit."""
    got = run(parts, {spec.name: golden[spec.name] for spec in parts.tensors if spec.producer == INPUT})
    for name, reference in golden.items():
        if not torch.equal(reference, got[name]):
            raise PartitionError(
                f"the segments in order give another {name!r} than the whole graph",
                expected="max |Δ| = 0",
                received=f"max |Δ| = {programs.largest_difference(reference, got[name]):g}",
            )


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)
