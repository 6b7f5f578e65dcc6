"""Metrics of predictions against soft labels and label maps, and of labels against the label map they were made from.

They are `torchmetrics.Metric` modules (extra ``metrics``): ``update`` adds a batch, ``compute`` gives the value of all
so far, ``reset`` starts again, on any device. All they keep are sums, in float64 or of whole numbers, which add up over
the processes of `torch.distributed`.

`ConfusionMatrix` and `MeanIoU` compare small logits with a label map at its full size, as if the logits had been
enlarged (`tritonsoft.full_resolution`). What the others share:

* **Probabilities**: ``(B, C, h, w)``, floating point, as a softmax gives them; `SoftNegativeLogLikelihood` takes
  logits.
* **Soft label**: ``(B, C, h, w)`` or a `SparseLabels`, whose rest counts as unknown. A pixel counts for its mass, the
  labelled share of its footprint: p below is the probability times that mass, q the soft label.
* **Values** of probabilities and soft labels are checked on the CPU always, on a GPU (where it costs a synchronisation)
  with ``TRITONSOFT_VALIDATE=1``.
* **Errors**: TypeError or ValueError that names the argument.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from tritonsoft._extras import how_to_install

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(f"{error}: tritonsoft.metrics needs torchmetrics: {how_to_install('metrics')}") from None

from tritonsoft._validation import (
    Boxes,
    check_ignore_index,
    check_vector,
    is_whole_number,
    plain,
    python_int,
    should_validate,
)
from tritonsoft.backends.values import is_subdistribution, total_mass
from tritonsoft.full_resolution import confusion_matrix
from tritonsoft.functional import soft_resize, to_soft
from tritonsoft.sparse import SparseLabels, check_has_classes

Average = Literal["classes", "mass", "none"]
Normalize = Literal["true", "pred", "all"]


class _PerClass(Metric):
    """Sums ``(C,)`` of some names, and means over the classes."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, num_classes: int, average: Average, names: tuple[str, ...], **options: Any) -> None:
        super().__init__(**options)
        num_classes = _at_least_one(num_classes, "num_classes")
        if average not in ("classes", "mass", "none"):
            raise ValueError(f"average must be 'classes', 'mass' or 'none', got {average!r}")
        self.num_classes, self.average = num_classes, average
        for name in names:
            self.add_state(name, torch.zeros(num_classes, dtype=torch.float64), dist_reduce_fx="sum")

    def _mean(self, values: Tensor, mass: Tensor) -> Tensor:
        """Over the classes that the labels hold: alike, or by their mass; NaN where there is none."""
        present = mass > 0
        if self.average == "none":
            return torch.where(present, values, torch.nan)
        weight = present.double() if self.average == "classes" else mass
        return (torch.where(present, values, 0) * weight).sum() / weight.sum()


class SoftIoU(_PerClass):
    """Intersection over union with a soft label: ``sum min(p, q) / sum max(p, q)`` of each class.

    1 exactly where p = q. One less the Jaccard loss of `tritonsoft.soft_jaccard_loss`, with sums over all batches.

    Args:
        num_classes: C.
        average: "classes" means over those that the labels hold, "mass" weighs them by their mass, "none" gives
            ``(C,)`` with NaN for the others.

    Example:
        >>> import torch
        >>> iou = SoftIoU(2)
        >>> iou.update(torch.tensor([0.5, 0.5]).view(1, 2, 1, 1), torch.tensor([0.25, 0.75]).view(1, 2, 1, 1))
        >>> iou.compute()  # 0.25 / 0.5 and 0.5 / 0.75
        tensor(0.5833, dtype=torch.float64)
    """

    higher_is_better = True
    intersection: Tensor
    union: Tensor
    mass: Tensor

    def __init__(self, num_classes: int, average: Average = "classes", **options: Any) -> None:
        super().__init__(num_classes, average, ("intersection", "union", "mass"), **options)

    def update(self, probabilities: Tensor, soft: Tensor | SparseLabels) -> None:
        """Adds a batch: probabilities ``(B, C, h, w)`` and the soft label of that shape."""
        p, q = _weighted(probabilities, soft, self.num_classes)
        self.intersection += torch.minimum(p, q).sum((0, 2, 3))
        self.union += torch.maximum(p, q).sum((0, 2, 3))
        self.mass += q.sum((0, 2, 3))

    def compute(self) -> Tensor:
        """A number, or ``(C,)``."""
        return self._mean(self.intersection / self.union, self.mass)


