"""What each operator means, in plain eager PyTorch: the oracle that every fast backend is compared with.

A crop with a resize is one matrix per axis (`axis_matrix`), so an image goes to ``A_y @ image @ A_x.T`` and a label map
to the same product with its one-hot planes. Runs on any device; float64 in gives float64 arithmetic throughout.
Geometry and filters: `tritonsoft.geometry`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tritonsoft.geometry import NO_CLASS, Classes, Measure, Reduction


def axis_matrix(ends: Tensor, in_size: int, out_size: int, filter: str) -> tuple[Tensor, Tensor]:
    """The resampling matrices of one axis: row j holds the weights of the source pixels in output pixel j.

    Args:
        ends: ``(B, 2)`` float64, the two ends of each box along this axis; mirrored where the second is smaller.
        in_size: number of source pixels.
        out_size: number of output pixels.
        filter: one of `tritonsoft.geometry.FILTERS`.

    Returns:
        The matrices ``(B, out_size, in_size)`` and the weight ``(B, out_size)`` of the taps outside the image, exactly
        0 where there are none; both float64. A row and its weight outside sum to 1.
    """
    lo = ends.amin(1)[:, None]  # (B, 1)
    hi = ends.amax(1)[:, None]
    j = torch.arange(out_size, dtype=torch.float64, device=ends.device)
    j = torch.where(ends[:, 1:] < ends[:, :1], out_size - 1 - j, j)  # (B, out)
    span = hi - lo
    centre = lo + span * (2 * j + 1) / (2 * out_size)  # (B, out)

    stretch = (span / out_size).clamp(min=1)  # (B, 1)
    support = {"area": (stretch + 1) / 2, "triangle": stretch}.get(filter, torch.ones_like(stretch))
    plateau = torch.ones_like(support) if filter == "area" else support
    first = centre.floor() if filter == "nearest" else (centre - support).floor()
    last = first if filter == "nearest" else (centre + support).floor()
    touched_first, touched_last = lo.floor(), hi.ceil() - 1
    first = first.clamp(touched_first, touched_last)
    last = last.clamp(touched_first, touched_last)

    num_taps = int((last - first).max()) + 1 if last.numel() else 0
    tap = first[..., None] + torch.arange(num_taps, dtype=torch.float64, device=ends.device)  # (B, out, taps)
    weight = (support[..., None] - (tap + 0.5 - centre[..., None]).abs()).clamp(min=0).minimum(plateau[..., None])
    weight = weight * (tap <= last[..., None])
    weight = weight / weight.sum(-1, keepdim=True)

    inside = (tap >= 0) & (tap < in_size)
    column = tap.clamp(0, max(in_size - 1, 0)).long()
    matrix = weight.new_zeros(*weight.shape[:2], in_size)
    return matrix.scatter_add_(2, column, weight * inside), (weight * ~inside).sum(-1)


def _boxes_or_whole(boxes: Tensor | None, source: Sequence[int], like: Tensor) -> Tensor:
    """The boxes in float64; without any the whole source ``(H, W)``, once for each sample of ``like``."""
    if boxes is None:
        height, width = source
        boxes = torch.tensor([[0, 0, width, height]], device=like.device).expand(len(like), 4)
    return boxes.double()


def _matrices(
    boxes: Tensor | None, source: Sequence[int], size: Sequence[int], filter: str, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the planes of ``like`` are multiplied with, in its dtype and on its device.

    Returns:
        ``A_y (B, 1, h, H)``, ``A_x (B, 1, w, W)`` and the share ``(B, 1, h, w)`` of each footprint outside the image.
    """
    height, width = source
    boxes = _boxes_or_whole(boxes, source, like)
    matrix_y, outside_y = axis_matrix(boxes[:, 1::2], height, size[0], filter)
    matrix_x, outside_x = axis_matrix(boxes[:, 0::2], width, size[1], filter)
    outside = outside_y[:, :, None] + (1 - outside_y[:, :, None]) * outside_x[:, None, :]
    return matrix_y.to(like)[:, None], matrix_x.to(like)[:, None], outside.to(like)[:, None]


