"""kornia's container, in which a run of crops, resizes and flips is one resample of the original pixels.

kornia's ``forward`` stays in charge: it hands every module in turn, with all data, to its ``transform_op``. Ours does
not resample at a module that is a box: images and masks become a `_Slot` that remembers the view to show, the next such
module extends that view, and the pixels are read when something else needs them, or at the end. Boxes and keypoints
move module by module, by the modules' matrices, as in kornia.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

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
from tritonsoft.augmentation.masks import batched, harden, label_map, like_input, soften
from tritonsoft.augmentation.modules import BoxAugmentation, asks_for_interpolation
from tritonsoft.augmentation.view import View, rows, sample_image

Value = Tensor | list[Tensor]
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

    value: Value
    is_soft: bool = False  # a mask that has become a soft label
    is_label_map: bool = False  # a mask with one channel that has not
    run: _Run | None = None  # what is still to be done to the value


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
        type, taken as it is, or a soft label ``(B, C, H, W)``. Gives the image ``(B, K, h, w)`` and the soft label
        ``(B, C, h, w)``, or a hard mask ``(B, 1, h, w)`` of the type it came in.

    Raises:
        ValueError: modules disagree on ``num_classes`` or ``ignore_index``; label values out of range; a mask with
            neither 1 nor C channels.

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
        return arg if isinstance(arg, list) else cast(Tensor, self._broadcast_single_mask(arg, image_batch))

    def _postproc_mask(self, arg: Value, like: Value) -> Value:
        if isinstance(arg, list):
            likes = like if isinstance(like, list) else [like] * len(arg)
            return [cast(Tensor, self._postproc_mask(*pair)) for pair in zip(arg, likes, strict=True)]
        before = (like[0] if isinstance(like, list) else like).dtype
        return arg if arg.is_floating_point() and not before.is_floating_point else arg.to(before)

    def _arguments_postproc(self, in_args: list[Any], out_args: list[Any], data_keys: list[DataKey]) -> list[Any]:
        settled = self.transform_op.settled(list(out_args), data_keys)
        values = [arg.value if isinstance(arg, _Slot) else arg for arg in settled]
        return cast(list[Any], super()._arguments_postproc(in_args, values, data_keys))


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
        before, image = _waiting(args), _image_of(args, keys)
        if "batch_prob" not in params:  # kornia's rule: then all samples are transformed
            params["batch_prob"] = torch.ones(1 if image is None else _batched_image(image).shape[0], dtype=torch.bool)
        source = _size_of(args, keys) if before is None else before.view.size
        run = None
        if source is not None:
            view = module.view(source, params, flags)
            run = _Run(
                view=view,
                batch=params["batch_prob"].numel(),
                num_classes=module.num_classes,
                ignore_index=module.ignore_index,
                # A label map that becomes soft later must not hold another value for the same until then.
                outside=module.ignore_index if self.num_classes is None else self.ignore_index,
                keepdim=module.keepdim,
                unbatched=image is not None and image.ndim < 4,
            )
            if before is not None and view.follows(before.view):
                run = before.then(run)
            else:
                args = self.settled(args, keys)
        out = list(args)
        for index, key in enumerate(keys):
            if key in _PICTURES:
                slot = _slot(args[index])
                out[index] = replace(slot, run=run)
                if key == DataKey.INPUT:
                    module.remember(cast(Tensor, slot.value), view.source, params, flags)
            else:
                out[index] = self._moved(args[index], key, module, param, extra_args)
        return out

    def _applied(
        self, args: list[Any], keys: list[DataKey], module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> list[Any]:
        """A module that is no box, by kornia's own operations."""
        image = _image_of(args, keys)
        if image is not None:
            self._note(module, image)
        if isinstance(module, K.RandomTransplantation):  # it draws its parameters from image and masks together
            floats = [_floats(arg.value, image) if isinstance(arg, _Slot) else arg for arg in args]
            out = super().transform(*floats, module=module, param=param, extra_args=extra_args, data_keys=keys)
            pairs = zip(args, out, strict=True)
            return [
                replace(arg, value=_typed(value, arg.value)) if isinstance(arg, _Slot) else value
                for arg, value in pairs
            ]
        out = list(args)
        # The image first: boxes, keypoints and masks read the matrix that it leaves behind.
        for index in sorted(range(len(args)), key=lambda index: keys[index] != DataKey.INPUT):
            if keys[index] == DataKey.MASK:
                out[index] = self._mask_through(_slot(args[index]), image, "transform", module, param, extra_args)
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
                out[index] = self._mask_through(_slot(args[index]), image, "inverse", module, param, extra_args)
            else:
                out[index] = self._get_op(key).inverse(
                    args[index], module, param=param, extra_args=extra_args.get(key, {})
                )
        return out

    # --- masks and kornia's modules ---------------------------------------------------------------------------------

    def _mask_through(
        self, slot: _Slot, image: Tensor | None, way: str, module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> _Slot:
        """One mask or list of masks through kornia's ``transform`` or ``inverse`` of masks, its type kept."""
        if not isinstance(module, _TAKE_MASKS):
            return slot
        if isinstance(slot.value, Tensor) and (isinstance(module, K.VideoSequential) or _is_plain_container(module)):
            return self._mask_through_children(slot, image, way, module, param, extra_args)
        if getattr(type(module), "apply_transform_mask", None) is K.IntensityAugmentationBase2D.apply_transform_mask:
            # A colour operation: the mask need not become floats and back for it.
            batch = 1 if isinstance(slot.value, list) else cast(dict[str, Tensor], param.data)["batch_prob"].numel()
            return slot if module.keepdim else replace(slot, value=_each(lambda mask: batched(mask, batch), slot.value))
        extra, flags = extra_args.get(DataKey.MASK, {}), getattr(module, "flags", {})
        ours = isinstance(module, BoxAugmentation) and module.filter is not None  # takes integers
        softens = ours and way == "transform" and module.num_classes is not None
        slot = self._known(slot, way, param)
        zero = 0
        if slot.is_soft:
            # Of ours, those without `num_classes` take masses for hard planes.
            extra = {**extra, "antialias": True} if ours else self._extra_of_soft(extra, flags)
        elif not ours and slot.is_label_map:
            extra = extra if _first(slot.value).is_floating_point() else {**_NEAREST, **extra}
            is_nearest = extra.get("resample") == Resample.NEAREST
            if self.num_classes is not None and is_nearest and not extra.keys() & set(_FILLS):
                # kornia's modules pad with 0, which is a class: count the ids from `ignore_index`.
                zero, extra = self.ignore_index, {**extra, **_no_fill(flags)}
        value = slot.value if ours else _floats(slot.value, image)
        operate = getattr(MaskSequentialOps, f"{way}_list" if isinstance(value, list) else way)
        value = operate(_plus(value, -zero), module, param=param, extra_args=extra)
        value = _plus(_each(lambda mask: mask.as_subclass(Tensor), value), zero)
        if softens and not slot.is_soft:
            dtype = self._dtype_of_soft(slot.value, image)
            return replace(slot, value=_each(lambda mask: mask.to(dtype), value), is_soft=True)
        return replace(slot, value=_typed(value, slot.value))

    def _known(self, slot: _Slot, way: str, param: ParamItem) -> _Slot:
        """The slot, its mask known for a soft label or a label map by its channels."""
        if isinstance(slot.value, list) and not slot.value:
            return slot
        first = _first(slot.value)
        params = param.data if isinstance(param.data, dict) else {}
        batch = params["batch_prob"].numel() if "batch_prob" in params else first.shape[0]
        count = batched(first, 1 if isinstance(slot.value, list) else batch).shape[1]
        looks_soft = count == self.num_classes and first.is_floating_point() and (count > 1 or way == "inverse")
        is_soft = slot.is_soft or looks_soft
        return replace(slot, is_soft=is_soft, is_label_map=count == 1 and not is_soft)

    def _extra_of_soft(self, extra: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
        """How kornia's modules treat a soft label: what they fill in is no mass, and it moves like its image."""
        extra = {**extra, **_no_fill(flags)}
        if self.soft_follows_image:
            nearest = flags.get("resample") == Resample.NEAREST
            extra["resample"] = Resample.NEAREST if nearest else Resample.BILINEAR  # bicubic masses would go negative
        return extra

    def _mask_through_children(
        self, slot: _Slot, image: Tensor | None, way: str, module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> _Slot:
        """A mask through a container that only applies its children; a video is a batch of its frames to them."""
        children = cast(list[ParamItem], param.data)
        frames = None
        if isinstance(module, K.VideoSequential):
            frames = cast(Tensor, slot.value).shape[module._temporal_channel]
            slot = replace(slot, value=module._input_shape_convert_in(slot.value, frames))
        for child in children if way == "transform" else reversed(children):
            slot = self._mask_through(slot, image, way, module.get_submodule(child.name), child, extra_args)
        if frames is None:
            return slot
        return replace(slot, value=module._input_shape_convert_back(slot.value, frames))

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
        """What waits is done: one resample of the image and its masks."""
        run = _waiting(args)
        if run is None:
            return args
        out = list(args)
        images = [index for index, key in enumerate(keys) if key == DataKey.INPUT]
        masks = [index for index, key in enumerate(keys) if key == DataKey.MASK]
        shows_pixels = not run.view.is_identity and not isinstance(run.view.fill, tuple)
        for index in images:
            image = args[index].value
            self.steps.append(_Step(run.view, run.batch, image.device))
            label = next((index for index in masks if _is_label_map(out[index])), None) if shows_pixels else None
            if label is None:
                shown = sample_image(_batched_image(image), run.view)
            else:
                dtype = self._dtype_of_soft(args[label].value, image)
                shown, out[label] = self._pair(_batched_image(image), args[label], run, dtype)
            out[index] = like_input(shown, image.ndim, batch_first=False) if run.keepdim else shown
        for index in masks:
            if out[index].run is not None:
                dtype = self._dtype_of_soft(args[index].value, args[images[0]].value if images else None)
                out[index] = self._mask(out[index], run, dtype)
        return out

    def _pair(self, image: Tensor, slot: _Slot, run: _Run, dtype: torch.dtype) -> tuple[Tensor, _Slot]:
        mask, num_classes = cast(Tensor, slot.value), cast(int, run.num_classes)
        shown, soft = ts.crop_resize_pair(
            image,
            label_map(batched(mask, run.batch), num_classes),
            rows(run.view.boxes, run.batch, image.device),
            run.view.size,
            num_classes,
            ignore_index=run.ignore_index,
            filter=run.view.filter or "area",
            fill=cast(float, run.view.fill),
            soft_dtype=dtype,
        )
        return shown, _Slot(_ranked(soft, mask, run), is_soft=True)

    def _mask(self, slot: _Slot, run: _Run, dtype: torch.dtype) -> _Slot:
        def show(mask: Tensor, view: View, batch: int) -> Tensor:
            picture = batched(mask, batch)
            if run.num_classes is not None:
                out = soften(picture, view, run.num_classes, run.ignore_index, dtype, slot.is_soft)
            else:
                linear = slot.is_soft or asks_for_interpolation(self.mask_args)
                out = harden(picture, view, run.outside, self.mask_args.get("fill"), linear)
            return _ranked(out, mask, replace(run, batch=batch))

        if isinstance(slot.value, list):
            value: Value = [show(mask, run.view.sample(index), 1) for index, mask in enumerate(slot.value)]
        else:
            value = show(slot.value, run.view, run.batch)
        return _Slot(value, is_soft=slot.is_soft or run.num_classes is not None)


def _first(value: Value) -> Tensor:
    return value[0] if isinstance(value, list) else value


def _plus(value: Value, number: int) -> Value:
    return _each(lambda mask: mask + number, value) if number else value


def _one_or_all(args: list[Any]) -> Any:
    return args[0] if len(args) == 1 else args


def _slot(arg: Any) -> _Slot:
    return arg if isinstance(arg, _Slot) else _Slot(arg)


def _waiting(args: list[Any]) -> _Run | None:
    return next((arg.run for arg in args if isinstance(arg, _Slot) and arg.run is not None), None)


def _image_of(args: list[Any], keys: list[DataKey]) -> Tensor | None:
    images = (_slot(arg).value for arg, key in zip(args, keys, strict=True) if key == DataKey.INPUT)
    return cast(Tensor | None, next(images, None))


def _size_of(args: list[Any], keys: list[DataKey]) -> tuple[int, int] | None:
    """(H, W) of the first picture that is no empty list."""
    for arg, key in zip(args, keys, strict=True):
        value = _slot(arg).value if key in _PICTURES else []
        for picture in value if isinstance(value, list) else [value]:
            return picture.shape[-2], picture.shape[-1]
    return None


def _batched_image(image: Tensor) -> Tensor:
    return batched(image, -1)  # an image (K, H, W) is never (B, H, W)


def _is_label_map(slot: _Slot) -> bool:
    """Whether the pair operator can take this mask: class ids that the run makes soft."""
    run, mask = slot.run, slot.value
    if run is None or run.num_classes is None or slot.is_soft or isinstance(mask, list):
        return False
    return batched(mask, run.batch).shape[1] == 1


def _ranked(out: Tensor, mask: Tensor, run: _Run) -> Tensor:
    if not run.keepdim:
        return out
    batch_first = mask.ndim == 3 and mask.shape[0] == run.batch
    if batch_first and not run.unbatched and out.shape[1] != 1:
        return out  # (B, H, W) has no place for the classes
    return like_input(out, mask.ndim, batch_first and not run.unbatched)


def _each(function: Callable[[Tensor], Tensor], value: Value) -> Value:
    return [function(mask) for mask in value] if isinstance(value, list) else function(value)


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


def _typed(value: Value, like: Value) -> Value:
    if isinstance(value, list):
        return [mask.to(before.dtype) for mask, before in zip(value, like, strict=True)]
    return value.to(cast(Tensor, like).dtype)


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
