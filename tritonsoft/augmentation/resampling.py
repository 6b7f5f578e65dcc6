"""What all modules share: an augmentation that moves the pixels of images and masks alike."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from kornia.constants import Resample
from torch import Tensor

import tritonsoft as ts
from tritonsoft.augmentation._kornia import ModuleHooks
from tritonsoft.augmentation.masks import (
    MaskValue,
    SoftLabel,
    asks_for_interpolation,
    batched,
    check_classes_of_sparse,
    looks_soft,
    map_planes,
    mask_fill,
    move_planes,
    refuse_dense,
    refuse_sparse,
    resample_hard,
    resample_to_soft,
    restore_rank,
    unmarked,
)
from tritonsoft.augmentation.sampling import can_be_read, sample_image, sample_soft
from tritonsoft.augmentation.view import Fill, Size, View, to_device, unmoved
from tritonsoft.functional import (
    check_ignore_index,
    check_num_classes,
    check_top_k,
    index_type,
    is_number,
    is_whole_number,
)
from tritonsoft.geometry import FILTERS, Filter

Params = dict[str, Tensor]
Flags = dict[str, Any]


class ShownMask(NamedTuple):
    """A mask, and what the modules before one have left to be shown of it."""

    mask: Tensor  # (B, K, H, W)
    view: View
    is_soft: bool  # masses, or class ids


class ResamplingAugmentation(ModuleHooks):
    """What the modules of this package share: where each position of the output comes from, and the output's size.

    A subclass says the first (`transform`, from kornia's parameters) and the second (`output_size`, from the
    configuration alone). Everything else follows from these two: images, masks, and how modules fuse (`view`). The
    random parameters are kornia's, and with ``filter=None`` so is the rest.
    """

    crops = False  # whether it may hide a part of the image, as a box does
    keeps_size = False  # whether the output is as large as the image
    drawn_for_size = False  # whether the parameters are positions in an image of the size that they were drawn for
    has_matrix = True  # whether there is a matrix that moves boxes and keypoints

    num_classes: int | None
    ignore_index: int
    filter: Filter | None
    top_k: int | None

    def _configure(
        self, num_classes: int | None, ignore_index: int | None, filter: Filter | None, top_k: int | None
    ) -> None:
        if filter is not None and filter not in FILTERS:
            raise ValueError(f"filter must be one of {FILTERS}, or None for kornia's own sampling, got {filter!r}")
        for p in (self.p, self.p_batch):
            check_probability(p)
        if num_classes is not None:
            if not is_whole_number(num_classes):
                raise TypeError(f"num_classes must be an int or None, got {num_classes!r}")
            num_classes = check_num_classes(num_classes, ", or None for hard masks")
            if filter is None:
                raise ValueError(
                    "filter=None is kornia's own sampling, which makes no soft labels: num_classes must be None with "
                    f"it, got num_classes={num_classes}"
                )
        ignore_index = check_ignore_index(ignore_index, num_classes)
        if top_k is not None:
            if num_classes is None:
                raise ValueError(
                    f"top_k must be None where num_classes is, got {top_k}: hard masks keep their pixels. Label maps "
                    "of ids of any numbers are shrunk by tritonsoft.soft_resize(..., num_classes=None, top_k=...)"
                )
            top_k = check_top_k(top_k, num_classes, "top_k")
            index_type(num_classes)  # refuses more classes than a SparseLabels holds
        self.num_classes, self.ignore_index, self.filter, self.top_k = num_classes, ignore_index, filter, top_k
        if filter is not None:
            self._refuse_sampling(self.flags)

    def __repr__(self) -> str:
        ours = f"num_classes={self.num_classes}, ignore_index={self.ignore_index}, filter={self.filter!r}"
        kept = "" if self.top_k is None else f", top_k={self.top_k}"
        return f"{super().__repr__()[:-1]}, {ours}{kept})"

    def _refuse_sampling(self, flags: Flags) -> None:
        """An error for flags that ask for what a filter has no say in."""
        resample = Resample.get(flags.get("resample", Resample.BILINEAR))
        if resample != Resample.BILINEAR:
            raise ValueError(
                f"resample={resample.name.lower()!r} has no effect beside filter={self.filter!r}: choose "
                "filter='nearest' or another filter, or filter=None for kornia's own sampling"
            )

    # --- what a subclass says ---------------------------------------------------------------------------------------

    def transform(self, source: Size, params: Params, flags: Flags, device: torch.device) -> Tensor | None:
        """The transform (see `view`) of an image of (H, W) on a device, for the parameters that were drawn."""
        raise NotImplementedError

    def output_size(self, source: Size, flags: Flags) -> Size:
        """(h, w) that an image of (H, W) becomes when its parameters are drawn."""
        if self.keeps_size:
            return source
        size = flags["size"]
        return int(size[0]), int(size[1])

    def drawn_size(self, source: Size, params: Params, flags: Flags) -> Size:
        """(h, w) that an image of (H, W) becomes with these parameters, which may be replayed."""
        return self.output_size(source, flags)

    def only_moves(self, source: Size, params: Params, flags: Flags) -> bool:
        """Whether it moves the pixels of an image of (H, W) by whole ones, whatever is drawn."""
        return False

    def padding(self, source: Size, params: Params, flags: Flags) -> tuple[bool, Fill]:
        """Whether the output may show what lies outside of the image, and what an image has there."""
        return False, 0.0

    def awaits_labels(self, params: Params) -> bool:
        """Whether labels must decide (`chosen_by`) before there is a view for these parameters."""
        return False

    def chosen_by(self, params: Params, masks: Sequence[ShownMask]) -> Params:
        """What the labels of a call decide, to be added to the parameters: of a batch, or of each sample one."""
        raise NotImplementedError

    def check_mask_options(self, options: Flags) -> None:
        """An error where a caller asks of masks (by `extra_args`, for one) what a filter has no say in."""

    # --- the view ---------------------------------------------------------------------------------------------------

    @property
    def always_applies(self) -> bool:
        return bool(self.p == 1.0 and self.p_batch == 1.0)

    def view(self, source: Size, params: Params, flags: Flags, device: torch.device, first: Size | None = None) -> View:
        """What this module shows of an image or mask of (H, W); of a sample that its probability skips, all of it.

        What was drawn for another size is an error where it does not carry over. ``first`` is the size of the first
        image of the call, which is taken for the size of the draw where the recorded one cannot be read.
        """
        self._refuse_sampling(flags)  # `extra_args` may have brought some
        if self.drawn_for_size and self._source_or_else(params, first or source) != source:
            if self.always_applies or bool((params["batch_prob"] > 0.5).any()):
                what = "crop" if self.crops else "warp"
                raise ValueError(
                    f"image and mask must have the size that {type(self).__name__} drew its {what}s for, "
                    f"{self._source_or_else(params, first or source)}, got {source}: a {what} does not carry over to "
                    "another size"
                )
            return View(source, source)
        transform, size = self.transform(source, params, flags, device), self.drawn_size(source, params, flags)
        if not self.always_applies:
            gate = params["batch_prob"] > 0.5
            if size == source:
                transform = None if transform is None else _gated(gate, transform, source)
            elif gate.numel() and not bool(gate.all()):
                # A batch has one size: only a gate on the whole batch can skip. (This looks at a value.)
                if bool(gate.any()):
                    raise ValueError(
                        f"batch_prob must select all samples or none: {type(self).__name__} makes {size} of {source}, "
                        "and a batch holds one size"
                    )
                return View(source, source)
        pads, fill = self.padding(source, params, flags)
        assert self.filter is not None  # that is kornia's own sampling, which has no view
        whole_pixels = self.only_moves(source, params, flags)
        return View(source, size, transform, self.filter, whole_pixels, self.crops, pads, fill)

    @property
    def can_fuse(self) -> bool:
        """Whether neighbours in a container may fuse with this module into one resample."""
        return self.filter is not None

    def _image_and_view(self, image: Tensor, params: Params, flags: Flags) -> tuple[Tensor, View]:
        """What to sample, and the view of it."""
        return image, self.view(size_of(image), params, flags, image.device)

    def remember(self, image: Tensor, source: Size, params: Params, flags: Flags) -> None:
        """Leave behind what a forward call on an image of (H, W) would, where a container took over."""
        self.record_params(params)

    # --- kornia's contract ------------------------------------------------------------------------------------------

    def apply_transform(self, input: Tensor, params: Params, flags: Flags, transform: Tensor | None = None) -> Tensor:
        if self.filter is None:
            return super().apply_transform(input, params, flags, transform)
        return sample_image(*self._image_and_view(input, params, flags))

    def transform_inputs(
        self, input: Tensor, params: Params, flags: Flags, transform: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if self.filter is None:
            return super().transform_inputs(input, params, flags, transform, **kwargs)
        params, flags = self.with_overrides(params, flags, **kwargs)
        image = self.transform_tensor(input)
        self.validate_tensor(image)
        out = self.apply_transform(image, params, flags)
        return restore_rank(out, input.ndim, batch_first=False) if self.keepdim else out

    def transform_masks(
        self,
        input: MaskValue,
        params: Params,
        flags: Flags,
        transform: Tensor | None = None,
        is_soft: bool | None = None,
        **kwargs: Any,
    ) -> MaskValue:
        """Masks of any type, integers included; with ``num_classes`` they become (or stay) soft labels.

        ``is_soft`` says whether the mask is a soft label. None: it is one if it has ``num_classes`` channels of floats,
        more than one; of one class the modules return a `SoftLabel`, which each of them knows.

        With ``top_k`` label maps become a `SparseLabels`, its masses in the mask's type where that is float16, bfloat16
        or float32, else float32. A `SparseLabels` stays one, through flips and crops of whole pixels; others refuse it.
        """
        if isinstance(input, ts.SparseLabels):
            params, flags = self.with_overrides(params, flags)
            labels = self._checked_sparse(input, size_of(input), params, flags)
            moved = map_planes(labels, lambda planes: move_planes(*self._image_and_view(planes, params, flags)))
            return moved[0] if self.keepdim and input.ndim == 3 else moved
        if self.filter is None:
            return super().transform_masks(input, params, flags, transform=transform, **kwargs)
        self.check_mask_options(kwargs)
        linear = asks_for_interpolation(kwargs)
        fill = self._mask_fill(kwargs)
        params, flags = self.with_overrides(params, flags)
        batch = params["batch_prob"].numel()
        mask = batched(input, batch)
        if mask.shape[0] != batch:
            raise ValueError(f"mask must have the batch of its parameters, {batch}, got {tuple(input.shape)}")
        out = self._sample_mask(*self._image_and_view(mask, params, flags), linear, fill, is_soft)
        batch_first = input.ndim == 3 and input.shape[0] == batch
        if isinstance(out, ts.SparseLabels):
            return restore_rank(out, input.ndim, batch_first) if self.keepdim else out
        # kornia's containers (they send along the matrix, where there is one) lose track of what is soft; of one class
        # everybody does.
        stays_marked = isinstance(mask, SoftLabel) or self.num_classes == 1
        from_container = transform is not None or not self.has_matrix
        in_container = self.num_classes is not None and from_container and mask.is_floating_point()
        if is_soft is None and (stays_marked or in_container):
            out = out.as_subclass(SoftLabel)
        return restore_rank(out, input.ndim, batch_first) if self.keepdim else out

    def apply_transform_mask(
        self, input: Tensor, params: Params, flags: Flags, transform: Tensor | None = None
    ) -> MaskValue:
        if self.filter is None:
            return super().apply_transform_mask(input, params, flags, transform)
        return self._sample_mask(*self._image_and_view(input, params, flags), linear=False, fill=None)

    def apply_non_transform_mask(
        self, input: Tensor, params: Params, flags: Flags, transform: Tensor | None = None
    ) -> MaskValue:
        """A skipped mask with the channels of an applied one: its one-hot mass."""
        if self.num_classes is None:
            return input
        return self._sample_mask(input, View(size_of(input), size_of(input)), linear=False, fill=None)

    def check_sparse(self, labels: ts.SparseLabels, source: Size, params: Params, flags: Flags) -> None:
        """An error where this module cannot show a label that is (H, W) by now."""
        if self.filter is None or not self.only_moves(source, params, flags):
            refuse_sparse(self)
        check_classes_of_sparse(labels, self.num_classes)

    def _checked_sparse(self, labels: ts.SparseLabels, source: Size, params: Params, flags: Flags) -> ts.SparseLabels:
        """A label, or one sample, as a batch that this module can show."""
        self.check_sparse(labels, source, params, flags)
        batch = params["batch_prob"].numel()
        labels = batched(labels, batch)
        if len(labels) != batch:
            raise ValueError(f"mask must have the batch of its parameters, {batch}, got {labels!r}")
        return labels

    def _sample_mask(
        self, mask: Tensor, view: View, linear: bool, fill: float | None, is_soft: bool | None = None
    ) -> MaskValue:
        if is_soft is None:
            is_soft = looks_soft(mask, self.num_classes)
        if is_soft:
            if self.top_k is not None:
                refuse_dense(self.top_k)
            return sample_soft(unmarked(mask), view)
        if self.num_classes is None:
            return resample_hard(mask, view, self.ignore_index, fill, linear)
        return resample_to_soft(mask, view, self.num_classes, self.ignore_index, None, self.top_k)

    def _mask_fill(self, kwargs: dict[str, Any]) -> float | None:
        """What the caller wants outside of a hard mask; None: `ignore_index`."""
        fill = mask_fill(kwargs)
        # kornia's container sends 0 beside a per-channel fill of the image: nobody asked for class 0.
        if fill is None or (fill == 0 and not isinstance(self.flags.get("fill", 0), int | float)):
            return None
        return float(fill)

    def recorded_source(self, params: Params) -> Size:
        """(H, W) of the image that the parameters were drawn for, read from the tensor that kornia keeps it in."""
        *_, height, width = params["forward_input_shape"].tolist()
        return height, width

    def _source_or_else(self, params: Params, otherwise: Size) -> Size:
        """`recorded_source` where reading it waits for no device; else ``otherwise``, right going forward."""
        recorded = params.get("forward_input_shape")
        reads_freely = recorded is not None and can_be_read(recorded) and recorded.device.type == "cpu"
        return self.recorded_source(params) if reads_freely else otherwise


def _gated(gate: Tensor, transform: Tensor, source: Size) -> Tensor:
    """The transform of the samples that the gate selects; the others stay as they are."""
    gate = to_device(gate, transform.device).view(-1, *[1] * (transform.ndim - 1))
    return torch.where(gate, transform, unmoved(source, transform))


def recorded(params: Params, name: str) -> list[int] | None:
    """The first sample's row of sizes that kornia keeps in the parameters; None where there is none, or none to read.

    kornia reads them when it replays parameters, and, like this, makes them anew of the flags where it is compiled.
    """
    kept = params.get(name)
    return None if kept is None or kept.shape[0] == 0 or not can_be_read(kept) else kept[0].tolist()


def size_of(image: Tensor | ts.SparseLabels) -> Size:
    return image.shape[-2], image.shape[-1]


def are_numbers(values: Any) -> bool:
    return isinstance(values, tuple | list) and all(map(is_number, values))


def python_number(value: Any) -> float:
    """An int or a float, of Python or NumPy, as Python's."""
    return value if type(value) in (int, float) else float(value)


def check_probability(p: Any) -> None:
    if not is_number(p) or not 0 <= p <= 1:
        raise ValueError(f"p must be a number from 0 to 1, got {p!r}")


def check_drawn(module: object, params: Any, names: Sequence[str]) -> None:
    """That parameters are those of a module, by the names of what it draws."""
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a mapping of what {type(module).__name__} draws, got {type(params).__name__}")
    if missing := [name for name in names if name not in params]:
        raise ValueError(
            f"params must be those that {type(module).__name__} draws, which have {missing}, got {list(params)}"
        )


def fill_of(flags: Flags) -> Fill:
    fill: Any = flags["fill"]
    return float(fill) if isinstance(fill, int | float) else tuple(float(value) for value in fill)
