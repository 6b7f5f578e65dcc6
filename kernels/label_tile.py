"""What the kernels that make something else of a label map than its dense soft label share: tiles, counting, launch.

A program counts the labels of one tile of one sample and hands the masses to an epilogue (`epilogues`).
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.geometry import Filter
from tritonsoft.kernels.counting_general import soft_tile
from tritonsoft.kernels.counting_integer import soft_tile_integer_factor
from tritonsoft.kernels.geometry import axis_of_box, filter_support, tile_footprints
from tritonsoft.kernels.launch import (
    Launch,
    integer_factor,
    integer_factor_tile,
    offset_type,
    power_of_two_factor,
    register_limit,
    tile_shape,
)
from tritonsoft.kernels.warp_points import points_of_tile, warped_soft_tile


@triton.jit
def tile_of_program(
    out_height,
    out_width,
    INTEGER_FACTOR: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The sample of this program, the first row and column of its tile, and the tile's pixels (see `epilogues`)."""
    tiles_x = tl.cdiv(out_width, BLOCK_W)
    tiles_y = tl.cdiv(out_height, BLOCK_H)
    tile = tl.program_id(0)
    column = tile % tiles_x * BLOCK_W
    row = tile // tiles_x % tiles_y * BLOCK_H
    sample = (tile // tiles_x // tiles_y).to(tl.int64)
    if INTEGER_FACTOR > 0:
        rows = row + tl.arange(0, BLOCK_H)[:, None]
        columns = column + tl.arange(0, BLOCK_W)[None, :]
    else:  # a list, as in `forward`
        pixel = tl.arange(0, BLOCK_H * BLOCK_W)
        rows = row + pixel // BLOCK_W
        columns = tl.max_contiguous(column + pixel % BLOCK_W, 1)
    inside = (rows < out_height) & (columns < out_width)
    return sample, row, column, (rows, columns, rows.to(OFFSET) * out_width + columns, inside)


@triton.jit
def count_tile(
    epilogue,
    state,
    tile,  # `tile_of_program`
    labels,  # (B, H, W)
    labels_strides,
    boxes,  # (B, 4), None for the whole image, or a transform (B, 3, 3) or (B, h, w, 2)
    boxes_strides,
    in_height,
    in_width,
    out_height,
    out_width,
    num_classes,
    ignored_class,
    EPILOGUE: tl.constexpr,
    FILTER: tl.constexpr,
    INTEGER_FACTOR: tl.constexpr,  # 0: count in general
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Hands the epilogue all classes; returns its last state."""
    sample, row, column, pixels = tile
    labels_sample = labels + sample * labels_strides[0]
    if INTEGER_FACTOR > 0:
        state = soft_tile_integer_factor(
            epilogue,
            state,
            pixels,
            labels_sample,
            labels_strides,
            column,
            out_height,
            out_width,
            num_classes,
            ignored_class,
            EPILOGUE,
            BLOCK_H,
            BLOCK_W,
            INTEGER_FACTOR,
            OFFSET,
        )
    elif boxes is not None and len(boxes_strides) > 2:
        here, axes = points_of_tile(
            boxes, boxes_strides, sample, pixels[0], pixels[1], out_height, out_width, FILTER, ACCUMULATOR
        )
        state = warped_soft_tile(
            epilogue,
            state,
            pixels,
            labels_sample,
            labels_strides,
            here,
            axes,
            in_height,
            in_width,
            num_classes,
            ignored_class,
            EPILOGUE,
            FILTER,
            BLOCK_H * BLOCK_W,
            ACCUMULATOR,
            OFFSET,
        )
    else:
        box_y = axis_of_box(boxes, boxes_strides, sample, 1, in_height)
        box_x = axis_of_box(boxes, boxes_strides, sample, 0, in_width)
        pixel = tl.arange(0, BLOCK_H * BLOCK_W)
        taps_y, extent_y = tile_footprints(
            row, pixel // BLOCK_W, box_y, out_height, in_height, BLOCK_H, FILTER, ACCUMULATOR
        )
        taps_x, extent_x = tile_footprints(
            column, pixel % BLOCK_W, box_x, out_width, in_width, BLOCK_W, FILTER, ACCUMULATOR
        )
        state = soft_tile(
            epilogue,
            state,
            pixels,
            labels_sample,
            labels_strides,
            taps_y,
            taps_x,
            extent_y,
            extent_x,
            filter_support(box_y, out_height, FILTER).to(ACCUMULATOR),
            filter_support(box_x, out_width, FILTER).to(ACCUMULATOR),
            in_height,
            in_width,
            num_classes,
            ignored_class,
            EPILOGUE,
            FILTER,
            BLOCK_H * BLOCK_W,
            ACCUMULATOR,
            OFFSET,
        )
    return state


# --- launch ----------------------------------------------------------------------------------------------------------


def launch_of_label_map(
    kernel: Any,
    labels: Tensor,
    boxes: Tensor | None,
    size: tuple[int, int],
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    element_size: int,
    accumulator: Any,
    platform: str,
    arguments: dict[str, Any],
    planes: Sequence[Tensor],
    min_side: int = 0,
) -> Launch:
    """What to launch.

    Args:
        element_size: the bytes of an element of the planes that are read or written.
        arguments: those of the kernel alone, by name.
        planes: tensors ``(..., h, w)`` among them, whose offsets the kernel computes.
        min_side: the least height and width of a tile.
    """
    factor = integer_factor(labels, boxes, size, num_classes, filter)
    if factor > 0:
        options, elements, unit = integer_factor_tile(factor, element_size, platform)
    else:
        # What an epilogue keeps for each pixel takes registers from the loop over the taps: fewer pixels for a thread.
        options, elements, unit = {"num_warps": 4, **register_limit(platform, accumulator)}, 256, 1
    (height, width), (in_height, in_width) = size, labels.shape[1:]
    block_h, block_w = tile_shape(height, width, elements)
    if min_side > 0:
        block_h = max(block_h, min_side)
        block_w = max(elements // block_h, min_side)
    in_unit, out_unit = 16 if in_width % 16 == 0 else 1, power_of_two_factor(width, unit)
    return Launch(
        kernel,
        (triton.cdiv(height, block_h) * triton.cdiv(width, block_w) * labels.shape[0],),
        {
            "labels": labels,
            "labels_strides": labels.stride(),
            "boxes": boxes,
            "boxes_strides": None if boxes is None else boxes.stride(),
            **arguments,
            "in_height": in_height,
            "in_width_units": in_width // in_unit,
            "out_height": height,
            "out_width_units": width // out_unit,
            "num_classes": num_classes,
            "ignored_class": ignore_index if 0 <= ignore_index < num_classes else -1,
            "FILTER": filter,
            "INTEGER_FACTOR": factor,
            "IN_WIDTH_UNIT": in_unit,
            "OUT_WIDTH_UNIT": out_unit,
            "BLOCK_H": block_h,
            "BLOCK_W": block_w,
            "ACCUMULATOR": accumulator,
            "OFFSET": offset_type(labels, *planes),
        },
        options,
    )
