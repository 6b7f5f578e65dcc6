"""Modules that mix the samples of a batch with each other: images and labels at once, by the same numbers.

A sample gets some of the pixels of its *partner*, another sample of the batch: those in a box (`RandomCutMix`), a share
of all (`RandomMixUp`), or those of some classes (`RandomClassMix`). All read the batch as it came in, so that a partner
is never one that was mixed already.

Where masks are label maps, as they are before the first resample, whole pixels are pasted, bit for bit. Soft labels are
masses, and everything is linear in them: a pixel of which a share m is pasted has m of its partner's colour and
``1 - m`` of its own, and the masses likewise.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn, cast

import torch
from kornia.constants import DataKey
from torch import Tensor

import tritonsoft as ts
from tritonsoft.augmentation._kornia import MixHooks, set_param_generator
from tritonsoft.augmentation.masks import SoftLabel, batched, label_map, map_planes, restore_rank
from tritonsoft.augmentation.mixed_pixels import (
    Boxes,
    Classes,
    Share,
    Shares,
    Weights,
    paste_masses,
    read_numbers,
)
from tritonsoft.augmentation.mixing_generators import (
    ClassGenerator,
    CutGenerator,
    PairGenerator,
    WeightGenerator,
    boxes_of,
)
from tritonsoft.augmentation.pending import LabelSettings, PendingInput, PendingSparse, as_sparse, batched_image
from tritonsoft.augmentation.resampling import Params, are_numbers, check_drawn, check_probability
from tritonsoft.augmentation.view import to_device
from tritonsoft.functional import check_ignore_index, check_num_classes, plain

Mask = PendingInput | PendingSparse

_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


# --- the modules -----------------------------------------------------------------------------------------------------


class MixingAugmentation(MixHooks):
    """What the modules of this file share; a subclass draws its numbers, and says what they do to images and masks."""

    needs_equal_sizes = True  # whether images and masks must have the same pixels
    drawn_names: tuple[str, ...] = ()  # of the numbers that are drawn beside the partners

    num_classes: int | None
    ignore_index: int

    def __init__(
        self,
        generator: PairGenerator,
        same_on_batch: bool,
        p: float,
        keepdim: bool,
        data_keys: Sequence[str | int | DataKey],
        num_classes: int | None = None,
        ignore_index: int | None = None,
    ) -> None:
        if isinstance(data_keys, str):
            raise TypeError(f"data_keys must be a list of names, got {data_keys!r}")
        check_probability(p)
        super().__init__(p=p, p_batch=1.0, same_on_batch=same_on_batch, keepdim=keepdim, data_keys=[*data_keys])
        set_param_generator(self, generator)
        if num_classes is not None:
            num_classes = check_num_classes(num_classes)
        elif ignore_index is not None:
            raise ValueError(
                f"ignore_index must be None where num_classes is, got {ignore_index!r}: both are then those of the "
                "container's other modules"
            )
        self.num_classes, self.ignore_index = num_classes, check_ignore_index(ignore_index, num_classes)

    def __repr__(self) -> str:
        ours = "" if self.num_classes is None else f", num_classes={self.num_classes}, ignore_index={self.ignore_index}"
        return f"{super().__repr__()[:-1]}{ours})"

    # --- what a subclass says ---------------------------------------------------------------------------------------

    def _mixed(
        self, images: list[Tensor], masks: list[Mask], params: Params, partners: Tensor, labels: LabelSettings
    ) -> tuple[list[Tensor], list[Mask]]:
        """Batches of images and masks with the pixels of their partners ``(B,)``; who stays as it is is its own."""
        raise NotImplementedError

    # --- all data of a call -----------------------------------------------------------------------------------------

    def mix(self, args: list[Any], keys: list[DataKey], params: Params, labels: LabelSettings) -> list[Any]:
        """Images and masks, mixed alike; masks as `PendingInput` or `PendingSparse` that know what they are."""
        self.check_keys(keys)
        if "video_batch_size" in params:
            raise ValueError(
                f"{type(self).__name__} mixes images, and has no place in a VideoSequential, whose frames it would mix"
            )
        partners = self._partners(params)
        batch = partners.numel()
        images = {index: _batched_image(args[index], batch) for index, key in enumerate(keys) if key == DataKey.INPUT}
        masks = {index: self._mask(args[index], batch, labels) for index in range(len(keys)) if index not in images}
        self._check_sizes([*images.values(), *(mask.value for mask in masks.values())])
        mixed_images, mixed_masks = self._mixed([*images.values()], [*masks.values()], params, partners, labels)
        shown = [
            restore_rank(image, _value(args[index]).ndim, batch_first=False) if self.keepdim else image
            for index, image in zip(images, mixed_images, strict=True)
        ]
        unbatched = any(_value(args[index]).ndim == 3 for index in images)
        kept = [
            _restored(mask, _value(args[index]), batch, unbatched) if self.keepdim else mask
            for index, mask in zip(masks, mixed_masks, strict=True)
        ]
        out = dict(zip([*images, *masks], [*shown, *kept], strict=True))
        return [out[index] for index in range(len(keys))]

    def _partners(self, params: Params) -> Tensor:
        """The partner of each sample ``(B,)``: itself where the probability skips it."""
        check_drawn(self, params, ("mix_pairs", *self.drawn_names))
        partners = params["mix_pairs"]
        batch, read = partners.numel(), read_numbers(partners)
        if read is not None and not all(0 <= partner < batch for partner in read[0]):
            raise ValueError(f"params must have 'mix_pairs' in 0..{batch - 1}, numbers of samples, got {read[0]}")
        gate = params.get("batch_prob")
        if gate is None:
            return partners
        applies = to_device(gate, partners.device) > 0.5
        return torch.where(applies, partners, torch.arange(batch, device=partners.device))

    def check_keys(self, keys: Sequence[DataKey]) -> None:
        for key in keys:
            if key not in (DataKey.INPUT, DataKey.MASK):
                raise ValueError(
                    f"data_keys of {type(self).__name__} must be 'image' and 'mask', got {key.name.lower()!r}: what "
                    "belongs to a whole sample has no meaning where two share its pixels"
                )

    def _mask(self, arg: Any, batch: int, labels: LabelSettings) -> Mask:
        if isinstance(arg, list):
            raise TypeError(
                f"mask must be one tensor for all samples of a batch that {type(self).__name__} mixes, got a list of "
                f"{len(arg)}: stack it"
            )
        sparse = as_sparse(arg)
        if sparse is not None:
            mask: Mask = replace(sparse, value=batched(sparse.value, batch))
        else:
            pending = arg if isinstance(arg, PendingInput) else PendingInput(arg)
            pending = labels.classify_mask(pending, batch, "transform")
            mask = replace(pending, value=batched(plain(pending.value), batch))
        if mask.value.shape[0] != batch:
            raise ValueError(f"mask must have the batch of its parameters, {batch}, got {tuple(_value(arg).shape)}")
        return mask

    def _check_sizes(self, values: list[Tensor | ts.SparseLabels]) -> None:
        sizes = list(dict.fromkeys((value.shape[-2], value.shape[-1]) for value in values))
        if self.needs_equal_sizes and len(sizes) > 1:
            raise ValueError(
                f"images and masks must have the same (H, W) for {type(self).__name__}, which puts pixels of one "
                f"sample in the place of another's, got {sizes}"
            )

    def _refuse(self, mask: Mask, wanted: str) -> NoReturn:
        if isinstance(mask, PendingSparse):
            raise TypeError(
                f"mask must be {wanted} for {type(self).__name__}, got SparseLabels, whose few classes of each pixel "
                "cannot hold those of two samples: give the label map, or dense masses, sparse.to_dense()"
            )
        raise ValueError(
            f"mask must be {wanted} for {type(self).__name__}, got {mask.value.dtype} {tuple(mask.value.shape)}"
        )

    def _classes(self, labels: LabelSettings) -> int:
        if labels.num_classes is None:
            raise ValueError(
                f"num_classes must be given to {type(self).__name__}, or to a module of its container, where a mask is "
                "a label map: class ids cannot be averaged, the masses of a soft label can"
            )
        if labels.top_k is not None:
            raise ValueError(
                f"top_k must be None in a container with {type(self).__name__}, got {labels.top_k}: a few classes of "
                "each pixel cannot hold those of two samples"
            )
        return labels.num_classes

    # --- kornia's contract ------------------------------------------------------------------------------------------

    def forward(self, *input: Any, params: Params | None = None, data_keys: Any = None) -> Any:
        """Images and masks in the order of ``data_keys``, one by itself or a list of them."""
        keys = self.data_keys if data_keys is None else [DataKey.get(key) for key in data_keys]
        if len(input) != len(keys):
            names = [key.name.lower() for key in keys]
            raise ValueError(
                f"{type(self).__name__} must get one argument for each of data_keys={names}, got {len(input)}"
            )
        self.check_keys(keys)
        if params is None:
            if DataKey.INPUT not in keys:
                raise ValueError(f"{type(self).__name__} needs an image to draw its numbers for, or params=")
            image = _image(input[keys.index(DataKey.INPUT)])
            params = self.forward_parameters(batched_image(image).shape)
        mixed = self.mix([*input], keys, params, self._labels)
        self.record_params(params)
        out = [_unwrapped(*pair) for pair in zip(mixed, input, strict=True)]
        return out[0] if len(out) == 1 else out

    def transform_mask(self, input: Any, params: Params, flags: dict[str, Any]) -> Any:
        """A mask by itself, as kornia's container hands it over, which knows nothing of soft labels."""
        (mask,) = self.mix([input], [DataKey.MASK], params, self._labels)
        became_soft = isinstance(mask, PendingInput) and mask.kind == "soft label"
        return mask.value.as_subclass(SoftLabel) if became_soft else mask.value

    def inverse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f"{type(self).__name__} has no inverse: the pixels that a sample gave up for its partner's are lost"
        )

    @property
    def _labels(self) -> LabelSettings:
        return LabelSettings(self.num_classes, self.ignore_index, soft_dtype=None, top_k=None)


