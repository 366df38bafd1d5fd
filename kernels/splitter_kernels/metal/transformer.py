"""The whole transformer through the Metal kernels, with every tap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import NDArray

from ..inputs import check_inputs
from ..spec import BRANCHES, POSITIONS, Branch, Config, SpecError, check_parameters
from ..taps import LOGIT_ROWS, Observer
from . import steps
from .library import Library

Weights: TypeAlias = Mapping[str, Float[ndarray, "..."]]
Tokens: TypeAlias = Float[ndarray, "tokens channels"]


def transformer(
    config: Config,
    weights: Weights,
    freq: Float[ndarray, "batch channels bins frames"],
    time: Float[ndarray, "batch channels samples"],
    *,
    observe: Observer | None = None,
    library: Library | None = None,
) -> tuple[Float[ndarray, "1 channels bins frames"], Float[ndarray, "1 channels samples"]]:
    """Run all layers of both branches on a batch of one.

    Args:
        weights: The parameter tree in any precision. Matrices and inputs are rounded to the library's storage type,
            everything else to float32.
        observe: Called with each of `kernels.taps` as it is computed. Watching costs a few dispatches more, since
            some taps lie inside fused kernels, and changes no bit of the result.
        library: Storage type and thread order; by default float32, ascending.

    Returns:
        Both branches in the storage type.

    Raises:
        SpecError: Weights or inputs that do not fit the configuration.
        MetalError: See `Library.launch`.
    """
    library = library or Library()
    check_inputs(config, freq, time, ("float16", "float32", "float64"))
    if freq.shape[0] != 1 or time.shape[0] != 1:
        raise SpecError(
            f"the Metal kernels take a batch of one; got {freq.shape[0]} and {time.shape[0]}. Run one segment at a time"
        )
    check_parameters(config, {name: value.shape for name, value in weights.items()})
    run = _Run(config, _placed(weights, library), library, observe or (lambda name, value: None), observe is not None)
    return run(freq, time)


def _placed(weights: Weights, library: Library) -> dict[str, NDArray[Any]]:
    return {
        name: np.ascontiguousarray(
            value, library.storage if value.ndim == 2 and name not in POSITIONS.values() else np.float32
        )
        for name, value in weights.items()
    }


class _Run:
    """One forward pass: what every sub-step needs, bound together."""

    def __init__(self, config: Config, weights: Weights, library: Library, observe: Observer, watched: bool) -> None:
        self._config, self._weights, self._library = config, weights, library
        self._observe, self._watched = observe, watched

    def __call__(
        self, freq: Float[ndarray, "1 channels bins frames"], time: Float[ndarray, "1 channels samples"]
    ) -> tuple[Float[ndarray, "1 channels bins frames"], Float[ndarray, "1 channels samples"]]:
        # The time branch is a frequency branch of one bin.
        boundary = {"": freq[0], "_t": time[0][:, None]}
        bins = {branch: value.shape[1] for branch, value in boundary.items()}
        tokens: dict[Branch, Tokens] = {b: self._embedded(b, boundary[b]) for b in BRANCHES}
        for layer in range(self._config.layers):
            old = dict(tokens)
            for branch, other in zip(BRANCHES, reversed(BRANCHES), strict=True):
                source = old[other] if self._config.kind(layer) == "cross" else None
                tokens[branch] = self._layer(f"layers{branch}.{layer}", old[branch], source)
        results = []
        for branch in BRANCHES:
            self._tap(f"norm_out{branch}", tokens[branch])
            result = steps.from_tokens(self._library, tokens[branch], bins[branch])[None]
            results.append(result[:, :, 0] if branch else result)
            self._observe(f"output{branch}", results[-1])
        return results[0], results[1]

    def _embedded(self, branch: Branch, boundary: Float[ndarray, "channels bins frames"]) -> Tokens:
        x = boundary.astype(self._library.storage)
        self._observe(f"input{branch}", x[None, :, 0] if branch else x[None])
        normed = self._norm(f"norm_in{branch}", steps.to_tokens(self._library, x))
        positions = self._weights[POSITIONS[branch]]
        return self._tap(f"embedded{branch}", steps.add_positions(self._library, normed, positions))

    def _layer(self, path: str, x: Tokens, source: Float[ndarray, "sources channels"] | None) -> Tokens:
        queries = self._norm(f"{path}.norm1", x)
        kind = "self" if source is None else "cross"
        sources = queries if source is None else self._norm(f"{path}.norm2", source)
        attended = self._attention(path, kind, queries, sources)
        y = self._residual(path, 1, x, attended)
        hidden = self._norm(f"{path}.{'norm2' if source is None else 'norm3'}", y)
        if self._watched:
            self._linear(f"{path}.linear1", hidden)
        weight, bias = self._weights[f"{path}.linear1.weight"], self._weights[f"{path}.linear1.bias"]
        hidden = self._tap(f"{path}.gelu", steps.linear(self._library, hidden, weight, bias, gelu=True))
        z = self._residual(path, 2, y, self._linear(f"{path}.linear2", hidden))
        weight, bias = self._weights[f"{path}.norm_out.weight"], self._weights[f"{path}.norm_out.bias"]
        return self._tap(f"{path}.norm_out", steps.group_norm(self._library, z, weight, bias, self._config.eps))

    def _attention(self, path: str, kind: str, queries: Tokens, sources: Float[ndarray, "sources channels"]) -> Tokens:
        name, heads, width = f"{path}.{kind}_attn", self._config.heads, self._config.width
        weight, bias = self._weights[f"{name}.in_proj_weight"], self._weights[f"{name}.in_proj_bias"]
        q, k, v = (
            self._heads(f"{path}.{letter}", steps.linear(self._library, x, weight[rows], bias[rows]))
            for letter, x, rows in (
                ("q", queries, slice(0, width)),
                ("k", sources, slice(width, 2 * width)),
                ("v", sources, slice(2 * width, 3 * width)),
            )
        )
        if self._watched:
            rows = min(LOGIT_ROWS, len(q))
            self._tap(f"{path}.logits", steps.attention_logits(self._library, q, k, heads, rows))
        mixed = self._heads(f"{path}.heads", steps.attention(self._library, q, k, v, heads))
        return self._linear(f"{name}.out_proj", mixed, tap=name)

    def _residual(self, path: str, number: int, x: Tokens, branch: Tokens) -> Tokens:
        gamma = self._weights[f"{path}.gamma_{number}.scale"]
        if self._watched:
            self._tap(f"{path}.gamma_{number}", steps.scale(self._library, branch, gamma))
        return self._tap(f"{path}.residual_{number}", steps.scale_residual(self._library, x, branch, gamma))

    def _norm(self, name: str, x: Tokens) -> Tokens:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return self._tap(name, steps.layer_norm(self._library, x, weight, bias, self._config.eps))

    def _linear(
        self, name: str, x: Float[ndarray, "tokens inputs"], tap: str | None = None
    ) -> Float[ndarray, "tokens outputs"]:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return self._tap(tap or name, steps.linear(self._library, x, weight, bias))

    def _heads(self, name: str, x: Tokens) -> Tokens:
        self._observe(name, rearrange(x[None], "b n (h d) -> b h n d", h=self._config.heads))
        return x

    def _tap(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        self._observe(name, value[None])
        return value
