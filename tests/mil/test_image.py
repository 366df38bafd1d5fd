"""Images, against the documented grids, plain loops, torch, and what Core ML Tools' own tests expect of Core ML."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from splitter.errors import OperationError
from splitter.mil.ops import find
from splitter.mil.ops import image as ops

from .harness import mb, run

X = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
MODES = ["STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"]
SIZES = [(1, 1), (5, 4), (3, 7), (10, 2), (1, 6)]


def grid(mode, extent, count):
    """The documented points, as ``numpy.linspace`` gives them."""
    match mode:
        case "STRICT_ALIGN_CORNERS" | "ALIGN_CORNERS":
            start, end = 0, extent - 1
            if mode == "ALIGN_CORNERS" and count == 1:
                start = end = (extent - 1) / 2
        case "DEFAULT":
            start, end = 0, extent - extent / count
        case "OFFSET_CORNERS":
            spacing = max(1, extent - 1) / count
            start, end = spacing / 2, spacing / 2 + (count - 1) * spacing
        case "UNALIGN_CORNERS":
            spacing = extent / count
            start, end = spacing / 2 - 0.5, spacing / 2 - 0.5 + (count - 1) * spacing
    return np.clip(np.linspace(start, end, count), 0, extent - 1)


def interpolated(x, axis, points):
    return np.apply_along_axis(lambda line: np.interp(points, np.arange(len(line)), line), axis, x)


def resized(x, height, width, mode):
    x = interpolated(x, -2, grid(mode, x.shape[-2], height))
    return interpolated(x, -1, grid(mode, x.shape[-1], width))


def check(build, inputs, expected, target="iOS17", atol=1e-5):
    for one, wanted in zip(run(build, inputs, target), expected, strict=True):
        assert one.shape == tuple(wanted.shape)
        np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=atol)


# ---------------------------------------------------------------------------------------- resizing


@pytest.mark.parametrize("mode", MODES)
def test_resize_bilinear(mode):
    def build(x):
        return tuple(
            mb.resize_bilinear(x=x, target_size_height=h, target_size_width=w, sampling_mode=mode) for h, w in SIZES
        )

    check(build, {"x": X}, [resized(X, h, w, mode) for h, w in SIZES], "iOS15")


def test_resize_bilinear_as_torch_does():
    """Aligned corners are torch's, and so are unaligned ones."""

    def build(x):
        options = {"x": x, "target_size_height": 7, "target_size_width": 3}
        return tuple(mb.resize_bilinear(**options, sampling_mode=mode) for mode in MODES[::4])

    image = torch.tensor(X)
    expected = [functional.interpolate(image, (7, 3), mode="bilinear", align_corners=one) for one in (True, False)]
    check(build, {"x": X}, expected)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 1, 3, 4, 5)])
