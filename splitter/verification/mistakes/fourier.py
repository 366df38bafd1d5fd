"""Mistakes in transforms of sound, which the host computes: windows, scales, padding, frames and bins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .mistake import Call, Mistake, again

_aten = torch.ops.aten
_FAMILIES = {"Hann": torch.hann_window, "Hamming": torch.hamming_window, "Blackman": torch.blackman_window}
_SAME = 1e-5  # between two ways to compute one window


def _window(call: Call) -> Iterator[Mistake]:
    periodic = call["periodic"] is not False
    length = int(call["window_length"])
    yield Mistake(
        f"a {_of(not periodic)} window where the model's is {_of(periodic)}",
        lambda run: _kind(run)(length, periodic=not periodic),
    )
    yield Mistake("the square root of the window", lambda run: run.again().sqrt())


def _kind(call: Call) -> Callable[..., Tensor]:
    return getattr(torch, call.node.target._schema.name.removeprefix("aten::"))  # type: ignore[union-attr]


def _of(periodic: bool) -> str:
    return "periodic" if periodic else "symmetric"


def _other_window(window: Tensor) -> Tensor:
    """The symmetric window for a periodic one of the same kind, and the reverse."""
    for make in _FAMILIES.values():
        kinds = [make(len(window), periodic=periodic) for periodic in (True, False)]
        for kind, other in zip(kinds, reversed(kinds), strict=True):
            if torch.allclose(window, kind, atol=_SAME, rtol=0):
                return other
    raise ValueError("a window of another kind")


def _both(inverse: bool) -> Callable[[Call], Iterator[Mistake]]:
    """Mistakes that a transform and its inverse share; what scales the one up scales the other down."""

    def mistakes(call: Call) -> Iterator[Mistake]:
        length = int(call["n_fft"])
        if call["normalized"]:
            yield Mistake("the scale 1/√N left out", again(normalized=False))
        else:
            yield Mistake("scaled by 1/√N, which the model does not do", again(normalized=True))
        for over, written in ((1, "1/N"), (2, "2/N")):
            yield Mistake(f"scaled by {written}", _scaled(over / length))
        if call["window"] is not None:
            yield Mistake(
                "the window symmetric where the model's is periodic, or the reverse",
                lambda run: run.again(window=_other_window(run["window"])),
            )
            yield Mistake("the window left out", lambda run: run.again(window=torch.ones_like(run["window"])))
        yield Mistake(
            "the sign of the imaginary part turned: exp(+iωt) in the place of exp(−iωt)", _conjugated(inverse)
        )
        yield Mistake("the last (Nyquist) bin dropped", _without_last_bin(inverse))
        for by in (1, -1, 2, -2):
            word = f"{abs(by)} frame{'s' * (abs(by) > 1)} {'late' if by > 0 else 'early'}"
            yield Mistake(f"frame offset: the frames {word}", _frames_moved(inverse, by))

    return mistakes


def _scaled(factor: float) -> Callable[[Call], Tensor]:
    return lambda run: run.again() * factor


def _conjugated(inverse: bool) -> Callable[[Call], Tensor]:
    return lambda run: run.again(self=run["self"].conj().resolve_conj()) if inverse else run.again().conj()


def _without_last_bin(inverse: bool) -> Callable[[Call], Tensor]:
    def compute(run: Call) -> Tensor:
        spectrum = (run["self"] if inverse else run.again()).clone()
        spectrum[..., run["n_fft"] // 2, :] = 0
        return run.again(self=spectrum) if inverse else spectrum

    return compute


def _frames_moved(inverse: bool, by: int) -> Callable[[Call], Tensor]:
    def compute(run: Call) -> Tensor:
        spectrum = run["self"] if inverse else run.again()
        moved = torch.zeros_like(spectrum)
        kept = slice(by, None) if by > 0 else slice(None, by)
        source = slice(None, -by) if by > 0 else slice(-by, None)
        moved[..., kept] = spectrum[..., source]
        return run.again(self=moved) if inverse else moved

    return compute


def _istft(call: Call) -> Iterator[Mistake]:
    yield Mistake("the window's square forgotten: frames are added up, and not divided by it", _undivided)
    yield Mistake("divided by the sum of the windows where the model divides by that of their squares", _by_the_sum)
    yield from _both(inverse=True)(call)
    yield Mistake("the centred frames' first half of a window not cut off", _uncut)


def _envelope(run: Call, power: int) -> Tensor:
    """The overlap-added window to a power, where the result lies."""
    length, hop = run["n_fft"], run["hop_length"] or run["n_fft"] // 4
    window = torch.ones(length) if run["window"] is None else run["window"]
    frames = run["self"].shape[-1]
    columns = window.pow(power)[None, :, None].expand(1, length, frames)
    total = length + hop * (frames - 1)
    added = functional.fold(columns, (1, total), (1, length), stride=(1, hop)).reshape(total)
    start = length // 2 if run["center"] else 0
    wanted = run.node.meta["type"].shape[-1]
    return added[start : start + wanted]


def _undivided(run: Call) -> Tensor:
    return run.again() * _envelope(run, 2)


def _by_the_sum(run: Call) -> Tensor:
    return run.again() * _envelope(run, 2) / _envelope(run, 1)


def _uncut(run: Call) -> Tensor:
    return torch.roll(run.again(), run["n_fft"] // 2, -1)


_NORMS = {0: "unscaled", 1: "scaled by 1/√N", 2: "scaled by 1/N"}


def _fft(call: Call) -> Iterator[Mistake]:
    for norm, written in _NORMS.items():
        if norm != call["normalization"]:
            cause = f"{written} where the model's transform is {_NORMS[int(call['normalization'])]}"
            yield Mistake(cause, again(normalization=norm))
    yield Mistake(
        "the sign of the imaginary part turned", lambda run: run.again(self=run["self"].conj().resolve_conj())
    )


_PADS: dict[str, str] = {"constant": "zeros", "reflect": "reflection", "replicate": "repetition of the edge"}


def _pad(call: Call) -> Iterator[Mistake]:
    mode = call["mode"] or ("reflect" if "reflection" in str(call.node.target) else "constant")
    pads = [int(pad) for pad in call["pad"] or call["padding"]]
    for other, written in _PADS.items():
        if other != mode:
            cause = f"padded with {written} where the model pads with {_PADS.get(mode, mode)}"
            yield Mistake(cause, _padding(pads, other))
    turned = [pads[place ^ 1] for place in range(len(pads))]
    if turned != pads:
        yield Mistake("the padding before and after swapped", _padding(turned, mode))
    for name, first in (("before", True), ("after", False)):
        moved = _on_one_side(pads, first=first)
        if moved != pads:
            yield Mistake(f"all padding {name}", _padding(moved, mode))
    for by in (1, -1):
        if all(pad + by >= 0 and rest - by >= 0 for pad, rest in [pads[:2]]):
            shifted = [pads[0] + by, pads[1] - by, *pads[2:]]
            cause = f"frame offset: everything one sample {'late' if by > 0 else 'early'}"
            yield Mistake(cause, _padding(shifted, mode))


def _on_one_side(pads: list[int], *, first: bool) -> list[int]:
    sums = [pads[place] + pads[place + 1] for place in range(0, len(pads), 2)]
    return [part for total in sums for part in ((total, 0) if first else (0, total))]


def _padding(pads: list[int], mode: str) -> Callable[[Call], Tensor]:
    return lambda run: _padded(run["self"], pads, mode)


def _padded(x: Tensor, pads: list[int], mode: str) -> Tensor:
    if mode == "constant":
        return functional.pad(x, pads)
    axes = len(pads) // 2
    flat = x.reshape(-1, *x.shape[x.dim() - axes :]) if x.dim() > axes else x[None]
    return functional.pad(flat, pads, mode=mode).reshape(*x.shape[: x.dim() - axes], *_grown(x, pads, axes))


def _grown(x: Tensor, pads: list[int], axes: int) -> list[int]:
    return [x.shape[-axis] + pads[2 * axis - 2] + pads[2 * axis - 1] for axis in range(axes, 0, -1)]


def _complex(call: Call) -> Iterator[Mistake]:
    def swapped(run: Call) -> Tensor:
        x = run["self"]
        return run.again().flip(-1) if x.is_complex() else run.again(self=x.flip(-1))

    yield Mistake("channel order: the imaginary part before the real one", swapped)


MISTAKES: dict[Any, Callable[[Call], Iterator[Mistake]]] = {
    **dict.fromkeys(
        (
            _aten.hann_window.default, _aten.hann_window.periodic, _aten.hamming_window.default,
            _aten.hamming_window.periodic, _aten.blackman_window.default, _aten.blackman_window.periodic,
        ),
        _window,
    ),
    _aten.stft.default: _both(inverse=False),
    _aten.stft.center: _both(inverse=False),
    _aten.istft.default: _istft,
    **dict.fromkeys((_aten._fft_r2c.default, _aten._fft_c2r.default, _aten._fft_c2c.default), _fft),
    **dict.fromkeys(
        (_aten.pad.default, _aten.constant_pad_nd.default, _aten.reflection_pad1d.default,
         _aten.reflection_pad2d.default), _pad,
    ),
    _aten.view_as_real.default: _complex,
    _aten.view_as_complex.default: _complex,
}  # fmt: skip