def _image(arg: Any) -> Tensor:
    image = _value(arg)
    if not isinstance(image, Tensor) or image.ndim not in (3, 4):
        got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"image must be a tensor (B, K, H, W) or (K, H, W), got {got}")
    return image


def _batched_image(arg: Any, batch: int) -> Tensor:
    given = _image(arg)
    image = batched_image(plain(given))
    if image.shape[0] != batch:
        raise ValueError(f"image must have the batch of its parameters, {batch}, got {tuple(given.shape)}")
    return image


def _value(arg: Any) -> Any:
    return arg.value if isinstance(arg, PendingInput | PendingSparse) else arg


def _restored(mask: Mask, given: Any, batch: int, unbatched: bool) -> Mask:
    """A mask with the rank it came in, as far as its channels allow."""
    if isinstance(mask, PendingSparse):
        return replace(mask, value=mask.value[0]) if given.ndim == 3 else mask
    batch_first = given.ndim == 3 and given.shape[0] == batch and not unbatched
    if batch_first and mask.value.shape[1] != 1:
        return mask  # (B, H, W) has no place for the classes
    return replace(mask, value=restore_rank(mask.value, given.ndim, batch_first))


def _unwrapped(arg: Any, given: Any) -> Any:
    """What a caller gets of it; of one class, masses look like class ids and are marked."""
    value = _value(arg)
    is_soft = isinstance(arg, PendingInput) and arg.kind == "soft label"
    marked = is_soft and (isinstance(given, SoftLabel) or value.shape[-3] == 1)
    return value.as_subclass(SoftLabel) if marked else value


