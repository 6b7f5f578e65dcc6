"""Small logits at the pixels of a full-size label map, a tile of label pixels at a time.

A row of logits is enlarged along x once for each tile of columns and kept while label rows lie beside it; a label row
is then a sum of two such lines for each class, which is taken where it is used and never stored.

What is computed of a tile does not depend on who computes it: sums over pixels belong to blocks of label rows, and the
gradient of a logit is gathered from all label pixels around it, in the order of rows and columns.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, flat
from tritonsoft.backends.numba.planes import (
    StagingBuffer,
    StridedTensor,
    TensorArguments,
    load_element,
    load_line,
    padded,
    staging_buffer,
    store_line,
    strided_tensor,
    tensor_arguments,
)
from tritonsoft.backends.numba.softmax import SoftmaxState
from tritonsoft.backends.numba.threads import jit, unsigned
from tritonsoft.backends.numba.vectors import LANES, broadcast, exp, load, store, where

BLOCK_ROWS = 8  # label rows whose sums are added up together
_MAX_COLUMNS = 512  # of a tile
_TILE_LOGITS = 1 << 14  # of all classes of a tile's row: two such lines of a tile fit a core's second-level cache

DECODED_TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


class LabelMap(NamedTuple):
    """A label map ``(B, H, W)`` of any integer type."""

    memory: Array  # the memory that the tensor spans, as bytes
    element_bytes: int
    mask: int  # the bits of an element that count once its sign is extended: all, or of an unsigned one its own
    strides: Any  # in elements
    height: int
    width: int
    ignore_index: int


class Taps(NamedTuple):
    """Of each label pixel of an axis the two logits that it lies between, one line for each sample or one for all."""

    first: Array
    second: Array
    fraction: Array  # how much the second weighs
    scored: Array  # of each sample the first pixel in its box, and the one after the last
    size: int  # pixels of the axis
    pitch: int  # from one sample's line to the next: 0 if all have the same


class EnlargingArguments(NamedTuple):
    """What `enlarging_of` makes an `Enlarging` of."""

    logits: TensorArguments
    num_classes: int
    height: int
    width: int
    rows: Taps
    columns: Taps


class Enlarging(NamedTuple):
    """Logits ``(B, C, h, w)`` and where in the label map they lie."""

    logits: StridedTensor
    num_classes: int
    height: int
    width: int
    rows: Taps
    columns: Taps


class Scratch(NamedTuple):
    """Buffers of one thread: lines of a tile's pixels, ``pitch`` from one class to the next."""

    lines: Array  # two enlarged rows of logits, of all classes
    held: Array  # which sample and row each of them is
    grads: Array  # the gradients of two enlarged rows of logits, of all classes
    exps: Array  # a number of each pixel and class
    state: SoftmaxState
    lse: Array
    scale: Array
    label: Array  # the class of each pixel, or -1
    line: Array  # of logits
    staging: StagingBuffer
    pitch: int


@jit
def _fill_taps(taps: Taps, ends: Array, in_size: int, batch: int) -> None:
    """See `tritonsoft.geometry`, "Logits at full size"; ``ends`` are (lo, hi, whether mirrored) of each sample."""
    last = in_size - 1
    for sample in range(batch):
        lo, hi, mirrored = ends[3 * sample], ends[3 * sample + 1], ends[3 * sample + 2] != 0
        start, end = taps.size, taps.size
        for k in range(taps.size):
            centre = k + 0.5
            if centre >= lo and start == taps.size:
                start = k
            if centre >= hi and end == taps.size:
                end = k
            position = min(max((centre - lo) * in_size / (hi - lo) - 0.5, 0.0), np.float64(last))
            first = np.int64(np.floor(position))
            fraction = position - first
            second = first + 1
            if fraction >= 1.0 - 2.0**-25:
                first, fraction = second, 0.0
            if fraction == 0.0:
                second, fraction = first, 0.5
            place = sample * taps.size + k
            taps.first[place] = last - first if mirrored else first
            taps.second[place] = last - second if mirrored else second
            taps.fraction[place] = fraction
        taps.scored[2 * sample], taps.scored[2 * sample + 1] = start, max(end, start)


