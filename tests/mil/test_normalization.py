"""Normalisations, against the documented formulas in float64."""

import re

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


def close(got, expected, rtol=1e-5, atol=1e-5):
    assert np.shape(got) == np.shape(expected)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


def normalized(x, axes, epsilon=1e-5):
    x = x.astype(np.float64)
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + epsilon)


def by_channel(values, x):
    return np.reshape(values, (-1, *[1] * (x.ndim - 2)))


# -------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 2, 5), (2, 3, 2, 2, 3)])
def test_batch_norm(shape, target):
    x, mean, gamma, beta = random(*shape), random(3, seed=1), random(3, seed=2), random(3, seed=3)
    variance = np.float32([0.5, 2, 0])

    def build(x):
        options = {"x": x, "mean": mean, "variance": variance}
        return (
            mb.batch_norm(**options),
            mb.batch_norm(**options, gamma=gamma, epsilon=0.25),
            mb.batch_norm(**options, beta=beta, epsilon=0.25),
            mb.batch_norm(**options, gamma=gamma, beta=beta, epsilon=0.25),
        )

    plain, scaled, shifted, both = run(build, {"x": x}, target)
    centred = x.astype(np.float64) - by_channel(mean, x)
    close(plain, centred / np.sqrt(by_channel(variance, x) + np.float64(1e-5)), rtol=2e-5)
    quarter = centred / np.sqrt(by_channel(variance, x) + 0.25)
    close(scaled, quarter * by_channel(gamma, x))
    close(shifted, quarter + by_channel(beta, x))
    close(both, quarter * by_channel(gamma, x) + by_channel(beta, x))


# ----------------------------------------------------------------------------------- instance norm


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 2, 5)])
def test_instance_norm(shape, target):
    x, gamma, beta = random(*shape) + 3, random(3, seed=1), random(3, seed=2)

    def build(x):
        return (
            mb.instance_norm(x=x),
            mb.instance_norm(x=x, gamma=gamma, epsilon=0.5),
            mb.instance_norm(x=x, beta=beta),
            mb.instance_norm(x=x, gamma=gamma, beta=beta, epsilon=0.5),
        )

    plain, scaled, shifted, both = run(build, {"x": x}, target)
    axes = tuple(range(2, x.ndim))
    close(plain, normalized(x, axes))
    close(scaled, normalized(x, axes, 0.5) * by_channel(gamma, x))
    close(shifted, normalized(x, axes) + by_channel(beta, x))
    close(both, normalized(x, axes, 0.5) * by_channel(gamma, x) + by_channel(beta, x))


def test_instance_norm_of_one_element_is_beta():
    x, gamma, beta = random(2, 3, 1), random(3, seed=1), random(3, seed=2)
    (got,) = run(lambda x: mb.instance_norm(x=x, gamma=gamma, beta=beta), {"x": x})
    # 1 / √epsilon is 316, and multiplies the rounding of x.
    close(got, np.broadcast_to(by_channel(beta, x), x.shape), rtol=0, atol=316 * 2**-22 * np.abs(x).max())


# -------------------------------------------------------------------------------------- layer norm


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 3, 4), [-1]),
        ((2, 3, 4), [2, 1]),
        ((2, 3, 4), [0]),
        ((2, 3, 4), [-3, 2]),
        ((2, 3, 4, 5), [1]),
        ((2, 3, 4, 5), [-1, 1]),
        ((5,), [0]),
        ((2, 3, 4), [0, 1, 2]),
    ],
)
def test_layer_norm(shape, axes, target):
    x = random(*shape) * 3 - 1
    reduced = tuple(sorted(axis % x.ndim for axis in axes))
    own = [shape[axis] for axis in reduced]
    gamma, beta = random(*own, seed=1), random(*own, seed=2)

    def build(x):
        return (
            mb.layer_norm(x=x, axes=axes),
            mb.layer_norm(x=x, axes=axes, gamma=gamma, epsilon=0.5),
            mb.layer_norm(x=x, axes=axes, gamma=gamma, beta=beta, epsilon=0.5),
        )

    plain, scaled, both = run(build, {"x": x}, target)
    wide = [extent if axis in reduced else 1 for axis, extent in enumerate(shape)]
    close(plain, normalized(x, reduced))
    close(scaled, normalized(x, reduced, 0.5) * gamma.reshape(wide))
    close(both, normalized(x, reduced, 0.5) * gamma.reshape(wide) + beta.reshape(wide))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_layer_norm_over_any_axes(shape, data):
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    given_axes = [axis - len(shape) if data.draw(st.booleans()) else axis for axis in axes]
    x, reduced = random(*shape, seed=len(shape)), sorted(axes)
    gamma = random(*[shape[axis] for axis in reduced], seed=9)
    got = function("layer_norm")(torch.from_numpy(x), given_axes, torch.from_numpy(gamma), epsilon=0.01)
    wide = [extent if axis in reduced else 1 for axis, extent in enumerate(shape)]
    close(got, normalized(x, tuple(reduced), 0.01) * gamma.reshape(wide))


