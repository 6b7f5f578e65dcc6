"""`crop_resize_adjoint`: the transpose of `crop_resize`, the gradient of an image.

A gather: a program, a single warp, owns a strip of source columns and visits the outputs whose footprints hold their
pixels. No atomics, and always the same order of additions: the same bits on every run.

Where an image shrinks, two outputs at most cover a pixel along an axis, whatever the filter. Their weights are computed
once: those of its columns by each thread, those of the strip's rows by one lane each, which hands them to the others
when the walk down the strip comes to that row. A row of outputs is summed along x when the walk first meets it, and
kept for all the source rows that it covers.
"""

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.geometry import Filter
from tritonsoft.kernels.convert import downcast, upcast
from tritonsoft.kernels.geometry import axis_of_box, filter_support, footprint, tap_weight
from tritonsoft.kernels.launch import (
    TRITON_VERSION,
    Launch,
    accumulator_type,
    launch,
    offset_type,
    power_of_two_factor,
)

# `axis`: box, outputs and source pixels along x or y.


@triton.jit
def _covering_outputs(source, axis, FILTER: tl.constexpr):
    """The first output, not counting mirroring, whose footprint may cover source pixels, and how many may.

    Behind the last output that is the number of outputs, and 0: a walk along the source never goes beyond it.
    """
    box, out_size, _ = axis
    lo, hi, _ = box
    support = filter_support(box, out_size, FILTER)
    density = out_size.to(tl.float64) / tl.maximum(hi - lo, 1e-30)
    centre = source.to(tl.float64) + 0.5 - lo
    # An output that just touches a pixel gives it no weight. That leaves two at most where the image shrinks.
    end = out_size.to(tl.float64)
    first = tl.floor(tl.minimum(tl.maximum((centre - support) * density - 0.5, -1.0), end - 1)).to(tl.int32) + 1
    last = tl.ceil(tl.minimum(tl.maximum((centre + support) * density - 0.5, -1.0), end)).to(tl.int32) - 1
    return first, tl.maximum(last - first + 1, 0)


@triton.jit
def _output_at(count, axis):
    """The output that is the ``count``-th along the source."""
    box, out_size, _ = axis
    return tl.where(box[2], out_size - 1 - count, count)


