"""The area of classes in boxes: exact at every size of a box, and the same wherever it is computed."""

import itertools
import random

import numpy as np
import pytest
import torch

import tritonsoft as ts
from tests.cases import assert_close, random_case
from tritonsoft.backends import reference


def _boxes(rng: random.Random, case) -> torch.Tensor:
    """Several boxes of each sample, (B, N, 4)."""
    height, width = case.labels.shape[1:]
    rows = []
    for _ in range(len(case.labels) * 3):
        x, y = rng.uniform(-width, 1.5 * width), rng.uniform(-height, 1.5 * height)
        extent = rng.choice([0.01, 0.9, 3.0, 3.25, 2.0 * width])
        rows.append([x, y, x + rng.choice([-1, 1]) * extent, y + rng.choice([-1, 1]) * extent * rng.uniform(0.5, 2)])
    return torch.tensor(rows, dtype=torch.float64).view(len(case.labels), 3, 4)


def test_every_box_type_and_layout(target):
    device, backend = target
    for seed in range(6 if backend == "triton" else 60):
        rng = random.Random(seed)
        case = random_case(rng, 24 if backend == "triton" else 150)
        boxes = case.boxes if seed % 2 else _boxes(rng, case)
        per_sample = None if boxes is None else boxes.view(len(case.labels), -1, 4)
        expected = reference.class_areas(case.labels, per_sample, case.num_classes, case.ignore_index)
        case, boxes = case.to(device), None if boxes is None else boxes.to(device)
        actual = ts.class_areas(case.labels, boxes, case.num_classes, ignore_index=case.ignore_index, backend=backend)
        assert actual.dtype == torch.float32
        # Each pixel's weight and each sum err by roundings of float32 relative to the area, which is of all pixels.
        largest = float(case.labels[0].numel())
        expected = expected if boxes is not None and boxes.ndim == 3 else expected[:, 0]
        assert_close(actual, expected, 8 * largest * torch.finfo(torch.float32).eps, f"seed {seed}")


def test_by_hand(target):
    device, backend = target
    labels = torch.tensor([[[0, 1, 1], [2, 255, 1]]], dtype=torch.uint8, device=device)
    boxes = torch.tensor([[[0.5, 0.0, 2.25, 1.5], [2.25, 1.5, 0.5, 0.0], [1.1, 0.2, 1.2, 0.4], [-9.0, -9, 9, 9]]])
    areas = ts.class_areas(labels, boxes.to(device), 3, backend=backend)
    once = [0.5, 1.25 + 0.125, 0.25]
    expected = torch.tensor([[once, once, [0.0, 0.02, 0.0], [1.0, 3.0, 1.0]]])
    assert_close(areas, expected, 1e-6, "areas")
    whole = ts.class_areas(labels, None, 3, backend=backend)
    assert whole.tolist() == [[1.0, 3.0, 1.0]]
    outside = ts.class_areas(labels, torch.tensor([[3.0, 0.0, 5.0, 2.0]], device=device), 3, backend=backend)
    assert outside.tolist() == [[0.0, 0.0, 0.0]]


def test_boxes_that_tile_the_image_add_up_to_it(target):
    device, backend = target
    labels = torch.randint(4, (1, 17, 23), generator=torch.Generator().manual_seed(0)).to(device)
    xs, ys = [0.0, 3.3, 3.9, 20.0, 23.0], [0.0, 0.25, 16.5, 17.0]
    boxes = [[x0, y0, x1, y1] for x0, x1 in itertools.pairwise(xs) for y0, y1 in itertools.pairwise(ys)]
    parts = ts.class_areas(labels, torch.tensor([boxes], device=device), 4, backend=backend)
    assert_close(parts.sum(1), ts.class_areas(labels, None, 4, backend=backend), 1e-3, "sum of the tiles")


def test_many_classes(target):
    """More than one set of 32 bits, and on a GPU more than one program."""
    device, backend = target
    labels = torch.tensor([[[0, 31, 32, 1023, 1024, 1499, 1499]]], device=device)
    areas = ts.class_areas(labels, None, 1500, ignore_index=31, backend=backend)
    assert areas.nonzero()[:, 1].tolist() == [0, 32, 1023, 1024, 1499]
    assert areas[0, 1499] == 2


