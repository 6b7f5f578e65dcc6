"""The public functions: every argument is checked here, once; then the op is called.

What they share:

* **Label map**: tensor ``(B, H, W)`` or ``(B, 1, H, W)`` of bool (classes 0 and 1), uint8, int8, int16, uint16, int32,
  uint32 or int64, read as it is. Classes are ``0 .. C-1`` (`tritonsoft.remap_labels` makes them of ids); pixels equal
  to ``ignore_index`` (any int; 255 where none is given, which more than 255 classes refuse) belong to none, also where
  it lies in ``0 .. C-1``: that class then carries no mass.
* **Soft label**: float tensor ``(B, C, h, w)``. Entry ``q[b, c, i, j]`` is the *mass* of class c in output pixel
  (i, j): the filter-weighted share of its footprint that is labelled c. Ignored pixels and everything outside the
  image carry no mass, so ``q.sum(1)`` is the labelled share of the footprint, in [0, 1].
* **Boxes**: ``(B, 4)`` tensor ``(x0, y0, x1, y1)`` on the image's device, in source pixel edges: the whole image is
  ``(0, 0, W, H)``, which is also what ``None`` means. Fractions are exact, and so are integers, of any type but bool
  and uint64, up to the largest coordinate there may be, 2^24. ``x1 < x0`` mirrors left-right, ``y1 < y0`` top-bottom.
  The outside of the image is ``fill`` for images and no mass for labels. A list or tuple of four numbers is the box of
  all samples, one of B such is a box for each. Their values are checked at every call, and go to a GPU from pinned
  memory, by a copy that is queued like a kernel and that nothing waits for. What a CUDA graph captures needs a tensor.
* **Filter**: ``"area"`` (default; the exact average when shrinking, linear interpolation when enlarging),
  ``"triangle"`` (antialiased bilinear), ``"bilinear"`` (no antialiasing) or ``"nearest"``. The formulas are in
  `tritonsoft.geometry`.
* **top_k**: how many classes to keep of each pixel: a `SparseLabels` then takes the place of the soft label, made
  without it (on a GPU, each 16 classes count the labels once more). An integer factor of k pixels along each axis
  never needs more than k * k. With ``num_classes=None`` labels are *ids*, of instances or supervoxels: any number of
  their type, negative ones too, and each counts unless ``ignore_index`` names it. A GPU goes through the ids under a
  pixel one by one: noise of a thousand under each takes as many times as long as an object.
* **Size**: ``(h, w)`` of the output in pixels, ints of Python or NumPy.
* **Values** of labels and boxes are checked on the CPU always, on a GPU (where it costs a synchronisation) with
  ``TRITONSOFT_VALIDATE=1`` or, where a function takes it, ``validate=True``; unchecked labels out of range carry no
  mass.
* **Backend**: ``None`` picks by device (see `backend_info`); ``"reference"``, ``"numba"`` or ``"triton"`` forces one.
* **Types of tensors**: those that only carry notes along, such as torchvision's `tv_tensors` and MONAI's `MetaTensor`,
  are read as their data, and plain tensors come back.
* **Errors**: TypeError or ValueError that names the argument, what it got and what it wanted.

Method: "Soft labelling for semantic segmentation: Bringing coherence to label down-sampling", arXiv 2302.13961.
"""

import itertools
from collections.abc import Sequence
from typing import cast, overload

import torch
from torch import Tensor

from tritonsoft._validation import (
    FLOAT_DTYPES,
    Boxes,
    check_backend,
    check_boxes,
    check_classes,
    check_fill,
    check_image,
    check_labels,
    check_planes,
    check_same_extent,
    check_sampling,
    check_size,
    check_transform,
    image_dtype,
    name_of,
)

