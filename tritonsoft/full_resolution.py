"""Small logits against a full-size label map, as if they had been enlarged to its size, but without the memory of that.

Networks predict at 1/4 to 1/16 of the image. Enlarging their logits to the size of the label map before the loss, and
before the argmax, needs C numbers for each of its pixels, more than the rest of many networks. Here each pixel's logits
are interpolated where they are used, and never stored.

What they share:

* **Logits**: float tensor ``(B, C, h, w)`` of float16, bfloat16, float32 or float64, in any memory layout. Arithmetic
  is in float32 (float64 for float64), under autocast too; gradients have the logits' type and memory format.
* **Labels**: label map ``(B, H, W)`` or ``(B, 1, H, W)`` of any size, larger or smaller than the logits, at any ratio;
  pixels equal to ``ignore_index`` count nothing.
* **Enlarging** is ``F.interpolate(logits, (H, W), mode="bilinear", align_corners=False)``: see `tritonsoft.geometry`,
  "Logits at full size". A logit of weight 0 is not read there, so an infinite one (of a class that is masked out)
  makes no NaN.
* **Boxes**: ``(B, 4)`` in edges of label pixels, as for `area_cross_entropy`: where in the label map the logits lie,
  for instance the random crop (mirrored for a flip) that the network saw. Pixels whose centres lie outside count
  nothing. None: the logits lie over all of it.
* **Memory**: beside inputs and gradient, a loss keeps 4 bytes for each pixel of the label map (8 for float64).
* **Weight**: ``(C,)``, each 0 or from 1e-20 to 1e20, on the logits' device: a factor for every class.
* **Values** of labels, boxes, weights and biases are checked on the CPU always, on a GPU (where it costs a
  synchronisation) with ``validate=True`` or ``TRITONSOFT_VALIDATE=1``.
* **Backend**: see `tritonsoft.functional`.
* **Errors**: TypeError or ValueError that names the argument. The losses can be differentiated once, in reverse mode;
  in forward mode they raise a RuntimeError.

The same inputs give the same bits, whatever the number of threads: the gradient is gathered, without atomics.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonsoft import _validation
from tritonsoft._validation import Boxes, name_of
from tritonsoft.geometry import Classes, Reduction
from tritonsoft.losses import WeightedLoss, per_class
from tritonsoft.ops import full_resolution as ops


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    boxes: Boxes | None = None,
    *,
    ignore_index: int | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of logits that are enlarged to the size of their label map, which no memory ever holds.

    With the value and the gradient of ``F.cross_entropy(F.interpolate(logits, (H, W), mode="bilinear"), labels, ...)``.

    Args:
        logits: ``(B, C, h, w)``.
        labels: ``(B, H, W)`` or ``(B, 1, H, W)``, label map on the logits' device.
        boxes: ``(B, 4)`` in edges of label pixels: where in the label map the logits lie; None is all of it.
        ignore_index: the label of pixels that count nothing; None is 255, and an error where C > 255.
        weight: ``(C,)``; None is 1 for every class. Pixels of a class with weight 0 count nothing, whatever the logits.
        label_smoothing: the share of each pixel's target, from 0 to 1, that all classes get alike.
        reduction: "mean" divides the sum by the weights of the pixels' classes, and is 0 where no pixel counts (torch
            gives NaN); "sum"; "none" gives each pixel's loss, 0 where it counts nothing.
        validate: check the values of labels, boxes and weight on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        A number, or ``(B, H, W)`` for "none": float32, or float64 for float64 logits.

    Example:
        >>> logits = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
        >>> labels = torch.tensor([[[0, 0, 1, 255]]])
        >>> upsampled_cross_entropy(logits, labels)
        tensor(2.2742)
        >>> enlarged = torch.nn.functional.interpolate(logits, (1, 4), mode="bilinear")
        >>> torch.nn.functional.cross_entropy(enlarged, labels, ignore_index=255)
        tensor(2.2742)
    """
    logits = _validation.check_logits(logits, labels, "labels")
    labels = _validation.check_hard_target(labels, logits, "soft_cross_entropy, at their own size")
    ignore_index, boxes = _check_place(logits, boxes, ignore_index, validate, backend)
    label_smoothing = _validation.check_label_smoothing(label_smoothing)
    _validation.check_reduction(reduction)
    weight = per_class(weight, "weight", logits)
    return ops.upsampled_cross_entropy(
        backend, validate, logits, labels, boxes, ignore_index, weight, label_smoothing, reduction
    )[0]


