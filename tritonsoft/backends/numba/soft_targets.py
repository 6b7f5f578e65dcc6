"""The soft labels that losses read, dense or sparse, a tile of pixels at a time.

A tile always holds the same pixels and its sums are added up in one order: the number of threads changes no bit.
"""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tritonsoft.backends.numba.elements import borrowed, flat, prefetch, sums_dtype
from tritonsoft.backends.numba.planes import (
    UINT8,
    Lines,
    Plane,
    lines_of,
    load_element,
    load_line,
    plane_of,
    room_of,
    start_of,
    whole,
)
from tritonsoft.backends.numba.softmax import Online, Pixels, begin, finish, meet, not_negative
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import LANES, all_of, load, spread, store, where

_TILE_ELEMENTS = 1 << 17  # logits of a tile: they and their masses stay in a core's own cache, beside those of the next
_LONGEST_TILE = 1 << 10  # pixels of a tile: a page of each class
GROUP = 6  # classes that are met at once: an exponential for each, and one for all


class Tiles(NamedTuple):
    """The pixels of a batch in tiles of some columns of a row."""

    rows: Any
    width: Any
    size: Any

    def number(self, batch: int) -> int:
        return int(batch * self.rows * -(-self.width // self.size))


class SoftTarget(NamedTuple):
    """A soft label: the masses of all classes, or of some entries for each pixel."""

    mass: Any  # plane (B, entries, rows, width)
    index: Any  # plane (B, entries, rows, width): their classes; of kind -1 where there is an entry for each class
    entries: Any


class Scratch(NamedTuple):
    """Memory to work in, of one thread."""

    online: Any
    pixels: Any
    logits: Any  # lines of some classes
    masses: Any  # lines of some classes, of all of a sparse target
    slopes: Any  # lines of all classes
    line: Any
    room: Any
    pitch: Any  # between lines: not a power of two, or they would share their cache sets
    tile: Any
    every: Any  # 0, 1, 2, ...


@jit
def place_of(tile: Any, tiles: Any) -> Any:
    """Sample, row, first column and number of pixels of a tile."""
    rows, width, size = tiles
    in_row = (width + size - 1) // size
    column = tile % in_row * size
    return tile // in_row // rows, tile // in_row % rows, unsigned(column), unsigned(min(size, width - column))


@jit
def _load_sparse(target: Any, num_classes: Any, place: Any, lines: Any, pitch: Any, line: Any) -> None:
    """The masses of all classes of a sparse target, in ``lines``; ``line`` is one to work with."""
    mass, index, entries = target
    memory, kind, strides, zero = index.memory, index.kind, index.strides, lines.dtype.type(0)
    lines[:] = 0
    for entry in range(unsigned(entries)):
        load_line(mass, place, entry, line, unsigned(0))
        start = start_of(index, place, entry)
        for n in range(place[3]):
            offset = start + n * unsigned(strides[3])
            if kind == UINT8:
                label = np.int64(load_element(memory, offset, np.uint8(0)))
            else:
                label = np.int64(load_element(memory, offset, np.int16(0)))
            if 0 <= label < num_classes:
                lines[unsigned(label) * pitch + n] += zero if line[n] < zero else line[n]


@jit
def prepare(target: Any, num_classes: Any, place: Any, scratch: Any) -> None:
    """Before the masses of a tile are asked for."""
    if target.index.kind >= 0:
        _load_sparse(target, num_classes, place, scratch.masses, scratch.pitch, scratch.line)


@jit
def masses_of(target: Any, place: Any, label: Any, number: Any, scratch: Any, ahead: Any) -> Any:
    """The masses of some classes from ``label`` on, a line for each."""
    if target.index.kind < 0:
        return lines_of(target.mass, place, label, number, scratch.masses, scratch.pitch, ahead)
    return Lines(scratch.masses, label * scratch.pitch, scratch.pitch, unsigned(0))


@jit
def meet_all(
    logits: Any, target: Any, weights: Any, num_classes: Any, place: Any, tolerance: Any, scratch: Any
) -> bool:
    """Meets all classes of the pixels of a tile, a group at a time: whether masses are in range, within the tolerance.

    An infinite tolerance asks for no check.
    """
    online, pitch, count = scratch.online, scratch.pitch, place[3]
    prepare(target, num_classes, place, scratch)
    begin(online)
    in_range = True
    limit = online.mass.dtype.type(1) + tolerance
    classes, group, tile = unsigned(num_classes), unsigned(GROUP), unsigned(scratch.tile)
    for start in range(unsigned(0), classes, group):
        number = min(group, classes - start)
        lines = lines_of(logits, place, start, number, scratch.logits, pitch, tile)
        masses = masses_of(target, place, start, number, scratch, tile)
        least = meet(online, lines, masses, weights, start, number, scratch.every, number, whole(count))
        in_range &= all_of(least >= -tolerance)
    finish(online, count)
    for n in range(unsigned(0), whole(count), unsigned(LANES)):
        in_range &= all_of(load(online.mass, n, LANES) <= limit)  # which NaN is not
    return in_range or tolerance == np.inf


def tiles_of(logits: Tensor, *others: Tensor) -> Tiles:
    """Rows are one long row where all tensors allow."""
    _, num_classes, height, width = logits.shape
    if all(tensor.stride(-2) == width * tensor.stride(-1) for tensor in (logits, *others)):
        height, width = 1, height * width
    size = min(_LONGEST_TILE, max(4 * LANES, _TILE_ELEMENTS // num_classes // LANES * LANES))
    return Tiles(height, width, min(size, -(-width // LANES) * LANES))


def scratch_of(tile: int, num_classes: int, dtype: Any) -> Scratch:
    """``num_classes``: as many lines for logits, masses and slopes."""
    pitch = tile + LANES
    logits, masses, slopes = np.zeros((3, num_classes * pitch), dtype)
    online, pixels = Online(*np.zeros((4, tile), dtype)), Pixels(*np.zeros((4, tile), dtype))
    line, every = np.zeros(pitch, dtype), np.arange(num_classes, dtype=np.uint64)
    return Scratch(online, pixels, logits, masses, slopes, line, room_of(tile), unsigned(pitch), tile, every)


def target_of(soft: Tensor, index: Tensor | None, dtype: Any) -> SoftTarget:
    nothing = Plane(np.empty(0, np.uint8), -1, (0, 0, 0, 0), np.empty(0, dtype), False)
    return SoftTarget(plane_of(soft, dtype), nothing if index is None else plane_of(index, dtype), soft.shape[1])


def weights_of(weight: Tensor | None, num_classes: int, dtype: Any) -> Any:
    return np.ones(num_classes, dtype) if weight is None else flat(weight.double().contiguous()).astype(dtype)


def others_of(soft: Tensor, index: Tensor | None) -> list[Tensor]:
    return [soft] if index is None else [soft, index]


def lines_needed(num_classes: int, index: Tensor | None) -> int:
    """A sparse target is spread out over all classes; of a dense one, some are at work."""
    return min(num_classes, GROUP) if index is None else num_classes


def work_of(nanoseconds: float, logits: Tensor, index: Tensor | None) -> float:
    """For `pool.run`, where a logit takes so many; a sparse target is spread out before it is met."""
    return (nanoseconds if index is None else nanoseconds + 0.35) * logits.numel()


@jit
def _tiles_in_range(
    soft: Any, entries: Any, tolerance: Any, tiles: Any, line: Any, total: Any, first: int, end: int
) -> bool:
    soft, line, total = borrowed(soft), borrowed(line), borrowed(total)
    zero, limit, tile_size = total.dtype.type(0), total.dtype.type(1) + tolerance, unsigned(tiles[2])
    for tile in range(first, end):
        place = place_of(tile, tiles)
        total[:] = 0
        lowest = spread(zero, LANES)
        for entry in range(unsigned(entries)):
            shares = lines_of(soft, place, entry, unsigned(1), line, tile_size, tile_size)
            for n in range(unsigned(0), whole(place[3]), unsigned(LANES)):
                share = load(shares.numbers, shares.first + n, LANES)
                prefetch(shares.numbers, shares.first + n + shares.ahead)
                lowest = where(share < lowest, share, lowest)  # NaN is found by the total
                store(total, n, load(total, n, LANES) + not_negative(share))
        if not all_of(lowest >= -tolerance):
            return False
        for n in range(unsigned(0), whole(place[3]), unsigned(LANES)):
            if not all_of(load(total, n, LANES) <= limit):
                return False
    return True


def soft_in_range(soft: Tensor, tolerance: float) -> bool:
    """`tritonsoft.backends.values.is_subdistribution`."""
    tiles, dtype = tiles_of(soft), sums_dtype(soft)
    arguments: Any = (plane_of(soft, dtype), soft.shape[1], dtype(tolerance), tiles)

    def job(first: int, end: int) -> bool:
        result: bool = _tiles_in_range(*arguments, *np.zeros((2, tiles.size), dtype), first, end)
        return result

    return all(pool.run(job, tiles.number(len(soft)), 0.35 * soft.numel()))
