"""What is made of a label map without its dense soft label in memory: the largest classes, a pyramid, a loss.

One kernel: a program counts the labels of one tile of one sample and hands the masses to a sink (`counting`). The loss
reads each logit once from memory for the logsumexp, and those of the classes that occur again, from a cache.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonsoft import memory, reference
from tritonsoft.backends.values import labels_in_range
from tritonsoft.conventions import Filter, Reduction
from tritonsoft.kernels.convert import exponential, narrow, widen
from tritonsoft.kernels.counting import class_of_key, load_logits, mass_of_key, soft_tile, soft_tile_dense
from tritonsoft.kernels.forward import soft_crop_resize
from tritonsoft.kernels.geometry import axis_of_box, filter_reach, tile_footprints
from tritonsoft.kernels.launch import (
    Launch,
    accumulator_type,
    dense_factor,
    dense_tile,
    offset_type,
    platform_of,
    power_of_two_factor,
    register_limit,
    tile_shape,
)
from tritonsoft.kernels.sums import divided_by, finish_cross_entropy, store_sums

# A sorted list of that many candidates for each pixel is what a kernel keeps in registers.
_MAX_TOP_K = 16


@triton.jit
def _log_sum_exp(logits, strides, pixels, num_classes, zeros, OFFSET: tl.constexpr):
    """The logsumexp over the classes of each pixel, in the shape and type of ``zeros``."""
    DTYPE: tl.constexpr = zeros.dtype
    # Logits are subtracted from the largest before anything else is done to them: no size of theirs loses digits, and
    # this start is finite, so that those of -infinity do not become infinity less infinity.
    largest = zeros + (-1.7976931348623157e308 if tl.float64 == DTYPE else -3.4028234663852886e38)
    total = zeros
    inside = pixels[3]
    whole = num_classes // 4 * 4
    for first in range(0, whole, 4):
        logit0 = load_logits(logits, strides, pixels, first, inside, DTYPE, OFFSET)
        logit1 = load_logits(logits, strides, pixels, first + 1, inside, DTYPE, OFFSET)
        logit2 = load_logits(logits, strides, pixels, first + 2, inside, DTYPE, OFFSET)
        logit3 = load_logits(logits, strides, pixels, first + 3, inside, DTYPE, OFFSET)
        larger = tl.maximum(largest, tl.maximum(tl.maximum(logit0, logit1), tl.maximum(logit2, logit3)))
        total = total * exponential(largest - larger)
        total += exponential(logit0 - larger) + exponential(logit1 - larger)
        total += exponential(logit2 - larger) + exponential(logit3 - larger)
        largest = larger
    for last in tl.static_range(3):
        if whole + last < num_classes:
            logit = load_logits(logits, strides, pixels, whole + last, inside, DTYPE, OFFSET)
            larger = tl.maximum(largest, logit)
            total = total * exponential(largest - larger) + exponential(logit - larger)
            largest = larger
    return largest + tl.log(total)


@triton.jit(
    do_not_specialize=["in_height", "in_width_units", "out_height", "out_width_units", "num_classes", "ignored_class"]
)
def label_target_kernel(
    labels,  # (B, H, W)
    labels_strides,
    boxes,  # (B, 4), or None for the whole image
    boxes_strides,
    levels,  # pyramid: tuple of (B, C, h, w), contiguous, each half the size of the one before; else None
    index,  # top: (B, k, h, w), contiguous; else None
    kept,  # top: (B, k, h, w), contiguous; else None
    rest,  # top: what was not kept, (B, h, w), contiguous; else None
    loss,  # loss: (B, h, w), contiguous, or None; else None
    partial,  # loss: (programs, 2), contiguous, or None: sums of each program's losses and masses; else None
    mass,  # loss: written; gradient: read; (B, h, w), contiguous; else None
    lse,  # the same
    logits,  # loss, gradient: (B, C, h, w); else None
    logits_strides,
    weights,  # loss, gradient: (C,) or None
    weights_stride,
    gradient,  # gradient: of the logits, (B, C, h, w); else None
    gradient_strides,
    scale,  # gradient: of the loss, (B, h, w); else None
    scale_strides,
    total,  # gradient: a number by which it is divided (0 counts as 1), or None
    in_height,
    in_width_units,
    out_height,
    out_width_units,
    num_classes,
    ignored_class,
    SINK: tl.constexpr,
    TOP: tl.constexpr,  # how many classes are kept
    FILTER: tl.constexpr,
    DENSE_FACTOR: tl.constexpr,  # 0: the general way to count labels
    IN_WIDTH_UNIT: tl.constexpr,
    OUT_WIDTH_UNIT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,  # the integer that holds an offset inside one plane
):
    in_width = in_width_units * IN_WIDTH_UNIT  # written as products, for wide accesses: see `forward`
    out_width = out_width_units * OUT_WIDTH_UNIT
    tiles_x = tl.cdiv(out_width, BLOCK_W)
    tiles_y = tl.cdiv(out_height, BLOCK_H)
    tile = tl.program_id(0)
    column = tile % tiles_x * BLOCK_W
    row = tile // tiles_x % tiles_y * BLOCK_H
    sample = (tile // tiles_x // tiles_y).to(tl.int64)
    if DENSE_FACTOR > 0:
        rows = row + tl.arange(0, BLOCK_H)[:, None]
        columns = column + tl.arange(0, BLOCK_W)[None, :]
    else:
        pixel = tl.arange(0, BLOCK_H * BLOCK_W)
        rows = row + pixel // BLOCK_W
        columns = tl.max_contiguous(column + pixel % BLOCK_W, 1)
    inside = (rows < out_height) & (columns < out_width)
    pixels = (rows, columns, rows.to(OFFSET) * out_width + columns, inside)
    plane_size = out_height.to(tl.int64) * out_width
    plane = sample * plane_size + pixels[2]
    zeros = (pixels[2] * 0).to(ACCUMULATOR)

    sink = ()
    state = ()
    if SINK == "pyramid":
        planes = ()
        for level in tl.static_range(len(levels)):
            level_size = (out_height >> level).to(tl.int64) * (out_width >> level)
            planes = planes + (levels[level] + sample * num_classes * level_size,)  # noqa: RUF005
        sink = (planes, out_height, out_width, row, column)
    elif SINK == "top":
        keys = ()
        for _ in tl.static_range(TOP):
            keys = keys + ((pixels[2] * 0 - 1).to(tl.int32 if DENSE_FACTOR > 0 else tl.int64),)  # noqa: RUF005
        state = (zeros.to(tl.float32), keys)
    else:
        logits_sample = logits + sample * logits_strides[0]
        if SINK == "loss":
            log_sum = _log_sum_exp(logits_sample, logits_strides, pixels, num_classes, zeros, OFFSET)
            sink = (logits_sample, logits_strides, weights, weights_stride)
            state = (zeros, zeros, log_sum)
        else:
            gradient_sample = gradient + sample * gradient_strides[0]
            sink = (logits_sample, logits_strides, weights, weights_stride, gradient_sample, gradient_strides)
            scale_offsets = rows.to(OFFSET) * scale_strides[1] + columns.to(OFFSET) * scale_strides[2]
            factor = widen(
                tl.load(scale + sample * scale_strides[0] + scale_offsets, mask=inside, other=0.0), ACCUMULATOR
            )
            mass_here = tl.load(mass + plane, mask=inside, other=0.0)
            factor = tl.where(mass_here > 0, divided_by(factor, total), 0.0)
            state = (factor, factor * mass_here, tl.load(lse + plane, mask=inside, other=0.0))

    labels_sample = labels + sample * labels_strides[0]
    if DENSE_FACTOR > 0:
        state = soft_tile_dense(
            sink,
            state,
            pixels,
            labels_sample,
            labels_strides,
            column,
            out_height,
            out_width,
            num_classes,
            ignored_class,
            SINK,
            BLOCK_H,
            BLOCK_W,
            DENSE_FACTOR,
            OFFSET,
        )
    else:
        box_y = axis_of_box(boxes, boxes_strides, sample, 1, in_height)
        box_x = axis_of_box(boxes, boxes_strides, sample, 0, in_width)
        taps_y, extent_y = tile_footprints(
            row, pixel // BLOCK_W, box_y, out_height, in_height, BLOCK_H, FILTER, ACCUMULATOR
        )
        taps_x, extent_x = tile_footprints(
            column, pixel % BLOCK_W, box_x, out_width, in_width, BLOCK_W, FILTER, ACCUMULATOR
        )
        state = soft_tile(
            sink,
            state,
            pixels,
            labels_sample,
            labels_strides,
            taps_y,
            taps_x,
            extent_y,
            extent_x,
            filter_reach(box_y, out_height, FILTER).to(ACCUMULATOR),
            filter_reach(box_x, out_width, FILTER).to(ACCUMULATOR),
            in_height,
            in_width,
            num_classes,
            ignored_class,
            SINK,
            FILTER,
            BLOCK_H * BLOCK_W,
            ACCUMULATOR,
            OFFSET,
        )

    if SINK == "top":
        tl.store(rest + plane, narrow(state[0], rest.dtype.element_ty), mask=inside)
        for place in tl.static_range(TOP):
            offsets = (sample * TOP + place) * plane_size + pixels[2]
            key = state[1][place]
            tl.store(index + offsets, class_of_key(key).to(index.dtype.element_ty), mask=inside)
            tl.store(kept + offsets, narrow(mass_of_key(key), kept.dtype.element_ty), mask=inside)
    elif SINK == "loss":
        if partial is None:
            tl.store(loss + plane, state[0], mask=inside)
        else:
            store_sums(partial, state[0], state[1])
        tl.store(mass + plane, state[1], mask=inside)
        tl.store(lse + plane, state[2], mask=inside)


# --- launch ---------------------------------------------------------------------------------------------------------


def _launch(
    sink: str,
    labels: Tensor,
    boxes: Tensor | None,
    size: tuple[int, int],
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    element_size: int,
    accumulator: Any,
    platform: str,
    tensors: dict[str, Any],
) -> Launch:
    """What to launch; ``element_size`` is that of the planes that are read or written, ``tensors`` the arguments."""
    factor = dense_factor(labels, boxes, size, num_classes, filter)
    if factor > 0:
        if sink == "loss" and factor * labels.element_size() > 32:
            element_size = 16  # what the labels leave of the registers holds the sums of one pixel, not of two
        options, elements, unit = dense_tile(factor, element_size, platform)
        if sink == "loss":
            options |= register_limit(platform, accumulator)
    else:
        # What a sink keeps for each pixel takes registers from the loop over the taps: fewer pixels for a thread.
        options, elements, unit = {"num_warps": 4, **register_limit(platform, accumulator)}, 256, 1
    (height, width), (in_height, in_width) = size, labels.shape[1:]
    block_h, block_w = tile_shape(height, width, elements)
    if sink == "pyramid":  # a tile must hold whole pixels of the coarsest level
        side = 1 << (len(tensors["levels"]) - 1)
        block_h = max(block_h, side)
        block_w = max(elements // block_h, side)
    in_unit, out_unit = 16 if in_width % 16 == 0 else 1, power_of_two_factor(width, unit)
    names = ("levels", "index", "kept", "rest", "loss", "partial", "mass", "lse", "weights", "total")
    strided = ("logits", "gradient", "scale")
    planes = ("logits", "gradient", "scale", "rest", "mass", "index")
    offsets = [tensor for name in planes if (tensor := tensors.get(name)) is not None]
    weights = tensors.get("weights")
    return Launch(
        label_target_kernel,
        (triton.cdiv(height, block_h) * triton.cdiv(width, block_w) * labels.shape[0],),
        {
            "labels": labels,
            "labels_strides": labels.stride(),
            "boxes": boxes,
            "boxes_strides": None if boxes is None else boxes.stride(),
            **{name: tensors.get(name) for name in names},
            "weights_stride": None if weights is None else weights.stride(0),
            **{name: tensors.get(name) for name in strided},
            **{f"{name}_strides": tensors[name].stride() if name in tensors else None for name in strided},
            "in_height": in_height,
            "in_width_units": in_width // in_unit,
            "out_height": height,
            "out_width_units": width // out_unit,
            "num_classes": num_classes,
            "ignored_class": ignore_index if 0 <= ignore_index < num_classes else -1,
            "SINK": sink,
            "TOP": tensors["index"].shape[1] if sink == "top" else 0,
            "FILTER": filter,
            "DENSE_FACTOR": factor,
            "IN_WIDTH_UNIT": in_unit,
            "OUT_WIDTH_UNIT": out_unit,
            "BLOCK_H": block_h,
            "BLOCK_W": block_w,
            "ACCUMULATOR": accumulator,
            "OFFSET": offset_type(labels, *offsets, *tensors.get("levels", ())),
        },
        options,
    )


def top_configuration(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    platform: str,
) -> Launch:
    """What `soft_crop_resize_top` launches; only shapes, strides and types matter, here and below."""
    size = (index.shape[2], index.shape[3])
    tensors = {"index": index, "kept": mass, "rest": rest}
    return _launch("top", labels, boxes, size, num_classes, ignore_index, filter, 4, tl.float32, platform, tensors)


def pyramid_configuration(outs: Sequence[Tensor], labels: Tensor, ignore_index: int, platform: str) -> Launch:
    """What `soft_pyramid` launches."""
    finest = outs[0]
    tensors, accumulator = {"levels": tuple(outs)}, accumulator_type(finest)
    _, num_classes, *size = finest.shape
    return _launch(
        "pyramid",
        labels,
        None,
        (size[0], size[1]),
        num_classes,
        ignore_index,
        "area",
        finest.element_size(),
        accumulator,
        platform,
        tensors,
    )


def area_cross_entropy_configuration(
    value: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    reduction: Reduction,
    platform: str,
) -> Launch:
    """What `area_cross_entropy` launches first.

    Unless the reduction is "none", argument ``partial`` holds the sums of each program, ``(1, programs, 2)``.
    """
    tensors = {"logits": logits, "loss": value, "mass": mass, "lse": lse, "weights": weight}
    launch = _launch_loss("loss", labels, boxes, ignore_index, filter, logits, tensors, platform)
    if reduction != "none":
        launch.arguments["loss"] = None
        launch.arguments["partial"] = memory.empty((1, launch.grid[0], 2), lse.dtype, lse.device)
    return launch


def area_cross_entropy_backward_configuration(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
    platform: str,
) -> Launch:
    """What `area_cross_entropy_backward` launches."""
    maps = {"mass": mass, "lse": lse}
    tensors = {"logits": logits, "gradient": out, "scale": grad, "total": total, **maps, "weights": weight}
    return _launch_loss("gradient", labels, boxes, ignore_index, filter, logits, tensors, platform)


def _launch_loss(
    sink: str,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    logits: Tensor,
    tensors: dict[str, Tensor | None],
    platform: str,
) -> Launch:
    _, num_classes, *size = logits.shape
    return _launch(
        sink,
        labels,
        boxes,
        (size[0], size[1]),
        num_classes,
        ignore_index,
        filter,
        max(logits.element_size(), 4),
        accumulator_type(logits),
        platform,
        tensors,
    )


def soft_crop_resize_top(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    validate: bool,
) -> bool:
    """The k largest classes of a soft label, ``(B, k, h, w)``, and the mass of the others, ``rest (B, h, w)``."""
    if index.shape[1] > _MAX_TOP_K:
        soft = mass.new_empty((labels.shape[0], num_classes, *mass.shape[2:]), dtype=torch.float32)
        if not soft_crop_resize(soft, labels, boxes, ignore_index, filter, validate):
            return False
        for output, result in zip((index, mass, rest), reference.top_k(soft, index.shape[1]), strict=True):
            output.copy_(result)
        return True
    if validate and not labels_in_range(labels, num_classes, ignore_index):
        return False
    platform = platform_of(index.device)
    top_configuration(index, mass, rest, labels, boxes, num_classes, ignore_index, filter, platform).run(index.device)
    return True


def soft_pyramid(outs: Sequence[Tensor], labels: Tensor, ignore_index: int, validate: bool) -> bool:
    """Soft labels ``(B, C, h, w)`` of a label map ``(B, H, W)``: in one read of it where each is half the one before.

    The kernel counts what the path of integer factors of `soft_crop_resize` counts, and halves it.
    """
    num_classes = outs[0].shape[1]
    if validate and not labels_in_range(labels, num_classes, ignore_index):
        return False
    doubling = all(2 * coarse.shape[3] == fine.shape[3] for fine, coarse in itertools.pairwise(outs))
    if doubling and labels.shape[2] // outs[0].shape[3] in (1, 2, 4, 8) and num_classes <= 255:
        pyramid_configuration(outs, labels, ignore_index, platform_of(labels.device)).run(labels.device)
    else:
        for out in outs:
            soft_crop_resize(out, labels, None, ignore_index, "area", validate=False)
    return True


def area_cross_entropy(
    value: Tensor,
    total: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """The loss of logits ``(B, C, h, w)`` against a label map, with the weighted mass and logsumexp of each pixel."""
    if validate and not labels_in_range(labels, logits.shape[1], ignore_index):
        return False
    launch = area_cross_entropy_configuration(
        value,
        mass,
        lse,
        logits,
        labels,
        boxes,
        ignore_index,
        filter,
        weight,
        reduction,
        platform_of(logits.device),
    )
    launch.run(logits.device)
    if reduction != "none":
        finish_cross_entropy(value, total, launch.arguments["partial"], reduction)
    return True


def area_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """The gradient ``out (B, C, h, w)`` of the logits, given that of the pixels' losses, ``grad (B, h, w) / total``."""
    area_cross_entropy_backward_configuration(
        out,
        grad,
        total,
        logits,
        labels,
        boxes,
        ignore_index,
        filter,
        weight,
        mass.contiguous(),
        lse.contiguous(),
        platform_of(logits.device),
    ).run(logits.device)
