"""Cross-entropy of logits against a soft label, forward and backward."""

import math
from typing import Any

from torch import Tensor

from tritonsoft.backends.numba.elements import borrowed, fence, flat
from tritonsoft.backends.numba.planes import (
    SCRATCH,
    byte_lines,
    lines_of,
    load_line,
    plane_of,
    store_line,
    way_out,
    whole,
)
from tritonsoft.backends.numba.soft_targets import (
    lines_needed,
    masses_of,
    meet_all,
    others_of,
    place_of,
    prepare,
    scratch_of,
    soft_in_range,
    target_of,
    tiles_of,
    weights_of,
    work_of,
)
from tritonsoft.backends.numba.softmax import know, write_gradient
from tritonsoft.backends.numba.sums import divisor_of, finish_sums, put_losses, sums_of
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.geometry import MASS_TOLERANCE, Reduction


@jit
def _cross_entropy_tiles(
    loss: Any,
    sums: Any,
    mass: Any,
    lse: Any,
    logits: Any,
    target: Any,
    weights: Any,
    num_classes: Any,
    tiles: Any,
    tolerance: Any,
    scratch: Any,
    first: int,
    end: int,
) -> bool:
    """The losses of pixels, or their ``sums`` and those of their masses: (tiles, 2)."""
    logits, target, scratch = borrowed(logits), borrowed(target), borrowed(scratch)
    online = scratch.online
    for tile in range(first, end):
        place = place_of(tile, tiles)
        sample, row, column, count = place
        if not meet_all(logits, target, weights, num_classes, place, tolerance, scratch):
            return False
        start = unsigned((sample * tiles[0] + row) * tiles[1]) + column
        for n in range(count):
            mass[start + n], lse[start + n] = online.mass[n], online.largest[n]
        put_losses(loss, sums, unsigned(tile), online, start, count)
    return True


@jit
def _cross_entropy_gradient_tiles(
    out: Any,
    grad: Any,
    divisor: Any,
    logits: Any,
    target: Any,
    weights: Any,
    mass: Any,
    lse: Any,
    num_classes: Any,
    tiles: Any,
    lanes: Any,
    phase: Any,
    scratch: Any,
    first: int,
    end: int,
) -> None:
    out, grad, logits, target = borrowed(out), borrowed(grad), borrowed(logits), borrowed(target)
    scratch = borrowed(scratch)
    pixels, line, pitch, one = scratch.pixels, scratch.line, scratch.pitch, unsigned(1)
    tile_size = unsigned(scratch.tile)
    for tile in range(first, end):
        place = place_of(tile, tiles)
        sample, row, column, count = place
        prepare(target, num_classes, place, scratch)
        load_line(grad, place, unsigned(0), pixels.scale, unsigned(0))
        know(pixels, divisor, mass, lse, unsigned((sample * tiles[0] + row) * tiles[1]) + column, count)
        for label in range(unsigned(num_classes)):
            lines = lines_of(logits, place, label, one, line, pitch, tile_size)
            masses = masses_of(target, place, label, one, scratch, tile_size)
            values, start, way = way_out(out, place, label, line, lanes, phase)
            write_gradient(values, start, way, pixels, lines, masses, True, weights[label], whole(count))
            if way == SCRATCH:
                store_line(out, place, label, line, scratch.room, lanes, phase)
    fence()


def cross_entropy(
    value: Tensor,
    total: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """Writes the loss of logits ``(B, C, h, w)``; of each pixel ``(B, h, w)`` the weighted mass and the logsumexp."""
    # The loop sees other masses than the soft label's own entries.
    checked = weight is not None or index is not None
    if checked and validate and not soft_in_range(soft, MASS_TOLERANCE):
        return False
    batch, num_classes = logits.shape[:2]
    tiles = tiles_of(logits, *others_of(soft, index))
    number = tiles.number(batch)
    sums, outputs = sums_of(value, reduction, number), (flat(mass), flat(lse))
    dtype = outputs[0].dtype
    arguments = (
        flat(value),
        sums,
        *outputs,
        plane_of(logits, dtype),
        target_of(soft, index, dtype),
        weights_of(weight, num_classes, dtype),
        num_classes,
        tiles,
        dtype.type(math.inf if checked or not validate else MASS_TOLERANCE),
    )

    def job(first: int, end: int) -> bool:
        scratch = scratch_of(tiles.size, lines_needed(num_classes, index), dtype)
        in_range: bool = _cross_entropy_tiles(*arguments, scratch, first, end)
        return in_range

    in_range = all(pool.run(job, number, work_of(0.65, logits, index)))
    finish_sums(value, total, sums, reduction)
    return in_range


def cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """Writes the gradient of the logits, given that of the pixels' losses, ``grad (B, h, w) / total``."""
    num_classes = logits.shape[1]
    grad = grad[:, None]
    tiles = tiles_of(logits, out, grad, *others_of(soft, index))
    lse_memory = flat(lse.contiguous())
    dtype = lse_memory.dtype
    arguments = (
        plane_of(out, dtype),
        plane_of(grad, dtype),
        divisor_of(total, dtype),
        plane_of(logits, dtype),
        target_of(soft, index, dtype),
        weights_of(weight, num_classes, dtype),
        flat(mass.contiguous()),
        lse_memory,
        num_classes,
        tiles,
        *byte_lines(out),
    )

    def job(first: int, end: int) -> None:
        scratch = scratch_of(tiles.size, lines_needed(num_classes, index), dtype)
        _cross_entropy_gradient_tiles(*arguments, scratch, first, end)

    pool.run(job, tiles.number(len(logits)), work_of(0.65, logits, index))
