"""The gradient of logits that were enlarged to the size of their label map, gathered: each logit's own program.

A program owns a few classes of a block of logits, and walks down all label rows that touch it. With the logsumexp of
the forward pass, each class and label pixel costs one exponential. What a label pixel says of its class is added, with
the pixel's vertical weights, to two sums of its column, those for the row of logits above and for the one below; at the
end of a gap (`enlarging`) the former is complete, for each column. Only then are columns added up.

Along x, the label columns stand in cells, a cell being a gap. A thread has COLUMNS columns of a cell, and LANES
neighbouring threads the others: a sum over the columns of a cell, with either horizontal weight, gives what the logits
left and right of it get, the latter of which moves on by one cell. Where all cells stand in one program, the last has
the columns before the first logit as well: it is half empty without. Else the first cell is one that the program to the
left has too: it sums for the logit on its right.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.kernels.convert import downcast, upcast
from tritonsoft.kernels.enlarging import (
    Tables,
    axes_of_sample,
    classes_at_once,
    compile_options,
    enlarging_arguments,
    lerp,
    load_labels,
    log2_units,
    logit_offset,
    pixels_per_logit,
    repeated,
    rows_of_step,
)
from tritonsoft.kernels.launch import Launch
from tritonsoft.kernels.pixel_rules import gradient_of_class, scalars_of_class, terms_of_pixels
from tritonsoft.kernels.softmax import sum_of_weights
from tritonsoft.kernels.sums import divided_by

# --- along x ---------------------------------------------------------------------------------------------------------
#
# `cells`:   of each, (CELLS, 1): the gap, its first column and how many it has, how many with those before the first
#            logit (a number: where they begin), and the offsets of the logits left and right of it.
# `columns`: of each that a thread has, (CELLS, LANES): the column, whether it exists, whether it lies between two
#            logits, or on the right one, the weight of that, and what the column gives to the left and the right one.


@triton.jit
def _columns_of_chunk(cells, axis, chunk, COLUMNS: tl.constexpr, LANES: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """The columns of the chunk-th COLUMNS * LANES of each cell."""
    gap, start, own, count, before = cells[0], cells[1], cells[2], cells[3], cells[4]
    result = ()
    for nth in tl.static_range(COLUMNS):
        place = (chunk * COLUMNS + nth) * LANES + tl.arange(0, LANES)[None, :]
        is_before = place >= own
        column = tl.where(is_before, before + place - own, start + place)
        exists = place < count
        code = tl.load(axis[1] + column, mask=exists, other=0)
        fraction = tl.load(axis[2] + column, mask=exists, other=0.5)
        is_between = code % 2 == 1
        is_on_right = is_before | (gap < 0)
        to_right = tl.where(is_between, fraction, tl.where(is_on_right, 1.0, 0.0))
        weights = (tl.where(exists, 1 - to_right, 0.0), tl.where(exists, to_right, 0.0))
        result = result + ((column, exists, is_between, is_on_right, fraction, weights),)  # noqa: RUF005
    return result


@triton.jit
def _rows_of_classes(
    logits,
    class_stride,
    first_class,
    num_classes,
    row_offset,
    cells,
    columns,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """A row of logits of each of the program's classes, at each of the columns, in `log2_units`."""
    rows = ()
    for unrolled in tl.static_range(UNROLL):
        class_index = first_class + unrolled
        offset = class_index.to(OFFSET) * class_stride + row_offset
        exists = class_index < num_classes
        left = upcast(tl.load(logits + (offset + cells[5]), mask=exists, other=0.0), ACCUMULATOR)
        right = upcast(tl.load(logits + (offset + cells[6]), mask=exists, other=0.0), ACCUMULATOR)
        for nth in tl.static_range(len(columns)):
            _, _, is_between, is_on_right, fraction, _ = columns[nth]
            # Of two logits of which one weighs nothing that one may be infinite.
            value = tl.where(is_between, lerp(left, right, fraction), tl.where(is_on_right, right, left))
            rows = rows + (log2_units(value),)  # noqa: RUF005 - as the forward pass does, to the bit
    return rows


@triton.jit
def _sums_of_cells(values, columns, SIDE: tl.constexpr, UNROLL: tl.constexpr):
    """What all columns of a cell give to the logits on one side, (CELLS,) for each class."""
    sums = ()
    for unrolled in tl.static_range(UNROLL):
        total = values[unrolled * len(columns)] * columns[0][5][SIDE]
        for nth in tl.static_range(1, len(columns)):
            total = tl.fma(values[unrolled * len(columns) + nth], columns[nth][5][SIDE], total)
        sums = sums + (tl.sum(total, axis=1),)  # noqa: RUF005
    return sums


