"""Samples of a batch mixed with each other, by numbers that are given: CutMix, MixUp and ClassMix as functions.

Each sample has a *partner*, another one of the batch, whose pixels it gets: those in a box, those of some classes, or
a share of all. One pass writes the output; partners are read as they came in. What draws the numbers, and mixes images
and labels alike, is `tritonsoft.augmentation.RandomCutMix`, `tritonsoft.augmentation.RandomMixUp` and
`tritonsoft.augmentation.RandomClassMix`.

``partners`` are ``(B,)`` integers, numbers of samples; who has itself for a partner stays as it is. They, weights and
labels are checked on the CPU, and on a GPU with ``TRITONSOFT_VALIDATE=1``; otherwise a partner there that is no sample
of the batch counts as the sample itself.
"""

from typing import Any

import torch
from torch import Tensor

from tritonsoft._validation import (
    FLOAT_DTYPES,
    IMAGE_DTYPES,
    INTEGER_DTYPES,
    check_backend,
    check_classes,
    check_labels,
    check_same_extent,
    name_of,
    names_of,
    plain,
    refuse_derivative,
)
from tritonsoft.ops import mixing as mixing_ops

_PIXELS = tuple(dict.fromkeys((*IMAGE_DTYPES, *INTEGER_DTYPES, torch.uint64, torch.bool)))


def cut_mix(images: Tensor, partners: Tensor, boxes: Tensor, *, backend: str | None = None) -> Tensor:
    """Paste a box of its partner into each sample, bit for bit (CutMix, Yun et al., arXiv 1905.04899).

    Args:
        images: ``(B, K, H, W)`` of floats, integers or bool, in any memory layout: pictures, label maps, soft labels.
        partners: ``(B,)`` integers, on the images' device.
        boxes: ``(B, 4)`` integers, on the images' device: x0, y0, x1, y1 in pixels, the edges of whole ones. What lies
            beyond the image is nowhere; where an edge is not after the other the box is empty.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        ``(B, K, H, W)`` of the images' type and memory format. Differentiable in the images.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes or devices that do not fit, or partners out of range.

    Example:
        >>> images = torch.tensor([0, 1]).view(2, 1, 1, 1).expand(2, 1, 2, 4)
        >>> cut_mix(images, torch.tensor([1, 0]), torch.tensor([[0, 0, 3, 1], [2, 0, 4, 2]]))[:, 0]
        tensor([[[1, 1, 1, 0],
                 [0, 0, 0, 0]],
        <BLANKLINE>
                [[1, 1, 0, 0],
                 [1, 1, 0, 0]]])
    """
    images = _check_images(images, _PIXELS)
    partners = _check_partners(partners, images)
    _check_numbers(boxes, "boxes", (images.shape[0], 4), "(B, 4)", INTEGER_DTYPES, images)
    check_backend(backend)
    return mixing_ops.paste(backend, None, images, partners, plain(boxes).long(), None, None)


def class_mix(
    images: Tensor, partners: Tensor, labels: Tensor, chosen: Tensor, *, backend: str | None = None
) -> Tensor:
    """Paste into each sample the pixels of its partner that are of chosen classes (ClassMix, arXiv 2007.07936).

    Args:
        images: ``(B, K, H, W)`` of floats, integers or bool, in any memory layout: pictures, label maps, soft labels.
        partners: ``(B,)`` integers, on the images' device.
        labels: label map ``(B, H, W)`` or ``(B, 1, H, W)`` of the images' size and device, which says what is pasted of
            whom. A label that is no class, as that of ignored pixels, is never pasted.
        chosen: ``(B, C)`` bool, on the images' device: the classes that each sample gets of its partner.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        ``(B, K, H, W)`` of the images' type and memory format. Differentiable in the images.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes or devices that do not fit, or partners out of range.

    Example:
        >>> labels = torch.tensor([[[0, 0, 1, 1]], [[2, 3, 3, 255]]])
        >>> chosen = torch.tensor([[False, False, False, True], [True, False, False, False]])
        >>> class_mix(labels[:, None], torch.tensor([1, 0]), labels, chosen)[:, 0]
        tensor([[[  0,   3,   3,   1]],
        <BLANKLINE>
                [[  0,   0,   3, 255]]])
    """
    images = _check_images(images, _PIXELS)
    partners = _check_partners(partners, images)
    labels = check_labels(labels)
    check_same_extent(images, labels, "images'")
    num_classes = chosen.shape[1] if isinstance(chosen, Tensor) and chosen.ndim == 2 else 1
    _check_numbers(chosen, "chosen", (images.shape[0], max(num_classes, 1)), "(B, C)", (torch.bool,), images)
    check_backend(backend)
    return mixing_ops.paste(backend, None, images, partners, None, labels, plain(chosen))


