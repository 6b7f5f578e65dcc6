"""Losses of soft labels and of label maps: every backend against the float64 reference, torch's own and MONAI's."""

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tritonsoft as ts
from tests.cases import LAYOUTS, SOFT_DTYPES, _layout, assert_close, random_case
from tritonsoft.backends import reference
from tritonsoft.ops import labels as label_ops
from tritonsoft.ops import losses as loss_ops
from tritonsoft.ops import warps as warp_ops

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class LossCase:
    """Logits with a target, and the float64 soft label that the target stands for."""

    logits: Tensor  # (B, C, h, w)
    soft: Tensor | ts.SparseLabels
    exact: Tensor  # (B, C, h, w)
    weight: Tensor | None

    def tolerance(self, dtype: torch.dtype) -> float:
        """Worst error of a loss that sums up the classes in float32 (or float64), then rounds to ``dtype``."""
        working = torch.float64 if self.logits.dtype == torch.float64 else torch.float32
        largest = self.logits.double().abs().max().item() + 8  # a logsumexp is at most log(C) above
        terms = 4 * (self.logits.shape[1] + 8)
        return largest * terms * torch.finfo(working).eps + torch.finfo(dtype).eps


def loss_case(seed: int, target: tuple[str, str]) -> LossCase:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    interpreted = target == ("cpu", "triton")
    batch, num_classes = rng.randint(1, 3), rng.choice([1, 2, 5, 19, 37])
    size = (rng.randint(1, 5), rng.randint(1, 9)) if interpreted else (rng.randint(1, 30), rng.randint(1, 70))
    shape = (batch, num_classes, *size)
    dtype, soft_dtype = rng.choice(SOFT_DTYPES), rng.choice(SOFT_DTYPES)
    logits = torch.randn(shape, generator=generator) * rng.choice([0.1, 3.0, 30.0])
    soft = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.4)
    soft = soft / (soft.sum(1, keepdim=True) + 0.05) * (torch.rand(batch, 1, *size, generator=generator) < 0.8)
    soft = soft.to(soft_dtype)
    exact = soft.double()
    weight = torch.rand(num_classes, generator=generator) if rng.random() < 0.5 else None
    if rng.random() < 0.4:
        soft = ts.SparseLabels.from_dense(soft, min(3, num_classes), rng.choice(SOFT_DTYPES[:3]))
        exact = soft.to_dense(torch.float32).double()
    else:
        soft = _layout(soft, rng.choice(LAYOUTS[:-1]))
    logits = _layout(logits.to(dtype), rng.choice(LAYOUTS[:-1]))
    device = target[0]
    weight = None if weight is None else weight.to(device)
    return LossCase(logits.to(device), soft.to(device), exact, weight)


def leaf(logits: Tensor) -> Tensor:
    """The same values and strides, with a gradient to come."""
    return logits.detach().requires_grad_()


def expected_gradient(loss: Tensor, logits: Tensor, grad: Tensor | None = None) -> Tensor:
    return torch.autograd.grad(loss, logits, grad)[0]


# --- every backend against the reference ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_cross_entropy(target, seed):
    case = loss_case(seed, target)
    options = {"weight": case.weight, "backend": target[1]}
    weight = None if case.weight is None else case.weight.double().cpu()
    exact = case.logits.double().cpu().requires_grad_()
    loss, mass, _ = reference.cross_entropy(exact, case.exact, weight)
    tolerance = case.tolerance(torch.float32)

    logits = leaf(case.logits)
    each = ts.soft_cross_entropy(logits, case.soft, reduction="none", **options)
    assert each.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert_close(each, loss, tolerance, "each pixel")
    grad = torch.rand(each.shape, generator=torch.Generator().manual_seed(0), dtype=each.dtype)
    each.backward(grad.to(each.device))
    assert logits.grad.dtype == logits.dtype
    expected = expected_gradient(loss, exact, grad.double())
    assert_close(logits.grad, expected, case.tolerance(logits.dtype), "gradient of each")

    exact = exact.detach().requires_grad_()
    loss, mass, _ = reference.cross_entropy(exact, case.exact, weight)
    total = mass.sum()
    mean = loss.sum() / torch.where(total > 0, total, 1)
    logits = leaf(case.logits)
    actual = ts.soft_cross_entropy(logits, case.soft, **options)
    assert_close(actual, mean, 2 * tolerance * max(1, loss.numel() / max(total.item(), 1)), "mean")
    actual.backward()
    scale = 1 / max(total.item(), 1e-3)
    smallest = torch.finfo(logits.dtype).tiny
    assert_close(
        logits.grad, expected_gradient(mean, exact), case.tolerance(logits.dtype) * scale + smallest, "gradient"
    )
    actual = ts.soft_cross_entropy(leaf(case.logits), case.soft, reduction="sum", **options)
    assert_close(actual, loss.sum(), 2 * tolerance * loss.numel(), "sum")


@pytest.mark.parametrize("seed", range(12))
def test_area_cross_entropy(target, seed):
    rng = random.Random(seed)
    device, backend = target
    case = random_case(rng, 14 if target == ("cpu", "triton") else 40)
    soft = reference.soft_crop_resize(
        case.labels, case.boxes, case.size, case.num_classes, case.ignore_index, case.filter, torch.float64
    )
    logits = torch.randn(soft.shape, generator=torch.Generator().manual_seed(seed)) * rng.choice([0.3, 5.0])
    logits = _layout(logits.to(case.soft_dtype), rng.choice(LAYOUTS[:-1]))
    weight = torch.rand(case.num_classes) if rng.random() < 0.5 else None
    there = case.to(device)
    options = {
        "ignore_index": case.ignore_index,
        "filter": case.filter,
        "weight": None if weight is None else weight.to(device),
        "backend": backend,
    }
    exact = logits.double().requires_grad_()
    loss, mass, _ = reference.cross_entropy(exact, soft, None if weight is None else weight.double())
    as_loss = LossCase(logits, soft, soft, weight)
    largest = logits.double().abs().max().item() + 8
    tolerance = as_loss.tolerance(torch.float32) + largest * case.num_classes * case.tolerance(torch.float32, 1.0)

    actual = leaf(logits.to(device))
    each = ts.area_cross_entropy(actual, there.labels, there.boxes, reduction="none", **options)
    assert_close(each, loss, tolerance, "each pixel")
    grad = torch.rand(each.shape, generator=torch.Generator().manual_seed(0), dtype=each.dtype)
    each.backward(grad.to(device))
    expected = expected_gradient(loss, exact, grad.double())
    assert_close(actual.grad, expected, tolerance + torch.finfo(logits.dtype).eps, "gradient")
    total = mass.sum().item()
    if total > 0.1:
        mean = ts.area_cross_entropy(logits.to(device), there.labels, there.boxes, **options)
        assert_close(mean, loss.sum() / total, 2 * tolerance * max(1, loss.numel() / total), "mean")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("measure", "per_sample"), [("dice", True), ("dice", False), ("jaccard", True)])
def test_overlap_loss(target, seed, measure, per_sample):
    case = loss_case(seed, target)
    exact = case.logits.double().cpu().requires_grad_()
    sums, _, _ = reference.overlap(exact, case.exact)
    sums = sums if per_sample else sums.sum(0, keepdim=True)
    classes = ("present", "all")[seed % 2]
    weight = None if case.weight is None else case.weight.double().cpu()
    expected, _ = reference.overlap_loss(sums, weight, measure, classes, "none")
    logits = leaf(case.logits)
    loss = ts.soft_dice_loss if measure == "dice" else ts.soft_jaccard_loss
    options = {"weight": case.weight, "classes": classes, "per_sample": per_sample, "backend": target[1]}
    actual = loss(logits, case.soft, reduction="none", **options)
    actual = actual if per_sample else actual[None]
    # Each is a quotient of sums over the pixels: times its denominator it errs as they do.
    denominator = (sums[..., 0] + sums[..., 1]).detach()
    pixels = case.logits.shape[0] * case.logits.shape[2] * case.logits.shape[3]
    known = sums[..., 1] > 0
    difference = torch.where(known, (actual.double().cpu() - expected) * denominator, 0)
    assert_close(difference, torch.zeros_like(difference), 4 * case.tolerance(torch.float32) * pixels, "loss")
    assert actual.cpu()[~known].equal(expected[~known].to(actual.dtype))
    grad = torch.rand(sums.shape[:2], generator=torch.Generator().manual_seed(0), dtype=torch.float64) * denominator
    actual.backward(grad.to(actual))
    expected_grad = expected_gradient(expected, exact, grad)
    # Where p = q but for rounding, the sign of p - q is anybody's: such entries may be off by twice the slope.
    m = case.exact.sum(1, keepdim=True)
    near = ((m * exact.detach().softmax(1) - case.exact).abs() < case.tolerance(torch.float32)).any(1, keepdim=True)
    difference = torch.where(near, 0, logits.grad.double().cpu() - expected_grad)
    assert_close(difference, torch.zeros_like(difference), 8 * case.tolerance(logits.dtype), "gradient")


