"""Soft labels of a tile at an integer factor (whole image, area filter, factor 1, 2, 4 or 8), from bit planes.

Every output pixel has its own window of at most 8 x 8 labels. Each thread transposes the bits of its labels: a 32-bit
word holds the same bit of up to 32 labels. Classes go in blocks of 16 that share their upper four bits, and these in
groups of four: four operations find which of 32 labels are of a block, two more which of a group, two more which of a
class, and a population count sums them. A program is a single warp: finding out that a block or a group is absent takes
one reduction inside the warp and no barrier.
"""

import triton
import triton.language as tl

from tritonsoft.kernels.epilogues import apply_epilogue, apply_epilogue_to_group, epilogue_zero, logits_of_group


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
    if labels.dtype == tl.int8:  # which cannot hold 255
        labels = labels.to(tl.int16)
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
def _labels_of_block(planes, block, WINDOW: tl.constexpr):
    """Which labels are among the classes ``16 * block .. 16 * block + 15``."""
    _, _, _, _, plane4, plane5, plane6, plane7 = planes
    near = WINDOW & _bit_equals(plane4, block, 0) & _bit_equals(plane5, block, 1)
    return near & _bit_equals(plane6, block, 2) & _bit_equals(plane7, block, 3)


@triton.jit
def _mass(matches, is_ignored, FACTOR: tl.constexpr):
    count = tl.sum(_count_bits(matches).to(tl.int32), axis=2)  # (BLOCK_H, BLOCK_W)
    return count.to(tl.float32) * tl.where(is_ignored, 0.0, 1 / (FACTOR * FACTOR))


@triton.jit
def _epilogue_of_group(
    epilogue,
    state,
    group,
    near,  # which labels are of the group's block
    planes,
    pixels,  # (BLOCK_H, BLOCK_W)
    num_classes,
    ignored_class,
    EPILOGUE: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Hands the epilogue the classes ``4 * group .. 4 * group + 3``; returns its new state."""
    plane0, plane1, plane2, plane3, _, _, _, _ = planes
    ALL: tl.constexpr = 0xFFFFFFFF
    IN_GROUPS: tl.constexpr = EPILOGUE == "softmax" or EPILOGUE == "gradient"
    if IN_GROUPS:
        logits = logits_of_group(epilogue, pixels, group * 4, num_classes, state[0].dtype, OFFSET)
    members = near & _bit_equals(plane2, group, 0) & _bit_equals(plane3, group, 1)
    if tl.max(members) != 0:
        masses = ()
        for low in tl.static_range(4):
            class_index = group * 4 + low
            matches = members & (plane0 if low & 1 else plane0 ^ ALL) & (plane1 if low & 2 else plane1 ^ ALL)
            if IN_GROUPS:
                mass = _mass(matches, class_index == ignored_class, FACTOR)
                masses = masses + (mass,)  # noqa: RUF005 - Triton unpacks nothing here
            elif EPILOGUE == "top":
                # To sort a class in costs more than to find that it is absent.
                if tl.max(matches) != 0:
                    mass = _mass(matches, class_index == ignored_class, FACTOR)
                    state = apply_epilogue(
                        epilogue, state, class_index, mass, pixels, class_index < num_classes, EPILOGUE, OFFSET
                    )
            else:
                mass = _mass(matches, class_index == ignored_class, FACTOR)
                state = apply_epilogue(
                    epilogue, state, class_index, mass, pixels, class_index < num_classes, EPILOGUE, OFFSET
                )
        if IN_GROUPS:
            state = apply_epilogue_to_group(
                epilogue, state, group * 4, logits, masses, pixels, num_classes, EPILOGUE, OFFSET
            )
    elif IN_GROUPS:
        state = apply_epilogue_to_group(epilogue, state, group * 4, logits, (), pixels, num_classes, EPILOGUE, OFFSET)
    else:
        zeros = tl.zeros(pixels[2].shape, tl.float32)
        for low in tl.static_range(4):
            class_index = group * 4 + low
            epilogue_zero(epilogue, state, class_index, zeros, pixels, class_index < num_classes, EPILOGUE, OFFSET)
    return state


@triton.jit
def soft_tile_integer_factor(
    epilogue,
    state,
    pixels,  # (BLOCK_H, BLOCK_W)
    labels,  # plane of this sample
    labels_strides,
    column,  # the tile's first
    out_height,
    out_width,
    num_classes,
    ignored_class,
    EPILOGUE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Hands the epilogue all classes; returns its last state."""
    source_rows = pixels[0] * FACTOR
    source_columns = column * FACTOR + tl.arange(0, BLOCK_W * FACTOR)[None, :]
    pointers = labels + source_rows.to(OFFSET) * labels_strides[1] + source_columns.to(OFFSET) * labels_strides[2]
    mask = (source_rows < out_height * FACTOR) & (source_columns < out_width * FACTOR)
    planes = _bit_planes(pointers, tl.cast(labels_strides[1], OFFSET), mask, BLOCK_H, BLOCK_W, FACTOR)
    WINDOW: tl.constexpr = (
        0x01 if FACTOR == 1 else 0x01010101 if FACTOR == 2 else 0x0F0F0F0F if FACTOR == 4 else 0xFFFFFFFF
    )
    num_groups = tl.cdiv(num_classes, 4)
    if EPILOGUE == "top" or EPILOGUE == "loss":
        # These need to know of no absent class: 16 are skipped at once.
        for block in range(0, tl.cdiv(num_classes, 16)):
            near = _labels_of_block(planes, block, WINDOW)
            if tl.max(near) != 0:
                for group in range(block * 4, tl.minimum(block * 4 + 4, num_groups)):
                    state = _epilogue_of_group(
                        epilogue,
                        state,
                        group,
                        near,
                        planes,
                        pixels,
                        num_classes,
                        ignored_class,
                        EPILOGUE,
                        FACTOR,
                        OFFSET,
                    )
    else:
        for group in range(0, num_groups):
            near = _labels_of_block(planes, group >> 2, WINDOW)
            state = _epilogue_of_group(
                epilogue, state, group, near, planes, pixels, num_classes, ignored_class, EPILOGUE, FACTOR, OFFSET
            )
    return state
