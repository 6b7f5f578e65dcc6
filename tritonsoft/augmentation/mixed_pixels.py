"""The pixels of two samples: those of a box, those of some classes, or shares of all, of any layout.

Nothing here knows modules or parameters.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tritonsoft as ts
from tritonsoft import memory
from tritonsoft.augmentation.sampling import can_be_read, is_untransformed
from tritonsoft.augmentation.view import to_device


@dataclass(frozen=True)
class Boxes:
    """The partner's pixels inside of a box ``(B, 4)``: whole edges, x0, y0, x1, y1."""

    boxes: Tensor

    def mix(self, images: Tensor, partners: Tensor) -> Tensor:
        return ts.cut_mix(images, to_device(partners, images.device), to_device(self.boxes, images.device))


@dataclass(frozen=True)
class Classes:
    """The partner's pixels of classes that are ``chosen (B, C)``, as its label map ``(B, H, W)`` has them."""

    labels: Tensor
    chosen: Tensor

    def mix(self, images: Tensor, partners: Tensor) -> Tensor:
        numbers = (to_device(tensor, images.device) for tensor in (partners, self.labels, self.chosen))
        return ts.class_mix(images, *numbers)


@dataclass(frozen=True)
class Weights:
    """A share ``(B,)`` of all of the partner's pixels."""

    weight: Tensor

    def mix(self, images: Tensor, partners: Tensor) -> Tensor:
        return ts.mix_up(images, *self._on(images.device, partners))

    def mix_labels(
        self, labels: Tensor, partners: Tensor, num_classes: int, ignore_index: int, dtype: torch.dtype
    ) -> Tensor:
        """The soft label of label maps ``(B, H, W)``."""
        numbers = self._on(labels.device, partners)
        return ts.mix_up_labels(labels, *numbers, num_classes, ignore_index=ignore_index, dtype=dtype)

    def _on(self, device: torch.device, partners: Tensor) -> tuple[Tensor, Tensor]:
        return to_device(partners, device), to_device(self.weight, device)


@dataclass(frozen=True)
class Shares:
    """A share of each of the partner's pixels ``(B, 1, H, W)``."""

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


Share = Boxes | Classes | Weights | Shares


def _empty_like(images: Tensor) -> Tensor:
    """Memory for the output; of large ones on the CPU that of an earlier output, which need not be mapped."""
    return memory.empty(images.shape, images.dtype, images.device, memory.is_channels_last(images))


def read_numbers(*tensors: Tensor) -> list[Any] | None:
    """Their numbers, where looking at them waits for no device; no compiler has any."""
    if all(tensor.device.type == "cpu" and can_be_read(tensor) for tensor in tensors):
        return [tensor.tolist() for tensor in tensors]
    return None


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
