"""Dice and Jaccard losses of logits against a soft label, forward and backward.

Both directions take two passes over the classes of a pixel: the predicted mass needs the logsumexp first, the gradient
the mean of all slopes. A program owns so few pixels that its second pass finds in the caches what the first one read.
"""

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft import memory
from tritonsoft.backends.values import is_subdistribution
from tritonsoft.geometry import Classes, Measure, Reduction
from tritonsoft.kernels.convert import exponential
from tritonsoft.kernels.launch import Launch, launch, register_limit
from tritonsoft.kernels.softmax import (
    classes_of_tile,
    launch_of_loss,
    load_masses,
    load_step,
    next_steps_with_mass,
    online_softmax_finalize,
    online_softmax_init,
    online_softmax_join,
    online_softmax_update,
    pixels_of_tile,
    plane_offsets,
    sample_and_pixels,
    softmax_statistics,
    store_tile,
    tile_view,
    view_of_target,
)
from tritonsoft.kernels.sums import finish_overlap


@triton.jit
def _probabilities_and_slopes(
    logits_view,
    target_view,
    steps,  # `next_steps_with_mass`
    rule,  # the gradient (C,) of this sample's values, their slopes (C, 2), and the strides of both
    mass,
    lse,
    first,
    num_classes,
    inside,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """Of one step: the probabilities, and how the loss changes with the predicted mass, their product with ``mass``."""
    grad, grad_stride, slopes, slopes_strides = rule
    values = load_step(logits_view, first, num_classes, inside, float("-inf"), BLOCK_C, UNROLL, ACCUMULATOR)
    # A mass counts here by which side of it the prediction is on: that of 0 and of less is the same.
    masses = load_masses(
        target_view, (None, None), steps, first, num_classes, inside, BLOCK_C, UNROLL, ACCUMULATOR, True
    )
    probabilities = ()
    changes = ()
    for tile in tl.static_range(UNROLL):
        classes = classes_of_tile(first + tile * BLOCK_C, BLOCK_C)
        exist = classes < num_classes
        grad_here = tl.load(grad + classes.to(tl.int64) * grad_stride, mask=exist, other=0.0).to(ACCUMULATOR)
        pointers = slopes + classes.to(tl.int64) * slopes_strides[1]
        by_mass = grad_here * tl.load(pointers, mask=exist, other=0.0).to(ACCUMULATOR)
        by_l1_distance = grad_here * tl.load(pointers + slopes_strides[2], mask=exist, other=0.0).to(ACCUMULATOR)
        probability = exponential(values[tile] - lse)
        difference = mass * probability - masses[tile]
        change = tl.where(difference > 0, by_mass + by_l1_distance, by_mass - by_l1_distance)
        probabilities = probabilities + (probability,)  # noqa: RUF005
        changes = changes + (tl.where(difference == 0, by_mass, change),)  # noqa: RUF005
    return probabilities, changes


@triton.jit
def _sum_of_products(total, probabilities, changes):
    for tile in tl.static_range(len(changes)):
        total += probabilities[tile] * changes[tile]
    return total


@triton.jit
def _store_gradient(out_view, probabilities, changes, mean, mass, first, num_classes, inside, BLOCK_C: tl.constexpr):
    for tile in tl.static_range(len(changes)):
        value = mass * probabilities[tile] * (changes[tile] - mean)
        value = tl.where(mass == 0, 0.0, value)
        store_tile(out_view, first + tile * BLOCK_C, num_classes, inside, value)


@triton.jit
def _stacked(values):
    """32 tensors side by side along a new last axis."""
    for level in tl.static_range(5):
        halves = ()
        for place in tl.static_range(16 >> level):
            halves = halves + (tl.join(values[place], values[place + (16 >> level)]),)  # noqa: RUF005
        values = halves
    return tl.reshape(values[0], [values[0].shape[0], 32])


@triton.jit
def _add_sums(sums, values, masses, mass, lse):
    """The sums of one step over pixels: of the predicted mass, the mass, and their L1 distance, for each tile."""
    result = ()
    for tile in tl.static_range(len(values)):
        predicted = mass * exponential(values[tile] - lse)
        predicted = tl.where(mass == 0, 0.0, predicted)
        terms = (predicted, masses[tile], tl.abs(predicted - masses[tile]))
        for term in tl.static_range(3):
            parts = tl.reshape(terms[term], [sums[0].shape[0], sums[0].shape[1], mass.shape[1] // sums[0].shape[1]])
            result = result + (sums[3 * tile + term] + tl.sum(parts, axis=2),)  # noqa: RUF005
    return result


@triton.jit
def _store_sums(partial, sums, first, num_classes):
    """What `_add_sums` has made of one step of classes."""
    UNROLL: tl.constexpr = len(sums) // 3
    BLOCK_C: tl.constexpr = sums[0].shape[0]
    nothing = tl.zeros([BLOCK_C], sums[0].dtype)
    totals = ()
    for tile in tl.static_range(8):
        for term in tl.static_range(4):
            if tile < UNROLL and term < 3:
                totals = totals + (tl.sum(sums[3 * tile + term], axis=1),)  # noqa: RUF005
            else:
                totals = totals + (nothing,)  # noqa: RUF005
    # One exchange between threads, for all: each that a store makes on its own waits for all warps.
    place = tl.arange(0, 32)[None, :]
    classes = first + place // 4 * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    exists = (place // 4 < UNROLL) & (classes < num_classes) & (place % 4 < 3)
    pointers = partial + (tl.program_id(0).to(tl.int64) * num_classes + classes) * 3 + place % 4
    tl.store(pointers, _stacked(totals).to(partial.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["height", "width_units", "num_classes"])
def overlap_kernel(
    partial,  # (B, programs, C, 3), contiguous: sums of each program's predicted mass, mass and their L1 distance
    mass,  # (B, h, w), contiguous
    lse,  # (B, h, w), contiguous
    logits,  # (B, C, h, w)
    logits_strides,
    target,  # masses (B, C, h, w) or (B, k, h, w), their classes (B, k, h, w) or None, k
    target_strides,
    height,
    width_units,
    num_classes,
    WIDTH_UNIT: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    UNROLL: tl.constexpr,
    ONE_STEP: tl.constexpr,  # whether a step is all classes
    TILES: tl.constexpr,  # of pixels, of a program
    LANES: tl.constexpr,  # along the pixels of a tile
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    width = width_units * WIDTH_UNIT
    STEP: tl.constexpr = BLOCK_C * UNROLL
    programs = tl.cdiv(tl.cdiv(height * width, BLOCK_HW), TILES)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    zeros = ()
    for _tile in tl.static_range(3 * UNROLL):
        zeros = zeros + (tl.zeros([BLOCK_C, LANES], ACCUMULATOR),)  # noqa: RUF005 - Triton unpacks nothing here
    sums = zeros
    for nth in range(0, TILES):
        pixels = pixels_of_tile(tl.program_id(0) % programs * TILES + nth, height, width, FLAT, BLOCK_HW)
        inside = pixels[2]
        logits_view = tile_view(logits, logits_strides, sample, pixels, BLOCK_C, OFFSET)
        target_view = view_of_target(target, target_strides, sample, pixels, BLOCK_C, OFFSET)
        steps = tl.zeros([], tl.int32)
        if ONE_STEP:
            values = load_step(logits_view, 0, num_classes, inside, float("-inf"), BLOCK_C, UNROLL, ACCUMULATOR)
            steps = next_steps_with_mass(steps, target_view, 0, num_classes, inside, STEP, BLOCK_C, ACCUMULATOR)
            masses = load_masses(target_view, (None, None), steps, 0, num_classes, inside, BLOCK_C, UNROLL, ACCUMULATOR)
            state = online_softmax_init(tl.zeros([BLOCK_C, BLOCK_HW], ACCUMULATOR))
            state = online_softmax_join(online_softmax_update(state, values, masses, False))
            lse_here, mass_here, _ = online_softmax_finalize(state)
            sums = _add_sums(sums, values, masses, mass_here, lse_here)
        else:
            gathered = tile_view(logits, logits_strides, sample, pixels, 1, OFFSET)
            lse_here, mass_here, _, _ = softmax_statistics(
                logits_view,
                gathered,
                target_view,
                (None, None),
                num_classes,
                inside,
                False,
                0.0,
                BLOCK_C,
                UNROLL,
                ACCUMULATOR,
            )
            for first in range(0, num_classes, STEP):
                values = load_step(logits_view, first, num_classes, inside, None, BLOCK_C, UNROLL, ACCUMULATOR)
                steps = next_steps_with_mass(steps, target_view, first, num_classes, inside, STEP, BLOCK_C, ACCUMULATOR)
                masses = load_masses(
                    target_view, (None, None), steps, first, num_classes, inside, BLOCK_C, UNROLL, ACCUMULATOR
                )
                _store_sums(partial, _add_sums(zeros, values, masses, mass_here, lse_here), first, num_classes)
        plane = plane_offsets(sample, pixels, height, width)
        tl.store(mass + plane, mass_here.to(mass.dtype.element_ty), mask=inside)
        tl.store(lse + plane, lse_here.to(lse.dtype.element_ty), mask=inside)
    if ONE_STEP:
        _store_sums(partial, sums, 0, num_classes)


@triton.jit(do_not_specialize=["height", "width_units", "num_classes"])
def overlap_backward_kernel(
    out,  # (B, C, h, w)
    out_strides,
    grad,  # (B, C) of the values
    grad_strides,
    slopes,  # (B, C, 2): how these change with the predicted mass, and with its L1 distance from the target
    slopes_strides,
    logits,  # (B, C, h, w)
    logits_strides,
    target,  # masses (B, C, h, w) or (B, k, h, w), their classes (B, k, h, w) or None, k
    target_strides,
    mass,  # (B, h, w), contiguous
    lse,  # (B, h, w), contiguous
    height,
    width_units,
    num_classes,
    WIDTH_UNIT: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    UNROLL: tl.constexpr,
    ONE_STEP: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    width = width_units * WIDTH_UNIT
    STEP: tl.constexpr = BLOCK_C * UNROLL
    sample, pixels = sample_and_pixels(height, width, FLAT, BLOCK_HW)
    inside = pixels[2]
    out_view = tile_view(out, out_strides, sample, pixels, BLOCK_C, OFFSET)
    logits_view = tile_view(logits, logits_strides, sample, pixels, BLOCK_C, OFFSET)
    target_view = view_of_target(target, target_strides, sample, pixels, BLOCK_C, OFFSET)
    plane = plane_offsets(sample, pixels, height, width)
    mass_here = tl.load(mass + plane, mask=inside, other=0.0).to(ACCUMULATOR)
    lse_here = tl.load(lse + plane, mask=inside, other=0.0).to(ACCUMULATOR)
    rule = (grad + sample * grad_strides[0], grad_strides[1], slopes + sample * slopes_strides[0], slopes_strides)
    steps = tl.zeros([], tl.int32)
    total = tl.zeros([BLOCK_C, BLOCK_HW], ACCUMULATOR)
    if ONE_STEP:
        steps = next_steps_with_mass(steps, target_view, 0, num_classes, inside, STEP, BLOCK_C, ACCUMULATOR)
        probabilities, changes = _probabilities_and_slopes(
            logits_view,
            target_view,
            steps,
            rule,
            mass_here,
            lse_here,
            0,
            num_classes,
            inside,
            BLOCK_C,
            UNROLL,
            ACCUMULATOR,
        )
        mean = tl.sum(_sum_of_products(total, probabilities, changes), axis=0, keep_dims=True)
        _store_gradient(out_view, probabilities, changes, mean, mass_here, 0, num_classes, inside, BLOCK_C)
    else:
        for pass_ in tl.static_range(2):
            for first in range(0, num_classes, STEP):
                steps = next_steps_with_mass(steps, target_view, first, num_classes, inside, STEP, BLOCK_C, ACCUMULATOR)
                probabilities, changes = _probabilities_and_slopes(
                    logits_view,
                    target_view,
                    steps,
                    rule,
                    mass_here,
                    lse_here,
                    first,
                    num_classes,
                    inside,
                    BLOCK_C,
                    UNROLL,
                    ACCUMULATOR,
                )
                if pass_ == 0:
                    total = _sum_of_products(total, probabilities, changes)
                else:
                    _store_gradient(
                        out_view, probabilities, changes, total, mass_here, first, num_classes, inside, BLOCK_C
                    )
            if pass_ == 0:
                total = tl.sum(total, axis=0, keep_dims=True)


# --- launch ----------------------------------------------------------------------------------------------------------

_MIN_WARPS = 16384  # what keeps an H100 busy for some rounds


def _power_of_two_at_most(number: int, limit: int) -> int:
    return 1 << (max(min(number, limit), 1).bit_length() - 1)


def overlap_configuration(
    mass: Tensor, lse: Tensor, logits: Tensor, soft: Tensor, index: Tensor | None, platform: str
) -> Launch:
    """What `overlap_loss` launches first; scratch tensor ``partial`` holds the sums of each program."""
    planned = launch_of_loss(overlap_kernel, "overlap", logits, soft, index, {}, {"mass": mass, "lse": lse}, platform)
    planned = _with_one_step(planned, platform)
    batch, num_classes = logits.shape[:2]
    arguments, tiles, warps = planned.arguments, planned.grid[0] // batch, planned.options["num_warps"]
    is_walk = arguments["ONE_STEP"] and logits.stride(3) == 1
    # The more tiles a program has the fewer sums are left to add, and the fewer programs there are.
    per_program = _power_of_two_at_most(batch * tiles * warps // _MIN_WARPS, 4) if is_walk else 1
    programs = triton.cdiv(tiles, per_program)
    arguments |= {
        "partial": memory.empty((batch, programs, num_classes * 3), lse.dtype, lse.device),
        "TILES": per_program,
        "LANES": max(arguments["BLOCK_HW"] * logits.element_size() // 8, 1) if is_walk else 1,
    }
    options = planned.options
    if platform == "cuda" and is_walk and index is None and arguments["ACCUMULATOR"] is tl.float32:
        # Left to itself, the compiler takes 122: it loads the next tile early, for two thirds of the warps.
        options = {**options, "maxnreg": 80 if arguments["UNROLL"] < 6 and logits.element_size() < 4 else 96}
    return planned._replace(grid=(batch * programs,), arguments=arguments, options=options, scratch=("partial",))


def _with_one_step(planned: Launch, platform: str) -> Launch:
    """With what says whether the tiles of one step are all classes."""
    arguments = planned.arguments
    one_step = arguments["BLOCK_C"] * arguments["UNROLL"] >= arguments["num_classes"]
    # Around loops the compiler would rather spill than take more than 128 registers.
    limit = {} if one_step else register_limit(platform, arguments["ACCUMULATOR"])
    return planned._replace(arguments={**arguments, "ONE_STEP": one_step}, options={**planned.options, **limit})


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
    planned = launch_of_loss(kernel, "overlap backward", logits, soft, index, {"out": out}, others, platform)
    return _with_one_step(planned, platform)


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
    if validate and not is_subdistribution(soft):
        return False
    (partial,) = launch(overlap_configuration, logits.device, mass, lse, logits, soft, index)
    finish_overlap(value, slopes, partial, weight, measure, classes, reduction)
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
    inputs = (out, grad, slopes, logits, soft, index, mass.contiguous(), lse.contiguous())
    launch(overlap_backward_configuration, logits.device, *inputs)
