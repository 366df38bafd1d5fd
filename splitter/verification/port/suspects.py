"""What ports get wrong, step by step: each suspect is a mistake and the value that it would give.

A suspect that explains a dumped value names its cause. The mistakes are those on record in published ports and
those the architecture invites: two branches, four norms a layer, three stacked projections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from einops import rearrange
from scipy.special import expit
from splitter_kernels import reference
from splitter_kernels.spec import POSITIONS, Config
from splitter_kernels.taps import LOGIT_ROWS, Tap

from ...boundary import Array

Suspect: TypeAlias = tuple[str, Array]
_EPSILONS = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class PortStep:
    """One step of a port under suspicion.

    Attributes:
        tap: What the step computes.
        weights: The transformer's tensors by kernel name.
        value: Gives a tap's value as the port had it, or should have had it.
        frames: Extent t of the frequency branch's ``(t f)`` tokens.
    """

    config: Config
    tap: Tap
    weights: Mapping[str, Array]
    value: Callable[[str], Array]
    frames: int

    @property
    def time_branch(self) -> bool:
        return self.tap.name.split(".")[0].endswith("_t")

    @property
    def layer(self) -> str:
        return self.tap.name.rpartition(".")[0]

    def read(self, index: int = 0) -> Array:
        return self.value(self.tap.reads[index])

    def layer_tensor(self, name: str) -> Array:
        """A tensor of the step's own layer and branch."""
        return self.weights[f"{self.layer}.{name}" if self.layer else name]


def suspects(step: PortStep) -> Iterator[Suspect]:
    """Every mistake that fits a step, the likelier ones first.

    Values of ``heads`` are of the first `LOGIT_ROWS` query rows only.
    """
    last = step.tap.name.rpartition(".")[2].removesuffix("_t")
    if last in ("norm_in", "norm1", "norm2", "norm3") or (last == "norm_out" and step.layer):
        yield from _norm(step, last)
    elif last in _STEPS:
        yield from _STEPS[last](step)


def drifted(step: PortStep, dumped: Array) -> Array | None:
    """For a normalisation: the dumped value's best fit ``r · x · weight + c · weight + bias``.

    Statistics that were summed inexactly change r and c and nothing else. None for other steps.
    """
    last = step.tap.name.rpartition(".")[2].removesuffix("_t")
    if not last.startswith("norm") or not step.tap.weights:
        return None
    weight, bias = (step.weights[name].astype(np.float64) for name in step.tap.weights)
    x = _tokens(step).astype(np.float64) * weight
    y = dumped.astype(np.float64) - bias
    axes = (-2, -1) if last == "norm_out" else (-1,)
    w = np.broadcast_to(weight, x.shape)

    def total(value: Array) -> Array:
        return value.sum(axis=axes, keepdims=True)

    xx, xw, ww, xy, wy = total(x * x), total(x * w), total(w * w), total(x * y), total(w * y)
    determinant = xx * ww - xw * xw
    with np.errstate(divide="ignore", invalid="ignore"):
        r, c = (xy * ww - wy * xw) / determinant, (wy * xx - xy * xw) / determinant
    return r * x + c * w + bias


def _tokens(step: PortStep) -> Array:
    """What a normalisation reads, as tokens × channels."""
    x = step.read()
    if step.layer:
        return x
    return rearrange(x, "b c t -> b t c") if step.time_branch else rearrange(x, "b c f t -> b (t f) c")


# ------------------------------------------------------------------------------------------ steps


