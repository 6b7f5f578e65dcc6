"""kornia's container, in which a run of crops, resizes, flips and warps is one resample of the original pixels.

kornia's ``forward`` stays in charge: it hands every module in turn, with all data, to the container's ``transform_op``,
ours (`fusing_ops`). It resamples nothing at a module of this package: images and masks become pending (`pending`) with
the view that the module shows, the next such module extends that view, and the pixels are read when something else
needs them, or at the end. Boxes and keypoints move module by module, by the modules' matrices, as in kornia. Each image
and each mask has a view of its own, and whether a mask is a soft label is found out once, when it comes in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from kornia.constants import DataKey
from torch import Tensor, nn

import tritonsoft as ts
from tritonsoft.augmentation import _kornia
from tritonsoft.augmentation._kornia import ContainerHooks, ParamItem
from tritonsoft.augmentation.fusing_ops import FusingOps, is_plain_container
from tritonsoft.augmentation.geometric import GeometricAugmentation
from tritonsoft.augmentation.kornia_masks import DRAW_PARAMETERS, ExtraArgs
from tritonsoft.augmentation.masks import SoftLabel, check_mask, repeat_single_sample
from tritonsoft.augmentation.mixing import MixingAugmentation
from tritonsoft.augmentation.pending import LabelSettings, PendingInput, Value, are_pending, values_of
from tritonsoft.augmentation.resampling import ResamplingAugmentation
from tritonsoft.functional import MASS_DTYPES, names_of, plain


@dataclass(frozen=True)
class _Matrix:
    """The matrix of one call of a module, to be made later."""

    module: GeometricAugmentation
    image: Tensor  # its shape, type and device
    params: dict[str, Any]
    flags: dict[str, Any]

    @classmethod
    def of(
        cls, module: GeometricAugmentation, image: Tensor, params: dict[str, Any], flags: dict[str, Any]
    ) -> "_Matrix":
        """Of what is now: parameters may be edited in place, and flags assigned, before the matrix is made."""
        copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in params.items()}
        return cls(module, image, copies, dict(flags))

    def __call__(self) -> Tensor:
        return cast(Tensor, self.module.generate_transformation_matrix(self.image, self.params, self.flags))


class AugmentationSequential(ContainerHooks):
    """kornia's `AugmentationSequential` for images with label maps: a drop-in for training semantic segmentation.

    A run of neighbouring modules of this package is one resample of the original pixels, of image and label map
    together, and one launch on a GPU. Crops, resizes and flips alone come to one box per sample
    (`tritonsoft.crop_resize_pair`); with rotations, affine warps and perspectives among them, to one matrix
    (`tritonsoft.warp_pair`); and an elastic transform, which ends its run, to one field. The label map becomes soft if
    any module of the run has ``num_classes``. All other modules work as in kornia; parameters, matrices, boxes,
    keypoints, ``inverse``, replay with ``params=`` and ``data_keys`` are kornia's.

    A run ends where two modules have different filters or fill the outside differently, and before a crop that pads
    what an earlier crop has cut. A warp pads nothing: its corners show what of the image there is, even if a module
    before it in the run has moved it out of sight, where kornia has forgotten it and shows zeros.

    With ``top_k`` a label map is resampled once in all: it waits over modules that leave masks alone, and after what
    ends its run otherwise there may be modules that move whole pixels, but none that resample.

    Args:
        *args: modules of this package, of kornia, or any `nn.Module`; containers may nest.
        data_keys, same_on_batch, keepdim, random_apply, random_apply_weights, transformation_matrix_mode: as kornia's.
        extra_args: as kornia's, keyed by `DataKey` or its name. What they leave out for masks: hard ones go through
            kornia's own modules by nearest neighbour, soft labels through the interpolation of their image.
        soft_dtype: of soft labels made from integer label maps; None: float32, and float64 beside a float64 image. A
            label map given as floats keeps its type. With ``top_k`` float32 where that would be float64.
            Of nested containers, the outermost decides.

    Shape:
        Image ``(B, K, H, W)``, floating. Mask: a label map ``(B, H, W)`` or ``(B, 1, H, W)`` of any integer or floating
        type, taken as it is, or a soft label ``(B, C, H, W)``; where C is 1, one channel is a label map unless the mask
        is a `SoftLabel`. Gives the image ``(B, K, h, w)`` and the soft label ``(B, C, h, w)``, with ``top_k``
        as a `tritonsoft.SparseLabels`, or a hard mask ``(B, 1, h, w)`` of the type it came in.

        A `tritonsoft.SparseLabels` is a mask too, and stays one, where all modules only move whole pixels: flips,
        `CenterCrop`, and `RandomCrop` of a window that fits into the (padded) image, whose padding has no mass. Modules
        of kornia's that leave masks alone may stand between them.

        Several images of one call may differ in size. Flips, resizes and rotations treat each by its own; crops and
        other warps are drawn for the first one's size, and no other can follow them. Boxes, keypoints, `boxes` and
        `matrices` are those of the first.

    Raises:
        ValueError: modules disagree on ``num_classes``, ``ignore_index`` or ``top_k``; label values out of range; a
            mask with neither 1 nor C channels, or of masses for modules with ``top_k``; a crop or warp of an image or
            mask of another size than it was drawn for.
        TypeError: a mask is neither a tensor nor a `tritonsoft.SparseLabels`, or it is one of these and a module
            resamples; a list of masks for modules with ``top_k``.

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
        num_classes, ignore_index, top_k = _agreed_labels(self)
        if soft_dtype is not None and not soft_dtype.is_floating_point:
            raise TypeError(f"soft_dtype must be a floating type or None, got {soft_dtype}")
        if top_k is not None and soft_dtype not in (None, *MASS_DTYPES):
            raise TypeError(f"soft_dtype must be {names_of(MASS_DTYPES)} for modules with top_k, got {soft_dtype}")
        mask_args = self.extra_args.get(DataKey.MASK, {})
        self.transform_op = FusingOps(
            self.data_keys, LabelSettings(num_classes, ignore_index, soft_dtype, top_k, mask_args, not extra_args)
        )

    @property
    def boxes(self) -> Tensor:
        """The part of each image that the last call shows, ``(B, 4)`` float64 in source pixel edges.

        They lie where the image does. `tritonsoft.soft_crop_resize` and `tritonsoft.area_cross_entropy` take them:
        labels need not go through the container at all, and can be made at the size of the logits.

        Raises:
            ValueError: the container was not called with an image, or its last call does not show one box of each
                image at one resample (a warp, or crops that do not fold).

        Example:
            >>> _ = torch.manual_seed(0)
            >>> import tritonsoft.augmentation as TA
            >>> augment = TA.AugmentationSequential(TA.RandomHorizontalFlip(p=1.0), TA.CenterCrop(48))
            >>> image = augment(torch.rand(2, 3, 64, 96))
            >>> augment.boxes[0].tolist()
            [72.0, 8.0, 24.0, 56.0]
        """
        return self.transform_op.composed_boxes()

    @property
    def matrices(self) -> Tensor:
        """Where the last call's images come from, ``(B, 3, 3)`` float64: output to source, in pixel edges.

        They lie where the image does. `tritonsoft.soft_warp` and ``tritonsoft.area_cross_entropy(..., transform=)``
        take them, as these take `boxes`. (`transform_matrix` is kornia's: source to output, between pixel centres.)

        Raises:
            ValueError: the container was not called with an image, or its last call is not one matrix at one resample
                (a warp of kornia's own, an elastic transform, or modules that do not fold).

        Example:
            >>> import tritonsoft.augmentation as TA
            >>> augment = TA.AugmentationSequential(TA.RandomRotation((90.0, 90.0), p=1.0), TA.CenterCrop(48))
            >>> image = augment(torch.rand(2, 3, 64, 64))
            >>> (augment.matrices[0] @ torch.tensor([0.0, 0.0, 1.0]).double()).round().tolist()  # the top left corner
            [56.0, 8.0, 1.0]
        """
        return self.transform_op.composed_matrices()

    def clear_state(self) -> None:
        """kornia calls this before every call."""
        super().clear_state()
        if isinstance(self.transform_op, FusingOps):
            self.transform_op.steps.clear()

    @property
    def transform_matrix(self) -> Tensor | None:
        """kornia's product of the modules' matrices ``(B, 3, 3)``."""
        self.recorded_matrices = [entry() if isinstance(entry, _Matrix) else entry for entry in self.recorded_matrices]
        return cast(Tensor | None, super().transform_matrix)

    def record_matrix(self, module: nn.Module) -> bool:
        """A matrix is made when somebody asks for it.

        On a few pixels it would take as long as the resample, and on a GPU a copy to it.
        """
        call = module.recorded_call() if isinstance(module, GeometricAugmentation) else None
        if call is None:
            return False
        self.recorded_matrices.append(_Matrix.of(cast(GeometricAugmentation, module), *call))
        return True

    def forward_parameters(self, batch_shape: torch.Size) -> list[ParamItem]:
        """kornia's parameters, drawn in its order; the sizes between modules are known without reading a tensor."""
        params = []
        for name, module in self.get_forward_sequence():
            draws = isinstance(module, DRAW_PARAMETERS)
            param = ParamItem(name, module.forward_parameters(batch_shape) if draws else None)
            batch_shape = _shape_after(batch_shape, module, param)
            params.append(param)
        return params

    def get_mix_augmentation_indices(self, named_modules: Iterator[tuple[str, nn.Module]]) -> list[int]:
        """kornia lets only one of these into a call, as labels of whole images can be mixed once; not so pixels."""
        children = list(named_modules)
        indices = cast(list[int], super().get_mix_augmentation_indices(iter(children)))
        return [index for index in indices if not isinstance(children[index][1], MixingAugmentation)]

    # kornia turns every mask into floats here and back below. Ours stay what they are.

    def as_tensor(self, arg: Any) -> Any:
        return arg.mass[..., :1, :, :].expand(arg.shape) if isinstance(arg, ts.SparseLabels) else arg

    def receive(self, arg: Any) -> Any:
        """Tensors that only carry notes along, as torchvision's do, as their data; a `SoftLabel` is more than that."""
        if isinstance(arg, list):
            return [self.receive(each) for each in arg]
        return plain(arg) if isinstance(arg, Tensor) and not isinstance(arg, SoftLabel) else arg

    def receive_mask(self, mask: Value | ts.SparseLabels, image_batch: int | None) -> Value | ts.SparseLabels:
        check_mask(mask)
        if isinstance(mask, ts.SparseLabels):
            return repeat_single_sample(mask, image_batch)
        return mask if isinstance(mask, list) else _kornia.repeat_single_mask(mask, image_batch)

    def return_mask(self, mask: Any, given: Any) -> Value | ts.SparseLabels:
        if isinstance(mask, ts.SparseLabels):
            return mask
        if isinstance(mask, list):
            all_given = given if isinstance(given, list) else [given] * len(mask)
            return [cast(Tensor, self.return_mask(*pair)) for pair in zip(mask, all_given, strict=True)]
        before = (given[0] if isinstance(given, list) else given).dtype
        kept = mask.is_floating_point() and not before.is_floating_point
        return cast(Tensor, mask if kept else mask.to(before))

    def return_arguments(self, given: list[Any], results: list[Any], data_keys: list[DataKey]) -> list[Any]:
        materialized = self.transform_op.materialize(list(results), data_keys)
        values = [values_of(arg) if are_pending(arg) else arg for arg in materialized]
        out = super().return_arguments(given, values, data_keys)
        if self.transform_op.labels.num_classes == 1 and not torch.compiler.is_compiling():
            # One channel of masses looks like class ids: the next container must be told.
            pairs = zip(out, materialized, strict=True)
            out = [_marked(value, arg) if are_pending(arg) else value for value, arg in pairs]
        return out


