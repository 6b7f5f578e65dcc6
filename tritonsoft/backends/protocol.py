"""The face that all backends have: one function for each operator, the same everywhere.

A backend is a module. Its functions write into outputs that are ready (and not empty), and trust their arguments:
types, shapes and devices are checked by the public functions, boxes and class weights by the operators. What only a
look at every element can tell is checked by the backend, in the pass that reads it where it can: with ``validate``, a
function returns whether all *labels* or *masses* that it read are allowed. The operator then words the error.

Shapes: image ``(B, K, H, W)``, label map ``(B, H, W)``, boxes ``(B, 4)`` or None for the whole source, soft label and
logits ``(B, C, h, w)``, weight ``(C,)``, contiguous maps of numbers ``(B, h, w)``. Any strides, unless said.

A target of the losses is ``soft`` with ``index`` None, or masses ``(B, k, h, w)`` of the classes ``index``.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from tritonsoft.geometry import Classes, Filter, Measure, Reduction


class Backend(Protocol):
    """See `tritonsoft.backends.reference` for what each function means."""

    def crop_resize(self, out: Tensor, image: Tensor, boxes: Tensor | None, filter: Filter, fill: float) -> None:
        """``out (B, K, h, w)`` is the image in its boxes."""

    def crop_resize_adjoint(self, out: Tensor, grad: Tensor, boxes: Tensor | None, filter: Filter) -> None:
        """``out (B, K, H, W)`` is the transpose of `crop_resize`, applied to ``grad (B, K, h, w)``."""

    def remap_labels(
        self,
        out: Tensor,
        labels: Tensor,
        ids: Tensor | None,
        classes: Tensor,
        first_id: int,
        ignore_index: int,
        validate: bool,
    ) -> bool:
        """``out (B, H, W)``, contiguous, is the class of each label; of those that have none ``ignore_index``.

        The classes ``(N,)`` are those of ``ids (N,)``, ascending, or of the ids from ``first_id`` on.
        """

    def class_areas(self, out: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, validate: bool) -> bool:
        """``out (B, N, C)``, contiguous float32, is the area of each class in boxes ``(B, N, 4)``, in source pixels."""

    def paste(
        self,
        out: Tensor,
        images: Tensor,
        partners: Tensor,
        boxes: Tensor | None,
        labels: Tensor | None,
        chosen: Tensor | None,
    ) -> None:
        """``out (B, K, H, W)``, dense, is images of any type with pixels of ``partners (B,)``, int64.

        Those inside of ``boxes (B, 4)``, int64, or where the partner's label is a class that is ``chosen (B, C)``,
        bool. Both are contiguous. A partner that is no sample of the batch is the sample itself.
        """

    def blend(self, out: Tensor, images: Tensor, partners: Tensor, weight: Tensor) -> None:
        """``out (B, K, H, W)``, dense, is floating images and their partners, these by ``weight (B,)``, contiguous."""

    def blend_labels(
        self, out: Tensor, labels: Tensor, partners: Tensor, weight: Tensor, ignore_index: int, validate: bool
    ) -> bool:
        """``out (B, C, H, W)``, contiguous, is `blend` of the one-hot masses of label maps ``(B, H, W)``."""

    def soft_crop_resize(
        self, out: Tensor, labels: Tensor, boxes: Tensor | None, ignore_index: int, filter: Filter, validate: bool
    ) -> bool:
        """``out (B, C, h, w)``, contiguous, is the soft label of the label map in its boxes."""

    def soft_crop_resize_top(
        self,
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
        """The k largest classes of each pixel and their masses ``(B, k, h, w)``, and the mass of all others."""

    def top_ids(
        self,
        index: Tensor,
        mass: Tensor,
        rest: Tensor,
        labels: Tensor,
        boxes: Tensor | None,
        ignore_index: int | None,
        filter: Filter,
    ) -> None:
        """The k largest ids of each pixel and their masses ``(B, k, h, w)``, and the mass of all others.

        ``index`` has the type of the labels, in which any number but ``ignore_index`` is an id.
        """

    def soft_pyramid(self, outs: Sequence[Tensor], labels: Tensor, ignore_index: int, validate: bool) -> bool:
        """Soft labels of whole label maps by integer factors, finest first."""

    def crop_resize_pair(
        self,
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
        """`crop_resize` and `soft_crop_resize` with the same boxes."""

    def warp(self, out: Tensor, image: Tensor, transform: Tensor, filter: Filter, fill: float) -> None:
        """``out (B, K, h, w)`` is the image under a transform, a matrix ``(B, 3, 3)`` or a field ``(B, h, w, 2)``."""

    def warp_adjoint(self, out: Tensor, grad: Tensor, transform: Tensor, filter: Filter) -> None:
        """``out (B, K, H, W)`` is the transpose of `warp`, applied to ``grad (B, K, h, w)``."""

    def soft_warp(
        self, out: Tensor, labels: Tensor, transform: Tensor, ignore_index: int, filter: Filter, validate: bool
    ) -> bool:
        """``out (B, C, h, w)``, contiguous, is the soft label of the label map under a transform."""

    def soft_warp_top(
        self,
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
        """The k largest classes of each pixel of `soft_warp`, their masses, and the mass of all others."""

    def warp_top_ids(
        self,
        index: Tensor,
        mass: Tensor,
        rest: Tensor,
        labels: Tensor,
        transform: Tensor,
        ignore_index: int | None,
        filter: Filter,
    ) -> None:
        """`top_ids` under a transform."""

    def warp_pair(
        self,
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
        """`warp` and `soft_warp` with the same transform."""

    def warp_cross_entropy(
        self,
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
        """`cross_entropy` with the soft label of a label map under a transform."""

    def warp_cross_entropy_backward(
        self,
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
        """`cross_entropy_backward` with the soft label of a label map under a transform."""

    def cross_entropy(
        self,
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
        """The loss, reduced, and of each pixel the weighted mass and the logsumexp of its logits.

        ``value`` is a number or, for "none", ``(B, h, w)``; ``total``, a number unless the reduction is "none", is the
        sum of the weighted masses, by which "mean" divides.
        """

    def cross_entropy_backward(
        self,
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
        """``out`` is the gradient of the logits, given ``grad (B, h, w) / total``, that of the pixels' losses."""

    def area_cross_entropy(
        self,
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
        """`cross_entropy` with the soft label of a label map."""

    def area_cross_entropy_backward(
        self,
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
        """`cross_entropy_backward` with the soft label of a label map."""

    def overlap_loss(
        self,
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
        """The Dice or Jaccard loss, reduced, and of each pixel the mass and the logsumexp of its logits.

        ``slopes (S, C, 2)``, of S = B samples or of S = 1 batch: how the value (that of the class, for "none") changes
        with the predicted mass of a class, and with its distance from the labelled one. ``value`` is a number or, for
        "none", ``(S, C)``.
        """

    def overlap_loss_backward(
        self,
        out: Tensor,
        grad: Tensor,
        slopes: Tensor,
        logits: Tensor,
        soft: Tensor,
        index: Tensor | None,
        mass: Tensor,
        lse: Tensor,
    ) -> None:
        """``out`` is the gradient of the logits, given that of the values, ``grad (S, C)``."""

    def binary_cross_entropy(
        self,
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
        """The loss of masses ``(B, C, h, w)``, each of what is ``known`` of as many; None is 1 everywhere.

        ``value`` is a number or, for "none", ``(B, C, h, w)``, contiguous; ``total``, a number unless the reduction is
        "none", is the sum of the weighted known masses, by which "mean" divides.
        """

    def binary_cross_entropy_backward(
        self,
        out: Tensor,
        grad: Tensor,
        total: Tensor | None,
        logits: Tensor,
        soft: Tensor,
        known: Tensor | None,
        weight: Tensor | None,
        pos_weight: Tensor | None,
    ) -> None:
        """``out`` is the gradient of the logits, given ``grad (B, C, h, w) / total``, that of the losses."""

    # --- logits (B, C, h, w) against a label map (B, H, W) of any size; boxes say where in it the logits lie ----------

    def upsampled_cross_entropy(
        self,
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
        """The loss, reduced, and of each scored label pixel the logsumexp ``(B, H, W)``, 0 of others.

        The logsumexp is in units that are the backend's own: only its gradient reads it.
        ``value`` is a number or, for "none", ``(B, H, W)``; ``total``, a number unless the reduction is "none", is the
        sum of the scored pixels' weights, by which "mean" divides.
        """

    def upsampled_cross_entropy_backward(
        self,
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
        """``out`` is the gradient of the logits, given ``grad (B, H, W) / total``, that of the pixels' losses."""

    def upsampled_overlap_loss(
        self,
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
        """`overlap_loss` of the enlarged logits with the one-hot planes of the label map."""

    def upsampled_overlap_loss_backward(
        self,
        out: Tensor,
        grad: Tensor,
        slopes: Tensor,
        logits: Tensor,
        labels: Tensor,
        boxes: Tensor | None,
        ignore_index: int,
        lse: Tensor,
    ) -> None:
        """``out`` is the gradient of the logits, given that of the values, ``grad (S, C)``."""

    def decode(
        self,
        out: Tensor,
        score: Tensor | None,
        logits: Tensor,
        boxes: Tensor | None,
        bias: Tensor | None,
        ignore_index: int,
    ) -> None:
        """``out (B, H, W)`` is the class of each pixel in its box, ``score`` its probability; outside index and 0."""

    def confusion_matrix(
        self,
        counts: Tensor,
        logits: Tensor,
        labels: Tensor,
        boxes: Tensor | None,
        bias: Tensor | None,
        ignore_index: int,
        validate: bool,
    ) -> bool:
        """``counts (C, C)``, int64, is how many pixels of each class (rows) were decoded as each (columns)."""
