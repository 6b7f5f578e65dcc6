"""Rows of the soft label of a label map under a transform, for the epilogues of `label_rows`."""

from collections.abc import Sequence
from typing import Any

import torch
from numba.extending import overload
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, array_at, borrowed, fence
from tritonsoft.backends.numba.label_rows import (
    LabelRows,
    Masses,
    apply_epilogue,
    class_of_label,
    clear,
    compared_type,
    label_rows_at,
    new_masses,
)
from tritonsoft.backends.numba.threads import jit, unsigned
from tritonsoft.backends.numba.warp_points import (
    ENTIRELY_OUTSIDE,
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
from tritonsoft.geometry import Filter

_NUM_ARGUMENTS = 9


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
    lines, present, pitch = masses.lines, masses.present, masses.pitch
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
                    number = unsigned(class_of_label(current, num_classes, ignore_index))
                    lines[number * unsigned(pitch) + column + n] += total
                    present[number] |= total > zero
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
                    number = unsigned(class_of_label(current, num_classes, ignore_index))
                    lines[number * unsigned(pitch) + column + n] += total
                    present[number] |= total > zero
                    current, total = label, zero
                total += share
        number = unsigned(class_of_label(current, num_classes, ignore_index))
        lines[number * unsigned(pitch) + column + n] += total
        present[number] |= total > zero


@jit
def _warped_rows(
    epilogue: Any,
    masses: Masses,
    labels: Array,
    label_strides: Any,
    transform: Any,
    shape: Any,
    ignore_index: int,
    span: Span,
    tile: int,
    first_row: int,
    end_row: int,
) -> bool:
    """Returns whether every label that has weight is a class or ``ignore_index``."""
    numbers, is_field, filter = transform
    num_classes, in_height, in_width, out_height, out_width = shape
    size, out_size = (in_height, in_width), (out_height, out_width)
    # An atomic reference count would wait until all non-temporal stores have drained.
    epilogue, masses, span = borrowed(epilogue), borrowed(masses), borrowed(span)
    # Where the source has one row or column, the other that a point reads weighs nothing, and is read there as well.
    neighbours = unsigned(label_strides[2] if in_width > 1 else 0), unsigned(label_strides[1] if in_height > 1 else 0)
    current_sample, affine, in_range = -1, False, True
    for row in range(first_row, end_row):
        sample, i = row // out_height, row % out_height
        if sample != current_sample:
            current_sample, affine = sample, prepare_sample(span, numbers, is_field, sample, filter)
        base = unsigned(sample * label_strides[0])
        for tile_begin in range(0, out_width, tile):
            tile_end = min(tile_begin + tile, out_width)
            for begin in range(tile_begin, tile_end, SPAN):
                count = unsigned(min(SPAN, tile_end - begin))
                where = locate(span, numbers, is_field, affine, sample, i, begin, count, size, out_size, filter)
                first = count if where == ENTIRELY_OUTSIDE else unsigned(0)
                while first < count:
                    end = run_of_pixels(span, first, count)
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
                            unsigned(begin - tile_begin),
                        )
                    first = end
            count = unsigned(tile_end - tile_begin)
            apply_epilogue(epilogue, masses, sample, i, unsigned(tile_begin), count)
            in_range = in_range and not masses.present[unsigned(num_classes + 1)]
            clear(masses, count)
    fence()
    return in_range


@overload(label_rows_at)
def _(epilogue: Any, arguments: Any, first_row: int, end_row: int) -> Any:
    return _rows_of_transform if len(arguments) == _NUM_ARGUMENTS else None


def _rows_of_transform(epilogue: Any, arguments: Any, first_row: int, end_row: int) -> Any:
    address, like_labels, strides, transform, shape, ignore_index, like, like_places, tile = arguments
    labels, numbers = array_at(address, 0, like_labels), transform_at(transform)
    span, masses = new_span(like, like_places), new_masses(shape[0], tile, like)
    return _warped_rows(epilogue, masses, labels, strides, numbers, shape, ignore_index, span, tile, first_row, end_row)


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
    wide = compared_type(labels, ignore_index)
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
        tile,
    )
    num_pixels = int(16 * of_transform.points * len(labels) * size[0] * size[1])
    return LabelRows(arguments, num_pixels, of_transform.tensor)
