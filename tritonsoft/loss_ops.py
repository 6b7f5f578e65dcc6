"""The losses as `torch.library` custom ops, as `tritonsoft.ops` does it for the operators; the same rules hold.

Each loss gives numbers for every pixel, and keeps for its gradient two of them: the mass and the logsumexp. The
gradient reads the logits again and is rounded once, with its final scale: written together with the loss it would have
to be scaled later, when half precision has already lost small numbers.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from tritonsoft import memory, reference
from tritonsoft.backends import backend_of, module_of
from tritonsoft.checks import (
    MASS_TOLERANCE,
    are_shares,
    are_swapped,
    check_box_values,
    check_label_values,
    total_shares,
    wants_validation,
)

_Maps = tuple[Tensor, Tensor, Tensor]  # loss, mass and logsumexp, each (B, h, w)


def working_type(logits: Tensor) -> torch.dtype:
    """What a loss is computed and returned in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def check_soft_values(soft: Tensor, index: Tensor | None, num_classes: int, name: str, validate: bool | None) -> None:
    if soft.numel() == 0 or not wants_validation(soft, validate):
        return
    if name != "numba" and not are_shares(soft):  # Numba looks at masses while it reads them for the loss
        refuse_soft_values(soft)
    if index is not None:
        least, largest = index.min().item(), index.max().item()
        if least < 0 or largest >= num_classes:
            raise ValueError(f"soft.index must lie in 0..{num_classes - 1}, got values from {least} to {largest}")


def refuse_soft_values(soft: Tensor) -> NoReturn:
    least = soft.min().item()
    swapped = are_swapped("soft") if least < -MASS_TOLERANCE else ""
    raise ValueError(
        f"soft must hold masses, at least 0 and at most 1 in all classes of a pixel together, within 1/64, "
        f"got entries from {least:.6g} and sums up to {total_shares(soft).max().item():.6g}{swapped}"
    )


def check_weight_values(weight: Tensor | None, validate: bool | None) -> None:
    if (
        weight is not None
        and wants_validation(weight, validate)
        and not bool(((weight >= 0) & weight.isfinite()).all())
    ):
        raise ValueError(f"weight must hold finite numbers that are not negative, got {weight.tolist()}")


def _in_working_type(logits: Tensor, *tensors: Tensor | None) -> list[Any]:
    dtype = working_type(logits)
    return [None if tensor is None else tensor.to(dtype) for tensor in (logits, *tensors)]


def _dense(logits: Tensor, soft: Tensor, index: Tensor | None) -> Tensor:
    """The target as a dense soft label: the reference's way."""
    soft = soft.to(working_type(logits)).clamp(min=0)  # a mass below 0 has been rounded, and is none
    return soft if index is None else reference.dense(index, soft, logits.shape[1])


def _empty_maps(logits: Tensor) -> _Maps:
    shape = (logits.shape[0], *logits.shape[2:])
    loss, mass, lse = (memory.empty(shape, working_type(logits), logits.device) for _ in range(3))
    return loss, mass, lse


def _empty_like(logits: Tensor) -> Tensor:
    return memory.empty(logits.shape, logits.dtype, logits.device, memory.is_channels_last(logits))


def _fake_maps(logits: Tensor) -> _Maps:
    shape = (logits.shape[0], *logits.shape[2:])
    loss, mass, lse = (logits.new_empty(shape, dtype=working_type(logits)) for _ in range(3))
    return loss, mass, lse


