"""What the launchers share: a launch as a value, its memory, and the rules that turn shapes into launch settings.

A launch is decided by a pure function of shapes, strides and types, never by timing: nothing is tuned at run time, and
tests and benchmarks compile the very configuration that would run, on machines without a GPU (`Launch.compile`).

The same call gets the same kernel with the same arguments, its tensors apart. `launch` remembers them: it asks for the
configuration, and Triton for the kernel, at the first such call only.
"""

import collections
import contextlib
import math
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel

from tritonsoft import memory
from tritonsoft.geometry import Filter

_INT32_LIMIT = 2**31
_INTERPRETED = triton.knobs.runtime.interpret
TRITON_VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
# What Triton 3.9 makes of the kernels with `row_options` needs more registers than the limits there leave.
_MORE_REGISTERS = 16 if TRITON_VERSION >= (3, 9) else 0


class Launch(NamedTuple):
    """A kernel with its grid, its arguments by name and its compile options.

    ``scratch`` names the arguments that the configuration has allocated, contiguous; all other tensors are its inputs.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]
    scratch: tuple[str, ...] = ()

    def run(self, device: torch.device) -> Any:
        """Launch on ``device``, whichever device is current; returns the compiled kernel."""
        with on_device(device):
            return self.kernel[self.grid](**self.arguments, **self.options)

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


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """What makes a device the current one, where it is not."""
    if _INTERPRETED:
        return _NOTHING
    module = getattr(torch, device.type)
    context: contextlib.AbstractContextManager[Any] = (
        _NOTHING if device.index == module.current_device() else module.device(device)
    )
    return context


_NOTHING = contextlib.nullcontext()


# --- remembered launches ---------------------------------------------------------------------------------------------

MAX_REMEMBERED = 1024  # launches; the least recently used one is forgotten first


class _TensorAt(NamedTuple):
    """In the place of a tensor: where it stands among the inputs, which the scratch tensors follow."""

    index: int


class RememberedLaunch:
    """A compiled kernel and its arguments in order, without any tensor."""

    def __init__(self, compiled: Any, planned: Launch, inputs: Sequence[Any]) -> None:
        """``inputs`` are those that ``planned`` was made of; no two of them may be the same object."""
        scratch = [planned.arguments[name] for name in planned.scratch]
        places = {id(tensor): index for index, tensor in enumerate([*inputs, *scratch]) if isinstance(tensor, Tensor)}

        def without_tensors(value: Any) -> Any:
            if isinstance(value, Tensor):
                return _TensorAt(places[id(value)])  # a KeyError: neither an input nor named as scratch memory
            return tuple(map(without_tensors, value)) if isinstance(value, tuple) else value

        arguments = [without_tensors(planned.arguments[name]) for name in planned.kernel.arg_names]
        if len(arguments) != len(planned.arguments) or not all(tensor.is_contiguous() for tensor in scratch):
            raise ValueError(f"the launch of {planned.kernel} cannot be remembered")
        self.kernel = planned.kernel
        self._launch = compiled[(*planned.grid, 1, 1)[:3]]
        self._arguments = arguments
        self._tensors = [(n, value.index) for n, value in enumerate(arguments) if type(value) is _TensorAt]
        self._tuples = [
            (n, value) for n, value in enumerate(arguments) if type(value) is tuple and _holds_tensor(value)
        ]
        self._scratch = [(tensor.shape, tensor.dtype) for tensor in scratch]

    def run(self, device: torch.device, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        """Launch with these inputs; returns the scratch tensors."""
        scratch = tuple([memory.empty(shape, dtype, device) for shape, dtype in self._scratch])
        tensors = (*inputs, *scratch)
        arguments = self._arguments.copy()
        for position, index in self._tensors:
            arguments[position] = tensors[index]
        for position, template in self._tuples:
            arguments[position] = _filled(template, tensors)
        with on_device(device):
            self._launch(*arguments)
        return scratch


def _holds_tensor(template: Any) -> bool:
    return type(template) is _TensorAt or (type(template) is tuple and any(map(_holds_tensor, template)))


def _filled(template: Any, tensors: Sequence[Any]) -> Any:
    if type(template) is _TensorAt:
        return tensors[template.index]
    return tuple([_filled(value, tensors) for value in template]) if type(template) is tuple else template


class LaunchCache:
    """Launches by what decides them; bounded, and shared by all threads."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self.clear()
        # In a child process no compiled kernel is loaded, and another thread of the parent may have held the lock.
        os.register_at_fork(after_in_child=self.clear)

    def clear(self) -> None:
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[Hashable, RememberedLaunch] = collections.OrderedDict()

    def get(self, key: Hashable) -> RememberedLaunch | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, key: Hashable, entry: RememberedLaunch) -> None:
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            while len(self._entries) > self.max_entries:
                self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)


