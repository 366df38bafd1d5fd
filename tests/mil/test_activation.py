"""Activations, against the documented formulas in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from splitter.errors import OperationError
from splitter.mil.ops import find

from .harness import mb, run

X = np.array([[-30, -3.5, -1, -0.25, 0, 0.25, 1, 2.75, 7, 30, 90]], np.float32)


def sigmoid(x):
    return special.expit(x)


# Operation, its parameters, its formula.
FORMULAS = [
    ("relu", {}, lambda x: np.maximum(x, 0)),
    ("relu6", {}, lambda x: np.minimum(np.maximum(x, 0), 6)),
    ("leaky_relu", {"alpha": 0.1}, lambda x: np.where(x >= 0, x, 0.1 * x)),
    ("leaky_relu", {"alpha": -2.0}, lambda x: np.where(x >= 0, x, -2 * x)),
    ("clamped_relu", {"alpha": 0.5, "beta": 6.0}, lambda x: np.minimum(np.where(x >= 0, x, 0.5 * x), 6)),
    ("clamped_relu", {"alpha": -1.0, "beta": 2.0}, lambda x: np.minimum(np.where(x >= 0, x, -x), 2)),
    ("clamped_relu", {"alpha": 1.0, "beta": -2.0}, lambda x: np.minimum(x, -2)),
    ("thresholded_relu", {"alpha": 1.0}, lambda x: np.where(x >= 1, x, 0)),
    ("thresholded_relu", {"alpha": -1.0}, lambda x: np.where(x >= -1, x, 0)),
    ("elu", {"alpha": 1.5}, lambda x: np.where(x > 0, x, 1.5 * np.expm1(np.minimum(x, 0)))),
    ("gelu", {}, lambda x: x / 2 * (1 + special.erf(x / np.sqrt(2)))),
    ("gelu", {"mode": "EXACT"}, lambda x: x / 2 * (1 + special.erf(x / np.sqrt(2)))),
    (
        "gelu",
        {"mode": "TANH_APPROXIMATION"},
        lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
    ("gelu", {"mode": "SIGMOID_APPROXIMATION"}, lambda x: x * sigmoid(1.702 * x)),
    ("silu", {}, lambda x: x * sigmoid(x)),
    ("sigmoid", {}, sigmoid),
    ("sigmoid_hard", {"alpha": 0.2, "beta": 0.4}, lambda x: np.clip(0.2 * x + 0.4, 0, 1)),
    ("linear_activation", {"alpha": 3.0, "beta": -0.5}, lambda x: 3 * x - 0.5),
    ("scaled_tanh", {"alpha": 1.7, "beta": 0.6}, lambda x: 1.7 * np.tanh(0.6 * x)),
    ("softsign", {}, lambda x: x / (1 + np.abs(x))),
    ("softplus", {}, lambda x: np.logaddexp(0, x)),
    ("softmax", {}, lambda x: special.softmax(x, axis=-1)),
]


def function(name, opset="CoreML7"):
    return find(name, opset).function


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_formulas(target):
    def build(x):
        return tuple(getattr(mb, name)(x=x, **parameters) for name, parameters, _ in FORMULAS)

    results = run(build, {"x": X}, target)
    for (name, parameters, formula), got in zip(FORMULAS, results, strict=True):
        expected = formula(X.astype(np.float64))
        # Far below 0, torch's gelu keeps what the rounding of the 1 in 1 + erf leaves: |x| · 6e-8.
        np.testing.assert_allclose(got, expected, rtol=4e-6, atol=1e-6, err_msg=f"{name} {parameters}")


def test_formulas_in_half_precision():
    x = np.array([[-5, -1.1, -0.3, 0, 0.7, 3.3, 10]], np.float16)

    def build(x):
        return tuple(getattr(mb, name)(x=x, **parameters) for name, parameters, _ in FORMULAS)

    results = run(build, {"x": x}, "iOS17")
    for (name, parameters, formula), got in zip(FORMULAS, results, strict=True):
        assert got.dtype == np.float16
        halves = {key: np.float16(value) for key, value in parameters.items() if key != "mode"}
        exact = all(float(half) == parameters[key] for key, half in halves.items())
        tolerance = 2**-10.9 if exact else 2e-3  # one rounding, or the parameters are rounded, too
        # Below 0 as above, and by which vectors the processor has.
        np.testing.assert_allclose(got, formula(x.astype(np.float64)), rtol=tolerance, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 2, 5), (2, 3, 1, 2, 2)])
def test_one_alpha_for_each_channel(shape, target):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    # Core ML Tools lets channels differ only in rank 4.
    alpha = np.array([0.5, -1, 2] if len(shape) == 4 else [0.5, 0.5, 0.5], np.float32)
    beta = np.array([1, 0.25, -3], np.float32)

    def build(x):
        return mb.prelu(x=x, alpha=alpha), mb.softplus_parametric(x=x, alpha=beta, beta=alpha)

    prelu, softplus = run(build, {"x": x}, target)
    a, b = (one.reshape(3, *[1] * (len(shape) - 2)).astype(np.float64) for one in (alpha, beta))
    np.testing.assert_allclose(prelu, np.where(x > 0, x, a * x), rtol=1e-6)
    np.testing.assert_allclose(softplus, b * np.logaddexp(0, a * x), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 2, 2, 2)])
def test_channels_may_differ_in_any_rank(shape):
    x, alpha = torch.full(shape, -1.0), torch.tensor([1.0, 2.0, 3.0])
    expected = -np.broadcast_to(np.arange(1, 4).reshape(3, *[1] * (len(shape) - 2)), shape)
    np.testing.assert_array_equal(function("prelu")(x, alpha), expected)


@pytest.mark.parametrize("name", ["prelu", "softplus_parametric"])
@pytest.mark.parametrize("shapes", [((1, 3, 4), (4,)), ((1, 3, 4), (1,)), ((1, 3, 4), (3, 1)), ((3,), (3,))])
def test_a_channel_parameter_fits_axis_1(name, shapes):
    x, alpha = (torch.zeros(shape) for shape in shapes)
    parameters = {"alpha": alpha} if name == "prelu" else {"alpha": alpha, "beta": alpha}
    with pytest.raises(OperationError, match="for each channel"):
        function(name)(x, **parameters)


def test_parameters_of_another_type():
    x = np.array([[[-1.0, 2, -3]]], np.float16)
    alpha = np.array([0.1], np.float32)

    def build(x):
        return mb.prelu(x=x, alpha=alpha), mb.leaky_relu(x=x, alpha=np.float32(0.1))

    for got in run(build, {"x": x}, "iOS17"):
        np.testing.assert_array_equal(
            got, np.where(x > 0, x, np.float32(0.1) * x.astype(np.float32)).astype(np.float16)
        )


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_softmax_axes(axis):
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32) * 50
    (got,) = run(lambda x: mb.softmax(x=x, axis=axis), {"x": x})
    np.testing.assert_allclose(got, special.softmax(x.astype(np.float64), axis=axis), rtol=1e-5, atol=1e-10)


def test_softmax_beyond_the_axes():
    with pytest.raises(OperationError, match=r"softmax.*cannot compute what it is given"):
        run(lambda x: mb.softmax(x=x, axis=3), {"x": X})


@pytest.mark.parametrize("mode", ["exact", "TANH", ""])
def test_gelu_has_three_modes(mode):
    with pytest.raises(OperationError, match="unknown mode of gelu"):
        function("gelu")(torch.zeros(1), mode)


def test_nothing_overflows_far_out():
    x = np.array([-1e4, 1e4], np.float32)
    softplus, sigmoid_, silu, elu = run(
        lambda x: (mb.softplus(x=x), mb.sigmoid(x=x), mb.silu(x=x), mb.elu(x=x, alpha=1.0)), {"x": x}
    )
    np.testing.assert_array_equal(softplus, [0, 1e4])
    np.testing.assert_array_equal(sigmoid_, [0, 1])
    np.testing.assert_array_equal(silu, [0, 1e4])
    np.testing.assert_array_equal(elu, [-1, 1e4])


def test_nan_is_not_hidden():
    x = np.array([np.nan, 1.0], np.float32)
    names = ("relu", "relu6", "silu", "softsign", "softplus")
    results = run(lambda x: (*(getattr(mb, n)(x=x) for n in names), mb.thresholded_relu(x=x, alpha=0.5)), {"x": x})
    for got in results:
        assert list(np.isnan(got)) == [True, False]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=8),
    st.floats(-4, 4, width=32),
    st.floats(-4, 4, width=32),
)
def test_two_parameters(values, alpha, beta):
    x = torch.tensor(values)
    exact = np.array(values, np.float64)
    formulas = {
        "clamped_relu": np.minimum(np.where(exact >= 0, exact, alpha * exact), beta),
        "sigmoid_hard": np.minimum(np.maximum(alpha * exact + beta, 0), 1),
        "linear_activation": alpha * exact + beta,
        "scaled_tanh": alpha * np.tanh(beta * exact),
    }
    for name, expected in formulas.items():
        got = function(name)(x, alpha, beta)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=3e-5, err_msg=name)
    assert x.tolist() == values  # nothing is computed in place
