"""Folded forms of operators, each exact or refused: see `fold_long_axes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from .folding import Folded, Folding, Rule, UnfoldableError, is_trimmed, length_of, only_trim, trimmed_to
from .rewriting import as_images

_aten = torch.ops.aten
_OF_BOTH = frozenset({_aten.add.Tensor, _aten.sub.Tensor})  # 0 where all operands are
_OF_EITHER = frozenset({_aten.mul.Tensor})  # 0 where one operand is
_OF_ONE = frozenset(
    {_aten.gelu.default, _aten.glu.default, _aten.abs.default, _aten.div.Tensor}
)  # 0 where the first is
_OF_COLLAPSED = frozenset(
    {_aten.sqrt.default, _aten.maximum.default, _aten.clamp.default, _aten.log2.default, _aten.ceil.default,
     _aten.exp2.default}
)  # fmt: skip
ELEMENTWISE = _OF_BOTH | _OF_EITHER | _OF_ONE | _OF_COLLAPSED


# ------------------------------------------------------------------------------------------- rules


def _elementwise(folding: Folding, node: fx.Node) -> Folded:
    operands = [arg for arg in _given(node) if isinstance(arg, fx.Node)]
    wide = [folding.folded[operand] for operand in operands if folding.is_wide(operand)]
    if node.target is _aten.glu.default and _axis(node, 1, -1) == _rank(node) - 1:
        raise UnfoldableError("it pairs up the folded axis with itself")
    if wide and (node.target in _OF_COLLAPSED or len({(value.length, value.columns) for value in wide}) > 1):
        raise UnfoldableError("its operands are folded differently, or are not yet one number a row")
    if node.target is _aten.div.Tensor and folding.is_wide(_given(node)[1]):  # 0 / 0 behind the length
        raise UnfoldableError("its divisor is 0 behind the end")
    args = [_operand(folding, arg, node) if isinstance(arg, fx.Node) else arg for arg in _given(node)]
    result = folding.call(node.target, *args, **node.kwargs)
    if not wide:
        return Folded(result, 1, 1, 1, clean=True)
    if node.target in _OF_BOTH:
        clean = len(wide) == len(node.args) and all(value.clean for value in wide)
    else:
        clean = any(value.clean for value in wide)
    return Folded(result, wide[0].length, wide[0].rows, wide[0].columns, clean)


def _operand(folding: Folding, arg: fx.Node, node: fx.Node) -> fx.Node:
    """An operand with one axis more, to broadcast against a folded one."""
    if arg in folding.folded:
        return folding.folded[arg].node
    shape = arg.meta["type"].shape
    if not shape:
        return folding.plain_value(arg)
    if shape[-1] == 1:
        return folding.call(_aten.view.default, folding.plain_value(arg), [*shape, 1])
    raise UnfoldableError("an operand varies along the folded axis")


def _convolution(folding: Folding, node: fx.Node) -> Folded:
    x, weight, bias, (stride,), (padding,), (dilation,), groups = _arguments(node, None, [1], [0], [1], 1)
    kernel = weight.meta["type"].shape[-1]
    value, length = folding.value(x), length_of(node)
    right = (kernel - 1) * dilation - padding - stride + 1
    if value.columns % stride or right <= -stride or length > value.rows * value.columns // stride:
        raise UnfoldableError("its stride does not divide the rows, or its output is longer than the rows hold")
    if kernel > 1:
        value = folding.clean(x)
    rows = folding.beside(value, padding, max(right, 0))
    arguments = [rows, as_images(folding.call, folding.plain_value(weight)), bias and folding.plain_value(bias)]
    result = folding.call(_aten.conv2d.default, *arguments, [1, stride], [0, 0], [1, dilation], groups)
    made = Folded(result, length, value.rows, value.columns // stride, clean=False)
    return folding.masked(made) if folding.is_long(node) else made


def _transposed_convolution(folding: Folding, node: fx.Node) -> Folded:
    """Output u of the whole is Σ x[i] w[u − stride · i]; output t of the trimmed one is u = t + start."""
    x, weight, bias, (stride,), (padding,), (extra,), groups, (dilation,) = _arguments(
        node, None, [1], [0], [0], 1, [1]
    )
    kernel = weight.meta["type"].shape[-1]
    trim = only_trim(node)
    start, length = trimmed_to(trim) if trim is not None else (0, length_of(node))
    start += padding
    value = folding.value(x)
    if dilation != 1 or extra or length > value.rows * value.columns * stride:
        raise UnfoldableError("it is dilated, pads its output, or gives more than the rows hold")
    value = folding.clean(x)
    left, right = max(0, (kernel - 1 - start) // stride), max(0, (start - 1) // stride + 1)
    rows = folding.beside(value, left, right)
    columns = value.columns * stride
    before = stride * left + start
    behind = (value.columns + left + right - 1) * stride + kernel - before - columns
    if behind < 0:
        raise UnfoldableError("it leaves samples out between its steps")
    shared = min(before, behind)
    arguments = [rows, as_images(folding.call, folding.plain_value(weight)), bias and folding.plain_value(bias)]
    result = folding.call(_aten.conv_transpose2d.input, *arguments, [1, stride], [0, shared], [0, 0], groups)
    if before != behind:
        first = before - shared
        result = folding.call(_aten.slice.Tensor, result, 3, first, first + columns)
    made = Folded(result, length, value.rows, columns, clean=False)
    return folding.masked(made) if length > 1 else made


def _padded(folding: Folding, node: fx.Node) -> Folded:
    """Zeros behind the end are there already."""
    x, amounts, *how = _given(node)
    value = folding.clean(x)
    if list(amounts[:1]) != [0] or len(amounts) != 2 or how not in ([], ["constant"], ["constant", None], [0], [0.0]):
        raise UnfoldableError("it pads with something else than zeros behind the end")
    length = value.length + amounts[1]
    if not value.length <= length <= value.rows * value.columns:
        raise UnfoldableError("it cuts off more than it pads, or outgrows the rows")
    return Folded(value.node, length, value.rows, value.columns, clean=True)


def _sliced(folding: Folding, node: fx.Node) -> Folded:
    """Only a shorter end: another beginning would move every sample, but for a transposed convolution's."""
    x = _given(node)[0]
    if is_trimmed(x):
        return _transposed_convolution(folding, x)
    start, length = trimmed_to(node)
    if start != 0 or length_of(x) == length:
        raise UnfoldableError("it begins elsewhere, or changes nothing")
    value = folding.value(x)
    return Folded(value.node, length, value.rows, value.columns, clean=False)


