"""The losses: tiles of pixels, whose classes are met a few at a time, sixteen pixels side by side.

Numbers that are ready, float32 one after the other (float64 if one of the tensors is that), are read where they lie.
Whatever else tensors hold and however they lie in memory, their lines are copied first, so that there is one loop over
numbers for all: a tensor is bytes here, with its strides and the kind of its elements.

A tile always holds the same pixels and its sums are added up in one order: the number of threads changes no bit.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

from tritonsoft.backends.numba.elements import (
    LINE_BYTES,
    borrowed,
    fence,
    flat,
    narrow,
    prefetch,
    reinterpret,
    streaming,
    sums_dtype,
    widen,
    write,
)
from tritonsoft.backends.numba.labels import TILE, label_rows
from tritonsoft.backends.numba.threads import jit, pool, unsigned
from tritonsoft.backends.numba.vectors import LANES, all_of, convert, exp, load, spread, store, stream, sum_of, where
from tritonsoft.geometry import MASS_TOLERANCE, Classes, Filter, Measure, Reduction

_KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int16)
_FLOAT32, _FLOAT16, _BFLOAT16, _FLOAT64, _UINT8 = range(5)
_SIZES = (4, 2, 2, 8, 1, 2)
_TILE_ELEMENTS = 1 << 17  # logits of a tile: they and their masses stay in a core's own cache, beside those of the next
_LONGEST_TILE = 1 << 10  # pixels of a tile: a page of each class
_GROUP = 6  # classes that are met at once: an exponential for each, and one for all
_CLASSES_AHEAD = 4  # how far the logits are asked for before they are copied


# --- logarithm -------------------------------------------------------------------------------------------------------


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
    numbers: Any  # the same memory as numbers to compute with, where `direct`
    direct: bool


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
def _start(plane: Any, place: Any, label: Any) -> Any:
    """Where the pixels of a place begin in a class."""
    sample, row, column, _ = place
    strides = plane.strides
    return unsigned(sample * strides[0] + label * strides[1] + row * strides[2] + column * strides[3])


@jit
def _load_kind(memory: Any, like: Any, start: Any, stride: Any, line: Any, begin: Any, count: Any) -> None:
    if stride == unsigned(1):
        for n in range(count):
            line[begin + n] = widen(_element(memory, start + n, like))
    else:
        for n in range(count):
            line[begin + n] = widen(_element(memory, start + n * stride, like))


@jit
def _load(plane: Any, place: Any, label: Any, line: Any, begin: Any) -> None:
    """Copies pixels of one class, of a floating type, to a line of numbers."""
    memory, kind, strides = plane.memory, plane.kind, plane.strides
    start, count = _start(plane, place, label), place[3]
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
def _store_kind(plane: Any, start: Any, values: Any, line: Any, count: Any, room: Any, lanes: Any, phase: Any) -> None:
    memory, strides = plane.memory, plane.strides
    for n in range(count):
        values[n] = narrow(line[n], values)
    if strides[3] == 1:
        size = unsigned(values.itemsize)
        write(memory, start * size, room, count * size, lanes, phase)
    else:
        for n in range(count):
            _put(memory, start + n * unsigned(strides[3]), values[n])


@jit
def _store(plane: Any, place: Any, label: Any, line: Any, room: Any, lanes: Any, phase: Any) -> None:
    """Copies a line of numbers to the pixels of one class, whole cache lines past the caches if ``lanes`` is not 0."""
    kind, start, count = plane.kind, _start(plane, place, label), place[3]
    if kind == _FLOAT32:
        _store_kind(plane, start, room.float32, line, count, room.bytes, lanes, phase)
    elif kind == _FLOAT16:
        _store_kind(plane, start, room.float16, line, count, room.bytes, lanes, phase)
    elif kind == _BFLOAT16:
        _store_kind(plane, start, room.bfloat16, line, count, room.bytes, lanes, phase)
    else:
        _store_kind(plane, start, room.float64, line, count, room.bytes, lanes, phase)


def _plane(tensor: Tensor, dtype: Any) -> _Plane:
    """``dtype`` is that of the numbers to compute with."""
    memory = flat(tensor)
    direct = memory.dtype == dtype and tensor.stride(3) == 1
    numbers = memory if direct else np.empty(0, dtype)
    return _Plane(memory.view(np.uint8), _KINDS.index(tensor.dtype), tuple(tensor.stride()), numbers, direct)


def _room(tile: int) -> _Room:
    memory = np.empty(8 * tile, np.uint8)
    return _Room(memory, *(memory.view(dtype) for dtype in (np.float32, np.int16, np.uint16, np.float64)))


class _Lines(NamedTuple):
    """A line of numbers for each of some classes, whole vectors long."""

    numbers: Any
    first: Any  # where the first line begins
    pitch: Any  # from each to the next
    ahead: Any  # how far beyond a number is the one that memory is asked for along with it


@jit
def _lines(plane: Any, place: Any, label: Any, number: Any, scratch: Any, pitch: Any, ahead: Any) -> Any:
    """The lines of some classes from ``label`` on: in the tensor itself if its numbers are ready, else copies."""
    count = place[3]
    if plane.direct and count % unsigned(LANES) == 0:
        return _Lines(plane.numbers, _start(plane, place, label), unsigned(plane.strides[1]), unsigned(ahead))
    for k in range(number):
        line = k * pitch
        _load(plane, place, label + k, scratch, line)
        for n in range(line + count, line + _whole(count)):
            scratch[n] = 0
    return _Lines(scratch, unsigned(0), pitch, unsigned(0))


@jit
def _whole(count: Any) -> Any:
    """Up to whole vectors."""
    return (count + unsigned(LANES - 1)) // unsigned(LANES) * unsigned(LANES)


_SCRATCH, _STORED, _STREAMED = range(3)


@jit
def _way_out(plane: Any, place: Any, label: Any, scratch: Any, lanes: Any, phase: Any) -> Any:
    """Where the line of a class is to be written, and how; what is in ``scratch`` goes on by `_store`."""
    start = _start(plane, place, label)
    if plane.direct and place[3] % unsigned(LANES) == 0:
        if lanes == 0:
            return plane.numbers, start, _STORED
        if (start * unsigned(plane.numbers.itemsize) - phase) % unsigned(LINE_BYTES) == 0:
            return plane.numbers, start, _STREAMED
    return scratch, unsigned(0), _SCRATCH


# --- lines of numbers ------------------------------------------------------------------------------------------------


# The logsumexp and the loss are found while the classes go by, a few at a time, relative to the largest logit so far:
# all that is summed is positive, so that nothing cancels whatever the size of the logits.


class _Online(NamedTuple):
    """Lines with a number for each pixel."""

    largest: Any  # logit so far
    total: Any  # of exponentials relative to it
    distance: Any  # of the logits from it, times their masses
    mass: Any


@jit
def begin(online: Any) -> None:
    """Before the first class."""
    largest, total, distance, mass = online
    largest[:] = np.finfo(largest.dtype).min  # finite: infinity less infinity is not a number
    total[:] = 0
    distance[:] = 0
    mass[:] = 0


@jit
def meet(
    online: Any, logits: Any, masses: Any, weights: Any, first: Any, number: Any, known: Any, num_known: Any, count: Any
) -> Any:
    """Some classes from ``first`` on, of which ``known[:num_known]`` have masses: the least of these, 0 at most."""
    largest, total, distance, mass = online
    lowest = np.finfo(largest.dtype).min
    least = spread(largest.dtype.type(0), LANES)
    for n in range(unsigned(0), count, unsigned(LANES)):
        before = load(largest, n, LANES)
        larger = before
        for k in range(number):
            start = logits.first + k * logits.pitch + n
            logit = load(logits.numbers, start, LANES)
            larger = where(logit > larger, logit, larger)
            prefetch(logits.numbers, start + logits.ahead)
        fall = before - larger
        fall = where(fall > lowest, fall, lowest)  # times a mass of 0 it is 0
        exponentials = load(total, n, LANES) * exp(fall)
        for k in range(number):
            logit = load(logits.numbers, logits.first + k * logits.pitch + n, LANES)
            exponentials = exponentials + exp(logit - larger)
        labelled = load(mass, n, LANES)
        apart = load(distance, n, LANES) - labelled * fall
        for j in range(num_known):
            k = known[j]
            start = masses.first + k * masses.pitch + n
            share = weights[first + k] * convert(load(masses.numbers, start, LANES), mass)
            prefetch(masses.numbers, start + masses.ahead)
            logit = load(logits.numbers, logits.first + k * logits.pitch + n, LANES)
            apart = apart + where(share > 0.0, share * (larger - logit), 0.0)
            least = where(share < least, share, least)
            labelled = labelled + not_negative(share)
        store(largest, n, larger)
        store(total, n, exponentials)
        store(distance, n, apart)
        store(mass, n, labelled)
    return least


@jit
def not_negative(share: Any) -> Any:
    """A mass below 0 has been rounded, and is none; NaN stays."""
    return where(share < 0.0, 0.0, share)


@jit
def finish(online: Any, count: Any) -> None:
    """After the last class: turns ``largest`` into the logsumexp, ``distance`` into the loss."""
    largest, total, distance, mass = online
    zero = largest.dtype.type(0)
    for n in range(count):
        logarithm = log(total[n]) if total[n] > zero else total[n] - np.inf
        largest[n] += logarithm
        distance[n] = distance[n] + mass[n] * logarithm if mass[n] > zero else zero


class _Pixels(NamedTuple):
    """Lines of what a gradient knows of each pixel."""

    scale: Any  # the gradient of its loss
    pull: Any  # that, times the pixel's mass
    mass: Any
    lse: Any


@jit
def write_gradient(
    out: Any, start: Any, way: Any, pixels: Any, logits: Any, masses: Any, is_known: Any, weight: Any, count: Any
) -> None:
    """The gradient of one class: its probability times the pull, less what is labelled if that ``is_known``."""
    scale, pull, mass, lse = pixels
    for n in range(unsigned(0), count, unsigned(LANES)):
        logit = load(logits.numbers, logits.first + n, LANES)
        prefetch(logits.numbers, logits.first + n + logits.ahead)
        value = load(pull, n, LANES) * exp(logit - load(lse, n, LANES))
        value = where(load(mass, n, LANES) > 0.0, value, 0.0)
        if is_known:
            share = weight * convert(load(masses.numbers, masses.first + n, LANES), mass)
            prefetch(masses.numbers, masses.first + n + masses.ahead)
            # Where nothing is known, the scale may be NaN.
            value = value - where(share > 0.0, load(scale, n, LANES) * share, 0.0)
        _leave(out, start + n, value, way)


@jit
def _leave(out: Any, place: Any, value: Any, way: Any) -> None:
    if way == _STREAMED:
        stream(out, place, value)
    else:
        store(out, place, value)


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


class _Scratch(NamedTuple):
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
def _place(tile: Any, tiles: Any) -> Any:
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
        _load(mass, place, entry, line, unsigned(0))
        start = _start(index, place, entry)
        for n in range(place[3]):
            element = start + n * unsigned(strides[3])
            if kind == _UINT8:
                label = np.int64(_element(memory, element, np.uint8(0)))
            else:
                label = np.int64(_element(memory, element, np.int16(0)))
            if 0 <= label < num_classes:
                lines[unsigned(label) * pitch + n] += zero if line[n] < zero else line[n]


@jit
def _prepare(target: Any, num_classes: Any, place: Any, scratch: Any) -> None:
    """Before the masses of a tile are asked for."""
    if target.index.kind >= 0:
        _load_sparse(target, num_classes, place, scratch.masses, scratch.pitch, scratch.line)


@jit
def _masses_of(target: Any, place: Any, label: Any, number: Any, scratch: Any, ahead: Any) -> Any:
    """The masses of some classes from ``label`` on, a line for each."""
    if target.index.kind < 0:
        return _lines(target.mass, place, label, number, scratch.masses, scratch.pitch, ahead)
    return _Lines(scratch.masses, label * scratch.pitch, scratch.pitch, unsigned(0))


@jit
def _meet_all(
    logits: Any, target: Any, weights: Any, num_classes: Any, place: Any, tolerance: Any, scratch: Any
) -> bool:
    """Meets all classes of the pixels of a tile, a group at a time: whether masses are in range, within the tolerance.

    An infinite tolerance asks for no check.
    """
    online, pitch, count = scratch.online, scratch.pitch, place[3]
    _prepare(target, num_classes, place, scratch)
    begin(online)
    in_range = True
    limit = online.mass.dtype.type(1) + tolerance
    classes, group, tile = unsigned(num_classes), unsigned(_GROUP), unsigned(scratch.tile)
    for start in range(unsigned(0), classes, group):
        number = min(group, classes - start)
        lines = _lines(logits, place, start, number, scratch.logits, pitch, tile)
        masses = _masses_of(target, place, start, number, scratch, tile)
        least = meet(online, lines, masses, weights, start, number, scratch.every, number, _whole(count))
        in_range &= all_of(least >= -tolerance)
    finish(online, count)
    for n in range(unsigned(0), _whole(count), unsigned(LANES)):
        in_range &= all_of(load(online.mass, n, LANES) <= limit)  # which NaN is not
    return in_range or tolerance == np.inf


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
        place = _place(tile, tiles)
        sample, row, column, count = place
        if not _meet_all(logits, target, weights, num_classes, place, tolerance, scratch):
            return False
        start = unsigned((sample * tiles[0] + row) * tiles[1]) + column
        for n in range(count):
            mass[start + n], lse[start + n] = online.mass[n], online.largest[n]
        _put_losses(loss, sums, unsigned(tile), online, start, count)
    return True


@jit
def _put_losses(loss: Any, sums: Any, place_of_sums: Any, online: Any, start: Any, count: Any) -> None:
    """Writes the losses of pixels, or adds them and their masses to a place of the sums."""
    if sums.size == 0:
        for n in range(count):
            loss[start + n] = online.distance[n]
        return
    for n in range(count, _whole(count)):
        online.distance[n] = 0
        online.mass[n] = 0
    total = total_mass = spread(online.mass.dtype.type(0), LANES)
    for n in range(unsigned(0), _whole(count), unsigned(LANES)):
        total = total + load(online.distance, n, LANES)
        total_mass = total_mass + load(online.mass, n, LANES)
    sums[unsigned(2) * place_of_sums] += sum_of(total)
    sums[unsigned(2) * place_of_sums + unsigned(1)] += sum_of(total_mass)


@jit
def _add_up(value: Any, total: Any, sums: Any, is_mean: Any) -> None:
    """The loss of all pixels, and their mass."""
    loss = mass = 0.0
    for n in range(unsigned(0), unsigned(sums.size), unsigned(2)):
        loss += sums[n]
        mass += sums[n + unsigned(1)]
    value[0] = loss / mass if is_mean and mass > 0 else loss
    total[0] = mass


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
        place = _place(tile, tiles)
        sample, row, column, count = place
        _prepare(target, num_classes, place, scratch)
        _load(grad, place, unsigned(0), pixels.scale, unsigned(0))
        _know(pixels, divisor, mass, lse, unsigned((sample * tiles[0] + row) * tiles[1]) + column, count)
        for label in range(unsigned(num_classes)):
            lines = _lines(logits, place, label, one, line, pitch, tile_size)
            masses = _masses_of(target, place, label, one, scratch, tile_size)
            values, start, way = _way_out(out, place, label, line, lanes, phase)
            write_gradient(values, start, way, pixels, lines, masses, True, weights[label], _whole(count))
            if way == _SCRATCH:
                _store(out, place, label, line, scratch.room, lanes, phase)
    fence()


@jit
def _know(pixels: Any, divisor: Any, mass: Any, lse: Any, start: Any, count: Any) -> None:
    """What is known of some pixels; their ``scale`` is there already, but for the divisor.

    Up to whole vectors, older pixels follow: a line with such an end is copied out without it.
    """
    for n in range(count):
        pixels.mass[n], pixels.lse[n] = mass[start + n], lse[start + n]
        pixels.scale[n] /= divisor
        pixels.pull[n] = pixels.scale[n] * pixels.mass[n]


@jit
def _overlap_tiles(
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
    """Sums of each tile: (tiles, C, 3)."""
    logits, target, scratch = borrowed(logits), borrowed(target), borrowed(scratch)
    online, pitch, one = scratch.online, scratch.pitch, unsigned(1)
    for tile in range(first, end):
        place = _place(tile, tiles)
        sample, row, column, count = place
        if not _meet_all(logits, target, weights, num_classes, place, tolerance, scratch):
            return False
        start = unsigned((sample * tiles[0] + row) * tiles[1]) + column
        for n in range(count):
            mass[start + n], lse[start + n] = online.mass[n], online.largest[n]
        for n in range(count, _whole(count)):
            online.mass[n] = 0
        for label in range(unsigned(num_classes)):
            lines = _lines(logits, place, label, one, scratch.logits, pitch, unsigned(0))
            masses = _masses_of(target, place, label, one, scratch, unsigned(0))
            predicted = labelled = apart = spread(lse.dtype.type(0), LANES)
            for n in range(unsigned(0), _whole(count), unsigned(LANES)):
                probability = _predict(lines, n, online.largest, online.mass)
                share = not_negative(load(masses.numbers, masses.first + n, LANES))
                difference = probability - share
                predicted, labelled = predicted + probability, labelled + share
                apart = apart + where(difference < 0.0, 0.0 - difference, difference)
            place_of_sums = (unsigned(tile) * unsigned(num_classes) + label) * unsigned(3)
            sums[place_of_sums] = sum_of(predicted)
            sums[place_of_sums + unsigned(1)] = sum_of(labelled)
            sums[place_of_sums + unsigned(2)] = sum_of(apart)
    return True


@jit
def _compare(value: Any, slopes: Any, parts: Any, weights: Any, num_tiles: Any, options: Any) -> None:
    """`tritonsoft.backends.reference.overlap_loss` of the sums of each tile, (tiles, C, 3), so many tiles together."""
    is_dice, only_present, is_none, is_mean = options
    num_classes = weights.size
    loss = total = 0.0
    for group in range(slopes.size // (2 * num_classes)):
        for label in range(num_classes):
            predicted = labelled = distance = 0.0
            for tile in range(group * num_tiles, (group + 1) * num_tiles):
                place = (tile * num_classes + label) * 3
                predicted += parts[place]
                labelled += parts[place + 1]
                distance += parts[place + 2]
            of_class, by_mass, by_distance = 0.0, 0.0, 0.0
            factor: Any = np.float64(weights[label])
            if labelled > 0:
                denominator = predicted + labelled + (0.0 if is_dice else distance)
                of_class = (distance if is_dice else 2.0 * distance) / denominator
                by_mass, by_distance = -of_class / denominator, (1.0 if is_dice else 2.0 - of_class) / denominator
            elif only_present:
                factor = 0.0
            else:  # a constant
                of_class = 1.0 if predicted + labelled + (0.0 if is_dice else distance) > 0 else 0.0
            of_both = group * num_classes + label
            slopes[2 * of_both], slopes[2 * of_both + 1] = by_mass * factor, by_distance * factor
            if is_none:
                value[of_both] = of_class * factor
            loss += of_class * factor
            total += factor
    if is_none:
        return
    divisor = total if is_mean and total > 0 else 1.0
    value[0] = loss / divisor
    for n in range(slopes.size):
        slopes[n] /= divisor


@jit
def _predict(logits: Any, n: Any, lse: Any, mass: Any) -> Any:
    """The masses predicted for a class: its probabilities times the masses of the pixels."""
    known = load(mass, n, LANES)
    probability = exp(load(logits.numbers, logits.first + n, LANES) - load(lse, n, LANES))
    return where(known > 0.0, known * probability, 0.0)


@jit
def _overlap_gradient_tiles(
    out: Any,
    slopes_of: Any,
    logits: Any,
    target: Any,
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
    out, logits, target, scratch = borrowed(out), borrowed(logits), borrowed(target), borrowed(scratch)
    pixels, pitch, tile_size, one = scratch.pixels, scratch.pitch, unsigned(scratch.tile), unsigned(1)
    mean, predicted, slopes, line = pixels.pull, scratch.logits, scratch.slopes, scratch.line
    classes = unsigned(num_classes)
    for tile in range(first, end):
        place = _place(tile, tiles)
        sample, row, column, count = place
        _prepare(target, num_classes, place, scratch)
        _know(pixels, lse.dtype.type(1), mass, lse, unsigned((sample * tiles[0] + row) * tiles[1]) + column, count)
        mean[:] = 0
        # What each class pulls, then how much more than the mean of what all pull: the gradient of the softmax.
        for label in range(classes):
            lines = _lines(logits, place, label, one, line, pitch, tile_size)
            masses = _masses_of(target, place, label, one, scratch, tile_size)
            of_class = ((unsigned(sample) * classes + label) * unsigned(2)) % unsigned(slopes_of.size)  # of all samples
            slope, slope_of_distance = slopes_of[of_class], spread(slopes_of[of_class + unsigned(1)], LANES)
            for n in range(unsigned(0), _whole(count), unsigned(LANES)):
                prefetch(lines.numbers, lines.first + n + lines.ahead)
                prefetch(masses.numbers, masses.first + n + masses.ahead)
                probability = _predict(lines, n, pixels.lse, pixels.mass)
                difference = probability - not_negative(load(masses.numbers, masses.first + n, LANES))
                step = where(difference < 0.0, 0.0 - slope_of_distance, 0.0)
                step = slope + where(difference > 0.0, slope_of_distance, step)
                store(predicted, label * pitch + n, probability)
                store(slopes, label * pitch + n, step)
                store(mean, n, load(mean, n, LANES) + probability * step)
        for n in range(_whole(count)):
            mean[n] = mean[n] / pixels.mass[n] if pixels.mass[n] > 0 else lse.dtype.type(0)
        for label in range(classes):
            values, start, way = _way_out(out, place, label, line, lanes, phase)
            for n in range(unsigned(0), _whole(count), unsigned(LANES)):
                probability, slope = load(predicted, label * pitch + n, LANES), load(slopes, label * pitch + n, LANES)
                _leave(values, start + n, probability * (slope - load(mean, n, LANES)), way)
            if way == _SCRATCH:
                _store(out, place, label, line, scratch.room, lanes, phase)
    fence()


# --- straight from a label map ---------------------------------------------------------------------------------------


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
        classes, group, online = unsigned(num_classes), unsigned(_GROUP), scratch.online
        pitch = unsigned(masses.pitch)
        place = sample, row, column, count
        begin(online)
        for start in range(unsigned(0), classes, group):
            number, num_present = min(group, classes - start), unsigned(0)
            for k in range(number):
                present[num_present] = k
                num_present += unsigned(masses.present[(start + k) * pitch])
            lines = _lines(logits, place, start, number, scratch.logits, scratch.pitch, unsigned(scratch.tile))
            shares = _Lines(masses.lines, start * pitch, pitch, unsigned(0))
            meet(online, lines, shares, weights, start, number, present, num_present, _whole(count))
        finish(online, count)
        start = unsigned((sample * height + row) * width) + column
        for n in range(count):
            mass[start + n], lse[start + n] = online.mass[n], online.largest[n]
        _put_losses(loss, sums, unsigned(sample * height + row), online, start, count)


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
        _load(grad, place, unsigned(0), pixels.scale, unsigned(0))
        _know(pixels, divisor, mass, lse, unsigned((sample * height + row) * width) + column, count)
        for label in range(unsigned(num_classes)):
            lines = _lines(logits, place, label, unsigned(1), line, scratch.pitch, unsigned(scratch.tile))
            shares, is_present = _Lines(masses.lines, label * pitch, pitch, unsigned(0)), masses.present[label * pitch]
            values, start, way = _way_out(out, place, label, line, lanes, phase)
            write_gradient(values, start, way, pixels, lines, shares, is_present, weights[label], _whole(count))
            if way == _SCRATCH:
                _store(out, place, label, line, scratch.room, lanes, phase)


# --- launchers -------------------------------------------------------------------------------------------------------


def _tiles_of(logits: Tensor, *others: Tensor) -> _Tiles:
    """Rows are one long row where all tensors allow."""
    _, num_classes, height, width = logits.shape
    if all(tensor.stride(-2) == width * tensor.stride(-1) for tensor in (logits, *others)):
        height, width = 1, height * width
    size = min(_LONGEST_TILE, max(4 * LANES, _TILE_ELEMENTS // num_classes // LANES * LANES))
    return _Tiles(height, width, min(size, -(-width // LANES) * LANES))


def _scratch(tile: int, num_classes: int, dtype: Any) -> _Scratch:
    """``num_classes``: as many lines for logits, masses and slopes."""
    pitch = tile + LANES
    logits, masses, slopes = np.zeros((3, num_classes * pitch), dtype)
    online, pixels = _Online(*np.zeros((4, tile), dtype)), _Pixels(*np.zeros((4, tile), dtype))
    line, every = np.zeros(pitch, dtype), np.arange(num_classes, dtype=np.uint64)
    return _Scratch(online, pixels, logits, masses, slopes, line, _room(tile), unsigned(pitch), tile, every)


def _target(soft: Tensor, index: Tensor | None, dtype: Any) -> _Target:
    nothing = _Plane(np.empty(0, np.uint8), -1, (0, 0, 0, 0), np.empty(0, dtype), False)
    return _Target(_plane(soft, dtype), nothing if index is None else _plane(index, dtype), soft.shape[1])


def _weights(weight: Tensor | None, num_classes: int, dtype: Any) -> Any:
    return np.ones(num_classes, dtype) if weight is None else flat(weight.double().contiguous()).astype(dtype)


def _others(soft: Tensor, index: Tensor | None) -> list[Tensor]:
    return [soft] if index is None else [soft, index]


def _lines_needed(num_classes: int, index: Tensor | None) -> int:
    """A sparse target is spread out over all classes; of a dense one, some are at work."""
    return min(num_classes, _GROUP) if index is None else num_classes


def _work(nanoseconds: float, logits: Tensor, index: Tensor | None) -> float:
    """For `pool.run`, where a logit takes so many; a sparse target is spread out before it is met."""
    return (nanoseconds if index is None else nanoseconds + 0.35) * logits.numel()


def _sums(value: Tensor, reduction: Reduction, number: int) -> Any:
    """Losses and masses of so many tiles or rows, 0; nothing where every pixel's loss is wanted."""
    return np.zeros(0 if reduction == "none" else 2 * number)


