"""`crop_resize`, `soft_crop_resize` and both at once: one kernel, so that image and label share box and filter.

A program computes one tile of one sample: all its channels, then all its classes. Only the classes that occur under a
tile are counted, for the rest it writes zeros; a tile of a street scene holds 1 to 6 of 19 or 150 classes.

Two ways to count, chosen by the shapes:

**Dense** (whole image, area filter, factor 1, 2, 4 or 8): every output pixel has its own window of at most 8 x 8
labels. Each thread transposes the bits of its labels, so that one 32-bit word holds the same bit of up to 32 labels.
Classes go in groups of four that share all but their lowest two bits: six operations find which of 32 labels are of a
group, two more which are of one of its classes, and a population count sums them. A program is a single warp: finding
out that a group is absent takes one reduction inside the warp and no barrier.

**General** (any box, filter and scale): the labels under the tile are scanned once for the set of classes that occur,
then a loop over the taps gathers labels and adds weights, four classes at a time.
"""

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.conventions import Filter
from tritonsoft.kernels.convert import narrow, widen
from tritonsoft.kernels.geometry import axis_of_box, filter_reach, footprint, tap_weight
from tritonsoft.kernels.launch import (
    Launch,
    accumulator_type,
    offset_type,
    platform_of,
    power_of_two_factor,
    tap_loop_options,
    tile_shape,
)


@triton.jit
def _either(first, second):
    return first | second


# --- dense: bit planes of the labels in a window --------------------------------------------------------------------


@triton.jit
def _exchange(first, second, SHIFT: tl.constexpr, MASK: tl.constexpr):
    """One step of a bit-matrix transpose: swap the MASK bits of ``first``, SHIFT up, with those of ``second``."""
    crossed = ((first >> SHIFT) ^ second) & MASK
    return first ^ (crossed << SHIFT), second ^ crossed


@triton.jit
def _transpose_nibbles(row0, row1, row2, row3):
    """Transpose the 4 x 4 bits that each of the eight nibbles has in four words."""
    row0, row2 = _exchange(row0, row2, 2, 0x33333333)
    row1, row3 = _exchange(row1, row3, 2, 0x33333333)
    row0, row1 = _exchange(row0, row1, 1, 0x55555555)
    row2, row3 = _exchange(row2, row3, 1, 0x55555555)
    return row0, row1, row2, row3


