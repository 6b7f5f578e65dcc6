"""`tritonsoft.geometry` as tables: the weighted taps of each output along one axis."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, array_at
from tritonsoft.backends.numba.threads import jit, unsigned
from tritonsoft.geometry import FILTERS


class Taps(NamedTuple):
    """The taps of each output along one axis; ``n`` counts the outputs of all boxes, one box after the other."""

    first: Array  # (n,) int32: the first source pixel
    begin: Array  # (n + 1,) int32: where the weights of each output begin
    weight: Array  # (begin[-1],) the sums' dtype: normalised weights of the taps inside the image
    outside: Array  # (n,) the sums' dtype: the weight of the taps outside, exactly 0 if there are none


class TapTable(NamedTuple):
    """`Taps` in Python, with the ``arguments`` of which `taps_at` makes them again in a compiled function."""

    first: Array
    begin: Array
    weight: Array
    outside: Array
    arguments: tuple[int, int, int, int, int, int]


@jit
def _with_arguments(first: Array, begin: Array, weight: Array, outside: Array) -> Any:
    addresses = first.ctypes.data, begin.ctypes.data, weight.ctypes.data, outside.ctypes.data
    return first, begin, weight, outside, (*addresses, first.size, weight.size)


@jit
def taps_at(arguments: tuple[int, int, int, int, int, int], like: Array) -> Any:
    first, begin, weight, outside, num_outputs, num_weights = arguments
    integers = np.empty(0, np.int32)
    return Taps(
        array_at(first, num_outputs, integers),
        array_at(begin, num_outputs + 1, integers),
        array_at(weight, num_weights, like),
        array_at(outside, num_outputs, like),
    )


_AREA, _NEAREST = FILTERS.index("area"), FILTERS.index("nearest")


@jit
def _weight(tap: Any, centre: Any, support: Any, plateau: Any) -> Any:
    return min(max(support - abs(tap + 0.5 - centre), 0.0), plateau)


@jit
def _tabulate(ends: Any, in_size: Any, out_size: Any, filter: int, like: Any) -> Any:
    """Taps of boxes with ``ends`` (boxes, 2): `tritonsoft.geometry` line by line, in its order of operations."""
    num_outputs = ends.shape[0] * out_size
    first = np.zeros(num_outputs, np.int32)
    begin = np.zeros(num_outputs + 1, np.int32)
    outside = np.zeros(num_outputs, like.dtype)
    weight = like
    for fill_in in (False, True):  # finds the taps, then allocates and writes their weights
        if fill_in:
            weight = np.empty(begin[num_outputs], like.dtype)
        for box in range(ends.shape[0]):
            lo, hi = min(ends[box, 0], ends[box, 1]), max(ends[box, 0], ends[box, 1])
            mirrored = ends[box, 1] < ends[box, 0]
            first_touched: Any = np.int64(np.floor(lo))
            end_touched: Any = np.int64(np.ceil(hi))
            span = hi - lo
            stretch = max(span / out_size, 1.0)
            support = (stretch + 1.0) / 2.0 if filter == _AREA else 1.0 if filter > 1 else stretch
            plateau = 1.0 if filter == _AREA else support
            for n in range(unsigned(box * out_size), unsigned((box + 1) * out_size)):
                j: Any = np.int64(n) - box * out_size
                j = out_size - 1 - j if mirrored else j
                centre = lo + span * (2.0 * j + 1.0) / (2.0 * out_size)
                begin_tap: Any = max(np.int64(np.floor(centre - support)), first_touched)
                end_tap: Any = min(np.int64(np.floor(centre + support)) + 1, end_touched)
                if filter == _NEAREST:
                    begin_tap = min(max(np.int64(np.floor(centre)), first_touched), end_touched - 1)
                    end_tap = begin_tap + 1

                next_n = n + unsigned(1)
                if not fill_in:
                    # A tap without weight must not be read: infinity times zero is not a number.
                    begin_inside: Any = max(begin_tap, 0)
                    end_inside: Any = min(end_tap, in_size)
                    while begin_inside < end_inside and _weight(begin_inside, centre, support, plateau) == 0.0:
                        begin_inside += 1
                    while begin_inside < end_inside and _weight(end_inside - 1, centre, support, plateau) == 0.0:
                        end_inside -= 1
                    first[n] = begin_inside
                    begin[next_n] = begin[n] + max(end_inside - begin_inside, 0)
                elif begin[n] == begin[next_n]:
                    outside[n] = 1.0
                else:
                    sum_inside, sum_outside = 0.0, 0.0
                    for tap in range(begin_tap, min(end_tap, 0)):
                        sum_outside += _weight(tap, centre, support, plateau)
                    for tap in range(max(begin_tap, in_size), end_tap):
                        sum_outside += _weight(tap, centre, support, plateau)
                    begin_inside = first[n] - begin[n]
                    for t in range(begin[n], begin[next_n]):
                        sum_inside += _weight(begin_inside + t, centre, support, plateau)
                    for t in range(begin[n], begin[next_n]):
                        tap_weight = _weight(begin_inside + t, centre, support, plateau)
                        weight[unsigned(t)] = tap_weight / (sum_inside + sum_outside)
                    outside[n] = sum_outside / (sum_inside + sum_outside)
    return first, begin, weight, outside


@jit
def transpose_taps(first: Any, begin: Any, weight: Any, in_size: int, out_size: int) -> Any:
    """The taps that carry outputs back to source pixels: each pixel lies in a run of neighbouring outputs."""
    num_boxes = first.size // out_size
    first_output = np.full(num_boxes * in_size, out_size, np.int32)
    end_output = np.zeros(num_boxes * in_size, np.int32)
    for n in range(first.size):
        base = n // out_size * in_size + first[n]
        for pixel in range(base, base + begin[n + 1] - begin[n]):
            first_output[pixel] = min(first_output[pixel], n % out_size)
            end_output[pixel] = n % out_size + 1
    begin_back = np.zeros(num_boxes * in_size + 1, np.int32)
    for pixel in range(num_boxes * in_size):
        begin_back[pixel + 1] = begin_back[pixel] + max(end_output[pixel] - first_output[pixel], 0)
    weight_back = np.zeros(begin_back[-1], weight.dtype)
    for n in range(first.size):
        base = n // out_size * in_size + first[n]
        for t in range(begin[n + 1] - begin[n]):
            weight_back[begin_back[base + t] + n % out_size - first_output[base + t]] = weight[begin[n] + t]
    return first_output, begin_back, weight_back, np.zeros(num_boxes * in_size, weight.dtype)


@jit
def transposed(first: Array, begin: Array, weight: Array, in_size: int, out_size: int) -> Any:
    """A `TapTable` of `transpose_taps`."""
    return _with_arguments(*transpose_taps(first, begin, weight, in_size, out_size))


@jit
def _tabulate_boxes(
    boxes: int, num_boxes: int, in_size: Any, out_size: Any, filter: int, sort_x: bool, like_y: Array, like_x: Array
) -> Any:
    """The tables of boxes (B, 4) along y and x, and which are mirrored along x: there, ``sort_x`` undoes that."""
    ends = array_at(boxes, num_boxes * 4, np.empty(0, np.float64)).reshape(num_boxes, 4)
    mirrored = ends[:, 2] < ends[:, 0]
    ends_y, ends_x = ends[:, 1::2].copy(), ends[:, 0::2].copy()
    if sort_x:
        for box in range(num_boxes):
            ends_x[box, 0], ends_x[box, 1] = min(ends_x[box, 0], ends_x[box, 1]), max(ends_x[box, 0], ends_x[box, 1])
    taps_y = _tabulate(ends_y, in_size[0], out_size[0], filter, like_y)
    taps_x = _tabulate(ends_x, in_size[1], out_size[1], filter, like_x)
    return _with_arguments(*taps_y), _with_arguments(*taps_x), mirrored


@jit
def max_area(boxes: int, num_boxes: int) -> float:
    """The largest area of float64 boxes (B, 4) at an address."""
    ends = array_at(boxes, num_boxes * 4, np.empty(0, np.float64)).reshape(num_boxes, 4)
    area = 0.0
    for x0, y0, x1, y1 in ends:
        area = max(area, abs((y1 - y0) * (x1 - x0)))
    return area


def tables_of_boxes(
    boxes: Tensor,  # contiguous float64
    in_size: Sequence[int],
    out_size: Sequence[int],
    filter: str,
    dtype_y: torch.dtype,
    dtype_x: torch.dtype,
    sort_x: bool = False,
) -> tuple[TapTable, TapTable, Array]:
    """`_tabulate_boxes`."""
    taps_y, taps_x, mirrored = _tabulate_boxes(
        boxes.data_ptr(),
        len(boxes),
        tuple(in_size),
        tuple(out_size),
        FILTERS.index(filter),
        sort_x,
        LIKE[dtype_y],
        LIKE[dtype_x],
    )
    return TapTable(*taps_y), TapTable(*taps_x), mirrored


def pixels_read(taps_y: TapTable, taps_x: TapTable, num_boxes: int) -> int:
    """About how many source pixels all boxes have together; those that several outputs share count for each."""
    return taps_y.arguments[5] * taps_x.arguments[5] // max(num_boxes, 1)


@jit
def _tabulate_whole(in_size: int, out_size: int, filter: int, like: Array) -> Any:
    ends = np.zeros((1, 2))
    ends[0, 1] = in_size
    return _with_arguments(*_tabulate(ends, in_size, out_size, filter, like))


@functools.lru_cache(maxsize=64)
def table_of_whole(in_size: int, out_size: int, filter: str, dtype: torch.dtype) -> TapTable:
    """The table of the one box that serves all samples where all of each is resized: shapes repeat."""
    return TapTable(*_tabulate_whole(in_size, out_size, FILTERS.index(filter), LIKE[dtype]))
