"""The losses of logits against a soft label, reduced.

Each keeps for its gradient two numbers of every pixel: the mass and the logsumexp. The gradient reads the logits again
and is rounded once, with its final scale: written together with the loss it would have to be scaled later, when half
precision has already lost small numbers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonsoft._validation import (
    check_box_values,
    check_index_values,
    check_weight_values,
    raise_binary_values,
    raise_label_values,
    raise_soft_values,
)
from tritonsoft.geometry import Classes, Filter, Measure, Reduction
from tritonsoft.memory import is_channels_last
from tritonsoft.ops._define import Call, operator


def compute_dtype(logits: Tensor) -> torch.dtype:
    """What a loss is computed and returned in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def maps_of_pixels(call: Call, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers of each pixel, ``(B, h, w)``: the mass and the logsumexp."""
    shape, dtype = (logits.shape[0], *logits.shape[2:]), compute_dtype(logits)
    return call.empty(shape, dtype, logits), call.empty(shape, dtype, logits)


def maps_of_smoothed_pixels(
    call: Call, logits: Tensor, weight: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The weighted mass of each pixel's smoothed target, and the logsumexp.

    Where there is a weight too, the mass is ``(2, B, h, w)``: then the mass that is known, without the weights.
    """
    shape, dtype = (logits.shape[0], *logits.shape[2:]), compute_dtype(logits)
    has_both = label_smoothing > 0 and weight is not None
    return call.empty((2, *shape) if has_both else shape, dtype, logits), call.empty(shape, dtype, logits)


def value_and_total(call: Call, logits: Tensor, shape: Sequence[int], reduction: Reduction) -> tuple[Tensor, Tensor]:
    """The loss, of each pixel of a map of this shape or reduced, and what "mean" divides it by."""
    dtype, none = compute_dtype(logits), reduction == "none"
    return call.empty(shape if none else (), dtype, logits), call.empty((0,) if none else (), dtype, logits)


def empty_gradient(call: Call, logits: Tensor) -> Tensor:
    """Where a gradient of the logits goes: their type and memory format."""
    return call.empty(logits.shape, logits.dtype, logits, is_channels_last(logits))


class DifferentiatedOnce:
    """The gradient of a gradient that has none."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Tensor, backend: str | None) -> None:
        """Nothing is needed for an error."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("the losses of tritonsoft can be differentiated once: their gradient has no gradient")


# --- cross-entropy of a soft label -----------------------------------------------------------------------------------


@operator
def cross_entropy(
    call: Call,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss; for its gradient the total mass, and mass and logsumexp ``(B, h, w)``.

    With ``index``, ``soft`` holds the masses of those classes alone.
    """
    if call.validate:
        check_index_values(index, logits.shape[1])
        check_weight_values(weight)
    mass, lse = maps_of_smoothed_pixels(call, logits, weight, label_smoothing)
    value, total = value_and_total(call, logits, lse.shape, reduction)
    if not call.computes(lse):
        return call.zero(value), call.zero(total), mass, lse
    if not call.backend.cross_entropy(
        value, total, mass, lse, logits, soft, index, weight, label_smoothing, reduction, call.validate
    ):
        raise_soft_values(soft)
    return value, total, mass, lse


@operator
def cross_entropy_backward(
    call: Call,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    mass: Tensor,
    lse: Tensor,
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, in their type and memory format."""
    out = empty_gradient(call, logits)
    if call.computes(out):
        call.backend.cross_entropy_backward(
            out, grad.expand(lse.shape), total, logits, soft, index, weight, label_smoothing, mass, lse
        )
    return out


@cross_entropy.gradient
class _CrossEntropyGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor], backend: str | None) -> None:
        logits, soft, index, weight, label_smoothing, reduction = inputs
        _, total, mass, lse = output
        ctx.mark_non_differentiable(total, mass, lse)
        ctx.save_for_backward(total if reduction == "mean" else None, logits, soft, index, weight, mass, lse)
        ctx.label_smoothing, ctx.backend = label_smoothing, backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        total, logits, soft, index, weight, mass, lse = ctx.saved_tensors
        return cross_entropy_backward(
            ctx.backend, None, grad, total, logits, soft, index, weight, ctx.label_smoothing, mass, lse
        )


cross_entropy_backward.gradient(DifferentiatedOnce)


# --- cross-entropy of a label map ------------------------------------------------------------------------------------


