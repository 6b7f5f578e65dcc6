"""Losses of logits against soft labels, which weigh every pixel by what is known of it.

What they share:

* **Logits**: float tensor ``(B, C, h, w)`` of float16, bfloat16, float32 or float64, in any memory layout. Arithmetic
  is in float32 (float64 for float64), under autocast too; the gradient has the logits' type and memory format.
* **Soft label**: ``(B, C, h, w)``, any float type, or a `SparseLabels` of that shape: masses, at least 0 and at most 1
  in all classes of a pixel together. A pixel without mass has no loss and no gradient, whatever its logits are; a class
  without mass never spoils a loss by its logit, which may be -infinity. The target has no gradient.
* **Weight**: ``(C,)``, each 0 or from 1e-20 to 1e20, on the logits' device: a factor for every class.
* **Values** of targets and weights are checked on the CPU always, on a GPU (where it costs a synchronisation) with
  ``validate=True`` or ``TRITONSOFT_VALIDATE=1``.
* **Backend**: see `tritonsoft.functional`, and there boxes, filters, label maps and ``ignore_index``.
* **Errors**: TypeError or ValueError that names the argument. The losses can be differentiated once, in reverse mode
  (`torch.func.grad` included, where it is not compiled); in forward mode they raise a RuntimeError.
* **Masses** may have been rounded, up to bfloat16's precision: a pixel's total may exceed 1 by 1/64, and a mass may lie
  below 0 by as much. One below 0 counts as 0.

The same inputs give the same bits, whatever the number of threads.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tritonsoft import _validation
from tritonsoft._validation import FLOAT_DTYPES, Boxes, are_swapped, name_of, names_of
from tritonsoft.geometry import Classes, Filter, Measure, Reduction
from tritonsoft.ops import losses as loss_ops
from tritonsoft.ops import warps
from tritonsoft.sparse import SparseLabels, check_has_classes, check_sparse_labels


def soft_cross_entropy(
    logits: Tensor,
    soft: Tensor | SparseLabels,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy against a soft label: ``-sum_c w_c q_c log_softmax(z)_c`` in each pixel.

    Args:
        logits: z, ``(B, C, h, w)``.
        soft: q, the same shape, or a `SparseLabels`, whose rest counts as unknown.
        weight: w, ``(C,)``; None is 1 for every class.
        label_smoothing: the share s of each pixel's known mass, from 0 to 1, that all classes get alike: the loss is
            that of ``(1 - s) q_c + s / C sum_d q_d``. What is unknown stays so.
        reduction: "mean" divides the sum over all pixels by their total weighted mass, ``sum w_c q_c`` (smoothed or
            not), and is 0 where there is none; "sum"; "none" gives each pixel's loss, not divided.
        validate: check the values of target and weight on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        A number, or ``(B, h, w)`` for "none": float32, or float64 for float64 logits.

    Example:
        >>> logits = torch.zeros(1, 4, 1, 2)
        >>> soft = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 0.0], [0.0, 0.5]]).view(1, 4, 1, 2)
        >>> soft_cross_entropy(logits, soft)  # log(4): a mean over a mass of 1.5
        tensor(1.3863)
        >>> soft_cross_entropy(logits, soft, reduction="none")
        tensor([[[1.3863, 0.6931]]])
    """
    logits = _validation.check_logits(logits, soft, "soft")
    mass, index = _check_soft(soft, logits)
    label_smoothing = _validation.check_label_smoothing(label_smoothing)
    weight = _check_options(weight, reduction, validate, backend, logits)
    return loss_ops.cross_entropy(backend, validate, logits, mass, index, weight, label_smoothing, reduction)[0]


