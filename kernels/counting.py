"""Soft labels of a tile of output pixels, class by class: counted from the label map and handed to a sink.

A sink is what becomes of the masses: they are stored, or the largest of them kept, or they go straight into a loss that
never has the soft label in memory. Only the classes that occur under a tile are counted, the sink hears of the others
that they are absent; a tile of a street scene holds 1 to 6 of 19 or 150 classes.

Two ways to count, chosen by the shapes:

**Dense** (whole image, area filter, factor 1, 2, 4 or 8): every output pixel has its own window of at most 8 x 8
labels. Each thread transposes the bits of its labels, so that one 32-bit word holds the same bit of up to 32 labels.
Classes go in blocks of 16 that share their upper four bits, and these in groups of four: four operations find which of
32 labels are of a block, two more which of a group, two more which of a class, and a population count sums them.
A program is a single warp: finding out that a block or a group is absent takes one reduction inside the warp and no
barrier.

**General** (any box, filter and scale): the labels under the tile are scanned once for the set of classes that occur,
then a loop over the taps gathers labels and adds weights, four classes at a time.
"""

import triton
import triton.language as tl

from tritonsoft.kernels.convert import exponential, narrow, widen
from tritonsoft.kernels.geometry import tap_of


@triton.jit
def _either(first, second):
    return first | second


# --- sinks -----------------------------------------------------------------------------------------------------------
#
# What a sink knows of the tile as a whole is in `sink`, pointers to planes of class 0 of this sample among it; what it
# knows of each pixel is in `state`. `pixels` are rows, columns, offsets in a contiguous plane, and which of them exist.
#
#   SINK         sink                                                            state
#   "mass"       the soft label, plane size, offsets and existence of the pixels
#                in an order that suits stores of zeros                          none
#   "pyramid"    the soft labels, finest first, height and width of the finest,
#                first row and column of the tile                                none
#   "top"        none                                                            mass that did not fit, k largest keys
#   "loss"       logits, their strides, class weights, their stride              loss, mass, logsumexp
#   "gradient"   the same, the gradient, its strides                             scale of the loss (0 without mass), the
#                                                                                same times mass, logsumexp


# A key orders masses, and equal masses by smaller class; it is negative where there is no mass. The bits of a positive
# float32 order like integers; the class, counted downwards, goes below them. Masses that are multiples of 1/64 leave
# their lowest 17 bits free, so that class and mass fit into 32 bits.
_FREE = tl.constexpr(0x1FFFF)


@triton.jit
def _key(mass, class_index, WIDE: tl.constexpr):
    bits = mass.to(tl.int32, bitcast=True)
    wide = (bits.to(tl.int64) << 32) | (0x7FFFFFFF - class_index)
    return tl.where(mass > 0, wide if WIDE else bits | (_FREE - class_index), -1)


@triton.jit
def mass_of_key(key):
    bits = key & ~_FREE if key.dtype == tl.int32 else (key >> 32).to(tl.int32)
    return tl.where(key < 0, 0, bits).to(tl.float32, bitcast=True)


@triton.jit
def class_of_key(key):
    label = _FREE - (key & _FREE) if key.dtype == tl.int32 else (0x7FFFFFFF - (key & 0x7FFFFFFF)).to(tl.int32)
    return tl.where(key < 0, 0, label)


