"""Runs of operations taken a few rows at a time give what they give taken whole."""

import numpy as np
import pytest

from splitter.mil import load

from .harness import mb, package

ROWS, CHANNELS, WIDTH = 64, 16, 1024  # 4 MB in float32
X = np.random.default_rng(0).standard_normal((ROWS, CHANNELS, WIDTH)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).standard_normal((2 * CHANNELS, CHANNELS, 3)).astype(np.float32)
GAIN = np.random.default_rng(2).standard_normal((ROWS, 1, 1)).astype(np.float32)


class Nothing:
    """A listener: with one, every operation is computed whole."""

    def before(self, operation, inputs): ...

    def after(self, operation, outputs): ...


def residual(x):
    """A gated residual branch with its normalisation, as HT Demucs has them."""
    y = mb.conv(x=x, weight=WEIGHTS, pad_type="same", dilations=[2])
    y = mb.reshape(x=y, shape=(ROWS, 1, 2 * CHANNELS, WIDTH))
    centred = mb.sub(x=y, y=mb.reduce_mean(x=y, axes=[2, 3], keep_dims=True))
    spread = mb.reduce_mean(x=mb.square(x=centred), axes=[2, 3], keep_dims=True)
    y = mb.real_div(x=centred, y=mb.sqrt(x=mb.add(x=spread, y=np.float32(1e-5))))
    y = mb.reshape(x=y, shape=(ROWS, 2 * CHANNELS, WIDTH))
    value, gate = mb.split(x=y, num_splits=2, axis=1)
    return mb.add(x=x, y=mb.mul(x=value, y=mb.sigmoid(x=gate)))


def elementwise(x):
    return mb.tanh(x=mb.mul(x=mb.add(x=x, y=np.float32(1)), y=np.float32(3)))


PROGRAMS = {
    "residual": (residual, 1),
    "later use": (lambda x: (y := mb.relu(x=x), mb.mul(x=elementwise(y), y=y))[1], 1),
    "transposed within rows": (lambda x: mb.softmax(x=mb.transpose(x=elementwise(x), perm=[0, 2, 1]), axis=-1), 1),
    "constant by row": (lambda x: elementwise(mb.mul(x=x, y=GAIN)), 1),
    "sum over rows between": (
        lambda x: elementwise(mb.sub(x=elementwise(x), y=mb.reduce_sum(x=elementwise(x), axes=[0], keep_dims=True))),
        2,
    ),
    "rows moved": (lambda x: mb.transpose(x=elementwise(x), perm=[1, 0, 2]), 1),
    "rows joined": (lambda x: (y := elementwise(x), elementwise(mb.concat(values=[y, y], axis=0)))[1], 2),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_tiles_give_the_whole(name, tmp_path):
    build, least = PROGRAMS[name]
    model = load(package(build, {"x": X}, tmp_path))
    assert len(model.regions) >= least
    (tiled,), (whole,) = model.predict({"x": X}).values(), model.predict({"x": X}, listener=Nothing()).values()
    np.testing.assert_allclose(tiled, whole, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda x: mb.cumsum(x=x, axis=0),
        lambda x: mb.reduce_sum(x=x, axes=[0, 1]),
        lambda x: mb.softmax(x=x, axis=0),
        lambda x: mb.softmax(x=x, axis=-3),
        lambda x: mb.transpose(x=x, perm=[2, 1, 0]),
    ],
)
def test_what_mixes_rows_is_never_tiled(build, tmp_path):
    model = load(package(lambda x: build(elementwise(x)), {"x": X}, tmp_path))
    last = len([one for one in model.operations if one.type != "const"]) - 1
    assert all(region.stop <= last for region in model.regions)


def test_small_values_are_not_worth_it(tmp_path):
    assert not load(package(elementwise, {"x": X[:, :, :8]}, tmp_path)).regions


def test_listeners_see_every_operation_whole(tmp_path):
    shapes = []

    class Shapes(Nothing):
        def after(self, operation, outputs):
            shapes.extend(tuple(one.shape) for one in outputs.values())

    load(package(elementwise, {"x": X}, tmp_path)).predict({"x": X}, listener=Shapes())
    assert shapes == [X.shape] * 3
