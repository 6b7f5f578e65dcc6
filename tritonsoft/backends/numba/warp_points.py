"""The points of a warp: where each output pixel of a span of a row looks, and how much each look weighs.

`tritonsoft.geometry`, "Warps", says what is computed here. Centres are float64; what lies around one is relative to the
source pixel that holds it, and so small that the compute dtype holds it well. A span of pixels takes one point each at
a time, so that the arithmetic is vectorised; what differs between pixels lies in arrays.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, array_at
from tritonsoft.backends.numba.threads import jit, unsigned
from tritonsoft.geometry import FILTERS, MAX_POINTS, MIN_STEP, MIN_WINDOW, STRETCH_TOLERANCE, Filter

SPAN = 64  # pixels: with up to 32 points of each, what is known of the points stays in the first cache
_AREA, _TRIANGLE, _BILINEAR, _NEAREST = range(4)
_MAX_DISTANCE = 2.0**23  # pixels
_FAR = -(2**24)  # pixels: where a centre is put that lies outside of every image, or nowhere


class Span(NamedTuple):
    """Pixels of an output row; scratch memory, one number a pixel and, from ``weight_x`` on, one a point and pixel."""

    base_x: Array  # the source pixel that holds the centre, int32
    base_y: Array
    x: Array  # the centre, relative to that pixel
    y: Array
    right_x: Array
    right_y: Array
    down_x: Array
    down_y: Array
    bend_right: Array
    bend_down: Array
    inverse_window_x: Array
    inverse_window_y: Array
    extent_x: Array
    extent_y: Array
    plateau_x: Array  # of the triangle filter's trapezoid
    plateau_y: Array
    number_x: Array  # of points, int32
    number_y: Array
    outside: Array  # the weight of what lies outside of the image
    weight_x: Array
    weight_y: Array
    place: Array  # of a point's upper left pixel among those of the source
    share_x: Array  # of the pixel to the right of it
    share_y: Array
    weight: Array


@jit
def new_span(like: Array, like_place: Array) -> Any:
    """Arrays of the compute dtype, and of that of places in the source."""
    dtype, points = like.dtype, 2 * MAX_POINTS * SPAN
    return Span(
        np.zeros(SPAN, np.int32),
        np.zeros(SPAN, np.int32),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, dtype),
        np.zeros(SPAN, np.int32),
        np.zeros(SPAN, np.int32),
        np.zeros(SPAN, dtype),
        np.zeros(points, dtype),
        np.zeros(points, dtype),
        np.zeros(points, like_place.dtype),
        np.zeros(points, dtype),
        np.zeros(points, dtype),
        np.zeros(points, dtype),
    )


# --- centres ---------------------------------------------------------------------------------------------------------


@jit
def _points_along(stretch: float, filter: int) -> Any:
    if filter > _TRIANGLE or not stretch > 1:
        return np.int32(1)
    return np.int32(min(max(np.ceil(min(stretch, 1e3) - STRETCH_TOLERANCE), 1), MAX_POINTS))


@jit
def _within(extent: float) -> float:
    return min(max(extent, MIN_WINDOW), 1.0)


@jit
def _set_steps(span: Span, n: int, right: Any, down: Any, bends: Any, filter: int) -> None:
    """What follows from the steps of the n-th pixel."""
    stretch_x = np.sqrt(right[0] * right[0] + right[1] * right[1])
    stretch_y = np.sqrt(down[0] * down[0] + down[1] * down[1])
    if not np.isfinite(stretch_x):
        right, stretch_x = (0.0, 0.0), 0.0
    if not np.isfinite(stretch_y):
        down, stretch_y = (0.0, 0.0), 0.0
    number_x, number_y = _points_along(stretch_x, filter), _points_along(stretch_y, filter)
    span.right_x[n], span.right_y[n] = right[0], right[1]
    span.down_x[n], span.down_y[n] = down[0], down[1]
    span.bend_right[n], span.bend_down[n] = bends
    span.number_x[n], span.number_y[n] = number_x, number_y
    right, down = (right[0] / number_x, right[1] / number_x), (down[0] / number_y, down[1] / number_y)
    span.extent_x[n] = _within(np.sqrt(right[0] * right[0] + down[0] * down[0]))
    span.extent_y[n] = _within(np.sqrt(right[1] * right[1] + down[1] * down[1]))
    if stretch_x < MIN_STEP:
        right = (1.0, 0.0)
    elif stretch_x < 1:
        right = (right[0] / stretch_x, right[1] / stretch_x)
    if stretch_y < MIN_STEP:
        down = (0.0, 1.0)
    elif stretch_y < 1:
        down = (down[0] / stretch_y, down[1] / stretch_y)
    is_linear = filter == _BILINEAR
    window_x = 1.0 if is_linear else _within(np.sqrt(right[0] * right[0] + down[0] * down[0]))
    window_y = 1.0 if is_linear else _within(np.sqrt(right[1] * right[1] + down[1] * down[1]))
    span.inverse_window_x[n], span.inverse_window_y[n] = 1 / window_x, 1 / window_y
    span.plateau_x[n] = np.sqrt(max(1 - 1 / max(stretch_x * stretch_x, 1.0), 0.0))
    span.plateau_y[n] = np.sqrt(max(1 - 1 / max(stretch_y * stretch_y, 1.0), 0.0))


@jit
def _set_centre(span: Span, n: int, x: float, y: float) -> Any:
    """Whether it lies anywhere that an image may reach to."""
    is_near = (abs(x) < _MAX_DISTANCE) & (abs(y) < _MAX_DISTANCE)
    x, y = (x, y) if is_near else (np.float64(_FAR), np.float64(_FAR))
    base_x, base_y = np.floor(x), np.floor(y)
    span.base_x[n], span.base_y[n] = np.int32(base_x), np.int32(base_y)
    span.x[n], span.y[n] = x - base_x, y - base_y
    return is_near


@jit
def _matrix_of(numbers: Array, sample: int) -> Any:
    """Nine numbers, row by row; an array at an address knows no length, so it has no slices."""
    at = 9 * sample
    first = numbers[at], numbers[at + 1], numbers[at + 2]
    second = numbers[at + 3], numbers[at + 4], numbers[at + 5]
    return (*first, *second, numbers[at + 6], numbers[at + 7], numbers[at + 8])


@jit
def prepare_sample(span: Span, transform: Array, is_field: bool, sample: int, filter: int) -> Any:
    """What all pixels of a sample share; returns whether the steps are that, as under an affine matrix."""
    if is_field:
        return False
    m = _matrix_of(transform, sample)
    depth = m[8]
    if m[6] != 0 or m[7] != 0:
        return False
    for n in range(SPAN):
        _set_steps(span, n, (m[0] / depth, m[3] / depth), (m[1] / depth, m[4] / depth), (0.0, 0.0), filter)
    return True


@jit
def _locate_by_matrix(
    span: Span, matrix: Array, sample: int, row: int, column: int, count: int, filter: int, affine: bool
) -> None:
    m = _matrix_of(matrix, sample)
    v = row + 0.5
    for n in range(unsigned(count)):
        u = np.float64(column + np.int64(n)) + 0.5
        depth = m[6] * u + m[7] * v + m[8]
        inverse = depth if depth > 0 else np.nan
        x, y = (m[0] * u + m[1] * v + m[2]) / inverse, (m[3] * u + m[4] * v + m[5]) / inverse
        if not _set_centre(span, n, x, y):
            if not affine:
                _set_steps(span, n, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), filter)
        elif not affine:
            right = (m[0] - x * m[6]) / depth, (m[3] - y * m[6]) / depth
            down = (m[1] - x * m[7]) / depth, (m[4] - y * m[7]) / depth
            _set_steps(span, n, right, down, (m[6] / depth, m[7] / depth), filter)


@jit
def _step_of_field(field: Array, here: int, place: int, size: int, stride: int) -> Any:
    """Half the difference of the two neighbours along an axis; at an end the difference to the one."""
    after = here + (stride if place + 1 < size else 0)
    before = here - (stride if place > 0 else 0)
    distance = max(min(place + 1, size - 1) - max(place - 1, 0), 1)
    x = (np.float64(field[after]) - np.float64(field[before])) / distance
    return x, (np.float64(field[after + 1]) - np.float64(field[before + 1])) / distance


@jit
def _locate_by_field(
    span: Span,
    field: Array,
    sample: int,
    row: int,
    column: int,
    count: int,
    out_size: Any,
    filter: int,
) -> None:
    out_height, out_width = out_size
    for n in range(count):
        here = 2 * ((sample * out_height + row) * out_width + column + n)
        if _set_centre(span, n, np.float64(field[here]), np.float64(field[here + 1])):
            right = _step_of_field(field, here, column + n, out_width, 2)
            down = _step_of_field(field, here, row, out_height, 2 * out_width)
            _set_steps(span, n, right, down, (0.0, 0.0), filter)
        else:
            _set_steps(span, n, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), filter)


@jit
def _is_inside(span: Span, count: int, size: Any, filter: int) -> Any:
    """Whether everything that these pixels look at lies in the image, for certain."""
    height, width = size
    widest = 1.0 if filter == _TRIANGLE else 0.5
    is_inside = True
    for n in range(unsigned(count)):
        reach_x = widest * (abs(span.right_x[n]) + abs(span.down_x[n])) + 2
        reach_y = widest * (abs(span.right_y[n]) + abs(span.down_y[n])) + 2
        is_inside &= (span.base_x[n] > reach_x) & (span.base_x[n] + reach_x < width - 1)
        is_inside &= (span.base_y[n] > reach_y) & (span.base_y[n] + reach_y < height - 1)
        is_inside &= (span.bend_right[n] == 0) & (span.bend_down[n] == 0)
    return is_inside


@jit
def locate(
    span: Span,
    transform: Array,
    is_field: bool,
    affine: bool,
    sample: int,
    row: int,
    column: int,
    count: int,
    size: Any,
    out_size: Any,
    filter: int,
) -> Any:
    """The centres of neighbours in an output row; returns whether all that they look at lies in the image."""
    if is_field:
        _locate_by_field(span, transform, sample, row, column, count, out_size, filter)
    else:
        _locate_by_matrix(span, transform, sample, row, column, count, filter, affine)
    for n in range(unsigned(count)):
        span.outside[n] = 0
    return _is_inside(span, count, size, filter)


# --- points ----------------------------------------------------------------------------------------------------------


@jit
def run_of_pixels(span: Span, first: int, count: int) -> Any:
    """The end of the pixels from ``first`` on that have as many points as it has."""
    end = first + unsigned(1)
    while end < count and span.number_x[end] == span.number_x[first] and span.number_y[end] == span.number_y[first]:
        end += unsigned(1)
    return end


@jit
def num_steps(number: int, filter: int) -> Any:
    """The points along an axis."""
    return 2 * number if filter == _TRIANGLE and number > 1 else number


@jit
def _offset(k: int, number: int, filter: int) -> float:
    return (k + 0.5) / number - (1.0 if filter == _TRIANGLE and number > 1 else 0.5)


@jit
def _trapezoid(offset: float, plateau: float, place: int, size: int) -> float:
    position = place + 0.5 + offset
    if position <= 0 or position >= size:
        return 0.0
    return min(max((1 + plateau) / 2 - abs(offset), 0.0), plateau)


@jit
def _weigh_axis(
    weights: Array, plateau: Array, number: int, begin: int, step: int, size: int, first: int, end: int, filter: int
) -> None:
    """The weights of the points along an axis; the n-th pixel is the ``begin + n * step``-th of the output there."""
    steps = num_steps(number, filter)
    if steps == number:
        for k in range(unsigned(steps)):
            for n in range(first, end):
                weights[k * unsigned(SPAN) + n] = 1.0 / number
        return
    for n in range(first, end):
        total, place = 0.0, begin + np.int64(n) * step
        for k in range(steps):
            total += _trapezoid(_offset(k, number, filter), plateau[n], place, size)
        for k in range(unsigned(steps)):
            weights[k * unsigned(SPAN) + n] = _trapezoid(_offset(k, number, filter), plateau[n], place, size) / total


@jit
def weigh_points(span: Span, first: int, end: int, row: int, column: int, out_size: Any, filter: int) -> Any:
    """The weights of a run of pixels along both axes; returns how many points there are along each, y first."""
    number_x, number_y = np.int64(span.number_x[first]), np.int64(span.number_y[first])
    _weigh_axis(span.weight_x, span.plateau_x, number_x, column, 1, out_size[1], first, end, filter)
    _weigh_axis(span.weight_y, span.plateau_y, number_y, row, 0, out_size[0], first, end, filter)
    return num_steps(number_y, filter), num_steps(number_x, filter)


@jit
def _share_outside(low: Any, high: Any, extent: Any) -> Any:
    """Of a cell whose centre is so far inside of the two ends of the image."""
    zero, one, half = extent * 0, extent * 0 + 1, extent / 2
    return min((max(half - low, zero) + max(half - high, zero)) / extent, one)


@jit
def place_points(
    span: Span, first: int, end: int, step_y: int, size: Any, strides: Any, is_inside: bool, filter: int
) -> None:
    """The points of a run of pixels in the ``step_y``-th row of each: places in a source of these strides, y first."""
    dtype, index = span.x.dtype.type, span.place.dtype.type
    zero, half, one = dtype(0), dtype(0.5), dtype(1)
    # As arrays of their own, none of which a compiler must think to be changed by a store to another.
    x, y, right_x, right_y, down_x, down_y = span.x, span.y, span.right_x, span.right_y, span.down_x, span.down_y
    base_x, base_y, weight_x, weight_y = span.base_x, span.base_y, span.weight_x, span.weight_y
    inverse_x, inverse_y, place, weight = span.inverse_window_x, span.inverse_window_y, span.place, span.weight
    share_x, share_y = span.share_x, span.share_y
    number_x, number_y = np.int64(span.number_x[first]), np.int64(span.number_y[first])
    height, width = np.int32(size[0]), np.int32(size[1])
    stride_y, stride_x, far = index(strides[0]), index(strides[1]), dtype(_MAX_DISTANCE / 2)
    offset_y, line_y = dtype(_offset(step_y, number_y, filter)), unsigned(step_y * SPAN)
    is_nearest = filter == _NEAREST
    for k in range(num_steps(number_x, filter)):
        offset_x, line = dtype(_offset(k, number_x, filter)), unsigned(k * SPAN)
        if is_inside and not is_nearest:
            for n in range(first, end):
                here_x = x[n] + (offset_x * right_x[n] + offset_y * down_x[n])
                here_y = y[n] + (offset_x * right_y[n] + offset_y * down_y[n])
                edge_x, edge_y = np.floor(here_x + half), np.floor(here_y + half)
                share_x[line + n] = min(max((here_x - edge_x) * inverse_x[n] + half, zero), one)
                share_y[line + n] = min(max((here_y - edge_y) * inverse_y[n] + half, zero), one)
                column = np.int32(base_x[n] + np.int32(edge_x)) - np.int32(1)
                row = np.int32(base_y[n] + np.int32(edge_y)) - np.int32(1)
                place[line + n] = index(row) * stride_y + index(column) * stride_x
                weight[line + n] = weight_y[line_y + n] * weight_x[line + n]
            continue
        for n in range(first, end):
            depth = one + (offset_x * span.bend_right[n] + offset_y * span.bend_down[n])
            here_x = x[n] + (offset_x * right_x[n] + offset_y * down_x[n]) / depth
            here_y = y[n] + (offset_x * right_y[n] + offset_y * down_y[n]) / depth
            if not (depth > 0 and abs(here_x) < far and abs(here_y) < far):
                here_x = here_y = -far
            low_x, low_y = here_x + dtype(base_x[n]), here_y + dtype(base_y[n])
            high_x, high_y = dtype(width - base_x[n]) - here_x, dtype(height - base_y[n]) - here_y
            if is_nearest:
                outside_x = zero if low_x >= 0 and high_x > 0 else one
                outside_y = zero if low_y >= 0 and high_y > 0 else one
                edge_x, edge_y = np.floor(here_x) + one, np.floor(here_y) + one
                right, below = zero, zero
            else:
                outside_x = _share_outside(low_x, high_x, span.extent_x[n])
                outside_y = _share_outside(low_y, high_y, span.extent_y[n])
                edge_x, edge_y = np.floor(here_x + half), np.floor(here_y + half)
                right = min(max((here_x - edge_x) * inverse_x[n] + half, zero), one)
                below = min(max((here_y - edge_y) * inverse_y[n] + half, zero), one)
            column, row = np.int32(base_x[n] + np.int32(edge_x)), np.int32(base_y[n] + np.int32(edge_y))
            if column >= width:
                column, right = np.int32(width - 1), one
            if column <= 0:
                column, right = np.int32(1), zero
            if row >= height:
                row, below = np.int32(height - 1), one
            if row <= 0:
                row, below = np.int32(1), zero
            whole = weight_y[line_y + n] * weight_x[line + n]
            share = (one - outside_x) * (one - outside_y)
            share_x[line + n], share_y[line + n] = right, below
            place[line + n] = index(row - np.int32(1)) * stride_y + index(column - np.int32(1)) * stride_x
            weight[line + n] = whole * share
            span.outside[n] += whole * (one - share)


# --- arguments -------------------------------------------------------------------------------------------------------


class TransformArguments(NamedTuple):
    """A transform for compiled functions: ``arguments`` point to ``tensor``."""

    arguments: Any  # address, an array of its type, whether it is a field, and the filter's number
    tensor: Tensor
    points: float  # about how many a pixel has, for estimates of work


def transform_arguments(transform: Tensor, filter: Filter) -> TransformArguments:
    """A matrix in float64, or a field in float32 or float64, contiguous."""
    is_field = transform.ndim == 4
    if not is_field or transform.dtype not in (torch.float32, torch.float64):
        transform = transform.double() if not is_field else transform.float()
    transform = transform.contiguous()
    arguments = transform.data_ptr(), LIKE[transform.dtype], is_field, FILTERS.index(filter)
    return TransformArguments(arguments, transform, _points_per_pixel(transform, filter))


def _points_per_pixel(transform: Tensor, filter: Filter) -> float:
    if filter not in ("area", "triangle"):
        return 1.0
    if transform.ndim == 4:
        return 4.0
    depth = transform[:, 2, 2].abs().clamp(min=1e-12)
    stretch = (transform[:, :2, :2].square().sum(1).sqrt() / depth[:, None]).clamp(1, MAX_POINTS)
    return float(stretch.prod(1).mean()) * (4 if filter == "triangle" else 1)


@jit
def transform_at(arguments: Any) -> Any:
    """The numbers of a transform, whether it is a field, and the filter."""
    address, like, is_field, filter = arguments
    return array_at(address, 0, like), is_field, filter


def like_place(height: int, width: int, stride_y: int, stride_x: int) -> Array:
    """An array of the type of places in a plane of these strides."""
    largest = (height - 1) * stride_y + (width - 1) * stride_x
    return LIKE[torch.int32 if largest < 2**31 else torch.int64]
