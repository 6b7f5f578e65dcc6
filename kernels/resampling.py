"""Rows of outputs for any box, filter and scale: what lies under a row is summed down the columns, then along the row.

A program owns a tile of outputs and makes it row by row. A *line* holds, for each of BLOCK_SOURCE neighbouring columns
of the source, the weighted sum of the source rows under one row of outputs: neighbouring threads read neighbouring
pixels, several in one load, whatever the scale. The outputs then gather their taps from the line, which goes through
shared memory once. What belongs to a column of outputs, its footprint and the weights of its first taps, stays in
registers.
"""

import triton
import triton.language as tl

from tritonsoft.kernels.geometry import axis_of_outputs, tap_weight


@triton.jit
def group_position(group, start, columns, GROUP: tl.constexpr, BLOCK_SOURCE: tl.constexpr):
    """Where the first tap of a group of every column of outputs lies in the line that begins at ``start``."""
    return tl.minimum(tl.maximum(columns[0] + group * GROUP - start, 0), BLOCK_SOURCE - GROUP)


@triton.jit
def group_weights(position, group, start, columns, FILTER: tl.constexpr, GROUP: tl.constexpr):
    """The weights of a group of taps, ``(GROUP, BLOCK_W)``; 0 for what is not in the line, or of another group."""
    first, last, distance, _, _, support = columns
    tap = position[None, :] + tl.arange(0, GROUP)[:, None] + (start - first)[None, :]
    weight = tap_weight(distance[None, :] + tap.to(distance.dtype), support, FILTER)
    of_group = (tap >= group * GROUP) & (tap < group * GROUP + GROUP) & (tap <= (last - first)[None, :])
    return tl.where(of_group, weight, 0.0)


@triton.jit
def _widest(first, last, length, other_first, other_last, other_length):
    return tl.minimum(first, other_first), tl.maximum(last, other_last), tl.maximum(length, other_length)


@triton.jit
def tile_columns(
    first_column,
    box,
    out_width,
    in_width,
    FILTER: tl.constexpr,
    GROUP: tl.constexpr,  # taps along a row that are gathered together
    BLOCK_SOURCE: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """What the columns of a tile of outputs see of the source.

    Returns:
        columns: their footprints, see `geometry.footprint`, and half the width of the filter.
        extent: the first column of the source (a multiple of 16, for wide loads), the number of lines from there to
            the last, and the number of groups.
        nearest: the weights of the first group of taps from there, see `group_weights`.
    """
    outputs = first_column + tl.arange(0, BLOCK_W)
    columns = axis_of_outputs(outputs, box, out_width, in_width, FILTER, ACCUMULATOR)
    first, last = columns[0], columns[1]
    start, end, num_taps = tl.reduce((first, last, last - first + 1), 0, _widest)
    start = tl.multiple_of(start // 16 * 16, 16)
    extent = (start, tl.cdiv(end + 1 - start, BLOCK_SOURCE), tl.cdiv(num_taps, GROUP))
    position = group_position(0, start, columns, GROUP, BLOCK_SOURCE)
    return columns, extent, group_weights(position, 0, start, columns, FILTER, GROUP)


@triton.jit
def tile_rows(
    first_row, box, out_height, in_height, FILTER: tl.constexpr, BLOCK_H: tl.constexpr, ACCUMULATOR: tl.constexpr
):
    """What the rows of a tile of outputs see of the source: the same of them."""
    outputs = first_row + tl.arange(0, BLOCK_H)
    return axis_of_outputs(outputs, box, out_height, in_height, FILTER, ACCUMULATOR)


@triton.jit
def _pick(values, index):
    """One of the values, as a number: all threads of a warp hold them between them, and one hands it to the others."""
    return tl.sum(tl.gather(values, tl.zeros([1], tl.int32) + index, 0), 0)


@triton.jit
def row_of_tile(rows, index):
    """One of the rows that `tile_rows` found, as numbers."""
    first, last, distance, inverse_weight_sum, share, support = rows
    return (
        _pick(first, index),
        _pick(last, index),
        _pick(distance, index),
        _pick(inverse_weight_sum, index),
        _pick(share, index),
        support,
    )


@triton.jit
def add_along_row(totals, lines, position, weights, SELECT: tl.constexpr):
    """Adds a group of taps of every line to the sums of the outputs; returns the new sums.

    Args:
        totals: as many as lines, each ``(BLOCK_W,)``.
        lines: up to four, each ``(BLOCK_SOURCE,)``.
        position, weights: see `group_position` and `group_weights`.
        SELECT: whether a tap without weight may be infinite.
    """
    LINES: tl.constexpr = len(lines)
    COUNT: tl.constexpr = 4 if LINES == 3 else LINES
    BLOCK_SOURCE: tl.constexpr = lines[0].shape[0]
    GROUP: tl.constexpr = weights.shape[0]
    BLOCK_W: tl.constexpr = weights.shape[1]
    # Several lines are one list in shared memory, for a single gather and the barriers of one. Neither this nor taking
    # its result apart moves anything between threads.
    if LINES == 1:
        joined = lines[0]
    elif LINES == 2:
        joined = tl.reshape(tl.permute(tl.join(lines[0], lines[1]), (1, 0)), [2 * BLOCK_SOURCE])
    else:
        fourth = lines[3] if LINES == 4 else tl.zeros([BLOCK_SOURCE], lines[0].dtype)
        pairs = tl.join(tl.join(lines[0], lines[2]), tl.join(lines[1], fourth))
        joined = tl.reshape(tl.permute(pairs, (1, 2, 0)), [4 * BLOCK_SOURCE])
    positions = position[None, :] + tl.arange(0, GROUP)[:, None]
    positions = positions[None, :, :] + (tl.arange(0, COUNT) * BLOCK_SOURCE)[:, None, None]
    values = tl.gather(joined, tl.reshape(positions, [COUNT * GROUP * BLOCK_W]), 0)
    values = tl.reshape(values, [COUNT, GROUP, BLOCK_W])
    if SELECT:
        values = tl.where((weights > 0)[None, :, :], values, 0.0)
    sums = tl.sum(values * weights[None, :, :], 1)
    if LINES == 1:
        result = (totals[0] + tl.reshape(sums, [BLOCK_W]),)
    elif LINES == 2:
        sum0, sum1 = tl.split(tl.permute(sums, (1, 0)))
        result = (totals[0] + sum0, totals[1] + sum1)
    else:
        even, odd = tl.split(tl.permute(tl.reshape(sums, [2, 2, BLOCK_W]), (2, 0, 1)))
        sum0, sum2 = tl.split(even)
        sum1, sum3 = tl.split(odd)
        result = (totals[0] + sum0, totals[1] + sum1, totals[2] + sum2)
        if LINES == 4:
            result = result + (totals[3] + sum3,)  # noqa: RUF005 - Triton unpacks nothing here
    return result
