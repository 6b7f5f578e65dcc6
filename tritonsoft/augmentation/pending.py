"""Images and masks on their way through a container's modules, and what is still to be done to them.

A module that says where positions come from resamples nothing: it adds its view to the `FusedGroup` of each image and
mask, which become a `PendingInput`. `materialize` reads the pixels, once for a whole group, and an image together with
its label map.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast

import torch
from kornia.constants import DataKey
from torch import Tensor

import tritonsoft as ts
from tritonsoft.augmentation.masks import (
    Mask,
    asks_for_interpolation,
    batched,
    label_map,
    looks_soft,
    mask_fill,
    refuse_dense,
    resample_hard,
    resample_sparse,
    resample_to_soft,
    restore_rank,
    unmarked,
)
from tritonsoft.augmentation.sampling import sample_image, sample_pair, sample_soft
from tritonsoft.augmentation.view import Size, View

Value = Tensor | list[Tensor]
Kind = Literal["soft label", "label map", "hard planes"]
_Before = TypeVar("_Before")
_After = TypeVar("_After")


@dataclass(frozen=True)
class FusedGroup:
    """Consecutive modules, as the one view that they come to."""

    view: View
    batch: int
    num_classes: int | None  # of the members that make soft labels
    ignore_index: int
    outside: int  # what the member that pads puts into hard masks
    keepdim: bool  # kornia restores the rank where every module does
    unbatched: bool  # whether the image came without a batch
    waits: bool = False  # of a label map: whether the image's pixels, which it shall still fit, were read before

    def can_grow(self, view: View) -> bool:
        """Whether a module that shows ``view`` may join.

        Not if it would show around a label map that waits what its image has lost.
        """
        has_lost = self.waits and (self.view.crops or self.view.pads)
        return view.can_compose(self.view) and not (has_lost and view.pads)

    def then(self, other: "FusedGroup") -> "FusedGroup":
        """This group, and the other one's members after it."""
        softens = other if self.num_classes is None else self
        return replace(
            other,
            view=other.view.compose(self.view),
            num_classes=softens.num_classes,
            ignore_index=softens.ignore_index,
            outside=other.outside if other.view.pads else self.outside,
            keepdim=self.keepdim and other.keepdim,
            waits=self.waits,
        )


@dataclass(frozen=True)
class PendingInput:
    """An image or a mask, and what the modules so far have left to be done to it."""

    value: Tensor
    kind: Kind | None = None  # of a mask; None: not yet looked at
    pending_group: FusedGroup | None = None

    @property
    def size(self) -> Size:
        """(H, W) of what the modules have made of it."""
        return _size_after(self.value, self.pending_group)


@dataclass(frozen=True)
class PendingSparse:
    """A mask of a few classes of each pixel; what the modules have left to be done to it only moves pixels."""

    value: ts.SparseLabels
    pending_group: FusedGroup | None = None

    @property
    def size(self) -> Size:
        """(H, W) of what the modules have made of it."""
        return _size_after(self.value, self.pending_group)


def _size_after(value: Tensor | ts.SparseLabels, group: FusedGroup | None) -> Size:
    return (value.shape[-2], value.shape[-1]) if group is None else group.view.size


PendingInputs = PendingInput | list[PendingInput]  # a list of masks, one per sample, is a list of pending inputs


