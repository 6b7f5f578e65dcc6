"""Dice and Jaccard losses of logits that are enlarged to the size of their label map, and their gradient.

Sums over label pixels need the logsumexp first, so the exponentials are taken twice, forward as well as backward (where
the mean slope of each pixel comes first). Where classes share nothing any more, a program owns a few of them and many
pixels, so that what it sums stays in registers to the end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonsoft import memory
from tritonsoft.backends.values import labels_in_range
from tritonsoft.geometry import Classes, Measure, Reduction
from tritonsoft.kernels.enlarged_gradient import gradient_configuration
from tritonsoft.kernels.enlarging import (
    Tables,
    classes_at_once,
    compile_options,
    enlarged_logits,
    enlarging_arguments,
    exponential_of_units,
    lerp,
    load_fractions,
    load_labels,
    log2_units,
    logit_offset,
    logits_of_labels,
    make_tables,
    pixels_per_logit,
    repeated,
    row_of_logits,
    rows_of_step,
    softmax_of_tile,
    strip_of_program,
    tile_settings,
)
from tritonsoft.kernels.launch import Launch, launch
from tritonsoft.kernels.pixel_rules import scalars_of_slopes
from tritonsoft.kernels.sums import finish_overlap


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "num_classes", "ignored_class"])
def upsampled_statistics_kernel(
    lse,  # (B, H, W), contiguous, in units of `enlarging`: written, or read where there is a mean slope
    mean_slope,  # (B, H, W), contiguous, or None
    slopes,  # of the mean slope, `scalars_of_slopes`
    logits,  # (B, C, h, w)
    logits_strides,
    labels,  # (B, H, W)
    labels_strides,
    tables,  # `enlarging`
    height,
    width,
    out_height,
    out_width,
    num_classes,
    ignored_class,
    GAPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """One number of each pixel over all its classes. A program walks GAPS gaps, ROWS rows at a time."""
    sizes = (height, width, out_height, out_width)
    sample, axis, columns, taps, first_step, end_step = strip_of_program(
        tables, logits_strides, sizes, tl.program_id(0), GAPS, BLOCK_W, OFFSET
    )
    logits += sample * logits_strides[0]
    labels += sample * labels_strides[0]
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
            pixels = (sample * out_height + rows) * out_width + columns[None, :]
            if mean_slope is None:
                max_logit, log_sum, _ = softmax_of_tile(
                    logits,
                    logits_strides,
                    offsets,
                    taps,
                    fractions,
                    (None, None),
                    num_classes,
                    False,
                    ROWS,
                    UNROLL,
                    ACCUMULATOR,
                    OFFSET,
                )
                value = tl.where(known, max_logit + log_sum, 0.0)
                tl.store(lse + pixels, value.to(lse.dtype.element_ty), mask=exists)
            else:
                lse_here = tl.load(lse + pixels, mask=known, other=0.0).to(ACCUMULATOR)
                mean = tl.zeros([ROWS, BLOCK_W], ACCUMULATOR)
                for first_class in range(0, num_classes, UNROLL):
                    for unrolled in tl.static_range(UNROLL):
                        class_index = tl.cast(first_class + unrolled, tl.int32)
                        class_offset = class_index.to(OFFSET) * logits_strides[1]
                        exist = class_index < num_classes
                        logit = enlarged_logits(
                            logits, class_offset, offsets, taps, fractions, exist, ACCUMULATOR, True
                        )
                        elsewhere, _ = scalars_of_slopes(slopes, sample, class_index, exist, ACCUMULATOR)
                        mean = tl.fma(exponential_of_units(logit - lse_here), elsewhere, mean)
                logit = logits_of_labels(
                    logits, logits_strides, label, offsets, taps, fractions, ACCUMULATOR, OFFSET, True
                )
                elsewhere, at_label = scalars_of_slopes(slopes, sample, label, known, ACCUMULATOR)
                mean += exponential_of_units(logit - lse_here) * (at_label - elsewhere)
                value = tl.where(known, mean, 0.0)
                tl.store(mean_slope + pixels, value.to(mean_slope.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "num_classes", "ignored_class"])
def upsampled_sums_kernel(
    partial,  # (B, programs, C, 3), contiguous: sums of predicted mass, labelled mass and their distance
    lse,  # (B, H, W), contiguous, in units of `enlarging`
    logits,  # (B, C, h, w)
    logits_strides,
    labels,  # (B, H, W)
    labels_strides,
    tables,  # `enlarging`
    height,
    width,
    out_height,
    out_width,
    num_classes,
    ignored_class,
    GAPS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """A program owns UNROLL classes, and walks the label rows of GAPS gaps in BLOCK_W columns."""
    sizes = (height, width, out_height, out_width)
    class_groups = tl.cdiv(num_classes, UNROLL)
    first_class = tl.program_id(0) % class_groups * UNROLL
    program = tl.program_id(0) // class_groups
    sample, axis, columns, taps, first_step, end_step = strip_of_program(
        tables, logits_strides, sizes, program, GAPS, BLOCK_W, OFFSET
    )
    logits += sample * logits_strides[0]
    labels += sample * labels_strides[0]
    predicted = repeated(tl.zeros([BLOCK_W], ACCUMULATOR), UNROLL)
    hit = predicted
    labelled = repeated(tl.zeros([BLOCK_W], tl.int32), UNROLL)
    for step in range(first_step, end_step):
        start, end, first, second = rows_of_step(axis, step, height)
        if start < end:
            first_offset = logit_offset(axis, first, height, logits_strides[2], OFFSET)
            second_offset = logit_offset(axis, second, height, logits_strides[2], OFFSET)
            tops = ()
            bottoms = ()
            for unrolled in tl.static_range(UNROLL):
                class_index = first_class + unrolled
                class_offset = class_index.to(OFFSET) * logits_strides[1]
                exist = class_index < num_classes
                top = row_of_logits(logits, class_offset, first_offset, taps, exist, ACCUMULATOR)
                bottom = row_of_logits(logits, class_offset, second_offset, taps, exist, ACCUMULATOR)
                tops = tops + (log2_units(top),)  # noqa: RUF005
                bottoms = bottoms + (log2_units(bottom),)  # noqa: RUF005
            for row in range(start, end):
                fraction = tl.load(axis[2] + row)
                label = load_labels(labels, labels_strides, row, columns, taps[3], num_classes, ignored_class, OFFSET)
                known = label >= 0
                pixels = (sample * out_height + row) * out_width + columns
                lse_here = tl.load(lse + pixels, mask=known, other=0.0).to(ACCUMULATOR)
                label -= first_class
                new_predicted = ()
                new_hit = ()
                new_labelled = ()
                for unrolled in tl.static_range(UNROLL):
                    logit = lerp(tops[unrolled], bottoms[unrolled], fraction)
                    probability = tl.where(known, exponential_of_units(logit - lse_here), 0.0)
                    is_label = label == unrolled
                    new_predicted = new_predicted + (predicted[unrolled] + probability,)  # noqa: RUF005
                    new_hit = new_hit + (hit[unrolled] + tl.where(is_label, probability, 0.0),)  # noqa: RUF005
                    new_labelled = new_labelled + (labelled[unrolled] + is_label.to(tl.int32),)  # noqa: RUF005
                predicted = new_predicted
                hit = new_hit
                labelled = new_labelled
    for unrolled in tl.static_range(UNROLL):
        class_index = first_class + unrolled
        exist = class_index < num_classes
        # Of a pixel of the class 1 - p lies between, of any other p: |p - q| needs no other sum.
        elsewhere = predicted[unrolled] - hit[unrolled]
        distance = elsewhere + (labelled[unrolled].to(ACCUMULATOR) - hit[unrolled])
        dtype = partial.dtype.element_ty
        sums = partial + (program.to(tl.int64) * num_classes + class_index) * 3
        tl.store(sums, tl.sum(predicted[unrolled], axis=0).to(dtype), mask=exist)
        tl.store(sums + 1, tl.sum(labelled[unrolled], axis=0).to(dtype), mask=exist)
        tl.store(sums + 2, tl.sum(distance, axis=0).to(dtype), mask=exist)


# --- launch ----------------------------------------------------------------------------------------------------------


def statistics_configuration(
    lse: Tensor,
    mean_slope: Tensor | None,
    grad: Tensor | None,
    slopes: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    has_boxes: bool,
    ignore_index: int,
    *tables: Tensor,
    platform: str,
) -> Launch:
    """What writes the logsumexp of each pixel or, with ``grad`` and ``slopes``, the mean slope."""
    size = (labels.shape[1], labels.shape[2])
    settings, programs = tile_settings(logits, size, has_boxes)
    arguments = {
        "lse": lse,
        "mean_slope": mean_slope,
        "slopes": None if grad is None or slopes is None else slopes_arguments(grad, slopes),
        **enlarging_arguments(logits, labels, size, ignore_index, Tables(*tables)),
        **settings,
    }
    return Launch(upsampled_statistics_kernel, (len(logits) * programs,), arguments, compile_options(128, platform))


def sums_configuration(
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    has_boxes: bool,
    ignore_index: int,
    *tables: Tensor,
    platform: str,
) -> Launch:
    """What sums over pixels; scratch tensor ``partial`` holds the sums of each program, ``(B, programs, C * 3)``."""
    batch, num_classes, height, _ = logits.shape
    size = (labels.shape[1], labels.shape[2])
    is_double = logits.dtype == torch.float64
    block_w = max(min(triton.next_power_of_2(size[1]), 256), 64)
    gaps = max(1, min(int(64 / pixels_per_logit(size[0], height, has_boxes)), 16))
    programs = triton.cdiv(height + 1, gaps) * triton.cdiv(size[1], block_w)
    unroll = classes_at_once(num_classes, (2, 3, 4) if is_double else (4, 5, 6), 10, 16)
    arguments = {
        "partial": memory.empty((batch, programs, num_classes * 3), lse.dtype, lse.device),
        "lse": lse,
        **enlarging_arguments(logits, labels, size, ignore_index, Tables(*tables)),
        "GAPS": gaps,
        "BLOCK_W": block_w,
        "UNROLL": unroll,
    }
    grid = (batch * programs * triton.cdiv(num_classes, unroll),)
    return Launch(upsampled_sums_kernel, grid, arguments, compile_options(block_w // 2, platform), ("partial",))


def slopes_arguments(grad: Tensor, slopes: Tensor) -> tuple[Tensor, tuple[int, ...], Tensor, tuple[int, ...]]:
    """What `scalars_of_slopes` takes; what holds for the batch holds for each sample."""

    def strides(tensor: Tensor) -> tuple[int, ...]:
        return (0 if len(tensor) == 1 else tensor.stride(0), *tensor.stride()[1:])

    return grad, strides(grad), slopes, strides(slopes)


def upsampled_overlap_backward_configuration(
    out: Tensor,
    grad: Tensor,
    slopes: Tensor,
    mean_slope: Tensor,
    logits: Tensor,
    labels: Tensor,
    has_boxes: bool,
    ignore_index: int,
    lse: Tensor,
    *tables: Tensor,
    platform: str,
) -> Launch:
    """What `upsampled_overlap_loss_backward` launches last."""
    rule = (*slopes_arguments(grad, slopes), mean_slope)
    place = (logits, labels, has_boxes, ignore_index, lse, Tables(*tables), platform)
    return gradient_configuration("overlap", out, rule, 0.0, *place)


def upsampled_overlap_loss(
    value: Tensor,
    slopes: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    weight: Tensor | None,
    measure: Measure,
    classes: Classes,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """The Dice or Jaccard loss of logits ``(B, C, h, w)`` over a label map, with the logsumexp of each label pixel."""
    if validate and not labels_in_range(labels, logits.shape[1], ignore_index):
        return False
    if boxes is not None:
        lse.zero_()  # the kernel writes inside of them alone
    place = (logits, labels, boxes is not None, ignore_index, *make_tables(logits, labels, boxes))
    launch(statistics_configuration, logits.device, lse, None, None, None, *place)
    (partial,) = launch(sums_configuration, logits.device, lse, *place)
    finish_overlap(value, slopes, partial, weight, measure, classes, reduction)
    return True


def upsampled_overlap_loss_backward(
    out: Tensor,
    grad: Tensor,
    slopes: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    lse: Tensor,
) -> None:
    """The gradient ``out (B, C, h, w)`` of the logits, given that of the values, ``grad (S, C)``."""
    lse = lse.contiguous()
    mean_slope = memory.empty(lse.shape, lse.dtype, lse.device)
    place = (logits, labels, boxes is not None, ignore_index)
    tables = make_tables(logits, labels, boxes)
    launch(statistics_configuration, logits.device, lse, mean_slope, grad, slopes, *place, *tables)
    inputs = (out, grad, slopes, mean_slope, *place, lse, *tables)
    launch(upsampled_overlap_backward_configuration, logits.device, *inputs)
