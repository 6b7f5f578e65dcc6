"""Images and masks through a view, and back: the one place that tells boxes from matrices and fields.

Boxes keep their exact separable filter (`tritonsoft.crop_resize`); all else is warped (`tritonsoft.warp`).
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

import tritonsoft as ts
from tritonsoft.augmentation.view import View, centres, expand_transform, map_positions
from tritonsoft.functional import SIGNED, has_tangent
from tritonsoft.geometry import Filter

_RESAMPLED_AS_THEY_ARE: Final = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def can_be_read(tensor: Tensor) -> bool:
    """Whether there are values to read: those of compilers, fake ones and what `torch.func` maps have none."""
    if type(tensor) is not Tensor or torch.compiler.is_compiling():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_untransformed(tensor: Tensor) -> bool:
    """Whether an output may be written piece by piece: nobody differentiates along the tensor, or maps over it."""
    if tensor.requires_grad or torch.compiler.is_compiling():
        return False
    return not torch._C._are_functorch_transforms_active() and not has_tangent(tensor)


def _resample(image: Tensor, view: View, filter: Filter, fill: float) -> Tensor:
    transform = expand_transform(view.transform, image.shape[0], image.device)
    if view.is_box:
        return ts.crop_resize(image, transform, view.size, filter=filter, fill=fill)
    assert transform is not None
    return ts.warp(image, transform, view.size, filter=filter, fill=fill)


def sample_labels(
    labels: Tensor, view: View, num_classes: int, ignore_index: int, dtype: torch.dtype, top_k: int | None
) -> Tensor | ts.SparseLabels:
    """Class ids ``(B, H, W)`` -> the soft label ``(B, C, h, w)`` that the view shows, or its largest classes."""
    transform = expand_transform(view.transform, labels.shape[0], labels.device)
    options: Any = {"ignore_index": ignore_index, "filter": view.filter, "dtype": dtype, "top_k": top_k}
    if view.is_box:
        return ts.soft_crop_resize(labels, transform, view.size, num_classes, **options)
    assert transform is not None
    return ts.soft_warp(labels, transform, view.size, num_classes, **options)


def sample_pair(
    image: Tensor, labels: Tensor, view: View, num_classes: int, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """An image with its class ids ``(B, H, W)``, at once; the view's fill is one value."""
    assert not isinstance(view.fill, tuple)
    transform = expand_transform(view.transform, image.shape[0], image.device)
    if view.is_box:
        return ts.crop_resize_pair(
            image,
            labels,
            transform,
            view.size,
            num_classes,
            ignore_index=ignore_index,
            filter=view.filter,
            fill=view.fill,
            soft_dtype=dtype,
        )
    assert transform is not None
    return ts.warp_pair(
        image,
        labels,
        transform,
        view.size,
        num_classes,
        ignore_index=ignore_index,
        filter=view.filter,
        fill=view.fill,
        soft_dtype=dtype,
    )


def sample_image(image: Tensor, view: View) -> Tensor:
    """``(B, K, H, W)`` -> ``(B, K, h, w)``; a view that changes nothing gives the image itself."""
    if view.is_identity:
        return image
    if not isinstance(view.fill, tuple):
        return _resample(image, view, view.filter, view.fill)
    # One fill per channel: it weighs what the pixels inside of the image leave of the total weight of 1.
    inside = _resample(_ones(image), view, view.filter, 0.0)
    return _resample(image, view, view.filter, 0.0) + (1 - inside) * channels(view.fill, image)


def sample_soft(soft: Tensor, view: View) -> Tensor:
    """A soft label through the image's own filter; what lies outside has no mass."""
    return soft if view.is_identity else _resample(soft, view, view.filter, 0.0)


def sample_hard(mask: Tensor, view: View, fill: float) -> Tensor:
    """``(B, K, H, W)`` of any type at the nearest pixels, bit for bit; ``fill`` lies outside."""
    if view.is_identity:
        return mask
    if mask.dtype in _RESAMPLED_AS_THEY_ARE:
        return _resample(mask, view, "nearest", fill if view.pads else 0.0)
    # Other types are gathered from the nearest pixels, which the pixels' numbers, resampled, name along each axis.
    ys, xs = _nearest_pixels(view, mask)
    index = ys.clamp(min=0) * view.source[1] + xs.clamp(min=0)  # (B, h, w)
    index = index.flatten(1)[:, None].expand(-1, mask.shape[1], -1)
    signed = SIGNED.get(mask.dtype)
    pixels = (mask if signed is None else mask.view(signed)).flatten(2)
    out = pixels.gather(2, index).view(mask.dtype).reshape(*mask.shape[:2], *view.size)
    if not view.pads:
        return out
    return _selected(((ys >= 0) & (xs >= 0))[:, None], out, fill)


