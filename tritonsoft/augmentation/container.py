"""kornia's container, in which a run of crops, resizes and flips is one resample of the original pixels.

kornia's ``forward`` stays in charge: it hands every module in turn, with all data, to its ``transform_op``. Ours does
not resample at a module that is a box: images and masks become a `_Slot` that remembers the view to show, the next such
module extends that view, and the pixels are read when something else needs them, or at the end. Boxes and keypoints
move module by module, by the modules' matrices, as in kornia. Each picture has a view of its own, and whether a mask
is a soft label is asked once, when it comes in, and remembered beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import kornia.augmentation as K
import torch
from kornia.augmentation.container.base import ImageSequentialBase
from kornia.augmentation.container.image import _get_new_batch_shape
from kornia.augmentation.container.ops import AugmentationSequentialOps, MaskSequentialOps
from kornia.augmentation.container.params import ParamItem
from kornia.augmentation.utils import override_parameters
from kornia.constants import DataKey, Resample
from torch import Tensor, nn

import tritonsoft as ts
from tritonsoft.augmentation.masks import (
    SoftLabel,
    batched,
    check_mask,
    harden,
    label_map,
    like_input,
    looks_soft,
    soften,
    unmarked,
)
from tritonsoft.augmentation.modules import BoxAugmentation, asks_for_interpolation
from tritonsoft.augmentation.view import View, rows, sample_image, sample_soft

Value = Tensor | list[Tensor]
Kind = Literal["soft label", "label map", "hard planes"]
_Before = TypeVar("_Before")
_After = TypeVar("_After")
ExtraArgs = dict[DataKey, dict[str, Any]]

_PICTURES = (DataKey.INPUT, DataKey.MASK)
_DRAW_PARAMETERS = (K.AugmentationBase2D, K.AugmentationBase3D, K.MixAugmentationBaseV2, ImageSequentialBase)
_TAKE_MASKS = (*_DRAW_PARAMETERS, K.auto.operations.OperationBase)
_NEAREST = {"resample": Resample.NEAREST, "align_corners": None}  # kornia's default for masks
_FILLS = ("fill", "fill_value", "pad_value")  # what kornia's modules call what they pad with


@dataclass(frozen=True)
class _Run:
    """Consecutive modules that are boxes, as the one view that they come to."""

    view: View
    batch: int
    num_classes: int | None  # of the members that make soft labels
    ignore_index: int
    outside: int  # what the member that pads puts into hard masks
    keepdim: bool  # kornia restores the rank where every module does
    unbatched: bool  # whether the image came without a batch

    def then(self, other: "_Run") -> "_Run":
        softens = other if self.num_classes is None else self
        return replace(
            other,
            view=other.view.after(self.view),
            num_classes=softens.num_classes,
            ignore_index=softens.ignore_index,
            outside=other.outside if other.view.pads else self.outside,
            keepdim=self.keepdim and other.keepdim,
        )


@dataclass(frozen=True)
class _Slot:
    """An image or a mask on its way through the modules."""

    value: Tensor
    kind: Kind | None = None  # of a mask; None: not yet looked at
    run: _Run | None = None  # what is still to be done to the value

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of what the modules have made of it."""
        return self.run.view.size if self.run is not None else (self.value.shape[-2], self.value.shape[-1])


_Slots = _Slot | list[_Slot]  # a list of masks, one per sample, is a list of slots


@dataclass(frozen=True)
class _Step:
    """A resample of the image, or a module that left the image where it was."""

    view: View
    batch: int
    device: torch.device


@dataclass(frozen=True)
class _Matrix:
    """The matrix of one call of a module, to be made later."""

    module: BoxAugmentation
    image: Tensor  # its shape, type and device
    params: dict[str, Any]
    flags: dict[str, Any]

    @classmethod
    def of(cls, module: BoxAugmentation, image: Tensor, params: dict[str, Any], flags: dict[str, Any]) -> "_Matrix":
        """Of what is now: parameters may be edited in place, and flags assigned, before the matrix is made."""
        copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in params.items()}
        return cls(module, image, copies, dict(flags))

    def __call__(self) -> Tensor:
        return cast(Tensor, self.module.generate_transformation_matrix(self.image, self.params, self.flags))