@triton.jit
def _label_words(pointers, mask, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, FACTOR: tl.constexpr):
    """One row of every window as bytes in 32-bit words: ``(BLOCK_H, BLOCK_W, words)``; no class is 255."""
    labels = tl.load(pointers, mask=mask, other=0)  # (BLOCK_H, BLOCK_W * FACTOR)
    if labels.dtype != tl.uint8:
        labels = tl.where((labels >= 0) & (labels < 255), labels, 255)
    labels = labels.to(tl.uint32)
    BYTES: tl.constexpr = FACTOR if FACTOR < 4 else 4
    labels = tl.reshape(labels, [BLOCK_H, BLOCK_W, FACTOR // BYTES, BYTES])
    return tl.sum(labels << (8 * tl.arange(0, BYTES).to(tl.uint32)), axis=3)


@triton.jit
def _bit_planes(pointers, stride_y, mask, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, FACTOR: tl.constexpr):
    """Bits 0 to 7 of the labels of every window, each as words with one bit per label."""
    row0 = _label_words(pointers, mask, BLOCK_H, BLOCK_W, FACTOR)
    if FACTOR == 1:
        word = row0
    else:
        row1 = _label_words(pointers + stride_y, mask, BLOCK_H, BLOCK_W, FACTOR)
        word = row0 | (row1 << 16)
    if FACTOR <= 2:
        ONES: tl.constexpr = 0x01010101
        planes = (
            word & ONES,
            (word >> 1) & ONES,
            (word >> 2) & ONES,
            (word >> 3) & ONES,
            (word >> 4) & ONES,
            (word >> 5) & ONES,
            (word >> 6) & ONES,
            (word >> 7) & ONES,
        )
    else:
        row2 = _label_words(pointers + 2 * stride_y, mask, BLOCK_H, BLOCK_W, FACTOR)
        row3 = _label_words(pointers + 3 * stride_y, mask, BLOCK_H, BLOCK_W, FACTOR)
        if FACTOR == 8:
            row4 = _label_words(pointers + 4 * stride_y, mask, BLOCK_H, BLOCK_W, FACTOR)
            row5 = _label_words(pointers + 5 * stride_y, mask, BLOCK_H, BLOCK_W, FACTOR)
            row6 = _label_words(pointers + 6 * stride_y, mask, BLOCK_H, BLOCK_W, FACTOR)
            row7 = _label_words(pointers + 7 * stride_y, mask, BLOCK_H, BLOCK_W, FACTOR)
            row0, row4 = _exchange(row0, row4, 4, 0x0F0F0F0F)
            row1, row5 = _exchange(row1, row5, 4, 0x0F0F0F0F)
            row2, row6 = _exchange(row2, row6, 4, 0x0F0F0F0F)
            row3, row7 = _exchange(row3, row7, 4, 0x0F0F0F0F)
            row4, row5, row6, row7 = _transpose_nibbles(row4, row5, row6, row7)
        row0, row1, row2, row3 = _transpose_nibbles(row0, row1, row2, row3)
        if FACTOR == 4:
            row4, row5, row6, row7 = row0 >> 4, row1 >> 4, row2 >> 4, row3 >> 4
        planes = (row0, row1, row2, row3, row4, row5, row6, row7)
    return planes


@triton.jit
def _bit_equals(plane, group, BIT: tl.constexpr):
    """Which labels of a plane have there the same bit as ``group``."""
    return plane ^ (((tl.cast(group, tl.int32) >> BIT) & 1) - 1).to(tl.uint32)


@triton.jit
def _count_bits(word):
    # Written out, this is what LLVM knows as a population count; the interpreter has no such instruction.
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    return (((word + (word >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24


@triton.jit
def _soft_tile_dense(
    soft,  # plane of class 0 of this sample
    plane_size,
    labels,  # plane of this sample
    labels_strides,
    row,
    column,
    out_height,
    out_width,
    num_classes,
    ignored_class,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    rows = row + tl.arange(0, BLOCK_H)[:, None]
    columns = column + tl.arange(0, BLOCK_W)[None, :]
    inside = (rows < out_height) & (columns < out_width)
    offsets = rows.to(OFFSET) * out_width + columns  # (BLOCK_H, BLOCK_W)
    source_rows = rows * FACTOR
    source_columns = column * FACTOR + tl.arange(0, BLOCK_W * FACTOR)[None, :]
    pointers = labels + source_rows.to(OFFSET) * labels_strides[1] + source_columns.to(OFFSET) * labels_strides[2]
    mask = (source_rows < out_height * FACTOR) & (source_columns < out_width * FACTOR)
    plane0, plane1, plane2, plane3, plane4, plane5, plane6, plane7 = _bit_planes(
        pointers, tl.cast(labels_strides[1], OFFSET), mask, BLOCK_H, BLOCK_W, FACTOR
    )
    ALL: tl.constexpr = 0xFFFFFFFF
    WINDOW: tl.constexpr = 0x01 if FACTOR == 1 else 0x01010101 if FACTOR == 2 else 0x0F0F0F0F if FACTOR == 4 else ALL
    for group in range(0, tl.cdiv(num_classes, 4)):
        members = WINDOW & _bit_equals(plane2, group, 0) & _bit_equals(plane3, group, 1) & _bit_equals(plane4, group, 2)
        members &= _bit_equals(plane5, group, 3) & _bit_equals(plane6, group, 4) & _bit_equals(plane7, group, 5)
        if tl.max(members) != 0:
            for low in tl.static_range(4):
                class_index = group * 4 + low
                matches = members & (plane0 if low & 1 else plane0 ^ ALL) & (plane1 if low & 2 else plane1 ^ ALL)
                count = tl.sum(_count_bits(matches).to(tl.int32), axis=2)  # (BLOCK_H, BLOCK_W)
                share = tl.where(class_index == ignored_class, 0.0, 1 / (FACTOR * FACTOR))
                mass = narrow(count.to(tl.float32) * share, soft.dtype.element_ty)
                tl.store(soft + class_index * plane_size + offsets, mass, mask=inside & (class_index < num_classes))
        else:
            zeros = tl.zeros([BLOCK_H, BLOCK_W], soft.dtype.element_ty)
            for low in tl.static_range(4):
                class_index = group * 4 + low
                tl.store(soft + class_index * plane_size + offsets, zeros, mask=inside & (class_index < num_classes))


# --- general: a loop over the taps of every footprint ---------------------------------------------------------------


@triton.jit
def _tap(step, taps, reach, stride, in_size, FILTER: tl.constexpr, OFFSET: tl.constexpr):
    """Weight and memory offset of the step-th tap of every footprint; weight 0 where a footprint has fewer taps."""
    first, last, distance, _, _ = taps
    tap = first + step
    weight = tap_weight(distance + step, reach, FILTER)
    return tl.where(tap <= last, weight, 0.0), tl.minimum(tap, in_size - 1).to(OFFSET) * stride


@triton.jit
def _wider(first, last, length, other_first, other_last, other_length):
    return tl.minimum(first, other_first), tl.maximum(last, other_last), tl.maximum(length, other_length)


@triton.jit
def _extent(taps):
    """The first and the last tap of all footprints of a tile, and the largest number of taps of one of them."""
    first, last, _, _, _ = taps
    return tl.reduce((first, last, last - first + 1), 0, _wider)


@triton.jit
def _int32_labels(labels):
    """Labels that an int32 cannot hold become -1, which is no class."""
    if labels.dtype == tl.int64:
        return tl.where((labels >> 31) == 0, labels, -1).to(tl.int32)
    else:
        return labels.to(tl.int32)


@triton.jit
def _classes_present(
    labels,
    labels_strides,
    rectangle,  # of the source: first and last row, first and last column
    in_width,
    num_classes,
    chunk,
    ALL_CHUNKS: tl.constexpr,
    SCAN_H: tl.constexpr,
    SCAN_W: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """A bit set of the classes ``32 * chunk .. 32 * chunk + 31`` that occur in a rectangle, or close to it.

    With ALL_CHUNKS a bit set of the chunks that occur instead, modulo 32.
    """
    first_row, last_row, first_column, last_column = rectangle
    # Columns are read in aligned groups of 16, for wide loads: counting a class in vain costs time, but does no harm.
    first_column = first_column // 16 * 16
    end_column = (last_column // 16 + 1) * 16
    NO_CLASS: tl.constexpr = 255 if labels.dtype.element_ty == tl.uint8 else -1
    present = tl.zeros([SCAN_H, SCAN_W], tl.uint32)
    for row in range(first_row, last_row + 1, SCAN_H):
        for column in range(first_column, end_column, SCAN_W):
            rows = row + tl.arange(0, SCAN_H)[:, None]
            columns = column + tl.arange(0, SCAN_W)[None, :]
            pointers = labels + rows.to(OFFSET) * labels_strides[1] + columns.to(OFFSET) * labels_strides[2]
            mask = (rows <= last_row) & (columns < end_column) & (columns < in_width)
            label = _int32_labels(tl.load(pointers, mask=mask, other=NO_CLASS))
            if ALL_CHUNKS:
                bit = label >> 5
                counts = (label >= 0) & (label < num_classes)
            else:
                bit = label
                counts = (label >> 5) == chunk
            present |= tl.where(counts, tl.full([], 1, tl.uint32) << (bit & 31).to(tl.uint32), 0)
    return tl.reduce(present, None, _either)


@triton.jit
def _take_class(classes, first_class):
    """Take the lowest class from a bit set: its index, -1 if there is none, and what is left of the set."""
    lowest = classes & ((classes ^ 0xFFFFFFFF) + 1)
    exponent = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    return tl.where(classes == 0, -1, first_class + exponent), classes ^ lowest


@triton.jit
def _soft_tile(
    soft,  # plane of class 0 of this sample
    plane_size,
    offsets,  # (PIXELS,) in a plane
    inside,
    labels,  # plane of this sample
    labels_strides,
    taps_y,  # footprints (PIXELS,)
    taps_x,  # footprints (PIXELS,)
    reach_y,
    reach_x,
    in_height,
    in_width,
    num_classes,
    ignored_class,
    FILTER: tl.constexpr,
    PIXELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    dtype = soft.dtype.element_ty
    first_row, last_row, num_taps_y = _extent(taps_y)
    first_column, last_column, num_taps_x = _extent(taps_x)
    rectangle = (first_row, last_row, first_column, last_column)
    scale = taps_y[3] * taps_x[3]
    SCAN_H: tl.constexpr = 8
    SCAN_W: tl.constexpr = 128
    chunks = tl.full([], 1, tl.uint32)
    if num_classes > 32:
        chunks = _classes_present(
            labels, labels_strides, rectangle, in_width, num_classes, 0, True, SCAN_H, SCAN_W, OFFSET
        )
    for chunk in range(0, tl.cdiv(num_classes, 32)):
        first_class = chunk * 32
        end_class = tl.minimum(first_class + 32, num_classes)
        present = tl.full([], 0, tl.uint32)
        if ((chunks >> (chunk & 31)) & 1) != 0:
            present = _classes_present(
                labels, labels_strides, rectangle, in_width, num_classes, chunk, False, SCAN_H, SCAN_W, OFFSET
            )
            present = present & (tl.full([], 0xFFFFFFFF, tl.uint32) >> (first_class + 32 - end_class).to(tl.uint32))
            if ignored_class >> 5 == chunk:
                ignored = tl.full([], 1, tl.uint32) << (ignored_class & 31).to(tl.uint32)
                present = (present | ignored) ^ ignored
        for class_index in range(first_class, end_class):
            if ((present >> (class_index & 31)) & 1) == 0:
                tl.store(soft + class_index * plane_size + offsets, tl.zeros([PIXELS], dtype), mask=inside)

        while present != 0:
            class0, present = _take_class(present, first_class)
            class1, present = _take_class(present, first_class)
            class2, present = _take_class(present, first_class)
            class3, present = _take_class(present, first_class)
            mass0 = tl.zeros([PIXELS], ACCUMULATOR)
            mass1 = tl.zeros([PIXELS], ACCUMULATOR)
            mass2 = tl.zeros([PIXELS], ACCUMULATOR)
            mass3 = tl.zeros([PIXELS], ACCUMULATOR)
            for step_y in range(0, num_taps_y):
                weight_y, offset_y = _tap(step_y, taps_y, reach_y, labels_strides[1], in_height, FILTER, OFFSET)
                for step_x in range(0, num_taps_x):
                    weight_x, offset_x = _tap(step_x, taps_x, reach_x, labels_strides[2], in_width, FILTER, OFFSET)
                    weight = weight_y * weight_x
                    label = _int32_labels(tl.load(labels + (offset_y + offset_x)))
                    mass0 = tl.where(label == class0, mass0 + weight, mass0)
                    mass1 = tl.where(label == class1, mass1 + weight, mass1)
                    mass2 = tl.where(label == class2, mass2 + weight, mass2)
                    mass3 = tl.where(label == class3, mass3 + weight, mass3)
            tl.store(soft + class0 * plane_size + offsets, narrow(mass0 * scale, dtype), mask=inside)
            tl.store(soft + class1 * plane_size + offsets, narrow(mass1 * scale, dtype), mask=inside & (class1 >= 0))
            tl.store(soft + class2 * plane_size + offsets, narrow(mass2 * scale, dtype), mask=inside & (class2 >= 0))
            tl.store(soft + class3 * plane_size + offsets, narrow(mass3 * scale, dtype), mask=inside & (class3 >= 0))


# --- image ----------------------------------------------------------------------------------------------------------


@triton.jit
def _image_tile(
    out,  # this sample
    out_strides,
    image,  # this sample
    image_strides,
    rows,  # of the output, (PIXELS,)
    columns,
    inside,
    taps_y,  # footprints (PIXELS,)
    taps_x,  # footprints (PIXELS,)
    reach_y,
    reach_x,
    in_height,
    in_width,
    channels,
    fill,
    FILTER: tl.constexpr,
    PIXELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    dtype = out.dtype.element_ty
    offsets = rows.to(OFFSET) * out_strides[2] + columns.to(OFFSET) * out_strides[3]
    _, _, num_taps_y = _extent(taps_y)
    _, _, num_taps_x = _extent(taps_x)
    scale = taps_y[3] * taps_x[3]
    if image.dtype.element_ty == tl.uint8 and dtype != tl.uint8:
        scale = scale / 255
    outside = 1 - taps_y[4] * taps_x[4]
    # Selected, not multiplied: an infinite fill must not reach the pixels that are wholly inside.
    padding = tl.where(outside > 0, outside * (tl.zeros([], tl.float64) + fill).to(ACCUMULATOR), 0.0)
    for channel in range(0, channels):
        plane = image + tl.cast(channel, tl.int64) * image_strides[1]
        total = tl.zeros([PIXELS], ACCUMULATOR)
        for step_y in range(0, num_taps_y):
            weight_y, offset_y = _tap(step_y, taps_y, reach_y, image_strides[2], in_height, FILTER, OFFSET)
            for step_x in range(0, num_taps_x):
                weight_x, offset_x = _tap(step_x, taps_x, reach_x, image_strides[3], in_width, FILTER, OFFSET)
                value = widen(tl.load(plane + (offset_y + offset_x)), ACCUMULATOR)
                weight = weight_y * weight_x
                total = tl.where(weight > 0, total + value * weight, total)  # a tap without weight may be infinite
        total = total * scale + padding
        tl.store(out + tl.cast(channel, tl.int64) * out_strides[1] + offsets, narrow(total, dtype), mask=inside)


@triton.jit(
    do_not_specialize=[
        "in_height",
        "in_width_units",
        "out_height",
        "out_width_units",
        "channels",
        "num_classes",
        "ignored_class",
    ]
)
def crop_resize_kernel(
    out,  # (B, K, h, w), or None where there is no image
    out_strides,
    image,  # (B, K, H, W), or None
    image_strides,
    soft,  # (B, C, h, w), contiguous, or None where there is no label map
    labels,  # (B, H, W), or None
    labels_strides,
    boxes,  # (B, 4), or None for the whole image
    boxes_strides,
    in_height,
    in_width_units,
    out_height,
    out_width_units,
    channels,
    num_classes,
    ignored_class,
    fill: tl.float64,
    FILTER: tl.constexpr,
    DENSE_FACTOR: tl.constexpr,  # 0: the general way to count labels
    IN_WIDTH_UNIT: tl.constexpr,
    OUT_WIDTH_UNIT: tl.constexpr,  # neighbouring outputs that one store may take
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,  # the integer that holds an offset inside one plane
):
    # Written as a product, a width is known to be divisible: masks and rows keep the alignment of wide accesses.
    in_width = in_width_units * IN_WIDTH_UNIT
    out_width = out_width_units * OUT_WIDTH_UNIT
    tiles_x = tl.cdiv(out_width, BLOCK_W)
    tiles_y = tl.cdiv(out_height, BLOCK_H)
    tile = tl.program_id(0)
    column = tile % tiles_x * BLOCK_W
    row = tile // tiles_x % tiles_y * BLOCK_H
    sample = tile // tiles_x // tiles_y
    sample_offset = sample.to(tl.int64)
    # A tile is one list of pixels, and a thread's pixels lie below one another: the compiler sees that they share what
    # belongs to their column. Loops over taps gather and store one pixel per thread and instruction: stores that claim
    # no neighbours (`max_contiguous`) save Triton moving every tap from the layout of the gather to that of the store.
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    rows = row + pixel // BLOCK_W
    columns = tl.max_contiguous(column + pixel % BLOCK_W, 1)
    inside = (rows < out_height) & (columns < out_width)

    if image is not None or DENSE_FACTOR == 0:
        box_y = axis_of_box(boxes, boxes_strides, sample_offset, 1, in_height)
        box_x = axis_of_box(boxes, boxes_strides, sample_offset, 0, in_width)
        reach_y = filter_reach(box_y, out_height, FILTER).to(ACCUMULATOR)
        reach_x = filter_reach(box_x, out_width, FILTER).to(ACCUMULATOR)
        taps_y = footprint(tl.minimum(rows, out_height - 1), box_y, out_height, in_height, FILTER, ACCUMULATOR)
        taps_x = footprint(tl.minimum(columns, out_width - 1), box_x, out_width, in_width, FILTER, ACCUMULATOR)
        if image is not None:
            _image_tile(
                out + sample_offset * out_strides[0],
                out_strides,
                image + sample_offset * image_strides[0],
                image_strides,
                rows,
                columns,
                inside,
                taps_y,
                taps_x,
                reach_y,
                reach_x,
                in_height,
                in_width,
                channels,
                fill,
                FILTER,
                BLOCK_H * BLOCK_W,
                ACCUMULATOR,
                OFFSET,
            )
    if labels is not None:
        plane_size = out_height.to(tl.int64) * out_width
        soft_sample = soft + sample_offset * num_classes * plane_size
        labels_sample = labels + sample_offset * labels_strides[0]
        if DENSE_FACTOR > 0:
            _soft_tile_dense(
                soft_sample,
                plane_size,
                labels_sample,
                labels_strides,
                row,
                column,
                out_height,
                out_width,
                num_classes,
                ignored_class,
                BLOCK_H,
                BLOCK_W,
                DENSE_FACTOR,
                OFFSET,
            )
        else:
            _soft_tile(
                soft_sample,
                plane_size,
                rows.to(OFFSET) * out_width + columns,
                inside,
                labels_sample,
                labels_strides,
                taps_y,
                taps_x,
                reach_y,
                reach_x,
                in_height,
                in_width,
                num_classes,
                ignored_class,
                FILTER,
                BLOCK_H * BLOCK_W,
                ACCUMULATOR,
                OFFSET,
            )


# --- launch ---------------------------------------------------------------------------------------------------------


def _dense_factor(
    labels: Tensor | None, boxes: Tensor | None, size: tuple[int, int], num_classes: int, filter: Filter
) -> int:
    """The integer factor of the dense path, 0 for the general one."""
    if labels is None or boxes is not None or filter != "area" or num_classes > 255:
        return 0
    factor = labels.shape[1] // size[0]
    dense = factor in (1, 2, 4, 8) and tuple(labels.shape[1:]) == (factor * size[0], factor * size[1])
    return factor if dense else 0


def launch_configuration(
    out: Tensor | None,
    image: Tensor | None,
    soft: Tensor | None,
    labels: Tensor | None,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    fill: float,
    platform: str,
) -> Launch:
    """What to launch for these tensors; only their shapes, strides and types matter."""
    result, source = (soft, labels) if soft is not None else (out, image)
    assert result is not None
    assert source is not None
    (height, width), (in_height, in_width) = result.shape[-2:], source.shape[-2:]
    num_classes = soft.shape[1] if soft is not None else 0
    factor = _dense_factor(labels, boxes, (height, width), num_classes, filter)
    accumulator = accumulator_type(out, image, soft)
    if factor > 0:
        # A warp takes one tile. 16 bytes are what a thread loads or stores at once, whichever fills up first.
        per_thread = min(16 // factor, 16 // result.element_size(), 8)
        options, elements, unit = {"num_warps": 1}, (64 if platform == "hip" else 32) * per_thread, per_thread
    else:
        options, elements, unit = tap_loop_options(platform, accumulator), 1024, 1
    block_h, block_w = tile_shape(height, width, elements)
    # Each unit is a kernel of its own: source widths only tell those apart that allow the widest loads.
    in_unit, out_unit = 16 if in_width % 16 == 0 else 1, power_of_two_factor(width, unit)
    return Launch(
        crop_resize_kernel,
        (triton.cdiv(height, block_h) * triton.cdiv(width, block_w) * result.shape[0],),
        {
            "out": out,
            "out_strides": None if out is None else out.stride(),
            "image": image,
            "image_strides": None if image is None else image.stride(),
            "soft": soft,
            "labels": labels,
            "labels_strides": None if labels is None else labels.stride(),
            "boxes": boxes,
            "boxes_strides": None if boxes is None else boxes.stride(),
            "in_height": in_height,
            "in_width_units": in_width // in_unit,
            "out_height": height,
            "out_width_units": width // out_unit,
            "channels": image.shape[1] if image is not None else 0,
            "num_classes": num_classes,
            # Labels outside 0 .. C-1 carry no mass anyway; only an ignored class needs to be known.
            "ignored_class": ignore_index if 0 <= ignore_index < num_classes else -1,
            "fill": float(fill),
            "FILTER": filter,
            "DENSE_FACTOR": factor,
            "IN_WIDTH_UNIT": in_unit,
            "OUT_WIDTH_UNIT": out_unit,
            "BLOCK_H": block_h,
            "BLOCK_W": block_w,
            "ACCUMULATOR": accumulator,
            "OFFSET": offset_type(out, image, soft, labels),
        },
        options,
    )


def crop_resize(out: Tensor, image: Tensor, boxes: Tensor | None, filter: Filter, fill: float) -> None:
    """Image ``(B, K, H, W)`` -> ``out (B, K, h, w)``."""
    platform = platform_of(out.device)
    launch_configuration(out, image, None, None, boxes, -1, filter, fill, platform).run(out.device)


def soft_crop_resize(out: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, filter: Filter) -> None:
    """Label map ``(B, H, W)`` -> soft label ``out (B, C, h, w)``."""
    platform = platform_of(out.device)
    launch_configuration(None, None, out, labels, boxes, ignore_index, filter, 0.0, platform).run(out.device)


def crop_resize_pair(
    out: Tensor,
    out_soft: Tensor,
    image: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    fill: float,
) -> None:
    """Image and label map through the same boxes, in one launch."""
    platform = platform_of(out.device)
    launch_configuration(out, image, out_soft, labels, boxes, ignore_index, filter, fill, platform).run(out.device)
