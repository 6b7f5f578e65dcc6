"""What is made of label maps alone: soft labels, the pair with an image, pyramids, and the largest classes."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, LINE_BYTES, Array, array_at, compute_dtype, streaming
from tritonsoft.backends.numba.images import crop_resize
from tritonsoft.backends.numba.label_rows import (
    TILE,
    DenseEpilogue,
    LabelRows,
    TopKEpilogue,
    label_rows,
    label_rows_at,
)
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.geometry import Filter


@jit
def _soft_rows(
    out: int, like: Array, shape: Any, line_length: int, to_boundary: int, rows: Any, first: int, end: int
) -> Any:
    """Rows of a soft label at an address."""
    tile = rows[-1]
    finished, zeros = np.empty(tile, like.dtype), np.zeros(tile, like.dtype)
    epilogue = DenseEpilogue(
        array_at(out, 0, like), shape, finished, zeros, unsigned(line_length), unsigned(to_boundary)
    )
    return label_rows_at(epilogue, rows, first, end)


def _soft_arguments(out: Tensor, rows: LabelRows) -> Any:
    """Those of `_soft_rows`."""
    return out.data_ptr(), LIKE[out.dtype], tuple(out.shape[1:]), *streaming(out), rows.arguments


@jit
def _top_rows(
    class_index: int,
    mass: int,
    rest: int,
    like_index: Array,
    like_mass: Array,
    shape: Any,
    rows: Any,
    first: int,
    end: int,
) -> Any:
    """Rows of the largest classes at these addresses."""
    size, dtype = (shape[1] + 1) * TILE, np.float32
    epilogue = TopKEpilogue(
        array_at(class_index, 0, like_index),
        array_at(mass, 0, like_mass),
        array_at(rest, 0, like_mass),
        shape,
        np.empty(size, dtype),
        np.empty(size, dtype),
    )
    return label_rows_at(epilogue, rows, first, end)


def dense_tile(out: Tensor) -> int:
    aligned = out.data_ptr() % LINE_BYTES == 0 and out.shape[3] * out.itemsize % LINE_BYTES == 0
    return TILE if aligned else 4 * TILE


def soft_crop_resize(
    out: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, filter: Filter, validate: bool
) -> bool:
    """Writes `tritonsoft.backends.reference.soft_crop_resize` of a label map ``(B, H, W)`` to ``out (B, C, h, w)``."""
    _, num_classes, *size = out.shape
    tile = dense_tile(out)
    rows = label_rows(labels, boxes, size, num_classes, ignore_index, filter, compute_dtype(out), tile)
    return write_soft(out, rows, validate)


def write_soft(out: Tensor, rows: LabelRows, validate: bool) -> bool:
    """Writes rows to a soft label ``out (B, C, h, w)``."""
    arguments = _soft_arguments(out, rows)
    work = 0.25 * (out.numel() + rows.num_pixels)
    in_range = all(pool.run(lambda first, end: _soft_rows(*arguments, first, end), len(out) * out.shape[2], work))
    return in_range or not validate


def crop_resize_pair(
    out: Tensor,
    out_soft: Tensor,
    image: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    fill: float,
    validate: bool,
) -> bool:
    """`crop_resize` and `soft_crop_resize` with the same boxes, one after the other."""
    crop_resize(out, image, boxes, filter, fill)
    return soft_crop_resize(out_soft, labels, boxes, ignore_index, filter, validate)


def soft_pyramid(outs: Sequence[Tensor], labels: Tensor, ignore_index: int, validate: bool) -> bool:
    """Writes the soft labels of a label map ``(B, H, W)`` at several sizes."""
    if any(fine.shape[2] != 2 * coarse.shape[2] for fine, coarse in itertools.pairwise(outs)):
        return all(soft_crop_resize(out, labels, None, ignore_index, "area", validate) for out in outs)
    rows_of = [
        label_rows(labels, None, out.shape[2:], out.shape[1], ignore_index, "area", compute_dtype(out), dense_tile(out))
        for out in outs
    ]
    arguments_of = [_soft_arguments(out, rows) for out, rows in zip(outs, rows_of, strict=True)]
    height = outs[-1].shape[2]

    def job(first: int, end: int) -> bool:
        # All sizes of a band before the next band, so that the label map is read from memory once.
        in_range = True
        for out, arguments in zip(outs, arguments_of, strict=True):
            ratio = out.shape[2] // height
            in_range &= _soft_rows(*arguments, first * ratio, end * ratio)
        return in_range

    work = 0.25 * sum(out.numel() + rows.num_pixels for out, rows in zip(outs, rows_of, strict=True))
    in_range = all(pool.run(job, labels.shape[0] * height, work))
    return in_range or not validate


def soft_crop_resize_top(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    validate: bool,
) -> bool:
    """Writes `reference.top_k` of a soft label: ``(B, k, h, w)`` twice, and the rest ``(B, h, w)``."""
    rows = label_rows(labels, boxes, index.shape[2:], num_classes, ignore_index, filter, torch.float32, TILE)
    return write_top(index, mass, rest, rows, num_classes, validate)


def write_top(index: Tensor, mass: Tensor, rest: Tensor, rows: LabelRows, num_classes: int, validate: bool) -> bool:
    """Writes the largest classes of rows."""
    batch, num_top, *size = index.shape
    arguments = (
        index.data_ptr(),
        mass.data_ptr(),
        rest.data_ptr(),
        LIKE[index.dtype],
        LIKE[mass.dtype],
        (num_classes, num_top, *size),
        rows.arguments,
    )
    # What lists cost for a pixel, and then for each of its classes (measured on street scenes).
    work = 0.5 * rows.num_pixels + (5.0 + 0.6 * num_top) * batch * size[0] * size[1]
    in_range = all(pool.run(lambda first, end: _top_rows(*arguments, first, end), batch * size[0], work))
    return in_range or not validate
