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

from tritonsoft.cpu.elements import LINE_BYTES, fence, flat, narrow, prefetch, reinterpret, streaming, widen, write
from tritonsoft.cpu.labels import TILE, label_rows
from tritonsoft.cpu.threads import jit, pool, unsigned

_KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int16)
_FLOAT32, _FLOAT16, _BFLOAT16, _FLOAT64, _UINT8 = range(5)
_SIZES = (4, 2, 2, 8, 1, 2)
_TILE_ELEMENTS = 1 << 16  # logits of a tile that is read twice: with their masses they stay in a core's own cache
_LONG_TILE = 1 << 10  # pixels of a tile that is read once: a page of each class, and the lines at work in L1
_GROUP = 8  # classes that are met at once: an exponential for each, and one for all
_CLASSES_AHEAD = 4  # how far the logits are asked for before they are needed
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


@overload(exp, jit_options={"fastmath": {"contract"}})
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


@overload(log, jit_options={"fastmath": {"contract"}})
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
    if stride == unsigned(1):
        # Every class begins far from the last, where no hardware looks ahead.
        size = unsigned(_SIZES[kind])
        ahead = (start + unsigned(_CLASSES_AHEAD * strides[1])) * size
        for n in range(unsigned(0), count * size, unsigned(LINE_BYTES)):
            prefetch(memory, ahead + n)
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


# The logsumexp and the loss are found while the classes go by, a few at a time, relative to the largest logit so far:
# all that is summed is positive, so that nothing cancels whatever the size of the logits.


class _Online(NamedTuple):
    """Lines with a number for each pixel."""

    largest: Any  # logit so far
    larger: Any  # the largest of the next classes too
    total: Any  # of exponentials relative to it
    distance: Any  # of the logits from it, times their masses
    mass: Any


@jit
def begin(online: Any) -> None:
    """Before the first class."""
    largest, _, total, distance, mass = online
    largest[:] = np.finfo(largest.dtype).min  # finite: infinity less infinity is not a number
    total[:] = 0
    distance[:] = 0
    mass[:] = 0


@jit
def meet(online: Any, logits: Any, first: Any, pitch: Any, number: Any, count: Any) -> None:
    """Some classes: their lines of logits begin at ``first`` and are ``pitch`` apart."""
    largest, larger, total, distance, mass = online
    lowest = np.finfo(largest.dtype).min
    for n in range(count):
        larger[n] = largest[n]
    for label in range(number):
        line = first + label * pitch
        for n in range(count):
            logit = logits[line + n]
            larger[n] = logit if logit > larger[n] else larger[n]
    for n in range(count):
        fall = largest[n] - larger[n]
        fall = fall if fall > lowest else lowest  # times a mass of 0 it is 0
        total[n] *= exp(fall)
        distance[n] -= mass[n] * fall
        largest[n] = larger[n]
    for label in range(number):
        line = first + label * pitch
        for n in range(count):
            total[n] += exp(logits[line + n] - largest[n])


@jit
def add_masses(online: Any, logits: Any, line: Any, masses: Any, mass_line: Any, weight: Any, count: Any) -> None:
    """The weighted masses of one of the classes just met."""
    largest, _, _, distance, total_mass = online
    zero = largest.dtype.type(0)
    for n in range(count):
        mass = weight * masses[mass_line + n]
        distance[n] += mass * (largest[n] - logits[line + n]) if mass > zero else zero
        total_mass[n] += mass


@jit
def finish(online: Any, count: Any) -> None:
    """After the last class: turns ``largest`` into the logsumexp, ``distance`` into the loss."""
    largest, _, total, distance, mass = online
    zero = largest.dtype.type(0)
    for n in range(count):
        logarithm = log(total[n]) if total[n] > zero else total[n] - np.inf
        largest[n] += logarithm
        distance[n] = distance[n] + mass[n] * logarithm if mass[n] > zero else zero


