"""Checkpoint files, inspected before anything of them is used. Nothing in a checkpoint runs code.

demucs's own loaders trust their input: they import and call whatever class a ``.safetensors`` names in its
metadata, unpickle a ``.th``, and open the file again by its path. They are not used. A file is read once; its
class must be on a list, its arguments must fit a schema, its tensors must have the shapes of the model that
these describe. Then that model is built, and filled from the bytes that were inspected and hashed.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from demucs.demucs import Demucs
from demucs.hdemucs import HDemucs
from demucs.htdemucs import HTDemucs
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from splitter import limits, reading
from splitter.errors import CheckpointError
from splitter.names import Name
from splitter.plan.schema import readable

from . import pickles, safetensors_files, torch_files

_MOST_BYTES = 2**29  # the released model has 84 MB
_MOST_SAMPLES = 2**22  # of one segment: 95 s at 44.1 kHz


def _as_fraction(value: object) -> object:
    """A number of seconds: demucs writes a fraction as a small JSON object, and pickles it as a call."""
    match value:
        case {"_type": "fraction", "numerator": int(numerator), "denominator": int(denominator), **others} if (
            not others
        ):
            return _small_fraction(numerator, denominator)
        case pickles.Call("fractions.Fraction", (int(numerator), int(denominator))):
            return _small_fraction(numerator, denominator)
        case pickles.Call("fractions.Fraction", (str(text),)) if re.fullmatch(r"[0-9]{1,9}(/[0-9]{1,7})?", text):
            return _small_fraction(*map(int, text.split("/")))
        case int() | float() if not isinstance(value, bool) and abs(value) <= 10**6:
            return Fraction(value).limit_denominator(10**6)
    return value


def _small_fraction(numerator: int, denominator: int = 1) -> Fraction:
    if not 0 < denominator <= 10**6 or abs(numerator) > 10**9:
        raise ValueError("a fraction is two small numbers")
    return Fraction(numerator, denominator)


_Count = Annotated[int, Field(ge=0, le=16_384)]
_Channels = Annotated[int, Field(ge=1, le=4096)]
_Layers = Annotated[int, Field(ge=0, le=64)]
_Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
_Seconds = Annotated[Fraction, BeforeValidator(_as_fraction), Field(gt=0, le=60)]
_Never = Literal[False, 0]  # options whose code needs packages or randomness that no released model uses


class _CommonArguments(BaseModel):
    """Bounds for what a checkpoint may ask of a constructor. Unknown arguments are refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

    sources: list[Name] = Field(min_length=1, max_length=32)
    audio_channels: Annotated[int, Field(ge=1, le=8)] = 2
    channels: _Channels = 48
    channels_time: _Channels | None = None
    growth: Annotated[float, Field(ge=1, le=4)] = 2
    nfft: Annotated[int, Field(ge=16, le=65_536)] = 4096
    wiener_iters: Annotated[int, Field(ge=-1, le=16)] = 0
    end_iters: Annotated[int, Field(ge=-1, le=16)] = 0
    wiener_residual: bool = False
    cac: bool = True
    depth: Annotated[int, Field(ge=1, le=10)] = 4
    rewrite: bool = True
    multi_freqs: Annotated[list[_Number], Field(max_length=64)] | None = None
    multi_freqs_depth: _Count = 3
    freq_emb: _Number | None = 0.2
    emb_scale: _Number = 10
    emb_smooth: bool = True
    kernel_size: Annotated[int, Field(ge=1, le=64)] = 8
    time_stride: Annotated[int, Field(ge=1, le=16)] = 2
    stride: Annotated[int, Field(ge=1, le=16)] = 4
    context: _Count = 1
    context_enc: _Count = 0
    norm_starts: _Layers = 4
    norm_groups: Annotated[int, Field(ge=1, le=64)] = 4
    dconv_mode: Annotated[int, Field(ge=0, le=3)] = 1
    dconv_depth: Annotated[int, Field(ge=-8, le=8)] = 2
    dconv_comp: Annotated[float, Field(gt=0, le=64)] = 8
    dconv_init: _Number = 1e-3
    rescale: _Number | None = 0.1
    samplerate: Annotated[int, Field(ge=1000, le=768_000)] = 44_100
    segment: _Seconds = Fraction(10)

    @model_validator(mode="after")
    def _segment_is_bounded(self) -> Self:
        if self.segment * self.samplerate > _MOST_SAMPLES:
            raise ValueError(f"a segment of more than {_MOST_SAMPLES:,} samples")
        return self