class AreaError(_PerClass):
    """How far the predicted area of each class is from the labelled: ``|sum p - sum q| / sum q``.

    Args:
        num_classes: C.
        average: "classes" means over those that the labels hold, "mass" weighs them by their mass, "none" gives
            ``(C,)`` with NaN for the others.

    Example:
        >>> import torch
        >>> error = AreaError(2, average="none")
        >>> error.update(torch.tensor([0.5, 0.5]).view(1, 2, 1, 1), torch.tensor([0.25, 0.75]).view(1, 2, 1, 1))
        >>> error.compute()
        tensor([1.0000, 0.3333], dtype=torch.float64)
    """

    higher_is_better = False
    predicted: Tensor
    mass: Tensor

    def __init__(self, num_classes: int, average: Average = "classes", **options: Any) -> None:
        super().__init__(num_classes, average, ("predicted", "mass"), **options)

    def update(self, probabilities: Tensor, soft: Tensor | SparseLabels) -> None:
        """Adds a batch: probabilities ``(B, C, h, w)`` and the soft label of that shape."""
        p, q = _weighted(probabilities, soft, self.num_classes)
        self.predicted += p.sum((0, 2, 3))
        self.mass += q.sum((0, 2, 3))

    def compute(self) -> Tensor:
        """A number, or ``(C,)``."""
        return self._mean((self.predicted - self.mass).abs() / self.mass, self.mass)