@pytest.mark.parametrize("num_classes", [1, 300, 1000])
def test_any_number_of_classes(target, num_classes):
    device, backend = target
    if num_classes == 1000 and target == ("cpu", "triton"):
        pytest.skip("the interpreter takes a minute for it; 300 classes take the same path")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (1, 4, 6), generator=generator)
    logits = torch.randn(1, num_classes, 2, 3, generator=generator)
    soft = ts.soft_resize(labels, (2, 3), num_classes, ignore_index=-1, backend="reference")
    expected = reference.cross_entropy(logits.double(), soft.double(), None)[0].mean()
    options = {"backend": backend}
    sparse = ts.SparseLabels.from_dense(soft, min(4, num_classes)).to(device)
    for loss in (
        ts.soft_cross_entropy(leaf(logits.to(device)), soft.to(device), **options),
        ts.soft_cross_entropy(leaf(logits.to(device)), sparse, **options),
        ts.area_cross_entropy(leaf(logits.to(device)), labels.to(device), ignore_index=-1, **options),
    ):
        assert_close(loss, expected, 1e-5 * expected.item() + 1e-6, "loss")
        loss.backward()


def test_sums_of_more_programs_than_one_finishes(target, monkeypatch):
    device, backend = target
    if backend != "triton":
        pytest.skip("Triton's programs leave their sums to another one")
    from tritonsoft.kernels import sums

    monkeypatch.setattr(sums, "MAX_PAIRS", 2)
    monkeypatch.setattr(sums, "MAX_ROWS", 2)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 40, 41, generator=generator).to(device)
    soft = torch.randn(2, 3, 40, 41, generator=generator).softmax(1).to(device)
    for loss, options in (
        (ts.soft_cross_entropy, {}),
        (ts.soft_dice_loss, {"per_sample": True}),
        (ts.soft_jaccard_loss, {"classes": "all"}),
    ):
        expected = loss(logits, soft, backend="reference", **options)
        assert_close(loss(logits, soft, backend=backend, **options), expected, 1e-6, loss.__name__)


@pytest.mark.parametrize("seed", range(6))
def test_smoothed_cross_entropy(target, seed):
    """Dense, sparse and fused targets, with weights and without, at the ends and between."""
    device, backend = target
    case = loss_case(100 + seed, target)
    share = (0.1, 0.5, 1.0)[seed % 3]
    options = {"label_smoothing": share, "backend": backend}
    weight = None if case.weight is None else case.weight.double().cpu()
    exact = case.logits.double().cpu().requires_grad_()
    loss, _, _ = reference.cross_entropy(exact, reference.smoothed(case.exact, share), weight)
    total = (case.exact if weight is None else weight[:, None, None] * case.exact).sum().item()
    logits = leaf(case.logits)
    each = ts.soft_cross_entropy(logits, case.soft, weight=case.weight, reduction="none", **options)
    assert_close(each, loss, 2 * case.tolerance(torch.float32), "each pixel")
    grad = torch.rand(each.shape, generator=torch.Generator().manual_seed(0), dtype=each.dtype)
    each.backward(grad.to(device))
    expected = expected_gradient(loss, exact, grad.double())
    assert_close(logits.grad, expected, 2 * case.tolerance(logits.dtype), "gradient")
    mean = ts.soft_cross_entropy(leaf(case.logits), case.soft, weight=case.weight, **options)
    tolerance = 4 * case.tolerance(torch.float32) * max(1, loss.numel() / max(total, 1))
    assert_close(mean, loss.sum() / (total or 1), tolerance, "mean")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("where", ["whole", "boxes", "transform"])
def test_smoothed_area_is_the_smoothed_soft(target, where, weighted):
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (2, 8, 10), generator=generator)
    labels[:, 2:5, 1:6] = 255
    logits = torch.randn(2, 5, 4, 5, generator=generator).to(device)
    weight = torch.tensor([1.0, 0.0, 3.0, 0.5, 2.0], device=device) if weighted else None
    boxes = torch.tensor([[1.5, 0.0, 9.0, 7.5], [12.0, -3.0, 2.0, 9.0]])
    options, labels = {"weight": weight, "label_smoothing": 0.2}, labels.to(device)
    if where == "transform":
        place = {"transform": ts.box_to_matrix(boxes, (4, 5)).to(device)}
        soft = ts.soft_warp(labels, place["transform"], (4, 5), 5, backend="reference")
    else:
        place = {"boxes": boxes.to(device) if where == "boxes" else None}
        soft = ts.soft_crop_resize(labels, place["boxes"], (4, 5), 5, backend="reference")
    first, second = leaf(logits), leaf(logits.double())
    actual = ts.area_cross_entropy(first, labels, **place, **options, backend=backend)
    expected = ts.soft_cross_entropy(second, soft.double(), **options, backend="reference")
    assert_close(actual, expected, 1e-5, "loss")
    actual.backward()
    expected.backward()
    assert_close(first.grad, second.grad, 1e-5, "gradient")


@pytest.mark.parametrize("num_classes", [1, 150])
def test_smoothing_any_number_of_classes(target, num_classes):
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (1, 2, 6), generator=generator)
    logits = 20 * torch.randn(1, num_classes, 1, 3, generator=generator)
    weight = torch.rand(num_classes, generator=generator)
    enlarged = logits.double().repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.cross_entropy(enlarged, labels, weight.double(), label_smoothing=0.3)
    options = {"weight": weight.to(device), "label_smoothing": 0.3, "backend": backend}
    actual = ts.area_cross_entropy(logits.to(device), labels.to(device), **options)
    assert_close(actual, expected, 1e-5 * expected.item() + 1e-6, "loss")


def _binary_case(
    seed: int, target: tuple[str, str]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    interpreted = target == ("cpu", "triton")
    size = (rng.randint(1, 4), rng.randint(1, 9)) if interpreted else (rng.randint(1, 30), rng.randint(1, 70))
    shape = (rng.randint(1, 3), rng.choice([1, 5, 19, 37]), *size)
    logits = torch.randn(shape, generator=generator) * rng.choice([0.1, 3.0, 30.0])
    mass = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.8)
    soft = torch.rand(shape, generator=generator) * mass
    mass = (None, mass, mass[:, :1], mass.amax(1))[seed % 4]
    if mass is not None and mass.shape != soft.shape:
        soft = soft.minimum(mass if mass.ndim == 4 else mass[:, None])
    weight, pos_weight = (
        torch.rand(shape[1], generator=generator) * 3 if rng.random() < 0.6 else None for _ in range(2)
    )
    logits = _layout(logits.to(rng.choice(SOFT_DTYPES)), rng.choice(LAYOUTS[:-1]))
    soft = _layout(soft.to(rng.choice(SOFT_DTYPES)), rng.choice(LAYOUTS[:-1]))
    device = target[0]
    return tuple(None if each is None else each.to(device) for each in (logits, soft, mass, weight, pos_weight))


@pytest.mark.parametrize("seed", range(6))
def test_binary_cross_entropy(target, seed):
    """Against torch's own, of what is there and what is not, each weighted by its mass."""
    logits, soft, mass, weight, pos_weight = _binary_case(seed, target)
    exact = logits.double().cpu().requires_grad_()
    known = torch.ones(()) if mass is None else mass if mass.ndim == 4 else mass[:, None]
    known = known.double().cpu().expand(soft.shape)
    present = soft.double().cpu().minimum(known)
    ones = torch.ones(logits.shape[1], dtype=torch.float64)
    of_class, of_present = (
        ones[:, None, None] if each is None else each.double().cpu()[:, None, None] for each in (weight, pos_weight)
    )
    zeros = torch.zeros_like(exact)
    options = {"reduction": "none"}
    expected = of_class * (
        of_present * present * F.binary_cross_entropy_with_logits(exact, zeros + 1, **options)
        + (known - present) * F.binary_cross_entropy_with_logits(exact, zeros, **options)
    )
    total = (of_class * known).sum().item()
    options = {"weight": weight, "pos_weight": pos_weight, "backend": target[1]}
    actual = leaf(logits)
    each = ts.soft_binary_cross_entropy(actual, soft, mass, reduction="none", **options)
    largest = 9 * (exact.detach().abs().max().item() + 1)  # two weights up to 3
    working = torch.finfo(each.dtype).eps
    assert_close(each, expected, 16 * largest * working, "each")
    grad = torch.rand(each.shape, generator=torch.Generator().manual_seed(0), dtype=each.dtype)
    each.backward(grad.to(each.device))
    (of_each,) = torch.autograd.grad(expected, exact, grad.double(), retain_graph=True)
    assert actual.grad.dtype == logits.dtype
    rounding = torch.finfo(logits.dtype).eps
    assert_close(actual.grad, of_each, 9 * (16 * working + rounding), "gradient of each")

    exact_mean = expected.sum() / (total or 1)
    of_mean = expected_gradient(exact_mean, exact)
    actual = leaf(logits)
    mean = ts.soft_binary_cross_entropy(actual, soft, mass, **options)
    share = expected.numel() / max(total, 1)
    assert_close(mean, exact_mean, 32 * largest * working * share, "mean")
    mean.backward()
    allowed = 9 * (32 * working + rounding) / max(total, 1e-3) + torch.finfo(logits.dtype).tiny
    assert_close(actual.grad, of_mean, allowed, "gradient")
    total_loss = ts.soft_binary_cross_entropy(logits, soft, mass, reduction="sum", **options)
    assert_close(total_loss, expected.sum(), 32 * largest * working * expected.numel(), "sum")


