"""Label maps: each row of a soft label is a histogram for each column, to which runs of equal pixels are added.

A run adds a difference of prefix sums, so it costs the same however long it is; equal source rows are added once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba.cpython.unsafe.numbers import trailing_zeros
from numba.extending import overload
from torch import Tensor

from tritonsoft.backends.numba.elements import (
    LIKE,
    LINE_BYTES,
    Array,
    array_at,
    borrowed,
    downcast,
    fence,
    prefetch_line,
    write_line,
)
from tritonsoft.backends.numba.taps import (
    Taps,
    max_area,
    pixels_read,
    table_of_whole,
    tables_of_boxes,
    taps_at,
    transpose_taps,
)
from tritonsoft.backends.numba.threads import jit, unsigned
from tritonsoft.backends.numba.vectors import (
    CHUNK,
    LANES,
    MASK_BITS,
    add_difference,
    all_of,
    broadcast,
    convert,
    load,
    mask_of_changes,
    store,
    where,
)

_MARGIN = LINE_BYTES // 4  # elements; one would do, a cache line of float32 keeps the lines aligned
SHORT_RUN = 4  # pixels; where runs are shorter on average, a row is added pixel by pixel
_NOT_MIRRORED = np.zeros(1, bool)
TILE = 256  # output columns per class held in cache: long enough for whole-line stores, short enough for L1


@jit
def class_of_label(label: Any, num_classes: Any, ignore_index: Any) -> Any:
    """The class of a pixel; ``ignore_index`` has the dtype in which labels are compared.

    After the classes come that of ignored pixels and that of labels which are neither.
    """
    label = type(ignore_index)(label)
    number = num_classes + type(ignore_index)(1) if (label < 0) | (label >= num_classes) else label
    number = num_classes if label == ignore_index else number
    return np.uint32(number)


@jit
def find_runs(values: Array, begin: int, end: Any, run_end: Array, max_runs: int) -> bool:
    """Writes where each run of equal ``values[begin:end]`` ends; overwrites ``values[end]``.

    Returns False, and stops early, once there are more than ``max_runs``.
    """
    one, num_runs = unsigned(1), unsigned(0)
    values[end] = ~values[end - one]
    for n in range(begin, end, unsigned(MASK_BITS)):
        changes = mask_of_changes(values, n)
        if end - n < unsigned(MASK_BITS):
            changes &= (one << (end - n)) - one
        while changes != 0:
            run_end[num_runs] = n + unsigned(trailing_zeros(changes)) + one
            num_runs += one
            changes &= changes - one
        if num_runs > max_runs:
            return False
    return True


@jit
def _find_pairs(box: int, in_width: int, out_width: int, taps_x: Taps, pairs: Any) -> bool:
    """For each source pixel of a box: its first output, what it weighs there and in the next; whether that is all."""
    first, begin, weight, _ = taps_x
    first_output, here, next_to_it = pairs
    start, end = box * out_width, (box + 1) * out_width
    taps = first[start:end], begin[start : end + 1] - begin[start], weight[begin[start] : begin[end]]
    first_back, begin_back, weight_back, _ = transpose_taps(*taps, in_width, out_width)
    are_all = True
    for x in range(in_width):
        first_weight, number = begin_back[x], begin_back[x + 1] - begin_back[x]
        # A pixel without weight adds nothing, in the place of the one before: the first of a tile has weight.
        first_output[x] = first_back[x] if number > 0 or x == 0 else first_output[x - 1]
        here[x] = weight_back[first_weight] if number > 0 else 0
        next_to_it[x] = weight_back[first_weight + 1] if number > 1 else 0
        are_all = are_all and number <= 2
    return are_all


@jit
def _add_pixels(
    masses: Any, class_of: Array, line_of: Array, left: int, right: int, row_weight: Any, tile_begin: Any, pairs: Any
) -> None:
    """Adds the pixels of a tile one by one. At its sides they add to what lies between the lines, too."""
    mass, present = masses.lines, masses.present
    first, here, next_to_it = pairs
    for x in range(left, right):
        present[unsigned(class_of[x])] = 1
        place = unsigned(line_of[x]) + unsigned(np.int64(first[x]) - tile_begin)
        mass[place] += row_weight * here[x]
        mass[place + unsigned(1)] += row_weight * next_to_it[x]


@jit
def _chunk_weights(box: int, out_width: int, taps_x: Taps, like: Any) -> Any:
    """What the source pixels of a box weigh in its chunks of outputs.

    For each chunk: its first pixel, the end of its pixels, and where its lines begin in the last result. That holds a
    line of `CHUNK` outputs for each edge between two pixels: the weight of the taps left of it. So the weight of a run
    of pixels is the difference of two lines.
    """
    first, begin, weight, _ = taps_x
    num_chunks, num_lines = (out_width + CHUNK - 1) // CHUNK, 0
    left, right = np.zeros(num_chunks, np.uint64), np.zeros(num_chunks, np.uint64)
    line_begin = np.zeros(num_chunks, np.uint64)
    for chunk in range(num_chunks):
        outputs = range(box * out_width + chunk * CHUNK, box * out_width + min((chunk + 1) * CHUNK, out_width))
        first_pixel, end_pixel = 2**31, 0
        for n in outputs:
            if begin[n] < begin[n + 1]:
                first_pixel = min(first_pixel, first[n])
                end_pixel = max(end_pixel, first[n] + begin[n + 1] - begin[n])
        first_pixel = min(first_pixel, end_pixel)
        left[chunk], right[chunk], line_begin[chunk] = first_pixel, end_pixel, num_lines * CHUNK
        num_lines += end_pixel - first_pixel + 1
    sums = np.zeros(num_lines * CHUNK)
    for chunk in range(num_chunks):
        for j in range(chunk * CHUNK, min((chunk + 1) * CHUNK, out_width)):
            n = box * out_width + j
            line = first[n] - np.int64(left[chunk])
            for t in range(begin[n], begin[n + 1]):
                line += 1
                sums[np.int64(line_begin[chunk]) + line * CHUNK + j % CHUNK] = weight[t]
        size = unsigned(CHUNK)
        for n in range(line_begin[chunk], line_begin[chunk] + (right[chunk] - left[chunk]) * size):
            sums[n + size] += sums[n]
    return left, right, line_begin, sums.astype(like.dtype)


# --- epilogues ------------------------------------------------------------------------------------------------------


class Masses(NamedTuple):
    """A tile of one output row of a soft label, in cache: a line of masses for each class."""

    lines: Array  # (C + 2, pitch) flat: the last two lines, of pixels without a class, are dropped
    present: Array  # (C + 2,) and some: whether the class occurs, 1 or 0; where it does not, its line is zeros
    eight_present: Array  # the same memory, eight classes in a number
    found: Array  # (C + 2,) scratch: the classes that occur
    pitch: Any


@jit
def new_masses(num_classes: Any, tile: Any, like: Array) -> Any:
    """With lines that are zeros. Who borrows them must not be who makes them: nothing else keeps them alive."""
    pitch = np.uint32(tile + 16)  # not a power of two, or the lines of all classes would share their cache sets
    # A pixel at the left side of a tile may add to what lies before its line.
    lines = np.zeros(unsigned(num_classes + 2) * unsigned(pitch) + unsigned(_MARGIN), like.dtype)[_MARGIN:]
    present = np.zeros((np.int64(num_classes) + 2 + 7) // 8 * 8, np.uint8)
    return Masses(lines, present, present.view(np.uint64), np.empty(np.int64(num_classes) + 2, np.uint64), pitch)


@jit
def list_classes(masses: Masses) -> Any:
    """Writes the classes that occur to ``found``, in ascending order; returns how many there are.

    After them come the lines of pixels without a class, if there are such.
    """
    number, one = unsigned(0), unsigned(1)
    for n in range(unsigned(masses.eight_present.size)):
        rest = masses.eight_present[n]
        while rest != 0:  # a bit for each, of the lowest byte first
            masses.found[number] = n * unsigned(8) + unsigned(trailing_zeros(rest)) // unsigned(8)
            number += one
            rest &= rest - one
    return number


@jit
def clear(masses: Masses, count: Any) -> None:
    """Makes the first ``count`` masses of each line zeros again."""
    for number in range(list_classes(masses)):
        label = masses.found[number]
        masses.present[label] = 0
        line = label * unsigned(masses.pitch)
        for n in range(line, line + count):
            masses.lines[n] = 0


class DenseEpilogue(NamedTuple):
    """Writes the masses of all classes: the soft label itself."""

    out: Array  # (B, C, h, w) flat
    shape: Any  # (C, h, w)
    finished: Array  # (tile,) scratch
    zeros: Array  # (tile,)
    line_length: int
    to_boundary: int

    def apply_epilogue(self: Any, masses: Masses, sample: int, row: int, column: int, count: int) -> None:
        out, (num_classes, out_height, out_width), finished, zeros, line_length, to_boundary = self
        lines, present, pitch = masses.lines, masses.present, masses.pitch
        for label in range(unsigned(num_classes)):
            start = (unsigned(sample * num_classes) + label) * unsigned(out_height) + unsigned(row)
            start = start * unsigned(out_width) + column
            line = label * unsigned(pitch)
            if present[label]:
                for n in range(count):
                    finished[n] = downcast(lines[line + n], out)
                write_line(out, start, finished, count, line_length, to_boundary)
            else:
                write_line(out, start, zeros, count, line_length, to_boundary)


class TopKEpilogue(NamedTuple):
    """Writes the largest classes of each pixel, and the mass of all others together."""

    class_index: Array  # (B, k, h, w) flat
    mass: Array  # (B, k, h, w) flat
    rest: Array  # (B, h, w) flat
    shape: Any  # (C, k, h, w)
    best: Array  # (k + 1, tile) scratch: the sum of all others, then masses, largest first
    best_class: Array  # the same shape: as floats, which hold all classes that an index may be of

    def apply_epilogue(self: Any, masses: Masses, sample: int, row: int, column: int, count: int) -> None:
        num_classes, num_top, out_height, out_width = self.shape
        best, best_class, tile = self.best, self.best_class, unsigned(self.best.size) // unsigned(num_top + 1)
        num_found = list_classes(masses)
        while num_found > 0 and masses.found[num_found - unsigned(1)] >= unsigned(num_classes):
            num_found -= unsigned(1)
        for n in range(unsigned(0), count, unsigned(LANES)):
            _keep_largest(best, best_class, tile, unsigned(num_top), masses, num_found, n)
        for place in range(unsigned(num_top)):
            start = (unsigned(sample * num_top) + place) * unsigned(out_height) + unsigned(row)
            start, line = start * unsigned(out_width) + column, (place + unsigned(1)) * tile
            for n in range(count):
                self.mass[start + n] = downcast(best[line + n], self.mass)
                self.class_index[start + n] = best_class[line + n]
        start = unsigned(sample * out_height + row) * unsigned(out_width) + column
        for n in range(count):
            self.rest[start + n] = downcast(best[n], self.rest)


@jit
def _keep_largest(
    best: Array, best_class: Array, tile: Any, num_top: Any, masses: Masses, num_found: Any, n: Any
) -> None:
    """Makes the sorted lists of `LANES` pixels.

    Classes come in ascending order. Where a mass is above that of an entry, that entry and all after it move on by one,
    and what would be one too many is added to the rest.
    """
    nothing, num_kept = broadcast(best.dtype.type(0), LANES), unsigned(0)
    rest = nothing
    for number in range(num_found):
        label = masses.found[number]
        candidates = convert(load(masses.lines, label * unsigned(masses.pitch) + n, LANES), best)
        if all_of(candidates <= 0.0):  # most classes of a tile are not in most of its parts
            continue
        name = broadcast(best.dtype.type(label), LANES)
        held, held_class = nothing, nothing
        if num_kept < num_top:
            num_kept += unsigned(1)
        else:
            held, held_class = load(best, num_kept * tile + n, LANES), load(best_class, num_kept * tile + n, LANES)
        larger = candidates > held
        rest = rest + where(larger, held, candidates)
        here = num_kept * tile + n
        for _ in range(unsigned(1), num_kept):
            above = here - tile
            mass_above, class_above = load(best, above, LANES), load(best_class, above, LANES)
            larger_above = candidates > mass_above
            store(best, here, where(larger_above, mass_above, where(larger, candidates, held)))
            store(best_class, here, where(larger_above, class_above, where(larger, name, held_class)))
            here, held, held_class, larger = above, mass_above, class_above, larger_above
        store(best, here, where(larger, candidates, held))
        store(best_class, here, where(larger, name, held_class))
    store(best, n, rest)
    for place in range(num_kept, num_top):
        store(best, (place + unsigned(1)) * tile + n, nothing)
        store(best_class, (place + unsigned(1)) * tile + n, nothing)


def apply_epilogue(self: Any, masses: Masses, sample: int, row: int, column: int, count: int) -> None:
    """Calls an epilogue's method of that name, which Numba does not do for named tuples."""


