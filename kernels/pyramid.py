"""`soft_pyramid`: soft labels of one label map, each half the size of the one before, in one read of it."""

import itertools
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends.values import labels_in_range
from tritonsoft.kernels.forward import soft_crop_resize
from tritonsoft.kernels.label_tile import count_step, launch_of_label_map, pixels_of_step, tile_of_program
from tritonsoft.kernels.launch import Launch, accumulator_type, launch


@triton.jit(
    do_not_specialize=["in_height", "in_width_units", "out_height", "out_width_units", "num_classes", "ignored_class"]
)
def pyramid_kernel(
    labels,  # (B, H, W)
    labels_strides,
    boxes,  # None: the whole image
    boxes_strides,
    levels,  # tuple of (B, C, h, w), contiguous, finest first
    in_height,
    in_width_units,
    out_height,  # of the finest
    out_width_units,
    num_classes,
    ignored_class,
    FILTER: tl.constexpr,
    INTEGER_FACTOR: tl.constexpr,  # never 0
    IN_WIDTH_UNIT: tl.constexpr,
    OUT_WIDTH_UNIT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    MANY_CLASSES: tl.constexpr,  # like the next two not used
    GROUP: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,  # the integer that holds an offset inside one plane
):
    in_width = in_width_units * IN_WIDTH_UNIT  # written as products, for wide accesses: see `forward`
    out_width = out_width_units * OUT_WIDTH_UNIT
    tile = tile_of_program(
        boxes,
        boxes_strides,
        in_height,
        in_width,
        out_height,
        out_width,
        FILTER,
        INTEGER_FACTOR,
        BLOCK_H,
        BLOCK_W,
        GROUP,
        BLOCK_SOURCE,
        ACCUMULATOR,
    )
    sample, row, column, _, _ = tile
    planes = ()
    for level in tl.static_range(len(levels)):
        level_size = (out_height >> level).to(tl.int64) * (out_width >> level)
        planes = planes + (levels[level] + sample * num_classes * level_size,)  # noqa: RUF005
    count_step(
        (planes, out_height, out_width, row, column),
        (),
        tile,
        0,
        pixels_of_step(tile, 0, out_height, out_width, INTEGER_FACTOR, BLOCK_H, BLOCK_W, OFFSET),
        labels,
        labels_strides,
        out_height,
        out_width,
        num_classes,
        ignored_class,
        "pyramid",
        FILTER,
        INTEGER_FACTOR,
        MANY_CLASSES,
        BLOCK_H,
        BLOCK_W,
        GROUP,
        BLOCK_SOURCE,
        ACCUMULATOR,
        OFFSET,
    )


# --- launch ----------------------------------------------------------------------------------------------------------


def launch_configuration(labels: Tensor, ignore_index: int, *outs: Tensor, platform: str) -> Launch:
    """What to launch for these tensors; only their shapes, strides and types matter."""
    finest = outs[0]
    _, num_classes, height, width = finest.shape
    return launch_of_label_map(
        pyramid_kernel,
        labels,
        None,
        (height, width),
        num_classes,
        ignore_index,
        "area",
        finest.element_size(),
        accumulator_type(finest),
        platform,
        {"levels": outs},
        outs,
        min_side=1 << (len(outs) - 1),  # a tile holds whole pixels of the coarsest level
    )


def soft_pyramid(outs: Sequence[Tensor], labels: Tensor, ignore_index: int, validate: bool) -> bool:
    """Soft labels ``(B, C, h, w)`` of a label map ``(B, H, W)``: in one read of it where each is half the one before.

    The kernel counts what the path of integer factors of `soft_crop_resize` counts, and halves it.
    """
    num_classes = outs[0].shape[1]
    if validate and not labels_in_range(labels, num_classes, ignore_index):
        return False
    doubling = all(2 * coarse.shape[3] == fine.shape[3] for fine, coarse in itertools.pairwise(outs))
    if doubling and labels.shape[2] // outs[0].shape[3] in (1, 2, 4, 8) and num_classes <= 255:
        launch(launch_configuration, labels.device, labels, ignore_index, *outs)
    else:
        for out in outs:
            soft_crop_resize(out, labels, None, ignore_index, "area", validate=False)
    return True