def test_leading_axes_are_a_batch(shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)

    def build(x):
        options = {"x": x, "target_size_height": 2, "target_size_width": 9}
        return mb.resize_bilinear(**options), mb.resize_nearest_neighbor(**options), mb.resize_bilinear(x=x)

    nearest = x[..., [1, 3], :][..., [(2 * i + 1) * 5 // 18 for i in range(9)]]
    check(build, {"x": x}, [resized(x, 2, 9, "DEFAULT"), nearest, x[..., :1, :1]], "iOS15")


def test_nearest_as_torch_does():
    """Upsampling is torch's ``nearest``, resizing its ``nearest-exact``."""
    scales = [(1, 1), (2, 3), (2.5, 1.5), (0.7, 0.6)]

    def build(x):
        sizes = (mb.resize_nearest_neighbor(x=x, target_size_height=h, target_size_width=w) for h, w in SIZES)
        scaled = (mb.upsample_nearest_neighbor(x=x, scale_factor_height=h, scale_factor_width=w) for h, w in scales)
        return *sizes, *scaled, mb.upsample_nearest_neighbor(x=x)

    image = torch.tensor(X)
    expected = [functional.interpolate(image, size, mode="nearest-exact") for size in SIZES]
    sizes = [(math.floor(5 * h), math.floor(4 * w)) for h, w in scales]
    expected += [functional.interpolate(image, size, mode="nearest") for size in sizes]
    check(build, {"x": X}, [*expected, image], "iOS15")


@pytest.mark.parametrize(
    ("extent", "count"), [(10, 25), (20, 30), (5, 25), (10, 2), (1, 20), (10, 20), (20, 60), (2, 60)]
)
def test_nearest_as_tensorflow_does(extent, count):
    """Core ML Tools' tests hold these to TensorFlow's formulas, with half-pixel centres where it resizes."""
    x = torch.arange(float(extent)).reshape(1, 1, extent)
    exact = [min(int((i + 0.5) * extent / count), extent - 1) for i in range(count)]
    assert ops.resize_nearest_neighbor(x, 1, count).flatten().tolist() == exact
    assert ops.resize(x, [1, count], 2, "NEAREST_NEIGHBOR").flatten().tolist() == exact


@pytest.mark.parametrize("target", ["iOS15", "iOS16"])
def test_upsample_bilinear(target):
    scales = [(2, 3), (1.5, 2.6), (0.7, 0.6)]
    cases = [({}, "STRICT_ALIGN_CORNERS"), ({"align_corners": False}, "UNALIGN_CORNERS")]
    if target == "iOS16":
        cases += [
            ({"align_corners": False, "half_pixel_centers": False}, "DEFAULT"),
            ({"align_corners": False, "half_pixel_centers": True}, "UNALIGN_CORNERS"),
            ({"align_corners": True, "half_pixel_centers": False}, "STRICT_ALIGN_CORNERS"),
        ]

    def build(x):
        return tuple(
            mb.upsample_bilinear(x=x, scale_factor_height=h, scale_factor_width=w, **options)
            for (h, w), (options, _) in itertools.product(scales, cases)
        )

    sizes = [(math.floor(5 * h), math.floor(4 * w)) for h, w in scales]
    expected = [resized(X, h, w, mode) for (h, w), (_, mode) in itertools.product(sizes, cases)]
    check(build, {"x": X}, expected, target)


@pytest.mark.parametrize("mode", MODES)
def test_resize(mode):
    """Since iOS17 one operation for any axes, given as a tensor; a zero keeps an extent."""
    ints = (X * 50).astype(np.int32)
    kinds = ["LINEAR", "NEAREST_NEIGHBOR"]

    def build(x, ints):
        calls = itertools.product((x, ints), ([1, 3, 7], [7, 0]), kinds)
        options = {"resized_dims": np.uint32(2), "sampling_mode": mode}
        return tuple(
            mb.resize(x=one, shape=np.int32(shape), interpolation_mode=kind, **options) for one, shape, kind in calls
        )

    results = iter(run(build, {"x": X, "ints": ints}))
    for one, (height, width), kind in itertools.product((X, ints), ((3, 7), (7, 4)), kinds):
        got = next(results)
        assert got.dtype == one.dtype
        if kind == "LINEAR":  # integers are rounded, a half to either side
            np.testing.assert_allclose(got, resized(one, height, width, mode), atol=1e-5 if one is X else 0.5 + 1e-9)
        else:
            points = [
                grid("UNALIGN_CORNERS" if mode == "DEFAULT" else mode, *pair) for pair in ((5, height), (4, width))
            ]
            rows, columns = (np.floor(p + 0.5 + 1e-9).astype(int) for p in points)
            np.testing.assert_array_equal(got, one[..., rows, :][..., columns])


def test_resize_to_a_shape_the_program_computes():
    shape = np.array([9, 6, 3], np.int32)

    def build(x, shape):
        return mb.resize(x=x, shape=shape, resized_dims=np.uint32(1)), mb.resize(
            x=x, shape=shape, resized_dims=np.uint32(3)
        )

    channels = interpolated(resized(X, 6, 3, "DEFAULT"), 1, grid("DEFAULT", 3, 9))
    check(build, {"x": X, "shape": shape}, [resized(X, 5, 3, "DEFAULT"), channels])


def test_half_precision_is_rounded_once():
    x = X.astype(np.float16)
    (got,) = run(lambda x: mb.resize_bilinear(x=x, target_size_height=9, target_size_width=7), {"x": x})
    exact = resized(x.astype(np.float64), 9, 7, "DEFAULT")
    np.testing.assert_allclose(got, exact.astype(np.float16), rtol=2**-10.5, atol=1e-6)


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_crop(target):
    def build(x):
        return mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]), mb.crop(x=x, crop_height=[0, 0], crop_width=[0, 0])

    check(build, {"x": X}, [X[:, :, 1:3, :1], X], target)


# ---------------------------------------------------------------------------------------- cropping


