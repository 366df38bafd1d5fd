"""What the transformer accepts, whoever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol, runtime_checkable

from .spec import BRANCHES, Config, SpecError


@runtime_checkable
class Tensor(Protocol):
    """What is asked of an array of NumPy or JAX."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


def check_inputs(config: Config, freq: Tensor, time: Tensor, dtypes: Sequence[str]) -> None:
    """Hold the boundary tensors against the configuration.

    Raises:
        SpecError: Rank, width, token count or dtype is not what the transformer computes with.
    """
    for branch, tensor in zip(BRANCHES, (freq, time), strict=True):
        name, axes = ("time", "b c t") if branch else ("frequency", "b c f t")
        if len(tensor.shape) != len(axes.split()):
            raise SpecError(f"the {name} branch must have the axes {axes}; got shape {tuple(tensor.shape)}")
        if tensor.shape[1] != config.width:
            raise SpecError(
                f"the {name} branch must have {config.width} channels, the width of the weights; got "
                f"{tensor.shape[1]}. Weights and inputs must come from one model"
            )
        tokens = prod(tensor.shape[2:])
        if tokens != config.tokens(branch):
            raise SpecError(
                f"the {name} branch must hold {config.tokens(branch)} tokens, as many as its position table; got "
                f"{tokens} in shape {tuple(tensor.shape)}. Build the bundle for this length of segment"
            )
    if str(freq.dtype) not in dtypes or freq.dtype != time.dtype:
        raise SpecError(
            f"both branches must have one dtype of {', '.join(dtypes)}; got {freq.dtype} and {time.dtype}. "
            "Convert them first"
        )
