"""Convolutions and transposed convolutions over any number of axes, with or without an axis of batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from . import each, operator, wide

_SPATIAL = "DHW"


@operator(
    "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding"
)  # fmt: skip
def conv(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    stride: list[int],
    padding: list[int] | str,
    dilation: list[int],
    groups: int,
) -> jax.Array:
    """weight is (out, in / groups, …). Of the padding ``same`` the odd element is at the end; ``valid`` is none."""
    rank = weight.ndim - 2
    dilations = each(dilation, rank)
    if not isinstance(padding, str):
        pads = [(pad, pad) for pad in each(padding, rank)]
    elif padding == "same":
        reaches = [step * (extent - 1) for extent, step in zip(weight.shape[2:], dilations, strict=True)]
        pads = [(reach // 2, reach - reach // 2) for reach in reaches]
    else:
        pads = [(0, 0)] * rank
    return _windowed(x, weight, bias, each(stride, rank), pads, dilations, groups)


@operator("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def conv_transpose(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
) -> jax.Array:
    """weight is (in, out / groups, …): the convolution of x, zeros between its elements, with the weight reversed."""
    rank = weight.ndim - 2
    reversed_ = jnp.flip(weight, tuple(range(2, weight.ndim)))
    by_group = reversed_.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    steps, dilations, extra = each(stride, rank), each(dilation, rank), each(output_padding, rank)
    pads = []
    for axis, pad in enumerate(each(padding, rank)):
        reach = dilations[axis] * (weight.shape[2 + axis] - 1) - pad
        pads.append((reach, reach + extra[axis]))
    turned = by_group.reshape(-1, *by_group.shape[2:])
    return _windowed(x, turned, bias, (1,) * rank, pads, dilations, groups, between=steps)


@operator("convolution.default")
def convolution(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> jax.Array:
    if transposed:
        return conv_transpose(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(x, weight, bias, stride, padding, dilation, groups)


def _windowed(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    strides: tuple[int, ...],
    pads: list[tuple[int, int]],
    dilations: tuple[int, ...],
    groups: int,
    between: tuple[int, ...] | None = None,
) -> jax.Array:
    """The weight over x, ``between`` − 1 zeros between the elements of x."""
    rank = weight.ndim - 2
    batched = x if x.ndim == weight.ndim else x[None]
    axes = _SPATIAL[-rank:]
    y = lax.conv_general_dilated(
        batched,
        weight,
        strides,
        pads,
        lhs_dilation=between,
        rhs_dilation=dilations,
        dimension_numbers=(f"NC{axes}", f"OI{axes}", f"NC{axes}"),
        feature_group_count=groups,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=wide(x.dtype),
    )
    if bias is not None:
        y = y + bias.reshape(-1, *(1,) * rank)
    return (y if x.ndim == weight.ndim else y[0]).astype(x.dtype)