def _marked(value: Any, masks: Any) -> Any:
    """Masks that leave a container, those of them that are soft labels as `SoftLabel`."""
    if isinstance(value, list):
        each = masks if isinstance(masks, list) else [masks] * len(value)
        return [cast(Tensor, _marked(*pair)) for pair in zip(value, each, strict=True)]
    is_soft = isinstance(masks, PendingInput) and masks.kind == "soft label"
    return value.as_subclass(SoftLabel) if is_soft else value


def _shape_after(shape: torch.Size, module: Any, param: ParamItem) -> torch.Size:
    if isinstance(module, ResamplingAugmentation) and module.always_applies:
        return torch.Size((*shape[:-2], *module.output_size((shape[-2], shape[-1]), module.flags)))
    if is_plain_container(module):
        for child in cast(list[ParamItem], param.data):
            shape = _shape_after(shape, module.get_submodule(child.name), child)
        return shape
    return cast(torch.Size, _kornia.new_batch_shape(param, shape, module))


def _agreed_labels(container: nn.Module) -> tuple[int | None, int, int | None]:
    """``num_classes`` and ``ignore_index`` of the modules that read class ids, and ``top_k`` of those that resample.

    One label map cannot have two of them.
    """
    reading = [
        each
        for each in container.modules()
        if isinstance(each, ResamplingAugmentation | MixingAugmentation) and each.num_classes is not None
    ]
    softening = [each for each in reading if isinstance(each, ResamplingAugmentation)]
    for name, modules in (("num_classes", reading), ("ignore_index", reading), ("top_k", softening)):
        values = sorted({getattr(module, name) for module in modules}, key=str)
        if len(values) > 1:
            raise ValueError(
                f"{name} must be the same in all modules of a container that have num_classes, got {values}"
            )
    if not reading:
        return None, 0, None
    return reading[0].num_classes, reading[0].ignore_index, softening[0].top_k if softening else None
