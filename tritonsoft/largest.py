"""What `tritonsoft.soft_crop_resize` and `tritonsoft.soft_warp` share where they keep a few classes of each pixel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tritonsoft._validation import (
    check_classes,
    check_count,
    check_ignore_index,
    check_top_k,
    check_validate,
    name_of,
    names_of,
)
from tritonsoft.geometry import Filter
from tritonsoft.sparse import MASS_DTYPES, SparseLabels, index_type

Kept = tuple[Tensor, Tensor, Tensor]


def check_classes_or_ids(
    num_classes: int | None, top_k: Any, ignore_index: int | None, validate: bool | None, dtype: torch.dtype
) -> tuple[int | None, int | None]:
    """The number of classes and the ignore index; both may be None where ids are kept."""
    if num_classes is not None or top_k is None:
        return check_classes(num_classes, ignore_index, validate, dtype, "dtype")
    check_validate(validate)
    return None, None if ignore_index is None else check_ignore_index(ignore_index, None)


def keep_largest(
    of_classes: Callable[..., Kept],
    of_ids: Callable[..., Kept],
    backend: str | None,
    validate: bool | None,
    labels: Tensor,
    where: Tensor | None,
    size: Sequence[int],
    num_classes: int | None,
    top_k: int,
    ignore_index: int | None,
    filter: Filter,
    dtype: torch.dtype,
) -> SparseLabels:
    """The operator for classes or that for ids, with boxes or a transform, and what it keeps as one label."""
    if dtype not in MASS_DTYPES:
        got = name_of(dtype) if isinstance(dtype, torch.dtype) else repr(dtype)
        raise TypeError(f"dtype of a SparseLabels must be {names_of(MASS_DTYPES)}, got {got}")
    if num_classes is None:
        top_k = check_count(top_k, "top_k")
        kept = of_ids(backend, validate, labels, where, size, top_k, ignore_index, filter, dtype)
    else:
        top_k, index_dtype = check_top_k(top_k, num_classes, "top_k"), index_type(num_classes)
        kept = of_classes(
            backend, validate, labels, where, size, num_classes, top_k, ignore_index, filter, index_dtype, dtype
        )
    return SparseLabels(*kept, num_classes)
