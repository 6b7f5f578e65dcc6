"""The module that turns ids into classes: a change of values, where all others of this package move pixels."""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

import tritonsoft as ts
from tritonsoft.augmentation._kornia import Params, PointwiseHooks
from tritonsoft.augmentation.masks import SoftLabel, check_mask, whole_numbers
from tritonsoft.geometry import NO_CLASS
from tritonsoft.remapping import Unknown, ignore_index_of


class RemapLabels(PointwiseHooks):
    """Turn the ids of masks into classes: `tritonsoft.remap_labels` as a module for pipelines.

    Images, boxes and keypoints stay as they are, and nothing is random. In `AugmentationSequential` it does not end a
    run: ids are replaced in the mask as it came in, before its pixels are resampled, and what lies outside of it is
    never looked up. It comes before the modules that make soft labels. ``inverse`` moves masks back to where they
    were, and leaves them classes: several ids may have become one.

    Args:
        table: the class of each id, as a mapping, a `tritonsoft.LabelTable`, or an integer tensor ``(N,)``, read here,
            whose entry k is the class of id k (-2^31 is none).
        ignore_index: what ids become that the table does not have; None: 255, and an error where the table has classes
            above 255.
        unknown: "ignore", or "error" for a ValueError where the table does not have an id; on a GPU only with
            ``TRITONSOFT_VALIDATE=1``.

    Shape:
        Mask: label map ``(B, H, W)``, ``(B, 1, H, W)`` or ``(H, W)`` of ids, of any type but uint64. Gives the same
        shape and type; a ValueError where that type cannot hold the classes and ``ignore_index``.

    Example:
        >>> import tritonsoft.augmentation as TA
        >>> augment = TA.AugmentationSequential(
        ...     TA.RandomHorizontalFlip(p=1.0),
        ...     TA.RemapLabels({7: 0, 8: 1}),
        ...     TA.Resize((1, 2), num_classes=2),
        ...     data_keys=["image", "mask"],
        ... )
        >>> ids = torch.tensor([[[7, 7, 8, 33]]], dtype=torch.uint8)
        >>> image, soft = augment(torch.rand(1, 3, 1, 4), ids)
        >>> soft[0, :, 0]
        tensor([[0.0000, 1.0000],
                [0.5000, 0.0000]])
    """

    def __init__(
        self,
        table: Mapping[int, int] | ts.LabelTable | Tensor,
        ignore_index: int | None = None,
        unknown: Unknown = "ignore",
    ) -> None:
        super().__init__(p=1.0, keepdim=True)
        if isinstance(table, Tensor):
            if table.ndim != 1 or table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
                raise TypeError(f"table must be integers (N,), got {table.dtype} {tuple(table.shape)}")
            table = {id: value for id, value in enumerate(table.tolist()) if value != NO_CLASS}
        if unknown not in ("ignore", "error"):
            raise ValueError(f"unknown must be 'ignore' or 'error', got {unknown!r}")
        self.table = table if isinstance(table, ts.LabelTable) else ts.LabelTable(table)
        self.ignore_index, self.unknown = ignore_index_of(self.table, ignore_index), unknown

    def __repr__(self) -> str:
        ignore = f"ignore_index={self.ignore_index}, unknown={self.unknown!r}"
        return f"{type(self).__name__}({self.table!r}, {ignore})"

    def remap(self, mask: Tensor) -> Tensor:
        """A ``mask`` of ids as one of classes, of its shape and type."""
        check_mask(mask)
        if isinstance(mask, (SoftLabel, ts.SparseLabels)):
            self.refuse_soft_label()
        if mask.ndim not in (2, 3) and not (mask.ndim == 4 and mask.shape[1] == 1):
            raise ValueError(
                f"mask must be a label map (B, H, W), (B, 1, H, W) or (H, W) of ids, got {tuple(mask.shape)}"
            )
        self._check_fit(mask.dtype)
        ids, dtype = mask, mask.dtype
        if mask.is_floating_point():
            ids, dtype = whole_numbers(mask, torch.int64, "mask must hold whole numbers, ids"), torch.int32
        elif mask.dtype == torch.bool:
            dtype = torch.uint8
        remapped = ts.remap_labels(ids, self.table, ignore_index=self.ignore_index, unknown=self.unknown, dtype=dtype)
        return remapped.to(mask.dtype)

    def refuse_soft_label(self) -> NoReturn:
        raise ValueError("RemapLabels needs ids, got a soft label: it must stand before the module with num_classes")

    def _check_fit(self, dtype: torch.dtype) -> None:
        numbers = (self.table.smallest_class, self.table.largest_class, self.ignore_index)
        if dtype == torch.bool:
            low, high = 0, 1
        elif dtype.is_floating_point:
            high = round(2 / torch.finfo(dtype).eps)
            low = -high
        elif dtype == torch.uint64:
            raise TypeError("mask must not be uint64: give the ids as int64")
        else:
            low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        if not low <= min(numbers) <= max(numbers) <= high:
            raise ValueError(
                f"mask must have a type that holds the classes {numbers[0]} to {numbers[1]} and "
                f"ignore_index={numbers[2]}, got {dtype}, which goes from {low} to {high}"
            )

    # --- kornia's contract ------------------------------------------------------------------------------------------

    def apply_transform(
        self, input: Tensor, params: Params, flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        return input

    def transform_masks(
        self, input: Tensor, params: Params, flags: dict[str, Any], transform: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        return self.remap(input)
