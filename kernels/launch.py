"""What the launchers share: a launch as a value, and the rules that turn shapes into launch settings.

A launch is decided by a pure function of shapes, strides and types, never by timing: nothing is tuned at run time, and
tests and benchmarks compile the very configuration that would run, on machines without a GPU (`Launch.compile`).
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonsoft.conventions import Filter

_INT32_LIMIT = 2**31


class Launch(NamedTuple):
    """A kernel with its grid, its arguments by name and its compile options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    def run(self, device: torch.device) -> None:
        """Launch on ``device``, whichever device is current."""
        if device.type == "cpu":  # the interpreter
            self.kernel[self.grid](**self.arguments, **self.options)
            return
        module = getattr(torch, device.type)
        if device.index == module.current_device():
            self.kernel[self.grid](**self.arguments, **self.options)
        else:
            with module.device(device):
                self.kernel[self.grid](**self.arguments, **self.options)

    def compile(self, target: Any) -> Any:
        """The compiled kernel for a ``GPUTarget``, specialised as a launch would; the tensors may be on "meta"."""
        from triton.compiler import ASTSource, make_backend
        from triton.runtime.jit import create_function_from_signature

        kernel, backend = self.kernel, make_backend(target)
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, keywords = bind(**self.arguments, **self.options)
        options, signature, constants, attributes = kernel._pack_args(
            backend, keywords, bound, specialization, self.options
        )
        source = ASTSource(kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=options.__dict__)


def platform_of(device: torch.device) -> str:
    """Who compiles for a device: "cuda" (NVIDIA), "hip" (AMD), another device type, or "cpu" for the interpreter."""
    return "hip" if torch.version.hip and device.type == "cuda" else device.type


def dense_factor(
    labels: Tensor | None, boxes: Tensor | None, size: tuple[int, int], num_classes: int, filter: Filter
) -> int:
    """The integer factor of the dense path, 0 for the general one."""
    if labels is None or boxes is not None or filter != "area" or num_classes > 255:
        return 0
    factor = labels.shape[1] // size[0]
    dense = factor in (1, 2, 4, 8) and tuple(labels.shape[1:]) == (factor * size[0], factor * size[1])
    return factor if dense else 0


def dense_tile(factor: int, element_size: int, platform: str) -> tuple[dict[str, Any], int, int]:
    """Compile options of the dense path, the outputs of a tile, and of a thread: the neighbours it stores at once."""
    # A warp takes one tile. 16 bytes are what a thread loads or stores at once, whichever fills up first.
    per_thread = min(16 // factor, 16 // element_size, 8)
    return {"num_warps": 1}, (64 if platform == "hip" else 32) * per_thread, per_thread


def register_limit(platform: str, accumulator: Any, resamples: bool = False) -> dict[str, int]:
    """A compile option for kernels with loops over taps; ``resamples`` an image."""
    # Left to itself, ptxas aims at 128 registers and at times spills some to get there. Given a limit somewhat above,
    # it does without. Up to 168 as many programs of four warps fit on a multiprocessor as with 136.
    if platform != "cuda":
        return {}
    return {"maxnreg": 255 if accumulator is tl.float64 else 168 if resamples else 136}


def tile_shape(height: int, width: int, elements: int) -> tuple[int, int]:
    """A tile of powers of two with about ``elements`` outputs, 64 columns wide where the output has them."""
    tall, wide = triton.next_power_of_2(height), triton.next_power_of_2(width)
    block_h = min(tall, max(1, elements // min(wide, 64)))
    return block_h, max(1, min(wide, elements // block_h))


def power_of_two_factor(size: int, limit: int) -> int:
    """The largest power of two up to ``limit`` that divides a size."""
    return min(size & -size, limit)


def accumulator_type(*tensors: Tensor | None) -> Any:
    """float64 if any of the tensors is, else float32."""
    return tl.float64 if any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors) else tl.float32


def offset_type(*tensors: Tensor | None) -> Any:
    """The integer that holds every offset inside a plane of these tensors; where a plane starts is always an int64."""
    for tensor in tensors:
        if tensor is not None:
            (height, width), (stride_y, stride_x) = tensor.shape[-2:], tensor.stride()[-2:]
            if (height - 1) * stride_y + (width - 1) * stride_x >= _INT32_LIMIT:
                return tl.int64
    return tl.int32
