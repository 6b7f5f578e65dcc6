"""What augmentations do to an image: where each position of the output comes from, and the output's size.

The first is one tensor, whose rank says what it is, as `tritonsoft.crop_resize` and `tritonsoft.warp` take it:

    None            all of the image
    (B, 4)          a box of it
    (B, 3, 3)       a matrix from output positions to positions in the image, both in pixel edges
    (B, h, w, 2)    a field: the position (x, y) in the image of each output pixel's centre

Nothing here knows kornia; nothing here loops over the batch or reads a tensor's value.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import tritonsoft as ts
from tritonsoft.functional import is_whole_number, python_int
from tritonsoft.geometry import MAX_COORDINATE, Filter

Fill = float | tuple[float, ...]
Size = tuple[int, int]


def python_size(size: Any) -> Any:
    """A size with Python's ints in place of NumPy's, which kornia refuses; of whatever else it is, kornia says so."""
    if isinstance(size, (tuple, list)):
        return (list if isinstance(size, list) else tuple)(map(python_size, size))
    return python_int(size) if is_whole_number(size) else size


@dataclass(frozen=True)
class View:
    """What an augmentation shows of an image, and the size at which it shows it."""

    source: Size  # (H, W) of the image
    size: Size  # (h, w) that it becomes
    transform: Tensor | None = None  # boxes and matrices in float64, on the parameters' device; fields on the image's
    filter: Filter = "area"
    whole_pixels: bool = False  # whether pixels are only moved, by whole ones, so that every filter gives the same
    crops: bool = False  # whether a box may hide a part of the image
    pads: bool = False  # whether it may show what lies outside of the image
    fill: Fill = 0.0  # what an image has there, one value or one per channel

    @property
    def is_identity(self) -> bool:
        return self.transform is None and self.size == self.source

    @property
    def only_moves(self) -> bool:
        """Whether each pixel shown is one of the image's, or lies outside of it."""
        return self.whole_pixels or self.is_identity

    @property
    def is_box(self) -> bool:
        return self.transform is None or self.transform.ndim == 2

    @property
    def is_field(self) -> bool:
        return self.transform is not None and self.transform.ndim == 4

    @property
    def matrix(self) -> Tensor:
        """A box, or all of the image, as a matrix ``(B, 3, 3)``; a matrix as it is."""
        if self.transform is not None and not self.is_box:
            return self.transform
        height, width = self.source
        boxes = self.transform
        if boxes is None:
            boxes = torch.tensor([[0, 0, width, height]], dtype=torch.float64, device="cpu")
        return ts.box_to_matrix(boxes, self.size)

    def can_compose(self, first: "View") -> bool:
        """Whether `first`, then this, can be one resample of the image that `first` reads.

        Not if the two have different filters, or fill what lies outside differently; not if this one is a box that
        pads after a crop: the padding would show what the crop hid; and nothing follows a field, whose positions are
        those of its own pixels.
        """
        if first.is_field:
            return self.is_identity
        same_filter = self.only_moves or first.only_moves or self.filter == first.filter
        same_fill = not (first.pads and self.pads) or first.fill == self.fill
        return same_filter and same_fill and not (first.crops and self.pads and self.is_box)

    def compose(self, first: "View") -> "View":
        """`first`, then this, as one view; only where this one `can_compose` it."""
        return View(
            source=first.source,
            size=self.size,
            transform=_composed(self, first),
            filter=first.filter if self.only_moves else self.filter,
            whole_pixels=first.only_moves and self.only_moves,
            crops=first.crops or self.crops,
            pads=first.pads or self.pads,
            fill=self.fill if self.pads else first.fill,
        )

    def sample(self, index: int) -> "View":
        """This view for one sample of the batch."""
        return self if self.transform is None else replace(self, transform=self.transform[index : index + 1])

    def inverse(self) -> "View":
        """From what is shown back to the image; what was hidden becomes padding. A field has none."""
        if self.transform is None:
            return View(self.size, self.source, None, self.filter, self.whole_pixels)
        return View(
            source=self.size,
            size=self.source,
            transform=_inverse_boxes(self.transform, self) if self.is_box else inverse_matrix(self.transform),
            filter=self.filter,
            whole_pixels=self.whole_pixels,
            crops=self.pads,
            pads=True,
        )


# --- one after the other ---------------------------------------------------------------------------------------------


def _composed(view: View, first: View) -> Tensor | None:
    """Where the output of `first`, then `view`, comes from; boxes stay boxes."""
    if view.is_identity or (view.transform is None and first.is_box):
        return first.transform
    if first.is_identity:
        return view.transform
    if view.is_field:
        assert view.transform is not None
        matrix = expand_transform(first.matrix, view.transform.shape[0], view.transform.device)
        assert matrix is not None
        return map_positions(matrix[:, None, None], view.transform.double()).to(view.transform.dtype)
    if view.is_box and first.is_box:
        assert view.transform is not None
        return _composed_boxes(view.transform, first)
    one, other = first.matrix, view.matrix
    device = other.device if one.device.type == "cpu" else one.device  # the whole image is a box on the CPU
    return to_device(one, device) @ to_device(other, device)


