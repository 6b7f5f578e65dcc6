"""Cross-entropy of logits against a label map: the epilogues that `label_rows` applies to a row of its soft label."""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tritonsoft.backends.numba.elements import Array, array_at
from tritonsoft.backends.numba.label_rows import TILE, LabelRows, Masses, label_rows, label_rows_at
from tritonsoft.backends.numba.planes import (
    STAGED,
    Lines,
    StridedTensor,
    TensorArguments,
    load_line,
    load_lines,
    padded,
    select_store,
    store_line,
    streaming_in_bytes,
    strided_tensor,
    tensor_arguments,
)
from tritonsoft.backends.numba.soft_targets import CLASSES_PER_STEP, Scratch, new_scratch, weights_of
from tritonsoft.backends.numba.softmax import (
    load_saved_statistics,
    online_softmax_finalize,
    online_softmax_init,
    online_softmax_update,
    save_statistics,
    write_gradient,
)
from tritonsoft.backends.numba.sums import divisor_of, finish_cross_entropy, partial_sums, store_losses
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.geometry import Filter, Reduction


class LossEpilogue(NamedTuple):
    """Computes the loss of each row of a soft label, which itself is not stored."""

    loss: Array  # (B, h, w) flat, where there are no sums
    sums: Array  # (B * h, 2) flat: of each row's losses and masses, or empty
    mass: Array  # (B, h, w) or (2, B, h, w) flat
    known_offset: int
    lse: Array
    logits: StridedTensor
    weights: Array
    shape: Any  # (C, h, w)
    scratch: Scratch
    present: Array  # scratch: which of a step's classes occur

    def apply_epilogue(self: Any, masses: Masses, sample: int, row: int, column: int, count: int) -> None:
        loss, sums, mass, known_offset, lse, logits, weights, (num_classes, height, width), scratch, present = self
        classes, group, state = unsigned(num_classes), unsigned(CLASSES_PER_STEP), scratch.state
        pitch = unsigned(masses.pitch)
        pixels = sample, row, column, count
        online_softmax_init(state, scratch.uniform)
        for start in range(unsigned(0), classes, group):
            number, num_present = min(group, classes - start), unsigned(0)
            for k in range(number):
                present[num_present] = k
                num_present += unsigned(masses.present[start + k])
            lines = load_lines(logits, pixels, start, number, scratch.logits, scratch.pitch, unsigned(scratch.tile))
            shares = Lines(masses.lines, start * pitch, pitch, unsigned(0))
            online_softmax_update(
                state,
                scratch.uniform,
                lines,
                shares,
                weights,
                start,
                number,
                present,
                num_present,
                padded(count),
            )
        online_softmax_finalize(state, scratch.uniform, num_classes, count)
        start = unsigned((sample * height + row) * width) + column
        save_statistics(state, scratch.uniform, mass, known_offset, lse, num_classes, start, count)
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
    mass: Array  # (B, h, w) or (2, B, h, w) flat
    known_offset: int
    lse: Array
    smoothing: Any
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
            known_offset,
            lse,
            smoothing,
            (num_classes, height, width),
            scratch,
        ) = self
        statistics, line, pitch = scratch.statistics, scratch.line, unsigned(masses.pitch)
        pixels = sample, row, column, count
        load_line(grad, pixels, unsigned(0), statistics.grad_loss, unsigned(0))
        start = unsigned((sample * height + row) * width) + column
        load_saved_statistics(statistics, divisor, mass, known_offset, lse, smoothing, num_classes, start, count)
        for label in range(unsigned(num_classes)):
            lines = load_lines(logits, pixels, label, unsigned(1), line, scratch.pitch, unsigned(scratch.tile))
            shares, is_present = Lines(masses.lines, label * pitch, pitch, unsigned(0)), masses.present[label]
            values, place, how = select_store(out, pixels, label, line, line_length, to_boundary)
            write_gradient(
                values,
                place,
                how,
                statistics,
                lines,
                shares,
                is_present,
                smoothing > 0,
                weights[label],
                padded(count),
            )
            if how == STAGED:
                store_line(out, pixels, label, line, scratch.staging, line_length, to_boundary)


