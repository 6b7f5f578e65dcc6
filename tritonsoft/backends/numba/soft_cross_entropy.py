"""Cross-entropy of logits against a soft label, forward and backward."""

import math
from typing import Any

from torch import Tensor

from tritonsoft.backends.numba.elements import Array, array_at, borrowed, fence
from tritonsoft.backends.numba.planes import (
    STAGED,
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
from tritonsoft.backends.numba.soft_targets import (
    Scratch,
    SoftTarget,
    Tiles,
    load_masses,
    new_scratch,
    num_lines,
    pixels_of_tile,
    prepare_masses,
    soft_in_range,
    soft_target,
    softmax_of_tile,
    target_arguments,
    tensors_of,
    tiles_of,
    weights_of,
    work_of,
)
from tritonsoft.backends.numba.softmax import load_saved_statistics, save_statistics, write_gradient
from tritonsoft.backends.numba.sums import divisor_of, finish_cross_entropy, partial_sums, store_losses
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.geometry import MASS_TOLERANCE, Reduction


@jit
def _cross_entropy_tiles(
    loss: Array,
    sums: Array,
    mass: Array,
    known_offset: int,
    lse: Array,
    logits: StridedTensor,
    target: SoftTarget,
    weights: Array,
    num_classes: int,
    tiles: Tiles,
    tolerance: Any,
    scratch: Scratch,
    first: int,
    end: int,
) -> bool:
    """Whether masses are in range. Writes losses, or ``sums (tiles, 2)`` of losses and masses."""
    logits, target, scratch = borrowed(logits), borrowed(target), borrowed(scratch)
    state = scratch.state
    for tile in range(first, end):
        pixels = pixels_of_tile(tile, tiles)
        sample, row, column, count = pixels
        if not softmax_of_tile(logits, target, weights, num_classes, pixels, tolerance, scratch):
            return False
        start = unsigned((sample * tiles[0] + row) * tiles[1]) + column
        save_statistics(state, scratch.uniform, mass, known_offset, lse, num_classes, start, count)
        store_losses(loss, sums, unsigned(tile), state, start, count)
    return True


@jit
def _cross_entropy_gradient_tiles(
    out: StridedTensor,
    grad: StridedTensor,
    divisor: Any,
    logits: StridedTensor,
    target: SoftTarget,
    weights: Array,
    mass: Array,
    known_offset: int,
    lse: Array,
    smoothing: Any,
    num_classes: int,
    tiles: Tiles,
    line_length: int,
    to_boundary: int,
    scratch: Scratch,
    first: int,
    end: int,
) -> None:
    out, grad, logits, target = borrowed(out), borrowed(grad), borrowed(logits), borrowed(target)
    scratch = borrowed(scratch)
    statistics, line, pitch, one = scratch.statistics, scratch.line, scratch.pitch, unsigned(1)
    tile_size = unsigned(scratch.tile)
    for tile in range(first, end):
        pixels = pixels_of_tile(tile, tiles)
        sample, row, column, count = pixels
        prepare_masses(target, num_classes, pixels, scratch)
        load_line(grad, pixels, unsigned(0), statistics.grad_loss, unsigned(0))
        start = unsigned((sample * tiles[0] + row) * tiles[1]) + column
        load_saved_statistics(statistics, divisor, mass, known_offset, lse, smoothing, num_classes, start, count)
        for label in range(unsigned(num_classes)):
            lines = load_lines(logits, pixels, label, one, line, pitch, tile_size)
            masses = load_masses(target, pixels, label, one, scratch, tile_size)
            values, start, how = select_store(out, pixels, label, line, line_length, to_boundary)
            write_gradient(
                values, start, how, statistics, lines, masses, True, smoothing > 0, weights[label], padded(count)
            )
            if how == STAGED:
                store_line(out, pixels, label, line, scratch.staging, line_length, to_boundary)
    fence()


@jit
def _cross_entropy(
    loss: int,
    sums: Array,
    mass: int,
    known_offset: int,
    lse: int,
    logits: TensorArguments,
    target: Any,
    weights: Array,
    label_smoothing: float,
    tiles: Tiles,
    tolerance: float,
    num_lines: int,
    first: int,
    end: int,
) -> Any:
    """`_cross_entropy_tiles` of outputs at these addresses."""
    return _cross_entropy_tiles(
        array_at(loss, 0, weights),
        sums,
        array_at(mass, 0, weights),
        unsigned(known_offset),
        array_at(lse, 0, weights),
        strided_tensor(logits, weights),
        soft_target(target, weights),
        weights,
        weights.size,
        tiles,
        weights.dtype.type(tolerance),
        new_scratch(tiles[2], num_lines, label_smoothing, weights),
        first,
        end,
    )


@jit
def _cross_entropy_gradient(
    out: TensorArguments,
    grad: TensorArguments,
    divisor: float,
    logits: TensorArguments,
    target: Any,
    weights: Array,
    label_smoothing: float,
    mass: int,
    known_offset: int,
    lse: int,
    tiles: Tiles,
    line_length: int,
    to_boundary: int,
    num_lines: int,
    first: int,
    end: int,
) -> None:
    """`_cross_entropy_gradient_tiles` of statistics at these addresses."""
    _cross_entropy_gradient_tiles(
        strided_tensor(out, weights),
        strided_tensor(grad, weights),
        weights.dtype.type(divisor),
        strided_tensor(logits, weights),
        soft_target(target, weights),
        weights,
        array_at(mass, 0, weights),
        unsigned(known_offset),
        array_at(lse, 0, weights),
        weights.dtype.type(label_smoothing),
        weights.size,
        tiles,
        unsigned(line_length),
        unsigned(to_boundary),
        new_scratch(tiles[2], num_lines, 0.0, weights),
        first,
        end,
    )


def cross_entropy(
    value: Tensor,
    total: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """Writes the loss of logits ``(B, C, h, w)``; of each pixel ``(B, h, w)`` the weighted mass and the logsumexp."""
    # Weights change the masses that the loop sums, and several entries of a sparse target add up.
    checked = weight is not None or index is not None
    if checked and validate and not soft_in_range(soft, MASS_TOLERANCE):
        return False
    batch, num_classes = logits.shape[:2]
    tiles, dtype = tiles_of(logits, *tensors_of(soft, index)), lse.dtype
    number = tiles.number(batch)
    sums = partial_sums(reduction, number)
    arguments = (
        value.data_ptr(),
        sums,
        mass.data_ptr(),
        lse.numel() if mass.ndim == 4 else 0,
        lse.data_ptr(),
        tensor_arguments(logits, dtype),
        target_arguments(soft, index, dtype),
        weights_of(weight, num_classes, dtype),
        label_smoothing,
        tiles,
        math.inf if checked or not validate else MASS_TOLERANCE,
        num_lines(num_classes, index),
    )
    work = work_of(0.65, logits, index)
    in_range = all(pool.run(lambda first, end: _cross_entropy(*arguments, first, end), number, work))
    finish_cross_entropy(value, total, sums, reduction)
    return in_range


def cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """Writes the gradient of the logits, given that of the pixels' losses, ``grad (B, h, w) / total``."""
    num_classes, dtype = logits.shape[1], lse.dtype
    grad, mass, lse = grad[:, None], mass.contiguous(), lse.contiguous()
    tiles = tiles_of(logits, out, grad, *tensors_of(soft, index))
    arguments = (
        tensor_arguments(out, dtype),
        tensor_arguments(grad, dtype),
        divisor_of(total),
        tensor_arguments(logits, dtype),
        target_arguments(soft, index, dtype),
        weights_of(weight, num_classes, dtype),
        label_smoothing,
        mass.data_ptr(),
        lse.numel() if mass.ndim == 4 else 0,
        lse.data_ptr(),
        tiles,
        *streaming_in_bytes(out),
        num_lines(num_classes, index),
    )
    number, work = tiles.number(len(logits)), work_of(0.65, logits, index)
    pool.run(lambda first, end: _cross_entropy_gradient(*arguments, first, end), number, work)