class RandomCutMix(MixingAugmentation):
    """Paste a box of another sample of the batch, image and label alike (CutMix, Yun et al., arXiv 1905.04899).

    The box has the image's shape and lies anywhere inside of it. What is pasted is what the partner has there, ignored
    pixels included, so that image and label agree pixel by pixel: on label maps of any type, hard masks, soft labels
    and `tritonsoft.SparseLabels` alike, bit for bit.

    In `AugmentationSequential` what is pending is resampled first. It may stand anywhere: before the first resample,
    a run of crops, flips and warps after it is still one resample; after the crop there are fewer pixels to copy.

    kornia's `RandomCutMixV2` differs: it mixes images alone, draws for whole batches, pairs a sample with itself at
    times, and has ``cut_size``, a range of what is *left* of the image, clamped.

    Args:
        alpha: the share of the area that the box covers is drawn from Beta(alpha, alpha); 1 is evenly.
        area: the range of that share, ``(smallest, largest)`` between 0 and 1, over which the draw is spread; sides
            are rounded to pixels. ``(0.5, 0.5)``: half of the image, always.
        same_on_batch: one box for all samples; partners differ all the same.
        p: probability that a sample gets a box of its partner.
        keepdim: keep the rank of the input.
        data_keys: what the arguments of a call are: ``"image"`` and ``"mask"``, several of each if wanted.

    Shape:
        Image ``(B, K, H, W)`` of any type. Mask: label map ``(B, H, W)`` or ``(B, 1, H, W)`` of any type, planes or a
        soft label ``(B, C, H, W)``, or a `tritonsoft.SparseLabels`. Gives the same, label maps as ``(B, 1, H, W)``. A
        batch of one has nobody to be mixed with, and stays as it is.

    Raises:
        ValueError: other ``data_keys``, images and masks of several sizes, or ``params`` of another batch or module.
        RuntimeError: ``inverse``, as in kornia.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> mix = RandomCutMix(area=(0.5, 0.5))
        >>> label_map = torch.tensor([0, 1])[:, None, None].expand(2, 10, 10)
        >>> image, mixed = mix(label_map[:, None].float(), label_map)
        >>> torch.equal(image, mixed.float()), mixed[0].sum()  # 7 x 7 pixels of the other
        (True, tensor(49))
    """

    drawn_names = ("area", "across", "down")

    def __init__(
        self,
        alpha: float = 1.0,
        area: tuple[float, float] = (0.0, 1.0),
        same_on_batch: bool = False,
        p: float = 1.0,
        keepdim: bool = False,
        data_keys: Sequence[str | int | DataKey] = ("image", "mask"),
    ) -> None:
        generator = CutGenerator(_positive(alpha, "alpha"), _limits(area, "area"))
        super().__init__(generator, same_on_batch, p, keepdim, data_keys)

    def _mixed(
        self, images: list[Tensor], masks: list[Mask], params: Params, partners: Tensor, labels: LabelSettings
    ) -> tuple[list[Tensor], list[Mask]]:
        values = [*images, *(mask.value for mask in masks)]
        if not values:
            return [], []
        share = Boxes(boxes_of(params, (values[0].shape[-2], values[0].shape[-1])))
        return _all_mixed(share, images, masks, partners)


