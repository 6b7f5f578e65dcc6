"""What is made of a label map without its dense soft label in memory: the largest classes, a pyramid, a loss.

One kernel: a program counts the labels of one tile of one sample and hands the masses to an epilogue (`counting`). The
loss reads each logit once from memory for the logsumexp, and those of the classes that occur again, from a cache.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends import reference
from tritonsoft.backends.values import labels_in_range
from tritonsoft.geometry import Filter, Reduction
from tritonsoft.kernels.convert import downcast, exponential, upcast
from tritonsoft.kernels.counting import class_of_key, load_logits, mass_of_key, soft_tile, soft_tile_integer_factor
from tritonsoft.kernels.forward import soft_crop_resize
from tritonsoft.kernels.geometry import axis_of_box, filter_support, tile_footprints
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
from tritonsoft.kernels.sums import divided_by, finish_cross_entropy, store_sums, sums_instead_of_losses

# A sorted list of that many candidates for each pixel is what a kernel keeps in registers.
_MAX_TOP_K = 16


@triton.jit
def _log_sum_exp(logits, strides, pixels, num_classes, zeros, OFFSET: tl.constexpr):
    """The logsumexp over the classes of each pixel, in the shape and type of ``zeros``."""
    DTYPE: tl.constexpr = zeros.dtype
    # An online softmax. The largest logit is subtracted before anything else, which avoids cancellation; that it starts
    # as a finite number keeps logits of -infinity from becoming infinity less infinity.
    max_logit = zeros + (-1.7976931348623157e308 if tl.float64 == DTYPE else -3.4028234663852886e38)
    sum_exp = zeros
    inside = pixels[3]
    whole = num_classes // 4 * 4
    for first in range(0, whole, 4):
        logit0 = load_logits(logits, strides, pixels, first, inside, DTYPE, OFFSET)
        logit1 = load_logits(logits, strides, pixels, first + 1, inside, DTYPE, OFFSET)
        logit2 = load_logits(logits, strides, pixels, first + 2, inside, DTYPE, OFFSET)
        logit3 = load_logits(logits, strides, pixels, first + 3, inside, DTYPE, OFFSET)
        new_max = tl.maximum(max_logit, tl.maximum(tl.maximum(logit0, logit1), tl.maximum(logit2, logit3)))
        sum_exp = sum_exp * exponential(max_logit - new_max)
        sum_exp += exponential(logit0 - new_max) + exponential(logit1 - new_max)
        sum_exp += exponential(logit2 - new_max) + exponential(logit3 - new_max)
        max_logit = new_max
    for last in tl.static_range(3):
        if whole + last < num_classes:
            logit = load_logits(logits, strides, pixels, whole + last, inside, DTYPE, OFFSET)
            new_max = tl.maximum(max_logit, logit)
            sum_exp = sum_exp * exponential(max_logit - new_max) + exponential(logit - new_max)
            max_logit = new_max
    return max_logit + tl.log(sum_exp)


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
    top_mass,  # top: (B, k, h, w), contiguous; else None
    rest,  # top: the mass of all other classes, (B, h, w), contiguous; else None
    loss,  # loss: (B, h, w), contiguous, or None; else None
    partial,  # loss: (programs, 2), contiguous, or None: sums of each program's losses and masses; else None
    mass,  # loss: written; gradient: read; (B, h, w), contiguous; else None
    lse,  # the same
    logits,  # loss, gradient: (B, C, h, w); else None
    logits_strides,
    class_weight,  # loss, gradient: (C,) or None
    class_weight_stride,
    grad_logits,  # gradient: of the logits, (B, C, h, w); else None
    grad_logits_strides,
    grad_loss,  # gradient: of the loss, (B, h, w); else None
    grad_loss_strides,
    total_mass,  # gradient: a number by which it is divided (0 counts as 1), or None
    in_height,
    in_width_units,
    out_height,
    out_width_units,
    num_classes,
    ignored_class,
    EPILOGUE: tl.constexpr,
    TOP: tl.constexpr,  # how many classes are stored
    FILTER: tl.constexpr,
    INTEGER_FACTOR: tl.constexpr,  # 0: the general way to count labels
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
    if INTEGER_FACTOR > 0:
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

    epilogue = ()
    state = ()
    if EPILOGUE == "pyramid":
        planes = ()
        for level in tl.static_range(len(levels)):
            level_size = (out_height >> level).to(tl.int64) * (out_width >> level)
            planes = planes + (levels[level] + sample * num_classes * level_size,)  # noqa: RUF005
        epilogue = (planes, out_height, out_width, row, column)
    elif EPILOGUE == "top":
        keys = ()
        for _ in tl.static_range(TOP):
            keys = keys + ((pixels[2] * 0 - 1).to(tl.int32 if INTEGER_FACTOR > 0 else tl.int64),)  # noqa: RUF005
        state = (zeros.to(tl.float32), keys)
    else:
        logits_sample = logits + sample * logits_strides[0]
        if EPILOGUE == "loss":
            log_sum = _log_sum_exp(logits_sample, logits_strides, pixels, num_classes, zeros, OFFSET)
            epilogue = (logits_sample, logits_strides, class_weight, class_weight_stride)
            state = (zeros, zeros, log_sum)
        else:
            grad_logits_sample = grad_logits + sample * grad_logits_strides[0]
            epilogue = (
                logits_sample,
                logits_strides,
                class_weight,
                class_weight_stride,
                grad_logits_sample,
                grad_logits_strides,
            )
            grad_loss_offsets = rows.to(OFFSET) * grad_loss_strides[1] + columns.to(OFFSET) * grad_loss_strides[2]
            factor = upcast(
                tl.load(grad_loss + sample * grad_loss_strides[0] + grad_loss_offsets, mask=inside, other=0.0),
                ACCUMULATOR,
            )
            mass_here = tl.load(mass + plane, mask=inside, other=0.0)
            factor = tl.where(mass_here > 0, divided_by(factor, total_mass), 0.0)
            state = (factor, factor * mass_here, tl.load(lse + plane, mask=inside, other=0.0))

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

    if EPILOGUE == "top":
        tl.store(rest + plane, downcast(state[0], rest.dtype.element_ty), mask=inside)
        for place in tl.static_range(TOP):
            offsets = (sample * TOP + place) * plane_size + pixels[2]
            key = state[1][place]
            tl.store(index + offsets, class_of_key(key).to(index.dtype.element_ty), mask=inside)
            tl.store(top_mass + offsets, downcast(mass_of_key(key), top_mass.dtype.element_ty), mask=inside)
    elif EPILOGUE == "loss":
        if partial is None:
            tl.store(loss + plane, state[0], mask=inside)
        else:
            store_sums(partial, state[0], state[1])
        tl.store(mass + plane, state[1], mask=inside)
        tl.store(lse + plane, state[2], mask=inside)


# --- launch ---------------------------------------------------------------------------------------------------------


def _launch(
    epilogue: str,
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
    factor = integer_factor(labels, boxes, size, num_classes, filter)
    if factor > 0:
        if epilogue == "loss" and factor * labels.element_size() > 32:
            element_size = 16  # what the labels leave of the registers holds the sums of one pixel, not of two
        options, elements, unit = integer_factor_tile(factor, element_size, platform)
        if epilogue == "loss":
            options |= register_limit(platform, accumulator)
    else:
        # What an epilogue keeps for each pixel takes registers from the loop over the taps: fewer pixels for a thread.
        options, elements, unit = {"num_warps": 4, **register_limit(platform, accumulator)}, 256, 1
    (height, width), (in_height, in_width) = size, labels.shape[1:]
    block_h, block_w = tile_shape(height, width, elements)
    if epilogue == "pyramid":  # a tile must hold whole pixels of the coarsest level
        side = 1 << (len(tensors["levels"]) - 1)
        block_h = max(block_h, side)
        block_w = max(elements // block_h, side)
    in_unit, out_unit = 16 if in_width % 16 == 0 else 1, power_of_two_factor(width, unit)
    names = ("levels", "index", "top_mass", "rest", "loss", "partial", "mass", "lse", "class_weight", "total_mass")
    strided = ("logits", "grad_logits", "grad_loss")
    planes = ("logits", "grad_logits", "grad_loss", "rest", "mass", "index")
    offsets = [tensor for name in planes if (tensor := tensors.get(name)) is not None]
    class_weight = tensors.get("class_weight")
    return Launch(
        label_target_kernel,
        (triton.cdiv(height, block_h) * triton.cdiv(width, block_w) * labels.shape[0],),
        {
            "labels": labels,
            "labels_strides": labels.stride(),
            "boxes": boxes,
            "boxes_strides": None if boxes is None else boxes.stride(),
            **{name: tensors.get(name) for name in names},
            "class_weight_stride": None if class_weight is None else class_weight.stride(0),
            **{name: tensors.get(name) for name in strided},
            **{f"{name}_strides": tensors[name].stride() if name in tensors else None for name in strided},
            "in_height": in_height,
            "in_width_units": in_width // in_unit,
            "out_height": height,
            "out_width_units": width // out_unit,
            "num_classes": num_classes,
            "ignored_class": ignore_index if 0 <= ignore_index < num_classes else -1,
            "EPILOGUE": epilogue,
            "TOP": tensors["index"].shape[1] if epilogue == "top" else 0,
            "FILTER": filter,
            "INTEGER_FACTOR": factor,
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
    tensors = {"index": index, "top_mass": mass, "rest": rest}
    return _launch("top", labels, boxes, size, num_classes, ignore_index, filter, 4, tl.float32, platform, tensors)


def pyramid_configuration(labels: Tensor, ignore_index: int, *outs: Tensor, platform: str) -> Launch:
    """What `soft_pyramid` launches."""
    finest = outs[0]
    tensors, accumulator = {"levels": outs}, accumulator_type(finest)
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

    Unless the reduction is "none", scratch tensor ``partial`` holds the sums of each program, ``(1, programs, 2)``.
    """
    tensors = {"logits": logits, "loss": value, "mass": mass, "lse": lse, "class_weight": weight}
    result = _launch_loss("loss", labels, boxes, ignore_index, filter, logits, tensors, platform)
    return result if reduction == "none" else sums_instead_of_losses(result, lse)


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
    tensors = {
        "logits": logits,
        "grad_logits": out,
        "grad_loss": grad,
        "total_mass": total,
        **maps,
        "class_weight": weight,
    }
    return _launch_loss("gradient", labels, boxes, ignore_index, filter, logits, tensors, platform)


def _launch_loss(
    epilogue: str,
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
        epilogue,
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
    inputs = (index, mass, rest, labels, boxes, num_classes, ignore_index, filter)
    launch(top_configuration, index.device, *inputs)
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
        launch(pyramid_configuration, labels.device, labels, ignore_index, *outs)
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
    maps, source = (mass, lse), (labels, boxes, ignore_index, filter)
    scratch = launch(area_cross_entropy_configuration, logits.device, value, *maps, logits, *source, weight, reduction)
    if reduction != "none":
        finish_cross_entropy(value, total, scratch[0], reduction)
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
    maps, source = (mass.contiguous(), lse.contiguous()), (labels, boxes, ignore_index, filter)
    configuration = area_cross_entropy_backward_configuration
    launch(configuration, logits.device, out, grad, total, logits, *source, weight, *maps)
