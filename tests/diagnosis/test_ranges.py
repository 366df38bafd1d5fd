"""Values that occur. What half holds is NumPy's ``finfo``; what a device does with offset slices is published."""

import numpy as np
import pytest

from splitter import mil
from splitter.diagnosis.ranges import measured
from splitter.mil.graph import graph_of

from .harness import Case, f16, f32, findings, mb, package


def square(x):
    return mb.square(x=x)


def relu(x):
    return mb.relu(x=x)


def sliced(x):
    return mb.slice_by_index(x=x, begin=[0, 1], end=[1, 8])


def again(x):
    """Two overflows, one behind the other; in half the second would see only infinities."""
    return mb.square(x=mb.sqrt(x=mb.square(x=x)))


CASES = [
    Case("range-overflow", square, {"x": f16(1, 8, value=256)}, ["square"], run=True),
    Case("range-overflow", square, {"x": f16(1, 8, value=255)}, run=True),
    Case("range-overflow", square, {"x": f16(1, 8, value=256)}),
    Case("range-overflow", square, {"x": f32(1, 8, value=256)}, run=True),
    Case("range-overflow", again, {"x": f16(1, 8, value=300)}, ["square", "square"], run=True),
    Case("range-overflow", lambda x: mb.real_div(x=np.float16(1), y=mb.square(x=x)), {"x": f16(1, 8, value=300)},
         ["square"], run=True),
    Case("range-overflow", lambda x: mb.add(x=x, y=np.float16(-np.inf)), {"x": f16(1, 8)}, run=True),
    Case("range-near-overflow", square, {"x": f16(1, 8, value=129)}, ["square"], run=True),
    Case("range-near-overflow", square, {"x": f16(1, 8, value=127)}, run=True),
    Case("range-near-overflow", square, {"x": f16(1, 8, value=256)}, run=True),
    Case("range-underflow", relu, {"x": f16(1, 8, value=6e-5)}, ["relu"], run=True),
    Case("range-underflow", relu, {"x": f16(1, 8, value=6.2e-5)}, run=True),
    Case("range-underflow", relu, {"x": f16(1, 8, value=0)}, run=True),
    Case("range-needs-fp32", square, {"x": f32(1, 8, value=256)}, ["square"], run=True),
    Case("range-needs-fp32", square, {"x": f32(1, 8, value=255)}, run=True),
    Case("range-needs-fp32", square, {"x": f16(1, 8, value=256)}, run=True),
    Case("range-slice", sliced, {"x": f16(1, 8, value=4096)}, ["slice_by_index"], run=True),
    Case("range-slice", sliced, {"x": f16(1, 8, value=4094)}, run=True),
    Case("range-slice", sliced, {"x": f16(1, 8, value=4096)}, chip="m3", run=True),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule(case, tmp_path):
    case.check(tmp_path)


def test_what_is_said_of_an_overflow(tmp_path):
    x = f16(1, 8)
    x[0, 2] = -300
    (found,) = findings(package(square, {"x": x}, tmp_path), "range-overflow", run=True, inputs={"x": x})
    assert found.output.startswith("square")
    assert found.what == "reaches 9e+04: 1 of 8 values overflow"


def test_every_turn_of_a_loop_counts(tmp_path):
    def build(x):
        def body(i, y):
            return mb.add(x=i, y=np.int32(1)), mb.mul(x=y, y=np.float16(2))

        return mb.while_loop(
            _cond=lambda i, y: mb.less(x=i, y=np.int32(3)), _body=body, loop_vars=(mb.floor_div(x=0, y=1), x)
        )[1]

    model = mil.load(package(build, {"x": f16(1, 4)}, tmp_path), numerics=mil.Numerics(mil.RoundingMode.FP32))
    ranges = measured(model, graph_of(model.function), {"x": f16(1, 4)}).ranges
    (product,) = (seen for node, seen in ranges.items() if node.type == "mul")
    assert (product.largest, product.total) == (8.0, 12)
