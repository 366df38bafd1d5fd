"""Pooling, against loops over every window."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitter.errors import OperationError
from splitter.mil import load
from splitter.mil.coreml_tools import ct
from splitter.mil.ops import find

from .harness import mb, package, run


def function(name, opset="CoreML7"):
    return find(name, opset).function


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pads_of(pad_type, pad, extents, sizes, strides):
    """Before and after each axis."""
    if pad_type == "valid":
        return [(0, 0)] * len(extents)
    if pad_type == "custom":
        return [(pad[2 * axis], pad[2 * axis + 1]) for axis in range(len(extents))]
    pairs = []
    for extent, size, stride in zip(extents, sizes, strides, strict=True):
        total = max(0, math.ceil(extent / stride) * stride - extent + size - stride)
        pairs.append((total // 2, total - total // 2) if pad_type == "same" else (total - total // 2, total // 2))
    return pairs


def pooled(kind, x, sizes, strides, pads, *, exclude=False, ceil=False):
    """Every window by itself: which elements it has, padding marked."""
    counts = []
    for extent, size, stride, (before, after) in zip(x.shape[2:], sizes, strides, pads, strict=True):
        steps = (extent + before + after - size) / stride
        count = (math.ceil(steps) if ceil else math.floor(steps)) + 1
        if ceil and before + after and (count - 1) * stride >= extent + before:
            count -= 1
        counts.append(count)
    out = np.empty((*x.shape[:2], *counts))
    for place in itertools.product(*map(range, counts)):
        own, reach = [], 1
        for p, extent, size, stride, (before, after) in zip(place, x.shape[2:], sizes, strides, pads, strict=True):
            first = p * stride - before
            reach *= min(first + size, extent + after) - first
            own.append(slice(max(first, 0), min(first + size, extent)))
        window = x[(slice(None), slice(None), *own)].astype(np.float64).reshape(*x.shape[:2], -1)
        if kind == "max":
            value = window.max(-1)
        elif kind == "l2":
            value = np.sqrt((window**2).sum(-1))
        else:
            value = window.sum(-1) / (window.shape[-1] if exclude else reach)
        out[(slice(None), slice(None), *place)] = value
    return out


def close(got, expected, rtol=1e-5, atol=1e-6):
    assert np.shape(got) == np.shape(expected)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


POOLS = [
    # shape, sizes, strides, padding
    ((2, 3, 9), [3], None, "valid"),
    ((1, 2, 9), [2], [3], "valid"),
    ((1, 2, 9), [4], [2], "same"),
    ((1, 2, 9), [4], [2], "same_lower"),
    ((1, 2, 9), [4], [1], "same"),
    ((1, 2, 9), [1], [2], "same"),
    ((1, 2, 5), [3], [2], [2, 0]),
    ((1, 2, 5), [3], [1], [2, 2]),  # more than half a window
    ((1, 2, 6, 7), [2, 3], [2, 1], "valid"),
    ((1, 2, 6, 7), [3, 2], [1, 2], "same"),
    ((1, 2, 6, 7), [3, 2], [2, 2], "same_lower"),
    ((2, 1, 6, 7), [3, 4], [2, 3], [1, 1, 2, 2]),
    ((2, 1, 6, 7), [3, 4], [1, 2], [0, 1, 3, 2]),
    ((1, 2, 4, 5, 3), [2, 3, 1], [1, 2, 1], "valid"),
    ((1, 2, 4, 5, 3), [2, 2, 2], [2, 1, 1], "same"),
    ((1, 2, 4, 5, 3), [2, 2, 2], [2, 2, 2], "same_lower"),
    ((1, 2, 4, 5, 3), [3, 2, 2], [1, 2, 1], [1, 2, 0, 1, 1, 1]),
]


@pytest.mark.parametrize("case", POOLS, ids=str)
def test_pools(case):
    shape, sizes, strides, padding = case
    x = random(*shape) - 1  # mostly below 0, so a maximum would show padding with zeros
    options = {"kernel_sizes": sizes, "pad_type": padding}
    if isinstance(padding, list):
        options |= {"pad_type": "custom", "pad": padding}
    if strides is not None:
        options["strides"] = strides
    steps = strides or [1] * len(sizes)
    pads = pads_of(options["pad_type"], padding, shape[2:], sizes, steps)
    target = "iOS16" if padding == "same_lower" else "iOS15"

    def build(x):
        results = (
            mb.max_pool(x=x, **options),
            mb.avg_pool(x=x, **options),
            mb.avg_pool(x=x, exclude_padding_from_average=True, **options),
        )
        return results if len(sizes) == 3 else (*results, mb.l2_pool(x=x, **options))

    greatest, mean, own_mean, *norm = run(build, {"x": x}, target)
    close(greatest, pooled("max", x, sizes, steps, pads), rtol=0, atol=0)
    close(mean, pooled("avg", x, sizes, steps, pads))
    close(own_mean, pooled("avg", x, sizes, steps, pads, exclude=True))
    if norm:
        close(norm[0], pooled("l2", x, sizes, steps, pads))


CEILED = [
    ((1, 2, 8), [3], [2], None),
    ((1, 2, 9), [3], [2], None),  # the same as without
    ((1, 2, 7), [2], [3], None),
    ((1, 2, 8), [3], [2], [1, 1]),
    ((1, 2, 4), [2], [3], [1, 1]),  # the last would start in the padding
    ((1, 2, 4), [4], [3], [2, 2]),
    ((1, 2, 6, 7), [3, 2], [2, 3], None),
    ((1, 2, 6, 7), [3, 4], [2, 3], [1, 1, 2, 2]),
    ((1, 2, 6, 7), [3, 3], [2, 2], [0, 0, 1, 1]),
]


@pytest.mark.parametrize("case", CEILED, ids=str)
def test_ceil_mode(case):
    shape, sizes, strides, pad = case
    x = random(*shape) - 1
    options = {"kernel_sizes": sizes, "strides": strides, "ceil_mode": True, "pad_type": "custom" if pad else "valid"}
    options |= {"pad": pad} if pad else {}
    pads = pads_of(options["pad_type"], pad, shape[2:], sizes, strides)

    def build(x):
        return (
            mb.max_pool(x=x, **options),
            mb.avg_pool(x=x, **options),
            mb.avg_pool(x=x, exclude_padding_from_average=True, **options),
            mb.l2_pool(x=x, **options),
        )

    greatest, mean, own_mean, norm = run(build, {"x": x})
    close(greatest, pooled("max", x, sizes, strides, pads, ceil=True), rtol=0, atol=0)
    close(mean, pooled("avg", x, sizes, strides, pads, ceil=True))
    close(own_mean, pooled("avg", x, sizes, strides, pads, ceil=True, exclude=True))
    close(norm, pooled("l2", x, sizes, strides, pads, ceil=True))


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("pad", [0, 1])
def test_ceil_mode_is_torchs(pad, exclude):
    """Documented so; ours does not use torch's."""
    x = torch.from_numpy(random(2, 3, 8, 9))
    options = {"stride": (3, 2), "padding": pad, "ceil_mode": True}
    ours = {"kernel_sizes": [3, 4], "pad_type": "custom", "strides": [3, 2], "pad": [pad] * 4, "ceil_mode": True}
    mean = torch.nn.functional.avg_pool2d(x, (3, 4), count_include_pad=not exclude, **options)
    close(function("avg_pool")(x, exclude_padding_from_average=exclude, **ours), mean)
    close(function("max_pool")(x, **ours), torch.nn.functional.max_pool2d(x, (3, 4), **options))


