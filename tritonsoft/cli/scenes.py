"""A street scene with Cityscapes' 19 classes, drawn from vector shapes at any resolution.

A scene is a list of convex polygons (a wheel is one with a hole), placed in a street by a pinhole camera and painted
far to near. A seed fixes the polygons; the resolution only decides where they are sampled. So the label map has what
real ones have (poles of 2 to 6 pixels at 1024x2048, bars, spokes, far and hidden things, ignored regions), and yet the
true share of every class is known: `true_coverage`.

Sampling: a pixel's label is the class of the topmost polygon at its centre, and its colour is the mean over 3x3 points
whose middle one is that centre, plus grain. Image and label map are read from the same canvas, so they cannot disagree.
"""

import dataclasses
import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tritonsoft.cli.drawing import CLASSES, IGNORE_INDEX, PALETTE, Array, paint
from tritonsoft.cli.street import shapes_of_street

__all__ = ["BYTES_PER_PIXEL", "CLASSES", "IGNORE_INDEX", "PALETTE", "Scene", "street_scene", "true_coverage"]

SAMPLES: Final = 3  # per axis and pixel, for the image
BYTES_PER_PIXEL: Final = 100  # that `street_scene` needs while it draws, a little more than measured


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture and its labels."""

    image: Tensor  # (3, H, W) uint8
    labels: Tensor  # (H, W) uint8, 0..18 or 255 = ignored


def street_scene(height: int = 1024, width: int = 2048, seed: int = 0) -> Scene:
    """Draw the street of a seed as an image ``(3, height, width)`` and a label map ``(height, width)``, both uint8.

    The drawing is stretched where ``width != 2 * height``. Labels are ids of `CLASSES`, or `IGNORE_INDEX`.

    >>> scene = street_scene(64, 128)
    >>> scene.image.shape, scene.labels.shape
    (torch.Size([3, 64, 128]), torch.Size([64, 128]))
    """
    for name, value in (("height", height), ("width", width)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    canvas = np.zeros((height * SAMPLES, width * SAMPLES), np.uint32)  # red, green, blue, class: one byte each
    paint(canvas, ((shape, shape.packed) for shape in shapes_of_street(seed)))
    samples = canvas.view(np.uint8).reshape(*canvas.shape, 4)
    middle = SAMPLES // 2
    labels = samples[middle::SAMPLES, middle::SAMPLES, 3].copy()

    total = np.zeros((height, width, 3), np.uint16)
    for row in range(SAMPLES):
        for column in range(SAMPLES):
            total += samples[row::SAMPLES, column::SAMPLES, :3]
    image = total.astype(np.float32) / SAMPLES**2
    image += _grain(labels, np.random.default_rng([seed, 1]))[..., None]
    pixels = image.round().clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
    return Scene(torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels))


def true_coverage(size: tuple[int, int] = (1, 1), seed: int = 0) -> Tensor:
    """The share of each of ``size = (h, w)`` equal cells that each class covers in the drawing itself: ``(19, h, w)``.

    It is counted on a drawing of at least 8192x16384 points, 64 for each pixel of the 1024x2048 scene, so the length of
    a stretch of one class along a line is right to one point: an eighth of such a pixel. Ignored regions belong to no
    class. float64; takes about a second.
    """
    rows, columns = (math.ceil(points / cells) for points, cells in zip((8192, 16384), size, strict=True))
    canvas = np.zeros((size[0] * rows, size[1] * columns), np.uint8)
    paint(canvas, ((shape, [shape.class_id]) for shape in shapes_of_street(seed)))
    counts = np.zeros((size[0], size[1], 256))
    cell = np.arange(size[1] * columns) // columns * 256
    for row, line in enumerate(canvas):
        counts[row // rows] += np.bincount(cell + line, minlength=size[1] * 256).reshape(size[1], 256)
    return torch.from_numpy(counts[..., : len(CLASSES)].transpose(2, 0, 1) / (rows * columns))


def _grain(labels: Array, random: np.random.Generator) -> Array:
    """Texture ``(H, W)``: fine noise everywhere, and blotches where the class has them (leaves, grass, asphalt)."""
    height, width = labels.shape
    fine = np.full(256, 2.0, np.float32)
    coarse = np.full(256, 1.0, np.float32)
    for name, fine_amplitude, coarse_amplitude in (
        ("vegetation", 7, 16), ("terrain", 6, 9), ("road", 3, 3), ("sidewalk", 3, 3), ("wall", 4, 6), ("sky", 0.8, 0),
    ):  # fmt: skip
        fine[CLASSES.index(name)], coarse[CLASSES.index(name)] = fine_amplitude, coarse_amplitude
    noise = random.standard_normal((height, width), np.float32)
    blobs = torch.from_numpy(random.standard_normal((1, 1, height // 6 + 2, width // 6 + 2), np.float32))
    blotches = torch.nn.functional.interpolate(blobs, (height, width), mode="bilinear")[0, 0].numpy()
    result: Array = noise * fine[labels] + blotches * coarse[labels]
    return result
