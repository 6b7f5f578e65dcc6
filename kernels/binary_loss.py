"""Cross-entropy of each class for itself, forward and backward: one pass over logits and masses each.

The tiles are those of `softmax`, but nothing joins the classes of a pixel.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends.values import are_binary_masses
from tritonsoft.geometry import Reduction
from tritonsoft.kernels.convert import exponential, upcast
from tritonsoft.kernels.launch import Launch, launch
from tritonsoft.kernels.softmax import (
    class_weight,
    classes_of_tile,
    launch_of_loss,
    load_step,
    load_tile,
    not_negative,
    sample_and_pixels,
    store_tile,
    tile_view,
    with_stride,
)
from tritonsoft.kernels.sums import divided_by, finish_cross_entropy, store_sums, sums_instead_of_losses


@triton.jit
def _log1p(value):
    """``log(1 + value)`` of numbers from 0 to 1, with all its digits however small they are."""
    if value.dtype == tl.float64:
        # What 1 + x loses of x, the quotient gives back (Kahan).
        total = 1 + value
        lost = tl.where(total == 1, 1.0, total - 1)
        return tl.where(total == 1, value, tl.log(total) * (value / lost))
    else:
        # ln(1 + x) = 2 artanh(s) with s = x / (2 + x) up to 1/3: s times a polynomial of its square, good to 1e-8.
        ratio = value / (2 + value)
        square = ratio * ratio
        series = (0.2816145420 * square + 0.2796434462) * square + 0.4002465010
        return ratio * ((series * square + 0.6666632295) * square + 2.0)


@triton.jit
def _views(
    logits,
    logits_strides,
    target,
    target_strides,
    known,
    known_strides,
    sample,
    pixels,
    BLOCK_C: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """`softmax.tile_view` of logits and masses, and of the known masses where they are not 1."""
    views = (
        tile_view(logits, logits_strides, sample, pixels, BLOCK_C, OFFSET),
        tile_view(target[0], target_strides[0], sample, pixels, BLOCK_C, OFFSET),
    )
    if known is not None:
        views = views + (tile_view(known, known_strides, sample, pixels, BLOCK_C, OFFSET),)  # noqa: RUF005
    return views


@triton.jit
def _load_views(
    views, first, num_classes, inside, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr, ACCUMULATOR: tl.constexpr
):
    """`softmax.load_step` of each view: UNROLL tiles of logits, of masses, and of known masses or ()."""
    limits = ()
    if len(views) > 2:
        limits = load_step(views[2], first, num_classes, inside, 0.0, BLOCK_C, UNROLL, ACCUMULATOR)
    return (
        load_step(views[0], first, num_classes, inside, 0.0, BLOCK_C, UNROLL, ACCUMULATOR),
        load_step(views[1], first, num_classes, inside, 0.0, BLOCK_C, UNROLL, ACCUMULATOR),
        limits,
    )


@triton.jit
def _weighted_masses(
    mass,  # of a tile, the first class of which is `first`
    known,  # of the same, or None for 1
    weights,
    pos_weights,
    first,
    num_classes,
    inside,
    ACCUMULATOR: tl.constexpr,
):
    """Of a tile the weighted mass that is of each class, that which is not, and that of both as `weights` have it."""
    classes = classes_of_tile(first, mass.shape[0])
    exist = classes < num_classes
    limit = tl.where(inside & exist, 1.0, 0.0).to(ACCUMULATOR) if known is None else not_negative(known)
    present = tl.minimum(not_negative(mass), limit, propagate_nan=tl.PropagateNan.ALL)
    weight = class_weight(weights, classes, exist, ACCUMULATOR)
    absent = weight * (limit - present)
    of_present = weight
    if pos_weights[0] is not None:
        of_present *= class_weight(pos_weights, classes, exist, ACCUMULATOR)
    return of_present * present, absent, weight * limit


@triton.jit(do_not_specialize=["height", "width_units", "num_classes"])
def binary_cross_entropy_kernel(
    loss,  # (B, C, h, w), or None
    loss_strides,
    partial,  # (programs, 2), contiguous, or None: sums of each program's losses and known masses
    logits,  # (B, C, h, w)
    logits_strides,
    target,  # masses (B, C, h, w), and two that are for other kernels
    target_strides,
    known,  # (B, C, h, w), or None for 1
    known_strides,
    weights,  # (C,) or None, and their stride
    pos_weights,  # the same
    height,
    width_units,
    num_classes,
    WIDTH_UNIT: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    width = width_units * WIDTH_UNIT  # written as a product, for wide accesses: see `forward`
    sample, pixels = sample_and_pixels(height, width, FLAT, BLOCK_HW)
    inside = pixels[2]
    views = _views(
        logits, logits_strides, target, target_strides, known, known_strides, sample, pixels, BLOCK_C, OFFSET
    )
    losses = tl.zeros([BLOCK_C, BLOCK_HW], ACCUMULATOR)
    known_masses = losses
    for first in range(0, num_classes, BLOCK_C * UNROLL):
        values, masses, limits = _load_views(views, first, num_classes, inside, BLOCK_C, UNROLL, ACCUMULATOR)
        for tile in tl.static_range(UNROLL):
            here = first + tile * BLOCK_C
            limit = limits[tile] if len(limits) > 0 else None
            present, absent, mass = _weighted_masses(
                masses[tile], limit, weights, pos_weights, here, num_classes, inside, ACCUMULATOR
            )
            logit = values[tile]
            # log(1 + e^z) is max(z, 0) + log(1 + e^-|z|).
            rest = _log1p(exponential(-tl.abs(logit)))
            loss_here = tl.where(present == 0, 0.0, present * (tl.maximum(-logit, 0.0) + rest))
            loss_here += tl.where(absent == 0, 0.0, absent * (tl.maximum(logit, 0.0) + rest))
            if partial is None:
                loss_view = tile_view(loss, loss_strides, sample, pixels, BLOCK_C, OFFSET)
                store_tile(loss_view, here, num_classes, inside, loss_here)
            else:
                losses += loss_here
                known_masses += mass
    if partial is not None:
        store_sums(partial, losses, known_masses)


@triton.jit(do_not_specialize=["height", "width_units", "num_classes"])
def binary_cross_entropy_backward_kernel(
    out,  # (B, C, h, w)
    out_strides,
    grad,  # (B, C, h, w), or a number, where there are no strides
    grad_strides,
    total,  # a number by which it is divided (0 counts as 1), or None
    logits,  # (B, C, h, w)
    logits_strides,
    target,  # as above
    target_strides,
    known,  # (B, C, h, w), or None for 1
    known_strides,
    weights,  # (C,) or None, and their stride
    pos_weights,  # the same
    height,
    width_units,
    num_classes,
    WIDTH_UNIT: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    width = width_units * WIDTH_UNIT
    sample, pixels = sample_and_pixels(height, width, FLAT, BLOCK_HW)
    inside = pixels[2]
    out_view = tile_view(out, out_strides, sample, pixels, BLOCK_C, OFFSET)
    views = _views(
        logits, logits_strides, target, target_strides, known, known_strides, sample, pixels, BLOCK_C, OFFSET
    )
    of_all = 0.0
    if grad_strides is None:
        of_all = divided_by(upcast(tl.load(grad), ACCUMULATOR), total)
    for first in range(0, num_classes, BLOCK_C * UNROLL):
        values, masses, limits = _load_views(views, first, num_classes, inside, BLOCK_C, UNROLL, ACCUMULATOR)
        for tile in tl.static_range(UNROLL):
            here = first + tile * BLOCK_C
            limit = limits[tile] if len(limits) > 0 else None
            present, absent, _ = _weighted_masses(
                masses[tile], limit, weights, pos_weights, here, num_classes, inside, ACCUMULATOR
            )
            upstream = of_all
            if grad_strides is not None:
                grad_view = tile_view(grad, grad_strides, sample, pixels, BLOCK_C, OFFSET)
                upstream = divided_by(load_tile(grad_view, here, num_classes, inside, 0.0, ACCUMULATOR), total)
            small = exponential(-tl.abs(values[tile]))
            larger = 1 / (1 + small)
            smaller = small * larger
            value = absent * tl.where(values[tile] > 0, larger, smaller)
            value -= present * tl.where(values[tile] > 0, smaller, larger)
            value = tl.where(present + absent == 0, 0.0, upstream * value)
            store_tile(out_view, here, num_classes, inside, value)


# --- launch ----------------------------------------------------------------------------------------------------------


def _arguments(
    known: Tensor | None, weight: Tensor | None, pos_weight: Tensor | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What both kernels take beside logits and target: tensors of their shape, and others."""
    strided = {} if known is None else {"known": known}
    others = {"weights": with_stride(weight), "pos_weights": with_stride(pos_weight)}
    return strided, others if strided else {**others, "known": None, "known_strides": None}


