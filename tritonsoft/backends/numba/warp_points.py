"""The points of a warp: where each output pixel of a span of a row looks, and how much each look weighs.

`tritonsoft.geometry`, "Warps", says what is computed here. Centres are float64; what lies around one is relative to the
source pixel that holds it, and so small that the compute dtype holds it well. A span of pixels takes one point each at
a time, so that the arithmetic is vectorised; what differs between pixels lies in arrays.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, array_at
from tritonsoft.backends.numba.threads import jit, unsigned
from tritonsoft.geometry import FILTERS, MAX_POINTS, MIN_STEP, MIN_WINDOW, STRETCH_TOLERANCE, Filter

SPAN = 64  # pixels: with up to 32 points of each, what is known of the points stays in the first cache
INSIDE, ENTIRELY_OUTSIDE, ANYWHERE = range(3)  # of the image: where all lies that pixels look at
_AREA, _TRIANGLE, _BILINEAR, _NEAREST = range(4)
_MAX_DISTANCE = 2.0**23  # pixels
FAR = -(2**24)  # pixels: where a centre is put that lies outside of every image, or nowhere


class Span(NamedTuple):
    """Pixels of an output row: scratch memory, in few arrays, as each costs the compiler much."""

    pixels: Array  # of each pixel the numbers below, `SPAN` after `SPAN`
    integers: Array  # int32
    points: Array  # of each point and pixel the numbers below, for all points of a row
    place: Array  # of a point's upper left pixel among those of the source


X, Y = (unsigned(place * SPAN) for place in range(2))  # the centre, relative to the source pixel that holds it
RIGHT_X, RIGHT_Y, DOWN_X, DOWN_Y, BEND_RIGHT, BEND_DOWN = (unsigned(place * SPAN) for place in range(2, 8))
INVERSE_WINDOW_X, INVERSE_WINDOW_Y, EXTENT_X, EXTENT_Y = (unsigned(place * SPAN) for place in range(8, 12))
PLATEAU_X, PLATEAU_Y = (unsigned(place * SPAN) for place in range(12, 14))  # of the triangle filter's trapezoid
OUTSIDE = unsigned(14 * SPAN)  # the weight of what lies outside of the image
BASE_X, BASE_Y, NUMBER_X, NUMBER_Y = (unsigned(place * SPAN) for place in range(4))  # that pixel; how many points
_POINTS = 2 * MAX_POINTS * SPAN
# The share of the pixels to the right and below, and the weight of the point, which the weights along the axes give.
SHARE_X, SHARE_Y, WEIGHT, WEIGHT_X, WEIGHT_Y = (unsigned(place * _POINTS) for place in range(5))


@jit
def new_span(like: Array, like_place: Array) -> Any:
    """Arrays of the compute dtype, and of that of places in the source."""
    return Span(
        np.zeros(15 * SPAN, like.dtype),
        np.zeros(4 * SPAN, np.int32),
        np.zeros(5 * _POINTS, like.dtype),
        np.zeros(_POINTS, like_place.dtype),
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
    span.pixels[RIGHT_X + n], span.pixels[RIGHT_Y + n] = right[0], right[1]
    span.pixels[DOWN_X + n], span.pixels[DOWN_Y + n] = down[0], down[1]
    span.pixels[BEND_RIGHT + n], span.pixels[BEND_DOWN + n] = bends
    span.integers[NUMBER_X + n], span.integers[NUMBER_Y + n] = number_x, number_y
    right, down = (right[0] / number_x, right[1] / number_x), (down[0] / number_y, down[1] / number_y)
    span.pixels[EXTENT_X + n] = _within(np.sqrt(right[0] * right[0] + down[0] * down[0]))
    span.pixels[EXTENT_Y + n] = _within(np.sqrt(right[1] * right[1] + down[1] * down[1]))
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
    span.pixels[INVERSE_WINDOW_X + n], span.pixels[INVERSE_WINDOW_Y + n] = 1 / window_x, 1 / window_y
    span.pixels[PLATEAU_X + n] = np.sqrt(max(1 - 1 / max(stretch_x * stretch_x, 1.0), 0.0))
    span.pixels[PLATEAU_Y + n] = np.sqrt(max(1 - 1 / max(stretch_y * stretch_y, 1.0), 0.0))


@jit
def _set_centre(span: Span, n: int, x: float, y: float) -> Any:
    """Whether it lies anywhere that an image may reach to."""
    is_near = (abs(x) < _MAX_DISTANCE) & (abs(y) < _MAX_DISTANCE)
    x, y = (x, y) if is_near else (float(FAR), float(FAR))
    base_x, base_y = np.floor(x), np.floor(y)
    span.integers[BASE_X + n], span.integers[BASE_Y + n] = np.int32(base_x), np.int32(base_y)
    span.pixels[X + n], span.pixels[Y + n] = x - base_x, y - base_y
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
    for n in range(unsigned(SPAN)):
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
    for n in range(unsigned(count)):
        place = column + np.int64(n)
        here = 2 * ((sample * out_height + row) * out_width + place)
        if _set_centre(span, n, np.float64(field[here]), np.float64(field[here + 1])):
            right = _step_of_field(field, here, place, out_width, 2)
            down = _step_of_field(field, here, row, out_height, 2 * out_width)
            _set_steps(span, n, right, down, (0.0, 0.0), filter)
        else:
            _set_steps(span, n, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), filter)


@jit
def _where_they_look(span: Span, count: int, size: Any, filter: int) -> Any:
    """`INSIDE` or `ENTIRELY_OUTSIDE`, where all that these pixels look at certainly lies there, else `ANYWHERE`."""
    pixels, base, (height, width) = span.pixels, span.integers, size
    dtype = pixels.dtype.type
    widest, margin = dtype(1.0 if filter == _TRIANGLE else 0.5), dtype(2)
    right, bottom = dtype(width), dtype(height)
    is_inside, is_outside = True, True
    for n in range(unsigned(count)):
        reach_x = widest * (abs(pixels[RIGHT_X + n]) + abs(pixels[DOWN_X + n])) + margin
        reach_y = widest * (abs(pixels[RIGHT_Y + n]) + abs(pixels[DOWN_Y + n])) + margin
        x, y = dtype(base[BASE_X + n]), dtype(base[BASE_Y + n])
        has_bend = (pixels[BEND_RIGHT + n] != 0) | (pixels[BEND_DOWN + n] != 0)
        inside = (x > reach_x) & (x + reach_x < right) & (y > reach_y) & (y + reach_y < bottom)
        outside = (x < -reach_x) | (x > right + reach_x) | (y < -reach_y) | (y > bottom + reach_y)
        is_inside &= inside & (not has_bend)
        is_outside &= outside & (not has_bend)
    return INSIDE if is_inside else ENTIRELY_OUTSIDE if is_outside else ANYWHERE


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
    """The centres of neighbours in an output row; returns where all lies that they look at."""
    if is_field:
        _locate_by_field(span, transform, sample, row, column, count, out_size, filter)
    else:
        _locate_by_matrix(span, transform, sample, row, column, count, filter, affine)
    where = _where_they_look(span, count, size, filter)
    for n in range(unsigned(count)):
        span.pixels[OUTSIDE + n] = 1 if where == ENTIRELY_OUTSIDE else 0
    return where


# --- points ----------------------------------------------------------------------------------------------------------


@jit
def run_of_pixels(span: Span, first: int, count: int) -> Any:
    """The end of the pixels from ``first`` on that have as many points as it has."""
    end = first + unsigned(1)
    while (
        end < count
        and span.integers[NUMBER_X + end] == span.integers[NUMBER_X + first]
        and span.integers[NUMBER_Y + end] == span.integers[NUMBER_Y + first]
    ):
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
def _weigh_axis(span: Span, axis: int, first: int, end: int, begin: int, step: int, size: int, filter: int) -> Any:
    """The weights of the points along an axis, x or y; returns how many there are.

    The n-th pixel is the ``begin + n * step``-th of the output there.
    """
    pixels, points = span.pixels, span.points
    target = WEIGHT_Y if axis else WEIGHT_X
    plateau = PLATEAU_Y if axis else PLATEAU_X
    number = np.int64(span.integers[(NUMBER_Y if axis else NUMBER_X) + first])
    steps = num_steps(number, filter)
    if steps == number:
        weight = pixels.dtype.type(1.0 / number)
        for k in range(unsigned(steps)):
            for n in range(first, end):
                points[target + k * unsigned(SPAN) + n] = weight
        return steps
    for n in range(first, end):
        total, place = 0.0, begin + np.int64(n) * step
        for k in range(unsigned(steps)):
            weight = _trapezoid(_offset(np.int64(k), number, filter), pixels[plateau + n], place, size)
            points[target + k * unsigned(SPAN) + n] = weight
            total += weight
        for k in range(unsigned(steps)):
            points[target + k * unsigned(SPAN) + n] /= total
    return steps


@jit
def weigh_points(span: Span, first: int, end: int, row: int, column: int, out_size: Any, filter: int) -> Any:
    """The weights of a run of pixels along both axes; returns how many points there are along each, y first."""
    steps_y = _weigh_axis(span, 1, first, end, row, 0, out_size[0], filter)
    return steps_y, _weigh_axis(span, 0, first, end, column, 1, out_size[1], filter)


@jit
def _share_outside(low: Any, high: Any, extent: Any) -> Any:
    """Of a cell whose centre is so far inside of the two ends of the image."""
    zero, one, half = extent * 0, extent * 0 + 1, extent / 2
    return min((max(half - low, zero) + max(half - high, zero)) / extent, one)


@jit
def _place_inside(span: Span, first: int, end: int, line: int, line_y: int, offsets: Any, strides: Any) -> None:
    """One point of each pixel of a run whose points all lie in the image: the loop that takes the time."""
    pixels, base, points, place = span
    dtype, index = pixels.dtype.type, place.dtype.type
    zero, half, one = dtype(0), dtype(0.5), dtype(1)
    (offset_y, offset_x), (stride_y, stride_x) = offsets, strides
    for n in range(first, end):
        x = pixels[X + n] + (offset_x * pixels[RIGHT_X + n] + offset_y * pixels[DOWN_X + n])
        y = pixels[Y + n] + (offset_x * pixels[RIGHT_Y + n] + offset_y * pixels[DOWN_Y + n])
        edge_x, edge_y = np.floor(x + half), np.floor(y + half)
        right = min(max((x - edge_x) * pixels[INVERSE_WINDOW_X + n] + half, zero), one)
        below = min(max((y - edge_y) * pixels[INVERSE_WINDOW_Y + n] + half, zero), one)
        column, row = base[BASE_X + n] + np.int32(edge_x), base[BASE_Y + n] + np.int32(edge_y)
        place[line + n] = index(row - 1) * stride_y + index(column - 1) * stride_x
        points[SHARE_X + line + n] = right
        points[SHARE_Y + line + n] = below
        points[WEIGHT + line + n] = points[WEIGHT_Y + line_y + n] * points[WEIGHT_X + line + n]


@jit
def _place_anywhere(
    span: Span,
    first: int,
    end: int,
    line: int,
    line_y: int,
    offsets: Any,
    strides: Any,
    size: Any,
    filter: int,
) -> None:
    """`_place_inside` wherever points lie, behind the camera too."""
    pixels, base, points, place = span
    dtype, index = pixels.dtype.type, place.dtype.type
    zero, half, one, far = dtype(0), dtype(0.5), dtype(1), dtype(_MAX_DISTANCE / 2)
    (offset_y, offset_x), (stride_y, stride_x) = offsets, strides
    right_end, bottom_end, is_nearest = dtype(size[1]), dtype(size[0]), filter == _NEAREST
    shift = one if is_nearest else half
    for n in range(first, end):
        depth = one + (offset_x * pixels[BEND_RIGHT + n] + offset_y * pixels[BEND_DOWN + n])
        x = pixels[X + n] + (offset_x * pixels[RIGHT_X + n] + offset_y * pixels[DOWN_X + n]) / depth
        y = pixels[Y + n] + (offset_x * pixels[RIGHT_Y + n] + offset_y * pixels[DOWN_Y + n]) / depth
        is_known = (depth > zero) & (abs(x) < far) & (abs(y) < far)
        x, y = x if is_known else -far, y if is_known else -far
        base_x, base_y = dtype(base[BASE_X + n]), dtype(base[BASE_Y + n])
        low_x, low_y = x + base_x, y + base_y
        high_x, high_y = (right_end - base_x) - x, (bottom_end - base_y) - y
        edge_x, edge_y = np.floor(x + shift), np.floor(y + shift)
        right = min(max((x - edge_x) * pixels[INVERSE_WINDOW_X + n] + half, zero), one)
        below = min(max((y - edge_y) * pixels[INVERSE_WINDOW_Y + n] + half, zero), one)
        inside_x = one - _share_outside(low_x, high_x, pixels[EXTENT_X + n])
        inside_y = one - _share_outside(low_y, high_y, pixels[EXTENT_Y + n])
        if is_nearest:
            right, below = zero, zero
            inside_x = one if (low_x >= zero) & (high_x > zero) else zero
            inside_y = one if (low_y >= zero) & (high_y > zero) else zero
        # The edges are whole numbers of at most 2^25, which the compute dtype holds, or far outside.
        column, row = edge_x + base_x, edge_y + base_y
        right, column = (one, right_end - one) if column >= right_end else (right, column)
        right, column = (zero, one) if column <= zero else (right, column)
        below, row = (one, bottom_end - one) if row >= bottom_end else (below, row)
        below, row = (zero, one) if row <= zero else (below, row)
        whole = points[WEIGHT_Y + line_y + n] * points[WEIGHT_X + line + n]
        inside = inside_x * inside_y
        place[line + n] = index(np.int32(row) - 1) * stride_y + index(np.int32(column) - 1) * stride_x
        points[SHARE_X + line + n] = right
        points[SHARE_Y + line + n] = below
        points[WEIGHT + line + n] = whole * inside
        pixels[OUTSIDE + n] += whole * (one - inside)


@jit
def place_points(
    span: Span, first: int, end: int, step_y: int, size: Any, strides: Any, where: int, filter: int
) -> None:
    """The points of a run of pixels in the ``step_y``-th row of each: places in a source of these strides, y first."""
    dtype, index = span.pixels.dtype.type, span.place.dtype.type
    number_x, number_y = np.int64(span.integers[NUMBER_X + first]), np.int64(span.integers[NUMBER_Y + first])
    places = index(strides[0]), index(strides[1])
    offset_y, line_y = dtype(_offset(step_y, number_y, filter)), unsigned(step_y * SPAN)
    for k in range(num_steps(number_x, filter)):
        offsets, line = (offset_y, dtype(_offset(k, number_x, filter))), unsigned(k * SPAN)
        if where == INSIDE and filter != _NEAREST:
            _place_inside(span, first, end, line, line_y, offsets, places)
        else:
            _place_anywhere(span, first, end, line, line_y, offsets, places, size, filter)


# --- arguments -------------------------------------------------------------------------------------------------------


class TransformArguments(NamedTuple):
    """A transform for compiled functions: ``arguments`` point to ``tensor``."""

    arguments: Any  # address, an array of its type, whether it is a field, and the filter's number
    tensor: Tensor
    points: float  # about how many a pixel has, for estimates of work


def transform_arguments(transform: Tensor, filter: Filter) -> TransformArguments:
    """In float64 and contiguous, so that there is one compiled function for all transforms."""
    transform = transform.double().contiguous()
    arguments = transform.data_ptr(), LIKE[torch.float64], transform.ndim == 4, FILTERS.index(filter)
    return TransformArguments(arguments, transform, _points_per_pixel(transform, filter))


def _points_per_pixel(transform: Tensor, filter: Filter) -> float:
    """About how many, of matrices from their steps at the origin."""
    if filter not in ("area", "triangle"):
        return 1.0
    if transform.ndim == 4:
        return 4.0
    total = 0.0
    for row0, row1, row2 in transform.tolist():
        depth = abs(row2[2]) or 1.0
        stretches = [math.hypot(row0[axis], row1[axis]) / depth for axis in range(2)]
        total += math.prod(min(max(stretch, 1.0), MAX_POINTS) if stretch > 1 else 1.0 for stretch in stretches)
    return total / max(len(transform), 1) * (4 if filter == "triangle" else 1)


@jit
def transform_at(arguments: Any) -> Any:
    """The numbers of a transform, whether it is a field, and the filter."""
    address, like, is_field, filter = arguments
    return array_at(address, 0, like), is_field, filter


def like_place(height: int, width: int, stride_y: int, stride_x: int) -> Array:
    """An array of the type of places in a plane of these strides."""
    largest = (height - 1) * stride_y + (width - 1) * stride_x
    return LIKE[torch.int32 if largest < 2**31 else torch.int64]