class ConfusionMatrix(Metric):
    """How many pixels of each class (rows) are predicted as each class (columns), at the size of the label map.

    The same as torchmetrics' `MulticlassConfusionMatrix` of the argmax of logits that were enlarged bilinearly.

    Args:
        num_classes: C.
        ignore_index: the label of pixels that count nothing; None is 255, an error where C > 255.
        normalize: None gives counts; "true" divides each row by its sum, "pred" each column, "all" by the sum of all
            (0 where that is 0).
        bias: ``(C,)``, added to the logits before the largest is taken; see `tritonsoft.decode`.

    Example:
        >>> import torch
        >>> matrix = ConfusionMatrix(2)
        >>> matrix.update(torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2), torch.tensor([[[0, 1, 1, 255]]]))
        >>> matrix.compute()
        tensor([[1, 0],
                [1, 1]])
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better: bool | None = None
    counts: Tensor
    bias: Tensor | None

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = None,
        normalize: Normalize | None = None,
        bias: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        num_classes = _at_least_one(num_classes, "num_classes")
        if normalize not in (None, "true", "pred", "all"):
            raise ValueError(f"normalize must be None, 'true', 'pred' or 'all', got {normalize!r}")
        self.num_classes, self.normalize = num_classes, normalize
        self.ignore_index = check_ignore_index(ignore_index, num_classes)
        if bias is not None:
            check_vector(bias, "bias")
            if len(bias) != num_classes:
                raise ValueError(f"bias must have one number for each of {num_classes} classes, got {len(bias)}")
        self.register_buffer("bias", bias)
        self.add_state("counts", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, boxes: Boxes | None = None) -> None:
        """Adds a batch: logits ``(B, C, h, w)``, label map ``(B, H, W)``, and boxes where in it the logits lie."""
        if isinstance(logits, Tensor) and logits.ndim == 4 and logits.shape[1] != self.num_classes:
            raise ValueError(f"logits must have num_classes={self.num_classes} channels, got {logits.shape[1]}")
        self.counts += confusion_matrix(logits, labels, boxes, bias=self.bias, ignore_index=self.ignore_index)

    def compute(self) -> Tensor:
        """``(C, C)``: int64, or float64 if normalised."""
        if self.normalize is None:
            return self.counts
        axes: dict[Normalize, tuple[int, ...]] = {"true": (1,), "pred": (0,), "all": (0, 1)}
        total = self.counts.sum(axes[self.normalize], keepdim=True)
        return self.counts.double() / total.clamp(min=1)


class MeanIoU(ConfusionMatrix):
    """Intersection over union of the classes, at the size of the label map: ``TP / (TP + FP + FN)`` over all batches.

    The same as torchmetrics' `MulticlassJaccardIndex` of the argmax of logits that were enlarged bilinearly.

    Args:
        num_classes: C.
        ignore_index: the label of pixels that count nothing; None is 255, an error where C > 255.
        average: "classes" is the mean over those that are labelled or predicted anywhere, without a class that
            ``ignore_index`` names; "none" gives ``(C,)`` with NaN for the others.
        bias: ``(C,)``, added to the logits before the largest is taken; see `tritonsoft.decode`.

    Example:
        >>> import torch
        >>> iou = MeanIoU(2)
        >>> iou.update(torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2), torch.tensor([[[0, 1, 1, 255]]]))
        >>> iou.compute()  # 1 / 2 and 1 / 2
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = None,
        average: Literal["classes", "none"] = "classes",
        bias: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, ignore_index, None, bias, **options)
        if average not in ("classes", "none"):
            raise ValueError(f"average must be 'classes' or 'none', got {average!r}")
        self.average = average

    def compute(self) -> Tensor:
        """A number, NaN where nothing was counted, or ``(C,)``."""
        both = self.counts.diagonal().double()
        either = self.counts.sum(0) + self.counts.sum(1) - self.counts.diagonal()
        present = either > 0
        if 0 <= self.ignore_index < self.num_classes:
            present[self.ignore_index] = False  # nothing that counts is labelled so
        iou = torch.where(present, both / either, torch.nan)
        return iou if self.average == "none" else torch.where(present, iou, 0).sum() / present.sum()


class LabelRetention(_PerClass):
    """What a low-resolution label, hard or soft, keeps of the label map it stands for.

    With q the exact area distribution, ``soft_resize(labels, size, C)``, and g what the label gives each pixel (all of
    it to one class if it is hard): ``compute`` gives

    * "area": ``sum g / sum q``, the share of the class's area that the label shows, wherever;
    * "in_place": ``sum min(g, q) / sum q``, the share that it shows in the pixels where it lies;
    * "distance": ``sum |g - q| / sum q``, the L1 distance.

    Args:
        num_classes: C.
        ignore_index: the label of pixels that are unknown, in both; None is 255, an error where C > 255.
        average: "classes" means over those that the labels hold, "mass" weighs them by their mass, "none" gives
            ``(C,)`` with NaN for the others.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[[0, 0, 0, 1]]])
        >>> retention = LabelRetention(2, average="none")
        >>> retention.update(torch.tensor([[[0, 0]]]), labels)  # nearest: the 1 is lost
        >>> {name: value.tolist() for name, value in retention.compute().items()}
        {'area': [1.3333333333333333, 0.0], 'in_place': [1.0, 0.0], 'distance': [0.3333333333333333, 1.0]}
    """

    given: Tensor
    placed: Tensor
    apart: Tensor
    mass: Tensor

    def __init__(
        self, num_classes: int, ignore_index: int | None = None, average: Average = "classes", **options: Any
    ) -> None:
        super().__init__(num_classes, average, ("given", "placed", "apart", "mass"), **options)
        self.ignore_index = check_ignore_index(ignore_index, num_classes)

    def update(self, label: Tensor | SparseLabels, labels: Tensor) -> None:
        """Adds a batch: a label ``(B, h, w)`` of classes or ``(B, C, h, w)`` of masses, and its label map."""
        if isinstance(label, SparseLabels):
            given = label.to_dense()
        elif isinstance(label, Tensor) and label.is_floating_point():
            given = plain(label)
        else:
            given = to_soft(label, self.num_classes, ignore_index=self.ignore_index)
        if given.ndim != 4 or given.shape[1] != self.num_classes:
            raise ValueError(f"label must have shape (B, {self.num_classes}, h, w), got {tuple(given.shape)}")
        size = (given.shape[2], given.shape[3])
        exact = soft_resize(labels, size, self.num_classes, ignore_index=self.ignore_index).double()
        if exact.shape != given.shape:
            raise ValueError(f"label must have the batch of labels, {len(exact)}, got {len(given)}")
        given = given.double()
        # In source pixels, so that batches of several sizes add up.
        cell = labels.shape[-2] * labels.shape[-1] / (size[0] * size[1])
        self.given += cell * given.sum((0, 2, 3))
        self.placed += cell * torch.minimum(given, exact).sum((0, 2, 3))
        self.apart += cell * (given - exact).abs().sum((0, 2, 3))
        self.mass += cell * exact.sum((0, 2, 3))

    def compute(self) -> dict[str, Tensor]:
        """Numbers, or ``(C,)``, by name."""
        sums = {"area": self.given, "in_place": self.placed, "distance": self.apart}
        return {name: self._mean(value / self.mass, self.mass) for name, value in sums.items()}


