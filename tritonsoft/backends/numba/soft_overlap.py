"""The overlap losses, Dice and Jaccard, of logits and a soft label, forward and backward."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, array_at, borrowed, fence, prefetch
from tritonsoft.backends.numba.planes import (
    STAGED,
    Lines,
    StridedTensor,
    TensorArguments,
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
from tritonsoft.backends.numba.softmax import load_saved_statistics, not_negative, store_or_stream
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import LANES, broadcast, exp, load, store, sum_of, where
from tritonsoft.geometry import MASS_TOLERANCE, Classes, Measure, Reduction


@jit
def _overlap_tiles(
    sums: Array,
    mass: Array,
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
    """Whether masses are in range. Writes ``sums (tiles, C, 3)`` of predicted and labelled mass and their distance."""
    logits, target, scratch = borrowed(logits), borrowed(target), borrowed(scratch)
    state, pitch, one = scratch.state, scratch.pitch, unsigned(1)
    for tile in range(first, end):
        pixels = pixels_of_tile(tile, tiles)
        sample, row, column, count = pixels
        if not softmax_of_tile(logits, target, weights, num_classes, pixels, tolerance, scratch):
            return False
        start = unsigned((sample * tiles[0] + row) * tiles[1]) + column
        for n in range(count):
            mass[start + n], lse[start + n] = state.mass[n], state.max_logit[n]
        for n in range(count, padded(count)):
            state.mass[n] = 0
        for label in range(unsigned(num_classes)):
            lines = load_lines(logits, pixels, label, one, scratch.logits, pitch, unsigned(0))
            masses = load_masses(target, pixels, label, one, scratch, unsigned(0))
            predicted = labelled = distance = broadcast(lse.dtype.type(0), LANES)
            for n in range(unsigned(0), padded(count), unsigned(LANES)):
                probability = _predicted_mass(lines, n, state.max_logit, state.mass)
                class_mass = not_negative(load(masses.values, masses.first + n, LANES))
                difference = probability - class_mass
                predicted, labelled = predicted + probability, labelled + class_mass
                distance = distance + where(difference < 0.0, 0.0 - difference, difference)
            index = (unsigned(tile) * unsigned(num_classes) + label) * unsigned(3)
            sums[index] = sum_of(predicted)
            sums[index + unsigned(1)] = sum_of(labelled)
            sums[index + unsigned(2)] = sum_of(distance)
    return True


@jit
def finish_overlap(
    value_address: int,
    slopes_address: int,
    parts: Array,
    weights: Array,
    num_groups: int,
    num_tiles: int,
    options: tuple[bool, bool, bool, bool],
) -> None:
    """`tritonsoft.backends.reference.overlap_loss` of the sums of tiles ``(tiles, C, 3)``, ``num_tiles`` to a group."""
    is_dice, only_present, is_none, is_mean = options
    num_classes = weights.size
    value = array_at(value_address, num_groups * num_classes if is_none else 1, weights)
    slopes = array_at(slopes_address, num_groups * num_classes * 2, weights)
    loss = total = 0.0
    for group in range(num_groups):
        for label in range(num_classes):
            predicted = labelled = distance = 0.0
            for tile in range(group * num_tiles, (group + 1) * num_tiles):
                index = (tile * num_classes + label) * 3
                predicted += parts[index]
                labelled += parts[index + 1]
                distance += parts[index + 2]
            of_class, by_mass, by_distance = 0.0, 0.0, 0.0
            factor: Any = np.float64(weights[label])
            if labelled > 0:
                denominator = predicted + labelled + (0.0 if is_dice else distance)
                of_class = (distance if is_dice else 2.0 * distance) / denominator
                by_mass, by_distance = -of_class / denominator, (1.0 if is_dice else 2.0 - of_class) / denominator
            elif only_present:
                factor = 0.0
            else:  # a constant
                of_class = 1.0 if predicted + labelled + (0.0 if is_dice else distance) > 0 else 0.0
            of_both = group * num_classes + label
            slopes[2 * of_both], slopes[2 * of_both + 1] = by_mass * factor, by_distance * factor
            if is_none:
                value[of_both] = of_class * factor
            loss += of_class * factor
            total += factor
    if is_none:
        return
    divisor = total if is_mean and total > 0 else 1.0
    value[0] = loss / divisor
    for n in range(slopes.size):
        slopes[n] /= divisor


@jit
def _predicted_mass(logits: Lines, n: int, lse: Array, mass: Array) -> Any:
    """The predicted mass of a class: its probability times the pixel's mass."""
    pixel_mass = load(mass, n, LANES)
    probability = exp(load(logits.values, logits.first + n, LANES) - load(lse, n, LANES))
    return where(pixel_mass > 0.0, pixel_mass * probability, 0.0)