def test_binary_cross_entropy_of_odd_numbers(target):
    """Small losses keep their digits; what has no mass may have any logit and any gradient from above."""
    device, backend = target
    logits = torch.tensor([20.0, -20.0, INF, -INF, NAN, 100.0]).view(1, 6, 1, 1).to(device)
    soft = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0]).view(1, 6, 1, 1).to(device)
    mass = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0]).view(1, 6, 1, 1).to(device)
    actual = leaf(logits)
    each = ts.soft_binary_cross_entropy(actual, soft, mass, reduction="none", backend=backend)
    small = math.log1p(math.exp(-20))
    expected = torch.tensor([small, small, 0, 0, 0, 100], dtype=torch.float64)
    assert ((each.cpu().flatten() - expected).abs() <= 1e-6 * expected).all()
    above = torch.ones_like(each)
    above[0, 4] = NAN
    each.backward(above)
    sigmoid = 1 / (1 + math.exp(20))
    gradient = torch.tensor([-sigmoid, sigmoid, 0, 0, 0, 1], dtype=torch.float64)
    assert ((actual.grad.cpu().flatten() - gradient).abs() <= 1e-6 * gradient.abs()).all()


@pytest.mark.parametrize("where", ["whole", "boxes", "transform"])
def test_planes_lie_where_images_do(target, where):
    """Known or not, a plane is resampled as an image of ones and zeros is, whose outside is black."""
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    planes = torch.randint(2, (2, 3, 8, 10), generator=generator, dtype=torch.uint8)
    known = torch.rand(planes.shape, generator=generator) < 0.7
    boxes = torch.tensor([[1.5, 0.0, 9.0, 7.5], [12.0, -3.0, 2.0, 9.0]])
    transform = ts.box_to_matrix(boxes, (4, 5))
    given, options = planes.where(known, torch.tensor(255, dtype=torch.uint8)).to(device), {"backend": backend}

    def as_image(image: Tensor) -> Tensor:
        if where == "transform":
            return ts.warp(image.double(), transform, (4, 5), backend="reference")
        return ts.crop_resize(image.double(), boxes if where == "boxes" else None, (4, 5), backend="reference")

    if where == "transform":
        soft, mass = ts.soft_planes(given, None, (4, 5), transform=transform.to(device), **options)
    else:
        soft, mass = ts.soft_planes(given, boxes.to(device) if where == "boxes" else None, (4, 5), **options)
    assert_close(soft, as_image(planes * known), 1e-5, "masses")
    assert_close(mass, as_image(known), 1e-5, "known")
    assert (soft <= mass).all()
    bool_planes = planes.bool().to(device)
    assert_close(
        ts.soft_planes(bool_planes, None, (4, 5), **options)[0],
        ts.resize(planes.double(), (4, 5), backend="reference"),
        1e-5,
        "bool",
    )


# --- against torch's own, MONAI's and the papers' -------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_area_is_the_hard_loss_of_enlarged_logits(target, factor, weighted):
    device, backend = target
    generator = torch.Generator().manual_seed(factor)
    logits = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64).to(device)
    labels = torch.randint(5, (2, 3 * factor, 4 * factor), generator=generator)
    labels = labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.2, 255).to(device)
    weight = torch.rand(5, generator=generator, dtype=torch.float64).to(device) if weighted else None
    first, second = leaf(logits), leaf(logits)
    actual = ts.area_cross_entropy(first, labels, weight=weight, backend=backend)
    enlarged = second.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    expected = F.cross_entropy(enlarged, labels, weight, ignore_index=255)
    assert_close(actual, expected, 1e-6, "loss")
    actual.backward()
    expected.backward()
    assert_close(first.grad, second.grad, 1e-6, "gradient")


def test_area_equals_soft_with_boxes(target):
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (2, 13, 17), generator=generator).to(device)
    boxes = torch.tensor([[1.5, 0.0, 16.0, 12.5], [20.0, -3.0, 2.0, 9.0]], device=device)
    logits = torch.randn(2, 5, 4, 5, generator=generator).to(device)
    for filter in ts.geometry.FILTERS:
        soft = ts.soft_crop_resize(labels, boxes, (4, 5), 5, filter=filter, backend=backend)
        expected = ts.soft_cross_entropy(logits, soft, backend=backend)
        assert_close(
            ts.area_cross_entropy(logits, labels, boxes, filter=filter, backend=backend), expected, 1e-5, filter
        )


@pytest.mark.parametrize("weighted", [False, True])
def test_smoothing_is_torchs_where_all_is_known(target, weighted):
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 3, 4, generator=generator, dtype=torch.float64).to(device)
    labels = torch.randint(7, (2, 3, 4), generator=generator)
    labels[:, 0] = 255
    weight = torch.rand(7, generator=generator, dtype=torch.float64).to(device) if weighted else None
    labels, soft = labels.to(device), ts.to_soft(labels, 7, dtype=torch.float64).to(device)
    options = {"weight": weight, "label_smoothing": 0.3}
    first, second, third = leaf(logits), leaf(logits), leaf(logits)
    expected = F.cross_entropy(first, labels, ignore_index=255, **options)
    of_soft = ts.soft_cross_entropy(second, soft, backend=backend, **options)
    of_labels = ts.area_cross_entropy(third, labels, backend=backend, **options)
    for loss in (of_soft, of_labels):
        assert_close(loss, expected, 1e-9, "loss")
        loss.backward()
    expected.backward()
    assert_close(second.grad, first.grad, 1e-9, "gradient")
    assert_close(third.grad, first.grad, 1e-9, "gradient")


