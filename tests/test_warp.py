"""Warps: against exact footprints, against boxes, every backend against the reference, and bad input."""

import math
import random

import numpy as np
import pytest
import torch
from torch.library import opcheck

import tritonsoft as ts
from tests.cases import assert_close
from tests.footprints import footprint_weights
from tritonsoft.backends import reference_warping
from tritonsoft.backends.select import backend_for
from tritonsoft.geometry import FILTERS
from tritonsoft.ops import warps as ops

NAN, INF = float("nan"), float("inf")
# How far an average over points is from that over the exact footprint, as total variation: no mass, and no value of an
# image in [0, 1], is further off.
LARGEST_DISTANCE, MEAN_DISTANCE = 0.1, 0.04


def _matrix(
    rng: random.Random, source: tuple[int, int], size: tuple[int, int], low: float, high: float, bend: float = 0.0
) -> torch.Tensor:
    """Some rotation with a stretch from ``low`` to ``high`` along each axis, from centre to about the centre."""
    angle, stretch_x, stretch_y = rng.uniform(0, 7), rng.uniform(low, high), rng.uniform(low, high)
    cos, sin = math.cos(angle), math.sin(angle)
    linear = torch.tensor(
        [[stretch_x * cos, -stretch_y * sin, 0], [stretch_x * sin, stretch_y * cos, 0], [0, 0, 1]], dtype=torch.float64
    )
    linear[2, 0], linear[2, 1] = rng.uniform(-bend, bend), rng.uniform(-bend, bend)
    return _shift(source[1] / 2 + rng.uniform(-2, 2), source[0] / 2 + rng.uniform(-2, 2)) @ (
        linear @ _shift(-size[1] / 2, -size[0] / 2)
    )


def _shift(x: float, y: float) -> torch.Tensor:
    return torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float64)


def _transforms(
    kind: str, batch: int, source: tuple[int, int], size: tuple[int, int], seed: int = 0, largest: float = 3.5
) -> torch.Tensor:
    """Stretches of up to ``largest``: the interpreter takes milliseconds for each point."""
    rng = random.Random(seed)
    bend = 0.04 if kind == "perspective" else 0.0
    matrix = torch.stack([_matrix(rng, source, size, 0.3, largest, bend) for _ in range(batch)])
    if kind != "field":
        return matrix
    here = reference_warping.local_map(matrix, size)
    noise = torch.randn((batch, *size, 2), generator=torch.Generator().manual_seed(seed))
    return torch.stack([here.x, here.y], -1).float() + 0.3 * noise


KINDS = ("affine", "perspective", "field")


def _inputs(seed: int = 0, source: tuple[int, int] = (11, 9), batch: int = 2):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand((batch, 3, *source), generator=generator) * 4 - 2
    labels = torch.randint(6, (batch, *source), generator=generator)
    return image, labels.masked_fill(labels == 5, 255).to(torch.uint8)


# --- meaning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["affine", "perspective"])
def test_exact_footprints(kind):
    """The weights of all source pixels against those of polygon clipping."""
    source, size, rng = (24, 24), (4, 4), random.Random(3)
    every_pixel = torch.eye(24 * 24, dtype=torch.float64).view(1, 576, 24, 24)
    distances = []
    for _ in range(4):
        matrix = _matrix(rng, source, size, 1.0, 3.0, 0.03 if kind == "perspective" else 0.0)
        ours = ts.warp(every_pixel, matrix[None], size, backend="reference")[0]
        exact = footprint_weights(matrix.numpy(), source, size)
        difference = ours.permute(1, 2, 0).reshape(exact.shape).numpy() - exact
        distances.append(np.abs(difference).sum((2, 3)) / 2)
    assert np.max(distances) < LARGEST_DISTANCE
    assert np.mean(distances) < MEAN_DISTANCE


