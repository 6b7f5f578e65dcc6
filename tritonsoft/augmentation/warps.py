"""kornia's rotation, affine, shear, translation, perspective and elastic transform, resampled by tritonsoft."""

from typing import Any

import kornia.augmentation as K
import torch
from kornia.constants import Resample, SamplePadding
from torch import Tensor

from tritonsoft.augmentation._kornia import input_metadata_only, smoothed_displacement
from tritonsoft.augmentation.geometric import GeometricAugmentation, type_of_positions
from tritonsoft.augmentation.resampling import Flags, Params, ResamplingAugmentation
from tritonsoft.augmentation.view import Fill, Size, centres, edge_matrix, to_device
from tritonsoft.geometry import Filter


class Warp(ResamplingAugmentation):
    """What matrices and fields share: the output is as large as the image, and may show what lies outside of it."""

    keeps_size = True
    drawn_for_size = True

    def padding(self, source: Size, params: Params, flags: Flags) -> tuple[bool, Fill]:
        return True, _fill_value(flags)

    def check_mask_options(self, options: Flags) -> None:
        self._refuse_padding(options, ("zeros", "fill"))

    def _refuse_sampling(self, flags: Flags) -> None:
        super()._refuse_sampling(flags)
        self._refuse_padding(flags, ("zeros", "fill") if "fill_value" in flags else ("zeros",))
        _fill_value(flags)

    def _refuse_padding(self, flags: Flags, allowed: tuple[str, ...]) -> None:
        mode = flags.get("padding_mode", "zeros")
        name = (mode if isinstance(mode, str) else SamplePadding.get(mode).name).lower()
        if name not in allowed:
            raise ValueError(
                f"padding_mode must be {' or '.join(map(repr, allowed))} beside filter={self.filter!r}, got {name!r}: "
                "only filter=None, kornia's own sampling, has others"
            )


class MatrixAugmentation(Warp, GeometricAugmentation):
    """An augmentation that moves the image by kornia's own matrix.

    The matrix is taken at its word: it maps pixel centres of the image to pixel centres of the output, so that image,
    masks, boxes and keypoints move by one map, to which ``align_corners`` makes no difference. That of the pixels is
    computed in float64.
    """

    def transform(self, source: Size, params: Params, flags: Flags, device: torch.device) -> Tensor | None:
        gate = params["batch_prob"]
        like = torch.empty((), dtype=torch.float64, device=gate.device).expand(gate.numel(), 1, *source)
        return edge_matrix(self.compute_transformation(like, params, flags))

    @input_metadata_only
    def compute_transformation(self, input: Tensor, params: Params, flags: Flags) -> Tensor:
        if self.filter is not None:
            input = input.new_empty((), dtype=type_of_positions(input.dtype)).expand(input.shape)
        return super().compute_transformation(input, params, flags)


def _fill_value(flags: Flags) -> Fill:
    """What an image has outside of it: zero, but for kornia's ``padding_mode="fill"`` with a ``fill_value``."""
    value: Any = flags.get("fill_value")
    if value is None or SamplePadding.get(flags["padding_mode"]) != SamplePadding.FILL:
        return 0.0
    if isinstance(value, Tensor):
        value = value.tolist()
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(each, int | float) for each in values):
        raise ValueError(f"fill_value must hold one value or one per channel, got {value}")
    return float(values[0]) if len(values) == 1 else tuple(float(each) for each in values)


class RandomRotation(MatrixAugmentation, K.RandomRotation):
    """Turn images about their middle: a drop-in for `kornia.augmentation.RandomRotation`.

    Args:
        degrees: range of the angle, counter-clockwise; one number x means (-x, x).
        resample, align_corners: kornia's sampling; they matter with ``filter=None`` alone.
        same_on_batch: one angle for all samples.
        p: probability that a sample is turned.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest", for image and mask alike; None: kornia's own sampling, bit
            for bit.
        top_k: with ``num_classes``, keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        As `Resize`, with h = H and w = W. Outside of the image are zeros, no label mass, and ``ignore_index`` in a hard
        mask.

    Example:
        >>> turn = RandomRotation((90.0, 90.0), p=1.0, num_classes=2)
        >>> turn(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
        tensor([[[[2., 4.],
                  [1., 3.]]]])
        >>> turn.transform_masks(torch.tensor([[[[0, 1], [0, 0]]]]), turn._params, turn.flags)[0, 1]
        tensor([[1., 0.],
                [0., 0.]])
    """

    drawn_for_size = False  # every image is turned about its own middle

    def __init__(
        self,
        degrees: Tensor | float | tuple[float, float] | list[float],
        resample: str | int | Resample = Resample.BILINEAR.name,
        same_on_batch: bool = False,
        align_corners: bool = True,
        p: float = 0.5,
        keepdim: bool = False,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter | None = "area",
        top_k: int | None = None,
    ) -> None:
        super().__init__(degrees, resample, same_on_batch, align_corners, p, keepdim)
        self._configure(num_classes, ignore_index, filter, top_k)