def test_cross_entropy_is_torchs_where_all_is_known(target):
    device, backend = target
    logits = torch.randn(2, 7, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    soft = (
        torch.randn(2, 7, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1).to(device)
    )
    assert_close(ts.soft_cross_entropy(logits, soft, backend=backend), F.cross_entropy(logits, soft), 1e-9, "loss")
    each = ts.soft_cross_entropy(logits, soft, reduction="none", backend=backend)
    assert_close(each, F.cross_entropy(logits, soft, reduction="none"), 1e-9, "each")


def _published(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Dice semimetric loss 1 and Jaccard metric loss 1 of each class, as printed: p, q (C, pixels), sums of norms."""
    norm_p, norm_q, distance = p.norm(1, 1), q.norm(1, 1), (p - q).norm(1, 1)
    dice = 1 - (norm_p + norm_q - distance) / (norm_p + norm_q)
    norm_sum = (p + q).norm(1, 1)
    return dice, 1 - (norm_sum - distance) / (norm_sum + distance)


@pytest.mark.parametrize("per_sample", [False, True])
def test_dice_and_jaccard_are_the_published_ones(target, per_sample):
    device, backend = target
    case = loss_case(3, target)
    soft = case.exact.float().to(device)
    options = {"classes": "all", "per_sample": per_sample, "reduction": "none", "backend": backend}
    p = case.logits.double().cpu().softmax(1) * case.exact.sum(1, keepdim=True)
    if per_sample:
        pairs = [_published(a.flatten(1), b.flatten(1)) for a, b in zip(p, case.exact, strict=True)]
        dice, jaccard = (torch.stack(losses) for losses in zip(*pairs, strict=True))
    else:
        dice, jaccard = _published(p.transpose(0, 1).flatten(1), case.exact.transpose(0, 1).flatten(1))
    known = ~dice.isnan()
    for loss, expected in ((ts.soft_dice_loss, dice), (ts.soft_jaccard_loss, jaccard)):
        actual = loss(case.logits, soft, **options).double().cpu()
        assert actual.shape == expected.shape
        assert_close(actual[known], expected[known], 1e-4, loss.__name__)
        assert not actual[~known].any()


@pytest.mark.parametrize("loss", [ts.soft_dice_loss, ts.soft_jaccard_loss])
def test_zero_exactly_where_prediction_and_target_agree(target, loss):
    device, backend = target
    soft = (
        torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1).to(device)
    )
    assert loss(soft.log(), soft, backend=backend) < 1e-12
    assert loss(soft.log() + 0.1 * torch.arange(4, device=device)[:, None, None], soft, backend=backend) > 1e-3
    hard = F.one_hot(soft.argmax(1), 4).movedim(3, 1).double()
    assert loss(hard * 1e3, hard, backend=backend) == 0
    # The usual form is not: its least value for a soft target is not 0.
    assert 1 - 2 * (soft * soft).sum() / (2 * soft.sum()) > 0.5


@pytest.mark.parametrize("per_sample", [False, True])
def test_dice_is_monais(target, per_sample):
    dice = pytest.importorskip("monai.losses.dice", reason="MONAI is not installed")
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, 6, generator=generator, dtype=torch.float64).to(device)
    soft = torch.randn(2, 5, 4, 6, generator=generator, dtype=torch.float64).softmax(1).to(device)
    monai = dice.DiceLoss(softmax=True, soft_label=True, batch=not per_sample, smooth_nr=0.0, smooth_dr=0.0)
    first, second = leaf(logits), leaf(logits)
    actual = ts.soft_dice_loss(first, soft, per_sample=per_sample, backend=backend)
    expected = monai(second, soft)
    assert_close(actual, expected, 1e-9, "loss")
    actual.backward()
    expected.backward()
    assert_close(first.grad, second.grad, 1e-9, "gradient")


def test_classes_and_weights_of_the_overlap_losses(target):
    device, backend = target
    soft = torch.tensor([0.5, 0.5, 0.0]).view(1, 3, 1, 1).to(device)
    logits = torch.log(torch.tensor([0.25, 0.5, 0.25])).view(1, 3, 1, 1).to(device)
    each = torch.tensor([0.25 / 0.75, 0.0, 1.0])  # |p - q| / (p + q)
    options = {"backend": backend}
    assert_close(ts.soft_dice_loss(logits, soft, **options), each[:2].mean(), 1e-6, "present")
    assert_close(ts.soft_dice_loss(logits, soft, classes="all", **options), each.mean(), 1e-6, "all")
    assert_close(ts.soft_dice_loss(logits, soft, classes="all", reduction="sum", **options), each.sum(), 1e-6, "sum")
    assert_close(
        ts.soft_dice_loss(logits, soft, reduction="none", **options), each * torch.tensor([1, 1, 0]), 1e-6, "none"
    )
    weight = torch.tensor([3.0, 1.0, 2.0], device=device)
    expected = (each * weight.cpu()).sum() / 6
    assert_close(ts.soft_dice_loss(logits, soft, classes="all", weight=weight, **options), expected, 1e-6, "weighted")
    nothing = ts.soft_dice_loss(leaf(logits), torch.zeros_like(soft), **options)
    assert nothing == 0


# --- odd numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SOFT_DTYPES)
def test_huge_logits(target, dtype):
    device, backend = target
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=dtype).T.reshape(1, 3, 1, 2).to(device)
    soft = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]).T.reshape(1, 3, 1, 2).to(device)
    for loss in (ts.soft_cross_entropy, ts.soft_dice_loss, ts.soft_jaccard_loss):
        actual = leaf(logits)
        value = loss(actual, soft, backend=backend)
        value.backward()
        assert value.isfinite()
        assert actual.grad.isfinite().all()
    each = ts.soft_cross_entropy(logits, soft, reduction="none", backend=backend)[0, 0].cpu()
    exact = 2 * logits.double().max().item()
    assert_close(each, torch.tensor([0.0, exact / 2]), 1e-6 * exact, "loss")


def test_infinite_logits_of_classes_without_mass(target):
    device, backend = target
    logits = torch.tensor([0.0, 1.0, -INF]).view(1, 3, 1, 1).to(device)
    soft = torch.tensor([0.25, 0.75, 0.0]).view(1, 3, 1, 1).to(device)
    expected = F.cross_entropy(logits[:, :2], soft[:, :2])
    actual = leaf(logits)
    loss = ts.soft_cross_entropy(actual, soft, backend=backend)
    assert_close(loss, expected, 1e-6, "loss")
    loss.backward()
    share = logits[:, :2].softmax(1) - soft[:, :2]
    assert_close(actual.grad, torch.cat([share, torch.zeros_like(share[:, :1])], 1), 1e-6, "gradient")
    for overlap in (ts.soft_dice_loss, ts.soft_jaccard_loss):
        assert overlap(logits, soft, backend=backend).isfinite()


@pytest.mark.parametrize("dtype", SOFT_DTYPES)
def test_classes_masked_by_the_lowest_number(target, dtype):
    """The usual idiom for a class that cannot be: its logit is the lowest finite number."""
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, 5, (1, 4, 6), generator=generator)
    logits = torch.randn(1, 5, 2, 3, generator=generator).to(dtype)
    expected = F.cross_entropy(
        logits[:, 2:].double().repeat_interleave(2, 2).repeat_interleave(2, 3), labels - 2, reduction="mean"
    )
    logits[:, :2] = torch.finfo(dtype).min
    actual = leaf(logits.to(device))
    loss = ts.area_cross_entropy(actual, labels.to(device), backend=backend)
    assert_close(loss, expected, 1e-6, "loss")
    loss.backward()
    assert actual.grad.isfinite().all()
    assert not actual.grad[:, :2].any()
    assert_close(
        ts.soft_cross_entropy(actual, ts.soft_resize(labels.to(device), (2, 3), 5), backend=backend),
        expected,
        1e-6,
        "soft",
    )


def test_large_logits_keep_their_digits(target):
    device, backend = target
    labels = torch.randint(5, (1, 4, 6), generator=torch.Generator().manual_seed(0)).to(device)
    logits = (1e4 + torch.randn(1, 5, 2, 3, generator=torch.Generator().manual_seed(1))).to(device)
    exact, actual = leaf(logits.double()), leaf(logits)
    expected, loss = (ts.area_cross_entropy(z, labels, backend=backend) for z in (exact, actual))
    expected.backward()
    loss.backward()
    # The logsumexp itself is a float32: half a step at 1e4 is 5e-4, and the loss is measured from it.
    assert_close(loss, expected, 2**-10, "loss")
    assert_close(actual.grad, exact.grad, 2**-10, "gradient")


@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("lowest", [-80.0, -86.5, -95.0, -100.0, -104.0])
def test_classes_that_are_hardly_predicted(target, classes, lowest):
    """Where a class has no mass and next to no probability, the quotient's derivative is infinity times 0."""
    device, backend = target
    logits = torch.tensor([0.0, -1.0, lowest]).view(1, 3, 1, 1).to(device)
    soft = torch.tensor([0.02, 0.03, 0.0]).view(1, 3, 1, 1).to(device)
    for loss in (ts.soft_dice_loss, ts.soft_jaccard_loss):
        exact, actual = leaf(logits.double()), leaf(logits)
        loss(exact, soft, classes="present", backend=backend).backward()
        (65536 * loss(actual, soft, classes=classes, backend=backend)).backward()
        share = 1 if classes == "present" else 2 / 3  # the class without mass has no gradient, and is one of three
        assert_close(actual.grad / 65536, exact.grad * share, 1e-6, "gradient")


@pytest.mark.parametrize("grad", [NAN, INF])
def test_pixels_without_mass_have_no_gradient_whatever_comes_from_above(target, grad):
    device, backend = target
    labels = torch.randint(5, (1, 4, 6), generator=torch.Generator().manual_seed(0))
    labels[:, :2, :2] = 255
    labels = labels.to(device)
    logits = torch.randn(1, 5, 2, 3, generator=torch.Generator().manual_seed(1)).to(device)
    soft = ts.soft_resize(labels, (2, 3), 5, backend=backend)
    sparse = ts.SparseLabels.from_dense(soft, 4, torch.float32)
    above = torch.ones(1, 2, 3, device=device)
    above[0, 0, 0] = grad
    for loss, target_of_it in (
        (ts.area_cross_entropy, labels),
        (ts.soft_cross_entropy, soft),
        (ts.soft_cross_entropy, sparse),
    ):
        actual = leaf(logits)
        loss(actual, target_of_it, reduction="none", backend=backend).backward(above)
        assert not actual.grad[0, :, 0, 0].any()
        assert actual.grad.isfinite().all()


def test_masses_that_were_rounded_on_their_way(target):
    device, backend = target
    labels = torch.randint(7, (2, 70, 70), generator=torch.Generator().manual_seed(0)).to(device)
    logits = torch.zeros(2, 7, 10, 10, device=device)
    soft = ts.soft_resize(labels, (10, 10), 7)
    expected = ts.soft_cross_entropy(logits, soft, backend=backend)
    for rounded in (
        soft.bfloat16().float(),
        soft.half().double(),
        ts.SparseLabels.from_dense(soft, 7).to_dense(torch.float32),
    ):
        assert (rounded.sum(1) > 1).any()
        actual = ts.soft_cross_entropy(logits, rounded, validate=True, backend=backend)
        assert_close(actual, expected, 1e-2, "loss")


@pytest.mark.parametrize("dtype", SOFT_DTYPES)
def test_what_rounding_left_of_1_may_be_below_0(target, dtype):
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    # Classes without a background may all have been rounded up.
    soft = torch.zeros(2, 7, 5, 9, dtype=dtype)
    soft[:, 1:] = torch.randn(2, 6, 5, 9, generator=generator, dtype=torch.float64).softmax(1).to(dtype)
    soft[:, 0] = 1 - soft[:, 1:].sum(1)
    soft[0, 0, 0, 0] = -1.2e-7
    soft = soft.to(device)
    assert (soft < 0).any()
    logits = torch.randn(2, 7, 5, 9, generator=generator).to(device)
    for loss in (ts.soft_cross_entropy, ts.soft_dice_loss, ts.soft_jaccard_loss):
        assert_close(
            loss(logits, soft, validate=True, backend=backend),
            loss(logits.double(), soft.double().clamp(min=0), backend="reference"),
            1e-5,
            loss.__name__,
        )


@pytest.mark.parametrize("dtype", SOFT_DTYPES)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_mass_below_0_counts_as_0(target, dtype, sparse, weighted):
    """Whatever the logit of its class, and where the pixel has no other mass."""
    device, backend = target
    if sparse and dtype == torch.float64:
        pytest.skip("no SparseLabels holds float64")
    generator = torch.Generator().manual_seed(0)
    soft = torch.rand(2, 5, 3, 7, generator=generator) / 5
    soft[torch.rand(soft.shape, generator=generator) < 0.3] = -1.2e-7
    soft[0, :, 1, 2] = -1e-3
    soft[:, 3, 0] = -1 / 64
    logits = torch.randn(soft.shape, generator=generator)
    logits[:, 3, 0], logits[:, 1, 1] = -INF, torch.finfo(torch.float32).min
    soft[:, 1, 1] = soft[:, 1, 1].clamp(max=-1e-6)
    below, zero, logits = soft.to(device, dtype), soft.clamp(min=0).to(device, dtype), logits.to(device)
    if sparse:
        below, zero = (
            ts.SparseLabels(
                torch.arange(5, dtype=torch.uint8, device=device)[:, None, None].expand(soft.shape),
                mass,
                mass[:, 0] * 0,
                5,
            )
            for mass in (below, zero)
        )
    weight = torch.rand(5, generator=generator).to(device) if weighted else None
    for loss in (ts.soft_cross_entropy, ts.soft_dice_loss, ts.soft_jaccard_loss):
        first, second = leaf(logits), leaf(logits)
        actual, expected = (
            loss(z, q, weight=weight, validate=True, backend=backend) for z, q in ((first, below), (second, zero))
        )
        assert expected.isfinite()
        assert torch.equal(actual, expected)
        actual.backward()
        expected.backward()
        assert torch.equal(first.grad, second.grad)
        assert not first.grad[0, :, 1, 2].any()


@pytest.mark.parametrize("entries", [(-1 / 64, 1.0), (0.0, 1 + 1 / 64), (-1 / 64, 1 + 1 / 64)])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_tolerance_on_both_sides(target, entries, sparse, weighted):
    device, backend = target
    low, high = entries
    weight = torch.ones(2, device=device) if weighted else None
    logits = torch.zeros(1, 2, 3, 35, device=device)
    index = torch.tensor([1, 0], dtype=torch.uint8, device=device).view(1, 2, 1, 1).expand(logits.shape)
    for below, above in ((0.0, 0.0), (1e-6, 0.0), (0.0, 1e-6)):
        soft = torch.full(logits.shape, 0.25, device=device)
        soft[0, :, 2, 34] = torch.tensor([low - below, high + above], device=device)
        in_range = low - below >= -1 / 64 and high + above <= 1 + 1 / 64
        given = ts.SparseLabels(index, soft, soft[:, 0] * 0, 2) if sparse else soft
        for loss in (ts.soft_cross_entropy, ts.soft_dice_loss):
            if in_range:
                loss(logits, given, weight=weight, validate=True, backend=backend)
            else:
                with pytest.raises(ValueError, match=r"soft must hold masses, .* within 1/64"):
                    loss(logits, given, weight=weight, validate=True, backend=backend)


@pytest.mark.parametrize("spoiled", [NAN, INF, -INF])
def test_pixels_without_mass_count_nothing_whatever_their_logits(target, spoiled):
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (1, 4, 6), generator=generator)
    labels[:, :2, :2] = 255
    logits = torch.randn(1, 4, 2, 3, generator=generator)
    bad = logits.clone()
    bad[:, :, 0, 0] = spoiled
    labels, logits, bad = labels.to(device), logits.to(device), bad.to(device)
    soft = ts.soft_resize(labels, (2, 3), 4, backend=backend)
    losses = [
        lambda z: ts.soft_cross_entropy(z, soft, backend=backend),
        lambda z: ts.area_cross_entropy(z, labels, backend=backend),
        lambda z: ts.soft_dice_loss(z, soft, backend=backend),
    ]
    for loss in losses:
        first, second = leaf(logits), leaf(bad)
        expected, actual = loss(first), loss(second)
        assert torch.equal(actual, expected)
        expected.backward()
        actual.backward()
        assert torch.equal(first.grad, second.grad)
        assert not second.grad[:, :, 0, 0].any()


def test_nothing_known(target):
    device, backend = target
    logits = torch.randn(2, 3, 2, 2).to(device)
    labels = torch.full((2, 4, 4), 255, device=device)
    soft = torch.zeros_like(logits)
    zero_weight = torch.zeros(3, device=device)
    calls = [
        lambda z: ts.soft_cross_entropy(z, soft, backend=backend),
        lambda z: ts.soft_cross_entropy(z, soft + 0.25, weight=zero_weight, backend=backend),
        lambda z: ts.area_cross_entropy(z, labels, backend=backend),
        lambda z: ts.soft_cross_entropy(z, soft, label_smoothing=0.1, backend=backend),
        lambda z: ts.soft_cross_entropy(z, soft + 0.25, weight=zero_weight, label_smoothing=0.1, backend=backend),
        lambda z: ts.area_cross_entropy(z, labels, label_smoothing=0.1, backend=backend),
        lambda z: ts.soft_binary_cross_entropy(z, soft, soft, backend=backend),
        lambda z: ts.soft_binary_cross_entropy(z, soft, weight=zero_weight, backend=backend),
        lambda z: ts.soft_dice_loss(z, soft, backend=backend),
        lambda z: ts.soft_jaccard_loss(z, soft + 0.25, weight=zero_weight, backend=backend),
    ]
    for call in calls:
        actual = leaf(logits)
        loss = call(actual)
        loss.backward()
        assert loss == 0
        assert not actual.grad.any()


def test_empty_batch(target):
    device, backend = target
    logits, soft = torch.zeros(0, 3, 2, 2, device=device), torch.zeros(0, 3, 2, 2, device=device)
    labels = torch.zeros(0, 4, 4, dtype=torch.uint8, device=device)
    planes = torch.zeros(0, 3, 4, 4, dtype=torch.uint8, device=device)
    assert [mass.shape for mass in ts.soft_planes(planes, None, (2, 2), backend=backend)] == [soft.shape] * 2
    for call in (
        lambda z: ts.soft_cross_entropy(z, soft, backend=backend),
        lambda z: ts.soft_cross_entropy(
            z, soft, weight=torch.ones(3, device=device), label_smoothing=0.1, backend=backend
        ),
        lambda z: ts.area_cross_entropy(z, labels, label_smoothing=0.1, backend=backend),
        lambda z: ts.soft_binary_cross_entropy(z, soft, soft, backend=backend),
        lambda z: ts.area_cross_entropy(z, labels, backend=backend),
        lambda z: ts.soft_dice_loss(z, soft, backend=backend),
    ):
        actual = leaf(logits)
        loss = call(actual)
        loss.backward()
        assert loss == 0
        assert actual.grad.shape == logits.shape


# --- citizens of PyTorch ---------------------------------------------------------------------------------------------


def _inputs(device: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 2, 3, generator=generator, dtype=torch.float64).to(device, dtype)
    labels = torch.randint(4, (2, 6, 6), generator=generator).to(device)
    boxes = torch.tensor([[0.5, 0.0, 6.0, 5.0], [5.0, 1.0, 0.0, 6.0]], device=device)
    soft = ts.soft_crop_resize(labels, boxes, (2, 3), 4, dtype=dtype, backend="reference")
    return logits, soft, labels, boxes


@pytest.mark.parametrize("sparse", [False, True])
def test_opcheck(target, sparse):
    device, backend = target
    logits, soft, labels, boxes = _inputs(device)
    logits = leaf(logits.contiguous(memory_format=torch.channels_last))
    weight = torch.rand(4, dtype=torch.float64, device=device)
    index = None
    if sparse:
        kept = ts.SparseLabels.from_dense(soft, 2, torch.float32)
        soft, index = kept.mass, kept.index
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    arguments = (backend, None, logits, soft, index, weight)
    opcheck(loss_ops.cross_entropy.overload, (*arguments, 0.1, "mean"), test_utils=utils)
    opcheck(loss_ops.overlap_loss.overload, (*arguments, "dice", "all", True, "mean"), test_utils=utils)
    if not sparse:
        arguments = (backend, None, logits, soft, soft.sum(1, keepdim=True).expand(soft.shape), weight, weight, "mean")
        opcheck(loss_ops.binary_cross_entropy.overload, arguments, test_utils=utils)
        arguments = (backend, None, logits, labels, boxes, 255, "area", weight, 0.1, "mean")
        opcheck(loss_ops.area_cross_entropy.overload, arguments, test_utils=utils)


def test_opcheck_of_planes():
    planes, boxes = torch.zeros(2, 3, 4, 5, dtype=torch.uint8), torch.tensor([[0.0, 0, 5, 4], [1, 0, 3, 2]])
    matrix = ts.box_to_matrix(boxes, (2, 3))
    options = ((2, 3), 255, "area", torch.float32)
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, where in ((label_ops.soft_planes, boxes), (warp_ops.warp_planes, matrix)):
        opcheck(operator.overload, ("reference", None, planes, where, *options), test_utils=utils)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(target, reduction):
    device, backend = target
    logits, soft, labels, boxes = _inputs(device)
    weight = torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    options = {"weight": weight, "reduction": reduction, "backend": backend}
    soft = soft * 0.9  # so that no p is a q
    for call in (
        lambda z: ts.soft_cross_entropy(z, soft, label_smoothing=0.1, **options),
        lambda z: ts.area_cross_entropy(z, labels, boxes, label_smoothing=0.1, **options),
        lambda z: ts.soft_binary_cross_entropy(z, soft, soft.sum(1), pos_weight=weight, **options),
        lambda z: ts.soft_cross_entropy(z, soft, **options),
        lambda z: ts.area_cross_entropy(z, labels, boxes, **options),
        lambda z: ts.soft_dice_loss(z, soft, **options),
        lambda z: ts.soft_jaccard_loss(z, soft, per_sample=True, **options),
    ):
        assert torch.autograd.gradcheck(call, leaf(logits), fast_mode=True)


def test_no_second_derivative(target):
    device, backend = target
    logits, soft, _, _ = _inputs(device)
    logits = leaf(logits)
    (grad,) = torch.autograd.grad(ts.soft_cross_entropy(logits, soft, backend=backend), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()


def test_compile_fullgraph(target):
    device, backend = target
    logits, soft, labels, boxes = _inputs(device, torch.float32)
    sparse = ts.SparseLabels.from_dense(soft, 3)
    weight = torch.rand(4, generator=torch.Generator().manual_seed(0)).to(device)

    def step(logits, soft, sparse, labels, boxes):
        loss = ts.soft_cross_entropy(logits, soft, weight=weight, backend=backend)
        loss = loss + ts.soft_dice_loss(logits, soft, weight=weight, backend=backend)
        loss = loss + ts.soft_cross_entropy(logits * 2, sparse, weight=weight, label_smoothing=0.1, backend=backend)
        loss = loss + ts.soft_binary_cross_entropy(logits, soft, soft.sum(1), backend=backend)
        return loss + ts.area_cross_entropy(logits, labels, boxes, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    first, second = leaf(logits), leaf(logits)
    actual, expected = compiled(first, soft, sparse, labels, boxes), step(second, soft, sparse, labels, boxes)
    torch.testing.assert_close(actual, expected)
    actual.backward()
    expected.backward()
    torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(target, dtype):
    device, backend = target
    logits, soft, labels, _ = _inputs(device, torch.float32)
    layer = torch.nn.Conv2d(4, 4, 1).to(device)
    with torch.autocast(device, dtype):
        out = layer(logits)
        loss = ts.soft_cross_entropy(out, soft, backend=backend) + ts.area_cross_entropy(out, labels, backend=backend)
        loss = loss + ts.soft_dice_loss(out, soft, backend=backend)
        loss = loss + ts.soft_binary_cross_entropy(out, soft, backend=backend)
    assert out.dtype == dtype
    assert loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad.isfinite().all()
    half = leaf(out)
    single = leaf(out.float())
    ts.soft_cross_entropy(half, soft, backend=backend).backward()
    ts.soft_cross_entropy(single, soft, backend=backend).backward()
    assert_close(
        half.grad, single.grad.to(dtype), torch.finfo(dtype).eps * single.grad.abs().max().item(), "one rounding"
    )


def test_small_gradients_survive_a_loss_scale(target):
    """The gradient is rounded to half precision with its final scale, not before."""
    device, backend = target
    logits = torch.zeros(1, 2, 4, 4, dtype=torch.float16, device=device)
    soft = torch.zeros(1, 2, 4, 4, device=device)
    soft[:, 0] = 1
    actual = leaf(logits)
    (1e-6 * ts.soft_cross_entropy(actual, soft, backend=backend) * 2**20).backward()
    expected = torch.full((1, 4, 4), 0.5 / 16 * 1e-6 * 2**20)
    assert_close(actual.grad[:, 1], expected, torch.finfo(torch.float16).eps * 0.04, "scaled")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_keeps_the_memory_format(target, memory_format):
    device, backend = target
    logits, soft, labels, _ = _inputs(device)
    logits = logits.contiguous(memory_format=memory_format)
    for call in (ts.soft_cross_entropy, ts.soft_dice_loss, ts.soft_binary_cross_entropy):
        actual = leaf(logits)
        call(actual, soft, backend=backend).backward()
        assert actual.grad.is_contiguous(memory_format=memory_format)
    actual = leaf(logits)
    ts.area_cross_entropy(actual, labels, backend=backend).backward()
    assert actual.grad.is_contiguous(memory_format=memory_format)


def test_same_bits_whatever_the_number_of_threads():
    pytest.importorskip("numba", reason="Numba is not installed")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(19, (2, 512, 512), generator=generator).to(torch.uint8)
    logits = torch.randn(2, 19, 128, 128, generator=generator)
    soft = ts.soft_resize(labels, (128, 128), 19)
    # One axis alone is long: torch shares out such sums.
    points = torch.randn(1, 3, 300_000, 1, generator=generator)
    samples = torch.randn(20_000, 2, 1, 1, generator=generator)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            actual = leaf(logits)
            losses = [
                ts.soft_cross_entropy(actual, soft),
                ts.area_cross_entropy(actual, labels),
                ts.area_cross_entropy(actual, labels, label_smoothing=0.1),
                ts.soft_binary_cross_entropy(actual, soft, soft.sum(1)),
                ts.soft_dice_loss(actual, soft),
                ts.soft_cross_entropy(points, points.softmax(1)),
                ts.soft_dice_loss(samples, samples.softmax(1).flip(1), per_sample=True),
            ]
            sum(losses).backward()
            results.append([*losses, actual.grad])
    finally:
        torch.set_num_threads(before)
    for first, second in itertools.pairwise(results):
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_gpu_losses_do_not_synchronise_and_repeat_their_bits():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(19, (2, 256, 512), generator=generator).to("cuda", torch.uint8)
    logits = torch.randn(2, 19, 64, 128, generator=generator).to("cuda", torch.float16)
    boxes = torch.tensor([[0.0, 0.0, 512.0, 256.0], [300.0, 10.0, 20.0, 200.0]], device="cuda")
    results = []
    for attempt in range(3):
        actual = leaf(logits)
        torch.cuda.set_sync_debug_mode("error" if attempt else "default")
        try:
            soft = ts.soft_crop_resize(labels, boxes, (64, 128), 19)
            sparse = ts.soft_crop_resize(labels, boxes, (64, 128), 19, top_k=4)
            loss = ts.soft_cross_entropy(actual, soft) + ts.soft_cross_entropy(actual, sparse)
            loss = loss + ts.area_cross_entropy(actual, labels, boxes) + ts.soft_dice_loss(actual, soft)
            loss = loss + ts.area_cross_entropy(actual, labels, boxes, label_smoothing=0.1)
            loss = loss + ts.soft_binary_cross_entropy(actual, soft, soft.sum(1))
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append((loss, actual.grad))
    for first, second in itertools.pairwise(results):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


# --- modules and errors ----------------------------------------------------------------------------------------------


def test_modules():
    logits, soft, labels, boxes = _inputs("cpu", torch.float32)
    weight = torch.tensor([1.0, 2.0, 0.5, 1.5])
    pairs = [
        (ts.SoftCrossEntropyLoss(weight, "sum"), ts.soft_cross_entropy, (soft,), {"reduction": "sum"}),
        (
            ts.AreaCrossEntropyLoss(weight, 3, "triangle"),
            ts.area_cross_entropy,
            (labels, boxes),
            {"ignore_index": 3, "filter": "triangle"},
        ),
        (
            ts.SoftCrossEntropyLoss(weight, label_smoothing=0.1),
            ts.soft_cross_entropy,
            (soft,),
            {"label_smoothing": 0.1},
        ),
        (
            ts.AreaCrossEntropyLoss(weight, label_smoothing=0.1),
            ts.area_cross_entropy,
            (labels, boxes),
            {"label_smoothing": 0.1},
        ),
        (
            ts.SoftBinaryCrossEntropyLoss(weight, weight + 1, "sum"),
            ts.soft_binary_cross_entropy,
            (soft, soft.sum(1)),
            {"pos_weight": weight + 1, "reduction": "sum"},
        ),
        (ts.SoftDiceLoss(weight, "all", True), ts.soft_dice_loss, (soft,), {"classes": "all", "per_sample": True}),
        (ts.SoftJaccardLoss(weight), ts.soft_jaccard_loss, (soft,), {}),
    ]
    for module, function, target, options in pairs:
        assert torch.equal(module(logits, *target), function(logits, *target, weight=weight, **options))
        assert torch.equal(module.state_dict()["weight"], weight)
        assert module.double().weight.dtype == torch.float64
        assert "reduction=" in repr(module)
        assert "weight=(4,)" in repr(module)


class _Made(TorchDispatchMode):
    """Notes the bytes of every storage that an operator gives."""

    def __init__(self) -> None:
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()  # kept: no address recurs
        return result


def test_memory_of_the_loss_of_a_label_map():
    """Beside the gradient 8 bytes per pixel: mass and logsumexp, and no gradients of them."""
    logits, labels = torch.randn(1, 3, 128, 256).requires_grad_(), torch.zeros(1, 256, 512, dtype=torch.uint8)
    with _Made() as made:
        ts.area_cross_entropy(logits, labels).backward()
    taken = sum(storage.nbytes() for storage in made.storages.values())
    assert 8 * 128 * 256 <= taken - logits.nbytes <= 8.5 * 128 * 256


LOGITS, SOFT = torch.zeros(2, 3, 4, 5), torch.full((2, 3, 4, 5), 0.25)
LABELS = torch.zeros(2, 8, 10, dtype=torch.uint8)
PLANES, SECOND = LABELS[:, None].expand(-1, 3, -1, -1), torch.tensor([1.0, 0.0]).view(2, 1, 1)


def _boxes_with(end: float) -> Tensor:
    return torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, end]])


