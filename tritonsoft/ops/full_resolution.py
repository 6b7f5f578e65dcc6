"""Small logits against a full-size label map: losses, decoding and counts that never enlarge the logits in memory.

The losses keep one number of every label pixel for their gradient, the logsumexp. The gradient interpolates the logits
again and gathers, for each logit, what the label pixels around it say.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonsoft._validation import check_bias_values, check_box_values, check_weight_values, raise_label_values
from tritonsoft.geometry import Classes, Measure, Reduction
from tritonsoft.ops._define import Call, operator
from tritonsoft.ops.losses import DifferentiatedOnce, compute_dtype, empty_gradient, value_and_total


@operator
def upsampled_cross_entropy(
    call: Call,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, a number or ``(B, H, W)``; for its gradient the total weight, and the logsumexp ``(B, H, W)``."""
    if call.validate:
        check_box_values(boxes)
        check_weight_values(weight)
    value, total = value_and_total(call, logits, labels.shape, reduction)
    lse = call.empty(labels.shape, compute_dtype(logits), logits)
    if not call.computes(lse):
        return call.zero(value), call.zero(total), lse
    if not call.backend.upsampled_cross_entropy(
        value, total, lse, logits, labels, boxes, ignore_index, weight, label_smoothing, reduction, call.validate
    ):
        raise_label_values(labels, logits.shape[1], ignore_index)
    return value, total, lse


@operator
def upsampled_cross_entropy_backward(
    call: Call,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    weight: Tensor | None,
    label_smoothing: float,
    lse: Tensor,
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, in their type and memory format."""
    out = empty_gradient(call, logits)
    if call.computes(out):
        call.backend.upsampled_cross_entropy_backward(
            out, grad.expand(lse.shape), total, logits, labels, boxes, ignore_index, weight, label_smoothing, lse
        )
    return out


@upsampled_cross_entropy.gradient
class _UpsampledCrossEntropyGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor], backend: str | None) -> None:
        logits, labels, boxes, ignore_index, weight, label_smoothing, reduction = inputs
        _, total, lse = output
        ctx.mark_non_differentiable(total, lse)
        ctx.save_for_backward(total if reduction == "mean" else None, logits, labels, boxes, weight, lse)
        ctx.ignore_index, ctx.label_smoothing, ctx.backend = ignore_index, label_smoothing, backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        total, logits, labels, boxes, weight, lse = ctx.saved_tensors
        return upsampled_cross_entropy_backward(
            ctx.backend, None, grad, total, logits, labels, boxes, ctx.ignore_index, weight, ctx.label_smoothing, lse
        )


upsampled_cross_entropy_backward.gradient(DifferentiatedOnce)


@operator
def upsampled_overlap_loss(
    call: Call,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    weight: Tensor | None,
    measure: Measure,
    classes: Classes,
    per_sample: bool,
    reduction: Reduction,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, a number or ``(S, C)``; for its gradient the slopes ``(S, C, 2)`` and the logsumexp ``(B, H, W)``.

    S is the batch if ``per_sample``, else 1.
    """
    if call.validate:
        check_box_values(boxes)
        check_weight_values(weight)
    dtype = compute_dtype(logits)
    lse = call.empty(labels.shape, dtype, logits)
    shape = (logits.shape[0] if per_sample else 1, logits.shape[1])
    value = call.empty(shape if reduction == "none" else (), dtype, logits)
    slopes = call.empty((*shape, 2), dtype, logits)
    if not call.computes(lse):
        return call.zero(value), call.zero(slopes), lse
    if not call.backend.upsampled_overlap_loss(
        value, slopes, lse, logits, labels, boxes, ignore_index, weight, measure, classes, reduction, call.validate
    ):
        raise_label_values(labels, logits.shape[1], ignore_index)
    return value, slopes, lse


@operator
def upsampled_overlap_loss_backward(
    call: Call,
    grad: Tensor,
    slopes: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    lse: Tensor,
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, in their type and memory format."""
    out = empty_gradient(call, logits)
    if call.computes(out):
        call.backend.upsampled_overlap_loss_backward(
            out, grad.expand(slopes.shape[:2]), slopes, logits, labels, boxes, ignore_index, lse
        )
    return out


@upsampled_overlap_loss.gradient
class _UpsampledOverlapLossGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor], backend: str | None) -> None:
        logits, labels, boxes, ignore_index, *_ = inputs
        _, slopes, lse = output
        ctx.mark_non_differentiable(slopes, lse)
        ctx.save_for_backward(slopes, logits, labels, boxes, lse)
        ctx.ignore_index, ctx.backend = ignore_index, backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        slopes, logits, labels, boxes, lse = ctx.saved_tensors
        return upsampled_overlap_loss_backward(
            ctx.backend, None, grad, slopes, logits, labels, boxes, ctx.ignore_index, lse
        )


upsampled_overlap_loss_backward.gradient(DifferentiatedOnce)


@operator
def decode(
    call: Call,
    logits: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    bias: Tensor | None,
    scores: bool,
    ignore_index: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The class of each pixel ``(B, H, W)`` and, with ``scores``, its probability, else nothing of shape ``(0,)``."""
    if call.validate:
        check_box_values(boxes)
        check_bias_values(bias)
    shape = (logits.shape[0], *size)
    out = call.empty(shape, dtype, logits)
    score = call.empty(shape if scores else (0,), compute_dtype(logits), logits)
    if call.computes(out):
        call.backend.decode(out, score if scores else None, logits, boxes, bias, ignore_index)
    return out, score


@operator
def confusion_matrix(
    call: Call,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    bias: Tensor | None,
    ignore_index: int,
) -> Tensor:
    """How many pixels of each class (rows) were decoded as each (columns): ``(C, C)``, int64."""
    if call.validate:
        check_box_values(boxes)
        check_bias_values(bias)
    counts = call.empty((logits.shape[1], logits.shape[1]), torch.int64, logits)
    if not call.computes(labels):
        return call.zero(counts)
    if not call.backend.confusion_matrix(counts, logits, labels, boxes, bias, ignore_index, call.validate):
        raise_label_values(labels, logits.shape[1], ignore_index)
    return counts
