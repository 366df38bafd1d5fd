"""Random numbers: their distributions, and that the seed decides them."""

import re

import numpy as np
import pytest
import torch
from scipy import stats

from splitter.errors import OperationError
from splitter.mil import load
from splitter.mil.ops import find

from .harness import mb, package, run

N = 20_000
SURE = 1e-4  # seeds are fixed, so a test that passes once passes always


class Given:
    """What a random operation uses of its context."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)


def draw(name, *arguments, **options):
    return find(name, "CoreML7").function(*arguments, context=Given(), **options)


def sample(build, dtype=np.float32, target="iOS17", **options):
    """A package needs an input; the operation does not."""

    def body(x):
        return build(), mb.add(x=x, y=x)

    got, _ = run(body, {"x": np.ones(1, np.float32)}, target, **options)
    assert got.dtype == dtype
    return got


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("seed", [{}, {"seed": 7}])
def test_distributions(target, seed):
    shape = (40, N // 40)
    uniform = sample(lambda: mb.random_uniform(shape=shape, low=-2.0, high=3.0, **seed), target=target)
    normal = sample(lambda: mb.random_normal(shape=shape, mean=1.0, stddev=3.0, **seed), target=target)
    coins = sample(lambda: mb.random_bernoulli(shape=shape, prob=0.3, **seed), target=target)
    assert uniform.shape == normal.shape == coins.shape == shape
    assert stats.kstest(uniform.ravel(), stats.uniform(-2, 5).cdf).pvalue > SURE
    assert stats.kstest(normal.ravel(), stats.norm(1, 3).cdf).pvalue > SURE
    assert set(np.unique(coins)) == {0, 1}
    assert stats.binomtest(int(coins.sum()), N, 0.3).pvalue > SURE


def test_defaults():
    assert stats.kstest(sample(lambda: mb.random_uniform(shape=[N])), stats.uniform.cdf).pvalue > SURE
    assert stats.kstest(sample(lambda: mb.random_normal(shape=[N])), stats.norm.cdf).pvalue > SURE
    assert stats.binomtest(int(sample(lambda: mb.random_bernoulli(shape=[N])).sum()), N, 0.5).pvalue > SURE
    for name in ("random_uniform", "random_normal", "random_bernoulli"):
        assert draw(name, [2, 3]).shape == (2, 3)


def test_half_precision():
    half = np.float16
    uniform = sample(lambda: mb.random_uniform(shape=[N], low=half(1), high=half(2)), half)
    normal = sample(lambda: mb.random_normal(shape=[N], mean=half(2), stddev=half(0.5)), half)
    coins = sample(lambda: mb.random_bernoulli(shape=[N], prob=half(0.25)), half)
    assert uniform.min() >= 1
    assert uniform.max() < 2
    assert abs(uniform.astype(float).mean() - 1.5) < 0.01
    assert abs(normal.astype(float).mean() - 2) < 0.02
    assert abs(normal.astype(float).std() - 0.5) < 0.02
    assert abs(coins.astype(float).mean() - 0.25) < 0.02


def test_a_shape_that_the_program_computes():
    def build(x):
        return mb.random_uniform(shape=mb.shape(x=x)), mb.random_normal(shape=mb.cast(x=x, dtype="int32"))

    uniform, normal = run(build, {"x": np.array([2, 3, 4], np.float32)})
    assert uniform.shape == (3,)
    assert normal.shape == (2, 3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_interval_is_half_open(dtype):
    """Whatever is drawn, also where hardly any number lies between the ends."""
    low = torch.tensor(1.0, dtype=dtype)
    high = low + 2 * torch.finfo(dtype).eps
    got = draw("random_uniform", [N], low=low, high=high)
    assert set(got.tolist()) == {low.item(), low.item() + torch.finfo(dtype).eps}
    assert set(draw("random_uniform", [9], low=high, high=high).tolist()) == {high.item()}


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_certainties(prob):
    assert (draw("random_bernoulli", [N], prob=prob) == prob).all()
    assert (draw("random_normal", [9], mean=2.0, stddev=0.0) == 2).all()


# Weights of four classes for each of two rows; they need not add up to one.
WEIGHTS = np.array([[1, 2, 3, 4], [3, 0, 0, 1]], np.float32)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("mode", ["logits", "probs"])
def test_categorical(mode, target):
    with np.errstate(divide="ignore"):
        x = np.log(WEIGHTS) + 5 if mode == "logits" else WEIGHTS
    (got,) = run(lambda x: mb.random_categorical(x=x, mode=mode, size=N), {"x": x}, target)
    assert got.shape == (2, N)
    for row, weights in zip(got, WEIGHTS, strict=True):
        counts = np.array([(row == index).sum() for index in range(4)])
        assert counts.sum() == N
        possible = weights > 0
        assert not counts[~possible].any()
        expected = N * weights[possible] / weights.sum()
        assert stats.chisquare(counts[possible], expected).pvalue > SURE


def test_categorical_defaults_and_ranks():
    (got,) = run(lambda x: mb.random_categorical(x=x), {"x": np.array([[[0, 99, 0]], [[99, 0, 0]]], np.float32)})
    np.testing.assert_array_equal(got, [[[1]], [[0]]])
    got = draw("random_categorical", torch.tensor([0, 99], dtype=torch.float16), size=5)
    assert (got.dtype, got.tolist()) == (torch.float16, [1] * 5)


BUILDS = {
    "uniform": lambda **seed: mb.random_uniform(shape=[50], **seed),
    "normal": lambda **seed: mb.random_normal(shape=[50], **seed),
    "bernoulli": lambda **seed: mb.random_bernoulli(shape=[50], **seed),
    "categorical": lambda **seed: mb.random_categorical(x=np.zeros(9, np.float32), size=50, **seed),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize("own", [{}, {"seed": 3}])
def test_the_seed_decides(build, own, tmp_path):
    x = {"x": np.ones(1, np.float32)}
    path = package(lambda x: (build(**own), build(**own), mb.add(x=x, y=x)), x, tmp_path)

    def predicted(seed):
        model = load(path, seed=seed)
        draws = [model.predict(x) for _ in range(2)]
        return [one for results in draws for one in list(results.values())[:2]]

    first, again, other = predicted(5), predicted(5), predicted(6)
    np.testing.assert_array_equal(first, again)
    for one, two in [(0, 1), (0, 2), (1, 3)]:  # neither two operations nor two predictions draw the same
        assert not np.array_equal(first[one], first[two])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("name", ["random_uniform", "random_normal", "random_bernoulli"])
def test_an_operations_own_seed(name):
    draws = [draw(name, [99], **own).tolist() for own in ({}, {"seed": 0}, {"seed": 4}, {"seed": -4}, {"seed": 4})]
    assert draws[2] == draws[4]
    assert all(draws[i] != draws[j] for i in range(4) for j in range(i))


@pytest.mark.parametrize("own", [{}, {"seed": -1}])
def test_without_a_seed_of_its_own(own):
    """It draws the caller's next numbers."""
    expected = torch.rand(9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw("random_uniform", [9], **own), expected)


