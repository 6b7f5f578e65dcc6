"""What tensors hold: elements as kernels compute with them, and cache lines of them on their way out."""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from torch import Tensor

from tritonsoft.backends.numba.threads import jit, unsigned

LINE_BYTES = 64
STREAM_BYTES = 1 << 22  # outputs above this leave the cache anyway

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


class _Memory:
    """What NumPy makes an array of, which keeps it, and with it the tensor, alive.

    `Tensor.numpy` would do the same and forbid the storage to be resized ever after, which is not ours to forbid.
    """

    __slots__ = ("__array_interface__", "_tensor")

    def __init__(self, tensor: Tensor, size: int) -> None:
        self._tensor = tensor
        kind, place = _NUMPY_TYPES[tensor.dtype], (tensor.data_ptr(), False)
        self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": kind, "data": place}


def flat(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The memory that a tensor spans, as one dense array: kernels apply the strides, so each dtype compiles once."""
    size = tensor.numel()
    if size > 0 and not tensor.is_contiguous():
        size = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return np.asarray(_Memory(tensor, size))


@intrinsic
def reinterpret(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 as uint32, and back."""
    result = types.uint32 if value == types.float32 else types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(result))

    return result(value), generate


def _widen_half(value: Any) -> Any:
    magnitude = np.uint32(np.uint32(value & 0x7FFF) << 13)
    # Read as a float32 the exponent is short by 112; scaling, unlike adding to it, also normalises the subnormals.
    bits = reinterpret(reinterpret(magnitude) * np.float32(2.0**112))
    if magnitude >= np.uint32(0x0F800000):  # infinity and NaN
        bits = np.uint32(magnitude | np.uint32(0x7F800000))
    return reinterpret(np.uint32(bits | np.uint32(np.uint32(value & 0x8000) << 16)))


def _widen_bfloat(value: Any) -> Any:
    return reinterpret(np.uint32(np.uint32(value) << 16))


def _widen_byte(value: Any) -> Any:
    return np.float32(value)


def _widen_none(value: Any) -> Any:
    return value


def widen(value: Any) -> Any:
    """A stored element as float32 or float64."""


@overload(widen)
def _(value: Any) -> Any:
    converters = {types.int16: _widen_half, types.uint16: _widen_bfloat, types.uint8: _widen_byte}
    return converters.get(value, _widen_none)


def _narrow_half(value: Any, out: Any) -> Any:
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


def _narrow_bfloat(value: Any, out: Any) -> Any:
    bits = reinterpret(np.float32(value))
    result = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + np.uint32((bits >> 16) & 1)) >> 16)
    if np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        result = np.uint32(0x7FC0)
    return np.uint16(result)


def _narrow_byte(value: Any, out: Any) -> Any:
    return np.uint8(min(max(np.rint(value), 0), 255))


def _narrow_single(value: Any, out: Any) -> Any:
    return np.float32(value)


def _narrow_none(value: Any, out: Any) -> Any:
    return value


def narrow(value: Any, out: Any) -> Any:
    """A float32 or float64 as an element of ``out``, rounded to nearest even."""


@overload(narrow)
def _(value: Any, out: Any) -> Any:
    converters = {
        types.int16: _narrow_half,
        types.uint16: _narrow_bfloat,
        types.uint8: _narrow_byte,
        types.float32: _narrow_single,
    }
    return converters.get(out.dtype, _narrow_none)


@intrinsic
def borrowed(typing_context: Any, arrays: Any) -> Any:
    """A tuple whose arrays count no references: for those that somebody else keeps alive all the while."""

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


def past_caches(builder: Any, store: Any) -> None:
    """Makes a store instruction one that leaves the caches alone."""
    store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))


@intrinsic
def _stream_line(typing_context: Any, out: Any, start: Any, line: Any, offset: Any) -> Any:
    """Copies one cache line, to an aligned place, past the caches."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = []
        for array_type, array, index in zip(signature.args[::2], arguments[::2], arguments[1::2], strict=True):
            data = context.make_array(array_type)(context, builder, array).data
            places.append(builder.gep(data, [index]))
        lanes = LINE_BYTES * 8 // out.dtype.bitwidth
        vector = ir.VectorType(context.get_data_type(out.dtype), lanes).as_pointer()
        value = builder.load(builder.bitcast(places[1], vector), align=out.dtype.bitwidth // 8)
        past_caches(builder, builder.store(value, builder.bitcast(places[0], vector), align=LINE_BYTES))
        return context.get_dummy_value()

    return types.void(out, types.uintp, line, types.uintp), generate


@intrinsic
def prefetch(typing_context: Any, memory: Any, place: Any) -> Any:
    """Asks for the cache line of an element, which may lie outside the memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(memory)(context, builder, arguments[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        signature_of_it = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, signature_of_it, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, number(0), number(2), number(1)])  # to read, into the second level, data
        return context.get_dummy_value()

    return types.void(memory, types.uintp), generate


@intrinsic
def fence(typing_context: Any) -> Any:
    """Orders the streamed lines before whatever tells another thread that they are there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@jit
def write(out: Any, start: Any, line: Any, count: Any, lanes: Any, phase: Any) -> None:
    """Copies ``line[:count]`` to ``out[start:]``, whole cache lines of ``lanes`` elements past the caches.

    ``phase`` counts the elements from ``out[0]`` on to the next cache line; ``lanes = 0`` is an ordinary copy.
    """
    head = count
    if lanes > unsigned(0):
        head = min(count, (phase - start) & (lanes - unsigned(1)))
    for n in range(head):
        out[start + n] = line[n]
    done = head
    while done + lanes <= count and lanes > unsigned(0):
        _stream_line(out, start + done, line, done)
        done += lanes
    for n in range(done, count):
        out[start + n] = line[n]


def streaming(out: Tensor) -> tuple[Any, Any]:
    """``lanes`` and ``phase`` of `write`: what is larger than the caches leaves them soon enough by itself."""
    lanes = LINE_BYTES // out.itemsize if out.nbytes >= STREAM_BYTES else 0
    return unsigned(lanes), unsigned(-out.data_ptr() % LINE_BYTES // out.itemsize)


def sums_dtype(*tensors: Tensor) -> type:
    """float64 if any of the tensors is, else float32."""
    return np.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else np.float32
