"""Small logits against full-size label maps: backends against the float64 reference, the reference against torch."""

import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

import tritonsoft as ts
from tests.cases import LABEL_DTYPES, LAYOUTS, SOFT_DTYPES, _layout, assert_close
from tritonsoft.backends import reference
from tritonsoft.ops import full_resolution as ops

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Case:
    """Logits, a label map and where in it they lie."""

    logits: Tensor  # (B, C, h, w)
    labels: Tensor  # (B, H, W)
    boxes: Tensor | None
    ignore_index: int
    weight: Tensor | None
    label_smoothing: float

    def to(self, device: str) -> "Case":
        return Case(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()})

    @property
    def options(self) -> dict[str, Any]:
        return {"ignore_index": self.ignore_index, "weight": self.weight}

    def tolerance(self, dtype: torch.dtype) -> float:
        """Worst error of one pixel's loss, or gradient: interpolated, summed over classes, rounded to ``dtype``."""
        working = torch.float64 if self.logits.dtype == torch.float64 else torch.float32
        # A position is off by an ulp of the axis' length, once as a float64 and once as the fraction in float32.
        largest = self.logits.double().abs().max().item() + 8
        return largest * (4 * (self.logits.shape[1] + 16) * torch.finfo(working).eps + torch.finfo(dtype).eps)


def random_case(seed: int, interpreted: bool) -> Case:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    batch, num_classes = rng.randint(1, 3), rng.choice([1, 2, 5, 19, 37])
    small, large = ((1, 4), 12) if interpreted else ((1, 12), 60)
    size = rng.randint(*small), rng.randint(*small)
    source = rng.randint(1, large), rng.randint(1, large)
    if rng.random() < 0.3:  # whole ratios
        ratio = rng.choice([1, 2, 3, 4])
        source = size[0] * ratio, size[1] * ratio
    logits = torch.randn(batch, num_classes, *size, generator=generator) * rng.choice([0.1, 3.0, 30.0])
    labels = torch.randint(num_classes, (batch, *source), generator=generator).to(rng.choice(LABEL_DTYPES))
    ignore_index = rng.choice([255, -1, 0, num_classes, 1000, -(2**40)])
    info = torch.iinfo(labels.dtype)
    if info.min <= ignore_index <= info.max:
        labels = labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.2, ignore_index)
    boxes = None
    if rng.random() < 0.6:
        rows = [[*_ends(rng, source[1]), *_ends(rng, source[0])] for _ in range(batch)]
        boxes = torch.tensor(rows, dtype=rng.choice([torch.float32, torch.float64]))[:, [0, 2, 1, 3]]
    return Case(
        logits=_layout(logits.to(rng.choice(SOFT_DTYPES)), rng.choice(LAYOUTS[:-1])),
        labels=_layout(labels, rng.choice(LAYOUTS[:-1])),
        boxes=boxes,
        ignore_index=ignore_index,
        weight=torch.rand(num_classes, generator=generator) if rng.random() < 0.5 else None,
        label_smoothing=rng.choice([0.0, 0.0, 0.1, 1.0]),
    )


def _ends(rng: random.Random, size: int) -> tuple[float, float]:
    kind = rng.choice(["whole", "integer", "inside", "around", "aside"])
    if kind == "whole":
        low, high = 0.0, float(size)
    elif kind == "integer":
        low = float(rng.randrange(size))
        high = low + rng.randint(1, size)
    elif kind == "inside":
        low = rng.uniform(0, size / 2)
        high = rng.uniform(size / 2 + 0.1, size)
    elif kind == "around":
        low, high = rng.uniform(-size, 0), rng.uniform(size, 2 * size)
    else:
        low = rng.uniform(size, 2 * size)
        high = low + rng.uniform(0.1, size)
    return (high, low) if rng.random() < 0.3 else (low, high)


def exact_loss(case: Case, logits: Tensor) -> tuple[Tensor, Tensor]:
    """In float64 the loss of each pixel, and its weight."""
    enlarged, inside = reference.enlarge(logits, case.boxes, case.labels.shape[1:])
    target = reference.hard_target(case.labels, inside, logits.shape[1], case.ignore_index, torch.float64)
    weight = None if case.weight is None else case.weight.double()
    loss, _, _ = reference.cross_entropy(enlarged, reference.smoothed(target, case.label_smoothing), weight)
    return loss, target.sum(1) if weight is None else (weight[:, None, None] * target).sum(1)


