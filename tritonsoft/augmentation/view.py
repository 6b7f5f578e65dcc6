"""What crops, resizes and flips do to an image: a box per sample and a size. Chains of them are one box, too.

Nothing here knows kornia; nothing here loops over the batch or reads a tensor's value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

import tritonsoft as ts
from tritonsoft.geometry import Filter

Fill = float | tuple[float, ...]

_RESAMPLED_AS_THEY_ARE: Final = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
# PyTorch 2.11 can copy and view these, but neither index nor select them: the same bits as signed integers do.
_SIGNED: Final = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


@dataclass(frozen=True)
class View:
    """The part of an image that an augmentation shows, and the size at which it shows it."""

    source: tuple[int, int]  # (H, W) of the image
    size: tuple[int, int]  # (h, w) that it becomes
    boxes: Tensor | None = None  # (B, 4) float64 in edges of the image, on the parameters' device; None: all of it
    filter: Filter | None = None  # None: pixels are only moved, so every filter gives the same
    crops: bool = False  # whether it may hide a part of the image
    pads: bool = False  # whether it may show what lies outside of the image
    fill: Fill = 0.0  # what an image has there, one value or one per channel

    @property
    def is_identity(self) -> bool:
        return self.boxes is None and self.size == self.source

    def can_compose(self, first: "View") -> bool:
        """Whether `first`, then this, can be one resample of the image that `first` reads.

        Not if the two have different filters, and not if this one pads after a crop: the padding would show what the
        crop hid.
        """
        same_filter = self.filter is None or first.filter is None or self.filter == first.filter
        return same_filter and not (first.crops and self.pads)

    def compose(self, first: "View") -> "View":
        """`first`, then this, as one view; only where this one `can_compose` it."""
        if self.boxes is None or first.boxes is None:
            boxes = first.boxes if self.boxes is None else _scaled(self.boxes, first.size, first.source)
        else:
            x0, y0, x1, y1 = first.boxes.unbind(1)
            u0, v0, u1, v1 = self.boxes.unbind(1)
            height, width = first.size
            # Multiply before dividing: products of integers are exact, and so is the quotient for a pure crop or flip.
            boxes = torch.stack(
                [
                    x0 + (x1 - x0) * u0 / width,
                    y0 + (y1 - y0) * v0 / height,
                    x0 + (x1 - x0) * u1 / width,
                    y0 + (y1 - y0) * v1 / height,
                ],
                dim=1,
            )
        return View(
            source=first.source,
            size=self.size,
            boxes=boxes,
            filter=first.filter if self.filter is None else self.filter,
            crops=first.crops or self.crops,
            pads=first.pads or self.pads,
            fill=self.fill if self.pads else first.fill,
        )

    def sample(self, index: int) -> "View":
        """This view for one sample of the batch."""
        boxes = None if self.boxes is None else self.boxes[index : index + 1]
        return replace(self, boxes=boxes)

    def inverse(self) -> "View":
        """From what is shown back to the image; what was hidden becomes padding."""
        if self.boxes is None:
            return View(source=self.size, size=self.source, filter=self.filter)
        (height, width), (h, w) = self.source, self.size
        x0, y0, x1, y1 = self.boxes.unbind(1)
        across, down = w / (x1 - x0), h / (y1 - y0)
        boxes = torch.stack([-x0 * across, -y0 * down, (width - x0) * across, (height - y0) * down], dim=1)
        return View(source=self.size, size=self.source, boxes=boxes, filter=self.filter, crops=self.pads, pads=True)


def _scaled(boxes: Tensor, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Boxes in an image of ``size`` as boxes in the same image before it was resized from ``to``."""
    if size == to:
        return boxes
    u0, v0, u1, v1 = boxes.unbind(1)
    (height, width), (h, w) = to, size
    return torch.stack([u0 * width / w, v0 * height / h, u1 * width / w, v1 * height / h], dim=1)


def whole(source: tuple[int, int], like: Tensor) -> Tensor:
    """The whole image as boxes, one per row of ``like``: ``(B, 4)`` float64."""
    height, width = source
    zero = torch.zeros(like.shape[0], dtype=torch.float64, device=like.device)
    return torch.stack([zero, zero, zero + width, zero + height], dim=1)


