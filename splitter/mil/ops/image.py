"""Images: resizing, sampling, cropping. Positions are held in float64, so that only pixels are rounded."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...errors import OperationError
from . import Context, check_result_size, operation
from .traits import M1, M2, Traits

# ---------------------------------------------------------------------------------- grids and pixels


def _points(extent: Tensor, count: int, sampling_mode: str) -> Tensor:
    """Where an interval of ``extent`` pixels, whose centres are 0 … extent − 1, is sampled ``count`` times.

    With X the extent and N the count, the i-th point lies at

    - ``STRICT_ALIGN_CORNERS``: i·(X−1)/(N−1);
    - ``ALIGN_CORNERS``: the same, but (X−1)/2 if N is 1;
    - ``DEFAULT``: i·X/N;
    - ``OFFSET_CORNERS``: (i+½)·max(1, X−1)/N;
    - ``UNALIGN_CORNERS``: (i+½)·X/N − ½,

    moved into the interval. ``extent`` has a last axis of 1, which becomes the points.
    """
    i, last = torch.arange(count, dtype=torch.float64), extent - 1
    match sampling_mode:
        case "ALIGN_CORNERS" if count == 1:
            points = last / 2
        case "STRICT_ALIGN_CORNERS" | "ALIGN_CORNERS":
            points = i * last / max(count - 1, 1)
        case "DEFAULT":
            points = i * extent / count
        case "OFFSET_CORNERS":
            points = (i + 0.5) * last.clamp(min=1) / count
        case "UNALIGN_CORNERS":
            points = (i + 0.5) * extent / count - 0.5
        case _:
            raise OperationError("unknown sampling_mode", received=sampling_mode)
    return torch.minimum(points.clamp(min=0), last)


def _grid(x: Tensor, axis: int, count: int, sampling_mode: str) -> Tensor:
    if count < 1 or x.shape[axis] < 1:
        raise OperationError("an image has no pixel", expected="at least 1 each way", received=(x.shape[axis], count))
    check_result_size([count if place == axis else extent for place, extent in enumerate(x.shape)], x.dtype)
    return _points(torch.tensor([float(x.shape[axis])], dtype=torch.float64), count, sampling_mode)


def _nearest(x: Tensor, axis: int, count: int, sampling_mode: str) -> Tensor:
    """Points are rounded to the nearest pixel, halves up. In mode ``DEFAULT`` they are those of ``UNALIGN_CORNERS``.

    So Core ML Tools' own tests want it: they hold this mode to TensorFlow's resizing with half-pixel centres.
    """
    points = _grid(x, axis, count, "UNALIGN_CORNERS" if sampling_mode == "DEFAULT" else sampling_mode)
    return x.index_select(axis, (points + 0.5).floor().long())


def _linear(x: Tensor, axis: int, count: int, sampling_mode: str) -> Tensor:
    points = _grid(x, axis, count, sampling_mode)
    low = points.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    share = (points - low).to(x.dtype).reshape([-1] + [1] * (x.dim() - axis - 1))
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, high), share)


def _bilinear(x: Tensor, height: int, width: int, sampling_mode: str) -> Tensor:
    _at_least(x, 3)
    return _linear(_linear(x, x.dim() - 2, height, sampling_mode), x.dim() - 1, width, sampling_mode)


def _at_least(x: Tensor, rank: int) -> None:
    if x.dim() < rank:
        raise OperationError("an image has too few axes", expected=f"rank {rank} or more", received=x.dim())


def _pixels(x: Tensor, images: Tensor, rows: Tensor, columns: Tensor, fill: float | None) -> Tensor:
    """Pixels of ``(B, C, H, W)`` as ``(…, C)``; beyond the edge ``fill``, or the edge's own where that is None."""
    height, width = x.shape[-2:]
    inner_rows, inner_columns = (
        place.clamp(0, extent - 1).nan_to_num(0.0).long() for place, extent in ((rows, height), (columns, width))
    )
    values = x[images, :, inner_rows, inner_columns]
    if fill is None:
        return values
    inside = (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)
    return values.where(inside[..., None], fill)


