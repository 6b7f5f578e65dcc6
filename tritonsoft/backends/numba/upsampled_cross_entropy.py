"""Cross-entropy of enlarged logits against a label map, forward and backward."""

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
from tritonsoft.backends.numba.planes import (
    StridedTensor,
    TensorArguments,
    load_line,
    padded,
    strided_tensor,
    tensor_arguments,
)
from tritonsoft.backends.numba.soft_targets import weights_of
from tritonsoft.backends.numba.softmax import log_of_sum
from tritonsoft.backends.numba.sums import divisor_of, finish_cross_entropy, partial_sums, store_losses
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import LANES, exp, load, multiply_add, store, where
from tritonsoft.geometry import Reduction

_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 0.5, 1.0  # of a label pixel and class


@jit
def _smoothing_of_row(lines: Array, place: Any, smoothing: Array, count: int, scratch: Scratch) -> None:
    """Adds to ``scratch.scale`` what all classes cost alike, ``sum_c smoothing_c (max_logit - logit_c)``."""
    upper, lower, weight_upper, weight_lower = place
    pitch = unsigned(scratch.pitch)
    for n in range(unsigned(0), padded(unsigned(count)), unsigned(LANES)):
        largest = load(scratch.state.max_logit, n, LANES)
        cost = largest - largest
        for label in range(unsigned(smoothing.size)):
            if smoothing[label] > 0:
                at = label * pitch + n
                below = largest - enlarged(lines, upper + at, lower + at, weight_upper, weight_lower)
                cost = multiply_add(below, smoothing[label], cost)
        store(scratch.scale, n, cost)


@jit
def _losses_of_row(lines: Array, place: Any, weights: Array, smoothing: Any, count: int, scratch: Scratch) -> None:
    """Turns ``max_logit`` into the logsumexp, and computes losses and masses; pixels without a class have none."""
    upper, lower, weight_upper, weight_lower = place
    state, pitch = scratch.state, unsigned(scratch.pitch)
    of_all, hard, total_smoothing = smoothing
    zero = lines.dtype.type(0)
    for n in range(unsigned(count)):
        label = scratch.label[n]
        state.loss[n], state.mass[n] = zero, zero
        if label < 0:
            state.max_logit[n] = zero
            continue
        largest, logarithm = state.max_logit[n], log_of_sum(state.sum_exp[n])
        state.max_logit[n] = largest + logarithm
        weight = weights[label]
        if weight > zero:
            at = unsigned(label) * pitch + n
            logit = weight_upper * lines[upper + at] + weight_lower * lines[lower + at]
            state.mass[n] = weight
            state.loss[n] = hard * weight * (largest - logit + logarithm)
        if of_all.size > 0:
            state.loss[n] += scratch.scale[n] + total_smoothing * logarithm


@jit
def _cross_entropy_blocks(
    loss: Array,
    sums: Array,
    lse: Array,
    enlarging: Enlarging,
    labels: LabelMap,
    weights: Array,
    smoothing: Any,
    columns: int,
    scratch: Scratch,
    first_block: int,
    end_block: int,
) -> Any:
    """Whether all labels are in range. Writes losses, or adds to ``sums (blocks, 2)`` of losses and masses.

    Only pixels in their box are written.
    """
    enlarging, labels, smoothing = borrowed(enlarging), borrowed(labels), borrowed(smoothing)
    scratch = borrowed(scratch)
    state, in_range = scratch.state, True
    for sample in samples_of_blocks(labels.height, first_block, end_block):
        for tile in range(0, labels.width, columns):
            first, end = columns_of_tile(enlarging, sample, tile, columns)
            if first >= end:
                continue
            count = end - first
            scratch.held[:] = -1
            for y in rows_of_blocks(enlarging, sample, first_block, end_block):
                in_range &= load_labels(labels, sample, y, first, end, enlarging.num_classes, scratch.label)
                place = rows_beside(enlarging, sample, y, first, end, scratch)
                softmax_of_row(scratch.lines, place, enlarging.num_classes, scratch.exps, count, scratch)
                if smoothing[0].size > 0:
                    _smoothing_of_row(scratch.lines, place, smoothing[0], count, scratch)
                _losses_of_row(scratch.lines, place, weights, smoothing, count, scratch)
                start = (sample * labels.height + y) * labels.width + first
                for n in range(count):
                    lse[start + n] = state.max_logit[n]
                block = block_of(labels.height, sample, y)
                store_losses(loss, sums, unsigned(block), state, unsigned(start), unsigned(count))
    return in_range