class RandomAffine(MatrixAugmentation, K.RandomAffine):
    """Turn, scale, shear and move images: a drop-in for `kornia.augmentation.RandomAffine`.

    Args:
        degrees: range of the angle, clockwise (as in kornia, and unlike `RandomRotation`); x means (-x, x).
        translate: largest shifts across and down, as shares of width and height.
        scale: range of the factor, or ranges across and down; 2 shows the image twice as large.
        shear: range of the angle in degrees by which rows are sheared, or ranges for rows and columns.
        resample, align_corners: kornia's sampling; they matter with ``filter=None`` alone.
        same_on_batch: one warp for all samples.
        padding_mode: ``"zeros"`` or ``"fill"``; others (``"border"``, ``"reflection"``) with ``filter=None`` alone.
        fill_value: what an image holds outside with ``padding_mode="fill"``, one value or one per channel.
        p: probability that a sample is warped.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest", for image and mask alike; None: kornia's own sampling, bit
            for bit.
        top_k: with ``num_classes``, keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        As `RandomRotation`.

    Example:
        >>> shrink = RandomAffine(0.0, scale=(0.5, 0.5), p=1.0, num_classes=1)
        >>> shrink(torch.ones(1, 1, 4, 4))
        tensor([[[[0., 0., 0., 0.],
                  [0., 1., 1., 0.],
                  [0., 1., 1., 0.],
                  [0., 0., 0., 0.]]]])
        >>> shrink.transform_masks(torch.zeros(1, 1, 4, 4).long(), shrink._params, shrink.flags).sum()  # the outside
        tensor(4.)
    """

    def __init__(
        self,
        degrees: Tensor | float | tuple[float, float],
        translate: Tensor | tuple[float, float] | None = None,
        scale: Tensor | tuple[float, float] | tuple[float, float, float, float] | None = None,
        shear: Tensor | float | tuple[float, float] | None = None,
        resample: str | int | Resample = Resample.BILINEAR.name,
        same_on_batch: bool = False,
        align_corners: bool = False,
        padding_mode: str | int | SamplePadding = SamplePadding.ZEROS.name,
        fill_value: float | Tensor | None = None,
        p: float = 0.5,
        keepdim: bool = False,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter | None = "area",
        top_k: int | None = None,
    ) -> None:
        super().__init__(
            degrees,
            translate,
            scale,
            shear,
            resample,
            same_on_batch,
            align_corners,
            padding_mode,
            fill_value,
            p,
            keepdim,
        )
        self._configure(num_classes, ignore_index, filter, top_k)
        if filter is not None and fill_value is not None:
            # kornia has made a tensor of it, whose values would have to be read at every call.
            self.flags["fill_value"] = self.flags["fill_value"].tolist()


class RandomShear(MatrixAugmentation, K.RandomShear):
    """Shear images about their middle: a drop-in for `kornia.augmentation.RandomShear`.

    Args:
        shear: range of the angle in degrees by which rows are sheared, or ranges for rows and columns.
        resample, align_corners: kornia's sampling; they matter with ``filter=None`` alone.
        same_on_batch: one shear for all samples.
        padding_mode: ``"zeros"``; others with ``filter=None`` alone.
        p: probability that a sample is sheared.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest", for image and mask alike; None: kornia's own sampling, bit
            for bit.
        top_k: with ``num_classes``, keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        As `RandomRotation`.

    Example:
        >>> RandomShear((45.0, 45.0), p=1.0)(torch.ones(1, 1, 3, 3))
        tensor([[[[0.1250, 0.8750, 1.0000],
                  [0.8750, 1.0000, 0.8750],
                  [1.0000, 0.8750, 0.1250]]]])
    """

    def __init__(
        self,
        shear: Tensor | float | tuple[float, float] | tuple[float, float, float, float],
        resample: str | int | Resample = Resample.BILINEAR.name,
        same_on_batch: bool = False,
        align_corners: bool = False,
        padding_mode: str | int | SamplePadding = SamplePadding.ZEROS.name,
        p: float = 0.5,
        keepdim: bool = False,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter | None = "area",
        top_k: int | None = None,
    ) -> None:
        super().__init__(shear, resample, same_on_batch, align_corners, padding_mode, p, keepdim)
        self._configure(num_classes, ignore_index, filter, top_k)


class RandomTranslate(MatrixAugmentation, K.RandomTranslate):
    """Move images across and down: a drop-in for `kornia.augmentation.RandomTranslate`.

    Args:
        translate_x: range of the shift to the right as a share of the width; None: none.
        translate_y: range of the shift down as a share of the height; None: none.
        resample, align_corners: kornia's sampling; they matter with ``filter=None`` alone.
        same_on_batch: one shift for all samples.
        padding_mode: ``"zeros"``; others with ``filter=None`` alone.
        p: probability that a sample is moved.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest", for image and mask alike; None: kornia's own sampling, bit
            for bit.
        top_k: with ``num_classes``, keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        As `RandomRotation`.

    Example:
        >>> RandomTranslate((0.5, 0.5), p=1.0)(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]))
        tensor([[[[0., 0., 1., 2.]]]])
    """

    def __init__(
        self,
        translate_x: Tensor | tuple[float, float] | None = None,
        translate_y: Tensor | tuple[float, float] | None = None,
        resample: str | int | Resample = Resample.BILINEAR.name,
        same_on_batch: bool = False,
        align_corners: bool = False,
        padding_mode: str | int | SamplePadding = SamplePadding.ZEROS.name,
        p: float = 0.5,
        keepdim: bool = False,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter | None = "area",
        top_k: int | None = None,
    ) -> None:
        super().__init__(translate_x, translate_y, resample, same_on_batch, align_corners, padding_mode, p, keepdim)
        self._configure(num_classes, ignore_index, filter, top_k)


