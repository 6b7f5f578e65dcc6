"""Losses of logits against soft labels, forward and backward: cross entropy and overlap.

A program owns some pixels of one sample and walks through their classes, a few tiles of LANES classes by PIXELS pixels
at a time. Where a plane of logits is contiguous, a thread has pixels to itself and meets all their classes, or every
LANES-th. In channels_last the neighbours in memory are classes: the lanes lie along them, and the threads that share a
pixel put together what they found at the end.

The logsumexp is computed online, relative to the largest logit so far: one pass, and all that is summed is positive, so
that nothing cancels whatever the size of the logits. The overlap needs the logsumexp before it can begin, and so a
second pass: its programs own so few pixels that the second pass reads what the first one left in the caches.

The target is a dense soft label, or a sparse one: a few masses of each pixel with their classes.
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft import memory
from tritonsoft.backends.values import masses_in_range
from tritonsoft.conventions import Classes, Measure, Reduction
from tritonsoft.kernels.convert import exponential, narrow, widen
from tritonsoft.kernels.launch import Launch, accumulator_type, platform_of, power_of_two_factor
from tritonsoft.kernels.sums import divided_by, finish_cross_entropy, finish_overlap, store_sums

# --- tiles -----------------------------------------------------------------------------------------------------------
#
# `pixels`: rows, columns and which of them exist, each (1, PIXELS).
# `view`:   what a program sees of a tensor (B, C, h, w): where its sample starts, the stride of the classes, and the
#           offsets of a tile (LANES, PIXELS) from its first class.
# `weights`: of the classes, (C,), and their stride; or two times None.
# `target`: of a dense one the view alone; of a sparse one the views of masses and classes, and how many a pixel has.


@triton.jit
def _sample_and_pixels(height, width, FLAT: tl.constexpr, PIXELS: tl.constexpr):
    tiles = tl.cdiv(height * width, PIXELS)
    pixel = (tl.program_id(0) % tiles * PIXELS + tl.arange(0, PIXELS))[None, :]
    inside = pixel < height * width
    row = pixel * 0 if FLAT else pixel // width
    column = pixel if FLAT else pixel % width
    return (tl.program_id(0) // tiles).to(tl.int64), (row, column, inside)


@triton.jit
def _view(tensor, strides, sample, pixels, LANES: tl.constexpr, OFFSET: tl.constexpr):
    lane = tl.arange(0, LANES)[:, None].to(OFFSET)
    offsets = lane * strides[1] + (pixels[0].to(OFFSET) * strides[2] + pixels[1].to(OFFSET) * strides[3])
    return tensor + sample * strides[0], strides[1], offsets


@triton.jit
def _target(target, strides, sample, pixels, LANES: tl.constexpr, OFFSET: tl.constexpr):
    """The target that `_launch` made arguments of."""
    soft, index, num_kept = target
    if index is None:
        result = (_view(soft, strides[0], sample, pixels, LANES, OFFSET),)
    else:
        masses = _view(soft, strides[0], sample, pixels, 1, OFFSET)
        result = (masses, _view(index, strides[1], sample, pixels, 1, OFFSET), num_kept)
    return result


@triton.jit
def _load_pixels(tensor, strides, sample, pixels, ACCUMULATOR: tl.constexpr, OFFSET: tl.constexpr):
    """Of a tensor ``(B, h, w)``, (1, PIXELS); 0 where there is no pixel."""
    offsets = pixels[0].to(OFFSET) * strides[1] + pixels[1].to(OFFSET) * strides[2]
    return widen(tl.load(tensor + sample * strides[0] + offsets, mask=pixels[2], other=0.0), ACCUMULATOR)


@triton.jit
def _plane(sample, pixels, height, width):
    """Offsets of the pixels in a contiguous tensor ``(B, h, w)``."""
    return (sample * height + pixels[0]) * width + pixels[1]


@triton.jit
def _classes(first, LANES: tl.constexpr):
    """The classes of a tile, (LANES, 1)."""
    return first + tl.arange(0, LANES)[:, None]


@triton.jit
def _load(view, first, num_classes, inside, other, ACCUMULATOR: tl.constexpr):
    """The tile whose first class is ``first``."""
    start, stride, offsets = view
    LANES: tl.constexpr = offsets.shape[0]
    mask = inside & (_classes(first, LANES) < num_classes)
    pointers = start + tl.cast(first, tl.int64) * stride + offsets
    return widen(tl.load(pointers, mask=mask, other=other), ACCUMULATOR)


@triton.jit
def _store(view, first, num_classes, inside, value):
    start, stride, offsets = view
    LANES: tl.constexpr = offsets.shape[0]
    mask = inside & (_classes(first, LANES) < num_classes)
    pointers = start + tl.cast(first, tl.int64) * stride + offsets
    tl.store(pointers, narrow(value, start.dtype.element_ty), mask=mask)


# --- targets ---------------------------------------------------------------------------------------------------------


@triton.jit
def _not_negative(mass):
    """A mass below 0 has been rounded, and is none; NaN stays."""
    return tl.maximum(mass, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _kept(target, place, num_classes, inside, LANES: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """One entry of a sparse target, for all lanes: its class, and its mass; none where there is no such class."""
    # Loaded by every lane: they need no exchange, and all but one of them meet a cache.
    masses, index, _ = target
    inside = tl.broadcast_to(inside, [LANES, inside.shape[1]])
    mass_offsets = tl.broadcast_to(masses[2], inside.shape)
    index_offsets = tl.broadcast_to(index[2], inside.shape)
    place = tl.cast(place, tl.int64)
    class_index = tl.load(index[0] + place * index[1] + index_offsets, mask=inside, other=0).to(tl.int32)
    mass = widen(tl.load(masses[0] + place * masses[1] + mass_offsets, mask=inside, other=0.0), ACCUMULATOR)
    exists = (class_index >= 0) & (class_index < num_classes)
    return tl.where(exists, class_index, 0), tl.where(exists, _not_negative(mass), 0.0)


@triton.jit
def _either(first, second):
    return first | second


@triton.jit
def _class_weight(weights, classes, mask, ACCUMULATOR: tl.constexpr):
    return tl.load(weights[0] + classes.to(tl.int64) * weights[1], mask=mask, other=0.0).to(ACCUMULATOR)


@triton.jit
def _steps_with_mass(
    target, first, num_classes, inside, STEP: tl.constexpr, LANES: tl.constexpr, ACCUMULATOR: tl.constexpr
):
    """Of a sparse target: the bits of those of the 32 steps from class ``first`` in which any pixel has mass."""
    steps = tl.zeros([LANES, inside.shape[1]], tl.int32)
    for place in range(0, target[2]):
        class_index, mass = _kept(target, place, num_classes, inside, LANES, ACCUMULATOR)
        step = (class_index - first) // STEP
        near = (mass != 0) & (class_index >= first) & (step < 32)
        steps |= tl.where(near, 1 << (step & 31), 0)
    return tl.reduce(tl.reduce(steps, 1, _either), 0, _either)


@triton.jit
def _steps_around(
    steps, target, first, num_classes, inside, STEP: tl.constexpr, LANES: tl.constexpr, ACCUMULATOR: tl.constexpr
):
    """``steps``, or those that begin with class ``first`` where it is the first of 32."""
    if len(target) > 1:  # noqa: SIM102 - the outer one is decided when it is compiled
        if first // STEP % 32 == 0:
            steps = _steps_with_mass(target, first, num_classes, inside, STEP, LANES, ACCUMULATOR)
    return steps


@triton.jit
def _masses(
    target,
    weights,  # `_launch` made arguments of them
    steps,  # a sparse target: `_steps_with_mass` around this step
    first,
    num_classes,
    inside,
    LANES: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    SIGNED: tl.constexpr = False,  # whether masses of a dense target may stay below 0
):
    """The weighted masses of one step: UNROLL tiles, the first of which begins with class ``first``."""
    masses = ()
    if len(target) == 1:
        for tile in tl.static_range(UNROLL):
            mass = _load(target[0], first + tile * LANES, num_classes, inside, 0.0, ACCUMULATOR)
            masses = masses + (mass if SIGNED else _not_negative(mass),)  # noqa: RUF005
    else:
        nothing = tl.zeros([LANES, inside.shape[1]], ACCUMULATOR)
        for _ in tl.static_range(UNROLL):
            masses = masses + (nothing,)  # noqa: RUF005 - Triton unpacks nothing here
        if (steps >> (first // (LANES * UNROLL) % 32)) & 1:
            # What the entries of a sparse target are is read again, from a cache: registers would not hold them.
            for place in range(0, target[2]):
                class_index, mass = _kept(target, place, num_classes, inside, LANES, ACCUMULATOR)
                sums = ()
                for tile in tl.static_range(UNROLL):
                    here = class_index == _classes(first + tile * LANES, LANES)
                    sums = sums + (masses[tile] + tl.where(here, mass, 0.0),)  # noqa: RUF005
                masses = sums
    if weights[0] is not None:
        weighted = ()
        for tile in tl.static_range(UNROLL):
            classes = _classes(first + tile * LANES, LANES)
            weight = _class_weight(weights, classes, classes < num_classes, ACCUMULATOR)
            weighted = weighted + (masses[tile] * weight,)  # noqa: RUF005
        masses = weighted
    return masses


# --- the first pass --------------------------------------------------------------------------------------------------


@triton.jit
def _fall(before, after, LOWEST: tl.constexpr):
    """``before - after``, never positive and always finite: times a mass of 0 it is 0."""
    return tl.maximum(before - after, LOWEST)


@triton.jit
def _read(
    logits,  # view
    gathered,  # sparse target: view of the logits with one lane
    target,
    weights,
    num_classes,
    inside,
    DISTANCE: tl.constexpr,  # whether the third result is wanted
    LANES: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """Of each pixel, (1, PIXELS): logsumexp, weighted mass, and its mean logit's distance from the logsumexp times it.

    The distance is measured from the largest logit so far; where that rises by x, all the mass met is x farther away.
    """
    LOWEST: tl.constexpr = -1.7976931348623157e308 if tl.float64 == ACCUMULATOR else -3.4028234663852886e38
    total = tl.zeros([LANES, inside.shape[1]], ACCUMULATOR)
    mass = total
    distance = total
    largest = total + LOWEST
    for first in range(0, num_classes, LANES * UNROLL):
        values = ()
        larger = largest
        for tile in tl.static_range(UNROLL):
            value = _load(logits, first + tile * LANES, num_classes, inside, float("-inf"), ACCUMULATOR)
            values = values + (value,)  # noqa: RUF005
            larger = tl.maximum(larger, value)
        if len(target) == 1:
            masses = _masses(target, weights, None, first, num_classes, inside, LANES, UNROLL, ACCUMULATOR)
        fall = _fall(largest, larger, LOWEST)
        largest = larger
        total *= exponential(fall)
        if DISTANCE:
            distance -= mass * fall
        for tile in tl.static_range(UNROLL):
            below = values[tile] - largest
            total += exponential(below)
            if len(target) == 1:
                mass += masses[tile]
                if DISTANCE:  # a logit without mass may be infinite
                    distance = tl.where(masses[tile] == 0, distance, distance - masses[tile] * below)
    if LANES > 1:
        of_all = tl.max(largest, axis=0, keep_dims=True)
        fall = _fall(largest, of_all, LOWEST)
        largest = of_all
        total = tl.sum(total * exponential(fall), axis=0, keep_dims=True)
        distance = tl.sum(distance - mass * fall, axis=0, keep_dims=True)
        mass = tl.sum(mass, axis=0, keep_dims=True)
    if len(target) > 1:
        start, stride, offsets = gathered
        for place in range(0, target[2]):
            class_index, part = _kept(target, place, num_classes, inside, 1, ACCUMULATOR)
            if weights[0] is not None:
                part *= _class_weight(weights, class_index, inside, ACCUMULATOR)
            mass += part
            if DISTANCE:
                pointers = start + (class_index.to(tl.int64) * stride + offsets)
                logit = widen(tl.load(pointers, mask=part != 0, other=0.0), ACCUMULATOR)
                distance += tl.where(part == 0, 0.0, part * (largest - logit))
    logarithm = tl.log(total)
    return largest + logarithm, mass, tl.where(mass == 0, 0.0, distance + mass * logarithm)


@triton.jit
def _slope(
    grad,  # (C,) of this sample
    grad_strides,
    slopes,  # (C, 2) of this sample
    slopes_strides,
    difference,
    first,
    num_classes,
    LANES: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """How the loss changes with the predicted mass, whose distance from the target is ``difference``."""
    classes = _classes(first, LANES)
    exist = classes < num_classes
    grad_here = tl.load(grad + classes.to(tl.int64) * grad_strides[1], mask=exist, other=0.0).to(ACCUMULATOR)
    pointers = slopes + classes.to(tl.int64) * slopes_strides[1]
    by_mass = grad_here * tl.load(pointers, mask=exist, other=0.0).to(ACCUMULATOR)
    by_distance = grad_here * tl.load(pointers + slopes_strides[2], mask=exist, other=0.0).to(ACCUMULATOR)
    return by_mass + tl.where(difference > 0, by_distance, tl.where(difference < 0, -by_distance, 0.0))


# --- kernels ---------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["height", "width_units", "num_classes"])
def cross_entropy_kernel(
    loss,  # (B, h, w), contiguous, or None
    partial,  # (programs, 2), contiguous, or None: sums of each program's losses and masses
    mass,  # (B, h, w), contiguous
    lse,  # (B, h, w), contiguous
    logits,  # (B, C, h, w)
    logits_strides,
    target,  # masses (B, C, h, w) or (B, k, h, w), their classes (B, k, h, w) or None, k
    target_strides,
    weights,  # (C,) or None, and their stride
    height,
    width_units,
    num_classes,
    WIDTH_UNIT: tl.constexpr,
    FLAT: tl.constexpr,
    LANES: tl.constexpr,
    PIXELS: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,  # the integer that holds an offset inside one plane, or across the lanes of a tile
):
    width = width_units * WIDTH_UNIT  # written as a product, for wide accesses: see `forward`
    sample, pixels = _sample_and_pixels(height, width, FLAT, PIXELS)
    inside = pixels[2]
    lse_here, mass_here, loss_here = _read(
        _view(logits, logits_strides, sample, pixels, LANES, OFFSET),
        _view(logits, logits_strides, sample, pixels, 1, OFFSET),
        _target(target, target_strides, sample, pixels, LANES, OFFSET),
        weights,
        num_classes,
        inside,
        True,
        LANES,
        UNROLL,
        ACCUMULATOR,
    )
    plane = _plane(sample, pixels, height, width)
    if partial is None:
        tl.store(loss + plane, loss_here.to(loss.dtype.element_ty), mask=inside)
    else:
        store_sums(partial, loss_here, mass_here)
    tl.store(mass + plane, mass_here.to(mass.dtype.element_ty), mask=inside)
    tl.store(lse + plane, lse_here.to(lse.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["height", "width_units", "num_classes"])
def cross_entropy_backward_kernel(
    out,  # (B, C, h, w)
    out_strides,
    grad,  # (B, h, w)
    grad_strides,
    total,  # a number by which it is divided (0 counts as 1), or None
    logits,  # (B, C, h, w)
    logits_strides,
    target,  # as above
    target_strides,
    weights,  # (C,) or None, and their stride
    mass,  # (B, h, w), contiguous
    lse,  # (B, h, w), contiguous
    height,
    width_units,
    num_classes,
    WIDTH_UNIT: tl.constexpr,
    FLAT: tl.constexpr,
    LANES: tl.constexpr,
    PIXELS: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    width = width_units * WIDTH_UNIT
    STEP: tl.constexpr = LANES * UNROLL
    sample, pixels = _sample_and_pixels(height, width, FLAT, PIXELS)
    inside = pixels[2]
    out_view = _view(out, out_strides, sample, pixels, LANES, OFFSET)
    logits_view = _view(logits, logits_strides, sample, pixels, LANES, OFFSET)
    target_view = _target(target, target_strides, sample, pixels, LANES, OFFSET)
    plane = _plane(sample, pixels, height, width)
    mass_here = tl.load(mass + plane, mask=inside, other=0.0).to(ACCUMULATOR)
    lse_here = tl.load(lse + plane, mask=inside, other=0.0).to(ACCUMULATOR)
    scale = divided_by(_load_pixels(grad, grad_strides, sample, pixels, ACCUMULATOR, OFFSET), total)
    steps = tl.zeros([], tl.int32)
    for first in range(0, num_classes, STEP):
        values = ()
        for tile in tl.static_range(UNROLL):
            value = _load(logits_view, first + tile * LANES, num_classes, inside, None, ACCUMULATOR)
            values = values + (value,)  # noqa: RUF005
        steps = _steps_around(steps, target_view, first, num_classes, inside, STEP, LANES, ACCUMULATOR)
        masses = _masses(target_view, weights, steps, first, num_classes, inside, LANES, UNROLL, ACCUMULATOR)
        for tile in tl.static_range(UNROLL):
            value = scale * mass_here * exponential(values[tile] - lse_here) - scale * masses[tile]
            value = tl.where(mass_here == 0, 0.0, value)
            _store(out_view, first + tile * LANES, num_classes, inside, value)


@triton.jit(do_not_specialize=["height", "width_units", "num_classes"])
def overlap_kernel(
    partial,  # (B, tiles, C, 3), contiguous: sums of each program's predicted mass, mass and their distance
    mass,  # (B, h, w), contiguous
    lse,  # (B, h, w), contiguous
    logits,  # (B, C, h, w)
    logits_strides,
    target,  # as above
    target_strides,
    height,
    width_units,
    num_classes,
    WIDTH_UNIT: tl.constexpr,
    FLAT: tl.constexpr,
    LANES: tl.constexpr,
    PIXELS: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    width = width_units * WIDTH_UNIT
    STEP: tl.constexpr = LANES * UNROLL
    sample, pixels = _sample_and_pixels(height, width, FLAT, PIXELS)
    inside = pixels[2]
    logits_view = _view(logits, logits_strides, sample, pixels, LANES, OFFSET)
    gathered = _view(logits, logits_strides, sample, pixels, 1, OFFSET)
    target_view = _target(target, target_strides, sample, pixels, LANES, OFFSET)
    lse_here, mass_here, _ = _read(
        logits_view, gathered, target_view, (None, None), num_classes, inside, False, LANES, UNROLL, ACCUMULATOR
    )
    plane = _plane(sample, pixels, height, width)
    tl.store(mass + plane, mass_here.to(mass.dtype.element_ty), mask=inside)
    tl.store(lse + plane, lse_here.to(lse.dtype.element_ty), mask=inside)
    steps = tl.zeros([], tl.int32)
    for first in range(0, num_classes, STEP):
        values = ()
        for tile in tl.static_range(UNROLL):
            value = _load(logits_view, first + tile * LANES, num_classes, inside, None, ACCUMULATOR)
            values = values + (value,)  # noqa: RUF005
        steps = _steps_around(steps, target_view, first, num_classes, inside, STEP, LANES, ACCUMULATOR)
        masses = _masses(target_view, (None, None), steps, first, num_classes, inside, LANES, UNROLL, ACCUMULATOR)
        for tile in tl.static_range(UNROLL):
            predicted = mass_here * exponential(values[tile] - lse_here)
            predicted = tl.where(mass_here == 0, 0.0, predicted)
            classes = first + tile * LANES + tl.arange(0, LANES)
            exists = classes < num_classes
            sums = partial + (tl.program_id(0).to(tl.int64) * num_classes + classes) * 3
            tl.store(sums, tl.sum(predicted, axis=1).to(partial.dtype.element_ty), mask=exists)
            tl.store(sums + 1, tl.sum(masses[tile], axis=1).to(partial.dtype.element_ty), mask=exists)
            difference = tl.sum(tl.abs(predicted - masses[tile]), axis=1)
            tl.store(sums + 2, difference.to(partial.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["height", "width_units", "num_classes"])
def overlap_backward_kernel(
    out,  # (B, C, h, w)
    out_strides,
    grad,  # (B, C) of the values
    grad_strides,
    slopes,  # (B, C, 2): how these change with the predicted mass, and with its distance from the target
    slopes_strides,
    logits,  # (B, C, h, w)
    logits_strides,
    target,  # as above
    target_strides,
    mass,  # (B, h, w), contiguous
    lse,  # (B, h, w), contiguous
    height,
    width_units,
    num_classes,
    WIDTH_UNIT: tl.constexpr,
    FLAT: tl.constexpr,
    LANES: tl.constexpr,
    PIXELS: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    width = width_units * WIDTH_UNIT
    STEP: tl.constexpr = LANES * UNROLL
    sample, pixels = _sample_and_pixels(height, width, FLAT, PIXELS)
    inside = pixels[2]
    out_view = _view(out, out_strides, sample, pixels, LANES, OFFSET)
    logits_view = _view(logits, logits_strides, sample, pixels, LANES, OFFSET)
    target_view = _target(target, target_strides, sample, pixels, LANES, OFFSET)
    grad_sample = grad + sample * grad_strides[0]
    slopes_sample = slopes + sample * slopes_strides[0]
    plane = _plane(sample, pixels, height, width)
    mass_here = tl.load(mass + plane, mask=inside, other=0.0).to(ACCUMULATOR)
    lse_here = tl.load(lse + plane, mask=inside, other=0.0).to(ACCUMULATOR)
    mean_slope = tl.zeros([LANES, PIXELS], ACCUMULATOR)
    for pass_ in tl.static_range(2):
        steps = tl.zeros([], tl.int32)
        for first in range(0, num_classes, STEP):
            values = ()
            for tile in tl.static_range(UNROLL):
                value = _load(logits_view, first + tile * LANES, num_classes, inside, float("-inf"), ACCUMULATOR)
                values = values + (value,)  # noqa: RUF005
            steps = _steps_around(steps, target_view, first, num_classes, inside, STEP, LANES, ACCUMULATOR)
            # A mass counts here by which side of it the prediction is on: that of 0 and of less is the same.
            masses = _masses(
                target_view, (None, None), steps, first, num_classes, inside, LANES, UNROLL, ACCUMULATOR, True
            )
            for tile in tl.static_range(UNROLL):
                probability = exponential(values[tile] - lse_here)
                slope = _slope(
                    grad_sample,
                    grad_strides,
                    slopes_sample,
                    slopes_strides,
                    mass_here * probability - masses[tile],
                    first + tile * LANES,
                    num_classes,
                    LANES,
                    ACCUMULATOR,
                )
                if pass_ == 0:
                    mean_slope += probability * slope
                else:
                    value = mass_here * probability * (slope - mean_slope)
                    value = tl.where(mass_here == 0, 0.0, value)
                    _store(out_view, first + tile * LANES, num_classes, inside, value)
        if pass_ == 0:
            mean_slope = tl.sum(mean_slope, axis=0, keep_dims=True)


# --- launch ----------------------------------------------------------------------------------------------------------


_INT32_LIMIT = 2**31
_CACHED = 40960  # bytes that a program may read twice: those of all programs of an H200 at once fit its L2 cache


def _flat_stride(tensor: Tensor) -> int | None:
    """The stride of pixels counted through all rows, if there is one."""
    height, width = tensor.shape[-2:]
    stride_y, stride_x = tensor.stride()[-2:]
    if width == 1:
        return stride_y
    return stride_x if height == 1 or stride_y == width * stride_x else None


def _offset_type(lanes: int, tensors: Sequence[Tensor]) -> Any:
    """The integer that holds every offset inside a plane, or across the lanes of a tile."""
    for tensor in tensors:
        (height, width), strides = tensor.shape[-2:], tensor.stride()
        reach = (height - 1) * strides[-2] + (width - 1) * strides[-1] + (lanes - 1) * strides[-3]
        if reach >= _INT32_LIMIT:
            return tl.int64
    return tl.int32


def _tile(logits: Tensor, soft: Tensor, index: Tensor | None, kind: str) -> tuple[int, int, int, int]:
    """Classes and pixels of a tile, tiles of a step, and threads of a program."""
    _, num_classes, height, width = logits.shape
    per_thread = 16 // logits.element_size()
    all_pixels, all_classes = triton.next_power_of_2(height * width), triton.next_power_of_2(num_classes)
    threads = 128
    if num_classes > 1 and logits.stride(1) == 1 and logits.stride(3) > 1:
        # Lanes along the classes are what makes accesses coalesce. Each halving of them is a step less for sums over
        # classes, which the gradient of the cross entropy has none of.
        lanes = min(all_classes, 32 if kind == "cross entropy backward" else 16 if num_classes > 32 else 4)
        pixels = threads * 4 // lanes
    elif kind.startswith("overlap"):
        # What is summed over pixels stays within a warp.
        per_pixel = num_classes * (logits.element_size() + (soft.element_size() if index is None else 0))
        cached = triton.next_power_of_2(_CACHED // per_pixel + 1) // 2
        pixels = min(32 * per_thread, max(16, cached))
        lanes = min(all_classes, threads * per_thread // pixels)
    else:
        lanes, pixels = 1, 512
        threads = min(threads, pixels // per_thread)
    pixels = min(pixels, all_pixels)
    tiles = triton.cdiv(num_classes, lanes)
    # Padding costs as much as classes do: the largest step of those with the least padding. Registers limit a step: of
    # float64, and where a sparse target is made dense on the way.
    expands = index is not None and kind != "cross entropy"
    steps = (3, 2) if expands or accumulator_type(logits, soft) is tl.float64 else (6, 5, 4)
    unroll = min(steps, key=lambda count: -tiles % count) if tiles > min(steps) else tiles
    return lanes, pixels, unroll, threads


def _launch(
    kernel: Any,
    kind: str,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    strided: dict[str, Tensor],
    others: dict[str, Any],
    platform: str,
) -> Launch:
    """What all four have in common; ``strided`` are further tensors ``(..., h, w)``, by the names of the kernel."""
    batch, num_classes, height, width = logits.shape
    tensors = [logits, soft, *([] if index is None else [index]), *strided.values()]
    flat = all(_flat_stride(tensor) is not None for tensor in tensors)

    def strides(tensor: Tensor) -> tuple[int, ...]:
        """A flat image is a single row."""
        stride = _flat_stride(tensor)
        return (*tensor.stride()[:-2], 0, stride) if flat and stride is not None else tensor.stride()

    lanes, pixels, unroll, threads = _tile(logits, soft, index, kind)
    if flat:
        height, width = 1, height * width
    unit = power_of_two_factor(width, 16)
    return Launch(
        kernel,
        (batch * triton.cdiv(height * width, pixels),),
        {
            "logits": logits,
            "logits_strides": strides(logits),
            "target": (soft, index, 0 if index is None else soft.shape[1]),
            "target_strides": (strides(soft), None if index is None else strides(index)),
            **strided,
            **{f"{name}_strides": strides(tensor) for name, tensor in strided.items()},
            **others,
            "height": height,
            "width_units": width // unit,
            "num_classes": num_classes,
            "WIDTH_UNIT": unit,
            "FLAT": flat,
            "LANES": lanes,
            "PIXELS": pixels,
            "UNROLL": unroll,
            "ACCUMULATOR": accumulator_type(logits, soft),
            "OFFSET": _offset_type(lanes, tensors),
        },
        {"num_warps": max(1, threads // (64 if platform == "hip" else 32))},
    )


def _with_stride(weight: Tensor | None) -> tuple[Tensor | None, int | None]:
    return weight, None if weight is None else weight.stride(0)


def cross_entropy_configuration(
    value: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    reduction: Reduction,
    platform: str,
) -> Launch:
    """What `cross_entropy` launches first; only shapes, strides and types matter, here and below.

    Unless the reduction is "none", argument ``partial`` holds the sums of each program, ``(1, programs, 2)``.
    """
    others = {"loss": value, "partial": None, "mass": mass, "lse": lse, "weights": _with_stride(weight)}
    launch = _launch(cross_entropy_kernel, "cross entropy", logits, soft, index, {}, others, platform)
    if reduction != "none":
        launch.arguments["loss"] = None
        launch.arguments["partial"] = memory.empty((1, launch.grid[0], 2), lse.dtype, lse.device)
    return launch


def cross_entropy_backward_configuration(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
    platform: str,
) -> Launch:
    """What `cross_entropy_backward` launches."""
    strided = {"out": out, "grad": grad}
    others = {"total": total, "weights": _with_stride(weight), "mass": mass, "lse": lse}
    kernel = cross_entropy_backward_kernel
    return _launch(kernel, "cross entropy backward", logits, soft, index, strided, others, platform)


def overlap_configuration(
    mass: Tensor, lse: Tensor, logits: Tensor, soft: Tensor, index: Tensor | None, platform: str
) -> Launch:
    """What `overlap_loss` launches first; argument ``partial`` holds the sums of each program."""
    launch = _launch(overlap_kernel, "overlap", logits, soft, index, {}, {"mass": mass, "lse": lse}, platform)
    batch, num_classes = logits.shape[:2]
    shape = (batch, launch.grid[0] // batch, num_classes * 3)
    launch.arguments["partial"] = memory.empty(shape, lse.dtype, lse.device)
    return launch


def overlap_backward_configuration(
    out: Tensor,
    grad: Tensor,
    slopes: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    mass: Tensor,
    lse: Tensor,
    platform: str,
) -> Launch:
    """What `overlap_loss_backward` launches."""

    def strides(tensor: Tensor) -> tuple[int, ...]:
        """What holds for the batch holds for each sample."""
        return (0 if len(tensor) == 1 else tensor.stride(0), *tensor.stride()[1:])

    others = {
        "grad": grad,
        "grad_strides": strides(grad),
        "slopes": slopes,
        "slopes_strides": strides(slopes),
        "mass": mass,
        "lse": lse,
    }
    kernel = overlap_backward_kernel
    return _launch(kernel, "overlap backward", logits, soft, index, {"out": out}, others, platform)


def cross_entropy(
    value: Tensor,
    total: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """The loss of logits ``(B, C, h, w)`` against a soft label, with the weighted mass and logsumexp of each pixel."""
    if validate and not masses_in_range(soft):
        return False
    platform = platform_of(logits.device)
    launch = cross_entropy_configuration(value, mass, lse, logits, soft, index, weight, reduction, platform)
    launch.run(logits.device)
    if reduction != "none":
        finish_cross_entropy(value, total, launch.arguments["partial"], reduction)
    return True


def cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """The gradient ``out (B, C, h, w)`` of the logits, given that of the pixels' losses, ``grad (B, h, w) / total``."""
    maps = mass.contiguous(), lse.contiguous()
    platform = platform_of(logits.device)
    launch = cross_entropy_backward_configuration(out, grad, total, logits, soft, index, weight, *maps, platform)
    launch.run(logits.device)


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
    """The Dice or Jaccard loss of logits ``(B, C, h, w)``, with the mass and the logsumexp of each pixel."""
    if validate and not masses_in_range(soft):
        return False
    launch = overlap_configuration(mass, lse, logits, soft, index, platform_of(logits.device))
    launch.run(logits.device)
    finish_overlap(value, slopes, launch.arguments["partial"], weight, measure, classes, reduction)
    return True


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
    """The gradient ``out (B, C, h, w)`` of the logits, given that of the values, ``grad (S, C)``."""
    platform = platform_of(logits.device)
    maps = mass.contiguous(), lse.contiguous()
    overlap_backward_configuration(out, grad, slopes, logits, soft, index, *maps, platform).run(logits.device)
