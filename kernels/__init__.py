"""The Triton backend: each file is a kernel, its launcher and its launch settings, or what kernels share."""

from tritonsoft.kernels.adjoint import crop_resize_adjoint
from tritonsoft.kernels.area_loss import area_cross_entropy, area_cross_entropy_backward
from tritonsoft.kernels.areas import class_areas
from tritonsoft.kernels.binary_loss import binary_cross_entropy, binary_cross_entropy_backward
from tritonsoft.kernels.decoding import confusion_matrix, decode
from tritonsoft.kernels.enlarged_cross_entropy import upsampled_cross_entropy, upsampled_cross_entropy_backward
from tritonsoft.kernels.enlarged_overlap import upsampled_overlap_loss, upsampled_overlap_loss_backward
from tritonsoft.kernels.forward import crop_resize, crop_resize_pair, soft_crop_resize
from tritonsoft.kernels.mixing import blend, blend_labels, paste
from tritonsoft.kernels.pyramid import soft_pyramid
from tritonsoft.kernels.remapping import remap_labels
from tritonsoft.kernels.soft_cross_entropy import cross_entropy, cross_entropy_backward
from tritonsoft.kernels.soft_overlap import overlap_loss, overlap_loss_backward
from tritonsoft.kernels.top_k import soft_crop_resize_top
from tritonsoft.kernels.top_k_ids import top_ids, warp_top_ids
from tritonsoft.kernels.warping import (
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
