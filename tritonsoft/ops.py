"""The operators as `torch.library` custom ops: schema, shape inference, gradient, and which backend a device gets.

Arguments arrive checked by `tritonsoft.functional`, apart from the *values* of labels and boxes: those are only known
when an op runs (also inside a compiled graph), so they are checked here.
"""

import functools
import importlib.util
import itertools
import math
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonsoft import reference
from tritonsoft.conventions import MAX_COORDINATE

_Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]

BACKENDS = ("reference", "numba", "triton")

# Triton decides when it decorates a kernel whether that kernel is interpreted, so this too is fixed for the process.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@functools.cache
def explain_backend(device_type: str, forced: str | None) -> tuple[str | None, str]:
    """The backend that a device type gets and the reason; ``(None, why not)`` where a forced one cannot run."""
    on_gpu = device_type in ("cuda", "xpu")  # ROCm calls itself cuda
    reasons: dict[str, tuple[bool, str]] = {
        "triton": (
            _installed("triton") and (on_gpu or (device_type == "cpu" and _INTERPRETED)),
            "Triton is not installed"
            if not _installed("triton")
            else "Triton compiles for this device"
            if on_gpu
            else "TRITON_INTERPRET=1 runs the Triton kernels on CPU tensors"
            if device_type == "cpu" and _INTERPRETED
            else f"Triton has no {device_type} device; on a CPU it needs TRITON_INTERPRET=1 set before the import",
        ),
        "numba": (
            _installed("numba") and device_type == "cpu",
            f"Numba runs on the CPU, not on {device_type}"
            if device_type != "cpu"
            else "Numba is installed"
            if _installed("numba")
            else "Numba is not installed; pip install 'tritonsoft[cpu]'",
        ),
        "reference": (True, "eager PyTorch runs anywhere"),
    }
    if forced is not None:
        available, reason = reasons[forced]
        return (forced if available else None), reason
    for name, (available, reason) in reasons.items():
        if available and name != "reference":
            return name, reason
    missing = reasons["numba" if device_type == "cpu" else "triton"][1]
    return "reference", f"eager PyTorch runs anywhere ({missing})"


def _backend(device: torch.device, forced: str | None) -> str:
    name, reason = explain_backend(device.type, forced)
    if name is None:
        raise ValueError(f"backend={forced!r} cannot run on {device}: {reason}")
    return name


@functools.cache
def _module(backend: str) -> ModuleType:
    """The module that holds a compiled backend, imported at first use."""
    return importlib.import_module("tritonsoft.cpu" if backend == "numba" else "tritonsoft.kernels")


def _from_reference(out: Tensor, result: Callable[[], Tensor]) -> Tensor:
    with torch.autocast(out.device.type, enabled=False):  # its matrix products would lose their precision
        return out.copy_(result())


def is_channels_last(image: Tensor) -> bool:
    """Whether the channels of one pixel are neighbours in memory, so that the output keeps that order too.

    Unlike ``is_contiguous(memory_format=...)`` this also sees it in a view, such as a window of a channels_last image.
    """
    return image.shape[1] > 1 and image.stride(1) == 1 and image.stride(3) > 1


def _strides(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    if not channels_last:
        return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    _, channels, height, width = shape
    return channels * height * width, 1, width * channels, channels


_CACHE_LINE = 64  # bytes
_LARGE = 1 << 22  # bytes
# A training step needs the outputs of the last one again: those of eight 512x1024 crops with 19 classes in float32 are
# 330 MB. What is kept is memory that the process has needed at once before; a worker of a data loader keeps its own.
_MOST_KEPT = 1 << 29  # bytes


class _Blocks:
    """The memory of large outputs, kept for the next ones: mapping it anew costs as much time as filling it.

    An output owns a view of a block, and with it do all tensors and arrays that share its storage. Nothing else holds
    the view, so a block is free again once its view is gone.
    """

    def __init__(self) -> None:
        self._forget()
        if hasattr(os, "register_at_fork"):
            # A child would have to copy its parent's pages to reuse them, and another thread may have held the lock.
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
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
            if block.size <= _MOST_KEPT:
                self._kept.append((block, weakref.ref(view)))
            kept = sum(block.size for block, _ in self._kept)
            while kept > _MOST_KEPT:
                kept -= self._kept.pop(0)[0].size
        return view


_blocks = _Blocks()


def _empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> Tensor:
    """Memory for an output; never a view of another tensor, which autograd would not let callers change in place."""
    strides, num_bytes = _strides(shape, channels_last), math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or num_bytes < _LARGE:
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)
    memory = torch.from_numpy(_blocks.take(num_bytes))
    return torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), 0, shape, strides)