def mix_up(images: Tensor, partners: Tensor, weight: Tensor, *, backend: str | None = None) -> Tensor:
    """Blend each sample with its partner: ``(1 - weight) * own + weight * theirs`` (mixup, arXiv 1710.09412).

    A weight of 0 gives the sample and one of 1 its partner, to the bit.

    Args:
        images: ``(B, K, H, W)``, floating, in any memory layout: pictures, or soft labels, whose masses add up so too.
        partners: ``(B,)`` integers, on the images' device.
        weight: ``(B,)``, floating, on the images' device: the partner's share, from 0 to 1.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        ``(B, K, H, W)`` of the images' type and memory format, computed in float32 at least and rounded once.
        Differentiable in the images.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes or devices that do not fit, partners or weights out of range.

    Example:
        >>> images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
        >>> mix_up(images, torch.tensor([1, 0]), torch.tensor([0.25, 0.5])).flatten()
        tensor([0.2500, 0.5000])
    """
    images = _check_images(images, FLOAT_DTYPES)
    partners, weight = _check_partners(partners, images), _check_weight(weight, images)
    check_backend(backend)
    return mixing_ops.blend(backend, None, images, partners, weight)


def mix_up_labels(
    labels: Tensor,
    partners: Tensor,
    weight: Tensor,
    num_classes: int,
    *,
    ignore_index: int | None = None,
    dtype: torch.dtype = torch.float32,
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """`mix_up` of the one-hot masses of label maps, which are never made.

    Ignored pixels have no mass, so where one of the two is unknown the pixel keeps the other's share alone.

    Args:
        labels: label map ``(B, H, W)`` or ``(B, 1, H, W)``.
        partners: ``(B,)`` integers, on the labels' device.
        weight: ``(B,)``, floating, on the labels' device: the partner's share, from 0 to 1.
        num_classes: C.
        ignore_index: the label of pixels that carry no mass; None is 255, and an error where C > 255.
        dtype: of the soft label: float16, bfloat16, float32 or float64.
        validate: check the values on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        A soft label ``(B, C, H, W)``.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes or devices that do not fit, partners, weights or labels out of range.

    Example:
        >>> labels = torch.tensor([[[0, 0]], [[1, 255]]])
        >>> mix_up_labels(labels, torch.tensor([1, 0]), torch.tensor([0.25, 0.5]), 2)[:, :, 0]
        tensor([[[0.7500, 0.7500],
                 [0.2500, 0.0000]],
        <BLANKLINE>
                [[0.5000, 0.5000],
                 [0.5000, 0.0000]]])
    """
    labels = check_labels(labels)
    num_classes, ignore_index = check_classes(num_classes, ignore_index, validate, dtype, "dtype")
    partners, weight = _check_partners(partners, labels), _check_weight(weight, labels)
    check_backend(backend)
    return mixing_ops.blend_labels(backend, validate, labels, partners, weight, num_classes, ignore_index, dtype)


def _check_images(images: Any, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    if images.dtype not in dtypes:
        raise TypeError(f"images must be {names_of(dtypes)}, got {name_of(images.dtype)}")
    if images.ndim != 4:
        raise ValueError(f"images must have shape (B, K, H, W), got {tuple(images.shape)}")
    return plain(images)


def _check_partners(partners: Any, images: Tensor) -> Tensor:
    _check_numbers(partners, "partners", (images.shape[0],), "(B,)", INTEGER_DTYPES, images)
    return plain(partners).long()


def _check_weight(weight: Any, images: Tensor) -> Tensor:
    _check_numbers(weight, "weight", (images.shape[0],), "(B,)", FLOAT_DTYPES, images)
    refuse_derivative(weight, "weight", "the operators differentiate in the images only")
    return plain(weight)


def _check_numbers(
    numbers: Any, name: str, shape: tuple[int, ...], letters: str, dtypes: tuple[torch.dtype, ...], images: Tensor
) -> None:
    """Numbers of each sample."""
    if not isinstance(numbers, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(numbers).__name__}")
    if numbers.dtype not in dtypes:
        raise TypeError(f"{name} must be {names_of(dtypes)}, got {name_of(numbers.dtype)}")
    if tuple(numbers.shape) != shape:
        raise ValueError(f"{name} must have shape {letters} with B = {images.shape[0]}, got {tuple(numbers.shape)}")
    if numbers.device != images.device:
        raise ValueError(f"{name} must be on the device of the pixels, {images.device}, got {numbers.device}")