def binary_cross_entropy_configuration(
    value: Tensor,
    logits: Tensor,
    soft: Tensor,
    known: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: Reduction,
    platform: str,
) -> Launch:
    """What `binary_cross_entropy` launches first; only shapes, strides and types matter, here and below.

    Unless the reduction is "none", scratch tensor ``partial`` holds the sums of each program, ``(1, programs, 2)``.
    """
    strided, others = _arguments(known, weight, pos_weight)
    if reduction == "none":
        strided["loss"] = value
    else:
        others |= {"loss": None, "loss_strides": None}
    others["partial"] = None
    kernel, kind = binary_cross_entropy_kernel, "binary cross entropy"
    result = launch_of_loss(kernel, kind, logits, soft, None, strided, others, platform)
    return result if reduction == "none" else sums_instead_of_losses(result, value)


def binary_cross_entropy_backward_configuration(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    soft: Tensor,
    known: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    platform: str,
) -> Launch:
    """What `binary_cross_entropy_backward` launches."""
    strided, others = _arguments(known, weight, pos_weight)
    strided["out"] = out
    if any(grad.stride()):
        strided["grad"] = grad
    else:
        others |= {"grad": grad, "grad_strides": None}
    others["total"] = total
    kernel, kind = binary_cross_entropy_backward_kernel, "binary cross entropy backward"
    return launch_of_loss(kernel, kind, logits, soft, None, strided, others, platform)


def binary_cross_entropy(
    value: Tensor,
    total: Tensor,
    logits: Tensor,
    soft: Tensor,
    known: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """The loss of logits ``(B, C, h, w)``, of which each is a class for itself."""
    if validate and not are_binary_masses(soft, known):
        return False
    inputs = (value, logits, soft, known, weight, pos_weight, reduction)
    scratch = launch(binary_cross_entropy_configuration, logits.device, *inputs)
    if reduction != "none":
        finish_cross_entropy(value, total, scratch[0], reduction)
    return True


def binary_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    soft: Tensor,
    known: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
) -> None:
    """The gradient ``out (B, C, h, w)`` of the logits, given that of the losses, ``grad (B, C, h, w) / total``."""
    inputs = (out, grad, total, logits, soft, known, weight, pos_weight)
    launch(binary_cross_entropy_backward_configuration, logits.device, *inputs)