def _sampled(x: Tensor, images: Tensor, rows: Tensor, columns: Tensor, *, nearest: bool, fill: float | None) -> Tensor:
    """``(B, C, H, W)`` at fractional places as ``(N, C, h, w)``; ``images`` say in which of the B.

    Bilinear samples near the edge blend with what lies beyond it. The nearest pixel of a half is the even one.
    """
    check_result_size((*torch.broadcast_shapes(images.shape, rows.shape, columns.shape), x.shape[1]), x.dtype)
    if nearest:
        return _pixels(x, images, rows.round(), columns.round(), fill).movedim(-1, 1)
    top, left = rows.floor(), columns.floor()
    down, right = ((rows - top).nan_to_num(0.0), (columns - left).nan_to_num(0.0))
    down, right = down[..., None].to(x.dtype), right[..., None].to(x.dtype)
    upper = torch.lerp(_pixels(x, images, top, left, fill), _pixels(x, images, top, left + 1, fill), right)
    lower = torch.lerp(_pixels(x, images, top + 1, left, fill), _pixels(x, images, top + 1, left + 1, fill), right)
    return torch.lerp(upper, lower, down).movedim(-1, 1)


# ---------------------------------------------------------------------------------------- resizing


def _scaled(x: Tensor, height: float, width: float, context: Context) -> tuple[int, int]:
    """The declared extents, or ⌊extent · scale⌋ in float32 where they are known only now.

    The declared ones come first because numerics other than the program's own may have rounded the scale.
    """
    _at_least(x, 3)
    computed = [
        int(np.floor(np.float32(scale) * np.float32(n))) for scale, n in zip((height, width), x.shape[-2:], strict=True)
    ]
    rows, columns = context.result.shape[-2:]
    return (computed[0] if rows is None else rows, computed[1] if columns is None else columns)


@operation("upsample_nearest_neighbor", Traits(engine=M1))
def upsample_nearest_neighbor(
    x: Tensor, context: Context, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0
) -> Tensor:
    """Row i of the result is row ⌊i·H1/H2⌋, with H2 = ⌊H1·scale⌋; columns likewise."""
    for axis, count in enumerate(_scaled(x, scale_factor_height, scale_factor_width, context), x.dim() - 2):
        x = x.index_select(axis, _grid(x, axis, count, "DEFAULT").floor().long())
    return x


@operation("resize_nearest_neighbor", Traits(engine=M1))
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Row i of the result is row ⌊(i+½)·H1/H2⌋; columns likewise."""
    _at_least(x, 3)
    rows = _nearest(x, x.dim() - 2, target_size_height, "DEFAULT")
    return _nearest(rows, x.dim() - 1, target_size_width, "DEFAULT")


@operation("upsample_bilinear", Traits(accumulate_fp32=True, engine=M1))
def upsample_bilinear(
    x: Tensor,
    context: Context,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """As `resize_bilinear` to ⌊extent · scale⌋; the grid follows from that size, not from the scale."""
    half_pixel_centers = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and half_pixel_centers:
        raise OperationError("align_corners and half_pixel_centers exclude each other")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half_pixel_centers else "DEFAULT"
    return _bilinear(x, *_scaled(x, scale_factor_height, scale_factor_width, context), mode)


@operation("resize_bilinear", Traits(accumulate_fp32=True, engine=M1))
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """Interpolated at the grid points of `_points`."""
    return _bilinear(x, target_size_height, target_size_width, sampling_mode)


@operation("resize", Traits(accumulate_fp32=True, engine=M1), opset="CoreML7")
def resize(
    x: Tensor,
    shape: list[int],
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last ``resized_dims`` axes take the last extents of ``shape``; a 0 there keeps x's own.

    Integers are interpolated in float64 and rounded to the nearest.
    """
    if not 0 <= resized_dims <= len(shape) <= x.dim():
        raise OperationError(
            "resized_dims, shape and x do not fit together",
            expected="resized_dims ≤ size of shape ≤ rank of x",
            received=(resized_dims, len(shape), x.dim()),
        )
    if interpolation_mode not in ("LINEAR", "NEAREST_NEIGHBOR"):
        raise OperationError(
            "unknown interpolation_mode", expected="LINEAR or NEAREST_NEIGHBOR", received=interpolation_mode
        )
    linear = interpolation_mode == "LINEAR"
    result = x if x.is_floating_point() or not linear else x.to(torch.float64)
    for axis in range(x.dim() - resized_dims, x.dim()):
        count = shape[len(shape) - x.dim() + axis] or x.shape[axis]
        result = (_linear if linear else _nearest)(result, axis, count, sampling_mode)
    return result if result.dtype == x.dtype else result.round().to(x.dtype)


# ---------------------------------------------------------------------------------------- cropping


