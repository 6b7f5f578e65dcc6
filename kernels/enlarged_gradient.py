"""The gradient of logits that were enlarged to the size of their label map, gathered: each logit's own program.

A program owns a few classes of a block of logits, and walks down all label rows that touch it. With the logsumexp of
the forward pass, each class and label pixel costs one exponential. What a label pixel says of its class is added, with
the pixel's vertical weights, to two sums of its column, those for the row of logits above and for the one below; at the
end of a gap (`enlarging`) the former is complete, for each column. Only then are columns added up.

Along x, the label columns stand as (cells, columns of a cell), a cell being a gap, so that a sum over the columns of a
cell, with either horizontal weight, gives what the logits left and right of it get; the latter moves on by one cell.
Where all cells stand in one program, the last has the columns before the first logit as well: it is half empty without.
Else the first cell is one that the program to the left has too: it sums for the logit on its right.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.kernels.convert import downcast
from tritonsoft.kernels.enlarging import (
    Tables,
    axes_of_sample,
    class_weight,
    classes_at_once,
    enlarging_arguments,
    exponential_of_units,
    lerp,
    load_labels,
    log2_units,
    logit_offset,
    pixels_per_logit,
    row_of_logits,
    rows_of_step,
    scalars_of_slopes,
    sum_of_weights,
    taps_of_columns,
)
from tritonsoft.kernels.launch import Launch
from tritonsoft.kernels.sums import divided_by

# --- what a pixel says of its classes --------------------------------------------------------------------------------
#
# `rule`:  cross entropy: the gradient of each pixel's loss (B, H, W) and its strides, the number by which it is divided
#          or None, the weights of the classes or None with their stride;
#          overlap: the gradient of the values (B, C), the slopes (B, C, 2), both with their strides, and the mean slope
#          of each pixel (B, H, W), contiguous.
# `terms`: of the pixels at hand, which count; the logsumexp; a factor of all classes; cross entropy with smoothed labels:
#          the share of the target that the label's class gets, and each class; overlap: the mean slope.


@triton.jit
def _terms_of_pixels(
    rule,
    lse,
    sample,
    row,
    columns,
    label,
    out_height,
    out_width,
    num_classes,
    inverse_total,
    all_weights,
    RULE: tl.constexpr,
    LABEL_SMOOTHING: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    pixels = (sample * out_height + row) * out_width + columns
    known = label >= 0
    lse_here = tl.load(lse + pixels, mask=known, other=0.0).to(ACCUMULATOR)
    if RULE == "overlap":
        mean_slope = tl.load(rule[4] + pixels, mask=known, other=0.0).to(ACCUMULATOR)
        return known, lse_here, tl.full([], 1.0, ACCUMULATOR), mean_slope
    else:
        offsets = tl.cast(row, OFFSET) * rule[1][1] + columns.to(OFFSET) * rule[1][2]
        grad = tl.load(rule[0] + sample * rule[1][0] + offsets, mask=known, other=0.0).to(ACCUMULATOR)
        factor = grad * inverse_total
        of_target = ()
        if rule[3][0] is not None or LABEL_SMOOTHING > 0:
            weight = class_weight(rule[3], label, known, ACCUMULATOR)
            from_label = (1 - LABEL_SMOOTHING) * weight
            mass = from_label
            if LABEL_SMOOTHING > 0:
                from_each = LABEL_SMOOTHING / num_classes.to(ACCUMULATOR)
                mass += from_each * all_weights
                inverse_mass = 1 / tl.where(mass > 0, mass, 1.0)
                of_target = (from_label * inverse_mass, from_each * inverse_mass)
            known &= mass > 0
            factor *= mass
        return (known, lse_here, tl.where(known, factor, 0.0)) + of_target  # noqa: RUF005


@triton.jit
def _of_class(logits, terms, is_label, scalars, RULE: tl.constexpr):
    """What the pixels say of one class, but for the factor of all classes."""
    probability = exponential_of_units(logits - terms[1])
    probability = tl.where(terms[0], probability, 0.0)  # also where a logit is not a number
    if RULE == "overlap":
        return probability * (tl.where(is_label, scalars[1], scalars[0]) - terms[3])
    elif len(terms) > 3:
        return probability - tl.where(is_label, terms[3], 0.0) - terms[4] * scalars[0]
    else:
        return tl.where(is_label, probability - 1, probability)


@triton.jit
def _scalars_of_class(rule, sample, class_index, exists, RULE: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """Cross entropy: the weight. Overlap: how the loss changes with the predicted mass, of other classes and of it."""
    if RULE == "overlap":
        return scalars_of_slopes(rule, sample, class_index, exists, ACCUMULATOR)
    else:
        return (class_weight(rule[3], class_index, exists, ACCUMULATOR),)


# --- down the rows of a gap ------------------------------------------------------------------------------------------


@triton.jit
def _rows_of_classes(
    logits, strides, first_class, num_classes, offset, taps, UNROLL: tl.constexpr, ACCUMULATOR: tl.constexpr
):
    """A row of logits of each of the program's classes, at the columns of the cells, in `log2_units`."""
    rows = ()
    for unrolled in tl.static_range(UNROLL):
        class_index = first_class + unrolled
        plane = logits + class_index.to(tl.int64) * strides[1]
        row = row_of_logits(plane, offset, taps, class_index < num_classes, ACCUMULATOR)
        rows = rows + (log2_units(row),)  # noqa: RUF005 - Triton unpacks nothing here
    return rows