@jit
def _loss_rows(
    loss: int,
    sums: Array,
    mass: int,
    known_offset: int,
    lse: int,
    logits: TensorArguments,
    weights: Array,
    label_smoothing: float,
    shape: Any,
    rows: Any,
    first: int,
    end: int,
) -> Any:
    """Rows with a `LossEpilogue` of outputs at these addresses."""
    epilogue = LossEpilogue(
        array_at(loss, 0, weights),
        sums,
        array_at(mass, 0, weights),
        unsigned(known_offset),
        array_at(lse, 0, weights),
        strided_tensor(logits, weights),
        weights,
        shape,
        new_scratch(TILE, CLASSES_PER_STEP, label_smoothing, weights),
        np.empty(CLASSES_PER_STEP + 1, np.uint64),
    )
    return label_rows_at(epilogue, rows, first, end)


@jit
def _gradient_rows(
    out: TensorArguments,
    line_length: int,
    to_boundary: int,
    grad: TensorArguments,
    divisor: float,
    logits: TensorArguments,
    weights: Array,
    label_smoothing: float,
    mass: int,
    known_offset: int,
    lse: int,
    shape: Any,
    rows: Any,
    first: int,
    end: int,
) -> None:
    """Rows with a `GradientEpilogue` of statistics at these addresses."""
    epilogue = GradientEpilogue(
        strided_tensor(out, weights),
        unsigned(line_length),
        unsigned(to_boundary),
        strided_tensor(grad, weights),
        weights.dtype.type(divisor),
        strided_tensor(logits, weights),
        weights,
        array_at(mass, 0, weights),
        unsigned(known_offset),
        array_at(lse, 0, weights),
        weights.dtype.type(label_smoothing),
        shape,
        new_scratch(TILE, 1, 0.0, weights),
    )
    label_rows_at(epilogue, rows, first, end)


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
    """`cross_entropy` with the soft label of a label map ``(B, H, W)``, a row of it at a time."""
    _, num_classes, *size = logits.shape
    rows = label_rows(labels, boxes, size, num_classes, ignore_index, filter, lse.dtype, TILE)
    return cross_entropy_of_rows(value, total, mass, lse, logits, rows, weight, label_smoothing, reduction, validate)


def cross_entropy_of_rows(
    value: Tensor,
    total: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    rows: LabelRows,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """`cross_entropy` with these rows of a soft label, each made and used at once."""
    batch, num_classes, *size = logits.shape
    sums, dtype = partial_sums(reduction, batch * size[0]), lse.dtype
    arguments = (
        value.data_ptr(),
        sums,
        mass.data_ptr(),
        lse.numel() if mass.ndim == 4 else 0,
        lse.data_ptr(),
        tensor_arguments(logits, dtype),
        weights_of(weight, num_classes, dtype),
        label_smoothing,
        (num_classes, *size),
        rows.arguments,
    )
    work = 0.65 * logits.numel() + 0.25 * rows.num_pixels
    in_range = all(pool.run(lambda first, end: _loss_rows(*arguments, first, end), batch * size[0], work))
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
    label_smoothing: float,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """Writes the gradient of the logits, given that of the pixels' losses, ``grad (B, h, w) / total``."""
    _, num_classes, *size = logits.shape
    rows = label_rows(labels, boxes, size, num_classes, ignore_index, filter, lse.dtype, TILE)
    cross_entropy_gradient_of_rows(out, grad, total, logits, rows, weight, label_smoothing, mass, lse)


def cross_entropy_gradient_of_rows(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    rows: LabelRows,
    weight: Tensor | None,
    label_smoothing: float,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """The gradient of `cross_entropy_of_rows`."""
    batch, num_classes, *size = logits.shape
    mass, lse, dtype = mass.contiguous(), lse.contiguous(), lse.dtype
    arguments = (
        tensor_arguments(out, dtype),
        *streaming_in_bytes(out),
        tensor_arguments(grad[:, None], dtype),
        divisor_of(total),
        tensor_arguments(logits, dtype),
        weights_of(weight, num_classes, dtype),
        label_smoothing,
        mass.data_ptr(),
        lse.numel() if mass.ndim == 4 else 0,
        lse.data_ptr(),
        (num_classes, *size),
        rows.arguments,
    )
    work = 0.65 * logits.numel() + 0.25 * rows.num_pixels
    pool.run(lambda first, end: _gradient_rows(*arguments, first, end), batch * size[0], work)
