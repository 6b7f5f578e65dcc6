"""Loops over neighbours in memory vectorise by themselves. These are the ones that do not, written out as vectors.

A vector is a value like any other: `load` one, compute with ``+ - * < > <= >=`` and the functions below, `store` it. A
number beside a vector stands for as many of it. A comparison gives a vector of truths, for `where` and `all_of`.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from tritonsoft.backends.numba.elements import LINE_BYTES, mark_non_temporal

ROWS = 8  # rows of an image that are summed side by side: a vector of AVX2, two of NEON
LANES = 16  # pixels of a loss that are computed side by side: a vector of AVX-512, four of NEON
CHUNK = 16  # outputs of a soft label that a run of one class is added to at once
MASK_BITS = 64


class _Vector(types.Type):  # type: ignore[misc]
    """Numbers in registers."""

    def __init__(self, dtype: Any, count: int) -> None:
        super().__init__(name=f"Vector({dtype}, {count})")
        self.dtype, self.count = dtype, count


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: Any) -> None:
        is_truth = vector.dtype == types.boolean
        element = ir.IntType(1) if is_truth else manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.count))


class _Memory:
    """An array argument of an intrinsic, as vectors of ``count`` neighbours."""

    def __init__(self, context: Any, builder: Any, array_type: Any, array: Any, count: int) -> None:
        self._builder, self._size = builder, array_type.dtype.bitwidth // 8
        self._data = context.make_array(array_type)(context, builder, array).data
        self._pointer = ir.VectorType(context.get_data_type(array_type.dtype), count).as_pointer()
        self._bytes = self._size * count

    def _place(self, index: Any) -> Any:
        return self._builder.bitcast(self._builder.gep(self._data, [index]), self._pointer)

    def load(self, index: Any) -> Any:
        return self._builder.load(self._place(index), align=self._size)

    def store(self, index: Any, value: Any) -> None:
        self._builder.store(value, self._place(index), align=self._size)

    def stream(self, index: Any, value: Any) -> None:
        align = min(self._bytes, LINE_BYTES)
        mark_non_temporal(self._builder, self._builder.store(value, self._place(index), align=align))


def _broadcast(builder: Any, value: Any, count: int) -> Any:
    """A vector of ``count`` times the value."""
    vector = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    vector = builder.insert_element(vector, value, ir.IntType(32)(0))
    return builder.shuffle_vector(vector, vector, _places([0] * count))


def _places(places: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    """An intrinsic function of LLVM, element by element."""
    vector = arguments[0].type
    element = "f32" if vector.element == ir.FloatType() else "f64"
    kind = ir.FunctionType(vector, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{vector.count}{element}")
    return builder.call(function, arguments)


# --- vectors as values -----------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def broadcast(typing_context: Any, value: Any, count: Any) -> Any:
    """A vector of ``count`` times the value."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _broadcast(builder, arguments[0], count.literal_value)

    return _Vector(value, count.literal_value)(value, count), generate


@intrinsic(prefer_literal=True)
def load(typing_context: Any, array: Any, start: Any, count: Any) -> Any:
    """``array[start : start + count]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _Memory(context, builder, array, arguments[0], count.literal_value).load(arguments[1])

    return _Vector(array.dtype, count.literal_value)(array, types.uintp, count), generate


@intrinsic
def store(typing_context: Any, array: Any, start: Any, vector: Any) -> Any:
    """``array[start : start + count] = vector``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Memory(context, builder, array, arguments[0], vector.count).store(*arguments[1:])
        return context.get_dummy_value()

    return types.void(array, types.uintp, vector), generate


@intrinsic
def stream(typing_context: Any, array: Any, start: Any, vector: Any) -> Any:
    """A non-temporal `store`, from the beginning of a cache line or, for a shorter vector, a multiple of its size."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Memory(context, builder, array, arguments[0], vector.count).stream(*arguments[1:])
        return context.get_dummy_value()

    return types.void(array, types.uintp, vector), generate


@intrinsic
def convert(typing_context: Any, vector: Any, like: Any) -> Any:
    """The vector in the type of an array's elements."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if vector.dtype == like.dtype:
            return arguments[0]
        change = builder.fptrunc if vector.dtype.bitwidth > like.dtype.bitwidth else builder.fpext
        return change(arguments[0], context.get_value_type(_Vector(like.dtype, vector.count)))

    return _Vector(like.dtype, vector.count)(vector, like), generate