class AugmentationSequential(K.AugmentationSequential):
    """kornia's `AugmentationSequential` for images with label maps: a drop-in for training semantic segmentation.

    A run of neighbouring crops, resizes and flips of this package becomes one box per sample, and image and label map
    are resampled together, once, from their original pixels (`tritonsoft.crop_resize_pair`, one launch on a GPU). The
    label map becomes soft if any module of the run has ``num_classes``. All other modules work as in kornia;
    parameters, matrices, boxes, keypoints, ``inverse``, replay with ``params=`` and ``data_keys`` are kornia's.

    Args:
        *args: modules of this package, of kornia, or any `nn.Module`; containers may nest.
        data_keys, same_on_batch, keepdim, random_apply, random_apply_weights, transformation_matrix_mode: as kornia's.
        extra_args: as kornia's, keyed by `DataKey` or its name. What they leave out for masks: hard ones go through
            kornia's own modules by nearest neighbour, soft labels through the interpolation of their image.
        soft_dtype: of soft labels made from integer label maps; None: float32, and float64 beside a float64 image. A
            label map given as floats keeps its type. Of nested containers, the outermost decides.

    Shape:
        Image ``(B, K, H, W)``, floating. Mask: a label map ``(B, H, W)`` or ``(B, 1, H, W)`` of any integer or floating
        type, taken as it is, or a soft label ``(B, C, H, W)``; where C is 1, one channel is a label map unless the mask
        is a `SoftLabel`. Gives the image ``(B, K, h, w)`` and the soft label ``(B, C, h, w)``, or a hard mask
        ``(B, 1, h, w)`` of the type it came in.

        Several images of one call may differ in size. Flips and resizes treat each by its own; a crop is drawn for the
        first one's size, and no other can follow it. Boxes, keypoints and `boxes` are those of the first.

    Raises:
        ValueError: modules disagree on ``num_classes`` or ``ignore_index``; label values out of range; a mask with
            neither 1 nor C channels; a crop of an image or mask of another size than it was drawn for.
        TypeError: a mask is no tensor (a `tritonsoft.SparseLabels`, for one).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> import kornia.augmentation as K
        >>> import tritonsoft.augmentation as TA
        >>> augment = TA.AugmentationSequential(
        ...     TA.CenterCrop((96, 96)),
        ...     TA.Resize((48, 48), num_classes=3),
        ...     K.ColorJiggle(0.1, 0.1, 0.1, 0.1),
        ...     data_keys=["image", "mask", "bbox_xyxy"],
        ... )
        >>> image, label_map = torch.rand(2, 3, 128, 128), torch.randint(0, 3, (2, 128, 128))
        >>> image, soft, box = augment(image, label_map, torch.tensor([[[16.0, 16.0, 31.0, 31.0]]]).repeat(2, 1, 1))
        >>> image.shape, soft.shape, box[0].tolist()  # half a pixel of the old size is a quarter of the new
        (torch.Size([2, 3, 48, 48]), torch.Size([2, 3, 48, 48]), [[-0.25, -0.25, 7.25, 7.25]])
    """

    _transform_matrices: list[Any]

    def __init__(
        self,
        *args: nn.Module,
        data_keys: Sequence[str] | Sequence[int] | Sequence[DataKey] | None = (DataKey.INPUT,),
        same_on_batch: bool | None = None,
        keepdim: bool | None = None,
        random_apply: int | bool | tuple[int, int] = False,
        random_apply_weights: Sequence[float] | Tensor | None = None,
        transformation_matrix_mode: str = "silent",
        extra_args: ExtraArgs | None = None,
        soft_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            *args,
            data_keys=data_keys,
            same_on_batch=same_on_batch,
            keepdim=keepdim,
            random_apply=random_apply,
            random_apply_weights=random_apply_weights,
            transformation_matrix_mode=transformation_matrix_mode,
            extra_args={DataKey.get(key): value for key, value in (extra_args or {}).items()},
        )
        num_classes, ignore_index = _agreed_labels(self)
        if soft_dtype is not None and not soft_dtype.is_floating_point:
            raise TypeError(f"soft_dtype must be a floating type or None, got {soft_dtype}")
        mask_args = self.extra_args.get(DataKey.MASK, {})
        self.transform_op = _FoldingOps(
            self.data_keys, num_classes, ignore_index, soft_dtype, mask_args, not extra_args
        )

    @property
    def boxes(self) -> Tensor:
        """The part of each picture that the last call shows, ``(B, 4)`` float64 in source pixel edges.

        They lie where the image does. `tritonsoft.soft_crop_resize` and `tritonsoft.area_cross_entropy` take them:
        labels need not go through the container at all, and can be made at the size of the logits.

        Raises:
            ValueError: the container was not called with an image, or its last call does not show one box of each
                picture at one resample (a warp of kornia's, or crops that do not fold).

        Example:
            >>> _ = torch.manual_seed(0)
            >>> import tritonsoft.augmentation as TA
            >>> augment = TA.AugmentationSequential(TA.RandomHorizontalFlip(p=1.0), TA.CenterCrop(48))
            >>> image = augment(torch.rand(2, 3, 64, 96))
            >>> augment.boxes[0].tolist()
            [72.0, 8.0, 24.0, 56.0]
        """
        return self.transform_op.shown()

    def clear_state(self) -> None:
        """kornia calls this before every call."""
        super().clear_state()
        if isinstance(self.transform_op, _FoldingOps):
            self.transform_op.steps.clear()

    @property
    def transform_matrix(self) -> Tensor | None:
        """kornia's product of the modules' matrices ``(B, 3, 3)``."""
        self._transform_matrices = [
            entry() if isinstance(entry, _Matrix) else entry for entry in self._transform_matrices
        ]
        return cast(Tensor | None, super().transform_matrix)

    def _update_transform_matrix_for_valid_op(self, module: nn.Module) -> None:
        # A matrix is made when somebody asks for it: on a few pixels it would take as long as the resample, and on a
        # GPU a copy to it.
        if isinstance(module, BoxAugmentation) and not torch.compiler.is_exporting():
            lazy = module._lazy_matrix_args
            if lazy is not None and isinstance(lazy[0], Tensor):
                self._transform_matrices.append(_Matrix.of(module, *lazy))
                return
        super()._update_transform_matrix_for_valid_op(module)

    def forward_parameters(self, batch_shape: torch.Size) -> list[ParamItem]:
        """kornia's parameters, drawn in its order; the sizes between modules are known without reading a tensor."""
        params = []
        for name, module in self.get_forward_sequence():
            draws = isinstance(module, _DRAW_PARAMETERS)
            param = ParamItem(name, module.forward_parameters(batch_shape) if draws else None)
            batch_shape = _shape_after(batch_shape, module, param)
            params.append(param)
        return params

    # kornia turns every mask into floats here and back below. Ours stay what they are.

    def _preproc_mask(self, arg: Value, dtype: torch.dtype | None, image_batch: int | None = None) -> Value:
        for mask in arg if isinstance(arg, list) else [arg]:
            check_mask(mask)
        return arg if isinstance(arg, list) else cast(Tensor, self._broadcast_single_mask(arg, image_batch))

    def _postproc_mask(self, arg: Value, like: Value) -> Value:
        if isinstance(arg, list):
            likes = like if isinstance(like, list) else [like] * len(arg)
            return [cast(Tensor, self._postproc_mask(*pair)) for pair in zip(arg, likes, strict=True)]
        before = (like[0] if isinstance(like, list) else like).dtype
        return arg if arg.is_floating_point() and not before.is_floating_point else arg.to(before)

    def _arguments_postproc(self, in_args: list[Any], out_args: list[Any], data_keys: list[DataKey]) -> list[Any]:
        settled = self.transform_op.settled(list(out_args), data_keys)
        values = [_values(arg) if _are_slots(arg) else arg for arg in settled]
        out = super()._arguments_postproc(in_args, values, data_keys)
        if self.transform_op.num_classes == 1 and not torch.compiler.is_compiling():
            # One channel of masses looks like class ids: the next container must be told.
            out = [_marked(value, arg) if _are_slots(arg) else value for value, arg in zip(out, settled, strict=True)]
        return cast(list[Any], out)