@jit
def _overlap_gradient_tiles(
    out: StridedTensor,
    slopes_of: Array,
    logits: StridedTensor,
    target: SoftTarget,
    mass: Array,
    lse: Array,
    num_classes: int,
    tiles: Tiles,
    line_length: int,
    to_boundary: int,
    scratch: Scratch,
    first: int,
    end: int,
) -> None:
    out, logits, target, scratch = borrowed(out), borrowed(logits), borrowed(target), borrowed(scratch)
    statistics, pitch, tile_size, one = scratch.statistics, scratch.pitch, unsigned(scratch.tile), unsigned(1)
    mean, predicted, slopes, line = statistics.grad_times_mass, scratch.logits, scratch.slopes, scratch.line
    classes = unsigned(num_classes)
    for tile in range(first, end):
        pixels = pixels_of_tile(tile, tiles)
        sample, row, column, count = pixels
        prepare_masses(target, num_classes, pixels, scratch)
        start, zero = unsigned((sample * tiles[0] + row) * tiles[1]) + column, lse.dtype.type(0)
        load_saved_statistics(statistics, lse.dtype.type(1), mass, unsigned(0), lse, zero, num_classes, start, count)
        mean[:] = 0
        # The gradient of a softmax: that of each probability, less the mean of all under the probabilities.
        for label in range(classes):
            lines = load_lines(logits, pixels, label, one, line, pitch, tile_size)
            masses = load_masses(target, pixels, label, one, scratch, tile_size)
            of_class = ((unsigned(sample) * classes + label) * unsigned(2)) % unsigned(slopes_of.size)  # of all samples
            slope, slope_of_distance = slopes_of[of_class], broadcast(slopes_of[of_class + unsigned(1)], LANES)
            for n in range(unsigned(0), padded(count), unsigned(LANES)):
                prefetch(lines.values, lines.first + n + lines.prefetch_distance)
                prefetch(masses.values, masses.first + n + masses.prefetch_distance)
                probability = _predicted_mass(lines, n, statistics.lse, statistics.mass)
                difference = probability - not_negative(load(masses.values, masses.first + n, LANES))
                step = where(difference < 0.0, 0.0 - slope_of_distance, 0.0)
                step = slope + where(difference > 0.0, slope_of_distance, step)
                store(predicted, label * pitch + n, probability)
                store(slopes, label * pitch + n, step)
                store(mean, n, load(mean, n, LANES) + probability * step)
        for n in range(padded(count)):
            mean[n] = mean[n] / statistics.mass[n] if statistics.mass[n] > 0 else lse.dtype.type(0)
        for label in range(classes):
            values, start, how = select_store(out, pixels, label, line, line_length, to_boundary)
            for n in range(unsigned(0), padded(count), unsigned(LANES)):
                probability, slope = load(predicted, label * pitch + n, LANES), load(slopes, label * pitch + n, LANES)
                store_or_stream(values, start + n, probability * (slope - load(mean, n, LANES)), how)
            if how == STAGED:
                store_line(out, pixels, label, line, scratch.staging, line_length, to_boundary)
    fence()