def skip_many(target: tuple[str, str], seed: int) -> None:
    if target == ("cpu", "triton") and seed >= 2:
        pytest.skip("the interpreter takes seconds for a case: it gets the first two")


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


# --- the meaning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_reference_enlarges_as_torch_does(seed):
    rng = random.Random(seed)
    logits = torch.randn(2, 3, rng.randint(1, 9), rng.randint(1, 9), dtype=torch.float64, requires_grad=True)
    size = rng.randint(1, 40), rng.randint(1, 40)
    enlarged, inside = reference.enlarge(logits, None, size)
    expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    assert inside.all()
    assert_close(enlarged, expected, 1e-12, "enlarged")
    grad = torch.randn(expected.shape, dtype=torch.float64)
    transposed = reference.enlarge_adjoint(grad, None, logits.shape[2:])
    assert_close(transposed, torch.autograd.grad(expected, logits, grad)[0], 1e-11, "adjoint")


def test_positions_by_hand():
    """Two logits over four pixels: centres at 1/2 .. 7/2, which are -1/4, 1/4, 3/4, 5/4 of them."""
    ends = torch.tensor([[0.0, 4.0], [4.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    first, second, fraction, inside = reference.enlarging_taps(ends, 2, 4)
    assert first.tolist() == [[0, 0, 0, 1], [1, 1, 1, 0], [0, 0, 1, 1]]
    assert second.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1]]
    assert fraction.tolist() == [[0.5, 0.25, 0.75, 0.5], [0.5, 0.25, 0.75, 0.5], [0.5, 0.5, 0.5, 0.5]]
    assert inside.tolist() == [[True] * 4, [True] * 4, [False, True, True, False]]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": torch.rand(5)}, {"reduction": "sum"}])
@pytest.mark.parametrize("size", [(12, 20), (7, 33), (3, 5), (2, 3), (1, 1)])
def test_cross_entropy_is_torchs(target, size, options):
    if target == ("cpu", "triton") and options and size != (7, 33):
        pytest.skip("the interpreter takes seconds for a case: it gets options at one size, and all sizes without")
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, 5, generator=generator).to(device)
    labels = torch.randint(5, (2, *size), generator=generator)
    labels[:, :, 1::4] = 255
    if (labels == 255).all():
        labels[0, 0, 0] = 1
    labels = labels.to(device)
    options = {name: each.to(device) if isinstance(each, Tensor) else each for name, each in options.items()}
    ours, theirs = leaf(logits), leaf(logits)
    loss = ts.upsampled_cross_entropy(ours, labels, backend=backend, **options)
    enlarged = F.interpolate(theirs, size, mode="bilinear")
    expected = F.cross_entropy(enlarged, labels, ignore_index=255, **options)
    torch.testing.assert_close(loss, expected, rtol=2e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-5, atol=1e-5)


