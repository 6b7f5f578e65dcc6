"""The pixels of two samples: those of a box, a share of all, or those of some classes, of any type and layout.

Nothing here knows modules or parameters. On a CPU outputs are written sample by sample, in memory of earlier ones; on a
device, under a compiler and where somebody differentiates, as a whole.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tritonsoft as ts
from tritonsoft import memory
from tritonsoft.augmentation.resampling import size_of
from tritonsoft.augmentation.sampling import can_be_read, is_untransformed
from tritonsoft.augmentation.view import Size, to_device
from tritonsoft.functional import SIGNED


@dataclass(frozen=True)
class Boxes:
    """The partner's pixels inside of a box ``(B, 4)``: whole edges, x0, y0, x1, y1."""

    boxes: Tensor

    def mix(self, images: Tensor, partners: Tensor) -> Tensor:
        if images.dtype in SIGNED:  # the same bits, in a type that PyTorch 2.11 can select and fill
            return self.mix(images.view(SIGNED[images.dtype]), partners).view(images.dtype)
        read = read_numbers(partners, self.boxes) if is_untransformed(images) else None
        if read is None:
            return Pixels(self._inside(size_of(images), images.device)).mix(images, partners)
        out = _empty_like(images)
        for sample, (partner, (x0, y0, x1, y1)) in enumerate(zip(*read, strict=True)):
            own, theirs, mixed = images[sample], images[partner], out[sample]
            # Each pixel is written once.
            mixed[:, :y0], mixed[:, y1:] = own[:, :y0], own[:, y1:]
            for start, end, source in ((0, x0, own), (x0, x1, theirs), (x1, None, own)):
                mixed[:, y0:y1, start:end] = source[:, y0:y1, start:end]
        return out

    def _inside(self, size: Size, device: torch.device) -> Tensor:
        """``(B, 1, H, W)``"""
        x0, y0, x1, y1 = to_device(self.boxes, device)[:, :, None].unbind(1)
        ys, xs = (torch.arange(length, device=device) for length in size)
        down, across = (ys >= y0) & (ys < y1), (xs >= x0) & (xs < x1)  # (B, H) and (B, W)
        return (down[:, :, None] & across[:, None])[:, None]


@dataclass(frozen=True)
class Pixels:
    """The partner's pixels where ``selected`` ``(B, 1, H, W)``."""

    selected: Tensor

    def mix(self, images: Tensor, partners: Tensor) -> Tensor:
        if images.dtype in SIGNED:  # as above
            return self.mix(images.view(SIGNED[images.dtype]), partners).view(images.dtype)
        read = read_numbers(partners) if images.device.type == "cpu" and is_untransformed(images) else None
        if read is None:
            theirs = images.index_select(0, to_device(partners, images.device))
            return torch.where(self.selected, theirs, images)
        out = _empty_like(images)
        for sample, partner in enumerate(read[0]):
            torch.where(self.selected[sample], images[partner], images[sample], out=out[sample])
        return out


@dataclass(frozen=True)
class Shares:
    """A share of the partner's pixels: of all of a sample ``(B, 1, 1, 1)``, or of each pixel ``(B, 1, H, W)``."""

    weight: Tensor

    def mix(self, images: Tensor, partners: Tensor) -> Tensor:
        weight = to_device(self.weight, images.device).to(images.dtype)
        read = read_numbers(partners) if is_untransformed(images) and is_untransformed(weight) else None
        if read is None:
            return torch.lerp(images, images.index_select(0, to_device(partners, images.device)), weight)
        out = _empty_like(images)
        for sample, partner in enumerate(read[0]):
            if partner == sample:  # what stays as it is stays so to the bit, infinities too
                out[sample] = images[sample]
            else:
                torch.lerp(images[sample], images[partner], weight[sample], out=out[sample])
        return out


Share = Boxes | Pixels | Shares


def _empty_like(images: Tensor) -> Tensor:
    """Memory for the output; of large ones on the CPU that of an earlier output, which need not be mapped."""
    return memory.empty(images.shape, images.dtype, images.device, memory.is_channels_last(images))


def read_numbers(*tensors: Tensor) -> list[Any] | None:
    """Their numbers, where looking at them waits for no device; no compiler has any."""
    if all(tensor.device.type == "cpu" and can_be_read(tensor) for tensor in tensors):
        return [tensor.tolist() for tensor in tensors]
    return None


# --- some classes ----------------------------------------------------------------------------------------------------


def are_chosen(labels: Tensor, chosen: Tensor, partners: Tensor) -> Tensor:
    """Where the partner's pixel is of a class ``(B, C)`` that was chosen, ``(B, 1, H, W)``."""
    table = chosen.to(torch.uint8)
    selected = torch.empty(labels.shape, dtype=torch.uint8, device=labels.device)
    read = read_numbers(partners)
    theirs = _of_samples(labels, partners) if read is None else labels
    sources = range(len(labels)) if read is None else read[0]
    for sample, source in enumerate(sources):
        selected[sample] = ts.remap_labels(theirs[source], table[sample], ignore_index=0)
    return selected.view(torch.bool)[:, None]


def _of_samples(labels: Tensor, samples: Tensor) -> Tensor:
    """`index_select`, which PyTorch 2.11 lacks for some types."""
    if labels.dtype in SIGNED:
        return _of_samples(labels.view(SIGNED[labels.dtype]), samples).view(labels.dtype)
    return labels.index_select(0, to_device(samples, labels.device))


def paste_masses(soft: Tensor, chosen: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen masses of the partner and the rest of one's own, and the share ``(B, 1, H, W)`` that was pasted.

    Shares are summed in single precision at least, and never exceed 1 by a rounding error: no mass becomes negative.
    """
    working = torch.promote_types(soft.dtype, torch.float32)
    read = read_numbers(partners, chosen) if is_untransformed(soft) else None
    if read is None:
        theirs = soft.index_select(0, to_device(partners, soft.device)) * chosen[:, :, None, None].to(soft.dtype)
        pasted = theirs.sum(1, keepdim=True, dtype=working).clamp(max=1)
        return torch.addcmul(theirs, soft, (1 - pasted).to(soft.dtype)), pasted
    out, pasted = _empty_like(soft), soft.new_zeros((len(soft), 1, *soft.shape[2:]), dtype=working)
    for sample, (partner, row) in enumerate(zip(*read, strict=True)):
        classes = [index for index, is_chosen in enumerate(row) if is_chosen]
        for index in classes:
            pasted[sample, 0] += soft[partner, index]
        pasted[sample].clamp_(max=1)
        torch.mul(soft[sample], (1 - pasted[sample]).to(soft.dtype), out=out[sample])
        for index in classes:
            out[sample, index] += soft[partner, index]
    return out, pasted
