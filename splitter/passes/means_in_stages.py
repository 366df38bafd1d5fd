"""Take a mean of many values as a mean of means, each of at most 128.

A half-precision accumulator stops growing when its next term is below half its last digit: 2,048 ones, and nothing is
added any more. A branch over a waveform averages 16.5 million values.

Before::

    m: (b, g, 1, 1) = mean(x: (b, g, 96, 85995), [2, 3], keepdim)

After::

    p: (b, g, 96, 672, 128) = view(pad(x, 21)) ; q: (b, g, 96, 672) = mean(p, [4]) ; … ; m = mean(…) · 1.0002

Where an axis does not divide, zeros fill it up, and one factor at the end makes up for them. In exact arithmetic it
is the same mean; what moves is the order of summation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from .rewriting import Call, Operator, OperatorPass

_aten = torch.ops.aten
_MOST_AXES = 5  # that Core ML takes


@dataclass(frozen=True)
class MeansInStages(OperatorPass):
    """The pass; `most` values are averaged in one stage."""

    name = "means-in-stages"
    max_abs = 1e-3
    most: int = 128

    def rewrite(self, call: Call, node: Operator) -> fx.Node | str | None:
        if node.target is not _aten.mean.dim:
            return None
        if _is_of_layer_norm(node):
            return "it belongs to a layer norm, which Core ML Tools makes one operation of"
        axes = self._axes(*node.args, **node.kwargs)
        return axes if isinstance(axes, str) else self._staged(call, node, axes)

    def _axes(
        self, x: fx.Node, axes: list[int] | None, keepdim: bool = False, dtype: torch.dtype | None = None
    ) -> list[int] | str:
        """The axes of a mean over more values than one stage takes; else why it is left as it is."""
        shape = x.meta["type"].shape
        chosen = sorted(axis % len(shape) for axis in (axes or range(len(shape))))
        values = math.prod(shape[axis] for axis in chosen)
        if values <= self.most:
            return f"it is over {values} values, not above {self.most}"
        if dtype is not None or x.meta["type"].dtype != "float32":
            return "it is not float32 throughout"
        last = chosen[-1]
        crowded = len(shape) == _MOST_AXES and shape[last] > self.most and last - 1 not in chosen
        return f"its tensor has {_MOST_AXES} axes, and a stage needs one more" if crowded else chosen

    def _staged(self, call: Call, mean: fx.Node, axes: list[int]) -> fx.Node:
        """Axis by axis from the last, each in chunks until one chunk is left."""
        result: fx.Node = mean.args[0]  # type: ignore[assignment]
        filled = 1.0
        for axis in reversed(axes):
            while (extent := result.meta["type"].shape[axis]) > self.most:
                chunks = math.ceil(extent / self.most)
                length = math.ceil(extent / chunks)
                filled *= chunks * length / extent
                result = _chunked(call, _filled(call, result, axis, chunks * length), axis, chunks, length)
            result = call(_aten.mean.dim, result, [axis])
        if filled != 1.0:
            result = call(_aten.mul.Tensor, result, filled)
        wanted = mean.meta["type"].shape
        return result if result.meta["type"].shape == wanted else call(_aten.view.default, result, list(wanted))


def _is_of_layer_norm(mean: Operator) -> bool:
    """Whether it is mean(x) or mean(u²) in ``u / √(mean(u²) + eps)``, u = x − mean(x), over channels of an image."""
    if list(mean.args[1:]) != [[1], True] or len(mean.meta["type"].shape) != 4:
        return False
    (reader, *others) = mean.users
    if others:
        return False
    if reader.target is _aten.sub.Tensor:
        squares = [user for user in reader.users if user.args == (reader, reader)]
        return any(_is_of_layer_norm(user) for square in squares for user in square.users if user.target is mean.target)
    return reader.target is _aten.add.Tensor and [user.target for user in reader.users] == [_aten.rsqrt.default]


def _filled(call: Call, x: fx.Node, axis: int, extent: int) -> fx.Node:
    """Zeros behind an axis's end."""
    shape = x.meta["type"].shape
    if shape[axis] == extent:
        return x
    after = [0, 0] * (len(shape) - 1 - axis) + [0, extent - shape[axis]]
    return call(_aten.constant_pad_nd.default, x, after, 0.0)


def _chunked(call: Call, x: fx.Node, axis: int, chunks: int, length: int) -> fx.Node:
    """Means of an axis's chunks in its place; or its chunks in the axis before, where there is no room for one more."""
    before, behind = x.meta["type"].shape[:axis], x.meta["type"].shape[axis + 1 :]
    if len(before) + 1 + len(behind) == _MOST_AXES:
        return call(_aten.view.default, x, [*before[:-1], before[-1] * chunks, length, *behind])
    return call(_aten.mean.dim, call(_aten.view.default, x, [*before, chunks, length, *behind]), [axis + 1])
