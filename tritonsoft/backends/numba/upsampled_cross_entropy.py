"""Cross-entropy of enlarged logits against a label map, forward and backward."""

from typing import Any

import numpy as np
from torch import Tensor

from tritonsoft.backends.numba.elements import Array, borrowed, flat
from tritonsoft.backends.numba.enlarging import (
    BLOCK_ROWS,
    Enlarging,
    EnlargingArguments,
    LabelMap,
    Scratch,
    enlarged,
    enlarging_arguments,
    enlarging_of,
    flush_grads,
    label_columns_beside,
    label_map,
    label_rows_beside,
    load_labels,
    new_scratch,
    rows_beside,
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
from tritonsoft.backends.numba.softmax import log
from tritonsoft.backends.numba.sums import divisor_of, finish_cross_entropy, partial_sums, store_losses
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import LANES, broadcast, exp, load, multiply_add, store, where
from tritonsoft.geometry import Reduction

_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 0.5, 1.0  # of a label pixel and class


@jit
def softmax_of_row(lines: Array, place: Any, num_classes: int, exps: Array, count: int, scratch: Scratch) -> None:
    """Of ``count`` enlarged pixels, in ``scratch.state``, the largest logit and the sum of exponentials below it.

    Exponentials are kept in ``exps``, where there is room.
    """
    upper, lower, weight_upper, weight_lower = place
    state, pitch, keeps = scratch.state, unsigned(scratch.pitch), exps.size > 0
    zero, lowest = lines.dtype.type(0), np.finfo(lines.dtype).min  # finite, because inf - inf is NaN
    for n in range(unsigned(0), padded(unsigned(count)), unsigned(LANES)):
        largest = broadcast(lowest, LANES)
        for label in range(unsigned(num_classes)):
            at = label * pitch + n
            logit = enlarged(lines, upper + at, lower + at, weight_upper, weight_lower)
            largest = where(logit > largest, logit, largest)
        total = broadcast(zero, LANES)
        for label in range(unsigned(num_classes)):
            at = label * pitch + n
            value = exp(enlarged(lines, upper + at, lower + at, weight_upper, weight_lower) - largest)
            if keeps:
                store(exps, at, value)
            total = total + value
        store(state.max_logit, n, largest)
        store(state.sum_exp, n, total)


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
        largest, total = state.max_logit[n], state.sum_exp[n]
        logarithm = log(total) if total > zero else total - np.inf
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
    """Whether all labels are in range. Writes losses, or ``sums (blocks, 2)`` of losses and masses."""
    enlarging, labels, smoothing = borrowed(enlarging), borrowed(labels), borrowed(smoothing)
    scratch = borrowed(scratch)
    state, in_range = scratch.state, True
    blocks = (labels.height + BLOCK_ROWS - 1) // BLOCK_ROWS  # of a sample
    for sample in range(first_block // blocks, (end_block - 1) // blocks + 1):
        first_row, end_row = label_rows_beside(enlarging, sample, 0, 1 << 40)
        first_column, end_column = label_columns_beside(enlarging, sample, 0, 1 << 40)
        for tile in range(0, labels.width, columns):
            tile_end = min(tile + columns, labels.width)
            first, end = max(tile, first_column), min(tile_end, end_column)
            count = end - first
            scratch.held[:] = -1
            for block in range(max(first_block, sample * blocks), min(end_block, (sample + 1) * blocks)):
                row = (block - sample * blocks) * BLOCK_ROWS
                for y in range(row, min(row + BLOCK_ROWS, labels.height)):
                    start = (sample * labels.height + y) * labels.width
                    lse[start + tile : start + tile_end] = 0
                    if sums.size == 0:
                        loss[start + tile : start + tile_end] = 0
                    if not first_row <= y < end_row or count <= 0:
                        continue
                    in_range &= load_labels(labels, sample, y, first, end, first, enlarging.num_classes, scratch.label)
                    place = rows_beside(enlarging, sample, y, first, end, scratch)
                    softmax_of_row(scratch.lines, place, enlarging.num_classes, scratch.exps, count, scratch)
                    if smoothing[0].size > 0:
                        _smoothing_of_row(scratch.lines, place, smoothing[0], count, scratch)
                    _losses_of_row(scratch.lines, place, weights, smoothing, count, scratch)
                    for n in range(count):
                        lse[start + first + n] = state.max_logit[n]
                    store_losses(loss, sums, unsigned(block), state, unsigned(start + first), unsigned(count))
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
    logits_width: int,
    first_block: int,
    end_block: int,
) -> Any:
    enlarging = enlarging_of(arguments, lse)
    scratch = new_scratch(enlarging, logits_width, columns, False, False, lse)
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
def take_grads(
    held: Array, enlarging: Enlarging, out: StridedTensor, sample: int, row: int, tile: Any, rows: Any, scratch: Scratch
) -> Any:
    """Where in ``scratch.grads`` the gradients of the two rows of logits beside a label row begin.

    A row of logits that no longer lies beside is complete, and is written if it is one from ``rows[0]`` to ``rows[1]``.
    """
    size = enlarging.num_classes * scratch.pitch
    place = sample * enlarging.rows.pitch + row
    upper, lower = enlarging.rows.first[place], enlarging.rows.second[place]
    for slot in range(2):
        if held[slot] not in (upper, lower, -1):
            flush_slot(held, slot, enlarging, out, sample, tile, rows, scratch)
    for logits_row in (upper, lower):
        if held[0] != logits_row and held[1] != logits_row:
            held[0 if held[0] == -1 else 1] = logits_row
    of_upper, of_lower = (0 if held[0] == upper else 1), (0 if held[0] == lower else 1)
    return unsigned(of_upper * size), unsigned(of_lower * size)


@jit
def flush_slot(
    held: Array,
    slot: int,
    enlarging: Enlarging,
    out: StridedTensor,
    sample: int,
    tile: Any,
    rows: Any,
    scratch: Scratch,
) -> None:
    """Writes or drops the row of logits in a line of gradients, which is free then."""
    size = enlarging.num_classes * scratch.pitch
    row = held[slot]
    if row == -1:
        return
    if rows[0] <= row < rows[1]:
        flush_grads(enlarging, out, sample, row, tile, scratch.grads, slot * size, scratch)
    else:
        scratch.grads[slot * size : (slot + 1) * size] = 0
    held[slot] = -1


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
    size: Any,
    step: int,
    scratch: Scratch,
    first_of_all: int,
    end_of_all: int,
) -> None:
    """The gradient of rows of logits, counted through all samples; ``out`` is zeros."""
    out, grad, enlarging, labels = borrowed(out), borrowed(grad), borrowed(enlarging), borrowed(labels)
    smoothing, scratch = borrowed(smoothing), borrowed(scratch)
    height, width = size
    pitch, held = unsigned(scratch.pitch), np.full(2, -1, np.int64)
    for sample in range(first_of_all // height, (end_of_all - 1) // height + 1):
        rows = max(first_of_all - sample * height, 0), min(end_of_all - sample * height, height)
        first_row, end_row = label_rows_beside(enlarging, sample, rows[0], rows[1])
        for column in range(0, width, step):
            end_column = min(column + step, width)
            first, end = label_columns_beside(enlarging, sample, column, end_column)
            if first >= end:
                continue
            tile = column, end_column, first, end
            scratch.held[:] = -1
            for y in range(first_row, end_row):
                load_labels(labels, sample, y, first, end, first, enlarging.num_classes, scratch.label)
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
    size: Any,
    step: int,
    columns: int,
    first_of_all: int,
    end_of_all: int,
) -> None:
    out, grad = strided_tensor(out_arguments, lse), strided_tensor(grad_arguments, lse)
    enlarging = enlarging_of(arguments, lse)
    scratch = new_scratch(enlarging, size[1], columns, False, True, lse)
    number = lse.dtype.type(divisor)
    _cross_entropy_gradient_rows(
        out, grad, number, lse, enlarging, labels, weights, smoothing, size, step, scratch, first_of_all, end_of_all
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
    blocks = batch * -(-labels.shape[1] // BLOCK_ROWS)
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
        logits.shape[3],
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
    batch, num_classes, height, width = logits.shape
    enlarging = enlarging_arguments(logits, boxes, labels.shape[1:], lse.dtype)
    weights = weights_of(weight, num_classes, lse.dtype)
    step, columns = tile_logits(enlarging, batch, width)
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
        (height, width),
        step,
        columns,
    )
    work = _BACKWARD_NANOSECONDS * labels.numel() * num_classes
    pool.run(lambda first, end: _cross_entropy_gradient(*arguments, first, end), batch * height, work)