def _copy(outputs: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    for output, result in zip(outputs, results, strict=True):
        output.copy_(result)


def _only_first_differentiable(ctx: Any, *others: Tensor) -> None:
    ctx.mark_non_differentiable(*others)
    ctx.set_materialize_grads(False)  # their gradients would be maps of zeros


def _refuse(ctx: Any, *grads: Tensor) -> Any:
    raise RuntimeError("the losses of tritonsoft can be differentiated once: their gradient has no gradient")


# --- cross-entropy of a soft label -----------------------------------------------------------------------------------


@torch.library.custom_op("tritonsoft::cross_entropy", mutates_args=())
def cross_entropy(
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, mass and logsumexp ``(B, h, w)``; with ``index``, ``soft`` holds the masses of those classes alone."""
    name = backend_of(logits.device, backend)
    check_soft_values(soft, index, logits.shape[1], name, validate)
    check_weight_values(weight, validate)
    maps = _empty_maps(logits)
    if maps[0].numel() == 0:
        return maps
    if name == "reference":
        logits, weight = _in_working_type(logits, weight)
        with torch.autocast(logits.device.type, enabled=False):
            _copy(maps, reference.cross_entropy(logits, _dense(logits, soft, index), weight))
    elif name == "triton":
        module_of(name).cross_entropy(*maps, logits, soft, index, weight)
    elif not module_of(name).cross_entropy(*maps, logits, soft, index, weight, MASS_TOLERANCE):
        refuse_soft_values(soft)
    return maps


@cross_entropy.register_fake
def _(
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_maps(logits)


@torch.library.custom_op("tritonsoft::cross_entropy_backward", mutates_args=())
def cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
    backend: str | None,
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, in their type and memory format."""
    name = backend_of(logits.device, backend)
    out = _empty_like(logits)
    if out.numel() == 0:
        return out
    if name == "reference":
        logits, weight = _in_working_type(logits, weight)
        soft = _dense(logits, soft, index)
        return out.copy_(reference.cross_entropy_backward(grad, logits, soft, weight, mass, lse))
    module_of(name).cross_entropy_backward(out, grad, logits, soft, index, weight, mass, lse)
    return out


@cross_entropy_backward.register_fake
def _(
    grad: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
    backend: str | None,
) -> Tensor:
    return memory.fake(logits, logits.shape, logits.dtype)


def _setup_cross_entropy(ctx: Any, inputs: tuple[Any, ...], output: _Maps) -> None:
    logits, soft, index, weight, _, backend = inputs
    _, mass, lse = output
    _only_first_differentiable(ctx, mass, lse)
    ctx.save_for_backward(logits, soft, index, weight, mass, lse)
    ctx.backend = backend


def _backward_cross_entropy(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    return cross_entropy_backward(grad, *ctx.saved_tensors, ctx.backend), *(None,) * 5


cross_entropy.register_autograd(_backward_cross_entropy, setup_context=_setup_cross_entropy)
cross_entropy_backward.register_autograd(_refuse)


# --- cross-entropy of a label map ------------------------------------------------------------------------------------


@torch.library.custom_op("tritonsoft::area_cross_entropy", mutates_args=())
def area_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: str,
    weight: Tensor | None,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`cross_entropy` with the soft label of a label map ``(B, H, W)``, which is never stored."""
    name = backend_of(logits.device, backend)
    check_box_values(boxes, validate)
    check_label_values(labels, logits.shape[1], ignore_index, name, validate)
    check_weight_values(weight, validate)
    maps = _empty_maps(logits)
    if maps[0].numel() == 0:
        return maps
    if name == "reference":
        soft = _soft_of(logits, labels, boxes, ignore_index, filter)
        logits, weight = _in_working_type(logits, weight)
        with torch.autocast(logits.device.type, enabled=False):
            _copy(maps, reference.cross_entropy(logits, soft, weight))
    else:
        module_of(name).area_cross_entropy(*maps, logits, labels, boxes, ignore_index, filter, weight)
    return maps


def _soft_of(logits: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, filter: str) -> Tensor:
    size, num_classes = logits.shape[2:], logits.shape[1]
    with torch.autocast(logits.device.type, enabled=False):
        return reference.soft_crop_resize(labels, boxes, size, num_classes, ignore_index, filter, working_type(logits))


@area_cross_entropy.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: str,
    weight: Tensor | None,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_maps(logits)


@torch.library.custom_op("tritonsoft::area_cross_entropy_backward", mutates_args=())
def area_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: str,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
    backend: str | None,
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, in their type and memory format."""
    name = backend_of(logits.device, backend)
    out = _empty_like(logits)
    if out.numel() == 0:
        return out
    if name == "reference":
        soft = _soft_of(logits, labels, boxes, ignore_index, filter)
        logits, weight = _in_working_type(logits, weight)
        return out.copy_(reference.cross_entropy_backward(grad, logits, soft, weight, mass, lse))
    module_of(name).area_cross_entropy_backward(
        out, grad, logits, labels, boxes, ignore_index, filter, weight, mass, lse
    )
    return out


@area_cross_entropy_backward.register_fake
def _(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: str,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
    backend: str | None,
) -> Tensor:
    return memory.fake(logits, logits.shape, logits.dtype)


def _setup_area(ctx: Any, inputs: tuple[Any, ...], output: _Maps) -> None:
    logits, labels, boxes, ignore_index, filter, weight, _, backend = inputs
    _, mass, lse = output
    _only_first_differentiable(ctx, mass, lse)
    ctx.save_for_backward(logits, labels, boxes, weight, mass, lse)
    ctx.ignore_index, ctx.filter, ctx.backend = ignore_index, filter, backend


def _backward_area(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    logits, labels, boxes, weight, mass, lse = ctx.saved_tensors
    grad_logits = area_cross_entropy_backward(
        grad, logits, labels, boxes, ctx.ignore_index, ctx.filter, weight, mass, lse, ctx.backend
    )
    return grad_logits, *(None,) * 7


area_cross_entropy.register_autograd(_backward_area, setup_context=_setup_area)
area_cross_entropy_backward.register_autograd(_refuse)


# --- overlap ---------------------------------------------------------------------------------------------------------


@torch.library.custom_op("tritonsoft::overlap", mutates_args=())
def overlap(
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted mass, labelled mass and their distance ``(B, C, 3)``; mass and logsumexp ``(B, h, w)``.

    ``weight`` is for the loss that is made of them, and only looked at here.
    """
    name = backend_of(logits.device, backend)
    check_soft_values(soft, index, logits.shape[1], name, validate)
    check_weight_values(weight, validate)
    _, mass, lse = _empty_maps(logits)
    sums = memory.empty((*logits.shape[:2], 3), working_type(logits), logits.device)
    if mass.numel() == 0:
        return sums, mass, lse
    if name == "reference":
        (logits,) = _in_working_type(logits)
        with torch.autocast(logits.device.type, enabled=False):
            _copy((sums, mass, lse), reference.overlap(logits, _dense(logits, soft, index)))
    elif name == "triton":
        module_of(name).overlap(sums, mass, lse, logits, soft, index)
    elif not module_of(name).overlap(sums, mass, lse, logits, soft, index, MASS_TOLERANCE):
        refuse_soft_values(soft)
    return sums, mass, lse


@overlap.register_fake
def _(
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    validate: bool | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    _, mass, lse = _fake_maps(logits)
    return logits.new_empty((*logits.shape[:2], 3), dtype=working_type(logits)), mass, lse


@torch.library.custom_op("tritonsoft::overlap_backward", mutates_args=())
def overlap_backward(
    grad: Tensor, logits: Tensor, soft: Tensor, index: Tensor | None, mass: Tensor, lse: Tensor, backend: str | None
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, in their type and memory format."""
    name = backend_of(logits.device, backend)
    out = _empty_like(logits)
    if out.numel() == 0:
        return out
    if name == "reference":
        (logits,) = _in_working_type(logits)
        soft = _dense(logits, soft, index)
        return out.copy_(reference.overlap_backward(grad, logits, soft, mass, lse))
    module_of(name).overlap_backward(out, grad, logits, soft, index, mass, lse)
    return out


@overlap_backward.register_fake
def _(
    grad: Tensor, logits: Tensor, soft: Tensor, index: Tensor | None, mass: Tensor, lse: Tensor, backend: str | None
) -> Tensor:
    return memory.fake(logits, logits.shape, logits.dtype)


def _setup_overlap(ctx: Any, inputs: tuple[Any, ...], output: _Maps) -> None:
    logits, soft, index, _, _, backend = inputs
    _, mass, lse = output
    _only_first_differentiable(ctx, mass, lse)
    ctx.save_for_backward(logits, soft, index, mass, lse)
    ctx.backend = backend


def _backward_overlap(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    return overlap_backward(grad, *ctx.saved_tensors, ctx.backend), *(None,) * 5


overlap.register_autograd(_backward_overlap, setup_context=_setup_overlap)
overlap_backward.register_autograd(_refuse)
