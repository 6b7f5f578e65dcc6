"""A random crop that knows what it will show: of a class that is drawn, and of no class too much."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self, cast

import torch
from torch import Tensor

import tritonsoft as ts
from tritonsoft.augmentation._kornia import set_param_generator
from tritonsoft.augmentation.arrays import Array, arange, computes_by_numpy, namespace, to_numpy
from tritonsoft.augmentation.crops import RandomScaleCrop, ScaleCropGenerator, corners, windows
from tritonsoft.augmentation.geometric import BoxAugmentation
from tritonsoft.augmentation.masks import batched, looks_soft, resample_to_soft, unmarked
from tritonsoft.augmentation.resampling import Flags, Params, ShownMask, are_numbers, check_drawn, size_of
from tritonsoft.augmentation.sampling import sample_soft
from tritonsoft.augmentation.view import Size, View, to_device
from tritonsoft.functional import check_num_classes, is_whole_number, python_int
from tritonsoft.geometry import Filter

_ANCHORED: Final = 4  # boxes around the drawn class, for where none of the others holds it
_CELLS: Final = 32  # of the coarse label along each axis, at least
_SLACK: Final = 2.0**-9  # of a pixel, by which a cell may stick out of a box that counts as holding it
_MIN_AREA: Final = 2.0**-12  # of a pixel, below which a class is not there: sums are rounded
_PARTS: Final = 2.0**40  # of which the largest of several weights counts so many: sums of whole numbers are exact
_DRAWN: Final = ("scale", "across", "down", "cell", "class")
_WEIGHTS: Final = ("inverse_area", "any")


class _ClassCropGenerator(ScaleCropGenerator):
    """Windows by the number, those around a class the last ones; and numbers from 0 to 1 that draw class and cell."""

    def __init__(self, scale: tuple[float, float], candidates: int) -> None:
        super().__init__(scale)
        self.candidates = candidates

    def forward(self, batch_shape: tuple[int, ...], same_on_batch: bool = False) -> Params:
        batch = batch_shape[0]
        drawn = self.windows((batch, self.candidates + _ANCHORED), same_on_batch)
        drawn["cell"] = self.draw((batch, _ANCHORED), self.place_sampler, same_on_batch)
        drawn["class"] = self.draw((batch,), self.place_sampler, same_on_batch)
        return drawn


class RandomClassCrop(RandomScaleCrop):
    """`RandomScaleCrop` that shows a class drawn by weight, and no class too much of: for data with rare classes.

    For each sample a class is drawn among those that it holds, and the first of ``candidates`` random boxes is taken
    that holds the class and of whose labelled area no class covers more than ``max_share``. Where none does, boxes
    around a random place of the class follow: **a class that was drawn is always in the crop**, and ``max_share`` is
    kept wherever one of all these boxes keeps it. A sample without labels, or without any class of positive weight,
    gets the first candidate that keeps ``max_share``, or else the first.

    What the boxes hold is read off one coarse label of the image as it is at this module, at least 32 cells along each
    axis: one more, small, read of the label map, on its device and without waiting for it. Areas are exact but for
    cells that a box cuts, of which it is taken to hold its share; that a box holds the drawn class is said by the cells
    that lie wholly in it. (After a rotation or a warp, cells are averages over points, as docs/warps.md says. And
    ``filter="nearest"`` and "bilinear", which do not read every pixel of what they shrink, may step over a few of it.)

    **The labels decide, so they must come along**: in `AugmentationSequential` with a mask, which chooses a box as this
    module's turn comes, and folds it with the modules before and after into one resample. The chosen boxes are then in
    the parameters, ``src``, and a replay with ``params=`` needs no labels. On its own:

        params = crop.choose(crop.forward_parameters(image.shape), label_map)
        image, soft = crop(image, params=params), crop.transform_masks(label_map, params, crop.flags)

    How this relates to others, and keeps what each promises:

    * mmsegmentation's ``RandomCrop(cat_max_ratio=0.75)`` draws up to ten crops, until no class covers more than that of
      the pixels that are not ignored: ``class_weights="any"``. It promises no class.
    * MONAI's ``RandCropByLabelClasses(ratios=None)`` draws a class among those of the sample, evenly, or by ``ratios``
      (``class_weights``), and centres the crop on a random pixel of it, moved inside the image: the class is there. It
      limits no class. So does nnU-Net's loader, on batchgenerators, for a third of its crops.
    * DAFormer's rare-class sampling draws a class by its rarity in the data set (weights, ``softmax((1 - f) / T)``) and
      takes up to ten crops, until one has enough pixels of it: ``min_pixels``. (It also draws the image by the class,
      which is the sampler's part.)

    Args:
        size: ``(h, w)`` of the output in pixels. The box that it shows has the sides ``h / factor``, ``w / factor``.
        scale: range of the factor, ``(smallest, largest)``, drawn evenly; 1 shows source pixels at their own size, 2 at
            twice it. Where the box is larger than the image, the image lies anywhere inside the box.
        num_classes: C, of the soft labels that this module makes; at least 1.
        class_weights: how likely each class of a sample is drawn. None: all the same; a tensor ``(C,)`` of numbers of
            at least 0, not all 0: by these, among the classes of the sample; "inverse_area": by one over its area in
            the sample; "any": none is drawn, ``max_share`` alone decides.
        max_share: in (0, 1]; how much of a crop's labelled area one class may cover; 1 is no limit.
        candidates: how many random boxes to look at, at least 1.
        min_pixels: how many pixels of the output a class must cover for a candidate to hold it, at least 0. Boxes
            around the class need not: they are what is left.
        fill: what an image holds in the padding, one value or one per channel. Padding carries no label mass.
        same_on_batch: one box for all samples, chosen by the labels of all together.
        p: probability that the batch is cropped.
        keepdim: keep the rank of the input.
        ignore_index: the label that carries no mass; None: 255, and an error where that would be a class.
        filter: "area", "triangle", "bilinear" or "nearest", for image and mask alike.
        top_k: keep the k largest classes of a pixel, as a `tritonsoft.SparseLabels`; None: all.

    Shape:
        Image ``(B, K, H, W)`` or ``(K, H, W)``, floating -> ``(B, K, h, w)``. Label map ``(B, H, W)`` or
        ``(B, 1, H, W)``, of any integer or floating type, of the image's size -> soft label ``(B, C, h, w)``, or with
        ``top_k`` a `tritonsoft.SparseLabels` of that shape; soft label ``(B, C, H, W)`` -> ``(B, C, h, w)``.

    Raises:
        ValueError: the module is called without labels (also in kornia's own container), with labels out of range or
            of another size than the image, or with parameters that it has not drawn.
        TypeError: the labels are a `tritonsoft.SparseLabels`, which cannot be resampled.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> import tritonsoft.augmentation as TA
        >>> crop = TA.RandomClassCrop((64, 64), num_classes=19, class_weights="inverse_area")
        >>> augment = TA.AugmentationSequential(crop, TA.RandomHorizontalFlip(), data_keys=["image", "mask"])
        >>> label_map = torch.zeros(2, 256, 512, dtype=torch.uint8)
        >>> label_map[:, 100:104, 300:305] = 7  # 20 of 131,072 pixels
        >>> image, soft = augment(torch.rand(2, 3, 256, 512), label_map)
        >>> soft.shape, bool((soft[:, 7].sum((1, 2)) > 0).all()), crop._params["drawn_class"].tolist()
        (torch.Size([2, 19, 64, 64]), True, [7, 7])
    """

    num_classes: int
    class_weights: Tensor | None

    def __init__(
        self,
        size: Size,
        scale: tuple[float, float] = (0.5, 2.0),
        num_classes: int | None = None,
        class_weights: Tensor | str | None = None,
        max_share: float = 0.75,
        candidates: int = 10,
        min_pixels: float = 1.0,
        fill: float | tuple[float, ...] = 0.0,
        same_on_batch: bool = False,
        p: float = 1.0,
        keepdim: bool = False,
        ignore_index: int | None = None,
        filter: Filter = "area",
        top_k: int | None = None,
    ) -> None:
        num_classes = check_num_classes(num_classes)
        super().__init__(size, scale, fill, same_on_batch, p, keepdim, num_classes, ignore_index, filter, top_k)
        if not is_whole_number(candidates):
            raise TypeError(f"candidates must be an int, got {candidates!r}")
        self.candidates = python_int(candidates)
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}")
        if not are_numbers([max_share]) or not 0 < max_share <= 1:
            raise ValueError(f"max_share must be a number in (0, 1], got {max_share!r}")
        if not are_numbers([min_pixels]) or not 0 <= min_pixels < math.inf:
            raise ValueError(f"min_pixels must be a finite number of at least 0, got {min_pixels!r}")
        self.max_share, self.min_pixels = float(max_share), float(min_pixels)
        self.draws_by = class_weights if isinstance(class_weights, str) else "weights"
        if self.draws_by not in ("weights", *_WEIGHTS):
            raise ValueError(f"class_weights must be None, a tensor or one of {_WEIGHTS}, got {class_weights!r}")
        weights = None if isinstance(class_weights, str) else _checked_weights(class_weights, self.num_classes)
        self.register_buffer("class_weights", weights, persistent=False)
        set_param_generator(self, _ClassCropGenerator(self.scale, self.candidates))

    def __repr__(self) -> str:
        weights = self.draws_by if self.draws_by != "weights" else self.class_weights
        ours = f"class_weights={weights!r}, max_share={self.max_share}, candidates={self.candidates}"
        return f"{super().__repr__()[:-1]}, {ours}, min_pixels={self.min_pixels})"

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """The weights go where the module goes, and keep their type: halves hold no frequencies, nor inverse ones."""
        weights = self.class_weights
        super()._apply(fn, recurse)
        if weights is not None and self.class_weights is not None and self.class_weights.dtype != weights.dtype:
            self.class_weights = weights.to(self.class_weights.device)
        return self

    # --- parameters -------------------------------------------------------------------------------------------------

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> Params:
        """Random numbers alone: which box they come to is a matter of the labels (`choose`)."""
        drawn = BoxAugmentation.generate_parameters(self, batch_shape)
        return {**drawn, "output_size": self.recorded_size(batch_shape, drawn["scale"].device)}

    def choose(self, params: Params, labels: Tensor) -> Params:
        """Parameters with the boxes that these labels choose among those that were drawn.

        Args:
            params: as ``forward_parameters`` draws them.
            labels: a label map ``(B, H, W)`` or ``(B, 1, H, W)``, or a soft label ``(B, C, H, W)``, of the size that
                the parameters were drawn for.

        Returns:
            A new mapping, on the device of the labels where they decide: ``src``, corners of boxes as of kornia's crops
            ``(B, 4, 2)``; ``drawn_class (B,)``, -1 where none was drawn; ``chosen (B,)``, which box it is: below
            ``candidates`` a random one, else one around the class.
        """
        if not isinstance(labels, Tensor):
            hint = ": to_dense() makes masses" if isinstance(labels, ts.SparseLabels) else ""
            raise TypeError(f"labels must be a tensor, got {type(labels).__name__}{hint}")
        check_drawn(self, params, ("batch_prob",))
        batch, size = params["batch_prob"].numel(), size_of(labels)
        mask = batched(labels, batch)
        source = self._source_or_else(params, size)
        if size != source or mask.shape[0] != batch:
            raise ValueError(
                f"labels must have the batch and the size that the parameters were drawn for, {(batch, *source)}, got "
                f"{tuple(labels.shape)}"
            )
        shown = ShownMask(mask, View(size, size), looks_soft(mask, self.num_classes))
        return {**params, **self.chosen_by(params, [shown])}

    def awaits_labels(self, params: Params) -> bool:
        """Not if the boxes are among the parameters, nor if none is needed, as the batch is not cropped."""
        return "src" not in params and (self.always_applies or bool((params["batch_prob"] > 0.5).any()))

    @torch.no_grad()
    def chosen_by(self, params: Params, masks: Sequence[ShownMask]) -> Params:
        """The boxes that are chosen of what was drawn."""
        check_drawn(self, params, ("batch_prob", *_DRAWN))
        labels, source = [self._coarse_label(*mask) for mask in masks], masks[0].view.size
        coarse: Array = labels[0].detach() if len(labels) == 1 else torch.cat(labels)
        drawn: dict[str, Array] = {name: to_device(params[name], coarse.device) for name in _DRAWN}
        weights: Array = None if self.class_weights is None else to_device(self.class_weights, coarse.device)
        if all(map(computes_by_numpy, (coarse, *drawn.values()))):
            coarse, drawn = to_numpy(coarse), {name: to_numpy(numbers) for name, numbers in drawn.items()}
            weights = None if weights is None else to_numpy(weights)
        batch = params["batch_prob"].numel()
        is_shared = self.same_on_batch and batch > 0
        if is_shared:
            coarse, drawn = coarse.sum(0)[None], {name: numbers[:1] for name, numbers in drawn.items()}
        wish = _Wish(self.draws_by, weights, self.max_share, self.min_pixels)
        chosen = _choose(coarse, source, self.output_size(source, self.flags), drawn, wish)
        results = {name: torch.as_tensor(each) for name, each in chosen.items()}
        if is_shared:
            return {name: each.expand(batch, *each.shape[1:]) for name, each in results.items()}
        return results

    def boxes(self, source: Size, params: Params, flags: Flags) -> Tensor | None:
        if "src" in params:
            return super().boxes(source, params, flags)
        check_drawn(self, params, _DRAWN)
        if not self.awaits_labels(params):
            return None
        raise ValueError(
            f"{type(self).__name__} needs labels to choose a crop, and there are none: call it in "
            "tritonsoft.augmentation.AugmentationSequential with a mask, or choose first: params = "
            "crop.choose(crop.forward_parameters(image.shape), label_map), then crop(image, params=params)"
        )

    def _coarse_label(self, mask: Tensor, view: View, is_soft: bool) -> Tensor:
        """The masses ``(B, C, cells, cells)`` of a mask ``(B, K, H, W)`` that a view shows."""
        coarse = View(view.size, self._cells(view.size)).compose(view)
        if is_soft:
            return sample_soft(unmarked(mask), coarse).float()
        return cast(Tensor, resample_to_soft(mask, coarse, self.num_classes, self.ignore_index, torch.float32, None))

    def _cells(self, source: Size) -> Size:
        """How many cells a coarse label has: the smallest box can hold one, and the pixels at its edges."""
        h, w = self.output_size(source, self.flags)
        return self._cells_along(source[0], h), self._cells_along(source[1], w)

    def _cells_along(self, length: int, side: int) -> int:
        smallest = side / self.scale[1]
        return length if smallest < 3 else min(length, max(_CELLS, math.ceil(length / (smallest - 2))))


# --- what is chosen --------------------------------------------------------------------------------------------------


class _Wish(NamedTuple):
    draws_by: str
    weights: Array | None  # (C,)
    max_share: float
    min_pixels: float  # of the output


def _checked_weights(weights: Tensor | None, num_classes: int) -> Tensor | None:
    if weights is None:
        return None
    if not isinstance(weights, Tensor):
        raise TypeError(f"class_weights must be None, a tensor or one of {_WEIGHTS}, got {type(weights).__name__}")
    if weights.is_complex():
        raise TypeError(f"class_weights must be a tensor of real numbers, got {weights.dtype}")
    if tuple(weights.shape) != (num_classes,):
        raise ValueError(
            f"class_weights must have shape (C,) = ({num_classes},) (num_classes={num_classes}), got "
            f"{tuple(weights.shape)}"
        )
    numbers = weights.detach().double()
    if weights.is_meta:
        return numbers
    if not bool((numbers.isfinite() & (numbers >= 0)).all()) or not bool((numbers > 0).any()):
        raise ValueError(
            f"class_weights must hold finite numbers of at least 0, one of them above, got {numbers.tolist()}"
        )
    return numbers.clone()


def _choose(coarse: Array, source: Size, size: Size, drawn: dict[str, Array], wish: _Wish) -> dict[str, Array]:
    """The box of each sample, by numbers that were drawn; nothing here reads a value on the host.

    Args:
        coarse: masses ``(B, C, cells, cells)`` of images of (H, W), in float32.
        source: (H, W).
        size: (h, w) of the crop.
        drawn: what `_ClassCropGenerator` draws.
        wish: what is asked for.
    """
    xp, samples, dtype = namespace(coarse), arange(coarse.shape[0], coarse), drawn["scale"].dtype
    drawn = {name: xp.asarray(numbers, dtype=xp.float64) for name, numbers in drawn.items()}
    cells = (coarse.shape[2], coarse.shape[3])
    area_of_cell = source[0] * source[1] / (cells[0] * cells[1])
    drawn_class, wished = _draw_class(coarse.sum((2, 3)) * area_of_cell, drawn["class"], wish)
    masses = coarse[samples, drawn_class]  # (B, cells, cells)

    boxes = windows(drawn, size, source)  # (B, N, 4)
    candidates = boxes.shape[1] - _ANCHORED
    around = {name: drawn[name][:, candidates:] for name in ("scale", "across", "down")}
    cell = _draw(masses.reshape(masses.shape[0], cells[0] * cells[1]), drawn["cell"])
    boxes = xp.concatenate([boxes[:, :candidates], _around_cells(cell, around, cells, size, source)], 1)

    ends_y, ends_x = boxes[..., 1::2] * (cells[0] / source[0]), boxes[..., 0::2] * (cells[1] / source[1])
    down, across = _overlap(ends_y, cells[0]), _overlap(ends_x, cells[1])
    areas = _areas(coarse, down, across)  # (B, C, N), in cells
    largest = xp.amax(areas, 1)
    within = ((largest <= wish.max_share * areas.sum(1)) & (largest > 0)) | (wish.max_share == 1)
    whole = (down >= 1 - _SLACK * cells[0] / source[0], across >= 1 - _SLACK * cells[1] / source[1])
    shown = _areas(masses[:, None], *whole)[:, 0] * area_of_cell * drawn["scale"] ** 2  # in pixels of the output
    holds, index = shown >= max(wish.min_pixels, _MIN_AREA), arange(boxes.shape[1], boxes)
    holds = xp.where(wished[:, None], holds | (index >= candidates), index < candidates)

    # The first that both holds the class and keeps the share; else the first that holds it.
    rank = 2 * holds + (holds & within)
    chosen = (rank * index.shape[0] - index).argmax(1)
    src = xp.asarray(corners(boxes[samples, chosen]), dtype=dtype)
    return {"src": src, "drawn_class": xp.where(wished, drawn_class, -1), "chosen": chosen}


def _draw_class(areas: Array, uniform: Array, wish: _Wish) -> tuple[Array, Array]:
    """A class for each row of areas ``(B, C)``, and whether there is one to wish for, each ``(B,)``."""
    xp = namespace(areas)
    weights = xp.asarray(areas > _MIN_AREA, dtype=xp.float64)
    if wish.draws_by == "inverse_area":
        weights = weights / areas.clip(_MIN_AREA, None)
    elif wish.draws_by == "any":
        weights = xp.zeros_like(weights)
    elif wish.weights is not None:
        weights = weights * wish.weights
    return _draw(weights, uniform[:, None])[:, 0], xp.amax(weights, 1) > 0


def _draw(weights: Array, uniform: Array) -> Array:
    """An index into each row of weights ``(B, n)`` for each number ``(B, k)`` from 0 to 1: ``(B, k)``.

    Any index where all are 0.
    """
    xp = namespace(weights)
    weights = xp.asarray(weights, dtype=xp.float64)
    largest = xp.amax(weights, 1)[:, None]
    # Whole numbers: sums of floats along an axis are made in an order that differs from call to call on some GPUs.
    parts = xp.asarray(weights / xp.where(largest > 0, largest, 1.0) * _PARTS, dtype=xp.int64)
    ends = xp.cumsum(parts, 1)
    total = ends[:, -1:]
    place = xp.minimum(xp.asarray(uniform * total, dtype=xp.int64), total - 1)
    return (ends[:, None, :-1] <= place[..., None]).sum(-1)  # all but the last end, which no place reaches


def _around_cells(cell: Array, drawn: dict[str, Array], cells: Size, size: Size, source: Size) -> Array:
    """Boxes that hold these cells ``(B, N)`` and, as `windows`, lie inside of the image or around it: ``(B, N, 4)``."""
    xp, starts, ends = namespace(cell), [], []
    for index, number, length, side, place in (
        (cell % cells[1], cells[1], source[1], size[1], drawn["across"]),
        (cell // cells[1], cells[0], source[0], size[0], drawn["down"]),
    ):
        side_of_box = side / drawn["scale"]
        # Whole pixels: a cell may hold no more of its class than a part of one.
        first, end = index * length // number, ((index + 1) * length + number - 1) // number
        free = length - side_of_box
        # Of a box that is smaller than the cell, low is more than high, and anywhere between them it lies in the cell.
        low, high = xp.maximum(free.clip(None, 0), end - side_of_box), xp.minimum(free.clip(0, None), first)
        starts.append(low + place * (high - low))
        ends.append(starts[-1] + side_of_box)
    return xp.stack([*starts, *ends], -1)


def _overlap(ends: Array, cells: int) -> Array:
    """How much of each cell of an axis lies between ends ``(B, N, 2)``: ``(B, N, cells)``."""
    xp, cell = namespace(ends), arange(cells, ends)
    return (xp.minimum(ends[..., 1:], cell + 1) - xp.maximum(ends[..., :1], cell)).clip(0, None)


def _areas(coarse: Array, down: Array, across: Array) -> Array:
    """``sum_y sum_x down_y across_x coarse_yx``, ``(B, C, N)``, of ``(B, C, h, w)``, ``(B, N, h)`` and ``(B, N, w)``.

    Products of matrices and not an integral image, whose differences cancel, and whose sums along an axis some GPUs
    make in an order that differs from call to call. A matrix of each class alone: NumPy's BLAS would share larger ones
    among threads, and wait for those that have no core.
    """
    xp = namespace(coarse)
    down, across = (xp.asarray(shares, dtype=coarse.dtype) for shares in (down, across))
    with _full_precision(coarse):
        rows = down[:, None] @ coarse  # (B, C, N, w)
        return xp.einsum("bcnw,bnw->bcn", rows, across)


def _full_precision(array: Array) -> contextlib.AbstractContextManager[object]:
    """No autocast, which would round areas to half precision; NumPy and some devices have none."""
    has_autocast = isinstance(array, Tensor) and _has_autocast(array.device.type)
    return torch.autocast(array.device.type, enabled=False) if has_autocast else contextlib.nullcontext()


@torch.compiler.assume_constant_result  # which PyTorch 2.11 cannot trace
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)
