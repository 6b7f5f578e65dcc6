"""Exact footprints by polygon clipping in float64: how much of an output pixel each source pixel is under a matrix."""

import numpy as np

Point = tuple[float, float]


def _clip(polygon: list[Point], axis: int, bound: float, keep_above: bool) -> list[Point]:
    """The part of a convex polygon on one side of an upright line (Sutherland and Hodgman, 1974)."""
    result: list[Point] = []
    for current, following in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        inside, next_inside = ((point[axis] >= bound) == keep_above for point in (current, following))
        if inside:
            result.append(current)
        if inside != next_inside:
            share = (bound - current[axis]) / (following[axis] - current[axis])
            result.append(
                (current[0] + share * (following[0] - current[0]), current[1] + share * (following[1] - current[1]))
            )
    return result


def _area(polygon: list[Point]) -> float:
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in pairs)) / 2


def footprint_weights(matrix: np.ndarray, source: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """``(h, w, H, W)``: the share of each output pixel's footprint that each source pixel covers."""
    weights = np.zeros((*size, *source))
    for row in range(size[0]):
        for column in range(size[1]):
            corners = [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)]
            mapped = [matrix @ np.array([*corner, 1.0]) for corner in corners]
            polygon = [(float(x / depth), float(y / depth)) for x, y, depth in mapped]
            area = _area(polygon)
            xs, ys = zip(*polygon, strict=True)
            for y in range(max(int(np.floor(min(ys))), 0), min(int(np.ceil(max(ys))), source[0])):
                band = _clip(_clip(polygon, 1, y, True), 1, y + 1, False)
                for x in range(max(int(np.floor(min(xs))), 0), min(int(np.ceil(max(xs))), source[1])):
                    part = _clip(_clip(band, 0, x, True), 0, x + 1, False) if band else []
                    weights[row, column, y, x] = _area(part) / area if len(part) > 2 else 0.0
    return weights
