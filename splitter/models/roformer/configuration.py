"""Configurations of RoFormers as their trainers write them: YAML with the keys model, audio, training and inference.

Nothing of such a file is believed: values are plain and bounded, the arguments are those that the class has, and what
the model will hold is counted before it is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from splitter_weights import inspection, yaml_files

from ... import limits
from ...bundle.manifest import AudioRecord, Chunking
from ...errors import CheckpointError
from ...names import Name
from ...plan.schema import readable

SUFFIXES = (".yaml", ".yml")
_MOST_BYTES = 2**16
_MOST_SAMPLES = 2**22  # of one run: 95 s at 44.1 kHz
_FADES = 10  # of a chunk, at each end
_BYTES = 4  # of a weight

_Count = Annotated[int, Field(ge=0, le=4096)]
_Text = Annotated[str, Field(max_length=40)]
_Argument: TypeAlias = bool | Annotated[int, Field(ge=-(2**20), le=2**20)] | float | tuple[_Count, ...] | _Text | None


class _Section(BaseModel):
    model_config = ConfigDict(extra="ignore")  # what training alone asks for


class _Audio(_Section):
    chunk_size: Annotated[int, Field(ge=1, le=_MOST_SAMPLES)]
    sample_rate: Annotated[int, Field(ge=1000, le=768_000)] = 44_100


class _Training(_Section):
    instruments: Annotated[list[Name], Field(min_length=1, max_length=32)]
    target_instrument: Name | None = None


class _Inference(_Section):
    num_overlap: Annotated[int, Field(ge=1, le=64)]
    chunk_size: Annotated[int, Field(ge=1, le=_MOST_SAMPLES)] | None = None
    normalize: bool = False


class Configuration(_Section):
    """What one file says.

    Attributes:
        model: Keyword arguments of the class.
        audio: Sample rate and length of one run.
        training: What the outputs are.
        inference: How a song is cut.
    """

    model: Annotated[dict[str, _Argument], Field(max_length=64)]
    audio: _Audio
    training: _Training
    inference: _Inference

    @field_validator("model")
    @classmethod
    def _sizes_are_bounded(cls, model: dict[str, Any]) -> dict[str, Any]:
        for name in ("dim", "depth", "stft_hop_length", "stft_n_fft"):
            if not isinstance(model.get(name, 1), int) or model.get(name, 1) < 1:
                raise ValueError(f"{name} is a number from 1 on")
        return model

    @model_validator(mode="after")
    def _stems_are_named(self) -> Self:
        if len(self.stems) != self.model.get("num_stems", 1):
            raise ValueError(f"num_stems is {self.model.get('num_stems', 1)}, the stems are {', '.join(self.stems)}")
        return self

    @property
    def class_name(self) -> str:
        """The trainers tell it on the command line; the bands tell it as well: counted, or with their widths."""
        return "MelBandRoformer" if "num_bands" in self.model else "BSRoformer"

    @property
    def stems(self) -> tuple[str, ...]:
        target, stems = self.training.target_instrument, tuple(self.training.instruments)
        return (target,) if target and self.model.get("num_stems", 1) == 1 else stems

    @property
    def samples(self) -> int:
        """In one run, as the reference's inference takes them."""
        return self.inference.chunk_size or self.audio.chunk_size

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        hop = self.model.get("stft_hop_length", 512)
        assert isinstance(hop, int)
        return hop

    @property
    def window(self) -> int:
        """Samples that a frame looks at."""
        window = self.model.get("stft_n_fft", 2048)
        assert isinstance(window, int)
        return window

    def record(self, samples: int) -> AudioRecord:
        """How `separate` uses a model of this configuration: as the trainers' ``demix``, chunk by chunk."""
        return AudioRecord(
            stems=self.stems,
            samplerate=self.audio.sample_rate,
            channels=2 if self.model.get("stereo") else 1,
            samples=samples,
            chunking=Chunking(
                normalised=self.inference.normalize,
                stride=max(1, samples // self.inference.num_overlap),
                fade=max(1, samples // _FADES),
                edges="reflection",
                shifts=0,
            ),
        )

    def check_memory(self, name: str) -> None:
        """Refuse what takes more memory than a file may ask for. Raises `CheckpointError`."""
        given: Mapping[str, Any] = self.model
        dim, heads, head = given["dim"], given.get("heads", 8), given.get("dim_head", 64)
        kinds = ("time_transformer_depth", 2), ("freq_transformer_depth", 2), ("linear_transformer_depth", 0)
        layers = given.get("depth", 1) * sum(given.get(kind, usual) for kind, usual in kinds)
        layer = 4 * dim * heads * head + 8 * dim * dim
        hidden = dim * given.get("mlp_expansion_factor", 4)
        # Bands of the mel scale overlap, so that each frequency lies in two of them.
        width, bands = (
            4 * given.get("stft_n_fft", 2048),
            given.get("num_bands", len(given.get("freqs_per_bands", "0" * 62))),
        )
        masks = bands * (dim * hidden + given.get("mask_estimator_depth", 2) * hidden * hidden) + 2 * hidden * width
        numbers = layers * layer + width * dim + given.get("num_stems", 1) * masks
        limits.check(_BYTES * numbers, f"the model of {name}", CheckpointError)


def holds(path: Path) -> bool:
    """Whether a file is such a configuration: it has the keys model and inference."""
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    try:
        text = inspection.content(path, _MOST_BYTES).decode()
        yaml_files.check_bounds(text, path.name)
        found = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 (makes nothing but text)
    except (CheckpointError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(found, dict) and {"model", "inference"} <= found.keys()


def load(path: Path) -> Configuration:
    """Read a configuration.

    Raises:
        CheckpointError: The file cannot be read, is no YAML, asks for more than values, or beyond their bounds.
    """
    content = yaml_files.parsed(inspection.content(path, _MOST_BYTES), path.name)
    try:
        configuration = Configuration.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(
            f"{path.name} is no configuration of a RoFormer", received=readable(error)[:400]
        ) from error
    configuration.check_memory(path.name)
    return configuration
