"""Warps: launchers, and the loops over images, which are read with the channels of a pixel side by side."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.area_cross_entropy import cross_entropy_gradient_of_rows, cross_entropy_of_rows
from tritonsoft.backends.numba.elements import (
    LIKE,
    Array,
    array_at,
    borrowed,
    compute_dtype,
    downcast,
    fence,
    streaming,
    upcast,
    write_line,
)
from tritonsoft.backends.numba.label_rows import TILE
from tritonsoft.backends.numba.labels import dense_tile, write_soft, write_top
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import all_of, broadcast, load, multiply_add, store
from tritonsoft.backends.numba.warp_points import (
    BASE_X,
    BASE_Y,
    BEND_DOWN,
    BEND_RIGHT,
    DOWN_X,
    DOWN_Y,
    ENTIRELY_OUTSIDE,
    FAR,
    OUTSIDE,
    RIGHT_X,
    RIGHT_Y,
    SHARE_X,
    SHARE_Y,
    SPAN,
    WEIGHT,
    Span,
    like_place,
    locate,
    new_span,
    place_points,
    prepare_sample,
    run_of_pixels,
    transform_arguments,
    transform_at,
    weigh_points,
)
from tritonsoft.backends.numba.warp_rows import warped_rows
from tritonsoft.geometry import Filter, Reduction

_CHANNELS = 4  # side by side in one vector
_FARTHEST = 2.0**30  # pixels: farther than any image reaches
_SIDE = 64  # output pixels of a block, along each axis: what it looks at stays in the second cache


# --- image -----------------------------------------------------------------------------------------------------------


@jit
def _extent_of_block(
    span: Span,
    numbers: Array,
    is_field: bool,
    affine: bool,
    sample: int,
    rows: Any,
    columns: Any,
    size: Any,
    out_size: Any,
    filter: int,
) -> Any:
    """Rows and columns of the source, half open, that hold all that a block of output pixels reads; two at least."""
    height, width = size
    pixels, integers = span.pixels, span.integers
    low_x, high_x, low_y, high_y = width, 0, height, 0
    # An affine map takes a rectangle to a parallelogram: its first and last row will do.
    step = max(rows[1] - rows[0] - 1, 1) if affine else 1
    for row in range(rows[0], rows[1], step):
        count = columns[1] - columns[0]
        locate(span, numbers, is_field, affine, sample, row, columns[0], unsigned(count), size, out_size, filter)
        stride = max(count - 1, 1) if affine else 1
        for m in range(0, count, stride):
            n = unsigned(m)
            # A point is at most one output pixel away from the centre along each axis.
            least_depth = 1 - (abs(pixels[BEND_RIGHT + n]) + abs(pixels[BEND_DOWN + n]))
            # Of corners that lie out of every image's reach it is not known on which side: others may lie between them.
            is_far = affine and integers[BASE_X + n] == FAR
            if is_far or not least_depth > 0.25:
                return (0, height), (0, width)
            reach_x = np.int64(min((abs(pixels[RIGHT_X + n]) + abs(pixels[DOWN_X + n])) / least_depth, _FARTHEST)) + 3
            reach_y = np.int64(min((abs(pixels[RIGHT_Y + n]) + abs(pixels[DOWN_Y + n])) / least_depth, _FARTHEST)) + 3
            low_x, high_x = min(low_x, integers[BASE_X + n] - reach_x), max(high_x, integers[BASE_X + n] + reach_x)
            low_y, high_y = min(low_y, integers[BASE_Y + n] - reach_y), max(high_y, integers[BASE_Y + n] + reach_y)
    # What lies outside reads the pixels at the edge.
    low_x, low_y = min(max(low_x, 0), max(width - 2, 0)), min(max(low_y, 0), max(height - 2, 0))
    high_x, high_y = max(min(high_x, width), low_x + 2), max(min(high_y, height), low_y + 2)
    return (low_y, min(high_y, height)), (low_x, min(high_x, width))


@jit
def _load_pixels(
    pixels: Array, image: Array, base: int, strides: Any, channel: int, num_channels: int, rows: Any, columns: Any
) -> None:
    """Copies up to four channels of a rectangle, the channels of a pixel side by side."""
    count, side = unsigned(columns[1] - columns[0]), unsigned(_CHANNELS)
    stride_channel, stride_x = unsigned(strides[1]), unsigned(strides[3])
    for row in range(rows[0], rows[1]):
        start = base + unsigned(row * strides[2] + columns[0] * strides[3]) + unsigned(channel) * stride_channel
        target = unsigned(row - rows[0]) * count * side
        if num_channels == 3 and stride_x == unsigned(1):
            second, third = start + stride_channel, start + unsigned(2) * stride_channel
            for n in range(count):
                pixels[target + side * n] = upcast(image[start + n])
                pixels[target + side * n + unsigned(1)] = upcast(image[second + n])
                pixels[target + side * n + unsigned(2)] = upcast(image[third + n])
                pixels[target + side * n + unsigned(3)] = 0
            continue
        for n in range(count):
            for c in range(side):
                value = pixels.dtype.type(0)
                if c < unsigned(num_channels):
                    value = pixels.dtype.type(upcast(image[start + n * stride_x + c * stride_channel]))
                pixels[target + side * n + c] = value


@jit
def _sum_finite(pixels: Array, corners: Any, weights: Any, sums: Array, place: int) -> None:
    """Adds a point, pixels of weight 0 left out: these may be infinite."""
    for corner, weight in zip(corners, weights):  # noqa: B905 - Numba knows no `strict`
        if weight > 0:
            for channel in range(unsigned(_CHANNELS)):
                sums[place + channel] += weight * pixels[corner + channel]


@jit
def _corners_of(span: Span, point: int, origin: int, neighbours: Any) -> Any:
    """Where the four pixels of a point lie among pixels of four channels, and their weights."""
    side, (next_x, next_y) = unsigned(_CHANNELS), neighbours
    corner = side * (unsigned(span.place[point]) - origin)
    mass = span.points[WEIGHT + point]
    below = mass * span.points[SHARE_Y + point]
    here = mass - below
    right, beyond = here * span.points[SHARE_X + point], below * span.points[SHARE_X + point]
    corners = corner, corner + next_x, corner + next_y, corner + next_x + next_y
    return corners, (here - right, right, below - beyond, beyond)


@jit
def _sum_points(
    sums: Array, pixels: Array, origin: int, neighbours: Any, span: Span, first: int, end: int, num_points: int
) -> None:
    """Adds a row of points of each pixel of a run."""
    zero = sums.dtype.type(0)
    for n in range(first, end):
        total = broadcast(zero, _CHANNELS)
        for k in range(num_points):
            corners, weights = _corners_of(span, n + k * unsigned(SPAN), origin, neighbours)
            total = multiply_add(load(pixels, corners[0], _CHANNELS), broadcast(weights[0], _CHANNELS), total)
            total = multiply_add(load(pixels, corners[1], _CHANNELS), broadcast(weights[1], _CHANNELS), total)
            total = multiply_add(load(pixels, corners[2], _CHANNELS), broadcast(weights[2], _CHANNELS), total)
            total = multiply_add(load(pixels, corners[3], _CHANNELS), broadcast(weights[3], _CHANNELS), total)
        place = n * unsigned(_CHANNELS)
        if all_of(total >= total):
            store(sums, place, load(sums, place, _CHANNELS) + total)
        else:  # infinity times 0, or a pixel that is not a number
            for k in range(num_points):
                corners, weights = _corners_of(span, n + k * unsigned(SPAN), origin, neighbours)
                _sum_finite(pixels, corners, weights, sums, place)


@jit
def _write_span(
    out: Array,
    strides: Any,
    sample: int,
    channel: int,
    num_channels: int,
    row: int,
    column: int,
    sums: Array,
    pixels: Array,  # of the span
    count: int,
    unit: Any,
    fill: Any,
    finished: Array,
    line_length: int,
    to_boundary: int,
) -> None:
    side, stride_x = unsigned(_CHANNELS), unsigned(strides[3])
    for c in range(unsigned(num_channels)):
        for n in range(count):
            value = sums[side * n + c] / unit
            outside = pixels[OUTSIDE + n]
            if outside > 0:
                value += outside * fill
            finished[n] = downcast(value, out)
        start = unsigned(sample * strides[0] + channel * strides[1] + row * strides[2] + column * strides[3])
        start += c * unsigned(strides[1])
        if stride_x == unsigned(1):
            write_line(out, start, finished, count, line_length, to_boundary)
        else:
            for n in range(count):
                out[start + n * stride_x] = finished[n]


@jit
def _warp_blocks_with(
    out_address: int,
    like_out: Array,
    out_strides: Any,
    image_address: int,
    like_image: Array,
    strides: Any,
    transform: Any,
    shape: Any,
    like: Array,
    span: Span,
    unit: float,
    fill: float,
    line_length: int,
    to_boundary: int,
    first_block: int,
    end_block: int,
) -> None:
    out, image = array_at(out_address, 0, like_out), array_at(image_address, 0, like_image)
    numbers, is_field, filter = transform_at(transform)
    channels, in_height, in_width, out_height, out_width = shape
    size, out_size, side = (in_height, in_width), (out_height, out_width), unsigned(_CHANNELS)
    span, sums = borrowed(span), np.zeros(SPAN * _CHANNELS, like.dtype)
    finished, pixels = np.empty(SPAN, out.dtype), np.empty(0, like.dtype)
    blocks_y, blocks_x = (out_height + _SIDE - 1) // _SIDE, (out_width + _SIDE - 1) // _SIDE
    current_sample, affine = -1, False
    for block in range(first_block, end_block):
        sample = block // (blocks_y * blocks_x)
        row, column = block // blocks_x % blocks_y * _SIDE, block % blocks_x * _SIDE
        out_rows, out_columns = (row, min(row + _SIDE, out_height)), (column, min(column + _SIDE, out_width))
        count = unsigned(out_columns[1] - column)
        if sample != current_sample:
            current_sample, affine = sample, prepare_sample(span, numbers, is_field, sample, filter)
        rows, columns = _extent_of_block(
            span, numbers, is_field, affine, sample, out_rows, out_columns, size, out_size, filter
        )
        pitch = columns[1] - columns[0]
        needed = (rows[1] - rows[0]) * pitch * _CHANNELS
        if needed > pixels.size:
            pixels = np.empty(needed + needed // 4, like.dtype)
        neighbours = side if in_width > 1 else unsigned(0), side * unsigned(pitch) if in_height > 1 else unsigned(0)
        origin = unsigned(rows[0] * pitch + columns[0])
        for channel in range(0, channels, _CHANNELS):
            num_channels = min(_CHANNELS, channels - channel)
            _load_pixels(pixels, image, unsigned(sample * strides[0]), strides, channel, num_channels, rows, columns)
            for i in range(out_rows[0], out_rows[1]):
                where = locate(span, numbers, is_field, affine, sample, i, column, count, size, out_size, filter)
                sums[:] = 0
                first = count if where == ENTIRELY_OUTSIDE else unsigned(0)
                while first < count:
                    end = run_of_pixels(span, first, count)
                    steps_y, steps_x = weigh_points(span, first, end, i, column, out_size, filter)
                    for step_y in range(steps_y):
                        place_points(span, first, end, step_y, size, (pitch, 1), where, filter)
                        _sum_points(sums, pixels, origin, neighbours, span, first, end, unsigned(steps_x))
                    first = end
                _write_span(
                    out,
                    out_strides,
                    sample,
                    channel,
                    num_channels,
                    i,
                    column,
                    sums,
                    span.pixels,
                    count,
                    like.dtype.type(unit),
                    like.dtype.type(fill),
                    finished,
                    unsigned(line_length),
                    unsigned(to_boundary),
                )
    fence()


@jit
def _warp_blocks(
    out: int,
    like_out: Array,
    out_strides: Any,
    image: int,
    like_image: Array,
    strides: Any,
    transform: Any,
    shape: Any,
    like: Array,
    like_places: Array,
    unit: float,
    fill: float,
    line_length: int,
    to_boundary: int,
    first: int,
    end: int,
) -> None:
    """Blocks of `_SIDE` rows and columns of all samples."""
    span = new_span(like, like_places)  # held here, and borrowed there
    _warp_blocks_with(
        out,
        like_out,
        out_strides,
        image,
        like_image,
        strides,
        transform,
        shape,
        like,
        span,
        unit,
        fill,
        line_length,
        to_boundary,
        first,
        end,
    )


def warp(out: Tensor, image: Tensor, transform: Tensor, filter: Filter, fill: float) -> None:
    """Writes `tritonsoft.backends.reference_warping.warp` of an image ``(B, K, H, W)`` to ``out (B, K, h, w)``."""
    batch, channels, *size = out.shape
    dtype, of_transform = compute_dtype(out, image), transform_arguments(transform, filter)
    arguments = (
        out.data_ptr(),
        LIKE[out.dtype],
        out.stride(),
        image.data_ptr(),
        LIKE[image.dtype],
        image.stride(),
        of_transform.arguments,
        (channels, *image.shape[2:], *size),
        LIKE[dtype],
        like_place(image.shape[2], image.shape[3], image.shape[3], 1),
        255.0 if image.dtype == torch.uint8 and out.dtype != torch.uint8 else 1.0,
        float(fill),
        *streaming(out),
    )
    num_blocks = batch * -(-size[0] // _SIDE) * -(-size[1] // _SIDE)
    work = 4.0 * of_transform.points * out.numel() + out.numel()
    pool.run(lambda first, end: _warp_blocks(*arguments, first, end), num_blocks, work)


# --- its gradient ----------------------------------------------------------------------------------------------------


@jit
def _scatter_plane(
    sums: Array,
    numbers: Array,
    is_field: bool,
    filter: int,
    span: Span,
    grad: Array,
    base: int,
    strides: Any,
    sample: int,
    size: Any,
    out_size: Any,
) -> None:
    """Hands one plane's gradient back, output pixel after output pixel: always in the same order."""
    height, width = size
    next_x, next_y = unsigned(1 if width > 1 else 0), unsigned(width if height > 1 else 0)
    affine = prepare_sample(span, numbers, is_field, sample, filter)
    for i in range(out_size[0]):
        for column in range(0, out_size[1], SPAN):
            count = unsigned(min(SPAN, out_size[1] - column))
            where = locate(span, numbers, is_field, affine, sample, i, column, count, size, out_size, filter)
            first = count if where == ENTIRELY_OUTSIDE else unsigned(0)
            while first < count:
                end = run_of_pixels(span, first, count)
                steps_y, steps_x = weigh_points(span, first, end, i, column, out_size, filter)
                for step_y in range(steps_y):
                    place_points(span, first, end, step_y, size, (width, 1), where, filter)
                    for n in range(first, end):
                        element = base + unsigned(i * strides[2] + (column + np.int64(n)) * strides[3])
                        value = sums.dtype.type(upcast(grad[element]))
                        for k in range(unsigned(steps_x)):
                            point = n + k * unsigned(SPAN)
                            corner = unsigned(span.place[point])
                            amount = value * span.points[WEIGHT + point]
                            below = amount * span.points[SHARE_Y + point]
                            here = amount - below
                            right, beyond = here * span.points[SHARE_X + point], below * span.points[SHARE_X + point]
                            sums[corner] += here - right
                            sums[corner + next_x] += right
                            sums[corner + next_y] += below - beyond
                            sums[corner + next_x + next_y] += beyond
                first = end


