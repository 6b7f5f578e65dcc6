"""The cross-entropy of logits against the soft label of a label map that is never in memory, forward and backward.

The loss reads each logit once from memory for the logsumexp, and those of the classes that occur again, from a cache.
"""

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends.values import labels_in_range
from tritonsoft.geometry import Filter, Reduction
from tritonsoft.kernels.convert import upcast
from tritonsoft.kernels.epilogues import logits_of_group, weights_of_group
from tritonsoft.kernels.label_tile import count_step, launch_of_label_map, pixels_of_step, tile_of_program
from tritonsoft.kernels.launch import Launch, accumulator_type, integer_factor, launch, register_limit
from tritonsoft.kernels.softmax import (
    mass_and_known,
    online_softmax_finalize,
    online_softmax_init,
    online_softmax_update,
    smoothed_loss,
    smoothed_mass,
    uniform_loss_finalize,
    uniform_loss_update,
    with_stride,
)
from tritonsoft.kernels.sums import divided_by, finish_cross_entropy, store_sums, sums_instead_of_losses


@triton.jit
def _log_sum_exp(epilogue, pixels, num_classes, zeros, SMOOTHED: tl.constexpr, OFFSET: tl.constexpr):
    """The logsumexp over the classes of each pixel, in the shape and type of ``zeros``; the loss of uniform labels."""
    state = online_softmax_init(zeros)
    uniform = (zeros, tl.zeros([], zeros.dtype))
    for first in range(0, num_classes, 4):
        values = logits_of_group(epilogue, pixels, first, num_classes, zeros.dtype, OFFSET)
        old_max = state[0]
        state = online_softmax_update(state, values, (), False)
        if SMOOTHED:
            weights = weights_of_group(epilogue, first, num_classes, zeros.dtype)
            uniform = uniform_loss_update(uniform, old_max, state[0], values, weights)
    return online_softmax_finalize(state)[0], uniform_loss_finalize(uniform, state[1])


