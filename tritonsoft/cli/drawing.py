"""Convex polygons with classes, and how they are painted on a canvas of any resolution."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tritonsoft.data.tables import DATA_SETS

_CITYSCAPES: Final = DATA_SETS["cityscapes"]
CLASSES: Final = _CITYSCAPES.class_names
PALETTE: Final = tuple(
    next(colour for colour, class_id in _CITYSCAPES.colours.items() if class_id == wanted)
    for wanted in range(len(CLASSES))
)
IGNORE_INDEX: Final = 255

ASPECT: Final = 2.0  # a drawing spans x in [0, 2] and y in [0, 1], whatever the resolution

Array = npt.NDArray[Any]
Colour = Sequence[float] | Array  # red, green, blue in 0..255
Points = Sequence[tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Shape:
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


def paint(canvas: Array, shapes: Iterable[tuple[Shape, Any]]) -> None:
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


def disc(x: float, y: float, radius_x: float, radius_y: float | None = None, corners: int = 24) -> Points:
    radius_y = radius_x if radius_y is None else radius_y
    angles = [2 * math.pi * k / corners for k in range(corners)]
    return [(x + radius_x * math.cos(angle), y + radius_y * math.sin(angle)) for angle in angles]


def bar(start: tuple[float, float], end: tuple[float, float], thickness: float) -> Points:
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0)
    dx, dy = (y1 - y0) / length * thickness / 2, (x0 - x1) / length * thickness / 2
    return [(x0 - dx, y0 - dy), (x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy)]


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def shade(colour: Colour, factor: float) -> Colour:
    return tuple(channel * factor for channel in colour)
