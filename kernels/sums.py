"""What finishes a loss: the sums over the programs that read its pixels, and what becomes of these sums.

Every program of a loss writes its sums in a place of its own. They are added in float64, in an order that the shapes
alone decide: the same bits on every run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonsoft import memory
from tritonsoft.geometry import Classes, Measure, Reduction
from tritonsoft.kernels.launch import Launch, launch

# So many rows are left to the one program that finishes a loss; of more, several programs make fewer.
MAX_PAIRS = 8192
MAX_ROWS = 64


@triton.jit
def store_sums(partial, losses, masses):
    """This program's entry of ``partial (programs, 2)``."""
    entry = partial + tl.program_id(0).to(tl.int64) * 2
    tl.store(entry, tl.sum(losses).to(partial.dtype.element_ty))
    tl.store(entry + 1, tl.sum(masses).to(partial.dtype.element_ty))


@triton.jit
def divided_by(grad, total):
    """The gradient of each pixel's loss, given that of their sum over ``total``, if there is such; 0 counts as 1."""
    if total is not None:
        divisor = tl.load(total).to(grad.dtype)
        grad = grad / tl.where(divisor > 0, divisor, 1.0)
    return grad


@triton.jit(do_not_specialize=["num_rows", "rows_per_chunk", "row_length"])
def sum_rows_kernel(
    out,  # (groups, chunks, length), contiguous
    partial,  # (groups, rows, length), contiguous
    num_rows,  # of a group
    rows_per_chunk,
    row_length,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """A program sums one chunk of the rows of one group, in BLOCK_L columns."""
    chunks = tl.cdiv(num_rows, rows_per_chunk)
    group = (tl.program_id(0) // chunks).to(tl.int64)
    first_row = tl.program_id(0) % chunks * rows_per_chunk
    end_row = tl.minimum(first_row + rows_per_chunk, num_rows)
    columns = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    total = tl.zeros([BLOCK_R, BLOCK_L], tl.float64)
    for row in range(first_row, end_row, BLOCK_R):
        rows = (row + tl.arange(0, BLOCK_R))[:, None]
        pointers = partial + (group * num_rows + rows) * row_length + columns[None, :]
        mask = (rows < end_row) & (columns < row_length)[None, :]
        total += tl.load(pointers, mask=mask, other=0.0).to(tl.float64)
    pointers = out + tl.program_id(0).to(tl.int64) * row_length + columns
    tl.store(pointers, tl.sum(total, axis=0), mask=columns < row_length)


@triton.jit(do_not_specialize=["num_rows"])
def finish_cross_entropy_kernel(
    value,  # a number, like the next
    total,
    partial,  # (rows, 2), contiguous: sums of the pixels' losses and masses
    num_rows,
    MEAN: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    loss = tl.zeros([BLOCK_R], tl.float64)
    mass = tl.zeros([BLOCK_R], tl.float64)
    for row in range(0, num_rows, BLOCK_R):
        rows = row + tl.arange(0, BLOCK_R)
        loss += tl.load(partial + rows * 2, mask=rows < num_rows, other=0.0).to(tl.float64)
        mass += tl.load(partial + rows * 2 + 1, mask=rows < num_rows, other=0.0).to(tl.float64)
    sum_of_losses = tl.sum(loss, axis=0)
    sum_of_masses = tl.sum(mass, axis=0)
    if MEAN:
        sum_of_losses = sum_of_losses / tl.where(sum_of_masses > 0, sum_of_masses, 1.0)
    tl.store(value, sum_of_losses.to(value.dtype.element_ty))
    tl.store(total, sum_of_masses.to(total.dtype.element_ty))


@triton.jit
def _sum_of_term(partial, entries, exist, num_rows, num_classes, TERM: tl.constexpr, BLOCK_R: tl.constexpr):
    """Of every entry, a class of a sample, one of the three sums over all rows."""
    rows = tl.arange(0, BLOCK_R)[None, :]
    sample = (entries // num_classes).to(tl.int64)[:, None]
    pointers = partial + ((sample * num_rows + rows) * num_classes + (entries % num_classes)[:, None]) * 3 + TERM
    return tl.sum(tl.load(pointers, mask=exist[:, None] & (rows < num_rows), other=0.0).to(tl.float64), axis=1)


@triton.jit
def _factors(labelled, entries, exist, num_classes, weight, weight_stride, PRESENT_ONLY: tl.constexpr):
    """How much each entry counts."""
    factor = (exist & (labelled > 0)).to(tl.float64) if PRESENT_ONLY else exist.to(tl.float64)
    if weight is not None:
        pointers = weight + (entries % num_classes).to(tl.int64) * weight_stride
        factor *= tl.load(pointers, mask=exist, other=0.0).to(tl.float64)
    return factor


@triton.jit(do_not_specialize=["num_entries", "num_rows", "num_classes"])
def finish_overlap_kernel(
    value,  # a number, or (S, C), contiguous
    slopes,  # (S, C, 2), contiguous
    partial,  # (S, rows, C, 3), contiguous: sums of predicted mass, labelled mass and their L1 distance
    weight,  # (C,) or None
    weight_stride,
    num_entries,  # S * C
    num_rows,
    num_classes,
    DICE: tl.constexpr,  # else Jaccard
    PRESENT_ONLY: tl.constexpr,  # whether only classes with labelled mass count
    REDUCTION: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """`tritonsoft.backends.reference.overlap_loss`, by one program."""
    inverse_total = tl.full([], 1.0, tl.float64)
    if REDUCTION == "mean":
        factors = tl.zeros([BLOCK_E], tl.float64)
        for first in range(0, num_entries, BLOCK_E):
            entries = first + tl.arange(0, BLOCK_E)
            exist = entries < num_entries
            labelled = _sum_of_term(partial, entries, exist, num_rows, num_classes, 1, BLOCK_R)
            factors += _factors(labelled, entries, exist, num_classes, weight, weight_stride, PRESENT_ONLY)
        total = tl.sum(factors, axis=0)
        inverse_total = 1 / tl.where(total > 0, total, 1.0)
    losses = tl.zeros([BLOCK_E], tl.float64)
    for first in range(0, num_entries, BLOCK_E):
        entries = first + tl.arange(0, BLOCK_E)
        exist = entries < num_entries
        predicted = _sum_of_term(partial, entries, exist, num_rows, num_classes, 0, BLOCK_R)
        labelled = _sum_of_term(partial, entries, exist, num_rows, num_classes, 1, BLOCK_R)
        l1_distance = _sum_of_term(partial, entries, exist, num_rows, num_classes, 2, BLOCK_R)
        factor = _factors(labelled, entries, exist, num_classes, weight, weight_stride, PRESENT_ONLY) * inverse_total
        present = labelled > 0
        numerator = l1_distance if DICE else 2 * l1_distance
        denominator = predicted + labelled if DICE else predicted + labelled + l1_distance
        inverse = 1 / tl.where(present, denominator, 1.0)
        loss = tl.where(present, numerator, 0.0) * inverse
        by_l1_distance = inverse if DICE else (2 - loss) * inverse
        tl.store(
            slopes + entries * 2,
            tl.where(present, -loss * inverse * factor, 0.0).to(slopes.dtype.element_ty),
            mask=exist,
        )
        tl.store(
            slopes + entries * 2 + 1,
            tl.where(present, by_l1_distance * factor, 0.0).to(slopes.dtype.element_ty),
            mask=exist,
        )
        if not PRESENT_ONLY:
            loss = tl.where(present, loss, (denominator > 0).to(tl.float64))
        if REDUCTION == "none":
            tl.store(value + entries, (loss * factor).to(value.dtype.element_ty), mask=exist)
        else:
            losses += loss * factor
    if REDUCTION != "none":
        tl.store(value, tl.sum(losses, axis=0).to(value.dtype.element_ty))


# --- launch ----------------------------------------------------------------------------------------------------------


def sum_rows_configuration(partial: Tensor, platform: str) -> Launch:
    """What makes at most `MAX_ROWS` rows of the rows of each group, in scratch tensor ``out``."""
    groups, num_rows, length = partial.shape
    block_l = min(triton.next_power_of_2(length), 64)
    block_r = 2048 // block_l
    rows_per_chunk = triton.cdiv(triton.cdiv(num_rows, MAX_ROWS), block_r) * block_r
    chunks = triton.cdiv(num_rows, rows_per_chunk)
    return Launch(
        sum_rows_kernel,
        (groups * chunks, triton.cdiv(length, block_l)),
        {
            "out": memory.empty((groups, chunks, length), torch.float64, partial.device),
            "partial": partial,
            "num_rows": num_rows,
            "rows_per_chunk": rows_per_chunk,
            "row_length": length,
            "BLOCK_R": block_r,
            "BLOCK_L": block_l,
        },
        {"num_warps": 4},
        ("out",),
    )


def sums_instead_of_losses(planned: Launch, like: Tensor) -> Launch:
    """The launch of a kernel with arguments ``loss`` and ``partial``, which then writes the latter."""
    partial = memory.empty((1, planned.grid[0], 2), like.dtype, like.device)
    return planned._replace(arguments={**planned.arguments, "loss": None, "partial": partial}, scratch=("partial",))


def finish_cross_entropy_configuration(
    value: Tensor, total: Tensor, partial: Tensor, reduction: Reduction, platform: str
) -> Launch:
    """What `finish_cross_entropy` launches last."""
    num_rows = partial.shape[1]
    arguments = {"value": value, "total": total, "partial": partial, "num_rows": num_rows}
    settings = {"MEAN": reduction == "mean", "BLOCK_R": 1024}
    return Launch(finish_cross_entropy_kernel, (1,), {**arguments, **settings}, {"num_warps": 4})


def finish_overlap_configuration(
    value: Tensor,
    slopes: Tensor,
    partial: Tensor,
    weight: Tensor | None,
    measure: Measure,
    classes: Classes,
    reduction: Reduction,
    platform: str,
) -> Launch:
    """What `finish_overlap` launches last."""
    samples, num_classes, _ = slopes.shape
    arguments: dict[str, Any] = {
        "value": value,
        "slopes": slopes,
        "partial": partial,
        "weight": weight,
        "weight_stride": None if weight is None else weight.stride(0),
        "num_entries": samples * num_classes,
        "num_rows": partial.shape[1],
        "num_classes": num_classes,
        "DICE": measure == "dice",
        "PRESENT_ONLY": classes == "present",
        "REDUCTION": reduction,
        "BLOCK_E": min(triton.next_power_of_2(samples * num_classes), 32),
        "BLOCK_R": triton.next_power_of_2(partial.shape[1]),
    }
    return Launch(finish_overlap_kernel, (1,), arguments, {"num_warps": 4})


def finish_cross_entropy(value: Tensor, total: Tensor, partial: Tensor, reduction: Reduction) -> None:
    """``value`` and ``total`` of the sums ``partial (1, programs, 2)`` of losses and masses."""
    if partial.shape[1] > MAX_PAIRS:
        (partial,) = launch(sum_rows_configuration, value.device, partial)
    launch(finish_cross_entropy_configuration, value.device, value, total, partial, reduction)


def finish_overlap(
    value: Tensor,
    slopes: Tensor,
    partial: Tensor,
    weight: Tensor | None,
    measure: Measure,
    classes: Classes,
    reduction: Reduction,
) -> None:
    """``value`` and ``slopes`` of the sums ``partial (B, programs, 3 * C)``."""
    if len(slopes) != len(partial):
        partial = partial.view(len(slopes), -1, partial.shape[2])
    if partial.shape[1] > MAX_ROWS:
        (partial,) = launch(sum_rows_configuration, value.device, partial)
    inputs = (value, slopes, partial, weight, measure, classes, reduction)
    launch(finish_overlap_configuration, value.device, *inputs)
