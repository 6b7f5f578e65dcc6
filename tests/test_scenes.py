"""The built-in street: the same for a seed, complete, and what its vector drawing says it is."""

import numpy as np
import pytest
import torch

from tritonsoft.cli import scenes, street


def test_a_seed_gives_one_scene_and_another_seed_another() -> None:
    first, again, other = (scenes.street_scene(96, 192, seed) for seed in (3, 3, 4))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.labels, again.labels)
    assert (first.labels != other.labels).float().mean() > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_every_class_and_ignored_regions_are_there(seed: int) -> None:
    scene = scenes.street_scene(seed=seed)
    assert scene.image.shape == (3, 1024, 2048)
    assert scene.image.dtype == scene.labels.dtype == torch.uint8
    assert scene.labels.unique().tolist() == [*range(19), scenes.IGNORE_INDEX]
    assert len(scenes.CLASSES) == len(scenes.PALETTE) == 19


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (63, 130)])
def test_any_resolution_can_be_drawn(size: tuple[int, int]) -> None:
    scene = scenes.street_scene(*size)
    assert scene.image.shape == (3, *size)
    assert scene.labels.shape == size


def test_posts_are_two_to_six_pixels_wide() -> None:
    pole = scenes.CLASSES.index("pole")
    extents = [np.ptp(shape.outline, axis=0) for shape in street.shapes_of_street(0) if shape.class_id == pole]
    widths = [1024 * x for x, y in extents if y > 5 * x]
    assert len(widths) > 10
    assert 2 <= min(widths) < 4 < max(widths) <= 6


def test_a_label_is_the_class_at_the_centre_of_its_pixel() -> None:
    """The centre of pixel k is also the centre of pixel 3 k + 1 of a drawing three times as fine."""
    coarse, fine = scenes.street_scene(70, 140), scenes.street_scene(210, 420)
    assert torch.equal(coarse.labels, fine.labels[1::3, 1::3])


def _runs(labels: torch.Tensor, class_id: int) -> int:
    """Stretches of a class along the rows."""
    mask = (labels == class_id).int()
    return int(mask[:, 0].sum() + (mask.diff(dim=1) == 1).sum())


def test_class_areas_agree_between_resolutions() -> None:
    """A stretch sampled at pixel centres is right to less than one pixel at each of the two resolutions."""
    height, width, finer = 128, 256, 8
    coarse = scenes.street_scene(height, width).labels
    fine_along_rows = scenes.street_scene(height, width * finer).labels
    fine = scenes.street_scene(height * finer, width * finer).labels
    for class_id in range(len(scenes.CLASSES)):
        areas = [float((labels == class_id).double().mean()) for labels in (coarse, fine_along_rows, fine)]
        one_pixel_each = (1 + 1 / finer) / (height * width)
        along_rows = _runs(fine_along_rows, class_id) * one_pixel_each
        along_columns = _runs(fine.T, class_id) / finer * one_pixel_each
        assert abs(areas[0] - areas[1]) <= along_rows
        assert abs(areas[1] - areas[2]) <= along_columns
        assert areas[2] > 0


def test_true_coverage_is_what_a_fine_drawing_counts() -> None:
    cells = scenes.true_coverage((4, 8))
    assert cells.shape == (19, 4, 8)
    assert cells.dtype == torch.float64
    assert (cells >= 0).all()
    assert (cells.sum(0) <= 1 + 1e-12).all()  # the rest is ignored
    torch.testing.assert_close(cells.mean((1, 2)), scenes.true_coverage().flatten(), rtol=0, atol=1e-12)

    labels = scenes.street_scene().labels
    for class_id in range(len(scenes.CLASSES)):
        sampled = (labels == class_id).double()
        runs = _runs(labels, class_id) + _runs(labels.T, class_id)
        assert abs(sampled.mean() - cells[class_id].mean()) <= runs * (1 + 1 / 8) / labels.numel()


def test_the_label_map_lies_on_the_image() -> None:
    """Colours change most just where labels do: not one pixel to the left, right, above or below."""
    scene = scenes.street_scene()
    for labels, image in ((scene.labels, scene.image), (scene.labels.T, scene.image.mT)):
        class_changes = (labels[:, 1:] != labels[:, :-1]).double()
        colour_changes = image.double().diff(dim=2).abs().sum(0)
        means = [float((class_changes * colour_changes.roll(shift, 1)).sum()) for shift in range(-3, 4)]
        assert max(means) == means[3]


@pytest.mark.parametrize(("height", "width", "name"), [(0, 8, "height"), (8, -1, "width")])
def test_an_empty_picture_is_refused(height: int, width: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got"):
        scenes.street_scene(height, width)