windows = st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(windows, min_size=1, max_size=3),
    st.sampled_from(["valid", "same", "same_lower", "custom"]),
    st.booleans(),
)
def test_any_windows(axes, pad_type, exclude):
    extents, sizes, strides, before, after = (list(one) for one in zip(*axes, strict=True))
    pad = [one for pair in zip(before, after, strict=True) for one in pair]
    x = random(1, 2, *extents)
    pads = pads_of(pad_type, pad, extents, sizes, strides)
    fits = all(n + sum(pair) >= k for n, k, pair in zip(extents, sizes, pads, strict=True))
    empty = False
    for extent, size, stride, (first, last) in zip(extents, sizes, strides, pads, strict=True):
        end = (extent + first + last - size) // stride * stride - first
        empty |= fits and (first >= size or end >= extent)
    arguments = (torch.from_numpy(x), sizes, pad_type, strides, pad)
    for kind, name in (("max", "max_pool"), ("avg", "avg_pool"), ("l2", "l2_pool")):
        options = {"exclude_padding_from_average": exclude} if kind == "avg" else {}
        if not fits or (empty and (kind == "max" or options.get("exclude_padding_from_average"))):
            with pytest.raises(OperationError, match=r"does not fit into the padded input|may hold no element"):
                function(name)(*arguments, **options)
        elif not empty:
            close(function(name)(*arguments, **options), pooled(kind, x, sizes, strides, pads, exclude=exclude))


def test_a_window_of_padding_alone_is_zero():
    x = torch.ones(1, 1, 2)
    for name in ("avg_pool", "l2_pool"):
        got = function(name)(x, [2], "custom", [2], [2, 0])
        assert got[0, 0, 0] == 0
        assert got[0, 0, 1] > 0


def test_not_a_number_is_not_hidden():
    x = np.array([[[1, np.nan, 2, 3, -np.inf, -np.inf]]], np.float32)

    def build(x):
        return (
            mb.max_pool(x=x, kernel_sizes=[2], strides=[2], pad_type="valid"),
            mb.avg_pool(x=x, kernel_sizes=[2], strides=[2], pad_type="valid"),
        )

    greatest, mean = run(build, {"x": x})
    np.testing.assert_array_equal(greatest, [[[np.nan, 3, -np.inf]]])
    np.testing.assert_array_equal(mean, [[[np.nan, 2.5, -np.inf]]])


