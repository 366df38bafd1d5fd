"""Convolutions and their transposes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

from ...errors import OperationError
from .. import bounds, neural_engine
from . import check_result_size, operation
from .traits import M1, Rows, Traits

if TYPE_CHECKING:
    from ..graph import Node

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def _multiplications(node: Node) -> int:
    """Outputs × kernel × input channels of a group; the weight is ``[out, in / groups, *kernel]``."""
    return node.outputs[0].elements * math.prod(node.extents("weight")[1:])


def _transposed_multiplications(node: Node) -> int:
    """Inputs × kernel × output channels of a group; the weight is ``[in, out / groups, *kernel]``."""
    return math.prod(node.extents("x")) * math.prod(node.extents("weight")[1:])


@operation(
    "conv",
    Traits(
        accumulate_fp32=True,
        rows=Rows.CONVOLUTION,
        multiplications=_multiplications,
        engine=M1,
        limits=(neural_engine.CONVOLVED,),
        on_engine=neural_engine.convolved,
        bounds=bounds.weighted,
    ),
)
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolve; weights are [C_out, C_in / groups, *kernel].

    An axis gets ⌊(extent + before + after − reach) / stride⌋ + 1 elements, where reach = (kernel − 1) · dilation + 1.
    See `paddings` for the types of padding.
    """
    rank = spatial_rank(x)
    strides, dilations = each_positive("strides", strides, rank), each_positive("dilations", dilations, rank)
    extents, reaches = x.shape[2:], _reaches(weight, dilations)
    pads = paddings(pad_type, pad, extents, reaches, strides)
    padded = [extent + before + after for extent, (before, after) in zip(extents, pads, strict=True)]
    counts = [(extent - reach) // stride + 1 for extent, reach, stride in zip(padded, reaches, strides, strict=True)]
    check_result_size([x.shape[0], weight.shape[0], *counts], x.dtype)
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if all(before == after for before, after in pads):
        return _CONV[rank](x, weight, bias, strides, [before for before, _ in pads], dilations, groups)
    check_result_size([*x.shape[:2], *padded], x.dtype)
    return _CONV[rank](functional.pad(x, for_torch(pads)), weight, bias, strides, 0, dilations, groups)


@operation("conv_quantized", Traits(accumulate_fp32=True, multiplications=_multiplications, engine=M1))
def conv_quantized(
    x: Tensor,
    weight: Tensor,
    quantization_type: str,
    quant_scale: Tensor,
    quant_bias: Tensor,
    bias: Tensor | None = None,
    nbits: int = 8,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolve with weight · quant_scale + quant_bias, scale and bias being one number each or one for each C_out.

    Weights are whole bytes, whatever ``nbits`` says. ``lut`` is refused: the operation has no parameter for a table.
    """
    if quantization_type != "linear":
        raise OperationError(
            "conv_quantized does not take this quantization of weights", expected="linear", received=quantization_type
        )
    if not 1 <= nbits <= 8 or bool((weight >> nbits).any()):
        raise OperationError(
            "quantized weights do not fit their bits", expected="numbers of 1 to 8 bits", received=f"{nbits} bits"
        )
    scale, offset = (_per_output(values, weight).to(x.dtype) for values in (quant_scale, quant_bias))
    return conv(x, weight * scale + offset, bias, strides, pad_type, pad, dilations, groups)


def _per_output(values: Tensor, weight: Tensor) -> Tensor:
    if values.numel() not in (1, weight.shape[0]):
        raise OperationError(
            "a scale has the wrong length",
            expected=f"1 number, or {weight.shape[0]}, one for each output channel",
            received=values.numel(),
        )
    return values.reshape(-1, *[1] * (weight.ndim - 1))


@operation(
    "conv_transpose",
    Traits(
        accumulate_fp32=True,
        rows=Rows.TRANSPOSED_CONVOLUTION,
        result_shape="output_shape",
        multiplications=_transposed_multiplications,
        engine=M1,
        limits=(neural_engine.TRANSPOSED,),
        on_engine=neural_engine.transposed,
    ),
)
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """The gradient of `conv` with respect to its input; weights are [C_in, C_out / groups, *kernel].

    Without padding an axis gets full = (extent − 1) · stride + reach elements. Of these ``custom`` takes away the
    first pad[2i] and the last pad[2i + 1], and ``same`` leaves extent · stride: it takes away ⌊total / 2⌋ first and
    the rest of total = max(full − extent · stride, 0) last. Elements nothing reaches hold the bias alone.

    ``output_shape`` may ask for any extent that `conv`, with the same parameters, brings back to x's.
    """
    rank = spatial_rank(x)
    strides, dilations = each_positive("strides", strides, rank), each_positive("dilations", dilations, rank)
    full = [(n - 1) * s + reach for n, s, reach in zip(x.shape[2:], strides, _reaches(weight, dilations), strict=True)]
    leading = [x.shape[0], weight.shape[1] * groups]
    kept = _kept(full, list(x.shape[2:]), strides, pad_type, pad, output_shape, leading)
    check_result_size([*leading, *full], x.dtype)
    check_result_size([*leading, *(count for _, count in kept)], x.dtype)
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    transposed = _CONV_TRANSPOSE[rank]
    pads = [(-first, first + count - extent) for (first, count), extent in zip(kept, full, strict=True)]
    if all(before == after <= 0 for before, after in pads):
        return transposed(x, weight, bias, strides, [-before for before, _ in pads], 0, groups, dilations)
    missing = [(0, max(after, 0)) for _, after in pads]
    check_result_size([*leading, *(extent + after for extent, (_, after) in zip(full, missing, strict=True))], x.dtype)
    result = functional.pad(transposed(x, weight, None, strides, 0, 0, groups, dilations), for_torch(missing))
    for axis, (first, count) in enumerate(kept, 2):  # what is kept may begin beyond the end
        result = result.narrow(axis, first, count)
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


def _kept(
    full: list[int],
    extents: list[int],
    strides: list[int],
    pad_type: str,
    pad: list[int] | None,
    output_shape: list[int] | None,
    leading: list[int],
) -> list[tuple[int, int]]:
    """Which elements of the full result are kept: the first, and how many; they may go beyond its end."""
    if pad_type == "same":
        most = [extent * stride for extent, stride in zip(extents, strides, strict=True)]
        least = [extent - stride + 1 for extent, stride in zip(most, strides, strict=True)]
        counts = most
    elif pad_type in ("valid", "custom"):
        pads = paddings(pad_type, pad, extents, full, strides)
        least = [extent - before - after for extent, (before, after) in zip(full, pads, strict=True)]
        most = [extent + stride - 1 for extent, stride in zip(least, strides, strict=True)]
        counts = least
    else:
        raise OperationError("unknown pad_type of conv_transpose", expected="valid, same or custom", received=pad_type)
    if output_shape is not None:
        counts = output_shape[2:]
        if len(counts) != len(full) or output_shape[:2] != leading or not _between(least, counts, most):
            raise OperationError(
                "output_shape is out of range",
                expected=f"between {[*leading, *least]} and {[*leading, *most]}",
                received=output_shape,
            )
    if pad_type == "same":
        return [(max(extent - count, 0) // 2, count) for extent, count in zip(full, counts, strict=True)]
    return [(before, count) for (before, _), count in zip(pads, counts, strict=True)]


def _between(least: list[int], counts: list[int], most: list[int]) -> bool:
    return all(low <= count <= high for low, count, high in zip(least, counts, most, strict=True))


# ---------------------------------------------------------------------------------------- windows


def spatial_rank(x: Tensor) -> int:
    """How many axes follow batch and channel."""
    if not 3 <= x.ndim <= 5:
        raise OperationError(
            "x has too many or too few axes",
            expected="1 to 3 after batch and channel",
            received=f"shape {tuple(x.shape)}",
        )
    return x.ndim - 2


def each_positive(what: str, values: list[int] | None, rank: int) -> list[int]:
    """A positive number for each spatial axis; 1 by default."""
    values = [1] * rank if values is None else values
    if len(values) != rank or any(value < 1 for value in values):
        raise OperationError(f"{what} are malformed", expected=f"{rank} positive numbers", received=values)
    return values


def _reaches(weight: Tensor, dilations: list[int]) -> list[int]:
    """Extents of the dilated kernel."""
    if weight.ndim != len(dilations) + 2:
        raise OperationError("weight has another rank than x", received=f"shape {tuple(weight.shape)}")
    return [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]


def paddings(
    pad_type: str, pad: list[int] | None, extents: Sequence[int], reaches: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """How many elements are added before and after each spatial axis.

    ``valid``: none. ``custom``: pad[2i] and pad[2i + 1]. ``same``: as many as ⌈extent / stride⌉ windows need, half
    of them before; an odd one is added after, with ``same_lower`` before. ``pad`` counts with ``custom`` alone.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(extents)
    if pad_type == "custom":
        pad = [0, 0] * len(extents) if pad is None else pad
        if len(pad) != 2 * len(extents) or any(amount < 0 for amount in pad):
            raise OperationError(
                "pad has the wrong length", expected=f"{len(extents)} pairs of before and after", received=pad
            )
        return list(zip(pad[::2], pad[1::2], strict=True))
    if pad_type not in ("same", "same_lower"):
        raise OperationError("unknown pad_type", expected="valid, custom, same or same_lower", received=pad_type)
    totals = [
        max((-(-extent // stride) - 1) * stride + reach - extent, 0)
        for extent, reach, stride in zip(extents, reaches, strides, strict=True)
    ]
    halves = [(total // 2, total - total // 2) for total in totals]
    return halves if pad_type == "same" else [(after, before) for before, after in halves]


def for_torch(pads: Sequence[tuple[int, int]]) -> list[int]:
    """Pairs in the order of torch's ``pad``: the last axis first."""
    return [amount for pair in reversed(pads) for amount in pair]