def _spoiled(value: float) -> Tensor:
    soft = SOFT.clone()
    soft[1, 2, 3, 4] = value
    return soft


BAD = [
    # function, changes, error, the words that its message must hold
    ("soft", {"logits": LOGITS.long()}, TypeError, ["logits", "int64"]),
    ("soft", {"logits": [1]}, TypeError, ["logits", "list"]),
    ("soft", {"soft": SOFT.long()}, TypeError, ["soft", "int64", "area_cross_entropy", "to_soft"]),
    ("area", {"labels": SOFT}, TypeError, ["labels", "float32", "soft_cross_entropy"]),
    ("area", {"labels": ts.SparseLabels.from_dense(SOFT, 2)}, TypeError, ["labels", "Sparse", "soft_cross_entropy"]),
    ("soft", {"logits": LOGITS[0]}, ValueError, ["logits", "(B, C, h, w)", "(3, 4, 5)"]),
    ("soft", {"soft": SOFT[:, :2]}, ValueError, ["soft", "(2, 3, 4, 5)", "(2, 2, 4, 5)"]),
    ("soft", {"soft": SOFT[:1]}, ValueError, ["soft", "(1, 3, 4, 5)"]),
    ("soft", {"soft": None}, TypeError, ["soft", "NoneType"]),
    ("soft", {"soft": SOFT.to("meta")}, ValueError, ["soft", "device", "meta"]),
    ("soft", {"soft": SOFT.clone().requires_grad_()}, ValueError, ["soft", "gradient", "detach"]),
    ("soft", {"soft": _spoiled(-0.02)}, ValueError, ["soft", "at least 0", "1/64", "-0.02", "swapped"]),
    ("soft", {"soft": _spoiled(0.75)}, ValueError, ["soft", "at most 1", "1.25"]),
    ("soft", {"soft": _spoiled(NAN)}, ValueError, ["soft", "nan"]),
    ("soft", {"soft": ts.SparseLabels.from_dense(torch.zeros(2, 4, 4, 5), 2)}, ValueError, ["soft", "(2, 4, 4, 5)"]),
    ("soft", {"weight": torch.ones(4)}, ValueError, ["weight", "3 classes", "4"]),
    ("soft", {"weight": torch.ones(1, 3)}, ValueError, ["weight", "(C,)", "(1, 3)"]),
    ("soft", {"weight": [1.0, 1.0, 1.0]}, TypeError, ["weight", "list"]),
    ("soft", {"weight": torch.ones(3, dtype=torch.long)}, TypeError, ["weight", "int64"]),
    ("soft", {"weight": torch.ones(3, device="meta")}, ValueError, ["weight", "device", "meta"]),
    ("soft", {"weight": torch.tensor([1.0, -1.0, 1.0])}, ValueError, ["weight", "negative", "-1.0"]),
    ("soft", {"weight": torch.tensor([1.0, NAN, 1.0])}, ValueError, ["weight", "finite", "nan"]),
    ("soft", {"weight": torch.ones(3).requires_grad_()}, ValueError, ["weight", "gradient"]),
    ("soft", {"reduction": "avg"}, ValueError, ["reduction", "mean", "avg"]),
    ("soft", {"validate": 1}, TypeError, ["validate", "1"]),
    ("soft", {"backend": "cuda"}, ValueError, ["backend", "cuda"]),
    ("area", {"labels": LABELS + 3}, ValueError, ["labels", "0..2", "3"]),
    ("area", {"labels": LABELS.float()}, TypeError, ["labels", "float32"]),
    ("area", {"labels": LABELS[:1]}, ValueError, ["labels", "batch", "2", "1"]),
    ("area", {"labels": LABELS.to("meta")}, ValueError, ["labels", "device", "meta"]),
    ("area", {"boxes": torch.zeros(2, 3)}, ValueError, ["boxes", "(2, 4)"]),
    ("area", {"boxes": torch.zeros(2, 4)}, ValueError, ["boxes", "zero"]),
    ("area", {"filter": "cubic"}, ValueError, ["filter", "cubic"]),
    ("area", {"ignore_index": 1.0}, TypeError, ["ignore_index", "float"]),
    ("area", {"weight": torch.tensor([1.0, INF, 1.0])}, ValueError, ["weight", "inf"]),
    ("soft", {"label_smoothing": 1.01}, ValueError, ["label_smoothing", "0..1", "1.01"]),
    ("soft", {"label_smoothing": NAN}, ValueError, ["label_smoothing", "nan"]),
    ("area", {"label_smoothing": -0.1}, ValueError, ["label_smoothing", "-0.1"]),
    ("area", {"label_smoothing": "0.1"}, TypeError, ["label_smoothing", "str"]),
    ("binary", {"logits": LOGITS.long()}, TypeError, ["logits", "int64"]),
    ("binary", {"soft": SOFT.bool()}, TypeError, ["soft", "bool"]),
    ("binary", {"soft": SOFT[:, :2]}, ValueError, ["soft", "(2, 3, 4, 5)", "(2, 2, 4, 5)"]),
    ("binary", {"soft": ts.SparseLabels.from_dense(SOFT, 2)}, TypeError, ["soft", "SparseLabels"]),
    ("binary", {"soft": _spoiled(-0.02)}, ValueError, ["soft", "at least 0", "-0.02", "swapped"]),
    ("binary", {"soft": _spoiled(1.02)}, ValueError, ["soft", "at most 1", "1.02"]),
    ("binary", {"soft": _spoiled(NAN)}, ValueError, ["soft", "nan"]),
    ("binary", {"mass": SOFT / 2}, ValueError, ["soft", "at most mass", "0.125 above"]),
    ("binary", {"mass": SOFT + 1}, ValueError, ["mass", "0..1", "1.25"]),
    ("binary", {"mass": _spoiled(NAN)}, ValueError, ["mass", "nan"]),
    ("binary", {"mass": SOFT[:, :2]}, ValueError, ["mass", "(2, 3, 4, 5), (2, 4, 5), (2, 1, 4, 5)", "(2, 2, 4, 5)"]),
    ("binary", {"mass": 1.0}, TypeError, ["mass", "float"]),
    ("binary", {"mass": SOFT.long()}, TypeError, ["mass", "int64"]),
    ("binary", {"mass": SOFT.to("meta")}, ValueError, ["mass", "device", "meta"]),
    ("binary", {"mass": SOFT.clone().requires_grad_()}, ValueError, ["mass", "gradient"]),
    ("binary", {"pos_weight": torch.ones(4)}, ValueError, ["pos_weight", "3 classes", "4"]),
    ("binary", {"pos_weight": torch.tensor([1.0, -1.0, 1.0])}, ValueError, ["pos_weight", "negative", "-1.0"]),
    ("binary", {"weight": torch.tensor([1.0, -1.0, 1.0])}, ValueError, ["weight", "negative", "-1.0"]),
    ("binary", {"reduction": "avg"}, ValueError, ["reduction", "avg"]),
    ("planes", {"planes": SOFT}, TypeError, ["planes", "float32"]),
    ("planes", {"planes": LABELS}, ValueError, ["planes", "(B, C, H, W)", "(2, 8, 10)"]),
    ("planes", {"planes": LABELS[:, None] + 2}, ValueError, ["0..1", "2"]),
    ("planes", {"planes": LABELS[:, None] + 2}, ValueError, ["planes must lie in 0..1 or equal ignore_index=255, got"]),
    ("planes", {"planes": PLANES, "boxes": _boxes_with(0.0)}, ValueError, ["boxes", "width", "for sample 1"]),
    ("planes", {"planes": PLANES, "transform": torch.eye(3) * SECOND}, ValueError, ["transform", "for sample 1"]),
    ("planes", {"boxes": torch.zeros(3, 4)}, ValueError, ["boxes", "(2, 4)", "(3, 4)"]),
    ("planes", {"boxes": [0, 0, 1, 1], "transform": torch.eye(3).expand(2, 3, 3)}, ValueError, ["transform", "both"]),
    ("planes", {"transform": torch.eye(3)}, ValueError, ["transform", "(2, 3, 3)"]),
    ("dice", {"classes": "some"}, ValueError, ["classes", "some"]),
    ("dice", {"per_sample": 1}, TypeError, ["per_sample", "1"]),
    ("dice", {"soft": _spoiled(-1.0)}, ValueError, ["soft", "at least 0"]),
    ("dice", {"weight": torch.tensor([1.0, -1.0, 1.0])}, ValueError, ["weight", "negative"]),
    ("soft", {"weight": torch.tensor([1.0, 1e38, 1.0])}, ValueError, ["weight", "1e+20"]),
    ("area", {"weight": torch.tensor([1.0, 1e-41, 1.0])}, ValueError, ["weight", "1e-20"]),
]
CALLS = {
    "soft": (ts.soft_cross_entropy, {"logits": LOGITS, "soft": SOFT}),
    "area": (ts.area_cross_entropy, {"logits": LOGITS, "labels": LABELS}),
    "dice": (ts.soft_dice_loss, {"logits": LOGITS, "soft": SOFT}),
    "binary": (ts.soft_binary_cross_entropy, {"logits": LOGITS, "soft": SOFT}),
    "planes": (ts.soft_planes, {"planes": LABELS[:, None], "boxes": None, "size": (4, 5)}),
}


