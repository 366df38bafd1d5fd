"""Model in, bundle out: the pipeline capture → partition → goldens → lowering, in a staging directory."""

from __future__ import annotations

import inspect
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from safetensors.torch import save_file
from splitter_weights import checkpoints
from splitter_weights.checkpoints import Checkpoint
from splitter_weights.demo import songs
from torch import Tensor, nn

from . import lowering
from . import passes as graph_passes
from .boundary import Array, TensorSpec
from .bundle import goldens
from .bundle.directory import Bag, Bundle, file_records, load_any, staged, write_manifest
from .bundle.manifest import BagManifest, GoldenRecord, Manifest, ModelRecord, SegmentRecord
from .errors import AudioError, PartitionError, PassError, UsageError
from .graph import program as programs
from .graph.capture import capture
from .lowering.weights import check_names, compressed_forms
from .partition import Partition, Segment, partition, run
from .plan import schema as plans
from .plan.schema import Plan, WeightForm
from .separation import audio

Progress: TypeAlias = Callable[[str], None]

_WEIGHTS, _WHOLE, _GOLDENS = "graph/weights.safetensors", "graph/model.json", "goldens.safetensors"
_GOLDEN_SEED = 20_260_101
_GOLDEN_START = 1.0  # seconds into the song, where every stem sounds
_VERSIONED = ("splitter", "torch", "coremltools", "demucs", "numpy", "safetensors")


def build(
    model: str | Path | nn.Module,
    out: str | Path,
    *,
    plan: Plan | None = None,
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
    progress: Progress = lambda step: None,
) -> Bag:
    """Build the bundle of a model, or a bag of bundles for a model that is a bag.

    Args:
        model: A name or a checkpoint file, see `splitter_weights.checkpoints.load`; or a module like
            demucs's, with ``sources``, ``samplerate``, ``audio_channels`` and ``segment``.
        out: Directory to create.
        plan: The plan to obey; the preset for the model's class by default.
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
        progress: Called with a phrase as each step begins.

    Returns:
        The bundle, opened, as a bag of one or more.

    Raises:
        SplitterError: Of the kind that names what went wrong. Nothing is left behind.
    """
    out = Path(out)
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
    # What contradicts itself under any preset should not wait for the download of a model.
    _arranged(plan or plans.changed(plans.presets()["htdemucs"], **settings), single_package, compress)
    with staged(out, force=force) as directory:
        if isinstance(model, nn.Module):
            bag = checkpoints.of_module(model)
        else:
            progress(f"loading {model}")
            bag = checkpoints.load(model, random_init=random_init)
        for member in bag.members:
            single = len(bag.members) == 1
            target = directory if single else directory / member.name
            target.mkdir(exist_ok=True)
            label = "" if single else f"{member.name}: "
            obeyed = plan or plans.changed(plans.preset_for(_class_path(member.model)), **settings)
            obeyed = _arranged(obeyed, single_package, compress)
            _build_one(member, target, obeyed, segment, golden_audio, reference, partial(_labelled, progress, label))
        if len(bag.members) > 1:
            names = tuple(member.name for member in bag.members)
            digests = tuple(Bundle.load(directory / name).manifest.digest for name in names)
            write_manifest(directory, BagManifest(name=bag.name, members=names, digests=digests, weights=bag.weights))
    return load_any(out)


def _arranged(plan: Plan, single_package: bool, compress: WeightForm | None) -> Plan:
    """The plan with the options that depend on what its stages are, as far as their targets offer them."""
    plan = plans.single_package(plan) if single_package else plan
    plan = plan if compress is None else plans.compressed(plan, compress)
    lowering.check(plan)
    return plan


def captured(
    model: str | Path, *, plan: Plan | None = None, random_init: int | None = None
) -> tuple[programs.Program, Plan]:
    """The graph that a build would cut, and the plan it would obey; of a bag its first member.

    Args:
        model: A name or a checkpoint file, as for `build`.
        plan: The preset for the model's class by default.
        random_init: Seed of random weights for a named configuration.
    """
    member = checkpoints.load(model, random_init=random_init).members[0]
    obeyed = plan or plans.preset_for(_class_path(member.model))
    obeyed = plans.changed(obeyed, segment_samples=_segment_samples(member.model, obeyed, None))
    _, whole, _ = _captured(member.model, obeyed, None)
    return whole, obeyed


def _captured(
    model: nn.Module, plan: Plan, golden_audio: str | Path | None
) -> tuple[dict[str, Tensor], programs.Program, str]:
    """The golden input by name, the graph captured on it, and what is heard in it."""
    assert plan.segment_samples is not None
    samples, channels, samplerate = plan.segment_samples, int(model.audio_channels), int(model.samplerate)  # type: ignore[arg-type]
    _set_segment(model, samples)
    mix, heard = _golden_input(golden_audio, channels, samplerate, samples)
    inputs = {next(iter(inspect.signature(model.forward).parameters)): torch.from_numpy(mix)[None]}
    return inputs, capture(model, inputs, plan.outputs), heard


def _labelled(progress: Progress, label: str, step: str) -> None:
    progress(label + step)


