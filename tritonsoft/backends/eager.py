"""The reference as a backend: writes what the functions of `tritonsoft.backends.reference` return."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tritonsoft.backends import reference, reference_warping
from tritonsoft.backends.values import are_binary_masses, as_bits, is_subdistribution, labels_in_range
from tritonsoft.geometry import Classes, Filter, Measure, Reduction


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


def remap_labels(
    out: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    classes: Tensor,
    first_id: int,
    ignore_index: int,
    validate: bool,
) -> bool:
    remapped, known = reference.remap_labels(labels, ids, classes, first_id)
    out.copy_(torch.where(known, remapped, ignore_index))
    return not validate or bool(known.all())


def class_areas(out: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, validate: bool) -> bool:
    num_classes = out.shape[2]
    if validate and not labels_in_range(labels, num_classes, ignore_index):
        return False
    with _exact(labels):
        out.copy_(reference.class_areas(labels, boxes, num_classes, ignore_index))
    return True


def paste(
    out: Tensor,
    images: Tensor,
    partners: Tensor,
    boxes: Tensor | None,
    labels: Tensor | None,
    chosen: Tensor | None,
) -> None:
    partners = reference.samples_of(partners)
    pasted = reference.pasted_pixels(partners, images.shape[2:], boxes, labels, chosen)
    with torch.no_grad():
        as_bits(out).copy_(reference.paste(as_bits(images), partners, pasted))


def blend(out: Tensor, images: Tensor, partners: Tensor, weight: Tensor) -> None:
    with torch.no_grad():
        out.copy_(reference.blend(images, reference.samples_of(partners), weight))


def blend_labels(
    out: Tensor, labels: Tensor, partners: Tensor, weight: Tensor, ignore_index: int, validate: bool
) -> bool:
    num_classes = out.shape[1]
    if validate and not labels_in_range(labels, num_classes, ignore_index):
        return False
    out.copy_(
        reference.blend_labels(labels, reference.samples_of(partners), weight, num_classes, ignore_index, out.dtype)
    )
    return True


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


def top_ids(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int | None,
    filter: Filter,
) -> None:
    def soft_label(classes: Tensor, num_classes: int, ignored: int, sample: int) -> Tensor:
        box = None if boxes is None else boxes[sample : sample + 1]
        return reference.soft_crop_resize(classes, box, mass.shape[2:], num_classes, ignored, filter, torch.float32)

    with _exact(labels):
        _write((index, mass, rest), reference.top_ids(labels, index.shape[1], ignore_index, soft_label))


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


# --- warps -----------------------------------------------------------------------------------------------------------


def warp(out: Tensor, image: Tensor, transform: Tensor, filter: Filter, fill: float) -> None:
    with _exact(image):
        out.copy_(reference_warping.warp(image, transform, out.shape[2:], filter, fill, out.dtype))


def warp_adjoint(out: Tensor, grad: Tensor, transform: Tensor, filter: Filter) -> None:
    with _exact(grad):
        out.copy_(reference_warping.warp_adjoint(grad, transform, out.shape[2:], filter, out.dtype))


def soft_warp(
    out: Tensor, labels: Tensor, transform: Tensor, ignore_index: int, filter: Filter, validate: bool
) -> bool:
    if validate and not labels_in_range(labels, out.shape[1], ignore_index):
        return False
    with _exact(labels):
        out.copy_(
            reference_warping.soft_warp(labels, transform, out.shape[2:], out.shape[1], ignore_index, filter, out.dtype)
        )
    return True


def soft_warp_top(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    transform: Tensor,
    num_classes: int,
    ignore_index: int,
    filter: Filter,
    validate: bool,
) -> bool:
    soft = mass.new_empty((len(labels), num_classes, *mass.shape[2:]), dtype=torch.float32)
    if not soft_warp(soft, labels, transform, ignore_index, filter, validate):
        return False
    _write((index, mass, rest), reference.top_k(soft, index.shape[1]))
    return True


def warp_top_ids(
    index: Tensor,
    mass: Tensor,
    rest: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int | None,
    filter: Filter,
) -> None:
    def soft_label(classes: Tensor, num_classes: int, ignored: int, sample: int) -> Tensor:
        size, own = mass.shape[2:], transform[sample : sample + 1]
        return reference_warping.soft_warp(classes, own, size, num_classes, ignored, filter, torch.float32)

    with _exact(labels):
        _write((index, mass, rest), reference.top_ids(labels, index.shape[1], ignore_index, soft_label))


def warp_pair(
    out: Tensor,
    out_soft: Tensor,
    image: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int,
    filter: Filter,
    fill: float,
    validate: bool,
) -> bool:
    warp(out, image, transform, filter, fill)
    return soft_warp(out_soft, labels, transform, ignore_index, filter, validate)


def _warped_target(logits: Tensor, labels: Tensor, transform: Tensor, ignore_index: int, filter: Filter) -> Tensor:
    return reference_warping.soft_warp(
        labels, transform, logits.shape[2:], logits.shape[1], ignore_index, filter, logits.dtype
    )


def warp_cross_entropy(
    value: Tensor,
    total: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
    validate: bool,
) -> bool:
    if validate and not labels_in_range(labels, logits.shape[1], ignore_index):
        return False
    with _exact(logits):
        logits = logits.to(lse.dtype)
        target = _warped_target(logits, labels, transform, ignore_index, filter)
        _cross_entropy(value, total, mass, lse, logits, target, weight, label_smoothing, reduction)
    return True


def warp_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    transform: Tensor,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    label_smoothing: float,
    mass: Tensor,
    lse: Tensor,
) -> None:
    with _exact(logits):
        logits = logits.to(lse.dtype)
        target = _warped_target(logits, labels, transform, ignore_index, filter)
        _cross_entropy_backward(out, grad, total, logits, target, weight, label_smoothing, mass, lse)


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


def _write(outputs: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    for output, result in zip(outputs, results, strict=True):
        output.copy_(result)


def _sum(values: Tensor) -> Tensor:
    """The sum of everything in float64, an axis at a time: a sum that gives several numbers has one order."""
    values = values.double()
    while values.ndim > 0:
        if values.shape[-1] == values.numel() > _LONGEST_SUM:
            values = F.pad(values.flatten(), (0, -values.numel() % _LONGEST_SUM)).view(-1, _LONGEST_SUM)
        values = values.sum(-1)
    return values


_LONGEST_SUM = 1 << 10  # torch shares a longer sum out over threads where it gives one number


def _reduce(value: Tensor, total: Tensor, loss: Tensor, mass: Tensor, reduction: Reduction) -> None:
    """The loss of each pixel, with its weighted mass, as the reduction has it."""
    if reduction == "none":
        value.copy_(loss)
        return
    whole = _sum(mass)
    total.copy_(whole)
    value.copy_(_sum(loss) / torch.where(whole > 0, whole, 1) if reduction == "mean" else _sum(loss))


def _scale(grad: Tensor, total: Tensor | None) -> Tensor:
    """The gradient of each pixel's loss."""
    return grad if total is None else grad / torch.where(total > 0, total, 1)