def _elementwise(emit: Callable[..., Any], kinds: tuple[Any, ...], gives_truth: bool = False) -> Any:
    """Typing and code of an intrinsic of vectors, of which some may be numbers; ``emit`` gets a builder and them."""
    vector = next(kind for kind in kinds if isinstance(kind, _Vector) and kind.dtype != types.boolean)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = [
            argument
            if isinstance(kind, _Vector)
            else _broadcast(builder, context.cast(builder, argument, kind, vector.dtype), vector.count)
            for kind, argument in zip(kinds, arguments, strict=True)
        ]
        return emit(builder, *vectors)

    return _Vector(types.boolean if gives_truth else vector.dtype, vector.count)(*kinds), generate


def _define(operation: Any, emit: Callable[..., Any], gives_truth: bool = False) -> None:
    @intrinsic
    def vectors(typing_context: Any, first: Any, second: Any) -> Any:
        return _elementwise(emit, (first, second), gives_truth)

    def compute(first: Any, second: Any) -> Any:
        return vectors(first, second)

    @overload(operation)
    def _(first: Any, second: Any) -> Any:
        return compute if isinstance(first, _Vector) or isinstance(second, _Vector) else None


_define(operator.add, lambda builder, a, b: builder.fadd(a, b))
_define(operator.sub, lambda builder, a, b: builder.fsub(a, b))
_define(operator.mul, lambda builder, a, b: builder.fmul(a, b))
_define(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))
for _operation, _sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">=")):
    _define(_operation, functools.partial(lambda sign, builder, a, b: builder.fcmp_ordered(sign, a, b), _sign), True)


@intrinsic
def multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once where the processor can."""
    return _elementwise(lambda builder, *vectors: _call(builder, "fmuladd", *vectors), (a, b, c))


@intrinsic
def where(typing_context: Any, condition: Any, a: Any, b: Any) -> Any:
    """``a`` where a comparison holds, else ``b``."""
    return _elementwise(lambda builder, *vectors: builder.select(*vectors), (condition, a, b))


@intrinsic
def all_of(typing_context: Any, condition: Any) -> Any:
    """Whether a comparison holds for all elements."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(condition.count))
        return builder.icmp_unsigned("==", bits, bits.type((1 << condition.count) - 1))

    return types.boolean(condition), generate


@intrinsic
def sum_of(typing_context: Any, vector: Any) -> Any:
    """The elements' sum as a double, one after the other."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total = ir.DoubleType()(0)
        for lane in range(vector.count):
            element = builder.extract_element(arguments[0], ir.IntType(32)(lane))
            total = builder.fadd(total, context.cast(builder, element, vector.dtype, types.float64))
        return total

    return types.float64(vector), generate


@intrinsic
def _power_of_two(typing_context: Any, shifted: Any) -> Any:
    """2 to the whole number n from -126 to 127, as float32, of vectors of float32 ``1.5 * 2^23 + n``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count, number = shifted.count, ir.IntType(32)
        bits = builder.bitcast(arguments[0], ir.VectorType(number, count))
        exponent = builder.sub(bits, _broadcast(builder, number(0x4B400000 - 127), count))
        bits = builder.shl(exponent, _broadcast(builder, number(23), count))
        return builder.bitcast(bits, arguments[0].type)

    return shifted(shifted), generate


@intrinsic
def _exp_of_system(typing_context: Any, value: Any) -> Any:
    return _elementwise(lambda builder, vector: _call(builder, "exp", vector), (value,))


def exp(value: Any) -> Any:
    """The exponential of a vector whose numbers are not above 0 by more than rounding."""


def _exp_single(value: Any) -> Any:
    # e^x = 2^n e^r with |r| <= ln(2) / 2. Adding 1.5 * 2^23 rounds x / ln(2) to n and leaves n in the lowest bits.
    # ln(2) comes in two parts, the first with few bits. The polynomial is that of expf in Cephes, good to 2e-7.
    shifted = multiply_add(value, 1.44269504, 12582912.0)
    whole = shifted - 12582912.0
    rest = multiply_add(whole, 2.12194440e-4, multiply_add(whole, -0.693359375, value))
    power = multiply_add(rest, 1.9875691500e-4, 1.3981999507e-3)
    power = multiply_add(power, rest, 8.3334519073e-3)
    power = multiply_add(power, rest, 4.1665795894e-2)
    power = multiply_add(power, rest, 1.6666665459e-1)
    power = multiply_add(power, rest, 5.0000001201e-1)
    power = multiply_add(power, rest * rest, rest + 1.0)
    return where(value <= -87.0, 0.0, power * _power_of_two(shifted))


