"""Memory for outputs."""

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
_LARGE = 1 << 22  # bytes
# A training step needs the outputs of the last one again: those of eight 512x1024 crops with 19 classes in float32 are
# 330 MB. What is kept is memory that the process has needed at once before; a worker of a data loader keeps its own.
MOST_KEPT = 1 << 29  # bytes


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


class Blocks:
    """The memory of large outputs, kept for the next ones: mapping it anew costs as much time as filling it.

    An output owns a view of a block, and with it do all tensors and arrays that share its storage. Nothing else holds
    the view, so a block is free again once its view is gone.
    """

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            # A child would have to copy its parent's pages to reuse them, and another thread may have held the lock.
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Keep nothing; what is in use stays with its owners."""
        self._lock = threading.Lock()
        self._kept: list[tuple[_Bytes, weakref.ref[_Bytes]]] = []  # least recently used first

    def take(self, num_bytes: int) -> _Bytes:
        """Memory of this size that nothing else uses, aligned to cache lines."""
        with self._lock:
            # Up to an eighth of a block may stay unused.
            fitting = [
                (block.size, index)
                for index, (block, view) in enumerate(self._kept)
                if view() is None and 0 <= block.size - _CACHE_LINE - num_bytes <= block.size // 8
            ]
            # NumPy asks the kernel for huge pages and torch does not: first touch of a large output costs a fifth.
            block = self._kept.pop(min(fitting)[1])[0] if fitting else np.empty(num_bytes + _CACHE_LINE, np.uint8)
            start = -block.ctypes.data % _CACHE_LINE
            view = block[start : start + num_bytes]
            if block.size <= MOST_KEPT:
                self._kept.append((block, weakref.ref(view)))
            kept = sum(block.size for block, _ in self._kept)
            while kept > MOST_KEPT:
                kept -= self._kept.pop(0)[0].size
        return view


blocks = Blocks()


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> Tensor:
    """Memory for an output; never a view of another tensor, which autograd would not let callers change in place."""
    if device.type == "cpu" and (num_bytes := math.prod(shape) * dtype.itemsize) >= _LARGE:
        memory = torch.from_numpy(blocks.take(num_bytes))
        return torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), 0, shape, strides_of(shape, channels_last))
    if channels_last:
        return torch.empty_strided(shape, strides_of(shape, True), dtype=dtype, device=device)
    return torch.empty(shape, dtype=dtype, device=device)
