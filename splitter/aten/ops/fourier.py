"""Fourier transforms and complex numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...graph.shapes import TensorType
from . import Function, axes_of, cast, dtype_of, operator, unknown

_ONE_AXIS: Mapping[str, Callable[..., jax.Array]] = {
    "fft_fft": jnp.fft.fft,
    "fft_ifft": jnp.fft.ifft,
    "fft_irfft": jnp.fft.irfft,
    "fft_rfft": jnp.fft.rfft,
}
_SEVERAL_AXES: Mapping[str, Callable[..., jax.Array]] = {
    "fft_fft2": jnp.fft.fftn,
    "fft_ifft2": jnp.fft.ifftn,
    "fft_irfft2": jnp.fft.irfftn,
    "fft_rfft2": jnp.fft.rfftn,
}
_SHIFTS: Mapping[str, Callable[..., jax.Array]] = {
    "fft_fftshift": jnp.fft.fftshift,
    "fft_ifftshift": jnp.fft.ifftshift,
}


def _transform(compute: Callable[..., jax.Array]) -> Function:
    def transform(x: jax.Array, n: int | None, dim: int, norm: str | None, result: TensorType) -> jax.Array:
        return compute(_as_numbers(x, result), n, dim, norm)

    return transform


def _transform_of_several(compute: Callable[..., jax.Array]) -> Function:
    def transform(x: jax.Array, s: list[int] | None, dim: list[int], norm: str | None, result: TensorType) -> jax.Array:
        extents = [result.shape[axis] if extent == -1 else extent for extent, axis in zip(s or [], dim, strict=False)]
        return compute(_as_numbers(x, result), extents or None, tuple(dim), norm)

    return transform


def _shift(compute: Callable[..., jax.Array]) -> Function:
    def shift(x: jax.Array, dim: list[int] | None) -> jax.Array:
        return compute(x, axes_of(dim, x.ndim))

    return shift


def _as_numbers(x: jax.Array, result: TensorType) -> jax.Array:
    """Integers as floating-point numbers of the precision that the result has."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return x.astype(np.empty(0, dtype_of(result)).real.dtype)


for _name, _compute in _ONE_AXIS.items():
    operator(f"{_name}.default")(_transform(_compute))
for _name, _compute in _SEVERAL_AXES.items():
    operator(f"{_name}.default")(_transform_of_several(_compute))
for _name, _compute in _SHIFTS.items():
    operator(f"{_name}.default")(_shift(_compute))


# ------------------------------------------------------------------------------- short transforms


@operator("stft.default")
def stft(
    x: jax.Array,
    n_fft: int,
    hop_length: int | None,
    win_length: int | None,
    window: jax.Array | None,
    normalized: bool,
    onesided: bool | None,
    return_complex: bool | None,
    align_to_window: bool | None,
) -> jax.Array:
    """(…, samples) → (…, bins, frames): frames of n_fft samples, hop_length apart, times the window, transformed."""
    if align_to_window:
        raise unknown("frames cannot be aligned to a window that is shorter than they are", align_to_window)
    hop = hop_length or n_fft // 4
    starts = np.arange(0, x.shape[-1] - n_fft + 1, hop)
    frames = x[..., starts[:, None] + np.arange(n_fft)] * _whole_window(window, win_length, n_fft, x.real.dtype)
    is_complex = jnp.iscomplexobj(x)
    spectrum = jnp.fft.fft(frames) if is_complex or onesided is False else jnp.fft.rfft(frames)
    if normalized:
        spectrum = spectrum / math.sqrt(n_fft)
    spectrum = spectrum.swapaxes(-1, -2)
    return spectrum if return_complex or (is_complex and return_complex is None) else view_as_real(spectrum)