@pytest.mark.parametrize(("name", "changes", "error", "words"), BAD)
def test_bad_argument(name, changes, error, words):
    function, arguments = CALLS[name]
    with pytest.raises(error) as caught:
        function(**{**arguments, **changes})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["soft", "area", "dice", "jaccard"])
@pytest.mark.parametrize("of", ["a gradient", "values", "SparseLabels"])
def test_logits_and_target_that_are_swapped(name, of):
    function, second, soft = {
        "soft": (ts.soft_cross_entropy, "soft", SOFT),
        "area": (ts.area_cross_entropy, "labels", LABELS),
        "dice": (ts.soft_dice_loss, "soft", SOFT),
        "jaccard": (ts.SoftJaccardLoss(), "soft", SOFT),
    }[name]
    logits = LOGITS - 1
    if of == "SparseLabels":
        soft = ts.SparseLabels.from_dense(SOFT, 2)
    elif of == "a gradient":
        logits = logits.requires_grad_()
    with pytest.raises((TypeError, ValueError), match=f"logits come first, then {second}: are the two swapped"):
        function(soft, logits)


def test_a_target_with_a_gradient_that_is_not_swapped():
    with pytest.raises(ValueError, match=r"detach it$"):
        ts.soft_cross_entropy(LOGITS.clone().requires_grad_(), SOFT.clone().requires_grad_())