@dataclass(frozen=True)
class LabelSettings:
    """What a container and its modules say of label maps; the same for every call."""

    num_classes: int | None  # of the modules that make soft labels, which agree
    ignore_index: int
    soft_dtype: torch.dtype | None
    top_k: int | None  # how many classes of each pixel soft labels are made of; None: all
    mask_args: dict[str, Any] = field(default_factory=dict)  # the `extra_args` of masks
    soft_follows_image: bool = True  # whether soft labels are interpolated like their image in kornia's modules

    @property
    def interpolates_masks(self) -> bool:
        return asks_for_interpolation(self.mask_args)

    @property
    def fill_of_masks(self) -> float | None:
        """What `extra_args` put outside of hard masks."""
        return mask_fill(self.mask_args)

    def dtype_of_soft(self, mask: Value, image: Tensor | None) -> torch.dtype:
        """The type of the soft label made of a mask beside this image."""
        for each_mask in mask if isinstance(mask, list) else [mask]:
            if each_mask.is_floating_point():
                return self._held(each_mask.dtype)
        if self.soft_dtype is not None:
            return self.soft_dtype
        return torch.float32 if image is None or image.dtype != torch.float64 else self._held(torch.float64)

    def _held(self, dtype: torch.dtype) -> torch.dtype:
        """The type, or the largest one that the masses of a few classes can have."""
        return torch.float32 if self.top_k is not None and dtype == torch.float64 else dtype

    def classify_mask(self, given: PendingInput, batch: int, way: str) -> PendingInput:
        """The mask with its kind, which its channels tell when it comes in, and which then goes along with it."""
        if given.kind is not None:
            return given
        mask = batched(given.value, batch)
        # Of one class, floats are class ids on the way there and what the container made of them on the way back.
        masses_of_one = way == "inverse" and self.num_classes == mask.shape[1] and mask.is_floating_point()
        kind: Kind = "label map" if mask.shape[1] == 1 else "hard planes"
        if looks_soft(mask, self.num_classes) or masses_of_one:
            kind = "soft label"
            if self.top_k is not None and way == "transform":
                refuse_dense(self.top_k)
        return PendingInput(unmarked(given.value), kind, given.pending_group)


# --- materializing ---------------------------------------------------------------------------------------------------


def materialize(args: list[Any], keys: list[DataKey], labels: LabelSettings) -> list[Any]:
    """What is pending is done: one resample of each image, with the first mask that can share it, and of each mask."""
    out = list(args)
    images = [index for index, key in enumerate(keys) if key == DataKey.INPUT]
    masks = [index for index, key in enumerate(keys) if key == DataKey.MASK]
    first = args[images[0]].value if images else None
    for index in images:
        image, group = args[index].value, args[index].pending_group
        if group is None:  # a label map has waited
            continue
        resamples = not group.view.is_identity and not isinstance(group.view.fill, tuple)
        pairs = resamples and labels.top_k is None  # no operator makes an image with a few classes of each pixel
        paired = next((index for index in masks if _pairs_with(out[index], group)), None) if pairs else None
        if paired is None:
            resampled = sample_image(batched_image(image), group.view)
        else:
            dtype = labels.dtype_of_soft(args[paired].value, first)
            resampled, out[paired] = _resample_pair(batched_image(image), args[paired], group, dtype)
        out[index] = PendingInput(
            restore_rank(resampled, image.ndim, batch_first=False) if group.keepdim else resampled
        )
    for index in masks:
        if isinstance(out[index], list):
            dtype = labels.dtype_of_soft(values_of(out[index]), first)
            out[index] = [_resample_mask(mask, dtype, labels, sample) for sample, mask in enumerate(out[index])]
        elif isinstance(out[index], PendingSparse):
            out[index] = _move_sparse(out[index])
        elif out[index].pending_group is not None:
            out[index] = _resample_mask(out[index], labels.dtype_of_soft(out[index].value, first), labels)
    return out


def _pairs_with(mask: Any, group: FusedGroup) -> bool:
    """Whether the pair operator can take this mask: class ids that the image's group makes soft."""
    return (
        isinstance(mask, PendingInput)
        and mask.pending_group is group
        and group.num_classes is not None
        and mask.kind == "label map"
    )


def _resample_pair(
    image: Tensor, mask: PendingInput, group: FusedGroup, dtype: torch.dtype
) -> tuple[Tensor, PendingInput]:
    num_classes = cast(int, group.num_classes)
    labels = label_map(batched(mask.value, group.batch), num_classes)
    resampled, soft = sample_pair(image, labels, group.view, num_classes, group.ignore_index, dtype)
    return resampled, PendingInput(_restore_mask_rank(soft, mask.value, group), "soft label")


