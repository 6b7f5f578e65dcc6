"""The street of a seed, as the polygons of what stands in it: a table of shapes and where they are."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from tritonsoft.cli.drawing import (
    ASPECT,
    CLASSES,
    IGNORE_INDEX,
    Array,
    Colour,
    Points,
    Shape,
    bar,
    disc,
    rectangle,
    shade,
)

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


@functools.lru_cache(4)
def shapes_of_street(seed: int) -> tuple[Shape, ...]:
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
        self.painted: list[tuple[float, Shape]] = []
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
        self.painted.append((self.order, Shape(class_id, np.array(outline, float), hole, *colours)))

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
        self.flat("sky", rectangle(0, -0.1, ASPECT, self.horizon + 0.02), self.sky, self.haze)
        bright = self.haze * 0.6 + 255 * 0.4
        for _ in range(self.random.integers(4, 9)):
            x, y, size = self.between(0, ASPECT), self.between(0.03, 0.26), self.between(0.04, 0.11)
            for _ in range(7):
                puff_x, puff_y = x + self.between(-1.8, 1.8) * size, y + self.between(-0.14, 0.14) * size
                outline = disc(puff_x, puff_y, size * self.between(0.5, 1.1), size * self.between(0.14, 0.3), 40)
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
        self.facing("building", rectangle(0, 0, width, height), colour, shade(colour, 0.94), x=x)
        for column in np.arange(1, width - 1.5, 3.2):
            for floor in np.arange(2, height - 2, 3.4):
                window = rectangle(column, floor, column + 1.3, floor + 1.6)
                self.facing("building", window, shade(colour, 0.72), x=x)

    def ground(self) -> None:
        near = 1.0
        self.at(60, GROUND)
        self.flat("terrain", rectangle(0, self.horizon, ASPECT, 1.1), (128, 150, 92), (92, 128, 56))
        stone = shade((1, 0.98, 0.95), self.between(176, 200))
        for x0, x1 in ((-8.2, -KERB), (KERB, 9.0)):
            self.at(60, GROUND - 1)
            self.lying("sidewalk", x0, x1, near, FAR, shade(stone, 1.05), shade(stone, 0.92))
            self.at(60, GROUND - 2)
            self.lying("sidewalk", (x0 + x1) / 2, (x0 + x1) / 2 + 0.03, near, FAR, shade(stone, 0.86))
            for z in 1.25 ** np.arange(5, 17):
                self.lying("sidewalk", x0, x1, z, z * 1.004, shade(stone, 0.86))
        grey = shade((1, 1, 1.03), self.between(86, 102))
        self.at(60, GROUND - 3)
        self.lying("road", -KERB, KERB, near, FAR, shade(grey, 1.1), shade(grey, 0.88))
        self.at(40, GROUND - 4)
        for x in (-KERB, KERB):  # gutter and kerb stones
            self.lying("road", x * 0.955, x * 0.99, near, FAR, shade(grey, 0.84))
            self.lying("sidewalk", x, x * 1.035, near, FAR, (200, 198, 192))
        self.at(40, GROUND - 5)
        white = (226, 226, 220)
        for z in np.arange(4.2, 120, 7.0):
            self.lying("road", -0.07, 0.07, z, z + 3, white)
        for x in (-KERB + 2.15, KERB - 2.15):
            self.lying("road", x - 0.05, x + 0.05, near, FAR, shade(white, 0.9))
        crossing = self.between(12.5, 17.0)
        for x in np.arange(-KERB + 0.5, KERB - 0.5, 0.95):
            self.lying("road", x, x + 0.5, crossing, crossing + 2.6, white)
        for _ in range(5):  # manholes
            x, z = self.between(-4, 4), self.between(6, 30)
            self.world("road", [(x + u, 0.0, z + v) for u, v in disc(0, 0, 0.33)], shade(grey, 0.8))

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
        face(rectangle(z0, 0, z1, height), wall * 1.02, wall * 0.9)
        face(rectangle(z0, height - 0.45, z1, height), wall * 1.16)
        face(rectangle(z0, height - 0.6, z1, height - 0.45), wall * 0.7)
        face(rectangle(z0, 0, z1, 0.55), wall * 0.62)
        face(rectangle(z0, 3.35, z1, 3.6), wall * 1.12)
        bays = max(int((z1 - z0) / 2.7), 2) if z0 < 95 else 0
        awning, shop = self.pick(CLOTH), self.random.random() < 0.5
        for bay in range(bays):
            pitch = (z1 - z0) / bays
            middle, half = z0 + (bay + 0.5) * pitch, 0.26 * pitch
            left, right = middle - half, middle + half
            if bay == bays // 2:
                face(rectangle(left + 0.2, 0, right - 0.2, 2.6), (74, 54, 42), (58, 42, 34))
            elif shop:
                face(rectangle(left - 0.35, 0.6, right + 0.35, 2.7), glass * 1.1, glass * 0.75)
                face(rectangle(left - 0.45, 2.6, right + 0.45, 3.2), awning, shade(awning, 0.8))
            else:
                face(rectangle(left, 1.0, right, 2.7), glass, glass * 0.8)
            for floor in np.arange(4.3, height - 2.0, 3.0):
                face(rectangle(left - 0.12, floor - 0.14, right + 0.12, floor + 1.82), wall * 1.2)
                face(rectangle(left, floor, right, floor + 1.7), glass * 1.25, glass * 0.85)
                face(rectangle(middle - 0.04, floor, middle + 0.04, floor + 1.7), wall * 1.15)
                face(rectangle(left - 0.18, floor - 0.22, right + 0.18, floor - 0.1), wall * 0.78)

    def park(self) -> None:
        self.at(30, GROUND - 6)
        for x in (-12.6, -11.2):  # tram rails, in the grass
            self.lying("terrain", x, x + 0.1, 3, FAR, (104, 96, 86))
        for z in np.arange(9.0, self.between(44, 70), 3.0):  # a wall in sections, with courses
            self.at(z, PARK + z)
            stone = shade((158, 148, 134), self.between(0.94, 1.06))
            self.along("wall", rectangle(z, 0, z + 3.0, 2.1), stone, shade(stone, 0.84), x=-16)
            self.along("wall", rectangle(z, 2.0, z + 3.0, 2.25), shade(stone, 1.16), x=-16)
            for y in (0.5, 1.0, 1.5):
                self.along("wall", rectangle(z, y, z + 3.0, y + 0.05), shade(stone, 0.75), x=-16)
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
        self.facing("vegetation", bar((0, 0), (lean, height * 0.55), 0.3), (96, 76, 58), (72, 58, 46), x=x)
        for branch in (-1, 1):
            tip = (lean + branch * height * 0.16, height * 0.62)
            self.facing("vegetation", bar((lean * 0.7, height * 0.36), tip, 0.14), (88, 70, 54), x=x)
        self.crown(x + lean, height * 0.66, height * 0.3, blobs)

    def crown(self, x: float, y: float, radius: float, blobs: int) -> None:
        hue = np.array((self.between(66, 104), self.between(112, 136), self.between(42, 66)))
        angles, radii = self.random.uniform(0, 2 * math.pi, blobs), self.random.uniform(0, 1, blobs) ** 0.5
        places = np.stack((0.82 * radii * np.cos(angles), radii * np.sin(angles)), 1)
        for u, v in places[np.argsort(places[:, 1])]:  # the bright tops last
            size = self.between(0.22, 0.42) * (1.15 - 0.5 * abs(v))
            leaf = hue * (0.86 + 0.26 * v - 0.1 * self.side * u + self.between(-0.06, 0.06))
            blob = disc(u, v, size, size * 0.85, corners=14)
            self.facing("vegetation", blob, leaf * 1.12, leaf * 0.78, x=x, y=y, scale=(radius, radius))

    def railing(self, x: float, z0: float, z1: float, height: float) -> None:
        """Upright bars with two rails; what is behind shows between them."""
        paint = self.pick(((58, 68, 62), (72, 74, 78), (64, 84, 74)))
        for z in np.arange(z0, z1, 0.24):
            self.at(z)
            self.facing("fence", rectangle(-0.014, 0, 0.014, height), shade(paint, 1.15), paint, x=x)
            for y in (0.16, height - 0.14):
                self.along("fence", rectangle(z, y, z + 0.24, y + 0.05), shade(paint, 1.2), x=x)

    def tram(self, z0: float) -> None:
        paint = self.pick(((196, 40, 40), (222, 184, 52), (40, 110, 88)))
        for begin in (z0, z0 + 14.2):
            self.coach("train", -11.85, begin, begin + 13.6, (2.4, 3.3), paint, (232, 228, 214), 7, 0.35)
        self.at(z0)
        for start, end in (((-0.05, 3.3), (0.5, 4.1)), ((0.5, 4.1), (0.0, 4.8)), ((-0.6, 4.8), (0.6, 4.8))):
            self.facing("train", bar(start, end, 0.07), STEEL, x=-11.85)

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
        side(rectangle(z0, floor, z1, eaves), shade(upper, 0.94))
        side(rectangle(z0, floor, z1, belt), shade(paint, 0.9), shade(paint, 0.72))
        for window in range(windows):
            left, right = (z0 + length * (window + share) / windows for share in (0.12, 0.88))
            side(rectangle(left, belt, right, height - 0.55), GLASS_LIT, GLASS)
        for share in (0.12, 0.26, 0.74, 0.88) if class_name == "train" else (0.16, 0.8):
            side(disc(z0 + length * share, 0.46, 0.46), RUBBER)
            side(disc(z0 + length * share, 0.46, 0.2), CHROME)
        end = functools.partial(self.facing, class_name, x=x)
        if class_name != "train":
            for u in (0.3 - half, half - 0.3):
                end(rectangle(u - 0.16, 0, u + 0.16, floor), RUBBER)
        roof = [(half, eaves), (half - 0.2, height), (0.2 - half, height), (-half, eaves)]
        end([(-half, floor), (half, floor), *roof], upper, shade(upper, 0.9))
        end(rectangle(-half, floor, half, belt), paint, shade(paint, 0.8))
        if windows:
            end(rectangle(0.18 - half, belt + 0.1, half - 0.18, height - 0.5), GLASS_LIT, GLASS)
            end(rectangle(0.5 - half, height - 0.4, half - 0.5, height - 0.12), (40, 36, 30))
        for u in (0.3 - half, half - 0.3):
            end(disc(u, floor + 0.45, 0.14), (236, 72, 52))
        end(rectangle(-half, floor - 0.08, half, floor + 0.12), (52, 52, 54))

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
        self.along("car", flank, shade(paint, 0.9), shade(paint, 0.55), x=x_side)

        def cabin_side(points: Points, upper: Colour, lower: Colour | None = None) -> None:
            inset = math.copysign(0.26 / (roof - belt), x)  # the cabin leans in
            self.world("car", [(x_side + inset * (y - belt), y, z) for z, y in points], upper, lower)

        cabin_side([(z0, belt), (z1 - 1.0, belt), (z1 - 1.75, roof), (z0 + 0.3, roof)], shade(paint, 0.95))
        window = [(z0 + 0.28, 0.93), (z1 - 1.25, 0.93), (z1 - 1.85, roof - 0.08), (z0 + 0.46, roof - 0.08)]
        cabin_side(window, GLASS_LIT, GLASS)
        cabin_side(rectangle((z0 + z1) / 2 - 0.3, belt, (z0 + z1) / 2 - 0.18, roof), shade(paint, 0.85))
        for z in (z0 + 0.75, z1 - 0.75):
            self.along("car", disc(z, 0.32, 0.33), RUBBER, x=x_side)
            self.along("car", disc(z, 0.32, 0.17), CHROME, x=x_side)

        end = functools.partial(self.facing, "car", x=x)
        for u in (0.16 - half, half - 0.16):
            end(rectangle(u - 0.11, 0, u + 0.11, 0.4), RUBBER)
        end([(-half, belt), (half, belt), (half - 0.26, roof), (0.26 - half, roof)], shade(paint, 1.12), paint)
        top = roof - 0.09
        end([(0.12 - half, 0.93), (half - 0.12, 0.93), (half - 0.33, top), (0.33 - half, top)], GLASS_LIT, GLASS)
        lower_body = [(-half, 0.4), (0.05 - half, 0.24), (half - 0.05, 0.24), (half, 0.4)]
        upper_body = [(half, 0.86), (half - 0.06, 0.92), (0.06 - half, 0.92), (-half, 0.86)]
        end([*lower_body, *upper_body], shade(paint, 1.1), shade(paint, 0.72))
        end(rectangle(0.05 - half, 0.24, half - 0.05, 0.4), (44, 44, 48))
        lamp = (246, 240, 214) if oncoming else (206, 30, 30)
        for u in (0.04 - half, half - 0.34):
            end(rectangle(u, 0.66, u + 0.3, 0.82), lamp, shade(lamp, 0.8))
        end(rectangle(-0.26, 0.46, 0.26, 0.57), WHITE)

    def street_furniture(self) -> None:
        for z in (self.between(70, 82), self.between(50, 58), self.between(33, 38), self.between(21, 24)):
            self.lamp_post(self.pick((-5.5, 5.5)), z)
        self.lamp_post(5.5, self.between(15, 17))
        for z in (self.between(60, 66), self.between(30, 34)):  # masts of the tramway
            self.at(z)
            self.post(-9.6, 6.5)
            self.facing("pole", bar((0, 6.2), (-2.8, 6.3), 0.08), STEEL, x=-9.6)
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
        upright = rectangle(-width / 2, foot, width / 2, height)
        self.facing("pole", upright, shade(STEEL, 1.15), shade(STEEL, 0.8), x=x)
        return width

    def lamp_post(self, x: float, z: float) -> None:
        self.at(z)
        height, reach = self.between(6.0, 7.5), -math.copysign(1.5, x)
        width = self.post(x, height)
        self.facing("pole", bar((0, height - 0.03), (reach, height + 0.35), width * 0.8), STEEL, x=x)
        lamp = bar((reach * 0.8, height + 0.27), (reach * 1.35, height + 0.38), 0.18)
        self.facing("pole", lamp, (212, 214, 206), x=x)

    def traffic_light(self, x: float, z: float, arm: float = 0.0) -> None:
        self.at(z)
        width = self.post(x, 5.4 if arm else 3.2)
        self.lights(x, 2.2)
        if arm:
            self.facing("pole", bar((0, 5.3), (-arm, 5.35), width), STEEL, x=x)
            self.lights(x - arm, 4.55)

    def lights(self, x: float, y: float) -> None:
        self.facing("traffic light", rectangle(-0.2, 0, 0.2, 1.05), (38, 40, 42), x=x, y=y)
        lit = self.random.integers(3)
        for lamp, colour in enumerate(((54, 200, 110), (236, 176, 48), (228, 48, 44))):
            glow = colour if lamp == lit else shade(colour, 0.3)
            self.facing("traffic light", disc(0, 0.2 + 0.325 * lamp, 0.13), glow, x=x, y=y)

    def sign(self, x: float, z: float, kind: int | np.integer[Any]) -> None:
        self.at(z)
        self.post(x, 2.9)
        part = functools.partial(self.facing, "traffic sign", x=x)
        if kind == 0:  # no entry
            part(disc(0, 2.6, 0.36), RED)
            part(rectangle(-0.24, 2.54, 0.24, 2.66), WHITE)
        elif kind == 1:  # give way
            part([(-0.42, 2.9), (0.42, 2.9), (0, 2.17)], RED)
            part([(-0.26, 2.81), (0.26, 2.81), (0, 2.36)], WHITE)
        elif kind == 2:  # priority road
            part(disc(0, 2.6, 0.4, corners=4), WHITE)
            part(disc(0, 2.6, 0.29, corners=4), (240, 196, 40))
        else:  # parking
            blue = (36, 84, 168)
            part(rectangle(-0.34, 2.25, 0.34, 2.93), blue)
            part(rectangle(-0.13, 2.36, -0.04, 2.82), WHITE)
            part(disc(0.02, 2.68, 0.14), WHITE)
            part(disc(0.02, 2.68, 0.06), blue)

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
        shirt, trousers, skin = self.pick(CLOTH), shade(self.pick(CLOTH), 0.55), self.pick(SKIN)
        part = functools.partial(self.facing, "person", x=x, scale=(size, size))
        for turn, light in ((-1, 0.9), (1, 1.1)):
            part(bar((turn * 0.08, 0.88), (turn * stride, 0.04), 0.16), shade(trousers, light))
            part(disc(turn * stride + 0.03, 0.05, 0.12, 0.06, 12), RUBBER)
            part(bar((turn * 0.22, 1.38), (turn * (0.28 + stride * 0.3), 0.86), 0.1), shade(shirt, 0.8))
        shoulders = [(0.25, 1.36), (0.13, 1.47), (-0.13, 1.47), (-0.25, 1.36)]
        part([(-0.19, 0.82), (0.19, 0.82), *shoulders], shade(shirt, 1.1), shade(shirt, 0.85))
        part(bar((0, 1.42), (0, 1.54), 0.1), shade(skin, 0.85))
        part(disc(0, 1.63, 0.1, 0.13), skin, shade(skin, 0.9))
        part(disc(0, 1.7, 0.108, 0.075), self.pick(HAIR))

    def bicycle(self, x: float, z: float, rider: bool) -> None:
        self.at(z)
        self.shadow(x, 1.6, z - 0.1, z + 0.1)
        heading, paint = self.pick((-1, 1)), self.pick(PAINT)
        part = functools.partial(self.facing, "bicycle", x=x, scale=(heading, 1))
        rear, crank, seat, head, front = (-0.52, 0.35), (-0.08, 0.3), (-0.2, 0.86), (0.36, 0.84), (0.52, 0.35)
        for hub_x, hub_y in (rear, front):
            part(disc(hub_x, hub_y, 0.35), RUBBER, hole=disc(hub_x, hub_y, 0.31))
            for angle in (0.3, 1.35, 2.4):  # spokes
                u, v = 0.32 * math.cos(angle), 0.32 * math.sin(angle)
                part(bar((hub_x - u, hub_y - v), (hub_x + u, hub_y + v), 0.012), CHROME)
        if rider:  # the far leg goes behind the frame
            leg = functools.partial(self.facing, "rider", x=x, scale=(heading, 1))
            leg(bar((-0.16, 0.94), (0.24, 0.86), 0.15), (40, 44, 58))
            leg(bar((0.24, 0.86), (0.06, 0.44), 0.11), (40, 44, 58))
        for start, end in ((rear, crank), (crank, seat), (seat, rear), (seat, head), (crank, head), (head, front)):
            part(bar(start, end, 0.042), paint)
        part(bar((0.36, 0.82), (0.32, 1.02), 0.04), STEEL)
        part(bar((0.28, 1.02), (0.46, 1.04), 0.045), RUBBER)
        part(bar((-0.33, 0.92), (-0.08, 0.9), 0.07), RUBBER)
        part(bar((-0.16, 0.2), (0.0, 0.4), 0.035), STEEL)
        if rider:
            self.rider(x, heading)

    def motorcycle(self, x: float, z: float, rider: bool) -> None:
        self.at(z)
        self.shadow(x, 1.9, z - 0.15, z + 0.15)
        heading, paint = self.pick((-1, 1)), self.pick(PAINT)
        part = functools.partial(self.facing, "motorcycle", x=x, scale=(heading, 1))
        for hub in (-0.66, 0.68):
            part(disc(hub, 0.31, 0.31), RUBBER, hole=disc(hub, 0.31, 0.2))
            part(disc(hub, 0.31, 0.09), CHROME)
            part(bar((hub - 0.2, 0.31), (hub + 0.2, 0.31), 0.03), CHROME)
        part(bar((0.68, 0.31), (0.42, 0.92), 0.07), CHROME)
        part(bar((-0.6, 0.36), (-0.1, 0.32), 0.09), CHROME)
        part([(-0.3, 0.22), (0.3, 0.22), (0.36, 0.55), (-0.2, 0.6)], (70, 72, 76))
        part([(-0.12, 0.6), (0.34, 0.58), (0.46, 0.8), (0.2, 0.94), (-0.1, 0.84)], paint)
        part([(-0.74, 0.72), (-0.1, 0.62), (-0.08, 0.8), (-0.6, 0.86), (-0.8, 0.84)], (36, 36, 38))
        part([(-0.98, 0.5), (-0.62, 0.66), (-0.6, 0.74), (-0.9, 0.66)], paint)
        part(bar((0.3, 1.04), (0.48, 0.98), 0.05), RUBBER)
        part(disc(0.52, 0.86, 0.09), (240, 236, 214))
        if rider:
            self.rider(x, heading)

    def rider(self, x: float, heading: float) -> None:
        shirt, skin = self.pick(CLOTH), self.pick(SKIN)
        part = functools.partial(self.facing, "rider", x=x, scale=(heading, 1))
        part(bar((-0.16, 0.96), (0.16, 0.68), 0.16), (54, 60, 78))
        part(bar((0.16, 0.7), (-0.1, 0.24), 0.11), (54, 60, 78))
        part(disc(-0.06, 0.21, 0.12, 0.055, 12), RUBBER)
        part(bar((-0.2, 0.9), (0.12, 1.46), 0.27), shirt)
        part(bar((0.1, 1.4), (0.26, 1.14), 0.1), shade(shirt, 0.85))
        part(bar((0.25, 1.16), (0.36, 1.05), 0.085), skin)
        part(disc(0.21, 1.62, 0.1, 0.13), skin)
        part(disc(0.19, 1.68, 0.135, 0.09), self.pick(((206, 206, 210), (196, 48, 44), (48, 52, 60))))

    def ignored(self) -> None:
        """What Cityscapes leaves unlabelled: bins, a bench, the camera car's bonnet, the rim of the rectified image."""
        for x, z in ((self.between(7.9, 8.5), self.between(15, 20)), (-self.between(5.9, 6.6), self.between(17, 26))):
            self.at(z)
            body = [(-0.22, 0), (0.22, 0), (0.28, 0.9), (-0.28, 0.9)]
            self.facing("ignored", body, (78, 96, 88), (58, 72, 66), x=x)
            self.facing("ignored", rectangle(-0.3, 0.88, 0.3, 0.98), (52, 60, 58), x=x)
        self.at(self.between(22, 28))
        part = functools.partial(self.facing, "ignored", x=-self.between(6.8, 7.4))
        for v in (0.42, 0.62, 0.78):
            part(rectangle(-0.85, v, 0.85, v + 0.1), (132, 92, 58))
        for u in (-0.7, 0.7):
            part(rectangle(u - 0.05, 0, u + 0.05, 0.85), (64, 64, 66))
        self.at(0.0)
        paint = self.pick(((58, 62, 70), (150, 154, 160), (92, 30, 32)))
        bonnet = disc(self.vanishing_x, 1.16, 1.02, 0.255, 96)
        gleam = disc(self.vanishing_x - 0.25 * self.side, 0.985, 0.3, 0.028, 64)
        self.flat("ignored", bonnet, shade(paint, 1.3), shade(paint, 0.62))
        self.flat("ignored", gleam, shade(paint, 1.5), shade(paint, 1.1))
        rim = 5 / 1024
        for x0, y0, x1, y1 in ((0, -1, rim, 2), (ASPECT - rim, -1, ASPECT, 2), (0, 1 - rim, ASPECT, 2)):
            self.flat("ignored", rectangle(x0, y0, x1, y1), (6, 6, 6))
