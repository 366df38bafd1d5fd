"""Shapes: against NumPy's own indexing, and numbers from Core ML's documentation."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitter.errors import OperationError
from splitter.mil.ops import shape as ops

from .harness import mb, run

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
IMAGE = np.arange(2 * 8 * 4 * 6, dtype=np.float32).reshape(2, 8, 4, 6)


def check(build, inputs, *expected, target="iOS17"):
    results = run(build, inputs, target)
    assert len(results) == len(expected)
    for got, wanted in zip(results, expected, strict=True):
        assert np.shape(got) == np.shape(wanted)
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS17", "iOS18"])
def test_moving_values(target):
    check(
        lambda x: (
            mb.transpose(x=x, perm=[2, 0, 1]),
            mb.transpose(x=x, perm=[-1, 1, 0]),
            mb.expand_dims(x=x, axes=[2, -1]),
            mb.expand_dims(x=x, axes=[-4]),
            mb.squeeze(x=mb.reshape(x=x, shape=[1, 6, 1, 4])),
            mb.squeeze(x=mb.reshape(x=x, shape=[1, 6, 1, 4]), axes=[-2, 1]),  # 6 is not one, and stays
            mb.reverse(x=x),
            mb.reverse(x=x, axes=[0, -1]),
        ),
        {"x": X},
        X.transpose(2, 0, 1),
        X.transpose(2, 1, 0),
        X[:, :, None, :, None],
        X[None],
        X.reshape(6, 4),
        X.reshape(1, 6, 4),
        X[::-1, ::-1, ::-1],
        X[::-1, :, ::-1],
        target=target,
    )


@pytest.mark.parametrize("dtype", ["float16", "int32", "bool", "int8", "uint8", "int16", "uint16"])
def test_every_type_is_moved(dtype):
    x = (X % 2 if dtype == "bool" else X).astype(dtype)
    check(
        lambda x: (
            mb.transpose(x=x, perm=[1, 2, 0]),
            mb.reshape(x=x, shape=[4, -1]),
            mb.reverse(x=x, axes=[1]),
            mb.slice_by_index(x=x, begin=[0, 2, 0], end=[2, 0, 4], stride=[1, -1, 2]),
            mb.sliding_windows(x=x, axis=-1, size=2),
            mb.slice_by_size(x=x, begin=[0, 1, 0], size=[1, 2, -1]),
        ),
        {"x": x},
        x.transpose(1, 2, 0),
        x.reshape(4, 6),
        x[:, ::-1],
        x[:, 2:0:-1, ::2],
        np.stack([x[..., i : i + 2] for i in range(3)], -2),
        x[:1, 1:],
    )


# ------------------------------------------------------------------------------------------ reshape


@pytest.mark.parametrize(
    ("target", "shape", "expected"),
    [
        ("iOS15", [6, 4], (6, 4)),
        ("iOS15", [-1], (24,)),
        ("iOS15", [0, -1, 0], (2, 3, 4)),
        ("iOS16", [0, 12, -1], (2, 12, 1)),
        ("iOS17", [0, 12, -1], (2, 12, 1)),
        ("iOS17", [-1, 0], (6, 4)),
        ("iOS17", [1, 0, -1, 0, 0], (1, 1, 2, 3, 4)),
        ("iOS18", [0, 0, 0, 0], (1, 2, 3, 4)),
    ],
)
def test_reshape(target, shape, expected):
    check(lambda x: mb.reshape(x=x, shape=shape), {"x": X}, X.reshape(expected), target=target)


def test_reshape_to_a_shape_known_only_at_run_time():
    def build(x, shape):
        return mb.reshape(x=x, shape=shape)

    check(build, {"x": X, "shape": np.array([4, 0, -1], np.int32)}, X.reshape(4, 3, 2))
    with pytest.raises(OperationError, match="op.mlpackage"):
        run(build, {"x": X, "shape": np.array([5, 5, 5], np.int32)})


def test_zeros_align_right_only_since_ios17():
    x = torch.from_numpy(X)
    assert ops.reshape_right_aligned(x, [0, 1, 2, 3, 0]).shape == (1, 1, 2, 3, 4)
    with pytest.raises(OperationError, match="zeros"):
        ops.reshape(x, [0, 1, 2, 3, 0])
    with pytest.raises(OperationError, match="-1"):
        ops.reshape(x, [-1, -1])


def test_reshape_like():
    def build(x, y):
        return (
            mb.reshape_like(x=x, ref_tensors=(x, y), begins=(0, 2), ends=(1, 0), end_masks=(False, True)),
            mb.reshape_like(x=x, ref_tensors=(y, x, y), begins=(0, -3, -1), ends=(-2, -2, 3), end_masks=(False,) * 3),
        )

    for target in ("iOS16", "iOS17"):
        inputs = {"x": X, "y": np.zeros((1, 4, 12), np.float32)}
        check(build, inputs, X.reshape(2, 12), X.reshape(1, 2, 12), target=target)


# ------------------------------------------------------------------------------------------- slices


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"begin": [0, 1, 1], "end": [2, 3, 3]}, X[:, 1:3, 1:3]),
        ({"begin": [-1, -3, -2], "end": [2, -1, 4]}, X[-1:, -3:-1, -2:]),
        ({"begin": [1, 2, 3], "end": [0, 0, 0], "stride": [-1, -1, -2]}, X[1:0:-1, 2:0:-1, 3:0:-2]),
        (
            {
                "begin": [9, 1, 3],
                "end": [9, 9, 9],
                "stride": [1, 1, -1],
                "begin_mask": [True] * 3,
                "end_mask": [True] * 3,
            },
            X[:, :, ::-1],
        ),
        ({"begin": [1, 0, 0], "end": [0, 3, 4], "squeeze_mask": [True, False, False]}, X[1]),
        (
            {"begin": [-1, 1, 0], "end": [0, 0, 9], "squeeze_mask": [True, True, False], "stride": [1, 1, 3]},
            X[-1, 1, ::3],
        ),
    ],
)
def test_slice_by_index(target, arguments, expected):
    check(lambda x: mb.slice_by_index(x=x, **arguments), {"x": X}, expected, target=target)


def test_slice_by_index_of_one_element_is_a_scalar():
    taken = ops.slice_by_index(torch.from_numpy(X), [1, -1, 2], [0, 0, 0], squeeze_mask=[True] * 3)
    assert taken.shape == ()
    assert taken.item() == X[1, -1, 2]


slices = st.tuples(*[st.integers(-7, 7)] * 2, st.integers(-3, 3).filter(bool), st.booleans(), st.booleans())


@settings(deadline=None, max_examples=200)
@given(st.lists(slices, min_size=3, max_size=3), st.integers(0, 7))
def test_slices_are_numpys(parts, dropped):
    begin, end, stride, begin_mask, end_mask = (list(one) for one in zip(*parts, strict=True))
    drop = [bool(dropped >> axis & 1) for axis in range(3)]
    begin = [one % extent if gone else one for one, gone, extent in zip(begin, drop, X.shape, strict=True)]
    index = tuple(
        (0 if open_begin else first) if gone else slice(None if open_begin else first, None if open_end else last, step)
        for (_, last, step, open_begin, open_end), first, gone in zip(parts, begin, drop, strict=True)
    )
    masks = (stride, begin_mask, end_mask, drop)
    got = ops.slice_by_index(torch.from_numpy(X), begin, end, *masks)
    np.testing.assert_array_equal(got, X[index])
    assert got.shape == X[index].shape

    update = -1 - np.arange(X[index].size, dtype=np.float32).reshape(X[index].shape)
    expected = X.copy()
    expected[index] = update
    np.testing.assert_array_equal(
        ops.slice_update(torch.from_numpy(X), torch.from_numpy(np.array(update)), begin, end, *masks), expected
    )


def test_slice_update_leaves_its_operand():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    update = np.array([[50, 51], [60, 61]], np.float32)
    expected = np.array([[0, 1, 2, 3], [4, 60, 6, 61], [8, 50, 10, 51]], np.float32)

    def build(x, update):
        return (
            mb.slice_update(x=x, update=update, begin=[2, 1], end=[0, 4], stride=[-1, 2]),
            mb.slice_update(
                x=x,
                update=mb.slice_by_index(x=update, begin=[1, 0], end=[2, 2], squeeze_mask=[True, False]),
                begin=[-1, 2],
                end=[0, 0],
                squeeze_mask=[True, False],
                end_mask=[False, True],
            ),
            mb.identity(x=x),
        )

    second = x.copy()
    second[-1, 2:] = update[1]
    check(build, {"x": x, "update": update}, expected, second, x, target="iOS18")


def test_slice_by_size():
    check(
        lambda x: (
            mb.slice_by_size(x=x, begin=[0, 1, 2], size=[2, 1, -1]),
            mb.slice_by_size(x=x, begin=[-1, -2, 0], size=[1, 2, 4]),
        ),
        {"x": X},
        X[:, 1:2, 2:],
        X[-1:, -2:],
        target="iOS15",
    )


def test_slices_from_data():
    def build(x, begin, end):
        return (mb.slice_by_index(x=x, begin=begin, end=end), mb.slice_by_size(x=x, begin=begin, size=end))

    begin, end = np.array([0, 1, 1], np.int32), np.array([2, 2, 3], np.int32)
    check(build, {"x": X, "begin": begin, "end": end}, X[:2, 1:2, 1:3], X[0:2, 1:3, 1:4])
    with pytest.raises(OperationError, match="slice_by_size.*extent 3 of axis 1"):
        run(build, {"x": X, "begin": np.array([0, 2, 0], np.int32), "end": end})


# -------------------------------------------------------------------------------- windows, sequences


@pytest.mark.parametrize(("axis", "size", "stride"), [(0, 3, 1), (1, 2, 2), (-1, 2, 1), (1, 5, 3)])
def test_sliding_windows(axis, size, stride):
    x = np.random.default_rng(0).standard_normal((4, 6, 3)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis % 3)
    expected = np.moveaxis(windows, -1, axis % 3 + 1)
    expected = expected[tuple(slice(None, None, stride) if one == axis % 3 else slice(None) for one in range(4))]
    check(lambda x: mb.sliding_windows(x=x, axis=axis, size=size, stride=stride), {"x": x}, expected, target="iOS15")


@pytest.mark.parametrize(("sequence", "batch"), [(1, 0), (0, 2), (2, -2)])
def test_reverse_sequence(sequence, batch):
    lengths = np.arange(X.shape[batch], dtype=np.int32)
    lengths[-1] = X.shape[sequence]
    expected = X.copy()
    for one, length in enumerate(lengths):
        place = [slice(None)] * 3
        place[batch] = one
        view = np.moveaxis(expected, [batch, sequence], [0, 1])[one]
        view[:length] = view[:length][::-1].copy()
    check(
        lambda x, lengths: mb.reverse_sequence(x=x, lengths=lengths, seq_axis=sequence, batch_axis=batch),
        {"x": X, "lengths": lengths},
        expected,
        target="iOS15",
    )


# ------------------------------------------------------------------------------------------ folding


def test_folding_as_documented():
    """The examples of Core ML's documentation of its layers."""
    x = np.arange(1, 17, dtype=np.float32).reshape(1, 8, 1, 2)
    deep = np.array([[[1, 5, 2, 6], [9, 13, 10, 14]], [[3, 7, 4, 8], [11, 15, 12, 16]]], np.float32)[None]
    shuffled = np.array([[[1, 3, 2, 4], [5, 7, 6, 8]], [[9, 11, 10, 12], [13, 15, 14, 16]]], np.float32)[None]
    check(
        lambda x, deep, shuffled: (
            mb.depth_to_space(x=x, block_size=2),
            mb.space_to_depth(x=deep, block_size=2),
            mb.pixel_shuffle(x=x, upscale_factor=2),
            mb.pixel_unshuffle(x=shuffled, downscale_factor=np.uint32(2)),
        ),
        {"x": x, "deep": deep, "shuffled": shuffled},
        deep,
        x,
        shuffled,
        x,
    )