# What rooms that are built on the public functions take from here.
from tritonsoft._validation import LABEL_DTYPES as LABEL_DTYPES
from tritonsoft._validation import SIGNED as SIGNED
from tritonsoft._validation import check_ignore_index as check_ignore_index
from tritonsoft._validation import check_num_classes as check_num_classes
from tritonsoft._validation import check_top_k as check_top_k
from tritonsoft._validation import has_tangent as has_tangent
from tritonsoft._validation import is_number as is_number
from tritonsoft._validation import is_whole_number as is_whole_number
from tritonsoft._validation import names_of as names_of
from tritonsoft._validation import plain as plain
from tritonsoft._validation import python_int as python_int
from tritonsoft._validation import smallest_label_dtype as smallest_label_dtype
from tritonsoft.backends.select import explain_backend
from tritonsoft.geometry import Filter
from tritonsoft.largest import check_classes_or_ids, keep_largest
from tritonsoft.ops import images
from tritonsoft.ops import labels as label_ops
from tritonsoft.ops import warps as warp_ops
from tritonsoft.sparse import MASS_DTYPES as MASS_DTYPES
from tritonsoft.sparse import SparseLabels
from tritonsoft.sparse import index_type as index_type


def crop_resize(
    image: Tensor,
    boxes: Boxes | None,
    size: Sequence[int],
    *,
    filter: Filter = "area",
    fill: float = 0.0,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Cut a box out of each image and resample it to ``size``; differentiable in the image.

    A soft label is a good input too: the map is linear and the same for every channel. Gradients of any order, forward
    mode and the transforms of `torch.func` work (`torch.vmap` calls once for each entry); compiled, reverse mode does.

    Args:
        image: ``(B, K, H, W)`` of float16, bfloat16, float32, float64 or uint8, in any memory layout.
        boxes: ``(B, 4)`` ``(x0, y0, x1, y1)`` in source pixel edges, or four numbers for all; mirrored where
            ``x1 < x0`` or ``y1 < y0``. None: the whole image.
        size: ``(h, w)`` of the output in pixels.
        filter: "area" (the exact average, linear interpolation where it enlarges), "triangle" (antialiased bilinear),
            "bilinear" (without antialiasing) or "nearest".
        fill: value of the pixels outside the image, in the units of the output.
        dtype: of the output; None keeps the image's. uint8 to a floating dtype divides by 255; uint8 to uint8 rounds
            half to even; a floating image cannot become uint8.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        ``(B, K, h, w)``, channels_last where the image is.

    Example:
        >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> crop_resize(image, torch.tensor([[4.0, 0.0, 0.0, 4.0]]), (2, 2))  # mirrored left-right
        tensor([[[[ 4.5000,  2.5000],
                  [12.5000, 10.5000]]]])
    """
    image = check_image(image)
    dtype = image_dtype(image, dtype)
    check_fill(fill, dtype)
    size = check_size(size)
    check_sampling(filter, backend)
    boxes = check_boxes(boxes, image.shape[0], image.device, "image")
    return images.crop_resize(backend, None, image, boxes, size, filter, float(fill), dtype)


@overload
def soft_crop_resize(
    labels: Tensor,
    boxes: Boxes | None,
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
def soft_crop_resize(
    labels: Tensor,
    boxes: Boxes | None,
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
def soft_crop_resize(
    labels: Tensor,
    boxes: Boxes | None,
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


def soft_crop_resize(
    labels: Tensor,
    boxes: Boxes | None,
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
    """Cut a box out of each label map and resample it to a soft label: `crop_resize` of its one-hot planes.

    Args:
        labels: ``(B, H, W)`` or ``(B, 1, H, W)`` of bool, uint8, int8, int16, uint16, int32, uint32 or int64.
        boxes: ``(B, 4)`` ``(x0, y0, x1, y1)`` in source pixel edges, or four numbers for all; mirrored where
            ``x1 < x0`` or ``y1 < y0``; the outside has no mass. None: the whole label map.
        size: ``(h, w)`` of the output in pixels.
        num_classes: C, at least 1; None with ``top_k``: labels are ids, any number of their type is one.
        ignore_index: the label of pixels that carry no mass; None is 255, and an error where C > 255. Of ids None is
            none.
        filter: "area" (the exact average, linear interpolation where it enlarges), "triangle" (antialiased bilinear),
            "bilinear" (without antialiasing) or "nearest".
        dtype: of the soft label: float16, bfloat16, float32 or float64; of a `SparseLabels` any but float64.
        top_k: keep the k largest classes of each pixel alone, 1 to C; of ids any number; None keeps all.
        validate: check the values of labels and boxes on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        ``(B, C, h, w)``, contiguous; with ``top_k`` a `SparseLabels` of that shape. Of ids its ``index`` holds the ids,
        in the labels' type, and its ``num_classes`` is None.

    Example:
        >>> labels = torch.tensor([[[0, 0, 1, 1],
        ...                         [0, 1, 1, 255]]])
        >>> soft_crop_resize(labels, None, (1, 2), num_classes=2)
        tensor([[[[0.7500, 0.0000]],
        <BLANKLINE>
                 [[0.2500, 0.7500]]]])
        >>> soft_crop_resize(labels, None, (1, 2), num_classes=150, top_k=2)
        SparseLabels(shape=(1, 150, 1, 2), k=2, dtype=torch.float32, device='cpu')
    """
    labels = check_labels(labels)
    num_classes, ignore_index = check_classes_or_ids(num_classes, top_k, ignore_index, validate, dtype)
    size = check_size(size)
    check_sampling(filter, backend)
    boxes = check_boxes(boxes, labels.shape[0], labels.device, "labels")
    if top_k is None:
        assert num_classes is not None
        assert ignore_index is not None
        return label_ops.soft_crop_resize(
            backend, validate, labels, boxes, size, num_classes, ignore_index, filter, dtype
        )
    return keep_largest(
        label_ops.soft_crop_resize_top,
        label_ops.top_ids,
        backend,
        validate,
        labels,
        boxes,
        size,
        num_classes,
        top_k,
        ignore_index,
        filter,
        dtype,
    )


def soft_planes(
    planes: Tensor,
    boxes: Boxes | None,
    size: Sequence[int],
    *,
    transform: Tensor | None = None,
    ignore_index: int = 255,
    filter: Filter = "area",
    dtype: torch.dtype = torch.float32,
    validate: bool | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Planes of 0 and 1, which may overlap, as masses: of each class how much of a footprint is of it, and is known.

    Each plane is a label map of two classes, resampled as `soft_crop_resize` does: exactly where the image is, with no
    mass for ignored pixels and padding. `tritonsoft.soft_binary_cross_entropy` takes both results.

    Args:
        planes: ``(B, C, H, W)``, of each class 1 where a pixel is of it, 0 where not, and ``ignore_index`` where nobody
            knows; of bool or the integer types of a label map.
        boxes: ``(B, 4)`` in source pixel edges, of all planes of a sample; None is the whole.
        size: ``(h, w)`` of the output.
        transform: instead of boxes, a matrix ``(B, 3, 3)`` or a field ``(B, h, w, 2)``; see `tritonsoft.warping`.
        ignore_index: what stands where a class is not known.
        filter: "area" (the exact average, linear interpolation where it enlarges), "triangle" (antialiased bilinear),
            "bilinear" (without antialiasing) or "nearest".
        dtype: of the masses: float16, bfloat16, float32 or float64.
        validate: check the values of planes, boxes and transform on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        The masses of the classes, and what is known of each, ``(B, C, h, w)``; of a pixel that is wholly known that
        is 1.

    Example:
        >>> planes = torch.tensor([[[[1, 1, 0, 255]], [[1, 0, 0, 0]]]], dtype=torch.uint8)
        >>> soft, mass = soft_planes(planes, None, (1, 2))
        >>> soft.flatten().tolist(), mass.flatten().tolist()
        ([1.0, 0.0, 0.5, 0.0], [1.0, 0.5, 1.0, 1.0])
    """
    planes = check_planes(planes)
    _, ignore_index = check_classes(2, ignore_index, validate, dtype, "dtype")
    size = check_size(size)
    check_sampling(filter, backend)
    batch = planes.shape[0]
    boxes = check_boxes(boxes, batch, planes.device, "planes")
    if transform is not None:
        if boxes is not None:
            raise ValueError("transform must be None where boxes are given, got both")
        transform = check_transform(transform, size, batch, planes.device, "planes")
        masses = warp_ops.warp_planes(backend, validate, planes, transform, size, ignore_index, filter, dtype)
    else:
        masses = label_ops.soft_planes(backend, validate, planes, boxes, size, ignore_index, filter, dtype)
    absent, present = masses.unbind(2)
    return present, absent + present


def crop_resize_pair(
    image: Tensor,
    labels: Tensor,
    boxes: Boxes | None,
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
    """`crop_resize` of the images and `soft_crop_resize` of their label maps with the same boxes: one launch on a GPU.

    Args:
        image: ``(B, K, H, W)`` of float16, bfloat16, float32, float64 or uint8, in any memory layout.
        labels: ``(B, H, W)`` or ``(B, 1, H, W)`` of bool or integers, of the image's height and width.
        boxes: ``(B, 4)`` ``(x0, y0, x1, y1)`` in source pixel edges, or four numbers for all; mirrored where
            ``x1 < x0`` or ``y1 < y0``; the outside is ``fill`` and has no mass. None: the whole image.
        size: ``(h, w)`` of both outputs.
        num_classes: C, at least 1.
        ignore_index: the label of pixels that carry no mass; None is 255, and an error where C > 255.
        filter: "area" (the exact average, linear interpolation where it enlarges), "triangle" (antialiased bilinear),
            "bilinear" (without antialiasing) or "nearest".
        fill: value of the image outside itself, in the units of the output.
        dtype: of the image output; None keeps the image's; uint8 to a floating dtype divides by 255.
        soft_dtype: of the soft label: float16, bfloat16, float32 or float64.
        validate: check the values of labels and boxes on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        The image ``(B, K, h, w)`` and the soft label ``(B, C, h, w)``.

    Example:
        >>> image, labels = torch.rand(2, 3, 64, 128), torch.randint(0, 19, (2, 64, 128))
        >>> boxes = torch.tensor([[0.0, 0.0, 128.0, 64.0], [96.5, 8.0, 32.5, 40.0]])
        >>> small, soft = crop_resize_pair(image, labels, boxes, (16, 32), num_classes=19)
        >>> small.shape, soft.shape
        (torch.Size([2, 3, 16, 32]), torch.Size([2, 19, 16, 32]))
    """
    image = check_image(image)
    labels = check_labels(labels)
    dtype = image_dtype(image, dtype)
    check_fill(fill, dtype)
    num_classes, ignore_index = check_classes(num_classes, ignore_index, validate, soft_dtype, "soft_dtype")
    check_same_extent(image, labels)
    size = check_size(size)
    check_sampling(filter, backend)
    boxes = check_boxes(boxes, image.shape[0], image.device, "image")
    return label_ops.crop_resize_pair(
        backend,
        validate,
        image,
        labels,
        boxes,
        size,
        num_classes,
        ignore_index,
        filter,
        float(fill),
        dtype,
        soft_dtype,
    )


def resize(
    image: Tensor,
    size: Sequence[int],
    *,
    filter: Filter = "area",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Resample whole images to ``size``: `crop_resize` with the whole image as the box.

    Args:
        image: ``(B, K, H, W)`` of float16, bfloat16, float32, float64 or uint8, in any memory layout.
        size: ``(h, w)`` of the output in pixels.
        filter: "area" (the exact average, linear interpolation where it enlarges), "triangle" (antialiased bilinear),
            "bilinear" (without antialiasing) or "nearest".
        dtype: of the output; None keeps the image's. uint8 to a floating dtype divides by 255; uint8 to uint8 rounds
            half to even; a floating image cannot become uint8.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        ``(B, K, h, w)``, channels_last where the image is; differentiable in the image.

    Example:
        >>> resize(torch.tensor([[[[0, 100], [200, 201]]]], dtype=torch.uint8), (1, 1))
        tensor([[[[125]]]], dtype=torch.uint8)
    """
    return crop_resize(image, None, size, filter=filter, dtype=dtype, backend=backend)


@overload
def soft_resize(
    labels: Tensor,
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
def soft_resize(
    labels: Tensor,
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
def soft_resize(
    labels: Tensor,
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


def soft_resize(
    labels: Tensor,
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
    """Resample whole label maps to soft labels: `soft_crop_resize` with the whole label map as the box.

    Args:
        labels: ``(B, H, W)`` or ``(B, 1, H, W)`` of bool, uint8, int8, int16, uint16, int32, uint32 or int64.
        size: ``(h, w)`` of the output in pixels.
        num_classes: C, at least 1.
        ignore_index: the label of pixels that carry no mass; None is 255, and an error where C > 255.
        filter: "area" (the exact average, linear interpolation where it enlarges), "triangle" (antialiased bilinear),
            "bilinear" (without antialiasing) or "nearest".
        dtype: of the soft label: float16, bfloat16, float32 or float64; of a `SparseLabels` any but float64.
        top_k: keep the k largest classes of each pixel alone, 1 to C; None keeps all.
        validate: check the values of labels on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        ``(B, C, h, w)``, contiguous; with ``top_k`` a `SparseLabels` of that shape.

    Example:
        >>> soft_resize(torch.tensor([[[0, 1, 1]]], dtype=torch.uint8), (1, 2), num_classes=2)[0, :, 0]
        tensor([[0.6667, 0.0000],
                [0.3333, 1.0000]])
    """
    return soft_crop_resize(
        labels,
        None,
        size,
        num_classes,
        ignore_index=ignore_index,
        filter=filter,
        dtype=dtype,
        top_k=top_k,
        validate=validate,
        backend=backend,
    )


def to_soft(
    labels: Tensor,
    num_classes: int,
    *,
    ignore_index: int | None = None,
    dtype: torch.dtype = torch.float32,
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """One-hot mass at the label map's own size: 1 for a pixel's class, 0 elsewhere and for ignored pixels.

    Args:
        labels: ``(B, H, W)`` or ``(B, 1, H, W)`` of bool, uint8, int8, int16, uint16, int32, uint32 or int64.
        num_classes: C, at least 1.
        ignore_index: the label of pixels that carry no mass; None is 255, and an error where C > 255.
        dtype: of the soft label: float16, bfloat16, float32 or float64.
        validate: check the values of labels on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        ``(B, C, H, W)``, contiguous.

    Example:
        >>> to_soft(torch.tensor([[[0, 1, 255]]]), num_classes=2)[0, :, 0]
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    labels = check_labels(labels)
    return soft_crop_resize(
        labels,
        None,
        labels.shape[1:],
        num_classes,
        ignore_index=ignore_index,
        dtype=dtype,
        validate=validate,
        backend=backend,
    )


def soft_pyramid(
    labels: Tensor,
    num_classes: int,
    factors: Sequence[int] = (2, 4, 8, 16),
    *,
    ignore_index: int | None = None,
    dtype: torch.dtype = torch.float32,
    validate: bool | None = None,
    backend: str | None = None,
) -> list[Tensor]:
    """Soft labels of whole label maps at several sizes, for heads at several depths: `soft_resize` at each factor.

    Factors that double, as the default's, take one read of the label map; others, and on a GPU more than 255 classes or
    a first factor other than 1, 2, 4 and 8, one for each.

    Args:
        labels: ``(B, H, W)`` or ``(B, 1, H, W)``; every factor divides H and W.
        num_classes: C, at least 1.
        factors: ints, at least 1, in ascending order.
        ignore_index: the label of pixels that carry no mass; None is 255, and an error where C > 255.
        dtype: of the soft labels: float16, bfloat16, float32 or float64.
        validate: check the values of labels on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        A soft label ``(B, C, H / factor, W / factor)`` for each factor.

    Example:
        >>> fine, coarse = soft_pyramid(torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 1]]]), 2, factors=(1, 2))
        >>> fine.shape, coarse[0, :, 0]
        (torch.Size([1, 2, 2, 4]), tensor([[0.7500, 0.0000],
                [0.2500, 1.0000]]))
    """
    labels = check_labels(labels)
    num_classes, ignore_index = check_classes(num_classes, ignore_index, validate, dtype, "dtype")
    check_backend(backend)
    if not isinstance(factors, (tuple, list)) or not factors or not all(map(is_whole_number, factors)):
        raise TypeError(f"factors must be ints, at least one, got {factors!r}")
    factors = [python_int(factor) for factor in factors]
    if factors[0] < 1 or any(fine >= coarse for fine, coarse in itertools.pairwise(factors)):
        raise ValueError(f"factors must be at least 1, in ascending order, got {tuple(factors)}")
    height, width = labels.shape[1:]
    for factor in factors:
        if height % factor or width % factor:
            raise ValueError(
                f"factors must divide the height and width of labels, ({height}, {width}), got {factor}; "
                "soft_resize takes any size"
            )
    return label_ops.soft_pyramid(backend, validate, labels, num_classes, factors, ignore_index, dtype)


def class_areas(
    labels: Tensor,
    boxes: Boxes | None,
    num_classes: int,
    *,
    ignore_index: int | None = None,
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """The area that each class covers in boxes of a label map, in source pixels, in one pass over them.

    A pixel counts as much as its square and the box overlap, so fractional boxes are exact, also those smaller than a
    pixel. Ignored pixels and the outside of the image count nothing: the sum over the classes is the labelled area.

    Args:
        labels: label map ``(B, H, W)`` or ``(B, 1, H, W)``.
        boxes: ``(B, 4)``, one for each sample, or a tensor ``(B, N, 4)``, several for each, which may overlap; None is
            the whole image. A mirrored box has the areas of the upright one.
        num_classes: C.
        ignore_index: the label of pixels that count nothing; None is 255, and an error where C > 255.
        validate: check the values of labels and boxes on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        ``(B, C)``, or ``(B, N, C)`` of several boxes; float32, in which whole pixels are exact up to 2^24 of a class.
        The same bits in every call: nothing is added in an order that chance decides.

    Example:
        >>> labels = torch.tensor([[[0, 0, 1], [0, 255, 1]]])
        >>> class_areas(labels, None, 2)
        tensor([[3., 2.]])
        >>> class_areas(labels, torch.tensor([[[0.0, 0.0, 2.5, 1.0], [1.5, 0.5, 9.0, 9.0]]]), 2)
        tensor([[[2.0000, 0.5000],
                 [0.2500, 1.5000]]])
    """
    labels = check_labels(labels)
    num_classes, ignore_index = check_classes(num_classes, ignore_index, validate, torch.float32, "dtype")
    check_backend(backend)
    batch, number, several = labels.shape[0], 1, False
    if isinstance(boxes, Tensor) and boxes.ndim == 3:
        number, several = boxes.shape[1], True
        if tuple(boxes.shape) != (batch, number, 4):
            raise ValueError(f"boxes must have shape (B, 4) or (B, N, 4) with B = {batch}, got {tuple(boxes.shape)}")
        boxes = boxes.reshape(batch * number, 4)
    boxes = check_boxes(boxes, batch * number, labels.device, "labels")
    per_sample = None if boxes is None else boxes.view(batch, number, 4)
    areas = label_ops.class_areas(backend, validate, labels, per_sample, num_classes, ignore_index)
    return areas if several else areas[:, 0]


def normalize(soft: Tensor) -> Tensor:
    """Turn mass into distributions: each pixel's masses divided by their sum, and 0 where there is no mass.

    Args:
        soft: ``(B, C, h, w)``, non-negative floats.

    Returns:
        ``(B, C, h, w)`` in the dtype of ``soft``, which sums to 1 over the classes wherever the pixel has any mass;
        differentiable.

    Example:
        >>> soft = torch.tensor([[[[0.25, 0.0]], [[0.5, 0.0]]]])  # (1, 2, 1, 2): half known, unknown
        >>> normalize(soft)[0, :, 0]
        tensor([[0.3333, 0.0000],
                [0.6667, 0.0000]])
    """
    if not isinstance(soft, Tensor):
        raise TypeError(f"soft must be a tensor, got {type(soft).__name__}")
    if soft.dtype not in FLOAT_DTYPES:
        raise TypeError(f"soft must be {names_of(FLOAT_DTYPES)}, got {name_of(soft.dtype)}")
    if soft.ndim != 4:
        raise ValueError(f"soft must have shape (B, C, h, w), got {tuple(soft.shape)}")
    soft = plain(soft)
    mass = soft.sum(1, keepdim=True)  # (B, 1, h, w)
    return soft / torch.where(mass > 0, mass, 1)


def backend_info() -> dict[str, tuple[str, str]]:
    """Which backend each device of this machine gets, and why.

    Returns:
        A dictionary from device (``"cpu"``, ``"cuda:0"``, …) to the backend's name and the reason.

    Example:
        >>> name, reason = backend_info()["cpu"]
        >>> name in ("reference", "numba", "triton")
        True
    """
    devices = ["cpu"]
    devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices += [f"xpu:{index}" for index in range(torch.xpu.device_count())]
    return {device: cast(tuple[str, str], explain_backend(device.split(":")[0], forced=None)) for device in devices}
