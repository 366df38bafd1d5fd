"""The estimate against the figures it is calibrated on (coremltools#1900), and what was seen to take long."""

import numpy as np
import pytest

from splitter.diagnosis.compiling import BLOCK_OPERATIONS, compile_time

from .harness import Case, f16, f32, mb


def fan(count):
    return lambda x: mb.concat(values=[mb.relu(x=x) for _ in range(count)], axis=1)


def strided(stride):
    return lambda x: mb.conv(x=x, weight=f16(8, 4, 1, 1), strides=[1, stride])


def long_conv(stride):
    return lambda x: mb.conv(x=x, weight=np.ones((16, 22, 12), X_TYPES[x.dtype.__name__]), strides=[stride])


X_TYPES = {"fp16": np.float16, "fp32": np.float32}
LONG = {"x": f16(1, 22, 18001)}
X, IMAGE = {"x": f16(1, 8)}, {"x": f16(1, 4, 8, 35)}
CASES = [
    Case("compile-branches", fan(12), X, ["concat"]),
    Case("compile-branches", fan(11), X),
    Case("compile-branches", lambda x: mb.concat(values=[x] * 12, axis=1), X),
    Case("compile-stride", strided(5), IMAGE, ["conv"]),
    Case("compile-stride", strided(7), IMAGE, ["conv"]),
    Case("compile-stride", strided(6), IMAGE),
    Case("compile-stride", strided(4), IMAGE),
    Case("compile-long-stride", long_conv(6), LONG, ["conv"]),
    Case("compile-long-stride", long_conv(4), LONG),
    Case("compile-long-stride", long_conv(6), {"x": f16(1, 22, 16384)}),
    Case("compile-long-stride", long_conv(6), {"x": f32(1, 22, 18001)}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule(case, tmp_path):
    case.check(tmp_path)


@pytest.mark.parametrize(("blocks", "seconds"), [(1, 4.9), (4, 39), (8, 130), (32, 40 * 60)])
def test_published_times_are_met(blocks, seconds):
    estimate = compile_time(blocks * BLOCK_OPERATIONS)
    assert estimate.seconds == pytest.approx(seconds)
    assert estimate.bounds == pytest.approx((seconds / 10, seconds * 10))


def test_time_grows_faster_than_the_operations():
    times = [compile_time(count).seconds for count in (1, 56, 112, 448, 896, 1792, 3584, 7168)]
    assert times == sorted(times)
    assert 4 * times[2] < times[3]
    assert 2 * times[3] < times[4]
    assert times[-1] > 2 * times[-2]


def test_nothing_for_the_engine_takes_no_time():
    assert compile_time(0).seconds is None
    assert compile_time(0).bounds is None
