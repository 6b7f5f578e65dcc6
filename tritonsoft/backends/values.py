"""Looks at values in eager PyTorch, for backends that do not check them while they read them."""

import torch
from torch import Tensor

from tritonsoft.backends import reference
from tritonsoft.geometry import MASS_TOLERANCE

# PyTorch 2.11 can copy and view these, but neither compare nor select them.
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64}


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_bits(tensor: Tensor) -> Tensor:
    """The same memory as integers, which every PyTorch can select: for what moves elements and reads none."""
    return tensor.view(_BITS[tensor.element_size()])


def comparable(labels: Tensor) -> Tensor:
    """The labels in a type that PyTorch computes with."""
    return labels.to(_WIDER.get(labels.dtype, labels.dtype))


def labels_in_range(labels: Tensor, num_classes: int, ignore_index: int) -> bool:
    """Whether every label lies in ``0 .. num_classes - 1`` or is ``ignore_index``."""
    return not bool(bad_labels(labels, num_classes, ignore_index).any())


def bad_labels(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Where a label map holds what is neither a class nor ``ignore_index``."""
    # Out-of-range scalars would wrap in a narrow dtype: compare with bounds that the dtype can hold.
    info = torch.iinfo(labels.dtype)
    labels = comparable(labels)
    bad = labels < 0
    if num_classes <= info.max:
        bad |= labels >= num_classes
    if info.min <= ignore_index <= info.max:
        bad &= labels != ignore_index
    return bad


def ids_are_known(labels: Tensor, ids: Tensor | None, classes: Tensor, first_id: int) -> bool:
    """Whether every label has a class in a table (`reference.remap_labels`)."""
    return bool(reference.remap_labels(labels, ids, classes, first_id)[1].all())


def is_subdistribution(values: Tensor) -> bool:
    """Whether the classes of every pixel of ``(B, C, h, w)`` are at least 0 and together at most 1; NaN is not.

    Within the tolerance on both sides: what is below 0 counts as 0, and so adds nothing to the total.
    """
    return bool((values >= -MASS_TOLERANCE).all() & (total_mass(values) <= 1 + MASS_TOLERANCE).all())


def are_binary_masses(soft: Tensor, known: Tensor | None) -> bool:
    """Whether every mass of ``(B, C, h, w)`` is at least 0 and at most what is known, which is at most 1; NaN is not.

    Within the tolerance on both sides.
    """
    limit = 1 if known is None else known.double()
    in_range = (soft >= -MASS_TOLERANCE) & (soft.double() <= limit + MASS_TOLERANCE)
    if known is not None:
        in_range &= (known >= -MASS_TOLERANCE) & (known <= 1 + MASS_TOLERANCE)
    return bool(in_range.all())


def total_mass(values: Tensor) -> Tensor:
    """The sum over the classes of what is above 0."""
    return values.clamp(min=0).sum(1, dtype=torch.float64)
