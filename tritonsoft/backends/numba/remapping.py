"""The classes of ids, looked up one by one."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, array_at, borrowed, fence, flat, streaming, write_line
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.geometry import NO_CLASS

_CHUNK = 4096  # pixels that are looked up before they are written: both stay in the first-level cache
_NANOSECONDS, _NANOSECONDS_OF_SEARCH = 0.4, 3.0  # of a pixel
_NO_IDS = np.empty(0, np.int64)
# Loops are compiled for sizes of elements: what is stored does not depend on the sign, and of what is loaded a mask
# takes the bits that count.
_LIKE = {size: LIKE[dtype] for size, dtype in ((1, torch.uint8), (2, torch.int16), (4, torch.int32), (8, torch.int64))}


@jit
def _place_of(label: int, ids: Array, num_classes: Any, first_id: int) -> Any:
    """Where among the classes that of an id is, or ``num_classes``.

    Without ``ids`` the classes are those of the ids from ``first_id`` on.
    """
    if ids.size == 0:
        # Differences that overflow wrap to large numbers, which are no place either.
        return min(unsigned(label) - unsigned(first_id), num_classes)
    place, left = unsigned(0), num_classes
    while left > unsigned(1):  # the last id that is not larger, without a branch that could be mispredicted
        half = left >> unsigned(1)
        place += half & (unsigned(0) - unsigned(ids[place + half] <= label))
        left -= half
    return place if ids[place] == label else num_classes


@jit
def _class_at(place: Any, classes: Array) -> Any:
    num_classes = unsigned(classes.size)
    value = classes[place if place < num_classes else unsigned(0)]
    return value if place < num_classes else np.int64(NO_CLASS)


@jit
def _remap_bytes(line: Array, labels: Array, start: int, stride: int, count: int, table: Array) -> None:
    if stride == 1:
        for n in range(unsigned(count)):
            line[n] = table[labels[unsigned(start) + n]]
    else:
        for n in range(count):
            line[n] = table[labels[unsigned(start + n * stride)]]


@jit
def _remap_each(
    line: Array,
    labels: Array,
    mask: int,
    start: int,
    stride: int,
    count: int,
    ids: Array,
    classes: Array,
    first_id: int,
    ignore_index: int,
) -> bool:
    """Whether all ids are known."""
    num_classes, all_known = unsigned(classes.size), True
    if ids.size == 0:
        for n in range(count):
            label = np.int64(labels[unsigned(start + n * stride)]) & mask
            value = _class_at(_place_of(label, ids, num_classes, first_id), classes)
            known = value != NO_CLASS
            all_known &= known
            line[n] = value if known else ignore_index
        return all_known
    last = np.int64(labels[unsigned(start)]) & mask
    value = _class_at(_place_of(last, ids, num_classes, first_id), classes)
    for n in range(count):
        label = np.int64(labels[unsigned(start + n * stride)]) & mask
        if label != last:  # most neighbours are equal, and a search takes longer than a comparison
            last, value = label, _class_at(_place_of(label, ids, num_classes, first_id), classes)
        known = value != NO_CLASS
        all_known &= known
        line[n] = value if known else ignore_index
    return all_known


@jit
def _table_of_bytes(
    table: Array, known: Array, mask: int, ids: Array, classes: Array, first_id: int, ignore_index: int
) -> None:
    """The class of every byte, and whether it has one."""
    for byte in range(256):
        label = byte - 256 if byte > 127 else byte
        value = _class_at(_place_of(label & mask, ids, unsigned(classes.size), first_id), classes)
        known[byte] = value != NO_CLASS
        table[byte] = value if value != NO_CLASS else ignore_index


@jit
def _chunks(
    address_out: int,
    like_out: Array,
    address_labels: int,
    like_labels: Array,
    mask: int,
    strides: Any,
    size: Any,
    ids: Array,
    classes: Array,
    first_id: int,
    ignore_index: int,
    checks: Any,
    line_length: int,
    to_boundary: int,
    first: int,
    end: int,
) -> bool:
    """Chunks of rows, counted through all samples; whether, where one ``checks``, all ids are known."""
    out, labels = array_at(address_out, 0, like_out), array_at(address_labels, 0, like_labels)
    scratch = np.empty(_CHUNK, out.dtype), np.empty(256, out.dtype), np.empty(256, np.bool_)
    if labels.itemsize == 1:
        _table_of_bytes(scratch[1], scratch[2], mask, ids, classes, first_id, ignore_index)
    numbers = first_id, ignore_index, checks, line_length, to_boundary
    all_known: bool = _chunks_by(out, labels, mask, strides, size, ids, classes, numbers, scratch, first, end)
    return all_known


@jit
def _chunks_by(
    out: Array,
    labels: Array,
    mask: int,
    strides: Any,
    size: Any,
    ids: Array,
    classes: Array,
    numbers: Any,
    scratch: Any,
    first: int,
    end: int,
) -> bool:
    """The same, with memory for a line, and for the class of every byte and whether it has one."""
    height, width = size
    first_id, ignore_index, checks, line_length, to_boundary = numbers
    line, table, known = borrowed(scratch)
    ids, classes, all_known = borrowed(ids), borrowed(classes), True
    chunks_of_row = (width + _CHUNK - 1) // _CHUNK
    for chunk in range(first, end):
        row, column = chunk // chunks_of_row, chunk % chunks_of_row * _CHUNK
        count = min(_CHUNK, width - column)
        start = row // height * strides[0] + row % height * strides[1] + column * strides[2]
        if labels.itemsize == 1:
            _remap_bytes(line, labels, start, strides[2], count, table)
            if checks:
                for n in range(count):
                    all_known &= known[labels[unsigned(start + n * strides[2])]]
        else:
            all_known &= _remap_each(line, labels, mask, start, strides[2], count, ids, classes, first_id, ignore_index)
        write_line(
            out, unsigned(row * width + column), line, unsigned(count), unsigned(line_length), unsigned(to_boundary)
        )
    fence()
    return all_known


def remap_labels(
    out: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    classes: Tensor,
    first_id: int,
    ignore_index: int,
    validate: bool,
) -> bool:
    """Writes the class of each pixel of a label map ``(B, H, W)``."""
    strides, (_, height, width) = labels.stride(), labels.shape
    if labels.is_contiguous():
        strides, height, width = (0, 0, 1), 1, labels.numel()
    arguments = (
        out.data_ptr(),
        _LIKE[out.itemsize],
        labels.data_ptr(),
        _LIKE[labels.itemsize],
        -1 if labels.dtype.is_signed else 256**labels.itemsize - 1,
        strides,
        (height, width),
        _NO_IDS if ids is None else flat(ids.contiguous()),
        flat(classes.long().contiguous()),
        first_id,
        ignore_index,
        validate,
        *streaming(out),
    )
    num_chunks = labels.numel() // width * -(-width // _CHUNK)
    work = labels.numel() * (_NANOSECONDS if labels.itemsize == 1 else _NANOSECONDS_OF_SEARCH)
    all_known = all(pool.run(lambda first, end: _chunks(*arguments, first, end), num_chunks, work))
    return all_known or not validate