class _FoldingOps(AugmentationSequentialOps):
    """Applies one module to all data of a container, postponing what can be done at once later."""

    def __init__(
        self,
        data_keys: list[DataKey] | None,
        num_classes: int | None,
        ignore_index: int,
        soft_dtype: torch.dtype | None,
        mask_args: dict[str, Any],
        soft_follows_image: bool,
    ) -> None:
        super().__init__(data_keys)
        self.num_classes, self.ignore_index, self.soft_dtype = num_classes, ignore_index, soft_dtype
        self.mask_args, self.soft_follows_image = mask_args, soft_follows_image
        self.steps: list[_Step | str] = []  # what the last call did to positions; the names of modules that are no box

    def shown(self) -> Tensor:
        """The steps as one box per picture, where the image is."""
        warps = [step for step in self.steps if isinstance(step, str)]
        if warps:
            raise ValueError(f"boxes need modules that show a box of the picture, which {', '.join(warps)} do not")
        steps = [step for step in self.steps if not isinstance(step, str)]
        if not steps:
            raise ValueError("boxes are those of the last call with an image: call the container first")
        view = steps[0].view
        for step in steps[1:]:
            only_moves = view.filter is None or step.view.filter is None
            if not only_moves or not step.view.follows(view):
                raise ValueError("boxes need one resample: the last call's crops and resizes did not fold into one")
            view = step.view.after(view)
        boxes = view.boxes
        if boxes is None:
            height, width = view.source
            boxes = torch.tensor([[0, 0, width, height]], dtype=torch.float64)
        return cast(Tensor, rows(boxes, steps[0].batch, steps[0].device))

    # --- kornia's two entry points ----------------------------------------------------------------------------------

    def transform(
        self, *arg: Any, module: nn.Module, param: ParamItem, extra_args: ExtraArgs, data_keys: Any = None
    ) -> Any:
        return _one_or_all(self._transformed(list(arg), self.preproc_datakeys(data_keys), module, param, extra_args))

    def inverse(
        self, *arg: Any, module: nn.Module, param: ParamItem, extra_args: ExtraArgs, data_keys: Any = None
    ) -> Any:
        return _one_or_all(self._inverted(list(arg), self.preproc_datakeys(data_keys), module, param, extra_args))

    # --- there ------------------------------------------------------------------------------------------------------

    def _transformed(
        self, args: list[Any], keys: list[DataKey], module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> list[Any]:
        if _is_plain_container(module):
            return self._through_container(args, keys, module, param, extra_args)
        if isinstance(module, BoxAugmentation) and module.foldable:
            return self._folded(args, keys, module, param, extra_args)
        return self._applied(self.settled(args, keys), keys, module, param, extra_args)

    def _through_container(
        self, args: list[Any], keys: list[DataKey], module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> list[Any]:
        """The children of a nested container, one by one, with the bookkeeping of its own ``transform_inputs``."""
        records = isinstance(module, K.AugmentationSequential) and DataKey.INPUT in keys
        if records:
            module.clear_state()
        for child_param in cast(list[ParamItem], param.data):
            child = module.get_submodule(child_param.name)
            args = self._transformed(args, keys, child, child_param, extra_args)
            if records:
                module._update_transform_matrix_by_module(child)
        if records:
            module._params = param.data
        return args

    def _folded(
        self, args: list[Any], keys: list[DataKey], module: BoxAugmentation, param: ParamItem, extra_args: ExtraArgs
    ) -> list[Any]:
        """Images and masks wait, with this module's view added to theirs."""
        params = cast(dict[str, Tensor], param.data)
        flags = override_parameters(module.flags, extra_args.get(DataKey.INPUT, {}), in_place=False)
        image = _image_of(args, keys)
        if "batch_prob" not in params:  # kornia's rule: then all samples are transformed
            params["batch_prob"] = torch.ones(1 if image is None else _batched_image(image).shape[0], dtype=torch.bool)
        args = [
            self._classified(arg, image, param) if key == DataKey.MASK else _slot(arg) if key == DataKey.INPUT else arg
            for arg, key in zip(args, keys, strict=True)
        ]
        slots = _slots_of(args)
        views = self._views(slots, module, params, flags)
        if any(slot.run and not views[slot.size].follows(slot.run.view) for slot in slots):
            args = self._resampled(args, keys)
        runs: dict[tuple[int, tuple[int, int]], _Run] = {}  # pictures of one size and history share one

        def extended(slot: _Slot) -> _Slot:
            key = (id(slot.run), slot.size)
            if key not in runs:
                run = _Run(
                    view=views[slot.size],
                    batch=params["batch_prob"].numel(),
                    num_classes=module.num_classes,
                    ignore_index=module.ignore_index,
                    # A label map that becomes soft later must not hold another value for the same until then.
                    outside=module.ignore_index if self.num_classes is None else self.ignore_index,
                    keepdim=module.keepdim,
                    unbatched=image is not None and image.ndim < 4,
                )
                runs[key] = run if slot.run is None else slot.run.then(run)
            return _Slot(slot.value, slot.kind, runs[key])

        out = list(args)
        first = next((index for index, key in enumerate(keys) if key == DataKey.INPUT), None)
        if first is not None:
            # Of several images the first: its size is what the parameters were drawn for.
            slot = args[first]
            module.remember(slot.value, slot.size, params, flags)
        for index, key in enumerate(keys):
            if key in _PICTURES:
                out[index] = _each(extended, args[index])
            else:
                out[index] = self._moved(args[index], key, module, param, extra_args)
        return out

    def _views(
        self, slots: list[_Slot], module: BoxAugmentation, params: dict[str, Tensor], flags: dict[str, Any]
    ) -> dict[tuple[int, int], View]:
        """What the module shows of the pictures of each size."""
        views: dict[tuple[int, int], View] = {}
        for slot in slots:
            if slot.size not in views:
                views[slot.size] = module.view(slot.size, params, flags, slots[0].size)
        return views

    def _applied(
        self, args: list[Any], keys: list[DataKey], module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> list[Any]:
        """A module that is no box, by kornia's own operations."""
        image = _image_of(args, keys)
        if image is not None:
            self._note(module, image)
        if isinstance(module, K.RandomTransplantation):  # it draws its parameters from image and masks together
            floats = [_floats(_values(arg), image) if _are_slots(arg) else arg for arg in args]
            out = super().transform(*floats, module=module, param=param, extra_args=extra_args, data_keys=keys)
            pairs = zip(args, out, strict=True)
            return [_typed(arg, value) if isinstance(arg, _Slot) else value for arg, value in pairs]
        out = list(args)
        order = sorted(range(len(args)), key=lambda index: keys[index] != DataKey.INPUT)
        if isinstance(module, _TAKE_MASKS):
            # Boxes, keypoints and masks read the matrix that an image leaves behind: the first one's.
            order = sorted(range(len(args)), key=lambda index: (keys[index] != DataKey.INPUT, -index))
        for index in order:
            if keys[index] == DataKey.MASK:
                slots = _each(_slot, args[index])
                out[index] = self._mask_through(slots, image, "transform", module, param, extra_args)
            else:
                out[index] = self._moved(args[index], keys[index], module, param, extra_args)
        return out

    def _note(self, module: nn.Module, image: Tensor) -> None:
        source = (image.shape[-2], image.shape[-1])
        if isinstance(module, _TAKE_MASKS) and not isinstance(module, K.IntensityAugmentationBase2D):
            self.steps.append(type(module).__name__)
        elif not self.steps:
            batch = image.shape[0] if image.ndim > 3 else 1
            self.steps.append(_Step(View(source, source), batch, image.device))

    def _moved(self, arg: Any, key: DataKey, module: Any, param: ParamItem, extra_args: ExtraArgs) -> Any:
        return self._get_op(key).transform(arg, module, param=param, extra_args=extra_args.get(key, {}))

    # --- and back ---------------------------------------------------------------------------------------------------

    def _inverted(
        self, args: list[Any], keys: list[DataKey], module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> list[Any]:
        if _is_plain_container(module):
            for child in reversed(cast(list[ParamItem], param.data)):
                args = self._inverted(args, keys, module.get_submodule(child.name), child, extra_args)
            return args
        out = list(args)
        image = _image_of(args, keys)
        for index, key in enumerate(keys):
            if key == DataKey.MASK:
                slots = _each(_slot, args[index])
                out[index] = self._mask_through(slots, image, "inverse", module, param, extra_args)
            else:
                out[index] = self._get_op(key).inverse(
                    args[index], module, param=param, extra_args=extra_args.get(key, {})
                )
        return out

    # --- masks and kornia's modules ---------------------------------------------------------------------------------

    def _classified(self, arg: Any, image: Tensor | None, param: ParamItem, way: str = "transform") -> _Slots:
        """Masks as slots that know their kind: it is told by the channels when a mask comes in, and never again."""
        if isinstance(arg, list):
            return [self._one_classified(_slot(each), 1, way) for each in arg]
        slot = _slot(arg)
        return self._one_classified(slot, _batch_of(slot.value, image, param), way)

    def _one_classified(self, slot: _Slot, batch: int, way: str) -> _Slot:
        if slot.kind is not None:
            return slot
        mask = batched(slot.value, batch)
        # Of one class, floats are class ids on the way there and what the container made of them on the way back.
        masses_of_one = way == "inverse" and self.num_classes == mask.shape[1] and mask.is_floating_point()
        kind: Kind = "label map" if mask.shape[1] == 1 else "hard planes"
        if looks_soft(mask, self.num_classes) or masses_of_one:
            kind = "soft label"
        return _Slot(unmarked(slot.value), kind, slot.run)

    def _mask_through(
        self, slots: _Slots, image: Tensor | None, way: str, module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> _Slots:
        """One mask or list of masks through kornia's ``transform`` or ``inverse`` of masks, its type kept."""
        if isinstance(module, K.auto.operations.OperationBase):
            module = module.op
        if not isinstance(module, _TAKE_MASKS) or slots == []:
            return slots
        is_video = isinstance(module, K.VideoSequential) and isinstance(slots, _Slot)
        if is_video or getattr(type(module), "transform_masks", None) is ImageSequentialBase.transform_masks:
            return self._mask_through_children(slots, image, way, module, param, extra_args)
        if getattr(type(module), "apply_transform_mask", None) is K.IntensityAugmentationBase2D.apply_transform_mask:
            # A colour operation: the mask need not become floats and back for it.
            if module.keepdim:
                return slots
            batch = 1 if isinstance(slots, list) else cast(dict[str, Tensor], param.data)["batch_prob"].numel()
            return _each(lambda slot: replace(slot, value=batched(slot.value, batch)), slots)
        slots = self._classified(slots, image, param, way)
        if isinstance(slots, _Slot):
            return self._same_through(slots, image, way, module, param, extra_args)
        # kornia takes a list as a whole, and masks of several kinds need several arguments.
        out = list(slots)
        for like in {_traits(slot): slot for slot in slots}.values():
            alike = [slot if _traits(slot) == _traits(like) else like for slot in slots]
            moved = cast(list[_Slot], self._same_through(alike, image, way, module, param, extra_args))
            out = [
                new if _traits(slot) == _traits(like) else old for slot, old, new in zip(slots, out, moved, strict=True)
            ]
        return out

    def _same_through(
        self, slots: _Slots, image: Tensor | None, way: str, module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> _Slots:
        """The same for masks that are all of one kind."""
        first = slots[0] if isinstance(slots, list) else slots
        is_soft, value = first.kind == "soft label", _values(slots)
        extra, flags = extra_args.get(DataKey.MASK, {}), getattr(module, "flags", {})
        ours = isinstance(module, BoxAugmentation) and module.filter is not None  # takes integers
        zero = 0
        if ours:
            extra = {**extra, "is_soft": is_soft}
        elif is_soft:
            extra = self._extra_of_soft(extra, flags)
        elif first.kind == "label map":
            extra = extra if first.value.is_floating_point() else {**_NEAREST, **extra}
            is_nearest = extra.get("resample") == Resample.NEAREST
            if self.num_classes is not None and is_nearest and not extra.keys() & set(_FILLS):
                # kornia's modules pad with 0, which is a class: count the ids from `ignore_index`.
                zero, extra = self.ignore_index, {**extra, **_no_fill(flags)}
        value = value if ours else _floats(value, image)
        operate = getattr(MaskSequentialOps, f"{way}_list" if isinstance(value, list) else way)
        value = operate(_plus(value, -zero), module, param=param, extra_args=extra)
        value = _plus(value, zero)
        if ours and way == "transform" and module.num_classes is not None and not is_soft:
            dtype = self._dtype_of_soft(_values(slots), image)
            return _each(lambda mask: _Slot(mask.to(dtype), "soft label"), value)
        return _typed(slots, value)

    def _extra_of_soft(self, extra: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
        """How kornia's modules treat a soft label: what they fill in is no mass, and it moves like its image."""
        extra = {**extra, **_no_fill(flags)}
        if self.soft_follows_image:
            nearest = flags.get("resample") == Resample.NEAREST
            extra["resample"] = Resample.NEAREST if nearest else Resample.BILINEAR  # bicubic masses would go negative
        return extra

    def _mask_through_children(
        self, slots: _Slots, image: Tensor | None, way: str, module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> _Slots:
        """Masks through a container that only applies its children to them; a video is a batch of its frames."""
        children = cast(list[ParamItem], param.data)
        frames = None
        if isinstance(module, K.VideoSequential):
            clip = cast(_Slot, slots)
            frames = clip.value.shape[module._temporal_channel]
            slots = replace(clip, value=module._input_shape_convert_in(clip.value, frames))
        for child in children if way == "transform" else reversed(children):
            slots = self._mask_through(slots, image, way, module.get_submodule(child.name), child, extra_args)
        if frames is None:
            return slots
        clip = cast(_Slot, slots)
        return replace(clip, value=module._input_shape_convert_back(clip.value, frames))

    def _dtype_of_soft(self, mask: Value, image: Tensor | None) -> torch.dtype:
        dtypes = {each.dtype for each in (mask if isinstance(mask, list) else [mask])}
        for dtype in dtypes:
            if dtype.is_floating_point:
                return dtype
        if self.soft_dtype is not None:
            return self.soft_dtype
        return torch.float64 if image is not None and image.dtype == torch.float64 else torch.float32

    # --- the resample -----------------------------------------------------------------------------------------------

    def settled(self, args: list[Any], keys: list[DataKey]) -> list[Any]:
        """What waits is done, and images are tensors again."""
        out = self._resampled(args, keys)
        return [
            arg.value if isinstance(arg, _Slot) and key == DataKey.INPUT else arg
            for arg, key in zip(out, keys, strict=True)
        ]

    def _resampled(self, args: list[Any], keys: list[DataKey]) -> list[Any]:
        """What waits is done: one resample of each image and its masks."""
        if not any(slot.run for slot in _slots_of(args)):
            return args
        out = list(args)
        images = [index for index, key in enumerate(keys) if key == DataKey.INPUT]
        masks = [index for index, key in enumerate(keys) if key == DataKey.MASK]
        first = args[images[0]].value if images else None
        for index in images:
            image, run = args[index].value, args[index].run
            if index == images[0]:
                self.steps.append(_Step(run.view, run.batch, image.device))
            shows_pixels = not run.view.is_identity and not isinstance(run.view.fill, tuple)
            label = next((index for index in masks if _pairs_with(out[index], run)), None) if shows_pixels else None
            if label is None:
                shown = sample_image(_batched_image(image), run.view)
            else:
                dtype = self._dtype_of_soft(args[label].value, first)
                shown, out[label] = self._pair(_batched_image(image), args[label], run, dtype)
            out[index] = _Slot(like_input(shown, image.ndim, batch_first=False) if run.keepdim else shown)
        for index in masks:
            if isinstance(out[index], list):
                dtype = self._dtype_of_soft(_values(out[index]), first)
                out[index] = [self._mask(slot, dtype, sample) for sample, slot in enumerate(out[index])]
            elif out[index].run is not None:
                out[index] = self._mask(out[index], self._dtype_of_soft(out[index].value, first))
        return out

    def _pair(self, image: Tensor, slot: _Slot, run: _Run, dtype: torch.dtype) -> tuple[Tensor, _Slot]:
        num_classes = cast(int, run.num_classes)
        shown, soft = ts.crop_resize_pair(
            image,
            label_map(batched(slot.value, run.batch), num_classes),
            rows(run.view.boxes, run.batch, image.device),
            run.view.size,
            num_classes,
            ignore_index=run.ignore_index,
            filter=run.view.filter or "area",
            fill=cast(float, run.view.fill),
            soft_dtype=dtype,
        )
        return shown, _Slot(_ranked(soft, slot.value, run), "soft label")

    def _mask(self, slot: _Slot, dtype: torch.dtype, sample: int | None = None) -> _Slot:
        """One mask, or that of one sample, resampled."""
        run, kind = cast(_Run, slot.run), slot.kind
        if sample is not None:
            run = replace(run, view=run.view.sample(sample), batch=1)
        mask = batched(slot.value, run.batch)
        if kind == "soft label":
            out = sample_soft(mask, run.view)
        elif run.num_classes is not None:
            out, kind = soften(mask, run.view, run.num_classes, run.ignore_index, dtype), "soft label"
        else:
            linear = asks_for_interpolation(self.mask_args)
            out = harden(mask, run.view, run.outside, self.mask_args.get("fill"), linear)
        return _Slot(_ranked(out, slot.value, run), kind)


def _plus(value: Value, number: int) -> Value:
    return _each(lambda mask: mask + number, value) if number else value


def _one_or_all(args: list[Any]) -> Any:
    return args[0] if len(args) == 1 else args


def _slot(arg: Any) -> _Slot:
    return arg if isinstance(arg, _Slot) else _Slot(arg)


def _are_slots(arg: Any) -> bool:
    return isinstance(arg, _Slot) or (isinstance(arg, list) and len(arg) > 0 and isinstance(arg[0], _Slot))


def _slots_of(args: list[Any]) -> list[_Slot]:
    slots: list[_Slot] = []
    for arg in args:
        if _are_slots(arg):
            slots += arg if isinstance(arg, list) else [arg]
    return slots


def _marked(value: Value, slots: _Slots) -> Value:
    """Masks that leave a container, those of them that are soft labels as `SoftLabel`."""
    if isinstance(value, list):
        each = slots if isinstance(slots, list) else [slots] * len(value)
        return [cast(Tensor, _marked(*pair)) for pair in zip(value, each, strict=True)]
    is_soft = not isinstance(slots, list) and slots.kind == "soft label"
    return value.as_subclass(SoftLabel) if is_soft else value


def _values(slots: _Slots) -> Value:
    return [slot.value for slot in slots] if isinstance(slots, list) else slots.value


def _traits(slot: _Slot) -> tuple[Kind | None, bool]:
    """What the arguments of kornia's modules depend on."""
    return slot.kind, slot.value.is_floating_point()


def _batch_of(mask: Tensor, image: Tensor | None, param: ParamItem) -> int:
    if image is not None and image.ndim <= 4:
        return image.shape[0] if image.ndim == 4 else 1
    if isinstance(param.data, dict) and "batch_prob" in param.data:
        return param.data["batch_prob"].numel()
    return mask.shape[0]


def _image_of(args: list[Any], keys: list[DataKey]) -> Tensor | None:
    images = (_slot(arg).value for arg, key in zip(args, keys, strict=True) if key == DataKey.INPUT)
    return next(images, None)


def _batched_image(image: Tensor) -> Tensor:
    return batched(image, -1)  # an image (K, H, W) is never (B, H, W)


def _pairs_with(mask: Any, run: _Run) -> bool:
    """Whether the pair operator can take this mask: class ids that the image's run makes soft."""
    return isinstance(mask, _Slot) and mask.run is run and run.num_classes is not None and mask.kind == "label map"


def _ranked(out: Tensor, mask: Tensor, run: _Run) -> Tensor:
    if not run.keepdim:
        return out
    batch_first = mask.ndim == 3 and mask.shape[0] == run.batch
    if batch_first and not run.unbatched and out.shape[1] != 1:
        return out  # (B, H, W) has no place for the classes
    return like_input(out, mask.ndim, batch_first and not run.unbatched)


def _each(function: Callable[[_Before], _After], value: _Before | list[_Before]) -> _After | list[_After]:
    return [function(each) for each in value] if isinstance(value, list) else function(value)


def _floats(value: Value, image: Tensor | None) -> Value:
    """Masks in the types that kornia's modules take, by kornia's rule, which refuses to round a label.

    kornia's rule for masks of integers, for all: beside a half-precision image they are float32.
    """
    working = torch.float32 if image is None or image.dtype != torch.float64 else torch.float64
    return _each(lambda mask: cast(Tensor, K.AugmentationSequential._cast_mask(mask, working)), value)


def _no_fill(flags: dict[str, Any]) -> dict[str, Any]:
    """What makes a kornia module with these flags pad with zeros."""
    fills = {name: flags[name] for name in _FILLS if name in flags}
    return {name: fill.new_zeros(()) if isinstance(fill, Tensor) else 0.0 for name, fill in fills.items()}


def _typed(slots: _Slots, value: Value) -> _Slots:
    """The slots with what a module made of them, in the types they had."""
    if isinstance(slots, list):
        return [replace(slot, value=mask.to(slot.value.dtype)) for slot, mask in zip(slots, value, strict=True)]
    return replace(slots, value=cast(Tensor, value).to(slots.value.dtype))


def _is_plain_container(module: nn.Module) -> bool:
    """Whether a nested container does nothing but apply its children one after the other."""
    plain = (ImageSequentialBase.transform_inputs, K.AugmentationSequential.transform_inputs)
    return isinstance(module, ImageSequentialBase) and type(module).transform_inputs in plain


def _shape_after(shape: torch.Size, module: Any, param: ParamItem) -> torch.Size:
    if isinstance(module, BoxAugmentation) and module.always_applies:
        return torch.Size((*shape[:-2], *module.output_size((shape[-2], shape[-1]), module.flags)))
    if _is_plain_container(module):
        for child in cast(list[ParamItem], param.data):
            shape = _shape_after(shape, module.get_submodule(child.name), child)
        return shape
    return cast(torch.Size, _get_new_batch_shape(param, shape, module))


def _agreed_labels(container: nn.Module) -> tuple[int | None, int]:
    """``num_classes`` and ``ignore_index`` of the modules that make soft labels: one label map cannot have two."""
    softening = [
        each for each in container.modules() if isinstance(each, BoxAugmentation) and each.num_classes is not None
    ]
    for name in ("num_classes", "ignore_index"):
        values = sorted({getattr(module, name) for module in softening})
        if len(values) > 1:
            raise ValueError(
                f"{name} must be the same in all modules of a container that have num_classes, got {values}"
            )
    return (softening[0].num_classes, softening[0].ignore_index) if softening else (None, 0)
