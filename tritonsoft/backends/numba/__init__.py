"""The Numba backend: the operators of `tritonsoft.backends.reference` as compiled loops over ranges of output rows.

A crop with a resize is, along each axis, a short list of weighted taps per output (`taps`); `images` and `labels` are
the loops over them.

What makes it fast beside fewer operations: a finished line leaves with non-temporal stores, which spares reading the
output before it is overwritten. Between two such stores nothing may touch a reference count (no array slices there): an
atomic instruction waits until they have drained.

Rows are independent and every sum has a fixed order, so that results do not depend on the number of threads.
Nothing is compiled before the first call. The launchers trust their arguments: `tritonsoft.functional` checks them.
"""

from tritonsoft.backends.numba.area_cross_entropy import area_cross_entropy, area_cross_entropy_backward
from tritonsoft.backends.numba.binary_cross_entropy import binary_cross_entropy, binary_cross_entropy_backward
from tritonsoft.backends.numba.class_areas import class_areas
from tritonsoft.backends.numba.decode import confusion_matrix, decode
from tritonsoft.backends.numba.images import crop_resize, crop_resize_adjoint
from tritonsoft.backends.numba.labels import crop_resize_pair, soft_crop_resize, soft_crop_resize_top, soft_pyramid
from tritonsoft.backends.numba.mixing import blend, blend_labels, paste
from tritonsoft.backends.numba.remapping import remap_labels
from tritonsoft.backends.numba.soft_cross_entropy import cross_entropy, cross_entropy_backward
from tritonsoft.backends.numba.soft_overlap import overlap_loss, overlap_loss_backward
from tritonsoft.backends.numba.top_ids import top_ids, warp_top_ids
from tritonsoft.backends.numba.upsampled_cross_entropy import upsampled_cross_entropy, upsampled_cross_entropy_backward
from tritonsoft.backends.numba.upsampled_overlap import upsampled_overlap_loss, upsampled_overlap_loss_backward
from tritonsoft.backends.numba.warps import (
    soft_warp,
    soft_warp_top,
    warp,
    warp_adjoint,
    warp_cross_entropy,
    warp_cross_entropy_backward,
    warp_pair,
)

__all__ = [
    "area_cross_entropy",
    "area_cross_entropy_backward",
    "binary_cross_entropy",
    "binary_cross_entropy_backward",
    "blend",
    "blend_labels",
    "class_areas",
    "confusion_matrix",
    "crop_resize",
    "crop_resize_adjoint",
    "crop_resize_pair",
    "cross_entropy",
    "cross_entropy_backward",
    "decode",
    "overlap_loss",
    "overlap_loss_backward",
    "paste",
    "remap_labels",
    "soft_crop_resize",
    "soft_crop_resize_top",
    "soft_pyramid",
    "soft_warp",
    "soft_warp_top",
    "top_ids",
    "upsampled_cross_entropy",
    "upsampled_cross_entropy_backward",
    "upsampled_overlap_loss",
    "upsampled_overlap_loss_backward",
    "warp",
    "warp_adjoint",
    "warp_cross_entropy",
    "warp_cross_entropy_backward",
    "warp_pair",
    "warp_top_ids",
]
