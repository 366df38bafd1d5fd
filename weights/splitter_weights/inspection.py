"""Checkpoint files, inspected before anything of them is used. Nothing in a checkpoint runs code.

demucs's own loaders trust their input: they import and call whatever class a ``.safetensors`` names in its
metadata, and unpickle a ``.th``. So every file, hub downloads included, passes here first: its class must be
on a list, its arguments must fit a schema, its tensors must have the shapes of such a model. Only then does
demucs's loader see it.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from demucs.hdemucs import HDemucs
from demucs.hf import load_safetensors_model
from demucs.htdemucs import HTDemucs
from demucs.states import load_model
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from splitter.errors import CheckpointError
from splitter.plan.schema import readable


def _as_fraction(value: object) -> object:
    """demucs writes a fraction as a small JSON object; whole numbers are fractions too."""
    if (
        isinstance(value, dict)
        and value.keys() == {"_type", "numerator", "denominator"}
        and value["_type"] == "fraction"
    ):
        numerator, denominator = value["numerator"], value["denominator"]
        if isinstance(numerator, int) and isinstance(denominator, int) and 0 < denominator <= 10**6:
            return Fraction(numerator, denominator)
    return Fraction(value).limit_denominator(10**6) if isinstance(value, (int, float)) else value


_Count = Annotated[int, Field(ge=0, le=16_384)]
_Channels = Annotated[int, Field(ge=1, le=4096)]
_Layers = Annotated[int, Field(ge=0, le=64)]
_Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
_Seconds = Annotated[Fraction, BeforeValidator(_as_fraction), Field(gt=0, le=60)]
_Never = Literal[False, 0]  # options whose code needs packages or randomness that no released model uses


class _CommonArguments(BaseModel):
    """Bounds for what a checkpoint may ask of a constructor. Unknown arguments are refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

    sources: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9 _-]{1,40}$")]] = Field(min_length=1, max_length=32)
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
    multi_freqs: list[_Number] | None = None
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
    t_cape_glob_loc_scale: list[_Number] = [5000.0, 1.0, 1.4]
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


_ALLOWED: Mapping[str, tuple[type[nn.Module], type[_CommonArguments]]] = {
    "demucs.htdemucs.HTDemucs": (HTDemucs, _HTDemucsArguments),
    "demucs.hdemucs.HDemucs": (HDemucs, _HDemucsArguments),
}


def _check_class(klass: object, path: Path) -> str:
    if klass not in _ALLOWED:
        raise CheckpointError(
            f"{path.name} names a model class that splitter knows",
            received=repr(klass),
            fix=f"Allowed are {', '.join(_ALLOWED)}; nothing of the file was run.",
        )
    return str(klass)


def _check_arguments(
    klass: str, args: object, kwargs: object, shapes: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Hold constructor arguments against the schema of their class, and the file's tensors against them."""
    if (
        not isinstance(args, (list, tuple))
        or not isinstance(kwargs, Mapping)
        or len(args) > 1
        or (args and "sources" in kwargs)
    ):
        raise CheckpointError(
            f"{path.name} gives arguments by name", received=f"{type(args).__name__}, {type(kwargs).__name__}"
        )
    given = {**({"sources": args[0]} if args else {}), **kwargs}
    try:
        segment = _ALLOWED[klass][1].model_validate(given).segment
    except ValidationError as error:
        raise CheckpointError(
            f"{path.name} asks for nothing but the known arguments of {klass}, within bounds", received=readable(error)
        ) from error
    # On the meta device a model of any size costs nothing: what the file does not hold is not allocated.
    with torch.device("meta"):
        described = _evaluated(lambda: _ALLOWED[klass][0](**{**given, "segment": segment}), path).state_dict()
    expected = {key: tuple(tensor.shape) for key, tensor in described.items()}
    if different := sorted(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key)):
        first = different[0]
        raise CheckpointError(
            f"the tensors of {path.name} fit the model it describes",
            received=f"{len(different)} that differ, the first {first!r}: {shapes.get(first)} in the file, "
            f"{expected.get(first)} in the model",
        )


def _load_safetensors(path: Path) -> nn.Module:
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} must be a readable safetensors file", received=str(error) or repr(error)
        ) from error
    if "structure" in metadata:
        raise CheckpointError(
            f"{path.name} holds plain tensors",
            received="a packed (quantised) state",
            fix="Use the model without quantisation.",
        )
    try:
        klass, args, kwargs = metadata["klass"], json.loads(metadata["args"]), json.loads(metadata["kwargs"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} names its class and arguments in demucs's metadata",
            received=repr(error),
            fix="Export it with demucs 4.1.",
        ) from error
    _check_arguments(_check_class(klass, path), args, kwargs, shapes, path)
    return _evaluated(lambda: load_safetensors_model(path), path)


class _Named:
    """Stands for a global that a pickle names; calling it is refused."""

    path: str

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        raise CheckpointError("a checkpoint only names its class", received="a pickle that would call it")


_STAND_INS = {path: type("_Named_" + path.rpartition(".")[2], (_Named,), {"path": path}) for path in _ALLOWED}


def _safe_fraction(text: object, denominator: object = None) -> Fraction:
    """What a pickled `Fraction` may be: small numbers, no exponent that would fill the memory."""
    parts = str(text).split("/") if denominator is None else [str(text), str(denominator)]
    if len(parts) > 2 or not all(part.isdecimal() and len(part) <= 6 for part in parts):
        raise CheckpointError(
            "a fraction in a checkpoint is two small numbers", received=repr((text, denominator))[:80]
        )
    return Fraction(*map(int, parts))


def _load_th(path: Path) -> nn.Module:
    allowed: list[Any] = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
    allowed.append((_safe_fraction, "fractions.Fraction"))
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            package = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        reason = next(
            (line for line in str(error).splitlines() if "GLOBAL" in line or "not an allowed" in line), str(error)
        )
        raise CheckpointError(
            f"{path} must be a demucs checkpoint that holds weights only",
            received=(reason.splitlines() or [repr(error)])[0][:300],
            fix="Nothing of the file was run. Use a file from a source you trust.",
        ) from error
    if not isinstance(package, dict) or not {"klass", "args", "kwargs", "state"} <= package.keys():
        raise CheckpointError(f"{path.name} holds klass, args, kwargs and state", received=type(package).__name__)
    klass = _check_class(getattr(package["klass"], "path", package["klass"]), path)
    state = package["state"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path.name} holds plain tensors", received="a packed (quantised) state")
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    _check_arguments(klass, package["args"], package["kwargs"], shapes, path)
    content = {"klass": _ALLOWED[klass][0], "args": package["args"], "kwargs": dict(package["kwargs"]), "state": state}
    return _evaluated(lambda: load_model(content), path)


def _evaluated(build: Callable[[], nn.Module], path: Path) -> nn.Module:
    """Let demucs build the inspected model; its complaints become ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build().eval()
    except Exception as error:  # constructor assertions, mismatched states
        raise CheckpointError(
            f"the tensors of {path.name} must fit the model it describes",
            received=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
        ) from error


LOADERS: Mapping[str, Callable[[Path], nn.Module]] = {".safetensors": _load_safetensors, ".th": _load_th}
