"""What ``manifest.json`` says. `docs/manifest.schema.json` is this file as a JSON Schema."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .. import names
from ..boundary import Array, Return, TensorSpec
from ..names import Name, RelativePath
from ..plan.schema import Plan

BUNDLE_FORMAT: Literal["splitter.bundle/2"] = "splitter.bundle/2"
BAG_FORMAT: Literal["splitter.bag/2"] = "splitter.bag/2"
FILENAME = "manifest.json"
Digest: TypeAlias = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]  # empty until it is written


class Record(BaseModel):
    """A frozen part of a manifest that admits no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Document(Record):
    """What a file says as a whole: none of its strings, in no part, hides characters from who reads them."""

    @model_validator(mode="before")
    @classmethod
    def _visible(cls, content: Any) -> Any:
        return names.check_visible(content)


class Chunking(Record):
    """How the model's own inference cuts a song into runs and adds them up; `separate` does so unless told otherwise.

    Attributes:
        normalised: The song's mean is taken from it, and it is divided by its deviation, both of the mono mixdown.
        stride: Samples from one chunk to the next; three quarters of a chunk where None.
        fade: Samples over which the weight of a chunk rises and falls in a straight line, from and to zero; half of it
            each, a triangle, where None.
        edges: What lies around the song. ``silence``: nothing; the last, shorter chunk sits in the middle of a run.
            ``reflection``: its mirror image, as long as two chunks overlap, where it is more than twice as long; the
            last chunks begin a run, and their own mirror image fills it, where they fill more than half.
        shifts: Passes with a random shift to average; 0 for one plain pass.
    """

    normalised: bool = True
    stride: int | None = Field(default=None, ge=1)
    fade: int | None = Field(default=None, ge=1)
    edges: Literal["silence", "reflection"] = "silence"
    shifts: int = Field(default=1, ge=0)


class AudioRecord(Record):
    """What a separator says of itself: it takes a mixture and gives the stems of it.

    Attributes:
        stems: Names of the sources, in the order of the output, as the checkpoint gives them.
        samplerate: In Hz.
        channels: Audio channels.
        samples: Length of one run.
        chunking: How a song is cut into runs.
    """

    stems: tuple[Name, ...] = Field(min_length=1)
    samplerate: int = Field(ge=1)
    channels: int = Field(ge=1)
    samples: int = Field(ge=1)
    chunking: Chunking = Chunking()

    @model_validator(mode="after")
    def _chunks_fit(self) -> Self:
        stride, fade = self.chunking.stride, self.chunking.fade
        if stride is not None and stride > self.samples:
            raise ValueError(f"a stride of {stride} samples leaves out sound between chunks of {self.samples}")
        if fade is not None and 2 * fade > self.samples:
            raise ValueError(f"a chunk of {self.samples} samples cannot fade over {fade} at each end")
        return self

    def separated(self, output: Array) -> Array:
        """What the model gives for one run, as ``(stems, channels, samples)``: a model of one stem may have no axis of
        stems."""
        return output.reshape(len(self.stems), self.channels, output.shape[-1])

    @field_validator("stems")
    @classmethod
    def _files_of_their_own(cls, stems: tuple[str, ...]) -> tuple[str, ...]:
        names.check_distinct(stems)
        return stems


class ModelRecord(Record):
    """The model a bundle was built from.

    Attributes:
        name: As it was asked for.
        family: The model family, an entry point of ``splitter.models``.
        model_class: Import path.
        arguments: The constructor's keyword arguments, fractions as ``"39/5"``.
        checkpoint_sha256: Of the checkpoint file; None without one.
        random_init: Seed of random weights; what such a bundle computes means nothing.
        returns: What its forward returns, place by place.
        audio: Of a separator; None for other models.
    """

    name: Name
    family: str
    model_class: str
    arguments: dict[str, Any]
    checkpoint_sha256: str | None
    random_init: int | None
    returns: tuple[Return, ...] = ()
    audio: AudioRecord | None = None

    @property
    def samples(self) -> int | None:
        """Length of one run of a separator."""
        return self.audio.samples if self.audio else None


class Artifact(Record):
    """What a target made of a segment.

    Attributes:
        target: Name of the target.
        path: File or package in the bundle; empty for a target that writes none.
        function: Which of a package's several functions it is; empty for the default one.
        details: What the target needs to read it back and to audit it, as JSON values; under ``compressed``, the
            ``form`` and the ``source`` of each weight that the plan's `compression` is about.
    """

    target: Name
    path: RelativePath | Literal[""] = ""
    function: Name | Literal[""] = ""
    details: dict[str, Any] = {}