def pixel(image, row, column, fill):
    """Bilinear; ``fill`` outside."""
    height, width = image.shape[-2:]
    if not (0 <= row <= height - 1 and 0 <= column <= width - 1):
        return np.full(image.shape[0], fill)
    top, left = min(int(row), height - 2), min(int(column), width - 2)
    down, right = row - top, column - left
    return (image[:, top, left] * (1 - right) + image[:, top, left + 1] * right) * (1 - down) + (
        image[:, top + 1, left] * (1 - right) + image[:, top + 1, left + 1] * right
    ) * down


def cropped(image, box, size, mode, fill):
    """``box`` in pixels: first row and column, last row and column."""
    places = []
    for start, end, count in zip(box[:2], box[2:], size, strict=True):
        points = grid(mode, abs(end - start) + 1, count)
        places.append(start + (points if end >= start else -points))
    out = [[pixel(image, row, column, fill) for column in places[1]] for row in places[0]]
    return np.moveaxis(np.array(out), -1, 0)


# Rows and columns in pixels of a 5×4 image: inside, a point, mirrored, across the edges.
BOXES = np.array([[0, 0, 4, 3], [1, 0.5, 3.25, 2], [2, 1, 2, 1], [3, 2.5, 1, 0.5], [-1, 1, 2.5, 4.5]], np.float32)


def encoded(boxes, mode, normalized):
    first, last = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    pair = [first, last] if mode.startswith("CORNERS") else [(first + last) / 2, last - first]
    pair = [one / np.array([4, 3]) if normalized else one for one in pair]
    return np.concatenate([one[:, ::-1] if mode.endswith("WIDTH_FIRST") else one for one in pair], 1).astype(np.float32)


