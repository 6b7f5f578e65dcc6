"""The losses: tiles of pixels, with a line of logits and a line of masses for each class in cache.

Whatever tensors hold and however they lie in memory, their lines are copied to float32 first (to float64 if one of them
is that), so that there is one loop over numbers for all: a tensor is bytes here, with its strides and the kind of its
elements. Exponentials and logarithms are written out, as no vector instruction has them.

A tile always holds the same pixels and its sums are added up in one order: the number of threads changes no bit.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

from tritonsoft.cpu.elements import fence, flat, narrow, reinterpret, streaming, widen, write
from tritonsoft.cpu.labels import TILE, label_rows
from tritonsoft.cpu.threads import jit, pool, unsigned
from tritonsoft.cpu.vectors import CHUNK

_KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int16)
_FLOAT32, _FLOAT16, _BFLOAT16, _FLOAT64, _UINT8 = range(5)
_TILE_ELEMENTS = 1 << 15  # logits of a tile: with their masses they stay in a core's own cache
_LANES = 16  # sums that are added up side by side


# --- exponential and logarithm ---------------------------------------------------------------------------------------


def exp(value: Any) -> Any:
    """The exponential of a number that is not above 0 by more than rounding."""


def _exp_single(value: Any) -> Any:
    # e^x = 2^n e^r with |r| <= ln(2) / 2. Adding 1.5 * 2^23 rounds x / ln(2) to n and leaves n in the lowest bits.
    # ln(2) comes in two parts, the first with few bits. The polynomial is that of expf in Cephes, good to 2e-7.
    shifted = np.float32(value * np.float32(1.44269504) + np.float32(12582912.0))
    whole = np.float32(shifted - np.float32(12582912.0))
    rest = np.float32(np.float32(value - whole * np.float32(0.693359375)) + whole * np.float32(2.12194440e-4))
    power = np.float32(1.9875691500e-4) * rest + np.float32(1.3981999507e-3)
    power = power * rest + np.float32(8.3334519073e-3)
    power = power * rest + np.float32(4.1665795894e-2)
    power = power * rest + np.float32(1.6666665459e-1)
    power = power * rest + np.float32(5.0000001201e-1)
    power = power * (rest * rest) + (rest + np.float32(1.0))
    scale = np.uint32(np.uint32(reinterpret(shifted) - np.uint32(0x4B400000 - 127)) << np.uint32(23))
    return np.float32(0.0) if value <= np.float32(-87.0) else np.float32(power * reinterpret(scale))


def _exp_double(value: Any) -> Any:
    return math.exp(value)


@overload(exp)
def _(value: Any) -> Any:
    return _exp_single if value == types.float32 else _exp_double


def log(value: Any) -> Any:
    """The logarithm of a positive number, no subnormal."""


def _log_single(value: Any) -> Any:
    # x = 2^n m with m from sqrt(1/2) to sqrt(2), and ln(m) = 2 artanh(s) with s = (m - 1) / (m + 1), |s| < 0.172.
    bits = np.uint32(reinterpret(value) - np.uint32(0x3F3504F3))
    exponent = np.float32(np.int32(bits) >> 23)
    mantissa = reinterpret(np.uint32(np.uint32(bits & np.uint32(0x007FFFFF)) + np.uint32(0x3F3504F3)))
    ratio = np.float32((mantissa - np.float32(1.0)) / (mantissa + np.float32(1.0)))
    square = np.float32(ratio * ratio)
    series = np.float32(0.11111111) * square + np.float32(0.14285715)
    series = series * square + np.float32(0.2)
    series = series * square + np.float32(0.33333334)
    series = np.float32(2.0) * ratio * (series * square + np.float32(1.0))
    return np.float32(series + exponent * np.float32(0.6931472))


def _log_double(value: Any) -> Any:
    return math.log(value)


@overload(log)
def _(value: Any) -> Any:
    return _log_single if value == types.float32 else _log_double


# --- lines of any kind -----------------------------------------------------------------------------------------------


class _Plane(NamedTuple):
    """A tensor ``(B, C, rows, width)``."""

    memory: Any  # its bytes
    kind: int
    strides: Any  # in elements


class _Room(NamedTuple):
    """A line on its way to memory: the same bytes as each kind of element."""

    bytes: Any
    float32: Any
    float16: Any
    bfloat16: Any
    float64: Any


@intrinsic
def _element(typing_context: Any, memory: Any, place: Any, like: Any) -> Any:
    """The element of the type of ``like`` at a place of some bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(memory)(context, builder, arguments[0]).data
        pointer = builder.bitcast(data, context.get_data_type(like).as_pointer())
        return builder.load(builder.gep(pointer, [arguments[1]]), align=like.bitwidth // 8)

    return like(memory, types.uintp, like), generate


@intrinsic
def _put(typing_context: Any, memory: Any, place: Any, value: Any) -> Any:
    """Stores an element at a place of some bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(memory)(context, builder, arguments[0]).data
        pointer = builder.bitcast(data, context.get_data_type(value).as_pointer())
        builder.store(arguments[2], builder.gep(pointer, [arguments[1]]), align=value.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(memory, types.uintp, value), generate


@jit
def _load_kind(memory: Any, like: Any, start: Any, stride: Any, line: Any, begin: Any, count: Any) -> None:
    if stride == unsigned(1):
        for n in range(count):
            line[begin + n] = widen(_element(memory, start + n, like))
    else:
        for n in range(count):
            line[begin + n] = widen(_element(memory, start + n * stride, like))


@jit
def _load(plane: Any, sample: Any, label: Any, row: Any, column: Any, line: Any, begin: Any, count: Any) -> None:
    """Copies pixels of one class to a line of numbers."""
    memory, kind, strides = plane
    start = unsigned(sample * strides[0] + label * strides[1] + row * strides[2] + column * strides[3])
    stride = unsigned(strides[3])
    if kind == _FLOAT32:
        _load_kind(memory, np.float32(0), start, stride, line, begin, count)
    elif kind == _FLOAT16:
        _load_kind(memory, np.int16(0), start, stride, line, begin, count)
    elif kind == _BFLOAT16:
        _load_kind(memory, np.uint16(0), start, stride, line, begin, count)
    else:
        _load_kind(memory, np.float64(0), start, stride, line, begin, count)


@jit
def _store_kind(
    plane: Any, start: Any, values: Any, line: Any, begin: Any, count: Any, room: Any, lanes: Any, phase: Any
) -> None:
    memory, _, strides = plane
    for n in range(count):
        values[n] = narrow(line[begin + n], values)
    if strides[3] == 1:
        size = unsigned(values.itemsize)
        write(memory, start * size, room, count * size, lanes, phase)
    else:
        for n in range(count):
            _put(memory, start + n * unsigned(strides[3]), values[n])


@jit
def _store(
    plane: Any,
    sample: Any,
    label: Any,
    row: Any,
    column: Any,
    line: Any,
    begin: Any,
    count: Any,
    room: Any,
    lanes: Any,
    phase: Any,
) -> None:
    """Copies a line of numbers to the pixels of one class, whole cache lines past the caches if ``lanes`` is not 0."""
    _, kind, strides = plane
    start = unsigned(sample * strides[0] + label * strides[1] + row * strides[2] + column * strides[3])
    if kind == _FLOAT32:
        _store_kind(plane, start, room.float32, line, begin, count, room.bytes, lanes, phase)
    elif kind == _FLOAT16:
        _store_kind(plane, start, room.float16, line, begin, count, room.bytes, lanes, phase)
    elif kind == _BFLOAT16:
        _store_kind(plane, start, room.bfloat16, line, begin, count, room.bytes, lanes, phase)
    else:
        _store_kind(plane, start, room.float64, line, begin, count, room.bytes, lanes, phase)


def _plane(tensor: Tensor) -> _Plane:
    return _Plane(flat(tensor).view(np.uint8), _KINDS.index(tensor.dtype), tuple(tensor.stride()))


def _room(tile: int) -> _Room:
    memory = np.empty(8 * tile, np.uint8)
    return _Room(memory, *(memory.view(dtype) for dtype in (np.float32, np.int16, np.uint16, np.float64)))


# --- lines of numbers ------------------------------------------------------------------------------------------------


@jit
def log_sum_exp(logits: Any, num_classes: Any, pitch: Any, count: Any, largest: Any, total: Any, lse: Any) -> None:
    """``lse[:count]`` of lines of logits, ``pitch`` apart; ``largest`` and ``total`` are lines to work with."""
    zero = lse.dtype.type(0)
    for n in range(count):
        largest[n], total[n] = logits[n], zero
    for label in range(unsigned(1), num_classes):
        line = label * pitch
        for n in range(count):
            logit = logits[line + n]
            largest[n] = logit if logit > largest[n] else largest[n]
    for n in range(count):
        # Infinity less infinity is not a number.
        largest[n] = zero if largest[n] == -np.inf else largest[n]
    for label in range(num_classes):
        line = label * pitch
        for n in range(count):
            total[n] += exp(logits[line + n] - largest[n])
    for n in range(count):
        lse[n] = largest[n] + log(total[n]) if total[n] > zero else largest[n] + (total[n] - np.inf)


@jit
def add_loss(
    loss: Any, total: Any, lse: Any, logits: Any, line: Any, masses: Any, mass_line: Any, weight: Any, count: Any
) -> None:
    """Adds the loss of one class and its weighted mass."""
    zero = lse.dtype.type(0)
    for n in range(count):
        mass = weight * masses[mass_line + n]
        loss[n] += mass * (lse[n] - logits[line + n]) if mass > zero else zero
        total[n] += mass


@jit
def subtract_masses(values: Any, line: Any, scale: Any, masses: Any, mass_line: Any, weight: Any, count: Any) -> None:
    """Takes what is labelled from the gradient of one class."""
    for n in range(count):
        values[line + n] -= scale[n] * (weight * masses[mass_line + n])


@jit
def predict(logits: Any, line: Any, lse: Any, pull: Any, count: Any) -> None:
    """Turns the logits of one class into its probabilities times ``pull``."""
    for n in range(count):
        logits[line + n] = pull[n] * exp(logits[line + n] - lse[n])


@jit
def clear_unknown(values: Any, line: Any, total: Any, count: Any) -> None:
    """Zeros where there is no mass, whatever the logits are."""
    zero = values.dtype.type(0)
    for n in range(count):
        values[line + n] = values[line + n] if total[n] > zero else zero


# --- tiles -----------------------------------------------------------------------------------------------------------


class _Tiles(NamedTuple):
    """The pixels of a batch in tiles of some columns of a row."""

    rows: Any
    width: Any
    size: Any

    def number(self, batch: int) -> int:
        return int(batch * self.rows * -(-self.width // self.size))


class _Target(NamedTuple):
    """A soft label: the masses of all classes, or of some entries for each pixel."""

    mass: Any  # plane (B, entries, rows, width)
    index: Any  # plane (B, entries, rows, width): their classes; of kind -1 where there is an entry for each class
    entries: Any


@jit
def _place(tile: Any, tiles: Any) -> Any:
    """Sample, row, first column and number of pixels of a tile."""
    rows, width, size = tiles
    in_row = (width + size - 1) // size
    column = tile % in_row * size
    return tile // in_row // rows, tile // in_row % rows, column, unsigned(min(size, width - column))


@jit
def _load_logits(plane: Any, num_classes: Any, place: Any, lines: Any, pitch: Any) -> None:
    sample, row, column, count = place
    for label in range(num_classes):
        _load(plane, sample, label, row, column, lines, unsigned(label) * pitch, count)


@jit
def _load_target(target: Any, num_classes: Any, place: Any, lines: Any, pitch: Any, line: Any) -> None:
    """The masses of all classes; ``line`` is one to work with."""
    mass, (memory, kind, strides), entries = target
    sample, row, column, count = place
    if kind < 0:
        _load_logits(mass, num_classes, place, lines, pitch)
        return
    lines[:] = 0
    for entry in range(entries):
        _load(mass, sample, entry, row, column, line, unsigned(0), count)
        start = unsigned(sample * strides[0] + entry * strides[1] + row * strides[2] + column * strides[3])
        for n in range(count):
            where = start + n * unsigned(strides[3])
            if kind == _UINT8:
                label = np.int64(_element(memory, where, np.uint8(0)))
            else:
                label = np.int64(_element(memory, where, np.int16(0)))
            if 0 <= label < num_classes:
                lines[unsigned(label) * pitch + n] += line[n]


@jit
def _cross_entropy_tiles(
    loss: Any,
    mass: Any,
    lse: Any,
    logits: Any,
    target: Any,
    weights: Any,
    num_classes: Any,
    tiles: Any,
    first: int,
    end: int,
) -> None:
    size = unsigned(tiles[2])
    pitch, classes = size + unsigned(_LANES), unsigned(num_classes)
    lines, masses = np.empty(classes * pitch, loss.dtype), np.empty(classes * pitch, loss.dtype)
    largest, total, sums = np.empty(size, loss.dtype), np.empty(size, loss.dtype), np.empty(size, loss.dtype)
    losses, known = np.empty(size, loss.dtype), np.empty(size, loss.dtype)
    for tile in range(first, end):
        place = _place(tile, tiles)
        sample, row, column, count = place
        _load_logits(logits, num_classes, place, lines, pitch)
        _load_target(target, num_classes, place, masses, pitch, largest)
        log_sum_exp(lines, classes, pitch, count, largest, total, sums)
        losses[:] = 0
        known[:] = 0
        for label in range(classes):
            line = label * pitch
            add_loss(losses, known, sums, lines, line, masses, line, weights[label], count)
        start = unsigned((sample * tiles[0] + row) * tiles[1] + column)
        for n in range(count):
            loss[start + n], mass[start + n], lse[start + n] = losses[n], known[n], sums[n]


@jit
def _cross_entropy_gradient_tiles(
    out: Any,
    grad: Any,
    logits: Any,
    target: Any,
    weights: Any,
    mass: Any,
    lse: Any,
    num_classes: Any,
    tiles: Any,
    room: Any,
    lanes: Any,
    phase: Any,
    first: int,
    end: int,
) -> None:
    size = unsigned(tiles[2])
    pitch, classes = size + unsigned(_LANES), unsigned(num_classes)
    lines, masses = np.empty(classes * pitch, lse.dtype), np.empty(classes * pitch, lse.dtype)
    scale, pull = np.empty(size, lse.dtype), np.empty(size, lse.dtype)
    known, sums = np.empty(size, lse.dtype), np.empty(size, lse.dtype)
    for tile in range(first, end):
        place = _place(tile, tiles)
        sample, row, column, count = place
        _load_logits(logits, num_classes, place, lines, pitch)
        _load_target(target, num_classes, place, masses, pitch, pull)
        _load(grad, sample, 0, row, column, scale, unsigned(0), count)
        start = unsigned((sample * tiles[0] + row) * tiles[1] + column)
        for n in range(count):
            known[n], sums[n] = mass[start + n], lse[start + n]
            pull[n] = scale[n] * known[n]
        for label in range(classes):
            line = label * pitch
            predict(lines, line, sums, pull, count)
            subtract_masses(lines, line, scale, masses, line, weights[label], count)
            clear_unknown(lines, line, known, count)
            _store(out, sample, label, row, column, lines, line, count, room, lanes, phase)
    fence()


@jit
def _total(line: Any, begin: Any, count: Any) -> Any:
    """The sum of a line, in `_LANES` sums side by side."""
    lanes = np.zeros(_LANES, line.dtype)
    whole = count // unsigned(_LANES) * unsigned(_LANES)
    for n in range(unsigned(0), whole, unsigned(_LANES)):
        for lane in range(unsigned(_LANES)):
            lanes[lane] += line[begin + n + lane]
    result = 0.0
    for lane in range(_LANES):
        result += lanes[lane]
    for n in range(whole, count):
        result += line[begin + n]
    return result


@jit
def _overlap_tiles(
    sums: Any, mass: Any, lse: Any, logits: Any, target: Any, num_classes: Any, tiles: Any, first: int, end: int
) -> None:
    """Sums of each tile: (tiles, C, 3)."""
    size = unsigned(tiles[2])
    pitch, classes = size + unsigned(_LANES), unsigned(num_classes)
    lines, masses = np.empty(classes * pitch, lse.dtype), np.empty(classes * pitch, lse.dtype)
    largest, total, log_sums = np.empty(size, lse.dtype), np.empty(size, lse.dtype), np.empty(size, lse.dtype)
    known = np.empty(size, lse.dtype)
    for tile in range(first, end):
        place = _place(tile, tiles)
        sample, row, column, count = place
        _load_logits(logits, num_classes, place, lines, pitch)
        _load_target(target, num_classes, place, masses, pitch, largest)
        log_sum_exp(lines, classes, pitch, count, largest, total, log_sums)
        known[:] = 0
        for label in range(classes):
            for n in range(count):
                known[n] += masses[label * pitch + n]
        start = unsigned((sample * tiles[0] + row) * tiles[1] + column)
        for n in range(count):
            mass[start + n], lse[start + n] = known[n], log_sums[n]
        for label in range(classes):
            line = label * pitch
            predict(lines, line, log_sums, known, count)
            clear_unknown(lines, line, known, count)
            for n in range(count):
                largest[n] = abs(lines[line + n] - masses[line + n])
            place_of_sums = (unsigned(tile) * classes + label) * unsigned(3)
            sums[place_of_sums] = _total(lines, line, count)
            sums[place_of_sums + unsigned(1)] = _total(masses, line, count)
            sums[place_of_sums + unsigned(2)] = _total(largest, unsigned(0), count)


@jit
def _overlap_gradient_tiles(
    out: Any,
    grad: Any,
    logits: Any,
    target: Any,
    mass: Any,
    lse: Any,
    num_classes: Any,
    tiles: Any,
    room: Any,
    lanes: Any,
    phase: Any,
    first: int,
    end: int,
) -> None:
    size = unsigned(tiles[2])
    pitch, classes = size + unsigned(_LANES), unsigned(num_classes)
    lines, masses = np.empty(classes * pitch, lse.dtype), np.empty(classes * pitch, lse.dtype)
    known, sums = np.empty(size, lse.dtype), np.empty(size, lse.dtype)
    mean, value = np.empty(size, lse.dtype), np.empty(size, lse.dtype)
    zero = lse.dtype.type(0)
    for tile in range(first, end):
        place = _place(tile, tiles)
        sample, row, column, count = place
        _load_logits(logits, num_classes, place, lines, pitch)
        _load_target(target, num_classes, place, masses, pitch, value)
        start = unsigned((sample * tiles[0] + row) * tiles[1] + column)
        for n in range(count):
            known[n], sums[n] = mass[start + n], lse[start + n]
        mean[:] = 0
        # What each class pulls, then how much more than the mean of what all pull: the gradient of the softmax.
        for label in range(classes):
            line, of_class = label * pitch, (unsigned(sample) * classes + label) * unsigned(3)
            slope, slope_of_distance = grad[of_class], grad[of_class + unsigned(2)]
            predict(lines, line, sums, known, count)
            for n in range(count):
                distance = lines[line + n] - masses[line + n]
                step = slope_of_distance if distance > zero else -slope_of_distance if distance < zero else zero
                masses[line + n] = slope + step
                mean[n] += lines[line + n] * (slope + step)
        for n in range(count):
            mean[n] = mean[n] / known[n] if known[n] > zero else zero
        for label in range(classes):
            line = label * pitch
            for n in range(count):
                lines[line + n] *= masses[line + n] - mean[n]
            clear_unknown(lines, line, known, count)
            _store(out, sample, label, row, column, lines, line, count, room, lanes, phase)
    fence()


# --- straight from a label map ---------------------------------------------------------------------------------------


class _LossTarget(NamedTuple):
    """Takes the loss of each row of a soft label, which nothing else keeps."""

    outputs: Any  # loss, mass and logsumexp, (B, h, w) flat
    logits: Any
    weights: Any
    shape: Any  # (C, h, w)
    lines: Any  # scratch: the logits of a tile
    scratch: Any  # five lines

    def deliver(self: Any, masses: Any, sample: Any, row: Any, column: Any, count: Any) -> None:
        (loss, mass, lse), logits, weights, (num_classes, height, width), lines, scratch = self
        largest, total, sums, losses, known = scratch
        classes, pitch = unsigned(num_classes), unsigned(largest.size + _LANES)
        _load_logits(logits, num_classes, (sample, row, column, count), lines, pitch)
        log_sum_exp(lines, classes, pitch, count, largest, total, sums)
        losses[:] = 0
        known[:] = 0
        for label in range(classes):
            line = label * unsigned(masses.pitch)
            if masses.present[line]:
                add_loss(losses, known, sums, lines, label * pitch, masses.lines, line, weights[label], count)
        start = unsigned((sample * height + row) * width) + column
        for n in range(count):
            loss[start + n], mass[start + n], lse[start + n] = losses[n], known[n], sums[n]


class _GradientTarget(NamedTuple):
    """Writes the gradient of that loss."""

    out: Any
    lanes: Any
    phase: Any
    grad: Any
    logits: Any
    weights: Any
    mass: Any  # (B, h, w) flat
    lse: Any
    shape: Any  # (C, h, w)
    room: Any  # scratch from here on
    lines: Any  # the logits of a tile
    scratch: Any  # four lines

    def deliver(self: Any, masses: Any, sample: Any, row: Any, column: Any, count: Any) -> None:
        out, lanes, phase, grad, logits, weights, mass, lse, (num_classes, height, width), room, lines, scratch = self
        scale, pull, known, sums = scratch
        classes, pitch = unsigned(num_classes), unsigned(scale.size + _LANES)
        _load_logits(logits, num_classes, (sample, row, column, count), lines, pitch)
        _load(grad, sample, 0, row, column, scale, unsigned(0), count)
        start = unsigned((sample * height + row) * width) + column
        for n in range(count):
            known[n], sums[n] = mass[start + n], lse[start + n]
            pull[n] = scale[n] * known[n]
        for label in range(classes):
            line, mass_line = label * pitch, label * unsigned(masses.pitch)
            predict(lines, line, sums, pull, count)
            if masses.present[mass_line]:
                subtract_masses(lines, line, scale, masses.lines, mass_line, weights[label], count)
            clear_unknown(lines, line, known, count)
            _store(out, sample, label, row, column, lines, line, count, room, lanes, phase)


# --- launchers -------------------------------------------------------------------------------------------------------


def _tiles_of(logits: Tensor, *others: Tensor) -> _Tiles:
    """Rows are one long row where all tensors allow."""
    _, num_classes, height, width = logits.shape
    size = max(4 * _LANES, _TILE_ELEMENTS // num_classes // _LANES * _LANES)
    if all(tensor.stride(-2) == width * tensor.stride(-1) for tensor in (logits, *others)):
        height, width = 1, height * width
    return _Tiles(height, width, min(size, -(-width // _LANES) * _LANES))


def _target(soft: Tensor, index: Tensor | None) -> _Target:
    nothing = _Plane(np.empty(0, np.uint8), -1, (0, 0, 0, 0))
    return _Target(_plane(soft), nothing if index is None else _plane(index), soft.shape[1])


def _weights(weight: Tensor | None, num_classes: int, dtype: Any) -> Any:
    return np.ones(num_classes, dtype) if weight is None else weight.detach().numpy().astype(dtype)


def _others(soft: Tensor, index: Tensor | None) -> list[Tensor]:
    return [soft] if index is None else [soft, index]


def cross_entropy(
    loss: Tensor, mass: Tensor, lse: Tensor, logits: Tensor, soft: Tensor, index: Tensor | None, weight: Tensor | None
) -> None:
    """Per pixel ``(B, h, w)``: the loss of logits ``(B, C, h, w)``, the weighted mass and the logsumexp."""
    num_classes = logits.shape[1]
    tiles = _tiles_of(logits, *_others(soft, index))
    outputs = [flat(tensor) for tensor in (loss, mass, lse)]
    arguments = (
        *outputs,
        _plane(logits),
        _target(soft, index),
        _weights(weight, num_classes, outputs[0].dtype),
        num_classes,
        tiles,
    )
    job = functools.partial(_cross_entropy_tiles, *arguments)
    pool.run(job, tiles.number(len(logits)), 8 * logits.numel())


def cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """The gradient ``out (B, C, h, w)`` of the logits, given that of the loss, ``grad (B, h, w)``."""
    num_classes = logits.shape[1]
    grad = grad[:, None]
    tiles = _tiles_of(logits, out, grad, *_others(soft, index))
    sums = flat(lse)
    arguments = (
        _plane(out),
        _plane(grad),
        _plane(logits),
        _target(soft, index),
        _weights(weight, num_classes, sums.dtype),
        flat(mass),
        sums,
        num_classes,
        tiles,
    )
    lines = _byte_lines(out)

    def job(first: int, end: int) -> None:
        _cross_entropy_gradient_tiles(*arguments, _room(tiles.size), *lines, first, end)

    pool.run(job, tiles.number(len(logits)), 8 * logits.numel())


def _byte_lines(out: Tensor) -> tuple[Any, Any]:
    """`streaming` of a tensor's bytes."""
    lanes, phase = streaming(out)
    return lanes * unsigned(out.itemsize), phase * unsigned(out.itemsize)


def overlap(sums: Tensor, mass: Tensor, lse: Tensor, logits: Tensor, soft: Tensor, index: Tensor | None) -> None:
    """``sums (B, C, 3)`` over the pixels: of the predicted mass, of the labelled, and of how far they are apart."""
    batch, num_classes = logits.shape[:2]
    tiles = _tiles_of(logits, *_others(soft, index))
    number = tiles.number(batch)
    parts = np.empty(number * num_classes * 3)
    arguments = (parts, flat(mass), flat(lse), _plane(logits), _target(soft, index), num_classes, tiles)
    pool.run(functools.partial(_overlap_tiles, *arguments), number, 8 * logits.numel())
    sums.copy_(torch.from_numpy(parts.reshape(batch, -1, num_classes, 3).sum(1)))


def overlap_backward(
    out: Tensor, grad: Tensor, logits: Tensor, soft: Tensor, index: Tensor | None, mass: Tensor, lse: Tensor
) -> None:
    """The gradient ``out (B, C, h, w)`` of the logits, given that of the sums, ``grad (B, C, 3)``."""
    tiles = _tiles_of(logits, out, *_others(soft, index))
    sums = flat(lse)
    arguments = (
        _plane(out),
        flat(grad.contiguous()),
        _plane(logits),
        _target(soft, index),
        flat(mass),
        sums,
        logits.shape[1],
        tiles,
    )
    lines = _byte_lines(out)

    def job(first: int, end: int) -> None:
        _overlap_gradient_tiles(*arguments, _room(tiles.size), *lines, first, end)

    pool.run(job, tiles.number(len(logits)), 8 * logits.numel())


def _scratch(number: int, tile: int, dtype: Any) -> tuple[Any, ...]:
    return tuple(np.empty(tile, dtype) for _ in range(number))


def _label_tile(num_classes: int) -> int:
    return min(max(CHUNK, _TILE_ELEMENTS // num_classes // CHUNK * CHUNK), TILE)


def area_cross_entropy(
    loss: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: str,
    weight: Tensor | None,
) -> None:
    """`cross_entropy` with the soft label of a label map ``(B, H, W)``, a row of it at a time."""
    batch, num_classes, *size = logits.shape
    tile = _label_tile(num_classes)
    outputs = flat(loss), flat(mass), flat(lse)
    dtype = outputs[0].dtype
    rows = label_rows(labels, boxes, size, num_classes, ignore_index, filter, dtype, tile)
    arguments = (outputs, _plane(logits), _weights(weight, num_classes, dtype), (num_classes, *size))

    def job(first: int, end: int) -> None:
        lines = np.empty(num_classes * (tile + _LANES), dtype)
        rows(_LossTarget(*arguments, lines, _scratch(5, tile, dtype)), first, end)

    pool.run(job, batch * size[0], 8 * logits.numel() + labels.numel())


def area_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: str,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """The gradient ``out (B, C, h, w)`` of the logits, given that of the loss, ``grad (B, h, w)``."""
    batch, num_classes, *size = logits.shape
    tile = _label_tile(num_classes)
    sums = flat(lse)
    dtype = sums.dtype
    rows = label_rows(labels, boxes, size, num_classes, ignore_index, filter, dtype, tile)
    arguments = (
        _plane(out),
        *_byte_lines(out),
        _plane(grad[:, None]),
        _plane(logits),
        _weights(weight, num_classes, dtype),
        flat(mass),
        sums,
        (num_classes, *size),
    )

    def job(first: int, end: int) -> None:
        lines = np.empty(num_classes * (tile + _LANES), dtype)
        rows(_GradientTarget(*arguments, _room(tile), lines, _scratch(4, tile, dtype)), first, end)

    pool.run(job, batch * size[0], 8 * logits.numel() + labels.numel())


# --- values ----------------------------------------------------------------------------------------------------------


@jit
def _tiles_in_range(soft: Any, entries: Any, limit: Any, tiles: Any, first: int, end: int) -> bool:
    size = unsigned(tiles[2])
    line, total = np.empty(size), np.empty(size)
    for tile in range(first, end):
        sample, row, column, count = _place(tile, tiles)
        total[:] = 0
        bad = np.uint8(0)
        for entry in range(entries):
            _load(soft, sample, entry, row, column, line, unsigned(0), count)
            for n in range(count):
                bad = np.uint8(bad | np.uint8(not line[n] >= 0))
                total[n] += line[n]
        for n in range(count):
            bad = np.uint8(bad | np.uint8(total[n] > limit))
        if bad:
            return False
    return True


def soft_in_range(soft: Tensor, limit: float) -> bool:
    """Whether all entries of a soft label ``(B, C, h, w)`` are at least 0 and sum up to no more than the limit."""
    tiles = _tiles_of(soft)
    arguments = (_plane(soft), soft.shape[1], limit, tiles)
    return all(pool.run(functools.partial(_tiles_in_range, *arguments), tiles.number(len(soft)), soft.numel()))
