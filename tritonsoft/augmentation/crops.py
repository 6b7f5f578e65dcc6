"""kornia's crops, resampled by tritonsoft, and the one that kornia lacks."""

import math
from collections.abc import Mapping
from typing import Final

import kornia.augmentation as K
import torch
from kornia.constants import Resample
from torch import Tensor

from tritonsoft.augmentation._kornia import (
    RandomGeneratorBase,
    UniformDistribution,
    adapted_rsampling,
    set_param_generator,
)
from tritonsoft.augmentation.arrays import Array, namespace
from tritonsoft.augmentation.generators import EagerResizedCropGenerator
from tritonsoft.augmentation.geometric import BoxAugmentation, edges, sliced, tells_apart
from tritonsoft.augmentation.resampling import Flags, Params, are_numbers, fill_of, python_number, recorded, size_of
from tritonsoft.augmentation.sampling import pad_by_repeating
from tritonsoft.augmentation.view import Fill, Size, View, python_size, repeat_box, whole
from tritonsoft.functional import is_whole_number
from tritonsoft.geometry import Filter

_ROUNDING: Final = 2.0**-9  # of a pixel: what a float32 cannot tell apart in an image of 8192 pixels
_PADDING: Final = ("constant", "reflect", "replicate")


class RandomResizedCrop(BoxAugmentation, K.RandomResizedCrop):
    """Crop a random box and resize it in one resample: a drop-in for `kornia.augmentation.RandomResizedCrop`.

    Args:
        size: ``(h, w)`` of the output in pixels.
        scale: range of the box's area as a share of the image's.
        ratio: range of the box's width over its height.
        resample, align_corners, cropping_mode: kornia's sampling; they matter with ``filter=None`` alone.
        same_on_batch: one box for all samples.
        p: probability that the batch is cropped.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest", for image and mask alike; None: kornia's own sampling.
        top_k: with ``num_classes``, keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        As `Resize`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> crop = RandomResizedCrop((64, 128), num_classes=19)
        >>> image, label_map = torch.rand(2, 3, 256, 512), torch.randint(0, 19, (2, 1, 256, 512))
        >>> crop(image).shape, crop.transform_masks(label_map, crop._params, crop.flags).shape
        (torch.Size([2, 3, 64, 128]), torch.Size([2, 19, 64, 128]))
    """

    crops = True
    drawn_for_size = True

    def __init__(
        self,
        size: Size,
        scale: Tensor | tuple[float, float] = (0.08, 1.0),
        ratio: Tensor | tuple[float, float] = (3.0 / 4.0, 4.0 / 3.0),
        resample: str | int | Resample = Resample.BILINEAR.name,
        same_on_batch: bool = False,
        align_corners: bool = True,
        p: float = 1.0,
        keepdim: bool = False,
        cropping_mode: str = "slice",
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter | None = "area",
        top_k: int | None = None,
    ) -> None:
        size = python_size(size)
        super().__init__(size, scale, ratio, resample, same_on_batch, align_corners, p, keepdim, cropping_mode)
        set_param_generator(self, EagerResizedCropGenerator(size, scale, ratio))
        self._configure(num_classes, ignore_index, filter, top_k)


