"""Looks at values in eager PyTorch, for backends that do not check them while they read them."""

from torch import Tensor

from tritonsoft.checks import are_shares, bad_labels


def labels_in_range(labels: Tensor, num_classes: int, ignore_index: int) -> bool:
    """Whether every label lies in ``0 .. num_classes - 1`` or is ``ignore_index``."""
    return not bool(bad_labels(labels, num_classes, ignore_index).any())


def masses_in_range(soft: Tensor) -> bool:
    """Whether the masses of every pixel are those of a soft label."""
    return are_shares(soft)
