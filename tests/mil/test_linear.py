"""Matrix products and attention, against NumPy in float64 and loops."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitter.errors import OperationError
from splitter.mil.ops import find

from .harness import mb, run

SMALLEST, GREATEST = -(2**31), 2**31 - 1


def function(name, opset="CoreML8"):
    return find(name, opset).function


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(*shape, seed=0):
    return np.random.default_rng(seed).integers(SMALLEST, GREATEST, shape, np.int32, endpoint=True)


def close(got, expected, rtol=1e-5, atol=1e-5):
    assert np.shape(got) == np.shape(expected)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


# ------------------------------------------------------------------------------------------ linear


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 2, 3, 5)])
def test_linear(shape, target):
    x, weight, bias = random(*shape), random(4, 5, seed=1), random(4, seed=2)
    plain, biased = run(
        lambda x: (mb.linear(x=x, weight=weight), mb.linear(x=x, weight=weight, bias=bias)), {"x": x}, target
    )
    exact = np.array([weight.astype(np.float64) @ row for row in x.reshape(-1, 5)]).reshape(*shape[:-1], 4)
    close(plain, exact)
    close(biased, exact + bias)


def test_linear_in_half_precision_rounds_once():
    # 2049 is no half: a sum rounded before the bias is added would be 2048, and stay so.
    x = np.array([[2048, 1]], np.float16)
    weight, bias = np.ones((1, 2), np.float16), np.float16([1])
    (got,) = run(lambda x: mb.linear(x=x, weight=weight, bias=bias), {"x": x})
    assert got.dtype == np.float16
    assert got.tolist() == [[2050]]


def test_integers_wrap():
    x, weight, bias = whole(3, 5), whole(4, 5, seed=1), whole(4, seed=2)
    linear, product = run(
        lambda x: (mb.linear(x=x, weight=weight, bias=bias), mb.matmul(x=x, y=weight, transpose_y=True)), {"x": x}
    )
    exact = x.astype(object) @ weight.T.astype(object)
    for got, expected in ((linear, exact + bias.astype(object)), (product, exact)):
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, (expected & 0xFFFFFFFF).astype(np.uint32).astype(np.int32))


def test_weights_of_another_type():
    """Since iOS17; the result has x's type. Of integers it goes towards zero."""
    half, single, count = np.float16([[1.0, 2, -3]]), np.float32([[0.1, 0.2, 0.3], [1, 1, 1]]), np.int32([[1, 2, -4]])

    def build(half, count):
        return (
            mb.linear(x=half, weight=single, bias=np.float32([0.25, 0])),
            mb.matmul(x=half, y=single, transpose_y=True),
            mb.matmul(x=single, y=half, transpose_y=True),
            mb.linear(x=count, weight=single),
        )

    linear, right, left, cut = run(build, {"half": half, "count": count})
    exact = half.astype(np.float64) @ single.T.astype(np.float64)
    close(linear, (exact + np.array([0.25, 0])).astype(np.float16), rtol=0, atol=0)
    close(right, exact.astype(np.float16), rtol=0, atol=0)
    close(left, exact.T.astype(np.float16), rtol=0, atol=0)
    np.testing.assert_array_equal(cut, [[0, -1]])
    assert (linear.dtype, right.dtype, left.dtype, cut.dtype) == (np.float16, np.float16, np.float16, np.int32)


# ------------------------------------------------------------------------------------------ matmul


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((3, 4), (4, 2)),
        ((2, 3, 4), (2, 4, 5)),
        ((10, 4, 3), (5, 10, 3, 2)),
        ((2, 1, 3, 4), (3, 4, 2)),
        ((3, 4), (2, 2, 4, 1)),
    ],
)
def test_matmul(x, y, target):
    x, y = random(*x), random(*y, seed=1)

    def build(x, y, xt, yt):
        return (
            mb.matmul(x=x, y=y),
            mb.matmul(x=xt, y=y, transpose_x=True),
            mb.matmul(x=x, y=yt, transpose_y=True),
            mb.matmul(x=xt, y=yt, transpose_x=True, transpose_y=True),
        )

    inputs = {"x": x, "y": y, "xt": x.swapaxes(-1, -2).copy(), "yt": y.swapaxes(-1, -2).copy()}
    expected = x.astype(np.float64) @ y.astype(np.float64)
    for got in run(build, inputs, target):
        close(got, expected)


