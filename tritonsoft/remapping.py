"""Ids to classes: what the values of label files mean, applied pixel by pixel.

Label files hold what their data set counts, as 7 for road among the 35 ids of Cityscapes or ``1000 * class + instance``
in its instance maps; networks count classes from 0.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from tritonsoft._validation import (
    INTEGER_DTYPES,
    check_backend,
    check_ignore_index,
    check_labels,
    check_validate,
    holds,
    is_whole_number,
    name_of,
    names_of,
    plain,
    smallest_label_dtype,
    tensor_on,
)
from tritonsoft.geometry import NO_CLASS
from tritonsoft.ops import labels as label_ops

Unknown = Literal["ignore", "error"]

# As long as ids lie no farther apart than this (or than four times their number) their classes stand in a list with
# gaps; else the ids are searched.
_MAX_SPAN = 1 << 16


class LabelTable:
    """Which class each id is, checked and prepared once for many calls of `remap_labels`.

    A mapping that is given to `remap_labels` itself is prepared at every call, and sent to the labels' device. A
    `LabelTable` is prepared when it is made, and keeps a copy of itself on each device that it is used on: the first
    call there waits for the copy, no other one waits for anything. It is never changed, can be pickled (without its
    copies), and takes memory for its ids alone, however far apart they lie.

    Args:
        classes: the class of each id, at least one. Ids fit an int64, and may be negative or large; classes are above
            ``-2**31`` and below ``2**31``. Several ids may be one class.

    Raises:
        TypeError: no mapping, or something other than ints in it.
        ValueError: an empty mapping, or numbers out of range.

    Example:
        >>> import tritonsoft as ts
        >>> table = ts.LabelTable({-1: 255, 7: 0, 8: 1})
        >>> table, table.classes[7]
        (LabelTable(3 ids from -1 to 8, classes from 0 to 255), 0)
    """

    def __init__(self, classes: Mapping[int, int]) -> None:
        if not isinstance(classes, Mapping):
            raise TypeError(f"classes must be a mapping from ids to classes, got {type(classes).__name__}")
        numbers = dict(sorted((_whole_number(id, "id"), _whole_number(classes[id], "class")) for id in classes))
        if not numbers:
            raise ValueError("table must have at least one id, got an empty mapping")
        first, last = min(numbers), max(numbers)
        if not -(2**63) <= first <= last < 2**63:
            raise ValueError(f"table must have ids that fit an int64, got ids from {first} to {last}")
        self.classes: Mapping[int, int] = MappingProxyType(numbers)
        self.smallest_class, self.largest_class = min(numbers.values()), max(numbers.values())
        if not NO_CLASS < self.smallest_class <= self.largest_class < 2**31:
            raise ValueError(
                f"table must have classes above {NO_CLASS} and below {2**31}, got classes from {self.smallest_class} "
                f"to {self.largest_class}"
            )
        span = last - first + 1
        values = torch.tensor(list(numbers.values()), dtype=torch.int32, device="cpu")
        self._ids: Tensor | None = None
        self._classes, self._first_id = values, first
        if span > max(_MAX_SPAN, 4 * len(numbers)):
            self._ids, self._first_id = torch.tensor(list(numbers), device="cpu"), 0
        elif span > len(numbers):
            places = torch.tensor([id - first for id in numbers], device="cpu")
            self._classes = values.new_full((span,), NO_CLASS).index_copy_(0, places, values)
        self._copies: dict[torch.device, tuple[Tensor | None, Tensor]] = {}

    def __repr__(self) -> str:
        ids = f"{len(self.classes)} ids from {min(self.classes)} to {max(self.classes)}"
        return f"{type(self).__name__}({ids}, classes from {self.smallest_class} to {self.largest_class})"

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelTable, (dict(self.classes),)

    def _on(self, device: torch.device, once: bool) -> tuple[Tensor | None, Tensor, int]:
        """Ids, classes and the first id as `remap_labels` of a backend takes them.

        ``once``: for one call, queued on the current stream and not kept.
        """
        if device.type == "cpu":
            return self._ids, self._classes, self._first_id
        copies = self._copies.get(device)
        if copies is None:
            if once:
                copies = None if self._ids is None else tensor_on(self._ids, device), tensor_on(self._classes, device)
            else:  # waiting, so that whatever stream comes next finds them complete
                copies = None if self._ids is None else self._ids.to(device), self._classes.to(device)
            if not once and type(copies[1]) is Tensor and not torch.compiler.is_compiling():
                self._copies[device] = copies
        return *copies, self._first_id


def _whole_number(value: Any, what: str) -> int:
    if not is_whole_number(value):
        raise TypeError(f"table must map ints to ints, got the {what} {value!r} of type {type(value).__name__}")
    return int(value)


def remap_labels(
    labels: Tensor,
    table: Mapping[int, int] | LabelTable | Tensor,
    *,
    ignore_index: int | None = None,
    unknown: Unknown = "ignore",
    dtype: torch.dtype | None = None,
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """The class of each pixel of a label map whose values are ids, in one pass over it.

    Args:
        labels: ``(B, H, W)``, ``(B, 1, H, W)`` or ``(H, W)`` of bool (0 and 1), uint8, int8, int16, uint16, int32,
            uint32 or int64, in any memory layout.
        table: a mapping from ids to classes; or a `LabelTable`, which is one that is prepared once (give it in a loop:
            a mapping is prepared at each call, and sent to a GPU, from pinned memory and so without waiting for it); or
            an integer tensor ``(N,)`` on the labels' device, whose entry k is the class of id k (-2^31 is none), and
            whose values are never read by the host.
        ignore_index: what ids become that the table does not have; None is 255, and an error where the table has
            classes above 255, of which 255 may be one.
        unknown: "ignore", or "error" for a ValueError where the table does not have an id.
        dtype: of the output, any integer type. None: of a mapping the first of uint8, int16, int32 and int64 that holds
            its classes and ``ignore_index``; of a tensor its own.
        validate: look for unknown ids on a GPU as well, where that costs a synchronisation; None: only with
            ``TRITONSOFT_VALIDATE=1``. What is not looked for becomes ``ignore_index``. Only for ``unknown="error"``; on
            the CPU that always looks.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        The classes, of the shape of ``labels``, contiguous.

    Raises:
        TypeError: an argument of another type; a ``dtype`` that cannot hold everything that a tensor's type can.
        ValueError: a ``dtype`` that cannot hold a class or ``ignore_index``: nothing ever wraps around.

    Example:
        >>> import tritonsoft as ts
        >>> ids = torch.tensor([[[7, 8], [11, -1]]], dtype=torch.int16)
        >>> ts.remap_labels(ids, {7: 0, 8: 1, 11: 2})
        tensor([[[  0,   1],
                 [  2, 255]]], dtype=torch.uint8)
        >>> ts.remap_labels(ids.clamp(0, 1), torch.tensor([5, 300]), ignore_index=-1)
        tensor([[[300, 300],
                 [300,   5]]])
    """
    shape = labels.shape if isinstance(labels, Tensor) else None
    label_map = check_labels(labels[None] if isinstance(labels, Tensor) and labels.ndim == 2 else labels)
    if unknown not in ("ignore", "error"):
        raise ValueError(f"unknown must be 'ignore' or 'error', got {unknown!r}")
    check_validate(validate)
    check_backend(backend)
    if dtype is not None and dtype not in INTEGER_DTYPES:
        raise TypeError(f"dtype must be None, {names_of(INTEGER_DTYPES)}, got {dtype}")
    if isinstance(table, Tensor):
        ignore_index = check_ignore_index(ignore_index, None)
        table = _check_table(table, label_map.device)
        dtype = _dtype_of_tensor(table.dtype, ignore_index, dtype)
        ids, classes, first_id = None, table, 0
    else:
        prepared = table if isinstance(table, LabelTable) else _prepared(table)
        ignore_index = ignore_index_of(prepared, ignore_index)
        dtype = _dtype_of_numbers(prepared, ignore_index, dtype)
        ids, classes, first_id = prepared._on(label_map.device, once=prepared is not table)
    remapped = label_ops.remap_labels(
        backend, validate, label_map, ids, classes, first_id, ignore_index, unknown == "error", dtype
    )
    assert shape is not None
    return remapped.view(shape)


def ignore_index_of(table: LabelTable, ignore_index: Any) -> int:
    """What ids without a class become: 255 where nothing else is given, unless that may be a class."""
    if ignore_index is None and table.largest_class > 255:
        raise ValueError(
            f"ignore_index must be given where the table has classes above 255, of which 255, the default, may be one; "
            f"got classes up to {table.largest_class} (-1 is no class, for one)"
        )
    return check_ignore_index(ignore_index, None)


def _prepared(table: Any) -> LabelTable:
    if not isinstance(table, Mapping):
        raise TypeError(
            f"table must be a mapping from ids to classes, a LabelTable or a tensor, got {type(table).__name__}"
        )
    return LabelTable(table)


def _check_table(table: Tensor, device: torch.device) -> Tensor:
    if table.dtype not in INTEGER_DTYPES:
        raise TypeError(f"table must be {names_of(INTEGER_DTYPES)}, got {name_of(table.dtype)}")
    if table.ndim != 1 or len(table) == 0:
        raise ValueError(f"table must have shape (N,) with N >= 1, got {tuple(table.shape)}")
    if table.device != device:
        raise ValueError(f"table must be on the device of labels, {device}, got {table.device}")
    return plain(table)


def _dtype_of_tensor(table: torch.dtype, ignore_index: int, dtype: torch.dtype | None) -> torch.dtype:
    """The output's type, decided without a look at the values."""
    chosen, info = dtype or table, torch.iinfo(table)
    if not holds(chosen, info.min, info.max):
        raise TypeError(
            f"dtype={name_of(chosen)} cannot hold every class that a table of {name_of(table)} may have: cast the table"
        )
    if not holds(chosen, ignore_index):
        of_table = "" if dtype else ", that of the table; dtype= names another"
        raise ValueError(f"ignore_index={ignore_index} must fit the output's type, {name_of(chosen)}{of_table}")
    return chosen


def _dtype_of_numbers(table: LabelTable, ignore_index: int, dtype: torch.dtype | None) -> torch.dtype:
    numbers = (table.smallest_class, table.largest_class, ignore_index)
    if dtype is None:
        return smallest_label_dtype(*numbers)
    if not holds(dtype, *numbers):
        raise ValueError(
            f"dtype={name_of(dtype)} must hold ignore_index={ignore_index} and the table's classes, from {numbers[0]} "
            f"to {numbers[1]}"
        )
    return dtype
