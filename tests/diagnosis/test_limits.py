"""Limits of the Neural Engine, each reached and each kept; the controls that the measurements name stay silent."""

import numpy as np
import pytest

from .harness import Case, f16, f32, findings, mb, package


def by_ones(x):
    return mb.matmul(x=x, y=np.ones((x.shape[1], 1), np.float16))


def row(*terms):
    return {"x": np.array([terms], np.float16)}


def conv(x):
    return mb.conv(x=x, weight=np.full((1, x.shape[1], 1, 1), 1, np.float16))


def image(channels, value):
    return {"x": f16(1, channels, 1, 1, value=value)}


def softplus(x):
    return mb.softplus(x=x)


def stable_softplus(x):
    """coremltools#2725: max(x, 0) + log(1 + exp(−|x|))."""
    tail = mb.exp(x=mb.mul(x=mb.abs(x=x), y=np.float16(-1)))
    return mb.add(x=mb.maximum(x=x, y=np.float16(0)), y=mb.log(x=mb.add(x=tail, y=np.float16(1))))


def log_sum_exp(x):
    return mb.reduce_log_sum_exp(x=x, axes=[1])


def stable_log_sum_exp(x):
    """coremltools#2726: the maximum is subtracted."""
    most = mb.reduce_max(x=x, axes=[1], keep_dims=True)
    return mb.add(x=mb.log(x=mb.reduce_sum(x=mb.exp(x=mb.sub(x=x, y=most)), axes=[1], keep_dims=True)), y=most)


def exp(x):
    return mb.exp(x=x)


def log(x):
    return mb.log(x=x)


def log_of_positive(x):
    return mb.log(x=mb.add(x=mb.abs(x=x), y=np.float16(1e-3)))


def divided(x, y):
    return mb.real_div(x=x, y=y)


def divided_by_sum(x):
    return mb.real_div(x=x, y=mb.add(x=mb.square(x=x), y=np.float16(1e-3)))


def root(x):
    return mb.sqrt(x=x)


def with_nan(x):
    return mb.add(x=x, y=np.array([[np.nan, 1]], np.float16))


def bounded_linear(value):
    return lambda x: mb.linear(x=mb.sigmoid(x=x), weight=np.full((2, 8), value, np.float16))


CASES = [
    Case("limit-sum", by_ones, row(*[1000] * 33), ["matmul"], run=True),
    Case("limit-sum", by_ones, row(*[1000] * 32), run=True),
    Case("limit-sum", by_ones, row(*[1000] * 33)),
    Case("limit-sum", by_ones, {"x": f32(1, 33, value=1000)}, run=True),
    Case("limit-sum", conv, image(2, 20000), ["conv"], run=True),
    Case("limit-sum", conv, image(2, 16000), run=True),
    Case("limit-sum", conv, image(1, 60000), run=True),
    Case("limit-sum", lambda x: mb.reduce_sum(x=x), row(30000, 30000), run=True),
    Case("limit-sum", lambda x: mb.mul(x=x, y=np.float16(2)), row(30000), run=True),
    Case("limit-partial-sum", by_ones, row(*[1000] * 33, *[-1000] * 33), ["matmul"], run=True),
    Case("limit-partial-sum", by_ones, row(*[1000] * 32, *[-1000] * 32), run=True),
    Case("limit-partial-sum", by_ones, row(*[1000] * 33), run=True),
    Case("limit-input", softplus, row(10.5), ["softplus"], run=True),
    Case("limit-input", softplus, row(10.39), run=True),
    Case("limit-input", stable_softplus, row(50), run=True),
    Case("limit-input", log_sum_exp, row(*[7.64] * 32), ["reduce_log_sum_exp"], run=True),
    Case("limit-input", log_sum_exp, row(*[7.6] * 32), run=True),
    Case("limit-input", stable_log_sum_exp, row(*[7.64] * 32), run=True),
    Case("limit-input", exp, row(11.094), ["exp"], run=True),
    Case("limit-input", exp, row(11.08), run=True),
    Case("limit-input", log, row(0, 1), ["log"], run=True),
    Case("limit-input", log, row(0.5, 1), run=True),
    Case("limit-input", log, {"x": f32(1, 2, value=0)}, run=True),
    Case("limit-input", divided, {"x": f16(1), "y": f16(1, value=1e-6)}, ["real_div"], run=True),
    Case("limit-input", divided, {"x": f16(1), "y": f16(1, value=1e-4)}, run=True),
    Case("limit-input", lambda x: mb.round(x=x), row(1024), ["round"], run=True),
    Case("limit-input", lambda x: mb.round(x=x), row(1023), run=True),
    Case("limit-input", lambda x: mb.softmax(x=x, axis=-1), row(1000, 1, 2, 3), run=True),
    Case("limit-nan", with_nan, row(1, 1), ["add"]),
    Case("limit-nan", root, row(-1), ["sqrt"], run=True),
    Case("limit-nan", root, row(1), run=True),
    Case("limit-nan", root, {"x": f32(1, value=-1)}, run=True),
    Case("limit-unbounded", softplus, row(1), ["softplus"]),
    Case("limit-unbounded", softplus, row(1), run=True),
    Case("limit-unbounded", stable_softplus, row(1)),
    Case("limit-unbounded", log_sum_exp, row(1), ["reduce_log_sum_exp"]),
    Case("limit-unbounded", stable_log_sum_exp, row(1), ["log"]),
    Case("limit-unbounded", exp, row(1), ["exp"]),
    Case("limit-unbounded", lambda x: mb.exp(x=mb.clip(x=x, alpha=np.float16(-5), beta=np.float16(5))), row(1)),
    Case("limit-unbounded", lambda x: mb.exp(x=mb.tanh(x=x)), row(1)),
    Case("limit-unbounded", log, row(1), ["log"]),
    Case("limit-unbounded", log_of_positive, row(1)),
    Case("limit-unbounded", lambda x: mb.log(x=mb.sigmoid(x=x), epsilon=np.float16(1e-3)), row(1)),
    Case("limit-unbounded", divided_by_sum, row(1)),
    Case("limit-unbounded", divided, {"x": f16(1), "y": f16(1)}, ["real_div"]),
    Case("limit-unbounded", lambda x: mb.real_div(x=x, y=np.float16(8)), row(1)),
    Case("limit-unbounded", lambda x: mb.round(x=mb.relu6(x=x)), row(1)),
    Case("limit-unbounded", softplus, {"x": f32(1)}),
    Case("limit-unbounded-sum", by_ones, row(1), ["matmul"]),
    Case("limit-unbounded-sum", by_ones, row(1), run=True),
    Case("limit-unbounded-sum", bounded_linear(4000), {"x": f16(1, 8)}),
    Case("limit-unbounded-sum", bounded_linear(4100), {"x": f16(1, 8)}, ["linear"]),
    Case("limit-unbounded-sum", bounded_linear(-4100), {"x": f16(1, 8)}, ["linear"]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule(case, tmp_path):
    case.check(tmp_path)


def test_a_finding_says_how_far_it_goes(tmp_path):
    inputs = row(*[1000] * 33, *[-1000] * 33)
    (found,) = findings(package(by_ones, inputs, tmp_path), "limit-partial-sum", inputs=inputs, run=True)
    assert found.what == "1 of 1 partial sums are beyond 32752, as far as 33000 in the worst order: infinity"
