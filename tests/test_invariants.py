"""What must hold whatever the numbers: mass, linearity, flips, composition, permutation, determinism."""

import pytest
import torch

import tritonsoft as ts
from tritonsoft.geometry import FILTERS

EPS = torch.finfo(torch.float32).eps


def _labels(batch=2, height=24, width=40, classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (batch, height, width), generator=generator, dtype=torch.uint8)
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.15, 255)


BOXES = torch.tensor([[1.25, 3.5, 38.0, 21.75], [30.0, -6.0, -5.5, 23.0]])  # inside; mirrored and reaching outside


@pytest.mark.parametrize("boxes", [None, BOXES])
def test_area_conserves_mass(target, boxes):
    device, backend = target
    labels, size = _labels(), (7, 9)
    soft = ts.soft_crop_resize(labels.to(device), None if boxes is None else boxes.to(device), size, 6, backend=backend)
    for sample in range(2):
        x0, y0, x1, y1 = (0, 0, 40, 24) if boxes is None else boxes[sample].tolist()
        low_x, high_x, low_y, high_y = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        column, row = torch.arange(40.0), torch.arange(24.0)
        covered_x = (torch.clamp(column + 1, max=high_x) - torch.clamp(column, min=low_x)).clamp(min=0)
        covered_y = (torch.clamp(row + 1, max=high_y) - torch.clamp(row, min=low_y)).clamp(min=0)
        covered = covered_y[:, None] * covered_x  # the box's area inside each pixel
        footprint = (high_x - low_x) * (high_y - low_y) / (size[0] * size[1])
        for label in range(6):
            expected = (covered * (labels[sample] == label)).sum() / footprint
            actual = soft[sample, label].cpu().sum()
            # Every one of the 63 sums may round; so does the window that is cut off at the edge of the image.
            torch.testing.assert_close(actual, expected, rtol=200 * EPS, atol=200 * EPS)


@pytest.mark.parametrize("filter", FILTERS)
def test_soft_label_is_the_resampled_one_hot(target, filter):
    device, backend = target
    labels, boxes = _labels().to(device), BOXES.to(device)
    soft = ts.soft_crop_resize(labels, boxes, (9, 13), 6, filter=filter, backend=backend)
    resampled = ts.crop_resize(ts.to_soft(labels, 6, backend=backend), boxes, (9, 13), filter=filter, backend=backend)
    torch.testing.assert_close(soft, resampled, rtol=0, atol=64 * EPS)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("size", [(9, 13), (31, 50)])
def test_flipping_the_box_flips_the_output_exactly(target, filter, size):
    if target == ("cpu", "triton") and (filter in ("area", "nearest")) != (size == (9, 13)):
        pytest.skip("the interpreter is slow: it shrinks with two filters and enlarges with the others")
    device, backend = target
    labels, boxes = _labels().to(device), BOXES.to(device)
    image = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(1)).to(device)
    flips = (((2, 3, 0, 1), [2, 3]), ((2, 1, 0, 3), [3]), ((0, 3, 2, 1), [2]))
    for order, dims in flips[:1] if target == ("cpu", "triton") else flips:  # the interpreter is slow
        options = {"filter": filter, "backend": backend}
        plain = ts.crop_resize_pair(image, labels, boxes, size, 6, **options)
        flipped = ts.crop_resize_pair(image, labels, boxes[:, order], size, 6, **options)
        source = ts.crop_resize_pair(image.flip(dims), labels.flip([d - 1 for d in dims]), None, size, 6, **options)
        whole = ts.crop_resize_pair(image, labels, None, size, 6, **options)
        for index in range(2):
            assert torch.equal(flipped[index], plain[index].flip(dims))
            if filter == "nearest":
                continue  # a centre on the edge of two pixels takes the right one, which flipping the source swaps
            # Flipping the source adds the taps in the other order.
            torch.testing.assert_close(source[index], whole[index].flip(dims), rtol=0, atol=16 * EPS)


def test_area_twice_by_two_is_area_by_four(target):
    device, backend = target
    labels = _labels().to(device)
    by_two = ts.soft_resize(labels, (12, 20), 6, backend=backend)
    twice = ts.resize(by_two, (6, 10), backend=backend)
    # Counts over 4 and 16 pixels are exact in float32.
    assert torch.equal(twice, ts.soft_resize(labels, (6, 10), 6, backend=backend))


