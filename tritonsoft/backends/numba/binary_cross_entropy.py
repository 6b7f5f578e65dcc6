"""Cross-entropy of each class for itself, forward and backward: a tile of pixels, class after class."""

import math
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tritonsoft.backends.numba.elements import Array, borrowed, compute_dtype, fence, prefetch
from tritonsoft.backends.numba.planes import (
    NO_TENSOR,
    STAGED,
    Lines,
    StridedTensor,
    TensorArguments,
    load_line,
    load_lines,
    padded,
    select_store,
    staging_buffer,
    store_line,
    streaming_in_bytes,
    strided_tensor,
    tensor_arguments,
)
from tritonsoft.backends.numba.soft_targets import Tiles, pixels_of_tile, tiles_of, weights_of
from tritonsoft.backends.numba.softmax import not_negative, store_or_stream
from tritonsoft.backends.numba.sums import divisor_of, finish_cross_entropy, partial_sums
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import LANES, all_of, broadcast, exp, load, log1p, sum_of, where
from tritonsoft.geometry import MASS_TOLERANCE, Reduction

_NANOSECONDS = 0.6  # of a logit


class _Scratch(NamedTuple):
    """Lines of one thread."""

    logits: Array
    soft: Array
    known: Array
    ones: Array  # what is known of each pixel of a tile, where that is all
    out: Array
    grad: Array
    staging: Any


@jit
def _new_scratch(tile: int, like: Array) -> Any:
    size, dtype = padded(unsigned(tile)), like.dtype
    return _Scratch(
        np.zeros(size, dtype),
        np.zeros(size, dtype),
        np.zeros(size, dtype),
        np.zeros(size, dtype),
        np.zeros(size, dtype),
        np.zeros(size, dtype),
        staging_buffer(tile),
    )


@jit
def _masses_at(soft: Lines, known: Lines, n: int) -> Any:
    """Of a vector of pixels the mass that is of the class, and that which is known."""
    limit = not_negative(load(known.values, known.first + n, LANES))
    present = not_negative(load(soft.values, soft.first + n, LANES))
    return where(present > limit, limit, present), limit


@jit
def _are_in_range(soft: Lines, known: Lines, count: int, tolerance: Any) -> Any:
    in_range = True
    for n in range(unsigned(0), count, unsigned(LANES)):
        mass, limit = load(soft.values, soft.first + n, LANES), load(known.values, known.first + n, LANES)
        in_range &= all_of(mass >= -tolerance) & all_of(mass - limit <= tolerance)
        in_range &= all_of(limit >= -tolerance) & all_of(limit - 1.0 <= tolerance)
    return in_range


@jit
def _known_lines(known: StridedTensor, pixels: Any, label: int, scratch: _Scratch, prefetch_distance: int) -> Any:
    if known.element_type < 0:
        return Lines(scratch.ones, unsigned(0), unsigned(0), unsigned(0))
    return load_lines(known, pixels, label, unsigned(1), scratch.known, unsigned(0), prefetch_distance)