@triton.jit
def _walk_gap(
    above,  # the sums for the row of logits that the gap begins with, and for the next: (cells, columns), of each class
    below,
    tops,  # these two rows at the columns
    bottoms,
    gap,
    axis,
    columns,
    exists,
    rule,
    scalars,
    lse,
    labels,  # of this sample
    labels_strides,
    sample,
    first_class,
    height,
    out_height,
    out_width,
    num_classes,
    ignored_class,
    inverse_total,
    all_weights,
    RULE: tl.constexpr,
    LABEL_SMOOTHING: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    for step in range(2 * gap + 2, 2 * gap + 4):
        start, end, _, _ = rows_of_step(axis, step, height)
        is_between = step % 2 == 1
        seconds = ()
        for unrolled in tl.static_range(UNROLL):
            seconds = seconds + (tl.where(is_between, bottoms[unrolled], tops[unrolled]),)  # noqa: RUF005
        for row in range(start, end):
            fraction = tl.load(axis[2] + row)
            # Rows on a logit are that logit's, which the gap before the first one has below it.
            to_below = tl.where(is_between, fraction, tl.where(gap < 0, 1.0, 0.0))
            label = load_labels(
                labels, labels_strides, row, columns, exists, num_classes, ignored_class, OFFSET
            )
            terms = _terms_of_pixels(
                rule,
                lse,
                sample,
                row,
                columns,
                label,
                out_height,
                out_width,
                num_classes,
                inverse_total,
                all_weights,
                RULE,
                LABEL_SMOOTHING,
                ACCUMULATOR,
                OFFSET,
            )
            factor_below = to_below * terms[2]
            factor_above = (1 - to_below) * terms[2]
            label -= first_class
            new_above = ()
            new_below = ()
            for unrolled in tl.static_range(UNROLL):
                here = lerp(tops[unrolled], seconds[unrolled], fraction)
                value = _of_class(here, terms, label == unrolled, scalars[unrolled], RULE)
                new_above = new_above + (tl.fma(value, factor_above, above[unrolled]),)  # noqa: RUF005
                new_below = new_below + (tl.fma(value, factor_below, below[unrolled]),)  # noqa: RUF005
            above = new_above
            below = new_below
    return above, below


# --- along x ---------------------------------------------------------------------------------------------------------


@triton.jit
def _columns_of_chunk(
    cells, axis, width, stride, chunk, COLUMNS: tl.constexpr, ACCUMULATOR: tl.constexpr, OFFSET: tl.constexpr
):
    """The label columns of the chunk-th COLUMNS of each cell.

    Returns:
        The columns, which exist, their taps, and what they weigh for the logits left and right of the cell.
    """
    gap, start, own, count, before = cells
    place = chunk * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    beyond = place >= own[:, None]  # the columns before the first logit, in the last cell
    columns = tl.where(beyond, before + place - own[:, None], start[:, None] + place)
    exists = place < count[:, None]
    taps = taps_of_columns(axis, columns, exists, width, stride, OFFSET)
    code = tl.load(axis[1] + columns, mask=exists, other=0)
    on_right = beyond | (gap < 0)[:, None]
    right = tl.where(code % 2 == 1, taps[2], on_right.to(ACCUMULATOR))
    return columns, exists, taps, tl.where(exists, 1 - right, 0.0), tl.where(exists, right, 0.0)


@triton.jit
def _sums_of_cells(values, weights, UNROLL: tl.constexpr):
    sums = ()
    for unrolled in tl.static_range(UNROLL):
        sums = sums + (tl.sum(values[unrolled] * weights, axis=1),)  # noqa: RUF005
    return sums


@triton.jit
def _added(first, second):
    sums = ()
    for place in tl.static_range(len(first)):
        sums = sums + (first[place] + second[place],)  # noqa: RUF005
    return sums


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
    COLUMNS: tl.constexpr,  # of a cell, that are held at once
    ONE_CHUNK: tl.constexpr,  # whether no cell has more
    WHOLE_ROWS: tl.constexpr,  # whether all cells stand in one program
    UNROLL: tl.constexpr,  # classes
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
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

    lanes = tl.arange(0, CELLS)
    gap_x = lanes if WHOLE_ROWS else program % blocks * (CELLS - 1) - 1 + lanes
    has_gap = gap_x < width
    start = tl.load(axis_x[0] + gap_x + 1, mask=has_gap, other=0)
    own = tl.load(axis_x[0] + gap_x + 2, mask=has_gap, other=0) - start
    before = tl.load(axis_x[0])
    count = own
    if WHOLE_ROWS:
        count += tl.where(gap_x == width - 1, tl.load(axis_x[0] + 1) - before, 0)
        previous = tl.where(lanes == 0, width - 1, lanes - 1)
        is_owned = has_gap
    else:
        previous = tl.maximum(lanes - 1, 0)
        is_owned = has_gap & (lanes > 0)
    cells = (gap_x, start, own, count, before)
    out_columns = logit_offset(axis_x, tl.where(is_owned, gap_x, 0), width, out_strides[3], OFFSET)

    inverse_total = tl.full([], 1.0, ACCUMULATOR)
    all_weights = tl.zeros([], ACCUMULATOR)
    if RULE == "cross entropy":
        inverse_total = divided_by(inverse_total, rule[2])
        if LABEL_SMOOTHING > 0:
            all_weights = sum_of_weights(rule[3], num_classes, ACCUMULATOR)
    scalars = ()
    zeros = ()
    nothing = ()
    for unrolled in tl.static_range(UNROLL):
        class_index = first_class + unrolled
        exists = class_index < num_classes
        scalars = scalars + (_scalars_of_class(rule, sample, class_index, exists, RULE, ACCUMULATOR),)  # noqa: RUF005
        zeros = zeros + (tl.zeros([CELLS, COLUMNS], ACCUMULATOR),)  # noqa: RUF005
        nothing = nothing + (tl.zeros([CELLS], ACCUMULATOR),)  # noqa: RUF005

    if ONE_CHUNK:
        column = _columns_of_chunk(cells, axis_x, width, logits_strides[3], 0, COLUMNS, ACCUMULATOR, OFFSET)
        columns, exist, taps, left, right = column
        offset = logit_offset(axis_y, tl.maximum(first_row - 1, 0), height, logits_strides[2], OFFSET)
        tops = _rows_of_classes(logits, logits_strides, first_class, num_classes, offset, taps, UNROLL, ACCUMULATOR)
        above = zeros
    else:
        chunks = tl.maximum(tl.cdiv(tl.max(count, axis=0), COLUMNS), 1)
        above_left = nothing
        above_right = nothing

    for gap in range(first_row - 1, tl.minimum(first_row + STRIP, height)):
        next_offset = logit_offset(axis_y, tl.minimum(gap + 1, height - 1), height, logits_strides[2], OFFSET)
        if ONE_CHUNK:
            bottoms = _rows_of_classes(
                logits, logits_strides, first_class, num_classes, next_offset, taps, UNROLL, ACCUMULATOR
            )
            above, below = _walk_gap(
                above,
                zeros,
                tops,
                bottoms,
                gap,
                axis_y,
                columns,
                exist,
                rule,
                scalars,
                lse,
                labels,
                labels_strides,
                sample,
                first_class,
                height,
                out_height,
                out_width,
                num_classes,
                ignored_class,
                inverse_total,
                all_weights,
                RULE,
                LABEL_SMOOTHING,
                UNROLL,
                ACCUMULATOR,
                OFFSET,
            )
            to_left = _sums_of_cells(above, left, UNROLL)
            to_right = _sums_of_cells(above, right, UNROLL)
            above = below
            tops = bottoms
        else:
            to_left = above_left
            to_right = above_right
            above_left = nothing
            above_right = nothing
            offset = logit_offset(axis_y, tl.maximum(gap, 0), height, logits_strides[2], OFFSET)
            for chunk in range(0, chunks):
                column = _columns_of_chunk(cells, axis_x, width, logits_strides[3], chunk, COLUMNS, ACCUMULATOR, OFFSET)
                columns, exist, taps, left, right = column
                tops = _rows_of_classes(
                    logits, logits_strides, first_class, num_classes, offset, taps, UNROLL, ACCUMULATOR
                )
                bottoms = _rows_of_classes(
                    logits, logits_strides, first_class, num_classes, next_offset, taps, UNROLL, ACCUMULATOR
                )
                above, below = _walk_gap(
                    zeros,
                    zeros,
                    tops,
                    bottoms,
                    gap,
                    axis_y,
                    columns,
                    exist,
                    rule,
                    scalars,
                    lse,
                    labels,
                    labels_strides,
                    sample,
                    first_class,
                    height,
                    out_height,
                    out_width,
                    num_classes,
                    ignored_class,
                    inverse_total,
                    all_weights,
                    RULE,
                    LABEL_SMOOTHING,
                    UNROLL,
                    ACCUMULATOR,
                    OFFSET,
                )
                to_left = _added(to_left, _sums_of_cells(above, left, UNROLL))
                to_right = _added(to_right, _sums_of_cells(above, right, UNROLL))
                above_left = _added(above_left, _sums_of_cells(below, left, UNROLL))
                above_right = _added(above_right, _sums_of_cells(below, right, UNROLL))
        if gap >= first_row:
            row_offset = logit_offset(axis_y, gap, height, out_strides[2], OFFSET)
            for unrolled in tl.static_range(UNROLL):
                class_index = first_class + unrolled
                value = to_left[unrolled] + tl.gather(to_right[unrolled], previous, 0)
                pointers = out + class_index.to(tl.int64) * out_strides[1] + row_offset + out_columns
                value = downcast(value, out.dtype.element_ty)
                tl.store(pointers, value, mask=is_owned & (class_index < num_classes))


# --- launch ----------------------------------------------------------------------------------------------------------

_MAX_COLUMNS = 512  # of a program's cells together


def _cells(width: int, columns: int) -> tuple[int, bool]:
    """CELLS and WHOLE_ROWS: such that the fewest cells are empty or those of two programs."""
    choices = [(cells, False) for cells in (8, 16, 32, 64) if 32 <= cells * columns <= _MAX_COLUMNS]
    cost = {choice: triton.cdiv(width, choice[0] - 1) * choice[0] for choice in choices}
    whole = max(triton.next_power_of_2(width), 32 // columns)
    if whole * columns <= _MAX_COLUMNS:
        cost[whole, True] = whole
    return min(cost, key=lambda choice: cost[choice])


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
) -> Launch:
    """What writes the gradient; see the rules above."""
    batch, num_classes, height, width = logits.shape
    size = (labels.shape[1], labels.shape[2])
    ratio = pixels_per_logit(size[1], width, has_boxes)
    columns = min(triton.next_power_of_2(triton.cdiv(size[1], width)), 4 if has_boxes else 16)
    cells, whole_rows = _cells(width, columns)
    unroll = classes_at_once(num_classes, (4, 5, 6, 7, 8), 10, 8)
    strip = max(1, min(int(64 / ratio), 16))
    strips = triton.cdiv(height, strip)
    blocks = 1 if whole_rows else triton.cdiv(width, cells - 1)
    arguments = {
        "out": out,
        "out_strides": out.stride(),
        "rule": rule,
        "lse": lse,
        **enlarging_arguments(logits, labels, size, ignore_index, tables),
        "RULE": rule_name,
        "LABEL_SMOOTHING": label_smoothing,
        "STRIP": strip,
        "CELLS": cells,
        "COLUMNS": columns,
        "ONE_CHUNK": not has_boxes and columns * width >= size[1],
        "WHOLE_ROWS": whole_rows,
        "UNROLL": unroll,
    }
    grid = (batch * strips * blocks * triton.cdiv(num_classes, unroll),)
    return Launch(upsampled_gradient_kernel, grid, arguments, {"num_warps": max(1, min(cells * columns // 64, 8))})
