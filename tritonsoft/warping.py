"""Warps: rotation, affine, shear, perspective and elastic, of images and label maps, with one filter for both.

What the functions share:

* **Transform**: a *matrix* ``(B, 3, 3)`` maps output positions ``(u, v, 1)`` to source positions ``(x, y, 1)`` up to a
  positive factor, both in pixel edges: the output reaches from ``(0, 0)`` to ``(w, h)``, the centre of its first pixel
  is ``(1/2, 1/2)``, and so on in the source. Positions whose third coordinate comes out 0 or negative lie behind the
  camera: outside. A *field* ``(B, h, w, 2)`` is the source position ``(x, y)`` of the centre of each output pixel. Any
  floating type, on the device of what is warped; positions are computed in float64. `box_to_matrix` makes a matrix of
  boxes, and matrices are chained by multiplication: ``first @ second`` for an image that ``first`` has been applied to
  before ``second`` is.
* **Meaning**: an output pixel is the average over its footprint, the image of its square, taken over points: along each
  of its two axes one for each source pixel that a step of one output pixel goes (rounded up; 16 at most), or a single
  one where nothing shrinks, which is linear interpolation. Under a box it is what `crop_resize` gives, except within
  half a source pixel of an edge of an enlarged box: a box is never looked past, while a transform reads on to the edge
  of the image, which it never looks past. Flips, quarter turns and the identity are exact. docs/warps.md has the
  formulas and how far from an exact average the points are.
* **Filter**: as for boxes: ``"area"`` (default), ``"triangle"``, ``"bilinear"`` (one point, read linearly) or
  ``"nearest"`` (the pixel under the centre).
* **Outside**: what of a footprint lies outside of the image is ``fill`` in images and no mass in soft labels.
* Label maps, soft labels, ``ignore_index``, ``top_k``, values, backends and errors: see `tritonsoft.functional`. With
  the values of labels those of transforms are checked: finite, and a matrix not singular. Where they are not checked, a
  pixel whose position is not a number lies outside.
"""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from tritonsoft._validation import (
    check_boxes,
    check_classes,
    check_fill,
    check_image,
    check_labels,
    check_same_extent,
    check_sampling,
    check_size,
    check_transform,
    image_dtype,
)
from tritonsoft.geometry import Filter
from tritonsoft.largest import check_classes_or_ids, keep_largest
from tritonsoft.ops import warps
from tritonsoft.sparse import SparseLabels


