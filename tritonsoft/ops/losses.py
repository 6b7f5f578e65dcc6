"""The losses of logits against a soft label, as numbers of every pixel or class.

Each keeps for its gradient two numbers of every pixel: the mass and the logsumexp. The gradient reads the logits again
and is rounded once, with its final scale: written together with the loss it would have to be scaled later, when half
precision has already lost small numbers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonsoft.checks import (
    check_box_values,
    check_index_values,
    check_weight_values,
    raise_label_values,
    raise_soft_values,
)
from tritonsoft.conventions import Filter
from tritonsoft.memory import is_channels_last
from tritonsoft.ops._define import Call, Maps, operator


def compute_dtype(logits: Tensor) -> torch.dtype:
    """What a loss is computed and returned in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _maps(call: Call, logits: Tensor) -> Maps:
    """Three numbers of each pixel, ``(B, h, w)``."""
    shape, dtype = (logits.shape[0], *logits.shape[2:]), compute_dtype(logits)
    return call.empty(shape, dtype, logits), call.empty(shape, dtype, logits), call.empty(shape, dtype, logits)


def _gradient_of(call: Call, logits: Tensor) -> Tensor:
    return call.empty(logits.shape, logits.dtype, logits, is_channels_last(logits))


class _DifferentiatedOnce:
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
    call: Call, logits: Tensor, soft: Tensor, index: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, mass and logsumexp ``(B, h, w)``; with ``index``, ``soft`` holds the masses of those classes alone."""
    if call.validate:
        check_index_values(index, logits.shape[1])
        check_weight_values(weight)
    maps = _maps(call, logits)
    if call.computes(*maps) and not call.backend.cross_entropy(*maps, logits, soft, index, weight, call.validate):
        raise_soft_values(soft)
    return maps


@operator
def cross_entropy_backward(
    call: Call,
    grad: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, in their type and memory format."""
    out = _gradient_of(call, logits)
    if call.computes(out):
        call.backend.cross_entropy_backward(out, grad, logits, soft, index, weight, mass, lse)
    return out


@cross_entropy.gradient
class _CrossEntropyGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Maps, backend: str | None) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.backend = backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        return cross_entropy_backward(ctx.backend, None, grad, *ctx.saved_tensors)


cross_entropy_backward.gradient(_DifferentiatedOnce)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """`cross_entropy` with the soft label of a label map ``(B, H, W)``, which is never stored."""
    if call.validate:
        check_box_values(boxes)
        check_weight_values(weight)
    maps = _maps(call, logits)
    if call.computes(*maps) and not call.backend.area_cross_entropy(
        *maps, logits, labels, boxes, ignore_index, filter, weight, call.validate
    ):
        raise_label_values(labels, logits.shape[1], ignore_index)
    return maps


@operator
def area_cross_entropy_backward(
    call: Call,
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, in their type and memory format."""
    out = _gradient_of(call, logits)
    if call.computes(out):
        call.backend.area_cross_entropy_backward(
            out, grad, logits, labels, boxes, ignore_index, filter, weight, mass, lse
        )
    return out


@area_cross_entropy.gradient
class _AreaCrossEntropyGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Maps, backend: str | None) -> None:
        logits, labels, boxes, ignore_index, filter, weight = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(logits, labels, boxes, weight, *output[1:])
        ctx.ignore_index, ctx.filter, ctx.backend = ignore_index, filter, backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        logits, labels, boxes, weight, mass, lse = ctx.saved_tensors
        return area_cross_entropy_backward(
            ctx.backend, None, grad, logits, labels, boxes, ctx.ignore_index, ctx.filter, weight, mass, lse
        )


area_cross_entropy_backward.gradient(_DifferentiatedOnce)


# --- overlap ---------------------------------------------------------------------------------------------------------


@operator
def overlap(
    call: Call, logits: Tensor, soft: Tensor, index: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted mass, labelled mass and their distance ``(B, C, 3)``; mass and logsumexp ``(B, h, w)``.

    ``weight`` is for the loss that is made of them, and only looked at here.
    """
    if call.validate:
        check_index_values(index, logits.shape[1])
        check_weight_values(weight)
    _, mass, lse = _maps(call, logits)
    sums = call.empty((*logits.shape[:2], 3), lse.dtype, logits)
    if call.computes(lse) and not call.backend.overlap(sums, mass, lse, logits, soft, index, call.validate):
        raise_soft_values(soft)
    return sums, mass, lse


@operator
def overlap_backward(
    call: Call, grad: Tensor, logits: Tensor, soft: Tensor, index: Tensor | None, mass: Tensor, lse: Tensor
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, in their type and memory format."""
    out = _gradient_of(call, logits)
    if call.computes(out):
        call.backend.overlap_backward(out, grad, logits, soft, index, mass, lse)
    return out


@overlap.gradient
class _OverlapGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Maps, backend: str | None) -> None:
        logits, soft, index, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(logits, soft, index, *output[1:])
        ctx.backend = backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        return overlap_backward(ctx.backend, None, grad, *ctx.saved_tensors)


overlap_backward.gradient(_DifferentiatedOnce)