class _Mean(Metric):
    """A sum over the pixels, and the mass to divide it by."""

    full_state_update = False
    is_differentiable = False
    higher_is_better: bool | None = False
    total: Tensor
    mass: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("total", "mass"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """A number; NaN where there is no mass."""
        return self.total / self.mass


class SoftNegativeLogLikelihood(_Mean):
    """``-sum q log softmax(z) / sum q`` of logits z, over all batches, in nats.

    Example:
        >>> import torch
        >>> likelihood = SoftNegativeLogLikelihood()
        >>> likelihood.update(torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), 0.25))
        >>> likelihood.compute()  # log(4)
        tensor(1.3863, dtype=torch.float64)
    """

    def update(self, logits: Tensor, soft: Tensor | SparseLabels) -> None:
        """Adds a batch: logits ``(B, C, h, w)`` and the soft label of that shape."""
        q = _masses(soft, logits, "logits")
        logarithm = plain(logits).double().log_softmax(1)
        self.total -= torch.where(q > 0, q * logarithm, 0).sum()
        self.mass += q.sum()


class LabelEntropy(_Mean):
    """The entropy of each pixel's distribution of classes in bits, a mean weighted by mass; 0 for hard labels.

    Example:
        >>> import torch
        >>> entropy = LabelEntropy()
        >>> entropy.update(torch.tensor([0.5, 0.5, 0.0]).view(1, 3, 1, 1))
        >>> entropy.compute()
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = None

    def update(self, soft: Tensor | SparseLabels) -> None:
        """Adds a batch: a soft label ``(B, C, h, w)``."""
        q = _masses(soft, None, "soft")
        mass = q.sum(1)
        # With q = m d: sum m d log(1/d) = sum q log(1/q) - m log(1/m)
        self.total += (torch.special.entr(q).sum() - torch.special.entr(mass).sum()) / torch.log(q.new_tensor(2.0))
        self.mass += mass.sum()


class SoftCalibrationError(Metric):
    """Expected calibration error against soft targets.

    Pixels are binned by their confidence, the largest probability; in each bin the mean confidence is compared with the
    mean share of the footprint that has the predicted class, and the bins' differences are weighted by mass. With hard
    targets it is the usual error (Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, eq. 3).

    Args:
        num_bins: how many equal intervals of confidence.

    Example:
        >>> import torch
        >>> error = SoftCalibrationError()
        >>> error.update(torch.tensor([0.9, 0.1]).view(1, 2, 1, 1), torch.tensor([0.5, 0.5]).view(1, 2, 1, 1))
        >>> error.compute()
        tensor(0.4000, dtype=torch.float64)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    confidence: Tensor
    right: Tensor
    mass: Tensor

    def __init__(self, num_bins: int = 15, **options: Any) -> None:
        super().__init__(**options)
        self.num_bins = num_bins = _at_least_one(num_bins, "num_bins")
        for name in ("confidence", "right", "mass"):
            self.add_state(name, torch.zeros(num_bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, soft: Tensor | SparseLabels) -> None:
        """Adds a batch: probabilities ``(B, C, h, w)`` and the soft label of that shape."""
        q = _masses(soft, probabilities, "probabilities")
        _check_shares(probabilities, "probabilities")
        confidence, predicted = plain(probabilities).double().max(1)
        mass = q.sum(1)
        bins = (confidence * self.num_bins).ceil().sub(1).clamp(0, self.num_bins - 1).long()
        right = q.gather(1, predicted[:, None])[:, 0]
        for state, values in ((self.confidence, mass * confidence), (self.right, right), (self.mass, mass)):
            # One bin at a time: sums in an order of their own, so that the same inputs give the same bits.
            state += torch.stack([torch.where(bins == index, values, 0).sum() for index in range(self.num_bins)])

    def compute(self) -> Tensor:
        """A number from 0 to 1; NaN where there is no mass."""
        return (self.confidence - self.right).abs().sum() / self.mass.sum()


def _at_least_one(number: Any, argument: str) -> int:
    if not is_whole_number(number) or number < 1:
        raise ValueError(f"{argument} must be an int of at least 1, got {number!r}")
    return python_int(number)


def _masses(soft: Any, scores: Any, name: str) -> Tensor:
    """The soft label in float64, of the shape of the scores."""
    if not isinstance(soft, (Tensor, SparseLabels)):
        raise TypeError(f"soft must be a tensor or a SparseLabels, got {type(soft).__name__}")
    if isinstance(soft, SparseLabels):
        check_has_classes(soft, "soft")
    if len(soft.shape) != 4:
        raise ValueError(f"soft must have shape (B, C, h, w), got {tuple(soft.shape)}")
    if scores is not None:
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
        if soft.shape != scores.shape:
            raise ValueError(f"soft must have the shape of {name}, {tuple(scores.shape)}, got {tuple(soft.shape)}")
        if soft.device != scores.device:
            raise ValueError(f"soft must be on the device of {name}, {scores.device}, got {soft.device}")
    dense: Tensor = soft.to_dense() if isinstance(soft, SparseLabels) else plain(soft)
    if not dense.is_floating_point():
        raise TypeError(f"soft must be floating point, got {dense.dtype}")
    _check_shares(dense, "soft")
    return dense.double().clamp(min=0)


def _check_shares(values: Tensor, name: str) -> None:
    """What a pixel's classes have of it, where values are checked; logits, above all, are none."""
    if should_validate(values.device, None) and not is_subdistribution(values):
        raise ValueError(
            f"{name} must be at least 0 and at most 1 in all classes of a pixel together, within 1/64, "
            f"got entries from {values.min().item():.6g} and sums up to {total_mass(values).max().item():.6g}"
        )


def _weighted(probabilities: Tensor, soft: Tensor | SparseLabels, num_classes: int) -> tuple[Tensor, Tensor]:
    """Probabilities times the mass of their pixel, and the soft label."""
    q = _masses(soft, probabilities, "probabilities")
    if q.shape[1] != num_classes:
        raise ValueError(f"probabilities must have num_classes={num_classes} channels, got {q.shape[1]}")
    _check_shares(probabilities, "probabilities")
    return plain(probabilities).double() * q.sum(1, keepdim=True), q
