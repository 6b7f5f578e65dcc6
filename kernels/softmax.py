"""What the losses of logits against a soft label share: tiles, targets, and the softmax statistics of each pixel.

A program owns BLOCK_HW pixels of one sample and loops over their classes, UNROLL tiles of BLOCK_C classes at a time.
Where a plane of logits is contiguous, a thread has pixels of its own and reads all their classes, or every BLOCK_C-th.
In channels_last the neighbours in memory are classes: a tile lies along them, and the threads that share a pixel
combine what they found at the end.

The logsumexp is computed online (Milakov and Gimelshein, arXiv 1805.02867), relative to the largest logit so far: one
pass, and all that is summed is positive, which avoids cancellation whatever the size of the logits.

The target is a dense soft label, or a sparse one: a few masses of each pixel with their classes.
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.kernels.convert import downcast, exponential, upcast
from tritonsoft.kernels.launch import Launch, accumulator_type, power_of_two_factor

# --- tiles -----------------------------------------------------------------------------------------------------------
#
# `pixels`: rows, columns and which of them exist, each (1, BLOCK_HW).
# `view`:   what a program sees of a tensor (B, C, h, w): where its sample starts, the stride of the classes, and the
#           offsets of a tile (BLOCK_C, BLOCK_HW) from its first class.
# `weights`: of the classes, (C,), and their stride; or two times None.
# `target`: of a dense one the view alone; of a sparse one the views of masses and classes, and how many a pixel has.


@triton.jit
def pixels_of_tile(tile, height, width, FLAT: tl.constexpr, BLOCK_HW: tl.constexpr):
    """Those of the tile-th BLOCK_HW of a sample."""
    pixel = (tile * BLOCK_HW + tl.arange(0, BLOCK_HW))[None, :]
    inside = pixel < height * width
    row = pixel * 0 if FLAT else pixel // width
    column = pixel if FLAT else pixel % width
    return row, column, inside


@triton.jit
def sample_and_pixels(height, width, FLAT: tl.constexpr, BLOCK_HW: tl.constexpr):
    """Of a program that owns one tile."""
    tiles = tl.cdiv(height * width, BLOCK_HW)
    pixels = pixels_of_tile(tl.program_id(0) % tiles, height, width, FLAT, BLOCK_HW)
    return (tl.program_id(0) // tiles).to(tl.int64), pixels


@triton.jit
def tile_view(tensor, strides, sample, pixels, BLOCK_C: tl.constexpr, OFFSET: tl.constexpr):
    classes = tl.arange(0, BLOCK_C)[:, None].to(OFFSET)
    offsets = classes * strides[1] + (pixels[0].to(OFFSET) * strides[2] + pixels[1].to(OFFSET) * strides[3])
    return tensor + sample * strides[0], strides[1], offsets


@triton.jit
def view_of_target(target, strides, sample, pixels, BLOCK_C: tl.constexpr, OFFSET: tl.constexpr):
    """The target that `launch_of_loss` made arguments of."""
    soft, index, num_entries = target
    if index is None:
        result = (tile_view(soft, strides[0], sample, pixels, BLOCK_C, OFFSET),)
    else:
        masses = tile_view(soft, strides[0], sample, pixels, 1, OFFSET)
        result = (masses, tile_view(index, strides[1], sample, pixels, 1, OFFSET), num_entries)
    return result


@triton.jit
def load_pixels(tensor, strides, sample, pixels, ACCUMULATOR: tl.constexpr, OFFSET: tl.constexpr):
    """Of a tensor ``(B, h, w)``, (1, BLOCK_HW); 0 where there is no pixel."""
    offsets = pixels[0].to(OFFSET) * strides[1] + pixels[1].to(OFFSET) * strides[2]
    return upcast(tl.load(tensor + sample * strides[0] + offsets, mask=pixels[2], other=0.0), ACCUMULATOR)


@triton.jit
def plane_offsets(sample, pixels, height, width):
    """Offsets of the pixels in a contiguous tensor ``(B, h, w)``."""
    return (sample * height + pixels[0]) * width + pixels[1]


@triton.jit
def classes_of_tile(first, BLOCK_C: tl.constexpr):
    """The classes of a tile, (BLOCK_C, 1)."""
    return first + tl.arange(0, BLOCK_C)[:, None]


@triton.jit
def load_tile(view, first, num_classes, inside, other, ACCUMULATOR: tl.constexpr):
    """The tile whose first class is ``first``."""
    start, stride, offsets = view
    BLOCK_C: tl.constexpr = offsets.shape[0]
    mask = inside & (classes_of_tile(first, BLOCK_C) < num_classes)
    pointers = start + tl.cast(first, tl.int64) * stride + offsets
    return upcast(tl.load(pointers, mask=mask, other=other), ACCUMULATOR)


@triton.jit
def load_step(
    view, first, num_classes, inside, other, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr, ACCUMULATOR: tl.constexpr
):
    """UNROLL tiles, the first of which begins with class ``first``."""
    tiles = ()
    for tile in tl.static_range(UNROLL):
        value = load_tile(view, first + tile * BLOCK_C, num_classes, inside, other, ACCUMULATOR)
        tiles = tiles + (value,)  # noqa: RUF005 - Triton unpacks nothing here
    return tiles


@triton.jit
def store_tile(view, first, num_classes, inside, value):
    start, stride, offsets = view
    BLOCK_C: tl.constexpr = offsets.shape[0]
    mask = inside & (classes_of_tile(first, BLOCK_C) < num_classes)
    pointers = start + tl.cast(first, tl.int64) * stride + offsets
    tl.store(pointers, downcast(value, start.dtype.element_ty), mask=mask)


# --- targets ---------------------------------------------------------------------------------------------------------


@triton.jit
def not_negative(mass):
    """A mass below 0 has been rounded, and is none; NaN stays."""
    return tl.maximum(mass, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _sparse_entry(target, place, num_classes, inside, BLOCK_C: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """One entry of a sparse target, for every class of a tile: its class and mass; none where it does not exist."""
    # Loaded for every class of a tile: no exchange is needed, and all loads but one hit a cache.
    masses, index, _ = target
    inside = tl.broadcast_to(inside, [BLOCK_C, inside.shape[1]])
    mass_offsets = tl.broadcast_to(masses[2], inside.shape)
    index_offsets = tl.broadcast_to(index[2], inside.shape)
    place = tl.cast(place, tl.int64)
    class_index = tl.load(index[0] + place * index[1] + index_offsets, mask=inside, other=0).to(tl.int32)
    mass = upcast(tl.load(masses[0] + place * masses[1] + mass_offsets, mask=inside, other=0.0), ACCUMULATOR)
    exists = (class_index >= 0) & (class_index < num_classes)
    return tl.where(exists, class_index, 0), tl.where(exists, not_negative(mass), 0.0)


@triton.jit
def _bitwise_or(first, second):
    return first | second


@triton.jit
def class_weight(weights, classes, exists, ACCUMULATOR: tl.constexpr):
    """The weights of classes, 0 of those that do not exist."""
    if weights[0] is None:
        return tl.where(exists, 1.0, 0.0).to(ACCUMULATOR)
    else:
        pointers = weights[0] + classes.to(tl.int64) * weights[1]
        return tl.load(pointers, mask=exists, other=0.0).to(ACCUMULATOR)


@triton.jit
def sum_of_weights(weights, num_classes, ACCUMULATOR: tl.constexpr):
    """Of all classes."""
    if weights[0] is None:
        return num_classes.to(ACCUMULATOR)
    else:
        total = tl.zeros([32], ACCUMULATOR)
        for first in range(0, num_classes, 32):
            classes = first + tl.arange(0, 32)
            total += class_weight(weights, classes, classes < num_classes, ACCUMULATOR)
        return tl.sum(total, axis=0)


@triton.jit
def _steps_with_mass(
    target, first, num_classes, inside, STEP: tl.constexpr, BLOCK_C: tl.constexpr, ACCUMULATOR: tl.constexpr
):
    """Of a sparse target: the bits of those of the 32 steps from class ``first`` in which any pixel has mass."""
    steps = tl.zeros([BLOCK_C, inside.shape[1]], tl.int32)
    for place in range(0, target[2]):
        class_index, mass = _sparse_entry(target, place, num_classes, inside, BLOCK_C, ACCUMULATOR)
        step = (class_index - first) // STEP
        near = (mass != 0) & (class_index >= first) & (step < 32)
        steps |= tl.where(near, 1 << (step & 31), 0)
    return tl.reduce(tl.reduce(steps, 1, _bitwise_or), 0, _bitwise_or)


@triton.jit
def next_steps_with_mass(
    steps, target, first, num_classes, inside, STEP: tl.constexpr, BLOCK_C: tl.constexpr, ACCUMULATOR: tl.constexpr
):
    """``steps``, or those that begin with class ``first`` where it is the first of 32."""
    if len(target) > 1:  # noqa: SIM102 - the outer one is decided when it is compiled
        if first // STEP % 32 == 0:
            steps = _steps_with_mass(target, first, num_classes, inside, STEP, BLOCK_C, ACCUMULATOR)
    return steps


@triton.jit
def weighted_masses(masses, weights, first, num_classes, BLOCK_C: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """The masses of a step, each times the weight of its class."""
    weighted = ()
    for tile in tl.static_range(len(masses)):
        classes = classes_of_tile(first + tile * BLOCK_C, BLOCK_C)
        weight = class_weight(weights, classes, classes < num_classes, ACCUMULATOR)
        weighted = weighted + (masses[tile] * weight,)  # noqa: RUF005
    return weighted


@triton.jit
def load_masses(
    target,
    weights,  # `launch_of_loss` made arguments of them
    steps,  # a sparse target: `_steps_with_mass` around this step
    first,
    num_classes,
    inside,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    SIGNED: tl.constexpr = False,  # whether masses of a dense target may stay below 0
):
    """The weighted masses of one step: UNROLL tiles, the first of which begins with class ``first``."""
    masses = ()
    if len(target) == 1:
        values = load_step(target[0], first, num_classes, inside, 0.0, BLOCK_C, UNROLL, ACCUMULATOR)
        for tile in tl.static_range(UNROLL):
            masses = masses + (values[tile] if SIGNED else not_negative(values[tile]),)  # noqa: RUF005
    else:
        nothing = tl.zeros([BLOCK_C, inside.shape[1]], ACCUMULATOR)
        for _ in tl.static_range(UNROLL):
            masses = masses + (nothing,)  # noqa: RUF005 - Triton unpacks nothing here
        if (steps >> (first // (BLOCK_C * UNROLL) % 32)) & 1:
            # What the entries of a sparse target are is read again, from a cache: registers would not hold them.
            for place in range(0, target[2]):
                class_index, mass = _sparse_entry(target, place, num_classes, inside, BLOCK_C, ACCUMULATOR)
                sums = ()
                for tile in tl.static_range(UNROLL):
                    here = class_index == classes_of_tile(first + tile * BLOCK_C, BLOCK_C)
                    sums = sums + (masses[tile] + tl.where(here, mass, 0.0),)  # noqa: RUF005
                masses = sums
    if weights[0] is not None:
        masses = weighted_masses(masses, weights, first, num_classes, BLOCK_C, ACCUMULATOR)
    return masses


# --- the first pass --------------------------------------------------------------------------------------------------


@triton.jit
def _lowest(DTYPE: tl.constexpr):
    return -1.7976931348623157e308 if tl.float64 == DTYPE else -3.4028234663852886e38


@triton.jit
def _max_delta(before, after):
    """``before - after``, never positive and always finite: times a mass of 0 it is 0."""
    return tl.maximum(before - after, _lowest(before.dtype))


@triton.jit
def online_softmax_init(zeros):
    """Of each pixel: largest logit so far, sum of exponentials relative to it, mass, and cross-entropy less its rest.

    The loss so far is relative to the largest logit so far: where that rises by x, the loss rises by the mass times x.
    """
    # That the largest starts as a finite number keeps logits of -infinity from becoming infinity less infinity.
    return zeros + _lowest(zeros.dtype), zeros, zeros, zeros


@triton.jit
def online_softmax_update(state, values, masses, WITH_LOSS: tl.constexpr):
    """The state after one step: its logits and, of a dense target, its masses."""
    max_logit, sum_exp, mass, loss = state
    new_max = max_logit
    for tile in tl.static_range(len(values)):
        new_max = tl.maximum(new_max, values[tile])
    max_delta = _max_delta(max_logit, new_max)
    sum_exp *= exponential(max_delta)
    if WITH_LOSS:
        loss -= mass * max_delta
    for tile in tl.static_range(len(values)):
        below = values[tile] - new_max
        sum_exp += exponential(below)
        if len(masses) > 0:
            mass += masses[tile]
            if WITH_LOSS:  # a logit without mass may be infinite
                loss = tl.where(masses[tile] == 0, loss, loss - masses[tile] * below)
    return new_max, sum_exp, mass, loss


@triton.jit
def online_softmax_join(state):
    """Of the states of a pixel's BLOCK_C parts one, (1, BLOCK_HW)."""
    max_logit, sum_exp, mass, loss = state
    if max_logit.shape[0] > 1:
        max_of_all = tl.max(max_logit, axis=0, keep_dims=True)
        max_delta = _max_delta(max_logit, max_of_all)
        max_logit = max_of_all
        sum_exp = tl.sum(sum_exp * exponential(max_delta), axis=0, keep_dims=True)
        loss = tl.sum(loss - mass * max_delta, axis=0, keep_dims=True)
        mass = tl.sum(mass, axis=0, keep_dims=True)
    return max_logit, sum_exp, mass, loss