@triton.jit
def _added(first, second):
    sums = ()
    for place in tl.static_range(len(first)):
        sums = sums + (first[place] + second[place],)  # noqa: RUF005
    return sums


# --- down the rows of a gap ------------------------------------------------------------------------------------------


@triton.jit
def _walk_gap(
    above,  # the sums for the row of logits that the gap begins with, and for the next, of each class and column
    below,
    tops,  # these two rows at the columns
    bottoms,
    gap,
    axis,
    columns,
    rule,
    scalars,
    lse,  # of this sample, as the next
    labels,
    labels_strides,
    first_class,
    height,
    out_width,
    num_classes,
    ignored_class,
    common_factor,
    all_weights,
    RULE: tl.constexpr,
    LABEL_SMOOTHING: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    COLUMNS: tl.constexpr = len(columns)
    for step in range(2 * gap + 2, 2 * gap + 4):
        rows = rows_of_step(axis, step, height)
        is_between = step % 2 == 1
        seconds = ()
        for place in tl.static_range(UNROLL * COLUMNS):
            seconds = seconds + (tl.where(is_between, bottoms[place], tops[place]),)  # noqa: RUF005
        for row in range(rows[0], rows[1]):
            fraction = tl.load(axis[2] + row)
            # Rows on a logit are that logit's, which the gap before the first one has below it.
            to_below = tl.where(is_between, fraction, tl.where(gap < 0, 1.0, 0.0))
            terms = ()
            for nth in tl.static_range(COLUMNS):
                column = columns[nth][0]
                exists = columns[nth][1]
                label = load_labels(labels, labels_strides, row, column, exists, num_classes, ignored_class, OFFSET)
                these = terms_of_pixels(
                    rule,
                    lse,
                    row,
                    column,
                    label,
                    out_width,
                    num_classes,
                    common_factor,
                    all_weights,
                    RULE,
                    LABEL_SMOOTHING,
                    ACCUMULATOR,
                    OFFSET,
                )
                factors = (label - first_class, (1 - to_below) * these[2], to_below * these[2])
                terms = terms + ((these, factors),)  # noqa: RUF005
            new_above = ()
            new_below = ()
            for unrolled in tl.static_range(UNROLL):
                for nth in tl.static_range(COLUMNS):
                    these, factors = terms[nth]
                    logit = lerp(tops[unrolled * COLUMNS + nth], seconds[unrolled * COLUMNS + nth], fraction)
                    value = gradient_of_class(logit, these, factors[0] == unrolled, scalars[unrolled], RULE)
                    new_above = new_above + (tl.fma(value, factors[1], above[unrolled * COLUMNS + nth]),)  # noqa: RUF005
                    new_below = new_below + (tl.fma(value, factors[2], below[unrolled * COLUMNS + nth]),)  # noqa: RUF005
            above = new_above
            below = new_below
    return above, below


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "num_classes", "ignored_class"])
def upsampled_gradient_kernel(
    out,  # (B, C, h, w)
    out_strides,
    rule,
    lse,  # (B, H, W), contiguous, in units of `enlarging`
    logits,  # (B, C, h, w)
    logits_strides,
    labels,  # (B, H, W)
    labels_strides,
    tables,  # `enlarging`
    height,
    width,
    out_height,
    out_width,
    num_classes,
    ignored_class,
    RULE: tl.constexpr,  # "cross entropy" or "overlap"
    LABEL_SMOOTHING: tl.constexpr,
    STRIP: tl.constexpr,  # rows of logits
    CELLS: tl.constexpr,
    COLUMNS: tl.constexpr,  # of a cell, that a thread has at once
    LANES: tl.constexpr,  # threads that share a cell
    ONE_CHUNK: tl.constexpr,  # whether no cell has more columns
    WHOLE_ROWS: tl.constexpr,  # whether all cells stand in one program
    UNROLL: tl.constexpr,  # classes
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,  # the integer that holds an offset inside one sample
):
    sizes = (height, width, out_height, out_width)
    class_groups = tl.cdiv(num_classes, UNROLL)
    blocks = 1 if WHOLE_ROWS else tl.cdiv(width, CELLS - 1)
    strips = tl.cdiv(height, STRIP)
    program = tl.program_id(0)
    first_class = program % class_groups * UNROLL  # neighbours read the same labels
    program = program // class_groups
    sample = (program // blocks // strips).to(tl.int64)
    first_row = program // blocks % strips * STRIP
    axis_y, axis_x = axes_of_sample(tables, sample, sizes)
    logits += sample * logits_strides[0]
    labels += sample * labels_strides[0]
    out += sample * out_strides[0]
    lse += sample * out_height * out_width
    class_stride = logits_strides[1]

    lanes = tl.arange(0, CELLS)
    gap_x = lanes if WHOLE_ROWS else program % blocks * (CELLS - 1) - 1 + lanes
    has_gap = gap_x < width
    start = tl.load(axis_x[0] + gap_x + 1, mask=has_gap, other=0)
    own = tl.load(axis_x[0] + gap_x + 2, mask=has_gap, other=0) - start
    before = tl.load(axis_x[0])
    count = own
    right = tl.minimum(gap_x + 1, width - 1)
    if WHOLE_ROWS:
        is_last = gap_x == width - 1
        count += tl.where(is_last, tl.load(axis_x[0] + 1) - before, 0)
        right = tl.where(is_last, 0, right)
        previous = tl.where(lanes == 0, width - 1, lanes - 1)
        is_owned = has_gap
    else:
        previous = tl.maximum(lanes - 1, 0)
        is_owned = has_gap & (lanes > 0)
    left = tl.minimum(tl.maximum(gap_x, 0), width - 1)
    cells = (
        gap_x[:, None],
        start[:, None],
        own[:, None],
        count[:, None],
        before,
        logit_offset(axis_x, left, width, logits_strides[3], OFFSET)[:, None],
        logit_offset(axis_x, right, width, logits_strides[3], OFFSET)[:, None],
    )
    out_columns = logit_offset(axis_x, left, width, out_strides[3], OFFSET)

    common_factor = tl.full([], 1.0, ACCUMULATOR)
    all_weights = tl.zeros([], ACCUMULATOR)
    if RULE == "cross entropy":
        common_factor = divided_by(common_factor, rule[2])
        if rule[1] is None:
            common_factor *= tl.load(rule[0]).to(ACCUMULATOR)
        else:
            rule = (rule[0] + sample * rule[1][0], rule[1], rule[2], rule[3])
        if LABEL_SMOOTHING > 0:
            all_weights = sum_of_weights(rule[3], num_classes, ACCUMULATOR)
    else:
        rule = (rule[0], rule[1], rule[2], rule[3], rule[4] + sample * out_height * out_width)
    zeros = repeated(tl.zeros([CELLS, LANES], ACCUMULATOR), UNROLL * COLUMNS)
    nothing = repeated(tl.zeros([CELLS], ACCUMULATOR), UNROLL)
    scalars = ()
    for unrolled in tl.static_range(UNROLL):
        class_index = first_class + unrolled
        exists = class_index < num_classes
        scalars = scalars + (scalars_of_class(rule, sample, class_index, exists, RULE, ACCUMULATOR),)  # noqa: RUF005

    if ONE_CHUNK:
        columns = _columns_of_chunk(cells, axis_x, 0, COLUMNS, LANES, ACCUMULATOR)
        offset = logit_offset(axis_y, tl.maximum(first_row - 1, 0), height, logits_strides[2], OFFSET)
        tops = _rows_of_classes(
            logits, class_stride, first_class, num_classes, offset, cells, columns, UNROLL, ACCUMULATOR, OFFSET
        )
        above = zeros
    else:
        chunks = tl.cdiv(tl.max(count, axis=0), COLUMNS * LANES)
        above_left = nothing
        above_right = nothing

    for gap in range(first_row - 1, tl.minimum(first_row + STRIP, height)):
        next_offset = logit_offset(axis_y, tl.minimum(gap + 1, height - 1), height, logits_strides[2], OFFSET)
        if ONE_CHUNK:
            bottoms = _rows_of_classes(
                logits, class_stride, first_class, num_classes, next_offset, cells, columns, UNROLL, ACCUMULATOR, OFFSET
            )
            above, below = _walk_gap(
                above,
                zeros,
                tops,
                bottoms,
                gap,
                axis_y,
                columns,
                rule,
                scalars,
                lse,
                labels,
                labels_strides,
                first_class,
                height,
                out_width,
                num_classes,
                ignored_class,
                common_factor,
                all_weights,
                RULE,
                LABEL_SMOOTHING,
                UNROLL,
                ACCUMULATOR,
                OFFSET,
            )
            to_left = _sums_of_cells(above, columns, 0, UNROLL)
            to_right = _sums_of_cells(above, columns, 1, UNROLL)
            above = below
            tops = bottoms
        else:
            to_left = above_left
            to_right = above_right
            above_left = nothing
            above_right = nothing
            offset = logit_offset(axis_y, tl.maximum(gap, 0), height, logits_strides[2], OFFSET)
            for chunk in range(0, chunks):
                columns = _columns_of_chunk(cells, axis_x, chunk, COLUMNS, LANES, ACCUMULATOR)
                tops = _rows_of_classes(
                    logits, class_stride, first_class, num_classes, offset, cells, columns, UNROLL, ACCUMULATOR, OFFSET
                )
                bottoms = _rows_of_classes(
                    logits,
                    class_stride,
                    first_class,
                    num_classes,
                    next_offset,
                    cells,
                    columns,
                    UNROLL,
                    ACCUMULATOR,
                    OFFSET,
                )
                above, below = _walk_gap(
                    zeros,
                    zeros,
                    tops,
                    bottoms,
                    gap,
                    axis_y,
                    columns,
                    rule,
                    scalars,
                    lse,
                    labels,
                    labels_strides,
                    first_class,
                    height,
                    out_width,
                    num_classes,
                    ignored_class,
                    common_factor,
                    all_weights,
                    RULE,
                    LABEL_SMOOTHING,
                    UNROLL,
                    ACCUMULATOR,
                    OFFSET,
                )
                to_left = _added(to_left, _sums_of_cells(above, columns, 0, UNROLL))
                to_right = _added(to_right, _sums_of_cells(above, columns, 1, UNROLL))
                above_left = _added(above_left, _sums_of_cells(below, columns, 0, UNROLL))
                above_right = _added(above_right, _sums_of_cells(below, columns, 1, UNROLL))
        if gap >= first_row:
            row_offset = logit_offset(axis_y, gap, height, out_strides[2], OFFSET)
            for unrolled in tl.static_range(UNROLL):
                class_index = first_class + unrolled
                value = to_left[unrolled] + tl.gather(to_right[unrolled], previous, 0)
                pointers = out + (class_index.to(OFFSET) * out_strides[1] + row_offset + out_columns)
                value = downcast(value, out.dtype.element_ty)
                tl.store(pointers, value, mask=is_owned & (class_index < num_classes))


# --- launch ----------------------------------------------------------------------------------------------------------

_MIN_PROGRAMS = 256  # two for each multiprocessor of a large device
_MAX_THREADS = 256  # that may have 255 registers each


def _cells(width: int, lanes: int) -> tuple[int, bool]:
    """CELLS and WHOLE_ROWS: such that the fewest cells are empty or those of two programs."""
    choices = [(cells, False) for cells in (8, 16, 32, 64) if cells * lanes >= 32]
    cost = {choice: triton.cdiv(width, choice[0] - 1) * choice[0] for choice in choices}
    whole = max(triton.next_power_of_2(width), 32 // lanes)
    if whole * lanes <= _MAX_THREADS:
        cost[whole, True] = whole
    return min(cost, key=lambda choice: cost[choice])


def _programs(logits: Tensor, strip: int, blocks: int, unroll: int) -> int:
    batch, num_classes, height, _ = logits.shape
    return batch * math.ceil(height / strip) * blocks * math.ceil(num_classes / unroll)


def gradient_configuration(
    rule_name: str,
    out: Tensor,
    rule: tuple[Any, ...],
    label_smoothing: float,
    logits: Tensor,
    labels: Tensor,
    has_boxes: bool,
    ignore_index: int,
    lse: Tensor,
    tables: Tables,
    platform: str,
) -> Launch:
    """What writes the gradient; see the rules above."""
    _, num_classes, _, width = logits.shape
    size = (labels.shape[1], labels.shape[2])
    ratio = pixels_per_logit(size[1], width, has_boxes)
    needed = triton.next_power_of_2(triton.cdiv(size[1], width))  # no cell has more columns
    is_double = logits.dtype == torch.float64
    columns = min(needed, 2 if is_double else 4)
    lanes = 1 if has_boxes else min(needed // columns, 4)
    cells, whole_rows = _cells(width, lanes)
    # Registers limit how many classes share what a pixel costs.
    choices = (2, 3) if is_double else (4, 5) if columns == 4 else (4, 5, 6, 7, 8)
    unroll = classes_at_once(num_classes, choices, 10, 16)
    blocks = 1 if whole_rows else triton.cdiv(width, cells - 1)
    # The gap above a strip is walked for the strip before it as well; but few programs leave multiprocessors idle.
    strip = max(1, min(int(64 / ratio), 16))
    while strip > 4 and _programs(logits, strip, blocks, unroll) < _MIN_PROGRAMS:
        strip //= 2
    strided = (out, rule[0]) if rule_name == "cross entropy" else (out,)
    arguments = {
        "out": out,
        "out_strides": out.stride(),
        "rule": rule,
        "lse": lse,
        **enlarging_arguments(logits, labels, size, ignore_index, tables, *strided),
        "RULE": rule_name,
        "LABEL_SMOOTHING": label_smoothing,
        "STRIP": strip,
        "CELLS": cells,
        "COLUMNS": columns,
        "LANES": lanes,
        "ONE_CHUNK": not has_boxes and columns * lanes == needed,
        "WHOLE_ROWS": whole_rows,
        "UNROLL": unroll,
    }
    grid = (_programs(logits, strip, blocks, unroll),)
    return Launch(upsampled_gradient_kernel, grid, arguments, compile_options(cells * lanes, platform))
