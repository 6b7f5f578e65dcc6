"""kornia's resize and flips, resampled by tritonsoft."""

from typing import cast

import kornia.augmentation as K
from kornia.constants import Resample
from torch import Tensor

from tritonsoft.augmentation._kornia import param_generator, set_param_generator, side_to_image_size
from tritonsoft.augmentation.generators import EagerResizeGenerator
from tritonsoft.augmentation.geometric import BoxAugmentation
from tritonsoft.augmentation.resampling import Flags, Params, recorded
from tritonsoft.augmentation.view import Size, python_size, repeat_box
from tritonsoft.geometry import Filter


class Resize(BoxAugmentation, K.Resize):
    """Resize the whole image, antialiased and on the half-pixel grid: a drop-in for `kornia.augmentation.Resize`.

    Args:
        size: ``(h, w)`` of the output in pixels, or the length of one side as an int.
        side: which side an int ``size`` is: ``"short"``, ``"long"``, ``"vert"`` or ``"horz"``.
        resample, align_corners, antialias: kornia's sampling; they matter with ``filter=None`` alone.
        p: probability that the batch is resized.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area" (the exact average), "triangle" (antialiased bilinear), "bilinear" or "nearest", for image and
            mask alike; None: kornia's own sampling, bit for bit.
        top_k: with ``num_classes``, label maps become a `tritonsoft.SparseLabels` of the k largest classes of each
            pixel, 1 to C, in place of the dense soft label, which is never made; None: the soft label.

    Shape:
        Image ``(B, K, H, W)`` of any floating type -> ``(B, K, h, w)``. Mask ``(B, 1, H, W)`` of class ids ->
        ``(B, C, h, w)`` with ``num_classes``, else ``(B, 1, h, w)``; a mask with C channels is filtered linearly, and
        with ``top_k`` refused.

    Example:
        >>> import torch
        >>> resize = Resize((2, 2), num_classes=2)
        >>> resize(torch.arange(16.0).reshape(1, 1, 4, 4))
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
        >>> label_map = torch.tensor([[[[0, 0, 1, 1]]]]).expand(1, 1, 4, 4)
        >>> resize.transform_masks(label_map, resize._params, resize.flags)[0, :, 0]
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(
        self,
        size: int | Size,
        side: str = "short",
        resample: str | int | Resample = Resample.BILINEAR.name,
        align_corners: bool = True,
        antialias: bool = False,
        p: float = 1.0,
        keepdim: bool = False,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter | None = "area",
        top_k: int | None = None,
    ) -> None:
        size = python_size(size)
        super().__init__(size, side, resample, align_corners, antialias, p, keepdim)
        set_param_generator(self, EagerResizeGenerator(resize_to=size, side=side))
        self._configure(num_classes, ignore_index, filter, top_k)

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        return None

    def only_moves(self, source: Size, params: Params, flags: Flags) -> bool:
        return self.drawn_size(source, params, flags) == source

    def output_size(self, source: Size, flags: Flags) -> Size:
        if not isinstance(flags["size"], int):
            return super().output_size(source, flags)
        # As in kornia, the length of the side is the generator's, even if the flags have been changed since.
        drawn = param_generator(self)
        if isinstance(drawn.output_size, int):
            return cast(Size, side_to_image_size(drawn.output_size, source[1] / source[0], drawn.side))
        return cast(Size, tuple(drawn.output_size))

    def drawn_size(self, source: Size, params: Params, flags: Flags) -> Size:
        # Where one side is given, kornia records the size it computed for its image; others get one of their own.
        own = isinstance(flags["size"], int) and self._source_or_else(params, source) == source
        kept = recorded(params, "output_size") if own else None
        return self.output_size(source, flags) if kept is None else (kept[0], kept[1])


class _RandomFlip(BoxAugmentation):
    """What the flips share; the box is the subclass's."""

    keeps_size = True

    def __init__(
        self,
        p: float = 0.5,
        p_batch: float = 1.0,
        same_on_batch: bool = False,
        keepdim: bool = False,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter | None = "area",
        top_k: int | None = None,
    ) -> None:
        super().__init__(p, p_batch, same_on_batch, keepdim)
        self._configure(num_classes, ignore_index, filter, top_k)

    def only_moves(self, source: Size, params: Params, flags: Flags) -> bool:
        return True


class RandomHorizontalFlip(_RandomFlip, K.RandomHorizontalFlip):
    """Mirror images left-right at random: a drop-in for `kornia.augmentation.RandomHorizontalFlip`.

    Args:
        p: probability that a sample is flipped.
        p_batch: probability that any sample of the batch may be.
        same_on_batch: flip all samples or none.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest": a flip is the same with each; None: kornia's own.
        top_k: with ``num_classes``, keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        As `Resize`, with h = H and w = W.

    Example:
        >>> import torch
        >>> RandomHorizontalFlip(p=1.0)(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
        tensor([[[[3., 2., 1.]]]])
    """

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        return repeat_box((source[1], 0, 0, source[0]), params["batch_prob"])


class RandomVerticalFlip(_RandomFlip, K.RandomVerticalFlip):
    """Mirror images top-bottom at random: a drop-in for `kornia.augmentation.RandomVerticalFlip`.

    Args:
        p: probability that a sample is flipped.
        p_batch: probability that any sample of the batch may be.
        same_on_batch: flip all samples or none.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest": a flip is the same with each; None: kornia's own.
        top_k: with ``num_classes``, keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        As `Resize`, with h = H and w = W.

    Example:
        >>> import torch
        >>> RandomVerticalFlip(p=1.0)(torch.tensor([[[[1.0], [2.0]]]]))
        tensor([[[[2.],
                  [1.]]]])
    """

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        return repeat_box((0, source[0], source[1], 0), params["batch_prob"])
