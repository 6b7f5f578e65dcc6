"""Applies a container's modules one by one, as kornia calls for it, and lets modules of this package fuse."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import kornia.augmentation as K
import torch
from kornia.constants import DataKey
from torch import Tensor, nn

from tritonsoft.augmentation import _kornia
from tritonsoft.augmentation._kornia import (
    AugmentationSequentialOps,
    ImageSequentialBase,
    ParamItem,
    override_parameters,
)
from tritonsoft.augmentation.kornia_masks import (
    TAKE_MASKS,
    ExtraArgs,
    as_floats,
    classify,
    leaves_masks,
    move_mask,
    move_sparse,
)
from tritonsoft.augmentation.masks import batched, refuse_sparse
from tritonsoft.augmentation.mixing import MixingAugmentation
from tritonsoft.augmentation.pending import (
    FusedGroup,
    LabelSettings,
    PendingInput,
    PendingInputs,
    PendingSparse,
    all_pending,
    apply_to_each,
    are_pending,
    as_pending,
    as_sparse,
    batched_image,
    image_of,
    materialize,
    values_of,
    with_values,
)
from tritonsoft.augmentation.remapping import RemapLabels
from tritonsoft.augmentation.resampling import ResamplingAugmentation, ShownMask
from tritonsoft.augmentation.view import Size, View, expand_transform, whole

_Pending = TypeVar("_Pending", PendingInput, PendingSparse)


@dataclass(frozen=True)
class _Resample:
    """A resample of the image, or a module that left the image where it was."""

    view: View
    batch: int
    device: torch.device


class FusingOps(AugmentationSequentialOps):
    """Applies one module to all data of a container, postponing what can be done at once later."""

    def __init__(self, data_keys: list[DataKey] | None, labels: LabelSettings) -> None:
        super().__init__(data_keys)
        self.labels = labels
        # What the last call did to positions; of modules that do not say, the names.
        self.steps: list[_Resample | str] = []

    def composed_boxes(self) -> Tensor:
        """The steps as one box per image, where the image is."""
        view, batch, device = self._composed("boxes")
        if not view.is_box:
            raise ValueError("boxes need modules that show a box of the picture, which a warp does not: see matrices")
        boxes = view.transform
        if boxes is None:
            boxes = whole(view.source, torch.empty(1, device="cpu"))
        return cast(Tensor, expand_transform(boxes, batch, device))

    def composed_matrices(self) -> Tensor:
        """The steps as one matrix per image, where the image is."""
        view, batch, device = self._composed("matrices")
        if view.is_field:
            raise ValueError("matrices need modules that have one, which RandomElasticTransform has not")
        return cast(Tensor, expand_transform(view.matrix, batch, device))

    def _composed(self, what: str) -> tuple[View, int, torch.device]:
        """The steps as one view, and the batch and device of the image."""
        others = [step for step in self.steps if isinstance(step, str)]
        if others:
            raise ValueError(f"{what} need modules that say where pixels come from, which {', '.join(others)} do not")
        steps = [step for step in self.steps if not isinstance(step, str)]
        if not steps:
            raise ValueError(f"{what} are those of the last call with an image: call the container first")
        view = steps[0].view
        for step in steps[1:]:
            only_moves = view.only_moves or step.view.only_moves
            if not only_moves or not step.view.can_compose(view):
                raise ValueError(f"{what} need one resample: the last call's modules did not fold into one")
            view = step.view.compose(view)
        return view, steps[0].batch, steps[0].device

    def materialize(self, args: list[Any], keys: list[DataKey]) -> list[Any]:
        """What is pending is done, and images are tensors again."""
        out = self._materialize_pending(args, keys)
        return [
            arg.value if isinstance(arg, PendingInput) and key == DataKey.INPUT else arg
            for arg, key in zip(out, keys, strict=True)
        ]

    def _materialize_pending(self, args: list[Any], keys: list[DataKey]) -> list[Any]:
        if not any(pending.pending_group for pending in all_pending(args)):
            return args
        args = [as_pending(arg) if key == DataKey.INPUT else arg for arg, key in zip(args, keys, strict=True)]
        first = next((args[index] for index, key in enumerate(keys) if key == DataKey.INPUT), None)
        if first is not None and first.pending_group is not None:
            group = first.pending_group
            self.steps.append(_Resample(group.view, group.batch, first.value.device))
        return materialize(args, keys, self.labels)

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
        if isinstance(module, ResamplingAugmentation) and module.can_fuse:
            return self._fused(args, keys, module, param, extra_args)
        if is_plain_container(module):
            return self._through_container(args, keys, module, param, extra_args)
        if isinstance(module, RemapLabels):
            return self._remapped(args, keys, module, param, extra_args)
        if isinstance(module, MixingAugmentation):
            return self._mixed(args, keys, module, param)
        if self.labels.top_k is not None and leaves_masks(module):
            return self._applied(self._materialize_but_labels(args, keys), keys, module, param, extra_args)
        return self._applied(self.materialize(args, keys), keys, module, param, extra_args)

    def _materialize_but_labels(self, args: list[Any], keys: list[DataKey]) -> list[Any]:
        """What is pending is done, but for label maps of which a few classes are to be kept.

        These can be resampled once only, and a module that does nothing to masks does not read them.
        """
        waiting = [index for index, arg in enumerate(args) if keys[index] == DataKey.MASK and _can_wait(arg)]
        done = [index for index in range(len(args)) if index not in waiting]
        materialized = self.materialize([args[index] for index in done], [keys[index] for index in done])
        out = [_waiting(arg) if index in waiting else arg for index, arg in enumerate(args)]
        for index, arg in zip(done, materialized, strict=True):
            out[index] = arg
        return out

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
                _kornia.update_matrix(module, child)
        if records:
            _kornia.set_params(module, param.data)
        return args

    def _fused(
        self,
        args: list[Any],
        keys: list[DataKey],
        module: ResamplingAugmentation,
        param: ParamItem,
        extra_args: ExtraArgs,
    ) -> list[Any]:
        """Images and masks become pending, with this module's view added to theirs."""
        if DataKey.MASK in keys:
            module.check_mask_options(extra_args.get(DataKey.MASK, {}))
        params = cast(dict[str, Tensor], param.data)
        flags = override_parameters(module.flags, extra_args.get(DataKey.INPUT, {}), in_place=False)
        image = image_of(args, keys)
        if "batch_prob" not in params:  # kornia's rule: then all samples are transformed
            params["batch_prob"] = torch.ones(1 if image is None else batched_image(image).shape[0], dtype=torch.bool)
        out: list[Any] = [
            as_sparse(arg) or classify(arg, image, param, self.labels)
            if key == DataKey.MASK
            else as_pending(arg)
            if key == DataKey.INPUT
            else arg
            for arg, key in zip(args, keys, strict=True)
        ]
        if module.awaits_labels(params):
            out = self._with_choice(out, keys, module, params)
        inputs = all_pending(out)
        _check_sparse(inputs, module, params, flags)
        views = _views_by_size(inputs, module, params, flags)
        if any(each.pending_group and not each.pending_group.can_grow(views[each.size]) for each in inputs):
            out = self._materialize_pending(out, keys)
            _check_sparse(all_pending(out), module, params, flags)
        # Inputs of one size and history share a group. (Of a key, id(history), PyTorch 2.11 can make no graph.)
        groups: list[tuple[FusedGroup | None, Size, FusedGroup]] = []

        def extended(pending: _Pending) -> _Pending:
            for history, size, group in groups:
                if history is pending.pending_group and size == pending.size:
                    return replace(pending, pending_group=group)
            group = FusedGroup(
                view=views[pending.size],
                batch=params["batch_prob"].numel(),
                num_classes=module.num_classes,
                ignore_index=module.ignore_index,
                # A label map that becomes soft later must not hold another value for the same until then.
                outside=module.ignore_index if self.labels.num_classes is None else self.labels.ignore_index,
                keepdim=module.keepdim,
                unbatched=image is not None and image.ndim < 4,
            )
            if pending.pending_group is not None:
                group = pending.pending_group.then(group)
            groups.append((pending.pending_group, pending.size, group))
            return replace(pending, pending_group=group)

        first = next((arg for arg, key in zip(out, keys, strict=True) if key == DataKey.INPUT), None)
        if first is not None:
            # Of several images the first: its size is what the parameters were drawn for.
            module.remember(first.value, first.size, params, flags)
        return [
            apply_to_each(extended, arg)
            if key in (DataKey.INPUT, DataKey.MASK)
            else self._moved(arg, key, module, param, extra_args)
            for arg, key in zip(out, keys, strict=True)
        ]

    def _with_choice(
        self, args: list[Any], keys: list[DataKey], module: ResamplingAugmentation, params: dict[str, Tensor]
    ) -> list[Any]:
        """The parameters get what the first mask, as it is by now, decides."""
        if any(each.pending_group is not None and each.pending_group.view.is_field for each in all_pending(args)):
            args = self._materialize_pending(args, keys)  # as the module would need it: nothing follows a field
        mask = next((arg for arg, key in zip(args, keys, strict=True) if key == DataKey.MASK), None)
        masks = [mask] if isinstance(mask, PendingInput) else mask
        if isinstance(masks, list) and masks:  # without any, or with what cannot be resampled, there is an error below
            batch = params["batch_prob"].numel()
            shown = [_shown(each, batch if len(masks) == 1 else 1, sample) for sample, each in enumerate(masks)]
            params.update(module.chosen_by(params, shown))
        return args

    def _remapped(
        self, args: list[Any], keys: list[DataKey], module: RemapLabels, param: ParamItem, extra_args: ExtraArgs
    ) -> list[Any]:
        """Masks get new values, and nothing becomes less pending."""
        image = image_of(args, keys)
        if image is not None:
            module.record_call(cast(dict[str, Tensor], param.data), image)
            self._record_step(module, image)
        return [
            self._moved_mask(arg, image, "transform", module, param, extra_args) if key == DataKey.MASK else arg
            for arg, key in zip(args, keys, strict=True)
        ]

    def _mixed(self, args: list[Any], keys: list[DataKey], module: MixingAugmentation, param: ParamItem) -> list[Any]:
        """Samples get pixels of each other, all data at once: what is pending is done first."""
        module.check_keys(keys)
        image = image_of(args, keys)
        if image is not None:
            self._record_step(module, image)
        params = cast(dict[str, Tensor], param.data)
        mixed = module.mix(self._materialize_pending(args, keys), keys, params, self.labels)
        module.record_params(params)
        return mixed

    def _applied(
        self, args: list[Any], keys: list[DataKey], module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> list[Any]:
        """A module that does not fuse, by kornia's own operations."""
        image = image_of(args, keys)
        if image is not None:
            self._record_step(module, image)
        if isinstance(module, K.RandomTransplantation):  # it draws its parameters from image and masks together
            if any(map(as_sparse, args)):
                refuse_sparse(module)
            floats = [as_floats(values_of(arg), image) if are_pending(arg) else arg for arg in args]
            out = super().transform(*floats, module=module, param=param, extra_args=extra_args, data_keys=keys)
            pairs = zip(args, out, strict=True)
            return [with_values(arg, value) if isinstance(arg, PendingInput) else value for arg, value in pairs]
        out = list(args)
        order = sorted(range(len(args)), key=lambda index: keys[index] != DataKey.INPUT)
        if isinstance(module, TAKE_MASKS):
            # Boxes, keypoints and masks read the matrix that an image leaves behind: the first one's.
            order = sorted(range(len(args)), key=lambda index: (keys[index] != DataKey.INPUT, -index))
        for index in order:
            if keys[index] == DataKey.MASK:
                out[index] = self._moved_mask(args[index], image, "transform", module, param, extra_args)
            else:
                out[index] = self._moved(args[index], keys[index], module, param, extra_args)
        return out

    def _moved_mask(
        self, arg: Any, image: Tensor | None, way: str, module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> PendingInputs | PendingSparse:
        sparse = as_sparse(arg)
        if sparse is not None:
            return move_sparse(sparse, way, module, param, extra_args)
        return move_mask(apply_to_each(as_pending, arg), image, way, module, param, extra_args, self.labels)

    def _record_step(self, module: nn.Module, image: Tensor) -> None:
        source = (image.shape[-2], image.shape[-1])
        if isinstance(module, TAKE_MASKS) and not isinstance(module, K.IntensityAugmentationBase2D):
            self.steps.append(type(module).__name__)
        elif not self.steps:
            batch = image.shape[0] if image.ndim > 3 else 1
            self.steps.append(_Resample(View(source, source), batch, image.device))

    def _moved(self, arg: Any, key: DataKey, module: Any, param: ParamItem, extra_args: ExtraArgs) -> Any:
        return _kornia.operation_of(self, key).transform(arg, module, param=param, extra_args=extra_args.get(key, {}))

    # --- and back ---------------------------------------------------------------------------------------------------

    def _inverted(
        self, args: list[Any], keys: list[DataKey], module: Any, param: ParamItem, extra_args: ExtraArgs
    ) -> list[Any]:
        if is_plain_container(module):
            for child in reversed(cast(list[ParamItem], param.data)):
                args = self._inverted(args, keys, module.get_submodule(child.name), child, extra_args)
            return args
        if isinstance(module, MixingAugmentation):
            module.inverse()
        out = list(args)
        image = image_of(args, keys)
        for index, key in enumerate(keys):
            if key == DataKey.MASK:
                out[index] = self._moved_mask(args[index], image, "inverse", module, param, extra_args)
            else:
                out[index] = _kornia.operation_of(self, key).inverse(
                    args[index], module, param=param, extra_args=extra_args.get(key, {})
                )
        return out


def _shown(mask: PendingInput, batch: int, sample: int) -> ShownMask:
    """The mask of a batch, or of one of its samples, and what is shown of it."""
    view = View(mask.size, mask.size) if mask.pending_group is None else mask.pending_group.view
    return ShownMask(batched(mask.value, batch), view.sample(sample) if batch == 1 else view, mask.kind == "soft label")


def is_plain_container(module: nn.Module) -> bool:
    """Whether a nested container does nothing but apply its children one after the other."""
    plain = (ImageSequentialBase.transform_inputs, K.AugmentationSequential.transform_inputs)
    return isinstance(module, ImageSequentialBase) and type(module).transform_inputs in plain


def _can_wait(arg: Any) -> bool:
    """Whether a mask is a label map that becomes soft when it is resampled."""
    group = arg.pending_group if isinstance(arg, PendingInput) and arg.kind == "label map" else None
    return group is not None and group.num_classes is not None


def _waiting(mask: PendingInput) -> PendingInput:
    assert mask.pending_group is not None
    return replace(mask, pending_group=replace(mask.pending_group, waits=True))


def _check_sparse(
    inputs: list[PendingInput | PendingSparse],
    module: ResamplingAugmentation,
    params: dict[str, Tensor],
    flags: dict[str, Any],
) -> None:
    """An error where a module cannot show one of the inputs."""
    for each in inputs:
        if isinstance(each, PendingSparse):
            module.check_sparse(each.value, each.size, params, flags)


def _views_by_size(
    inputs: list[PendingInput | PendingSparse],
    module: ResamplingAugmentation,
    params: dict[str, Tensor],
    flags: dict[str, Any],
) -> dict[Size, View]:
    """What the module shows of the images and masks of each size."""
    views: dict[Size, View] = {}
    for each in inputs:
        if each.size not in views:
            views[each.size] = module.view(each.size, params, flags, each.value.device, inputs[0].size)
    return views


def _one_or_all(args: list[Any]) -> Any:
    return args[0] if len(args) == 1 else args