@jit
def subtract_masses(values: Any, line: Any, scale: Any, masses: Any, mass_line: Any, weight: Any, count: Any) -> None:
    """Takes what is labelled from the gradient of one class."""
    zero = values.dtype.type(0)
    for n in range(count):
        mass = weight * masses[mass_line + n]
        values[line + n] -= scale[n] * mass if mass > zero else zero  # where nothing is known, the scale may be NaN


@jit
def predict(logits: Any, line: Any, lse: Any, pull: Any, known: Any, count: Any) -> None:
    """Turns the logits of one class into its probabilities times ``pull``, or 0 where nothing is known."""
    zero = logits.dtype.type(0)
    for n in range(count):
        value = pull[n] * exp(logits[line + n] - lse[n])
        logits[line + n] = value if known[n] > zero else zero


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
def _load_sparse(target: Any, num_classes: Any, place: Any, lines: Any, pitch: Any, line: Any) -> None:
    """The masses of all classes of a sparse target; ``line`` is one to work with."""
    mass, (memory, kind, strides), entries = target
    sample, row, column, count = place
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
def _load_target(target: Any, num_classes: Any, place: Any, lines: Any, pitch: Any, line: Any) -> None:
    """The masses of all classes; ``line`` is one to work with."""
    if target.index.kind < 0:
        _load_logits(target.mass, num_classes, place, lines, pitch)
    else:
        _load_sparse(target, num_classes, place, lines, pitch, line)


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
    online: Any,
    first: int,
    end: int,
) -> None:
    pitch, classes, group = unsigned(tiles[2] + _LANES), unsigned(num_classes), unsigned(_GROUP)
    is_dense = target.index.kind < 0
    lines, line = np.empty(group * pitch, loss.dtype), np.empty(pitch, loss.dtype)
    masses = np.empty((group if is_dense else classes) * pitch, loss.dtype)
    for tile in range(first, end):
        place = _place(tile, tiles)
        sample, row, column, count = place
        if not is_dense:
            _load_sparse(target, num_classes, place, masses, pitch, line)
        begin(online)
        for start in range(unsigned(0), classes, group):
            number = min(group, classes - start)
            for k in range(number):
                _load(logits, sample, start + k, row, column, lines, k * pitch, count)
                if is_dense:
                    _load(target.mass, sample, start + k, row, column, masses, k * pitch, count)
            meet(online, lines, unsigned(0), pitch, number, count)
            for k in range(number):
                mass_line = (k if is_dense else start + k) * pitch
                add_masses(online, lines, k * pitch, masses, mass_line, weights[start + k], count)
        finish(online, count)
        start = unsigned((sample * tiles[0] + row) * tiles[1] + column)
        for n in range(count):
            loss[start + n], mass[start + n], lse[start + n] = online.distance[n], online.mass[n], online.largest[n]


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
    is_dense = target.index.kind < 0
    line, masses = np.empty(pitch, lse.dtype), np.empty((unsigned(1) if is_dense else classes) * pitch, lse.dtype)
    scale, pull = np.empty(size, lse.dtype), np.empty(size, lse.dtype)
    known, sums = np.empty(size, lse.dtype), np.empty(size, lse.dtype)
    begin = unsigned(0)
    for tile in range(first, end):
        place = _place(tile, tiles)
        sample, row, column, count = place
        if not is_dense:
            _load_sparse(target, num_classes, place, masses, pitch, line)
        _load(grad, sample, 0, row, column, scale, begin, count)
        start = unsigned((sample * tiles[0] + row) * tiles[1] + column)
        for n in range(count):
            known[n], sums[n] = mass[start + n], lse[start + n]
            pull[n] = scale[n] * known[n]
        for label in range(classes):
            _load(logits, sample, label, row, column, line, begin, count)
            if is_dense:
                _load(target.mass, sample, label, row, column, masses, begin, count)
            predict(line, begin, sums, pull, known, count)
            subtract_masses(line, begin, scale, masses, begin if is_dense else label * pitch, weights[label], count)
            _store(out, sample, label, row, column, line, begin, count, room, lanes, phase)
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
    sums: Any,
    mass: Any,
    lse: Any,
    logits: Any,
    target: Any,
    num_classes: Any,
    tiles: Any,
    online: Any,
    first: int,
    end: int,
) -> None:
    """Sums of each tile: (tiles, C, 3)."""
    size = unsigned(tiles[2])
    pitch, classes = size + unsigned(_LANES), unsigned(num_classes)
    lines, masses = np.empty(classes * pitch, lse.dtype), np.empty(classes * pitch, lse.dtype)
    known, work = online.mass, online.larger
    for tile in range(first, end):
        place = _place(tile, tiles)
        sample, row, column, count = place
        _load_logits(logits, num_classes, place, lines, pitch)
        _load_target(target, num_classes, place, masses, pitch, work)
        begin(online)
        meet(online, lines, unsigned(0), pitch, classes, count)
        finish(online, count)
        for label in range(classes):
            for n in range(count):
                known[n] += masses[label * pitch + n]
        start = unsigned((sample * tiles[0] + row) * tiles[1] + column)
        for n in range(count):
            mass[start + n], lse[start + n] = known[n], online.largest[n]
        for label in range(classes):
            line = label * pitch
            predict(lines, line, online.largest, known, known, count)
            for n in range(count):
                work[n] = abs(lines[line + n] - masses[line + n])
            place_of_sums = (unsigned(tile) * classes + label) * unsigned(3)
            sums[place_of_sums] = _total(lines, line, count)
            sums[place_of_sums + unsigned(1)] = _total(masses, line, count)
            sums[place_of_sums + unsigned(2)] = _total(work, unsigned(0), count)


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
            predict(lines, line, sums, known, known, count)
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
            _store(out, sample, label, row, column, lines, line, count, room, lanes, phase)
    fence()