def test_a_sparse_target_whose_classes_do_not_exist(target):
    device, backend = target
    if device != "cpu":
        pytest.skip("a GPU checks values on request only")
    sparse = ts.SparseLabels.from_dense(SOFT, 2)
    sparse.index[0, 0, 0, 0] = 3
    with pytest.raises(ValueError, match=r"soft.index must lie in 0\.\.2, got values from 0 to 3"):
        ts.soft_cross_entropy(LOGITS, sparse, backend=backend)


@pytest.mark.parametrize("soft", [_spoiled(-0.02), _spoiled(0.75), _spoiled(NAN)])
def test_every_backend_finds_bad_masses(target, soft):
    device, backend = target
    with pytest.raises(ValueError, match="soft must hold masses"):
        ts.soft_cross_entropy(LOGITS.to(device), soft.to(device), validate=True, backend=backend)


@pytest.mark.parametrize("value", [-0.02, 1.02, NAN])
@pytest.mark.parametrize("of_mass", [False, True])
def test_every_backend_finds_bad_masses_of_planes(target, value, of_mass):
    device, backend = target
    bad = _spoiled(value).to(device)
    soft, mass = (torch.zeros_like(bad), bad) if of_mass else (bad, torch.ones_like(bad))
    with pytest.raises(ValueError, match="mass must lie in" if of_mass else "soft must hold masses"):
        ts.soft_binary_cross_entropy(LOGITS.to(device), soft, mass, validate=True, backend=backend)


