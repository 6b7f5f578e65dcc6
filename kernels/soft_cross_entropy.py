"""Cross-entropy of logits against a soft label, forward and backward: one pass over the classes each (`softmax`)."""

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends.values import is_subdistribution
from tritonsoft.geometry import Reduction
from tritonsoft.kernels.convert import exponential
from tritonsoft.kernels.launch import Launch, launch
from tritonsoft.kernels.softmax import (
    class_weight,
    classes_of_tile,
    launch_of_loss,
    load_masses,
    load_pixels,
    load_step,
    mass_and_known,
    next_steps_with_mass,
    plane_offsets,
    sample_and_pixels,
    smoothed_mass,
    softmax_statistics,
    store_tile,
    tile_view,
    view_of_target,
    with_stride,
)
from tritonsoft.kernels.sums import divided_by, finish_cross_entropy, store_sums, sums_instead_of_losses


@triton.jit(do_not_specialize=["height", "width_units", "num_classes"])
def cross_entropy_kernel(
    loss,  # (B, h, w), contiguous, or None
    partial,  # (programs, 2), contiguous, or None: sums of each program's losses and masses
    mass,  # (B, h, w), contiguous
    known,  # the same, where there are weights and smoothing: the mass without the weights
    lse,  # (B, h, w), contiguous
    logits,  # (B, C, h, w)
    logits_strides,
    target,  # masses (B, C, h, w) or (B, k, h, w), their classes (B, k, h, w) or None, k
    target_strides,
    weights,  # (C,) or None, and their stride
    height,
    width_units,
    num_classes,
    LABEL_SMOOTHING: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,  # the integer that holds an offset inside one plane, or across the classes of a tile
):
    width = width_units * WIDTH_UNIT  # written as a product, for wide accesses: see `forward`
    sample, pixels = sample_and_pixels(height, width, FLAT, BLOCK_HW)
    inside = pixels[2]
    lse_here, mass_here, loss_here, known_here = softmax_statistics(
        tile_view(logits, logits_strides, sample, pixels, BLOCK_C, OFFSET),
        tile_view(logits, logits_strides, sample, pixels, 1, OFFSET),
        view_of_target(target, target_strides, sample, pixels, BLOCK_C, OFFSET),
        weights,
        num_classes,
        inside,
        True,
        LABEL_SMOOTHING,
        BLOCK_C,
        UNROLL,
        ACCUMULATOR,
    )
    plane = plane_offsets(sample, pixels, height, width)
    if partial is None:
        tl.store(loss + plane, loss_here.to(loss.dtype.element_ty), mask=inside)
    else:
        store_sums(partial, loss_here, mass_here)
    if known is not None:
        mass_here = smoothed_mass(mass_here, known_here, weights, num_classes, LABEL_SMOOTHING)
        tl.store(known + plane, known_here.to(known.dtype.element_ty), mask=inside)
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
    known,  # the same, where there are weights and smoothing: the mass without the weights
    lse,  # (B, h, w), contiguous
    height,
    width_units,
    num_classes,
    LABEL_SMOOTHING: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    UNROLL: tl.constexpr,
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
    grad_loss = divided_by(load_pixels(grad, grad_strides, sample, pixels, ACCUMULATOR, OFFSET), total)
    SMOOTHED: tl.constexpr = LABEL_SMOOTHING > 0
    known_here = mass_here
    if known is not None:
        known_here = tl.load(known + plane, mask=inside, other=0.0).to(ACCUMULATOR)
    uniform = known_here * (LABEL_SMOOTHING / num_classes.to(ACCUMULATOR))  # what each class has of the mass
    steps = tl.zeros([], tl.int32)
    for first in range(0, num_classes, STEP):
        values = load_step(logits_view, first, num_classes, inside, None, BLOCK_C, UNROLL, ACCUMULATOR)
        steps = next_steps_with_mass(steps, target_view, first, num_classes, inside, STEP, BLOCK_C, ACCUMULATOR)
        masses = load_masses(target_view, weights, steps, first, num_classes, inside, BLOCK_C, UNROLL, ACCUMULATOR)
        for tile in tl.static_range(UNROLL):
            labelled = masses[tile]
            if SMOOTHED:
                classes = classes_of_tile(first + tile * BLOCK_C, BLOCK_C)
                weight = class_weight(weights, classes, classes < num_classes, ACCUMULATOR)
                labelled = (1 - LABEL_SMOOTHING) * labelled + weight * uniform
            value = grad_loss * mass_here * exponential(values[tile] - lse_here) - grad_loss * labelled
            value = tl.where(mass_here == 0, 0.0, value)
            store_tile(out_view, first + tile * BLOCK_C, num_classes, inside, value)


# --- launch ----------------------------------------------------------------------------------------------------------


def cross_entropy_configuration(
    value: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    known: Tensor | None,
    reduction: Reduction,
    platform: str,
) -> Launch:
    """What `cross_entropy` launches first; only shapes, strides and types matter, here and below.

    Unless the reduction is "none", scratch tensor ``partial`` holds the sums of each program, ``(1, programs, 2)``.
    """
    others = {
        "loss": value,
        "partial": None,
        "mass": mass,
        "known": known,
        "lse": lse,
        "weights": with_stride(weight),
        "LABEL_SMOOTHING": label_smoothing,
    }
    result = launch_of_loss(cross_entropy_kernel, "cross entropy", logits, soft, index, {}, others, platform)
    return result if reduction == "none" else sums_instead_of_losses(result, lse)


def cross_entropy_backward_configuration(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    mass: Tensor,
    known: Tensor | None,
    lse: Tensor,
    platform: str,
) -> Launch:
    """What `cross_entropy_backward` launches."""
    strided = {"out": out, "grad": grad}
    others = {
        "total": total,
        "weights": with_stride(weight),
        "mass": mass,
        "known": known,
        "lse": lse,
        "LABEL_SMOOTHING": label_smoothing,
    }
    kernel = cross_entropy_backward_kernel
    return launch_of_loss(kernel, "cross entropy backward", logits, soft, index, strided, others, platform)


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
    """The loss of logits ``(B, C, h, w)`` against a soft label, with the weighted mass and logsumexp of each pixel."""
    if validate and not is_subdistribution(soft):
        return False
    mass, known = mass_and_known(mass)
    inputs = (value, mass, lse, logits, soft, index, weight, label_smoothing, known, reduction)
    scratch = launch(cross_entropy_configuration, logits.device, *inputs)
    if reduction != "none":
        finish_cross_entropy(value, total, scratch[0], reduction)
    return True


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
    """The gradient ``out (B, C, h, w)`` of the logits, given that of the pixels' losses, ``grad (B, h, w) / total``."""
    maps = (*mass_and_known(mass.contiguous()), lse.contiguous())
    inputs = (out, grad, total, logits, soft, index, weight, label_smoothing, *maps)
    launch(cross_entropy_backward_configuration, logits.device, *inputs)
