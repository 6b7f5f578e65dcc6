"""Label maps: soft labels, dense, sparse and at several sizes, and the pair of an image and its soft label."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonsoft._validation import check_box_values, raise_label_values, raise_plane_values, raise_unknown_ids
from tritonsoft.geometry import Filter
from tritonsoft.memory import is_channels_last
from tritonsoft.ops._define import Call, operator
from tritonsoft.ops.images import image_gradient, image_tangent, remember_geometry


@operator
def remap_labels(
    call: Call,
    labels: Tensor,
    ids: Tensor | None,
    classes: Tensor,
    first_id: int,
    ignore_index: int,
    refuse_unknown: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Label map ``(B, H, W)`` of ids -> of their classes, by a table that backends know (`Backend.remap_labels`)."""
    out = call.empty(labels.shape, dtype, labels)
    checks = call.validate and refuse_unknown
    if call.computes(out) and not call.backend.remap_labels(out, labels, ids, classes, first_id, ignore_index, checks):
        raise_unknown_ids(labels, ids, classes, first_id)
    return out


@operator
def class_areas(call: Call, labels: Tensor, boxes: Tensor | None, num_classes: int, ignore_index: int) -> Tensor:
    """Label map ``(B, H, W)`` -> the area of each class in boxes ``(B, N, 4)``: ``(B, N, C)`` float32."""
    if call.validate and boxes is not None:
        check_box_values(boxes.flatten(0, 1), boxes.shape[1])
    num_boxes = 1 if boxes is None else boxes.shape[1]
    out = call.empty((labels.shape[0], num_boxes, num_classes), torch.float32, labels)
    if call.computes(out) and not call.backend.class_areas(out, labels, boxes, ignore_index, call.validate):
        raise_label_values(labels, num_classes, ignore_index)
    return out


@operator
def soft_crop_resize(
    call: Call,
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    dtype: torch.dtype,
) -> Tensor:
    """Label map ``(B, H, W)`` -> soft label ``(B, C, h, w)``, contiguous."""
    if call.validate:
        check_box_values(boxes)
    out = call.empty((labels.shape[0], num_classes, *size), dtype, labels)
    if call.computes(out) and not call.backend.soft_crop_resize(
        out, labels, boxes, ignore_index, filter, call.validate
    ):
        raise_label_values(labels, num_classes, ignore_index)
    return out


@operator
def soft_planes(
    call: Call,
    planes: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    ignore_index: int,
    filter: Filter,
    dtype: torch.dtype,
) -> Tensor:
    """Planes ``(B, C, H, W)`` of 0 and 1 -> the masses of both ``(B, C, 2, h, w)``, by boxes ``(B, 4)``."""
    if call.validate:
        check_box_values(boxes)
    num_planes = planes.shape[1]
    out = call.empty((*planes.shape[:2], 2, *size), dtype, planes)
    of_each = None if boxes is None else boxes.repeat_interleave(num_planes, 0)
    if call.computes(out) and not call.backend.soft_crop_resize(
        out.flatten(0, 1), planes.flatten(0, 1), of_each, ignore_index, filter, call.validate
    ):
        raise_plane_values(planes, ignore_index)
    return out


def empty_top(
    call: Call, labels: Tensor, top_k: int, size: Sequence[int], index_dtype: torch.dtype, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of a `SparseLabels`."""
    shape = (labels.shape[0], top_k, *size)
    index, mass = call.empty(shape, index_dtype, labels), call.empty(shape, dtype, labels)
    return index, mass, call.empty((labels.shape[0], *size), dtype, labels)


@operator
def soft_crop_resize_top(
    call: Call,
    labels: Tensor,
    boxes: Tensor | None,
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
        check_box_values(boxes)
    index, mass, rest = empty_top(call, labels, top_k, size, index_dtype, dtype)
    if call.computes(rest) and not call.backend.soft_crop_resize_top(
        index, mass, rest, labels, boxes, num_classes, ignore_index, filter, call.validate
    ):
        raise_label_values(labels, num_classes, ignore_index)
    return index, mass, rest


@operator
def top_ids(
    call: Call,
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    top_k: int,
    ignore_index: int | None,
    filter: Filter,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Label map ``(B, H, W)`` -> the k largest ids, their masses ``(B, k, h, w)``, and the rest ``(B, h, w)``."""
    if call.validate:
        check_box_values(boxes)
    index, mass, rest = empty_top(call, labels, top_k, size, labels.dtype, dtype)
    if call.computes(rest):
        call.backend.top_ids(index, mass, rest, labels, boxes, ignore_index, filter)
    return index, mass, rest


@operator
def soft_pyramid(
    call: Call, labels: Tensor, num_classes: int, factors: Sequence[int], ignore_index: int, dtype: torch.dtype
) -> list[Tensor]:
    """Label map ``(B, H, W)`` -> soft labels ``(B, C, H / f, W / f)``."""
    batch, height, width = labels.shape
    outs = [call.empty((batch, num_classes, height // factor, width // factor), dtype, labels) for factor in factors]
    if call.computes(outs[0]) and not call.backend.soft_pyramid(outs, labels, ignore_index, call.validate):
        raise_label_values(labels, num_classes, ignore_index)
    return outs


@operator
def crop_resize_pair(
    call: Call,
    image: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    fill: float,
    dtype: torch.dtype,
    soft_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """`crop_resize` and `soft_crop_resize` with the same boxes: one launch on a GPU."""
    if call.validate:
        check_box_values(boxes)
    out = call.empty((*image.shape[:2], *size), dtype, image, is_channels_last(image))
    soft = call.empty((labels.shape[0], num_classes, *size), soft_dtype, labels)
    if not call.computes(soft):
        return out, soft
    if not call.computes(out):  # an image without channels
        in_range = call.backend.soft_crop_resize(soft, labels, boxes, ignore_index, filter, call.validate)
    else:
        in_range = call.backend.crop_resize_pair(
            out, soft, image, labels, boxes, ignore_index, filter, fill, call.validate
        )
    if not in_range:
        raise_label_values(labels, num_classes, ignore_index)
    return out, soft


@crop_resize_pair.gradient
class _PairGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor], backend: str | None) -> None:
        image, _, boxes, size, _, _, filter, _, dtype, _ = inputs
        remember_geometry(ctx, image, boxes, size, filter, dtype, backend)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> Tensor:
        return image_gradient(ctx, grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None]:
        return image_tangent(ctx, tangent), None