@operator
def area_cross_entropy(
    call: Call,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`cross_entropy` with the soft label of a label map ``(B, H, W)``, which is never stored."""
    if call.validate:
        check_box_values(boxes)
        check_weight_values(weight)
    mass, lse = maps_of_smoothed_pixels(call, logits, weight, label_smoothing)
    value, total = value_and_total(call, logits, lse.shape, reduction)
    if not call.computes(lse):
        return call.zero(value), call.zero(total), mass, lse
    if not call.backend.area_cross_entropy(
        value,
        total,
        mass,
        lse,
        logits,
        labels,
        boxes,
        ignore_index,
        filter,
        weight,
        label_smoothing,
        reduction,
        call.validate,
    ):
        raise_label_values(labels, logits.shape[1], ignore_index)
    return value, total, mass, lse


@operator
def area_cross_entropy_backward(
    call: Call,
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
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, in their type and memory format."""
    out = empty_gradient(call, logits)
    if call.computes(out):
        call.backend.area_cross_entropy_backward(
            out,
            grad.expand(lse.shape),
            total,
            logits,
            labels,
            boxes,
            ignore_index,
            filter,
            weight,
            label_smoothing,
            mass,
            lse,
        )
    return out


@area_cross_entropy.gradient
class _AreaCrossEntropyGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor], backend: str | None) -> None:
        logits, labels, boxes, ignore_index, filter, weight, label_smoothing, reduction = inputs
        _, total, mass, lse = output
        ctx.mark_non_differentiable(total, mass, lse)
        ctx.save_for_backward(total if reduction == "mean" else None, logits, labels, boxes, weight, mass, lse)
        ctx.ignore_index, ctx.filter, ctx.label_smoothing = ignore_index, filter, label_smoothing
        ctx.backend = backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        total, logits, labels, boxes, weight, mass, lse = ctx.saved_tensors
        return area_cross_entropy_backward(
            ctx.backend,
            None,
            grad,
            total,
            logits,
            labels,
            boxes,
            ctx.ignore_index,
            ctx.filter,
            weight,
            ctx.label_smoothing,
            mass,
            lse,
        )


area_cross_entropy_backward.gradient(DifferentiatedOnce)


# --- binary cross-entropy of soft planes -----------------------------------------------------------------------------


@operator
def binary_cross_entropy(
    call: Call,
    logits: Tensor,
    soft: Tensor,
    known: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: Reduction,
) -> tuple[Tensor, Tensor]:
    """The loss, of each pixel and class ``(B, C, h, w)`` or reduced; for its gradient the total mass."""
    if call.validate:
        check_weight_values(weight)
        check_weight_values(pos_weight, "pos_weight")
    value, total = value_and_total(call, logits, logits.shape, reduction)
    if not call.computes(logits):
        return call.zero(value), call.zero(total)
    if not call.backend.binary_cross_entropy(
        value, total, logits, soft, known, weight, pos_weight, reduction, call.validate
    ):
        raise_binary_values(soft, known)
    return value, total


@operator
def binary_cross_entropy_backward(
    call: Call,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    soft: Tensor,
    known: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, in their type and memory format."""
    out = empty_gradient(call, logits)
    if call.computes(out):
        call.backend.binary_cross_entropy_backward(
            out, grad.expand(logits.shape), total, logits, soft, known, weight, pos_weight
        )
    return out


@binary_cross_entropy.gradient
class _BinaryCrossEntropyGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor], backend: str | None) -> None:
        *tensors, reduction = inputs
        total = output[1]
        ctx.mark_non_differentiable(total)
        ctx.save_for_backward(total if reduction == "mean" else None, *tensors)
        ctx.backend = backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        return binary_cross_entropy_backward(ctx.backend, None, grad, *ctx.saved_tensors)


binary_cross_entropy_backward.gradient(DifferentiatedOnce)


# --- Dice and Jaccard ------------------------------------------------------------------------------------------------


@operator
def overlap_loss(
    call: Call,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    measure: Measure,
    classes: Classes,
    per_sample: bool,
    reduction: Reduction,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, a number or ``(S, C)``; for its gradient the slopes ``(S, C, 2)``, mass and logsumexp ``(B, h, w)``.

    S is the batch if ``per_sample``, else 1.
    """
    if call.validate:
        check_index_values(index, logits.shape[1])
        check_weight_values(weight)
    mass, lse = maps_of_pixels(call, logits)
    shape = (logits.shape[0] if per_sample else 1, logits.shape[1])
    value = call.empty(shape if reduction == "none" else (), lse.dtype, logits)
    slopes = call.empty((*shape, 2), lse.dtype, logits)
    if not call.computes(lse):
        return call.zero(value), call.zero(slopes), mass, lse
    if not call.backend.overlap_loss(
        value, slopes, mass, lse, logits, soft, index, weight, measure, classes, reduction, call.validate
    ):
        raise_soft_values(soft)
    return value, slopes, mass, lse


@operator
def overlap_loss_backward(
    call: Call,
    grad: Tensor,
    slopes: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, in their type and memory format."""
    out = empty_gradient(call, logits)
    if call.computes(out):
        call.backend.overlap_loss_backward(out, grad.expand(slopes.shape[:2]), slopes, logits, soft, index, mass, lse)
    return out


@overlap_loss.gradient
class _OverlapLossGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor], backend: str | None) -> None:
        logits, soft, index, *_ = inputs
        _, slopes, mass, lse = output
        ctx.mark_non_differentiable(slopes, mass, lse)
        ctx.save_for_backward(slopes, logits, soft, index, mass, lse)
        ctx.backend = backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        return overlap_loss_backward(ctx.backend, None, grad, *ctx.saved_tensors)


overlap_loss_backward.gradient(DifferentiatedOnce)
