"""Soft labels of a row of outputs (any box, filter and scale).

The labels under the row are scanned for the set of classes that occur. Those that do are summed as `resampling` sums
the channels of an image, four classes at a time: a line holds the weight that a class has in each source column.
"""

import triton
import triton.language as tl

from tritonsoft.kernels.epilogues import apply_epilogue, epilogue_zero
from tritonsoft.kernels.geometry import tap_weight
from tritonsoft.kernels.resampling import add_along_row, group_position, group_weights, row_of_tile


@triton.jit
def bitwise_or(first, second):
    return first | second


@triton.jit
def int32_labels(labels):
    """Labels that an int32 cannot hold become -1, which is no class."""
    if labels.dtype == tl.int64:
        return tl.where((labels >> 31) == 0, labels, -1).to(tl.int32)
    else:
        return labels.to(tl.int32)


@triton.jit
def _load_labels(labels, labels_strides, row, start, in_width, BLOCK_SOURCE: tl.constexpr, OFFSET: tl.constexpr):
    NO_CLASS: tl.constexpr = 255 if labels.dtype.element_ty == tl.uint8 else -1
    columns = start + tl.arange(0, BLOCK_SOURCE)
    pointers = labels + tl.cast(row, OFFSET) * labels_strides[1] + columns.to(OFFSET) * labels_strides[2]
    return int32_labels(tl.load(pointers, mask=columns < in_width, other=NO_CLASS))


