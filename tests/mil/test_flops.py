"""Against torch's own counter."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from splitter import mil
from splitter.mil.graph import graph_of

from .harness import f16, f32, mb, package


def counted(function, *shapes):
    with FlopCounterMode(display=False) as counter:
        function(*(torch.zeros(shape) for shape in shapes))
    return counter.get_total_flops()


def total(build, inputs, directory, target="iOS17"):
    return sum(node.flops for node in graph_of(mil.load(package(build, inputs, directory, target)).function).nodes)


CASES = {
    "conv": (
        lambda x: mb.conv(x=x, weight=f32(6, 2, 3, 5), strides=[2, 1], groups=2),
        {"x": f32(2, 4, 11, 12)},
        counted(lambda x, w: functional.conv2d(x, w, stride=(2, 1), groups=2), (2, 4, 11, 12), (6, 2, 3, 5)),
    ),
    "conv of one dimension, dilated": (
        lambda x: mb.conv(x=x, weight=f32(6, 4, 3), dilations=[2], pad_type="same"),
        {"x": f32(1, 4, 20)},
        counted(lambda x, w: functional.conv1d(x, w, dilation=2, padding=2), (1, 4, 20), (6, 4, 3)),
    ),
    "transposed": (
        lambda x: mb.conv_transpose(x=x, weight=f32(4, 3, 8), strides=[4], groups=2),
        {"x": f32(2, 4, 10)},
        counted(lambda x, w: functional.conv_transpose1d(x, w, stride=4, groups=2), (2, 4, 10), (4, 3, 8)),
    ),
    "linear": (
        lambda x: mb.linear(x=x, weight=f32(7, 5)),
        {"x": f32(2, 3, 5)},
        counted(functional.linear, (2, 3, 5), (7, 5)),
    ),
    "matmul": (
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=True),
        {"x": f32(3, 5, 2), "y": f32(3, 5, 7)},
        counted(lambda x, y: x.mT @ y, (3, 5, 2), (3, 5, 7)),
    ),
    "einsum": (
        lambda x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
        {"x": f32(2, 3, 4, 5), "y": f32(2, 5, 4, 6)},
        counted(lambda x, y: torch.einsum("nchw,nwhu->nchu", x, y), (2, 3, 4, 5), (2, 5, 4, 6)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_count(name, tmp_path):
    build, inputs, expected = CASES[name]
    assert total(build, inputs, tmp_path) == expected > 0


def test_attention(tmp_path):
    def build(query, key, value):
        return mb.scaled_dot_product_attention(query=query, key=key, value=value)

    query, key, value = (2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)
    inputs = {"query": f16(*query), "key": f16(*key), "value": f16(*value)}
    expected = counted(lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v, query, key, value)
    assert total(build, inputs, tmp_path, "iOS18") == expected


def test_the_rest_counts_nothing(tmp_path):
    def build(x):
        return mb.linear_activation(x=mb.add(x=mb.exp(x=x), y=np.float32(1)), alpha=2.0, beta=1.0)

    assert total(build, {"x": f32(4, 4)}, tmp_path) == 0
