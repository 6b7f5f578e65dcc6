"""Samples mixed with each other, row by row: every pixel that is needed is read once, and every output written once."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tritonsoft.backends.numba.elements import (
    LIKE,
    Array,
    array_at,
    borrowed,
    compute_dtype,
    downcast,
    fence,
    flat,
    prefetch_line,
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
from tritonsoft.backends.numba.vectors import LANES, MASK_BITS, load, store

_COPY, _BLEND = 0.12, 0.2  # nanoseconds of a byte of the output
_NO_BOXES, _NO_LABELS, _NO_CLASSES = np.empty(0, np.int64), np.empty(0, np.int8), np.empty(0, np.uint8)
# Pixels are moved as bits, so loops are compiled for sizes of elements. A label is read with its sign, and of an
# unsigned one a mask takes the bits that count.
_BITS = {size: LIKE[dtype] for size, dtype in ((1, torch.int8), (2, torch.int16), (4, torch.int32), (8, torch.int64))}

# --- rows of images --------------------------------------------------------------------------------------------------
#
# An image has one line in memory for each row and channel, or for all channels of a row where these are neighbours.


def _lines_of(images: Tensor, out: Tensor) -> tuple[Any, Any]:
    """The lines of one row and the channels of one line; strides of samples, lines, rows and pixels."""
    batch_stride, channel_stride, row_stride, pixel_stride = images.stride()
    channels = images.shape[1]
    if channels > 1 and out.stride(1) == 1 and out.stride(3) > 1:  # an output has the memory format of its images
        return (1, channels), (batch_stride, 0, row_stride, pixel_stride)
    return (channels, 1), (batch_stride, channel_stride, row_stride, pixel_stride)


@jit
def _read_line(
    line: Array, images: Array, start: int, ahead: int, pixel_stride: int, inner: int, begin: Any, end: Any, width: Any
) -> None:
    """Pixels from ``begin`` to ``end`` of a line; those so many elements ``ahead`` are fetched for the next row.

    Some pixels after ``end`` are written too, of which the next span of the line has better ones.
    """
    if pixel_stride == inner:
        prefetch_line(images, start + ahead + begin * inner, (end - begin) * inner)
        place, last, limit = unsigned(begin * inner), unsigned(end * inner), unsigned(width * inner)
        first, lanes = unsigned(start), unsigned(LANES)
        while place < last and place + lanes <= limit:
            store(line, place, load(images, first + place, LANES))
            place += lanes
        for n in range(place, last):
            line[n] = images[first + n]
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
def _is_chosen(label: Any, mask: int, chosen: Array) -> Any:
    """Without a branch: the last entry, 0, is that of what is no class."""
    return chosen[min(unsigned(np.int64(label) & mask), unsigned(chosen.size) - unsigned(1))] != 0


@jit
def _mark_chosen(labels: Array, width: int, mask: int, chosen: Array, inner: int, run_end: Array, marks: Array) -> Any:
    """Sets all bits of the elements of a line whose label is chosen, and none of the others; whether there are such."""
    end, some, bits, none = unsigned(width), False, ~marks.dtype.type(0), marks.dtype.type(0)
    if find_runs(labels, unsigned(0), end, run_end, end // unsigned(SHORT_RUN)):
        begin, run = unsigned(0), 0
        while begin < end:
            is_chosen = _is_chosen(labels[begin], mask, chosen)
            some |= is_chosen
            for x in range(begin, run_end[run]):
                marks[x] = bits if is_chosen else none
            begin = run_end[run]
            run += 1
    else:
        for x in range(end):
            is_chosen = _is_chosen(labels[x], mask, chosen)
            some |= is_chosen
            marks[x] = bits if is_chosen else none
    if inner > 1:
        for x in range(width - 1, -1, -1):
            for channel in range(inner):
                marks[unsigned(x * inner + channel)] = marks[unsigned(x)]
    return some


@jit
def _select(line: Array, own: Array, first: int, theirs: Array, other: int, marks: Array) -> None:
    first, other = unsigned(first), unsigned(other)
    for n in range(unsigned(line.size)):
        mine = own[first + n]
        line[n] = mine ^ ((mine ^ theirs[other + n]) & marks[n])


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
    row_of_labels = np.empty(width + MASK_BITS + 1, like_labels.dtype)
    scratch = np.empty((4, width * inner), like.dtype), row_of_labels, np.empty(width, np.uint64)
    where = partners, boxes, mask, label_strides, chosen
    _paste_rows_by(memory, strides, shape, where, (line_length, to_boundary), scratch, first, end)
    return True


@jit
def _paste_rows_by(
    memory: Any, strides: Any, shape: Any, where: Any, streams: Any, scratch: Any, first: int, end: int
) -> None:
    """The same, with memory for four lines, and for a row of labels and the ends of its runs."""
    (lines, inner, height, width), (line_length, to_boundary) = shape, streams
    out, images, labels = memory
    partners, boxes, mask, label_strides, chosen = borrowed(where)
    four_lines, row_of_labels, run_end = borrowed(scratch)
    own, theirs, mixed, marks = four_lines[0], four_lines[1], four_lines[2], four_lines[3]
    for place in range(first, end):
        sample, row = place // height, place % height
        partner = _partner_of(partners, sample)
        x0, x1, is_marked = 0, 0, False
        if boxes.size > 0:
            if boxes[4 * sample + 1] <= row < boxes[4 * sample + 3]:
                x0 = min(max(boxes[4 * sample], 0), width)
                x1 = min(max(boxes[4 * sample + 2], x0), width)
        elif partner != sample:
            start = partner * label_strides[0] + row * label_strides[1]
            _read_line(row_of_labels, labels, start, label_strides[1], label_strides[2], 1, 0, width, width)
            entries = chosen.size // partners.size
            classes = chosen[sample * entries : (sample + 1) * entries]
            is_marked = _mark_chosen(row_of_labels, width, mask, classes, inner, run_end, marks)
        for line in range(lines):
            mine = sample * strides[0] + line * strides[1] + row * strides[2]
            other = mine + (partner - sample) * strides[0]
            if not is_marked:
                for begin, stop, start in ((0, x0, mine), (x0, x1, other), (x1, width, mine)):
                    _read_line(mixed, images, start, strides[2], strides[3], inner, begin, stop, width)
            elif strides[3] == inner:
                prefetch_line(images, mine + strides[2], width * inner)
                prefetch_line(images, other + strides[2], width * inner)
                _select(mixed, images, mine, images, other, marks)
            else:
                _read_line(own, images, mine, strides[2], strides[3], inner, 0, width, width)
                _read_line(theirs, images, other, strides[2], strides[3], inner, 0, width, width)
                _select(mixed, own, 0, theirs, 0, marks)
            place_of_line = unsigned(((sample * lines + line) * height + row) * width * inner)
            write_line(out, place_of_line, mixed, unsigned(width * inner), unsigned(line_length), unsigned(to_boundary))
    fence()


def paste(
    out: Tensor,
    images: Tensor,
    partners: Tensor,
    boxes: Tensor | None,
    labels: Tensor | None,
    chosen: Tensor | None,
) -> None:
    """Writes `tritonsoft.backends.reference.paste`."""
    (lines, inner), strides = _lines_of(images, out)
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
        _NO_CLASSES if chosen is None else flat(F.pad(chosen.view(torch.uint8), (0, 1))),
        *streaming(out),
    )
    pool.run(lambda first, end: _paste_rows(*arguments, first, end), len(images) * size[0], _COPY * out.nbytes)


# --- blending --------------------------------------------------------------------------------------------------------


@jit
def _blend_line(line: Array, own: Array, first: int, theirs: Array, other: int, share: Any) -> None:
    one, first, other = type(share)(1), unsigned(first), unsigned(other)
    if share < 0.5:
        for n in range(unsigned(line.size)):
            mine, foreign = upcast(own[first + n]), upcast(theirs[other + n])
            line[n] = downcast(mine + share * (foreign - mine), line)
        return
    for n in range(unsigned(line.size)):
        mine, foreign = upcast(own[first + n]), upcast(theirs[other + n])
        line[n] = downcast(foreign - (one - share) * (foreign - mine), line)


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
    for place in range(first, end):
        sample, row = place // height, place % height
        partner, share = _partner_of(partners, sample), weight[sample]
        is_blended = partner != sample and share != 0 and share != 1
        for line in range(lines):
            mine = sample * strides[0] + line * strides[1] + row * strides[2]
            other = mine + (partner - sample) * strides[0]
            if is_blended and strides[3] == inner:
                prefetch_line(images, mine + strides[2], width * inner)
                prefetch_line(images, other + strides[2], width * inner)
                _blend_line(own, images, mine, images, other, share)
            else:
                # Of a whole share, the line is copied.
                start = other if share == 1 else mine
                _read_line(own, images, start, strides[2], strides[3], inner, 0, width, width)
                if is_blended:
                    _read_line(theirs, images, other, strides[2], strides[3], inner, 0, width, width)
                    _blend_line(own, own, 0, theirs, 0, share)
            place_of_line = unsigned(((sample * lines + line) * height + row) * width * inner)
            write_line(out, place_of_line, own, unsigned(width * inner), unsigned(line_length), unsigned(to_boundary))
    fence()


def blend(out: Tensor, images: Tensor, partners: Tensor, weight: Tensor) -> None:
    """Writes `tritonsoft.backends.reference.blend`."""
    (lines, inner), strides = _lines_of(images, out)
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
    in_range: bool = _blend_label_rows_by(
        epilogue, masses, labels, label_strides, shape, (partners, weight), ignore_index, tile, first, end
    )
    return in_range


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
