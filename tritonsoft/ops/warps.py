"""Warps: images and label maps under a matrix or a field, and the cross-entropy against a label map under one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonsoft._validation import (
    check_transform_values,
    check_weight_values,
    raise_label_values,
    raise_plane_values,
)
from tritonsoft.geometry import Filter, Reduction
from tritonsoft.memory import is_channels_last
from tritonsoft.ops._define import Call, operator
from tritonsoft.ops.labels import empty_top
from tritonsoft.ops.losses import DifferentiatedOnce, empty_gradient, maps_of_smoothed_pixels, value_and_total

# --- images ----------------------------------------------------------------------------------------------------------


@operator
def warp(
    call: Call,
    image: Tensor,
    transform: Tensor,
    size: Sequence[int],
    filter: Filter,
    fill: float,
    dtype: torch.dtype,
) -> Tensor:
    """Image ``(B, K, H, W)`` -> ``(B, K, h, w)``, in the image's memory format."""
    if call.validate:
        check_transform_values(transform)
    out = call.empty((*image.shape[:2], *size), dtype, image, is_channels_last(image))
    if call.computes(out):
        call.backend.warp(out, image, transform, filter, fill)
    return out


@operator
def warp_adjoint(
    call: Call, grad: Tensor, transform: Tensor, size: Sequence[int], filter: Filter, dtype: torch.dtype
) -> Tensor:
    """The transpose of `warp`: ``(B, K, h, w)`` -> ``(B, K, H, W)`` with ``size = (H, W)``."""
    out = call.empty((*grad.shape[:2], *size), dtype, grad, is_channels_last(grad))
    if call.computes(out):
        call.backend.warp_adjoint(out, grad, transform, filter)
    return out


