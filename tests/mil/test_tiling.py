"""Runs of operations taken a few rows at a time give what they give taken whole."""

import numpy as np
import pytest
import torch

from splitter.mil import Numerics, RoundingMode, load, tiling

from .harness import mb, package

ROWS, CHANNELS, WIDTH = 64, 16, 1024  # 4 MB in float32
X = np.random.default_rng(0).standard_normal((ROWS, CHANNELS, WIDTH)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).standard_normal((2 * CHANNELS, CHANNELS, 3)).astype(np.float32)
KEYS = np.random.default_rng(3).standard_normal((ROWS, 40, WIDTH)).astype(np.float32)
BIAS = np.random.default_rng(4).standard_normal((CHANNELS, 1)).astype(np.float32)
GAIN = np.random.default_rng(2).standard_normal((ROWS, 1, 1)).astype(np.float32)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(tiling, "_MIN_BYTES", 1 << 17)
    monkeypatch.setattr(tiling, "_TILE_BYTES", 1 << 16)
    monkeypatch.setattr(tiling, "_MIN_ROWS", 8)


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


def attention(x):
    """Queries by rows; keys and values are needed whole."""
    scores = mb.softmax(x=mb.mul(x=mb.matmul(x=x, y=KEYS, transpose_y=True), y=np.float32(0.01)), axis=-1)
    return mb.matmul(x=scores, y=KEYS)


def attention_to_itself(x):
    """The first operation needs x by rows and whole."""
    return mb.matmul(x=mb.softmax(x=mb.matmul(x=x, y=x, transpose_y=True), axis=-1), y=x)


