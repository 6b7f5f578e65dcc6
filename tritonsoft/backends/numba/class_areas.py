"""The area of each class in boxes: pixels are counted where they lie wholly in a box, and weighed at its edges."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, array_at, borrowed
from tritonsoft.backends.numba.label_rows import SHORT_RUN, class_of_label, compared_type, find_runs
from tritonsoft.backends.numba.taps import max_area
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import MASK_BITS

_ROWS = 64  # of a box, that one sum is made of: the same whatever the number of threads
_TABLES = 4  # neighbours count in tables of their own, so that none waits until the one before it is stored
_NANOSECONDS = 0.4  # of a pixel: half of that in long runs, twice as much in noise


@jit
def _covered(pixel: Any, lo: float, hi: float) -> Any:
    """How much of a pixel of an axis lies between two ends."""
    return max(min(hi, pixel + 1.0) - max(lo, np.float64(pixel)), 0.0)


@jit
def _count_run(
    counts: Array, labels: Array, start: int, stride: int, count: int, num_classes: Any, ignore: Any
) -> None:
    """Counts the labels of whole pixels, each fourth in the same of the tables."""
    one, size = np.uint32(1), unsigned(counts.size // _TABLES)
    for n in range(count):
        line = unsigned(class_of_label(labels[unsigned(start + n * stride)], num_classes, ignore))
        counts[unsigned(n % _TABLES) * size + line] += one


@jit
def _count_row(
    counts: Array, labels: Array, start: int, stride: int, count: int, num_classes: Any, ignore: Any, scratch: Any
) -> None:
    """Counts the labels of whole pixels: runs of equal ones at once, unless these are short."""
    pixels, run_end = scratch
    length, begin = unsigned(count), unsigned(0)
    if length == 0:
        return
    for n in range(length):
        pixels[n] = labels[unsigned(start + np.int64(n) * stride)]
    if not find_runs(pixels, begin, length, run_end, length // unsigned(SHORT_RUN)):
        _count_run(counts, labels, start, stride, count, num_classes, ignore)
        return
    run = unsigned(0)
    while begin < length:
        end = run_end[run]
        counts[unsigned(class_of_label(pixels[begin], num_classes, ignore))] += np.uint32(end - begin)
        begin, run = end, run + unsigned(1)


@jit
def _bands(
    partial: int,
    in_range: int,
    boxes: int,
    address: int,
    like: Array,
    strides: Any,
    shape: Any,
    bands_per_box: int,
    ignore: Any,
    first: int,
    end: int,
) -> None:
    """Bands of `_ROWS` rows of the boxes, one after the other: their areas, and whether all labels are allowed."""
    size, width = np.int64(shape[0]) + 2, shape[3]  # after the classes ignored pixels, and labels that are neither
    scratch = (
        np.zeros(_TABLES * size, np.uint32),
        np.zeros(size, np.float64),
        np.empty(width + MASK_BITS + 1, like.dtype),
        np.empty(width, np.uint64),
    )
    _count_bands(partial, in_range, boxes, address, like, strides, shape, bands_per_box, ignore, scratch, first, end)


@jit
def _count_bands(
    partial: int,
    in_range: int,
    boxes: int,
    address: int,
    like: Array,
    strides: Any,
    shape: Any,
    bands_per_box: int,
    ignore: Any,
    scratch: Any,
    first: int,
    end: int,
) -> None:
    """The same with scratch memory, which the caller keeps alive."""
    num_classes, num_boxes, height, width = shape
    size = np.int64(num_classes) + 2
    areas = array_at(partial, 0, np.empty(0, np.float64))
    allowed = array_at(in_range, 0, np.empty(0, np.bool_))
    ends, labels = array_at(boxes, 0, np.empty(0, np.float64)), array_at(address, 0, like)
    counts, weighed, pixels, run_end = borrowed(scratch)
    for band in range(first, end):
        box = band // bands_per_box
        x0, y0, x1, y1 = ends[4 * box], ends[4 * box + 1], ends[4 * box + 2], ends[4 * box + 3]
        left, right, top, bottom = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        first_column: Any = max(np.int64(np.floor(left)), 0)
        end_column: Any = max(min(np.int64(np.ceil(right)), width), first_column)
        first_whole: Any = min(max(np.int64(np.ceil(left)), 0), end_column)
        end_whole: Any = max(min(np.int64(np.floor(right)), width), first_whole)
        first_row: Any = max(np.int64(np.floor(top)), 0)
        first_row += band % bands_per_box * _ROWS
        end_row: Any = min(min(np.int64(np.ceil(bottom)), height), first_row + _ROWS)
        for row in range(first_row, end_row):
            start = box // num_boxes * strides[0] + row * strides[1]
            weight = _covered(row, top, bottom)
            for begin_part, end_part in ((first_column, first_whole), (end_whole, end_column)):
                for x in range(begin_part, end_part):
                    line = class_of_label(labels[unsigned(start + x * strides[2])], num_classes, ignore)
                    weighed[line] += weight * _covered(x, left, right)
            begin_run, length = start + first_whole * strides[2], end_whole - first_whole
            _count_row(counts, labels, begin_run, strides[2], length, num_classes, ignore, (pixels, run_end))
            # Rows that lie wholly in the box are counted together.
            if weight < 1.0 or row == end_row - 1 or _covered(row + 1, top, bottom) < 1.0:
                for line in range(size):
                    total = np.int64(0)
                    for table in range(_TABLES):
                        total += counts[table * size + line]
                        counts[table * size + line] = 0
                    weighed[line] += weight * total
        allowed[band] = weighed[size - 1] == 0
        for line in range(size):
            if line < size - 2:
                areas[band * (size - 2) + line] = weighed[line]
            weighed[line] = 0


def class_areas(out: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, validate: bool) -> bool:
    """Writes `tritonsoft.backends.reference.class_areas` of a label map ``(B, H, W)`` to ``out (B, N, C)``."""
    _, num_boxes, num_classes = out.shape
    height, width = labels.shape[1:]
    if boxes is None:
        boxes = torch.tensor([0.0, 0.0, width, height], dtype=torch.float64, device="cpu").expand(len(labels), 1, 4)
    boxes = boxes.double().contiguous()
    bands_per_box = -(-height // _ROWS)
    num_bands = len(labels) * num_boxes * bands_per_box
    partial = torch.empty((len(labels), num_boxes, bands_per_box, num_classes), dtype=torch.float64, device="cpu")
    in_range = np.empty(num_bands, np.bool_)
    wide = compared_type(labels, ignore_index)
    arguments = (
        partial.data_ptr(),
        in_range.ctypes.data,
        boxes.data_ptr(),
        labels.data_ptr(),
        LIKE[labels.dtype],
        labels.stride(),
        (wide(num_classes), num_boxes, height, width),
        bands_per_box,
        wide(ignore_index),
    )
    work = _NANOSECONDS * len(labels) * num_boxes * min(max_area(boxes.data_ptr(), boxes.numel() // 4), height * width)
    pool.run(lambda first, end: _bands(*arguments, first, end), num_bands, work)
    out.copy_(partial.sum(2))
    return bool(in_range.all()) or not validate