remembered = LaunchCache(MAX_REMEMBERED)


def _key_of(value: Any) -> Hashable:
    """All that a configuration, and Triton when it specialises a kernel, may read of an input."""
    if isinstance(value, Tensor):
        key = (value.dtype, value.shape, value.stride(), value.data_ptr() % 16)
        # On AMD a kernel of small memories addresses them in another way.
        return (*key, value.untyped_storage().nbytes() < _INT32_LIMIT) if torch.version.hip else key
    # Equal numbers of two types are two inputs, and so are 0.0 and -0.0.
    return type(value), value.hex() if type(value) is float else value


def _is_watched(kernel: Any) -> bool:
    """Whether Triton is told to compile or launch in a way that only its own launch knows of."""
    knobs = triton.knobs
    return bool(
        kernel.pre_run_hooks
        or knobs.runtime.debug
        or knobs.runtime.add_stages_inspection_hook
        or knobs.compilation.instrumentation_mode
    )


def launch(configuration: Callable[..., Launch], device: torch.device, *inputs: Any) -> tuple[Tensor, ...]:
    """Launch what ``configuration(*inputs, platform=...)`` decides; returns its scratch tensors.

    The inputs are tensors, numbers, strings and None. Tensors are told apart by type, shape, strides and alignment: a
    configuration must not read anything else of them.
    """
    if _INTERPRETED:
        planned = configuration(*inputs, platform=platform_of(device))
        planned.run(device)
        return tuple([planned.arguments[name] for name in planned.scratch])
    key = (configuration, device, *[_key_of(value) for value in inputs])
    entry = remembered.get(key)
    if entry is not None and not _is_watched(entry.kernel):
        return entry.run(device, inputs)
    # Of each tensor a view, so that none is the same object as another: where an argument comes from is then certain.
    views = [value.detach() if isinstance(value, Tensor) else value for value in inputs]
    planned = configuration(*views, platform=platform_of(device))
    compiled = planned.run(device)
    # None where a hook of Triton's has kept the kernel from being compiled.
    if isinstance(compiled, CompiledKernel) and not _is_watched(planned.kernel):
        remembered.put(key, RememberedLaunch(compiled, planned, views))
    return tuple([planned.arguments[name] for name in planned.scratch])


# --- rules -----------------------------------------------------------------------------------------------------------


def platform_of(device: torch.device) -> str:
    """Who compiles for a device: "cuda" (NVIDIA), "hip" (AMD), another device type, or "cpu" for the interpreter."""
    return "hip" if torch.version.hip and device.type == "cuda" else device.type


def integer_factor(
    labels: Tensor | None, boxes: Tensor | None, size: tuple[int, int], num_classes: int, filter: Filter
) -> int:
    """The factor at which labels are counted from bit planes (`counting_integer`), 0 for the general way."""
    if labels is None or boxes is not None or filter != "area" or num_classes > 255:
        return 0
    factor = labels.shape[1] // size[0]
    has_bit_planes = factor in (1, 2, 4, 8) and tuple(labels.shape[1:]) == (factor * size[0], factor * size[1])
    return factor if has_bit_planes else 0


