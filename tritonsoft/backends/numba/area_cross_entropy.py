"""Cross-entropy of logits against a label map: the epilogues that `label_rows` applies to a row of its soft label."""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tritonsoft.backends.numba.elements import Array, flat
from tritonsoft.backends.numba.labels import TILE, Masses, label_rows
from tritonsoft.backends.numba.planes import (
    STAGED,
    Lines,
    StridedTensor,
    load_line,
    load_lines,
    padded,
    select_store,
    store_line,
    streaming_in_bytes,
    strided_tensor,
)
from tritonsoft.backends.numba.soft_targets import CLASSES_PER_STEP, Scratch, scratch_of, weights_of
from tritonsoft.backends.numba.softmax import (
    load_saved_statistics,
    online_softmax_finalize,
    online_softmax_init,
    online_softmax_update,
    write_gradient,
)
from tritonsoft.backends.numba.sums import divisor_of, finish_cross_entropy, partial_sums, store_losses
from tritonsoft.backends.numba.threads import pool, unsigned
from tritonsoft.geometry import Filter, Reduction


class LossEpilogue(NamedTuple):
    """Computes the loss of each row of a soft label, which itself is not stored."""

    loss: Array  # (B, h, w) flat, where there are no sums
    sums: Array  # (B * h, 2) flat: of each row's losses and masses, or empty
    mass: Array  # (B, h, w) flat
    lse: Array
    logits: StridedTensor
    weights: Array
    shape: Any  # (C, h, w)
    scratch: Scratch
    present: Array  # scratch: which of a step's classes occur

    def apply_epilogue(self: Any, masses: Masses, sample: int, row: int, column: int, count: int) -> None:
        loss, sums, mass, lse, logits, weights, (num_classes, height, width), scratch, present = self
        classes, group, state = unsigned(num_classes), unsigned(CLASSES_PER_STEP), scratch.state
        pitch = unsigned(masses.pitch)
        pixels = sample, row, column, count
        online_softmax_init(state)
        for start in range(unsigned(0), classes, group):
            number, num_present = min(group, classes - start), unsigned(0)
            for k in range(number):
                present[num_present] = k
                num_present += unsigned(masses.present[(start + k) * pitch])
            lines = load_lines(logits, pixels, start, number, scratch.logits, scratch.pitch, unsigned(scratch.tile))
            shares = Lines(masses.lines, start * pitch, pitch, unsigned(0))
            online_softmax_update(state, lines, shares, weights, start, number, present, num_present, padded(count))
        online_softmax_finalize(state, count)
        start = unsigned((sample * height + row) * width) + column
        for n in range(count):
            mass[start + n], lse[start + n] = state.mass[n], state.max_logit[n]
        store_losses(loss, sums, unsigned(sample * height + row), state, start, count)


class GradientEpilogue(NamedTuple):
    """Writes the gradient of that loss."""

    out: Any
    line_length: int
    to_boundary: int
    grad: StridedTensor
    divisor: Any
    logits: StridedTensor
    weights: Array
    mass: Array  # (B, h, w) flat
    lse: Array
    shape: Any  # (C, h, w)
    scratch: Scratch

    def apply_epilogue(self: Any, masses: Masses, sample: int, row: int, column: int, count: int) -> None:
        (
            out,
            line_length,
            to_boundary,
            grad,
            divisor,
            logits,
            weights,
            mass,
            lse,
            (num_classes, height, width),
            scratch,
        ) = self
        statistics, line, pitch = scratch.statistics, scratch.line, unsigned(masses.pitch)
        pixels = sample, row, column, count
        load_line(grad, pixels, unsigned(0), statistics.grad_loss, unsigned(0))
        load_saved_statistics(statistics, divisor, mass, lse, unsigned((sample * height + row) * width) + column, count)
        for label in range(unsigned(num_classes)):
            lines = load_lines(logits, pixels, label, unsigned(1), line, scratch.pitch, unsigned(scratch.tile))
            shares, is_present = Lines(masses.lines, label * pitch, pitch, unsigned(0)), masses.present[label * pitch]
            values, start, how = select_store(out, pixels, label, line, line_length, to_boundary)
            write_gradient(values, start, how, statistics, lines, shares, is_present, weights[label], padded(count))
            if how == STAGED:
                store_line(out, pixels, label, line, scratch.staging, line_length, to_boundary)


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
    """`cross_entropy` with the soft label of a label map ``(B, H, W)``, a row of it at a time."""
    batch, num_classes, *size = logits.shape
    sums, outputs = partial_sums(value, reduction, batch * size[0]), (flat(mass), flat(lse))
    dtype = outputs[0].dtype
    rows, num_pixels = label_rows(labels, boxes, size, num_classes, ignore_index, filter, dtype, TILE)
    arguments = (
        flat(value),
        sums,
        *outputs,
        strided_tensor(logits, dtype),
        weights_of(weight, num_classes, dtype),
        (num_classes, *size),
    )

    def job(first: int, end: int) -> bool:
        present = np.empty(CLASSES_PER_STEP + 1, np.uint64)
        return rows(LossEpilogue(*arguments, scratch_of(TILE, CLASSES_PER_STEP, dtype), present), first, end)

    in_range = all(pool.run(job, batch * size[0], 0.65 * logits.numel() + 0.25 * num_pixels))
    finish_cross_entropy(value, total, sums, reduction)
    return in_range or not validate


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
    """Writes the gradient of the logits, given that of the pixels' losses, ``grad (B, h, w) / total``."""
    batch, num_classes, *size = logits.shape
    lse_memory = flat(lse.contiguous())
    dtype = lse_memory.dtype
    rows, num_pixels = label_rows(labels, boxes, size, num_classes, ignore_index, filter, dtype, TILE)
    arguments = (
        strided_tensor(out, dtype),
        *streaming_in_bytes(out),
        strided_tensor(grad[:, None], dtype),
        divisor_of(total, dtype),
        strided_tensor(logits, dtype),
        weights_of(weight, num_classes, dtype),
        flat(mass.contiguous()),
        lse_memory,
        (num_classes, *size),
    )

    def job(first: int, end: int) -> None:
        rows(GradientEpilogue(*arguments, scratch_of(TILE, 1, dtype)), first, end)

    pool.run(job, batch * size[0], 0.65 * logits.numel() + 0.25 * num_pixels)