BOX_MODES = ["CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_crop_resize_grids(target, mode):
    sizes = [(3, 4), (1, 1), (6, 2)]
    indices = np.array([1, 0, 1, 1, 0], np.int32)

    def build(x, boxes):
        given = (
            {"boxes": boxes, "box_indices": indices}
            if target == "iOS17"
            else {"roi": mb.reshape(x=boxes, shape=[5, 1, 4, 1, 1])}
        )
        options = {"x": x, "sampling_mode": mode, "pad_value": np.float32(2.5)} | given
        return tuple(mb.crop_resize(target_height=h, target_width=w, **options) for h, w in sizes)

    expected = []
    for size in sizes:
        if target == "iOS17":
            expected.append(
                np.stack([cropped(X[i], box, size, mode, 2.5) for i, box in zip(indices, BOXES, strict=True)])
            )
        else:  # every box of every image
            expected.append(np.stack([[cropped(one, box, size, mode, 2.5) for one in X] for box in BOXES]))
    check(build, {"x": X, "boxes": BOXES}, expected, target)


@pytest.mark.parametrize("mode", BOX_MODES)
@pytest.mark.parametrize("normalized", [True, False])
def test_crop_resize_boxes(mode, normalized):
    boxes = encoded(BOXES, mode, normalized)

    def build(x, boxes):
        options = {"target_height": 2, "target_width": 3, "sampling_mode": "ALIGN_CORNERS", "pad_value": np.float32(-1)}
        options |= {"x": x, "box_coordinate_mode": mode, "normalized_coordinates": normalized}
        indices = np.zeros(5, np.int32)
        half = mb.mul(x=boxes, y=2.0)
        return mb.crop_resize(boxes=boxes, box_indices=indices, **options), mb.crop_resize(
            boxes=half, box_indices=indices, spatial_scale=np.float32(0.5), **options
        )

    expected = np.stack([cropped(X[0], box, (2, 3), "ALIGN_CORNERS", -1) for box in BOXES])
    check(build, {"x": X, "boxes": boxes}, [expected] * 2)


def test_crop_resize_of_indexed_images():
    """An image's index comes before its box; without boxes' indices the i-th box is of the i-th image."""
    rows = np.concatenate([[[1], [0], [1], [1], [0]], BOXES], 1).astype(np.float32)
    got = find("crop_resize", "CoreML5").function(torch.tensor(X), torch.tensor(rows).reshape(5, 1, 5, 1, 1), 2, 2)
    expected = [cropped(X[int(row[0])], row[1:], (2, 2), "DEFAULT", 0) for row in rows]
    np.testing.assert_allclose(got, np.stack(expected)[:, None], atol=1e-5)
    options = {"target_height": 2, "target_width": 2}
    expected = [cropped(X[i], BOXES[i], (2, 2), "DEFAULT", 0) for i in range(2)]
    check(
        lambda x, boxes: mb.crop_resize(x=x, boxes=boxes, **options), {"x": X, "boxes": BOXES[:2]}, [np.stack(expected)]
    )


# ---------------------------------------------------------------------------------------- sampling


def mirrored(place, extent, *, edge):
    """Where a place outside lies in the image that continues it, its edge repeated or not."""
    period = 2 * extent if edge else max(2 * extent - 2, 1)
    place %= period
    return place if place < extent else (period - 1 if edge else period) - place


CONTINUED = {
    "border": lambda place, extent: min(max(place, 0), extent - 1),
    "reflection": lambda place, extent: mirrored(place, extent, edge=False),
    "symmetric": lambda place, extent: mirrored(place, extent, edge=True),
}


def at(image, row, column, padding, fill):
    height, width = image.shape[-2:]
    if padding != "constant":
        return image[:, CONTINUED[padding](row, height), CONTINUED[padding](column, width)]
    return image[:, row, column] if 0 <= row < height and 0 <= column < width else np.full(len(image), fill)


def resampled(x, places, sampling, padding, fill):
    """Of the image continued without end; ``places`` are (column, row) in pixels."""
    out = np.empty((len(x), x.shape[1], *places.shape[1:3]))
    for b, i, j in np.ndindex(places.shape[:3]):
        column, row = places[b, i, j].astype(np.float64)
        if sampling == "nearest":
            out[b, :, i, j] = at(x[b], round(row), round(column), padding, fill)
            continue
        top, left = math.floor(row), math.floor(column)
        corners = itertools.product(
            ((top, top + 1 - row), (top + 1, row - top)), ((left, left + 1 - column), (left + 1, column - left))
        )
        out[b, :, i, j] = sum(at(x[b], r, c, padding, fill) * u * v for (r, u), (c, v) in corners)
    return out


def in_pixels(coordinates, mode, *, align):
    last, size = np.array([3, 4]), np.array([4, 5])
    share = {"normalized_minus_one_to_one": (coordinates + 1) / 2, "normalized_zero_to_one": coordinates}.get(mode)
    if share is None:
        return coordinates
    return share * last if align else share * size - 0.5


PADDINGS = ["constant", "border", "reflection", "symmetric"]
COORDINATES = ["unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one"]


@pytest.mark.parametrize("coordinates_mode", COORDINATES)
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("target", ["iOS15", "iOS16"])
def test_resample(coordinates_mode, align, target):
    low, high = {"unnormalized": (-8, 12), "normalized_minus_one_to_one": (-3, 3), "normalized_zero_to_one": (-1, 2)}[
        coordinates_mode
    ]
    places = np.random.default_rng(3).uniform(low, high, (2, 6, 5, 2)).astype(np.float32)
    cases = list(itertools.product(["bilinear", "nearest"], PADDINGS))

    def build(x, places):
        options = {"coordinates_mode": coordinates_mode, "align_corners": align, "padding_value": np.float32(6.5)}
        calls = ({"sampling_mode": sampling, "padding_mode": padding} | options for sampling, padding in cases)
        return tuple(mb.resample(x=x, coordinates=places, **call) for call in calls)

    pixels = in_pixels(places.astype(np.float64), coordinates_mode, align=align)
    expected = [resampled(X, pixels, sampling, padding, 6.5) for sampling, padding in cases]
    check(build, {"x": X, "places": places}, expected, target)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "fp16"])
def test_coordinates_of_other_types(kind):
    places = np.random.default_rng(4).integers(0 if kind.startswith("u") else -4, 9, (2, 3, 3, 2)).astype(np.int32)

    def build(x, places):
        options = {"padding_value": np.float32(1), "coordinates_mode": "unnormalized", "align_corners": True}
        places = mb.cast(x=places, dtype=kind)
        return tuple(
            mb.resample(x=x, coordinates=places, sampling_mode=sampling, padding_mode=padding, **options)
            for sampling, padding in (("nearest", "symmetric"), ("bilinear", "constant"))
        )

    expected = [resampled(X, places, "nearest", "symmetric", 1), resampled(X, places, "bilinear", "constant", 1)]
    check(build, {"x": X, "places": places}, expected)


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("padding", "align", "torchs"),
    [
        *(
            (padding, align, torchs)
            for padding, torchs in (("constant", "zeros"), ("border", "border"))
            for align in (True, False)
        ),
        ("reflection", True, "reflection"),
        ("symmetric", False, "reflection"),
    ],
)
def test_resample_as_torch_does(sampling, padding, align, torchs):
    places = torch.empty(2, 20, 20, 2).uniform_(-3, 3, generator=torch.Generator().manual_seed(0))
    got = ops.resample(torch.tensor(X), places, sampling, padding, 0.0, "normalized_minus_one_to_one", align)
    expected = functional.grid_sample(torch.tensor(X), places, sampling, torchs, align)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid")  # about a single pixel