@jit
def _loss_tiles(
    loss: StridedTensor,
    sums: Array,
    logits: StridedTensor,
    soft: StridedTensor,
    known: StridedTensor,
    weights: Array,
    pos_weights: Array,
    tiles: Tiles,
    tolerance: Any,
    line_length: int,
    to_boundary: int,
    scratch: _Scratch,
    first: int,
    end: int,
) -> bool:
    """Whether masses are in range. Writes losses, or ``sums (tiles, 2)`` of losses and known masses."""
    loss, logits, soft, known, scratch = (
        borrowed(loss),
        borrowed(logits),
        borrowed(soft),
        borrowed(known),
        borrowed(scratch),
    )
    in_range, one, zero, tile_size = True, unsigned(1), weights.dtype.type(0), unsigned(tiles[2])
    for tile in range(first, end):
        pixels = pixels_of_tile(tile, tiles)
        count = pixels[3]
        for n in range(padded(count)):
            scratch.ones[n] = 1 if n < count else 0
        for label in range(unsigned(weights.size)):
            lines = load_lines(logits, pixels, label, one, scratch.logits, unsigned(0), tile_size)
            masses = load_lines(soft, pixels, label, one, scratch.soft, unsigned(0), tile_size)
            limits = _known_lines(known, pixels, label, scratch, tile_size)
            if tolerance < np.inf:
                in_range &= _are_in_range(masses, limits, padded(count), tolerance)
            values, start, how = select_store(loss, pixels, label, scratch.out, line_length, to_boundary)
            weight, of_present = weights[label], weights[label] * pos_weights[label]
            total = total_mass = broadcast(zero, LANES)
            for n in range(unsigned(0), padded(count), unsigned(LANES)):
                logit = load(lines.values, lines.first + n, LANES)
                prefetch(lines.values, lines.first + n + lines.prefetch_distance)
                prefetch(masses.values, masses.first + n + masses.prefetch_distance)
                present, limit = _masses_at(masses, limits, n)
                absent, present = weight * (limit - present), of_present * present
                opposite = zero - logit
                # log(1 + e^z) is max(z, 0) + log(1 + e^-|z|).
                rest = log1p(exp(where(logit > 0.0, opposite, logit)))
                value = where(present > 0.0, present * (where(opposite > 0.0, opposite, 0.0) + rest), 0.0)
                value = value + where(absent > 0.0, absent * (where(logit > 0.0, logit, 0.0) + rest), 0.0)
                if sums.size == 0:
                    store_or_stream(values, start + n, value, how)
                total, total_mass = total + value, total_mass + weight * limit
            if sums.size > 0:
                sums[unsigned(2) * unsigned(tile)] += sum_of(total)
                sums[unsigned(2) * unsigned(tile) + one] += sum_of(total_mass)
            elif how == STAGED:
                store_line(loss, pixels, label, scratch.out, scratch.staging, line_length, to_boundary)
    fence()
    return in_range


@jit
def _gradient_tiles(
    out: StridedTensor,
    grad: StridedTensor,
    divisor: Any,
    logits: StridedTensor,
    soft: StridedTensor,
    known: StridedTensor,
    weights: Array,
    pos_weights: Array,
    tiles: Tiles,
    line_length: int,
    to_boundary: int,
    scratch: _Scratch,
    first: int,
    end: int,
) -> None:
    out, grad, logits, soft, known = borrowed(out), borrowed(grad), borrowed(logits), borrowed(soft), borrowed(known)
    scratch = borrowed(scratch)
    one, zero, tile_size = unsigned(1), weights.dtype.type(0), unsigned(tiles[2])
    is_number = grad.strides[1] == 0 and grad.strides[2] == 0 and grad.strides[3] == 0
    for tile in range(first, end):
        pixels = pixels_of_tile(tile, tiles)
        count = pixels[3]
        scratch.ones[:] = 1
        for label in range(unsigned(weights.size)):
            lines = load_lines(logits, pixels, label, one, scratch.logits, unsigned(0), tile_size)
            masses = load_lines(soft, pixels, label, one, scratch.soft, unsigned(0), tile_size)
            limits = _known_lines(known, pixels, label, scratch, tile_size)
            if not is_number or label == unsigned(0):
                load_line(grad, pixels, label, scratch.grad, unsigned(0))
                for n in range(count):
                    scratch.grad[n] /= divisor
            values, start, how = select_store(out, pixels, label, scratch.out, line_length, to_boundary)
            weight, of_present = weights[label], weights[label] * pos_weights[label]
            for n in range(unsigned(0), padded(count), unsigned(LANES)):
                logit = load(lines.values, lines.first + n, LANES)
                prefetch(lines.values, lines.first + n + lines.prefetch_distance)
                prefetch(masses.values, masses.first + n + masses.prefetch_distance)
                present, limit = _masses_at(masses, limits, n)
                absent, present = weight * (limit - present), of_present * present
                small = exp(where(logit > 0.0, zero - logit, logit))
                larger = 1.0 / (small + 1.0)
                smaller = small * larger
                value = absent * where(logit > 0.0, larger, smaller) - present * where(logit > 0.0, smaller, larger)
                value = where(present + absent > 0.0, load(scratch.grad, n, LANES) * value, 0.0)
                store_or_stream(values, start + n, value, how)
            if how == STAGED:
                store_line(out, pixels, label, scratch.out, scratch.staging, line_length, to_boundary)
    fence()