def test_a_crop_is_the_cut_and_flipped_map(target):
    """For whole-pixel boxes: torch on the cut and mirrored label map, which ours reads where it is."""
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, generator=generator).to(device)
    labels = torch.randint(4, (2, 12, 20), generator=generator).to(device)
    boxes = torch.tensor([[2.0, 1.0, 18.0, 10.0], [15.0, 9.0, 3.0, 2.0]], device=device)
    cuts = [labels[0, 1:10, 2:18], labels[1, 2:9, 3:15].flip(0, 1)]
    ours, theirs = leaf(logits), leaf(logits)
    loss = ts.upsampled_cross_entropy(ours, labels, boxes, reduction="sum", backend=backend)
    expected = sum(
        F.cross_entropy(F.interpolate(theirs[i : i + 1], cut.shape, mode="bilinear"), cut[None], reduction="sum")
        for i, cut in enumerate(cuts)
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    decoded = ts.decode(logits, (12, 20), boxes=boxes, backend=backend)
    for i, cut in enumerate(cuts):
        winner = F.interpolate(logits[i : i + 1], cut.shape, mode="bilinear").argmax(1)[0]
        mine = decoded[0, 1:10, 2:18] if i == 0 else decoded[1, 2:9, 3:15].flip(0, 1)
        assert torch.equal(mine.long(), winner)
    assert (decoded[0, 0] == 255).all()
    assert (decoded[1, :, 15:] == 255).all()


def test_a_mirrored_box_is_mirrored_logits_to_the_bit(target):
    device, backend = target
    logits = torch.randn(1, 5, 3, 4, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.randint(5, (1, 11, 13), generator=torch.Generator().manual_seed(1)).to(device)
    box = torch.tensor([[0.7, 1.1, 12.2, 9.6]], device=device)
    ours, flipped = leaf(logits), leaf(logits.flip(2, 3))
    options = {"reduction": "none", "backend": backend}
    loss = ts.upsampled_cross_entropy(ours, labels, box[:, [2, 3, 0, 1]], **options)
    expected = ts.upsampled_cross_entropy(flipped, labels, box, **options)
    assert torch.equal(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad.flip(2, 3), flipped.grad, rtol=1e-5, atol=1e-6)


def test_dice_is_that_of_the_enlarged_softmax(target):
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, generator=generator).to(device)
    labels = torch.randint(3, (2, 9, 14), generator=generator).to(device)
    labels[:, 3:5] = 255
    for per_sample, classes in itertools.product((False, True), ("present", "all")):
        ours, theirs = leaf(logits), leaf(logits)
        options = {"per_sample": per_sample, "classes": classes, "backend": backend}
        loss = ts.upsampled_dice_loss(ours, labels, **options)
        p = F.interpolate(theirs, (9, 14), mode="bilinear").softmax(1) * (labels != 255)[:, None]
        q = (labels[:, None] == torch.arange(4, device=device)[:, None, None]).float()
        axes = (2, 3) if per_sample else (0, 2, 3)
        dice = 1 - 2 * (p * q).sum(axes) / (p.sum(axes) + q.sum(axes))
        present = q.sum(axes) > 0
        dice = torch.where(present, dice, torch.ones_like(dice))
        expected = dice[present].mean() if classes == "present" else dice.mean()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


# --- every backend against the reference -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_cross_entropy(target, seed):
    skip_many(target, seed)
    device, backend = target
    case = random_case(seed, target == ("cpu", "triton"))
    there = case.to(device)
    options = {**there.options, "label_smoothing": case.label_smoothing, "backend": backend}
    exact = leaf(case.logits.double())
    loss, weight = exact_loss(case, exact)
    tolerance = case.tolerance(torch.float32)

    logits = leaf(there.logits)
    each = ts.upsampled_cross_entropy(logits, there.labels, there.boxes, reduction="none", **options)
    assert each.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert_close(each, loss, tolerance, "each pixel")
    assert (each[(weight == 0).to(device)] == 0).all()
    grad = torch.rand(each.shape, generator=torch.Generator().manual_seed(0), dtype=each.dtype)
    each.backward(grad.to(device))
    assert logits.grad.dtype == logits.dtype
    (expected,) = torch.autograd.grad(loss, exact, grad.double())
    pixels = case.labels[0].numel() / case.logits[0, 0].numel() + 4  # that one logit gathers, about
    assert_close(logits.grad, expected, (8 + pixels) * case.tolerance(logits.dtype), "gradient of each")

    for reduction in ("mean", "sum"):
        exact, logits = leaf(case.logits.double()), leaf(there.logits)
        loss, weight = exact_loss(case, exact)
        total = weight.sum()
        divisor = torch.where(total > 0, total, 1) if reduction == "mean" else 1
        actual = ts.upsampled_cross_entropy(logits, there.labels, there.boxes, reduction=reduction, **options)
        share = tolerance * loss.numel() / float(divisor)
        assert_close(actual, loss.sum() / divisor, 2 * share + tolerance, reduction)
        actual.backward()
        (expected,) = torch.autograd.grad(loss.sum() / divisor, exact)
        allowed = (8 + pixels) * case.tolerance(logits.dtype) / min(float(divisor), 1)
        assert_close(logits.grad, expected, allowed, f"gradient of {reduction}")


@pytest.mark.parametrize("seed", range(16))
def test_dice(target, seed):
    skip_many(target, seed)
    device, backend = target
    case = random_case(seed, target == ("cpu", "triton"))
    there = case.to(device)
    per_sample, classes = bool(seed % 2), ("present", "all")[seed // 2 % 2]
    exact, logits = leaf(case.logits.double()), leaf(there.logits)
    enlarged, inside = reference.enlarge(exact, case.boxes, case.labels.shape[1:])
    one_hot = reference.hard_target(case.labels, inside, exact.shape[1], case.ignore_index, torch.float64)
    weight = None if case.weight is None else case.weight.double()
    expected = ts.soft_dice_loss(
        enlarged, one_hot, weight=weight, per_sample=per_sample, classes=classes, reduction="sum", backend="reference"
    )
    actual = ts.upsampled_dice_loss(
        logits,
        there.labels,
        there.boxes,
        per_sample=per_sample,
        classes=classes,
        reduction="sum",
        backend=backend,
        **there.options,
    )
    count = (len(exact) if per_sample else 1) * exact.shape[1]
    tolerance = 2 * count * case.tolerance(torch.float32)
    assert_close(actual, expected, tolerance, "dice")
    actual.backward()
    expected.backward()
    largest = exact.grad.abs().max().item()
    assert_close(logits.grad, exact.grad, max(largest, 1) * 16 * case.tolerance(logits.dtype), "gradient")


@pytest.mark.parametrize("seed", range(24))
def test_decode(target, seed):
    """The winner is one of the largest logits, to rounding; its probability is right."""
    skip_many(target, seed)
    device, backend = target
    case = random_case(seed, target == ("cpu", "triton"))
    there = case.to(device)
    bias = None if case.weight is None else case.weight.log()
    size = tuple(case.labels.shape[1:])
    dtype = random.Random(seed).choice(LABEL_DTYPES)
    decoded, scores = ts.decode(
        there.logits,
        size,
        boxes=there.boxes,
        scores=True,
        bias=None if bias is None else bias.to(device),
        dtype=dtype,
        ignore_index=77,
        backend=backend,
    )
    enlarged, inside = reference.enlarge(case.logits.double(), case.boxes, size)
    enlarged = enlarged if bias is None else enlarged + bias.double()[:, None, None]
    assert decoded.dtype == dtype
    decoded, scores = decoded.cpu().long(), scores.cpu()
    assert (decoded[~inside] == 77).all()
    assert (scores[~inside] == 0).all()
    won = enlarged.gather(1, torch.where(inside, decoded, 0)[:, None])[:, 0]
    shortfall = torch.where(inside, enlarged.amax(1) - won, 0)
    assert_close(shortfall, torch.zeros_like(shortfall), 2 * case.tolerance(torch.float32), "winner")
    probability = torch.where(inside, enlarged.softmax(1).amax(1), 0)
    assert_close(scores, probability, case.tolerance(torch.float32), "score")


@pytest.mark.parametrize("seed", range(12))
def test_confusion_counts_what_is_decoded(target, seed):
    skip_many(target, seed)
    device, backend = target
    case = random_case(seed, target == ("cpu", "triton"))
    there = case.to(device)
    counts = ops.confusion_matrix(backend, None, there.logits, there.labels, there.boxes, None, case.ignore_index)
    decoded = ts.decode(
        there.logits,
        tuple(case.labels.shape[1:]),
        boxes=there.boxes,
        ignore_index=-1,
        dtype=torch.int64,
        backend=backend,
    )
    scored = (there.labels.long() != case.ignore_index) & (decoded >= 0)
    pair = there.labels.long()[scored] * case.logits.shape[1] + decoded[scored]
    expected = torch.bincount(pair, minlength=case.logits.shape[1] ** 2).view(counts.shape)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, expected)


@pytest.mark.parametrize(
    ("size", "source", "boxed"),
    [
        ((3, 64), (7, 128), False),
        ((2, 64), (3, 150), True),
        ((2, 40), (4, 300), False),
        ((2, 70), (3, 69), True),
        ((1, 20), (4, 340), False),
        ((3, 20), (9, 320), False),
    ],
)
def test_more_than_one_program_holds(target, size, source, boxed):
    """Losses, gradients and classes where rows are shared out, at ratios that are whole, and not, and large."""
    if target == ("cpu", "triton") and size[1] in (33, 40):
        pytest.skip("the interpreter takes ten seconds for a case: it gets the others")
    device, backend = target
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *size, generator=generator)
    labels = torch.randint(4, (2, *source), generator=generator)
    labels[labels == 3] = 255
    boxes = None
    if boxed:
        height, width = source
        boxes = torch.tensor([[0.4, 0.2, width - 3.3, height], [width + 2.5, height - 0.5, 5.0, -0.5]])
    case = Case(logits, labels, boxes, 255, torch.tensor([1.0, 2.0, 0.5]), 0.1)
    there = case.to(device)
    exact, ours = leaf(logits.double()), leaf(there.logits)
    loss, _ = exact_loss(case, exact)
    options = {**there.options, "label_smoothing": 0.1, "backend": backend}
    each = ts.upsampled_cross_entropy(ours, there.labels, there.boxes, reduction="none", **options)
    assert_close(each, loss, case.tolerance(torch.float32), "each pixel")
    grad = torch.rand(each.shape, generator=generator)
    each.backward(grad.to(device))
    (expected,) = torch.autograd.grad(loss, exact, grad.double())
    pixels = labels[0].numel() / logits[0, 0].numel() + 4
    assert_close(ours.grad, expected, (8 + pixels) * case.tolerance(torch.float32), "gradient")
    enlarged, inside = reference.enlarge(logits.double(), boxes, source)
    one_hot = reference.hard_target(labels, inside, 3, 255, torch.float64)
    exact, ours = leaf(logits.double()), leaf(there.logits)
    dice = ts.upsampled_dice_loss(ours, there.labels, there.boxes, backend=backend)
    enlarged, _ = reference.enlarge(exact, boxes, source)
    expected = ts.soft_dice_loss(enlarged, one_hot, backend="reference")
    assert_close(dice, expected, 6 * case.tolerance(torch.float32), "dice")
    dice.backward()
    expected.backward()
    assert_close(ours.grad, exact.grad, 16 * case.tolerance(torch.float32), "gradient of dice")
    decoded = ts.decode(there.logits, source, boxes=there.boxes, dtype=torch.int64, ignore_index=-1, backend=backend)
    won = enlarged.detach().gather(1, decoded.cpu().clamp(min=0)[:, None])[:, 0]
    shortfall = torch.where(inside, enlarged.detach().amax(1) - won, 0)
    assert_close(shortfall, torch.zeros_like(shortfall), 2 * case.tolerance(torch.float32), "winner")
    assert torch.equal(decoded.cpu() >= 0, inside)


