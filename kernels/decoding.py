"""The class of each pixel of a full-size label map, from small logits, and how often each class was taken for which."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.backends.values import labels_in_range
from tritonsoft.kernels.convert import exponential
from tritonsoft.kernels.enlarging import (
    Tables,
    compile_options,
    enlarged_logits,
    enlarging_arguments,
    load_fractions,
    load_labels,
    logit_offset,
    make_tables,
    rows_of_step,
    strip_of_program,
    tile_settings,
)
from tritonsoft.kernels.launch import Launch, launch
from tritonsoft.kernels.softmax import class_weight

# Most tiles hold fewer pairs of classes than this; what is left after as many rounds is counted pixel by pixel.
MAX_ROUNDS = tl.constexpr(16)


@triton.jit
def _count_pairs(counts, pairs):
    """Add the pairs of a tile, -1 for none, to their counters: integers, whose sum is the same in any order."""
    # Most pixels of a tile are one pair: counters that all threads want at once would make them queue.
    largest = tl.max(pairs)
    rounds = tl.zeros([], tl.int32)
    while (largest >= 0) & (rounds < MAX_ROUNDS):
        are_it = pairs == largest
        tl.atomic_add(counts + largest, tl.sum(are_it.to(tl.int32)).to(tl.int64), sem="relaxed")
        pairs = tl.where(are_it, -1, pairs)
        largest = tl.max(pairs)
        rounds += 1
    if largest >= 0:
        tl.atomic_add(counts + tl.maximum(pairs, 0), (pairs >= 0).to(tl.int64), mask=pairs >= 0, sem="relaxed")


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "num_classes", "ignored_class"])
def decode_kernel(
    out,  # (B, H, W), contiguous, or None
    score,  # (B, H, W), contiguous, or None
    counts,  # (C, C), contiguous, or None
    bias,  # (C,) or None, and its stride
    logits,  # (B, C, h, w)
    logits_strides,
    labels,  # for counts: (B, H, W); else None
    labels_strides,
    tables,  # `enlarging`
    height,
    width,
    out_height,
    out_width,
    num_classes,
    ignored_class,
    GAPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """A program walks the label rows of GAPS gaps, ROWS at a time, in BLOCK_W columns."""
    sizes = (height, width, out_height, out_width)
    sample, axis, columns, taps, first_step, end_step = strip_of_program(
        tables, logits_strides, sizes, tl.program_id(0), GAPS, BLOCK_W, OFFSET
    )
    logits += sample * logits_strides[0]
    for step in range(first_step, end_step):
        start, end, first, second = rows_of_step(axis, step, height)
        offsets = (
            logit_offset(axis, first, height, logits_strides[2], OFFSET),
            logit_offset(axis, second, height, logits_strides[2], OFFSET),
        )
        for first_row in range(start, end, ROWS):
            rows = first_row + tl.arange(0, ROWS)[:, None]
            fractions = load_fractions(axis, rows, rows < end)
            exists = (rows < end) & taps[3][None, :]
            winner = tl.zeros([ROWS, BLOCK_W], tl.int32)
            best = tl.full([ROWS, BLOCK_W], float("-inf"), ACCUMULATOR)
            sum_exp = tl.zeros([ROWS, BLOCK_W], ACCUMULATOR)
            max_logit = sum_exp + (-1.7976931348623157e308 if tl.float64 == ACCUMULATOR else -3.4028234663852886e38)
            for first_class in range(0, num_classes, UNROLL):
                values = ()
                new_max = max_logit
                for unrolled in tl.static_range(UNROLL):
                    class_index = tl.cast(first_class + unrolled, tl.int32)
                    class_offset = class_index.to(OFFSET) * logits_strides[1]
                    exist = class_index < num_classes
                    value = enlarged_logits(logits, class_offset, offsets, taps, fractions, exist, ACCUMULATOR, False)
                    if bias[0] is not None:
                        value += class_weight(bias, class_index, exist, ACCUMULATOR)
                    # NaN is neither below anything nor above itself: the first one wins.
                    wins = (best == best) & ~(value <= best)
                    best = tl.where(wins, value, best)
                    winner = tl.where(wins, class_index, winner)
                    if score is not None:
                        values = values + (value,)  # noqa: RUF005 - Triton unpacks nothing here
                        new_max = tl.maximum(new_max, value)
                if score is not None:
                    sum_exp *= exponential(max_logit - new_max)
                    max_logit = new_max
                    for unrolled in tl.static_range(UNROLL):
                        sum_exp += exponential(values[unrolled] - max_logit)
            pixels = (sample * out_height + rows) * out_width + columns[None, :]
            if out is not None:
                tl.store(out + pixels, winner.to(out.dtype.element_ty), mask=exists)
            if score is not None:
                tl.store(score + pixels, (1 / sum_exp).to(score.dtype.element_ty), mask=exists)
            if counts is not None:
                labels_sample = labels + sample * labels_strides[0]
                label = load_labels(
                    labels_sample, labels_strides, rows, columns[None, :], exists, num_classes, ignored_class, OFFSET
                )
                _count_pairs(counts, tl.where(label >= 0, label * num_classes + winner, -1))


# --- launch ----------------------------------------------------------------------------------------------------------


def _configuration(
    outputs: dict[str, Tensor | None],
    logits: Tensor,
    labels: Tensor | None,
    size: tuple[int, int],
    has_boxes: bool,
    bias: Tensor | None,
    ignore_index: int,
    tables: Tables,
    platform: str,
) -> Launch:
    settings, programs = tile_settings(logits, size, has_boxes)
    arguments: dict[str, Any] = {
        **outputs,
        "bias": (bias, None if bias is None else bias.stride(0)),
        "labels": None,
        "labels_strides": None,
        "ignored_class": -1,
        **enlarging_arguments(logits, labels, size, ignore_index, tables),
        **settings,
    }
    return Launch(decode_kernel, (len(logits) * programs,), arguments, compile_options(128, platform))


def decode_configuration(
    out: Tensor,
    score: Tensor | None,
    logits: Tensor,
    has_boxes: bool,
    bias: Tensor | None,
    *tables: Tensor,
    platform: str,
) -> Launch:
    """What `decode` launches second."""
    outputs = {"out": out, "score": score, "counts": None}
    size = (out.shape[1], out.shape[2])
    return _configuration(outputs, logits, None, size, has_boxes, bias, -1, Tables(*tables), platform)


def confusion_matrix_configuration(
    counts: Tensor,
    logits: Tensor,
    labels: Tensor,
    has_boxes: bool,
    bias: Tensor | None,
    ignore_index: int,
    *tables: Tensor,
    platform: str,
) -> Launch:
    """What `confusion_matrix` launches second."""
    outputs = {"out": None, "score": None, "counts": counts}
    size = (labels.shape[1], labels.shape[2])
    return _configuration(outputs, logits, labels, size, has_boxes, bias, ignore_index, Tables(*tables), platform)


def decode(
    out: Tensor,
    score: Tensor | None,
    logits: Tensor,
    boxes: Tensor | None,
    bias: Tensor | None,
    ignore_index: int,
) -> None:
    """The class of each pixel ``out (B, H, W)`` and its probability; outside of their boxes ``ignore_index`` and 0."""
    if boxes is not None:  # the kernel writes inside of them alone
        out.fill_(ignore_index)
        if score is not None:
            score.zero_()
    tables = make_tables(logits, out, boxes)
    launch(decode_configuration, logits.device, out, score, logits, boxes is not None, bias, *tables)


def confusion_matrix(
    counts: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    bias: Tensor | None,
    ignore_index: int,
    validate: bool,
) -> bool:
    """How many label pixels of each class (rows) are decoded as each (columns), ``counts (C, C)``, int64."""
    if validate and not labels_in_range(labels, logits.shape[1], ignore_index):
        return False
    counts.zero_()
    tables = make_tables(logits, labels, boxes)
    inputs = (counts, logits, labels, boxes is not None, bias, ignore_index, *tables)
    launch(confusion_matrix_configuration, logits.device, *inputs)
    return True