def integer_factor_tile(factor: int, element_size: int, platform: str) -> tuple[dict[str, Any], int, int]:
    """Compile options at integer factors, the outputs of a tile, and of a thread: the neighbours it stores at once."""
    # A warp takes one tile. 16 bytes are what a thread loads or stores at once, whichever fills up first.
    per_thread = min(16 // factor, 16 // element_size, 8)
    return {"num_warps": 1}, (64 if platform == "hip" else 32) * per_thread, per_thread


def register_limit(platform: str, accumulator: Any) -> dict[str, int]:
    """A compile option for kernels with loops over taps."""
    # Left to itself, ptxas aims at 128 registers and at times spills some to get there. Given a limit somewhat above,
    # it does without.
    return {"maxnreg": 255 if accumulator is tl.float64 else 136} if platform == "cuda" else {}


def tile_shape(height: int, width: int, elements: int) -> tuple[int, int]:
    """A tile of powers of two with about ``elements`` outputs, 64 columns wide where the output has them."""
    tall, wide = triton.next_power_of_2(height), triton.next_power_of_2(width)
    block_h = min(tall, max(1, elements // min(wide, 64)))
    return block_h, max(1, min(wide, elements // block_h))


class RowTile(NamedTuple):
    """The constants of a tile that is made row by row (`resampling`)."""

    block_h: int
    block_w: int
    block_source: int
    group: int


def row_tile(size: tuple[int, int], in_size: tuple[int, int], filter: Filter, whole: bool) -> RowTile:
    """A tile for outputs ``size`` of sources ``in_size``; ``whole`` where no box is smaller.

    Any tile serves any scale. This one lets a line hold what lies under a row of the tile, and a group the taps of an
    output, as long as no box is larger than the image.
    """
    scale_y, scale_x = in_size[0] / size[0], in_size[1] / size[1]
    wide = triton.next_power_of_2(math.ceil(scale_x))
    block_source = 256 if wide <= 4 else 512
    block_w = min(triton.next_power_of_2(size[1]), max(block_source // wide, 16))
    two_taps = scale_x <= 1 or (whole and scale_x == 2 and filter == "area")
    return RowTile(
        min(triton.next_power_of_2(size[0]), max(32 // triton.next_power_of_2(math.ceil(scale_y)), 1), 8),
        block_w,
        min(max(block_w * wide, 64), block_source),
        2 if two_taps else min(max(wide, 4), 16),
    )


def row_options(
    tile: RowTile,
    accumulator: Any,
    platform: str,
    image: Tensor | None,
    labels: Tensor | None,
    keeps_state: bool = False,
    many_classes: bool = False,
) -> dict[str, Any]:
    """Compile options of a kernel that makes its tile row by row (`resampling`).

    ``keeps_state``: of each pixel; ``many_classes``: more than 32.
    """
    # Two warps, since one alone gathers by shuffles. The limits are the least registers that need no local memory: what
    # hides the loads of one row are other programs.
    if platform != "cuda":
        return {"num_warps": 2}
    limit = 80 if tile.group == 2 else 96 if tile.group == 4 else 128
    if image is not None and labels is not None:
        limit = max(limit, 96)
    if tile.block_w == tile.block_source:
        limit += 48  # for twice the outputs of a thread
    if keeps_state:
        limit += 32
    if many_classes:
        limit += 16
    if image is not None and image.shape[1] > 4:
        limit += 32  # for what a loop over the channels needs
    if any(tensor is not None and (tensor.stride(-1) != 1 or tensor.element_size() == 8) for tensor in (image, labels)):
        limit += 32  # for a pointer, or two registers, for each pixel
    return {"num_warps": 2, "maxnreg": 255 if accumulator is tl.float64 else min(limit + _MORE_REGISTERS, 255)}


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