# ------------------------------------------------------------------------------- l2, local response


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 2, 3, 4), (2, 3, 1, 2, 2)])
def test_l2_norm(shape, target):
    x = random(*shape)
    x[0] *= 1e-3
    plain, wide = run(lambda x: (mb.l2_norm(x=x), mb.l2_norm(x=x, epsilon=0.5)), {"x": x}, target)
    total = (x.astype(np.float64) ** 2).sum((-3, -2, -1), keepdims=True)
    close(plain, x / np.sqrt(total + 1e-6), atol=0)
    close(wide, x / np.sqrt(total + 0.5), atol=0)


def responded(x, size, alpha=1e-4, beta=0.75, k=1.0):
    x = x.astype(np.float64)
    out = np.empty_like(x)
    for channel in range(x.shape[1]):
        first = channel - size // 2
        around = x[:, max(first, 0) : max(first + size, 0)]
        out[:, channel] = x[:, channel] / (k + alpha / size * (around**2).sum(1)) ** beta
    return out


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 12, 13])
def test_local_response_norm(size, target):
    x, y = random(2, 5, 4) * 30, random(1, 5, 2, 3, seed=1) * 30
    given_all = {"alpha": 0.5, "beta": 1.5, "k": 2.0}

    def build(x, y):
        return (
            mb.local_response_norm(x=x, size=size),
            mb.local_response_norm(x=y, size=size, **given_all),
        )

    plain, wide = run(build, {"x": x, "y": y}, target)
    close(plain, responded(x, size))
    close(wide, responded(y, size, **given_all))


def test_local_response_norm_of_a_huge_window():
    x = random(1, 3, 2)
    total = (x.astype(np.float64) ** 2).sum(1, keepdims=True)
    got = function("local_response_norm")(torch.from_numpy(x), 1 << 31, alpha=float(1 << 31), beta=1.0)
    close(got, x / (1 + total))


# ------------------------------------------------------------------------- types, optional parameters

HALF = {
    "batch_norm": lambda x, **p: mb.batch_norm(x=x, mean=p["one"], variance=p["four"], gamma=p["one"], beta=p["one"]),
    "instance_norm": lambda x, **p: mb.instance_norm(x=x, gamma=p["four"], beta=p["one"]),
    "layer_norm": lambda x, **p: mb.layer_norm(x=x, axes=[1], gamma=p["four"], beta=p["one"]),
    "l2_norm": lambda x, **p: mb.l2_norm(x=x),
    "local_response_norm": lambda x, **p: mb.local_response_norm(x=x, size=3, alpha=0.5),
}


@pytest.mark.parametrize("parameters", [np.float16, np.float32])
def test_halves_are_rounded_once(parameters):
    """Squares here are beyond the range of half precision. Since iOS17 parameters may be wider than x."""
    x = (random(2, 3, 8) * 300).astype(np.float16)
    p = {"one": np.full(3, 1, parameters), "four": np.full(3, 4, parameters)}
    results = run(lambda x: tuple(build(x, **p) for build in HALF.values()), {"x": x})
    exact = x.astype(np.float64)
    epsilon = float(parameters(1e-5))
    expected = {
        "batch_norm": (exact - 1) / np.sqrt(4 + epsilon) + 1,
        "instance_norm": normalized(exact, (2,), epsilon) * 4 + 1,
        "layer_norm": normalized(exact, (1,), epsilon) * 4 + 1,
        "l2_norm": exact / np.sqrt((exact**2).sum((0, 1, 2), keepdims=True)),
        "local_response_norm": responded(exact, 3, alpha=0.5),
    }
    for (name, formula), got in zip(expected.items(), results, strict=True):
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, formula, rtol=2**-10.9, atol=2e-7, err_msg=name)


