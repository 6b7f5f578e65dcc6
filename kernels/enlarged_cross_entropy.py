"""Cross-entropy of logits that are enlarged to the size of their label map, and its gradient (`enlarged_gradient`)."""

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends.values import labels_in_range
from tritonsoft.geometry import Reduction
from tritonsoft.kernels.enlarged_gradient import gradient_configuration
from tritonsoft.kernels.enlarging import (
    Tables,
    compile_options,
    enlarging_arguments,
    load_fractions,
    load_labels,
    logit_offset,
    logits_of_labels,
    make_tables,
    natural_units,
    rows_of_step,
    softmax_of_tile,
    strip_of_program,
    tile_settings,
)
from tritonsoft.kernels.launch import Launch, launch
from tritonsoft.kernels.softmax import class_weight, sum_of_weights, with_stride
from tritonsoft.kernels.sums import finish_cross_entropy, store_sums, sums_instead_of_losses


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "num_classes", "ignored_class"])
def upsampled_cross_entropy_kernel(
    loss,  # (B, H, W), contiguous, or None
    partial,  # (programs, 2), contiguous, or None: sums of each program's losses and weights
    lse,  # (B, H, W), contiguous, in units of `enlarging`
    logits,  # (B, C, h, w)
    logits_strides,
    labels,  # (B, H, W)
    labels_strides,
    weights,  # (C,) or None, and their stride
    tables,  # `enlarging`
    height,
    width,
    out_height,
    out_width,
    num_classes,
    ignored_class,
    LABEL_SMOOTHING: tl.constexpr,
    GAPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """A program walks the label rows of GAPS gaps, ROWS at a time, in BLOCK_W columns."""
    sizes = (height, width, out_height, out_width)
    sample, axis, columns, taps, first_step, end_step = strip_of_program(
        tables, logits_strides, sizes, tl.program_id(0), GAPS, BLOCK_W, OFFSET
    )
    logits += sample * logits_strides[0]
    labels += sample * labels_strides[0]
    SMOOTHED: tl.constexpr = LABEL_SMOOTHING > 0
    losses = tl.zeros([ROWS, BLOCK_W], ACCUMULATOR)
    scored_weights = losses
    for step in range(first_step, end_step):
        start, end, first, second = rows_of_step(axis, step, height)
        offsets = (
            logit_offset(axis, first, height, logits_strides[2], OFFSET),
            logit_offset(axis, second, height, logits_strides[2], OFFSET),
        )
        for first_row in range(start, end, ROWS):
            rows = first_row + tl.arange(0, ROWS)[:, None]
            fractions = load_fractions(axis, rows, rows < end)
            exists = (rows < end) & taps[3][None, :]
            label = load_labels(
                labels, labels_strides, rows, columns[None, :], exists, num_classes, ignored_class, OFFSET
            )
            known = label >= 0
            max_logit, log_sum, below = softmax_of_tile(
                logits,
                logits_strides,
                offsets,
                taps,
                fractions,
                weights,
                num_classes,
                SMOOTHED,
                ROWS,
                UNROLL,
                ACCUMULATOR,
                OFFSET,
            )
            logit = logits_of_labels(logits, logits_strides, label, offsets, taps, fractions, ACCUMULATOR, OFFSET, True)
            weight = class_weight(weights, label, known, ACCUMULATOR)
            part = weight * (1 - LABEL_SMOOTHING)
            loss_here = tl.where(part == 0, 0.0, part * natural_units((max_logit - logit) + log_sum))
            if SMOOTHED:
                all_weights = sum_of_weights(weights, num_classes, ACCUMULATOR)
                smooth = natural_units(below + all_weights * log_sum)
                of_each = smooth * (LABEL_SMOOTHING / num_classes.to(ACCUMULATOR))
                loss_here += tl.where(known, tl.where(all_weights > 0, of_each, 0.0), 0.0)
            pixels = (sample * out_height + rows) * out_width + columns[None, :]
            lse_here = tl.where(known, max_logit + log_sum, 0.0)
            tl.store(lse + pixels, lse_here.to(lse.dtype.element_ty), mask=exists)
            if partial is None:
                tl.store(loss + pixels, loss_here.to(loss.dtype.element_ty), mask=exists)
            else:
                losses += loss_here
                scored_weights += weight
    if partial is not None:
        store_sums(partial, losses, scored_weights)


# --- launch ----------------------------------------------------------------------------------------------------------


def upsampled_cross_entropy_configuration(
    value: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    has_boxes: bool,
    ignore_index: int,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
    *tables: Tensor,
    platform: str,
) -> Launch:
    """What `upsampled_cross_entropy` launches second; only shapes, strides and types matter, here and below.

    Unless the reduction is "none", scratch tensor ``partial`` holds the sums of each program, ``(1, programs, 2)``.
    """
    size = (labels.shape[1], labels.shape[2])
    settings, programs = tile_settings(logits, size, has_boxes)
    arguments = {
        "loss": value,
        "partial": None,
        "lse": lse,
        "weights": with_stride(weight),
        **enlarging_arguments(logits, labels, size, ignore_index, Tables(*tables)),
        "LABEL_SMOOTHING": label_smoothing,
        **settings,
    }
    result = Launch(
        upsampled_cross_entropy_kernel,
        (len(logits) * programs,),
        arguments,
        compile_options(128, platform),
    )
    return result if reduction == "none" else sums_instead_of_losses(result, lse)


def upsampled_cross_entropy_backward_configuration(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    has_boxes: bool,
    ignore_index: int,
    weight: Tensor | None,
    label_smoothing: float,
    lse: Tensor,
    *tables: Tensor,
    platform: str,
) -> Launch:
    """What `upsampled_cross_entropy_backward` launches second."""
    # In a loop Triton 3.6 forgets constants of a tuple inside of a tuple, such as the weights' stride of 1, unless the
    # outer one has a constant behind them: here the place of an overlap's mean slope.
    rule = (grad, grad.stride() if any(grad.stride()) else None, total, with_stride(weight), None)
    place = (logits, labels, has_boxes, ignore_index, lse, Tables(*tables), platform)
    return gradient_configuration("cross entropy", out, rule, label_smoothing, *place)


def upsampled_cross_entropy(
    value: Tensor,
    total: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """The loss of logits ``(B, C, h, w)`` at each pixel of a label map ``(B, H, W)``, with the logsumexp there."""
    if validate and not labels_in_range(labels, logits.shape[1], ignore_index):
        return False
    has_boxes = boxes is not None
    if has_boxes:  # the kernel writes inside of them alone
        lse.zero_()
        if reduction == "none":
            value.zero_()
    tables = make_tables(logits, labels, boxes)
    inputs = (value, lse, logits, labels, has_boxes, ignore_index, weight, label_smoothing, reduction, *tables)
    scratch = launch(upsampled_cross_entropy_configuration, logits.device, *inputs)
    if reduction != "none":
        finish_cross_entropy(value, total, scratch[0], reduction)
    return True


def upsampled_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    weight: Tensor | None,
    label_smoothing: float,
    lse: Tensor,
) -> None:
    """The gradient ``out (B, C, h, w)`` of the logits, given that of the pixels' losses, ``grad (B, H, W) / total``."""
    tables = make_tables(logits, labels, boxes)
    options = (boxes is not None, ignore_index, weight, label_smoothing)
    inputs = (out, grad, total, logits, labels, *options, lse.contiguous(), *tables)
    launch(upsampled_cross_entropy_backward_configuration, logits.device, *inputs)
