"""kornia's crops, resizes and flips, resampled by tritonsoft: each is a box, which image, mask and matrix share."""

import math
from typing import Any, Final, cast

import kornia.augmentation as K
import torch
from kornia.augmentation._2d.base import _input_metadata_only
from kornia.augmentation.random_generator import RandomGeneratorBase
from kornia.augmentation.random_generator.base import UniformDistribution
from kornia.augmentation.utils import _adapted_rsampling, override_parameters
from kornia.constants import Resample
from kornia.geometry.transform.affwarp import _side_to_image_size
from torch import Tensor

from tritonsoft._validation import check_ignore_index
from tritonsoft.augmentation.masks import (
    SoftLabel,
    batched,
    harden,
    like_input,
    looks_soft,
    soften,
    undo_mask,
    unmarked,
)
from tritonsoft.augmentation.view import (
    Fill,
    View,
    pad_by_repeating,
    pixel_matrix,
    rows,
    sample_image,
    sample_soft,
    undo,
    whole,
)
from tritonsoft.geometry import FILTERS, Filter

Params = dict[str, Tensor]
Flags = dict[str, Any]
Size = tuple[int, int]

_ROUNDING: Final = 2.0**-9  # of a pixel: what a float32 cannot tell apart in a picture of 8192 pixels
_PADDING: Final = ("constant", "reflect", "replicate")


