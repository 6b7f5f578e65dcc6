"""A street scene with Cityscapes' 19 classes, drawn from vector shapes at any resolution.

A scene is a list of convex polygons (a wheel is one with a hole), placed in a street by a pinhole camera and painted
far to near. A seed fixes the polygons; the resolution only decides where they are sampled. So the label map has what
real ones have (poles of 2 to 6 pixels at 1024x2048, bars, spokes, far and hidden things, ignored regions), and yet the
true share of every class is known: `true_coverage`.

Sampling: a pixel's label is the class of the topmost polygon at its centre, and its colour is the mean over 3x3 points
whose middle one is that centre, plus grain. Image and label map are read from the same canvas, so they cannot disagree.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CLASSES: Final = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
PALETTE: Final = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
IGNORE_INDEX: Final = 255

ASPECT: Final = 2.0  # a drawing spans x in [0, 2] and y in [0, 1], whatever the resolution
SAMPLES: Final = 3  # per axis and pixel, for the image
BYTES_PER_PIXEL: Final = 100  # that `street_scene` needs while it draws, a little more than measured

Array = npt.NDArray[Any]
Colour = Sequence[float] | Array  # red, green, blue in 0..255
Points = Sequence[tuple[float, ...]]


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
    _paint(canvas, ((shape, shape.packed) for shape in _street(seed)))
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
    _paint(canvas, ((shape, [shape.class_id]) for shape in _street(seed)))
    counts = np.zeros((size[0], size[1], 256))
    cell = np.arange(size[1] * columns) // columns * 256
    for row, line in enumerate(canvas):
        counts[row // rows] += np.bincount(cell + line, minlength=size[1] * 256).reshape(size[1], 256)
    return torch.from_numpy(counts[..., : len(CLASSES)].transpose(2, 0, 1) / (rows * columns))


# --- drawing ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Shape:
    """A convex polygon of one class, maybe with a convex hole; its colour runs from ``upper`` to ``lower``."""

    class_id: int
    outline: Array  # (n, 2) x, y
    hole: Array | None
    upper: Array  # (3,)
    lower: Array

    def packed(self, y: Array) -> list[int]:
        """Colour and class as one 32-bit number for each line y."""
        top, bottom = self.outline[:, 1].min(), self.outline[:, 1].max()
        share = ((y - top) / (bottom - top))[:, None]
        colour = (self.upper + (self.lower - self.upper) * share).round().clip(0, 255).astype(np.int64)
        packed: list[int] = (colour @ [1, 1 << 8, 1 << 16] + (self.class_id << 24)).tolist()
        return packed

    def spans(self, y: Array) -> Iterator[tuple[Array, Array]]:
        """The one or two stretches ``[left, right)`` that the shape covers on each line y; empty ones cross over."""
        left, right = _crossings(self.outline, y)
        if self.hole is None:
            yield left, right
        else:
            hole_left, hole_right = _crossings(self.hole, y)
            yield left, np.minimum(hole_left, right)
            yield np.maximum(hole_right, left), right


def _crossings(outline: Array, y: Array) -> tuple[Array, Array]:
    """Where lines y enter and leave a convex polygon; (inf, -inf) where they miss it."""
    x0, y0 = outline.T[..., None]  # (n, 1) each
    x1, y1 = np.roll(outline, -1, axis=0).T[..., None]
    crosses = (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1))  # (n, rows); half-open, so a corner counts once
    x = x0 + (y - y0) * ((x1 - x0) / np.where(y1 == y0, 1, y1 - y0))
    return np.where(crosses, x, np.inf).min(0), np.where(crosses, x, -np.inf).max(0)


def _paint(canvas: Array, shapes: Iterable[tuple[_Shape, Any]]) -> None:
    """Fill every shape over those before it; its value is a list of one, or a function of the lines y to a list."""
    height, width = canvas.shape
    for shape, value in shapes:
        first = max(math.ceil(shape.outline[:, 1].min() * height - 0.5), 0)
        last = min(math.ceil(shape.outline[:, 1].max() * height - 0.5), height)
        if first >= last:
            continue
        y = (np.arange(first, last) + 0.5) / height
        values = value(y) if callable(value) else value * len(y)
        for ends in shape.spans(y):
            # Pixel k is inside where its centre is: left <= k + 1/2 < right.
            begin, end = (np.ceil(x * (width / ASPECT) - 0.5).clip(0, width).astype(int).tolist() for x in ends)
            for row, start, stop, fill in zip(range(first, last), begin, end, values, strict=True):
                canvas[row, start:stop] = fill


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


# --- the street ------------------------------------------------------------------------------------------------------
# World coordinates in metres: x right of the camera, y up from the ground, z ahead. The kerbs are at x = -5 and 5;
# houses stand at the right; a tramway behind a fence, a wall and trees lie at the left. Half of the seeds mirror this.

FOCAL_LENGTH: Final = 1.5  # in picture heights
EYE_HEIGHT: Final = 1.5
KERB: Final = 5.0
FAR: Final = 260.0

# Painting orders beyond any depth in the street; what stands in it is painted in the order of its depth.
SKY, SKYLINE, GROUND, HOUSES, PARK = 1e6, 1e5, 1e4, 5e3, 1e3

MOODS: Final = (  # sky above, sky at the horizon, light
    ((88, 140, 205), (214, 229, 240), (1.0, 1.0, 1.0)),
    ((96, 128, 186), (250, 222, 186), (1.04, 0.99, 0.92)),
    ((150, 164, 178), (222, 227, 230), (0.9, 0.93, 0.97)),
)
PLASTER: Final = (
    (214, 190, 152), (196, 158, 130), (224, 212, 190), (178, 120, 98), (168, 172, 176), (206, 176, 120),
    (188, 200, 196), (150, 96, 82),
)  # fmt: skip
PAINT: Final = (
    (168, 34, 34), (36, 66, 120), (206, 208, 212), (48, 52, 58), (228, 230, 232), (104, 112, 120), (44, 92, 84),
    (188, 150, 62),
)  # fmt: skip
CLOTH: Final = (
    (172, 48, 52), (50, 84, 140), (226, 190, 84), (66, 66, 74), (92, 132, 96), (206, 206, 210), (128, 82, 140),
)  # fmt: skip
SKIN: Final = ((232, 196, 168), (196, 150, 118), (140, 98, 72), (98, 68, 52))
HAIR: Final = ((46, 34, 26), (92, 64, 38), (180, 148, 92), (150, 150, 152))
GLASS, GLASS_LIT = (58, 74, 92), (112, 130, 146)
STEEL: Final = (92, 96, 100)
CHROME: Final = (156, 158, 160)
RUBBER: Final = (28, 28, 30)
WHITE: Final = (242, 242, 240)
RED: Final = (200, 34, 38)


def _disc(x: float, y: float, radius_x: float, radius_y: float | None = None, corners: int = 24) -> Points:
    radius_y = radius_x if radius_y is None else radius_y
    angles = [2 * math.pi * k / corners for k in range(corners)]
    return [(x + radius_x * math.cos(angle), y + radius_y * math.sin(angle)) for angle in angles]


def _bar(start: tuple[float, float], end: tuple[float, float], thickness: float) -> Points:
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0)
    dx, dy = (y1 - y0) / length * thickness / 2, (x0 - x1) / length * thickness / 2
    return [(x0 - dx, y0 - dy), (x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy)]


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(channel * factor for channel in colour)


@functools.lru_cache(4)
def _street(seed: int) -> tuple[_Shape, ...]:
    """All shapes of a seed's street, far to near."""
    street = _Street(seed)
    street.background()
    street.ground()
    street.houses()
    street.park()
    street.traffic()
    street.street_furniture()
    street.people()
    street.ignored()
    return tuple(shape for _, shape in sorted(street.painted, key=lambda item: -item[0]))


