"""The operators as `torch.library` custom ops: schema, shape inference, gradient, and the call of the backend.

Arguments arrive checked by `tritonsoft.functional`, apart from the *values* of labels and boxes: those are only known
when an op runs (also inside a compiled graph), so they are checked here.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tritonsoft import memory, reference
from tritonsoft.backends import backend_of, module_of
from tritonsoft.checks import check_box_values, check_label_values


def _from_reference(out: Tensor, result: Callable[[], Tensor]) -> Tensor:
    with torch.autocast(out.device.type, enabled=False):  # its matrix products would lose their precision
        return out.copy_(result())


# --- image -----------------------------------------------------------------------------------------------------------


@torch.library.custom_op("tritonsoft::crop_resize", mutates_args=())
def crop_resize(
    image: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    filter: str,
    fill: float,
    dtype: torch.dtype,
    backend: str | None,
) -> Tensor:
    """Image ``(B, K, H, W)`` -> ``(B, K, h, w)``, in the image's memory format."""
    check_box_values(boxes, None)
    return _crop_resize(backend_of(image.device, backend), image, boxes, size, filter, fill, dtype)


def _crop_resize(
    backend: str,
    image: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    filter: str,
    fill: float,
    dtype: torch.dtype,
) -> Tensor:
    out = memory.empty((*image.shape[:2], *size), dtype, image.device, memory.is_channels_last(image))
    if out.numel() == 0:
        return out
    if backend == "reference":
        return _from_reference(out, lambda: reference.crop_resize(image, boxes, size, filter, fill, dtype))
    module_of(backend).crop_resize(out, image, boxes, filter, fill)
    return out


@crop_resize.register_fake
def _(
    image: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    filter: str,
    fill: float,
    dtype: torch.dtype,
    backend: str | None,
) -> Tensor:
    return memory.fake(image, (*image.shape[:2], *size), dtype)


@torch.library.custom_op("tritonsoft::crop_resize_adjoint", mutates_args=())
def crop_resize_adjoint(
    grad: Tensor, boxes: Tensor | None, size: Sequence[int], filter: str, dtype: torch.dtype, backend: str | None
) -> Tensor:
    """The transpose of `crop_resize`: ``(B, K, h, w)`` -> ``(B, K, H, W)`` with ``size = (H, W)``."""
    name = backend_of(grad.device, backend)
    out = memory.empty((*grad.shape[:2], *size), dtype, grad.device, memory.is_channels_last(grad))
    if out.numel() == 0:
        return out
    if name == "reference":
        return _from_reference(out, lambda: reference.crop_resize_adjoint(grad, boxes, size, filter, dtype))
    module_of(name).crop_resize_adjoint(out, grad, boxes, filter)
    return out


@crop_resize_adjoint.register_fake
def _(
    grad: Tensor, boxes: Tensor | None, size: Sequence[int], filter: str, dtype: torch.dtype, backend: str | None
) -> Tensor:
    return memory.fake(grad, (*grad.shape[:2], *size), dtype)


def _setup_crop_resize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    image, boxes, _, filter, _, _, backend = inputs
    ctx.save_for_backward(boxes)
    ctx.source, ctx.filter, ctx.dtype, ctx.backend = image.shape[2:], filter, image.dtype, backend


