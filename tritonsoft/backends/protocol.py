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

from tritonsoft.conventions import Filter


class Backend(Protocol):
    """See `tritonsoft.reference` for what each function means."""

    def crop_resize(self, out: Tensor, image: Tensor, boxes: Tensor | None, filter: Filter, fill: float) -> None:
        """``out (B, K, h, w)`` is the image in its boxes."""

    def crop_resize_adjoint(self, out: Tensor, grad: Tensor, boxes: Tensor | None, filter: Filter) -> None:
        """``out (B, K, H, W)`` is the transpose of `crop_resize`, applied to ``grad (B, K, h, w)``."""

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

    def cross_entropy(
        self,
        loss: Tensor,
        mass: Tensor,
        lse: Tensor,
        logits: Tensor,
        soft: Tensor,
        index: Tensor | None,
        weight: Tensor | None,
        validate: bool,
    ) -> bool:
        """Of each pixel: the loss, the weighted mass, and the logsumexp of its logits."""

    def cross_entropy_backward(
        self,
        out: Tensor,
        grad: Tensor,
        logits: Tensor,
        soft: Tensor,
        index: Tensor | None,
        weight: Tensor | None,
        mass: Tensor,
        lse: Tensor,
    ) -> None:
        """``out`` is the gradient of the logits, given that of the loss, ``grad (B, h, w)``."""

    def area_cross_entropy(
        self,
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
        """`cross_entropy` with the soft label of a label map."""

    def area_cross_entropy_backward(
        self,
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
        """`cross_entropy_backward` with the soft label of a label map."""

    def overlap(
        self,
        sums: Tensor,
        mass: Tensor,
        lse: Tensor,
        logits: Tensor,
        soft: Tensor,
        index: Tensor | None,
        validate: bool,
    ) -> bool:
        """``sums (B, C, 3)`` over the pixels: of the predicted mass, the labelled mass, and their distance."""

    def overlap_backward(
        self,
        out: Tensor,
        grad: Tensor,
        logits: Tensor,
        soft: Tensor,
        index: Tensor | None,
        mass: Tensor,
        lse: Tensor,
    ) -> None:
        """``out`` is the gradient of the logits, given that of the sums, ``grad (B, C, 3)``."""
