"""How results are rounded, against NumPy's half precision and hand-computed sums."""

import numpy as np
import pytest
import torch

from splitter.mil import AccumulatorType, Numerics, RoundingMode, accumulation

from .harness import mb, run

STAGED = Numerics(accumulators=AccumulatorType.STAGED)
HALF = Numerics(accumulators=AccumulatorType.HALF)


def added_one_by_one(terms):
    total = np.float16(0)
    for term in terms:
        total = np.float16(total + np.float16(term))
    return total


def added_in_a_tree(terms):
    terms = [np.float16(term) for term in terms]
    while len(terms) > 1:
        terms += [np.float16(0)] * (len(terms) % 2)
        terms = [np.float16(a + b) for a, b in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]


def test_each_result_is_rounded_to_its_declared_type():
    """fp16: (x + 1) is rounded before 1 is taken off again."""
    x = np.array([[1e-4, 3e-4, 0.1]], np.float16)
    (stored,) = run(lambda x: mb.sub(x=mb.add(x=x, y=np.float16(1)), y=np.float16(1)), {"x": x})
    np.testing.assert_array_equal(stored, (x + np.float16(1)) - np.float16(1))
    (wide,) = run(
        lambda x: mb.sub(x=mb.add(x=x, y=np.float16(1)), y=np.float16(1)),
        {"x": x},
        numerics=Numerics(RoundingMode.FP32),
    )
    np.testing.assert_allclose(wide, x, rtol=1e-3)
    assert not np.array_equal(wide, stored)


def test_fp16_rounds_inputs_weights_and_results_of_a_fp32_package():
    x = np.array([[1.0001, 2.0003, -3.0007]], np.float32)
    weights = np.array([[0.10007, 7.003, 1.00001]], np.float32)
    (result,) = run(lambda x: mb.mul(x=x, y=weights), {"x": x}, numerics=Numerics(RoundingMode.FP16))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, (x.astype(np.float16) * weights.astype(np.float16)).astype(np.float32))


def test_casts_follow_the_choice():
    x = np.array([[1.0001]], np.float32)

    def build(x):
        return mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32")

    assert run(build, {"x": x})[0] == np.float32(np.float16(x))
    assert run(build, {"x": x}, numerics=Numerics(RoundingMode.FP32))[0] == x


def test_products_are_summed_in_float32_and_rounded_once():
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float16) for shape in ((1, 4096), (8, 4096)))
    (result,) = run(lambda x: mb.linear(x=x, weight=w, bias=np.zeros(8, np.float16)), {"x": x})
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    np.testing.assert_allclose(result, exact, rtol=2**-10.9)


@pytest.mark.parametrize(("numerics", "expected"), [(HALF, 2048), (STAGED, 4096), (Numerics(), 4096)])
def test_ones_stop_counting_at_2048_in_half(numerics, expected):
    x = np.ones((1, 4096), np.float16)
    (result,) = run(lambda x: mb.reduce_sum(x=x, axes=[1]), {"x": x}, numerics=numerics)
    assert result == [expected]


@pytest.mark.parametrize(("numerics", "added"), [(HALF, added_one_by_one), (STAGED, added_in_a_tree)])
@pytest.mark.parametrize("keep", [True, False])
def test_strict_reductions(numerics, added, keep):
    x = np.random.default_rng(1).standard_normal((2, 37, 3)).astype(np.float16) * np.float16(9)

    def build(x):
        return tuple(
            reduce(x=x, axes=[-2], keep_dims=keep)
            for reduce in (mb.reduce_sum, mb.reduce_mean, mb.reduce_l1_norm, mb.reduce_l2_norm, mb.reduce_sum_square)
        )

    results = run(build, {"x": x}, numerics=numerics)
    columns = [[x[i, :, j] for j in range(3)] for i in range(2)]
    formulas = [
        added,
        lambda t: np.float16(np.float32(added(t)) / 37),
        lambda t: added(np.abs(t)),
        lambda t: np.sqrt(added(t * t)),
        lambda t: added(t * t),
    ]
    for result, formula in zip(results, formulas, strict=True):
        expected = np.array([[formula(t) for t in row] for row in columns])
        np.testing.assert_array_equal(result, expected[:, None] if keep else expected)


def test_strict_reduction_of_several_axes_goes_through_them_in_order():
    x = np.random.default_rng(2).standard_normal((3, 4, 5)).astype(np.float16)
    (result,) = run(lambda x: mb.reduce_sum(x=x, axes=[2, 0]), {"x": x}, numerics=HALF)
    np.testing.assert_array_equal(result, [added_one_by_one(x[:, i].ravel()) for i in range(4)])


@pytest.mark.parametrize(("transpose_x", "transpose_y"), [(False, False), (True, False), (False, True), (True, True)])
def test_strict_matrix_products_in_order(transpose_x, transpose_y):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 3, 70)).astype(np.float16), rng.standard_normal((70, 4)).astype(np.float16)
    expected = np.array([[[added_one_by_one(row * column) for column in y.T] for row in matrix] for matrix in x])
    given = {"x": x.swapaxes(1, 2) if transpose_x else x, "y": y.T if transpose_y else y}
    given = {name: np.ascontiguousarray(value) for name, value in given.items()}

    def build(x, y):
        return mb.matmul(x=x, y=y, transpose_x=transpose_x, transpose_y=transpose_y)

    np.testing.assert_array_equal(run(build, given, numerics=HALF)[0], expected)
    (staged,) = run(build, given, numerics=STAGED)
    blocks = np.array([
        [[added_in_a_tree([0, *(added_in_a_tree((row * column)[s : s + 32]) for s in (0, 32, 64))]) for column in y.T]
         for row in matrix] for matrix in x
    ])  # fmt: skip
    np.testing.assert_array_equal(staged, blocks)


def test_strict_linear_adds_its_bias_last():
    rng = np.random.default_rng(4)
    x, w, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((1, 50), (3, 50), (3,)))
    (result,) = run(lambda x: mb.linear(x=x, weight=w, bias=b), {"x": x}, numerics=HALF)
    np.testing.assert_array_equal(
        result[0], [added_one_by_one(x[0] * row) + one for row, one in zip(w, b, strict=True)]
    )


def test_strict_sums_of_nothing_are_zero_and_overflow_shows():
    for total in (accumulation.staged, accumulation.sequential):
        assert torch.equal(total(torch.zeros(3, 0, dtype=torch.half)), torch.zeros(3, dtype=torch.half))
        assert total(torch.full((1, 4), 3e4, dtype=torch.half)).isinf()


def test_float32_packages_are_not_touched_by_accumulators():
    x = np.full((1, 4096), 0.1, np.float32)
    (result,) = run(lambda x: mb.reduce_sum(x=x, axes=[1]), {"x": x}, numerics=HALF)
    np.testing.assert_allclose(result, [409.6], rtol=1e-6)
