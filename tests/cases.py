"""Random inputs for the operators, how far a backend may be from the float64 reference, and an old PyTorch."""

import math
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tritonsoft.geometry import FILTERS, Filter

# For what compares a graph of kornia's modules with the parameters that they record.
records_in_graphs = pytest.mark.skipif(
    torch.__version__ < (2, 12), reason="before PyTorch 2.12 kornia's modules record no parameters inside a graph"
)

SOFT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
IMAGE_DTYPES = (*SOFT_DTYPES, torch.uint8)
LABEL_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
# What reads an element, what computes and what stores are compiled together, anew for each combination of types: every
# type of each part is drawn, but not every combination.
_LABELS_TO_SOFT = (
    *((torch.uint8, dtype) for dtype in SOFT_DTYPES),
    *((dtype, torch.float32) for dtype in LABEL_DTYPES),
)
_IMAGES = (
    *((dtype, dtype) for dtype in IMAGE_DTYPES),
    *((torch.float32, dtype) for dtype in SOFT_DTYPES[1:]),
    *((dtype, torch.float32) for dtype in IMAGE_DTYPES[1:]),
)
LAYOUTS = ("contiguous", "channels_last", "window", "transposed", "stepped", "expanded")


@dataclass(frozen=True)
class Case:
    """One call: everything but the backend."""

    image: Tensor  # (B, K, H, W)
    labels: Tensor  # (B, H, W)
    boxes: Tensor | None  # (B, 4)
    size: tuple[int, int]
    num_classes: int
    ignore_index: int
    filter: Filter
    fill: float
    image_dtype: torch.dtype
    soft_dtype: torch.dtype

    def to(self, device: str) -> "Case":
        boxes = None if self.boxes is None else self.boxes.to(device)
        return Case(**{**vars(self), "image": self.image.to(device), "labels": self.labels.to(device), "boxes": boxes})

    @property
    def taps(self) -> float:
        """A bound on the taps along both axes together."""
        height, width = self.labels.shape[1:]
        boxes = torch.tensor([[0.0, 0.0, width, height]]) if self.boxes is None else self.boxes.double().cpu()
        scales = [(boxes[:, axis + 2] - boxes[:, axis]).abs().max().item() / self.size[1 - axis] for axis in (0, 1)]
        return sum(2 * max(scale, 1) + 2 for scale in scales)

    def tolerance(self, dtype: torch.dtype, largest: float) -> float:
        """Worst absolute error of an output in ``dtype`` whose source values are at most ``largest``.

        Positions, weights and the sum over n taps each err by at most n roundings of the working precision (float32, or
        float64 where the output is float64) relative to the weights' sum; then the result is rounded once to ``dtype``.
        """
        working = torch.float64 if dtype == torch.float64 else torch.float32
        rounding = 0.0 if dtype == torch.uint8 else torch.finfo(dtype).eps / 2
        smallest = 0.0 if dtype == torch.uint8 else torch.finfo(dtype).tiny * torch.finfo(dtype).eps
        return largest * (4 * (self.taps + 4) * torch.finfo(working).eps + rounding) + smallest


def _layout(tensor: Tensor, layout: str) -> Tensor:
    """The same values with other strides; every layout is a view that no kernel may copy or misread."""
    *batch, height, width = tensor.shape
    if layout == "channels_last" and tensor.ndim == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "window":
        larger = tensor.new_zeros(*batch, height + 3, width + 5)
        larger[..., 2 : 2 + height, 1 : 1 + width] = tensor
        return larger[..., 2 : 2 + height, 1 : 1 + width]
    if layout == "transposed":
        return tensor.mT.contiguous().mT
    if layout == "stepped":
        larger = tensor.new_zeros(*batch, height, 2 * width)
        larger[..., ::2] = tensor
        return larger[..., ::2]
    if layout == "expanded":
        return tensor[:1].expand(tensor.shape)
    return tensor


def _box_axis(rng: random.Random, size: int) -> tuple[float, float]:
    kind = rng.choice(["whole", "inside", "integer", "across", "beyond", "tiny", "wide"])
    if kind == "whole":
        low, high = 0.0, float(size)
    elif kind == "integer":
        low = float(rng.randrange(size))
        high = float(rng.randint(int(low) + 1, size))
    elif kind == "across":
        low, high = rng.uniform(-size, size / 2), rng.uniform(size / 2 + 0.1, 2 * size)
    elif kind == "beyond":
        low = rng.uniform(size + 1, size + 5)
        high = low + rng.uniform(0.5, 9)
    elif kind == "tiny":
        low = rng.uniform(0, size - 0.5)
        high = low + rng.uniform(0.05, 0.9)
    elif kind == "wide":
        low, high = -rng.uniform(1, 5) * size, rng.uniform(2, 5) * size
    else:
        low = rng.uniform(0, size / 2)
        high = rng.uniform(size / 2 + 0.25, size)
    return (high, low) if rng.random() < 0.3 else (low, high)


