"""`crop_resize`, `soft_crop_resize` and both at once: one kernel, so that image and label share box and filter.

A program computes one tile of one sample: all its channels, then all its classes, counted in one of two ways, chosen by
the shapes (`counting_integer`, `counting_rows`).
"""

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends.values import labels_in_range
from tritonsoft.geometry import Filter
from tritonsoft.kernels.convert import downcast, upcast
from tritonsoft.kernels.counting_integer import soft_tile_integer_factor
from tritonsoft.kernels.counting_rows import soft_rows
from tritonsoft.kernels.epilogues import zeros_of_tile
from tritonsoft.kernels.geometry import axis_of_box, tap_weight
from tritonsoft.kernels.launch import (
    Launch,
    accumulator_type,
    integer_factor,
    integer_factor_tile,
    launch,
    offset_type,
    power_of_two_factor,
    row_options,
    row_tile,
    tile_shape,
)
from tritonsoft.kernels.resampling import (
    add_along_row,
    group_position,
    group_weights,
    row_of_tile,
    tile_columns,
    tile_rows,
)

# --- image ----------------------------------------------------------------------------------------------------------


@triton.jit
def _image_lines(
    image,  # this sample, from the first of the channels
    image_strides,
    row,  # `resampling.row_of_tile`
    start,
    in_width,
    channels,
    CHANNELS: tl.constexpr,
    FILTER: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The weighted sums of each channel in the columns from ``start`` on."""
    first_row, last_row, distance, _, _, support = row
    ACCUMULATOR: tl.constexpr = support.dtype
    columns = start + tl.arange(0, BLOCK_SOURCE)
    lines = ()
    for _ in tl.static_range(CHANNELS):
        lines = lines + (tl.zeros([BLOCK_SOURCE], ACCUMULATOR),)  # noqa: RUF005 - Triton unpacks nothing here
    for source_row in range(first_row, last_row + 1):
        weight = tap_weight(distance + tl.cast(source_row - first_row, ACCUMULATOR), support, FILTER)
        pointers = image + (tl.cast(source_row, OFFSET) * image_strides[2] + columns.to(OFFSET) * image_strides[3])
        sums = ()
        for step in tl.static_range(CHANNELS):
            plane = tl.cast(min(step, channels - 1), tl.int64) * image_strides[1]
            value = upcast(tl.load(pointers + plane, mask=columns < in_width, other=0), ACCUMULATOR)
            # Selected: a tap without weight may be infinite.
            sums = sums + (tl.where(weight > 0, lines[step] + value * weight, lines[step]),)  # noqa: RUF005
        lines = sums
    return lines


@triton.jit
def _image_channels(
    out,  # this sample, from the first of the channels, like the image
    out_strides,
    image,
    image_strides,
    offsets,
    inside,
    row,
    columns,
    extent,
    nearest,
    in_width,
    channels,  # that are left
    factor,
    padding,
    CHANNELS: tl.constexpr,
    FILTER: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    dtype = out.dtype.element_ty
    SELECT: tl.constexpr = image.dtype.element_ty != tl.uint8  # a tap without weight may be infinite
    totals = ()
    for _ in tl.static_range(CHANNELS):
        totals = totals + (tl.zeros(offsets.shape, factor.dtype),)  # noqa: RUF005 - Triton unpacks nothing here
    for line in range(0, extent[1]):
        start = extent[0] + line * BLOCK_SOURCE
        lines = _image_lines(
            image, image_strides, row, start, in_width, channels, CHANNELS, FILTER, BLOCK_SOURCE, OFFSET
        )
        for group in range(0, extent[2]):
            position = group_position(group, start, columns, GROUP, BLOCK_SOURCE)
            weights = nearest
            if (group > 0) | (line > 0):
                weights = group_weights(position, group, start, columns, FILTER, GROUP)
            totals = add_along_row(totals, lines, position, weights, SELECT)
    for step in tl.static_range(CHANNELS):
        value = downcast(totals[step] * factor + padding, dtype)
        tl.store(out + tl.cast(step, tl.int64) * out_strides[1] + offsets, value, mask=inside & (step < channels))


@triton.jit
def _image_row(
    out,  # this sample
    out_strides,
    image,  # this sample
    image_strides,
    offsets,  # of the outputs in a plane, (BLOCK_W,)
    inside,
    row,  # `resampling.row_of_tile`
    columns,  # `resampling.tile_columns`, like the next two
    extent,
    nearest,
    in_width,
    channels,
    fill,
    CHANNELS: tl.constexpr,  # that share a gather
    ONE_PASS: tl.constexpr,  # whether these are all
    FILTER: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    factor = row[3] * columns[3]  # one over the sum of the weights
    if image.dtype.element_ty == tl.uint8 and out.dtype.element_ty != tl.uint8:
        factor = factor / 255
    outside = 1 - row[4] * columns[4]
    # Selected, not multiplied: an infinite fill must not spoil the pixels that are wholly inside.
    padding = tl.where(outside > 0, outside * (tl.zeros([], tl.float64) + fill).to(outside.dtype), 0.0)
    passes = 1 if ONE_PASS else tl.cdiv(channels, CHANNELS)
    for index in range(0, passes):
        first_channel = tl.cast(index * CHANNELS, tl.int64)
        _image_channels(
            out + first_channel * out_strides[1],
            out_strides,
            image + first_channel * image_strides[1],
            image_strides,
            offsets,
            inside,
            row,
            columns,
            extent,
            nearest,
            in_width,
            CHANNELS if ONE_PASS else channels - index * CHANNELS,
            factor,
            padding,
            CHANNELS,
            FILTER,
            GROUP,
            BLOCK_SOURCE,
            OFFSET,
        )


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
    CHANNELS: tl.constexpr,  # of the image that share a gather
    ONE_PASS: tl.constexpr,  # whether these are all
    IN_WIDTH_UNIT: tl.constexpr,
    OUT_WIDTH_UNIT: tl.constexpr,  # neighbouring outputs that one store may take
    VECTOR: tl.constexpr,  # elements of the soft label in the widest store
    ALIGNED: tl.constexpr,  # whether its rows are made of such vectors
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    MANY_CLASSES: tl.constexpr,  # more than 32
    GROUP: tl.constexpr,  # taps along a row that are gathered together
    BLOCK_SOURCE: tl.constexpr,  # columns of the source in a line, see `resampling`
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
    first_row = tile // tiles_x % tiles_y * BLOCK_H
    sample = tile // tiles_x // tiles_y
    sample_offset = sample.to(tl.int64)
    plane_size = out_height.to(tl.int64) * out_width

    if INTEGER_FACTOR == 0:
        box_y = axis_of_box(boxes, boxes_strides, sample_offset, 1, in_height)
        box_x = axis_of_box(boxes, boxes_strides, sample_offset, 0, in_width)
        rows = tile_rows(first_row, box_y, out_height, in_height, FILTER, BLOCK_H, ACCUMULATOR)
        columns, extent, nearest = tile_columns(
            column, box_x, out_width, in_width, FILTER, GROUP, BLOCK_SOURCE, BLOCK_W, ACCUMULATOR
        )
        # One output per thread and store (`max_contiguous`): threads side by side read taps that lie side by side.
        outputs = tl.max_contiguous(column + tl.arange(0, BLOCK_W), 1)
        num_rows = tl.minimum(BLOCK_H, out_height - first_row)
        if image is not None:
            for step in range(0, num_rows):
                _image_row(
                    out + sample_offset * out_strides[0],
                    out_strides,
                    image + sample_offset * image_strides[0],
                    image_strides,
                    tl.cast(first_row + step, OFFSET) * out_strides[2] + outputs.to(OFFSET) * out_strides[3],
                    outputs < out_width,
                    row_of_tile(rows, step),
                    columns,
                    extent,
                    nearest,
                    in_width,
                    channels,
                    fill,
                    CHANNELS,
                    ONE_PASS,
                    FILTER,
                    GROUP,
                    BLOCK_SOURCE,
                    OFFSET,
                )
    if labels is not None:
        zeros = zeros_of_tile(first_row, column, out_height, out_width, VECTOR, ALIGNED, BLOCK_H, BLOCK_W, OFFSET)
        epilogue = (soft, sample_offset * num_classes * plane_size, plane_size, zeros)
        labels_sample = labels + sample_offset * labels_strides[0]
        if INTEGER_FACTOR > 0:
            rows_2d = first_row + tl.arange(0, BLOCK_H)[:, None]
            columns_2d = column + tl.arange(0, BLOCK_W)[None, :]
            inside = (rows_2d < out_height) & (columns_2d < out_width)
            soft_tile_integer_factor(
                epilogue,
                (),
                (rows_2d, columns_2d, rows_2d.to(OFFSET) * out_width + columns_2d, inside),
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
            soft_rows(
                epilogue,
                (),
                outputs,
                first_row,
                out_width,
                (0, num_rows),
                labels_sample,
                labels_strides,
                rows,
                columns,
                extent,
                nearest,
                in_width,
                num_classes,
                ignored_class,
                "mass",
                FILTER,
                MANY_CLASSES,
                GROUP,
                BLOCK_SOURCE,
                OFFSET,
            )


# --- launch ---------------------------------------------------------------------------------------------------------


def channels_at_once(channels: int) -> int:
    """How many channels share a gather, and the weights of its taps; registers allow four."""
    return channels if channels <= 4 else 3 if channels % 4 and channels % 3 == 0 else 4


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
    factor = integer_factor(labels, boxes, (height, width), num_classes, filter) if image is None else 0
    accumulator = accumulator_type(out, image, soft)
    vector = 1 if soft is None else 16 // soft.element_size()
    aligned = width % vector == 0
    tile = row_tile((height, width), (in_height, in_width), filter, boxes is None)
    block_h, block_w = tile[:2]
    if factor > 0:
        options, elements, unit = integer_factor_tile(factor, result.element_size(), platform)
        block_h, block_w = tile_shape(height, width, elements)
    else:
        options = row_options(tile, accumulator, platform, image, labels, many_classes=num_classes > 32)
        unit = vector
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
            "ONE_PASS": image is not None and image.shape[1] <= 4,
            "IN_WIDTH_UNIT": in_unit,
            "OUT_WIDTH_UNIT": out_unit,
            "VECTOR": vector,
            "ALIGNED": aligned,
            "BLOCK_H": block_h,
            "BLOCK_W": block_w,
            "MANY_CLASSES": num_classes > 32,
            "GROUP": tile.group,
            "BLOCK_SOURCE": tile.block_source,
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
    launch(launch_configuration, out.device, out, image, out_soft, labels, boxes, ignore_index, filter, fill)
    return True
