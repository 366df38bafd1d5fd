"""Element by element, against NumPy and SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from splitter.errors import OperationError
from splitter.mil import load
from splitter.mil.coreml_tools import ct
from splitter.mil.ops import Context, find
from splitter.mil.program import NamedType, Operation
from splitter.mil.types import BY_NAME, TensorType

from .harness import mb, package, run

ARITHMETIC = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.divide,
    "floor_div": np.floor_divide,
    "mod": np.mod,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
COMPARISONS = {
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
}
LOGIC = {"logical_and": np.logical_and, "logical_or": np.logical_or, "logical_xor": np.logical_xor}
SHAPES = [((2, 3), (2, 3)), ((2, 1, 4), (3, 1)), ((1,), (2, 3)), ((2, 2, 1, 2, 3), (2, 1, 3))]
SMALLEST, GREATEST = -(2**31), 2**31 - 1
FLOATS = np.array([-7.5, -2.0, -0.5, 0.0, 0.5, 1.5, 3.25], np.float32)

UNARY = {
    "abs": (np.abs, FLOATS),
    "sign": (np.sign, FLOATS),
    "square": (np.square, FLOATS),
    "sqrt": (np.sqrt, np.array([0, 0.25, 2, 1e6], np.float32)),
    "exp": (np.exp, FLOATS),
    "exp2": (np.exp2, FLOATS),
    "erf": (special.erf, FLOATS),
    "sin": (np.sin, FLOATS),
    "cos": (np.cos, FLOATS),
    "tan": (np.tan, FLOATS),
    "asin": (np.arcsin, np.array([-1, -0.3, 0, 1], np.float32)),
    "acos": (np.arccos, np.array([-1, -0.3, 0, 1], np.float32)),
    "atan": (np.arctan, FLOATS),
    "sinh": (np.sinh, FLOATS),
    "cosh": (np.cosh, FLOATS),
    "tanh": (np.tanh, FLOATS),
    "atanh": (np.arctanh, np.array([-0.9, -0.3, 0, 0.99], np.float32)),
    "floor": (np.floor, FLOATS),
    "ceil": (np.ceil, FLOATS),
    "round": (np.rint, np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.51, 1e9], np.float32)),
}


def function(name, opset="CoreML7"):
    return find(name, opset).function


def context(dtype):
    result = NamedType("y", TensorType(BY_NAME[dtype], (1,)))
    return Context(Operation("op", {}, (result,)), torch.Generator(), lambda *_: [])


# ------------------------------------------------------------------------------------- two numbers


@pytest.mark.parametrize("shapes", SHAPES)
def test_arithmetic_broadcasts(shapes):
    rng = np.random.default_rng(0)
    x, y = (rng.uniform(-3, 3, shape).astype(np.float32) for shape in shapes)
    results = run(lambda x, y: tuple(getattr(mb, name)(x=x, y=y) for name in ARITHMETIC), {"x": x, "y": y})
    for (name, expected), got in zip(ARITHMETIC.items(), results, strict=True):
        assert got.dtype == np.float32, name
        np.testing.assert_allclose(got, expected(x, y), rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_integer_arithmetic(target):
    x = np.array([7, -7, 7, -7, 0, GREATEST, SMALLEST, SMALLEST, 65536], np.int32)
    y = np.array([2, 2, -2, -2, 5, 1, -1, 3, 65537], np.int32)
    results = run(lambda x, y: tuple(getattr(mb, name)(x=x, y=y) for name in ARITHMETIC), {"x": x, "y": y}, target)
    wide = {"x": x.astype(np.int64), "y": y.astype(np.int64)}
    for (name, expected), got in zip(ARITHMETIC.items(), results, strict=True):
        exact = np.trunc(x / y.astype(np.float64)) if name == "real_div" else expected(*wide.values())
        np.testing.assert_array_equal(got, exact.astype(np.int64).astype(np.int32), err_msg=name)


def test_a_number_of_the_program_is_an_operand():
    x = np.array([1.5, -2], np.float32)
    added, powered = run(lambda x: (mb.add(x=x, y=np.float32(2)), mb.pow(x=x, y=np.float32(3))), {"x": x})
    np.testing.assert_array_equal(added, [3.5, 0])
    np.testing.assert_array_equal(powered, [3.375, -8])


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_comparisons(dtype):
    x = np.array([[0, 1, 2], [-1, 5, 2**24 + 1]], dtype)
    y = np.array([0, 2, 2**24], dtype)
    results = run(lambda x, y: tuple(getattr(mb, name)(x=x, y=y) for name in COMPARISONS), {"x": x, "y": y})
    for (name, expected), got in zip(COMPARISONS.items(), results, strict=True):
        np.testing.assert_array_equal(got.astype(bool), expected(x, y), err_msg=name)


def test_logic():
    x, y = np.array([[0, 0, 1, 1]], np.int32), np.array([[0, 1, 0, 1]], np.int32)

    def build(x, y):
        x, y = mb.cast(x=x, dtype="bool"), mb.cast(x=y, dtype="bool")
        return (*(getattr(mb, name)(x=x, y=y) for name in LOGIC), mb.logical_not(x=x))

    *results, negated = run(build, {"x": x, "y": y})
    for (name, expected), got in zip(LOGIC.items(), results, strict=True):
        np.testing.assert_array_equal(got.astype(bool), expected(x, y), err_msg=name)
    np.testing.assert_array_equal(negated.astype(bool), x == 0)


def test_powers():
    x, y = np.array([2, 2, 9, 0, -2, 1.5], np.float32), np.array([3, -1, 0.5, 0, 3, -2.5], np.float32)
    (got,) = run(lambda x, y: mb.pow(x=x, y=y), {"x": x, "y": y})
    np.testing.assert_allclose(got, [8, 0.5, 3, 1, -8, 1.5**-2.5], rtol=1e-6)
    x, y = np.array([2, -2, 2, -1, -1, 3, 0], np.int32), np.array([10, 31, -1, -3, -4, 21, 0], np.int32)
    (got,) = run(lambda x, y: mb.pow(x=x, y=y), {"x": x, "y": y})
    np.testing.assert_array_equal(got, [1024, SMALLEST, 0, -1, 1, 3**21 - 2**33, 1])


def test_halves_are_rounded_once():
    x, y = np.array([[1.0, 2.5, 300, 0.1]], np.float16), np.array([[2048.0, 3, 300, 3]], np.float16)

    def build(x, y):
        return mb.add(x=x, y=y), mb.mul(x=x, y=y), mb.real_div(x=x, y=y), mb.rsqrt(x=x), mb.inverse(x=y)

    results = run(build, {"x": x, "y": y})
    a, b = x.astype(np.float64), y.astype(np.float64)
    with np.errstate(over="ignore"):
        exact = [a + b, a * b, a / b, 1 / np.sqrt(a), 1 / (b + np.float64(np.float16(1e-4)))]
        for got, expected in zip(results, exact, strict=True):
            np.testing.assert_array_equal(got, expected.astype(np.float16))


@pytest.mark.parametrize("name", ["real_div", "floor_div", "mod"])
def test_integers_are_not_divided_by_zero(name):
    x, y = np.array([1, 2], np.int32), np.array([1, 0], np.int32)
    with pytest.raises(OperationError, match=rf"{name}.*divisor is zero"):
        run(lambda x, y: getattr(mb, name)(x=x, y=y), {"x": x, "y": y})


def test_an_integer_zero_has_no_negative_power():
    with pytest.raises(OperationError, match="negative power"):
        function("pow")(torch.tensor([0]), torch.tensor([-1]))


def test_operands_must_broadcast_into_something_affordable():
    with pytest.raises(OperationError, match="the operands do not broadcast"):
        function("add")(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(OperationError, match="too much memory"):
        function("add")(torch.zeros(1 << 18, 1), torch.zeros(1, 1 << 18))


numbers = st.integers(SMALLEST, GREATEST)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(numbers, numbers.filter(bool)), min_size=1, max_size=20))
def test_integer_division_obeys_its_law(pairs):
    x, y = (torch.tensor(one, dtype=torch.int32) for one in zip(*pairs, strict=True))
    quotient, rest, cut = (function(name)(x, y) for name in ("floor_div", "mod", "real_div"))
    for a, b, q, r, c in zip(x.tolist(), y.tolist(), quotient.tolist(), rest.tolist(), cut.tolist(), strict=True):
        if (a, b) != (SMALLEST, -1):
            assert (q, r) == divmod(a, b)
            assert c == abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        else:
            assert (q, r, c) == (SMALLEST, 0, SMALLEST)


# -------------------------------------------------------------------------------------- one number


def test_unary():
    inputs = {name: data for name, (_, data) in UNARY.items()}
    scope = {f"{name}_": data for name, data in inputs.items()}  # parameters shadow nothing

    def build(*values):
        return tuple(getattr(mb, name)(x=value) for name, value in zip(UNARY, values, strict=True))

    results = run(build, scope)
    for (name, (expected, data)), got in zip(UNARY.items(), results, strict=True):
        np.testing.assert_allclose(got, expected(data.astype(np.float64)), rtol=2e-6, atol=1e-7, err_msg=name)


def test_unary_of_integers():
    x = np.array([[-3, 0, 5, 31, 32, 46341, SMALLEST]], np.int32)
    absolute, sign, square, power, least = run(
        lambda x: (mb.abs(x=x), mb.sign(x=x), mb.square(x=x), mb.exp2(x=x), mb.threshold(x=x, alpha=2**24 + 1)),
        {"x": x},
    )
    np.testing.assert_array_equal(absolute, [[3, 0, 5, 31, 32, 46341, SMALLEST]])
    np.testing.assert_array_equal(sign, [[-1, 0, 1, 1, 1, 1, -1]])
    np.testing.assert_array_equal(square, [[9, 0, 25, 961, 1024, 46341**2 - 2**32, 0]])
    np.testing.assert_array_equal(power, [[0, 1, 32, SMALLEST, 0, 0, 0]])
    np.testing.assert_array_equal(least, np.full((1, 7), 2**24 + 1))


def test_nan_is_not_hidden():
    x = np.array([np.nan, -1.0], np.float32)
    for got in run(lambda x: (mb.sign(x=x), mb.abs(x=x), mb.maximum(x=x, y=np.float32(0))), {"x": x}):
        assert np.isnan(got[0])
        assert not np.isnan(got[1])


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_bounds(target):
    x = np.array([[-2.0, -0.5, 0.25, 1, 7]], np.float32)
    clipped, least = run(lambda x: (mb.clip(x=x, alpha=-0.5, beta=1.0), mb.threshold(x=x, alpha=0.5)), {"x": x}, target)
    np.testing.assert_array_equal(clipped, [[-0.5, -0.5, 0.25, 1, 1]])
    np.testing.assert_array_equal(least, [[0.5, 0.5, 0.5, 1, 7]])


def test_crossed_bounds():
    x = np.array([-2.0, 0, 9], np.float32)
    (got,) = run(lambda x: mb.clip(x=x, alpha=3.0, beta=1.0), {"x": x}, "iOS16")
    np.testing.assert_array_equal(got, [1, 1, 1])
    for beta in (1.0, 3.0):
        with pytest.raises(OperationError, match="alpha is not below its beta"):
            function("clip", "CoreML7")(torch.tensor(x), 3.0, beta)


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_epsilons(target):
    x = np.array([0.0, 0.5, 4], np.float32)
    inverse, log, rsqrt = run(
        lambda x: (mb.inverse(x=x, epsilon=0.5), mb.log(x=x, epsilon=1.0), mb.rsqrt(x=x, epsilon=0.25)),
        {"x": x},
        target,
    )
    np.testing.assert_allclose(inverse, 1 / (x + 0.5), rtol=1e-6)
    np.testing.assert_allclose(log, np.log1p(x), rtol=1e-6)
    np.testing.assert_allclose(rsqrt, 1 / np.sqrt(x + 0.25), rtol=1e-6)


@pytest.mark.parametrize("omitted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_epsilons_have_defaults_of_the_type(dtype, omitted, tmp_path):
    x = {"x": np.zeros(2, dtype)}
    path = package(lambda x: (mb.inverse(x=x), mb.log(x=x), mb.rsqrt(x=x)), x, tmp_path)
    if omitted:
        spec = ct.models.utils.load_spec(str(path))
        for operation in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations:
            operation.inputs.pop("epsilon", None)
        (path / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(spec.SerializeToString())
    inverse, log, rsqrt = load(path).predict(x).values()
    if dtype == np.float32:
        expected = 1e4, np.log(2.0**-149), 1e6
    else:
        expected = 1 / np.float64(np.float16(1e-4)), -np.inf, np.inf
    for got, one in zip((inverse, log, rsqrt), expected, strict=True):
        np.testing.assert_allclose(got, np.full(2, one), rtol=1e-3 if dtype == np.float16 else 1e-6)


def test_epsilon_default_follows_the_declared_type():
    assert function("log")(torch.zeros(1), context("fp16")).item() == -np.inf
    assert function("log")(torch.zeros(1), context("fp32")).item() == pytest.approx(-103.2789, abs=1e-3)


# ------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("int32", [-2, 0, 0, 2, 3, GREATEST, SMALLEST, GREATEST, 0]),
        ("int16", [-2, 0, 0, 2, 3, 32767, -32768, 32767, 0]),
        ("uint16", [0, 0, 0, 2, 3, 65535, 0, 65535, 0]),
        ("int8", [-2, 0, 0, 2, 3, 127, -128, 127, 0]),
        ("uint8", [0, 0, 0, 2, 3, 255, 0, 255, 0]),
        ("bool", [True, True, False, True, True, True, True, True, True]),
    ],
)
def test_cast_of_floats(dtype, expected):
    x = np.array([-2.9, -0.9, 0, 2.5, 3, 3e9, -3e9, np.inf, np.nan], np.float32)
    (got,) = run(lambda x: mb.cast(x=x, dtype=dtype), {"x": x})
    np.testing.assert_array_equal(got, np.array(expected))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32"])
def test_cast_of_integers_wraps(dtype):
    x = np.array([0, 1, -1, 127, 128, 255, 256, 32768, 65535, 65536, GREATEST, SMALLEST], np.int32)
    (got,) = run(lambda x: mb.cast(x=x, dtype=dtype), {"x": x})
    np.testing.assert_array_equal(got, x.astype(dtype))


def test_cast_to_floats_and_from_bools():
    x = np.array([0, 1, -7, 70000], np.int32)

    def build(x):
        truth = mb.cast(x=x, dtype="bool")
        return (
            mb.cast(x=x, dtype="fp32"),
            mb.cast(x=x, dtype="fp16"),
            *(mb.cast(x=truth, dtype=d) for d in ("int32", "fp32")),
        )

    single, half, whole, real = run(build, {"x": x})
    np.testing.assert_array_equal(single, x.astype(np.float32))
    np.testing.assert_array_equal(half, [0, 1, -7, np.inf])
    np.testing.assert_array_equal(whole, [0, 1, 1, 1])
    np.testing.assert_array_equal(real, [0, 1, 1, 1])


@pytest.mark.parametrize("dtype", ["float", "string", "int64", ""])
def test_cast_to_another_type_is_refused(dtype):
    with pytest.raises(OperationError, match="unknown dtype of cast: expected"):
        function("cast")(torch.zeros(1), dtype)
