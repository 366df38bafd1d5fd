"""The vocabulary of host specifications, and what each word means in NumPy.

Analysis and synthesis run on the host: Core ML has no complex numbers. Their specification is a list of
steps in the words below, each with explicit parameters, precise enough to write in any language. The
functions here are its meaning; their docstrings go into the file as definitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import BaseModel, ConfigDict

from .. import limits
from ..boundary import Array, TensorSpec
from ..errors import LoweringError

FORMAT: Literal["splitter.host/1"] = "splitter.host/1"
ARTIFACT = "host specification"  # what targets that write one say
Value: TypeAlias = Any  # an array or a number
_WIDEST = 16  # bytes of a number: complex, in double precision
_OPERATIONS: dict[str, Callable[..., Array]] = {}


class Step(BaseModel):
    """One operation: ``result = op(*arguments, **parameters)``.

    Arguments are names of earlier results or inputs (strings) or numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    result: str
    op: str
    arguments: tuple[str | float, ...] = ()
    parameters: dict[str, Any] = {}
    shape: tuple[int, ...]
    dtype: str


class HostSpec(BaseModel):
    """A stage as steps. ``definitions`` explains every operation that occurs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["splitter.host/1"] = FORMAT
    stage: str
    inputs: tuple[TensorSpec, ...]
    steps: tuple[Step, ...]
    outputs: dict[str, str]
    definitions: dict[str, str]


def definitions(steps: tuple[Step, ...]) -> dict[str, str]:
    """The meaning of every operation the steps use."""
    return {name: " ".join((_OPERATIONS[name].__doc__ or "").split()) for name in sorted({step.op for step in steps})}


def run(spec: HostSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Execute a specification in NumPy, freeing each value after its last use.

    Raises:
        LoweringError: A step names an operation or a value that does not exist, cannot be computed, needs more memory
            than there may be, or gives another shape or dtype than it says.
    """
    if unknown := set(spec.outputs.values()) - {*inputs, *(step.result for step in spec.steps)}:
        raise LoweringError("the host specification gives what no step computes", received=", ".join(sorted(unknown)))
    values: dict[str, Array] = dict(inputs)
    last_use = {argument: index for index, step in enumerate(spec.steps) for argument in step.arguments}
    kept = set(spec.outputs.values())
    for index, step in enumerate(spec.steps):
        if step.op not in _OPERATIONS:
            raise LoweringError(f"step {step.result!r} of the host specification is unknown: {step.op!r}")
        if missing := [a for a in step.arguments if isinstance(a, str) and a not in values]:
            raise LoweringError(
                f"step {step.result!r} of the host specification reads what no earlier step computes",
                received=", ".join(missing),
            )
        arguments = [values[a] if isinstance(a, str) else a for a in step.arguments]
        held = sum(value.nbytes for value in values.values())
        try:
            asked = _WIDEST * _elements(step.op, *arguments, **step.parameters)
            limits.check(held + asked, f"step {step.result!r} of the host specification", LoweringError)
            result = _OPERATIONS[step.op](*arguments, **step.parameters)
        except LoweringError:
            raise
        except Exception as error:  # NumPy and Python raise every kind for parameters that do not fit
            problem = f"step {step.result!r} of the host specification cannot be computed"
            raise LoweringError(problem, received=f"{step.op}: {error}") from error
        if result.shape != step.shape or str(result.dtype) != step.dtype:
            raise LoweringError(
                f"step {step.result!r} of the host specification gives another shape or dtype than it says",
                expected=f"{step.shape} {step.dtype}",
                received=f"{result.shape} {result.dtype}",
            )
        values[step.result] = result
        for argument in step.arguments:
            if isinstance(argument, str) and last_use[argument] == index and argument not in kept:
                values.pop(argument, None)
    return {name: values[step] for name, step in spec.outputs.items()}


