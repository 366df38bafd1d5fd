"""Matrix products and attention."""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import OperationError
from .. import accumulation, bounds, neural_engine
from . import check_result_size, operation
from .traits import M1, Engine, Mask, Rows, Traits

if TYPE_CHECKING:
    from ..graph import Node


def _linear_multiplications(node: Node) -> int:
    return node.outputs[0].elements * math.prod(node.extents("x")[-1:])


def _product_multiplications(node: Node) -> int:
    x = node.extents("x")
    across = -2 if any(node.numbers("transpose_x")) else -1
    return node.outputs[0].elements * (x[across] if len(x) >= -across else x[0] if x else 1)


def _einsum_multiplications(node: Node) -> int:
    """Product of all letters' extents."""
    terms = node.text("equation").replace(" ", "").split("->")[0].split(",")
    letters: dict[str, int] = {}
    for term, value in zip(terms, node.inputs["values"], strict=True):
        letters.update(zip(term, value.extents, strict=False))
    return math.prod(letters.values())


def _attention_multiplications(node: Node) -> int:
    """Queries × keys × (width of the queries + width of the values), for each head."""
    query, key, value = map(node.extents, ("query", "key", "value"))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@operation(
    "linear",
    Traits(
        accumulate_fp32=True,
        half_sums=accumulation.linear,
        multiplications=_linear_multiplications,
        engine=Engine(1, max_rank=4),
        limits=(neural_engine.SUMS,),
        on_engine=neural_engine.saturated,
        bounds=bounds.weighted,
    ),
)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias."""
    check_result_size([*x.shape[:-1], *weight.shape[:-1]], x.dtype)
    if bias is None:
        return functional.linear(*_alike(x, weight))
    return functional.linear(*_alike(x, weight, bias))


@operation(
    "matmul",
    Traits(
        accumulate_fp32=True,
        half_sums=accumulation.matmul,
        rows=Rows.PRODUCT,
        multiplications=_product_multiplications,
        engine=Engine(1, max_rank=4),
        limits=(neural_engine.SUMS,),
        on_engine=neural_engine.saturated,
    ),
)
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """The product of the last two axes, the others broadcast; a vector is a row on the left, a column on the right.

    A transposition swaps the last two axes, and leaves a vector as it is.
    """
    x, y = _alike(x, y)
    x = x.mT if transpose_x and x.ndim > 1 else x
    y = y.mT if transpose_y and y.ndim > 1 else y
    if x.ndim > 1 and y.ndim > 1:
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        for extents in (x.shape[-2:], y.shape[-2:], (x.shape[-2], y.shape[-1])):  # torch may repeat the operands too
            check_result_size([*batch, *extents], x.dtype)
    return torch.matmul(x, y)


@operation(
    "einsum",
    Traits(
        accumulate_fp32=True,
        multiplications=_einsum_multiplications,
        engine=M1,
        limits=(neural_engine.SUMS,),
        on_engine=neural_engine.saturated,
    ),
)
def einsum(values: list[Tensor], equation: str) -> Tensor:
    """``nchw,nwhu->nchu`` or ``chw,whu->chu``, in any letters: axes −1 and −3 multiplied, others broadcast."""
    if len(values) != 2:
        raise OperationError("einsum has too many or too few operands", expected=2, received=len(values))
    letters = list(dict.fromkeys(equation.replace(",", "").replace("->", "")))
    plain = equation.translate({ord(letter): ord("a") + index for index, letter in enumerate(letters)})
    if plain not in ("abcd,adce->abce", "abc,cbd->abd"):
        raise OperationError(
            "unknown equation of einsum", expected="one like nchw,nwhu->nchu or chw,whu->chu", received=equation
        )
    x, y = values
    rank = len(plain.split(",")[0])
    if (x.ndim, y.ndim) != (rank, rank) or x.shape[-1] != y.shape[-3]:
        raise OperationError(f"the operands do not fit {equation}", received=f"{tuple(x.shape)} and {tuple(y.shape)}")
    # As a product of matrices, which broadcasts the other axes.
    return matmul(x.transpose(-2, -3), y.transpose(-2, -3)).transpose(-2, -3)


@operation(
    "scaled_dot_product_attention",
    Traits(accumulate_fp32=True, multiplications=_attention_multiplications, mask=Mask.ENDS, engine=M1),
    opset="CoreML8",
)
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query · keyᵀ / √E + mask) · value, over the last axis.

    Where a boolean mask is false the score is −∞, so what attends to nothing is NaN. (torch's own gives 0.)
    """
    if query.ndim < 3:
        raise OperationError("query has too few axes", expected="at least 3", received=f"shape {tuple(query.shape)}")
    check_result_size([*query.shape[:-1], key.shape[-2]], query.dtype)
    if attn_mask is None:
        return functional.scaled_dot_product_attention(query, key, value)
    mask = attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(query.dtype)
    mask = mask.reshape([1] * (query.ndim - mask.ndim) + list(mask.shape))
    result = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    hidden = ~mask if mask.dtype == torch.bool else mask == -math.inf
    return result.masked_fill_(hidden.all(-1, keepdim=True), math.nan)


def _alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In one type: since iOS17 a constant may have another than the rest."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return tuple(tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors)