class _HTDemucsArguments(_CommonArguments):
    bottom_channels: Annotated[int, Field(ge=0, le=4096)] = 0
    t_layers: _Layers = 5
    t_emb: Literal["sin", "cape", "scaled"] = "sin"
    t_hidden_scale: Annotated[float, Field(gt=0, le=16)] = 4.0
    t_heads: Annotated[int, Field(ge=1, le=64)] = 8
    t_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    t_max_positions: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    t_norm_in: bool = True
    t_norm_in_group: bool | int = False
    t_group_norm: bool | int = False
    t_norm_first: bool = True
    t_norm_out: bool = True
    t_max_period: _Number = 10_000.0
    t_weight_decay: _Number = 0.0
    t_lr: _Number | None = None
    t_layer_scale: bool = True
    t_gelu: bool = True
    t_weight_pos_embed: _Number = 1.0
    t_sin_random_shift: _Never = 0
    t_cape_mean_normalize: bool = True
    t_cape_augment: bool = True
    t_cape_glob_loc_scale: list[_Number] = Field([5000.0, 1.0, 1.4], max_length=3)
    t_sparse_self_attn: _Never = False
    t_sparse_cross_attn: _Never = False
    t_mask_type: str = Field("diag", pattern=r"^[a-z_]{1,40}$")
    t_mask_random_seed: int = 42
    t_sparse_attn_window: _Count = 500
    t_global_window: _Count = 100
    t_sparsity: _Number = 0.95
    t_auto_sparsity: _Never = False
    t_cross_first: bool = False
    use_train_segment: bool = True


class _HDemucsArguments(_CommonArguments):
    hybrid: bool = True
    hybrid_old: bool = False
    dconv_attn: _Layers = 4
    dconv_lstm: _Layers = 4


class _DemucsArguments(_CommonArguments):
    lstm_layers: _Layers = 0
    gelu: bool = True
    glu: bool = True
    normalize: bool = True
    resample: bool = True
    dconv_attn: _Layers = 4
    dconv_lstm: _Layers = 4


_ALLOWED: Mapping[str, tuple[type[nn.Module], type[_CommonArguments]]] = {
    "demucs.htdemucs.HTDemucs": (HTDemucs, _HTDemucsArguments),
    "demucs.hdemucs.HDemucs": (HDemucs, _HDemucsArguments),
    "demucs.demucs.Demucs": (Demucs, _DemucsArguments),
}


def content(path: Path, most: int) -> bytes:
    """All bytes of a regular file of at most ``most``, read once."""
    try:
        return reading.content(path, most)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read", received=error.strerror or str(error)) from error


