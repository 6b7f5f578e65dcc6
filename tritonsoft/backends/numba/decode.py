"""The label map that enlarged logits predict, and how it compares with the true one."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, borrowed, compute_dtype, flat
from tritonsoft.backends.numba.enlarging import (
    DECODED_TYPES,
    Enlarging,
    EnlargingArguments,
    LabelMap,
    Scratch,
    columns_of_tile,
    enlarged,
    enlarging_arguments,
    enlarging_of,
    label_map,
    load_labels,
    new_scratch,
    num_blocks,
    rows_beside,
    rows_of_blocks,
    samples_of_blocks,
    tile_columns,
)
from tritonsoft.backends.numba.planes import padded, store_element
from tritonsoft.backends.numba.soft_targets import weights_of
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import LANES, all_of, broadcast, exp, store, where

_NANOSECONDS, _NANOSECONDS_OF_SCORE = 0.25, 0.25  # of a label pixel and class


@jit
def _decode_row(lines: Array, place: Any, bias: Array, has_score: Any, count: int, scratch: Scratch) -> None:
    """Writes the class of each pixel to ``scratch.label`` and, if wanted, its probability to ``scratch.scale``."""
    upper, lower, weight_upper, weight_lower = place
    pitch, number = unsigned(scratch.pitch), lines.dtype.type
    for n in range(unsigned(0), padded(unsigned(count)), unsigned(LANES)):
        largest = broadcast(number(-np.inf), LANES)
        winner = broadcast(number(0), LANES)
        is_nan = winner
        for label in range(unsigned(bias.size)):
            at = label * pitch + n
            logit = enlarged(lines, upper + at, lower + at, weight_upper, weight_lower) + bias[label]
            wins = logit > largest
            winner, largest = where(wins, number(label), winner), where(wins, logit, largest)
            is_nan = where(logit >= logit, is_nan, number(1))
        store(scratch.state.max_logit, n, winner)
        if has_score:
            total = broadcast(number(0), LANES)
            for label in range(unsigned(bias.size)):
                at = label * pitch + n
                logit = enlarged(lines, upper + at, lower + at, weight_upper, weight_lower) + bias[label]
                total = total + exp(logit - largest)
            store(scratch.scale, n, total)
        if not all_of(is_nan <= number(0)):
            for k in range(n, n + unsigned(LANES)):
                for label in range(unsigned(bias.size)):
                    at = label * pitch + k
                    logit = weight_upper * lines[upper + at] + weight_lower * lines[lower + at] + bias[label]
                    if np.isnan(logit):
                        scratch.state.max_logit[k] = number(label)
                        break
    for n in range(unsigned(count)):
        scratch.label[n] = np.int64(scratch.state.max_logit[n])
        scratch.scale[n] = number(1) / scratch.scale[n]


@jit
def _store_row(out: Array, element_type: int, start: int, count: int, label: Array) -> None:
    for n in range(unsigned(count)):
        at, value = unsigned(start) + n, label[n]
        if element_type == 0:
            store_element(out, at, np.uint8(value))
        elif element_type == 1:
            store_element(out, at, np.int16(value))
        elif element_type == 2:
            store_element(out, at, np.int32(value))
        else:
            store_element(out, at, np.int64(value))


@jit
def _decode_blocks(
    out: Array,
    element_type: int,
    score: Array,
    size: Any,
    enlarging: Enlarging,
    bias: Array,
    columns: int,
    scratch: Scratch,
    first_block: int,
    end_block: int,
) -> None:
    """Writes the pixels in their box; others are written before."""
    enlarging, scratch = borrowed(enlarging), borrowed(scratch)
    height, width = size
    for sample in samples_of_blocks(height, first_block, end_block):
        for tile in range(0, width, columns):
            first, end = columns_of_tile(enlarging, sample, tile, columns)
            if first >= end:
                continue
            scratch.held[:] = -1
            for y in rows_of_blocks(enlarging, sample, first_block, end_block):
                place = rows_beside(enlarging, sample, y, first, end, scratch)
                _decode_row(scratch.lines, place, bias, score.size > 0, end - first, scratch)
                start = (sample * height + y) * width + first
                _store_row(out, element_type, start, end - first, scratch.label)
                if score.size > 0:
                    score[start : start + end - first] = scratch.scale[: end - first]


@jit
def _count_blocks(
    counts: Array,
    enlarging: Enlarging,
    labels: LabelMap,
    bias: Array,
    columns: int,
    scratch: Scratch,
    first_block: int,
    end_block: int,
) -> Any:
    """Whether all labels are in range."""
    line = np.empty(scratch.pitch, np.int64)
    enlarging, labels, scratch = borrowed(enlarging), borrowed(labels), borrowed(scratch)
    in_range = True
    for sample in samples_of_blocks(labels.height, first_block, end_block):
        for tile in range(0, labels.width, columns):
            first, end = columns_of_tile(enlarging, sample, tile, columns)
            if first >= end:
                continue
            scratch.held[:] = -1
            for y in rows_of_blocks(enlarging, sample, first_block, end_block):
                in_range &= load_labels(labels, sample, y, first, end, bias.size, line)
                place = rows_beside(enlarging, sample, y, first, end, scratch)
                _decode_row(scratch.lines, place, bias, False, end - first, scratch)
                for n in range(unsigned(end - first)):
                    if line[n] >= 0:
                        counts[line[n] * bias.size + scratch.label[n]] += 1
    return in_range


@jit
def _decode(
    out: Array,
    element_type: int,
    score: Array,
    size: Any,
    arguments: EnlargingArguments,
    bias: Array,
    columns: int,
    first_block: int,
    end_block: int,
) -> None:
    enlarging = enlarging_of(arguments, bias)
    scratch = new_scratch(enlarging, columns, False, False, bias)
    _decode_blocks(out, element_type, score, size, enlarging, bias, columns, scratch, first_block, end_block)


@jit
def _count(
    counts: Array,
    arguments: EnlargingArguments,
    labels: LabelMap,
    bias: Array,
    columns: int,
    first_block: int,
    end_block: int,
) -> Any:
    enlarging = enlarging_of(arguments, bias)
    scratch = new_scratch(enlarging, columns, False, False, bias)
    return _count_blocks(counts, enlarging, labels, bias, columns, scratch, first_block, end_block)


def _bias_of(bias: Tensor | None, num_classes: int, dtype: torch.dtype) -> Array:
    return np.zeros(num_classes, LIKE[dtype].dtype) if bias is None else weights_of(bias, num_classes, dtype)


def decode(
    out: Tensor,
    score: Tensor | None,
    logits: Tensor,
    boxes: Tensor | None,
    bias: Tensor | None,
    ignore_index: int,
) -> None:
    """Writes the class of each pixel ``(B, H, W)`` in its box, and its probability."""
    batch, num_classes = logits.shape[:2]
    size, dtype = tuple(out.shape[1:]), compute_dtype(logits)
    if boxes is not None:
        out.fill_(ignore_index)
        if score is not None:
            score.zero_()
    arguments = (
        flat(out).view(np.uint8),
        DECODED_TYPES.index(out.dtype),
        LIKE[dtype] if score is None else flat(score),
        size,
        enlarging_arguments(logits, boxes, size, dtype),
        _bias_of(bias, num_classes, dtype),
        tile_columns(num_classes, size[1]),
    )
    nanoseconds = _NANOSECONDS + (0 if score is None else _NANOSECONDS_OF_SCORE)
    blocks, work = num_blocks(batch, size[0]), nanoseconds * out.numel() * num_classes
    pool.run(lambda first, end: _decode(*arguments, first, end), blocks, work)


def confusion_matrix(
    counts: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    bias: Tensor | None,
    ignore_index: int,
    validate: bool,
) -> bool:
    """Writes how many pixels of each class (rows) were decoded as each (columns), ``(C, C)``."""
    batch, num_classes = logits.shape[:2]
    dtype = compute_dtype(logits)
    arguments = (
        enlarging_arguments(logits, boxes, labels.shape[1:], dtype),
        label_map(labels, ignore_index),
        _bias_of(bias, num_classes, dtype),
        tile_columns(num_classes, labels.shape[2]),
    )

    def job(first: int, end: int) -> tuple[bool, Array]:
        part = np.zeros(num_classes**2, np.int64)
        return _count(part, *arguments, first, end), part

    blocks = num_blocks(batch, labels.shape[1])
    parts = pool.run(job, blocks, _NANOSECONDS * labels.numel() * num_classes)
    counts.copy_(torch.from_numpy(np.sum([part for _, part in parts], axis=0)).view(counts.shape))
    return all(in_range for in_range, _ in parts) or not validate