def test_whole_image_box_is_no_box(target):
    device, backend = target
    labels = _labels().to(device)
    whole = torch.tensor([[0.0, 0.0, 40.0, 24.0]]).expand(2, 4).to(device)
    for size in ((12, 20), (7, 9), (26, 44) if target == ("cpu", "triton") else (48, 80)):
        boxed = ts.soft_crop_resize(labels, whole, size, 6, backend=backend)
        torch.testing.assert_close(boxed, ts.soft_resize(labels, size, 6, backend=backend), rtol=0, atol=16 * EPS)


def test_integer_crop_is_crop_then_resize(target):
    device, backend = target
    labels = _labels().to(device)
    boxes = torch.tensor([[5.0, 2.0, 31.0, 19.0]]).expand(2, 4).to(device)
    for filter in FILTERS:
        for size in ((5, 9), (30, 41)):
            if target == ("cpu", "triton") and (filter == "area") != (size == (30, 41)):
                continue  # the interpreter is slow
            cropped = ts.soft_crop_resize(labels, boxes, size, 6, filter=filter, backend=backend)
            sliced = ts.soft_resize(labels[:, 2:19, 5:31], size, 6, filter=filter, backend=backend)
            torch.testing.assert_close(cropped, sliced, rtol=0, atol=32 * EPS)


def test_permuting_classes_permutes_channels(target):
    device, backend = target
    labels = _labels()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = torch.where(labels == 255, 255, order[labels.clamp(max=5).long()]).to(torch.uint8)
    plain = ts.soft_crop_resize(labels.to(device), BOXES.to(device), (7, 9), 6, backend=backend)
    moved = ts.soft_crop_resize(permuted.to(device), BOXES.to(device), (7, 9), 6, backend=backend)
    # The reference multiplies matrices, whose blocking may round a plane by its position.
    tolerance = 16 * EPS if backend == "reference" else 0.0
    torch.testing.assert_close(moved[:, order.to(device)], plain, rtol=0, atol=tolerance)


def test_ignored_pixels_lose_their_mass_and_nothing_else(target):
    device, backend = target
    labels = _labels().to(device)
    soft = ts.soft_resize(labels, (7, 9), 6, backend=backend)
    known = ts.resize((labels != 255).float()[:, None], (7, 9), backend=backend)
    torch.testing.assert_close(soft.sum(1, keepdim=True), known, rtol=0, atol=32 * EPS)


def test_ignoring_a_class_takes_its_mass(target):
    device, backend = target
    labels = _labels().clamp(max=5).to(device)
    full = ts.soft_resize(labels, (7, 9), 6, backend=backend)
    without = ts.soft_resize(labels, (7, 9), 6, ignore_index=2, backend=backend)
    assert without[:, 2].eq(0).all()
    others = [0, 1, 3, 4, 5]
    tolerance = 16 * EPS if backend == "reference" else 0.0
    torch.testing.assert_close(without[:, others], full[:, others], rtol=0, atol=tolerance)


def test_normalize():
    soft = torch.tensor([[[[0.25, 0.0, 1.0]], [[0.5, 0.0, 0.0]]]], dtype=torch.float64, requires_grad=True)
    expected = torch.tensor([[[[1 / 3, 0.0, 1.0]], [[2 / 3, 0.0, 0.0]]]], dtype=torch.float64)
    torch.testing.assert_close(ts.normalize(soft), expected)
    ts.normalize(soft).sum().backward()
    assert soft.grad is not None
    assert soft.grad.isfinite().all()


def test_to_soft_is_one_hot(target):
    device, backend = target
    labels = _labels().to(device)
    expected = (labels[:, None] == torch.arange(6, device=device)[:, None, None]).float()
    assert torch.equal(ts.to_soft(labels, 6, backend=backend), expected)


def test_thread_count_does_not_change_a_bit():
    before = torch.get_num_threads()
    labels = _labels(batch=3, height=310, width=470)
    image = torch.rand(3, 3, 310, 470, generator=torch.Generator().manual_seed(3))
    boxes = torch.tensor([[1.25, 3.5, 460.0, 300.75], [300.0, -6.0, -5.5, 230.0], [0.0, 0.0, 470.0, 310.0]])
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ts.crop_resize_pair(image, labels, boxes, (97, 130), 6))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])