# --- edges -----------------------------------------------------------------------------------------------------------


def test_equal_logits_go_to_the_smaller_class(target):
    device, backend = target
    logits = torch.zeros(1, 7, 2, 2, device=device)
    logits[:, 3:5] = 1
    assert (ts.decode(logits, (5, 5), backend=backend) == 3).all()


def test_nothing_that_counts_is_zero_without_nan(target):
    device, backend = target
    logits = leaf(torch.randn(2, 3, 2, 2).to(device))
    labels = torch.full((2, 5, 5), 255, dtype=torch.uint8, device=device)
    for loss in (ts.upsampled_cross_entropy, ts.upsampled_dice_loss):
        value = loss(logits, labels, backend=backend)
        assert value == 0
        (grad,) = torch.autograd.grad(value, logits)
        assert (grad == 0).all()


def test_no_samples(target):
    device, backend = target
    logits, labels = leaf(torch.zeros(0, 3, 2, 2, device=device)), torch.zeros(0, 5, 5, dtype=torch.long, device=device)
    assert ts.upsampled_cross_entropy(logits, labels, backend=backend) == 0
    assert ts.upsampled_cross_entropy(logits, labels, reduction="none", backend=backend).shape == (0, 5, 5)
    assert ts.upsampled_dice_loss(logits, labels, backend=backend) == 0
    assert ts.decode(logits, (4, 6), backend=backend).shape == (0, 4, 6)
    assert (ops.confusion_matrix(backend, None, logits, labels, None, None, 255) == 0).all()