# --- straight from a label map ---------------------------------------------------------------------------------------


class _LossTarget(NamedTuple):
    """Takes the loss of each row of a soft label, which nothing else keeps."""

    outputs: Any  # loss, mass and logsumexp, (B, h, w) flat
    logits: Any
    weights: Any
    shape: Any  # (C, h, w)
    lines: Any  # scratch: the logits of a group of classes
    online: Any

    def deliver(self: Any, masses: Any, sample: Any, row: Any, column: Any, count: Any) -> None:
        (loss, mass, lse), logits, weights, (num_classes, height, width), lines, online = self
        classes, group, pitch = unsigned(num_classes), unsigned(_GROUP), unsigned(online.largest.size + _LANES)
        begin(online)
        for start in range(unsigned(0), classes, group):
            number = min(group, classes - start)
            for k in range(number):
                _load(logits, sample, start + k, row, column, lines, k * pitch, count)
            meet(online, lines, unsigned(0), pitch, number, count)
            for k in range(number):
                line = (start + k) * unsigned(masses.pitch)
                if masses.present[line]:
                    add_masses(online, lines, k * pitch, masses.lines, line, weights[start + k], count)
        finish(online, count)
        start = unsigned((sample * height + row) * width) + column
        for n in range(count):
            loss[start + n], mass[start + n], lse[start + n] = online.distance[n], online.mass[n], online.largest[n]


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
    scratch: Any  # five lines

    def deliver(self: Any, masses: Any, sample: Any, row: Any, column: Any, count: Any) -> None:
        out, lanes, phase, grad, logits, weights, mass, lse, (num_classes, height, width), room, scratch = self
        scale, pull, known, sums, line = scratch
        begin = unsigned(0)
        _load(grad, sample, 0, row, column, scale, begin, count)
        start = unsigned((sample * height + row) * width) + column
        for n in range(count):
            known[n], sums[n] = mass[start + n], lse[start + n]
            pull[n] = scale[n] * known[n]
        for label in range(unsigned(num_classes)):
            mass_line = label * unsigned(masses.pitch)
            _load(logits, sample, label, row, column, line, begin, count)
            predict(line, begin, sums, pull, known, count)
            if masses.present[mass_line]:
                subtract_masses(line, begin, scale, masses.lines, mass_line, weights[label], count)
            _store(out, sample, label, row, column, line, begin, count, room, lanes, phase)


