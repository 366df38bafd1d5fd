"""Checkpoints as OpenAI released them: ``dims`` and ``model_state_dict``, read as data; nothing of a file is run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from splitter_weights import inspection
from splitter_weights.torch_files import TorchFile
from torch import nn

from ... import limits, names
from ...errors import CheckpointError
from ...plan.schema import readable
from .. import Model

_MOST_BYTES = 2**32  # the largest released file has 3.1 GB
_PREFIX = "encoder."
_Count = Annotated[int, Field(ge=1, le=8192)]


class Dimensions(BaseModel):
    """What the encoder takes of whisper's `ModelDimensions`, by the same names."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    n_mels: _Count
    n_audio_ctx: _Count
    n_audio_state: Annotated[int, Field(ge=4, le=8192, multiple_of=2)]
    n_audio_head: Annotated[int, Field(ge=1, le=128)]
    n_audio_layer: Annotated[int, Field(ge=1, le=128)]

    def arguments(self) -> dict[str, int]:
        """Of the encoder's constructor, in its order."""
        return {
            "n_mels": self.n_mels,
            "n_ctx": self.n_audio_ctx,
            "n_state": self.n_audio_state,
            "n_head": self.n_audio_head,
            "n_layer": self.n_audio_layer,
        }


def _released(mels: int, state: int, heads: int, layers: int) -> Dimensions:
    return Dimensions(n_mels=mels, n_audio_ctx=1500, n_audio_state=state, n_audio_head=heads, n_audio_layer=layers)


CONFIGURATIONS = {
    "tiny": _released(80, 384, 6, 4),
    "base": _released(80, 512, 8, 6),
    "small": _released(80, 768, 12, 12),
    "medium": _released(80, 1024, 16, 24),
    "large-v2": _released(80, 1280, 20, 32),
    "large-v3": _released(128, 1280, 20, 32),
}


def load(path: Path, encoder: type[nn.Module]) -> Model:
    """The encoder of a checkpoint, in float32, from bytes that are read once, inspected and hashed.

    Raises:
        CheckpointError: The file is missing, damaged, or no such checkpoint.
    """
    name = names.readable(path.stem)
    if reason := names.fault(name, names.MOST_BYTES):
        raise CheckpointError(f"the name of {path} cannot be the name of a model: {reason}", fix="Rename the file.")
    data = inspection.content(path, _MOST_BYTES)
    file = TorchFile(data, path.name)
    package = file.package()
    if not isinstance(package, dict) or not {"dims", "model_state_dict"} <= package.keys():
        raise CheckpointError(
            f"{path.name} is no checkpoint of Whisper",
            expected="dims and model_state_dict",
            received=", ".join(map(str, package))[:120] if isinstance(package, dict) else type(package).__name__,
        )
    dimensions = _checked(package["dims"], path.name)
    state = package["model_state_dict"]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path.name} has no tensors by name", received=f"a {type(state).__name__}")
    declared = file.declared({k: v for k, v in state.items() if isinstance(k, str) and k.startswith(_PREFIX)})
    arguments = dimensions.arguments()
    with torch.device("meta"):  # a model of any size costs nothing there
        described = encoder(*arguments.values()).state_dict()
    _check_shapes(
        {key: tuple(tensor.shape) for key, tensor in described.items()},
        {key.removeprefix(_PREFIX): tensor.shape for key, tensor in declared.items()},
        path.name,
    )
    limits.check(sum(tensor.nbytes for tensor in described.values()), f"the model of {path.name}", CheckpointError)
    module = encoder(*arguments.values())
    module.load_state_dict({key.removeprefix(_PREFIX): tensor for key, tensor in file.tensors(declared).items()})
    return Model(name, module.eval(), arguments, hashlib.sha256(data).hexdigest())


def _checked(dims: Any, name: str) -> Dimensions:
    try:
        found = Dimensions.model_validate(dims)
    except ValidationError as error:
        raise CheckpointError(
            f"{name} describes no encoder of Whisper",
            received=readable(error)[:400],
            fix="Nothing of the file was run.",
        ) from error
    if found.n_audio_state % found.n_audio_head:
        raise CheckpointError(
            f"{name} describes no encoder of Whisper",
            expected="a width that its heads divide",
            received=f"{found.n_audio_state} channels, {found.n_audio_head} heads",
        )
    return found


def _check_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], name: str) -> None:
    different = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if different:
        first = different[0]
        raise CheckpointError(
            f"the tensors of {name} do not fit the encoder it describes: {len(different)} that differ",
            expected=f"{expected.get(first, 'none')} for {first!r}",
            received=str(found.get(first, "none")),
        )