@pytest.mark.parametrize("name", ["random_uniform", "random_normal", "random_bernoulli"])
@pytest.mark.parametrize("shape", [[1 << 20, 1 << 20], [2, -1]])
def test_shapes_beyond_reason(name, shape):
    with pytest.raises(OperationError, match="too much memory|negative extent"):
        draw(name, shape)


@pytest.mark.parametrize(
    ("name", "arguments", "options", "said"),
    [
        ("random_bernoulli", [[3]], {"prob": 1.5}, "a probability is out of range: expected 0…1"),
        ("random_bernoulli", [[3]], {"prob": float("nan")}, "a probability is out of range: expected 0…1"),
        ("random_categorical", [torch.zeros(3)], {"mode": "LOGITS"}, "unknown mode: expected logits or probs"),
        ("random_categorical", [torch.zeros(3)], {"size": -1}, "a result has a negative extent"),
        (
            "random_categorical",
            [torch.zeros(3)],
            {"size": 1 << 40},
            "the result needs too much memory",
        ),
    ],
)
def test_bad_parameters(name, arguments, options, said):
    with pytest.raises(OperationError, match=re.escape(said)):
        draw(name, *arguments, **options)


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [np.nan, 1]])
def test_weights_that_are_none(weights):
    with pytest.raises(OperationError, match="random_categorical"):
        run(lambda x: mb.random_categorical(x=x, mode="probs"), {"x": np.array([weights], np.float32)})
