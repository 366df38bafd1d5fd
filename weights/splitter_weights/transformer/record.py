"""What the manifest says of the transformer's file. `docs/transformer.schema.json` is this as a JSON Schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from splitter_kernels.spec import Config

from splitter.errors import CheckpointError
from splitter.plan.schema import WeightsForm, readable

from ..tensor_file import StoredTensor
from .form import Role, parameters_of

FORMAT: Literal["splitter.transformer/2"] = "splitter.transformer/2"
ARTIFACT = "cross-domain transformer"  # what targets that write its file say
# Of any count, and of layers: far beyond any model, far below what keeps a reader busy.
_LARGEST, _MOST_LAYERS = 2**24, 1024


def _bounded(value: object) -> object:
    """A configuration must not make its reader allocate what the file does not hold."""
    if not isinstance(value, Mapping):
        return value
    if value.keys() != (names := {field.name for field in dataclasses.fields(Config)}):
        raise ValueError(f"the configuration has other fields than {sorted(names)}")
    counts = [number for name, number in value.items() if name not in ("cross_first", "eps")]
    if not all(isinstance(count, int) and 1 <= count <= _LARGEST for count in counts):
        raise ValueError(f"a count of the configuration lies outside 1…{_LARGEST}")
    if value["layers"] > _MOST_LAYERS:
        raise ValueError(f"the configuration has more than {_MOST_LAYERS} layers")
    return value


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorRecord(StoredTensor):
    """Where one tensor lies and where it comes from.

    Attributes:
        parameter: The parameter it is, or is a companion of.
        parameter_shape: Shape of the decoded parameter; linear weights are ``[out, in]`` in every layout.
        role: ``values`` are the parameter itself; ``int8`` and ``scales``, or ``indices`` and ``table``, decode to
            it as `kernels.compression` says.
        source: Its key in the checkpoint, or ``"graph"`` for a table the model computes.
        rows: Which rows of the source, from and to; None for all.
        transform: What was done to them, in words.
    """

    parameter: str
    parameter_shape: tuple[int, ...]
    role: Role
    source: str
    rows: tuple[int, int] | None
    transform: str
    dtype: Literal["float32", "float16", "int8", "uint8"]


class TransformerRecord(_Record):
    """What a port needs to know to build the transformer from the file alone.

    Attributes:
        form: Names, element types and compression.
        config: The configuration.
        inputs: Boundary tensors of the frequency and of the time branch going in.
        outputs: The same, coming out.
        tensors: Every tensor of the file by name, in the order of the file.
        padding: Names of the tensors of zeros that fill the file up to the next multiple of 64 bytes, where a
            tensor does not end at one: they are read by nobody.
    """

    format: Literal["splitter.transformer/2"] = FORMAT
    form: WeightsForm
    config: Annotated[Config, BeforeValidator(_bounded)]
    inputs: tuple[str, str]
    outputs: tuple[str, str]
    tensors: dict[str, TensorRecord]
    padding: tuple[str, ...] = ()

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of `kernels.spec.parameters` that are linear maps' weights, which alone a form may change."""
        named = parameters_of(self.config, self.form).values()
        return tuple(dict.fromkeys(parameter.kernel for parameter in named if parameter.is_matrix))

    @property
    def sources(self) -> dict[str, str]:
        """Checkpoint key of each parameter of `kernels.spec.parameters`."""
        named = parameters_of(self.config, self.form)
        return {named[tensor.parameter].kernel: tensor.source for tensor in self.tensors.values()}


def record_of(details: Mapping[str, Any]) -> TransformerRecord:
    """Read what a manifest says of its transformer.

    Raises:
        CheckpointError: It is of another version, or damaged.
    """
    if details.get("format") != FORMAT:
        raise CheckpointError(
            "the transformer's weights have another format",
            expected=repr(FORMAT),
            received=repr(details.get("format")),
            fix="Build the bundle again with this version, or read it with the version in its manifest.",
        )
    try:
        return TransformerRecord.model_validate(details)
    except ValidationError as error:
        raise CheckpointError(
            "the manifest does not describe the transformer's file",
            received=readable(error),
            fix="Build the bundle again.",
        ) from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of a transformer's record."""
    return TransformerRecord.model_json_schema(mode="serialization")
