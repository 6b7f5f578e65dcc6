"""Every backend against the float64 reference, on random shapes, boxes, dtypes, ignore patterns and memory layouts."""

import random

import pytest
import torch

import tritonsoft as ts
from tests.cases import Case, assert_close, random_case
from tritonsoft import memory
from tritonsoft.backends import reference


def _expected_image(case: Case) -> torch.Tensor:
    image = case.image
    # A uint8 result is compared with the exact, unrounded value.
    image = image.double() if case.image_dtype == torch.uint8 else image
    return reference.crop_resize(image, case.boxes, case.size, case.filter, case.fill, torch.float64)


def _image_tolerance(case: Case) -> float:
    if case.image_dtype == torch.uint8:
        return 0.5 + case.tolerance(torch.uint8, 255.0)
    return case.tolerance(case.image_dtype, max(2.0, case.fill))


def _expected_soft(case: Case) -> torch.Tensor:
    return reference.soft_crop_resize(
        case.labels, case.boxes, case.size, case.num_classes, case.ignore_index, case.filter, torch.float64
    )


def check_pair(case: Case, device: str, backend: str) -> None:
    there = case.to(device)
    image, soft = ts.crop_resize_pair(
        there.image,
        there.labels,
        there.boxes,
        case.size,
        case.num_classes,
        ignore_index=case.ignore_index,
        filter=case.filter,
        fill=case.fill,
        dtype=case.image_dtype,
        soft_dtype=case.soft_dtype,
        backend=backend,
    )
    assert image.dtype == case.image_dtype
    assert soft.dtype == case.soft_dtype
    assert soft.is_contiguous()
    assert memory.is_channels_last(image) == (memory.is_channels_last(case.image) and image.stride(3) > 1)
    assert_close(image, _expected_image(case), _image_tolerance(case), "image")
    assert_close(soft, _expected_soft(case), case.tolerance(case.soft_dtype, 1.0), "soft label")


def check_single(case: Case, device: str, backend: str) -> None:
    """The separate operators; and that the same inputs give the same bits."""
    there = case.to(device)
    options = {"filter": case.filter, "backend": backend}
    image = ts.crop_resize(there.image, there.boxes, case.size, fill=case.fill, dtype=case.image_dtype, **options)
    soft = ts.soft_crop_resize(
        there.labels,
        there.boxes,
        case.size,
        case.num_classes,
        ignore_index=case.ignore_index,
        dtype=case.soft_dtype,
        **options,
    )
    assert_close(image, _expected_image(case), _image_tolerance(case), "image")
    assert_close(soft, _expected_soft(case), case.tolerance(case.soft_dtype, 1.0), "soft label")
    again = ts.crop_resize(there.image, there.boxes, case.size, fill=case.fill, dtype=case.image_dtype, **options)
    assert torch.equal(image, again), "the same inputs gave other bits"


def check_adjoint(case: Case, device: str, backend: str) -> None:
    """The gradient in the image against the reference's transposed matrices."""
    if not case.image.dtype.is_floating_point or case.image_dtype == torch.uint8:
        return
    there = case.to(device)
    image = there.image.detach().requires_grad_()
    out = ts.crop_resize(
        image, there.boxes, case.size, filter=case.filter, fill=case.fill, dtype=case.image_dtype, backend=backend
    )
    generator = torch.Generator().manual_seed(0)
    grad = torch.rand(out.shape, generator=generator, dtype=torch.float64).to(case.image_dtype)
    out.backward(grad.to(device))
    source = (case.image.shape[2], case.image.shape[3])
    expected = reference.crop_resize_adjoint(grad, case.boxes, source, case.filter, torch.float64)
    # A source pixel gathers from every output that it feeds: their weights sum to this, times gradients of at most 1.
    ones = torch.ones_like(grad, dtype=torch.float64)
    largest = reference.crop_resize_adjoint(ones, case.boxes, source, case.filter, torch.float64).max().item()
    outputs_per_pixel = sum(case.size)
    tolerance = case.tolerance(case.image.dtype, largest) + largest * outputs_per_pixel * 4 * (
        torch.finfo(torch.float32 if case.image.dtype != torch.float64 else torch.float64).eps
    )
    assert image.grad is not None
    assert image.grad.dtype == case.image.dtype
    assert_close(image.grad, expected, tolerance, "gradient")


CHECKS = [check_pair, check_single, check_adjoint]


def _largest_side(target: tuple[str, str]) -> int:
    return 14 if target == ("cpu", "triton") else 40  # the interpreter takes a millisecond per line of a kernel


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("seed", range(25))
def test_seeded_cases(target, check, seed):
    if target == ("cpu", "triton") and seed >= 15:
        pytest.skip("the interpreter is slow: it takes the first fifteen")
    check(random_case(random.Random(seed), _largest_side(target)), *target)


@pytest.mark.parametrize("check", CHECKS)
def test_any_case(target, check):
    hypothesis = pytest.importorskip("hypothesis", reason="Hypothesis is not installed; the seeded cases ran")
    device, backend = target
    examples = 5 if (device, backend) == ("cpu", "triton") else 150

    @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True)
    @hypothesis.given(hypothesis.strategies.randoms(use_true_random=False))
    def run(rng):
        check(random_case(rng, _largest_side(target)), device, backend)

    run()