def test_affine_as_torch_does():
    matrices = np.random.default_rng(6).normal(size=(2, 6)).astype(np.float32)
    cases = list(itertools.product([matrices, matrices[:1]], [(6, 7), (1, 3), (4, 1)]))

    def build(x, both, first):
        options = {"sampling_mode": "bilinear", "padding_mode": "constant", "padding_value": np.float32(0)}
        options |= {"x": x, "coordinates_mode": "normalized_minus_one_to_one", "align_corners": True}
        return tuple(
            mb.affine(transform_matrix=both if len(one) == 2 else first, output_height=h, output_width=w, **options)
            for one, (h, w) in cases
        )

    image, expected = torch.tensor(X), []
    for one, size in cases:
        theta = torch.tensor(np.broadcast_to(one, (2, 6)).copy()).reshape(2, 2, 3)
        places = functional.affine_grid(theta, (2, 3, *size), align_corners=True)
        expected.append(functional.grid_sample(image, places, align_corners=True))
        got = ops.affine(
            image, torch.tensor(one), *size, "bilinear", "constant", 0.0, COORDINATES[1], align_corners=False
        )
        places = functional.affine_grid(theta, (2, 3, *size), align_corners=False)
        np.testing.assert_allclose(got, functional.grid_sample(image, places, align_corners=False), atol=2e-5)
    check(build, {"x": X, "both": matrices, "first": matrices[:1]}, expected, "iOS15", atol=2e-5)


# ----------------------------------------------------------- what Core ML Tools' tests expect of Core ML

PAIR, SQUARE = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[[11.0, 22], [33, 44]]]])
SIXTEEN = torch.arange(1.0, 17).reshape(1, 1, 4, 4)
PLACES = torch.tensor([-1.0, -2.0, -3.7, -1.0, 0.0, 0.0, 3.5, 1.2]).reshape(1, 2, 2, 2)
TRANSFORM = torch.tensor([[-1.0, -2.0, -3.7, -1.0, 3.5, 1.2]])
THREE = torch.tensor([[0.1, 0.3, 1.3, 1], [0.5, 1.8, 1, 0.3], [0, 0.4, 0.6, 0.7]])
ALIGNED = ("CORNERS_HEIGHT_FIRST", "ALIGN_CORNERS")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: ops.resize_bilinear(PAIR, 1, 5, "STRICT_ALIGN_CORNERS"), [0, 0.25, 0.5, 0.75, 1]),
        (lambda: ops.resize_bilinear(PAIR, 1, 5), [0, 0.4, 0.8, 1, 1]),
        (lambda: ops.resize_bilinear(PAIR, 1, 5, "OFFSET_CORNERS"), [0.1, 0.3, 0.5, 0.7, 0.9]),
        (lambda: ops.resize_bilinear(PAIR, 1, 5, "UNALIGN_CORNERS"), [0, 0.1, 0.5, 0.9, 1]),
        (lambda: ops.resize(PAIR.mT, [3, 2], 2, "NEAREST_NEIGHBOR"), [0, 0, 1, 1, 1, 1]),
        (lambda: ops.resize(PAIR, [1, 5], 1), [0, 0.4, 0.8, 1, 1]),
        (lambda: ops.resample(SQUARE, PLACES, "bilinear", "constant", 6.17, COORDINATES[1], True), [8.585, 6.17, 27.5, 6.17]),
        (lambda: ops.resample(SQUARE, PLACES, "nearest", "border", -1, COORDINATES[0], False), [11, 11, 11, 44]),
        (lambda: ops.resample(SQUARE, PLACES, "bilinear", "reflection", -1, COORDINATES[2], True), [22, 36.3, 11, 34.1]),
        (lambda: ops.resample(SQUARE, PLACES, "nearest", "symmetric", -1, COORDINATES[2], False), [22, 33, 11, 33]),
        (lambda: ops.affine(SQUARE, TRANSFORM, 3, 3, "bilinear", "constant", 0, COORDINATES[1], True), [10.7525, 2.5025, 0, 1.98, 0, 0, 0, 0, 0]),
        (lambda: ops.affine(SQUARE, TRANSFORM, 2, 5, "bilinear", "constant", 0, COORDINATES[1], True), [10.7525, 5.94, 2.5025, 0.44, 0, 0, 0, 0, 0, 0]),
        (lambda: ops.crop_resize_boxes(SIXTEEN, torch.tensor([[2.0, 2, 1, 1]]), None, 2, 2, False, 1, *ALIGNED), [11, 10, 7, 6]),
        (lambda: ops.crop_resize_boxes(SIXTEEN, torch.tensor([[1.0, 1, 2, 2]]), None, 1, 1, False, 1, *ALIGNED), [8.5]),
        (
            lambda: ops.crop_resize_boxes(SIXTEEN, THREE, torch.zeros(3), 2, 2, True, 1, *ALIGNED, 10),
            [3.1, 5.2, 10, 10, 10, 7.9, 10, 13.9, 2.2, 3.1, 9.4, 10.3],
        ),
    ],
)  # fmt: skip
def test_core_ml(call, expected):
    np.testing.assert_allclose(call().flatten(), expected, rtol=1e-5, atol=1e-5)


