"""Write a convolution of one axis as one of two with a height of 1, the only form the Neural Engine knows.

Before::

    y: (b, o, n) = conv1d(x: (b, i, m), w: (o, i, k), bias, [s], [p], [d])

After::

    y = view(conv2d(view(x): (b, i, 1, m), view(w): (o, i, 1, k), bias, [1, s], [0, p], [1, d]), (b, o, n))

Transposed convolutions likewise. The same products are added up, in an order that is the kernel's choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .rewriting import Call, Operator, OperatorPass, as_images

_aten = torch.ops.aten
# The same for images, and what an axis of height 1 takes in the place of each argument behind the bias.
_IMAGES: dict[Any, tuple[Any, tuple[int | None, ...]]] = {
    _aten.conv1d.default: (_aten.conv2d.default, (1, 0, 1, None)),
    _aten.conv_transpose1d.default: (_aten.conv_transpose2d.input, (1, 0, 0, None, 1)),
}


@dataclass(frozen=True)
class Conv1dAsConv2d(OperatorPass):
    name = "conv1d-as-conv2d"
    max_abs = 1e-3

    def rewrite(self, call: Call, node: Operator) -> fx.Node | str | None:
        if node.target not in _IMAGES:
            return None
        return "its arguments are given by name" if node.kwargs else _as_image(call, node, *node.args)


def _as_image(
    call: Call, node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None, *how: Any
) -> fx.Node:
    target, heights = _IMAGES[node.target]
    wide = [along if height is None else [height, *along] for along, height in zip(how, heights, strict=False)]
    image = call(target, as_images(call, x), as_images(call, weight), bias, *wide)
    return call(_aten.view.default, image, list(node.meta["type"].shape))
