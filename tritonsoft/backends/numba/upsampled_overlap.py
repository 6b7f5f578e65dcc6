"""The overlap losses of enlarged logits and a label map, forward and backward."""

from typing import Any

import numpy as np
from torch import Tensor

from tritonsoft.backends.numba.elements import Array, borrowed, flat
from tritonsoft.backends.numba.enlarging import (
    Enlarging,
    EnlargingArguments,
    LabelMap,
    Scratch,
    block_of,
    columns_of_tile,
    enlarged,
    enlarging_arguments,
    enlarging_of,
    flush_slot,
    label_map,
    load_labels,
    new_scratch,
    num_blocks,
    pixels_beside,
    rows_beside,
    rows_of_blocks,
    samples_of_blocks,
    softmax_of_row,
    take_grads,
    tile_columns,
    tile_logits,
)
from tritonsoft.backends.numba.planes import StridedTensor, TensorArguments, padded, strided_tensor, tensor_arguments
from tritonsoft.backends.numba.soft_overlap import finish_overlap
from tritonsoft.backends.numba.soft_targets import weights_of
from tritonsoft.backends.numba.softmax import log_of_sum
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import LANES, broadcast, exp, load, multiply_add, store, sum_of, where
from tritonsoft.geometry import Classes, Measure, Reduction

_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 0.7, 1.2  # of a label pixel and class


@jit
def _overlap_blocks(
    sums: Array,
    lse: Array,
    enlarging: Enlarging,
    labels: LabelMap,
    columns: int,
    scratch: Scratch,
    first_block: int,
    end_block: int,
) -> Any:
    """Whether all labels are in range. Adds to ``sums (blocks, C, 3)`` of predicted and labelled mass and distance."""
    enlarging, labels, scratch = borrowed(enlarging), borrowed(labels), borrowed(scratch)
    state, pitch, in_range = scratch.state, unsigned(scratch.pitch), True
    num_classes, zero = enlarging.num_classes, lse.dtype.type(0)
    for sample in samples_of_blocks(labels.height, first_block, end_block):
        for tile in range(0, labels.width, columns):
            first, end = columns_of_tile(enlarging, sample, tile, columns)
            if first >= end:
                continue
            count = end - first
            scratch.held[:] = -1
            for y in rows_of_blocks(enlarging, sample, first_block, end_block):
                of_block = block_of(labels.height, sample, y) * num_classes * 3
                start = unsigned((sample * labels.height + y) * labels.width + first)
                in_range &= load_labels(labels, sample, y, first, end, num_classes, scratch.label)
                place = rows_beside(enlarging, sample, y, first, end, scratch)
                softmax_of_row(scratch.lines, place, num_classes, scratch.exps, count, scratch)
                for n in range(unsigned(count)):
                    total, label = state.sum_exp[n], scratch.label[n]
                    scratch.scale[n] = lse[start + n] = zero
                    if label >= 0:
                        lse[start + n] = state.max_logit[n] + log_of_sum(total)
                        scratch.scale[n] = lse.dtype.type(1) / total
                        # Predicted mass is counted as distance below, and that of the pixel's own class is not.
                        own = scratch.exps[unsigned(label) * pitch + n] * scratch.scale[n]
                        sums[of_block + label * 3 + 1] += 1.0
                        sums[of_block + label * 3 + 2] += 1.0 - 2.0 * own
                for n in range(unsigned(count), padded(unsigned(count))):
                    scratch.scale[n] = zero
                for label in range(num_classes):
                    predicted = broadcast(zero, LANES)
                    for n in range(unsigned(0), padded(unsigned(count)), unsigned(LANES)):
                        at = unsigned(label) * pitch + n
                        scale = load(scratch.scale, n, LANES)
                        predicted = predicted + where(scale <= zero, scale, load(scratch.exps, at, LANES) * scale)
                    number = sum_of(predicted)
                    sums[of_block + label * 3] += number
                    sums[of_block + label * 3 + 2] += number
    return in_range


@jit
def _overlap(
    sums: Array,
    lse: Array,
    arguments: EnlargingArguments,
    labels: LabelMap,
    columns: int,
    first_block: int,
    end_block: int,
) -> Any:
    enlarging = enlarging_of(arguments, lse)
    scratch = new_scratch(enlarging, columns, True, False, lse)
    return _overlap_blocks(sums, lse, enlarging, labels, columns, scratch, first_block, end_block)


@jit
def _probabilities_of_row(
    lines: Array, place: Any, slopes: Array, num_classes: int, count: int, scratch: Scratch
) -> None:
    """Writes probabilities to ``scratch.exps``; their mean slope, all classes taken as wrong, to ``state.mass``."""
    upper, lower, weight_upper, weight_lower = place
    pitch, zero = unsigned(scratch.pitch), lines.dtype.type(0)
    for n in range(unsigned(0), padded(unsigned(count)), unsigned(LANES)):
        lse, scale = load(scratch.lse, n, LANES), load(scratch.scale, n, LANES)
        mean = broadcast(zero, LANES)
        for label in range(unsigned(num_classes)):
            at = label * pitch + n
            value = exp(enlarged(lines, upper + at, lower + at, weight_upper, weight_lower) - lse)
            value = where(scale <= zero, scale, value)
            store(scratch.exps, at, value)
            mean = multiply_add(value, slopes[label], mean)
        store(scratch.state.mass, n, mean)


