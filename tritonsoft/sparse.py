"""Soft labels of many classes in few bytes: the largest classes of each pixel alone."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import GetAttrKey, register_pytree_node
from torch.utils.data._utils.collate import default_collate_fn_map

from tritonsoft._validation import (
    INTEGER_DTYPES,
    OUTPUT_LABEL_DTYPES,
    SIGNED,
    check_ignore_index,
    check_top_k,
    holds,
    is_int,
    is_whole_number,
    name_of,
    names_of,
    plain,
    python_int,
    should_validate,
    smallest_label_dtype,
    tensor_on,
)
from tritonsoft.backends import reference
from tritonsoft.ops import images

_TENSORS = ("index", "mass", "rest")
MASS_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MOST_CLASSES = 1 << 15


def index_type(num_classes: int) -> torch.dtype:
    """The smallest type that holds the classes."""
    if num_classes > _MOST_CLASSES:
        raise ValueError(f"num_classes must be at most {_MOST_CLASSES} in a SparseLabels, got {num_classes}")
    return torch.uint8 if num_classes <= 256 else torch.int16


@dataclass(eq=False)
class SparseLabels:
    """A soft label as the k largest classes of each pixel, and how much mass the others have.

    Made by ``soft_crop_resize(..., top_k=k)``, or from a dense soft label by `from_dense`. The losses of
    `tritonsoft.losses` take it in place of a dense one; the rest, which belongs to no known class, is to them like
    ignored pixels.

    A batch has the axis B; a sample, as a data set returns it, has none. `torch.utils.data.default_collate` makes a
    batch of samples, indexing a batch by an int gives a sample. Whole pixels are moved by `crop` and `flip`, and by
    `tritonsoft.augmentation.AugmentationSequential` together with an image.

    Attributes:
        index: ``(B, k, h, w)`` or ``(k, h, w)``, the classes: uint8 up to 256 classes, int16 above. Largest mass first;
            equal masses by smaller class first; an entry without mass is class 0. Where ``num_classes`` is None, ids
            in the type of their label map.
        mass: the same shape, float16, bfloat16 or float32: their masses.
        rest: ``(B, h, w)`` or ``(h, w)``, in the type of ``mass``: the mass of all other classes together.
        num_classes: C, at most 32768; None where the label map held ids of any number (``num_classes=None``). Such a
            label has no dense form, and is no target of a loss: it can be moved, saved and decoded by `argmax`.

    Raises:
        TypeError, ValueError: naming the argument, if types, shapes or devices do not fit. Values are not looked at.

    Code that walks batches may build it anew, or set its attributes one after the other: whether they fit is looked at
    when it is made and again when it is used, not in between. It is changed by such code alone: all methods give a new
    one.

    Example:
        >>> import tritonsoft as ts
        >>> labels = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 2]]])
        >>> sparse = ts.soft_resize(labels, (1, 2), num_classes=150, top_k=2)
        >>> sparse.index[0, :, 0], sparse.mass[0, :, 0], sparse.rest[0, 0]
        (tensor([[0, 1],
                [1, 2]], dtype=torch.uint8), tensor([[0.7500, 0.7500],
                [0.2500, 0.2500]]), tensor([0., 0.]))
        >>> sparse.shape, sparse.nbytes
        (torch.Size([1, 150, 1, 2]), 28)
    """

    index: Tensor
    mass: Tensor
    rest: Tensor
    num_classes: int | None

    def __post_init__(self) -> None:
        if is_whole_number(self.num_classes):
            self.num_classes = python_int(self.num_classes)
        check_sparse_labels(self)

    # --- what it is ---

    @property
    def k(self) -> int:
        """How many classes are kept of each pixel."""
        return self.index.shape[-3]

    @property
    def shape(self) -> torch.Size:
        """The shape of the dense soft label, ``(B, C, h, w)`` or ``(C, h, w)``; of ids that of ``index``."""
        if self.num_classes is None:
            return self.index.shape
        return torch.Size((*self.index.shape[:-3], self.num_classes, *self.index.shape[-2:]))

    @property
    def ndim(self) -> int:
        """The number of axes of the dense soft label, 4 of a batch and 3 of a sample."""
        return self.index.ndim

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.index.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the masses."""
        return self.mass.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return self.index.nbytes + self.mass.nbytes + self.rest.nbytes

    # --- dense ---

    @classmethod
    def from_dense(cls, soft: Tensor, k: int, dtype: torch.dtype = torch.float16) -> "SparseLabels":
        """The k largest classes of a dense soft label.

        Args:
            soft: ``(B, C, h, w)``, floats; what is below 0 counts as no mass.
            k: how many classes to keep of each pixel, 1 to C.
            dtype: that masses are rounded to: float16, bfloat16 or float32.

        Example:
            >>> SparseLabels.from_dense(torch.tensor([0.1, 0.7, 0.2]).view(1, 3, 1, 1), 2).index.flatten()
            tensor([1, 2], dtype=torch.uint8)
        """
        if not isinstance(soft, Tensor):
            raise TypeError(f"soft must be a tensor, got {type(soft).__name__}")
        if not soft.is_floating_point():
            raise TypeError(f"soft must be floating point, got {soft.dtype}")
        if soft.ndim != 4:
            raise ValueError(f"soft must have shape (B, C, h, w), got {tuple(soft.shape)}")
        k = check_top_k(k, soft.shape[1], "k")
        if dtype not in MASS_DTYPES:
            raise TypeError(f"dtype must be {names_of(MASS_DTYPES)}, got {dtype}")
        index, mass, rest = reference.top_k(plain(soft).detach().clamp(min=0), k)
        return cls(index.to(index_type(soft.shape[1])), mass.to(dtype), rest.to(dtype), soft.shape[1])

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The soft label ``(B, C, h, w)``, or ``(C, h, w)`` of a sample, without the rest.

        Args:
            dtype: of the result, any floating type; None keeps that of the masses.
        """
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be None or a floating type, got {dtype!r}")
        check_sparse_labels(self)
        check_has_classes(self, "to_dense()")
        assert self.num_classes is not None
        index, mass = (self.index, self.mass) if self.index.ndim == 4 else (self.index[None], self.mass[None])
        soft = reference.dense(index, mass.to(dtype or mass.dtype), self.num_classes)
        return soft if self.index.ndim == 4 else soft[0]

    # --- pixels ---

    def crop(
        self,
        top: int | Sequence[int] | Tensor,
        left: int | Sequence[int] | Tensor,
        height: int,
        width: int,
        *,
        pad: bool = False,
    ) -> "SparseLabels":
        """A window of whole pixels, ``(height, width)`` large, whose first pixel is the one at ``top`` and ``left``.

        One window for all samples shares memory with the label, as a slice of a tensor does. A window for each sample,
        or one that reaches outside, is a copy; nothing waits for a GPU.

        Args:
            top, left: an int, or one for each sample of a batch: integers ``(B,)``, a tensor or a list.
            height, width: of the window in pixels, at least 1.
            pad: let windows reach outside of the label, where no class has mass; otherwise that is an error.

        Raises:
            TypeError, ValueError: naming the argument. Where tensors of ``top`` and ``left`` cannot be read without
                waiting (on a GPU, but with ``TRITONSOFT_VALIDATE=1``; in a compiled graph), what is outside has no
                mass instead.

        Example:
            >>> sparse = SparseLabels.from_dense(torch.eye(3).view(1, 3, 1, 3).repeat(2, 1, 1, 1), 1)
            >>> sparse.argmax()[:, 0]
            tensor([[0, 1, 2],
                    [0, 1, 2]], dtype=torch.uint8)
            >>> sparse.crop(0, [0, 1], 1, 2).argmax()[:, 0]
            tensor([[0, 1],
                    [1, 2]], dtype=torch.uint8)
            >>> sparse.crop(0, 2, 1, 2, pad=True).argmax()[:, 0]
            tensor([[  2, 255],
                    [  2, 255]], dtype=torch.uint8)
        """
        check_sparse_labels(self)
        if not isinstance(pad, bool):
            raise TypeError(f"pad must be True or False, got {pad!r}")
        size = self._length(height, "height", -2, pad), self._length(width, "width", -1, pad)
        rows, columns = self._starts(top, "top", -2, size[0], pad), self._starts(left, "left", -1, size[1], pad)
        if isinstance(rows, int) and isinstance(columns, int):
            bottom, right = rows + size[0], columns + size[1]
            if rows >= 0 and bottom <= self.shape[-2] and columns >= 0 and right <= self.shape[-1]:
                return self._of_each(lambda tensor: tensor[..., rows:bottom, columns:right])
        # A box of a batch is a window of each sample, in float64 and so exactly; its outside is 0, which is no mass.
        batch = self.index.shape[0] if self.ndim == 4 else 1
        starts = [
            torch.full((batch,), start, dtype=torch.float64, device=self.device)
            if isinstance(start, int)
            else tensor_on(start, self.device).double()
            for start in (columns, rows)
        ]
        boxes = torch.stack([*starts, starts[0] + size[1], starts[1] + size[0]], dim=1)
        return self._of_planes(lambda planes: _windows(planes, boxes, size))

    def flip(self, *dims: int | Sequence[int], where: Tensor | Sequence[bool] | None = None) -> "SparseLabels":
        """Mirrored left-right (-1), top-bottom (-2) or both, as `torch.Tensor.flip` does.

        Args:
            dims: -1, -2, or the same axes counted from the front.
            where: which samples of a batch, booleans ``(B,)``, a tensor or a list; None: all. Nothing waits for a GPU.

        Example:
            >>> sparse = SparseLabels.from_dense(torch.eye(3).view(1, 3, 1, 3).repeat(2, 1, 1, 1), 1)
            >>> sparse.flip(-1, where=[False, True]).argmax()[:, 0]
            tensor([[0, 1, 2],
                    [2, 1, 0]], dtype=torch.uint8)
        """
        check_sparse_labels(self)
        axes = _flipped_axes(dims, self.ndim)
        if where is None:
            return self._of_each(lambda tensor: _flipped(tensor, axes))
        chosen = tensor_on(self._per_sample(where, "where", (torch.bool,)), self.device)
        return self._of_each(lambda tensor: _flipped(tensor, axes, chosen.view(-1, *[1] * (tensor.ndim - 1))))

    def argmax(self, ignore_index: int | None = None) -> Tensor:
        """The class of the largest mass in each pixel, as a label map.

        It is that of the dense soft label: no class of the rest has more mass than any class that is kept. Of equal
        masses, which the smaller class wins, a rounding to half precision may make some more.

        Args:
            ignore_index: the label of pixels without mass; None is 255, and an error where C > 255. Of ids it must be
                given, and their type must hold it.

        Returns:
            ``(B, h, w)``, or ``(h, w)`` of a sample: uint8 where that holds all classes and ``ignore_index``, else
            int16 or wider; of ids their type.

        Example:
            >>> soft = torch.tensor([[0.25, 0.0], [0.5, 0.0]]).view(1, 2, 1, 2)
            >>> SparseLabels.from_dense(soft, 1).argmax()
            tensor([[[  1, 255]]], dtype=torch.uint8)
        """
        check_sparse_labels(self)
        if self.num_classes is None and ignore_index is None:
            raise ValueError("ignore_index must be given for a SparseLabels of ids: any number may be an id, got None")
        ignore_index = check_ignore_index(ignore_index, self.num_classes)
        if self.num_classes is None:
            dtype = self.index.dtype
            if not holds(dtype, ignore_index):
                raise ValueError(f"ignore_index must fit the ids' {name_of(dtype)}, got {ignore_index}")
        else:
            dtype = smallest_label_dtype(ignore_index, self.num_classes - 1)
        largest, mass = self.index[..., 0, :, :], self.mass[..., 0, :, :]
        if dtype in (torch.uint16, torch.uint32):  # which PyTorch only copies and views
            return torch.where(mass > 0, largest.long(), ignore_index).to(dtype)
        return torch.where(mass > 0, largest.to(dtype), ignore_index)

    def contiguous(self) -> "SparseLabels":
        """With tensors that are contiguous: after a crop, in memory of their own."""
        return self._of_each(Tensor.contiguous)

    def _length(self, value: Any, argument: str, axis: int, pad: bool) -> int:
        """How long windows are along an axis."""
        length, extent = _as_int(value, argument), self.shape[axis]
        if length < 1:
            raise ValueError(f"{argument} must be at least 1, got {length}")
        if length > extent and not pad:
            raise ValueError(f"{argument} must be at most the label's, {extent}, unless pad=True, got {length}")
        return length

    def _starts(self, value: Any, argument: str, axis: int, length: int, pad: bool) -> int | Tensor:
        """Where windows of this length start along an axis, for all samples or for each of them."""
        extent = self.shape[axis]
        if not isinstance(value, (Tensor, Sequence, np.ndarray)):
            start = _as_int(value, argument)
            if not pad:
                _check_starts(start, start, argument, extent - length)
            return max(-length, min(start, extent))  # what lies further outside has no mass either
        starts = self._per_sample(value, argument, (torch.int8, *OUTPUT_LABEL_DTYPES))
        can_be_read = should_validate(starts.device, None) and not torch.compiler.is_compiling()
        if not pad and can_be_read and starts.numel():
            _check_starts(int(starts.min()), int(starts.max()), argument, extent - length)
        return starts.long().clamp(-length, extent)

    def _per_sample(self, value: Any, argument: str, dtypes: tuple[torch.dtype, ...]) -> Tensor:
        """One value for each sample, as a tensor ``(B,)``, on the label's device or the CPU."""
        self._check_batch()
        try:
            values = plain(value) if isinstance(value, Tensor) else torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{argument} must hold one value for each sample, got {value!r}") from None
        if values.numel() == 0 and not isinstance(value, Tensor):  # an empty list is of no type
            values = values.to(dtypes[0])
        if values.dtype not in dtypes:
            kind = "bool" if dtypes == (torch.bool,) else names_of(dtypes)
            raise TypeError(f"{argument} must be {kind}, got {name_of(values.dtype)}")
        if values.shape != (len(self),):
            raise ValueError(f"{argument} must have shape (B,) = ({len(self)},), got {tuple(values.shape)}")
        if values.device.type != "cpu" and values.device != self.device:
            raise ValueError(f"{argument} must be on the device of the label, {self.device}, got {values.device}")
        return values

    def _of_each(self, function: Callable[[Tensor], Tensor]) -> "SparseLabels":
        """A label of what a function makes of each tensor."""
        return SparseLabels(function(self.index), function(self.mass), function(self.rest), self.num_classes)

    def _of_planes(self, function: Callable[[Tensor], Tensor]) -> "SparseLabels":
        """A label of what a function of images ``(B, K, h, w)`` makes of each tensor."""
        if self.ndim == 3:
            return SparseLabels(self.index[None], self.mass[None], self.rest[None], self.num_classes)._of_planes(
                function
            )[0]
        rest = function(self.rest[:, None])[:, 0]
        return SparseLabels(function(self.index), function(self.mass), rest, self.num_classes)

    # --- moving ---

    def to(
        self,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> "SparseLabels":
        """On another device, or with masses of another type: ``to("cuda")``, ``to(torch.float16)``, or both.

        Args:
            device: where to; None stays. A type in its place is the ``dtype``.
            dtype: of the masses: float16, bfloat16 or float32; None keeps it.
            non_blocking: return before a copy from pinned memory is done.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        device, dtype = self.device if device is None else device, dtype or self.dtype
        if dtype not in MASS_DTYPES:
            casts_back = (
                ""
                if dtype.is_floating_point
                else (
                    ": kornia's AugmentationSequential casts masks back to the dtype they came in, that of "
                    "tritonsoft.augmentation does not"
                )
            )
            raise TypeError(f"dtype must be {names_of(MASS_DTYPES)}, got {dtype}{casts_back}")
        index = self.index.to(device, non_blocking=non_blocking)
        mass, rest = (tensor.to(device, dtype, non_blocking=non_blocking) for tensor in (self.mass, self.rest))
        return SparseLabels(index, mass, rest, self.num_classes)

    def cpu(self) -> "SparseLabels":
        """In ordinary memory."""
        return self.to("cpu")

    def cuda(self, device: torch.device | str | int | None = None, non_blocking: bool = False) -> "SparseLabels":
        """On a GPU.

        Args:
            device: which one; None: the current one.
            non_blocking: return before a copy from pinned memory is done.
        """
        return self.to("cuda" if device is None else device, non_blocking=non_blocking)

    def pin_memory(self) -> "SparseLabels":
        """In page-locked memory, from which a GPU copies in the background; data loaders call this."""
        return SparseLabels(self.index.pin_memory(), self.mass.pin_memory(), self.rest.pin_memory(), self.num_classes)

    def to_tensors(self) -> dict[str, Tensor]:
        """All of it as a dictionary of contiguous tensors, which safetensors and the like save as they are."""
        return {
            "index": self.index.contiguous(),
            "mass": self.mass.contiguous(),
            "rest": self.rest.contiguous(),
            "num_classes": torch.tensor(0 if self.num_classes is None else self.num_classes),  # 0: of ids
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "SparseLabels":
        """The label that `to_tensors` was called on.

        Args:
            tensors: what that gave: ``index``, ``mass``, ``rest`` and ``num_classes`` by name.

        Raises:
            ValueError: one of them is missing.
        """
        names = ("index", "mass", "rest", "num_classes")
        if missing := [name for name in names if name not in tensors]:
            raise ValueError(f"tensors must hold {names}, got no {', '.join(missing)}")
        index, mass, rest, num_classes = (tensors[name] for name in names)
        return cls(index, mass, rest, int(num_classes) or None)

    # --- batches ---

    def __len__(self) -> int:
        self._check_batch()
        return self.index.shape[0]

    def __getitem__(self, item: Any) -> "SparseLabels":
        """A sample by an int; a batch by a slice, or by a tensor or list of ints or booleans."""
        self._check_batch()
        if (
            isinstance(item, (tuple, bool, np.bool_, float, str))
            or item is None
            or item is Ellipsis
            or getattr(item, "ndim", 1) > 1
        ):
            raise TypeError(f"a SparseLabels is indexed along its batch alone, got {item!r}")
        if isinstance(item, int) and not -len(self) <= item < len(self):
            raise IndexError(f"sample {item} of a batch of {len(self)}")  # which ends an iteration
        return SparseLabels(self.index[item], self.mass[item], self.rest[item], self.num_classes)

    if TYPE_CHECKING:
        # Iteration goes through `__getitem__`: what walks batches takes a class with this method for a list.
        def __iter__(self) -> Iterator["SparseLabels"]: ...

    def _check_batch(self) -> None:
        if self.index.ndim != 4:
            raise TypeError("this SparseLabels is one sample and has no batch axis")

    def __repr__(self) -> str:
        kept = f"ids={name_of(self.index.dtype)}" if self.num_classes is None else f"k={self.k}"
        return f"SparseLabels(shape={tuple(self.shape)}, {kept}, dtype={self.dtype}, device='{self.device}')"


def _windows(planes: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """A box of whole pixels of each image ``(B, K, h, w)``; zeros outside."""
    if 0 in planes.shape[2:]:
        return planes.new_zeros((*planes.shape[:2], *size))
    if planes.dtype == torch.int16:  # no type of an image: its numbers are exact in float32
        return _windows(planes.float(), boxes, size).to(torch.int16)
    if planes.dtype in INTEGER_DTYPES and planes.dtype != torch.uint8:  # nor these: byte by byte
        batch, count, height, width = planes.shape
        each = planes.contiguous().view(torch.uint8).view(batch, count, height, width, planes.dtype.itemsize)
        moved = _windows(each.movedim(-1, 2).flatten(1, 2), boxes, size).view(batch, count, -1, *size)
        return moved.movedim(2, -1).flatten(-2).view(planes.dtype)
    return images.crop_resize(None, None, plain(planes), boxes, size, "nearest", 0.0, planes.dtype)


def _flipped(tensor: Tensor, axes: list[int], where: Tensor | None = None) -> Tensor:
    """Mirrored along these axes, where it is to be."""
    if tensor.dtype in SIGNED:
        return _flipped(tensor.view(SIGNED[tensor.dtype]), axes, where).view(tensor.dtype)
    return tensor.flip(axes) if where is None else torch.where(where, tensor.flip(axes), tensor)


def _as_int(value: Any, argument: str) -> int:
    if is_int(value):
        return cast(int, value)
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)  # NumPy's integers, for one
    except TypeError:
        raise TypeError(f"{argument} must be an int, got {type(value).__name__}") from None


def _check_starts(least: int, most: int, argument: str, largest: int) -> None:
    if least < 0 or most > largest:
        raise ValueError(
            f"{argument} must lie in 0..{largest}, or the window reaches outside of the label (pad=True fills it "
            f"without mass), got {least if least < 0 else most}"
        )


def _flipped_axes(dims: tuple[Any, ...], ndim: int) -> list[int]:
    """The axes down and across, counted from the back."""
    given = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], Sequence) else list(dims)
    axes = [_as_int(axis, "dims") for axis in given]
    axes = [axis - ndim if axis >= 0 else axis for axis in axes]
    if not axes or len(set(axes)) < len(axes) or not set(axes) <= {-1, -2}:
        raise ValueError(f"dims must be -1 (left-right), -2 (top-bottom) or both, got {given}")
    return axes


def check_has_classes(labels: SparseLabels, what: str) -> None:
    """An error where a label of ids is given to what needs a number of classes."""
    if labels.num_classes is None:
        raise ValueError(f"{what} needs a SparseLabels of classes, got one of ids, whose num_classes is None")


def _check_classes(index: Tensor, num_classes: Any) -> None:
    if not isinstance(num_classes, int) or isinstance(num_classes, bool):
        raise TypeError(f"num_classes must be an int, got {type(num_classes).__name__}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if index.dtype != index_type(num_classes):
        raise TypeError(f"index must be {index_type(num_classes)} for {num_classes} classes, got {index.dtype}")


def check_sparse_labels(labels: SparseLabels) -> None:
    """Whether the fields fit, or an error that names one: where labels are made, and again where they are used."""
    for name in _TENSORS:
        if not isinstance(getattr(labels, name), Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(getattr(labels, name)).__name__}")
    if labels.num_classes is not None:
        _check_classes(labels.index, labels.num_classes)
    elif labels.index.dtype not in INTEGER_DTYPES:
        raise TypeError(f"index must be {names_of(INTEGER_DTYPES)} for ids, got {labels.index.dtype}")
    if labels.mass.dtype not in MASS_DTYPES:
        raise TypeError(f"mass must be {names_of(MASS_DTYPES)}, got {labels.mass.dtype}")
    if labels.rest.dtype != labels.mass.dtype:
        raise TypeError(f"rest must have the type of mass, {labels.mass.dtype}, got {labels.rest.dtype}")
    if labels.index.ndim not in (3, 4):
        raise ValueError(f"index must have shape (B, k, h, w) or (k, h, w), got {tuple(labels.index.shape)}")
    if labels.index.shape[-3] < 1 or (labels.num_classes is not None and labels.index.shape[-3] > labels.num_classes):
        most = "more" if labels.num_classes is None else labels.num_classes
        raise ValueError(f"index must have 1 to {most} entries, got {labels.index.shape[-3]}")
    if labels.mass.shape != labels.index.shape:
        raise ValueError(
            f"mass must have the shape of index, {tuple(labels.index.shape)}, got {tuple(labels.mass.shape)}"
        )
    expected = (*labels.index.shape[:-3], *labels.index.shape[-2:])
    if labels.rest.shape != expected:
        raise ValueError(f"rest must have shape {tuple(expected)}, got {tuple(labels.rest.shape)}")
    for name in ("mass", "rest"):
        if getattr(labels, name).device != labels.index.device:
            raise ValueError(
                f"{name} must be on the device of index, {labels.index.device}, got {getattr(labels, name).device}"
            )


def _flatten(labels: SparseLabels) -> tuple[list[Tensor], int | None]:
    return [getattr(labels, name) for name in _TENSORS], labels.num_classes


def _flatten_with_keys(labels: SparseLabels) -> tuple[list[tuple[Any, Tensor]], int | None]:
    tensors, num_classes = _flatten(labels)
    return list(zip(map(GetAttrKey, _TENSORS), tensors, strict=True)), num_classes


def _unflatten(tensors: Any, num_classes: Any) -> SparseLabels:
    labels = object.__new__(SparseLabels)  # unchecked: a tree may hold anything in place of its tensors for a while
    for name, value in zip((*_TENSORS, "num_classes"), (*tensors, num_classes), strict=True):
        object.__setattr__(labels, name, value)
    return labels


def _collate(batch: Sequence[SparseLabels], *, collate_fn_map: Any = None) -> SparseLabels:
    num_classes = {labels.num_classes for labels in batch}
    if len(num_classes) > 1:
        got = sorted(num_classes, key=str)
        raise ValueError(f"num_classes must be the same in all samples of a batch, got {got}")
    if len(dtypes := {labels.index.dtype for labels in batch}) > 1:
        raise TypeError(f"ids must be of one type in all samples of a batch, got {sorted(dtypes, key=str)}")
    for number, labels in enumerate(batch):
        if labels.index.ndim != 3:
            raise ValueError(f"samples of a batch must have no batch axis, got {labels!r} at {number}")
        if labels.index.shape != batch[0].index.shape:
            raise ValueError(
                f"samples of a batch must have one k and size, got {batch[0]!r} at 0, {labels!r} at {number}"
            )
    index, mass, rest = (torch.stack([getattr(labels, name) for labels in batch]) for name in _TENSORS)
    return SparseLabels(index, mass, rest, batch[0].num_classes)


register_pytree_node(
    SparseLabels,
    _flatten,
    _unflatten,
    serialized_type_name="tritonsoft.SparseLabels",
    flatten_with_keys_fn=_flatten_with_keys,
)
default_collate_fn_map[SparseLabels] = _collate
torch.serialization.add_safe_globals([SparseLabels])  # torch.load takes it with weights_only, its default
