"""Intervals: what a program's values cannot leave, and that they do not, whatever it is given."""

import math

import numpy as np
import pytest

from splitter.mil import load
from splitter.mil.bounds import bounds_of
from splitter.mil.graph import graph_of
from splitter.mil.program import load_spec, model_file

from .harness import f32, mb, package

INF = math.inf
X = {"x": f32(2, 4)}
WEIGHT = np.array([[1, -2, 0, 0], [0.5, 0.5, 0.5, 0.5]], np.float32)


def of_sigmoid(build):
    return lambda x: build(mb.sigmoid(x=x))


CASES = [
    (lambda x: mb.relu(x=x), 0, INF),
    (lambda x: mb.tanh(x=x), -1, 1),
    (lambda x: mb.identity(x=x), -INF, INF),
    (of_sigmoid(lambda y: mb.add(x=y, y=np.float32(3))), 3, 4),
    (of_sigmoid(lambda y: mb.sub(x=y, y=np.float32(3))), -3, -2),
    (of_sigmoid(lambda y: mb.sub(x=np.float32(3), y=y)), 2, 3),
    (of_sigmoid(lambda y: mb.mul(x=y, y=np.float32(-2))), -2, 0),
    (lambda x: mb.mul(x=x, y=x), 0, INF),
    (lambda x: mb.sub(x=x, y=mb.reduce_max(x=x, axes=[1], keep_dims=True)), -INF, 0),
    (lambda x: mb.sub(x=x, y=mb.reduce_max(x=mb.relu(x=x), axes=[1], keep_dims=True)), -INF, INF),
    (lambda x: mb.clip(x=x, alpha=np.float32(-5), beta=np.float32(5)), -5, 5),
    (of_sigmoid(lambda y: mb.maximum(x=y, y=np.float32(0.5))), 0.5, 1),
    (of_sigmoid(lambda y: mb.minimum(x=y, y=np.float32(0.5))), 0, 0.5),
    (of_sigmoid(lambda y: mb.linear(x=y, weight=WEIGHT, bias=np.array([1, 1], np.float32))), -1, 3),
    (lambda x: mb.linear(x=mb.tanh(x=x), weight=WEIGHT), -3, 3),
    (of_sigmoid(lambda y: mb.pad(x=mb.add(x=y, y=np.float32(3)), pad=[1, 1], mode="constant")), 0, 4),
    (of_sigmoid(lambda y: mb.concat(values=[y, np.full((2, 1), 7, np.float32)], axis=1)), 0, 7),
    (of_sigmoid(lambda y: mb.reduce_mean(x=mb.reshape(x=y, shape=[8]), axes=[0])), 0, 1),
    (of_sigmoid(lambda y: mb.reduce_sum(x=y, axes=[1])), -INF, INF),
]


@pytest.mark.parametrize(("build", "low", "high"), CASES)
def test_interval(build, low, high, tmp_path):
    model = load(package(build, X, tmp_path))
    graph = graph_of(model.function)
    assert bounds_of(graph)(graph.outputs[0]) == (pytest.approx(low), pytest.approx(high))
    for scale in (0.1, 1, 100):
        inputs = {"x": (scale * np.random.default_rng(0).standard_normal((2, 4))).astype(np.float32)}
        (result,) = model.predict(inputs).values()
        assert low <= result.min()
        assert result.max() <= high


def test_padding_is_zero_where_nothing_is_said(tmp_path):
    """Core ML Tools writes what it pads with; others may leave it out."""
    path = package(of_sigmoid(lambda y: mb.pad(x=mb.add(x=y, y=np.float32(3)), pad=[1, 1])), X, tmp_path)
    spec = load_spec(path)
    function = spec.mlProgram.functions["main"]
    (pad,) = (one for one in function.block_specializations[function.opset].operations if one.type == "pad")
    del pad.inputs["constant_val"]
    model_file(path).write_bytes(spec.SerializeToString())
    graph = graph_of(load(path).function)
    assert bounds_of(graph)(graph.outputs[0]) == (0, 4)