def box_to_matrix(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """The matrices that cut boxes out of images and resample them to ``size``, as `crop_resize` does.

    Args:
        boxes: tensor ``(B, 4)``, floating or integers, ``(x0, y0, x1, y1)`` in source pixel edges; ``x1 < x0`` mirrors
            left-right, ``y1 < y0`` top-bottom.
        size: ``(h, w)`` of the output.

    Returns:
        ``(B, 3, 3)``, float64, on the device of the boxes.

    Example:
        >>> box_to_matrix(torch.tensor([[10.0, 20.0, 50.0, 40.0]]), (10, 20))
        tensor([[[ 2.,  0., 10.],
                 [ 0.,  2., 20.],
                 [ 0.,  0.,  1.]]], dtype=torch.float64)
    """
    if not isinstance(boxes, Tensor):
        raise TypeError(f"boxes must be a tensor, got {type(boxes).__name__}")
    batch = boxes.shape[0] if boxes.ndim > 0 else 0
    size = check_size(size)
    checked = check_boxes(boxes, batch, boxes.device, "boxes")
    assert checked is not None
    x0, y0, x1, y1 = checked.double().unbind(1)
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    rows = [[(x1 - x0) / size[1], zero, x0], [zero, (y1 - y0) / size[0], y0], [zero, zero, one]]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def warp(
    image: Tensor,
    transform: Tensor,
    size: Sequence[int],
    *,
    filter: Filter = "area",
    fill: float = 0.0,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Resample each image under a transform to ``size``; differentiable in the image.

    The map is linear in the image and the same for every channel. Gradients of any order, forward mode and the
    transforms of `torch.func` work; compiled, reverse mode does. The same inputs give the same bits, also backwards.

    Args:
        image: ``(B, K, H, W)`` of float16, bfloat16, float32, float64 or uint8, in any memory layout.
        transform: matrix ``(B, 3, 3)`` from output positions to the image's, both in pixel edges, or field
            ``(B, h, w, 2)``, the position ``(x, y)`` in the image of the centre of each output pixel.
        size: ``(h, w)`` of the output.
        filter: "area" (average over the footprint), "triangle" (over twice the pixel), "bilinear" (one point, read
            linearly) or "nearest" (the pixel under the centre).
        fill: value of what lies outside of the image, in the units of the output.
        dtype: of the output; None keeps the image's; uint8 to a floating dtype divides by 255.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        ``(B, K, h, w)``, channels_last where the image is.

    Example:
        >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> quarter_turn = torch.tensor([[[0.0, -1.0, 2.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> warp(image, quarter_turn, (2, 2))
        tensor([[[[2., 4.],
                  [1., 3.]]]])
    """
    image = check_image(image)
    dtype = image_dtype(image, dtype)
    check_fill(fill, dtype)
    size = check_size(size)
    check_sampling(filter, backend)
    transform = check_transform(transform, size, image.shape[0], image.device, "image")
    return warps.warp(backend, None, image, transform, size, filter, float(fill), dtype)


@overload
def soft_warp(
    labels: Tensor,
    transform: Tensor,
    size: Sequence[int],
    num_classes: int,
    *,
    ignore_index: int | None = None,
    filter: Filter = "area",
    dtype: torch.dtype = torch.float32,
    top_k: None = None,
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor: ...


@overload
def soft_warp(
    labels: Tensor,
    transform: Tensor,
    size: Sequence[int],
    num_classes: int | None,
    *,
    ignore_index: int | None = None,
    filter: Filter = "area",
    dtype: torch.dtype = torch.float32,
    top_k: int,
    validate: bool | None = None,
    backend: str | None = None,
) -> SparseLabels: ...


@overload
def soft_warp(
    labels: Tensor,
    transform: Tensor,
    size: Sequence[int],
    num_classes: int | None,
    *,
    ignore_index: int | None = None,
    filter: Filter = "area",
    dtype: torch.dtype = torch.float32,
    top_k: int | None,
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor | SparseLabels: ...


def soft_warp(
    labels: Tensor,
    transform: Tensor,
    size: Sequence[int],
    num_classes: int | None,
    *,
    ignore_index: int | None = None,
    filter: Filter = "area",
    dtype: torch.dtype = torch.float32,
    top_k: int | None = None,
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor | SparseLabels:
    """Resample each label map under a transform to a soft label: `warp` of its one-hot planes.

    Args:
        labels: ``(B, H, W)`` or ``(B, 1, H, W)`` of bool, uint8, int8, int16, uint16, int32, uint32 or int64.
        transform: matrix ``(B, 3, 3)`` from output positions to the label map's, both in pixel edges, or field
            ``(B, h, w, 2)``, the position ``(x, y)`` in the label map of the centre of each output pixel.
        size: ``(h, w)`` of the output.
        num_classes: C, at least 1; None with ``top_k``: labels are ids, any number of their type is one.
        ignore_index: the label of pixels that carry no mass; None is 255, and an error where C > 255. Of ids None is
            none.
        filter: "area" (average over the footprint), "triangle" (over twice the pixel), "bilinear" (one point, read
            linearly) or "nearest" (the pixel under the centre).
        dtype: of the soft label: float16, bfloat16, float32 or float64; of a `SparseLabels` any but float64.
        top_k: keep the k largest classes of each pixel alone, 1 to C; of ids any number; None keeps all.
        validate: check the values of labels and transform on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        ``(B, C, h, w)``, contiguous; with ``top_k`` a `SparseLabels` of that shape. Of ids its ``index`` holds the ids,
        in the labels' type, and its ``num_classes`` is None.

    Example:
        >>> labels = torch.tensor([[[0, 0, 1, 1],
        ...                         [0, 1, 1, 255]]])
        >>> half_size = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> soft_warp(labels, half_size, (1, 2), num_classes=2)
        tensor([[[[0.7500, 0.0000]],
        <BLANKLINE>
                 [[0.2500, 0.7500]]]])
    """
    labels = check_labels(labels)
    num_classes, ignore_index = check_classes_or_ids(num_classes, top_k, ignore_index, validate, dtype)
    size = check_size(size)
    check_sampling(filter, backend)
    transform = check_transform(transform, size, labels.shape[0], labels.device, "labels")
    if top_k is None:
        assert num_classes is not None
        assert ignore_index is not None
        return warps.soft_warp(backend, validate, labels, transform, size, num_classes, ignore_index, filter, dtype)
    return keep_largest(
        warps.soft_warp_top,
        warps.warp_top_ids,
        backend,
        validate,
        labels,
        transform,
        size,
        num_classes,
        top_k,
        ignore_index,
        filter,
        dtype,
    )


def warp_pair(
    image: Tensor,
    labels: Tensor,
    transform: Tensor,
    size: Sequence[int],
    num_classes: int,
    *,
    ignore_index: int | None = None,
    filter: Filter = "area",
    fill: float = 0.0,
    dtype: torch.dtype | None = None,
    soft_dtype: torch.dtype = torch.float32,
    validate: bool | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`warp` of the images and `soft_warp` of their label maps with the same transform: one launch on a GPU.

    Args:
        image: ``(B, K, H, W)`` of float16, bfloat16, float32, float64 or uint8, in any memory layout.
        labels: ``(B, H, W)`` or ``(B, 1, H, W)`` of bool or integers, of the image's height and width.
        transform: matrix ``(B, 3, 3)`` from output positions to the image's, both in pixel edges, or field
            ``(B, h, w, 2)``, the position ``(x, y)`` in the image of the centre of each output pixel.
        size: ``(h, w)`` of both outputs.
        num_classes: C, at least 1.
        ignore_index: the label of pixels that carry no mass; None is 255, and an error where C > 255.
        filter: "area" (average over the footprint), "triangle" (over twice the pixel), "bilinear" (one point, read
            linearly) or "nearest" (the pixel under the centre).
        fill: value of the image outside itself, in the units of the output.
        dtype: of the image output; None keeps the image's; uint8 to a floating dtype divides by 255.
        soft_dtype: of the soft label: float16, bfloat16, float32 or float64.
        validate: check the values of labels and transform on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        The image ``(B, K, h, w)`` and the soft label ``(B, C, h, w)``.

    Example:
        >>> image, labels = torch.rand(1, 3, 64, 128), torch.randint(0, 19, (1, 64, 128))
        >>> whole = box_to_matrix(torch.tensor([[0.0, 0.0, 128.0, 64.0]]), (32, 64))
        >>> shear = torch.tensor([[[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
        >>> small, soft = warp_pair(image, labels, whole @ shear, (32, 64), num_classes=19)
        >>> small.shape, soft.shape
        (torch.Size([1, 3, 32, 64]), torch.Size([1, 19, 32, 64]))
    """
    image = check_image(image)
    labels = check_labels(labels)
    dtype = image_dtype(image, dtype)
    check_fill(fill, dtype)
    num_classes, ignore_index = check_classes(num_classes, ignore_index, validate, soft_dtype, "soft_dtype")
    check_same_extent(image, labels)
    size = check_size(size)
    check_sampling(filter, backend)
    transform = check_transform(transform, size, image.shape[0], image.device, "image")
    return warps.warp_pair(
        backend,
        validate,
        image,
        labels,
        transform,
        size,
        num_classes,
        ignore_index,
        filter,
        float(fill),
        dtype,
        soft_dtype,
    )