class RandomPerspective(MatrixAugmentation, K.RandomPerspective):
    """Move the four corners of images at random: a drop-in for `kornia.augmentation.RandomPerspective`.

    Args:
        distortion_scale: how far a corner may move, from 0 (not at all) to 1 (to the middle of the image).
        resample, align_corners: kornia's sampling; they matter with ``filter=None`` alone.
        same_on_batch: the same corners for all samples.
        p: probability that a sample is warped.
        keepdim: keep the rank of the input.
        sampling_method: ``"basic"`` moves corners inwards, ``"area_preserving"`` in any direction.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest", for image and mask alike; None: kornia's own sampling, bit
            for bit.
        top_k: with ``num_classes``, keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        As `RandomRotation`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> bend = RandomPerspective(0.5, p=1.0, num_classes=19)
        >>> image, label_map = torch.rand(2, 3, 64, 96), torch.randint(0, 19, (2, 1, 64, 96))
        >>> bend(image).shape, bend.transform_masks(label_map, bend._params, bend.flags).shape
        (torch.Size([2, 3, 64, 96]), torch.Size([2, 19, 64, 96]))
    """

    def __init__(
        self,
        distortion_scale: Tensor | float = 0.5,
        resample: str | int | Resample = Resample.BILINEAR.name,
        same_on_batch: bool = False,
        align_corners: bool = False,
        p: float = 0.5,
        keepdim: bool = False,
        sampling_method: str = "basic",
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter | None = "area",
        top_k: int | None = None,
    ) -> None:
        super().__init__(distortion_scale, resample, same_on_batch, align_corners, p, keepdim, sampling_method)
        self._configure(num_classes, ignore_index, filter, top_k)


class RandomElasticTransform(Warp, K.RandomElasticTransform):
    """Move pixels by smoothed noise: a drop-in for `kornia.augmentation.RandomElasticTransform`.

    It has no matrix: as in kornia, boxes and keypoints stay where they are, and an inverse leaves images alone.

    Args:
        kernel_size: of the Gaussian that smooths the noise, down and across, in pixels.
        sigma: its standard deviations, down and across, in pixels.
        alpha: how far noise moves pixels, across and down, in halves of the image's extent.
        align_corners: whether that extent is measured between the centres of the outermost pixels, or their edges.
        resample: kornia's sampling; it matters with ``filter=None`` alone.
        padding_mode: ``"zeros"``; others with ``filter=None`` alone.
        same_on_batch: the same noise for all samples.
        p: probability that a sample is warped.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest", for image and mask alike; None: kornia's own sampling, bit
            for bit.
        top_k: with ``num_classes``, keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        As `RandomRotation`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> bend = RandomElasticTransform((15, 15), (4.0, 4.0), p=1.0, num_classes=19)
        >>> image, label_map = torch.rand(2, 3, 64, 96), torch.randint(0, 19, (2, 1, 64, 96))
        >>> bend(image).shape, bend.transform_masks(label_map, bend._params, bend.flags).shape
        (torch.Size([2, 3, 64, 96]), torch.Size([2, 19, 64, 96]))
    """

    has_matrix = False

    def __init__(
        self,
        kernel_size: tuple[int, int] = (63, 63),
        sigma: tuple[float, float] = (32.0, 32.0),
        alpha: tuple[float, float] = (1.0, 1.0),
        align_corners: bool = False,
        resample: str | int | Resample = Resample.BILINEAR.name,
        padding_mode: str = "zeros",
        same_on_batch: bool = False,
        p: float = 0.5,
        keepdim: bool = False,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter | None = "area",
        top_k: int | None = None,
    ) -> None:
        super().__init__(kernel_size, sigma, alpha, align_corners, resample, padding_mode, same_on_batch, p, keepdim)
        self._configure(num_classes, ignore_index, filter, top_k)

    def transform(self, source: Size, params: Params, flags: Flags, device: torch.device) -> Tensor | None:
        noise = to_device(params["noise"], device)
        noise = noise.to(type_of_positions(noise.dtype))
        moved = smoothed_displacement(noise, flags["kernel_size"], flags["sigma"], flags["alpha"])
        # In the coordinates of `F.grid_sample`, whose unit is half of the image.
        beyond = 1 if flags["align_corners"] else 0
        across, down = (moved[:, axis] * ((source[1 - axis] - beyond) / 2) for axis in (0, 1))
        return centres(source, device, noise.dtype) + torch.stack([across, down], dim=-1)