def _exp_double(value: Any) -> Any:
    return _exp_of_system(value)


@overload(exp)
def _(value: Any) -> Any:
    return _exp_single if value.dtype == types.float32 else _exp_double


@intrinsic
def _log_of_system(typing_context: Any, value: Any) -> Any:
    return _elementwise(lambda builder, vector: _call(builder, "log", vector), (value,))


def log1p(value: Any) -> Any:
    """``log(1 + value)`` of a vector of numbers from 0 to 1, with all its digits however small they are."""


def _log1p_single(value: Any) -> Any:
    # ln(1 + x) = 2 artanh(s) with s = x / (2 + x) up to 1/3: s times a polynomial of its square, good to 1e-8.
    ratio = value / (value + 2.0)
    square = ratio * ratio
    series = multiply_add(square, 0.2816145420, 0.2796434462)
    series = multiply_add(series, square, 0.4002465010)
    series = multiply_add(series, square, 0.6666632295)
    return ratio * multiply_add(series, square, 2.0)


def _log1p_double(value: Any) -> Any:
    # What 1 + x loses of x, the quotient gives back (Kahan).
    total = value + 1.0
    return where(total > 1.0, _log_of_system(total) * (value / (total - 1.0)), value)


@overload(log1p)
def _(value: Any) -> Any:
    return _log1p_single if value.dtype == types.float32 else _log1p_double


# --- steps of a loop -------------------------------------------------------------------------------------------------


@intrinsic
def transpose_square(
    typing_context: Any, source: Any, start: Any, pitch: Any, target: Any, target_start: Any, target_pitch: Any
) -> Any:
    """Transposes `ROWS` rows of as many elements, ``pitch`` elements from row to row."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def indices(start: Any, pitch: Any) -> list[Any]:
            return [builder.add(start, builder.mul(pitch, ir.Constant(pitch.type, row))) for row in range(ROWS)]

        memory = _Memory(context, builder, source, arguments[0], ROWS)
        rows = [memory.load(index) for index in indices(*arguments[1:3])]
        for bit in (1 << n for n in range(ROWS.bit_length() - 1)):  # swap this bit of the row's and element's numbers
            low = _places([n + ROWS - bit if n & bit else n for n in range(ROWS)])
            high = _places([n + ROWS if n & bit else n + bit for n in range(ROWS)])
            for row in (row for row in range(ROWS) if not row & bit):
                pair = rows[row], rows[row + bit]
                rows[row], rows[row + bit] = builder.shuffle_vector(*pair, low), builder.shuffle_vector(*pair, high)
        memory = _Memory(context, builder, target, arguments[3], ROWS)
        for index, row in zip(indices(*arguments[4:]), rows, strict=True):
            memory.store(index, row)
        return context.get_dummy_value()

    place = (types.uintp, types.uintp)
    return types.void(source, *place, target, *place), generate


@intrinsic
def add_difference(typing_context: Any, sums: Any, start: Any, weight: Any, table: Any, begin: Any, end: Any) -> Any:
    """``sums[start + n] += weight * (table[end + n] - table[begin + n])`` for each n of a chunk."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, start, weight, _, begin, end = arguments
        total = _Memory(context, builder, sums, arguments[0], CHUNK)
        values = _Memory(context, builder, table, arguments[3], CHUNK)
        difference = builder.fsub(values.load(end), values.load(begin))
        difference = builder.fmul(_broadcast(builder, weight, CHUNK), difference)
        total.store(start, builder.fadd(total.load(start), difference))
        return context.get_dummy_value()

    return types.void(sums, types.uintp, sums.dtype, table, types.uintp, types.uintp), generate


@intrinsic
def mask_of_changes(typing_context: Any, array: Any, start: Any) -> Any:
    """A mask of the next `MASK_BITS` elements: whether the one after each differs from it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        memory, start = _Memory(context, builder, array, arguments[0], MASK_BITS), arguments[1]
        differ = builder.icmp_unsigned("!=", memory.load(start), memory.load(builder.add(start, start.type(1))))
        return builder.bitcast(differ, ir.IntType(MASK_BITS))

    return types.uint64(array, types.uintp), generate
