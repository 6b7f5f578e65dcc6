"""Tensors of any element type and strides as lines of numbers, one class of neighbouring pixels each, and back.

Numbers that are ready, float32 one after the other (float64 if one of the tensors is that), are read where they lie.
Whatever else tensors hold and however they lie in memory, their lines are copied first, so that there is one loop over
numbers for all: a tensor is bytes here, with its strides and the kind of its elements.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from tritonsoft.backends.numba.elements import LINE_BYTES, flat, narrow, prefetch, streaming, widen, write
from tritonsoft.backends.numba.threads import jit, unsigned
from tritonsoft.backends.numba.vectors import LANES

_KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int16)
_FLOAT32, _FLOAT16, _BFLOAT16, _FLOAT64, UINT8 = range(5)
_SIZES = (4, 2, 2, 8, 1, 2)
_CLASSES_AHEAD = 4  # how far the logits are asked for before they are copied


class Plane(NamedTuple):
    """A tensor ``(B, C, rows, width)``."""

    memory: Any  # its bytes
    kind: int
    strides: Any  # in elements
    numbers: Any  # the same memory as numbers to compute with, where `direct`
    direct: bool


class Room(NamedTuple):
    """A line on its way to memory: the same bytes as each kind of element."""

    bytes: Any
    float32: Any
    float16: Any
    bfloat16: Any
    float64: Any


@intrinsic
def load_element(typing_context: Any, memory: Any, place: Any, like: Any) -> Any:
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
def start_of(plane: Any, place: Any, label: Any) -> Any:
    """Where the pixels of a place begin in a class."""
    sample, row, column, _ = place
    strides = plane.strides
    return unsigned(sample * strides[0] + label * strides[1] + row * strides[2] + column * strides[3])


@jit
def _load_kind(memory: Any, like: Any, start: Any, stride: Any, line: Any, begin: Any, count: Any) -> None:
    if stride == unsigned(1):
        for n in range(count):
            line[begin + n] = widen(load_element(memory, start + n, like))
    else:
        for n in range(count):
            line[begin + n] = widen(load_element(memory, start + n * stride, like))


@jit
def load_line(plane: Any, place: Any, label: Any, line: Any, begin: Any) -> None:
    """Copies pixels of one class, of a floating type, to a line of numbers."""
    memory, kind, strides = plane.memory, plane.kind, plane.strides
    start, count = start_of(plane, place, label), place[3]
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
def store_line(plane: Any, place: Any, label: Any, line: Any, room: Any, lanes: Any, phase: Any) -> None:
    """Copies a line of numbers to the pixels of one class, whole cache lines past the caches if ``lanes`` is not 0."""
    kind, start, count = plane.kind, start_of(plane, place, label), place[3]
    if kind == _FLOAT32:
        _store_kind(plane, start, room.float32, line, count, room.bytes, lanes, phase)
    elif kind == _FLOAT16:
        _store_kind(plane, start, room.float16, line, count, room.bytes, lanes, phase)
    elif kind == _BFLOAT16:
        _store_kind(plane, start, room.bfloat16, line, count, room.bytes, lanes, phase)
    else:
        _store_kind(plane, start, room.float64, line, count, room.bytes, lanes, phase)


def plane_of(tensor: Tensor, dtype: Any) -> Plane:
    """``dtype`` is that of the numbers to compute with."""
    memory = flat(tensor)
    direct = memory.dtype == dtype and tensor.stride(3) == 1
    numbers = memory if direct else np.empty(0, dtype)
    return Plane(memory.view(np.uint8), _KINDS.index(tensor.dtype), tuple(tensor.stride()), numbers, direct)


def room_of(tile: int) -> Room:
    memory = np.empty(8 * tile, np.uint8)
    return Room(memory, *(memory.view(dtype) for dtype in (np.float32, np.int16, np.uint16, np.float64)))


class Lines(NamedTuple):
    """A line of numbers for each of some classes, whole vectors long."""

    numbers: Any
    first: Any  # where the first line begins
    pitch: Any  # from each to the next
    ahead: Any  # how far beyond a number is the one that memory is asked for along with it


@jit
def lines_of(plane: Any, place: Any, label: Any, number: Any, scratch: Any, pitch: Any, ahead: Any) -> Any:
    """The lines of some classes from ``label`` on: in the tensor itself if its numbers are ready, else copies."""
    count = place[3]
    if plane.direct and count % unsigned(LANES) == 0:
        return Lines(plane.numbers, start_of(plane, place, label), unsigned(plane.strides[1]), unsigned(ahead))
    for k in range(number):
        line = k * pitch
        load_line(plane, place, label + k, scratch, line)
        for n in range(line + count, line + whole(count)):
            scratch[n] = 0
    return Lines(scratch, unsigned(0), pitch, unsigned(0))


@jit
def whole(count: Any) -> Any:
    """Up to whole vectors."""
    return (count + unsigned(LANES - 1)) // unsigned(LANES) * unsigned(LANES)


SCRATCH, STORED, STREAMED = range(3)


@jit
def way_out(plane: Any, place: Any, label: Any, scratch: Any, lanes: Any, phase: Any) -> Any:
    """Where the line of a class is to be written, and how; what is in ``scratch`` goes on by `store_line`."""
    start = start_of(plane, place, label)
    if plane.direct and place[3] % unsigned(LANES) == 0:
        if lanes == 0:
            return plane.numbers, start, STORED
        if (start * unsigned(plane.numbers.itemsize) - phase) % unsigned(LINE_BYTES) == 0:
            return plane.numbers, start, STREAMED
    return scratch, unsigned(0), SCRATCH


def byte_lines(out: Tensor) -> tuple[Any, Any]:
    """`streaming` of a tensor's bytes."""
    lanes, phase = streaming(out)
    return lanes * unsigned(out.itemsize), phase * unsigned(out.itemsize)