def test_core_ml_scales():
    x = np.float32([1.5, -2.5, 3.5]).reshape(1, 1, 1, 3)

    def build(x):
        return mb.upsample_nearest_neighbor(
            x=x, scale_factor_height=3.17, scale_factor_width=0.67
        ), mb.upsample_nearest_neighbor(x=x, scale_factor_height=2.0, scale_factor_width=1.12)

    check(build, {"x": x}, [np.tile(x[..., :2], (3, 1)), np.tile(x, (2, 1))], "iOS15")


# ------------------------------------------------------------------------------ properties, errors


@settings(deadline=None, max_examples=60)
@given(extent=st.integers(1, 40), count=st.integers(1, 90), mode=st.sampled_from(MODES))
def test_every_grid(extent, count, mode):
    line = torch.randn(1, extent, dtype=torch.float64)
    points = grid(mode, extent, count)
    got = ops.resize(line, [count], 1, "LINEAR", mode)
    np.testing.assert_allclose(got[0], np.interp(points, np.arange(extent), line[0]), atol=1e-9)


IMAGE, BOX, SPOTS = torch.ones(1, 1, 3, 3), torch.ones(1, 4), torch.zeros(1, 2, 2, 2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ops.resize_bilinear(IMAGE, 0, 1), "an image has no pixel: expected at least 1 each way"),
        (lambda: ops.resize_bilinear(IMAGE, -1, 1), "an image has no pixel: expected at least 1 each way"),
        (lambda: ops.resize_bilinear(IMAGE, 2**20, 2**20), "the result needs too much memory"),
        (lambda: ops.resize_bilinear(IMAGE, 1, 1, "CORNERS"), "unknown sampling_mode"),
        (lambda: ops.resize_bilinear(torch.ones(3, 3), 1, 1), "an image has too few axes: expected rank 3 or more"),
        (lambda: ops.resize_bilinear(torch.ones(1, 0, 3), 1, 1), "an image has no pixel: expected at least 1 each way"),
        (lambda: ops.resize_nearest_neighbor(IMAGE, 2**40, 1), "the result needs too much memory"),
        (lambda: ops.resize(IMAGE, [1, 1], 3), "resized_dims ≤ size of shape ≤ rank of x"),
        (lambda: ops.resize(IMAGE, [1] * 5, 2), "resized_dims ≤ size of shape ≤ rank of x"),
        (lambda: ops.resize(IMAGE, [-2, 1], 2), "an image has no pixel: expected at least 1 each way"),
        (
            lambda: ops.resize(IMAGE, [1, 1], 2, "CUBIC"),
            "unknown interpolation_mode: expected LINEAR or NEAREST_NEIGHBOR",
        ),
        (
            lambda: ops.upsample_bilinear(IMAGE, None, align_corners=True, half_pixel_centers=True),
            "align_corners and half_pixel_centers exclude each other",
        ),
        (lambda: ops.crop(IMAGE, [2, 2], [0, 0]), "a crop does not fit into the image: expected at most 3×3 pixels"),
        (lambda: ops.crop(IMAGE, [0, 0], [-1, 0]), "a crop does not fit into the image: expected at most 3×3 pixels"),
        (lambda: ops.crop(torch.ones(3, 3), [0, 0], [0, 0]), "an image has too few axes: expected rank 3 or more"),
        (
            lambda: ops.crop_resize(IMAGE, torch.ones(1, 1, 6, 1, 1)),
            "roi has the wrong shape: expected (N, 1, 4, 1, 1) or (N, 1, 5, 1, 1)",
        ),
        (
            lambda: ops.crop_resize(IMAGE, torch.ones(1, 4)),
            "roi has the wrong shape: expected (N, 1, 4, 1, 1) or (N, 1, 5, 1, 1)",
        ),
        (
            lambda: ops.crop_resize_boxes(IMAGE, BOX, torch.tensor([1])),
            "a box lies in an image that is not there: expected indices 0…0",
        ),
        (
            lambda: ops.crop_resize_boxes(IMAGE, BOX, torch.tensor([-1])),
            "a box lies in an image that is not there: expected indices 0…0",
        ),
        (
            lambda: ops.crop_resize_boxes(IMAGE, BOX, torch.tensor([0, 0])),
            "the boxes are malformed: expected four coordinates and an index each, resized to at least a pixel",
        ),
        (
            lambda: ops.crop_resize_boxes(IMAGE, BOX, None, 0, 1),
            "the boxes are malformed: expected four coordinates and an index each, resized to at least a pixel",
        ),
        (
            lambda: ops.crop_resize_boxes(IMAGE, BOX, None, 2**20, 2**20),
            "the result needs too much memory",
        ),
        (
            lambda: ops.crop_resize_boxes(IMAGE, BOX, box_coordinate_mode="CORNERS"),
            "unknown box_coordinate_mode",
        ),
        (
            lambda: ops.crop_resize_boxes(IMAGE, BOX, sampling_mode="CORNERS"),
            "unknown sampling_mode",
        ),
        (
            lambda: ops.resample(IMAGE, SPOTS[..., :1], "bilinear", "border", 0, "unnormalized", True),
            "coordinates have the wrong shape: expected (1, h, w, 2)",
        ),
        (
            lambda: ops.resample(IMAGE, SPOTS.repeat(2, 1, 1, 1), "bilinear", "border", 0, "unnormalized", True),
            "coordinates have the wrong shape: expected (1, h, w, 2)",
        ),
        (
            lambda: ops.resample(IMAGE, SPOTS, "cubic", "border", 0, "unnormalized", True),
            "unknown sampling_mode: expected bilinear or nearest",
        ),
        (
            lambda: ops.resample(IMAGE, SPOTS, "nearest", "wrap", 0, "unnormalized", True),
            "unknown padding_mode: expected constant, border, reflection or symmetric",
        ),
        (
            lambda: ops.resample(IMAGE, SPOTS, "nearest", "border", 0, "normalized", True),
            "unknown coordinates_mode",
        ),
        (
            lambda: ops.affine(IMAGE, torch.ones(1, 5), 1, 1, "bilinear", "constant", 0, COORDINATES[1], True),
            "a transform has the wrong shape: expected (1, 6) or (1, 6)",
        ),
        (
            lambda: ops.affine(IMAGE, torch.ones(2, 6), 1, 1, "bilinear", "constant", 0, COORDINATES[1], True),
            "a transform has the wrong shape: expected (1, 6) or (1, 6)",
        ),
        (
            lambda: ops.affine(IMAGE, torch.ones(1, 6), 2**20, 2**20, "bilinear", "constant", 0, COORDINATES[1], True),
            "the result needs too much memory",
        ),
        (
            lambda: ops.affine(IMAGE, torch.ones(1, 6), 1, 1, "bilinear", "constant", 0, "unnormalized", True),
            "unknown coordinates_mode: expected normalized_minus_one_to_one",
        ),
    ],
)
def test_refuses(call, said):
    with pytest.raises(OperationError, match=re.escape(said)):
        call()


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_places_that_are_no_numbers_are_safe(sampling, padding):
    places = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0]).repeat(2)[None, :, None].expand(1, 12, 1)
    places = torch.stack([places, places.flip(1)], -1)
    got = ops.resample(IMAGE, places, sampling, padding, 7.0, "unnormalized", True)
    assert got.shape == (1, 1, 12, 1)