def test_left_out_parameters_have_their_defaults(tmp_path):
    """Core ML Tools saves every default; Core ML does not need them."""
    x = random(2, 4, 3) * 1e-2
    one = np.ones(4, np.float32)

    def build(x):
        return (
            mb.batch_norm(x=x, mean=0 * one, variance=1e-4 * one),
            mb.instance_norm(x=x),
            mb.layer_norm(x=x, axes=[1]),
            mb.l2_norm(x=x),
            mb.local_response_norm(x=mb.mul(x=x, y=np.float32(1e4)), size=2),
        )

    path = package(build, {"x": x}, tmp_path)
    spec = ct.models.utils.load_spec(str(path))
    for operation in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations:
        for parameter in ("epsilon", "axes", "alpha", "beta", "k"):
            operation.inputs.pop(parameter, None)
    (path / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(spec.SerializeToString())
    batch, instance, layer, l2, local = load(path).predict({"x": x}).values()
    close(batch, x / np.sqrt(1.1e-4))
    close(instance, normalized(x, (2,)))
    close(layer, normalized(x, (0, 1, 2)))
    close(l2, x / np.sqrt((x.astype(np.float64) ** 2).sum() + 1e-6))
    close(local, responded(x * np.float32(1e4), 2))


# ------------------------------------------------------------------------------------- near misses

X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: function("instance_norm")(torch.zeros(2, 3)), "x has no spatial axes after batch and channel"),
        (lambda: function("layer_norm")(X, [3]), "an axis lies outside rank 3"),
        (lambda: function("layer_norm")(X, [-4]), "an axis lies outside rank 3"),
        (lambda: function("layer_norm")(X, [2, -1]), "layer_norm names an axis twice"),
        (lambda: function("l2_norm")(torch.zeros(2, 3)), "l2_norm's x has too few axes: expected at least 3"),
        (
            lambda: function("local_response_norm")(X, 0),
            "local_response_norm cannot take this size or shape: expected a positive size and 3 axes or more",
        ),
        (
            lambda: function("local_response_norm")(X, -3),
            "local_response_norm cannot take this size or shape: expected a positive size and 3 axes or more",
        ),
        (
            lambda: function("local_response_norm")(torch.zeros(2, 3), 3),
            "local_response_norm cannot take this size or shape: expected a positive size and 3 axes or more",
        ),
        (
            lambda: function("local_response_norm")(torch.zeros(()).expand(1, 1 << 20, 1), 1 << 31),
            "a local_response_norm takes too many steps: expected at most 2^40",
        ),
    ],
)
def test_refused(call, said):
    with pytest.raises(OperationError, match=re.escape(said)):
        call()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: function("batch_norm")(X, torch.zeros(4), torch.ones(4)),
            "running_mean should contain 3 elements not 4",
        ),
        (
            lambda: function("batch_norm")(X, torch.zeros(3), torch.ones(3), gamma=torch.ones(1)),
            "weight should contain 3 elements not 1",
        ),
        (
            lambda: function("instance_norm")(X, torch.ones(4)),
            "Expected weight to be a vector of size equal to the number of",
        ),
        (
            lambda: function("layer_norm")(X, [1, 2], torch.ones(4, 3)),
            "Expected weight to be of same shape as normalized_shape, but got",
        ),
        (
            lambda: function("layer_norm")(X, [2], torch.ones(4), torch.ones(1)),
            "Expected bias to be of same shape as normalized_shape, but got bias",
        ),
        (lambda: function("layer_norm")(X, []), "Expected normalized_shape to be at least 1-dimensional, i.e.,"),
    ],
)
def test_torch_refuses_the_rest(call, said):
    with pytest.raises(RuntimeError, match=re.escape(said)):
        call()