def test_matmul_of_a_vector():
    x, y = random(4), random(4, 3, seed=1)
    got, turned = run(
        lambda x, y: (mb.matmul(x=x, y=y), mb.matmul(x=x, y=mb.transpose(x=y, perm=[1, 0]), transpose_y=True)),
        {"x": x, "y": y},
    )
    for one in (got, turned):
        close(one, (x[:, None].astype(np.float64) * y).sum(0))


def test_matmul_of_a_vector_and_batches():
    # Core ML Tools declares another shape for a batch than it documents.
    x, y = random(4), random(5, 2, 4, 3, seed=1)
    left = function("matmul")(torch.from_numpy(x), torch.from_numpy(y))
    right = function("matmul")(torch.from_numpy(y), torch.from_numpy(x), transpose_x=True)
    expected = (x[:, None].astype(np.float64) * y).sum(-2)
    close(left, expected)
    close(right, expected)


def test_a_vector_is_not_transposed():
    x, y = torch.tensor([1.0, 2, 3]), torch.arange(6.0).reshape(2, 3)
    matmul = function("matmul")
    assert matmul(x, x, transpose_x=True, transpose_y=True).item() == 14
    assert matmul(y, x, transpose_y=True).tolist() == [8, 26]
    assert matmul(x, y, transpose_x=True, transpose_y=True).tolist() == [8, 26]


extents = st.integers(1, 4)


