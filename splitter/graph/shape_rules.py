"""What the common operators return, as a rule each. A rule that is not certain returns None: PyTorch decides.

Each is asked with the arguments by name, those with defaults only if they were given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

from .shapes import Constant, Inferred, Tensors, TensorType

_Values: TypeAlias = Mapping[str, Any]
_Rule: TypeAlias = Callable[[_Values], Inferred | None]
_R = TypeVar("_R", bound=_Rule)
RULES: dict[str, _Rule] = {}
_FLOATING = frozenset({"float64", "float32", "float16", "bfloat16"})


def _rule(*operators: str) -> Callable[[_R], _R]:
    def register(rule: _R) -> _R:
        for name in operators:
            if f"aten.{name}" in RULES:
                raise ValueError(f"operator {name!r} has a rule already")
            RULES[f"aten.{name}"] = rule
        return rule

    return register


def _constant(values: _Values, name: str, default: Any = None) -> Any:
    """A plain argument, a list of them as a tuple."""
    argument = values.get(name)
    if argument is None:
        return default
    return tuple(item.value for item in argument) if isinstance(argument, tuple) else argument.value


def _axis(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        IndexError: There is none.
    """
    if not -rank <= axis < rank:
        raise IndexError(f"axis {axis} of {rank}")
    return axis % rank


@_rule(
    "sqrt.default", "exp.default", "sin.default", "cos.default", "tanh.default", "sigmoid.default", "gelu.default",
    "silu.default", "erf.default", "rsqrt.default", "square.default",
)  # fmt: skip
def _floating(values: _Values) -> TensorType | None:
    return values["self"] if values["self"].dtype in _FLOATING else None