def _backward_crop_resize(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (boxes,) = ctx.saved_tensors
    grad_image = crop_resize_adjoint(grad, boxes, ctx.source, ctx.filter, ctx.dtype, ctx.backend)
    return grad_image, None, None, None, None, None, None


def _setup_adjoint(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, boxes, _, filter, _, backend = inputs
    ctx.save_for_backward(boxes)
    ctx.size, ctx.filter, ctx.dtype, ctx.backend = grad.shape[2:], filter, grad.dtype, backend


def _backward_adjoint(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (boxes,) = ctx.saved_tensors
    return crop_resize(grad, boxes, ctx.size, ctx.filter, 0.0, ctx.dtype, ctx.backend), None, None, None, None, None


crop_resize.register_autograd(_backward_crop_resize, setup_context=_setup_crop_resize)
crop_resize_adjoint.register_autograd(_backward_adjoint, setup_context=_setup_adjoint)


# --- label map -------------------------------------------------------------------------------------------------------


@torch.library.custom_op("tritonsoft::soft_crop_resize", mutates_args=())
def soft_crop_resize(
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> Tensor:
    """Label map ``(B, H, W)`` -> soft label ``(B, C, h, w)``, contiguous."""
    name = backend_of(labels.device, backend)
    check_box_values(boxes, validate)
    check_label_values(labels, num_classes, ignore_index, name, validate)
    return _soft_crop_resize(name, labels, boxes, size, num_classes, ignore_index, filter, dtype)


def _soft_crop_resize(
    backend: str,
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    dtype: torch.dtype,
) -> Tensor:
    out = memory.empty((labels.shape[0], num_classes, *size), dtype, labels.device)
    if out.numel() == 0:
        return out
    if backend == "reference":
        return _from_reference(
            out,
            lambda: reference.soft_crop_resize(labels, boxes, size, num_classes, ignore_index, filter, dtype),
        )
    module_of(backend).soft_crop_resize(out, labels, boxes, ignore_index, filter)
    return out


@soft_crop_resize.register_fake
def _(
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> Tensor:
    return labels.new_empty((labels.shape[0], num_classes, *size), dtype=dtype)


# A sorted list of that many candidates for each pixel is what a kernel keeps in registers.
_MOST_KEPT_CLASSES = 16


@torch.library.custom_op("tritonsoft::soft_crop_resize_top", mutates_args=())
def soft_crop_resize_top(
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    top_k: int,
    ignore_index: int,
    filter: str,
    index_dtype: torch.dtype,
    dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Label map ``(B, H, W)`` -> the k largest classes, their masses ``(B, k, h, w)``, and the rest ``(B, h, w)``."""
    name = backend_of(labels.device, backend)
    check_box_values(boxes, validate)
    check_label_values(labels, num_classes, ignore_index, name, validate)
    shape = (labels.shape[0], top_k, *size)
    index, mass = memory.empty(shape, index_dtype, labels.device), memory.empty(shape, dtype, labels.device)
    rest = memory.empty((labels.shape[0], *size), dtype, labels.device)
    if rest.numel() == 0:
        return index, mass, rest
    if name == "reference" or (name == "triton" and top_k > _MOST_KEPT_CLASSES):
        soft = _soft_crop_resize(name, labels, boxes, size, num_classes, ignore_index, filter, torch.float32)
        for output, result in zip((index, mass, rest), reference.top_k(soft, top_k), strict=True):
            output.copy_(result)
    else:
        module_of(name).soft_crop_resize_top(index, mass, rest, labels, boxes, num_classes, ignore_index, filter)
    return index, mass, rest


@soft_crop_resize_top.register_fake
def _(
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    top_k: int,
    ignore_index: int,
    filter: str,
    index_dtype: torch.dtype,
    dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (labels.shape[0], top_k, *size)
    rest = labels.new_empty((labels.shape[0], *size), dtype=dtype)
    return labels.new_empty(shape, dtype=index_dtype), labels.new_empty(shape, dtype=dtype), rest


@torch.library.custom_op("tritonsoft::soft_pyramid", mutates_args=())
def soft_pyramid(
    labels: Tensor,
    num_classes: int,
    factors: Sequence[int],
    ignore_index: int,
    dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> list[Tensor]:
    """Label map ``(B, H, W)`` -> soft labels ``(B, C, H / f, W / f)``."""
    name = backend_of(labels.device, backend)
    check_label_values(labels, num_classes, ignore_index, name, validate)
    height, width = labels.shape[1:]
    doubling = all(2 * fine == coarse for fine, coarse in itertools.pairwise(factors))
    # The Triton kernel counts what the dense path of `soft_crop_resize` counts, and halves it.
    fused = doubling and (name == "numba" or (name == "triton" and factors[0] in (1, 2, 4, 8) and num_classes <= 255))
    if not fused or labels.shape[0] == 0:
        return [
            _soft_crop_resize(
                name, labels, None, (height // factor, width // factor), num_classes, ignore_index, "area", dtype
            )
            for factor in factors
        ]
    outs = [
        memory.empty((labels.shape[0], num_classes, height // factor, width // factor), dtype, labels.device)
        for factor in factors
    ]
    module_of(name).soft_pyramid(outs, labels, ignore_index)
    return outs


@soft_pyramid.register_fake
def _(
    labels: Tensor,
    num_classes: int,
    factors: Sequence[int],
    ignore_index: int,
    dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> list[Tensor]:
    batch, height, width = labels.shape
    return [
        labels.new_empty((batch, num_classes, height // factor, width // factor), dtype=dtype) for factor in factors
    ]


# --- both ------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("tritonsoft::crop_resize_pair", mutates_args=())
def crop_resize_pair(
    image: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    fill: float,
    dtype: torch.dtype,
    soft_dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """`crop_resize` and `soft_crop_resize` with the same boxes: one launch on a GPU."""
    name = backend_of(image.device, backend)
    check_box_values(boxes, validate)
    check_label_values(labels, num_classes, ignore_index, name, validate)
    if name != "triton" or image.numel() == 0:
        return (
            _crop_resize(name, image, boxes, size, filter, fill, dtype),
            _soft_crop_resize(name, labels, boxes, size, num_classes, ignore_index, filter, soft_dtype),
        )
    out = memory.empty((*image.shape[:2], *size), dtype, image.device, memory.is_channels_last(image))
    out_soft = memory.empty((labels.shape[0], num_classes, *size), soft_dtype, labels.device)
    module_of(name).crop_resize_pair(out, out_soft, image, labels, boxes, ignore_index, filter, fill)
    return out, out_soft


@crop_resize_pair.register_fake
def _(
    image: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    fill: float,
    dtype: torch.dtype,
    soft_dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    return (
        memory.fake(image, (*image.shape[:2], *size), dtype),
        labels.new_empty((labels.shape[0], num_classes, *size), dtype=soft_dtype),
    )


def _setup_pair(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    image, _, boxes, _, _, _, filter, *_, backend = inputs
    ctx.save_for_backward(boxes)
    ctx.source, ctx.filter, ctx.dtype, ctx.backend = image.shape[2:], filter, image.dtype, backend
    ctx.mark_non_differentiable(output[1])


def _backward_pair(ctx: Any, grad: Tensor, _grad_soft: Tensor | None) -> tuple[Tensor | None, ...]:
    (boxes,) = ctx.saved_tensors
    grad_image = crop_resize_adjoint(grad, boxes, ctx.source, ctx.filter, ctx.dtype, ctx.backend)
    return grad_image, *(None,) * 11


crop_resize_pair.register_autograd(_backward_pair, setup_context=_setup_pair)