def _nearest_pixels(view: View, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which pixel each output pixel takes, -1 outside of the image: down ``(B, h or 1, w)`` and across, int64.

    The pixels' numbers along an axis, exact as far as positions may reach, are resampled as an image.
    """
    down, across = (torch.arange(length, dtype=torch.float32, device=mask.device) for length in view.source)
    batch = mask.shape[0]
    if view.is_box:  # the axes are independent: an image of one row for each
        boxes = expand_transform(view.transform, batch, mask.device)
        return _nearest_of_axis(down, view.size[0], boxes, 1, batch)[:, :, None], _nearest_of_axis(
            across, view.size[1], boxes, 0, batch
        )[:, None]
    grids = (numbers.expand(batch, 1, *view.source) for numbers in (down[:, None], across))
    ys, xs = (_resample(grid, view, "nearest", -1.0)[:, 0].long() for grid in grids)
    return ys, xs


def _nearest_of_axis(numbers: Tensor, size: int, boxes: Tensor | None, axis: int, batch: int) -> Tensor:
    if boxes is not None:
        zero = torch.zeros_like(boxes[:, 0])
        boxes = torch.stack([boxes[:, axis], zero, boxes[:, axis + 2], zero + 1], dim=1)
    row = numbers.expand(batch, 1, 1, -1)
    return ts.crop_resize(row, boxes, (1, size), filter="nearest", fill=-1.0)[:, 0, 0].long()


def invert(image: Tensor, view: View, hard_fill: float | None = None) -> Tensor:
    """From what ``view`` shows back onto an image of its source's size; zeros (or ``hard_fill``) where it hid it.

    A pixel belongs to what was shown where its centre lies in the box, or is mapped into the output, and takes its
    value from that side of the edge alone, as the way there did.
    """
    back = view.inverse()
    if view.transform is None:
        return sample_image(image, back) if hard_fill is None else sample_hard(image, back, hard_fill)
    visible = _centres_shown(view, back, image)
    if hard_fill is not None:
        # With the box's edge on a pixel's centre, that pixel may be nearest to what lies beyond the edge.
        visible = visible & (sample_hard(_ones(image, torch.uint8), back, 0) == 1)
        return _selected(visible, sample_hard(image, back, hard_fill), hard_fill)
    weight = sample_image(_ones(image), back)
    visible, one = visible & (weight > 0), torch.ones_like(weight)
    weight = torch.where(visible, weight, one)  # nothing divides by zero, nor do gradients
    return torch.where(visible, sample_image(image, back) / weight, torch.zeros_like(one))


def _centres_shown(view: View, back: View, image: Tensor) -> Tensor:
    """``(B, 1, H, W)``: whether the view shows the centre of each pixel of its source."""
    if not view.is_box:
        matrix = expand_transform(back.transform, image.shape[0], image.device)
        assert matrix is not None
        x, y = map_positions(matrix[:, None, None], centres(view.source, image.device)).unbind(-1)
        return ((x >= 0) & (x <= view.size[1]) & (y >= 0) & (y <= view.size[0]))[:, None]
    boxes = expand_transform(view.transform, image.shape[0], image.device)
    assert boxes is not None
    ys, xs = (torch.arange(length, device=image.device) + 0.5 for length in view.source)
    low, high = torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])
    down = (low[:, 1:] <= ys) & (ys <= high[:, 1:])
    across = (low[:, :1] <= xs) & (xs <= high[:, :1])
    return (down[:, :, None] & across[:, None, :])[:, None]


def _selected(visible: Tensor, mask: Tensor, fill: float) -> Tensor:
    """The mask where it is ``visible``, elsewhere ``fill``, which its type can hold."""
    signed = SIGNED.get(mask.dtype)
    if signed is None:
        return torch.where(visible, mask, torch.full((), fill, dtype=mask.dtype, device=mask.device))
    if fill > torch.iinfo(signed).max:
        fill = int(fill) - 2 ** (8 * mask.dtype.itemsize)
    return _selected(visible, mask.view(signed), fill).view(mask.dtype)


def _ones(image: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """One channel of ones as large as the image, in the memory of a single number."""
    one = torch.ones((), dtype=image.dtype if dtype is None else dtype, device=image.device)
    return one.expand(image.shape[0], 1, *image.shape[2:])


def channels(values: Sequence[float], image: Tensor) -> Tensor:
    """One number per channel, shaped to meet the image, and made without a copy from the host."""
    if len(values) != image.shape[1]:
        raise ValueError(f"fill must hold one value or one per channel ({image.shape[1]}), got {tuple(values)}")
    filled: list[Any] = [torch.full((1, 1, 1), value, dtype=image.dtype, device=image.device) for value in values]
    return torch.cat(filled)


def pad_by_repeating(image: Tensor, border: tuple[int, int, int, int], mode: str) -> Tensor:
    """``(B, K, H, W)`` of any type with ``border`` (left, right, top, bottom) added by ``reflect`` or ``replicate``."""
    signed = SIGNED.get(image.dtype)
    if signed is not None:
        return pad_by_repeating(image.view(signed), border, mode).view(image.dtype)
    left, right, top, bottom = border
    down = _repeated_index(image.shape[2], top, bottom, mode, image.device)
    across = _repeated_index(image.shape[3], left, right, mode, image.device)
    return image[:, :, down[:, None], across]


def _repeated_index(length: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    """Which pixels an axis of ``length`` shows when it is padded by ``reflect`` or ``replicate``."""
    index = torch.arange(-before, length + after, device=device)
    if mode == "replicate":
        return index.clamp(0, length - 1)
    if max(before, after) >= length:
        raise ValueError(
            f"padding with padding_mode='reflect' must be smaller than the picture's {length}, got {(before, after)}"
        )
    return (length - 1) - ((length - 1) - index.abs()).abs()
