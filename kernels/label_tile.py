"""What the kernels that make something else of a label map than its dense soft label share: tiles, counting, launch.

A program counts the labels of one tile of one sample and hands the masses to an epilogue (`epilogues`).
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.geometry import Filter
from tritonsoft.kernels.counting_integer import soft_tile_integer_factor
from tritonsoft.kernels.counting_rows import soft_rows
from tritonsoft.kernels.geometry import axis_of_box
from tritonsoft.kernels.launch import (
    Launch,
    integer_factor,
    integer_factor_tile,
    offset_type,
    power_of_two_factor,
    register_limit,
    row_options,
    row_tile,
    tile_shape,
)
from tritonsoft.kernels.resampling import tile_columns, tile_rows
from tritonsoft.kernels.warp_points import points_of_tile, warped_soft_tile


@triton.jit
def tile_of_program(
    boxes,  # (B, 4), None for the whole image, or a transform (B, 3, 3) or (B, h, w, 2)
    boxes_strides,
    in_height,
    in_width,
    out_height,
    out_width,
    FILTER: tl.constexpr,
    INTEGER_FACTOR: tl.constexpr,  # 0: count in general
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """The sample of this program, the first row and column of its tile, in how many steps it is made, and what it sees
    of the source.

    At integer factors that is one step and nothing; under a transform one step and the transform with the source's
    size; else a step for each row and five things (`resampling`).
    """
    tiles_x = tl.cdiv(out_width, BLOCK_W)
    tiles_y = tl.cdiv(out_height, BLOCK_H)
    tile = tl.program_id(0)
    column = tile % tiles_x * BLOCK_W
    row = tile // tiles_x % tiles_y * BLOCK_H
    sample = (tile // tiles_x // tiles_y).to(tl.int64)
    source = ()
    num_steps = 1
    if boxes is not None and len(boxes_strides) > 2:
        source = (boxes, boxes_strides, in_height, in_width)
    elif INTEGER_FACTOR == 0:
        box_y = axis_of_box(boxes, boxes_strides, sample, 1, in_height)
        box_x = axis_of_box(boxes, boxes_strides, sample, 0, in_width)
        rows = tile_rows(row, box_y, out_height, in_height, FILTER, BLOCK_H, ACCUMULATOR)
        columns, extent, nearest = tile_columns(
            column, box_x, out_width, in_width, FILTER, GROUP, BLOCK_SOURCE, BLOCK_W, ACCUMULATOR
        )
        source = (rows, columns, extent, nearest, in_width)
        num_steps = tl.minimum(BLOCK_H, out_height - row)
    return sample, row, column, num_steps, source


@triton.jit
def pixels_of_step(
    tile,
    step,
    out_height,
    out_width,
    INTEGER_FACTOR: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """See `epilogues`: ``(BLOCK_H, BLOCK_W)`` at integer factors, a list under a transform, else ``(BLOCK_W,)``."""
    _, row, column, _, source = tile
    if INTEGER_FACTOR > 0:
        rows = row + tl.arange(0, BLOCK_H)[:, None]
        columns = column + tl.arange(0, BLOCK_W)[None, :]
    elif len(source) == 4:
        pixel = tl.arange(0, BLOCK_H * BLOCK_W)
        rows = row + pixel // BLOCK_W
        columns = tl.max_contiguous(column + pixel % BLOCK_W, 1)
    else:
        rows = row + step
        columns = tl.max_contiguous(column + tl.arange(0, BLOCK_W), 1)  # as in `forward`
    inside = (rows < out_height) & (columns < out_width)
    return rows, columns, tl.cast(rows, OFFSET) * out_width + columns, inside


@triton.jit
def count_step(
    epilogue,
    state,
    tile,
    step,
    pixels,
    labels,  # (B, H, W)
    labels_strides,
    out_height,
    out_width,
    num_classes,
    ignored_class,
    EPILOGUE: tl.constexpr,
    FILTER: tl.constexpr,
    INTEGER_FACTOR: tl.constexpr,
    MANY_CLASSES: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Hands the epilogue all classes of the pixels of a step; returns its last state."""
    sample, row, column, _, source = tile
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
    elif len(source) == 4:
        transform, strides, in_height, in_width = source
        here, axes = points_of_tile(
            transform, strides, sample, pixels[0], pixels[1], out_height, out_width, FILTER, ACCUMULATOR
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
        rows, columns, extent, nearest, in_width = source
        state = soft_rows(
            epilogue,
            state,
            pixels[1],
            row,
            out_width,
            (step, step + 1),
            labels_sample,
            labels_strides,
            rows,
            columns,
            extent,
            nearest,
            in_width,
            num_classes,
            ignored_class,
            EPILOGUE,
            FILTER,
            MANY_CLASSES,
            GROUP,
            BLOCK_SOURCE,
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
    (height, width), (in_height, in_width) = size, labels.shape[1:]
    factor = integer_factor(labels, boxes, size, num_classes, filter)
    tile = row_tile(size, (in_height, in_width), filter, boxes is None)
    if factor > 0:
        options, elements, unit = integer_factor_tile(factor, element_size, platform)
        block_h, block_w = tile_shape(height, width, elements)
        if min_side > 0:
            block_h = max(block_h, min_side)
            block_w = max(elements // block_h, min_side)
    elif boxes is not None and boxes.ndim > 2:  # what a pixel keeps takes registers from the loop over its points
        options, unit = {"num_warps": 4, **register_limit(platform, accumulator)}, 1
        block_h, block_w = tile_shape(height, width, 256)
    else:
        options, unit = row_options(tile, accumulator, platform, None, labels, keeps_state=True), 1
        block_h, block_w = tile.block_h, tile.block_w
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
            "MANY_CLASSES": num_classes > 32,
            "GROUP": tile.group,
            "BLOCK_SOURCE": tile.block_source,
            "ACCUMULATOR": accumulator,
            "OFFSET": offset_type(labels, *planes),
        },
        options,
    )
