"""The overlap losses, Dice and Jaccard, of logits and a soft label, forward and backward."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from tritonsoft.backends.numba.elements import Array, borrowed, fence, flat, prefetch
from tritonsoft.backends.numba.planes import (
    STAGED,
    Lines,
    StridedTensor,
    load_lines,
    padded,
    select_store,
    store_line,
    streaming_in_bytes,
    strided_tensor,
)
from tritonsoft.backends.numba.soft_targets import (
    Scratch,
    SoftTarget,
    Tiles,
    load_masses,
    num_lines,
    pixels_of_tile,
    prepare_masses,
    scratch_of,
    soft_in_range,
    softmax_of_tile,
    target_of,
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
def finish_overlap(value: Array, slopes: Array, parts: Array, weights: Array, num_tiles: Any, options: Any) -> None:
    """`tritonsoft.backends.reference.overlap_loss` of the sums of tiles ``(tiles, C, 3)``, ``num_tiles`` to a group."""
    is_dice, only_present, is_none, is_mean = options
    num_classes = weights.size
    loss = total = 0.0
    for group in range(slopes.size // (2 * num_classes)):
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
        load_saved_statistics(
            statistics, lse.dtype.type(1), mass, lse, unsigned((sample * tiles[0] + row) * tiles[1]) + column, count
        )
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
    tiles = tiles_of(logits, *tensors_of(soft, index))
    number = tiles.number(batch)
    parts = np.zeros(number * num_classes * 3)
    outputs = flat(mass), flat(lse)
    dtype = outputs[0].dtype
    arguments = (
        parts,
        *outputs,
        strided_tensor(logits, dtype),
        target_of(soft, index, dtype),
        weights_of(None, num_classes, dtype),
        num_classes,
        tiles,
        dtype.type(math.inf if checked or not validate else MASS_TOLERANCE),
    )

    def job(first: int, end: int) -> bool:
        scratch = scratch_of(tiles.size, num_lines(num_classes, index), dtype)
        in_range: bool = _overlap_tiles(*arguments, scratch, first, end)
        return in_range

    in_range = all(pool.run(job, number, work_of(1.2, logits, index)))
    options = (measure == "dice", classes == "present", reduction == "none", reduction == "mean")
    finish_overlap(
        flat(value), flat(slopes), parts, weights_of(weight, num_classes, dtype), number // len(slopes), options
    )
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
    num_classes = logits.shape[1]
    tiles = tiles_of(logits, out, *tensors_of(soft, index))
    lse_memory = flat(lse.contiguous())
    dtype = lse_memory.dtype
    arguments = (
        strided_tensor(out, dtype),
        flat((grad[..., None] * slopes).contiguous()),
        strided_tensor(logits, dtype),
        target_of(soft, index, dtype),
        flat(mass.contiguous()),
        lse_memory,
        num_classes,
        tiles,
        *streaming_in_bytes(out),
    )

    def job(first: int, end: int) -> None:
        _overlap_gradient_tiles(*arguments, scratch_of(tiles.size, num_classes, dtype), first, end)

    pool.run(job, tiles.number(len(logits)), work_of(1.2, logits, index))
