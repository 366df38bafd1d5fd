"""Branches and loops, against Python's."""

import numpy as np
import pytest

from splitter.errors import OperationError
from splitter.mil import load

from .harness import mb, package, run


def scalar(value, dtype=np.float32):
    return np.array([value], dtype)


def first(x):
    """A scalar of an input, which has rank one at least."""
    return mb.squeeze(x=x, axes=[0])


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
@pytest.mark.parametrize("value", [-3.0, 4.0])
def test_cond(value, target):
    def build(x, y):
        return mb.cond(
            pred=first(mb.greater(x=x, y=0.0)),
            _true_fn=lambda: (mb.add(x=x, y=y), mb.mul(x=y, y=2.0)),
            _false_fn=lambda: (mb.sub(x=x, y=y), y),
        )

    y = np.array([10, 20], np.float32)
    got = run(build, {"x": scalar(value), "y": y}, target)
    expected = (value + y, y * 2) if value > 0 else (value - y, y)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("value", [-2.0, 0.5, 7.0])
def test_nested_branches(value):
    def build(x):
        def inside():
            return mb.cond(
                pred=first(mb.greater(x=x, y=5.0)),
                _true_fn=lambda: mb.mul(x=x, y=100.0),
                _false_fn=lambda: mb.mul(x=x, y=10.0),
            )

        return mb.cond(pred=first(mb.greater(x=x, y=0.0)), _true_fn=inside, _false_fn=lambda: mb.mul(x=x, y=-1.0))

    (got,) = run(build, {"x": scalar(value)})
    assert got == (value * 100 if value > 5 else value * 10 if value > 0 else -value)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("limit", [0, 1, 10])
def test_while_loop(limit, target):
    """The variables are the body's results; none at all where the condition is false at once."""

    def build(limit, x):
        start = mb.mul(x=limit, y=0)
        index, value = mb.while_loop(
            _cond=lambda index, value: first(mb.less(x=index, y=limit)),
            _body=lambda index, value: (mb.add(x=index, y=1), mb.add(x=mb.mul(x=value, y=2.0), y=x)),
            loop_vars=(start, x),
        )
        return index, mb.add(x=value, y=x)  # x lives on behind the loop

    x = np.array([1, -3], np.float32)
    index, value = run(build, {"limit": scalar(limit, np.int32), "x": x}, target)
    expected = x.copy()
    for _ in range(limit):
        expected = expected * 2 + x
    assert index == limit
    np.testing.assert_array_equal(value, expected + x)


def test_variables_change_at_the_same_time():
    """Fibonacci: both results of the body are computed from the old variables."""

    def build(count, a, b):
        return mb.while_loop(
            _cond=lambda count, a, b: first(mb.greater(x=count, y=0)),
            _body=lambda count, a, b: (mb.sub(x=count, y=1), mb.identity(x=b), mb.add(x=a, y=b)),
            loop_vars=(count, a, b),
        )

    given = {"count": scalar(10, np.int32), "a": scalar(0, np.int32), "b": scalar(1, np.int32)}
    count, a, b = run(build, given)
    assert (count, a, b) == (0, 55, 89)


def test_loops_within_loops_and_branches():
    """Sum over i < rows and j < i of i·j, odd products counted twice."""

    def build(rows, zero):
        def outer(i, total):
            def inner(j, total):
                product = mb.mul(x=i, y=j)
                odd = first(mb.equal(x=mb.mod(x=product, y=2), y=1))
                counted = mb.cond(
                    pred=odd, _true_fn=lambda: mb.mul(x=product, y=2), _false_fn=lambda: mb.identity(x=product)
                )
                return mb.add(x=j, y=1), mb.add(x=total, y=counted)

            _, total = mb.while_loop(
                _cond=lambda j, total: first(mb.less(x=j, y=i)),
                _body=inner,
                loop_vars=(mb.mul(x=i, y=0), total),
            )
            return mb.add(x=i, y=1), total

        return mb.while_loop(
            _cond=lambda i, total: first(mb.less(x=i, y=rows)), _body=outer, loop_vars=(mb.identity(x=zero), zero)
        )

    _, total = run(build, {"rows": scalar(6, np.int32), "zero": scalar(0, np.int32)})
    assert total == sum(i * j * (2 if i * j % 2 else 1) for i in range(6) for j in range(i))


def test_a_variable_may_grow():
    def build(x):
        return mb.while_loop(
            _cond=lambda x: mb.less(x=mb.gather(x=mb.shape(x=x), indices=0), y=20),
            _body=lambda x: mb.concat(values=[x, x], axis=0),
            loop_vars=(x,),
        )

    (got,) = run(build, {"x": np.array([1, 2, 3], np.float32)})
    np.testing.assert_array_equal(got, np.tile([1, 2, 3], 8))


def endless(x):
    return mb.while_loop(
        _cond=lambda x: first(mb.greater(x=x, y=0.0)), _body=lambda x: mb.add(x=x, y=1.0), loop_vars=(x,)
    )


def test_an_endless_loop_is_refused():
    with pytest.raises(OperationError, match=r"while_loop .* a loop does not end"):
        run(endless, {"x": scalar(1)}, max_iterations=50)


@pytest.mark.parametrize(("limit", "fits"), [(5, True), (4, False)])
def test_a_loop_may_take_all_its_iterations(limit, fits, tmp_path):
    def build(x):
        return mb.while_loop(_cond=lambda x: first(mb.less(x=x, y=5)), _body=lambda x: mb.add(x=x, y=1), loop_vars=(x,))

    model = load(package(build, {"x": scalar(0, np.int32)}, tmp_path), max_iterations=limit)
    if fits:
        assert next(iter(model.predict({"x": scalar(0, np.int32)}).values())) == 5
    else:
        with pytest.raises(OperationError, match="a loop does not end"):
            model.predict({"x": scalar(0, np.int32)})
    assert next(iter(model.predict({"x": scalar(2, np.int32)}).values())) == 5  # nothing is left of the last run


def test_nested_loops_share_their_iterations():
    """Three times three turns of the inner loop, and three of the outer."""

    def inner(x):
        return mb.while_loop(_cond=lambda x: first(mb.less(x=x, y=3)), _body=lambda x: mb.add(x=x, y=1), loop_vars=(x,))

    def outer(x, y):
        return mb.add(x=x, y=1), mb.mul(x=inner(y), y=0)

    def build(x):
        return mb.while_loop(_cond=lambda x, y: first(mb.less(x=x, y=3)), _body=outer, loop_vars=(x, mb.mul(x=x, y=0)))[
            0
        ]

    assert run(build, {"x": scalar(0, np.int32)}, max_iterations=12) == [3]
    with pytest.raises(OperationError, match="a loop does not end"):
        run(build, {"x": scalar(0, np.int32)}, max_iterations=11)


def test_errors_inside_a_body_name_the_operation():
    def build(x):
        return mb.while_loop(
            _cond=lambda x: first(mb.less(x=x, y=5)), _body=lambda x: mb.floor_div(x=x, y=x), loop_vars=(x,)
        )

    with pytest.raises(OperationError, match=r"floor_div .*divisor is zero"):
        run(build, {"x": scalar(0, np.int32)})