def test_the_mass_of_a_soft_label_is_the_area(target):
    device, backend = target
    case = random_case(random.Random(5), 30).to(device)
    height, width = case.labels.shape[1:]
    box = torch.tensor([[0.5, 1.25, width - 0.75, height - 0.5]], device=device).expand(len(case.labels), 4)
    size = (max(1, height // 3), max(1, width // 3))
    options = {"ignore_index": case.ignore_index, "backend": backend}
    soft = ts.soft_crop_resize(case.labels, box, size, case.num_classes, **options)
    footprint = (width - 1.25) * (height - 1.75) / (size[0] * size[1])
    areas = ts.class_areas(case.labels, box, case.num_classes, **options)
    assert_close(soft.sum((2, 3)) * footprint, areas, 1e-4 * height * width, "mass")


def test_rows_in_any_number_of_threads_give_the_same_bits():
    pytest.importorskip("numba", reason="Numba is not installed")
    labels = torch.randint(19, (2, 1500, 1100), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    boxes = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(1)) * 1500
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(ts.class_areas(labels, boxes, 19, backend="numba"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    x0, y0, x1, y1 = boxes[0, 0].double().tolist()
    expected = np.clip(max(x0, x1), 0, 1100) - np.clip(min(x0, x1), 0, 1100)
    expected *= np.clip(max(y0, y1), 0, 1500) - np.clip(min(y0, y1), 0, 1500)
    assert abs(results[0][0, 0].sum().item() - expected) < 1e-5 * 1500 * 1100


def test_no_box_and_no_sample(target):
    device, backend = target
    labels = torch.zeros(2, 4, 5, dtype=torch.uint8, device=device)
    assert ts.class_areas(labels, torch.zeros(2, 0, 4, device=device), 3, backend=backend).shape == (2, 0, 3)
    assert ts.class_areas(labels[:0], torch.zeros(0, 2, 4, device=device), 3, backend=backend).shape == (0, 2, 3)
    assert ts.class_areas(labels[:0], None, 3, backend=backend).shape == (0, 3)


def test_what_bad_input_gets(target):
    device, backend = target
    labels = torch.zeros(2, 4, 5, dtype=torch.uint8, device=device)

    def areas(given=labels, boxes=None, num_classes=3, **options):
        return ts.class_areas(given, boxes, num_classes, backend=backend, **options)

    with pytest.raises(ValueError, match=r"labels must lie in 0..2 .*got 40 other values from 7 to 7"):
        areas(labels + 7, validate=True)
    with pytest.raises(ValueError, match=r"boxes must have shape \(B, 4\) or \(B, N, 4\) with B = 2, got \(3, 1, 4\)"):
        areas(boxes=torch.zeros(3, 1, 4, device=device))
    with pytest.raises(ValueError, match=r"boxes must have shape \(B, 4\) = \(2, 4\), got \(1, 4\)"):
        areas(boxes=torch.zeros(1, 4, device=device))
    with pytest.raises(TypeError, match=r"boxes must be floating point or integers .*got bool"):
        areas(boxes=torch.zeros(2, 1, 4, device=device, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"labels must be .*got float32"):
        areas(labels.float())
    with pytest.raises(ValueError, match="ignore_index must be given where num_classes is more than 255"):
        areas(num_classes=300)
    with pytest.raises(ValueError, match=r"boxes must stay within .* for sample 1"):
        areas(boxes=[[0, 0, 1, 1], [0, 0, 1e9, 1]])
    if device == "cpu":
        wrong = torch.tensor([[[0.0, 0, 1, 1], [0, 0, 1, 1]], [[0.0, 0, 1, 1], [0, 0, 0, 1]]])
        with pytest.raises(ValueError, match=r"boxes must have a width and .* for box 1 of sample 1"):
            areas(boxes=wrong)


def test_unchecked_labels_and_boxes_count_nothing(target):
    """What a GPU does not look at must neither count nor be read out of bounds."""
    device, backend = target
    if device == "cpu":
        pytest.skip("values are always checked on the CPU")
    labels = torch.full((1, 4, 5), -7, device=device)
    boxes = torch.tensor([[[float("nan")] * 4, [float("-inf"), 0, float("inf"), 4]]], device=device)
    assert ts.class_areas(labels, boxes, 3, backend=backend, validate=False).tolist() == [[[0.0] * 3] * 2]


def test_compiled(target):
    device, backend = target
    labels = torch.randint(3, (2, 6, 7), generator=torch.Generator().manual_seed(0)).to(device)
    boxes = torch.tensor([[[0.5, 0, 3, 4]], [[1.0, 2, 6, 5]]], device=device)
    compiled = torch.compile(
        lambda *args: ts.class_areas(*args, 3, backend=backend) * 2, fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(labels, boxes), ts.class_areas(labels, boxes, 3, backend=backend) * 2)