def area_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    boxes: Boxes | None = None,
    *,
    transform: Tensor | None = None,
    ignore_index: int | None = None,
    filter: Filter = "area",
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """`soft_cross_entropy` straight from the label map: no soft label is ever in memory.

    The same number as ``soft_cross_entropy(logits, soft_crop_resize(labels, boxes, logits.shape[2:], C, ...))``, as
    ``sum_x w_x (logsumexp(z) - z[label_x])`` over the labels x under each pixel. On a whole label map an integer factor
    larger than the logits, with the area filter, it is the mean hard cross-entropy at the size of the label map of
    logits that were enlarged by repeating them. With a transform `soft_warp` takes the place of `soft_crop_resize`.

    Beside its inputs it needs the gradient and 8 bytes for each pixel of the logits (12 where it is smoothed and
    weighted at once; twice as much for float64).

    Args:
        logits: ``(B, C, h, w)``; C is the number of classes.
        labels: ``(B, H, W)`` or ``(B, 1, H, W)``, label map on the logits' device.
        boxes: ``(B, 4)`` in source pixel edges: what of the label map the logits stand for; None is all of it.
        transform: instead of boxes, a matrix ``(B, 3, 3)`` or a field ``(B, h, w, 2)`` from logits to label map; see
            `tritonsoft.warping`.
        ignore_index: the label of pixels that count nothing; None is 255, and an error where C > 255.
        filter: "area" (the exact average), "triangle" (antialiased bilinear), "bilinear" or "nearest".
        weight: ``(C,)``; None is 1 for every class.
        label_smoothing: the share of each pixel's known mass, from 0 to 1, that all classes get alike.
        reduction: "mean" divides the sum over all pixels by their total weighted mass, and is 0 where there is none;
            "sum"; "none" gives each pixel's loss, not divided.
        validate: check the values of labels, boxes or transform, and weight on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        A number, or ``(B, h, w)`` for "none": float32, or float64 for float64 logits.

    Example:
        >>> labels = torch.tensor([[[0, 1, 1, 255]]])
        >>> logits = torch.tensor([0.0, 1.0, 0.0, 2.0]).view(1, 2, 1, 2)
        >>> area_cross_entropy(logits, labels)
        tensor(0.5665)
        >>> hard = logits.repeat_interleave(2, dim=3)
        >>> torch.nn.functional.cross_entropy(hard, labels, ignore_index=255)
        tensor(0.5665)
    """
    logits = _validation.check_logits(logits, labels, "labels")
    labels = _validation.check_hard_target(labels, logits, "soft_cross_entropy")
    _, ignore_index = _validation.check_classes(logits.shape[1], ignore_index, validate, torch.float32, "dtype")
    _validation.check_sampling(filter, backend)
    boxes = _validation.check_boxes(boxes, logits.shape[0], logits.device, "logits")
    label_smoothing = _validation.check_label_smoothing(label_smoothing)
    weight = _check_options(weight, reduction, validate, backend, logits)
    if transform is not None:
        if boxes is not None:
            raise ValueError("transform must be None where boxes are given, got both")
        transform = _validation.check_transform(transform, logits.shape[2:], logits.shape[0], logits.device, "logits")
        return warps.warp_cross_entropy(
            backend, validate, logits, labels, transform, ignore_index, filter, weight, label_smoothing, reduction
        )[0]
    return loss_ops.area_cross_entropy(
        backend, validate, logits, labels, boxes, ignore_index, filter, weight, label_smoothing, reduction
    )[0]


