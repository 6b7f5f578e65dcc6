"""Loops that read, fill and copy memory and do nothing else, with the threads and stores of the Numba backend."""

from typing import Any

import numpy as np
from numba import njit
from torch import Tensor

from tritonsoft.backends.numba.elements import streaming, write_line
from tritonsoft.backends.numba.threads import pool, unsigned

BLOCK = 4096  # elements, of float32: in the first cache


@njit(nogil=True, error_model="numpy")
def _read(source: Any, first: Any, end: Any) -> Any:
    total = np.int64(0)
    for n in range(unsigned(first), unsigned(end)):
        total += source[n]
    return total


@njit(nogil=True, error_model="numpy")
def _fill(out: Any, value: Any, first: Any, end: Any, line_length: Any, to_boundary: Any) -> None:
    line = np.full(BLOCK, value)
    for start in range(first, end, BLOCK):
        count = unsigned(min(BLOCK, end - start))
        write_line(out, unsigned(start), line, count, unsigned(line_length), unsigned(to_boundary))


@njit(nogil=True, error_model="numpy")
def _copy(source: Any, out: Any, first: Any, end: Any, line_length: Any, to_boundary: Any) -> None:
    for start in range(first, end, BLOCK):
        count = min(BLOCK, end - start)
        line = source[start : start + count]
        write_line(out, unsigned(start), line, unsigned(count), unsigned(line_length), unsigned(to_boundary))


def read(source: Tensor) -> int:
    """The sum of all integers (int64, contiguous)."""
    values = source.numpy()
    sums = pool.run(lambda first, end: _read(values, first, end), values.size, _nanoseconds(source))
    return int(sum(sums))


def fill(out: Tensor, value: float) -> None:
    """Write one number everywhere (float32, contiguous)."""
    values, line = out.numpy(), streaming(out)
    pool.run(lambda first, end: _fill(values, np.float32(value), first, end, *line), values.size, _nanoseconds(out))


def copy(source: Tensor, out: Tensor) -> None:
    """Write what is read (float32, contiguous)."""
    read_from, values, line = source.numpy(), out.numpy(), streaming(out)
    pool.run(lambda first, end: _copy(read_from, values, first, end, *line), values.size, _nanoseconds(out))


def _nanoseconds(tensor: Tensor) -> float:
    """About what one core takes."""
    return tensor.nbytes / 10