def _elements(op: str, *arguments: Value, **parameters: Any) -> int:
    """How many numbers an operation makes, at most, where its arguments do not bound them."""
    shapes = [np.shape(argument) for argument in arguments]
    match op:
        case "hann_window":
            return parameters["length"]
        case "constant":
            return len(parameters["values"])
        case "fill" | "expand" | "take":
            return math.prod(parameters["shape"])
        case "concatenate" | "stack":
            return sum(map(math.prod, shapes))
        case "put" | "add_at":
            return math.prod(shapes[0])
        case "pad_zero" | "pad_reflect":
            pads = zip(shapes[0], parameters["before"], parameters["after"], strict=True)
            return math.prod(extent + before + after for extent, before, after in pads)
        case "stft":
            *batch, samples = shapes[0]
            frames = (samples - parameters["fft_length"]) // abs(parameters["hop_length"]) + 1
            return math.prod(batch) * frames * parameters["fft_length"]
        case "istft":
            *batch, _, frames = shapes[0]
            return math.prod(batch) * (frames + 1) * max(parameters["fft_length"], parameters["hop_length"])
    return math.prod(np.broadcast_shapes(*shapes)) if len(shapes) > 1 else math.prod(shapes[0])


@dataclass(frozen=True)
class _Operation:
    """Register a function as the meaning of an operation; its docstring is the definition."""

    name: str

    def __call__(self, function: Callable[..., Array]) -> Callable[..., Array]:
        if self.name in _OPERATIONS:
            raise ValueError(f"operation {self.name!r} is already defined")
        _OPERATIONS[self.name] = function
        return function


@_Operation("reshape")
def _reshape(x: Array, *, shape: list[int]) -> Array:
    """Same elements in row-major order, other extents."""
    return x.reshape(shape)


@_Operation("transpose")
def _transpose(x: Array, *, axes: list[int]) -> Array:
    """Axis i of the result is axis axes[i] of x."""
    return x.transpose(axes)


@_Operation("slice")
def _slice(x: Array, *, axis: int, start: int, stop: int) -> Array:
    """Elements start <= i < stop along one axis."""
    return x[(slice(None),) * axis + (slice(start, stop),)]


@_Operation("constant")
def _constant(*, values: list[float], shape: list[int], dtype: str) -> Array:
    """The values in row-major order."""
    return np.array(values, dtype).reshape(shape)


@_Operation("fill")
def _fill(*, value: float, shape: list[int], dtype: str) -> Array:
    """The same value everywhere."""
    return np.full(shape, value, dtype)


@_Operation("expand")
def _expand(x: Array, *, shape: list[int]) -> Array:
    """Broadcast: axes of extent 1, and axes before the first one, repeat."""
    return np.broadcast_to(x, shape)


@_Operation("concatenate")
def _concatenate(*xs: Array, axis: int) -> Array:
    """One after the other along an axis."""
    return np.concatenate(xs, axis=axis)


@_Operation("stack")
def _stack(*xs: Array, axis: int) -> Array:
    """Beside each other along a new axis, which becomes axis `axis` of the result."""
    return np.stack(xs, axis=axis)


@_Operation("select")
def _select(x: Array, *, axis: int, index: int) -> Array:
    """Element `index` along one axis, which the result does not have."""
    return np.asarray(x[(slice(None),) * axis + (index,)])


@_Operation("put")
def _put(x: Array, y: Value, *, axis: int, index: int) -> Array:
    """x with y in place of what select takes from it."""
    result = x.copy()
    result[(slice(None),) * axis + (index,)] = y
    return result


@_Operation("take")
def _take(x: Array, *, axes: int, indices: list[int], shape: list[int]) -> Array:
    """The first `axes` axes count as one, in row-major order; its elements at the indices, in their order, laid out as
    `shape`."""
    return x.reshape(-1, *x.shape[axes:])[indices].reshape(shape)


@_Operation("add_at")
def _add_at(x: Array, y: Array, *, axis: int, indices: list[int]) -> Array:
    """x, and y's element k along an axis added to x's element indices[k], one after the other for equal indices."""
    result = x.copy()
    np.add.at(np.moveaxis(result, axis, 0), indices, np.moveaxis(y, axis, 0))
    return result


@_Operation("pad_zero")
def _pad_zero(x: Array, *, before: list[int], after: list[int]) -> Array:
    """Zeros before and after, counts per axis."""
    return np.pad(x, list(zip(before, after, strict=True)))


