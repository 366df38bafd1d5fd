"""Reductions, against NumPy in float64 and Python's integers."""

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

SMALLEST, GREATEST = -(2**31), 2**31 - 1
FORMULAS = {
    "reduce_sum": lambda x, **o: x.sum(**o),
    "reduce_mean": lambda x, **o: x.mean(**o),
    "reduce_max": lambda x, **o: x.max(**o),
    "reduce_min": lambda x, **o: x.min(**o),
    "reduce_prod": lambda x, **o: x.prod(**o),
    "reduce_l1_norm": lambda x, **o: np.abs(x).sum(**o),
    "reduce_l2_norm": lambda x, **o: np.sqrt((x**2).sum(**o)),
    "reduce_sum_square": lambda x, **o: (x**2).sum(**o),
    "reduce_log_sum": lambda x, **o: np.log(x.sum(**o)),
    "reduce_log_sum_exp": lambda x, **o: np.log(np.exp(x).sum(**o)),
}
INDICES = {"reduce_argmax": np.argmax, "reduce_argmin": np.argmin}


def function(name, opset="CoreML7"):
    return find(name, opset).function


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(got, expected, rtol=2e-6, atol=2e-6, name=""):
    assert np.shape(got) == np.shape(expected), name
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol, err_msg=name)


def wrapped(value):
    """As 32-bit two's complement."""
    return (value + 2**31) % 2**32 - 2**31


# ------------------------------------------------------------------------------------------ floats


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((5,), [0]),
        ((2, 3, 4), [0]),
        ((2, 3, 4), [-1, 0]),
        ((2, 3, 4), [2, 1]),
        ((2, 3, 4), None),
        ((2, 1, 3, 2, 2), [1, -2, 4]),
    ],
)
def test_reductions(shape, axes, target):
    x = np.abs(random(*shape)) + np.float32(0.5)  # logarithms are of positive sums
    x.reshape(-1)[0] = -0.25
    chosen = {} if axes is None else {"axes": axes}
    cases = list(itertools.product(FORMULAS, [False, True]))
    results = run(lambda x: tuple(getattr(mb, n)(x=x, keep_dims=k, **chosen) for n, k in cases), {"x": x}, target)
    axis = None if axes is None else tuple(axes)
    for (name, keep), got in zip(cases, results, strict=True):
        assert got.dtype == np.float32
        with np.errstate(invalid="ignore"):
            expected = FORMULAS[name](x.astype(np.float64), axis=axis, keepdims=keep)
        close(got, np.atleast_1d(expected), name=name)  # a model gives a number as a vector of one


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans(), st.data())
def test_any_axes(shape, keep, data):
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    signed = [axis - len(shape) if data.draw(st.booleans()) else axis for axis in axes]
    x = random(*shape, seed=len(axes))
    for name, formula in FORMULAS.items():
        if name != "reduce_log_sum":
            got = function(name)(torch.from_numpy(x), signed, keep)
            expected = formula(x.astype(np.float64), axis=tuple(axes), keepdims=keep)
            close(got, expected, rtol=1e-5, atol=1e-5, name=name)


def test_no_axes_reduce_nothing():
    x = np.array([[0.5, -2, 3]], np.float32)
    expected = {
        "reduce_l1_norm": np.abs(x),
        "reduce_l2_norm": np.abs(x),
        "reduce_sum_square": x**2,
        "reduce_log_sum": np.log(np.where(x > 0, x, np.nan)),
    }
    for name, keep in itertools.product(FORMULAS, [False, True]):
        close(function(name)(torch.from_numpy(x), [], keep), expected.get(name, x), name=name)


def test_of_one_number():
    expected = {"reduce_sum_square": 2.25, "reduce_log_sum": math.log(1.5)}
    for name in FORMULAS:
        close(function(name)(torch.tensor(1.5)), expected.get(name, 1.5), name=name)