class RandomMixUp(MixingAugmentation):
    """Blend each sample with another of the batch, image and label alike (mixup, Zhang et al., arXiv 1710.09412).

    A share ``w`` of the partner and ``1 - w`` of the sample itself: of the image, and of the masses of its soft label.
    Ignored pixels have no mass, so where one of the two is unknown the pixel keeps the other's share alone, and losses
    weigh it by that. A label map becomes soft, its one-hot mass, as there is no class between two: that needs
    ``num_classes``, here or in a module of the container. After the crops there are fewer pixels to make soft.

    kornia's `RandomMixUpV2` differs: it mixes images alone, draws for whole batches, and pairs a sample with itself at
    times.

    Args:
        alpha: the share is drawn from Beta(alpha, alpha); 1 is evenly.
        lambda_val: the range of the share, ``(smallest, largest)`` between 0 and 1, over which the draw is spread.
        same_on_batch: one share for all samples; partners differ all the same.
        p: probability that a sample is blended; others stay as they are, their label maps soft all the same.
        keepdim: keep the rank of the input.
        data_keys: what the arguments of a call are: ``"image"`` and ``"mask"``, several of each if wanted.
        num_classes: C, of label maps; None: that of the container's other modules.
        ignore_index: with ``num_classes``, the label that carries no mass; None is 255. Without it, that of the
            container's other modules, and none may be given.

    Shape:
        Image ``(B, K, H, W)``, floating. Mask: label map ``(B, H, W)`` or ``(B, 1, H, W)``, or planes of floats
        ``(B, C, H, W)``, masses for one. Gives the same, label maps as a soft label ``(B, C, H, W)``. A batch of one
        is not blended.

    Raises:
        TypeError: an image that is not floating, or a `tritonsoft.SparseLabels`.
        ValueError: a label map without ``num_classes``, integers of several channels; as for `RandomCutMix`.
        RuntimeError: ``inverse``, as in kornia.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> mix = RandomMixUp(lambda_val=(0.25, 0.25), num_classes=2)
        >>> image, soft = mix(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([[[0]], [[255]]]))
        >>> image.flatten(), soft.flatten(1)
        (tensor([0.2500, 0.7500]), tensor([[0.7500, 0.0000],
                [0.2500, 0.0000]]))
    """

    needs_equal_sizes = False
    drawn_names = ("weight",)

    def __init__(
        self,
        alpha: float = 1.0,
        lambda_val: tuple[float, float] = (0.0, 1.0),
        same_on_batch: bool = False,
        p: float = 1.0,
        keepdim: bool = False,
        data_keys: Sequence[str | int | DataKey] = ("image", "mask"),
        num_classes: int | None = None,
        ignore_index: int | None = None,
    ) -> None:
        generator = WeightGenerator(_positive(alpha, "alpha"), _limits(lambda_val, "lambda_val"))
        super().__init__(generator, same_on_batch, p, keepdim, data_keys, num_classes, ignore_index)

    def _mixed(
        self, images: list[Tensor], masks: list[Mask], params: Params, partners: Tensor, labels: LabelSettings
    ) -> tuple[list[Tensor], list[Mask]]:
        _check_floating(self, images)
        share = Weights(params["weight"])
        blended: list[Mask] = [self._blended(mask, images, share, partners, labels) for mask in masks]
        return [share.mix(image, partners) for image in images], blended

    def _blended(
        self, mask: Mask, images: list[Tensor], share: Weights, partners: Tensor, labels: LabelSettings
    ) -> PendingInput:
        """Masses, of a label map too."""
        if isinstance(mask, PendingSparse):
            self._refuse(mask, "a tensor")
        if mask.kind == "label map":
            num_classes = self._classes(labels)
            dtype = labels.dtype_of_soft(mask.value, images[0] if images else None)
            ids = label_map(mask.value, num_classes)
            soft = share.mix_labels(ids, partners, num_classes, labels.ignore_index, dtype)
            return replace(mask, value=soft, kind="soft label")
        if not mask.value.is_floating_point():
            self._refuse(mask, "a label map (B, 1, H, W), or floats that can be averaged")
        return replace(mask, value=share.mix(mask.value, partners))