@triton.jit
def online_softmax_finalize(state):
    """The logsumexp, the mass and the cross-entropy."""
    max_logit, sum_exp, mass, loss = state
    log_sum = tl.log(sum_exp)
    return max_logit + log_sum, mass, tl.where(mass == 0, 0.0, loss + mass * log_sum)


# What smoothing adds to a loss is a share of the loss of *uniform* labels, which have a mass of 1 in every class. It is
# relative to the largest logit so far as well:
#
# `uniform`: of each pixel, the weighted sum of how far its logits so far lie below the largest of them; and the sum of
#            the weights of their classes.


@triton.jit
def uniform_loss_update(uniform, old_max, new_max, values, class_weights):
    """``uniform`` after one step: its logits, and the weights of their classes, 0 of those that do not exist."""
    below, weight_so_far = uniform
    below -= weight_so_far * _max_delta(old_max, new_max)
    for tile in tl.static_range(len(values)):
        weight = class_weights[tile]
        # A class of weight 0 may have an infinite logit.
        below = tl.where(weight == 0, below, below - weight * (values[tile] - new_max))
        weight_so_far += weight
    return below, weight_so_far


@triton.jit
def uniform_loss_join(uniform, max_logit):
    """As `online_softmax_join`, of a state whose first entry is ``max_logit``."""
    below, weight_sum = uniform
    if max_logit.shape[0] > 1:
        max_delta = _max_delta(max_logit, tl.max(max_logit, axis=0, keep_dims=True))
        below = tl.sum(below - weight_sum * max_delta, axis=0, keep_dims=True)
        weight_sum = tl.sum(weight_sum, axis=0, keep_dims=True)
    return below, weight_sum