def crop_resize(
    image: Tensor, boxes: Tensor | None, size: Sequence[int], filter: str, fill: float, dtype: torch.dtype
) -> Tensor:
    """Image ``(B, K, H, W)`` -> ``(B, K, h, w)``; what of a footprint lies outside the image counts as ``fill``.

    uint8 in and a floating dtype out divides by 255; uint8 out rounds half to even. A non-finite pixel spoils its whole
    plane here, as products with zero weights are taken: the oracle is for finite images.
    """
    planes = image.to(torch.promote_types(torch.promote_types(image.dtype, dtype), torch.float32))
    if image.dtype == torch.uint8 and dtype.is_floating_point:
        planes = planes / 255
    matrix_y, matrix_x, outside = _matrices(boxes, image.shape[-2:], size, filter, planes)
    # Selected, not multiplied: an infinite fill must not reach the pixels that are wholly inside.
    result = matrix_y @ planes @ matrix_x.mT + torch.where(outside > 0, fill * outside, 0)
    return result.round().clamp(0, 255).to(dtype) if dtype == torch.uint8 else result.to(dtype)


def crop_resize_adjoint(
    grad: Tensor, boxes: Tensor | None, source: Sequence[int], filter: str, dtype: torch.dtype
) -> Tensor:
    """The transpose of `crop_resize` as a linear map of a floating image: ``(B, K, h, w)`` -> ``(B, K, H, W)``."""
    planes = grad.to(torch.promote_types(torch.promote_types(grad.dtype, dtype), torch.float32))
    matrix_y, matrix_x, _ = _matrices(boxes, source, grad.shape[-2:], filter, planes)
    return (matrix_y.mT @ planes @ matrix_x).to(dtype)


def remap_labels(labels: Tensor, ids: Tensor | None, classes: Tensor, first_id: int) -> tuple[Tensor, Tensor]:
    """The class of each label, of any shape, by a table.

    Args:
        labels: of any integer type.
        ids: ``(N,)`` int64, ascending: what has a class; None: the N ids from ``first_id`` on.
        classes: ``(N,)``; an entry of `tritonsoft.geometry.NO_CLASS` is none.

    Returns:
        The classes as int64, and which labels have one; what stands where they have none means nothing.
    """
    values = labels.long()
    # A difference that overflows wraps to what is no place either.
    place = values - first_id if ids is None else torch.searchsorted(ids, values.contiguous())
    inside = (place >= 0) & (place < len(classes))
    place = place.clamp(0, len(classes) - 1)
    if ids is not None:
        inside &= ids[place] == values
    remapped = classes.long()[place]
    return remapped, inside & (remapped != NO_CLASS)