def test_left_out_parameters_have_their_defaults(tmp_path):
    """Core ML Tools saves every default; Core ML does not need them."""
    x = random(3, 4)
    names = ("reduce_sum", "reduce_max", *INDICES)
    path = package(lambda x: tuple(getattr(mb, name)(x=x) for name in names), {"x": x}, tmp_path)
    spec = ct.models.utils.load_spec(str(path))
    for operation in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations:
        for parameter in ("axes", "axis", "keep_dims", "output_dtype"):
            operation.inputs.pop(parameter, None)
    (path / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(spec.SerializeToString())
    total, greatest, last, first = load(path).predict({"x": x}).values()
    close(total, [x.sum()])
    close(greatest, [x.max()])
    np.testing.assert_array_equal(last, x.argmax(-1))
    np.testing.assert_array_equal(first, x.argmin(-1))


# -------------------------------------------------------------------------- rounding and far numbers


def test_halves_are_rounded_once():
    """Half accumulators would stop at 2048, or overflow."""
    ones = np.ones((1, 5000), np.float16)
    large = np.full((1, 4), 300, np.float16)

    def build(ones, large):
        return (
            mb.reduce_sum(x=ones, axes=[1]),
            mb.reduce_mean(x=ones, axes=[1]),
            mb.reduce_l1_norm(x=ones, axes=[1]),
            mb.reduce_l2_norm(x=large, axes=[1]),
            mb.reduce_log_sum(x=ones, axes=[1]),
            mb.reduce_log_sum_exp(x=large, axes=[1]),
            mb.reduce_prod(
                x=mb.concat(values=(large, large, mb.inverse(x=large, epsilon=np.float16(0))), axis=1), axes=[1]
            ),
            mb.reduce_max(x=large, axes=[1]),
            mb.reduce_min(x=large, axes=[1]),
            mb.reduce_sum_square(x=large, axes=[1]),
        )

    results = run(build, {"ones": ones, "large": large})
    inverse = float(np.float16(1 / 300))
    exact = [5000, 1, 5000, 600, math.log(5000), 300 + math.log(4), 300**8 * inverse**4, 300, 300, np.inf]
    for got, expected in zip(results, exact, strict=True):
        assert got.dtype == np.float16
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(got, np.float16([expected]))


def test_log_sum_exp_of_far_numbers():
    x = np.array([[1000, 1000], [-1000, -1001], [-np.inf, -np.inf], [-np.inf, 3], [np.inf, 0]], np.float32)
    (got,) = run(lambda x: mb.reduce_log_sum_exp(x=x, axes=[1]), {"x": x})
    close(got, [1000 + math.log(2), -1000 + math.log1p(math.exp(-1)), -np.inf, 3, np.inf])


def test_not_a_number_is_not_hidden():
    x = np.array([[np.nan, 1], [2, 3]], np.float32)
    for got in run(lambda x: tuple(getattr(mb, name)(x=x, axes=[1]) for name in FORMULAS), {"x": x}):
        assert list(np.isnan(got)) == [True, False]


# ---------------------------------------------------------------------------------------- integers


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_integers(target):
    x = np.array([[7, -2, 4], [GREATEST, GREATEST, 3], [SMALLEST, -1, 0], [65536, 65537, 2], [-5, 0, 5]], np.int32)
    results = run(lambda x: tuple(getattr(mb, name)(x=x, axes=[1]) for name in FORMULAS), {"x": x}, target)
    rows = x.tolist()
    whole = {
        "reduce_sum": [wrapped(sum(row)) for row in rows],
        "reduce_mean": [math.trunc(sum(row) / 3) for row in rows],
        "reduce_max": [max(row) for row in rows],
        "reduce_min": [min(row) for row in rows],
        "reduce_prod": [wrapped(math.prod(row)) for row in rows],
        "reduce_l1_norm": [wrapped(sum(map(abs, row))) for row in rows],
        "reduce_l2_norm": [min(math.isqrt(sum(one * one for one in row)), GREATEST) for row in rows],
        "reduce_sum_square": [wrapped(sum(one * one for one in row)) for row in rows],
        # A negative sum's logarithm is NaN, and becomes 0; that of 0 is −∞.
        "reduce_log_sum": [2, 22, 0, 11, SMALLEST],
        "reduce_log_sum_exp": [7, GREATEST, 0, 65537, 5],
    }
    for (name, expected), got in zip(whole.items(), results, strict=True):
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, expected, err_msg=name)