PROGRAMS = {
    "attention": (attention, 1),
    "attention to a constant by query": (
        lambda x: mb.matmul(
            x=mb.softmax(x=mb.add(x=mb.matmul(x=x, y=KEYS, transpose_y=True), y=BIAS), axis=-1), y=KEYS
        ),
        0,
    ),
    "attention to itself": (attention_to_itself, 0),
    "attention along queries": (
        lambda x: mb.matmul(x=mb.softmax(x=mb.matmul(x=x, y=KEYS, transpose_y=True), axis=-2), y=KEYS),
        0,
    ),
    "columns of a product": (lambda x: elementwise(mb.matmul(x=x, y=KEYS[0, :CHANNELS], transpose_x=True)), 0),
    "operations with an epsilon of their own": (lambda x: mb.log(x=mb.rsqrt(x=mb.exp(x=elementwise(x)))), 1),
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


IMAGE = X[:CHANNELS].transpose(1, 0, 2).reshape(1, CHANNELS, CHANNELS * 8, WIDTH // 8)
POINT, TALL = (
    np.random.default_rng(5).standard_normal((2 * CHANNELS, CHANNELS, height, 1)).astype(np.float32)
    for height in (1, 8)
)
SQUARE = np.random.default_rng(6).standard_normal((2 * CHANNELS, CHANNELS, 3, 3)).astype(np.float32)


def gated(x):
    value, gate = mb.split(x=mb.conv(x=x, weight=POINT), num_splits=2, axis=1)
    return mb.mul(x=value, y=mb.sigmoid(x=gate))


CONVOLUTIONS = {
    "a point": (gated, [2]),
    "same": (lambda x: mb.conv(x=x, weight=POINT, pad_type="same"), [2]),
    "a column": (
        lambda x: mb.gelu(x=mb.conv(x=x, weight=TALL, strides=[4, 1], pad_type="custom", pad=[2, 2, 0, 0])),
        [3],
    ),
    "neighbours": (lambda x: mb.sigmoid(x=mb.conv(x=x, weight=SQUARE, pad_type="custom", pad=[1, 1, 1, 1])), [2]),
    "neighbours on one side": (lambda x: mb.conv(x=x, weight=SQUARE, pad_type="custom", pad=[2, 0, 1, 1]), [2]),
    "far neighbours": (
        lambda x: mb.conv(x=x, weight=SQUARE, dilations=[3, 1], pad_type="custom", pad=[3, 3, 0, 0]),
        [2],
    ),
    "neighbours along the other": (
        lambda x: mb.conv(x=x, weight=SQUARE, strides=[2, 1], pad_type="custom", pad=[1, 1, 1, 1]),
        [3],
    ),
    "a residual around neighbours": (
        lambda x: mb.add(x=x, y=mb.conv(x=x, weight=SQUARE[:CHANNELS], pad_type="custom", pad=[1, 1, 1, 1])),
        [2],
    ),
    "padded along both": (lambda x: mb.conv(x=x, weight=TALL, pad_type="custom", pad=[2, 2, 1, 0]), []),
    "strides along both": (lambda x: mb.conv(x=x, weight=TALL, strides=[4, 2]), []),
    "transposed": (
        lambda x: mb.conv_transpose(
            x=x,
            weight=TALL.transpose(1, 0, 2, 3),
            strides=[4, 1],
            output_shape=[1, 2 * CHANNELS, 4 * 8 * CHANNELS + 4, 128],
        ),
        [3],
    ),
    "softmax over the axis": (lambda x: mb.softmax(x=mb.conv(x=x, weight=POINT), axis=2), [2]),
    "split of the axis": (lambda x: mb.split(x=mb.conv(x=x, weight=POINT), num_splits=2, axis=2)[1], [2]),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_of_one_image_is_cut_where_its_kernel_is_a_point(name, tmp_path):
    build, axes = CONVOLUTIONS[name]
    model = load(package(build, {"x": IMAGE}, tmp_path))
    assert [region.axis for region in model.regions] == axes
    (tiled,), (whole,) = model.predict({"x": IMAGE}).values(), model.predict({"x": IMAGE}, listener=Nothing()).values()
    np.testing.assert_allclose(tiled, whole, rtol=2e-5, atol=2e-5)


def test_a_batch_of_transposed_convolutions_keeps_its_output_shape(tmp_path):
    def build(x):
        x = mb.conv_transpose(x=x, weight=WEIGHTS, strides=[2], output_shape=[ROWS // 2, CHANNELS, 2 * WIDTH + 1])
        return elementwise(x)

    given = {"x": X.reshape(ROWS // 2, 2 * CHANNELS, WIDTH)}
    model = load(package(build, given, tmp_path))
    assert len(model.regions) == 1
    (tiled,), (whole,) = model.predict(given).values(), model.predict(given, listener=Nothing()).values()
    np.testing.assert_allclose(tiled, whole, rtol=2e-5, atol=2e-5)


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
    assert not load(package(elementwise, {"x": X[:, :, :2]}, tmp_path)).regions


def test_listeners_see_every_operation_whole(tmp_path):
    shapes = []

    class Shapes(Nothing):
        def after(self, operation, outputs):
            shapes.extend(tuple(one.shape) for one in outputs.values())

    load(package(elementwise, {"x": X}, tmp_path)).predict({"x": X}, listener=Shapes())
    assert shapes == [X.shape] * 3


def heads(x):
    """Queries, keys and values that are all computed; the scores are small enough to be told apart."""
    parts = mb.reshape(x=x, shape=(2, 2, 64, 4096))
    narrow = mb.slice_by_size(x=parts, begin=[0, 0, 0, 0], size=[2, 2, 64, 32])
    wide = mb.slice_by_size(x=parts, begin=[0, 0, 0, 32], size=[2, 2, 64, 32])
    return (
        mb.mul(x=narrow, y=np.float32(0.2)),
        wide,
        mb.slice_by_size(x=parts, begin=[0, 0, 0, 64], size=[2, 2, 64, 48]),
    )


ATTENTION = {
    "attention": (lambda q, k, v: mb.matmul(x=mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True)), y=v), True),
    "scores used again": (
        lambda q, k, v: mb.concat(
            values=[(w := mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True))), mb.matmul(x=w, y=v)], axis=-1
        ),
        False,
    ),
    "keys as columns": (
        lambda q, k, v: mb.matmul(x=mb.softmax(x=mb.matmul(x=q, y=mb.transpose(x=k, perm=[0, 1, 3, 2]))), y=v),
        False,
    ),
    "values as rows": (
        lambda q, k, v: mb.matmul(
            y=mb.transpose(x=v, perm=[0, 1, 3, 2]),
            x=mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True)),
            transpose_y=True,
        ),
        False,
    ),
}


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("values", ["fp32", "fp16"])
def test_attention_in_one_call_where_nothing_is_rounded_between(name, values, tmp_path, monkeypatch):
    build, fused = ATTENTION[name]
    x = X.reshape(-1)[: 2 * 2 * 64 * 4096].reshape(4, 64, 4096)
    monkeypatch.setattr(tiling, "_MIN_BYTES", 1 << 12)
    monkeypatch.setattr(tiling, "_TILE_BYTES", 1 << 11)
    model = load(package(lambda x: build(*heads(x)), {"x": x}, tmp_path), numerics=Numerics(RoundingMode(values)))
    assert [bool(region.attention) for region in model.regions] == [fused]
    calls = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), real(*a, **k))[1]
    )
    (tiled,), (whole,) = model.predict({"x": x}).values(), model.predict({"x": x}, listener=Nothing()).values()
    assert bool(calls) == (fused and values == "fp32")
    np.testing.assert_allclose(tiled, whole, rtol=1e-5, atol=1e-5 if values == "fp32" else 1e-3)