def _build_one(
    checkpoint: Checkpoint,
    directory: Path,
    plan: Plan,
    seconds: float | None,
    golden_audio: str | Path | None,
    reference: bool,
    progress: Progress,
) -> None:
    model = checkpoint.model
    samples = _segment_samples(model, plan, seconds)
    plan = plans.changed(plan, segment_samples=samples)
    progress("capturing the graph")
    inputs, whole, heard = _captured(model, plan, golden_audio)
    progress("cutting it into segments")
    parts = partition(whole, plan)
    progress("recording goldens of the untouched model")
    golden = goldens.record(model, whole, parts, inputs)
    _check_exact(golden, parts, inputs)

    (directory / "graph").mkdir()
    _save_tensors(whole.weights, directory / _WEIGHTS)
    programs.save(whole, directory / _WHOLE)
    _save_tensors(golden, directory / _GOLDENS)
    progress("applying graph passes")
    passed = {segment.name: _passed(segment, plan, golden) for segment in parts.segments}
    parts = _folded(parts, {name: program for name, (program, _) in passed.items()})
    compressed = (passed[segment.name][0] for segment in parts.segments if _can(segment).weights == "compression")
    check_names(compressed, plan.compression)
    specs = {spec.name: spec for spec in _at_boundary_dtype(parts, plan)}
    segments = []
    for segment in parts.segments:
        programs.save(segment.program, directory / "graph" / f"{segment.name}.json")
        progress(f"lowering {segment.name} to {segment.stage.target}")
        segments.append(_lowered(segment, *passed[segment.name], specs, plan, golden, directory, reference=reference))

    write_manifest(
        directory,
        Manifest(
            versions={"python": platform.python_version()} | {name: version(name) for name in _VERSIONED},
            model=ModelRecord(
                name=checkpoint.name,
                model_class=_class_path(model),
                arguments=dict(checkpoint.arguments),
                stems=tuple(model.sources),  # type: ignore[arg-type]
                samplerate=int(model.samplerate),  # type: ignore[arg-type]
                channels=int(model.audio_channels),  # type: ignore[arg-type]
                samples=samples,
                checkpoint_sha256=checkpoint.sha256,
                random_init=checkpoint.random_init,
            ),
            plan=plan,
            tensors=tuple(specs.values()),
            nodes=dict(parts.nodes),
            segments=tuple(segments),
            weights=_WEIGHTS,
            whole=_WHOLE,
            golden=GoldenRecord(path=_GOLDENS, audio=heard, machine=goldens.machine()),
            files=file_records(directory),
        ),
    )


def _target(segment: Segment) -> lowering.Target:
    return lowering.target(segment.stage.target)


def _can(segment: Segment) -> lowering.Capabilities:
    return _target(segment).capabilities


def _passed(segment: Segment, plan: Plan, golden: Mapping[str, Tensor]) -> tuple[programs.Program, dict[str, int]]:
    """A segment's program after the plan's passes, where its target takes them, and what each of them changed."""
    program: programs.Program = segment.program
    applied: dict[str, int] = {}
    if _can(segment).passes:
        example = {spec.name: golden[spec.name] for spec in segment.inputs}
        for name in plan.graph_passes:
            rewriting = graph_passes.apply(name, program, example)
            program, applied[name] = rewriting.program, rewriting.changes
    return program, applied


def _folded(parts: Partition, passed: Mapping[str, programs.Program]) -> Partition:
    """The partition with specs that say how tensors cross the packages' boundaries."""
    folds = {name: fold for program in passed.values() for name, fold in program.folds.items()}
    for segment in parts.segments:
        for spec in segment.inputs + segment.outputs:
            fold = passed[segment.name].folds.get(spec.name)
            if _can(segment).passes and fold != folds.get(spec.name):
                raise PassError(
                    f"{spec.name!r} crosses the boundaries of all packages alike",
                    received=f"{fold} at {segment.name!r}, {folds[spec.name]} at another",
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
                f"the segments in order give {name!r} bit for bit", received=f"max |Δ| = {difference:g}"
            )


def _segment_samples(model: nn.Module, plan: Plan, seconds: float | None) -> int:
    samplerate, trained = int(model.samplerate), int(model.segment * model.samplerate)  # type: ignore[arg-type, operator]
    samples = round(seconds * samplerate) if seconds is not None else plan.segment_samples or trained
    if not 0 < samples <= trained:
        raise UsageError(
            f"a segment is longer than 0 s and no longer than the model was trained for, {trained / samplerate:g} s",
            received=f"{samples / samplerate:g} s",
        )
    return samples


def _set_segment(model: nn.Module, samples: int) -> None:
    """Make the model work at this length, really smaller rather than padded: its own attribute, as demucs sets it."""
    model.segment = Fraction(samples, int(model.samplerate))  # type: ignore[arg-type, assignment]


def _golden_input(path: str | Path | None, channels: int, samplerate: int, samples: int) -> tuple[Array, str]:
    """One segment of sound as `separate` would feed it, and what it is."""
    if path is None:
        stems = songs.synthesise(_GOLDEN_START + (samples + 1) / samplerate, _GOLDEN_SEED, samplerate)
        start = round(_GOLDEN_START * samplerate)
        mixture = songs.mixture(stems)[:, start : start + samples]
        heard = f"synthesised song, seed {_GOLDEN_SEED}"
    else:
        track = audio.Track(Path(path), samplerate, channels)
        mixture, heard = audio.Window(track, 0).read(0, samples), Path(path).name
    mixture = np.resize(mixture, (channels, samples)) if mixture.shape[0] != channels else mixture
    if not np.any(mixture):
        raise AudioError("a golden input is not silent", received=heard, fix="Choose a file that begins with sound.")
    return audio.normalised(mixture), heard


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)


def _class_path(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"