@jit
def _adjoint_planes(
    out_address: int,
    like_out: Array,
    out_strides: Any,
    grad_address: int,
    like_grad: Array,
    strides: Any,
    transform: Any,
    shape: Any,
    like: Array,
    like_places: Array,
    first_plane: int,
    end_plane: int,
) -> None:
    out, grad = array_at(out_address, 0, like_out), array_at(grad_address, 0, like_grad)
    numbers, is_field, filter = transform_at(transform)
    channels, in_height, in_width, out_height, out_width = shape
    span, sums = new_span(like, like_places), np.empty(in_height * in_width, like.dtype)
    for plane in range(first_plane, end_plane):
        sample, channel = plane // channels, plane % channels
        sums[:] = 0
        base = unsigned(sample * strides[0] + channel * strides[1])
        size, out_size = (in_height, in_width), (out_height, out_width)
        _scatter_plane(sums, numbers, is_field, filter, span, grad, base, strides, sample, size, out_size)
        for y in range(in_height):
            start = unsigned(sample * out_strides[0] + channel * out_strides[1] + y * out_strides[2])
            for x in range(unsigned(in_width)):
                value = sums[unsigned(y * in_width) + x]
                out[start + x * unsigned(out_strides[3])] = downcast(value, out)


def warp_adjoint(out: Tensor, grad: Tensor, transform: Tensor, filter: Filter) -> None:
    """Writes `reference_warping.warp_adjoint` of a gradient ``(B, K, h, w)`` to ``out (B, K, H, W)``."""
    batch, channels, *size = out.shape
    dtype, of_transform = compute_dtype(out, grad), transform_arguments(transform, filter)
    arguments = (
        out.data_ptr(),
        LIKE[out.dtype],
        out.stride(),
        grad.data_ptr(),
        LIKE[grad.dtype],
        grad.stride(),
        of_transform.arguments,
        (channels, *size, *grad.shape[2:]),
        LIKE[dtype],
        like_place(size[0], size[1], size[1], 1),
    )
    work = 8.0 * of_transform.points * grad.numel() + out.numel()
    pool.run(lambda first, end: _adjoint_planes(*arguments, first, end), batch * channels, work)


