"""Masks as kornia hands them around, and the label maps and soft labels that they are."""

import copy
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

import torch
from kornia.constants import Resample
from torch import Tensor

import tritonsoft as ts
from tritonsoft.augmentation.sampling import can_be_read, invert, sample_hard, sample_labels, sample_soft
from tritonsoft.augmentation.view import View
from tritonsoft.functional import LABEL_DTYPES

Mask = TypeVar("Mask", Tensor, ts.SparseLabels)
MaskValue = Tensor | ts.SparseLabels

_CASTS = (Tensor.to, Tensor.type, Tensor.type_as, Tensor.long, Tensor.int, Tensor.short, Tensor.byte, Tensor.bool)


class SoftLabel(Tensor):
    """A soft label that refuses to become integers or to pass for class ids.

    kornia's own container casts every mask back to the type it came in. A label map that came in as integers would
    then silently leave with its masses rounded to 0 and 1; this turns that into an error. It is what the modules
    return to kornia's containers for *float* masks, the only ones that they get there. Of one class, whose masses look
    like class ids, modules and our container return it everywhere (but from a compiled graph), so that the next one
    knows; of more, our container hands out an ordinary tensor. ``masses.as_subclass(SoftLabel)`` tells modules and
    container that one channel of floats holds masses.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__setitem__ and type(args[0]) is Tensor:
            # kornia's slicing crops may write into a tensor that they make first; that tensor would not know.
            raise TypeError(
                "a soft label cannot be written into a tensor that would not know it for one, as crops of kornia may "
                "do: use tritonsoft.augmentation.AugmentationSequential or the crops of that module. A tensor of your "
                "own takes soft.as_subclass(torch.Tensor)"
            )
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if not isinstance(result, SoftLabel):
            return result
        if result.is_floating_point():
            # `to` is how kornia's container hands a mask out, and fewer than 3 dimensions are a loss or a score.
            return result.as_subclass(Tensor) if func is Tensor.to or result.ndim < 3 else result
        if func in _CASTS:
            raise TypeError(
                f"a soft label cannot become {result.dtype}: kornia's AugmentationSequential casts masks back to the "
                "dtype they came in. Use tritonsoft.augmentation.AugmentationSequential, or give the mask as floats"
            )
        return result.as_subclass(Tensor)  # comparisons, argmax and the like are ordinary tensors

    def __deepcopy__(self, memo: dict[int, Any]) -> "SoftLabel":
        return copy.deepcopy(self.as_subclass(Tensor), memo).as_subclass(SoftLabel)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A file or another process gets an ordinary tensor.
        return self.as_subclass(Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def check_mask(mask: Any) -> None:
    """A tensor or a `SparseLabels`, alone or a list of tensors, or a TypeError that says what to give."""
    for each in mask if isinstance(mask, list) else [mask]:
        if isinstance(each, ts.SparseLabels) and each is not mask:
            raise TypeError(
                "mask must be a tensor in a list of masks, got SparseLabels: a batch of samples, as "
                "torch.utils.data.default_collate makes it, is one mask"
            )
        if not isinstance(each, (Tensor, ts.SparseLabels)):
            raise TypeError(f"mask must be a tensor or a SparseLabels, got {type(each).__name__}")


def looks_soft(mask: Tensor, num_classes: int | None) -> bool:
    """Whether a mask ``(B, K, H, W)`` of which nothing else is known holds masses; one channel is taken for ids."""
    return isinstance(mask, SoftLabel) or (
        mask.shape[1] == num_classes and num_classes != 1 and mask.is_floating_point()
    )


def unmarked(mask: Tensor) -> Tensor:
    """The mask as an ordinary tensor."""
    return mask.as_subclass(Tensor) if isinstance(mask, SoftLabel) else mask


def batched(mask: Mask, batch: int) -> Mask:
    """``(B, K, H, W)`` from (H, W), (K, H, W), (B, H, W) or (B, K, H, W), by kornia's rule: B first where it fits.

    A sample of `SparseLabels` becomes a batch of one.
    """
    check_mask(mask)
    if isinstance(mask, ts.SparseLabels):
        return mask if mask.ndim == 4 else _of_each(mask, lambda tensor: tensor[None])
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim == 3:
        mask = mask[:, None] if mask.shape[0] == batch else mask[None]
    if mask.ndim != 4:
        raise ValueError(f"mask must be (H, W), (C, H, W), (B, H, W) or (B, C, H, W), got {tuple(mask.shape)}")
    return mask


def restore_rank(out: Mask, rank: int, batch_first: bool) -> Mask:
    """The result of `batched` with the rank it came in, as far as its channels allow (kornia's ``keepdim``)."""
    if isinstance(out, ts.SparseLabels):
        return out[0] if rank < 4 and len(out) == 1 else out
    if rank == 3 and batch_first and out.shape[1] == 1:
        return out.squeeze(1)
    while out.ndim > max(rank, 2) and out.shape[0] == 1:
        out = out.squeeze(0)
    return out


# --- a few classes of each pixel -------------------------------------------------------------------------------------


def refuse_sparse(module: Any) -> NoReturn:
    """The error for a `SparseLabels` on its way to a module that would resample it."""
    kind = type(module)
    raise TypeError(
        f"mask must be a tensor for the {kind.__name__} of {kind.__module__.split('.')[0]}, got SparseLabels: a few "
        "classes of each pixel cannot be resampled. The flips and CenterCrop of tritonsoft.augmentation take them, and "
        "its RandomCrop where the window fits into the image, all with a filter other than None. For others, give the "
        "label map that they were made of, or dense masses, sparse.to_dense(). Modules with top_k resample a label map "
        "once: put those that resample or pad side by side, and what needs its result after them"
    )


def refuse_dense(top_k: int) -> NoReturn:
    """The error for a dense soft label on its way to a module that keeps a few classes."""
    raise ValueError(
        f"mask must be a label map or a SparseLabels for modules with top_k={top_k}, got a soft label: modules without "
        "top_k resample it, and tritonsoft.SparseLabels.from_dense keeps a few classes of what comes out"
    )


def check_classes_of_sparse(labels: ts.SparseLabels, num_classes: int | None) -> None:
    """That a label has the classes of the modules it meets."""
    if num_classes not in (None, labels.num_classes):
        got = "ids" if labels.num_classes is None else f"{labels.num_classes} classes"
        raise ValueError(f"mask must have the modules' num_classes={num_classes}, got SparseLabels of {got}")


def repeat_single_sample(labels: ts.SparseLabels, batch: int | None) -> ts.SparseLabels:
    """A label for all images of a batch, once for each; a batch as it is."""
    if batch in (None, 1) or (labels.ndim == 4 and len(labels) != 1):
        return labels
    return _of_each(batched(labels, 1), lambda tensor: tensor.expand(batch, *tensor.shape[1:]))


def resample_sparse(labels: ts.SparseLabels, view: View) -> ts.SparseLabels:
    """The pixels of a batch that ``view`` shows, which only moves them; outside, no class has mass."""
    return map_planes(labels, lambda planes: move_planes(planes, view))


def invert_sparse(labels: ts.SparseLabels, view: View) -> ts.SparseLabels:
    """Back onto the source of ``view``; no class has mass where it hid the source."""
    _check_whole_pixels(view)
    return map_planes(labels, lambda planes: invert(planes, view, 0.0))


def move_planes(planes: Tensor, view: View) -> Tensor:
    """Images ``(B, K, H, W)`` of any type through a view that only moves pixels; zeros outside."""
    _check_whole_pixels(view)
    return sample_hard(planes, view, 0.0)


def map_planes(labels: ts.SparseLabels, function: Callable[[Tensor], Tensor]) -> ts.SparseLabels:
    """A batch of what a function of images ``(B, K, H, W)`` makes of its classes, their masses and the rest."""
    index, mass, rest = (function(planes) for planes in (labels.index, labels.mass, labels.rest[:, None]))
    return ts.SparseLabels(index, mass, rest[:, 0], labels.num_classes)


def _of_each(labels: ts.SparseLabels, function: Callable[[Tensor], Tensor]) -> ts.SparseLabels:
    return ts.SparseLabels(function(labels.index), function(labels.mass), function(labels.rest), labels.num_classes)


def _check_whole_pixels(view: View) -> None:
    """That a caller has not edited the parameters of crops into fractions, where looking waits for no device."""
    boxes, (h, w) = view.transform, view.size
    if boxes is None or boxes.device.type != "cpu" or not can_be_read(boxes):
        return
    for x0, y0, x1, y1 in boxes.tolist():
        if not (x0.is_integer() and y0.is_integer() and abs(x1 - x0) == w and abs(y1 - y0) == h):
            raise ValueError(
                f"params must show whole pixels of a SparseLabels at their own size, got the box {(x0, y0, x1, y1)} at "
                f"{(h, w)}: it cannot be resampled"
            )


# --- class ids -------------------------------------------------------------------------------------------------------


def label_map(mask: Tensor, num_classes: int) -> Tensor:
    """The class ids of a one-channel mask, ``(B, 1, H, W)``, as integers that tritonsoft takes: ``(B, H, W)``."""
    ids = mask[:, 0]
    if ids.dtype in LABEL_DTYPES:
        return ids
    if ids.dtype == torch.uint64:
        return ids.to(torch.int64)
    if not ids.is_floating_point():
        raise TypeError(f"mask must hold class ids as integers or floats, got {ids.dtype}")
    exact_up_to = round(2 / torch.finfo(ids.dtype).eps)
    if num_classes - 1 > exact_up_to:
        raise TypeError(
            f"mask in {ids.dtype} cannot tell num_classes={num_classes} labels apart: its integers are exact up to "
            f"{exact_up_to}. Give it as integers, or as float32"
        )
    wanted = f"mask with one channel must hold class ids in 0..{num_classes - 1} (num_classes={num_classes})"
    return whole_numbers(ids, torch.int32, wanted)


def whole_numbers(values: Tensor, dtype: torch.dtype, wanted: str) -> Tensor:
    """Floats as the integers that they are: int32 or int64, or an error that begins with what is ``wanted``."""
    # What no integer can hold is clamped: it then differs from the float it came from, and is found out below.
    limit = min(2.0**31 - 256 if dtype == torch.int32 else 2.0**62, torch.finfo(values.dtype).max)
    integers = values.nan_to_num(nan=-1.0).clamp(-limit, limit).to(dtype)
    whole = integers == values
    if values.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(whole.all()):
        raise ValueError(f"{wanted}, got {values[~whole][0].item()}")
    # Values may not be read on a GPU or by a compiler: there, a fraction becomes the least integer, which is no label.
    least = torch.full((), torch.iinfo(dtype).min, dtype=dtype, device=values.device)
    return torch.where(whole, integers, least)


def resample_to_soft(
    mask: Tensor, view: View, num_classes: int, ignore_index: int, dtype: torch.dtype | None, top_k: int | None
) -> MaskValue:
    """``(B, 1, H, W)`` class ids -> the soft label ``(B, C, h, w)`` that ``view`` shows, or its largest classes."""
    if mask.shape[1] != 1:
        raise ValueError(
            f"mask must have 1 channel of class ids or num_classes={num_classes} channels of masses (floats), got "
            f"{mask.shape[1]} channels of {mask.dtype} in {tuple(mask.shape)}; a mask (B, H, W) needs the image's B"
        )
    if dtype is None:
        dtype = mask.dtype if mask.is_floating_point() else torch.float32
    if top_k is not None and dtype == torch.float64:
        dtype = torch.float32  # a SparseLabels has no larger masses
    return sample_labels(label_map(mask, num_classes), view, num_classes, ignore_index, dtype, top_k)


def resample_hard(mask: Tensor, view: View, ignore_index: int, fill: float | None, linear: bool) -> Tensor:
    """``(B, K, H, W)`` -> ``(B, K, h, w)``, the type kept: the nearest pixels or, if ``linear``, filtered ones."""
    if linear and mask.is_floating_point():
        return sample_soft(mask, view)
    return sample_hard(mask, view, _outside(mask, ignore_index, fill) if view.pads else 0.0)


def invert_mask(mask: Tensor, view: View, ignore_index: int, linear: bool) -> Tensor:
    """Back onto the source: masses through the filter (``linear``), class ids at the nearest pixels."""
    if linear and mask.is_floating_point():
        return invert(mask, view)
    return invert(mask, view, _outside(mask, ignore_index, None))


def asks_for_interpolation(kwargs: dict[str, Any]) -> bool:
    """Whether ``extra_args`` asks for masks to be averaged; kornia's default asks for the opposite."""
    resample = kwargs.get("resample")
    return bool(kwargs.get("antialias")) or (resample is not None and Resample.get(resample) != Resample.NEAREST)


def mask_fill(kwargs: dict[str, Any]) -> float | None:
    """What ``extra_args`` put outside of a hard mask, by either of kornia's names for it; None: nothing."""
    return cast(float | None, kwargs.get("fill", kwargs.get("fill_value")))


def _outside(mask: Tensor, ignore_index: int, fill: float | None) -> float:
    """What a hard mask holds outside of the image: no class, unless the caller names one.

    Binary masks and planes, one per class or not, have no value for "unknown": nothing of them is outside.
    """
    if fill is None and (mask.dtype == torch.bool or mask.shape[1] != 1):
        return 0.0
    value = float(ignore_index if fill is None else fill)
    if not torch.compiler.is_compiling() and not _holds(mask.dtype, value):
        what = f"ignore_index={ignore_index}" if fill is None else f"fill={fill}"
        raise ValueError(f"{what} must fit the mask's {mask.dtype}: padding gets this value")
    return value


def _holds(dtype: torch.dtype, value: float) -> bool:
    if dtype.is_floating_point:
        return torch.tensor(value, dtype=dtype).item() == value
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    return value.is_integer() and low <= value <= high
