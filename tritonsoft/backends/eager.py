"""The reference as a backend: writes what the functions of `tritonsoft.reference` return."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tritonsoft import reference
from tritonsoft.backends.values import labels_in_range, masses_in_range
from tritonsoft.conventions import Filter


@contextlib.contextmanager
def _exact(tensor: Tensor) -> Iterator[None]:
    """No gradients, which are the operators' own; no autocast, in which matrix products lose their precision."""
    with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
        yield


def crop_resize(out: Tensor, image: Tensor, boxes: Tensor | None, filter: Filter, fill: float) -> None:
    with _exact(image):
        out.copy_(reference.crop_resize(image, boxes, out.shape[2:], filter, fill, out.dtype))


def crop_resize_adjoint(out: Tensor, grad: Tensor, boxes: Tensor | None, filter: Filter) -> None:
    with _exact(grad):
        out.copy_(reference.crop_resize_adjoint(grad, boxes, out.shape[2:], filter, out.dtype))


def soft_crop_resize(
    out: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, filter: Filter, validate: bool
) -> bool:
    num_classes = out.shape[1]
    if validate and not labels_in_range(labels, num_classes, ignore_index):
        return False
    with _exact(labels):
        out.copy_(
            reference.soft_crop_resize(labels, boxes, out.shape[2:], num_classes, ignore_index, filter, out.dtype)
        )
    return True


def soft_crop_resize_top(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    validate: bool,
) -> bool:
    soft = mass.new_empty((len(labels), num_classes, *mass.shape[2:]), dtype=torch.float32)
    if not soft_crop_resize(soft, labels, boxes, ignore_index, filter, validate):
        return False
    for output, result in zip((index, mass, rest), reference.top_k(soft, index.shape[1]), strict=True):
        output.copy_(result)
    return True


def soft_pyramid(outs: Sequence[Tensor], labels: Tensor, ignore_index: int, validate: bool) -> bool:
    return all(soft_crop_resize(out, labels, None, ignore_index, "area", validate) for out in outs)


def crop_resize_pair(
    out: Tensor,
    out_soft: Tensor,
    image: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    fill: float,
    validate: bool,
) -> bool:
    crop_resize(out, image, boxes, filter, fill)
    return soft_crop_resize(out_soft, labels, boxes, ignore_index, filter, validate)


# --- losses: computed in the type of their maps -----------------------------------------------------------------------


def _dense(soft: Tensor, index: Tensor | None, num_classes: int, dtype: torch.dtype) -> Tensor:
    """The target as a dense soft label."""
    soft = soft.to(dtype).clamp(min=0)  # a mass below 0 has been rounded, and is none
    return soft if index is None else reference.dense(index, soft, num_classes)


def _soft_of(logits: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, filter: Filter) -> Tensor:
    """The target as the soft label of a label map, of the size and in the type of the logits."""
    return reference.soft_crop_resize(
        labels, boxes, logits.shape[2:], logits.shape[1], ignore_index, filter, logits.dtype
    )


def _write(outputs: Sequence[Tensor], results: Sequence[Tensor]) -> bool:
    for output, result in zip(outputs, results, strict=True):
        output.copy_(result)
    return True


def cross_entropy(
    loss: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    validate: bool,
) -> bool:
    if validate and not masses_in_range(soft):
        return False
    with _exact(logits):
        target = _dense(soft, index, logits.shape[1], lse.dtype)
        return _write((loss, mass, lse), reference.cross_entropy(logits.to(lse.dtype), target, weight))


def cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> None:
    with _exact(logits):
        target = _dense(soft, index, logits.shape[1], lse.dtype)
        out.copy_(reference.cross_entropy_backward(grad, logits.to(lse.dtype), target, weight, mass, lse))


def area_cross_entropy(
    loss: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    validate: bool,
) -> bool:
    if validate and not labels_in_range(labels, logits.shape[1], ignore_index):
        return False
    with _exact(logits):
        logits = logits.to(lse.dtype)
        target = _soft_of(logits, labels, boxes, ignore_index, filter)
        return _write((loss, mass, lse), reference.cross_entropy(logits, target, weight))


def area_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> None:
    with _exact(logits):
        logits = logits.to(lse.dtype)
        target = _soft_of(logits, labels, boxes, ignore_index, filter)
        out.copy_(reference.cross_entropy_backward(grad, logits, target, weight, mass, lse))


def overlap(
    sums: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    validate: bool,
) -> bool:
    if validate and not masses_in_range(soft):
        return False
    with _exact(logits):
        target = _dense(soft, index, logits.shape[1], lse.dtype)
        return _write((sums, mass, lse), reference.overlap(logits.to(lse.dtype), target))


def overlap_backward(
    out: Tensor,
    grad: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> None:
    with _exact(logits):
        target = _dense(soft, index, logits.shape[1], lse.dtype)
        out.copy_(reference.overlap_backward(grad, logits.to(lse.dtype), target, mass, lse))