def test_folding_places():
    """Where each element goes, one by one."""
    b, (n, c, h, w) = 2, IMAGE.shape
    deep, shuffled = np.empty((2, n, c // 4, h * b, w * b), np.float32)
    folded = np.empty((n, c * 4, h // b, w // b), np.float32)
    unshuffled = folded.copy()
    for i in range(b):
        for j in range(b):
            for one in range(c // 4):
                deep[:, one, i::b, j::b] = IMAGE[:, (i * b + j) * (c // 4) + one]
                shuffled[:, one, i::b, j::b] = IMAGE[:, one * 4 + i * b + j]
            for one in range(c):
                folded[:, (i * b + j) * c + one] = IMAGE[:, one, i::b, j::b]
                unshuffled[:, one * 4 + i * b + j] = IMAGE[:, one, i::b, j::b]
    check(
        lambda x: (
            mb.depth_to_space(x=x, block_size=b),
            mb.pixel_shuffle(x=x, upscale_factor=b),
            mb.space_to_depth(x=x, block_size=b),
        ),
        {"x": IMAGE},
        deep,
        shuffled,
        folded,
        target="iOS15",
    )
    check(lambda x: mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(b)), {"x": IMAGE}, unshuffled, target="iOS16")


@pytest.mark.parametrize(
    ("block", "pads"), [([2, 3], [[0, 0], [0, 0]]), ([2, 2], [[0, 0], [2, 0]]), ([1, 3], [[1, 0], [2, 1]])]
)
def test_space_to_batch_and_back(block, pads):
    padded = np.pad(IMAGE, [(0, 0), (0, 0), *pads])
    bh, bw = block
    expected = np.concatenate([padded[:, :, i::bh, j::bw] for i in range(bh) for j in range(bw)])
    check(
        lambda x: (
            mb.space_to_batch(x=x, block_shape=block, paddings=pads),
            mb.batch_to_space(
                x=mb.space_to_batch(x=x, block_shape=block, paddings=pads), block_shape=block, crops=pads
            ),
        ),
        {"x": IMAGE},
        expected,
        IMAGE,
        target="iOS15",
    )


# ------------------------------------------------------------------------------------- near misses


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda x: ops.slice_by_index(x, [0, 0], [1, 1, 1]),
            "a slice has too many or too few begins, ends, strides or masks: expected 3 of each",
        ),
        (lambda x: ops.slice_by_index(x, [0] * 3, [1] * 3, [1, 0, 1]), "a stride is zero"),
        (
            lambda x: ops.slice_by_index(x, [0, 3, 0], [1] * 3, squeeze_mask=[False, True, False]),
            "an index lies outside the extent 3 of axis 1",
        ),
        (lambda x: ops.slice_by_size(x, [0, 0, 3], [1, 1, 2]), "a slice lies outside the extent 4 of axis 2"),
        (lambda x: ops.slice_by_size(x, [0, 0, 0], [1, 1, -2]), "a slice lies outside the extent 4 of axis 2"),
        (
            lambda x: ops.slice_update(x, x, [0] * 3, [1, 3, 4]),
            "the update has another shape than the slice: expected [1, 3, 4]",
        ),
        (
            lambda x: ops.sliding_windows(x, 1, 4),
            "the windows are malformed: expected a size in 1…3 and a stride of at least 1",
        ),
        (
            lambda x: ops.sliding_windows(x, 1, 0),
            "the windows are malformed: expected a size in 1…3 and a stride of at least 1",
        ),
        (
            lambda x: ops.sliding_windows(x, 1, 2, 0),
            "the windows are malformed: expected a size in 1…3 and a stride of at least 1",
        ),
        (lambda x: ops.sliding_windows(x, 3, 1), "an axis lies outside rank 3"),
        (lambda x: ops.reverse(x, [3]), "an axis lies outside rank 3"),
        (lambda x: ops.expand_dims(x, [4]), "an axis lies outside rank 4"),
        (lambda x: ops.squeeze(x, [3]), "an axis lies outside rank 3"),
        (
            lambda x: ops.reverse_sequence(x, torch.tensor([1, 4]), 1, 0),
            "the lengths are malformed: expected 2 within 0…3",
        ),
        (
            lambda x: ops.reverse_sequence(x, torch.tensor([1, -1]), 1, 0),
            "the lengths are malformed: expected 2 within 0…3",
        ),
        (
            lambda x: ops.reverse_sequence(x, torch.tensor([1, 1, 1]), 1, 0),
            "the lengths are malformed: expected 2 within 0…3",
        ),
        (lambda x: ops.reverse_sequence(x, torch.tensor([1, 1])), "seq_axis and batch_axis are the same"),
        (lambda x: ops.depth_to_space(x[None], 0), "a block's square does not divide 2 channels"),
        (lambda x: ops.depth_to_space(x[None], 2), "a block's square does not divide 2 channels"),
        (lambda x: ops.space_to_depth(x[None], -2), "a block does not divide the extents (3, 4)"),
        (lambda x: ops.space_to_depth(x[None], 2), "a block does not divide the extents (3, 4)"),
        (lambda x: ops.pixel_unshuffle(x[None], 2), "a block does not divide the extents (3, 4)"),
        (lambda x: ops.space_to_batch(x[None], [2, 2], [0, 0, 0, 0]), "a block does not divide the extents (3,)"),
        (
            lambda x: ops.space_to_batch(x[None], [0, 2], [0, 0, 0, 0]),
            "the blocks or amounts are malformed: expected two blocks of at least 1, and four amounts of at least 0",
        ),
        (
            lambda x: ops.space_to_batch(x[None], [1, 2], [0, -1, 0, 0]),
            "the blocks or amounts are malformed: expected two blocks of at least 1, and four amounts of at least 0",
        ),
        (
            lambda x: ops.space_to_batch(x[None], [1, 2], [1 << 40, 0, 0, 0]),
            "the result needs too much memory",
        ),
        (lambda x: ops.batch_to_space(x[None], [1, 2], [0, 0, 0, 0]), "a block does not divide the extents (1,)"),
        (lambda x: ops.batch_to_space(x[None], [1, 1], [2, 2, 0, 0]), "the crops do not fit into the extents (3, 4)"),
    ],
)
def test_refused(call, said):
    with pytest.raises(OperationError, match=re.escape(said)):
        call(torch.from_numpy(X))


def test_torch_refuses_the_rest():
    x = torch.from_numpy(X)
    for call, said in (
        (lambda: ops.transpose(x, [0, 0, 1]), "duplicate dims"),
        (lambda: ops.pixel_shuffle(x[None], 0), "positive upscale_factor"),
        (lambda: ops.reshape(x, [25]), "is invalid for input of size 24"),
    ):
        with pytest.raises(RuntimeError, match=said):
            call()
