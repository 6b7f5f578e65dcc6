"""The overlap losses, Dice and Jaccard, of logits and a soft label, forward and backward."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from tritonsoft.backends.numba.elements import borrowed, fence, flat, prefetch
from tritonsoft.backends.numba.planes import SCRATCH, byte_lines, lines_of, plane_of, store_line, way_out, whole
from tritonsoft.backends.numba.soft_targets import (
    lines_needed,
    masses_of,
    meet_all,
    others_of,
    place_of,
    prepare,
    scratch_of,
    soft_in_range,
    target_of,
    tiles_of,
    weights_of,
    work_of,
)
from tritonsoft.backends.numba.softmax import know, leave, not_negative
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import LANES, exp, load, spread, store, sum_of, where
from tritonsoft.geometry import MASS_TOLERANCE, Classes, Measure, Reduction


@jit
def _overlap_tiles(
    sums: Any,
    mass: Any,
    lse: Any,
    logits: Any,
    target: Any,
    weights: Any,
    num_classes: Any,
    tiles: Any,
    tolerance: Any,
    scratch: Any,
    first: int,
    end: int,
) -> bool:
    """Sums of each tile: (tiles, C, 3)."""
    logits, target, scratch = borrowed(logits), borrowed(target), borrowed(scratch)
    online, pitch, one = scratch.online, scratch.pitch, unsigned(1)
    for tile in range(first, end):
        place = place_of(tile, tiles)
        sample, row, column, count = place
        if not meet_all(logits, target, weights, num_classes, place, tolerance, scratch):
            return False
        start = unsigned((sample * tiles[0] + row) * tiles[1]) + column
        for n in range(count):
            mass[start + n], lse[start + n] = online.mass[n], online.largest[n]
        for n in range(count, whole(count)):
            online.mass[n] = 0
        for label in range(unsigned(num_classes)):
            lines = lines_of(logits, place, label, one, scratch.logits, pitch, unsigned(0))
            masses = masses_of(target, place, label, one, scratch, unsigned(0))
            predicted = labelled = apart = spread(lse.dtype.type(0), LANES)
            for n in range(unsigned(0), whole(count), unsigned(LANES)):
                probability = _predict(lines, n, online.largest, online.mass)
                share = not_negative(load(masses.numbers, masses.first + n, LANES))
                difference = probability - share
                predicted, labelled = predicted + probability, labelled + share
                apart = apart + where(difference < 0.0, 0.0 - difference, difference)
            place_of_sums = (unsigned(tile) * unsigned(num_classes) + label) * unsigned(3)
            sums[place_of_sums] = sum_of(predicted)
            sums[place_of_sums + unsigned(1)] = sum_of(labelled)
            sums[place_of_sums + unsigned(2)] = sum_of(apart)
    return True


@jit
def _compare(value: Any, slopes: Any, parts: Any, weights: Any, num_tiles: Any, options: Any) -> None:
    """`tritonsoft.backends.reference.overlap_loss` of the sums of each tile, (tiles, C, 3), so many tiles together."""
    is_dice, only_present, is_none, is_mean = options
    num_classes = weights.size
    loss = total = 0.0
    for group in range(slopes.size // (2 * num_classes)):
        for label in range(num_classes):
            predicted = labelled = distance = 0.0
            for tile in range(group * num_tiles, (group + 1) * num_tiles):
                place = (tile * num_classes + label) * 3
                predicted += parts[place]
                labelled += parts[place + 1]
                distance += parts[place + 2]
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
def _predict(logits: Any, n: Any, lse: Any, mass: Any) -> Any:
    """The masses predicted for a class: its probabilities times the masses of the pixels."""
    known = load(mass, n, LANES)
    probability = exp(load(logits.numbers, logits.first + n, LANES) - load(lse, n, LANES))
    return where(known > 0.0, known * probability, 0.0)


@jit
def _overlap_gradient_tiles(
    out: Any,
    slopes_of: Any,
    logits: Any,
    target: Any,
    mass: Any,
    lse: Any,
    num_classes: Any,
    tiles: Any,
    lanes: Any,
    phase: Any,
    scratch: Any,
    first: int,
    end: int,
) -> None:
    out, logits, target, scratch = borrowed(out), borrowed(logits), borrowed(target), borrowed(scratch)
    pixels, pitch, tile_size, one = scratch.pixels, scratch.pitch, unsigned(scratch.tile), unsigned(1)
    mean, predicted, slopes, line = pixels.pull, scratch.logits, scratch.slopes, scratch.line
    classes = unsigned(num_classes)
    for tile in range(first, end):
        place = place_of(tile, tiles)
        sample, row, column, count = place
        prepare(target, num_classes, place, scratch)
        know(pixels, lse.dtype.type(1), mass, lse, unsigned((sample * tiles[0] + row) * tiles[1]) + column, count)
        mean[:] = 0
        # What each class pulls, then how much more than the mean of what all pull: the gradient of the softmax.
        for label in range(classes):
            lines = lines_of(logits, place, label, one, line, pitch, tile_size)
            masses = masses_of(target, place, label, one, scratch, tile_size)
            of_class = ((unsigned(sample) * classes + label) * unsigned(2)) % unsigned(slopes_of.size)  # of all samples
            slope, slope_of_distance = slopes_of[of_class], spread(slopes_of[of_class + unsigned(1)], LANES)
            for n in range(unsigned(0), whole(count), unsigned(LANES)):
                prefetch(lines.numbers, lines.first + n + lines.ahead)
                prefetch(masses.numbers, masses.first + n + masses.ahead)
                probability = _predict(lines, n, pixels.lse, pixels.mass)
                difference = probability - not_negative(load(masses.numbers, masses.first + n, LANES))
                step = where(difference < 0.0, 0.0 - slope_of_distance, 0.0)
                step = slope + where(difference > 0.0, slope_of_distance, step)
                store(predicted, label * pitch + n, probability)
                store(slopes, label * pitch + n, step)
                store(mean, n, load(mean, n, LANES) + probability * step)
        for n in range(whole(count)):
            mean[n] = mean[n] / pixels.mass[n] if pixels.mass[n] > 0 else lse.dtype.type(0)
        for label in range(classes):
            values, start, way = way_out(out, place, label, line, lanes, phase)
            for n in range(unsigned(0), whole(count), unsigned(LANES)):
                probability, slope = load(predicted, label * pitch + n, LANES), load(slopes, label * pitch + n, LANES)
                leave(values, start + n, probability * (slope - load(mean, n, LANES)), way)
            if way == SCRATCH:
                store_line(out, place, label, line, scratch.room, lanes, phase)
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
    tiles = tiles_of(logits, *others_of(soft, index))
    number = tiles.number(batch)
    parts = np.zeros(number * num_classes * 3)
    outputs = flat(mass), flat(lse)
    dtype = outputs[0].dtype
    arguments = (
        parts,
        *outputs,
        plane_of(logits, dtype),
        target_of(soft, index, dtype),
        weights_of(None, num_classes, dtype),
        num_classes,
        tiles,
        dtype.type(math.inf if checked or not validate else MASS_TOLERANCE),
    )

    def job(first: int, end: int) -> bool:
        scratch = scratch_of(tiles.size, lines_needed(num_classes, index), dtype)
        in_range: bool = _overlap_tiles(*arguments, scratch, first, end)
        return in_range

    in_range = all(pool.run(job, number, work_of(1.2, logits, index)))
    options = (measure == "dice", classes == "present", reduction == "none", reduction == "mean")
    _compare(flat(value), flat(slopes), parts, weights_of(weight, num_classes, dtype), number // len(slopes), options)
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
    tiles = tiles_of(logits, out, *others_of(soft, index))
    lse_memory = flat(lse.contiguous())
    dtype = lse_memory.dtype
    arguments = (
        plane_of(out, dtype),
        flat((grad[..., None] * slopes).contiguous()),
        plane_of(logits, dtype),
        target_of(soft, index, dtype),
        flat(mass.contiguous()),
        lse_memory,
        num_classes,
        tiles,
        *byte_lines(out),
    )

    def job(first: int, end: int) -> None:
        _overlap_gradient_tiles(*arguments, scratch_of(tiles.size, num_classes, dtype), first, end)

    pool.run(job, tiles.number(len(logits)), work_of(1.2, logits, index))