@_Operation("pad_reflect")
def _pad_reflect(x: Array, *, before: list[int], after: list[int]) -> Array:
    """Mirror image before and after, counts per axis; the edge sample itself is not repeated."""
    return np.pad(x, list(zip(before, after, strict=True)), mode="reflect")


@_Operation("hann_window")
def _hann_window(*, length: int) -> Array:
    """Periodic Hann window: w[n] = (1 - cos(2 pi n / length)) / 2 for 0 <= n < length."""
    n = np.arange(length)
    return (0.5 - 0.5 * np.cos(2 * np.pi * n / length)).astype(np.float32)


@_Operation("stft")
def _stft(x: Array, window: Array, *, fft_length: int, hop_length: int, scale: float) -> Array:
    """X[b, f, t] = scale * sum_n window[n] * x[b, t*hop_length + n] * exp(-2 pi i f n / fft_length), for
    0 <= f <= fft_length/2 and every frame t that fits. No padding of its own: padding is a step before it."""
    frames = sliding_window_view(x, fft_length, axis=-1)[..., ::hop_length, :]
    spectrum = np.fft.rfft(frames * (window * np.float32(scale)), axis=-1)
    return np.swapaxes(spectrum, -1, -2).astype(np.complex64)


@_Operation("istft")
def _istft(
    spectrum: Array, window: Array, *, fft_length: int, hop_length: int, scale: float, trim: int, length: int
) -> Array:
    """Frames y_t[n] = window[n] / scale * irfft(X[b, :, t])[n], overlap-added at t*hop_length; divided by the
    overlap-added window[n]^2; the first `trim` samples dropped and `length` samples kept."""
    frames = np.fft.irfft(np.swapaxes(spectrum, -1, -2), n=fft_length, axis=-1).astype(np.float32)
    frames *= window / np.float32(scale)
    total = fft_length + hop_length * (frames.shape[-2] - 1)
    signal = np.zeros((*frames.shape[:-2], total), np.float32)
    envelope = np.zeros(total, np.float32)
    for t in range(frames.shape[-2]):
        span = slice(t * hop_length, t * hop_length + fft_length)
        signal[..., span] += frames[..., t, :]
        envelope[span] += window * window
    kept = slice(trim, trim + length)
    return np.asarray(signal[..., kept] / envelope[kept])


@_Operation("split_complex")
def _split_complex(x: Array) -> Array:
    """A new last axis of extent 2: real part, imaginary part."""
    return np.stack([x.real, x.imag], axis=-1)


@_Operation("join_complex")
def _join_complex(x: Array) -> Array:
    """The inverse of split_complex: last axis (real, imaginary) becomes one complex number."""
    return np.asarray(x[..., 0] + np.complex64(1j) * x[..., 1])


@_Operation("magnitude")
def _magnitude(x: Array) -> Array:
    """|x|; of a complex number the root of the sum of the squares of its parts."""
    return np.abs(x)


@_Operation("mean")
def _mean(x: Array, *, axes: list[int]) -> Array:
    """Arithmetic mean over the axes, kept with extent 1. Accumulate in double or in stages."""
    return x.mean(axis=tuple(axes), keepdims=True, dtype=np.float64).astype(x.dtype)


@_Operation("std")
def _std(x: Array, *, axes: list[int], correction: float) -> Array:
    """sqrt(sum (x - mean)^2 / (N - correction)) over the axes, kept with extent 1."""
    return x.std(axis=tuple(axes), keepdims=True, dtype=np.float64, ddof=correction).astype(x.dtype)


@_Operation("add")
def _add(x: Value, y: Value) -> Array:
    """x + y, broadcast."""
    return np.asarray(np.add(x, y))


@_Operation("subtract")
def _subtract(x: Value, y: Value) -> Array:
    """x - y, broadcast."""
    return np.asarray(np.subtract(x, y))


@_Operation("multiply")
def _multiply(x: Value, y: Value) -> Array:
    """x * y, broadcast."""
    return np.asarray(np.multiply(x, y))


@_Operation("divide")
def _divide(x: Value, y: Value) -> Array:
    """x / y, broadcast."""
    return np.asarray(np.divide(x, y))