def test_one_class(target):
    device, backend = target
    logits = leaf(torch.randn(1, 1, 2, 2).to(device))
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8, device=device)
    value = ts.upsampled_cross_entropy(logits, labels, backend=backend)
    assert value == 0
    value.backward()
    assert (logits.grad == 0).all()


def test_a_masked_class_spoils_nothing(target):
    """Of a class whose logits are -infinity: probability 0 and gradient 0; as a label it costs infinity."""
    device, backend = target
    logits = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0)).to(device)
    logits[:, 2] = -INF
    labels = torch.tensor([0, 1, 3], device=device).repeat(8)[:20].view(1, 4, 5)
    keep = [0, 1, 3]
    relabelled = torch.tensor([0, 1, 0, 2], device=device)[labels]
    ours, others = leaf(logits), leaf(logits[:, keep])
    for loss in (ts.upsampled_cross_entropy, ts.upsampled_dice_loss):
        value, expected = loss(ours, labels, backend=backend), loss(others, relabelled, backend=backend)
        torch.testing.assert_close(value, expected)
        (grad,), (rest,) = torch.autograd.grad(value, ours), torch.autograd.grad(expected, others)
        assert (grad[:, 2] == 0).all()
        torch.testing.assert_close(grad[:, keep], rest)
    labels[0, 1, 2] = 2
    assert ts.upsampled_cross_entropy(ours, labels, backend=backend) == INF