class RandomCrop(BoxAugmentation, K.RandomCrop):
    """Crop a random window, padding where asked: a drop-in for `kornia.augmentation.RandomCrop`.

    Padding carries no label mass, and a hard mask holds ``ignore_index`` there (``extra_args`` may name another fill).

    Args:
        size: ``(h, w)`` of the window in pixels.
        padding: pixels added on every side before the crop: one number, ``(left/right, top/bottom)`` or
            ``(left, top, right, bottom)``.
        pad_if_needed: pad where the image is smaller than the window. Otherwise it is stretched, as kornia does.
        fill: what a constant padding holds in an image, one value or one per channel.
        padding_mode: ``"constant"``, ``"reflect"`` or ``"replicate"``; the last two repeat labels as well as pixels.
        resample, align_corners, cropping_mode: kornia's sampling; they matter with ``filter=None`` alone.
        same_on_batch: one window for all samples.
        p: probability that the batch is cropped.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest", for image and mask alike; None: kornia's own sampling.
        top_k: with ``num_classes``, keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        As `Resize`.

    Example:
        >>> crop = RandomCrop((2, 4), pad_if_needed=True, num_classes=1)
        >>> crop(torch.ones(1, 1, 2, 2)).sum()
        tensor(4.)
        >>> crop.transform_masks(torch.zeros(1, 1, 2, 2).long(), crop._params, crop.flags).sum()  # padding has no mass
        tensor(4.)
    """

    crops = True
    drawn_for_size = True

    def __init__(
        self,
        size: Size,
        padding: int | tuple[int, int] | tuple[int, int, int, int] | None = None,
        pad_if_needed: bool | None = False,
        fill: float | tuple[float, ...] | list[float] = 0,
        padding_mode: str = "constant",
        resample: str | int | Resample = Resample.BILINEAR.name,
        same_on_batch: bool = False,
        align_corners: bool = True,
        p: float = 1.0,
        keepdim: bool = False,
        cropping_mode: str = "slice",
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter | None = "area",
        top_k: int | None = None,
    ) -> None:
        size = python_size(size)
        super().__init__(
            size,
            padding,
            pad_if_needed,
            fill,
            padding_mode,
            resample,
            same_on_batch,
            align_corners,
            p,
            keepdim,
            cropping_mode,
        )
        if filter is not None and padding_mode not in _PADDING:
            raise ValueError(f"padding_mode must be one of {_PADDING}, got {padding_mode!r}")
        self._configure(num_classes, ignore_index, filter, top_k)

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        # As in kornia, a window larger than the (padded) image stretches the image to the window.
        left, right, top, bottom = self._border(source, params, flags)
        height, width = canvas = source[0] + top + bottom, source[1] + left + right
        if tells_apart(params["src"].dtype, max(canvas)):
            return sliced(params["src"], canvas, left, top)
        # Only the window's start is random. Its rounded end must not stretch it: take the size of the flags.
        h, w = min(flags["size"][0], height), min(flags["size"][1], width)
        x0, y0 = params["src"][:, 0].double().unbind(1)
        x0, y0 = x0.clamp(0, width - w) - left, y0.clamp(0, height - h) - top
        return torch.stack([x0, y0, x0 + w, y0 + h], dim=1)

    def only_moves(self, source: Size, params: Params, flags: Flags) -> bool:
        left, right, top, bottom = self._border(source, params, flags)
        h, w = flags["size"]
        # Flags of a call may ask for another size than was drawn. (On a GPU, looking would wait.)
        drawn = recorded(params, "output_size") if params["src"].device.type == "cpu" else None
        return h <= source[0] + top + bottom and w <= source[1] + left + right and drawn in (None, [h, w])

    def padding(self, source: Size, params: Params, flags: Flags) -> tuple[bool, Fill]:
        return max(self._border(source, params, flags)) > 0, fill_of(flags)

    @property
    def can_fuse(self) -> bool:
        # A box cannot say that its outside repeats pixels of the image: this padding is made before the resample.
        return super().can_fuse and self.flags["padding_mode"] == "constant"

    def _border(self, source: Size, params: Params, flags: Flags) -> tuple[int, int, int, int]:
        """(left, right, top, bottom) that the parameters were drawn with, whatever the flags have become."""
        kept = recorded(params, "padding_size")
        left, right, top, bottom = self.compute_padding((1, 1, *source), flags) if kept is None else kept
        return left, right, top, bottom

    def _image_and_view(self, image: Tensor, params: Params, flags: Flags) -> tuple[Tensor, View]:
        image, view = super()._image_and_view(image, params, flags)
        if flags["padding_mode"] == "constant" or not view.pads:
            return image, view
        assert view.transform is not None
        border = left, _, top, _ = self._border(view.source, params, flags)
        image = pad_by_repeating(image, border, flags["padding_mode"])
        x0, y0, x1, y1 = view.transform.unbind(1)
        boxes = torch.stack([x0 + left, y0 + top, x1 + left, y1 + top], dim=1)
        return image, View(size_of(image), view.size, boxes, view.filter, view.whole_pixels, view.crops)

    def recorded_source(self, params: Params) -> Size:
        height, width = super().recorded_source(params)
        if params["padding_size"].shape[0] == 0:
            return height, width
        # kornia has recorded the padded image.
        left, right, top, bottom = params["padding_size"][0].tolist()
        return height - top - bottom, width - left - right