# --- label maps ------------------------------------------------------------------------------------------------------


def soft_warp(
    out: Tensor, labels: Tensor, transform: Tensor, ignore_index: int, filter: Filter, validate: bool
) -> bool:
    """Writes `reference_warping.soft_warp` of a label map ``(B, H, W)`` to ``out (B, C, h, w)``."""
    _, num_classes, *size = out.shape
    tile = dense_tile(out)
    rows = warped_rows(labels, transform, size, num_classes, ignore_index, filter, compute_dtype(out), tile)
    return write_soft(out, rows, validate)


def soft_warp_top(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    transform: Tensor,
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    validate: bool,
) -> bool:
    """Writes `reference.top_k` of that soft label: ``(B, k, h, w)`` twice, and the rest ``(B, h, w)``."""
    rows = warped_rows(labels, transform, index.shape[2:], num_classes, ignore_index, filter, torch.float32, TILE)
    return write_top(index, mass, rest, rows, num_classes, validate)


def warp_pair(
    out: Tensor,
    out_soft: Tensor,
    image: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int,
    filter: Filter,
    fill: float,
    validate: bool,
) -> bool:
    """`warp` and `soft_warp` with the same transform, one after the other."""
    warp(out, image, transform, filter, fill)
    return soft_warp(out_soft, labels, transform, ignore_index, filter, validate)


def warp_cross_entropy(
    value: Tensor,
    total: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """`cross_entropy` with the soft label of a label map under a transform, a row of it at a time."""
    _, num_classes, *size = logits.shape
    rows = warped_rows(labels, transform, size, num_classes, ignore_index, filter, lse.dtype, TILE)
    return cross_entropy_of_rows(value, total, mass, lse, logits, rows, weight, label_smoothing, reduction, validate)


def warp_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    label_smoothing: float,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """Writes the gradient of the logits, given that of the pixels' losses, ``grad (B, h, w) / total``."""
    _, num_classes, *size = logits.shape
    rows = warped_rows(labels, transform, size, num_classes, ignore_index, filter, lse.dtype, TILE)
    cross_entropy_gradient_of_rows(out, grad, total, logits, rows, weight, label_smoothing, mass, lse)