def test_rounding_reads_no_other_logit(target):
    """A pixel that lies on a logit but for rounding takes that one alone: 0 times infinity would be NaN."""
    device, backend = target
    logits = torch.zeros(1, 2, 1, 4, device=device)
    logits[0, 1, 0, 0] = -INF
    labels = torch.ones(1, 1, 4, dtype=torch.uint8, device=device)
    boxes = torch.tensor([[1e-9, 0, 4 + 1e-9, 1]], dtype=torch.float64, device=device)  # pixel 1 lies at 1 - 1e-9
    loss = ts.upsampled_cross_entropy(logits, labels, boxes, reduction="none", backend=backend)
    assert loss[0, 0, 0] == INF
    torch.testing.assert_close(loss[0, 0, 1:].cpu(), torch.full((3,), 2.0).log())


def test_nan_reaches_its_pixels_and_no_others(target):
    device, backend = target
    logits = torch.zeros(1, 3, 1, 4, device=device)
    logits[0, 1, 0, 3] = NAN
    labels = torch.zeros(1, 1, 8, dtype=torch.uint8, device=device)
    loss = ts.upsampled_cross_entropy(logits, labels, reduction="none", backend=backend)
    assert loss.isnan().tolist() == [[[False] * 5 + [True] * 3]]
    assert ts.decode(logits, (1, 8), backend=backend).tolist() == [[[0] * 5 + [1] * 3]]


def test_large_half_precision_logits(target):
    device, backend = target
    logits = leaf(torch.tensor([60000.0, -60000.0], dtype=torch.float16, device=device).view(1, 2, 1, 1))
    labels = torch.tensor([[[0, 1]]], device=device)
    loss = ts.upsampled_cross_entropy(logits, labels, reduction="none", backend=backend)
    assert loss.flatten().tolist() == [0, 120000]
    loss.sum().backward()
    assert logits.grad.flatten().tolist() == [1, -1]


