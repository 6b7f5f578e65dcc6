"""Rows of the soft label of a label map under a transform, for the epilogues of `label_rows`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, array_at, borrowed, fence
from tritonsoft.backends.numba.label_rows import LabelRows, Masses, apply_epilogue, label_rows_at, line_of_label
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.warp_points import (
    BASE_X,
    BASE_Y,
    DOWN_X,
    DOWN_Y,
    ENTIRELY_OUTSIDE,
    INSIDE,
    RIGHT_X,
    RIGHT_Y,
    SHARE_X,
    SHARE_Y,
    SPAN,
    TRIANGLE,
    WEIGHT,
    Span,
    X,
    Y,
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
from tritonsoft.geometry import Filter

_NUM_ARGUMENTS = 10
_BLOCK = 8  # pixels of a block of the label map, along each axis; a power of two

# --- blocks of one class ---------------------------------------------------------------------------------------------


@jit
def _find_uniform_blocks(
    is_uniform: Array, address: int, like: Array, strides: Any, shape: Any, first: int, end: int
) -> None:
    """Whether all labels of each block are equal, of rows of blocks counted through all samples."""
    labels, (height, width) = array_at(address, 0, like), shape
    blocks_y, blocks_x = (height + _BLOCK - 1) // _BLOCK, (width + _BLOCK - 1) // _BLOCK
    stride_y, stride_x = unsigned(strides[1]), unsigned(strides[2])
    for block_row in range(first, end):
        y = block_row % blocks_y * _BLOCK
        row_start = unsigned(block_row // blocks_y * strides[0] + y * strides[1])
        for block in range(blocks_x):
            start = row_start + unsigned(block * _BLOCK) * stride_x
            value, differ = labels[start], labels.dtype.type(0)
            for i in range(unsigned(min(_BLOCK, height - y))):
                for j in range(unsigned(min(_BLOCK, width - block * _BLOCK))):
                    differ |= labels.dtype.type(labels[start + i * stride_y + j * stride_x] ^ value)
            is_uniform[unsigned(block_row * blocks_x + block)] = differ == 0


@jit
def _sees_one_class(
    span: Span, n: int, labels: Array, base: int, strides: Any, is_uniform: Array, blocks: Any, widest: Any
) -> Any:
    """Whether all that a pixel looks at lies in blocks of one and the same class, for certain; inside of the image."""
    pixels, first_block, blocks_x = span.pixels, blocks[0], blocks[1]
    reach_x = widest * (abs(pixels[RIGHT_X + n]) + abs(pixels[DOWN_X + n])) + 0.5
    reach_y = widest * (abs(pixels[RIGHT_Y + n]) + abs(pixels[DOWN_Y + n])) + 0.5
    x, y = pixels[X + n], pixels[Y + n]
    left, right = int(np.floor(x - reach_x)), int(np.floor(x + reach_x))
    top, bottom = int(np.floor(y - reach_y)), int(np.floor(y + reach_y))
    if right - left > _BLOCK or bottom - top > _BLOCK:
        return False
    column, row = int(span.integers[BASE_X + n]), int(span.integers[BASE_Y + n])
    left, right, top, bottom = column + left, column + right, row + top, row + bottom
    above = first_block + top // _BLOCK * blocks_x
    below = first_block + bottom // _BLOCK * blocks_x
    one_each = is_uniform[unsigned(above + left // _BLOCK)] & is_uniform[unsigned(above + right // _BLOCK)]
    one_each &= is_uniform[unsigned(below + left // _BLOCK)] & is_uniform[unsigned(below + right // _BLOCK)]
    if not one_each:
        return False
    above, below = base + unsigned(top * strides[1]), base + unsigned(bottom * strides[1])
    left, right = unsigned(left * strides[2]), unsigned(right * strides[2])
    label = labels[above + left]
    return label == labels[above + right] and label == labels[below + left] and label == labels[below + right]


# --- rows ------------------------------------------------------------------------------------------------------------


@jit
def _add_points(
    masses: Masses,
    labels: Array,
    base: int,
    neighbours: Any,
    num_classes: Any,
    ignore_index: Any,
    span: Span,
    first: int,
    end: int,
    num_points: int,
    column: int,
) -> None:
    """Adds a row of points of each pixel of a run to the lines of their classes."""
    lines, present, pitch = masses
    next_x, next_y = neighbours
    place, points = span.place, span.points
    zero, one = lines.dtype.type(0), lines.dtype.type(1)
    next_xy = next_x + next_y
    for n in range(first, end):
        # Most points see one class, and most pixels the same at all points: their sum is kept until it changes.
        current, total = labels[base + unsigned(place[n])], zero
        for k in range(num_points):
            point = n + k * unsigned(SPAN)
            corner, mass = base + unsigned(place[point]), points[WEIGHT + point]
            label, right = labels[corner], labels[corner + next_x]
            below, beyond = labels[corner + next_y], labels[corner + next_xy]
            if label == right and label == below and label == beyond:
                if label != current:
                    line = unsigned(line_of_label(current, num_classes, ignore_index, pitch))
                    lines[line + column + n] += total
                    present[line] |= total > zero
                    current, total = label, zero
                total += mass
                continue
            of_below = mass * points[SHARE_Y + point]
            of_here = mass - of_below
            of_right = points[SHARE_X + point]
            corners = (
                (label, of_here * (one - of_right)),
                (right, of_here * of_right),
                (below, of_below * (one - of_right)),
                (beyond, of_below * of_right),
            )
            for label, share in corners:
                if label != current:
                    line = unsigned(line_of_label(current, num_classes, ignore_index, pitch))
                    lines[line + column + n] += total
                    present[line] |= total > zero
                    current, total = label, zero
                total += share
        line = unsigned(line_of_label(current, num_classes, ignore_index, pitch))
        lines[line + column + n] += total
        present[line] |= total > zero


@jit
def _warped_rows(
    epilogue: Any,
    labels: Array,
    label_strides: Any,
    transform: Any,
    shape: Any,
    ignore_index: int,
    like: Array,
    span: Span,
    is_uniform: Array,
    tile: int,
    first_row: int,
    end_row: int,
) -> bool:
    """Returns whether every label that has weight is a class or ``ignore_index``."""
    numbers, is_field, filter = transform
    num_classes, in_height, in_width, out_height, out_width = shape
    size, out_size = (in_height, in_width), (out_height, out_width)
    zero = like.dtype.type(0)
    pitch = np.uint32(tile + 16)  # not a power of two, or the lines of all classes would share their cache sets
    lines = np.zeros(unsigned(num_classes + 2) * unsigned(pitch), like.dtype)
    present = np.zeros(lines.size, np.uint8)
    # An atomic reference count would wait until all non-temporal stores have drained.
    epilogue, masses, span = (
        borrowed(epilogue),
        borrowed(Masses(lines, present, pitch)),
        borrowed(span),
    )
    # Where the source has one row or column, the other that a point reads weighs nothing, and is read there as well.
    neighbours = unsigned(label_strides[2] if in_width > 1 else 0), unsigned(label_strides[1] if in_height > 1 else 0)
    current_sample, affine, in_range = -1, False, True
    blocks_x, widest = (in_width + _BLOCK - 1) // _BLOCK, like.dtype.type(1.0 if filter == TRIANGLE else 0.5)
    is_known, one = np.zeros(SPAN, np.bool_), like.dtype.type(1)
    for row in range(first_row, end_row):
        sample, i = row // out_height, row % out_height
        if sample != current_sample:
            current_sample, affine = sample, prepare_sample(span, numbers, is_field, sample, filter)
        base = unsigned(sample * label_strides[0])
        blocks = sample * ((in_height + _BLOCK - 1) // _BLOCK) * blocks_x, blocks_x
        for tile_begin in range(0, out_width, tile):
            tile_end = min(tile_begin + tile, out_width)
            for begin in range(tile_begin, tile_end, SPAN):
                count = unsigned(min(SPAN, tile_end - begin))
                where = locate(span, numbers, is_field, affine, sample, i, begin, count, size, out_size, filter)
                column = unsigned(begin - tile_begin)
                for n in range(count):
                    is_known[n] = False
                    if where == INSIDE and is_uniform.size > 0:
                        is_known[n] = _sees_one_class(span, n, labels, base, label_strides, is_uniform, blocks, widest)
                first = count if where == ENTIRELY_OUTSIDE else unsigned(0)
                while first < count:
                    if is_known[first]:
                        corner = span.integers[BASE_Y + first] * label_strides[1]
                        corner += span.integers[BASE_X + first] * label_strides[2]
                        label = labels[base + unsigned(corner)]
                        line = unsigned(line_of_label(label, num_classes, ignore_index, pitch))
                        lines[line + column + first] = one
                        present[line] = 1
                        first += unsigned(1)
                        continue
                    end = run_of_pixels(span, first, count)
                    for n in range(first, end):
                        if is_known[n]:
                            end = n
                            break
                    steps_y, steps_x = weigh_points(span, first, end, i, begin, out_size, filter)
                    for step_y in range(steps_y):
                        place_points(span, first, end, step_y, size, label_strides[1:], where, filter)
                        _add_points(
                            masses,
                            labels,
                            base,
                            neighbours,
                            num_classes,
                            ignore_index,
                            span,
                            first,
                            end,
                            unsigned(steps_x),
                            column,
                        )
                    first = end
            count = unsigned(tile_end - tile_begin)
            apply_epilogue(epilogue, masses, sample, i, unsigned(tile_begin), count)
            in_range = in_range and not present[unsigned(num_classes + 1) * unsigned(pitch)]
            for label in range(unsigned(num_classes + 2)):
                line = label * unsigned(pitch)
                if present[line]:
                    present[line] = 0
                    for n in range(line, line + count):
                        lines[n] = zero
    fence()
    return in_range


@overload(label_rows_at)
def _(epilogue: Any, arguments: Any, first_row: int, end_row: int) -> Any:
    return _rows_of_transform if len(arguments) == _NUM_ARGUMENTS else None


def _rows_of_transform(epilogue: Any, arguments: Any, first_row: int, end_row: int) -> Any:
    address, like_labels, strides, transform, shape, ignore_index, like, like_places, is_uniform, tile = arguments
    labels, numbers = array_at(address, 0, like_labels), transform_at(transform)
    span = new_span(like, like_places)
    return _warped_rows(
        epilogue, labels, strides, numbers, shape, ignore_index, like, span, is_uniform, tile, first_row, end_row
    )


def warped_rows(
    labels: Tensor,
    transform: Tensor,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    dtype: torch.dtype,
    tile: int,
) -> LabelRows:
    """What computes the rows of a soft label, which are counted through all samples."""
    wide = np.int32 if labels.dtype != torch.int64 and -(2**31) <= ignore_index < 2**31 else np.int64
    of_transform = transform_arguments(transform, filter)
    arguments = (
        labels.data_ptr(),
        LIKE[labels.dtype],
        labels.stride(),
        of_transform.arguments,
        (wide(num_classes), *labels.shape[1:], *size),
        wide(ignore_index),
        LIKE[dtype],
        like_place(labels.shape[1], labels.shape[2], labels.stride()[1], labels.stride()[2]),
        _uniform_blocks(labels, of_transform.points * size[0] * size[1]),
        tile,
    )
    num_pixels = int(16 * of_transform.points * len(labels) * size[0] * size[1])
    return LabelRows(arguments, num_pixels, of_transform.tensor)


def _uniform_blocks(labels: Tensor, points: float) -> Array:
    """Which blocks of a label map hold one class; empty where so few points of a sample would not repay the look."""
    batch, height, width = labels.shape
    if 8 * points < height * width:
        return np.empty(0, np.bool_)
    blocks_y, blocks_x = -(-height // _BLOCK), -(-width // _BLOCK)
    is_uniform = np.empty(batch * blocks_y * blocks_x, np.bool_)
    arguments = is_uniform, labels.data_ptr(), LIKE[labels.dtype], labels.stride(), (height, width)
    pool.run(lambda first, end: _find_uniform_blocks(*arguments, first, end), batch * blocks_y, 0.4 * labels.numel())
    return is_uniform
