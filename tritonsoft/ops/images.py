"""Images: `crop_resize` and its transpose, which are each other's gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonsoft._validation import check_box_values
from tritonsoft.geometry import Filter
from tritonsoft.memory import is_channels_last
from tritonsoft.ops._define import Call, operator


@operator
def crop_resize(
    call: Call,
    image: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    filter: Filter,
    fill: float,
    dtype: torch.dtype,
) -> Tensor:
    """Image ``(B, K, H, W)`` -> ``(B, K, h, w)``, in the image's memory format."""
    if call.validate:
        check_box_values(boxes)
    out = call.empty((*image.shape[:2], *size), dtype, image, is_channels_last(image))
    if call.computes(out):
        call.backend.crop_resize(out, image, boxes, filter, fill)
    return out


@operator
def crop_resize_adjoint(
    call: Call, grad: Tensor, boxes: Tensor | None, size: Sequence[int], filter: Filter, dtype: torch.dtype
) -> Tensor:
    """The transpose of `crop_resize`: ``(B, K, h, w)`` -> ``(B, K, H, W)`` with ``size = (H, W)``."""
    out = call.empty((*grad.shape[:2], *size), dtype, grad, is_channels_last(grad))
    if call.computes(out):
        call.backend.crop_resize_adjoint(out, grad, boxes, filter)
    return out


@crop_resize.gradient
class _CropResizeGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Tensor, backend: str | None) -> None:
        image, boxes, size, filter, _, dtype = inputs
        remember_geometry(ctx, image, boxes, size, filter, dtype, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return image_gradient(ctx, grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return image_tangent(ctx, tangent)


@crop_resize_adjoint.gradient
class _AdjointGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Tensor, backend: str | None) -> None:
        grad, boxes, size, filter, dtype = inputs
        remember_geometry(ctx, grad, boxes, size, filter, dtype, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _forwards(ctx, grad, ctx.source, ctx.source_dtype)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _backwards(ctx, tangent, ctx.size, ctx.dtype)


def remember_geometry(
    ctx: Any,
    source: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    filter: Filter,
    dtype: torch.dtype,
    backend: str | None,
) -> None:
    """Saves what the map of a source image is made of, for `image_gradient` and `image_tangent`."""
    ctx.save_for_backward(boxes)
    ctx.save_for_forward(boxes)
    ctx.source, ctx.source_dtype = source.shape[2:], source.dtype
    ctx.size, ctx.dtype, ctx.filter, ctx.backend = size, dtype, filter, backend


def image_gradient(ctx: Any, grad: Tensor) -> Tensor:
    """The gradient of the source image."""
    return _backwards(ctx, grad, ctx.source, ctx.source_dtype)


def image_tangent(ctx: Any, tangent: Tensor) -> Tensor:
    """The tangent of the result."""
    return _forwards(ctx, tangent, ctx.size, ctx.dtype)


def _backwards(ctx: Any, grad: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    (boxes,) = ctx.saved_tensors
    return crop_resize_adjoint(ctx.backend, None, grad, boxes, size, ctx.filter, dtype)


def _forwards(ctx: Any, image: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The linear part of the map: without what lies outside of the image."""
    (boxes,) = ctx.saved_tensors
    return crop_resize(ctx.backend, None, image, boxes, size, ctx.filter, 0.0, dtype)
