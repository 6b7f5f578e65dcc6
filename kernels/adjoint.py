"""`crop_resize_adjoint`: the transpose of `crop_resize`, the gradient of an image.

A gather: a program owns a tile of source pixels and visits the outputs whose footprints hold each of them. No
atomics, and always the same order of additions: the same bits on every run.
"""

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.geometry import Filter
from tritonsoft.kernels.convert import downcast, upcast
from tritonsoft.kernels.geometry import axis_of_box, filter_support, footprint, tap_weight
from tritonsoft.kernels.launch import (
    Launch,
    accumulator_type,
    launch,
    offset_type,
    register_limit,
    tile_shape,
)


@triton.jit
def _covering_outputs(source, box, out_size, FILTER: tl.constexpr):
    """The first output, not counting mirroring, whose footprint may cover source pixels, and how many may."""
    lo, hi, _ = box
    support = filter_support(box, out_size, FILTER)
    density = out_size.to(tl.float64) / tl.maximum(hi - lo, 1e-30)
    centre = source.to(tl.float64) + 0.5 - lo
    end = out_size.to(tl.float64)
    first = tl.ceil(tl.minimum(tl.maximum((centre - support) * density - 0.5, 0.0), end)).to(tl.int32)
    last = tl.floor(tl.minimum(tl.maximum((centre + support) * density - 0.5, -1.0), end - 1)).to(tl.int32)
    return first, last - first + 1


@triton.jit
def _transposed_tap(
    step,
    source,
    outputs,  # `_covering_outputs` of the source pixels
    box,
    support,
    out_size,
    in_size,
    FILTER: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """The step-th output that covers each source pixel, and the pixel's weight in it; 0 where there are fewer."""
    first_output, num_outputs = outputs
    count = tl.minimum(first_output + step, out_size - 1)
    output = tl.where(box[2], out_size - 1 - count, count)
    first, last, distance, inverse_weight_sum, _ = footprint(output, box, out_size, in_size, FILTER, ACCUMULATOR)
    weight = tap_weight(distance + (source - first).to(ACCUMULATOR), support, FILTER) * inverse_weight_sum
    return output, tl.where((step < num_outputs) & (source >= first) & (source <= last), weight, 0.0)


@triton.jit(do_not_specialize=["in_height", "in_width", "out_height", "out_width", "channels"])
def crop_resize_adjoint_kernel(
    out,  # (B, K, H, W)
    out_strides,
    grad,  # (B, K, h, w)
    grad_strides,
    boxes,  # (B, 4), or None for the whole image
    boxes_strides,
    in_height,
    in_width,
    out_height,
    out_width,
    channels,
    FILTER: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,  # the integer that holds an offset inside one plane
):
    tiles_x = tl.cdiv(in_width, BLOCK_W)
    tiles_y = tl.cdiv(in_height, BLOCK_H)
    tile = tl.program_id(0)
    element = tl.arange(0, BLOCK_K * BLOCK_H * BLOCK_W)  # a list, as in `forward`
    rows = tile // tiles_x % tiles_y * BLOCK_H + element // BLOCK_W % BLOCK_H
    columns = tl.max_contiguous(tile % tiles_x * BLOCK_W + element % BLOCK_W, 1)
    sample = (tile // tiles_x // tiles_y).to(tl.int64)

    box_y = axis_of_box(boxes, boxes_strides, sample, 1, in_height)
    box_x = axis_of_box(boxes, boxes_strides, sample, 0, in_width)
    support_y = filter_support(box_y, out_height, FILTER).to(ACCUMULATOR)
    support_x = filter_support(box_x, out_width, FILTER).to(ACCUMULATOR)
    outputs_y = _covering_outputs(rows, box_y, out_height, FILTER)
    outputs_x = _covering_outputs(columns, box_x, out_width, FILTER)
    max_outputs_y = tl.max(outputs_y[1])
    max_outputs_x = tl.max(outputs_x[1])
    inside = (rows < in_height) & (columns < in_width)
    out_offsets = rows.to(OFFSET) * out_strides[2] + columns.to(OFFSET) * out_strides[3]

    for first_channel in range(0, channels, BLOCK_K):
        channel = first_channel + element // (BLOCK_H * BLOCK_W)
        planes = grad + sample * grad_strides[0] + channel.to(tl.int64) * grad_strides[1]
        total = tl.zeros([BLOCK_K * BLOCK_H * BLOCK_W], ACCUMULATOR)
        for step_y in range(0, max_outputs_y):
            row, weight_y = _transposed_tap(
                step_y, rows, outputs_y, box_y, support_y, out_height, in_height, FILTER, ACCUMULATOR
            )
            offset_y = row.to(OFFSET) * grad_strides[2]
            for step_x in range(0, max_outputs_x):
                column, weight_x = _transposed_tap(
                    step_x, columns, outputs_x, box_x, support_x, out_width, in_width, FILTER, ACCUMULATOR
                )
                weight = weight_y * weight_x
                pointers = planes + (offset_y + column.to(OFFSET) * grad_strides[3])
                mask = (channel < channels) & (weight > 0)
                total += weight * upcast(tl.load(pointers, mask=mask, other=0.0), ACCUMULATOR)
        pointers = out + sample * out_strides[0] + channel.to(tl.int64) * out_strides[1] + out_offsets
        tl.store(pointers, downcast(total, out.dtype.element_ty), mask=inside & (channel < channels))


def launch_configuration(out: Tensor, grad: Tensor, boxes: Tensor | None, filter: Filter, platform: str) -> Launch:
    """What to launch for these tensors; only their shapes, strides and types matter."""
    (height, width), (out_height, out_width) = out.shape[2:], grad.shape[2:]
    # A thread's pixels are several channels of several rows: they share their weights.
    block_k = min(triton.next_power_of_2(out.shape[1]), 4)
    block_h, block_w = tile_shape(height, width, 512)
    accumulator = accumulator_type(out, grad)
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
            "in_width": width,
            "out_height": out_height,
            "out_width": out_width,
            "channels": out.shape[1],
            "FILTER": filter,
            "BLOCK_K": block_k,
            "BLOCK_H": block_h,
            "BLOCK_W": block_w,
            "ACCUMULATOR": accumulator,
            "OFFSET": offset_type(out, grad),
        },
        {"num_warps": 4, **register_limit(platform, accumulator)},
    )


def crop_resize_adjoint(out: Tensor, grad: Tensor, boxes: Tensor | None, filter: Filter) -> None:
    """``grad (B, K, h, w)`` -> ``out (B, K, H, W)``."""
    launch(launch_configuration, out.device, out, grad, boxes, filter)
