"""The oracle itself, against other people's code and against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tritonsoft.backends.reference import axis_matrix, crop_resize, crop_resize_adjoint, soft_crop_resize
from tritonsoft.geometry import FILTERS

SIZES = [(5, 6), (13, 17), (20, 30), (1, 1), (4, 16)]


def _image(height=13, width=17):
    return torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _matrix(ends, in_size, out_size, filter):
    return axis_matrix(torch.tensor([ends], dtype=torch.float64), in_size, out_size, filter)[0][0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("filter", "arguments"),
    [
        ("triangle", {"mode": "bilinear", "antialias": True}),
        ("bilinear", {"mode": "bilinear"}),
        ("nearest", {"mode": "nearest-exact"}),
    ],
)
def test_equals_torch_interpolate(filter, arguments, size):
    actual = crop_resize(_image(), None, size, filter, 0.0, torch.float64)
    torch.testing.assert_close(actual, F.interpolate(_image(), size, **arguments), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [(5, 6), (13, 17), (1, 1), (4, 16)])
def test_area_equals_opencv_when_shrinking(size):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    actual = crop_resize(_image(), None, size, "area", 0.0, torch.float64)
    for sample in range(2):
        for channel in range(3):
            expected = cv2.resize(_image()[sample, channel].numpy(), size[::-1], interpolation=cv2.INTER_AREA)
            # OpenCV keeps its weights in float32.
            np.testing.assert_allclose(actual[sample, channel], expected, rtol=0, atol=4 * np.finfo(np.float32).eps)


def test_soft_label_equals_opencv_per_class():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    labels = torch.randint(5, (1, 31, 45), generator=torch.Generator().manual_seed(1))
    actual = soft_crop_resize(labels, None, (9, 11), 5, 255, "area", torch.float64)
    for label in range(5):
        plane = (labels[0] == label).double().numpy()
        expected = cv2.resize(plane, (11, 9), interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(actual[0, label], expected, rtol=0, atol=4 * np.finfo(np.float32).eps)


def test_area_weights_by_hand():
    third = 1 / 3
    # 5 pixels onto 3 outputs: footprints of 5/3 pixels.
    expected = [[0.6, 0.4, 0, 0, 0], [0, 0.2, 0.6, 0.2, 0], [0, 0, 0, 0.4, 0.6]]
    torch.testing.assert_close(_matrix((0, 5), 5, 3, "area"), torch.tensor(expected, dtype=torch.float64))
    # A fractional box: half of pixel 1, pixel 2, half of pixel 3.
    expected = [[0, 0.25, 0.5, 0.25, 0]]
    torch.testing.assert_close(_matrix((1.5, 3.5), 5, 1, "area"), torch.tensor(expected, dtype=torch.float64))
    # Enlarging is linear interpolation between pixel centres, cut at the box's edge.
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    torch.testing.assert_close(_matrix((0, 2), 2, 4, "area"), torch.tensor(expected, dtype=torch.float64))
    # One and a half of three pixels lie outside on the left: their share of the row is missing.
    expected = [[third, third / 2]]
    torch.testing.assert_close(_matrix((-1.5, 1.5), 2, 1, "area"), torch.tensor(expected, dtype=torch.float64))


def test_triangle_weights_by_hand():
    # 4 pixels onto 2: a hat of half-width 2 around 1 reaches pixels 0, 1, 2 with 0.75, 0.75, 0.25 (-1 is not there).
    expected = torch.tensor([[3, 3, 1, 0], [0, 1, 3, 3]], dtype=torch.float64) / 7
    torch.testing.assert_close(_matrix((0, 4), 4, 2, "triangle"), expected)


def _weight_by_definition(k, low, high, j, outputs, filter):
    """The filters as DESIGN words them: an overlap of intervals and a hat, in plain floats."""
    scale = (high - low) / outputs
    centre = low + (j + 0.5) * scale
    if filter == "area":
        width = max(scale, 1)
        return max(0.0, min(k + 1, centre + width / 2) - max(k, centre - width / 2)) / width
    if filter == "nearest":
        return float(math.floor(centre) == k)
    return max(0.0, 1 - abs(k + 0.5 - centre) / (max(scale, 1) if filter == "triangle" else 1))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("ends", [(0, 11), (1.25, 8.5), (-4.5, 6), (3.3, 3.9), (-20, 40), (12, 15), (2, 9)])
@pytest.mark.parametrize("outputs", [1, 3, 7, 16])
def test_weights_equal_their_definition(filter, ends, outputs):
    size = 11
    touched = range(math.floor(ends[0]), math.ceil(ends[1]))
    actual = _matrix(ends, size, outputs, filter)
    for j in range(outputs):
        weights = {k: _weight_by_definition(k, *ends, j, outputs, filter) for k in touched}
        total = sum(weights.values())
        expected = [weights.get(k, 0.0) / total for k in range(size)]
        np.testing.assert_allclose(actual[j], expected, rtol=0, atol=1e-12)
    mirrored = _matrix(ends[::-1], size, outputs, filter)
    assert torch.equal(mirrored, actual.flip(0))


def test_outside_is_fill_for_images_and_no_mass_for_labels():
    image = torch.full((1, 1, 2, 2), 8.0, dtype=torch.float64)
    boxes = torch.tensor([[-2.0, 0.0, 2.0, 2.0]])
    assert crop_resize(image, boxes, (1, 2), "area", 3.0, torch.float64).tolist() == [[[[3.0, 8.0]]]]
    assert crop_resize(image, boxes, (1, 1), "area", 3.0, torch.float64).tolist() == [[[[5.5]]]]
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    assert soft_crop_resize(labels, boxes, (1, 2), 1, 255, "area", torch.float64).tolist() == [[[[0.0, 1.0]]]]


def test_adjoint_is_the_transpose():
    boxes = torch.tensor([[0.0, 0.0, 17.0, 13.0], [15.5, -2.0, 3.0, 9.25]])
    generator = torch.Generator().manual_seed(2)
    grad = torch.rand(2, 3, 4, 6, dtype=torch.float64, generator=generator)
    for filter in FILTERS:
        forward = crop_resize(_image(), boxes, (4, 6), filter, 0.0, torch.float64)
        backward = crop_resize_adjoint(grad, boxes, (13, 17), filter, torch.float64)
        torch.testing.assert_close((forward * grad).sum(), (_image() * backward).sum())


def test_ignore_index_that_the_label_dtype_cannot_hold():
    labels = torch.tensor([[[0, 1]]], dtype=torch.int16)
    soft = soft_crop_resize(labels, None, (1, 2), 2, -(2**40), "nearest", torch.float64)
    assert soft[0, :, 0].tolist() == [[1.0, 0.0], [0.0, 1.0]]