def _resample_mask(
    pending: PendingInput, dtype: torch.dtype, labels: LabelSettings, sample: int | None = None
) -> PendingInput | PendingSparse:
    """One mask, or that of one sample."""
    group, kind = cast(FusedGroup, pending.pending_group), pending.kind
    if sample is not None:
        group = replace(group, view=group.view.sample(sample), batch=1)
    mask = batched(pending.value, group.batch)
    if kind == "soft label":
        out = sample_soft(mask, group.view)
    elif group.num_classes is not None:
        soft = resample_to_soft(mask, group.view, group.num_classes, group.ignore_index, dtype, labels.top_k)
        if isinstance(soft, ts.SparseLabels):
            return PendingSparse(_restore_mask_rank(soft, pending.value, group))
        out, kind = soft, "soft label"
    else:
        out = resample_hard(mask, group.view, group.outside, labels.fill_of_masks, labels.interpolates_masks)
    return PendingInput(_restore_mask_rank(out, pending.value, group), kind)


def _move_sparse(pending: PendingSparse) -> PendingSparse:
    group = pending.pending_group
    if group is None:
        return pending
    moved = resample_sparse(batched(pending.value, group.batch), group.view)
    return PendingSparse(moved[0] if group.keepdim and pending.value.ndim == 3 else moved)


def _restore_mask_rank(out: Mask, mask: Tensor, group: FusedGroup) -> Mask:
    if not group.keepdim:
        return out
    batch_first = mask.ndim == 3 and mask.shape[0] == group.batch
    if batch_first and not group.unbatched and out.shape[1] != 1:
        return out  # (B, H, W) has no place for the classes
    return restore_rank(out, mask.ndim, batch_first and not group.unbatched)


# --- arguments of a call ---------------------------------------------------------------------------------------------


def as_pending(arg: Any) -> PendingInput:
    return arg if isinstance(arg, PendingInput) else PendingInput(arg)


def as_sparse(arg: Any) -> PendingSparse | None:
    """An argument that is a `SparseLabels`, or was one."""
    if isinstance(arg, ts.SparseLabels):
        return PendingSparse(arg)
    return arg if isinstance(arg, PendingSparse) else None


def are_pending(arg: Any) -> bool:
    """Whether an argument is an image or masks that a module has seen."""
    return isinstance(arg, (PendingInput, PendingSparse)) or (
        isinstance(arg, list) and len(arg) > 0 and isinstance(arg[0], PendingInput)
    )


def all_pending(args: list[Any]) -> list[PendingInput | PendingSparse]:
    """The images and masks among the arguments, those of lists one by one."""
    found: list[PendingInput | PendingSparse] = []
    for arg in args:
        if are_pending(arg):
            found += arg if isinstance(arg, list) else [arg]
    return found


def values_of(pending: PendingInputs) -> Value:
    return [each.value for each in pending] if isinstance(pending, list) else pending.value


def with_values(pending: PendingInputs, value: Value) -> PendingInputs:
    """The inputs with what a module made of them, in the types they had."""
    if isinstance(pending, list):
        pairs = zip(pending, value, strict=True)
        return [replace(each, value=mask.to(each.value.dtype)) for each, mask in pairs]
    return replace(pending, value=cast(Tensor, value).to(pending.value.dtype))


def apply_to_each(function: Callable[[_Before], _After], value: _Before | list[_Before]) -> _After | list[_After]:
    """The function of one value, or of each of a list."""
    return [function(each) for each in value] if isinstance(value, list) else function(value)


def image_of(args: list[Any], keys: list[DataKey]) -> Tensor | None:
    """The first image of a call."""
    images = (as_pending(arg).value for arg, key in zip(args, keys, strict=True) if key == DataKey.INPUT)
    return next(images, None)


def batched_image(image: Tensor) -> Tensor:
    return batched(image, -1)  # an image (K, H, W) is never (B, H, W)