def upsampled_dice_loss(
    logits: Tensor,
    labels: Tensor,
    boxes: Boxes | None = None,
    *,
    ignore_index: int | None = None,
    weight: Tensor | None = None,
    classes: Classes = "present",
    per_sample: bool = False,
    reduction: Reduction = "mean",
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Dice loss of logits that are enlarged to the size of their label map: ``1 - 2 sum p q / (sum p + sum q)``.

    With p the softmax of the enlarged logits, q the one-hot planes of the label map, and sums over the pixels that
    count: `soft_dice_loss` of the two, which for hard targets is the usual Dice loss.

    Args:
        logits: ``(B, C, h, w)``.
        labels: ``(B, H, W)`` or ``(B, 1, H, W)``, label map on the logits' device.
        boxes: ``(B, 4)`` in edges of label pixels: where in the label map the logits lie; None is all of it.
        ignore_index: the label of pixels that count nothing; None is 255, and an error where C > 255.
        weight: ``(C,)``; None is 1 for every class.
        classes: which ones the reduction takes: "present" those in the label map; "all", of which an absent one costs 1
            where any of it is predicted (in float32: with a probability that does not underflow), and has no gradient.
        per_sample: sums over each sample's pixels, not over those of the batch.
        reduction: "mean" over classes (and samples), weighted; "sum"; "none".
        validate: check the values of labels, boxes and weight on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        A number; for "none" ``(C,)``, or ``(B, C)`` if ``per_sample``, with 0 for classes that are left out. float32,
        or float64 for float64 logits.

    Example:
        >>> labels = torch.tensor([[[0, 0, 0, 1]]])
        >>> upsampled_dice_loss(torch.zeros(1, 2, 1, 2), labels, reduction="none")  # 1 - 3 / (2 + 3), 1 - 1 / (2 + 1)
        tensor([0.4000, 0.6667])
    """
    logits = _validation.check_logits(logits, labels, "labels")
    labels = _validation.check_hard_target(labels, logits, "soft_dice_loss, at their own size")
    ignore_index, boxes = _check_place(logits, boxes, ignore_index, validate, backend)
    _validation.check_reduction(reduction)
    _validation.check_reduced_classes(classes, per_sample)
    weight = per_class(weight, "weight", logits)
    value, *_ = ops.upsampled_overlap_loss(
        backend, validate, logits, labels, boxes, ignore_index, weight, "dice", classes, per_sample, reduction
    )
    return value if reduction != "none" or per_sample else value.squeeze(0)


def decode(
    logits: Tensor,
    size: Sequence[int],
    *,
    boxes: Boxes | None = None,
    scores: bool = False,
    bias: Tensor | None = None,
    ignore_index: int | None = None,
    dtype: torch.dtype = torch.uint8,
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The predicted label map: the largest of the logits that are enlarged to this size, which no memory ever holds.

    ``F.interpolate(logits, size, mode="bilinear").argmax(1)``, where of equal logits the smaller class wins and a NaN
    is larger than any number. It has no gradient.

    Args:
        logits: ``(B, C, h, w)``.
        size: ``(H, W)`` of the label map.
        boxes: ``(B, 4)`` in edges of its pixels: where in it the logits lie; None is all of it.
        scores: also the probability of each pixel's class, by the softmax of the enlarged logits (with the bias).
        bias: ``(C,)``, added to the logits; -infinity for a class that must not be predicted. After training with class
            weights w, ``-w.log()`` takes them out of the probabilities again.
        ignore_index: what pixels get that lie outside of their box; None is 255, and an error where C > 255.
        dtype: of the label map, uint8, int16, int32 or int64; uint8 holds up to 256 classes.
        validate: check the values of boxes and bias on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Returns:
        The label map ``(B, H, W)``; with ``scores`` also the probabilities ``(B, H, W)``, 0 outside of the boxes, in
        float32, or float64 for float64 logits.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)
        >>> decode(logits, (1, 4))
        tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
        >>> decode(logits, (1, 4), boxes=torch.tensor([[1.0, 0.0, 3.0, 1.0]]), scores=True)
        (tensor([[[255,   0,   1, 255]]], dtype=torch.uint8), tensor([[[0.0000, 0.7311, 0.8808, 0.0000]]]))
    """
    logits = _validation.check_logits(logits, None, "size")
    size = _validation.check_size(size)
    num_classes = logits.shape[1]
    if boxes is None and ignore_index is None:
        ignore_index = _validation.DEFAULT_IGNORE_INDEX  # no pixel gets it
    ignore_index, boxes = _check_place(logits, boxes, ignore_index, validate, backend)
    if not isinstance(scores, bool):
        raise TypeError(f"scores must be True or False, got {scores!r}")
    if dtype not in _validation.OUTPUT_LABEL_DTYPES:
        raise TypeError(f"dtype must be {_validation.names_of(_validation.OUTPUT_LABEL_DTYPES)}, got {dtype}")
    info = torch.iinfo(dtype)
    if num_classes - 1 > info.max:
        raise ValueError(f"dtype must hold the classes 0..{num_classes - 1}, got {name_of(dtype)}")
    if boxes is not None and not info.min <= ignore_index <= info.max:
        raise ValueError(f"dtype must hold ignore_index={ignore_index}, got {name_of(dtype)}")
    bias = per_class(bias, "bias", logits)
    out, score = ops.decode(backend, validate, logits.detach(), boxes, size, bias, scores, ignore_index, dtype)
    return (out, score) if scores else out


def confusion_matrix(
    logits: Tensor,
    labels: Tensor,
    boxes: Boxes | None = None,
    *,
    bias: Tensor | None = None,
    ignore_index: int | None = None,
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """How many pixels of each class (rows) `decode` gives each class (columns): ``(C, C)`` int64.

    `tritonsoft.metrics.ConfusionMatrix` and `tritonsoft.metrics.MeanIoU` add these up.

    Args:
        logits: ``(B, C, h, w)``.
        labels: ``(B, H, W)`` or ``(B, 1, H, W)``, label map on the logits' device.
        boxes: ``(B, 4)`` in edges of label pixels: where in the label map the logits lie; None is all of it.
        bias: ``(C,)``, added to the logits; -infinity for a class that must not be predicted.
        ignore_index: the label of pixels that count nothing; None is 255, and an error where C > 255.
        validate: check the values of labels, boxes and bias on a GPU as well.
        backend: None picks by device; "reference", "numba" or "triton" forces one.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)
        >>> confusion_matrix(logits, torch.tensor([[[0, 1, 1, 255]]]))
        tensor([[1, 0],
                [1, 1]])
    """
    logits = _validation.check_logits(logits, labels, "labels")
    labels = _validation.check_hard_target(labels, logits, "the metrics of soft labels")
    ignore_index, boxes = _check_place(logits, boxes, ignore_index, validate, backend)
    bias = per_class(bias, "bias", logits)
    return ops.confusion_matrix(backend, validate, logits.detach(), labels, boxes, bias, ignore_index)


class UpsampledCrossEntropyLoss(WeightedLoss):
    """`upsampled_cross_entropy` as a module.

    Args:
        weight: ``(C,)``; moves with the module and is saved with it.
        ignore_index: the label of pixels that count nothing; None is 255, an error where C > 255.
        label_smoothing: from 0 to 1.
        reduction: "mean", "sum" or "none".
        validate: check values on a GPU as well.

    Example:
        >>> UpsampledCrossEntropyLoss()(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1, 1, 255]]]))
        tensor(0.6931)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        validate: bool | None = None,
    ) -> None:
        super().__init__(weight, reduction, validate)
        _validation.check_ignore_index(ignore_index, None)
        _validation.check_label_smoothing(label_smoothing)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def forward(self, logits: Tensor, labels: Tensor, boxes: Boxes | None = None) -> Tensor:
        """Logits ``(B, C, h, w)``, label map ``(B, H, W)``, and boxes ``(B, 4)`` in it or None."""
        return upsampled_cross_entropy(
            logits,
            labels,
            boxes,
            ignore_index=self.ignore_index,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            validate=self.validate,
        )

    def extra_repr(self) -> str:
        """Constructor arguments."""
        ignore_index = _validation.check_ignore_index(self.ignore_index, None)
        return f"{super().extra_repr()}, ignore_index={ignore_index}, label_smoothing={self.label_smoothing}"


class UpsampledDiceLoss(WeightedLoss):
    """`upsampled_dice_loss` as a module.

    Args:
        weight: ``(C,)``; moves with the module and is saved with it.
        ignore_index: the label of pixels that count nothing; None is 255, an error where C > 255.
        classes: "present" or "all".
        per_sample: sums over each sample's pixels, not over those of the batch.
        reduction: "mean", "sum" or "none".
        validate: check values on a GPU as well.

    Example:
        >>> UpsampledDiceLoss()(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 0, 0, 1]]]))
        tensor(0.5333)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        classes: Classes = "present",
        per_sample: bool = False,
        reduction: Reduction = "mean",
        validate: bool | None = None,
    ) -> None:
        super().__init__(weight, reduction, validate)
        _validation.check_ignore_index(ignore_index, None)
        _validation.check_reduced_classes(classes, per_sample)
        self.ignore_index, self.classes, self.per_sample = ignore_index, classes, per_sample

    def forward(self, logits: Tensor, labels: Tensor, boxes: Boxes | None = None) -> Tensor:
        """Logits ``(B, C, h, w)``, label map ``(B, H, W)``, and boxes ``(B, 4)`` in it or None."""
        names = ("weight", "ignore_index", "classes", "per_sample", "reduction", "validate")
        return upsampled_dice_loss(logits, labels, boxes, **{name: getattr(self, name) for name in names})

    def extra_repr(self) -> str:
        """Constructor arguments."""
        ignore_index = _validation.check_ignore_index(self.ignore_index, None)
        options = f"ignore_index={ignore_index}, classes={self.classes!r}, per_sample={self.per_sample}"
        return f"{super().extra_repr()}, {options}"


def _check_place(
    logits: Tensor, boxes: Any, ignore_index: Any, validate: Any, backend: Any
) -> tuple[int, Tensor | None]:
    """The ignore index, and the boxes as a plain tensor."""
    _validation.check_backend(backend)
    boxes = _validation.check_boxes(boxes, logits.shape[0], logits.device, "logits")
    ignore_index = _validation.check_ignore_index(ignore_index, logits.shape[1])
    _validation.check_validate(validate)
    return ignore_index, boxes
