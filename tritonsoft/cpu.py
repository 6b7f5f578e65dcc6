"""The Numba backend: the operators of `tritonsoft.reference` as compiled loops over ranges of output rows.

A crop with a resize is, along each axis, a short list of weighted taps per output (`_Taps`). An image row is the
weighted sum of source rows (contiguous, so it vectorises), then of that line's columns, for several rows side by side.
The gradient is the same loop over the transposed lists. A soft label row is a histogram: each run of one class adds
its weights to the line of its class.

What makes it fast: a finished line leaves with non-temporal stores, which spares reading the output before it is
overwritten; a run costs the same however long it is; equal source rows are added once. Between two such stores nothing
may touch a reference count (no array slices there): an atomic instruction waits until they have drained.

Rows are independent and every sum has a fixed order, so that results do not depend on the number of threads.
Nothing is compiled before the first call. The launchers trust their arguments: `tritonsoft.functional` checks them.
"""

import contextlib
import ctypes
import itertools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.cpython.unsafe.numbers import trailing_zeros
from numba.extending import intrinsic, models, overload, register_model
from torch import Tensor

from tritonsoft.conventions import FILTERS

# Numba checks a signed index for counting from the end, which keeps a loop from vectorising; an unsigned one it trusts.
_unsigned: Any = np.uint64

_LINE_BYTES = 64
_ROWS = 8  # rows of an image that are summed side by side: a vector of AVX2, two of NEON
_CHUNK = 16  # outputs of a soft label that a run of one class is added to at once
_TILE = 256  # output columns per class held in cache: long enough for whole-line stores, short enough for L1
_MASK_BITS = 64
_INLINE_WORK = 1 << 16  # elements below which waking a thread costs more than it saves
_STREAM_BYTES = 1 << 22  # outputs above this leave the cache anyway


def _jit(function: Callable[..., Any]) -> Any:
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no directory that a cache could be written to
        return njit(**options)(function)


# --- threads ---------------------------------------------------------------------------------------------------------


_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _openmp() -> Callable[..., None] | None:
    """``GOMP_parallel``, which runs a function on every thread of a team, of the OpenMP library that torch loaded."""
    return getattr(ctypes.CDLL(None), "GOMP_parallel", None) if sys.platform == "linux" else None


