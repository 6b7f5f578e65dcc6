"""What each operator means, in plain eager PyTorch: the oracle that every fast backend is compared with.

A crop with a resize is one matrix per axis (`axis_matrix`), so an image goes to ``A_y @ image @ A_x.T`` and a label map
to the same product with its one-hot planes. Runs on any device; float64 in gives float64 arithmetic throughout.
Geometry and filters: `tritonsoft.conventions`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def axis_matrix(ends: Tensor, in_size: int, out_size: int, filter: str) -> tuple[Tensor, Tensor]:
    """The resampling matrices of one axis: row j holds the weights of the source pixels in output pixel j.

    Args:
        ends: ``(B, 2)`` float64, the two ends of each box along this axis; mirrored where the second is smaller.
        in_size: number of source pixels.
        out_size: number of output pixels.
        filter: one of `tritonsoft.conventions.FILTERS`.

    Returns:
        The matrices ``(B, out_size, in_size)`` and the weight ``(B, out_size)`` of the taps outside the image, exactly
        0 where there are none; both float64. A row and its weight outside sum to 1.
    """
    lo = ends.amin(1)[:, None]  # (B, 1)
    hi = ends.amax(1)[:, None]
    j = torch.arange(out_size, dtype=torch.float64, device=ends.device)
    j = torch.where(ends[:, 1:] < ends[:, :1], out_size - 1 - j, j)  # (B, out)
    span = hi - lo
    centre = lo + span * (2 * j + 1) / (2 * out_size)  # (B, out)

    stretch = (span / out_size).clamp(min=1)  # (B, 1)
    reach = {"area": (stretch + 1) / 2, "triangle": stretch}.get(filter, torch.ones_like(stretch))
    plateau = torch.ones_like(reach) if filter == "area" else reach
    first = centre.floor() if filter == "nearest" else (centre - reach).floor()
    last = first if filter == "nearest" else (centre + reach).floor()
    touched_first, touched_last = lo.floor(), hi.ceil() - 1
    first = first.clamp(touched_first, touched_last)
    last = last.clamp(touched_first, touched_last)

    num_taps = int((last - first).max()) + 1 if last.numel() else 0
    tap = first[..., None] + torch.arange(num_taps, dtype=torch.float64, device=ends.device)  # (B, out, taps)
    weight = (reach[..., None] - (tap + 0.5 - centre[..., None]).abs()).clamp(min=0).minimum(plateau[..., None])
    weight = weight * (tap <= last[..., None])
    weight = weight / weight.sum(-1, keepdim=True)

    inside = (tap >= 0) & (tap < in_size)
    column = tap.clamp(0, max(in_size - 1, 0)).long()
    matrix = weight.new_zeros(*weight.shape[:2], in_size)
    return matrix.scatter_add_(2, column, weight * inside), (weight * ~inside).sum(-1)


def _matrices(
    boxes: Tensor | None, source: Sequence[int], size: Sequence[int], filter: str, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the planes of ``like`` are multiplied with, in its dtype and on its device.

    Returns:
        ``A_y (B, 1, h, H)``, ``A_x (B, 1, w, W)`` and the share ``(B, 1, h, w)`` of each footprint outside the image.
    """
    height, width = source
    if boxes is None:
        boxes = torch.tensor([[0, 0, width, height]], device=like.device).expand(like.shape[0], 4)
    boxes = boxes.double()
    matrix_y, outside_y = axis_matrix(boxes[:, 1::2], height, size[0], filter)
    matrix_x, outside_x = axis_matrix(boxes[:, 0::2], width, size[1], filter)
    outside = outside_y[:, :, None] + (1 - outside_y[:, :, None]) * outside_x[:, None, :]
    return matrix_y.to(like)[:, None], matrix_x.to(like)[:, None], outside.to(like)[:, None]


def crop_resize(
    image: Tensor, boxes: Tensor | None, size: Sequence[int], filter: str, fill: float, dtype: torch.dtype
) -> Tensor:
    """Image ``(B, K, H, W)`` -> ``(B, K, h, w)``; what of a footprint lies outside the image counts as ``fill``.

    uint8 in and a floating dtype out divides by 255; uint8 out rounds half to even. A non-finite pixel spoils its whole
    plane here, as products with zero weights are taken: the oracle is for finite images.
    """
    planes = image.to(torch.promote_types(torch.promote_types(image.dtype, dtype), torch.float32))
    if image.dtype == torch.uint8 and dtype.is_floating_point:
        planes = planes / 255
    matrix_y, matrix_x, outside = _matrices(boxes, image.shape[-2:], size, filter, planes)
    # Selected, not multiplied: an infinite fill must not reach the pixels that are wholly inside.
    result = matrix_y @ planes @ matrix_x.mT + torch.where(outside > 0, fill * outside, 0)
    return result.round().clamp(0, 255).to(dtype) if dtype == torch.uint8 else result.to(dtype)


def crop_resize_adjoint(
    grad: Tensor, boxes: Tensor | None, source: Sequence[int], filter: str, dtype: torch.dtype
) -> Tensor:
    """The transpose of `crop_resize` as a linear map of a floating image: ``(B, K, h, w)`` -> ``(B, K, H, W)``."""
    planes = grad.to(torch.promote_types(torch.promote_types(grad.dtype, dtype), torch.float32))
    matrix_y, matrix_x, _ = _matrices(boxes, source, grad.shape[-2:], filter, planes)
    return (matrix_y.mT @ planes @ matrix_x).to(dtype)


def soft_crop_resize(
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    dtype: torch.dtype,
) -> Tensor:
    """Label map ``(B, H, W)`` -> soft label ``(B, C, h, w)``: `crop_resize` of the one-hot planes, padded with no mass.

    Pixels equal to ``ignore_index``, and values outside ``0 .. C-1``, are in no plane.
    """
    ids = labels[:, None].long()  # a narrow dtype would wrap an ignore_index that it cannot hold
    classes = torch.arange(num_classes, device=labels.device)[:, None, None]
    planes = (ids == classes) & (ids != ignore_index)  # (B, C, H, W)
    mass = planes.to(torch.promote_types(dtype, torch.float32))
    return crop_resize(mass, boxes, size, filter, 0.0, dtype)