def test_clipping_of_boxes():
    """The oracle itself, where `crop_resize` knows the answer."""
    boxes, size = torch.tensor([[1.3, -0.5, 7.9, 6.25]], dtype=torch.float64), (2, 3)
    exact = footprint_weights(ts.box_to_matrix(boxes, size)[0].numpy(), (7, 9), size)
    every_pixel = torch.eye(63, dtype=torch.float64).view(1, 63, 7, 9)
    expected = ts.crop_resize(every_pixel, boxes, size, backend="reference")[0].permute(1, 2, 0)
    assert_close(torch.from_numpy(exact).flatten(2), expected, 1e-14, "clipping")


BOXES = [
    # box, size
    ((0.0, 0.0, 9.0, 11.0), (11, 9)),
    ((9.0, 0.0, 0.0, 11.0), (5, 4)),
    ((0.0, 0.0, 9.0, 11.0), (25, 30)),
    ((1.3, 2.2, 8.1, 10.4), (3, 4)),
    ((-2.0, -3.5, 12.0, 12.0), (4, 5)),
    ((0.0, 0.0, 9.0, 11.0), (2, 20)),
]


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(("box", "size"), BOXES)
def test_upright_matrices_are_boxes(box, size, filter):
    image, labels = _inputs(batch=1)
    image, boxes = image.double(), torch.tensor([box], dtype=torch.float64)
    matrix = ts.box_to_matrix(boxes, size)
    result = ts.warp(image, matrix, size, filter=filter, fill=0.5, backend="reference")
    expected = ts.crop_resize(image, boxes, size, filter=filter, fill=0.5, backend="reference")
    soft = ts.soft_warp(labels, matrix, size, 5, filter=filter, dtype=torch.float64, backend="reference")
    expected_soft = ts.soft_crop_resize(labels, boxes, size, 5, filter=filter, dtype=torch.float64, backend="reference")
    # The triangle filter takes points of a trapezoid where it shrinks, which is not quite a triangle of pixels.
    distance = 0.15 if filter == "triangle" else 1e-13
    assert_close(result, expected, 4 * distance, "image")
    assert_close(soft, expected_soft, distance, "soft label")


def test_enlarged_boxes_within():
    """A box is not looked past, a transform is: they differ within half a source pixel of the box's edge."""
    image, _ = _inputs(batch=1)
    boxes, size = torch.tensor([[2.0, 3.0, 6.0, 9.0]], dtype=torch.float64), (24, 16)
    result = ts.warp(image.double(), ts.box_to_matrix(boxes, size), size, backend="reference")
    expected = ts.crop_resize(image.double(), boxes, size, backend="reference")
    assert_close(result[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], 1e-13, "interior")
    assert (result - expected).abs().max() > 0.01


TURNS = [
    # matrix of a map that is 9 wide and 11 high, size, what the turn does
    ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], (11, 9), lambda image: image),
    ([[-1, 0, 9], [0, 1, 0], [0, 0, 1]], (11, 9), lambda image: image.flip(-1)),
    ([[1, 0, 0], [0, -1, 11], [0, 0, 1]], (11, 9), lambda image: image.flip(-2)),
    ([[0, -1, 9], [1, 0, 0], [0, 0, 1]], (9, 11), lambda image: image.rot90(1, (-2, -1))),
    ([[0, 2, 0], [-2, 0, 22], [0, 0, 2]], (9, 11), lambda image: image.rot90(-1, (-2, -1))),
]


@pytest.mark.parametrize("filter", FILTERS)
def test_turns_are_exact(target, filter):
    device, backend = target
    image, labels = _inputs(batch=1)
    image[0, 0, 2, 3] = INF
    for matrix, size, turn in TURNS if filter == "area" and target != ("cpu", "triton") else TURNS[3:4]:
        transform = torch.tensor([matrix], dtype=torch.float32, device=device)
        result, soft = ts.warp_pair(
            image.to(device), labels.to(device), transform, size, 5, filter=filter, backend=backend
        )
        assert torch.equal(result.cpu(), turn(image))
        assert torch.equal(soft.cpu(), turn(ts.to_soft(labels, 5)))


