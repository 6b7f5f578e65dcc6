"""Soft labels for semantic segmentation: label maps shrunk, cropped and flipped with the very filter of their image."""

from tritonsoft import memory
from tritonsoft.full_resolution import (
    UpsampledCrossEntropyLoss,
    UpsampledDiceLoss,
    decode,
    upsampled_cross_entropy,
    upsampled_dice_loss,
)
from tritonsoft.functional import (
    backend_info,
    class_areas,
    crop_resize,
    crop_resize_pair,
    normalize,
    resize,
    soft_crop_resize,
    soft_planes,
    soft_pyramid,
    soft_resize,
    to_soft,
)
from tritonsoft.losses import (
    AreaCrossEntropyLoss,
    SoftBinaryCrossEntropyLoss,
    SoftCrossEntropyLoss,
    SoftDiceLoss,
    SoftJaccardLoss,
    area_cross_entropy,
    soft_binary_cross_entropy,
    soft_cross_entropy,
    soft_dice_loss,
    soft_jaccard_loss,
)
from tritonsoft.mixing import class_mix, cut_mix, mix_up, mix_up_labels
from tritonsoft.remapping import LabelTable, remap_labels
from tritonsoft.sparse import SparseLabels
from tritonsoft.version import __version__
from tritonsoft.warping import box_to_matrix, soft_warp, warp, warp_pair

__all__ = [
    "AreaCrossEntropyLoss",
    "LabelTable",
    "SoftBinaryCrossEntropyLoss",
    "SoftCrossEntropyLoss",
    "SoftDiceLoss",
    "SoftJaccardLoss",
    "SparseLabels",
    "UpsampledCrossEntropyLoss",
    "UpsampledDiceLoss",
    "__version__",
    "area_cross_entropy",
    "backend_info",
    "box_to_matrix",
    "class_areas",
    "class_mix",
    "crop_resize",
    "crop_resize_pair",
    "cut_mix",
    "decode",
    "memory",
    "mix_up",
    "mix_up_labels",
    "normalize",
    "remap_labels",
    "resize",
    "soft_binary_cross_entropy",
    "soft_crop_resize",
    "soft_cross_entropy",
    "soft_dice_loss",
    "soft_jaccard_loss",
    "soft_planes",
    "soft_pyramid",
    "soft_resize",
    "soft_warp",
    "to_soft",
    "upsampled_cross_entropy",
    "upsampled_dice_loss",
    "warp",
    "warp_pair",
]