@operation("crop", Traits(engine=M1))
def crop(x: Tensor, crop_height: list[int], crop_width: list[int]) -> Tensor:
    """Cuts off pixels: from top and bottom, from left and right."""
    _at_least(x, 3)
    (top, bottom), (left, right) = crop_height, crop_width
    height, width = x.shape[-2:]
    if min(top, bottom, left, right) < 0 or top + bottom > height or left + right > width:
        raise OperationError(
            "a crop does not fit into the image",
            expected=f"at most {height}×{width} pixels",
            received=(crop_height, crop_width),
        )
    return x[..., top : height - bottom, left : width - right]


def _crops(
    x: Tensor,
    boxes: Tensor,
    images: Tensor,
    size: tuple[int, int],
    normalized: bool,
    scale: float,
    box_mode: str,
    sampling_mode: str,
    fill: float,
) -> Tensor:
    """``(N, C, h, w)``: each of N boxes ``(N, 4)``, cut out of one image each and resized.

    A box spans the pixels from its start to its end, both included, and is sampled there as by `_points`; a box whose
    end comes first is mirrored. A point outside the image is ``fill``.
    """
    if min(size) < 1 or boxes.dim() != 2 or boxes.shape[1] != 4 or images.shape != boxes.shape[:1]:
        received = f"{tuple(boxes.shape)} to {size}, {tuple(images.shape)} indices"
        raise OperationError(
            "the boxes are malformed",
            expected="four coordinates and an index each, resized to at least a pixel",
            received=received,
        )
    if bool(((images < 0) | (images >= len(x))).any()):
        raise OperationError(
            "a box lies in an image that is not there", expected=f"indices 0…{len(x) - 1}", received=images.tolist()
        )
    first, second, third, fourth = (boxes.to(torch.float64) * scale).unbind(1)
    match box_mode:
        case "CORNERS_HEIGHT_FIRST" | "CORNERS_WIDTH_FIRST":
            spans = [(first, third), (second, fourth)]
        case "CENTER_SIZE_HEIGHT_FIRST" | "CENTER_SIZE_WIDTH_FIRST":
            spans = [(first - third / 2, first + third / 2), (second - fourth / 2, second + fourth / 2)]
        case _:
            raise OperationError("unknown box_coordinate_mode", received=box_mode)
    if box_mode.endswith("WIDTH_FIRST"):
        spans.reverse()
    check_result_size((len(boxes), *size, x.shape[1]), torch.float64)
    places = []
    for (start, end), extent, count in zip(spans, x.shape[-2:], size, strict=True):
        unit = extent - 1 if normalized else 1
        length = (end - start)[:, None] * unit
        offsets = length.sign() * _points(length.abs() + 1, count, sampling_mode)
        places.append(start[:, None] * unit + offsets)
    rows, columns = places[0][:, :, None], places[1][:, None, :]
    inside = (rows >= 0) & (rows <= x.shape[-2] - 1) & (columns >= 0) & (columns <= x.shape[-1] - 1)
    values = _sampled(x, images.long()[:, None, None], rows, columns, nearest=False, fill=None)
    return values.where(inside[:, None], fill)