def _taps(ends: Any, in_size: int, out_size: int, dtype: torch.dtype) -> Taps:
    batch = len(ends)
    first, second = np.empty((2, batch * out_size), np.int64)
    fraction, scored = np.empty(batch * out_size, LIKE[dtype].dtype), np.empty(2 * batch, np.int64)
    taps = Taps(first, second, fraction, scored, out_size, out_size if batch > 1 else 0)
    low, high = ends.min(1), ends.max(1)
    _fill_taps(taps, np.stack((low, high, ends[:, 1] < ends[:, 0]), 1).astype(np.float64).ravel(), in_size, batch)
    return taps


def enlarging_arguments(logits: Tensor, boxes: Tensor | None, size: Any, dtype: torch.dtype) -> EnlargingArguments:
    height, width = size
    ends = np.array([[0, 0, width, height]], np.float64) if boxes is None else boxes.double().numpy()
    return EnlargingArguments(
        tensor_arguments(logits, dtype),
        logits.shape[1],
        logits.shape[2],
        logits.shape[3],
        _taps(ends[:, 1::2], logits.shape[2], height, dtype),
        _taps(ends[:, 0::2], logits.shape[3], width, dtype),
    )


@jit
def enlarging_of(arguments: EnlargingArguments, like: Array) -> Any:
    """``like`` has the compute dtype."""
    _, num_classes, height, width, rows, columns = arguments
    return Enlarging(strided_tensor(arguments.logits, like), num_classes, height, width, rows, columns)


def label_map(labels: Tensor, ignore_index: int) -> LabelMap:
    _, height, width = labels.shape
    memory, size = flat(labels).view(np.uint8), labels.itemsize
    mask = -1 if labels.dtype.is_signed else 256**size - 1
    return LabelMap(memory, size, mask, tuple(labels.stride()), height, width, ignore_index)