class CenterCrop(BoxAugmentation, K.CenterCrop):
    """Crop the window in the middle: a drop-in for `kornia.augmentation.CenterCrop`.

    Args:
        size: ``(h, w)`` of the window in pixels, or one number for both; not larger than the image.
        align_corners, resample, cropping_mode: kornia's sampling; they matter with ``filter=None`` alone.
        p: probability that the batch is cropped.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest", for image and mask alike; None: kornia's own sampling.
        top_k: with ``num_classes``, keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        As `Resize`.

    Example:
        >>> CenterCrop(2)(torch.arange(16.0).reshape(1, 1, 4, 4))
        tensor([[[[ 5.,  6.],
                  [ 9., 10.]]]])
    """

    crops = True
    drawn_for_size = True

    def __init__(
        self,
        size: int | Size,
        align_corners: bool = True,
        resample: str | int | Resample = Resample.BILINEAR.name,
        p: float = 1.0,
        keepdim: bool = False,
        cropping_mode: str = "slice",
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter | None = "area",
        top_k: int | None = None,
    ) -> None:
        size = python_size(size)
        super().__init__(size, align_corners, resample, p, keepdim, cropping_mode)
        self._configure(num_classes, ignore_index, filter, top_k)

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        # Nothing here is random: like kornia, take the middle for the size that the flags have now.
        (height, width), (h, w) = source, self.output_size(source, flags)
        if h > height or w > width:
            raise ValueError(f"size must not be larger than the picture {source}, got {(h, w)}")
        top, left = (height - h) // 2, (width - w) // 2
        return repeat_box((left, top, left + w, top + h), params["batch_prob"])

    def only_moves(self, source: Size, params: Params, flags: Flags) -> bool:
        return True


class ScaleCropGenerator(RandomGeneratorBase):
    """A factor per sample, and where its window lies: a share of the way across and down.

    In single precision at least: rounded to halves, a window as large as the image would show what lies outside.
    """

    def __init__(self, scale: tuple[float, float]) -> None:
        super().__init__()
        self.scale = scale

    def __repr__(self) -> str:
        return f"scale={self.scale}"

    def make_samplers(self, device: torch.device, dtype: torch.dtype) -> None:
        smallest, largest, zero, one = torch.tensor(
            (*self.scale, 0.0, 1.0), device=device, dtype=torch.promote_types(dtype, torch.float32)
        )
        self.factor_sampler = UniformDistribution(smallest, largest, validate_args=False)  # the two may be equal
        self.place_sampler = UniformDistribution(zero, one)

    def forward(self, batch_shape: tuple[int, ...], same_on_batch: bool = False) -> Params:
        return self.windows((batch_shape[0],), same_on_batch)

    def windows(self, shape: tuple[int, ...], same_on_batch: bool) -> Params:
        """What says where windows of this shape lie, the first axis of which is the batch."""
        samplers = {"scale": self.factor_sampler, "across": self.place_sampler, "down": self.place_sampler}
        return {name: self.draw(shape, sampler, same_on_batch) for name, sampler in samplers.items()}

    def draw(self, shape: tuple[int, ...], sampler: UniformDistribution, same_on_batch: bool) -> Tensor:
        # kornia's parameters have the default type, and lie where new tensors do.
        like = torch.empty(0, dtype=torch.promote_types(torch.get_default_dtype(), torch.float32))
        return adapted_rsampling(shape, sampler, same_on_batch).to(like)


