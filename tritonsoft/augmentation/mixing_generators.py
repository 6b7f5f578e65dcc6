"""What the mixing modules draw: a partner for each sample, and the numbers that say what comes of it."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta

from tritonsoft.augmentation._kornia import RandomGeneratorBase, UniformDistribution, adapted_rsampling
from tritonsoft.augmentation.resampling import Params
from tritonsoft.augmentation.view import Size


class PairGenerator(RandomGeneratorBase):
    """A partner for each sample, never itself where there is another, and random numbers.

    The partners are a random cycle through the batch: each other sample is as likely as the next, and each is the
    partner of one.
    """

    def __init__(self, alpha: float = 1.0, limits: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        self.alpha, self.limits = alpha, limits

    def make_samplers(self, device: torch.device, dtype: torch.dtype) -> None:
        zero, one, alpha = torch.tensor(
            (0.0, 1.0, self.alpha), device=device, dtype=torch.promote_types(dtype, torch.float32)
        )
        self.uniform_sampler = UniformDistribution(zero, one)
        self.share_sampler = self.uniform_sampler if self.alpha == 1 else Beta(alpha, alpha)

    def partners(self, batch: int) -> Tensor:
        cycle = torch.randperm(batch)
        return torch.empty_like(cycle).scatter_(0, cycle, cycle.roll(1))

    def shares(self, batch: int, same_on_batch: bool) -> Tensor:
        """``(B,)`` between the limits, of the beta distribution."""
        smallest, largest = self.limits
        return smallest + (largest - smallest) * self._drawn((batch,), self.share_sampler, same_on_batch)

    def evenly(self, shape: tuple[int, ...], same_on_batch: bool) -> Tensor:
        """From 0 to 1."""
        return self._drawn(shape, self.uniform_sampler, same_on_batch)

    def _drawn(self, shape: tuple[int, ...], sampler: Any, same_on_batch: bool) -> Tensor:
        # kornia's parameters have the default type, and lie where new tensors do. Halves are too coarse for places.
        like = torch.empty(0, dtype=torch.promote_types(torch.get_default_dtype(), torch.float32))
        return adapted_rsampling(shape, sampler, same_on_batch).to(like)


class CutGenerator(PairGenerator):
    """The share of the area that a box covers, and where it lies: a share of the way across and down."""

    def __repr__(self) -> str:
        return f"alpha={self.alpha}, area={self.limits}"

    def forward(self, batch_shape: tuple[int, ...], same_on_batch: bool = False) -> Params:
        batch = batch_shape[0]
        return {
            "mix_pairs": self.partners(batch),
            "area": self.shares(batch, same_on_batch),
            "across": self.evenly((batch,), same_on_batch),
            "down": self.evenly((batch,), same_on_batch),
        }


class WeightGenerator(PairGenerator):
    """The share of the partner."""

    def __repr__(self) -> str:
        return f"alpha={self.alpha}, lambda_val={self.limits}"

    def forward(self, batch_shape: tuple[int, ...], same_on_batch: bool = False) -> Params:
        batch = batch_shape[0]
        return {"mix_pairs": self.partners(batch), "weight": self.shares(batch, same_on_batch)}


class ClassGenerator(PairGenerator):
    """A number for each class, ``(B, C)``: the classes of the smallest are pasted."""

    def __init__(self, num_classes: int, share: float) -> None:
        super().__init__()
        self.num_classes, self.share = num_classes, share

    def __repr__(self) -> str:
        return f"share={self.share}"

    def forward(self, batch_shape: tuple[int, ...], same_on_batch: bool = False) -> Params:
        batch = batch_shape[0]
        order = self.evenly((batch, self.num_classes), same_on_batch)
        return {"mix_pairs": self.partners(batch), "class_order": order}


def boxes_of(params: Params, size: Size) -> Tensor:
    """The boxes ``(B, 4)`` of these parameters in an image of (H, W)."""
    side = params["area"].sqrt()
    spans = []
    for length, place in zip(size, (params["down"], params["across"]), strict=True):
        extent = (side * length).round()
        start = (place * (length - extent + 1)).floor().clamp(max=length - extent)
        # Inside of the image whatever somebody has made of the parameters.
        spans.append([end.long().clamp(0, length) for end in (start, start + extent)])
    (y0, y1), (x0, x1) = spans
    return torch.stack([x0, y0, x1, y1], dim=1)
