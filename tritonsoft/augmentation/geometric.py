"""Modules whose transform is a matrix, in kornia's terms: what moves boxes and keypoints, and can be inverted."""

from typing import Any

import torch
from torch import Tensor

import tritonsoft as ts
from tritonsoft.augmentation._kornia import MatrixHooks, input_metadata_only, override_parameters
from tritonsoft.augmentation.masks import (
    Mask,
    SoftLabel,
    asks_for_interpolation,
    batched,
    invert_mask,
    invert_sparse,
    restore_rank,
    unmarked,
)
from tritonsoft.augmentation.resampling import Flags, Params, ResamplingAugmentation, size_of
from tritonsoft.augmentation.sampling import invert
from tritonsoft.augmentation.view import Size, View, inverse_matrix, pixel_matrix, to_device, whole
from tritonsoft.geometry import Filter


class GeometricAugmentation(ResamplingAugmentation, MatrixHooks):
    """What boxes and matrices share: the matrix that moves boxes and keypoints, and the inverse."""

    def _configure(
        self, num_classes: int | None, ignore_index: int | None, filter: Filter | None, top_k: int | None
    ) -> None:
        super()._configure(num_classes, ignore_index, filter, top_k)
        if filter is not None:
            # The image never needs the matrix; it is made when boxes, keypoints or a caller read it.
            self.defer_matrix()

    def remember(self, image: Tensor, source: Size, params: Params, flags: Flags) -> None:
        """Leave behind what a forward call would, where a container took over: the matrix is made of it when asked."""
        shape = (*self.transform_tensor(image).shape[:2], *source)
        stand_in = image.new_empty(()).expand(shape)
        drawn = params
        if self._source_or_else(params, source) != source:  # a replay on an image of another size
            drawn = {**params, "forward_input_shape": torch.tensor(shape)}
        self.record_call(params, stand_in, drawn, flags)

    # --- kornia's contract ------------------------------------------------------------------------------------------

    def compute_inverse_transformation(self, transform: Tensor) -> Tensor:
        if self.filter is None:
            return super().compute_inverse_transformation(transform)
        return inverse_matrix(transform)

    def inverse(self, input: Tensor, params: Params | None = None, **kwargs: Any) -> Tensor:
        if self.filter is not None:
            _refuse_padding_mode(kwargs)  # kornia's would drop it where the module has no such flag
        return super().inverse(input, params, **kwargs)

    def inverse_inputs(
        self, input: Tensor, params: Params, flags: Flags, transform: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Back onto an image of the source's size, zeros where the module hid it (this reads that size)."""
        if self.filter is None:
            return super().inverse_inputs(input, params, flags, transform, **kwargs)
        flags = override_parameters(flags, kwargs, in_place=False)
        image = self.transform_tensor(input)
        return invert(image, self._recorded_view(image, params, flags))

    def inverse_masks(
        self,
        input: Mask,
        params: Params,
        flags: Flags,
        transform: Tensor | None = None,
        is_soft: bool | None = None,
        **kwargs: Any,
    ) -> Mask:
        """Masks back like their image; ``is_soft`` as in `transform_masks`, but one channel of floats holds masses."""
        if isinstance(input, ts.SparseLabels):
            view = self._recorded_view(input.mass, params, flags)
            labels = invert_sparse(self._checked_sparse(input, view.source, params, flags), view)
            return labels[0] if self.keepdim and input.ndim == 3 else labels
        if self.filter is None:
            return super().inverse_masks(input, params, flags, transform, **kwargs)
        _refuse_padding_mode(kwargs)
        batch = params["batch_prob"].numel()
        mask = batched(input, batch)
        told = is_soft is not None
        if is_soft is None:
            is_soft = isinstance(mask, SoftLabel) or mask.shape[1] == self.num_classes
        is_soft = is_soft and mask.is_floating_point()
        view = self._recorded_view(mask, params, flags)
        out = invert_mask(unmarked(mask), view, self.ignore_index, is_soft or asks_for_interpolation(kwargs))
        if is_soft and (isinstance(mask, SoftLabel) or transform is not None) and not told:
            out = out.as_subclass(SoftLabel)
        return restore_rank(out, input.ndim, input.ndim == 3 and input.shape[0] == batch) if self.keepdim else out

    def _recorded_view(self, shown: Tensor, params: Params, flags: Flags) -> View:
        """The view through which the parameters made ``shown`` from its source."""
        # What is neither resized nor drawn for a size is mirrored or turned about the middle of each image.
        free = self.keeps_size and not self.drawn_for_size
        source = size_of(shown) if free else self.recorded_source(params)
        view = self.view(source, params, flags, shown.device)
        if view.size != size_of(shown):
            raise ValueError(
                f"image and mask must have the size that {type(self).__name__} makes, {view.size}, to go back, got "
                f"{size_of(shown)}"
            )
        return view


class BoxAugmentation(GeometricAugmentation):
    """An augmentation that shows a box of the image at some size; a subclass says which box."""

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        """``(B, 4)`` float64 in edges of an image of (H, W), for the parameters that were drawn; None: all of it."""
        return sliced(params["src"], source)

    def transform(self, source: Size, params: Params, flags: Flags, device: torch.device) -> Tensor | None:
        return self.boxes(source, params, flags)

    @input_metadata_only
    def compute_transformation(self, input: Tensor, params: Params, flags: Flags) -> Tensor:
        if self.filter is None:
            return super().compute_transformation(input, params, flags)
        source = self._source_or_else(params, size_of(input))
        boxes = self.boxes(source, params, flags)
        if boxes is None:
            boxes = whole(source, params["batch_prob"])
        matrix = pixel_matrix(boxes, self.drawn_size(source, params, flags)).to(type_of_positions(input.dtype))
        return to_device(matrix, input.device).expand(input.shape[0], 3, 3)


def type_of_positions(dtype: torch.dtype) -> torch.dtype:
    """Not bfloat16 or float16, which hold whole numbers up to 256 and 2048 only: too few for pixel positions."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def edges(corners: Tensor) -> Tensor:
    """kornia's inclusive corner pixels ``(B, 4, 2)`` as boxes in pixel edges: ``(B, 4)`` float64."""
    corners = corners.double()
    return torch.cat([corners[:, 0], corners[:, 2] + 1], dim=1)


def sliced(corners: Tensor, canvas: Size, left: int = 0, top: int = 0) -> Tensor:
    """kornia's inclusive corner pixels on a padded canvas (H, W), as boxes of the image at ``left``, ``top`` in it.

    Clipped to the canvas, as slicing does, to one pixel at least: corners drawn in half precision are rounded and may
    lie beyond it, and so may those that a caller edited.
    """
    corners = corners.to(torch.float64, copy=True)
    for axis, length, start in ((0, canvas[1], left), (1, canvas[0], top)):
        along = corners[..., axis].clamp_(0, length - 1)
        if start != 0:
            along.sub_(start)
    return edges(corners)


def tells_apart(dtype: torch.dtype, length: int) -> bool:
    """Whether each pixel of an axis has a number of its own in this type."""
    return not dtype.is_floating_point or length <= 2 / torch.finfo(dtype).eps


def _refuse_padding_mode(kwargs: dict[str, Any]) -> None:
    mode = kwargs.get("padding_mode", "zeros")
    if mode not in ("zeros", "constant"):
        raise ValueError(
            f"padding_mode of an inverse must be 'zeros', got {mode!r}: only filter=None, kornia's sampling, has others"
        )