def test_identity_field_is_exact(target):
    device, backend = target
    image, _ = _inputs(batch=1)
    y, x = torch.meshgrid(torch.arange(11) + 0.5, torch.arange(9) + 0.5, indexing="ij")
    field = torch.stack([x, y], -1)[None]
    assert torch.equal(ts.warp(image.to(device), field.to(device), (11, 9), backend=backend).cpu(), image)


def test_rotation_keeps_its_stretch_of_one():
    """A rotation rounded to float32 has a stretch of not quite 1, and still takes one point."""
    angles = torch.linspace(0.1, 3, 50)
    cos, sin, zero, one = angles.cos(), angles.sin(), torch.zeros(50), torch.ones(50)
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).view(50, 3, 3)
    image = torch.rand(50, 1, 6, 6, dtype=torch.float64)
    area = ts.warp(image, matrix, (4, 4), backend="reference")
    linear = ts.warp(image, matrix, (4, 4), filter="bilinear", backend="reference")
    torch.testing.assert_close(area, linear, atol=1e-4, rtol=0)


# --- every backend against the reference -----------------------------------------------------------------------------


def _tolerance(largest: float, dtype: torch.dtype) -> float:
    """A point's place relative to its centre errs by roundings of up to 32 pixels, and with it weights, over a window.

    Windows of these cases are at least a tenth of a pixel wide. A value is rounded once to its type.
    """
    rounding = 0.0 if dtype == torch.uint8 else torch.finfo(dtype).eps / 2
    return largest * (4 * 32 / 0.1 * torch.finfo(torch.float32).eps + rounding)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filter", FILTERS)
def test_against_reference(target, kind, filter):
    device, backend = target
    interpreted = target == ("cpu", "triton")
    if interpreted and kind != "affine" and filter != "area":
        pytest.skip("the interpreter is slow: it has every filter with a matrix, and every kind with one filter")
    for source, size in (((7, 6), (3, 4)),) if interpreted else (((11, 9), (6, 7)), ((1, 5), (3, 2)), ((5, 1), (2, 3))):
        image, labels = _inputs(source=source)
        transform = _transforms(kind, 2, source, size, largest=1.6 if interpreted else 3.5)
        there = image.to(device), labels.to(device), transform.to(device)
        options = {"filter": filter, "fill": 1.5}
        result, soft = ts.warp_pair(*there, size, 5, backend=backend, **options)
        expected, expected_soft = ts.warp_pair(
            image.double(), labels, transform, size, 5, soft_dtype=torch.float64, backend="reference", **options
        )
        assert result.dtype == torch.float32
        assert_close(result, expected, _tolerance(2.0, torch.float32), f"image {source}")
        assert_close(soft, expected_soft, _tolerance(1.0, torch.float32), f"soft label {source}")
        assert torch.equal(ts.warp(there[0], there[2], size, backend=backend, **options), result)


def test_types_and_layouts(target):
    device, backend = target
    image, labels = _inputs()
    transform = _transforms("affine", 2, (11, 9), (6, 7), largest=1.6).to(device)
    bytes_ = ((image + 2) * 60).byte().contiguous(memory_format=torch.channels_last)
    result = ts.warp(bytes_.to(device), transform, (6, 7), dtype=torch.float32, backend=backend)
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = ts.warp(bytes_.double() / 255, transform.cpu(), (6, 7), backend="reference")
    assert_close(result, expected, _tolerance(1.0, torch.float32), "bytes")
    strided = labels.to(device).mT.contiguous().mT[:, ::2]
    soft = ts.soft_warp(strided, transform, (6, 7), 5, backend=backend)
    assert torch.equal(soft, ts.soft_warp(strided.contiguous(), transform, (6, 7), 5, backend=backend))


