"""The Neural Engine's model against the published figures that it is made of (sources in `splitter.mil.neural_engine`)."""

import numpy as np
import pytest

from splitter.errors import UsageError
from splitter.mil.numerics import AccumulatorType, Numerics, RoundingMode
from splitter.mil.prediction import predict

from .harness import f16, f32, mb, package, run

ANE = Numerics(RoundingMode.ANE)
INF = np.inf


def one(build, *values, numerics=ANE, target="iOS17"):
    """Results of an operation for some numbers, one by one."""
    (result,) = run(build, {"x": np.array([values], np.float16)}, target, numerics)
    return result.astype(np.float64).reshape(-1).tolist()


def ones(*shape):
    return np.ones(shape, np.float16)


def summed(terms):
    """A row of terms by a column of ones."""
    (result,) = run(lambda x: mb.matmul(x=x, y=ones(len(terms), 1)), {"x": np.array([terms], np.float16)}, numerics=ANE)
    return result.item()


@pytest.mark.parametrize("layer", ["linear", "matmul", "conv", "transposed"])
@pytest.mark.parametrize(("total", "given"), [(32752, 32752), (32768, INF), (-32752, -32752), (-32768, -INF)])
def test_sums_of_products_end_at_two_to_the_fifteenth(layer, total, given):
    half = np.array([total / 2, total / 2], np.float16)
    build = {
        "linear": lambda x: mb.linear(x=mb.reshape(x=x, shape=[1, 2]), weight=ones(1, 2)),
        "matmul": lambda x: mb.matmul(x=mb.reshape(x=x, shape=[1, 2]), y=ones(2, 1)),
        "conv": lambda x: mb.conv(x=mb.reshape(x=x, shape=[1, 2, 1, 1]), weight=ones(1, 2, 1, 1)),
        "transposed": lambda x: mb.conv_transpose(x=mb.reshape(x=x, shape=[1, 2, 1, 1]), weight=ones(2, 1, 1, 1)),
    }[layer]
    assert one(build, *half) == [given]


def test_it_is_the_magnitude_and_not_the_count():
    assert summed([32752]) == 32752
    assert summed([32768]) == INF
    assert summed([1000] * 32) == 32000
    assert summed([1000] * 33) == INF


def test_a_partial_sum_that_cancels_still_saturates():
    assert abs(summed([1000] * 33 + [-1000] * 33)) == INF
    assert summed([1000] * 32 + [-1000] * 32) == 0


def test_a_convolution_of_a_single_tap_keeps_the_range_of_half():
    assert one(lambda x: mb.conv(x=mb.reshape(x=x, shape=[1, 1, 1, 1]), weight=ones(1, 1, 1, 1)), 60000) == [60000]
    assert one(lambda x: mb.conv_transpose(x=mb.reshape(x=x, shape=[1, 1, 1, 1]), weight=ones(1, 1, 1, 1)), 60000) == [
        60000
    ]


def test_reductions_and_products_of_elements_keep_the_range_of_half():
    assert one(lambda x: mb.reduce_sum(x=x, axes=[1]), 30000, 30000) == [60000]
    assert one(lambda x: mb.mul(x=x, y=np.float16(2)), 30000) == [60000]


def test_a_bias_is_added_behind_the_sum():
    biased = lambda x: mb.linear(x=x, weight=ones(1, 2), bias=np.array([30000], np.float16))  # noqa: E731
    assert one(biased, 15000, 15000) == [60000]


def test_the_accumulator_is_wide():
    assert summed([1] * 16000) == 16000
    assert summed([1000, -1000, 1] * 16) == 16


def test_sums_flush_subnormal_numbers_and_single_operations_do_not():
    tiny = 2.0**-24
    assert summed([tiny, tiny]) == 0
    assert one(lambda x: mb.add(x=x, y=np.float16(0)), tiny) == [tiny]
    assert one(lambda x: mb.mul(x=x, y=np.float16(1)), tiny) == [tiny]


def test_softplus_falls_to_zero():
    result = one(lambda x: mb.softplus(x=x), 8, 10.39, 10.4, 50, -50)
    assert result == [8, pytest.approx(10.39, abs=0.01), 0, 0, 0]


def test_log_sum_exp_falls_to_zero():
    build = lambda x: mb.reduce_log_sum_exp(x=x, axes=[1])  # noqa: E731
    assert one(build, *[7.6] * 32) == [pytest.approx(7.6 + np.log(32), abs=0.01)]
    assert one(build, *[7.64] * 32) == [0]


def test_softmax_subtracts_its_maximum():
    assert one(lambda x: mb.softmax(x=x, axis=-1), 1000, 1, 2, 3) == [1, 0, 0, 0]


def test_exponentials_and_squares_end_where_half_does():
    assert one(lambda x: mb.exp(x=x), 11.086, 11.094) == [65248, INF]
    assert one(lambda x: mb.square(x=x), 255.9, 256) == [65472, INF]


