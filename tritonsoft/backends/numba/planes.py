"""Tensors of any element type and strides as lines of numbers, one class of neighbouring pixels each, and back.

Contiguous rows in the compute dtype (float32, or float64 if one of the tensors is that) are read and written in place.
Rows of any other element type or stride are converted in a buffer first, so that each loop over classes is compiled
once for a compute dtype: tensors are bytes with strides and an element type that is known at run time only.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from tritonsoft.backends.numba.elements import (
    LINE_BYTES,
    Array,
    array_at,
    downcast,
    prefetch,
    streaming,
    upcast,
    write_line,
)
from tritonsoft.backends.numba.threads import jit, unsigned
from tritonsoft.backends.numba.vectors import LANES

_FLOAT32, _FLOAT16, _BFLOAT16, _FLOAT64, UINT8, _INT16 = range(6)
_ELEMENT_TYPES = {
    torch.float32: _FLOAT32,
    torch.float16: _FLOAT16,
    torch.bfloat16: _BFLOAT16,
    torch.float64: _FLOAT64,
    torch.uint8: UINT8,
    torch.int16: _INT16,
}
_SIZES = (4, 2, 2, 8, 1, 2)
_PREFETCHED_CLASSES = 4  # how many classes ahead of the one that is copied are prefetched


Pixels = tuple[int, int, int, int]  # neighbours in a row: their sample, row, first column and number
TensorArguments = tuple[int, int, int, int, int, int, int]  # of a compiled function, for a tensor

NO_TENSOR: TensorArguments = (0, -1, 0, 0, 0, 0, 0)


class StridedTensor(NamedTuple):
    """A tensor ``(B, C, rows, width)``."""

    memory: Array  # the memory that the tensor spans, as bytes
    element_type: int  # one of the numbers above
    strides: Any  # in elements
    values: Array  # the same memory in the compute dtype, where `in_place`
    in_place: bool  # whether rows are contiguous and in the compute dtype


class StagingBuffer(NamedTuple):
    """A line that has been converted and not yet copied out: the same memory as each element type."""

    bytes: Array
    float32: Array
    float16: Array
    bfloat16: Array
    float64: Array


@intrinsic
def load_element(typing_context: Any, memory: Any, index: Any, like: Any) -> Any:
    """``memory[index]``, of bytes as elements of the type of ``like``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(memory)(context, builder, arguments[0]).data
        pointer = builder.bitcast(data, context.get_data_type(like).as_pointer())
        return builder.load(builder.gep(pointer, [arguments[1]]), align=like.bitwidth // 8)

    return like(memory, types.uintp, like), generate


@intrinsic
def store_element(typing_context: Any, memory: Any, index: Any, value: Any) -> Any:
    """``memory[index] = value``, of bytes as elements of the type of ``value``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(memory)(context, builder, arguments[0]).data
        pointer = builder.bitcast(data, context.get_data_type(value).as_pointer())
        builder.store(arguments[2], builder.gep(pointer, [arguments[1]]), align=value.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(memory, types.uintp, value), generate


@jit
def offset_of(tensor: StridedTensor, pixels: Pixels, label: int) -> Any:
    """The offset of the first of the pixels in the plane of a class, in elements."""
    sample, row, column, _ = pixels
    strides = tensor.strides
    return unsigned(sample * strides[0] + label * strides[1] + row * strides[2] + column * strides[3])


@jit
def _load_line_as(memory: Array, like: Any, start: int, stride: int, line: Array, begin: int, count: int) -> None:
    if stride == unsigned(1):
        for n in range(count):
            line[begin + n] = upcast(load_element(memory, start + n, like))
    else:
        for n in range(count):
            line[begin + n] = upcast(load_element(memory, start + n * stride, like))


@jit
def load_line(tensor: StridedTensor, pixels: Pixels, label: int, line: Array, begin: int) -> None:
    """Copies the pixels' entries of one class, of any floating type, to a line in the compute dtype."""
    memory, element_type, strides = tensor.memory, tensor.element_type, tensor.strides
    start, count = offset_of(tensor, pixels, label), pixels[3]
    stride = unsigned(strides[3])
    if stride == unsigned(1):
        # Planes of classes are too far apart for the hardware's prefetcher.
        size = unsigned(_SIZES[element_type])
        prefetch_distance = (start + unsigned(_PREFETCHED_CLASSES * strides[1])) * size
        for n in range(unsigned(0), count * size, unsigned(LINE_BYTES)):
            prefetch(memory, prefetch_distance + n)
    if element_type == _FLOAT32:
        _load_line_as(memory, np.float32(0), start, stride, line, begin, count)
    elif element_type == _FLOAT16:
        _load_line_as(memory, np.int16(0), start, stride, line, begin, count)
    elif element_type == _BFLOAT16:
        _load_line_as(memory, np.uint16(0), start, stride, line, begin, count)
    else:
        _load_line_as(memory, np.float64(0), start, stride, line, begin, count)


@jit
def _store_line_as(
    tensor: StridedTensor,
    start: int,
    values: Array,
    line: Array,
    count: int,
    staging: StagingBuffer,
    line_length: int,
    to_boundary: int,
) -> None:
    memory, strides = tensor.memory, tensor.strides
    for n in range(count):
        values[n] = downcast(line[n], values)
    if strides[3] == 1:
        size = unsigned(values.itemsize)
        write_line(memory, start * size, staging, count * size, line_length, to_boundary)
    else:
        for n in range(count):
            store_element(memory, start + n * unsigned(strides[3]), values[n])


@jit
def store_line(
    tensor: StridedTensor,
    pixels: Pixels,
    label: int,
    line: Array,
    staging: StagingBuffer,
    line_length: int,
    to_boundary: int,
) -> None:
    """Copies a line to the pixels' entries of one class; ``line_length`` and ``to_boundary`` as in `write_line`."""
    element_type, start, count = tensor.element_type, offset_of(tensor, pixels, label), pixels[3]
    if element_type == _FLOAT32:
        _store_line_as(tensor, start, staging.float32, line, count, staging.bytes, line_length, to_boundary)
    elif element_type == _FLOAT16:
        _store_line_as(tensor, start, staging.float16, line, count, staging.bytes, line_length, to_boundary)
    elif element_type == _BFLOAT16:
        _store_line_as(tensor, start, staging.bfloat16, line, count, staging.bytes, line_length, to_boundary)
    else:
        _store_line_as(tensor, start, staging.float64, line, count, staging.bytes, line_length, to_boundary)


def tensor_arguments(tensor: Tensor, dtype: torch.dtype) -> TensorArguments:
    """What `strided_tensor` makes a tensor of; ``dtype`` is the compute dtype."""
    strides = tensor.stride()
    in_place = tensor.dtype == dtype and strides[3] == 1
    return tensor.data_ptr(), _ELEMENT_TYPES[tensor.dtype], int(in_place), *strides  # type: ignore[return-value]


@jit
def strided_tensor(arguments: TensorArguments, like: Array) -> Any:
    """``like`` has the compute dtype."""
    address, element_type, in_place = arguments[:3]
    memory, values = array_at(address, 0, np.empty(0, np.uint8)), array_at(address, 0, like)
    return StridedTensor(memory, element_type, arguments[3:], values, in_place != 0)


@jit
def staging_buffer(tile: int) -> Any:
    memory = np.empty(8 * tile, np.uint8)
    float32, float64 = memory.view(np.float32), memory.view(np.float64)
    return StagingBuffer(memory, float32, memory.view(np.int16), memory.view(np.uint16), float64)


class Lines(NamedTuple):
    """A line in the compute dtype for each of some classes, padded to whole vectors."""

    values: Array
    first: int  # where the first line begins
    pitch: int  # from each to the next
    prefetch_distance: int  # in elements; 0 for none


@jit
def load_lines(
    tensor: StridedTensor, pixels: Pixels, label: int, number: int, scratch: Array, pitch: int, prefetch_distance: int
) -> Any:
    """The lines of ``number`` classes from ``label`` on: those of the tensor itself where they can be read in place."""
    count = pixels[3]
    if tensor.in_place and count % unsigned(LANES) == 0:
        return Lines(
            tensor.values, offset_of(tensor, pixels, label), unsigned(tensor.strides[1]), unsigned(prefetch_distance)
        )
    for k in range(number):
        line = k * pitch
        load_line(tensor, pixels, label + k, scratch, line)
        for n in range(line + count, line + padded(count)):
            scratch[n] = 0
    return Lines(scratch, unsigned(0), pitch, unsigned(0))


@jit
def padded(count: int) -> Any:
    """``count`` rounded up to whole vectors."""
    return (count + unsigned(LANES - 1)) // unsigned(LANES) * unsigned(LANES)


STAGED, CACHED, NON_TEMPORAL = range(3)  # how `store_or_stream` writes


@jit
def select_store(
    tensor: StridedTensor, pixels: Pixels, label: int, scratch: Array, line_length: int, to_boundary: int
) -> Any:
    """Where the line of a class is to be written, and with which store; after `STAGED`, `store_line` copies it out."""
    start = offset_of(tensor, pixels, label)
    if tensor.in_place and pixels[3] % unsigned(LANES) == 0:
        if line_length == 0:
            return tensor.values, start, CACHED
        if (start * unsigned(tensor.values.itemsize) - to_boundary) % unsigned(LINE_BYTES) == 0:
            return tensor.values, start, NON_TEMPORAL
    return scratch, unsigned(0), STAGED


def streaming_in_bytes(out: Tensor) -> tuple[int, int]:
    """`streaming` of a tensor's bytes."""
    line_length, to_boundary = streaming(out)
    return line_length * out.itemsize, to_boundary * out.itemsize