@overload(apply_epilogue)
def _(self: Any, masses: Masses, sample: int, row: int, column: int, count: int) -> Any:
    return self.instance_class.apply_epilogue


@jit
def _label_rows(
    epilogue: Any,
    masses: Masses,
    labels: Array,
    label_strides: Any,
    shape: Any,
    taps_y: Taps,
    taps_x: Taps,
    mirrored: Any,
    ignore_index: int,
    tile: int,
    first_row: int,
    end_row: int,
) -> bool:
    """Computes output rows of a soft label for an epilogue; ``taps_x`` are those of the boxes not mirrored.

    A tile of columns is accumulated in cache for all classes, a chunk of outputs at a time. Returns whether every label
    that was read is a class or ``ignore_index``.
    """
    first_y, begin_y, weight_y, _ = taps_y
    num_classes, in_width, out_height, out_width = shape
    zero, one, chunk_size = weight_y.dtype.type(0), unsigned(1), unsigned(CHUNK)
    # An atomic reference count would wait until all non-temporal stores have drained.
    epilogue, masses = borrowed(epilogue), borrowed(masses)
    mass, present, pitch = masses.lines, masses.present, masses.pitch
    pixels = np.empty(in_width + MASK_BITS + 1, labels.dtype)
    class_of, line_of = np.empty(in_width, np.uint32), np.empty(in_width, np.uint32)  # where its line begins
    run_end = np.empty(in_width, np.uint64)
    last_box = taps_x.first.size // out_width - 1
    current_box = min(first_row // out_height, last_box)
    pairs = np.zeros(in_width, np.int32), np.zeros(in_width, weight_y.dtype), np.zeros(in_width, weight_y.dtype)
    pairs_box, are_pairs, in_range = -1, False, True
    chunk_left, chunk_right, chunk_weights, weights = _chunk_weights(current_box, out_width, taps_x, weight_y)
    for row in range(first_row, end_row):
        sample, i = row // out_height, row % out_height
        box = min(sample, last_box)
        if box != current_box:
            current_box = box
            chunk_left, chunk_right, chunk_weights, weights = _chunk_weights(box, out_width, taps_x, weight_y)

        output_y = box * out_height + i
        first_tap, end_tap = begin_y[output_y], begin_y[output_y + 1]
        for tile_begin in range(0, out_width, tile):
            tile_end = min(tile_begin + tile, out_width)
            chunks = range(unsigned(tile_begin // CHUNK), unsigned((tile_end + CHUNK - 1) // CHUNK))
            left, right = unsigned(in_width), unsigned(0)
            for chunk in chunks:
                if chunk_left[chunk] < chunk_right[chunk]:
                    left, right = min(left, chunk_left[chunk]), max(right, chunk_right[chunk])
            right = max(left, right)

            row_weight = zero
            for t in range(first_tap, end_tap):
                y = first_y[output_y] + t - first_tap
                base = unsigned(sample * label_strides[0] + y * label_strides[1])
                stride_x, stride_y = unsigned(label_strides[2]), unsigned(label_strides[1])
                row_weight += weight_y[t]
                prefetch_line(labels, base + left + stride_y + stride_y, right - left)
                if t + 1 < end_tap and stride_x == 1:
                    # Rows that repeat are added once, with the weight of all of them.
                    difference = labels.dtype.type(0)
                    for n in range(base + left, base + right):
                        difference = labels.dtype.type(difference | (labels[n] ^ labels[n + stride_y]))
                    if difference == 0:
                        continue
                if stride_x == 1:
                    for x in range(left, right):
                        pixels[x] = labels[base + x]
                else:
                    for x in range(left, right):
                        pixels[x] = labels[base + x * stride_x]

                if not find_runs(pixels, left, right, run_end, (right - left) // unsigned(SHORT_RUN)):
                    if pairs_box != box:
                        pairs_box, are_pairs = box, _find_pairs(box, in_width, out_width, taps_x, pairs)
                    if are_pairs:
                        for x in range(left, right):
                            class_of[x] = class_of_label(pixels[x], num_classes, ignore_index)
                            line_of[x] = class_of[x] * pitch
                        _add_pixels(masses, class_of, line_of, left, right, row_weight, tile_begin, pairs)
                        row_weight = zero
                        continue
                    find_runs(pixels, left, right, run_end, right - left)
                run = unsigned(0)
                for chunk in chunks:
                    begin, end = chunk_left[chunk], chunk_right[chunk]
                    if begin == end:
                        continue
                    # Neighbouring chunks share pixels: this one may begin in a run before that in which the last ended.
                    while run > 0 and run_end[run - one] > begin:
                        run -= one
                    while run_end[run] <= begin:
                        run += one
                    outputs = chunk * chunk_size - unsigned(tile_begin)
                    edges = chunk_weights[chunk] - begin * chunk_size
                    while begin < end:
                        label = unsigned(class_of_label(pixels[begin], num_classes, ignore_index))
                        begin_next = min(run_end[run], end)
                        present[label] = 1
                        line = label * unsigned(pitch)
                        edge, next_edge = edges + begin * chunk_size, edges + begin_next * chunk_size
                        add_difference(mass, line + outputs, row_weight, weights, edge, next_edge)
                        begin = begin_next
                        run += one
                    run -= one
                row_weight = zero

            count = unsigned(tile_end - tile_begin)
            column = unsigned(out_width - tile_end if mirrored[box] else tile_begin)
            if mirrored[box]:
                for number in range(list_classes(masses)):
                    line = masses.found[number] * unsigned(pitch)
                    last = line + count - one
                    for n in range(count // unsigned(2)):
                        mass[line + n], mass[last - n] = mass[last - n], mass[line + n]
            apply_epilogue(epilogue, masses, sample, i, column, count)
            in_range = in_range and not present[unsigned(num_classes + 1)]
            clear(masses, count)
    fence()
    return in_range


def label_rows_at(epilogue: Any, arguments: Any, first_row: int, end_row: int) -> Any:
    """Computes rows of a soft label for an epilogue, in boxes or under a transform: the arguments of `LabelRows`."""


_NUM_ARGUMENTS = 11


@overload(label_rows_at)
def _(epilogue: Any, arguments: Any, first_row: int, end_row: int) -> Any:
    return _rows_of_boxes if len(arguments) == _NUM_ARGUMENTS else None  # the others: `warp_rows`


def _rows_of_boxes(epilogue: Any, arguments: Any, first_row: int, end_row: int) -> Any:
    address, like, strides, shape, taps_y, like_y, taps_x, like_x, mirrored, ignore_index, tile = arguments
    labels, taps_y, taps_x = array_at(address, 0, like), taps_at(taps_y, like_y), taps_at(taps_x, like_x)
    masses = new_masses(shape[0], tile, like_y)
    return _label_rows(
        epilogue, masses, labels, strides, shape, taps_y, taps_x, mirrored, ignore_index, tile, first_row, end_row
    )


def compared_type(labels: Tensor, ignore_index: int) -> Any:
    """The type that holds labels and ``ignore_index``."""
    is_wide = labels.dtype in (torch.int64, torch.uint32) or not -(2**31) <= ignore_index < 2**31
    return np.int64 if is_wide else np.int32


class LabelRows(NamedTuple):
    """A label map and its boxes or transform, for compiled functions that give `label_rows_at` an epilogue."""

    arguments: Any  # the last one is the tile
    num_pixels: int  # source pixels that all rows read
    tables: Any  # what the arguments point to


def label_rows(
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    dtype: torch.dtype,
    tile: int,
) -> LabelRows:
    """What computes the rows of a soft label, which are counted through all samples."""
    in_size, num_boxes = labels.shape[1:], 1
    # Each doubling of the number of taps costs a float32 sum up to a bit: many taps are summed in float64.
    max_pixels = 64 * size[0] * size[1]
    if boxes is None:
        dtype_y = torch.float64 if in_size[0] * in_size[1] > max_pixels else dtype
        taps_y = table_of_whole(in_size[0], size[0], filter, dtype_y)
        taps_x = table_of_whole(in_size[1], size[1], filter, torch.float64)
        mirrored = _NOT_MIRRORED
    else:
        boxes, num_boxes = boxes.double().contiguous(), len(boxes)
        dtype_y = torch.float64 if max_area(boxes.data_ptr(), num_boxes) > max_pixels else dtype
        # The finished row is mirrored, not the taps: sums in the same order make a flip exact to the bit.
        taps_y, taps_x, mirrored = tables_of_boxes(boxes, in_size, size, filter, dtype_y, torch.float64, sort_x=True)
    wide = compared_type(labels, ignore_index)
    arguments = (
        labels.data_ptr(),
        LIKE[labels.dtype],
        labels.stride(),
        (wide(num_classes), in_size[1], *size),
        taps_y.arguments,
        LIKE[dtype_y],
        taps_x.arguments,
        LIKE[torch.float64],
        mirrored,
        wide(ignore_index),
        tile,
    )
    num_pixels = pixels_read(taps_y, taps_x, num_boxes) * labels.shape[0] // num_boxes
    return LabelRows(arguments, num_pixels, (taps_y, taps_x))