def soft_binary_cross_entropy(
    logits: Tensor,
    soft: Tensor,
    mass: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of each class for itself, where a pixel may be of several: with the sigmoid s of each logit,
    ``-w_c (p_c q_c log s(z_c) + (m_c - q_c) log(1 - s(z_c)))``.

    Where all is known, `torch.nn.functional.binary_cross_entropy_with_logits`, whose "mean" does not divide by ``w_c``.
    `tritonsoft.soft_planes` makes target and mass of planes of 0 and 1.

    Args:
        logits: z, ``(B, C, h, w)``.
        soft: q, the same shape, any float type: of each class the mass of what is of it, at least 0 and at most m. The
            masses of a pixel may be more than 1 together.
        mass: m, what is known: ``(B, C, h, w)``, or ``(B, h, w)`` or ``(B, 1, h, w)`` of all classes alike; None is 1.
        weight: w, ``(C,)``; None is 1 for every class.
        pos_weight: p, ``(C,)``, each 0 or from 1e-20 to 1e20: a factor for what is of a class; None is 1.
        reduction: "mean" divides the sum by the total weighted mass, ``sum w_c m_c`` over all pixels and classes, and
            is 0 where there is none; "sum"; "none" gives the loss of each pixel and class, not divided.
        validate: check the values of target, mass and weights on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        A number, or ``(B, C, h, w)`` for "none": float32, or float64 for float64 logits.

    Example:
        >>> logits = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)
        >>> soft = torch.tensor([0.25, 0.5]).view(1, 2, 1, 1)
        >>> soft_binary_cross_entropy(logits, soft)
        tensor(0.9100)
        >>> soft_binary_cross_entropy(logits, soft, torch.tensor([[[0.5]]]))  # half of the pixel is known
        tensor(0.4100)
    """
    logits = _validation.check_logits(logits, soft, "soft")
    soft, index = _check_soft(soft, logits)
    if index is not None:
        raise TypeError("soft must be a tensor here, got SparseLabels, whose rest is not known to be absent")
    mass = _check_mass(mass, logits)
    pos_weight = per_class(pos_weight, "pos_weight", logits)
    weight = _check_options(weight, reduction, validate, backend, logits)
    return loss_ops.binary_cross_entropy(backend, validate, logits, soft, mass, weight, pos_weight, reduction)[0]


def soft_dice_loss(
    logits: Tensor,
    soft: Tensor | SparseLabels,
    *,
    weight: Tensor | None = None,
    classes: Classes = "present",
    per_sample: bool = False,
    reduction: Reduction = "mean",
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Dice loss that is right for soft targets: ``sum |p - q| / (sum p + sum q)`` of each class.

    With p the softmax of the logits times the pixel's mass, and sums over the pixels. It is 0 exactly where p = q; the
    usual ``1 - 2 sum p q / (sum p + sum q)`` is not, and draws soft targets to hard ones. For hard targets the two
    agree. The first Dice semimetric loss of Wang et al., "Dice Semimetric Losses", arXiv 2303.16296: their
    ``1 - (|p| + |q| - |p - q|) / (|p| + |q|)``.

    Args:
        logits: ``(B, C, h, w)``.
        soft: the same shape, or a `SparseLabels`, whose rest counts as unknown.
        weight: ``(C,)``; None is 1 for every class.
        classes: which ones the reduction takes: "present" those with mass in the target; "all", of which one without
            mass costs 1 where any of it is predicted, and has no gradient.
        per_sample: sums over each sample's pixels, not over those of the batch.
        reduction: "mean" over classes (and samples), weighted; "sum"; "none".
        validate: check the values of target and weight on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        A number; for "none" ``(C,)``, or ``(B, C)`` if ``per_sample``, with 0 for classes that are left out. float32,
        or float64 for float64 logits.

    Example:
        >>> soft = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1)
        >>> soft_dice_loss(soft.log(), soft) < 1e-6
        tensor(True)
        >>> soft_dice_loss(torch.zeros(1, 2, 1, 1), soft, reduction="none")  # 0.25 / 0.75, 0.25 / 1.25
        tensor([0.3333, 0.2000])
    """
    return _overlap_loss("dice", logits, soft, weight, classes, per_sample, reduction, validate, backend)