def _wants_validation(tensor: Tensor, validate: bool | None) -> bool:
    """Values are always checked on the CPU; on a GPU that costs a synchronisation and happens on request."""
    if tensor.device.type == "cpu":
        return True
    return os.environ.get("TRITONSOFT_VALIDATE") == "1" if validate is None else validate


def _check_boxes(boxes: Tensor | None, validate: bool | None) -> None:
    if boxes is None or not _wants_validation(boxes, validate):
        return
    limit = MAX_COORDINATE
    # Plain floats: for the few boxes of a batch a fifth of the time of array operations.
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        if -limit <= x0 <= limit and -limit <= y0 <= limit and -limit <= x1 <= limit and -limit <= y1 <= limit:
            if x0 != x1 and y0 != y1:
                continue
            rule = "have a width and a height other than zero"
        elif all(map(math.isfinite, (x0, y0, x1, y1))):
            rule = f"stay within ±{limit:.0f} pixels"
        else:
            rule = "be finite"
        raise ValueError(f"boxes must {rule}, got (x0, y0, x1, y1) = {(x0, y0, x1, y1)} for sample {index}")


def _check_labels(labels: Tensor, num_classes: int, ignore_index: int, backend: str, validate: bool | None) -> None:
    if labels.numel() == 0 or not _wants_validation(labels, validate):
        return
    if backend == "numba" and _module(backend).labels_in_range(labels, num_classes, ignore_index):
        return
    # Out-of-range scalars would wrap in a narrow dtype: compare with bounds that the dtype can hold.
    info = torch.iinfo(labels.dtype)
    bad = labels < 0
    if num_classes <= info.max:
        bad |= labels >= num_classes
    if info.min <= ignore_index <= info.max:
        bad &= labels != ignore_index
    if bad.any():
        values, least, largest = labels[bad], labels[bad].min().item(), labels[bad].max().item()
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1} (num_classes={num_classes}) or equal "
            f"ignore_index={ignore_index}, got {values.numel()} other values from {least} to {largest}"
        )


# --- image -----------------------------------------------------------------------------------------------------------


@torch.library.custom_op("tritonsoft::crop_resize", mutates_args=())
def crop_resize(
    image: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    filter: str,
    fill: float,
    dtype: torch.dtype,
    backend: str | None,
) -> Tensor:
    """Image ``(B, K, H, W)`` -> ``(B, K, h, w)``, in the image's memory format."""
    _check_boxes(boxes, None)
    return _crop_resize(_backend(image.device, backend), image, boxes, size, filter, fill, dtype)


def _crop_resize(
    backend: str,
    image: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    filter: str,
    fill: float,
    dtype: torch.dtype,
) -> Tensor:
    out = _empty((*image.shape[:2], *size), dtype, image.device, is_channels_last(image))
    if out.numel() == 0:
        return out
    if backend == "reference":
        return _from_reference(out, lambda: reference.crop_resize(image, boxes, size, filter, fill, dtype))
    _module(backend).crop_resize(out, image, boxes, filter, fill)
    return out


@crop_resize.register_fake
def _(
    image: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    filter: str,
    fill: float,
    dtype: torch.dtype,
    backend: str | None,
) -> Tensor:
    return _fake(image, (*image.shape[:2], *size), dtype)