def _norm(step: PortStep, last: str) -> Iterator[Suspect]:
    x, eps = _tokens(step), step.config.eps
    weight, bias = (step.weights[name] for name in step.tap.weights)
    over_all = last == "norm_out"
    own, other = (
        (reference.group_norm, reference.layer_norm) if over_all else (reference.layer_norm, reference.group_norm)
    )
    if over_all:
        yield (
            "LayerNorm, of each token by itself, where GroupNorm(1, C) goes over all tokens",
            other(x, weight, bias, eps),
        )
    else:
        yield "statistics over all tokens where LayerNorm takes each token by itself", other(x, weight, bias, eps)
    if last == "norm_in" and not step.time_branch:
        wrong = rearrange(step.read(), "b c f t -> b (f t) c")
        yield "token order (f t) where the model has (t f)", own(wrong, weight, bias, eps)
    for source, cause in _other_sources(step, last):
        yield cause, own(step.value(source), weight, bias, eps)
    for names, cause in _other_affine(step, last):
        yield cause, own(x, step.weights[names[0]], step.weights[names[1]], eps)
    for wrong_eps in _EPSILONS:
        yield f"eps {wrong_eps:g} where the model has {eps:g}", own(x, weight, bias, wrong_eps)
    yield "weight and bias left out", own(x, np.ones_like(weight), np.zeros_like(bias), eps)
    yield "bias left out", own(x, weight, np.zeros_like(bias), eps)
    yield "the normalisation left out", x
    axes = (-2, -1) if over_all else (-1,)
    centred = x - x.mean(axis=axes, keepdims=True)
    squares = np.square(x).mean(axis=axes, keepdims=True)
    yield "mean not removed (RMSNorm)", x / np.sqrt(squares + eps) * weight + bias
    unbiased = centred.var(axis=axes, keepdims=True, ddof=1)
    yield "unbiased variance (n − 1) where the model divides by n", centred / np.sqrt(unbiased + eps) * weight + bias
    if over_all:
        by_channel = x - x.mean(axis=-2, keepdims=True)
        deviation = np.sqrt(np.square(by_channel).mean(axis=-2, keepdims=True) + eps)
        yield "statistics of each channel by itself (InstanceNorm)", by_channel / deviation * weight + bias


def _other_sources(step: PortStep, last: str) -> Iterator[tuple[str, str]]:
    """In a cross layer, norm2 reads the other branch's tokens as they were before the layer."""
    if last != "norm2" or "m" not in step.tap.axes.split():
        return
    index = step.layer.rpartition(".")[2]
    other = "layers" if step.time_branch else "layers_t"
    yield f"{other}.{index}.norm_out", "the other branch's new tokens where a cross layer attends to the old ones"
    if step.config.freq_tokens == step.config.time_tokens:
        yield _own_tokens(step), "the branch's own tokens where a cross layer attends to the other's"


def _own_tokens(step: PortStep) -> str:
    prefix, _, index = step.layer.rpartition(".")
    return f"{prefix}.{int(index) - 1}.norm_out" if int(index) else "embedded" + "_t" * step.time_branch


def _other_affine(step: PortStep, last: str) -> Iterator[tuple[tuple[str, str], str]]:
    weight, bias = step.tap.weights
    yield (_twin(weight), _twin(bias)), "the other branch's weights"
    if step.layer:
        for norm in ("norm1", "norm2", "norm3", "norm_out"):
            names = (f"{step.layer}.{norm}.weight", f"{step.layer}.{norm}.bias")
            if norm != last and names[0] in step.weights:
                yield names, f"the weights of {norm}"


def _embedded(step: PortStep) -> Iterator[Suspect]:
    x, table = step.read(), step.layer_tensor(POSITIONS["_t" if step.time_branch else ""])
    yield "position table left out", x
    half = table.shape[1] // 2
    yield (
        "sine and cosine swapped in the position table",
        x + np.concatenate([table[:, half:], table[:, :half]], axis=1),
    )
    pairs = table.reshape(len(table), -1, 2)
    yield "sine and cosine swapped in the position table", x + pairs[:, :, ::-1].reshape(table.shape)
    interleaved = np.stack([table[:, :half], table[:, half:]], axis=-1).reshape(table.shape)
    yield "sine and cosine interleaved in the position table", x + interleaved
    if not step.time_branch:
        yield "position table in the order (f t)", x + rearrange(table, "(t f) c -> (f t) c", t=step.frames)
    yield "position table added twice", x + 2 * table