class _Pool:
    """Helper threads for the calling one: torch's, or threads of our own where torch has none to lend.

    After each parallel operation of torch its OpenMP threads wait for the next one in a busy loop of several
    milliseconds. Other threads would have to share their cores with them; to these very threads a call is the next one.
    """

    def __init__(self) -> None:
        self._team = _openmp()
        self._start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _start(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def _after_fork(self) -> None:
        self._start()  # threads do not survive a fork
        self._team = None  # and OpenMP waits for its lost ones forever

    def run(self, job: Callable[[int, int], Any], num_rows: int, work: int) -> list[Any]:
        """Calls ``job(first_row, end_row)`` over all rows, on as many threads as torch would use."""
        num_threads = min(torch.get_num_threads(), num_rows)
        if num_threads == 1 or work < _INLINE_WORK:
            return [job(0, num_rows)]
        # Several ranges per thread, as boxes of a batch differ in cost. `next` on a counter is atomic under the GIL.
        num_ranges = min(num_rows, 4 * num_threads)
        counter = itertools.count()
        results: list[Any] = []
        failures: list[BaseException] = []

        def drain(_: Any = None) -> None:
            try:
                while (index := next(counter)) < num_ranges and not failures:
                    results.append(job(num_rows * index // num_ranges, num_rows * (index + 1) // num_ranges))
            except BaseException as failure:  # for the caller: OpenMP has nowhere to send it
                failures.append(failure)

        if self._team is not None:
            self._team(_Body(drain), None, num_threads, 0)
        else:
            self._drain_together(drain, num_threads)
        if failures:
            raise failures[0]
        return results

    def _drain_together(self, drain: Callable[[], None], num_threads: int) -> None:
        helpers = []
        with self._lock, contextlib.suppress(RuntimeError):  # Python starts no threads once its main one has ended
            self._executor = self._executor or ThreadPoolExecutor(256, "tritonsoft")
            for _ in range(num_threads - 1):
                helpers.append(self._executor.submit(drain))  # noqa: PERF401 - keeps those before an error
        drain()
        # Helpers that another caller keeps busy are not waited for: there is nothing left for them to do.
        for helper in [helper for helper in helpers if not helper.cancel()]:
            helper.result()


_pool = _Pool()


# --- elements --------------------------------------------------------------------------------------------------------
#
# Numba has no 16-bit floats on a CPU. Kernels see float16 as int16 and bfloat16 as uint16 and convert the bits.

_BITS = {torch.float16: torch.int16, torch.bfloat16: torch.uint16}


def _flat(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The memory that a tensor spans, as one dense array: kernels apply the strides, so each dtype compiles once."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.detach().as_strided((span,), (1,))
    return memory.view(_BITS.get(tensor.dtype, tensor.dtype)).numpy()


@intrinsic
def _reinterpret(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 as uint32, and back."""
    result = types.uint32 if value == types.float32 else types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(result))

    return result(value), generate


def _widen_half(value: Any) -> Any:
    magnitude = np.uint32(np.uint32(value & 0x7FFF) << 13)
    # Read as a float32 the exponent is short by 112; scaling, unlike adding to it, also normalises the subnormals.
    bits = _reinterpret(_reinterpret(magnitude) * np.float32(2.0**112))
    if magnitude >= np.uint32(0x0F800000):  # infinity and NaN
        bits = np.uint32(magnitude | np.uint32(0x7F800000))
    return _reinterpret(np.uint32(bits | np.uint32(np.uint32(value & 0x8000) << 16)))


def _widen_bfloat(value: Any) -> Any:
    return _reinterpret(np.uint32(np.uint32(value) << 16))


def _widen_byte(value: Any) -> Any:
    return np.float32(value)


def _widen_none(value: Any) -> Any:
    return value


def _widen(value: Any) -> Any:
    """A stored element as float32 or float64."""


@overload(_widen)
def _(value: Any) -> Any:
    converters = {types.int16: _widen_half, types.uint16: _widen_bfloat, types.uint8: _widen_byte}
    return converters.get(value, _widen_none)


def _narrow_half(value: Any, out: Any) -> Any:
    bits = _reinterpret(np.float32(value))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    odd = np.uint32((magnitude >> 13) & 1)
    result = np.uint32(np.uint32(magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> 13)
    if magnitude < np.uint32(0x38800000):  # subnormal: adding 1/2 shifts the bits into place and rounds them
        shifted = np.float32(_reinterpret(magnitude) + np.float32(0.5))
        result = np.uint32(_reinterpret(shifted) - np.uint32(0x3F000000))
    if magnitude >= np.uint32(0x47800000):
        result = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else np.uint32(0x7C00)
    return np.int16(np.uint16(result | np.uint32((bits >> 16) & 0x8000)))


def _narrow_bfloat(value: Any, out: Any) -> Any:
    bits = _reinterpret(np.float32(value))
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


def _narrow(value: Any, out: Any) -> Any:
    """A float32 or float64 as an element of ``out``, rounded to nearest even."""


@overload(_narrow)
def _(value: Any, out: Any) -> Any:
    converters = {
        types.int16: _narrow_half,
        types.uint16: _narrow_bfloat,
        types.uint8: _narrow_byte,
        types.float32: _narrow_single,
    }
    return converters.get(out.dtype, _narrow_none)


@intrinsic
def _stream_line(typing_context: Any, out: Any, start: Any, line: Any, offset: Any) -> Any:
    """Copies one cache line, to an aligned place, past the caches."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = []
        for array_type, array, index in zip(signature.args[::2], arguments[::2], arguments[1::2], strict=True):
            data = context.make_array(array_type)(context, builder, array).data
            places.append(builder.gep(data, [index]))
        lanes = _LINE_BYTES * 8 // out.dtype.bitwidth
        vector = ir.VectorType(context.get_data_type(out.dtype), lanes).as_pointer()
        value = builder.load(builder.bitcast(places[1], vector), align=out.dtype.bitwidth // 8)
        store = builder.store(value, builder.bitcast(places[0], vector), align=_LINE_BYTES)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(out, types.uintp, line, types.uintp), generate


@intrinsic
def _fence(typing_context: Any) -> Any:
    """Orders the streamed lines before whatever tells another thread that they are there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@_jit
def _write(out: Any, start: Any, line: Any, count: Any, lanes: Any, phase: Any) -> None:
    """Copies ``line[:count]`` to ``out[start:]``, whole cache lines of ``lanes`` elements past the caches.

    ``phase`` counts the elements from ``out[0]`` on to the next cache line; ``lanes = 0`` is an ordinary copy.
    """
    head = count
    if lanes > _unsigned(0):
        head = min(count, (phase - start) & (lanes - _unsigned(1)))
    for n in range(head):
        out[start + n] = line[n]
    done = head
    while done + lanes <= count and lanes > _unsigned(0):
        _stream_line(out, start + done, line, done)
        done += lanes
    for n in range(done, count):
        out[start + n] = line[n]


def _streaming(out: Tensor) -> tuple[Any, Any]:
    """``lanes`` and ``phase`` of `_write`: what is larger than the caches leaves them soon enough by itself."""
    lanes = _LINE_BYTES // out.itemsize if out.nbytes >= _STREAM_BYTES else 0
    return _unsigned(lanes), _unsigned(-out.data_ptr() % _LINE_BYTES // out.itemsize)


# --- vectors ---------------------------------------------------------------------------------------------------------
#
# Loops over neighbours in memory vectorise by themselves. These are the loops that do not.


class _Vector(types.Type):  # type: ignore[misc]
    """`_ROWS` numbers in a register."""

    def __init__(self, dtype: Any) -> None:
        super().__init__(name=f"Vector({dtype})")
        self.dtype = dtype


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: Any) -> None:
        super().__init__(manager, vector, ir.VectorType(manager.lookup(vector.dtype).get_value_type(), _ROWS))


class _Memory:
    """An array argument of an intrinsic, as vectors of ``count`` neighbours."""

    def __init__(self, context: Any, builder: Any, array_type: Any, array: Any, count: int) -> None:
        self._builder, self._align = builder, array_type.dtype.bitwidth // 8
        self._data = context.make_array(array_type)(context, builder, array).data
        self._pointer = ir.VectorType(context.get_data_type(array_type.dtype), count).as_pointer()

    def _place(self, index: Any) -> Any:
        return self._builder.bitcast(self._builder.gep(self._data, [index]), self._pointer)

    def load(self, index: Any) -> Any:
        return self._builder.load(self._place(index), align=self._align)

    def store(self, index: Any, value: Any) -> None:
        self._builder.store(value, self._place(index), align=self._align)


def _spread(builder: Any, value: Any, count: int) -> Any:
    """A vector of ``count`` times the value."""
    vector = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    vector = builder.insert_element(vector, value, ir.IntType(32)(0))
    return builder.shuffle_vector(vector, vector, _places([0] * count))


def _places(places: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)


@intrinsic
def _vector(typing_context: Any, value: Any) -> Any:
    """The value in every element."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[0], _ROWS)

    return _Vector(value)(value), generate


@intrinsic
def _add_scaled(typing_context: Any, total: Any, weight: Any, array: Any, start: Any) -> Any:
    """``total + weight * array[start : start + _ROWS]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = _Memory(context, builder, array, arguments[2], _ROWS).load(arguments[3])
        return builder.fadd(arguments[0], builder.fmul(_spread(builder, arguments[1], _ROWS), values))

    return total(total, array.dtype, array, types.uintp), generate


@intrinsic
def _store(typing_context: Any, array: Any, start: Any, vector: Any) -> Any:
    """``array[start : start + _ROWS] = vector``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Memory(context, builder, array, arguments[0], _ROWS).store(*arguments[1:])
        return context.get_dummy_value()

    return types.void(array, types.uintp, vector), generate


@intrinsic
def _transpose_square(
    typing_context: Any, source: Any, start: Any, pitch: Any, target: Any, target_start: Any, target_pitch: Any
) -> Any:
    """Transposes `_ROWS` rows of as many elements, ``pitch`` elements from row to row."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def indices(start: Any, pitch: Any) -> list[Any]:
            return [builder.add(start, builder.mul(pitch, ir.Constant(pitch.type, row))) for row in range(_ROWS)]

        memory = _Memory(context, builder, source, arguments[0], _ROWS)
        rows = [memory.load(index) for index in indices(*arguments[1:3])]
        for bit in (1 << n for n in range(_ROWS.bit_length() - 1)):  # swap this bit of the row's and element's numbers
            low = _places([n + _ROWS - bit if n & bit else n for n in range(_ROWS)])
            high = _places([n + _ROWS if n & bit else n + bit for n in range(_ROWS)])
            for row in (row for row in range(_ROWS) if not row & bit):
                pair = rows[row], rows[row + bit]
                rows[row], rows[row + bit] = builder.shuffle_vector(*pair, low), builder.shuffle_vector(*pair, high)
        memory = _Memory(context, builder, target, arguments[3], _ROWS)
        for index, row in zip(indices(*arguments[4:]), rows, strict=True):
            memory.store(index, row)
        return context.get_dummy_value()

    place = (types.uintp, types.uintp)
    return types.void(source, *place, target, *place), generate


@intrinsic
def _add_difference(typing_context: Any, sums: Any, start: Any, weight: Any, table: Any, begin: Any, end: Any) -> Any:
    """``sums[start + n] += weight * (table[end + n] - table[begin + n])`` for each n of a chunk."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, start, weight, _, begin, end = arguments
        total = _Memory(context, builder, sums, arguments[0], _CHUNK)
        values = _Memory(context, builder, table, arguments[3], _CHUNK)
        difference = builder.fsub(values.load(end), values.load(begin))
        difference = builder.fmul(_spread(builder, weight, _CHUNK), difference)
        total.store(start, builder.fadd(total.load(start), difference))
        return context.get_dummy_value()

    return types.void(sums, types.uintp, sums.dtype, table, types.uintp, types.uintp), generate


@intrinsic
def _changes(typing_context: Any, array: Any, start: Any) -> Any:
    """A mask of the next `_MASK_BITS` elements: whether the one after each differs from it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        memory, start = _Memory(context, builder, array, arguments[0], _MASK_BITS), arguments[1]
        differ = builder.icmp_unsigned("!=", memory.load(start), memory.load(builder.add(start, start.type(1))))
        return builder.bitcast(differ, ir.IntType(_MASK_BITS))

    return types.uint64(array, types.uintp), generate


# --- taps ------------------------------------------------------------------------------------------------------------


class _Taps(NamedTuple):
    """The taps of each output along one axis; ``n`` counts the outputs of all boxes, one box after the other."""

    first: np.ndarray[Any, Any]  # (n,) int32: the first source pixel
    begin: np.ndarray[Any, Any]  # (n + 1,) int32: where the weights of each output begin
    weight: np.ndarray[Any, Any]  # (begin[-1],) the sums' dtype: normalised weights of the taps inside the image
    outside: np.ndarray[Any, Any]  # (n,) the sums' dtype: the weight of the taps outside, exactly 0 if there are none


_AREA, _NEAREST = FILTERS.index("area"), FILTERS.index("nearest")


@_jit
def _weight(tap: Any, centre: Any, reach: Any, plateau: Any) -> Any:
    return min(max(reach - abs(tap + 0.5 - centre), 0.0), plateau)


@_jit
def _tabulate(ends: Any, in_size: Any, out_size: Any, filter: int, like: Any) -> Any:
    """Taps of boxes with ``ends`` (boxes, 2): `tritonsoft.conventions` line by line, in its order of operations."""
    num_outputs = ends.shape[0] * out_size
    first = np.zeros(num_outputs, np.int32)
    begin = np.zeros(num_outputs + 1, np.int32)
    outside = np.zeros(num_outputs, like.dtype)
    weight = like
    for fill_in in (False, True):  # finds the taps, then allocates and writes their weights
        if fill_in:
            weight = np.empty(begin[num_outputs], like.dtype)
        for box in range(ends.shape[0]):
            lo, hi = min(ends[box, 0], ends[box, 1]), max(ends[box, 0], ends[box, 1])
            mirrored = ends[box, 1] < ends[box, 0]
            first_touched: Any = np.int64(np.floor(lo))
            end_touched: Any = np.int64(np.ceil(hi))
            span = hi - lo
            stretch = max(span / out_size, 1.0)
            reach = (stretch + 1.0) / 2.0 if filter == _AREA else 1.0 if filter > 1 else stretch
            plateau = 1.0 if filter == _AREA else reach
            for n in range(_unsigned(box * out_size), _unsigned((box + 1) * out_size)):
                j: Any = np.int64(n) - box * out_size
                j = out_size - 1 - j if mirrored else j
                centre = lo + span * (2.0 * j + 1.0) / (2.0 * out_size)
                begin_tap: Any = max(np.int64(np.floor(centre - reach)), first_touched)
                end_tap: Any = min(np.int64(np.floor(centre + reach)) + 1, end_touched)
                if filter == _NEAREST:
                    begin_tap = min(max(np.int64(np.floor(centre)), first_touched), end_touched - 1)
                    end_tap = begin_tap + 1

                next_n = n + _unsigned(1)
                if not fill_in:
                    # A tap without weight must not be read: infinity times zero is not a number.
                    begin_inside: Any = max(begin_tap, 0)
                    end_inside: Any = min(end_tap, in_size)
                    while begin_inside < end_inside and _weight(begin_inside, centre, reach, plateau) == 0.0:
                        begin_inside += 1
                    while begin_inside < end_inside and _weight(end_inside - 1, centre, reach, plateau) == 0.0:
                        end_inside -= 1
                    first[n] = begin_inside
                    begin[next_n] = begin[n] + max(end_inside - begin_inside, 0)
                elif begin[n] == begin[next_n]:
                    outside[n] = 1.0
                else:
                    sum_inside, sum_outside = 0.0, 0.0
                    for tap in range(begin_tap, min(end_tap, 0)):
                        sum_outside += _weight(tap, centre, reach, plateau)
                    for tap in range(max(begin_tap, in_size), end_tap):
                        sum_outside += _weight(tap, centre, reach, plateau)
                    begin_inside = first[n] - begin[n]
                    for t in range(begin[n], begin[next_n]):
                        sum_inside += _weight(begin_inside + t, centre, reach, plateau)
                    for t in range(begin[n], begin[next_n]):
                        share = _weight(begin_inside + t, centre, reach, plateau)
                        weight[_unsigned(t)] = share / (sum_inside + sum_outside)
                    outside[n] = sum_outside / (sum_inside + sum_outside)
    return first, begin, weight, outside


@_jit
def _transpose(first: Any, begin: Any, weight: Any, in_size: int, out_size: int) -> Any:
    """The taps that carry outputs back to source pixels: each pixel lies in a run of neighbouring outputs."""
    num_boxes = first.size // out_size
    first_output = np.full(num_boxes * in_size, out_size, np.int32)
    end_output = np.zeros(num_boxes * in_size, np.int32)
    for n in range(first.size):
        base = n // out_size * in_size + first[n]
        for pixel in range(base, base + begin[n + 1] - begin[n]):
            first_output[pixel] = min(first_output[pixel], n % out_size)
            end_output[pixel] = n % out_size + 1
    begin_back = np.zeros(num_boxes * in_size + 1, np.int32)
    for pixel in range(num_boxes * in_size):
        begin_back[pixel + 1] = begin_back[pixel] + max(end_output[pixel] - first_output[pixel], 0)
    weight_back = np.zeros(begin_back[-1], weight.dtype)
    for n in range(first.size):
        base = n // out_size * in_size + first[n]
        for t in range(begin[n + 1] - begin[n]):
            weight_back[begin_back[base + t] + n % out_size - first_output[base + t]] = weight[begin[n] + t]
    return first_output, begin_back, weight_back, np.zeros(num_boxes * in_size, weight.dtype)


def _ends(boxes: Tensor | None, source: tuple[int, int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The ends of the boxes along y and along x, each ``(boxes, 2)`` float64; one box serves all samples if None."""
    height, width = source
    if boxes is None:
        return np.array([[0.0, height]]), np.array([[0.0, width]])
    ends = boxes.detach().double().numpy()
    return np.ascontiguousarray(ends[:, 1::2]), np.ascontiguousarray(ends[:, 0::2])


def _taps(ends: np.ndarray[Any, Any], in_size: int, out_size: int, filter: str, dtype: type) -> _Taps:
    return _Taps(*_tabulate(ends, in_size, out_size, FILTERS.index(filter), np.empty(0, dtype)))


# --- image -----------------------------------------------------------------------------------------------------------


@_jit
def _resize_rows(
    out: Any,
    out_strides: Any,
    image: Any,
    image_strides: Any,
    shape: Any,
    taps_y: _Taps,
    taps_x: _Taps,
    unit: Any,
    fill: Any,
    lanes: Any,
    phase: Any,
    first_row: int,
    end_row: int,
) -> None:
    """Output rows of an image whose ``channels`` interleaved channels form ``planes`` separate planes per sample.

    Rows of a sample share their taps along x. `_ROWS` of them are summed side by side, each in its element of a vector:
    along the row a vector would have to gather its taps, which costs more than transposing there and back.
    """
    first_y, begin_y, weight_y, outside_y = taps_y
    first_x, begin_x, weight_x, outside_x = taps_x
    planes, channels, in_width, out_height, out_width = shape
    stride_x, stride_channel = _unsigned(image_strides[3]), _unsigned(image_strides[1])
    dense = stride_x == channels and (channels == 1 or stride_channel == 1)
    side, num_channels, width = _unsigned(_ROWS), _unsigned(channels), _unsigned(out_width)
    zero, one = weight_x.dtype.type(0), weight_x.dtype.type(1)
    count = width * num_channels
    in_pitch = _unsigned((in_width * channels + _ROWS - 1) // _ROWS * _ROWS)
    out_pitch = _unsigned((out_width * channels + _ROWS - 1) // _ROWS * _ROWS)
    lines = np.zeros(side * in_pitch, weight_x.dtype)  # (_ROWS, source columns of the box): summed along y
    columns = np.zeros(in_pitch * side, weight_x.dtype)  # its transpose
    sums = np.zeros(out_pitch * side, weight_x.dtype)  # (output columns, _ROWS): summed along x too
    results = np.zeros(side * out_pitch, weight_x.dtype)  # its transpose
    finished = np.empty(count, out.dtype)
    last_box = first_x.size // out_width - 1
    known_box, left, right, reaches_out = -1, 0, 0, False
    row = first_row
    while row < end_row:
        sample = row // (planes * out_height)
        num_rows = min(_ROWS, end_row - row, (sample + 1) * planes * out_height - row)
        box = min(sample, last_box)
        output_x = _unsigned(box * out_width)
        if box != known_box:
            known_box, left, right, reaches_out = box, in_width, 0, False
            for n in range(output_x, output_x + width):
                num_taps = begin_x[n + _unsigned(1)] - begin_x[n]
                if num_taps > 0:
                    left, right = min(left, first_x[n]), max(right, first_x[n] + num_taps)
                reaches_out |= outside_x[n] != zero
        first_element = _unsigned(left * channels)
        num_elements = _unsigned(max(left, right) * channels) - first_element

        for r in range(num_rows):
            plane, i = (row + r) // out_height % planes, (row + r) % out_height
            line, output_y = _unsigned(r) * in_pitch, box * out_height + i
            begin_tap, end_tap = begin_y[output_y], begin_y[output_y + 1]
            if begin_tap == end_tap:
                for n in range(num_elements):
                    lines[line + n] = zero
            for t in range(begin_tap, end_tap):
                weight, opening = weight_y[t], t == begin_tap
                y = first_y[output_y] + t - begin_tap
                base = _unsigned(sample * image_strides[0] + plane * image_strides[1] + y * image_strides[2])
                if dense and opening:
                    for n in range(num_elements):
                        lines[line + n] = weight * _widen(image[base + first_element + n])
                elif dense:
                    for n in range(num_elements):
                        lines[line + n] += weight * _widen(image[base + first_element + n])
                else:
                    for n in range(num_elements):
                        x, channel = (first_element + n) // num_channels, (first_element + n) % num_channels
                        value = weight * _widen(image[base + x * stride_x + channel * stride_channel])
                        lines[line + n] = value if opening else lines[line + n] + value
        for n in range(_unsigned(0), num_elements, side):
            _transpose_square(lines, n, in_pitch, columns, n * side, side)

        for j in range(width):
            first_tap, last_tap = _unsigned(begin_x[output_x + j]), _unsigned(begin_x[output_x + j + _unsigned(1)])
            for channel in range(num_channels):
                place = (_unsigned(first_x[output_x + j]) * num_channels + channel - first_element) * side
                total = _vector(zero)
                for t in range(first_tap, last_tap):
                    total = _add_scaled(total, weight_x[t], columns, place)
                    place += num_channels * side
                _store(sums, (j * num_channels + channel) * side, total)
        for n in range(_unsigned(0), count, side):
            _transpose_square(sums, n * side, side, results, n, out_pitch)

        for r in range(num_rows):
            plane, i = (row + r) // out_height % planes, (row + r) % out_height
            line, share_y = _unsigned(r) * out_pitch, outside_y[box * out_height + i]
            if unit != one:
                for n in range(count):
                    results[line + n] /= unit
            if fill != zero and (reaches_out or share_y != zero):
                for j in range(width):
                    outside = share_y + outside_x[output_x + j] * (one - share_y)
                    padding = outside * fill if outside != zero else zero
                    for n in range(j * num_channels, (j + _unsigned(1)) * num_channels):
                        results[line + n] += padding
            for n in range(count):
                finished[n] = _narrow(results[line + n], out)
            start = _unsigned(sample * out_strides[0] + plane * out_strides[1] + i * out_strides[2])
            _write(out, start, finished, count, lanes, phase)
        row += num_rows
    _fence()


def _sums_dtype(*tensors: Tensor) -> type:
    return np.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else np.float32


def _resize(out: Tensor, image: Tensor, taps_y: _Taps, taps_x: _Taps, fill: float) -> None:
    batch, num_channels, out_height, out_width = out.shape
    interleaved = num_channels > 1 and out.stride(1) == 1 and out.stride(3) == num_channels
    planes, channels = (1, num_channels) if interleaved else (num_channels, 1)
    unit = 255 if image.dtype == torch.uint8 and out.dtype != torch.uint8 else 1
    dtype = taps_x.weight.dtype.type
    arguments = (
        _flat(out),
        out.stride(),
        _flat(image),
        image.stride(),
        (planes, channels, image.shape[3], out_height, out_width),
        taps_y,
        taps_x,
        dtype(unit),
        dtype(fill),
        *_streaming(out),
    )
    _pool.run(lambda first, end: _resize_rows(*arguments, first, end), batch * planes * out_height, out.numel() * 4)


def crop_resize(out: Tensor, image: Tensor, boxes: Tensor | None, filter: str, fill: float) -> None:
    """Writes `tritonsoft.reference.crop_resize` of an image ``(B, K, H, W)`` to ``out (B, K, h, w)``."""
    in_size, out_size, dtype = image.shape[2:], out.shape[2:], _sums_dtype(out, image)
    taps = [
        _taps(ends, in_size[axis], out_size[axis], filter, dtype)
        for axis, ends in enumerate(_ends(boxes, (in_size[0], in_size[1])))
    ]
    _resize(out, image, taps[0], taps[1], fill)


def crop_resize_adjoint(out: Tensor, grad: Tensor, boxes: Tensor | None, filter: str) -> None:
    """Writes `tritonsoft.reference.crop_resize_adjoint` of a gradient ``(B, K, h, w)`` to ``out (B, K, H, W)``."""
    in_size, out_size, dtype = out.shape[2:], grad.shape[2:], _sums_dtype(out, grad)
    taps = []
    for axis, ends in enumerate(_ends(boxes, (in_size[0], in_size[1]))):
        forward = _taps(ends, in_size[axis], out_size[axis], filter, dtype)
        taps.append(_Taps(*_transpose(*forward[:3], in_size[axis], out_size[axis])))
    _resize(out, grad, taps[0], taps[1], 0.0)


# --- label map -------------------------------------------------------------------------------------------------------


@_jit
def _line_of(label: Any, num_classes: Any, ignore_index: Any, pitch: Any) -> Any:
    """Where the line of a pixel's class begins; ``ignore_index`` has the dtype in which labels are compared."""
    label = type(ignore_index)(label)
    label = num_classes if (label < 0) | (label >= num_classes) | (label == ignore_index) else label
    return np.uint32(np.uint32(label) * pitch)


@_jit
def _find_runs(values: Any, begin: Any, end: Any, run_end: Any) -> None:
    """Writes where each run of equal ``values[begin:end]`` ends; overwrites the value that follows."""
    one, num_runs = _unsigned(1), _unsigned(0)
    values[end] = ~values[end - one]
    for n in range(begin, end, _unsigned(_MASK_BITS)):
        changes = _changes(values, n)
        if end - n < _unsigned(_MASK_BITS):
            changes &= (one << (end - n)) - one
        while changes != 0:
            run_end[num_runs] = n + _unsigned(trailing_zeros(changes)) + one
            num_runs += one
            changes &= changes - one


@_jit
def _chunk_weights(box: Any, out_width: Any, taps_x: _Taps, like: Any) -> Any:
    """What the source pixels of a box weigh in its chunks of outputs.

    For each chunk: its first pixel, the end of its pixels, and where its lines begin in the last result. That holds a
    line of `_CHUNK` outputs for each edge between two pixels: the weight of the taps left of it. So the weight of a run
    of pixels is the difference of two lines.
    """
    first, begin, weight, _ = taps_x
    num_chunks, num_lines = (out_width + _CHUNK - 1) // _CHUNK, 0
    left, right = np.zeros(num_chunks, np.uint64), np.zeros(num_chunks, np.uint64)
    line_begin = np.zeros(num_chunks, np.uint64)
    for chunk in range(num_chunks):
        outputs = range(box * out_width + chunk * _CHUNK, box * out_width + min((chunk + 1) * _CHUNK, out_width))
        first_pixel, end_pixel = 2**31, 0
        for n in outputs:
            if begin[n] < begin[n + 1]:
                first_pixel = min(first_pixel, first[n])
                end_pixel = max(end_pixel, first[n] + begin[n + 1] - begin[n])
        first_pixel = min(first_pixel, end_pixel)
        left[chunk], right[chunk], line_begin[chunk] = first_pixel, end_pixel, num_lines * _CHUNK
        num_lines += end_pixel - first_pixel + 1
    sums = np.zeros(num_lines * _CHUNK)
    for chunk in range(num_chunks):
        for j in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, out_width)):
            n = box * out_width + j
            line = first[n] - np.int64(left[chunk])
            for t in range(begin[n], begin[n + 1]):
                line += 1
                sums[np.int64(line_begin[chunk]) + line * _CHUNK + j % _CHUNK] = weight[t]
        size = _unsigned(_CHUNK)
        for n in range(line_begin[chunk], line_begin[chunk] + (right[chunk] - left[chunk]) * size):
            sums[n + size] += sums[n]
    return left, right, line_begin, sums.astype(like.dtype)


@_jit
def _soft_rows(
    out: Any,
    labels: Any,
    label_strides: Any,
    shape: Any,
    taps_y: _Taps,
    taps_x: _Taps,
    mirrored: Any,
    ignore_index: int,
    tile: int,
    lanes: Any,
    phase: Any,
    first_row: int,
    end_row: int,
) -> None:
    """Output rows of a soft label; ``taps_x`` are those of the boxes with their sides in order.

    A tile of every class's line is summed up in cache, a chunk of it at a time. Pixels without a class add to one line
    more, which is dropped.
    """
    first_y, begin_y, weight_y, _ = taps_y
    num_classes, in_width, out_height, out_width = shape
    zero, one, chunk_size = weight_y.dtype.type(0), _unsigned(1), _unsigned(_CHUNK)
    pitch = np.uint32(tile + 16)  # not a power of two, or the lines of all classes would share their cache sets
    mass = np.zeros(_unsigned(num_classes + 1) * _unsigned(pitch), weight_y.dtype)  # (C + 1, pitch)
    present = np.zeros(mass.size, np.uint8)  # at [class * pitch]
    finished, blank = np.zeros(tile, out.dtype), True
    line_of = np.empty(in_width + _MASK_BITS + 1, np.uint32)  # where the line of each pixel's class begins
    run_end = np.empty(in_width, np.uint64)
    last_box = taps_x.first.size // out_width - 1
    known_box = min(first_row // out_height, last_box)
    chunk_left, chunk_right, chunk_weights, weights = _chunk_weights(known_box, out_width, taps_x, weight_y)
    for row in range(first_row, end_row):
        sample, i = row // out_height, row % out_height
        box = min(sample, last_box)
        if box != known_box:
            known_box = box
            chunk_left, chunk_right, chunk_weights, weights = _chunk_weights(box, out_width, taps_x, weight_y)

        output_y = box * out_height + i
        first_tap, end_tap = begin_y[output_y], begin_y[output_y + 1]
        for tile_begin in range(0, out_width, tile):
            tile_end = min(tile_begin + tile, out_width)
            chunks = range(_unsigned(tile_begin // _CHUNK), _unsigned((tile_end + _CHUNK - 1) // _CHUNK))
            left, right = _unsigned(in_width), _unsigned(0)
            for chunk in chunks:
                if chunk_left[chunk] < chunk_right[chunk]:
                    left, right = min(left, chunk_left[chunk]), max(right, chunk_right[chunk])
            right = max(left, right)

            row_weight = zero
            for t in range(first_tap, end_tap):
                y = first_y[output_y] + t - first_tap
                base = _unsigned(sample * label_strides[0] + y * label_strides[1])
                stride_x, stride_y = _unsigned(label_strides[2]), _unsigned(label_strides[1])
                row_weight += weight_y[t]
                if t + 1 < end_tap and stride_x == 1:
                    # Rows that repeat are added once, with the weight of all of them.
                    difference = labels.dtype.type(0)
                    for n in range(base + left, base + right):
                        difference = labels.dtype.type(difference | (labels[n] ^ labels[n + stride_y]))
                    if difference == 0:
                        continue
                if stride_x == 1:
                    for x in range(left, right):
                        line_of[x] = _line_of(labels[base + x], num_classes, ignore_index, pitch)
                else:
                    for x in range(left, right):
                        line_of[x] = _line_of(labels[base + x * stride_x], num_classes, ignore_index, pitch)

                _find_runs(line_of, left, right, run_end)
                run = _unsigned(0)
                for chunk in chunks:
                    begin, end = chunk_left[chunk], chunk_right[chunk]
                    if begin == end:
                        continue
                    # Neighbouring chunks share pixels: this one may begin in a run before that in which the last ended.
                    while run > 0 and run_end[run - one] > begin:
                        run -= one
                    while run_end[run] <= begin:
                        run += one
                    outputs = chunk * chunk_size - _unsigned(tile_begin)
                    edges = chunk_weights[chunk] - begin * chunk_size
                    while begin < end:
                        line, begin_next = line_of[begin], min(run_end[run], end)
                        present[line] = 1
                        edge, next_edge = edges + begin * chunk_size, edges + begin_next * chunk_size
                        _add_difference(mass, line + outputs, row_weight, weights, edge, next_edge)
                        begin = begin_next
                        run += one
                    run -= one
                row_weight = zero

            count = _unsigned(tile_end - tile_begin)
            column = _unsigned(out_width - tile_end if mirrored[box] else tile_begin)
            for label in range(_unsigned(num_classes)):
                start = (_unsigned(sample * num_classes) + label) * _unsigned(out_height) + _unsigned(i)
                start = start * _unsigned(out_width) + column
                line = label * _unsigned(pitch)
                if present[line]:
                    present[line] = 0
                    blank = False
                    if mirrored[box]:
                        for n in range(count):
                            finished[count - _unsigned(1) - n] = _narrow(mass[line + n], out)
                    else:
                        for n in range(count):
                            finished[n] = _narrow(mass[line + n], out)
                    for n in range(line, line + count):
                        mass[n] = zero
                elif not blank:
                    blank = True
                    for n in range(_unsigned(tile)):
                        finished[n] = 0
                _write(out, start, finished, count, lanes, phase)
    _fence()


def soft_crop_resize(out: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, filter: str) -> None:
    """Writes `tritonsoft.reference.soft_crop_resize` of a label map ``(B, H, W)`` to ``out (B, C, h, w)``."""
    batch, num_classes, out_height, out_width = out.shape
    in_height, in_width = labels.shape[1:]
    ends_y, ends_x = _ends(boxes, (in_height, in_width))
    # Each doubling of the number of taps costs a float32 sum up to a bit: many taps are summed in float64.
    areas = np.abs(np.diff(ends_y) * np.diff(ends_x))
    dtype = np.float64 if areas.max() > 64 * out_height * out_width else _sums_dtype(out)
    # Mirroring the finished row instead of the taps keeps a flip exact to the bit, whatever is added together.
    mirrored = ends_x[:, 1] < ends_x[:, 0]
    aligned = out.data_ptr() % _LINE_BYTES == 0 and out_width * out.itemsize % _LINE_BYTES == 0
    wide = np.int64 if labels.dtype == torch.int64 else np.int32
    arguments = (
        _flat(out),
        _flat(labels),
        labels.stride(),
        (wide(num_classes), in_width, out_height, out_width),
        _taps(ends_y, in_height, out_height, filter, dtype),
        _taps(np.sort(ends_x), in_width, out_width, filter, np.float64),
        mirrored,
        wide(_representable(ignore_index, labels.dtype, -1)),
        _TILE if aligned else 4 * _TILE,
        *_streaming(out),
    )
    work = out.numel() + labels.numel()
    _pool.run(lambda first, end: _soft_rows(*arguments, first, end), batch * out_height, work)


def _representable(value: int, dtype: torch.dtype, otherwise: int) -> int:
    limits = torch.iinfo(dtype)
    return value if limits.min <= value <= limits.max else otherwise


@_jit
def _rows_in_range(
    labels: Any, strides: Any, shape: Any, last: Any, ignore_index: Any, first_row: int, end_row: int
) -> bool:
    height, width = shape
    zero = labels.dtype.type(0)
    for row in range(first_row, end_row):
        begin = _unsigned(row // height * strides[0] + row % height * strides[1])
        bad = np.uint8(0)
        if strides[2] == 1:
            for n in range(begin, begin + _unsigned(width)):
                wrong = (labels[n] > last or labels[n] < zero) and labels[n] != ignore_index
                bad = np.uint8(bad | np.uint8(wrong))
        else:
            for x in range(_unsigned(width)):
                label = labels[begin + x * _unsigned(strides[2])]
                bad = np.uint8(bad | np.uint8((label > last or label < zero) and label != ignore_index))
        if bad:
            return False
    return True


def labels_in_range(labels: Tensor, num_classes: int, ignore_index: int) -> bool:
    """Whether every value of a label map ``(B, H, W)`` lies in ``0 .. num_classes - 1`` or is ``ignore_index``."""
    batch, height, width = labels.shape
    memory = _flat(labels)
    last = memory.dtype.type(min(num_classes - 1, torch.iinfo(labels.dtype).max))
    ignored = memory.dtype.type(_representable(ignore_index, labels.dtype, 0))
    arguments = (memory, labels.stride(), (height, width), last, ignored)
    # Bytes, not elements, limit this loop; it is far cheaper per element than the others.
    work = labels.nbytes // 8
    return all(_pool.run(lambda first, end: _rows_in_range(*arguments, first, end), batch * height, work))