class RandomClassMix(MixingAugmentation):
    """Paste the pixels of some classes of another sample of the batch (ClassMix, Olsson et al., arXiv 2007.07936).

    Of the classes that the partner has, a share is chosen at random, as many as ``share`` of them, rounded, and at
    least one; what of the partner is one of these replaces what is there. Ignored pixels are never pasted, and stay
    where nothing is. Which classes a sample has is found out on its device, and the host waits for nothing; the chosen
    ones are left in the parameters (``"classes"``, ``(B, C)``), so that a replay pastes the same classes, whatever the
    labels are then.

    Best before the first resample, on label maps: whole pixels are pasted, bit for bit, and a run of crops, flips and
    warps after it is still one resample. On soft labels it does the same by linearity: a pixel of which a share m is
    mass of chosen classes has m of the partner's colour and ``1 - m`` of its own, the chosen masses, and ``1 - m``
    times those it had. With several masks the first one says what is chosen, and where.

    kornia has none (its `RandomTransplantation` pastes one class, found on the host).

    Args:
        num_classes: C.
        share: of the partner's classes, above 0 and up to 1.
        same_on_batch: the same order of classes for all samples, of which each takes those its partner has.
        p: probability that a sample gets pixels of its partner.
        keepdim: keep the rank of the input.
        data_keys: what the arguments of a call are: ``"image"`` and ``"mask"``, several of each if wanted.
        ignore_index: the label that is no class. None is 255.

    Shape:
        Image ``(B, K, H, W)`` of any type, floating beside soft labels. Mask: label map ``(B, H, W)`` or
        ``(B, 1, H, W)`` of any type, or a soft label ``(B, C, H, W)``. Gives the same, label maps as ``(B, 1, H, W)``.
        A batch of one has nobody to be mixed with, and stays as it is.

    Raises:
        TypeError: a `tritonsoft.SparseLabels`; an image that is not floating beside a soft label.
        ValueError: no mask; planes other than C floats; label values out of range (on the CPU, or with
            ``TRITONSOFT_VALIDATE=1``; otherwise they are no class); as for `RandomCutMix`.
        RuntimeError: ``inverse``, as in kornia.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> mix = RandomClassMix(num_classes=4)
        >>> label_map = torch.tensor([[[0, 0, 1, 1]], [[2, 3, 3, 255]]])
        >>> image, mixed = mix(label_map[:, None].float(), label_map)
        >>> mixed[:, 0], torch.equal(image, mixed.float())
        (tensor([[[  2,   0,   1,   1]],
        <BLANKLINE>
                [[  0,   0,   3, 255]]]), True)
    """

    drawn_names = ("class_order",)

    num_classes: int

    def __init__(
        self,
        num_classes: int,
        share: float = 0.5,
        same_on_batch: bool = False,
        p: float = 1.0,
        keepdim: bool = False,
        data_keys: Sequence[str | int | DataKey] = ("image", "mask"),
        ignore_index: int | None = None,
    ) -> None:
        if not are_numbers([share]) or not 0 < share <= 1:
            raise ValueError(f"share must be a number above 0 and up to 1, got {share!r}")
        num_classes = check_num_classes(num_classes)
        generator = ClassGenerator(num_classes, float(share))
        super().__init__(generator, same_on_batch, p, keepdim, data_keys, num_classes, ignore_index)
        self.share = float(share)

    def _mixed(
        self, images: list[Tensor], masks: list[Mask], params: Params, partners: Tensor, labels: LabelSettings
    ) -> tuple[list[Tensor], list[Mask]]:
        if not masks:
            raise ValueError(
                "RandomClassMix needs a mask beside the image, in the same call: what is pasted depends on it; the "
                "container of tritonsoft.augmentation hands both over, kornia's one after the other"
            )
        deciding = masks[0]
        if isinstance(deciding, PendingSparse) or deciding.kind == "hard planes":
            self._refuse(deciding, f"a label map (B, 1, H, W) or a soft label of {self.num_classes} classes")
        if deciding.kind == "label map":
            return self._paste(label_map(deciding.value, self.num_classes), images, masks, params, partners)
        return self._blend(deciding.value, images, masks, params, partners)

    def _paste(
        self, labels: Tensor, images: list[Tensor], masks: list[Mask], params: Params, partners: Tensor
    ) -> tuple[list[Tensor], list[Mask]]:
        """Whole pixels, as the label map ``(B, H, W)`` of class ids says."""
        areas = ts.class_areas(labels, None, self.num_classes, ignore_index=self.ignore_index)  # of a replay, the check
        if "classes" not in params:
            params["classes"] = self._choose(areas > 0, params)
        chosen = self._chosen(params, labels.device)
        return _all_mixed(Classes(labels, chosen), images, masks, partners)

    def _blend(
        self, soft: Tensor, images: list[Tensor], masks: list[Mask], params: Params, partners: Tensor
    ) -> tuple[list[Tensor], list[Mask]]:
        """Shares of pixels, as the soft label ``(B, C, H, W)`` says."""
        _check_floating(self, images)
        for mask in masks[1:]:
            if isinstance(mask, PendingSparse) or mask.kind == "label map" or not mask.value.is_floating_point():
                self._refuse(mask, "a soft label like the first one")
        if "classes" not in params:
            params["classes"] = self._choose(soft.detach().amax((2, 3)) > 0, params)
        others = partners != torch.arange(partners.shape[0], device=partners.device)
        chosen = self._chosen(params, soft.device) & to_device(others, soft.device)[:, None]
        mixed, pasted = paste_masses(soft, chosen, partners)
        images, further = _all_mixed(Shares(pasted), images, masks[1:], partners)
        return images, [replace(cast(PendingInput, masks[0]), value=mixed), *further]

    def _choose(self, present: Tensor, params: Params) -> Tensor:
        """Which classes of its partner each sample gets, of those ``(B, C)`` that the samples have."""
        present = present.index_select(0, to_device(params["mix_pairs"], present.device))
        order = to_device(params["class_order"], present.device).masked_fill(~present, 2.0)
        rank = order.argsort(dim=1, stable=True).argsort(dim=1)
        wanted = (present.sum(1, keepdim=True) * self.share + 0.5).floor().clamp(min=1)
        return present & (rank < wanted)

    def _chosen(self, params: Params, device: torch.device) -> Tensor:
        chosen, wanted = params["classes"], (params["mix_pairs"].numel(), self.num_classes)
        if tuple(chosen.shape) != wanted:
            raise ValueError(
                f"params must have the 'classes' of {wanted} samples and classes, got {tuple(chosen.shape)}"
            )
        return to_device(chosen, device)