# --- launchers -------------------------------------------------------------------------------------------------------


def _tiles_of(logits: Tensor, *others: Tensor, once: bool = False) -> _Tiles:
    """Rows are one long row where all tensors allow; long tiles where they are read only once."""
    _, num_classes, height, width = logits.shape
    size = _LONG_TILE if once else max(4 * _LANES, _TILE_ELEMENTS // num_classes // _LANES * _LANES)
    if all(tensor.stride(-2) == width * tensor.stride(-1) for tensor in (logits, *others)):
        height, width = 1, height * width
    return _Tiles(height, width, min(size, -(-width // _LANES) * _LANES))


def _online(size: int, dtype: Any) -> _Online:
    return _Online(*_scratch(5, size, dtype))


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
    tiles = _tiles_of(logits, *_others(soft, index), once=index is None)
    outputs = [flat(tensor) for tensor in (loss, mass, lse)]
    arguments = (
        *outputs,
        _plane(logits),
        _target(soft, index),
        _weights(weight, num_classes, outputs[0].dtype),
        num_classes,
        tiles,
    )

    def job(first: int, end: int) -> None:
        _cross_entropy_tiles(*arguments, _online(tiles.size, outputs[0].dtype), first, end)

    pool.run(job, tiles.number(len(logits)), 2 * logits.numel())


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
    tiles = _tiles_of(logits, out, grad, *_others(soft, index), once=index is None)
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

    pool.run(job, tiles.number(len(logits)), 2 * logits.numel())


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
    outputs = flat(mass), flat(lse)
    arguments = (parts, *outputs, _plane(logits), _target(soft, index), num_classes, tiles)

    def job(first: int, end: int) -> None:
        _overlap_tiles(*arguments, _online(tiles.size, outputs[0].dtype), first, end)

    pool.run(job, number, 2 * logits.numel())
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

    pool.run(job, tiles.number(len(logits)), 2 * logits.numel())


def _scratch(number: int, tile: int, dtype: Any) -> tuple[Any, ...]:
    return tuple(np.empty(tile, dtype) for _ in range(number))


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
    outputs = flat(loss), flat(mass), flat(lse)
    dtype = outputs[0].dtype
    rows = label_rows(labels, boxes, size, num_classes, ignore_index, filter, dtype, TILE)
    arguments = (outputs, _plane(logits), _weights(weight, num_classes, dtype), (num_classes, *size))

    def job(first: int, end: int) -> None:
        lines = np.empty(_GROUP * (TILE + _LANES), dtype)
        rows(_LossTarget(*arguments, lines, _online(TILE, dtype)), first, end)

    pool.run(job, batch * size[0], 2 * logits.numel() + labels.numel())


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
    sums = flat(lse)
    dtype = sums.dtype
    rows = label_rows(labels, boxes, size, num_classes, ignore_index, filter, dtype, TILE)
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
        rows(_GradientTarget(*arguments, _room(TILE), _scratch(5, TILE, dtype)), first, end)

    pool.run(job, batch * size[0], 2 * logits.numel() + labels.numel())


# --- values ----------------------------------------------------------------------------------------------------------


@jit
def _tiles_in_range(soft: Any, entries: Any, limit: Any, tiles: Any, first: int, end: int) -> bool:
    size = unsigned(tiles[2])
    line, total = np.empty(size, limit.dtype), np.empty(size, limit.dtype)
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
            bad = np.uint8(bad | np.uint8(total[n] > limit[0]))
        if bad:
            return False
    return True


def soft_in_range(soft: Tensor, limit: float) -> bool:
    """Whether all entries of a soft label ``(B, C, h, w)`` are at least 0 and sum up to no more than the limit."""
    tiles = _tiles_of(soft, once=True)
    dtype = np.float64 if soft.dtype == torch.float64 else np.float32
    arguments = (_plane(soft), soft.shape[1], np.full(1, limit, dtype), tiles)
    return all(pool.run(functools.partial(_tiles_in_range, *arguments), tiles.number(len(soft)), soft.numel()))
