"""Masks of any type through kornia's own modules, which take floats, pad with class 0 and know no soft labels."""

from dataclasses import replace
from typing import Any, cast

import kornia.augmentation as K
import torch
from kornia.constants import DataKey, Resample
from torch import Tensor

import tritonsoft as ts
from tritonsoft.augmentation import _kornia
from tritonsoft.augmentation._kornia import ImageSequentialBase, MaskSequentialOps, OperationBase, ParamItem
from tritonsoft.augmentation.masks import batched, refuse_sparse
from tritonsoft.augmentation.pending import (
    Kind,
    LabelSettings,
    PendingInput,
    PendingInputs,
    PendingSparse,
    Value,
    apply_to_each,
    values_of,
    with_values,
)
from tritonsoft.augmentation.remapping import RemapLabels
from tritonsoft.augmentation.resampling import ResamplingAugmentation

ExtraArgs = dict[DataKey, dict[str, Any]]

DRAW_PARAMETERS = (K.AugmentationBase2D, K.AugmentationBase3D, K.MixAugmentationBaseV2, ImageSequentialBase)
TAKE_MASKS = (*DRAW_PARAMETERS, OperationBase)
_NEAREST = {"resample": Resample.NEAREST, "align_corners": None}  # kornia's default for masks
_FILLS = ("fill", "fill_value", "pad_value")  # what kornia's modules call what they pad with


def move_mask(
    masks: PendingInputs | PendingSparse,
    image: Tensor | None,
    way: str,
    module: Any,
    param: ParamItem,
    extra_args: ExtraArgs,
    labels: LabelSettings,
) -> PendingInputs | PendingSparse:
    """One mask or list of masks through kornia's ``transform`` or ``inverse`` of masks, its type kept."""
    if isinstance(masks, PendingSparse):
        return move_sparse(masks, way, module, param, extra_args)
    if isinstance(module, OperationBase):
        module = module.op
    if not isinstance(module, TAKE_MASKS) or masks == []:
        return masks
    if isinstance(module, RemapLabels):
        return masks if way == "inverse" else remap(masks, image, module, param, labels)
    is_video = isinstance(module, K.VideoSequential) and isinstance(masks, PendingInput)
    if is_video or getattr(type(module), "transform_masks", None) is ImageSequentialBase.transform_masks:
        return _move_through_children(masks, image, way, module, param, extra_args, labels)
    if _changes_colours(module):
        # The mask need not become floats and back for it.
        if module.keepdim:
            return masks
        batch = 1 if isinstance(masks, list) else cast(dict[str, Tensor], param.data)["batch_prob"].numel()
        return apply_to_each(lambda mask: replace(mask, value=batched(mask.value, batch)), masks)
    masks = classify(masks, image, param, labels, way)
    if isinstance(masks, PendingInput):
        return _move_alike(masks, image, way, module, param, extra_args, labels)
    # kornia takes a list as a whole, and masks of several kinds need several arguments.
    out = list(masks)
    for like in {_traits(mask): mask for mask in masks}.values():
        alike = [mask if _traits(mask) == _traits(like) else like for mask in masks]
        moved = cast(list[PendingInput], _move_alike(alike, image, way, module, param, extra_args, labels))
        out = [new if _traits(mask) == _traits(like) else old for mask, old, new in zip(masks, out, moved, strict=True)]
    return out


def remap(
    masks: PendingInputs, image: Tensor | None, module: RemapLabels, param: ParamItem, labels: LabelSettings
) -> PendingInputs:
    """The classes of ids, in masks as they came in: what is still to be done to their pixels reads no values."""

    def remapped(mask: PendingInput) -> PendingInput:
        group = mask.pending_group
        if mask.kind == "soft label" or (group is not None and group.num_classes is not None):
            module.refuse_soft_label()
        return replace(mask, value=module.remap(mask.value))

    return apply_to_each(remapped, classify(masks, image, param, labels))


def move_sparse(labels: PendingSparse, way: str, module: Any, param: ParamItem, extra_args: ExtraArgs) -> PendingSparse:
    """A `SparseLabels` through what moves no pixels, and through the modules of this package that move whole ones."""
    if isinstance(module, OperationBase):
        module = module.op
    if not isinstance(module, TAKE_MASKS):
        return labels
    if getattr(type(module), "transform_masks", None) is ImageSequentialBase.transform_masks:
        children = cast(list[ParamItem], param.data)
        for child in children if way == "transform" else reversed(children):
            labels = move_sparse(labels, way, module.get_submodule(child.name), child, extra_args)
        return labels
    if isinstance(module, RemapLabels) and way == "transform":
        module.refuse_soft_label()
    if _changes_colours(module):
        return labels if module.keepdim else replace(labels, value=batched(labels.value, 1))
    if not isinstance(module, ResamplingAugmentation):
        refuse_sparse(module)
    operate = getattr(MaskSequentialOps, way)
    return replace(
        labels, value=operate(labels.value, module, param=param, extra_args=extra_args.get(DataKey.MASK, {}))
    )


def classify(
    arg: Any, image: Tensor | None, param: ParamItem, labels: LabelSettings, way: str = "transform"
) -> PendingInputs:
    """A mask, or a list of them, with the kind of each."""
    if isinstance(arg, list):
        if labels.top_k is not None and way == "transform":
            raise TypeError(
                f"mask must be one tensor for modules with top_k={labels.top_k}, got a list: a SparseLabels is a "
                "batch, which torch.stack(masks) makes of a list"
            )
        return [
            labels.classify_mask(mask if isinstance(mask, PendingInput) else PendingInput(mask), 1, way) for mask in arg
        ]
    mask = arg if isinstance(arg, PendingInput) else PendingInput(arg)
    return mask if mask.kind is not None else labels.classify_mask(mask, _batch_of(mask.value, image, param), way)