def _composed_boxes(boxes: Tensor, first: View) -> Tensor:
    """Boxes in what `first` shows, in edges of its image.

    Products come before quotients: products of integers are exact, and so is the quotient for a pure crop or flip.
    """
    if first.transform is not None and first.transform.device != boxes.device:
        # Some boxes are chosen where the labels are, others drawn on the CPU.
        device = boxes.device if first.transform.device.type == "cpu" else first.transform.device
        first, boxes = replace(first, transform=to_device(first.transform, device)), to_device(boxes, device)
    across, down = boxes.reshape(-1, 2, 2).unbind(2)  # (B, 2): where a box starts and ends along each axis
    (height, width), (h, w) = first.source, first.size
    if first.transform is None:
        return torch.stack([across * width / w, down * height / h], dim=2).flatten(1)
    x0, y0, x1, y1 = first.transform[:, :, None].unbind(1)
    return torch.stack([x0 + (x1 - x0) * across / w, y0 + (y1 - y0) * down / h], dim=2).flatten(1)


def _inverse_boxes(boxes: Tensor, view: View) -> Tensor:
    (height, width), (h, w) = view.source, view.size
    x0, y0, x1, y1 = boxes.unbind(1)
    across, down = w / (x1 - x0), h / (y1 - y0)
    return torch.stack([-x0 * across, -y0 * down, (width - x0) * across, (height - y0) * down], dim=1)


# --- boxes, matrices and fields --------------------------------------------------------------------------------------


def repeat_box(box: tuple[int, int, int, int], like: Tensor) -> Tensor:
    """One box for each row of ``like``, made where that lies: ``(B, 4)`` float64."""
    return torch.stack([like.new_full(like.shape[:1], edge, dtype=torch.float64) for edge in box], dim=1)


def whole(source: Size, like: Tensor) -> Tensor:
    """The whole image as boxes, one per row of ``like``: ``(B, 4)`` float64."""
    return repeat_box((0, 0, source[1], source[0]), like)


def centres(size: Size, device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """The centres (x, y) of the pixels of an image, in pixel edges: ``(h, w, 2)``."""
    ys, xs = (torch.arange(length, device=device, dtype=dtype) + 0.5 for length in size)
    return torch.stack([xs.expand(size), ys[:, None].expand(size)], dim=-1)


def unmoved(source: Size, like: Tensor) -> Tensor:
    """What leaves an image as it is, as a transform of the rank, type and device of ``like``."""
    if like.ndim == 2:
        return whole(source, like)
    if like.ndim == 3:
        return torch.eye(3, dtype=like.dtype, device=like.device)
    return centres(source, like.device, like.dtype)


def pixel_matrix(boxes: Tensor, size: Size) -> Tensor:
    """What the boxes do to pixel-centre coordinates, ``x' = (x + 1/2 - x0) w / (x1 - x0) - 1/2``: ``(B, 3, 3)``.

    The half-pixel map that images and labels really go through, in kornia's coordinates, where pixel k lies at k.
    """
    low, (across, down) = boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    scale = torch.stack([size[1] / across, size[0] / down], dim=1)
    matrix = torch.diag_embed(torch.nn.functional.pad(scale, (0, 1), value=1.0))
    matrix[:, :2, 2] = (0.5 - low) * scale - 0.5
    return matrix


def edge_matrix(matrix: Tensor) -> Tensor:
    """The transform that a matrix between pixel centres means, image to output as in kornia: ``(B, 3, 3)``.

    Inverted, as a transform goes from the output to the image, and between pixel edges, where pixel k lies at k + 1/2:
    ``shift(1/2) @ inverse(matrix) @ shift(-1/2)``.
    """
    across, down, depth = inverse_matrix(matrix).unbind(1)
    rows = torch.stack([across.add(depth, alpha=0.5), down.add(depth, alpha=0.5), depth], dim=1)
    x, y, one = rows.unbind(2)
    return torch.stack([x, y, one.sub(x + y, alpha=0.5)], dim=2)


def inverse_matrix(matrix: Tensor) -> Tensor:
    """``(B, 3, 3)``, by cofactors: LAPACK's would wait for a device to report singular matrices."""
    a, b, c = matrix.unbind(1)
    cofactors = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=2)
    determinant = (a * cofactors[:, :, 0]).sum(1)
    return cofactors / determinant[:, None, None]


def map_positions(matrix: Tensor, positions: Tensor) -> Tensor:
    """Positions ``(..., 2)`` through matrices ``(..., 3, 3)``; what lies behind the camera comes to lie far outside."""
    mapped = (matrix[..., :, :2] * positions[..., None, :]).sum(-1) + matrix[..., :, 2]
    depth = mapped[..., 2:]
    in_front = depth > 0
    outside = mapped.new_full((), -MAX_COORDINATE)
    return torch.where(in_front, mapped[..., :2] / torch.where(in_front, depth, 1.0), outside)


def expand_transform(transform: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    """A transform where the image is, one per image."""
    if transform is None:
        return None
    if transform.shape[0] not in (1, batch):
        raise ValueError(f"image or mask must have the batch of its parameters, {transform.shape[0]}, got {batch}")
    return to_device(transform.expand(batch, *transform.shape[1:]), device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A few numbers where the image is, copied to a device without waiting for it."""
    # Safe without pinned memory: CUDA stages a pageable copy before the call returns. Inductor does not keep to that,
    # and what comes back to the CPU must be waited for: PyTorch copies it to pinned memory, which is filled later.
    return tensor.to(device, non_blocking=device.type != "cpu" and not torch.compiler.is_compiling())
