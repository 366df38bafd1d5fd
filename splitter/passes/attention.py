"""Attention that a model writes out: ``softmax(q kᵀ · c + mask) v`` by two products, as one operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..graph.program import Program
from .rewriting import Call, Operator, rewrite_nodes

_aten = torch.ops.aten
_PRODUCTS = frozenset({_aten.matmul.default, _aten.bmm.default})
_SAME = frozenset({_aten.clone.default, _aten.dropout.default, _aten.contiguous.default})


def gathered(program: Program) -> Program:
    """A copy with ``scaled_dot_product_attention`` for each such pair of products."""
    return rewrite_nodes(program, _attention).program


def _attention(call: Call, product: Operator) -> fx.Node | None:
    if product.target not in _PRODUCTS:
        return None
    shares, values = product.args
    softmax = _behind(shares)
    if softmax.target is not _aten.softmax.int or softmax.args[1] not in (-1, _rank(softmax) - 1):
        return None
    scores, mask = _behind(softmax.args[0]), None
    if scores.target is _aten.add.Tensor and isinstance(scores.args[1], fx.Node) and not scores.kwargs:
        scores, mask = _behind(scores.args[0]), scores.args[1]
    scale = 1.0
    if scores.target in (_aten.mul.Tensor, _aten.div.Tensor) and not isinstance(factor := scores.args[1], fx.Node):
        scale = factor if scores.target is _aten.mul.Tensor else 1 / factor
        scores = _behind(scores.args[0])
    if scores.target not in _PRODUCTS or _rank(scores) < 3 or _rank(scores) != _rank(product):
        return None
    query, turned = scores.args
    if not (_rank(query) == _rank(turned) == _rank(values) == _rank(scores)):
        return None
    key = call(_aten.transpose.int, turned, -2, -1)
    return call(_aten.scaled_dot_product_attention.default, query, key, values, mask, 0.0, False, scale=scale)


def _behind(node: Any) -> Operator:
    """What a value is the same as."""
    while node.target in _SAME:
        node = node.args[0]
    return node


def _rank(node: Operator) -> int:
    return len(node.meta["type"].shape)