class SegmentRecord(Record):
    """One segment: where its program and artifact are, what it reads and gives.

    Attributes:
        name: e.g. ``"encoder"``.
        stage: The stage it is, or is part of.
        program: The captured segment, a file in the bundle.
        inputs: Boundary tensors it reads, in order.
        outputs: Boundary tensors it gives, in order.
        operators: ATen operators in the captured segment.
        parameters: Numbers in its weights.
        passes: Graph passes applied before lowering, and in how many places each one changed something.
        artifact: What it was lowered to.
        reference: The fp32 uncompressed artifact, by which the precision is judged; empty if there is none.
        uncompressed: The uncompressed artifact in the precision of a compressed one; empty if there is none.
    """

    name: Name
    stage: Name
    program: RelativePath
    inputs: tuple[Name, ...]
    outputs: tuple[Name, ...]
    operators: int
    parameters: int
    passes: dict[str, int]
    artifact: Artifact
    reference: RelativePath | Literal[""] = ""
    uncompressed: RelativePath | Literal[""] = ""


class Machine(Record):
    """What decides the last bits of a floating-point result. Equal records promise equal bits."""

    architecture: str
    processor: str
    capability: str
    threads: int
    torch: str


class DefinitionsRecord(Record):
    """Operators of the model that no saved graph may use, and that the graph has by their definitions.

    Attributes:
        operators: By name, e.g. ``"aten.grid_sampler_2d.default"``.
        snr_db: Of the worst output against the model with its own kernels; None where that is silent.
        max_abs: The largest difference there.
    """

    operators: tuple[str, ...]
    snr_db: float | None
    max_abs: float


class GoldenRecord(Record):
    """The recorded run of the untouched model.

    Attributes:
        path: safetensors file with the input, every boundary tensor and the output, by tensor name.
        audio: What the input was made from.
        machine: Where it was recorded.
        definitions: Where the model has operators that the recorded run computed by their definitions, which round
            otherwise; None where it is the model's own to the last bit.
    """

    path: RelativePath
    audio: str
    machine: Machine
    definitions: DefinitionsRecord | None = None


class VariantRecord(Record):
    """What a bundle has for further shapes of the inputs, each field as `Manifest` and `ModelRecord` have it.

    Attributes:
        name: As the plan has it.
    """

    name: Name
    returns: tuple[Return, ...] = ()
    tensors: tuple[TensorSpec, ...]
    nodes: dict[Name, str]
    segments: tuple[SegmentRecord, ...] = Field(min_length=1)
    weights: RelativePath
    whole: RelativePath
    golden: GoldenRecord


class FileRecord(Record):
    bytes: int
    sha256: str


class Manifest(Document):
    """A bundle's table of contents.

    Attributes:
        digest: SHA-256 of ``manifest.json`` without the line of this field, its second.
        versions: Of what took part in the build, by distribution name.
        plan: The plan as it was obeyed, presets and options merged; ``splitter build --plan`` takes it.
        tensors: Every boundary tensor, the model's inputs and outputs among them.
        nodes: Node of ``whole`` that computes each of them.
        segments: In order of execution.
        weights: safetensors file shared by the programs under ``graph/``.
        whole: The captured model as one program.
        files: Size and hash of every other file, by path.
        variants: The same for further shapes of the inputs, where the plan lists some.
    """

    digest: Digest = ""
    format: Literal["splitter.bundle/2"] = BUNDLE_FORMAT
    versions: dict[str, str]
    model: ModelRecord
    plan: Plan
    tensors: tuple[TensorSpec, ...]
    nodes: dict[Name, str]
    segments: tuple[SegmentRecord, ...] = Field(min_length=1)
    weights: RelativePath
    whole: RelativePath
    golden: GoldenRecord
    files: dict[RelativePath, FileRecord]
    variants: tuple[VariantRecord, ...] = ()

    def of_variant(self, variant: VariantRecord) -> Self:
        """The manifest as if the bundle had that variant alone."""
        changes = {
            name: getattr(variant, name) for name in VariantRecord.model_fields if name not in ("name", "returns")
        }
        model = self.model.model_copy(update={"returns": variant.returns})
        return self.model_copy(update={**changes, "model": model, "variants": ()})


class BagManifest(Document):
    """Several bundles whose stems are averaged.

    Attributes:
        digest: As a bundle's.
        name: As it was asked for.
        members: Directories of the member bundles.
        digests: Of the members' manifests.
        weights: ``weights[member][stem]``; each stem is the weighted mean over the members.
    """

    digest: Digest = ""
    format: Literal["splitter.bag/2"] = BAG_FORMAT
    name: Name
    members: tuple[Name, ...] = Field(min_length=1)
    digests: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]


def json_schema() -> dict[str, Any]:
    """JSON Schema of a bundle's manifest."""
    return Manifest.model_json_schema(mode="serialization")


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))  # noqa: T201 (its whole purpose)