@jit
def _cross_entropy(
    loss: Array,
    sums: Array,
    lse: Array,
    arguments: EnlargingArguments,
    labels: LabelMap,
    weights: Array,
    smoothing: Any,
    columns: int,
    first_block: int,
    end_block: int,
) -> Any:
    enlarging = enlarging_of(arguments, lse)
    scratch = new_scratch(enlarging, columns, False, False, lse)
    return _cross_entropy_blocks(
        loss, sums, lse, enlarging, labels, weights, smoothing, columns, scratch, first_block, end_block
    )


@jit
def _scale_of_row(
    grad: StridedTensor,
    divisor: Any,
    lse: Array,
    labels: LabelMap,
    weights: Array,
    smoothing: Any,
    sample: int,
    row: int,
    first: int,
    end: int,
    scratch: Scratch,
) -> None:
    """Of each pixel: ``scale``, what multiplies its probabilities, ``state.mass``, that of its own class.

    And ``state.loss``, that of each class's smoothing.
    """
    _, hard, total_smoothing = smoothing
    zero = lse.dtype.type(0)
    pixels = (sample, row, unsigned(first), unsigned(end - first))
    load_line(grad, pixels, unsigned(0), scratch.state.loss, unsigned(0))
    start = (sample * labels.height + row) * labels.width + first
    for n in range(unsigned(end - first)):
        label = scratch.label[n]
        weight = weights[label] if label >= 0 else zero
        upstream = scratch.state.loss[n] / divisor if label >= 0 else zero
        scratch.state.loss[n] = upstream
        scratch.state.mass[n] = upstream * hard * weight if weight > zero else zero
        scratch.scale[n] = scratch.state.mass[n] + (upstream * total_smoothing if total_smoothing > zero else zero)
        scratch.lse[n] = lse[unsigned(start) + n]
    for n in range(unsigned(end - first), padded(unsigned(end - first))):
        scratch.scale[n] = scratch.lse[n] = scratch.state.loss[n] = zero


@jit
def _add_probabilities(
    lines: Array, place: Any, places: Any, of_all: Array, num_classes: int, count: int, scratch: Scratch
) -> None:
    """Adds the gradient of a label row's logits, but for its own classes, to that of the two rows of logits beside."""
    upper, lower, weight_upper, weight_lower = place
    to_upper, to_lower = places
    grads, pitch, zero = scratch.grads, unsigned(scratch.pitch), lines.dtype.type(0)
    for n in range(unsigned(0), padded(unsigned(count)), unsigned(LANES)):
        scale, lse = load(scratch.scale, n, LANES), load(scratch.lse, n, LANES)
        upstream = load(scratch.state.loss, n, LANES)
        for label in range(unsigned(num_classes)):
            at = label * pitch + n
            logit = enlarged(lines, upper + at, lower + at, weight_upper, weight_lower)
            value = scale * exp(logit - lse)
            # A pixel that counts nothing may have any logits.
            value = where(scale > zero, value, where(scale < zero, value, scale))
            if of_all.size > 0:
                value = multiply_add(upstream, zero - of_all[label], value)
            store(grads, to_upper + at, multiply_add(value, weight_upper, load(grads, to_upper + at, LANES)))
            store(grads, to_lower + at, multiply_add(value, weight_lower, load(grads, to_lower + at, LANES)))


