"""What half precision does, seen from the program; limits from IEEE 754 (NumPy's ``finfo``)."""

import numpy as np
import pytest

from .harness import Case, f16, f32, mb

HALF = np.finfo(np.float16)
INF = np.float16(-np.inf)


def total(x):
    return mb.reduce_sum(x=x, axes=[1])


def normalised(axes, epsilon=1e-4):
    return lambda x: mb.layer_norm(x=x, axes=axes, epsilon=EPSILON[x.dtype.__name__](epsilon))


EPSILON = {"fp16": np.float16, "fp32": np.float32}


def mean_of_squares_minus_square_of_mean(x):
    mean = mb.reduce_mean(x=x, axes=[1])
    return mb.sub(x=mb.reduce_mean(x=mb.square(x=x), axes=[1]), y=mb.mul(x=mean, y=mean))


def mean_of_other_squares(x, y):
    mean = mb.reduce_mean(x=x, axes=[1])
    return mb.sub(x=mb.reduce_mean(x=mb.square(x=y), axes=[1]), y=mb.square(x=mean))


def variance(x):
    return mb.reduce_mean(x=mb.square(x=mb.sub(x=x, y=mb.reduce_mean(x=x, axes=[1], keep_dims=True))), axes=[1])


def root_of_sum(epsilon):
    return lambda x: mb.sqrt(x=mb.add(x=x, y=epsilon))


def masked(number):
    mask = np.zeros((1, 8), np.float16)
    mask[0, 3] = number
    return lambda x: mb.softmax(x=mb.add(x=x, y=mask), axis=-1)


def log_of_softmax(x, **options):
    return mb.log(x=mb.softmax(x=x, axis=-1), **options)


X, WIDE = {"x": f16(1, 8)}, {"x": f32(1, 8)}
LONG, SHORT = {"x": f16(1, 2049)}, {"x": f16(1, 2048)}
CASES = [
    Case("half-long-sum", total, LONG, ["reduce_sum"]),
    Case("half-long-sum", total, SHORT),
    Case("half-long-sum", total, {"x": f32(1, 2049)}),
    Case("half-long-sum", total, {"x": f16(2049, 1)}),
    Case("half-long-sum", lambda x: mb.reduce_max(x=x, axes=[1]), LONG),
    Case("half-long-sum", lambda x: mb.reduce_mean(x=x), LONG, ["reduce_mean"]),
    Case("half-long-sum", normalised([1, 2]), {"x": f16(1, 3, 683)}, ["layer_norm"]),
    Case("half-long-sum", normalised([2]), {"x": f16(1, 3, 683)}),
    Case("half-long-sum", lambda x: mb.instance_norm(x=x, epsilon=np.float16(1e-4)), {"x": f16(1, 8, 40, 60)},
         ["instance_norm"]),
    Case("half-long-product", lambda x: mb.linear(x=x, weight=f16(2, 2049)), LONG, ["linear"]),
    Case("half-long-product", lambda x: mb.linear(x=x, weight=f16(2, 2048)), SHORT),
    Case("half-long-product", lambda x: mb.linear(x=x, weight=f32(2, 2049)), {"x": f32(1, 2049)}),
    Case("half-long-product", lambda x: mb.conv(x=x, weight=f16(2, 228, 3, 3)), {"x": f16(1, 228, 3, 3)}, ["conv"]),
    Case("half-long-product", lambda x: mb.conv(x=x, weight=f16(2, 227, 3, 3)), {"x": f16(1, 227, 3, 3)}),
    Case("half-square", lambda x: mb.square(x=x), X, ["square"]),
    Case("half-square", lambda x: mb.mul(x=x, y=x), X, ["mul"]),
    Case("half-square", lambda x: mb.pow(x=x, y=np.float16(2)), X, ["pow"]),
    Case("half-square", lambda x: mb.pow(x=x, y=np.float16(3)), X),
    Case("half-square", lambda x: mb.mul(x=x, y=np.float16(2)), X),
    Case("half-square", lambda x: mb.square(x=x), WIDE),
    Case("half-square", lambda x: mb.square(x=x), X, run=True),
    Case("half-cancellation", mean_of_squares_minus_square_of_mean, X, ["sub"]),
    Case("half-cancellation", mean_of_squares_minus_square_of_mean, WIDE),
    Case("half-cancellation", mean_of_other_squares, {"x": f16(1, 8), "y": f16(1, 8)}),
    Case("half-cancellation", variance, X),
    Case("half-lost-epsilon", root_of_sum(np.float16(1e-8)), X, ["add"]),
    Case("half-lost-epsilon", root_of_sum(HALF.smallest_subnormal), X),
    Case("half-lost-epsilon", root_of_sum(np.float32(1e-12)), WIDE),
    Case("half-lost-epsilon", lambda x: mb.relu(x=mb.add(x=x, y=np.float16(0))), X),
    Case("half-lost-epsilon", normalised([1], 1e-8), X, ["layer_norm"]),
    Case("half-small-epsilon", root_of_sum(np.float16(1e-5)), X, ["add"]),
    Case("half-small-epsilon", root_of_sum(HALF.smallest_normal), X),
    Case("half-small-epsilon", normalised([1], 1e-5), X, ["layer_norm"]),
    Case("half-small-epsilon", normalised([1], 1e-5), WIDE),
    Case("half-mask", masked(INF), X, ["add"]),
    Case("half-mask", masked(-1e4), X),
    Case("half-mask", masked(HALF.min), X),
    Case("half-mask", lambda x: mb.relu(x=mb.add(x=x, y=INF)), X),
    Case("half-constant", lambda x: mb.mul(x=x, y=np.float32(65505)), WIDE, ["mul"]),
    Case("half-constant", lambda x: mb.mul(x=x, y=np.float32(65504)), WIDE),
    Case("half-constant", lambda x: mb.maximum(x=x, y=np.float32(-np.inf)), WIDE),
    Case("half-constant", lambda x: mb.maximum(x=x, y=INF), X, ["maximum"]),
    Case("half-constant", lambda x: mb.clip(x=x, alpha=np.float32(-1), beta=np.float32(3e38)), WIDE),
    Case("half-softmax", lambda x: mb.softmax(x=x, axis=1), {"x": f16(1, 16385, 1)}, ["softmax"]),
    Case("half-softmax", lambda x: mb.softmax(x=x, axis=1), {"x": f16(1, 16384, 1)}),
    Case("half-softmax", lambda x: mb.softmax(x=x, axis=1), {"x": f32(1, 16385, 1)}),
    Case("half-softmax", lambda x: mb.softmax(x=x, axis=0), {"x": f16(1, 16385, 1)}),
    Case("half-log-softmax", log_of_softmax, X, ["log"]),
    Case("half-log-softmax", lambda x: log_of_softmax(x, epsilon=np.float16(1e-4)), X),
    Case("half-log-softmax", lambda x: mb.log(x=mb.sigmoid(x=x)), X),
    Case("half-log-softmax", log_of_softmax, WIDE),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule(case, tmp_path):
    case.check(tmp_path)