@triton.jit
def _transposed_tap(step, source, outputs, axis, FILTER: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """The step-th output that covers each source pixel, and the pixel's weight in it; 0 where there are fewer."""
    box, out_size, in_size = axis
    first_output, num_outputs = outputs
    output = _output_at(tl.minimum(first_output + step, out_size - 1), axis)
    first, last, distance, inverse_weight_sum, _ = footprint(output, box, out_size, in_size, FILTER, ACCUMULATOR)
    support = filter_support(box, out_size, FILTER).to(ACCUMULATOR)
    weight = tap_weight(distance + (source - first).to(ACCUMULATOR), support, FILTER) * inverse_weight_sum
    return output, tl.where((step < num_outputs) & (source >= first) & (source <= last), weight, 0.0)


@triton.jit
def _load_outputs(pointers, weight, exists, ACCUMULATOR: tl.constexpr):
    # What has no weight is not looked at: it may be infinite.
    return upcast(tl.load(pointers, mask=(weight > 0) & exists, other=0.0), ACCUMULATOR)


# --- an image that shrinks -------------------------------------------------------------------------------------------


@triton.jit
def _entry(values, index):
    """One of a list of numbers that are not negative, by a single instruction if each lane of a warp holds one."""
    # The bits of such numbers order like integers.
    BITS: tl.constexpr = tl.int64 if values.dtype.primitive_bitwidth == 64 else tl.int32
    chosen = tl.where(tl.arange(0, values.shape[0]) == index, values.to(BITS, bitcast=True), 0)
    return tl.max(chosen).to(values.dtype, bitcast=True)


@triton.jit
def _sums_along_x(row, strides, taps, channels, CHANNELS: tl.constexpr, OFFSET: tl.constexpr):
    """What a row of outputs gives each column, in every channel."""
    sums = ()
    for channel in tl.static_range(CHANNELS):
        plane = row + channel * tl.cast(strides[1], tl.int64)
        total = taps[0][1] * 0
        for step in tl.static_range(2):
            column, weight = taps[step]
            pointers = plane + column.to(OFFSET) * strides[3]
            total += weight * _load_outputs(pointers, weight, channel < channels, weight.dtype)
        sums = sums + (total,)  # noqa: RUF005 - Triton unpacks nothing here
    return sums


@triton.jit
def _add_row(totals, weight, row):
    if weight > 0:
        sums = ()
        for channel in tl.static_range(len(totals)):
            sums = sums + (totals[channel] + weight * row[channel],)  # noqa: RUF005
        totals = sums
    return totals


@triton.jit
def _walk(
    out,  # of this sample and channel, like the next
    out_strides,
    grad,
    grad_strides,
    first_row,
    columns,
    outputs_x,
    axis_y,
    axis_x,
    channels,  # how many there are from this one on
    FILTER: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    rows = first_row + tl.arange(0, BLOCK_H)
    outputs_y = _covering_outputs(rows, axis_y, FILTER)
    _, weight0 = _transposed_tap(0, rows, outputs_y, axis_y, FILTER, ACCUMULATOR)
    _, weight1 = _transposed_tap(1, rows, outputs_y, axis_y, FILTER, ACCUMULATOR)
    taps = (
        _transposed_tap(0, columns, outputs_x, axis_x, FILTER, ACCUMULATOR),
        _transposed_tap(1, columns, outputs_x, axis_x, FILTER, ACCUMULATOR),
    )
    zeros = ()
    for _ in tl.static_range(CHANNELS):
        zeros = zeros + (taps[0][1] * 0,)  # noqa: RUF005
    older, newer = zeros, zeros
    newest = _entry(outputs_y[0], 0) - 1  # the output that `newer` is the row of, not counting mirroring
    for index in range(0, tl.minimum(BLOCK_H, axis_y[2] - first_row)):
        first_output = _entry(outputs_y[0], index)
        num_outputs = _entry(outputs_y[1], index)
        for output in range(newest + 1, first_output + tl.minimum(num_outputs, 2)):
            row = grad + _output_at(output, axis_y).to(tl.int64) * grad_strides[2]
            older = newer
            newer = _sums_along_x(row, grad_strides, taps, channels, CHANNELS, OFFSET)
            newest = output
        weight = _entry(weight0, index)
        is_newest = first_output == newest
        totals = _add_row(zeros, tl.where(is_newest, 0.0, weight), older)
        totals = _add_row(totals, tl.where(is_newest, weight, _entry(weight1, index)), newer)
        offsets = (first_row + index).to(OFFSET) * out_strides[2] + columns.to(OFFSET) * out_strides[3]
        for channel in tl.static_range(CHANNELS):
            pointers = out + channel * tl.cast(out_strides[1], tl.int64) + offsets
            mask = (columns < axis_x[2]) & (channel < channels)
            tl.store(pointers, downcast(totals[channel], out.dtype.element_ty), mask=mask)


# --- an image that grows ---------------------------------------------------------------------------------------------


@triton.jit
def _gather(
    out,  # of this sample and channel, like the next
    out_strides,
    grad,
    grad_strides,
    first_row,
    columns,
    outputs_x,
    axis_y,
    axis_x,
    FILTER: tl.constexpr,
    BLOCK_H: tl.constexpr,
    ROWS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Along an axis that grows, any number of outputs covers a pixel."""
    max_outputs_x = tl.max(outputs_x[1])
    columns = columns[None, :]
    outputs_x = (outputs_x[0][None, :], outputs_x[1][None, :])
    for row in range(first_row, tl.minimum(first_row + BLOCK_H, axis_y[2]), ROWS):
        rows = row + tl.arange(0, ROWS)[:, None]
        outputs_y = _covering_outputs(rows, axis_y, FILTER)
        total = (rows * 0 + columns * 0).to(ACCUMULATOR)
        for step_y in range(0, tl.max(outputs_y[1])):
            output_y, weight_y = _transposed_tap(step_y, rows, outputs_y, axis_y, FILTER, ACCUMULATOR)
            offsets_y = output_y.to(OFFSET) * grad_strides[2]
            for step_x in range(0, max_outputs_x):
                output_x, weight_x = _transposed_tap(step_x, columns, outputs_x, axis_x, FILTER, ACCUMULATOR)
                pointers = grad + (offsets_y + output_x.to(OFFSET) * grad_strides[3])
                weight = weight_y * weight_x
                total += weight * _load_outputs(pointers, weight, True, ACCUMULATOR)
        pointers = out + (rows.to(OFFSET) * out_strides[2] + columns.to(OFFSET) * out_strides[3])
        mask = (rows < axis_y[2]) & (columns < axis_x[2])
        tl.store(pointers, downcast(total, out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["in_height", "in_width_units", "out_height", "out_width", "channels"])
def crop_resize_adjoint_kernel(
    out,  # (B, K, H, W)
    out_strides,
    grad,  # (B, K, h, w)
    grad_strides,
    boxes,  # (B, 4), or None for the whole image
    boxes_strides,
    in_height,
    in_width_units,
    out_height,
    out_width,
    channels,
    FILTER: tl.constexpr,
    IN_WIDTH_UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,  # for which a walk down the strip is made at once
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,  # the integer that holds an offset inside one plane
):
    in_width = in_width_units * IN_WIDTH_UNIT  # written as a product, for wide stores: see `forward`
    strips_x = tl.cdiv(in_width, BLOCK_W)
    strips_y = tl.cdiv(in_height, BLOCK_H)
    strip = tl.program_id(0)
    columns = strip % strips_x * BLOCK_W + tl.arange(0, BLOCK_W)
    first_row = strip // strips_x % strips_y * BLOCK_H
    sample = (strip // strips_x // strips_y).to(tl.int64)

    axis_y = (axis_of_box(boxes, boxes_strides, sample, 1, in_height), out_height, in_height)
    axis_x = (axis_of_box(boxes, boxes_strides, sample, 0, in_width), out_width, in_width)
    outputs_x = _covering_outputs(columns, axis_x, FILTER)
    shrinks = (axis_y[0][1] - axis_y[0][0] >= out_height) & (axis_x[0][1] - axis_x[0][0] >= out_width)
    out += sample * out_strides[0]
    grad += sample * grad_strides[0]
    if shrinks:
        for channel in range(0, channels, CHANNELS):
            _walk(
                out + tl.cast(channel, tl.int64) * out_strides[1],
                out_strides,
                grad + tl.cast(channel, tl.int64) * grad_strides[1],
                grad_strides,
                first_row,
                columns,
                outputs_x,
                axis_y,
                axis_x,
                channels - channel,
                FILTER,
                CHANNELS,
                BLOCK_H,
                ACCUMULATOR,
                OFFSET,
            )
    else:
        for channel in range(0, channels):
            _gather(
                out + tl.cast(channel, tl.int64) * out_strides[1],
                out_strides,
                grad + tl.cast(channel, tl.int64) * grad_strides[1],
                grad_strides,
                first_row,
                columns,
                outputs_x,
                axis_y,
                axis_x,
                FILTER,
                BLOCK_H,
                2,  # rows at once
                ACCUMULATOR,
                OFFSET,
            )


# --- launch ----------------------------------------------------------------------------------------------------------


def launch_configuration(out: Tensor, grad: Tensor, boxes: Tensor | None, filter: Filter, platform: str) -> Launch:
    """What to launch for these tensors; only their shapes, strides and types matter."""
    (channels, height, width), (out_height, out_width) = out.shape[1:], grad.shape[2:]
    accumulator = accumulator_type(out, grad)
    is_double = accumulator is tl.float64
    # One warp: what its lanes tell each other takes no barrier. Each has a row, and up to four columns.
    block_h, block_w = 32, min(max(triton.next_power_of_2(width), 32), 64 if is_double else 128)
    # The least registers that need no local memory: with 96 a scheduler would hold five programs, but some spill. With
    # 104 it holds four, and with 112, which what Triton 3.6 makes of 16-bit types needs for sm_80.
    registers = 255 if is_double else 128 if out.element_size() == 4 else 104 if TRITON_VERSION >= (3, 7) else 112
    limit = {"maxnreg": registers} if platform == "cuda" else {}
    unit = power_of_two_factor(width, 16)
    return Launch(
        crop_resize_adjoint_kernel,
        (triton.cdiv(height, block_h) * triton.cdiv(width, block_w) * out.shape[0],),
        {
            "out": out,
            "out_strides": out.stride(),
            "grad": grad,
            "grad_strides": grad.stride(),
            "boxes": boxes,
            "boxes_strides": None if boxes is None else boxes.stride(),
            "in_height": height,
            "in_width_units": width // unit,
            "out_height": out_height,
            "out_width": out_width,
            "channels": channels,
            "FILTER": filter,
            "IN_WIDTH_UNIT": unit,
            "CHANNELS": min(channels, 3),
            "BLOCK_H": block_h,
            "BLOCK_W": block_w,
            "ACCUMULATOR": accumulator,
            "OFFSET": offset_type(out, grad),
        },
        {"num_warps": 1, **limit},
    )


def crop_resize_adjoint(out: Tensor, grad: Tensor, boxes: Tensor | None, filter: Filter) -> None:
    """``grad (B, K, h, w)`` -> ``out (B, K, H, W)``."""
    launch(launch_configuration, out.device, out, grad, boxes, filter)