def _cross_entropy(
    value: Tensor,
    total: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
) -> None:
    """`cross_entropy` of a dense target."""
    smoothed = reference.smoothed(target, label_smoothing)
    loss, smoothed_mass, logsumexp = reference.cross_entropy(logits, smoothed, weight)
    known = target.sum(1)
    lse.copy_(logsumexp)
    mass.copy_(torch.stack([smoothed_mass, known]) if mass.ndim == 4 else smoothed_mass)
    weighted = known if weight is None else (weight[:, None, None] * target).sum(1)
    _reduce(value, total, loss, weighted, reduction)


def _cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    mass: Tensor,
    lse: Tensor,
) -> None:
    """`cross_entropy_backward` of a dense target."""
    smoothed_mass = mass[0] if mass.ndim == 4 else mass
    smoothed, scale = reference.smoothed(target, label_smoothing), _scale(grad, total)
    out.copy_(reference.cross_entropy_backward(scale, logits, smoothed, weight, smoothed_mass, lse))


def cross_entropy(
    value: Tensor,
    total: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
    validate: bool,
) -> bool:
    if validate and not is_subdistribution(soft):
        return False
    with _exact(logits):
        logits = logits.to(lse.dtype)
        target = _dense(soft, index, logits.shape[1], lse.dtype)
        _cross_entropy(value, total, mass, lse, logits, target, weight, label_smoothing, reduction)
    return True


def cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    mass: Tensor,
    lse: Tensor,
) -> None:
    with _exact(logits):
        logits = logits.to(lse.dtype)
        target = _dense(soft, index, logits.shape[1], lse.dtype)
        _cross_entropy_backward(out, grad, total, logits, target, weight, label_smoothing, mass, lse)


def area_cross_entropy(
    value: Tensor,
    total: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
    validate: bool,
) -> bool:
    if validate and not labels_in_range(labels, logits.shape[1], ignore_index):
        return False
    with _exact(logits):
        logits = logits.to(lse.dtype)
        target = _soft_of(logits, labels, boxes, ignore_index, filter)
        _cross_entropy(value, total, mass, lse, logits, target, weight, label_smoothing, reduction)
    return True


def area_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    filter: Filter,
    weight: Tensor | None,
    label_smoothing: float,
    mass: Tensor,
    lse: Tensor,
) -> None:
    with _exact(logits):
        logits = logits.to(lse.dtype)
        target = _soft_of(logits, labels, boxes, ignore_index, filter)
        _cross_entropy_backward(out, grad, total, logits, target, weight, label_smoothing, mass, lse)


def _binary_masses(
    soft: Tensor, known: Tensor | None, weight: Tensor | None, pos_weight: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    known = None if known is None else known.to(dtype)
    return reference.binary_masses(soft.to(dtype), known, weight, pos_weight)


def binary_cross_entropy(
    value: Tensor,
    total: Tensor,
    logits: Tensor,
    soft: Tensor,
    known: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: Reduction,
    validate: bool,
) -> bool:
    if validate and not are_binary_masses(soft, known):
        return False
    with _exact(logits):
        present, absent, mass = _binary_masses(soft, known, weight, pos_weight, value.dtype)
        loss = reference.binary_cross_entropy(logits.to(value.dtype), present, absent)
        _reduce(value, total, loss, mass.expand(loss.shape), reduction)
    return True


def binary_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    soft: Tensor,
    known: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
) -> None:
    with _exact(logits):
        present, absent, _ = _binary_masses(soft, known, weight, pos_weight, grad.dtype)
        scale = _scale(grad, total)
        out.copy_(reference.binary_cross_entropy_backward(scale, logits.to(grad.dtype), present, absent))


def overlap_loss(
    value: Tensor,
    slopes: Tensor,
    mass: Tensor,
    lse: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    measure: Measure,
    classes: Classes,
    reduction: Reduction,
    validate: bool,
) -> bool:
    if validate and not is_subdistribution(soft):
        return False
    with _exact(logits):
        target = _dense(soft, index, logits.shape[1], lse.dtype)
        sums, *maps = reference.overlap(logits.to(lse.dtype), target)
        sums = sums if len(slopes) == len(sums) else sums.sum(0, keepdim=True)
        results = reference.overlap_loss(sums, weight, measure, classes, reduction)
        _write((mass, lse, value, slopes), (*maps, *results))
    return True


def _of_sums(grad: Tensor, slopes: Tensor, logits: Tensor) -> Tensor:
    """The gradient ``(B, C, 3)`` of the sums of `reference.overlap`."""
    return F.pad(grad[..., None] * slopes, (0, 1))[..., [0, 2, 1]].expand(len(logits), -1, -1)


def overlap_loss_backward(
    out: Tensor,
    grad: Tensor,
    slopes: Tensor,
    logits: Tensor,
    soft: Tensor,
    index: Tensor | None,
    mass: Tensor,
    lse: Tensor,
) -> None:
    with _exact(logits):
        target = _dense(soft, index, logits.shape[1], lse.dtype)
        of_sums = _of_sums(grad, slopes, logits)
        out.copy_(reference.overlap_backward(of_sums, logits.to(lse.dtype), target, mass, lse))


# --- logits at the size of their label map: here as the tensor that other backends never have ------------------------


