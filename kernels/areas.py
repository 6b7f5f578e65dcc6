"""The area of each class in boxes of a label map.

A program reads one part of the rows of one box, tile by tile. Of each tile it finds the set of classes that occur, and
for those alone adds up how much of their pixels the box covers. The parts are added in a fixed order (`sums`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonsoft import memory
from tritonsoft.backends.values import labels_in_range
from tritonsoft.kernels.counting_rows import bitwise_or, take_class
from tritonsoft.kernels.geometry import axis_of_box
from tritonsoft.kernels.launch import Launch, launch, offset_type, register_limit
from tritonsoft.kernels.sums import sum_rows_configuration

_BLOCK_H, _BLOCK_W = 16, 128
_MAX_CLASSES = 256  # of one program
MAX_PARTS = 32  # of a box: what one program of `sum_rows_kernel` adds up


@triton.jit
def _covered(pixels, axis):
    """How much of each pixel of an axis lies in the box, float32; the ends are taken relative to the pixel first."""
    from_low = (axis[0] - pixels.to(tl.float64)).to(tl.float32)
    to_high = (axis[1] - pixels.to(tl.float64)).to(tl.float32)
    return tl.maximum(tl.minimum(to_high, 1.0) - tl.maximum(from_low, 0.0), 0.0)


@triton.jit
def _pixels_touched(axis, size):
    """The first pixel of an axis of the image that the box touches, and the end of these."""
    first = tl.minimum(tl.maximum(tl.floor(axis[0]).to(tl.int32), 0), size)
    return first, tl.maximum(tl.minimum(tl.ceil(axis[1]).to(tl.int32), size), first)


@triton.jit
def class_areas_kernel(
    areas,  # (boxes, PARTS, C), contiguous
    labels,  # (B, H, W)
    labels_strides,
    boxes,  # (boxes, 4), those of a sample one after the other; None for one of each sample, all of it
    boxes_strides,
    boxes_per_sample,
    in_height,
    in_width,
    num_classes,
    ignored_class,
    PARTS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    OFFSET: tl.constexpr,
):
    box = tl.program_id(0) // PARTS
    first_class = tl.program_id(1) * BLOCK_C
    axis_y = axis_of_box(boxes, boxes_strides, box, 1, in_height)
    axis_x = axis_of_box(boxes, boxes_strides, box, 0, in_width)
    first_row, end_row = _pixels_touched(axis_y, in_height)
    first_column, end_column = _pixels_touched(axis_x, in_width)
    first_column = first_column // 16 * 16  # aligned, so that neighbours are loaded at once
    rows_of_part = tl.cdiv(end_row - first_row, PARTS)
    first_row += tl.program_id(0) % PARTS * rows_of_part
    end_row = tl.minimum(first_row + rows_of_part, end_row)
    labels += (box // boxes_per_sample).to(tl.int64) * labels_strides[0]
    classes = first_class + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_C], tl.float32)
    ONE: tl.constexpr = tl.full([], 1, tl.uint32)
    for row in range(first_row, end_row, BLOCK_H):
        rows = row + tl.arange(0, BLOCK_H)
        down = tl.where(rows < end_row, _covered(rows, axis_y), 0.0)
        for column in range(first_column, end_column, BLOCK_W):
            columns = column + tl.arange(0, BLOCK_W)
            weight = down[:, None] * _covered(columns, axis_x)[None, :]
            # Up to the edge of the image: an end of the box, which may be anywhere, would make it load pixel by pixel.
            inside = (rows < end_row)[:, None] & (columns < in_width)[None, :]
            offsets = (
                tl.cast(rows, OFFSET)[:, None] * labels_strides[1] + columns.to(OFFSET)[None, :] * labels_strides[2]
            )
            label = tl.load(labels + offsets, mask=inside, other=0)
            known = inside & (label >= 0) & (label < num_classes) & (label != ignored_class)
            label = tl.where(known, label.to(tl.int32), -1)
            for chunk in range(first_class, tl.minimum(first_class + BLOCK_C, num_classes), 32):
                bits = tl.where((label >> 5) == (chunk >> 5), ONE << (label & 31).to(tl.uint32), 0)
                present = tl.reduce(bits, None, bitwise_or)
                while present != 0:
                    class_index, present = take_class(present, chunk)
                    area = tl.sum(tl.where(label == class_index, weight, 0.0))
                    total = tl.where(classes == class_index, total + area, total)
    pointers = areas + tl.program_id(0).to(tl.int64) * num_classes + classes
    tl.store(pointers, total, mask=classes < num_classes)


# --- launch ----------------------------------------------------------------------------------------------------------


def class_areas_configuration(
    labels: Tensor, boxes: Tensor | None, num_boxes: int, num_classes: int, ignore_index: int, platform: str
) -> Launch:
    """What `class_areas` launches first: the areas of each part, in scratch tensor ``areas``."""
    batch, height, width = labels.shape
    parts = min(triton.cdiv(height, _BLOCK_H), MAX_PARTS)
    block_c = min(max(triton.next_power_of_2(num_classes), 32), _MAX_CLASSES)
    return Launch(
        class_areas_kernel,
        (batch * num_boxes * parts, triton.cdiv(num_classes, block_c)),
        {
            "areas": memory.empty((batch * num_boxes, parts, num_classes), torch.float32, labels.device),
            "labels": labels,
            "labels_strides": labels.stride(),
            "boxes": boxes,
            "boxes_strides": None if boxes is None else boxes.stride(),
            "boxes_per_sample": num_boxes,
            "in_height": height,
            "in_width": width,
            "num_classes": num_classes,
            "ignored_class": ignore_index if 0 <= ignore_index < num_classes else -1,
            "PARTS": parts,
            "BLOCK_H": _BLOCK_H,
            "BLOCK_W": _BLOCK_W,
            "BLOCK_C": block_c,
            "OFFSET": offset_type(labels),
        },
        {"num_warps": 4, **register_limit(platform, tl.float32)},
        ("areas",),
    )


def class_areas(out: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, validate: bool) -> bool:
    """The area of each class in boxes ``(B, N, 4)``: ``out (B, N, C)``."""
    _, num_boxes, num_classes = out.shape
    if validate and not labels_in_range(labels, num_classes, ignore_index):
        return False
    boxes = None if boxes is None else boxes.flatten(0, 1)
    inputs = (labels, boxes, num_boxes, num_classes, ignore_index)
    (areas,) = launch(class_areas_configuration, labels.device, *inputs)
    if areas.shape[1] > 1:
        (areas,) = launch(sum_rows_configuration, labels.device, areas)
    out.copy_(areas.view(out.shape))
    return True