def tile_columns(num_classes: int, width: int) -> int:
    """Label columns of a tile."""
    most = max(LANES, min(_MAX_COLUMNS, _TILE_LOGITS // num_classes))
    tiles = -(-width // most)
    return -(-width // (tiles * LANES)) * LANES


@jit
def new_scratch(enlarging: Enlarging, columns: int, has_exps: bool, has_grads: bool, like: Array) -> Any:
    """For tiles of so many label columns, in the compute dtype, that of ``like``."""
    dtype, pitch = like.dtype, columns + LANES  # no power of two, which would map all lines to the same cache sets
    size = enlarging.num_classes * pitch
    state = SoftmaxState(np.zeros(pitch, dtype), np.zeros(pitch, dtype), np.zeros(pitch, dtype), np.zeros(pitch, dtype))
    return Scratch(
        np.zeros(2 * size, dtype),
        np.full(4, -1, np.int64),
        np.zeros(2 * size if has_grads else 0, dtype),
        np.zeros(size if has_exps else 0, dtype),
        state,
        np.zeros(pitch, dtype),
        np.zeros(pitch, dtype),
        np.zeros(pitch, np.int64),
        np.zeros(max(enlarging.width, pitch), dtype),
        staging_buffer(enlarging.width),
        pitch,
    )


@jit
def _load_labels_as(labels: LabelMap, like: Any, start: int, count: int, num_classes: int, line: Array) -> Any:
    memory, stride = labels.memory, labels.strides[2]
    in_range: Any = True
    for n in range(count):
        value = np.int64(load_element(memory, unsigned(start + n * stride), like)) & labels.mask
        known = value != labels.ignore_index
        is_class = (value >= 0) & (value < num_classes)
        in_range &= is_class | (not known)
        line[n] = value if is_class & known else -1
    return in_range


@jit
def load_labels(labels: LabelMap, sample: int, row: int, first: int, end: int, num_classes: int, line: Array) -> Any:
    """Writes the classes of the columns from ``first`` to ``end`` to the line: -1 is none.

    Returns whether all are classes or ignored.
    """
    strides = labels.strides
    start = sample * strides[0] + row * strides[1] + first * strides[2]
    if labels.element_bytes == 1:
        return _load_labels_as(labels, np.int8(0), start, end - first, num_classes, line)
    if labels.element_bytes == 2:
        return _load_labels_as(labels, np.int16(0), start, end - first, num_classes, line)
    if labels.element_bytes == 4:
        return _load_labels_as(labels, np.int32(0), start, end - first, num_classes, line)
    return _load_labels_as(labels, np.int64(0), start, end - first, num_classes, line)


@jit
def _enlarge_row(
    enlarging: Enlarging, sample: int, row: int, first: int, end: int, lines: Array, begin: int, scratch: Scratch
) -> None:
    """A row of logits at the label columns from ``first`` to ``end``, of all classes."""
    columns, line, pitch = enlarging.columns, scratch.line, scratch.pitch
    place = sample * columns.pitch + first
    count = end - first
    low = high = columns.first[place]
    for at in (place, place + count - 1):
        low = min(low, min(columns.first[at], columns.second[at]))
        high = max(high, max(columns.first[at], columns.second[at]))
    pixels = (sample, row, unsigned(low), unsigned(high - low + 1))
    one = line.dtype.type(1)
    for label in range(enlarging.num_classes):
        load_line(enlarging.logits, pixels, label, line, unsigned(0))
        start = begin + label * pitch
        for n in range(count):
            fraction = columns.fraction[unsigned(place + n)]
            left = line[unsigned(columns.first[unsigned(place + n)] - low)]
            right = line[unsigned(columns.second[unsigned(place + n)] - low)]
            lines[unsigned(start + n)] = (one - fraction) * left + fraction * right
        for n in range(count, np.int64(padded(unsigned(count)))):
            lines[unsigned(start + n)] = 0


@jit
def _place_of(enlarging: Enlarging, sample: int, row: int, other: int, first: int, end: int, scratch: Scratch) -> int:
    """Where in ``scratch.lines`` an enlarged row of logits begins; it takes the place of one that is not ``other``."""
    held, size = scratch.held, enlarging.num_classes * scratch.pitch
    for slot in range(2):
        if held[2 * slot] == sample and held[2 * slot + 1] == row:
            return slot * size
    slot = 1 if held[0] == sample and held[1] == other else 0
    _enlarge_row(enlarging, sample, row, first, end, scratch.lines, slot * size, scratch)
    held[2 * slot], held[2 * slot + 1] = sample, row
    return slot * size


@jit
def rows_beside(enlarging: Enlarging, sample: int, row: int, first: int, end: int, scratch: Scratch) -> Any:
    """Where in ``scratch.lines`` the two rows of logits begin between which a label row lies, and their weights.

    The lines are of the label columns from ``first`` to ``end``: set ``scratch.held`` to -1 when these change.
    """
    rows = enlarging.rows
    place = sample * rows.pitch + row
    upper, lower, fraction = rows.first[place], rows.second[place], rows.fraction[place]
    at_upper = _place_of(enlarging, sample, upper, lower, first, end, scratch)
    at_lower = _place_of(enlarging, sample, lower, upper, first, end, scratch)
    return unsigned(at_upper), unsigned(at_lower), scratch.line.dtype.type(1) - fraction, fraction


@jit
def enlarged(lines: Array, upper: int, lower: int, weight_upper: Any, weight_lower: Any) -> Any:
    """A vector of logits at label pixels, from the places of its two rows; to the bit what plain numbers give."""
    return load(lines, upper, LANES) * weight_upper + load(lines, lower, LANES) * weight_lower


@jit
def softmax_of_row(lines: Array, place: Any, num_classes: int, exps: Array, count: int, scratch: Scratch) -> None:
    """Of ``count`` enlarged pixels, in ``scratch.state``, the largest logit and the sum of exponentials below it.

    Exponentials are kept in ``exps``, where there is room.
    """
    upper, lower, weight_upper, weight_lower = place
    state, pitch, keeps = scratch.state, unsigned(scratch.pitch), exps.size > 0
    zero, lowest = lines.dtype.type(0), np.finfo(lines.dtype).min  # finite, because inf - inf is NaN
    for n in range(unsigned(0), padded(unsigned(count)), unsigned(LANES)):
        largest = broadcast(lowest, LANES)
        for label in range(unsigned(num_classes)):
            at = label * pitch + n
            logit = enlarged(lines, upper + at, lower + at, weight_upper, weight_lower)
            largest = where(logit > largest, logit, largest)
        total = broadcast(zero, LANES)
        for label in range(unsigned(num_classes)):
            at = label * pitch + n
            value = exp(enlarged(lines, upper + at, lower + at, weight_upper, weight_lower) - largest)
            if keeps:
                store(exps, at, value)
            total = total + value
        store(state.max_logit, n, largest)
        store(state.sum_exp, n, total)


@jit
def _scored_pixels(taps: Taps, sample: int) -> Any:
    """The first pixel of a sample's box, and the one after the last."""
    place = 2 * sample if taps.pitch > 0 else 0
    return taps.scored[place], taps.scored[place + 1]


@jit
def pixels_beside(taps: Taps, sample: int, first_logit: int, end_logit: int) -> Any:
    """The scored pixels, from the first to the one after the last, that touch the logits in this range."""
    start = sample * taps.pitch
    first, end = _scored_pixels(taps, sample)
    while first < end and not _touches(taps, start + first, first_logit, end_logit):
        first += 1
    while end > first and not _touches(taps, start + end - 1, first_logit, end_logit):
        end -= 1
    return first, end


@jit
def _touches(taps: Taps, place: int, first_logit: int, end_logit: int) -> Any:
    low, high = min(taps.first[place], taps.second[place]), max(taps.first[place], taps.second[place])
    return high >= first_logit and low < end_logit


def num_blocks(batch: int, height: int) -> int:
    """Blocks of label rows, of all samples."""
    return batch * -(-height // BLOCK_ROWS)


@jit
def samples_of_blocks(height: int, first_block: int, end_block: int) -> Any:
    """The samples that have blocks in this range."""
    blocks = (height + BLOCK_ROWS - 1) // BLOCK_ROWS
    return range(first_block // blocks, (end_block - 1) // blocks + 1)


@jit
def block_of(height: int, sample: int, row: int) -> int:
    """The block of a label row."""
    return sample * ((height + BLOCK_ROWS - 1) // BLOCK_ROWS) + row // BLOCK_ROWS


@jit
def rows_of_blocks(enlarging: Enlarging, sample: int, first_block: int, end_block: int) -> Any:
    """The scored label rows of a sample that are in these blocks."""
    blocks = (enlarging.rows.size + BLOCK_ROWS - 1) // BLOCK_ROWS
    first, end = _scored_pixels(enlarging.rows, sample)
    first = max(first, (first_block - sample * blocks) * BLOCK_ROWS)
    return range(first, min(end, (end_block - sample * blocks) * BLOCK_ROWS))


@jit
def columns_of_tile(enlarging: Enlarging, sample: int, tile: int, columns: int) -> Any:
    """The scored label columns of a tile that begins with one; none if the first is not below the second."""
    first, end = _scored_pixels(enlarging.columns, sample)
    return max(first, tile), min(end, tile + columns)


@jit
def _most_label_columns(enlarging: EnlargingArguments, batch: int, step: int) -> int:
    most = 0
    for sample in range(batch):
        for first in range(0, enlarging.width, step):
            begin, end = pixels_beside(enlarging.columns, sample, first, min(first + step, enlarging.width))
            most = max(most, end - begin)
    return most


def tile_logits(enlarging: EnlargingArguments, batch: int) -> tuple[int, int]:
    """Columns of logits of a tile, of which the gradient is gathered, and the most label columns that touch one."""
    samples = batch if enlarging.columns.pitch > 0 else min(batch, 1)
    columns = tile_columns(enlarging.num_classes, enlarging.columns.size)
    step = enlarging.width
    while True:
        most = _most_label_columns(enlarging, samples, step)
        if most <= columns + LANES or step == 1:
            return step, -(-max(most, 1) // LANES) * LANES
        step = max(1, step * columns // most)


@jit
def _flush_grads(
    enlarging: Enlarging,
    out: StridedTensor,
    sample: int,
    row: int,
    tile: Any,
    grads: Array,
    begin: int,
    scratch: Scratch,
) -> None:
    """Gathers the gradient of a row of logits from that of its enlarged line, and clears the latter.

    ``tile`` is the first column of logits and the one after the last, and the same of label columns.
    """
    first_logit, end_logit, first, end = tile
    columns, line, pitch = enlarging.columns, scratch.line, scratch.pitch
    place, count = sample * columns.pitch + first, end - first
    one = line.dtype.type(1)
    pixels = (sample, row, unsigned(first_logit), unsigned(end_logit - first_logit))
    for label in range(enlarging.num_classes):
        start = begin + label * pitch
        line[: end_logit - first_logit] = 0
        for n in range(count):
            fraction, grad = columns.fraction[place + n], grads[start + n]
            left, right = columns.first[place + n] - first_logit, columns.second[place + n] - first_logit
            if 0 <= left < end_logit - first_logit:
                line[left] += (one - fraction) * grad
            if 0 <= right < end_logit - first_logit:
                line[right] += fraction * grad
        store_line(out, pixels, label, line, scratch.staging, unsigned(0), unsigned(0))
        grads[start : start + pitch] = 0


@jit
def flush_slot(
    held: Array,
    slot: int,
    enlarging: Enlarging,
    out: StridedTensor,
    sample: int,
    tile: Any,
    rows: Any,
    scratch: Scratch,
) -> None:
    """Writes or drops the row of logits in a line of gradients, which is free then."""
    size = enlarging.num_classes * scratch.pitch
    row = held[slot]
    if row == -1:
        return
    if rows[0] <= row < rows[1]:
        _flush_grads(enlarging, out, sample, row, tile, scratch.grads, slot * size, scratch)
    else:
        scratch.grads[slot * size : (slot + 1) * size] = 0
    held[slot] = -1


@jit
def take_grads(
    held: Array, enlarging: Enlarging, out: StridedTensor, sample: int, row: int, tile: Any, rows: Any, scratch: Scratch
) -> Any:
    """Where in ``scratch.grads`` the gradients of the two rows of logits beside a label row begin.

    A row of logits that no longer lies beside is complete, and is written if it is one from ``rows[0]`` to ``rows[1]``.
    """
    size = enlarging.num_classes * scratch.pitch
    place = sample * enlarging.rows.pitch + row
    upper, lower = enlarging.rows.first[place], enlarging.rows.second[place]
    for slot in range(2):
        if held[slot] not in (upper, lower, -1):
            flush_slot(held, slot, enlarging, out, sample, tile, rows, scratch)
    for logits_row in (upper, lower):
        if held[0] != logits_row and held[1] != logits_row:
            held[0 if held[0] == -1 else 1] = logits_row
    of_upper, of_lower = (0 if held[0] == upper else 1), (0 if held[0] == lower else 1)
    return unsigned(of_upper * size), unsigned(of_lower * size)