@_rule("clone.default", "contiguous.default", "relu.default", "neg.default", "copy.default")
def _same(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    other = values.get("src", source)
    return source if other.shape == source.shape and source.dtype in _FLOATING else None


@_rule("pow.Scalar", "pow.Tensor_Scalar")
def _power(values: _Values) -> TensorType | None:
    together = _together(values)
    return together if together.dtype in _FLOATING else None


@_rule("add.Tensor", "sub.Tensor", "mul.Tensor")
def _combined(values: _Values) -> TensorType | None:
    tensors, numbers = _operands(values)
    if len({tensor.dtype for tensor in tensors}) != 1 or "alpha" in values:
        return None
    together = _together(values)
    whole = together.dtype == "int64" and all(number.kind is int for number in numbers)
    return together if whole or together.dtype in _FLOATING else None


@_rule("div.Tensor")
def _divided(values: _Values) -> TensorType | None:
    dtypes = {tensor.dtype for tensor in _operands(values)[0]}
    floating = dtypes - {"int64"}
    if len(floating) > 1 or floating - _FLOATING:
        return None
    return TensorType(_together(values).shape, floating.pop() if floating else _default())


def _operands(values: _Values) -> tuple[Tensors, tuple[Constant, ...]]:
    """Tensors and numbers among the operands of a binary operator."""
    operands = values["self"], values["exponent"] if "exponent" in values else values["other"]
    return (
        tuple(operand for operand in operands if isinstance(operand, TensorType)),
        tuple(operand for operand in operands if isinstance(operand, Constant)),
    )


def _together(values: _Values) -> TensorType:
    """The operands' common shape, with the first tensor's dtype."""
    tensors, _ = _operands(values)
    return TensorType(tuple(np.broadcast_shapes(*(tensor.shape for tensor in tensors))), tensors[0].dtype)


def _default() -> str:
    """The dtype of numbers that are given none."""
    return str(torch.get_default_dtype()).removeprefix("torch.")


@_rule("view.default", "reshape.default")
def _reshaped(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    shape = _constant(values, "size" if "size" in values else "shape", ())
    count, known = math.prod(source.shape), math.prod(extent for extent in shape if extent != -1)
    if shape.count(-1) > 1 or any(extent < -1 for extent in shape) or not known or count % known:
        return None
    shape = tuple(count // known if extent == -1 else extent for extent in shape)
    return TensorType(shape, source.dtype) if math.prod(shape) == count else None


@_rule("permute.default")
def _permuted(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    axes = [_axis(axis, len(source.shape)) for axis in _constant(values, "dims", ())]
    if sorted(axes) != list(range(len(source.shape))):
        return None
    return TensorType(tuple(source.shape[axis] for axis in axes), source.dtype)


@_rule("transpose.int")
def _transposed(values: _Values) -> TensorType:
    source: TensorType = values["self"]
    shape = list(source.shape)
    a, b = (_axis(_constant(values, name), len(shape)) for name in ("dim0", "dim1"))
    shape[a], shape[b] = shape[b], shape[a]
    return TensorType(tuple(shape), source.dtype)


@_rule("t.default")
def _matrix_transposed(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    return TensorType(source.shape[::-1], source.dtype) if len(source.shape) <= 2 else None


@_rule("unsqueeze.default")
def _unsqueezed(values: _Values) -> TensorType:
    source: TensorType = values["self"]
    axis = _axis(_constant(values, "dim"), len(source.shape) + 1)
    return TensorType((*source.shape[:axis], 1, *source.shape[axis:]), source.dtype)


@_rule("squeeze.dim")
def _squeezed(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    axis = _axis(_constant(values, "dim"), len(source.shape)) if source.shape else None
    if axis is None or source.shape[axis] != 1:
        return None
    return TensorType(source.shape[:axis] + source.shape[axis + 1 :], source.dtype)


@_rule("expand.default")
def _expanded(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    shape = _constant(values, "size", ())
    fits = len(shape) == len(source.shape) and all(
        new == old or (old == 1 and new > 0) for new, old in zip(shape, source.shape, strict=True)
    )
    return TensorType(shape, source.dtype) if fits else None


@_rule("repeat.default")
def _repeated(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    times = _constant(values, "repeats", ())
    if len(times) != len(source.shape) or any(count < 1 for count in times):
        return None
    return TensorType(tuple(a * b for a, b in zip(source.shape, times, strict=True)), source.dtype)


@_rule("select.int")
def _selected(values: _Values) -> TensorType:
    source: TensorType = values["self"]
    axis = _axis(_constant(values, "dim"), len(source.shape))
    _axis(_constant(values, "index"), source.shape[axis])
    return TensorType(source.shape[:axis] + source.shape[axis + 1 :], source.dtype)


@_rule("slice.Tensor")
def _sliced(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    axis, step = _axis(_constant(values, "dim", 0), len(source.shape)), _constant(values, "step", 1)
    if step < 1:
        return None
    part = slice(_constant(values, "start"), _constant(values, "end"), step)
    extent = len(range(*part.indices(source.shape[axis])))
    return TensorType((*source.shape[:axis], extent, *source.shape[axis + 1 :]), source.dtype)


@_rule("slice_scatter.default")
def _scattered(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    part = _sliced(values)
    if part is not None and part.shape != values["src"].shape:  # PyTorch's inference does not look
        raise ValueError(f"{values['src'].shape} is written where {part.shape} is")
    return source if part == values["src"] else None


@_rule("split_with_sizes.default")
def _split(values: _Values) -> Tensors | None:
    source: TensorType = values["self"]
    axis, extents = _axis(_constant(values, "dim", 0), len(source.shape)), _constant(values, "split_sizes", ())
    if any(extent < 0 for extent in extents) or sum(extents) != source.shape[axis]:
        return None
    before, after = source.shape[:axis], source.shape[axis + 1 :]
    return tuple(TensorType((*before, extent, *after), source.dtype) for extent in extents)


@_rule("cat.default")
def _concatenated(values: _Values) -> TensorType | None:
    parts: Tensors = values["tensors"]
    if not parts or not parts[0].shape:
        return None
    axis = _axis(_constant(values, "dim", 0), len(parts[0].shape))
    others = {(part.shape[:axis], part.shape[axis + 1 :], part.dtype) for part in parts}
    if len(others) != 1:
        return None
    ((before, after, dtype),) = others
    return TensorType((*before, sum(part.shape[axis] for part in parts), *after), dtype)


@_rule("mean.dim", "std.dim")
def _reduced(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    axes = _constant(values, "dim")
    if source.dtype not in _FLOATING or not axes or values.get("dtype") is not None:
        return None
    found = {_axis(axis, len(source.shape)) for axis in axes}
    if len(found) != len(axes):
        return None
    if _constant(values, "keepdim", False):
        return TensorType(tuple(1 if at in found else e for at, e in enumerate(source.shape)), source.dtype)
    return TensorType(tuple(extent for at, extent in enumerate(source.shape) if at not in found), source.dtype)


@_rule("glu.default")
def _halved(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    axis = _axis(_constant(values, "dim", -1), len(source.shape))
    if source.dtype not in _FLOATING or source.shape[axis] % 2:
        return None
    return TensorType((*source.shape[:axis], source.shape[axis] // 2, *source.shape[axis + 1 :]), source.dtype)


@_rule("linear.default")
def _linear(values: _Values) -> TensorType | None:
    source, weight, bias = values["input"], values["weight"], values.get("bias")
    if len(weight.shape) != 2 or len(source.shape) < 2 or source.dtype not in _FLOATING:
        return None
    if source.shape[-1] != weight.shape[1] or not _alike(source, weight, bias, weight.shape[:1]):
        return None
    return TensorType((*source.shape[:-1], weight.shape[0]), source.dtype)


def _alike(source: TensorType, weight: TensorType | None, bias: TensorType | None, shape: tuple[int, ...]) -> bool:
    """Whether weight and bias have the source's dtype, and the bias this shape."""
    fits = weight is None or weight.dtype == source.dtype
    return fits and (bias is None or bias == TensorType(shape, source.dtype))


@_rule("layer_norm.default", "group_norm.default")
def _normalized(values: _Values) -> TensorType | None:
    source: TensorType = values["input"]
    if source.dtype not in _FLOATING or 0 in source.shape:
        return None
    if "normalized_shape" in values:
        shape = _constant(values, "normalized_shape", ())
        fits = bool(shape) and source.shape[-len(shape) :] == shape
    else:
        groups, shape = _constant(values, "num_groups"), source.shape[1:2]
        fits = groups > 0 and len(source.shape) > 1 and source.shape[1] % groups == 0
    for name in ("weight", "bias"):
        fits = fits and (values.get(name) is None or values[name] == TensorType(shape, source.dtype))
    return source if fits else None


@_rule("conv1d.default", "conv2d.default")
def _convolved(values: _Values) -> TensorType | None:
    source, weight, groups = values["input"], values["weight"], _constant(values, "groups", 1)
    axes = len(weight.shape) - 2
    if len(source.shape) != axes + 2 or groups < 1 or 0 in (*source.shape, *weight.shape):
        return None
    if source.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups or source.dtype not in _FLOATING:
        return None
    if not _alike(source, weight, values.get("bias"), weight.shape[:1]):
        return None
    strides, paddings, dilations = (
        _constant(values, name, (default,) * axes) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    if (
        not len(strides) == len(paddings) == len(dilations) == axes
        or min(*strides, *dilations) < 1
        or min(paddings) < 0
    ):
        return None
    windows = zip(source.shape[2:], weight.shape[2:], strides, paddings, dilations, strict=True)
    spans = [(extent + 2 * pad - wide * (kernel - 1) - 1, stride) for extent, kernel, stride, pad, wide in windows]
    if any(span < 0 for span, _ in spans):
        return None
    return TensorType((source.shape[0], weight.shape[0], *(span // stride + 1 for span, stride in spans)), source.dtype)


@_rule("conv_transpose1d.default", "conv_transpose2d.input")
def _convolved_back(values: _Values) -> TensorType | None:
    source, weight = values["input"], values["weight"]
    axes = len(weight.shape) - 2
    plain = {"input", "weight", "bias", "stride"}
    if values.keys() - plain or len(source.shape) != axes + 2 or source.dtype not in _FLOATING:
        return None
    strides = _constant(values, "stride", (1,) * axes)
    if 0 in (*source.shape, *weight.shape) or source.shape[1] != weight.shape[0] or len(strides) != axes:
        return None
    if min(strides) < 1 or not _alike(source, weight, values.get("bias"), weight.shape[1:2]):
        return None
    sides = zip(source.shape[2:], weight.shape[2:], strides, strict=True)
    extents = ((extent - 1) * stride + kernel for extent, kernel, stride in sides)
    return TensorType((source.shape[0], weight.shape[1], *extents), source.dtype)


@_rule("scaled_dot_product_attention.default")
def _attended(values: _Values) -> TensorType | None:
    query, key, value = values["query"], values["key"], values["value"]
    plain = {"query", "key", "value", "dropout_p", "is_causal", "scale"}
    if values.keys() - plain or len({query.dtype, key.dtype, value.dtype}) != 1 or query.dtype not in _FLOATING:
        return None
    if not len(query.shape) == len(key.shape) == len(value.shape) == 4 or 0 in (*query.shape, *key.shape):
        return None
    if query.shape[:2] != key.shape[:2] or key.shape[:3] != value.shape[:3] or query.shape[3] != key.shape[3]:
        return None
    return TensorType((*query.shape[:3], value.shape[3]), query.dtype)


@_rule("embedding.default")
def _embedded(values: _Values) -> TensorType | None:
    weight, indices = values["weight"], values["indices"]
    if len(weight.shape) != 2 or indices.dtype not in ("int64", "int32"):
        return None
    return TensorType((*indices.shape, weight.shape[1]), weight.dtype)


@_rule("arange.default", "arange.start", "arange.start_step")
def _counted(values: _Values) -> TensorType | None:
    start, end, step = (_constant(values, name, default) for name, default in (("start", 0), ("end", 0), ("step", 1)))
    kinds = {type(number) for number in (start, end, step)}
    whole = all(float(number).is_integer() and abs(number) < 2**31 for number in (start, end, step))
    if values.get("dtype") is not None or not whole or not kinds <= {int, float} or step < 1 or end < start:
        return None
    return TensorType((len(range(int(start), int(end), int(step))),), _default() if float in kinds else "int64")


@_rule("zeros.default", "ones.default")
def _filled(values: _Values) -> TensorType | None:
    shape = _constant(values, "size", ())
    if any(extent < 0 for extent in shape) or values.get("dtype") is not None:
        return None
    return TensorType(shape, _default())


@_rule("hann_window.default")
def _window(values: _Values) -> TensorType | None:
    length = _constant(values, "window_length")
    return _filled(dict(values) | {"size": (Constant(int, length),)}) if length > 1 else None


@_rule("pad.default")
def _padded(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    sides, mode = _constant(values, "pad", ()), _constant(values, "mode", "constant")
    axes = len(sides) // 2
    if len(sides) % 2 or not 0 < axes <= len(source.shape) or min(sides) < 0:
        return None
    if mode == "reflect":  # only so far as there is something to mirror
        within = all(max(sides[2 * at : 2 * at + 2]) < source.shape[-1 - at] for at in range(axes))
        if not within or _constant(values, "value", 0.0) != 0 or (axes, len(source.shape)) not in ((1, 2), (1, 3)):
            return None
    elif mode != "constant":
        return None
    shape = list(source.shape)
    for at in range(axes):
        shape[-1 - at] += sides[2 * at] + sides[2 * at + 1]
    return TensorType(tuple(shape), source.dtype)


@_rule("stft.default")
def _spectrum(values: _Values) -> TensorType | None:
    source, length, window = values["self"], _constant(values, "n_fft"), values.get("window")
    hop, long = _constant(values, "hop_length", 0), _constant(values, "win_length", length)
    fits = (
        source.dtype == "float32"
        and len(source.shape) == 2
        and 1 < long == length <= source.shape[1]
        and hop > 0
        and length % 2 == 0
        and window == TensorType((length,), "float32")
        and _constant(values, "onesided") in (None, True)
        and _constant(values, "return_complex") is True
        and _constant(values, "align_to_window") is None
    )
    frames = 1 + (source.shape[1] - length) // hop if fits else 0
    return TensorType((source.shape[0], length // 2 + 1, frames), "complex64") if fits else None


@_rule("istft.default")
def _signal(values: _Values) -> TensorType:
    """PyTorch has none: whether the window is zero somewhere decides there whether it refuses.

    Raises:
        ValueError: Not the real inverse of one-sided complex spectra by one window.
    """
    source, length, window = values["self"], _constant(values, "n_fft"), values.get("window")
    hop, long = _constant(values, "hop_length", 0), _constant(values, "win_length", length)
    dtype = {"complex64": "float32", "complex128": "float64"}.get(source.dtype)
    samples = _constant(values, "length")
    if samples is None and hop and length:  # all that the frames cover, without what centring padded
        covered = hop * (source.shape[-1] - 1)
        samples = covered if _constant(values, "center", True) else covered + length
    fits = (
        len(source.shape) in (2, 3)
        and 0 not in source.shape
        and length == 2 * (source.shape[-2] - 1) > 0
        and 0 < hop <= long == length
        and window == TensorType((length,), dtype or "")
        and _constant(values, "onesided") in (None, True)
        and not _constant(values, "return_complex", False)
        and samples is not None
        and samples > 0
    )
    if not fits or dtype is None:
        raise ValueError("it inverts one-sided complex spectra to a number of samples")
    return TensorType((*source.shape[:-2], samples), dtype)


@_rule("view_as_real.default")
def _as_real(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    return TensorType((*source.shape, 2), "float32") if source.dtype == "complex64" else None


@_rule("view_as_complex.default")
def _as_complex(values: _Values) -> TensorType | None:
    source: TensorType = values["self"]
    fits = source.dtype == "float32" and source.shape[-1:] == (2,)
    return TensorType(source.shape[:-1], "complex64") if fits else None
