"""Samples mixed with each other, row by row: every pixel that is needed is read once, and every output written once."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.elements import (
    LIKE,
    Array,
    array_at,
    borrowed,
    compute_dtype,
    downcast,
    fence,
    flat,
    streaming,
    upcast,
    write_line,
)
from tritonsoft.backends.numba.label_rows import (
    SHORT_RUN,
    TILE,
    DenseEpilogue,
    apply_epilogue,
    class_of_label,
    clear,
    compared_type,
    find_runs,
    new_masses,
)
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import MASK_BITS
from tritonsoft.memory import is_channels_last

_COPY, _BLEND = 0.12, 0.2  # nanoseconds of a byte of the output
_NO_BOXES, _NO_LABELS, _NO_CLASSES = np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.uint8)
# Pixels are moved as bits, so loops are compiled for sizes of elements. Of a label a mask takes the bits that count.
_BITS = {size: LIKE[dtype] for size, dtype in ((1, torch.uint8), (2, torch.int16), (4, torch.int32), (8, torch.int64))}

# --- rows of images --------------------------------------------------------------------------------------------------
#
# An image has one line in memory for each row and channel, or for all channels of a row where these are neighbours.


def _lines_of(images: Tensor) -> tuple[Any, Any]:
    """The lines of one row and the channels of one line; strides of samples, lines, rows and pixels."""
    batch_stride, channel_stride, row_stride, pixel_stride = images.stride()
    channels = images.shape[1]
    if is_channels_last(images):
        return (1, channels), (batch_stride, 0, row_stride, pixel_stride)
    return (channels, 1), (batch_stride, channel_stride, row_stride, pixel_stride)


@jit
def _read_line(line: Array, images: Array, start: int, pixel_stride: int, inner: int, begin: Any, end: Any) -> None:
    """Pixels from ``begin`` to ``end`` of a line."""
    if pixel_stride == inner:
        for n in range(unsigned(begin * inner), unsigned(end * inner)):
            line[n] = images[unsigned(start) + n]
        return
    for x in range(begin, end):
        for channel in range(inner):
            line[unsigned(x * inner + channel)] = images[unsigned(start + x * pixel_stride + channel)]


@jit
def _partner_of(partners: Array, sample: int) -> int:
    partner = partners[sample]
    return partner if 0 <= partner < partners.size else sample


# --- pasting ---------------------------------------------------------------------------------------------------------


@jit
def _spans_of_box(box: Array, row: int, width: int, span_end: Array) -> Any:
    """Writes where spans of a row end, in turns of one's own and the partner's; returns how many there are."""
    x0, y0, x1, y1 = box[0], box[1], box[2], box[3]
    begin, end = min(max(x0, 0), width), min(max(x1, 0), width)
    if row < y0 or row >= y1 or begin >= end:
        span_end[0] = width
        return 1
    span_end[0], span_end[1], span_end[2] = begin, end, width
    return 3


@jit
def _is_chosen(label: int, chosen: Array) -> bool:
    return 0 <= label < chosen.size and chosen[unsigned(label)] != 0


@jit
def _spans_of_classes(
    labels: Array, mask: int, chosen: Array, width: int, run_end: Array, span_end: Array, selected: Array
) -> Any:
    """The same by a row of labels; -1 where runs are short: then it is written which pixels are ``selected``."""
    end = unsigned(width)
    if not find_runs(labels, unsigned(0), end, run_end, end // unsigned(SHORT_RUN)):
        for x in range(width):
            selected[x] = _is_chosen(np.int64(labels[x]) & mask, chosen)
        return -1
    number, begin, run, theirs = 0, unsigned(0), 0, False
    while begin < end:
        if _is_chosen(np.int64(labels[begin]) & mask, chosen) != theirs:
            span_end[number] = begin
            number += 1
            theirs = not theirs
        begin = run_end[run]
        run += 1
    span_end[number] = end
    return number + 1


@jit
def _paste_rows(
    address_out: int,
    address_images: int,
    like: Array,
    strides: Any,
    shape: Any,
    partners: Array,
    boxes: Array,
    address_labels: int,
    like_labels: Array,
    mask: int,
    label_strides: Any,
    chosen: Array,
    line_length: int,
    to_boundary: int,
    first: int,
    end: int,
) -> bool:
    """Rows of all samples."""
    _, inner, _, width = shape
    memory = array_at(address_out, 0, like), array_at(address_images, 0, like), array_at(address_labels, 0, like_labels)
    lines = np.empty(width * inner, like.dtype), np.empty(width * inner, like.dtype)
    row_of_labels = np.empty(width + MASK_BITS + 1, like_labels.dtype)
    of_row = row_of_labels, np.empty(width, np.uint64), np.empty(width + 3, np.int64), np.empty(width, np.uint8)
    where = partners, boxes, mask, label_strides, chosen
    _paste_rows_by(memory, strides, shape, where, (line_length, to_boundary), lines, of_row, first, end)
    return True


@jit
def _paste_rows_by(
    memory: Any, strides: Any, shape: Any, where: Any, streams: Any, scratch: Any, of_row: Any, first: int, end: int
) -> None:
    """The same, with memory for two lines, and for what is found out of a row."""
    (lines, inner, height, width), (line_length, to_boundary) = shape, streams
    out, images, labels = memory
    partners, boxes, mask, label_strides, chosen = borrowed(where)
    own, theirs = borrowed(scratch)
    row_of_labels, run_end, span_end, selected = borrowed(of_row)
    for place in range(first, end):
        sample, row = place // height, place % height
        partner, num_spans = _partner_of(partners, sample), 1
        if partner == sample:
            span_end[0] = width
        elif boxes.size > 0:
            num_spans = _spans_of_box(boxes[4 * sample : 4 * sample + 4], row, width, span_end)
        else:
            start = partner * label_strides[0] + row * label_strides[1]
            _read_line(row_of_labels, labels, start, label_strides[2], 1, 0, width)
            num_classes = chosen.size // partners.size
            classes = chosen[sample * num_classes : (sample + 1) * num_classes]
            num_spans = _spans_of_classes(row_of_labels, mask, classes, width, run_end, span_end, selected)
        for line in range(lines):
            mine = sample * strides[0] + line * strides[1] + row * strides[2]
            other = mine + (partner - sample) * strides[0]
            if num_spans < 0:
                _read_line(own, images, mine, strides[3], inner, 0, width)
                _read_line(theirs, images, other, strides[3], inner, 0, width)
                _select(own, theirs, selected, inner)
            else:
                begin = 0
                for span in range(num_spans):
                    start = other if span % 2 == 1 else mine
                    _read_line(own, images, start, strides[3], inner, begin, span_end[span])
                    begin = span_end[span]
            place_of_line = unsigned(((sample * lines + line) * height + row) * width * inner)
            write_line(out, place_of_line, own, unsigned(width * inner), unsigned(line_length), unsigned(to_boundary))
    fence()


@jit
def _select(own: Array, theirs: Array, selected: Array, inner: int) -> None:
    if inner == 1:
        for x in range(selected.size):
            own[x] = theirs[x] if selected[x] else own[x]
        return
    for x in range(selected.size):
        for n in range(unsigned(x * inner), unsigned((x + 1) * inner)):
            own[n] = theirs[n] if selected[x] else own[n]


def paste(
    out: Tensor,
    images: Tensor,
    partners: Tensor,
    boxes: Tensor | None,
    labels: Tensor | None,
    chosen: Tensor | None,
) -> None:
    """Writes `tritonsoft.backends.reference.paste`."""
    (lines, inner), strides = _lines_of(images)
    size = images.shape[2:]
    is_unsigned = labels is not None and not labels.dtype.is_signed
    arguments = (
        out.data_ptr(),
        images.data_ptr(),
        _BITS[images.itemsize],
        strides,
        (lines, inner, *size),
        flat(partners),
        _NO_BOXES if boxes is None else flat(boxes),
        0 if labels is None else labels.data_ptr(),
        _NO_LABELS if labels is None else _BITS[labels.itemsize],
        256**labels.itemsize - 1 if labels is not None and is_unsigned else -1,
        (0, 0, 0) if labels is None else labels.stride(),
        _NO_CLASSES if chosen is None else flat(chosen.view(torch.uint8)),
        *streaming(out),
    )
    pool.run(lambda first, end: _paste_rows(*arguments, first, end), len(images) * size[0], _COPY * out.nbytes)


# --- blending --------------------------------------------------------------------------------------------------------


@jit
def _blend_rows(
    address_out: int,
    address_images: int,
    like: Array,
    strides: Any,
    shape: Any,
    partners: Array,
    weight: Array,
    line_length: int,
    to_boundary: int,
    first: int,
    end: int,
) -> bool:
    """Rows of all samples."""
    _, inner, _, width = shape
    memory = array_at(address_out, 0, like), array_at(address_images, 0, like)
    scratch = np.empty(width * inner, like.dtype), np.empty(width * inner, like.dtype)
    _blend_rows_by(memory, strides, shape, (partners, weight), (line_length, to_boundary), scratch, first, end)
    return True


@jit
def _blend_rows_by(
    memory: Any, strides: Any, shape: Any, mixed_with: Any, streams: Any, scratch: Any, first: int, end: int
) -> None:
    """The same, with memory for two lines."""
    (lines, inner, height, width), (line_length, to_boundary) = shape, streams
    out, images = memory
    partners, weight = borrowed(mixed_with)
    own, theirs = borrowed(scratch)
    one = weight.dtype.type(1)
    for place in range(first, end):
        sample, row = place // height, place % height
        partner, share = _partner_of(partners, sample), weight[sample]
        for line in range(lines):
            mine = sample * strides[0] + line * strides[1] + row * strides[2]
            _read_line(own, images, mine, strides[3], inner, 0, width)
            if partner != sample:
                other = mine + (partner - sample) * strides[0]
                _read_line(theirs, images, other, strides[3], inner, 0, width)
                if share < 0.5:
                    for n in range(unsigned(own.size)):
                        difference = upcast(theirs[n]) - upcast(own[n])
                        own[n] = downcast(upcast(own[n]) + share * difference, out)
                else:
                    for n in range(unsigned(own.size)):
                        difference = upcast(theirs[n]) - upcast(own[n])
                        own[n] = downcast(upcast(theirs[n]) - (one - share) * difference, out)
            place_of_line = unsigned(((sample * lines + line) * height + row) * width * inner)
            write_line(out, place_of_line, own, unsigned(width * inner), unsigned(line_length), unsigned(to_boundary))
    fence()


def blend(out: Tensor, images: Tensor, partners: Tensor, weight: Tensor) -> None:
    """Writes `tritonsoft.backends.reference.blend`."""
    (lines, inner), strides = _lines_of(images)
    size = images.shape[2:]
    arguments = (
        out.data_ptr(),
        images.data_ptr(),
        LIKE[images.dtype],
        strides,
        (lines, inner, *size),
        flat(partners),
        flat(weight.to(compute_dtype(images))),
        *streaming(out),
    )
    pool.run(lambda first, end: _blend_rows(*arguments, first, end), len(images) * size[0], _BLEND * out.nbytes)


@jit
def _blend_label_rows(
    address_out: int,
    like: Array,
    address_labels: int,
    like_labels: Array,
    label_strides: Any,
    shape: Any,
    partners: Array,
    weight: Array,
    ignore_index: int,
    line_length: int,
    to_boundary: int,
    first: int,
    end: int,
) -> bool:
    """Rows of all samples; whether every label is a class or ``ignore_index``."""
    labels, tile = array_at(address_labels, 0, like_labels), min(4 * TILE, shape[2])
    masses = new_masses(shape[0], tile, weight)
    epilogue = DenseEpilogue(
        array_at(address_out, 0, like),
        shape,
        np.empty(tile, like.dtype),
        np.zeros(tile, like.dtype),
        unsigned(line_length),
        unsigned(to_boundary),
    )
    return _blend_label_rows_by(
        epilogue, masses, labels, label_strides, shape, (partners, weight), ignore_index, tile, first, end
    )


@jit
def _blend_label_rows_by(
    epilogue: Any,
    masses: Any,
    labels: Array,
    label_strides: Any,
    shape: Any,
    mixed_with: Any,
    ignore_index: int,
    tile: int,
    first: int,
    end: int,
) -> bool:
    """The same, with memory for the masses of a tile."""
    num_classes, height, width = shape
    partners, weight = borrowed(mixed_with)
    epilogue, masses = borrowed(epilogue), borrowed(masses)
    in_range, one = True, weight.dtype.type(1)
    for place in range(first, end):
        sample, row = place // height, place % height
        partner = _partner_of(partners, sample)
        share = weight[sample] if partner != sample else weight.dtype.type(0)
        for tile_begin in range(0, width, tile):
            count = min(tile, width - tile_begin)
            for who, mass in ((sample, one - share), (partner, share)):
                start = who * label_strides[0] + row * label_strides[1] + tile_begin * label_strides[2]
                for x in range(count):
                    label = labels[unsigned(start + x * label_strides[2])]
                    number = class_of_label(label, num_classes, ignore_index)
                    masses.present[unsigned(number)] = 1
                    masses.lines[unsigned(number) * unsigned(masses.pitch) + unsigned(x)] += mass
            apply_epilogue(epilogue, masses, sample, row, unsigned(tile_begin), unsigned(count))
            in_range = in_range and not masses.present[unsigned(num_classes + 1)]
            clear(masses, unsigned(count))
    fence()
    return in_range


def blend_labels(
    out: Tensor, labels: Tensor, partners: Tensor, weight: Tensor, ignore_index: int, validate: bool
) -> bool:
    """Writes `tritonsoft.backends.reference.blend_labels` to ``out (B, C, H, W)``."""
    wide = compared_type(labels, ignore_index)
    _, num_classes, *size = out.shape
    arguments = (
        out.data_ptr(),
        LIKE[out.dtype],
        labels.data_ptr(),
        LIKE[labels.dtype],
        labels.stride(),
        (wide(num_classes), *size),
        flat(partners),
        flat(weight.to(compute_dtype(out))),
        wide(ignore_index),
        *streaming(out),
    )
    work = 0.25 * out.numel() + 3.0 * labels.numel()
    in_range = pool.run(lambda first, end: _blend_label_rows(*arguments, first, end), len(labels) * size[0], work)
    return all(in_range) or not validate