numbers = st.integers(SMALLEST, GREATEST)


@settings(deadline=None, max_examples=60)
@given(st.lists(numbers, min_size=1, max_size=9), st.booleans())
def test_integers_wrap(values, keep):
    x = torch.tensor(values, dtype=torch.int32)
    exact = {
        "reduce_sum": sum(values),
        "reduce_prod": math.prod(values),
        "reduce_l1_norm": sum(map(abs, values)),
        "reduce_sum_square": sum(value * value for value in values),
    }
    for name, expected in exact.items():
        got = function(name)(x, None, keep)
        assert got.shape == ((1,) if keep else ())
        assert got.to(torch.int32).item() == wrapped(expected)  # as the interpreter does
    for name in ("reduce_mean", "reduce_l2_norm"):
        assert abs(function(name)(x).item()) <= 2**31


# ----------------------------------------------------------------------------------------- indices


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
def test_indices(dtype):
    x = np.random.default_rng(0).permutation(60).reshape(3, 4, 5).astype(dtype) - dtype(30)
    cases = list(itertools.product(INDICES, [0, 1, -1, -3], [False, True], ["int32", "uint16"]))

    def build(x):
        return tuple(
            getattr(mb, name)(x=x, axis=axis, keep_dims=keep, output_dtype=kind) for name, axis, keep, kind in cases
        )

    for (name, axis, keep, _), got in zip(cases, run(build, {"x": x}), strict=True):
        expected = INDICES[name](x, axis, keepdims=keep)
        assert got.shape == expected.shape
        np.testing.assert_array_equal(got, expected)


def test_an_index_beyond_a_byte():
    x = np.zeros((1, 40000), np.float16)
    x[0, 39999] = 1
    (got,) = run(lambda x: mb.reduce_argmax(x=x, output_dtype="uint16"), {"x": x})
    assert got.tolist() == [39999]


@pytest.mark.parametrize("target", ["iOS15", "iOS16"])
def test_indices_before_ios17(target):
    x = random(2, 5)
    last, first = run(lambda x: (mb.reduce_argmax(x=x, axis=0), mb.reduce_argmin(x=x)), {"x": x}, target)
    np.testing.assert_array_equal(last, x.argmax(0))
    np.testing.assert_array_equal(first, x.argmin(-1))


def test_the_first_of_equal_ones():
    x = np.array([[1, 3, 3, 0, 0, 3], [2, 2, 2, 2, 2, 2]], np.float32)
    last, first = run(lambda x: (mb.reduce_argmax(x=x), mb.reduce_argmin(x=x)), {"x": x})
    assert last.tolist() == [1, 0]
    assert first.tolist() == [3, 0]


# ------------------------------------------------------------------------------------- near misses


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("axes", [[2], [-3], [0, 0], [1, -1]])
def test_axes_exist_and_differ(name, axes):
    with pytest.raises(OperationError, match="axis"):
        function(name)(torch.zeros(2, 3), axes)


@pytest.mark.parametrize("name", INDICES)
def test_indices_refused(name):
    with pytest.raises(OperationError, match="int32 or uint16"):
        function(name)(torch.zeros(2), output_dtype="int64")
    with pytest.raises(IndexError, match="out of range"):
        function(name)(torch.zeros(2), 1)


@pytest.mark.parametrize("name", ["reduce_max", "reduce_min", *INDICES])
def test_nothing_has_no_extreme(name):
    with pytest.raises((RuntimeError, IndexError), match="non-zero size"):
        function(name)(torch.zeros(2, 0))