class _Street:
    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng([seed, 0])
        self.side = float(self.random.choice((-1, 1)))
        self.vanishing_x = ASPECT / 2 + self.random.uniform(-0.12, 0.12)
        self.horizon = self.random.uniform(0.43, 0.48)
        sky, haze, light = MOODS[self.random.integers(len(MOODS))]
        self.sky, self.haze, self.light = np.array(sky), np.array(haze), np.array(light)
        self.painted: list[tuple[float, _Shape]] = []
        self.at(FAR)

    def at(self, depth: float, order: float | None = None) -> None:
        """What follows stands ``depth`` ahead (its plane, its haze) and is painted as if it stood at ``order``."""
        self.depth, self.order = depth, depth if order is None else order

    def between(self, low: float, high: float) -> float:
        return float(self.random.uniform(low, high))

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def project(self, points: Points) -> Array:
        x, y, z = np.array(points, float).T
        picture_x = self.vanishing_x + FOCAL_LENGTH * self.side * x / z
        return np.stack((picture_x, self.horizon + FOCAL_LENGTH * (EYE_HEIGHT - y) / z), 1)

    # Four ways to place a polygon. A class that is none of `CLASSES` is ignored.

    def flat(
        self, class_name: str, outline: Points | Array, upper: Any, lower: Any = None, hole: Array | None = None
    ) -> None:
        """In picture coordinates."""
        class_id = CLASSES.index(class_name) if class_name in CLASSES else IGNORE_INDEX
        colours = np.array(upper, float), np.array(upper if lower is None else lower, float)
        self.painted.append((self.order, _Shape(class_id, np.array(outline, float), hole, *colours)))

    def world(
        self, class_name: str, points: Points, upper: Colour, lower: Colour | None = None, hole: Points | None = None
    ) -> None:
        """At (x, y, z), in the street's light and haze."""
        clear = math.exp(-self.depth / 320)
        colours = (np.array((upper, upper if lower is None else lower)) * self.light) * clear + self.haze * (1 - clear)
        inner = None if hole is None else self.project(hole)
        self.flat(class_name, self.project(points), colours[0], colours[1], inner)

    def along(self, class_name: str, points: Points, upper: Colour, lower: Colour | None = None, *, x: float) -> None:
        """At (z, y) on the plane at x that runs along the street."""
        self.world(class_name, [(x, v, u) for u, v in points], upper, lower)

    def facing(
        self,
        class_name: str,
        points: Points,
        upper: Colour,
        lower: Colour | None = None,
        hole: Points | None = None,
        *,
        x: float,
        y: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """Metres right of x and above y, scaled, on the plane that faces the camera at the current depth."""
        outline, inner = (
            [(x + u * scale[0], y + v * scale[1], self.depth) for u, v in ring] for ring in (points, hole or [])
        )
        self.world(class_name, outline, upper, lower, inner or None)

    def lying(
        self, class_name: str, x0: float, x1: float, z0: float, z1: float, upper: Colour, lower: Colour | None = None
    ) -> None:
        """A rectangle on the ground."""
        self.world(class_name, [(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], upper, lower)

    def shadow(self, x: float, width: float, z0: float, z1: float, class_name: str | None = None) -> None:
        class_name = class_name or ("road" if abs(x) < KERB else "sidewalk")
        depth, order = self.depth, self.order
        self.at(z0, GROUND - 7)
        colour = {"road": (52, 52, 56), "sidewalk": (112, 110, 106), "terrain": (62, 84, 42)}[class_name]
        self.lying(class_name, x - width / 2, x + width / 2, z0, z1, colour)
        self.at(depth, order)

    # From far to near.

    def background(self) -> None:
        self.at(FAR, SKY)
        self.flat("sky", _rectangle(0, -0.1, ASPECT, self.horizon + 0.02), self.sky, self.haze)
        bright = self.haze * 0.6 + 255 * 0.4
        for _ in range(self.random.integers(4, 9)):
            x, y, size = self.between(0, ASPECT), self.between(0.03, 0.26), self.between(0.04, 0.11)
            for _ in range(7):
                puff_x, puff_y = x + self.between(-1.8, 1.8) * size, y + self.between(-0.14, 0.14) * size
                outline = _disc(puff_x, puff_y, size * self.between(0.5, 1.1), size * self.between(0.14, 0.3), 40)
                self.flat("sky", outline, bright, bright * 0.6 + self.sky * 0.4)
        for depth in (250.0, 210.0, 175.0):  # the far end of the street
            x = -1.1 * depth
            while x < 1.1 * depth:
                width, height = self.between(9, 26), self.between(5, 13) + (abs(x) > 12) * self.between(4, 16)
                self.at(depth, SKYLINE + depth)
                self.far_house(x, width, height)
                x += width
            for _ in range(6):
                x, height = self.between(-0.7, 0.7) * depth, self.between(6, 10)
                self.tree(x, depth, height, blobs=9, order=SKYLINE + depth)

    def far_house(self, x: float, width: float, height: float) -> None:
        colour = self.pick(PLASTER)
        self.facing("building", _rectangle(0, 0, width, height), colour, _shade(colour, 0.94), x=x)
        for column in np.arange(1, width - 1.5, 3.2):
            for floor in np.arange(2, height - 2, 3.4):
                window = _rectangle(column, floor, column + 1.3, floor + 1.6)
                self.facing("building", window, _shade(colour, 0.72), x=x)

    def ground(self) -> None:
        near = 1.0
        self.at(60, GROUND)
        self.flat("terrain", _rectangle(0, self.horizon, ASPECT, 1.1), (128, 150, 92), (92, 128, 56))
        stone = _shade((1, 0.98, 0.95), self.between(176, 200))
        for x0, x1 in ((-8.2, -KERB), (KERB, 9.0)):
            self.at(60, GROUND - 1)
            self.lying("sidewalk", x0, x1, near, FAR, _shade(stone, 1.05), _shade(stone, 0.92))
            self.at(60, GROUND - 2)
            self.lying("sidewalk", (x0 + x1) / 2, (x0 + x1) / 2 + 0.03, near, FAR, _shade(stone, 0.86))
            for z in 1.25 ** np.arange(5, 17):
                self.lying("sidewalk", x0, x1, z, z * 1.004, _shade(stone, 0.86))
        grey = _shade((1, 1, 1.03), self.between(86, 102))
        self.at(60, GROUND - 3)
        self.lying("road", -KERB, KERB, near, FAR, _shade(grey, 1.1), _shade(grey, 0.88))
        self.at(40, GROUND - 4)
        for x in (-KERB, KERB):  # gutter and kerb stones
            self.lying("road", x * 0.955, x * 0.99, near, FAR, _shade(grey, 0.84))
            self.lying("sidewalk", x, x * 1.035, near, FAR, (200, 198, 192))
        self.at(40, GROUND - 5)
        white = (226, 226, 220)
        for z in np.arange(4.2, 120, 7.0):
            self.lying("road", -0.07, 0.07, z, z + 3, white)
        for x in (-KERB + 2.15, KERB - 2.15):
            self.lying("road", x - 0.05, x + 0.05, near, FAR, _shade(white, 0.9))
        crossing = self.between(12.5, 17.0)
        for x in np.arange(-KERB + 0.5, KERB - 0.5, 0.95):
            self.lying("road", x, x + 0.5, crossing, crossing + 2.6, white)
        for _ in range(5):  # manholes
            x, z = self.between(-4, 4), self.between(6, 30)
            self.world("road", [(x + u, 0.0, z + v) for u, v in _disc(0, 0, 0.33)], _shade(grey, 0.8))

    def houses(self) -> None:
        z = 2.0
        while z < 165:
            length = self.between(9, 19)
            self.house(9.0, z, z + length, self.between(9, 19), light=1.0)
            z += length + (3.5 if self.random.random() < 0.18 else 0.0)
        z = 34.0
        while z < 165:
            length = self.between(12, 24)
            self.house(-26.0, z, z + length, self.between(8, 15), light=0.82)
            z += length + self.between(2, 9)

    def house(self, x: float, z0: float, z1: float, height: float, light: float) -> None:
        self.at((z0 + z1) / 2, HOUSES + z0)
        face = functools.partial(self.along, "building", x=x)
        wall = np.array(self.pick(PLASTER)) * light
        glass = np.array(GLASS) * 0.7 + self.haze * 0.3
        back = x + math.copysign(11, x)
        gable = [(x, 0, z0), (back, 0, z0), (back, height, z0), (x, height, z0)]
        self.world("building", gable, wall * 0.72, wall * 0.62)
        face(_rectangle(z0, 0, z1, height), wall * 1.02, wall * 0.9)
        face(_rectangle(z0, height - 0.45, z1, height), wall * 1.16)
        face(_rectangle(z0, height - 0.6, z1, height - 0.45), wall * 0.7)
        face(_rectangle(z0, 0, z1, 0.55), wall * 0.62)
        face(_rectangle(z0, 3.35, z1, 3.6), wall * 1.12)
        bays = max(int((z1 - z0) / 2.7), 2) if z0 < 95 else 0
        awning, shop = self.pick(CLOTH), self.random.random() < 0.5
        for bay in range(bays):
            pitch = (z1 - z0) / bays
            middle, half = z0 + (bay + 0.5) * pitch, 0.26 * pitch
            left, right = middle - half, middle + half
            if bay == bays // 2:
                face(_rectangle(left + 0.2, 0, right - 0.2, 2.6), (74, 54, 42), (58, 42, 34))
            elif shop:
                face(_rectangle(left - 0.35, 0.6, right + 0.35, 2.7), glass * 1.1, glass * 0.75)
                face(_rectangle(left - 0.45, 2.6, right + 0.45, 3.2), awning, _shade(awning, 0.8))
            else:
                face(_rectangle(left, 1.0, right, 2.7), glass, glass * 0.8)
            for floor in np.arange(4.3, height - 2.0, 3.0):
                face(_rectangle(left - 0.12, floor - 0.14, right + 0.12, floor + 1.82), wall * 1.2)
                face(_rectangle(left, floor, right, floor + 1.7), glass * 1.25, glass * 0.85)
                face(_rectangle(middle - 0.04, floor, middle + 0.04, floor + 1.7), wall * 1.15)
                face(_rectangle(left - 0.18, floor - 0.22, right + 0.18, floor - 0.1), wall * 0.78)

    def park(self) -> None:
        self.at(30, GROUND - 6)
        for x in (-12.6, -11.2):  # tram rails, in the grass
            self.lying("terrain", x, x + 0.1, 3, FAR, (104, 96, 86))
        for z in np.arange(9.0, self.between(44, 70), 3.0):  # a wall in sections, with courses
            self.at(z, PARK + z)
            stone = _shade((158, 148, 134), self.between(0.94, 1.06))
            self.along("wall", _rectangle(z, 0, z + 3.0, 2.1), stone, _shade(stone, 0.84), x=-16)
            self.along("wall", _rectangle(z, 2.0, z + 3.0, 2.25), _shade(stone, 1.16), x=-16)
            for y in (0.5, 1.0, 1.5):
                self.along("wall", _rectangle(z, y, z + 3.0, y + 0.05), _shade(stone, 0.75), x=-16)
        for z in (self.between(58, 66), self.between(44, 52), self.between(31, 38), self.between(22, 26)):
            self.tree(self.between(-21, -18.5), z, self.between(9, 13), order=PARK + 100 + z)
        for z in self.random.uniform(18, 75, 7):  # bushes in front of the wall
            x, size = self.between(-15.4, -14.2), self.between(0.5, 1.0)
            self.at(z, PARK - 100 + z)
            self.crown(x, size * 0.6, size, blobs=9)
        for z in (self.between(70, 85), self.between(46, 56), self.between(27, 33)):
            self.tree(self.between(7.4, 7.9), z, self.between(6.5, 8.5))
        self.tree(-7.5, self.between(52, 60), self.between(7, 9))
        self.tram(self.between(26, 34))
        self.railing(-8.3, 6.0, 30.0, 1.25)
        start = self.between(9.5, 11.0)
        self.railing(KERB + 0.35, start, start + 3.2, 1.05)

    def tree(self, x: float, z: float, height: float, blobs: int = 46, order: float | None = None) -> None:
        self.at(z, order)
        lean = self.between(-0.25, 0.25)
        self.facing("vegetation", _bar((0, 0), (lean, height * 0.55), 0.3), (96, 76, 58), (72, 58, 46), x=x)
        for branch in (-1, 1):
            tip = (lean + branch * height * 0.16, height * 0.62)
            self.facing("vegetation", _bar((lean * 0.7, height * 0.36), tip, 0.14), (88, 70, 54), x=x)
        self.crown(x + lean, height * 0.66, height * 0.3, blobs)

    def crown(self, x: float, y: float, radius: float, blobs: int) -> None:
        hue = np.array((self.between(66, 104), self.between(112, 136), self.between(42, 66)))
        angles, radii = self.random.uniform(0, 2 * math.pi, blobs), self.random.uniform(0, 1, blobs) ** 0.5
        places = np.stack((0.82 * radii * np.cos(angles), radii * np.sin(angles)), 1)
        for u, v in places[np.argsort(places[:, 1])]:  # the bright tops last
            size = self.between(0.22, 0.42) * (1.15 - 0.5 * abs(v))
            leaf = hue * (0.86 + 0.26 * v - 0.1 * self.side * u + self.between(-0.06, 0.06))
            blob = _disc(u, v, size, size * 0.85, corners=14)
            self.facing("vegetation", blob, leaf * 1.12, leaf * 0.78, x=x, y=y, scale=(radius, radius))

    def railing(self, x: float, z0: float, z1: float, height: float) -> None:
        """Upright bars with two rails; what is behind shows between them."""
        paint = self.pick(((58, 68, 62), (72, 74, 78), (64, 84, 74)))
        for z in np.arange(z0, z1, 0.24):
            self.at(z)
            self.facing("fence", _rectangle(-0.014, 0, 0.014, height), _shade(paint, 1.15), paint, x=x)
            for y in (0.16, height - 0.14):
                self.along("fence", _rectangle(z, y, z + 0.24, y + 0.05), _shade(paint, 1.2), x=x)

    def tram(self, z0: float) -> None:
        paint = self.pick(((196, 40, 40), (222, 184, 52), (40, 110, 88)))
        for begin in (z0, z0 + 14.2):
            self.coach("train", -11.85, begin, begin + 13.6, (2.4, 3.3), paint, (232, 228, 214), 7, 0.35)
        self.at(z0)
        for start, end in (((-0.05, 3.3), (0.5, 4.1)), ((0.5, 4.1), (0.0, 4.8)), ((-0.6, 4.8), (0.6, 4.8))):
            self.facing("train", _bar(start, end, 0.07), STEEL, x=-11.85)

    def coach(
        self,
        class_name: str,
        x: float,
        z0: float,
        z1: float,
        size: tuple[float, float],
        paint: Colour,
        upper: Colour,
        windows: int,
        floor: float,
    ) -> None:
        """A box on wheels: the side that faces the street's middle, then the end that faces the camera."""
        (width, height), length = size, z1 - z0
        half, eaves, belt = width / 2, height - 0.14, floor + (height - floor) * 0.4
        self.at(z0)
        self.shadow(x, width, z0 - 0.3, z1, "terrain" if class_name == "train" else "road")
        side = functools.partial(self.along, class_name, x=x - math.copysign(half, x))
        side(_rectangle(z0, floor, z1, eaves), _shade(upper, 0.94))
        side(_rectangle(z0, floor, z1, belt), _shade(paint, 0.9), _shade(paint, 0.72))
        for window in range(windows):
            left, right = (z0 + length * (window + share) / windows for share in (0.12, 0.88))
            side(_rectangle(left, belt, right, height - 0.55), GLASS_LIT, GLASS)
        for share in (0.12, 0.26, 0.74, 0.88) if class_name == "train" else (0.16, 0.8):
            side(_disc(z0 + length * share, 0.46, 0.46), RUBBER)
            side(_disc(z0 + length * share, 0.46, 0.2), CHROME)
        end = functools.partial(self.facing, class_name, x=x)
        if class_name != "train":
            for u in (0.3 - half, half - 0.3):
                end(_rectangle(u - 0.16, 0, u + 0.16, floor), RUBBER)
        roof = [(half, eaves), (half - 0.2, height), (0.2 - half, height), (-half, eaves)]
        end([(-half, floor), (half, floor), *roof], upper, _shade(upper, 0.9))
        end(_rectangle(-half, floor, half, belt), paint, _shade(paint, 0.8))
        if windows:
            end(_rectangle(0.18 - half, belt + 0.1, half - 0.18, height - 0.5), GLASS_LIT, GLASS)
            end(_rectangle(0.5 - half, height - 0.4, half - 0.5, height - 0.12), (40, 36, 30))
        for u in (0.3 - half, half - 0.3):
            end(_disc(u, floor + 0.45, 0.14), (236, 72, 52))
        end(_rectangle(-half, floor - 0.08, half, floor + 0.12), (52, 52, 54))

    def traffic(self) -> None:
        for x, oncoming, chance in ((KERB - 1.05, False, 0.72), (1.05 - KERB, True, 0.5)):  # parked
            z = self.between(8.0, 9.5) if x < 0 else self.between(13.5, 15.0)
            while z < 95:
                if self.random.random() < chance:
                    self.car(x + self.between(-0.08, 0.08), z, oncoming)
                z += self.between(5.6, 6.6)
        self.car(1.5, self.between(19, 23), oncoming=False)
        self.car(-1.5, self.between(15, 19), oncoming=True)
        bus, paint = self.between(34, 40), self.pick(((188, 44, 38), (52, 96, 150), (214, 168, 44)))
        self.coach("bus", 1.45, bus, bus + 11, (2.5, 3.1), paint, (226, 226, 222), 6, 0.4)
        truck, box = self.between(29, 34), self.pick(((226, 226, 222), (206, 196, 170), (150, 168, 180)))
        paint = self.pick(PAINT)
        self.coach("truck", -1.6, truck + 2.2, truck + 8.5, (2.4, 3.5), box, box, 0, 0.7)
        self.coach("truck", -1.6, truck, truck + 1.9, (2.2, 2.6), paint, paint, 1, 0.45)

    def car(self, x: float, z0: float, oncoming: bool) -> None:
        self.at(z0)
        paint = self.pick(PAINT)
        z1, roof, half, belt = z0 + self.between(3.9, 4.4), self.between(1.42, 1.6), 0.88, 0.88
        self.shadow(x, 1.86, z0 - 0.25, z1 + 0.1)

        x_side = x - math.copysign(half, x)
        flank = [(z0, 0.24), (z1, 0.24), (z1, 0.74), (z1 - 0.15, 0.86), (z0, 0.92)]
        self.along("car", flank, _shade(paint, 0.9), _shade(paint, 0.55), x=x_side)

        def cabin_side(points: Points, upper: Colour, lower: Colour | None = None) -> None:
            inset = math.copysign(0.26 / (roof - belt), x)  # the cabin leans in
            self.world("car", [(x_side + inset * (y - belt), y, z) for z, y in points], upper, lower)

        cabin_side([(z0, belt), (z1 - 1.0, belt), (z1 - 1.75, roof), (z0 + 0.3, roof)], _shade(paint, 0.95))
        window = [(z0 + 0.28, 0.93), (z1 - 1.25, 0.93), (z1 - 1.85, roof - 0.08), (z0 + 0.46, roof - 0.08)]
        cabin_side(window, GLASS_LIT, GLASS)
        cabin_side(_rectangle((z0 + z1) / 2 - 0.3, belt, (z0 + z1) / 2 - 0.18, roof), _shade(paint, 0.85))
        for z in (z0 + 0.75, z1 - 0.75):
            self.along("car", _disc(z, 0.32, 0.33), RUBBER, x=x_side)
            self.along("car", _disc(z, 0.32, 0.17), CHROME, x=x_side)

        end = functools.partial(self.facing, "car", x=x)
        for u in (0.16 - half, half - 0.16):
            end(_rectangle(u - 0.11, 0, u + 0.11, 0.4), RUBBER)
        end([(-half, belt), (half, belt), (half - 0.26, roof), (0.26 - half, roof)], _shade(paint, 1.12), paint)
        top = roof - 0.09
        end([(0.12 - half, 0.93), (half - 0.12, 0.93), (half - 0.33, top), (0.33 - half, top)], GLASS_LIT, GLASS)
        lower_body = [(-half, 0.4), (0.05 - half, 0.24), (half - 0.05, 0.24), (half, 0.4)]
        upper_body = [(half, 0.86), (half - 0.06, 0.92), (0.06 - half, 0.92), (-half, 0.86)]
        end([*lower_body, *upper_body], _shade(paint, 1.1), _shade(paint, 0.72))
        end(_rectangle(0.05 - half, 0.24, half - 0.05, 0.4), (44, 44, 48))
        lamp = (246, 240, 214) if oncoming else (206, 30, 30)
        for u in (0.04 - half, half - 0.34):
            end(_rectangle(u, 0.66, u + 0.3, 0.82), lamp, _shade(lamp, 0.8))
        end(_rectangle(-0.26, 0.46, 0.26, 0.57), WHITE)

    def street_furniture(self) -> None:
        for z in (self.between(70, 82), self.between(50, 58), self.between(33, 38), self.between(21, 24)):
            self.lamp_post(self.pick((-5.5, 5.5)), z)
        self.lamp_post(5.5, self.between(15, 17))
        for z in (self.between(60, 66), self.between(30, 34)):  # masts of the tramway
            self.at(z)
            self.post(-9.6, 6.5)
            self.facing("pole", _bar((0, 6.2), (-2.8, 6.3), 0.08), STEEL, x=-9.6)
        crossing = self.between(19, 22)
        self.traffic_light(-5.4, crossing)
        self.traffic_light(5.4, crossing, arm=3.4)
        for x, near, far in ((-5.5, 11, 18), (-5.6, 20, 34), (5.5, 17, 22), (5.6, 24, 34), (5.7, 36, 60)):
            self.sign(x, self.between(near, far), self.random.integers(4))
        for z in (self.between(13, 14), self.between(25, 26)):  # bollards
            self.at(z)
            self.post(5.25, 0.95)

    def post(self, x: float, height: float, foot: float = 0.0) -> float:
        """An upright of 2 to 6 pixels in a picture of 1024 lines, whatever its distance; gives its width in metres."""
        width = float(np.clip(0.11 * FOCAL_LENGTH / self.depth, 2.2 / 1024, 5.8 / 1024)) * self.depth / FOCAL_LENGTH
        upright = _rectangle(-width / 2, foot, width / 2, height)
        self.facing("pole", upright, _shade(STEEL, 1.15), _shade(STEEL, 0.8), x=x)
        return width

    def lamp_post(self, x: float, z: float) -> None:
        self.at(z)
        height, reach = self.between(6.0, 7.5), -math.copysign(1.5, x)
        width = self.post(x, height)
        self.facing("pole", _bar((0, height - 0.03), (reach, height + 0.35), width * 0.8), STEEL, x=x)
        lamp = _bar((reach * 0.8, height + 0.27), (reach * 1.35, height + 0.38), 0.18)
        self.facing("pole", lamp, (212, 214, 206), x=x)

    def traffic_light(self, x: float, z: float, arm: float = 0.0) -> None:
        self.at(z)
        width = self.post(x, 5.4 if arm else 3.2)
        self.lights(x, 2.2)
        if arm:
            self.facing("pole", _bar((0, 5.3), (-arm, 5.35), width), STEEL, x=x)
            self.lights(x - arm, 4.55)

    def lights(self, x: float, y: float) -> None:
        self.facing("traffic light", _rectangle(-0.2, 0, 0.2, 1.05), (38, 40, 42), x=x, y=y)
        lit = self.random.integers(3)
        for lamp, colour in enumerate(((54, 200, 110), (236, 176, 48), (228, 48, 44))):
            glow = colour if lamp == lit else _shade(colour, 0.3)
            self.facing("traffic light", _disc(0, 0.2 + 0.325 * lamp, 0.13), glow, x=x, y=y)

    def sign(self, x: float, z: float, kind: int | np.integer[Any]) -> None:
        self.at(z)
        self.post(x, 2.9)
        part = functools.partial(self.facing, "traffic sign", x=x)
        if kind == 0:  # no entry
            part(_disc(0, 2.6, 0.36), RED)
            part(_rectangle(-0.24, 2.54, 0.24, 2.66), WHITE)
        elif kind == 1:  # give way
            part([(-0.42, 2.9), (0.42, 2.9), (0, 2.17)], RED)
            part([(-0.26, 2.81), (0.26, 2.81), (0, 2.36)], WHITE)
        elif kind == 2:  # priority road
            part(_disc(0, 2.6, 0.4, corners=4), WHITE)
            part(_disc(0, 2.6, 0.29, corners=4), (240, 196, 40))
        else:  # parking
            blue = (36, 84, 168)
            part(_rectangle(-0.34, 2.25, 0.34, 2.93), blue)
            part(_rectangle(-0.13, 2.36, -0.04, 2.82), WHITE)
            part(_disc(0.02, 2.68, 0.14), WHITE)
            part(_disc(0.02, 2.68, 0.06), blue)

    def people(self) -> None:
        for _ in range(self.random.integers(5, 9)):
            x = self.between(5.7, 8.2) if self.random.random() < 0.5 else self.between(-7.8, -5.6)
            self.person(x, self.between(11, 45))
        self.person(self.between(6.2, 6.8), self.between(9.0, 10.5))
        self.person(-self.between(6.0, 6.4), self.between(10.5, 12.5))
        self.person(self.between(-1, 4), self.between(13, 16))
        self.bicycle(self.between(-1.2, 1.4), self.between(9.5, 12.0), rider=True)
        self.bicycle(self.between(-4.4, -3.2), self.between(24, 30), rider=True)
        self.bicycle(-self.between(7.2, 7.7), self.between(13, 15), rider=False)
        self.motorcycle(self.between(3.1, 3.7), self.between(10.0, 11.5), rider=self.random.random() < 0.5)

    def person(self, x: float, z: float) -> None:
        self.at(z)
        self.shadow(x, 0.6, z - 0.2, z + 0.2)
        size, stride = self.between(0.9, 1.06), self.between(0.04, 0.24)
        shirt, trousers, skin = self.pick(CLOTH), _shade(self.pick(CLOTH), 0.55), self.pick(SKIN)
        part = functools.partial(self.facing, "person", x=x, scale=(size, size))
        for turn, light in ((-1, 0.9), (1, 1.1)):
            part(_bar((turn * 0.08, 0.88), (turn * stride, 0.04), 0.16), _shade(trousers, light))
            part(_disc(turn * stride + 0.03, 0.05, 0.12, 0.06, 12), RUBBER)
            part(_bar((turn * 0.22, 1.38), (turn * (0.28 + stride * 0.3), 0.86), 0.1), _shade(shirt, 0.8))
        shoulders = [(0.25, 1.36), (0.13, 1.47), (-0.13, 1.47), (-0.25, 1.36)]
        part([(-0.19, 0.82), (0.19, 0.82), *shoulders], _shade(shirt, 1.1), _shade(shirt, 0.85))
        part(_bar((0, 1.42), (0, 1.54), 0.1), _shade(skin, 0.85))
        part(_disc(0, 1.63, 0.1, 0.13), skin, _shade(skin, 0.9))
        part(_disc(0, 1.7, 0.108, 0.075), self.pick(HAIR))

    def bicycle(self, x: float, z: float, rider: bool) -> None:
        self.at(z)
        self.shadow(x, 1.6, z - 0.1, z + 0.1)
        heading, paint = self.pick((-1, 1)), self.pick(PAINT)
        part = functools.partial(self.facing, "bicycle", x=x, scale=(heading, 1))
        rear, crank, seat, head, front = (-0.52, 0.35), (-0.08, 0.3), (-0.2, 0.86), (0.36, 0.84), (0.52, 0.35)
        for hub_x, hub_y in (rear, front):
            part(_disc(hub_x, hub_y, 0.35), RUBBER, hole=_disc(hub_x, hub_y, 0.31))
            for angle in (0.3, 1.35, 2.4):  # spokes
                u, v = 0.32 * math.cos(angle), 0.32 * math.sin(angle)
                part(_bar((hub_x - u, hub_y - v), (hub_x + u, hub_y + v), 0.012), CHROME)
        if rider:  # the far leg goes behind the frame
            leg = functools.partial(self.facing, "rider", x=x, scale=(heading, 1))
            leg(_bar((-0.16, 0.94), (0.24, 0.86), 0.15), (40, 44, 58))
            leg(_bar((0.24, 0.86), (0.06, 0.44), 0.11), (40, 44, 58))
        for start, end in ((rear, crank), (crank, seat), (seat, rear), (seat, head), (crank, head), (head, front)):
            part(_bar(start, end, 0.042), paint)
        part(_bar((0.36, 0.82), (0.32, 1.02), 0.04), STEEL)
        part(_bar((0.28, 1.02), (0.46, 1.04), 0.045), RUBBER)
        part(_bar((-0.33, 0.92), (-0.08, 0.9), 0.07), RUBBER)
        part(_bar((-0.16, 0.2), (0.0, 0.4), 0.035), STEEL)
        if rider:
            self.rider(x, heading)

    def motorcycle(self, x: float, z: float, rider: bool) -> None:
        self.at(z)
        self.shadow(x, 1.9, z - 0.15, z + 0.15)
        heading, paint = self.pick((-1, 1)), self.pick(PAINT)
        part = functools.partial(self.facing, "motorcycle", x=x, scale=(heading, 1))
        for hub in (-0.66, 0.68):
            part(_disc(hub, 0.31, 0.31), RUBBER, hole=_disc(hub, 0.31, 0.2))
            part(_disc(hub, 0.31, 0.09), CHROME)
            part(_bar((hub - 0.2, 0.31), (hub + 0.2, 0.31), 0.03), CHROME)
        part(_bar((0.68, 0.31), (0.42, 0.92), 0.07), CHROME)
        part(_bar((-0.6, 0.36), (-0.1, 0.32), 0.09), CHROME)
        part([(-0.3, 0.22), (0.3, 0.22), (0.36, 0.55), (-0.2, 0.6)], (70, 72, 76))
        part([(-0.12, 0.6), (0.34, 0.58), (0.46, 0.8), (0.2, 0.94), (-0.1, 0.84)], paint)
        part([(-0.74, 0.72), (-0.1, 0.62), (-0.08, 0.8), (-0.6, 0.86), (-0.8, 0.84)], (36, 36, 38))
        part([(-0.98, 0.5), (-0.62, 0.66), (-0.6, 0.74), (-0.9, 0.66)], paint)
        part(_bar((0.3, 1.04), (0.48, 0.98), 0.05), RUBBER)
        part(_disc(0.52, 0.86, 0.09), (240, 236, 214))
        if rider:
            self.rider(x, heading)

    def rider(self, x: float, heading: float) -> None:
        shirt, skin = self.pick(CLOTH), self.pick(SKIN)
        part = functools.partial(self.facing, "rider", x=x, scale=(heading, 1))
        part(_bar((-0.16, 0.96), (0.16, 0.68), 0.16), (54, 60, 78))
        part(_bar((0.16, 0.7), (-0.1, 0.24), 0.11), (54, 60, 78))
        part(_disc(-0.06, 0.21, 0.12, 0.055, 12), RUBBER)
        part(_bar((-0.2, 0.9), (0.12, 1.46), 0.27), shirt)
        part(_bar((0.1, 1.4), (0.26, 1.14), 0.1), _shade(shirt, 0.85))
        part(_bar((0.25, 1.16), (0.36, 1.05), 0.085), skin)
        part(_disc(0.21, 1.62, 0.1, 0.13), skin)
        part(_disc(0.19, 1.68, 0.135, 0.09), self.pick(((206, 206, 210), (196, 48, 44), (48, 52, 60))))

    def ignored(self) -> None:
        """What Cityscapes leaves unlabelled: bins, a bench, the camera car's bonnet, the rim of the rectified image."""
        for x, z in ((self.between(7.9, 8.5), self.between(15, 20)), (-self.between(5.9, 6.6), self.between(17, 26))):
            self.at(z)
            body = [(-0.22, 0), (0.22, 0), (0.28, 0.9), (-0.28, 0.9)]
            self.facing("ignored", body, (78, 96, 88), (58, 72, 66), x=x)
            self.facing("ignored", _rectangle(-0.3, 0.88, 0.3, 0.98), (52, 60, 58), x=x)
        self.at(self.between(22, 28))
        part = functools.partial(self.facing, "ignored", x=-self.between(6.8, 7.4))
        for v in (0.42, 0.62, 0.78):
            part(_rectangle(-0.85, v, 0.85, v + 0.1), (132, 92, 58))
        for u in (-0.7, 0.7):
            part(_rectangle(u - 0.05, 0, u + 0.05, 0.85), (64, 64, 66))
        self.at(0.0)
        paint = self.pick(((58, 62, 70), (150, 154, 160), (92, 30, 32)))
        bonnet = _disc(self.vanishing_x, 1.16, 1.02, 0.255, 96)
        gleam = _disc(self.vanishing_x - 0.25 * self.side, 0.985, 0.3, 0.028, 64)
        self.flat("ignored", bonnet, _shade(paint, 1.3), _shade(paint, 0.62))
        self.flat("ignored", gleam, _shade(paint, 1.5), _shade(paint, 1.1))
        rim = 5 / 1024
        for x0, y0, x1, y1 in ((0, -1, rim, 2), (ASPECT - rim, -1, ASPECT, 2), (0, 1 - rim, ASPECT, 2)):
            self.flat("ignored", _rectangle(x0, y0, x1, y1), (6, 6, 6))
