"""The largest ids of each pixel of label maps whose ids are any numbers: instances, supervoxels.

Classes have lines of masses (`label_rows`), ids too many for that: those under one output pixel are collected in a
table, and its largest are written before the next pixel begins. The table is as large as the most taps of a pixel.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, array_at, downcast
from tritonsoft.backends.numba.taps import table_of_whole, tables_of_boxes, taps_at
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.warp_points import (
    ENTIRELY_OUTSIDE,
    SHARE_X,
    SHARE_Y,
    SPAN,
    WEIGHT,
    like_place,
    locate,
    new_span,
    place_points,
    prepare_sample,
    transform_arguments,
    transform_at,
    weigh_points,
)
from tritonsoft.geometry import MAX_POINTS, Filter

_EMPTY = -1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: the upper bits of a product with it spread neighbours


class Found(NamedTuple):
    """The ids under one output pixel, in the order in which they are met."""

    table: Array  # of a power of two, at least twice as many as ids: hash table of places in the next two
    ids: Array
    mass: Array
    place: Array  # of each id in the table, by which it is emptied


class Outputs(NamedTuple):
    """What is written, and the scratch for a pixel of it."""

    kept: Array  # the ids, (B, k, h, w) flat
    mass: Array  # (B, k, h, w) flat
    rest: Array  # (B, h, w) flat
    best: Array  # (k + 1,) masses, largest first, and the sum of all others
    best_id: Array  # (k,)


class Ignored(NamedTuple):
    """The id that carries no mass, if there is one."""

    exists: bool
    id: int


@jit
def _found(most: int) -> Any:
    size = 4
    while size < 2 * most:
        size *= 2
    return Found(np.full(size, _EMPTY), np.empty(most, np.int64), np.empty(most), np.empty(most, np.int64))


@jit
def _outputs(index: int, mass: int, rest: int, like_index: Array, like_mass: Array, num_kept: int) -> Any:
    best, best_id = np.empty(num_kept + 1, np.float32), np.empty(num_kept, np.int64)
    return Outputs(
        array_at(index, 0, like_index), array_at(mass, 0, like_mass), array_at(rest, 0, like_mass), best, best_id
    )


@jit
def _add(found: Found, number: int, id: Any, weight: Any) -> int:
    """Adds to the mass of an id; returns how many ids there are now."""
    table, ids, mass, place = found
    last = unsigned(table.size - 1)
    slot = ((unsigned(id) * unsigned(_GOLDEN)) >> unsigned(32)) & last
    while table[slot] != _EMPTY:
        if ids[table[slot]] == id:
            mass[table[slot]] += weight
            return number
        slot = (slot + unsigned(1)) & last
    table[slot], place[number] = number, slot
    ids[number], mass[number] = id, weight
    return number + 1


@jit
def _write_pixel(outputs: Outputs, found: Found, number: int, ignored: Ignored, pixel: int, plane_size: int) -> None:
    """Writes the largest ids of a pixel, counted through all planes of all samples, and empties the table."""
    kept, mass, rest, best, best_id = outputs
    num_kept = best_id.size
    best[:] = 0
    best_id[:] = 0
    for n in range(number):
        found.table[found.place[n]] = _EMPTY
        id, candidate = found.ids[n], np.float32(found.mass[n])
        if (ignored.exists and id == ignored.id) or candidate <= 0:
            continue
        # Insertion into a sorted list: the entry that the candidate displaces is the next candidate.
        for k in range(num_kept):
            held, held_id = best[k], best_id[k]
            if candidate > held or (candidate == held and id < held_id):
                best[k], best_id[k] = candidate, id
                candidate, id = held, held_id
        best[num_kept] += candidate
    sample, place = pixel // plane_size, pixel % plane_size
    for k in range(num_kept):
        target = unsigned((sample * num_kept + k) * plane_size + place)
        kept[target] = best_id[k]
        mass[target] = downcast(best[k], mass)
    rest[unsigned(pixel)] = downcast(best[num_kept], rest)


@jit
def _rows_of_boxes(
    outputs: Any,
    kept: Any,
    labels: int,
    like_labels: Array,
    strides: Any,
    size: Any,
    taps_y: Any,
    taps_x: Any,
    like: Array,
    ignored: Any,
    most: int,
    first_row: int,
    end_row: int,
) -> None:
    written, found = _outputs(*outputs, kept), _found(most)
    source, no_class = array_at(labels, 0, like_labels), Ignored(*ignored)
    first_y, begin_y, weight_y, _ = taps_at(taps_y, like)
    first_x, begin_x, weight_x, _ = taps_at(taps_x, like)
    height, width = size
    last_box = first_x.size // width - 1
    for row in range(first_row, end_row):
        sample, i = row // height, row % height
        box = min(sample, last_box)
        for j in range(width):
            y, x, number = box * height + i, box * width + j, 0
            for t in range(begin_y[y], begin_y[y + 1]):
                line = sample * strides[0] + (first_y[y] + t - begin_y[y]) * strides[1] + first_x[x] * strides[2]
                # Neighbours are mostly of one id, which is looked up once.
                id, total = np.int64(0), 0.0
                for s in range(begin_x[x], begin_x[x + 1]):
                    here = np.int64(source[unsigned(line + (s - begin_x[x]) * strides[2])])
                    if here != id and total > 0:
                        number = _add(found, number, id, total * weight_y[t])
                        total = 0.0
                    id, total = here, total + weight_x[s]
                if total > 0:
                    number = _add(found, number, id, total * weight_y[t])
            _write_pixel(written, found, number, no_class, row * width + j, height * width)


@jit
def _rows_of_transform(
    outputs: Any,
    kept: Any,
    labels: int,
    like_labels: Array,
    strides: Any,
    sizes: Any,
    transform: Any,
    like_places: Array,
    like: Array,
    ignored: Any,
    most: int,
    first_row: int,
    end_row: int,
) -> None:
    written, found, span = _outputs(*outputs, kept), _found(most), new_span(like, like_places)
    source, no_class = array_at(labels, 0, like_labels), Ignored(*ignored)
    numbers, is_field, filter = transform_at(transform)
    size, out_size = (sizes[0], sizes[1]), (sizes[2], sizes[3])
    height, width = out_size
    # Where the source has one row or column, the other that a point reads weighs nothing, and is read there as well.
    next_x, next_y = unsigned(strides[2] if size[1] > 1 else 0), unsigned(strides[1] if size[0] > 1 else 0)
    current_sample, affine = -1, False
    for row in range(first_row, end_row):
        sample, i = row // height, row % height
        if sample != current_sample:
            current_sample, affine = sample, prepare_sample(span, numbers, is_field, sample, filter)
        base = unsigned(sample * strides[0])
        for begin in range(0, width, SPAN):
            count = unsigned(min(SPAN, width - begin))
            where = locate(span, numbers, is_field, affine, sample, i, begin, count, size, out_size, filter)
            for n in range(count):
                number, next_pixel = 0, n + unsigned(1)
                steps_y, steps_x = 0, 0
                if where != ENTIRELY_OUTSIDE:
                    steps_y, steps_x = weigh_points(span, n, next_pixel, i, begin, out_size, filter)
                for step_y in range(steps_y):
                    place_points(span, n, next_pixel, step_y, size, strides[1:], where, filter)
                    for k in range(unsigned(steps_x)):
                        point = n + k * unsigned(SPAN)
                        corner, whole = base + unsigned(span.place[point]), np.float64(span.points[WEIGHT + point])
                        below = np.float64(span.points[SHARE_Y + point])
                        right = np.float64(span.points[SHARE_X + point])
                        for at, weight in (
                            (corner, (1.0 - below) * (1.0 - right)),
                            (corner + next_x, (1.0 - below) * right),
                            (corner + next_y, below * (1.0 - right)),
                            (corner + next_x + next_y, below * right),
                        ):
                            if weight * whole > 0:
                                number = _add(found, number, np.int64(source[at]), weight * whole)
                pixel = (sample * height + i) * width + begin + np.int64(n)
                _write_pixel(written, found, number, no_class, pixel, height * width)


def _written(index: Tensor, mass: Tensor, rest: Tensor) -> Any:
    """The arguments of `_outputs`."""
    return (index.data_ptr(), mass.data_ptr(), rest.data_ptr(), LIKE[index.dtype], LIKE[mass.dtype]), index.shape[1]


def _ignored(ignore_index: int | None) -> tuple[bool, int]:
    return ignore_index is not None, 0 if ignore_index is None else ignore_index


def _most_taps(taps: Any) -> int:
    return int(np.diff(taps.begin).max(initial=0))


def top_ids(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int | None,
    filter: Filter,
) -> None:
    """Writes `reference.top_ids` of label maps in boxes: ``(B, k, h, w)`` twice, and the rest ``(B, h, w)``."""
    size: Sequence[int] = index.shape[2:]
    if boxes is None:
        taps_y, taps_x = (
            table_of_whole(labels.shape[1 + axis], size[axis], filter, torch.float64) for axis in range(2)
        )
    else:
        boxes = boxes.double().contiguous()
        taps_y, taps_x, _ = tables_of_boxes(boxes, labels.shape[1:], size, filter, torch.float64, torch.float64)
    arguments = (
        *_written(index, mass, rest),
        labels.data_ptr(),
        LIKE[labels.dtype],
        labels.stride(),
        tuple(size),
        taps_y.arguments,
        taps_x.arguments,
        LIKE[torch.float64],
        _ignored(ignore_index),
        max(_most_taps(taps_y) * _most_taps(taps_x), 1),
    )
    work = 2.0 * (mass.numel() + labels.numel())
    pool.run(lambda first, end: _rows_of_boxes(*arguments, first, end), len(index) * size[0], work)


def warp_top_ids(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int | None,
    filter: Filter,
) -> None:
    """Writes `reference.top_ids` of label maps under a transform."""
    of_transform, size = transform_arguments(transform, filter), index.shape[2:]
    arguments = (
        *_written(index, mass, rest),
        labels.data_ptr(),
        LIKE[labels.dtype],
        labels.stride(),
        (*labels.shape[1:], *size),
        of_transform.arguments,
        like_place(labels.shape[1], labels.shape[2], labels.stride()[1], labels.stride()[2]),
        LIKE[torch.float32],
        _ignored(ignore_index),
        4 * (2 * MAX_POINTS) ** 2,
    )
    work = 32.0 * of_transform.points * mass.numel()
    pool.run(lambda first, end: _rows_of_transform(*arguments, first, end), len(index) * size[0], work)