@triton.jit
def uniform_loss_finalize(uniform, sum_exp):
    """The cross-entropy of uniform labels; 0 where no class has a weight."""
    below, weight_sum = uniform
    return tl.where(weight_sum == 0, 0.0, below + weight_sum * tl.log(sum_exp))


@triton.jit
def smoothed_loss(loss, known, uniform_loss, num_classes, LABEL_SMOOTHING: tl.constexpr):
    """The loss of a smoothed label, of that of the label itself and that of uniform labels; ``known`` is its mass."""
    share = known * (LABEL_SMOOTHING / num_classes.to(known.dtype))
    result = tl.where(known == 0, 0.0, share * uniform_loss)
    return result + (1 - LABEL_SMOOTHING) * loss if LABEL_SMOOTHING < 1 else result


@triton.jit
def smoothed_mass(mass, known, weights, num_classes, LABEL_SMOOTHING: tl.constexpr):
    """The weighted mass of a smoothed label, of that of the label itself and its mass without weights."""
    all_weights = sum_of_weights(weights, num_classes, mass.dtype)
    return (1 - LABEL_SMOOTHING) * mass + known * (all_weights * (LABEL_SMOOTHING / num_classes.to(mass.dtype)))


@triton.jit
def class_weights_of_step(
    weights, first, num_classes, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr, DTYPE: tl.constexpr
):
    """The weights of the classes of UNROLL tiles, each (BLOCK_C, 1); 0 of those that do not exist."""
    class_weights = ()
    for tile in tl.static_range(UNROLL):
        classes = classes_of_tile(first + tile * BLOCK_C, BLOCK_C)
        class_weights = class_weights + (class_weight(weights, classes, classes < num_classes, DTYPE),)  # noqa: RUF005
    return class_weights