def _projection(step: PortStep) -> Iterator[Suspect]:
    x, heads = step.read(), step.config.heads
    third = "qkv".index(step.tap.name[-1])
    stacked, biases = (step.weights[name] for name in step.tap.weights)
    weights, bias = np.split(stacked, 3), np.split(biases, 3)

    def split(value: Array, pattern: str = "b n (h d) -> b h n d") -> Array:
        return rearrange(value, pattern, h=heads)

    for index, name in enumerate("qkv"):
        if index != third:
            yield f"{'qkv'[third]} and {name} swapped", split(reference.linear(x, weights[index], bias[index]))
    right = reference.linear(x, weights[third], bias[third])
    yield "heads split as (d h) where the model has (h d)", split(right, "b n (d h) -> b h n d")
    yield "heads split without moving the tokens", right.reshape(split(right).shape)
    if third == 0:
        yield (
            "the scale 1/√d applied already; the tap comes before it",
            split(right) / math.sqrt(right.shape[-1] // heads),
        )
    yield "transposed weight", split(x @ weights[third] + bias[third])
    yield "bias left out", split(x @ weights[third].T)
    twins = [np.split(step.weights[_twin(name)], 3)[third] for name in step.tap.weights]
    yield "the other branch's weights", split(reference.linear(x, *twins))
    by_head = rearrange(stacked, "(h three d) c -> three (h d) c", three=3, h=heads)[third]
    bias_by_head = rearrange(biases, "(h three d) -> three (h d)", three=3, h=heads)[third]
    yield "in_proj read as heads of q, k, v where it stacks q, k, v", split(reference.linear(x, by_head, bias_by_head))
    if third and step.tap.reads[0].endswith("norm2"):
        branch_tokens = step.value(f"{step.layer}.norm1")
        if branch_tokens.shape == x.shape:
            yield (
                "keys and values of the branch's own tokens",
                split(reference.linear(branch_tokens, weights[third], bias[third])),
            )


def _logits(step: PortStep) -> Iterator[Suspect]:
    q, k = step.read(0)[:, :, :LOGIT_ROWS], step.read(1)
    width = q.shape[-1]
    plain = q @ np.swapaxes(k, -1, -2)
    yield "the scale 1/√d left out", plain
    yield "scaled by 1/d where the model has 1/√d", plain / width
    yield "scaled twice by 1/√d", plain / width
    yield "softmax taken already; the tap comes before it", reference.softmax(plain / math.sqrt(width))
    if step.read(0).shape == k.shape:
        yield "q and k swapped", k[:, :, :LOGIT_ROWS] @ np.swapaxes(step.read(0), -1, -2) / math.sqrt(width)


def _heads(step: PortStep) -> Iterator[Suspect]:
    q, k, v = step.read(0)[:, :, :LOGIT_ROWS], step.read(1), step.read(2)
    plain = q @ np.swapaxes(k, -1, -2)
    scaled = plain / math.sqrt(q.shape[-1])
    yield "the scale 1/√d left out", reference.softmax(plain.copy()) @ v
    yield "scaled by 1/d where the model has 1/√d", reference.softmax(plain / q.shape[-1]) @ v
    yield "softmax left out", scaled @ v
    yield "v and k swapped", reference.softmax(q @ np.swapaxes(v, -1, -2) / math.sqrt(q.shape[-1])) @ k
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    yield "softmax not divided by its sum", exponentials @ v
    heads, width = q.shape[1], q.shape[-1]
    yield "heads split as (d h) where the model has (h d)", _resplit(step, "b n (d h) -> b h n d", h=heads)
    swapped = rearrange(_resplit(step, "b n (h d) -> b h n d", d=heads), "b h n d -> b n (h d)")
    yield (
        f"{width} heads of {heads} channels where the model has {heads} of {width}",
        rearrange(swapped, "b n (h d) -> b h n d", h=heads),
    )


def _resplit(step: PortStep, pattern: str, **extent: int) -> Array:
    """Attention over heads that are split from the tokens in another way."""
    tokens = (rearrange(step.read(index), "b h n d -> b n (h d)") for index in range(3))
    q, k, v = (rearrange(x, pattern, **extent) for x in tokens)
    logits = q[:, :, :LOGIT_ROWS] @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    mixed: Array = reference.softmax(logits) @ v
    return mixed


def _attention(step: PortStep) -> Iterator[Suspect]:
    heads = step.read()
    weight, bias = (step.weights[name] for name in step.tap.weights)
    x = rearrange(heads, "b h n d -> b n (h d)")
    yield (
        "heads merged as (d h) where the model has (h d)",
        reference.linear(rearrange(heads, "b h n d -> b n (d h)"), weight, bias),
    )
    yield "heads merged without moving the tokens", reference.linear(heads.reshape(x.shape), weight, bias)
    yield from _linear(step, x)


def _linear(step: PortStep, x: Array | None = None) -> Iterator[Suspect]:
    x = step.read() if x is None else x
    weight, bias = (step.weights[name] for name in step.tap.weights)
    yield "transposed weight", x @ weight.reshape(weight.shape[::-1]) + bias
    yield "bias left out", x @ weight.T
    yield "the other branch's weights", reference.linear(x, *(step.weights[_twin(name)] for name in step.tap.weights))
    if weight.shape[0] == weight.shape[1]:
        yield "the projection left out", x


def _gelu(step: PortStep) -> Iterator[Suspect]:
    x = step.read()
    cubic = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    yield "GELU approximated by tanh where the model has the exact erf", 0.5 * x * (1 + np.tanh(cubic))
    yield "GELU approximated by a sigmoid where the model has the exact erf", x * expit(1.702 * x)
    yield "SiLU where the model has GELU", x * expit(x)
    yield "ReLU where the model has GELU", np.maximum(x, 0)
    yield "the activation left out", x


def _scale(step: PortStep) -> Iterator[Suspect]:
    x, (name,) = step.read(), step.tap.weights
    yield "layer scale left out", x
    swapped = name.replace("gamma_1", "gamma_3").replace("gamma_2", "gamma_1").replace("gamma_3", "gamma_2")
    yield f"the scale of {swapped.split('.')[-2]}", x * step.weights[swapped]
    yield "the other branch's layer scale", x * step.weights[_twin(name)]


def _residual(step: PortStep) -> Iterator[Suspect]:
    x, added = step.read(0), step.read(1)
    yield "residual left out", added
    yield "the added branch left out", x
    norm = step.value(f"{step.layer}.norm1")
    if norm.shape == x.shape:
        yield "the normalised tokens where the residual takes those before the norm", norm + added


def _output(step: PortStep) -> Iterator[Suspect]:
    x = step.read()
    if step.time_branch:
        yield "tokens and channels not transposed back", x.reshape(x.shape[0], x.shape[2], x.shape[1])
        return
    yield "token order (f t) where the model has (t f)", rearrange(x, "b (f t) c -> b c f t", t=step.frames)


def _twin(name: str) -> str:
    """The other branch's tensor of the same name."""
    head, dot, rest = name.partition(".")
    return (head.removesuffix("_t") if head.endswith("_t") else f"{head}_t") + dot + rest


_STEPS: Mapping[str, Callable[[PortStep], Iterator[Suspect]]] = {
    "embedded": _embedded,
    "q": _projection,
    "k": _projection,
    "v": _projection,
    "logits": _logits,
    "heads": _heads,
    "self_attn": _attention,
    "cross_attn": _attention,
    "linear1": _linear,
    "linear2": _linear,
    "gelu": _gelu,
    "gamma_1": _scale,
    "gamma_2": _scale,
    "residual_1": _residual,
    "residual_2": _residual,
    "output": _output,
}
