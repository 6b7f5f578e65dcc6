"""Logits at the pixels of their label map (`tritonsoft.geometry`, "Logits at full size"), and what finds them there.

A small kernel first evaluates the geometry, in float64, into `Tables` of O(H + W) numbers; the kernels that touch every
class of every label pixel have no float64 in them, so that they run as fast on devices that have little of it.

Along an axis, label pixels are counted as in a box that is not mirrored, and so are logits; only the address of a logit
is mirrored. The label pixels between two neighbouring logits are a *gap*: gap g from -1 to n - 1 begins with logit g,
and the outermost two hold the pixels beyond the first and the last logit. Label rows of a gap share their two rows of
logits, so these are read, and interpolated along x, once for all of them: a *step* is the part of a gap whose rows have
the same two, the rows that lie on a logit (step 2 g) or those that lie between (2 g + 1); see `rows_of_step`.

**Units.** Where exponentials are taken, logits are multiplied by log2(e) when they are read, so that each costs an
`exp2` and nothing else; a logsumexp of them is in units of ln 2 as well, and so it is kept for the backward pass.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonsoft import memory
from tritonsoft.kernels.convert import upcast
from tritonsoft.kernels.geometry import axis_of_box, quotient
from tritonsoft.kernels.launch import Launch, accumulator_type, launch
from tritonsoft.kernels.softmax import class_weight

_INT32_LIMIT = 2**31

# --- tables ----------------------------------------------------------------------------------------------------------


class Tables(NamedTuple):
    """Of each sample, or once for all that have no box: the geometry of both axes, that of y first.

    Each tensor is contiguous. Kernels get `tables_arguments` of it.
    """

    starts: Tensor  # (B or 1, h + 2 + w + 2 + 2) int32: where each gap begins, with one after the last; who is mirrored
    codes: Tensor  # (B or 1, H + W) int32: the sum of the two logits' numbers, -1 outside of the box
    fractions: Tensor  # (B or 1, H + W): what the second logit weighs, more than 0 and less than 1


@triton.jit
def _position(pixels, box, in_size):
    """Where label pixels lie among the logits of an axis, before that is clamped; float64.

    At the next logit, where a float32 cannot tell the two apart: the first one would weigh nothing.
    """
    from_box = pixels.to(tl.float64) + 0.5 - box[0]
    position = quotient(from_box * in_size.to(tl.float64), box[1] - box[0]) - 0.5
    next_logit = tl.floor(position) + 1
    return tl.where(next_logit - position <= 2.0**-25, next_logit, position)


@triton.jit
def _store_axis(starts, codes, fractions, mirrored, box, index, in_size, out_size):
    """Entries ``index`` of the three tables of one axis."""
    DTYPE: tl.constexpr = fractions.dtype.element_ty
    lo, hi, is_mirrored = box
    position = tl.minimum(tl.maximum(_position(index, box, in_size), 0.0), (in_size - 1).to(tl.float64))
    first = tl.floor(position)
    # Where the second logit weighs nothing it is the first, so that an infinite one that weighs nothing is not read.
    is_between = position > first
    centre = index.to(tl.float64) + 0.5
    is_inside = (lo <= centre) & (centre < hi)
    code = tl.where(is_inside, 2 * first.to(tl.int32) + is_between.to(tl.int32), -1)
    fraction = (position - first).to(DTYPE)
    tl.store(codes + index, code, mask=index < out_size)
    tl.store(fractions + index, tl.where(is_between, fraction, 0.5), mask=index < out_size)

    # The first pixel at or after logit g, or of the box for -1: to be found among the four around its estimate.
    gap = index - 1
    estimate = lo + (gap.to(tl.float64) + 0.5) * (hi - lo) / in_size.to(tl.float64) - 0.5
    start = tl.floor(estimate).to(tl.int32) - 1
    before = tl.zeros_like(start)
    for step in tl.static_range(4):
        before += (_position(start + step, box, in_size) < gap.to(tl.float64)).to(tl.int32)
    first_inside = tl.minimum(tl.maximum(tl.ceil(lo - 0.5).to(tl.int32), 0), out_size)
    end_inside = tl.maximum(tl.minimum(tl.ceil(hi - 0.5).to(tl.int32), out_size), first_inside)
    start = tl.minimum(tl.maximum(start + before, first_inside), end_inside)
    start = tl.where(gap < 0, first_inside, tl.where(gap >= in_size, end_inside, start))
    tl.store(starts + index, start, mask=index < in_size + 2)
    tl.store(mirrored, is_mirrored.to(tl.int32))


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width"])
def tables_kernel(
    starts,  # `Tables`
    codes,
    fractions,
    boxes,  # (B, 4), or None for the whole label map
    boxes_strides,
    height,  # of the logits
    width,
    out_height,  # of the label map
    out_width,
    BLOCK: tl.constexpr,
):
    longest = tl.maximum(tl.maximum(out_height, out_width), tl.maximum(height, width) + 2)
    blocks = tl.cdiv(longest, BLOCK)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    index = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    starts += sample * (height + width + 6)
    codes += sample * (out_height + out_width)
    fractions += sample * (out_height + out_width)
    mirrored = starts + (height + width + 4)
    box = axis_of_box(boxes, boxes_strides, sample, 1, out_height)
    _store_axis(starts, codes, fractions, mirrored, box, index, height, out_height)
    box = axis_of_box(boxes, boxes_strides, sample, 0, out_width)
    _store_axis(
        starts + height + 2, codes + out_height, fractions + out_height, mirrored + 1, box, index, width, out_width
    )


def tables_configuration(logits: Tensor, labels: Tensor, boxes: Tensor | None, platform: str) -> Launch:
    """What `make_tables` launches; only the shape of ``labels (B, H, W)`` matters, and not the type."""
    (batch, _, height, width), (_, out_height, out_width) = logits.shape, labels.shape
    samples = 1 if boxes is None else batch
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    block = 128
    blocks = triton.cdiv(max(out_height, out_width, height + 2, width + 2), block)
    arguments: dict[str, Any] = {
        "starts": memory.empty((samples, height + width + 6), torch.int32, logits.device),
        "codes": memory.empty((samples, out_height + out_width), torch.int32, logits.device),
        "fractions": memory.empty((samples, out_height + out_width), dtype, logits.device),
        "boxes": boxes,
        "boxes_strides": None if boxes is None else boxes.stride(),
        "height": height,
        "width": width,
        "out_height": out_height,
        "out_width": out_width,
        "BLOCK": block,
    }
    return Launch(tables_kernel, (samples * blocks,), arguments, {"num_warps": 4}, ("starts", "codes", "fractions"))


def make_tables(logits: Tensor, labels: Tensor, boxes: Tensor | None) -> Tables:
    """The geometry of logits ``(B, C, h, w)`` over a label map ``(B, H, W)``."""
    return Tables(*launch(tables_configuration, logits.device, logits, labels, boxes))


# --- in a kernel -----------------------------------------------------------------------------------------------------
#
# `tables`: what `arguments_of` makes of `Tables`.
# `axis`:   of one sample, pointers to its starts, codes and fractions, and whether it is mirrored.
# `sizes`:  h, w, H, W.
# `taps`:   of label columns, offsets of their two logits in a row, how much the second weighs, which are in the box.


@triton.jit
def axes_of_sample(tables, sample, sizes):
    """Those of y and x."""
    starts, codes, fractions, starts_stride, codes_stride = tables
    height, width, out_height, _ = sizes
    starts += sample * starts_stride
    codes += sample * codes_stride
    fractions += sample * codes_stride
    mirrored = starts + (height + width + 4)
    rows = (starts, codes, fractions, tl.load(mirrored) != 0)
    columns = (starts + height + 2, codes + out_height, fractions + out_height, tl.load(mirrored + 1) != 0)
    return rows, columns


@triton.jit
def logit_offset(axis, logit, in_size, stride, OFFSET: tl.constexpr):
    """Where in memory a logit of an axis is."""
    return tl.cast(tl.where(axis[3], in_size - 1 - logit, logit), OFFSET) * stride


@triton.jit
def taps_of_columns(axis, columns, exists, width, stride, OFFSET: tl.constexpr):
    code = tl.load(axis[1] + columns, mask=exists, other=-1)
    fraction = tl.load(axis[2] + columns, mask=exists, other=0.5)
    some_code = tl.maximum(code, 0)
    first = logit_offset(axis, some_code >> 1, width, stride, OFFSET)
    second = logit_offset(axis, (some_code + 1) >> 1, width, stride, OFFSET)
    return first, second, fraction, code >= 0


@triton.jit
def rows_of_step(axis, step, height):
    """The label rows ``start .. end - 1`` of a step, and its two rows of logits; gap -1 has steps 0 and 1."""
    gap = tl.cast(step // 2 - 1, tl.int32)
    is_on_logit = step % 2 == 0
    start = tl.load(axis[0] + gap + 1)
    end = tl.load(axis[0] + gap + 2)
    code = tl.load(axis[1] + start, mask=start < end, other=1)
    is_outermost = (gap < 0) | (gap == height - 1)
    # Beyond the outermost logits all rows count as on them; elsewhere at most the first one lies on a logit.
    between = tl.where(is_outermost, end, start + (code % 2 == 0).to(tl.int32))
    first = tl.maximum(gap, 0)
    second = tl.where(is_on_logit, first, tl.minimum(gap + 1, height - 1))
    return tl.where(is_on_logit, start, between), tl.where(is_on_logit, between, end), first, second


@triton.jit
def strip_of_program(tables, strides, sizes, program, GAPS: tl.constexpr, BLOCK_W: tl.constexpr, OFFSET: tl.constexpr):
    """What a program of GAPS gaps and BLOCK_W label columns owns.

    Returns:
        The sample, the axis of y, the columns, their taps, and the first step and the one after the last.
    """
    height, width, _, out_width = sizes
    blocks = tl.cdiv(out_width, BLOCK_W)
    strips = tl.cdiv(height + 1, GAPS)
    sample = (program // blocks // strips).to(tl.int64)
    rows, axis_x = axes_of_sample(tables, sample, sizes)
    # From the box on, but aligned: what lies outside of it costs nothing.
    first_column = tl.load(axis_x[0]) // 32 * 32 + program % blocks * BLOCK_W
    end_column = tl.load(axis_x[0] + width + 1)
    # Neighbouring threads have neighbouring columns, and each all rows of its own. If it knew that columns are
    # contiguous, the compiler would have a thread load and store several, and exchange everything between threads.
    columns = tl.max_contiguous(first_column + tl.arange(0, BLOCK_W), 1)
    taps = taps_of_columns(axis_x, columns, columns < end_column, width, strides[3], OFFSET)
    first_gap = program // blocks % strips * GAPS
    end_gap = tl.where(first_column < end_column, tl.minimum(first_gap + GAPS, height + 1), first_gap)
    return sample, rows, columns, taps, 2 * first_gap, 2 * end_gap


@triton.jit
def lerp(first, second, fraction):
    """Between two logits. One way to round: the same logit has the same bits wherever it is computed."""
    return tl.fma(fraction, second, (1 - fraction) * first)


@triton.jit
def row_of_logits(logits, class_offset, row_offset, taps, exists, ACCUMULATOR: tl.constexpr):
    """One row of one class at label columns; -infinity where there is no such class."""
    first = tl.load(logits + ((row_offset + taps[0]) + class_offset), mask=exists, other=float("-inf"))
    second = tl.load(logits + ((row_offset + taps[1]) + class_offset), mask=exists, other=float("-inf"))
    return lerp(upcast(first, ACCUMULATOR), upcast(second, ACCUMULATOR), taps[2])


@triton.jit
def log2_units(logits):
    """See "Units"."""
    return logits if logits.dtype == tl.float64 else logits * 1.4426950408889634


@triton.jit
def natural_units(logits):
    return logits if logits.dtype == tl.float64 else logits * 0.6931471805599453


@triton.jit
def exponential_of_units(logits):
    return tl.exp(logits) if logits.dtype == tl.float64 else tl.exp2(logits)


@triton.jit
def logarithm_in_units(value):
    return tl.log(value) if value.dtype == tl.float64 else tl.log2(value)


@triton.jit
def enlarged_logits(
    logits, class_offset, offsets, taps, fractions, exists, ACCUMULATOR: tl.constexpr, UNITS: tl.constexpr
):
    """One class at label rows and columns, (rows, columns); ``offsets`` of the two rows of logits they all share."""
    first = row_of_logits(logits, class_offset, offsets[0], taps, exists, ACCUMULATOR)
    second = row_of_logits(logits, class_offset, offsets[1], taps, exists, ACCUMULATOR)
    if UNITS:
        first = log2_units(first)
        second = log2_units(second)
    return lerp(first[None, :], second[None, :], fractions)


@triton.jit
def logits_of_labels(
    logits,
    strides,
    label,
    offsets,
    taps,
    fractions,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
    UNITS: tl.constexpr,
):
    """`enlarged_logits` of each pixel's own class, -1 for none, (rows, columns): with the same bits."""
    known = label >= 0
    class_offset = tl.maximum(label, 0).to(OFFSET) * strides[1]
    first = _row_of_labels(logits, class_offset, offsets[0], taps, known, ACCUMULATOR)
    second = _row_of_labels(logits, class_offset, offsets[1], taps, known, ACCUMULATOR)
    if UNITS:
        first = log2_units(first)
        second = log2_units(second)
    return lerp(first, second, fractions)