@triton.jit
def softmax_statistics(
    logits,  # view
    gathered,  # sparse target: view of the logits with BLOCK_C 1
    target,
    weights,
    num_classes,
    inside,
    WITH_LOSS: tl.constexpr,  # whether the third result is wanted
    LABEL_SMOOTHING: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """The logsumexp, weighted mass and smoothed cross-entropy of each pixel, (1, BLOCK_HW), by an online softmax.

    And the mass without the weights, where there are weights and smoothing.
    """
    SMOOTHED: tl.constexpr = LABEL_SMOOTHING > 0
    BOTH: tl.constexpr = SMOOTHED and weights[0] is not None
    zeros = tl.zeros([BLOCK_C, inside.shape[1]], ACCUMULATOR)
    state = online_softmax_init(zeros)
    uniform = (zeros, tl.zeros([BLOCK_C, 1], ACCUMULATOR))
    known = zeros
    for first in range(0, num_classes, BLOCK_C * UNROLL):
        values = load_step(logits, first, num_classes, inside, float("-inf"), BLOCK_C, UNROLL, ACCUMULATOR)
        masses = ()
        if len(target) == 1:
            if BOTH:
                masses = load_masses(
                    target, (None, None), None, first, num_classes, inside, BLOCK_C, UNROLL, ACCUMULATOR
                )
                for tile in tl.static_range(UNROLL):
                    known += masses[tile]
                masses = weighted_masses(masses, weights, first, num_classes, BLOCK_C, ACCUMULATOR)
            else:
                masses = load_masses(target, weights, None, first, num_classes, inside, BLOCK_C, UNROLL, ACCUMULATOR)
        old_max = state[0]
        state = online_softmax_update(state, values, masses, WITH_LOSS)
        if SMOOTHED:
            class_weights = class_weights_of_step(weights, first, num_classes, BLOCK_C, UNROLL, ACCUMULATOR)
            uniform = uniform_loss_update(uniform, old_max, state[0], values, class_weights)
    if SMOOTHED:
        uniform = uniform_loss_join(uniform, state[0])
    if BOTH and BLOCK_C > 1:
        known = tl.sum(known, axis=0, keep_dims=True)
    max_logit, sum_exp, mass, loss = online_softmax_join(state)
    if len(target) > 1:
        start, stride, offsets = gathered
        for place in range(0, target[2]):
            class_index, part = _sparse_entry(target, place, num_classes, inside, 1, ACCUMULATOR)
            if BOTH:
                known += part
            if weights[0] is not None:
                part *= class_weight(weights, class_index, inside, ACCUMULATOR)
            mass += part
            if WITH_LOSS:
                pointers = start + (class_index.to(tl.int64) * stride + offsets)
                logit = upcast(tl.load(pointers, mask=part != 0, other=0.0), ACCUMULATOR)
                loss += tl.where(part == 0, 0.0, part * (max_logit - logit))
    lse, mass, loss = online_softmax_finalize((max_logit, sum_exp, mass, loss))
    if SMOOTHED:
        uniform_loss = uniform_loss_finalize(uniform, sum_exp)
        loss = smoothed_loss(loss, known if BOTH else mass, uniform_loss, num_classes, LABEL_SMOOTHING)
    return lse, mass, loss, known


# --- launch ----------------------------------------------------------------------------------------------------------


_INT32_LIMIT = 2**31
_ELEMENTWISE = ("cross entropy backward", "binary cross entropy", "binary cross entropy backward")


def _flat_stride(tensor: Tensor) -> int | None:
    """The stride of pixels counted through all rows, if there is one."""
    height, width = tensor.shape[-2:]
    stride_y, stride_x = tensor.stride()[-2:]
    if width == 1:
        return stride_y
    return stride_x if height == 1 or stride_y == width * stride_x else None


def _offset_type(block_c: int, tensors: Sequence[Tensor]) -> Any:
    """The integer that holds every offset inside a plane, or across the classes of a tile."""
    for tensor in tensors:
        (height, width), strides = tensor.shape[-2:], tensor.stride()
        last = (height - 1) * strides[-2] + (width - 1) * strides[-1] + (block_c - 1) * strides[-3]
        if last >= _INT32_LIMIT:
            return tl.int64
    return tl.int32


def _tile(logits: Tensor, soft: Tensor, index: Tensor | None, kind: str, lanes: int) -> tuple[int, int, int, int]:
    """Classes and pixels of a tile, tiles of a step, and warps of a program."""
    _, num_classes, height, width = logits.shape
    per_thread = 16 // logits.element_size()
    all_pixels, all_classes = triton.next_power_of_2(height * width), triton.next_power_of_2(num_classes)
    # Padding costs as much as classes do: of the steps with the least padding, the largest. Registers limit a step
    # of float64, and one where a sparse target is made dense on the way.
    expands = index is not None and kind != "cross entropy"
    steps = (3, 2) if expands or accumulator_type(logits, soft) is tl.float64 else (6, 5, 4)
    if kind.startswith("binary"):  # which reads a third tensor
        steps = (min(steps[0], 4), 3, 2)
    warps = 128 // lanes
    if num_classes > 1 and logits.stride(1) == 1 and logits.stride(3) > 1:
        # Lanes along the classes are what makes accesses coalesce. Each halving of them is a step less for sums over
        # the classes of a pixel, which elementwise kernels have none of.
        block_c = min(all_classes, 32 if kind in _ELEMENTWISE else 16 if num_classes > 32 else 4)
        block_hw = 128 * 4 // block_c
    elif kind.startswith("overlap"):
        # The fewest warps whose registers hold all classes of the pixels; what is summed over pixels stays within one.
        # Eight lanes read a row of 128 bytes, or else four one of 64. The forward pass waits more than it computes:
        # half the pixels leave registers for twice the warps.
        per_thread = per_thread if kind == "overlap backward" else max(per_thread // 2, 1)
        for row_lanes, warps in ((8, 1), (8, 2), (8, 4), (8, 8), (4, 8)):
            block_c = min(all_classes, lanes // row_lanes * warps)
            if block_c * steps[0] >= num_classes:
                break
        block_hw = lanes * warps * per_thread // block_c
    else:
        block_c, block_hw = 1, 512
        warps = min(warps, block_hw // per_thread // lanes)
    block_hw = min(block_hw, all_pixels)
    tiles = triton.cdiv(num_classes, block_c)
    unroll = min(steps, key=lambda count: -tiles % count) if tiles > min(steps) else tiles
    return block_c, block_hw, unroll, max(warps, 1)


def launch_of_loss(
    kernel: Any,
    kind: str,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    strided: dict[str, Tensor],
    others: dict[str, Any],
    platform: str,
) -> Launch:
    """What all have in common; ``strided`` are further tensors ``(..., h, w)``, by the names of the kernel."""
    batch, num_classes, height, width = logits.shape
    tensors = [logits, soft, *([] if index is None else [index]), *strided.values()]
    flat = all(_flat_stride(tensor) is not None for tensor in tensors)

    def strides(tensor: Tensor) -> tuple[int, ...]:
        """A flat image is a single row."""
        stride = _flat_stride(tensor)
        return (*tensor.stride()[:-2], 0, stride) if flat and stride is not None else tensor.stride()

    block_c, block_hw, unroll, warps = _tile(logits, soft, index, kind, 64 if platform == "hip" else 32)
    if flat:
        height, width = 1, height * width
    unit = power_of_two_factor(width, 16)
    return Launch(
        kernel,
        (batch * triton.cdiv(height * width, block_hw),),
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
            "BLOCK_C": block_c,
            "BLOCK_HW": block_hw,
            "UNROLL": unroll,
            "ACCUMULATOR": accumulator_type(logits, soft),
            "OFFSET": _offset_type(block_c, tensors),
        },
        {"num_warps": warps},
    )


def mass_and_known(mass: Tensor) -> tuple[Tensor, Tensor | None]:
    """The two maps of `tritonsoft.ops.losses.maps_of_smoothed_pixels`, of which the second may not be there."""
    return (mass[0], mass[1]) if mass.ndim == 4 else (mass, None)


def with_stride(weight: Tensor | None) -> tuple[Tensor | None, int | None]:
    return weight, None if weight is None else weight.stride(0)