@pytest.mark.parametrize("wrong", ["sum", "negative", "nan"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", [ts.soft_cross_entropy, ts.soft_dice_loss])
def test_one_bad_pixel_is_found_whatever_is_done_with_it(target, loss, weighted, wrong):
    device, backend = target
    if device != "cpu":
        pytest.skip("a GPU checks values on request only")
    soft = torch.full((2, 13, 5, 33), 1 / 13)
    if wrong == "sum":
        soft[1, :, 4, 32] += 0.002
    soft[1, 12, 4, 32] = {"negative": -0.016, "nan": NAN}.get(wrong, soft[1, 12, 4, 32])
    weight = torch.ones(13) if weighted else None
    with pytest.raises(ValueError, match="soft must hold masses"):
        loss(torch.zeros(2, 13, 5, 33), soft, weight=weight, backend=backend)


def test_modules_check_their_arguments():
    with pytest.raises(ValueError, match="reduction"):
        ts.SoftCrossEntropyLoss(reduction="avg")
    with pytest.raises(ValueError, match="weight"):
        ts.AreaCrossEntropyLoss(torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="filter"):
        ts.AreaCrossEntropyLoss(filter="cubic")
    with pytest.raises(ValueError, match="classes"):
        ts.SoftDiceLoss(classes="some")
    with pytest.raises(ValueError, match="label_smoothing"):
        ts.SoftCrossEntropyLoss(label_smoothing=2)
    with pytest.raises(ValueError, match="label_smoothing"):
        ts.AreaCrossEntropyLoss(label_smoothing=-1)
    assert type(ts.SoftCrossEntropyLoss(label_smoothing=np.float32(0.5)).label_smoothing) is float
    with pytest.raises(ValueError, match="pos_weight"):
        ts.SoftBinaryCrossEntropyLoss(pos_weight=torch.tensor([-1.0]))
    with pytest.raises(TypeError, match="validate"):
        ts.SoftCrossEntropyLoss(validate=1)
    with torch.device("meta"):
        assert ts.SoftCrossEntropyLoss(torch.ones(3)).weight.is_meta


def test_a_sparse_target_has_no_gradient():
    sparse = ts.SparseLabels.from_dense(SOFT, 2)
    sparse.mass.requires_grad_()
    with pytest.raises(ValueError, match="soft must not require a gradient"):
        ts.soft_cross_entropy(LOGITS, sparse)
