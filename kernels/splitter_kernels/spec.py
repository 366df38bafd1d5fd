"""Configuration and parameter tree: the one source of names and shapes.

Names are PyTorch's, relative to the module ``crosstransformer`` of `demucs.htdemucs.HTDemucs`. A name
ending in ``_t`` belongs to the time branch, the same name without it to the frequency branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Branch: TypeAlias = Literal["", "_t"]
BRANCHES: tuple[Branch, ...] = ("", "_t")
Kind: TypeAlias = Literal["self", "cross"]

# Position tables travel with the weights: recomputing them in another precision or another libm moves
# the phases by up to 1e-4.
POSITIONS: Mapping[Branch, str] = {"": "positions", "_t": "positions_t"}


class SpecError(ValueError):
    """Weights or inputs that do not fit the configuration."""


@dataclass(frozen=True)
class Config:
    """What distinguishes one cross-domain transformer from another.

    Attributes:
        width: Channels of a token, C.
        heads: Attention heads; C is a multiple of it.
        layers: Layers in each branch.
        hidden: Width of the feed-forward's hidden layer.
        cross_first: Layer 0 attends across the branches; otherwise layer 1 does.
        freq_tokens: Frequency-branch tokens, time outer and frequency inner: ``(t f)``.
        time_tokens: Time-branch tokens.
        eps: Added to the variance in every normalisation.
    """

    width: int
    heads: int
    layers: int
    hidden: int
    freq_tokens: int
    time_tokens: int
    cross_first: bool = False
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise SpecError(f"width must be a multiple of heads; got width {self.width}, heads {self.heads}")

    def kind(self, layer: int) -> Kind:
        """Self- and cross-attention alternate."""
        return "cross" if (layer % 2 == 0) == self.cross_first else "self"

    def tokens(self, branch: Branch) -> int:
        return self.time_tokens if branch else self.freq_tokens


def parameters(config: Config) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor the transformer reads, position tables included, by name.

    Linear weights are ``[out, in]``; ``in_proj`` stacks query, key and value in this order.
    """
    c, h = config.width, config.hidden
    tree: dict[str, tuple[int, ...]] = {}
    for branch in BRANCHES:
        tree[POSITIONS[branch]] = (config.tokens(branch), c)
        tree |= _affine(f"norm_in{branch}", c)
        for layer in range(config.layers):
            prefix, kind = f"layers{branch}.{layer}", config.kind(layer)
            for norm in ("norm1", "norm2", "norm_out") + (("norm3",) if kind == "cross" else ()):
                tree |= _affine(f"{prefix}.{norm}", c)
            tree |= {
                f"{prefix}.{kind}_attn.in_proj_weight": (3 * c, c),
                f"{prefix}.{kind}_attn.in_proj_bias": (3 * c,),
                f"{prefix}.{kind}_attn.out_proj.weight": (c, c),
                f"{prefix}.{kind}_attn.out_proj.bias": (c,),
                f"{prefix}.linear1.weight": (h, c),
                f"{prefix}.linear1.bias": (h,),
                f"{prefix}.linear2.weight": (c, h),
                f"{prefix}.linear2.bias": (c,),
                f"{prefix}.gamma_1.scale": (c,),
                f"{prefix}.gamma_2.scale": (c,),
            }
    return tree


def _affine(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def check_parameters(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Hold a set of weights against the parameter tree. Raises `SpecError` naming the first difference."""
    expected = parameters(config)
    if missing := sorted(expected.keys() - shapes.keys()):
        raise SpecError(f"the weights lack {len(missing)} tensors, the first {missing[0]!r}")
    if unread := sorted(shapes.keys() - expected.keys()):
        raise SpecError(f"the weights hold {len(unread)} tensors that nothing reads, the first {unread[0]!r}")
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise SpecError(f"{name!r} must have shape {shape}; got {tuple(shapes[name])}")
