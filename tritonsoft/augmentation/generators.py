"""kornia's generators of `RandomResizedCrop` and `Resize`: the same numbers in a fraction of the time.

On a few pixels drawing the parameters takes kornia longer than the resample: its constants are stacked from a tensor
per number, so that a compiler may trace them. Eager on the CPU, these make them at once, and reckon in NumPy, which
rounds as PyTorch does and takes less time for a handful of numbers; elsewhere they are kornia's.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft.augmentation._kornia import ResizedCropGenerator, ResizeGenerator, adapted_rsampling

Pair = tuple[float, float]
_Numbers = np.ndarray[Any, np.dtype[np.floating[Any]]]


class EagerResizedCropGenerator(ResizedCropGenerator):
    """Draws what `ResizedCropGenerator` does, from the same random stream and rounded in the same way."""

    def forward(self, batch_shape: tuple[int, ...], same_on_batch: bool = False) -> dict[str, Tensor]:
        dtype = torch.get_default_dtype()
        ranges = isinstance(self.scale, tuple) and isinstance(self.ratio, tuple)
        if not ranges or not is_eager(self.device, dtype, self.dtype) or not has_plain_shape(batch_shape):
            return super().forward(batch_shape, same_on_batch)
        batch, height, width = batch_shape[0], batch_shape[-2], batch_shape[-1]

        def draw(*shape: int) -> _Numbers:  # from 0 to 1
            return as_numbers(torch.rand((1 if same_on_batch else batch, *shape), dtype=self.dtype))

        def as_numbers(drawn: Tensor) -> _Numbers:
            return drawn.expand(batch, *drawn.shape[1:]).to(dtype).numpy()

        # Ten candidates (B, 10), of which the first that fits into the image is taken.
        smallest, extent = _area_range(self.scale, dtype)
        area = (draw(10) * extent + smallest) * height * width
        aspect = as_numbers(adapted_rsampling((batch, 10), self.log_ratio_sampler, same_on_batch).to(dtype).exp())
        widths, heights = np.sqrt(area * aspect).round(), np.sqrt(area / aspect).round()
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        found, first = fits.any(1), (np.arange(batch), fits.argmax(1))
        fallback_height, fallback_width = _fallback((height, width), self.ratio, dtype)
        h = np.where(found, heights[first], fallback_height)
        w = np.where(found, widths[first], fallback_width)

        x0 = np.floor(draw() * (width - w + 1))
        y0 = np.floor(draw() * (height - h + 1))
        x1, y1 = x0 + w - 1, y0 + h - 1
        src = np.stack([x0, y0, x1, y0, x1, y1, x0, y1], axis=1).reshape(batch, 4, 2)
        out_height, out_width = self.output_size
        right, bottom = out_width - 1, out_height - 1
        dst = np.array([[[0, 0], [right, 0], [right, bottom], [0, bottom]]], src.dtype).repeat(batch, axis=0)
        return {
            "src": torch.from_numpy(src),
            "dst": torch.from_numpy(dst),
            "input_size": torch.tensor([height, width]).expand(batch, -1),
            "output_size": torch.tensor([out_height, out_width]).expand(batch, -1),
        }


class EagerResizeGenerator(ResizeGenerator):
    """`ResizeGenerator`: nothing is random, and parameters may be edited, so each call gets copies of the last ones."""

    _last: tuple[object, dict[str, Tensor]] = (None, {})  # what the parameters depend on, and these

    def forward(self, batch_shape: tuple[int, ...], same_on_batch: bool = False) -> dict[str, Tensor]:
        if not is_eager(self.device, self.dtype) or not has_plain_shape(batch_shape):
            return super().forward(batch_shape, same_on_batch)
        key = (tuple(batch_shape), self.output_size, self.side, self.dtype)
        last, made = self._last
        if last != key:
            made = super().forward(batch_shape, same_on_batch)
            if any(type(tensor) is not Tensor for tensor in made.values()):
                return made  # fake tensors, for one
            self._last = key, made
        # Rows that kornia expands share their memory in the copy, too.
        return {
            name: tensor.clone() if tensor.stride(0) else tensor[0].clone().expand_as(tensor)
            for name, tensor in made.items()
        }


def is_eager(device: torch.device | str | None, *dtypes: torch.dtype) -> bool:
    """Whether numbers are drawn on the CPU, as plain ones, and in types that count pixels without rounding."""
    return (
        not torch.compiler.is_compiling()  # asked first: the rest is nothing that a compiler can trace
        and not torch._C._are_functorch_transforms_active()  # `torch.func.vmap` may draw other numbers for each entry
        and device is not None
        and torch.device(device).type == "cpu"
        and torch.get_default_device().type == "cpu"
        and all(dtype in (torch.float32, torch.float64) for dtype in dtypes)
    )


def has_plain_shape(batch_shape: tuple[int, ...]) -> bool:
    return all(type(length) is int for length in batch_shape) and 0 not in batch_shape


@functools.lru_cache(maxsize=64)
def _area_range(scale: Pair, dtype: torch.dtype) -> Pair:
    """The smallest share of the area, and how much there is above it, as this type rounds them."""
    smallest, largest = torch.tensor(scale, dtype=dtype)
    return smallest.item(), (largest - smallest).item()


@functools.lru_cache(maxsize=256)
def _fallback(size: tuple[int, int], ratio: Pair, dtype: torch.dtype) -> Pair:
    """(h, w) of the crop where no candidate fits: the largest of an allowed ratio."""
    height, width = (torch.tensor(float(length), dtype=dtype) for length in size)
    if size[1] / size[0] < min(ratio):
        height = (width / min(ratio)).round()
    elif size[1] / size[0] > max(ratio):
        width = (height * max(ratio)).round()
    return max(height.item(), 1.0), max(width.item(), 1.0)