@triton.jit
def _row_of_labels(logits, class_offsets, row_offset, taps, known, ACCUMULATOR: tl.constexpr):
    """`row_of_logits`, but each pixel's row is one of its own class."""
    first = tl.load(logits + ((row_offset + taps[0])[None, :] + class_offsets), mask=known, other=0.0)
    second = tl.load(logits + ((row_offset + taps[1])[None, :] + class_offsets), mask=known, other=0.0)
    return lerp(upcast(first, ACCUMULATOR), upcast(second, ACCUMULATOR), taps[2][None, :])


@triton.jit
def load_labels(labels, strides, rows, columns, exists, num_classes, ignored_class, OFFSET: tl.constexpr):
    """The class of each label pixel of a sample, int32; -1 where it has none, whatever number stands there."""
    pointers = labels + (tl.cast(rows, OFFSET) * strides[1] + columns.to(OFFSET) * strides[2])
    label = tl.load(pointers, mask=exists, other=0)
    known = exists & (label >= 0) & (label < num_classes) & (label != ignored_class)
    return tl.where(known, label.to(tl.int32), -1)


@triton.jit
def load_fractions(axis, rows, exists):
    return tl.load(axis[2] + rows, mask=exists, other=0.5)


@triton.jit
def softmax_of_tile(
    logits,  # of this sample
    strides,
    offsets,
    taps,
    fractions,
    weights,  # for the third result: (C,) and its stride; or two times None, 1 for every class
    num_classes,
    WITH_SUM: tl.constexpr,  # whether the third result is wanted
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Of the classes of each pixel, (ROWS, columns): their largest logit, the logarithm of the sum of their
    exponentials relative to it, and the weighted sum of how far they lie below it; all in `log2_units`.

    An online softmax: UNROLL classes at a time raise the largest logit so far.
    """
    LOWEST: tl.constexpr = -1.7976931348623157e308 if tl.float64 == ACCUMULATOR else -3.4028234663852886e38
    sum_exp = tl.zeros([ROWS, taps[2].shape[0]], ACCUMULATOR)
    max_logit = sum_exp + LOWEST  # finite: logits of -infinity do not become infinity less infinity
    below = sum_exp
    weight_so_far = tl.zeros([], ACCUMULATOR)
    for first in range(0, num_classes, UNROLL):
        values = ()
        new_max = max_logit
        for unrolled in tl.static_range(UNROLL):
            class_index = first + unrolled
            class_offset = tl.cast(class_index, OFFSET) * strides[1]
            exists = class_index < num_classes
            value = enlarged_logits(logits, class_offset, offsets, taps, fractions, exists, ACCUMULATOR, True)
            values = values + (value,)  # noqa: RUF005
            new_max = tl.maximum(new_max, value)
        if WITH_SUM:
            below += weight_so_far * tl.minimum(new_max - max_logit, -LOWEST)
        sum_exp *= exponential_of_units(max_logit - new_max)
        max_logit = new_max
        for unrolled in tl.static_range(UNROLL):
            delta = values[unrolled] - max_logit
            sum_exp += exponential_of_units(delta)
            if WITH_SUM:
                class_index = first + unrolled
                weight = class_weight(weights, class_index, class_index < num_classes, ACCUMULATOR)
                # A class of weight 0 may have an infinite logit.
                below = tl.where(weight == 0, below, below - weight * delta)
                weight_so_far += weight
    return max_logit, logarithm_in_units(sum_exp), below


@triton.jit
def repeated(value, COUNT: tl.constexpr):
    """A tuple of one value."""
    values = ()
    for _ in tl.static_range(COUNT):
        values = values + (value,)  # noqa: RUF005 - Triton unpacks nothing here
    return values


# --- launch ----------------------------------------------------------------------------------------------------------


def _offset_type(size: tuple[int, int], tensors: Sequence[Tensor]) -> Any:
    """The integer that holds every offset inside one sample."""
    ends = [size[0] * size[1]]
    for tensor in tensors:
        lengths_and_strides = zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
        ends.append(sum((length - 1) * stride for length, stride in lengths_and_strides))
    return tl.int64 if max(ends) >= _INT32_LIMIT else tl.int32


def tables_arguments(tables: Tables) -> tuple[Any, ...]:
    """``tables`` as kernels get it."""
    shared = len(tables.starts) == 1
    strides = (0, 0) if shared else (tables.starts.stride(0), tables.codes.stride(0))
    return (*tables, *strides)


def enlarging_arguments(
    logits: Tensor,
    labels: Tensor | None,
    size: tuple[int, int],
    ignore_index: int,
    tables: Tables,
    *others: Tensor,
) -> dict[str, Any]:
    """What all kernels over label pixels have in common; ``others`` are further tensors with strides."""
    _, num_classes, height, width = logits.shape
    arguments: dict[str, Any] = {
        "logits": logits,
        "logits_strides": logits.stride(),
        "tables": tables_arguments(tables),
        "height": height,
        "width": width,
        "out_height": size[0],
        "out_width": size[1],
        "num_classes": num_classes,
        "ACCUMULATOR": accumulator_type(logits),
        "OFFSET": _offset_type(size, [logits, *([] if labels is None else [labels]), *others]),
    }
    if labels is not None:
        arguments |= {
            "labels": labels,
            "labels_strides": labels.stride(),
            "ignored_class": ignore_index if 0 <= ignore_index < num_classes else -1,
        }
    return arguments


def pixels_per_logit(size: int, logits: int, has_boxes: bool) -> float:
    """Along an axis, as launch settings take it; what boxes hold is not known here, so a crop of half the map."""
    return max(size / logits / (2 if has_boxes else 1), 0.25)


def classes_at_once(num_classes: int, choices: tuple[int, ...], each: float, shared: float) -> int:
    """Over how many classes to share what costs ``shared`` where a class costs ``each``: padding costs as well."""
    return min(choices, key=lambda count: triton.cdiv(num_classes, count) * (each * count + shared))


def tile_settings(logits: Tensor, size: tuple[int, int], has_boxes: bool) -> tuple[dict[str, int], int]:
    """GAPS, ROWS, BLOCK_W and UNROLL of a kernel over tiles of label pixels, and its programs for each sample."""
    _, num_classes, height, _ = logits.shape
    ratio = pixels_per_logit(size[0], height, has_boxes)
    is_double = logits.dtype == torch.float64
    # Rows of a gap share loads, which take 12 instructions where a class and pixel takes 9 others; those that a tile
    # has too many are idle.
    rows = min((1, 2) if is_double else (1, 2, 4), key=lambda rows: _rows_walked(ratio, rows) * (9 + 12 / rows))
    pixels = 256 if is_double else 512  # of a program, as registers allow
    block_w = max(min(pixels // rows, triton.next_power_of_2(size[1])), 128)
    gaps = max(1, min(int(16 / ratio), 16))
    settings = {
        "GAPS": gaps,
        "ROWS": rows,
        "BLOCK_W": block_w,
        "UNROLL": classes_at_once(num_classes, (2,) if is_double else (3, 4, 5) if rows == 4 else (2, 3), 18, 8),
    }
    return settings, triton.cdiv(height + 1, gaps) * triton.cdiv(size[1], block_w)


def compile_options(threads: int, platform: str) -> dict[str, int]:
    """Of a program of so many threads, 256 at most."""
    warps = {"num_warps": max(1, threads // (64 if platform == "hip" else 32))}
    # Left to itself, ptxas at times spills to keep to fewer registers than there are.
    return warps | ({"maxnreg": 255} if platform == "cuda" else {})


def _rows_walked(ratio: float, rows: int) -> int:
    """Of a gap, so many rows at a time."""
    return math.ceil(max(ratio, 1) / rows) * rows
