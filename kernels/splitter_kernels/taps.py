"""Every point of the transformer at which a port can be compared: its name, shape, formula and sources.

Names are PyTorch's paths below ``crosstransformer`` where a module computes the value (``layers.2.norm1``), and
below the layer where an operator between modules does (``layers.2.q``). A name whose branch ends in ``_t`` belongs
to the time branch. The list is stable: goldens, dumps and reports are keyed by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from .spec import BRANCHES, POSITIONS, Branch, Config

LOGIT_ROWS = 16  # query rows of the logits that are observed; all of them would be tokens × sources a head
Observer: TypeAlias = Callable[[str, Any], object]  # receives a tap's name and its value


@dataclass(frozen=True)
class Tap:
    """One observed value.

    Attributes:
        name: e.g. ``"layers_t.1.q"``.
        axes: Names of its axes as einops writes them: b batch, c channels, f bins, t frames or samples, n tokens,
            m sources, r observed query rows, h heads, d channels of a head, e hidden channels.
        shape: Their extents, for a batch of one; frequency-branch inputs and outputs give f and t as None, since
            only their product is known to the configuration.
        formula: What it is in terms of ``reads`` and ``weights``.
        reads: Taps it is computed from, in one step.
        weights: Tensors of the parameter tree it is computed with.
    """

    name: str
    axes: str
    shape: tuple[int | None, ...]
    formula: str
    reads: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()


def taps(config: Config) -> dict[str, Tap]:
    """All taps of a transformer by name, in the order in which it computes them, frequency branch first."""
    found: dict[str, Tap] = {}
    latest: dict[Branch, str] = {}
    for branch in BRANCHES:
        for tap in _inputs(config, branch):
            found[tap.name] = tap
            latest[branch] = tap.name
    for layer in range(config.layers):
        old = dict(latest)
        for branch, other in zip(BRANCHES, reversed(BRANCHES), strict=True):
            for tap in _layer(config, layer, branch, old[branch], other, old[other]):
                found[tap.name] = tap
                latest[branch] = tap.name
    for branch in BRANCHES:
        for tap in _outputs(config, branch, latest[branch]):
            found[tap.name] = tap
    return found


def _inputs(config: Config, branch: Branch) -> Iterator[Tap]:
    tokens = (1, config.tokens(branch), config.width)
    norm = f"norm_in{branch}"
    unfold = "b c t -> b t c" if branch else "b c f t -> b (t f) c"
    yield _boundary(config, branch, "input")
    yield Tap(norm, "b n c", tokens, f"layer_norm({unfold}) · weight + bias", (f"input{branch}",), _affine(norm))
    yield Tap(f"embedded{branch}", "b n c", tokens, "norm_in + positions", (norm,), (POSITIONS[branch],))


def _outputs(config: Config, branch: Branch, last: str) -> Iterator[Tap]:
    tokens = (1, config.tokens(branch), config.width)
    yield Tap(f"norm_out{branch}", "b n c", tokens, "the last layer's norm_out", (last,))
    fold = "b t c -> b c t" if branch else "b (t f) c -> b c f t"
    boundary = _boundary(config, branch, "output")
    yield Tap(boundary.name, boundary.axes, boundary.shape, fold, (f"norm_out{branch}",))


def _boundary(config: Config, branch: Branch, name: str) -> Tap:
    if branch:
        return Tap(f"{name}_t", "b c t", (1, config.width, config.time_tokens), "the boundary tensor")
    return Tap(name, "b c f t", (1, config.width, None, None), "the boundary tensor")


def _layer(config: Config, layer: int, branch: Branch, x: str, other: Branch, old: str) -> Iterator[Tap]:
    """The sub-steps of one layer; ``x`` are its own tokens, ``old`` the other branch's before the layer."""
    path, kind = f"layers{branch}.{layer}", config.kind(layer)
    cross = kind == "cross"
    n, m = config.tokens(branch), config.tokens(other if cross else branch)
    c, h, d = config.width, config.heads, config.width // config.heads
    attention = f"{path}.{kind}_attn"

    def tokens(name: str, formula: str, reads: tuple[str, ...], weights: tuple[str, ...] = ()) -> Tap:
        return Tap(f"{path}.{name}", "b n c", (1, n, c), formula, reads, weights)

    norm = "layer_norm(x) · weight + bias"
    yield tokens("norm1", norm, (x,), _affine(f"{path}.norm1"))
    if cross:
        yield Tap(f"{path}.norm2", "b m c", (1, m, c), norm, (old,), _affine(f"{path}.norm2"))
    sources = f"{path}.norm2" if cross else f"{path}.norm1"
    projection = (f"{attention}.in_proj_weight", f"{attention}.in_proj_bias")
    split = "x Wᵀ + b, third {} of in_proj, b n (h d) -> b h n d"
    yield Tap(f"{path}.q", "b h n d", (1, h, n, d), split.format(1), (f"{path}.norm1",), projection)
    yield Tap(f"{path}.k", "b h m d", (1, h, m, d), split.format(2), (sources,), projection)
    yield Tap(f"{path}.v", "b h m d", (1, h, m, d), split.format(3), (sources,), projection)
    yield Tap(
        f"{path}.logits", "b h r m", (1, h, min(LOGIT_ROWS, n), m), "q kᵀ / √d, of the first query rows",
        (f"{path}.q", f"{path}.k"),
    )  # fmt: skip
    yield Tap(
        f"{path}.heads", "b h n d", (1, h, n, d), "softmax(q kᵀ / √d) v",
        (f"{path}.q", f"{path}.k", f"{path}.v"),
    )  # fmt: skip
    yield tokens(
        f"{kind}_attn", "x Wᵀ + b of b h n d -> b n (h d)",
        (f"{path}.heads",), (f"{attention}.out_proj.weight", f"{attention}.out_proj.bias"),
    )  # fmt: skip
    yield tokens("gamma_1", "scale · attention", (attention,), (f"{path}.gamma_1.scale",))
    yield tokens("residual_1", "x + gamma_1", (x, f"{path}.gamma_1"))
    before = "norm3" if cross else "norm2"
    yield tokens(before, norm, (f"{path}.residual_1",), _affine(f"{path}.{before}"))
    for name, formula, read, weights in (
        ("linear1", "x Wᵀ + b", before, _affine(f"{path}.linear1")),
        ("gelu", "x (1 + erf(x / √2)) / 2", "linear1", ()),
    ):
        yield Tap(f"{path}.{name}", "b n e", (1, n, config.hidden), formula, (f"{path}.{read}",), weights)
    yield tokens("linear2", "x Wᵀ + b", (f"{path}.gelu",), _affine(f"{path}.linear2"))
    yield tokens("gamma_2", "scale · linear2", (f"{path}.linear2",), (f"{path}.gamma_2.scale",))
    yield tokens("residual_2", "residual_1 + gamma_2", (f"{path}.residual_1", f"{path}.gamma_2"))
    yield tokens(
        "norm_out", "(x − mean) / √(var + eps) · weight + bias, statistics over all tokens and channels",
        (f"{path}.residual_2",), _affine(f"{path}.norm_out"),
    )  # fmt: skip


def _affine(name: str) -> tuple[str, str]:
    return (f"{name}.weight", f"{name}.bias")
