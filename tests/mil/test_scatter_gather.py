"""Reading and writing by index, against loops over every index."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitter.errors import OperationError
from splitter.mil.ops import find
from splitter.mil.ops import scatter_gather as ops

from .harness import mb, run

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 4, 5)).astype(np.float32)
TARGETS = ["iOS15", "iOS16", "iOS17"]
SCATTER_TARGETS = ["iOS15", "iOS17"]


def whole(*shape, low, high, seed=1):
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int32)


def check(build, inputs, expected, target, rtol=0.0):
    for one, wanted in zip(run(build, inputs, target), expected, strict=True):
        assert one.shape == (wanted.shape or (1,))  # a program's scalar leaves as a vector
        np.testing.assert_allclose(one, wanted, rtol=rtol, atol=rtol)


def least(extent, target):
    """Negative indices count from the end until iOS17."""
    return 0 if target == "iOS17" else -extent


# ---------------------------------------------------------------------------------------- gathering


def gathered(x, indices, axis, batch_dims=0):
    axis %= x.ndim
    out = np.empty((*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :]), x.dtype)
    for before in np.ndindex(*x.shape[:axis]):
        for place in np.ndindex(*indices.shape[batch_dims:]):
            out[(*before, *place)] = x[(*before, indices[(*before[:batch_dims], *place)])]
    return out


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(1,), (6,), (2, 3)])
def test_gather(target, shape):
    axes = [{"axis": axis} for axis in (0, 1, 2, -1, -2)] + [{}]
    indices = whole(*shape, low=least(3, target), high=3)
    expected = [gathered(X, indices, axis.get("axis", 0)) for axis in axes]
    build = lambda x, i: tuple(mb.gather(x=x, indices=i, **axis) for axis in axes)  # noqa: E731
    check(build, {"x": X, "i": indices}, expected, target)


@pytest.mark.parametrize("target", TARGETS)
def test_gather_one(target):
    """A scalar index takes the axis away."""
    check(lambda x: mb.gather(x=x, indices=2, axis=1), {"x": X}, [X[:, 2]], target)


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
@pytest.mark.parametrize(("axis", "batch_dims"), [(1, 0), (1, 1), (2, 1), (-1, 2), (3, 2), (3, 3)])
def test_gather_in_batches(target, axis, batch_dims):
    x = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    for rest in ((), (2,), (2, 2)):
        if batch_dims + len(rest):
            indices = whole(*x.shape[:batch_dims], *rest, low=least(3, target), high=3)
            build = lambda x, i: mb.gather(x=x, indices=i, axis=axis, batch_dims=batch_dims)  # noqa: E731
            check(build, {"x": x, "i": indices}, [gathered(x, indices, axis, batch_dims)], target)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16"])
def test_small_integers(kind):
    """Since iOS17 both what is gathered and its indices may be small integers."""
    x, indices = whole(3, 4, low=0, high=100), whole(2, 4, low=0, high=3)

    def build(x, i):
        x, i = (mb.cast(x=one, dtype=kind) for one in (x, i))
        parts = mb.slice_by_index(x=i, begin=[0, 0], end=[2, 2])
        calls = (mb.gather(x=x, indices=i), mb.gather_along_axis(x=x, indices=i), mb.gather_nd(x=x, indices=parts))
        return tuple(mb.cast(x=one, dtype="int32") for one in calls)

    expected = [x[indices], np.take_along_axis(x, indices, 0), x[tuple(indices[:, :2].T)]]
    check(build, {"x": x, "i": indices}, expected, "iOS17")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_gather_along_axis(target, axis):
    options, at = ({}, 0) if axis is None else ({"axis": axis}, axis)
    shape = [2 if one == at % 3 else extent for one, extent in enumerate(X.shape)]
    indices = whole(*shape, low=least(3, target), high=3)
    ints = (X * 10).astype(np.int32)
    expected = [np.take_along_axis(one, indices.astype(np.int64), at) for one in (X, ints)]
    build = lambda x, y, i: tuple(mb.gather_along_axis(x=one, indices=i, **options) for one in (x, y))  # noqa: E731
    check(build, {"x": X, "y": ints, "i": indices}, expected, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (6, 1), (4, 3), (2, 3, 2)], ids=str)
def test_gather_nd(target, shape):
    indices = whole(*shape, low=least(3, target), high=3)
    expected = np.stack([X[tuple(indices[i])] for i in np.ndindex(*shape[:-1])])
    expected = np.reshape(expected, (*shape[:-1], *X.shape[shape[-1] :]))
    check(lambda x, i: mb.gather_nd(x=x, indices=i), {"x": X, "i": indices}, [expected], target)


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
@pytest.mark.parametrize(("batch_dims", "shape"), [(1, (3, 2)), (1, (3, 2, 1)), (2, (3, 4, 1)), (2, (3, 4, 2, 1))])
def test_gather_nd_in_batches(target, batch_dims, shape):
    indices = whole(*shape, low=least(4, target), high=4)
    expected = np.stack([X[(*i[:batch_dims], *indices[i])] for i in np.ndindex(*shape[:-1])])
    expected = expected.reshape(*shape[:-1], *X.shape[batch_dims + shape[-1] :])
    build = lambda x, i: mb.gather_nd(x=x, indices=i, batch_dims=batch_dims)  # noqa: E731
    check(build, {"x": X, "i": indices}, [expected], target)


# --------------------------------------------------------------------------------------- scattering


def divided(a, b):
    return np.trunc(a / b) if np.issubdtype(np.asarray(b).dtype, np.integer) else a / b


MODES = {
    "update": lambda a, b: b,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": divided,
    "max": np.maximum,
    "min": np.minimum,
}


def scattered(data, changes, mode):
    """One change after the other."""
    out = data.astype(np.float64)
    for place, value in changes:
        out[place] = MODES[mode](out[place], value)
    return out


def along(indices, axis):
    for place in np.ndindex(*indices.shape):
        yield (*place[:axis], indices[place], *place[axis + 1 :]), place


def given_data(integers):
    """What is changed, and numbers to change it by, none of them near zero."""
    if integers:
        return whole(3, 4, 5, low=-99, high=99), lambda *shape: whole(*shape, low=1, high=5, seed=2) * -1
    return X, lambda *shape: np.random.default_rng(2).uniform(0.5, 2, shape).astype(np.float32) * -1


def every_mode(op, data, indices, updates, changes, target, **options):
    """All modes in one program, the default last."""
    cases = [{"mode": mode} for mode in MODES] + [{}]
    if target == "iOS17":
        cases += [{"mode": "update", "validate_indices": True}, {"validate_indices": False}]
    expected = [scattered(data, changes, case.get("mode", "add")) for case in cases]

    def build(data, indices, updates):
        return tuple(op(data=data, indices=indices, updates=updates, **options, **case) for case in cases)

    check(build, {"data": data, "indices": indices, "updates": updates}, expected, target, 1e-5)


@pytest.mark.parametrize("target", SCATTER_TARGETS)
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter(target, integers, axis):
    data, random = given_data(integers)
    at = axis % 3
    indices = whole(6, low=least(3, target), high=3)  # some of them twice
    updates = random(*data.shape[:at], 6, *data.shape[at + 1 :])
    before = (slice(None),) * at
    changes = [((*before, index), updates[(*before, i)]) for i, index in enumerate(indices)]
    every_mode(mb.scatter, data, indices, updates, changes, target, axis=axis)


@pytest.mark.parametrize("target", SCATTER_TARGETS)
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter_along_axis(target, integers, axis):
    data, random = given_data(integers)
    shape = [6 if one == axis % 3 else extent for one, extent in enumerate(data.shape)]
    indices, updates = whole(*shape, low=least(3, target), high=3), random(*shape)
    changes = [(place, updates[source]) for place, source in along(indices, axis % 3)]
    every_mode(mb.scatter_along_axis, data, indices, updates, changes, target, axis=axis)


@pytest.mark.parametrize("target", SCATTER_TARGETS)
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("shape", [(6, 1), (9, 2), (4, 5, 3), (2,)])
def test_scatter_nd(target, integers, shape):
    data, random = given_data(integers)
    indices, updates = whole(*shape, low=least(3, target), high=3), random(*shape[:-1], *data.shape[shape[-1] :])
    changes = [(tuple(indices[i]), updates[i]) for i in np.ndindex(*shape[:-1])]
    every_mode(mb.scatter_nd, data, indices, updates, changes, target)


def test_axis_by_default_is_the_first():
    index, updates = np.array([2], np.int32), np.ones((1, 4, 5), np.float32)

    def build(x, i, u):
        return mb.scatter(data=x, indices=i, updates=u), mb.scatter_along_axis(
            data=x, indices=mb.tile(x=mb.reshape(x=i, shape=[1, 1, 1]), reps=[1, 4, 5]), updates=u
        )

    expected = X + np.array([0, 0, 1], np.float32).reshape(3, 1, 1)
    check(build, {"x": X, "i": index, "u": updates}, [expected] * 2, "iOS15")


def test_documented_examples():
    data = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    updates = np.arange(5, 11, dtype=np.float32).reshape(2, 3)
    rows, parts = np.array([1, 0], np.int32), np.array([[1, 0], [0, 2]], np.int32)

    def build(x, u, i, p):
        pair = mb.squeeze(x=mb.slice_by_index(x=u, begin=[0, 0], end=[2, 1]), axes=[1])
        return mb.scatter(data=x, indices=i, updates=u), mb.scatter_nd(data=x, indices=p, updates=pair)

    expected = [np.array([[9, 11, 13], [9, 11, 13]]), np.array([[1, 2, 11], [9, 5, 6]])]
    check(build, {"x": data, "u": updates, "i": rows, "p": parts}, expected, "iOS15")


def test_half_precision_is_rounded_once():
    """2048 + 1 + 1 is 2050; rounded after each step it would stay 2048."""
    data, indices, updates = np.float16([2048, 1]), np.zeros(2, np.int32), np.ones(2, np.float16)
    build = lambda x, i, u: mb.scatter(data=x, indices=i, updates=u)  # noqa: E731
    check(build, {"x": data, "i": indices, "u": updates}, [np.array([2050, 1])], "iOS17")


# -------------------------------------------------------------------------------- out of bounds

VECTOR = np.array([10, 20, 30], np.float32)
CALLS = {
    "gather": lambda x, i, **options: mb.gather(x=x, indices=i, **options),
    "gather_along_axis": lambda x, i, **options: mb.gather_along_axis(x=x, indices=i, **options),
    "gather_nd": lambda x, i, **options: mb.gather_nd(x=x, indices=mb.expand_dims(x=i, axes=[1]), **options),
    "scatter": lambda x, i, **options: mb.scatter(data=x, indices=i, updates=x, **options),
    "scatter_along_axis": lambda x, i, **options: mb.scatter_along_axis(data=x, indices=i, updates=x, **options),
    "scatter_nd": lambda x, i, **options: mb.scatter_nd(
        data=x, indices=mb.expand_dims(x=i, axes=[1]), updates=x, **options
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("target", "index", "options"),
    [
        ("iOS15", -4, {}),
        ("iOS17", 3, {"validate_indices": True}),
        ("iOS17", -1, {"validate_indices": True}),
    ],
)
def test_indices_out_of_bounds_are_refused(name, target, index, options):
    inputs = {"x": VECTOR, "i": np.array([0, index, 1], np.int32)}
    with pytest.raises(OperationError, match=f"{name} .*an index lies outside"):
        run(lambda x, i: CALLS[name](x, i, **options), inputs, target)


@pytest.mark.parametrize("name", CALLS)
def test_indices_out_of_bounds_are_safe(name):
    """Unchecked, a read counts from the end or takes the nearest element; a write is dropped."""
    inputs = {"x": VECTOR, "i": np.array([-1, 3, -9], np.int32)}
    expected = VECTOR[[2, 2, 0]] if name.startswith("gather") else VECTOR
    check(lambda x, i: CALLS[name](x, i, validate_indices=False), inputs, [expected], "iOS17")
    check(CALLS[name], inputs, [expected], "iOS17")


def test_a_part_out_of_bounds_drops_the_write():
    data, indices = torch.zeros(2, 3), torch.tensor([[0, 3], [2, 0], [1, 2], [-1, 0]])
    got = ops.scatter_nd_unchecked(data, indices, torch.arange(1.0, 5.0))
    assert got.tolist() == [[0, 0, 0], [0, 0, 3]]


# ------------------------------------------------------------------------------ properties, errors


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_what_is_scattered_can_be_gathered(data):
    """At distinct indices, for every rank, axis and trailing shape."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    extent = shape[axis]
    indices = torch.tensor(data.draw(st.permutations(range(extent)))[: data.draw(st.integers(1, extent))])
    wanted = list(shape)
    wanted[axis] = len(indices)
    updates = torch.randn(wanted)
    out = ops.scatter_unchecked(torch.zeros(shape), indices, updates, axis, "update")
    assert torch.equal(ops.gather(out, indices, axis), updates)
    assert torch.equal(ops.gather_unchecked(out, indices, axis, validate_indices=True), updates)
    assert out.count_nonzero() == updates.count_nonzero()
    each = indices.reshape([-1 if one == axis % len(shape) else 1 for one in range(len(shape))]).expand(wanted)
    assert torch.equal(ops.scatter_along_axis(torch.zeros(shape), each, updates, axis, "update"), out)
    assert torch.equal(ops.gather_along_axis(out, each, axis), updates)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(-(2**31), 2**31 - 1),
    st.lists(st.integers(-(2**31), 2**31 - 1).filter(bool), min_size=1, max_size=4),
)
def test_integer_division_is_exact(number, divisors):
    quotient = number
    for one in divisors:
        quotient = abs(quotient) // abs(one) * (1 if (quotient < 0) == (one < 0) else -1)
    got = ops.scatter(
        torch.tensor([number], dtype=torch.int32),
        torch.zeros(len(divisors), dtype=torch.int32),
        torch.tensor(divisors, dtype=torch.int32),
        mode="div",
    )
    assert got.item() == (quotient + 2**31) % 2**32 - 2**31