def _viewed(folding: Folding, node: fx.Node) -> Folded:
    x, shape = _given(node)[0], node.meta["type"].shape
    value = folding.value(x)
    if shape[-1] != value.length:
        raise UnfoldableError("it reshapes the folded axis")
    viewed = folding.call(_aten.view.default, value.node, [*shape[:-1], value.rows, value.columns])
    return Folded(viewed, value.length, value.rows, value.columns, value.clean)


def _reduced(folding: Folding, node: fx.Node) -> Folded:
    """Over the long axis and perhaps others, their extents kept as 1."""
    x, axes, keepdim = (*_given(node), *[False] * 2)[:3]
    rank = len(x.meta["type"].shape)
    chosen = sorted(axis % rank for axis in axes)
    largest = node.target is _aten.amax.default
    if not keepdim or chosen[-1:] != [rank - 1] or len(node.args) > 3 or node.kwargs:
        raise UnfoldableError("its result drops the axis, or it is not over the folded one")
    if largest and x.target is not _aten.abs.default:  # a zero behind the end could be the largest
        raise UnfoldableError("zeros behind the end could be its maximum")
    value = folding.clean(x)
    result = folding.call(node.target, value.node, [*chosen, rank], True)
    if not largest and value.rows * value.columns != value.length:
        result = folding.call(_aten.mul.Tensor, result, value.rows * value.columns / value.length)
    return Folded(result, 1, 1, 1, clean=True)


RULES: Mapping[Any, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    _aten.conv1d.default: _convolution,
    _aten.conv_transpose1d.default: _transposed_convolution,
    _aten.pad.default: _padded,
    _aten.constant_pad_nd.default: _padded,
    _aten.slice.Tensor: _sliced,
    _aten.view.default: _viewed,
    _aten.reshape.default: _viewed,
    _aten.mean.dim: _reduced,
    _aten.amax.default: _reduced,
}


def _given(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _rank(node: fx.Node) -> int:
    return len(node.meta["type"].shape)


def _axis(node: fx.Node, position: int, default: int) -> int:
    given = _given(node)
    return int(given[position] if len(given) > position else default) % _rank(node)


def _arguments(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """Arguments of a convolution, those left out filled in; the first two are always there."""
    if node.kwargs:
        raise UnfoldableError("its arguments are given by name")
    return (*_given(node), *defaults[len(node.args) - 2 :])