class BoxAugmentation(K.GeometricAugmentationBase2D):
    """What the modules of this package share: an augmentation that shows a box of the picture at some size.

    A subclass says which box (`boxes`, from kornia's parameters) and which size (`output_size`, from the configuration
    alone). Everything else follows from these two: images, masks, the matrix that moves boxes and keypoints, the
    inverse, and how modules fold into one another (`view`). Whatever kornia draws stays kornia's. With ``filter=None``
    everything is.
    """

    crops = False  # may hide a part of the picture
    resamples = True  # moves content by fractions of pixels

    num_classes: int | None
    ignore_index: int
    filter: Filter | None

    def _configure(self, num_classes: int | None, ignore_index: int | None, filter: Filter | None) -> None:
        if filter is not None and filter not in FILTERS:
            raise ValueError(f"filter must be one of {FILTERS}, or None for kornia's own sampling, got {filter!r}")
        if num_classes is not None:
            if isinstance(num_classes, bool) or not isinstance(num_classes, int):
                raise TypeError(f"num_classes must be an int or None, got {num_classes!r}")
            if num_classes < 1:
                raise ValueError(f"num_classes must be at least 1, or None for hard masks, got {num_classes}")
            if filter is None:
                raise ValueError(
                    "filter=None is kornia's own sampling, which makes no soft labels: num_classes must be None with "
                    f"it, got num_classes={num_classes}"
                )
        ignore_index = check_ignore_index(ignore_index, num_classes)
        self.num_classes, self.ignore_index, self.filter = num_classes, ignore_index, filter
        if filter is not None:
            self._refuse_resample(self.flags)
            # The image never needs the matrix; it is made when boxes, keypoints or a caller read it.
            self._compute_matrix_lazily = True

    def __repr__(self) -> str:
        ours = f"num_classes={self.num_classes}, ignore_index={self.ignore_index}, filter={self.filter!r}"
        return f"{super().__repr__()[:-1]}, {ours})"

    def _refuse_resample(self, flags: Flags) -> None:
        resample = Resample.get(flags.get("resample", Resample.BILINEAR))
        if resample != Resample.BILINEAR:
            raise ValueError(
                f"resample={resample.name.lower()!r} has no effect beside filter={self.filter!r}: choose "
                "filter='nearest' or another filter, or filter=None for kornia's own sampling"
            )

    # --- what a subclass says ---------------------------------------------------------------------------------------

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        """``(B, 4)`` float64 in edges of a picture of (H, W), for the parameters that were drawn; None: all of it."""
        return sliced(params["src"], source)

    def output_size(self, source: Size, flags: Flags) -> Size:
        """(h, w) that a picture of (H, W) becomes when its parameters are drawn."""
        size = flags["size"]
        return int(size[0]), int(size[1])

    def drawn_size(self, source: Size, params: Params, flags: Flags) -> Size:
        """(h, w) that a picture of (H, W) becomes with these parameters, which may be replayed."""
        return self.output_size(source, flags)

    def padding(self, source: Size, params: Params, flags: Flags) -> tuple[bool, Fill]:
        """Whether the box may reach outside of the picture, and what an image has there."""
        return False, 0.0

    # --- the view ---------------------------------------------------------------------------------------------------

    @property
    def always_applies(self) -> bool:
        return bool(self.p == 1.0 and self.p_batch == 1.0)

    def view(self, source: Size, params: Params, flags: Flags, first: Size | None = None) -> View:
        """What this module shows of a picture of (H, W), its gate included: of a skipped sample, the whole picture.

        A crop shows the picture's own part where the parameters were drawn for its size, and is an error where not.
        ``first`` is the size of the first picture of the call, which counts where the recorded one cannot be read.
        """
        self._refuse_resample(flags)  # `extra_args` may have brought one
        if self.crops and self._recorded_source(params, first or source) != source:
            if self.always_applies or bool((params["batch_prob"] > 0.5).any()):
                raise ValueError(
                    f"image and mask must have the size that {type(self).__name__} drew its crops for, "
                    f"{self._recorded_source(params, first or source)}, got {source}: a crop does not carry over to "
                    "another size"
                )
            return View(source, source)
        boxes, size = self.boxes(source, params, flags), self.drawn_size(source, params, flags)
        if not self.always_applies:
            gate = params["batch_prob"] > 0.5
            if size == source:
                boxes = None if boxes is None else torch.where(gate[:, None], boxes, whole(source, boxes))
            elif gate.numel() and not bool(gate.all()):
                # A batch has one size: only a gate on the whole batch can skip. (This looks at a value.)
                if bool(gate.any()):
                    raise ValueError(
                        f"batch_prob must select all samples or none: {type(self).__name__} makes {size} of {source}, "
                        "and a batch holds one size"
                    )
                return View(source, source)
        pads, fill = self.padding(source, params, flags)
        filter = self.filter if self.resamples else None
        return View(source, size, boxes, filter, self.crops, pads, fill)

    @property
    def foldable(self) -> bool:
        """Whether neighbours in a container may fold with this module into one view."""
        return self.filter is not None

    def _picture_and_view(self, picture: Tensor, params: Params, flags: Flags) -> tuple[Tensor, View]:
        """What to sample, and the view of it."""
        return picture, self.view(_size_of(picture), params, flags)

    def remember(self, image: Tensor, source: Size, params: Params, flags: Flags) -> None:
        """Leave behind what a forward call would, where a container took over: the matrix is made of it when asked."""
        shape = (*self.transform_tensor(image).shape[:2], *source)
        stand_in = image.new_empty(()).expand(shape)
        drawn = params
        if self._recorded_source(params, source) != source:  # a replay on a picture of another size
            drawn = {**params, "forward_input_shape": torch.tensor(shape)}
        self._commit_state(params=params, transform_matrix=None, lazy_matrix_args=(stand_in, drawn, flags))
        self._record_matrix_params(params)

    # --- kornia's contract ------------------------------------------------------------------------------------------

    @_input_metadata_only
    def compute_transformation(self, input: Tensor, params: Params, flags: Flags) -> Tensor:
        if self.filter is None:
            return super().compute_transformation(input, params, flags)
        source = self._recorded_source(params, _size_of(input))
        boxes = self.boxes(source, params, flags)
        if boxes is None:
            boxes = whole(source, params["batch_prob"])
        # A half-precision matrix could not tell neighbouring pixels apart beyond 256 or 2048.
        dtype = torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype
        matrix = pixel_matrix(boxes, self.drawn_size(source, params, flags)).to(dtype)
        return matrix.to(input.device, non_blocking=not torch.compiler.is_compiling()).expand(input.shape[0], 3, 3)

    def compute_inverse_transformation(self, transform: Tensor) -> Tensor:
        if self.filter is None:
            return super().compute_inverse_transformation(transform)
        # Scale and shift per axis: no linear algebra, which would synchronise to report singular matrices.
        inverse = torch.zeros_like(transform)
        scale, shift = transform.diagonal(dim1=1, dim2=2)[:, :2], transform[:, :2, 2]
        inverse[:, 0, 0], inverse[:, 1, 1], inverse[:, 2, 2] = 1 / scale[:, 0], 1 / scale[:, 1], 1.0
        inverse[:, :2, 2] = -shift / scale
        return inverse

    def apply_transform(self, input: Tensor, params: Params, flags: Flags, transform: Tensor | None = None) -> Tensor:
        if self.filter is None:
            return super().apply_transform(input, params, flags, transform)
        return sample_image(*self._picture_and_view(input, params, flags))

    def transform_inputs(
        self, input: Tensor, params: Params, flags: Flags, transform: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if self.filter is None:
            return super().transform_inputs(input, params, flags, transform, **kwargs)
        params, flags = self._process_kwargs_to_params_and_flags(params, flags, **kwargs)
        image = self.transform_tensor(input)
        self.validate_tensor(image)
        out = self.apply_transform(image, params, flags)
        return like_input(out, input.ndim, batch_first=False) if self.keepdim else out

    def transform_masks(
        self,
        input: Tensor,
        params: Params,
        flags: Flags,
        transform: Tensor | None = None,
        is_soft: bool | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Masks of any type, integers included; with ``num_classes`` they become (or stay) soft labels.

        ``is_soft`` says whether the mask is a soft label. None: it is one if it has ``num_classes`` channels of floats,
        more than one; of one class the modules return a `SoftLabel`, which each of them knows.
        """
        if self.filter is None:
            return super().transform_masks(input, params, flags, transform=transform, **kwargs)
        linear = asks_for_interpolation(kwargs)
        fill = self._mask_fill(kwargs)
        params, flags = self._process_kwargs_to_params_and_flags(params, flags)
        batch = params["batch_prob"].numel()
        mask = batched(input, batch)
        if mask.shape[0] != batch:
            raise ValueError(f"mask must have the batch of its parameters, {batch}, got {tuple(input.shape)}")
        out = self._sample_mask(*self._picture_and_view(mask, params, flags), linear, fill, is_soft)
        # kornia's containers (they send a matrix along) lose track of what is soft; of one class everybody does.
        stays_marked = isinstance(mask, SoftLabel) or self.num_classes == 1
        in_container = self.num_classes is not None and transform is not None and mask.is_floating_point()
        if is_soft is None and (stays_marked or in_container):
            out = out.as_subclass(SoftLabel)
        return like_input(out, input.ndim, input.ndim == 3 and input.shape[0] == batch) if self.keepdim else out

    def apply_transform_mask(
        self, input: Tensor, params: Params, flags: Flags, transform: Tensor | None = None
    ) -> Tensor:
        if self.filter is None:
            return super().apply_transform_mask(input, params, flags, transform)
        return self._sample_mask(*self._picture_and_view(input, params, flags), linear=False, fill=None)

    def apply_non_transform_mask(
        self, input: Tensor, params: Params, flags: Flags, transform: Tensor | None = None
    ) -> Tensor:
        """A skipped mask with the channels of an applied one: its one-hot mass."""
        if self.num_classes is None:
            return input
        return self._sample_mask(input, View(_size_of(input), _size_of(input)), linear=False, fill=None)

    def _sample_mask(
        self, mask: Tensor, view: View, linear: bool, fill: float | None, is_soft: bool | None = None
    ) -> Tensor:
        if is_soft is None:
            is_soft = looks_soft(mask, self.num_classes)
        if is_soft:
            return sample_soft(unmarked(mask), view)
        if self.num_classes is None:
            return harden(mask, view, self.ignore_index, fill, linear)
        return soften(mask, view, self.num_classes, self.ignore_index, None)

    def _mask_fill(self, kwargs: dict[str, Any]) -> float | None:
        """What the caller wants outside of a hard mask; None: `ignore_index`."""
        fill = kwargs.get("fill")
        # kornia's container sends 0 beside a per-channel fill of the image: nobody asked for class 0.
        if fill is None or (fill == 0 and not isinstance(self.flags.get("fill", 0), int | float)):
            return None
        return float(fill)

    def inverse(self, input: Tensor, params: Params | None = None, **kwargs: Any) -> Tensor:
        if self.filter is not None:
            _refuse_padding_mode(kwargs)  # kornia's would drop it where the module has no such flag
        return super().inverse(input, params, **kwargs)

    def inverse_inputs(
        self, input: Tensor, params: Params, flags: Flags, transform: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Back onto a picture of the source's size, zeros where the module hid it (this reads that size)."""
        if self.filter is None:
            return super().inverse_inputs(input, params, flags, transform, **kwargs)
        flags = override_parameters(flags, kwargs, in_place=False)
        image = self.transform_tensor(input)
        return undo(image, self._past_view(image, params, flags))

    def inverse_masks(
        self,
        input: Tensor,
        params: Params,
        flags: Flags,
        transform: Tensor | None = None,
        is_soft: bool | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Masks back like their image; ``is_soft`` as in `transform_masks`, but one channel of floats holds masses."""
        if self.filter is None:
            return super().inverse_masks(input, params, flags, transform, **kwargs)
        _refuse_padding_mode(kwargs)
        batch = params["batch_prob"].numel()
        mask = batched(input, batch)
        told = is_soft is not None
        if is_soft is None:
            is_soft = isinstance(mask, SoftLabel) or mask.shape[1] == self.num_classes
        is_soft = is_soft and mask.is_floating_point()
        view = self._past_view(mask, params, flags)
        out = undo_mask(unmarked(mask), view, self.ignore_index, is_soft or asks_for_interpolation(kwargs))
        if is_soft and (isinstance(mask, SoftLabel) or transform is not None) and not told:
            out = out.as_subclass(SoftLabel)
        return like_input(out, input.ndim, input.ndim == 3 and input.shape[0] == batch) if self.keepdim else out

    def past_source(self, params: Params) -> Size:
        """(H, W) of the picture that the parameters were drawn for, read from the tensor that kornia keeps it in."""
        *_, height, width = params["forward_input_shape"].tolist()
        return height, width

    def _recorded_source(self, params: Params, otherwise: Size) -> Size:
        """The same where reading costs nothing; else another size that is right going forward."""
        recorded = params.get("forward_input_shape")
        reads_freely = recorded is not None and _can_be_read(recorded) and recorded.device.type == "cpu"
        return self.past_source(params) if reads_freely else otherwise

    def _past_view(self, shown: Tensor, params: Params, flags: Flags) -> View:
        """The view that made what is shown."""
        view = self.view(self.past_source(params), params, flags)
        if view.size != _size_of(shown):
            raise ValueError(
                f"image and mask must have the size that {type(self).__name__} makes, {view.size}, to go back, got "
                f"{_size_of(shown)}"
            )
        return view


def edges(corners: Tensor) -> Tensor:
    """kornia's inclusive corner pixels ``(B, 4, 2)`` as boxes in pixel edges: ``(B, 4)`` float64."""
    corners = corners.double()
    return torch.cat([corners[:, 0], corners[:, 2] + 1], dim=1)


def sliced(corners: Tensor, canvas: Size, left: int = 0, top: int = 0) -> Tensor:
    """What kornia's slices of a canvas (H, W) show of the corners, as boxes of a picture at ``left``, ``top`` in it.

    Slices end where the canvas does, and these hold a pixel at least. Corners lie beyond it where they were drawn in
    half precision and rounded, or edited.
    """
    corners = corners.to(torch.float64, copy=True)
    for axis, length, start in ((0, canvas[1], left), (1, canvas[0], top)):
        along = corners[..., axis].clamp_(0, length - 1)
        if start != 0:
            along.sub_(start)
    return edges(corners)


def _tells_apart(dtype: torch.dtype, length: int) -> bool:
    """Whether each pixel of an axis has a number of its own in this type."""
    return not dtype.is_floating_point or length <= 2 / torch.finfo(dtype).eps


def _recorded(params: Params, name: str) -> list[int] | None:
    """The first sample's row of sizes that kornia keeps in the parameters; None where there is none, or none to read.

    kornia reads them when it replays parameters, and, like this, makes them anew of the flags where it is compiled.
    """
    kept = params.get(name)
    return None if kept is None or kept.shape[0] == 0 or not _can_be_read(kept) else kept[0].tolist()


def _can_be_read(tensor: Tensor) -> bool:
    """Whether there are values to read: neither a compiler's nor a fake tensor has any."""
    return type(tensor) is Tensor and not torch.compiler.is_compiling()


def _size_of(picture: Tensor) -> Size:
    return picture.shape[-2], picture.shape[-1]


def _are_numbers(values: Any, kind: Any) -> bool:
    return isinstance(values, tuple | list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def _fill(flags: Flags) -> Fill:
    fill: Any = flags["fill"]
    return float(fill) if isinstance(fill, int | float) else tuple(float(value) for value in fill)


def asks_for_interpolation(kwargs: dict[str, Any]) -> bool:
    """Whether ``extra_args`` asks for masks to be averaged; kornia's default asks for the opposite."""
    resample = kwargs.get("resample")
    return bool(kwargs.get("antialias")) or (resample is not None and Resample.get(resample) != Resample.NEAREST)


def _refuse_padding_mode(kwargs: dict[str, Any]) -> None:
    mode = kwargs.get("padding_mode", "zeros")
    if mode not in ("zeros", "constant"):
        raise ValueError(
            f"padding_mode of an inverse must be 'zeros', got {mode!r}: only filter=None, kornia's sampling, has others"
        )


# --- the modules -----------------------------------------------------------------------------------------------------


class Resize(BoxAugmentation, K.Resize):
    """Resize the whole picture, antialiased and on the half-pixel grid: a drop-in for `kornia.augmentation.Resize`.

    Args:
        size: ``(h, w)`` of the output in pixels, or the length of one side as an int.
        side: which side an int ``size`` is: ``"short"``, ``"long"``, ``"vert"`` or ``"horz"``.
        resample, align_corners, antialias: kornia's sampling; they matter with ``filter=None`` alone.
        p: probability that the batch is resized.
        keepdim: keep the rank of the input.
        num_classes: C, and label maps become soft labels; None: masks stay hard (nearest, on the image's grid).
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: as in `tritonsoft.functional`; None for kornia's own sampling, bit for bit.

    Shape:
        Image ``(B, K, H, W)`` of any floating type -> ``(B, K, h, w)``. Mask ``(B, 1, H, W)`` of class ids ->
        ``(B, C, h, w)`` with ``num_classes``, else ``(B, 1, h, w)``; a mask with C channels is filtered linearly.

    Example:
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
    ) -> None:
        super().__init__(size, side, resample, align_corners, antialias, p, keepdim)
        self._configure(num_classes, ignore_index, filter)

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        return None

    def output_size(self, source: Size, flags: Flags) -> Size:
        if not isinstance(flags["size"], int):
            return super().output_size(source, flags)
        # kornia's rule: one side is what the generator was made for, whatever the flags have become.
        drawn: Any = self._param_generator
        if isinstance(drawn.output_size, int):
            return cast(Size, _side_to_image_size(drawn.output_size, source[1] / source[0], drawn.side))
        return cast(Size, tuple(drawn.output_size))

    def drawn_size(self, source: Size, params: Params, flags: Flags) -> Size:
        # Of one side, kornia keeps the size of the picture that it drew for; others have their own.
        own = isinstance(flags["size"], int) and self._recorded_source(params, source) == source
        kept = _recorded(params, "output_size") if own else None
        return self.output_size(source, flags) if kept is None else (kept[0], kept[1])


class RandomResizedCrop(BoxAugmentation, K.RandomResizedCrop):
    """Crop a random box and resize it in one resample: a drop-in for `kornia.augmentation.RandomResizedCrop`.

    Args:
        size: ``(h, w)`` of the output in pixels.
        scale: range of the box's area as a share of the picture's.
        ratio: range of the box's width over its height.
        resample, align_corners, cropping_mode: kornia's sampling; they matter with ``filter=None`` alone.
        same_on_batch: one box for all samples.
        p: probability that the batch is cropped.
        keepdim: keep the rank of the input.
        num_classes, ignore_index, filter: as in `Resize`.

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
    ) -> None:
        super().__init__(size, scale, ratio, resample, same_on_batch, align_corners, p, keepdim, cropping_mode)
        self._configure(num_classes, ignore_index, filter)


class RandomCrop(BoxAugmentation, K.RandomCrop):
    """Crop a random window, padding where asked: a drop-in for `kornia.augmentation.RandomCrop`.

    Padding carries no label mass, and a hard mask holds ``ignore_index`` there (``extra_args`` may name another fill).

    Args:
        size: ``(h, w)`` of the window in pixels.
        padding: pixels added on every side before the crop: one number, ``(left/right, top/bottom)`` or
            ``(left, top, right, bottom)``.
        pad_if_needed: pad where the picture is smaller than the window. Otherwise it is stretched, as kornia does.
        fill: what a constant padding holds in an image, one value or one per channel.
        padding_mode: ``"constant"``, ``"reflect"`` or ``"replicate"``; the last two repeat labels as well as pixels.
        resample, align_corners, cropping_mode: kornia's sampling; they matter with ``filter=None`` alone.
        same_on_batch: one window for all samples.
        p: probability that the batch is cropped.
        keepdim: keep the rank of the input.
        num_classes, ignore_index, filter: as in `Resize`.

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
    ) -> None:
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
        self._configure(num_classes, ignore_index, filter)

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        # A window larger than the (padded) picture is kornia's way of stretching the picture to it.
        left, right, top, bottom = self._border(source, params, flags)
        height, width = canvas = source[0] + top + bottom, source[1] + left + right
        if _tells_apart(params["src"].dtype, max(canvas)):
            return sliced(params["src"], canvas, left, top)
        # Only the start was left to chance: a rounded end must not stretch the window.
        h, w = min(flags["size"][0], height), min(flags["size"][1], width)
        x0, y0 = params["src"][:, 0].double().unbind(1)
        x0, y0 = x0.clamp(0, width - w) - left, y0.clamp(0, height - h) - top
        return torch.stack([x0, y0, x0 + w, y0 + h], dim=1)

    def padding(self, source: Size, params: Params, flags: Flags) -> tuple[bool, Fill]:
        return max(self._border(source, params, flags)) > 0, _fill(flags)

    @property
    def foldable(self) -> bool:
        # Pixels that padding repeats are no part of a box.
        return super().foldable and self.flags["padding_mode"] == "constant"

    def _border(self, source: Size, params: Params, flags: Flags) -> tuple[int, int, int, int]:
        """(left, right, top, bottom) that the parameters were drawn with, whatever the flags have become."""
        kept = _recorded(params, "padding_size")
        left, right, top, bottom = self.compute_padding((1, 1, *source), flags) if kept is None else kept
        return left, right, top, bottom

    def _picture_and_view(self, picture: Tensor, params: Params, flags: Flags) -> tuple[Tensor, View]:
        picture, view = super()._picture_and_view(picture, params, flags)
        if flags["padding_mode"] == "constant" or not view.pads:
            return picture, view
        assert view.boxes is not None
        border = left, _, top, _ = self._border(view.source, params, flags)
        picture = pad_by_repeating(picture, border, flags["padding_mode"])
        x0, y0, x1, y1 = view.boxes.unbind(1)
        boxes = torch.stack([x0 + left, y0 + top, x1 + left, y1 + top], dim=1)
        return picture, View(_size_of(picture), view.size, boxes, view.filter, view.crops)

    def past_source(self, params: Params) -> Size:
        height, width = super().past_source(params)
        if params["padding_size"].shape[0] == 0:
            return height, width
        # kornia has recorded the padded picture.
        left, right, top, bottom = params["padding_size"][0].tolist()
        return height - top - bottom, width - left - right


class CenterCrop(BoxAugmentation, K.CenterCrop):
    """Crop the window in the middle: a drop-in for `kornia.augmentation.CenterCrop`.

    Args:
        size: ``(h, w)`` of the window in pixels, or one number for both; not larger than the picture.
        align_corners, resample, cropping_mode: kornia's sampling; they matter with ``filter=None`` alone.
        p: probability that the batch is cropped.
        keepdim: keep the rank of the input.
        num_classes, ignore_index, filter: as in `Resize`.

    Shape:
        As `Resize`.

    Example:
        >>> CenterCrop(2)(torch.arange(16.0).reshape(1, 1, 4, 4))
        tensor([[[[ 5.,  6.],
                  [ 9., 10.]]]])
    """

    crops = True
    resamples = False

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
    ) -> None:
        super().__init__(size, align_corners, resample, p, keepdim, cropping_mode)
        self._configure(num_classes, ignore_index, filter)

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        # As kornia's slice, the middle of the size that the flags name now: nothing of it was left to chance.
        (height, width), (h, w) = source, self.output_size(source, flags)
        if h > height or w > width:
            raise ValueError(f"size must not be larger than the picture {source}, got {(h, w)}")
        top, left = (height - h) // 2, (width - w) // 2
        box = torch.tensor([[left, top, left + w, top + h]], dtype=torch.float64, device="cpu")
        return rows(box, params["batch_prob"].shape[0], params["batch_prob"].device)


class _RandomFlip(BoxAugmentation):
    """What the flips share; the box is the subclass's."""

    resamples = False

    def __init__(
        self,
        p: float = 0.5,
        p_batch: float = 1.0,
        same_on_batch: bool = False,
        keepdim: bool = False,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        filter: Filter | None = "area",
    ) -> None:
        super().__init__(p, p_batch, same_on_batch, keepdim)
        self._configure(num_classes, ignore_index, filter)

    def output_size(self, source: Size, flags: Flags) -> Size:
        return source

    def _past_view(self, shown: Tensor, params: Params, flags: Flags) -> View:
        return self.view(_size_of(shown), params, flags)  # every picture is mirrored about its own middle


class RandomHorizontalFlip(_RandomFlip, K.RandomHorizontalFlip):
    """Mirror pictures left-right at random: a drop-in for `kornia.augmentation.RandomHorizontalFlip`.

    Args:
        p: probability that a sample is flipped.
        p_batch: probability that any sample of the batch may be.
        same_on_batch: flip all samples or none.
        keepdim: keep the rank of the input.
        num_classes, ignore_index, filter: as in `Resize`; a flip gives the same with every filter.

    Shape:
        As `Resize`, with h = H and w = W.

    Example:
        >>> RandomHorizontalFlip(p=1.0)(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
        tensor([[[[3., 2., 1.]]]])
    """

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        x0, y0, x1, y1 = whole(source, params["batch_prob"]).unbind(1)
        return torch.stack([x1, y0, x0, y1], dim=1)


class RandomVerticalFlip(_RandomFlip, K.RandomVerticalFlip):
    """Mirror pictures top-bottom at random: a drop-in for `kornia.augmentation.RandomVerticalFlip`.

    Args:
        p: probability that a sample is flipped.
        p_batch: probability that any sample of the batch may be.
        same_on_batch: flip all samples or none.
        keepdim: keep the rank of the input.
        num_classes, ignore_index, filter: as in `Resize`; a flip gives the same with every filter.

    Shape:
        As `Resize`, with h = H and w = W.

    Example:
        >>> RandomVerticalFlip(p=1.0)(torch.tensor([[[[1.0], [2.0]]]]))
        tensor([[[[2.],
                  [1.]]]])
    """

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        x0, y0, x1, y1 = whole(source, params["batch_prob"]).unbind(1)
        return torch.stack([x0, y1, x1, y0], dim=1)


class _ScaleCropGenerator(RandomGeneratorBase):
    """A factor per sample, and where its window lies: a share of the way across and down.

    In single precision at least: rounded to halves, a window as large as the picture would show what lies outside.
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
        # kornia's parameters have the default type, and lie where new tensors do.
        like = torch.empty(0, dtype=torch.promote_types(torch.get_default_dtype(), torch.float32))
        samplers = {"scale": self.factor_sampler, "across": self.place_sampler, "down": self.place_sampler}
        return {
            name: _adapted_rsampling((batch_shape[0],), sampler, same_on_batch).to(like)
            for name, sampler in samplers.items()
        }


class RandomScaleCrop(BoxAugmentation):
    """Scale the picture by a random factor, then cut a random window; pad where the picture is too small.

    The standard augmentation of segmentation training, which kornia lacks, as one box: its sides are those of the
    window divided by the factor. Where the scaled picture is larger than the window, the window lies anywhere inside
    it; where it is smaller, the picture lies anywhere inside the window. Padding carries no label mass, and a hard mask
    holds ``ignore_index`` there.

    Args:
        size: ``(h, w)`` of the output in pixels.
        scale: range of the factor, drawn evenly; 1 shows source pixels at their own size, 2 at twice it.
        fill: what an image holds in the padding, one value or one per channel.
        same_on_batch: one factor and one position for all samples.
        p: probability that the batch is cropped.
        keepdim: keep the rank of the input.
        num_classes, ignore_index: as in `Resize`.
        filter: as in `tritonsoft.functional`.

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
    ) -> None:
        super().__init__(p=1.0, same_on_batch=same_on_batch, p_batch=p, keepdim=keepdim)
        if not _are_numbers(size, int) or len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be (height, width), two ints of at least 1, got {size!r}")
        if not _are_numbers(scale, int | float) or len(scale) != 2 or not 0 < scale[0] <= scale[1] < math.inf:
            raise ValueError(f"scale must be (smallest, largest) with 0 < smallest <= largest, got {scale!r}")
        if not _are_numbers(fill if isinstance(fill, tuple | list) else [fill], int | float):
            raise TypeError(f"fill must be a number or one per channel, got {fill!r}")
        if filter is None:
            raise ValueError(
                "filter must be a filter's name: kornia has no RandomScaleCrop whose sampling None could mean"
            )
        self._param_generator = _ScaleCropGenerator((scale[0], scale[1]))
        self.flags = {"size": tuple(size), "fill": fill}
        self._configure(num_classes, ignore_index, filter)

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> Params:
        drawn = super().generate_parameters(batch_shape)
        height, width = batch_shape[-2:]
        h, w = self.output_size((height, width), self.flags)
        box_width, box_height = w / drawn["scale"], h / drawn["scale"]
        x0, y0 = drawn["across"] * (width - box_width), drawn["down"] * (height - box_height)
        x1, y1 = x0 + box_width - 1, y0 + box_height - 1  # kornia's crops name their corner pixels
        corners = torch.stack(
            [torch.stack(corner, dim=1) for corner in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], dim=1
        )
        output_size = torch.empty((batch_shape[0], 2), dtype=torch.long, device=corners.device)
        output_size[:, 0], output_size[:, 1] = h, w
        return {"scale": drawn["scale"], "src": corners, "output_size": output_size}

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        # A window as large as the scaled picture must not show a rounding error of what lies outside.
        boxes, picture = edges(params["src"]), whole(source, params["src"])
        for edge in (torch.zeros_like(picture), picture[:, 2:].repeat(1, 2)):
            boxes = torch.where((boxes - edge).abs() < _ROUNDING, edge, boxes)
        return boxes

    def padding(self, source: Size, params: Params, flags: Flags) -> tuple[bool, Fill]:
        return True, _fill(flags)