class RandomScaleCrop(BoxAugmentation):
    """Scale the image by a random factor, then cut a random window; pad where the image is too small.

    The standard augmentation of segmentation training, which kornia lacks, as one box: its sides are those of the
    window divided by the factor. Where the scaled image is larger than the window, the window lies anywhere inside
    it; where it is smaller, the image lies anywhere inside the window. Padding carries no label mass, and a hard mask
    holds ``ignore_index`` there.

    Args:
        size: ``(h, w)`` of the output in pixels.
        scale: range of the factor, drawn evenly; 1 shows source pixels at their own size, 2 at twice it.
        fill: what an image holds in the padding, one value or one per channel.
        same_on_batch: one factor and one position for all samples.
        p: probability that the batch is cropped.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest", for image and mask alike.
        top_k: with ``num_classes``, keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        As `Resize`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> crop = RandomScaleCrop((64, 64), scale=(0.5, 2.0), num_classes=19)
        >>> image, label_map = torch.rand(2, 3, 96, 128), torch.randint(0, 19, (2, 1, 96, 128))
        >>> crop(image).shape, crop.transform_masks(label_map, crop._params, crop.flags).shape
        (torch.Size([2, 3, 64, 64]), torch.Size([2, 19, 64, 64]))
    """

    crops = True
    drawn_for_size = True

    def __init__(
        self,
        size: Size,
        scale: tuple[float, float] = (0.5, 2.0),
        fill: float | tuple[float, ...] = 0.0,
        same_on_batch: bool = False,
        p: float = 1.0,
        keepdim: bool = False,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter = "area",
        top_k: int | None = None,
    ) -> None:
        super().__init__(p=1.0, same_on_batch=same_on_batch, p_batch=p, keepdim=keepdim)
        size = python_size(size)
        if not isinstance(size, tuple | list) or len(size) != 2 or not all(map(is_whole_number, size)) or min(size) < 1:
            raise ValueError(f"size must be (height, width), two ints of at least 1, got {size!r}")
        if not are_numbers(scale) or len(scale) != 2 or not 0 < scale[0] <= scale[1] < math.inf:
            raise ValueError(f"scale must be (smallest, largest) with 0 < smallest <= largest, got {scale!r}")
        if not are_numbers(fill if isinstance(fill, tuple | list) else [fill]):
            raise TypeError(f"fill must be a number or one per channel, got {fill!r}")
        if filter is None:
            raise ValueError(
                "filter must be a filter's name: kornia has no RandomScaleCrop whose sampling None could mean"
            )
        self.scale = (python_number(scale[0]), python_number(scale[1]))
        set_param_generator(self, ScaleCropGenerator(self.scale))
        fill = tuple(map(float, fill)) if isinstance(fill, tuple | list) else float(fill)
        self.flags = {"size": tuple(size), "fill": fill}
        self._configure(num_classes, ignore_index, filter, top_k)

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> Params:
        drawn = super().generate_parameters(batch_shape)
        source = (batch_shape[-2], batch_shape[-1])
        boxes = windows(drawn, self.output_size(source, self.flags), source)
        size = self.recorded_size(batch_shape, boxes.device)
        return {"scale": drawn["scale"], "src": corners(boxes), "output_size": size}

    def recorded_size(self, batch_shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The output's size as kornia keeps it in the parameters: ``(B, 2)``."""
        size = torch.empty((batch_shape[0], 2), dtype=torch.long, device=device)
        size[:, 0], size[:, 1] = self.output_size((batch_shape[-2], batch_shape[-1]), self.flags)
        return size

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        # A window as large as the scaled image must not reach outside by a rounding error: snap it to the edges.
        boxes, image = edges(params["src"]), whole(source, params["src"])
        for edge in (torch.zeros_like(image), image[:, 2:].repeat(1, 2)):
            boxes = torch.where((boxes - edge).abs() < _ROUNDING, edge, boxes)
        return boxes

    def padding(self, source: Size, params: Params, flags: Flags) -> tuple[bool, Fill]:
        return True, fill_of(flags)


def windows(drawn: Mapping[str, Array], size: Size, source: Size) -> Array:
    """Boxes ``(..., 4)`` of windows of (h, w), at scales and places that `ScaleCropGenerator` has drawn.

    Where the scaled image of (H, W) is larger than the window, the window lies inside it, else the image in the window.
    """
    (h, w), (height, width) = size, source
    across, down = w / drawn["scale"], h / drawn["scale"]
    x0, y0 = drawn["across"] * (width - across), drawn["down"] * (height - down)
    return namespace(x0).stack([x0, y0, x0 + across, y0 + down], -1)


def corners(boxes: Array) -> Array:
    """Boxes ``(B, 4)`` as kornia's crops have them, by the pixels in their corners: ``(B, 4, 2)``."""
    x0, y0, x1, y1 = boxes[:, 0], boxes[:, 1], boxes[:, 2] - 1, boxes[:, 3] - 1
    return namespace(boxes).stack([x0, y0, x1, y0, x1, y1, x0, y1], 1).reshape(-1, 4, 2)