@jit
def _overlap_gradient_rows(
    out: StridedTensor,
    slopes_of: Array,
    lse: Array,
    enlarging: Enlarging,
    labels: LabelMap,
    step: int,
    scratch: Scratch,
    first_of_all: int,
    end_of_all: int,
) -> None:
    """The gradient of rows of logits, counted through all samples; ``out`` is zeros."""
    out, enlarging, labels, scratch = borrowed(out), borrowed(enlarging), borrowed(labels), borrowed(scratch)
    height, width = enlarging.height, enlarging.width
    num_classes, zero, two = enlarging.num_classes, lse.dtype.type(0), lse.dtype.type(2)
    pitch, held, mean = unsigned(scratch.pitch), np.full(2, -1, np.int64), scratch.state.mass
    if_wrong, distance = np.empty(num_classes, lse.dtype), np.empty(num_classes, lse.dtype)
    for sample in range(first_of_all // height, (end_of_all - 1) // height + 1):
        for label in range(num_classes):
            of_class = (sample * num_classes + label) * 2 % slopes_of.size  # of all samples
            distance[label] = slopes_of[of_class + 1]
            if_wrong[label] = slopes_of[of_class] + distance[label]
        rows = max(first_of_all - sample * height, 0), min(end_of_all - sample * height, height)
        first_row, end_row = pixels_beside(enlarging.rows, sample, rows[0], rows[1])
        for column in range(0, width, step):
            end_column = min(column + step, width)
            first, end = pixels_beside(enlarging.columns, sample, column, end_column)
            if first >= end:
                continue
            count, tile = end - first, (column, end_column, first, end)
            scratch.held[:] = -1
            for y in range(first_row, end_row):
                load_labels(labels, sample, y, first, end, num_classes, scratch.label)
                start = unsigned((sample * labels.height + y) * labels.width + first)
                for n in range(unsigned(count)):
                    scratch.lse[n] = lse[start + n]
                    scratch.scale[n] = zero if scratch.label[n] < 0 else lse.dtype.type(1)
                for n in range(unsigned(count), padded(unsigned(count))):
                    scratch.lse[n] = scratch.scale[n] = zero
                place = rows_beside(enlarging, sample, y, first, end, scratch)
                to_upper, to_lower = take_grads(held, enlarging, out, sample, y, tile, rows, scratch)
                _probabilities_of_row(scratch.lines, place, if_wrong, num_classes, count, scratch)
                for n in range(unsigned(count)):
                    label = scratch.label[n]
                    if label >= 0:  # more of a pixel's own class is less distance
                        at = unsigned(label) * pitch + n
                        own = -two * distance[label] * scratch.exps[at]
                        mean[n] += own
                        scratch.grads[to_upper + at] += place[2] * own
                        scratch.grads[to_lower + at] += place[3] * own
                for label in range(num_classes):
                    for n in range(unsigned(0), padded(unsigned(count)), unsigned(LANES)):
                        at = unsigned(label) * pitch + n
                        value = load(scratch.exps, at, LANES) * (if_wrong[label] - load(mean, n, LANES))
                        upper = load(scratch.grads, to_upper + at, LANES)
                        store(scratch.grads, to_upper + at, multiply_add(value, place[2], upper))
                        lower = load(scratch.grads, to_lower + at, LANES)
                        store(scratch.grads, to_lower + at, multiply_add(value, place[3], lower))
            for slot in range(2):
                flush_slot(held, slot, enlarging, out, sample, tile, rows, scratch)


@jit
def _overlap_gradient(
    out_arguments: TensorArguments,
    slopes_of: Array,
    lse: Array,
    arguments: EnlargingArguments,
    labels: LabelMap,
    step: int,
    columns: int,
    first_of_all: int,
    end_of_all: int,
) -> None:
    out, enlarging = strided_tensor(out_arguments, lse), enlarging_of(arguments, lse)
    scratch = new_scratch(enlarging, columns, True, True, lse)
    _overlap_gradient_rows(out, slopes_of, lse, enlarging, labels, step, scratch, first_of_all, end_of_all)


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
    """Writes the loss, its slopes ``(S, C, 2)``, and the logsumexp of each scored pixel."""
    batch, num_classes = logits.shape[:2]
    if boxes is not None:
        lse.zero_()
    blocks = num_blocks(batch, labels.shape[1])
    sums = np.zeros(blocks * num_classes * 3)
    arguments = (
        sums,
        flat(lse),
        enlarging_arguments(logits, boxes, labels.shape[1:], lse.dtype),
        label_map(labels, ignore_index),
        tile_columns(num_classes, labels.shape[2]),
    )
    work = _FORWARD_NANOSECONDS * labels.numel() * num_classes
    in_range = all(pool.run(lambda first, end: _overlap(*arguments, first, end), blocks, work))
    options = (measure == "dice", classes == "present", reduction == "none", reduction == "mean")
    weights, num_groups = weights_of(weight, num_classes, lse.dtype), len(slopes)
    finish_overlap(value.data_ptr(), slopes.data_ptr(), sums, weights, num_groups, blocks // num_groups, options)
    return in_range or not validate


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
    """Writes the gradient of the logits, given that of the values, ``grad (S, C)``."""
    batch, num_classes, height, _ = logits.shape
    enlarging = enlarging_arguments(logits, boxes, labels.shape[1:], lse.dtype)
    step, columns = tile_logits(enlarging, batch)
    out.zero_()
    arguments = (
        tensor_arguments(out, lse.dtype),
        flat((grad[..., None] * slopes).contiguous()),
        flat(lse.contiguous()),
        enlarging,
        label_map(labels, ignore_index),
        step,
        columns,
    )
    work = _BACKWARD_NANOSECONDS * labels.numel() * num_classes
    pool.run(lambda first, end: _overlap_gradient(*arguments, first, end), batch * height, work)