@triton.jit
def _classes_present(
    labels,
    labels_strides,
    source_rows,  # the first and the last
    extent,  # `resampling.tile_columns`
    in_width,
    num_classes,
    chunk,
    SET: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """A bit set of the classes, or chunks of 32 classes, that occur in a rectangle of the source, or close to it.

    SET is "classes" (where there are up to 32), "chunks" (modulo 32), or "chunk" (the classes of one of them). A class
    that does not occur may be in the set: counting it in vain costs time, but does no harm.
    """
    present = tl.zeros([BLOCK_SOURCE], tl.uint32)
    ONE: tl.constexpr = tl.full([], 1, tl.uint32)
    for line in range(0, extent[1]):
        start = extent[0] + line * BLOCK_SOURCE
        for source_row in range(source_rows[0], source_rows[1] + 1):
            label = _load_labels(labels, labels_strides, source_row, start, in_width, BLOCK_SOURCE, OFFSET)
            if SET == "classes":
                present |= ONE << (label & 31).to(tl.uint32)
            elif SET == "chunks":
                counts = (label >= 0) & (label < num_classes)
                present |= tl.where(counts, ONE << ((label >> 5) & 31).to(tl.uint32), 0)
            else:
                counts = (label ^ (chunk * 32)).to(tl.uint32) < 32
                present |= tl.where(counts, ONE << (label & 31).to(tl.uint32), 0)
    return tl.reduce(present, None, bitwise_or)


@triton.jit
def take_class(classes, first_class):
    """Take the lowest class from a bit set: its index, -1 if there is none, and what is left of the set."""
    lowest = classes & ((classes ^ 0xFFFFFFFF) + 1)
    exponent = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    return tl.where(classes == 0, -1, first_class + exponent), classes ^ lowest


@triton.jit
def _lines(
    classes,  # four
    labels,
    labels_strides,
    row,  # `resampling.row_of_tile`
    start,
    in_width,
    FILTER: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The weight of each of four classes in the columns from ``start`` on."""
    class0, class1, class2, class3 = classes
    first_row, last_row, distance, _, _, support = row
    line0 = tl.zeros([BLOCK_SOURCE], support.dtype)
    line1 = line0
    line2 = line0
    line3 = line0
    for source_row in range(first_row, last_row + 1):
        weight = tap_weight(distance + tl.cast(source_row - first_row, support.dtype), support, FILTER)
        label = _load_labels(labels, labels_strides, source_row, start, in_width, BLOCK_SOURCE, OFFSET)
        line0 = tl.where(label == class0, line0 + weight, line0)
        line1 = tl.where(label == class1, line1 + weight, line1)
        line2 = tl.where(label == class2, line2 + weight, line2)
        line3 = tl.where(label == class3, line3 + weight, line3)
    return line0, line1, line2, line3


@triton.jit
def _masses(
    classes,  # four; -1 where there are fewer
    labels,
    labels_strides,
    row,
    columns,
    extent,
    nearest,
    in_width,
    FILTER: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The masses of four classes in a row of outputs."""
    zeros = tl.zeros(columns[2].shape, columns[2].dtype)
    totals = (zeros, zeros, zeros, zeros)
    for line in range(0, extent[1]):
        start = extent[0] + line * BLOCK_SOURCE
        lines = _lines(classes, labels, labels_strides, row, start, in_width, FILTER, BLOCK_SOURCE, OFFSET)
        for group in range(0, extent[2]):
            position = group_position(group, start, columns, GROUP, BLOCK_SOURCE)
            weights = nearest
            if (group > 0) | (line > 0):
                weights = group_weights(position, group, start, columns, FILTER, GROUP)
            totals = add_along_row(totals, lines, position, weights, False)
    factor = columns[3] * row[3]
    return totals[0] * factor, totals[1] * factor, totals[2] * factor, totals[3] * factor


@triton.jit
def _count_classes(
    epilogue,
    state,
    present,  # bit set of the classes from `first_class` on
    first_class,
    end_class,
    outputs,
    first_output_row,
    out_width,
    steps,
    labels,
    labels_strides,
    rows,
    columns,
    extent,
    nearest,
    in_width,
    ignored_class,
    EPILOGUE: tl.constexpr,
    FILTER: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Hands the epilogue up to 32 classes; returns its last state."""
    exists = outputs < out_width
    present = present & (tl.full([], 0xFFFFFFFF, tl.uint32) >> (first_class + 32 - end_class).to(tl.uint32))
    if ignored_class >> 5 == first_class >> 5:
        ignored = tl.full([], 1, tl.uint32) << (ignored_class & 31).to(tl.uint32)
        present = (present | ignored) ^ ignored
    for class_index in range(first_class, end_class):
        if ((present >> (class_index & 31)) & 1) == 0:
            output_row = first_output_row + steps[0]
            pixels = (output_row, outputs, tl.cast(output_row, OFFSET) * out_width + outputs, exists)
            zeros = tl.zeros(columns[2].shape, columns[2].dtype)
            epilogue_zero(epilogue, state, class_index, zeros, pixels, True, EPILOGUE, OFFSET)
    while present != 0:
        class0, present = take_class(present, first_class)
        class1, present = take_class(present, first_class)
        class2, present = take_class(present, first_class)
        class3, present = take_class(present, first_class)
        classes = (class0, class1, class2, class3)
        for step in range(steps[0], steps[1]):
            masses = _masses(
                classes,
                labels,
                labels_strides,
                row_of_tile(rows, step),
                columns,
                extent,
                nearest,
                in_width,
                FILTER,
                GROUP,
                BLOCK_SOURCE,
                OFFSET,
            )
            output_row = first_output_row + step
            pixels = (output_row, outputs, tl.cast(output_row, OFFSET) * out_width + outputs, exists)
            for place in tl.static_range(4):
                state = apply_epilogue(
                    epilogue, state, classes[place], masses[place], pixels, classes[place] >= 0, EPILOGUE, OFFSET
                )
    return state


@triton.jit
def soft_rows(
    epilogue,
    state,
    outputs,  # columns, (BLOCK_W,)
    first_output_row,  # of the tile
    out_width,
    steps,  # the first row in the tile, and the one after the last
    labels,  # plane of this sample
    labels_strides,
    rows,  # `resampling.tile_rows`
    columns,  # `resampling.tile_columns`, like the next two
    extent,
    nearest,
    in_width,
    num_classes,
    ignored_class,
    EPILOGUE: tl.constexpr,
    FILTER: tl.constexpr,
    MANY_CLASSES: tl.constexpr,  # more than 32
    GROUP: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Hands the epilogue all classes, of some rows of a tile; returns its last state.

    An epilogue with a state of its own for each pixel gets one row at a time.
    """
    one_end = row_of_tile(rows, steps[0])
    other_end = row_of_tile(rows, steps[1] - 1)  # of a mirrored box that above
    under = (tl.minimum(one_end[0], other_end[0]), tl.maximum(one_end[1], other_end[1]))
    SETS: tl.constexpr = "chunks" if MANY_CLASSES else "classes"
    found = _classes_present(
        labels, labels_strides, under, extent, in_width, num_classes, 0, SETS, BLOCK_SOURCE, OFFSET
    )
    num_chunks = 1
    if MANY_CLASSES:
        num_chunks = tl.cdiv(num_classes, 32)
    for chunk in range(0, num_chunks):
        first_class = chunk * 32
        present = found
        if MANY_CLASSES:
            present = tl.full([], 0, tl.uint32)
            if ((found >> (chunk & 31)) & 1) != 0:
                present = _classes_present(
                    labels, labels_strides, under, extent, in_width, num_classes, chunk, "chunk", BLOCK_SOURCE, OFFSET
                )
        state = _count_classes(
            epilogue,
            state,
            present,
            first_class,
            tl.minimum(first_class + 32, num_classes),
            outputs,
            first_output_row,
            out_width,
            steps,
            labels,
            labels_strides,
            rows,
            columns,
            extent,
            nearest,
            in_width,
            ignored_class,
            EPILOGUE,
            FILTER,
            GROUP,
            BLOCK_SOURCE,
            OFFSET,
        )
    return state
