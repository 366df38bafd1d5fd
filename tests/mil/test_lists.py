"""Lists and states, against Python's lists."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitter.errors import OperationError, UsageError
from splitter.mil import load
from splitter.mil.coreml_tools import ct, quiet_and_quick
from splitter.mil.ops import find
from splitter.mil.ops.lists import Elements

from .harness import TARGETS, mb, run, types

X = np.arange(12, dtype=np.float32).reshape(4, 3) + 1


def call(name, *arguments, **options):
    return find(name, "CoreML7").function(*arguments, **options)


def made(**options):
    return mb.make_list(elem_shape=(3,), **options)


def row(x, index):
    return mb.gather(x=x, indices=index, axis=0)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_write_and_read(dynamic, target):
    def build(x):
        ls = mb.list_write(ls=made(init_length=3, dynamic_length=dynamic), index=1, value=row(x, 2))
        other = mb.list_write(ls=ls, index=1, value=row(x, 0))
        return mb.list_read(ls=ls, index=1), mb.list_read(ls=other, index=1), mb.list_read(ls=other, index=0)

    before, after, untouched = run(build, {"x": X}, target)
    np.testing.assert_array_equal(before, X[2])  # writing makes another list
    np.testing.assert_array_equal(after, X[0])
    np.testing.assert_array_equal(untouched, np.zeros(3))


@pytest.mark.parametrize(("index", "length"), [(0, 2), (1, 2), (4, 5)])
def test_a_list_grows_by_zeros(index, length):
    def build(x):
        ls = mb.list_write(ls=made(init_length=2), index=index, value=row(x, 3))
        return mb.list_length(ls=ls), mb.list_gather(ls=ls, indices=list(range(length)))

    got, elements = run(build, {"x": X})
    assert got == length
    expected = np.zeros((length, 3))
    expected[index] = X[3]
    np.testing.assert_array_equal(elements, expected)


def test_gather_and_scatter():
    def build(x):
        ls = mb.list_scatter(ls=made(init_length=5), indices=[3, 0, 4, 1], value=x)
        return mb.list_gather(ls=ls, indices=[0, 1, 2, 3, 4, 0]), mb.list_length(ls=ls)

    got, length = run(build, {"x": X})
    np.testing.assert_array_equal(got, [X[1], X[3], np.zeros(3), X[0], X[2], X[1]])
    assert length == 5


def test_a_list_through_a_loop():
    """As TensorFlow's loops are converted: one element read and one written in each iteration."""

    def build(x, start):
        source = mb.list_scatter(ls=made(init_length=4), indices=[0, 1, 2, 3], value=x)

        def body(index, ls):
            at = mb.squeeze(x=index, axes=[0])
            return mb.add(x=index, y=1), mb.list_write(
                ls=ls, index=at, value=mb.square(x=mb.list_read(ls=source, index=at))
            )

        _, ls = mb.while_loop(
            _cond=lambda index, ls: mb.squeeze(x=mb.less(x=index, y=4), axes=[0]),
            _body=body,
            loop_vars=(start, made(init_length=0, dynamic_length=True)),
        )
        return mb.list_gather(ls=ls, indices=[0, 1, 2, 3])

    (got,) = run(build, {"x": X, "start": np.zeros(1, np.int32)})
    np.testing.assert_array_equal(got, X**2)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int32", "bool"])
def test_element_types(dtype):
    ls = call("make_list", [torch.tensor(2), torch.tensor(3)], init_length=2, dtype=dtype)
    kind = {"fp32": torch.float32, "fp16": torch.float16, "int32": torch.int32, "bool": torch.bool}[dtype]
    got = call("list_read", ls, 1)
    assert (got.dtype, got.shape) == (kind, (2, 3))
    assert not got.any()


def test_a_shape_known_only_when_written():
    ls = call("make_list", ["n", torch.tensor(2)], init_length=2)
    with pytest.raises(OperationError, match="before anything is written"):
        call("list_read", ls, 0)
    ls = call("list_write", ls, 1, torch.ones(4, 2))
    assert torch.equal(call("list_read", ls, 0), torch.zeros(4, 2))
    with pytest.raises(OperationError, match="elements differ in shape"):
        call("list_write", ls, 0, torch.ones(3, 2))