def _finish(value: Tensor, total: Tensor, sums: Any, reduction: Reduction) -> None:
    if reduction != "none":
        _add_up(flat(value), flat(total), sums, reduction == "mean")


def _divisor(total: Tensor | None, dtype: Any) -> Any:
    number = 1.0 if total is None else total.item()
    return dtype.type(number if number > 0 else 1.0)


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
    tiles = _tiles_of(logits, *_others(soft, index))
    number = tiles.number(batch)
    sums, outputs = _sums(value, reduction, number), (flat(mass), flat(lse))
    dtype = outputs[0].dtype
    arguments = (
        flat(value),
        sums,
        *outputs,
        _plane(logits, dtype),
        _target(soft, index, dtype),
        _weights(weight, num_classes, dtype),
        num_classes,
        tiles,
        dtype.type(math.inf if checked or not validate else MASS_TOLERANCE),
    )

    def job(first: int, end: int) -> bool:
        scratch = _scratch(tiles.size, _lines_needed(num_classes, index), dtype)
        in_range: bool = _cross_entropy_tiles(*arguments, scratch, first, end)
        return in_range

    in_range = all(pool.run(job, number, _work(0.65, logits, index)))
    _finish(value, total, sums, reduction)
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
    tiles = _tiles_of(logits, out, grad, *_others(soft, index))
    lse_memory = flat(lse.contiguous())
    dtype = lse_memory.dtype
    arguments = (
        _plane(out, dtype),
        _plane(grad, dtype),
        _divisor(total, dtype),
        _plane(logits, dtype),
        _target(soft, index, dtype),
        _weights(weight, num_classes, dtype),
        flat(mass.contiguous()),
        lse_memory,
        num_classes,
        tiles,
        *_byte_lines(out),
    )

    def job(first: int, end: int) -> None:
        scratch = _scratch(tiles.size, _lines_needed(num_classes, index), dtype)
        _cross_entropy_gradient_tiles(*arguments, scratch, first, end)

    pool.run(job, tiles.number(len(logits)), _work(0.65, logits, index))


