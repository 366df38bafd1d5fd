"""Mistakes in layers: activations, attention, norms, convolutions and linear maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .mistake import Call, Mistake, again

_aten = torch.ops.aten
_EPSILONS = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "GELU with the exact erf": functional.gelu,
    "GELU approximated by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "GELU approximated by a sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
    "SiLU": functional.silu,
    "ReLU": functional.relu,
    "hard swish": functional.hardswish,
}


def _activation(name: Callable[[Call], str]) -> Callable[[Call], Iterator[Mistake]]:
    def mistakes(call: Call) -> Iterator[Mistake]:
        right = name(call)
        for wrong, compute in _ACTIVATIONS.items():
            if wrong != right:
                yield Mistake(f"{wrong} where the model has {right}", _applied(compute))
        yield Mistake("the activation left out", lambda run: run["self"].clone())

    return mistakes


def _applied(compute: Callable[[Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda run: compute(run["self"])


def _gelu(call: Call) -> str:
    return "GELU approximated by tanh" if call["approximate"] == "tanh" else "GELU with the exact erf"


def _softmax(call: Call) -> Iterator[Mistake]:
    yield Mistake(
        "softmax not divided by its sum", lambda run: (run["self"] - run["self"].amax(run["dim"], True)).exp()
    )
    yield Mistake("softmax left out", lambda run: run["self"].clone())
    for axis in (-1, -2):
        yield Mistake(f"softmax along axis {axis}", again(dim=axis))


def _attention(call: Call) -> Iterator[Mistake]:
    def scaled(power: float) -> Callable[[Call], Tensor]:
        return lambda run: run.again(scale=run["query"].shape[-1] ** -power)

    yield Mistake("the scale 1/√d left out", scaled(0.0))
    yield Mistake("scaled by 1/d where the model has 1/√d", scaled(1.0))
    yield Mistake("scaled by the fourth root of 1/d where the model has 1/√d", scaled(0.25))
    if not call["is_causal"] and call["attn_mask"] is None:
        yield Mistake("a causal mask, which the model does not have", again(is_causal=True))
    else:
        yield Mistake("the mask left out", again(is_causal=False, attn_mask=None))
    yield Mistake("q and k swapped", lambda run: run.again(query=run["key"], key=run["query"]))
    yield Mistake("k and v swapped", lambda run: run.again(key=run["value"], value=run["key"]))
    yield Mistake("softmax left out", _unnormalised)


def _unnormalised(run: Call) -> Tensor:
    q, k, v = run["query"], run["key"], run["value"]
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) @ v


def _affine(call: Call) -> Iterator[Mistake]:
    """Mistakes that all norms share."""
    for eps in _EPSILONS:
        if eps != call["eps"]:
            yield Mistake(f"eps {eps:g} where the model has {call['eps']:g}", again(eps=eps))
    if call["weight"] is not None:
        yield Mistake("weight and bias left out", again(weight=None, bias=None))
    if call["bias"] is not None:
        yield Mistake("bias left out", lambda run: run.again(bias=torch.zeros_like(run["bias"])))
    yield Mistake("the normalisation left out", lambda run: run["input"].clone())


def _layer_norm(call: Call) -> Iterator[Mistake]:
    yield from _affine(call)
    axes = [-axis for axis in range(1, len(call["normalized_shape"]) + 1)]
    yield Mistake("mean not removed (RMSNorm)", lambda run: _normalised(run, axes, mean=False))
    yield Mistake("unbiased variance (n − 1) where the model divides by n", lambda run: _normalised(run, axes, ddof=1))
    yield Mistake("eps outside the root", lambda run: _normalised(run, axes, outside=True))
    yield Mistake("statistics over all tokens at once", lambda run: _normalised(run, [-1, -2]))


def _normalised(run: Call, axes: list[int], *, mean: bool = True, ddof: int = 0, outside: bool = False) -> Tensor:
    x, eps = run["input"], run["eps"]
    centred = x - x.mean(axes, keepdim=True)
    count = math.prod(x.shape[axis] for axis in axes)
    power = (centred if mean else x).square().sum(axes, keepdim=True) / (count - ddof)
    deviation = power.sqrt() + eps if outside else (power + eps).sqrt()
    value = (centred if mean else x) / deviation
    value = value if run["weight"] is None else value * run["weight"]
    return value if run["bias"] is None else value + run["bias"]


def _group_norm(call: Call) -> Iterator[Mistake]:
    yield from _affine(call)
    channels = call["input"].meta["type"].shape[1]
    for groups in (1, 2, 4, 8, 32):
        if groups != call["num_groups"] and channels % groups == 0:
            cause = f"{groups} groups where the model has {call['num_groups']}"
            yield Mistake(cause, again(num_groups=groups))
    yield Mistake("statistics of each channel by itself", lambda run: run.again(num_groups=run["input"].shape[1]))


def _batch_norm(call: Call) -> Iterator[Mistake]:
    yield from _affine(call)
    mean, variance = ("running_mean", "running_var")
    yield Mistake("the running mean not removed", lambda run: run.again(**{mean: torch.zeros_like(run[mean])}))
    yield Mistake(
        "not divided by the running deviation", lambda run: run.again(**{variance: torch.ones_like(run[variance])})
    )
    yield Mistake(
        "divided by the variance, not by its root", lambda run: run.again(**{variance: run[variance].square()})
    )


def _linear(call: Call) -> Iterator[Mistake]:
    if call["bias"] is not None:
        yield Mistake("bias left out", again(bias=None))
    yield Mistake("transposed weight", lambda run: run.again(weight=run["weight"].reshape(run["weight"].shape[::-1]).T))
    yield Mistake("transposed weight", lambda run: run.again(weight=run["weight"].T))


def _convolution(call: Call) -> Iterator[Mistake]:
    if call["bias"] is not None:
        yield Mistake("bias left out", again(bias=None))
    yield Mistake("the kernel turned round (convolution in the place of correlation)", _turned)
    yield Mistake("the kernel's two axes swapped", lambda run: run.again(weight=run["weight"].transpose(-1, -2)))
    yield Mistake(
        "input and output channels of the weight swapped", lambda run: run.again(weight=run["weight"].transpose(0, 1))
    )
    if not any(call["padding"] or [0]):
        return
    for mode, written in (("reflect", "reflection"), ("replicate", "repetition of the edge")):
        cause = f"padded with {written} where the model pads with zeros"
        yield Mistake(cause, partial(_convolved, mode=mode))
    yield Mistake("frame offset: all padding before", partial(_convolved, shift=1))
    yield Mistake("frame offset: all padding after", partial(_convolved, shift=-1))


def _turned(run: Call) -> Tensor:
    axes = list(range(2, run["weight"].dim()))
    return run.again(weight=run["weight"].flip(axes))


def _convolved(run: Call, *, mode: str = "constant", shift: int = 0) -> Tensor:
    x, padding = run["input"], list(run["padding"])
    padding *= (x.dim() - 2) // len(padding)
    pads = [part for pad in reversed(padding) for part in (pad + shift * pad, pad - shift * pad)]
    return run.again(input=functional.pad(x, pads, mode=mode), padding=[0] * len(padding))


MISTAKES: dict[Any, Callable[[Call], Iterator[Mistake]]] = {
    _aten.gelu.default: _activation(_gelu),
    _aten.silu.default: _activation(lambda call: "SiLU"),
    _aten.relu.default: _activation(lambda call: "ReLU"),
    _aten.hardswish.default: _activation(lambda call: "hard swish"),
    _aten.softmax.int: _softmax,
    _aten._softmax.default: _softmax,
    _aten.scaled_dot_product_attention.default: _attention,
    _aten.layer_norm.default: _layer_norm,
    _aten.group_norm.default: _group_norm,
    _aten.batch_norm.default: _batch_norm,
    _aten.linear.default: _linear,
    **dict.fromkeys(
        (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.conv1d.padding,
         _aten.conv2d.padding), _convolution,
    ),
}  # fmt: skip