def _fake(image: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return image.new_empty_strided(shape, _strides(shape, is_channels_last(image)), dtype=dtype)


@torch.library.custom_op("tritonsoft::crop_resize_adjoint", mutates_args=())
def crop_resize_adjoint(
    grad: Tensor, boxes: Tensor | None, size: Sequence[int], filter: str, dtype: torch.dtype, backend: str | None
) -> Tensor:
    """The transpose of `crop_resize`: ``(B, K, h, w)`` -> ``(B, K, H, W)`` with ``size = (H, W)``."""
    name = _backend(grad.device, backend)
    out = _empty((*grad.shape[:2], *size), dtype, grad.device, is_channels_last(grad))
    if out.numel() == 0:
        return out
    if name == "reference":
        return _from_reference(out, lambda: reference.crop_resize_adjoint(grad, boxes, size, filter, dtype))
    _module(name).crop_resize_adjoint(out, grad, boxes, filter)
    return out


@crop_resize_adjoint.register_fake
def _(
    grad: Tensor, boxes: Tensor | None, size: Sequence[int], filter: str, dtype: torch.dtype, backend: str | None
) -> Tensor:
    return _fake(grad, (*grad.shape[:2], *size), dtype)


def _setup_crop_resize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    image, boxes, _, filter, _, _, backend = inputs
    ctx.save_for_backward(boxes)
    ctx.source, ctx.filter, ctx.dtype, ctx.backend = image.shape[2:], filter, image.dtype, backend


def _backward_crop_resize(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (boxes,) = ctx.saved_tensors
    grad_image = crop_resize_adjoint(grad, boxes, ctx.source, ctx.filter, ctx.dtype, ctx.backend)
    return grad_image, None, None, None, None, None, None


def _setup_adjoint(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, boxes, _, filter, _, backend = inputs
    ctx.save_for_backward(boxes)
    ctx.size, ctx.filter, ctx.dtype, ctx.backend = grad.shape[2:], filter, grad.dtype, backend


def _backward_adjoint(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (boxes,) = ctx.saved_tensors
    return crop_resize(grad, boxes, ctx.size, ctx.filter, 0.0, ctx.dtype, ctx.backend), None, None, None, None, None


crop_resize.register_autograd(_backward_crop_resize, setup_context=_setup_crop_resize)
crop_resize_adjoint.register_autograd(_backward_adjoint, setup_context=_setup_adjoint)


# --- label map -------------------------------------------------------------------------------------------------------


@torch.library.custom_op("tritonsoft::soft_crop_resize", mutates_args=())
def soft_crop_resize(
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> Tensor:
    """Label map ``(B, H, W)`` -> soft label ``(B, C, h, w)``, contiguous."""
    name = _backend(labels.device, backend)
    _check_boxes(boxes, validate)
    _check_labels(labels, num_classes, ignore_index, name, validate)
    return _soft_crop_resize(name, labels, boxes, size, num_classes, ignore_index, filter, dtype)


def _soft_crop_resize(
    backend: str,
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    dtype: torch.dtype,
) -> Tensor:
    out = _empty((labels.shape[0], num_classes, *size), dtype, labels.device)
    if out.numel() == 0:
        return out
    if backend == "reference":
        return _from_reference(
            out,
            lambda: reference.soft_crop_resize(labels, boxes, size, num_classes, ignore_index, filter, dtype),
        )
    _module(backend).soft_crop_resize(out, labels, boxes, ignore_index, filter)
    return out


@soft_crop_resize.register_fake
def _(
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> Tensor:
    return labels.new_empty((labels.shape[0], num_classes, *size), dtype=dtype)


# A sorted list of that many candidates for each pixel is what a kernel keeps in registers.
_MOST_KEPT_CLASSES = 16


@torch.library.custom_op("tritonsoft::soft_crop_resize_top", mutates_args=())
def soft_crop_resize_top(
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    top_k: int,
    ignore_index: int,
    filter: str,
    index_dtype: torch.dtype,
    dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Label map ``(B, H, W)`` -> the k largest classes, their masses ``(B, k, h, w)``, and the rest ``(B, h, w)``."""
    name = _backend(labels.device, backend)
    _check_boxes(boxes, validate)
    _check_labels(labels, num_classes, ignore_index, name, validate)
    shape = (labels.shape[0], top_k, *size)
    index, mass = _empty(shape, index_dtype, labels.device), _empty(shape, dtype, labels.device)
    rest = _empty((labels.shape[0], *size), dtype, labels.device)
    if rest.numel() == 0:
        return index, mass, rest
    if name == "reference" or (name == "triton" and top_k > _MOST_KEPT_CLASSES):
        soft = _soft_crop_resize(name, labels, boxes, size, num_classes, ignore_index, filter, torch.float32)
        for output, result in zip((index, mass, rest), reference.top_k(soft, top_k), strict=True):
            output.copy_(result)
    else:
        _module(name).soft_crop_resize_top(index, mass, rest, labels, boxes, num_classes, ignore_index, filter)
    return index, mass, rest


@soft_crop_resize_top.register_fake
def _(
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    top_k: int,
    ignore_index: int,
    filter: str,
    index_dtype: torch.dtype,
    dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (labels.shape[0], top_k, *size)
    rest = labels.new_empty((labels.shape[0], *size), dtype=dtype)
    return labels.new_empty(shape, dtype=index_dtype), labels.new_empty(shape, dtype=dtype), rest


@torch.library.custom_op("tritonsoft::soft_pyramid", mutates_args=())
def soft_pyramid(
    labels: Tensor,
    num_classes: int,
    factors: Sequence[int],
    ignore_index: int,
    dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> list[Tensor]:
    """Label map ``(B, H, W)`` -> soft labels ``(B, C, H / f, W / f)``."""
    name = _backend(labels.device, backend)
    _check_labels(labels, num_classes, ignore_index, name, validate)
    height, width = labels.shape[1:]
    doubling = all(2 * fine == coarse for fine, coarse in itertools.pairwise(factors))
    # The Triton kernel counts what the dense path of `soft_crop_resize` counts, and halves it.
    fused = doubling and (name == "numba" or (name == "triton" and factors[0] in (1, 2, 4, 8) and num_classes <= 255))
    if not fused or labels.shape[0] == 0:
        return [
            _soft_crop_resize(
                name, labels, None, (height // factor, width // factor), num_classes, ignore_index, "area", dtype
            )
            for factor in factors
        ]
    outs = [
        _empty((labels.shape[0], num_classes, height // factor, width // factor), dtype, labels.device)
        for factor in factors
    ]
    _module(name).soft_pyramid(outs, labels, ignore_index)
    return outs


@soft_pyramid.register_fake
def _(
    labels: Tensor,
    num_classes: int,
    factors: Sequence[int],
    ignore_index: int,
    dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> list[Tensor]:
    batch, height, width = labels.shape
    return [
        labels.new_empty((batch, num_classes, height // factor, width // factor), dtype=dtype) for factor in factors
    ]


# --- both ------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("tritonsoft::crop_resize_pair", mutates_args=())
def crop_resize_pair(
    image: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    fill: float,
    dtype: torch.dtype,
    soft_dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """`crop_resize` and `soft_crop_resize` with the same boxes: one launch on a GPU."""
    name = _backend(image.device, backend)
    _check_boxes(boxes, validate)
    _check_labels(labels, num_classes, ignore_index, name, validate)
    if name != "triton" or image.numel() == 0:
        return (
            _crop_resize(name, image, boxes, size, filter, fill, dtype),
            _soft_crop_resize(name, labels, boxes, size, num_classes, ignore_index, filter, soft_dtype),
        )
    out = _empty((*image.shape[:2], *size), dtype, image.device, is_channels_last(image))
    out_soft = _empty((labels.shape[0], num_classes, *size), soft_dtype, labels.device)
    _module(name).crop_resize_pair(out, out_soft, image, labels, boxes, ignore_index, filter, fill)
    return out, out_soft


@crop_resize_pair.register_fake
def _(
    image: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    fill: float,
    dtype: torch.dtype,
    soft_dtype: torch.dtype,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    return (
        _fake(image, (*image.shape[:2], *size), dtype),
        labels.new_empty((labels.shape[0], num_classes, *size), dtype=soft_dtype),
    )


def _setup_pair(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    image, _, boxes, _, _, _, filter, *_, backend = inputs
    ctx.save_for_backward(boxes)
    ctx.source, ctx.filter, ctx.dtype, ctx.backend = image.shape[2:], filter, image.dtype, backend
    ctx.mark_non_differentiable(output[1])


def _backward_pair(ctx: Any, grad: Tensor, _grad_soft: Tensor | None) -> tuple[Tensor | None, ...]:
    (boxes,) = ctx.saved_tensors
    grad_image = crop_resize_adjoint(grad, boxes, ctx.source, ctx.filter, ctx.dtype, ctx.backend)
    return grad_image, *(None,) * 11


crop_resize_pair.register_autograd(_backward_pair, setup_context=_setup_pair)