@triton.jit(
    do_not_specialize=["in_height", "in_width_units", "out_height", "out_width_units", "num_classes", "ignored_class"]
)
def area_cross_entropy_kernel(
    labels,  # (B, H, W)
    labels_strides,
    boxes,  # (B, 4), or None for the whole image
    boxes_strides,
    loss,  # (B, h, w), contiguous, or None
    partial,  # (programs, 2), contiguous, or None: sums of each program's losses and masses
    mass,  # (B, h, w), contiguous
    known,  # the same, where there are weights and smoothing: the mass without the weights
    lse,  # (B, h, w), contiguous
    logits,  # (B, C, h, w)
    logits_strides,
    weights,  # (C,) or None, and their stride
    in_height,
    in_width_units,
    out_height,
    out_width_units,
    num_classes,
    ignored_class,
    LABEL_SMOOTHING: tl.constexpr,
    FILTER: tl.constexpr,
    INTEGER_FACTOR: tl.constexpr,  # 0: count in general
    ONE_PASS: tl.constexpr,  # over the logits, else one for the logsumexp before
    IN_WIDTH_UNIT: tl.constexpr,
    OUT_WIDTH_UNIT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    MANY_CLASSES: tl.constexpr,  # like the next two for counting in general, see `counting_rows`
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
    SMOOTHED: tl.constexpr = LABEL_SMOOTHING > 0
    sample = tile[0]
    epilogue = (logits + sample * logits_strides[0], logits_strides, weights)
    losses = pixels_of_step(tile, 0, out_height, out_width, INTEGER_FACTOR, BLOCK_H, BLOCK_W, OFFSET)[2] * 0
    losses = losses.to(ACCUMULATOR)
    masses = losses
    for step in range(0, tile[3]):
        pixels = pixels_of_step(tile, step, out_height, out_width, INTEGER_FACTOR, BLOCK_H, BLOCK_W, OFFSET)
        zeros = tl.zeros(pixels[2].shape, ACCUMULATOR)
        if ONE_PASS:
            state = online_softmax_init(zeros)
            if SMOOTHED:
                state = state + (zeros, tl.zeros([], ACCUMULATOR), zeros)  # noqa: RUF005 - Triton unpacks nothing here
        else:
            lse_here, uniform_loss = _log_sum_exp(epilogue, pixels, num_classes, zeros, SMOOTHED, OFFSET)
            state = (zeros, zeros, lse_here)
            if known is not None:
                state = state + (zeros,)  # noqa: RUF005
        state = count_step(
            epilogue,
            state,
            tile,
            step,
            pixels,
            labels,
            labels_strides,
            out_height,
            out_width,
            num_classes,
            ignored_class,
            "softmax" if ONE_PASS else "loss",
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
        plane = sample * (out_height.to(tl.int64) * out_width) + pixels[2]
        if ONE_PASS:
            lse_here, mass_here, loss_here = online_softmax_finalize((state[0], state[1], state[2], state[3]))
            if SMOOTHED:
                uniform_loss = uniform_loss_finalize((state[4], state[5]), state[1])
        else:
            loss_here, mass_here, lse_here = state[0], state[1], state[2]
        saved_mass = mass_here
        if SMOOTHED:
            known_here = mass_here
            if known is not None:
                known_here = state[6] if ONE_PASS else state[3]
                saved_mass = smoothed_mass(mass_here, known_here, weights, num_classes, LABEL_SMOOTHING)
                tl.store(known + plane, known_here, mask=pixels[3])
            loss_here = smoothed_loss(loss_here, known_here, uniform_loss, num_classes, LABEL_SMOOTHING)
        if partial is None:
            tl.store(loss + plane, loss_here, mask=pixels[3])
        elif INTEGER_FACTOR > 0:  # the only step
            losses, masses = loss_here, mass_here
        else:
            losses += loss_here
            masses += mass_here
        tl.store(mass + plane, saved_mass, mask=pixels[3])
        tl.store(lse + plane, lse_here, mask=pixels[3])
    if partial is not None:
        store_sums(partial, losses, masses)


@triton.jit(
    do_not_specialize=["in_height", "in_width_units", "out_height", "out_width_units", "num_classes", "ignored_class"]
)
def area_cross_entropy_backward_kernel(
    labels,  # (B, H, W)
    labels_strides,
    boxes,  # (B, 4), or None for the whole image
    boxes_strides,
    mass,  # (B, h, w), contiguous
    known,  # the same, where there are weights and smoothing: the mass without the weights
    lse,  # (B, h, w), contiguous
    logits,  # (B, C, h, w)
    logits_strides,
    weights,  # (C,) or None, and their stride
    out,  # (B, C, h, w)
    out_strides,
    grad,  # (B, h, w)
    grad_strides,
    total,  # a number by which it is divided (0 counts as 1), or None
    in_height,
    in_width_units,
    out_height,
    out_width_units,
    num_classes,
    ignored_class,
    LABEL_SMOOTHING: tl.constexpr,
    FILTER: tl.constexpr,
    INTEGER_FACTOR: tl.constexpr,  # 0: count in general
    IN_WIDTH_UNIT: tl.constexpr,
    OUT_WIDTH_UNIT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    MANY_CLASSES: tl.constexpr,  # like the next two for counting in general, see `counting_rows`
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
    sample = tile[0]
    logits_sample = logits + sample * logits_strides[0]
    for step in range(0, tile[3]):
        pixels = pixels_of_step(tile, step, out_height, out_width, INTEGER_FACTOR, BLOCK_H, BLOCK_W, OFFSET)
        inside = pixels[3]
        plane = sample * (out_height.to(tl.int64) * out_width) + pixels[2]
        grad_offsets = tl.cast(pixels[0], OFFSET) * grad_strides[1] + pixels[1].to(OFFSET) * grad_strides[2]
        grad_here = tl.load(grad + sample * grad_strides[0] + grad_offsets, mask=inside, other=0.0)
        mass_here = tl.load(mass + plane, mask=inside, other=0.0)
        grad_loss = tl.where(mass_here > 0, divided_by(upcast(grad_here, ACCUMULATOR), total), 0.0)
        state = (grad_loss, grad_loss * mass_here, tl.load(lse + plane, mask=inside, other=0.0))
        if LABEL_SMOOTHING > 0:
            known_here = mass_here
            if known is not None:
                known_here = tl.load(known + plane, mask=inside, other=0.0)
            uniform = grad_loss * known_here * (LABEL_SMOOTHING / num_classes.to(ACCUMULATOR))
            state = (grad_loss * (1 - LABEL_SMOOTHING), state[1], state[2], uniform)
        count_step(
            (
                logits_sample,
                logits_strides,
                weights,
                out + sample * out_strides[0],
                out_strides[1],
                out_strides[2],
                out_strides[3],
            ),
            state,
            tile,
            step,
            pixels,
            labels,
            labels_strides,
            out_height,
            out_width,
            num_classes,
            ignored_class,
            "gradient",
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
    label_smoothing: float,
    known: Tensor | None,
    reduction: Reduction,
    platform: str,
) -> Launch:
    """What `area_cross_entropy` launches first; only shapes, strides and types matter, here and below.

    Unless the reduction is "none", scratch tensor ``partial`` holds the sums of each program, ``(1, programs, 2)``.
    """
    _, num_classes, height, width = logits.shape
    accumulator, element_size = accumulator_type(logits), max(logits.element_size(), 4)
    factor = integer_factor(labels, boxes, (height, width), num_classes, filter)
    if factor * labels.element_size() > 32:
        element_size = 16  # what the labels leave of the registers holds the sums of one pixel, not of two
    planned = launch_of_label_map(
        area_cross_entropy_kernel,
        labels,
        boxes,
        (height, width),
        num_classes,
        ignore_index,
        filter,
        element_size,
        accumulator,
        platform,
        {
            "loss": value,
            "partial": None,
            "mass": mass,
            "known": known,
            "lse": lse,
            "logits": logits,
            "logits_strides": logits.stride(),
            "weights": with_stride(weight),
            "LABEL_SMOOTHING": label_smoothing,
            # Triton 3.7 cannot translate the one pass for AMD.
            "ONE_PASS": factor > 0 and platform != "hip",
        },
        [logits, mass],
    )
    if factor > 0:
        planned = planned._replace(options={**planned.options, **register_limit(platform, accumulator)})
    return planned if reduction == "none" else sums_instead_of_losses(planned, lse)


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
    label_smoothing: float,
    mass: Tensor,
    known: Tensor | None,
    lse: Tensor,
    platform: str,
) -> Launch:
    """What `area_cross_entropy_backward` launches."""
    _, num_classes, height, width = logits.shape
    return launch_of_label_map(
        area_cross_entropy_backward_kernel,
        labels,
        boxes,
        (height, width),
        num_classes,
        ignore_index,
        filter,
        max(logits.element_size(), 4),
        accumulator_type(logits),
        platform,
        {
            "mass": mass,
            "known": known,
            "lse": lse,
            "logits": logits,
            "logits_strides": logits.stride(),
            "weights": with_stride(weight),
            "out": out,
            "out_strides": out.stride(),
            "grad": grad,
            "grad_strides": grad.stride(),
            "total": total,
            "LABEL_SMOOTHING": label_smoothing,
        },
        [logits, out, grad, mass],
    )


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
    label_smoothing: float,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """The loss of logits ``(B, C, h, w)`` against a label map, with the weighted mass and logsumexp of each pixel."""
    if validate and not labels_in_range(labels, logits.shape[1], ignore_index):
        return False
    mass, known = mass_and_known(mass)
    source, options = (labels, boxes, ignore_index, filter), (weight, label_smoothing, known, reduction)
    scratch = launch(area_cross_entropy_configuration, logits.device, value, mass, lse, logits, *source, *options)
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
    label_smoothing: float,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """The gradient ``out (B, C, h, w)`` of the logits, given that of the pixels' losses, ``grad (B, h, w) / total``."""
    maps = (*mass_and_known(mass.contiguous()), lse.contiguous())
    inputs = (out, grad, total, logits, labels, boxes, ignore_index, filter, weight, label_smoothing, *maps)
    launch(area_cross_entropy_backward_configuration, logits.device, *inputs)
