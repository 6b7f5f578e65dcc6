"""Loops over neighbours in memory vectorise by themselves. These are the ones that do not, written out as vectors."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

ROWS = 8  # rows of an image that are summed side by side: a vector of AVX2, two of NEON
CHUNK = 16  # outputs of a soft label that a run of one class is added to at once
MASK_BITS = 64


class _Vector(types.Type):  # type: ignore[misc]
    """`ROWS` numbers in a register."""

    def __init__(self, dtype: Any) -> None:
        super().__init__(name=f"Vector({dtype})")
        self.dtype = dtype


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: Any) -> None:
        super().__init__(manager, vector, ir.VectorType(manager.lookup(vector.dtype).get_value_type(), ROWS))


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
def vector_of(typing_context: Any, value: Any) -> Any:
    """The value in every element."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[0], ROWS)

    return _Vector(value)(value), generate


@intrinsic
def add_scaled(typing_context: Any, total: Any, weight: Any, array: Any, start: Any) -> Any:
    """``total + weight * array[start : start + ROWS]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = _Memory(context, builder, array, arguments[2], ROWS).load(arguments[3])
        return builder.fadd(arguments[0], builder.fmul(_spread(builder, arguments[1], ROWS), values))

    return total(total, array.dtype, array, types.uintp), generate


@intrinsic
def store_vector(typing_context: Any, array: Any, start: Any, vector: Any) -> Any:
    """``array[start : start + ROWS] = vector``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Memory(context, builder, array, arguments[0], ROWS).store(*arguments[1:])
        return context.get_dummy_value()

    return types.void(array, types.uintp, vector), generate


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
        difference = builder.fmul(_spread(builder, weight, CHUNK), difference)
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
