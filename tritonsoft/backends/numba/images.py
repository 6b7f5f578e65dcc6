"""Images: the weighted sum of source rows (contiguous, so it vectorises), then of that line's columns, for several rows
side by side. The gradient is the same loop over the transposed lists of taps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.elements import (
    LIKE,
    LINE_BYTES,
    Array,
    array_at,
    compute_dtype,
    downcast,
    fence,
    prefetch,
    streaming,
    upcast,
    write_line,
)
from tritonsoft.backends.numba.taps import (
    Taps,
    TapTable,
    pixels_read,
    table_of_whole,
    tables_of_boxes,
    taps_at,
    transposed,
)
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import ROWS, broadcast, load, store, transpose_square
from tritonsoft.geometry import Filter

_STEP = 64  # outputs between two requests for rows ahead
_ROWS_AHEAD = 2
_MAX_ROWS_AHEAD = 4  # rows from one output to the next: of more, the cache would lose some before they are needed


@jit
def _is_halving(taps: Taps, output: Any, width: Any) -> bool:
    """Whether each output of a line is half the sum of the two neighbours after those of the output before."""
    first, begin, weight, _ = taps
    for n in range(output, output + width):
        start = begin[n]
        if begin[n + unsigned(1)] - start != 2 or first[n] != first[output] + np.int64(2) * np.int64(n - output):
            return False
        if weight[start] != 0.5 or weight[start + 1] != 0.5:
            return False
    return True


@jit
def _add_pairs(line: Any, begin: Any, sums: Any, sums_begin: Any, count: Any) -> None:
    half = line.dtype.type(0.5)
    for n in range(count):
        place = begin + unsigned(2) * n
        sums[sums_begin + n] = half * line[place] + half * line[place + unsigned(1)]


@jit
def _add_squares(
    image: Any, above: Any, below: Any, weights: Any, sums: Any, sums_begin: Any, count: Any, ahead: Any
) -> None:
    """`_add_pairs` of the weighted sum of two rows, in one go and with the same bits; asks for rows ``ahead``."""
    half, (weight, weight_below) = sums.dtype.type(0.5), weights
    step, per_line = unsigned(_STEP), unsigned(LINE_BYTES // image.itemsize)
    for begin in range(unsigned(0), count, step):
        end = min(begin + step, count)
        for n in range(unsigned(2) * begin, unsigned(2) * end, per_line):
            prefetch(image, above + ahead + n)
            prefetch(image, below + ahead + n)
        for n in range(begin, end):
            left, right = unsigned(2) * n, unsigned(2) * n + unsigned(1)
            sum_left = weight * upcast(image[above + left]) + weight_below * upcast(image[below + left])
            sum_right = weight * upcast(image[above + right]) + weight_below * upcast(image[below + right])
            sums[sums_begin + n] = half * sum_left + half * sum_right


@jit
def _resize_rows(
    out: Any,
    out_strides: Any,
    image: Any,
    image_strides: Any,
    shape: Any,
    taps_y: Taps,
    taps_x: Taps,
    unit: Any,
    fill: Any,
    line_length: Any,
    to_boundary: Any,
    first_row: int,
    end_row: int,
) -> None:
    """Output rows of an image whose ``channels`` interleaved channels form ``planes`` separate planes per sample.

    Rows of a sample share their taps along x. `ROWS` of them are summed side by side, each in its element of a vector:
    along the row a vector would have to gather its taps, which costs more than transposing there and back. Where the
    taps are pairs of neighbours, as at factor 2, a line is summed along itself.
    """
    first_y, begin_y, weight_y, outside_y = taps_y
    first_x, begin_x, weight_x, outside_x = taps_x
    planes, channels, in_width, out_height, out_width = shape
    stride_x, stride_channel = unsigned(image_strides[3]), unsigned(image_strides[1])
    contiguous = stride_x == channels and (channels == 1 or stride_channel == 1)
    side, num_channels, width = unsigned(ROWS), unsigned(channels), unsigned(out_width)
    per_line = unsigned(LINE_BYTES // image.itemsize)
    zero, one = weight_x.dtype.type(0), weight_x.dtype.type(1)
    count = width * num_channels
    in_pitch = unsigned((in_width * channels + ROWS - 1) // ROWS * ROWS)
    out_pitch = unsigned((out_width * channels + ROWS - 1) // ROWS * ROWS)
    lines = np.zeros(side * in_pitch, weight_x.dtype)  # (ROWS, source columns of the box): summed along y
    columns = np.zeros(in_pitch * side, weight_x.dtype)  # its transpose
    sums = np.zeros(out_pitch * side, weight_x.dtype)  # (output columns, ROWS): summed along x too
    results = np.zeros(side * out_pitch, weight_x.dtype)  # its transpose
    finished = np.empty(count, out.dtype)
    last_box = first_x.size // out_width - 1
    current_box, left, right, has_padding, is_halving = -1, 0, 0, False, False
    row = first_row
    while row < end_row:
        sample = row // (planes * out_height)
        box = min(sample, last_box)
        output_x = unsigned(box * out_width)
        if box != current_box:
            current_box, left, right, has_padding = box, in_width, 0, False
            for n in range(output_x, output_x + width):
                num_taps = begin_x[n + unsigned(1)] - begin_x[n]
                if num_taps > 0:
                    left, right = min(left, first_x[n]), max(right, first_x[n] + num_taps)
                has_padding |= outside_x[n] != zero
            is_halving = channels == 1 and _is_halving(taps_x, output_x, width)
        # Rows that need not be side by side go one by one: all that happens to one happens in the first cache.
        at_most = 1 if is_halving else ROWS
        num_rows = min(at_most, end_row - row, (sample + 1) * planes * out_height - row)
        first_element = unsigned(left * channels)
        num_elements = unsigned(max(left, right) * channels) - first_element

        is_empty = True
        for r in range(num_rows):
            plane, i = (row + r) // out_height % planes, (row + r) % out_height
            line, output_y = unsigned(r) * in_pitch, box * out_height + i
            begin_tap, end_tap = begin_y[output_y], begin_y[output_y + 1]
            is_empty = is_empty and begin_tap == end_tap
            further = output_y + ROWS
            if contiguous and i + ROWS < out_height and begin_y[further] < begin_y[further + 1]:
                # Ask for what the row as far down as all these needs and the one before it does not, up or down.
                rows = first_y[further] - first_y[further - 1]
                for y in range(abs(rows) if abs(rows) <= _MAX_ROWS_AHEAD else 0):
                    base = unsigned(sample * image_strides[0] + plane * image_strides[1])
                    base += unsigned((first_y[further] - (y if rows > 0 else -y)) * image_strides[2])
                    for n in range(first_element, first_element + num_elements, per_line):
                        prefetch(image, base + n)
            if begin_tap == end_tap:
                for n in range(num_elements):
                    lines[line + n] = zero
            two_rows = contiguous and end_tap - begin_tap > 1
            if two_rows:  # at once
                y, weights = first_y[output_y], (weight_y[begin_tap], weight_y[begin_tap + 1])
                above = unsigned(sample * image_strides[0] + plane * image_strides[1] + y * image_strides[2])
                above += first_element
                below = above + unsigned(image_strides[2])
                if is_halving and end_tap - begin_tap == 2:
                    ahead = unsigned(2 * _ROWS_AHEAD * image_strides[2])
                    _add_squares(image, above, below, weights, results, unsigned(0), width, ahead)
                    continue
                for n in range(num_elements):
                    lines[line + n] = weights[0] * upcast(image[above + n]) + weights[1] * upcast(image[below + n])
            for t in range(begin_tap + 2 if two_rows else begin_tap, end_tap):
                weight, opening = weight_y[t], t == begin_tap
                y = first_y[output_y] + t - begin_tap
                base = unsigned(sample * image_strides[0] + plane * image_strides[1] + y * image_strides[2])
                if contiguous and opening:
                    for n in range(num_elements):
                        lines[line + n] = weight * upcast(image[base + first_element + n])
                elif contiguous:
                    for n in range(num_elements):
                        lines[line + n] += weight * upcast(image[base + first_element + n])
                else:
                    for n in range(num_elements):
                        x, channel = (first_element + n) // num_channels, (first_element + n) % num_channels
                        value = weight * upcast(image[base + x * stride_x + channel * stride_channel])
                        lines[line + n] = value if opening else lines[line + n] + value
            if is_halving:
                _add_pairs(lines, line, results, unsigned(0), width)
        if is_empty:
            results[:] = 0
        elif not is_halving:
            for n in range(unsigned(0), num_elements, side):
                transpose_square(lines, n, in_pitch, columns, n * side, side)

            for j in range(width):
                first_tap, last_tap = unsigned(begin_x[output_x + j]), unsigned(begin_x[output_x + j + unsigned(1)])
                for channel in range(num_channels):
                    place = (unsigned(first_x[output_x + j]) * num_channels + channel - first_element) * side
                    total = broadcast(zero, ROWS)
                    for t in range(first_tap, last_tap):
                        total = total + weight_x[t] * load(columns, place, ROWS)
                        place += num_channels * side
                    store(sums, (j * num_channels + channel) * side, total)
            for n in range(unsigned(0), count, side):
                transpose_square(sums, n * side, side, results, n, out_pitch)

        for r in range(num_rows):
            plane, i = (row + r) // out_height % planes, (row + r) % out_height
            line, share_y = unsigned(r) * out_pitch, outside_y[box * out_height + i]
            if unit != one:
                for n in range(count):
                    results[line + n] /= unit
            if fill != zero and (has_padding or share_y != zero):
                for j in range(width):
                    outside = share_y + outside_x[output_x + j] * (one - share_y)
                    padding = outside * fill if outside != zero else zero
                    for n in range(j * num_channels, (j + unsigned(1)) * num_channels):
                        results[line + n] += padding
            for n in range(count):
                finished[n] = downcast(results[line + n], out)
            start = unsigned(sample * out_strides[0] + plane * out_strides[1] + i * out_strides[2])
            write_line(out, start, finished, count, line_length, to_boundary)
        row += num_rows
    fence()


@jit
def _resize_at(
    out: int,
    like_out: Array,
    out_strides: Any,
    image: int,
    like_image: Array,
    image_strides: Any,
    shape: Any,
    taps_y: Any,
    taps_x: Any,
    like: Array,
    unit: float,
    fill: float,
    line_length: int,
    to_boundary: int,
    first: int,
    end: int,
) -> None:
    """`_resize_rows` of tensors and taps at these addresses."""
    _resize_rows(
        array_at(out, 0, like_out),
        out_strides,
        array_at(image, 0, like_image),
        image_strides,
        shape,
        taps_at(taps_y, like),
        taps_at(taps_x, like),
        like.dtype.type(unit),
        like.dtype.type(fill),
        unsigned(line_length),
        unsigned(to_boundary),
        first,
        end,
    )


def _resize(out: Tensor, image: Tensor, taps_y: TapTable, taps_x: TapTable, dtype: torch.dtype, fill: float) -> None:
    batch, num_channels, out_height, out_width = out.shape
    interleaved = num_channels > 1 and out.stride(1) == 1 and out.stride(3) == num_channels
    planes, channels = (1, num_channels) if interleaved else (num_channels, 1)
    unit = 255.0 if image.dtype == torch.uint8 and out.dtype != torch.uint8 else 1.0
    arguments = (
        out.data_ptr(),
        LIKE[out.dtype],
        out.stride(),
        image.data_ptr(),
        LIKE[image.dtype],
        image.stride(),
        (planes, channels, image.shape[3], out_height, out_width),
        taps_y.arguments,
        taps_x.arguments,
        LIKE[dtype],
        unit,
        float(fill),
        *streaming(out),
    )
    num_boxes = taps_x.arguments[4] // out_width
    work = 0.25 * pixels_read(taps_y, taps_x, num_boxes) * num_channels * batch / num_boxes + 0.5 * out.numel()
    pool.run(lambda first, end: _resize_at(*arguments, first, end), batch * planes * out_height, work)


def crop_resize(out: Tensor, image: Tensor, boxes: Tensor | None, filter: Filter, fill: float) -> None:
    """Writes `tritonsoft.backends.reference.crop_resize` of an image ``(B, K, H, W)`` to ``out (B, K, h, w)``."""
    dtype = compute_dtype(out, image)
    taps_y, taps_x = _tables(boxes, image.shape[2:], out.shape[2:], filter, dtype)
    _resize(out, image, taps_y, taps_x, dtype, fill)


def _tables(
    boxes: Tensor | None, in_size: Sequence[int], out_size: Sequence[int], filter: Filter, dtype: torch.dtype
) -> tuple[TapTable, TapTable]:
    """The taps along y and along x."""
    if boxes is None:
        return (
            table_of_whole(in_size[0], out_size[0], filter, dtype),
            table_of_whole(in_size[1], out_size[1], filter, dtype),
        )
    return tables_of_boxes(boxes.double().contiguous(), in_size, out_size, filter, dtype, dtype)[:2]


def crop_resize_adjoint(out: Tensor, grad: Tensor, boxes: Tensor | None, filter: Filter) -> None:
    """Writes `reference.crop_resize_adjoint` of a gradient ``(B, K, h, w)`` to ``out (B, K, H, W)``."""
    in_size, out_size, dtype = out.shape[2:], grad.shape[2:], compute_dtype(out, grad)
    axes = zip(_tables(boxes, in_size, out_size, filter, dtype), in_size, out_size, strict=True)
    taps_y, taps_x = (TapTable(*transposed(*taps[:3], *sizes)) for taps, *sizes in axes)
    _resize(out, grad, taps_y, taps_x, dtype, 0.0)
