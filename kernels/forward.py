"""`crop_resize`, `soft_crop_resize` and both at once: one kernel, so that image and label share box and filter.

A program computes one tile of one sample: all its channels, then all its classes, counted in one of two ways, chosen by
the shapes (`counting_integer`, `counting_general`).
"""

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends.values import labels_in_range
from tritonsoft.geometry import Filter
from tritonsoft.kernels.convert import downcast, upcast
from tritonsoft.kernels.counting_general import soft_tile
from tritonsoft.kernels.counting_integer import soft_tile_integer_factor
from tritonsoft.kernels.geometry import axis_of_box, filter_support, tap_of, tile_footprints
from tritonsoft.kernels.launch import (
    Launch,
    accumulator_type,
    integer_factor,
    integer_factor_tile,
    launch,
    offset_type,
    power_of_two_factor,
    register_limit,
    tile_shape,
)

# --- image ----------------------------------------------------------------------------------------------------------


@triton.jit
def _image_tile(
    out,  # this sample
    out_strides,
    image,  # this sample
    image_strides,
    rows,  # of the output, (BLOCK_HW,)
    columns,
    inside,
    taps_y,  # footprints (BLOCK_HW,)
    taps_x,  # footprints (BLOCK_HW,)
    num_taps_y,
    num_taps_x,
    support_y,
    support_x,
    in_height,
    in_width,
    channels,
    fill,
    CHANNELS: tl.constexpr,  # that share a loop over the taps
    FILTER: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    dtype = out.dtype.element_ty
    offsets = rows.to(OFFSET) * out_strides[2] + columns.to(OFFSET) * out_strides[3]
    factor = taps_y[3] * taps_x[3]  # one over the sum of the weights
    if image.dtype.element_ty == tl.uint8 and dtype != tl.uint8:
        factor = factor / 255
    outside = 1 - taps_y[4] * taps_x[4]
    # Selected, not multiplied: an infinite fill must not spoil the pixels that are wholly inside.
    padding = tl.where(outside > 0, outside * (tl.zeros([], tl.float64) + fill).to(ACCUMULATOR), 0.0)
    for first_channel in range(0, channels, CHANNELS):
        planes = ()
        totals = ()
        for step in tl.static_range(CHANNELS):
            channel = tl.minimum(first_channel + step, channels - 1)
            planes = planes + (image + tl.cast(channel, tl.int64) * image_strides[1],)  # noqa: RUF005 - no unpacking here
            totals = totals + (tl.zeros([BLOCK_HW], ACCUMULATOR),)  # noqa: RUF005
        for step_y in range(0, num_taps_y):
            weight_y, offset_y = tap_of(step_y, taps_y, support_y, image_strides[2], in_height, FILTER, OFFSET)
            for step_x in range(0, num_taps_x):
                weight_x, offset_x = tap_of(step_x, taps_x, support_x, image_strides[3], in_width, FILTER, OFFSET)
                weight = weight_y * weight_x
                sums = ()
                for step in tl.static_range(CHANNELS):
                    value = upcast(tl.load(planes[step] + (offset_y + offset_x)), ACCUMULATOR)
                    # Selected: a tap without weight may be infinite.
                    sums = sums + (tl.where(weight > 0, totals[step] + value * weight, totals[step]),)  # noqa: RUF005
                totals = sums
        for step in tl.static_range(CHANNELS):
            plane = out + tl.cast(first_channel + step, tl.int64) * out_strides[1]
            value = downcast(totals[step] * factor + padding, dtype)
            tl.store(plane + offsets, value, mask=inside & (first_channel + step < channels))


@triton.jit(
    do_not_specialize=[
        "in_height",
        "in_width_units",
        "out_height",
        "out_width_units",
        "channels",
        "num_classes",
        "ignored_class",
    ]
)
def crop_resize_kernel(
    out,  # (B, K, h, w), or None where there is no image
    out_strides,
    image,  # (B, K, H, W), or None
    image_strides,
    soft,  # (B, C, h, w), contiguous, or None where there is no label map
    labels,  # (B, H, W), or None
    labels_strides,
    boxes,  # (B, 4), or None for the whole image
    boxes_strides,
    in_height,
    in_width_units,
    out_height,
    out_width_units,
    channels,
    num_classes,
    ignored_class,
    fill: tl.float64,
    FILTER: tl.constexpr,
    INTEGER_FACTOR: tl.constexpr,  # 0: the general way to count labels
    CHANNELS: tl.constexpr,  # of the image that share a loop over the taps
    IN_WIDTH_UNIT: tl.constexpr,
    OUT_WIDTH_UNIT: tl.constexpr,  # neighbouring outputs that one store may take
    ZEROED: tl.constexpr,  # whether the soft label holds zeros: those of absent classes are not stored
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,  # the integer that holds an offset inside one plane
):
    # Written as a product, a width is known to be divisible: masks and rows keep the alignment of wide accesses.
    in_width = in_width_units * IN_WIDTH_UNIT
    out_width = out_width_units * OUT_WIDTH_UNIT
    tiles_x = tl.cdiv(out_width, BLOCK_W)
    tiles_y = tl.cdiv(out_height, BLOCK_H)
    tile = tl.program_id(0)
    column = tile % tiles_x * BLOCK_W
    row = tile // tiles_x % tiles_y * BLOCK_H
    sample = tile // tiles_x // tiles_y
    sample_offset = sample.to(tl.int64)
    # A tile is one list of pixels, and a thread's pixels lie below one another: the compiler sees that they share what
    # belongs to their column. Loops over taps gather and store one pixel per thread and instruction: stores that claim
    # no neighbours (`max_contiguous`) save Triton moving every tap from the layout of the gather to that of the store.
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    rows = row + pixel // BLOCK_W
    columns = tl.max_contiguous(column + pixel % BLOCK_W, 1)
    inside = (rows < out_height) & (columns < out_width)

    if image is not None or INTEGER_FACTOR == 0:
        box_y = axis_of_box(boxes, boxes_strides, sample_offset, 1, in_height)
        box_x = axis_of_box(boxes, boxes_strides, sample_offset, 0, in_width)
        support_y = filter_support(box_y, out_height, FILTER).to(ACCUMULATOR)
        support_x = filter_support(box_x, out_width, FILTER).to(ACCUMULATOR)
        taps_y, extent_y = tile_footprints(
            row, pixel // BLOCK_W, box_y, out_height, in_height, BLOCK_H, FILTER, ACCUMULATOR
        )
        taps_x, extent_x = tile_footprints(
            column, pixel % BLOCK_W, box_x, out_width, in_width, BLOCK_W, FILTER, ACCUMULATOR
        )
        if image is not None:
            _image_tile(
                out + sample_offset * out_strides[0],
                out_strides,
                image + sample_offset * image_strides[0],
                image_strides,
                rows,
                columns,
                inside,
                taps_y,
                taps_x,
                extent_y[2],
                extent_x[2],
                support_y,
                support_x,
                in_height,
                in_width,
                channels,
                fill,
                CHANNELS,
                FILTER,
                BLOCK_H * BLOCK_W,
                ACCUMULATOR,
                OFFSET,
            )
    if labels is not None:
        plane_size = out_height.to(tl.int64) * out_width
        rows_2d = row + tl.arange(0, BLOCK_H)[:, None]
        columns_2d = column + tl.arange(0, BLOCK_W)[None, :]
        pixels_2d = (
            rows_2d,
            columns_2d,
            rows_2d.to(OFFSET) * out_width + columns_2d,
            (rows_2d < out_height) & (columns_2d < out_width),
        )
        # Zeros of absent classes are stored in two dimensions, not as a list: that gives the widest stores.
        pixels_of_zeros = ()
        if not ZEROED:
            pixels_of_zeros = (pixels_2d[2], pixels_2d[3])
        epilogue = (soft + sample_offset * num_classes * plane_size, plane_size, pixels_of_zeros)
        labels_sample = labels + sample_offset * labels_strides[0]
        if INTEGER_FACTOR > 0:
            soft_tile_integer_factor(
                epilogue,
                (),
                pixels_2d,
                labels_sample,
                labels_strides,
                column,
                out_height,
                out_width,
                num_classes,
                ignored_class,
                "mass",
                BLOCK_H,
                BLOCK_W,
                INTEGER_FACTOR,
                OFFSET,
            )
        else:
            soft_tile(
                epilogue,
                (),
                (rows, columns, rows.to(OFFSET) * out_width + columns, inside),
                labels_sample,
                labels_strides,
                taps_y,
                taps_x,
                extent_y,
                extent_x,
                support_y,
                support_x,
                in_height,
                in_width,
                num_classes,
                ignored_class,
                "mass",
                FILTER,
                BLOCK_H * BLOCK_W,
                ACCUMULATOR,
                OFFSET,
            )


# --- launch ---------------------------------------------------------------------------------------------------------


def channels_at_once(channels: int) -> int:
    """How many channels share a loop over the taps, whose weights and offsets they share; registers allow four."""
    return channels if channels <= 4 else 3 if channels % 4 and channels % 3 == 0 else 4


def needs_zeros(soft: Tensor) -> bool:
    """Whether a soft label must hold zeros before the kernel runs.

    Rows of an odd width start at any address: a thread can store one element at a time only, and fills the sectors of
    the memory in parts. Filling the whole tensor first is much faster; the kernel then stores present classes alone.
    """
    return soft.shape[3] % 2 == 1


def launch_configuration(
    out: Tensor | None,
    image: Tensor | None,
    soft: Tensor | None,
    labels: Tensor | None,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    fill: float,
    platform: str,
) -> Launch:
    """What to launch for these tensors; only their shapes, strides and types matter."""
    result, source = (soft, labels) if soft is not None else (out, image)
    assert result is not None
    assert source is not None
    (height, width), (in_height, in_width) = result.shape[-2:], source.shape[-2:]
    num_classes = soft.shape[1] if soft is not None else 0
    factor = integer_factor(labels, boxes, (height, width), num_classes, filter)
    accumulator = accumulator_type(out, image, soft)
    if factor > 0:
        options, elements, unit = integer_factor_tile(factor, result.element_size(), platform)
    else:
        # Measured on an H100 (bench/NOTES.md): more outputs per program leave too few programs to hide their loads.
        of_labels_in_boxes = image is None and boxes is not None and soft is not None and not needs_zeros(soft)
        options, elements = {"num_warps": 2 if of_labels_in_boxes else 4}, 512
        unit = 16 // soft.element_size() if soft is not None else 1
    if factor == 0 or image is not None:
        options |= register_limit(platform, accumulator, image is not None)
    block_h, block_w = tile_shape(height, width, elements)
    # Each unit compiles a kernel of its own, so source widths are told apart by the widest loads alone.
    in_unit, out_unit = 16 if in_width % 16 == 0 else 1, power_of_two_factor(width, unit)
    return Launch(
        crop_resize_kernel,
        (triton.cdiv(height, block_h) * triton.cdiv(width, block_w) * result.shape[0],),
        {
            "out": out,
            "out_strides": None if out is None else out.stride(),
            "image": image,
            "image_strides": None if image is None else image.stride(),
            "soft": soft,
            "labels": labels,
            "labels_strides": None if labels is None else labels.stride(),
            "boxes": boxes,
            "boxes_strides": None if boxes is None else boxes.stride(),
            "in_height": in_height,
            "in_width_units": in_width // in_unit,
            "out_height": height,
            "out_width_units": width // out_unit,
            "channels": image.shape[1] if image is not None else 0,
            "num_classes": num_classes,
            # Labels outside 0 .. C-1 carry no mass anyway; only an ignored class needs to be known.
            "ignored_class": ignore_index if 0 <= ignore_index < num_classes else -1,
            "fill": float(fill),
            "FILTER": filter,
            "INTEGER_FACTOR": factor,
            "CHANNELS": channels_at_once(image.shape[1]) if image is not None else 0,
            "IN_WIDTH_UNIT": in_unit,
            "OUT_WIDTH_UNIT": out_unit,
            "ZEROED": soft is not None and needs_zeros(soft),
            "BLOCK_H": block_h,
            "BLOCK_W": block_w,
            "ACCUMULATOR": accumulator,
            "OFFSET": offset_type(out, image, soft, labels),
        },
        options,
    )


def crop_resize(out: Tensor, image: Tensor, boxes: Tensor | None, filter: Filter, fill: float) -> None:
    """Image ``(B, K, H, W)`` -> ``out (B, K, h, w)``."""
    launch(launch_configuration, out.device, out, image, None, None, boxes, -1, filter, fill)


def soft_crop_resize(
    out: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, filter: Filter, validate: bool
) -> bool:
    """Label map ``(B, H, W)`` -> soft label ``out (B, C, h, w)``."""
    if validate and not labels_in_range(labels, out.shape[1], ignore_index):
        return False
    if needs_zeros(out):
        out.zero_()
    launch(launch_configuration, out.device, None, None, out, labels, boxes, ignore_index, filter, 0.0)
    return True


def crop_resize_pair(
    out: Tensor,
    out_soft: Tensor,
    image: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    fill: float,
    validate: bool,
) -> bool:
    """Image and label map through the same boxes, in one launch."""
    if validate and not labels_in_range(labels, out_soft.shape[1], ignore_index):
        return False
    if needs_zeros(out_soft):
        out_soft.zero_()
    launch(launch_configuration, out.device, out, image, out_soft, labels, boxes, ignore_index, filter, fill)
    return True