def one_hot_planes(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Label map ``(B, H, W)`` -> whether each pixel is of each class ``(B, C, H, W)``; ignored ones are of none."""
    ids = labels[:, None].long()  # a narrow dtype would wrap an ignore_index that it cannot hold
    classes = torch.arange(num_classes, device=labels.device)[:, None, None]
    return (ids == classes) & (ids != ignore_index)


def soft_crop_resize(
    labels: Tensor,
    boxes: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    filter: str,
    dtype: torch.dtype,
) -> Tensor:
    """Label map ``(B, H, W)`` -> soft label ``(B, C, h, w)``: `crop_resize` of the one-hot planes, padded with no mass.

    Pixels equal to ``ignore_index``, and values outside ``0 .. C-1``, are in no plane.
    """
    mass = one_hot_planes(labels, num_classes, ignore_index).to(torch.promote_types(dtype, torch.float32))
    return crop_resize(mass, boxes, size, filter, 0.0, dtype)


def pasted_pixels(
    partners: Tensor, size: Sequence[int], boxes: Tensor | None, labels: Tensor | None, chosen: Tensor | None
) -> Tensor:
    """Which pixels of its partner each sample gets, ``(B, H, W)``.

    Those inside of boxes ``(B, 4)`` of whole edges, which may reach beyond the image; or those whose label in the
    partner's map ``(B, H, W)`` is a class that was ``chosen (B, C)`` for the sample. What is no class is never pasted.
    """
    if boxes is not None:
        x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
        rows, columns = (torch.arange(length, device=boxes.device) for length in size)
        down, across = (rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1)
        return down[:, :, None] & across[:, None]
    assert labels is not None
    assert chosen is not None
    ids, num_classes = labels.long()[partners], chosen.shape[1]
    samples = torch.arange(ids.shape[0], device=ids.device)[:, None, None]
    return (ids >= 0) & (ids < num_classes) & chosen[samples, ids.clamp(0, num_classes - 1)]


def paste(images: Tensor, partners: Tensor, pasted: Tensor) -> Tensor:
    """Images ``(B, K, H, W)`` of any type, with the pixels of their partners ``(B,)`` where ``pasted (B, H, W)``."""
    return torch.where(pasted[:, None], images[partners], images)


def blend(images: Tensor, partners: Tensor, weight: Tensor) -> Tensor:
    """``(1 - weight) * image + weight * partner``, of floats ``(B, K, H, W)``; its own partner stays to the bit.

    By ``own + weight * (theirs - own)``, and from a weight of a half on by ``theirs - (1 - weight) * (theirs - own)``.
    A weight of 0 gives the one and a weight of 1 the other to the bit, whatever the pixels of the two are.
    """
    working = torch.promote_types(images.dtype, torch.float32)
    own, theirs = images.to(working), images[partners].to(working)
    share = weight.to(working)[:, None, None, None]
    mixed = torch.where(share < 0.5, own + share * (theirs - own), theirs - (1 - share) * (theirs - own))
    alone = (partners == torch.arange(len(images), device=images.device))[:, None, None, None] | (share == 0)
    return torch.where(alone, own, torch.where(share == 1, theirs, mixed)).to(images.dtype)


def samples_of(partners: Tensor) -> Tensor:
    """Partners ``(B,)`` that are samples of the batch; what is none is the sample itself."""
    batch = partners.shape[0]
    samples = torch.arange(batch, device=partners.device)
    return torch.where((partners >= 0) & (partners < batch), partners, samples)


def blend_labels(
    labels: Tensor, partners: Tensor, weight: Tensor, num_classes: int, ignore_index: int, dtype: torch.dtype
) -> Tensor:
    """`blend` of the one-hot masses ``(B, C, H, W)`` of label maps ``(B, H, W)``."""
    mass = one_hot_planes(labels, num_classes, ignore_index).to(torch.promote_types(dtype, torch.float32))
    return blend(mass, partners, weight).to(dtype)


def covered(ends: Tensor, size: int) -> Tensor:
    """How much of each pixel of an axis, ``(..., size)`` float64, lies between ends ``(..., 2)``, in either order."""
    pixel = torch.arange(size, dtype=torch.float64, device=ends.device)
    lo, hi = ends.amin(-1, keepdim=True), ends.amax(-1, keepdim=True)
    return (torch.minimum(hi, pixel + 1) - torch.maximum(lo, pixel)).clamp(min=0)


def class_areas(labels: Tensor, boxes: Tensor | None, num_classes: int, ignore_index: int) -> Tensor:
    """The area of each class in boxes of a label map ``(B, H, W)``, in source pixels: ``(B, N, C)`` float64.

    Boxes ``(B, N, 4)``; None: one of each sample, all of it. A pixel counts as much as its square and the box overlap,
    ``sum_y sum_x covered_y covered_x [label == c]``; ignored ones and what lies outside of the image count nothing.
    """
    height, width = labels.shape[1:]
    boxes = _boxes_or_whole(boxes if boxes is None else boxes.flatten(0, 1), (height, width), labels)
    boxes = boxes.view(len(labels), -1, 4) if len(labels) else boxes.view(0, 1, 4)
    rows, columns = covered(boxes[..., 1::2], height), covered(boxes[..., 0::2], width)  # (B, N, H), (B, N, W)
    planes = one_hot_planes(labels, num_classes, ignore_index).double()
    return torch.einsum("bny,bcyx,bnx->bnc", rows, planes, columns)


def top_k(soft: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest classes of each pixel of a soft label ``(B, C, h, w)``, and the mass of all others.

    Returns:
        The classes ``(B, k, h, w)`` as int64, largest mass first and equal masses by smaller class first; their masses
        ``(B, k, h, w)``; the rest ``(B, h, w)``. An entry without mass is class 0.
    """
    # The bits of numbers that are not negative are in the order of the numbers. Below them goes the class, counted
    # downwards: no two keys are equal, so that every device picks the same.
    bits = soft.float().view(torch.int32).long() << 32
    classes = torch.arange(soft.shape[1], device=soft.device)[:, None, None]
    index = (bits | (0x7FFFFFFF - classes)).topk(k, dim=1).indices
    mass = soft.gather(1, index)
    return torch.where(mass > 0, index, 0), mass, soft.scatter(1, index, 0.0).sum(1)


def top_ids(
    labels: Tensor, k: int, ignore_index: int | None, soft_label: Callable[[Tensor, int, int, int], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`top_k` of label maps ``(B, H, W)`` of any ids: each sample's are counted as classes, in the order of the ids.

    Args:
        labels: of any type of integers.
        k: how many ids to keep; more than a sample has are entries without mass, id 0.
        ignore_index: the id that carries no mass, or None.
        soft_label: what makes the soft label ``(1, C, h, w)`` of a label map ``(1, H, W)`` of classes, given their
            number, the class that carries no mass, and which sample it is.
    """
    outputs = []
    for number, sample in enumerate(labels.long()):
        ids, classes = sample.unique(return_inverse=True)
        ignored = torch.where(ids == ignore_index)[0].tolist() if ignore_index is not None else []
        soft = soft_label(classes[None], len(ids), ignored[0] if ignored else -1, number)
        index, mass, rest = top_k(torch.cat([soft, soft.new_zeros(1, k, *soft.shape[2:])], 1), k)
        outputs.append((torch.where(mass > 0, ids[index.clamp(max=len(ids) - 1)], 0), mass, rest))
    index, mass, rest = (torch.cat(tensors) for tensors in zip(*outputs, strict=True))
    return index, mass, rest


def dense(index: Tensor, mass: Tensor, num_classes: int) -> Tensor:
    """The soft label ``(B, C, h, w)`` whose classes ``index (B, k, h, w)`` have these masses, all others none."""
    soft = mass.new_zeros(mass.shape[0], num_classes, *mass.shape[2:])
    return soft.scatter_add_(1, index.long(), mass)


# --- losses ----------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, soft: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of each pixel, not divided by anything: ``-sum_c w_c q_c log_softmax(z)_c``.

    Args:
        logits: z, ``(B, C, h, w)``.
        soft: q, ``(B, C, h, w)``.
        weight: w, ``(C,)``; None is 1 for every class.

    Returns:
        Each ``(B, h, w)``: the loss, the weighted mass ``sum_c w_c q_c``, and ``logsumexp_c z_c``. A class without mass
        adds nothing, whatever its logit is.
    """
    mass = soft if weight is None else weight[:, None, None] * soft
    lse = logits.logsumexp(1)
    loss = torch.where(mass > 0, mass * (lse[:, None] - logits), 0)
    return loss.sum(1), mass.sum(1), lse


def cross_entropy_backward(
    grad: Tensor, logits: Tensor, soft: Tensor, weight: Tensor | None, mass: Tensor, lse: Tensor
) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, given that of the loss, ``(B, h, w)``; 0 where there is no mass."""
    labelled = soft if weight is None else weight[:, None, None] * soft
    predicted = mass[:, None] * (logits - lse[:, None]).exp()
    return torch.where(mass[:, None] > 0, grad[:, None] * (predicted - labelled), 0)


def binary_masses(
    soft: Tensor, known: Tensor | None, weight: Tensor | None, pos_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What `binary_cross_entropy` is a sum of, each ``(B, C, h, w)``: the weighted mass of pixels that are of a class,
    that of those which are not, and that of both as the class weight alone weighs it.
    """
    known = torch.ones_like(soft) if known is None else known.clamp(min=0)
    present = soft.clamp(min=0).minimum(known)
    class_weight = torch.ones_like(soft[:1, :, :1, :1]) if weight is None else weight[:, None, None]
    of_present = class_weight if pos_weight is None else class_weight * pos_weight[:, None, None]
    return of_present * present, class_weight * (known - present), class_weight * known


def binary_cross_entropy(logits: Tensor, present: Tensor, absent: Tensor) -> Tensor:
    """Of each pixel and class of `binary_masses`: ``-present log sigmoid(z) - absent log sigmoid(-z)``.

    What has no mass adds nothing, whatever the logit is.
    """
    rest = (-logits.abs()).exp().log1p()  # log(1 + e^z) is max(z, 0) + log(1 + e^-|z|)
    of_present = torch.where(present > 0, present * (rest + (-logits).clamp(min=0)), 0)
    return of_present + torch.where(absent > 0, absent * (rest + logits.clamp(min=0)), 0)


def binary_cross_entropy_backward(grad: Tensor, logits: Tensor, present: Tensor, absent: Tensor) -> Tensor:
    """The gradient of the logits, given that of the losses, all ``(B, C, h, w)``."""
    value = absent * logits.sigmoid() - present * (-logits).sigmoid()
    return torch.where(present + absent > 0, grad * value, 0)


def overlap(logits: Tensor, soft: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How the predicted mass of each class, ``m softmax(z)_c`` with ``m = sum_c q_c``, compares with the labelled one.

    Returns:
        Sums ``(B, C, 3)`` over the pixels: of the predicted mass, of the labelled mass, and of their distance
        ``|m p_c - q_c|``; then m and the logsumexp, ``(B, h, w)``.
    """
    mass = soft.sum(1)
    predicted = torch.where(mass[:, None] > 0, mass[:, None] * logits.softmax(1), 0)
    sums = [term.sum((2, 3)) for term in (predicted, soft, (predicted - soft).abs())]
    return torch.stack(sums, 2), mass, logits.logsumexp(1)


def overlap_loss(
    sums: Tensor, weight: Tensor | None, measure: Measure, classes: Classes, reduction: Reduction
) -> tuple[Tensor, Tensor]:
    """The Dice or Jaccard loss of the sums of `overlap`, and how it changes with two of them.

    Args:
        sums: ``(S, C, 3)``, predicted mass P, labelled mass Q and their distance D, of each sample or of the batch.
        weight: ``(C,)``; None is 1 for every class.
        measure: of each class "dice" is ``D / (P + Q)``, "jaccard" ``2 D / (P + Q + D)``.
        classes: "present", those with Q > 0; "all", of which one without labelled mass costs 1 where any of it is
            predicted: a constant, whose gradient as a quotient of numbers close to 0 would be infinity times 0.
        reduction: over classes and samples; "mean" is weighted.

    Returns:
        The value, a number or ``(S, C)`` for "none", and the slopes ``(S, C, 2)``: the derivatives of the value (that
        of the class, for "none") by P and by D.
    """
    predicted, labelled, distance = sums.unbind(-1)  # (S, C)
    present = labelled > 0
    numerator, denominator = (
        (distance, predicted + labelled) if measure == "dice" else (2 * distance, predicted + labelled + distance)
    )
    safe = torch.where(present, denominator, 1)
    loss = torch.where(present, numerator, 0) / safe
    by_mass = -loss / safe
    by_distance = 1 / safe if measure == "dice" else (2 - loss) / safe
    slopes = torch.where(present[..., None], torch.stack([by_mass, by_distance], -1), 0)
    factor = present.to(loss.dtype) if classes == "present" else torch.ones_like(loss)
    if classes == "all":
        loss = torch.where(present, loss, (denominator > 0).to(loss.dtype))
    if weight is not None:
        factor = factor * weight
    value, slopes = loss * factor, slopes * factor[..., None]
    if reduction == "none":
        return value, slopes
    total = factor.sum() if reduction == "mean" else factor.new_ones(())
    total = torch.where(total > 0, total, 1)
    return value.sum() / total, slopes / total


def overlap_backward(grad: Tensor, logits: Tensor, soft: Tensor, mass: Tensor, lse: Tensor) -> Tensor:
    """The gradient ``(B, C, h, w)`` of the logits, given that of the sums, ``grad (B, C, 3)``."""
    share = (logits - lse[:, None]).exp()
    has_mass = mass[:, None] > 0
    sign = torch.where(has_mass, mass[:, None] * share - soft, 0).sign()
    grad_mass = grad[:, :, 0, None, None] + grad[:, :, 2, None, None] * sign  # of the predicted mass
    return torch.where(has_mass, mass[:, None] * share * (grad_mass - (share * grad_mass).sum(1, keepdim=True)), 0)


# --- logits at the size of their label map ---------------------------------------------------------------------------


def enlarging_taps(ends: Tensor, in_size: int, out_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Between which two of n logits each label pixel of one axis lies: `tritonsoft.geometry`, "Logits at full size".

    Args:
        ends: ``(B, 2)`` float64, the two ends of the box that the logits fill, in edges of label pixels.
        in_size: n, the number of logits.
        out_size: N, the number of label pixels.

    Returns:
        Each ``(B, N)``: the two logits, int64; how much the second weighs (the first weighs the rest), float64; whether
        the pixel's centre lies in the box.
    """
    lo, hi = ends.amin(1)[:, None], ends.amax(1)[:, None]  # (B, 1)
    centre = torch.arange(out_size, dtype=torch.float64, device=ends.device) + 0.5
    position = ((centre - lo) * in_size / (hi - lo) - 0.5).clamp(0, in_size - 1)
    first = position.floor()
    fraction = position - first
    at_next = fraction >= 1 - 2**-25
    first = torch.where(at_next, first + 1, first)
    between = (fraction > 0) & ~at_next
    second = torch.where(between, first + 1, first)
    fraction = torch.where(between, fraction, 0.5)
    mirrored = ends[:, 1:] < ends[:, :1]
    first, second = (torch.where(mirrored, in_size - 1 - index, index).long() for index in (first, second))
    return first, second, fraction, (lo <= centre) & (centre < hi)


def enlarge(logits: Tensor, boxes: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits ``(B, C, h, w)`` at the pixels of their label map ``(B, C, H, W)``, and which of these lie in the box.

    Without boxes ``F.interpolate(logits, size, mode="bilinear", align_corners=False)``, except that a logit of weight 0
    is not read, so that an infinite one reaches no further than its weight does.
    """
    boxes = _boxes_or_whole(boxes, size, logits)
    inside = []
    for axis, ends in ((2, boxes[:, 1::2]), (3, boxes[:, 0::2])):
        first, second, fraction, within = enlarging_taps(ends, logits.shape[axis], size[axis - 2])
        shape = [len(logits), 1, 1, 1]
        shape[axis] = -1
        fraction = fraction.to(logits.dtype).view(shape)
        ends_of_gap = []
        for index in (first, second):
            expanded = list(logits.shape)
            expanded[axis] = size[axis - 2]
            ends_of_gap.append(logits.gather(axis, index.view(shape).expand(expanded)))
        logits = (1 - fraction) * ends_of_gap[0] + fraction * ends_of_gap[1]
        inside.append(within.view(shape[:1] + shape[2:]))
    return logits, inside[0] & inside[1]


def enlarge_adjoint(grad: Tensor, boxes: Tensor | None, size: Sequence[int]) -> Tensor:
    """The transpose of `enlarge` as a linear map: ``(B, C, H, W)`` -> ``(B, C, h, w)``."""
    height, width = grad.shape[2:]
    boxes = _boxes_or_whole(boxes, (height, width), grad)
    matrices = []
    for ends, in_size, out_size in ((boxes[:, 1::2], size[0], height), (boxes[:, 0::2], size[1], width)):
        first, second, fraction, _ = enlarging_taps(ends, in_size, out_size)
        matrix = fraction.new_zeros(len(grad), out_size, in_size)
        matrix.scatter_add_(2, first[..., None], 1 - fraction[..., None])
        matrix.scatter_add_(2, second[..., None], fraction[..., None])
        matrices.append(matrix.to(grad.dtype)[:, None])
    return matrices[0].mT @ grad @ matrices[1]


def hard_target(labels: Tensor, inside: Tensor, num_classes: int, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """The one-hot planes ``(B, C, H, W)`` of a label map, with no class where it is ignored or not ``inside``."""
    return (one_hot_planes(labels, num_classes, ignore_index) & inside[:, None]).to(dtype)


def smoothed(target: Tensor, label_smoothing: float) -> Tensor:
    """One-hot planes of which every labelled pixel gives a share to all classes alike, as in `F.cross_entropy`."""
    labelled = target.sum(1, keepdim=True)
    return (1 - label_smoothing) * target + label_smoothing / target.shape[1] * labelled


def decode(logits: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The class of each pixel of ``(B, C, H, W)`` and its probability, ``(B, H, W)``; the smaller of equal classes.

    With a bias ``(C,)``, those of ``logits + bias``. A NaN is larger than every number, as in `torch.argmax`.
    """
    if bias is not None:
        logits = logits + bias[:, None, None]
    order = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    largest = logits.amax(1, keepdim=True)  # NaN where there is one
    is_largest = torch.where(largest.isnan(), logits.isnan(), logits == largest)
    winner = torch.where(is_largest, order, logits.shape[1]).amin(1)
    return winner, logits.softmax(1).amax(1)
