"""Soft labels of a tile in general (any box, filter and scale), by a loop over the taps of every footprint.

The labels under the tile are scanned once for the set of classes that occur. The loop over the taps then gathers labels
and adds weights, four classes at a time.
"""

import triton
import triton.language as tl

from tritonsoft.kernels.epilogues import apply_epilogue, epilogue_zero
from tritonsoft.kernels.geometry import tap_of


@triton.jit
def _bitwise_or(first, second):
    return first | second


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
    return tl.reduce(present, None, _bitwise_or)


@triton.jit
def _take_class(classes, first_class):
    """Take the lowest class from a bit set: its index, -1 if there is none, and what is left of the set."""
    lowest = classes & ((classes ^ 0xFFFFFFFF) + 1)
    exponent = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    return tl.where(classes == 0, -1, first_class + exponent), classes ^ lowest


@triton.jit
def soft_tile(
    epilogue,
    state,
    pixels,  # (BLOCK_HW,)
    labels,  # plane of this sample
    labels_strides,
    taps_y,  # footprints (BLOCK_HW,)
    taps_x,  # footprints (BLOCK_HW,)
    extent_y,
    extent_x,
    support_y,
    support_x,
    in_height,
    in_width,
    num_classes,
    ignored_class,
    EPILOGUE: tl.constexpr,
    FILTER: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Hands the epilogue all classes; returns its last state."""
    first_row, last_row, num_taps_y = extent_y
    first_column, last_column, num_taps_x = extent_x
    rectangle = (first_row, last_row, first_column, last_column)
    inverse_weight_sum = taps_y[3] * taps_x[3]
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
                zeros = tl.zeros([BLOCK_HW], ACCUMULATOR)
                epilogue_zero(epilogue, state, class_index, zeros, pixels, True, EPILOGUE, OFFSET)

        while present != 0:
            class0, present = _take_class(present, first_class)
            class1, present = _take_class(present, first_class)
            class2, present = _take_class(present, first_class)
            class3, present = _take_class(present, first_class)
            mass0 = tl.zeros([BLOCK_HW], ACCUMULATOR)
            mass1 = tl.zeros([BLOCK_HW], ACCUMULATOR)
            mass2 = tl.zeros([BLOCK_HW], ACCUMULATOR)
            mass3 = tl.zeros([BLOCK_HW], ACCUMULATOR)
            for step_y in range(0, num_taps_y):
                weight_y, offset_y = tap_of(step_y, taps_y, support_y, labels_strides[1], in_height, FILTER, OFFSET)
                for step_x in range(0, num_taps_x):
                    weight_x, offset_x = tap_of(step_x, taps_x, support_x, labels_strides[2], in_width, FILTER, OFFSET)
                    weight = weight_y * weight_x
                    label = _int32_labels(tl.load(labels + (offset_y + offset_x)))
                    mass0 = tl.where(label == class0, mass0 + weight, mass0)
                    mass1 = tl.where(label == class1, mass1 + weight, mass1)
                    mass2 = tl.where(label == class2, mass2 + weight, mass2)
                    mass3 = tl.where(label == class3, mass3 + weight, mass3)
            state = apply_epilogue(epilogue, state, class0, mass0 * inverse_weight_sum, pixels, True, EPILOGUE, OFFSET)
            state = apply_epilogue(
                epilogue, state, class1, mass1 * inverse_weight_sum, pixels, class1 >= 0, EPILOGUE, OFFSET
            )
            state = apply_epilogue(
                epilogue, state, class2, mass2 * inverse_weight_sum, pixels, class2 >= 0, EPILOGUE, OFFSET
            )
            state = apply_epilogue(
                epilogue, state, class3, mass3 * inverse_weight_sum, pixels, class3 >= 0, EPILOGUE, OFFSET
            )
    return state