@triton.jit
def _half_size(mass):
    """The means of 2 x 2 neighbours."""
    quarters = tl.reshape(mass, [mass.shape[0] // 2, 2, mass.shape[1] // 2, 2])
    return tl.sum(tl.sum(quarters, axis=3), axis=1) * 0.25


@triton.jit
def _store_pyramid(sink, class_index, mass, exists):
    levels, height, width, row, column = sink
    for level in tl.static_range(len(levels)):
        if level > 0:
            mass = _half_size(mass)
        rows = (row >> level) + tl.arange(0, mass.shape[0])[:, None]
        columns = (column >> level) + tl.arange(0, mass.shape[1])[None, :]
        level_height, level_width = height >> level, width >> level
        plane = levels[level] + class_index * (level_height.to(tl.int64) * level_width)
        mask = (rows < level_height) & (columns < level_width) & exists
        tl.store(plane + rows * level_width + columns, narrow(mass, levels[level].dtype.element_ty), mask=mask)


@triton.jit
def plane_offsets(pixels, strides, OFFSET: tl.constexpr):
    """Where the pixels lie in a plane of a tensor ``(B, C, h, w)``."""
    return pixels[0].to(OFFSET) * strides[2] + pixels[1].to(OFFSET) * strides[3]


@triton.jit
def load_logits(logits, strides, pixels, class_index, mask, ACCUMULATOR: tl.constexpr, OFFSET: tl.constexpr):
    """The logits of a class; undefined where ``mask`` is not set."""
    plane = logits + tl.cast(class_index, tl.int64) * strides[1]
    return widen(tl.load(plane + plane_offsets(pixels, strides, OFFSET), mask=mask), ACCUMULATOR)


@triton.jit
def _predicted(sink, state, class_index, pixels, inside, OFFSET: tl.constexpr):
    """The part of the gradient that no label has: the share of the mass that the logits give to a class."""
    _, pull, lse = state
    DTYPE: tl.constexpr = pull.dtype
    logit = load_logits(sink[0], sink[1], pixels, class_index, inside, DTYPE, OFFSET)
    return pull * exponential(logit - lse)


@triton.jit
def _class_weight(sink, class_index, exists):
    return tl.load(sink[2] + class_index.to(tl.int64) * sink[3], mask=exists, other=0.0)


@triton.jit
def _store_gradient(sink, state, class_index, value, pixels, inside, OFFSET: tl.constexpr):
    gradient, strides = sink[4], sink[5]
    plane = gradient + tl.cast(class_index, tl.int64) * strides[1]
    value = tl.where(state[0] != 0, value, 0.0)  # also where a logit is not a number
    tl.store(plane + plane_offsets(pixels, strides, OFFSET), narrow(value, gradient.dtype.element_ty), mask=inside)


@triton.jit
def _deliver(
    sink,
    state,
    class_index,
    mass,
    pixels,
    exists,  # whether there is such a class
    SINK: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Gives a sink the masses of one class in the pixels of a tile; returns its new state."""
    inside = pixels[3] & exists
    if SINK == "mass":
        soft, plane_size, _, _ = sink
        tl.store(soft + class_index * plane_size + pixels[2], narrow(mass, soft.dtype.element_ty), mask=inside)
    elif SINK == "pyramid":
        _store_pyramid(sink, class_index, mass, exists)
    elif SINK == "gradient":
        mass = mass.to(state[0].dtype)
        if sink[2] is not None:
            mass *= _class_weight(sink, class_index, exists)
        value = _predicted(sink, state, class_index, pixels, inside, OFFSET) - state[0] * mass
        _store_gradient(sink, state, class_index, value, pixels, inside, OFFSET)
    elif SINK == "top":
        rest, keys = state
        candidate = _key(tl.where(inside, mass, 0.0), class_index, keys[0].dtype == tl.int64)
        kept = ()
        for place in tl.static_range(len(keys)):
            kept = kept + (tl.maximum(keys[place], candidate),)  # noqa: RUF005 - Triton unpacks nothing here
            candidate = tl.minimum(keys[place], candidate)
        state = (rest + mass_of_key(candidate), kept)
    else:
        logits, strides, weights, _ = sink
        loss, total, lse = state
        ACCUMULATOR: tl.constexpr = lse.dtype
        mass = tl.where(inside, mass, 0.0).to(ACCUMULATOR)
        if weights is not None:
            mass *= _class_weight(sink, class_index, exists)
        logit = load_logits(logits, strides, pixels, class_index, mass > 0, ACCUMULATOR, OFFSET)
        state = (tl.where(mass > 0, loss + mass * (lse - logit), loss), total + mass, lse)
    return state


@triton.jit
def _deliver_absent(sink, state, class_index, zeros, pixels, exists, SINK: tl.constexpr, OFFSET: tl.constexpr):
    """`_deliver` of a class without mass, for sinks that need to hear of it."""
    inside = pixels[3] & exists
    if SINK == "mass":
        soft, plane_size, offsets, here = sink
        nothing = tl.zeros(offsets.shape, soft.dtype.element_ty)
        tl.store(soft + class_index * plane_size + offsets, nothing, mask=here & exists)
    elif SINK == "pyramid":
        _store_pyramid(sink, class_index, zeros, exists)
    elif SINK == "gradient":
        value = _predicted(sink, state, class_index, pixels, inside, OFFSET)
        _store_gradient(sink, state, class_index, value, pixels, inside, OFFSET)


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
def _of_block(planes, block, WINDOW: tl.constexpr):
    """Which labels are among the classes ``16 * block .. 16 * block + 15``."""
    _, _, _, _, plane4, plane5, plane6, plane7 = planes
    near = WINDOW & _bit_equals(plane4, block, 0) & _bit_equals(plane5, block, 1)
    return near & _bit_equals(plane6, block, 2) & _bit_equals(plane7, block, 3)


@triton.jit
def _deliver_group(
    sink,
    state,
    group,
    near,  # which labels are of the group's block
    planes,
    pixels,  # (BLOCK_H, BLOCK_W)
    num_classes,
    ignored_class,
    SINK: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Hands the sink the classes ``4 * group .. 4 * group + 3``; returns its new state."""
    plane0, plane1, plane2, plane3, _, _, _, _ = planes
    ALL: tl.constexpr = 0xFFFFFFFF
    members = near & _bit_equals(plane2, group, 0) & _bit_equals(plane3, group, 1)
    if tl.max(members) != 0:
        for low in tl.static_range(4):
            class_index = group * 4 + low
            matches = members & (plane0 if low & 1 else plane0 ^ ALL) & (plane1 if low & 2 else plane1 ^ ALL)
            count = tl.sum(_count_bits(matches).to(tl.int32), axis=2)  # (BLOCK_H, BLOCK_W)
            share = tl.where(class_index == ignored_class, 0.0, 1 / (FACTOR * FACTOR))
            mass = count.to(tl.float32) * share
            state = _deliver(sink, state, class_index, mass, pixels, class_index < num_classes, SINK, OFFSET)
    else:
        zeros = tl.zeros(pixels[2].shape, tl.float32)
        for low in tl.static_range(4):
            class_index = group * 4 + low
            _deliver_absent(sink, state, class_index, zeros, pixels, class_index < num_classes, SINK, OFFSET)
    return state


@triton.jit
def soft_tile_dense(
    sink,
    state,
    pixels,  # (BLOCK_H, BLOCK_W)
    labels,  # plane of this sample
    labels_strides,
    column,  # the tile's first
    out_height,
    out_width,
    num_classes,
    ignored_class,
    SINK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Hands the sink all classes; returns its last state."""
    source_rows = pixels[0] * FACTOR
    source_columns = column * FACTOR + tl.arange(0, BLOCK_W * FACTOR)[None, :]
    pointers = labels + source_rows.to(OFFSET) * labels_strides[1] + source_columns.to(OFFSET) * labels_strides[2]
    mask = (source_rows < out_height * FACTOR) & (source_columns < out_width * FACTOR)
    planes = _bit_planes(pointers, tl.cast(labels_strides[1], OFFSET), mask, BLOCK_H, BLOCK_W, FACTOR)
    WINDOW: tl.constexpr = (
        0x01 if FACTOR == 1 else 0x01010101 if FACTOR == 2 else 0x0F0F0F0F if FACTOR == 4 else 0xFFFFFFFF
    )
    num_groups = tl.cdiv(num_classes, 4)
    if SINK == "top" or SINK == "loss":
        # These hear of no absent class: they step over 16 at once.
        for block in range(0, tl.cdiv(num_classes, 16)):
            near = _of_block(planes, block, WINDOW)
            if tl.max(near) != 0:
                for group in range(block * 4, tl.minimum(block * 4 + 4, num_groups)):
                    state = _deliver_group(
                        sink, state, group, near, planes, pixels, num_classes, ignored_class, SINK, FACTOR, OFFSET
                    )
    else:
        for group in range(0, num_groups):
            near = _of_block(planes, group >> 2, WINDOW)
            state = _deliver_group(
                sink, state, group, near, planes, pixels, num_classes, ignored_class, SINK, FACTOR, OFFSET
            )
    return state


# --- general: a loop over the taps of every footprint ---------------------------------------------------------------


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
def soft_tile(
    sink,
    state,
    pixels,  # (PIXELS,)
    labels,  # plane of this sample
    labels_strides,
    taps_y,  # footprints (PIXELS,)
    taps_x,  # footprints (PIXELS,)
    extent_y,
    extent_x,
    reach_y,
    reach_x,
    in_height,
    in_width,
    num_classes,
    ignored_class,
    SINK: tl.constexpr,
    FILTER: tl.constexpr,
    PIXELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Hands the sink all classes; returns its last state."""
    first_row, last_row, num_taps_y = extent_y
    first_column, last_column, num_taps_x = extent_x
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
                zeros = tl.zeros([PIXELS], ACCUMULATOR)
                _deliver_absent(sink, state, class_index, zeros, pixels, True, SINK, OFFSET)

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
                weight_y, offset_y = tap_of(step_y, taps_y, reach_y, labels_strides[1], in_height, FILTER, OFFSET)
                for step_x in range(0, num_taps_x):
                    weight_x, offset_x = tap_of(step_x, taps_x, reach_x, labels_strides[2], in_width, FILTER, OFFSET)
                    weight = weight_y * weight_x
                    label = _int32_labels(tl.load(labels + (offset_y + offset_x)))
                    mass0 = tl.where(label == class0, mass0 + weight, mass0)
                    mass1 = tl.where(label == class1, mass1 + weight, mass1)
                    mass2 = tl.where(label == class2, mass2 + weight, mass2)
                    mass3 = tl.where(label == class3, mass3 + weight, mass3)
            state = _deliver(sink, state, class0, mass0 * scale, pixels, True, SINK, OFFSET)
            state = _deliver(sink, state, class1, mass1 * scale, pixels, class1 >= 0, SINK, OFFSET)
            state = _deliver(sink, state, class2, mass2 * scale, pixels, class2 >= 0, SINK, OFFSET)
            state = _deliver(sink, state, class3, mass3 * scale, pixels, class3 >= 0, SINK, OFFSET)
    return state