def _byte_lines(out: Tensor) -> tuple[Any, Any]:
    """`streaming` of a tensor's bytes."""
    lanes, phase = streaming(out)
    return lanes * unsigned(out.itemsize), phase * unsigned(out.itemsize)


def overlap_loss(
    value: Tensor,
    slopes: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    measure: Measure,
    classes: Classes,
    reduction: Reduction,
    validate: bool,
) -> bool:
    """Writes the Dice or Jaccard loss and its slopes ``(S, C, 2)``; of each pixel the mass and the logsumexp."""
    checked = index is not None
    if checked and validate and not soft_in_range(soft, MASS_TOLERANCE):
        return False
    batch, num_classes = logits.shape[:2]
    tiles = _tiles_of(logits, *_others(soft, index))
    number = tiles.number(batch)
    parts = np.zeros(number * num_classes * 3)
    outputs = flat(mass), flat(lse)
    dtype = outputs[0].dtype
    arguments = (
        parts,
        *outputs,
        _plane(logits, dtype),
        _target(soft, index, dtype),
        _weights(None, num_classes, dtype),
        num_classes,
        tiles,
        dtype.type(math.inf if checked or not validate else MASS_TOLERANCE),
    )

    def job(first: int, end: int) -> bool:
        scratch = _scratch(tiles.size, _lines_needed(num_classes, index), dtype)
        in_range: bool = _overlap_tiles(*arguments, scratch, first, end)
        return in_range

    in_range = all(pool.run(job, number, _work(1.2, logits, index)))
    options = (measure == "dice", classes == "present", reduction == "none", reduction == "mean")
    _compare(flat(value), flat(slopes), parts, _weights(weight, num_classes, dtype), number // len(slopes), options)
    return in_range


def overlap_loss_backward(
    out: Tensor,
    grad: Tensor,
    slopes: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """Writes the gradient of the logits, given that of the values, ``grad (S, C)``."""
    num_classes = logits.shape[1]
    tiles = _tiles_of(logits, out, *_others(soft, index))
    lse_memory = flat(lse.contiguous())
    dtype = lse_memory.dtype
    arguments = (
        _plane(out, dtype),
        flat((grad[..., None] * slopes).contiguous()),
        _plane(logits, dtype),
        _target(soft, index, dtype),
        flat(mass.contiguous()),
        lse_memory,
        num_classes,
        tiles,
        *_byte_lines(out),
    )

    def job(first: int, end: int) -> None:
        _overlap_gradient_tiles(*arguments, _scratch(tiles.size, num_classes, dtype), first, end)

    pool.run(job, tiles.number(len(logits)), _work(1.2, logits, index))


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
    sums, outputs = _sums(value, reduction, batch * size[0]), (flat(mass), flat(lse))
    dtype = outputs[0].dtype
    rows, num_pixels = label_rows(labels, boxes, size, num_classes, ignore_index, filter, dtype, TILE)
    arguments = (
        flat(value),
        sums,
        *outputs,
        _plane(logits, dtype),
        _weights(weight, num_classes, dtype),
        (num_classes, *size),
    )

    def job(first: int, end: int) -> bool:
        present = np.empty(_GROUP + 1, np.uint64)
        return rows(_LossTarget(*arguments, _scratch(TILE, _GROUP, dtype), present), first, end)

    in_range = all(pool.run(job, batch * size[0], 0.65 * logits.numel() + 0.25 * num_pixels))
    _finish(value, total, sums, reduction)
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
        _plane(out, dtype),
        *_byte_lines(out),
        _plane(grad[:, None], dtype),
        _divisor(total, dtype),
        _plane(logits, dtype),
        _weights(weight, num_classes, dtype),
        flat(mass.contiguous()),
        lse_memory,
        (num_classes, *size),
    )

    def job(first: int, end: int) -> None:
        rows(_GradientTarget(*arguments, _scratch(TILE, 1, dtype)), first, end)

    pool.run(job, batch * size[0], 0.65 * logits.numel() + 0.25 * num_pixels)


# --- values ----------------------------------------------------------------------------------------------------------


@jit
def _tiles_in_range(
    soft: Any, entries: Any, tolerance: Any, tiles: Any, line: Any, total: Any, first: int, end: int
) -> bool:
    soft, line, total = borrowed(soft), borrowed(line), borrowed(total)
    zero, limit, tile_size = total.dtype.type(0), total.dtype.type(1) + tolerance, unsigned(tiles[2])
    for tile in range(first, end):
        place = _place(tile, tiles)
        total[:] = 0
        lowest = spread(zero, LANES)
        for entry in range(unsigned(entries)):
            shares = _lines(soft, place, entry, unsigned(1), line, tile_size, tile_size)
            for n in range(unsigned(0), _whole(place[3]), unsigned(LANES)):
                share = load(shares.numbers, shares.first + n, LANES)
                prefetch(shares.numbers, shares.first + n + shares.ahead)
                lowest = where(share < lowest, share, lowest)  # NaN is found by the total
                store(total, n, load(total, n, LANES) + not_negative(share))
        if not all_of(lowest >= -tolerance):
            return False
        for n in range(unsigned(0), _whole(place[3]), unsigned(LANES)):
            if not all_of(load(total, n, LANES) <= limit):
                return False
    return True


def soft_in_range(soft: Tensor, tolerance: float) -> bool:
    """`tritonsoft.backends.values.is_subdistribution`."""
    tiles, dtype = _tiles_of(soft), sums_dtype(soft)
    arguments: Any = (_plane(soft, dtype), soft.shape[1], dtype(tolerance), tiles)

    def job(first: int, end: int) -> bool:
        result: bool = _tiles_in_range(*arguments, *np.zeros((2, tiles.size), dtype), first, end)
        return result

    return all(pool.run(job, tiles.number(len(soft)), 0.35 * soft.numel()))
