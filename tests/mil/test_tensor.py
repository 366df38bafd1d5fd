"""Tensors made, joined, sorted and searched, against NumPy and plain loops."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitter.errors import OperationError
from splitter.mil import load
from splitter.mil.coreml_tools import ct, quiet_and_quick
from splitter.mil.ops import find
from splitter.mil.ops import tensor as ops

from .harness import TARGETS, mb, run

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
COUNTS = np.array([[3, 0, -2, 7], [0, 5, 5, -9]], np.int32)


def check(build, inputs, *expected, target="iOS17"):
    got = run(build, inputs, target)
    for one, wanted in zip(got, expected, strict=True):
        assert one.dtype == np.asarray(wanted).dtype
        np.testing.assert_array_equal(one, wanted)


def as_int(x):
    """Booleans are no outputs of a program."""
    return mb.cast(x=x, dtype="int32")


# -------------------------------------------------------------------------------------------- made


@pytest.mark.parametrize("value", [None, np.float32(2.5), np.int32(-7), np.float16(0.5)])
def test_fill(value):
    options = {} if value is None else {"value": value}
    expected = np.full((2, 1, 3), 0 if value is None else value, np.float32 if value is None else value.dtype)
    shape = np.array([2, 1, 3], np.int32)
    check(lambda shape: mb.fill(shape=shape, **options), {"shape": shape}, expected, target="iOS16")
    check(lambda x: mb.fill_like(ref_tensor=x, **options), {"x": expected.astype(np.int32)}, expected, target="iOS16")


def test_fill_with_truth():
    shape = np.array([3], np.int32)
    check(lambda shape: as_int(mb.fill(shape=shape, value=True)), {"shape": shape}, np.ones(3, np.int32))


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [(0, 5, 1), (2, 12, 3), (5, -4, -2), (3, 3, 1), (5, 1, 2), (0.0, 1.0, 0.3), (1.5, -2.0, -0.7), (-1.0, 1.0, 0.25)],
)
def test_range(start, end, step):
    kind = np.int32 if isinstance(start, int) else np.float32
    given = {name: np.array([one], kind) for name, one in (("start", start), ("end", end), ("step", step))}

    def build(start, end, step):
        scalar = lambda x: mb.squeeze(x=x, axes=[0])  # noqa: E731
        return mb.range_1d(start=scalar(start), end=scalar(end), step=scalar(step))

    (got,) = run(build, given, "iOS15")
    assert got.dtype == kind
    np.testing.assert_allclose(got, np.arange(start, end, step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("values", [None, (np.float32(0.5), np.float32(-2)), (np.int32(9), np.int32(4))])
def test_one_hot(values):
    indices = np.array([[1, 0, 4], [2, 5, -1]], np.int32)  # the last two are outside
    on, off = values or (np.int32(1), np.int32(0))
    options = {"on_value": on, "off_value": off} if values else {}
    last = np.full((2, 3, 5), off)
    for place in [(0, 0, 1), (0, 1, 0), (0, 2, 4), (1, 0, 2)]:
        last[place] = on
    axes = [{"axis": axis} for axis in (0, 1, 2, -1, -2)] + [{}]

    def build(i):
        return tuple(mb.one_hot(indices=i, one_hot_vector_size=5, **options, **axis) for axis in axes)

    expected = [np.moveaxis(last, -1, one.get("axis", -1)) for one in axes]
    check(build, {"i": indices}, *expected, target="iOS15")


def test_shape_and_identity():
    expected = np.array([2, 3, 4], np.int32)
    check(lambda x: (mb.shape(x=x), mb.identity(x=x)), {"x": X}, expected, X, target="iOS15")


# ------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("lower", [-1, 0, 1, 5, None])
def test_band_part(lower):
    ints = (X * 10).astype(np.int32)
    cases, expected = [], []
    for upper in (-1, 0, 2, None):
        cases.append({key: value for key, value in (("lower", lower), ("upper", upper)) if value is not None})
        low, high = (9 if one in (None, -1) else one for one in (lower, upper))
        band = np.array([[r - c <= low and c - r <= high for c in range(4)] for r in range(3)])
        expected += [band * X, band * ints, (band & (ints > 0)).astype(np.int32)]

    def build(x, ints):
        truth = mb.greater(x=ints, y=0)
        calls = ([mb.band_part(x=one, **case) for one in (x, ints, truth)] for case in cases)
        return tuple(one for x, ints, truth in calls for one in (x, ints, as_int(truth)))

    check(build, {"x": X, "ints": ints}, *expected)


@pytest.mark.parametrize(
    ("axis", "shape"), [(1, (2, 12)), (None, (2, 12)), (2, (6, 4)), (-1, (6, 4)), (-2, (2, 12)), (0, (1, 24))]
)
def test_flatten2d(axis, shape):
    options = {} if axis is None else {"axis": axis}
    check(lambda x: mb.flatten2d(x=x, **options), {"x": X}, X.reshape(shape), target="iOS15")


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_select(target):
    def build(x, y):
        positive = mb.greater(x=x, y=0.0)
        return mb.select(cond=positive, a=x, b=y), as_int(mb.select(cond=positive, a=positive, b=positive))

    check(build, {"x": X, "y": X * 2}, np.where(X > 0, X, X * 2), (X > 0).astype(np.int32), target=target)


def test_select_broadcasts():
    got = ops.select(torch.tensor([[True], [False]]), torch.arange(3), torch.tensor(-1))
    assert got.tolist() == [[0, 1, 2], [-1, -1, -1]]


PADS = [[1, 2], [0, 1, 2, 1], [1, 0, 2, 2, 3, 1], [0, 0, 0, 0], [0, 0, 0, 0, 0, 3]]


@pytest.mark.parametrize("pad", PADS, ids=str)
def test_pad(pad):
    x = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    pairs = [(0, 0)] * (3 - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))
    cases = [{"constant_val": 1.5}, {}, {"mode": "constant"}, {"mode": "reflect"}, {"mode": "replicate"}]
    expected = [
        np.pad(x, pairs, constant_values=1.5),
        *(np.pad(x, pairs, mode) for mode in ("constant", "constant", "reflect", "edge")),
    ]
    check(lambda x: tuple(mb.pad(x=x, pad=pad, **case) for case in cases), {"x": x}, *expected)


def test_pad_that_the_program_computes():
    pad = np.array([0, 1, 0, 0, 2, 0], np.int32)
    expected = np.pad(X, [(0, 1), (0, 0), (2, 0)], mode="edge")
    check(lambda x, pad: mb.pad(x=x, pad=pad, mode="replicate"), {"x": X, "pad": pad}, expected, target="iOS15")


def test_tile():
    for reps in ([1, 2, 3], [2, 1, 1]):
        check(lambda x, reps=reps: mb.tile(x=x, reps=reps), {"x": X}, np.tile(X, reps), target="iOS15")
    expected = np.tile(COUNTS > 0, [2, 2]).astype(np.int32)
    check(lambda x: as_int(mb.tile(x=mb.greater(x=x, y=0), reps=[2, 2])), {"x": COUNTS}, expected)


# ------------------------------------------------------------------------------------------ joined


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_and_stack(axis):
    other = np.repeat(X, 2, axis)
    check(
        lambda x, y: mb.concat(values=[x, y, x], axis=axis), {"x": X, "y": other}, np.concatenate([X, other, X], axis)
    )
    ints = (X * 10).astype(np.int32)
    check(lambda x: mb.stack(values=[x, x, x], axis=axis), {"x": ints}, np.stack([ints] * 3, axis), target="iOS15")


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_interleaved(axis):
    parts = [X, X * 2, X - 1]
    expected = np.empty([n * 3 if one == axis % 3 else n for one, n in enumerate(X.shape)], np.float32)
    for place, part in enumerate(parts):
        expected[(slice(None),) * (axis % 3) + (slice(place, None, 3),)] = part
    build = lambda a, b, c: mb.concat(values=[a, b, c], axis=axis, interleave=True)  # noqa: E731
    check(build, dict(zip("abc", parts, strict=True)), expected, target="iOS15")


def test_scalars_are_concatenated():
    def build(x):
        one, two = (mb.squeeze(x=mb.slice_by_index(x=x, begin=[i], end=[i + 1]), axes=[0]) for i in range(2))
        return mb.concat(values=[one, two, one], axis=0), mb.stack(values=[two, one], axis=0)

    x = np.array([3, 5], np.float32)
    check(build, {"x": x}, np.float32([3, 5, 3]), np.float32([5, 3]))


@pytest.mark.parametrize(
    ("axis", "options", "expected"),
    [
        (2, {"num_splits": 2}, np.split(X, 2, 2)),
        (-2, {"num_splits": 3}, np.split(X, 3, 1)),
        (-1, {"split_sizes": [1, 3]}, np.split(X, [1], 2)),
        (2, {"num_splits": 3, "split_sizes": [1, 1, 2]}, np.split(X, [1, 2], 2)),
        (0, {"split_sizes": [2]}, [X]),
    ],
)
def test_split(axis, options, expected):
    check(lambda x: mb.split(x=x, axis=axis, **options), {"x": X}, *expected, target="iOS15")


# ------------------------------------------------------------------------------- sorted and searched


AXES = [{}, {"axis": 0}, {"axis": 1}, {"axis": -1}]


@pytest.mark.parametrize("exclusive", [False, True, None])
@pytest.mark.parametrize("reverse", [False, True, None])
def test_cumsum(exclusive, reverse):
    options = {key: value for key, value in (("exclusive", exclusive), ("reverse", reverse)) if value is not None}
    ints = (X * 10).astype(np.int32)

    def summed(x, axis=0):
        x = np.moveaxis(x.astype(np.float64), axis, 0)
        out = np.zeros_like(x)
        for i in range(len(x)):
            out[i] = x[i + bool(exclusive) :].sum(0) if reverse else x[: i + 1 - bool(exclusive)].sum(0)
        return np.moveaxis(out, 0, axis)

    def build(x, i):
        return tuple(mb.cumsum(x=one, **options, **axis) for axis in AXES for one in (x, i))

    got = run(build, {"x": X, "i": ints})
    for axis, real, whole in zip(AXES, got[::2], got[1::2], strict=True):
        np.testing.assert_allclose(real, summed(X, **axis), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(whole, summed(ints, **axis))
        assert whole.dtype == np.int32


def test_half_precision_sums_are_rounded_once():
    x = np.full((1, 3000), 1.0, np.float16)
    (got,) = run(lambda x: mb.cumsum(x=x, axis=1), {"x": x})
    np.testing.assert_array_equal(got[0], np.arange(1, 3001).astype(np.float16))


def test_non_zero():
    def build(x):
        return mb.non_zero(x=x), mb.non_zero(x=mb.less(x=x, y=0))

    check(build, {"x": COUNTS}, np.argwhere(COUNTS).astype(np.int32), np.argwhere(COUNTS < 0).astype(np.int32))
    (empty,) = run(lambda x: mb.non_zero(x=x), {"x": np.zeros((2, 2), np.float32)}, "iOS15")
    assert empty.shape == (0, 2)


def order(x, axis=-1, *, ascending):
    """Stable: equal elements keep their order in both directions."""
    return np.argsort(x if ascending else -x, axis, kind="stable")


@pytest.mark.parametrize("ascending", [True, False, None])
def test_argsort(ascending):
    options = {} if ascending is None else {"ascending": ascending}
    y = X[:, 0]
    expected = [order(one, **axis, ascending=ascending).astype(np.int32) for axis in AXES for one in (COUNTS, y)]
    build = lambda x, y: tuple(mb.argsort(x=one, **options, **axis) for axis in AXES for one in (x, y))  # noqa: E731
    check(build, {"x": COUNTS, "y": y}, *expected, target="iOS15")


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("iOS15", {}),
        ("iOS16", {"sort": False}),
        ("iOS16", {"return_indices": False}),
        ("iOS17", {"output_indices_dtype": "uint16"}),
    ],
    ids=str,
)
def test_topk(target, options, ascending):
    both = options.get("return_indices", True)
    expected = []
    for axis in AXES:
        indices = np.take(order(COUNTS, **axis, ascending=ascending), [0, 1], axis.get("axis", -1))
        values = np.take_along_axis(COUNTS, indices, axis.get("axis", -1))
        expected += [values, indices.astype(np.int32)] if both else [values]

    def build(x):
        found = [mb.topk(x=x, k=2, ascending=ascending, **options, **axis) for axis in AXES]
        return tuple(one for v, i in found for one in (v, as_int(i))) if both else tuple(found)

    check(build, {"x": COUNTS}, *expected, target=target)


def test_topk_by_default_and_of_all():
    best, place, everything, _ = run(lambda x: (*mb.topk(x=x), *mb.topk(x=x, k=4)), {"x": X}, "iOS15")
    np.testing.assert_array_equal(best, X.max(-1, keepdims=True))
    np.testing.assert_array_equal(place, X.argmax(-1)[..., None])
    np.testing.assert_array_equal(everything, -np.sort(-X, -1))
    values, _ = find("topk", "CoreML7").function(torch.tensor(X), k=-1, ascending=True)
    np.testing.assert_array_equal(values, np.sort(X, -1))


@pytest.mark.parametrize("labels", [["a", "b", "c"], [10, 20, 30]])
def test_classify(labels, tmp_path):
    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3))], opset_version=TARGETS["iOS15"])
    def program(x):
        return mb.identity(x=x, name="scores")

    with quiet_and_quick():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=TARGETS["iOS15"],
            compute_precision=ct.precision.FLOAT32,
            classifier_config=ct.ClassifierConfig(labels, predicted_feature_name="label"),
            skip_model_load=True,
        )
    model.save(str(tmp_path / "c.mlpackage"))
    result = load(tmp_path / "c.mlpackage").predict({"x": np.float32([[0.25, 0.5, 0.125]])})
    label = result.pop("label")
    (chances,) = result.values()
    assert label == labels[1]
    assert chances == dict(zip(labels, (0.25, 0.5, 0.125), strict=True))


# ---------------------------------------------------------------------------- non-maximum suppression


def overlap(a, b):
    sides = [
        min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2) for i in (0, 1)
    ]
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def suppressed(boxes, scores, iou, least, most, per_class):
    kept = []
    for one in sorted(range(len(boxes)), key=lambda i: -scores[i].max()):
        rivals = [k for k in kept if not per_class or scores[k].argmax() == scores[one].argmax()]
        if (
            scores[one].max() >= least
            and len(kept) < most
            and all(overlap(boxes[k], boxes[one]) <= iou for k in rivals)
        ):
            kept.append(one)
    return kept or [int(scores.max(-1).argmax())]


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("per_class", [True, False, None])
@pytest.mark.parametrize(("iou", "least", "most"), [(0.2, 0.3, 4), (0.6, 0.0, 9), (0.0, 0.5, 2), (0.4, 2.0, 3)])
def test_suppression(target, per_class, iou, least, most):
    rng = np.random.default_rng(5)
    boxes = np.concatenate([rng.uniform(0, 4, (2, 7, 2)), rng.uniform(0.5, 4, (2, 7, 2))], -1).astype(np.float32)
    scores = rng.uniform(0, 1, (2, 7, 3)).astype(np.float32)
    old = target == "iOS15"
    options = {"iou_threshold": iou, "max_boxes": most} | ({"score_threshold": least} if old else {})
    options |= {} if per_class is None else {"per_class_suppression": per_class}

    def build(b, s):
        if old:
            return mb.non_maximum_suppression(boxes=b, scores=s, **options)
        b, s = (mb.transpose(x=one, perm=[0, 2, 1]) for one in (b, s))
        b, s, i = mb.non_maximum_suppression(boxes=b, scores=s, **options)
        return mb.transpose(x=b, perm=[0, 2, 1]), mb.transpose(x=s, perm=[0, 2, 1]), i

    got_boxes, got_scores, indices, *counts = run(build, {"b": boxes, "s": scores}, target)
    for one in range(2):
        kept = suppressed(boxes[one], scores[one], iou, least if old else -math.inf, most, per_class)
        assert indices[one].tolist() == kept + [-1] * (most - len(kept))
        for got, source in ((got_boxes, boxes), (got_scores, scores)):
            np.testing.assert_array_equal(got[one, : len(kept)], source[one, kept])
            assert not got[one, len(kept) :].any()
        assert not old or counts[0][one] == len(kept)


# ------------------------------------------------------------------------------ properties, errors


@settings(deadline=None, max_examples=60)
@given(start=st.integers(-50, 50), end=st.integers(-50, 50), step=st.integers(-9, 9).filter(bool))
def test_integer_ranges(start, end, step):
    got = ops.range_1d(*(torch.tensor(one, dtype=torch.int32) for one in (end, start, step)))
    assert got.tolist() == list(range(start, end, step))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_parts_put_together(data):
    """What `split` takes apart `concat` joins again, and interleaved parts come apart by strides."""
    sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    x = torch.randn(2, sum(sizes), 3)
    parts = ops.split(x, 1, split_sizes=sizes)
    assert [one.shape[1] for one in parts] == sizes
    assert torch.equal(ops.concat(list(parts), 1), x)
    joined = ops.concat([x, x + 1, x + 2], -2, interleave=True)
    assert all(torch.equal(joined[:, place::3], x + place) for place in range(3))


ONE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ops.fill([2**20, 2**20]), "the result needs too much memory"),
        (lambda: ops.fill([-1]), "a result has a negative extent"),
        (lambda: ops.range_1d(torch.tensor(5), torch.tensor(0), torch.tensor(0)), "a step is zero"),
        (lambda: ops.range_1d(torch.tensor(math.inf), torch.tensor(0.0), torch.tensor(1.0)), "a range is not finite"),
        (
            lambda: ops.range_1d(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(1e-12)),
            "the result needs too much memory",
        ),
        (lambda: ops.range_1d(torch.tensor(math.nan), torch.tensor(0.0), torch.tensor(1.0)), "a range is not finite"),
        (
            lambda: ops.one_hot(torch.zeros(2, dtype=torch.int32), -1),
            "a result has a negative extent",
        ),
        (
            lambda: ops.one_hot(torch.zeros(2, dtype=torch.int32), 2**40),
            "the result needs too much memory",
        ),
        (lambda: ops.one_hot(torch.zeros(2, dtype=torch.int32), 3, axis=2), "an axis lies outside rank 2"),
        (
            lambda: ops.select(torch.ones(2**12, 1, 1) > 0, torch.ones(2**12, 1), torch.ones(2**12)),
            "the result needs too much memory",
        ),
        (lambda: ops.pad(ONE, [1]), "the padding is malformed: expected at most 2 pairs, none negative"),
        (lambda: ops.pad(ONE, [1] * 6), "the padding is malformed: expected at most 2 pairs, none negative"),
        (lambda: ops.pad(ONE, [-1, 0]), "the padding is malformed: expected at most 2 pairs, none negative"),
        (lambda: ops.pad(ONE, [2**40, 0]), "the result needs too much memory"),
        (lambda: ops.pad(ONE, [3, 0], "reflect"), "an extent of 3 cannot be continued so far"),
        (lambda: ops.pad(ONE, [1, 0], "circular"), "unknown mode: expected constant, reflect or replicate"),
        (lambda: ops.pad(torch.ones(2, 0), [1, 0], "replicate"), "an extent of 0 cannot be continued so far"),
        (lambda: ops.tile(ONE, [1]), "the repeats are malformed: expected 2 of at least 1"),
        (lambda: ops.tile(ONE, [0, 1]), "the repeats are malformed: expected 2 of at least 1"),
        (lambda: ops.tile(ONE, [2**30, 2**30]), "the result needs too much memory"),
        (lambda: ops.concat([ONE, ONE], 2, interleave=True), "an axis lies outside rank 2"),
        (lambda: ops.split(ONE, 1, num_splits=2), "an extent of 3 cannot be split into equal parts"),
        (lambda: ops.split(ONE, 1, num_splits=0), "an extent of 3 cannot be split into equal parts"),
        (lambda: ops.split(ONE, 1), "an extent of 3 cannot be split into equal parts"),
        (lambda: ops.split(ONE, 1, num_splits=3, split_sizes=[1, 2]), "num_splits does not count split_sizes [1, 2]"),
        (lambda: ops.split(ONE, 5, num_splits=1), "an axis lies outside rank 2"),
        (lambda: ops.cumsum(ONE, 2), "an axis lies outside rank 2"),
        (lambda: ops.topk(ONE, 4), "k is out of range: expected 0…3"),
        (lambda: ops.topk(ONE, -2), "k is out of range: expected 0…3"),
        (
            lambda: ops.topk(ONE, 1, output_indices_dtype="int8"),
            "indices cannot have this type: expected int32 or uint16",
        ),
        (lambda: ops.classify(ONE, ["a"]), "there is not one class for each probability: expected 6 classes"),
        (
            lambda: ops.non_maximum_suppression(torch.ones(1, 2, 4), torch.ones(1, 2, 1), 0.5, 0.5, 0),
            "the boxes and scores do not fit together, or none is to be selected",
        ),
        (
            lambda: ops.non_maximum_suppression(torch.ones(1, 2, 4), torch.ones(1, 3, 1), 0.5, 0.5, 1),
            "the boxes and scores do not fit together, or none is to be selected",
        ),
        (
            lambda: ops.non_maximum_suppression(torch.ones(1, 2, 4), torch.ones(1, 2, 1), 0.5, 0.5, 2**40),
            "the result needs too much memory",
        ),
    ],
)
def test_refuses(call, said):
    with pytest.raises(OperationError, match=re.escape(said)):
        call()


def test_torch_refuses_the_rest():
    calls = [
        (lambda: ops.concat([ONE, torch.ones(3, 2)], 0), "Sizes of tensors must match"),
        (lambda: ops.stack([ONE, torch.ones(3, 2)], 0), "equal size"),
        (lambda: ops.split(ONE, 1, split_sizes=[1, 1]), "sum exactly to 3"),
        (lambda: ops.split(ONE, 1, split_sizes=[-1, 4]), "non-negative"),
        (lambda: ops.argsort(ONE, 2), "out of range"),
        (lambda: ops.select(ONE > 0, torch.ones(4), torch.ones(1)), "broadcast"),
    ]
    for call, said in calls:
        with pytest.raises((RuntimeError, IndexError), match=said):
            call()