# --- how the modules mix ---------------------------------------------------------------------------------------------


def _all_mixed(
    share: Share, images: list[Tensor], masks: list[Mask], partners: Tensor
) -> tuple[list[Tensor], list[Mask]]:
    def mixed(mask: Mask) -> Mask:
        if isinstance(mask, PendingSparse):
            return replace(mask, value=map_planes(mask.value, lambda planes: share.mix(planes, partners)))
        return replace(mask, value=share.mix(mask.value, partners))

    return [share.mix(image, partners) for image in images], [mixed(mask) for mask in masks]


def _check_floating(module: MixingAugmentation, images: list[Tensor]) -> None:
    for image in images:
        if image.dtype not in _FLOATS:
            raise TypeError(
                f"image must be floating for {type(module).__name__}, which averages colours here, got {image.dtype}"
            )


def _positive(value: Any, name: str) -> float:
    if not are_numbers([value]) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a number above 0, got {value!r}")
    return float(value)


def _limits(value: Any, name: str) -> tuple[float, float]:
    if not are_numbers(value) or len(value) != 2 or not 0 <= value[0] <= value[1] <= 1:
        raise ValueError(f"{name} must be (smallest, largest) with 0 <= smallest <= largest <= 1, got {value!r}")
    return float(value[0]), float(value[1])