def test_weights_of_zero_are_not_scored(target):
    device, backend = target
    logits = leaf(torch.randn(1, 2, 2, 2).to(device))
    labels = torch.tensor([[[0, 1], [0, 1]]], device=device)
    weight = torch.tensor([0.0, 0.0], device=device)
    value = ts.upsampled_cross_entropy(logits, labels, weight=weight, backend=backend)
    assert value == 0
    value.backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_bits_do_not_depend_on_threads(num_threads):
    pytest.importorskip("numba", reason="the other backends' threads are not ours")
    logits = torch.randn(2, 19, 33, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(19, (2, 260, 330), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, num_threads):
            torch.set_num_threads(count)
            z = leaf(logits)
            losses = [f(z, labels, backend="numba") for f in (ts.upsampled_cross_entropy, ts.upsampled_dice_loss)]
            results.append([*losses, torch.autograd.grad(sum(losses), z)[0]])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


# --- as torch's operators --------------------------------------------------------------------------------------------


def test_opcheck(target):
    device, backend = target
    logits = torch.randn(2, 3, 2, 3, device=device, requires_grad=True)
    labels = torch.randint(3, (2, 5, 7), device=device)
    boxes = torch.tensor([[0.0, 0, 7, 5], [6.5, 1, 0.5, 4]], device=device)
    weight = torch.tensor([1.0, 2.0, 0.5], device=device)
    interpreted = target == ("cpu", "triton")  # which takes seconds for a case
    for reduction in ("mean",) if interpreted else ("mean", "none"):
        arguments = (backend, None, logits, labels, boxes, 255, weight, 0.1, reduction)
        opcheck(ops.upsampled_cross_entropy.overload, arguments)
        arguments = (backend, None, logits, labels, boxes, 255, weight, "dice", "present", False, reduction)
        opcheck(ops.upsampled_overlap_loss.overload, arguments)
    for scores in (True,) if interpreted else (False, True):
        arguments = (backend, None, logits.detach(), boxes, (5, 7), weight, scores, 255, torch.uint8)
        opcheck(ops.decode.overload, arguments)
    opcheck(ops.confusion_matrix.overload, (backend, None, logits.detach(), labels, boxes, None, 255))


def test_gradients_of_the_reference():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(3, (2, 5, 7), generator=generator)
    labels[:, 2, 3:5] = 255
    boxes = torch.tensor([[0.0, 0, 7, 5], [6.5, 1, 0.5, 4]], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        options = {"weight": weight, "reduction": reduction, "backend": "reference"}
        assert torch.autograd.gradcheck(
            lambda z, o=options: ts.upsampled_cross_entropy(z, labels, boxes, label_smoothing=0.2, **o), logits
        )
        assert torch.autograd.gradcheck(lambda z, o=options: ts.upsampled_dice_loss(z, labels, boxes, **o), logits)


def test_they_compile_into_one_graph(target):
    device, backend = target
    if backend == "triton" and device == "cpu":
        pytest.skip("Triton's interpreter is not for graphs")
    if backend == "reference":
        pytest.skip("the graph holds the operator, whatever its backend: Numba's test says as much")
    labels = torch.randint(3, (2, 8, 12), device=device)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def step(logits: Tensor) -> tuple[Tensor, Tensor, Any]:
        loss = ts.upsampled_cross_entropy(logits, labels, backend=backend)
        loss = loss + ts.upsampled_dice_loss(logits, labels, backend=backend)
        return loss, loss, ts.decode(logits, (8, 12), backend=backend)

    for size in ((2, 3), (4, 5)):
        logits = leaf(torch.randn(2, 3, *size).to(device))
        loss, _, decoded = step(logits)
        loss.backward()
        eager = leaf(logits)
        expected = ts.upsampled_cross_entropy(eager, labels, backend=backend)
        expected = expected + ts.upsampled_dice_loss(eager, labels, backend=backend)
        expected.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(logits.grad, eager.grad)
        assert torch.equal(decoded, ts.decode(eager, (8, 12), backend=backend))


def test_a_second_derivative_is_refused():
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    (grad,) = torch.autograd.grad(ts.upsampled_cross_entropy(logits, labels), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()


# --- bad input -------------------------------------------------------------------------------------------------------

LOGITS, LABELS = torch.zeros(2, 3, 2, 2), torch.zeros(2, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize("loss", [ts.upsampled_cross_entropy, ts.upsampled_dice_loss])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((LOGITS, LABELS.float()), {}, TypeError, "labels must be a label map of integers, got float32"),
        ((LOGITS, LABELS[:1]), {}, ValueError, "labels must have the batch of logits, 2, got 1"),
        ((LOGITS, LABELS + 3), {}, ValueError, r"labels must lie in 0..2 \(num_classes=3\)"),
        ((LOGITS, LABELS.int() - 1), {}, ValueError, "32 other values from -1 to -1"),
        ((LOGITS, LABELS[:, :0]), {}, ValueError, "labels must have shape"),
        ((LOGITS, LABELS.to("meta")), {}, ValueError, "labels must be on the device of logits, cpu, got meta"),
        ((LOGITS.long(), LABELS), {}, TypeError, "logits must be "),
        ((LOGITS[..., :0], LABELS), {}, ValueError, "logits must have shape"),
        ((LOGITS[0], LABELS), {}, ValueError, "logits must have shape"),
        ((LOGITS, LABELS, torch.zeros(2, 4)), {}, ValueError, "boxes must have a width and a height"),
        ((LOGITS, LABELS, torch.full((2, 4), NAN)), {}, ValueError, "boxes must be finite"),
        ((LOGITS, LABELS, torch.rand(1, 4)), {}, ValueError, r"boxes must have shape \(B, 4\) = \(2, 4\)"),
        ((LOGITS, LABELS), {"weight": torch.ones(2)}, ValueError, "weight must have one number for each of 3"),
        ((LOGITS, LABELS), {"weight": -torch.ones(3)}, ValueError, "weight must hold finite numbers"),
        ((LOGITS, LABELS), {"ignore_index": 1.0}, TypeError, "ignore_index must be an int, got float"),
        ((torch.zeros(1, 300, 1, 1), LABELS[:1]), {}, ValueError, "ignore_index must be given"),
        ((LOGITS, LABELS), {"reduction": "max"}, ValueError, "reduction must be"),
        ((LOGITS, LABELS), {"backend": "cuda"}, ValueError, "backend must be"),
        ((LOGITS, LABELS), {"validate": 1}, TypeError, "validate must be"),
    ],
)
def test_bad_input_is_named(loss, arguments, options, error, message):
    with pytest.raises(error, match=message):
        loss(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label_smoothing": -0.1}, ValueError, r"label_smoothing must lie in 0..1, got -0.1"),
        ({"label_smoothing": NAN}, ValueError, r"label_smoothing must lie in 0..1, got nan"),
        ({"label_smoothing": "0"}, TypeError, "label_smoothing must be a number, got str"),
    ],
)
def test_bad_label_smoothing_is_named(options, error, message):
    with pytest.raises(error, match=message):
        ts.upsampled_cross_entropy(LOGITS, LABELS, **options)
    with pytest.raises(error, match=message):
        ts.UpsampledCrossEntropyLoss(**options)


@pytest.mark.parametrize(
    ("size", "options", "error", "message"),
    [
        (5, {}, TypeError, "size must be two ints"),
        ((0, 5), {}, ValueError, "size must be at least"),
        ((4, 4), {"scores": 1}, TypeError, "scores must be True or False, got 1"),
        ((4, 4), {"bias": torch.zeros(2)}, ValueError, "bias must have one number for each of 3"),
        ((4, 4), {"bias": torch.tensor([0, INF, 0])}, ValueError, "bias must hold numbers below infinity"),
        ((4, 4), {"bias": torch.tensor([0, NAN, 0])}, ValueError, "bias must hold numbers below infinity"),
        ((4, 4), {"dtype": torch.float32}, TypeError, "dtype must be uint8"),
        ((4, 4), {"boxes": torch.zeros(2, 4)}, ValueError, "boxes must have a width and a height"),
        (
            (4, 4),
            {"boxes": torch.tensor([[0.0, 0, 2, 2]] * 2), "ignore_index": -1},
            ValueError,
            "dtype must hold ignore_index=-1, got uint8",
        ),
    ],
)
def test_bad_input_of_decode_is_named(size, options, error, message):
    with pytest.raises(error, match=message):
        ts.decode(LOGITS, size, **options)


def test_uint8_holds_256_classes(target):
    device, backend = target
    logits = torch.zeros(1, 256, 1, 1, device=device)
    logits[:, 255] = 1
    assert ts.decode(logits, (2, 2), backend=backend).tolist() == [[[255, 255], [255, 255]]]
    with pytest.raises(ValueError, match=r"dtype must hold the classes 0..256, got uint8"):
        ts.decode(torch.zeros(1, 257, 1, 1, device=device), (2, 2), backend=backend)
    assert ts.decode(torch.zeros(1, 257, 1, 1, device=device), (2, 2), dtype=torch.int16, backend=backend).sum() == 0


def test_modules_are_the_functions():
    logits, labels = torch.randn(2, 3, 2, 2), torch.randint(3, (2, 4, 4))
    weight, boxes = torch.rand(3), torch.tensor([[0.0, 0, 3, 3], [3, 3, 0, 0]])
    entropy = ts.UpsampledCrossEntropyLoss(weight, ignore_index=1, label_smoothing=0.1)
    options = {"weight": weight, "ignore_index": 1}
    expected = ts.upsampled_cross_entropy(logits, labels, boxes, label_smoothing=0.1, **options)
    assert torch.equal(entropy(logits, labels, boxes), expected)
    dice = ts.UpsampledDiceLoss(weight, ignore_index=1, classes="all", per_sample=True, reduction="sum")
    options |= {"classes": "all", "per_sample": True, "reduction": "sum"}
    assert torch.equal(dice(logits, labels), ts.upsampled_dice_loss(logits, labels, **options))
    assert "label_smoothing=0.1" in repr(entropy)
    assert "per_sample=True" in repr(dice)