def load(path: Path, *, sha256: str | None = None) -> tuple[nn.Module, str]:
    """Build the model of a checkpoint from bytes that are read once, inspected and hashed.

    Args:
        path: A ``.safetensors`` or ``.th`` in demucs's format.
        sha256: What the file must hash to, where that is known.

    Returns:
        The model in eval mode, and the file's SHA-256.

    Raises:
        CheckpointError: The file is missing, damaged, another than the hash says, or asks for more than a model
            file may.
    """
    data = content(path, _MOST_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise CheckpointError(
            f"{path.name} is not the released file",
            expected=f"SHA-256 {sha256}",
            received=digest,
            fix="Delete it and fetch it again. Nothing of the file was used.",
        )
    return _LOADERS[path.suffix](data, path.name), digest


def _load_safetensors(data: bytes, name: str) -> nn.Module:
    header = safetensors_files.header(data, name)
    if "structure" in header.metadata:
        raise CheckpointError(f"{name} is quantised", fix="Use the model without quantisation.")
    if missing := {"klass", "args", "kwargs"} - header.metadata.keys():
        raise CheckpointError(
            f"{name} has no metadata of demucs",
            received=f"no {', '.join(sorted(missing))}",
            fix="Export it with demucs 4.1.",
        )
    klass = header.metadata["klass"]
    args, kwargs = (
        safetensors_files.json_value(header.metadata[key], f"{key} in {name}") for key in ("args", "kwargs")
    )
    arguments = _checked_arguments(klass, args, kwargs, header.shapes, name)
    return _built(klass, arguments, safetensors_files.tensors(data, name), name)


def _load_th(data: bytes, name: str) -> nn.Module:
    file = torch_files.TorchFile(data, name)
    package = file.package()
    if not isinstance(package, dict) or not {"klass", "args", "kwargs", "state"} <= package.keys():
        raise CheckpointError(
            f"{name} is no checkpoint of demucs",
            expected="klass, args, kwargs and state",
            received=f"a {type(package).__name__}",
        )
    if not isinstance(package["klass"], pickles.Global):
        raise CheckpointError(
            f"{name} does more than name its class",
            received=f"a {type(package['klass']).__name__}",
            fix="Nothing of the file was run.",
        )
    if not isinstance(state := package["state"], dict):
        raise CheckpointError(f"{name} has no tensors by name", received=f"a {type(state).__name__}")
    declared = file.declared(state)
    shapes = {key: tensor.shape for key, tensor in declared.items()}
    klass = package["klass"].path
    arguments = _checked_arguments(klass, package["args"], package["kwargs"], shapes, name)
    return _built(klass, arguments, file.tensors(declared), name)


def _checked_arguments(
    klass: str, args: object, kwargs: object, shapes: Mapping[str, tuple[int, ...]], name: str
) -> dict[str, Any]:
    """Hold class and arguments against the list and its schema, and the file's tensors against the model they describe.

    No tensor of the file has been made yet.
    """
    if klass not in _ALLOWED:
        raise CheckpointError(
            f"{name} names a model class that splitter does not know",
            expected=" or ".join(_ALLOWED),
            received=repr(klass)[:120],
            fix="Nothing of the file was run.",
        )
    if (
        not isinstance(args, (list, tuple))
        or not isinstance(kwargs, Mapping)
        or len(args) > 1
        or (args and "sources" in kwargs)
    ):
        raise CheckpointError(
            f"{name} gives arguments without their names", received=f"{type(args).__name__}, {type(kwargs).__name__}"
        )
    given = {**({"sources": args[0]} if args else {}), **kwargs}
    model_class, schema = _ALLOWED[klass]
    try:
        checked = schema.model_validate(given)
    except ValidationError as error:
        raise CheckpointError(
            f"{name} asks for arguments that {klass} does not have, or beyond their bounds",
            received=readable(error)[:400],
        ) from error
    arguments = {**given, "segment": checked.segment} if "segment" in given else given
    # On the meta device a model of any size costs nothing: what the file does not hold is not allocated.
    with torch.device("meta"):
        described = _evaluated(lambda: model_class(**arguments), name).state_dict()
    expected = {key: tuple(tensor.shape) for key, tensor in described.items()}
    if different := sorted(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key)):
        first = different[0]
        raise CheckpointError(
            f"the tensors of {name} do not fit the model it describes: {len(different)} that differ",
            expected=f"{expected.get(first, 'none')} for {first!r}"[:200],
            received=str(shapes.get(first, "none"))[:120],
        )
    limits.check(sum(tensor.nbytes for tensor in described.values()), f"the model of {name}", CheckpointError)
    return arguments


def _built(klass: str, arguments: dict[str, Any], tensors: Mapping[str, torch.Tensor], name: str) -> nn.Module:
    def build() -> nn.Module:
        model = _ALLOWED[klass][0](**arguments)
        model.load_state_dict(tensors)
        return model

    return _evaluated(build, name)


def _evaluated(build: Callable[[], nn.Module], name: str) -> nn.Module:
    """Let demucs's class build itself from what was inspected; its complaints become ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build().eval()
    except Exception as error:  # constructor assertions, shapes that overflow
        raise CheckpointError(
            f"{name} describes a model that cannot be built",
            received=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
        ) from error


_LOADERS: Mapping[str, Callable[[bytes, str], nn.Module]] = {".safetensors": _load_safetensors, ".th": _load_th}
SUFFIXES = tuple(_LOADERS)