@jit
def _overlap(
    sums: Array,
    mass: int,
    lse: int,
    logits: TensorArguments,
    target: Any,
    weights: Array,
    tiles: Tiles,
    tolerance: float,
    num_lines: int,
    first: int,
    end: int,
) -> Any:
    """`_overlap_tiles` of statistics at these addresses; the ``weights`` are 1."""
    return _overlap_tiles(
        sums,
        array_at(mass, 0, weights),
        array_at(lse, 0, weights),
        strided_tensor(logits, weights),
        soft_target(target, weights),
        weights,
        weights.size,
        tiles,
        weights.dtype.type(tolerance),
        new_scratch(tiles[2], num_lines, 0.0, weights),
        first,
        end,
    )


@jit
def _overlap_gradient(
    out: TensorArguments,
    grad: int,
    num_grads: int,
    logits: TensorArguments,
    target: Any,
    mass: int,
    lse: int,
    num_classes: int,
    tiles: Tiles,
    line_length: int,
    to_boundary: int,
    like: Array,
    first: int,
    end: int,
) -> None:
    """`_overlap_gradient_tiles` of statistics and gradients at these addresses."""
    _overlap_gradient_tiles(
        strided_tensor(out, like),
        array_at(grad, num_grads, like),
        strided_tensor(logits, like),
        soft_target(target, like),
        array_at(mass, 0, like),
        array_at(lse, 0, like),
        num_classes,
        tiles,
        unsigned(line_length),
        unsigned(to_boundary),
        new_scratch(tiles[2], num_classes, 0.0, like),
        first,
        end,
    )


def overlap_loss(
    value: Tensor,
    slopes: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    measure: Measure,
    classes: Classes,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """Writes the Dice or Jaccard loss and its slopes ``(S, C, 2)``; of each pixel the mass and the logsumexp."""
    checked = index is not None
    if checked and validate and not soft_in_range(soft, MASS_TOLERANCE):
        return False
    batch, num_classes = logits.shape[:2]
    tiles, dtype = tiles_of(logits, *tensors_of(soft, index)), lse.dtype
    number = tiles.number(batch)
    sums = np.zeros(number * num_classes * 3)
    arguments = (
        sums,
        mass.data_ptr(),
        lse.data_ptr(),
        tensor_arguments(logits, dtype),
        target_arguments(soft, index, dtype),
        weights_of(None, num_classes, dtype),
        tiles,
        math.inf if checked or not validate else MASS_TOLERANCE,
        num_lines(num_classes, index),
    )
    in_range = all(pool.run(lambda first, end: _overlap(*arguments, first, end), number, work_of(1.2, logits, index)))
    options = (measure == "dice", classes == "present", reduction == "none", reduction == "mean")
    weights, num_groups = weights_of(weight, num_classes, dtype), len(slopes)
    finish_overlap(value.data_ptr(), slopes.data_ptr(), sums, weights, num_groups, number // num_groups, options)
    return in_range


def overlap_loss_backward(
    out: Tensor,
    grad: Tensor,
    slopes: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """Writes the gradient of the logits, given that of the values, ``grad (S, C)``."""
    num_classes, dtype = logits.shape[1], lse.dtype
    grad_sums, mass, lse = (grad[..., None] * slopes).contiguous(), mass.contiguous(), lse.contiguous()
    tiles = tiles_of(logits, out, *tensors_of(soft, index))
    arguments = (
        tensor_arguments(out, dtype),
        grad_sums.data_ptr(),
        grad_sums.numel(),
        tensor_arguments(logits, dtype),
        target_arguments(soft, index, dtype),
        mass.data_ptr(),
        lse.data_ptr(),
        num_classes,
        tiles,
        *streaming_in_bytes(out),
        LIKE[dtype],
    )
    number, work = tiles.number(len(logits)), work_of(1.2, logits, index)
    pool.run(lambda first, end: _overlap_gradient(*arguments, first, end), number, work)
