"""The soft labels that losses read, dense or sparse, a tile of pixels at a time.

A tile always holds the same pixels and its sums are added up in one order: the number of threads changes no bit.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tritonsoft.backends.numba.elements import LIKE, Array, borrowed, compute_dtype, flat, prefetch
from tritonsoft.backends.numba.planes import (
    NO_TENSOR,
    UINT8,
    Lines,
    Pixels,
    StridedTensor,
    TensorArguments,
    load_element,
    load_line,
    load_lines,
    offset_of,
    padded,
    staging_buffer,
    strided_tensor,
    tensor_arguments,
)
from tritonsoft.backends.numba.softmax import (
    PixelStatistics,
    SoftmaxState,
    UniformState,
    new_uniform_state,
    not_negative,
    online_softmax_finalize,
    online_softmax_init,
    online_softmax_update,
)
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import LANES, all_of, broadcast, load, store, where

# Logits and masses of a tile fit a core's second-level cache, beside those of the next tile.
_MAX_TILE_LOGITS = 1 << 17
_MAX_TILE = 1 << 10  # pixels: a page of each class
CLASSES_PER_STEP = 6  # of the online softmax: so many exponentials for the classes, and one to rescale the sums


class Tiles(NamedTuple):
    """A batch of images in tiles of ``size`` neighbours in a row."""

    rows: int
    width: int
    size: int

    def number(self, batch: int) -> int:
        return int(batch * self.rows * -(-self.width // self.size))


class SoftTarget(NamedTuple):
    """A soft label, dense or sparse: of the latter a pixel has a few masses with their classes."""

    mass: StridedTensor  # (B, C or entries, rows, width)
    class_index: StridedTensor  # the same shape: their classes; its element type is -1 where the target is dense
    entries: int


class Scratch(NamedTuple):
    """Buffers of one thread."""

    state: SoftmaxState
    uniform: UniformState
    statistics: PixelStatistics
    logits: Array  # lines of a step's classes
    masses: Any  # lines of a step's classes, or of all if the target is sparse
    slopes: Array  # lines of all classes
    line: Array
    staging: Any
    pitch: int  # from line to line: no power of two, which would map all lines to the same cache sets
    tile: int
    all_classes: Array  # 0, 1, 2, ...


@jit
def pixels_of_tile(tile: int, tiles: Tiles) -> Any:
    """The sample, row, first column and number of pixels of a tile."""
    rows, width, size = tiles
    in_row = (width + size - 1) // size
    column = tile % in_row * size
    return tile // in_row // rows, tile // in_row % rows, unsigned(column), unsigned(min(size, width - column))


@jit
def _load_sparse(target: SoftTarget, num_classes: int, pixels: Pixels, lines: Array, pitch: int, line: Array) -> None:
    """Scatters the entries of a sparse target to ``lines`` of all classes; ``line`` is a buffer."""
    mass, index, entries = target
    memory, element_type, strides, zero = index.memory, index.element_type, index.strides, lines.dtype.type(0)
    lines[:] = 0
    for entry in range(unsigned(entries)):
        load_line(mass, pixels, entry, line, unsigned(0))
        start = offset_of(index, pixels, entry)
        for n in range(pixels[3]):
            offset = start + n * unsigned(strides[3])
            if element_type == UINT8:
                label = np.int64(load_element(memory, offset, np.uint8(0)))
            else:
                label = np.int64(load_element(memory, offset, np.int16(0)))
            if 0 <= label < num_classes:
                lines[unsigned(label) * pitch + n] += zero if line[n] < zero else line[n]


@jit
def prepare_masses(target: SoftTarget, num_classes: int, pixels: Pixels, scratch: Scratch) -> None:
    """To be called for a tile before `load_masses`."""
    if target.class_index.element_type >= 0:
        _load_sparse(target, num_classes, pixels, scratch.masses, scratch.pitch, scratch.line)


@jit
def load_masses(
    target: SoftTarget, pixels: Pixels, label: int, number: int, scratch: Scratch, prefetch_distance: int
) -> Any:
    """The lines of ``number`` classes from ``label`` on."""
    if target.class_index.element_type < 0:
        return load_lines(target.mass, pixels, label, number, scratch.masses, scratch.pitch, prefetch_distance)
    return Lines(scratch.masses, label * scratch.pitch, scratch.pitch, unsigned(0))


@jit
def softmax_of_tile(
    logits: StridedTensor,
    target: SoftTarget,
    weights: Array,
    num_classes: int,
    pixels: Pixels,
    tolerance: Any,
    scratch: Scratch,
) -> bool:
    """Computes statistics and losses of a tile's pixels, in ``scratch.state``: whether masses are within the tolerance.

    An infinite tolerance means no check.
    """
    state, pitch, count = scratch.state, scratch.pitch, pixels[3]
    prepare_masses(target, num_classes, pixels, scratch)
    online_softmax_init(state, scratch.uniform)
    in_range = True
    limit = state.mass.dtype.type(1) + tolerance
    classes, group, tile = unsigned(num_classes), unsigned(CLASSES_PER_STEP), unsigned(scratch.tile)
    for start in range(unsigned(0), classes, group):
        number = min(group, classes - start)
        lines = load_lines(logits, pixels, start, number, scratch.logits, pitch, tile)
        masses = load_masses(target, pixels, start, number, scratch, tile)
        min_mass = online_softmax_update(
            state, scratch.uniform, lines, masses, weights, start, number, scratch.all_classes, number, padded(count)
        )
        in_range &= all_of(min_mass >= -tolerance)
    online_softmax_finalize(state, scratch.uniform, num_classes, count)
    for n in range(unsigned(0), padded(count), unsigned(LANES)):
        in_range &= all_of(load(state.mass, n, LANES) <= limit)  # false for NaN
    return in_range or tolerance == np.inf


def tiles_of(logits: Tensor, *others: Tensor) -> Tiles:
    """Tiles of planes, which count as a single row where all tensors' strides allow."""
    _, num_classes, height, width = logits.shape
    strides = [tensor.stride() for tensor in (logits, *others)]
    if all(stride[2] == width * stride[3] for stride in strides):
        height, width = 1, height * width
    size = min(_MAX_TILE, max(4 * LANES, _MAX_TILE_LOGITS // num_classes // LANES * LANES))
    return Tiles(height, width, min(size, -(-width // LANES) * LANES))


@jit
def new_scratch(tile: int, num_classes: int, label_smoothing: float, like: Array) -> Any:
    """With lines of ``num_classes`` classes, in the compute dtype, that of ``like``."""
    dtype, pitch = like.dtype, tile + LANES
    state = SoftmaxState(np.zeros(tile, dtype), np.zeros(tile, dtype), np.zeros(tile, dtype), np.zeros(tile, dtype))
    uniform = new_uniform_state(tile, label_smoothing, like)
    statistics = PixelStatistics(
        np.zeros(tile, dtype),
        np.zeros(tile, dtype),
        np.zeros(tile, dtype),
        np.zeros(tile, dtype),
        np.zeros(tile, dtype),
    )
    size = num_classes * pitch
    logits, masses, slopes = np.zeros(size, dtype), np.zeros(size, dtype), np.zeros(size, dtype)
    line, all_classes = np.zeros(pitch, dtype), np.arange(num_classes).astype(np.uint64)
    staging = staging_buffer(tile)
    return Scratch(
        state, uniform, statistics, logits, masses, slopes, line, staging, unsigned(pitch), tile, all_classes
    )


def target_arguments(
    soft: Tensor, index: Tensor | None, dtype: torch.dtype
) -> tuple[TensorArguments, TensorArguments, int]:
    """What `soft_target` makes a target of."""
    class_index = NO_TENSOR if index is None else tensor_arguments(index, dtype)
    return tensor_arguments(soft, dtype), class_index, soft.shape[1]


@jit
def soft_target(arguments: Any, like: Array) -> Any:
    mass, class_index, entries = arguments
    return SoftTarget(strided_tensor(mass, like), strided_tensor(class_index, like), entries)


@functools.lru_cache(maxsize=64)
def _ones(num_classes: int, dtype: torch.dtype) -> Array:
    return np.ones(num_classes, LIKE[dtype].dtype)


def weights_of(weight: Tensor | None, num_classes: int, dtype: torch.dtype) -> Array:
    """The weights of the classes in the compute dtype."""
    return _ones(num_classes, dtype) if weight is None else flat(weight.double().contiguous()).astype(LIKE[dtype].dtype)


def tensors_of(soft: Tensor, index: Tensor | None) -> list[Tensor]:
    return [soft] if index is None else [soft, index]


def num_lines(num_classes: int, index: Tensor | None) -> int:
    """Lines of classes that a target needs: a sparse one is scattered to all classes."""
    return min(num_classes, CLASSES_PER_STEP) if index is None else num_classes


def work_of(nanoseconds: float, logits: Tensor, index: Tensor | None) -> float:
    """The work for `pool.run`, where a logit takes so many nanoseconds; scattering a sparse target takes more."""
    return (nanoseconds if index is None else nanoseconds + 0.35) * logits.numel()


@jit
def _tiles_in_range(
    soft: StridedTensor, entries: int, tolerance: Any, tiles: Tiles, line: Array, total: Array, first: int, end: int
) -> bool:
    soft, line, total = borrowed(soft), borrowed(line), borrowed(total)
    zero, limit, tile_size = total.dtype.type(0), total.dtype.type(1) + tolerance, unsigned(tiles[2])
    for tile in range(first, end):
        pixels = pixels_of_tile(tile, tiles)
        total[:] = 0
        lowest = broadcast(zero, LANES)
        for entry in range(unsigned(entries)):
            masses = load_lines(soft, pixels, entry, unsigned(1), line, tile_size, tile_size)
            for n in range(unsigned(0), padded(pixels[3]), unsigned(LANES)):
                mass = load(masses.values, masses.first + n, LANES)
                prefetch(masses.values, masses.first + n + masses.prefetch_distance)
                lowest = where(mass < lowest, mass, lowest)  # NaN fails the test of the total
                store(total, n, load(total, n, LANES) + not_negative(mass))
        if not all_of(lowest >= -tolerance):
            return False
        for n in range(unsigned(0), padded(pixels[3]), unsigned(LANES)):
            if not all_of(load(total, n, LANES) <= limit):
                return False
    return True


@jit
def _soft_in_range(
    soft: TensorArguments, entries: int, tolerance: float, tiles: Tiles, like: Array, first: int, end: int
) -> Any:
    line, total = np.zeros(tiles[2], like.dtype), np.zeros(tiles[2], like.dtype)
    tensor = strided_tensor(soft, like)
    return _tiles_in_range(tensor, entries, like.dtype.type(tolerance), tiles, line, total, first, end)


def soft_in_range(soft: Tensor, tolerance: float) -> bool:
    """`tritonsoft.backends.values.is_subdistribution`."""
    tiles, dtype = tiles_of(soft), compute_dtype(soft)
    arguments = tensor_arguments(soft, dtype), soft.shape[1], tolerance, tiles, LIKE[dtype]
    in_range = pool.run(
        lambda first, end: _soft_in_range(*arguments, first, end), tiles.number(len(soft)), 0.35 * soft.numel()
    )
    return all(in_range)