def soft_jaccard_loss(
    logits: Tensor,
    soft: Tensor | SparseLabels,
    *,
    weight: Tensor | None = None,
    classes: Classes = "present",
    per_sample: bool = False,
    reduction: Reduction = "mean",
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Jaccard (IoU) loss that is right for soft targets: ``2 sum |p - q| / (sum p + sum q + sum |p - q|)`` of a class.

    With J that and D the `soft_dice_loss` of a class, ``J = 2 D / (1 + D)``.
    The first Jaccard metric loss of Wang et al., "Jaccard Metric Losses", arXiv 2302.05666: their
    ``1 - (|p + q| - |p - q|) / (|p + q| + |p - q|)``.

    Args:
        logits: ``(B, C, h, w)``.
        soft: the same shape, or a `SparseLabels`, whose rest counts as unknown.
        weight: ``(C,)``; None is 1 for every class.
        classes: which ones the reduction takes: "present" those with mass in the target; "all", of which one without
            mass costs 1 where any of it is predicted, and has no gradient.
        per_sample: sums over each sample's pixels, not over those of the batch.
        reduction: "mean" over classes (and samples), weighted; "sum"; "none".
        validate: check the values of target and weight on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        A number; for "none" ``(C,)``, or ``(B, C)`` if ``per_sample``, with 0 for classes that are left out. float32,
        or float64 for float64 logits.

    Example:
        >>> soft = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1)
        >>> soft_jaccard_loss(torch.zeros(1, 2, 1, 1), soft, reduction="none")  # 0.5 / 1, 0.5 / 1.5
        tensor([0.5000, 0.3333])
    """
    return _overlap_loss("jaccard", logits, soft, weight, classes, per_sample, reduction, validate, backend)


def _overlap_loss(
    measure: Measure,
    logits: Tensor,
    soft: Tensor | SparseLabels,
    weight: Tensor | None,
    classes: Classes,
    per_sample: bool,
    reduction: Reduction,
    validate: bool | None,
    backend: str | None,
) -> Tensor:
    logits = _validation.check_logits(logits, soft, "soft")
    mass, index = _check_soft(soft, logits)
    weight = _check_options(weight, reduction, validate, backend, logits)
    _validation.check_reduced_classes(classes, per_sample)
    value, *_ = loss_ops.overlap_loss(
        backend, validate, logits, mass, index, weight, measure, classes, per_sample, reduction
    )
    return value if reduction != "none" or per_sample else value.squeeze(0)


# --- modules ---------------------------------------------------------------------------------------------------------


class WeightedLoss(nn.Module):
    """The base of the losses: a class weight, kept as a buffer, and options, checked as far as they can be yet."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None, reduction: Reduction, validate: bool | None) -> None:
        super().__init__()
        _validation.check_reduction(reduction)
        _validation.check_validate(validate)
        _check_weight(weight, "weight")
        self.register_buffer("weight", weight)
        self.reduction, self.validate = reduction, validate

    def extra_repr(self) -> str:
        """Constructor arguments."""
        weight = "" if self.weight is None else f"weight=({len(self.weight)},), "
        return f"{weight}reduction={self.reduction!r}"


class SoftCrossEntropyLoss(WeightedLoss):
    """`soft_cross_entropy` as a module.

    Args:
        weight: ``(C,)``; moves with the module and is saved with it.
        reduction: "mean", "sum" or "none".
        validate: check values on a GPU as well.
        label_smoothing: from 0 to 1.

    Example:
        >>> loss = SoftCrossEntropyLoss()
        >>> logits, soft = torch.zeros(2, 3, 4, 4, requires_grad=True), torch.full((2, 3, 4, 4), 1 / 3)
        >>> loss(logits, soft).detach()
        tensor(1.0986)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
        validate: bool | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, reduction, validate)
        self.label_smoothing = _validation.check_label_smoothing(label_smoothing)

    def forward(self, logits: Tensor, soft: Tensor | SparseLabels) -> Tensor:
        """Logits ``(B, C, h, w)`` and the soft label of that shape."""
        names = ("weight", "label_smoothing", "reduction", "validate")
        return soft_cross_entropy(logits, soft, **{name: getattr(self, name) for name in names})

    def extra_repr(self) -> str:
        """Constructor arguments."""
        return f"{super().extra_repr()}, label_smoothing={self.label_smoothing}"


class AreaCrossEntropyLoss(WeightedLoss):
    """`area_cross_entropy` as a module.

    Args:
        weight: ``(C,)``; moves with the module and is saved with it.
        ignore_index: the label of pixels that count nothing; None is 255, an error where C > 255.
        filter: "area", "triangle", "bilinear" or "nearest".
        reduction: "mean", "sum" or "none".
        validate: check values on a GPU as well.
        label_smoothing: from 0 to 1.

    Example:
        >>> loss = AreaCrossEntropyLoss()
        >>> loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1, 1, 255]]]))
        tensor(0.6931)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        filter: Filter = "area",
        reduction: Reduction = "mean",
        validate: bool | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, reduction, validate)
        _validation.check_ignore_index(ignore_index, None)
        _validation.check_sampling(filter, None)
        self.ignore_index, self.filter = ignore_index, filter
        self.label_smoothing = _validation.check_label_smoothing(label_smoothing)

    def forward(
        self, logits: Tensor, labels: Tensor, boxes: Boxes | None = None, transform: Tensor | None = None
    ) -> Tensor:
        """Logits ``(B, C, h, w)`` and label map ``(B, H, W)``; boxes ``(B, 4)`` in it, or a transform into it."""
        return area_cross_entropy(
            logits,
            labels,
            boxes,
            transform=transform,
            ignore_index=self.ignore_index,
            filter=self.filter,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            validate=self.validate,
        )

    def extra_repr(self) -> str:
        """Constructor arguments."""
        ignore_index = _validation.check_ignore_index(self.ignore_index, None)
        options = f"ignore_index={ignore_index}, filter={self.filter!r}, label_smoothing={self.label_smoothing}"
        return f"{super().extra_repr()}, {options}"