@jit
def _cross_entropy_gradient_rows(
    out: StridedTensor,
    grad: StridedTensor,
    divisor: Any,
    lse: Array,
    enlarging: Enlarging,
    labels: LabelMap,
    weights: Array,
    smoothing: Any,
    step: int,
    scratch: Scratch,
    first_of_all: int,
    end_of_all: int,
) -> None:
    """The gradient of rows of logits, counted through all samples; ``out`` is zeros."""
    out, grad, enlarging, labels = borrowed(out), borrowed(grad), borrowed(enlarging), borrowed(labels)
    smoothing, scratch = borrowed(smoothing), borrowed(scratch)
    height, width = enlarging.height, enlarging.width
    pitch, held = unsigned(scratch.pitch), np.full(2, -1, np.int64)
    for sample in range(first_of_all // height, (end_of_all - 1) // height + 1):
        rows = max(first_of_all - sample * height, 0), min(end_of_all - sample * height, height)
        first_row, end_row = pixels_beside(enlarging.rows, sample, rows[0], rows[1])
        for column in range(0, width, step):
            end_column = min(column + step, width)
            first, end = pixels_beside(enlarging.columns, sample, column, end_column)
            if first >= end:
                continue
            tile = column, end_column, first, end
            scratch.held[:] = -1
            for y in range(first_row, end_row):
                load_labels(labels, sample, y, first, end, enlarging.num_classes, scratch.label)
                _scale_of_row(grad, divisor, lse, labels, weights, smoothing, sample, y, first, end, scratch)
                place = rows_beside(enlarging, sample, y, first, end, scratch)
                places = take_grads(held, enlarging, out, sample, y, tile, rows, scratch)
                _add_probabilities(
                    scratch.lines, place, places, smoothing[0], enlarging.num_classes, end - first, scratch
                )
                for n in range(unsigned(end - first)):
                    if scratch.label[n] >= 0:
                        at = unsigned(scratch.label[n]) * pitch + n
                        scratch.grads[places[0] + at] -= place[2] * scratch.state.mass[n]
                        scratch.grads[places[1] + at] -= place[3] * scratch.state.mass[n]
            for slot in range(2):
                flush_slot(held, slot, enlarging, out, sample, tile, rows, scratch)


@jit
def _cross_entropy_gradient(
    out_arguments: TensorArguments,
    grad_arguments: TensorArguments,
    divisor: float,
    lse: Array,
    arguments: EnlargingArguments,
    labels: LabelMap,
    weights: Array,
    smoothing: Any,
    step: int,
    columns: int,
    first_of_all: int,
    end_of_all: int,
) -> None:
    out, grad = strided_tensor(out_arguments, lse), strided_tensor(grad_arguments, lse)
    enlarging = enlarging_of(arguments, lse)
    scratch = new_scratch(enlarging, columns, False, True, lse)
    number = lse.dtype.type(divisor)
    _cross_entropy_gradient_rows(
        out, grad, number, lse, enlarging, labels, weights, smoothing, step, scratch, first_of_all, end_of_all
    )


def _smoothing(label_smoothing: float, weights: Array) -> Any:
    """What each class costs in every pixel (empty if nothing), the share of the own class, and the former's sum."""
    number = weights.dtype.type
    of_all = weights * number(label_smoothing / weights.size) if label_smoothing > 0 else weights[:0].copy()
    return of_all, number(1 - label_smoothing), number(of_all.sum())


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
    """Writes the loss of logits ``(B, C, h, w)`` at the pixels of a label map ``(B, H, W)``, and their logsumexp."""
    batch, num_classes = logits.shape[:2]
    if boxes is not None:
        lse.zero_()
        value.zero_()
    blocks = num_blocks(batch, labels.shape[1])
    weights, sums = weights_of(weight, num_classes, lse.dtype), partial_sums(reduction, blocks)
    arguments = (
        flat(value),
        sums,
        flat(lse),
        enlarging_arguments(logits, boxes, labels.shape[1:], lse.dtype),
        label_map(labels, ignore_index),
        weights,
        _smoothing(label_smoothing, weights),
        tile_columns(num_classes, labels.shape[2]),
    )
    work = _FORWARD_NANOSECONDS * labels.numel() * num_classes
    in_range = all(pool.run(lambda first, end: _cross_entropy(*arguments, first, end), blocks, work))
    finish_cross_entropy(value, total, sums, reduction)
    return in_range or not validate


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
    """Writes the gradient of the logits, given that of the pixels' losses, ``grad (B, H, W) / total``."""
    batch, num_classes, height, _ = logits.shape
    enlarging = enlarging_arguments(logits, boxes, labels.shape[1:], lse.dtype)
    weights = weights_of(weight, num_classes, lse.dtype)
    step, columns = tile_logits(enlarging, batch)
    out.zero_()
    arguments = (
        tensor_arguments(out, lse.dtype),
        tensor_arguments(grad[:, None], lse.dtype),
        divisor_of(total),
        flat(lse.contiguous()),
        enlarging,
        label_map(labels, ignore_index),
        weights,
        _smoothing(label_smoothing, weights),
        step,
        columns,
    )
    work = _BACKWARD_NANOSECONDS * labels.numel() * num_classes
    pool.run(lambda first, end: _cross_entropy_gradient(*arguments, first, end), batch * height, work)
