"""Elements of tensors: their memory, conversions to and from the compute dtype, and non-temporal stores."""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from torch import Tensor

from tritonsoft.backends.numba.threads import jit, unsigned

Array = np.ndarray[Any, Any]

LINE_BYTES = 64
STREAM_BYTES = 1 << 22  # an output above this is written with non-temporal stores: it would not stay in the caches

#
# Numba has no 16-bit floats on a CPU. Kernels see float16 as int16 and bfloat16 as uint16 and convert the bits.

_NUMPY_TYPES = {
    torch.float16: np.dtype(np.int16).str,
    torch.bfloat16: np.dtype(np.uint16).str,
    **{
        getattr(torch, name): np.dtype(name).str
        for name in ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
}

# Of each dtype an array for compiled functions to be compiled for, where the tensor itself is an address.
LIKE = {dtype: np.empty(0, kind) for dtype, kind in _NUMPY_TYPES.items()}


class _Memory:
    """An object with NumPy's array interface, which the array keeps alive, and with it the tensor.

    `Tensor.numpy` would do the same and forbid the storage to be resized ever after, which is not ours to forbid.
    """

    __slots__ = ("__array_interface__", "_tensor")

    def __init__(self, tensor: Tensor, size: int) -> None:
        self._tensor = tensor
        kind, place = _NUMPY_TYPES[tensor.dtype], (tensor.data_ptr(), False)
        self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": kind, "data": place}


def flat(tensor: Tensor) -> Array:
    """The memory that a tensor spans, as a contiguous array: kernels apply the strides, so each dtype compiles once."""
    size = tensor.numel()
    if size == 0:
        return LIKE[tensor.dtype]  # torch says that its memory is at 0, where NumPy 1.26 takes no array to be
    if not tensor.is_contiguous():
        size = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return np.asarray(_Memory(tensor, size))


@intrinsic
def _pointer_to(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.uintp), generate


@jit
def array_at(address: int, size: int, like: Array) -> Any:
    """Memory as an array with the type of ``like``, which whoever called from Python keeps alive.

    An address costs Python and Numba's dispatcher a tenth of what an array does, which is most of a small call.
    """
    return carray(_pointer_to(address), (size,), like.dtype)


@intrinsic
def reinterpret(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 as uint32, and back."""
    result = types.uint32 if value == types.float32 else types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(result))

    return result(value), generate


def _upcast_half(value: Any) -> Any:
    magnitude = np.uint32(np.uint32(value & 0x7FFF) << 13)
    # Read as a float32 the exponent is short by 112; scaling, unlike adding to it, also normalises the subnormals.
    bits = reinterpret(reinterpret(magnitude) * np.float32(2.0**112))
    if magnitude >= np.uint32(0x0F800000):  # infinity and NaN
        bits = np.uint32(magnitude | np.uint32(0x7F800000))
    return reinterpret(np.uint32(bits | np.uint32(np.uint32(value & 0x8000) << 16)))


def _upcast_bfloat(value: Any) -> Any:
    return reinterpret(np.uint32(np.uint32(value) << 16))


def _upcast_byte(value: Any) -> Any:
    return np.float32(value)


def _upcast_none(value: Any) -> Any:
    return value


def upcast(value: Any) -> Any:
    """A stored element as float32 or float64."""


@overload(upcast)
def _(value: Any) -> Any:
    converters = {types.int16: _upcast_half, types.uint16: _upcast_bfloat, types.uint8: _upcast_byte}
    return converters.get(value, _upcast_none)


def _downcast_half(value: Any, out: Any) -> Any:
    bits = reinterpret(np.float32(value))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    odd = np.uint32((magnitude >> 13) & 1)
    result = np.uint32(np.uint32(magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> 13)
    if magnitude < np.uint32(0x38800000):  # subnormal: adding 1/2 shifts the bits into place and rounds them
        shifted = np.float32(reinterpret(magnitude) + np.float32(0.5))
        result = np.uint32(reinterpret(shifted) - np.uint32(0x3F000000))
    if magnitude >= np.uint32(0x47800000):
        result = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else np.uint32(0x7C00)
    return np.int16(np.uint16(result | np.uint32((bits >> 16) & 0x8000)))


def _downcast_bfloat(value: Any, out: Any) -> Any:
    bits = reinterpret(np.float32(value))
    result = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + np.uint32((bits >> 16) & 1)) >> 16)
    if np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        result = np.uint32(0x7FC0)
    return np.uint16(result)


def _downcast_byte(value: Any, out: Any) -> Any:
    return np.uint8(min(max(np.rint(value), 0), 255))


def _downcast_single(value: Any, out: Any) -> Any:
    return np.float32(value)


def _downcast_none(value: Any, out: Any) -> Any:
    return value


def downcast(value: Any, out: Any) -> Any:
    """A float32 or float64 as an element of ``out``, rounded to nearest even."""


@overload(downcast)
def _(value: Any, out: Any) -> Any:
    converters = {
        types.int16: _downcast_half,
        types.uint16: _downcast_bfloat,
        types.uint8: _downcast_byte,
        types.float32: _downcast_single,
    }
    return converters.get(out.dtype, _downcast_none)


@intrinsic
def borrowed(typing_context: Any, arrays: Any) -> Any:
    """A tuple of borrowed references: arrays that a caller keeps alive and whose references need no counting."""

    def borrow(context: Any, builder: Any, kind: Any, value: Any) -> Any:
        if isinstance(kind, types.Array):
            array = context.make_array(kind)(context, builder, value)
            array.meminfo = array.meminfo.type(None)
            array.parent = array.parent.type(None)
            return array._getvalue()
        if isinstance(kind, types.BaseTuple):
            for place, member in enumerate(kind):
                element = borrow(context, builder, member, builder.extract_value(value, place))
                value = builder.insert_value(value, element, place)
        return value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return borrow(context, builder, arrays, arguments[0])

    return arrays(arrays), generate


def mark_non_temporal(builder: Any, store: Any) -> None:
    """Makes a store non-temporal: it bypasses the caches."""
    store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))


@intrinsic
def _stream_line(typing_context: Any, out: Any, start: Any, line: Any, offset: Any) -> Any:
    """Copies one cache line to an aligned place, with a non-temporal store."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = []
        for array_type, array, index in zip(signature.args[::2], arguments[::2], arguments[1::2], strict=True):
            data = context.make_array(array_type)(context, builder, array).data
            places.append(builder.gep(data, [index]))
        line_length = LINE_BYTES * 8 // out.dtype.bitwidth
        vector = ir.VectorType(context.get_data_type(out.dtype), line_length).as_pointer()
        value = builder.load(builder.bitcast(places[1], vector), align=out.dtype.bitwidth // 8)
        mark_non_temporal(builder, builder.store(value, builder.bitcast(places[0], vector), align=LINE_BYTES))
        return context.get_dummy_value()

    return types.void(out, types.uintp, line, types.uintp), generate


@intrinsic
def prefetch(typing_context: Any, memory: Any, place: Any) -> Any:
    """Prefetches the cache line of an element, which may lie outside the memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(memory)(context, builder, arguments[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        signature_of_it = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, signature_of_it, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, number(0), number(2), number(1)])  # read, second-level cache, data
        return context.get_dummy_value()

    return types.void(memory, types.uintp), generate


@jit
def prefetch_line(memory: Any, start: Any, count: Any) -> None:
    """Prefetches neighbours that will be read soon: the hardware foresees a line alone that follows another."""
    for n in range(unsigned(0), unsigned(count), unsigned(LINE_BYTES // memory.itemsize)):
        prefetch(memory, unsigned(start) + n)


@intrinsic
def fence(typing_context: Any) -> Any:
    """Orders non-temporal stores before the store that tells another thread of them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@jit
def write_line(out: Any, start: Any, line: Any, count: Any, line_length: Any, to_boundary: Any) -> None:
    """Copies ``line[:count]`` to ``out[start:]``, whole cache lines with non-temporal stores.

    ``line_length`` is the elements of a cache line, or 0 for an ordinary copy; ``to_boundary`` those from ``out[0]`` to
    the next cache line.
    """
    head = count
    if line_length > unsigned(0):
        head = min(count, (to_boundary - start) & (line_length - unsigned(1)))
    for n in range(head):
        out[start + n] = line[n]
    done = head
    while done + line_length <= count and line_length > unsigned(0):
        _stream_line(out, start + done, line, done)
        done += line_length
    for n in range(done, count):
        out[start + n] = line[n]


def streaming(out: Tensor) -> tuple[int, int]:
    """``line_length`` and ``to_boundary`` of `write_line`: a small output stays in the caches for who reads it next."""
    line_length = LINE_BYTES // out.itemsize if out.nbytes >= STREAM_BYTES else 0
    return line_length, -out.data_ptr() % LINE_BYTES // out.itemsize


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