@warp.gradient
class _WarpGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Tensor, backend: str | None) -> None:
        image, transform, size, filter, _, dtype = inputs
        _remember(ctx, image, transform, size, filter, dtype, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _backwards(ctx, grad, ctx.source, ctx.source_dtype)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _forwards(ctx, tangent, ctx.size, ctx.dtype)


@warp_adjoint.gradient
class _WarpAdjointGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Tensor, backend: str | None) -> None:
        grad, transform, size, filter, dtype = inputs
        _remember(ctx, grad, transform, size, filter, dtype, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _forwards(ctx, grad, ctx.source, ctx.source_dtype)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _backwards(ctx, tangent, ctx.size, ctx.dtype)


def _remember(
    ctx: Any,
    source: Tensor,
    transform: Tensor,
    size: Sequence[int],
    filter: Filter,
    dtype: torch.dtype,
    backend: str | None,
) -> None:
    ctx.save_for_backward(transform)
    ctx.save_for_forward(transform)
    ctx.source, ctx.source_dtype = source.shape[2:], source.dtype
    ctx.size, ctx.dtype, ctx.filter, ctx.backend = size, dtype, filter, backend


def _backwards(ctx: Any, grad: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    (transform,) = ctx.saved_tensors
    return warp_adjoint(ctx.backend, None, grad, transform, size, ctx.filter, dtype)


def _forwards(ctx: Any, image: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The linear part of the map: without what lies outside of the image."""
    (transform,) = ctx.saved_tensors
    return warp(ctx.backend, None, image, transform, size, ctx.filter, 0.0, dtype)


# --- label maps ------------------------------------------------------------------------------------------------------


@operator
def soft_warp(
    call: Call,
    labels: Tensor,
    transform: Tensor,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    dtype: torch.dtype,
) -> Tensor:
    """Label map ``(B, H, W)`` -> soft label ``(B, C, h, w)``, contiguous."""
    if call.validate:
        check_transform_values(transform)
    out = call.empty((labels.shape[0], num_classes, *size), dtype, labels)
    if call.computes(out) and not call.backend.soft_warp(out, labels, transform, ignore_index, filter, call.validate):
        raise_label_values(labels, num_classes, ignore_index)
    return out


@operator
def warp_planes(
    call: Call,
    planes: Tensor,
    transform: Tensor,
    size: Sequence[int],
    ignore_index: int,
    filter: Filter,
    dtype: torch.dtype,
) -> Tensor:
    """Planes ``(B, C, H, W)`` of 0 and 1 -> the masses of both ``(B, C, 2, h, w)``, by a transform for each sample."""
    if call.validate:
        check_transform_values(transform)
    out = call.empty((*planes.shape[:2], 2, *size), dtype, planes)
    of_each = transform.repeat_interleave(planes.shape[1], 0)
    if call.computes(out) and not call.backend.soft_warp(
        out.flatten(0, 1), planes.flatten(0, 1), of_each, ignore_index, filter, call.validate
    ):
        raise_plane_values(planes, ignore_index)
    return out


@operator
def soft_warp_top(
    call: Call,
    labels: Tensor,
    transform: Tensor,
    size: Sequence[int],
    num_classes: int,
    top_k: int,
    ignore_index: int,
    filter: Filter,
    index_dtype: torch.dtype,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Label map ``(B, H, W)`` -> the k largest classes, their masses ``(B, k, h, w)``, and the rest ``(B, h, w)``."""
    if call.validate:
        check_transform_values(transform)
    index, mass, rest = empty_top(call, labels, top_k, size, index_dtype, dtype)
    if call.computes(rest) and not call.backend.soft_warp_top(
        index, mass, rest, labels, transform, num_classes, ignore_index, filter, call.validate
    ):
        raise_label_values(labels, num_classes, ignore_index)
    return index, mass, rest


@operator
def warp_top_ids(
    call: Call,
    labels: Tensor,
    transform: Tensor,
    size: Sequence[int],
    top_k: int,
    ignore_index: int | None,
    filter: Filter,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """`top_ids` under a transform."""
    if call.validate:
        check_transform_values(transform)
    index, mass, rest = empty_top(call, labels, top_k, size, labels.dtype, dtype)
    if call.computes(rest):
        call.backend.warp_top_ids(index, mass, rest, labels, transform, ignore_index, filter)
    return index, mass, rest


@operator
def warp_pair(
    call: Call,
    image: Tensor,
    labels: Tensor,
    transform: Tensor,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    fill: float,
    dtype: torch.dtype,
    soft_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """`warp` and `soft_warp` with the same transform: one launch on a GPU."""
    if call.validate:
        check_transform_values(transform)
    out = call.empty((*image.shape[:2], *size), dtype, image, is_channels_last(image))
    soft = call.empty((labels.shape[0], num_classes, *size), soft_dtype, labels)
    if not call.computes(soft):
        return out, soft
    if not call.computes(out):  # an image without channels
        in_range = call.backend.soft_warp(soft, labels, transform, ignore_index, filter, call.validate)
    else:
        in_range = call.backend.warp_pair(
            out, soft, image, labels, transform, ignore_index, filter, fill, call.validate
        )
    if not in_range:
        raise_label_values(labels, num_classes, ignore_index)
    return out, soft


@warp_pair.gradient
class _WarpPairGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor], backend: str | None) -> None:
        image, _, transform, size, _, _, filter, _, dtype, _ = inputs
        _remember(ctx, image, transform, size, filter, dtype, backend)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> Tensor:
        return _backwards(ctx, grad, ctx.source, ctx.source_dtype)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None]:
        return _forwards(ctx, tangent, ctx.size, ctx.dtype), None


# --- cross-entropy ---------------------------------------------------------------------------------------------------


@operator
def warp_cross_entropy(
    call: Call,
    logits: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`area_cross_entropy` with a transform in the place of boxes."""
    if call.validate:
        check_transform_values(transform)
        check_weight_values(weight)
    mass, lse = maps_of_smoothed_pixels(call, logits, weight, label_smoothing)
    value, total = value_and_total(call, logits, lse.shape, reduction)
    if not call.computes(lse):
        return call.zero(value), call.zero(total), mass, lse
    if not call.backend.warp_cross_entropy(
        value,
        total,
        mass,
        lse,
        logits,
        labels,
        transform,
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
def warp_cross_entropy_backward(
    call: Call,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    transform: Tensor,
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
        call.backend.warp_cross_entropy_backward(
            out,
            grad.expand(lse.shape),
            total,
            logits,
            labels,
            transform,
            ignore_index,
            filter,
            weight,
            label_smoothing,
            mass,
            lse,
        )
    return out


@warp_cross_entropy.gradient
class _WarpCrossEntropyGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor], backend: str | None) -> None:
        logits, labels, transform, ignore_index, filter, weight, label_smoothing, reduction = inputs
        _, total, mass, lse = output
        ctx.mark_non_differentiable(total, mass, lse)
        ctx.save_for_backward(total if reduction == "mean" else None, logits, labels, transform, weight, mass, lse)
        ctx.ignore_index, ctx.filter, ctx.label_smoothing = ignore_index, filter, label_smoothing
        ctx.backend = backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        total, logits, labels, transform, weight, mass, lse = ctx.saved_tensors
        return warp_cross_entropy_backward(
            ctx.backend,
            None,
            grad,
            total,
            logits,
            labels,
            transform,
            ctx.ignore_index,
            ctx.filter,
            weight,
            ctx.label_smoothing,
            mass,
            lse,
        )


warp_cross_entropy_backward.gradient(DifferentiatedOnce)