def pixel_matrix(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """What the boxes do to pixel-centre coordinates, ``x' = (x + 1/2 - x0) w / (x1 - x0) - 1/2``: ``(B, 3, 3)``.

    The half-pixel map that images and labels really go through, in kornia's coordinates, where pixel k lies at k.
    """
    low, (across, down) = boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    scale = torch.stack([size[1] / across, size[0] / down], dim=1)
    matrix = torch.diag_embed(torch.nn.functional.pad(scale, (0, 1), value=1.0))
    matrix[:, :2, 2] = (0.5 - low) * scale - 0.5
    return matrix


def expand_boxes(boxes: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    """Boxes where the image is, one per image, copied without waiting for the device."""
    if boxes is None:
        return None
    if boxes.shape[0] not in (1, batch):
        raise ValueError(f"image or mask must have the batch of its parameters, {boxes.shape[0]}, got {batch}")
    boxes = boxes.expand(batch, 4)
    # Safe without pinned memory: CUDA stages a pageable copy before the call returns. Inductor does not keep to that.
    return boxes.to(device, non_blocking=not torch.compiler.is_compiling())


def sample_image(image: Tensor, view: View) -> Tensor:
    """``(B, K, H, W)`` -> ``(B, K, h, w)``; a view that changes nothing gives the image itself."""
    if view.is_identity:
        return image
    boxes, filter = expand_boxes(view.boxes, image.shape[0], image.device), view.filter or "area"
    if not isinstance(view.fill, tuple):
        return ts.crop_resize(image, boxes, view.size, filter=filter, fill=view.fill)
    # One fill per channel: it weighs what the pixels inside of the image leave of the total weight of 1.
    inside = ts.crop_resize(_ones(image), boxes, view.size, filter=filter)
    return ts.crop_resize(image, boxes, view.size, filter=filter) + (1 - inside) * channels(view.fill, image)


def sample_soft(soft: Tensor, view: View) -> Tensor:
    """A soft label through the image's own filter; what lies outside has no mass."""
    if view.is_identity:
        return soft
    return ts.crop_resize(
        soft, expand_boxes(view.boxes, soft.shape[0], soft.device), view.size, filter=view.filter or "area", fill=0.0
    )


def sample_hard(mask: Tensor, view: View, fill: float) -> Tensor:
    """``(B, K, H, W)`` of any type at the nearest pixels, bit for bit; ``fill`` lies outside."""
    if view.is_identity:
        return mask
    boxes = expand_boxes(view.boxes, mask.shape[0], mask.device)
    if mask.dtype in _RESAMPLED_AS_THEY_ARE:
        return ts.crop_resize(mask, boxes, view.size, filter="nearest", fill=fill if view.pads else 0.0)
    # Other types are gathered from the nearest pixels, which the pixels' numbers, resampled, name along each axis.
    xs = _nearest_pixels(view.source[1], view.size[1], boxes, 0, mask)
    ys = _nearest_pixels(view.source[0], view.size[0], boxes, 1, mask)
    index = ys.clamp(min=0)[:, :, None] * view.source[1] + xs.clamp(min=0)[:, None, :]  # (B, h, w)
    index = index.flatten(1)[:, None].expand(-1, mask.shape[1], -1)
    signed = _SIGNED.get(mask.dtype)
    pixels = (mask if signed is None else mask.view(signed)).flatten(2)
    out = pixels.gather(2, index).view(mask.dtype).reshape(*mask.shape[:2], *view.size)
    if not view.pads:
        return out
    inside = (ys >= 0)[:, None, :, None] & (xs >= 0)[:, None, None, :]
    return _selected(inside, out, fill)


def _nearest_pixels(length: int, size: int, boxes: Tensor | None, axis: int, mask: Tensor) -> Tensor:
    """``(B, size)`` int64: which pixel along an axis each output pixel takes, -1 outside of the image.

    The axis (0: x, 1: y) is resampled as an image of one row that holds the pixels' numbers.
    """
    numbers = torch.arange(length, dtype=torch.float32, device=mask.device)  # exact as far as boxes may reach
    if boxes is not None:
        zero = torch.zeros_like(boxes[:, 0])
        boxes = torch.stack([boxes[:, axis], zero, boxes[:, axis + 2], zero + 1], dim=1)
    row = numbers.expand(mask.shape[0], 1, 1, length)
    return ts.crop_resize(row, boxes, (1, size), filter="nearest", fill=-1.0)[:, 0, 0].long()


def invert(image: Tensor, view: View, hard_fill: float | None = None) -> Tensor:
    """From what ``view`` shows back onto an image of its source's size; zeros (or ``hard_fill``) where it hid it.

    A pixel belongs to what was shown where its centre lies in the box, and takes its value from that side of the box's
    edge alone, as the way there did.
    """
    back = view.inverse()
    if view.boxes is None:
        return sample_image(image, back) if hard_fill is None else sample_hard(image, back, hard_fill)
    boxes = expand_boxes(view.boxes, image.shape[0], image.device)
    assert boxes is not None
    visible = _centres_within(boxes, view.source)
    if hard_fill is not None:
        # With the box's edge on a pixel's centre, that pixel may be nearest to what lies beyond the edge.
        visible = visible & (sample_hard(_ones(image, torch.uint8), back, 0) == 1)
        return _selected(visible, sample_hard(image, back, hard_fill), hard_fill)
    weight = sample_image(_ones(image), back)
    visible, one = visible & (weight > 0), torch.ones_like(weight)
    weight = torch.where(visible, weight, one)  # nothing divides by zero, nor do gradients
    return torch.where(visible, sample_image(image, back) / weight, torch.zeros_like(one))


def _centres_within(boxes: Tensor, source: tuple[int, int]) -> Tensor:
    """``(B, 1, H, W)``: whether the centre of each pixel lies in its sample's box."""
    height, width = source
    ys = torch.arange(height, device=boxes.device) + 0.5
    xs = torch.arange(width, device=boxes.device) + 0.5
    low, high = torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])
    down = (low[:, 1:] <= ys) & (ys <= high[:, 1:])
    across = (low[:, :1] <= xs) & (xs <= high[:, :1])
    return (down[:, :, None] & across[:, None, :])[:, None]


def _selected(visible: Tensor, mask: Tensor, fill: float) -> Tensor:
    """The mask where it is ``visible``, elsewhere ``fill``, which its type can hold."""
    signed = _SIGNED.get(mask.dtype)
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
    signed = _SIGNED.get(image.dtype)
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