def random_case(rng: random.Random, largest: int = 40) -> Case:
    """A case whose sides are at most ``largest``; a plain generator or a Hypothesis one (`st.randoms`) may draw it."""
    batch, channels = rng.randint(1, 3), rng.choice([1, 3, 4])
    height, width = (1 if rng.random() < 0.1 else rng.randint(2, largest) for _ in range(2))
    size = (rng.randint(1, largest // 2), rng.randint(1, largest // 2))
    num_classes = rng.choice([1, 2, 5, 19, 37])
    label_dtype, soft_dtype = rng.choice(_LABELS_TO_SOFT)
    ignore_index = rng.choice([255, -1, 0, num_classes, 1000])
    if soft_dtype == torch.float32 and label_dtype in (torch.uint8, torch.int64) and rng.random() < 0.25:
        ignore_index = -(2**40)  # which is compared in int64
    boxes = None
    if rng.random() < 0.25:  # an integer factor of the whole image: the dense path
        factor = rng.choice([1, 2, 4, 8])
        size = (max(1, size[0] // factor), max(1, size[1] // factor))
        height, width = size[0] * factor, size[1] * factor
    elif rng.random() < 0.8:
        xs, ys = ([_box_axis(rng, side) for _ in range(batch)] for side in (width, height))
        rows = [[x[0], y[0], x[1], y[1]] for x, y in zip(xs, ys, strict=True)]
        boxes = torch.tensor(rows, dtype=rng.choice([torch.float32, torch.float64]))

    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    info = torch.iinfo(label_dtype)
    blocks = torch.randint(num_classes, (batch, height // 3 + 1, width // 3 + 1), generator=generator)
    noise = torch.randint(num_classes, (batch, height, width), generator=generator)
    flat = blocks.repeat_interleave(3, 1)[:, :height].repeat_interleave(3, 2)[:, :, :width]
    labels = torch.where(torch.rand(noise.shape, generator=generator) < rng.choice([0.0, 0.2, 1.0]), noise, flat)
    if info.min <= ignore_index <= info.max:
        labels = labels.masked_fill(torch.rand(noise.shape, generator=generator) < 0.2, ignore_index)

    in_dtype, image_dtype = rng.choice(_IMAGES)
    image = torch.rand(batch, channels, height, width, generator=generator, dtype=torch.float64)
    image = (image * 255).round().to(in_dtype) if in_dtype == torch.uint8 else (image * 4 - 2).to(in_dtype)
    return Case(
        image=_layout(image, rng.choice(LAYOUTS)),
        labels=_layout(labels.to(label_dtype), rng.choice(LAYOUTS)),
        boxes=boxes,
        size=size,
        num_classes=num_classes,
        ignore_index=ignore_index,
        filter=rng.choice(FILTERS),
        fill=rng.choice([0.0, 0.5, 7.0]),
        image_dtype=image_dtype,
        soft_dtype=soft_dtype,
    )


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Largest absolute difference within the tolerance; a NaN is never close."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    difference = (actual.double().cpu() - expected.double().cpu()).abs().max().item() if actual.numel() else 0.0
    assert not math.isnan(difference), f"{what}: NaN in the output"
    assert difference <= tolerance, f"{what}: off by {difference:.3g}, allowed {tolerance:.3g}"


class RefusesUnsigned(TorchDispatchMode):
    """PyTorch 2.11, the oldest promised: of the wide unsigned integers it makes, copies, views and finds equal.

    Our own operators take them, and what these do inside is not seen here.
    """

    types = (torch.uint16, torch.uint32, torch.uint64)
    allowed = (
        *("empty", "empty_strided", "lift_fresh", "clone", "copy_", "_to_copy", "eq"),
        *("alias", "as_strided", "detach", "expand", "permute", "reshape", "select", "slice", "split", "squeeze"),
        *("transpose", "unbind", "unsqueeze", "_unsafe_view", "view"),
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)]
        takes_them = func.namespace == "tritonsoft" or func.overloadpacket.__name__ in self.allowed
        if not takes_them and any(each.dtype in self.types for each in tensors):
            raise NotImplementedError(f"{func} is not implemented for unsigned integers")
        return out