I = torch.zeros(2, dtype=torch.int32)  # noqa: E741
M = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ops.gather(M, I, axis=2), "an axis lies outside rank 2"),
        (lambda: ops.gather(M, I + 3), "an index lies outside the extents 3"),
        (lambda: ops.scatter(M, I - 4, torch.ones(2, 4)), "an index lies outside the extents 3"),
        (
            lambda: ops.gather(M, I, axis=1, batch_dims=1),
            "x and indices do not share their first batch_dims axes, which lie before axis",
        ),  # two indices for three rows
        (
            lambda: ops.gather(M, torch.zeros(3, 2).int(), axis=0, batch_dims=1),
            "x and indices do not share their first batch_dims axes, which lie before axis",
        ),
        (
            lambda: ops.gather(M, torch.zeros(3, 2).int(), axis=1, batch_dims=-1),
            "x and indices do not share their first batch_dims axes, which lie before axis",
        ),
        (
            lambda: ops.gather(torch.ones(2, 2**14), torch.zeros(2**20, dtype=torch.int32)),
            "the result needs too much memory",
        ),
        (
            lambda: ops.gather_along_axis(M, torch.zeros(3, 3).int(), 0),
            "indices have other extents than x beside axis 0: expected [3, 4]",
        ),
        (lambda: ops.gather_nd(M, torch.zeros(2, 3).int()), "an index has too many parts: expected at most 2"),
        (
            lambda: ops.gather_nd(M, torch.zeros(2, 1).int(), batch_dims=1),
            "x and indices do not share their first batch_dims axes",
        ),
        (
            lambda: ops.gather_nd(M, torch.zeros(3, 1).int(), batch_dims=2),
            "x and indices do not share their first batch_dims axes",
        ),
        (lambda: ops.scatter(M, I, torch.ones(3, 4)), "updates have the wrong shape: expected (2, 4)"),
        (lambda: ops.scatter(M, I, torch.ones(2, 4), axis=-3), "an axis lies outside rank 2"),
        (
            lambda: ops.scatter(M, I, torch.ones(2, 4), mode="mean"),
            "unknown mode: expected update, add, sub, mul, div, max or min",
        ),
        (lambda: ops.scatter(M.int(), I, torch.zeros(2, 4).int(), mode="div"), "an integer divisor is zero"),
        (
            lambda: ops.scatter_along_axis(M, torch.zeros(2, 3).int(), torch.ones(2, 3)),
            "indices have other extents than x beside axis 0: expected [3, 4]",
        ),
        (
            lambda: ops.scatter_along_axis(M, torch.zeros(2, 4).int(), torch.ones(2, 3)),
            "updates have another shape than indices: expected (2, 4)",
        ),
        (
            lambda: ops.scatter_nd(M, torch.zeros(2, 3).int(), torch.ones(2)),
            "an index has too many parts: expected at most 2",
        ),
        (
            lambda: ops.scatter_nd(M, torch.zeros(2, 1).int(), torch.ones(2)),
            "updates have the wrong shape: expected (2, 4)",
        ),
    ],
)
def test_refuses(call, said):
    with pytest.raises(OperationError, match=re.escape(said)):
        call()


def test_forms_belong_to_their_opsets():
    for name in CALLS:
        assert find(name, "CoreML6").function is getattr(ops, name)
        assert find(name, "CoreML8").function is getattr(ops, f"{name}_unchecked")