def _enlarged(
    logits: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The logits and the one-hot target, ``(B, C, H, W)``."""
    enlarged, inside = reference.enlarge(logits.to(dtype), boxes, labels.shape[1:])
    return enlarged, reference.hard_target(labels, inside, logits.shape[1], ignore_index, dtype)


def upsampled_cross_entropy(
    value: Tensor,
    total: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
    validate: bool,
) -> bool:
    if validate and not labels_in_range(labels, logits.shape[1], ignore_index):
        return False
    with _exact(logits):
        enlarged, target = _enlarged(logits, labels, boxes, ignore_index, lse.dtype)
        loss, _, logsumexp = reference.cross_entropy(enlarged, reference.smoothed(target, label_smoothing), weight)
        scored = target.sum(1) > 0
        lse.copy_(torch.where(scored, logsumexp, 0))
        mass = target.sum(1) if weight is None else (weight[:, None, None] * target).sum(1)
        _reduce(value, total, loss, mass, reduction)
    return True


def upsampled_cross_entropy_backward(
    out: Tensor,
    grad: Tensor,
    total: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    weight: Tensor | None,
    label_smoothing: float,
    lse: Tensor,
) -> None:
    with _exact(logits):
        enlarged, target = _enlarged(logits, labels, boxes, ignore_index, lse.dtype)
        target = reference.smoothed(target, label_smoothing)
        mass = (target if weight is None else weight[:, None, None] * target).sum(1)
        of_pixels = reference.cross_entropy_backward(_scale(grad, total), enlarged, target, weight, mass, lse)
        out.copy_(reference.enlarge_adjoint(of_pixels, boxes, logits.shape[2:]))


def upsampled_overlap_loss(
    value: Tensor,
    slopes: Tensor,
    lse: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    weight: Tensor | None,
    measure: Measure,
    classes: Classes,
    reduction: Reduction,
    validate: bool,
) -> bool:
    if validate and not labels_in_range(labels, logits.shape[1], ignore_index):
        return False
    with _exact(logits):
        sums, mass, logsumexp = reference.overlap(*_enlarged(logits, labels, boxes, ignore_index, lse.dtype))
        sums = sums if len(slopes) == len(sums) else sums.sum(0, keepdim=True)
        results = reference.overlap_loss(sums, weight, measure, classes, reduction)
        _write((lse, value, slopes), (torch.where(mass > 0, logsumexp, 0), *results))
    return True


def upsampled_overlap_loss_backward(
    out: Tensor,
    grad: Tensor,
    slopes: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    ignore_index: int,
    lse: Tensor,
) -> None:
    with _exact(logits):
        enlarged, target = _enlarged(logits, labels, boxes, ignore_index, lse.dtype)
        of_pixels = reference.overlap_backward(_of_sums(grad, slopes, logits), enlarged, target, target.sum(1), lse)
        out.copy_(reference.enlarge_adjoint(of_pixels, boxes, logits.shape[2:]))


def decode(
    out: Tensor,
    score: Tensor | None,
    logits: Tensor,
    boxes: Tensor | None,
    bias: Tensor | None,
    ignore_index: int,
) -> None:
    with _exact(logits):
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        enlarged, inside = reference.enlarge(logits.to(dtype), boxes, out.shape[1:])
        winner, probability = reference.decode(enlarged, bias)
        out.copy_(winner if boxes is None else torch.where(inside, winner, ignore_index))
        if score is not None:
            score.copy_(torch.where(inside, probability, 0))


def confusion_matrix(
    counts: Tensor,
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor | None,
    bias: Tensor | None,
    ignore_index: int,
    validate: bool,
) -> bool:
    num_classes = logits.shape[1]
    if validate and not labels_in_range(labels, num_classes, ignore_index):
        return False
    with _exact(logits):
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        enlarged, target = _enlarged(logits, labels, boxes, ignore_index, dtype)
        scored = target.sum(1) > 0
        pair = labels.long() * num_classes + reference.decode(enlarged, bias)[0]
        index = torch.where(scored, pair, 0).flatten()
        counts.view(-1).zero_().scatter_add_(0, index, scored.flatten().to(counts.dtype))
    return True
