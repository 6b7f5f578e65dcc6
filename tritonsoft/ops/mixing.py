"""Samples of a batch that are mixed with each other: pixels of a partner that are pasted, and shares of all of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonsoft._validation import check_partner_values, check_share_values, raise_label_values
from tritonsoft.backends import reference
from tritonsoft.memory import is_channels_last
from tritonsoft.ops._define import Call, operator


@operator
def paste(
    call: Call, images: Tensor, partners: Tensor, boxes: Tensor | None, labels: Tensor | None, chosen: Tensor | None
) -> Tensor:
    """Images ``(B, K, H, W)`` with pixels of their partners: in boxes, or of chosen classes (`Backend.paste`)."""
    if call.validate:
        check_partner_values(partners)
    out = call.empty(images.shape, images.dtype, images, is_channels_last(images))
    if call.computes(out):
        boxes, chosen = (None if tensor is None else tensor.contiguous() for tensor in (boxes, chosen))
        call.backend.paste(out, images, partners.contiguous(), boxes, labels, chosen)
    return out


@paste.gradient
class _PasteGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Tensor, backend: str | None) -> None:
        images, *where = inputs
        ctx.save_for_backward(*where)
        ctx.save_for_forward(*where)
        ctx.size, ctx.backend = images.shape[2:], backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        partners, *where = ctx.saved_tensors
        partners = reference.samples_of(partners)
        pasted = reference.pasted_pixels(partners, ctx.size, *where)[:, None]
        return torch.where(pasted, 0, grad).index_add(0, partners, torch.where(pasted, grad, 0))

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return paste(ctx.backend, None, tangent, *ctx.saved_tensors)


@operator
def blend(call: Call, images: Tensor, partners: Tensor, weight: Tensor) -> Tensor:
    """Floating images ``(B, K, H, W)`` and their partners, these by a weight ``(B,)`` (`Backend.blend`)."""
    if call.validate:
        check_partner_values(partners)
        check_share_values(weight)
    out = call.empty(images.shape, images.dtype, images, is_channels_last(images))
    if call.computes(out):
        call.backend.blend(out, images, partners.contiguous(), weight.contiguous())
    return out


@blend.gradient
class _BlendGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Tensor, backend: str | None) -> None:
        _, *shares = inputs
        ctx.save_for_backward(*shares)
        ctx.save_for_forward(*shares)
        ctx.backend = backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        partners, weight = ctx.saved_tensors
        partners = reference.samples_of(partners)
        share: Tensor = weight.to(grad.dtype)[:, None, None, None]
        return ((1 - share) * grad).index_add(0, partners, share * grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return blend(ctx.backend, None, tangent, *ctx.saved_tensors)


@operator
def blend_labels(
    call: Call,
    labels: Tensor,
    partners: Tensor,
    weight: Tensor,
    num_classes: int,
    ignore_index: int,
    dtype: torch.dtype,
) -> Tensor:
    """Label maps ``(B, H, W)`` -> `blend` of their one-hot masses ``(B, C, H, W)``, contiguous."""
    if call.validate:
        check_partner_values(partners)
        check_share_values(weight)
    out = call.empty((labels.shape[0], num_classes, *labels.shape[1:]), dtype, labels)
    if call.computes(out) and not call.backend.blend_labels(
        out, labels, partners.contiguous(), weight.contiguous(), ignore_index, call.validate
    ):
        raise_label_values(labels, num_classes, ignore_index)
    return out
