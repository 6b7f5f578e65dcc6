"""Memory for outputs, and the pool that keeps that of large CPU outputs for the next ones.

Mapping fresh memory costs as much time as filling it, so a block whose tensors are all gone serves the next output of
about its size: a training step needs again what the last one needed. Two functions are for users: `set_pool_limit` says
how much a process keeps (0: nothing), and `empty_pool` gives back what is not in use. GPU outputs come from PyTorch's
allocator, which does the same.
"""

import math
import os
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]

_CACHE_LINE = 64  # bytes
_MIN_POOLED = 1 << 22  # bytes: what is smaller comes from memory that the allocator has at hand
# The outputs of eight 512x1024 crops with 19 classes in float32 are 330 MB.
_DEFAULT_LIMIT = 1 << 29  # bytes


def set_pool_limit(num_bytes: int) -> None:
    """Keep at most this much memory of CPU outputs for the next ones; by default 512 MB in a process.

    The limit counts blocks in use as well as free ones, and an output larger than all of it is never kept. Each process
    has its own pool: a worker of a data loader starts with an empty one and the limit of the process that forked it.

    Args:
        num_bytes: at least 0. With 0 every output is fresh memory, as PyTorch's own are.

    Raises:
        TypeError: ``num_bytes`` is not an int.
        ValueError: ``num_bytes`` is negative.

    Example:
        >>> import tritonsoft as ts
        >>> ts.memory.set_pool_limit(1 << 30)
        >>> ts.memory.set_pool_limit(1 << 29)
    """
    if not isinstance(num_bytes, int) or isinstance(num_bytes, bool):
        raise TypeError(f"num_bytes must be an int, got {type(num_bytes).__name__}")
    if num_bytes < 0:
        raise ValueError(f"num_bytes must be at least 0, got {num_bytes}")
    pool.set_limit(num_bytes)


def empty_pool() -> None:
    """Give the memory of CPU outputs that are gone back to the system; what is in use stays with its tensors.

    Example:
        >>> import tritonsoft as ts
        >>> ts.memory.empty_pool()
    """
    pool.clear()


def is_channels_last(image: Tensor) -> bool:
    """Whether the channels of one pixel are neighbours in memory, so that the output keeps that order too.

    Unlike ``is_contiguous(memory_format=...)`` this also sees it in a view, such as a window of a channels_last image.
    """
    return image.shape[1] > 1 and image.stride(1) == 1 and image.stride(3) > 1


def strides_of(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    if channels_last:
        _, channels, height, width = shape
        return channels * height * width, 1, width * channels, channels
    strides = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        strides[axis - 1] = strides[axis] * shape[axis]
    return tuple(strides)


class BufferPool:
    """Blocks of memory, each with a weak reference to the view of it that is in use.

    An output owns a view of a block, and with it do all tensors and arrays that share its storage. Nothing else holds
    the view, so a block is free again once its view is gone.
    """

    def __init__(self, limit: int = _DEFAULT_LIMIT) -> None:
        self._limit = limit  # bytes
        self._reset()
        if hasattr(os, "register_at_fork"):
            # A child would have to copy its parent's pages to reuse them, and another thread may have held the lock.
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._blocks: list[tuple[_Bytes, weakref.ref[_Bytes]]] = []  # least recently used first

    def clear(self) -> None:
        """Forget all blocks; what is in use stays with its owners."""
        with self._lock:
            self._blocks.clear()

    def set_limit(self, limit: int) -> None:
        """Hold blocks of at most this many bytes together."""
        with self._lock:
            self._limit = limit
            self._evict()

    def acquire(self, num_bytes: int) -> _Bytes:
        """Memory of this size that nothing else uses, aligned to cache lines."""
        with self._lock:
            # Up to an eighth of a block may stay unused.
            fitting = [
                (block.size, index)
                for index, (block, view) in enumerate(self._blocks)
                if view() is None and 0 <= block.size - _CACHE_LINE - num_bytes <= block.size // 8
            ]
            # NumPy asks the kernel for huge pages and torch does not: first touch of a large output costs a fifth.
            block = self._blocks.pop(min(fitting)[1])[0] if fitting else np.empty(num_bytes + _CACHE_LINE, np.uint8)
            start = -block.ctypes.data % _CACHE_LINE
            view = block[start : start + num_bytes]
            if block.size <= self._limit:
                self._blocks.append((block, weakref.ref(view)))
            self._evict()
        return view

    def _evict(self) -> None:
        """Forget the least recently used blocks until the others are within the limit."""
        total = sum(block.size for block, _ in self._blocks)
        while total > self._limit:
            total -= self._blocks.pop(0)[0].size


pool = BufferPool()


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> Tensor:
    """Memory for an output; never a view of another tensor, which autograd would not let callers change in place."""
    if device.type == "cpu" and (num_bytes := math.prod(shape) * dtype.itemsize) >= _MIN_POOLED:
        memory = torch.from_numpy(pool.acquire(num_bytes))
        return torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), 0, shape, strides_of(shape, channels_last))
    if channels_last:
        return torch.empty_strided(shape, strides_of(shape, True), dtype=dtype, device=device)
    return torch.empty(shape, dtype=dtype, device=device)