@settings(deadline=None, max_examples=50)
@given(extents, extents, extents, st.lists(st.tuples(extents, st.sampled_from("xy=")), max_size=3), st.randoms())
def test_batches_broadcast(n, k, m, batch, chance):
    """Each matrix by itself."""
    full = [extent for extent, _ in batch]
    x = random(*[1 if kept == "y" else extent for extent, kept in batch], n, k, seed=chance.randrange(99))
    y = random(*[1 if kept == "x" else extent for extent, kept in batch], k, m, seed=chance.randrange(99))
    got = function("matmul")(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    assert got.shape == (*full, n, m)
    x, y = np.broadcast_to(x, (*full, n, k)), np.broadcast_to(y, (*full, k, m))
    for place in np.ndindex(*full):
        terms = x[place].astype(np.float64)[:, :, None] * y[place][None]
        close(got[place], terms.sum(1))


# ------------------------------------------------------------------------------------------ einsum


@pytest.mark.parametrize(
    ("equation", "x", "y"),
    [
        ("nchw,nwhu->nchu", (2, 3, 4, 5), (2, 5, 4, 6)),
        ("abcd,adce->abce", (2, 3, 4, 5), (2, 5, 4, 6)),
        ("nchw,nwhu->nchu", (1, 3, 4, 5), (2, 5, 4, 6)),
        ("nchw,nwhu->nchu", (2, 3, 4, 5), (1, 5, 1, 6)),
        ("nchw,nwhu->nchu", (2, 3, 1, 1), (2, 1, 4, 6)),
        ("chw,whu->chu", (3, 4, 5), (5, 4, 6)),
        ("chw,whr->chr", (3, 1, 5), (5, 4, 6)),
        ("zyx,xyw->zyw", (3, 4, 5), (5, 1, 1)),
    ],
)
def test_einsum(equation, x, y):
    x, y = random(*x), random(*y, seed=1)
    (got,) = run(lambda x, y: mb.einsum(values=(x, y), equation=equation), {"x": x, "y": y}, "iOS15")
    close(got, (x[..., None].astype(np.float64) * y.swapaxes(-2, -3)[..., None, :, :, :]).sum(-2))


def test_einsum_in_half_precision_rounds_once():
    x, y = np.float16([2048, 1, 1, 1]).reshape(1, 1, 4), np.ones((4, 1, 1), np.float16)
    (got,) = run(lambda x, y: mb.einsum(values=(x, y), equation="chw,whu->chu"), {"x": x, "y": y})
    assert got.dtype == np.float16
    assert got.item() == 2052  # 2051, to even


@pytest.mark.parametrize(
    ("equation", "x", "y"),
    [
        ("ij,jk->ik", (2, 3), (3, 2)),
        ("nchw,nwhu->nchu", (3, 4, 5), (5, 4, 6)),
        ("chw,whu->chu", (3, 4, 5), (4, 4, 6)),
        ("chw,whu->cuh", (3, 4, 5), (5, 4, 6)),
        ("chw,hwu->chu", (3, 4, 4), (4, 4, 6)),
        ("chw,whu", (3, 4, 5), (5, 4, 6)),
        ("", (3, 4, 5), (5, 4, 6)),
    ],
)
def test_other_einsums_are_refused(equation, x, y):
    with pytest.raises(OperationError, match=r"unknown equation of einsum|operands do not fit"):
        function("einsum")([torch.zeros(x), torch.zeros(y)], equation)


@pytest.mark.parametrize("count", [1, 3])
def test_einsum_has_two_operands(count):
    with pytest.raises(OperationError, match="too many or too few operands: expected 2"):
        function("einsum")([torch.zeros(1, 1, 1)] * count, "chw,whu->chu")


# --------------------------------------------------------------------------------------- attention

MASKED = [
    # query, value's last extent, mask's shape
    ((2, 3, 4), 5, None),
    ((2, 3, 4), 4, (6,)),
    ((2, 3, 4), 5, (3, 6)),
    ((2, 3, 4), 1, (2, 1, 6)),
    ((2, 2, 3, 4), 5, (3, 6)),
    ((2, 2, 3, 4), 5, (2, 1, 3, 6)),
    ((1, 2, 2, 3, 4), 3, (2, 1, 3, 6)),
]


def attended(query, key, value, mask):
    """Row by row, in float64."""
    batch, rows = query.shape[:-2], query.shape[-2]
    query, key, value = (one.astype(np.float64) for one in (query, key, value))
    out = np.empty((*batch, rows, value.shape[-1]))
    added = np.zeros(()) if mask is None else np.where(mask, 0, -np.inf) if mask.dtype == bool else mask
    added = np.broadcast_to(added, (*batch, rows, key.shape[-2]))
    for place in np.ndindex(*batch, rows):
        score = key[place[:-1]] @ query[place] / np.sqrt(query.shape[-1]) + added[place]
        share = np.exp(score - score.max())
        out[place] = share @ value[place[:-1]] / share.sum()
    return out


def qkv(shape, width, length=6):
    keys = (*shape[:-2], length, shape[-1])
    return random(*shape), random(*keys, seed=1), random(*keys[:-1], width, seed=2)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("case", MASKED, ids=str)
def test_attention(case, kind):
    shape, width, masked = case
    query, key, value = qkv(shape, width)
    inputs = {"query": query, "key": key, "value": value}
    mask = None
    if masked is not None:
        numbers = random(*masked, seed=3) * 2
        mask = (numbers > -1) | (np.arange(masked[-1]) == 2) if kind == "bool" else numbers
        inputs["mask"] = mask.astype(np.int32 if kind == "bool" else np.float32)

    def build(query, key, value, mask=None):
        if kind == "bool" and mask is not None:
            mask = mb.cast(x=mask, dtype="bool")
        options = {} if mask is None else {"attn_mask": mask}
        return mb.scaled_dot_product_attention(query=query, key=key, value=value, **options)

    (got,) = run(build, inputs, "iOS18")
    close(got, attended(query, key, value, mask))


def test_attention_in_half_precision():
    query, key, value = (one.astype(np.float16) for one in qkv((2, 3, 4), 5))
    mask = random(3, 6, seed=3).astype(np.float16)

    def build(query, key, value, mask):
        options = {"query": query, "key": key, "value": value}
        return (
            mb.scaled_dot_product_attention(**options, attn_mask=mask),
            mb.scaled_dot_product_attention(**options, attn_mask=mb.cast(x=mask, dtype="fp32")),
        )

    expected = attended(query, key, value, mask.astype(np.float64))
    for got in run(build, {"query": query, "key": key, "value": value, "mask": mask}, "iOS18"):
        assert got.dtype == np.float16
        close(got, expected, rtol=2**-10.9, atol=1e-6)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_what_attends_to_nothing_is_nan(kind):
    query, key, value = qkv((1, 3, 4), 2)
    mask = np.ones((3, 6), bool)
    mask[1] = False
    mask[2, 1:] = False
    given = torch.from_numpy(mask if kind == "bool" else np.where(mask, 0, -np.inf).astype(np.float32))
    got = function("scaled_dot_product_attention")(*map(torch.from_numpy, (query, key, value)), given)
    assert torch.isnan(got[0, 1]).all()
    close(got[0, 0], attended(query, key, value, None)[0, 0])
    close(got[0, 2], value[0, 0])


def test_attention_is_of_ios18():
    assert find("scaled_dot_product_attention", "CoreML7") is None


# ------------------------------------------------------------------------------------ near misses


@pytest.mark.parametrize(
    ("name", "shapes", "error", "said"),
    [
        ("linear", [(2, 3), (4, 2)], RuntimeError, "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x4)"),
        (
            "linear",
            [(2, 3), (4, 3), (3,)],
            RuntimeError,
            "The expanded size of the tensor (4) must match the existing size (3)",
        ),
        ("matmul", [(2, 3), (2, 3)], RuntimeError, "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"),
        (
            "matmul",
            [(2, 2, 3), (3, 3, 3)],
            RuntimeError,
            "Attempting to broadcast a dimension of length 3 at -1! Mismatching",
        ),
        (
            "scaled_dot_product_attention",
            [(3, 4), (6, 4), (6, 4)],
            OperationError,
            "query has too few axes: expected at least 3",
        ),
        (
            "scaled_dot_product_attention",
            [(1, 3, 4), (1, 6, 5), (1, 6, 4)],
            RuntimeError,
            "Expected size for first two dimensions of batch2 tensor to be: [1, 4]",
        ),
        (
            "scaled_dot_product_attention",
            [(1, 3, 4), (1, 6, 4), (1, 6, 4), (3, 5)],
            RuntimeError,
            "The size of tensor a (6) must match the size of tensor b (5) at",
        ),
        (
            "scaled_dot_product_attention",
            [(1, 3, 4), (1, 6, 4), (1, 6, 4), (1, 1, 3, 6)],
            RuntimeError,
            "output with shape [1, 3, 6] doesn't match the broadcast shape [1, 1,",
        ),
    ],
)
def test_operands_that_do_not_fit(name, shapes, error, said):
    with pytest.raises(error, match=re.escape(said)):
        function(name)(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("linear", [(1 << 18, 1), (1 << 18, 1)]),
        ("matmul", [(1 << 18, 1), (1, 1 << 18)]),
        ("matmul", [(1 << 18, 1, 1, 1), (1 << 18, 1, 1)]),
        ("scaled_dot_product_attention", [(1, 1 << 18, 1), (1, 1 << 18, 1), (1, 1 << 18, 1)]),
    ],
)
def test_products_larger_than_memory(name, shapes):
    with pytest.raises(OperationError, match="too much memory"):
        function(name)(*(torch.zeros(shape) for shape in shapes))


def test_shapes_known_only_at_run_time_are_checked():
    def build(x, y, shape):
        return mb.matmul(x=x, y=mb.reshape(x=y, shape=shape))

    inputs = {"x": random(2, 3), "y": random(3, 4)}
    (got,) = run(build, inputs | {"shape": np.array([3, 4], np.int32)})
    close(got, inputs["x"] @ inputs["y"])
    with pytest.raises(OperationError, match="matmul"):
        run(build, inputs | {"shape": np.array([4, 3], np.int32)})