def test_halves_are_rounded_once():
    """Sums and squares here are beyond the range of half precision."""
    x = (np.abs(random(1, 2, 12, 12)) * 20000 + 300).astype(np.float16)
    options = {"kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "same"}

    def build(x):
        return (
            mb.max_pool(x=x, **options),
            mb.avg_pool(x=x, **options),
            mb.l2_pool(x=mb.mul(x=x, y=np.float16(0.125)), **options),
        )

    pads = pads_of("same", None, (12, 12), [3, 3], [2, 2])
    eighth = (x * np.float16(0.125)).astype(np.float64)
    expected = (pooled("max", x, [3, 3], [2, 2], pads), pooled("avg", x, [3, 3], [2, 2], pads))
    expected = (*expected, pooled("l2", eighth, [3, 3], [2, 2], pads))
    for got, exact in zip(run(build, {"x": x}), expected, strict=True):
        assert got.dtype == np.float16
        close(got, exact, rtol=2**-10.9, atol=0)


def test_pad_counts_with_custom_alone():
    x = random(1, 1, 7)
    options = {"kernel_sizes": [3], "pad": [2, 1]}
    got, named = run(
        lambda x: (mb.max_pool(x=x, pad_type="valid", **options), mb.max_pool(x=x, pad_type="SAME", **options)),
        {"x": x},
    )
    close(got, pooled("max", x, [3], [1], [(0, 0)]))
    close(named, pooled("max", x, [3], [1], [(1, 1)]))


def test_left_out_parameters_have_their_defaults(tmp_path):
    """Core ML Tools saves every default; Core ML does not need them."""
    x = random(1, 2, 6, 5)

    def build(x):
        return tuple(getattr(mb, name)(x=x, kernel_sizes=[2, 3], pad_type="custom", pad=[1, 0, 0, 1]) for name in NAMES)

    path = package(build, {"x": x}, tmp_path)
    spec = ct.models.utils.load_spec(str(path))
    for operation in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations:
        for parameter in ("strides", "ceil_mode", "exclude_padding_from_average"):
            operation.inputs.pop(parameter, None)
    (path / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(spec.SerializeToString())
    for name, got in zip(NAMES, load(path).predict({"x": x}).values(), strict=True):
        close(got, pooled(name.removesuffix("_pool"), x, [2, 3], [1, 1], [(1, 0), (0, 1)]))


# ------------------------------------------------------------------------------------- near misses

NAMES = ("max_pool", "avg_pool", "l2_pool")
X = torch.zeros(1, 2, 5)
HUGE = 1 << 40


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((X, [6], "valid"), "a window does not fit into the padded input"),
        ((X, [8], "custom", [1], [1, 1]), "a window does not fit into the padded input"),
        ((X, [0], "valid"), "kernel_sizes"),
        ((X, [-1], "same"), "kernel_sizes"),
        ((X, [2, 2], "valid"), "kernel_sizes"),
        ((X, [2], "valid", [0]), "strides"),
        ((X, [2], "valid", [-1]), "strides"),
        ((X, [2], "valid", [1, 1]), "strides"),
        ((X, [2], "full"), "pad_type"),
        ((X, [2], "custom", [1], [1]), "pad has"),
        ((X, [2], "custom", [1], [-1, 0]), "pad has"),
        ((X, [2], "custom", [1], [HUGE, HUGE]), "too much memory|negative extent"),
        ((X, [HUGE], "same"), "too much memory|negative extent"),
        (
            (torch.zeros(()).expand(1, 1 << 10, 1 << 20), [1 << 19], "valid"),
            "too many steps: expected fewer than 2\\^40",
        ),
        ((torch.zeros(2, 3), [1], "valid"), "axes: expected 1 to 3 after batch and channel"),
        ((torch.zeros(1, 1, 1, 1, 1, 1), [1] * 4, "valid"), "axes: expected 1 to 3 after batch and channel"),
    ],
)
def test_refused(name, arguments, match):
    with pytest.raises(OperationError, match=match):
        function(name)(*arguments)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arguments", [("same", None), ("same_lower", None), ("custom", [1, 0])])
def test_ceil_mode_has_symmetric_padding(name, arguments):
    pad_type, pad = arguments
    with pytest.raises(OperationError, match="ceil_mode"):
        function(name)(X, [2], pad_type, [2], pad, ceil_mode=True)


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_ceil_mode_leaves_no_window_beyond(name):
    with pytest.raises(OperationError, match="a window of a pooling may hold no element"):
        function(name)(torch.zeros(1, 1, 4), [1], "valid", [4], ceil_mode=True)