def as_floats(value: Value, image: Tensor | None) -> Value:
    """Masks in the types that kornia's modules take, by kornia's rule, which refuses to round a label.

    kornia's rule for masks of integers, for all: beside a half-precision image they are float32.
    """
    working = torch.float32 if image is None or image.dtype != torch.float64 else torch.float64
    return apply_to_each(lambda mask: _kornia.cast_mask(mask, working), value)


def _move_alike(
    masks: PendingInputs,
    image: Tensor | None,
    way: str,
    module: Any,
    param: ParamItem,
    extra_args: ExtraArgs,
    labels: LabelSettings,
) -> PendingInputs | PendingSparse:
    """The same for masks that are all of one kind."""
    first = masks[0] if isinstance(masks, list) else masks
    is_soft, value = first.kind == "soft label", values_of(masks)
    extra, flags = extra_args.get(DataKey.MASK, {}), getattr(module, "flags", {})
    ours = isinstance(module, ResamplingAugmentation) and module.filter is not None  # takes integers
    zero = 0
    if ours:
        extra = {**extra, "is_soft": is_soft}
    elif is_soft:
        extra = _extra_of_soft(extra, flags, labels)
    elif first.kind == "label map":
        extra = extra if first.value.is_floating_point() else {**_NEAREST, **extra}
        is_nearest = extra.get("resample") == Resample.NEAREST
        if labels.num_classes is not None and is_nearest and not extra.keys() & set(_FILLS):
            # kornia's modules pad with 0, which is a class: count the ids from `ignore_index`.
            zero, extra = labels.ignore_index, {**extra, **_no_fill(flags)}
    value = value if ours else as_floats(value, image)
    operate = getattr(MaskSequentialOps, f"{way}_list" if isinstance(value, list) else way)
    value = operate(_plus(value, -zero), module, param=param, extra_args=extra)
    if isinstance(value, ts.SparseLabels):
        return PendingSparse(value.to(labels.dtype_of_soft(cast(Tensor, values_of(masks)), image)))
    value = _plus(value, zero)
    if ours and way == "transform" and module.num_classes is not None and not is_soft:
        dtype = labels.dtype_of_soft(values_of(masks), image)
        return apply_to_each(lambda mask: PendingInput(mask.to(dtype), "soft label"), value)
    return with_values(masks, value)


def _move_through_children(
    masks: PendingInputs,
    image: Tensor | None,
    way: str,
    module: Any,
    param: ParamItem,
    extra_args: ExtraArgs,
    labels: LabelSettings,
) -> PendingInputs | PendingSparse:
    """Masks through a container that only applies its children to them; a video is a batch of its frames."""
    children = cast(list[ParamItem], param.data)
    frames = None
    if isinstance(module, K.VideoSequential):
        clip = cast(PendingInput, masks)
        frames = _kornia.frame_count(module, clip.value)
        masks = replace(clip, value=_kornia.frames_as_batch(module, clip.value))
    moved: PendingInputs | PendingSparse = masks
    for child in children if way == "transform" else reversed(children):
        moved = move_mask(moved, image, way, module.get_submodule(child.name), child, extra_args, labels)
    if frames is None:
        return moved
    if isinstance(moved, PendingSparse):
        raise TypeError(
            f"top_k must be None in the modules of a VideoSequential, got {labels.top_k}: a SparseLabels has no axis "
            "for frames"
        )
    clip = cast(PendingInput, moved)
    return replace(clip, value=_kornia.batch_as_frames(module, clip.value, frames))


def leaves_masks(module: Any) -> bool:
    """Whether a module does nothing to masks, whatever they are."""
    return not isinstance(module, TAKE_MASKS) or _changes_colours(module)


def _changes_colours(module: Any) -> bool:
    """Whether a module of kornia's leaves masks as they are."""
    return getattr(type(module), "apply_transform_mask", None) is K.IntensityAugmentationBase2D.apply_transform_mask


def _extra_of_soft(extra: dict[str, Any], flags: dict[str, Any], labels: LabelSettings) -> dict[str, Any]:
    """How kornia's modules treat a soft label: what they fill in is no mass, and it moves like its image."""
    extra = {**extra, **_no_fill(flags)}
    if labels.soft_follows_image:
        nearest = flags.get("resample") == Resample.NEAREST
        extra["resample"] = Resample.NEAREST if nearest else Resample.BILINEAR  # bicubic masses would go negative
    return extra


def _no_fill(flags: dict[str, Any]) -> dict[str, Any]:
    """What makes a kornia module with these flags pad with zeros."""
    fills = {name: flags[name] for name in _FILLS if name in flags}
    return {name: fill.new_zeros(()) if isinstance(fill, Tensor) else 0.0 for name, fill in fills.items()}


def _plus(value: Value, number: int) -> Value:
    return apply_to_each(lambda mask: mask + number, value) if number else value


def _traits(mask: PendingInput) -> tuple[Kind | None, bool]:
    """What the arguments of kornia's modules depend on."""
    return mask.kind, mask.value.is_floating_point()


def _batch_of(mask: Tensor, image: Tensor | None, param: ParamItem) -> int:
    if image is not None and image.ndim <= 4:
        return image.shape[0] if image.ndim == 4 else 1
    if isinstance(param.data, dict) and "batch_prob" in param.data:
        return param.data["batch_prob"].numel()
    return mask.shape[0]
