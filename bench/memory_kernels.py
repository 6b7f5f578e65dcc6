"""Kernels that read, fill and copy memory and do nothing else, launched as ours are: the rates of a GPU's floor."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.kernels.launch import Launch

BLOCK = 4096  # elements of a program: with four warps, eight accesses of 16 bytes a thread for float32
OPTIONS = {"num_warps": 4}


@triton.jit
def read_kernel(source, sums, num_elements, BLOCK: tl.constexpr):
    """One sum of each block."""
    program = tl.program_id(0)
    offsets = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(sums + program, tl.sum(tl.load(source + offsets, mask=offsets < num_elements, other=0.0)))


@triton.jit
def fill_kernel(out, value, num_elements, BLOCK: tl.constexpr):
    """``value`` comes at run time: no compiler may know what is stored."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.zeros((BLOCK,), out.dtype.element_ty) + value, mask=offsets < num_elements)


@triton.jit
def copy_kernel(source, out, num_elements, BLOCK: tl.constexpr):
    """From one tensor to another."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = offsets < num_elements
    tl.store(out + offsets, tl.load(source + offsets, mask=exists), mask=exists)


@triton.jit
def clear_caches_kernel(out, value, num_elements, BLOCK: tl.constexpr):
    """`fill_kernel` under another name, by which a profile tells it from what is timed."""
    fill_kernel(out, value, num_elements, BLOCK)


def num_blocks(tensor: Tensor) -> int:
    """How many sums `read` makes."""
    return int(triton.cdiv(tensor.numel(), BLOCK))


def _launch(kernel: Any, blocks_of: Tensor, **arguments: Any) -> Launch:
    arguments |= {"num_elements": blocks_of.numel(), "BLOCK": BLOCK}
    return Launch(kernel, (num_blocks(blocks_of),), arguments, OPTIONS)


def read(source: Tensor, sums: Tensor) -> Launch:
    """Writes the sum of each block of 4096 elements."""
    return _launch(read_kernel, source, source=source, sums=sums)


def fill(out: Tensor, value: float) -> Launch:
    """Writes one number everywhere."""
    return _launch(fill_kernel, out, out=out, value=value)


def copy(source: Tensor, out: Tensor) -> Launch:
    """Writes what it reads."""
    return _launch(copy_kernel, out, source=source, out=out)


def clear_caches(buffer: Tensor, value: float) -> Launch:
    """Fills a buffer several times as large as the caches."""
    return _launch(clear_caches_kernel, buffer, out=buffer, value=value)
