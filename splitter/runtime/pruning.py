"""A bundle that gives some stems alone: what only the others need is not computed, see `splitter.passes.pruning`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..boundary import OUTPUT, TensorSpec
from ..bundle.directory import Bundle
from ..bundle.manifest import SegmentRecord
from ..graph.program import Program
from ..passes import pruning
from ..passes.pruning import Part
from .engines import engine

_Needs = dict[str, Part | None]


def pruned(bundle: Bundle, stems: Sequence[str], engines: Mapping[str, str]) -> tuple[Bundle, tuple[str, ...]]:
    """A bundle in memory that gives some stems of a separator.

    From the last segment to the first, each is narrowed to what the later ones need of it, and left out where they need
    nothing. A segment whose engine runs an artifact, a package say, is run whole.

    Args:
        bundle: The whole.
        stems: Some of its stems, in its order.
        engines: The engine of each segment.

    Returns:
        The bundle, and the segments of which only a part is needed and that are run whole. If the last is among them,
        it gives all stems still, which the audio record says.
    """
    (output,) = bundle.outputs
    needs: _Needs = {output: _of_stems(bundle, stems)}
    whole: list[str] = []
    narrowed: dict[str, bool] = {}  # of the segments that are left
    for segment in reversed(bundle.segments):
        wanted = {name: needs[name] for name in segment.outputs if name in needs}
        if not wanted:
            continue
        in_part = len(wanted) < len(segment.outputs) or any(part is not None for part in wanted.values())
        narrowed[segment.name] = in_part and engine(engines[segment.name]).runs_programs(segment)
        if narrowed[segment.name]:
            _merge(needs, pruning.needs(bundle.program(segment.program), wanted))
            continue
        if in_part:
            whole.append(segment.name)
        needs |= dict.fromkeys(segment.outputs)
        _merge(needs, dict.fromkeys(segment.inputs))
    needs |= dict.fromkeys(name for name in bundle.inputs if name in needs)
    segments, programs = [], {}
    for segment in bundle.segments:
        if segment.name not in narrowed:
            continue
        record = segment
        if narrowed[segment.name]:
            program = _narrowed(bundle, segment, needs)
            record = _recorded(segment, program, stems)
            programs[record.program] = program
        segments.append(record)
    tensors = [_specified(bundle.tensors[name], needs[name], segments) for name in bundle.tensors if name in needs]
    model = bundle.manifest.model
    if needs[output] is not None:
        model = model.model_copy(update={"audio": bundle.audio.model_copy(update={"stems": tuple(stems)})})
    update = {"segments": tuple(segments), "tensors": tuple(tensors), "model": model}
    return bundle.with_programs(programs, bundle.manifest.model_copy(update=update)), tuple(reversed(whole))


def stem_by_stem(bundle: Bundle, name: str) -> list[tuple[Part, Bundle, SegmentRecord]]:
    """The last segment of a separator once for each stem, all of it given the whole of what it reads.

    Args:
        bundle: Of which it is the last.
        name: Of its engine.

    Returns:
        Where the stem lies in the output, and a bundle with a segment that gives it; nothing where the engine runs an
        artifact, or there is but one stem.
    """
    segment, stems = bundle.segments[-1], bundle.audio.stems
    parts = [_of_stems(bundle, [stem]) for stem in stems]
    if len(stems) == 1 or segment.outputs != bundle.outputs or not engine(name).runs_programs(segment):
        return []
    whole, (output,) = bundle.program(segment.program), bundle.outputs
    found = []
    for stem, part in zip(stems, parts, strict=True):
        if part is None:
            return []
        program = pruning.pruned(whole, {output: part}, dict.fromkeys(pruning.needs(whole, {output: part})))
        record = _recorded(segment, program, [stem])
        found.append((part, bundle.with_programs({record.program: program}), record))
    return found


def _of_stems(bundle: Bundle, stems: Sequence[str]) -> Part | None:
    """Where some stems lie in what the model gives."""
    sound, shape = bundle.audio, bundle.tensors[bundle.outputs[0]].shape
    places = tuple(sound.stems.index(stem) for stem in stems)
    return pruning.through_reshape(Part(0, places), (len(sound.stems), sound.channels, shape[-1]), shape)


def _merge(needs: _Needs, more: pruning.Needs) -> None:
    for name, part in more.items():
        needs[name] = part if needs.get(name, part) == part else None


def _narrowed(bundle: Bundle, segment: SegmentRecord, needs: _Needs) -> Program:
    whole = bundle.program(segment.program)
    wanted = {name: needs[name] for name in segment.outputs if name in needs}
    return pruning.pruned(whole, wanted, {name: needs[name] for name in pruning.needs(whole, wanted)})


def _recorded(segment: SegmentRecord, program: Program, stems: Sequence[str]) -> SegmentRecord:
    update = {
        "program": f"{segment.program}#{','.join(stems)}",
        "inputs": program.inputs,
        "outputs": program.outputs,
        "operators": len(program.operators),
        "parameters": program.parameters,
    }
    return segment.model_copy(update=update)


def _specified(spec: TensorSpec, part: Part | None, segments: Sequence[SegmentRecord]) -> TensorSpec:
    """As it is handed over between the segments that are left."""
    readers = {segment.name for segment in segments if spec.name in segment.inputs}
    consumers = tuple(consumer for consumer in spec.consumers if consumer in readers or consumer == OUTPUT)
    if part is None:
        return spec.model_copy(update={"consumers": consumers})
    content = spec.model_dump(exclude={"bytes", "fold"})
    return TensorSpec(**content | {"shape": part.shape(spec.shape), "consumers": consumers})
