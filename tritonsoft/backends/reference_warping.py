"""What warps mean, in plain eager PyTorch. The formulas: `tritonsoft.geometry`, "Warps".

A warp is a list of weighted taps for every output pixel. An image sums its pixels over them, a label map the weights by
class, and the gradient hands them back.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tritonsoft.geometry import MAX_POINTS, MIN_STEP, MIN_WINDOW, STRETCH_TOLERANCE


class LocalMap(NamedTuple):
    """Where the centre of each output pixel lies, and how positions change around it; each ``(B, h, w)``, float64."""

    x: Tensor
    y: Tensor
    right_x: Tensor
    right_y: Tensor
    down_x: Tensor
    down_y: Tensor
    bend_right: Tensor
    bend_down: Tensor


def local_map(transform: Tensor, size: Sequence[int]) -> LocalMap:
    """Of a matrix ``(B, 3, 3)`` or a field ``(B, h, w, 2)``; NaN where there is no positive depth."""
    if transform.ndim == 4:
        x, y = transform.double().unbind(-1)
        none = torch.zeros_like(x)
        return LocalMap(x, y, _step(x, 2), _step(y, 2), _step(x, 1), _step(y, 1), none, none)
    matrix = transform.double()[..., None, None]  # (B, 3, 3, 1, 1)
    v, u = (torch.arange(side, dtype=torch.float64, device=transform.device) + 0.5 for side in size)
    v = v[:, None]
    x, y, depth = (matrix[:, row, 0] * u + matrix[:, row, 1] * v + matrix[:, row, 2] for row in range(3))
    depth = torch.where(depth > 0, depth, torch.nan)
    x, y = x / depth, y / depth
    right, down = (
        [(matrix[:, row, column] - position * matrix[:, 2, column]) / depth for row, position in enumerate((x, y))]
        for column in range(2)
    )
    return LocalMap(x, y, right[0], right[1], down[0], down[1], matrix[:, 2, 0] / depth, matrix[:, 2, 1] / depth)


def _step(position: Tensor, axis: int) -> Tensor:
    """From each pixel of a field to the next along an axis; 0 where there is no other."""
    size = position.shape[axis]
    index = torch.arange(size, device=position.device)
    after, before = (index + 1).clamp(max=size - 1), (index - 1).clamp(min=0)
    shape = [1, 1, 1]
    shape[axis] = -1
    difference = position.index_select(axis, after) - position.index_select(axis, before)
    return difference / (after - before).clamp(min=1).view(shape)


def _without_endless_steps(here: LocalMap) -> LocalMap:
    """Steps that are not finite become 0."""
    right = (here.right_x * here.right_x + here.right_y * here.right_y).isfinite()
    down = (here.down_x * here.down_x + here.down_y * here.down_y).isfinite()
    return here._replace(
        right_x=torch.where(right, here.right_x, 0),
        right_y=torch.where(right, here.right_y, 0),
        down_x=torch.where(down, here.down_x, 0),
        down_y=torch.where(down, here.down_y, 0),
    )


class _Axis(NamedTuple):
    """The points of each output pixel along one of its axes; ``(B, h, w)``."""

    number: Tensor
    stretch: Tensor
    place: Tensor  # of the pixel along this axis
    size: int
    filter: str

    @property
    def num_steps(self) -> int:
        """The most points that any pixel has."""
        most = int(self.number.max()) if self.number.numel() else 1
        return 2 * most if self.filter == "triangle" and most > 1 else most

    def points(self) -> list[tuple[Tensor, Tensor]]:
        """Offset and weight of each point; weight 0 where a pixel has fewer."""
        offsets = [(k + 0.5) / self.number - 0.5 for k in range(self.num_steps)]
        weights = [torch.where(k < self.number, 1 / self.number, 0) for k in range(self.num_steps)]
        if self.filter == "triangle":
            offsets = [torch.where(self.number > 1, offset - 0.5, offset) for offset in offsets]
            trapezoid = [self._trapezoid(k) for k in range(self.num_steps)]
            total = torch.stack(trapezoid).sum(0)
            pairs = zip(trapezoid, weights, strict=True)
            weights = [torch.where(self.number > 1, each / total, weight) for each, weight in pairs]
        return list(zip(offsets, weights, strict=True))

    def _trapezoid(self, k: int) -> Tensor:
        plateau = (1 - 1 / self.stretch**2).clamp(min=0).sqrt()
        offset = (k + 0.5) / self.number - 1
        position = self.place + 0.5 + offset
        weight = ((1 + plateau) / 2 - offset.abs()).clamp(min=0).minimum(plateau)
        return torch.where((position > 0) & (position < self.size), weight, 0)


def _axis(step_x: Tensor, step_y: Tensor, axis: int, filter: str) -> _Axis:
    """Of the output pixels along an axis of the output, given the steps along it."""
    stretch = (step_x * step_x + step_y * step_y).sqrt()
    number = torch.where(stretch > 1, (stretch - STRETCH_TOLERANCE).ceil().clamp(1, MAX_POINTS), 1)
    if filter not in ("area", "triangle"):
        number = torch.ones_like(number)
    shape = [1, 1, 1]
    shape[axis] = -1
    place = torch.arange(stretch.shape[axis], device=stretch.device).view(shape)
    return _Axis(number, stretch, place, stretch.shape[axis], filter)


def _window(right: Tensor, down: Tensor, across: _Axis, along: _Axis, unit: tuple[int, int]) -> Tensor:
    """The extent along a source axis of what a point reads; ``unit`` are the steps of none that has a direction."""
    cell = []
    for step, axis, without in ((right, across, unit[0]), (down, along, unit[1])):
        longer = (1 / axis.stretch).clamp(min=1)
        cell.append(torch.where(axis.stretch < MIN_STEP, without, step * longer / axis.number))
    return (cell[0] * cell[0] + cell[1] * cell[1]).sqrt().clamp(MIN_WINDOW, 1)


def _extent(right: Tensor, down: Tensor, across: _Axis, along: _Axis) -> Tensor:
    """The extent along a source axis of a cell."""
    cell = right / across.number, down / along.number
    return (cell[0] * cell[0] + cell[1] * cell[1]).sqrt().clamp(MIN_WINDOW, 1)


def _taps_of_axis(position: Tensor, window: Tensor, extent: Tensor, size: int, filter: str) -> tuple[Tensor, ...]:
    """Two pixels of a source axis, the weight of the second (of the first the rest), and the share outside."""
    if filter == "nearest":
        pixel = position.floor()
        outside = ~((pixel >= 0) & (pixel < size))
        pixel = pixel.nan_to_num().clamp(0, size - 1).long()
        return pixel, pixel, torch.zeros_like(position), outside.double()
    edge = (position + 0.5).floor()
    second = torch.ones_like(window) if filter == "bilinear" else window
    second = ((position - edge) / second + 0.5).clamp(0, 1)
    beyond = (extent / 2 - position).clamp(min=0) + (position + extent / 2 - size).clamp(min=0)
    outside = torch.where(position.isfinite(), (beyond / extent).clamp(0, 1), 1)
    edge = edge.nan_to_num().clamp(-1, size + 1)
    return (edge - 1).clamp(0, size - 1).long(), edge.clamp(0, size - 1).long(), second.nan_to_num(), outside


def taps(
    transform: Tensor, source: Sequence[int], size: Sequence[int], filter: str
) -> Iterator[tuple[Tensor | None, Tensor]]:
    """What each output pixel takes, one tap after the other.

    Args:
        transform: matrix ``(B, 3, 3)`` or field ``(B, h, w, 2)``.
        source: ``(H, W)``.
        size: ``(h, w)``.
        filter: one of `tritonsoft.geometry.FILTERS`.

    Yields:
        Each ``(B, h, w)``: the pixel, as its place ``y W + x``, and its weight, float64; None in place of the pixel for
        what lies outside of the source. The weights of a pixel sum to 1.
    """
    height, width = source
    here = _without_endless_steps(local_map(transform, size))
    across, along = _axis(here.right_x, here.right_y, 2, filter), _axis(here.down_x, here.down_y, 1, filter)
    window_x = _window(here.right_x, here.down_x, across, along, (1, 0))
    window_y = _window(here.right_y, here.down_y, across, along, (0, 1))
    extent_x = _extent(here.right_x, here.down_x, across, along)
    extent_y = _extent(here.right_y, here.down_y, across, along)
    points_x = across.points()
    for offset_y, weight_y in along.points():
        for offset_x, weight_x in points_x:
            depth = 1 + offset_x * here.bend_right + offset_y * here.bend_down
            depth = torch.where(depth > 0, depth, torch.nan)
            x = here.x + (offset_x * here.right_x + offset_y * here.down_x) / depth
            y = here.y + (offset_x * here.right_y + offset_y * here.down_y) / depth
            left, right, of_right, outside_x = _taps_of_axis(x, window_x, extent_x, width, filter)
            top, bottom, of_bottom, outside_y = _taps_of_axis(y, window_y, extent_y, height, filter)
            weight = weight_y * weight_x
            inside = (1 - outside_y) * (1 - outside_x)
            yield None, weight * (1 - inside)
            for row, weight_of_row in ((top, 1 - of_bottom), (bottom, of_bottom)):
                for column, weight_of_column in ((left, 1 - of_right), (right, of_right)):
                    yield row * width + column, weight * inside * weight_of_row * weight_of_column


def warp(image: Tensor, transform: Tensor, size: Sequence[int], filter: str, fill: float, dtype: torch.dtype) -> Tensor:
    """Image ``(B, K, H, W)`` -> ``(B, K, h, w)``; what of a footprint lies outside the image counts as ``fill``."""
    planes = image.to(torch.promote_types(torch.promote_types(image.dtype, dtype), torch.float32))
    if image.dtype == torch.uint8 and dtype.is_floating_point:
        planes = planes / 255
    result = planes.new_zeros((*image.shape[:2], *size))
    pixels = planes.flatten(2)
    for place, weight in taps(transform, image.shape[2:], size, filter):
        factor = weight.to(planes.dtype)[:, None]
        if place is None:
            values = torch.full_like(factor, fill)
        else:
            index = place.flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
            values = pixels.gather(2, index).view_as(result)
        # Selected, not multiplied: what is infinite must not reach pixels in which it weighs nothing.
        result = result + torch.where(factor > 0, values * factor, 0)
    return result.round().clamp(0, 255).to(dtype) if dtype == torch.uint8 else result.to(dtype)


def warp_adjoint(grad: Tensor, transform: Tensor, source: Sequence[int], filter: str, dtype: torch.dtype) -> Tensor:
    """The transpose of `warp` as a linear map of a floating image: ``(B, K, h, w)`` -> ``(B, K, H, W)``."""
    planes = grad.to(torch.promote_types(torch.promote_types(grad.dtype, dtype), torch.float32))
    result = planes.new_zeros((*grad.shape[:2], source[0] * source[1]))
    for place, weight in taps(transform, source, grad.shape[2:], filter):
        if place is not None:
            index = place.flatten(1)[:, None].expand(-1, grad.shape[1], -1)
            result.scatter_add_(2, index, (planes * weight.to(planes.dtype)[:, None]).flatten(2))
    return result.view(*grad.shape[:2], *source).to(dtype)


def soft_warp(
    labels: Tensor,
    transform: Tensor,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    dtype: torch.dtype,
) -> Tensor:
    """Label map ``(B, H, W)`` -> soft label ``(B, C, h, w)``: `warp` of the one-hot planes, with no mass outside."""
    ids = labels.long().flatten(1)
    known = (ids >= 0) & (ids < num_classes) & (ids != ignore_index)
    ids = torch.where(known, ids, num_classes)
    soft = torch.zeros(
        (len(labels), num_classes + 1, *size), dtype=torch.promote_types(dtype, torch.float32), device=labels.device
    )
    for place, weight in taps(transform, labels.shape[1:], size, filter):
        if place is not None:
            classes = ids.gather(1, place.flatten(1)).view_as(place)[:, None]
            soft.scatter_add_(1, classes, weight.to(soft.dtype)[:, None])
    return soft[:, :num_classes].to(dtype)
