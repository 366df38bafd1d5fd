"""Convolutions, against loops over every product, SciPy, and torch's gradients."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import signal

from splitter.errors import OperationError
from splitter.mil.ops import find

from .harness import mb, run


def function(name, opset="CoreML7"):
    return find(name, opset).function


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def same(extents, kernel, strides, dilations, *, lower=False):
    """Padding that gives ⌈extent / stride⌉ elements."""
    pairs = []
    for extent, size, stride, dilation in zip(extents, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(extent / stride) - 1) * stride + (size - 1) * dilation + 1 - extent)
        pair = (total // 2, total - total // 2)
        pairs.append(pair[::-1] if lower else pair)
    return pairs


def convolved(x, weight, bias, strides, pads, dilations, groups):
    """Every output element, one dot product after the other."""
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]
    counts = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, strides, strict=True)]
    out = np.zeros((x.shape[0], weight.shape[0], *counts))
    share_in, share_out = weight.shape[1], weight.shape[0] // groups
    for place in itertools.product(*map(range, out.shape)):
        batch, channel, *position = place
        first = channel // share_out * share_in
        window = tuple(
            slice(p * s, p * s + r, d) for p, s, r, d in zip(position, strides, reach, dilations, strict=True)
        )
        out[place] = (x[(batch, slice(first, first + share_in), *window)] * weight[channel]).sum()
    return out if bias is None else out + bias.reshape(-1, *[1] * len(counts))


def scattered(x, weight, bias, strides, dilations, groups, first, counts):
    """Every input element times the kernel, added where it belongs; ``first`` elements are cut off."""
    share_in, share_out = x.shape[1] // groups, weight.shape[1]
    out = np.zeros((x.shape[0], share_out * groups, *counts))
    for place in itertools.product(*map(range, x.shape)):
        batch, channel, *position = place
        group = channel // share_in
        for offset in itertools.product(*map(range, weight.shape[2:])):
            at = tuple(
                p * s + o * d - f for p, s, o, d, f in zip(position, strides, offset, dilations, first, strict=True)
            )
            if all(0 <= a < n for a, n in zip(at, counts, strict=True)):
                out[(batch, slice(group * share_out, (group + 1) * share_out), *at)] += (
                    x[place] * weight[(channel, slice(None), *offset)]
                )
    return out if bias is None else out + bias.reshape(-1, *[1] * len(counts))


# -------------------------------------------------------------------------------------------- conv

CONVS = [
    # x, weight, strides, dilations, groups, padding
    ((1, 2, 9), (3, 2, 3), [1], [1], 1, "valid"),
    ((2, 4, 9), (6, 2, 2), [2], [3], 2, [2, 0]),
    ((1, 3, 7), (3, 1, 4), [1], [1], 3, "same"),
    ((1, 1, 8), (1, 1, 4), [3], [1], 1, "same"),
    ((1, 1, 9), (1, 1, 4), [2], [1], 1, "same_lower"),
    ((1, 2, 5), (2, 2, 1), [3], [1], 1, "same"),  # the window is shorter than the stride
    ((2, 2, 6, 5), (4, 2, 3, 2), [1, 2], [1, 1], 1, "valid"),
    ((1, 2, 7, 6), (4, 1, 2, 3), [2, 1], [2, 1], 2, [1, 1, 2, 2]),
    ((1, 2, 6, 7), (2, 2, 3, 3), [1, 1], [1, 1], 1, [0, 1, 2, 3]),
    ((1, 2, 6, 7), (2, 2, 2, 4), [2, 3], [1, 2], 1, "same"),
    ((1, 2, 6, 7), (2, 2, 2, 4), [1, 1], [1, 1], 1, "same_lower"),
    ((1, 2, 4, 5, 3), (2, 2, 2, 3, 1), [1, 2, 1], [1, 1, 1], 1, "valid"),
    ((1, 2, 4, 5, 3), (4, 1, 2, 2, 2), [2, 1, 1], [1, 2, 1], 2, [0, 1, 1, 1, 2, 0]),
    ((1, 1, 4, 5, 3), (1, 1, 2, 2, 2), [1, 2, 2], [1, 1, 1], 1, "same"),
]


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_conv(case, biased):
    shape, kernel, strides, dilations, groups, padding = case
    x, weight, bias = random(*shape), random(*kernel, seed=1), random(kernel[0], seed=2) if biased else None
    options = {"strides": strides, "dilations": dilations, "groups": groups}
    if isinstance(padding, list):
        pads = [(before, after) for before, after in zip(padding[::2], padding[1::2], strict=True)]
        options |= {"pad_type": "custom", "pad": padding}
    elif padding == "valid":
        pads = [(0, 0)] * (len(shape) - 2)
    else:
        pads = same(shape[2:], kernel[2:], strides, dilations, lower=padding == "same_lower")
        options |= {"pad_type": padding}
    if biased:
        options |= {"bias": bias}
    (got,) = run(lambda x: mb.conv(x=x, weight=weight, **options), {"x": x}, "iOS16" if biased else "iOS17")
    expected = convolved(x, weight, bias, strides, pads, dilations, groups)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_conv_by_scipy():
    x, weight = random(1, 1, 40), random(1, 1, 7)
    (got,) = run(lambda x: mb.conv(x=x, weight=weight), {"x": x}, "iOS15")
    np.testing.assert_allclose(got[0, 0], signal.correlate(x[0, 0], weight[0, 0], "valid"), atol=1e-5)


def test_weights_that_the_program_computes():
    x, weight, bias = random(1, 2, 6), random(3, 2, 2, seed=1), random(3, seed=2)

    def build(x, w, b):
        return mb.conv(x=x, weight=w, bias=b), mb.conv_transpose(x=x, weight=mb.transpose(x=w, perm=[1, 0, 2]))

    conv, transposed = run(build, {"x": x, "w": weight, "b": bias}, "iOS17")
    np.testing.assert_allclose(conv, convolved(x, weight, bias, [1], [(0, 0)], [1], 1), atol=1e-5)
    expected = scattered(x, weight.transpose(1, 0, 2), None, [1], [1], 1, [0], [7])
    np.testing.assert_allclose(transposed, expected, atol=1e-5)


def test_half_precision_is_rounded_once():
    x, weight, bias = (one.astype(np.float16) for one in (random(1, 8, 5), random(2, 8, 3, seed=1), random(2, seed=2)))
    (got,) = run(lambda x: mb.conv(x=x, weight=weight, bias=bias), {"x": x}, "iOS17")
    exact = convolved(x, weight.astype(np.float64), bias.astype(np.float64), [1], [(0, 0)], [1], 1)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, exact.astype(np.float16), rtol=2**-10.5, atol=2e-6)


def test_weights_of_another_type():
    x, weight = random(1, 2, 6).astype(np.float16), random(3, 2, 2)
    (got,) = run(lambda x: mb.conv(x=x, weight=weight), {"x": x}, "iOS17")
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, convolved(x, weight, None, [1], [(0, 0)], [1], 1), rtol=1e-3, atol=1e-3)


def test_everything_but_weights_may_be_left_out():
    x, weight = random(1, 2, 4, 5), random(3, 2, 2, 2, seed=1)
    expected = convolved(x, weight, None, [1, 1], [(0, 0)] * 2, [1, 1], 1)
    np.testing.assert_allclose(function("conv")(torch.tensor(x), torch.tensor(weight)), expected, atol=1e-5)
    # `pad` counts with custom padding alone, which by default is none
    for options in ({"pad": [9, 9, 9, 9]}, {"pad_type": "custom"}):
        got = function("conv")(torch.tensor(x), torch.tensor(weight), **options)
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": [0]}, "strides are malformed: expected 1 positive"),
        ({"strides": [-1]}, "strides are malformed: expected 1 positive"),
        ({"strides": [1, 1]}, "strides are malformed: expected 1 positive"),
        ({"dilations": [0]}, "dilations are malformed: expected 1 positive"),
        ({"pad_type": "custom", "pad": [1]}, "pairs of before and after"),
        ({"pad_type": "custom", "pad": [-1, 0]}, "pairs of before and after"),
        ({"pad_type": "reflect"}, "unknown pad_type: expected"),
        ({"pad_type": "custom", "pad": [2**40, 2**40]}, "too much memory|negative extent"),
        ({"pad_type": "custom", "pad": [2**40, 2**39], "strides": [2**31]}, "too much memory|negative extent"),
        ({"dilations": [100]}, "too much memory|negative extent"),  # a window longer than the input
    ],
)
def test_conv_refuses(options, message):
    with pytest.raises(OperationError, match=message):
        function("conv")(torch.zeros(1, 2, 8), torch.zeros(2, 2, 3), **options)


@pytest.mark.parametrize("groups", [0, -1, 3])
def test_conv_refuses_groups(groups):
    with pytest.raises(RuntimeError, match=r"non-positive groups|groups=3"):
        function("conv")(torch.zeros(1, 2, 8), torch.zeros(2, 2, 3), groups=groups)


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
@pytest.mark.parametrize(
    ("x", "weight"), [((2, 8), (2, 3)), ((1, 1, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1)), ((1, 2, 8), (2, 2, 3, 1))]
)
def test_ranks(name, x, weight):
    with pytest.raises(OperationError, match=r"axes: expected 1 to 3 after batch|another rank than x"):
        function(name)(torch.zeros(x), torch.zeros(weight))


# --------------------------------------------------------------------------------------- quantized


@pytest.mark.parametrize("channels", [1, 3])
def test_quantized_weights(channels):
    x = random(1, 2, 6)
    weight = np.random.default_rng(1).integers(0, 16, (3, 2, 2)).astype(np.uint8)
    scale = np.array([0.5, 0.25, 2][:channels], np.float32)
    offset = np.array([-3, 0.5, 1][:channels], np.float32)

    def build(x):
        return mb.conv_quantized(
            x=x,
            weight=weight,
            bias=np.array([1, 2, 3], np.uint8),
            quantization_type="linear",
            nbits=4,
            quant_scale=scale,
            quant_bias=offset,
            pad_type="same",
        )

    (got,) = run(build, {"x": x})
    full = weight * scale.reshape(-1, 1, 1) + offset.reshape(-1, 1, 1)
    np.testing.assert_allclose(got, convolved(x, full, np.arange(1, 4.0), [1], [(0, 1)], [1], 1), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_type": "lut"}, "does not take this quantization of weights: expected linear"),
        ({"nbits": 9}, "1 to 8 bits"),
        ({"nbits": 0}, "1 to 8 bits"),
        ({"nbits": 3}, "1 to 8 bits"),  # a weight of 8
        ({"quant_scale": torch.ones(3)}, "one for each output channel"),
    ],
)
def test_quantized_weights_refused(change, message):
    weight = torch.full((2, 1, 1), 8, dtype=torch.uint8)
    options = {"quantization_type": "linear", "quant_scale": torch.ones(1), "quant_bias": torch.zeros(1), "nbits": 4}
    assert function("conv_quantized")(torch.ones(1, 1, 1), weight, **options).flatten().tolist() == [8, 8]
    with pytest.raises(OperationError, match=message):
        function("conv_quantized")(torch.ones(1, 1, 1), weight, **options | change)


# -------------------------------------------------------------------------------------- transposed

TRANSPOSED = [
    # x, weight, strides, dilations, groups, padding, output's spatial shape, first element kept
    ((1, 2, 5), (2, 3, 3), [1], [1], 1, "valid", [7], [0]),
    ((2, 4, 5), (4, 2, 3), [2], [2], 2, "valid", [13], [0]),
    ((1, 2, 5), (2, 1, 8), [4], [1], 1, [2, 2], [20], [2]),  # HT Demucs's own
    ((1, 2, 5), (2, 1, 4), [2], [1], 1, [0, 3], [9], [0]),
    ((1, 2, 5), (2, 1, 4), [2], [1], 1, [3, 1], [8], [3]),
    ((1, 2, 5), (2, 1, 3), [2], [1], 1, "same", [10], [0]),  # one element too many: the last
    ((1, 2, 5), (2, 1, 6), [3], [1], 1, "same", [15], [1]),  # three too many: one and two
    ((1, 2, 5), (2, 1, 4), [2], [1], 1, "same", [10], [1]),
    ((1, 2, 5), (2, 1, 2), [4], [1], 1, "same", [20], [0]),  # the kernel is shorter than the stride
    ((1, 2, 3, 4), (2, 2, 2, 3), [1, 2], [2, 1], 1, "valid", [5, 9], [0, 0]),
    ((1, 2, 3, 4), (2, 2, 3, 3), [2, 2], [1, 1], 2, [1, 1, 0, 1], [5, 8], [1, 0]),
    ((1, 2, 3, 4), (2, 2, 3, 5), [2, 1], [1, 1], 1, "same", [6, 4], [0, 2]),
    ((1, 2, 2, 3, 2), (2, 1, 2, 2, 3), [2, 1, 2], [1, 1, 1], 1, "valid", [4, 4, 5], [0, 0, 0]),
    ((1, 2, 2, 3, 2), (2, 1, 2, 2, 3), [2, 1, 2], [1, 1, 1], 2, [0, 1, 1, 0, 1, 1], [3, 3, 3], [0, 1, 1]),
    ((1, 1, 2, 3, 2), (1, 1, 3, 3, 3), [2, 2, 1], [1, 1, 1], 1, "same", [4, 6, 2], [0, 0, 1]),
]


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_conv_transpose(case, biased):
    shape, kernel, strides, dilations, groups, padding, counts, first = case
    channels = kernel[1] * groups
    x, weight, bias = random(*shape), random(*kernel, seed=1), random(channels, seed=2) if biased else None
    options = {"strides": strides, "dilations": dilations, "groups": groups}
    options |= {"pad_type": "custom", "pad": padding} if isinstance(padding, list) else {"pad_type": padding}
    if biased:
        options |= {"bias": bias, "output_shape": [shape[0], channels, *counts]}
    (got,) = run(lambda x: mb.conv_transpose(x=x, weight=weight, **options), {"x": x}, "iOS15" if biased else "iOS17")
    expected = scattered(x, weight, bias, strides, dilations, groups, first, counts)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("padding", "count", "first"),
    [
        ("valid", 13, 0),
        ("valid", 15, 0),
        ([1, 2], 10, 1),
        ([1, 2], 12, 1),
        ("same", 12, 0),
        ("same", 11, 1),
        ("same", 10, 1),
    ],
)
def test_output_shape_asks_for_more_or_less(padding, count, first):
    x, weight, bias = random(1, 1, 4), random(1, 2, 4, seed=1), random(2, seed=2)
    options = {"pad_type": "custom", "pad": padding} if isinstance(padding, list) else {"pad_type": padding}
    options |= {"output_shape": [1, 2, count], "strides": [3]}
    (got,) = run(lambda x: mb.conv_transpose(x=x, weight=weight, bias=bias, **options), {"x": x})
    np.testing.assert_allclose(got, scattered(x, weight, bias, [3], [1], 1, [first], [count]), atol=1e-5)


def test_what_is_kept_may_begin_beyond_the_end():
    x, weight = torch.ones(1, 2, 1), torch.ones(2, 3, 1)
    options = {"strides": [3], "pad_type": "custom", "output_shape": [1, 3, 1]}
    got = function("conv_transpose")(x, weight, torch.tensor([1.0, 2, 3]), pad=[2, 0], **options)
    assert got.flatten().tolist() == [1, 2, 3]
    with pytest.raises(OperationError, match="too much memory|negative extent"):
        function("conv_transpose")(x, weight, pad=[2**40, 0], **options | {"strides": [2**41]})


@settings(deadline=None, max_examples=80)
@given(
    extent=st.integers(1, 8),
    size=st.integers(1, 5),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    mode=st.sampled_from(["valid", "same", "custom"]),
)
def test_conv_transpose_is_the_gradient_of_conv(extent, size, stride, dilation, pads, mode):
    """⟨conv(y), x⟩ has the gradient conv_transpose(x) for y, whatever the extent of y."""
    weight = torch.tensor(random(2, 3, size))
    if mode == "same":
        (pads,) = same([extent], [size], [stride], [dilation])
    elif mode == "valid":
        pads = (0, 0)
    assume(extent + sum(pads) >= (size - 1) * dilation + 1)
    y = torch.tensor(random(1, 3, extent, seed=1), requires_grad=True)
    forward = torch.nn.functional.conv1d(torch.nn.functional.pad(y, pads), weight, stride=stride, dilation=dilation)
    x = torch.tensor(random(*forward.shape, seed=2))
    (gradient,) = torch.autograd.grad(forward, y, x)
    options = {"strides": [stride], "dilations": [dilation], "pad_type": mode, "pad": list(pads)}
    got = function("conv_transpose")(x, weight, output_shape=[1, 3, extent], **options)
    np.testing.assert_allclose(got, gradient, atol=1e-5)
    got = function("conv")(y.detach(), weight, **options)
    np.testing.assert_allclose(got, forward.detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": [0]}, "strides are malformed: expected 1 positive"),
        ({"dilations": [-2]}, "dilations are malformed: expected 1 positive"),
        ({"pad_type": "same_lower"}, "unknown pad_type of conv_transpose: expected valid, same or custom"),
        ({"pad_type": "custom", "pad": [1, 1, 1, 1]}, "pairs of before and after"),
        ({"pad_type": "custom", "pad": [99, 0]}, "too much memory|negative extent"),
        ({"strides": [2**40]}, "too much memory|negative extent"),
        ({"output_shape": [1, 3, 9], "strides": [2]}, "output_shape is out of range: expected between"),
        ({"output_shape": [1, 3, 12], "strides": [2]}, "output_shape is out of range: expected between"),
        (
            {"output_shape": [1, 3, 9], "strides": [2], "pad_type": "same"},
            "output_shape is out of range: expected between",
        ),
        ({"output_shape": [2, 3, 10], "strides": [2]}, "output_shape is out of range: expected between"),
        ({"output_shape": [1, 2, 10], "strides": [2]}, "output_shape is out of range: expected between"),
        ({"output_shape": [1, 3], "strides": [2]}, "output_shape is out of range: expected between"),
    ],
)
def test_conv_transpose_refuses(options, message):
    with pytest.raises(OperationError, match=message):
        function("conv_transpose")(torch.zeros(1, 2, 4), torch.zeros(2, 3, 4), **options)
