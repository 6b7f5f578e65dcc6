"""Cross-entropy of logits against a label map: what `label_rows` hands a row of its soft label to."""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tritonsoft.backends.numba.elements import flat
from tritonsoft.backends.numba.labels import TILE, label_rows
from tritonsoft.backends.numba.planes import (
    SCRATCH,
    Lines,
    byte_lines,
    lines_of,
    load_line,
    plane_of,
    store_line,
    way_out,
    whole,
)
from tritonsoft.backends.numba.soft_targets import GROUP, scratch_of, weights_of
from tritonsoft.backends.numba.softmax import begin, finish, know, meet, write_gradient
from tritonsoft.backends.numba.sums import divisor_of, finish_sums, put_losses, sums_of
from tritonsoft.backends.numba.threads import pool, unsigned
from tritonsoft.geometry import Filter, Reduction


class _LossTarget(NamedTuple):
    """Takes the loss of each row of a soft label, which nothing else keeps."""

    loss: Any  # (B, h, w) flat, or, where there are sums, nothing
    sums: Any  # of each row: the losses and masses, (B * h, 2) flat
    mass: Any  # (B, h, w) flat
    lse: Any
    logits: Any
    weights: Any
    shape: Any  # (C, h, w)
    scratch: Any
    present: Any  # scratch: those of a group of classes that occur

    def deliver(self: Any, masses: Any, sample: Any, row: Any, column: Any, count: Any) -> None:
        loss, sums, mass, lse, logits, weights, (num_classes, height, width), scratch, present = self
        classes, group, online = unsigned(num_classes), unsigned(GROUP), scratch.online
        pitch = unsigned(masses.pitch)
        place = sample, row, column, count
        begin(online)
        for start in range(unsigned(0), classes, group):
            number, num_present = min(group, classes - start), unsigned(0)
            for k in range(number):
                present[num_present] = k
                num_present += unsigned(masses.present[(start + k) * pitch])
            lines = lines_of(logits, place, start, number, scratch.logits, scratch.pitch, unsigned(scratch.tile))
            shares = Lines(masses.lines, start * pitch, pitch, unsigned(0))
            meet(online, lines, shares, weights, start, number, present, num_present, whole(count))
        finish(online, count)
        start = unsigned((sample * height + row) * width) + column
        for n in range(count):
            mass[start + n], lse[start + n] = online.mass[n], online.largest[n]
        put_losses(loss, sums, unsigned(sample * height + row), online, start, count)


class _GradientTarget(NamedTuple):
    """Writes the gradient of that loss."""

    out: Any
    lanes: Any
    phase: Any
    grad: Any
    divisor: Any
    logits: Any
    weights: Any
    mass: Any  # (B, h, w) flat
    lse: Any
    shape: Any  # (C, h, w)
    scratch: Any

    def deliver(self: Any, masses: Any, sample: Any, row: Any, column: Any, count: Any) -> None:
        out, lanes, phase, grad, divisor, logits, weights, mass, lse, (num_classes, height, width), scratch = self
        pixels, line, pitch = scratch.pixels, scratch.line, unsigned(masses.pitch)
        place = sample, row, column, count
        load_line(grad, place, unsigned(0), pixels.scale, unsigned(0))
        know(pixels, divisor, mass, lse, unsigned((sample * height + row) * width) + column, count)
        for label in range(unsigned(num_classes)):
            lines = lines_of(logits, place, label, unsigned(1), line, scratch.pitch, unsigned(scratch.tile))
            shares, is_present = Lines(masses.lines, label * pitch, pitch, unsigned(0)), masses.present[label * pitch]
            values, start, way = way_out(out, place, label, line, lanes, phase)
            write_gradient(values, start, way, pixels, lines, shares, is_present, weights[label], whole(count))
            if way == SCRATCH:
                store_line(out, place, label, line, scratch.room, lanes, phase)


def area_cross_entropy(
    value: Tensor,
    total: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """`cross_entropy` with the soft label of a label map ``(B, H, W)``, a row of it at a time."""
    batch, num_classes, *size = logits.shape
    sums, outputs = sums_of(value, reduction, batch * size[0]), (flat(mass), flat(lse))
    dtype = outputs[0].dtype
    rows, num_pixels = label_rows(labels, boxes, size, num_classes, ignore_index, filter, dtype, TILE)
    arguments = (
        flat(value),
        sums,
        *outputs,
        plane_of(logits, dtype),
        weights_of(weight, num_classes, dtype),
        (num_classes, *size),
    )

    def job(first: int, end: int) -> bool:
        present = np.empty(GROUP + 1, np.uint64)
        return rows(_LossTarget(*arguments, scratch_of(TILE, GROUP, dtype), present), first, end)

    in_range = all(pool.run(job, batch * size[0], 0.65 * logits.numel() + 0.25 * num_pixels))
    finish_sums(value, total, sums, reduction)
    return in_range or not validate


def area_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """Writes the gradient of the logits, given that of the pixels' losses, ``grad (B, h, w) / total``."""
    batch, num_classes, *size = logits.shape
    lse_memory = flat(lse.contiguous())
    dtype = lse_memory.dtype
    rows, num_pixels = label_rows(labels, boxes, size, num_classes, ignore_index, filter, dtype, TILE)
    arguments = (
        plane_of(out, dtype),
        *byte_lines(out),
        plane_of(grad[:, None], dtype),
        divisor_of(total, dtype),
        plane_of(logits, dtype),
        weights_of(weight, num_classes, dtype),
        flat(mass.contiguous()),
        lse_memory,
        (num_classes, *size),
    )

    def job(first: int, end: int) -> None:
        rows(_GradientTarget(*arguments, scratch_of(TILE, 1, dtype)), first, end)

    pool.run(job, batch * size[0], 0.65 * logits.numel() + 0.25 * num_pixels)