@operator("stft.center")
def stft_centred(
    x: jax.Array,
    n_fft: int,
    hop_length: int | None,
    win_length: int | None,
    window: jax.Array | None,
    center: bool,
    pad_mode: str,
    normalized: bool,
    onesided: bool | None,
    return_complex: bool | None,
    align_to_window: bool | None,
) -> jax.Array:
    """The same; half a frame is padded to both ends, so that frame t is centred at sample t · hop_length."""
    padded = x
    if center:
        mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[pad_mode]
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(n_fft // 2, n_fft // 2)], mode)
    return stft(padded, n_fft, hop_length, win_length, window, normalized, onesided, return_complex, align_to_window)


@operator("istft.default")
def istft(
    x: jax.Array,
    n_fft: int,
    hop_length: int | None,
    win_length: int | None,
    window: jax.Array | None,
    center: bool,
    normalized: bool,
    onesided: bool | None,
    length: int | None,
    return_complex: bool,
) -> jax.Array:
    """(…, bins, frames) → (…, samples): Σ window · frame / Σ window², frames where they were taken from."""
    if return_complex or onesided is False:
        raise unknown("only one-sided spectra of real signals are transformed back", f"onesided={onesided}")
    hop = hop_length or n_fft // 4
    spectrum = x.swapaxes(-1, -2) * (math.sqrt(n_fft) if normalized else 1)
    frames = jnp.fft.irfft(spectrum, n_fft)
    weights = _whole_window(window, win_length, n_fft, frames.dtype)
    count = frames.shape[-2]
    total = _overlapped(frames * weights, hop)
    envelope = _overlapped(jnp.broadcast_to(jnp.square(weights), (count, n_fft)), hop)
    start = n_fft // 2 if center else 0
    samples = n_fft + hop * (count - 1)
    end = samples - start if length is None else start + length
    covered = slice(start, min(end, samples))
    signal = total[..., covered] / envelope[covered]
    missing = end - covered.stop  # beyond the last frame there is silence
    return jnp.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(0, missing)])


def _whole_window(window: jax.Array | None, win_length: int | None, n_fft: int, dtype: Any) -> jax.Array:
    """The window in the middle of a frame, zeros around it."""
    length = win_length or n_fft
    weights = jnp.ones(length, dtype) if window is None else window
    before = (n_fft - length) // 2
    return jnp.pad(weights, (before, n_fft - length - before))


def _overlapped(frames: jax.Array, hop: int) -> jax.Array:
    """(…, frames, n) → (…, n + hop · (frames − 1)): frames, hop apart, added up.

    Frames are taken apart into pieces of one hop: the pieces of one place in all frames lie side by side.
    """
    *before, count, size = frames.shape
    pieces = -(-size // hop)
    filled = jnp.pad(frames, [(0, 0)] * (frames.ndim - 1) + [(0, pieces * hop - size)])
    blocks = filled.reshape(*before, count, pieces, hop)
    total = jnp.zeros((*before, count + pieces - 1, hop), frames.dtype)
    for piece in range(pieces):
        total = total.at[..., piece : piece + count, :].add(blocks[..., piece, :])
    return total.reshape(*before, -1)[..., : size + hop * (count - 1)]


# ------------------------------------------------------------------------------- complex numbers


@operator("view_as_complex.default")
def view_as_complex(x: jax.Array) -> jax.Array:
    return lax.complex(x[..., 0], x[..., 1])


@operator("view_as_real.default")
def view_as_real(x: jax.Array) -> jax.Array:
    return jnp.stack([x.real, x.imag], -1)


@operator("complex.default")
def complex_(real_: jax.Array, imag_: jax.Array) -> jax.Array:
    return lax.complex(*jnp.broadcast_arrays(real_, imag_))


@operator("polar.default")
def polar(abs_: jax.Array, angle_: jax.Array) -> jax.Array:
    return lax.complex(*jnp.broadcast_arrays(abs_ * jnp.cos(angle_), abs_ * jnp.sin(angle_)))


@operator("real.default")
def real(x: jax.Array) -> jax.Array:
    return x.real


@operator("imag.default")
def imag(x: jax.Array) -> jax.Array:
    return x.imag


@operator("angle.default")
def angle(x: jax.Array, result: TensorType) -> jax.Array:
    """Of negative numbers π, of NaN NaN."""
    if jnp.iscomplexobj(x):
        return jnp.arctan2(x.imag, x.real)
    values = cast(x, dtype_of(result))
    return jnp.where(jnp.isnan(values), values, jnp.where(values < 0, math.pi, 0)).astype(values.dtype)


@operator("conj.default", "_conj.default", "conj_physical.default", "_conj_physical.default")
def conj(x: jax.Array) -> jax.Array:
    return jnp.conj(x) if jnp.iscomplexobj(x) else x