def test_gathering_nothing():
    ls = call("make_list", [torch.tensor(3)], init_length=1)
    assert call("list_gather", ls, []).shape == (0, 3)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(-99, 99)), max_size=12),
    st.integers(0, 5),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
)
def test_writes(writes, length, indices):
    """One write after another, all at once, and a dictionary agree."""
    single = call("make_list", [], init_length=length)
    many = call("list_scatter", single, [i for i, _ in writes], torch.tensor([float(v) for _, v in writes]))
    for index, value in writes:
        single = call("list_write", single, index, torch.tensor(float(value)))
    known = dict.fromkeys(range(length), 0) | dict(writes)
    size = max([length, *(i + 1 for i, _ in writes)])
    for ls in (single, many):
        assert int(call("list_length", ls)) == size
        if max(indices) < size:
            assert call("list_gather", ls, indices).tolist() == [known.get(index, 0) for index in indices]
        else:
            with pytest.raises(OperationError, match="an index lies outside"):
                call("list_gather", ls, indices)


FIXED = {"init_length": 2, "dynamic_length": False}


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("list_read", (2,), "an index lies outside a list of 2"),
        ("list_read", (-1,), "an index lies outside a list of 2"),
        ("list_write", (2, torch.zeros(3)), "an index lies outside a list of 2"),
        ("list_write", (-1, torch.zeros(3)), "an index lies outside a list of 2"),
        ("list_write", (0, torch.zeros(4)), "a list's elements differ in shape"),
        ("list_gather", ([0, 2],), "an index lies outside a list of 2"),
        ("list_scatter", ([0, 2], torch.zeros(2, 3)), "an index lies outside a list of 2"),
        ("list_scatter", ([-1], torch.zeros(1, 3)), "an index lies outside a list of 2"),
    ],
)
def test_a_fixed_list_keeps_its_length(name, arguments, said):
    with pytest.raises(OperationError, match=re.escape(said)):
        call(name, call("make_list", [torch.tensor(3)], **FIXED), *arguments)


def test_as_many_values_as_indices():
    with pytest.raises(ValueError, match="longer than"):
        call("list_scatter", call("make_list", [torch.tensor(3)], **FIXED), [0], torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init_length": -1}, "a list's length is out of range: expected 0…16777216"),
        ({"init_length": 1 << 30}, "a list's length is out of range: expected 0…16777216"),
        ({"dtype": "float"}, "make_list names an unknown type"),
        ({"elem_shape": [1 << 40]}, "the result needs too much memory"),
    ],
)
def test_bad_lists(options, said):
    with pytest.raises(OperationError, match=re.escape(said)):
        call("make_list", **{"elem_shape": [3]} | options)


def test_an_index_far_beyond_the_end():
    with pytest.raises(OperationError, match="an index lies outside"):
        call("list_write", Elements([], fixed=False), 1 << 30, torch.zeros(3))


# --------------------------------------------------------------------------------------- states


def test_a_state_is_read_and_written(tmp_path):
    @mb.program(
        input_specs=[mb.TensorSpec((2,)), mb.StateTensorSpec((2,), dtype=types.fp16)],
        opset_version=TARGETS["iOS18"],
    )
    def program(x, total):
        before = mb.read_state(input=total)
        after = mb.coreml_update_state(state=total, value=mb.add(x=before, y=mb.cast(x=x, dtype="fp16")))
        return mb.cast(x=after, dtype="fp32"), mb.cast(x=mb.mul(x=before, y=np.float16(2)), dtype="fp32")

    model = load(saved(program, tmp_path))
    state, other = model.make_state(), model.make_state()
    x = np.array([1, -2], np.float32)
    for step in range(3):
        after, doubled = model.predict({"x": x}, state=state).values()
        np.testing.assert_array_equal(after, x * (step + 1))
        np.testing.assert_array_equal(doubled, x * step * 2)
    np.testing.assert_array_equal(state["total"], x * 3)
    assert not other["total"].any()

    kept = state.read_state("total")
    state.write_state("total", [5, 6])
    np.testing.assert_array_equal(kept, x * 3)
    (after, _) = model.predict({"x": x}, state=state).values()
    np.testing.assert_array_equal(after, [6, 4])
    with pytest.raises(UsageError, match=r"another shape: expected \(2,\), found \(3,\)"):
        state.write_state("total", [1, 2, 3])
    with pytest.raises(UsageError, match="unknown state 'sum': expected total"):
        state.read_state("sum")


def saved(program, path):
    with quiet_and_quick():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=TARGETS["iOS18"],
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    model.save(str(path / "state.mlpackage"))
    return path / "state.mlpackage"