class SoftBinaryCrossEntropyLoss(WeightedLoss):
    """`soft_binary_cross_entropy` as a module.

    Args:
        weight: ``(C,)``; moves with the module and is saved with it.
        pos_weight: ``(C,)``; the same.
        reduction: "mean", "sum" or "none".
        validate: check values on a GPU as well.

    Example:
        >>> loss = SoftBinaryCrossEntropyLoss(pos_weight=torch.tensor([1.0, 3.0]))
        >>> loss(torch.zeros(1, 2, 1, 1), torch.tensor([0.5, 0.5]).view(1, 2, 1, 1))
        tensor(1.0397)
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        reduction: Reduction = "mean",
        validate: bool | None = None,
    ) -> None:
        super().__init__(weight, reduction, validate)
        _check_weight(pos_weight, "pos_weight")
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, logits: Tensor, soft: Tensor, mass: Tensor | None = None) -> Tensor:
        """Logits and masses ``(B, C, h, w)``; the known mass of that shape, of ``(B, h, w)`` or ``(B, 1, h, w)``."""
        names = ("weight", "pos_weight", "reduction", "validate")
        return soft_binary_cross_entropy(logits, soft, mass, **{name: getattr(self, name) for name in names})

    def extra_repr(self) -> str:
        """Constructor arguments."""
        pos_weight = "" if self.pos_weight is None else f", pos_weight=({len(self.pos_weight)},)"
        return f"{super().extra_repr()}{pos_weight}"


class SoftDiceLoss(WeightedLoss):
    """`soft_dice_loss` as a module.

    Args:
        weight: ``(C,)``; moves with the module and is saved with it.
        classes: "present" or "all".
        per_sample: sums over each sample's pixels, not over those of the batch.
        reduction: "mean", "sum" or "none".
        validate: check values on a GPU as well.

    Example:
        >>> SoftDiceLoss()(torch.zeros(1, 2, 1, 1), torch.tensor([0.25, 0.75]).view(1, 2, 1, 1))
        tensor(0.2667)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        classes: Classes = "present",
        per_sample: bool = False,
        reduction: Reduction = "mean",
        validate: bool | None = None,
    ) -> None:
        super().__init__(weight, reduction, validate)
        _validation.check_reduced_classes(classes, per_sample)
        self.classes, self.per_sample = classes, per_sample

    def forward(self, logits: Tensor, soft: Tensor | SparseLabels) -> Tensor:
        """Logits ``(B, C, h, w)`` and the soft label of that shape."""
        return soft_dice_loss(logits, soft, **self._options())

    def _options(self) -> dict[str, Any]:
        names = ("weight", "classes", "per_sample", "reduction", "validate")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Constructor arguments."""
        return f"{super().extra_repr()}, classes={self.classes!r}, per_sample={self.per_sample}"


class SoftJaccardLoss(SoftDiceLoss):
    """`soft_jaccard_loss` as a module.

    Args:
        weight: ``(C,)``; moves with the module and is saved with it.
        classes: "present" or "all".
        per_sample: sums over each sample's pixels, not over those of the batch.
        reduction: "mean", "sum" or "none".
        validate: check values on a GPU as well.

    Example:
        >>> SoftJaccardLoss(per_sample=True)
        SoftJaccardLoss(reduction='mean', classes='present', per_sample=True)
    """

    def forward(self, logits: Tensor, soft: Tensor | SparseLabels) -> Tensor:
        """Logits ``(B, C, h, w)`` and the soft label of that shape."""
        return soft_jaccard_loss(logits, soft, **self._options())


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_soft(soft: Any, logits: Tensor) -> tuple[Tensor, Tensor | None]:
    """The masses, and their classes if there are not all."""
    if not isinstance(soft, (Tensor, SparseLabels)):
        raise TypeError(f"soft must be a tensor or a SparseLabels, got {type(soft).__name__}")
    if isinstance(soft, SparseLabels):
        check_sparse_labels(soft)
        check_has_classes(soft, "soft")
    elif soft.dtype not in FLOAT_DTYPES:
        label_map = "" if soft.is_complex() else "; label maps go to area_cross_entropy, or first to to_soft"
        raise TypeError(f"soft must be {names_of(FLOAT_DTYPES)}, got {name_of(soft.dtype)}{label_map}")
    mass = soft if isinstance(soft, Tensor) else soft.mass
    swapped = "" if logits.requires_grad else are_swapped("soft")
    _validation.refuse_derivative(mass, "soft", "the losses have none for their target", swapped)
    if soft.shape != logits.shape:
        raise ValueError(f"soft must have the shape of logits, {tuple(logits.shape)}, got {tuple(soft.shape)}")
    if soft.device != logits.device:
        raise ValueError(f"soft must be on the device of logits, {logits.device}, got {soft.device}")
    return _validation.plain(mass), None if isinstance(soft, Tensor) else _validation.plain(soft.index)


def _check_mass(mass: Tensor | None, logits: Tensor) -> Tensor | None:
    """The known mass, in the shape of the logits."""
    if mass is None:
        return None
    if not isinstance(mass, Tensor):
        raise TypeError(f"mass must be None or a tensor, got {type(mass).__name__}")
    if mass.dtype not in FLOAT_DTYPES:
        raise TypeError(f"mass must be {names_of(FLOAT_DTYPES)}, got {name_of(mass.dtype)}")
    _validation.refuse_derivative(mass, "mass", "the losses have none for their target")
    batch, num_classes, *size = logits.shape
    allowed = ((batch, num_classes, *size), (batch, *size), (batch, 1, *size))
    if tuple(mass.shape) not in allowed:
        raise ValueError(f"mass must have one of the shapes {', '.join(map(str, allowed))}, got {tuple(mass.shape)}")
    if mass.device != logits.device:
        raise ValueError(f"mass must be on the device of logits, {logits.device}, got {mass.device}")
    mass = _validation.plain(mass)
    return (mass if mass.ndim == 4 else mass[:, None]).expand(logits.shape)


def _check_weight(weight: Any, argument: str) -> None:
    """A weight, as far as it can be checked without logits."""
    if weight is not None:
        _validation.check_vector(weight, argument)
        if not weight.is_meta:
            _validation.check_weight_values(weight, argument)


def _check_options(weight: Any, reduction: Any, validate: Any, backend: Any, logits: Tensor) -> Tensor | None:
    """The weight, as a plain tensor in the type that the loss is computed in."""
    _validation.check_reduction(reduction)
    _validation.check_validate(validate)
    _validation.check_backend(backend)
    return per_class(weight, "weight", logits)


def per_class(vector: Any, argument: str, logits: Tensor) -> Tensor | None:
    """One number for each class of the logits, as a plain tensor in the type that is computed in."""
    checked = _validation.check_class_vector(vector, argument, logits)
    return None if checked is None else checked.to(loss_ops.compute_dtype(logits))