@operation("crop_resize", Traits(accumulate_fp32=True, engine=M2))
def crop_resize(
    x: Tensor,
    roi: Tensor,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """``roi`` is ``(N, 1, 4, 1, 1)``: boxes for every image; or ``(N, 1, 5, 1, 1)``: an image's index before each.

    Returns:
        ``(N, B, C, h, w)``, or ``(N, 1, C, h, w)`` with indices.
    """
    count, parts = len(roi), math.prod(roi.shape[1:])
    if roi.dim() != 5 or parts not in (4, 5) or roi.shape[2] != parts:
        raise OperationError(
            "roi has the wrong shape", expected="(N, 1, 4, 1, 1) or (N, 1, 5, 1, 1)", received=tuple(roi.shape)
        )
    rows = roi.reshape(count, parts)
    each = len(x) if parts == 4 else 1
    images = torch.arange(len(x)).repeat(count) if parts == 4 else rows[:, 0].round().long()
    crops = _crops(
        x,
        rows[:, -4:].repeat_interleave(each, 0),
        images,
        (target_height, target_width),
        normalized_coordinates,
        spatial_scale,
        box_coordinate_mode,
        sampling_mode,
        pad_value,
    )
    return crops.reshape(count, each, *crops.shape[1:])


@operation("crop_resize", opset="CoreML7")
def crop_resize_boxes(
    x: Tensor,
    boxes: Tensor,
    box_indices: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """``boxes`` are ``(N, 4)``, cut out of the images ``box_indices``, or one out of each.

    Returns:
        ``(N, C, h, w)``.
    """
    return _crops(
        x,
        boxes,
        torch.arange(len(boxes)) if box_indices is None else box_indices,
        (target_height, target_width),
        normalized_coordinates,
        spatial_scale,
        box_coordinate_mode,
        sampling_mode,
        pad_value,
    )


# ---------------------------------------------------------------------------------------- sampling


def _in_pixels(coordinates: Tensor, extent: int, coordinates_mode: str, align_corners: bool) -> Tensor:
    """Normalised coordinates end at the centres of the outermost pixels if corners are aligned, else at their edges."""
    match coordinates_mode:
        case "unnormalized":
            return coordinates
        case "normalized_minus_one_to_one":
            coordinates = (coordinates + 1) / 2
        case "normalized_zero_to_one":
            pass
        case _:
            raise OperationError("unknown coordinates_mode", received=coordinates_mode)
    return coordinates * (extent - 1) if align_corners else coordinates * extent - 0.5


def _reflected(places: Tensor, low: float, high: float) -> Tensor:
    if low == high:
        return torch.zeros_like(places)
    span = high - low
    return low + span - (torch.remainder(places - low, 2 * span) - span).abs()


def _resampled(
    x: Tensor,
    columns: Tensor,
    rows: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    batch, _, height, width = x.shape
    if sampling_mode not in ("bilinear", "nearest"):
        raise OperationError("unknown sampling_mode", expected="bilinear or nearest", received=sampling_mode)
    if padding_mode not in ("constant", "border", "reflection", "symmetric"):
        raise OperationError(
            "unknown padding_mode", expected="constant, border, reflection or symmetric", received=padding_mode
        )
    places = []
    for given, extent in ((rows, height), (columns, width)):
        place = _in_pixels(given, extent, coordinates_mode, align_corners)
        if padding_mode == "reflection":  # at the centres of the outermost pixels, which are not repeated
            place = _reflected(place, 0, extent - 1)
        elif padding_mode == "symmetric":  # at their edges
            place = _reflected(place, -0.5, extent - 0.5)
        places.append(place)
    fill = padding_value if padding_mode == "constant" else None
    return _sampled(x, torch.arange(batch)[:, None, None], *places, nearest=sampling_mode == "nearest", fill=fill)


@operation("resample", Traits(accumulate_fp32=True, engine=M2))
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """``x`` at ``coordinates`` ``(B, h, w, 2)``, each of them (column, row)."""
    if coordinates.dim() != 4 or coordinates.shape[-1] != 2 or len(coordinates) != len(x):
        raise OperationError(
            "coordinates have the wrong shape", expected=f"({len(x)}, h, w, 2)", received=tuple(coordinates.shape)
        )
    columns, rows = coordinates.to(torch.float64).unbind(-1)
    return _resampled(x, columns, rows, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


@operation("affine", Traits(accumulate_fp32=True, engine=M2))
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Samples at column a₀·x + a₁·y + a₂ and row b₀·x + b₁·y + b₂ for each place (x, y) of the result.

    All of these are normalised to -1 … 1. ``transform_matrix`` is ``(B, 6)`` or ``(1, 6)``: a₀, a₁, a₂, b₀, b₁, b₂.
    """
    if coordinates_mode != "normalized_minus_one_to_one":
        raise OperationError(
            "unknown coordinates_mode", expected="normalized_minus_one_to_one", received=coordinates_mode
        )
    if transform_matrix.dim() != 2 or transform_matrix.shape[1] != 6 or len(transform_matrix) not in (1, len(x)):
        raise OperationError(
            "a transform has the wrong shape",
            expected=f"(1, 6) or ({len(x)}, 6)",
            received=tuple(transform_matrix.shape),
        )
    check_result_size((len(x), output_height, output_width, x.shape[1]), torch.float64)
    across, down = (
        _normalised(count, align_corners).reshape(shape)
        for count, shape in ((output_width, (1, 1, -1)), (output_height, (1, -1, 1)))
    )
    a0, a1, a2, b0, b1, b2 = transform_matrix.to(torch.float64).expand(len(x), 6)[:, :, None, None].unbind(1)
    columns, rows = a0 * across + a1 * down + a2, b0 * across + b1 * down + b2
    return _resampled(x, columns, rows, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


def _normalised(count: int, align_corners: bool) -> Tensor:
    """Centres of ``count`` pixels from -1 to 1: those of the outermost if corners are aligned, else their edges.

    A single pixel lies at 0 either way.
    """
    i = torch.arange(count, dtype=torch.float64)
    if align_corners:
        return 2 * i / (count - 1) - 1 if count > 1 else i
    return (2 * i + 1) / count - 1