def test_the_logarithm_of_zero_is_a_number():
    assert one(lambda x: mb.log(x=x), 1, 0, -1) == [0, -45440, 0]


def test_nan_enters_as_infinity():
    assert one(lambda x: mb.add(x=x, y=np.float16(0)), np.nan) == [INF]
    assert one(lambda x: mb.relu(x=x), np.nan) == [INF]
    assert one(lambda x: mb.sigmoid(x=x), np.nan) == [1]
    assert one(lambda x: mb.tanh(x=x), np.nan) == [1]
    assert one(lambda x: mb.erf(x=x), np.nan) == [1]
    assert one(lambda x: mb.exp(x=x), np.nan) == [INF]
    assert one(lambda x: mb.maximum(x=x, y=np.float16(3)), np.nan) == [INF]


def test_indeterminate_forms_are_zero():
    assert one(lambda x: mb.sub(x=x, y=x), INF) == [0]
    assert one(lambda x: mb.mul(x=x, y=np.float16(0)), INF) == [0]
    assert one(lambda x: mb.sqrt(x=x), -1) == [0]
    assert one(lambda x: mb.rsqrt(x=x), -1) == [0]


def test_zero_has_no_sign():
    assert one(lambda x: mb.inverse(x=x, epsilon=np.float16(0)), -0.0) == [INF]
    assert not np.signbit(one(lambda x: mb.add(x=x, y=np.float16(-0.0)), -0.0))[0]


def test_tables_at_infinity_and_at_zero():
    assert one(lambda x: mb.softplus(x=x), INF) == [0]
    assert one(lambda x: mb.softsign(x=x), INF, 1) == [0, 0.5]
    assert one(lambda x: mb.gelu(x=x), 0, 3)[0] == pytest.approx(-0.000543, abs=1e-6)
    assert one(lambda x: mb.silu(x=x), 0, 3)[0] == pytest.approx(-0.001259, abs=1e-6)


def test_rounding():
    """ANEForge#116: halves away from zero, and beyond 1024 one too far."""
    assert one(lambda x: mb.round(x=x), 0.5, 2.5, -2.5, 1023, 1024, 1025, -2047, 2048) == [
        1, 3, -3, 1023, 1025, 1026, -2048, 2048,
    ]  # fmt: skip


def test_offset_slices_end_at_4094():
    build = lambda begin: lambda x: mb.slice_by_index(x=x, begin=[0, begin], end=[1, 3])  # noqa: E731
    assert one(build(1), 0, 4094, 4096) == [4094, INF]
    assert one(build(1), 0, -4096, 1) == [-INF, 1]
    assert one(build(0), 60000, 4096, 1) == [60000, 4096, 1]


def test_what_is_in_fp32_is_computed_elsewhere():
    (result,) = run(lambda x: mb.softplus(x=x), {"x": f32(1, value=20.0)}, numerics=ANE)
    assert result.item() == 20


def test_the_program_says_otherwise():
    """Every departure is one: plain rounding gives what the program says."""
    plain = Numerics()
    assert one(lambda x: mb.softplus(x=x), 50, numerics=plain) == [50]
    assert one(lambda x: mb.log(x=x), 0, numerics=plain) == [-INF]
    assert one(lambda x: mb.round(x=x), 1024, numerics=plain) == [1024]
    (total,) = run(lambda x: mb.matmul(x=x, y=ones(2, 1)), {"x": f16(1, 2, value=20000)}, numerics=plain)
    assert total.item() == 40000


def test_it_brings_its_own_accumulator():
    with pytest.raises(UsageError, match="accumulator of its own"):
        Numerics(RoundingMode.ANE, AccumulatorType.HALF)


def saturating(x):
    return mb.relu(x=mb.matmul(x=x, y=ones(33, 2)))


def test_a_prediction_names_the_operation(tmp_path):
    inputs = {"x": f16(1, 33, value=1000)}
    said = []
    (result,) = predict(package(saturating, inputs, tmp_path), inputs, values="ane", notice=said.append).values()
    assert result.tolist() == [[INF, INF]]
    assert said == ["matmul 'matmul_0': 2 of 2 sums are beyond 32752, as far as 33000: infinity"]
    (plain,) = predict(tmp_path / "op.mlpackage", inputs, notice=said.append).values()
    assert plain.tolist() == [[32992, 32992]]
    assert len(said) == 1


def test_a_prediction_within_the_limits_names_nothing(tmp_path):
    inputs = {"x": f16(1, 33, value=900)}
    said = []
    predict(package(saturating, inputs, tmp_path), inputs, values="ane", notice=said.append)
    assert said == []


def test_a_package_in_fp32_is_not_for_the_engine(tmp_path):
    inputs = {"x": f32(1, 2)}
    path = package(lambda x: mb.relu(x=x), inputs, tmp_path)
    with pytest.raises(UsageError, match=r"runs nothing of op\.mlpackage.*--precision fp16"):
        predict(path, inputs, values="ane")