def test_many_classes_and_an_ignored_one(target):
    device, backend = target
    labels = torch.arange(42).view(1, 7, 6)
    transform = _transforms("affine", 1, (7, 6), (2, 2))
    soft = ts.soft_warp(labels.to(device), transform.to(device), (2, 2), 45, ignore_index=40, backend=backend)
    expected = reference_warping.soft_warp(labels, transform, (2, 2), 45, 40, "area", torch.float64)
    assert_close(soft, expected, _tolerance(1.0, torch.float32), "soft label")
    assert soft[:, 40].abs().max() == 0


@pytest.mark.parametrize("filter", ["area", "triangle"])
def test_larger_maps(filter):
    """Spans of pixels wholly inside of the image, wholly outside, and both; labels that are no class."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(7, (2, 9, 6), generator=generator).repeat_interleave(17, 1).repeat_interleave(19, 2)
    labels = labels.masked_fill(labels == 6, 255).to(torch.uint8)
    transform = _transforms("affine", 2, (153, 114), (60, 40), seed=3)
    for map_ in (labels, labels.long()):
        soft = ts.soft_warp(map_, transform, (60, 40), 6, filter=filter)
        expected = ts.soft_warp(labels, transform, (60, 40), 6, filter=filter, dtype=torch.float64, backend="reference")
        assert_close(soft, expected, _tolerance(1.0, torch.float32), "soft label")
    with pytest.raises(ValueError, match="other values from 5 to 5"):
        ts.soft_warp(labels, transform, (60, 40), 5, filter=filter)


def test_same_bits_on_any_number_of_threads():
    image, labels = _inputs(source=(300, 200), batch=2)
    transform = _transforms("affine", 2, (300, 200), (200, 300))
    leaf = image.requires_grad_()
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            result, soft = ts.warp_pair(leaf, labels, transform, (200, 300), 5)
            results.append((result, soft, *torch.autograd.grad(result.square().sum(), leaf)))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_top_classes(target):
    device, backend = target
    _, labels = _inputs()
    transform = _transforms("affine", 2, (11, 9), (4, 5))
    sparse = ts.soft_warp(labels.to(device), transform.to(device), (4, 5), 5, top_k=5, backend=backend)
    dense = ts.soft_warp(labels, transform, (4, 5), 5, dtype=torch.float64, backend="reference")
    assert_close(sparse.to_dense(), dense, _tolerance(1.0, torch.float32), "all classes")
    assert sparse.rest.abs().max() == 0


# --- gradients, graphs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradient(target, kind):
    device, backend = target
    image, _ = _inputs()
    transform = _transforms(kind, 2, (11, 9), (6, 7))
    leaf = image.to(device).requires_grad_()
    result = ts.warp(leaf, transform.to(device), (6, 7), backend=backend)
    grad = torch.rand(result.shape, generator=torch.Generator().manual_seed(1))
    result.backward(grad.to(device))
    expected = reference_warping.warp_adjoint(grad.double(), transform, (11, 9), "area", torch.float64)
    assert_close(leaf.grad, expected, _tolerance(max(expected.max().item(), 1.0), torch.float32), "gradient")


def test_gradient_of_infinity(target):
    """A loss scaler must see that a gradient has overflowed."""
    device, backend = target
    leaf = _inputs(batch=1)[0].to(device).requires_grad_()
    transform = torch.eye(3, device=device)[None]
    result = ts.warp(leaf, transform, (11, 9), backend=backend)
    grad = torch.ones_like(result)
    grad[0, 0, 5, 5] = INF
    result.backward(grad)
    assert not leaf.grad.isfinite().all()


def test_gradcheck():
    transform = _transforms("perspective", 1, (5, 4), (3, 4))
    image = torch.rand(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)

    def warped(image):
        return ts.warp(image, transform, (3, 4), backend="reference")

    assert torch.autograd.gradcheck(warped, image, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(warped, image)


@pytest.mark.parametrize("kind", ["affine", "field"])
def test_loss_is_that_of_the_soft_label(target, kind):
    device, backend = target
    _, labels = _inputs()
    transform = _transforms(kind, 2, (11, 9), (4, 5), largest=1.6)
    logits = torch.randn((2, 5, 4, 5), generator=torch.Generator().manual_seed(2))
    leaf = logits.to(device, copy=True).requires_grad_()
    loss = ts.area_cross_entropy(leaf, labels.to(device), transform=transform.to(device), backend=backend)
    loss.backward()
    soft = ts.soft_warp(labels, transform, (4, 5), 5, dtype=torch.float64, backend="reference")
    double = logits.detach().double().requires_grad_()
    expected = ts.soft_cross_entropy(double, soft, backend="reference")
    expected.backward()
    assert_close(loss, expected, _tolerance(10.0, torch.float32), "loss")
    assert_close(leaf.grad, double.grad, _tolerance(1.0, torch.float32), "gradient")
    module = ts.AreaCrossEntropyLoss()
    torch.testing.assert_close(module(logits, labels, transform=transform), expected.detach().float())


def test_operators(target):
    """opcheck, a compiled graph, forward mode, autocast and an empty batch."""
    device, backend = target
    image, labels = (tensor.to(device) for tensor in _inputs())
    transform = _transforms("affine", 2, (11, 9), (3, 4), largest=0.9).to(device)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(
        ops.warp.overload,
        (backend, None, image.clone().requires_grad_(), transform, (3, 4), "area", 0.0, torch.float32),
        test_utils=checks,
    )
    opcheck(
        ops.soft_warp.overload,
        (backend, None, labels, transform, (3, 4), 5, 255, "area", torch.float32),
        test_utils=checks,
    )

    def step(image, transform):
        small, soft = ts.warp_pair(image * 2, labels, transform, (3, 4), 5, backend=backend)
        return small + 1, soft

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(image, transform), step(image, transform), strict=True):
        torch.testing.assert_close(actual, expected)
    value, tangent = torch.func.jvp(
        lambda image: ts.warp(image, transform, (3, 4), fill=0.5, backend=backend), (image,), (image,)
    )
    torch.testing.assert_close(value, ts.warp(image, transform, (3, 4), fill=0.5, backend=backend))
    torch.testing.assert_close(tangent, ts.warp(image, transform, (3, 4), backend=backend))
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(
            ts.warp(image, transform, (3, 4), backend=backend), ts.warp(image, transform, (3, 4), backend=backend)
        )
        assert ts.warp(image, transform, (3, 4), backend=backend).dtype == torch.float32
    small, soft = ts.warp_pair(image[:0], labels[:0], transform[:0], (3, 4), 5, backend=backend)
    assert small.shape == (0, 3, 3, 4)
    assert soft.shape == (0, 5, 3, 4)
    assert ts.warp_pair(image[:, :0], labels, transform, (3, 4), 5, backend=backend)[0].shape == (2, 0, 3, 4)
    logits = torch.zeros(0, 5, 3, 4, device=device)
    assert ts.area_cross_entropy(logits, labels[:0], transform=transform[:0], backend=backend) == 0


# --- what lies outside, and bad input --------------------------------------------------------------------------------


def test_outside(target):
    """Fill and no mass: one is what the other is not."""
    device, backend = target
    labels = torch.zeros(1, 11, 9, dtype=torch.uint8, device=device)
    transform = _transforms("affine", 1, (11, 9), (8, 8), seed=4).to(device)
    image = torch.zeros(1, 1, 11, 9, device=device)
    beyond, soft = ts.warp_pair(image, labels, transform, (8, 8), 1, fill=1.0, backend=backend)
    torch.testing.assert_close(beyond + soft, torch.ones_like(soft), atol=1e-6, rtol=0)
    assert soft.min() == 0
    assert soft.max() > 0.99


def test_horizon(target):
    """What lies behind the camera carries no mass and is fill; the sky of a road scene."""
    device, backend = target
    image, labels = (tensor.to(device) for tensor in _inputs(batch=1))
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0], [0, 0.5, -1.0]]], device=device)  # depth > 0 where v > 2
    result, soft = ts.warp_pair(image, labels, matrix, (6, 3), 5, filter="bilinear", fill=7.0, backend=backend)
    assert soft[:, :, :2].abs().max() == 0
    assert (result[:, :, :2] == 7).all()
    assert soft[:, :, 3:].sum() > 0


@pytest.mark.parametrize("filter", ["area", "bilinear"])
def test_one_column_between_endless_steps(target, filter):
    """Of a row of pixels one lies in the image, and those at its ends farther away than any image reaches."""
    device, backend = target
    image = torch.rand(1, 2, 9, 7, generator=torch.Generator().manual_seed(0)).to(device)
    step = 2.0**24
    matrix = torch.tensor([[[0, 1, 0.25], [step, 0, 2.25 - 2.5 * step], [0, 0, 1]]], dtype=torch.float64)
    result = ts.warp(image, matrix.to(device), (4, 5), filter=filter, backend=backend)
    expected = ts.warp(image, matrix.to(device), (4, 5), filter=filter, backend="reference")
    torch.testing.assert_close(result, expected)
    assert expected[..., 2].count_nonzero() >= (8 if filter == "bilinear" else 0)


@pytest.mark.parametrize("factor", [1e-300, 1e-120, 1e300])
def test_a_factor_of_the_matrix_changes_nothing(factor):
    """Not even where the products of a determinant would vanish or overflow."""
    _, labels = _inputs(batch=1)
    matrix = _transforms("perspective", 1, (11, 9), (3, 4))
    expected = ts.soft_warp(labels, matrix, (3, 4), 5, backend="reference")
    torch.testing.assert_close(ts.soft_warp(labels, matrix * factor, (3, 4), 5, backend="reference"), expected)


UNCHECKED = [
    torch.full((1, 3, 3), NAN),
    torch.full((1, 3, 3), INF),
    torch.zeros(1, 3, 3),
    torch.tensor([[[1e30, 0, 0], [0, 1e30, 0], [0, 0, 1.0]]]),
    torch.tensor([[[1.0, 0, 1e30], [0, 1, -1e30], [0, 0, 1]]]),
    torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, -1]]]),
    torch.full((1, 3, 4, 2), NAN),
    torch.full((1, 3, 4, 2), -INF),
    torch.full((1, 3, 4, 2), 1e30),
]


def test_unchecked_values(target):
    """Where values are not checked, as on a GPU, whatever lies nowhere carries no mass, and nothing crashes."""
    device, backend = target
    image, labels = (tensor.to(device) for tensor in _inputs(batch=1))
    computes = backend_for(device, backend)
    for transform in UNCHECKED[::3] if target == ("cpu", "triton") else UNCHECKED:
        soft, out = torch.empty(1, 5, 3, 4, device=device), torch.empty(1, 3, 3, 4, device=device)
        computes.warp_pair(out, soft, image, labels, transform.to(device), 255, "area", 3.0, False)
        assert soft.abs().max() <= 1, transform
        if not transform.isfinite().all():
            assert soft.abs().max() == 0, transform
            assert (out == 3).all(), transform


def test_one_position_that_is_no_number(target):
    device, backend = target
    _, labels = _inputs(batch=1)
    field = torch.full((1, 3, 4, 2), 4.5)
    field[0, 1, 1, 0] = NAN
    soft = torch.empty(1, 5, 3, 4, device=device)
    backend_for(device, backend).soft_warp(soft, labels.to(device), field.to(device), 255, "area", False)
    expected = ts.soft_warp(labels, torch.full((1, 3, 4, 2), 4.5), (3, 4), 5, backend="reference")
    expected[0, :, 1, 1] = 0
    torch.testing.assert_close(soft.cpu(), expected)


IMAGE, LABELS = torch.rand(2, 3, 8, 9), torch.randint(5, (2, 8, 9))
MATRIX = torch.eye(3).expand(2, 3, 3)
FIELD = torch.ones(2, 3, 4, 2)


def _with(matrix, value):
    return torch.cat([MATRIX[:1], torch.tensor([matrix]) * value])


BAD = [
    # changes, error, the words that its message must hold
    ({"transform": MATRIX.tolist()}, TypeError, ["transform", "tensor", "list"]),
    ({"transform": None}, TypeError, ["transform", "tensor", "NoneType"]),
    ({"transform": MATRIX.long()}, TypeError, ["transform", "floating", "int64"]),
    ({"transform": MATRIX[:, :2]}, ValueError, ["transform", "(2, 3, 3)", "(2, 3, 4, 2)", "(2, 2, 3)"]),
    ({"transform": MATRIX[:1]}, ValueError, ["transform", "(1, 3, 3)"]),
    ({"transform": FIELD[:, :2]}, ValueError, ["transform", "(2, 3, 4, 2)", "(2, 2, 4, 2)"]),
    ({"transform": MATRIX.to("meta")}, ValueError, ["transform", "device", "cpu", "meta"]),
    ({"transform": MATRIX.clone().requires_grad_()}, ValueError, ["transform", "gradient"]),
    ({"transform": MATRIX * NAN}, ValueError, ["transform", "finite", "nan", "sample 0"]),
    ({"transform": _with([[1.0, 0, 0], [0, INF, 0], [0, 0, 1]], 1)}, ValueError, ["transform", "finite", "sample 1"]),
    ({"transform": _with([[1.0, 2, 5], [2, 4, 7], [0, 0, 1]], 1)}, ValueError, ["transform", "invertible", "sample 1"]),
    ({"transform": torch.zeros(2, 3, 3)}, ValueError, ["transform", "invertible", "sample 0"]),
    ({"transform": FIELD * NAN}, ValueError, ["transform", "finite", "24 pixels"]),
    ({"transform": FIELD * INF}, ValueError, ["transform", "finite"]),
    ({"size": (0, 4)}, ValueError, ["size", "(0, 4)"]),
    ({"size": 3}, TypeError, ["size", "two ints"]),
    ({"filter": "bicubic"}, ValueError, ["filter", "bicubic", "negative"]),
    ({"labels": LABELS + 1}, ValueError, ["labels", "0..4", "5"]),
    ({"labels": LABELS[:, :7]}, ValueError, ["labels", "(2, 8, 9)", "(2, 7, 9)"]),
    ({"image": IMAGE[0]}, ValueError, ["image", "(B, K, H, W)"]),
    ({"fill": "0"}, TypeError, ["fill", "str"]),
    ({"num_classes": 0}, ValueError, ["num_classes", "at least 1"]),
    ({"ignore_index": 1.0}, TypeError, ["ignore_index", "float"]),
    ({"backend": "cuda"}, ValueError, ["backend", "cuda"]),
]


@pytest.mark.parametrize(("changes", "error", "words"), BAD)
def test_bad_input(changes, error, words):
    arguments = {"image": IMAGE, "labels": LABELS, "transform": MATRIX, "size": (3, 4), "num_classes": 5, **changes}
    arguments.setdefault("backend", "reference")
    with pytest.raises(error) as caught:
        ts.warp_pair(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_bad_labels_are_found_by_every_backend(target):
    device, backend = target
    labels = LABELS.clone()
    labels[1, 2, 3] = 9
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4.*1 other values from 9 to 9"):
        ts.soft_warp(labels.to(device), MATRIX.to(device), (8, 9), 5, validate=True, backend=backend)


def test_boxes_or_a_transform():
    logits = torch.zeros(2, 5, 3, 4)
    with pytest.raises(ValueError, match="transform must be None where boxes are given"):
        ts.area_cross_entropy(logits, LABELS, torch.zeros(2, 4), transform=MATRIX, backend="reference")
    with pytest.raises(TypeError, match="boxes must be a tensor, got NoneType"):
        ts.box_to_matrix(None, (3, 4))
    with pytest.raises(ValueError, match=r"boxes must have shape \(B, 4\)"):
        ts.box_to_matrix(torch.zeros(4), (3, 4))