@jit
def _loss(
    loss: TensorArguments,
    sums: Array,
    logits: TensorArguments,
    soft: TensorArguments,
    known: TensorArguments,
    weights: Array,
    pos_weights: Array,
    tiles: Tiles,
    tolerance: float,
    line_length: int,
    to_boundary: int,
    first: int,
    end: int,
) -> Any:
    return _loss_tiles(
        strided_tensor(loss, weights),
        sums,
        strided_tensor(logits, weights),
        strided_tensor(soft, weights),
        strided_tensor(known, weights),
        weights,
        pos_weights,
        tiles,
        weights.dtype.type(tolerance),
        unsigned(line_length),
        unsigned(to_boundary),
        _new_scratch(tiles[2], weights),
        first,
        end,
    )


@jit
def _gradient(
    out: TensorArguments,
    grad: TensorArguments,
    divisor: float,
    logits: TensorArguments,
    soft: TensorArguments,
    known: TensorArguments,
    weights: Array,
    pos_weights: Array,
    tiles: Tiles,
    line_length: int,
    to_boundary: int,
    first: int,
    end: int,
) -> None:
    _gradient_tiles(
        strided_tensor(out, weights),
        strided_tensor(grad, weights),
        weights.dtype.type(divisor),
        strided_tensor(logits, weights),
        strided_tensor(soft, weights),
        strided_tensor(known, weights),
        weights,
        pos_weights,
        tiles,
        unsigned(line_length),
        unsigned(to_boundary),
        _new_scratch(tiles[2], weights),
        first,
        end,
    )


def _inputs(
    logits: Tensor, soft: Tensor, known: Tensor | None, weight: Tensor | None, pos_weight: Tensor | None
) -> tuple[Any, ...]:
    """What both compiled functions take of the tensors that are read."""
    num_classes, dtype = logits.shape[1], compute_dtype(logits)
    return (
        tensor_arguments(logits, dtype),
        tensor_arguments(soft, dtype),
        NO_TENSOR if known is None else tensor_arguments(known, dtype),
        weights_of(weight, num_classes, dtype),
        weights_of(pos_weight, num_classes, dtype),
    )


def binary_cross_entropy(
    value: Tensor,
    total: Tensor,
    logits: Tensor,
    soft: Tensor,
    known: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """Writes the loss of logits ``(B, C, h, w)``, of which each is a class for itself."""
    none, dtype = reduction == "none", value.dtype
    tiles = tiles_of(logits, soft, *([] if known is None else [known]), *([value] if none else []))
    number = tiles.number(len(logits))
    sums = partial_sums(reduction, number)
    arguments = (
        tensor_arguments(value, dtype) if none else NO_TENSOR,
        sums,
        *_inputs(logits, soft, known, weight, pos_weight),
        tiles,
        MASS_TOLERANCE if validate else math.inf,
        *(streaming_in_bytes(value) if none else (0, 0)),
    )
    work = _NANOSECONDS * logits.numel()
    in_range = all(pool.run(lambda first, end: _loss(*arguments, first, end), number, work))
    finish_cross_entropy(value, total, sums, reduction)
    return in_range


def binary_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    soft: Tensor,
    known: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
) -> None:
    """Writes the gradient of the logits, given that of the losses, ``grad (B, C, h, w) / total``."""
    tiles = tiles_of(logits, soft, out, grad, *([] if known is None else [known]))
    arguments = (
        tensor_arguments(out, compute_dtype(logits)),
        tensor_arguments(grad, compute_dtype(logits)),
        divisor_of(total),
        *_inputs(logits, soft, known, weight, pos_weight),
        tiles,
        *streaming_in_bytes(out),
    )
    number, work = tiles.number(len(logits)), _NANOSECONDS * logits.numel()
    pool.run(lambda first, end: _gradient(*arguments, first, end), number, work)
